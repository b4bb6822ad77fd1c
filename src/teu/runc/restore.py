# SPDX-License-Identifier: Apache-2.0
"""teu-runc restore: bring back a container that `checkpoint` saved, in a new state folder.

criu makes the first process, as a sibling of its own and so our child, with its namespaces, mounts
and descriptors. Ours are the state folder, the mount points in the root file system, the cgroup
(criu is put into it before it begins, and its children are born there), and the hooks.
"""

from __future__ import annotations

import os
from _socket import sethostname

from teu.linux import cgroup_files, inside, mounts
from teu.linux.namespaces import CLONE_NEWUTS, setns
from teu.linux.syscalls import NR_setdomainname, syscall
from teu.oci import jsontext
from teu.runc import cgroups, criu, delete, hooks, launch, log, mount_options, restored, rootfs, state
from teu.runc.checkpoint import DESCRIPTORS, image_path, mount_target
from teu.runc.descriptors import EXTERNAL_FILE, connect, send_descriptor, standard_descriptors, write_pid_file
from teu.runc.errors import RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "restore a container from a previous checkpoint"
USAGE = "<container-id>"
FLAGS: dict[str, tuple[str, str, object, str]] = {
    # create's, of which some have no meaning to criu.
    **launch.LAUNCH_FLAGS,
    "console-socket": ("", "string", "", "unix socket that receives the terminal's master"),
    "image-path": ("", "string", "", "path to criu image files for restoring (default: ./checkpoint)"),
    "work-path": ("", "string", "", "path for saving work files and logs"),
    "tcp-established": ("", "bool", False, "allow open tcp connections"),
    "ext-unix-sk": ("", "bool", False, "allow external unix sockets"),
    "shell-job": ("", "bool", False, "allow shell jobs"),
    "file-locks": ("", "bool", False, "handle file locks, for safety"),
    "manage-cgroups-mode": ("", "string", "", "cgroups mode: soft|full|strict|ignore (default: soft)"),
    "bundle": ("b", "string", "", "path to the root of the bundle directory"),
    "detach": ("d", "bool", False, "detach from the container's process"),
    "pid-file": ("", "string", "", "specify the file to write the process id to"),
    "no-subreaper": ("", "bool", False, "disable the use of the subreaper used to reap reparented processes"),
    "empty-ns": ("", "strings", "", "create a namespace, but don't restore its properties"),
    "auto-dedup": ("", "bool", False, "enable auto deduplication of memory images"),
    "lazy-pages": ("", "bool", False, "use userfaultfd to lazily restore memory pages"),
    "lsm-profile": ("", "string", "", "LSM profile to be used during restore in the form of TYPE:NAME"),
    "lsm-mount-context": ("", "string", "", "LSM mount context to be used during restore"),
}
ARGUMENTS = (1, 1)

LOG_FILE = "restore.log"
_SIGKILL = 9


def main(arguments: Arguments, settings: Settings) -> int:
    if os.geteuid() != 0:
        log.warning("restore is untested with rootless containers")
    images = image_path(arguments)
    logs = os.path.abspath(arguments["work-path"]) if arguments["work-path"] else images
    if arguments["manage-cgroups-mode"] not in criu.CGROUP_MODES:
        raise RuncError("invalid manage-cgroups-mode value")
    if not os.path.isdir(images):
        raise RuncError(f"{images}: no such directory: there is no checkpoint to restore")
    making = Restore(arguments, settings, arguments.positional[0], with_fifo=False)
    making.read(detached=bool(arguments["detach"]))
    making.claim()
    try:
        making.restore(images, logs)
    except BaseException:
        making.abort()
        raise
    assert making.lock is not None
    making.lock.__exit__()
    if arguments["detach"]:
        return 0
    return making.supervise()


def _in_uts(path: str, act: Callable[[], None]) -> None:
    """Do something in another UTS namespace. RuncError."""
    try:
        own = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        try:
            other = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(other, CLONE_NEWUTS)
            finally:
                os.close(other)
            try:
                act()
            finally:
                setns(own, CLONE_NEWUTS)
        finally:
            os.close(own)
    except OSError as error:
        raise RuncError(f"linux.namespaces: uts: {path}: {error.strerror}") from None


class Restore(launch.Launch):
    """A container in the making, from images."""

    placed = ""  # its cgroup, from the root of the hierarchy
    criu = 0
    uts = ""  # path of a namespace that it joins, and what the host is called there
    names = ("", "")

    def restore(self, images: str, logs: str) -> None:
        assert self.container is not None
        arguments = self.arguments
        opened = [criu.folder(images)]
        opts: dict[str, Any] = {
            "images_dir_fd": opened[0],
            "log_level": 4,
            "log_file": LOG_FILE,
            "evasive_devices": True,
            "rst_sibling": True,
            "manage_cgroups": True,
            "manage_cgroups_mode": criu.CGROUP_MODES[arguments["manage-cgroups-mode"]],
            "notify_scripts": True,
            "shell_job": arguments["shell-job"],
            "ext_unix_sk": arguments["ext-unix-sk"],
            "tcp_established": arguments["tcp-established"],
            "file_locks": arguments["file-locks"],
            "empty_ns": criu.empty_namespaces(arguments["empty-ns"]),
            "orphan_pts_master": True,
            "auto_dedup": arguments["auto-dedup"],
            "lazy_pages": arguments["lazy-pages"],
            "config_file": criu.configuration(self.spec.get("annotations") or {}),
            "lsm_profile": arguments["lsm-profile"] or None,
            "lsm_mount_context": arguments["lsm-mount-context"] or None,
        }
        if logs != images:
            opened.append(criu.folder(logs))
            opts["work_dir_fd"] = opened[-1]
        if arguments["console-socket"]:
            self.console_connection = connect(arguments["console-socket"])
        inherited = self._namespaces(opts)
        self._standard_descriptors(opts, images)
        # criu wants a root that is a mount of its own, with nothing mounted over its parent.
        root = f"{self.container.folder}/criu-root"
        os.mkdir(root, 0o755)
        try:
            mounts.mount(self.rootfs, root, None, mounts.MS_BIND | mounts.MS_REC)
            try:
                opts["root"] = root
                self._mounts(opts, root)
                self._run_criu(opts, inherited, logs)
            finally:
                mounts.umount2(root, mounts.MNT_DETACH)
        finally:
            os.rmdir(root)
            for descriptor in [*opened, *inherited]:
                os.close(descriptor)

    def _namespaces(self, opts: dict[str, Any]) -> list[int]:
        """Namespaces by path: network and pid by descriptor, as they were dumped; others are joined."""
        inherited: list[int] = []
        opts["inherit_fd"], opts["join_ns"] = [], []
        for namespace in (self.spec.get("linux") or {}).get("namespaces") or []:
            path, kind = namespace.get("path"), namespace["type"]
            if not path:
                continue
            if kind in ("network", "pid"):
                try:
                    inherited.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                except OSError as error:
                    raise RuncError(f"linux.namespaces: {kind}: {path}: {error.strerror}") from None
                number = criu.SOCKET + len(inherited)
                opts["inherit_fd"].append({"key": criu.external_key(kind), "fd": number})
            elif kind == "cgroup":
                raise RuncError("linux.namespaces: criu cannot join a cgroup namespace by its path")
            else:
                name = {"mount": "mnt"}.get(kind, kind)
                if kind == "uts":
                    self.uts = path
                    _in_uts(path, self._note_names)
                opts["join_ns"].append({"ns": name, "ns_file": path})
        return inherited

    def _standard_descriptors(self, opts: dict[str, Any], images: str) -> None:
        """Pipes that the first process had as 0, 1 and 2 become ours."""
        assert self.container is not None
        try:
            names = jsontext.load_file(f"{images}/{DESCRIPTORS}")
        except FileNotFoundError:
            raise RuncError(f"{images}/{DESCRIPTORS} is missing: is this a checkpoint?") from None
        except ValueError as error:
            raise RuncError(str(error)) from None
        if not isinstance(names, list) or len(names) > 3 or not all(isinstance(name, str) for name in names):
            # What comes behind these three are criu's own, and ours.
            raise RuncError(f"{images}/{DESCRIPTORS} is damaged: it does not have the names of three descriptors")
        own = standard_descriptors(os.getpid())
        for number, name in enumerate(names):
            if "pipe:" in name or name.startswith(EXTERNAL_FILE):
                opts["inherit_fd"].append({"key": name, "fd": number})
                names[number] = own[number]
        self.container.record["external_descriptors"] = names

    def _mounts(self, opts: dict[str, Any], path: str) -> None:
        """Make the mount points, and tell criu what of the host is to be mounted where."""
        external = {}
        on_tmpfs: list[str] = []
        root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for mount in self.spec.get("mounts") or []:
                destination = os.path.normpath("/" + mount["destination"].lstrip("/"))
                if mount.get("type") in ("cgroup", "cgroup2"):
                    continue
                options = mount_options.parse(mount.get("options") or [])
                bind = rootfs.is_bind(mount, options)
                source = mount.get("source") or ""
                if bind and not source.startswith("/"):
                    source = f"{self.bundle}/{source}"
                if not any(destination.startswith(folder + "/") for folder in on_tmpfs):
                    # What lies on a tmpfs comes back with the tmpfs.
                    kind = "file" if bind and not os.path.isdir(source) else "dir"
                    os.close(inside.make_in_root(root, mount["destination"], kind))
                if mount.get("type") == "tmpfs":
                    on_tmpfs.append(destination)
                if bind:
                    external[mount_target(root, mount["destination"])] = source
        finally:
            os.close(root)
        linux = self.spec.get("linux") or {}
        if linux.get("maskedPaths"):
            external["/dev/null"] = "/dev/null"
        names = ("null", "zero", "full", "random", "urandom", "tty")
        for device in [*(d["path"] for d in linux.get("devices") or []), *(f"/dev/{name}" for name in names)]:
            external.setdefault(device, device)
        opts["ext_mnt"] = [{"key": key, "val": value} for key, value in external.items()]

    def _run_criu(self, opts: dict[str, Any], inherited: list[int], logs: str) -> None:
        assert self.container is not None
        linux = self.spec.get("linux") or {}
        rootless = self._rootless_cgroups()
        try:
            with criu.Session(inherited) as session:
                self.cgroup = cgroups.create(
                    linux.get("cgroupsPath") or "",
                    self.id,
                    self.settings.systemd_cgroup,
                    linux.get("resources"),
                    session.pid,
                    rootless,
                    self.spec.get("annotations") or {},
                    self.container.record["cgroup"],
                )
                self.cgroup.apply(linux.get("resources"), rootless=rootless)
                self.criu, self.placed = session.pid, cgroup_files.own(session.pid)
                opts["cg_root"] = [{"ctrl": "", "path": self.placed}]
                response = session.request(criu.RESTORE, opts, self._notify)
                self.pid = self.pid or int((response.get("restore") or {}).get("pid") or 0)
        except RuncError as error:
            raise RuncError(f"{error}{criu.log_errors(logs, LOG_FILE)}") from None
        if not self.pid:
            raise RuncError("criu restored no process")

    def _notify(self, script: str, pid: int, descriptors: list[int]) -> None:
        assert self.container is not None
        if script == "setup-namespaces":
            current = {**self.container.state("creating"), "pid": pid}
            hooks.run_all(self.spec, "prestart", current)
            hooks.run_all(self.spec, "createRuntime", current)
        elif script == "post-restore":
            self.pid = pid
            if self.uts:
                # criu joins it and gives it the names that were saved; it is others', too.
                _in_uts(self.uts, self._name_again)
            self.container.record["ready"] = True
            self._record_pid()
            if self.pid_file:
                write_pid_file(self.pid_file, pid)
        elif script == "pre-resume" and (self.spec.get("annotations") or {}).get(restored.CONFINED) == "true":
            self._confine()
        elif script == "orphan-pts-master" and descriptors:
            if self.console_connection is None:
                raise RuncError("the container had a terminal: --console-socket is needed")
            send_descriptor(self.console_connection, b"/dev/ptmx", descriptors[0])

    def _note_names(self) -> None:
        found = []
        for name in ("hostname", "domainname"):
            with open(f"/proc/sys/kernel/{name}", errors="surrogateescape") as file:
                found.append(file.read().rstrip("\n"))
        self.names = (found[0], found[1])

    def _name_again(self) -> None:
        hostname, domainname = self.names
        sethostname(hostname)
        name = os.fsencode(domainname)
        syscall("setdomainname", NR_setdomainname, name, len(name))

    def _confine(self) -> None:
        """Let no process go on that has more than the specification gives; criu holds all of them still."""
        family = restored.family(self.pid)
        try:
            restored.check(self.spec, family, self.placed)
        except BaseException:
            for pid in (*family, self.criu):  # it would wait for those that are gone
                os.kill(pid, _SIGKILL)
            raise

    def supervise(self) -> int:
        """Wait for the restored process, pass signals on, and clean up after it, as run does."""
        import signal  # 4 ms, and only in the foreground

        def forward(number: int, _: object) -> None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
            signal.signal(number, forward)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        assert self.container is not None
        with state.Lock(self.container.folder):
            delete.destroy(self.container, state.STOPPED)
        return code if code >= 0 else 128 - code
