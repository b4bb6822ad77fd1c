# SPDX-License-Identifier: Apache-2.0
"""A container saved into an archive while it runs on (KEP 2008, "forensic container checkpointing"). Called by
`service`.

The archive is a tar file, as containerd's and CRI-O's, which checkpointctl reads:

    checkpoint/         criu's images
    config.dump         whose it is, of which image, when
    spec.dump           its runtime specification
    status.dump         ContainerStatus
    status              times and state, as containerd has them
    rootfs-diff.tar     what it has changed in its root file system
    container.log       its log, if it has one
    dump.log, stats-dump    of criu

The container is frozen from the first of these to the last, so that memory and files belong together.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from google.protobuf import any_pb2

from teu.api.types.runc.options import oci_pb2
from teu.containerd.core.errors import DeadlineExceeded, Error, FailedPrecondition, InvalidArgument, NotFound
from teu.containerd.cri import podcheckpoint, users
from teu.containerd.cri.records import NAMESPACE, RUNNING, RUNTIME, Container, Pod
from teu.containerd.state import Context
from teu.oci.labels import expiring

log = logging.getLogger("teu.containerd.cri")
T = TypeVar("T")

OPTIONS_TYPE = "containerd.runc.v1.CheckpointOptions"
CRIU = "criu"
DEFAULT_SECONDS = 600.0  # where a request names none
LEASE_SECONDS = 3600
_NEVER = "0001-01-01T00:00:00Z"


def check_criu() -> None:
    """That this host can make and restore checkpoints. FailedPrecondition."""
    if shutil.which(CRIU, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is None:
        raise FailedPrecondition(f"a checkpoint needs {CRIU}: install it")


def moment(nanoseconds: int) -> str:
    """RFC 3339 in UTC, of nanoseconds since 1970."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"


def go_json(message: Any) -> dict[str, Any]:
    """A message as Go's encoding/json writes the structures of the CRI: fields by their names of the wire, without
    those that say nothing, numbers as numbers."""
    found: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        repeated = descriptor.label == descriptor.LABEL_REPEATED
        if descriptor.message_type is None:
            found[descriptor.name] = list(value) if repeated else value
        elif descriptor.message_type.GetOptions().map_entry:
            found[descriptor.name] = dict(value)
        elif repeated:
            found[descriptor.name] = [go_json(one) for one in value]
        else:
            found[descriptor.name] = go_json(value)
    return found


def described(container: Container, status: Any, now: int) -> dict[str, Any]:
    """The files of an archive that say what it is of, by their names: objects for JSON."""
    return {
        "config.dump": {
            "id": container.id,
            "name": container.name,
            "rootfsImage": status.image.image,
            "rootfsImageRef": status.image_ref,
            "rootfsImageName": status.image.image,
            "runtime": RUNTIME,
            "createdTime": moment(container.created),
            "checkpointedTime": moment(now),
            "restoredTime": _NEVER,
            "restored": False,
        },
        "status.dump": go_json(status),
    }


def pack(folder: str, location: str) -> None:
    """A folder as a tar file, which is whole and on the disk when it is there. Blocks. OSError."""
    import tarfile  # 15 ms

    unfinished = f"{location}.tmp"
    with suppress(FileNotFoundError):
        os.unlink(unfinished)  # of a daemon that ended while it wrote
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for name in sorted(os.listdir(folder)):
                    archive.add(os.path.join(folder, name), name)
            file.flush()
            os.fsync(file.fileno())
        os.rename(unfinished, location)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(unfinished)
        raise
    above = os.open(os.path.dirname(location), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(above)
    finally:
        os.close(above)


class Checkpointer:
    """Makes checkpoints of containers."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._busy: set[str] = set()  # the containers of which one is being made, and where those are to be

    async def _thread(self, function: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._context.pool, function, *given)

    def _check(self, container: Container) -> None:
        """That a container can be saved now. FailedPrecondition."""
        if container.state != RUNNING:
            raise FailedPrecondition(f'container "{container.id}" does not run. only running ones can be checkpointed')
        if users.maps_of(container.pod.namespaces) is not None:
            raise FailedPrecondition(f'container "{container.id}" has a user namespace, so it cannot be checkpointed')

    def _begin(self, containers: Sequence[Container], location: str) -> set[str]:
        """Claim them, and where they are to be saved. FailedPrecondition where another checkpoint has one of them."""
        check_criu()
        for container in containers:
            if container.id in self._busy:
                raise FailedPrecondition(f'another checkpoint of container "{container.id}" is being made')
        if location in self._busy:
            raise FailedPrecondition(f"another checkpoint is being made at {location}")
        claimed = {location, *(container.id for container in containers)}
        self._busy |= claimed
        return claimed

    async def save(self, container: Container, status: Any, location: str, timeout: int) -> None:
        """Save a running container, whose ContainerStatus is given, into a new file. Raises FailedPrecondition where it
        cannot be, InvalidArgument for a location that is none, DeadlineExceeded after `timeout` seconds (0: a default),
        and what the runtime says."""
        self._check(container)
        if not os.path.isabs(location) or location.endswith("/"):
            raise InvalidArgument(f"location must be the absolute path of a file, not {location!r}")
        if timeout < 0:
            raise InvalidArgument(f"timeout must not be negative: {timeout}")
        claimed = self._begin([container], location)
        seconds = timeout or DEFAULT_SECONDS
        try:
            await self._within(
                seconds, claimed, [(container, status)], lambda folders, _wanted: pack(folders[0], location)
            )
        except TimeoutError:
            raise DeadlineExceeded(f"the checkpoint of {container.id} is not ready after {seconds} s") from None

    async def save_pod(self, pod: Pod, chosen: Sequence[tuple[Container, Any]], location: str) -> None:
        """Save running containers of a pod, with their ContainerStatus, as they are at one moment, into an empty
        folder (CheckpointPod). Nothing is left there after a failure, or when the client leaves. Raises
        FailedPrecondition where they cannot be saved, InvalidArgument for what is no such folder, and what the runtime
        says."""
        for container, _ in chosen:
            self._check(container)
        await self._thread(podcheckpoint.check_empty, location)
        claimed = self._begin([container for container, _ in chosen], location)
        names = [(container.config.metadata.name, container.id) for container, _ in chosen]

        def write(folders: list[str], wanted: asyncio.Event) -> None:
            podcheckpoint.write(location, pod.id, names, folders, pack, wanted.is_set)

        await self._within(None, claimed, chosen, write)

    async def _within(
        self,
        seconds: float | None,
        claimed: set[str],
        chosen: Sequence[tuple[Container, Any]],
        write: Callable[[list[str], asyncio.Event], None],
    ) -> None:
        wanted = asyncio.Event()
        wanted.set()
        job = asyncio.create_task(self._save(chosen, wanted, write))
        job.add_done_callback(lambda _: self._busy.difference_update(claimed))
        try:
            await asyncio.wait_for(asyncio.shield(job), seconds)
        finally:
            # It comes to its end, and lets the containers go on; nobody wants what it has saved then.
            wanted.clear()
            job.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _save(
        self,
        chosen: Sequence[tuple[Container, Any]],
        wanted: asyncio.Event,
        write: Callable[[list[str], asyncio.Event], None],
    ) -> None:
        checkpoints, tasks = self._context.checkpoints, self._context.tasks
        folders: list[str] = []
        frozen: list[Container] = []
        try:
            pids = []
            for container, _ in chosen:
                folders.append(await self._thread(checkpoints.folder))
                await self._thread(os.mkdir, os.path.join(folders[-1], "checkpoint"), 0o700)
                pids.append((await tasks.get(NAMESPACE, container.id)).pid)
            try:
                for container, _ in chosen:
                    await tasks.pause(NAMESPACE, container.id)
                    frozen.append(container)
                for (container, status), folder, pid in zip(chosen, folders, pids, strict=True):
                    images = os.path.join(folder, "checkpoint")
                    options = oci_pb2.CheckpointOptions(image_path=images, work_path=folder)
                    packed = any_pb2.Any(type_url=OPTIONS_TYPE, value=options.SerializeToString())
                    await tasks.checkpoint(NAMESPACE, container.id, packed)
                    await self._thread(self._describe, container, status, pid, folder)
            finally:
                going = [asyncio.create_task(self._go_on(container)) for container in frozen]
                await asyncio.shield(asyncio.gather(*going))
            if wanted.is_set():
                await self._thread(write, folders, wanted)
        except OSError as error:
            ids = ", ".join(container.id for container, _ in chosen)
            raise FailedPrecondition(f"the checkpoint of {ids} cannot be written: {error}") from None
        finally:
            for folder in folders:
                await self._thread(checkpoints.drop, folder)

    async def _go_on(self, container: Container) -> None:
        try:
            await self._context.tasks.resume(NAMESPACE, container.id)
        except Error as error:
            # It has ended meanwhile, or the runtime has let it go on itself.
            log.warning("container %s after its checkpoint: %s", container.id, error.message)

    def _describe(self, container: Container, status: Any, pid: int, folder: str) -> None:
        now = time.time_ns()
        state = {
            "Version": "v1",
            "Pid": pid,
            "CreatedAt": container.created,
            "StartedAt": container.started,
            "FinishedAt": 0,
            "ExitCode": 0,
            "Reason": "",
            "Message": "",
            "Resources": {"linux": go_json(container.config.linux.resources)},
            "Restore": False,
        }
        record = self._context.containers.get(NAMESPACE, container.id)
        texts = {"spec.dump": bytes(record.spec.value)}
        for name, told in {**described(container, status, now), "status": state}.items():
            texts[name] = json.dumps(told).encode()
        for name, text in texts.items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(text)
        if container.log_path:
            try:
                shutil.copyfile(container.log_path, os.path.join(folder, "container.log"), follow_symlinks=False)
            except FileNotFoundError:
                pass  # it has just been rotated
        self._write_changes(container, os.path.join(folder, "rootfs-diff.tar"))

    def _write_changes(self, container: Container, path: str) -> None:
        """What is in the root file system, and not in the image."""
        context, key = self._context, f"cri-checkpoint-{secrets.token_hex(16)}"
        snapshots, snapshotter = context.snapshots, container.snapshotter
        above = snapshots.stat(NAMESPACE, snapshotter, container.id).parent
        context.leases.create(NAMESPACE, key, expiring(LEASE_SECONDS))
        try:
            before = snapshots.view(NAMESPACE, snapshotter, key, above, {}, key) if above else []
            after = snapshots.mounts(NAMESPACE, snapshotter, container.id)
            with open(path, "wb") as file:
                context.layers.compare(before, after, "", file.fileno())
        finally:
            try:
                snapshots.remove(NAMESPACE, snapshotter, key)
            except NotFound:
                pass
            context.leases.delete(NAMESPACE, key)
