# SPDX-License-Identifier: Apache-2.0
"""Introspection: what this daemon is made of, in containerd's words for its parts (dockerd and ctr look here)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from google.protobuf import empty_pb2

from teu.api.services.introspection.v1 import introspection_pb2
from teu.api.types import introspection_pb2 as introspection_types
from teu.api.types import platform_pb2
from teu.containerd.core.errors import NotFound
from teu.containerd.core.filters import Adaptor, parse_all, present
from teu.containerd.runtime import restart
from teu.containerd.runtime.bootstrap import runtime_info
from teu.containerd.server.rpc import Call, Server, quick
from teu.containerd.state import Context
from teu.oci.image_spec import host_platform

# type, id, requires
_PARTS = (
    ("io.containerd.content.v1", "content", ()),
    ("io.containerd.metadata.v1", "bolt", ("io.containerd.content.v1", "io.containerd.snapshotter.v1")),
    ("io.containerd.gc.v1", "scheduler", ("io.containerd.metadata.v1",)),
    ("io.containerd.differ.v1", "walking", ("io.containerd.metadata.v1",)),
    ("io.containerd.event.v1", "exchange", ()),
    ("io.containerd.runtime.v2", "task", ("io.containerd.metadata.v1", "io.containerd.event.v1")),
    ("io.containerd.sandbox.store.v1", "local", ("io.containerd.metadata.v1",)),
    ("io.containerd.sandbox.controller.v1", "shim", ("io.containerd.runtime.v2",)),
    ("io.containerd.streaming.v1", "manager", ()),
    ("io.containerd.transfer.v1", "local", ("io.containerd.metadata.v1", "io.containerd.differ.v1")),
    ("io.containerd.lease.v1", "manager", ("io.containerd.metadata.v1",)),
)
_SERVICES = (
    "containers",
    "content",
    "diff",
    "events",
    "healthcheck",
    "images",
    "introspection",
    "leases",
    "namespaces",
    "sandbox-controllers",
    "sandboxes",
    "snapshots",
    "streaming",
    "tasks",
    "transfer",
    "version",
)


def _plugins(context: Context) -> list[introspection_pb2.Plugin]:
    here = host_platform()
    host = platform_pb2.Platform(os=here.os, architecture=here.architecture, variant=here.variant)
    plugins = []
    for kind, id, requires in _PARTS:
        plugin = introspection_pb2.Plugin(type=kind, id=id, requires=requires)
        if kind == "io.containerd.runtime.v2":
            # Ours alone: a client that may choose takes what is best here.
            plugin.exports["default-runtime"] = context.config["default-runtime"]
        if kind in ("io.containerd.differ.v1", "io.containerd.runtime.v2", "io.containerd.transfer.v1"):
            plugin.platforms.append(host)
        plugins.append(plugin)
    plugins.append(
        introspection_pb2.Plugin(type="io.containerd.internal.v1", id="restart", capabilities=restart.POLICIES)
    )
    for name, snapshotter in context.snapshots.snapshotters.items():
        plugin = introspection_pb2.Plugin(
            type="io.containerd.snapshotter.v1", id=name, capabilities=snapshotter.capabilities
        )
        plugin.platforms.append(host)
        if snapshotter.root:
            plugin.exports["root"] = snapshotter.root
        plugins.append(plugin)
    for name in _SERVICES:
        plugins.append(introspection_pb2.Plugin(type="io.containerd.grpc.v1", id=name))
    return sorted(plugins, key=lambda plugin: (plugin.type, plugin.id))


def _adaptor(plugin: introspection_pb2.Plugin) -> Adaptor:
    def adapt(path: Sequence[str]) -> str | None:
        return present({"type": plugin.type, "id": plugin.id}.get(path[0], ""))

    return adapt


class Introspection:
    """containerd.services.introspection.v1.Introspection."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._plugins = _plugins(context)

    @quick
    def Plugins(self, request: introspection_pb2.PluginsRequest, call: Call) -> introspection_pb2.PluginsResponse:
        """The parts of this daemon by containerd's names, those that one of the filters fits (type, id)."""
        accept = parse_all(request.filters)
        found = [plugin for plugin in self._plugins if accept(_adaptor(plugin))]
        return introspection_pb2.PluginsResponse(plugins=found)

    @quick
    def Server(self, request: empty_pb2.Empty, call: Call) -> introspection_pb2.ServerResponse:
        """The uuid of this daemon's state, its process id, and the inode of that id's namespace."""
        return introspection_pb2.ServerResponse(
            uuid=self._context.database.uuid, pid=os.getpid(), pidns=os.stat("/proc/self/ns/pid").st_ino
        )

    def PluginInfo(
        self, request: introspection_pb2.PluginInfoRequest, call: Call
    ) -> introspection_pb2.PluginInfoResponse:
        """One part, by its type and id; of the runtime also what the runtime that is asked for can do. NOT_FOUND."""
        for plugin in self._plugins:
            if (plugin.type, plugin.id) == (request.type, request.id):
                break
        else:
            raise NotFound(f"plugin {request.type}.{request.id}")
        response = introspection_pb2.PluginInfoResponse(plugin=plugin)
        name = request.options.type_url.rpartition("/")[2]
        if name == "containerd.types.RuntimeRequest":
            asked = introspection_types.RuntimeRequest.FromString(request.options.value)
            info = runtime_info(asked.runtime_path, asked.options)
            response.extra.type_url = info.DESCRIPTOR.full_name
            response.extra.value = info.SerializeToString()
        return response


def register(server: Server, context: Context) -> None:
    server.add(introspection_pb2.DESCRIPTOR.services_by_name["Introspection"], Introspection(context))
