# SPDX-License-Identifier: Apache-2.0
"""Requests of clients, understood: SolveRequest with its older forms, and what a build may. Called by builds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from teu.buildkit.core import errors
from teu.buildkit.frontends.bridge import CacheImport
from teu.buildkit.llb import devices
from teu.buildkit.llb.load import NETWORK_HOST, SECURITY_INSECURE

REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
EXPORTERS_MAX = 100
COMPATIBLE = 30  # the compatibility-version of BuildKit 0.31
CACHES_MAX = 100
ENTITLEMENTS = (NETWORK_HOST, SECURITY_INSECURE)
_EPOCH = "source-date-epoch"


class Entitlements:
    """What a build may do beyond the usual: what its client asks for, of what the configuration allows."""

    def __init__(self, asked: Sequence[str], allowed: frozenset[str]) -> None:
        for one in asked:
            name = one.partition("=")[0]
            if one not in ENTITLEMENTS and name != devices.ENTITLEMENT:
                raise errors.InvalidArgument(f"unknown entitlement {errors.cut(one, 100)}")
            if name == devices.ENTITLEMENT:
                devices.parse(one)
            if name not in allowed:
                raise errors.PermissionDenied(
                    f"granting entitlement {name} is not allowed by build daemon configuration"
                )
        self.given = frozenset(asked)


@dataclass(frozen=True, slots=True)
class Solve:
    """A SolveRequest."""

    ref: str
    session: str = ""
    definition: Any = None
    frontend: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    exporters: Sequence[tuple[str, Mapping[str, str]]] = ()
    cache_imports: Sequence[CacheImport] = ()
    cache_exports: Sequence[CacheImport] = ()
    entitlements: Sequence[str] = ()
    policies: Sequence[Any] = ()
    policy_session: str = ""  # of the client that is asked about each source
    internal: bool = False
    session_exporters: bool = False


def solve(request: Any) -> Solve:
    """Understand a control_pb2.SolveRequest. Raises InvalidArgument."""
    if not REF.fullmatch(request.Ref):
        raise errors.InvalidArgument(f"invalid build reference {errors.cut(request.Ref, 200)!r}")
    definition = request.Definition if len(getattr(request.Definition, "def")) else None
    if definition is not None and request.Frontend:
        raise errors.InvalidArgument("cannot solve with both Definition and Frontend specified")
    exporters = [(one.Type, dict(one.Attrs)) for one in request.Exporters]
    if not exporters and request.ExporterDeprecated:
        exporters.append((request.ExporterDeprecated, dict(request.ExporterAttrsDeprecated)))
    if len(exporters) > EXPORTERS_MAX:
        raise errors.InvalidArgument(f"more than {EXPORTERS_MAX} exporters")
    if request.ProxyNetwork:
        raise errors.Unimplemented("this builder has no recording proxy for the network of steps")
    if request.CompatibilityVersion:
        _compatible(request.CompatibilityVersion, exporters)
    attributes = dict(request.FrontendAttrs)
    epoch = attributes.get("build-arg:SOURCE_DATE_EPOCH")
    if epoch:
        for _, given in exporters:
            given.setdefault(_EPOCH, epoch)
    cache_imports, cache_exports = _caches(request.Cache)
    return Solve(
        request.Ref,
        request.Session,
        definition,
        request.Frontend,
        attributes,
        dict(request.FrontendInputs),
        exporters,
        cache_imports,
        cache_exports,
        tuple(request.Entitlements),
        (request.SourcePolicy,) if request.HasField("SourcePolicy") else (),
        request.SourcePolicySession,
        request.Internal,
        request.EnableSessionExporter,
    )


def _compatible(version: int, exporters: list[tuple[str, dict[str, str]]]) -> None:
    """Have results as a version of BuildKit makes them where the client says nothing else."""
    if version != COMPATIBLE:
        raise errors.InvalidArgument(f"unsupported compatibility-version {version} (supported: [{COMPATIBLE}])")
    for kind, given in exporters:
        if kind in ("image", "moby", "oci", "docker"):
            given.setdefault("oci-mediatypes", "true")
            given.setdefault("oci-artifact", given["oci-mediatypes"])


def _caches(given: Any) -> tuple[list[CacheImport], list[CacheImport]]:
    """(imports, exports), the names of older clients among them; exports that would write to one place are refused."""
    imports = [CacheImport(one.Type, dict(one.Attrs)) for one in given.Imports]
    imports += [CacheImport("registry", {"ref": name}) for name in given.ImportRefsDeprecated]
    exports = [CacheImport(one.Type, dict(one.Attrs)) for one in given.Exports]
    if given.ExportRefDeprecated:
        exports.append(CacheImport("registry", {**given.ExportAttrsDeprecated, "ref": given.ExportRefDeprecated}))
    if len(imports) > CACHES_MAX or len(exports) > CACHES_MAX:
        raise errors.InvalidArgument(f"more than {CACHES_MAX} caches")
    unique: dict[Any, CacheImport] = {}
    for one in exports:
        place = (
            one.kind
            if one.kind == "inline"
            else ("registry", one.attributes.get("ref"))
            if one.kind == "registry"
            else one.key
        )
        if place in unique and one.kind != "inline":
            raise errors.InvalidArgument(f"duplicate cache exports [{one.kind}]")
        unique.setdefault(place, one)
    return imports, list(unique.values())
