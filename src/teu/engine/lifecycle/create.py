# SPDX-License-Identifier: Apache-2.0
"""POST /containers/create: check everything, make the writable snapshot and the record.

Order: what can fail without a trace comes first; then volumes and the snapshot, which are undone if a
later step fails (and swept at the next start if the daemon dies here); the record in engine.db last.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from teu.engine.backend import containerd
from teu.engine.containers import defaults, health_rules, hostconfig, records, runtimes, storage
from teu.engine.containers.model import Container
from teu.engine.containers.state import MANIFEST_DESCRIPTOR, ManifestDescriptor, Saved
from teu.engine.core.errors import BadRequest, EngineError, NotFound
from teu.engine.core.fields import HEALTH, Config, Creation, HealthCheck, HostConfig, Networking
from teu.engine.core.times import timestamp
from teu.engine.files import rootfs, snapshots
from teu.engine.spec import build, mounts
from teu.linux import inside, trees
from teu.oci import image_spec
from teu.oci.labels import ROOT, SIZE, SIZES

if TYPE_CHECKING:
    from teu.api.types import mount_pb2
    from teu.engine.engine import Engine
    from teu.engine.images.store import Image
    from teu.oci.image_spec import ContainerConfig

# The garbage collector of containerd keeps what has this label; ours tells whose it is.
OWNER_LABEL = "teu.container"


def create(
    engine: Engine, body: Creation, name: str, platform: str | None, version: tuple[int, int]
) -> tuple[Container, list[str]]:
    """The new container and warnings for the client, which speaks this version of the API."""
    warnings: list[str] = []
    config = hostconfig.clean_config(body)
    host = _host_config(engine, body, version, warnings)
    if name:
        name = engine.containers.clean_name(name)
        engine.containers.check_name(name)
    if not config.image:
        raise BadRequest("config cannot be empty: Image is needed in order to create a container")
    runtimes.find(host.runtime, engine.config)
    hostconfig.check_joined(config, host)
    image = engine.images.resolve(config.image, platform)
    merge(config, image.config.get("config") or {})
    health_rules.check(host.annotations, config.healthcheck)
    container = _made(engine, body, config, host, image, name)
    _conflicts(body, host)
    with _nothing_but_the_image_is_missing():
        build.check(engine, container)
        _join_by_id(engine, host)
    hostconfig.discard(host, hostconfig.controllers(), warnings)
    warnings += warnings_of(host, version)
    if not platform:
        warnings += _of_another_platform(image)
    _keep(engine, container, image, body.networking_config, version, warnings, bool(name))
    container.event("create")
    return container, warnings


def _host_config(engine: Engine, body: Creation, version: tuple[int, int], warnings: list[str]) -> HostConfig:
    given = body.host_config.copy() if body.host_config else HostConfig()
    if version < (1, 40) and not given.ipc_mode:
        given.ipc_mode = "shareable"
    given = defaults.fill(given, engine.config)
    host = hostconfig.clean_host_config(given, engine.config["log-driver"], engine.config["log-opts"], warnings)
    host.runtime = host.runtime or body.runtime or ""
    return host


def _made(engine: Engine, body: Creation, config: Config, host: HostConfig, image: Image, name: str) -> Container:
    """The container of these, which nobody knows yet."""
    path, arguments = command(config)
    identity = secrets.token_hex(32)
    while identity[:12].isdigit():  # an id that reads as a number is taken for one by some tools
        identity = secrets.token_hex(32)
    if not config.hostname:
        config.hostname = os.uname().nodename if host.uts_mode == "host" else identity[:12]
    if host.network_mode == "host" and not body.hostname:
        config.hostname = os.uname().nodename
    host.runtime = host.runtime or engine.config["default-runtime"]
    return engine.containers.make(
        Saved(
            id=identity,
            name=name or engine.containers.random_name(),
            created=timestamp(),
            path=path,
            args=arguments,
            image_id=image.id,
            chain_id=image.chain_id,
            image_manifest=_manifest(engine, image),
            config=config,
            host_config=host,
        ),
    )


def _manifest(engine: Engine, image: Image) -> ManifestDescriptor | None:
    try:
        return MANIFEST_DESCRIPTOR.build(engine.images.manifest_of(image))
    except containerd.NotFound:
        return None  # another client has removed it meanwhile; the snapshots are what the container needs


def _keep(
    engine: Engine,
    container: Container,
    image: Image,
    networking: Networking | None,
    version: tuple[int, int],
    warnings: list[str],
    named: bool,
) -> None:
    """Make what the container needs, and its record at last; undone in reverse if a step fails."""
    identity = container.id
    with engine.containerd.making(identity), engine.volumes.promised(identity), contextlib.ExitStack() as undo:
        undo.enter_context(_nothing_but_the_image_is_missing())
        undo.callback(engine.endpoints.detach, container)
        engine.endpoints.check(container, networking, version, warnings)
        undo.callback(engine.volumes.release, identity, True)
        container.mounts = mounts.collect(engine, container, deep=version >= (1, 44))
        # What could not be read back would make a dead container at the next start.
        if faults := records.faults_of(container.record()):
            raise BadRequest(f"invalid request: {faults[0]}")
        undo.callback(snapshots.remove, engine, container)
        prepare(engine, container, image)
        _prepare_images(engine, container)
        Path(container.directory).mkdir(parents=True, mode=0o710)
        undo.callback(trees.discard_tree, container.directory)
        _make_working_directory(engine, container)
        rootfs.copy_up(engine, container)
        engine.containers.add(container, named)
        undo.pop_all()


def _join_by_id(engine: Engine, host: HostConfig) -> None:
    """A container whose namespaces are joined is the same one whatever it is called later."""

    def by_id(mode: str) -> str:
        kind, _, name = mode.partition(":")
        return f"container:{engine.containers.get(name).id}" if kind == "container" and name else mode

    host.ipc_mode, host.pid_mode = by_id(host.ipc_mode), by_id(host.pid_mode)


@contextlib.contextmanager
def _nothing_but_the_image_is_missing() -> Iterator[None]:
    """Clients take status 404 for a missing image, pull it and try again: other missing things are bad requests."""
    try:
        yield
    except NotFound as error:
        raise BadRequest(str(error)) from None


def _of_another_platform(image: Image) -> list[str]:
    own, host = image_spec.platform_of(image.config), image_spec.most_of_host()
    if not own.os or image_spec.platform_rank(host, own) is not None:
        return []
    said = "/".join(filter(None, (str(image.config.get(key) or "") for key in ("os", "architecture", "variant"))))
    return [
        f"The requested image's platform ({said}) does not match the detected host platform ({host}) and no specific "
        "platform was requested"
    ]


def warnings_of(host: HostConfig, version: tuple[int, int]) -> list[str]:
    """What this version of the API warns of, and others leave to their clients, or have taken as it is."""
    told = []
    named = [mount.volume_options.driver_config for mount in host.mounts or () if mount.volume_options]
    driven = sum(1 for one in named if one and one.name)
    volumes = sum(1 for mount in host.mounts or () if mount.type == "volume")
    if version >= (1, 48) and host.volume_driver and driven < volumes:
        told.append(
            "WARNING: the container-wide volume-driver configuration is ignored for volumes specified via 'mount'. Use"
            " '--mount type=volume,volume-driver=...' instead"
        )
    empty = [port for port, bindings in host.published.items() if not bindings]
    if version >= (1, 52) and empty:
        told.append(
            f"Following container port(s) have an empty list of port-bindings: {', '.join(empty)}."
            " Such bindings will be discarded in a future version."
        )
    return told


def _conflicts(body: Creation, host: HostConfig) -> None:
    if body.hostname and host.uts_mode == "host":
        raise BadRequest("conflicting options: hostname and the UTS mode")


def prepare(engine: Engine, container: Container, image: Image) -> None:
    """The writable snapshot, over the image's layers and the one with the places that every container has."""
    from teu.api.services.snapshots.v1 import snapshots_pb2
    from teu.engine.files import places  # 1 ms

    given = container.host_config.storage_opt
    size = storage.size(given, engine.config)
    labels = {ROOT: container.created, OWNER_LABEL: container.id}
    if size:
        known = snapshots.snapshotter(engine)
        if known is None or SIZES not in known.capabilities:  # it would leave the label alone
            raise storage.without_limits(given, engine.config["storage-driver"])
        labels[SIZE] = str(size)
    request = snapshots_pb2.PrepareSnapshotRequest(
        snapshotter=engine.config["storage-driver"],
        key=container.snapshot_key,
        parent=places.name(image),
        labels=labels,
    )

    def made(lease: str = "") -> list[mount_pb2.Mount]:
        try:
            return list(engine.containerd.snapshots.Prepare(request, lease=lease).mounts)
        except containerd.FailedPrecondition as error:
            if not size:
                raise
            raise storage.without_quotas(given, str(error)) from None

    try:
        container.rootfs_mounts = made()
    except containerd.NotFound:
        with engine.containerd.lease() as lease:
            engine.images.prepare_parent(image)
            places.make(engine, image, lease)
            container.rootfs_mounts = made(lease)


def _prepare_images(engine: Engine, container: Container) -> None:
    """A view of each image that is mounted into the container: its layers stay for as long, whatever becomes of its
    name."""
    from teu.api.services.snapshots.v1 import snapshots_pb2

    for point in container.mounts:
        if point.type != "image":
            continue
        request = snapshots_pb2.ViewSnapshotRequest(
            snapshotter=engine.config["storage-driver"],
            key=snapshots.image_key(container, point),
            parent=point.options.chain,
            labels={ROOT: container.created, OWNER_LABEL: container.id},
        )
        try:
            engine.containerd.snapshots.View(request)
        except containerd.NotFound:
            with engine.containerd.lease() as lease:
                engine.images.prepare_parent(engine.images.of_container(point.source, point.options.chain))
                engine.containerd.snapshots.View(request, lease=lease)


def _make_working_directory(engine: Engine, container: Container) -> None:
    """So that cp finds it before the first start. A link in the image leads inside the root."""
    directory = container.config.working_dir
    if not directory:
        return
    with rootfs.snapshot(engine, container) as root:
        try:
            made = inside.make_in_root(root, directory)
            is_folder = stat.S_ISDIR(os.fstat(made).st_mode)
            os.close(made)
        except NotADirectoryError:
            is_folder = False
        except OSError as error:
            raise EngineError(f"the working directory {directory} cannot be made: {error.strerror}") from None
    if not is_folder:
        raise EngineError(f"Cannot mkdir: {directory} is not a directory")


def merge(config: Config, image: ContainerConfig) -> None:
    """What the image says counts where the client says nothing. Of the image's values as much is certain as
    image_spec.config has checked: the rest is looked at when the record is."""
    config.user = config.user or image.get("User") or ""
    config.working_dir = config.working_dir or image.get("WorkingDir") or ""
    if config.working_dir:
        config.working_dir = hostconfig.clean_path(config.working_dir)
    if ports := image.get("ExposedPorts"):
        config.exposed_ports = {**ports, **config.exposed}
    given = {entry.partition("=")[0] for entry in config.env or ()}
    inherited = [entry for entry in image.get("Env") or () if entry.partition("=")[0] not in given]
    config.env = (config.env or []) + inherited
    config.labels = {**(image.get("Labels") or {}), **config.labels}
    if not config.entrypoint:
        if not config.cmd:
            config.cmd = image.get("Cmd")
        if config.entrypoint is None:
            config.entrypoint = image.get("Entrypoint")
    config.volumes = {**(image.get("Volumes") or {}), **(config.volumes or {})} or None
    config.stop_signal = config.stop_signal or image.get("StopSignal")
    if health := image.get("Healthcheck"):
        config.healthcheck = _merged_health(config.healthcheck, HEALTH.build(health))


def _merged_health(mine: HealthCheck | None, image: HealthCheck) -> HealthCheck:
    merged = mine.copy() if mine else HealthCheck()
    for name, value in vars(image).items():
        if value is not None and not getattr(merged, name):
            setattr(merged, name, value)
    return merged


def command(config: Config) -> tuple[str, list[str]]:
    entrypoint = [] if config.entrypoint in ([""], None) else config.entrypoint or []
    words = [*entrypoint, *(config.cmd or [])]
    if not words:
        raise BadRequest("no command specified")
    return words[0], words[1:]
