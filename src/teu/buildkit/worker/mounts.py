# SPDX-License-Identifier: Apache-2.0
"""The mounts of a step, from what an operation asks for to what the runtime is told.

    STATE/ID/            a step's folder, root's alone
    ├── mN               a part of a tree, mounted here (a folder, or a file)
    ├── secrets/         a tmpfs, where there are secrets: sN
    └── aN/              the socket of an ssh agent

A part of a tree that somebody else may be changing (a cache) is looked up inside the tree once, and mounted by what was
found: the runtime gets a path that nobody else can change (CVE-2024-23651). Trees that are taken whole are mounted by
the runtime itself, in the step's own mount namespace.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Mount
from teu.buildkit.session import ssh
from teu.buildkit.session.manager import Session
from teu.linux import inside, mounts, trees

OPTIONS_MAX = 3500  # bytes of a mount's options that any runtime passes on: mount(2) takes a page
SECRETS_MAX = 64 << 20  # bytes of all secrets of a step


class Tree(Protocol):
    """A Snapshot or an Active."""

    def mounts(self) -> list[Mount]: ...

    def mounted(self) -> AbstractContextManager[str]: ...


@dataclass(frozen=True, slots=True)
class Bind:
    """A tree, or what the selector names in it. `shared`: it is mounted elsewhere, too, or may be: the path where it is
    mounted once for all."""

    dest: str
    tree: Tree
    selector: str = ""
    readonly: bool = False
    shared: Callable[[], str] | None = None


@dataclass(frozen=True, slots=True)
class Tmpfs:
    dest: str
    size: int = 0
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class Secret:
    dest: str
    data: bytes
    uid: int = 0
    gid: int = 0
    mode: int = 0o400

    def __repr__(self) -> str:
        return f"Secret({self.dest})"


@dataclass(frozen=True, slots=True)
class Agent:
    """A socket to the client's ssh agent."""

    dest: str
    session: Session
    identifier: str
    uid: int = 0
    gid: int = 0
    mode: int = 0o600


Wanted = Bind | Tmpfs | Secret | Agent


class Places:
    """What is mounted on the host for one step, until `undo` is closed. `folder` is the step's, root's alone."""

    def __init__(self, folder: str, undo: ExitStack) -> None:
        self._folder = folder
        self._undo = undo
        self._parts = 0
        self._secrets = ""
        self._mounted: dict[int, str] = {}

    def entry(self, wanted: Wanted) -> tuple[dict[str, Any], str]:
        """(The specification's mount, the kind of place that it needs: "dir" or "file"). Raises errors.Error."""
        try:
            if isinstance(wanted, Bind):
                return self._bind(wanted)
            if isinstance(wanted, Tmpfs):
                return _tmpfs(wanted), "dir"
            if isinstance(wanted, Secret):
                return self._secret(wanted), "file"
            return self._agent(wanted), "file"
        except OSError as error:
            raise errors.Error(f"failed to mount {wanted.dest}: {error.strerror or error}") from error

    def _bind(self, wanted: Bind) -> tuple[dict[str, Any], str]:
        access = "ro" if wanted.readonly else "rw"
        whole = wanted.selector.strip("/") in ("", ".")
        if whole and wanted.shared is None:
            tree = wanted.tree.mounts()
            if len(tree) == 1 and sum(len(option) + 1 for option in tree[0].options) < OPTIONS_MAX:
                options = [*tree[0].options]
                if wanted.readonly and "ro" not in options:
                    options = [option for option in options if option != "rw"] + ["ro"]
                return _entry(wanted.dest, tree[0].type, tree[0].source, options), "dir"
        top = wanted.shared() if wanted.shared is not None else self._top(wanted.tree)
        source, kind = (top, "dir") if whole else self._part(top, wanted)
        return _entry(wanted.dest, "bind", source, ["rbind", "rprivate", access]), kind

    def _top(self, tree: Tree) -> str:
        """Where it is mounted; once for all its parts."""
        found = self._mounted.get(id(tree))
        if found is None:
            found = self._mounted[id(tree)] = self._undo.enter_context(tree.mounted())
        return found

    def _part(self, top: str, wanted: Bind) -> tuple[str, str]:
        root = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                part = inside.open_in_root(root, wanted.selector)
            except (FileNotFoundError, NotADirectoryError):
                raise errors.NotFound(
                    f"failed to mount {wanted.dest}: {wanted.selector}: no such file or directory"
                ) from None
        finally:
            os.close(root)
        try:
            kind = "dir" if stat.S_ISDIR(os.fstat(part).st_mode) else "file"
            place = self._place("m", kind)
            tree = mounts.open_tree(part, "", recursive=True)
        finally:
            os.close(part)
        try:
            target = os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                self._undo.callback(trees.unmount, place)
                mounts.move_mount(tree, target, place)
            finally:
                os.close(target)
        finally:
            os.close(tree)
        return place, kind

    def _place(self, prefix: str, kind: str = "dir") -> str:
        self._parts += 1
        place = f"{self._folder}/{prefix}{self._parts}"
        if kind == "dir":
            os.mkdir(place, 0o700)
        else:
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return place

    def _secret(self, wanted: Secret) -> dict[str, Any]:
        if not self._secrets:
            folder = f"{self._folder}/secrets"
            os.mkdir(folder, 0o700)
            flags = mounts.MS_NOSUID | mounts.MS_NODEV
            self._undo.callback(trees.unmount, folder)
            try:
                mounts.mount("tmpfs", folder, "tmpfs", flags, f"mode=0700,size={SECRETS_MAX},noswap")
            except OSError:  # before Linux 6.4
                mounts.mount("tmpfs", folder, "tmpfs", flags, f"mode=0700,size={SECRETS_MAX}")
            self._secrets = folder
        self._parts += 1
        path = f"{self._secrets}/s{self._parts}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(wanted.data)
            file.flush()
            os.fchown(descriptor, wanted.uid, wanted.gid)
            os.fchmod(descriptor, wanted.mode & 0o777)
        options = ["rbind", "rprivate", "ro", "nodev", "nosuid"]
        return _entry(wanted.dest, "bind", path, options + ([] if wanted.mode & 0o111 else ["noexec"]))

    def _agent(self, wanted: Agent) -> dict[str, Any]:
        folder = self._place("a")
        forwarding = ssh.Forwarding(
            wanted.session, folder, wanted.identifier, wanted.uid, wanted.gid, wanted.mode & 0o777
        )
        self._undo.enter_context(forwarding)
        return _entry(wanted.dest, "bind", forwarding.path, ["rbind", "rprivate", "rw"])


def _tmpfs(wanted: Tmpfs) -> dict[str, Any]:
    options = ["nosuid"]
    if wanted.readonly:
        options.append("ro")
    if wanted.size > 0:
        options.append(f"size={wanted.size}")
    return _entry(wanted.dest, "tmpfs", "tmpfs", options)


def _entry(dest: str, kind: str, source: str, options: Sequence[str]) -> dict[str, Any]:
    return {"destination": dest, "type": kind, "source": source, "options": list(options)}
