# SPDX-License-Identifier: Apache-2.0
"""docker's volume driver "local": a folder of the engine's, and what is mounted there where options say so.

    VOLUMES/NAME/_data     what containers see

What is in a volume with options belongs to others (a folder of the host, a server), so a volume is unmounted before it
is removed, and no removal crosses a mount.

A volume with nothing but a size is the folder, with a project of its own (linux/quota.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from teu.engine.core.errors import BadRequest, Conflict, EngineError
from teu.linux import quota, trees
from teu.oci.units import parse_bytes

OPTIONS = {"type", "o", "device", "size"}
OF_SERVERS = ("nfs", "nfs4", "cifs", "smb3")  # whose device may begin with a slash, too

# How long a mount may take: a server that does not answer must not hold a container's start for ever.
MOUNT_SECONDS = 60.0


class Local:
    """The driver local: a folder of this host, on which a file system is mounted where the options ask for one."""

    def __init__(self, root: str) -> None:
        self._root = root

    def check(self, options: dict[str, str]) -> dict[str, str]:
        for key, value in options.items():
            if key not in OPTIONS:
                raise BadRequest(f"create: invalid option: {json.dumps(key)}")
            if not isinstance(value, str):
                raise BadRequest(f"create: option {key} is not a string")
        mounted = self.has_to_be_mounted(options)
        if "size" in options:
            self._check_size(options["size"], mounted)
        if options.get("o") and not mounted:
            raise BadRequest("create: missing device in volume options")
        return {str(key): str(value) for key, value in options.items()}

    def _check_size(self, text: str, mounted: bool) -> None:
        try:
            size = parse_bytes(text)
        except ValueError as error:
            raise BadRequest(f"create: {error}; give a size such as 512m or 20g") from None
        if not size:
            return
        if mounted:
            raise BadRequest(
                "create: size limits a folder of this host's, and no volume with a device or a type; a tmpfs has one of"
                " its own, o=size=64m"
            )
        try:
            quota.check(self._root)
        except quota.NoQuota as error:
            raise BadRequest(f"create: quota size requested but no quota support: {error}") from None

    def _folder(self, name: str) -> str:
        return f"{self._root}/{name}"

    def path(self, name: str) -> str:
        return f"{self._folder(name)}/_data"

    def scope(self, name: str) -> str:
        return "local"

    def create(self, name: str, options: dict[str, str]) -> bool:
        folder = self._folder(name)
        fresh = not os.path.lexists(folder)
        try:
            os.makedirs(f"{folder}/_data", mode=0o755, exist_ok=True)
            os.chmod(folder, 0o701)
            self._limit(name, options)
            _sync_directory(folder)
            _sync_directory(self._root)
        except BaseException:
            if fresh:
                with contextlib.suppress(OSError):
                    quota.release(self.path(name))
                trees.discard_tree(folder)
            raise
        return fresh

    def _limit(self, name: str, options: dict[str, str]) -> None:
        """Raises EngineError where there can be none, OSError."""
        size = parse_bytes(options.get("size") or "0")
        if not size:
            quota.release(self.path(name))
            return
        try:
            quota.limit(self.path(name), size)
        except quota.NoQuota as error:
            raise EngineError(f"size quota requested for volume but no quota support: {error}") from None

    def has_to_be_mounted(self, options: dict[str, str]) -> bool:
        return bool(options.get("device") or options.get("type"))

    def mount(self, name: str, options: dict[str, str]) -> None:
        if self.has_to_be_mounted(options):
            _mount(options, self.path(name))
        elif options.get("size"):
            self._limit(name, options)  # whoever copied the files, or checked them, may have lost it

    def unmount(self, name: str) -> None:
        trees.unmount(self.path(name))

    def host_paths(self, name: str, options: dict[str, str]) -> list[str]:
        device = options.get("device") or ""
        here = device.startswith("/") and options.get("type") not in OF_SERVERS
        return [self.path(name), *([device] if here else [])]

    def release(self, name: str) -> None:
        trees.unmount(self.path(name))
        if inside := trees.mounts_below(self._folder(name)):
            raise Conflict(f"remove {name}: {inside[0]} is a mount; unmount it, then remove the volume")

    def rename(self, name: str, new: str) -> None:
        trees.unmount(self.path(name))
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._folder(name), self._folder(new))
        _sync_directory(self._root)

    def remove(self, name: str) -> None:
        trees.unmount(self.path(name))
        quota.release(self.path(name))
        trees.remove_tree(self._folder(name))


def _mount(options: dict[str, str], path: str) -> None:
    """In a process of its own: what waits for a server in the kernel can be killed, which a thread cannot."""
    program = str(Path(__file__).with_name("local_mount.py"))
    worker = subprocess.Popen(
        [sys.executable, "-IS", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
        env={"LC_ALL": "C.UTF-8"},
    )
    try:
        asked = json.dumps({"path": path, "options": options}).encode()
        _, said = worker.communicate(asked, timeout=MOUNT_SECONDS)
        reason = said.decode(errors="replace").strip()
    except subprocess.TimeoutExpired:
        worker.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.communicate(timeout=1)
        reason = f"{options.get('device') or ''} did not answer within {MOUNT_SECONDS:.0f} s"
    if worker.returncode != 0:
        reason = reason or f"the mount's process has died ({worker.returncode})"
        raise EngineError(f"error while mounting volume '{path}': failed to mount local volume: {reason}")


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
