# SPDX-License-Identifier: Apache-2.0
"""The shim manager: starts shims, finds them again after a restart, and cleans up after dead ones.

A shim is dead when nobody listens at its address any more.  One that is slow to take a connection or to answer is asked
again until it does: its containers are never touched.

    STATE/io.containerd.runtime.v2.task/NAMESPACE/ID/      the bundle, as containerd lays it out
        config.json             the OCI spec
        rootfs/                 where the shim mounts
        address                 written by the shim: where it listens (version 2)
        bootstrap.json          written here: {"version", "address", "protocol"}
        shim-binary-path        written here: what to run for clean-up
        log                     a FIFO: the shim's own log lines
        creating                there until the shim has said that the container, or the sandbox, is created
        sandbox                 of a container: the id of the sandbox whose shim serves it, if it has none of its own
        sandbox.json            of a sandbox: {"started", "told"}: whether it was started, and its end published
        work -> ROOT/io.containerd.runtime.v2.task/NAMESPACE/ID
        init.pid, log.json, options.json, runtime, exit.json      the shim's

A bundle is there exactly as long as its task or sandbox.  Everything here runs on the event loop, except what blocks
(starting a shim, cleaning up), which is handed to a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from teu.api.events import sandbox_pb2 as sandbox_events
from teu.api.events import task_pb2 as task_events
from teu.containerd import errors
from teu.containerd.processes import with_given_limits
from teu.containerd.zygote import SHIM_BINARY, Zygote, ZygoteGone, ZygoteRefused
from teu.linux import trees
from teu.oci import jsontext
from teu.ttrpc import client as ttrpc
from teu.ttrpc import messages as m
from teu.ttrpc.status import StatusError

log = logging.getLogger("teu.containerd.shims")

FOLDER = "io.containerd.runtime.v2.task"
OWN_RUNTIME = "io.containerd.teu.v2"
TASK_API_VERSION_MAX = 3

# where our shims listen, those of other daemons on this host as well
SOCKETS = "/run/teu/s"
CREATING, SANDBOX_ID, SANDBOX_STATE = "creating", "sandbox", "sandbox.json"

# seconds
CONNECT_TIMEOUT = 10.0
START_TIMEOUT = 60.0
CLEANUP_TIMEOUT = 60.0
STATE_TIMEOUT = 5.0
SHUTDOWN_TIMEOUT = 3.0
# of cleaning up, where what does it is killed
CLEANUP_ATTEMPTS = 5
# until a shim that is sought counts as slow, and between two attempts to reach it then
SEEK_TIMEOUT = 2.0
SEEK_FIRST, SEEK_MAX = 0.1, 5.0
# after the last clean-up until sockets are looked for that killed shims have left, and how old those must be: a socket
# that is just being made looks the same
PRUNE_DELAY, DEAD_SECONDS = 3.0, 2.0


def binary_name(runtime: str) -> str:
    """io.containerd.runc.v2 is containerd-shim-runc-v2; an absolute path is itself."""
    if runtime.startswith("/"):
        return runtime
    parts = runtime.split(".")
    if len(parts) < 2 or not all(parts[-2:]):
        raise errors.InvalidArgument(f'invalid runtime name "{runtime}", expected for instance {OWN_RUNTIME}')
    return f"containerd-shim-{parts[-2]}-{parts[-1]}"


def find_binary(runtime: str) -> str:
    """The shim's program for a runtime name."""
    name = binary_name(runtime)
    path = name if name.startswith("/") else shutil.which(name)
    if name.startswith("/") and not os.path.exists(name):
        raise errors.NotFound(f"invalid custom binary path: stat {name}: no such file or directory")
    if not path or not os.access(path, os.X_OK):
        raise errors.NotFound(f'runtime "{runtime}" binary not installed "{name}": file does not exist')
    return path


def binary_to_start(runtime: str) -> str:
    """`find_binary` for a shim that is to be started; an error says so, in containerd's words."""
    try:
        return find_binary(runtime)
    except errors.Error as e:
        raise type(e)(f"failed to start shim: failed to resolve runtime path: {e.message}") from e


def parse_bootstrap(output: bytes) -> dict[str, Any]:
    """What a shim's `start` printed: JSON (version 2 and 3), a protobuf message (later ones), or an address."""
    text = output.strip()
    if text.startswith(b"{"):
        parameters = jsontext.loads(text)
    elif text.startswith((b"unix:", b"/")) or not text:
        parameters = {"version": 2, "address": text.decode(), "protocol": "ttrpc"}
    else:
        parameters = m.decode("containerd.runtime.bootstrap.v1.BootstrapResult", output)
    version = parameters.get("version") or 2
    if version > TASK_API_VERSION_MAX:
        raise errors.Unimplemented(f"unsupported shim version ({version})")
    if not parameters.get("address"):
        raise errors.Unknown("the shim told no address")
    protocol = parameters.get("protocol") or "ttrpc"
    if protocol != "ttrpc":
        raise errors.Unimplemented(f'unsupported shim protocol "{protocol}"')
    return {"version": version, "address": parameters["address"], "protocol": protocol}


def fields(namespace: str, id: str) -> dict[str, str]:
    """What a message about this task has in the journal besides its text (log.…, extra=)."""
    return {"TEU_NAMESPACE": namespace, "TEU_CONTAINER": id}


class _Gone(Exception):
    """Nobody listens at a shim's address: the process has ended."""


class _Slow(Exception):
    """A shim that does not take connections, or does not answer; it may do so later."""


class Shim:
    """One task's, or one sandbox's, connection to its shim.

    The connection may be missing for a while, when the daemon has just started or the shim is too busy to take one;
    calls wait for it then."""

    def __init__(self, namespace: str, id: str, bundle: str, binary: str) -> None:
        self.namespace = namespace
        self.id = id
        self.bundle = bundle
        self.binary = binary
        self.parameters: dict[str, Any] = {}  # see parse_bootstrap
        # the sandbox whose shim serves this task, if it has none of its own
        self.sandbox = ""
        # of a sandbox: whether it was started, and whether its end was told; None for a task
        self.sandbox_state: dict[str, bool] | None = None
        self.client: ttrpc.Client | None = None
        # set when calls need not wait: there is a connection, or there will be none
        self.reached = asyncio.Event()
        self.log_reader: LogReader | None = None
        # whether its end is expected, so that losing the connection means nothing
        self.leaving = False
        # whether the task exists, so that the death of the shim is the task's exit
        self.created = False
        # whether the container's exit was published by the shim itself
        self.exit_published = False
        # set with task.DeleteResponse when the shim is gone and cleaned up
        self.gone: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.deletion: asyncio.Task[dict[str, Any]] | None = None  # the one under way
        self._waits: dict[str, asyncio.Task[dict[str, Any]]] = {}  # by exec id, "" for the first process

    @property
    def fields(self) -> dict[str, str]:
        return fields(self.namespace, self.id)

    @property
    def address(self) -> str:
        """Where the shim listens; "" until it is known."""
        return str(self.parameters.get("address", ""))

    @property
    def version(self) -> int:
        return int(self.parameters.get("version", 0))

    @property
    def is_ours(self) -> bool:
        return os.path.basename(self.binary) == SHIM_BINARY

    @property
    def half_made(self) -> bool:
        """Whether its creation has not been acknowledged by the shim."""
        return os.path.exists(os.path.join(self.bundle, CREATING))

    async def connection(self, timeout: float | None = None) -> ttrpc.Client:
        """Unavailable if the shim has ended; DeadlineExceeded if it is not to be reached in that time."""
        if not self.reached.is_set():
            try:
                await asyncio.wait_for(self.reached.wait(), timeout)
            except TimeoutError:
                raise errors.DeadlineExceeded(f"the shim of {self.id} takes no connection") from None
        if self.client is None:
            raise errors.Unavailable(f"the shim of {self.id} is gone: ttrpc: closed")  # containerd's words, too
        return self.client

    async def call(self, method: str, request: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """A task method for this task; errors as this daemon's own."""
        client = await self.connection(timeout)
        service = m.TASK_SERVICES[0 if self.version <= 2 else 1]
        try:
            return await client.task(service, method, {"id": self.id, **request}, timeout)
        except StatusError as e:
            raise errors.from_code(e.code, e.message) from e

    async def outlast(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The answer to `call()`, which is made again when the connection was lost and found again; None when the shim
        is gone and cleaned up, so that `gone` tells how it ended."""
        while True:
            client = self.client
            try:
                return await call()
            except errors.Unavailable:
                if self.gone.done():
                    return None
                if client is not None and client is self.client:
                    raise  # the shim's own answer, or nobody seeks another connection
                await self.reached.wait()
                if self.gone.done():
                    return None
                if self.leaving:
                    raise

    async def wait(self, exec_id: str) -> dict[str, Any]:
        """task.WaitResponse of a process.

        All who wait for it share one call: a shim is not told when somebody waits no longer, and would keep each."""
        waiting = self._waits.get(exec_id)
        if waiting is None or waiting.done():
            waiting = asyncio.get_running_loop().create_task(self.call("Wait", {"exec_id": exec_id}))
            self._waits[exec_id] = waiting
            waiting.add_done_callback(lambda done: self._waited(exec_id, done))
        return await asyncio.shield(waiting)

    def _waited(self, exec_id: str, waiting: asyncio.Task[dict[str, Any]]) -> None:
        if self._waits.get(exec_id) is waiting:
            del self._waits[exec_id]
        if not waiting.cancelled():
            waiting.exception()  # told to those who wait; with nobody left, it is nobody's

    async def connect(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """OSError or TimeoutError, see ttrpc.connect."""
        self.client = await ttrpc.connect(self.address, timeout)
        self.reached.set()

    def lose(self) -> None:
        """The connection has ended, and another one is sought, unless it was to end."""
        if not self.leaving:
            self.client = None
            self.reached.clear()

    def created_now(self) -> None:
        """The shim has acknowledged the creation."""
        _remove_file(os.path.join(self.bundle, CREATING))

    def note(self, **changes: bool) -> None:
        """Keep what has become of a sandbox."""
        assert self.sandbox_state is not None
        self.sandbox_state.update(changes)
        if os.path.isdir(self.bundle):
            _write_new(os.path.join(self.bundle, SANDBOX_STATE), json.dumps(self.sandbox_state))

    def close(self) -> None:
        self.leaving = True
        self.reached.set()
        if self.client:
            self.client.close()
        if self.log_reader:
            self.log_reader.close()


class LogReader:
    """Copies a shim's log lines from its FIFO into ours.  Open read-write: shims block until it is."""

    def __init__(self, bundle: str, namespace: str, id: str) -> None:
        self._who = f"{namespace}/{id}"
        path = os.path.join(bundle, "log")
        try:
            os.mkfifo(path, 0o700)
        except FileExistsError:
            pass
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def _read(self) -> None:
        try:
            *lines, self._rest = (self._rest + os.read(self._fd, 65536)).split(b"\n")
        except BlockingIOError:
            return
        if len(self._rest) > 65536:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            text = line.decode(errors="replace")
            level = logging.WARNING if "level=error" in text or "level=warn" in text else logging.DEBUG
            log.log(level, "shim %s: %s", self._who, text)

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


class Shims:
    """All shims of this daemon, by namespace and id.

    `events` is the daemon's exchange: publish(namespace, topic, message) and listen(callback);
    `is_sandbox(namespace, id)` says whether there is a sandbox's record of that name."""

    def __init__(
        self,
        *,
        state: str,
        root: str,
        address: str,
        ttrpc_address: str,
        events: Any,
        zygote: Zygote | None = None,
        debug: bool = False,
        is_sandbox: Callable[[str, str], bool] = lambda _namespace, _id: False,
    ) -> None:
        self._state = os.path.join(state, FOLDER)
        self._root = os.path.join(root, FOLDER)
        self._address = address
        self._ttrpc_address = ttrpc_address
        self._events = events
        self._zygote = zygote
        self._debug = debug
        self._is_sandbox = is_sandbox
        self._shims: dict[tuple[str, str], Shim] = {}
        self._searches: set[asyncio.Task[None]] = set()
        self._cleanups: set[asyncio.Task[None]] = set()
        self._pruning: asyncio.TimerHandle | None = None
        # called with a sandbox that is found late
        self.on_sandbox: Callable[[Shim], None] = lambda _shim: None
        self.closing = False  # whether all connections are let go of, which is no sandbox's end
        events.listen(self._on_event)

    # finding

    def get(self, namespace: str, id: str) -> Shim:
        """NotFound when there is no such task."""
        shim = self._shims.get((namespace, id))
        if shim is None or not shim.created:
            raise errors.NotFound(f"task {id} not found")
        return shim

    def exists(self, namespace: str, id: str) -> bool:
        return (namespace, id) in self._shims

    def all(self, namespace: str | None = None) -> list[Shim]:
        return [
            shim for shim in self._shims.values() if shim.created and (namespace is None or shim.namespace == namespace)
        ]

    def sandboxes(self) -> list[Shim]:
        """Those that were created."""
        return [shim for shim in self._shims.values() if shim.sandbox_state is not None and not shim.half_made]

    def _shared(self, shim: Shim) -> bool:
        """Whether the shim serves another task, or a sandbox, too."""
        return any(other is not shim and other.address == shim.address for other in self._shims.values())

    def _on_event(self, envelope: Any) -> None:
        # On the publishing thread: only a flag is set.
        if envelope.topic == "/tasks/exit":
            event = task_events.TaskExit.FromString(envelope.event.value)
            shim = self._shims.get((envelope.namespace, event.container_id))
            if shim is not None and event.id == event.container_id:
                shim.exit_published = True

    # bundles

    def bundle_path(self, namespace: str, id: str) -> str:
        if "/" in id or id in ("", ".", ".."):  # whoever has looked at it before: what is here is removed as a tree
            raise errors.InvalidArgument(f'identifier "{id[:76]}" is no name of a folder')
        return os.path.join(self._state, namespace, id)

    def _make_bundle(self, namespace: str, id: str, spec: bytes) -> str:
        bundle = self.bundle_path(namespace, id)
        work = os.path.join(self._root, namespace, id)
        os.makedirs(os.path.dirname(bundle), 0o711, exist_ok=True)
        os.makedirs(os.path.dirname(work), 0o711, exist_ok=True)
        self._remove_work(work)
        os.mkdir(work, 0o711)
        if os.path.isdir(bundle):
            self._remove_bundle(bundle)  # of a creation that this daemon did not live to finish
        os.mkdir(bundle, 0o700)
        group = _mapped_root_group(spec)
        if group:
            os.chown(bundle, -1, group)
            os.chmod(bundle, 0o710)
        os.mkdir(os.path.join(bundle, "rootfs"), 0o711)
        os.symlink(work, os.path.join(bundle, "work"))
        with open(os.path.join(bundle, CREATING), "wb"):
            pass
        if spec:  # a sandbox needs none
            with open(os.path.join(bundle, "config.json"), "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(spec)
        return bundle

    @staticmethod
    def _remove_work(work: str) -> None:
        trees.discard_tree(work)

    def _remove_bundle(self, bundle: str) -> None:
        """Never into a root file system that is still mounted."""
        if not os.path.isdir(bundle):
            return
        rootfs = os.path.join(bundle, "rootfs")
        try:
            os.rmdir(rootfs)
        except FileNotFoundError:
            pass
        except OSError:
            try:
                trees.unmount(rootfs)
            except OSError as error:
                log.error("%s is still mounted, its bundle stays: %s", rootfs, error.strerror)
                return
        work = os.path.join(self._root, *bundle.split("/")[-2:])
        trees.discard_tree(bundle)
        self._remove_work(work)

    # starting

    def _environment(self, namespace: str) -> dict[str, str]:
        return dict(
            os.environ,
            TTRPC_ADDRESS=self._ttrpc_address,
            GRPC_ADDRESS=self._address,
            NAMESPACE=namespace,
            MAX_SHIM_VERSION=str(TASK_API_VERSION_MAX),
        )

    def _command(self, shim: Shim, *args: str) -> list[str]:
        command = [
            shim.binary,
            "-namespace",
            shim.namespace,
            "-address",
            self._address,
            "-publish-binary",
            "/usr/sbin/teu-containerd",
            "-id",
            shim.id,
        ]
        return [*command, *(["-debug"] if self._debug else []), *args]

    def _start_cold(self, shim: Shim, options: bytes) -> dict[str, Any]:
        """Run the shim's `start` (blocking)."""
        try:
            done = subprocess.run(
                with_given_limits(self._command(shim, "start")),
                input=options,
                capture_output=True,
                cwd=shim.bundle,
                env=self._environment(shim.namespace),
                timeout=START_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as e:
            raise errors.DeadlineExceeded(f"{shim.binary} start took over {START_TIMEOUT:.0f} s") from e
        except OSError as e:
            raise errors.Unknown(f"cannot run {shim.binary}: {e.strerror}") from e
        if done.returncode:
            reason = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise errors.Unknown(f"{reason}: exit status {done.returncode}")
        return parse_bootstrap(done.stdout)

    def _start(self, shim: Shim, options: bytes) -> dict[str, Any]:
        """Start a shim for its bundle, warm where possible (blocking)."""
        if self._zygote and os.path.basename(shim.binary) == SHIM_BINARY:
            try:
                address = self._zygote.start_shim(
                    namespace=shim.namespace,
                    container=shim.id,
                    bundle=shim.bundle,
                    address=self._address,
                    ttrpc_address=self._ttrpc_address,
                    debug=self._debug,
                )
                return {"version": TASK_API_VERSION_MAX, "address": address, "protocol": "ttrpc"}
            except ZygoteGone:
                pass
            except ZygoteRefused as e:
                raise errors.Unknown(f"start the shim: {e}") from e
        return self._start_cold(shim, options)

    def _prepare(
        self,
        shim: Shim,
        spec: bytes,
        options: bytes,
        request: dict[str, Any] | None = None,
        restorer: Callable[[str], str] | None = None,
        host: Shim | None = None,
    ) -> dict[str, Any]:
        """Make the bundle and start the shim, where it is not `host`'s (blocking)."""
        self._make_bundle(shim.namespace, shim.id, spec)
        if restorer is not None and request is not None:
            request["checkpoint"] = restorer(os.path.join(self._root, shim.namespace, shim.id))
        with open(os.path.join(shim.bundle, "shim-binary-path"), "w") as file:
            file.write(shim.binary)
        if shim.sandbox_state is not None:
            shim.note()
        if host is not None:
            _write_new(os.path.join(shim.bundle, SANDBOX_ID), host.id)
            _write_new(os.path.join(shim.bundle, "address"), host.address)
            _write_new(os.path.join(shim.bundle, "bootstrap.json"), json.dumps(host.parameters))
            return host.parameters
        os.mkfifo(os.path.join(shim.bundle, "log"), 0o700)
        # Somebody must be reading the log before the shim opens it.
        reader = os.open(os.path.join(shim.bundle, "log"), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            parameters = self._start(shim, options)
        finally:
            os.close(reader)
        _write_new(os.path.join(shim.bundle, "bootstrap.json"), json.dumps(parameters))
        return parameters

    async def create(
        self,
        namespace: str,
        id: str,
        *,
        runtime: str,
        spec: bytes,
        options: Any,
        request: dict[str, Any],
        sandbox: str = "",
        restorer: Callable[[str], str] | None = None,
    ) -> int:
        """Create a task: its bundle, its shim, and the container in it.  The first process's pid.

        `options` is the runtime's options as an Any message, `request` the fields of task.CreateTaskRequest
        besides, `restorer` what makes its `checkpoint` in the bundle's work folder, `sandbox` the sandbox whose
        shim serves it; AlreadyExists if there is a task of that id, Unknown if there is no such sandbox."""
        key = (namespace, id)
        if key in self._shims:
            raise errors.AlreadyExists(f"task {id}")
        host = self._shims.get((namespace, sandbox)) if sandbox and sandbox != id else None
        if sandbox and sandbox != id and (host is None or not host.address or host.leaving):
            raise errors.Unknown(f"failed to start shim: can't find sandbox {sandbox}")  # containerd's own code
        shim = Shim(namespace, id, self.bundle_path(namespace, id), host.binary if host else binary_to_start(runtime))
        self._shims[key] = shim
        try:
            packed = options.SerializeToString() if options is not None else b""
            if host is not None:
                shim.sandbox, shim.parameters = host.id, host.parameters
            await self._launch(shim, spec, packed, request, restorer, host)
            await self._connect_new(shim)
            any_options = None
            if options is not None:
                any_options = {"type_url": options.type_url, "value": options.value}
            try:
                answer = await shim.call("Create", {"bundle": shim.bundle, "options": any_options, **request})
            except errors.Error as e:
                raise type(e)(f"failed to create shim task: {e.message}") from e
        except BaseException:
            await asyncio.shield(self._abandon(shim))
            raise
        shim.created_now()
        shim.created = True
        self._watch(shim)
        return int(answer["pid"])

    async def _launch(self, shim: Shim, *arguments: Any) -> None:
        """`_prepare` in a thread, which goes on when who waits for it leaves: a shim that it has started is known."""
        preparing = asyncio.get_running_loop().run_in_executor(None, self._prepare, shim, *arguments)
        try:
            shim.parameters = await asyncio.shield(preparing)
        except asyncio.CancelledError:
            await asyncio.wait([preparing])
            if preparing.exception() is None:
                shim.parameters = preparing.result()
            raise

    async def _connect_new(self, shim: Shim) -> None:
        """Connect to the shim of a creation."""
        if not shim.sandbox:
            shim.log_reader = LogReader(shim.bundle, shim.namespace, shim.id)
        try:
            await shim.connect()
        except (OSError, TimeoutError) as e:
            raise errors.Unavailable(f"cannot connect to the shim at {shim.address}: {e}") from e

    async def start_sandbox(self, namespace: str, id: str, *, runtime: str, spec: bytes, options: Any) -> Shim:
        """A shim for a sandbox; nothing is asked of it yet, and it is half made until `sandbox_created`."""
        key = (namespace, id)
        if key in self._shims:
            raise errors.AlreadyExists(f"sandbox {id}")
        shim = Shim(namespace, id, self.bundle_path(namespace, id), binary_to_start(runtime))
        shim.sandbox_state = {"started": False, "told": False}
        self._shims[key] = shim
        try:
            packed = options.SerializeToString() if options is not None else b""
            await self._launch(shim, spec, packed)
            await self._connect_new(shim)
        except BaseException:
            await asyncio.shield(self._abandon(shim))
            raise
        return shim

    def sandbox_created(self, shim: Shim) -> None:
        """Its shim has acknowledged the sandbox."""
        shim.created_now()
        self._watch(shim)

    async def stop_sandbox(self, shim: Shim) -> None:
        """End the sandbox's shim, unless it has containers, and remove what is left of the sandbox."""
        if self.closing:
            raise errors.Unavailable("the daemon is stopping")
        if not shim.gone.done():
            await self._abandon(shim)

    async def _abandon(self, shim: Shim) -> None:
        """Undo a creation that failed half-way."""
        shim.leaving = True
        try:
            if not self.closing:
                await self._give_up(shim)
            if self.closing:
                # Its connection is gone, or goes at any moment: the next daemon finds it half made, and undoes it.
                return
            answer = await asyncio.get_running_loop().run_in_executor(None, self._run_delete, shim)
            if not shim.gone.done():
                shim.gone.set_result(answer)
        finally:
            self._forget(shim)

    async def _give_up(self, shim: Shim) -> None:
        """Delete what its shim has made, and end it; on a connection of its own where it has lost the other."""
        if shim.address and (shim.client is None or shim.client.closed.is_set()):
            with contextlib.suppress(OSError, TimeoutError):
                await shim.connect()
        if shim.client:
            with contextlib.suppress(errors.Error):  # usually there is nothing to delete
                await shim.call("Delete", {}, SHUTDOWN_TIMEOUT)
        await self._shut_down(shim, now=True)

    def _watch(self, shim: Shim) -> None:
        assert shim.client is not None
        shim.client.on_close = lambda: self._on_disconnect(shim)
        if shim.client.closed.is_set():
            self._on_disconnect(shim)

    # ending

    async def _shut_down(self, shim: Shim, *, now: bool = False) -> None:
        """Tell the shim to end, if it serves nobody else, and see it gone.

        `now` gives its container up, even one in the middle of being created.  Other runtimes' shims know no such
        thing, and end with their sandbox when they are told so: they are told when they serve nobody else."""
        shim.leaving = True
        client, shared = shim.client, self._shared(shim)
        if client is None or client.closed.is_set():
            return
        if not shared or (now and shim.is_ours):
            try:
                await shim.call("Shutdown", {"now": now}, SHUTDOWN_TIMEOUT)
            except errors.Error:
                pass  # it may be gone before it has answered
        if not shared:
            try:
                await asyncio.wait_for(client.closed.wait(), SHUTDOWN_TIMEOUT)
            except TimeoutError:
                log.warning("the shim of %s/%s does not end", shim.namespace, shim.id, extra=shim.fields)
                if now and self._may_be_killed(shim):
                    await self._kill(shim)
        client.close()

    def _may_be_killed(self, shim: Shim) -> bool:
        """Whether nothing is lost with this shim: what it is for was never acknowledged, or is a sandbox without
        containers, and nobody else has come to it meanwhile, nor is coming."""
        unknown = any(
            other is not shim and other.namespace == shim.namespace and not other.address
            for other in self._shims.values()
        )
        given_up = shim.half_made or shim.sandbox_state is not None
        return given_up and not unknown and not self._shared(shim)

    async def _kill(self, shim: Shim) -> None:
        """End a shim that does not end by itself."""
        process = -1
        try:
            pid = (await shim.call("Connect", {}, SHUTDOWN_TIMEOUT))["shim_pid"]
            process = os.pidfd_open(pid)
            # Its answer after the process was taken hold of says that it is the right one.
            if (await shim.call("Connect", {}, SHUTDOWN_TIMEOUT))["shim_pid"] == pid and pid > 1:
                signal.pidfd_send_signal(process, signal.SIGKILL)
        except (errors.Error, OSError) as e:
            log.error("the shim of %s/%s cannot be ended: %s", shim.namespace, shim.id, e, extra=shim.fields)
        finally:
            if process >= 0:
                os.close(process)

    def _forget(self, shim: Shim) -> None:
        shim.close()
        if self._shims.get((shim.namespace, shim.id)) is shim:
            del self._shims[(shim.namespace, shim.id)]

    async def delete(self, shim: Shim) -> dict[str, Any]:
        """Delete a stopped task; task.DeleteResponse.

        A deletion that has begun goes on to its end though its client leaves; another client's joins it."""
        if shim.deletion is None:
            shim.deletion = asyncio.get_running_loop().create_task(self._delete(shim))
            shim.deletion.add_done_callback(lambda deletion: self._deleted(shim, deletion))
        return await asyncio.shield(shim.deletion)

    @staticmethod
    def _deleted(shim: Shim, deletion: asyncio.Task[dict[str, Any]]) -> None:
        shim.deletion = None
        if not deletion.cancelled():
            deletion.exception()  # told to those who wait; with nobody left, it is nobody's

    async def _delete(self, shim: Shim) -> dict[str, Any]:
        try:
            answer = await shim.outlast(lambda: shim.call("Delete", {}))
        except errors.NotFound:
            answer = {"pid": 0, "exit_status": 0, "exited_at": None}
        if answer is None:
            return shim.gone.result()
        await self._shut_down(shim)
        await asyncio.get_running_loop().run_in_executor(None, self._remove_bundle, shim.bundle)
        if not shim.gone.done():
            shim.gone.set_result(answer)
        self._forget(shim)
        return dict(answer)

    # dead shims

    def _on_disconnect(self, shim: Shim) -> None:
        if shim.leaving or shim.gone.done():
            return
        shim.lose()
        self._seek(shim)

    def _run_delete(self, shim: Shim) -> dict[str, Any]:
        """Run the shim's `delete` and remove the bundle (blocking); task.DeleteResponse."""
        answer = m.decode("task.DeleteResponse", b"")
        answer["exit_status"] = 255
        if not os.path.isdir(shim.bundle):
            return answer
        try:
            for _ in range(CLEANUP_ATTEMPTS):
                done = subprocess.run(
                    with_given_limits(self._command(shim, "-bundle", shim.bundle, "delete")),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    cwd=shim.bundle,
                    env=self._environment(shim.namespace),
                    timeout=CLEANUP_TIMEOUT,
                    check=False,
                )
                if done.returncode >= 0:
                    break
            done.check_returncode()
            answer = m.decode("task.DeleteResponse", done.stdout)
        except (OSError, subprocess.SubprocessError, ValueError) as e:
            detail = getattr(e, "stderr", b"") or b""
            log.error(
                "clean-up of %s/%s: %s %s",
                shim.namespace,
                shim.id,
                e,
                detail.decode(errors="replace"),
                extra=shim.fields,
            )
        try:
            self._remove_bundle(shim.bundle)
        except OSError as e:
            log.error("the bundle of %s/%s: %s", shim.namespace, shim.id, e, extra=shim.fields)
        return answer

    async def _clean_up(self, shim: Shim) -> None:
        """After a shim that died: kill and remove what it left, and tell the exit if it had not yet."""
        log.warning("the shim of %s/%s is gone: cleaning up", shim.namespace, shim.id, extra=shim.fields)
        shim.leaving = True
        answer = await asyncio.get_running_loop().run_in_executor(None, self._run_delete, shim)
        # Its last events may still be on their way through the event service's connection.
        await asyncio.sleep(0)
        when = _timestamp(answer)
        if shim.created:
            if not shim.exit_published:
                self._events.publish(
                    shim.namespace,
                    "/tasks/exit",
                    task_events.TaskExit(
                        container_id=shim.id,
                        id=shim.id,
                        pid=answer["pid"],
                        exit_status=answer["exit_status"],
                        exited_at=when,
                    ),
                )
            self._events.publish(
                shim.namespace,
                "/tasks/delete",
                task_events.TaskDelete(
                    container_id=shim.id, pid=answer["pid"], exit_status=answer["exit_status"], exited_at=when
                ),
            )
        self.tell_sandbox_exit(shim, 0, None)
        if not shim.gone.done():
            shim.gone.set_result(answer)
        self._forget(shim)
        self._prune_soon()

    def _prune_soon(self) -> None:
        """Remove dead sockets once it is quiet."""
        if self._pruning is not None:
            self._pruning.cancel()
        loop = asyncio.get_running_loop()
        self._pruning = loop.call_later(PRUNE_DELAY, lambda: loop.run_in_executor(None, prune_sockets))

    def tell_sandbox_exit(self, shim: Shim, exit_status: int, exited_at: Any) -> None:
        """Publish the end of a sandbox, once, if it was ever started."""
        state = shim.sandbox_state
        if state is None or not state["started"] or state["told"]:
            return
        shim.note(told=True)
        event = sandbox_events.SandboxExit(sandbox_id=shim.id, exit_status=exit_status)
        if exited_at is None:
            event.exited_at.GetCurrentTime()
        else:
            event.exited_at.CopyFrom(exited_at)
        self._events.publish(shim.namespace, "/sandboxes/exit", event)

    # restart of this daemon, and connections that are lost

    async def restore(self) -> None:
        """Connect to the shims of all bundles, and clean up after those that are gone.

        Who is slow is not waited for: it is sought until it answers, and its task or sandbox is there meanwhile."""
        # All are known before the first is asked, so that who shares a shim is known, too.
        found = [self._from_bundle(namespace, id) for namespace, id in self._bundles()]
        decided = [self._seek(shim) for shim in found]
        await asyncio.gather(*(one.wait() for one in decided))
        self._prune_soon()
        if found:
            log.info("%d tasks and sandboxes found again, of %d bundles", len(self._shims), len(found))

    def _from_bundle(self, namespace: str, id: str) -> Shim:
        bundle = self.bundle_path(namespace, id)
        binary = _read(os.path.join(bundle, "shim-binary-path")) or shutil.which(SHIM_BINARY) or SHIM_BINARY
        shim = Shim(namespace, id, bundle, binary)
        shim.sandbox = _read(os.path.join(bundle, SANDBOX_ID))
        state = _read(os.path.join(bundle, SANDBOX_STATE))
        if state:
            shim.sandbox_state = {"started": False, "told": False, **jsontext.loads(state)}
        else:
            # Of a creation that was cut short, too, if it had come so far that it was told.
            shim.created = os.path.exists(os.path.join(bundle, "init.pid"))
        stored = _read(os.path.join(bundle, "bootstrap.json")) or _read(os.path.join(bundle, "address"))
        if stored:
            shim.created = shim.created or (not shim.half_made and shim.sandbox_state is None)
            try:
                shim.parameters = parse_bootstrap(stored.encode())
            except (errors.Error, ValueError) as e:
                log.error("%s/%s: where its shim listens is not to be understood: %s", namespace, id, e)
        self._shims[(namespace, id)] = shim
        return shim

    def _seek(self, shim: Shim) -> asyncio.Event:
        """Find a shim that lives, or see that it does not.  The event is set when that is decided, or known to take
        long."""
        decided = asyncio.Event()
        search = asyncio.get_running_loop().create_task(self._search(shim, decided))
        self._searches.add(search)

        def done(search: asyncio.Task[None]) -> None:
            self._searches.discard(search)
            decided.set()
            if not search.cancelled() and (error := search.exception()) is not None:
                log.error(
                    "search for the shim of %s/%s: %s",
                    shim.namespace,
                    shim.id,
                    error,
                    exc_info=error,
                    extra=shim.fields,
                )

        search.add_done_callback(done)
        return decided

    async def _search(self, shim: Shim, decided: asyncio.Event) -> None:
        pause = SEEK_FIRST
        while True:
            try:
                if await self._ask(shim):
                    break
                log.warning(
                    "%s/%s is not known to its shim: what was made of it is removed",
                    shim.namespace,
                    shim.id,
                    extra=shim.fields,
                )
                await self._shut_down(shim, now=True)
            except _Slow as e:
                if pause == SEEK_FIRST:
                    log.warning(
                        "the shim of %s/%s is slow: %s; it is left alone", shim.namespace, shim.id, e, extra=shim.fields
                    )
                decided.set()
                await asyncio.sleep(pause)
                pause = min(2 * pause, SEEK_MAX)
                continue
            except _Gone as e:
                log.info("%s/%s: %s", shim.namespace, shim.id, e, extra=shim.fields)
            # From here on it goes to its end, also when the daemon is to stop.
            cleanup = asyncio.get_running_loop().create_task(self._clean_up(shim))
            self._cleanups.add(cleanup)
            cleanup.add_done_callback(self._cleanups.discard)
            await asyncio.shield(cleanup)
            return
        shim.created_now()
        if shim.log_reader is None and not shim.sandbox:
            shim.log_reader = LogReader(shim.bundle, shim.namespace, shim.id)
        self._watch(shim)

    async def _ask(self, shim: Shim) -> bool:
        """Whether the shim has the task or sandbox.  _Gone if it has ended, _Slow if it does not answer now."""
        if not shim.address:
            if shim.half_made or not os.path.exists(os.path.join(shim.bundle, "bootstrap.json")):
                raise _Gone("its shim was not started")
            raise _Slow("its address is not known")
        if shim.client is None:
            try:
                await shim.connect(SEEK_TIMEOUT)
            except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as e:
                raise _Gone(f"nobody listens at {shim.address}: {e.strerror}") from e
            except (OSError, TimeoutError) as e:
                raise _Slow(f"it takes no connection: {e or 'timeout'}") from e
            assert shim.client is not None
            shim.client.on_close = shim.lose  # until it is watched, this search goes on
        if shim.sandbox_state is not None:
            return not shim.half_made
        try:
            await shim.call("State", {}, SEEK_TIMEOUT)
        except errors.NotFound:
            # A sandbox that another version of this program has made has no word of it in its bundle.
            if shim.half_made or not self._is_sandbox(shim.namespace, shim.id) or shim.sandbox:
                return False
            shim.created, shim.sandbox_state = False, {"started": True, "told": False}
            shim.note()
            self.on_sandbox(shim)
        except (errors.Unavailable, errors.DeadlineExceeded) as e:
            raise _Slow(e.message) from e
        except errors.Error as e:
            log.warning("state of %s/%s: %s", shim.namespace, shim.id, e.message, extra=shim.fields)
            return True
        shim.created = shim.sandbox_state is None
        return True

    def _bundles(self) -> Iterable[tuple[str, str]]:
        try:
            namespaces = sorted(os.listdir(self._state))
        except FileNotFoundError:
            return
        for namespace in namespaces:
            folder = os.path.join(self._state, namespace)
            if os.path.isdir(folder):
                yield from ((namespace, id) for id in sorted(os.listdir(folder)))

    async def close(self) -> None:
        """Let go of all shims; they go on."""
        self.closing = True
        if self._pruning is not None:
            self._pruning.cancel()
        for search in list(self._searches):
            search.cancel()
        for shim in list(self._shims.values()):
            shim.close()
        if self._cleanups:
            await asyncio.wait(self._cleanups, timeout=CLEANUP_TIMEOUT)


def prune_sockets(folder: str = SOCKETS) -> None:
    """Remove the sockets of shims that were killed; also of those whose bundles nobody knows any more (blocking)."""
    try:
        paths = [os.path.join(folder, name) for name in os.listdir(folder)]
        with open("/proc/net/unix", errors="surrogateescape") as table:
            bound = {line.rsplit(" ", 1)[-1].rstrip("\n") for line in table}
    except OSError:
        return
    for path in paths:
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        if not stat.S_ISSOCK(status.st_mode) or path in bound or time.time() - status.st_mtime < DEAD_SECONDS:
            continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(path)  # the table is that of our network namespace alone
            except ConnectionRefusedError:
                _remove_file(path)
            except OSError:
                pass


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def _remove_file(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _write_new(path: str, text: str) -> None:
    with open(path + ".tmp", "w") as file:
        file.write(text)
    os.rename(path + ".tmp", path)


def _timestamp(answer: dict[str, Any]) -> Any:
    from google.protobuf.timestamp_pb2 import Timestamp

    exited_at = answer["exited_at"]
    return Timestamp(seconds=exited_at["seconds"], nanos=exited_at["nanos"]) if exited_at else None


def _mapped_root_group(spec: bytes) -> int:
    """The host's gid of the container's root when it has a user namespace, else 0."""
    if b'"gidMappings"' not in spec:
        return 0
    for mapping in (jsontext.loads(spec).get("linux") or {}).get("gidMappings") or []:
        if mapping.get("containerID") == 0:
            return int(mapping.get("hostID") or 0)
    return 0
