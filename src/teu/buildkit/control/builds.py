# SPDX-License-Identifier: Apache-2.0
"""The builds under way, by their references. Called by control and bridge.

A client names its build, and asks for its progress, and for its bridge, perhaps before the build has come: they wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from teu.api.buildkit import control_pb2
from teu.buildkit.control import requests
from teu.buildkit.control.bridge import Forwarder
from teu.buildkit.control.build import Build, Rooms
from teu.buildkit.control.containers import Containers
from teu.buildkit.control.history import ERROR, STATEMENT, Blob, History, pack_logs
from teu.buildkit.control.view import BuildBridge
from teu.buildkit.core import errors
from teu.buildkit.core.identifiers import without_credentials
from teu.buildkit.core.progress import Progress
from teu.buildkit.exporters import provenance
from teu.buildkit.exporters.images import PREDICATE_TYPE, parts_of
from teu.oci import jsontext

log = logging.getLogger("teu.buildkit")

BUILDS_MAX = 1000  # at a time
FIND_SECONDS = 6.0  # how long somebody waits for a build that has not come
POLL_SECONDS = 0.25
QUIET_MAX = 8


class Builds:
    def __init__(
        self,
        rooms: Rooms,
        history: History,
        containers: Callable[[BuildBridge], Containers],
        workers: Callable[[], Any],
    ) -> None:
        self._rooms = rooms
        self._history = history
        self._containers = containers
        self._workers = workers
        self._changed = threading.Condition()
        self._builds: dict[str, tuple[Build, Forwarder]] = {}
        self._quiet: dict[str, Progress] = {}  # of the last builds that the history is not told of
        self._stopping = False

    @property
    def count(self) -> int:
        with self._changed:
            return len(self._builds)

    def solve(self, asked: Any, on_gone: Callable[[Callable[[], None]], None]) -> dict[str, str]:
        """Answer a SolveRequest when its build has ended. `on_gone` takes what to call when the client leaves."""
        request = requests.solve(asked)
        with self._changed:
            if self._stopping:
                raise errors.Unavailable("the builder is shutting down")
            if len(self._builds) >= BUILDS_MAX:
                raise errors.ResourceExhausted(f"{BUILDS_MAX} builds are under way")
        build = Build(self._rooms, request)
        try:
            view = BuildBridge(build)
            forwarder = Forwarder(view, request.inputs, self._workers, self._containers(view))
            build.on_close(forwarder.close)
            with self._changed:
                self._builds[build.ref] = build, forwarder
                self._changed.notify_all()
            on_gone(build.cancel)
            return self._recorded(build, view)
        finally:
            build.close()
            with self._changed:
                self._builds.pop(build.ref, None)
                if request.internal:
                    self._quiet[build.ref] = build.progress
                    while len(self._quiet) > QUIET_MAX:
                        del self._quiet[next(iter(self._quiet))]
                self._changed.notify_all()

    def _recorded(self, build: Build, view: BuildBridge) -> dict[str, str]:
        """Run it, and let the history know."""
        request = build.request
        if request.internal:
            return build.run(view)
        record = control_pb2.BuildHistoryRecord(
            Ref=build.ref,
            Frontend=request.frontend,
            FrontendAttrs={key: without_credentials(value) for key, value in request.attributes.items()},
            Exporters=[control_pb2.Exporter(Type=kind, Attrs=attributes) for kind, attributes in request.exporters],
        )
        record.CreatedAt.FromNanoseconds(int(build.started * 1e9))
        begun = control_pb2.BuildHistoryRecord()
        begun.CopyFrom(record)
        self._history.start(begun)
        log.info("build %s begins", build.ref, extra={"TEU_BUILD": build.ref})
        problem: BaseException | None = None
        values: dict[str, str] = {}
        try:
            values = build.run(view)
            return values
        except BaseException as error:
            problem = error
            raise
        finally:
            try:
                self._finish(build, record, values, problem)
            except Exception:
                log.exception("the history of %s is not kept", build.ref)  # which is no reason for the build to fail
                self._history.abandon(build.ref)

    def _finish(self, build: Build, record: Any, values: dict[str, str], problem: BaseException | None) -> None:
        seconds = time.time() - build.started
        counts = build.progress.counts()
        build.progress.close()
        blobs = [pack_logs(build.progress.listen())]
        record.logs.CopyFrom(blobs[0].descriptor())
        if problem is not None:
            status = errors.to_status(problem)
            blobs.append(Blob(ERROR, status.SerializeToString()))
            record.externalError.CopyFrom(blobs[-1].descriptor())
            record.error.code, record.error.message = status.code, errors.cut(status.message, 4096)
        for key, value in values.items():
            record.ExporterResponse[key] = value
        record.Frontend = build.frontend
        for key, value in build.options.items():
            record.FrontendAttrs[key] = without_credentials(value)
        for number, answer in enumerate(build.answers):
            if answer.descriptor is not None:
                record.Result.Results[number].CopyFrom(
                    control_pb2.Descriptor(
                        media_type=answer.descriptor["mediaType"],
                        digest=answer.descriptor["digest"],
                        size=answer.descriptor["size"],
                    )
                )
        for name, blob, kind in _provenance(build):
            blobs.append(blob)
            told = blob.descriptor()
            told.annotations[PREDICATE_TYPE] = kind
            (record.Results[name] if name else record.Result).Attestations.append(told)
        for name, count in counts.items():
            setattr(record, name, count)
        record.CompletedAt.GetCurrentTime()
        self._history.finish(record, blobs)
        fields = {"TEU_BUILD": build.ref}
        if problem is None:
            log.info("build %s has ended after %.1f s", build.ref, seconds, extra=fields)
        else:
            log.info("build %s has failed after %.1f s: %s", build.ref, seconds, problem, extra=fields)

    def get(self, ref: str, gone: Callable[[], bool] = lambda: False) -> tuple[Build, Forwarder]:
        """A build under way, and the bridge for the frontend in its client. NotFound where it does not come."""
        deadline = time.monotonic() + FIND_SECONDS
        with self._changed:
            while ref not in self._builds:
                left = deadline - time.monotonic()
                if left <= 0 or gone() or self._stopping:
                    raise errors.unknown_job(ref)
                self._changed.wait(min(left, POLL_SECONDS))
            return self._builds[ref]

    def status(self, ref: str, gone: Callable[[], bool]) -> Iterator[Any]:
        """The progress of a build from its begin: one that has ended, is under way, or is about to come. One that comes
        and ends while somebody waits for it is not missed."""
        deadline = time.monotonic() + FIND_SECONDS
        while True:
            with self._changed:
                found = self._builds.get(ref)
                progress = found[0].progress if found is not None else self._quiet.get(ref)
            if progress is not None:
                yield from progress.listen(gone)
                return
            try:
                ended = self._history.logs(ref)
            except errors.NotFound:
                pass
            else:
                yield from ended
                return
            left = deadline - time.monotonic()
            if left <= 0 or gone() or self._stopping:
                raise errors.unknown_job(ref)
            with self._changed:
                if ref not in self._builds:
                    self._changed.wait(min(left, POLL_SECONDS))

    def stop(self) -> None:
        """No build begins any more; those under way end."""
        with self._changed:
            self._stopping = True
            builds = [build for build, _ in self._builds.values()]
            self._changed.notify_all()
        for build in builds:
            build.cancel()

    def wait(self, seconds: float) -> bool:
        """Until none is under way."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._builds, seconds)


def _provenance(build: Build) -> list[tuple[str, Blob, str]]:
    """(part, predicate, its type) of how each part of a result came about, as the history keeps it."""
    if build.made is None:
        return []
    result, told = build.made
    asked = provenance.Asked(mode="max")
    found = []
    try:
        for one in parts_of(result):
            kind, predicate = provenance.predicate(asked, result, told, one.id, one.platform)
            name = one.id if one.id in result.parts else ""
            found.append((name, Blob(STATEMENT, jsontext.to_bytes(predicate)), kind))
    except Exception:
        log.exception("the provenance of %s is not kept", build.ref)  # which is no reason for the build to fail
    return found
