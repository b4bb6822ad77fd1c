# SPDX-License-Identifier: Apache-2.0
"""The sandbox controller with Debian's real shim, which serves the sandbox API up to containerd 1.7, and with ours."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import peers
import pytest
from taskhouse import TeuContainerd, alive, argv_of

pytestmark = [pytest.mark.needs("containerd-shim-runc-v2"), pytest.mark.timeout(120)]

HEADERS = [("containerd-namespace", "default")]


@pytest.mark.parametrize("runtime", ["io.containerd.runc.v2", "io.containerd.teu.v2"])
def test_life_of_a_sandbox(runtime: str) -> None:
    import grpc

    from teu.api.services.events.v1 import events_pb2, events_pb2_grpc
    from teu.api.services.sandbox.v1 import sandbox_pb2 as pb
    from teu.api.services.sandbox.v1 import sandbox_pb2_grpc
    from teu.api.types import sandbox_pb2

    record = sandbox_pb2.Sandbox(sandbox_id="pod", labels={"k": "v"})
    record.runtime.name = runtime
    record.spec.value = json.dumps({"ociVersion": "1.0.2"}).encode()
    daemon = TeuContainerd()
    try:
        daemon.launch()
        with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
            store, controller = sandbox_pb2_grpc.StoreStub(channel), sandbox_pb2_grpc.ControllerStub(channel)
            stream = events_pb2_grpc.EventsStub(channel).Subscribe(
                events_pb2.SubscribeRequest(filters=['topic~="^/sandboxes/"'])
            )
            told: list[str] = []
            reader = threading.Thread(target=lambda: told.extend(read(stream)), daemon=True)
            reader.start()

            def call(method: str, **fields: Any) -> Any:
                request = getattr(pb, f"Controller{method}Request")(sandbox_id="pod", **fields)
                return getattr(controller, method)(request, metadata=HEADERS, timeout=30)

            store.Create(pb.StoreCreateRequest(sandbox=record), metadata=HEADERS)
            if runtime == "io.containerd.runc.v2" and peers.ctr_version() >= (2, 0):
                with pytest.raises(grpc.RpcError) as unserved:
                    call("Create")
                assert unserved.value.code() == grpc.StatusCode.UNIMPLEMENTED
                assert not shims(str(daemon.address)) and not bundles(daemon), "nothing of it is left behind"
                stream.cancel()
                return
            assert call("Create").sandbox_id == "pod"
            with pytest.raises(grpc.RpcError) as again:
                call("Create")
            assert again.value.code() == grpc.StatusCode.ALREADY_EXISTS
            started = call("Start")
            assert call("Start").address == started.address  # again: it is told of once
            assert started.address.startswith("unix://") and started.version >= 2
            assert call("Platform").platform.os == "linux"
            assert call("Status").address == started.address
            call("Stop")
            call("Shutdown")
            call("Stop")  # what is not there has stopped, as for containerd since 2.0
            for method in ("Start", "Wait", "Shutdown", "Platform"):
                with pytest.raises(grpc.RpcError) as gone:
                    call(method)
                assert gone.value.code() == grpc.StatusCode.NOT_FOUND, method
            # As containerd: what does not run has exited.
            assert call("Status").HasField("exited_at") and not call("Status").address
            with pytest.raises(grpc.RpcError) as unknown:
                call("Create", sandboxer="nosuch")
            assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
            # A shim that is killed takes its sandbox with it, and leaves nothing in another one's way.
            call("Create")
            call("Start")
            for pid in shims(str(daemon.address)):
                os.kill(pid, signal.SIGKILL)
            peers.wait_until(lambda: not call("Status").address, "the death of the shim to be seen")
            call("Create")
            call("Shutdown")
            peers.wait_until(lambda: not shims(str(daemon.address)), "the end of the shim")
            once = ["/sandboxes/create", "/sandboxes/start", "/sandboxes/exit"]
            peers.wait_until(lambda: told[:3] == once, "the first life to be told", 20)
            peers.wait_until(lambda: sorted(told) == sorted([*once, *once, once[0]]), "all to be told", 20)
            stream.cancel()
        assert not bundles(daemon)
    finally:
        daemon.stop()
        daemon.remove()


def bundles(daemon: TeuContainerd) -> list[Path]:
    """Those that are there."""
    return list(daemon.run.glob("state/io.containerd.runtime.v2.task/default/*"))


def shims(address: str) -> list[int]:
    """Those of this containerd that hold something: the warm one has no -id."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [pid for pid in pids if {address, "-id"} <= {*(words := argv_of(pid))} and "shim" in words[0] and alive(pid)]


def read(stream: Any) -> Any:
    import grpc

    try:
        for envelope in stream:
            yield envelope.topic
    except grpc.RpcError:
        pass
