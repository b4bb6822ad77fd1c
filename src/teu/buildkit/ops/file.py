# SPDX-License-Identifier: Apache-2.0
"""FileOp: copies, made files, folders and links, removals, one after the other or upon each other's results.

Inputs and results have one count: 0 … n-1 are the vertex's inputs, n + i is what action i makes, -1 is an empty tree.
What one action makes and only the next one goes on with is not committed in between.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from teu.buildkit.core import errors
from teu.buildkit.core.op import CacheMap, Context, Dependency, Record, Ref
from teu.buildkit.core.selection import Selection
from teu.buildkit.core.snapshots import Active, Kind, Snapshot, Worker, result, snapshot
from teu.buildkit.llb.load import Vertex
from teu.buildkit.ops import archives, copying, keys, modes, results, users
from teu.buildkit.ops.content import Contents
from teu.buildkit.ops.copying import How, Owner
from teu.buildkit.ops.later import Later
from teu.buildkit.ops.roots import PathError, Root, clean, plain
from teu.buildkit.worker import mounting
from teu.oci import digest as digests
from teu.oci.patterns import BadPattern, Patterns, has_wildcards

CACHE_TYPE = "buildkit.file.v0"
EMPTY = -1
KINDS = ("copy", "mkdir", "mkfile", "symlink", "rm")


class FileOp:
    def __init__(self, vertex: Vertex, worker: Worker) -> None:
        self._vertex = vertex
        self._worker = worker
        self._actions = list(vertex.op.file.actions)
        self._count = len(vertex.inputs)

    # Keys

    def cache_key(self, context: Context) -> CacheMap:
        """The actions, and of what they copy the content alone: where it is counts by its last name only."""
        selections: dict[int, list[Selection]] = {}
        changed: set[int] = set()
        actions: list[bytes] = []
        for action in self._actions:
            kind = str(action.WhichOneof("action"))
            if kind not in KINDS:
                raise errors.InvalidArgument(f"invalid action type {kind}")
            message = type(getattr(action, kind))()
            message.CopyFrom(getattr(action, kind))
            _check_paths(kind, message)
            if action.input != EMPTY:
                changed.add(action.input)
            if kind in ("copy", "mkdir", "mkfile"):
                self._owners(message.owner, selections)
            if kind == "copy" and action.secondaryInput != EMPTY and action.secondaryInput < self._count:
                selections.setdefault(action.secondaryInput, []).append(
                    Selection(
                        message.src,
                        message.followSymlink,
                        message.allowWildcard and has_wildcards(message.src),
                        tuple(message.include_patterns),
                        tuple(message.exclude_patterns),
                        tuple(message.required_paths),
                    )
                )
                message.src = _base(message.src)
            actions.append(keys.text(_written(kind, message)))
        key: dict[str, Any] = {"Type": CACHE_TYPE, "Actions": [keys.base64_of(one) for one in actions]}
        numbers = [[action.input, action.secondaryInput, action.output] for action in self._actions]
        if not _usual(numbers):
            key["indexes"] = numbers
        inputs = []
        for number in range(self._count):
            chosen = selections.get(number)
            if not chosen or number in changed:
                inputs.append(Dependency())
                continue
            paths = sorted((os.fsencode(one.path) for one in chosen), reverse=True)
            inputs.append(Dependency(digests.of(b"\0".join(paths)), Contents(self._worker, _without_doubles(chosen))))
        return CacheMap(keys.of(key), tuple(inputs))

    def _owners(self, owner: Any, selections: dict[int, list[Selection]]) -> None:
        for field, path in (("user", "/etc/passwd"), ("group", "/etc/group")):
            if owner.HasField(field) and getattr(owner, field).WhichOneof("user") == "byName":
                number = getattr(owner, field).byName.input
                if number < 0:
                    raise errors.InvalidArgument(f"invalid user index {number}")
                if number < self._count:
                    selections.setdefault(number, []).append(Selection(path, follow=True))

    def load(self, context: Context, record: Record, output: int) -> Ref:
        return results.load(self._worker, record)

    # Doing it

    def execute(self, context: Context, inputs: Sequence[Ref]) -> Sequence[Ref]:
        with _Run(self._worker, self._vertex, context, [snapshot(ref) for ref in inputs]) as run:
            return run.results()


def _base(path: str) -> str:
    """The last name as Go's path.Base has it."""
    return posixpath.basename(path.rstrip("/")) or ("/" if path else ".")


def _check_paths(kind: str, message: Any) -> None:
    """No system call takes a path with a zero byte in it."""
    for field in ("src", "dest", "path", "oldpath", "newpath"):
        path = getattr(message, field, "")
        if "\0" in path:
            raise PathError(kind, path.replace("\0", "\\x00"), errno.EINVAL)


def _written(kind: str, message: Any) -> dict[str, Any]:
    found = keys.plain(message)
    if message.DESCRIPTOR.fields_by_name.get("owner") and message.HasField("owner"):
        owner = {}
        for field in ("user", "group"):
            if message.owner.HasField(field):
                one = getattr(message.owner, field)
                named = one.WhichOneof("user") == "byName"
                number = {"byId": one.byID} if one.byID else {}
                owner[field] = {"User": {"byName": keys.plain(one.byName)} if named else number}
        found["owner"] = owner
    return found


def _usual(numbers: list[list[int]]) -> bool:
    """The actions go one upon the other, on the first input: then BuildKit says nothing of their numbers."""
    count = len(numbers)
    for at, (first, second, output) in enumerate(numbers):
        if first != (0 if at == 0 else count + at - 1) or second not in (EMPTY, 1):
            return False
        if output != (0 if at == count - 1 else EMPTY):
            return False
    return bool(numbers)


def _without_doubles(selections: Iterable[Selection]) -> list[Selection]:
    """In order; what is in another that is selected whole, too, is selected already."""
    chosen = list(selections)
    kept: list[Selection] = []
    for follow in (False, True):
        paths = {one.path for one in chosen if not _filtered(one) and one.follow == follow}
        kept += [
            Selection(posixpath.join("/", path), follow=follow)
            for path in sorted(paths)
            if not any(path != other and path.startswith(other + "/") for other in paths)
        ]
    kept += [
        Selection(plain(one.path), one.follow, one.wildcard, one.include, one.exclude, one.required)
        for one in chosen
        if _filtered(one)
    ]
    kept = [
        Selection(plain(one.path), one.follow, one.wildcard, one.include, one.exclude, one.required) for one in kept
    ]
    return sorted(kept, key=lambda one: os.fsencode(one.path))


def _filtered(one: Selection) -> bool:
    return one.wildcard or bool(one.include or one.exclude)


class _Made:
    """What an action makes, mounted to be changed."""

    def __init__(self, active: Active) -> None:
        self.active = active
        self.later: Later | None = None
        self._mounts = ExitStack()
        try:
            place = self._mounts.enter_context(active.mounted())
            self.root = self._mounts.enter_context(Root(place))
        except BaseException:
            self.release()
            raise

    def commit(self, check: Callable[[], None]) -> Snapshot:
        try:
            self._mounts.close()
            if self.later is not None:
                self.later.make(check)
        except BaseException:
            self.active.release()
            raise
        return self.active.commit()

    def release(self) -> None:
        try:
            self._mounts.close()
        finally:
            self.active.release()


class _Run:
    """One execution. A context manager: what it still has at the end is let go."""

    def __init__(self, worker: Worker, vertex: Vertex, context: Context, inputs: list[Snapshot | None]) -> None:
        self._worker = worker
        self._vertex = vertex
        self._context = context
        self._inputs = inputs
        self._actions = list(vertex.op.file.actions)
        self._made: dict[int, _Made] = {}
        self._snapshots: dict[int, Snapshot] = {}
        self._roots: dict[int, Root] = {}  # to read
        self._undo = ExitStack()

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._undo.close()
        finally:
            for made in self._made.values():
                made.release()
            for one in self._snapshots.values():
                one.release()

    def results(self) -> list[Ref]:
        count = len(self._inputs)
        outputs: dict[int, int] = {}
        for number, action in enumerate(self._actions):
            if action.output != EMPTY:
                if action.output in outputs:
                    raise errors.InvalidArgument(f"duplicate output {action.output}")
                outputs[action.output] = count + number
        if not outputs:
            raise errors.InvalidArgument("no outputs specified")
        for number in range(len(outputs)):
            if number not in outputs:
                raise errors.InvalidArgument(f"missing output index {number}")
        order = self._order(outputs.values())
        again = Counter(used for number in order for used in self._uses(number))
        first = {self._actions[number - count].input for number in order}
        ends = set(outputs.values())
        for number in order:
            try:
                # One that is gone on with once, by changing it, stays as it is.
                last = number in ends or again[number] != 1 or number not in first
                self._act(number, last)
                if last:
                    self._commit(number)
            except OSError as error:
                raise _told(error).at_solve(self._vertex.op, file_action=number - count) from error
            except errors.Error as error:
                error.at_solve(self._vertex.op, file_action=number - count)
                raise
        return [result(self._snapshots[outputs[number]].clone()) for number in range(len(outputs))]

    def _uses(self, number: int) -> list[int]:
        """The results of other actions that one needs."""
        action = self._actions[number - len(self._inputs)]
        found = [action.input, action.secondaryInput]
        kind = action.WhichOneof("action")
        if kind in ("copy", "mkdir", "mkfile", "symlink"):
            owner = getattr(action, kind).owner
            for field in ("user", "group"):
                if owner.HasField(field) and getattr(owner, field).WhichOneof("user") == "byName":
                    found.append(getattr(owner, field).byName.input)
        return [one for one in found if one >= len(self._inputs)]

    def _order(self, wanted: Iterable[int]) -> list[int]:
        """The actions that lead to these, those first that others need."""
        count, total = len(self._inputs), len(self._inputs) + len(self._actions)
        for action in self._actions:
            for number in (action.input, action.secondaryInput):
                if not EMPTY <= number < total:
                    raise errors.InvalidArgument(f"invalid input index {number}, {total} provided")
        order: list[int] = []
        open_: set[int] = set()
        done: set[int] = set()
        todo = [(number, False) for number in wanted]
        while todo:
            number, ready = todo.pop()
            if ready:
                open_.discard(number)
                done.add(number)
                order.append(number)
                continue
            if number in done:
                continue
            if number in open_:
                raise errors.InvalidArgument(f"loop from index {number}")
            open_.add(number)
            todo.append((number, True))
            for used in self._uses(number):
                if not count <= used < total:
                    raise errors.InvalidArgument(f"invalid user index: {used}")
                if used in open_:
                    raise errors.InvalidArgument(f"loop from index {used}")
                todo.append((used, False))
        return order

    # Trees

    def _snapshot(self, number: int) -> Snapshot | None:
        if number == EMPTY:
            return None
        return self._inputs[number] if number < len(self._inputs) else self._snapshots[number]

    def _target(self, number: int) -> _Made:
        """What the action goes on with, to be changed: its input's own tree, or one upon it."""
        if (made := self._made.pop(number, None)) is not None:
            return made
        kind = Kind(description=self._vertex.name)
        return _Made(self._worker.active(self._snapshot(number), kind))

    def _source(self, number: int) -> Root:
        """A tree to be read; mounted once."""
        if number not in self._roots:
            found = self._snapshot(number)
            if found is None:
                place = self._undo.enter_context(tempfile.TemporaryDirectory(prefix="teu-empty-"))
            else:
                place = self._undo.enter_context(found.mounted())
            self._roots[number] = self._undo.enter_context(Root(place))
        return self._roots[number]

    def _commit(self, number: int) -> None:
        self._snapshots[number] = self._made.pop(number).commit(self._context.check)

    # Actions

    def _act(self, number: int, last: bool) -> None:
        """`last`: what it makes is committed next."""
        self._context.check()
        action = self._actions[number - len(self._inputs)]
        kind = action.WhichOneof("action")
        if kind not in KINDS:
            raise errors.InvalidArgument(f"invalid action type {kind}")
        made = self._target(action.input)
        if last:
            made.later = _later(made.active)
        do: dict[str, Callable[[Root, Any, Any], None]] = {
            "copy": partial(self._copy, made),
            "mkdir": self._mkdir,
            "mkfile": self._mkfile,
            "symlink": self._symlink,
            "rm": self._rm,
        }
        try:
            do[kind](made.root, action, getattr(action, kind))
        except BaseException:
            made.release()
            raise
        self._made[number] = made

    def _owner(self, target: Root, action: Any, owner: Any, given: bool) -> Owner | None:
        if not given:
            return None
        uid = gid = 0
        if owner.HasField("user"):
            if owner.user.WhichOneof("user") == "byName":
                named = owner.user.byName
                found = users.user(self._file_of(target, action, named.input), named.name)
                uid, gid = found or (0, 0)
            else:
                uid = gid = owner.user.byID
        if owner.HasField("group"):
            if owner.group.WhichOneof("user") == "byName":
                named = owner.group.byName
                group = users.group(self._file_of(target, action, named.input), named.name)
                gid = gid if group is None else group
            else:
                gid = owner.group.byID
        return Owner(uid, gid)

    def _file_of(self, target: Root, action: Any, number: int) -> Root:
        if number < 0:
            raise errors.InvalidArgument(f"invalid user index: {number}")
        # What the action is changing has the names, too, and cannot be looked at beside that.
        return target if number == action.input and number >= len(self._inputs) else self._source(number)

    def _mkdir(self, root: Root, action: Any, wanted: Any) -> None:
        owner = self._owner(root, action, wanted.owner, wanted.HasField("owner"))
        moment = _moment(wanted.timestamp)
        real = root.real(clean(wanted.path))
        if wanted.makeParents:
            copying.make_folders(root, real, wanted.mode & 0o777, owner, moment)
            return
        if root.find(real) is not None:
            return
        if root.find(posixpath.dirname(real)) is None:
            raise PathError("mkdir", plain(wanted.path), errno.ENOENT)
        copying.make_folders(root, real, wanted.mode & 0o777, owner, moment)

    def _mkfile(self, root: Root, action: Any, wanted: Any) -> None:
        owner = self._owner(root, action, wanted.owner, wanted.HasField("owner"))
        path = plain(wanted.path)
        real = root.real(path)
        before = root.find(real)
        if before is not None and not stat.S_ISREG(before.st_mode):
            # Writing into an image's device would be writing into the host's.
            number = errno.EISDIR if stat.S_ISDIR(before.st_mode) else errno.EPERM
            raise PathError("open", path, number)
        folder, name = _parent(root, real, "open", path)
        try:
            made = os.open(
                name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
            )
        finally:
            os.close(folder)
        with open(made, "wb", buffering=0) as file:
            data = memoryview(wanted.data)
            while data:
                data = data[file.write(data) or 0 :]
            if owner is not None:
                os.fchown(made, owner.uid, owner.gid)
            if before is None:
                os.fchmod(made, wanted.mode & 0o777)
            copying.set_times(made, _moment(wanted.timestamp))

    def _symlink(self, root: Root, action: Any, wanted: Any) -> None:
        owner = self._owner(root, action, wanted.owner, wanted.HasField("owner"))
        path = plain(wanted.newpath)
        folder, name = _parent(root, root.real(path), "symlink", f"{wanted.oldpath} {path}")
        try:
            try:
                os.symlink(wanted.oldpath, name, dir_fd=folder)
            except OSError as error:
                raise PathError("symlink", f"{wanted.oldpath} {path}", error.errno or errno.EIO) from None
            if owner is not None:
                os.chown(name, owner.uid, owner.gid, dir_fd=folder, follow_symlinks=False)
            moment = _moment(wanted.timestamp)
            if moment is not None:
                os.utime(name, ns=(moment, moment), dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(folder)

    def _rm(self, root: Root, action: Any, wanted: Any) -> None:
        if not wanted.allowWildcard:
            self._rm_one(root, wanted.path, wanted.allowNotFound)
            return
        for path in root.matches(wanted.path, follow=False):
            self._rm_one(root, path, wanted.allowNotFound)

    def _rm_one(self, root: Root, path: str, allowed: bool) -> None:
        self._context.check()
        path = plain(path)
        if path == "/":
            raise errors.InvalidArgument("rmPath: invalid empty path")
        real = root.real(path, follow=False)
        if root.find(real) is None:
            if not allowed:
                raise PathError("stat", path, errno.ENOENT)
            return
        folder, name = _parent(root, real, "remove", path)
        try:
            root.remove(folder, name)
        finally:
            os.close(folder)

    def _copy(self, made: _Made, root: Root, action: Any, wanted: Any) -> None:
        owner = self._owner(root, action, wanted.owner, wanted.HasField("owner"))
        source = self._source(action.secondaryInput)
        src, dest = clean(wanted.src), clean(wanted.dest)
        moment = _moment(wanted.timestamp)
        if not wanted.createDestPath:
            above = posixpath.dirname(root.real(plain(wanted.dest)))
            if root.find(above) is None:
                raise PathError("lstat", above, errno.ENOENT).prefixed(f"failed to stat {wanted.dest}")
        how = self._how(wanted, owner, moment)
        found = [src]
        if wanted.allowWildcard:
            found = source.matches(src, wanted.followSymlink)
            if not found:
                if wanted.allowEmptyWildcard:
                    return
                raise errors.Error(f"{src} not found")
        if len(found) == 1:  # of several a later one may go over what an earlier one has made
            how = replace(how, later=made.later)
        for one in found:
            if wanted.attemptUnpackDockerCompatibility and self._unpack(source, one, root, dest, how):
                continue
            copying.copy(source, one, root, dest, how)

    def _how(self, wanted: Any, owner: Owner | None, moment: int | None) -> How:
        try:
            include, exclude = Patterns(wanted.include_patterns), Patterns(wanted.exclude_patterns)
        except BadPattern as error:
            raise errors.InvalidArgument(f"invalid includepatterns or excludepatterns: {error}") from None
        mode: modes.Mode | None = None
        fixed: int | None = None
        if wanted.modeStr:
            try:
                mode = modes.parse(wanted.modeStr)
            except modes.BadMode as error:
                raise errors.InvalidArgument(f"invalid mode {wanted.modeStr!r}: {error}") from None
        elif wanted.mode != -1:
            number: int = wanted.mode & 0o7777
            fixed = number

            def mode(before: int, folder: bool) -> int:
                return number

        return How(
            owner,
            mode,
            fixed,
            moment,
            wanted.dirCopyContents,
            wanted.followSymlink,
            wanted.alwaysReplaceExistingDestPaths,
            include,
            exclude,
            self._context.check,
        )

    def _unpack(self, source: Root, src: str, target: Root, dest: str, how: How) -> bool:
        """Unpack what is an archive; False where it is none."""
        with archives.opened(source, source.real(src)) as entries:
            if entries is None:
                return False
            real = target.real(dest)
            copying.make_folders(target, real, copying.DEFAULT_MODE, how.owner, how.moment)
            folder = target.open(real)
            try:
                archives.Unpacking(folder, how.owner, how.check).run(entries)
            finally:
                os.close(folder)
            return True


def _later(active: Active) -> Later | None:
    """Where what is made in it lies, if that is one folder."""
    folders = mounting.overlay_folders(active.mounts())
    return Later(folders[0]) if folders is not None and folders[0] else None


def _moment(timestamp: int) -> int | None:
    return None if timestamp == -1 else timestamp


def _parent(root: Root, real: str, what: str, path: str) -> tuple[int, str]:
    try:
        return root.parent(real)
    except OSError as error:
        number = errno.ENOTDIR if error.errno in (errno.ELOOP, errno.EXDEV) else error.errno or errno.EIO
        raise PathError(what, path, number) from None


def _told(error: OSError) -> errors.Error:
    words = os.strerror(error.errno) if error.errno else str(error)
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    if name.startswith("/proc/self/fd/"):
        name = posixpath.basename(name)
    text = f"{words[:1].lower()}{words[1:]}"
    return errors.Error(f"{name}: {text}" if name else text)
