#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Networks of teud against those of dockerd, in turns: what it costs to attach a container, what traffic costs, and how
both grow with the number of networks and published ports.

    python3 benchmarks/networks.py [--rounds 9] [--only attach,traffic,many]

`./dev bench` calls `attach`, `traffic` and `many`; both daemons must be running, and the image there. Traffic is made
by this program in the containers' network namespaces, so that only what is between them differs, and in one of its own,
which stands for a machine outside. All is in the lab's own namespaces, and of bounded amount.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import Row, run, table

from teu.linux.namespaces import CLONE_NEWNET, setns

IMAGE = "busybox:latest"
ENGINES: dict[str, list[str]] = {"teu": ["teu"], "docker": ["docker", "-H", "unix:///run/docker.sock"]}
LISTENING = 80  # in the container
PUBLISHED = {"teu": 18080, "docker": 28080}
OUTSIDE = "teu-bench"  # a network namespace, and what is at its name in this one
HOST_ADDRESS, FAR_ADDRESS = "203.0.113.1", "203.0.113.2"

STREAM = 512 << 20  # bytes of one sample
PIECE = 256 << 10
DATAGRAMS, DATAGRAM = 40_000, 1400  # of one sample, and bytes of each
ROUND_TRIPS = 2000
CONNECTIONS = 300
LONGEST = 60  # seconds of one sample
ALL = os.sched_getaffinity(0)
# Round trips have both ends on one processor: otherwise the scheduler's choice is what is measured (24 or 56 µs, with
# either engine, for minutes).
ONE = {min(ALL)}

SIZES = (0, 20, 50, 100, 150, 200)  # networks, with one container on each
PORTS_EACH = 5  # of each container
COMPARED = 20  # networks: further ones teud has alone, as dockerd has a process or two for each port


def settle(seconds: float = 0.3) -> None:
    """Let the daemons and the kernel finish what the last job left to them: namespaces and interfaces go later."""
    time.sleep(seconds)


# -- attaching -----------------------------------------------------------------------------------


def attach(rounds: int) -> Iterator[Row]:
    """What a network costs of `run`: each round's time on it less that on another one."""
    with contextlib.ExitStack() as stack:
        for who, cmd in ENGINES.items():
            second = {"teu": 30, "docker": 40}[who]
            stack.enter_context(network(cmd, "bench4", "--subnet", f"10.{second}.4.0/24"))
            both = ("--ipv6", "--subnet", f"10.{second}.6.0/24", "--subnet", f"fd00:7e5:{second}::/64")
            stack.enter_context(network(cmd, "bench46", *both))
        yield from _less("attach to the default bridge: run --rm there less --network host", "bridge", "host", rounds)
        yield from _less("attach to a network: run --rm there less --network host", "bench4", "host", rounds)
        yield from _less("IPv6 beside IPv4: run --rm with both less IPv4 alone", "bench46", "bench4", rounds)


def _less(name: str, one: str, other: str, rounds: int) -> Iterator[Row]:
    row = Row(name, "ms", {who: [] for who in ENGINES})
    for index in range(rounds + 2):
        for who, cmd in ENGINES.items():
            spent = []
            for where in (other, one) if index % 2 else (one, other):
                begin = time.perf_counter()
                run([*cmd, "run", "--rm", "--network", where, IMAGE, "true"])
                spent.append((time.perf_counter() - begin) * 1000)
                settle()
            if index >= 2:
                row.samples[who].append(spent[1] - spent[0] if index % 2 else spent[0] - spent[1])
    yield row


@contextlib.contextmanager
def network(cmd: Sequence[str], name: str, *options: str) -> Iterator[None]:
    run([*cmd, "network", "create", *options, name])
    try:
        yield
    finally:
        run([*cmd, "network", "rm", name])


# -- traffic -------------------------------------------------------------------------------------


class Place:
    """A network namespace, and a child of ours there for each job."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._descriptor)

    def call(self, function: Callable[[], float], processors: set[int]) -> float:
        """What it returns when it is called there, on those processors."""
        read, write = os.pipe()

        def body() -> None:
            signal.alarm(LONGEST)  # a datagram that is lost is never answered
            os.sched_setaffinity(0, processors)
            os.write(write, struct.pack("=d", function()))

        pid = self._fork(body)
        os.close(write)
        with open(read, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
        if len(answer) != 8:
            raise RuntimeError(f"{function} has failed")
        return float(struct.unpack("=d", answer)[0])

    @contextlib.contextmanager
    def serving(self, processors: set[int]) -> Iterator[None]:
        """Answers there, on those processors, until this is over."""
        read, write = os.pipe()

        def body() -> None:
            os.sched_setaffinity(0, processors)
            serve(write)

        pid = self._fork(body)
        os.close(write)
        try:
            if os.read(read, 1) != b"1":
                raise RuntimeError("the server has failed")
            yield
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(read)

    def _fork(self, body: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                setns(self._descriptor, CLONE_NEWNET)
                body()
                status = 0
            except BaseException as error:
                print(f"networks: {error!r}", file=sys.stderr)
            finally:
                os._exit(status)
        return pid


def serve(ready: int) -> None:
    """One client at a time: the first byte of what it sends tells what it wants."""
    tcp = socket.create_server(("0.0.0.0", LISTENING), backlog=512)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    udp.bind(("0.0.0.0", LISTENING))
    threading.Thread(target=_serve_datagrams, args=(udp,), daemon=True).start()
    os.write(ready, b"1")
    buffer = bytearray(PIECE)
    while True:
        connection = tcp.accept()[0]
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            want = connection.recv(1)
            if want == b"S":  # a stream: told when it is over
                while connection.recv_into(buffer):
                    pass
                connection.sendall(b"1")
            elif want == b"E":  # echoes
                while data := connection.recv(64):
                    connection.sendall(data)
            # else a connection alone: closed here first, so that it does not stay with the client


def _serve_datagrams(udp: socket.socket) -> None:
    """Counted, or sent back; `?` asks how many came since."""
    count = 0
    while True:
        data, client = udp.recvfrom(2048)
        if data[:1] == b"D":
            count += 1
        elif data[:1] == b"?":
            udp.sendto(struct.pack("=I", count), client)
            count = 0
        else:
            udp.sendto(data, client)


def stream(address: str, port: int) -> float:
    """Milliseconds for STREAM bytes."""
    with socket.create_connection((address, port)) as sock:
        sock.sendall(b"S")
        piece = memoryview(bytes(PIECE))
        begin = time.perf_counter()
        for _ in range(STREAM // PIECE):
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        if sock.recv(1) != b"1":
            raise RuntimeError("the stream was cut")
        return (time.perf_counter() - begin) * 1000


def round_trip(address: str, port: int) -> float:
    """Microseconds of one, of ROUND_TRIPS over one connection."""
    with socket.create_connection((address, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"E")
        begin = time.perf_counter()
        for _ in range(ROUND_TRIPS):
            sock.sendall(b"x")
            if not sock.recv(1):
                raise RuntimeError("the connection was cut")
        return (time.perf_counter() - begin) * 1e6 / ROUND_TRIPS


def connection(address: str, port: int) -> float:
    """Microseconds of one that is made and closed, of CONNECTIONS."""
    begin = time.perf_counter()
    for _ in range(CONNECTIONS):
        with socket.create_connection((address, port)) as sock:
            sock.sendall(b"C")
            sock.recv(1)
    return (time.perf_counter() - begin) * 1e6 / CONNECTIONS


def datagrams(address: str, port: int) -> float:
    """Microseconds for each of those that arrive, of DATAGRAMS sent as fast as it goes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        _count(sock)
        payload = b"D" * DATAGRAM
        begin = time.perf_counter()
        for _ in range(DATAGRAMS):
            with contextlib.suppress(OSError):  # ENOBUFS: the queue is full
                sock.send(payload)
        arrived = _count(sock)
        return (time.perf_counter() - begin) * 1e6 / arrived


def _count(sock: socket.socket) -> int:
    """How many datagrams came since this was asked last; asked behind them, until it is answered."""
    while True:
        sock.send(b"?")
        if select.select([sock], [], [], 1.0)[0]:
            return int(struct.unpack("=I", sock.recv(4))[0])


def round_trip_udp(address: str, port: int) -> float:
    """Microseconds of one, of ROUND_TRIPS."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        begin = time.perf_counter()
        for _ in range(ROUND_TRIPS):
            sock.send(b"x")
            sock.recv(64)
        return (time.perf_counter() - begin) * 1e6 / ROUND_TRIPS


JOBS: dict[str, tuple[str, Callable[[str, int], float], set[int]]] = {
    f"TCP, {STREAM >> 20} MiB": ("ms", stream, ALL),
    "TCP, a round trip": ("µs", round_trip, ONE),
    "TCP, a connection": ("µs", connection, ONE),
    f"UDP, a datagram of {DATAGRAM} bytes": ("µs", datagrams, ALL),
    "UDP, a round trip": ("µs", round_trip_udp, ONE),
}


class Side:
    """One engine's two containers: a server with a published port, and a client on the same network."""

    def __init__(self, who: str, stack: contextlib.ExitStack) -> None:
        cmd = ENGINES[who]
        second = {"teu": 30, "docker": 40}[who]
        stack.enter_context(network(cmd, "bench", "--subnet", f"10.{second}.1.0/24"))
        ports = [f"-p={PUBLISHED[who]}:{LISTENING}/{protocol}" for protocol in ("tcp", "udp")]
        for name in ("bench-server", "bench-client"):
            run([*cmd, "run", "-d", "--network", "bench", "--name", name, *ports, IMAGE, "sleep", "3600"])
            stack.callback(run, [*cmd, "rm", "-f", name])
            ports = []
        settings = '{{.State.Pid}} {{(index .NetworkSettings.Networks "bench").IPAddress}}'
        pid, self.address = run([*cmd, "inspect", "-f", settings, "bench-server"]).split()
        self.server = Place(f"/proc/{pid}/ns/net")
        stack.callback(self.server.close)
        self.client = Place(f"/proc/{run([*cmd, 'inspect', '-f', '{{.State.Pid}}', 'bench-client']).strip()}/ns/net")
        stack.callback(self.client.close)
        self.port = PUBLISHED[who]


@contextlib.contextmanager
def outside() -> Iterator[Place]:
    """A machine beside the host, with a cable to it."""
    ip = ["ip", "-n", OUTSIDE]
    run(["ip", "netns", "add", OUTSIDE])
    try:
        run(["ip", "link", "add", OUTSIDE, "type", "veth", "peer", "name", "eth0", "netns", OUTSIDE])
        run(["ip", "addr", "add", f"{HOST_ADDRESS}/24", "dev", OUTSIDE])
        run(["ip", "link", "set", OUTSIDE, "up"])
        run([*ip, "addr", "add", f"{FAR_ADDRESS}/24", "dev", "eth0"])
        run([*ip, "link", "set", "eth0", "up"])
        place = Place(f"/run/netns/{OUTSIDE}")
        try:
            yield place
        finally:
            place.close()
    finally:
        run(["ip", "netns", "del", OUTSIDE])  # and both ends of the cable


def traffic(rounds: int) -> Iterator[Row]:
    """Container to container, and to a published port from the host and from outside."""
    with contextlib.ExitStack() as stack:
        far = stack.enter_context(outside())
        here = Place("/proc/self/ns/net")
        stack.callback(here.close)
        sides = {who: Side(who, stack) for who in ENGINES}
        ways: dict[str, Callable[[Side], tuple[Place, str, int]]] = {
            "container to container": lambda side: (side.client, side.address, LISTENING),
            "host to a published port at 127.0.0.1": lambda side: (here, "127.0.0.1", side.port),
            "host to a published port at its address": lambda side: (here, HOST_ADDRESS, side.port),
            "outside to a published port": lambda side: (far, HOST_ADDRESS, side.port),
        }
        for way, of in ways.items():
            for what, (unit, job, processors) in JOBS.items():
                row = Row(f"{way}: {what}", unit, {who: [] for who in sides})
                with contextlib.ExitStack() as servers:
                    for side in sides.values():
                        servers.enter_context(side.server.serving(processors))
                    for index in range(rounds + 1):
                        for who, side in list(sides.items())[:: 1 if index % 2 else -1]:
                            place, address, port = of(side)
                            call = functools.partial(job, address, port)
                            spent = place.call(call, processors)
                            if index:
                                row.samples[who].append(spent)
                yield row


# -- many ----------------------------------------------------------------------------------------


class Crowd:
    """An engine that gets more and more networks, each with a container that publishes ports."""

    def __init__(self, who: str) -> None:
        self.cmd = ENGINES[who]
        self.count = 0

    def grow(self, count: int) -> None:
        while self.count < count:
            number = self.count
            self.count += 1
            run(
                [
                    *self.cmd,
                    "network",
                    "create",
                    "--subnet",
                    f"10.{100 + number // 200}.{number % 200}.0/24",
                    f"n{number}",
                ]
            )
            first = 20_000 + number * PORTS_EACH
            ports = [f"-p={first + index}:{LISTENING + index}" for index in range(PORTS_EACH)]
            name = f"n{number}"
            run([*self.cmd, "run", "-d", "--network", name, "--name", name, *ports, IMAGE, "sleep", "3600"])

    def one_more(self) -> dict[str, float]:
        """Milliseconds of each step in the life of one more network and one more container."""
        name = "one-more"
        steps = {
            "network create": ["network", "create", "--subnet", "10.99.0.0/24", name],
            "run -d -p": ["run", "-d", "--network", name, "--name", name, "-p=19999:80", IMAGE, "sleep", "3600"],
            "rm -f": ["rm", "-f", name],
            "network rm": ["network", "rm", name],
            # What a container costs beside as many others when it has no network: PID 1 reads the mounts of all.
            "run -d --network none": ["run", "-d", "--network", "none", "--name", name, IMAGE, "sleep", "3600"],
            "rm -f of that": ["rm", "-f", name],
        }
        result = {}
        for step, arguments in steps.items():
            settle()
            begin = time.perf_counter()
            run([*self.cmd, *arguments])
            result[step] = (time.perf_counter() - begin) * 1000
        return result

    def end(self) -> None:
        names = [f"n{number}" for number in range(self.count)]
        for begin in range(0, len(names), 50):
            run([*self.cmd, "rm", "-f", *names[begin : begin + 50]])
            run([*self.cmd, "network", "rm", *names[begin : begin + 50]])
        self.count = 0


def many(rounds: int) -> Iterator[Row]:
    """The time of one more beside those that are there, one engine after the other: what one has is in the other's way
    too, as both have rules in the same kernel."""
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for who in ENGINES:
        crowd = Crowd(who)
        try:
            crowd.one_more()
            for size in SIZES:
                if who != "teu" and size > COMPARED:
                    break
                crowd.grow(size)
                settle(2)
                samples = found[who, size] = {}
                for _ in range(rounds):
                    for step, spent in crowd.one_more().items():
                        samples.setdefault(step, []).append(spent)
        finally:
            crowd.end()
        settle(2)
    for step in next(iter(found.values())):
        first: dict[str, float] = {}
        for size in SIZES:
            row = Row(f"{step}, beside {size} networks and {size * PORTS_EACH} ports", "ms")
            row.samples = {who: found[who, size][step] for who in ENGINES if (who, size) in found}
            first = first or {who: row.median(who) for who in row.samples}
            if size:
                grown = (f"{who} {(row.median(who) / first[who] - 1) * 100:+.0f} %" for who in row.samples)
                row.note = f"against none: {', '.join(grown)}"
            yield row


GROUPS = {"attach": attach, "traffic": traffic, "many": many}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default=",".join(GROUPS))
    parser.add_argument("--engines", default=",".join(ENGINES), help="of these alone")
    options = parser.parse_args()
    for who in [*ENGINES]:
        if who not in options.engines.split(","):
            del ENGINES[who]
    for group in options.only.split(","):
        for row in GROUPS[group](options.rounds):
            print(table([row]).splitlines()[-1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
