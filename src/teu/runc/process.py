# SPDX-License-Identifier: Apache-2.0
"""A process of config.json (or of exec's process.json) as the input of teu-runc-init.

Called by teu.runc.container_init (the first process) and teu.runc.exec. The records are those that
src/c/teu-runc-init.c reads; both files list the tags in the same order.

A filter that is loaded early may refuse any call, close_range(2) and faccessat2(2) among them: descriptors are marked
close-on-exec before everything else. PR_SET_PDEATHSIG is cleared before the process says that it is ready, or the
parent's ordinary end would kill the container.
"""

from __future__ import annotations

import fcntl
import os
from struct import pack

from teu.linux import capabilities
from teu.linux.inside import open_file
from teu.runc import log
from teu.runc.descriptors import personality
from teu.runc.errors import InvalidSpec, RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

(
    TAG_ARGV,
    TAG_ENV,
    TAG_CWD,
    TAG_IDENTITY,
    TAG_GROUPS,
    TAG_CAPABILITIES,
    TAG_FLAGS,
    TAG_SECCOMP,
    TAG_NAMESPACES,
    TAG_LABEL,
    TAG_FDS,
    TAG_KEYRING,
    TAG_PERSONALITY,
    TAG_MEMORY_POLICY,
    TAG_PATH,
) = range(1, 16)

# Permissions of a key (keyctl(2)): its owner, or every user, finds it by its name.
KEY_USER_SEARCH = 0x080000
KEY_OTHER_SEARCH = 0x000008
FLAG_NO_NEW_PRIVS = 1
FLAG_FORK = 2
FLAG_TERMINAL = 4
FLAG_SECCOMP_EARLY = 8
FLAG_SETGROUPS = 16
FLAG_CHOWN_STDIO = 64
FLAG_SECCOMP_NOTIFY = 256
FLAG_LIMITS = 512

F_ADD_SEALS = 1033
F_SEAL_ALL = 0x1 | 0x2 | 0x4 | 0x8  # SEAL, SHRINK, GROW, WRITE
MFD_EXEC = 0x10

_PROGRAM_PLACES = ("/usr/libexec/teu/teu-runc-init",)


def program() -> int:
    """A sealed memfd of teu-runc-init: what a container sees as /proc/PID/exe until execve."""
    data = b""
    for path in (os.path.dirname(__file__) + "/teu-runc-init", *_PROGRAM_PLACES):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            while chunk := os.read(fd, 1 << 20):
                data += chunk
        finally:
            os.close(fd)
        break
    else:
        raise RuncError("teu-runc-init is missing: build it (make -C src/c) or reinstall teu-runc")
    return sealed(b"teu-runc-init", data, MFD_EXEC)


def sealed(name: bytes, data: bytes, flags: int = 0) -> int:
    """A memfd (close-on-exec) with these bytes, sealed against every change."""
    base = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(os.fsdecode(name), base | flags)
    except OSError:
        fd = os.memfd_create(os.fsdecode(name), base)  # before Linux 6.3: every memfd is executable
    os.write(fd, data)
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_ALL)
    return fd


def record(tag: int, body: bytes) -> bytes:
    return pack("II", tag, len(body)) + body + bytes(-len(body) % 8)


def _strings(values: list[str], field: str) -> bytes:
    encoded = [os.fsencode(value) for value in values]
    for value in encoded:
        if b"\0" in value:
            raise InvalidSpec(f"{field}: a string holds a NUL byte")
    return b"".join(value + b"\0" for value in encoded)


def environment(process: dict[str, Any], home: str | None) -> list[str]:
    """env as the program gets it: the last of equal names wins, HOME is there."""
    values: dict[str, str] = {}
    for entry in process.get("env") or ():
        name, equals, value = entry.partition("=")
        if not equals or not name:
            raise InvalidSpec(f"process.env: invalid environment variable: {entry!r}")
        values.pop(name, None)
        values[name] = value
    if home is not None and not values.get("HOME"):
        values["HOME"] = home
    return [f"{name}={value}" for name, value in values.items()]


def capability_sets(process: dict[str, Any], all_there: bool = False) -> list[int]:
    """bounding, effective, inheritable, permitted, ambient. None given: none.

    What cannot be granted is left out with a warning (runtime-spec, "capabilities"). all_there: a
    user namespace has all of them whatever we have ourselves.
    """
    given = process.get("capabilities") or {}
    known = capabilities.known_mask()
    ours = known if all_there else known & capabilities.permitted()
    sets = []
    missing = 0
    strange: list[str] = []
    for name in ("bounding", "effective", "inheritable", "permitted", "ambient"):
        bits, unknown = capabilities.mask(given.get(name) or [])
        missing |= bits & ~ours
        strange += [one for one in unknown if one not in strange]
        sets.append(bits & ours)
    for bit in range(64):
        if sets[4] >> bit & 1 and not sets[2] & sets[3] & 1 << bit:
            name = capabilities.NAMES[bit]
            log.warning(f"can't raise ambient capability {name}: it is not inheritable and permitted")
            sets[4] &= ~(1 << bit)
    if missing or strange:
        strange += [name for bit, name in enumerate(capabilities.NAMES) if missing >> bit & 1]
        log.warning(f"ignoring unknown or unavailable capabilities: [{' '.join(strange)}]")
    return sets


class LastStep:
    """What teu-runc-init does before it executes the process, as the records that it reads."""

    namespaces = 0  # CLONE_* flags of the namespaces to enter
    preserved = 0  # so many descriptors beside the standard streams stay open
    flags = 0  # FLAG_*, beside those that follow from the process
    seccomp: tuple[bytes, int, bool] | None = None  # the filter's program, its flags, whether it has a listener
    keyring: tuple[str, int] | None = None  # name of the session keyring to join, permissions that it gets in addition
    personality: int | None = None
    memory_policy: bytes | None = None
    program_path: str | None = None  # of the program, where it is not to be looked up in $PATH

    def __init__(self, process: dict[str, Any], capability_sets: list[int]) -> None:
        self.process = process
        self.capability_sets = capability_sets

    def read_linux(self, linux: dict[str, Any]) -> None:
        """Take over what config.json's `linux` says of the process."""
        profile = linux.get("seccomp")
        if profile:
            from teu.linux import seccomp  # 0.2 ms

            self.seccomp = (seccomp.compile(profile), seccomp.flags(profile), seccomp.needs_listener(profile))
        if linux.get("personality"):
            self.personality = personality(linux["personality"])
        if linux.get("memoryPolicy"):
            from teu.runc import memory_policy  # 0.03 ms

            self.memory_policy = memory_policy.encode(linux["memoryPolicy"])

    def records(self, env: list[str], fds: tuple[int, int, int, int, int]) -> bytes:
        """All records. fds: sync, fifo, console, procfs, pidfd (-1: none)."""
        process = self.process
        user = process.get("user") or {}
        umask = user.get("umask")
        identity = (user.get("uid", 0), user.get("gid", 0), 0o022 if umask is None else umask)
        groups = user.get("additionalGids") or []
        parts = [
            record(TAG_FDS, pack("iiiii", *fds)),
            record(TAG_ARGV, _strings(process["args"], "process.args")),
            record(TAG_ENV, _strings(env, "process.env")),
            record(TAG_CWD, _strings([process["cwd"]], "process.cwd")),
            record(TAG_IDENTITY, pack("III", *identity)),
            record(TAG_CAPABILITIES, pack("5Q", *self.capability_sets)),
        ]
        if groups:
            parts.append(record(TAG_GROUPS, pack(f"{len(groups)}I", *groups)))
        if self.seccomp is not None and self.seccomp[0]:
            parts.append(record(TAG_SECCOMP, pack("II", self.seccomp[1], 0) + self.seccomp[0]))
        if self.namespaces:
            parts.append(record(TAG_NAMESPACES, pack("I", self.namespaces)))
        if label := _label(process):
            parts.append(record(TAG_LABEL, label))
        if self.keyring is not None:
            name, permissions = self.keyring
            parts.append(record(TAG_KEYRING, pack("I", permissions) + os.fsencode(name) + b"\0"))
        if self.personality is not None:
            parts.append(record(TAG_PERSONALITY, pack("Q", self.personality)))
        if self.memory_policy is not None:
            parts.append(record(TAG_MEMORY_POLICY, self.memory_policy))
        if self.program_path is not None:
            parts.append(record(TAG_PATH, os.fsencode(self.program_path) + b"\0"))
        parts.append(record(TAG_FLAGS, pack("II", self._all_flags(), self.preserved)))
        return b"".join(parts)

    def _all_flags(self) -> int:
        process = self.process
        flags = self.flags | FLAG_CHOWN_STDIO
        if process.get("noNewPrivileges"):
            flags |= FLAG_NO_NEW_PRIVS
        if process.get("terminal"):
            flags |= FLAG_TERMINAL
        if process.get("rlimits") or process.get("scheduler") or process.get("ioPriority"):
            flags |= FLAG_LIMITS
        if self.seccomp is not None and self.seccomp[0]:
            if self.seccomp[2]:
                flags |= FLAG_SECCOMP_NOTIFY
            if not process.get("noNewPrivileges"):
                flags |= FLAG_SECCOMP_EARLY
        return flags


def _label(process: dict[str, Any]) -> bytes:
    """The file of /proc/self/attr to write, and what: the AppArmor profile or the SELinux label."""
    if process.get("apparmorProfile"):
        return b"apparmor/exec\0" + os.fsencode("exec " + process["apparmorProfile"]) + b"\0"
    if process.get("selinuxLabel"):
        return b"exec\0" + os.fsencode(process["selinuxLabel"]) + b"\0"
    return b""


def home_of(root: int, uid: int) -> str:
    """The user's home by the root's own /etc/passwd, "/" where it says nothing."""
    try:
        fd = open_file(root, "etc/passwd")
    except OSError:
        return "/"
    try:
        data = os.read(fd, 1 << 20)
    except OSError:
        return "/"
    finally:
        os.close(fd)
    wanted = b"%d" % uid
    for line in data.split(b"\n"):
        fields = line.split(b":")
        if len(fields) > 5 and fields[2] == wanted and fields[5]:
            return os.fsdecode(fields[5])
    return "/"


def failure_text(message: bytes) -> str:
    """The text of an 'E' message."""
    number = int.from_bytes(message[1:5], "little")
    text = message[5:].decode("utf-8", "replace")
    if number:
        reason = os.strerror(number)
        text += ": " + (reason if reason[1:2].isupper() else reason[:1].lower() + reason[1:])
    return text
