# SPDX-License-Identifier: Apache-2.0
"""What a client that is a unit's main process tells systemd of its container (sd_notify(3)).

teu-unit does for each declared container, and `teu run --sdnotify` where it is run by a unit of the user's own:

    container   the container is told of a socket of ours; what a service may say there is handed on to systemd
    healthy     READY=1 when its health check has succeeded
    conmon      READY=1 when it runs, as podman's conmon says it

What names processes (MAINPID=) is not handed on: inside it is root. The engine is told of the readiness as well, which
makes an event of it.
"""

from __future__ import annotations

import _socket
import os

from teu.cli.errors import CommandError, ConnectError
from teu.linux import cgroup_files
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from teu.cli.http import Client, Connection

LABEL = "io.teu.unit"  # the unit whose StatusText the engine shows beside the container
INSIDE = "/run/teu-notify"  # the container's NOTIFY_SOCKET
KINDS = ("container", "healthy", "conmon", "ignore")
# What a container may say to systemd. Not MAINPID=, which would let it name any process of the host.
MAY_SAY = frozenset(
    b"READY RELOADING STOPPING STATUS ERRNO BUSERROR EXIT_STATUS MONOTONIC_USEC EXTEND_TIMEOUT_USEC WATCHDOG"
    b" WATCHDOG_USEC FDSTORE FDSTOREREMOVE FDNAME FDPOLL BARRIER".split()
)
MESSAGE, DESCRIPTORS = 1 << 16, 253 * 4


def notify(*lines: str) -> None:
    """Tell systemd; nothing where this is no Type=notify unit."""
    send([os.fsencode("\n".join(lines))], [])


def send(message: list[bytes], rights: list[tuple[int, int, bytes]]) -> None:
    """Send one datagram to systemd as it is, with its descriptors. What cannot be sent is lost."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        connection.sendmsg(message, rights, 0, "\0" + address[1:] if address[0] == "@" else address)
    except OSError:
        pass  # systemd is executing itself anew; it asks again
    finally:
        connection.close()


def tell_engine(client: Client, container: str) -> Connection | None:
    """Have the engine know that the container is ready, for its event. Its answer is not waited for, as an engine that
    hangs must not hold up a watchdog; keep the connection, for the engine would take its end for ours."""
    try:
        return client.begin("POST", f"/containers/{container}/ready")
    except (ConnectError, OSError):
        return None


class Inbox:
    """The socket that a container talks to. `path` is made here, and anyone inside may write to it."""

    def __init__(self, path: str) -> None:
        kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        self._socket = _socket.socket(_socket.AF_UNIX, kind)
        self._socket.bind(path)
        os.chmod(path, 0o777)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def hand_on(self) -> bool:
        """To systemd, line by line, what a container may say; descriptors for its store and its barrier go along.
        Returns whether it has said that it is ready."""
        ready = False
        while True:
            try:
                data, control, _, _ = self._socket.recvmsg(
                    MESSAGE, _socket.CMSG_SPACE(DESCRIPTORS), _socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return ready
            rights = [entry for entry in control if entry[:2] == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)]
            lines = [line for line in data.split(b"\n") if line.partition(b"=")[0] in MAY_SAY]
            if lines:
                send([b"\n".join(lines)], rights)
            ready = ready or b"READY=1" in lines
            for _, _, numbers in rights:
                for start in range(0, len(numbers) - 3, 4):
                    os.close(int.from_bytes(numbers[start : start + 4], "little", signed=True))


def open_health(client: Client, container: str) -> Connection:
    """The events of the container's health. Raises APIError, ConnectError."""
    wanted = {"container": {container: True}, "event": {"health_status": True}}
    return client.open("GET", "/events", {"filters": wanted}, own=True).connection


def read_health(events: Connection) -> tuple[list[str], bool]:
    """What was heard since the last time, as "healthy", and whether the daemon is still there to tell more."""
    try:
        there = events.fill()
    except OSError:
        there = False
    lines = bytes(events.buffer).split(b"\n")
    del events.buffer[: len(events.buffer) - len(lines[-1])]
    found = (str(jsontext.loads(line).get("Action", "")) for line in lines[:-1] if line.startswith(b"{"))
    return [action.partition(": ")[2] for action in found], bool(there)


class Teller:
    """`teu run --sdnotify=KIND` in a unit: between the container and systemd as long as the client is attached.

    Call `prepare` with the body of the request, `started` after the start, `close` in the end; `files` are the
    descriptors to wait for meanwhile, each with what to do when it is readable."""

    def __init__(self, client: Client, kind: str) -> None:
        self._client = client
        self._kind = kind
        self._folder = ""
        self._inbox: Inbox | None = None
        self._container = ""
        self._events: Connection | None = None
        self._ready = False
        self._told: Connection | None = None
        self.files: dict[int, Callable[[], None]] = {}

    def prepare(self, body: dict[str, Any]) -> None:
        """Add to the request what the container needs for it. Raises CommandError where it cannot be."""
        unit = _own_unit()
        if unit:
            body["Labels"] = {**(body.get("Labels") or {}), LABEL: unit}
        if self._kind != "container":
            return
        if not self._client.host.startswith("unix://"):
            raise CommandError("--sdnotify=container needs a daemon on this host: use healthy or conmon")
        base = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or os.environ.get("XDG_RUNTIME_DIR") or "/run"
        self._folder = f"{base}/teu-notify-{os.getpid()}"
        try:
            os.mkdir(self._folder, 0o755)
            self._inbox = Inbox(self._folder + "/notify")
        except OSError as error:
            raise CommandError(
                f"cannot make the container's socket in {self._folder}: {error.strerror}: RuntimeDirectory= of the unit"
                " names a folder for it"
            ) from None
        self.files[self._inbox.fileno()] = self._hand_on
        host = body["HostConfig"]
        host["Binds"] = [*(host.get("Binds") or ()), f"{self._folder}/notify:{INSIDE}:rw"]
        body["Env"] = [*(body.get("Env") or ()), f"NOTIFY_SOCKET={INSIDE}"]
        if os.environ.get("WATCHDOG_USEC"):
            body["Env"].append("WATCHDOG_USEC=" + os.environ["WATCHDOG_USEC"])

    def listen(self, container: str) -> None:
        """Before the start, so that nothing is missed. Raises APIError, ConnectError."""
        self._container = container
        if self._kind == "healthy":
            self._events = open_health(self._client, container)
            self.files[self._events.sock.fileno()] = self._read_events

    def started(self) -> None:
        """The container runs. Raises CommandError where it has no check that could tell of its health."""
        if self._kind == "conmon":
            self._is_ready("Running")
        elif self._kind == "container":
            notify("STATUS=Waiting until the container is ready")
        else:
            self._ask_health()

    def close(self) -> None:
        """The container has ended, or we are detached from it."""
        for connection in (self._events, self._told):
            if connection is not None:
                connection.close()
        if self._inbox is not None:
            self._inbox.close()
        if self._folder:
            for remove, path in ((os.unlink, self._folder + "/notify"), (os.rmdir, self._folder)):
                try:
                    remove(path)
                except FileNotFoundError:
                    pass

    def _hand_on(self) -> None:
        assert self._inbox is not None
        if self._inbox.hand_on() and not self._ready:
            self._became_ready()

    def _is_ready(self, status: str) -> None:
        notify("READY=1", f"STATUS={status}")
        if not self._ready:
            self._became_ready()

    def _became_ready(self) -> None:
        self._ready = True
        self._told = tell_engine(self._client, self._container)

    def _ask_health(self) -> None:
        state = self._client.get(f"/containers/{self._container}/json")["State"]
        if state.get("Running") and not state.get("Health"):
            raise CommandError("--sdnotify=healthy needs a check: give --health-cmd, or an image that has one")
        if not self._ready:
            notify("STATUS=Waiting until the container is healthy")
        self._heard((state.get("Health") or {}).get("Status", ""))

    def _read_events(self) -> None:
        assert self._events is not None
        heard, there = read_health(self._events)
        for health in heard:
            self._heard(health)
        if not there:  # the daemon has gone: the attached stream ends with it
            del self.files[self._events.sock.fileno()]
            self._events.close()
            self._events = None

    def _heard(self, health: str) -> None:
        if health == "healthy":
            self._is_ready("Healthy")
        elif health and health != "starting":
            notify(f"STATUS={health.capitalize()}")


def _own_unit() -> str:
    """The service that this process is the main process of; empty elsewhere."""
    path = cgroup_files.in_listing(cgroup_files.text("/proc/self", "cgroup")) or ""
    name = path.rpartition("/")[2]
    return name if name.endswith(".service") else ""


def teller(client: Client, kind: str, *, detached: bool) -> Teller | None:
    """What --sdnotify=KIND asks for; None where it is nothing, or where nobody listens. Raises ValueError."""
    if kind not in KINDS:
        raise ValueError(f"invalid sdnotify option: '{kind}': must be one of {', '.join(KINDS)}")
    if kind == "ignore":
        return None
    if detached:
        raise ValueError(f"--sdnotify={kind} needs a client that stays with the container: leave out --detach")
    return Teller(client, kind) if os.environ.get("NOTIFY_SOCKET") else None
