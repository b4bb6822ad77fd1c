# SPDX-License-Identifier: Apache-2.0
"""Health checks: run the test in the container every so often and keep what it said.

Called by lifecycle at start and exit, and by recovery. A thread per container that has a check.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from teu.engine.containers.state import Health, Probe
from teu.engine.core.errors import EngineError
from teu.engine.core.fields import ExecConfig
from teu.engine.core.times import nanoseconds, timestamp
from teu.engine.lifecycle import execs
from teu.oci.units import duration_text

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.core.fields import HealthCheck
    from teu.engine.engine import Engine

log = logging.getLogger("teu.engine")

SECOND = 1_000_000_000
INTERVAL = 30 * SECOND
TIMEOUT = 30 * SECOND
START_INTERVAL = 5 * SECOND
RETRIES = 3
OUTPUT_LIMIT = 4096
LOG_ENTRIES = 5


def start(engine: Engine, container: Container) -> None:
    options = container.config.healthcheck
    test = options.test if options else None
    if options is None or not test or test[0] == "NONE" or test == [""]:
        container.state.health = None
        return
    known = container.state.health
    if container.health is not None:
        container.health.stop()
    if known is None or nanoseconds(container.state.started_at) > time.time_ns() - SECOND:
        container.state.health = Health(status="starting")
    container.health = _Checks(engine, container, options, test)


def stop(container: Container) -> None:
    if container.health is not None:
        container.health.stop()
        container.health = None


class _Checks:
    def __init__(self, engine: Engine, container: Container, options: HealthCheck, test: list[str]) -> None:
        self.engine = engine
        self.container = container
        if test[0] == "CMD-SHELL":
            self.command = [*(container.config.shell or ["/bin/sh", "-c"]), *test[1:]]
        else:
            self.command = test[1:]
        self.interval = options.interval or INTERVAL
        self.timeout = options.timeout or TIMEOUT
        self.start_period = options.start_period or 0
        self.start_interval = options.start_interval or START_INTERVAL
        self.retries = options.retries or RETRIES
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="health", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _starting(self) -> bool:
        began, health = nanoseconds(self.container.state.started_at), self.container.state.health
        return health is not None and health.status == "starting" and time.time_ns() - began < self.start_period

    def _run(self) -> None:
        while True:
            wait = min(self.start_interval, self.interval) if self._starting() else self.interval
            if self._stopped.wait(wait / SECOND) or self.engine.stopping.is_set():
                return
            if self.container.state.paused:
                continue
            try:
                began = timestamp()
                code, output = self._probe()
            except EngineError as error:
                code, output = -1, str(error)
            except Exception as error:
                log.exception("a health check failed")
                code, output = -1, str(error)
            if self._stopped.is_set():
                return
            self._note(Probe(start=began, end=timestamp(), exit_code=code, output=output))

    def _probe(self) -> tuple[int, str]:
        execution = execs.Exec(self.engine, self.container, ExecConfig(cmd=self.command, attach_stdout=True))
        self.container.execs[execution.id] = execution
        output = bytearray()

        def listen(_kind: int, data: bytes) -> bool:
            if len(output) < OUTPUT_LIMIT:
                output.extend(data[: OUTPUT_LIMIT - len(output)])
            return True

        execution.hub.followers.append(listen)
        try:
            try:
                execution.start()
            except EngineError as error:
                execution.give_up()
                return execution.exit_code or 126, str(error)
            if not execution.ended.wait(self.timeout / SECOND):
                execution.kill()
                execution.ended.wait(5)
                said = f": {output.decode(errors='replace')}" if output else ""
                return -1, f"Health check exceeded timeout ({duration_text(self.timeout)}){said}"
            return execution.exit_code or 0, output.decode("utf-8", "replace")
        finally:
            self.container.execs.pop(execution.id, None)

    def _note(self, entry: Probe) -> None:
        container = self.container
        with container.lock:
            health = container.state.health
            if health is None or not container.running:
                return
            before = health.status
            log_entries = [*health.log, entry][-LOG_ENTRIES:]
            if entry.exit_code == 0:
                health.at_once(status="healthy", failing_streak=0, log=log_entries)
            else:
                streak = health.failing_streak if self._starting() else health.failing_streak + 1
                status = "unhealthy" if streak >= self.retries else before
                health.at_once(status=status, failing_streak=streak, log=log_entries)
            changed = health.status != before
            if changed:
                container.save(durable=False)
        if changed:
            container.event(f"health_status: {health.status}")
