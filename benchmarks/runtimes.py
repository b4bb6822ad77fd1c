#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""teu-runc against runc and crun on one OCI bundle, in turns: `./dev bench` calls `rows`, or run it in a lab.

    python3 benchmarks/runtimes.py [--rounds 50]

Cold means what an engine pays: a new process for each command. The bundle is docker's shape: all
namespaces but user, its mounts, masked paths, capabilities and a seccomp profile of its size.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measure import Job, Row, run, table, turns

RUNTIMES = {"teu-runc": "/usr/sbin/teu-runc", "runc": "/usr/sbin/runc", "crun": "/usr/bin/crun"}
PLACE = "/var/lib"
_numbers = itertools.count()

CAPABILITIES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
]
# As many as docker's own profile allows; which they are does not matter to the time.
CALLS = (
    "accept accept4 access alarm bind brk capget capset chdir chmod chown clock_getres clock_gettime clock_nanosleep "
    "clone clone3 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl "
    "epoll_pwait epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate "
    "fchdir fchmod fchmodat fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr "
    "fstat fstatfs fsync ftruncate futex futimesat getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups "
    "getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit "
    "get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getxattr "
    "inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents "
    "ioprio_get ioprio_set io_setup io_submit kill lchown lgetxattr link linkat listen listxattr llistxattr "
    "lremovexattr lseek lsetxattr lstat madvise membarrier memfd_create mincore mkdir mkdirat mknod mknodat mlock "
    "mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap "
    "msgctl msgget msgrcv msgsnd msync munlock munlockall munmap nanosleep newfstatat open openat openat2 pause "
    "pidfd_open pidfd_send_signal pipe pipe2 poll ppoll prctl pread64 preadv preadv2 prlimit64 pselect6 pwrite64 "
    "pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr "
    "rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo "
    "rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam "
    "sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_setaffinity "
    "sched_setattr sched_setparam sched_setscheduler sched_yield select semctl semget semop semtimedop sendfile "
    "sendmmsg sendmsg sendto setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid "
    "setresuid setreuid setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setxattr "
    "shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socket socketpair splice stat statfs statx "
    "symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timerfd_create "
    "timerfd_gettime timerfd_settime timer_getoverrun timer_gettime timer_settime times tkill truncate umask uname "
    "unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid write writev arch_prctl modify_ldt"
)


def mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def config(seccomp: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "ociVersion": "1.1.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
            mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
            mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro", "nosuid", "noexec", "nodev"),
            mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
            mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=67108864"),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc", "cgroup")],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": [
                "/proc/asound",
                "/proc/acpi",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/proc/scsi",
                "/sys/firmware",
                "/sys/devices/virtual/powercap",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }
    if seccomp:
        spec["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                {"names": CALLS.split(), "action": "SCMP_ACT_ALLOW"},
                *(
                    {
                        "names": ["personality"],
                        "action": "SCMP_ACT_ALLOW",
                        "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}],
                    }
                    for value in (0, 8, 131072, 131080)
                ),
            ],
        }
    return spec


@contextlib.contextmanager
def bundle(seccomp: bool = True, args: tuple[str, ...] = ("/bin/true",)) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="teu-bench-", dir=PLACE))
    (folder / "rootfs/bin").mkdir(parents=True)
    for name in ("proc", "sys", "dev", "etc", "tmp"):
        (folder / "rootfs" / name).mkdir()
    shutil.copy("/usr/bin/busybox", folder / "rootfs/bin/busybox")
    for applet in ("true", "sh", "sleep", "echo"):
        (folder / "rootfs/bin" / applet).symlink_to("busybox")
    spec = config(seccomp)
    spec["process"]["args"] = list(args)
    (folder / "config.json").write_text(json.dumps(spec))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def present() -> dict[str, str]:
    return {name: path for name, path in RUNTIMES.items() if os.access(path, os.X_OK)}


def leave(*argv: str) -> None:
    """A command that leaves a process behind, which would keep a pipe open."""
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def name() -> str:
    return f"bench{next(_numbers)}"


def each(make: Callable[[str], Job]) -> dict[str, Job]:
    return {who: make(path) for who, path in present().items()}


def rows(rounds: int) -> Iterator[Row]:
    """The table's lines; ours is the first contestant of each."""
    for seccomp in (True, False):
        with bundle(seccomp) as folder:
            title = "OCI bundle, run" + ("" if seccomp else " (no seccomp)")

            def run_once(path: str, folder: Path = folder) -> Job:
                return lambda _: run([path, "run", "-b", str(folder), name()])

            yield turns(title, each(run_once), rounds, note="cold, to the end of /bin/true")

    with bundle() as folder:

        def three(path: str) -> Job:
            def job(_: int) -> None:
                identifier = name()
                leave(path, "create", "-b", str(folder), identifier)
                leave(path, "start", identifier)
                leave(path, "delete", "-f", identifier)

            return job

        yield turns("OCI bundle, create + start + delete", each(three), rounds)

    with bundle(args=("/bin/sleep", "1000")) as folder:
        identifiers = {path: name() for path in present().values()}
        for path, identifier in identifiers.items():
            leave(path, "run", "-d", "-b", str(folder), identifier)
        try:
            for verb in (("state",), ("kill", "0"), ("exec", "/bin/true")):

                def one(path: str, verb: tuple[str, ...] = verb) -> Job:
                    return lambda _: run([path, verb[0], identifiers[path], *verb[1:]])

                yield turns(f"OCI runtime, {verb[0]}", each(one), rounds)
        finally:
            for path, identifier in identifiers.items():
                leave(path, "delete", "-f", identifier)

        def remove(path: str) -> Job:
            def job(_: int) -> None:
                leave(path, "delete", "-f", identifier_of[path])

            return job

        row = Row("OCI runtime, delete -f of a running one", "ms", {who: [] for who in present()})
        for index in range(rounds + 1):
            identifier_of: dict[str, str] = {}
            for who, path in present().items():
                identifier_of[path] = name()
                leave(path, "run", "-d", "-b", str(folder), identifier_of[path])
                begin = time.perf_counter()
                remove(path)(index)
                if index:
                    row.samples[who].append((time.perf_counter() - begin) * 1000)
        yield row

    with bundle() as folder:
        count = 100

        def many(path: str) -> Job:
            def job(_: int) -> None:
                made = [name() for _ in range(count)]
                with ThreadPoolExecutor(8) as pool:
                    list(pool.map(lambda one: leave(path, "create", "-b", str(folder), one), made))
                with ThreadPoolExecutor(8) as pool:
                    list(pool.map(lambda one: leave(path, "delete", "-f", one), made))

            return job

        yield turns(
            "OCI runtime, 100 created and deleted, 8 at a time", each(many), max(1, rounds // 10), 1, count, note="each"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    print(table(list(rows(parser.parse_args().rounds))), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
