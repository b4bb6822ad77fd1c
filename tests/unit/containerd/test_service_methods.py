# SPDX-License-Identifier: Apache-2.0
"""Methods of the services, called as the server calls them, without a wire: what they take, answer and raise."""

from __future__ import annotations

import asyncio
import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
from containerd_parts import root_only
from google.protobuf import any_pb2, empty_pb2, field_mask_pb2

from teu import __version__
from teu.api.grpc.health.v1 import health_pb2
from teu.api.grpc.reflection.v1 import reflection_pb2
from teu.api.services.containers.v1 import containers_pb2
from teu.api.services.images.v1 import images_pb2
from teu.api.services.introspection.v1 import introspection_pb2
from teu.api.services.leases.v1 import leases_pb2
from teu.api.services.namespaces.v1 import namespace_pb2
from teu.containerd.core.errors import FailedPrecondition, InvalidArgument, NotFound
from teu.containerd.core.version import COMPATIBLE
from teu.containerd.runtime import checkpoints, processes
from teu.containerd.server.rpc import Call
from teu.containerd.services.containers import Containers
from teu.containerd.services.health import Health
from teu.containerd.services.images import Images
from teu.containerd.services.introspection import Introspection
from teu.containerd.services.leases import Leases
from teu.containerd.services.namespaces import Namespaces
from teu.containerd.services.reflection import Reflection
from teu.containerd.services.version import Version
from teu.containerd.state import Context
from teu.containerd.stores import garbage

DIGEST = "sha256:" + "a" * 64


def call(namespace: str = "n", **more: str) -> Call:
    """What a method may ask about its call, with these headers."""
    headers = [("containerd-namespace", namespace)] if namespace else []
    headers += list(more.items())
    return Call(SimpleNamespace(invocation_metadata=lambda: headers))


def image(name: str, **labels: str) -> images_pb2.Image:
    found = images_pb2.Image(name=name, labels=labels)
    found.target.media_type, found.target.digest, found.target.size = "m", DIGEST, 5
    return found


def test_the_namespace_of_a_call() -> None:
    assert call("moby").namespace == "moby"
    with pytest.raises(FailedPrecondition, match="namespace is required"):
        call("").namespace  # noqa: B018
    with pytest.raises(InvalidArgument):
        call("../etc").namespace  # noqa: B018


def test_the_version_is_one_that_clients_can_compare() -> None:
    found = Version().Version(empty_pb2.Empty(), call(""))
    assert found.version == f"{COMPATIBLE}+teu{__version__}"
    assert tuple(map(int, COMPATIBLE.split("."))) >= (1, 7, 0)


def test_health_is_that_of_each_service() -> None:
    health = Health(SimpleNamespace(services={"containerd.services.images.v1.Images"}))  # type: ignore[arg-type]
    for service in ("", "containerd.services.images.v1.Images"):
        assert health.Check(health_pb2.HealthCheckRequest(service=service), call("")).status == 1
    with pytest.raises(NotFound, match="unknown service"):
        health.Check(health_pb2.HealthCheckRequest(service="other"), call(""))

    listed = health.List(health_pb2.HealthListRequest(), call("")).statuses
    assert {name: one.status for name, one in listed.items()} == {"": 1, "containerd.services.images.v1.Images": 1}

    async def first() -> Any:
        return await anext(health.Watch(health_pb2.HealthCheckRequest(service="other"), call("")))

    assert asyncio.run(first()).status == 3, "a watch tells of what is not there yet, and does not fail"


def test_reflection_gives_a_file_with_all_that_it_needs() -> None:
    reflection = Reflection(SimpleNamespace(services={"b.B", "a.A"}), reflection_pb2)  # type: ignore[arg-type]

    def ask(**request: Any) -> Any:
        return reflection._answer(reflection_pb2.ServerReflectionRequest(host="h", **request))

    listed = ask(list_services="").list_services_response.service
    assert [one.name for one in listed] == ["a.A", "b.B"]
    symbol = "containerd.services.images.v1.Images"
    given = ask(file_containing_symbol=symbol).file_descriptor_response.file_descriptor_proto
    assert any(b"google/protobuf/timestamp.proto" in one for one in given)
    assert len(given) > 3
    assert ask(file_by_filename="nowhere.proto").error_response.error_code == 5
    assert ask().error_response.error_code == 12


def test_namespaces_need_no_namespace(context: Context) -> None:
    service = Namespaces(context)
    made = namespace_pb2.Namespace(name="a", labels={"x": "1"})
    service.Create(namespace_pb2.CreateNamespaceRequest(namespace=made), call(""))
    made.labels["x"] = "2"
    mask = field_mask_pb2.FieldMask(paths=["labels.x"])
    service.Update(namespace_pb2.UpdateNamespaceRequest(namespace=made, update_mask=mask), call(""))
    found = service.Get(namespace_pb2.GetNamespaceRequest(name="a"), call("")).namespace
    assert dict(found.labels) == {"x": "2"}
    service.Delete(namespace_pb2.DeleteNamespaceRequest(name="a"), call(""))
    with pytest.raises(NotFound):
        service.Delete(namespace_pb2.DeleteNamespaceRequest(name="a"), call(""))


def test_a_lease_without_a_name_is_given_one(context: Context) -> None:
    service = Leases(context)
    named = service.Create(leases_pb2.CreateRequest(id="mine"), call()).lease
    one = service.Create(leases_pb2.CreateRequest(labels={"k": "v"}), call()).lease
    two = service.Create(leases_pb2.CreateRequest(), call()).lease
    assert named.id == "mine" and one.id and one.id != two.id
    resource = leases_pb2.Resource(id="img", type="images")
    service.AddResource(leases_pb2.AddResourceRequest(id="mine", resource=resource), call())
    held = service.ListResources(leases_pb2.ListResourcesRequest(id="mine"), call()).resources
    assert [(each.type, each.id) for each in held] == [("images", "img")]
    service.DeleteResource(leases_pb2.DeleteResourceRequest(id="mine", resource=resource), call())
    assert not service.ListResources(leases_pb2.ListResourcesRequest(id="mine"), call()).resources
    found = service.List(leases_pb2.ListRequest(filters=["labels.k==v"]), call()).leases
    assert [lease.id for lease in found] == [one.id]
    assert not service.List(leases_pb2.ListRequest(), call("other")).leases


def test_an_image_is_updated_and_deleted_where_it_is(context: Context) -> None:
    service = Images(context)
    service.Create(images_pb2.CreateImageRequest(image=image("a", k="v")), call())
    changed = images_pb2.UpdateImageRequest(image=image("a", k="w"), update_mask={"paths": ["labels.k"]})
    assert dict(service.Update(changed, call()).image.labels) == {"k": "w"}
    with pytest.raises(NotFound):
        service.Get(images_pb2.GetImageRequest(name="a"), call("other"))
    assert [each.name for each in service.List(images_pb2.ListImagesRequest(), call()).images] == ["a"]
    service.Delete(images_pb2.DeleteImageRequest(name="a"), call())
    with pytest.raises(NotFound):
        service.Delete(images_pb2.DeleteImageRequest(name="a"), call())


def test_a_container_needs_a_runtime(context: Context) -> None:
    service = Containers(context)
    wanted = containers_pb2.Container(id="c", image="i")
    with pytest.raises(InvalidArgument, match="Runtime.Name must be set"):
        service.Create(containers_pb2.CreateContainerRequest(container=wanted), call())
    wanted.runtime.name = "io.containerd.teu.v2"
    service.Create(containers_pb2.CreateContainerRequest(container=wanted), call())
    assert service.Get(containers_pb2.GetContainerRequest(id="c"), call()).container.image == "i"
    service.Delete(containers_pb2.DeleteContainerRequest(id="c"), call())
    with pytest.raises(NotFound, match='container "c"'):
        service.Get(containers_pb2.GetContainerRequest(id="c"), call())


def test_plugins_are_found_by_what_they_are(context: Context) -> None:
    service = Introspection(context)
    asked = introspection_pb2.PluginsRequest(filters=["type==io.containerd.snapshotter.v1,id==overlayfs"])
    (found,) = service.Plugins(asked, call("")).plugins
    assert found.exports["root"].startswith(context.root)
    assert service.Server(empty_pb2.Empty(), call("")).pid == os.getpid()
    with pytest.raises(NotFound, match="plugin a.b"):
        service.PluginInfo(introspection_pb2.PluginInfoRequest(type="a", id="b"), call(""))


# What is below them -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "gone"),
    [("2001-01-01T00:00:00Z", True), ("2999-01-01T00:00:00+02:00", False), ("tomorrow", False), (None, False)],
)
def test_what_has_expired(text: str | None, gone: bool) -> None:
    assert garbage.expired({"containerd.io/gc.expire": text} if text else {}) is gone


def test_an_expiry_in_the_same_second(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 1_700_000_000.25
    label = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))
    monkeypatch.setattr(garbage.time, "time", lambda: moment)
    assert garbage.expired({"containerd.io/gc.expire": label + ".2Z"})
    assert not garbage.expired({"containerd.io/gc.expire": label + ".3Z"})


def test_what_is_started_gets_the_limits_that_we_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 4096)]
    monkeypatch.setattr(processes, "_given", None)
    monkeypatch.setattr(processes.resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(processes.resource, "setrlimit", lambda _, pair: limits.append(pair))
    assert processes.with_given_limits(["shim"]) == ["shim"]
    processes.raise_descriptor_limit()
    assert limits[-1] == (4096, 4096)
    command = processes.with_given_limits(["shim", "-id", "a b"])
    assert command[-4:] == ["1024", "shim", "-id", "a b"]
    processes.raise_descriptor_limit()
    assert processes.with_given_limits([])[-1] == "1024", "the first limit is the one that was given"


@root_only
def test_a_checkpoint_is_two_blobs_and_comes_back(context: Context) -> None:
    store = checkpoints.Checkpoints(context.root, context.content, context.layers)
    folder = store.folder()
    with open(os.path.join(folder, "pages-1.img"), "wb") as file:
        file.write(b"pages" * 1000)
    specification = any_pb2.Any(type_url="spec", value=b"{}")
    images, spec = store.store("n", folder, specification, "")
    store.drop(folder)
    assert not os.path.exists(folder)
    assert spec.size == len(specification.SerializeToString())
    work = os.path.join(context.root, "work")
    os.mkdir(work)
    restored = store.restorer("n", images)(work)
    with open(os.path.join(restored, "pages-1.img"), "rb") as file:
        assert file.read() == b"pages" * 1000
    with pytest.raises(NotFound):
        store.restorer("other", images)
    with pytest.raises(InvalidArgument, match="unsupported checkpoint type"):
        store.restorer("n", spec)


def test_checkpoints_of_a_killed_daemon_go(context: Context) -> None:
    store = checkpoints.Checkpoints(context.root, context.content, context.layers)
    left = store.folder()
    checkpoints.Checkpoints(context.root, context.content, context.layers)
    assert not os.path.exists(left)
