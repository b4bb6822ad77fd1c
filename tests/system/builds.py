# SPDX-License-Identifier: Apache-2.0
"""What tests of builds under faults share: what the host holds of builds, a registry that is slow or breaks off."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import images
import whole
from lab_kind import PATIENCE

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz.frame import State

SERVICE = "teu-buildkitd.service"
SOCKET = "/run/teu/buildkitd.sock"
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
        prune()
        images.baseline()
        self.things = self._now()
        # A second one, where something was on its way out.
        time.sleep(0.5)
        later = self._now()
        self.things = {kind: found & later[kind] for kind, found in self.things.items()}

    @staticmethod
    def _now() -> dict[str, set[str]]:
        things = State.now((), files=False).things
        return {
            # What containers and images hold is other tests' matter; blobs and rows of the engine come with images.
            kind: {each for each in found if not each.startswith("engine.db")}
            for kind, found in things.items()
            if kind not in ("volume", "container folder", "file")
        }

    def left(self) -> list[str]:
        """What is there that was not before. What only the cache kept is given up first."""
        prune()
        images.baseline()
        now = self._now()
        return [f"{kind} {each}" for kind in now for each in sorted(now[kind] - self.things[kind])]

    def settle(self) -> None:
        """Fails with what is left after a while."""
        end = time.monotonic() + SETTLE_SECONDS * PATIENCE
        while (left := self.left()) and time.monotonic() < end:
            time.sleep(0.5)
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


def together(calls: list[Callable[[], None]]) -> list[BaseException]:
    """Call all at the same time; what they raised."""
    raised: list[BaseException] = []

    def one(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=one, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised
