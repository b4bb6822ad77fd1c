# SPDX-License-Identifier: Apache-2.0
"""Keys of teud.yaml about the daemon itself: labels, versions, proxies, the form of its messages, and a reload."""

from __future__ import annotations

import json
import logging
import types
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest

from teu import config as configuration
from teu.engine import main
from teu.engine.api import server
from teu.engine.core.errors import EngineError
from teu.engine.engine import Engine
from teu.engine.files import snapshots
from teu.engine.images import registries
from teu.engine.images.store import Images
from teu.engine.views import system
from teu.systemd import journal, notify


def informed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """GET /info, of an engine without a containerd."""
    monkeypatch.setattr(Images, "count", lambda _: 0)
    monkeypatch.setattr(snapshots, "snapshotter", lambda _: None)
    return system.info(engine, (1, 45))


def told(tmp_path: Path, text: str) -> configuration.Settings:
    file = tmp_path / "teud.yaml"
    file.write_text(text)
    return main.settings(main.parser().parse_args(["--config", str(file)]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("labels: [zone]\n", "give KEY=VALUE"),
        ("labels: [zone=a, zone=b]\n", "labels: zone has several values"),
        ("min-api-version: 1.23\n", "give a version"),
        ("min-api-version: 2\n", "give a version"),
        ("min-api-version: '1.99'\n", "the newest version that teud speaks is"),
        ("max-download-attempts: 0\n", "1 to 100"),
        ("log-format: xml\n", "give one of text, json"),
        ("proxies: {ftp-proxy: x}\n", "proxies.ftp-proxy: unknown key"),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises((configuration.ConfigError, EngineError), match=says):
        told(tmp_path, text)


def test_the_oldest_version(tmp_path: Path) -> None:
    engine: Any = types.SimpleNamespace(config=told(tmp_path, "min-api-version: '1.40'\n"))
    assert server.oldest(engine) == (1, 40)
    engine.config = told(tmp_path, "")
    assert server.oldest(engine) == server.API_MINIMUM


def test_how_often_a_registry_is_asked(tmp_path: Path) -> None:
    assert registries.options(told(tmp_path, "max-download-attempts: 9\n")).attempts == 9
    assert registries.options(told(tmp_path, "")).attempts == 5


def test_proxies_are_for_all_and_told_without_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"HTTP_PROXY": "http://old.example:1", "NO_PROXY": "b.example"}
    monkeypatch.setattr("os.environ", environment)
    main.proxies(told(tmp_path, "proxies: {https-proxy: 'http://u:p@proxy.example:3128', no-proxy: a.example}\n"))
    assert environment["HTTPS_PROXY"] == environment["https_proxy"] == "http://u:p@proxy.example:3128"
    assert environment["NO_PROXY"] == "a.example"
    assert environment["HTTP_PROXY"] == "http://old.example:1", "what the file does not say stays"
    engine = parts.engine(tmp_path, labels=["zone=a"])
    found = informed(engine, monkeypatch)
    assert found["HttpsProxy"] == "http://xxxxx:xxxxx@proxy.example:3128"
    assert (found["HttpProxy"], found["NoProxy"], found["Labels"]) == ("http://old.example:1", "a.example", ["zone=a"])


def test_info_says_what_is_in_force_of_security(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = parts.engine(tmp_path, no_new_privileges=True, seccomp_profile="unconfined")
    options = informed(engine, monkeypatch)["SecurityOptions"]
    assert isinstance(options, list)
    assert {"name=no-new-privileges", "name=seccomp,profile=unconfined"} <= set(options)


def test_messages_as_objects(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    try:
        journal.setup("teud", "info", objects=True)
        logging.getLogger("teu.engine").warning("a %s", "word", extra={"CONTAINER_ID": "c1"})
        try:
            raise ValueError("reason")
        except ValueError:
            logging.getLogger("teu.engine").exception("failed")
    finally:
        root.handlers, root.level = handlers, level
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["level"], first["msg"], first["CONTAINER_ID"]) == ("warning", "a word", "c1")
    assert first["time"].endswith("Z")
    assert second["level"] == "error" and "ValueError: reason" in second["error"]


def test_a_reload_says_what_it_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(notify, "notify", lambda *given, **_: lines.extend(given))
    monkeypatch.setattr(journal, "set_level", lambda _level: None)
    engine = parts.engine(tmp_path)
    file = tmp_path / "teud.yaml"
    engine.config.clear()
    engine.config.update(told(tmp_path, f"data-root: {tmp_path}/data\n"))
    _, heard = engine.events.subscribe()
    file.write_text(f"data-root: {tmp_path}/other\nlabels: [zone=a]\nmax-concurrent-uploads: 2\n")
    options = main.parser().parse_args(["--config", str(file)])
    main.reload(engine, options)
    assert engine.config["labels"] == ["zone=a"] and engine.config["data-root"] == f"{tmp_path}/data"
    status = [line for line in lines if line.startswith("STATUS=")][-1]
    assert status.endswith("the reload: changed labels, max-concurrent-uploads; a restart is needed for data-root")
    event = heard.get_nowait()
    assert event is not None and event["Action"] == "reload"
    assert event["Actor"]["Attributes"]["labels"] == '["zone=a"]'
    assert event["Actor"]["Attributes"]["max-concurrent-uploads"] == "2"
    file.write_text("labels: [zone=b]\nlables: []\n")
    main.reload(engine, options)
    assert engine.config["labels"] == ["zone=a"]
    assert "the configuration is kept as it was: " in lines[-1]


def test_options_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "teud.yaml"
    file.write_text("labels: [a=b]\ndefault-ulimits: {core: 0}\n")

    def given(*argv: str) -> configuration.Settings:
        return main.settings(main.parser().parse_args(["--config", str(file), *argv]))

    found = given(
        *("--label", "zone=c", "--dns", "192.0.2.1", "--dns-opt", "ndots:1", "--default-ulimit", "nofile=5:30"),
        *("--add-runtime", "crun=/usr/bin/crun", "--max-concurrent-uploads", "2", "--default-shm-size", "1m"),
        *(
            "--metrics-addr",
            "127.0.0.1:9323",
            "--no-new-privileges",
            "--https-proxy",
            "http://x",
            "--log-format",
            "json",
        ),
    )
    assert (found["labels"], found["dns"], found["dns-opts"]) == (["a=b", "zone=c"], ["192.0.2.1"], ["ndots:1"])
    assert found["default-ulimits"] == {"core": (0, 0, ""), "nofile": (5, 30, "")}
    assert found["runtimes"] == {"crun": {"path": "/usr/bin/crun"}}
    assert (found["max-concurrent-uploads"], found["default-shm-size"]) == (2, 1 << 20)
    assert (found["metrics-addr"], found["no-new-privileges"]) == ("127.0.0.1:9323", True)
    assert found["proxies"] == {"http-proxy": "", "https-proxy": "http://x", "no-proxy": ""}
    for argv in (("--dns", "x"), ("--max-concurrent-uploads", "0"), ("--default-ulimit", "nofile"), ("--label", "a")):
        with pytest.raises(EngineError, match="option for .*: bad value"):
            given(*argv)
    with pytest.raises(EngineError, match="files is none"):
        given("--default-ulimit", "files=1:2")
