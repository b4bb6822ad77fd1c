# SPDX-License-Identifier: Apache-2.0
"""What each process of this machine, or of this pid namespace, costs: the kernel's counters, read at every switch.

On each processor stands a group of events of perf_event_open(2) that counts its clock, page faults, system calls and,
where the machine has such counters, instructions. The kernel writes the group's values at every context switch, with
the process that leaves the processor: what was counted since the last switch there is that process's. A second event
asks every millisecond whether the processor runs user's code or the kernel's. budget.py is who uses this.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import struct
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SYSCALL = {"x86_64": 298, "aarch64": 241, "riscv64": 241}
HARDWARE, SOFTWARE, TRACEPOINT = 0, 1, 2
CPU_CLOCK, PAGE_FAULTS, CONTEXT_SWITCHES, INSTRUCTIONS = 0, 2, 3, 1
LOST, COMM, EXIT, FORK, SAMPLE = 2, 3, 4, 7, 9
TID, TIME, READ = 1 << 1, 1 << 2, 1 << 4
GROUP = 1 << 3
DISABLED, WITH_COMM, WITH_TASK, SAMPLE_ID_ALL = 1 << 0, 1 << 9, 1 << 13, 1 << 18
ENABLE, WHOLE_GROUP = 0x2400, 1
CLOEXEC = 8
MODES = {1: "system", 2: "user"}
EVERY = 1_000_000  # nanoseconds between two looks at the mode
PAGES = 1024  # of a ring, a power of two
HEAD, TAIL = 1024, 1032  # where a ring's first page has its ends
GONE = 0xFFFFFFFF  # the pid of a process that nobody can ask for any more

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Cost:
    """Of one process, or of several."""

    nanoseconds: int = 0
    faults: int = 0
    calls: int = 0
    instructions: int = 0
    switches: int = 0
    modes: Counter[str] = field(default_factory=Counter)

    def add(self, other: Cost) -> None:
        for name in ("nanoseconds", "faults", "calls", "instructions", "switches"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.modes.update(other.modes)

    @property
    def user(self) -> float:
        """Nanoseconds in user's code, as far as the looks at the mode tell it."""
        seen = self.modes.total()
        return self.nanoseconds * self.modes["user"] / seen if seen else 0.0


@dataclass(frozen=True)
class Record:
    """What a ring told: a switch or a mode (`values`), a name (`name`), a fork (`parent`), an end."""

    kind: str
    time: int
    cpu: int
    pid: int
    tid: int
    parent: int = 0
    name: str = ""
    values: tuple[int, ...] = ()


class Replay:
    """Gives every count to a process, by the records in the order of their time."""

    def __init__(self, names: dict[int, str]) -> None:
        self.names = dict(names)
        self.costs: dict[str, Cost] = defaultdict(Cost)
        self._last: dict[int, tuple[int, ...]] = {}
        self._ended: dict[int, int] = {}

    def called(self, parent: int) -> str:
        """What a new process is called, until it has a name of its own."""
        return self.names.get(parent, "?")

    def take(self, records: Iterable[Record]) -> None:
        for record in sorted(records, key=lambda record: record.time):
            pid = record.pid
            if pid == GONE:  # its last steps, on the processor where it has told its end
                pid = self._ended.get(record.cpu, 0)
            if record.kind == "switch":
                self._switch(record, pid)
            elif not pid:
                self._ended[record.cpu] = 0
            elif record.kind == "name":
                if record.tid == pid:
                    self.names[pid] = record.name
            elif record.kind == "fork":
                if record.parent != pid:
                    self.names[pid] = self.called(record.parent)
            elif record.kind == "end":
                self._ended[record.cpu] = pid
            elif record.kind in MODES.values():
                self.costs[self.names.get(pid, "?")].modes[record.kind] += 1

    def _switch(self, record: Record, pid: int) -> None:
        before = self._last.get(record.cpu)
        self._last[record.cpu] = record.values
        if before is None or not pid:
            return
        clock, faults, calls, instructions = (now - then for now, then in zip(record.values, before, strict=True))
        self.costs[self.names.get(pid, "?")].add(Cost(clock, faults, calls, instructions, 1))


def _attributes(kind: int, config: int, **more: int) -> bytes:
    """struct perf_event_attr, in the size that it had when it got what is used here."""
    return struct.pack(
        "=IIQQQQQIIQQ",
        kind,
        72,
        config,
        more.get("period", 0),
        more.get("sample", 0),
        more.get("read", 0),
        more.get("flags", 0),
        0,
        0,
        0,
        0,
    )


def _open(attributes: bytes, cpu: int, group: int = -1) -> int:
    number = _libc.syscall(SYSCALL[platform.machine()], attributes, -1, cpu, group, CLOEXEC)
    if number < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "perf_event_open")
    return int(number)


def _tracepoint(name: str) -> int:
    """The number of a tracepoint."""
    for root in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing"):
        try:
            return int(Path(root, "events", name, "id").read_text())
        except OSError:
            continue
    root = "/run/teu-tracing"
    os.makedirs(root, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tracefs", "tracefs", root], capture_output=True, text=True, check=False)
    try:
        if done.returncode:
            raise OSError(errno.ENOENT, f"no tracefs: {done.stderr.strip()}")
        return int(Path(root, "events", name, "id").read_text())
    finally:
        if not done.returncode:
            subprocess.run(["umount", root], check=False)
        os.rmdir(root)


class Ring:
    """What the kernel writes about one event of one processor."""

    def __init__(self, descriptor: int, cpu: int, values: int) -> None:
        self.cpu = cpu
        self.lost = 0
        self._values = values
        self._size = PAGES * mmap.PAGESIZE
        self._map = mmap.mmap(descriptor, self._size + mmap.PAGESIZE)

    def drain(self) -> Iterator[Record]:
        """What has been written since the last time."""
        (head,) = struct.unpack_from("=Q", self._map, HEAD)
        (tail,) = struct.unpack_from("=Q", self._map, TAIL)
        begin = tail % self._size
        whole = self._map[mmap.PAGESIZE :]
        data = (whole + whole)[begin : begin + head - tail]
        struct.pack_into("=Q", self._map, TAIL, head)
        yield from self.parse(data)

    def parse(self, data: bytes) -> Iterator[Record]:
        offset = 0
        while offset < len(data):
            kind, misc, size = struct.unpack_from("=IHH", data, offset)
            body = data[offset + 8 : offset + size]
            offset += size
            if kind == SAMPLE:
                pid, tid, when = struct.unpack_from("=IIQ", body)
                if self._values:
                    (count,) = struct.unpack_from("=Q", body, 16)
                    counts = struct.unpack_from(f"={count}Q", body, 24)
                    clock, faults, calls, *rest = counts[1:]
                    yield Record(
                        "switch", when, self.cpu, pid, tid, values=(clock, faults, calls, rest[0] if rest else 0)
                    )
                elif (misc & 7) in MODES:
                    yield Record(MODES[misc & 7], when, self.cpu, pid, tid)
            elif kind == LOST:
                self.lost += struct.unpack_from("=QQ", body)[1]
            elif kind in (COMM, FORK, EXIT):
                (when,) = struct.unpack_from("=Q", body, len(body) - 8)
                if kind == COMM:
                    pid, tid = struct.unpack_from("=II", body)
                    yield Record("name", when, self.cpu, pid, tid, name=body[8:-16].split(b"\0")[0].decode())
                else:
                    pid, parent, tid = struct.unpack_from("=III", body)
                    what = "fork" if kind == FORK else "end"
                    yield Record(what, when, self.cpu, pid, tid, parent)

    def close(self) -> None:
        self._map.close()


class Meter:
    """Counts from its making to close(). OSError where the kernel does not allow that."""

    def __init__(self) -> None:
        self._rings: list[Ring] = []
        self._descriptors: list[int] = []
        self.has_instructions = True
        calls = _tracepoint("raw_syscalls/sys_enter")
        try:
            for cpu in sorted(os.sched_getaffinity(0)):
                self._add(cpu, calls)
        except OSError:
            self.close()
            raise

    def _add(self, cpu: int, calls: int) -> None:
        leader = _open(
            _attributes(
                SOFTWARE,
                CONTEXT_SWITCHES,
                period=1,
                sample=TID | TIME | READ,
                read=GROUP,
                flags=DISABLED | WITH_COMM | WITH_TASK | SAMPLE_ID_ALL,
            ),
            cpu,
        )
        self._descriptors.append(leader)
        members = [(SOFTWARE, CPU_CLOCK), (SOFTWARE, PAGE_FAULTS), (TRACEPOINT, calls), (HARDWARE, INSTRUCTIONS)]
        for kind, config in members:
            try:
                self._descriptors.append(_open(_attributes(kind, config, read=GROUP), cpu, leader))
            except OSError:
                if kind != HARDWARE:
                    raise
                self.has_instructions = False
        # All at once: what joins a group that counts already is not always counted.
        fcntl.ioctl(leader, ENABLE, WHOLE_GROUP)
        self._rings.append(Ring(leader, cpu, len(members)))
        looks = _open(_attributes(SOFTWARE, CPU_CLOCK, period=EVERY, sample=TID | TIME), cpu)
        self._descriptors.append(looks)
        self._rings.append(Ring(looks, cpu, 0))

    def records(self) -> list[Record]:
        """What happened since it was asked last."""
        return [record for ring in self._rings for record in ring.drain()]

    @property
    def lost(self) -> int:
        """How many records had no room in their ring."""
        return sum(ring.lost for ring in self._rings)

    def close(self) -> None:
        for ring in self._rings:
            ring.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._rings, self._descriptors = [], []
