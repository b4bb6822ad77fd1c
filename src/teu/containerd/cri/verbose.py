# SPDX-License-Identifier: Apache-2.0
"""What the CRI calls `info`: more than kubelet asks for, under containerd's names, because people and their scripts
read it there (crictl inspect, inspectp, info: .info.pid, .info.runtimeSpec, .info.cniResult). Called by `service`.

containerd writes the messages with the names of the protocol and whole numbers; what only a pause container has is
empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from teu.api.types.runc.options import oci_pb2
from teu.cni.configuration import Configuration
from teu.containerd.cri.cadvisor import described
from teu.containerd.cri.records import RUNTIME, Container, Pod
from teu.oci import jsontext

Json = dict[str, Any]
_PREFIX = "eth"  # of the interfaces' names, as go-cni has it


def plain(message: Any) -> Json:
    """A message as Go writes it: fields by their names in the protocol, numbers and enumerations as numbers, nothing
    that has its default."""
    return {field.name: _plain(field, value) for field, value in message.ListFields()}


def _plain(field: Any, value: Any) -> Any:
    if field.message_type is None:
        if isinstance(value, bytes):  # of an environment variable, which containerd has as a text
            return value.decode(errors="replace")
        return value if isinstance(value, str | int | float | bool) else list(value)
    if field.message_type.GetOptions().map_entry:
        of = field.message_type.fields_by_name["value"]
        return {str(key): _plain(of, one) for key, one in value.items()}
    return plain(value) if hasattr(value, "ListFields") else [plain(one) for one in value]


def of_container(container: Container, record: Any, pid: int) -> Json:
    """Of ContainerStatus. `record` is that of containerd's API, None while it is being removed; `pid` 0 for a container
    that does not run."""
    told: Json = {
        "sandboxID": container.pod.id,
        "pid": pid,
        "removing": record is None,
        "snapshotKey": container.id,
        "snapshotter": container.snapshotter,
        "runtimeType": "",
        "runtimeOptions": None,
        "config": plain(container.config),
        "runtimeSpec": None,
    }
    if record is not None:
        told["runtimeType"] = record.runtime.name
        told["runtimeOptions"] = plain(oci_pb2.Options.FromString(record.runtime.options.value))
        told["runtimeSpec"] = jsontext.loads(record.spec.value)
    return told


def of_pod(pod: Pod, *, ready: bool, closed: bool, pid: int, shim: str, joined: Sequence[Json], result: Any) -> Json:
    """Of PodSandboxStatus. `closed` says whether its network namespace is gone, `pid` is a process in it (0 for none),
    `joined` are the namespaces that its containers share, as the specification has them, `result` is what CNI's plugins
    have answered, None where they have not been asked."""
    spec = described(pod)
    spec["linux"]["namespaces"] = list(joined)
    if pod.config.hostname:
        spec["hostname"] = pod.config.hostname
    network = None if result is None else attached(result)
    told: Json = {
        "sandboxID": pod.id,
        "netns": pod.network,
        "pid": pid,
        "processStatus": "running" if ready else "deleted",
        "netNamespaceClosed": closed,
        "image": "",
        "snapshotKey": "",
        "snapshotter": "",
        "runtimeHandler": pod.handler,
        "runtimeType": shim or RUNTIME,
        "runtimeOptions": {},
        "config": plain(pod.config),
        "runtimeSpec": spec,
        "cniResult": network,
        "sandboxMetadata": {
            "Version": "v1",
            "Metadata": {
                "ID": pod.id,
                "Name": pod.name,
                "Config": plain(pod.config),
                "NetNSPath": pod.network,
                "IP": pod.addresses[0] if pod.addresses else "",
                "AdditionalIPs": pod.addresses[1:],
                "RuntimeHandler": pod.handler,
                "CNIResult": network,
                "ProcessLabel": "",
            },
        },
    }
    for name in ("overhead", "resources"):
        if pod.config.linux.HasField(name):
            # ContainerResources, of which this is the part for Linux
            told[name] = {"linux": plain(getattr(pod.config.linux, name))}
    return told


def attached(result: Mapping[str, Any]) -> Json:
    """A result of CNI by interface, as go-cni has it."""
    interfaces = [one for one in result.get("interfaces") or () if isinstance(one, dict)]
    found: Json = {f"{_PREFIX}0": {"IPConfigs": None, "Mac": "", "Sandbox": "", "PciID": "", "SocketPath": ""}}
    for one in interfaces:
        found[str(one.get("name", ""))] = {
            "IPConfigs": None,
            "Mac": one.get("mac", ""),
            "Sandbox": one.get("sandbox", ""),
            "PciID": one.get("pciID", ""),
            "SocketPath": one.get("socketPath", ""),
        }
    for one in result.get("ips") or ():
        at = one.get("interface")
        known = isinstance(at, int) and 0 <= at < len(interfaces)
        config = found[str(interfaces[at].get("name", "")) if known else f"{_PREFIX}0"]
        address = {"IP": str(one.get("address", "")).partition("/")[0], "Gateway": one.get("gateway", "")}
        config["IPConfigs"] = [*(config["IPConfigs"] or ()), address]
    return {"Interfaces": found, "DNS": [result.get("dns") or {}], "Routes": result.get("routes")}


def of_network(configuration: Configuration | None, folder: str, plugins: Sequence[str]) -> Json:
    """Of Status: what is configured for pods' networks, if anything is."""
    networks = []
    if configuration is not None:
        config = {
            "Name": configuration.name,
            "CNIVersion": configuration.version,
            "Plugins": [{"Network": one, "Source": jsontext.dumps(one)} for one in configuration.plugins],
            "Source": configuration.source.decode(errors="replace"),
        }
        networks.append({"Config": config, "IFName": f"{_PREFIX}0"})
    return {
        "PluginDirs": list(plugins),
        "PluginConfDir": folder,
        "PluginMaxConfNum": 1,
        "Prefix": _PREFIX,
        "Networks": networks,
    }
