# SPDX-License-Identifier: Apache-2.0
"""What is mounted into a container: -v, --mount, --tmpfs, --volumes-from and the image's volumes.

`collect` (called by create) makes one list of mount points in the API's form, which is part of the
record; `for_spec` (called at each start) turns it into mounts of the runtime specification.

A mount point has the keys that inspect shows, and below "Options" what only we need.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teu.engine.core.errors import BadRequest, EngineError, NotFound
from teu.engine.files import rootfs
from teu.linux.mounts import MNT_DETACH, MS_BIND, MS_REC, mount, umount2

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine
    from teu.engine.volumes.store import Volume

PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
# Beside a container's runtime folder, which is removed with all that is in it: where parts of volumes are bound.
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
OPTIONS_OF = {"BindOptions": "bind", "VolumeOptions": "volume", "TmpfsOptions": "tmpfs"}


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


def _bind(source: str, destination: str, mode: str, writable: bool, propagation: str) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": source,
        "Destination": destination,
        "Mode": mode,
        "RW": writable,
        "Propagation": propagation or "rprivate",
    }


def _volume(volume: Volume, destination: str, mode: str, writable: bool) -> dict[str, Any]:
    return {
        "Type": "volume",
        "Name": volume.name,
        "Source": volume.mountpoint,
        "Destination": destination,
        "Driver": volume.driver,
        "Mode": mode,
        "RW": writable,
        "Propagation": "",
    }


def collect(engine: Engine, container: Container, deep: bool = True) -> list[dict[str, Any]]:
    """All mount points of a new container. Makes the volumes; the caller releases them if it fails later.

    Read-only mounts are so with all that is mounted below them, unless they say otherwise or `deep` is false (before
    API 1.44)."""
    host = container.host_config
    points: dict[str, dict[str, Any]] = {}
    for entry in host["VolumesFrom"] or ():
        for point in _from_container(engine, container, entry):
            points[point["Destination"]] = point
    explicit: set[str] = set()

    def add(point: dict[str, Any]) -> None:
        if point["Destination"] in explicit:
            raise BadRequest(f"Duplicate mount point: {point['Destination']}")
        explicit.add(point["Destination"])
        points[point["Destination"]] = point

    for text in host["Binds"] or ():
        add(_from_bind(engine, container, text))
    for entry in host["Mounts"] or ():
        add(_from_mount(engine, container, entry))
    for path, options in (host["Tmpfs"] or {}).items():
        destination = _destination(path, "", "tmpfs")
        if destination in explicit:
            raise BadRequest(f"Duplicate mount point: {destination}")
        _tmpfs_options(options or "")
        points.pop(destination, None)
        explicit.add(destination)
    for path in container.config.get("Volumes") or {}:
        destination = _destination(path, path, "volume")
        if destination not in points and destination not in explicit:
            volume = engine.volumes.ensure(None, container_id=container.id)
            points[destination] = {
                **_volume(volume, destination, "", True),
                "Options": {"copy": True, "anonymous": True},
            }
    for point in points.values():
        if not point["RW"] and point["Type"] != "tmpfs":
            options = point.setdefault("Options", {})
            options["shallow"] = bool(options.get("shallow")) or not deep
    return list(points.values())


def _from_bind(engine: Engine, container: Container, text: str) -> dict[str, Any]:
    parts = text.split(":")
    if len(parts) == 1:
        destination = _destination(parts[0], text, "volume")
        volume = engine.volumes.ensure(None, container_id=container.id)
        return {**_volume(volume, destination, "", True), "Options": {"copy": True, "anonymous": True}}
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
        point["Options"] = {"create": True}
        return _of_the_engine(engine, point, propagation)
    volume = engine.volumes.ensure(parts[0], host_driver(container), container_id=container.id)
    point = _volume(volume, destination, mode or "z", writable)
    point["Options"] = {"copy": not nocopy}
    return point


def _of_the_engine(engine: Engine, point: dict[str, Any], propagation: str) -> dict[str, Any]:
    """A bind mount with the engine's own folder in it (`-v /:/host`), or of a part of it, is a slave of the host's
    mounts, so that no container holds what others have mounted. Raises BadRequest."""
    root, source = str(engine.config["data-root"]), point["Source"]
    if not f"{root}/".startswith(f"{source.rstrip('/')}/") and not source.startswith(f"{root}/"):
        return point
    if propagation not in ("", "rslave", "rshared"):
        raise BadRequest(
            'invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within'
            f' the daemon root, daemon root: "{root}", bind mount source: "{source}", propagation: "{propagation}"'
        )
    if not propagation:
        point["Propagation"] = "rslave"
        point["Options"]["where-possible"] = True
    return point


def host_driver(container: Container) -> str:
    return str(container.host_config.get("VolumeDriver") or "local")


def _from_mount(engine: Engine, container: Container, entry: dict[str, Any]) -> dict[str, Any]:
    kind = entry.get("Type") or "volume"
    source, target = entry.get("Source", ""), entry.get("Target", "")
    readonly = bool(entry.get("ReadOnly"))

    def bad(text: str) -> BadRequest:
        return BadRequest(f'invalid mount config for type "{kind}": {text}')

    if kind not in OPTIONS_OF.values():
        raise bad("mount type unknown; there are bind, volume and tmpfs")
    for key in entry:
        if key.endswith("Options") and OPTIONS_OF.get(key) != kind:
            raise bad(f"{key} must not be specified on this type")
    if not target:
        raise bad("field Target must not be empty")
    if not target.startswith("/"):
        raise bad(f"invalid mount path: '{target}' mount path must be absolute")
    destination = posixpath.normpath(target)
    if destination == "/":
        raise bad("invalid specification: destination can't be '/'")
    if kind == "bind":
        options = entry.get("BindOptions") or {}
        if not source:
            raise bad("field Source must not be empty")
        if not source.startswith("/"):
            raise bad(f"invalid mount path: '{source}' mount path must be absolute")
        propagation = options.get("Propagation") or ""
        if propagation and propagation not in PROPAGATIONS:
            raise bad(f"invalid propagation mode: {propagation}")
        shallow, forced = bool(options.get("ReadOnlyNonRecursive")), bool(options.get("ReadOnlyForceRecursive"))
        if not readonly and (shallow or forced):
            raise bad("mount options conflict: ReadOnlyNonRecursive and ReadOnlyForceRecursive need ReadOnly")
        if shallow and forced:
            raise bad("mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive")
        if not os.path.lexists(source) and not options.get("CreateMountpoint"):
            raise bad(f"bind source path does not exist: {source}")
        point = _bind(posixpath.normpath(source), destination, "", not readonly, propagation)
        point["Options"] = {
            "create": bool(options.get("CreateMountpoint")),
            "nonrecursive": bool(options.get("NonRecursive")),
            "shallow": shallow,
            "deep": forced,
        }
        return _of_the_engine(engine, point, propagation)
    if kind == "volume":
        options = entry.get("VolumeOptions") or {}
        driver = options.get("DriverConfig") or {}
        if readonly and not source:
            raise bad("must not set ReadOnly mode when using anonymous volumes")
        subpath = options.get("Subpath") or ""
        if subpath and (subpath.startswith("/") or ".." in posixpath.normpath(subpath).split("/")):
            raise bad("subpath must be a relative path within the volume")
        volume = engine.volumes.ensure(
            source or None,
            driver.get("Name") or "local",
            driver.get("Options") or {},
            options.get("Labels") or {},
            container.id,
        )
        point = _volume(volume, destination, "z", not readonly)
        point["Options"] = {
            "copy": not options.get("NoCopy"),
            "anonymous": not source,
            "subpath": subpath,
        }
        return point
    if source:
        raise bad("field Source must not be specified")
    options = entry.get("TmpfsOptions") or {}
    if options.get("SizeBytes", 0) < 0:
        raise bad(f"the size of a tmpfs is a number of bytes, and not {options['SizeBytes']}")
    words = [f"size={options['SizeBytes']}"] if options.get("SizeBytes") else []
    words += [f"mode={options['Mode']:o}"] if options.get("Mode") else []
    for option in options.get("Options") or ():
        words.append("=".join(option or ()))
    return {
        "Type": "tmpfs",
        "Source": "",
        "Destination": destination,
        "Mode": "",
        "RW": not readonly,
        "Propagation": "",
        "Options": {"tmpfs": _tmpfs_options(",".join(words))},
    }


def _from_container(engine: Engine, container: Container, entry: str) -> list[dict[str, Any]]:
    reference, _, mode = entry.partition(":")
    if mode not in ("", "ro", "rw", "z", "Z"):
        raise BadRequest(f"invalid mode for volumes-from: {mode}")
    other = engine.containers.find(reference)
    if other is None:
        raise NotFound(f"No such container: {reference}")
    result = []
    for point in other.mounts:
        copy = {**point, "RW": point["RW"] and mode != "ro", "Mode": mode or point["Mode"]}
        copy["Options"] = {**(point.get("Options") or {}), "copy": False}
        if point["Type"] == "volume":
            engine.volumes.ensure(point["Name"], point["Driver"], container_id=container.id)
        result.append(copy)
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


def for_spec(engine: Engine, container: Container, sources: contextlib.ExitStack) -> list[dict[str, Any]]:
    """Mounts of the specification for all mount points, shorter paths first. Makes missing bind sources."""
    result: list[dict[str, Any]] = []
    drop_parts(container.runtime_directory)  # of a start that did not come to its end
    for point in container.mounts:
        options = point.get("Options") or {}
        access = [] if point["RW"] else ["ro"]
        if access and not options.get("shallow", True) and point["Type"] != "tmpfs":
            if container.host_config["Runtime"] in RECURSIVE_READ_ONLY:
                access = ["rro"]
            elif options.get("deep"):
                name = container.host_config["Runtime"]
                raise BadRequest(f"runtime {name} is not known to mount recursively read-only")
        if point["Type"] == "tmpfs":
            words = options.get("tmpfs") or []
            if "noexec" not in words and "exec" not in words:  # of a record that was made before these were in it
                words = ["noexec", "nosuid", "nodev", "rprivate", *words]
            result.append(_mount(point["Destination"], "tmpfs", "tmpfs", [*words, *access]))
            continue
        source = point["Source"]
        if point["Type"] == "volume":
            source = engine.volumes.mount(point["Name"], container.id)
            if options.get("subpath"):
                source = _part(container, {**point, "Source": source}, sources)
        rootfs.check_source(source, bool(options.get("create")) and point["Type"] == "bind", point["Type"])
        propagation = point["Propagation"] or "rprivate"
        if point["Type"] == "bind":
            try:
                _check_propagation(source, propagation)
            except EngineError:
                if not options.get("where-possible"):
                    raise
                propagation = "rprivate"
        recursive = "bind" if options.get("nonrecursive") else "rbind"
        result.append(_mount(point["Destination"], "bind", source, [recursive, propagation, *access]))
    for path, text in (container.host_config["Tmpfs"] or {}).items():
        result.append(_mount(posixpath.normpath(path), "tmpfs", "tmpfs", _tmpfs_options(text or "")))
    return sorted(result, key=lambda mount: mount["destination"].count("/"))


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


def root_propagation(mount_list: list[dict[str, Any]]) -> str:
    """linux.rootfsPropagation: what the container's mounts need of its root to reach, or be reached from, the host."""
    words = {word.removeprefix("r") for mount in mount_list if mount["type"] == "bind" for word in mount["options"]}
    return "shared" if "shared" in words else "rslave" if "slave" in words else ""


def _part(container: Container, point: dict[str, Any], sources: contextlib.ExitStack) -> str:
    """A part of a volume, bound to a place of the engine's until `sources` is closed: the runtime looks it up again,
    and a container that has the volume could have put a link there meanwhile."""
    subpath = point["Options"]["subpath"]
    try:
        descriptor = rootfs.open_volume(point)
    except OSError as error:
        reason = f"cannot access path {subpath}: {(error.strerror or '').lower()}"
        if error.errno == errno.EXDEV:
            reason = "path concatenation escapes the base directory"
        raise EngineError(f"subpath {subpath!r} of the volume: {reason}") from None
    try:
        sources.callback(drop_parts, container.runtime_directory)
        folder = Path(container.runtime_directory + PARTS)
        folder.mkdir(mode=0o700, exist_ok=True)
        place = folder / str(len(os.listdir(folder)))
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            place.mkdir()
        else:
            place.touch()
        mount(f"/proc/self/fd/{descriptor}", str(place), None, MS_BIND | MS_REC)
    finally:
        os.close(descriptor)
    return str(place)


def drop_parts(runtime_directory: str) -> None:
    """Unmount the parts of volumes that were bound for a container's start. Idempotent. Removes nothing that is still
    mounted."""
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


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": options}
