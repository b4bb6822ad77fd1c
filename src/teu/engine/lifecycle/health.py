# SPDX-License-Identifier: Apache-2.0
"""Health checks: run the test in the container every so often and keep what it said.

Called by lifecycle at start and exit, and by recovery. A thread per container that has a check. Where the container
has a check for its start (containers/health_rules.py), that one runs until it has succeeded, and then the regular one.
What is done when a container becomes unhealthy is the caller's: `act`.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from teu.engine.containers import health_rules
from teu.engine.containers.state import Health, Probe
from teu.engine.core.errors import EngineError
from teu.engine.core.fields import ExecConfig
from teu.engine.core.times import nanoseconds, timestamp
from teu.engine.lifecycle import execs
from teu.oci.units import duration_text

if TYPE_CHECKING:
    from collections.abc import Callable

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


def start(engine: Engine, container: Container, act: Callable[[Engine, Container, str], None]) -> None:
    """Begin with the checks, if the container has any. `act` is called in a thread of its own with one of health_rules'
    ACTIONS, when it has become unhealthy, or has not started."""
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
    container.health = _Checks(engine, container, options, test, act)


def stop(container: Container) -> None:
    if container.health is not None:
        container.health.stop()
        container.health = None


class _Checks:
    def __init__(
        self,
        engine: Engine,
        container: Container,
        options: HealthCheck,
        test: list[str],
        act: Callable[[Engine, Container, str], None],
    ) -> None:
        self.engine = engine
        self.container = container
        self.rules = health_rules.rules(container.host_config.annotations)
        self._act = act
        self.shell = container.config.shell or ["/bin/sh", "-c"]
        if test[0] == "CMD-SHELL":
            self.command = [*self.shell, *test[1:]]
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
        health = self.container.state.health
        if self.rules.startup and health is not None and health.status == "starting" and not self._started():
            return
        while True:
            wait = min(self.start_interval, self.interval) if self._starting() else self.interval
            if self._stopped.wait(wait / SECOND) or self.engine.stopping.is_set():
                return
            if self.container.state.paused:
                continue
            probe = self._once(self.command, self.timeout)
            if self._stopped.is_set():
                return
            if self._note(probe) and self.rules.on_failure != health_rules.NONE:
                self._do(self.rules.on_failure)

    def _started(self) -> bool:
        """Run the check for the start until it is over. False: no regular check is to follow, for the container has
        ended, or is to be started anew."""
        good = bad = 0
        while good < max(1, self.rules.success):
            if self._stopped.wait(self.rules.interval / SECOND) or self.engine.stopping.is_set():
                return False
            if self.container.state.paused:
                continue
            probe = self._once([*self.shell, self.rules.startup], self.rules.timeout)
            if self._stopped.is_set():
                return False
            failed = probe.exit_code != 0
            good, bad = (0, bad + 1) if failed else (good + 1, 0)
            with self.container.lock:
                health = self.container.state.health
                if health is None or not self.container.running:
                    return False
                health.at_once(status="starting", failing_streak=bad, log=[*health.log, probe][-LOG_ENTRIES:])
            if failed and bad == self.rules.retries:
                self.container.event("health_startup: failed")
                self._do(health_rules.RESTART)
                return False
        with self.container.lock:
            if self.container.state.health is not None:
                self.container.state.health.failing_streak = 0
        self.container.event("health_startup: passed")
        return True

    def _do(self, action: str) -> None:
        """Have it done where nobody waits for this thread, which ends with the container."""
        log.info("container %s: %s", self.container.id[:12], action, extra=self.container.fields)
        self.container.event(f"health_on_failure: {action}")
        threading.Thread(
            target=self._act, args=(self.engine, self.container, action), name="health-act", daemon=True
        ).start()

    def _once(self, command: list[str], timeout: int) -> Probe:
        """Run a check."""
        began = timestamp()
        try:
            code, output = self._probe(command, timeout)
        except EngineError as error:
            code, output = -1, str(error)
        except Exception as error:
            log.exception("a health check failed")
            code, output = -1, str(error)
        self.engine.figures.checked(code == 0)
        return Probe(start=began, end=timestamp(), exit_code=code, output=output)

    def _probe(self, command: list[str], timeout: int) -> tuple[int, str]:
        execution = execs.create(self.engine, self.container, ExecConfig(cmd=command, attach_stdout=True))
        output = bytearray()

        def listen(_kind: int, data: bytes) -> bool:
            if len(output) < OUTPUT_LIMIT:
                output.extend(data[: OUTPUT_LIMIT - len(output)])
            return True

        execution.hub.followers.append(listen)
        try:
            try:
                began = time.monotonic()
                execution.claim()
                execution.start()
                self.engine.figures.check_started(time.monotonic() - began)
            except EngineError as error:
                execution.give_up()
                return execution.exit_code or 126, str(error)
            if not execution.ended.wait(timeout / SECOND):
                execution.kill()
                execution.ended.wait(5)
                said = f": {output.decode(errors='replace')}" if output else ""
                return -1, f"Health check exceeded timeout ({duration_text(timeout)}){said}"
            return execution.exit_code or 0, output.decode("utf-8", "replace")
        finally:
            self.container.execs.pop(execution.id, None)

    def _note(self, entry: Probe) -> bool:
        """Keep what a check has said; whether the container has become unhealthy by it."""
        container = self.container
        with container.lock:
            health = container.state.health
            if health is None or not container.running:
                return False
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
        return changed and health.status == "unhealthy"
