# SPDX-License-Identifier: Apache-2.0
"""Talk to criu(8): `criu swrk`, requests and notifications over a socket, in its protobuf wire format.

Called by checkpoint and restore. The messages are few, so their field numbers (images/rpc.proto of
criu) stand here in a table and no protobuf library is needed. A request is a dict by field name.
"""

from __future__ import annotations

import fcntl
import os
from _socket import AF_UNIX, CMSG_SPACE, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_SEQPACKET, socketpair
from array import array

from teu.linux.namespaces import CLONE_NEWNET
from teu.runc import log
from teu.runc.errors import RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Fields = dict[str, Any]
    Notify = Callable[[str, int, list[int]], None]

# enum criu_req_type
DUMP, RESTORE, PRE_DUMP, NOTIFY, FEATURE_CHECK, VERSION = 1, 2, 4, 6, 9, 10
# enum criu_cg_mode; "" is criu's default.
CGROUP_MODES = {"ignore": 0, "soft": 3, "full": 4, "strict": 5, "": 6}
# The descriptor of the socket in `criu swrk 3`; inherited descriptors follow it.
SOCKET = 3

# Message: field name -> (number, kind). Kinds: "int" (bool too), "text", or a message; a list repeats.
OPTS: dict[str, tuple[int, str]] = {
    "images_dir_fd": (1, "int"),
    "pid": (2, "int"),
    "leave_running": (3, "int"),
    "ext_unix_sk": (4, "int"),
    "tcp_established": (5, "int"),
    "evasive_devices": (6, "int"),
    "shell_job": (7, "int"),
    "file_locks": (8, "int"),
    "log_level": (9, "int"),
    "log_file": (10, "text"),
    "ps": (11, "page_server"),
    "notify_scripts": (12, "int"),
    "root": (13, "text"),
    "parent_img": (14, "text"),
    "track_mem": (15, "int"),
    "auto_dedup": (16, "int"),
    "work_dir_fd": (17, "int"),
    "link_remap": (18, "int"),
    "ext_mnt": (23, "ext_mount_map"),
    "manage_cgroups": (24, "int"),
    "cg_root": (25, "cgroup_root"),
    "rst_sibling": (26, "int"),
    "inherit_fd": (27, "inherit_fd"),
    "manage_cgroups_mode": (34, "int"),
    "external": (37, "text"),
    "empty_ns": (38, "int"),
    "join_ns": (39, "join_namespace"),
    "freeze_cgroup": (44, "text"),
    "tcp_skip_in_flight": (46, "int"),
    "lazy_pages": (48, "int"),
    "status_fd": (49, "int"),
    "orphan_pts_master": (50, "int"),
    "config_file": (51, "text"),
    "lsm_profile": (53, "text"),
    "lsm_mount_context": (63, "text"),
}
MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "request": {
        "type": (1, "int"),
        "opts": (2, "opts"),
        "notify_success": (3, "int"),
        "features": (5, "features"),
    },
    "opts": OPTS,
    "features": {"mem_track": (1, "int"), "lazy_pages": (2, "int"), "pidfd_store": (3, "int")},
    "page_server": {"address": (1, "text"), "port": (2, "int")},
    "ext_mount_map": {"key": (1, "text"), "val": (2, "text")},
    "join_namespace": {"ns": (1, "text"), "ns_file": (2, "text")},
    "inherit_fd": {"key": (1, "text"), "fd": (2, "int")},
    "cgroup_root": {"ctrl": (1, "text"), "path": (2, "text")},
    "response": {
        "type": (1, "int"),
        "success": (2, "int"),
        "restore": (4, "restore"),
        "notify": (5, "notify"),
        "cr_errno": (7, "int"),
        "features": (8, "features"),
        "cr_errmsg": (9, "text"),
        "version": (10, "version"),
    },
    "restore": {"pid": (1, "int")},
    "notify": {"script": (1, "text"), "pid": (2, "int")},
    "version": {"major": (1, "int"), "minor": (2, "int"), "sublevel": (4, "int")},
}


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(kind: str, fields: Fields) -> bytes:
    """A message of that kind."""
    out = b""
    for name, value in fields.items():
        number, member = MESSAGES[kind][name]
        for item in value if isinstance(value, list) else [value]:
            if item is None:
                continue
            if member == "int":
                out += _varint(number << 3) + _varint(int(item))
                continue
            data = os.fsencode(item) if member == "text" else encode(member, item)
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return out


def decode(kind: str, data: bytes) -> Fields:
    """The fields of a message; those not in our table are skipped."""
    known = {number: (name, member) for name, (number, member) in MESSAGES[kind].items()}
    fields: Fields = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        name, member = known.get(key >> 3, ("", ""))
        value: Any
        if key & 7 == 0:
            value = varint()
            value -= 2**64 if value >= 2**63 else 0
        elif key & 7 == 2:
            size = varint()
            chunk = data[at : at + size]
            at += size
            value = chunk.decode(errors="replace") if member == "text" else decode(member, chunk) if member else None
        else:
            at += 8 if key & 7 == 1 else 4
            continue
        if name:
            fields[name] = value
    return fields


def find() -> str:
    """The path of criu."""
    for folder in (*os.environ.get("PATH", "").split(":"), "/usr/sbin", "/usr/local/sbin"):
        path = f"{folder}/criu"
        if folder and os.access(path, os.X_OK):
            return path
    raise RuncError("criu is not installed: checkpoint and restore need it (apt install criu)")


class Session:
    """One `criu swrk` process and one request to it. Use as a context manager."""

    def __init__(self, inherit: list[int] | None = None) -> None:
        """`inherit` are descriptors that criu gets as 4, 5, ... (for inherit_fd)."""
        self.socket, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        program = find()
        # Out of the way of the numbers that they are to have.
        sources = [theirs.fileno(), *(inherit or [])]
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, SOCKET + len(sources)) for fd in sources]
        actions = [(os.POSIX_SPAWN_DUP2, fd, SOCKET + n) for n, fd in enumerate(moved)]
        try:
            self.pid = os.posix_spawn(program, ["criu", "swrk", str(SOCKET)], os.environ, file_actions=actions)
        finally:
            theirs.close()
            for fd in moved:
                os.close(fd)
        self.waited = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.wait()

    def wait(self) -> int:
        """criu's exit code."""
        if self.waited:
            return 0
        self.waited = True
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def request(self, kind: int, opts: Fields, notify: Notify | None = None, **fields: Any) -> Fields:
        """Send a request, answer its notifications, and give its response.

        `notify(script, pid, descriptors)` is called for each step that criu reports. RuncError when
        criu says that it failed.
        """
        self.socket.send(encode("request", {"type": kind, "opts": opts, **fields}))
        while True:
            data, ancillary, _, _ = self.socket.recvmsg(65536, CMSG_SPACE(4 * 16))
            if not data:
                raise RuncError("criu ended without an answer")
            descriptors: list[int] = []
            for _, what, rights in ancillary:
                if what == SCM_RIGHTS:
                    received = array("i")
                    received.frombytes(rights[: len(rights) // 4 * 4])
                    descriptors += received
            response = decode("response", data)
            if not response.get("success"):
                number = response.get("cr_errno", 0)
                # cr_errmsg is criu's first error, which is seldom the one that counts.
                said = f"type {response.get('type')} errno {number}"
                raise RuncError(f"criu failed: {said}{': ' + os.strerror(number) if number else ''}; see its log")
            if response.get("type") != NOTIFY:
                return response
            step = response.get("notify") or {}
            log.debug(f"criu: {step.get('script')}")
            try:
                if notify:
                    notify(step.get("script", ""), step.get("pid", 0), descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            self.socket.send(encode("request", {"type": NOTIFY, "notify_success": True}))


def check(**features: bool) -> None:
    """RuncError unless criu and the kernel have these features."""
    with Session() as session:
        have = session.request(FEATURE_CHECK, {}, features=features).get("features") or {}
    for name, wanted in features.items():
        if wanted and not have.get(name):
            raise RuncError(f"criu is missing the feature {name}")


def external_key(namespace: str) -> str:
    """The name under which criu knows a namespace that is not dumped but joined."""
    return {"network": "extRootNetNS", "pid": "extRootPidNS"}[namespace]


def log_errors(folder: str, name: str) -> str:
    """criu's own errors, into our log; the last of them, to be told with its failure."""
    path = f"{folder}/{name}"
    try:
        with open(path, errors="replace") as file:
            lines = [line.rstrip() for line in file if "Error" in line]
    except OSError as error:
        log.warning(f"{path}: {error.strerror}")
        return ""
    for line in lines[-20:]:
        log.warning(f"{path}: {line}")
    # "(00.012345)     23: Error (criu/files.c:1234): what was in the way"; the last is of all that fails.
    told = [line.partition("): ")[2] or line for line in lines if "FAILED" not in line]
    return "".join(f"; {line[:300]}" for line in told[-3:])


def folder(path: str) -> int:
    """Make a folder for images or logs (0700, and it may exist) and open it."""
    os.makedirs(path, 0o700, exist_ok=True)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def empty_namespaces(names: list[str]) -> int:
    """--empty-ns. The network's devices are not ours to keep, so it is always dumped empty."""
    for name in names:
        if name != "network":
            raise RuncError(f'namespace "{name}" is not supported')
    return CLONE_NEWNET


def configuration(annotations: dict[str, str]) -> str | None:
    """The file of further criu options: by annotation, else runc's."""
    return annotations.get("org.criu.config", "/etc/criu/runc.conf") or None
