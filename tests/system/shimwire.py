# SPDX-License-Identifier: Apache-2.0
"""A shim without a containerd: started by its binary protocol, called over ttrpc, its events received.

with shimwire.Receiver(base / "events") as events, shimwire.Bench(shimwire.OWN, base, events) as bench:
    bench.bundle("x", ["sleep", "600"])
    client = bench.client(bench.start("x"))
    bench.create(client, "x")
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers

OWN = "/usr/bin/containerd-shim-teu-v2"
REAL = "/usr/bin/containerd-shim-runc-v2"
NAMESPACE = "wire"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OPTIONS = "containerd.runc.v1.Options"
PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"


class Receiver:
    """containerd's ttrpc event service: notes what is forwarded to it, and answers, unless told not to.

    stop() and start() are containerd's going away and coming back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # (topic, event) in the order of their arrival; an event told again is there again
        self.told: list[tuple[str, dict[str, Any]]] = []
        # False: requests are read and never answered
        self.answers = True
        # how many of the next events are refused
        self.refusals = 0
        self._listener: socket.socket | None = None
        self._peers: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Receiver:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._listener.bind(str(self.path))
        self._listener.listen(16)
        self._run(self._accept, self._listener)

    def stop(self) -> None:
        if self._listener:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for peer in self._peers:
            peer.close()
        self._threads, self._peers = [], []

    def _run(self, work: Any, argument: socket.socket) -> None:
        thread = threading.Thread(target=work, args=(argument,))
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            self._peers.append(peer)
            self._run(self._serve, peer)

    def _serve(self, peer: socket.socket) -> None:
        from teu.ttrpc import frames
        from teu.ttrpc import messages as m

        reader = frames.Reader()
        with contextlib.suppress(OSError):
            while data := peer.recv(65536):
                for stream, _kind, _flags, payload in reader.feed(data):
                    request = m.decode("ttrpc.Request", payload)
                    assert (request["service"], request["method"]) == (m.EVENTS_SERVICE, "Forward")
                    forwarded = m.decode("containerd.services.events.ttrpc.v1.ForwardRequest", request["payload"])
                    envelope = forwarded["envelope"]
                    assert envelope["namespace"] == NAMESPACE and envelope["timestamp"]["seconds"] > 0
                    event = m.decode(envelope["event"]["type_url"], envelope["event"]["value"])
                    if self.answers:
                        status = {"code": 3, "message": "refused"} if self.refusals else None
                        self.refusals = max(0, self.refusals - 1)
                        answer = m.encode("ttrpc.Response", {"status": status, "payload": b""})
                        peer.sendall(frames.pack(stream, frames.RESPONSE, answer))
                    # Only now: what is told twice because its answer was lost is not told twice by mistake.
                    self.told.append((envelope["topic"], event))

    def of(self, container: str) -> list[tuple[str, dict[str, Any]]]:
        """A container's events."""
        return [(topic, event) for topic, event in list(self.told) if event.get("container_id") == container]

    def topics(self, container: str) -> list[str]:
        return [topic.removeprefix("/tasks/") for topic, _ in self.of(container)]


class Client:
    """One ttrpc connection, blocking.  `service` is the version of the task API that task() calls."""

    def __init__(self, address: str, service: str) -> None:
        from teu.ttrpc import frames

        self.service = service
        path = address.removeprefix("unix://")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(100 * peers.PATIENCE)
        self._socket.connect(path if path.startswith("/") else "\0" + path)
        self._reader = frames.Reader()
        self._answers: dict[int, bytes] = {}
        self._stream = -1

    def close(self) -> None:
        self._socket.close()

    def send(self, service: str, method: str, payload: bytes, seconds: float = 0) -> int:
        """Send a request, with a deadline if one is given; its stream, for receive()."""
        from teu.ttrpc import frames
        from teu.ttrpc import messages as m

        self._stream += 2
        request = m.encode(
            "ttrpc.Request",
            {"service": service, "method": method, "payload": payload, "timeout_nano": int(seconds * 1e9)},
        )
        self._socket.sendall(frames.pack(self._stream, frames.REQUEST, request))
        return self._stream

    def receive(self, stream: int) -> bytes:
        """The answer; StatusError as the shim says, ConnectionError when it is gone."""
        from teu.ttrpc import messages as m
        from teu.ttrpc.status import StatusError

        while stream not in self._answers:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("the shim has closed the connection")
            for number, _kind, _flags, payload in self._reader.feed(data):
                self._answers[number] = payload
        response = m.decode("ttrpc.Response", self._answers.pop(stream))
        if response["status"] and response["status"]["code"]:
            raise StatusError(response["status"]["code"], response["status"]["message"])
        return bytes(response["payload"])

    def raw(self, service: str, method: str, payload: bytes) -> bytes:
        return self.receive(self.send(service, method, payload))

    def begin(self, method: str, **fields: object) -> int:
        """Send a call of the task API; its stream, for end()."""
        from teu.ttrpc import messages as m

        return self.send(self.service, method, m.encode(m.TASK_METHODS[method][0], fields))

    def end(self, method: str, stream: int) -> dict[str, Any]:
        from teu.ttrpc import messages as m

        return m.decode(m.TASK_METHODS[method][1], self.receive(stream))

    def task(self, method: str, **fields: object) -> dict[str, Any]:
        """A call of the task API."""
        return self.end(method, self.begin(method, **fields))

    def closed(self) -> bool:
        """Wait for the shim to close the connection."""
        with contextlib.suppress(ConnectionResetError):
            while self._socket.recv(65536):
                pass
        return True

    def shut_down(self) -> None:
        """Say Shutdown, and see the shim gone; it may go before it has answered."""
        self.begin("Shutdown")
        assert self.closed()


class Bench:
    """Bundles and shims in a folder of their own.  At the end no shim is left."""

    def __init__(self, binary: str, base: Path, events: Receiver) -> None:
        self.binary = binary
        self.base = base
        self.events = events
        self.rootfs = peers.busybox_rootfs(base / "rootfs")
        # where containerd would listen: part of what names a shim's socket
        self.address = str(base / "containerd.sock")
        self._clients: list[Client] = []
        self._shims: set[int] = set()
        self._logs: list[int] = []

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        for pid in self._shims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for bundle in (self.base / NAMESPACE).iterdir():
            self.run("delete", bundle.name, "-bundle", str(bundle))
        for log in self._logs:
            os.close(log)
        with open("/proc/self/mounts") as mounts:
            assert [line for line in mounts if f" {self.base}/" in line] == []

    def bundle(
        self,
        name: str,
        args: list[str],
        annotations: dict[str, str] | None = None,
        terminal: bool = False,
        resources: dict[str, Any] | None = None,
        namespaces: tuple[str, ...] = ("pid", "mount", "ipc", "uts"),
    ) -> Path:
        """The folder that containerd would make for a container."""
        spec = {
            "ociVersion": "1.0.2",
            "process": {"args": args, "cwd": "/", "env": [PATH], "user": {"uid": 0, "gid": 0}, "terminal": terminal},
            "root": {"path": "rootfs"},
            "annotations": annotations or {},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
                {
                    "destination": "/dev/pts",
                    "type": "devpts",
                    "source": "devpts",
                    "options": ["newinstance", "ptmxmode=0666", "mode=0620"],
                },
            ],
            "linux": {
                "cgroupsPath": f"/{NAMESPACE}/{name}",
                "resources": resources or {},
                "namespaces": [{"type": kind} for kind in namespaces],
            },
        }
        bundle = self.base / NAMESPACE / name
        (bundle / "rootfs").mkdir(parents=True)
        (bundle / "config.json").write_text(json.dumps(spec))
        os.mkfifo(bundle / "log")
        # A shim waits until somebody reads its log.
        self._logs.append(os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        return bundle

    def command(self, name: str, action: str, *flags: str) -> list[str]:
        """The command line with which containerd runs it."""
        return [
            self.binary,
            "-namespace",
            NAMESPACE,
            "-address",
            self.address,
            "-publish-binary",
            "/usr/bin/true",
            "-id",
            name,
            *flags,
            action,
        ]

    def run(
        self, action: str, name: str, *flags: str, stdin: bytes = b"", environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the shim's binary in a bundle, with the environment that containerd gives."""
        given = {
            "PATH": os.environ["PATH"],
            "TTRPC_ADDRESS": str(self.events.path),
            "GRPC_ADDRESS": self.address,
            "NAMESPACE": NAMESPACE,
        }
        return subprocess.run(
            self.command(name, action, *flags),
            cwd=self.base / NAMESPACE / name,
            env=given | (environment or {}),
            input=stdin,
            capture_output=True,
            check=False,
            timeout=100 * peers.PATIENCE,
        )

    def start(self, name: str, **environment: str) -> str:
        """Start a shim; what it has printed."""
        done = self.run("start", name, environment=environment)
        assert done.returncode == 0, done
        return done.stdout.decode()

    def client(self, address: str, version: int = 2) -> Client:
        from teu.ttrpc import messages as m

        client = Client(address, m.TASK_SERVICES[version - 2])
        self._clients.append(client)
        self._shims.add(client.task("Connect")["shim_pid"])
        return client

    def create(self, client: Client, name: str, runtime: str = "runc", **fields: object) -> dict[str, Any]:
        """Create a container in its bundle, its root file system mounted by the shim."""
        return client.task("Create", **(self.request(name, runtime) | fields))

    def request(self, name: str, runtime: str = "runc") -> dict[str, object]:
        """What CreateTaskRequest says of a container."""
        mount = {"type": "bind", "source": str(self.rootfs), "options": ["rbind", "rw"]}
        return {
            "id": name,
            "bundle": str(self.base / NAMESPACE / name),
            "rootfs": [mount],
            "options": options(binary_name=runtime, root=str(self.base / "state")),
        }


def options(**fields: object) -> dict[str, Any]:
    """Runtime options as an Any."""
    from teu.ttrpc import messages as m

    return m.encode_any(OPTIONS, fields)


def process(*args: str) -> dict[str, Any]:
    """What is to be executed, as an Any."""
    spec = {"cwd": "/", "args": list(args), "env": [PATH], "user": {"uid": 0, "gid": 0}}
    return {"type_url": PROCESS, "value": json.dumps(spec).encode()}


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that hangs meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
