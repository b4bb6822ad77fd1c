# SPDX-License-Identifier: Apache-2.0
"""local://NAME: a folder of the client, by the name that its session knows it by.

    local.session            the session that has it, or PREFIX:SESSION, where PREFIX-NAME is its name there
    local.unique             makes one operation another one
    local.includepattern     JSON lists of patterns, as of .dockerignore, of what is to be seen of it
    local.excludepatterns
    local.followpaths        a JSON list of paths whose links are followed
    local.sharedkeyhint      which folder it is, for the client's host: with the session's own key, what was sent of it
                             before is found again
    local.differ             metadata: a file travels when its size, time or mode is another; none: every file travels
    local.metadatatransfer   files are named, but do not travel
    local.metadatatransferexclude   patterns of those that travel all the same

The folder lies in a tree that is kept, and that the next build of the same folder goes on from: only what differs
travels, and only that is read again for the checksums by which steps are cached. The operation itself is never the same
twice: what of the folder a step sees is its key (cache.contenthash).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from teu.buildkit.cache.store import LOCAL_SOURCE
from teu.buildkit.core import errors
from teu.buildkit.core.identifiers import digest_of
from teu.buildkit.core.op import Record
from teu.buildkit.core.snapshots import Active, Kind, Snapshot, Worker
from teu.buildkit.llb.platforms import Platform
from teu.buildkit.session import filesync, fsutil
from teu.buildkit.session.manager import Manager, Session, plain_id
from teu.buildkit.sources.base import Asker, Key, Material, ask_any, boolean, go_json, strings
from teu.oci.patterns import BadPattern, Patterns

TELL_SECONDS = 0.1  # between two tellings of how much has come
PATTERNS_MAX = 10_000


class Locals:
    """The scheme local. `limits`: what one folder may be at most."""

    def __init__(self, worker: Worker, sessions: Manager, limits: fsutil.Limits | None = None) -> None:
        self.worker = worker
        self.sessions = sessions
        self.limits = limits or fsutil.Limits()

    def open(self, text: str, attributes: Mapping[str, str], platform: Platform) -> LocalSource:
        name, session = text, attributes.get("local.session", "")
        prefix, colon, rest = session.partition(":")
        if colon:
            name, session = f"{prefix}-{name}", rest
        differ = attributes.get("local.differ", "")
        if differ not in ("", "metadata", "none"):
            raise errors.InvalidArgument(f"invalid local.differ {errors.cut(differ, 100)!r}")
        wanted = Wanted(
            name,
            session,
            strings(attributes, "local.includepattern"),
            strings(attributes, "local.excludepatterns"),
            strings(attributes, "local.followpaths"),
            attributes.get("local.sharedkeyhint", ""),
            differ == "none",
            boolean(attributes, "local.metadatatransfer"),
            strings(attributes, "local.metadatatransferexclude"),
        )
        for patterns in (wanted.include, wanted.exclude, wanted.follow, wanted.exceptions):
            if len(patterns) > PATTERNS_MAX:
                raise errors.InvalidArgument(f"local source {name}: more than {PATTERNS_MAX} patterns")
        try:
            exceptions = Patterns(wanted.exceptions)
        except BadPattern as error:
            raise errors.InvalidArgument(f"local source {name}: {error}") from None
        return LocalSource(self, wanted, exceptions)

    def meta(self, request: Any, text: str, platform: Platform, asker: Asker) -> Any:
        raise errors.InvalidArgument("a local source has nothing that could be resolved before its files are there")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an operation says."""

    name: str
    session: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    follow: tuple[str, ...]
    hint: str
    all: bool
    metadata: bool
    exceptions: tuple[str, ...]

    def digest(self, session: str) -> str:
        """As BuildKit writes it."""
        value: dict[str, Any] = {
            "SessionID": session,
            "IncludePatterns": list(self.include) or None,
            "ExcludePatterns": list(self.exclude) or None,
            "FollowPaths": list(self.follow) or None,
        }
        if self.metadata:
            value["MetadataTransfer"] = True
        if self.exceptions:
            value["MetadataExceptions"] = list(self.exceptions)
        return digest_of(go_json(value))

    def shared_key(self, session: Session) -> str:
        """The name of the tree that it is kept in. A folder whose files did not travel is another tree."""
        return f"{self.name}:{self.hint}:{session.shared_key}{':metadata' if self.metadata else ''}"


class LocalSource:
    """One folder, as far as it is to be seen."""

    def __init__(self, locals_: Locals, wanted: Wanted, exceptions: Patterns) -> None:
        self._locals = locals_
        self._wanted = wanted
        self._exceptions = exceptions

    def key(self, asker: Asker) -> Key:
        session = self._wanted.session or next(iter(asker.sessions()), "")
        if not session:
            raise errors.FailedPrecondition("could not access local files without session")
        digest = self._wanted.digest(session)
        return Key(f"session:{self._wanted.name}:{digest}", digest)

    def load(self, asker: Asker, record: Record) -> Snapshot:
        return self._locals.worker.load(record)

    def close(self) -> None:
        """It holds nothing."""

    def material(self) -> Material:
        return Material("local", self._wanted.name)

    def snapshot(self, asker: Asker) -> Snapshot:
        """The transfer. Of a session that has gone another one of the same build is asked, as BuildKit does."""
        sessions = self._locals.sessions
        chosen = self._wanted.session
        if chosen:
            try:
                session = sessions.get(chosen, 5.0, lambda: asker.cancelled)
            except errors.NotFound:
                others = [one for one in asker.sessions() if plain_id(one) != plain_id(chosen)]
                if not others:
                    raise
            else:
                return self._transfer(asker, session)
        return ask_any(sessions, asker, lambda session: self._transfer(asker, session))

    def _transfer(self, asker: Asker, session: Session) -> Snapshot:
        wanted = self._wanted
        active = self._kept(wanted.shared_key(session))
        try:
            with active.mounted() as place:
                folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    self._receive(asker, session, active, folder)
                finally:
                    os.close(folder)
            return active.commit()
        except BaseException:
            # What is known of the content is of no use any more, and neither is the tree.
            active.discard()
            raise

    def _kept(self, key: str) -> Active:
        """The tree of the transfer before, which nobody else has now, or a new one."""
        worker = self._locals.worker
        for name in worker.find(LOCAL_SOURCE, shared_key=key):
            active = worker.reopen(name)
            if active is not None:
                return active
        kind = Kind(LOCAL_SOURCE, f"local source for {self._wanted.name}", retained=True, data={"shared_key": key})
        return worker.active(None, kind)

    def _receive(self, asker: Asker, session: Session, active: Active, folder: int) -> None:
        wanted = self._wanted
        name = f"transferring {wanted.name}:"
        ends: list[Callable[[], None]] = []

        def begun(end: Callable[[], None]) -> None:
            ends.append(end)
            asker.check()

        def changed(change: fsutil.Change) -> None:
            active.tree.changed(change.path)

        wants = self._wants() if wanted.metadata else None
        how = fsutil.How(not wanted.all, wants, _Told(asker, name))

        def cancel() -> None:
            for end in list(ends):
                end()

        with asker.on_cancel(cancel):
            try:
                received = filesync.diff_copy(
                    session,
                    wanted.name,
                    folder,
                    wanted.include,
                    wanted.exclude,
                    wanted.follow,
                    self._locals.limits,
                    changed,
                    lambda entry: _Unhashed(),
                    begun=begun,
                    how=how,
                )
            except errors.Error:
                asker.check()
                raise
        asker.status(name, received.size, 0, action="transferring", completed=True)

    def _wants(self) -> Callable[[bytes], bool]:
        """Of a transfer of names: which files travel all the same."""
        return lambda path: bool(self._exceptions) and self._exceptions.matches(os.fsdecode(path))[0]


class _Unhashed:
    """The content is hashed when a step asks for it, with what else counts."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str:
        return ""


class _Told:
    """How many bytes have come, told now and then."""

    def __init__(self, asker: Asker, name: str) -> None:
        self._asker, self._name = asker, name
        self._next = 0.0
        self(0)

    def __call__(self, size: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + TELL_SECONDS
            self._asker.status(self._name, size, 0, action="transferring")
