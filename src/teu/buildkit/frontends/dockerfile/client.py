# SPDX-License-Identifier: Apache-2.0
"""What the frontend asks of the builder around it, and what the client asked of the frontend."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.core.errors import Error, unsupported_frontend_cap
from teu.buildkit.frontends.dockerfile import lint
from teu.buildkit.frontends.dockerfile.errors import DockerfileError, Location
from teu.buildkit.frontends.dockerfile.mounts import csv_fields
from teu.buildkit.frontends.dockerfile.shell import quoted
from teu.buildkit.llb import platforms
from teu.buildkit.llb.build import Proxy, Ulimit
from teu.buildkit.llb.platforms import Platform, host
from teu.oci import jsontext, reference

DOCKERFILE = "Dockerfile"
IGNORE_FILE = ".dockerignore"
CONTEXT = "context"
FRONTEND_CAPS = (
    "moby.buildkit.frontend.inputs",
    "moby.buildkit.frontend.subrequests",
    "moby.buildkit.frontend.contexts",
    "moby.buildkit.frontend.gitquerystring",
)
_SBOM_SCANNER = "docker/buildkit-syft-scanner:stable-1"


@dataclass(frozen=True)
class ImageConfig:
    """A resolved image: its reference (a policy may have changed it), its digest, its configuration's bytes."""

    reference: str
    digest: str
    config: bytes


class NotAnImage(Exception):
    """A policy made another source of an image: `updated` is scheme://what."""

    def __init__(self, updated: str) -> None:
        super().__init__(updated)
        self.updated = updated


@dataclass(frozen=True)
class Note:
    """A warning for the client: its line, what it is about, where it is explained, and the place in the Dockerfile."""

    short: str
    detail: str = ""
    url: str = ""
    location: Location = ()
    vertex: str = ""  # the digest of the operation that it belongs to
    info: Any = None  # pb.SourceInfo
    level: int = 1


class Client(Protocol):
    """The builder. Every method may be called from several threads at once; what it raises ends the build."""

    def resolve_image_config(
        self,
        name: str,
        platform: Platform | None,
        resolve_mode: str,
        log_name: str,
        store: tuple[str, str] | None = None,
    ) -> ImageConfig:
        """An image's configuration, from its registry or from (session, store) of an OCI layout.

        log_name is the name of the vertex that the client sees meanwhile. Raises NotAnImage, or an Error: it
        gets the name in front, and the place of the FROM.
        """
        ...

    def read_file(self, definition: Any, path: str, limit: int | None = None) -> bytes | None:
        """Solve a definition, and read a file of the result, at most `limit` bytes of it; None where there is none."""
        ...

    def inputs(self) -> Mapping[str, Any]:
        """The definitions that came with the request, by name."""
        ...

    def warn(self, note: Note) -> None: ...


@dataclass
class Options:
    """A request's options (FrontendOpt), understood. `raw` has them as they came."""

    raw: dict[str, str] = field(default_factory=dict)
    session: str = ""
    worker_platforms: tuple[Platform, ...] = ()

    build_args: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    target: str = ""
    platforms: tuple[Platform, ...] = ()
    build_platform: Platform = field(default_factory=host)
    multi_platform: bool = False
    resolve_mode: str = "default"
    network: str = ""
    extra_hosts: tuple[tuple[str, str], ...] = ()
    shm_size: int = 0
    ulimits: tuple[Ulimit, ...] = ()
    resources: Any = None  # pb.LinuxResources
    cgroup_parent: str = ""
    hostname: str = ""
    no_cache: tuple[str, ...] | None = None  # () is every stage
    cache_imports: list[dict[str, Any]] = field(default_factory=list)
    cache_namespace: str = ""
    sbom: tuple[str, dict[str, str]] | None = None  # the scanner and its parameters
    lint: lint.Config | None = None
    local_sessions: dict[str, str] = field(default_factory=dict)

    def ignores_cache(self, stage: str) -> bool:
        if self.no_cache is None:
            return False
        return not self.no_cache or any(name.lower() == stage.lower() for name in self.no_cache)

    def proxy(self) -> Proxy | None:
        """The predefined proxy arguments, in any case of letters."""
        found: dict[str, str] = {}
        for key in sorted(self.build_args):
            name = key.lower().removesuffix("_proxy")
            if key.lower().endswith("_proxy") and name in ("http", "https", "ftp", "no", "all"):
                found[name] = self.build_args[key]
        return Proxy(**found) if found else None

    def session_of(self, local: str) -> str:
        return self.local_sessions.get(local, self.session)


def _after(raw: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {key[len(prefix) :]: value for key, value in raw.items() if key.startswith(prefix)}


def check_caps(wanted: str) -> Error | None:
    """Raise for a capability that the client needs of the frontend; return the error that holds unless another one
    takes the request over."""
    missing = None
    for part in wanted.split(",") if wanted else ():
        name = part.partition("+")[0]
        if name not in FRONTEND_CAPS:
            missing = unsupported_frontend_cap(name)
            if "+forward" not in part:
                raise missing
    return missing


def parse_options(given: Mapping[str, str], session: str = "", worker_platforms: tuple[Platform, ...] = ()) -> Options:
    """Raises DockerfileError with BuildKit's words."""
    raw = dict(given)
    if raw.get("override-copy-image"):
        raise DockerfileError('support for "override-copy-image" was removed in BuildKit 0.11')
    if lint.boolean(raw.get("build-arg:BUILDKIT_DISABLE_FILEOP", "")):
        raise DockerfileError('support for "BUILDKIT_DISABLE_FILEOP" build-arg was removed in BuildKit 0.11')
    options = Options(raw, session, worker_platforms)
    if worker_platforms:
        options.build_platform = worker_platforms[0]
    if raw.get("platform"):
        options.platforms = tuple(_platform(part) for part in raw["platform"].split(","))
    options.resolve_mode = raw.get("image-resolve-mode") or "default"
    if options.resolve_mode not in ("default", "pull", "local"):
        raise DockerfileError(f"invalid image-resolve-mode: {options.resolve_mode}")
    options.extra_hosts = _hosts(raw.get("add-hosts", ""))
    options.shm_size = _integer("failed to parse shm size", raw.get("shm-size", ""))
    options.ulimits = _ulimits(raw.get("ulimit", ""))
    options.resources = _resources(raw)
    network = raw.get("force-network-mode", "")
    if network not in ("", "none", "host", "sandbox"):
        raise DockerfileError(f"invalid netmode {network}")
    options.network = "" if network == "sandbox" else network
    if "no-cache" in raw:
        options.no_cache = tuple(raw["no-cache"].split(",")) if raw["no-cache"] else ()
    options.multi_platform = len(options.platforms) > 1
    several = raw.get("build-arg:BUILDKIT_MULTI_PLATFORM") or raw.get("multi-platform")
    if several:
        state = lint.boolean(several)
        if state is None:
            raise DockerfileError(f"invalid boolean value for multi-platform: {several}")
        if not state and options.multi_platform:
            raise DockerfileError("conflicting config: returning multiple target platforms is not allowed")
        options.multi_platform = state
    options.cache_imports = _cache_imports(raw)
    options.sbom = _sbom(raw)
    options.build_args = _after(raw, "build-arg:")
    options.labels = _after(raw, "label:")
    options.cache_namespace = raw.get("build-arg:BUILDKIT_CACHE_MOUNT_NS", "")
    options.cgroup_parent = raw.get("cgroup-parent", "")
    options.target = raw.get("target", "")
    options.hostname = raw.get("build-arg:BUILDKIT_SANDBOX_HOSTNAME") or raw.get("hostname", "")
    if "build-arg:BUILDKIT_DOCKERFILE_CHECK" in raw:
        try:
            options.lint = lint.parse_config(raw["build-arg:BUILDKIT_DOCKERFILE_CHECK"])
        except DockerfileError as error:
            raise error.prefixed("failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK") from None
    options.local_sessions = _after(raw, "local-sessionid:")
    return options


def _platform(text: str) -> Platform:
    try:
        return platforms.normalized(platforms.parse(text))
    except platforms.PlatformError as error:
        raise DockerfileError(f"failed to parse target platform {text}: {error}") from None


def _integer(what: str, text: str) -> int:
    if not text:
        return 0
    digits = text[1:] if text[0] in "+-" else text
    if not digits.isascii() or not digits.isdigit():
        raise DockerfileError(f"{what}: strconv.ParseInt: parsing {quoted(text)}: invalid syntax")
    if not -(1 << 63) <= int(text) < 1 << 63:
        raise DockerfileError(f"{what}: strconv.ParseInt: parsing {quoted(text)}: value out of range")
    return int(text)


def _hosts(text: str) -> tuple[tuple[str, str], ...]:
    result = []
    for part in csv_fields(text):
        host, separator, address = part.lower().partition("=")
        if not separator:
            raise DockerfileError(f"failed to parse additional hosts: invalid key-value pair {part}")
        try:
            result.append((host, str(ipaddress.ip_address(address))))
        except ValueError:
            raise DockerfileError(f"failed to parse additional hosts: failed to parse IP {address}") from None
    return tuple(result)


_ULIMITS = (
    *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio"),
    *("rttime", "sigpending", "stack"),
)


def _ulimits(text: str) -> tuple[Ulimit, ...]:
    result = []
    what = "failed to parse ulimit"
    for part in csv_fields(text):
        name, separator, values = part.partition("=")
        if not separator:
            raise DockerfileError(f"{what}: invalid ulimit argument: {part}")
        if name not in _ULIMITS:
            raise DockerfileError(f"{what}: invalid ulimit type: {name}")
        limits = values.split(":")
        if len(limits) > 2:
            raise DockerfileError(
                f"{what}: too many limit value arguments - {values}, can only have up to two, `soft[:hard]`"
            )
        soft = _integer(what, limits[0] or "?")
        hard = _integer(what, limits[1] or "?") if len(limits) > 1 else soft
        if soft > hard and hard != -1:
            raise DockerfileError(
                f"{what}: ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
            )
        result.append(Ulimit(name, soft, hard))
    return tuple(result)


def _resources(raw: Mapping[str, str]) -> Any:
    """memory, memswap, cpushares, cpuperiod, cpuquota, cpusetcpus, cpusetmems; None where nothing is limited."""
    result = pb.LinuxResources()
    asked = False
    for key, member in (
        ("memory", "memory"),
        ("memswap", "memorySwap"),
        ("cpushares", "cpuShares"),
        ("cpuperiod", "cpuPeriod"),
        ("cpuquota", "cpuQuota"),
    ):
        text = raw.get(key, "")
        if not text:
            continue
        what = f"failed to parse resource limits: invalid {key} value: {text}"
        value = _integer(what, text)
        if key == "memswap":
            if value < -1 or value == 0:
                raise DockerfileError(f"{what}: must be -1 (unlimited) or > 0")
        elif value <= 0:
            raise DockerfileError(f"{what}: must be > 0")
        setattr(result, member, value)
        asked = True
    for key, member in (("cpusetcpus", "cpusetCpus"), ("cpusetmems", "cpusetMems")):
        text = raw.get(key, "")
        if not text:
            continue
        for part in text.split(","):
            first, separator, last = part.partition("-")
            numbers = [first, last] if separator else [first]
            if not all(one.isascii() and one.isdigit() for one in numbers) or int(numbers[0]) > int(numbers[-1]):
                raise DockerfileError(f"failed to parse resource limits: invalid {key} value: {text}: {quoted(part)}")
        setattr(result, member, text)
        asked = True
    return result if asked else None


def _cache_imports(raw: Mapping[str, str]) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    text = raw.get("cache-imports", "")
    if text:
        what = f"failed to unmarshal cache-imports ({quoted(text)})"
        try:
            entries = jsontext.loads(text)
        except (ValueError, RecursionError) as error:
            raise DockerfileError(f"{what}: {error}") from None
        if entries is not None and not isinstance(entries, list):
            raise DockerfileError(f"{what}: it is no list")
        for entry in entries or []:
            attributes = entry.get("Attrs") or {} if isinstance(entry, dict) else None
            if not isinstance(attributes, dict):
                raise DockerfileError(f"{what}: an entry is no cache")
            strings = {str(key): str(value) for key, value in attributes.items()}
            result.append({"Type": str(entry.get("Type") or ""), "Attrs": strings})
    for name in raw.get("cache-from", "").split(","):
        if name:
            result.append({"Type": "registry", "Attrs": {"ref": name}})
    return result


def _sbom(raw: Mapping[str, str]) -> tuple[str, dict[str, str]] | None:
    found = None
    for key, value in raw.items():
        for prefix in ("attest:", "build-arg:BUILDKIT_ATTEST_"):
            if not key.startswith(prefix):
                continue
            kind = key[len(prefix) :].lower()
            if kind not in ("sbom", "provenance"):
                raise DockerfileError(f"unknown attestation type {quoted(kind)}")
            try:
                fields = csv_fields(value)
            except DockerfileError as error:
                raise error.prefixed(f"failed to parse {kind}") from None
            if kind == "sbom":
                found = fields
    if found is None:
        return None
    parameters = {"generator": _SBOM_SCANNER}
    for part in found:
        name, _, value = part.partition("=")
        parameters[name] = value
    generator = parameters.pop("generator")
    try:
        scanner = str(reference.parse(generator).with_default_tag())
    except reference.ReferenceError_ as error:
        raise DockerfileError(f"failed to parse sbom scanner {generator}: {error}") from None
    return scanner, parameters
