# SPDX-License-Identifier: Apache-2.0
"""Images as archives of the form that `docker save` writes, and what a container has changed as a layer.

An overlay's upper folder says it in the kernel's words (a device 0/0 for what is gone, trusted.overlay.opaque for a
folder that hides the one below); a layer says it in names: .wh.NAME, and .wh..wh..opq in the folder (OCI image-spec,
layer.md, "Whiteouts")."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat

from teu.linux import inside, trees
from teu.oci import jsontext, tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

BLOCK = 1 << 18
TYPES = (
    (stat.S_ISREG, tar.REGULAR),
    (stat.S_ISLNK, tar.SYMLINK),
    (stat.S_ISDIR, tar.DIRECTORY),
    (stat.S_ISCHR, tar.CHARACTER),
    (stat.S_ISBLK, tar.BLOCK_DEVICE),
    (stat.S_ISFIFO, tar.FIFO),
)
REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")


class Layer:
    """A layer's tar of `size` bytes; `read` gives them anew each time."""

    def __init__(self, size: int, read: Callable[[], Iterator[bytes]]) -> None:
        self.size = size
        self.read = read


def file(name: str, size: int, content: Iterable[bytes]) -> Iterator[bytes]:
    """A file of an archive."""
    entry = tar.Entry()
    entry.name, entry.size, entry.mode = name, size, 0o644
    yield tar.pack(entry)
    written = 0
    for piece in content:
        written += len(piece)
        yield piece
    if written != size:
        raise OSError(errno.EIO, f"{name} has {written} bytes, {size} were expected")
    yield bytes(-size % tar.BLOCK)


def archive(config: bytes, layers: list[Layer]) -> Iterator[bytes]:
    """An image: its configuration as it stands, so that its id stays, and its layers, the lowest first. It has no
    name: names that are taken would move."""
    described = f"{hashlib.sha256(config).hexdigest()}.json"
    yield from file(described, len(config), [config])
    for number, layer in enumerate(layers):
        yield from file(f"{number}/layer.tar", layer.size, layer.read())
    table = [{"Config": described, "RepoTags": None, "Layers": [f"{n}/layer.tar" for n in range(len(layers))]}]
    data = jsontext.dumps(table).encode("utf-8", "surrogateescape")
    yield from file("manifest.json", len(data), [data])
    yield bytes(2 * tar.BLOCK)


def with_changes(config: bytes, layers: list[Layer], container: str, folder: str) -> tuple[bytes, list[Layer]]:
    """An image's configuration and layers with one more: what a container has changed."""
    digest, size = hashlib.sha256(), 0
    for piece in changes(folder):
        digest.update(piece)
        size += len(piece)
    document: dict[str, Any] = jsontext.loads(config)
    document["rootfs"]["diff_ids"].append("sha256:" + digest.hexdigest())
    history = {"created_by": "teu system import-docker", "comment": f"changes of the container {container}"}
    document.setdefault("history", []).append(history)
    added = Layer(size, lambda: changes(folder))
    return jsontext.dumps(document).encode("utf-8", "surrogateescape"), [*layers, added]


def image_name(container: str, identity: str) -> str:
    """The name of the image that a container's changes become."""
    name = container.lower()
    return f"imported/{name if REPOSITORY.fullmatch(name) else identity[:12]}:latest"


def has_changes(folder: str, mounts: Iterable[str]) -> bool:
    """Whether a container has changed anything but for the folders and empty files that its own mounts stand on."""
    places = [os.fsencode(place.strip("/")) for place in mounts]
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, _, _, status in trees.walk(top, mounts=False):
            on_the_way = any(place == path or place.startswith(path + b"/") for place in places)
            empty = stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and not status.st_size)
            if not (on_the_way and empty):
                return True
    finally:
        os.close(top)
    return False


def changes(folder: str) -> Iterator[bytes]:
    """The layer's tar of an overlay's upper folder."""
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    linked: dict[tuple[int, int], str] = {}
    try:
        for path, parent, name, status in trees.walk(top, mounts=False):
            yield from _entry(path, parent, os.fsdecode(name), status, linked)
    finally:
        os.close(top)
    yield bytes(2 * tar.BLOCK)


def _entry(
    path: bytes, parent: int, name: str, status: os.stat_result, linked: dict[tuple[int, int], str]
) -> Iterator[bytes]:
    entry = tar.Entry()
    entry.name = os.fsdecode(path)
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        folder, _, last = entry.name.rpartition("/")
        entry.name = f"{folder}/.wh.{last}" if folder else f".wh.{last}"
        yield tar.pack(entry)
        return
    entry.type = next((kind for is_such, kind in TYPES if is_such(status.st_mode)), b"")
    if not entry.type:
        return  # a socket, which no layer has
    entry.mode, entry.uid, entry.gid, entry.mtime = status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns
    if entry.type in (tar.CHARACTER, tar.BLOCK_DEVICE):
        entry.devmajor, entry.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    if entry.type == tar.SYMLINK:
        entry.link = os.readlink(name, dir_fd=parent)
        yield tar.pack(entry)
        return
    if entry.type != tar.DIRECTORY and status.st_nlink > 1:
        first = linked.setdefault((status.st_dev, status.st_ino), entry.name)
        if first != entry.name:
            entry.type, entry.link = tar.HARD_LINK, first
            yield tar.pack(entry)
            return
    if entry.type not in (tar.DIRECTORY, tar.REGULAR):
        yield tar.pack(entry)
        return
    opened = inside.open_beneath(parent, name, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        attributes = {key: os.getxattr(opened, key) for key in os.listxattr(opened)}
        kept = {key: value for key, value in attributes.items() if key.startswith(("user.", "security.capability"))}
        entry.xattrs = {key: value for key, value in kept.items() if not key.startswith("user.overlay.")} or None
        if entry.type == tar.DIRECTORY:
            entry.name += "/"
            yield tar.pack(entry)
            if attributes.get("trusted.overlay.opaque") == b"y" or attributes.get("user.overlay.opaque") == b"y":
                mark = tar.Entry()
                mark.name = entry.name + ".wh..wh..opq"
                yield tar.pack(mark)
            return
        entry.size = status.st_size
        yield tar.pack(entry)
        left = entry.size
        while left and (block := os.read(opened, min(BLOCK, left))):
            left -= len(block)
            yield block
        if left:
            raise OSError(errno.EIO, f"{entry.name} has become shorter while it was read")
        yield bytes(-entry.size % tar.BLOCK)
    finally:
        os.close(opened)
