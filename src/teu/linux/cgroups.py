# SPDX-License-Identifier: Apache-2.0
"""Control groups, version 2: making them, joining them, limiting, freezing, killing, removing.

Functions over the absolute path of a cgroup directory. teu-runc calls them through its two
drivers (`teu.runc.cgroups`), the shim for the part below its scope. Limits are given as the
`linux.resources` object of the OCI runtime-spec, whose words are those of cgroup v1; the
conversions to version 2 are the ones that runc documents, so that a number means the same here.

A controller that the host lacks is an error only when a limit asks for it, and the error says
which limit, which controller and where it is missing.

This file is on the path of every container start: it imports nothing heavy.
"""

from __future__ import annotations

import errno
import os
import select
import time
from math import ceil, log2

from teu.linux.cgroup_files import MAX, CgroupError, mountpoint, own, read, read_pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Resources = dict[str, Any]

# What the kernel assumes when only a quota is given.
DEFAULT_CPU_PERIOD = 100_000

FREEZE_TIMEOUT = 10.0
REMOVE_TIMEOUT = 10.0


def locate(cgroups_path: str, identifier: str) -> str:
    """The directory that `linux.cgroupsPath` means to the cgroupfs driver.

    Absolute paths count from the root of the hierarchy. A relative one, or none (then the
    container's name), is next to the runtime's own cgroup: not inside it, because a cgroup that
    has processes cannot pass controllers on.
    """
    wanted = os.path.normpath("/" + cgroups_path.lstrip("/")) if cgroups_path else "/" + identifier
    if cgroups_path.startswith("/"):
        if wanted == "/":
            raise CgroupError("linux.cgroupsPath: a container cannot be the root cgroup")
        return mountpoint() + wanted
    parent = os.path.dirname(own())
    return mountpoint() + (parent if parent != "/" else "") + wanted


# ---- single files ------------------------------------------------------------------------------


def write(path: str, name: str, value: str) -> None:
    """Write one value. OSError carries the file's path."""
    file = f"{path}/{name}"
    # Never O_CREAT: a missing file means a missing controller, and must say so.
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, os.fsencode(value))
    except OSError as error:
        raise OSError(error.errno, f"write {value!r}: {os.strerror(error.errno or 0)}", file) from None
    finally:
        os.close(descriptor)


def controllers(path: str) -> set[str]:
    """What is enabled for a cgroup, thus what can be limited in it."""
    try:
        return set(read(path, "cgroup.controllers").split())
    except FileNotFoundError:
        return set()


# ---- making and joining ------------------------------------------------------------------------


def create(path: str, resources: Resources | None = None) -> list[str]:
    """Make a cgroup and its missing ancestors, passing down every controller that there is.

    Answers the directories that were made, outermost first; nothing is left when it fails.
    Controllers that an ancestor refuses to pass (because it has processes itself, or because of
    missing permission) are not an error here: `set_resources` complains if a limit needs them.
    """
    root = mountpoint()
    if path != root and not path.startswith(root + "/"):
        raise CgroupError(f"{path} is not below {root}")
    made: list[str] = []
    current = root
    try:
        pass_controllers(current)
        parts = path[len(root) :].strip("/").split("/")
        for depth, part in enumerate(parts):
            current = f"{current}/{part}"
            try:
                os.mkdir(current, 0o755)
                made.append(current)
            except FileExistsError:
                pass
            join_threaded_domain(current, resources)
            if depth < len(parts) - 1:
                pass_controllers(current)
    except BaseException:
        for directory in reversed(made):
            try:
                os.rmdir(directory)
            except OSError:
                pass
        raise
    return made


def pass_controllers(path: str) -> None:
    """Enable in the children of a cgroup every controller that it has itself."""
    try:
        missing = controllers(path) - set(read(path, "cgroup.subtree_control").split())
    except OSError:
        return
    if not missing:
        return
    try:
        write(path, "cgroup.subtree_control", " ".join("+" + name for name in sorted(missing)))
    except OSError:
        # A controller that cannot be passed on (cpu with realtime processes, say) must not hold back the others.
        for name in sorted(missing):
            try:
                write(path, "cgroup.subtree_control", "+" + name)
            except OSError:
                pass


def join_threaded_domain(path: str, resources: Resources | None) -> None:
    """Below a threaded cgroup only threaded controllers exist: refuse limits that need others."""
    try:
        kind = read(path, "cgroup.type")
    except OSError:
        return
    if kind == "domain":
        return
    needs_domain = resources is not None and any(
        resources.get(name) for name in ("memory", "blockIO", "hugepageLimits")
    )
    if kind == "domain invalid" and not needs_domain:
        try:
            write(path, "cgroup.type", "threaded")
        except OSError:
            pass
    elif needs_domain:
        raise CgroupError(
            f"{path} is in {kind} mode, in which memory, io and hugetlb cannot be limited: "
            "its parent has processes or threads of its own; choose another linux.cgroupsPath"
        )


def attach(path: str, pid: int) -> None:
    """Move a process. The kernel answers EINVAL for a while during a creation: runc retries, so do we."""
    for attempt in range(5):
        try:
            return write(path, "cgroup.procs", str(pid))
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                # A threaded cgroup takes threads only.
                return write(path, "cgroup.threads", str(pid))
            if error.errno != errno.EINVAL or attempt == 4:
                raise CgroupError(f"cannot move process {pid} into the cgroup: {error}") from error
            time.sleep(0.03)
    return None


def open_directory(path: str) -> int:
    """A descriptor for clone3's CLONE_INTO_CGROUP."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def delegate(path: str, uid: int, gid: int) -> None:
    """Give a cgroup to a user, so that the user can make and manage cgroups below it."""
    try:
        with open("/sys/kernel/cgroup/delegate", "rb", 0) as file:
            names = os.fsdecode(file.read()).split()
    except OSError:
        names = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"]
    os.chown(path, uid, gid)
    for name in names:
        try:
            os.chown(f"{path}/{name}", uid, gid, follow_symlinks=False)
        except FileNotFoundError:
            pass


# ---- processes ---------------------------------------------------------------------------------


def descendants(path: str) -> list[str]:
    """The cgroup and all below it, parents first. What vanishes meanwhile is left out."""
    found = [path]
    for directory in found:
        try:
            with os.scandir(directory) as entries:
                found.extend(sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False)))
        except (FileNotFoundError, OSError):
            continue
    return found


def pids(path: str, recursive: bool = True) -> list[int]:
    """Processes of a cgroup, with those of all cgroups below it."""
    found: list[int] = []
    for directory in descendants(path) if recursive else [path]:
        try:
            found += [int(pid) for pid in read(directory, "cgroup.procs").split()]
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                found += [int(tid) for tid in read(directory, "cgroup.threads").split()]
            elif error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
    return sorted(set(found))


def kill(path: str) -> None:
    """SIGKILL to everything in a cgroup, atomically where the kernel can (5.14)."""
    try:
        return write(path, "cgroup.kill", "1")
    except OSError as error:
        if error.errno == errno.ENODEV or not os.path.exists(path):
            return None
        if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM):
            raise
    # Without cgroup.kill a fork can escape one round, not all of them.
    for _ in range(100):
        alive = pids(path)
        if not alive:
            return None
        for pid in alive:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
        time.sleep(0.01)
    return None


def wait_for_event(path: str, key: str, value: str, timeout: float) -> bool:
    """Wait until cgroup.events says `key value`. The kernel reports changes of the file by POLLPRI."""
    try:
        descriptor = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return key == "populated"
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLPRI)
        deadline = time.monotonic() + timeout
        wanted = f"{key} {value}"
        while True:
            try:
                text = os.fsdecode(os.pread(descriptor, 4096, 0))
            except OSError:
                return key == "populated"
            if wanted in text.splitlines():
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            poller.poll(min(remaining, 1.0) * 1000)
    finally:
        os.close(descriptor)


def freeze(path: str) -> None:
    """Stop every task of a cgroup, and wait until they all have stopped."""
    try:
        write(path, "cgroup.freeze", "1")
    except FileNotFoundError:
        raise CgroupError(f"cannot pause: {path} has no cgroup.freeze (is the container running?)") from None
    if not wait_for_event(path, "frozen", "1", FREEZE_TIMEOUT):
        write(path, "cgroup.freeze", "0")
        raise CgroupError(f"cannot pause: not all tasks of {path} stopped within {FREEZE_TIMEOUT:.0f} s")


def thaw(path: str) -> None:
    """Let a frozen cgroup run on. No error if there is none."""
    try:
        write(path, "cgroup.freeze", "0")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def is_frozen(path: str) -> bool:
    """Whether a cgroup is, or is about to be, frozen by its own cgroup.freeze."""
    try:
        return read(path, "cgroup.freeze") == "1"
    except OSError:
        return False


def remove(path: str, timeout: float = REMOVE_TIMEOUT) -> None:
    """Remove a cgroup and all below it. A dying process can hold it for a moment: wait for that."""
    try:
        return os.rmdir(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EBUSY:
            # a read-only tree, or another user's: that does not change while we wait
            if not os.path.exists(path):
                return None
            raise CgroupError(f"cannot remove the cgroup {path}: {error.strerror}") from None
    deadline = time.monotonic() + timeout
    pause = 0.001
    while True:
        busy: OSError | None = None
        for directory in reversed(descendants(path)):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                pass
            except OSError as error:
                busy = error
        if busy is None:
            return None
        if time.monotonic() > deadline:
            raise CgroupError(f"cannot remove the cgroup {path}: {busy.strerror}")
        if not wait_for_event(path, "populated", "0", min(pause, deadline - time.monotonic())):
            continue
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


# ---- conversions from version 1's words --------------------------------------------------------


def cpu_weight(shares: int) -> int:
    """cpu.weight for v1 CPU shares: 2 is 1, 1024 (the default) is 100 (the default), 262144 is 10000.

    The curve through those three points that runc, crun and Kubernetes agreed on; 0 is unset.
    """
    if shares == 0:
        return 0
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    power = log2(shares)
    return int(ceil(10 ** ((power * power + 125 * power) / 612.0 - 7.0 / 34.0)))


def io_weight(weight: int) -> int:
    """io.weight [1, 10000] for v1's blkio weight [10, 1000], linearly; 0 is unset."""
    return 0 if weight == 0 else 1 + (weight - 10) * 9999 // 990


def swap_limit(memory_and_swap: int | None, memory: int | None) -> int | None:
    """memory.swap.max for v1's memory+swap limit. None leaves it alone, -1 is no limit."""
    swap = memory_and_swap or 0
    limit = memory or 0
    if limit == -1 and swap == 0:
        # Unlimited memory with swap not mentioned means both.
        return -1
    if swap == 0:
        return None
    if swap == -1 or limit == -1:
        return swap
    if limit == 0:
        raise CgroupError(
            "linux.resources.memory.swap: memory and swap together are limited, memory alone is not: "
            "set memory.limit as well"
        )
    if limit < 0:
        raise CgroupError(f"linux.resources.memory.limit: {limit} is not a size")
    if swap < limit:
        raise CgroupError(
            f"linux.resources.memory.swap: memory and swap together ({swap}) must not be less than "
            f"memory alone ({limit})"
        )
    return swap - limit


def pids_limit(limit: int) -> str:
    """pids.max. Zero becomes one, as with runc, because systemd knows no TasksMax=0."""
    return MAX if limit < 0 else str(max(limit, 1))


def _size(value: int) -> str:
    return MAX if value == -1 else str(value)


# ---- limits ------------------------------------------------------------------------------------


# What a cgroup has anyway: where the controller is missing, these values need none.
NEUTRAL = {"cpu.idle": "0", "cpu.weight": "100", "cpu.max.burst": "0", "io.weight": "100"}


def _limit(path: str, name: str, value: str, field: str) -> None:
    """Write a limit; a missing file is a missing controller, told in the words of the spec.

    Except that no limit, or the default (ctr asks for 1024 CPU shares each time), needs none.
    """
    try:
        write(path, name, value)
    except OSError as error:
        controller = name.partition(".")[0]
        if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM):
            available = controllers(path)
            if controller not in available and controller != "cgroup":
                if value.split()[:1] == [MAX] or NEUTRAL.get(name) == value:
                    return
                have = ", ".join(sorted(available)) or "none"
                raise CgroupError(
                    f"linux.resources.{field}: the requested cgroup controller `{controller}` is not available "
                    f"in {path} (it has: {have}): leave the limit out, or enable the controller in the parent"
                ) from None
            if error.errno == errno.ENOENT:
                raise CgroupError(f"linux.resources.{field}: this kernel has no {name}") from None
        raise CgroupError(f"linux.resources.{field}: {error.filename}: {error.strerror}") from error


def set_resources(path: str, resources: Resources) -> None:
    """Apply every limit of `linux.resources` but devices (see `teu.linux.bpf`) to a cgroup."""
    set_pids(path, resources.get("pids") or {})
    set_memory(path, resources.get("memory") or {})
    set_block_io(path, resources.get("blockIO") or {})
    set_cpu(path, resources.get("cpu") or {})
    set_hugetlb(path, resources.get("hugepageLimits") or [])
    set_rdma(path, resources.get("rdma") or {})
    set_unified(path, resources.get("unified") or {})


def set_pids(path: str, pids: Resources) -> None:
    """linux.resources.pids: the most processes, -1 for no limit. Raises OSError with the field where the kernel
    refuses."""
    limit = pids.get("limit")
    if limit is not None:
        _limit(path, "pids.max", pids_limit(limit), "pids.limit")


def set_memory(path: str, memory: Resources) -> None:
    """limit, swap, reservation. Kernel memory is not limited apart in version 2, and ignored."""
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    reservation = memory.get("reservation") or 0
    if memory.get("checkBeforeUpdate"):
        check_usage(path, limit, swap)
    swap_only = swap_limit(swap, limit)
    if swap_only is not None:
        try:
            write(path, "memory.swap.max", _size(swap_only))
        except FileNotFoundError:
            # Without swap accounting, "no swap" and "unlimited" are both simply the case.
            if swap_only > 0:
                _limit(path, "memory.swap.max", _size(swap_only), "memory.swap")
        except OSError as error:
            raise CgroupError(f"linux.resources.memory.swap: {error.filename}: {error.strerror}") from error
    if limit:
        _limit(path, "memory.max", _size(limit), "memory.limit")
    if reservation:
        _limit(path, "memory.low", _size(reservation), "memory.reservation")


def check_usage(path: str, limit: int, swap: int) -> None:
    """Refuse a limit below what is used already: setting it would kill the container."""
    if limit <= 0 and swap <= 0:
        return
    try:
        usage = int(read(path, "memory.current"))
    except (OSError, ValueError):
        return
    if 0 < swap <= usage:
        raise CgroupError(f"rejecting memory+swap limit {swap} <= usage {usage}")
    if 0 < limit <= usage:
        raise CgroupError(f"rejecting memory limit {limit} <= usage {usage}")


def set_cpu(path: str, cpu: Resources) -> None:
    """linux.resources.cpu: shares, quota, period and burst in microseconds, idle, and the sets of CPUs and memory
    nodes. Raises OSError with the field where the kernel refuses."""
    idle = cpu.get("idle")
    if idle is not None:
        _limit(path, "cpu.idle", str(idle), "cpu.idle")
    weight = cpu_weight(cpu.get("shares") or 0)
    if weight and idle != 1:
        # An idle cgroup has weight 0 by definition and refuses another.
        _limit(path, "cpu.weight", str(weight), "cpu.shares")
    burst = cpu.get("burst")
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 0
    if burst is not None and not (quota or period):
        _limit(path, "cpu.max.burst", str(burst), "cpu.burst")
        burst = None
    elif burst is not None:
        # The burst must not exceed the quota: lowered before it, raised after it.
        try:
            write(path, "cpu.max.burst", str(burst))
            burst = None
        except OSError as error:
            if error.errno != errno.EINVAL:
                _limit(path, "cpu.max.burst", str(burst), "cpu.burst")
    if quota or period:
        value = f"{quota if quota > 0 else MAX} {period or DEFAULT_CPU_PERIOD}"
        _limit(path, "cpu.max", value, "cpu.quota" if quota else "cpu.period")
        if burst is not None:
            _limit(path, "cpu.max.burst", str(burst), "cpu.burst")
    if cpu.get("cpus"):
        _limit(path, "cpuset.cpus", cpu["cpus"], "cpu.cpus")
    if cpu.get("mems"):
        _limit(path, "cpuset.mems", cpu["mems"], "cpu.mems")


# blockIO's throttle lists and the keys of io.max that they set.
THROTTLES = (
    ("throttleReadBpsDevice", "rbps"),
    ("throttleWriteBpsDevice", "wbps"),
    ("throttleReadIOPSDevice", "riops"),
    ("throttleWriteIOPSDevice", "wiops"),
)


def set_block_io(path: str, block_io: Resources) -> None:
    """linux.resources.blockIO: weights, and rates of devices in bytes or operations per second; a rate of 0 is none.
    Raises OSError with the field where the kernel refuses."""
    weight = block_io.get("weight") or 0
    devices = block_io.get("weightDevice") or []
    if weight or devices:
        # The BFQ scheduler has v1's own scale and file; without it the io cost model's weight serves.
        bfq = os.path.exists(f"{path}/io.bfq.weight")
        name = "io.bfq.weight" if bfq else "io.weight"
        if weight:
            _limit(path, name, str(weight if bfq else io_weight(weight)), "blockIO.weight")
        for device in devices:
            value = device.get("weight") or 0
            if value:
                line = f"{device['major']}:{device['minor']} {value if bfq else io_weight(value)}"
                _limit(path, name, line, "blockIO.weightDevice")
    for field, key in THROTTLES:
        for device in block_io.get(field) or []:
            rate = device.get("rate") or MAX
            _limit(path, "io.max", f"{device['major']}:{device['minor']} {key}={rate}", f"blockIO.{field}")


def set_hugetlb(path: str, limits: Iterable[Resources]) -> None:
    """linux.resources.hugepageLimits: bytes by page size. Raises OSError with the field where the kernel refuses."""
    for entry in limits:
        size = entry["pageSize"]
        _limit(path, f"hugetlb.{size}.max", str(entry["limit"]), "hugepageLimits")
        try:
            # Reservations (mmap) are charged apart since 5.7, or a limit would be met by SIGBUS.
            write(path, f"hugetlb.{size}.rsvd.max", str(entry["limit"]))
        except FileNotFoundError:
            pass


def set_rdma(path: str, rdma: Resources) -> None:
    """linux.resources.rdma: handles and objects by device. Raises OSError with the field where the kernel refuses."""
    for device, limits in rdma.items():
        handles, objects = limits.get("hcaHandles"), limits.get("hcaObjects")
        line = device
        if handles is not None:
            line += f" hca_handle={handles}"
        if objects is not None:
            line += f" hca_object={objects}"
        if line != device:
            _limit(path, "rdma.max", line, f"rdma.{device}")


def set_unified(path: str, unified: dict[str, str]) -> None:
    """Files of version 2 by their own names; a value of several lines is written line by line."""
    for name, value in unified.items():
        if "/" in name:
            raise CgroupError(f"linux.resources.unified: {name!r} must be a file's name, without slashes")
        controller, dot, _ = name.partition(".")
        if not controller or not dot:
            raise CgroupError(f"linux.resources.unified: the specified key has not the form CONTROLLER.VALUE `{name}`")
        for line in value.splitlines() or [""]:
            _limit(path, name, line, f"unified[{name}]")


def oom_kills(path: str) -> int:
    """How many processes the memory controller has killed in this cgroup so far."""
    try:
        return read_pairs(path, "memory.events").get("oom_kill", 0)
    except OSError:
        return 0
