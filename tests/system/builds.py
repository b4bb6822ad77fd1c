# SPDX-License-Identifier: Apache-2.0
"""What tests of builds under faults share: what the host holds of builds, a registry that is slow or breaks off."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import images
import whole
from lab_kind import PATIENCE

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz.frame import State

SERVICE = "teu-buildkitd.service"
SOCKET = "/run/teu/buildkitd.sock"
SESSIONS = "/run/teu/buildkitd-sessions.sock"
WORK = r"leases .*buildkit-\w+-work-"
PRUNE_SECONDS = 120
SETTLE_SECONDS = 60


def prune(*filters: str, everything: bool = True) -> list[str]:
    """Give up what the builder keeps; the ids of what went."""
    import grpc

    from teu.api.buildkit import control_pb2, control_pb2_grpc

    with grpc.insecure_channel(f"unix:{SOCKET}") as channel:
        control = control_pb2_grpc.ControlStub(channel)
        request = control_pb2.PruneRequest(all=everything, filter=filters)
        return [one.ID for one in control.Prune(request, timeout=PRUNE_SECONDS * PATIENCE)]


class Held:
    """What the host holds of builds, when nothing is kept of them: mounts, scopes, cgroups, links, rules, processes,
    folders in /run and /var, rows, blobs, ingests, snapshots and leases."""

    def __init__(self) -> None:
        self._empty()
        self.things = self._now()
        # A second one, where something was on its way out.
        time.sleep(0.5)
        later = self._now()
        self.things = {kind: found & later[kind] for kind, found in self.things.items()}

    @staticmethod
    def _empty() -> None:
        """Nothing is kept. What a running builder holds for the next builds (manifests that it read, by a lease of two
        hours; networks) goes when it leaves; its socket starts it again."""
        prune()
        whole.out("systemctl", "stop", SERVICE)
        images.collect()

    @staticmethod
    def _now() -> dict[str, set[str]]:
        things = State.now((), files=False).things
        return {
            # What containers and images hold is other tests' matter; blobs and rows of the engine come with images.
            # A running builder has a lease for what it does outside of builds.
            kind: {each for each in found if not each.startswith("engine.db") and not re.search(WORK, each)}
            for kind, found in things.items()
            if kind not in ("volume", "container folder", "file")
        }

    def left(self) -> list[str]:
        """What is there that was not before. What only the cache kept is given up first."""
        self._empty()
        now = self._now()
        return [f"{kind} {each}" for kind in now for each in sorted(now[kind] - self.things[kind])]

    def settle(self) -> None:
        """Fails with what is left after a while."""
        end = time.monotonic() + SETTLE_SECONDS * PATIENCE
        while (left := self.left()) and time.monotonic() < end:
            time.sleep(0.5)
        if left:
            self.things = self._now()  # the tests after this one are not to be blamed for it
        assert not left, "left behind:\n" + "\n".join(left[:40])


def scopes() -> list[str]:
    """The steps that run."""
    found = []
    for path in whole.CGROUPS.glob("teu.slice/teu-build.slice/*.scope"):
        found.append(path.name)
    return found


class Between:
    """A way to a registry that can be held up and cut. `address` is HOST:PORT; a context manager.

    `match`: bytes of a request (its first line, as "POST /v2/name/blobs/uploads/") that is waited for. `reached` is set
    when it comes; it then waits for `go`. `cut`: after so many bytes of that connection, both ways, it is broken."""

    def __init__(self, target: str) -> None:
        host, _, port = target.partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.match: re.Pattern[bytes] | None = None
        self.cut = 0
        self.cuts = 0  # how often it may cut
        self.reached, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __enter__(self) -> Between:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._listener.close()

    def hold(self, pattern: bytes) -> None:
        """The next request that matches waits until `release`."""
        self.reached.clear()
        self.go.clear()
        self.match = re.compile(pattern)

    def release(self) -> None:
        self.match = None
        self.go.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        passed = [0]

        def way(source: socket.socket, sink: socket.socket, asks: bool) -> None:
            try:
                while data := source.recv(1 << 16):
                    if asks and self.match is not None and self.match.search(data[:4096]):
                        self.reached.set()
                        self.go.wait()
                    passed[0] += len(data)
                    if self.cut and passed[0] > self.cut and self.cuts:
                        self.cuts -= 1
                        break
                    sink.sendall(data)
            except OSError:
                pass
            for one in (source, sink):
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

        other = threading.Thread(target=way, args=(server, client, False), daemon=True)
        other.start()
        way(client, server, True)
        other.join()
        client.close()
        server.close()


class Following:
    """A client whose output is read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def text(self) -> str:
        return "".join(list(self.lines))

    def until(self, pattern: str) -> None:
        """Wait for a line."""

        def found() -> bool:
            if re.search(pattern, self.text):
                return True
            assert self.process.poll() is None or re.search(pattern, self.text), self.text[-3000:]
            return False

        whole.eventually(f"a line {pattern!r}", found, 90)

    def wait(self, seconds: float = 60) -> int:
        """Its exit status."""
        try:
            status = self.process.wait(seconds * PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the client has not ended: {self.text[-3000:]}") from None
        self._reader.join(10)
        return status


# -- requests below a client -------------------------------------------------------------------------------------------


class Definition:
    """A pb.Definition in the making, as a client or a frontend may write it."""

    def __init__(self) -> None:
        from teu.api.buildkit import ops_pb2

        self.pb: Any = ops_pb2
        self.message: Any = ops_pb2.Definition()

    def add(self, op: Any, *inputs: str) -> str:
        """Add a pb.Op; its digest. An input is a digest, or DIGEST@OUTPUT."""
        for one in inputs:
            digest, _, index = one.partition("@")
            op.inputs.add(digest=digest, index=int(index or 0))
        data = op.SerializeToString(deterministic=True)
        getattr(self.message, "def").append(data)
        return "sha256:" + hashlib.sha256(data).hexdigest()

    def source(self, identifier: str = "docker-image://docker.io/library/busybox:latest", **attributes: str) -> str:
        op = self.pb.Op()
        op.source.identifier = identifier
        op.source.attrs.update({key.replace("_", "."): value for key, value in attributes.items()})
        return self.add(op)

    def step(self, *args: str, root: str, change: Callable[[Any], None] = lambda step: None) -> str:
        op = self.pb.Op()
        op.exec.meta.args.extend(args)
        op.exec.meta.cwd = "/"
        op.exec.meta.env.append("PATH=/bin:/sbin:/usr/bin")
        op.exec.mounts.add(input=0, dest="/", output=0)
        change(op.exec)
        return self.add(op, root)

    def file(self, *roots: str, **action: Any) -> str:
        """One action of a FileOp upon the first of these trees, or upon nothing; the second one is copied from."""
        op = self.pb.Op()
        op.file.actions.add(input=0 if roots else -1, secondaryInput=1 if len(roots) > 1 else -1, output=0, **action)
        return self.add(op, *roots)

    def end(self, root: str) -> Any:
        self.add(self.pb.Op(), root)
        return self.message


class Client:
    """Control and LLBBridge of the builder. A context manager."""

    def __init__(self) -> None:
        import grpc

        from teu.api.buildkit import control_pb2, control_pb2_grpc, gateway_pb2, gateway_pb2_grpc

        self.messages: Any = control_pb2
        self.gateway: Any = gateway_pb2
        self._channel = grpc.insecure_channel(f"unix:{SOCKET}", options=[("grpc.enable_retries", 0)])
        self.control: Any = control_pb2_grpc.ControlStub(self._channel)
        self.bridge: Any = gateway_pb2_grpc.LLBBridgeStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def solve(self, definition: Any, **fields: Any) -> Any:
        """Build a definition. Raises grpc.RpcError."""
        request = self.messages.SolveRequest(Ref=f"t{uuid.uuid4().hex}", Definition=definition, **fields)
        return self.control.Solve(request, timeout=90 * PATIENCE)

    @contextlib.contextmanager
    def frontend(self, **fields: Any) -> Iterator[Frontend]:
        """A build whose frontend is in the client, and asks LLBBridge."""
        ref = f"t{uuid.uuid4().hex}"
        future = self.control.Solve.future(self.messages.SolveRequest(Ref=ref, **fields))
        try:
            yield Frontend(self, ref)
        finally:
            future.cancel()


class Frontend:
    def __init__(self, client: Client, ref: str) -> None:
        self._client = client
        self.headers = (("buildkit-controlapi-buildid", ref),)

    def call(self, method: str, **fields: Any) -> Any:
        kind = getattr(self._client.gateway, fields.pop("message", f"{method}Request"))
        return getattr(self._client.bridge, method)(kind(**fields), metadata=self.headers, timeout=60 * PATIENCE)

    def solve(self, definition: Any, **fields: Any) -> str:
        """The reference of its result, which has been built."""
        answer = self.call("Solve", Definition=definition, allowResultReturn=True, Evaluate=True, **fields)
        return str(answer.result.ref.id or answer.result.refDeprecated)

    def read(self, ref: str, path: str) -> bytes:
        return bytes(self.call("ReadFile", Ref=ref, FilePath=path).Data)

    def run(self, *messages: Any) -> list[Any]:
        """What ExecProcess answers to these messages, the last of which ends the stream."""
        return list(self._client.bridge.ExecProcess(iter(messages), metadata=self.headers, timeout=60 * PATIENCE))


@contextlib.contextmanager
def session(methods: Any, name: str = "") -> Iterator[str]:
    """A client's session, served by these methods (as tunnel.py has them), handed over as teud does it; its id."""
    from unit.buildkit.tunnel import connected, headers, server

    identifier = name or uuid.uuid4().hex
    with server(methods) as path, connected(path) as connection:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as giver:
            giver.connect(SESSIONS)
            said = {"headers": [[key.lower(), value] for key, value in headers(identifier, methods)], "early": ""}
            socket.send_fds(giver, [json.dumps(said).encode()], [connection.fileno()])
        yield identifier
