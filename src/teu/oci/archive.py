# SPDX-License-Identifier: Apache-2.0
"""Images as tar files: OCI image layout and `docker save`'s format, both read, and written as one.

    oci-layout                   {"imageLayoutVersion": "1.0.0"}
    index.json                   the images; names are annotations
    blobs/sha256/HEX             manifests, configurations, layers
    manifest.json                docker's table: [{"Config", "RepoTags", "Layers"}], paths into the same tar
    repositories                 docker's older table (written by others; not needed to read)

Nothing of an archive is ever unpacked as files: every entry goes, as it streams by, into a content
store (`Sink`) under the digest of its bytes, and the tables are put together afterwards. Called by teud
(load, save) and teu-ctr (images import, export).
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from teu.oci import digest as digests
from teu.oci import image_spec, reference

Json = dict[str, Any]

CHUNK = 1 << 20
TABLE_LIMIT = 8 << 20
NAME_ANNOTATION = "io.containerd.image.name"
REF_ANNOTATION = "org.opencontainers.image.ref.name"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_NOT_AN_ARCHIVE = "not an image archive: it has neither index.json with oci-layout nor manifest.json"


class ArchiveError(ValueError):
    """The archive is not an image archive, or a part of it is broken."""


class Stream(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class Sink(Protocol):
    """Where blobs go."""

    def store(self, stream: Stream, size: int, expected: str, name: str) -> str:
        """Keep `size` bytes of `stream`; their digest is returned, and must be `expected` where given."""

    def read(self, digest: str) -> bytes:
        """A small blob that was stored."""


class Entry(NamedTuple):
    digest: str
    size: int
    compression: str


class ArchiveImage(NamedTuple):
    """One image of an archive: its names as written there (full references) and its descriptor."""

    names: list[str]
    target: Json


class _Peek:
    """A stream of which the first bytes were looked at."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.head = b""
        while len(self.head) < 6:
            more = stream.read(6 - len(self.head))
            if not more:
                break
            self.head += more
        self._rest = self.head

    def read(self, size: int = -1, /) -> bytes:
        if self._rest:
            if size < 0 or size >= len(self._rest):
                head, self._rest = self._rest, b""
                return head
            head, self._rest = self._rest[:size], self._rest[size:]
            return head
        return self._stream.read(size)


def decompressed(stream: Stream) -> Stream:
    """The stream without its gzip, bzip2, xz or zstd compression, if it has one."""
    peek = _Peek(stream)
    kind = image_spec.compression_of(peek.head)
    if not kind:
        return peek
    if kind == "zstd":
        import zstandard

        reader: Stream = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            peek,  # type: ignore[arg-type]
            read_across_frames=True,
        )
        return reader
    return _Inflate(peek, kind)


class _Inflate:
    """Pulls from a compressed stream; concatenated members count as one stream."""

    def __init__(self, source: Stream, kind: str) -> None:
        self._source = source
        self._kind = kind
        self._machine = self._new()
        self._pending = b""
        self._buffer = b""
        self._ended = False

    def _new(self) -> Any:
        if self._kind == "gzip":
            import zlib

            return zlib.decompressobj(31)
        if self._kind == "bzip2":
            import bz2

            return bz2.BZ2Decompressor()
        import lzma

        return lzma.LZMADecompressor(memlimit=256 << 20)

    def _more(self) -> bytes:
        """Some decompressed bytes; empty at the end."""
        while not self._ended:
            if self._machine.eof:
                self._pending = self._machine.unused_data or self._source.read(CHUNK)
                if not self._pending.strip(b"\0"):
                    self._ended = True
                    return b""
                self._machine = self._new()
            data, self._pending = self._pending, b""
            if not data and self._needs_input():
                data = self._source.read(CHUNK)
                if not data:
                    raise ArchiveError(f"unexpected end of the {self._kind} stream")
            try:
                if self._kind == "gzip":
                    out = self._machine.decompress(data, CHUNK)
                    self._pending = self._machine.unconsumed_tail
                else:
                    out = self._machine.decompress(data, CHUNK)
            except Exception as error:
                raise ArchiveError(f"corrupt {self._kind} stream: {error}") from None
            if out:
                return bytes(out)
        return b""

    def _needs_input(self) -> bool:
        return bool(getattr(self._machine, "needs_input", True))

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            parts = [self._buffer]
            self._buffer = b""
            while part := self._more():
                parts.append(part)
            return b"".join(parts)
        while len(self._buffer) < size:
            part = self._more()
            if not part:
                break
            self._buffer += part
        result, self._buffer = self._buffer[:size], self._buffer[size:]
        return result


class _Whole:
    """Reads exactly `size` bytes of a tar entry; a shorter archive is an error, not a shorter entry."""

    def __init__(self, stream: Stream, size: int, name: str) -> None:
        self._stream = stream
        self._left = size
        self._name = name

    def read(self, size: int = -1, /) -> bytes:
        if not self._left:
            return b""
        try:
            data = self._stream.read(self._left if size < 0 else min(size, self._left))
        except tarfile.TarError as error:
            raise ArchiveError(f"archive entry {self._name}: {error}") from None
        if not data:
            raise ArchiveError(f"unexpected EOF: archive entry {self._name} is cut short by {self._left} bytes")
        self._left -= len(data)
        return data


def read(
    stream: Stream, sink: Sink, compress: Callable[[str], tuple[str, int]] | None = None
) -> list[ArchiveImage]:
    """Read a whole archive into `sink` and return its images. `compress` makes another blob with gzip of a layer that
    has no compression, in archives of docker's form: its digest and size. Raises ArchiveError or SpecError."""
    entries, tables = _blobs(stream, sink)
    if "index.json" in tables and "oci-layout" in tables:
        return _layout_images(tables, entries, sink)
    if "manifest.json" in tables:
        return _docker_images(tables["manifest.json"], entries, sink, compress)
    raise ArchiveError(_NOT_AN_ARCHIVE)


def read_index(stream: Stream, sink: Sink) -> tuple[bytes, list[Json]]:
    """As `read`, for who keeps the archive's index as an image of its own, as containerd does.

    The bytes of the index (for docker's format, of the one that containerd makes of the table), and its descriptors,
    with their annotations: those of a name are `NAME_ANNOTATION` and `REF_ANNOTATION`.
    """
    entries, tables = _blobs(stream, sink)
    if "index.json" in tables and "oci-layout" in tables:
        index = image_spec.index(_table(tables["index.json"], "index.json"))
        _check_present(index["manifests"], entries)
        return tables["index.json"], index["manifests"]
    if "manifest.json" in tables:
        manifests = []
        for image in _docker_images(tables["manifest.json"], entries, sink):
            platform = _platform_in(image.target, sink)
            if not image.names:
                manifests.append({**image.target, **platform})
            for name in image.names:
                named = {NAME_ANNOTATION: name, REF_ANNOTATION: _object_of(name)}
                manifests.append({**image.target, "annotations": named, **platform})
        return image_spec.encode({"schemaVersion": 2, "manifests": manifests}), manifests
    raise ArchiveError(_NOT_AN_ARCHIVE)


def _object_of(name: str) -> str:
    """Tag or digest of a full reference."""
    parsed = reference.parse(name)
    return parsed.digest or parsed.tag


def _platform_in(target: Json, sink: Sink) -> Json:
    """{"platform": …} of a manifest, from its configuration; nothing where that tells none."""
    manifest = image_spec.manifest(image_spec.decode(sink.read(target["digest"]), "manifest"))
    config = image_spec.decode(sink.read(manifest["config"]["digest"]), "image configuration")
    architecture, system = config.get("architecture"), config.get("os")
    if not architecture or not system:
        return {}
    variant = {"variant": "v7"} if architecture == "arm" else {}  # containerd reads no variant there
    return {"platform": {"architecture": architecture, "os": system, **variant}}


def _check_present(descriptors: list[Json], entries: dict[str, Entry]) -> None:
    present = {entry.digest for entry in entries.values()}
    for descriptor in descriptors:
        if descriptor["digest"] not in present:
            raise ArchiveError(f"index.json names {descriptor['digest']}, which is not in the archive")


def _blobs(stream: Stream, sink: Sink) -> tuple[dict[str, Entry], dict[str, bytes]]:
    """Blobs go into `sink` as they stream by; the tables are kept. Both by their names in the archive."""
    entries: dict[str, Entry] = {}
    links: dict[str, str] = {}
    tables: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=decompressed(stream), mode="r|", bufsize=CHUNK) as tar:  # type: ignore[call-overload]
            for member in tar:
                name = _entry_name(member.name)
                if member.issym() or member.islnk():
                    base = posixpath.dirname(name) if member.issym() else ""
                    links[name] = _entry_name(posixpath.join(base, member.linkname))
                elif member.isfile():
                    body = tar.extractfile(member)
                    assert body is not None
                    whole = _Whole(body, member.size, name)
                    if name in ("manifest.json", "index.json", "oci-layout", "repositories"):
                        if member.size > TABLE_LIMIT:
                            raise ArchiveError(f"archive entry {name} is too large: {member.size} bytes")
                        tables[name] = whole.read()
                        continue
                    if posixpath.basename(name) in ("VERSION", "json") and not name.startswith("blobs/"):
                        continue
                    peek = _Peek(whole)
                    expected = _expected(name)
                    digest = sink.store(peek, member.size, expected, name)
                    entries[name] = Entry(digest, member.size, image_spec.compression_of(peek.head))
                elif not member.isdir():
                    raise ArchiveError(f"archive entry {name} is neither file, folder nor link")
    except tarfile.TarError as error:
        raise ArchiveError(f"invalid tar archive: {error}") from None
    except EOFError as error:
        raise ArchiveError(f"unexpected EOF: {error}") from None
    for name in links:
        target, hops = name, 0
        while target in links and hops < 16:
            target, hops = links[target], hops + 1
        if target in entries:
            entries[name] = entries[target]
    return entries, tables


def _entry_name(name: str) -> str:
    clean = posixpath.normpath(name)
    if clean.startswith(("/", "../")) or clean == "..":
        raise ArchiveError(f"archive entry {name!r} leads out of the archive")
    return clean


def _expected(name: str) -> str:
    parts = name.split("/")
    if len(parts) == 3 and parts[0] == "blobs":
        digest = f"{parts[1]}:{parts[2]}"
        if digests.is_digest(digest):
            return digest
        raise ArchiveError(f"archive entry {name!r} is not named by a digest")
    return ""


def _table(data: bytes, name: str) -> Any:
    import json

    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{name} is not JSON: {error}") from None


def _docker_table(data: bytes) -> list[Json]:
    table = _table(data, "manifest.json")
    if not isinstance(table, list) or not all(isinstance(row, dict) for row in table):
        raise ArchiveError("manifest.json is not a list of objects")
    for row in table:
        if not isinstance(row.get("Config"), str):
            raise ArchiveError("manifest.json has an image without Config")
        for key in ("RepoTags", "Layers"):
            value = row.get(key)
            if value is None:
                row[key] = []
            elif not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
                raise ArchiveError(f"manifest.json: {key} is not a list of strings")
    return table


def _names(tags: Iterable[str]) -> list[str]:
    return [str(reference.parse(tag).with_default_tag()) for tag in tags]


def _layout_images(tables: dict[str, bytes], entries: dict[str, Entry], sink: Sink) -> list[ArchiveImage]:
    index = image_spec.index(_table(tables["index.json"], "index.json"))
    _check_present(index["manifests"], entries)
    by_config: dict[str, list[str]] = {}
    if "manifest.json" in tables:
        for row in _docker_table(tables["manifest.json"]):
            entry = entries.get(_entry_name(row["Config"]))
            if entry:
                by_config.setdefault(entry.digest, []).extend(_names(row["RepoTags"]))
    images: dict[str, ArchiveImage] = {}
    for descriptor in index["manifests"]:
        if (descriptor.get("annotations") or {}).get("vnd.docker.reference.type"):
            continue
        annotations = descriptor.get("annotations") or {}
        names: list[str] = []
        full = annotations.get(NAME_ANNOTATION)
        short = annotations.get(REF_ANNOTATION)
        if full:
            names = _names([full])
        elif short and ("/" in short or ":" in short):
            names = _names([short])
        target = {key: descriptor[key] for key in ("mediaType", "digest", "size")}
        if not names and target["mediaType"] in image_spec.MANIFESTS:
            manifest = image_spec.manifest(image_spec.decode(sink.read(target["digest"]), "manifest"))
            names = by_config.get(manifest["config"]["digest"], [])
        known = images.setdefault(target["digest"], ArchiveImage([], target))
        known.names.extend(name for name in names if name not in known.names)
    return list(images.values())


def _docker_images(
    data: bytes,
    entries: dict[str, Entry],
    sink: Sink,
    compress: Callable[[str], tuple[str, int]] | None = None,
) -> list[ArchiveImage]:
    images = []
    for row in _docker_table(data):
        config_entry = entries.get(_entry_name(row["Config"]))
        if config_entry is None:
            raise ArchiveError(f"manifest.json names {row['Config']}, which is not in the archive")
        if config_entry.size > image_spec.CONFIG_SIZE_LIMIT:
            raise ArchiveError(f"image configuration {row['Config']} is too large")
        config = image_spec.config(
            image_spec.decode(sink.read(config_entry.digest), "image configuration"), len(row["Layers"])
        )
        layers = []
        for path, diff_id in zip(row["Layers"], config["rootfs"]["diff_ids"]):
            entry = entries.get(_entry_name(path))
            if entry is None:
                raise ArchiveError(f"manifest.json names {path}, which is not in the archive")
            if not entry.compression and entry.digest != diff_id:
                raise ArchiveError(f"layer {path} has digest {entry.digest}, its configuration says {diff_id}")
            if compress and not entry.compression:
                entry = Entry(*compress(entry.digest), "gzip")
            suffix = {"": "", "gzip": ".gzip", "zstd": ".zstd"}.get(entry.compression)
            if suffix is None:
                raise ArchiveError(f"layer {path} is compressed with {entry.compression}; gzip and zstd are read")
            layers.append(
                {"mediaType": image_spec.DOCKER_LAYER + suffix, "digest": entry.digest, "size": entry.size}
            )
        manifest = {
            "schemaVersion": 2,
            "mediaType": image_spec.DOCKER_MANIFEST,
            "config": {
                "mediaType": image_spec.DOCKER_CONFIG,
                "digest": config_entry.digest,
                "size": config_entry.size,
            },
            "layers": layers,
        }
        encoded = image_spec.encode(manifest)
        target = image_spec.descriptor(image_spec.DOCKER_MANIFEST, encoded)
        sink.store(io.BytesIO(encoded), len(encoded), target["digest"], "manifest")
        images.append(ArchiveImage(_names(row["RepoTags"]), target))
    return images


class ExportImage(NamedTuple):
    """What `write` needs of an image: full names, top descriptor, and every blob below it, once."""

    names: list[str]
    target: Json
    blobs: list[Json]
    config_digest: str
    layer_digests: list[str]


def write(
    images: list[ExportImage], content: Callable[[str], Iterable[bytes]], for_docker: bool = True
) -> Iterator[bytes]:
    """The tar stream of an archive that docker, podman, containerd and teu load; without `for_docker` it is an OCI
    layout alone."""
    manifests, table = [], []
    repositories: dict[str, dict[str, str]] = {}
    blobs: dict[str, int] = {}
    for image in images:
        for descriptor in [image.target, *image.blobs]:
            blobs[descriptor["digest"]] = descriptor["size"]
        names = image.names or [""]
        tags = []
        for name in names:
            entry = {key: image.target[key] for key in ("mediaType", "digest", "size")}
            if name:
                parsed = reference.parse(name)
                entry["annotations"] = {NAME_ANNOTATION: name, REF_ANNOTATION: parsed.tag}
                if parsed.tag:
                    tags.append(parsed.familiar())
                    repositories.setdefault(parsed.familiar_name, {})[parsed.tag] = image.config_digest.partition(
                        ":"
                    )[2]
            manifests.append(entry)
        table.append(
            {
                "Config": _blob_path(image.config_digest),
                "RepoTags": tags or None,
                "Layers": [_blob_path(digest) for digest in image.layer_digests],
            }
        )
    yield _header("blobs/", 0, folder=True)
    yield _header("blobs/sha256/", 0, folder=True)
    for digest, size in sorted(blobs.items()):
        yield _header(_blob_path(digest), size)
        written = 0
        for chunk in content(digest):
            written += len(chunk)
            yield chunk
        if written != size:
            raise ArchiveError(f"content {digest} has {written} bytes, {size} were expected")
        yield b"\0" * (-size % 512)
    yield from _file("index.json", image_spec.encode(
        {"schemaVersion": 2, "mediaType": image_spec.OCI_INDEX, "manifests": manifests}))
    if for_docker:
        yield from _file("manifest.json", _encode_list(table))
    yield from _file("oci-layout", LAYOUT)
    if repositories and for_docker:
        yield from _file("repositories", image_spec.encode(repositories))
    yield b"\0" * 1024


def _encode_list(value: list[Any]) -> bytes:
    import json

    return json.dumps(value, separators=(",", ":")).encode()


def _blob_path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _header(name: str, size: int, folder: bool = False) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o755 if folder else 0o644
    info.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    return info.tobuf(tarfile.USTAR_FORMAT if size < 1 << 33 else tarfile.PAX_FORMAT)


def _file(name: str, data: bytes) -> Iterator[bytes]:
    yield _header(name, len(data))
    yield data + b"\0" * (-len(data) % 512)
