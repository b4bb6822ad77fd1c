# SPDX-License-Identifier: Apache-2.0
"""`system import-docker`: shows what of dockerd and podman can be taken over, and with --apply takes it over.

What Teu has already under a name stays as it is, so a run that was broken off is taken up by the next one. The order is
that of use: configuration, images, volumes, networks, containers."""

from __future__ import annotations

import os

from teu.cli.command import Cli, Command
from teu.cli.errors import APIError, CommandError
from teu.cli.moving import daemonfile, layers, podmanstore
from teu.cli.moving.boltdb import BoltError
from teu.cli.moving.dockerstore import Docker, StoreError
from teu.cli.moving.tarsplit import LayerError
from teu.cli.moving.things import MODES
from teu.cli.options import Options
from teu.linux import copying
from teu.linux.writeback import syncfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from teu.cli.moving.things import Belongings, Container, Image, Left, Network, Volume

KINDS = ("config", "images", "volumes", "networks", "containers")
DOCKER_ROOT = "/var/lib/docker"
TAR = {"Content-Type": "application/x-tar"}


class Import:
    """One run. `apply`: do it; else only show it."""

    def __init__(self, cli: Cli, only: list[str], apply: bool) -> None:
        self.cli = cli
        self.only = only
        self.apply = apply
        self.failed = 0
        self.left = 0
        self.volumes: set[str] = set()
        self.networks: set[str] = set()
        """What is here, or would be."""
        self.to_start: list[str] = []
        self.bridges: list[str] = []

    def wants(self, kind: str) -> bool:
        return not self.only or kind in self.only

    def line(self, kind: str, name: str, what: str) -> None:
        self.cli.print(f"{kind:<10} {name:<32} {what}")

    def stays(self, left: Left) -> None:
        if self.wants(f"{left.kind}s"):
            self.left += 1
            self.line(left.kind, left.name, f"STAYS: {left.why}")

    def attempt(self, kind: str, name: str, action: Any, what: str) -> bool:
        """Do one thing, or say that it would be done; what fails is told, and the rest goes on."""
        if not self.apply:
            self.line(kind, name, f"would be {what}")
            return True
        try:
            action()
        except (APIError, OSError, LayerError, CommandError) as error:
            said = error.text if isinstance(error, CommandError) else str(error)
            self.failed += 1
            self.line(kind, name, f"FAILED: {said}")
            return False
        self.line(kind, name, what)
        return True

    # -- configuration -----------------------------------------------------------------------

    def configuration(self, path: str, given: dict[str, Any]) -> None:
        """daemon.json, key by key."""
        result = daemonfile.translate(given)
        daemonfile.settle(result)
        for key, verdict, why in result.verdicts:
            self.left += verdict == daemonfile.UNKNOWN
            self.line("key", key, f"{verdict}: {why}" if verdict != daemonfile.UNKNOWN else f"NOT UNDERSTOOD: {why}")
        if not result.values:
            return
        if os.path.exists(daemonfile.TARGET):
            self.line("file", daemonfile.TARGET, "is there already, and stays")
            return
        self.attempt("file", daemonfile.TARGET, lambda: daemonfile.write(result, path), "written")
        if self.apply:
            self.cli.print("Apply it with: systemctl restart teud")

    # -- what an engine has ------------------------------------------------------------------

    def belongings(self, source: Docker | podmanstore.Podman) -> None:
        found = source.read()
        for left in found.left:
            self.stays(left)
        images = self._images(found) if self.wants("images") else self._known_images()
        self.volumes |= {volume["Name"] for volume in self.cli.client.get("/volumes").get("Volumes") or ()}
        if self.wants("volumes"):
            self._volumes(found.volumes)
        self.networks |= {network["Name"] for network in self.cli.client.get("/networks")}
        if self.wants("networks"):
            self._networks(found)
        if self.wants("containers"):
            self._containers(found, source, images)

    def _known_images(self) -> set[str]:
        return {image["Id"] for image in self.cli.client.get("/images/json", {"all": "1"})}

    def _images(self, found: Belongings) -> set[str]:
        """Take over images; the ids that are here then."""
        known = self._known_images()
        for image in found.images:
            if image.id in known:
                self.line("image", image.label(), "is here already")
                self._name(image)
            elif self.attempt("image", image.label(), lambda i=image: self._load(i), "loaded"):
                known.add(image.id)
                self._name(image)
        return known

    def _load(self, image: Image) -> None:
        response = self.cli.client.open("POST", "/images/load", {"quiet": "1"}, image.archive(), headers=TAR)
        for message in response.messages():
            if "error" in message:
                raise CommandError(str(message["error"]))
        try:
            self.cli.client.get(f"/images/{image.id}/json")
        except APIError as error:
            raise CommandError(f"it was loaded under another id: {error}") from None

    def _name(self, image: Image) -> None:
        """Its names, but for those that other images have here."""
        for name in image.names:
            try:
                there = self.cli.client.get(f"/images/{name}/json")["Id"]
            except APIError:
                there = ""
            if there and there != image.id:
                self.left += 1
                self.line("image", name, "STAYS: an image here has that name")
            elif not there and self.apply:
                repository, _, tag = name.rpartition(":")
                self.cli.client.call("POST", f"/images/{image.id}/tag", {"repo": repository, "tag": tag})

    def _volumes(self, volumes: list[Volume]) -> None:
        for volume in volumes:
            what = "made, its files copied" if volume.folder else "made"
            if volume.name in self.volumes:
                self.line("volume", volume.name, "is here already, and stays as it is")
            elif self.attempt("volume", volume.name, lambda v=volume: self._volume(v), what):
                self.volumes.add(volume.name)

    def _volume(self, volume: Volume) -> None:
        """Make it and fill it; where that fails it goes again, so that the next run does not take it for whole."""
        body = {"Name": volume.name, "Driver": "local", "DriverOpts": volume.options, "Labels": volume.labels}
        made = self.cli.client.call("POST", "/volumes/create", None, body)
        if not volume.folder:
            return
        try:
            copy(volume.folder, made["Mountpoint"])
        except BaseException:
            self.cli.client.call("DELETE", f"/volumes/{volume.name}")
            raise

    def _networks(self, found: Belongings) -> None:
        for network in found.networks:
            if network.name in self.networks:
                self.line("network", network.name, "is here already, and stays as it is")
                continue
            done = self.attempt("network", network.name, lambda n=network: self._network(n), "made")
            if done:
                self.networks.add(network.name)
            if done and network.bridge and os.path.exists(f"/sys/class/net/{network.bridge}"):
                self.bridges.append(network.bridge)

    def _network(self, network: Network) -> None:
        self.cli.client.call("POST", "/networks/create", None, network.body)

    def _containers(self, found: Belongings, source: Docker | podmanstore.Podman, images: set[str]) -> None:
        known = {
            name.lstrip("/") for each in self.cli.client.get("/containers/json", {"all": "1"}) for name in each["Names"]
        }
        # Those whose namespaces others share come first.
        for container in sorted(found.containers, key=shares):
            if container.name in known:
                self.line("container", container.name, "is here already, and stays as it is")
                continue
            missing = self._missing(container, images)
            if missing:
                self.failed += 1
                self.line(
                    "container", container.name, f"FAILED: its {missing} is not here, without which it is not made"
                )
                continue
            what = "made"
            if container.changes:
                what += f", what it has changed as {layers.image_name(container.name, container.image[7:])}"
            if self.attempt("container", container.name, lambda c=container: self._container(c, source, images), what):
                for told in container.told:
                    self.line("", "", f"not taken over: {told}")
                if container.starts:
                    self.to_start.append(container.name)

    def _missing(self, container: Container, images: set[str]) -> str:
        """What of a container has not come over; the engine would make empty volumes for it."""
        if container.image not in images:
            return f"image {container.called or container.image}"
        volumes, networks = uses(container)
        for kind, names, known in (("volume", volumes, self.volumes), ("network", networks, self.networks)):
            for name in names:
                if name not in known:
                    return f"{kind} {name}"
        return ""

    def _container(self, container: Container, source: Docker | podmanstore.Podman, images: set[str]) -> None:
        image = container.image
        if container.changes:
            changed = source.changed_image(container, layers.image_name(container.name, image[7:]))
            if changed.id not in images:
                self._load(changed)
            self._name(changed)
            image = changed.names[0]
        elif container.called and self._names_it(container.called, image):
            image = container.called
        self.cli.client.call("POST", "/containers/create", {"name": container.name}, {**container.body, "Image": image})

    def _names_it(self, name: str, image: str) -> bool:
        try:
            return bool(self.cli.client.get(f"/images/{name}/json")["Id"] == image)
        except APIError:
            return False

    def summary(self) -> int:
        """What is to be done now; the exit status."""
        if self.bridges:
            self.cli.print(
                "\nThese bridges of the other engine still have the subnets of networks that are here now. "
                "Before their\nfirst container starts: " + "; ".join(f"ip link delete {name}" for name in self.bridges)
            )
        if self.to_start and self.apply:
            self.cli.print("\nThese have a restart policy; start them with: teu start " + " ".join(self.to_start))
        if not self.apply:
            self.cli.print("\nNothing was done. To do it: teu system import-docker --apply")
        elif self.failed or self.left:
            self.cli.print(
                f"\n{self.failed} failed, {self.left} stay with the other engine; nothing of its was changed."
            )
        return 1 if self.failed else 0


def shares(container: Container) -> int:
    """0, or 1 where it shares a namespace of another."""
    host = container.body.get("HostConfig") or {}
    return int(any(str(host.get(mode)).startswith("container:") for mode in MODES))


def uses(container: Container) -> tuple[list[str], list[str]]:
    """The names of a container's volumes and networks."""
    host = container.body.get("HostConfig") or {}
    volumes = [
        mount["Source"] for mount in host.get("Mounts") or () if mount["Type"] == "volume" and mount.get("Source")
    ]
    volumes += [bind.partition(":")[0] for bind in host.get("Binds") or () if not bind.startswith("/")]
    networks = list((container.body.get("NetworkingConfig") or {}).get("EndpointsConfig") or ())
    return volumes, [name for name in networks if name != "default"]


def copy(source: str, target: str) -> None:
    """A volume's files: owners, modes, times, links, holes, devices and extended attributes; on disk at the end."""
    here = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        there = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            copying.copy_tree(here, there)
        finally:
            os.close(there)
    finally:
        os.close(here)
    syncfs(target)


def sources(root: str, given: dict[str, Any], which: str) -> Iterator[Docker | podmanstore.Podman]:
    """The engines that are here, or the one that is asked for; each is open until the next."""
    if which in ("", "docker"):
        if os.path.isdir(root):
            with Docker(root, str(given.get("log-driver") or "json-file")) as docker:
                yield docker
        elif which:
            raise CommandError(f"docker has nothing here: there is no {root}")
    if which in ("", "podman"):
        storage = podmanstore.storage()
        if storage:
            yield podmanstore.Podman(storage)
        elif which:
            raise CommandError(f"podman has nothing here: there is no {podmanstore.ROOT}")


def import_docker(cli: Cli, options: Options, operands: list[str]) -> int:
    only, which = options["only"], options["from"]
    for kind in only:
        if kind not in KINDS:
            raise CommandError(f'--only takes {", ".join(KINDS)}, not "{kind}"', 125)
    if which not in ("", "docker", "podman"):
        raise CommandError(f'--from takes docker or podman, not "{which}"', 125)
    if os.geteuid() != 0:
        raise CommandError("the folders of docker and podman are root's: run this as root")
    run = Import(cli, only, options["apply"])
    path = options["config-file"]
    given: dict[str, Any] = {}
    try:
        given = daemonfile.read(path)
    except FileNotFoundError:
        if "config-file" in options.changed:
            raise CommandError(f"{path} is not there") from None
    if given and which != "podman" and run.wants("config"):
        run.configuration(path, given)
    if only == ["config"]:
        return run.summary()
    root = options["data-root"] or str(given.get("data-root") or given.get("graph") or DOCKER_ROOT)
    found = False
    try:
        for source in sources(root, given, which):
            found = True
            run.belongings(source)
    except (StoreError, BoltError, OSError) as error:
        raise CommandError(str(error)) from None
    if not found and not given:
        raise CommandError(f"neither docker ({root}) nor podman ({podmanstore.ROOT}) has anything here")
    return run.summary()


COMMANDS = {
    "system import-docker": Command(
        import_docker,
        "[OPTIONS]",
        0,
        0,
        f"""
   --apply        bool    Do it; without this, what would be done is shown, and nothing is done
   --config-file  string={daemonfile.FILE}  docker's configuration
   --data-root    string  docker's folder (default: what its configuration says, {DOCKER_ROOT})
   --from         string  Take over from `docker` or from `podman` alone
   --only         list    Take over only config, images, volumes, networks or containers
""",
    ),
}
