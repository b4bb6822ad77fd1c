# SPDX-License-Identifier: Apache-2.0
"""One shim, as this daemon holds it: the connection, the calls over it, and its log."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from teu.containerd.core import errors
from teu.containerd.runtime.bundle import CREATING, SANDBOX_STATE, remove_file, write_new
from teu.containerd.runtime.zygote import SHIM_BINARY
from teu.ttrpc import client as ttrpc
from teu.ttrpc import messages as m
from teu.ttrpc.status import StatusError

log = logging.getLogger("teu.containerd.shims")
T = TypeVar("T")

Answer = dict[str, Any]  # a message of a shim, as teu.ttrpc.messages decodes it

# seconds
CONNECT_TIMEOUT = 10.0
STATE_TIMEOUT = 5.0


def fields(namespace: str, id: str) -> dict[str, str]:
    """What a message about this task has in the journal besides its text (log.…, extra=)."""
    return {"TEU_NAMESPACE": namespace, "TEU_CONTAINER": id}


def moment(value: Answer | None) -> int | None:
    """A google.protobuf.Timestamp of a shim, as nanoseconds since 1970; None for none."""
    return None if value is None else int(value["seconds"]) * 10**9 + int(value["nanos"])


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: what task.DeleteResponse and task.WaitResponse tell."""

    status: int
    at: int | None = None  # nanoseconds since 1970; None where the shim has told no time
    pid: int = 0

    @classmethod
    def told(cls, answer: Answer) -> Exit:
        """Of the message of a shim."""
        return cls(answer["exit_status"], moment(answer["exited_at"]), answer.get("pid", 0))


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Where a shim listens, and what it speaks there: its version of the task API. Empty until it has told."""

    version: int = 0
    address: str = ""
    protocol: str = "ttrpc"

    def as_json(self) -> str:
        """As bootstrap.json in the bundle has it."""
        return json.dumps({"version": self.version, "address": self.address, "protocol": self.protocol})


class Shim:
    """One task's, or one sandbox's, connection to its shim.

    The connection may be missing for a while, when the daemon has just started or the shim is too busy to take one;
    calls wait for it then."""

    def __init__(self, namespace: str, id: str, bundle: str, binary: str) -> None:
        self.namespace = namespace
        self.id = id
        self.bundle = bundle
        self.binary = binary
        self.bootstrap = Bootstrap()
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
        # whether it has nothing in its shim any more
        self.deleted = False
        # whether it has answered to the end of its sandbox, and so ends by itself
        self.dismissed = False
        # whether the task exists, so that the death of the shim is the task's exit
        self.created = False
        # whether the container's exit was published by the shim itself
        self.exit_published = False
        # whether the shim has said that its task was deleted
        self.deletion_published = False
        # set when the shim is gone and cleaned up
        self.gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.deletion: asyncio.Task[Exit] | None = None  # the one under way
        self.cleanup: asyncio.Future[Exit] | None = None  # of what a dead one has left
        self._waits: dict[str, asyncio.Task[Answer]] = {}  # by exec id, "" for the first process

    @property
    def fields(self) -> dict[str, str]:
        return fields(self.namespace, self.id)

    @property
    def address(self) -> str:
        """Where the shim listens; "" until it is known."""
        return self.bootstrap.address

    @property
    def version(self) -> int:
        return self.bootstrap.version

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

    async def call(self, method: str, request: Mapping[str, object], timeout: float | None = None) -> Answer:
        """A task method for this task; errors as this daemon's own."""
        client = await self.connection(timeout)
        service = m.TASK_SERVICES[0 if self.version <= 2 else 1]
        try:
            return await client.task(service, method, {"id": self.id, **request}, timeout)
        except StatusError as error:
            raise errors.from_code(error.code, error.message) from error

    async def outlast(self, call: Callable[[], Awaitable[T]]) -> T | None:
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
                    raise  # the shim's own answer, or no other connection is sought
                await self.reached.wait()
                if self.gone.done():
                    return None
                if self.leaving:
                    raise

    async def wait(self, exec_id: str) -> Answer:
        """task.WaitResponse of a process.

        All who wait for it share one call: a shim is not told when somebody waits no longer, and would keep each."""
        waiting = self._waits.get(exec_id)
        if waiting is None or waiting.done():
            waiting = asyncio.get_running_loop().create_task(self.call("Wait", {"exec_id": exec_id}))
            self._waits[exec_id] = waiting
            waiting.add_done_callback(lambda done: self._waited(exec_id, done))
        return await asyncio.shield(waiting)

    def _waited(self, exec_id: str, waiting: asyncio.Task[Answer]) -> None:
        if self._waits.get(exec_id) is waiting:
            del self._waits[exec_id]
        if not waiting.cancelled():
            waiting.exception()  # those who wait get it; asyncio complains of an exception that was never looked at

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
        remove_file(os.path.join(self.bundle, CREATING))

    def note(self, **changes: bool) -> None:
        """Keep what has become of a sandbox."""
        assert self.sandbox_state is not None
        self.sandbox_state.update(changes)
        if os.path.isdir(self.bundle):
            write_new(os.path.join(self.bundle, SANDBOX_STATE), json.dumps(self.sandbox_state))

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
