# SPDX-License-Identifier: Apache-2.0
"""`stats`: what containers use. One connection per container; one poll loop."""

from __future__ import annotations

import select
import sys
import time

from teu.cli import table
from teu.cli.command import Cli, Command
from teu.cli.errors import APIError
from teu.cli.options import Options
from teu.oci import jsontext, units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from teu.cli.http import Connection, Response

HEADINGS = {
    "Container": "CONTAINER",
    "ID": "CONTAINER ID",
    "Name": "NAME",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %",
    "NetIO": "NET I/O",
    "BlockIO": "BLOCK I/O",
    "PIDs": "PIDS",
}
DEFAULT = ["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"]
CLEAR = "\x1b[2J\x1b[H"


class Watched:
    """One container: its stream of samples and the newest of them."""

    def __init__(self, name: str, connection: Connection) -> None:
        self.asked = name
        self.connection = connection
        self.sample: dict[str, Any] | None = None
        self.response: Response | None = None
        self.rest = b""

    def take(self) -> bool:
        """Read what is there; False when the stream has ended."""
        assert self.response is not None
        lines, self.rest, alive = arrived(self.response, self.rest)
        for line in lines:
            if line.strip():
                self.sample = jsontext.loads(line, exact=True)
        return alive


def arrived(response: Response, rest: bytes) -> tuple[list[bytes], bytes, bool]:
    """Whole lines of a stream that can be read, what is left of one, and whether there is more to come.

    Several chunks may have come in one packet: nothing would tell of the second until the next packet."""
    lines: list[bytes] = []
    while True:
        piece = response.chunk()
        *whole, rest = (rest + piece).split(b"\n")
        lines += whole
        if not piece or not response.connection.buffer:
            return lines, rest, bool(piece)


def cpu_percent(sample: dict[str, Any]) -> float:
    now, before = sample["cpu_stats"], sample["precpu_stats"]
    used = now["cpu_usage"]["total_usage"] - before["cpu_usage"]["total_usage"]
    system = (now.get("system_cpu_usage") or 0) - (before.get("system_cpu_usage") or 0)
    count = now.get("online_cpus") or len(now["cpu_usage"].get("percpu_usage") or ())
    return used / system * count * 100.0 if system > 0 and used > 0 else 0.0


def memory(sample: dict[str, Any]) -> tuple[float, float]:
    """(used without the file cache, limit)"""
    stats = sample.get("memory_stats") or {}
    usage = stats.get("usage") or 0
    detail = stats.get("stats") or {}
    cache = detail.get("total_inactive_file", detail.get("inactive_file", 0))
    return float(usage - cache if cache < usage else usage), float(stats.get("limit") or 0)


def blocks(sample: dict[str, Any]) -> tuple[int, int]:
    read = written = 0
    for entry in (sample.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ():
        first = entry.get("op", "")[:1].lower()
        read += entry["value"] if first == "r" else 0
        written += entry["value"] if first == "w" else 0
    return read, written


def columns(whole: bool) -> dict[str, Callable[[Any], Any]]:
    def having(text: Callable[[dict[str, Any]], str], without: str = "--") -> Callable[[Watched], str]:
        return lambda watched: without if watched.sample is None else text(watched.sample)

    def memory_percent(sample: dict[str, Any]) -> str:
        used, limit = memory(sample)
        return f"{used / limit * 100 if limit else 0:.2f}%"

    def network(sample: dict[str, Any]) -> str:
        networks = (sample.get("networks") or {}).values()
        received = sum(entry["rx_bytes"] for entry in networks)
        sent = sum(entry["tx_bytes"] for entry in networks)
        return f"{units.human_size(received, 3)} / {units.human_size(sent, 3)}"

    def identity(watched: Watched) -> str:
        found = (watched.sample or {}).get("id") or ""
        return found if whole else found[:12]

    return {
        "Container": lambda watched: watched.asked,
        "ID": lambda watched: identity(watched) or "--",
        "Name": having(lambda sample: str(sample.get("name") or "--").removeprefix("/")),
        "CPUPerc": having(lambda sample: f"{cpu_percent(sample):.2f}%"),
        "MemUsage": having(lambda sample: " / ".join(units.binary_size(value) for value in memory(sample)), "-- / --"),
        "MemPerc": having(memory_percent),
        "NetIO": having(network),
        "BlockIO": having(lambda sample: " / ".join(units.human_size(value, 3) for value in blocks(sample))),
        "PIDs": having(lambda sample: str((sample.get("pids_stats") or {}).get("current") or 0)),
    }


def stats(cli: Cli, options: Options, operands: list[str]) -> int:
    monitor = Monitor(cli, options, every=not operands)
    monitor.begin(operands)
    return monitor.run()


class Monitor:
    """Follows the samples of containers and shows them. `every`: of all containers, also of those that start later."""

    def __init__(self, cli: Cli, options: Options, every: bool) -> None:
        self.cli = cli
        self.client = cli.client
        self.every = every
        self.stopped_too = options["all"]
        self.stream = not options["no-stream"]
        self.form = options["format"] or cli.config.get("statsFormat")
        self.view = columns(options["no-trunc"])
        self.watched: dict[str, Watched] = {}  # by container, in the order shown
        self.by_file: dict[int, Watched] = {}  # those whose stream is open
        self.poller = select.poll()
        self.events: Response | None = None
        self.rest = b""  # the start of an event whose end has not come yet
        self.failures: list[str] = []
        self.shown_at = 0.0

    def begin(self, names: list[str]) -> None:
        if self.every:
            # Listen before looking, so that no container started in between is missed.
            if self.stream:
                kinds = {"type": {"container": True}}
                self.events = self.client.open("GET", "/events", {"filters": kinds}, own=True)
                self.poller.register(self.events.connection.sock, select.POLLIN)
            names = [found["Id"] for found in self.client.get("/containers/json", {"all": self.stopped_too})]
        for name in names:
            self.watch(name)

    def run(self) -> int:
        while self.by_file or self.events is not None:
            complete = all(entry.sample for entry in self.watched.values())
            if self.stream and complete and time.monotonic() - self.shown_at > 0.5:
                self.show()
            ready = self.poller.poll(500)
            for file, _ in ready:
                if self.events is not None and file == self.events.connection.sock.fileno():
                    self.receive_events(self.events)
                elif file in self.by_file:
                    try:
                        self.receive(file)
                    except APIError as error:
                        self.failures.append(str(error))
            if self.failures and not self.every:
                self.cli.warn("\n".join(self.failures))
                return 1
            if self.stream and not ready and time.monotonic() - self.shown_at > 1:
                self.show()
        if not self.stream:
            self.show()
        return 0

    def watch(self, name: str) -> None:
        connection = self.client.begin("GET", f"/containers/{name}/stats", {"stream": "1" if self.stream else "0"})
        entry = Watched(name[:12] if self.every else name, connection)
        self.watched[name] = self.by_file[connection.sock.fileno()] = entry
        self.poller.register(connection.sock, select.POLLIN)

    def show(self) -> None:
        text: list[str] = []
        table.print_list(list(self.watched.values()), self.view, HEADINGS, DEFAULT, self.form, out=text.append)
        sys.stdout.write((CLEAR if self.stream else "") + "".join(text))
        sys.stdout.flush()
        self.shown_at = time.monotonic()

    def receive(self, file: int) -> None:
        """Take what one container's stream brings, and stop following it at its end."""
        entry = self.by_file[file]
        alive = True
        if entry.response is None:
            response = self.client.answer(entry.connection)
            if response.status >= 400:
                self.failures.append(str(self.client.failure(response)))
                alive = False
            entry.response = response
        if alive:
            alive = entry.take()
            if alive and not self.stream:
                alive = entry.sample is None and not entry.response.finished
        if not alive:
            self.poller.unregister(file)
            del self.by_file[file]
            if self.stream or entry.sample is None:
                name = next((name for name, other in self.watched.items() if other is entry), "")
                self.watched.pop(name, None)

    def receive_events(self, events: Response) -> None:
        lines, self.rest, alive = arrived(events, self.rest)
        if not alive:  # the daemon goes; what is still followed ends with it
            self.poller.unregister(events.connection.sock)
            self.events = None
            if not self.by_file:
                return
        for line in lines:
            if line.strip():
                self.heed(jsontext.loads(line, exact=True))

    def heed(self, message: dict[str, Any]) -> None:
        """Follow a container that starts, and forget one that ends."""
        name = (message.get("Actor") or {}).get("ID", "")
        action = message.get("Action", "")
        if action in ("start", "create") and name not in self.watched:
            if action == "start" or self.stopped_too:
                self.watch(name)
        elif action == "destroy" or (action == "die" and not self.stopped_too):
            self.watched.pop(name, None)


COMMANDS = {
    "container stats": Command(
        stats,
        "[OPTIONS] [CONTAINER...]",
        0,
        None,
        """
-a --all        bool    Show stopped containers too
   --format     string  `table`, `table TEMPLATE`, `json` or a Go template
   --no-stream  bool    Show one sample and exit
   --no-trunc   bool    Do not shorten anything
""",
    ),
}
