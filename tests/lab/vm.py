# SPDX-License-Identifier: Apache-2.0
"""The VM lab: the namespace lab's root file system under QEMU, with Debian's own kernel.

Called by `./dev vm` (through `__main__.py`) and by the test runner. What it has that the namespace lab
has not: every cgroup v2 controller, AppArmor, a kernel of its own, and a power switch.

    CACHE/vm-RELEASE-HASH/      vmlinuz, initramfs, disk.raw: made once
    CACHE/vms/NAME/             disk.qcow2 (the changes of this machine), src.tar (the tree, as a disk),
                                port.0... (sockets of the virtio-serial ports), console.log, state

KVM is used where it works, else software emulation (about ten times slower). The only network is QEMU's
user network with restrict=on: nothing gets out.

QEMU is Debian 13's on any host, from a root file system of its own. That of Debian 12 (7.2) may translate an
instruction while another processor overwrites it: Linux patches its own code when a switch in it is turned (the first
nftables chain of a hook, the first program on a cgroup), trips over what was there for a moment, and panics.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import lzma
import os
import secrets
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Sequence
from pathlib import Path

from lab import build, namespace, rootfs
from lab.namespace import LabError

MACHINES = rootfs.CACHE / "vms"
PORTS = 6
DISK_SIZE = "12G"
AGENT = Path(__file__).with_name("agent.py")

UNIT = """[Unit]
Description=Agent of the VM lab
DefaultDependencies=no
After=local-fs.target systemd-tmpfiles-setup-dev.service
Conflicts=shutdown.target

[Service]
ExecStart=/usr/bin/python3 -I /usr/local/lib/teu-lab/agent.py
Restart=always
KillMode=process
OOMScoreAdjust=-1000
LimitNOFILE=1024:524288
TasksMax=infinity
Delegate=yes

[Install]
WantedBy=multi-user.target
"""

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
while read module; do /bin/busybox insmod "/modules/$module" || echo "initramfs: $module failed"; done </modules/list
tries=0
until [ -b /dev/vda ]; do
    tries=$((tries + 1)); [ $tries -lt 500 ] || { echo "initramfs: no /dev/vda"; exec /bin/busybox poweroff -f; }
    /bin/busybox usleep 10000
done
/bin/busybox mount -t ext4 /dev/vda /root || exec /bin/busybox poweroff -f
/bin/busybox mount --move /dev /root/dev
/bin/busybox umount /proc
exec /bin/busybox switch_root /root /lib/systemd/systemd
"""

# In the image: what the namespace lab cannot use and a machine needs.
UNMASK = """
    systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service
    systemd-udev-settle.service systemd-modules-load.service sys-kernel-debug.mount sys-kernel-tracing.mount
    dev-hugepages.mount
"""
MODULES = ("virtio_pci", "virtio_blk", "ext4")

# What software emulation pays for dearly and a lab can be without. Programs at the same addresses each
# time keep their translated code: half of a new process's cost is saved by that alone.
EMULATED = "norandmaps nokaslr mitigations=off randomize_kstack_offset=off init_on_alloc=0 audit=0 nowatchdog"
PROCESSOR = "max,smap=off,smep=off,pku=off,la57=off"


# --- the image ----------------------------------------


def qemu(program: str) -> list[str]:
    """How to call one of QEMU's programs."""
    root = rootfs.ensure("trixie", "qemu")
    loader = root / "usr/lib64/ld-linux-x86-64.so.2"
    command = [str(loader), "--argv0", program, "--library-path", str(root / "usr/lib/x86_64-linux-gnu")]
    command.append(str(root / "usr/bin" / program))
    if program.startswith("qemu-system"):
        for firmware in ("qemu", "seabios"):
            command += ["-L", str(root / "usr/share" / firmware)]
    return command


def ensure(release: str) -> Path:
    """The folder with vmlinuz, initramfs and disk.raw, made now (half a minute) if it is not there."""
    root = rootfs.ensure(release)
    recipe = "\n".join([root.name, AGENT.read_text(), UNIT, INIT, UNMASK, DISK_SIZE, "1"])
    final = rootfs.CACHE / f"vm-{release}-{hashlib.sha256(recipe.encode()).hexdigest()[:10]}"
    if rootfs.used(final):
        return final
    with rootfs.cache_lock(f"lock-vm-{release}"):
        if rootfs.used(final):
            return final
        print(f"lab: making the {release} VM in {final} (once)", file=sys.stderr, flush=True)
        partial = rootfs.CACHE / f"partial-vm-{release}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        kernel = partial / "kernel"
        subprocess.run(
            [
                "mmdebstrap",
                "--quiet",
                "--mode=root",
                "--variant=extract",
                "--include=linux-image-cloud-amd64",
                release,
                str(kernel),
            ],
            check=True,
            stdin=subprocess.DEVNULL,
        )
        modules = next(path for path in (kernel / "usr/lib/modules", kernel / "lib/modules") if path.is_dir())
        version = next(modules.iterdir()).name
        shutil.copy(kernel / "boot" / f"vmlinuz-{version}", partial / "vmlinuz")
        subprocess.run([sys.executable, "-m", "lab.vm", str(root), str(partial), str(modules)], check=True)
        shutil.rmtree(kernel)
        shutil.rmtree(partial / "layer", ignore_errors=True)
        rootfs.forget(f"vm-{release}-*")
        partial.rename(final)
        rootfs.used(final)
    return final


def _make_image(root: Path, partial: Path, modules: Path) -> None:
    """In a mount namespace of its own: root plus what a machine needs, as a file system image."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(namespace.CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    layer = partial / "layer"
    for name in ("upper", "work", "merged"):
        (layer / name).mkdir(parents=True)
    merged = layer / "merged"
    options = f"lowerdir={root},upperdir={layer}/upper,workdir={layer}/work"
    subprocess.run(["mount", "-t", "overlay", "lab", "-o", options, str(merged)], check=True)
    version = next(modules.iterdir()).name
    target = merged / "usr/lib/modules" / version
    target.parent.mkdir(exist_ok=True)
    shutil.copytree(modules / version, target, symlinks=True)
    subprocess.run(["chroot", str(merged), "depmod", version], check=True)
    for unit in UNMASK.split():
        (merged / "etc/systemd/system" / unit).unlink(missing_ok=True)
    place = merged / "usr/local/lib/teu-lab"
    place.mkdir(parents=True)
    shutil.copy(AGENT, place / "agent.py")
    (merged / "etc/systemd/system/teu-lab-agent.service").write_text(UNIT)
    wants = merged / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "teu-lab-agent.service").symlink_to("/etc/systemd/system/teu-lab-agent.service")
    (merged / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
    (merged / "etc/machine-id").write_text(secrets.token_hex(16) + "\n")
    _initramfs(merged, target, partial / "initramfs")
    # What a clone of the tree on a fresh machine must not wait for: no check of a file system just made.
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"]
        + ["-i", "8192", "-F", "-d", str(merged), str(partial / "disk.raw"), DISK_SIZE],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _initramfs(root: Path, modules: Path, output: Path) -> None:
    """A cpio archive (newc) with busybox, the modules that the root disk needs, and INIT."""
    dependencies: dict[str, tuple[str, list[str]]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        dependencies[Path(path).name.split(".")[0].replace("-", "_")] = (path, needs.split())
    wanted: list[str] = []

    def add(path: str) -> None:
        if path not in wanted:
            wanted.append(path)

    for name in MODULES:
        if name in dependencies:  # else it is built into the kernel
            path, needs = dependencies[name]
            for each in reversed(needs):
                add(each)
            add(path)
    files: list[tuple[str, int, bytes]] = [
        ("bin", stat.S_IFDIR | 0o755, b""),
        ("modules", stat.S_IFDIR | 0o755, b""),
        ("bin/busybox", stat.S_IFREG | 0o755, (root / "bin/busybox").read_bytes()),
        ("init", stat.S_IFREG | 0o755, INIT.encode()),
    ]
    names = []
    for path in wanted:
        data = (modules / path).read_bytes()
        if path.endswith(".xz"):
            data = lzma.decompress(data)
        name = Path(path).name.removesuffix(".xz")
        names.append(name)
        files.append((f"modules/{name}", stat.S_IFREG | 0o644, data))
    files.append(("modules/list", stat.S_IFREG | 0o644, "".join(name + "\n" for name in names).encode()))
    output.write_bytes(cpio(files))


def cpio(files: Sequence[tuple[str, int, bytes]]) -> bytes:
    """An archive (newc) of (name, mode, content). Where an initramfs has several, a later one's files replace."""
    archive = bytearray()
    for number, (name, mode, data) in enumerate([*files, ("TRAILER!!!", 0, b"")], 1):
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        archive += header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4)
    return bytes(archive)


# --- start ----------------------------------------


def pid_of(name: str) -> int | None:
    """QEMU's pid, None where the machine is off."""
    try:
        pid, started = (MACHINES / name / "state").read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if namespace._start_time(int(pid)) == started else None


def running() -> list[str]:
    """Names of the machines that are on."""
    return sorted(path.name for path in MACHINES.glob("*") if pid_of(path.name))


def start(
    name: str,
    release: str,
    source: Path,
    accel: str = "",
    memory: str = "3G",
    timeout: float = 0,
    durable: bool = True,
    processors: int = 0,
    hardware: Sequence[str] = (),
) -> str:
    """Switch a machine on and wait until it is up; returns how it runs: kvm or tcg.

    Its disk outlives a power cut where it is durable; else it is quicker. It has `processors`, or as many as there
    are up to 4, and more `hardware`, as arguments of QEMU.

    A machine that was switched off by stop(keep_disk=True) or by power_cut() has its old disk.
    """
    if pid_of(name):
        raise LabError(f"machine {name} is already on: ./dev vm stop --name {name}")
    image = ensure(release)
    home = MACHINES / name
    home.mkdir(parents=True, exist_ok=True)
    broken = rootfs.CACHE / "kvm-does-not-work"
    ways = [accel] if accel else ["kvm", "tcg"]
    if not accel and (broken.exists() or not has_kvm()):
        ways = ["tcg"]
    if list((source / "dist").glob("*.deb")):
        build.bytecode(source / "dist", release)
    _pack(source, home / "src.tar")
    if ways[-1] == "tcg":
        ways.append("tcg")  # an emulated kernel may panic or stand still in its boot, of which no test is: once more
    for number, way in enumerate(ways, 1):
        make_disk(home, image / "disk.raw", "raw")
        command = qemu_command(name, home, home / "src.tar", image, way, memory, durable, processors)
        launch(home, [*command, *hardware])
        try:
            _wait_until_up(name, home, timeout or (60 if way == "kvm" else 300))
        except LabError as error:
            lost = not pid_of(name) or STALLED in str(error)
            power_cut(name)
            if number == len(ways) or (way == "tcg" and not lost):
                raise
            if way == "tcg":
                print(f"lab: the machine was lost in its boot, once more\n{error}", file=sys.stderr)
                continue
            print("lab: KVM does not work here, falling back to emulation", file=sys.stderr)
            broken.touch()
            (home / "disk.qcow2").unlink(missing_ok=True)
            continue
        return way
    raise AssertionError


STALLED = "detected stalls on CPUs"
"""What a kernel says whose emulator does not give it the processor's time."""


def has_kvm() -> bool:
    """Whether the processor helps. /dev/kvm alone says little: some nested hosts emulate behind it, badly."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return bool(flags & {"vmx", "svm"}) and os.access("/dev/kvm", os.R_OK | os.W_OK)


def _pack(source: Path, tar: Path) -> None:
    """The tree as a disk: what git knows or would take, the generated stubs, and built packages."""
    listing = subprocess.run(
        ["git", "-C", str(source), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        names = [os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
        names = [name for name in names if (source / name).exists()]
    else:
        names = [name for name in os.listdir(source) if name not in (".git", "build", ".venv")]
    generated = ("src/teu/api", "src/teu/runc/teu-runc-init", "dist")
    names += [name for name in generated if (source / name).exists() and name not in names]
    subprocess.run(
        ["tar", "-C", str(source), "-cf", str(tar), "--null", "--no-recursion", "-T", "-"],
        input=b"\0".join(os.fsencode(name) for name in _with_folders(source, names)),
        check=True,
    )


def _with_folders(source: Path, names: list[str]) -> list[str]:
    result = []
    for name in names:
        path = source / name
        if path.is_dir() and not path.is_symlink():
            for folder, _, files in os.walk(path):
                result.extend(os.path.relpath(os.path.join(folder, file), source) for file in files)
        else:
            result.append(name)
    return result


def make_disk(home: Path, backing: Path, form: str) -> None:
    """The machine's own disk, unless it has one: what it changes in backing, a file in that form."""
    if not (home / "disk.qcow2").exists():
        command = [*qemu("qemu-img"), "create", "-q", "-f", "qcow2", "-F", form, "-b", str(backing)]
        subprocess.run([*command, str(home / "disk.qcow2")], check=True)


def qemu_command(
    name: str, home: Path, tree: Path, image: Path, way: str, memory: str, durable: bool, processors: int
) -> list[str]:
    """QEMU's command line for the machine in home. Its ports are served anew."""
    lab = "vm" if way == "kvm" else "vm-emulated"
    command = [*qemu("qemu-system-x86_64"), "-name", f"teu-lab-{name}", "-machine", "q35"]
    command += ["-cpu", "max" if way == "kvm" else PROCESSOR]
    command += ["-accel", "kvm" if way == "kvm" else "tcg,thread=multi,tb-size=512"]
    command += ["-smp", str(processors or min(4, os.cpu_count() or 1)), "-m", memory]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initramfs"), "-append"]
    words = f"console=ttyS0 quiet panic=-1 systemd.show_status=no net.ifnames=0 apparmor=1 teu.lab={lab}"
    command += [words if way == "kvm" else f"{words} {EMULATED}"]
    command += ["-serial", f"file:{home}/console.log"]
    cache = "writeback" if durable else "unsafe"
    command += ["-drive", f"file={home}/disk.qcow2,if=virtio,format=qcow2,cache={cache},discard=unmap"]
    command += ["-drive", f"file={tree},if=virtio,format=raw,readonly=on"]
    command += ["-nic", "user,model=virtio-net-pci,restrict=on", "-device", "virtio-rng-pci"]
    command += ["-device", "virtio-serial-pci"]
    for port in range(PORTS):
        path = home / f"port.{port}"
        path.unlink(missing_ok=True)
        command += ["-chardev", f"socket,id=c{port},path={path},server=on,wait=off"]
        command += ["-device", f"virtserialport,chardev=c{port},name=lab.{port}"]
    return command


def launch(home: Path, command: list[str]) -> None:
    """Start QEMU as the machine in home."""
    with (home / "qemu.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    (home / "state").write_text(f"{process.pid} {namespace._start_time(process.pid)}\n")


def _wait_until_up(name: str, home: Path, timeout: float) -> None:
    # The unpacked tree, and a systemd that has nothing left to start.
    script = (
        "[ -e /src/dev ] || { mkdir -p /src && tar -C /src -xf /dev/vdb; }; "
        "systemctl is-system-running --wait >/dev/null; true"
    )
    # QEMU keeps the request until the agent opens its end.
    try:
        run(name, ["sh", "-c", script], connect_timeout=timeout, quiet=True)
    except (OSError, LabError) as error:
        raise LabError(f"machine {name} did not boot (within {timeout:.0f} s): {error}\n{last_words(name)}") from None


def last_words(name: str) -> str:
    """The end of what QEMU and the machine's console said."""
    home = MACHINES / name
    return f"{(home / 'qemu.log').read_text()[-2000:]}\n{namespace.console(home)}"


def power_cut(name: str) -> None:
    """Pull the plug: kill QEMU. The disk stays as the machine had left it; start() boots from it again."""
    pid = pid_of(name)
    if pid:
        with contextlib.suppress(ProcessLookupError):
            ended = os.pidfd_open(pid)
            try:
                os.kill(pid, signal.SIGKILL)
                # All of it: a thread that is left holds the disk's lock.
                poll = select.poll()
                poll.register(ended, select.POLLIN)
                poll.poll(20_000)
            finally:
                os.close(ended)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    (MACHINES / name / "state").unlink(missing_ok=True)


def stop(name: str, keep_disk: bool = False) -> None:
    """Switch the machine off and, unless told otherwise, forget its disk."""
    power_cut(name)
    if not keep_disk:
        shutil.rmtree(MACHINES / name, ignore_errors=True)


# --- commands ----------------------------------------


def _connect(name: str, connect_timeout: float) -> tuple[socket.socket, int]:
    """A free port of the machine, locked: (its socket, the lock's descriptor)."""
    home = MACHINES / name
    deadline = time.monotonic() + connect_timeout
    while True:
        for port in range(PORTS):
            lock = os.open(home / f"port.{port}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(str(home / f"port.{port}"))
                return sock, lock
            except OSError:  # QEMU is not there yet
                sock.close()
                os.close(lock)
        if time.monotonic() > deadline or not pid_of(name):
            raise LabError(f"machine {name} is off, or all of its {PORTS} ports are in use")
        time.sleep(0.02)


def _frame(letter: bytes, data: bytes) -> bytes:
    return struct.pack(">cI", letter, len(data)) + data


def run(
    name: str,
    command: Sequence[str],
    environment: Sequence[str] = (),
    connect_timeout: float = 120,
    quiet: bool = False,
    stdin: int | None = None,
) -> int:
    """Run command in the machine with our stdin, stdout and stderr; its exit status, 128+n for a signal."""
    if not pid_of(name):
        raise LabError(f"machine {name} is off: ./dev vm start --name {name}")
    terminal = not quiet and sys.stdin.isatty() and sys.stdout.isatty()
    variables = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": os.environ.get("TERM", "linux"),
    }
    variables.update(each.split("=", 1) for each in environment)
    token = secrets.token_hex(8)
    # Out of the agent's own cgroup, into a scope as a login would have, and without its safety from being killed.
    login = ["systemd-run", "--quiet", "--scope", "--collect", "choom", "-n", "0", "--"]
    argv = [*login, *command] if not quiet else list(command)
    request = {"id": token, "argv": argv, "env": variables, "tty": terminal}
    if terminal:
        size = os.get_terminal_size()
        request.update(rows=size.lines, columns=size.columns)
    sock, lock = _connect(name, connect_timeout)
    saved = None
    try:
        sock.settimeout(connect_timeout)
        sock.sendall(_frame(b"R", json.dumps(request).encode()))
        buffer = b""
        marker = _frame(b"S", token.encode())
        while marker not in buffer:
            part = sock.recv(65536)
            if not part:
                raise LabError(f"machine {name} went off")
            buffer += part
        buffer = buffer.partition(marker)[2]
        sock.settimeout(None)
        if terminal:
            saved = termios.tcgetattr(0)
            tty.setraw(0)
            signal.signal(signal.SIGWINCH, lambda *_: _send_size(sock))
        source = 0 if stdin is None else stdin
        if quiet:
            sock.sendall(_frame(b"I", b""))
        return _relay(name, sock, buffer, None if quiet else source)
    finally:
        if saved:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
        sock.close()
        os.close(lock)


def _send_size(sock: socket.socket) -> None:
    size = os.get_terminal_size()
    sock.sendall(_frame(b"W", json.dumps({"rows": size.lines, "columns": size.columns}).encode()))


def _relay(name: str, sock: socket.socket, buffer: bytes, source: int | None) -> int:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if source is not None:
        poll.register(source, select.POLLIN)
    while True:
        while len(buffer) >= 5:
            letter, length = struct.unpack(">cI", buffer[:5])
            if len(buffer) < 5 + length:
                break
            data, buffer = buffer[5 : 5 + length], buffer[5 + length :]
            if letter == b"X":
                return int(data)
            if source is not None:
                _write_all(1 if letter == b"O" else 2, data)
        for descriptor, _ in poll.poll():
            if descriptor == sock.fileno():
                data = sock.recv(1 << 20)
                if not data:
                    raise LabError(f"machine {name} went off")
                buffer += data
            elif source is not None:
                data = os.read(source, 65536)
                sock.sendall(_frame(b"I", data))
                if not data:
                    poll.unregister(source)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


DEV_SCRIPT = r"""
set -e
package=/usr/lib/python3/dist-packages/teu
[ -L $package ] || { rm -rf $package; ln -s /src/src/teu $package; }
/usr/bin/python3 -m compileall -q /src/src/teu || true
for program in teu-runc teu-containerd teu-buildkitd teud; do ln -sf /src/bin/$program /usr/sbin/$program; done
for program in teu teu-ctr containerd-shim-teu-v2; do ln -sf /src/bin/$program /usr/bin/$program; done
mkdir -p /usr/libexec/teu
ln -sf /src/bin/teu-unit /usr/libexec/teu/teu-unit
ln -sf /src/bin/teu-system-generator /usr/lib/systemd/system-generators/teu-system-generator
cp /src/systemd/* /usr/lib/systemd/system/
mkdir -p /etc/teu && [ ! -d /src/etc ] || cp -r /src/etc/. /etc/teu/
getent group teu >/dev/null || groupadd --system teu
systemctl daemon-reload
systemctl --quiet enable --now teud.socket teu-containerd.socket teu-buildkitd.socket
systemctl --quiet enable teud-restore.service teu-containerd-restore.service
"""


def install_tree(name: str) -> None:
    """What --dev does: the tree in the place of the packages."""
    if run(name, ["sh", "-c", DEV_SCRIPT], stdin=os.open("/dev/null", os.O_RDONLY)):
        raise LabError("the working tree could not be installed in the machine")


def install_packages(name: str) -> None:
    """Install the packages of dist/ (they came with the tree). What they depend on is there, and without looking at all
    that Debian has, as apt does, it takes an emulated machine a third of the time. Nor does it compile: the byte code
    is made outside."""
    script = (
        "[ ! -e /src/dist/bytecode.tar ] || tar -C / -xf /src/dist/bytecode.tar; "
        "DEBIAN_FRONTEND=noninteractive dpkg --install /src/dist/*.deb >/tmp/install.log 2>&1 "
        "|| { cat /tmp/install.log; exit 1; }"
    )
    if run(name, ["sh", "-c", script], stdin=os.open("/dev/null", os.O_RDONLY)):
        raise LabError("the packages could not be installed in the machine")


if __name__ == "__main__":
    _make_image(*(Path(argument) for argument in sys.argv[1:4]))
