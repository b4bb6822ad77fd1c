# SPDX-License-Identifier: Apache-2.0
"""dockerfile.v0: the builder's own frontend at work for a build. Called by control.

What `frontends.dockerfile` asks of its Client is answered by the build's Bridge.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any

from teu.api.buildkit import gateway_pb2, ops_pb2
from teu.buildkit.core import progress
from teu.buildkit.core.errors import Error
from teu.buildkit.frontends import files
from teu.buildkit.frontends.bridge import Attestation, Bridge, CacheImport, Request, Result
from teu.buildkit.frontends.dockerfile import frontend, scanner
from teu.buildkit.frontends.dockerfile.client import ImageConfig, NotAnImage, Note, parse_options
from teu.buildkit.frontends.dockerfile.errors import ranges
from teu.buildkit.llb.platforms import Platform, host

FILE_MAX = 16 << 20  # bytes of a Dockerfile, or of one of ignored paths
IMAGE, LAYOUT = "docker-image://", "oci-layout://"

# Images of which this frontend takes the place, whatever their tag.
OWN = frozenset(
    registry + name for registry in ("", "docker.io/") for name in ("docker/dockerfile", "docker/dockerfile-upstream")
)

Forward = frontend.Forward


def is_own(reference: str) -> bool:
    """Whether `# syntax=` names a Dockerfile frontend of BuildKit: one that this one understands."""
    name = reference.partition("@")[0]
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(":")[0] in OWN


def solve(bridge: Bridge, request: Request, *, is_builtin: Callable[[str], bool] = is_own) -> Result:
    """Answer a request. Raises Forward where another frontend is asked for that `is_builtin` does not take for ours."""
    options = parse_options(request.options, bridge.session, tuple(bridge.platforms))
    answer = frontend.build(options, Client(bridge, request), is_builtin)
    result = Result(metadata=dict(answer.metadata), several=answer.several)
    caches = [
        *request.caches,
        *(CacheImport(one["Type"], one["Attrs"]) for one in options.cache_imports),
    ]
    unique = list({one.key: one for one in caches}.values())
    for target in answer.targets:
        name = target.id if answer.several else ""
        solved = bridge.solve(Request(target.definition, caches=unique, policies=request.policies))
        result.trees[name] = solved.trees.get("")
        if target.sbom is not None:
            scanned = bridge.solve(Request(target.sbom, caches=unique, policies=request.policies))
            result.attestations.setdefault(target.id, []).append(_statement(scanned))
    if not answer.targets:
        result.trees[""] = None
    return result


def _statement(scanned: Result) -> Attestation:
    """A folder of statements that a scanner writes."""
    metadata = {"reason": b"sbom", "sbom-core": scanner.CORE.encode()}
    return Attestation(scanned.trees.get(""), "/", scanner.PREDICATE, bundle=True, metadata=metadata)


class Client:
    """dockerfile.client.Client over a build."""

    def __init__(self, bridge: Bridge, request: Request) -> None:
        self._bridge = bridge
        self._request = request

    def resolve_image_config(
        self,
        name: str,
        platform: Platform | None,
        resolve_mode: str,
        log_name: str,
        store: tuple[str, str] | None = None,
    ) -> ImageConfig:
        scheme = LAYOUT if store is not None else IMAGE
        asked = gateway_pb2.ResolveSourceMetaRequest(
            Source=ops_pb2.SourceOp(identifier=scheme + name),
            Platform=_message(platform or host()),
            LogName=log_name,
            ResolveMode=resolve_mode,
            Image=gateway_pb2.ResolveSourceImageRequest(),
            SourcePolicies=self._request.policies,
        )
        if store is not None:
            session, identifier = store
            for key, value in (("oci.session", session), ("oci.store", identifier)):
                if value:
                    asked.Source.attrs[key] = value
        elif resolve_mode != "default":
            asked.Source.attrs["image.resolvemode"] = resolve_mode
        try:
            answer = self._bridge.source_meta(asked)
        except Error as error:
            raise error.prefixed(f"failed to resolve source metadata for {name}") from None
        found = answer.Source.identifier
        if not found.startswith(scheme):
            raise NotAnImage(found)
        return ImageConfig(found.removeprefix(scheme), answer.Image.Digest, answer.Image.Config)

    def read_file(self, definition: Any, path: str, limit: int | None = None) -> bytes | None:
        solved = self._bridge.solve(Request(definition, policies=self._request.policies))
        tree = solved.trees.get("")
        snapshot = tree.snapshot() if tree is not None else None
        try:
            return files.read(snapshot, path, 0, FILE_MAX if limit is None else limit)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise Error(f"failed to read {path}: {error.strerror}") from None

    def inputs(self) -> Mapping[str, Any]:
        return self._request.inputs

    def warn(self, note: Note) -> None:
        self._bridge.warn(
            progress.warning(
                note.vertex,
                note.short,
                [note.detail] if note.detail else [],
                note.url,
                note.level,
                note.info,
                ranges(note.location),
            )
        )


def _message(platform: Platform) -> Any:
    return ops_pb2.Platform(
        OS=platform.os,
        Architecture=platform.architecture,
        Variant=platform.variant,
        OSVersion=platform.os_version,
        OSFeatures=platform.os_features,
    )
