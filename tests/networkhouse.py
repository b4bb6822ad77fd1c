# SPDX-License-Identifier: Apache-2.0
"""The engine's networks with containers that are records and namespaces, in a network namespace of the test's own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import echo

from teu.engine.containers.network_settings import NetworkSettings
from teu.engine.core import fields
from teu.engine.core.database import Database
from teu.engine.core.errors import NotFound
from teu.engine.core.fields import HOST_CONFIG, Config
from teu.engine.networks.endpoints import Endpoints
from teu.engine.networks.hostfirewall import HostFirewall
from teu.engine.networks.manager import Networks
from teu.engine.networks.options import Defaults
from teu.engine.networks.store import Store
from teu.linux import netns


class Engine:
    def __init__(self, directory: Path, settings: dict[str, Any] | None = None) -> None:
        """`settings`: keys of teud.yaml."""
        self.settings = settings or {}
        self.database = Database(str(directory / "engine.db"))
        self.exec_root = str(directory / "engine")  # beside it is what all programs of ours share
        self.stopping = threading.Event()
        self.events = SimpleNamespace(publish=lambda *_: None)
        self.known: list[Any] = []
        self.containers = SimpleNamespace(
            all=lambda: self.known,
            using_network=lambda name: [c for c in self.known if name in c.network_settings.networks],
            get=self.get,
            find=lambda reference: next((c for c in self.known if reference in (c.id, c.name)), None),
        )
        self.endpoints: Any = None
        self.begin()

    def begin(self) -> None:
        """The networks, as a new daemon has them; the old one is dead, and mends nothing."""
        self.stopping.set()
        if self.endpoints is not None:
            self.endpoints.close()
        self.stopping = threading.Event()
        own: Any = self
        store = Store(self.database, Defaults(self.settings))
        host = HostFirewall(self.settings.get("firewall", "obey"))
        self.endpoints = Endpoints(store, own.containers, own.events, self.exec_root, self.stopping, host)
        self.networks = Networks(store, self.endpoints, own.containers, own.events)
        self.networks.start()

    def get(self, reference: str) -> Any:
        for container in self.known:
            if reference in (container.id, container.name):
                return container
        raise NotFound(f"No such container: {reference}")

    def end(self) -> None:
        """All containers, and the daemon."""
        for container in self.known:
            self.endpoints.detach(container)
        self.stopping.set()
        self.endpoints.close()
        self.database.close()

    @contextlib.contextmanager
    def living(self, one: Any) -> Iterator[None]:
        """The container has a process, which holds its namespace also when the engine does not."""
        held = os.dup(self.endpoints._active[one.id].namespace)
        sleeper = netns.run_in(held, lambda: subprocess.Popen(["sleep", "60"]))
        one.pid = sleeper.pid
        try:
            yield
        finally:
            sleeper.kill()
            sleeper.wait()
            one.pid = 0
            os.close(held)

    def names(self, asker: Any, name: str) -> list[str]:
        """The addresses that the resolver has for a name, IPv4 first."""
        lookup = self.endpoints._names._addresses
        return [str(address) for version in (4, 6) for address in lookup(asker.id, name, version) or ()]


def container(engine: Engine, tmp_path: Path, number: int, mode: str = "default", **more: Any) -> Any:
    identity = f"{number:02x}" * 32
    directory = tmp_path / identity
    directory.mkdir(exist_ok=True)
    exposed = more.pop("exposed", {})
    endpoints = more.pop("endpoints", {})
    result: Any = SimpleNamespace(
        id=identity,
        name=f"c{number}",
        hostname=f"h{number}",
        directory=str(directory),
        running=False,
        pid=0,
        status=lambda: "running" if result.running else "created",
        config=Config(exposed_ports=exposed),
        host_config=HOST_CONFIG.read({"NetworkMode": mode, **more}),
        lock=threading.RLock(),
        network_settings=NetworkSettings(),
        save=lambda durable=True: None,
        fields={},
    )
    engine.endpoints.check(result, fields.NETWORKING.read({"EndpointsConfig": endpoints}))
    engine.known.append(result)
    return result


def start(engine: Engine, one: Any) -> Any:
    attachment = engine.endpoints.attach(one)
    one.running = True
    return attachment


def inside(engine: Engine, one: Any, command: str) -> str:
    descriptor = engine.endpoints._active[one.id].namespace
    run = netns.run_in(
        descriptor, lambda: subprocess.run(command, shell=True, capture_output=True, text=True, timeout=20)
    )
    return run.stdout + run.stderr


def pings(engine: Engine, one: Any, address: str) -> bool:
    """Whether the address answers a container."""
    return echo.pings(engine.endpoints._active[one.id].namespace, address)


def silent(engine: Engine, one: Any, address: str) -> bool:
    """Whether nobody answers a container there; both ends have to be up."""
    return echo.silent(engine.endpoints._active[one.id].namespace, address)


def reach(address: str, port: int, timeout: float = 2.0) -> bool:
    try:
        socket.create_connection((address, port), timeout).close()
    except OSError:
        return False
    return True
