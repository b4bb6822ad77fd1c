# SPDX-License-Identifier: Apache-2.0
"""POST /build: the same solve as any client of BuildKit has, told as classic clients read it.

A context in the body is taken whole first, as dockerd's classic builder takes it, and is offered to the builder by a
session of teud's own (session.py). Version 2 has a session already, its messages carry BuildKit's own progress."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import queue
import re
import threading
import uuid
from collections.abc import Generator, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

from teu.engine.builds import options as wanted
from teu.engine.builds.builder import MESSAGE_MAX, Builder
from teu.engine.builds.options import Options
from teu.engine.core import errors
from teu.oci import reference

if TYPE_CHECKING:
    from teu.api.buildkit import control_pb2

QUIET_SECONDS = 0.25
LAST_WORDS_SECONDS = 5.0  # for the progress to end after the build
UPLOAD_SECONDS = 60.0  # between an upload and its build, whichever comes first
CHUNK = 1 << 20

_STEP = re.compile(r"\[(?:[^\]]* )?(\d+)/(\d+)\] (.*)", re.DOTALL)

Message = dict[str, Any]


class Failed(errors.EngineError):
    """The build failed, in the builder's words."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        if "dockerfile parse error" in text:
            self.status = 400


class _Upload:
    """A body that came in a request of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.taken = threading.Event()


class Builds:
    """Those under way."""

    def __init__(self, builder: Builder, folder: str, by_target: bool) -> None:
        """folder: where contexts lie meanwhile, without a name; `by_target`: which digest an image's id is."""
        self._ids = ("containerimage.digest", "containerimage.config.digest")[:: 1 if by_target else -1]
        self._builder = builder
        self._folder = folder
        self._changed = threading.Condition()
        self._calls: dict[str, Any] = {}
        self._uploads: dict[str, _Upload] = {}

    def cancel(self, build_id: str) -> None:
        """End the build of that id; nothing where there is none."""
        with self._changed:
            call = self._calls.get(build_id)
        if call is not None:
            call.cancel()

    def upload(self, build_id: str, body: io.RawIOBase | io.BytesIO) -> None:
        """Take a body for the build of that id, and wait until it has it. Raises TimedOut where none wants it."""
        upload = _Upload(self._spooled(body))
        with self._changed:
            self._uploads[build_id] = upload
            self._changed.notify_all()
        try:
            if not upload.taken.wait(UPLOAD_SECONDS):
                raise errors.TimedOut(f"no build asked for the upload {build_id}")
        finally:
            with self._changed:
                if self._uploads.get(build_id) is upload:
                    del self._uploads[build_id]
            if not upload.taken.is_set():
                upload.file.close()

    def _spooled(self, body: io.RawIOBase | io.BytesIO) -> IO[bytes]:
        descriptor = os.open(self._folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        file = os.fdopen(descriptor, "w+b")  # who takes it closes it
        try:
            while data := body.read(CHUNK):
                file.write(data)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def _context(self, options: Options, body: io.RawIOBase | io.BytesIO) -> IO[bytes] | None:
        if options.remote == wanted.UPLOAD_REQUEST:
            with self._changed:
                if not self._changed.wait_for(lambda: options.build_id in self._uploads, UPLOAD_SECONDS):
                    raise errors.TimedOut(f"the upload of the build {options.build_id} did not come")
                upload = self._uploads.pop(options.build_id)
                upload.taken.set()
                return upload.file
        return None if options.remote else self._spooled(body)

    def run(self, options: Options, body: io.RawIOBase | io.BytesIO, registry_config: str) -> Generator[Message | None]:
        """Build, and tell of it; None where there is nothing to tell for a while. Closing it ends the build.

        Raises BadRequest, NoBuilder, Unavailable; Failed with the builder's error."""
        from teu.engine.builds.session import OwnSession, credentials  # HTTP/2: 5 ms of the daemon's start

        known = credentials(registry_config)
        channel = self._builder.channel()
        with contextlib.ExitStack() as stack:
            context = self._context(options, body)
            if context is not None:
                stack.enter_context(context)
            session = options.session
            if context is not None or not session:
                own = stack.enter_context(OwnSession(self._builder, context, known))
                session = session if context is None and session else own.id
                if context is not None:
                    options.attributes["context"] = own.address
            yield from self._solve(channel, options, session)

    def _image(self, answer: Mapping[str, str]) -> str:
        """The id of what was built; "" where that is no image."""
        return next((found for key in self._ids if (found := answer.get(key, ""))), "")

    def _solve(self, channel: Any, options: Options, session: str) -> Iterator[Message | None]:
        import grpc  # 60 ms of the daemon's start, which most of its lives do without

        from teu.api.buildkit import control_pb2, control_pb2_grpc

        stub = control_pb2_grpc.ControlStub(channel)
        request = control_pb2.SolveRequest(
            Ref=uuid.uuid4().hex,
            Session=session,
            Frontend=wanted.FRONTEND,
            FrontendAttrs=options.attributes,
            Entitlements=options.entitlements,
        )
        if options.exporter:
            request.Exporters.add(Type=options.exporter, Attrs=options.exporter_attributes)
        if options.inline_cache:
            request.Cache.Exports.add(Type="inline")
        call = stub.Solve.future(request)
        status = stub.Status(control_pb2.StatusRequest(Ref=request.Ref))
        told: queue.Queue[control_pb2.StatusResponse | None] = queue.Queue(maxsize=64)
        threading.Thread(target=_listen, args=(status, told), name="build status", daemon=True).start()
        if options.build_id:
            with self._changed:
                before = self._calls.get(options.build_id)
                self._calls[options.build_id] = call
            if before is not None:
                before.cancel()  # as dockerd: one of an id takes another's place
        show = _Trace() if options.version == 2 else _Steps(options.quiet)
        try:
            yield from _until_done(call, told, show)
            try:
                answer = call.result()
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    raise errors.Unavailable(f"the builder cannot be reached: {error.details()}") from None
                raise Failed((error.details() or "the build failed")[:MESSAGE_MAX]) from None
            except grpc.FutureCancelledError:
                raise Failed("the build was cancelled") from None
            yield from show.end(self._image(answer.ExporterResponse), options.tags)
        finally:
            call.cancel()
            status.cancel()
            with self._changed:
                if self._calls.get(options.build_id) is call:
                    del self._calls[options.build_id]


def _listen(status: Any, told: queue.Queue[control_pb2.StatusResponse | None]) -> None:
    import grpc  # as above

    try:
        for response in status:
            told.put(response)
    except grpc.RpcError:
        pass  # the solve says why
    told.put(None)


def _until_done(
    call: Any, told: queue.Queue[control_pb2.StatusResponse | None], show: _Steps | _Trace
) -> Iterator[Message | None]:
    """What is told of a build, until it has ended and has said its last."""
    patience = LAST_WORDS_SECONDS
    while patience > 0:
        try:
            response = told.get(timeout=QUIET_SECONDS)
        except queue.Empty:
            if call.done():
                patience -= QUIET_SECONDS
            yield None
            continue
        if response is None:
            break
        yield from show.messages(response)
    while not call.done():  # the progress broke off: the build goes on
        threading.Event().wait(QUIET_SECONDS)
        yield None


class _Trace:
    """Version 2: BuildKit's progress as it is."""

    def messages(self, response: control_pb2.StatusResponse) -> Iterator[Message]:
        yield {"id": "moby.buildkit.trace", "aux": base64.b64encode(response.SerializeToString()).decode()}

    def end(self, image: str, tags: list[str]) -> Iterator[Message]:
        if image:
            yield {"id": "moby.image.id", "aux": {"ID": image}}


class _Steps:
    """Version 1: steps and their output as lines."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._steps: dict[str, str] = {}  # digest: what it does, of those that are shown
        self._begun: set[str] = set()

    def messages(self, response: control_pb2.StatusResponse) -> Iterator[Message]:
        if self._quiet:
            return
        for vertex in response.vertexes:
            found = _STEP.fullmatch(vertex.name)
            if not found:
                continue
            begins = vertex.digest not in self._begun and (vertex.HasField("started") or vertex.cached)
            self._steps[vertex.digest] = found[3]
            if begins:
                self._begun.add(vertex.digest)
                yield {"stream": f"Step {found[1]}/{found[2]} : {found[3]}\n"}
                if vertex.cached and not found[3].startswith("FROM "):
                    yield {"stream": " ---> Using cache\n"}
        for status in response.statuses:
            if status.vertex in self._steps and status.total:
                layer = status.ID.rpartition("sha256:")[2][:12]
                detail = {"current": status.current, "total": status.total}
                done = status.HasField("completed")
                word = "Extracting" if status.ID.startswith("extracting") else "Downloading"
                if done:
                    yield {"status": "Pull complete" if word == "Extracting" else "Download complete", "id": layer}
                else:
                    yield {"status": word, "progressDetail": detail, "id": layer}
        for log in response.logs:
            if log.vertex in self._steps:
                yield {"stream": log.msg.decode("utf-8", "replace")}

    def end(self, image: str, tags: list[str]) -> Iterator[Message]:
        if not image:
            return
        if self._quiet:
            yield {"stream": f"{image}\n"}
            return
        yield {"aux": {"ID": image}}
        yield {"stream": f"Successfully built {image.partition(':')[2][:12]}\n"}
        for tag in tags:
            yield {"stream": f"Successfully tagged {reference.parse(tag).familiar()}\n"}
