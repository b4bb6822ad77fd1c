# SPDX-License-Identifier: Apache-2.0
"""teud is killed at each step of what it does with networks, and at any moment of it, while containers start, end,
are connected and disconnected: afterwards the kernel has what the records say, nothing is left of what was begun, and
no address or port is anybody's twice.

The steps in the middle of the engine's code are in tests/unit/engine/test_network_deaths.py, which kills at each of
them; here it is the real daemon, and the processes are real."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import images
import pytest
import whole
from images import api
from lab_kind import PATIENCE
from whole import call, eventually, out, teu

pytestmark = pytest.mark.timeout(300)

VETH = re.compile(r"teu[0-9a-f]{11,12}\Z")
NETWORKS = {
    "death4": ("--subnet", "10.95.0.0/29"),
    "death6": ("--ipv6", "--subnet", "10.95.1.0/29", "--subnet", "fd00:95::/125"),
    "deathin": ("--internal",),
}
# What each is on to begin with, and its port of the host.
CONTAINERS = {"d1": ("death4", 8191), "d2": ("death6", 8192), "d3": ("bridge", 8193), "d4": ("deathin", 8194)}


@pytest.fixture(scope="module")
def dice() -> random.Random:
    seed = int(os.environ.get("TEU_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
    print(f"seed: TEU_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(scope="module", autouse=True)
def house() -> Iterator[None]:
    images.need_busybox()
    whole.remove_everything()
    for name, flags in NETWORKS.items():
        teu("network", "create", *flags, name)
    for name, (network, port) in CONTAINERS.items():
        teu("create", "--name", name, "--network", network, "-p", f"{port}:80", whole.IMAGE, *whole.SERVE)
    yield
    whole.remove_everything()
    eventually("no pair is left", lambda: not pairs())
    eventually("no table is left", lambda: "table inet teu" not in out("nft", "list", "tables"))
    # Each address of the network can be had.
    for number in range(5):
        whole.run_detached(f"full{number}", "sleep", "600", flags=("--network", "death6"))
    whole.remove_everything()
    for name in NETWORKS:
        teu("network", "rm", name)


# -- what is so ------------------------------------------------------------------------------------------


def pairs() -> dict[int, str]:
    """Our ends of the containers' pairs, by their numbers."""
    links = json.loads(out("ip", "-j", "link"))
    return {link["ifindex"]: link["ifname"] for link in links if VETH.match(link["ifname"])}


def inside(pid: int, *command: str) -> str:
    return call("nsenter", "-n", "-t", str(pid), *command).stdout


def shown(name: str) -> dict[str, Any]:
    status, answer = api("GET", f"/containers/{name}/json")
    assert status == 200, answer
    found: dict[str, Any] = answer
    return found


def served(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/")
        return b"served" in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wrong() -> str:
    """What is not as the records say it is; "" where everything is."""
    given: Counter[str] = Counter()
    peers: set[int] = set()
    published: set[str] = set()
    for name, (_, port) in CONTAINERS.items():
        record = shown(name)
        pid = record["State"]["Pid"]
        networks = record["NetworkSettings"]["Networks"]
        if not pid:
            continue
        wanted = {one[key] for one in networks.values() for key in ("IPAddress", "GlobalIPv6Address") if one[key]}
        links = [link for link in json.loads(inside(pid, "ip", "-j", "addr")) if link["ifname"] != "lo"]
        has = [one["local"] for link in links for one in link["addr_info"] if one["scope"] == "global"]
        if sorted(has) != sorted(wanted):
            return f"{name} has {has}, its record says {wanted}"
        if not all(one["EndpointID"] for one in networks.values()) or len(links) != len(networks):
            return f"{name} has {len(links)} interfaces, and is on {list(networks)}"
        given.update(has)
        peers |= {link["link_index"] for link in links}
        lines = {line.split()[0] for line in inside(pid, "cat", f"/proc/{pid}/root/etc/hosts").splitlines() if line}
        if stale := {line for line in lines if line.startswith(("10.95.", "fd00:95:"))} - wanted:
            return f"{stale} are in the hosts of {name}"
        ways = set(networks) - {"deathin"}
        if ("default" in inside(pid, "ip", "route")) != bool(ways):
            return f"{name} has the routes {inside(pid, 'ip', 'route')}, and is on {list(networks)}"
        if ways:
            published.add(str(port))
            if not served(port):
                return f"{name} is not served"
    if twice := [address for address, count in given.items() if count > 1]:
        return f"{twice} were given twice"
    if peers != pairs().keys():
        return f"there are {pairs()}, the containers have {peers}"
    rules = set(
        re.findall(r"tcp \. (819\d) ", call("nft", "list", "map", "inet", "teu", "published4", check=False).stdout)
    )
    if rules != published:
        return f"{rules} are published, {published} should be"
    held = set(re.findall(r":(819\d) ", out("ss", "-ltnH")))
    return "" if held == published else f"{held} are bound, {published} should be"


def all_is_right(what: str) -> None:
    """What ends is known a moment later."""
    deadline = time.monotonic() + 15 * PATIENCE
    while trouble := wrong():
        assert time.monotonic() < deadline, f"{what}: {trouble}"
        time.sleep(0.05)


# -- what happens ----------------------------------------------------------------------------------------


def ask(method: str, path: str, body: Any = None) -> None:
    """Whoever asks may lose the daemon."""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        api(method, path, body)


def change(name: str, network: str, networks: dict[str, Any]) -> tuple[str, Callable[[], None]]:
    verb = "disconnect" if network in networks else "connect"
    return f"{verb} {network} {name}", lambda: ask("POST", f"/networks/{network}/{verb}", {"Container": name})


def any_action(dice: random.Random) -> tuple[str, Callable[[], None]]:
    name = dice.choice(list(CONTAINERS))
    record = shown(name)
    if not record["State"]["Running"]:
        return f"start {name}", lambda: ask("POST", f"/containers/{name}/start")
    if dice.random() < 0.25:
        return f"kill {name}", lambda: ask("POST", f"/containers/{name}/kill")
    network = dice.choice([*NETWORKS, "bridge"])
    return change(name, network, record["NetworkSettings"]["Networks"])


def test_killed_at_any_moment(rounds: Callable[[int], int], dice: random.Random) -> None:
    done: Counter[str] = Counter()
    teu("start", *CONTAINERS)
    for number in range(rounds(16)):
        what, action = any_action(dice)
        pid = whole.main_pid("teud.service")
        thread = threading.Thread(target=action)
        thread.start()
        time.sleep(dice.uniform(0, 0.3 if what.startswith("start") else 0.1) * PATIENCE)
        if pid:
            os.kill(pid, signal.SIGKILL)
            eventually("the killed is dead", lambda pid=pid: not os.path.exists(f"/proc/{pid}"))
            done[what.split()[0]] += 1
        thread.join()
        all_is_right(f"round {number}, {what}")
    print(f"killed while it was asked to {dict(done)}")


@pytest.mark.needs("strace", "fast")
@pytest.mark.parametrize("action", ["start", "kill", "connect", "disconnect"])
def test_killed_at_its_words_to_the_kernel(action: str, rounds: Callable[[int], int]) -> None:
    """When one of its threads says something for the Nth time: to the kernel, to containerd, or to the client."""
    struck = 0
    numbers = {"start": (1, 2, 4, 6, 9), "kill": (1, 3)}.get(action, (1, 2, 3, 5))
    numbers = numbers[: rounds(len(numbers))]
    for number in numbers:
        record = shown("d1")
        networks = record["NetworkSettings"]["Networks"]
        if record["State"]["Running"] == (action == "start"):
            teu("kill" if action == "start" else "start", "d1")
        for name, there in (("death4", True), ("death6", action != "connect")):
            if (name in networks) != there:
                teu("network", "connect" if there else "disconnect", name, "d1")
        all_is_right("before it")
        pid = whole.main_pid("teud.service")
        calls = "sendto,sendmsg"
        flags = (
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            f"trace={calls}",
            "-e",
            f"inject={calls}:signal=SIGKILL:when={number}",
        )
        tracer = subprocess.Popen(["strace", *flags, "-p", str(pid)])
        try:
            status = Path(f"/proc/{pid}/status")
            eventually("strace is there", lambda status=status: "TracerPid:\t0\n" not in status.read_text())
            network = "death6" if action == "connect" else "death4"
            if action in ("start", "kill"):
                ask("POST", f"/containers/d1/{action}")
            else:
                ask("POST", f"/networks/{network}/{action}", {"Container": "d1"})
            with contextlib.suppress(AssertionError):
                eventually("it is dead", lambda pid=pid: not os.path.exists(f"/proc/{pid}"), timeout=1)
                struck += 1
        finally:
            tracer.terminate()
            tracer.wait()
        all_is_right(f"after {action}, word {number}")
    print(f"{action}: struck at {struck} of {len(numbers)}")
    assert struck


def test_many_at_once(dice: random.Random) -> None:
    """Four containers are connected and disconnected at the same time, and end and start meanwhile."""
    seeds = {name: dice.random() for name in CONTAINERS}

    def busy(name: str) -> None:
        own = random.Random(seeds[name])
        for _ in range(12):
            networks = shown(name)["NetworkSettings"]["Networks"]
            if own.random() < 0.2:
                ask("POST", f"/containers/{name}/{own.choice(('start', 'kill', 'restart?t=0'))}")
            else:
                change(name, own.choice([*NETWORKS, "bridge"]), networks)[1]()

    threads = [threading.Thread(target=busy, args=(name,)) for name in CONTAINERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    all_is_right("after all")
