# SPDX-License-Identifier: Apache-2.0
"""What teu-runc knows of a container between two calls: the state on disk, and the status from it.

Called by every command.

    <root>/<id>/            made by create (mkdir decides who owns the id), 0711
        state.json          the record below; replaced by rename, so there is always a whole one
        config.json         the bundle's config.json as it was at create
        exec.fifo           there while the container is created and not started: start unlinks it
        (nothing else is needed to delete the container)

The record, version 1 (a later version reads every earlier one; unknown keys are kept):

    version             1
    id, bundle, rootfs, created, ociVersion, annotations
    init_process_pid    0 until the first process exists
    init_process_start  its start time in clock ticks (field 22 of /proc/PID/stat): a pid is reused, the pair is not
    cgroup              {"driver": "cgroupfs" | "systemd" | "none", "path": absolute folder, "scope": unit or ""}
    namespace_paths     {"NEWPID": "/proc/PID/ns/pid", ...}
    rootless            made by a user who is not root
    systemd_cgroup      --systemd-cgroup was given
    ready               create has done everything
    no_new_keyring      --no-new-keyring was given
    external_descriptors  what it was given as 0, 1 and 2, for checkpoint: see descriptors.standard_descriptors

The record is written before anything else exists, so that whatever a killed create leaves can be found.
"""

from __future__ import annotations

import fcntl
import os
import time

from teu.oci import jsontext
from teu.runc.errors import InvalidSpec, NotFound, RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STATE_VERSION = 1

_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")

CREATING = "creating"
CREATED = "created"
RUNNING = "running"
PAUSED = "paused"
STOPPED = "stopped"


def check_id(id: str) -> None:
    """Refuse an id that is empty, a path, or has other characters than runc allows."""
    if not id:
        raise RuncError("container id cannot be empty")
    if id in (".", "..") or not _ID_CHARACTERS.issuperset(id):
        raise RuncError("invalid container ID format")


def folder_of(root: str, id: str) -> str:
    check_id(id)
    return f"{root}/{id}"


def now_rfc3339() -> str:
    nanoseconds = time.time_ns()
    utc = time.gmtime(nanoseconds // 1_000_000_000)
    return (
        f"{utc[0]:04}-{utc[1]:02}-{utc[2]:02}T{utc[3]:02}:{utc[4]:02}:{utc[5]:02}"
        f".{nanoseconds % 1_000_000_000:09}".rstrip("0").rstrip(".")
        + "Z"
    )


def process_stat(pid: int) -> tuple[str, int]:
    """(state letter, start time) of a process; ("", 0) when there is none."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return "", 0
    try:
        fields = os.read(fd, 2048).rpartition(b") ")[2].split()
    except OSError:  # ESRCH: it went between open and read
        return "", 0
    finally:
        os.close(fd)
    if len(fields) < 20:
        return "", 0
    return os.fsdecode(fields[0]), int(fields[19])


def drop_nulls(spec: dict[str, Any]) -> None:
    """Take members that are null out of all objects."""
    waiting: list[Any] = [spec]
    while waiting:
        value = waiting.pop()
        if type(value) is dict:
            for name in [name for name, item in value.items() if item is None]:
                del value[name]
            value = value.values()
        waiting += [item for item in value if type(item) in (dict, list)]


class Container:
    """A record read from disk (`record`), the folder it is in, and what follows from both."""

    def __init__(self, folder: str, record: dict[str, Any]) -> None:
        self.folder = folder
        self.record = record

    @property
    def id(self) -> str:
        return str(self.record["id"])

    @property
    def pid(self) -> int:
        """The first process as recorded (dead or alive), 0 if none was ever recorded."""
        return int(self.record.get("init_process_pid") or 0)

    @property
    def bundle(self) -> str:
        return str(self.record["bundle"])

    @property
    def fifo(self) -> str:
        return self.folder + "/exec.fifo"

    def save(self) -> None:
        """Replace state.json. Atomic; a tmpfs needs no fsync and runc's own place is one."""
        temporary = f"{self.folder}/.state.{os.getpid()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, os.fsencode(jsontext.dumps(self.record)))
        finally:
            os.close(fd)
        os.rename(temporary, self.folder + "/state.json")

    def spec(self) -> dict[str, Any]:
        """config.json as it was at create, where null is as good as absent, as it was to the check then."""
        spec = jsontext.load_file(self.folder + "/config.json")
        if not isinstance(spec, dict):
            raise InvalidSpec("config.json: not an object")
        drop_nulls(spec)
        return spec

    def init_alive(self) -> bool:
        """Whether the recorded first process still exists and is no zombie."""
        if not self.pid:
            return False
        letter, start = process_stat(self.pid)
        return bool(letter) and letter not in "ZX" and start == self.record.get("init_process_start")

    def status(self) -> str:
        """The specification's status; "paused" as runc has it."""
        if not self.init_alive():
            if not self.record.get("ready") and self.creator_alive():
                return CREATING
            return STOPPED
        if not self.record.get("ready"):
            return CREATING
        if self.frozen():
            return PAUSED
        if os.path.exists(self.fifo):
            return CREATED
        return RUNNING

    def creator_alive(self) -> bool:
        """Whether the teu-runc that is making this container still runs (it holds the lock)."""
        try:
            fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def frozen(self) -> bool:
        path = (self.record.get("cgroup") or {}).get("path")
        if not path:
            return False
        try:
            return jsontext.read_file(path + "/cgroup.freeze")[:1] == b"1"
        except OSError:
            return False

    def state(self, status: str | None = None) -> dict[str, Any]:
        """The specification's state, as hooks get it on stdin."""
        status = status or self.status()
        record = self.record
        state = {
            "ociVersion": record["ociVersion"],
            "id": record["id"],
            "status": status,
            "pid": self.pid,
            "bundle": record["bundle"],
        }
        if status == STOPPED or not self.pid:
            del state["pid"]
        if record.get("annotations"):
            state["annotations"] = record["annotations"]
        return state


class Lock:
    """The exclusive right to change one container: create, start, delete hold it. Goes with the process."""

    def __init__(self, folder: str, wait: bool = True) -> None:
        self.fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def load(root: str, id: str) -> Container:
    """The container with this id. NotFound where there is none (or only a folder without a record)."""
    folder = folder_of(root, id)
    try:
        record = jsontext.load_file(folder + "/state.json", own=True)
    except FileNotFoundError:
        raise NotFound(id) from None
    if not isinstance(record, dict) or int(record.get("version", 0)) > STATE_VERSION:
        raise RuncError(f"{folder}/state.json: version {record.get('version')}, this teu-runc knows {STATE_VERSION}")
    return Container(folder, record)


def load_all(root: str) -> list[Container]:
    """Every container under root, by id. Folders without a record are passed over."""
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        try:
            found.append(load(root, name))
        except (RuncError, OSError, ValueError):
            continue
    return found
