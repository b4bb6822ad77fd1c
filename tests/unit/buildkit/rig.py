# SPDX-License-Identifier: Apache-2.0
"""A builder without containerd: the control room over the real solver, whose results are folders."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from teu.api.buildkit import control_pb2, control_pb2_grpc, gateway_pb2, gateway_pb2_grpc
from teu.api.services.content.v1 import content_pb2
from teu.buildkit.cache.policies import Policy, Usage
from teu.buildkit.cache.store import Record, Store
from teu.buildkit.control import rpc, workers
from teu.buildkit.control.bridge import Bridge
from teu.buildkit.control.build import Rooms
from teu.buildkit.control.builds import Builds
from teu.buildkit.control.cleaning import Cleaning
from teu.buildkit.control.containers import Containers
from teu.buildkit.control.control import Content, Control
from teu.buildkit.control.history import History
from teu.buildkit.core import errors, exports
from teu.buildkit.core.op import CacheMap, Kept
from teu.buildkit.frontends import gateway
from teu.buildkit.llb.platforms import Platform, host
from teu.buildkit.session import verifier
from teu.buildkit.session.manager import Manager
from teu.buildkit.solver.jobs import Solver
from teu.buildkit.sources.base import Material
from teu.oci import digest as digests
from teu.oci import jsontext

CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "config": {"Env": ["PATH=/bin"], "WorkingDir": "/"},
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "2" * 64]},
}


@dataclass(eq=False)
class Folder:
    """core.snapshots.Snapshot, as far as it is asked."""

    id: str
    path: Path

    def clone(self) -> Folder:
        return self

    def release(self) -> None:
        pass

    def describe(self) -> str:
        return self.id

    @contextmanager
    def mounted(self) -> Iterator[str]:
        yield str(self.path)

    def layers(self, compression: Any, *, make: bool = True) -> list[dict[str, Any]]:
        return []


@dataclass(eq=False)
class Left(Folder):
    """What a failed step has left, and how often it is held."""

    held: int = 1

    def clone(self) -> Left:
        self.held += 1
        return self

    def release(self) -> None:
        self.held -= 1


@dataclass(eq=False)
class Step:
    """An operation: images and contexts have a file, `false` fails, `sleep` waits until nobody else does."""

    vertex: Any
    top: Path
    ran: list[str]
    left: list[Left]

    def cache_key(self, context: Any) -> CacheMap:
        from teu.buildkit.core.op import Dependency

        return CacheMap(self.vertex.digest, tuple(Dependency() for _ in self.vertex.inputs))

    def load(self, context: Any, record: Any, output: int) -> Any:
        return Folder(record.id, self.top / record.id)

    def execute(self, context: Any, inputs: Sequence[Any]) -> Sequence[Any]:
        op = self.vertex.op
        args = list(op.exec.meta.args) if self.vertex.kind == "exec" else []
        self.ran.append(args[0] if args else self.vertex.kind)
        if args[:1] == ["false"]:
            context.log(2, b"it does not work\n")
            error = errors.Error("exit code: 1", [gateway_pb2.ExitMessage(Code=1)])
            left = [Left(name, self.top) for name in ("given", "made")]
            self.left += left
            error.kept = Kept(left[:1], left[1:])
            raise error
        if args[:1] == ["sleep"]:
            while not context.wait(5):
                pass
            context.check()
        name = digests.of(f"{self.vertex.digest}".encode()).partition(":")[2][:25]
        path = self.top / name
        (path / "etc").mkdir(parents=True, exist_ok=True)
        (path / "etc/hello").write_text(op.source.identifier or "made")
        if self.vertex.kind == "source" and op.source.identifier.startswith("local://"):
            (path / "Dockerfile").write_text(Rig.dockerfile)
        return [Folder(name, path)]

    def material(self) -> Material | None:
        scheme, _, name = self.vertex.op.source.identifier.partition("://")
        return Material(scheme.removeprefix("docker-"), name, "sha256:" + "3" * 64) if name else None


class Keeper:
    def usages(self) -> list[Usage]:
        return [Usage(Record("one", kind="regular", description="a step", size=10, created=1.0))]

    def collect(self) -> None:
        pass

    def forget(self) -> None:
        pass

    def free_space(self) -> int:
        return 1 << 40

    def measure(self, name: str) -> int:
        return 10

    def remove(self, name: str) -> bool:
        return True


@dataclass
class Exported:
    name: str
    rig: Rig
    attributes: Mapping[str, str]

    def export(self, task: exports.Task, result: exports.Result, build: exports.Build) -> exports.Answer:
        task.status("exporting layers", 1, 1, completed=True)
        self.rig.results.append((result, [one.name for one in build.materials()]))
        descriptor = {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": "sha256:" + "1" * 64,
            "size": 7,
        }
        return exports.Answer({"image.name": self.attributes.get("name", "")}, descriptor)


class NoCaches:
    def importing(self, kind: str, attributes: Mapping[str, str]) -> Any:
        raise errors.InvalidArgument(f"unknown cache importer: {kind}")

    def exporting(self, kind: str, attributes: Mapping[str, str]) -> Any:
        raise errors.InvalidArgument(f"unknown cache exporter: {kind}")

    def inline(self, chains: Sequence[Any], image_layers: Sequence[str], compression: Any = None) -> bytes:
        return b""


class Sources:
    def meta(self, request: Any, platform: Platform, asker: Any) -> Any:
        answer = gateway_pb2.ResolveSourceMetaResponse()
        answer.Source.CopyFrom(request.Source)
        answer.Image.Digest = "sha256:" + "0" * 64
        answer.Image.Config = jsontext.to_bytes(CONFIG)
        return answer


@dataclass
class Places:
    """Containers in which nothing runs: what they mount."""

    placed: list[Sequence[Any]]

    def place(self, request: Any, snapshots: Sequence[Any], sessions: Sequence[str]) -> Any:
        self.placed.append(snapshots)
        return self

    def release(self) -> None:
        pass


@dataclass
class Rig:
    top: Path
    run_frontend: Callable[[Any, Any, Any], Any] | None = None
    ran: list[str] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    placed: list[Sequence[Any]] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    dockerfile = "FROM busybox\nRUN make\n"

    def __post_init__(self) -> None:
        self.store = Store(str(self.top / "cache.db"))
        self.solver = Solver(self.store, lambda vertex: Step(vertex, self.top, self.ran, self.left))
        self.sessions = Manager()
        self.history = History(str(self.top / "history.db"), max_age=3600, max_entries=3)
        self.cleaning = Cleaning(Keeper(), lambda: [Policy()], after=60, interval=60)
        rig = self

        class Runner:
            def run(self, bridge: Any, program: Any, request: Any) -> Any:
                assert rig.run_frontend is not None
                return rig.run_frontend(bridge, program, request)

        def make(kind: str, number: int, attributes: Mapping[str, str]) -> exports.Exporter:
            if kind != "image":
                raise errors.InvalidArgument(f'exporter "{kind}" could not be found')
            return Exported("exporting to image", self, attributes)

        self.rooms = Rooms(
            self.solver,
            Sources(),
            NoCaches(),
            make,
            gateway.Images(Runner(), list),
            [host()],
            frozenset({"network.host"}),
            verify=lambda session, asked: verifier.check(self.sessions.get(session), asked),
        )
        self.builds = Builds(self.rooms, self.history, self._containers, self.worker)
        self.server = rpc.server(100)
        self.activity = rpc.Activity()
        control = Control(self.builds, self.sessions, self.history, self.cleaning, self.worker)
        for descriptor, service in (
            (control_pb2.DESCRIPTOR.services_by_name["Control"], control),
            (
                gateway_pb2.DESCRIPTOR.services_by_name["LLBBridge"],
                Bridge(lambda ref, gone: self.builds.get(ref, gone)[1]),
            ),
            (content_pb2.DESCRIPTOR.services_by_name["Content"], Content(self.history)),
        ):
            rpc.register(self.server, descriptor, service, self.activity)
        self.server.add_insecure_port(f"unix:{self.top}/s")
        self.server.start()
        self.channel = grpc.insecure_channel(f"unix:{self.top}/s")
        self.control = control_pb2_grpc.ControlStub(self.channel)
        self.bridge = gateway_pb2_grpc.LLBBridgeStub(self.channel)

    def _containers(self, view: Any) -> Containers:
        return Containers(Places(self.placed), [], frozenset())

    def worker(self) -> Any:
        return workers.record("w1", {"a": "b"}, [host()], [Policy()])

    def close(self) -> None:
        self.builds.stop()
        self.channel.close()
        self.server.stop(0).wait()
        self.solver.close()
        self.history.close()
        self.store.close()

    def solve(self, ref: str, **fields: Any) -> Any:
        """A Solve under way."""
        return self.control.Solve.future(control_pb2.SolveRequest(Ref=ref, **fields), timeout=60)

    def status(self, ref: str) -> list[Any]:
        return list(self.control.Status(control_pb2.StatusRequest(Ref=ref), timeout=60))


def until(what: Callable[[], Any], seconds: float = 20.0) -> None:
    done = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if what():
            return
        done.wait(0.01)
    raise AssertionError("it did not happen")
