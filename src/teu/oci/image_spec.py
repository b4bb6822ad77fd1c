# SPDX-License-Identifier: Apache-2.0
"""Image manifests, indexes and configurations: OCI image-spec 1.1 and Docker's schema 2.

Pure functions over decoded JSON, used by the registry client, the archive reader and teud's images.
Whatever comes from outside goes through `manifest`, `index` or `config` before anything is made of it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from teu.oci import digest as digests
from teu.oci import jsontext

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

INDEXES = (OCI_INDEX, DOCKER_LIST)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
CONFIGS = (OCI_CONFIG, DOCKER_CONFIG)
LAYER_PREFIXES = (
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)

MANIFEST_SIZE_LIMIT = 4 << 20
CONFIG_SIZE_LIMIT = 16 << 20
LAYER_COUNT_LIMIT = 512

Json = dict[str, Any]

# What a document has once `check_descriptor`, `manifest`, `index` or `config` has taken it; members that nothing here
# looks at may be there, too.
if TYPE_CHECKING:
    from typing import NotRequired, Required, TypedDict

    from teu.oci.jsontext import Json as Anything

    class PlatformMembers(TypedDict, total=False):
        os: str
        architecture: str
        variant: str

    class Descriptor(TypedDict):
        mediaType: str
        digest: str
        size: int
        platform: NotRequired[PlatformMembers]
        annotations: NotRequired[dict[str, str]]

    class Manifest(TypedDict):
        schemaVersion: int
        mediaType: NotRequired[str]
        config: Descriptor
        layers: list[Descriptor]

    class Index(TypedDict):
        schemaVersion: int
        mediaType: NotRequired[str]
        manifests: list[Descriptor]

    class RootFs(TypedDict):
        type: str
        diff_ids: list[str]

    class History(TypedDict, total=False):
        created: str
        created_by: str
        author: str
        comment: str
        empty_layer: bool

    class ContainerConfig(TypedDict, total=False):
        """What an image says of its containers. Any member may be null."""

        User: str | None
        ExposedPorts: Mapping[str, Anything] | None
        Env: list[str] | None
        Entrypoint: list[str] | None
        Cmd: list[str] | None
        Volumes: Mapping[str, Anything] | None
        WorkingDir: str | None
        Labels: dict[str, str] | None
        StopSignal: str | None
        StopTimeout: int | None
        Healthcheck: Mapping[str, Anything] | None
        OnBuild: list[str] | None
        Shell: list[str] | None

    class ImageConfig(TypedDict, total=False):
        created: str
        author: str
        comment: str
        parent: str
        architecture: str
        os: str
        variant: str
        docker_version: str
        config: ContainerConfig | None
        rootfs: Required[RootFs]
        history: list[History] | None


class SpecError(ValueError):
    """A document is not what image-spec allows; str() says which part and why."""


class Platform(NamedTuple):
    """An operating system, an architecture by Go's names, a variant as "v8" or ""."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in self if part)


_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "i386": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "mips64": ("mips64le", ""),
    "loongarch64": ("loong64", ""),
}
ARCHITECTURES = {
    "386",
    "amd64",
    "arm",
    "arm64",
    "loong64",
    "mips",
    "mips64",
    "mips64le",
    "mipsle",
    "ppc64",
    "ppc64le",
    "riscv64",
    "s390x",
    "sparc64",
    "wasm",
    "x86_64",
    "x86-64",
    "aarch64",
    "i386",
    "armhf",
    "armel",
}
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "armhf": "arm", "armel": "arm"}


def host_platform() -> Platform:
    """This machine's, which is that of the kernel."""
    machine = os.uname().machine
    return Platform("linux", *_MACHINES.get(machine, (machine, "")))


# Processor flags (as /proc/cpuinfo names them) that each level of amd64 adds.
_AMD64_LEVELS = (
    ("v2", {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"}),
    ("v3", {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}),
    ("v4", {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}),
)


@functools.cache
def most_of_host() -> Platform:
    """The host's platform with the highest level that its processor has."""
    host = host_platform()
    if host.architecture != "amd64":
        return host
    flags: set[str] = set()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("flags"):
                flags = set(line.partition(":")[2].split())
                break
    level = "v1"
    for name, needed in _AMD64_LEVELS:
        if not needed <= flags:
            break
        level = name
    return host._replace(variant=level)


def parse_platform(text: str) -> Platform:
    """ "linux/arm/v7", "arm64" or "linux"; raises SpecError."""
    host = host_platform()
    parts = text.lower().split("/")
    if (
        not all(parts)
        or len(parts) > 3
        or any(not p.replace("-", "").replace("_", "").replace(".", "").isalnum() for p in parts)
    ):
        wrong = next((p for p in parts if not p.replace("-", "").replace("_", "").replace(".", "").isalnum()), text)
        raise SpecError(f'"{wrong}" is an invalid component of "{text}": a platform is os[/architecture[/variant]]')
    if len(parts) == 1:
        if parts[0] == "linux":
            return host
        if parts[0] in ("windows", "darwin", "macos", "freebsd"):
            return Platform(parts[0], host.architecture)
        if parts[0] not in ARCHITECTURES:
            raise SpecError(f'"{text}": unknown operating system or architecture')
        return _normal(Platform("linux", parts[0]))
    return _normal(Platform(*parts))


def _normal(platform: Platform) -> Platform:
    architecture = _ALIASES.get(platform.architecture, platform.architecture)
    variant = platform.variant
    if architecture == "arm64" and variant in ("8", "v8"):
        variant = ""
    if platform.architecture == "armel":
        variant = variant or "v6"
    if architecture == "arm" and not variant:
        variant = "v7"
    if architecture == "arm" and variant.isdigit():
        variant = "v" + variant
    return Platform(platform.os, architecture, variant)


def platform_of(document: Mapping[str, Any]) -> Platform:
    """The platform of a descriptor's `platform` member or of an image configuration."""
    return _normal(
        Platform(
            str(document.get("os", "")).lower(),
            str(document.get("architecture", "")).lower(),
            str(document.get("variant", "") or "").lower(),
        )
    )


def _version(platform: Platform) -> int:
    """The number of a variant such as v7; -1 for what has no number."""
    digits = platform.variant.lstrip("v")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else -1


def platform_rank(wanted: Platform, offered: Platform) -> int | None:
    """How well `offered` runs where `wanted` is asked for: 0 is exact, more is worse, None does not run."""
    wanted, offered = _normal(wanted), _normal(offered)
    if wanted.os != offered.os:
        return None
    if wanted.architecture == offered.architecture:
        if wanted.variant == offered.variant:
            return 0
        if wanted.architecture == "arm":
            mine, other = _version(wanted), _version(offered)
            return mine - other if 0 <= other < mine else None
        if not offered.variant:
            return 1
        if not wanted.variant:
            # amd64 alone means v1: what needs a newer level may not run there.
            return None
        mine, other = _version(wanted), _version(offered)
        if 0 <= other < mine:
            return 1 + mine - other
    # What the processor runs besides, where there is nothing of its own.
    if (wanted.architecture, offered.architecture) == ("amd64", "386"):
        return 100
    if (wanted.architecture, offered.architecture) == ("arm64", "arm"):
        version = offered.variant.lstrip("v")
        return 110 - int(version) if version in ("5", "6", "7", "8") else None
    return None


def choose(manifests: list[Descriptor], wanted: Platform) -> list[Descriptor]:
    """Those descriptors of an index that `wanted` can run, best first. One without a platform comes last."""
    ranked: list[tuple[int, int, Descriptor]] = []
    for position, descriptor in enumerate(manifests):
        if (descriptor.get("annotations") or {}).get("vnd.docker.reference.type") == "attestation-manifest":
            continue
        given = descriptor.get("platform")
        rank = platform_rank(wanted, platform_of(given)) if given else 1000
        if rank is not None:
            ranked.append((rank, position, descriptor))
    ranked.sort(key=lambda item: item[:2])
    return [descriptor for _, _, descriptor in ranked]


def decode(data: bytes, what: str) -> Json:
    """The JSON object in these bytes; `what` names it in errors. Raises SpecError."""
    try:
        document = jsontext.loads(data)
    except ValueError as error:
        raise SpecError(f"{what} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise SpecError(f"{what} is not a JSON object")
    return document


def encode(document: Mapping[str, Any]) -> bytes:
    """A document in as few bytes as it takes, members in their order, so that the same document has the same digest."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def descriptor(media_type: str, data: bytes) -> Descriptor:
    """The descriptor of these bytes (OCI image-spec, descriptor.md)."""
    return {"mediaType": media_type, "digest": digests.of(data), "size": len(data)}


def plain(descriptor: Descriptor) -> Descriptor:
    """What every descriptor has, and no more."""
    return {"mediaType": descriptor["mediaType"], "digest": descriptor["digest"], "size": descriptor["size"]}


def check_descriptor(value: object, what: str) -> Descriptor:
    """The descriptor as it is: media type, digest, size, and annotations where it has some. `what` names it in errors.
    Raises SpecError."""
    if not isinstance(value, dict):
        raise SpecError(f"{what} is not a descriptor")
    media_type, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
    if not isinstance(media_type, str) or not media_type:
        raise SpecError(f"{what} has no mediaType")
    if not isinstance(digest, str):
        raise SpecError(f"{what} has no digest")
    try:
        digests.check(digest)
    except digests.DigestError as error:
        raise SpecError(f"{what}: {error}") from None
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 63:
        raise SpecError(f"{what} has no valid size")
    annotations = value.get("annotations")
    if annotations is not None and not (
        isinstance(annotations, dict) and all(isinstance(v, str) for v in annotations.values())
    ):
        raise SpecError(f"{what} has annotations that are not strings")
    return cast("Descriptor", value)


def media_type_of(document: Mapping[str, Any], given: str = "") -> str:
    """A manifest's media type: its own member, else what the server said, else by its shape."""
    own = document.get("mediaType")
    if isinstance(own, str) and own:
        return own
    if given in INDEXES or given in MANIFESTS or given == DOCKER_SCHEMA1:
        return given
    if document.get("schemaVersion") == 1:
        return DOCKER_SCHEMA1
    if "manifests" in document and "layers" not in document:
        return OCI_INDEX
    if "config" in document:
        return OCI_MANIFEST
    return given


def manifest(document: Json) -> Manifest:
    """Check an image manifest; returns it. Raises SpecError."""
    if document.get("schemaVersion", 2) != 2:  # docker and containerd take manifests without it
        raise SpecError(f"unsupported manifest schemaVersion {document.get('schemaVersion')!r}: only 2 is supported")
    if "manifests" in document:
        raise SpecError("manifest has both the members of a manifest and of an index")
    config_descriptor = check_descriptor(document.get("config"), "manifest config")
    if config_descriptor["size"] > CONFIG_SIZE_LIMIT:
        raise SpecError(f"manifest config is too large: {config_descriptor['size']} bytes")
    layers = document.get("layers")
    if layers is None:
        layers = document["layers"] = []
    if not isinstance(layers, list):
        raise SpecError("manifest layers is not a list")
    if len(layers) > LAYER_COUNT_LIMIT:
        raise SpecError(f"manifest has {len(layers)} layers; at most {LAYER_COUNT_LIMIT} are supported")
    for number, layer in enumerate(layers):
        check_descriptor(layer, f"manifest layer {number}")
    return cast("Manifest", document)


def is_image(document: Manifest) -> bool:
    """Whether a checked manifest is of a runnable image and not of another artifact."""
    return document["config"]["mediaType"] in CONFIGS


def index(document: Json) -> Index:
    """The index as it is, its descriptors checked (OCI image-spec, image-index.md; docker's manifest list). Raises
    SpecError, also for one that could be read as a manifest."""
    if document.get("schemaVersion", 2) != 2:
        raise SpecError(f"unsupported index schemaVersion {document.get('schemaVersion')!r}: only 2 is supported")
    manifests = document.get("manifests")
    if not isinstance(manifests, list):
        raise SpecError("index manifests is not a list")
    if "config" in document or "layers" in document:
        raise SpecError("index has both the members of an index and of a manifest")
    for number, entry in enumerate(manifests):
        check_descriptor(entry, f"index manifest {number}")
        given = entry.get("platform")
        if given is not None and not isinstance(given, dict):
            raise SpecError(f"index manifest {number} has a platform that is not an object")
    return cast("Index", document)


def config(document: Json, layer_count: int | None = None) -> ImageConfig:
    """Check an image configuration; returns it. `layer_count` is the number of layers of its manifest."""
    rootfs = document.get("rootfs")
    if not isinstance(rootfs, dict) or rootfs.get("type", "layers") != "layers":
        raise SpecError("image configuration has no rootfs of type layers")
    diff_ids = rootfs.get("diff_ids")
    if diff_ids is None:
        diff_ids = rootfs["diff_ids"] = []
    if not isinstance(diff_ids, list) or not all(isinstance(d, str) for d in diff_ids):
        raise SpecError("image configuration's rootfs.diff_ids is not a list of digests")
    for diff_id in diff_ids:
        try:
            digests.check(diff_id)
        except digests.DigestError as error:
            raise SpecError(f"image configuration's diff_id: {error}") from None
    if layer_count is not None and len(diff_ids) != layer_count:
        raise SpecError(f"image configuration names {len(diff_ids)} layers, its manifest {layer_count}")
    inner = document.get("config")
    if inner is not None and not isinstance(inner, dict):
        raise SpecError("image configuration's config is not an object")
    for key in ("Env", "Cmd", "Entrypoint"):
        value = (inner or {}).get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise SpecError(f"image configuration's config.{key} is not a list of strings")
    _members(document, "", dict.fromkeys(("created", "author", "architecture", "os", "variant", "docker_version"), str))
    _members(inner or {}, "config.", _CONFIG_MEMBERS)
    for key, value in ((inner or {}).get("Labels") or {}).items():
        if not isinstance(value, str):
            raise SpecError(f"image configuration's label {key} is no string")
    history = document.get("history")
    if history is not None and not (isinstance(history, list) and all(isinstance(h, dict) for h in history)):
        raise SpecError("image configuration's history is not a list of objects")
    for entry in history or ():
        _members(entry, "history.", dict.fromkeys(("created", "created_by", "author", "comment"), str))
    return cast("ImageConfig", document)


_CONFIG_MEMBERS: dict[str, type] = {
    **dict.fromkeys(("User", "WorkingDir", "StopSignal"), str),
    **dict.fromkeys(("ExposedPorts", "Volumes", "Labels", "Healthcheck"), dict),
    **dict.fromkeys(("OnBuild", "Shell"), list),
}


def _members(value: Json, where: str, kinds: dict[str, type]) -> None:
    for key, kind in kinds.items():
        if value.get(key) is not None and not isinstance(value[key], kind):
            words = {"str": "a string", "dict": "an object", "list": "a list"}
            raise SpecError(f"image configuration's {where}{key} is not {words[kind.__name__]}")


def chain_ids(diff_ids: list[str]) -> list[str]:
    """The chain id of every layer, bottom first (image-spec, "Layer ChainID")."""
    chains: list[str] = []
    for diff_id in diff_ids:
        if not chains:
            chains.append(diff_id)
        else:
            joined = f"{chains[-1]} {diff_id}".encode()
            chains.append("sha256:" + hashlib.sha256(joined).hexdigest())
    return chains


def is_layer(media_type: str) -> bool:
    """Whether a blob of this media type is a layer, OCI's or docker's."""
    return media_type.startswith(LAYER_PREFIXES)


def compression_of(first_bytes: bytes) -> str:
    """ "gzip", "zstd", "bzip2", "xz" or "" by the magic number at a stream's start."""
    if first_bytes.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if first_bytes.startswith(b"\x28\xb5\x2f\xfd"):
        return "zstd"
    if first_bytes.startswith(b"BZh"):
        return "bzip2"
    if first_bytes.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    return ""
