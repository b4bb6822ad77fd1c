# SPDX-License-Identifier: Apache-2.0
"""The namespace lab: Debian under its own systemd, in namespaces of this machine, booted in about a second.

Called by `./dev lab` (through `__main__.py`), by the test runner, and by fixtures of the lab's own tests.

An instance is a folder CACHE/instances/NAME:

    upper/ work/    overlay on the cached root file system
    var-lib/        /var/lib: plainly on the host's file system, as overlay cannot sit on overlay
    root/           where the supervisor puts it together (seen only in its own mount namespace)
    state           "PID STARTTIME" of the instance's PID 1, as the host sees it
    console.log     what its systemd wrote on /dev/console

and a cgroup teu-lab-NAME in the host's cgroup v2 tree. A supervisor process waits for the instance's
PID 1 and takes all of that away when it is gone, so killing PID 1 is all there is to stopping.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Sequence
from pathlib import Path

from lab import rootfs

INSTANCES = rootfs.CACHE / "instances"

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)

SBIN = ("teu-runc", "teu-containerd", "teu-buildkitd", "teud")
BIN = ("teu", "teu-ctr", "containerd-shim-teu-v2")
OTHERS = (("usr/libexec/teu", ("teu-unit",)), ("usr/lib/systemd/system-generators", ("teu-system-generator",)))


class LabError(Exception):
    """What was asked, what was in the way."""


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    _check(
        _libc.mount(
            source.encode(), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
        ),
        f"mount {source} on {target}",
    )


def _bind(source: Path, target: Path, read_only: bool = False) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(str(source), target, flags=MS_BIND)
    if read_only:
        _mount("", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


# --- instances, as the host sees them ----------------------------------------


def _start_time(pid: int) -> str | None:
    """When the process began, None where there is none or it has ended (and waits for its parent)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def pid_of(name: str) -> int | None:
    """The host's pid of the instance's PID 1, None where it is not running."""
    try:
        pid, started = (INSTANCES / name / "state").read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if _start_time(int(pid)) == started else None


def running() -> list[str]:
    """Names of the running instances."""
    if not INSTANCES.is_dir():
        return []
    return sorted(path.name for path in INSTANCES.iterdir() if pid_of(path.name))


def _cgroup2() -> Path:
    """Where the host has its cgroup v2 tree."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise LabError("this machine has no cgroup2 mount: mount -t cgroup2 none /sys/fs/cgroup/unified")


def _cgroup_of(name: str) -> Path:
    return _cgroup2() / f"teu-lab-{name}"


def _remove_cgroup(name: str) -> None:
    top = _cgroup_of(name)
    for _ in range(200):  # the last processes of a killed pid namespace may need a moment
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        if not top.exists():
            return
        time.sleep(0.02)


# --- start ----------------------------------------


def start(
    name: str,
    release: str = "trixie",
    source: Path | None = None,
    dev: bool = False,
    keep_disk: bool = False,
    binds: Sequence[str] = (),
    timeout: float = 60,
    kind: str = "lab",
) -> int:
    """Boot an instance and return the host's pid of its PID 1, once its systemd says it is up.

    source is the tree to show at /src; with dev its programs stand in the place of the installed ones.
    binds are HOST:INSIDE or HOST:INSIDE:ro. With keep_disk the instance's files stay when it ends, and
    are found again by the next start of the same name.
    """
    if os.geteuid() != 0:
        raise LabError("the lab needs root")
    if pid_of(name):
        raise LabError(f"instance {name} is already running: ./dev lab stop --name {name}")
    root = rootfs.ensure(release, kind)
    home = INSTANCES / name
    home.mkdir(parents=True, exist_ok=True)
    (home / "state").unlink(missing_ok=True)
    ready_path = home / "ready.socket"
    ready_path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(str(ready_path))
        if os.fork() == 0:
            try:
                _supervise(name, root, home, source, dev, keep_disk, list(binds))
            except BaseException:
                (home / "supervisor.log").write_text(traceback.format_exc())
            os._exit(1)
        deadline = time.monotonic() + timeout
        message = ""
        while "READY=1" not in message.split("\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([ready], [], [], left)[0]:
                stop(name)
                raise LabError(f"instance {name} did not boot in {timeout:.0f} s:\n{console(home)}")
            message = ready.recv(4096).decode(errors="replace")
            if message.startswith("FAILED"):
                raise LabError(f"instance {name} did not start: {message[7:]}\n{console(home)}")
    pid = pid_of(name)
    if not pid:
        raise LabError(f"instance {name} ended at once:\n{console(home)}")
    return pid


def console(home: Path) -> str:
    """The end of what was written on the instance's console."""
    try:
        return "\n".join((home / "console.log").read_text(errors="replace").splitlines()[-30:])
    except OSError:
        return "(no console output)"


def _tell(home: Path, text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto(text.encode(), str(home / "ready.socket"))


def _supervise(
    name: str, root: Path, home: Path, source: Path | None, dev: bool, keep_disk: bool, binds: list[str]
) -> None:
    """The daemon that owns the instance: makes its namespaces, starts PID 1, waits, and cleans up."""
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, 4096)
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    console_log = os.open(home / "console.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    master, slave = os.openpty()
    console_name = os.ttyname(slave)
    pid = 0
    try:
        cgroup = _cgroup_of(name)
        cgroup.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):  # what the host has to give
            controllers = (_cgroup2() / "cgroup.controllers").read_text().split()
            (_cgroup2() / "cgroup.subtree_control").write_text(" ".join("+" + each for each in controllers))
        home_cgroup = _own_cgroup()
        (cgroup / "cgroup.procs").write_text("0")
        try:
            # Not the mount namespace: pivot_root(2) would move the supervisor's root as well.
            _check(
                _libc.unshare(CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWCGROUP),
                "unshare",
            )
            go_read, go_write = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(go_write)
                    os.close(master)
                    os.read(go_read, 1)  # until the supervisor has written our pid down
                    _check(_libc.unshare(CLONE_NEWNS), "unshare the mount namespace")
                    _mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)
                    _become_init(name, root, home, Path(console_name), slave, source, dev, binds)
                except BaseException as error:
                    _tell(home, f"FAILED {error!r}")
                os._exit(1)
        finally:
            # The supervisor itself must not be in the cgroup it will remove.
            with contextlib.suppress(OSError):
                home_cgroup.write_text("0")
        (home / "state").write_text(f"{pid} {_start_time(pid)}\n")
        os.close(go_read)
        os.close(go_write)
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(master, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        ended = False
        while not ended:
            for descriptor, events in poll.poll():
                if descriptor == pidfd:
                    ended = True
                elif events & select.POLLIN:
                    os.write(console_log, os.read(master, 65536))
        os.waitpid(pid, 0)
    except Exception as error:
        _tell(home, f"FAILED {error!r}")
    finally:
        _remove_cgroup(name)
        (home / "ready.socket").unlink(missing_ok=True)
        if not keep_disk:
            # state goes last: who waits for the end looks at it
            for part in ("upper", "work", "var-lib", "root"):
                shutil.rmtree(home / part, ignore_errors=True)
        (home / "state").unlink(missing_ok=True)
        if not keep_disk:
            shutil.rmtree(home, ignore_errors=True)
    os._exit(0)


def _own_cgroup() -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return Path(f"{_cgroup2()}{line[3:]}") / "cgroup.procs"
    return _cgroup2() / "cgroup.procs"


def _become_init(
    name: str, root: Path, home: Path, console_path: Path, slave: int, source: Path | None, dev: bool, binds: list[str]
) -> None:
    """In the new namespaces, as their PID 1: put the root together, go there, and become systemd."""
    os.setsid()
    target = home / "root"
    for part in ("upper", "work", "root"):
        (home / part).mkdir(exist_ok=True)
    if not (home / "var-lib").exists():
        subprocess.run(["cp", "-a", "--reflink=auto", str(root / "var/lib"), str(home / "var-lib")], check=True)
    _mount("teu-lab", target, "overlay", 0, f"lowerdir={root},upperdir={home}/upper,workdir={home}/work")
    _mount(str(home / "var-lib"), target / "var/lib", flags=MS_BIND)

    _mount("proc", target / "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # The host's sysctls are not the lab's to change; those of its own network namespace are.
    _mount(str(target / "proc/sys"), target / "proc/sys", flags=MS_BIND)
    _mount(str(target / "proc/sys/net"), target / "proc/sys/net", flags=MS_BIND)
    _mount("", target / "proc/sys", flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
    if Path("/proc/sysrq-trigger").exists():
        _mount(str(target / "proc/sysrq-trigger"), target / "proc/sysrq-trigger", flags=MS_BIND)
        _mount("", target / "proc/sysrq-trigger", flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
    _mount("sysfs", target / "sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount("cgroup2", target / "sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _devices(target / "dev", console_path)
    _mount("tmpfs", target / "run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=2g")
    _bind(home / "ready.socket", target / "run/host/notify")
    (target / "run/host/lab").write_text("namespace\n")

    if source:
        _bind(source, target / "src", read_only=True)
        if dev:
            install_tree(source, target)
    for each in binds:
        outside, inside, *options = each.split(":")
        _bind(Path(outside), target / inside.lstrip("/"), read_only="ro" in options)

    machine_id = target / "etc/machine-id"
    if not machine_id.read_text().strip():
        machine_id.write_text(uuid.uuid4().hex + "\n")
    _check(_libc.sethostname(b"teu-lab", 7), "sethostname")

    os.chdir(target)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount the host's root")
    os.chdir("/")
    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    terminal = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)
    for descriptor in (0, 1, 2):
        os.dup2(terminal, descriptor)
    os.closerange(3, 4096)
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "container": "teu-lab",
        "container_uuid": str(uuid.uuid4()),
        "NOTIFY_SOCKET": "/run/host/notify",
        "LANG": "C.UTF-8",
    }
    os.execve("/lib/systemd/systemd", ["/sbin/init"], environment)


def _devices(dev: Path, console_path: Path) -> None:
    """A /dev with the nodes of a container, and the few more that container engines use."""
    _mount("tmpfs", dev, "tmpfs", MS_NOSUID, "mode=755,size=16m")
    nodes = {
        "null": (1, 3),
        "zero": (1, 5),
        "full": (1, 7),
        "random": (1, 8),
        "urandom": (1, 9),
        "tty": (5, 0),
        "fuse": (10, 229),
        "net/tun": (10, 200),
        "loop-control": (10, 237),
    }
    os.umask(0)
    for node, (major, minor) in nodes.items():
        (dev / node).parent.mkdir(exist_ok=True)
        os.mknod(dev / node, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
    os.umask(0o022)
    for link, to in (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ):
        (dev / link).symlink_to(to)
    for folder in ("pts", "shm", "mqueue"):
        (dev / folder).mkdir()
    _mount("devpts", dev / "pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
    _mount("tmpfs", dev / "shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=1g")
    _mount("mqueue", dev / "mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _bind(console_path, dev / "console")


def install_tree(source: Path, target: Path) -> None:
    """Stand the working tree's programs, units and configuration where the packages would put them.

    Python and programs are live (an edit is seen at the next start of the program); units and
    configuration are copied.
    """
    package = target / "usr/lib/python3/dist-packages/teu"
    _bind(source / "src/teu", package)
    # Byte code as an installed package has it: without it every start would compile.
    subprocess.run(
        ["chroot", str(target), "/usr/bin/python3", "-m", "compileall", "-q", "/usr/lib/python3/dist-packages/teu"],
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _mount("", package, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
    for folder, programs in (("usr/sbin", SBIN), ("usr/bin", BIN), *OTHERS):
        (target / folder).mkdir(parents=True, exist_ok=True)
        for program in programs:
            link = target / folder / program
            link.unlink(missing_ok=True)
            link.symlink_to(f"/src/bin/{program}")
    units = target / "usr/lib/systemd/system"
    for unit in sorted((source / "systemd").glob("*")):
        if unit.suffix in (".service", ".socket", ".slice", ".target", ".timer"):
            shutil.copy(unit, units / unit.name)
            if unit.suffix == ".socket":
                wants = target / "etc/systemd/system/sockets.target.wants"
                wants.mkdir(parents=True, exist_ok=True)
                if not (wants / unit.name).is_symlink():
                    (wants / unit.name).symlink_to(f"/usr/lib/systemd/system/{unit.name}")
        wanted = target / "etc/systemd/system/multi-user.target.wants" / unit.name
        if "WantedBy=multi-user.target" in unit.read_text() and not wanted.is_symlink():
            wanted.parent.mkdir(parents=True, exist_ok=True)
            wanted.symlink_to(f"/usr/lib/systemd/system/{unit.name}")
    if (source / "etc").is_dir():
        shutil.copytree(source / "etc", target / "etc/teu", dirs_exist_ok=True)
    (target / "usr/lib/sysusers.d").mkdir(parents=True, exist_ok=True)
    (target / "usr/lib/sysusers.d/teu.conf").write_text("g teu -\n")
    subprocess.run(["chroot", str(target), "systemd-sysusers", "teu.conf"], check=False, stderr=subprocess.DEVNULL)


# --- enter, stop ----------------------------------------


def enter_command(name: str, command: Sequence[str], environment: Sequence[str] = ()) -> list[str]:
    """A command line for the host that runs command inside, in the cgroup lab-exec of the instance."""
    pid = pid_of(name)
    if not pid:
        raise LabError(f"instance {name} is not running: ./dev lab start --name {name}")
    cgroup = _cgroup_of(name) / "lab-exec"
    inside = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
    inside += ["LANG=C.UTF-8", f"TERM={os.environ.get('TERM', 'linux')}", "TEU_LAB=namespace", *environment]
    # No --fork: nsenter itself forks for the pid namespace and hands on the exit status and signals.
    enter = ["nsenter", "-t", str(pid), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", *inside, *command]
    script = 'mkdir -p "$0" && echo 0 >"$0/cgroup.procs" && exec "$@"'
    return ["sh", "-c", script, str(cgroup), *enter]


def execute(name: str, command: Sequence[str], environment: Sequence[str] = ()) -> int:
    """Run command inside with our stdin, stdout and stderr; its exit status, 128+n for a signal."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        # A terminal of the instance's own devpts, so that ttyname() and job control work in there.
        quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in command)
        command = ["script", "--quiet", "--return", "--command", quoted, "/dev/null"]
    status = subprocess.run(enter_command(name, command, environment), check=False).returncode
    return status if status >= 0 else 128 - status


def install_packages(name: str, debs: Sequence[str]) -> None:
    """Install Debian packages, files of the host, in the running instance with apt."""
    for deb in debs:
        with open(deb, "rb") as file:
            copy = enter_command(name, ["sh", "-c", f"cat >/var/tmp/{Path(deb).name}"])
            subprocess.run(copy, stdin=file, check=True)
    files = [f"/var/tmp/{Path(deb).name}" for deb in debs]
    done = subprocess.run(
        enter_command(
            name,
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0", *files],
            ["DEBIAN_FRONTEND=noninteractive"],
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise LabError(f"apt-get install failed:\n{done.stdout}{done.stderr}")


def stop(name: str, timeout: float = 20) -> None:
    """Kill the instance's PID 1, and with it all of it; wait until nothing is left."""
    pid = pid_of(name)
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    home = INSTANCES / name
    deadline = time.monotonic() + timeout
    while (home / "state").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
        if not pid:
            break
    if not pid_of(name):
        with contextlib.suppress(OSError):
            (home / "state").unlink(missing_ok=True)
