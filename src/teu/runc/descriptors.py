# SPDX-License-Identifier: Apache-2.0
"""What create, run and exec share: descriptors that come in and go out, and what is set on a process by its pid.

Called by teu.runc.launch and teu.runc.exec.
"""

from __future__ import annotations

import os
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    SCM_RIGHTS,
    SOCK_CLOEXEC,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from struct import pack, unpack

from teu.linux.syscalls import NR_pidfd_getfd, syscall
from teu.runc import log
from teu.runc.errors import InvalidSpec, RuncError, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


SOCKETS_ANNOTATION = "io.teu.listen-fds"
SOCKETS_MAX = 1000
_S_IFMT, _S_IFIFO = 0o170000, 0o010000  # the module stat is not in the archive of a cold start
EXTERNAL_FILE = "file["  # criu's name of a file that is not the container's: file[MOUNT:INODE]


def listen_fds() -> int:
    """How many descriptors systemd passed to this process (LISTEN_FDS of sd_listen_fds(3))."""
    try:
        if int(os.environ.get("LISTEN_PID", "0")) == os.getpid():
            return int(os.environ.get("LISTEN_FDS", "0"))
    except ValueError:
        pass
    return 0


def passed_sockets(annotations: dict[str, Any]) -> int:
    """Take over the sockets that systemd passed to another process, as 3 and up, as if systemd had passed them here;
    how many. The annotation io.teu.listen-fds says PID:START:COUNT, START being the time of that process's start as in
    proc(5). The Engine API has no way to pass descriptors; the caller of it keeps them open until the start is done."""
    text = annotations.get(SOCKETS_ANNOTATION)
    if text is None:
        return 0
    words = str(text).split(":")
    if len(words) != 3 or not all(word.isdecimal() for word in words):
        raise InvalidSpec(f"annotations: {SOCKETS_ANNOTATION}: {text} is not PID:START:COUNT")
    pid, count = int(words[0]), int(words[2])
    if count > SOCKETS_MAX:
        raise InvalidSpec(f"annotations: {SOCKETS_ANNOTATION}: more than {SOCKETS_MAX} descriptors")
    close_strangers(0)
    if 3 <= log.fd() < 3 + count:
        log.move(3 + count)
    found = []
    try:
        for number in range(3, 3 + count):
            found.append(fetch_descriptor(pid, number))
        with open(f"/proc/{pid}/stat", "rb", 0) as file:
            began = file.read().rpartition(b")")[2].split()[19]
    except OSError as error:
        raise RuncError(f"cannot take over the sockets of process {pid}: {text_of(error)}") from None
    if began != os.fsencode(words[1]):
        raise RuncError(f"cannot take over the sockets of process {pid}: it is another process than was meant")
    for number, fd in enumerate(found, 3):
        if fd != number:
            os.dup2(fd, number)
            os.close(fd)
    return count


def close_strangers(preserved: int) -> None:
    """Close every descriptor that the caller did not ask to keep, and check those that stay (CVE-2024-21626)."""
    for fd in range(3, 3 + preserved):
        try:
            os.set_inheritable(fd, True)
        except OSError as error:
            raise RuncError(f"unable to stat preserved-fd {fd - 3} (of {preserved}): {text_of(error)}") from None
    keep = log.fd()
    if keep >= 3 + preserved:
        os.closerange(3 + preserved, keep)
        os.closerange(keep + 1, 1 << 20)
    else:
        os.closerange(3 + preserved, 1 << 20)


def write_pid_file(path: str, pid: int) -> None:
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    os.write(fd, b"%d" % pid)
    os.close(fd)
    os.rename(temporary, path)


def connect(path: str) -> socket:
    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        connection.connect(path)
    except OSError as error:
        raise RuncError(f"dial unix {path}: connect: {text_of(error)}") from None
    return connection


def send_descriptor(connection: socket, name: bytes, fd: int) -> None:
    connection.sendmsg([name], [(SOL_SOCKET, SCM_RIGHTS, pack("i", fd))])


def receive(sync: socket) -> tuple[bytes, int]:
    """(a message of the child, a descriptor that came along or -1). b"" when the child is gone."""
    data, control, _, _ = sync.recvmsg(8192, CMSG_SPACE(4), MSG_CMSG_CLOEXEC)
    for level, kind, body in control:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            return data, int(unpack("i", body[:4])[0])
    return data, -1


def set_oom_score(pid: int, value: int, rootless: bool) -> None:
    try:
        with open(f"/proc/{pid}/oom_score_adj", "wb", 0) as file:
            file.write(os.fsencode(str(value)))
    except OSError as error:
        if not rootless:
            raise OSError(error.errno, f"process.oomScoreAdj: {error.strerror}") from None


def fetch_descriptor(pid: int, number: int) -> int:
    pidfd = os.pidfd_open(pid)
    try:
        return syscall("pidfd_getfd", NR_pidfd_getfd, pidfd, number, 0)
    finally:
        os.close(pidfd)


def personality(value: dict[str, Any]) -> int:
    domains = {"LINUX": 0x0000, "LINUX32": 0x0008}
    if value.get("flags"):
        raise InvalidSpec("linux.personality.flags: none is supported")
    if value.get("domain") not in domains:
        raise InvalidSpec(f"linux.personality.domain: {value.get('domain')!r} is not LINUX or LINUX32")
    return domains[value["domain"]]


def standard_descriptors(pid: int) -> list[str]:
    """What a process has open as 0, 1 and 2: "pipe:[1234]", "/dev/null"; a FIFO of the host by criu's name for it."""
    found = []
    for number in range(3):
        try:
            name = os.readlink(f"/proc/{pid}/fd/{number}")
            opened = os.stat(f"/proc/{pid}/fd/{number}")
            if opened.st_mode & _S_IFMT == _S_IFIFO and not name.startswith("pipe:"):
                name = f"{EXTERNAL_FILE}{mount_of(pid, number):x}:{opened.st_ino:x}]"
            found.append(name)
        except OSError:
            found.append("")
    return found


def mount_of(pid: int, descriptor: int) -> int:
    """The number of the mount that a process's open file is on."""
    file = os.open(f"/proc/{pid}/fdinfo/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        lines = os.read(file, 4096).split(b"\n")
    finally:
        os.close(file)
    return next((int(line[7:]) for line in lines if line.startswith(b"mnt_id:")), 0)
