# SPDX-License-Identifier: Apache-2.0
"""One subscription to containerd's events: exits and out-of-memory of all containers and execs.

Started by recovery. When the stream breaks (containerd restarts), it subscribes again and
asks for the state of everything that should run, so that no exit is missed.

The same is asked every LOOK_SECONDS while the stream holds, for an event may be lost with its sender.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from teu.engine.backend import containerd, tasks
from teu.engine.backend.subscription import Subscription
from teu.engine.lifecycle import run

if TYPE_CHECKING:
    from teu.api.types import event_pb2
    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine

log = logging.getLogger("teu.engine")

SUBSCRIBE = "/containerd.services.events.v1.Events/Subscribe"
PAUSE_SECONDS = 0.1
# A subscription has begun for certain when the reconciliation after this time looks.
SETTLE_SECONDS = 1.0
LOOK_SECONDS = 60.0


class Monitor:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._stream: Subscription | None = None
        self._wake = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="monitor", daemon=True).start()
        threading.Thread(target=self._look, name="look", daemon=True).start()

    def stop(self) -> None:
        self._wake.set()
        if self._stream is not None:
            self._stream.cancel()

    def _run(self) -> None:
        from teu.api.services.events.v1 import events_pb2
        from teu.api.types import event_pb2

        client = self.engine.containerd
        spaces = (client.namespace, self.engine.plugins.client.namespace)
        request = events_pb2.SubscribeRequest(filters=[f"namespace=={each},topic~=|^/tasks/|" for each in spaces])
        first = True
        while not self.engine.stopping.is_set():
            stream = None
            try:
                stream = Subscription(client.address, SUBSCRIBE, client.namespace, request.SerializeToString())
                self._stream = stream
                if not first:
                    self._wake.set()
                first = False
                for message in stream:
                    self._event(event_pb2.Envelope.FromString(message))
            except containerd.Error as error:
                if stream is not None and not self.engine.stopping.is_set():
                    log.info("containerd's event stream ended: %s", error)
            except Exception:
                log.exception("the event stream failed")
            finally:
                if stream is not None:
                    stream.close()
            self.engine.stopping.wait(PAUSE_SECONDS)

    def _look(self) -> None:
        """Soon after the start and after each new stream, and now and then, whatever happened."""
        wait = SETTLE_SECONDS
        while not self.engine.stopping.is_set():
            again = self._wake.wait(wait)
            if self.engine.stopping.is_set():
                return
            self._wake.clear()
            self.reconcile()
            wait = SETTLE_SECONDS if again else LOOK_SECONDS

    def reconcile(self) -> None:
        """One question for all; only who looks stopped is asked about again, under its lock."""
        try:
            self.engine.plugins.look()
        except containerd.Error as error:
            log.info("the tasks of plugins cannot be listed: %s", error)
        running = [container for container in self.engine.containers.all() if container.running and container.pid]
        if not running:
            return
        try:
            known = tasks.list_tasks(self.engine.containerd)
        except containerd.Error as error:
            log.info("tasks cannot be listed: %s", error)
            return
        for container in running:
            task = known.get(container.id)
            if task is None or task.status == "STOPPED":
                try:
                    run.reconcile(self.engine, container)
                except containerd.Error as error:
                    log.warning("container %s: %s", container.id[:12], error, extra=container.fields)
            for execution in list(container.execs.values()):
                execution.reconcile()

    def _event(self, envelope: event_pb2.Envelope) -> None:
        from teu.api.events import task_pb2

        if envelope.topic == "/tasks/exit":
            event = task_pb2.TaskExit.FromString(envelope.event.value)
            if envelope.namespace == self.engine.plugins.client.namespace:
                self.engine.plugins.ended(event.container_id)
                return
            container = self.engine.containers.find(event.container_id)
            if container is None:
                return
            found = tasks.Exit(int(event.exit_status), tasks.moment(event.exited_at))
            if event.id in ("", event.container_id):
                threading.Thread(
                    target=_guarded, args=(self.engine, container, int(event.pid), found), daemon=True
                ).start()
            elif (execution := container.execs.get(event.id)) is not None:
                threading.Thread(target=execution.exited, args=(found,), daemon=True).start()
        elif envelope.topic == "/tasks/oom":
            event = task_pb2.TaskOOM.FromString(envelope.event.value)
            container = self.engine.containers.find(event.container_id)
            if container is not None:
                # The exit may be handled before this: it looks here, too.
                container.out_of_memory = pid = container.pid
                threading.Thread(target=run.out_of_memory, args=(container, pid), daemon=True).start()


def _guarded(engine: Engine, container: Container, pid: int, found: tasks.Exit) -> None:
    try:
        run.exited(engine, container, pid, found)
    except Exception:
        log.exception("the exit of container %s could not be handled", container.id[:12], extra=container.fields)
