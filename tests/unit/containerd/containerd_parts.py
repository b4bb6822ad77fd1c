# SPDX-License-Identifier: Apache-2.0
"""A set of stores in a folder, and a daemon in a process of its own; conftest.py has the fixtures of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TREE = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(TREE / "src"))

pytest.importorskip("teu.api.services.containers.v1.containers_pb2", reason="stubs are not generated: ./dev protos")

import preloaded  # noqa: E402

from teu.config import load  # noqa: E402
from teu.containerd.config import KEYS  # noqa: E402
from teu.containerd.state import Context  # noqa: E402

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def make_context(folder: Path) -> Context:
    config = load(str(folder / "none.yaml"), KEYS)
    config["root"], config["state"] = str(folder / "root"), str(folder / "state")
    config["address"] = str(folder / "c.sock")
    config["snapshots"]["sync"] = False
    return Context(config)


class Daemon:
    """teu-containerd in a folder of its own."""

    def __init__(self, folder: Path, extra: str = "") -> None:
        self.folder = folder
        self.address = str(folder / "c.sock")
        self.config = folder / "containerd.yaml"
        self.config.write_text(f"root: {folder}/root\nstate: {folder}/state\naddress: {self.address}\n{extra}")
        self.process: preloaded.Process | subprocess.Popen[bytes] | None = None

    def start(self) -> Daemon:
        with open(self.folder / "log", "ab") as log:
            self.process = preloaded.start(["--config", str(self.config)], log)
        deadline = time.monotonic() + 30
        while True:
            try:
                if self._listens():
                    self.call("grpc.health.v1.Health", "Check")
                    return self
            except Exception:
                pass  # the next look says why, or is answered
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.folder / "log").read_text())
            time.sleep(0.02)

    def _listens(self) -> bool:
        """A channel of gRPC that finds nobody takes twenty times as long to say so."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.address) == 0

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=20)

    def channel(self) -> Any:
        import grpc

        return grpc.insecure_channel(f"unix:{self.address}", options=[("grpc.max_receive_message_length", 16 << 20)])

    def call(self, service: str, method: str, _headers: dict[str, str] | None = None, **fields: Any) -> Any:
        return self.raw(service, method)(_headers=_headers, **fields)

    def raw(self, service: str, method: str) -> Callable[..., Any]:
        """One unary call on a channel of its own; namespace `default` unless the headers say otherwise."""
        descriptor = find_method(service, method)

        def invoke(_headers: dict[str, str] | None = None, **fields: Any) -> Any:
            headers = {"containerd-namespace": "default", **(_headers or {})}
            with self.channel() as channel:
                stub = channel.unary_unary(
                    f"/{service}/{method}",
                    request_serializer=lambda message: message.SerializeToString(),
                    response_deserializer=descriptor.output_type._concrete_class.FromString,
                )
                request = descriptor.input_type._concrete_class(**fields)
                return stub(request, timeout=30, metadata=[(k, v) for k, v in headers.items() if v])

        return invoke


def find_method(service: str, method: str) -> Any:
    from google.protobuf import descriptor_pool

    import teu.api.grpc.health.v1.health_pb2
    import teu.api.services.content.v1.content_pb2
    import teu.api.services.diff.v1.diff_pb2
    import teu.api.services.events.v1.events_pb2
    import teu.api.services.images.v1.images_pb2
    import teu.api.services.introspection.v1.introspection_pb2
    import teu.api.services.leases.v1.leases_pb2
    import teu.api.services.namespaces.v1.namespace_pb2
    import teu.api.services.sandbox.v1.sandbox_pb2
    import teu.api.services.snapshots.v1.snapshots_pb2
    import teu.api.services.streaming.v1.streaming_pb2
    import teu.api.services.tasks.v1.tasks_pb2
    import teu.api.services.transfer.v1.transfer_pb2
    import teu.api.services.version.v1.version_pb2  # noqa: F401

    return descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
