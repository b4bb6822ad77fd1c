# SPDX-License-Identifier: Apache-2.0
"""All plugins: who comes, who is asked in which order, who goes. Made by `teu.containerd.cri.plugged`.

Requests are asked one after the other, as plugins expect, and each of the plugins in the order of their indices.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from teu.api.nri.v1alpha1 import nri_pb2 as nri
from teu.containerd.core.errors import Error, Unknown
from teu.containerd.nri import merge, names, validator
from teu.containerd.nri.plugin import METHODS, Plugin, Refused, Runtime, Update

log = logging.getLogger("teu.containerd.nri")

Join = Callable[[Plugin], Awaitable[None]]


class Plugins:
    """Those that are asked. All is for the event loop's thread."""

    def __init__(self, runtime: Runtime, join: Join, update: Update, checks: Mapping[str, Any]) -> None:
        """`join` has to synchronize a plugin that has registered, and to `add` it, while it has `lock`; `update` does
        what one asks for by itself. `checks` are the keys of the built-in validator."""
        self._runtime = runtime
        self._join = join
        self._update = update
        self._checks = checks
        self._active: list[Plugin] = []
        self._connected: set[Plugin] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.lock = asyncio.Lock()  # of who asks, and of `join`

    def __bool__(self) -> bool:
        """Whether anybody is to be asked: also one that is being told now of what there is, and then is asked of what
        has happened meanwhile."""
        return bool(self._active) or bool(self._checks["enable"]) or self.lock.locked()

    @property
    def connected(self) -> bool:
        """Whether there is one, also one that is not ready yet."""
        return bool(self._connected)

    # who comes

    def accept(self) -> asyncio.Protocol:
        """The protocol of a connection that a plugin makes."""
        plugin = self._new()
        task = asyncio.create_task(self._serve(plugin))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return plugin.mux

    def _new(self) -> Plugin:
        plugin = Plugin(self._runtime, self._update)
        self._connected.add(plugin)
        return plugin

    async def start(self, folder: str, configurations: str) -> None:
        """Start the programs of a folder, and wait until they are ready; what is none is left out, and logged."""
        try:
            found = names.programs(folder)
        except OSError as error:
            log.error("plugins of %s are left out: %s", folder, error)
            return
        await asyncio.gather(*(self._start(*one, configurations) for one in found))

    async def _start(self, index: str, base: str, path: str, configurations: str) -> None:
        plugin = self._new()
        try:
            names.split(f"{index}-{base}")
            if names.is_wasm(path):
                raise ValueError("programs for WebAssembly are not implemented")
            await plugin.start(index, base, path, names.configuration(configurations, index, base))
        except (OSError, ValueError) as error:
            log.error("plugin %s is left out: %s", path, error)
            self._connected.discard(plugin)
            return
        await self._serve(plugin, watch=False)
        if plugin in self._active:
            task = asyncio.create_task(self._watch(plugin))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, plugin: Plugin, *, watch: bool = True) -> None:
        try:
            await plugin.ready()
            await self._join(plugin)
        except Error as error:
            plugin.disconnect(error.message)
        except Exception as error:
            log.exception("plugin %s", plugin.name)
            plugin.disconnect(str(error))
        except BaseException:
            plugin.close()
            raise
        if plugin in self._active:
            log.info("plugin %s is connected and synchronized", plugin.name)
            if watch:
                await self._watch(plugin)
        else:
            self._connected.discard(plugin)

    async def _watch(self, plugin: Plugin) -> None:
        await plugin.closed.wait()
        log.info("plugin %s has gone", plugin.name)
        self._connected.discard(plugin)
        if plugin in self._active:
            self._active.remove(plugin)

    def add(self, plugin: Plugin) -> None:
        """It is asked from now on."""
        if not plugin.closed.is_set():
            self._active.append(plugin)
            self._active.sort(key=lambda one: one.index)

    async def close(self) -> None:
        """The daemon ends: nobody is connected any more, and programs that were started here end."""
        for plugin in list(self._connected):
            plugin.close()
        await asyncio.gather(*(plugin.closed.wait() for plugin in list(self._connected)))
        for task in list(self._tasks):
            task.cancel()

    # who is asked

    async def ask(self, event: int, request: Any) -> None:
        """Ask all whether it may be. Raises Refused: those behind the one that refuses are not asked."""
        async with self.lock:
            for plugin in list(self._active):
                await plugin.ask(event, request)

    async def tell(self, event: int, request: Any) -> None:
        """Tell all what is or has been done. Who has an error is logged, and the others are told."""
        async with self.lock:
            await self._told(event, request)

    async def _told(self, event: int, request: Any) -> list[tuple[Plugin, Any]]:
        answers = []
        for plugin in list(self._active):
            try:
                if (answer := await plugin.ask(event, request)) is not None:
                    answers.append((plugin, answer))
            except Refused as error:
                log.error("plugin %s: %s: %s", plugin.name, METHODS[event], error.message)
        return answers

    async def create(self, request: Any) -> merge.Creation:
        """A CreateContainerRequest; what all want of it. Raises Unknown where one refuses, or two want the same."""
        async with self.lock:
            validation = nri.ValidateContainerAdjustmentRequest(pod=request.pod, container=request.container)
            creation = merge.Creation(request)
            try:
                for plugin in list(self._active):
                    validation.plugins.add(name=plugin.base, index=plugin.index)
                    answer = await plugin.ask(nri.CREATE_CONTAINER, request)
                    if answer is not None:
                        creation.apply(answer, plugin.name)
            except merge.Conflict as error:
                raise Unknown(str(error)) from None
            await self._validate(validation, creation)
            return creation

    async def _validate(self, request: Any, creation: merge.Creation) -> None:
        request.adjust.CopyFrom(creation.adjust)
        request.update.extend(creation.updates.others())
        request.owners.CopyFrom(creation.owners.message)
        if self._checks["enable"]:
            try:
                validator.validate(request, self._checks)
            except validator.Rejected as error:
                raise Unknown(f"validation error: {error}") from None
        for plugin in list(self._active):
            answer = await plugin.ask(nri.VALIDATE_CONTAINER_ADJUSTMENT, request)
            if answer is not None and answer.reject:
                reason = answer.reason or "unknown rejection reason"
                raise Unknown(f'validator "{plugin.name}" rejected container adjustment, reason: {reason}')

    async def change(self, request: Any) -> tuple[merge.Updates, list[Any]]:
        """An UpdateContainerRequest; what all want of it, and ContainerEvictions. Raises Unknown."""
        async with self.lock:
            updates, evictions = merge.Updates(merge.Owners(), asked=request), []
            try:
                for plugin in list(self._active):
                    if (answer := await plugin.ask(nri.UPDATE_CONTAINER, request)) is not None:
                        updates.apply(answer.update, plugin.name)
                        evictions += answer.evict
            except merge.Conflict as error:
                raise Unknown(str(error)) from None
            return updates, evictions

    async def stop(self, request: Any) -> merge.Updates:
        """A StopContainerRequest; what all want of other containers. What two want is logged, and is the first's."""
        async with self.lock:
            updates = merge.Updates(merge.Owners())
            for plugin, answer in await self._told(nri.STOP_CONTAINER, request):
                try:
                    updates.apply(answer.update, plugin.name)
                except merge.Conflict as error:
                    log.error("when a container has stopped: %s", error)
            return updates
