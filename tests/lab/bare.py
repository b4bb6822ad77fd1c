# SPDX-License-Identifier: Apache-2.0
"""A machine of the VM lab without systemd: it boots with kernel arguments and a first process of the caller's own,
which does all that there is to do, writes what it found, and switches the machine off. Called by test_selinux.py.

The kernel and the disk are the VM lab's (vm.py); nothing is written to the disk. The caller's files and the packages
come as a tar, on a second disk. What the first process writes to /dev/ttyS1 is the answer.
"""

from __future__ import annotations

import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab import rootfs, vm
from lab.namespace import LabError

LIMIT = 600.0  # seconds of one boot
SYSTEMD = "exec /bin/busybox switch_root /root /lib/systemd/systemd\n"
OURS = "/bin/busybox tar -C /root -xf /root/dev/vdb\nexec /bin/busybox switch_root /root /lab/init\n"


def run(release: str, words: str, files: Mapping[str, bytes], packages: Sequence[Path]) -> str:
    """Boot with `words` for the kernel, with `files` in /lab, `init` being one, and with what is in `packages` (they
    are unpacked; no script of theirs runs); what it answered. LabError where the machine did not switch itself off.
    """
    image = vm.ensure(release)
    assert vm.INIT.endswith(SYSTEMD)
    with tempfile.TemporaryDirectory(prefix="teu-lab-bare-") as folder:
        home = Path(folder)
        init = vm.INIT.removesuffix(SYSTEMD) + OURS
        early = vm.cpio([("init", stat.S_IFREG | 0o755, init.encode())])
        (home / "initramfs").write_bytes((image / "initramfs").read_bytes() + early)
        _pack(home, files, packages)
        ways = ["kvm", "tcg"] if vm.has_kvm() and not (rootfs.CACHE / "kvm-does-not-work").exists() else ["tcg"]
        for way in ways:
            try:
                return _boot(home, image, way, words)
            except LabError:
                if way == ways[-1]:
                    raise
        raise AssertionError


def _pack(home: Path, files: Mapping[str, bytes], packages: Sequence[Path]) -> None:
    tree = home / "tree"
    (tree / "lab").mkdir(parents=True)
    for package in packages:
        subprocess.run(["dpkg-deb", "-x", str(package), str(tree)], check=True)
    for name, content in files.items():
        (tree / "lab" / name).write_bytes(content)
        (tree / "lab" / name).chmod(0o755)
    subprocess.run(["tar", "-C", str(tree), "-cf", str(home / "tree.tar"), "."], check=True)


def _boot(home: Path, image: Path, way: str, words: str) -> str:
    command = [*vm.qemu("qemu-system-x86_64"), "-name", "teu-lab-bare", "-machine", "q35"]
    command += ["-cpu", "max" if way == "kvm" else vm.PROCESSOR]
    command += ["-accel", "kvm" if way == "kvm" else "tcg,thread=multi,tb-size=512"]
    command += ["-smp", "1", "-m", "1G"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-kernel", str(image / "vmlinuz"), "-initrd", str(home / "initramfs"), "-append"]
    command += [f"console=ttyS0 quiet panic=-1 {words} {'' if way == 'kvm' else vm.EMULATED}"]
    command += ["-serial", f"file:{home}/console.log", "-serial", f"file:{home}/answer"]
    command += ["-drive", f"file={image}/disk.raw,if=virtio,format=raw,snapshot=on"]
    command += ["-drive", f"file={home}/tree.tar,if=virtio,format=raw,readonly=on"]
    with (home / "qemu.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")
    try:
        process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        raise LabError(f"the machine did not come to an end in {LIMIT:.0f} s\n{_logs(home)}") from None
    finally:
        process.kill()
        process.wait()
    answer = (home / "answer").read_text(errors="replace")
    if not answer:
        raise LabError(f"the machine did not answer\n{_logs(home)}")
    return answer


def _logs(home: Path) -> str:
    parts = [(home / name).read_text(errors="replace")[-3000:] for name in ("qemu.log", "console.log", "answer")]
    return "\n".join(parts)
