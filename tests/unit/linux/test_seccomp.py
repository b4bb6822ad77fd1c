# SPDX-License-Identifier: Apache-2.0
"""Seccomp programs, run on sample system calls by the evaluator; the store of compiled programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import evaluators
import pytest

from teu.linux import seccomp

X86_64 = seccomp.AUDIT_ARCH_X86_64
I386 = seccomp.ARCHITECTURES["SCMP_ARCH_X86"][1]
READ, WRITE, GETPID, CLONE, PERSONALITY, CLONE3, OPENAT2 = 0, 1, 39, 56, 135, 435, 437
ALLOW = seccomp.ACTIONS["SCMP_ACT_ALLOW"]
ERRNO = seccomp.ACTIONS["SCMP_ACT_ERRNO"]

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers of x86_64")


def profile(*rules: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": list(rules), **fields}


def rule(*names: str, action: str = "SCMP_ACT_ALLOW", **fields: Any) -> dict[str, Any]:
    return {"names": list(names), "action": action, **fields}


def argument(index: int, op: str, value: int, second: int = 0) -> dict[str, Any]:
    return {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": second}


def answer(wanted: dict[str, Any], number: int, *arguments: int, architecture: int = X86_64) -> int:
    return evaluators.filter_program(seccomp.compile_profile(wanted), architecture, number, arguments)


def test_default_and_rule() -> None:
    wanted = profile(rule("read"))
    assert answer(wanted, READ) == ALLOW
    assert answer(wanted, 2) == ERRNO | 38  # open is above read, and nothing above is known
    wanted = profile(rule("read", "openat2"))
    assert answer(wanted, WRITE) == ERRNO | 1


@pytest.mark.parametrize("name", sorted(set(seccomp.ACTIONS) - {"SCMP_ACT_NOTIFY"}))
def test_every_action(name: str) -> None:
    wanted = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("getpid", action=name)]}
    expected = seccomp.ACTIONS[name] | (1 if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") else 0)
    assert answer(wanted, GETPID) == expected
    assert answer(wanted, READ) == ALLOW


def test_notify() -> None:
    wanted = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("getpid", action="SCMP_ACT_NOTIFY")]}
    assert answer(wanted, GETPID) == seccomp.ACTIONS["SCMP_ACT_NOTIFY"]
    assert seccomp.flags(wanted) & seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER
    for bad in (
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("write", action="SCMP_ACT_NOTIFY")]},
    ):
        with pytest.raises(seccomp.SeccompError, match="SCMP_ACT_NOTIFY cannot"):
            seccomp.compile_profile(bad)


def test_errno_values() -> None:
    wanted = profile(rule("getpid", action="SCMP_ACT_ERRNO", errnoRet=5), rule("openat2"), defaultErrnoRet=77)
    assert answer(wanted, GETPID) == ERRNO | 5
    assert answer(wanted, WRITE) == ERRNO | 77
    assert answer(wanted, 1000) == ERRNO | 38
    wanted = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("getpid", action="SCMP_ACT_TRACE", errnoRet=9)]}
    assert answer(wanted, GETPID) == seccomp.ACTIONS["SCMP_ACT_TRACE"] | 9


@pytest.mark.parametrize(
    ("op", "value", "second", "hits", "misses"),
    [
        ("EQ", 5, 0, (5,), (4, 6)),
        ("NE", 5, 0, (4, 6), (5,)),
        ("LT", 5, 0, (0, 4), (5, 6)),
        ("LE", 5, 0, (0, 5), (6,)),
        ("GT", 5, 0, (6, 1 << 40), (5, 0)),
        ("GE", 5, 0, (5, 1 << 33), (4,)),
        ("MASKED_EQ", 0xF0, 0x20, (0x20, 0x2F), (0x30, 0x00)),
    ],
)
def test_every_operator(op: str, value: int, second: int, hits: tuple[int, ...], misses: tuple[int, ...]) -> None:
    wanted = profile(rule("personality", args=[argument(0, op, value, second)]), rule("openat2"))
    for hit in hits:
        assert answer(wanted, PERSONALITY, hit) == ALLOW
    for miss in misses:
        assert answer(wanted, PERSONALITY, miss) == ERRNO | 1


def test_conditions_are_joined_by_and() -> None:
    wanted = profile(rule("clone", args=[argument(0, "EQ", 1), argument(1, "EQ", 2)]), rule("openat2"))
    assert answer(wanted, CLONE, 1, 2) == ALLOW
    assert answer(wanted, CLONE, 1, 3) == ERRNO | 1


def test_conditions_on_one_argument_are_alternatives() -> None:
    wanted = profile(rule("personality", args=[argument(0, "EQ", 1), argument(0, "EQ", 2)]), rule("openat2"))
    assert answer(wanted, PERSONALITY, 1) == ALLOW
    assert answer(wanted, PERSONALITY, 2) == ALLOW
    assert answer(wanted, PERSONALITY, 3) == ERRNO | 1


def test_architectures() -> None:
    names = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    wanted = profile(rule("read", "openat2"), architectures=names)
    assert answer(wanted, 3, architecture=I386) == ALLOW
    assert answer(wanted, 4, architecture=I386) == ERRNO | 1
    assert answer(wanted, 500, architecture=I386) == ERRNO | 38
    assert answer(wanted, seccomp.X32_SYSCALL_BIT | READ) == ALLOW
    assert answer(wanted, seccomp.X32_SYSCALL_BIT | WRITE) == ERRNO | 1
    assert answer(wanted, seccomp.X32_SYSCALL_BIT | 600) == ERRNO | 38
    # One that is not listed: the process is killed.
    assert answer(wanted, READ, architecture=0x1234) == 0
    assert answer(profile(rule("read")), 3, architecture=I386) == 0


@pytest.mark.parametrize("name", sorted(seccomp.ARCHITECTURES))
def test_every_architecture_is_known(name: str) -> None:
    wanted = profile(rule("read", "openat2"), architectures=[name])
    try:
        program = seccomp.compile_profile(wanted)
    except seccomp.SeccompError as error:
        # Debian 12's library is older than some architectures.
        assert "does not know" in str(error) or "another byte order" in str(error)
        pytest.skip(str(error))
    assert evaluators.filter_program(program, X86_64, READ) == ALLOW


def test_newer_calls_get_enosys() -> None:
    wanted = profile(rule("read", "clone3"))
    assert answer(wanted, CLONE3) == ALLOW
    assert answer(wanted, OPENAT2) == ERRNO | 38
    # Where calls are allowed by default, or the default says so itself, nothing is put in front.
    for permissive in ({"defaultAction": "SCMP_ACT_ALLOW"}, {"defaultAction": "SCMP_ACT_LOG"}):
        wanted = {**permissive, "syscalls": [rule("read", action="SCMP_ACT_KILL")]}
        assert answer(wanted, 1000) == seccomp.ACTIONS[permissive["defaultAction"]]


def test_unknown_calls_are_skipped() -> None:
    assert answer(profile(rule("no_such_call", "read", "openat2")), READ) == ALLOW


def test_a_redundant_rule() -> None:
    assert answer(profile(rule("read", action="SCMP_ACT_ERRNO", errnoRet=1), rule("openat2")), READ) == ERRNO | 1


def test_many_rules() -> None:
    names = [name for name in ("read", "close", "openat2") for _ in range(1)]
    names += ["stat", "fstat", "lstat", "poll", "lseek", "mmap", "mprotect", "munmap", "brk", "ioctl", "pread64"]
    names += ["pwrite64", "readv", "writev", "access", "pipe", "select", "sched_yield", "mremap", "msync", "mincore"]
    names += ["madvise", "shmget", "shmat", "shmctl", "dup", "dup2", "pause", "nanosleep", "alarm", "getpid"]
    wanted = profile(rule(*names))
    assert answer(wanted, READ) == ALLOW
    assert answer(wanted, GETPID) == ALLOW
    assert answer(wanted, WRITE) == ERRNO | 1


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (profile(rule("read", action="SCMP_ACT_X")), r"syscalls\[0\].action: SCMP_ACT_X is not an action"),
        (profile(rule("read", args=[argument(0, "X", 1)])), r"syscalls\[0\].args\[0\].op: SCMP_CMP_X"),
        (profile(rule("read", args=[argument(6, "EQ", 1)])), r"syscalls\[0\].args\[0\].index: 6"),
        (profile(architectures=["SCMP_ARCH_PDP11"]), "architectures: SCMP_ARCH_PDP11 is not known"),
        ({"defaultAction": "no"}, "defaultAction: no is not an action"),
    ],
)
def test_bad_profiles(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(seccomp.SeccompError, match=f"linux.seccomp.{words}"):
        seccomp.compile_profile(bad)


def test_flags() -> None:
    assert seccomp.flags({}) == seccomp.SECCOMP_FILTER_FLAG_SPEC_ALLOW
    assert seccomp.flags({"flags": []}) == 0
    assert seccomp.flags({"flags": ["SECCOMP_FILTER_FLAG_TSYNC"]}) == 0
    assert seccomp.flags({"flags": ["SECCOMP_FILTER_FLAG_LOG"]}) == seccomp.SECCOMP_FILTER_FLAG_LOG
    with pytest.raises(seccomp.SeccompError, match="linux.seccomp.flags: X is not known"):
        seccomp.flags({"flags": ["X"]})


# ---- the store ---------------------------------------------------------------------------------


def test_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = profile(rule("read", "openat2"))
    cache = str(tmp_path / "cache")
    first = seccomp.compile(wanted, cache)
    assert os.stat(cache).st_mode & 0o777 == 0o700

    def never(_: object) -> bytes:
        raise AssertionError("compiled again")

    monkeypatch.setattr(seccomp, "compile_profile", never)
    assert seccomp.compile(wanted, cache) == first
    with pytest.raises(AssertionError, match="compiled again"):
        seccomp.compile(profile(rule("write", "openat2")), cache)


def test_the_store_is_bounded(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    for number in range(4 * seccomp.CACHE_ENTRIES):
        name = f"{number * 7919 % 1000:040x}"
        seccomp.write_cached(cache, name, bytes(8))
        assert seccomp.read_cached(cache, name) == bytes(8), "the newest stays"
        assert len(os.listdir(cache)) <= seccomp.CACHE_ENTRIES


def test_foreign_files_are_not_trusted(tmp_path: Path) -> None:
    wanted = profile(rule("read", "openat2"))
    cache = tmp_path / "cache"
    genuine = seccomp.compile(wanted, str(cache))
    file = cache / seccomp.cache_name(wanted)
    evil = seccomp.CACHE_MAGIC + seccomp.instruction(seccomp.BPF_RET_K, ALLOW)

    file.write_bytes(evil)
    file.chmod(0o666)
    assert seccomp.compile(wanted, str(cache)) == genuine, "a file that others can write"

    file.unlink()
    (tmp_path / "elsewhere").write_bytes(evil)
    file.symlink_to(tmp_path / "elsewhere")
    assert seccomp.compile(wanted, str(cache)) == genuine, "a symbolic link"

    cache.chmod(0o777)
    file.unlink()
    file.write_bytes(evil)
    file.chmod(0o600)
    assert seccomp.compile(wanted, str(cache)) == genuine, "a folder that others can write"

    cache.chmod(0o700)
    file.write_bytes(b"")
    assert seccomp.compile(wanted, str(cache)) == genuine, "an empty file"
    file.write_bytes(seccomp.CACHE_MAGIC + b"1234567")
    assert seccomp.compile(wanted, str(cache)) == genuine, "half an instruction"


def test_the_store_stays_small(tmp_path: Path) -> None:
    for number in range(seccomp.CACHE_ENTRIES * 2):
        seccomp.write_cached(str(tmp_path), f"{number:040x}", b"12345678")
    assert len(list(tmp_path.iterdir())) <= seccomp.CACHE_ENTRIES
