# SPDX-License-Identifier: Apache-2.0
"""Health checks: run the test in the container every so often and keep what it said.

Called by lifecycle at start and exit, and by recovery. A thread per container that has a check.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from teu.engine.core.errors import EngineError
from teu.engine.core.times import nanoseconds, timestamp
from teu.oci.units import duration_text

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
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
    options = container.config.get("Healthcheck") or {}
    test = options.get("Test") or []
    if not test or test[0] == "NONE" or test == [""]:
        container.state.pop("Health", None)
        return
    known = container.state.get("Health")
    if container.health is not None:
        container.health.stop()
    if known is None or nanoseconds(container.state["StartedAt"]) > time.time_ns() - SECOND:
        container.state["Health"] = {"Status": "starting", "FailingStreak": 0, "Log": []}
    container.health = _Checks(engine, container, options, test)


def stop(container: Container) -> None:
    if container.health is not None:
        container.health.stop()
        container.health = None


class _Checks:
    def __init__(self, engine: Engine, container: Container, options: dict[str, Any], test: list[str]) -> None:
        self.engine = engine
        self.container = container
        if test[0] == "CMD-SHELL":
            self.command = [*(container.config.get("Shell") or ["/bin/sh", "-c"]), *test[1:]]
        else:
            self.command = test[1:]
        self.interval = options.get("Interval") or INTERVAL
        self.timeout = options.get("Timeout") or TIMEOUT
        self.start_period = options.get("StartPeriod") or 0
        self.start_interval = options.get("StartInterval") or START_INTERVAL
        self.retries = options.get("Retries") or RETRIES
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="health", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _starting(self) -> bool:
        began = nanoseconds(self.container.state["StartedAt"])
        status = (self.container.state.get("Health") or {}).get("Status")
        return status == "starting" and time.time_ns() - began < self.start_period

    def _run(self) -> None:
        while True:
            wait = min(self.start_interval, self.interval) if self._starting() else self.interval
            if self._stopped.wait(wait / SECOND) or self.engine.stopping.is_set():
                return
            if self.container.state["Paused"]:
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
            self._note({"Start": began, "End": timestamp(), "ExitCode": code, "Output": output})

    def _probe(self) -> tuple[int, str]:
        from teu.engine.lifecycle import execs

        execution = execs.Exec(self.engine, self.container, {"Cmd": self.command, "AttachStdout": True})
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

    def _note(self, entry: dict[str, Any]) -> None:
        container = self.container
        with container.lock:
            health = container.state.get("Health")
            if health is None or not container.running:
                return
            before = health["Status"]
            log_entries = [*health["Log"], entry][-LOG_ENTRIES:]
            if entry["ExitCode"] == 0:
                health.update(Status="healthy", FailingStreak=0, Log=log_entries)
            else:
                streak = health["FailingStreak"] if self._starting() else health["FailingStreak"] + 1
                status = "unhealthy" if streak >= self.retries else before
                health.update(Status=status, FailingStreak=streak, Log=log_entries)
            changed = health["Status"] != before
            if changed:
                container.save(durable=False)
        if changed:
            container.event(f"health_status: {health['Status']}")
