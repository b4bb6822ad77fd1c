# SPDX-License-Identifier: Apache-2.0
"""Configuration files: what is read, and what a person is told who made a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from teu.config import (
    ConfigError,
    Key,
    boolean,
    changed,
    duration,
    integer,
    list_of,
    load,
    map_of,
    one_of,
    section,
    size,
    text,
)

KEYS = (
    Key("log-level", one_of("debug", "info"), "info", "", reload=True),
    Key("debug", boolean, False, ""),
    Key("hosts", list_of(text), ["fd://"], ""),
    Key("log-opts", map_of(text), {}, ""),
    Key("workers", integer(1, 64), 8, ""),
    Key("body", size, 1 << 20, ""),
    Key("gc", section(Key("delay", duration, 0.1, ""), Key("threshold", integer(), 100, "")), {}, ""),
    Key("registries", map_of(section(Key("plain", boolean, False, ""))), {}, ""),
)


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path


def test_defaults_without_a_file(tmp_path: Path) -> None:
    settings = load(tmp_path / "absent.yaml", KEYS)
    assert settings["hosts"] == ["fd://"]
    assert settings["gc"] == {"delay": 0.1, "threshold": 100}
    assert settings.where("hosts") == "default"


def test_keys_are_what_is_written(tmp_path: Path) -> None:
    """Not what YAML makes of them: `no` is false there, and 0x10 sixteen."""
    keys = (Key("no", text, "", ""), Key("off", map_of(text), {}, ""))
    settings = load(write(tmp_path / "a.yaml", "no: here\noff: {yes: 1, 0x10: 2, ~: 3}\n"), keys)
    assert settings["no"] == "here" and settings["off"] == {"yes": "1", "0x10": "2", "~": "3"}


def test_a_colon_makes_no_number(tmp_path: Path) -> None:
    """To YAML 1.1, 5:30 is 330."""
    keys = (Key("pair", text, "", ""), Key("workers", integer(), 1, ""))
    assert load(write(tmp_path / "a.yaml", "pair: 5:30\n"), keys)["pair"] == "5:30"
    with pytest.raises(ConfigError, match="bad value '5:30'; give a whole number"):
        load(write(tmp_path / "a.yaml", "workers: 5:30\n"), keys)


def test_values_and_drop_ins(tmp_path: Path) -> None:
    file = write(
        tmp_path / "teud.yaml", "debug: true\nhosts: [a, b]\ngc:\n  delay: 1m30s\nlog-opts: {a: 1}\nbody: 2m\n"
    )
    write(tmp_path / "teud.yaml.d/20.yaml", "hosts: [c]\nlog-opts:\n  b: two\n")
    write(tmp_path / "teud.yaml.d/10.yaml", "hosts: [d]\ngc: {threshold: 5}\nregistries:\n  a.example: {plain: true}\n")
    write(tmp_path / "teud.yaml.d/README", "not: [read")
    settings = load(file, KEYS)
    assert settings["debug"] is True
    assert settings["hosts"] == ["c"]
    assert settings["log-opts"] == {"a": "1", "b": "two"}
    assert settings["gc"] == {"delay": 90.0, "threshold": 5}
    assert settings["body"] == 2 << 20
    assert settings["registries"] == {"a.example": {"plain": True}}
    assert settings.where("hosts") == f"{tmp_path}/teud.yaml.d/20.yaml:1"
    assert settings.where("gc.delay") == f"{file}:4"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("debug: true\nlog-levle: info\n", ":2: log-levle: unknown key; did you mean log-level?"),
        ("zzz: 1\n", ":1: zzz: unknown key; known here: body, debug,"),
        ("\nlog-level: loud\n", ":2: log-level: bad value 'loud'; give one of debug, info"),
        ("debug: maybe\n", ":1: debug: bad value 'maybe'; give true or false"),
        ("workers: 0\n", ":1: workers: bad value '0'; give a whole number, 1 to 64"),
        ("hosts: fd://\n", ":1: hosts: bad value 'fd://'; give a list"),
        ("hosts:\n  - fine\n  - [no]\n", ":3: hosts: bad value 'list'; give a string"),
        ("gc:\n  dely: 3\n", ":2: gc.dely: unknown key; did you mean delay?"),
        ("gc:\n  delay: soon\n", ":2: gc.delay: bad value 'soon'; give a time such as"),
        ("gc: 3\n", ":1: gc: is not a mapping"),
        ("debug: true\ndebug: false\n", ":2: debug: is set twice, first in line 1; remove one"),
        ("registries:\n  x:\n    plan: true\n", ":3: registries.x.plan: unknown key; did you mean plain?"),
        ("- a\n", ":1: the file: is not a mapping"),
        ("debug: true\n  bad: [\n", ":2: is not YAML: "),
        ("body: lots\n", ":1: body: bad value 'lots'; give a size such as"),
    ],
)
def test_mistakes_name_file_line_key_and_remedy(tmp_path: Path, content: str, says: str) -> None:
    file = write(tmp_path / "teud.yaml", content)
    with pytest.raises(ConfigError) as caught:
        load(file, KEYS)
    assert f"{file}{says}" in str(caught.value)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory; check the path"):
        load(tmp_path / "absent.yaml", KEYS, must_exist=True)


def test_empty_and_commented_values_are_defaults(tmp_path: Path) -> None:
    file = write(tmp_path / "teud.yaml", "# all of it\n")
    assert load(file, KEYS) == load(tmp_path / "absent.yaml", KEYS)
    write(file, "hosts:\n#  - a\ngc:\n")
    assert load(file, KEYS)["hosts"] == ["fd://"]


def test_what_a_reload_can_apply(tmp_path: Path) -> None:
    old = load(write(tmp_path / "a.yaml", ""), KEYS)
    new = load(write(tmp_path / "b.yaml", "log-level: debug\ndebug: true\n"), KEYS)
    assert changed(old, new, KEYS) == (["log-level"], ["debug"])
