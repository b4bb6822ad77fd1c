# SPDX-License-Identifier: Apache-2.0
"""Errors of the builder: raised by all rooms, and turned into a gRPC status once, at the wire.

A class is a gRPC code. An error gathers details on its way up, innermost first: which file action, which step, which
lines of the Dockerfile, which frontend. Clients read them: buildx prints the lines of a Source, a debugger opens
the mounts of a Solve. On the wire a detail is an Any whose type is `github.com/moby/buildkit/NAME+json` and whose value
is JSON: BuildKit registers these messages with typeurl under such names, and typeurl takes them for JSON then. So
details of plain protobuf form would be dropped by every client.

    raise NotFound(f"no such job {ref}")
    raise error.at_source(info, ranges)
    context.abort_with_status(rpc_status(error))
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from teu.api.buildkit import errdefs_pb2, gateway_pb2, ops_pb2, policysession_pb2, stack_pb2
from teu.api.rpc import status_pb2
from teu.buildkit.core.op import Kept

PREFIX = "github.com/moby/buildkit/"
MESSAGE_LIMIT = 64 << 10  # bytes of text in an error; a step's last lines fit, a file does not
DETAILS_LIMIT = 1 << 20  # bytes of all details together; the outermost ones stay
DETAILS_MAX = 64  # how many are read from others

# Those that Go's own encoding/json writes; Solve says itself that it is written by protojson.
_TYPES: dict[str, type[Message]] = {
    "errdefs.Vertex": errdefs_pb2.Vertex,
    "errdefs.Source": errdefs_pb2.Source,
    "errdefs.Frontend": errdefs_pb2.Frontend,
    "errdefs.FrontendCap": errdefs_pb2.FrontendCap,
    "errdefs.CompatibilityFeature": errdefs_pb2.CompatibilityFeature,
    "errdefs.Subrequest": errdefs_pb2.Subrequest,
    "errdefs.Solve": errdefs_pb2.Solve,
    "errdefs.ProvenanceMaterialsIncomplete": errdefs_pb2.ProvenanceMaterialsIncomplete,
    "stack.Stack": stack_pb2.Stack,
    "gatewayapi.ExitMessage": gateway_pb2.ExitMessage,
    "policysession.DecisionResponse": policysession_pb2.DecisionResponse,
}
_NAMES = {kind.DESCRIPTOR.full_name: name for name, kind in _TYPES.items()}  # some differ from the message's own


class Error(Exception):
    """Something went wrong in a way that has no narrower class. The text is for the person who waits for the build."""

    code = 2  # UNKNOWN
    kept: Kept | None = None  # what the step that failed has left; the solver's node has it, and lets it go

    def __init__(self, message: str = "", details: Iterable[Message] = ()) -> None:
        super().__init__(message)
        self.details: list[Message] = list(details)  # innermost first

    @property
    def message(self) -> str:
        """The text alone; "" where none was given."""
        return str(self.args[0]) if self.args else ""

    def with_detail(self, detail: Message) -> Self:
        """The same error, with one more detail around it."""
        self.details.append(detail)
        return self

    def prefixed(self, text: str) -> Self:
        """The same error, whose message begins with what was tried: `text: message`."""
        self.args = (f"{text}: {self.message}",)
        return self

    def at_vertex(self, digest: str) -> Self:
        """The step that failed; only the innermost one is told."""
        if not any(isinstance(detail, errdefs_pb2.Vertex) for detail in self.details):
            self.details.append(errdefs_pb2.Vertex(digest=digest))
        return self

    def at_source(self, info: ops_pb2.SourceInfo, ranges: Iterable[ops_pb2.Range]) -> Self:
        """Lines of a Dockerfile, or what else a definition was made of; clients print them with their surroundings."""
        return self.with_detail(errdefs_pb2.Source(info=info, ranges=ranges))

    def at_frontend(self, name: str, source: str = "") -> Self:
        """The frontend that it happened in; `source` is its image, where it has one."""
        return self.with_detail(errdefs_pb2.Frontend(name=name, source=source))

    def at_solve(
        self,
        op: ops_pb2.Op | None,
        input_ids: Sequence[str] = (),
        mount_ids: Sequence[str] = (),
        file_action: int | None = None,
        content_cache: int | None = None,
        description: Mapping[str, str] | None = None,
    ) -> Self:
        """The operation, with references to its inputs and to its mounts as they were when it failed: a client may open
        them by the gateway's calls. file_action: which action of a FileOp; content_cache: which input's checksum."""
        solve = errdefs_pb2.Solve(inputIDs=input_ids, mountIDs=mount_ids, description=description or {})
        if op is not None:
            solve.op.CopyFrom(op)
        if file_action is not None:
            solve.file.index = file_action
        elif content_cache is not None:
            solve.cache.index = content_cache
        return self.with_detail(solve)


class Cancelled(Error):
    """Nobody waits for it any more, or whoever did has ended it."""

    code = 1


class InvalidArgument(Error):
    """What was asked makes no sense, whatever there is here."""

    code = 3


class DeadlineExceeded(Error):
    """It took longer than whoever asked was ready to wait."""

    code = 4


class NotFound(Error):
    """What was named is not there."""

    code = 5


class AlreadyExists(Error):
    """What was to be made is there."""

    code = 6


class PermissionDenied(Error):
    """It is not allowed, whoever asks: an entitlement, a policy, a registry that says no."""

    code = 7


class ResourceExhausted(Error):
    """More than this builder takes: of bytes, of entries, of calls."""

    code = 8


class FailedPrecondition(Error):
    """It makes sense, and does not fit what is there: another digest, something in use."""

    code = 9


class Aborted(Error):
    """Another one was quicker; to try again may help."""

    code = 10


class OutOfRange(Error):
    """Beyond the end of what is there."""

    code = 11


class Unimplemented(Error):
    """This builder, or the client, does not know how."""

    code = 12


class Internal(Error):
    """It should never happen: a mistake in a program, not in what was asked."""

    code = 13


class Unavailable(Error):
    """Whoever is needed does not answer now: containerd, a registry, a builder that stops."""

    code = 14


class DataLoss(Error):
    """What came is not what was announced, or what was kept is damaged."""

    code = 15


class Unauthenticated(Error):
    """Somebody wants to know who asks."""

    code = 16


BY_CODE: dict[int, type[Error]] = {
    kind.code: kind
    for kind in (
        Cancelled,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
        Unauthenticated,
    )
}


def of_code(code: int, message: str, details: bytes = b"") -> Error:
    """The error of a gRPC code; one that none has is UNKNOWN. details: of a google.rpc.Status, where one came."""
    status = status_pb2.Status(code=code, message=message)
    try:
        status.details.extend(status_pb2.Status.FromString(details).details)
    except DecodeError:
        pass  # the code and the message are enough
    return from_status(status)


def unknown_job(ref: str) -> NotFound:
    """A build that is not, or no longer: BuildKit's words, for which buildx looks."""
    return NotFound(f"no such job {ref}")


def unsupported_subrequest(name: str) -> Unimplemented:
    """A frontend was asked (`requestid`) for something that it does not have."""
    return Unimplemented(f"unsupported request {name}", [errdefs_pb2.Subrequest(name=name)])


def unsupported_frontend_cap(name: str) -> Unimplemented:
    """A frontend needs something of the builder that this one cannot do."""
    return Unimplemented(f"unsupported frontend capability {name}", [errdefs_pb2.FrontendCap(name=name)])


def cut(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """Text that is valid Unicode and at most about `limit` bytes long: its begin and its end stay."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return data.decode()
    half = limit // 2
    return f"{data[:half].decode(errors='ignore')}…{data[-half:].decode(errors='ignore')}"


def _numbers(message: Message, value: Any) -> Any:
    """int64 as numbers, which protobuf's JSON writes as text and Go's encoding/json does not take so."""
    if isinstance(message, errdefs_pb2.CompatibilityFeature) and "version" in value:
        value["version"] = int(value["version"])
    return value


def pack_detail(detail: Message, status: status_pb2.Status) -> None:
    """Add one detail in the form that BuildKit's clients read."""
    name = _NAMES.get(detail.DESCRIPTOR.full_name)
    packed = status.details.add()
    if name is None:
        packed.Pack(detail)
        return
    packed.type_url = f"{PREFIX}{name}+json"
    value = json_format.MessageToDict(detail, preserving_proto_field_name=True, use_integers_for_enums=True)
    packed.value = json.dumps(_numbers(detail, value), separators=(",", ":")).encode()


def unpack_detail(type_url: str, value: bytes) -> Message | None:
    """A detail of another program; None where it is none that is known here, or broken."""
    name, json_form = type_url.removeprefix(PREFIX), type_url.endswith("+json")
    kind = _TYPES.get(name.removesuffix("+json"))
    if kind is None:
        kind = _TYPES.get(type_url.rpartition("/")[2])
    if kind is None:
        return None
    try:
        if json_form:
            return json_format.Parse(value, kind(), ignore_unknown_fields=True)
        return kind.FromString(value)
    except (json_format.ParseError, DecodeError, UnicodeDecodeError, RecursionError):
        return None


def to_status(error: BaseException) -> status_pb2.Status:
    """The gRPC status of any exception: what is not of this module is UNKNOWN with its own words."""
    if not isinstance(error, Error):
        text = str(error) or type(error).__name__
        return status_pb2.Status(code=Error.code, message=cut(text))
    status = status_pb2.Status(code=error.code, message=cut(error.message))
    left = DETAILS_LIMIT
    for detail in reversed(error.details):
        pack_detail(detail, status)
        left -= status.details[-1].ByteSize()
        if left < 0:
            del status.details[-1]
            break
    return status


def from_status(status: status_pb2.Status) -> Error:
    """The error that a status says, details in the order of this module; unknown details are left out."""
    error = BY_CODE.get(status.code, Error)(cut(status.message))
    for packed in reversed(status.details[:DETAILS_MAX]):
        detail = unpack_detail(packed.type_url, packed.value)
        if detail is not None:
            error.details.append(detail)
    return error


class RpcStatus(NamedTuple):
    """What grpcio's `context.abort_with_status` takes."""

    code: Any
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def rpc_status(error: BaseException) -> RpcStatus:
    """An exception for grpcio's `context.abort_with_status`: code, message, and the details in the trailers."""
    import grpc  # 28 ms, which only the wire needs

    status = to_status(error)
    codes = {code.value[0]: code for code in grpc.StatusCode}
    return RpcStatus(
        codes.get(status.code, grpc.StatusCode.UNKNOWN),
        status.message,
        (("grpc-status-details-bin", status.SerializeToString()),) if status.details else (),
    )
