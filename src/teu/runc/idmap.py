# SPDX-License-Identifier: Apache-2.0
"""Id maps: of the container's user namespace, and of mounts. Called by teu.runc.launch from outside."""

from __future__ import annotations

import os

from teu.linux import mounts, namespaces
from teu.linux.mounts import MOUNT_ATTR_IDMAP
from teu.runc import rootfs
from teu.runc.errors import InvalidSpec, RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.runc.mount_options import MountOptions

    Maps = list[dict[str, int]]

_SEARCHED = ("/usr/bin", "/bin", "/usr/local/bin")


def write_maps(pid: int, uids: Maps, gids: Maps, rootless: bool, own_group_only: bool) -> None:
    """Map the ids of a process that is alone in a new user namespace.

    A user who is not root may map the own id; for subordinate ids newuidmap and newgidmap are run.
    """
    if not rootless:
        _write(f"/proc/{pid}/uid_map", _text(uids))
        _write(f"/proc/{pid}/gid_map", _text(gids))
        return
    if len(uids) == 1 and uids[0]["size"] == 1 and uids[0]["hostID"] == os.geteuid():
        _write(f"/proc/{pid}/uid_map", _text(uids))
    else:
        _run_mapper("newuidmap", pid, uids)
    if own_group_only:
        _write(f"/proc/{pid}/setgroups", b"deny")
        _write(f"/proc/{pid}/gid_map", _text(gids))
    else:
        _run_mapper("newgidmap", pid, gids)


def _text(maps: Maps) -> bytes:
    return os.fsencode("".join(f"{one['containerID']} {one['hostID']} {one['size']}\n" for one in maps))


def _write(path: str, data: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, f"write {path}: {error.strerror}") from None


def _run_mapper(program: str, pid: int, maps: Maps) -> None:
    path = next((f"{folder}/{program}" for folder in _SEARCHED if os.access(f"{folder}/{program}", os.X_OK)), None)
    if path is None:
        raise RuncError(f"{program} is needed for subordinate ids: install uidmap")
    words = [program, str(pid)]
    for one in maps:
        words += [str(one["containerID"]), str(one["hostID"]), str(one["size"])]
    child = os.posix_spawn(path, words, {})
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise RuncError(f"{' '.join(words)} failed with {status}: are these ids in /etc/sub{program[3:6]}?")


def user_namespace(uids: Maps, gids: Maps) -> int:
    """A descriptor of a user namespace with these maps, without a process in it."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    pid = namespaces.clone(namespaces.CLONE_NEWUSER)
    if pid == 0:
        try:
            os.close(write_end)
            os.read(read_end, 1)
        finally:
            os._exit(0)
    try:
        os.close(read_end)
        _write(f"/proc/{pid}/uid_map", _text(uids))
        _write(f"/proc/{pid}/gid_map", _text(gids))
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(write_end)
        os.waitpid(pid, 0)


def open_mapped(mount: dict[str, Any], options: MountOptions, bundle: str, spec: dict[str, Any]) -> int:
    """A detached copy of a bind source, with the mount's id map (or the container's own, for a bare "idmap")."""
    if not rootfs.is_bind(mount, options):
        raise InvalidSpec(f"mounts: {mount['destination']}: id maps are for bind mounts")
    uids, gids = mount.get("uidMappings"), mount.get("gidMappings")
    if not uids and not gids:
        linux = spec.get("linux") or {}
        uids, gids = linux.get("uidMappings"), linux.get("gidMappings")
        joined = next((one.get("path") for one in linux.get("namespaces") or () if one["type"] == "user"), None)
        if not joined and (not uids or not gids):
            raise InvalidSpec(f"mounts: {mount['destination']}: idmap without maps needs a user namespace")
    elif not uids or not gids:
        raise InvalidSpec(f"mounts: {mount['destination']}: uidMappings and gidMappings go together")
    else:
        joined = None
    tree = rootfs.open_bind_source(mount, options, bundle)
    namespace = os.open(joined, os.O_RDONLY | os.O_CLOEXEC) if joined else user_namespace(uids or [], gids or [])
    try:
        mounts.mount_setattr(
            tree, MOUNT_ATTR_IDMAP, userns=namespace, recursive=options.idmap == "ridmap" and options.recursive_bind
        )
    except OSError as error:
        os.close(tree)
        raise OSError(
            error.errno, f"mounts: {mount['destination']}: id map (does its file system know them?): {error.strerror}"
        ) from None
    finally:
        os.close(namespace)
    return tree
