# SPDX-License-Identifier: Apache-2.0
"""What a stopped dockerd has, from its folder. Read and never changed; locks keep dockerd from starting meanwhile.
Where dockerd keeps images in containerd, `containerdstore` reads those.

containers/ID/config.v2.json, hostconfig.json
image/overlay2/repositories.json                        names
image/overlay2/imagedb/content/sha256/ID                configurations
image/overlay2/layerdb/sha256/CHAIN/                    cache-id, tar-split.json.gz
image/overlay2/layerdb/mounts/CONTAINER/mount-id
overlay2/ID/diff                                        files of a layer, changes of a container
network/files/local-kv.db                               networks (bolt): 8 bytes of a counter, then JSON
volumes/NAME/_data, volumes/metadata.db                 volumes' files; their labels and options (bolt)
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os

from teu.cli.moving import containerdstore, layers, tarsplit
from teu.cli.moving.boltdb import Bolt, BoltError
from teu.cli.moving.things import Belongings, Container, Image, Left, Network, Volume
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

DRIVER = "overlay2"
# The driver of containers whose root is a snapshot of containerd, and the folder of the host's own.
OVERLAYFS = "overlayfs"
CONTAINERD = "/var/lib/containerd"
# What dockerd makes in such a container's own layer to mount on.
OWN: tuple[str, ...] = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab", "/.dockerenv", "/dev/console")
OWN += ("/dev/pts", "/dev/shm", "/proc", "/sys")
NETWORKS = "network/files/local-kv.db"
VOLUMES = "volumes/metadata.db"
NETWORK_KEY = b"docker/network/v1.0/network/"
# Of a network's labels and options: what docker keeps there for itself.
BRIDGE_NAME = "com.docker.network.bridge.name"
GENERIC = "com.docker.network.generic"
IPV6 = "com.docker.network.enable_ipv6"
PREDEFINED = ("bridge", "host", "none")
NETWORK_DRIVERS = ("bridge", "macvlan", "ipvlan")
LOG_DRIVERS = ("json-file", "local", "journald", "none")
# Whose zero says something: docker has null where nothing was said.
MEANT = ("MemorySwappiness", "Init", "OomKillDisable")
# What an endpoint was asked for; the rest is what it has got.
ASKED = ("IPAMConfig", "Links", "Aliases", "DriverOpts", "MacAddress")


class StoreError(Exception):
    """There is something that cannot be read as it is; the text says what to do."""


def read_json(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            return jsontext.loads(file.read())
    except ValueError as error:
        raise StoreError(f"{path}: {error}") from None


def read_text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read().strip()


def names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


class Docker:
    """A dockerd's folder. Raises StoreError where dockerd runs, BoltError and OSError where its files cannot be read.
    While it is open (a context manager) no dockerd can start on it."""

    def __init__(self, root: str, default_log: str = "json-file") -> None:
        self.root = root
        self.default_log = default_log
        self.found = Belongings()
        self._open = contextlib.ExitStack()
        self._configs: dict[str, bytes] = {}
        self._network_names: dict[str, str] = {}
        self._stacks: dict[str, list[layers.Layer]] = {}
        self._containerd: containerdstore.Store | None = None
        try:
            self._networks = self._database(NETWORKS)
            self._volumes = self._database(VOLUMES)
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Docker:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _database(self, name: str) -> Bolt | None:
        path = f"{self.root}/{name}"
        try:
            return self._open.enter_context(Bolt(path))
        except FileNotFoundError:
            return None
        except BoltError as error:
            if error.held:
                stop = "systemctl stop docker.socket docker.service"
                raise StoreError(f"dockerd runs, and uses {path}; stop it first: {stop}") from None
            raise

    def read(self) -> Belongings:
        """Everything."""
        self._read_images()
        self._read_volumes()
        self._read_networks()
        for identity in names(f"{self.root}/containers"):
            if os.path.exists(f"{self.root}/containers/{identity}/config.v2.json"):
                self._read_container(identity)
        self.found.name_the_shared()
        return self.found

    # -- images ------------------------------------------------------------------------------

    def _read_images(self) -> None:
        for driver in names(f"{self.root}/image"):
            if driver != DRIVER and names(f"{self.root}/image/{driver}/imagedb/content/sha256"):
                why = f"are kept by docker's storage driver {driver}; start docker, and docker save NAME | teu load"
                self.found.left.append(Left("image", f"all of {driver}", why))
        folder = f"{self.root}/image/{DRIVER}"
        self._read_containerd()
        tagged: dict[str, list[str]] = {}
        with contextlib.suppress(FileNotFoundError):
            for known in read_json(f"{folder}/repositories.json").get("Repositories", {}).values():
                for name, identity in known.items():
                    if "@" not in name:
                        tagged.setdefault(identity, []).append(name)
        for number in names(f"{folder}/imagedb/content/sha256"):
            with open(f"{folder}/imagedb/content/sha256/{number}", "rb") as file:
                config = file.read()
            if hashlib.sha256(config).hexdigest() != number:
                self.found.left.append(Left("image", number[:12], "its configuration is damaged"))
                continue
            identity = f"sha256:{number}"
            missing = self._missing_layer(config)
            if missing:
                self.found.left.append(Left("image", tagged.get(identity, [number[:12]])[0], missing))
                continue
            self._configs[identity] = config
            called = sorted(tagged.get(identity, []))
            self.found.images.append(Image(identity, called, functools.partial(self._archive, config)))

    def _read_containerd(self) -> None:
        """Images that dockerd keeps in a containerd: one of its own, or the host's."""
        if not os.path.isdir(f"{self.root}/rootfs/{OVERLAYFS}"):
            return  # dockerd has never mounted a container's root from there
        for place in (f"{self.root}/containerd/daemon", CONTAINERD):
            if not os.path.exists(f"{place}/{containerdstore.METADATA}"):
                continue
            try:
                self._containerd = containerdstore.Store(place)
            except BoltError as error:
                if error.held:
                    stop = "systemctl stop docker.socket docker.service containerd.service"
                    raise StoreError(
                        f"containerd runs, and keeps docker's images in {place}; stop it: {stop}"
                    ) from None
                raise
            self._open.callback(self._containerd.close)
            for name, why in self._containerd.incomplete.items():
                self.found.left.append(Left("image", name, why))
            for image in {id(each): each for each in self._containerd.images.values()}.values():
                self._configs[image.id], self._stacks[image.id] = image.config, image.layers
                archive = functools.partial(layers.archive, image.config, image.layers)
                self.found.images.append(Image(image.id, sorted(image.names), archive))
            if self._containerd.images:
                return

    def _chains(self, config: bytes) -> list[str]:
        """The folders of an image's layers in the layers' database, the lowest first."""
        chain, found = "", []
        for diff in jsontext.loads(config).get("rootfs", {}).get("diff_ids") or ():
            chain = diff if not chain else "sha256:" + hashlib.sha256(f"{chain} {diff}".encode()).hexdigest()
            found.append(f"{self.root}/image/{DRIVER}/layerdb/{chain.replace(':', '/')}")
        return found

    def _missing_layer(self, config: bytes) -> str:
        for place in self._chains(config):
            if not os.path.exists(f"{place}/tar-split.json.gz"):
                return f"docker has no layer at {place}"
        return ""

    def _layers(self, config: bytes) -> list[layers.Layer]:
        made = []
        for place in self._chains(config):
            split = f"{place}/tar-split.json.gz"
            files = f"{self.root}/{DRIVER}/{read_text(f'{place}/cache-id')}/diff"
            made.append(layers.Layer(tarsplit.size(split), functools.partial(tarsplit.assemble, split, files)))
        return made

    def _archive(self, config: bytes) -> Iterator[bytes]:
        return layers.archive(config, self._layers(config))

    def changed_image(self, container: Container, name: str) -> Image:
        """The image that a container's changes make of its own."""
        config = self._configs[container.image]
        below = self._stacks.get(container.image) or self._layers(config)
        document, stack = layers.with_changes(config, below, container.name, container.changes)
        identity = "sha256:" + hashlib.sha256(document).hexdigest()
        return Image(identity, [name], lambda: layers.archive(document, stack))

    # -- volumes -----------------------------------------------------------------------------

    def _read_volumes(self) -> None:
        known = {}
        if self._volumes is not None:
            for key, value in self._volumes.items(b"volumes"):
                known[os.fsdecode(key)] = jsontext.loads(value)
        for name in names(f"{self.root}/volumes"):
            folder = f"{self.root}/volumes/{name}/_data"
            if not os.path.isdir(folder):
                continue
            record = known.get(name) or {}
            driver = record.get("Driver") or "local"
            if driver != "local":
                self.found.left.append(Left("volume", name, f"it is of the driver {driver}"))
                continue
            options = record.get("Options") or {}
            files = "" if options.get("device") else folder
            self.found.volumes.append(Volume(name, options, record.get("Labels") or {}, files))
        for name, record in known.items():
            if (record.get("Driver") or "local") != "local":
                self.found.left.append(Left("volume", name, f"it is of the driver {record['Driver']}"))

    # -- networks ----------------------------------------------------------------------------

    def _read_networks(self) -> None:
        if self._networks is None:
            return
        records = []
        for bucket in self._networks.buckets():
            for key, value in self._networks.items(bucket):
                if key.startswith(NETWORK_KEY):
                    records.append(jsontext.loads(value[8:]))
        for record in sorted(records, key=lambda each: str(each.get("created", ""))):
            name, driver = record["name"], record.get("networkType", "")
            self._network_names[record["id"]] = name
            if name in PREDEFINED or record.get("ingress") or record.get("inDelete"):
                continue
            if driver not in NETWORK_DRIVERS:
                self.found.left.append(Left("network", name, f"it is of the driver {driver}"))
                continue
            self.found.networks.append(self._network(name, driver, record))

    def _network(self, name: str, driver: str, record: dict[str, Any]) -> Network:
        generic = record.get("generic") or {}
        options = {key: str(value) for key, value in (generic.get(GENERIC) or {}).items()}
        bridge = options.pop(BRIDGE_NAME, "") or (f"br-{record['id'][:12]}" if driver == "bridge" else "")
        body: dict[str, Any] = {
            "Name": name,
            "Driver": driver,
            "Internal": bool(record.get("internal")),
            "Attachable": bool(record.get("attachable")),
            "EnableIPv6": bool(record.get("enableIPv6") or generic.get(IPV6)),
            "Labels": record.get("labels") or {},
            "Options": options,
            "IPAM": {"Driver": "default", "Config": addresses(record, "V4") + addresses(record, "V6")},
        }
        return Network(name, body, bridge)

    # -- containers --------------------------------------------------------------------------

    def _read_container(self, identity: str) -> None:
        folder = f"{self.root}/containers/{identity}"
        record, host = read_json(f"{folder}/config.v2.json"), read_json(f"{folder}/hostconfig.json")
        name = (record.get("Name") or identity[:12]).lstrip("/")
        why = self._obstacle(record)
        if why:
            self.found.left.append(Left("container", name, why))
            return
        told: list[str] = []
        config = dict(record["Config"])
        called = config.pop("Image", "")
        if config.get("Hostname") == identity[:12]:
            config["Hostname"] = ""  # docker's own choice: a new container has another id
        body = {**config, "HostConfig": host_config(host, record, self.default_log, told)}
        networks = (record.get("NetworkSettings") or {}).get("Networks") or {}
        wanted = {each: asked(endpoint or {}, identity) for each, endpoint in networks.items()}
        mode = host.get("NetworkMode") or "default"
        if len(mode) >= 12:  # perhaps an id, of which the beginning is enough
            mode = next((each for key, each in self._network_names.items() if key.startswith(mode)), mode)
            body["HostConfig"]["NetworkMode"] = mode
        if not mode.startswith("container:") and mode not in ("host", "none"):
            body["NetworkingConfig"] = {"EndpointsConfig": wanted}
        log = record.get("LogPath")
        if log and os.path.exists(log):
            told.append(f"what it has written until now stays in {log}")
        changes = self._changes(identity, record)
        starts = (host.get("RestartPolicy") or {}).get("Name") in ("always", "unless-stopped")
        stopped = record.get("HasBeenManuallyStopped") or not record.get("HasBeenStartedBefore")
        found = Container(name, self._image_of(record), called, body, changes, told, bool(starts and not stopped))
        self.found.ids[identity] = name
        self.found.containers.append(found)

    def _obstacle(self, record: dict[str, Any]) -> str:
        state = record.get("State") or {}
        if state.get("Running") and os.path.exists(f"/proc/{state.get('Pid') or 0}/stat"):
            return "it still runs, which live-restore lets it do; docker stop it first"
        if record.get("Driver") != DRIVER and (record.get("Driver") != OVERLAYFS or self._containerd is None):
            return f"its files are kept by docker's storage driver {record.get('Driver')}"
        if record.get("OS") not in (None, "", "linux"):
            return "it is not of Linux"
        if self._image_of(record) not in self._configs:
            return f"docker has its image {record.get('Image', '')[:19]} no more, or it stays"
        return ""

    def _image_of(self, record: dict[str, Any]) -> str:
        """The id of its configuration; containerd's image store has an index or a manifest there."""
        image = record.get("Image") or ""
        if self._containerd is not None and image in self._containerd.images:
            return self._containerd.images[image].id
        return str(image)

    def _changes(self, identity: str, record: dict[str, Any]) -> str:
        """The folder with a container's changes; "" where there are none."""
        if self._containerd is not None and record.get("Driver") == OVERLAYFS:
            folder = self._containerd.upper(identity)
            return folder if folder and layers.has_changes(folder, [*(record.get("MountPoints") or ()), *OWN]) else ""
        try:
            mount = read_text(f"{self.root}/image/{DRIVER}/layerdb/mounts/{identity}/mount-id")
        except FileNotFoundError:
            return ""
        folder = f"{self.root}/{DRIVER}/{mount}/diff"
        return folder if layers.has_changes(folder, record.get("MountPoints") or ()) else ""


def addresses(record: dict[str, Any], version: str) -> list[dict[str, Any]]:
    """What a network has of a family, as it would be asked for: the subnets that it got, too, so that they stay."""
    asked_for = jsontext.loads(record.get(f"ipam{version}Config") or "[]") or []
    got = jsontext.loads(record.get(f"ipam{version}Info") or "[]") or []
    found = []
    for number, each in enumerate(got):
        data = each.get("IPAMData")
        data = jsontext.loads(data) if isinstance(data, str) else data or {}
        asked = asked_for[number] if number < len(asked_for) else {}
        entry: dict[str, Any] = {"Subnet": data.get("Pool") or asked.get("PreferredPool") or ""}
        gateway = (data.get("Gateway") or "").partition("/")[0] or asked.get("Gateway")
        if not entry["Subnet"]:
            continue
        if gateway:
            entry["Gateway"] = gateway
        if asked.get("SubPool"):
            entry["IPRange"] = asked["SubPool"]
        if asked.get("AuxAddresses"):
            entry["AuxiliaryAddresses"] = asked["AuxAddresses"]
        found.append(entry)
    return found


def asked(endpoint: dict[str, Any], identity: str) -> dict[str, Any]:
    """What a container asked a network for. Docker gives its short id as an alias."""
    kept = {key: endpoint[key] for key in ASKED if endpoint.get(key)}
    if "Aliases" in kept:
        kept["Aliases"] = [alias for alias in kept["Aliases"] if alias != identity[:12]]
    if not endpoint.get("DesiredMacAddress"):
        kept.pop("MacAddress", None)
    else:
        kept["MacAddress"] = endpoint["DesiredMacAddress"]
    return kept


def named(mount: dict[str, Any], points: dict[str, Any]) -> dict[str, Any]:
    """A mount, with the name of its volume."""
    name = (points.get(mount.get("Target") or "") or {}).get("Name")
    return {**mount, "Source": name} if mount.get("Type") == "volume" and not mount.get("Source") and name else mount


def host_config(host: dict[str, Any], record: dict[str, Any], default_log: str, told: list[str]) -> dict[str, Any]:
    """HostConfig as one would ask for it: without what was docker's default, with the volumes that it made itself."""
    kept = {key: value for key, value in host.items() if value is not None and (value or key in MEANT)}
    for key in ("ConsoleSize", "MaskedPaths", "ReadonlyPaths", "ContainerIDFile", "Isolation"):
        if key in ("MaskedPaths", "ReadonlyPaths") and host.get(key) == []:
            kept[key] = []  # --security-opt systempaths=unconfined
        else:
            kept.pop(key, None)
    runtime = kept.pop("Runtime", "runc")
    if runtime.startswith("io.containerd."):
        kept["Runtime"] = runtime
    elif runtime != "runc":
        told.append(f"its runtime {runtime}: it gets the default one")
    log = kept.pop("LogConfig", {})
    if log.get("Type") not in ("", None, default_log) or log.get("Config"):
        if log["Type"] in LOG_DRIVERS:
            kept["LogConfig"] = log
        else:
            told.append(f"its log driver {log['Type']}: it gets the default one")
    points = record.get("MountPoints") or {}
    if kept.get("Mounts"):  # one that named no volume has the one that docker has made
        kept["Mounts"] = [named(mount, points) for mount in kept["Mounts"]]
    covered = {bind.split(":")[1] for bind in kept.get("Binds") or () if ":" in bind}
    covered |= {mount.get("Target") for mount in kept.get("Mounts") or ()}
    for target, point in points.items():
        if point.get("Type") == "volume" and point.get("Name") and target not in covered:
            # --volumes-from has them copied, and so do the image's own: they keep their files
            mount = {"Type": "volume", "Source": point["Name"], "Target": target, "ReadOnly": not point.get("RW", True)}
            kept.setdefault("Mounts", []).append(mount)
    kept.pop("VolumesFrom", None)
    return kept
