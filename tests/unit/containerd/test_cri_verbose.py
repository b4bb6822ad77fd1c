# SPDX-License-Identifier: Apache-2.0
"""What verbose answers of the CRI say, under containerd's names."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.types.runc.options import oci_pb2
from teu.cni import configuration
from teu.containerd.cri import verbose
from teu.containerd.cri.records import Container, Pod

ID = "a" * 64


def make_pod(**more: Any) -> Pod:
    config = cri.PodSandboxConfig(metadata={"name": "p", "namespace": "n", "uid": "u", "attempt": 1}, hostname="h")
    return Pod(ID, config, **more)


def test_messages_are_as_go_writes_them() -> None:
    config = cri.ContainerConfig(metadata={"name": "c"}, command=["a", "b"], labels={"x": "y"}, tty=True)
    config.mounts.add(container_path="/m", propagation=cri.PROPAGATION_BIDIRECTIONAL)
    config.mounts.add()
    config.envs.add(key="k", value=b"v\xff")
    config.linux.resources.cpu_shares = 1 << 40
    config.linux.security_context.run_as_user.value = 0
    config.linux.security_context.run_as_group.value = 7
    assert verbose.plain(config) == {
        "metadata": {"name": "c"},
        "command": ["a", "b"],
        "labels": {"x": "y"},
        "tty": True,
        "mounts": [{"container_path": "/m", "propagation": 2}, {}],
        "envs": [{"key": "k", "value": "v\ufffd"}],
        "linux": {
            "resources": {"cpu_shares": 1 << 40},
            "security_context": {"run_as_user": {}, "run_as_group": {"value": 7}},
        },
    }
    request = cri.CreateContainerRequest()
    request.config.linux.resources.unified["memory.high"] = "1"
    assert verbose.plain(request) == {"config": {"linux": {"resources": {"unified": {"memory.high": "1"}}}}}


def test_a_pod_says_where_its_network_is() -> None:
    joined = [{"type": "network", "path": "/run/netns/x"}, {"type": "mount"}]
    result = {
        "interfaces": [{"name": "cni0", "mac": "m0"}, {"name": "eth0", "mac": "m1", "sandbox": "/run/netns/x"}],
        "ips": [
            {"interface": 1, "address": "10.0.0.2/24", "gateway": "10.0.0.1"},
            {"interface": 1, "address": "fd00::2/64"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    pod = make_pod(network="/run/netns/x", addresses=["10.0.0.2", "fd00::2"])
    pod.config.linux.overhead.cpu_shares = 3
    told = verbose.of_pod(pod, ready=True, closed=False, pid=42, shim="", joined=joined, result=result)
    assert told["pid"] == 42 and told["processStatus"] == "running" and not told["netNamespaceClosed"]
    assert told["runtimeSpec"]["linux"]["namespaces"] == joined and told["runtimeSpec"]["hostname"] == "h"
    assert told["overhead"] == {"linux": {"cpu_shares": 3}} and "resources" not in told
    inside = told["cniResult"]["Interfaces"]["eth0"]
    assert inside["IPConfigs"] == [{"IP": "10.0.0.2", "Gateway": "10.0.0.1"}, {"IP": "fd00::2", "Gateway": ""}]
    assert inside["Sandbox"] == "/run/netns/x"
    assert told["cniResult"]["Interfaces"]["cni0"]["IPConfigs"] is None
    assert told["cniResult"]["Routes"] == [{"dst": "0.0.0.0/0"}]
    meta = told["sandboxMetadata"]["Metadata"]
    assert (meta["IP"], meta["AdditionalIPs"], meta["Name"]) == ("10.0.0.2", ["fd00::2"], "p_n_u_1")
    json.dumps(told)
    told = verbose.of_pod(make_pod(), ready=False, closed=False, pid=0, shim="", joined=[], result=None)
    assert told["processStatus"] == "deleted" and told["cniResult"] is None


def test_addresses_without_an_interface_are_of_the_first() -> None:
    told = verbose.attached({"ips": [{"address": "10.0.0.2/24"}, {"interface": 9, "address": "10.0.0.3/24"}]})
    assert [one["IP"] for one in told["Interfaces"]["eth0"]["IPConfigs"]] == ["10.0.0.2", "10.0.0.3"]


def test_a_container_says_what_it_is_run_with() -> None:
    container = Container("c" * 64, make_pod(), cri.ContainerConfig(metadata={"name": "c"}), snapshotter="overlayfs")
    options = oci_pb2.Options(systemd_cgroup=True).SerializeToString()
    runtime = SimpleNamespace(name="io.containerd.teu.v2", options=SimpleNamespace(value=options))
    record = SimpleNamespace(runtime=runtime, spec=SimpleNamespace(value=b'{"ociVersion": "1.1.0"}'))
    told = verbose.of_container(container, record, 7)
    assert (told["pid"], told["removing"], told["runtimeType"]) == (7, False, "io.containerd.teu.v2")
    assert told["runtimeOptions"] == {"systemd_cgroup": True} and told["runtimeSpec"] == {"ociVersion": "1.1.0"}
    assert verbose.of_container(container, None, 0)["removing"]


def test_what_is_configured_for_networks() -> None:
    source = b'{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "bridge"}]}'
    told = verbose.of_network(configuration.parse(source, whole=True), "/etc/cni/net.d", ["/usr/lib/cni"])
    [network] = told["Networks"]
    assert network["Config"]["Source"].encode() == source and network["IFName"] == "eth0"
    assert network["Config"]["Plugins"] == [{"Network": {"type": "bridge"}, "Source": '{"type":"bridge"}'}]
    assert verbose.of_network(None, "/etc/cni/net.d", [])["Networks"] == []
