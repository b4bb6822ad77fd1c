# SPDX-License-Identifier: Apache-2.0
"""Images as tar files: OCI image layout and `docker save`'s format, both read, and written as one.

    oci-layout                   {"imageLayoutVersion": "1.0.0"}
    index.json                   the images; names are annotations
    blobs/sha256/HEX             manifests, configurations, layers
    manifest.json                docker's table: [{"Config", "RepoTags", "Layers"}], paths into the same tar
    repositories                 docker's older table: {NAME: {TAG: HEX}}; before 1.10 the only one
    HEX/json, HEX/layer.tar      then: a layer with its part of the configuration, which names its parent

Nothing of an archive is ever unpacked as files. A large entry goes, as it streams by, into a content store (`Sink`)
under the digest of its bytes; small ones wait in one file until the tables, which may come last, have named them: what
is no image archive costs the store nothing. An archive is what others made: no entry may give more than it brings, so
sparse files are refused. Called by teud (load, save), teu-containerd (transfers) and teu-ctr (images import, export).
"""

from __future__ import annotations

import bz2
import io
import json
import lzma
import posixpath
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple, Protocol

from teu.oci import digest as digests
from teu.oci import image_spec, jsontext, reference, tar

Json = dict[str, Any]

CHUNK = 1 << 20
TABLE_LIMIT = 8 << 20
NAME_ANNOTATION = "io.containerd.image.name"
REF_ANNOTATION = "org.opencontainers.image.ref.name"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
TABLES = ("manifest.json", "index.json", "oci-layout", "repositories")
SMALL = 1 << 20  # entries up to this size wait
SPOOL_MEMORY = 8 << 20
SPOOL_FOLDER = "/var/tmp"
NAME_LIMIT = 4096
ENTRIES_LIMIT = 1 << 20
LINKS = 40
PARENTS_LIMIT = 1024  # of an image in docker's older form
_NOT_AN_ARCHIVE = (
    "not an image archive: it has neither index.json with oci-layout nor manifest.json nor repositories; "
    "a root file system's tar is for import"
)


class ArchiveError(ValueError):
    """The archive is not an image archive, or a part of it is broken."""


class Stream(Protocol):
    """Where an archive comes from: a file, a connection, a decompressor."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, and at least one unless it is at its end; -1: all that is left."""


class Sink(Protocol):
    """Where blobs go."""

    def store(self, stream: Stream, size: int, expected: str, name: str) -> str:
        """Keep `size` bytes of `stream`; their digest is returned, and must be `expected` where given."""

    def read(self, digest: str) -> bytes:
        """A small blob that was stored."""


class Entry(NamedTuple):
    """A blob of an archive: what it is without its compression ("gzip", "zstd", "" or another that the archive had)."""

    digest: str
    size: int
    compression: str


class ArchiveImage(NamedTuple):
    """One image of an archive: its names as written there (full references) and its descriptor."""

    names: list[str]
    target: image_spec.Descriptor


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
        return _Zstandard(peek)
    return _Inflate(peek, kind)


class _Zstandard:
    def __init__(self, source: _Peek) -> None:
        import zstandard  # 11 ms and 1.8 MB, and few layers are zstd

        self._error = zstandard.ZstdError
        # a window of 2^27 is what the format's recommended decoders accept
        self._reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            source,  # type: ignore[arg-type]
            read_across_frames=True,
        )

    def read(self, size: int = -1, /) -> bytes:
        try:
            return bytes(self._reader.read(size))
        except self._error as error:
            raise ArchiveError(f"corrupt zstd stream: {error}") from None


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
            return zlib.decompressobj(31)
        if self._kind == "bzip2":
            return bz2.BZ2Decompressor()
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


class _Member:
    """Reads exactly `size` bytes of a tar entry; a shorter archive is an error, not a shorter entry."""

    def __init__(self, source: tar.Source, size: int, name: str) -> None:
        self._source = source
        self.left = size
        self._name = name

    def read(self, size: int = -1, /) -> bytes:
        wanted = self.left if size < 0 else min(size, self.left)
        data = self._source.read(wanted)
        self.left -= len(data)
        if len(data) < wanted:
            raise ArchiveError(f"unexpected EOF: archive entry {self._name} is cut short by {self.left} bytes")
        return data


class _Waiting(NamedTuple):
    """A small entry that the reader has not asked for yet: where it is in the spool."""

    offset: int
    digest: str
    size: int
    compression: str
    expected: str


class _Part:
    """A piece of a file, as a stream."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        file.seek(offset)
        self._file = file
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


class _Entries:
    """The files of an archive, by their names there; links lead to them as they would on disk, "/" being the archive.

    `get` and `blob` have them in the sink, from then on at least."""

    def __init__(self, sink: Sink, spool: IO[bytes]) -> None:
        self._sink = sink
        self._spool = spool
        self._files: dict[str, Entry | _Waiting] = {}
        self._links: dict[str, str] = {}
        self._by_digest: dict[str, str] = {}
        self.tables: dict[str, bytes] = {}

    # Filled by `_read`

    def link(self, name: str, target: str) -> None:
        self._count()
        self._links[name] = target

    def file(self, member: _Member, name: str) -> None:
        self._count()
        size, expected = member.left, _expected(name)
        if size > SMALL:
            peek = _Peek(member)
            digest = self._sink.store(peek, size, expected, name)
            self._files[name] = Entry(digest, size, image_spec.compression_of(peek.head))
        else:
            data = member.read()
            digester = digests.for_digest(expected) if expected else digests.Digester()
            digester.update(data)
            digest = digester.digest()
            if expected and digest != expected:
                raise ArchiveError(f"archive entry {name} has digest {digest}")
            offset = self._spool.seek(0, io.SEEK_END)
            self._spool.write(data)
            self._files[name] = _Waiting(offset, digest, size, image_spec.compression_of(data), expected)
        self._by_digest[digest] = name

    def _count(self) -> None:
        if len(self._files) + len(self._links) >= ENTRIES_LIMIT:
            raise ArchiveError(f"not an image archive: it has more than {ENTRIES_LIMIT} entries")

    # Asked by the forms of archives

    def get(self, name: str) -> Entry | None:
        found = self._followed(_entry_name(name))
        entry = self._files.get(found)
        if isinstance(entry, _Waiting):
            stream = _Part(self._spool, entry.offset, entry.size)
            digest = self._sink.store(stream, entry.size, entry.expected, found)
            entry = self._files[found] = Entry(digest, entry.size, entry.compression)
        return entry

    def digest(self, name: str) -> str:
        """Of a file that is perhaps not needed; "" where there is none."""
        entry = self._files.get(self._followed(_entry_name(name)))
        return entry.digest if entry else ""

    def text(self, name: str) -> bytes | None:
        """A small file that is no blob of the image."""
        entry = self._files.get(self._followed(_entry_name(name)))
        if not isinstance(entry, _Waiting):
            return self._sink.read(entry.digest) if entry else None
        return _Part(self._spool, entry.offset, entry.size).read()

    def has(self, digest: str) -> bool:
        return digest in self._by_digest

    def blob(self, digest: str) -> bool:
        """As `get`, by the digest; whether it is there."""
        return digest in self._by_digest and self.get(self._by_digest[digest]) is not None

    def add(self, stream: Stream, size: int, name: str) -> None:
        """What the archive does not have, but could."""
        self._files[name] = Entry(self._sink.store(stream, size, "", name), size, "")

    def _followed(self, name: str) -> str:
        """The name without links in it."""
        if not self._links:
            return name
        todo = name.split("/")[::-1]
        done: list[str] = []
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                done = done[:-1]
                continue
            if part in ("", "."):
                continue
            done.append(part)
            target = self._links.get("/".join(done))
            if target is None:
                continue
            links += 1
            if links > LINKS:
                raise ArchiveError(f"archive entry {name}: too many levels of symbolic links")
            todo += target.split("/")[::-1]
            done = []
        return "/".join(done)


def read(stream: Stream, sink: Sink, compress: Callable[[str], tuple[str, int]] | None = None) -> list[ArchiveImage]:
    """Read a whole archive into `sink` and return its images. `compress` makes another blob with gzip of a layer that
    has no compression, in archives of docker's form: its digest and size. Raises ArchiveError or SpecError."""
    with _spool() as spool:
        entries = _read(stream, sink, spool)
        tables = entries.tables
        if "index.json" in tables and "oci-layout" in tables:
            return _layout_images(entries, sink)
        if "manifest.json" in tables:
            return _docker_images(_docker_table(tables["manifest.json"]), entries, sink, compress)
        if "repositories" in tables:
            return _docker_images(_older_table(entries, sink), entries, sink, compress)
    raise ArchiveError(_NOT_AN_ARCHIVE)


def read_index(stream: Stream, sink: Sink) -> tuple[bytes, list[image_spec.Descriptor]]:
    """As `read`, for who keeps the archive's index as an image of its own, as containerd does.

    The bytes of the index (for docker's format, of the one that containerd makes of the table), and its descriptors,
    with their annotations: those of a name are `NAME_ANNOTATION` and `REF_ANNOTATION`.
    """
    with _spool() as spool:
        entries = _read(stream, sink, spool)
        tables = entries.tables
        if "index.json" in tables and "oci-layout" in tables:
            return tables["index.json"], _layout(entries, sink)
        if "manifest.json" not in tables:
            raise ArchiveError(_NOT_AN_ARCHIVE)
        manifests: list[image_spec.Descriptor] = []
        for image in _docker_images(_docker_table(tables["manifest.json"]), entries, sink):
            platform = _platform_in(image.target, sink)
            for name in image.names or [""]:
                found: image_spec.Descriptor = {**image.target}
                if name:
                    found["annotations"] = {NAME_ANNOTATION: name, REF_ANNOTATION: _object_of(name)}
                if platform:
                    found["platform"] = platform
                manifests.append(found)
        return image_spec.encode({"schemaVersion": 2, "manifests": manifests}), manifests


def _spool() -> IO[bytes]:
    return tempfile.SpooledTemporaryFile(SPOOL_MEMORY, dir=SPOOL_FOLDER)


def _object_of(name: str) -> str:
    """Tag or digest of a full reference."""
    parsed = reference.parse(name)
    return parsed.digest or parsed.tag


def _platform_in(target: image_spec.Descriptor, sink: Sink) -> image_spec.PlatformMembers:
    """The platform of a manifest, from its configuration; empty where that tells none."""
    manifest = image_spec.manifest(image_spec.decode(sink.read(target["digest"]), "manifest"))
    config = image_spec.decode(sink.read(manifest["config"]["digest"]), "image configuration")
    architecture, system = config.get("architecture"), config.get("os")
    if not architecture or not system:
        return {}
    if architecture == "arm":
        return {"architecture": architecture, "os": system, "variant": "v7"}  # containerd reads no variant there
    return {"architecture": architecture, "os": system}


def _read(stream: Stream, sink: Sink, spool: IO[bytes]) -> _Entries:
    """The whole archive."""
    entries = _Entries(sink, spool)
    plain = decompressed(stream)
    source = tar.Source(lambda: plain.read(CHUNK))
    try:
        for member, stored in tar.entries(source):
            if len(member.name) > NAME_LIMIT or len(member.link) > NAME_LIMIT:
                raise ArchiveError(f"archive entry {tar.short(member.name)!r} has a name or a link that is too long")
            name = _entry_name(member.name)
            if member.type in (tar.SYMLINK, tar.HARD_LINK):
                base = posixpath.dirname(name) if member.type == tar.SYMLINK else ""
                target = "." if member.link.startswith("/") else base  # "/" is the archive
                entries.link(name, _entry_name(posixpath.join(target, member.link.lstrip("/"))))
            elif member.type == tar.REGULAR:
                if member.sparse is not None:
                    raise ArchiveError(f"archive entry {name} is a sparse file, which an image archive does not have")
                body = _Member(source, stored, name)
                if name in TABLES:
                    if stored > TABLE_LIMIT:
                        raise ArchiveError(f"archive entry {name} is too large: {stored} bytes")
                    entries.tables[name] = body.read()
                else:
                    entries.file(body, name)
                source.skip(body.left)
            elif member.type != tar.DIRECTORY:
                raise ArchiveError(f"archive entry {name} is neither file, folder nor link: {_NOT_AN_ARCHIVE}")
        source.drain()
    except tar.TarError as error:
        raise ArchiveError(f"invalid tar archive: {error}") from None
    return entries


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
    try:
        return jsontext.loads(data)
    except ValueError as error:
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


def _layout(entries: _Entries, sink: Sink) -> list[image_spec.Descriptor]:
    """The descriptors of index.json; everything that they lead to, and that is in the archive, is in the sink."""
    index = image_spec.index(_table(entries.tables["index.json"], "index.json"))
    manifests: list[image_spec.Descriptor] = index["manifests"]
    for descriptor in manifests:
        if not entries.has(descriptor["digest"]):
            raise ArchiveError(f"index.json names {descriptor['digest']}, which is not in the archive")
    waiting = manifests[::-1]
    seen: set[str] = set()
    while waiting:
        descriptor = waiting.pop()
        digest, kind = descriptor["digest"], descriptor["mediaType"]
        if digest in seen or not entries.blob(digest):
            continue
        seen.add(digest)
        if kind in image_spec.INDEXES:
            index = image_spec.index(image_spec.decode(sink.read(digest), "index"))
            waiting += index["manifests"][::-1]
        elif kind in image_spec.MANIFESTS:
            manifest = image_spec.manifest(image_spec.decode(sink.read(digest), "manifest"))
            waiting += [*manifest["layers"][::-1], manifest["config"]]
    return manifests


def _layout_images(entries: _Entries, sink: Sink) -> list[ArchiveImage]:
    tables, manifests = entries.tables, _layout(entries, sink)
    by_config: dict[str, list[str]] = {}
    if "manifest.json" in tables:
        for row in _docker_table(tables["manifest.json"]):
            digest = entries.digest(row["Config"])
            if digest:
                by_config.setdefault(digest, []).extend(_names(row["RepoTags"]))
    images: dict[str, ArchiveImage] = {}
    for descriptor in manifests:
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
        target = image_spec.plain(descriptor)
        if not names and target["mediaType"] in image_spec.MANIFESTS:
            manifest = image_spec.manifest(image_spec.decode(sink.read(target["digest"]), "manifest"))
            names = by_config.get(manifest["config"]["digest"], [])
        known = images.setdefault(target["digest"], ArchiveImage([], target))
        known.names.extend(name for name in names if name not in known.names)
    return list(images.values())


def _docker_images(
    table: list[Json],
    entries: _Entries,
    sink: Sink,
    compress: Callable[[str], tuple[str, int]] | None = None,
) -> list[ArchiveImage]:
    images = []
    for row in table:
        config_entry = entries.get(row["Config"])
        if config_entry is None:
            raise ArchiveError(f"manifest.json names {row['Config']}, which is not in the archive")
        if config_entry.size > image_spec.CONFIG_SIZE_LIMIT:
            raise ArchiveError(f"image configuration {row['Config']} is too large")
        config = image_spec.config(
            image_spec.decode(sink.read(config_entry.digest), "image configuration"), len(row["Layers"])
        )
        layers = []
        for path, diff_id in zip(row["Layers"], config["rootfs"]["diff_ids"]):
            entry = entries.get(path)
            if entry is None:
                raise ArchiveError(f"manifest.json names {path}, which is not in the archive")
            if not entry.compression and entry.digest != diff_id:
                raise ArchiveError(f"layer {path} has digest {entry.digest}, its configuration says {diff_id}")
            if compress and not entry.compression:
                entry = Entry(*compress(entry.digest), "gzip")
            suffix = {"": "", "gzip": ".gzip", "zstd": ".zstd"}.get(entry.compression)
            if suffix is None:
                raise ArchiveError(f"layer {path} is compressed with {entry.compression}; gzip and zstd are read")
            layers.append({"mediaType": image_spec.DOCKER_LAYER + suffix, "digest": entry.digest, "size": entry.size})
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


def _older_table(entries: _Entries, sink: Sink) -> list[Json]:
    """What manifest.json would say of an archive from before it: each image's configuration is put together from
    those of its layers, and stored."""
    table = _table(entries.tables["repositories"], "repositories")
    if not isinstance(table, dict) or not all(
        isinstance(tags, dict) and all(isinstance(identity, str) for identity in tags.values())
        for tags in table.values()
    ):
        raise ArchiveError("repositories is not an object of tags and the images that they name")
    named: dict[str, list[str]] = {}
    for name, tags in table.items():
        for tag, identity in tags.items():
            named.setdefault(identity, []).append(f"{name}:{tag}")
    return [_older_image(identity, names, entries, sink) for identity, names in named.items()]


def _older_image(identity: str, names: list[str], entries: _Entries, sink: Sink) -> Json:
    parts: list[Json] = []  # from the top down
    at = identity
    while at:
        if len(parts) >= PARENTS_LIMIT:
            raise ArchiveError(f"repositories: image {identity} has more than {PARENTS_LIMIT} parents")
        text = entries.text(f"{at}/json")
        if text is None:
            raise ArchiveError(f"repositories: image {identity} needs {at}/json, which is not in the archive")
        part = image_spec.decode(text, f"{at}/json")
        parts.append({**part, "id": at})
        at = part.get("parent") or ""
        if not isinstance(at, str):
            raise ArchiveError(f"{parts[-1]['id']}/json has a parent that is no text")
    layers = [f"{part['id']}/layer.tar" for part in reversed(parts)]
    diff_ids = []
    for path in layers:
        entry = entries.get(path)
        if entry is None:
            raise ArchiveError(f"repositories: image {identity} needs {path}, which is not in the archive")
        if entry.compression:
            raise ArchiveError(f"layer {path} is compressed, which this form of archive does not have")
        diff_ids.append(entry.digest)
    left_out = ("id", "parent", "parent_id", "layer_id", "Size", "throwaway")
    config = {key: value for key, value in parts[0].items() if key not in left_out}
    config.setdefault("os", "linux")
    config["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    config["history"] = [_older_history(part) for part in reversed(parts)]
    encoded = image_spec.encode(config)
    if len(encoded) > image_spec.CONFIG_SIZE_LIMIT:
        raise ArchiveError(f"image configuration of {identity} is too large")
    path = f"{identity}.json"
    entries.add(io.BytesIO(encoded), len(encoded), path)
    return {"Config": path, "RepoTags": names, "Layers": layers}


def _older_history(part: Json) -> Json:
    own = part.get("container_config")
    command = own.get("Cmd") if isinstance(own, dict) else None
    words = [str(word) for word in command] if isinstance(command, list) else []
    told = {
        "created": part.get("created"),
        "author": part.get("author"),
        "created_by": " ".join(words),
        "comment": part.get("comment"),
    }
    return {key: value for key, value in told.items() if isinstance(value, str) and value}


class ExportImage(NamedTuple):
    """What `write` needs of an image: full names, top descriptor, and every blob below it, once."""

    names: list[str]
    target: image_spec.Descriptor
    blobs: list[image_spec.Descriptor]
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
            entry = image_spec.plain(image.target)
            if name:
                parsed = reference.parse(name)
                entry["annotations"] = {NAME_ANNOTATION: name, REF_ANNOTATION: parsed.tag}
                if parsed.tag:
                    tags.append(parsed.familiar())
                    repositories.setdefault(parsed.familiar_name, {})[parsed.tag] = image.config_digest.partition(":")[
                        2
                    ]
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
    yield from _file(
        "index.json", image_spec.encode({"schemaVersion": 2, "mediaType": image_spec.OCI_INDEX, "manifests": manifests})
    )
    if for_docker:
        yield from _file("manifest.json", _encode_list(table))
    yield from _file("oci-layout", LAYOUT)
    if repositories and for_docker:
        yield from _file("repositories", image_spec.encode(repositories))
    yield b"\0" * 1024


def _encode_list(value: list[Any]) -> bytes:
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
