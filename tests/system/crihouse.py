# SPDX-License-Identifier: Apache-2.0
"""The CRI of teu-containerd, and that of Debian's containerd, side by side: each with a network of CNI's real plugins,
and the same images from a registry of the test's own.

    with both(registry) as (ours, theirs):
        pod = ours.run_pod("p")
        container = ours.run_container(pod, "c", ["sleep", "1000"])
        assert ours.exec(container, "id", "-u").stdout == b"0\\n"
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import peers
from taskhouse import TeuContainerd

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.cri.v1 import cri_pb2_grpc

PAUSE = "docker.io/library/pause:teu"
PLUGINS = "/usr/lib/cni"
NEWER = f"{peers.NEWER}/usr"  # programs of Debian's next release, where the lab shows them
SIZE = 32 << 20


_numbers = itertools.count(1)


class Network:
    """A bridge with addresses of its own, and published ports; its configuration is in FOLDER/net.d."""

    def __init__(self, folder: Path, version: str = "1.0.0") -> None:
        number = next(_numbers)
        self.name = f"teu-test-{number}"
        self.bridge = f"cni-t{number}"
        self._given = folder / "addresses"
        (folder / "net.d").mkdir()
        bridge = {
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self._given),
                "ranges": [[{"subnet": f"10.88.{number}.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        text = json.dumps({"cniVersion": version, "name": self.name, "plugins": [bridge, portmap]})
        (folder / "net.d/10-test.conflist").write_text(text)

    def addresses(self) -> list[str]:
        """Those that are given away."""
        return sorted(one.name for one in (self._given / self.name).glob("10.*"))

    def remove(self) -> None:
        peers.run("ip", "link", "delete", self.bridge, code=None)


class Client:
    """One runtime's CRI."""

    def __init__(self, name: str, daemon: peers.Containerd, folder: Path, network: Network) -> None:
        self.name = name
        self.network = network
        self.daemon = daemon
        self.folder = folder  # of the test: logs, sources of mounts
        self.nri = str(folder / "nri.sock")
        self.channel: Any = None
        self.connect()
        self._count = 0

    def connect(self) -> None:
        """Again, after a start of the daemon."""
        if self.channel is not None:
            self.channel.close()
        options = [("grpc.max_receive_message_length", SIZE)]
        self.channel = grpc.insecure_channel(f"unix:{self.daemon.address}", options=options)
        self.runtime = cri_pb2_grpc.RuntimeServiceStub(self.channel)
        self.images = cri_pb2_grpc.ImageServiceStub(self.channel)

    def call(self, method: str, _deadline: float = 60.0, **fields: Any) -> Any:
        """Any method, by its name."""
        service = self.images if "Image" in method else self.runtime
        return getattr(service, method)(getattr(cri, f"{method}Request")(**fields), timeout=_deadline * peers.PATIENCE)

    def refused(self, method: str, **fields: Any) -> tuple[str, str]:
        """(code, text) of a request that fails."""
        try:
            self.call(method, **fields)
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""
        raise AssertionError(f"{self.name} has taken {method} {fields}")

    def pull(self, name: str, **auth: str) -> str:
        """The image's id."""
        given = {"auth": cri.AuthConfig(**auth)} if auth else {}
        return str(self.call("PullImage", image=cri.ImageSpec(image=name), **given).image_ref)

    def pod_config(self, name: str, **more: Any) -> Any:
        """A pod with a network of its own, and each container with its own processes."""
        config = cri.PodSandboxConfig(
            metadata={"name": name, "uid": f"uid-{name}", "namespace": "default", "attempt": 1},
            hostname=f"host-{name}",
            log_directory=str(self.folder / f"logs-{name}"),
            labels={"app": name, "common": "yes"},
            annotations={"note": name},
        )
        config.linux.security_context.namespace_options.pid = cri.CONTAINER
        config.MergeFrom(cri.PodSandboxConfig(**more))
        return config

    def run_pod(self, name: str, **more: Any) -> Any:
        """(id, config) of a new pod."""
        config = self.pod_config(name, **more)
        Path(config.log_directory).mkdir(parents=True, exist_ok=True)
        return self.call("RunPodSandbox", config=config).pod_sandbox_id, config

    def container_config(self, name: str, command: list[str], image: str, **more: Any) -> Any:
        config = cri.ContainerConfig(
            metadata={"name": name, "attempt": 0},
            image={"image": image},
            command=command,
            log_path=f"{name}.log",
            labels={"part": name},
        )
        config.linux.security_context.namespace_options.pid = cri.CONTAINER
        config.MergeFrom(cri.ContainerConfig(**more))
        return config

    def create(self, pod: Any, name: str, command: list[str], image: str = peers.IMAGE, **more: Any) -> str:
        """The id of a new container."""
        config = self.container_config(name, command, image, **more)
        answer = self.call("CreateContainer", pod_sandbox_id=pod[0], config=config, sandbox_config=pod[1])
        return str(answer.container_id)

    def run_container(self, pod: Any, name: str, command: list[str], image: str = peers.IMAGE, **more: Any) -> str:
        """The id of a started container."""
        id = self.create(pod, name, command, image, **more)
        self.call("StartContainer", container_id=id)
        return id

    def status(self, id: str) -> Any:
        """ContainerStatus."""
        return self.call("ContainerStatus", container_id=id).status

    def ended(self, id: str, limit: float = 30.0) -> Any:
        """Its status, once it has ended."""
        return peers.wait_until(
            lambda: (found := self.status(id)).state == cri.CONTAINER_EXITED and found, f"{id} has ended", limit
        )

    def exec(self, id: str, *command: str, timeout: int = 0) -> Any:
        """ExecSyncResponse."""
        return self.call("ExecSync", container_id=id, cmd=command, timeout=timeout)

    def output(self, pod: Any, name: str, command: list[str], image: str = peers.IMAGE, **more: Any) -> str:
        """What a container writes to its standard output, which is waited for; then it is removed."""
        id = self.run_container(pod, name, command, image, **more)
        self.ended(id)
        found = self.log(pod, name)
        self.call("RemoveContainer", container_id=id)
        Path(pod[1].log_directory, f"{name}.log").unlink()
        return "".join(text + "\n" for stream, _, text in found if stream == "stdout")

    def log(self, pod: Any, name: str) -> list[tuple[str, str, str]]:
        """(stream, tag, text) of each line."""
        path = Path(pod[1].log_directory, f"{name}.log")
        lines = []
        for line in path.read_text().splitlines():
            moment, stream, tag, text = line.split(" ", 3)
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(Z|[+-]\d\d:\d\d)", moment), line
            lines.append((stream, tag, text))
        return lines

    def remove_pod(self, pod: Any) -> None:
        self.call("StopPodSandbox", pod_sandbox_id=pod[0])
        self.call("RemovePodSandbox", pod_sandbox_id=pod[0])

    def clear(self) -> None:
        """Remove all pods, also those of a test that has failed."""
        with contextlib.suppress(grpc.RpcError):
            for pod in self.call("ListPodSandbox").items:
                self.remove_pod((pod.id,))


def open_ways(daemon: peers.Containerd) -> None:
    """The root of a user namespace is nobody on the host, and has to come through."""
    for folder in (daemon.run, daemon.state):
        folder.chmod(0o711)


def launch(daemon: TeuContainerd, folder: Path, more: str = "", nri: str = "", socket: str = "") -> None:
    """teu-containerd with the CRI; `more` and `nri` are keys of those sections, and `socket` is where it listens for
    plugins."""
    daemon.launch(
        f"wake: []\ncri:\n  enabled: true\n  networks: {folder}/net.d\n  network-plugins: [{PLUGINS}]\n"
        f"  registries: {folder}/certs.d\n{more}"
        f"nri:\n  socket-path: {socket or folder / 'nri.sock'}\n  plugin-path: {folder}/nri\n"
        f"  plugin-config-path: {folder}/nri\n{nri}"
    )


# runc for a lab without controllers: the newer containerd wants limits of pods, and cannot be told not to.
UNLIMITED = f"""#!/usr/bin/python3
import json, os, sys
if "create" in sys.argv:
    path = os.path.join(sys.argv[sys.argv.index("--bundle") + 1], "config.json")
    with open(path) as file:
        spec = json.load(file)
    limits = spec["linux"].get("resources", {{}})
    spec["linux"]["resources"] = {{key: limits[key] for key in ("devices",) if key in limits}}
    with open(path, "w") as file:
        json.dump(spec, file)
os.execv("{NEWER}/sbin/runc", ["runc", *sys.argv[1:]])
"""


class TheirContainerd(peers.Containerd):
    """Debian's containerd with its CRI."""

    def launch_cri(self, folder: Path, *, newer: bool = False, template: str = "") -> None:
        """`newer`: that of Debian's next release, with its runc; `template`: of its network, which is in FOLDER/made.d
        then."""
        config = self.run / "config.toml"
        controllers = Path("/sys/fs/cgroup/cgroup.controllers")
        controlled = controllers.exists() and "memory" in controllers.read_text().split()
        configurations = folder / ("made.d" if template else "net.d")
        plugin = 'plugins."io.containerd.grpc.v1.cri"'
        config.write_text(
            f'version = 2\nroot = "{self.state}"\nstate = "{self.run}/state"\n[grpc]\n  address = "{self.address}"\n'
            f'[{plugin}]\n  sandbox_image = "{PAUSE}"\n  stream_server_port = "0"\n'
            # The namespace lab has no controllers, and lets nobody lower a score of the OOM killer: the pause container
            # wants both.
            f"  disable_cgroup = {'false' if controlled else 'true'}\n  restrict_oom_score_adj = true\n"
            f'  [{plugin}.cni]\n    bin_dir = "{PLUGINS}"\n    conf_dir = "{configurations}"\n'
            f'    conf_template = "{template}"\n'
            f'  [{plugin}.registry]\n    config_path = "{folder}/certs.d"\n'
            f'  [{plugin}.containerd.runtimes.runc]\n    runtime_type = "io.containerd.runc.v2"\n'
            f'[plugins."io.containerd.nri.v1.nri"]\n  disable = false\n  socket_path = "{folder}/own/nri.sock"\n'
            f'  plugin_path = "{folder}/own/nri"\n'
        )
        if newer:
            program = folder / "runc"
            program.write_text(UNLIMITED)
            program.chmod(0o755)
            with config.open("a") as file:
                file.write(f'  [{plugin}.containerd.runtimes.runc.options]\n    BinaryName = "{program}"\n')
        folders = f"{NEWER}/sbin:{NEWER}/bin:" if newer else ""
        self.start(
            [f"{NEWER}/bin/containerd" if newer else "containerd", "--config", str(config), "--log-level", "info"],
            lambda: self.address.exists() and peers.run(*self.client, "version", code=0),
            {"PATH": folders + os.environ["PATH"]},
        )
        pause = folder / "pause.tar"
        peers.busybox_archive(pause, PAUSE, {"Cmd": ["sleep", "100000000"]})
        self("-n", "k8s.io", "images", "import", "--digests=false", str(pause))


@contextlib.contextmanager
def ours(more: str = "", version: str = "1.0.0", nri: str = "", socket: str = "") -> Iterator[Client]:
    """teu-containerd's CRI alone, with the busybox image."""
    with tempfile.TemporaryDirectory(prefix="teu-cri-", dir="/run") as place:
        folder = Path(place)
        network = Network(folder, version)
        (folder / "certs.d").mkdir()
        daemon = TeuContainerd()
        open_ways(daemon)
        client = Client("teu", daemon, folder, network)
        try:
            launch(daemon, folder, more, nri, socket)
            daemon.load_busybox("k8s.io")
            yield client
        finally:
            client.clear()
            daemon.stop()
            daemon.remove()
            network.remove()


@contextlib.contextmanager
def both(*, newer: bool = False, template: str = "") -> Iterator[tuple[Client, Client]]:
    """Ours and Debian's, or that of its next release; with the template of their networks, if there is one."""
    with tempfile.TemporaryDirectory(prefix="teu-cri-", dir="/run") as place:
        folder = Path(place)
        network = Network(folder)
        (folder / "certs.d").mkdir()
        (folder / "own").mkdir()
        daemon = TheirContainerd()
        open_ways(daemon)
        theirs = Client("containerd", daemon, folder / "own", network)
        try:
            daemon.launch_cri(folder, newer=newer, template=template)
            daemon.load_busybox("k8s.io")
            with ours(f"  network-template: {template}\n" if template else "") as mine:
                yield mine, theirs
        finally:
            theirs.clear()
            daemon.stop()
            daemon.remove()
            network.remove()
