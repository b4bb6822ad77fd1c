# SPDX-License-Identifier: Apache-2.0
"""What the kernel would answer by a program that we make for it: classic BPF of seccomp, eBPF of device rules."""

from __future__ import annotations

from struct import pack, unpack_from

from teu.linux import bpf, seccomp


def device_program(program: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    """Whether a program for devices lets somebody have that access."""
    registers = [0] * 11
    context = (bpf.access_bits(access) << 16 | bpf.TYPES[kind], major, minor)
    at = 0
    while True:
        word = int.from_bytes(program[at * 8 : at * 8 + 8], "little")
        code, dst, src = word & 0xFF, word >> 8 & 0xF, word >> 12 & 0xF
        offset, immediate = word >> 16 & 0xFFFF, word >> 32
        at += 1
        if code == bpf.LDX_W:
            registers[dst] = context[offset // 4]
        elif code == bpf.MOV_X:
            registers[dst] = registers[src]
        elif code == bpf.MOV64_K:
            registers[dst] = immediate
        elif code == bpf.AND_K:
            registers[dst] &= immediate
        elif code == bpf.RSH_K:
            registers[dst] >>= immediate
        elif code == bpf.JEQ_K:
            at += offset if registers[dst] == immediate else 0
        elif code == bpf.JNE_K:
            at += offset if registers[dst] != immediate else 0
        elif code == bpf.EXIT:
            return bool(registers[0])
        else:
            raise ValueError(f"instruction {code:#x} is none of ours")


def filter_program(program: bytes, architecture: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """The action that a program of seccomp answers to a system call."""
    padded = (*arguments, *([0] * (seccomp.ARGUMENTS - len(arguments))))
    data = pack("=IIQ6Q", number, architecture, 0, *padded)
    accumulator = index = at = 0
    memory = [0] * 16
    while True:
        code, if_true, if_false, immediate = unpack_from("=HBBI", program, at * 8)
        at += 1
        kind = code & 0x07
        operand = index if code & 0x08 else immediate
        if code == seccomp.BPF_LD_W_ABS:
            accumulator = unpack_from("=I", data, immediate)[0]
        elif kind == 0x05:
            if code == seccomp.BPF_JA:
                at += immediate
                continue
            operation = code & 0xF0
            hit = (
                accumulator == operand
                if operation == 0x10
                else accumulator > operand
                if operation == 0x20
                else accumulator >= operand
                if operation == 0x30
                else bool(accumulator & operand)
            )
            at += if_true if hit else if_false
        elif code == seccomp.BPF_RET_K:
            return int(immediate)
        elif code == 0x54:
            accumulator &= immediate
        elif code == 0x02:
            memory[immediate] = accumulator
        elif code == 0x60:
            accumulator = memory[immediate]
        elif code == 0x07:
            index = accumulator
        else:
            raise ValueError(f"instruction {code:#x} is not expected in a filter")
