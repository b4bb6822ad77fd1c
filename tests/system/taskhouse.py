# SPDX-License-Identifier: Apache-2.0
"""A containerd, ours or Debian's, with either shim and any OCI runtime, worked by Debian's `ctr`.

    with house(daemon="containerd", shim="io.containerd.teu.v2", runtime="runc") as h:
        assert h.run("x", "echo", "hello") == "hello\\n"

The root file system is a folder with busybox, the stdio `ctr`'s own FIFOs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers

OWN_SHIM = "io.containerd.teu.v2"
REAL_SHIM = "io.containerd.runc.v2"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class TeuContainerd(peers.Containerd):
    """Our containerd in the foreground; calling it runs `ctr`."""

    def __init__(self) -> None:
        peers.Daemon.__init__(self, "teu-containerd")
        self.address = self.run / "containerd.sock"
        self.client = ["ctr", "--address", str(self.address)]

    def launch(self, extra: str = "") -> None:
        """`extra` is a configuration (YAML) in place of the installed one."""
        more = []
        if extra:
            config = self.run / "containerd.yaml"
            config.write_text(extra)
            more = ["--config", str(config)]
        self.start(
            [
                "/usr/sbin/teu-containerd",
                *more,
                "--root",
                str(self.state / "root"),
                "--state",
                str(self.run / "state"),
                "--address",
                str(self.address),
                "--log-level",
                "info",
            ],
            lambda: self.address.exists() and peers.run(*self.client, "version", code=0),
        )


class Events:
    """`ctr events` while a test runs."""

    def __init__(self, daemon: peers.Containerd) -> None:
        self._process = subprocess.Popen([*daemon.client, "events"], stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        # The subscription is there when an event of ours comes through.
        self._mark(daemon)

    def _mark(self, daemon: peers.Containerd) -> None:
        def seen() -> bool:
            name = f"mark{time.monotonic_ns()}"
            daemon("namespaces", "create", name)
            daemon("namespaces", "remove", name)
            time.sleep(0.02)
            return any("/namespaces/" in line for line in self.lines)

        peers.wait_until(seen, "events are subscribed")

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.lines.append(line)

    def tasks(self, container: str) -> list[tuple[str, dict[str, Any]]]:
        """(topic, event) of a container's task events so far, in order."""
        found = []
        for line in list(self.lines):
            match = re.search(r"(/tasks/\S+) (\{.*\})", line)
            if match:
                event = json.loads(match[2])
                if event.get("container_id") == container:
                    found.append((match[1], event))
        return found

    def topics(self, container: str) -> list[str]:
        return [topic for topic, _ in self.tasks(container)]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()


class House:
    def __init__(self, daemon: peers.Containerd, shim: str, runtime: str, base: Path) -> None:
        self.daemon = daemon
        self.shim = shim
        self.runtime = runtime
        self.base = base
        self.rootfs = peers.busybox_rootfs(base / "rootfs")
        options = base / "runtime.toml"
        options.write_text(f'BinaryName = "{runtime}"\n')
        self.flags = ["--runtime", shim, "--cpu-shares", "0", "--env", PATH, "--rootfs"]
        if shim == OWN_SHIM:
            self.flags[2:2] = ["--runtime-config-path", str(options)]
        else:
            self.flags[2:2] = ["--runc-binary", runtime]

    def run(
        self,
        name: str,
        *command: str,
        flags: tuple[str, ...] = (),
        code: int | None = 0,
        stdin: str | None = None,
        timeout: float = 60,
    ) -> str:
        """A container from start to end."""
        return self.daemon(
            "run",
            "--rm",
            *flags,
            *self.flags,
            str(self.rootfs),
            name,
            *command,
            code=code,
            stdin=stdin,
            timeout=timeout,
        )

    def start(self, name: str, *command: str, flags: tuple[str, ...] = ()) -> int:
        """A detached container; its first process."""
        self.daemon("run", "--detach", *flags, *self.flags, str(self.rootfs), name, *command)
        return self.pid(name)

    def task(self, name: str) -> tuple[int, str] | None:
        """(pid, status) of a task as `ctr tasks ls` tells them."""
        for line in self.daemon("tasks", "ls").splitlines()[1:]:
            found, pid, status = line.split()
            if found == name:
                return int(pid), status
        return None

    def pid(self, name: str) -> int:
        task = self.task(name)
        assert task, f"no task {name}"
        return task[0]

    def stopped(self, name: str) -> None:
        peers.wait_until(lambda: (self.task(name) or (0, ""))[1] == "STOPPED", f"{name} stops", 30)

    def exec(self, name: str, exec_id: str, *command: str, code: int | None = 0, stdin: str | None = None) -> str:
        return self.daemon("tasks", "exec", "--exec-id", exec_id, name, *command, code=code, stdin=stdin)

    def kill(self, name: str, number: str = "SIGKILL") -> None:
        self.daemon("tasks", "kill", "--signal", number, name)

    def remove(self, name: str) -> int:
        """Kill, delete the task and the container; the exit status."""
        result = self.daemon.result("tasks", "delete", "--force", name, code=None)
        match = re.search(r"exit code (\d+)", result.stderr)
        self.daemon("containers", "delete", name)
        return int(match[1]) if match else 0

    def restart(self, number: int = signal.SIGKILL) -> None:
        self.daemon.kill(number)
        self.daemon.launch()

    def shim_pid(self, name: str) -> int:
        """The process that is the parent of the container's first one."""
        return parent_of(self.pid(name))

    def bundle(self, name: str) -> Path:
        return self.daemon.run / "state" / "io.containerd.runtime.v2.task" / "default" / name

    def check_left(self) -> None:
        """Nothing is left behind, in a moment: a shim's process ends after its last answer."""

        def check() -> bool:
            assert self.leftovers() == []
            return True

        peers.wait_until(check, "nothing is left behind", 10)

    def leftovers(self) -> list[str]:
        """What no container of this house should have left behind."""
        found = [str(path) for path in self.bundle("x").parent.glob("*")]
        with open("/proc/self/mounts") as mounts:
            found += [line.split()[1] for line in mounts if line.split()[1].startswith(f"{self.daemon.run}/")]
        address = str(self.daemon.address)
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                words = argv_of(int(entry))
                if "-address" in words and address in words and "shim" in words[0]:
                    found.append(" ".join(words))
        return found


def says(text: str) -> list[str]:
    """A command that prints a line.  It stays a moment: ctr gives output up that it has not read by the exit."""
    return ["sh", "-c", f"echo '{text}'; sleep 0.3"]


def argv_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode().split("\0")
    except OSError:
        return []


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def house(daemon: str, shim: str = OWN_SHIM, runtime: str = "runc") -> Iterator[House]:
    made = TeuContainerd() if daemon == "teu-containerd" else peers.Containerd()
    with tempfile.TemporaryDirectory(prefix="teu-house-", dir="/var/lib") as base:
        try:
            made.launch()
            yield House(made, shim, runtime, Path(base))
        finally:
            made.stop()
            made.remove()
