# SPDX-License-Identifier: Apache-2.0
"""What podman has, of root: containers, volumes and networks as its command line tells them, images from its storage.

overlay-images/images.json              id, names, the top layer
overlay-images/ID/=BASE64               documents by their names in base64: that named sha256:ID is the configuration
overlay-layers/layers.json              id, parent
overlay-layers/ID.tar-split.gz          as tar-split.json.gz of docker
overlay/ID/diff                         files of a layer, changes of a container
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import shutil
import subprocess

from teu.cli.moving import layers, tarsplit
from teu.cli.moving.dockerstore import StoreError, names, read_json
from teu.cli.moving.things import Belongings, Container, Image, Left, Network, Volume
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

DRIVER = "overlay"
ROOT = "/var/lib/containers/storage"
DEFAULT_NETWORK = "podman"
DRIVERS = ("bridge", "macvlan", "ipvlan")
# Fields of Config and HostConfig that mean the same to docker.
CONFIG: tuple[str, ...] = (
    "Hostname",
    "Domainname",
    "User",
    "Tty",
    "OpenStdin",
    "StdinOnce",
    "Cmd",
    "WorkingDir",
    "Labels",
    "Entrypoint",
)
CONFIG += ("Healthcheck", "StopTimeout")
HOST: tuple[str, ...] = (
    "AutoRemove",
    "CapAdd",
    "CapDrop",
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "ExtraHosts",
    "GroupAdd",
    "OomScoreAdj",
    "Privileged",
)
HOST += ("PortBindings", "ReadonlyRootfs", "SecurityOpt", "ShmSize", "CpuShares", "Memory", "NanoCpus", "CpuPeriod")
HOST += (
    "CpuQuota",
    "CpusetCpus",
    "CpusetMems",
    "Devices",
    "MemoryReservation",
    "MemorySwap",
    "PidsLimit",
    "BlkioWeight",
)
MODES = {"PidMode": "host", "IpcMode": "host", "UTSMode": "host", "UsernsMode": "host"}
# What podman adds to every container's environment and labels by itself.
OWN_VARIABLES = ("container", "HOSTNAME", "HOME", "TERM")
TMPFS = ("size=", "mode=", "uid=", "gid=", "ro", "noexec", "exec", "nodev", "nosuid", "suid", "dev")


def ask(*words: str) -> Any:
    """What podman answers, as JSON."""
    done = subprocess.run(["podman", *words], capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise StoreError(f"podman {' '.join(words[:2])} fails: {said}")
    return jsontext.loads(done.stdout) if done.stdout.strip() else []


def listed(*words: str) -> list[str]:
    done = subprocess.run(["podman", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StoreError(f"podman {' '.join(words[:2])} fails: {done.stderr.strip()}")
    return done.stdout.split()


def storage() -> str:
    """Where podman of root keeps its storage; "" where it has none. Nothing is made that is not there."""
    settings = os.environ.get("CONTAINERS_STORAGE_CONF", "/etc/containers/storage.conf")
    if shutil.which("podman") and (os.path.exists(settings) or os.path.isdir(ROOT)):
        return (listed("info", "--format", "{{.Store.GraphRoot}}") or [""])[0]
    return ROOT if os.path.isdir(ROOT) else ""


class Podman:
    """podman's storage at `root`. Raises StoreError and OSError."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.found = Belongings()
        self._images: dict[str, dict[str, Any]] = {}
        self._parents: dict[str, str] = {}

    def read(self) -> Belongings:
        """Everything. Where podman itself is gone, its images alone."""
        self._read_images()
        if shutil.which("podman") is None:
            why = "podman is not installed, which alone can read them: apt-get install podman"
            self.found.left += [Left(kind, "all", why) for kind in ("volume", "network", "container")]
            return self.found
        for volume in ask("volume", "inspect", "--all"):
            self._read_volume(volume)
        for name in listed("network", "ls", "--quiet"):
            if name != DEFAULT_NETWORK:
                self._read_network(ask("network", "inspect", name)[0])
        for identity in listed("container", "ls", "--all", "--no-trunc", "--quiet"):
            self._read_container(ask("container", "inspect", identity)[0])
        self.found.name_the_shared()
        return self.found

    # -- images ------------------------------------------------------------------------------

    def _read_images(self) -> None:
        for name in names(self.root):
            driver = name.removesuffix("-images")
            if driver not in (name, DRIVER) and os.path.exists(f"{self.root}/{name}/images.json"):
                why = f"are kept by the storage driver {driver}: podman save NAME | teu load"
                self.found.left.append(Left("image", f"all of {driver}", why))
        if not os.path.exists(f"{self.root}/overlay-images/images.json"):
            return
        for layer in read_json(f"{self.root}/overlay-layers/layers.json"):
            self._parents[layer["id"]] = layer.get("parent", "")
        for record in read_json(f"{self.root}/overlay-images/images.json"):
            identity, called = record["id"], sorted(name for name in record.get("names") or () if "@" not in name)
            label = called[0] if called else identity[:12]
            path = self._document(identity, f"sha256:{identity}")
            if not os.path.exists(path):
                self.found.left.append(
                    Left("image", label, "it is a list of images, or its configuration is not there")
                )
                continue
            missing = [each for each in self._stack(record) if not os.path.exists(self._split(each))]
            if missing:
                self.found.left.append(Left("image", label, f"podman has no record of its layer {missing[0][:12]}"))
                continue
            self._images[f"sha256:{identity}"] = record
            self.found.images.append(Image(f"sha256:{identity}", called, functools.partial(self._archive, record)))

    def _document(self, identity: str, name: str) -> str:
        return f"{self.root}/overlay-images/{identity}/=" + base64.b64encode(name.encode()).decode()

    def _config(self, record: dict[str, Any]) -> bytes:
        with open(self._document(record["id"], f"sha256:{record['id']}"), "rb") as file:
            return file.read()

    def _split(self, layer: str) -> str:
        return f"{self.root}/overlay-layers/{layer}.tar-split.gz"

    def _stack(self, record: dict[str, Any]) -> list[str]:
        """The layers of an image, the lowest first."""
        found: list[str] = []
        layer = record.get("layer", "")
        while layer and layer not in found:
            found.append(layer)
            layer = self._parents.get(layer, "")
        return found[::-1]

    def _archive(self, record: dict[str, Any]) -> Iterator[bytes]:
        return layers.archive(self._config(record), self._layers(record))

    def _layers(self, record: dict[str, Any]) -> list[layers.Layer]:
        made = []
        for layer in self._stack(record):
            split, files = self._split(layer), f"{self.root}/overlay/{layer}/diff"
            made.append(layers.Layer(tarsplit.size(split), functools.partial(tarsplit.assemble, split, files)))
        return made

    def changed_image(self, container: Container, name: str) -> Image:
        """The image that a container's changes make of its own."""
        record = self._images[container.image]
        document, stack = layers.with_changes(
            self._config(record), self._layers(record), container.name, container.changes
        )
        identity = "sha256:" + hashlib.sha256(document).hexdigest()
        return Image(identity, [name], lambda: layers.archive(document, stack))

    # -- volumes and networks ----------------------------------------------------------------

    def _read_volume(self, record: dict[str, Any]) -> None:
        name = record["Name"]
        if record.get("Driver") != "local":
            self.found.left.append(Left("volume", name, f"it is of the driver {record.get('Driver')}"))
            return
        options = {key: str(value) for key, value in (record.get("Options") or {}).items()}
        labels = dict(record.get("Labels") or {})
        if record.get("Anonymous"):
            labels["com.docker.volume.anonymous"] = ""
        kept = {key: value for key, value in options.items() if key in ("type", "device", "o")}
        if set(options) - set(kept) - {"UID", "GID", "copy", "nocopy"}:
            self.found.left.append(Left("volume", name, f"it has options that docker's driver local lacks: {options}"))
            return
        self.found.volumes.append(Volume(name, kept, labels, "" if kept.get("device") else record["Mountpoint"]))

    def _read_network(self, record: dict[str, Any]) -> None:
        name, driver = record["name"], record["driver"]
        if driver not in DRIVERS:
            self.found.left.append(Left("network", name, f"it is of the driver {driver}"))
            return
        subnets = []
        for each in record.get("subnets") or ():
            entry = {"Subnet": each["subnet"]}
            if each.get("gateway"):
                entry["Gateway"] = each["gateway"]
            subnets.append(entry)
        options = {}
        if (record.get("options") or {}).get("mtu"):
            options["com.docker.network.driver.mtu"] = str(record["options"]["mtu"])
        if driver != "bridge" and record.get("network_interface"):
            options["parent"] = record["network_interface"]
        body = {
            "Name": name,
            "Driver": driver,
            "Internal": bool(record.get("internal")),
            "EnableIPv6": bool(record.get("ipv6_enabled")),
            "Labels": record.get("labels") or {},
            "Options": options,
            "IPAM": {"Driver": "default", "Config": subnets},
        }
        bridge = record.get("network_interface") or "" if driver == "bridge" else ""
        self.found.networks.append(Network(name, body, bridge))

    # -- containers --------------------------------------------------------------------------

    def _read_container(self, record: dict[str, Any]) -> None:
        name, identity = record["Name"], "sha256:" + record["Image"].removeprefix("sha256:")
        why = ""
        if record.get("IsInfra") or record.get("Pod"):
            why = "it is of a pod"
        elif (record.get("State") or {}).get("Running"):
            why = f"it runs: podman stop {name}"
        elif identity not in self._images:
            why = "podman has its image no more, or it stays"
        if why:
            self.found.left.append(Left("container", name, why))
            return
        told: list[str] = []
        body = config(record)
        body["HostConfig"] = host_config(record, told)
        endpoints = networks(record)
        if endpoints and not body["HostConfig"].get("NetworkMode"):
            body["HostConfig"]["NetworkMode"] = next(iter(endpoints))
            body["NetworkingConfig"] = {"EndpointsConfig": endpoints}
        told += left_out(record)
        upper = ((record.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir") or ""
        mounts = [mount["Destination"] for mount in record.get("Mounts") or ()]
        changes = upper if upper and layers.has_changes(upper, [*mounts, *OWN_FILES]) else ""
        starts = body["HostConfig"].get("RestartPolicy", {}).get("Name") in ("always", "unless-stopped")
        self.found.ids[record["Id"]] = name
        self.found.containers.append(
            Container(name, identity, record.get("ImageName", ""), body, changes, told, starts)
        )


# What podman makes in a container's own layer to mount on.
OWN_FILES: tuple[str, ...] = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv", "/etc/mtab")
OWN_FILES += ("/proc", "/dev", "/sys", "/run/secrets")


def config(record: dict[str, Any]) -> dict[str, Any]:
    """Fields of the container itself."""
    given = record.get("Config") or {}
    kept = {key: given[key] for key in CONFIG if given.get(key)}
    if isinstance(kept.get("Entrypoint"), str):
        kept["Entrypoint"] = kept["Entrypoint"].split(" ")
    if kept.get("Hostname") == record["Id"][:12]:
        del kept["Hostname"]
    kept["Env"] = [word for word in given.get("Env") or () if word.partition("=")[0] not in OWN_VARIABLES]
    signal = given.get("StopSignal")
    if signal:
        kept["StopSignal"] = str(signal)
    return kept


def host_config(record: dict[str, Any], told: list[str]) -> dict[str, Any]:
    """HostConfig in docker's words."""
    given = record.get("HostConfig") or {}
    kept = {key: given[key] for key in HOST if given.get(key)}
    kept["Mounts"] = [mount(each) for each in record.get("Mounts") or () if each.get("Type") in ("bind", "volume")]
    for target, options in (given.get("Tmpfs") or {}).items():
        words = [word for word in options.split(",") if word.startswith(TMPFS)]
        kept.setdefault("Tmpfs", {})[target] = ",".join(words)
    policy = given.get("RestartPolicy") or {}
    if policy.get("Name") not in (None, "", "no"):
        kept["RestartPolicy"] = policy
    if kept.get("CapAdd"):
        kept["CapAdd"] = [name.removeprefix("CAP_") for name in kept["CapAdd"]]
    if kept.get("CapDrop"):
        kept["CapDrop"] = [name.removeprefix("CAP_") for name in kept["CapDrop"]]
    for key, meant in MODES.items():
        if given.get(key) == meant or str(given.get(key)).startswith("container:"):
            kept[key] = given[key]
        elif given.get(key) not in (None, "", "private", "shareable"):
            told.append(f"{key} {given[key]}")
    mode = given.get("NetworkMode") or ""
    if mode in ("host", "none") or mode.startswith("container:"):
        kept["NetworkMode"] = mode
    elif mode not in ("bridge", "default", ""):
        told.append(f"its network mode {mode}: it gets the default network")
    if given.get("Init"):
        kept["Init"] = True
    return kept


def mount(given: dict[str, Any]) -> dict[str, Any]:
    found = {"Type": given["Type"], "Target": given["Destination"], "ReadOnly": not given.get("RW", True)}
    found["Source"] = given["Name"] if given["Type"] == "volume" else given["Source"]
    if given["Type"] == "bind" and given.get("Propagation"):
        found["BindOptions"] = {"Propagation": given["Propagation"]}
    return found


def networks(record: dict[str, Any]) -> dict[str, Any]:
    """Endpoints by network; podman's default network is the default one here."""
    found: dict[str, Any] = {}
    own = (record["Id"][:12], record["Name"])
    for name, endpoint in ((record.get("NetworkSettings") or {}).get("Networks") or {}).items():
        aliases = [alias for alias in (endpoint or {}).get("Aliases") or () if alias not in own]
        if name == DEFAULT_NETWORK:
            found["bridge"] = {}
        elif name not in ("host", "none"):
            found[name] = {"Aliases": aliases} if aliases else {}
    return found


def left_out(record: dict[str, Any]) -> list[str]:
    """What of a container has no counterpart."""
    told = []
    if (record.get("Config") or {}).get("Secrets"):
        told.append("its secrets")
    if record.get("Dependencies"):
        told.append("its dependencies on other containers (--requires)")
    if (record.get("Config") or {}).get("StartupHealthCheck"):
        told.append("its startup health check")
    return told
