# SPDX-License-Identifier: Apache-2.0
"""A bundle to change one thing in, run, and ask what the container reports. Used by test_runc_*.py.

TEU_RUNC=crun (or runc) runs the same tests against another runtime.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import json
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab_kind import PATIENCE

RUNC = os.environ.get("TEU_RUNC", "teu-runc")
APPLETS = (
    "awk",
    "cat",
    "chmod",
    "cut",
    "date",
    "dd",
    "df",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "grep",
    "head",
    "hostname",
    "id",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mkfifo",
    "mknod",
    "mount",
    "mv",
    "nproc",
    "od",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "sed",
    "seq",
    "sh",
    "sleep",
    "sort",
    "stat",
    "stty",
    "tail",
    "tee",
    "test",
    "touch",
    "tr",
    "true",
    "tty",
    "umask",
    "umount",
    "uname",
    "unlink",
    "unshare",
    "wc",
    "which",
    "xargs",
    "yes",
    "timeout",
    "ip",
    "nc",
    "usleep",
    "getpid",
    "mountpoint",
)

ALL_CAPABILITIES = [
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

BASE: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": ["true"],
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), ALL_CAPABILITIES),
        "noNewPrivileges": True,
    },
    "root": {"path": "rootfs", "readonly": False},
    "hostname": "teu",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        },
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    ],
    "linux": {
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
        "maskedPaths": ["/proc/kcore", "/proc/acpi"],
        "readonlyPaths": ["/proc/sys", "/proc/irq"],
    },
}


class Bundle:
    """A folder with config.json and a busybox root, and a state root of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rootfs = folder / "rootfs"
        self.root = folder / "state"
        self.output = folder / "output"
        self.config = copy.deepcopy(BASE)
        self.ids: list[str] = []
        self.user: int | None = None
        make_root(self.rootfs)

    # -- the configuration --

    @property
    def process(self) -> dict[str, Any]:
        return self.config["process"]  # type: ignore[no-any-return]

    @property
    def linux(self) -> dict[str, Any]:
        return self.config["linux"]  # type: ignore[no-any-return]

    def mount(
        self, destination: str, kind: str, source: str = "", options: list[str] | None = None, **more: Any
    ) -> None:
        entry = {"destination": destination, "type": kind, "source": source or kind, "options": options or [], **more}
        self.config["mounts"].append(entry)

    def without_namespace(self, kind: str) -> None:
        self.linux["namespaces"] = [n for n in self.linux["namespaces"] if n["type"] != kind]

    def namespace(self, kind: str, path: str = "") -> None:
        self.without_namespace(kind)
        self.linux["namespaces"].append({"type": kind, "path": path} if path else {"type": kind})

    def map_ids(self, host: int = 200000, size: int = 65536) -> None:
        """A user namespace, and the root given to it."""
        self.namespace("user")
        one = [{"containerID": 0, "hostID": host, "size": size}]
        self.linux["uidMappings"] = self.linux["gidMappings"] = one
        for place in [self.rootfs, *self.rootfs.rglob("*")]:
            os.chown(place, host, host, follow_symlinks=False)

    def write(self) -> None:
        (self.folder / "config.json").write_text(json.dumps(self.config))

    # -- the runtime --

    def runc(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options.setdefault("timeout", 60 * PATIENCE)
        return subprocess.run(
            [RUNC, "--root", str(self.root), *words],
            cwd=self.folder,
            text=True,
            errors="replace",
            stdin=options.pop("stdin", subprocess.DEVNULL if "input" not in options else None),
            capture_output=True,
            check=False,
            user=self.user,
            group=self.user,
            extra_groups=[] if self.user is not None else None,
            **options,
        )

    def ok(self, *words: str, **options: Any) -> str:
        done = self.runc(*words, **options)
        assert done.returncode == 0, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def leaving(self, *words: str) -> str:
        """A command that leaves a process behind: with a file for output, as a pipe would never end."""
        with self.output.open("w+") as output:
            done = subprocess.run(
                [RUNC, "--root", str(self.root), *words],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=60 * PATIENCE,
                check=False,
                user=self.user,
                group=self.user,
                extra_groups=[] if self.user is not None else None,
            )
        said = self.output.read_text(errors="replace")
        assert done.returncode == 0, f"{words}: {done.returncode}: {said}"
        return said

    def new_id(self) -> str:
        self.ids.append("t" + uuid.uuid4().hex[:10])
        return self.ids[-1]

    def run(self, *args: str, flags: tuple[str, ...] = (), **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a container to its end."""
        self.process["args"] = list(args)
        self.write()
        return self.runc("run", *flags, self.new_id(), **options)

    def says(self, script: str, **options: Any) -> str:
        """What a shell script in a container prints. It must succeed."""
        done = self.run("sh", "-c", script, **options)
        assert done.returncode == 0, f"{script!r}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def refuses(self, *args: str) -> str:
        """The error of a container that must not come to be; and nothing of it may be left."""
        done = self.run(*(args or ("true",)))
        assert done.returncode != 0, f"it ran: {done.stdout}"
        assert not (self.root / self.ids[-1]).exists()
        return done.stderr

    def detached(self, *args: str) -> str:
        """A running container's id."""
        self.process["args"] = list(args or ("sleep", "1000"))
        self.write()
        id = self.new_id()
        self.leaving("run", "-d", id)
        return id

    def created(self, *args: str) -> str:
        self.process["args"] = list(args or ("sleep", "1000"))
        self.write()
        id = self.new_id()
        self.leaving("create", id)
        return id

    def state(self, id: str) -> dict[str, Any]:
        return json.loads(self.ok("state", id))  # type: ignore[no-any-return]

    def status(self, id: str) -> str:
        return str(self.state(id)["status"])

    def pid(self, id: str) -> int:
        return int(self.state(id)["pid"])

    def wait_status(self, id: str, wanted: str, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds * PATIENCE
        while (status := self.status(id)) != wanted:
            assert time.monotonic() < deadline, f"{status}, not {wanted}"
            time.sleep(0.01)

    def clean(self) -> None:
        for id in self.ids:
            self.runc("delete", "--force", id)


def make_root(rootfs: Path) -> None:
    (rootfs / "bin").mkdir(parents=True)
    for name in ("etc", "proc", "sys", "dev", "tmp", "root"):
        (rootfs / name).mkdir()
    busybox = next(path for path in (shutil.which("busybox"), "/bin/busybox") if path)
    shutil.copy(busybox, rootfs / "bin/busybox")
    for applet in APPLETS:
        (rootfs / "bin" / applet).symlink_to("busybox")
    (rootfs / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000::/home/guest:/bin/sh\n")
    (rootfs / "etc/group").write_text("root:x:0:\nguest:x:1000:\n")


@contextlib.contextmanager
def new_bundle() -> Iterator[Bundle]:
    folder = Path(tempfile.mkdtemp(prefix="teu-runc-", dir="/var/lib"))
    folder.chmod(0o755)
    bundle = Bundle(folder)
    try:
        yield bundle
    finally:
        bundle.clean()
        shutil.rmtree(folder, ignore_errors=True)


def exec_in(bundle: Bundle, id: str, script: str, *flags: str) -> str:
    return bundle.ok("exec", *flags, id, "sh", "-c", script).strip()


def full_proc() -> None:
    """A user namespace may mount proc and sysfs only where both can be seen whole (the lab masks parts)."""
    for kind in ("proc", "sysfs"):
        place = Path(f"/run/whole-{kind}")
        if not place.exists():
            place.mkdir()
            subprocess.run(["mount", "-t", kind, kind, str(place)], check=True)


def libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)
