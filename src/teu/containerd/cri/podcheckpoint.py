# SPDX-License-Identifier: Apache-2.0
"""Folders with the checkpoint of a whole pod (KEP 5823, alpha). Called by `checkpoint` and `service`, on threads.

    checkpoint-manifest.json        which archive is which container's; it is there when all of them are
    container-SHA256_OF_ID.tar      an archive as `checkpoint` makes of a container

What is in such a folder is the runtime's own: here it is as containerd has it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from teu.containerd.core.errors import Cancelled, FailedPrecondition, InvalidArgument
from teu.oci import jsontext

MANIFEST = "checkpoint-manifest.json"
VERSION = 1
MANIFEST_MAX = 1 << 20  # bytes


def archive_name(id: str) -> str:
    """The file of the container of that id."""
    return f"container-{hashlib.sha256(id.encode()).hexdigest()}.tar"


def check_options(options: Any) -> None:
    """That nobody asks for what is not known here. InvalidArgument."""
    if options:
        raise InvalidArgument(f"options: {', '.join(sorted(options))}: there are none of that name")


def _open(path: str, what: str) -> int:
    if not os.path.isabs(path):
        raise InvalidArgument(f"{what} must be the absolute path of a folder, not {path!r}")
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument(f"{what} {path}: {error.strerror}") from None


def check_empty(path: str) -> None:
    """That a checkpoint can be written into the folder. InvalidArgument."""
    folder = _open(path, "output_path")
    try:
        if os.listdir(folder):
            raise InvalidArgument(f"output_path {path} must be empty")
    finally:
        os.close(folder)


def write(
    path: str,
    pod: str,
    containers: Sequence[tuple[str, str]],
    folders: Sequence[str],
    pack: Callable[[str, str], None],
    wanted: Callable[[], bool],
) -> None:
    """Pack what was saved of containers, (name, id), into the folder, and say so. After a failure nothing is left
    there. Raises OSError, and Cancelled where it is not wanted any more."""
    entries = [{"name": name, "id": id, "archive": archive_name(id)} for name, id in containers]
    try:
        for entry, folder in zip(entries, folders, strict=True):
            if not wanted():
                raise Cancelled("the client has left while its pod was saved")
            pack(folder, os.path.join(path, entry["archive"]))
        text = json.dumps({"version": VERSION, "sandboxId": pod, "containers": entries}).encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(os.path.join(path, MANIFEST), flags, 0o600), "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if not wanted():
            raise Cancelled("the client has left while its pod was saved")
    except BaseException:
        for name in (MANIFEST, *(entry["archive"] for entry in entries)):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(path, name))
        raise


def _manifest(path: str) -> Any:
    folder = _open(path, "checkpoint_path")
    try:
        file = os.open(MANIFEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            text = os.read(file, MANIFEST_MAX + 1)
        finally:
            os.close(file)
        if len(text) > MANIFEST_MAX:
            raise ValueError("it is too long")
        return jsontext.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"checkpoint_path {path}: {MANIFEST}: {error}") from None
    finally:
        os.close(folder)


def read(path: str, configs: Sequence[Any]) -> list[tuple[Any, str]]:
    """(ContainerConfig, path of its archive) of each container that is asked for, which must be all that the folder
    has. Raises InvalidArgument for what is no checkpoint of a pod, FailedPrecondition where the names are others."""
    found = _manifest(path)
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise InvalidArgument(f"checkpoint_path {path}: its {MANIFEST} is not of version {VERSION}")
    archives: dict[str, str] = {}
    entries = found.get("containers")
    for entry in entries if isinstance(entries, list) else [None]:
        name, id = (entry.get("name"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not (isinstance(name, str) and isinstance(id, str) and name and id) or name in archives:
            raise InvalidArgument(f"checkpoint_path {path}: its {MANIFEST} does not name its containers")
        # The name follows from the id: no path of the file's leads anywhere.
        archives[name] = os.path.join(path, archive_name(id))
    names = [config.metadata.name for config in configs]
    if not names or len(set(names)) < len(names) or not all(names):
        raise InvalidArgument("container_configs must be there, each with another metadata.name")
    if set(names) != archives.keys():
        asked, known = ", ".join(sorted(names)), ", ".join(sorted(archives))
        raise FailedPrecondition(f"container_configs are of {asked}, and the checkpoint is of {known}")
    return [(config, archives[config.metadata.name]) for config in configs]
