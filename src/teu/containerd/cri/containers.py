# SPDX-License-Identifier: Apache-2.0
"""The life of a pod's containers: create, start, stop, remove, and find again. Called by `service` and `pods`.

Each is an ordinary container of containerd's API, with a snapshot of its own; its task runs in the shim of its pod. Its
output goes into its log by that shim, so that no daemon is needed for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import secrets
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.events import task_pb2 as task_events
from teu.api.services.containers.v1 import containers_pb2
from teu.api.types import event_pb2
from teu.api.types.runc.options import oci_pb2
from teu.containerd.core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
    Unknown,
)
from teu.containerd.core.messages import Mount
from teu.containerd.cri import checks, restore, rootfs, shims, spec, users
from teu.containerd.cri.cadvisor import StandIns
from teu.containerd.cri.handlers import Handlers
from teu.containerd.cri.images import Image, Images
from teu.containerd.cri.imagevolumes import ImageVolumes
from teu.containerd.cri.nri import Nri
from teu.containerd.cri.records import (
    CONTAINER_EXTENSION,
    CREATED,
    EXITED,
    KIND_LABEL,
    NAMESPACE,
    RUNNING,
    RUNTIME,
    Container,
    Pod,
    Records,
)
from teu.containerd.runtime.shim import Exit
from teu.containerd.runtime.tasks import Stdio
from teu.containerd.state import Context
from teu.linux import signals
from teu.linux.trees import discard_tree
from teu.oci import cdi
from teu.oci.labels import expiring

log = logging.getLogger("teu.containerd.cri")
T = TypeVar("T")

OPTIONS_TYPE = "containerd.runc.v1.Options"
# containerd's own: kubelet and people know these.
START_FAILED, UNKNOWN_EXIT = 128, 255
PATIENCE_SECONDS = 1.0  # between two questions to a shim that does not answer
KILL_SECONDS = 60.0  # until a container that was sent SIGKILL must have ended
SIGNAL_SECONDS = 10.0  # for a shim to pass a signal on
ANSWER_SECONDS = 60.0  # for a shim to start a pod's init, or to change a container's limits
BUSY_SECONDS = 30.0  # for a start or a change that is under way to come to its end, before a stop
DELETE_SECONDS = 60.0  # for a shim to delete a task, of which others may still take the output
LOG_SECONDS, LOG_LOOK_SECONDS = 5.0, 0.02  # for the last lines of a log that another process writes
LEASE_SECONDS = 3600
INIT = "catatonit"
# In a container's folder of the state, while its task is there.
STDIN_FIFO, ATTACH_SOCKET = "stdin", "attach"
# Of a container that goes on from a checkpoint, as containerd has them.
RESTORED, SAVED_AT, SAVED_IMAGE = "restored", "checkpointedAt", "checkpointImage"
# containerd.v1.types.Status
_TASK_CREATED, _TASK_STOPPED, _TASK_PAUSED = 1, 3, 4


def hostname_of(config: Any) -> str:
    """The name of a pod's machine: the host's own where it has none."""
    return str(config.hostname) or os.uname().nodename


def signal_name(config: Any, image: dict[str, Any]) -> str:
    """What a container is stopped with: the request's, the image's, else TERM. InvalidArgument for what is none."""
    if config.stop_signal:
        name = cri.Signal.Name(config.stop_signal).removeprefix("SIGNAL_SIG").removeprefix("SIG")
        return str(name).replace("PLUS", "+").replace("MINUS", "-")
    text = str(image.get("StopSignal") or "TERM")
    try:
        signals.number(text)
    except ValueError as error:
        raise InvalidArgument(f"the image's StopSignal: {error}") from None
    return text.upper().removeprefix("SIG")


async def answered(call: Awaitable[T], seconds: float) -> T:
    """The answer to a call of a shim. DeadlineExceeded where none comes."""
    try:
        return await asyncio.wait_for(call, seconds)
    except TimeoutError:
        raise DeadlineExceeded("its shim does not answer") from None


def _digest(config: Any) -> str:
    return hashlib.sha256(config.SerializeToString(deterministic=True)).hexdigest()


def _is_of(container: Container, config: Any) -> bool:
    """Whether a container was made of that ContainerConfig."""
    if container.asked:
        return container.asked == _digest(config)
    return bool((container.requested or container.config) == config)


def _lease(container: Container) -> str:
    """What keeps its snapshot while it has no record."""
    return f"cri-{container.id}"


async def _settled(container: Container) -> None:
    """Wait for what is under way at a container."""
    async with container.lock:
        pass


class Containers:
    """The containers of the namespace k8s.io."""

    def __init__(self, context: Context, records: Records, images: Images, handlers: Handlers, nri: Nri) -> None:
        self._context = context
        self._records = records
        self._images = images
        self._handlers = handlers
        self._nri = nri
        self.image_volumes = ImageVolumes(context, images)
        self._restores = restore.Restores(context, images)
        self.stand_ins = StandIns(context)
        self._devices = cdi.Devices(context.config["cri"]["cdi-spec-dirs"])
        self._creating: dict[str, tuple[Any, asyncio.Task[str]]] = {}  # CreateContainer under way, by the name
        self._watches: set[asyncio.Task[None]] = set()
        context.events.listen(self._on_event)

    async def _thread(self, function: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._context.pool, function, *given)

    def state_of(self, id: str) -> str:
        """The folder of a pod or container that a reboot ends."""
        return os.path.join(self._context.state, "cri", id)

    def _folder(self, id: str) -> str:
        """What stays: the volumes of the image."""
        return os.path.join(self._context.root, "cri", id)

    def namespace_path(self, pod: Pod, kind: str) -> str:
        """Where a pod's namespace is held, by its type; "" where it has none of its own."""
        if kind == "network":
            return pod.network
        if kind == "uts" and not pod.network:
            return ""
        if kind == "ipc" and pod.namespaces.ipc == cri.NODE:
            return ""
        if kind == "user" and users.maps_of(pod.namespaces) is None:
            return ""
        return os.path.join(self.state_of(pod.id), kind)

    # create

    async def create(self, pod: Pod, config: Any, archive: str = "") -> str:
        """A new container of a ready pod; its id. Requests that are equal and overlap are one. It goes on from a
        checkpoint where `archive` is the path of one, whose process is all that `config` describes, or where the image
        that it names is one."""
        checks.container(config)
        self._handlers.check_container(pod.handler, config)
        for spec_of in (config.image, *(one.image for one in config.mounts)):
            self._handlers.named(spec_of.runtime_handler)
        options = config.linux.security_context.namespace_options
        if options.HasField("userns_options") and users.maps_of(options) != users.maps_of(pod.namespaces):
            raise InvalidArgument("user namespace config for sandbox is different from container")
        if options.pid == cri.NODE and users.maps_of(pod.namespaces) is not None:
            raise Unimplemented("a user namespace with the host's pid is not implemented")
        container = Container(secrets.token_hex(32), pod, config, created=time.time_ns())
        name = container.name
        under_way = self._creating.get(name)
        if under_way is None:
            if (known := self._records.names.get(name)) is not None:
                other = self._records.containers.get(known)
                if other is not None and _is_of(other, config) and other.state == CREATED:
                    return other.id  # the answer to an earlier request was lost
                told = f'failed to reserve container name "{name}": name "{name}" is reserved for "{known}"'
                raise AlreadyExists(told)
            self._records.names[name] = container.id
            task = asyncio.create_task(self._create(container, archive))
            self._creating[name] = under_way = (config, task)
            task.add_done_callback(lambda done: self._created(container, done))
        elif under_way[0] != config:
            raise AlreadyExists(f'failed to reserve container name "{name}": another request is under way')
        return await asyncio.shield(under_way[1])

    def _created(self, container: Container, done: asyncio.Task[str]) -> None:
        self._creating.pop(container.name, None)
        if done.cancelled() or done.exception() is not None:
            self._records.names.pop(container.name, None)

    async def _create(self, container: Container, archive: str) -> str:
        options = container.config.linux.security_context.namespace_options
        pid = await self._pid_namespace(container.pod, options)
        async with self._nri.held():
            try:
                await self._make(container, pid, archive)
            except BaseException:
                if container.pod.stopped:
                    await self._thread(self._clear_pod, container.pod)
                raise
            if container.pod.stopped:
                await self._nri.remove_container(container)
                await self._thread(self._removed, container)
                await self._thread(self._clear_pod, container.pod)
                raise FailedPrecondition(f'sandbox "{container.pod.id}" was stopped meanwhile')
            self._records.containers[container.id] = container
        self._records.tell(cri.CONTAINER_CREATED_EVENT, container.pod, container)
        await self._nri.created(container)
        return container.id

    def _clear_pod(self, pod: Pod) -> None:
        """Remove what has been made for a container in the folders of a pod after that was taken apart."""
        self.image_volumes.drop(pod)
        if pod.id not in self._records.pods:
            discard_tree(self.state_of(pod.id))

    async def _pid_namespace(self, pod: Pod, options: Any) -> str | None:
        """The path of the one to join, "" for an own one, None for the host's."""
        if options.pid == cri.CONTAINER:
            return ""
        if options.pid == cri.NODE:
            return None
        if options.pid == cri.TARGET:
            target = self._records.container(options.target_id)
            if target.pod is not pod:
                raise InvalidArgument(f"container {target.id} is not of this pod, so its processes cannot be shared")
            if target.state != RUNNING:
                raise FailedPrecondition(f"container {target.id} does not run, so it has no processes to share")
            process = await self._context.tasks.get(NAMESPACE, target.id)
            return f"/proc/{process.pid}/ns/pid"
        return f"/proc/{await self._init(pod)}/ns/pid"

    async def _make(self, container: Container, pid: str | None, archive: str) -> None:
        """Make it of its image, or of the checkpoint that this is, or of an archive's path."""
        name = container.config.image.image
        if archive or restore.is_path(name):
            await self._go_on_from(container, archive or name, None, pid, whole=bool(archive))
            return
        if self._nri.asks:
            image = self._image(container)
            if image.details.saved is None:
                await self._make_of(container, image, pid)
                return
        else:
            checkpoint = await self._thread(self._make_alone, container, pid)
            if checkpoint is None:
                return
            image = checkpoint
        await self._go_on_from(container, name, image, pid)

    def _image(self, container: Container) -> Image:
        """That of which a container is asked for. Raises NotFound."""
        name = container.config.image.image
        image = self._images.find(name)
        if image is None:
            raise NotFound(f'failed to resolve image "{name}"')
        return image

    async def _go_on_from(
        self, container: Container, name: str, image: Image | None, pid: str | None, *, whole: bool = False
    ) -> None:
        """Make a container of a checkpoint: of an archive's path, or of an image that is one."""
        restore.check(self._handlers.named(container.pod.handler), container.pod.namespaces)
        folder, restores = self._folder(container.id), self._restores
        try:
            saved = await self._thread(restores.take_apart, folder, name, image)
            base = await self._thread(restores.found, saved)
            if base is None:
                await restores.pull_base(saved)
                base = await self._thread(restores.found, saved)
            if base is None:
                raise NotFound(f"checkpoint {name}: its image has gone meanwhile")
            container.asked = _digest(container.config)
            if whole:
                await self._thread(self._check_image, container, base)
            else:
                self._describe(container, saved, base)
            await self._make_of(container, base, pid, saved, whole=whole)
        except BaseException:
            await asyncio.shield(asyncio.create_task(self._thread(discard_tree, folder)))
            raise

    def _check_image(self, container: Container, base: Image) -> None:
        """That a container is asked for of the image of its checkpoint."""
        name = container.config.image.image
        image = self._images.find(name)
        if image is None or image.id != base.id:
            raise FailedPrecondition(
                f'the container does not fit its checkpoint: that is of {base.id}, not of "{name}"'
            )

    def _describe(self, container: Container, saved: restore.Saved, base: Image) -> None:
        """What is told of a container whose image was a checkpoint: that of which the checkpoint was, and the command
        line that goes on, where nobody asked for another."""
        config, asked = cri.ContainerConfig(), container.config
        config.CopyFrom(asked)
        config.annotations[RESTORED] = "true"
        config.annotations[SAVED_AT] = saved.at
        config.annotations[SAVED_IMAGE] = asked.image.user_specified_image or asked.image.image
        config.image.image = base.id
        if not (config.command or config.args):
            config.command.extend(saved.arguments)
        container.config = config

    def _make_alone(self, container: Container, pid: str | None) -> Image | None:
        """Make it on one thread, where nobody is asked. Where its image is a checkpoint that is given back, and nothing
        is made."""
        image = self._image(container)
        if image.details.saved is not None:
            return image
        made = self._prepare(container, image, pid)
        try:
            self._store(container, image, made)
        except BaseException:
            self._clear(container)
            raise
        finally:
            self._context.leases.delete(NAMESPACE, _lease(container))
        return None

    async def _make_of(
        self,
        container: Container,
        image: Image,
        pid: str | None,
        saved: restore.Saved | None = None,
        *,
        whole: bool = False,
    ) -> None:
        """Make it of an image, with plugins asked; of a checkpoint, it fits that one afterwards as well."""
        made = await self._thread(self._prepare, container, image, pid, saved, whole)
        try:
            if self._nri.asks:
                await self._nri.create(container, image, made)
                if saved is not None:
                    restore.compare(saved, made, whole=whole)
            await self._thread(self._store, container, image, made, saved.images if saved else "")
        except BaseException:
            await self._nri.undo_create(container, made)
            await self._thread(self._clear, container)
            raise
        finally:
            await self._thread(self._context.leases.delete, NAMESPACE, _lease(container))

    def _prepare(
        self,
        container: Container,
        image: Image,
        pid: str | None,
        saved: restore.Saved | None = None,
        whole: bool = False,
    ) -> spec.Json:
        """Its snapshot, with a lease, and its specification; nothing where that fails."""
        config, context = container.config, self._context
        container.image, container.snapshotter = image.id, self._images.snapshotter
        container.stop_signal = signal_name(config, dict(image.details.config))
        lease = _lease(container)
        context.leases.create(NAMESPACE, lease, expiring(LEASE_SECONDS))
        try:
            maps = users.maps_of(container.pod.namespaces)
            labels = maps.labels if maps else {}
            mounts = context.snapshots.prepare(
                NAMESPACE, container.snapshotter, container.id, image.details.chain, labels, lease
            )
            container.mapped = bool(maps) and bool(image.details.chain)
            made = self._specified(container, image, mounts, pid)
            if saved is not None:
                restore.compare(saved, made, whole=whole)
                made["annotations"][restore.CONFINED] = "true"
                self._restores.apply(saved, mounts)
            if config.log_path and container.pod.config.log_directory:
                container.log_path = os.path.join(container.pod.config.log_directory, config.log_path)
            return made
        except BaseException:
            self._clear(container)
            context.leases.delete(NAMESPACE, lease)
            raise

    def _specified(self, container: Container, image: Image, mounts: Any, pid: str | None) -> spec.Json:
        """The specification, for which the image's files are asked; its volumes are filled."""
        config, pod = container.config, container.pod
        security = config.linux.security_context
        whose = security.run_as_username or str(image.details.config.get("User") or "")
        if security.HasField("run_as_user"):
            whose = str(security.run_as_user.value)
        if security.HasField("run_as_group"):
            whose = f"{whose.partition(':')[0]}:{security.run_as_group.value}"
        taken = {spec.place(one.container_path) for one in config.mounts}
        with rootfs.opened(mounts) as root:
            try:
                merge = security.supplemental_groups_policy == cri.Merge
                user = rootfs.user(root, whose, list(security.supplemental_groups), merge=merge)
            except ValueError as error:
                raise InvalidArgument(str(error)) from None
            volumes = rootfs.fill_volumes(root, self._folder(container.id), image.details.config, taken)
        container.user = [user.uid, user.gid, *user.groups]
        wanted = spec.Wanted(
            id=container.id,
            pod=pod,
            config=config,
            image=image.details.config,
            image_name=next(iter(image.tags or image.digests), image.id),
            inside=self._inside(pod, pid),
            uid=user.uid,
            gid=user.gid,
            groups=list(user.groups),
            volumes=volumes,
            edits=self._edits(config),
            images=self.image_volumes.paths(pod, config, self.namespace_path(pod, "user")),
            maps=users.maps_of(pod.namespaces),
            owns_devices=self._context.config["cri"]["device-ownership"],
        )
        return spec.build(wanted)

    def _edits(self, config: Any) -> cdi.Edits:
        names = spec.device_names(config)
        return self.devices(names) if names else cdi.Edits()

    def devices(self, names: list[str]) -> cdi.Edits:
        """What CDI devices give. Blocks. FailedPrecondition where one is unknown."""
        try:
            return self._devices.edits(names)
        except cdi.Unknown as error:
            raise FailedPrecondition(f"CDI device injection failed: unresolvable CDI devices: {error}") from None

    def joined(self, pod: Pod) -> dict[str, str]:
        """The namespaces that the containers of a pod share, by the specification's types."""
        kinds = ("user", "network", "ipc", "uts")
        return {kind: path for kind in kinds if (path := self.namespace_path(pod, kind))}

    def _inside(self, pod: Pod, pid: str | None) -> spec.Inside:
        folder = self.state_of(pod.id)
        joined = self.joined(pod)
        if pid is not None:
            joined["pid"] = pid
        own_ipc = pod.namespaces.ipc != cri.NODE
        return spec.Inside(
            files={f"/etc/{name}": os.path.join(folder, name) for name in ("hostname", "hosts", "resolv.conf")},
            shared_memory=os.path.join(folder, "shm") if own_ipc else "/dev/shm",
            namespaces=joined,
            hostname=hostname_of(pod.config),
        )

    def _store(self, container: Container, image: Image, made: spec.Json, saved: str = "") -> None:
        record = containers_pb2.Container(
            id=container.id,
            labels={**dict(container.config.labels), KIND_LABEL: "container"},
            image=next(iter(image.tags or image.digests), image.id),
            snapshotter=container.snapshotter,
            snapshot_key=container.id,
        )
        self._fill(record, made, container.pod, saved)
        record.extensions[CONTAINER_EXTENSION].CopyFrom(container.packed())
        self._context.containers.create(NAMESPACE, record)

    def _fill(self, record: Any, made: spec.Json, pod: Pod, saved: str = "") -> None:
        """What the runtime is told; `saved` is the folder with criu's images of a container that goes on."""
        handler = self._handlers.named(pod.handler)
        record.runtime.name = handler.shim or RUNTIME
        if not handler.shim:
            record.sandbox = pod.id  # whose shim has its task
        record.runtime.options.type_url = OPTIONS_TYPE
        record.runtime.options.value = oci_pb2.Options(
            binary_name=handler.binary,
            systemd_cgroup="cgroupsPath" in made["linux"] and spec.in_slice(made),
            shim_cgroup=shims.shim_cgroup(pod) if handler.shim else "",
            criu_image_path=saved,
        ).SerializeToString()
        record.spec.type_url, record.spec.value = spec.TYPE, json.dumps(made).encode()

    def _clear(self, container: Container) -> None:
        """Remove what belongs to a container besides its record."""
        try:
            self._context.snapshots.remove(NAMESPACE, container.snapshotter, container.id)
        except NotFound:
            self._context.database.sync()  # as that removal would have been
        shims.let_go(self.state_of(container.id))
        for folder in (self.state_of(container.id), self._folder(container.id)):
            discard_tree(folder)

    # start

    async def start(self, id: str) -> None:
        """Start a container that was created. What the runtime says of a failure is its message, too."""
        container = self._records.container(id)
        await asyncio.shield(asyncio.create_task(self._start(container)))

    async def _start(self, container: Container) -> None:
        async with container.lock:
            if container.state != CREATED:
                state = cri.ContainerState.Name(container.state)
                raise FailedPrecondition(f'container "{container.id}" is in {state} state')
            try:
                stdio, mounts = await self._thread(self._needed, container)
                pid = await self._context.tasks.create(NAMESPACE, container.id, stdio, mounts=mounts)
                async with self._nri.held():
                    await self._nri.start_container(container, pid)
                    container.started = time.time_ns()  # an end that comes at once is not before it
                    pid = await self._context.tasks.start(NAMESPACE, container.id)
                    container.state = RUNNING
            except (Error, OSError) as error:
                await self._end_task(container.id)
                await self._thread(shims.let_go, self.state_of(container.id))
                text = error.message if isinstance(error, Error) else str(error)
                container.message, container.reason, container.started = text, "StartError", 0
                await self._ended(container, Exit(START_FAILED, time.time_ns()))
                raise Unknown(f"failed to start containerd task {container.id!r}: {text}") from None
            await self._thread(self._records.save_container, container)
            self._records.tell(cri.CONTAINER_STARTED_EVENT, container.pod, container)
            await self._thread(self.stand_ins.started, container, pid)
            if container.asked:
                await self._thread(restore.let_go, self._folder(container.id))
            await self._nri.started(container, pid)
            self._watch(container)

    def _needed(self, container: Container) -> tuple[Stdio, list[Mount]]:
        return self._stdio(container), self._root_mounts(container)

    def _root_mounts(self, container: Container) -> list[Mount]:
        mounts = self._context.snapshots.mounts(NAMESPACE, container.snapshotter, container.id)
        maps = users.maps_of(container.pod.namespaces)
        return mounts if maps is None else users.remapped(mounts, maps, container.mapped)

    def _stdio(self, container: Container) -> Stdio:
        folder = self.state_of(container.id)
        os.makedirs(folder, 0o711, exist_ok=True)
        restore.begin_log(self._folder(container.id), container.log_path)
        stdin = ""
        if container.config.stdin:
            stdin = os.path.join(folder, STDIN_FIFO)
            if not os.path.exists(stdin):
                os.mkfifo(stdin, 0o600)
        if self._context.containers.get(NAMESPACE, container.id).runtime.name != RUNTIME:
            config = container.config
            return shims.streams(folder, container.pod, container.log_path, stdin, terminal=config.tty)
        # The shim writes the log, and listens for those who attach.
        return Stdio(stdin, f"cri://{container.log_path}", os.path.join(folder, ATTACH_SOCKET), container.config.tty)

    async def _end_task(self, id: str) -> None:
        """End and delete a task, if there is one."""
        tasks = self._context.tasks
        try:
            await answered(tasks.kill(NAMESPACE, id, signal.SIGKILL, everyone=True), SIGNAL_SECONDS)
            await asyncio.wait_for(tasks.wait(NAMESPACE, id), KILL_SECONDS)
        except (Error, TimeoutError):
            pass  # it has ended, or there is none; else the deletion says what is in the way
        await self._drop_task(id)

    async def _drop_task(self, id: str) -> None:
        """Delete a task that has ended, if there is one; what its first process has left ends with it."""
        try:
            await answered(self._context.tasks.delete(NAMESPACE, id), DELETE_SECONDS)
        except NotFound:
            pass
        except Error as error:
            log.error("the task of container %s stays: %s", id, error.message)

    # the end

    def _on_event(self, envelope: event_pb2.Envelope) -> None:
        # On the publishing thread: only a flag is set. It comes before the exit.
        if envelope.topic == "/tasks/oom" and envelope.namespace == NAMESPACE:
            event = task_events.TaskOOM.FromString(envelope.event.value)
            if (container := self._records.containers.get(event.container_id)) is not None:
                container.out_of_memory = True

    def _watch(self, container: Container) -> None:
        self._keep(asyncio.create_task(self._wait(container)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    async def _wait(self, container: Container) -> None:
        while True:
            try:
                ended = await self._context.tasks.wait(NAMESPACE, container.id)
                break
            except NotFound:
                if not self._context.shims.exists(NAMESPACE, container.id):
                    ended = Exit(UNKNOWN_EXIT, time.time_ns())  # somebody has removed the task
                    break
            except Error as error:
                log.error("container %s: %s", container.id, error.message)
            # A shim that is slow is not dead, and its container is left alone.
            await asyncio.sleep(PATIENCE_SECONDS)
        await self._drop_task(container.id)
        await self._written(container.id)
        await self._ended(container, ended)

    async def _written(self, id: str) -> None:
        """Wait for the last lines of a log that another process writes, though not for ever."""
        loop = asyncio.get_running_loop()
        until = loop.time() + LOG_SECONDS
        while shims.still_writes(self.state_of(id)) and loop.time() < until:
            await asyncio.sleep(LOG_LOOK_SECONDS)

    async def _ended(self, container: Container, ended: Exit) -> None:
        container.exit_code = ended.status
        container.finished = ended.at or time.time_ns()
        if not container.reason:
            container.reason = "Completed" if ended.status == 0 else "Error"
            if container.out_of_memory and ended.status == 128 + signal.SIGKILL:
                container.reason = "OOMKilled"
        container.state = EXITED
        await self._thread(self._note_end, container)
        await self._nri.stopped(container)
        container.ended.set()
        self._records.tell(cri.CONTAINER_STOPPED_EVENT, container.pod, container)

    def _note_end(self, container: Container) -> None:
        self.stand_ins.ended(container)
        self._records.save_container(container)

    async def stop(self, id: str, timeout: int) -> None:
        """Signal a container to stop, and kill it after so many seconds; an unknown one has stopped."""
        try:
            container = self._records.container(id)
        except NotFound:
            return
        await self.stop_one(container, timeout)

    async def stop_one(self, container: Container, timeout: float) -> None:
        """The same. DeadlineExceeded where not even SIGKILL ends it, or its shim does not answer."""
        await answered(_settled(container), BUSY_SECONDS)
        if container.state != RUNNING:
            return
        if timeout > 0:
            await self._signal(container, signals.number(container.stop_signal))
            if await self._has_ended(container, timeout):
                return
        await self._signal(container, signal.SIGKILL, everyone=True)
        await self.see_end(container)

    async def _signal(self, container: Container, number: int, *, everyone: bool = False) -> None:
        try:
            kill = self._context.tasks.kill(NAMESPACE, container.id, number, everyone=everyone)
            await answered(kill, SIGNAL_SECONDS)
        except (NotFound, Unavailable):
            pass  # its end is about to be told; the task may be deleted before its shim has answered

    async def see_end(self, container: Container) -> None:
        """Wait for the end of one that is being killed. DeadlineExceeded."""
        if container.state == RUNNING and not await self._has_ended(container, KILL_SECONDS):
            raise DeadlineExceeded(f"container {container.id} does not end, though it was killed")

    async def _has_ended(self, container: Container, seconds: float) -> bool:
        try:
            await asyncio.wait_for(container.ended.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def remove(self, id: str) -> None:
        """Stop a container, and forget it; an unknown one is forgotten."""
        try:
            container = self._records.container(id)
        except NotFound:
            return
        await asyncio.shield(asyncio.create_task(self.remove_one(container)))

    async def remove_one(self, container: Container) -> None:
        """The same."""
        await self.stop_one(container, 0)
        async with container.lock:
            known = container.id in self._records.containers
            async with self._nri.held():
                if known:
                    await self._nri.remove_container(container)
                await self._thread(self._removed, container)
            if known:
                self._records.tell(cri.CONTAINER_DELETED_EVENT, container.pod, container)

    def _removed(self, container: Container) -> None:
        self._records.drop_container(container)
        self._clear(container)

    # the init of a pod whose containers share their process ids

    def _init_id(self, pod: Pod) -> str:
        return f"init-{pod.id}"

    async def _init(self, pod: Pod) -> int:
        """The pid of the pod's first process, which is started when the first container wants it."""
        id, tasks = self._init_id(pod), self._context.tasks
        async with pod.lock:
            try:
                process = await tasks.get(NAMESPACE, id)
                if process.status != _TASK_STOPPED:
                    return process.pid
                raise FailedPrecondition("the init of the pod has ended, and all of its processes with it")
            except NotFound:
                pass
            program = shutil.which(INIT, path="/usr/bin:/usr/local/bin")
            if program is None:
                raise Unimplemented(f"a pod whose containers share process ids needs {INIT}: install it")
            await self._thread(self._store_init, pod, program)
            # The pod's end waits for this.
            pid = await answered(tasks.create(NAMESPACE, id, Stdio()), ANSWER_SECONDS)
            await answered(tasks.start(NAMESPACE, id), ANSWER_SECONDS)
            return pid

    def _store_init(self, pod: Pod, program: str) -> None:
        maps = users.maps_of(pod.namespaces)
        made = spec.of_init(program, self.joined(pod), maps)
        folder = os.path.join(self.state_of(pod.id), "init")
        os.makedirs(folder, 0o755, exist_ok=True)
        if maps is not None:
            maps.own(folder)
        made["root"]["path"] = folder
        record = containers_pb2.Container(id=self._init_id(pod), labels={KIND_LABEL: "sandbox"})
        self._fill(record, made, pod)
        try:
            self._context.containers.create(NAMESPACE, record)
        except AlreadyExists:
            pass  # of a start that came to no end

    async def end_init(self, pod: Pod) -> None:
        """End it, if there is one."""
        id = self._init_id(pod)
        if not self._context.containers.exists(NAMESPACE, id):
            return  # most pods have none
        await self._end_task(id)
        try:
            await self._thread(self._context.containers.delete, NAMESPACE, id)
        except NotFound:
            pass

    # after a start of the daemon

    async def restore(self) -> None:
        """Take over what an earlier daemon has left."""
        await asyncio.gather(*(self._restore(one) for one in list(self._records.containers.values())))

    async def _restore(self, container: Container) -> None:
        if container.state == EXITED:
            container.ended.set()
            container.stop_told = True  # of what was there before them plugins know what runs
            return
        try:
            process = await self._context.tasks.get(NAMESPACE, container.id)
        except Error as error:
            if isinstance(error, NotFound) and not self._context.shims.exists(NAMESPACE, container.id):
                if container.state == RUNNING:
                    container.reason = "Unknown"
                    await self._ended(container, Exit(UNKNOWN_EXIT, time.time_ns()))
                return
            log.warning("container %s: its shim does not answer yet: %s", container.id, error.message)
            if container.state == RUNNING:
                self._watch(container)
            return
        if process.status == _TASK_CREATED:
            await self._end_task(container.id)  # nobody was told that it has started
            return
        if process.status == _TASK_PAUSED:
            # Nobody else waits for a shim that still saves it.
            self._keep(asyncio.create_task(self._thaw(container)))
        if container.state == CREATED:
            container.started = time.time_ns()
        container.state = RUNNING
        await self._thread(self._records.save_container, container)
        await self._thread(self.stand_ins.started, container, process.pid)
        self._watch(container)

    async def _thaw(self, container: Container) -> None:
        """Only a checkpoint freezes a container; the daemon that made it has ended before it let it go on."""
        try:
            await answered(self._context.tasks.resume(NAMESPACE, container.id), ANSWER_SECONDS)
        except Error as error:
            log.error("container %s stays frozen by a checkpoint: %s", container.id, error.message)

    def close(self) -> None:
        """The daemon ends, its containers do not."""
        for task in self._watches:
            task.cancel()
