# SPDX-License-Identifier: Apache-2.0
"""`stats`: what containers use. One connection per container; one poll loop."""

from __future__ import annotations

import select
import sys
import time

from teu.cli import table
from teu.cli.commands import Cli, Command
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
    client = cli.client
    every = not operands
    stream = not options["no-stream"]
    form = options["format"] or cli.config.get("statsFormat")
    view = columns(options["no-trunc"])
    watched: dict[str, Watched] = {}
    by_file: dict[int, Watched] = {}
    poller = select.poll()
    events: Response | None = None
    if every:
        # Listen before looking, so that no container started in between is missed.
        if stream:
            kinds = {"type": {"container": True}}
            events = client.open("GET", "/events", {"filters": kinds}, own=True)
            poller.register(events.connection.sock, select.POLLIN)
        names = [found["Id"] for found in client.get("/containers/json", {"all": options["all"]})]
    else:
        names = operands

    def watch(name: str) -> None:
        connection = client.begin("GET", f"/containers/{name}/stats", {"stream": "1" if stream else "0"})
        watched[name] = by_file[connection.sock.fileno()] = Watched(name[:12] if every else name, connection)
        poller.register(connection.sock, select.POLLIN)

    def show() -> None:
        text: list[str] = []
        table.print_list(list(watched.values()), view, HEADINGS, DEFAULT, form, out=text.append)
        sys.stdout.write((CLEAR if stream else "") + "".join(text))
        sys.stdout.flush()

    for name in names:
        watch(name)
    failures: list[str] = []

    def receive(file: int) -> None:
        entry = by_file[file]
        alive = True
        if entry.response is None:
            response = client.answer(entry.connection)
            if response.status >= 400:
                failures.append(str(client.failure(response)))
                alive = False
            entry.response = response
        if alive:
            alive = entry.take()
            if alive and not stream:
                alive = entry.sample is None and not entry.response.finished
        if not alive:
            poller.unregister(file)
            del by_file[file]
            if stream or entry.sample is None:
                watched.pop(next((name for name, value in watched.items() if value is entry), ""), None)

    rest = b""
    shown_at = 0.0
    while by_file or events is not None:
        first = time.monotonic() - shown_at > 0.5 and all(entry.sample for entry in watched.values())
        if stream and first:
            show()
            shown_at = time.monotonic()
        ready = poller.poll(500)
        for file, _ in ready:
            if events is not None and file == events.connection.sock.fileno():
                lines, rest, alive = arrived(events, rest)
                if not alive:  # the daemon goes; what could still be watched ends with it
                    poller.unregister(file)
                    events = None
                    if not by_file:
                        break
                for line in lines:
                    message = jsontext.loads(line, exact=True) if line.strip() else {}
                    name = (message.get("Actor") or {}).get("ID", "")
                    action = message.get("Action", "")
                    if action in ("start", "create") and name not in watched:
                        if action == "start" or options["all"]:
                            watch(name)
                    elif action == "destroy" or (action == "die" and not options["all"]):
                        watched.pop(name, None)
            elif file in by_file:
                try:
                    receive(file)
                except APIError as error:
                    failures.append(str(error))
        if failures and not every:
            cli.warn("\n".join(failures))
            return 1
        if stream and not ready and time.monotonic() - shown_at > 1:
            show()
            shown_at = time.monotonic()
    if not stream:
        show()
    return 0


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
