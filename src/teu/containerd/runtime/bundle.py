# SPDX-License-Identifier: Apache-2.0
"""Bundles: the folder of each task or sandbox, which tells the next life of this daemon what there is.

    STATE/io.containerd.runtime.v2.task/NAMESPACE/ID/      the bundle, as containerd lays it out
        config.json             the OCI spec
        rootfs/                 where the shim mounts
        address                 written by the shim: where it listens (version 2)
        bootstrap.json          written here: {"version", "address", "protocol"}
        shim-binary-path        written here: what to run for clean-up
        log                     a FIFO: the shim's own log lines
        creating                there until the shim has said that the container, or the sandbox, is created
        sandbox                 of a container: the id of the sandbox whose shim serves it, if it has none of its own
        sandbox.json            of a sandbox: {"started", "told"}: whether it was started, and its end published
        work -> ROOT/io.containerd.runtime.v2.task/NAMESPACE/ID
        init.pid, log.json, options.json, runtime, exit.json      the shim's

A bundle is there exactly as long as its task or sandbox.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from teu.containerd.core import errors
from teu.linux import trees
from teu.oci import jsontext

log = logging.getLogger("teu.containerd.shims")

FOLDER = "io.containerd.runtime.v2.task"
CREATING, SANDBOX_ID, SANDBOX_STATE = "creating", "sandbox", "sandbox.json"


class Bundles:
    """All bundles of this daemon. Everything here blocks."""

    def __init__(self, state: str, root: str) -> None:
        self._state = os.path.join(state, FOLDER)
        self._root = os.path.join(root, FOLDER)

    def path(self, namespace: str, id: str) -> str:
        """The bundle's folder, whether it is there or not. InvalidArgument for an id that is no name of a folder."""
        if "/" in id or id in ("", ".", ".."):  # whoever has looked at it before: what is here is removed as a tree
            raise errors.InvalidArgument(f'identifier "{id[:76]}" is no name of a folder')
        return os.path.join(self._state, namespace, id)

    def work(self, namespace: str, id: str) -> str:
        """The folder that the bundle's `work` leads to."""
        return os.path.join(self._root, namespace, id)

    def make(self, namespace: str, id: str, spec: bytes) -> str:
        """Make a bundle for an OCI spec, b"" for none, marked as being created; its path.

        What an earlier creation has left goes first. The group of the container's root may look into the bundle where
        a user namespace maps it."""
        bundle = self.path(namespace, id)
        work = self.work(namespace, id)
        os.makedirs(os.path.dirname(bundle), 0o711, exist_ok=True)
        os.makedirs(os.path.dirname(work), 0o711, exist_ok=True)
        if os.path.isdir(bundle):
            self.remove(bundle)  # of a creation that this daemon did not live to finish; its work folder goes with it
        trees.discard_tree(work)
        os.mkdir(work, 0o711)
        os.mkdir(bundle, 0o700)
        group = mapped_root_group(spec)
        if group:
            os.chown(bundle, -1, group)
            os.chmod(bundle, 0o710)
        os.mkdir(os.path.join(bundle, "rootfs"), 0o711)
        os.symlink(work, os.path.join(bundle, "work"))
        with open(os.path.join(bundle, CREATING), "wb"):
            pass
        if spec:  # a sandbox needs none
            with open(os.path.join(bundle, "config.json"), "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(spec)
        return bundle

    def remove(self, bundle: str) -> None:
        """Remove a bundle and its work folder; never into a root file system that is still mounted."""
        if not os.path.isdir(bundle):
            return
        rootfs = os.path.join(bundle, "rootfs")
        try:
            os.rmdir(rootfs)
        except FileNotFoundError:
            pass
        except OSError:
            try:
                trees.unmount(rootfs)
            except OSError as error:
                log.error("%s is still mounted, its bundle stays: %s", rootfs, error.strerror)
                return
        work = os.path.join(self._root, *bundle.split("/")[-2:])
        trees.discard_tree(bundle)
        trees.discard_tree(work)

    def all(self) -> Iterator[tuple[str, str]]:
        """(namespace, id) of all bundles on the disk."""
        try:
            namespaces = sorted(os.listdir(self._state))
        except FileNotFoundError:
            return
        for namespace in namespaces:
            folder = os.path.join(self._state, namespace)
            if os.path.isdir(folder):
                yield from ((namespace, id) for id in sorted(os.listdir(folder)))


def read(path: str) -> str:
    """The text of a file without blanks around it; "" where there is none."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def remove_file(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def write_new(path: str, text: str) -> None:
    """Write a file, or replace it, in one step."""
    with open(path + ".tmp", "w") as file:
        file.write(text)
    os.rename(path + ".tmp", path)


def mapped_root_group(spec: bytes) -> int:
    """The host's gid of the container's root when it has a user namespace, else 0."""
    if b'"gidMappings"' not in spec:
        return 0
    for mapping in (jsontext.loads(spec).get("linux") or {}).get("gidMappings") or []:
        if mapping.get("containerID") == 0:
            return int(mapping.get("hostID") or 0)
    return 0
