# SPDX-License-Identifier: Apache-2.0
"""The shim manager: starts shims, finds them again after a restart, and cleans up after dead ones.

A shim is dead when nobody listens at its address any more.  One that is slow to take a connection or to answer is asked
again until it does: its containers are never touched.

Everything here runs on the event loop, except what blocks (starting a shim, cleaning up), which is handed to a thread.
What is on disk is drawn in `bundle`; the programs of shims are run by `bootstrap`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp

from teu.api.events import sandbox_pb2 as sandbox_events
from teu.api.events import task_pb2 as task_events
from teu.api.types import event_pb2
from teu.containerd.core import errors
from teu.containerd.core.events import Exchange
from teu.containerd.core.messages import Packed
from teu.containerd.runtime.bootstrap import CLEANUP_TIMEOUT, Programs, binary_to_start, parse_bootstrap
from teu.containerd.runtime.bundle import SANDBOX_ID, SANDBOX_STATE, Bundles, read, write_new
from teu.containerd.runtime.shim import Answer, Bootstrap, Exit, LogReader, Shim
from teu.containerd.runtime.sockets import prune_sockets
from teu.containerd.runtime.zygote import SHIM_BINARY, Zygote
from teu.oci import jsontext

log = logging.getLogger("teu.containerd.shims")

# seconds
SHUTDOWN_TIMEOUT = 3.0
# until a shim that is sought counts as slow, and between two attempts to reach it then
SEEK_TIMEOUT = 2.0
SEEK_FIRST, SEEK_MAX = 0.1, 5.0
# after the last clean-up until sockets are looked for that killed shims have left
PRUNE_DELAY = 3.0
# after the deletion of a task until it is told here, where its shim has not told it
TOLD_SECONDS = 1.0


class _Gone(Exception):
    """Nobody listens at a shim's address: the process has ended."""


class _Slow(Exception):
    """A shim that does not take connections, or does not answer; it may do so later."""


class Shims:
    """All shims of this daemon, by namespace and id.

    `is_sandbox(namespace, id)` says whether there is a sandbox's record of that name."""

    def __init__(
        self,
        *,
        state: str,
        root: str,
        address: str,
        ttrpc_address: str,
        events: Exchange,
        zygote: Zygote | None = None,
        debug: bool = False,
        is_sandbox: Callable[[str, str], bool] = lambda _namespace, _id: False,
    ) -> None:
        self._bundles = Bundles(state, root)
        self._programs = Programs(
            self._bundles, address=address, ttrpc_address=ttrpc_address, zygote=zygote, debug=debug
        )
        self._events = events
        self._is_sandbox = is_sandbox
        self._shims: dict[tuple[str, str], Shim] = {}
        self._searches: set[asyncio.Task[None]] = set()
        self._cleanups: set[asyncio.Task[None]] = set()
        self._pruning: asyncio.TimerHandle | None = None
        # tasks that were deleted, of which their shims have not said so yet
        self._untold: set[tuple[str, str]] = set()
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
        """Whether there is a task or sandbox of that name, also one that is being created."""
        return (namespace, id) in self._shims

    def all(self, namespace: str | None = None) -> list[Shim]:
        """The tasks that were created, of a namespace or of all."""
        return [
            shim for shim in self._shims.values() if shim.created and (namespace is None or shim.namespace == namespace)
        ]

    def sandboxes(self) -> list[Shim]:
        """Those that were created."""
        return [shim for shim in self._shims.values() if shim.sandbox_state is not None and not shim.half_made]

    def _shared(self, shim: Shim) -> bool:
        """Whether the shim serves another task, or a sandbox, too. The last of those that leave at once is alone."""
        return any(
            other is not shim and other.address == shim.address and not other.deleted for other in self._shims.values()
        )

    def _on_event(self, envelope: event_pb2.Envelope) -> None:
        # On the publishing thread: only a flag is set.
        if envelope.topic == "/tasks/exit":
            event = task_events.TaskExit.FromString(envelope.event.value)
            shim = self._shims.get((envelope.namespace, event.container_id))
            if shim is not None and event.id == event.container_id:
                shim.exit_published = True
        elif envelope.topic == "/tasks/delete":
            deleted = (envelope.namespace, task_events.TaskDelete.FromString(envelope.event.value).container_id)
            self._untold.discard(deleted)
            if (shim := self._shims.get(deleted)) is not None:
                shim.deletion_published = True

    # starting

    def _prepare(
        self,
        shim: Shim,
        spec: bytes,
        options: bytes,
        request: Answer | None = None,
        restorer: Callable[[str], str] | None = None,
        host: Shim | None = None,
    ) -> Bootstrap:
        """Make the bundle and start the shim, where it is not `host`'s (blocking)."""
        self._bundles.make(shim.namespace, shim.id, spec)
        if restorer is not None and request is not None:
            request["checkpoint"] = restorer(self._bundles.work(shim.namespace, shim.id))
        with open(os.path.join(shim.bundle, "shim-binary-path"), "w") as file:
            file.write(shim.binary)
        if shim.sandbox_state is not None:
            shim.note()
        if host is not None:
            write_new(os.path.join(shim.bundle, SANDBOX_ID), host.id)
            write_new(os.path.join(shim.bundle, "address"), host.address)
            write_new(os.path.join(shim.bundle, "bootstrap.json"), host.bootstrap.as_json())
            return host.bootstrap
        os.mkfifo(os.path.join(shim.bundle, "log"), 0o700)
        # Somebody must be reading the log before the shim opens it.
        reader = os.open(os.path.join(shim.bundle, "log"), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            bootstrap = self._programs.start(shim, options)
        finally:
            os.close(reader)
        write_new(os.path.join(shim.bundle, "bootstrap.json"), bootstrap.as_json())
        return bootstrap

    async def create(
        self,
        namespace: str,
        id: str,
        *,
        runtime: str,
        spec: bytes,
        options: Packed | None,
        request: Answer,
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
        shim = Shim(namespace, id, self._bundles.path(namespace, id), host.binary if host else binary_to_start(runtime))
        self._shims[key] = shim
        try:
            packed = options.SerializeToString() if options is not None else b""
            if host is not None:
                shim.sandbox, shim.bootstrap = host.id, host.bootstrap
            await self._launch(shim, spec, packed, request, restorer, host)
            await self._connect_new(shim)
            any_options = None
            if options is not None:
                any_options = {"type_url": options.type_url, "value": options.value}
            try:
                answer = await shim.call("Create", {"bundle": shim.bundle, "options": any_options, **request})
            except errors.Error as error:
                raise type(error)(f"failed to create shim task: {error.message}") from error
        except BaseException:
            await asyncio.shield(self._abandon(shim))
            raise
        shim.created_now()
        shim.created = True
        self._watch(shim)
        return int(answer["pid"])

    async def _launch(
        self,
        shim: Shim,
        spec: bytes,
        options: bytes,
        request: Answer | None = None,
        restorer: Callable[[str], str] | None = None,
        host: Shim | None = None,
    ) -> None:
        """`_prepare` in a thread, which goes on when who waits for it leaves: a shim that it has started is known."""
        preparing = asyncio.get_running_loop().run_in_executor(
            None, self._prepare, shim, spec, options, request, restorer, host
        )
        try:
            shim.bootstrap = await asyncio.shield(preparing)
        except asyncio.CancelledError:
            await asyncio.wait([preparing])
            if preparing.exception() is None:
                shim.bootstrap = preparing.result()
            raise

    async def _connect_new(self, shim: Shim) -> None:
        """Connect to the shim of a creation."""
        if not shim.sandbox:
            shim.log_reader = LogReader(shim.bundle, shim.namespace, shim.id)
        try:
            await shim.connect()
        except (OSError, TimeoutError) as error:
            raise errors.Unavailable(f"cannot connect to the shim at {shim.address}: {error}") from error

    async def start_sandbox(
        self, namespace: str, id: str, *, runtime: str, spec: bytes, options: Packed | None
    ) -> Shim:
        """A shim for a sandbox; nothing is asked of it yet, and it is half made until `sandbox_created`."""
        key = (namespace, id)
        if key in self._shims:
            raise errors.AlreadyExists(f"sandbox {id}")
        shim = Shim(namespace, id, self._bundles.path(namespace, id), binary_to_start(runtime))
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
            ended = await self._cleaned_up(shim)
            if not shim.gone.done():
                shim.gone.set_result(ended)
        finally:
            self._forget(shim)

    async def _cleaned_up(self, shim: Shim) -> Exit:
        """What its program's `delete` says, after which its bundle is gone: once, for whoever wants it. A second one
        would take the bundle of the next of its name."""
        if shim.cleanup is None:
            shim.cleanup = asyncio.get_running_loop().run_in_executor(None, self._programs.delete, shim)
        return await asyncio.shield(shim.cleanup)

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
        shim.leaving = shim.deleted = True
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
                shim.dismissed = False
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
        except (errors.Error, OSError) as error:
            log.error("the shim of %s/%s cannot be ended: %s", shim.namespace, shim.id, error, extra=shim.fields)
        finally:
            if process >= 0:
                os.close(process)

    def _forget(self, shim: Shim) -> None:
        shim.close()
        if self._shims.get((shim.namespace, shim.id)) is shim:
            del self._shims[(shim.namespace, shim.id)]

    async def delete(self, shim: Shim) -> Exit:
        """Delete a stopped task; how it ended.

        A deletion that has begun goes on to its end though its client leaves; another client's joins it."""
        if shim.deletion is None:
            shim.deletion = asyncio.get_running_loop().create_task(self._delete(shim))
            shim.deletion.add_done_callback(lambda deletion: self._deleted(shim, deletion))
        return await asyncio.shield(shim.deletion)

    @staticmethod
    def _deleted(shim: Shim, deletion: asyncio.Task[Exit]) -> None:
        shim.deletion = None
        if not deletion.cancelled():
            deletion.exception()  # those who wait get it; asyncio complains of an exception that was never looked at

    async def _delete(self, shim: Shim) -> Exit:
        try:
            answer = await shim.outlast(lambda: shim.call("Delete", {}))
        except errors.NotFound:
            ended = Exit(0)
        else:
            if answer is None:
                return shim.gone.result()
            ended = Exit.told(answer)
        await self._shut_down(shim)
        await asyncio.get_running_loop().run_in_executor(None, self._bundles.remove, shim.bundle)
        if not shim.gone.done():
            shim.gone.set_result(ended)
        self._forget(shim)
        if shim.created and not (shim.is_ours or shim.deletion_published):
            self._untold.add((shim.namespace, shim.id))
            asyncio.get_running_loop().call_later(TOLD_SECONDS, self._tell_deletion, shim, ended)
        return ended

    def _tell_deletion(self, shim: Shim, ended: Exit) -> None:
        """containerd's own shim, from 2.1 on, may end before it has sent its last event."""
        if (key := (shim.namespace, shim.id)) not in self._untold:
            return
        self._untold.discard(key)
        event = task_events.TaskDelete(
            container_id=shim.id, pid=ended.pid, exit_status=ended.status, exited_at=_timestamp(ended.at)
        )
        self._events.publish(shim.namespace, "/tasks/delete", event)

    # dead shims

    def _on_disconnect(self, shim: Shim) -> None:
        if shim.leaving or shim.gone.done():
            return
        shim.lose()
        self._seek(shim)

    async def _clean_up(self, shim: Shim) -> None:
        """After a shim that died: kill and remove what it left, and tell the exit if it had not yet."""
        log.warning("the shim of %s/%s is gone: cleaning up", shim.namespace, shim.id, extra=shim.fields)
        shim.leaving = True
        ended = await self._cleaned_up(shim)
        # Its last events may still be on their way through the event service's connection.
        await asyncio.sleep(0)
        when = _timestamp(ended.at)
        if shim.created:
            if not shim.exit_published:
                self._events.publish(
                    shim.namespace,
                    "/tasks/exit",
                    task_events.TaskExit(
                        container_id=shim.id,
                        id=shim.id,
                        pid=ended.pid,
                        exit_status=ended.status,
                        exited_at=when,
                    ),
                )
            self._events.publish(
                shim.namespace,
                "/tasks/delete",
                task_events.TaskDelete(container_id=shim.id, pid=ended.pid, exit_status=ended.status, exited_at=when),
            )
        self.tell_sandbox_exit(shim, 0, None)
        if not shim.gone.done():
            shim.gone.set_result(ended)
        self._forget(shim)
        self._prune_soon()

    def _prune_soon(self) -> None:
        """Remove dead sockets once it is quiet."""
        if self._pruning is not None:
            self._pruning.cancel()
        loop = asyncio.get_running_loop()
        self._pruning = loop.call_later(PRUNE_DELAY, lambda: loop.run_in_executor(None, prune_sockets))

    def tell_sandbox_exit(self, shim: Shim, exit_status: int, exited_at: Timestamp | None) -> None:
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
        found = [self._from_bundle(namespace, id) for namespace, id in self._bundles.all()]
        decided = [self._seek(shim) for shim in found]
        await asyncio.gather(*(one.wait() for one in decided))
        self._prune_soon()
        if found:
            log.info("%d tasks and sandboxes found again, of %d bundles", len(self._shims), len(found))

    def _from_bundle(self, namespace: str, id: str) -> Shim:
        bundle = self._bundles.path(namespace, id)
        binary = read(os.path.join(bundle, "shim-binary-path")) or shutil.which(SHIM_BINARY) or SHIM_BINARY
        shim = Shim(namespace, id, bundle, binary)
        shim.sandbox = read(os.path.join(bundle, SANDBOX_ID))
        state = read(os.path.join(bundle, SANDBOX_STATE))
        if state:
            shim.sandbox_state = {"started": False, "told": False, **jsontext.loads(state)}
        else:
            # Of a creation that was cut short, too, if it had come so far that it was told.
            shim.created = os.path.exists(os.path.join(bundle, "init.pid"))
        stored = read(os.path.join(bundle, "bootstrap.json")) or read(os.path.join(bundle, "address"))
        if stored:
            shim.created = shim.created or (not shim.half_made and shim.sandbox_state is None)
            try:
                shim.bootstrap = parse_bootstrap(stored.encode())
            except (errors.Error, ValueError) as error:
                log.error("%s/%s: where its shim listens is not to be understood: %s", namespace, id, error)
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
            except _Slow as error:
                if pause == SEEK_FIRST:
                    log.warning(
                        "the shim of %s/%s is slow: %s; it is left alone",
                        shim.namespace,
                        shim.id,
                        error,
                        extra=shim.fields,
                    )
                decided.set()
                await asyncio.sleep(pause)
                pause = min(2 * pause, SEEK_MAX)
                continue
            except _Gone as error:
                log.info("%s/%s: %s", shim.namespace, shim.id, error, extra=shim.fields)
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
            except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
                raise _Gone(f"nobody listens at {shim.address}: {error.strerror}") from error
            except (OSError, TimeoutError) as error:
                raise _Slow(f"it takes no connection: {error or 'timeout'}") from error
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
        except (errors.Unavailable, errors.DeadlineExceeded) as error:
            raise _Slow(error.message) from error
        except errors.Error as error:
            log.warning("state of %s/%s: %s", shim.namespace, shim.id, error.message, extra=shim.fields)
            return True
        shim.created = shim.sandbox_state is None
        return True

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


def _timestamp(moment: int | None) -> Timestamp | None:
    """A google.protobuf.Timestamp of nanoseconds since 1970, or None."""
    return None if moment is None else Timestamp(seconds=moment // 10**9, nanos=moment % 10**9)
