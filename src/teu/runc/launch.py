# SPDX-License-Identifier: Apache-2.0
"""Make a container: the parent's half of create and run.

Called by teu.runc.create and teu.runc.run. The story, with the other half in teu.runc.container_init:

    parent                                      first process
    reads and validates config.json
    makes the state folder (locked), the record
    opens what must be opened from outside
    clones                                 ->   waits
    id maps, cgroup, network devices       'g'->
                                                namespaces, root, devices, terminal ('C')
    prestart, createRuntime hooks         <-'H'
                                           'g'->createContainer hooks, pivot, execs teu-runc-init
    rlimits                               <-'L'
                                           'g'->identity, seccomp ('S'), ...
    limits, record, pid file              <-'R'
                                           'f'->waits at exec.fifo (run: executes)

If anything fails in between, Launch.abort() takes back all of it.

One clone3 makes all namespaces, in the cgroup (CLONE_INTO_CGROUP): to move a process later waits for the kernel's
RCU. A user or pid namespace that is joined, or namespaces that are joined beside a new user namespace, take a second
clone (CLONE_PARENT). Root joins everything before the user namespace, others after it. The limits are set once the
child is the small C program, so that a limit of a few megabytes does not hit Python.
"""

from __future__ import annotations

import os
from _socket import (
    AF_UNIX,
    SOCK_CLOEXEC,
    SOCK_SEQPACKET,
    socket,
    socketpair,
)

from teu.linux import mounts, namespaces
from teu.linux.namespaces import (
    CLONE_NEWCGROUP,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    TYPES,
)
from teu.linux.syscalls import PR_SET_DUMPABLE, PROC_SUPER_MAGIC, fstatfs_type, prctl
from teu.oci import jsontext
from teu.runc import (
    cgroups,
    container_init,
    devices,
    hooks,
    log,
    mount_options,
    process,
    process_limits,
    rootfs,
    state,
    validator,
)
from teu.runc.descriptors import (
    close_strangers,
    connect,
    fetch_descriptor,
    listen_fds,
    passed_sockets,
    receive,
    send_descriptor,
    set_oom_score,
    standard_descriptors,
    write_pid_file,
)
from teu.runc.errors import InvalidSpec, RuncError, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

LAUNCH_FLAGS = {
    "bundle": ("b", "string", "", "path of the bundle (default: the working directory)"),
    "config": ("f", "string", "config.json", "name of the configuration in the bundle (as crun has it)"),
    "console-socket": ("", "string", "", "unix socket that receives the terminal's master"),
    "pidfd-socket": ("", "string", "", "unix socket that receives a pidfd of the first process"),
    "pid-file": ("", "string", "", "file to write the process id to"),
    "no-pivot": ("", "bool", False, "do not use pivot_root (for a root on a ramdisk)"),
    "no-new-keyring": ("", "bool", False, "leave the caller's session keyring to the container"),
    "preserve-fds": ("", "int", 0, "pass N more descriptors to the container (stdio + $LISTEN_FDS + N)"),
}

_DEFAULT_VERSION = "1.0.0"


def read_spec(bundle: str, name: str) -> tuple[dict[str, Any], bytes]:
    """The bundle's config.json (or crun's --config) and its bytes."""
    path = os.path.join(bundle, name)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise RuncError(f"JSON specification file {name} not found") from None
    try:
        spec = jsontext.loads(data)
    except ValueError as error:
        raise InvalidSpec(f"{path}: {error}") from None
    if not isinstance(spec, dict):
        raise InvalidSpec(f"{path}: not an object")
    return spec, data


class Launch:
    """One container in the making. Use: open, build, and abort() if either failed."""

    def __init__(self, arguments: Arguments, settings: Settings, id: str, with_fifo: bool) -> None:
        self.arguments = arguments
        self.settings = settings
        self.id = id
        self.with_fifo = with_fifo
        self.pid = 0
        self.console = -1  # the terminal's master, where no console socket takes it
        self.container: state.Container | None = None
        self.lock: state.Lock | None = None
        self.cgroup: cgroups.Cgroup | None = None
        self.sync: socket | None = None
        self.console_connection: socket | None = None
        self.rootless = os.geteuid() != 0
        self.in_user_namespace: bool | None = None
        self.in_foreground = False
        self.spec: dict[str, Any] = {}

    # -- before anything is touched --

    def read(self, detached: bool) -> None:
        """Read and check everything that can be checked without touching anything."""
        arguments = self.arguments
        state.check_id(self.id)
        self.pid_file = os.path.abspath(arguments["pid-file"]) if arguments["pid-file"] else ""
        self.bundle = os.path.abspath(arguments["bundle"] or ".")
        for name in ("console-socket", "pidfd-socket"):
            if arguments[name]:
                arguments.options[name] = os.path.abspath(arguments[name])
        try:
            os.chdir(self.bundle)
        except OSError as error:
            raise RuncError(f"chdir {self.bundle}: {os.strerror(error.errno or 0).lower()}") from None
        self.spec, self.spec_bytes = read_spec(self.bundle, arguments["config"])
        spec = self.spec
        self.without_process = not spec.get("process")
        if self.without_process:
            # The specification lets such a container be created, and makes `start` an error.
            if not self.with_fifo:
                raise InvalidSpec("process property must not be empty")
            spec["process"] = {"args": ["/"], "cwd": "/"}
        validator.check(spec, self.rootless)
        root = (spec.get("root") or {}).get("path") or ""
        self.rootfs = os.path.realpath(root if root.startswith("/") else f"{self.bundle}/{root}")
        if not os.path.isdir(self.rootfs):
            raise InvalidSpec(f"root.path: {self.rootfs}: no such directory")
        for mount in spec.get("mounts") or ():
            # as runc: a destination may be given as the host sees it
            if mount["destination"].startswith(self.rootfs + "/"):
                mount["destination"] = mount["destination"][len(self.rootfs) :]
        terminal = bool(spec["process"].get("terminal"))
        if detached and terminal and not arguments["console-socket"]:
            raise RuncError("cannot allocate tty if runc will detach without setting console socket")
        if arguments["console-socket"] and not (detached and terminal):
            raise RuncError("cannot use console socket if runc will not detach or allocate tty")
        self.listen = listen_fds() or passed_sockets(spec.get("annotations") or {})
        self.preserved = self.listen + max(0, arguments["preserve-fds"])
        close_strangers(self.preserved)
        if self.listen:
            spec["process"]["env"] = [
                *(spec["process"].get("env") or ()),
                f"LISTEN_FDS={self.listen}",
                "LISTEN_PID=1",
            ]

    # -- the state folder --

    def claim(self) -> None:
        """Make the state folder: from here on the id is ours, and delete can find what we leave."""
        root = self.settings.root
        folder = state.folder_of(root, self.id)
        try:
            os.mkdir(folder, 0o711)
        except FileExistsError:
            raise RuncError("container with given ID already exists") from None
        except FileNotFoundError:
            os.makedirs(root, 0o700, exist_ok=True)
            try:
                os.mkdir(folder, 0o711)
            except FileExistsError:
                raise RuncError("container with given ID already exists") from None
        try:
            self.lock = state.Lock(folder)
            linux = self.spec.get("linux") or {}
            plan = cgroups.plan(
                linux.get("cgroupsPath") or "", self.id, self.settings.systemd_cgroup, self._rootless_cgroups()
            )
            self.container = state.Container(
                folder,
                {
                    "version": state.STATE_VERSION,
                    "id": self.id,
                    "ociVersion": self.spec.get("ociVersion") or _DEFAULT_VERSION,
                    "init_process_pid": 0,
                    "init_process_start": 0,
                    "bundle": self.bundle,
                    "rootfs": self.rootfs,
                    "created": state.now_rfc3339(),
                    "annotations": self.spec.get("annotations") or {},
                    "cgroup": plan,
                    "rootless": self.rootless,
                    "systemd_cgroup": self.settings.systemd_cgroup,
                    "no_new_keyring": self.arguments["no-new-keyring"],
                    "ready": False,
                    "own_pid_namespace": any(
                        namespace["type"] == "pid" and not namespace.get("path")
                        for namespace in linux.get("namespaces") or ()
                    ),
                    "without_process": self.without_process,
                },
            )
            self.container.save()
        except BaseException:
            self._remove_folder(folder)
            raise
        if os.environ.get("NOTIFY_SOCKET"):
            from teu.runc import notify  # 0.05 ms

            notify.prepare(self.spec, folder)
        fd = os.open(folder + "/config.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(fd, self.spec_bytes)
        os.close(fd)

    @staticmethod
    def _remove_folder(folder: str) -> None:
        for name in os.listdir(folder):
            if name == "notify":
                Launch._remove_folder(f"{folder}/{name}")
            else:
                os.unlink(f"{folder}/{name}")
        os.rmdir(folder)

    def _rootless_cgroups(self) -> bool:
        """As runc decides: also "root" of a user namespace, as podman starts us, may have no cgroups but the user's."""
        if self.settings.rootless == "auto":
            if self.in_user_namespace is None:
                self.in_user_namespace = self.rootless or namespaces.in_user_namespace()
            return self.in_user_namespace
        return self.settings.rootless in ("true", "1", "t")

    # -- the first process --

    def build(self) -> None:
        """Clone the first process and bring it to the point where only `f` is missing."""
        plan = self._plan()
        assert self.container is not None
        self.sync = plan.parent_sync
        makes_user_namespace = bool((plan.first_flags | max(plan.second_flags, 0)) & CLONE_NEWUSER)
        if not (self.rootless and makes_user_namespace):
            # a process that shares the child's pid namespace sees the child from its first moment (CVE-2016-9962)
            prctl(PR_SET_DUMPABLE, 0)
        pid = self._clone(plan)
        if pid == 0:
            container_init.main(plan)
        self.pid = pid
        plan.sync.close()
        self._record_pid()
        self._close_plan(plan)
        if makes_user_namespace and plan.second_flags < 0:
            self._write_id_maps()
        self._set_oom_score()
        if not self.born_in_cgroup:
            self._enter_cgroup(self.pid)
        self._move_network_devices()
        self._send(b"g")
        self._meanwhile()
        self._converse()
        if plan.nodes:
            devices.remove_nodes(len(plan.nodes), self.container.folder)

    def _meanwhile(self) -> None:
        """What need not wait for the child: it builds its root, we load the device program (1 ms of verifier)."""
        self.devices_set = False
        if self.cgroup is not None and self.cgroup.driver == cgroups.CGROUPFS and not self._rootless_cgroups():
            from teu.linux import bpf  # 0.1 ms, while the child is busy

            try:
                resources = (self.spec.get("linux") or {}).get("resources") or {}
                bpf.set_devices(self.cgroup.path, cgroups.device_rules(resources))
                self.devices_set = True
            except (bpf.BpfError, OSError):
                pass  # _finish tries again, and tells the error
        if self.in_foreground:
            # They are needed at the end; now the child is busy: 0.2 ms.
            from teu.runc import delete, foreground

            del delete, foreground

    def _clone(self, plan: container_init.Plan) -> int:
        """Into the cgroup right away where that is possible: with a plain path that has been made before."""
        assert self.container is not None
        self.born_in_cgroup = False
        if self.container.record["cgroup"]["driver"] == cgroups.CGROUPFS:
            self._enter_cgroup(0)
            assert self.cgroup is not None
            if self.cgroup.driver == cgroups.CGROUPFS:
                folder = self.cgroup.open()
                try:
                    pid = namespaces.clone(plan.first_flags, folder)
                    self.born_in_cgroup = True
                    return pid
                except OSError:
                    pass  # a threaded cgroup, or one that we may not enter: moving into it gives the better error
                finally:
                    os.close(folder)
        return namespaces.clone(plan.first_flags)

    def _record_pid(self) -> None:
        assert self.container is not None
        self.container.record["init_process_pid"] = self.pid
        self.container.record["init_process_start"] = state.process_stat(self.pid)[1]
        self.container.save()

    def _plan(self) -> container_init.Plan:
        """Open what must be opened from outside, and decide what the child is to do."""
        assert self.container is not None
        plan = container_init.Plan()
        plan.spec, plan.id, plan.bundle, plan.rootfs = self.spec, self.id, self.bundle, self.rootfs
        plan.parent_sync, plan.sync = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        plan.early_joins, plan.joins, plan.sources, plan.nodes, plan.asked = [], [], {}, {}, set()
        new = self._open_namespaces(plan)
        self._order_namespaces(plan, new)
        plan.setgroups = self._can_setgroups(plan)
        plan.procfs = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if fstatfs_type(plan.procfs) != PROC_SUPER_MAGIC:
            raise RuncError("/proc of the host is not a procfs")
        plan.program = process.program()
        plan.last_step = self._last_step(plan)
        plan.no_pivot = self.arguments["no-pivot"]
        plan.cgroup_path = (self.container.record["cgroup"] or {}).get("path") or ""
        plan.state = self.container.state("creating")
        if self.with_fifo:
            fifo = self.container.fifo
            os.mkfifo(fifo, 0o600)
            # Open for reading and writing: so the container waits in its read although no writer has come yet.
            plan.fifo = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
        if self.arguments["console-socket"]:
            self.console_connection = connect(self.arguments["console-socket"])
        own_mounts = bool((plan.first_flags | max(plan.second_flags, 0)) & CLONE_NEWNS)
        if own_mounts:
            self._open_sources(plan)
            has_devices = (self.spec.get("linux") or {}).get("devices")
            if plan.user_namespace and has_devices and not self.rootless:
                plan.nodes = devices.open_nodes(self.spec, self.container.folder)
        return plan

    def _open_namespaces(self, plan: container_init.Plan) -> int:
        """Open the namespaces to join. Gives the CLONE_* flags of those to make."""
        new = 0
        for namespace in (self.spec.get("linux") or {}).get("namespaces") or ():
            flag, name = TYPES[namespace["type"]]
            path = namespace.get("path")
            if not path:
                new |= flag
                continue
            try:
                fd = namespaces.open_namespace(path, flag)
            except (OSError, ValueError) as error:
                reason = text_of(error).removeprefix(path + ": ")
                raise RuncError(f"linux.namespaces: {namespace['type']}: {path}: {reason}") from None
            if flag == CLONE_NEWUSER:
                plan.user_namespace = True
                if namespaces.same_namespace(path, name):
                    os.close(fd)
                    plan.user_namespace = False
                    continue
            (plan.early_joins if flag in (CLONE_NEWUSER, CLONE_NEWPID) else plan.joins).append((flag, fd))
        plan.user_namespace = plan.user_namespace or bool(new & CLONE_NEWUSER)
        return new

    def _order_namespaces(self, plan: container_init.Plan, new: int) -> None:
        """Decide which clone makes the `new` namespaces, and in which order the others are entered."""
        plan.late_flags = new & (CLONE_NEWCGROUP | CLONE_NEWTIME)
        new &= ~plan.late_flags
        if plan.user_namespace and not self.rootless:
            # Once in the user namespace there is no right to enter a namespace that another one owns (a pod's
            # network, say); before, root has it. Mounts come later: our files are needed until then.
            plan.early_joins += [join for join in plan.joins if join[0] != CLONE_NEWNS]
            plan.joins = [join for join in plan.joins if join[0] == CLONE_NEWNS]
        if plan.early_joins:
            # Root enters the user namespace last. Other users have rights only in it, so they enter it first.
            plan.early_joins.sort(key=lambda join: (join[0] == CLONE_NEWUSER) != self.rootless)
            plan.first_flags, plan.second_flags = 0, new
        else:
            plan.first_flags = new

    def _last_step(self, plan: container_init.Plan) -> process.LastStep:
        described = self.spec["process"]
        sets = process.capability_sets(described, all_there=plan.user_namespace)
        last = process.LastStep(described, sets)
        last.preserved = self.preserved
        last.flags = process.FLAG_SETGROUPS if plan.setgroups else 0
        last.read_linux(self.spec.get("linux") or {})
        if last.seccomp is not None:
            log.debug(f"seccomp filter flags: {last.seccomp[1]}")
        if not self.arguments["no-new-keyring"]:
            # exec looks the keyring up as the user who made it. In a user namespace that user is not the host's root,
            # so every user must be able to find it.
            search = process.KEY_OTHER_SEARCH if plan.user_namespace else process.KEY_USER_SEARCH
            last.keyring = (f"_ses.{self.id}", search)
        last.program_path = "/" if self.without_process else None
        return last

    def _can_setgroups(self, plan: container_init.Plan) -> bool:
        """Not where an unprivileged user maps a single group: the kernel wants setgroups denied there."""
        if not plan.user_namespace or not self.rootless:
            return True
        return bool((self.spec.get("linux") or {}).get("gidMappings")) and not self._maps_own_group_only()

    def _maps_own_group_only(self) -> bool:
        maps = (self.spec.get("linux") or {}).get("gidMappings") or []
        return len(maps) == 1 and maps[0]["size"] == 1 and maps[0]["hostID"] == os.getegid()

    def _open_sources(self, plan: container_init.Plan) -> None:
        """Bind sources that only we can reach (root, for a user namespace), and those with an id map."""
        for index, mount in enumerate(self.spec.get("mounts") or ()):
            options = mount_options.parse(mount.get("options") or [])
            if options.remount:
                continue
            mapped = bool(mount.get("uidMappings") or options.idmap)
            if mapped:
                # Also where the child asks for it later: then a helper of ours is in the container's mount namespace.
                from teu.runc import idmap  # 0.06 ms
            if (mapped or plan.user_namespace) and (mount.get("source") or "").startswith(self.rootfs + "/"):
                # An earlier mount may put the source there: the child asks for it after that mount.
                plan.asked.add(index)
                continue
            if mapped:
                plan.sources[index] = idmap.open_mapped(mount, options, self.bundle, self.spec)
            elif plan.user_namespace and not self.rootless and rootfs.is_bind(mount, options):
                plan.sources[index] = rootfs.open_bind_source(mount, options, self.bundle)
            else:
                continue
            propagation = (self.spec.get("linux") or {}).get("rootfsPropagation") or ""
            if not options.propagation and "shared" not in propagation:
                # As the sources that the child opens in its own tree: what is mounted there does not reach the host.
                mounts.mount_setattr(plan.sources[index], 0, 0, mounts.MS_SLAVE, recursive=True)

    @staticmethod
    def _close_plan(plan: container_init.Plan) -> None:
        """The child has its own copies."""
        for fd in (plan.procfs, plan.program, plan.fifo, *plan.sources.values(), *plan.nodes.values()):
            if fd >= 0:
                os.close(fd)
        for _flag, fd in (*plan.early_joins, *plan.joins):
            os.close(fd)

    def _write_id_maps(self) -> None:
        from teu.runc import idmap  # 0.06 ms

        linux = self.spec.get("linux") or {}
        idmap.write_maps(
            self.pid,
            linux.get("uidMappings") or [],
            linux.get("gidMappings") or [],
            self.rootless,
            self._maps_own_group_only(),
        )

    def _set_oom_score(self) -> None:
        value = self.spec["process"].get("oomScoreAdj")
        if value is None:
            return
        set_oom_score(self.pid, value, self.rootless)

    def _enter_cgroup(self, pid: int) -> None:
        """Make the cgroup, with pid in it (0: still empty)."""
        assert self.container is not None
        if self.cgroup is not None:
            self.cgroup.add(pid)
            return
        linux = self.spec.get("linux") or {}
        self.cgroup = cgroups.create(
            linux.get("cgroupsPath") or "",
            self.id,
            self.settings.systemd_cgroup,
            linux.get("resources"),
            pid,
            self._rootless_cgroups(),
            self.spec.get("annotations") or {},
            self.container.record["cgroup"],
        )
        if self.cgroup.record != self.container.record["cgroup"]:
            self.container.record["cgroup"] = self.cgroup.record
            self.container.save()

    def _move_network_devices(self) -> None:
        linux = self.spec.get("linux") or {}
        moving = linux.get("netDevices") or {}
        if moving:
            from teu.runc import network_devices  # 0.08 ms

            # The namespace that the child is to join, which it has not done yet.
            path = next((n.get("path") for n in linux.get("namespaces") or () if n["type"] == "network"), None)
            network_devices.move(moving, path or f"/proc/{self.pid}/ns/net")

    def _send(self, word: bytes) -> None:
        assert self.sync is not None
        try:
            self.sync.send(word)
        except BrokenPipeError:
            pass  # the child died: the next message that we read says why

    def _converse(self) -> None:
        """Answer the child until it is ready."""
        assert self.sync is not None and self.container is not None
        while True:
            message, fd = receive(self.sync)
            kind = message[:1]
            if kind == b"P":
                self._second_process(int.from_bytes(message[1:5], "little"))
                self._send(b"g")
            elif kind == b"C":
                self._take_console(fd)
                self._send(b"g")
            elif kind == b"M":
                self._mount_for(os.fsdecode(message[1:]))
            elif kind == b"H":
                if self.spec.get("hooks"):
                    current = self.container.state("creating")
                    hooks.run_all(self.spec, "prestart", {**current, "status": state.CREATED})
                    hooks.run_all(self.spec, "createRuntime", current)
                self._send(b"g")
            elif kind == b"S":
                self._pass_listener(int.from_bytes(message[1:5], "little"))
                self._send(b"g")
            elif kind == b"L":
                process_limits.apply(self.pid, self.spec["process"])
                self._send(b"g")
            elif kind == b"R":
                self._finish()
                return
            elif kind == b"E":
                raise RuncError(
                    "unable to start container process: error during container init: " + process.failure_text(message)
                )
            else:
                raise RuncError("unable to start container process: container init died: " + self._reap_text())

    def _second_process(self, pid: int) -> None:
        os.waitpid(self.pid, 0)
        self.pid = pid
        self._record_pid()
        linux = self.spec.get("linux") or {}
        new_user = any(n["type"] == "user" and not n.get("path") for n in linux.get("namespaces") or ())
        if new_user:
            self._write_id_maps()

    def _take_console(self, fd: int) -> None:
        size = self.spec["process"].get("consoleSize")
        if size:
            from teu.linux import terminals  # 0.04 ms

            terminals.set_size(fd, size["height"], size["width"])
        if self.console_connection is not None:
            send_descriptor(self.console_connection, b"/dev/ptmx", fd)
            self.console_connection.close()
            os.close(fd)
        else:
            from teu.linux import terminals  # 0.04 ms

            terminals.mirror(fd)
            self.console = fd

    def _mount_for(self, kind: str) -> None:
        """Mount a proc or sysfs of the child's namespaces, or open a bind source there, with our rights."""
        assert self.sync is not None
        what, _, index = kind.partition(":")
        flag, name = {
            "proc": (CLONE_NEWPID, "pid"),
            "sysfs": (CLONE_NEWNET, "net"),
            "bind": (CLONE_NEWNS, "mnt"),
        }[what]
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        helper = namespaces.clone(0)
        if helper == 0:
            try:
                namespaces.setns(os.open(f"/proc/{self.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), flag)
                inner = namespaces.clone(0) if flag == CLONE_NEWPID else 0
                if inner:
                    os.waitpid(inner, 0)
                elif index:
                    send_descriptor(theirs, b"m", self._open_one(int(index)))
                else:
                    send_descriptor(theirs, b"m", mounts.new_filesystem(kind, kind, []))
            finally:
                os._exit(0)
        theirs.close()
        os.waitpid(helper, 0)
        _, fd = receive(ours)
        ours.close()
        if fd < 0:
            self._send(b"g")
            return
        send_descriptor(self.sync, b"g", fd)
        os.close(fd)

    def _open_one(self, index: int) -> int:
        mount = self.spec["mounts"][index]
        options = mount_options.parse(mount.get("options") or [])
        if mount.get("uidMappings") or options.idmap:
            from teu.runc import idmap  # 0.06 ms

            return idmap.open_mapped(mount, options, self.bundle, self.spec)
        return rootfs.open_bind_source(mount, options, self.bundle)

    def _pass_listener(self, number: int) -> None:
        assert self.container is not None
        fd = fetch_descriptor(self.pid, number)
        from teu.runc import seccomp_notify  # 0.2 ms

        seccomp_notify.send(fd, self.spec["linux"]["seccomp"], self.container.state("creating"))
        os.close(fd)

    def _finish(self) -> None:
        """The child is teu-runc-init now, small and quiet: limits, record, pid file."""
        assert self.cgroup is not None and self.container is not None
        linux = self.spec.get("linux") or {}
        self.cgroup.apply(linux.get("resources"), devices=not self.devices_set, rootless=self._rootless_cgroups())
        if linux.get("intelRdt"):
            from teu.runc import intel_rdt  # 0.05 ms

            self.container.record["intel_rdt"] = intel_rdt.apply(linux["intelRdt"], self.id, self.pid)
        self._delegate_cgroup(linux)
        if self.arguments["pidfd-socket"]:
            pidfd = os.pidfd_open(self.pid)
            with_socket = connect(self.arguments["pidfd-socket"])
            send_descriptor(with_socket, b"pidfd", pidfd)
            with_socket.close()
            os.close(pidfd)
        if self.pid_file:
            write_pid_file(self.pid_file, self.pid)
        self.container.record["external_descriptors"] = standard_descriptors(self.pid)
        self.container.record["ready"] = True
        self.container.save()

    def _delegate_cgroup(self, linux: dict[str, Any]) -> None:
        """runtime-spec, "Cgroup ownership": its user's, if it has a namespace of its own and mounts it writable."""
        assert self.cgroup is not None
        owner: int | None = (self.spec["process"].get("user") or {}).get("uid") or 0
        namespaces = {n["type"]: n.get("path") for n in linux.get("namespaces") or ()}
        if self.rootless or namespaces.get("cgroup", "none"):
            return
        if "user" in namespaces:
            maps = linux.get("uidMappings") or ()
            owner = next(
                (m["hostID"] + owner - m["containerID"] for m in maps if 0 <= owner - m["containerID"] < m["size"]),
                None,
            )
        writable = any(
            m.get("type") in ("cgroup", "cgroup2") and "ro" not in (m.get("options") or ())
            for m in self.spec.get("mounts") or ()
            if rootfs.clean(m["destination"]) == "/sys/fs/cgroup"
        )
        if writable and owner:
            self.cgroup.delegate(owner)

    def release(self) -> None:
        """Let the first process go on, and the container to others."""
        assert self.sync is not None and self.lock is not None
        self._send(b"f")
        self.lock.__exit__()

    def _reap_text(self) -> str:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if not pid:
                os.kill(self.pid, 9)
                _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            return "gone"
        self.pid = 0
        code = os.waitstatus_to_exitcode(status)
        return f"exit status {code}" if code >= 0 else f"killed by signal {-code}"

    def abort(self) -> None:
        """Undo everything, in the reverse order. Errors on the way are warnings: the first one counts."""
        if self.console_connection is not None:
            self.console_connection.close()
        if self.pid:
            try:
                os.kill(self.pid, 9)
                os.waitpid(self.pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
        if self.container is None:
            return
        if self.container.record.get("intel_rdt"):
            from teu.runc import intel_rdt  # 0.05 ms

            intel_rdt.remove(self.container.record["intel_rdt"])
        try:
            if self.cgroup is not None:
                self.cgroup.kill()
            cgroups.load(self.container.record["cgroup"]).delete()
        except (OSError, ValueError) as error:
            log.warning(f"cannot remove the cgroup: {error}")
        if self.pid and self.container.record.get("init_process_pid"):
            hooks.run_all_and_warn(self.spec, "poststop", self.container.state(state.STOPPED))
        try:
            self._remove_folder(self.container.folder)
        except OSError as error:
            log.warning(f"cannot remove {self.container.folder}: {error}")
