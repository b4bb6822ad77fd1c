# SPDX-License-Identifier: Apache-2.0
"""ttrpc: frames to the daemon's socket for events, and to a shim: cut, of wrong lengths, of unknown methods, huge,
interleaved. After each, who was spoken to serves others."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from fuzz import messages, shapes
from fuzz.frame import Run, target
from fuzz.target_grpc import spec

EVENTS = "/run/teu/containerd.sock.ttrpc"
FORWARD = ("containerd.services.events.ttrpc.v1.Events", "Forward")
HEADER = struct.Struct(">IIBB")
SECONDS = 30
ENDING_SECONDS = 10
PREFIX = "fuzz-shim-"
# Python's own words in an answer are a fault of ours
NAMED = (
    "KeyError",
    "TypeError",
    "AttributeError",
    "IndexError",
    "UnicodeDecodeError",
    "UnicodeEncodeError",
    "NoneType",
    "struct",
    "not subscriptable",
    "invalid literal",
    "OverflowError",
    "object has no attribute",
    "Traceback",
    "must be str",
    "must be int",
    "argument must",
    "not iterable",
    "embedded null",
    "expected str",
    "unsupported operand",
    "is not in list",
    "unhashable",
    "RecursionError",
    "list indices",
    "string indices",
)


def _request(service: str, method: str, payload: bytes, timeout: int = 0, metadata: int = 0) -> bytes:
    from teu.ttrpc import messages as m

    return m.encode(
        "ttrpc.Request",
        {
            "service": service,
            "method": method,
            "payload": payload,
            "timeout_nano": timeout,
            "metadata": [{"key": "k", "value": "v"}] * metadata,
        },
    )


class _Conversation:
    """Frames for one connection, and what came of them."""

    def __init__(self, run: Run, calls: list[tuple[str, str, bytes]]) -> None:
        random = run.random
        parts = []
        stream = -1
        for service, method, payload in calls:
            stream += random.choice((2, 2, 2, 2, 2, 2, 1, 0, -2, 1000))
            flags = random.choice((0, 0, 0, 0, 0, 0, 1, 2, 4, 0xFF))
            kind = random.choice((1, 1, 1, 1, 1, 1, 1, 2, 3, 0, 255))
            if random.random() < 0.03:
                service = shapes.text(random).encode("utf-8", "replace").decode()
            if random.random() < 0.03:
                method = shapes.text(random).encode("utf-8", "replace").decode()
            timeout = random.choice((0, 0, 0, 1, 10**9, 2**63 - 1, -1, 10**16, 3 * 10**15))
            data = _request(service, method, payload, timeout, random.choice((0, 0, 1, 1000)))
            if random.random() < 0.05:
                data = shapes.damaged(random, data)
            length = len(data)
            if random.random() < 0.03:
                length = random.choice((0, 1, length - 1, length + 1, 4 << 20, (4 << 20) + 1, 2**31, 2**32 - 1))
            parts.append(HEADER.pack(length % 2**32, stream % 2**32, kind, flags) + data)
        self.data = b"".join(parts)
        if random.random() < 0.1:
            self.data = shapes.damaged(random, self.data)
        if random.random() < 0.01:
            self.data += HEADER.pack(4 << 20, 1001, 1, 0) + _request(FORWARD[0], "x" * (3 << 20), bytes(100))
        self.pause = random.random() < 0.1  # in pieces
        self.leaves = random.random() < 0.2  # without reading

    def run(self, path: str) -> list[bytes]:
        """Payloads of the answers."""
        from teu.ttrpc import frames

        answers: list[bytes] = []
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(SECONDS)
            peer.connect(path if path.startswith("/") else "\0" + path)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if self.pause:
                    middle = len(self.data) // 2
                    peer.sendall(self.data[:middle])
                    time.sleep(0.01)
                    peer.sendall(self.data[middle:])
                else:
                    peer.sendall(self.data)
                if self.leaves:
                    return answers
                peer.shutdown(socket.SHUT_WR)
                reader = frames.Reader()
                while data := peer.recv(65536):
                    answers += [payload for _, _, _, payload in reader.feed(data)]
        return answers


def _faults(answers: list[bytes]) -> str:
    from teu.ttrpc import messages as m

    for payload in answers:
        try:
            status = m.decode("ttrpc.Response", payload)["status"] or {}
        except ValueError as error:
            return f"an answer is no message: {error}"
        text = status.get("message", "")
        if status.get("code") and any(word in text for word in NAMED):
            return f"{status['code']}: {text}"[:250]
    return ""


@target("ttrpc-events", "frames to the daemon's socket for events: cut, wrong, huge, many at once")
def events(run: Run) -> None:
    import images

    images.need_busybox()
    types = messages.message_types()
    forward = next(one for one in types if one.full_name == "containerd.services.events.ttrpc.v1.ForwardRequest")
    pool = {
        "namespace": ["fuzz", "teu"],
        "topic": ["/tasks/exit", "/tasks/oom", "/tasks/start", "/x"],
        "container_id": ["x", ""],
    }
    maker = messages.Maker(run.random, pool, {}, types)
    with run.watched():
        while run.going():
            calls = [
                (*FORWARD, maker.wire(maker.make(forward, likely=run.random.choice((0.7, 1.0)))))
                for _ in range(run.random.choice((1, 1, 2, 5, 30)))
            ]
            talk = _Conversation(run, calls)
            run.trying(talk.data[:100_000])
            try:
                if fault := _faults(talk.run(EVENTS)):
                    run.finding(f"events: {fault}", talk.data)
                if run.inputs % 20 == 0:
                    answers = _probe(EVENTS, _request(*FORWARD, maker.make(forward, likely=0.0).SerializeToString()))
                    if not answers:
                        run.finding("events: a good request has no answer afterwards", talk.data)
            except OSError as error:
                run.finding(f"events: {type(error).__name__}: {error}", talk.data)
                time.sleep(0.5)


def _probe(path: str, request: bytes) -> bytes:
    """The answer to one good request."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(SECONDS)
        peer.connect(path if path.startswith("/") else "\0" + path)
        peer.sendall(HEADER.pack(len(request), 1, 1, 0) + request)
        return peer.recv(65536)


class _Shim:
    """A shim with a container that sleeps, as containerd would have started it."""

    def __init__(self, base: Path, number: int) -> None:
        import shimwire

        from teu.ttrpc import messages as m

        self.base = base
        self.name = f"c{number}"
        self.receiver = shimwire.Receiver(base / f"events{number}")
        self.receiver.__enter__()
        self.receiver.answers = False  # it takes everything
        self.bench = shimwire.Bench.__new__(shimwire.Bench)
        self.bench.binary, self.bench.base, self.bench.events = shimwire.OWN, base, self.receiver
        self.bench.rootfs = base / "rootfs"
        self.bench.address = str(base / "containerd.sock")
        self.bench._clients, self.bench._shims, self.bench._logs = [], set(), []
        self.bench.bundle(self.name, ["sleep", "600"])
        if not (base / "wire/other").exists():
            self.bench.bundle("other", ["sleep", "600"])
        self.address = self.bench.start(self.name).strip()
        client = self.bench.client(self.address, 2)
        self.pid = next(iter(self.bench._shims))
        self.bench.create(client, self.name, "teu-runc")
        client.task("Start", id=self.name)
        client.close()
        self.connect = _request(m.TASK_SERVICES[0], "Connect", b"")
        self.path = self.address.removeprefix("unix://")

    def lives(self) -> bool:
        try:
            os.kill(self.pid, 0)
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def ends(self) -> bool:
        """Whether it is gone, or about to be: what it still has to say may take it some seconds."""
        end = time.monotonic() + ENDING_SECONDS
        while self.lives():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def size(self) -> tuple[int, int]:
        """(KiB of memory of its own, descriptors)"""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.partition("RssAnon:")[2].split()[0]), len(os.listdir(f"/proc/{self.pid}/fd"))

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        for name in (self.name, "other"):
            bundle = self.base / "wire" / name
            if bundle.exists():
                with contextlib.suppress(OSError, subprocess.SubprocessError):
                    self.bench.run("delete", name, "-bundle", str(bundle))
                shutil.rmtree(bundle, ignore_errors=True)
        for log in self.bench._logs:
            os.close(log)
        self.receiver.stop()


@target("ttrpc-shim", "frames and messages to a shim with a running container; it lives, answers, and keeps its size")
def shim(run: Run) -> None:
    import peers

    base = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/var/lib"))
    peers.busybox_rootfs(base / "rootfs")
    types = messages.message_types()
    by_name = {one.full_name: one for one in types}
    kept = [str(base / "keep"), ""]
    bound = {
        "Mount.source": [str(base / "rootfs"), str(base / "none"), "tmpfs"],
        "Mount.target": ["", "x"],
        "Mount.type": ["bind", "tmpfs", "x", ""],
        "Mount.options": ["rbind", "ro", "size=1m", "x"],
        "stdin": ["", str(base / "none")],
        "stdout": ["", str(base / "out"), f"file://{base}/log"],
        "stderr": ["", str(base / "out")],
        "checkpoint": kept,
        "parent_checkpoint": [""],
        "path": kept,
        "image_path": kept,
        "work_path": kept,
        "root": [str(base / "state")],
        "criu_path": [""],
        "criu_image_path": [""],
        "criu_work_path": [""],
        "shim_cgroup": [""],
        "bundle_path": [str(base / "bundle")],
        "netns_path": ["", "/nowhere"],
        "config_path": ["", str(base / "none")],
        "binary_name": ["", "teu-runc"],
    }
    number = 0
    shim: Any = None

    def clean() -> None:
        if shim is not None:
            shim.end()
        subprocess.run(["umount", "-R", "-l", str(base / "wire")], capture_output=True, check=False)
        for state in (base / "state").glob("*/*"):
            words = ["teu-runc", "--root", str(state.parent), "delete", "--force", state.name]
            subprocess.run(words, capture_output=True, check=False)
        for folder in Path("/var/lib").glob(f"{PREFIX[:6]}*"):
            shutil.rmtree(folder, ignore_errors=True)

    _Shim(base, 0).end()  # what the first shim of a boot leaves for those after it: a folder for sockets
    mark = base.name.removeprefix(PREFIX)

    def where_it_was_sent(each: str) -> bool:
        """A checkpoint lies where its request says, and some requests are damaged in the middle of a path."""
        return " file " in each and (mark in each or f" file /var/lib/{PREFIX[:6]}" in each)

    with run.watched(ignore=where_it_was_sent):
        try:
            while run.going():
                if shim is None:
                    number += 1
                    shim = _Shim(base, number)
                    names = [shim.name, shim.name, shim.name, "other", ""]
                    pool = {"id": names, "container_id": names, "exec_id": ["", "", "e1", "e2"], "sandbox_id": names}
                    bound["bundle"] = [str(base / "wire/other"), str(base / "none")]
                    maker = messages.Maker(run.random, pool, bound, types)
                    maker.specs = lambda: spec(run.random)
                    for _ in range(2):
                        _probe(shim.path, shim.connect)
                    before, since, told_to_end = shim.size(), 0, False
                since += 1
                talk = _Conversation(run, [_call(run, maker, by_name) for _ in range(run.random.choice((1, 2, 4, 10)))])
                told_to_end = told_to_end or any(word in talk.data for word in (b"Shutdown", b"StopSandbox"))
                run.trying(talk.data[:100_000])
                try:
                    if fault := _faults(talk.run(shim.path)):
                        run.finding(f"shim: {fault}", talk.data)
                    if not _probe(shim.path, shim.connect):
                        raise ConnectionError("no answer to Connect")
                except OSError as error:
                    # a Shutdown or the end of its sandbox ends it, where its container has ended; nothing else does
                    if not told_to_end or not shim.ends():
                        run.finding(
                            f"shim: {type(error).__name__}: {error}; it {'lives' if shim.lives() else 'is gone'}",
                            talk.data,
                        )
                    shim.end()
                    shim = None
                    continue
                if since >= 150:
                    time.sleep(0.3)
                    after = shim.size()
                    if after[0] > before[0] + 6000 or after[1] > before[1] + 12:
                        run.finding(f"shim: it has grown: {before} -> {after} (KiB, descriptors)", list(run.recent))
                    shim.end()
                    shim = None
        finally:
            clean()


def _call(run: Run, maker: messages.Maker, by_name: dict[str, Any]) -> tuple[str, str, bytes]:
    from teu.ttrpc import messages as m

    if run.random.random() < 0.8:
        service = run.random.choice(m.TASK_SERVICES)
        method = run.random.choice(
            [name for name in m.TASK_METHODS if name != "Shutdown" or run.random.random() < 0.05]
        )
        kind = by_name[
            m.TASK_METHODS[method][0].replace(
                "task.", "containerd.task.v2." if "v2" in service else "containerd.task.v3."
            )
        ]
    else:
        service = m.SANDBOX_SERVICE
        method = run.random.choice(
            [name for name in m.SANDBOX_METHODS if "Shutdown" not in name or run.random.random() < 0.05]
        )
        kind = by_name[m.SANDBOX_METHODS[method][0]]
    return service, method, maker.wire(maker.make(kind, likely=run.random.choice((0.5, 0.9, 1.0))), 0.08)
