# SPDX-License-Identifier: Apache-2.0
"""Figures for Prometheus by HTTP, at /metrics of the address that metrics-addr names, and of the sockets of managed
plugins that collect them, under dockerd's names. Called by main, where there is one of them. The text is a few lines;
prometheus-client would cost 35 ms and 3.8 MB.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from teu import __version__
from teu.engine.core.figures import SECONDS, Durations
from teu.engine.views import system

if TYPE_CHECKING:
    from teu.engine.engine import Engine

log = logging.getLogger("teu.engine")

KIND = "text/plain; version=0.0.4; charset=utf-8"
CLIENTS = 16  # at the same time; others wait
PATIENCE = 10.0  # seconds for a client to ask, and to read
HEAD_LIMIT = 16 << 10
STATES = {"running": "running", "restarting": "running", "paused": "paused"}
_STARTED = time.time()


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _family(name: str, kind: str, about: str, rows: Iterable[tuple[dict[str, str], float]]) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"
    for labels, value in rows:
        told = ",".join(f'{key}="{_quoted(text)}"' for key, text in labels.items())
        yield f"{name}{{{told}}} {value:.15g}" if told else f"{name} {value:.15g}"


def _histogram(name: str, about: str, rows: dict[str, Durations]) -> Iterator[str]:
    """Of each action; the empty one is all that there is."""
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} histogram"
    for action, durations in sorted(rows.items()):
        label = f'action="{action}"' if action else ""
        told, count = f"{{{label}}}" if label else "", 0
        for limit, number in zip((*(f"{each:g}" for each in SECONDS), "+Inf"), durations.counts, strict=True):
            count += number
            yield f'{name}_bucket{{{label}{"," if label else ""}le="{limit}"}} {count}'
        yield f"{name}_sum{told} {durations.seconds:.9g}"
        yield f"{name}_count{told} {count}"


def _network() -> tuple[int, int]:
    """Bytes received and sent by IP (proc_pid_net(5), netstat): lines in pairs, of names and of numbers."""
    with open("/proc/self/net/netstat") as file:
        lines = [line.split() for line in file]
    found = next((pair for pair in zip(lines[::2], lines[1::2], strict=False) if pair[0][0] == "IpExt:"), ([], []))
    known = dict(zip(*found, strict=False))
    return int(known.get("InOctets", 0)), int(known.get("OutOctets", 0))


def _process() -> Iterator[str]:
    """What Prometheus' clients tell of any process."""
    with open("/proc/self/statm") as file:
        size, resident = (int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in file.read().split()[:2])
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    received, sent = _network()
    for name, kind, about, value in (
        (
            "cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            used.ru_utime + used.ru_stime,
        ),
        ("max_fds", "gauge", "Maximum number of open file descriptors.", limit),
        (
            "network_receive_bytes_total",
            "counter",
            "Number of bytes received over the network, by all of its network namespace.",
            received,
        ),
        (
            "network_transmit_bytes_total",
            "counter",
            "Number of bytes sent over the network, by all of its network namespace.",
            sent,
        ),
        ("open_fds", "gauge", "Number of open file descriptors.", len(os.listdir("/proc/self/fd"))),
        ("resident_memory_bytes", "gauge", "Resident memory size in bytes.", resident),
        ("start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", _STARTED),
        ("virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", size),
    ):
        yield from _family(f"process_{name}", kind, about, [({}, value)])


def page(engine: Engine) -> str:
    """All of it."""
    states = Counter(STATES.get(container.status(), "stopped") for container in engine.containers.all())
    name, number = system.operating_system()
    info = {
        "architecture": platform.machine(),
        "commit": "",
        "daemon_id": engine.id,
        "graphdriver": engine.config["storage-driver"],
        "kernel": platform.release(),
        "os": name,
        "os_type": "linux",
        "os_version": number,
        "version": __version__,
    }
    figures = engine.figures
    rows = [({"state": state}, float(states[state])) for state in ("paused", "running", "stopped")]
    lines = [
        *_histogram(
            "engine_daemon_container_actions_seconds",
            "The number of seconds it takes to process each container action",
            figures.actions(),
        ),
        *_histogram(
            "engine_daemon_health_check_start_duration_seconds",
            "The number of seconds from a health check's turn until its program runs",
            {"": figures.check_starts()},
        ),
        *_family(
            "engine_daemon_container_states_containers", "gauge", "The count of containers in various states", rows
        ),
    ]
    for key, kind, about, value in (
        ("engine_cpus_cpus", "gauge", "The number of cpus that the host system of the engine has", os.cpu_count() or 1),
        ("engine_memory_bytes", "gauge", "The number of bytes of memory that the host system has", system.memory()),
        ("events_total", "counter", "The number of events logged", engine.events.published),
        (
            "events_subscribers_total",
            "gauge",
            "The number of current subscribers to events",
            engine.events.subscribers(),
        ),
        ("health_checks_total", "counter", "The total number of health checks", figures.health_checks),
        ("health_checks_failed_total", "counter", "The total number of failed health checks", figures.health_failures),
    ):
        lines += _family(f"engine_daemon_{key}", kind, about, [({}, value)])
    about = "The information related to the engine and the OS it is running on"
    lines += [*_family("engine_daemon_engine_info", "gauge", about, [(info, 1)]), *_process()]
    return "\n".join(lines) + "\n"


class Metrics:
    """Who serves the page, at sockets that listen."""

    def __init__(self, engine: Engine, sockets: Sequence[socket.socket]) -> None:
        self._engine = engine
        self._sockets = sockets
        self._room = threading.Semaphore(CLIENTS)
        self._closed = threading.Event()

    def close(self) -> None:
        """Nobody is answered there any more."""
        self._closed.set()
        for listener in self._sockets:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # who waits for a client wakes up
            listener.close()

    def start(self) -> None:
        for listener in self._sockets:
            threading.Thread(target=self._accept, args=(listener,), name="metrics", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _address = listener.accept()
            except OSError as error:
                if self._closed.is_set() or self._engine.stopping.is_set():
                    return
                log.warning("metrics: %s", error.strerror)
                time.sleep(1)
                continue
            self._room.acquire()
            threading.Thread(target=self._serve, args=(client,), name="metrics-client", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, contextlib.suppress(OSError):
                until, head = time.monotonic() + PATIENCE, b""
                while b"\r\n\r\n" not in head and len(head) < HEAD_LIMIT:
                    client.settimeout(max(until - time.monotonic(), 0.001))
                    if not (part := client.recv(4096)):
                        break
                    head += part
                client.settimeout(PATIENCE)  # sendall has it for the whole answer
                client.sendall(self._answer(head))
        finally:
            self._room.release()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        target = rest.partition(b" ")[0].partition(b"?")[0]
        status, kind, text = "200 OK", KIND, ""
        if b"\r\n\r\n" not in head:
            status = "400 Bad Request"
        elif method not in (b"GET", b"HEAD"):
            status = "405 Method Not Allowed"
        elif target != b"/metrics":
            status = "404 Not Found"
        else:
            try:
                text = page(self._engine)
            except Exception:
                log.exception("the metrics cannot be told")
                status = "500 Internal Server Error"
        if status != "200 OK":
            kind, text = "text/plain; charset=utf-8", f"{status[4:]}: the metrics are at /metrics\n"
        body = text.encode()
        top = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return top.encode() + (b"" if method == b"HEAD" else body)
