# SPDX-License-Identifier: Apache-2.0
"""Where plugins of the Node Resource Interface come in: the socket, their programs, and the moments in the lives of
pods and containers at which they are asked. Called by `pods`, `containers` and `resize`; `service` starts it.

While no plugin is there, a listening socket is all that there is of it: `plugged`, which has the rest, is loaded with
the first of them.

A plugin that comes is told of what there is, and is asked of all that happens from then on: nothing may happen between.
So what asks plugins of something, and puts it where lists have it, does both inside of `held`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

from teu.containerd.core.errors import FailedPrecondition
from teu.containerd.cri.images import Image
from teu.containerd.cri.records import Container, Pod

log = logging.getLogger("teu.containerd.cri")
Json = dict[str, Any]


class Gate:
    """Any number are inside, or one is alone."""

    def __init__(self) -> None:
        self._inside = 0
        self._open, self._quiet = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._quiet.set()
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Inside, with others."""
        while not self._open.is_set():
            await self._open.wait()
        self._inside += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._quiet.set()

    @contextlib.asynccontextmanager
    async def alone(self, patience: float) -> AsyncIterator[bool]:
        """Nobody comes in any more; whether those who were there have left within so many seconds."""
        async with self._lock:
            self._open.clear()
            try:
                try:
                    await asyncio.wait_for(self._quiet.wait(), patience)
                except TimeoutError:
                    yield False
                else:
                    yield True
            finally:
                self._open.set()


class Connections(Protocol):
    """All plugins: see teu.containerd.nri.plugins."""

    @property
    def connected(self) -> bool: ...
    def __bool__(self) -> bool: ...
    def accept(self) -> asyncio.Protocol: ...
    async def start(self, folder: str, configurations: str) -> None: ...
    async def close(self) -> None: ...


class Asked(Protocol):
    """Who asks them: see `plugged`."""

    @property
    def plugins(self) -> Connections: ...
    async def run_pod(self, pod: Pod) -> None: ...
    async def update_pod(self, pod: Pod, request: Any) -> None: ...
    async def tell_pod(self, event: str, pod: Pod) -> None: ...
    async def create(self, container: Container, image: Image, made: Json) -> None: ...
    async def undo_create(self, container: Container, made: Json) -> None: ...
    async def start_container(self, container: Container, pid: int) -> None: ...
    async def update(self, container: Container, asked: Any) -> tuple[Any, Json]: ...
    async def stopped(self, container: Container) -> None: ...
    async def tell_container(self, event: str, container: Container, pid: int = 0) -> None: ...


class Nri:
    """The plugins, for those who have to ask them."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config`: the section `nri`. Does nothing yet."""
        self._config = config
        self.gate = Gate()
        self._plugged: Asked | None = None
        self._server: asyncio.AbstractServer | None = None
        self._mark: tuple[int, int] | None = None  # of the socket that is listened on
        self._load: Callable[[], Asked] | None = None

    async def start(self, load: Callable[[], Asked]) -> None:
        """Start the programs, and listen, unless another runtime does there. `load` is called for the first plugin.
        FailedPrecondition where nobody can listen there."""
        self._load = load
        config = self._config
        if config["disable"]:
            return
        if config["default-validator"]["enable"] or await asyncio.to_thread(os.path.isdir, config["plugin-path"]):
            await self._loaded().plugins.start(config["plugin-path"], config["plugin-config-path"])
        if config["disable-connections"]:
            return
        if await asyncio.to_thread(_is_served, config["socket-path"]):
            told = "no plugin can connect here: set nri.socket-path, or nri.disable"
            log.error("another program serves %s: %s", config["socket-path"], told)
            return
        try:
            listener = _listen(config["socket-path"])
            self._mark = _mark(config["socket-path"])
        except OSError as error:
            raise FailedPrecondition(f"nri.socket-path {config['socket-path']}: {error.strerror}") from None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: self._loaded().plugins.accept(), sock=listener)

    def _loaded(self) -> Asked:
        if self._plugged is None:
            assert self._load is not None
            self._plugged = self._load()
        return self._plugged

    @property
    def asks(self) -> bool:
        """Whether anybody is to be asked."""
        return self._asked is not None

    @property
    def _asked(self) -> Asked | None:
        """Who asks; None while nobody is to be asked."""
        return self._plugged if self._plugged is not None and self._plugged.plugins else None

    @property
    def busy(self) -> bool:
        """Whether a plugin would lose its connection with the daemon."""
        return self._plugged is not None and self._plugged.plugins.connected

    async def close(self) -> None:
        """The daemon ends, and the connections with it."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                if _mark(self._config["socket-path"]) == self._mark:  # and not that of another daemon
                    os.unlink(self._config["socket-path"])
        if self._plugged is not None:
            await self._plugged.plugins.close()

    # The moments. What a plugin refuses is Unknown; of what has been done already they are only told.

    async def _tell(self, telling: Awaitable[None]) -> None:
        """Whatever is wrong with plugins, the lives of pods and containers go on."""
        try:
            await telling
        except Exception:
            log.exception("plugins could not be told")

    def held(self) -> contextlib.AbstractAsyncContextManager[None]:
        """While something is asked and put into the lists, or told and taken out of them."""
        return self.gate.held()

    async def run_pod(self, pod: Pod) -> None:
        """It is there, and is about to be ready."""
        if (plugged := self._asked) is not None:
            await plugged.run_pod(pod)

    async def update_pod(self, pod: Pod, request: Any) -> None:
        """It is about to get the resources of an UpdatePodSandboxResourcesRequest."""
        if (plugged := self._asked) is not None:
            await plugged.update_pod(pod, request)

    async def updated_pod(self, pod: Pod) -> None:
        """It has got them."""
        if (plugged := self._asked) is not None:
            await self._tell(plugged.tell_pod("POST_UPDATE_POD_SANDBOX", pod))

    async def stop_pod(self, pod: Pod) -> None:
        """Its containers have ended, and its network is about to."""
        if (plugged := self._asked) is not None:
            await self._tell(plugged.tell_pod("STOP_POD_SANDBOX", pod))

    async def remove_pod(self, pod: Pod) -> None:
        """It is about to be forgotten."""
        if (plugged := self._asked) is not None:
            await self._tell(plugged.tell_pod("REMOVE_POD_SANDBOX", pod))

    async def create(self, container: Container, image: Image, made: Json) -> None:
        """It is about to be made by a specification, which is changed here, and the resources of its config with it."""
        if (plugged := self._asked) is not None:
            await plugged.create(container, image, made)

    async def undo_create(self, container: Container, made: Json) -> None:
        """It has not come to be, though it was asked for."""
        if (plugged := self._asked) is not None:
            await self._tell(plugged.undo_create(container, made))

    async def created(self, container: Container) -> None:
        """It is there."""
        if (plugged := self._asked) is not None:
            await self._tell(plugged.tell_container("POST_CREATE_CONTAINER", container))

    async def start_container(self, container: Container, pid: int) -> None:
        """Its process is there, and is about to be let go."""
        if (plugged := self._asked) is not None:
            await plugged.start_container(container, pid)

    async def started(self, container: Container, pid: int) -> None:
        """It runs."""
        if (plugged := self._asked) is not None:
            await self._tell(plugged.tell_container("POST_START_CONTAINER", container, pid))

    async def update(self, container: Container, asked: Any) -> tuple[Any, Json]:
        """It is about to get other LinuxContainerResources: those that it gets, and what it gets besides, as members of
        linux.resources."""
        if (plugged := self._asked) is not None:
            return await plugged.update(container, asked)
        return asked, {}

    async def updated(self, container: Container) -> None:
        """It has got them."""
        if (plugged := self._asked) is not None:
            await self._tell(plugged.tell_container("POST_UPDATE_CONTAINER", container))

    async def stopped(self, container: Container) -> None:
        """It has ended. Again does nothing."""
        if (plugged := self._asked) is not None and not container.stop_told:
            await self._tell(plugged.stopped(container))
        container.stop_told = True

    async def remove_container(self, container: Container) -> None:
        """It is about to be forgotten; one that was never started ends now."""
        await self.stopped(container)
        if (plugged := self._asked) is not None:
            await self._tell(plugged.tell_container("REMOVE_CONTAINER", container))


def _is_served(path: str) -> bool:
    """Whether somebody takes connections there: containerd itself, say."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # its queue is full
        except OSError:
            return False
        return True


def _mark(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _listen(path: str) -> socket.socket:
    """A listening socket for root alone, in the place of what a daemon has left. OSError."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener
