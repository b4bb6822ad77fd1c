# SPDX-License-Identifier: Apache-2.0
"""What teu-unit does from the start of its container to the end: one loop over a few descriptors.

    a pidfd                 the container has ended; then /wait has its exit code
    signals                 SIGTERM stops the container, others are passed on to it
    /run/teu/units/U/notify what the container says to systemd, with Notify=yes
    /events                 its health, where that matters
    time                    WATCHDOG=1, unless the container says that itself

So nothing holds teud, which may be stopped, or leave, while the container runs. When it is needed again a connection
starts it, and a container that has ended meanwhile has its exit code still.
"""

from __future__ import annotations

import os
import select

from teu.cli import readiness
from teu.cli.errors import APIError, CommandError, ConnectError
from teu.cli.readiness import notify
from teu.linux import cgroup_files
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any

    from teu.cli.command import Cli
    from teu.cli.http import Connection, Response
    from teu.cli.options import Options
else:
    import _signal

PASSED_ON = tuple(
    getattr(_signal, name) for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGCONT")
)
AWAY_MILLISECONDS = 500
# How long it waits for the exit code before it looks whether the engine has started the container again.
AGAIN_MILLISECONDS = 1000
SIGNALS = {name: number for name, number in vars(_signal).items() if name.startswith("SIG") and name[3] != "_"}


SYSTEMCTL = "/usr/bin/systemctl"
DAEMONS = ("teu-containerd.service", "teud.service")
THERE = "/run/systemd/units/invocation:"  # and a unit: while it is active


class Asked(BaseException):
    """SIGTERM, before there is anything to stop."""

    @staticmethod
    def stop(number: int, frame: object) -> None:
        raise Asked


def wake() -> None:
    """Start the daemons that are away, whatever the order of units. Ours ends before theirs: while it stops, systemd
    holds back the start that a connection asks for, and the stop would wait for that."""
    away = [name for name in DAEMONS if not os.path.lexists(THERE + name)]
    if away and not os.environ.get("TEU_HOST"):
        words = [SYSTEMCTL, "start", "--no-block", "--job-mode=ignore-dependencies", *away]
        os.waitpid(os.posix_spawn(SYSTEMCTL, words, os.environ), 0)


def signal_number(text: str) -> int:
    """Of a stop signal as images and options have it; SIGTERM for none."""
    if text.isdecimal():
        return int(text)
    return int(SIGNALS.get(text if text.startswith("SIG") else "SIG" + text, 15))


class Watch:
    """One container, from its start to its end."""

    def __init__(self, cli: Cli, options: Options, folder: str) -> None:
        self.cli = cli
        self.notified_by = options["notify"]
        self.acts_on_health = options["health-on-failure"] not in ("", "none")
        self.folder = folder
        self.id = ""
        self.path = ""
        self.ready = False
        self.asked = False
        self.stop_signal = 15
        self.signals: list[int] = []
        self.inbox: readiness.Inbox | None = None
        self.process = -1  # the pidfd of its first process
        self.has_check = False
        self.end: Connection | None = None
        self.head: Response | None = None  # of the answer of /wait
        self.events: Connection | None = None
        self.told: Connection | None = None
        self.stopping: Connection | None = None  # its answer is not read; teud would take an end of it for ours
        self.watchdog = self._watchdog_milliseconds()

    def _watchdog_milliseconds(self) -> int:
        """How often to say WATCHDOG=1; 0 for never."""
        limit = os.environ.get("WATCHDOG_USEC", "")
        return int(limit) // 2000 if limit.isdecimal() and self.notified_by != "container" else 0

    def listen(self) -> None:
        """Make the socket that the container talks to."""
        self.inbox = readiness.Inbox(self.folder + "/notify")

    def start(self, container: str) -> None:
        """Start a container that was created, and tell systemd if that is all it waits for."""
        self.id = container
        self.path = "/containers/" + container
        if self._needs_health():
            self._open_events()
        self.cli.client.call("POST", self.path + "/start")
        found = self.cli.client.get(self.path + "/json")
        self._follow(found)
        self.stop_signal = signal_number(found["Config"].get("StopSignal") or "")
        _close_passed()
        if self.notified_by == "healthy":
            if not self.has_check:
                raise CommandError("Notify=healthy needs a check: give HealthCmd=, or an image that has one")
            notify("STATUS=Waiting until the container is healthy")
            self._heard(found["State"]["Health"]["Status"])
        elif self.notified_by == "started":
            self._is_ready("Running")
        elif not self.ready:
            notify("STATUS=Waiting until the container is ready")
        if self.cli.client.idle is not None:
            self.cli.client.idle.close()
            self.cli.client.idle = None

    def _needs_health(self) -> bool:
        return bool(self.notified_by == "healthy" or self.acts_on_health)

    def _follow(self, found: dict[str, Any]) -> None:
        """Wait for the end of the process that the daemon tells of; where there is none, for the exit code.

        The end of a process is not the container's where the engine starts that again: for its health, or by hand."""
        self.has_check = bool(found["State"].get("Health"))
        pid = int(found["State"].get("Pid") or 0)
        try:
            self.process = os.pidfd_open(pid) if pid > 0 else -1
            if self.process >= 0 and self.id not in cgroup_files.text(f"/proc/{pid}", "cgroup"):
                os.close(self.process)  # it has ended, and the number is another's
                self.process = -1
        except ProcessLookupError:
            self.process = -1

    def _open_end(self) -> None:
        self.head = None
        self.end = self.cli.client.begin("POST", self.path + "/wait", {"condition": "ended"})

    def _open_events(self) -> None:
        self.events = readiness.open_health(self.cli.client, self.id)

    def _is_ready(self, status: str) -> None:
        notify("READY=1", f"STATUS={status}")
        self._became_ready()

    def _became_ready(self) -> None:
        if not self.ready:
            self.ready = True
            self.told = readiness.tell_engine(self.cli.client, self.id)

    # -- the loop --

    def until_the_end(self) -> int:
        """Watch; the exit code for systemd when the container has ended."""
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in (_signal.SIGTERM, *PASSED_ON):
            _signal.signal(number, self._signal)
        _signal.set_wakeup_fd(write)
        while True:
            poll = select.poll()
            poll.register(read, select.POLLIN)
            if self.inbox is not None:
                poll.register(self.inbox, select.POLLIN)
            for connection in (self.end, self.events):
                if connection is not None:
                    poll.register(connection.sock, select.POLLIN)
            if self.process >= 0:
                poll.register(self.process, select.POLLIN)
            found = {fd for fd, _ in poll.poll(self._patience())}
            if read in found:
                os.read(read, 4096)
            self._pass_signals()
            if self.inbox is not None and self.inbox.fileno() in found:
                self._hand_on()
            if self.watchdog:
                self._feed()
            if self.events is not None and self.events.sock.fileno() in found:
                self._read_events()
            if self.process >= 0 and self.process in found:
                os.close(self.process)
                self.process = -1
            if self.process < 0 and (self.end is None or self.end.sock.fileno() in found):
                code = self._ended()
                if code is not None:
                    return code
            elif self.process < 0 and not found:
                self._follow_again()

    def _patience(self) -> int | None:
        """How many milliseconds to wait for something to happen."""
        limits = [self.watchdog] if self.watchdog else []
        if self.process < 0:
            limits.append(AWAY_MILLISECONDS if self.end is None else AGAIN_MILLISECONDS)
        return min(limits, default=None)

    def _signal(self, number: int, frame: object) -> None:
        self.signals.append(number)

    def _pass_signals(self) -> None:
        while self.signals:
            number = self.signals.pop(0)
            try:
                if number == _signal.SIGTERM:
                    self.asked = True
                    notify("STOPPING=1", "STATUS=Stopping the container")
                    wake()
                    self._stop()
                else:
                    self.cli.client.call("POST", self.path + "/kill", {"signal": number})
            except (APIError, ConnectError):
                pass  # it has ended, or teud is away: systemd kills what is left then

    def _stop(self) -> None:
        """Ask for the end; the answer of /wait is what tells of it."""
        self.stopping = self.cli.client.begin("POST", self.path + "/stop")

    def _ended(self) -> int | None:
        """The exit code, if the container has ended; None if it was only teud that went."""
        try:
            if self.end is None:
                self._open_end()
                return None
            if self.head is None:  # which comes when the daemon has begun to wait
                self.head = self.cli.client.answer(self.end)
                if not self.end.buffer:
                    return None
            response, self.head = self.head, None
            answer = jsontext.loads(response.read())
            self.end.close()
            if response.status >= 400:
                raise CommandError(str(answer.get("message")))
        except (ConnectError, OSError, ValueError):
            self.end = self.head = None
            return None  # teud has gone: again in a moment
        code = int(answer.get("StatusCode") or 0)
        problem = (answer.get("Error") or {}).get("Message")
        if problem:
            self.cli.warn(str(problem))
        return 0 if self.asked and code == 128 + self.stop_signal else code & 255

    def _follow_again(self) -> None:
        """The exit code does not come: where the engine has started the container again, wait for its next end."""
        try:
            found = self.cli.client.get(self.path + "/json")
        except (APIError, ConnectError, OSError):
            return  # the answer of /wait breaks off as well
        if found["State"].get("Running"):
            self._follow(found)
            if self.process >= 0 and self.end is not None:
                self.end.close()
                self.end = self.head = None

    # -- what the container says, and its health --

    def _hand_on(self) -> None:
        assert self.inbox is not None
        if self.inbox.hand_on():
            self._became_ready()

    def _read_events(self) -> None:
        assert self.events is not None
        heard, there = readiness.read_health(self.events)
        for health in heard:
            self._heard(health)
        if not there:
            self.events.close()
            self.events = None
            self._ask_health()

    def _ask_health(self) -> None:
        """After teud was away: listen again, and see what was missed."""
        try:
            self._open_events()
            found = self.cli.client.get(self.path + "/json")
        except (APIError, ConnectError, OSError):
            return  # the next round of _ended finds it there
        self._heard((found["State"].get("Health") or {}).get("Status", ""))

    def _heard(self, health: str) -> None:
        if not health:
            return
        if health == "healthy" and not self.ready and self.notified_by == "healthy":
            self._is_ready("Healthy")
        elif self.ready or health != "starting":
            notify(f"STATUS={health.capitalize()}")

    def _feed(self) -> None:
        """WATCHDOG=1, but for a container whose check fails."""
        if not self.has_check:
            notify("WATCHDOG=1")
            return
        try:
            found = self.cli.client.get(self.path + "/json")
        except (APIError, ConnectError, OSError):
            found = {}
        if ((found.get("State") or {}).get("Health") or {}).get("Status") != "unhealthy":
            notify("WATCHDOG=1")


def _close_passed() -> None:
    """The sockets that systemd passed are the container's now: as long as they are open here, nobody else ends them."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and count.isdecimal():
        for number in range(3, 3 + int(count)):
            try:
                os.close(number)
            except OSError:
                pass
