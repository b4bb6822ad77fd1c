# SPDX-License-Identifier: Apache-2.0
"""containerd's gRPC services: every method, with messages made from the descriptors, in a namespace of their own."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path
from typing import Any

from fuzz import messages, shapes, tars
from fuzz.apiwire import FAULT
from fuzz.frame import Run, target

ADDRESS = "unix:/run/teu/containerd.sock"
SPACE = "fuzz"
BASE = Path("/var/lib/fuzz-grpc")
SECONDS = 3
# Who waits here waits for what may never come: their deadline is their end.
WAITING = {
    "Events/Subscribe",
    "Tasks/Wait",
    "Controller/Wait",
    "Health/Watch",
    "Streaming/Stream",
    "Content/Write",
    "ServerReflection/ServerReflectionInfo",
    "Transfer/Transfer",
}
# UNKNOWN and INTERNAL are containerd's own in some places; a fault of ours begins with the name of Python's error.
NAMED = re.compile(r"^\w+(?:Error|Exception): |^Unexpected <class|^StopIteration|^KeyError")


def spec(random: Any) -> Any:
    """A container's configuration, changed in half of the cases."""
    document = {
        "ociVersion": "1.0.2",
        "process": {"args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
            "resources": {"pids": {"limit": 100}},
            "cgroupsPath": "/fuzz-grpc/x",
        },
        "annotations": {"a": "b"},
    }
    return document if random.random() < 0.5 else shapes.changed(random, document)


class Server:
    """The daemon, as one client."""

    def __init__(self) -> None:
        import grpc

        self.grpc = grpc
        self.channel = grpc.insecure_channel(ADDRESS, options=[("grpc.enable_retries", 0)])

    def call(
        self, path: str, requests: list[bytes], seconds: float = SECONDS, space: str = SPACE, lease: str = ""
    ) -> tuple[str, str, list[bytes]]:
        """(code's name, message, answers); every method is called as if both ends streamed."""
        method = self.channel.stream_stream(path, lambda data: data, lambda data: data)
        metadata = [("containerd-namespace", space)] if space else []
        metadata += [("containerd-lease", lease)] if lease else []
        answers: list[bytes] = []
        try:
            for answer in method(iter(requests), timeout=seconds, metadata=metadata):
                answers.append(answer)
                if len(answers) > 1000:
                    break
        except self.grpc.RpcError as error:
            return error.code().name, error.details() or "", answers
        return "OK", "", answers

    def close(self) -> None:
        self.channel.close()


def methods() -> list[tuple[str, Any, bool]]:
    """(path, descriptor of the request, whether the client streams)"""
    from google.protobuf import descriptor_pb2

    found = []
    for module in messages.modules():
        for service in module.DESCRIPTOR.services_by_name.values():
            if service.full_name.startswith(
                ("containerd.task", "containerd.runtime", "containerd.services.events.ttrpc")
            ):
                continue  # those are spoken to shims
            proto = descriptor_pb2.ServiceDescriptorProto()
            service.CopyToProto(proto)
            streams = {method.name: method.client_streaming for method in proto.method}
            for method in service.methods:
                found.append((f"/{service.full_name}/{method.name}", method.input_type, streams[method.name]))
    return found


def _pool(blobs: list[str]) -> tuple[messages.Pool, dict[str, list[str]]]:
    """What fields are filled with: names that are there (made by what was sent before), and what may be acted on."""
    names = ["one", "two", "three", "one"]
    keys = [
        "containerd.io/gc.root",
        "containerd.io/gc.ref.content",
        "containerd.io/gc.ref.snapshot.overlayfs",
        "containerd.io/gc.expire",
        "containerd.io/gc.flat",
        "containerd.io/snapshot.ref",
        "containerd.io/uncompressed",
        "containerd.io/distribution.source.docker.io",
        "containerd.io/gc.bref.container",
        "a",
    ]
    media = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "text/plain",
    ]
    pool: messages.Pool = {
        "id": names,
        "ID": names,
        "container_id": names,
        "exec_id": ["", "e1", "e2"],
        "sandbox_id": names,
        "name": [*names, "docker.io/library/fuzz:1"],
        "key": [*names, "active", "committed"],
        "parent": ["", "committed", *names],
        "snapshotter": ["overlayfs", "native", "", "overlayfs"],
        "ref": names,
        "digest": blobs,
        "expected": blobs,
        "media_type": media,
        "labels.key": keys,
        "labels": [*blobs, "x", "2030-01-01T00:00:00Z"],
        "filters": [
            "name==one",
            "labels.a",
            'labels."a.b"~=x',
            "id==one,name!=two",
            "digest==" + blobs[0],
            "name~=(",
            "==",
            "x==",
        ],
        "paths": [
            "labels",
            "labels.a",
            "target",
            "spec",
            "image",
            "extensions",
            "extensions.x",
            "labels.",
            "",
            "snapshot_key",
        ],
        "type": ["content", "snapshots/overlayfs", "ingests", "images", "leases"],
        "topic": ["/tasks/exit", "/a/b", "/", "a"],
        "namespace": [SPACE, SPACE, "fuzz2"],
        "service": ["", "containerd.services.content.v1.Content", "x"],
        "image": ["docker.io/library/fuzz:1", ""],
        "runtime": ["io.containerd.teu.v2", "io.containerd.runc.v2", ""],
        "RuntimeName": ["io.containerd.teu.v2"],
        "os": ["linux"],
        "architecture": ["amd64"],
        "reference": ["127.0.0.1:1/x:1"],
        "Runtime.name": ["io.containerd.teu.v2", "io.containerd.runc.v2"],
        "sandboxer": ["shim", "podsandbox", ""],
        "binary_name": ["teu-runc", "", "runc"],
        "host_dir": [""],
    }
    within = [str(BASE / "a"), str(BASE / "b")]
    bound = {
        "Mount.source": [*within, str(BASE / "none"), "overlay", "tmpfs", ""],
        "Mount.target": ["", "x", "a/b"],
        "Mount.type": ["bind", "overlay", "tmpfs", "", "nonsense"],
        "Mount.options": [
            "rbind",
            "bind",
            "ro",
            "rw",
            f"lowerdir={within[0]}",
            f"upperdir={within[1]}",
            f"workdir={BASE}/w",
            "nonsense",
            "X-containerd.mkdir.path=/var/lib/fuzz-grpc/m:755",
            "size=1m",
        ],
        "Mount.labels": ["a"],
        "stdin": ["", str(BASE / "fifo")],
        "stdout": ["", str(BASE / "out"), f"file://{BASE}/log"],
        "stderr": ["", str(BASE / "out")],
        "checkpoint": ["", str(BASE / "checkpoint")],
        "parent_checkpoint": [""],
        "path": [str(BASE / "p"), "", "relative"],
        "rootfs_path": [str(BASE / "a")],
        "runtime_path": ["", "/nowhere/x", "/usr/bin/containerd-shim-teu-v2"],
        "netns_path": ["", "/nowhere", str(BASE / "a")],
        "image_path": [str(BASE / "i"), ""],
        "work_path": [str(BASE / "w"), ""],
        "root": [str(BASE / "root"), ""],
        "criu_path": [""],
        "criu_image_path": [""],
        "criu_work_path": [""],
        "shim_cgroup": ["", "/fuzz-grpc/shim", "x/../../y"],
        "config_path": ["", str(BASE / "none")],
        "binary": ["", "true"],
        "bundle": [str(BASE / "a")],
        "bundle_path": [str(BASE / "a")],
    }
    return pool, bound


@target("grpc", "every method of containerd's services, with messages made from the descriptors, and damaged ones")
def fuzz(run: Run) -> None:
    import images

    images.need_busybox()  # and the daemon is up
    shutil.rmtree(BASE, ignore_errors=True)
    for name in ("a", "b", "w", "root"):
        (BASE / name).mkdir(parents=True)
    server = Server()
    types = messages.message_types()
    known = methods()
    blobs = [_blob(server, tars.archive(run.random, most=3, odd=0.0)) for _ in range(2)]
    blobs += [_blob(server, b'{"schemaVersion":2,"manifests":[]}'), "sha256:" + "0" * 64]
    pool, bound = _pool(blobs)
    maker = messages.Maker(run.random, pool, bound, types)
    maker.specs = lambda: spec(run.random)
    try:
        # the folders of the first task of a boot, and of its namespace, stay for those after it
        stays = ("io.containerd.runtime.v2.task", f"io.containerd.runtime.v2.task/{SPACE}")
        with run.watched(clean=lambda: clean(server), ignore=lambda each: each.endswith(stays)):
            while run.going():
                path, kind, streams = run.random.choice(known)
                count = run.random.choice((1, 2, 3)) if streams else 1
                made = [maker.make(kind, likely=run.random.choice((0.3, 0.7, 1.0))) for _ in range(count)]
                wires = [maker.wire(one) for one in made]
                if run.random.random() < 0.01:
                    wires = [run.random.randbytes(run.random.choice((0, 10, 1000)))]
                short = path.rpartition(".")[2]
                space = (
                    SPACE if run.random.random() < 0.97 else run.random.choice(("", "fuzz2", "A b", "x" * 80, "../x"))
                )
                lease = run.random.choice(("", "", "", "one", "none"))
                case = (
                    f"{path} namespace {space!r} lease {lease!r}\n"
                    + "\n".join(f"{one}" for one in made)
                    + f"\nwire {wires!r}"
                )
                if "Namespaces" in path and any(getattr(one, "name", "") == "teu" for one in made):
                    continue
                run.trying(case)
                began = time.monotonic()
                waits = short in WAITING
                code, text, _ = server.call(path, wires, 0.3 if waits else 60, space.replace("\n", ""), lease)
                took = time.monotonic() - began
                fault = NAMED.search(text) or (code in ("UNKNOWN", "INTERNAL") and FAULT.search(text.encode()))
                if fault and "unmarshalling" not in text:
                    run.finding(f"{short}: {code}: {text}"[:250], case)
                elif code == "UNAVAILABLE" and "ocket" in text:
                    run.finding(f"{short}: the daemon is gone: {text}"[:250], case)
                    time.sleep(1)
                elif took > 30 and not waits:
                    run.finding(f"{short}: no answer within 30 s: {code}", case)
                elif code == "INTERNAL" and "unmarshalling" not in text:
                    run.finding(f"{short}: {code}: {text}"[:250], case)
    finally:
        clean(server)
        server.close()
        shutil.rmtree(BASE, ignore_errors=True)


def _blob(server: Server, data: bytes) -> str:
    """Put content there; its digest."""
    import hashlib

    from teu.api.services.content.v1 import content_pb2

    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    request = content_pb2.WriteContentRequest(
        action=2, ref=f"seed-{digest}", total=len(data), expected=digest, data=data
    )
    request.labels["containerd.io/gc.root"] = "x"
    code, text, _ = server.call("/containerd.services.content.v1.Content/Write", [request.SerializeToString()], 30)
    assert code in ("OK", "ALREADY_EXISTS"), (code, text)
    return digest


def clean(server: Server) -> None:
    """Remove all that is in the namespaces of this target."""
    from teu.api.services.namespaces.v1 import namespace_pb2

    code, text, found = server.call("/containerd.services.namespaces.v1.Namespaces/List", [b""], 60, "")
    assert code == "OK", (code, text)
    for answer in found:
        for each in namespace_pb2.ListNamespacesResponse.FromString(answer).namespaces:
            if each.name not in ("teu", "default", "moby"):
                _empty(server, each.name)


def _empty(server: Server, space: str) -> None:
    from google.protobuf import empty_pb2

    from teu.api.services.containers.v1 import containers_pb2
    from teu.api.services.content.v1 import content_pb2
    from teu.api.services.images.v1 import images_pb2
    from teu.api.services.leases.v1 import leases_pb2
    from teu.api.services.mounts.v1 import mounts_pb2
    from teu.api.services.namespaces.v1 import namespace_pb2
    from teu.api.services.sandbox.v1 import sandbox_pb2
    from teu.api.services.snapshots.v1 import snapshots_pb2
    from teu.api.services.tasks.v1 import tasks_pb2

    def ask(path: str, request: Any, answer: Any = empty_pb2.Empty) -> list[Any]:
        _, _, answers = server.call(f"/containerd.services.{path}", [request.SerializeToString()], 60, space)
        return [answer.FromString(data) for data in answers]

    for answer in ask("tasks.v1.Tasks/List", tasks_pb2.ListTasksRequest(), tasks_pb2.ListTasksResponse):
        for task in answer.tasks:
            ask("tasks.v1.Tasks/Resume", tasks_pb2.ResumeTaskRequest(container_id=task.id))
            ask("tasks.v1.Tasks/Kill", tasks_pb2.KillRequest(container_id=task.id, signal=9, all=True))
            with contextlib.suppress(Exception):
                server.call(
                    "/containerd.services.tasks.v1.Tasks/Wait",
                    [tasks_pb2.WaitRequest(container_id=task.id).SerializeToString()],
                    5,
                    space,
                )
            ask("tasks.v1.Tasks/Delete", tasks_pb2.DeleteTaskRequest(container_id=task.id), tasks_pb2.DeleteResponse)
    for name in ("one", "two", "three"):  # a sandbox's shim may be there without a row
        ask(
            "sandbox.v1.Controller/Shutdown",
            sandbox_pb2.ControllerShutdownRequest(sandbox_id=name),
            sandbox_pb2.ControllerShutdownResponse,
        )
    for answer in ask("sandbox.v1.Store/List", sandbox_pb2.StoreListRequest(), sandbox_pb2.StoreListResponse):
        for box in answer.list:
            ask(
                "sandbox.v1.Controller/Stop",
                sandbox_pb2.ControllerStopRequest(sandbox_id=box.sandbox_id),
                sandbox_pb2.ControllerStopResponse,
            )
            ask(
                "sandbox.v1.Controller/Shutdown",
                sandbox_pb2.ControllerShutdownRequest(sandbox_id=box.sandbox_id),
                sandbox_pb2.ControllerShutdownResponse,
            )
            ask(
                "sandbox.v1.Store/Delete",
                sandbox_pb2.StoreDeleteRequest(sandbox_id=box.sandbox_id),
                sandbox_pb2.StoreDeleteResponse,
            )
    for answer in ask(
        "containers.v1.Containers/List", containers_pb2.ListContainersRequest(), containers_pb2.ListContainersResponse
    ):
        for one in answer.containers:
            ask("containers.v1.Containers/Delete", containers_pb2.DeleteContainerRequest(id=one.id))
    for answer in ask("images.v1.Images/List", images_pb2.ListImagesRequest(), images_pb2.ListImagesResponse):
        for one in answer.images:
            ask("images.v1.Images/Delete", images_pb2.DeleteImageRequest(name=one.name, sync=True))
    for answer in ask("leases.v1.Leases/List", leases_pb2.ListRequest(), leases_pb2.ListResponse):
        for one in answer.leases:
            ask("leases.v1.Leases/Delete", leases_pb2.DeleteRequest(id=one.id, sync=True))
    for answer in ask("mounts.v1.Mounts/List", mounts_pb2.ListRequest(), mounts_pb2.ListMessage):
        ask("mounts.v1.Mounts/Deactivate", mounts_pb2.DeactivateRequest(name=answer.info.name))
    for snapshotter in ("overlayfs", "native"):
        for _ in range(4):  # children before their parents
            for answer in ask(
                "snapshots.v1.Snapshots/List",
                snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter),
                snapshots_pb2.ListSnapshotsResponse,
            ):
                for one in answer.info:
                    ask(
                        "snapshots.v1.Snapshots/Remove",
                        snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=one.name),
                    )
    for answer in ask(
        "content.v1.Content/ListStatuses", content_pb2.ListStatusesRequest(), content_pb2.ListStatusesResponse
    ):
        for one in answer.statuses:
            ask("content.v1.Content/Abort", content_pb2.AbortRequest(ref=one.ref))
    for answer in ask("content.v1.Content/List", content_pb2.ListContentRequest(), content_pb2.ListContentResponse):
        for one in answer.info:
            ask("content.v1.Content/Delete", content_pb2.DeleteContentRequest(digest=one.digest))
    ask("namespaces.v1.Namespaces/Delete", namespace_pb2.DeleteNamespaceRequest(name=space))
