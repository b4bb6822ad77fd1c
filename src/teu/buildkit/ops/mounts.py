# SPDX-License-Identifier: Apache-2.0
"""The mounts of a step or of a frontend's container, from the definition to trees, caches and secrets that are there.

    prepared = prepare(steps, mounts, inputs, …)    trees are made, caches are had, secrets are asked for
    …                                               the executor runs with prepared.root and prepared.mounts
    results = prepared.commit()                     one for each output, in order
    prepared.release()                              always: what was not committed goes, caches are given back

A cache mount is a retained record of the worker: the next step with its name finds it again. `shared` ones are one tree
for all who have them at a time; of `private` and `locked` ones a step has a tree to itself, and where all are in use it
gets a new one, or waits.
"""

from __future__ import annotations

import posixpath
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.cache.store import CACHE_MOUNT
from teu.buildkit.core import errors
from teu.buildkit.core.op import Ref
from teu.buildkit.core.snapshots import Active, Kind, Snapshot, Worker, result
from teu.buildkit.session import manager, secrets, ssh
from teu.buildkit.worker.mounts import Agent, Bind, Secret, Tmpfs, Wanted

ROOT = "/"
EMPTY = -1
LOCKED_POLL_SECONDS = 0.1
CACHE_DATA = "cache-dir"  # in the data of a record: whose cache it is


class Waiting(Protocol):
    """What of core.op.Context is asked while something is waited for."""

    def check(self) -> None: ...

    def wait(self, seconds: float) -> bool: ...

    def waiting(self) -> AbstractContextManager[None]: ...

    def sessions(self) -> list[str]: ...


class Share:
    """A cache mount in use."""

    def __init__(self, active: Active) -> None:
        self.active = active
        self.users = 1
        self._undo = ExitStack()
        self._lock = threading.Lock()
        self._place = ""

    def place(self) -> str:
        """Where it is mounted, once for all who have it: two mounts of one overlay would not see each other's files."""
        with self._lock:
            if not self._place:
                self._place = self._undo.enter_context(self.active.mounted())
            return self._place

    def close(self) -> None:
        try:
            self._undo.close()
        finally:
            self.active.release()


class Caches:
    """The cache mounts that steps have now."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._shared: dict[str, Share] = {}
        self._held: set[int] = set()

    def take(self, key: str, sharing: int, parent: Snapshot | None, description: str, waiting: Waiting) -> Share:
        """Raises errors.Error; Cancelled where nobody waits for it any more."""
        while True:
            with self._lock:
                if sharing == pb.SHARED and key in self._shared:
                    share = self._shared[key]
                    share.users += 1
                    return share
                share_or_none, locked = self._free(key)
                if share_or_none is None and not (sharing == pb.LOCKED and locked):
                    kind = Kind(CACHE_MOUNT, description, retained=True, data={CACHE_DATA: key})
                    share_or_none = Share(self._worker.active(parent, kind))
                if share_or_none is not None:
                    if sharing == pb.SHARED:
                        self._shared[key] = share_or_none
                    return share_or_none
            waiting.check()
            with waiting.waiting():
                waiting.wait(LOCKED_POLL_SECONDS)

    def _free(self, key: str) -> tuple[Share | None, bool]:
        """(One that nobody has, whether there is one that somebody has)."""
        locked = False
        for identity in self._worker.find(CACHE_MOUNT, **{CACHE_DATA: key}):
            active = self._worker.reopen(identity)
            if active is not None:
                return Share(active), locked
            locked = True
        return None, locked

    def give_back(self, share: Share) -> None:
        with self._lock:
            share.users -= 1
            if share.users:
                return
            for key, other in list(self._shared.items()):
                if other is share:
                    del self._shared[key]
            share.close()


@dataclass(slots=True)
class Prepared:
    """`mounts`: for the executor, the root left out. `trees`: what each mount of the definition is, by its number; None
    where it is no tree. `readonly`: the root is."""

    root: Active
    readonly: bool
    mounts: list[Wanted]
    trees: list[Any]
    _outputs: list[Active | Snapshot | None] = field(default_factory=list)
    _undo: ExitStack = field(default_factory=ExitStack)

    def commit(self) -> list[Ref]:
        """The results, one for each output; they are the caller's. Once."""
        results: list[Ref] = []
        try:
            while self._outputs:
                one = self._outputs.pop(0)
                results.append(_committed(one))
        except BaseException:
            for made in results:
                made.release()
            raise
        return results

    def release(self) -> None:
        """What was not committed goes. Twice is fine."""
        outputs, self._outputs = self._outputs, []
        for one in outputs:
            if one is not None:
                one.release()
        self._undo.close()


def _committed(one: Active | Snapshot | None) -> Ref:
    if one is None:
        return result(None)
    commit = getattr(one, "commit", None)
    return commit() if commit is not None else one  # type: ignore[return-value]


class Preparing:
    """What mounts are made with. `owner`: who has them, for people; `cwd`: where relative places are."""

    def __init__(
        self, worker: Worker, sessions: manager.Manager, caches: Caches, waiting: Waiting, owner: str, cwd: str = "/"
    ) -> None:
        self._worker = worker
        self._sessions = sessions
        self._caches = caches
        self._waiting = waiting
        self._owner = owner
        self._cwd = cwd
        self._had: dict[str, Share] = {}

    def prepare(self, mounts: Sequence[pb.Mount], inputs: Sequence[Snapshot | None]) -> Prepared:
        """`inputs`: by the numbers that the mounts say; borrowed until the end. Raises errors.Error."""
        undo = ExitStack()
        outputs: list[Active | Snapshot | None] = []
        trees: list[Any] = []
        root: Active | None = None
        readonly = False
        wanted: dict[str, Wanted] = {}
        try:
            self._lock_caches(mounts, inputs, undo)
            for mount in mounts:
                tree, output = self._tree(mount, inputs, undo)
                if output is not _NONE:
                    outputs.append(output)
                trees.append(tree)
                if mount.dest == ROOT:
                    root, readonly = tree, mount.readonly
                    continue
                one = self._wanted(mount, tree)
                if one is not None:
                    wanted.pop(one.dest, None)  # the last one of a place is what is seen there
                    wanted[one.dest] = one
            if root is None:
                raise errors.InvalidArgument("no root is mounted")
        except BaseException:
            for output in outputs:
                if output is not None:
                    output.release()
            undo.close()
            raise
        return Prepared(root, readonly, list(wanted.values()), trees, outputs, undo)

    def _lock_caches(self, mounts: Sequence[pb.Mount], inputs: Sequence[Snapshot | None], undo: ExitStack) -> None:
        """Those that may have to be waited for, in one order for all steps: else two could wait for each other."""
        locked = [one for one in mounts if one.mountType == pb.CACHE and one.cacheOpt.sharing == pb.LOCKED]
        for mount in sorted(locked, key=lambda one: (one.cacheOpt.ID, one.input)):
            self._cache(mount, self._parent(mount, inputs), undo)

    @staticmethod
    def _parent(mount: pb.Mount, inputs: Sequence[Snapshot | None]) -> Snapshot | None:
        if mount.input == EMPTY:
            return None
        if not 0 <= mount.input < len(inputs):
            raise errors.InvalidArgument(f"missing input {mount.input}")
        found: Snapshot | None = inputs[mount.input]
        return found

    def _tree(self, mount: pb.Mount, inputs: Sequence[Snapshot | None], undo: ExitStack) -> tuple[Any, Any]:
        """(The tree that is mounted, None where it is none; the output that it becomes, or _NONE)."""
        if mount.dest == ROOT and mount.mountType != pb.BIND:
            raise errors.InvalidArgument(f"invalid mount type {_type(mount)} for /")
        parent = self._parent(mount, inputs)
        has_output = mount.output != EMPTY
        if mount.mountType == pb.CACHE:
            share = self._cache(mount, parent, undo)
            keeps = has_output and mount.input != EMPTY
            return share, (parent.clone() if parent is not None else None) if keeps else _NONE
        if mount.mountType != pb.BIND:
            return None, _NONE
        if has_output and mount.readonly and mount.input != EMPTY and mount.dest != ROOT:
            if parent is None:
                return self._scratch(mount, undo), None
            return _held(parent, undo), parent.clone()
        if has_output:
            active = self._active(mount, parent)
            return active, active
        if mount.readonly and parent is not None and mount.dest != ROOT:
            return _held(parent, undo), _NONE
        return self._scratch(mount, undo, parent), _NONE

    def _active(self, mount: pb.Mount, parent: Snapshot | None) -> Active:
        return self._worker.active(parent, Kind(description=f"mount {mount.dest} from {self._owner}"))

    def _scratch(self, mount: pb.Mount, undo: ExitStack, parent: Snapshot | None = None) -> Active:
        """One of which nothing is kept."""
        active = self._active(mount, parent)
        undo.callback(active.release)
        return active

    def _cache(self, mount: pb.Mount, parent: Snapshot | None, undo: ExitStack) -> Share:
        if not mount.HasField("cacheOpt"):
            raise errors.InvalidArgument("missing cache mount options")
        identity = mount.cacheOpt.ID
        key = f"{identity}:{parent.id}" if parent is not None else identity
        if key in self._had:  # mounted twice by one step: else it would wait for itself
            return self._had[key]
        name = f"cached mount {mount.dest} from {self._owner}"
        if identity != mount.dest:
            name += f' with id "{identity}"'
        share = self._caches.take(key, mount.cacheOpt.sharing, parent, name, self._waiting)
        self._had[key] = share
        undo.callback(self._caches.give_back, share)
        return share

    def _wanted(self, mount: pb.Mount, tree: Any) -> Wanted | None:
        dest = posixpath.normpath("/" + posixpath.join(self._cwd, mount.dest).lstrip("/"))
        if dest == ROOT:
            raise errors.InvalidArgument(f"invalid mount destination {mount.dest!r}: it is the root")
        if mount.mountType == pb.TMPFS:
            size = mount.TmpfsOpt.size if mount.HasField("TmpfsOpt") else 0
            return Tmpfs(dest, size, mount.readonly)
        if mount.mountType == pb.SECRET:
            return self._secret(mount, dest)
        if mount.mountType == pb.SSH:
            return self._agent(mount, dest)
        if isinstance(tree, Share):
            alone = all(one.type == "bind" for one in tree.active.mounts())
            return Bind(dest, tree.active, mount.selector, mount.readonly, None if alone else tree.place)
        return Bind(dest, tree, mount.selector, mount.readonly or not hasattr(tree, "commit"))

    def _secret(self, mount: pb.Mount, dest: str) -> Secret | None:
        if not mount.HasField("secretOpt"):
            raise errors.InvalidArgument("invalid secret mount options")
        option = mount.secretOpt
        if not option.ID:
            raise errors.InvalidArgument("secret ID missing from mount options")
        data = secret(self._sessions, self._waiting.sessions(), option.ID, option.optional)
        return None if data is None else Secret(dest, data, option.uid, option.gid, option.mode)

    def _agent(self, mount: pb.Mount, dest: str) -> Agent | None:
        option = mount.SSHOpt

        def asked(session: manager.Session) -> manager.Session:
            ssh.check(session, option.ID)
            return session

        try:
            session = self._sessions.any_of(self._waiting.sessions(), asked)
        except errors.Error as error:
            if option.optional:
                return None
            if isinstance(error, errors.Unimplemented):
                raise errors.Error(f'no SSH key "{option.ID}" forwarded from the client') from None
            raise
        return Agent(dest, session, option.ID, option.uid, option.gid, option.mode)


def _held(tree: Snapshot, undo: ExitStack) -> Snapshot:
    """It is mounted for longer than a caller may lend it."""
    held = tree.clone()
    undo.callback(held.release)
    return held


_NONE: Any = object()  # no output; None is an output that is empty


def _type(mount: pb.Mount) -> str:
    return str(pb.MountType.Name(mount.mountType)) if mount.mountType in pb.MountType.values() else str(mount.mountType)


def secret(sessions: manager.Manager, identifiers: Sequence[str], identifier: str, optional: bool) -> bytes | None:
    """A client's secret; None where it has none of it, and need not. Raises errors.Error."""
    try:
        return sessions.any_of(identifiers, lambda session: secrets.get(session, identifier))
    except errors.NotFound as error:
        if optional:
            return None
        error.code = errors.Error.code  # clients show a code in front of the words, and BuildKit has none here
        raise


def secret_variables(
    sessions: manager.Manager, identifiers: Sequence[str], wanted: Sequence[pb.SecretEnv]
) -> list[str]:
    """NAME=VALUE for each; an optional one that there is not is empty, as with BuildKit. Raises errors.Error."""
    found = []
    for one in wanted:
        if not one.ID:
            raise errors.InvalidArgument(f'secret ID missing for "{one.name}" environment variable')
        if not one.name or "=" in one.name:
            raise errors.InvalidArgument(f"invalid name {one.name!r} of an environment variable for a secret")
        data = secret(sessions, identifiers, one.ID, one.optional) or b""
        if b"\0" in data:
            raise errors.InvalidArgument(f"secret {one.ID} has a zero byte: it can be a file, and no variable")
        found.append(f"{one.name}={data.decode('utf-8', 'surrogateescape')}")
    return found
