# SPDX-License-Identifier: Apache-2.0
"""The task API: containerd.task.v2.Task and its twin v3, over the containers of one shim.

Each method is a coroutine from request to response (dicts as in teu.ttrpc.messages); StatusError is what the
client is told.  Promises: events go out in the order of what happened; every exit is told once; a
container's own exit is told after those of its execs.
"""

from __future__ import annotations

import os

from teu.linux import signals
from teu.oci import jsontext
from teu.shim import cgroup, placement, rootfs
from teu.shim.loop import EPOLLPRI, Lock
from teu.shim.process import Exec, Init, Process, check_exec_id
from teu.shim.runtime import Before, Runtime, RuntimeFailed
from teu.shim.sandbox import Sandbox
from teu.ttrpc import messages as m
from teu.ttrpc.status import (
    ABORTED,
    ALREADY_EXISTS,
    CANCELLED,
    DEADLINE_EXCEEDED,
    FAILED_PRECONDITION,
    INTERNAL,
    INVALID_ARGUMENT,
    NOT_FOUND,
    UNIMPLEMENTED,
    UNKNOWN,
    StatusError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import Any

    from teu.shim.loop import Coroutine, Loop
    from teu.shim.publisher import Publisher
    from teu.ttrpc.server import Reply
else:
    import _signal as signal  # signal is 0.9 MiB more (see teu.linux.sockets)

OPTIONS_TYPE = "containerd.runc.v1.Options"
GENERIC_OPTIONS_TYPE = "runtimeoptions.v1.Options"

EXIT_RECORD = "exit.json"

# How much of an unknown name an error repeats to its sender: the name may be megabytes long.
NAME_SHOWN = 200

# Methods that wait for an event that may never come: they end when their client leaves or its time is over.
WAITS = ("Wait", "WaitSandbox")

# containerd.runc.v1.Options as its TOML form (dockerd's and containerd's configuration) names them
_TOML_NAMES = {
    "NoPivotRoot": "no_pivot_root",
    "NoNewKeyring": "no_new_keyring",
    "ShimCgroup": "shim_cgroup",
    "IoUid": "io_uid",
    "IoGid": "io_gid",
    "BinaryName": "binary_name",
    "Root": "root",
    "CriuPath": "criu_path",
    "SystemdCgroup": "systemd_cgroup",
    "CriuImagePath": "criu_image_path",
    "CriuWorkPath": "criu_work_path",
}


def is_toml(packed: dict[str, Any] | None) -> bool:
    """Whether these options are the generic ones."""
    return packed is not None and str(packed["type_url"]).endswith(GENERIC_OPTIONS_TYPE)


def read_options(packed: dict[str, Any] | None) -> dict[str, Any]:
    """The runtime options in a CreateTaskRequest: runc's own message, or the generic one with TOML inside."""
    if packed and is_toml(packed):
        generic = m.decode(GENERIC_OPTIONS_TYPE, packed["value"])
        body = generic["config_body"]
        if not body and generic["config_path"]:
            with open(generic["config_path"], "rb") as file:
                body = file.read()
        import tomllib  # 10 ms and 2 MiB

        options = m.decode(OPTIONS_TYPE, b"")
        try:
            told = tomllib.loads(body.decode())
        except ValueError as error:
            raise ValueError(str(error)) from error
        for name, value in told.items():
            if name not in _TOML_NAMES:
                raise ValueError(f"unknown runtime option {name!r}; known are {', '.join(_TOML_NAMES)}")
            if type(value) is not type(options[_TOML_NAMES[name]]):
                raise ValueError(f"runtime option {name} must not be {value!r}")
            options[_TOML_NAMES[name]] = value
    else:
        options = m.decode_options(OPTIONS_TYPE, packed)
    field = "environment" if any(b"\0" in one for one in options["environment"]) else _with_nul(options)
    if field:
        raise ValueError(f"{field} must not contain a NUL character")
    return options


class Container:
    """One container of this shim."""

    def __init__(self, bundle: str, init: Init, mounted: bool) -> None:
        self.bundle = bundle
        self.init = init
        self.mounted = mounted
        self.execs: dict[str, Exec] = {}
        # runs of the runtime, one at a time
        self.lock = Lock()
        self.cgroup = ""
        self.oom: cgroup.OomWatch | None = None
        # the wait status of the first process, while execs are still being waited for
        self.init_status: int | None = None
        # from the spec
        self.stop_signal = int(signal.SIGTERM)
        self.stop_timeout = placement.STOP_TIMEOUT
        self.shares_pids = False

    def process(self, exec_id: str) -> Process:
        if not exec_id:
            return self.init
        if exec_id not in self.execs:
            raise StatusError(NOT_FOUND, f"process does not exist {exec_id}")
        return self.execs[exec_id]


def signal_number(name: str) -> int:
    """A signal by number or name, with or without SIG; SIGTERM for anything else."""
    try:
        return signals.number(name)
    except ValueError:
        return int(signal.SIGTERM)


def shares_pids(spec: dict[str, Any]) -> bool:
    """Whether the container has no pid namespace of its own, so that its first process's end ends no other."""
    for namespace in (spec.get("linux") or {}).get("namespaces") or []:
        if namespace.get("type") == "pid":
            return bool(namespace.get("path"))
    return True


def _with_nul(request: dict[str, Any]) -> str:
    """The first field with a NUL in its text, which no path, name or argument can have; "" for none."""
    for name, value in request.items():
        if isinstance(value, str):
            if "\0" in value:
                return name
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, str) and "\0" in item:
                    return name
                if isinstance(item, dict) and (inner := _with_nul(item)):
                    return f"{name}.{inner}"
        elif isinstance(value, dict) and (inner := _with_nul(value)):
            return f"{name}.{inner}"
    return ""


def _told(error: BaseException) -> str:
    """What a client is told of an error that no method has words for: the system's own as Go's programs say it."""
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror[:1].lower() + error.strerror[1:]
        return f"{error.filename}: {reason}" if error.filename else reason
    return str(error) or type(error).__name__


def _write_json(path: str, value: dict[str, Any]) -> None:
    with open(path, "wb") as file:
        file.write(jsontext.to_ascii(value))


class Service:
    """The containers of one shim, and the methods of the task API over them."""

    def __init__(self, loop: Loop, namespace: str, publisher: Publisher, log: Callable[[str], None]) -> None:
        self._loop = loop
        self._namespace = namespace
        self._publisher = publisher
        self._log = log
        self._placement = placement.Placement(namespace)
        self._containers: dict[str, Container] = {}
        self._creating: set[str] = set()
        # containers for which Shutdown was asked while they were being created
        self._unwanted: set[str] = set()
        self._stopping = False
        self._moving = False  # into another scope
        self._ending = False  # as soon as that is done
        self._sandbox = Sandbox(loop, self._placement, log)
        self._sandbox.on_stopped = self.end_if_unused
        # called when no client needs this shim any more
        self.on_shutdown: Callable[[], None] = lambda: None

    # dispatch

    def dispatch(self, service: str, method: str, payload: bytes, reply: Reply) -> None:
        """Run one request; `reply` is called when it is done.

        A wait is given up when its client leaves, or waits no longer: a client that asks again and again leaves
        nothing behind.  All else goes on to its end."""
        if service in m.TASK_SERVICES and method in m.TASK_METHODS:
            request_type, response_type = m.TASK_METHODS[method]
            handler = getattr(self, "_" + method.lower())
        elif service == m.SANDBOX_SERVICE and method in m.SANDBOX_METHODS:
            request_type, response_type = m.SANDBOX_METHODS[method]
            handler = self._sandbox.method(method)
        else:
            reply(b"", StatusError(UNIMPLEMENTED, f"no such method: {service[:NAME_SHOWN]}/{method[:NAME_SHOWN]}"))
            return
        try:
            request = m.decode(request_type, payload)
        except ValueError as error:
            reply(b"", StatusError(INTERNAL, f"malformed {request_type}: {error}"))
            return
        if field := _with_nul(request):
            reply(b"", StatusError(INVALID_ARGUMENT, f"{request_type}: {field} must not contain a NUL character"))
            return

        def done(future: Any) -> None:
            if future.error is None:
                reply(m.encode(response_type, future.value or {}), None)
            elif isinstance(future.error, StatusError):
                reply(b"", future.error)
            else:
                self._log(f"{method}: {type(future.error).__name__}: {future.error}")
                reply(b"", StatusError(UNKNOWN, _told(future.error)))

        def run() -> Coroutine:
            return (yield from handler(request))

        running = self._loop.spawn(run())
        running.then(done)
        if method in WAITS and not running.done:
            reply.on_gone = lambda: running.cancel(StatusError(CANCELLED, "the client has left"))
            if reply.timeout:
                timer = self._loop.after(
                    reply.timeout, lambda: running.cancel(StatusError(DEADLINE_EXCEEDED, "context deadline exceeded"))
                )
                running.then(lambda _: self._loop.forget(timer))

    def _container(self, name: str) -> Container:
        if name not in self._containers:
            raise StatusError(NOT_FOUND, f"container not created: {name}")
        return self._containers[name]

    # life cycle

    def _create(self, request: dict[str, Any]) -> Coroutine:
        name, bundle = request["id"], request["bundle"]
        if name in self._containers or name in self._creating:
            raise StatusError(ALREADY_EXISTS, f"container {name} is already there")
        self._creating.add(name)
        try:
            return (yield from self._create_new(name, bundle, request))
        finally:
            self._creating.discard(name)
            if name in self._unwanted:
                self._unwanted.discard(name)
                self.end_if_unused()

    def _create_new(self, name: str, bundle: str, request: dict[str, Any]) -> Coroutine:
        try:
            if is_toml(request["options"]):
                # Its reader would stay in this process.
                options = yield from self._loop.in_fork(lambda: read_options(request["options"]))
            else:
                options = read_options(request["options"])
        except (ValueError, OSError, RuntimeError) as error:
            raise StatusError(UNKNOWN, f"runtime options: {error}") from error
        runtime = Runtime(self._loop, self._namespace, bundle, options)
        init = Init(self._loop, request, options, runtime, self._namespace, self._log)
        container = Container(bundle, init, bool(request["rootfs"]))
        init.starting = True
        init.on_exited = lambda status: self._init_exited(container, status)
        try:
            yield from init.create(self._preparation(container, options, request["rootfs"]))
        except BaseException:
            if container.mounted:
                rootfs.unmount_all(os.path.join(bundle, "rootfs"))
            raise
        if name in self._unwanted:
            yield from self._discard(container)
            raise StatusError(ABORTED, f"container {name} was given up while it was created")
        self._containers[name] = container
        self._watch_cgroup(container)
        self._publisher.publish(
            "TaskCreate",
            {
                "container_id": name,
                "bundle": bundle,
                "rootfs": request["rootfs"],
                "checkpoint": request["checkpoint"],
                "pid": init.pid,
                "io": {"stdin": init.stdin, "stdout": init.stdout, "stderr": init.stderr, "terminal": init.terminal},
            },
        )
        init.started()
        return {"pid": init.pid}

    def _preparation(self, container: Container, options: dict[str, Any], mounts: list[dict[str, Any]]) -> Before:
        """What comes before the runtime's work: the shim's scope, and with it the processes that run already,
        the spec, the options on disk, and the root file system."""
        shim, name = os.getpid(), container.init.id

        def done(found: tuple[Any, ...]) -> None:
            traits, place, complaint = found
            self._placement.restore(place)
            container.stop_signal, container.stop_timeout, container.shares_pids = traits
            if complaint:
                self._log(complaint)

        return Before(
            lambda started: self._prepare_in_fork([shim, *started], name, container.bundle, options, mounts),
            done,
            lambda error: StatusError(UNKNOWN, f"failed to prepare container {name}: {error}"),
        )

    def _prepare_in_fork(
        self, pids: list[int], name: str, bundle: str, options: dict[str, Any], mounts: list[dict[str, Any]]
    ) -> tuple[Any, ...]:
        """What is to be known of the spec, the placement's state, and a complaint for the log."""
        kept = {key: value for key, value in options.items() if key != "environment"}
        _write_json(os.path.join(bundle, "options.json"), kept)
        with open(os.path.join(bundle, "runtime"), "w") as file:
            file.write(options["binary_name"])
        complaint = ""
        spec = placement.read_spec(bundle)
        if options["environment"]:
            placement.add_variables(spec, options["environment"])
            placement.write_spec(bundle, spec)
        if options["shim_cgroup"]:
            self._placement.join(pids, options["shim_cgroup"])
        elif not options["systemd_cgroup"] and self._placement.join_unit(pids, spec, name):
            placement.write_spec(bundle, spec)
        try:
            if not options["shim_cgroup"] and self._placement.place(pids, spec, name, options["systemd_cgroup"]):
                placement.write_spec(bundle, spec)
        except OSError as error:
            complaint = f"no scope of its own for container {name}: {error}"
        notes = placement.annotations_of(spec)
        traits = (
            signal_number(notes.get(placement.STOP_SIGNAL_ANNOTATION, "")),
            placement.stop_timeout(notes),
            shares_pids(spec),
        )
        if mounts:
            target = os.path.join(bundle, "rootfs")
            os.makedirs(target, 0o711, exist_ok=True)
            try:
                rootfs.mount_all(mounts, target)
            except OSError as error:
                raise OSError(error.errno, f"failed to mount rootfs component: {error}") from error
        return traits, self._placement.state(), complaint

    def _watch_cgroup(self, container: Container) -> None:
        container.cgroup = cgroup.path_of(container.init.pid) if container.init.pid else ""
        if not container.cgroup:
            return
        try:
            oom = cgroup.OomWatch(container.cgroup)
        except OSError:
            return  # no memory controller
        container.oom = oom
        self._loop.watch(oom.fd, EPOLLPRI, lambda _events: self._check_oom(container))

    def _check_oom(self, container: Container) -> None:
        if container.oom and container.oom.changed():
            self._publisher.publish("TaskOOM", {"container_id": container.init.id})

    def _end_oom_watch(self, container: Container) -> None:
        if container.oom:
            self._loop.unwatch(container.oom.fd)
            container.oom.close()
            container.oom = None

    def _start(self, request: dict[str, Any]) -> Coroutine:
        container = self._container(request["id"])
        init = container.init
        yield container.lock.acquire()
        try:
            if request["exec_id"]:
                process = container.process(request["exec_id"])
                assert isinstance(process, Exec)
                if container.init_status is not None or init.status == m.STOPPED:
                    raise StatusError(FAILED_PRECONDITION, f"container {init.id} init process is not running")
                try:
                    yield from process.start(init.runtime, init.owner())
                except BaseException:
                    # The first process may have ended meanwhile, and its exit waited for this one.
                    process.starting = False
                    if container.init_status is not None:
                        self._loop.after(0, lambda: self._tell_init_exit(container))
                    raise
                self._publisher.publish(
                    "TaskExecStarted", {"container_id": init.id, "exec_id": process.id, "pid": process.pid}
                )
                process.started()
                return {"pid": process.pid}
            yield from init.start()
            if not container.cgroup:
                self._watch_cgroup(container)
            self._publisher.publish("TaskStart", {"container_id": init.id, "pid": init.pid})
            init.started()
            return {"pid": init.pid}
        finally:
            container.lock.release()

    def _exec(self, request: dict[str, Any]) -> Coroutine:
        container = self._container(request["id"])
        if container.init.status not in (m.CREATED, m.RUNNING):
            paused = container.init.status == m.PAUSED
            raise StatusError(UNKNOWN, f"cannot exec in a {'paused' if paused else 'stopped'} container")
        check_exec_id(request["exec_id"], container.execs)
        process = Exec(self._loop, container.bundle, request, self._log)
        process.on_exited = lambda status: self._exec_exited(container, process, status)
        container.execs[process.id] = process
        self._publisher.publish("TaskExecAdded", {"container_id": request["id"], "exec_id": process.id})
        yield from ()

    def _delete(self, request: dict[str, Any]) -> Coroutine:
        container = self._container(request["id"])
        process = container.process(request["exec_id"])
        yield container.lock.acquire()
        try:
            if isinstance(process, Exec):
                yield from process.delete()
                container.execs.pop(process.id, None)
            else:
                yield from self._delete_container(container)
        finally:
            container.lock.release()
        return {"pid": process.pid, "exit_status": process.exit_status, "exited_at": process.exited_timestamp()}

    def _delete_container(self, container: Container) -> Coroutine:
        init = container.init
        if container.init_status is not None and init.status != m.STOPPED:
            # execs are about to be collected
            yield init.wait()
        yield from init.delete()
        if container.mounted:
            try:
                rootfs.unmount_all(os.path.join(container.bundle, "rootfs"))
            except OSError as error:
                raise StatusError(UNKNOWN, f"failed rootfs umount: {error}") from error
        for process in container.execs.values():
            process.streams.close()
        self._end_oom_watch(container)
        init.release_waiters()  # of one that had no process yet
        if self._containers.pop(init.id, None) is None:
            return  # its creation was never announced, so its end is not either
        self._publisher.publish(
            "TaskDelete",
            {
                "container_id": init.id,
                "pid": init.pid,
                "exit_status": init.exit_status,
                "exited_at": init.exited_timestamp(),
            },
        )

    # exits

    def _exec_exited(self, container: Container, process: Exec, status: int) -> None:
        process.set_exited(status)
        self._publish_exit(container, process.id, process)
        if container.init_status is not None:
            self._tell_init_exit(container)

    def _init_exited(self, container: Container, status: int) -> None:
        container.init_status = status
        if not self._stopping:  # else it would keep the scope from ending
            self._loop.after(0, lambda: container.init.runtime.start_ahead("delete", container.init.id))
        if container.shares_pids:
            self._kill_rest(container)
        self._tell_init_exit(container)

    def _kill_rest(self, container: Container) -> None:
        """The first process is gone but not its pid namespace: the rest goes too."""
        if container.cgroup:
            try:
                with open(os.path.join(container.cgroup, "cgroup.kill"), "w") as file:
                    file.write("1")
                return
            except OSError:
                pass  # older than Linux 5.14

        def kill() -> Coroutine:
            try:
                yield from container.init.kill(signal.SIGKILL, True)
            except StatusError as error:
                self._log(f"kill the rest of {container.init.id}: {error}")

        self._loop.spawn(kill())

    def _tell_init_exit(self, container: Container) -> None:
        running = [
            process
            for process in container.execs.values()
            if process.pid and process.status == m.RUNNING or process.starting
        ]
        if running or container.init_status is None or container.init.status == m.STOPPED:
            return
        self._check_oom(container)
        self._end_oom_watch(container)
        init = container.init
        init.set_exited(container.init_status)
        record = {"pid": init.pid, "exit_status": init.exit_status, "exited_at": init.exited_at}
        try:
            _write_json(os.path.join(container.bundle, EXIT_RECORD), record)
        except OSError as error:
            self._log(f"cannot record the exit of {init.id}: {error}")
        self._publish_exit(container, init.id, init)

    def _publish_exit(self, container: Container, process_id: str, process: Process) -> None:
        if container.init.id not in self._containers:
            return
        self._publisher.publish(
            "TaskExit",
            {
                "container_id": container.init.id,
                "id": process_id,
                "pid": process.pid,
                "exit_status": process.exit_status,
                "exited_at": process.exited_timestamp(),
            },
        )

    def _wait(self, request: dict[str, Any]) -> Coroutine:
        process = self._container(request["id"]).process(request["exec_id"])
        end = process.wait()
        try:
            yield end
        finally:
            process.waits_no_more(end)
        return {"exit_status": process.exit_status, "exited_at": process.exited_timestamp()}

    # the rest of the task API

    def _state(self, request: dict[str, Any]) -> Coroutine:
        container = self._container(request["id"])
        process = container.process(request["exec_id"])
        status = process.status
        if status != m.STOPPED:
            if container.init.pausing:
                status = m.PAUSING
            elif container.init.status == m.PAUSED:
                status = m.PAUSED
        yield from ()
        return {
            "id": process.id if isinstance(process, (Init, Exec)) else "",
            "bundle": container.bundle,
            "pid": process.pid,
            "status": status,
            "stdin": process.stdin,
            "stdout": process.stdout,
            "stderr": process.stderr,
            "terminal": process.terminal,
            "exit_status": process.exit_status,
            "exited_at": process.exited_timestamp(),
        }

    def _pids(self, request: dict[str, Any]) -> Coroutine:
        container = self._container(request["id"])
        if container.cgroup:
            pids = cgroup.processes(container.cgroup)
        else:
            try:
                pids = jsontext.loads((yield from container.init.runtime.run("ps", "--format", "json", request["id"])))
            except (RuntimeFailed, ValueError) as error:
                raise StatusError(UNKNOWN, f"OCI runtime ps failed: {error}") from error
        names = {process.pid: process.id for process in container.execs.values()}
        return {
            "processes": [
                {
                    "pid": pid,
                    "info": m.encode_any("containerd.runc.v1.ProcessDetails", {"exec_id": names[pid]})
                    if pid in names
                    else None,
                }
                for pid in pids
            ]
        }

    def _kill(self, request: dict[str, Any]) -> Coroutine:
        container = self._container(request["id"])
        process = container.process(request["exec_id"])
        if isinstance(process, Exec):
            process.kill(request["signal"])
        else:
            init, everything = container.init, request["all"]
            if request["signal"] == signal.SIGKILL and not container.shares_pids and init.runtime.is_plain:
                # The kernel ends a pid namespace with its first process: the runtime need not be run for that. Where it
                # is not so simple, frozen or about to end, the runtime knows what to do.
                everything = everything and (init.status != m.RUNNING or container.init_status is not None)
            yield from init.kill(request["signal"], everything)

    def _locked(self, container: Container, work: Coroutine, event: str = "", **fields: str) -> Coroutine:
        yield container.lock.acquire()
        try:
            yield from work
            if event:
                self._publisher.publish(event, {"container_id": container.init.id, **fields})
        finally:
            container.lock.release()

    def _pause(self, request: dict[str, Any]) -> Coroutine:
        container = self._container(request["id"])
        return self._locked(container, container.init.pause(), "TaskPaused")

    def _resume(self, request: dict[str, Any]) -> Coroutine:
        container = self._container(request["id"])
        return self._locked(container, container.init.resume(), "TaskResumed")

    def _checkpoint(self, request: dict[str, Any]) -> Coroutine:
        container = self._container(request["id"])
        try:
            options = m.decode_options("containerd.runc.v1.CheckpointOptions", request["options"])
            if field := _with_nul(options):
                raise ValueError(f"{field} must not contain a NUL character")
        except ValueError as error:
            raise StatusError(UNKNOWN, f"checkpoint options: {error}") from error
        work = container.init.checkpoint(request["path"], options)
        return self._locked(container, work, "TaskCheckpointed", checkpoint=request["path"])

    def _update(self, request: dict[str, Any]) -> Coroutine:
        container = self._container(request["id"])
        resources = request["resources"]
        return self._locked(container, container.init.update(resources["value"] if resources else b"{}"))

    def _resizepty(self, request: dict[str, Any]) -> Coroutine:
        process = self._container(request["id"]).process(request["exec_id"])
        process.resize(request["width"], request["height"])
        yield from ()

    def _closeio(self, request: dict[str, Any]) -> Coroutine:
        process = self._container(request["id"]).process(request["exec_id"])
        process.streams.close_stdin()
        yield from ()

    def _stats(self, request: dict[str, Any]) -> Coroutine:
        container = self._container(request["id"])
        if not container.cgroup or not os.path.isdir(container.cgroup):
            raise StatusError(NOT_FOUND, "cgroup does not exist")
        yield from ()
        return {"stats": m.encode_any("io.containerd.cgroups.v2.Metrics", cgroup.metrics(container.cgroup))}

    def _connect(self, request: dict[str, Any]) -> Coroutine:
        container = self._containers.get(request["id"])
        yield from ()
        return {"shim_pid": os.getpid(), "task_pid": container.init.pid if container else 0}

    def _shutdown(self, request: dict[str, Any]) -> Coroutine:
        """End, when no container is left.  `now` gives the container of that id up, whatever it does: a daemon
        says so of a creation that it did not live to see the end of."""
        name = request["id"]
        if request["now"]:
            if name in self._creating:
                self._unwanted.add(name)
            elif name in self._containers:
                yield from self._discard(self._containers[name])
        self.end_if_unused()

    def end_if_unused(self) -> None:
        if self._moving:
            self._ending = True  # not now: systemd would keep a scope without a process
        elif not self._containers and not self._creating and not self._sandbox.lives:
            self.on_shutdown()

    def _discard(self, container: Container) -> Coroutine:
        """Kill and delete a container."""
        init = container.init
        yield container.lock.acquire()
        try:
            if init.pid and init.status != m.STOPPED:
                init.starting = False
                try:
                    init.send_signal(signal.SIGKILL)
                except StatusError:
                    pass  # it has ended: its exit is about to be collected
                yield init.wait()
            yield from self._delete_container(container)
        except StatusError as error:
            self._log(f"give up {init.id}: {error}")
        finally:
            container.lock.release()

    # systemctl stop of the scope, or the host's shutdown

    def stop_gracefully(self) -> None:
        """Stop every container as docker does, keep its exit status known, let the scope end."""
        if not self._stopping:
            self._stopping = True
            self._loop.spawn(self._stop_all())

    def _stop_all(self) -> Coroutine:
        for container in list(self._containers.values()):
            container.init.runtime.cancel_ahead()
            if container.init.status != m.STOPPED:
                self._loop.spawn(self._stop_one(container))
        for container in list(self._containers.values()):
            yield container.init.wait()
        self._sandbox.end()
        unit = self._placement.unit
        if self._containers and unit and not unit.endswith(placement.EXITED_SUFFIX):
            shim = os.getpid()
            self._moving = True
            try:
                self._placement.unit = yield from self._loop.in_fork(lambda: self._placement.leave(shim))
                self._placement.folder = ""
                # The shim answers for its containers until the client has deleted them.
                self._stopping = self._moving = False
                if self._ending:
                    self.end_if_unused()
                return
            except (OSError, RuntimeError) as error:
                self._log(f"cannot leave {unit}: {error}")
        self.on_shutdown()

    def _stop_one(self, container: Container) -> Coroutine:
        init = container.init
        try:
            if init.status == m.PAUSED:
                yield from init.resume()
            yield from init.kill(container.stop_signal, False)
        except StatusError as error:
            self._log(f"stop {init.id}: {error}")
        if container.stop_timeout < placement.NEVER:
            self._loop.after(container.stop_timeout, lambda: self._kill_hard(container))

    def _kill_hard(self, container: Container) -> None:
        if container.init.status != m.STOPPED and container.init.pid:
            try:
                container.init.send_signal(signal.SIGKILL)
            except StatusError:
                pass
