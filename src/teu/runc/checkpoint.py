# SPDX-License-Identifier: Apache-2.0
"""teu-runc checkpoint: save a running container with criu, and end it (unless --leave-running).

<image-path>/           criu's images, dump.log
    descriptors.json    what the first process had as 0, 1 and 2, for restore to give it again
"""

from __future__ import annotations

import os

from teu.linux.inside import open_in_root
from teu.oci import jsontext
from teu.runc import criu, delete, log, state
from teu.runc.descriptors import EXTERNAL_FILE, standard_descriptors
from teu.runc.errors import RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "checkpoint a running container"
USAGE = "<container-id>"
FLAGS: dict[str, tuple[str, str, object, str]] = {
    "image-path": ("", "string", "", "path for saving criu image files (default: ./checkpoint)"),
    "work-path": ("", "string", "", "path for saving work files and logs"),
    "parent-path": ("", "string", "", "path for previous criu image files in pre-dump, relative to image-path"),
    "leave-running": ("", "bool", False, "leave the process running after checkpointing"),
    "tcp-established": ("", "bool", False, "allow open tcp connections"),
    "tcp-skip-in-flight": ("", "bool", False, "skip in-flight tcp connections"),
    "link-remap": ("", "bool", False, "allow one to link unlinked files back when possible"),
    "ext-unix-sk": ("", "bool", False, "allow external unix sockets"),
    "shell-job": ("", "bool", False, "allow shell jobs"),
    "lazy-pages": ("", "bool", False, "use userfaultfd to lazily restore memory pages"),
    "status-fd": ("", "int", -1, "criu writes \\0 to this FD once lazy-pages is ready"),
    "page-server": ("", "string", "", "ADDRESS:PORT of the page server"),
    "file-locks": ("", "bool", False, "handle file locks, for safety"),
    "pre-dump": ("", "bool", False, "dump container's memory information only, leave the container running"),
    "manage-cgroups-mode": ("", "string", "", "cgroups mode: soft|full|strict|ignore (default: soft)"),
    "empty-ns": ("", "strings", "", "create a namespace, but don't restore its properties"),
    "auto-dedup": ("", "bool", False, "enable auto deduplication of memory images"),
}
ARGUMENTS = (1, 1)

LOG_FILE = "dump.log"
DESCRIPTORS = "descriptors.json"


def image_path(arguments: Arguments) -> str:
    return os.path.abspath(arguments["image-path"] or "checkpoint")


def page_server(text: str) -> dict[str, Any]:
    host, _, port = text.rpartition(":")
    if not host or not port:
        raise RuncError("Use --page-server ADDRESS:PORT to specify page server")
    if not (port.isascii() and port.isdigit()):
        raise RuncError("Invalid port number")
    return {"address": host.strip("[]"), "port": int(port)}


def mount_target(root: int, destination: str) -> str:
    """Where a mount of the spec has ended up, from the container's root: links are followed inside it."""
    base = os.readlink(f"/proc/self/fd/{root}")
    try:
        target = open_in_root(root, destination)
    except OSError:
        return os.path.normpath("/" + destination.lstrip("/"))
    try:
        return "/" + os.readlink(f"/proc/self/fd/{target}").removeprefix(base).lstrip("/")
    finally:
        os.close(target)


def external_mounts(spec: dict[str, Any], pid: int) -> list[dict[str, str]]:
    """Mounts whose content is the host's: bind mounts, masked files, device nodes bound in."""
    root = f"/proc/{pid}/root"
    keys = {}
    opened = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for mount in spec.get("mounts") or []:
        options = mount.get("options") or []
        if mount.get("type") == "bind" or "bind" in options or "rbind" in options:
            target = mount_target(opened, mount["destination"])
            keys[target] = target
    os.close(opened)
    linux = spec.get("linux") or {}
    for path in linux.get("maskedPaths") or []:
        if os.path.exists(root + path) and not os.path.isdir(root + path):
            keys[path] = "/dev/null"
    for device in linux.get("devices") or []:
        keys[device["path"]] = device["path"]
    for path in ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"):
        keys.setdefault(path, path)
    return [{"key": key, "val": value} for key, value in keys.items()]


def external_namespaces(spec: dict[str, Any]) -> list[str]:
    """Namespaces joined by their path: not dumped, expected to be there at restore."""
    found = []
    for namespace in (spec.get("linux") or {}).get("namespaces") or []:
        if namespace.get("path") and namespace["type"] in ("network", "pid"):
            kind = "net" if namespace["type"] == "network" else "pid"
            inode = os.stat(namespace["path"]).st_ino
            found.append(f"{kind}[{inode}]:{criu.external_key(namespace['type'])}")
    return found


def main(arguments: Arguments, settings: Settings) -> int:
    container = state.load(settings.root, arguments.positional[0])
    status = container.status()
    if status not in (state.RUNNING, state.PAUSED):
        raise RuncError(f"Container cannot be checkpointed in {status} state")
    if os.geteuid() != 0:
        log.warning("checkpoint is untested with rootless containers")
    keep = arguments["leave-running"] or arguments["pre-dump"]
    with state.Lock(container.folder):
        dump(arguments, container)
        if not keep:
            delete.destroy(container, container.status())
    return 0


def dump(arguments: Arguments, container: state.Container) -> None:
    spec = container.spec()
    mode = arguments["manage-cgroups-mode"]
    if mode not in criu.CGROUP_MODES:
        raise RuncError("invalid manage-cgroups-mode value")
    images = image_path(arguments)
    parent = arguments["parent-path"]
    if parent:
        if os.path.isabs(parent):
            raise RuncError("--parent-path must be relative")
        if not os.path.isdir(f"{images}/{parent}"):
            raise RuncError(f"invalid --parent-path: {images}/{parent}: not a directory")
    opened = [criu.folder(images)]
    opts = {"images_dir_fd": opened[0], **dump_options(arguments, container, spec)}
    logs = images
    try:
        if arguments["work-path"]:
            logs = os.path.abspath(arguments["work-path"])
            opened.append(criu.folder(logs))
            opts["work_dir_fd"] = opened[-1]
        path = (container.record.get("cgroup") or {}).get("path")
        if path and os.path.exists(f"{path}/cgroup.freeze"):
            opts["freeze_cgroup"] = path
        if arguments["page-server"]:
            opts["ps"] = page_server(arguments["page-server"])
        if parent:
            opts |= {"parent_img": parent, "track_mem": True}
        if arguments["lazy-pages"]:
            criu.check(lazy_pages=True)
        if arguments["pre-dump"]:
            criu.check(mem_track=True)
        else:
            opts["ext_mnt"] = external_mounts(spec, container.pid)
            # As they were given: a shell that writes elsewhere just now has them under other numbers.
            descriptors = container.record.get("external_descriptors") or standard_descriptors(container.pid)
            opts["external"] += {name for name in descriptors if name.startswith(EXTERNAL_FILE)}
            with open(f"{images}/{DESCRIPTORS}", "w", opener=private) as file:
                file.write(jsontext.dumps(descriptors))
        request(arguments, opts, logs)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def dump_options(arguments: Arguments, container: state.Container, spec: dict[str, Any]) -> dict[str, Any]:
    """criu's options that follow from the command line and the container alone."""
    return {
        "log_level": 4,
        "log_file": LOG_FILE,
        "root": container.record["rootfs"],
        "manage_cgroups": True,
        "manage_cgroups_mode": criu.CGROUP_MODES[arguments["manage-cgroups-mode"]],
        "notify_scripts": True,
        "pid": container.pid,
        "shell_job": arguments["shell-job"],
        "leave_running": arguments["leave-running"],
        "tcp_established": arguments["tcp-established"],
        "tcp_skip_in_flight": arguments["tcp-skip-in-flight"],
        "link_remap": arguments["link-remap"],
        "ext_unix_sk": arguments["ext-unix-sk"],
        "file_locks": arguments["file-locks"],
        "empty_ns": criu.empty_namespaces(arguments["empty-ns"]),
        "orphan_pts_master": True,
        "auto_dedup": arguments["auto-dedup"],
        "lazy_pages": arguments["lazy-pages"],
        "config_file": criu.configuration(container.record.get("annotations") or {}),
        "external": external_namespaces(spec),
    }


def request(arguments: Arguments, opts: dict[str, Any], logs: str) -> None:
    """Have criu do it. logs: the folder with its log, whose errors are told where it fails."""

    def notify(script: str, pid: int, descriptors: list[int]) -> None:
        if script == "status-ready" and arguments["status-fd"] >= 0:
            os.write(arguments["status-fd"], b"\0")
            os.close(arguments["status-fd"])

    try:
        with criu.Session() as session:
            # criu opens our descriptors by their number in the process that asks.
            session.request(criu.PRE_DUMP if arguments["pre-dump"] else criu.DUMP, opts, notify)
    except RuncError as error:
        raise RuncError(f"{error}{criu.log_errors(logs, LOG_FILE)}") from None


def private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
