# SPDX-License-Identifier: Apache-2.0
"""What is mounted into a container: -v, --mount, --tmpfs, --volumes-from and the image's volumes.

`collect` (called by create) makes one list of mount points in the API's form, which is part of the
record; `for_spec` (called at each start) turns it into mounts of the runtime specification.

A mount point has what inspect shows, and below its options what only we need (containers/state.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from teu.engine.containers import runtimes
from teu.engine.containers.state import MountOptions, MountPoint
from teu.engine.core.errors import BadRequest, EngineError, NotFound
from teu.engine.core.fields import BindOptions, DriverConfig, Mount, TmpfsOptions, VolumeOptions
from teu.engine.core.managed import KNOWN
from teu.engine.files import rootfs
from teu.linux.mounts import MNT_DETACH, MS_SLAVE, mount_setattr, move_mount, open_tree, umount2

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine
    from teu.engine.volumes.store import Volume
    from teu.oci.runtime_spec import Object

PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
# Beside a container's runtime folder, which is removed with all that is in it: for parts of volumes, and images.
PARTS = ".parts"
# Runtimes that know the mount option rro.
RECURSIVE_READ_ONLY = ("io.containerd.teu.v2", "io.containerd.runc.v2")
# What the third part of -v may have: one of each line.
MODES = (
    ("ro", "rw"),
    ("z", "Z"),  # labels of SELinux, which nothing of ours confines containers by
    ("nocopy", "volume-nocopy"),
    ("consistent", "cached", "delegated"),  # macOS
    PROPAGATIONS,
)


def _destination(path: str, text: str, kind: str) -> str:
    prefix = f"invalid volume specification: '{text}': invalid mount config for type \"{kind}\": " if text else ""
    if not path.startswith("/"):
        raise BadRequest(f"{prefix}invalid mount path: '{path}' mount path must be absolute")
    clean = posixpath.normpath(path).replace("//", "/")
    if clean == "/":
        raise BadRequest(f"{prefix}invalid specification: destination can't be '/'")
    return clean


def _modes(text: str) -> tuple[bool, str, bool]:
    """read-write, propagation, nocopy of the third part of -v."""
    words = [word for word in text.split(",") if word]
    chosen = [[word for word in words if word in line] for line in MODES]
    if sum(map(len, chosen)) < len(words) or any(len(found) > 1 for found in chosen):
        raise BadRequest(f"invalid mode: {text}")
    access, _, copying, _, propagation = chosen
    return access != ["ro"], "".join(propagation), bool(copying)


def _bind(source: str, destination: str, mode: str, writable: bool, propagation: str) -> MountPoint:
    return MountPoint(
        type="bind",
        source=source,
        destination=destination,
        mode=mode,
        rw=writable,
        propagation=propagation or "rprivate",
    )


def _volume(volume: Volume, destination: str, mode: str, writable: bool, options: MountOptions) -> MountPoint:
    return MountPoint(
        type="volume",
        name=volume.name,
        source=volume.mountpoint,
        destination=destination,
        driver=volume.driver,
        mode=mode,
        rw=writable,
        options=options,
    )


def collect(engine: Engine, container: Container, deep: bool = True) -> list[MountPoint]:
    """All mount points of a new container. Makes the volumes; the caller releases them if it fails later.

    Read-only mounts are so with all that is mounted below them, unless they say otherwise or `deep` is false (before
    API 1.44)."""
    host = container.host_config
    points = {
        point.destination: point
        for entry in host.volumes_from or ()
        for point in _from_container(engine, container, entry)
    }
    explicit: set[str] = set()

    def claim(destination: str) -> None:
        if destination in explicit:
            raise BadRequest(f"Duplicate mount point: {destination}")
        explicit.add(destination)

    def add(point: MountPoint) -> None:
        claim(point.destination)
        points[point.destination] = point

    for text in host.binds or ():
        add(_from_bind(engine, container, text))
    for entry in host.mounts or ():
        add(_from_mount(engine, container, entry))
    for path, options in (host.tmpfs or {}).items():
        destination = _destination(path, "", "tmpfs")
        claim(destination)
        _tmpfs_options(options)
        points.pop(destination, None)
    for path in container.config.volumes or {}:
        destination = _destination(path, path, "volume")
        if destination not in points and destination not in explicit:
            points[destination] = _anonymous(engine, container, destination)
    for point in points.values():
        if not point.rw and point.type != "tmpfs":
            point.options.shallow = bool(point.options.shallow) or not deep
    return list(points.values())


def one(engine: Engine, container: Container, asked: Mount | str) -> MountPoint:
    """The mount point of one of HostConfig's Mounts or Binds; its volume is made. Raises BadRequest, Conflict."""
    point = _from_bind(engine, container, asked) if isinstance(asked, str) else _from_mount(engine, container, asked)
    if not point.rw and point.type != "tmpfs":
        point.options.shallow = bool(point.options.shallow)
    return point


def place(asked: Mount | str) -> str:
    """Where one of HostConfig's Mounts or Binds is, in the container."""
    if not isinstance(asked, str):
        return posixpath.normpath(asked.target or "/")
    parts = asked.split(":")
    return posixpath.normpath(parts[0] if len(parts) == 1 else parts[1])


def _anonymous(engine: Engine, container: Container, destination: str) -> MountPoint:
    volume = engine.volumes.ensure(None, container_id=container.id)
    return _volume(volume, destination, "", True, MountOptions(copy_image=True, anonymous=True))


def _from_bind(engine: Engine, container: Container, text: str) -> MountPoint:
    parts = text.split(":")
    if len(parts) == 1:
        return _anonymous(engine, container, _destination(parts[0], text, "volume"))
    if len(parts) > 3 or not parts[0] or not parts[1]:
        raise BadRequest(f"invalid volume specification: '{text}'")
    mode = parts[2] if len(parts) == 3 else ""
    writable, propagation, nocopy = _modes(mode)
    destination = _destination(parts[1], text, "bind" if parts[0].startswith("/") else "volume")
    kind, foreign = ("bind", nocopy and "nocopy") if parts[0].startswith("/") else ("volume", propagation)
    if foreign:
        raise BadRequest(
            f"invalid volume specification: '{text}': invalid mount config for type \"{kind}\": {foreign} is not for it"
        )
    if kind == "bind":
        point = _bind(posixpath.normpath(parts[0]), destination, mode, writable, propagation)
        point.options = MountOptions(create=True)
        return _of_the_engine(engine, point, propagation)
    volume = engine.volumes.ensure(parts[0], host_driver(container), container_id=container.id)
    return _volume(volume, destination, mode or "z", writable, MountOptions(copy_image=not nocopy))


def _of_the_engine(engine: Engine, point: MountPoint, propagation: str) -> MountPoint:
    """A bind mount with the engine's own folder in it (`-v /:/host`), or of a part of it, is a slave of the host's
    mounts, so that no container holds what others have mounted. Raises BadRequest."""
    root, source = str(engine.config["data-root"]), point.source
    if not f"{root}/".startswith(f"{source.rstrip('/')}/") and not source.startswith(f"{root}/"):
        return point
    if propagation not in ("", "rslave", "rshared"):
        raise BadRequest(
            'invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within'
            f' the daemon root, daemon root: "{root}", bind mount source: "{source}", propagation: "{propagation}"'
        )
    if not propagation:
        point.propagation = "rslave"
        point.options.where_possible = True
    return point


def host_driver(container: Container) -> str:
    return container.host_config.volume_driver


def _bad(kind: str, text: str) -> BadRequest:
    return BadRequest(f'invalid mount config for type "{kind}": {text}')


def _from_mount(engine: Engine, container: Container, entry: Mount) -> MountPoint:
    kind = entry.type or "volume"
    makers = {
        "bind": _from_bind_mount,
        "volume": _from_volume_mount,
        "tmpfs": _from_tmpfs_mount,
        "image": _from_image_mount,
    }
    if kind not in makers:
        raise _bad(kind, f"mount type unknown; there are {', '.join(makers)}")
    for name, of, options in (
        ("BindOptions", "bind", entry.bind_options),
        ("VolumeOptions", "volume", entry.volume_options),
        ("TmpfsOptions", "tmpfs", entry.tmpfs_options),
        ("ImageOptions", "image", entry.image_options),
        ("ClusterOptions", "cluster", entry.cluster_options),
    ):
        if options is not None and of != kind:
            raise _bad(kind, f"{name} must not be specified on this type")
    target = entry.target or ""
    if not target:
        raise _bad(kind, "field Target must not be empty")
    if not target.startswith("/"):
        raise _bad(kind, f"invalid mount path: '{target}' mount path must be absolute")
    destination = posixpath.normpath(target)
    if destination == "/":
        raise _bad(kind, "invalid specification: destination can't be '/'")
    return makers[kind](engine, container, entry, destination)


def _from_bind_mount(engine: Engine, _container: Container, entry: Mount, destination: str) -> MountPoint:
    options, source = entry.bind_options or BindOptions(), entry.source or ""
    if not source:
        raise _bad("bind", "field Source must not be empty")
    if not source.startswith("/"):
        raise _bad("bind", f"invalid mount path: '{source}' mount path must be absolute")
    propagation = options.propagation or ""
    if propagation and propagation not in PROPAGATIONS:
        raise _bad("bind", f"invalid propagation mode: {propagation}")
    shallow, forced = bool(options.read_only_non_recursive), bool(options.read_only_force_recursive)
    if not entry.read_only and (shallow or forced):
        raise _bad("bind", "mount options conflict: ReadOnlyNonRecursive and ReadOnlyForceRecursive need ReadOnly")
    if shallow and forced:
        raise _bad("bind", "mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive")
    if not os.path.lexists(source) and not options.create_mountpoint:
        raise _bad("bind", f"bind source path does not exist: {source}")
    point = _bind(posixpath.normpath(source), destination, "", not entry.read_only, propagation)
    point.options = MountOptions(
        create=bool(options.create_mountpoint),
        nonrecursive=bool(options.non_recursive),
        shallow=shallow,
        deep=forced,
    )
    return _of_the_engine(engine, point, propagation)


def _from_volume_mount(engine: Engine, container: Container, entry: Mount, destination: str) -> MountPoint:
    options, source = entry.volume_options or VolumeOptions(), entry.source or ""
    if entry.read_only and not source:
        raise _bad("volume", "must not set ReadOnly mode when using anonymous volumes")
    subpath = options.subpath or ""
    _check_subpath("volume", subpath)
    driver = options.driver_config or DriverConfig()
    volume = engine.volumes.ensure(source or None, driver.name or "", driver.options, options.labels, container.id)
    how = MountOptions(copy_image=not options.no_copy, anonymous=not source, subpath=subpath)
    return _volume(volume, destination, "z", not entry.read_only, how)


def _check_subpath(kind: str, subpath: str) -> None:
    if subpath and (subpath.startswith("/") or ".." in posixpath.normpath(subpath).split("/")):
        raise _bad(kind, f"subpath must be a relative path within the {kind}")


def _from_image_mount(engine: Engine, _container: Container, entry: Mount, destination: str) -> MountPoint:
    """Always read-only, as docker has it. The image is the one that has the name now."""
    source = entry.source or ""
    if not source:
        raise _bad("image", "field Source must not be empty")
    subpath = (entry.image_options.subpath if entry.image_options else None) or ""
    _check_subpath("image", subpath)
    image = engine.images.resolve(source)
    return MountPoint(
        type="image",
        name=source,
        source=image.id,
        destination=destination,
        rw=False,
        propagation="rprivate",
        options=MountOptions(subpath=subpath, chain=image.chain_id),
    )


def _from_tmpfs_mount(_engine: Engine, _container: Container, entry: Mount, destination: str) -> MountPoint:
    if entry.source:
        raise _bad("tmpfs", "field Source must not be specified")
    options = entry.tmpfs_options or TmpfsOptions()
    size = options.size_bytes or 0
    if size < 0:
        raise _bad("tmpfs", f"the size of a tmpfs is a number of bytes, and not {size}")
    words = [f"size={size}"] if size else []
    words += [f"mode={options.mode:o}"] if options.mode else []
    words += ["=".join(option or ()) for option in options.options or ()]
    return MountPoint(
        type="tmpfs",
        destination=destination,
        rw=not entry.read_only,
        options=MountOptions(tmpfs=_tmpfs_options(",".join(words))),
    )


def _from_container(engine: Engine, container: Container, entry: str) -> list[MountPoint]:
    reference, _, mode = entry.partition(":")
    if mode not in ("", "ro", "rw", "z", "Z"):
        raise BadRequest(f"invalid mode for volumes-from: {mode}")
    other = engine.containers.find(reference)
    if other is None:
        raise NotFound(f"No such container: {reference}")
    result = []
    for point in other.mounts:
        own = point.copy()
        own.rw, own.mode = point.rw and mode != "ro", mode or point.mode
        own.options = point.options.copy()
        own.options.copy_image = False
        if point.type == "volume":
            engine.volumes.ensure(point.name, point.driver or "local", container_id=container.id)
        result.append(own)
    return result


def _tmpfs_options(text: str) -> list[str]:
    words = ["noexec", "nosuid", "nodev", "rprivate"]
    opposite = {
        "exec": "noexec",
        "suid": "nosuid",
        "dev": "nodev",
        "noexec": "exec",
        "nosuid": "suid",
        "nodev": "dev",
        "rw": "ro",
        "ro": "rw",
    }
    valued = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol")
    flags = {
        "defaults",
        "sync",
        "async",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        *opposite,
        *PROPAGATIONS,
    }
    for word in filter(None, (part.strip() for part in text.split(","))):
        if word.partition("=")[0] not in valued and word not in flags:
            raise BadRequest(f'invalid tmpfs option "{word}"')
        if opposite.get(word) in words:
            words.remove(opposite[word])
        if word in PROPAGATIONS:
            words = [known for known in words if known not in PROPAGATIONS]
        if word not in words and word != "defaults":
            words.append(word)
    return words


def for_spec(engine: Engine, container: Container, sources: contextlib.ExitStack) -> list[Object]:
    """Mounts of the specification for all mount points, shorter paths first. Makes missing bind sources."""
    drop_parts(container.runtime_directory)  # of a start that did not come to its end
    result = []
    for point in container.mounts:
        access = _access(engine, container, point)
        if point.type == "tmpfs":
            words = point.options.tmpfs or []
            if "noexec" not in words and "exec" not in words:  # of a record that was made before these were in it
                words = ["noexec", "nosuid", "nodev", "rprivate", *words]
            result.append(_mount(point.destination, "tmpfs", "tmpfs", [*words, *access]))
        else:
            source = _source(engine, container, point, sources)
            recursive = "bind" if point.options.nonrecursive else "rbind"
            options = [recursive, _propagation(source, point), *access]
            result.append(_mount(point.destination, "bind", source, options))
    for path, text in (container.host_config.tmpfs or {}).items():
        result.append(_mount(posixpath.normpath(path), "tmpfs", "tmpfs", _tmpfs_options(text)))
    return sorted(result, key=lambda mount: str(mount["destination"]).count("/"))


def _access(engine: Engine, container: Container, point: MountPoint) -> list[str]:
    """The option for a read-only mount, if it is one. Raises BadRequest where it cannot be as deep as was asked for."""
    if point.rw:
        return []
    if point.type == "tmpfs" or point.options.shallow is None or point.options.shallow:
        return ["ro"]
    runtime = container.host_config.runtime
    found = runtimes.find(runtime, engine.config)
    if found.shim in RECURSIVE_READ_ONLY and not found.path:
        return ["rro"]
    if point.options.deep:
        raise BadRequest(f"runtime {runtime} is not known to mount recursively read-only")
    return ["ro"]


def _source(engine: Engine, container: Container, point: MountPoint, sources: contextlib.ExitStack) -> str:
    """The host's path of what is mounted, which is there. Volumes are mounted for that."""
    source = point.source
    if point.type == "image":
        source = _image(engine, container, point, sources)
    if point.type == "volume":
        source = point.source = engine.volumes.mount(
            point.name or "", container.id, point.destination, point.rw, point.propagation
        )
        if point.options.subpath or KNOWN.tree_of(source)[0]:
            part = point.copy()
            part.source = source
            source = _part(container, part, sources)
    rootfs.check_source(source, point.options.create and point.type == "bind", point.type)
    return source


def _propagation(source: str, point: MountPoint) -> str:
    propagation = point.propagation or "rprivate"
    if point.type == "bind":
        try:
            _check_propagation(source, propagation)
        except EngineError:
            if not point.options.where_possible:
                raise
            return "rprivate"
    return propagation


def _check_propagation(source: str, propagation: str) -> None:
    """What is shared with the container must be shared (for slaves: or a slave) on the host. Raises EngineError."""
    wanted = {"shared": ("shared:",), "slave": ("shared:", "master:")}.get(propagation.removeprefix("r"))
    if not wanted:
        return
    place, tags = "/", []
    path = os.path.realpath(source)
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields = line.split()
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(place):
                place, tags = point, fields[6 : fields.index("-")]
    if not any(tag.startswith(wanted) for tag in tags):
        kind = " or ".join(word.strip(":").replace("master", "slave") for word in wanted)
        raise EngineError(f"path {source} is mounted on {place} but it is not a {kind} mount")


def root_propagation(mount_list: list[Object]) -> str:
    """linux.rootfsPropagation: what the container's mounts need of its root to reach, or be reached from, the host."""
    words = {word.removeprefix("r") for mount in mount_list if mount["type"] == "bind" for word in mount["options"]}
    return "shared" if "shared" in words else "rslave" if "slave" in words else ""


def _part(container: Container, point: MountPoint, sources: contextlib.ExitStack) -> str:
    """A part of a volume, or one of a managed plugin, bound to a place of the engine's until `sources` is closed: the
    runtime looks it up again, and a container that has the volume, or the plugin, could have put a link there by then.

    It is a slave of what is there: what is unmounted with the place stays mounted in the volume."""
    try:
        descriptor = rootfs.open_volume(point)
    except OSError as error:
        raise _no_part(point, error) from None
    try:
        tree = open_tree(descriptor, "", recursive=True)
    finally:
        os.close(descriptor)
    try:
        mount_setattr(tree, 0, propagation=MS_SLAVE, recursive=True)
        return _placed(container, tree, sources)
    finally:
        os.close(tree)


def _image(engine: Engine, container: Container, point: MountPoint, sources: contextlib.ExitStack) -> str:
    """An image, or a part of it, mounted at a place of the engine's until `sources` is closed."""
    try:
        tree = rootfs.image_tree(engine, container, point)
    except OSError as error:
        raise _no_part(point, error) from None
    try:
        return _placed(container, tree, sources)
    finally:
        os.close(tree)


def _placed(container: Container, tree: int, sources: contextlib.ExitStack) -> str:
    """Where a detached mount is put for the runtime."""
    place = _place(container, tree, sources)
    spot = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        move_mount(tree, spot, place)
    finally:
        os.close(spot)
    return place


def _no_part(point: MountPoint, error: OSError) -> EngineError:
    subpath = point.options.subpath
    if not subpath:
        what = "does not exist" if error.errno == errno.ENOENT else f"is of no use ({(error.strerror or '').lower()})"
        return BadRequest(f'invalid mount config for type "{point.type}": bind source path {what}: {point.source}')
    reason = f"cannot access path {subpath}: {(error.strerror or '').lower()}"
    if error.errno == errno.EXDEV:
        reason = "path concatenation escapes the base directory"
    return EngineError(f"subpath {subpath!r} of the {point.type}: {reason}")


def _place(container: Container, shown: int, sources: contextlib.ExitStack) -> str:
    """A new folder, or a file, to mount there what the descriptor shows."""
    sources.callback(drop_parts, container.runtime_directory)
    folder = Path(container.runtime_directory + PARTS)
    folder.mkdir(mode=0o700, exist_ok=True)
    place = folder / str(len(os.listdir(folder)))
    if stat.S_ISDIR(os.fstat(shown).st_mode):
        place.mkdir()
    else:
        place.touch()
    return str(place)


def drop_parts(runtime_directory: str) -> None:
    """Unmount the images and parts of volumes that were there for a start of the container. Idempotent. Removes nothing
    that is still mounted."""
    folder = runtime_directory + PARTS
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            place = f"{folder}/{name}"
            with contextlib.suppress(OSError):
                umount2(place, MNT_DETACH)
            if os.path.isdir(place):
                os.rmdir(place)
            else:
                os.unlink(place)
        os.rmdir(folder)


def _mount(destination: str, kind: str, source: str, options: list[str]) -> Object:
    return {"destination": destination, "type": kind, "source": source, "options": options}
