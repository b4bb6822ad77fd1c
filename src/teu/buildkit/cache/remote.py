# SPDX-License-Identifier: Apache-2.0
"""Cache records as they travel: in a registry, in a folder, inside of an image. Data in, data out: who moves blobs is
elsewhere.

    {"layers":  [{"blob": DIGEST, "parent": INDEX or -1}],            one upon the other; "parent" may be missing for 0
     "records": [{"digest": KEY,                                      keys.root(digest of the operation, output)
                  "inputs": [[{"link": RECORD, "selector": S}]],      for each input what leads here
                  "layers": [{"layer": LAYER, "createdAt": TIME}],    results: a layer with all below it,
                  "chains": [{"layers": [LAYER], "createdAt": TIME}]  or these, one upon the other
                 }]}

is an application/vnd.buildkit.cacheconfig.v0. In a registry or a folder it is the config of an image manifest whose
layers are the blobs, or one of the entries of an index beside them; in an image the records alone are in its
configuration (moby.buildkit.cache.v0, base64), and the layers are the image's own.

mode=min exports the layers that the result has, with the keys that lead to it; mode=max the results of all steps.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from teu.buildkit.cache.keys import RANDOM, Link, root
from teu.buildkit.core.op import Record
from teu.oci import digest as digests

CONFIG_TYPE = "application/vnd.buildkit.cacheconfig.v0"
INLINE_KEY = "moby.buildkit.cache.v0"  # in the configuration of an image
RESPONSE_KEY = "cache.manifest"  # in the answer to a solve: the descriptor of what was exported, as JSON

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

UNCOMPRESSED = "containerd.io/uncompressed"  # annotations of a layer's descriptor
CREATED_AT = "buildkit/createdat"
DESCRIPTION = "buildkit/description"

CONFIG_MAX = 32 << 20  # bytes that are read of what others wrote
RECORDS_MAX = 200_000
LAYERS_MAX = 200_000
CHAIN_MAX = 10_000  # layers one upon the other

if TYPE_CHECKING:
    from teu.oci.image_spec import Descriptor as Descriptor
else:
    Descriptor = dict[str, Any]  # for those who name it at work

_TO_OCI = {
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
_TO_DOCKER = {oci: docker for docker, oci in _TO_OCI.items()}


class BadCache(ValueError):
    """What was read is no cache, or a broken one."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a client says of an export (--cache-to)."""

    mode: str = "min"
    image_manifest: bool = True
    oci: bool = True
    ignore_error: bool = False

    @classmethod
    def parse(cls, attributes: Mapping[str, str]) -> Options:
        """ValueError in BuildKit's words; attributes of other rooms are left alone."""
        mode = attributes.get("mode") or "min"
        if mode not in ("min", "max"):
            raise ValueError(f"unsupported cache export mode {mode!r}")
        oci = _flag(attributes, "oci-mediatypes", True)
        image_manifest = _flag(attributes, "image-manifest", oci)
        if image_manifest and not oci:
            raise ValueError(
                "invalid configuration for remote cache, OCI mediatypes are required for image-manifest cache format"
            )
        return cls(mode, image_manifest, oci, _flag(attributes, "ignore-error", False))


def _flag(attributes: Mapping[str, str], name: str, default: bool) -> bool:
    text = attributes.get(name)
    if text is None:
        return default
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ValueError(f"failed to parse {name}: {text!r}")


@dataclass(frozen=True, slots=True)
class Chain:
    """One output of a graph as its cache is exported: its key in the main cache, the digest of its operation, for each
    input the links that lead here, and the cached result ("" where only its key is known). `export` is what the
    definition said of exporting it."""

    key: str
    digest: str
    output: int
    inputs: tuple[tuple[Link, ...], ...]
    result: str
    created: float
    export: bool | None = None


# The layers of a result, lowest first, or None where it has none. With True they may be made for it, else only those
# count that are there already.
Layers = Callable[[str, bool], "Sequence[Descriptor] | None"]


@dataclass(frozen=True, slots=True)
class Exported:
    """A cache to be written: the configuration, and the blobs that it speaks of in its order. Empty: nothing of it has
    layers."""

    config: dict[str, Any]
    layers: list[Descriptor]

    @property
    def empty(self) -> bool:
        return not self.config["layers"]


# Export


def export(chains: Sequence[Chain], layers: Layers, mode: str = "min") -> Exported:
    """The cache of a graph: `chains` with what they stand on first, the result last. The same chains give the same
    bytes."""
    used_by_rest = {chain.key: mode == "max" for chain in chains}
    if chains:
        used_by_rest[chains[-1].key] = True
    found: dict[str, Sequence[Descriptor]] = {}
    for chain in reversed(chains):
        may_make = used_by_rest[chain.key]
        if chain.result and chain.inputs and chain.export is not False:
            have = layers(chain.result, may_make)
            if have:
                found[chain.key] = have
        # In mode min what is below a result with layers needs none of its own: only what it has anyway.
        if may_make and (mode == "max" or chain.key not in found):
            for way in chain.inputs:
                for key, _ in way:
                    if key in used_by_rest:
                        used_by_rest[key] = True
    return _config([chain for chain in chains if not chain.digest.startswith(RANDOM)], found)


def _config(chains: Sequence[Chain], found: Mapping[str, Sequence[Descriptor]]) -> Exported:
    chains = _leading(chains, set(found))
    stack = _Stack()
    results: dict[str, int] = {}
    for chain in chains:
        if chain.key in found:
            results[chain.key] = stack.add(found[chain.key])
    numbers = stack.sort()
    by_key = {chain.key: chain for chain in chains}

    def rank(chain: Chain) -> tuple[Any, ...]:
        return (
            root(chain.digest, chain.output),
            len(chain.inputs),
            [
                sorted((selector, root(by_key[key].digest, by_key[key].output)) for key, selector in way)
                for way in chain.inputs
            ],
            chain.key,
        )

    ordered = sorted(chains, key=rank)
    place = {chain.key: number for number, chain in enumerate(ordered)}
    records = []
    for chain in ordered:
        record: dict[str, Any] = {}
        if chain.key in results:
            record["layers"] = [{"layer": numbers[results[chain.key]], "createdAt": _time(chain.created)}]
        record["digest"] = root(chain.digest, chain.output)
        if chain.inputs:
            record["inputs"] = [
                [
                    {**({"selector": selector} if selector else {}), "link": number}
                    for number, selector in sorted((place[key], selector) for key, selector in way)
                ]
                for way in chain.inputs
            ]
        records.append(record)
    return Exported({"layers": stack.layers, "records": records}, list(stack.blobs.values()))


def _leading(chains: Sequence[Chain], wanted: set[str]) -> list[Chain]:
    """Those that have a result or lead to one, and whose inputs all have what leads to them."""
    there: dict[str, Chain] = {}
    for chain in chains:
        ways = tuple(tuple(link for link in way if link[0] in there) for way in chain.inputs)
        if all(ways):
            there[chain.key] = Chain(
                chain.key, chain.digest, chain.output, ways, chain.result, chain.created, chain.export
            )
    needed = set(wanted)
    kept: list[Chain] = []
    for chain in reversed(list(there.values())):
        if chain.key in needed:
            kept.append(chain)
            needed.update(key for way in chain.inputs for key, _ in way)
    kept.reverse()
    return kept


class _Stack:
    """Layers as the configuration has them: each with the one that it is upon."""

    def __init__(self) -> None:
        self.layers: list[dict[str, Any]] = []
        self.blobs: dict[str, Descriptor] = {}
        self._known: dict[tuple[str, int], int] = {}

    def add(self, descriptors: Sequence[Descriptor]) -> int:
        """The number of the uppermost."""
        below = -1
        for descriptor in descriptors:
            blob = descriptor["digest"]
            self.blobs.setdefault(blob, descriptor)
            number = self._known.get((blob, below))
            if number is None:
                number = self._known[(blob, below)] = len(self.layers)
                self.layers.append({"blob": blob, "parent": below})
            below = number
        return below

    def sort(self) -> list[int]:
        """An order that does not depend on who came first; where each one is now."""
        names: list[str] = []
        for layer in self.layers:
            above = names[layer["parent"]] if layer["parent"] >= 0 else ""
            names.append(hashlib.sha256(f"{above}\0{layer['blob']}".encode()).hexdigest())
        order = sorted(range(len(names)), key=lambda number: (self.layers[number]["blob"], names[number]))
        place = {old: new for new, old in enumerate(order)}
        self.layers = [
            {
                "blob": self.layers[old]["blob"],
                "parent": place[self.layers[old]["parent"]] if self.layers[old]["parent"] >= 0 else -1,
            }
            for old in order
        ]
        self.blobs = {layer["blob"]: self.blobs[layer["blob"]] for layer in self.layers}
        return [place[old] for old in range(len(order))]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _seconds(text: object) -> float:
    """Of a time as Go writes it; 0 where there is none."""
    if not isinstance(text, str):
        return 0.0
    head, dot, rest = text.partition(".")
    fraction = ""
    if dot:
        digits = len(rest) - len(rest.lstrip("0123456789"))
        fraction, rest = rest[:digits][:6], rest[digits:]
        text = f"{head}.{fraction.ljust(6, '0')}{rest}"
    try:
        made = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return (made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True, slots=True)
class Written:
    """The two blobs that an exported cache is, beside its layers; the manifest's descriptor is what it is found by."""

    config: Descriptor
    config_data: bytes
    manifest: Descriptor
    manifest_data: bytes


def write(exported: Exported, options: Options) -> Written:
    """The configuration, and the manifest or index, of a cache in a registry or a folder."""
    data = _json(exported.config)
    config: Descriptor = {"mediaType": CONFIG_TYPE, "digest": digests.of(data), "size": len(data)}
    layers = [_typed(descriptor, options.oci) for descriptor in exported.layers]
    if options.image_manifest:
        kind = OCI_MANIFEST
        document = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}
    else:
        kind = OCI_INDEX if options.oci else DOCKER_INDEX
        document = {"schemaVersion": 2, "mediaType": kind, "manifests": [*layers, config]}
    manifest = _json(document)
    return Written(config, data, {"mediaType": kind, "digest": digests.of(manifest), "size": len(manifest)}, manifest)


def _typed(descriptor: Descriptor, oci: bool) -> Descriptor:
    kind = descriptor["mediaType"]
    return {**descriptor, "mediaType": _TO_OCI.get(kind, kind) if oci else _TO_DOCKER.get(kind, kind)}


def described(descriptor: Descriptor, description: str, created: float) -> Descriptor:
    """A layer's descriptor, with what made it and when (seconds since 1970; 0: not known), for who imports it."""
    annotations = dict(descriptor.get("annotations") or {})
    if description:
        annotations.setdefault(DESCRIPTION, description)
    if created:
        annotations.setdefault(CREATED_AT, _time(created))
    return {**descriptor, "annotations": annotations}


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def inline(exported: Exported, image_layers: Sequence[str]) -> bytes:
    """The records for the configuration of an image whose layers are these, lowest first, named by their blobs or by
    their uncompressed digests; b"" where nothing fits. They go under INLINE_KEY, in base64 (`inline_value`)."""
    place: dict[str, int] = {}
    for number, blob in enumerate(image_layers):
        place.setdefault(blob, number)
    for descriptor in exported.layers:
        plain = (descriptor.get("annotations") or {}).get(UNCOMPRESSED)
        if plain in place:
            place.setdefault(descriptor["digest"], place[plain])
    layers = exported.config["layers"]
    records: list[dict[str, Any]] = []
    useful = False
    for record in exported.config["records"]:
        made = {key: value for key, value in record.items() if key != "layers"}
        for result in record.get("layers", ()):
            blobs = []
            at = result["layer"]
            while at >= 0:
                blobs.append(layers[at]["blob"])
                at = layers[at]["parent"]
            numbers = [place.get(blob, -1) for blob in reversed(blobs)]
            if -1 in numbers:
                continue  # the image has not all of it
            useful = True
            if numbers == list(range(len(numbers))):
                made.setdefault("layers", []).append({"layer": len(numbers) - 1, "createdAt": result["createdAt"]})
            else:
                made.setdefault("chains", []).append({"layers": numbers, "createdAt": result["createdAt"]})
        records.append(made)
    return _json(records) if useful else b""


def inline_value(records: bytes) -> str:
    return base64.b64encode(records).decode()


# Import


@dataclass(slots=True)
class RemoteKeys:
    """A cache that was read: asked by the solver as the main one is. A record's `remote` is the list of descriptors of
    its layers, lowest first."""

    id: str
    _links: dict[tuple[str, int, str, str], set[str]] = field(default_factory=dict)
    _results: dict[str, list[Record]] = field(default_factory=dict)

    def linked(self, links: Collection[Link], number: int, digest: str, output: int) -> set[str]:
        target = root(digest, output)
        found: set[str] = set()
        for key, selector in links:
            found |= self._links.get((key, number, target, selector), set())
        return found

    def results(self, key: str) -> list[Record]:
        return self._results.get(key, [])

    def __len__(self) -> int:
        """How many keys have results."""
        return len(self._results)

    def mapped(self, function: Callable[[Record], Record | None]) -> RemoteKeys:
        """The same keys with other results: what `function` makes of each, None for none."""
        results: dict[str, list[Record]] = {}
        for key, records in self._results.items():
            kept = [made for record in records if (made := function(record)) is not None]
            if kept:
                results[key] = kept
        return RemoteKeys(self.id, self._links, results)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a manifest or index of a cache says. `config` is None for an image, which may have an inline cache;
    `manifests` are those of an index of images."""

    config: Descriptor | None
    image_config: Descriptor | None
    layers: list[Descriptor]
    manifests: list[Descriptor]


def read_manifest(data: bytes) -> Manifest:
    """Raises BadCache."""
    document = _parsed(data)
    if isinstance(document.get("manifests"), list):
        entries = [_descriptor(one) for one in document["manifests"]]
        config = [one for one in entries if one["mediaType"] == CONFIG_TYPE]
        others = [one for one in entries if one["mediaType"] != CONFIG_TYPE]
        if config:
            return Manifest(config[-1], None, others, [])
        return Manifest(None, None, [], others)
    if isinstance(document.get("config"), dict):
        config_descriptor = _descriptor(document["config"])
        layers = [_descriptor(one) for one in _list(document.get("layers"))]
        if config_descriptor["mediaType"] == CONFIG_TYPE:
            return Manifest(config_descriptor, None, layers, [])
        return Manifest(None, config_descriptor, layers, [])
    raise BadCache("unsupported or uninferrable manifest type")


def read(name: str, config: bytes, layers: Iterable[Descriptor]) -> RemoteKeys:
    """The cache of a configuration; `layers` are the blobs that can be had. Raises BadCache."""
    return _read(name, _parsed(config), {one["digest"]: one for one in layers})


def read_inline(name: str, image_config: bytes, layers: Sequence[Descriptor]) -> RemoteKeys | None:
    """The cache inside of an image, of its configuration and the layers of its manifest; None where it has none.
    Raises BadCache."""
    image = _parsed(image_config)
    value = image.get(INLINE_KEY)
    if not value:
        return None
    try:
        records = json.loads(base64.b64decode(value, validate=True))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise BadCache(f"{INLINE_KEY} of the image cannot be read") from None
    plain = image["rootfs"].get("diff_ids") if isinstance(image.get("rootfs"), dict) else None
    if not isinstance(plain, list) or len(plain) != len(layers):
        return None  # manifest and configuration are not of one image
    history = [one for one in _list(image.get("history")) if isinstance(one, dict) and not one.get("empty_layer")]
    described: list[Descriptor] = []
    for number, layer in enumerate(layers):
        annotations = {**(layer.get("annotations") or {}), UNCOMPRESSED: str(plain[number])}
        if number < len(history):
            if history[number].get("created"):
                annotations[CREATED_AT] = str(history[number]["created"])
            if history[number].get("created_by"):
                annotations[DESCRIPTION] = str(history[number]["created_by"])
        described.append({**layer, "annotations": annotations})
    document = {
        "layers": [{"blob": one["digest"], "parent": number - 1} for number, one in enumerate(described)],
        "records": records,
    }
    return _read(name, document, {one["digest"]: one for one in described})


def _read(name: str, document: Mapping[str, Any], blobs: Mapping[str, Descriptor]) -> RemoteKeys:
    layers = _list(document.get("layers"))
    records = _list(document.get("records"))
    if len(records) > RECORDS_MAX or len(layers) > LAYERS_MAX:
        raise BadCache(f"a cache of {len(records)} records and {len(layers)} layers is too large")
    made = RemoteKeys(name)
    inputs = [_inputs(record, number, len(records)) for number, record in enumerate(records)]
    names: dict[int, str] = {}
    for number in _order(inputs):
        record = records[number]
        digest = record.get("digest")
        if not isinstance(digest, str) or not digest:
            raise BadCache(f"record {number} has no digest")
        names[number] = digest if not inputs[number] else f"remote:{number}"
        for place, way in enumerate(inputs[number]):
            for link, selector in way:
                made._links.setdefault((names[link], place, digest, selector), set()).add(names[number])
        found = []
        for result in _list(record.get("layers")):
            stack = _stacked(layers, _index(result, "layer", len(layers)), blobs)
            if stack:
                found.append(_result(stack, result))
        for chain in _list(record.get("chains")):
            if not isinstance(chain, dict):
                raise BadCache(f"invalid chain of record {number}")
            places = [_number(one, len(layers)) for one in _list(chain.get("layers"))]
            stack = [blobs[_blob(layers[one])] for one in places if _blob(layers[one]) in blobs]
            if stack and len(stack) == len(places):
                found.append(_result(stack, chain))
        if found:
            kept = made._results.setdefault(names[number], [])
            kept += found
            kept.sort(key=lambda one: one.created, reverse=True)
    return made


def _inputs(record: Any, number: int, count: int) -> list[list[tuple[int, str]]]:
    if not isinstance(record, dict):
        raise BadCache(f"invalid record {number}")
    ways = []
    for way in _list(record.get("inputs")):
        links = [(_index(one, "link", count), str(one.get("selector") or "")) for one in _list(way)]
        if not links:
            raise BadCache(f"invalid empty input for record {number}")
        ways.append(links)
    return ways


def _order(inputs: Sequence[Sequence[Sequence[tuple[int, str]]]]) -> list[int]:
    """Records after those that lead to them. Raises BadCache where they lead in circles."""
    order: list[int] = []
    state = [0] * len(inputs)  # 0 new, 1 begun, 2 done
    for first in range(len(inputs)):
        todo = [(first, False)]
        while todo:
            number, ready = todo.pop()
            if ready:
                state[number] = 2
                order.append(number)
            elif state[number] == 1:
                raise BadCache("invalid looping record")
            elif state[number] == 0:
                state[number] = 1
                todo.append((number, True))
                for way in inputs[number]:
                    for link, _ in way:
                        if state[link] == 1:
                            raise BadCache("invalid looping record")
                        if state[link] == 0:
                            todo.append((link, False))
    return order


def _stacked(layers: Sequence[Any], at: int, blobs: Mapping[str, Descriptor]) -> list[Descriptor]:
    """A layer with all below it, lowest first; nothing where one of them cannot be had."""
    stack: list[Descriptor] = []
    seen: set[int] = set()
    while at != -1:
        if at in seen:
            raise BadCache("invalid looping layer")
        if len(seen) >= CHAIN_MAX:
            raise BadCache("too many layers one upon the other")
        seen.add(at)
        blob = blobs.get(_blob(layers[at]))
        if blob is None:
            return []
        stack.append(blob)
        above = layers[at].get("parent", 0)
        if above != -1:
            above = _number(above, len(layers))
        at = above
    stack.reverse()
    return stack


def _result(stack: list[Descriptor], result: Mapping[str, Any]) -> Record:
    name = hashlib.sha256("\0".join(one["digest"] for one in stack).encode()).hexdigest()
    return Record(f"remote:{name}", _seconds(result.get("createdAt")), stack)


def _parsed(data: bytes) -> dict[str, Any]:
    if len(data) > CONFIG_MAX:
        raise BadCache(f"{len(data)} bytes are too large for what describes a cache")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise BadCache("what describes the cache is no JSON") from None
    if not isinstance(document, dict):
        raise BadCache("what describes the cache is no object")
    return document


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadCache("a list was expected in what describes the cache")
    return value


def _index(value: Any, key: str, count: int) -> int:
    if not isinstance(value, dict):
        raise BadCache("an object was expected in what describes the cache")
    return _number(value.get(key, 0), count)


def _number(value: Any, count: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise BadCache(f"invalid index {value!r} in what describes the cache")
    return value


def _blob(layer: Any) -> str:
    if not isinstance(layer, dict) or not isinstance(layer.get("blob"), str):
        raise BadCache("invalid layer in what describes the cache")
    return str(layer["blob"])


def _descriptor(value: Any) -> Descriptor:
    if not isinstance(value, dict) or not isinstance(value.get("mediaType"), str):
        raise BadCache("invalid descriptor in what describes the cache")
    size = value.get("size")
    if not digests.is_digest(str(value.get("digest"))) or not isinstance(size, int) or size < 0:
        raise BadCache("invalid descriptor in what describes the cache")
    return cast(Descriptor, value)
