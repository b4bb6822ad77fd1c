# SPDX-License-Identifier: Apache-2.0
"""Device access control of cgroup v2: an eBPF program per cgroup.

Version 2 has no devices controller. Instead the kernel runs the programs of type
BPF_PROG_TYPE_CGROUP_DEVICE that are attached to a cgroup and to its ancestors, each time a task
opens or makes a device node; every one of them must agree. The program is made here, in bytecode,
from the device rules of the OCI runtime-spec (`linux.resources.devices`).

Meaning of the rules: they are read in order and the last one that speaks of a device and of an
access (read, write, mknod) decides. A rule of type `a` speaks of every device and so discards
whatever stands before it. What no rule speaks of is denied. This is cgroup v1's behaviour wherever
that is defined, and crun's and runc's.
"""

from __future__ import annotations

import errno
import os
from sys import byteorder

from teu.linux.syscalls import NR_bpf, address, buffer, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

# bpf(2)
BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_DETACH = 9
BPF_PROG_GET_FD_BY_ID = 13
BPF_PROG_QUERY = 16
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_MULTI = 2
BPF_F_REPLACE = 4

# struct bpf_cgroup_dev_ctx { __u32 access_type; __u32 major; __u32 minor; }
BPF_DEVCG_DEV_BLOCK = 1
BPF_DEVCG_DEV_CHAR = 2
BPF_DEVCG_ACC_MKNOD = 1
BPF_DEVCG_ACC_READ = 2
BPF_DEVCG_ACC_WRITE = 4

ACCESS = {"m": BPF_DEVCG_ACC_MKNOD, "r": BPF_DEVCG_ACC_READ, "w": BPF_DEVCG_ACC_WRITE}
EVERY_ACCESS = 7
TYPES = {"b": BPF_DEVCG_DEV_BLOCK, "c": BPF_DEVCG_DEV_CHAR, "u": BPF_DEVCG_DEV_CHAR}

# Devices that every container has (runtime-spec, "Default Devices"), and making any node, which
# gives no access to it. They come after the rules of the spec.
DEFAULT_RULES: tuple[dict[str, Any], ...] = (
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},  # /dev/null
    {"allow": True, "type": "c", "major": 1, "minor": 8, "access": "rwm"},  # /dev/random
    {"allow": True, "type": "c", "major": 1, "minor": 7, "access": "rwm"},  # /dev/full
    {"allow": True, "type": "c", "major": 5, "minor": 0, "access": "rwm"},  # /dev/tty
    {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"},  # /dev/zero
    {"allow": True, "type": "c", "major": 1, "minor": 9, "access": "rwm"},  # /dev/urandom
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},  # /dev/pts/*
    {"allow": True, "type": "c", "major": 5, "minor": 2, "access": "rwm"},  # /dev/ptmx
    # Not in the specification, but there since the first runtimes, and missed when it was taken away.
    {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rwm"},  # /dev/net/tun
)

# Instruction classes and codes (linux/bpf_common.h, linux/bpf.h).
LDX_W = 0x61  # dst = *(u32 *)(src + off)
AND_K = 0x54  # 32-bit: dst &= imm
RSH_K = 0x74  # 32-bit: dst >>= imm
MOV_X = 0xBC  # 32-bit: dst = src
MOV64_K = 0xB7  # dst = imm
JEQ_K = 0x15
JNE_K = 0x55
EXIT = 0x95

R0, R1, R2, R3, R4, R5, R6 = range(7)


class BpfError(OSError):
    """A device program could not be loaded or attached. The message is a sentence for the user."""


def instruction(code: int, dst: int = 0, src: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    """One struct bpf_insn."""
    word = code | (src << 4 | dst) << 8 | (offset & 0xFFFF) << 16 | (immediate & 0xFFFFFFFF) << 32
    if byteorder == "little":
        return word.to_bytes(8, "little")
    head = bytes((code, dst << 4 | src)) + (offset & 0xFFFF).to_bytes(2, "big")
    return head + (immediate & 0xFFFFFFFF).to_bytes(4, "big")


def access_bits(access: str | None) -> int:
    """`rwm` as bits; nothing said is everything."""
    bits = 0
    for letter in access or "rwm":
        bits |= ACCESS[letter]
    return bits


def _number(value: int | None) -> int | None:
    """A device number; negative and absent are the wildcard."""
    return None if value is None or value < 0 else value


def compile_rules(rules: Sequence[dict[str, Any]]) -> bytes:
    """The program for a list of rules, in the order of the spec.

    It keeps in R2 the accesses that are not yet decided. From the last rule to the first: a deny
    that touches one of them ends with 0; an allow takes its own out, and when none is left ends
    with 1. Behind the rules stands the default.
    """
    default_allow = False
    relevant: list[tuple[int | None, int | None, int | None, int, bool]] = []
    for rule in rules:
        kind = rule.get("type") or "a"
        major, minor = _number(rule.get("major")), _number(rule.get("minor"))
        bits = access_bits(rule.get("access"))
        if kind == "a" and major is None and minor is None and bits == EVERY_ACCESS:
            relevant.clear()
            default_allow = bool(rule["allow"])
        else:
            relevant.append((TYPES.get(kind), major, minor, bits, bool(rule["allow"])))

    program = [
        # access_type holds the device's type in its low half and the access in its high half.
        instruction(LDX_W, R2, R1, 0),
        instruction(MOV_X, R5, R2),
        instruction(AND_K, R5, immediate=0xFFFF),
        instruction(RSH_K, R2, immediate=16),
        instruction(LDX_W, R3, R1, 4),
        instruction(LDX_W, R4, R1, 8),
    ]
    for kind_bit, major, minor, bits, allow in reversed(relevant):
        if allow:
            body = [
                instruction(AND_K, R2, immediate=~bits),
                instruction(JNE_K, R2, offset=2, immediate=0),
                instruction(MOV64_K, R0, immediate=1),
                instruction(EXIT),
            ]
        else:
            body = [
                instruction(MOV_X, R6, R2),
                instruction(AND_K, R6, immediate=bits),
                instruction(JEQ_K, R6, offset=2, immediate=0),
                instruction(MOV64_K, R0, immediate=0),
                instruction(EXIT),
            ]
        tests = [
            (register, value) for register, value in ((R5, kind_bit), (R3, major), (R4, minor)) if value is not None
        ]
        for index, (register, value) in enumerate(tests):
            skip = len(body) + len(tests) - index - 1
            program.append(instruction(JNE_K, register, offset=skip, immediate=value))
        program += body
    program += [instruction(MOV64_K, R0, immediate=int(default_allow)), instruction(EXIT)]
    return b"".join(program)


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """bpf(2); answers the result and the attributes as the kernel left them."""
    attribute = buffer(attributes)
    result = syscall("bpf", NR_bpf, command, attribute, len(attributes))
    return result, bytes(attribute)


def _u32(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, byteorder) for value in values)


def _u64(value: int) -> bytes:
    return value.to_bytes(8, byteorder)


def load(program: bytes) -> int:
    """BPF_PROG_LOAD: a descriptor of the verified program."""
    code = buffer(program)
    licence = buffer(b"Apache-2.0\0")

    def attributes(log: int, size: int) -> bytes:
        return (
            _u32(BPF_PROG_TYPE_CGROUP_DEVICE, len(program) // 8)
            + _u64(address(code))
            + _u64(address(licence))
            + _u32(1 if size else 0, size)
            + _u64(log)
            + _u32(0, 0)
            + b"teu_devices".ljust(16, b"\0")
        )

    try:
        return _bpf(BPF_PROG_LOAD, attributes(0, 0))[0]
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise BpfError(f"cannot load the device access program: {error.strerror}") from error
    # Once more with the verifier's own words.
    log = buffer(bytes(65536))
    try:
        return _bpf(BPF_PROG_LOAD, attributes(address(log), 65536))[0]
    except OSError as error:
        said = bytes(log).partition(b"\0")[0].decode(errors="replace").strip()
        raise BpfError(f"cannot load the device access program: {error.strerror}: {said}") from error


def attached(cgroup: int) -> list[int]:
    """Ids of the device programs attached to a cgroup itself."""
    room = 64
    ids = buffer(bytes(4 * room))
    request = _u32(cgroup, BPF_CGROUP_DEVICE, 0, 0) + _u64(address(ids)) + _u32(room, 0)
    _, answer = _bpf(BPF_PROG_QUERY, request)
    count = int.from_bytes(answer[24:28], byteorder)
    found = bytes(ids)
    return [int.from_bytes(found[4 * n : 4 * n + 4], byteorder) for n in range(count)]


def set_devices(path: str, rules: Sequence[dict[str, Any]]) -> None:
    """Make these rules the device access of a cgroup, in place of any that it has.

    There is no moment without a program: an old one is replaced in one step, or, where there are
    several (systemd's and ours), detached after the new one is in force.
    """
    program = load(compile_rules(rules))
    cgroup = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    old: list[int] = []
    try:
        try:
            old = [_bpf(BPF_PROG_GET_FD_BY_ID, _u32(number, 0, 0))[0] for number in attached(cgroup)]
        except OSError:
            # An old kernel, or one that keeps ids from us: then there is nothing to take away.
            old = []
        try:
            if len(old) == 1:
                flags = BPF_F_ALLOW_MULTI | BPF_F_REPLACE
                try:
                    _bpf(BPF_PROG_ATTACH, _u32(cgroup, program, BPF_CGROUP_DEVICE, flags, old[0]))
                    return
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
            _bpf(BPF_PROG_ATTACH, _u32(cgroup, program, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI, 0))
        except OSError as error:
            raise BpfError(f"cannot attach the device access program to {path}: {error.strerror}") from error
        for descriptor in old:
            _bpf(BPF_PROG_DETACH, _u32(cgroup, descriptor, BPF_CGROUP_DEVICE, 0))
    finally:
        os.close(cgroup)
        os.close(program)
        for descriptor in old:
            os.close(descriptor)
