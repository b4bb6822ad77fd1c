# SPDX-License-Identifier: Apache-2.0
"""The daemon: the engine and what works on it without being asked, in the order in which they start and stop.

    Engine        the record of the stores that everybody gets
    Monitor       containerd's events: exits
    Restore       starts what runs again
    sweep         removes what was left half made

Called by main, which has the signals, and the server that answers meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from teu.config import Settings
from teu.engine.backend.containerd import Unavailable
from teu.engine.engine import Engine
from teu.engine.lifecycle import health, idle, recovery, sweep
from teu.engine.lifecycle.monitor import Monitor
from teu.engine.lifecycle.restore import Restore
from teu.systemd import host

log = logging.getLogger("teu.engine")

# How long the exits of containers that were stopped with the host may take to come here; less than the unit gives us.
LAST_EXITS_SECONDS = 10.0
PATIENCE_SECONDS = 60.0


class Daemon:
    def __init__(self, config: Settings) -> None:
        """Raises Unreadable where engine.db cannot be read."""
        self.engine = Engine(config)
        self._monitor = Monitor(self.engine)
        self._restore = Restore(self.engine)
        self._watched: set[idle.Pipe] = set()
        # The host is going down and waits for us with its containers.
        self.woken_by_shutdown = idle.shutdown_woke_us()

    @property
    def _kept_events(self) -> str:
        return f"{self.engine.exec_root}/events"

    def start(self) -> None:
        """Bring everything up; requests that need it wait for the engine's `ready`."""
        engine = self.engine
        engine.pump.start()
        idle.take_back(going_down=self.woken_by_shutdown)
        engine.events.load(self._kept_events)
        engine.plugins.load()
        engine.containers.load()
        engine.volumes.start()
        threading.Thread(target=sweep.run, args=(engine,), name="sweep", daemon=True).start()
        engine.networks.start()
        self._as_soon_as_containerd_is_there(lambda: recovery.recover(engine, self._monitor, self._restore))
        if engine.boot.resumed:
            engine.endpoints.follow_host()  # nobody was there to see the host's servers of names change
        engine.ready.set()

    def _as_soon_as_containerd_is_there(self, step: Callable[[], None]) -> None:
        """It may be away for long: state of its own that cannot be read is for a person to mend. To end and be started
        again would help nobody; clients are told."""
        engine = self.engine
        pause, began = 0.5, time.monotonic()
        while not engine.stopping.is_set():
            try:
                step()
                return
            except Unavailable as error:
                # Who is just starting may take its time to answer.
                if not engine.containerd.listens() or time.monotonic() - began > PATIENCE_SECONDS:
                    if engine.waiting is None:
                        log.error("containerd at %s cannot be reached, trying on: %s", engine.containerd.address, error)
                    engine.waiting = error
            engine.stopping.wait(pause)
            pause = min(pause * 2, 10.0)

    def idle(self, seconds: float) -> bool:
        """Whether nothing has needed this process for so long: no container runs whose output, health, names, ports or
        restarts it minds (lifecycle/idle.py)."""
        if not self.engine.ready.is_set() or self._restore.busy:
            return False
        return idle.idle(self.engine, seconds)

    def leave_idle(self) -> bool:
        """It is about to go because nothing is to do. False: it cannot, and stays; in a shutdown no connection would
        wake the next one."""
        return not host.is_going_down() and idle.hand_over(self.engine, self._watched)

    def left_idle(self) -> bool:
        """Nobody can connect any more: the next engine goes on where this one was. Whether it is needed at once, for
        what has come since it was decided to go: a container was started, or one ended, whose end was told to us."""
        engine = self.engine
        needed = not (self.idle(0) and idle.hand_over(engine, self._watched) and idle.all_run(engine))
        try:
            engine.events.save(self._kept_events)
            engine.boot.leave_idle()
        except OSError as error:
            log.warning("the next engine will not know what this one knew: %s", error)
        return needed

    def last_exits(self) -> None:
        """The host goes down, and systemd has stopped the containers: what of their ends is not known yet is now."""
        engine = self.engine
        deadline = time.monotonic() + LAST_EXITS_SECONDS
        while engine.ready.is_set() and not engine.failure and time.monotonic() < deadline:
            if not any(container.running and container.pid for container in engine.containers.all()):
                return
            time.sleep(0.02)

    def stop(self) -> None:
        """The daemon goes, the containers stay, with their networks: ports stay redirected, and their reservation ends
        with the daemon."""
        engine = self.engine
        engine.stopping.set()
        engine.events.close()
        self._monitor.stop()
        for container in engine.containers.all():
            if container.restart_timer is not None:
                container.restart_timer.cancel()
            health.stop(container)
        engine.containerd.untidy.set()
        engine.close()
