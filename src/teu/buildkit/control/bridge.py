# SPDX-License-Identifier: Apache-2.0
"""moby.buildkit.v1.frontend.LLBBridge: what a frontend outside of this process asks.

A Forwarder is one frontend's: results have ids that it alone knows, and are let go with it. The service for clients
(Bridge) finds the Forwarder by the build that a call names; that of a container is a Forwarder by itself.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from teu.api.buildkit import caps_pb2, errdefs_pb2, gateway_pb2
from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.control.containers import Containers
from teu.buildkit.control.rpc import Call
from teu.buildkit.control.view import BuildBridge
from teu.buildkit.core import errors, progress, snapshots
from teu.buildkit.core.exports import Subject
from teu.buildkit.core.identifiers import new_id
from teu.buildkit.core.op import Ref
from teu.buildkit.core.snapshots import Snapshot
from teu.buildkit.frontends import files
from teu.buildkit.frontends.bridge import Attestation, CacheImport, Request, Result, Tree
from teu.buildkit.llb import caps
from teu.oci.patterns import BadPattern

BUILD_HEADER = "buildkit-controlapi-buildid"
READ_MAX = 15 << 20  # bytes in one answer; a message takes a little more
RESULTS_MAX = 10_000  # that one frontend may have

# What frontends may ask of this builder.
CAPS = (
    *("solve.base", "solve.inlinereturn", "resolveimage", "resolveimage.resolvemode", "readfile"),
    *("return", "returnmap", "readdir", "statfile", "importcaches", "proto.refarray"),
    *("reference.output", "frontend.inputs", "gateway.solve.metadata", "gateway.exec"),
    *("gateway.exec.extrahosts", "gateway.exec.secretenv", "gateway.exec.signals"),
    *("gateway.exec.filesystem", "frontend.caps", "gateway.solve.evaluate", "gateway.evaluate"),
    *("gateway.warnings", "reference.attestations", "source.metaresolver"),
)


class Forwarder:
    """One frontend's view of a build, as LLBBridge's calls."""

    def __init__(
        self,
        view: BuildBridge,
        inputs: Mapping[str, Any],
        workers: Callable[[], Any],
        containers: Containers,
        give: Callable[[Result | None, errors.Error | None], None] | None = None,
    ) -> None:
        """`give` takes the frontend's last word; the build's own by default."""
        self._view = view
        self._inputs = inputs
        self._workers = workers
        self._containers = containers
        self._give = give or view.build.give
        self._lock = threading.Lock()
        self._closed = False
        self._trees: dict[str, Tree] = {}
        self._left: dict[str, Ref] = {}  # by failed steps

    def close(self) -> None:
        """The frontend has gone: what it made for itself goes, too."""
        self._containers.close()
        with self._lock:
            self._trees.clear()
            left, self._left = list(self._left.values()), {}
            self._closed = True
        for ref in left:
            ref.release()

    # Results

    def _keep(self, tree: Tree | None) -> str:
        if tree is None:
            return ""
        with self._lock:
            if len(self._trees) >= RESULTS_MAX:
                raise errors.ResourceExhausted(f"a frontend with more than {RESULTS_MAX} results")
            identifier = new_id()
            self._trees[identifier] = tree
        return identifier

    def _tree(self, identifier: str) -> Tree | None:
        """What a result is, of which the empty one is "" and None."""
        return self._given(identifier) if identifier else None

    def _given(self, identifier: str) -> Tree:
        """A result that there is: the empty one is nothing that could be looked into, as with BuildKit."""
        with self._lock:
            if identifier not in self._trees:
                raise errors.NotFound(f"no such ref: {errors.cut(identifier, 100)}")
            return self._trees[identifier]

    def _kept(self, identifier: str) -> Tree | None:
        """One that a frontend gives back, in BuildKit's words for another."""
        try:
            return self._tree(identifier)
        except errors.NotFound:
            raise errors.NotFound(f"return reference {errors.cut(identifier, 100)} not found") from None

    def _snapshot(self, identifier: str) -> Snapshot | None:
        """Built, at the latest now."""
        tree = self._given(identifier)
        with self._solving():
            return tree.snapshot()

    def _mounted(self, mount: pb.Mount) -> Snapshot | None:
        """For a container: a result, or what a failed step has left."""
        with self._lock:
            left = self._left.get(mount.resultID)
        if left is not None:
            return snapshots.snapshot(left)
        try:
            tree = self._kept(mount.resultID)
        except errors.NotFound as error:
            ref = errors.cut(mount.resultID, 100)
            raise error.prefixed(f'failed to find ref {ref} for "{mount.dest}" mount') from None
        if tree is None:
            return None
        with self._solving():
            return tree.snapshot()

    @contextmanager
    def _solving(self) -> Iterator[None]:
        """An error of a step goes to the frontend with the names of what the step has left."""
        try:
            yield
        except errors.Cancelled:
            raise
        except errors.Error as error:
            told = [one for one in error.details if isinstance(one, errdefs_pb2.Solve)]
            solve = errdefs_pb2.Solve()
            if told:
                solve.CopyFrom(told[-1])
            del solve.inputIDs[:], solve.mountIDs[:]  # those of a frontend below are nobody's here
            if error.kept is not None:
                inputs, mounts = error.kept.clones()
                solve.inputIDs.extend(self._leave(inputs))
                solve.mountIDs.extend(self._leave(mounts))
            error.details = [one for one in error.details if one not in told]
            raise error.with_detail(solve) from error.__cause__

    def _leave(self, refs: Sequence[Ref | None]) -> list[str]:
        """Names by which a container may mount them, "" for none; the same tree has the same name."""
        names = []
        for ref in refs:
            name = ref.id if ref is not None else ""
            with self._lock:
                keep = not self._closed and name not in self._left and len(self._left) < RESULTS_MAX
                if ref is not None and keep:
                    self._left[name] = ref
                names.append(name if name in self._left else "")
            if ref is not None and not keep:
                ref.release()
        return names

    def Solve(self, request: Any, call: Call) -> Any:
        asked = Request(
            request.Definition if request.HasField("Definition") else None,
            request.Frontend,
            dict(request.FrontendOpt),
            dict(request.FrontendInputs),
            [CacheImport(one.Type, dict(one.Attrs)) for one in request.CacheImports],
            list(request.SourcePolicies),
            request.Evaluate,
        )
        with self._solving():
            result = self._view.solve(asked)
        if result.several and not request.allowResultReturn:
            raise errors.InvalidArgument("solve did not return default result")
        answer = gateway_pb2.SolveResponse()
        self._answer(result, answer.result, request.allowResultArrayRef)
        if not request.allowResultReturn:
            answer.ref = answer.result.ref.id or answer.result.refDeprecated
        return answer

    def _answer(self, result: Result, message: Any, array: bool) -> None:
        for name, data in result.metadata.items():
            message.metadata[name] = data
        if result.several:
            if array:
                message.refs.SetInParent()
            for name, tree in result.trees.items():
                if array:
                    self._ref(tree, message.refs.refs[name])
                else:
                    message.refsDeprecated.refs[name] = self._keep(tree)
        elif array:
            message.ref.SetInParent()
            self._ref(result.trees.get(""), message.ref)
        else:
            message.refDeprecated = self._keep(result.trees.get(""))
        for name, some in result.attestations.items():
            for one in some:
                told = message.attestations[name].attestation.add(
                    kind=gateway_pb2.Bundle if one.bundle else gateway_pb2.InToto,
                    path=one.path,
                    inTotoPredicateType=one.predicate_type,
                    metadata=one.metadata,
                )
                self._ref(one.tree, told.ref)
                for subject in one.subjects:
                    told.inTotoSubjects.add(
                        kind=gateway_pb2.Self if subject.itself else gateway_pb2.Raw,
                        name=subject.name,
                        digest=subject.digests,
                    )

    def _ref(self, tree: Tree | None, message: Any) -> None:
        message.id = self._keep(tree)
        if tree is not None:
            getattr(message, "def").CopyFrom(tree.definition)

    def Return(self, request: Any, call: Call) -> Any:
        if request.HasField("error"):
            self._give(None, errors.from_status(request.error))
        else:
            self._give(self._returned(request.result), None)
        return gateway_pb2.ReturnResponse()

    def _returned(self, message: Any) -> Result:
        result = Result(metadata=dict(message.metadata))
        kind = message.WhichOneof("result")
        if kind == "refs":
            result.trees = {name: self._kept(ref.id) for name, ref in message.refs.refs.items()}
            result.several = True
        elif kind == "refsDeprecated":
            result.trees = {name: self._kept(ref) for name, ref in message.refsDeprecated.refs.items()}
            result.several = True
        else:
            result.trees = {"": self._kept(message.ref.id if kind == "ref" else message.refDeprecated)}
        for name, some in message.attestations.items():
            result.attestations[name] = [
                Attestation(
                    self._kept(one.ref.id),
                    one.path,
                    one.inTotoPredicateType,
                    one.kind == gateway_pb2.Bundle,
                    tuple(
                        Subject(subject.kind == gateway_pb2.Self, subject.name, tuple(subject.digest))
                        for subject in one.inTotoSubjects
                    ),
                    dict(one.metadata),
                )
                for one in some.attestation
            ]
        return result

    def Evaluate(self, request: Any, call: Call) -> Any:
        self._snapshot(request.Ref)
        return gateway_pb2.EvaluateResponse()

    # Files

    def ReadFile(self, request: Any, call: Call) -> Any:
        snapshot = self._snapshot(request.Ref)
        offset, length = _range(request)
        with _told("open", request.FilePath, "read"):
            return _read(files.read(snapshot, request.FilePath, offset, length), request)

    def ReadDir(self, request: Any, call: Call) -> Any:
        snapshot = self._snapshot(request.Ref)
        with _told("open", request.DirPath):
            return gateway_pb2.ReadDirResponse(entries=files.entries(snapshot, request.DirPath, request.IncludePattern))

    def StatFile(self, request: Any, call: Call) -> Any:
        snapshot = self._snapshot(request.Ref)
        with _told("lstat", request.Path):
            return gateway_pb2.StatFileResponse(stat=files.status(snapshot, request.Path))

    # Sources

    def ResolveSourceMeta(self, request: Any, call: Call) -> Any:
        if not request.HasField("Source"):
            raise errors.InvalidArgument("source is required")
        return self._view.source_meta(request)

    def ResolveImageConfig(self, request: Any, call: Call) -> Any:
        asked = gateway_pb2.ResolveSourceMetaRequest(
            LogName=request.LogName, ResolveMode=request.ResolveMode, SourcePolicies=request.SourcePolicies
        )
        asked.Image.SetInParent()
        if request.HasField("Platform"):
            asked.Platform.CopyFrom(request.Platform)
        layout = request.ResolverType == 1
        scheme = "oci-layout://" if layout else "docker-image://"
        asked.Source.identifier = scheme + request.Ref
        if layout:
            for key, value in (("oci.session", request.SessionID), ("oci.store", request.StoreID)):
                if value:
                    asked.Source.attrs[key] = value
        elif request.ResolveMode not in ("", "default"):
            asked.Source.attrs["image.resolvemode"] = request.ResolveMode
        try:
            answer = self._view.source_meta(asked)
        except errors.Error as error:
            raise error.prefixed(f"failed to resolve source metadata for {errors.cut(request.Ref, 200)}") from None
        if not answer.Source.identifier.startswith(scheme):
            raise errors.InvalidArgument(
                f"policy converted {errors.cut(request.Ref, 200)} to {errors.cut(answer.Source.identifier, 200)}"
            )
        return gateway_pb2.ResolveImageConfigResponse(
            Digest=answer.Image.Digest, Config=answer.Image.Config, Ref=answer.Source.identifier.removeprefix(scheme)
        )

    # The rest

    def Ping(self, request: Any, call: Call) -> Any:
        return gateway_pb2.PongResponse(
            FrontendAPICaps=[caps_pb2.APICap(ID=name, Enabled=True) for name in sorted(CAPS)],
            LLBCaps=caps.listing(),
            Workers=[self._workers()],
        )

    def Inputs(self, request: Any, call: Call) -> Any:
        answer = gateway_pb2.InputsResponse()
        for name, definition in self._inputs.items():
            answer.Definitions[name].CopyFrom(definition)
        return answer

    def Warn(self, request: Any, call: Call) -> Any:
        self._view.warn(
            progress.warning(
                request.digest,
                request.short.decode("utf-8", "replace"),
                [line.decode("utf-8", "replace") for line in request.detail],
                request.url,
                request.level,
                request.info if request.HasField("info") else None,
                request.ranges,
            )
        )
        return gateway_pb2.WarnResponse()

    # Containers

    def NewContainer(self, request: Any, call: Call) -> Any:
        self._containers.make(request, self._mounted)
        return gateway_pb2.NewContainerResponse()

    def ReleaseContainer(self, request: Any, call: Call) -> Any:
        self._containers.release(request.ContainerID)
        return gateway_pb2.ReleaseContainerResponse()

    def ExecProcess(self, requests: Iterator[Any], call: Call) -> Iterator[Any]:
        return self._containers.processes(requests, call)

    def ReadFileContainer(self, request: Any, call: Call) -> Any:
        offset, length = _range(request)
        with _told("open", request.FilePath, "read"), self._containers.root(request.Ref, request.MountIndex) as root:
            return _read(files.read_at(root, request.FilePath, offset, length), request)

    def ReadDirContainer(self, request: Any, call: Call) -> Any:
        with _told("open", request.DirPath), self._containers.root(request.Ref, request.MountIndex) as root:
            return gateway_pb2.ReadDirResponse(entries=files.entries_at(root, request.DirPath, request.IncludePattern))

    def StatFileContainer(self, request: Any, call: Call) -> Any:
        with _told("lstat", request.Path), self._containers.root(request.Ref, request.MountIndex) as root:
            return gateway_pb2.StatFileResponse(stat=files.status_at(root, request.Path))


def _range(request: Any) -> tuple[int, int]:
    """(offset, length) in bytes of what is to be read."""
    length = request.Range.Length
    return max(request.Range.Offset, 0), min(length, READ_MAX) if length > 0 else READ_MAX + 1


def _read(data: bytes, request: Any) -> Any:
    if len(data) > READ_MAX:
        path = errors.cut(request.FilePath, 200)
        raise errors.ResourceExhausted(f"{path} has more than {READ_MAX} bytes: it is to be read in parts")
    return gateway_pb2.ReadFileResponse(Data=data)


@contextmanager
def _told(what: str, path: str, of_folder: str = "") -> Iterator[None]:
    """What the kernel says of a path, for a client. `of_folder`: what fails of one that is a folder."""
    try:
        yield
    except BadPattern as error:
        raise errors.InvalidArgument(str(error)) from None
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        text = "no such file or directory" if missing else error.strerror
        if error.errno == errno.EISDIR and of_folder:
            what, text = of_folder, "is a directory"
        raised = errors.NotFound if missing else errors.Error
        raise raised(f"{what} {errors.cut(path, 4096)}: {text}") from None


class Bridge:
    """The service for frontends in clients. `find` gives the Forwarder of a build."""

    def __init__(self, find: Callable[[str, Callable[[], bool]], Forwarder]) -> None:
        self._find = find

    def __getattr__(self, name: str) -> Any:
        method = getattr(Forwarder, name, None) if not name.startswith("_") else None
        if method is None:
            raise AttributeError(name)

        def forward(request: Any, call: Call) -> Any:
            ref = call.header(BUILD_HEADER)
            if not ref:
                raise errors.InvalidArgument(f"forwarding {name}: no buildid found in context")
            try:
                found = self._find(ref, lambda: call.gone)
            except errors.Error as error:
                raise error.prefixed(f"forwarding {name}") from None
            return method(found, request, call)

        return forward
