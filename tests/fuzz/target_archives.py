# SPDX-License-Identifier: Apache-2.0
"""Archives: tar of every dialect, whole and damaged, compressed and cut, through every reader that there is."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
import random
import shutil
import tarfile
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz import apiwire, shapes, tars
from fuzz.frame import Run, target

SLOW_SECONDS = 20  # for an input of some KiB, on a machine that has much else to do


class Trouble(Exception):
    """What must not be."""


def _fed(data: bytes, random: random.Random) -> Callable[[], bytes]:
    """The data in chunks of any size."""
    stream = io.BytesIO(data)
    size = random.choice((1, 7, 511, 512, 513, 4096, 1 << 20))
    return lambda: stream.read(size)


@target(
    "archives-read", "tar headers of every dialect, compressed, cut and damaged, through the readers alone", alone=True
)
def read(run: Run) -> None:
    from teu.oci import archive, tar

    while run.going():
        data = tars.archive(run.random, odd=run.random.choice((0.0, 0.05, 0.3)))
        valid = run.random.random() < 0.5
        if not valid:
            data = shapes.damaged(run.random, data)
        packed = shapes.compressed(run.random, data)
        run.trying(packed)
        began = time.monotonic()
        for reader in (_entries, _layers, _image):
            try:
                reader(packed, data, run.random)
            except (tar.TarError, archive.ArchiveError):
                pass
            except Exception as error:
                if not _told(error):
                    run.finding(f"{reader.__name__}: {type(error).__name__}: {error}"[:200], packed)
        if time.monotonic() - began > SLOW_SECONDS:
            run.finding("an archive took longer than it should", packed)


def _told(error: Exception) -> bool:
    """Whether an error is one that a reader gives on purpose."""
    from teu.containerd.layers import streams, unpack
    from teu.oci import archive, image_spec, reference, tar

    known: list[type] = [tar.TarError, archive.ArchiveError, streams.StreamError, unpack.LayerError, Trouble]
    known += [
        image_spec.SpecError,
        *(kind for kind in vars(reference).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    ]
    return type(error) in known and not isinstance(error, Trouble)


def _entries(packed: bytes, data: bytes, random: random.Random) -> None:
    """tar.entries itself, on what was not compressed: every entry is told in the kernel's bounds, its data is there,
    and what is written of it is read back the same."""
    from teu.oci import tar

    source = tar.Source(_fed(data, random))
    given = 0
    for entry, stored in tar.entries(source):
        if not (0 <= entry.uid < 2**32 and 0 <= entry.gid < 2**32 and 0 <= entry.size < 2**63 and stored >= 0):
            raise Trouble("an entry is out of bounds")
        if "\0" in entry.name + entry.link or not 0 <= entry.mode <= 0o7777:
            raise Trouble("an entry has a bad name or mode")
        if any("\0" in name for name in entry.xattrs or ()):
            raise Trouble("an entry has an attribute with a zero byte in its name")
        for piece in source.pieces(stored):
            given += len(piece)
        if entry.sparse is None:
            _read_back(entry)
    source.drain()
    if given > len(data):
        raise Trouble("more came out than has come in")


def _read_back(entry: Any) -> None:
    from teu.oci import tar

    if not entry.name or entry.type not in (b"0", b"1", b"2", b"3", b"4", b"5", b"6"):
        return
    parts = [tar.pack(entry), tar.END]
    again, _ = next(tar.entries(tar.Source(lambda: parts.pop(0) if parts else b"")))
    for field in ("name", "type", "mode", "uid", "gid", "link", "xattrs"):
        if getattr(entry, field) != getattr(again, field) and not (field == "type" and entry.name.endswith("/")):
            raise Trouble(f"{field} is not what was written: {getattr(entry, field)!r}: {getattr(again, field)!r}")


def _layers(packed: bytes, data: bytes, random: random.Random) -> None:
    """As a layer's worker reads: inflated in a thread."""
    from teu.containerd.layers import streams
    from teu.oci import tar

    with tempfile.TemporaryFile() as file:
        file.write(packed)
        file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        inflated = streams.Inflated(file.fileno())
        try:
            source = tar.Source(inflated.next_chunk)
            for _, stored in tar.entries(source):
                source.skip(stored)
            source.drain()
            if inflated.digests()[0] != "sha256:" + hashlib.sha256(packed).hexdigest():
                raise Trouble("the digest is not that of what was read")
        finally:
            with contextlib.suppress(Exception):
                while inflated.next_chunk():  # or its threads would wait for ever
                    pass
            inflated._inflater.join()


class _Sink:
    """A content store in memory."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def store(self, stream: Any, size: int, expected: str, name: str) -> str:
        from teu.oci import archive

        data = b""
        while len(data) < size and (more := stream.read(size - len(data))):
            data += more
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if expected and digest != expected:
            raise archive.ArchiveError(f"{name} has digest {digest}")
        self.blobs[digest] = data
        return digest

    def read(self, digest: str) -> bytes:
        return self.blobs[digest]


def _image(packed: bytes, data: bytes, random: random.Random) -> None:
    """As `load` reads."""
    from teu.oci import archive

    sink = _Sink()
    archive.read(io.BytesIO(packed), sink)
    if sum(map(len, sink.blobs.values())) > len(data) * 2 + (1 << 20):
        raise Trouble("more is kept than has come")


# ---- layers unpacked onto a file system ------------------------------------------------------------------------------


@target("archives-layers", "layers with links, whiteouts and odd names, unpacked by the worker; the host is as it was")
def layers(run: Run) -> None:
    from teu.containerd.layers import worker  # noqa: F401  (compiled before the clock counts)

    base = Path(tempfile.mkdtemp(prefix="fuzz-layers-", dir="/var/lib"))
    victim = Path("/tmp/fuzz-target")
    victim.mkdir(exist_ok=True)
    (victim / "a").write_text("as it was")
    os.chmod(victim / "a", 0o600)
    before = _picture(victim)
    tree = base / "tree"
    tree.mkdir()
    try:
        while run.going():
            data = tars.archive(run.random, most=14, odd=run.random.choice((0.0, 0.02)))
            if run.random.random() < 0.2:
                data = shapes.damaged(run.random, data, 1)
            run.trying(data)
            answer = _unpacked(data, tree, fresh=run.random.random() < 0.5)
            if answer:
                run.finding(f"unpack: {answer}"[:200], data)
            escaped = Path("/tmp/fuzz-escaped")
            if escaped.exists() or escaped.is_symlink() or _picture(victim) != before:
                run.finding("a layer has changed the host", data)
                with contextlib.suppress(OSError):
                    escaped.unlink()
                before = _picture(victim)
            if run.random.random() < 0.5:
                shutil.rmtree(tree)
                tree.mkdir()
    finally:
        shutil.rmtree(base)
        shutil.rmtree(victim)


def _picture(folder: Path) -> list[tuple[Any, ...]]:
    return [
        (str(path), found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns, found.st_nlink)
        for path in [folder, *sorted(folder.rglob("*"))]
        for found in [os.lstat(path)]
    ]


def _unpacked(data: bytes, tree: Path, fresh: bool) -> str:
    """Apply a layer in a process of its own, as the worker does; what is wrong with the way it ended."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        code, text = 1, ""
        try:
            os.close(read_end)
            ctypes.CDLL(None).alarm(60)
            from teu.containerd.layers import unpack
            from teu.oci import tar

            os.umask(0)
            root = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            empty = not any(os.scandir(tree))
            stream = tar.Source(_fed(data, random.Random(len(data))))
            before = len(os.listdir("/proc/self/fd"))
            try:
                unpack.Unpacker(root, fresh=fresh and empty).run(stream)
                stream.drain()
                if len(os.listdir("/proc/self/fd")) > before:
                    text = "descriptors are left open"
            except OSError as error:
                # what a file system refuses is told with the entry's name
                if "unpack" not in str(error):
                    text = f"OSError without the entry: {error}"
            except Exception as error:
                if not _told(error):
                    text = f"{type(error).__name__}: {error}"
            os.write(write_end, text.encode(errors="backslashreplace")[:4000])
            code = 0
        finally:
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answer:
        text = answer.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"ended by signal {os.WTERMSIG(status)}"
    return text or ("" if status == 0 else "ended without a word")


# ---- the whole way, through the daemons ------------------------------------------------------------------------------


@target(
    "archives", "load, import, cp into a container and a volume: archives of every dialect, compressed, cut and damaged"
)
def daemons(run: Run) -> None:
    import images

    images.need_busybox()
    name = "fuzz-archives"
    victim = Path("/tmp/fuzz-target")
    victim.mkdir(exist_ok=True)
    (victim / "a").write_text("as it was")
    before = _picture(victim)
    known = set(_image_ids())

    def clean() -> None:
        apiwire.call("DELETE", f"/containers/{name}?force=1&v=1")
        for identity in set(_image_ids()) - known:
            apiwire.call("DELETE", f"/images/{identity}?force=1")

    def new() -> None:
        apiwire.call("DELETE", f"/containers/{name}?force=1&v=1")
        status, answer, _ = apiwire.call(
            "POST",
            f"/containers/create?name={name}",
            {
                "Image": "busybox",
                "Cmd": ["sleep", "600"],
                "HostConfig": {"NetworkMode": "none", "Mounts": [{"Type": "volume", "Target": "/volume"}]},
            },
        )
        assert status == 201, answer

    new()  # what the first container leaves for those after it: the top of the image, folders
    with run.watched(clean=clean):
        new()
        count = 0
        while run.going():
            count += 1
            if count % 60 == 0:
                new()
            kind = run.random.randrange(4)
            if kind == 0 and (whole := image_archive(run.random)):
                data = whole
            else:
                data = tars.archive(run.random, odd=run.random.choice((0.0, 0.02, 0.2)))
            if run.random.random() < 0.3:
                data = shapes.damaged(run.random, data)
            data = shapes.compressed(run.random, data)
            if kind == 0:
                method, path = "POST", "/images/load?quiet=" + run.random.choice("01")
            elif kind == 1:
                path = f"/images/create?fromSrc=-&repo=fuzz{run.random.randrange(3)}&tag=x"
                method = "POST"
            else:
                place = run.random.choice(
                    ("/", "/tmp", "/volume", "/etc", "/bin/sh", "/nowhere", "/proc", "/tmp/link", "/d")
                )
                more = "".join(
                    f"&{word}=1" for word in ("noOverwriteDirNonDir", "copyUIDGID") if run.random.random() < 0.3
                )
                method, path = "PUT", f"/containers/{name}/archive?path={urllib.parse.quote(place)}{more}"
            run.trying({"request": f"{method} {path}", "body": repr(data)})
            case = f"{method} {path}\n{data!r}"
            try:
                status, body, seconds = apiwire.call(method, path, data, "application/x-tar")
            except OSError as error:
                run.finding(f"{path.partition('?')[0]}: no answer: {type(error).__name__}", case)
                continue
            if wrong := apiwire.wrong(status, body):
                run.finding(f"{method} {path.partition('?')[0]}: {wrong}"[:300], case)
            if seconds > SLOW_SECONDS:
                run.finding("an archive took longer than it should", case)
            if Path("/tmp/fuzz-escaped").exists() or _picture(victim) != before:
                run.finding("an archive has changed the host", case)
                with contextlib.suppress(OSError):
                    Path("/tmp/fuzz-escaped").unlink()
                before = _picture(victim)
            if kind == 2 and run.random.random() < 0.1:  # and what is there now can be fetched and compared
                for path in (f"/containers/{name}/archive?path=/", f"/containers/{name}/changes"):
                    status, body, _ = apiwire.call("GET", path)
                    if status != 200 or (wrong := apiwire.wrong(status, b"")):
                        run.finding(f"GET {path.rpartition('/')[2]} afterwards: {status} {body[:200]!r}", case)
    shutil.rmtree(victim)


def _image_ids() -> list[str]:
    status, body, _ = apiwire.call("GET", "/images/json?all=1")
    assert status == 200, body
    return [row["Id"] for row in json.loads(body)]


def image_archive(random: random.Random) -> bytes:
    """An archive of an image, as docker writes it or as an OCI layout, with a document of it changed."""
    layer = tars.archive(random, most=4, odd=0.0)
    if random.random() < 0.5:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as file:
            file.addfile(tarfile.TarInfo("a"), io.BytesIO(b""))
        layer = out.getvalue()

    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    def maybe(document: Any) -> bytes:
        return json.dumps(shapes.changed(random, document) if random.random() < 0.35 else document).encode()

    config = maybe(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"], "Labels": {"a": "b"}},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest(layer)]},
            "history": [{"created_by": "x"}],
        }
    )
    packed = shapes.compressed(random, layer) if random.random() < 0.4 else layer
    files: dict[str, bytes] = {}
    if random.random() < 0.5:
        files["manifest.json"] = maybe([{"Config": "c.json", "RepoTags": ["fuzz:1"], "Layers": ["l/layer.tar"]}])
        files["c.json"], files["l/layer.tar"] = config, packed
        if random.random() < 0.3:
            files["repositories"] = maybe({"fuzz": {"1": "l"}})
            files["l/json"] = maybe(
                {"id": "l", "parent": "", "created": "2020-01-01T00:00:00Z", "config": {"Cmd": ["a"]}}
            )
            if random.random() < 0.5:
                del files["manifest.json"]
    else:
        manifest = maybe(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": "sha256:" + digest(config),
                    "size": len(config),
                },
                "layers": [
                    {
                        "mediaType": "application/vnd.oci.image.layer.v1.tar",
                        "digest": "sha256:" + digest(packed),
                        "size": len(packed),
                    }
                ],
            }
        )
        index = maybe(
            {
                "schemaVersion": 2,
                "manifests": [
                    {
                        "mediaType": "application/vnd.oci.image.manifest.v1+json",
                        "digest": "sha256:" + digest(manifest),
                        "size": len(manifest),
                        "annotations": {"org.opencontainers.image.ref.name": "fuzz:2"},
                        "platform": {"os": "linux", "architecture": "amd64", "variant": "v1"},
                    }
                ],
            }
        )
        files["oci-layout"], files["index.json"] = maybe({"imageLayoutVersion": "1.0.0"}), index
        for blob in (config, packed, manifest):
            files["blobs/sha256/" + digest(blob)] = blob
    names = list(files)
    random.shuffle(names)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=random.choice((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT))) as file:
        for name in names:
            if random.random() < 0.02:
                continue
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            file.addfile(info, io.BytesIO(files[name]))
    return out.getvalue()
