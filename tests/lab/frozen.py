# SPDX-License-Identifier: Apache-2.0
"""A machine of the VM lab that is booted once, frozen, and then thawed again and again, each time with a disk that it
has not seen before: a boot in a second, for tests that cut the power many times. Called by test_power_cuts.py.

    CACHE/vms/BASE/          the machine that was frozen: its folder of vm.py, and
        ram                  its memory, a file that its copies map privately
        frozen               the state of its processors and devices
        qmp                  the socket of QEMU's monitor, of copies as well
    CACHE/vms/NAME/          a copy: disk.qcow2 is what it changes of BASE's disk

The disk of interest is behind a SCSI adapter whose driver (a module) is loaded after the thawing. So nothing of that
disk is in the memory that was frozen, and what a copy knows of it is what it has read, as after any other boot.

That disk has a cache that loses its power, as a drive's: each copy writes into a fresh qcow2 layer of blocks as small
as the file system's, and QEMU keeps the tables of that layer to itself until the guest flushes. So what dies with QEMU
is, besides the guest's page cache, every block written since then that is new in the layer. What was flushed is in the
host's page cache, which outlives QEMU. `Disk.settle()` merges the layer into the image: what the disk has become.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from lab import vm
from lab.namespace import LabError

MEMORY = "1536M"
PORT = 20  # of the virtio-serial bus: beyond those of the lab's agent
LIMIT = 300.0  # seconds for anything that QEMU is asked


class Disk:
    """A disk with an ext4 file system that outlives its machines."""

    def __init__(self, image: Path, megabytes: int) -> None:
        self.image = image
        self._layer = image.with_suffix(".layer")
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        options = "lazy_itable_init=1,lazy_journal_init=1"
        subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-E", options, "-F", str(image)], check=True)

    def layer(self) -> Path:
        """A file for the next machine to write into."""
        command = [*vm.qemu("qemu-img"), "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-F", "raw"]
        subprocess.run([*command, "-b", str(self.image), str(self._layer)], check=True)
        return self._layer

    def settle(self) -> None:
        """Its machine is off: what reached the layer is the disk now."""
        subprocess.run([*vm.qemu("qemu-img"), "commit", "-q", "-t", "unsafe", str(self._layer)], check=True)
        self._layer.unlink()


class Monitor:
    """QEMU's monitor (QMP)."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(LIMIT)
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self._file = self._socket.makefile("r")
        self._file.readline()  # its greeting
        self("qmp_capabilities")
        ignore = {"capability": "x-ignore-shared", "state": True}
        self("migrate-set-capabilities", capabilities=[ignore])

    def __call__(self, command: str, **arguments: Any) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        for line in self._file:
            answer = json.loads(line)
            if "error" in answer:
                raise LabError(f"QEMU: {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise LabError(f"QEMU ended during {command}")

    def wait_migrated(self) -> None:
        deadline = time.monotonic() + LIMIT
        while (status := self("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled") or time.monotonic() > deadline:
                raise LabError(f"QEMU: the machine's state could not be moved: {status}")
            time.sleep(0.01)

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def _hardware(home: Path, ram: Path, shared: bool, disk: Path, form: str) -> list[str]:
    """What a machine has that can be frozen, or comes from a frozen one; the same devices in the same order."""
    for name in ("qmp", "port.test"):
        (home / name).unlink(missing_ok=True)
    share = "on" if shared else "off"
    return [
        *["-object", f"memory-backend-file,id=ram,size={MEMORY},mem-path={ram},share={share}"],
        *["-machine", "memory-backend=ram", "-qmp", f"unix:{home}/qmp,server=on,wait=off"],
        *["-chardev", f"socket,id=test,path={home}/port.test,server=on,wait=off"],
        *["-device", f"virtserialport,chardev=test,nr={PORT},name=test"],
        *["-blockdev", f"driver=file,filename={disk},node-name=file,discard=unmap,cache.direct=off,cache.no-flush=off"],
        *["-blockdev", f"driver={form},file=file,node-name=data,discard=unmap"],
        *["-device", "virtio-scsi-pci,id=scsi", "-device", "scsi-hd,bus=scsi.0,drive=data,write-cache=on"],
    ]


def start(base: str, release: str, source: Path, disk: Disk) -> str:
    """Boot a machine that can be frozen; as vm.start(). It must not load virtio_scsi."""
    home = vm.MACHINES / base
    home.mkdir(parents=True, exist_ok=True)
    hardware = _hardware(home, home / "ram", True, disk.image, "raw")
    return vm.start(base, release, source, memory=MEMORY, durable=False, processors=1, hardware=hardware)


def freeze(base: str) -> None:
    """Stop the machine for good, keeping it to be thawed."""
    home = vm.MACHINES / base
    with contextlib.closing(Monitor(home / "qmp")) as monitor:
        monitor("stop")
        monitor("migrate", uri=f"exec:cat >{home}/frozen")
        monitor.wait_migrated()
    vm.power_cut(base)


def thaw(name: str, base: str, release: str, way: str, disk: Disk) -> None:
    """A copy of the frozen machine, running, with that disk."""
    home, origin = vm.MACHINES / name, vm.MACHINES / base
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    image = vm.ensure(release)
    vm.make_disk(home, origin / "disk.qcow2", "qcow2")
    command = vm.qemu_command(name, home, origin / "src.tar", image, way, MEMORY, False, 1)
    hardware = _hardware(home, origin / "ram", False, disk.layer(), "qcow2")
    vm.launch(home, [*command, *hardware, "-incoming", "defer"])
    try:
        with contextlib.closing(Monitor(home / "qmp")) as monitor:
            monitor("migrate-incoming", uri=f"exec:cat {origin}/frozen")
            monitor.wait_migrated()
            monitor("cont")
    except (OSError, LabError) as error:
        vm.power_cut(name)
        raise LabError(f"machine {name}: {error}\n{(home / 'qemu.log').read_text()[-2000:]}") from None


def connect(name: str) -> socket.socket:
    """The host's end of the port that is the test's own."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.connect(str(vm.MACHINES / name / "port.test"))
    return link


def remove(*names: str) -> None:
    """Switch machines off and forget them."""
    for name in names:
        vm.stop(name)
    assert not [name for name in names if os.path.exists(vm.MACHINES / name)]
