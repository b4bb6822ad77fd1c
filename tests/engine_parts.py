# SPDX-License-Identifier: Apache-2.0
"""An engine without a containerd: its stores are real, in a folder of the test's."""

from __future__ import annotations

import secrets
import sqlite3
from pathlib import Path
from typing import Any

from teu import config as configuration
from teu.engine.config import KEYS
from teu.engine.containers import hostconfig
from teu.engine.containers.model import Container
from teu.engine.containers.state import Saved
from teu.engine.core import fields
from teu.engine.core.fields import CONFIG, HOST_CONFIG
from teu.engine.core.times import timestamp
from teu.engine.engine import Engine
from teu.engine.networks.manager import Networks
from teu.engine.networks.model import Network

# Databases as dumps, and what was answered of them, from before their records had types.
BEFORE = Path(__file__).with_name("unit") / "engine/written_before"


def settings(folder: Path, **more: Any) -> configuration.Settings:
    result = configuration.load(str(folder / "teud.yaml"), KEYS, must_exist=False)
    result.update(
        {
            "data-root": str(folder / "data"),
            "exec-root": str(folder / "exec"),
            "containerd": str(folder / "containerd.sock"),
            "log-driver": "json-file",
            **{key.replace("_", "-"): value for key, value in more.items()},
        }
    )
    return result


_made: list[Engine] = []


def engine(folder: Path, **more: Any) -> Engine:
    return another(settings(folder, **more))


def another(config: configuration.Settings) -> Engine:
    """As a new daemon has it."""
    _made.append(Engine(config))
    return _made[-1]


def close() -> None:
    """All that were made."""
    while _made:
        _made.pop().close()


def engine_before(folder: Path, dump: str) -> Engine:
    """One over a database of BEFORE, with its containers."""
    (folder / "data").mkdir()
    connection = sqlite3.connect(folder / "data/engine.db")
    connection.executescript((BEFORE / dump).read_text().replace("FOLDER", str(folder)))
    connection.close()
    made = engine(folder)
    made.containers.load()
    return made


def container(engine: Engine, name: str = "", body: dict[str, Any] | None = None, **host: Any) -> Container:
    """One that was created, without an image and files."""
    config = CONFIG.read({"Image": "busybox", **(body or {})})
    made = engine.containers.make(
        Saved(
            id=secrets.token_hex(32),
            name=name or engine.containers.random_name(),
            created=timestamp(),
            path="sleep",
            args=["60"],
            config=hostconfig.clean_config(config),
            host_config=hostconfig.clean_host_config(HOST_CONFIG.read(host, "HostConfig"), "json-file", {}),
        )
    )
    engine.containers.add(made)
    return made


def network(networks: Networks, name: str, **body: Any) -> Network:
    """One that a client has asked for."""
    made, _ = networks.create(fields.NETWORK.read({"Name": name, **body}))
    return made
