# SPDX-License-Identifier: Apache-2.0
"""Configuration files of the daemons: YAML, checked against a table of keys. Called by teud and teu-containerd.

A daemon describes its keys once:

    KEYS = (
        Key("log-level", one_of("debug", "info", "warn", "error"), "info", "least level logged", reload=True),
        Key("wake", list_of(text), [], "sockets to connect to when a task exits"),
        Key("gc", section(Key("delay", duration, 0.1, "seconds to wait ...")), {}, "garbage collection"),
    )
    settings = load("/etc/teu/containerd.yaml", KEYS)
    settings["log-level"], settings["gc"]["delay"], settings.where("log-level")

Read are FILE and then FILE.d/*.yaml in order of name; a later file replaces scalars and lists and merges
mappings. A missing FILE is an empty one. Anything that is not understood is a ConfigError whose text is
`file:line: key: what is wrong; what to do`, made for the person who just edited the file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from teu.oci.units import DIGITS, DURATION_UNITS, parse_bytes, parse_duration

# sysexits.h: the exit status of a start that a mistake in the configuration, or state of a newer version, stops. The
# units do not try again then.
EX_CONFIG = 78
EX_DATAERR = 65


class ConfigError(Exception):
    """`file:line: key: what is wrong; what to do`."""


class Wrong(Exception):
    """Raised by a kind for a value it does not take; the text says what it takes."""


Kind = Callable[[Any], Any]
"""Takes a value as YAML read it, returns it as the daemon wants it, or raises Wrong."""


@dataclass(frozen=True)
class Key:
    """One key: name, what it takes, its value when absent, its meaning, and whether SIGHUP applies a change."""

    name: str
    kind: Kind
    default: Any
    doc: str
    reload: bool = False


# --- kinds ----------------------------------------


def text(value: Any) -> str:
    """A string; numbers are taken as written."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Wrong("give a string")
    return str(value)


def path(value: Any) -> str:
    """An absolute path."""
    if not isinstance(value, str) or not value.startswith("/"):
        raise Wrong("give an absolute path, such as /var/lib/teu")
    return value


def boolean(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise Wrong("give true or false")
    return value


def integer(low: int = 0, high: int = 2**63 - 1) -> Kind:
    """A whole number from low to high."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            above = f" to {high}" if high < 2**63 - 1 else " or more"
            raise Wrong(f"give a whole number, {low}{above}")
        return value

    return check


_UNITS = {**DURATION_UNITS, "d": 24 * 3600 * 10**9}


def duration(value: Any) -> float:
    """Seconds: a number, or 500ms, 10s, 1m30s, 2h, 1d."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    try:
        if isinstance(value, str) and value[:1] in DIGITS and value[-1:] not in DIGITS:
            return parse_duration(value, _UNITS) / 1e9
    except ValueError:
        pass
    raise Wrong("give a time such as 500ms, 10s, 1m30s or 2h")


def size(value: Any) -> int:
    """Bytes: a number, or 512k, 16m, 2g (also KiB, MiB, GiB)."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    try:
        return parse_bytes(str(value))
    except ValueError:
        raise Wrong("give a size such as 65536, 512k, 16m or 2g") from None


def one_of(*choices: str) -> Kind:
    """One of these words."""

    def check(value: Any) -> str:
        if value not in choices:
            raise Wrong(f"give one of {', '.join(choices)}")
        return str(value)

    return check


def matching(pattern: str, says: str) -> Kind:
    """A string that fully matches pattern; says is the remedy where it does not."""
    compiled = re.compile(pattern)

    def check(value: Any) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise Wrong(says)
        return value

    return check


@dataclass(frozen=True)
class _ListOf:
    kind: Kind

    def __call__(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise Wrong("give a list: [one, two], or a line with a dash for each")
        return [self.kind(each) for each in value]


@dataclass(frozen=True)
class _MapOf:
    kind: Kind

    def __call__(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Wrong("give a mapping: a line `name: value` for each")
        return {str(name): self.kind(each) for name, each in value.items()}


@dataclass(frozen=True)
class _Section:
    keys: tuple[Key, ...]

    def __call__(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Wrong("give a mapping: a line `key: value` for each")
        return value


def list_of(kind: Kind) -> Kind:
    """A list of kind."""
    return _ListOf(kind)


def map_of(kind: Kind) -> Kind:
    """A mapping from any string to kind, which may be a section."""
    return _MapOf(kind)


def section(*keys: Key) -> Kind:
    """A mapping with its own table of keys; absent keys get their defaults."""
    return _Section(keys)


# --- reading ----------------------------------------


class Settings(dict[str, Any]):
    """Values by key, every key of the table present."""

    def __init__(self) -> None:
        super().__init__()
        self._where: dict[str, str] = {}

    def where(self, key: str) -> str:
        """`file:line` that set this key (nested: "gc.delay"), or "default"."""
        return self._where.get(key, "default")


def load(file: str | Path, keys: Iterable[Key], must_exist: bool = False) -> Settings:
    """Read file and its drop-ins. Raises ConfigError."""
    table = tuple(keys)
    settings = Settings()
    _fill(settings, table)
    file = Path(file)
    files = [file] if file.exists() or must_exist else []
    folder = file.with_name(file.name + ".d")
    if folder.is_dir():
        files += sorted(each for each in folder.iterdir() if each.suffix in (".yaml", ".yml"))
    for each in files:
        _read(each, table, settings)
    return settings


def changed(old: Settings, new: Settings, keys: Iterable[Key]) -> tuple[list[str], list[str]]:
    """Names of the keys that differ: (those that a reload applies, those that need a restart)."""
    reloaded: list[str] = []
    restart: list[str] = []
    for key in keys:
        if old.get(key.name) != new.get(key.name):
            (reloaded if key.reload else restart).append(key.name)
    return reloaded, restart


def _fill(values: dict[str, Any], table: tuple[Key, ...]) -> None:
    for key in table:
        if isinstance(key.kind, _Section):
            inner = values.setdefault(key.name, {})
            for name, value in dict(key.default or {}).items():
                inner.setdefault(name, value)
            _fill(inner, key.kind.keys)
        elif key.name not in values:
            default = key.default
            values[key.name] = default.copy() if isinstance(default, list | dict) else default


def _read(file: Path, table: tuple[Key, ...], settings: Settings) -> None:
    try:
        content = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; check the path and its permissions") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not text in UTF-8; save it as UTF-8") from None
    try:
        document = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(
            f"{file}:{line}: is not YAML: {error.problem}; check indentation, colons and quotes"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is not YAML: {error}") from None
    if document is None:
        return
    _mapping(file, document, table, settings, settings, "")


def _mapping(
    file: Path, node: yaml.Node, table: tuple[Key, ...], values: dict[str, Any], settings: Settings, prefix: str
) -> None:
    if not isinstance(node, yaml.MappingNode):
        what = prefix.rstrip(".") or "the file"
        raise ConfigError(f"{_at(file, node)}: {what}: is not a mapping; write a line `key: value` for each")
    known = {key.name: key for key in table}
    seen: dict[str, int] = {}
    for name_node, value_node in node.value:
        name = _name(name_node)
        full = prefix + name
        if name in seen:
            raise ConfigError(f"{_at(file, name_node)}: {full}: is set twice, first in line {seen[name]}; remove one")
        seen[name] = name_node.start_mark.line + 1
        key = known.get(name)
        if key is None:
            raise ConfigError(f"{_at(file, name_node)}: {full}: unknown key; {_suggest(name, known)}")
        settings._where[full] = _at(file, name_node)
        kind = key.kind
        empty = isinstance(value_node, yaml.ScalarNode) and value_node.tag == "tag:yaml.org,2002:null"
        if empty:  # `key:` with all below it commented out
            continue
        if isinstance(kind, _Section):
            _mapping(file, value_node, kind.keys, values[name], settings, full + ".")
        elif isinstance(kind, _MapOf):
            _entries(file, value_node, kind, values, name, settings, full)
        else:
            if isinstance(kind, _ListOf) and isinstance(value_node, yaml.SequenceNode):
                values[name] = [_value(file, item, kind.kind, full) for item in value_node.value]
            else:
                values[name] = _value(file, value_node, kind, full)


def _entries(
    file: Path, node: yaml.Node, kind: _MapOf, values: dict[str, Any], name: str, settings: Settings, full: str
) -> None:
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{_at(file, node)}: {full}: is not a mapping; write a line `name: value` for each")
    merged = dict(values[name])
    for entry_node, value_node in node.value:
        entry = _name(entry_node)
        settings._where[f"{full}.{entry}"] = _at(file, entry_node)
        if isinstance(kind.kind, _Section):
            inner = dict(merged.get(entry, {}))
            _fill(inner, kind.kind.keys)
            _mapping(file, value_node, kind.kind.keys, inner, settings, f"{full}.{entry}.")
            merged[entry] = inner
        else:
            merged[entry] = _value(file, value_node, kind.kind, f"{full}.{entry}")
    values[name] = merged


def _value(file: Path, node: yaml.Node, kind: Kind, full: str) -> Any:
    value = _plain(node)
    try:
        return kind(value)
    except Wrong as error:
        shown = node.value if isinstance(node, yaml.ScalarNode) else type(value).__name__
        raise ConfigError(f"{_at(file, node)}: {full}: bad value {shown!r}; {error}") from None


def _name(node: yaml.Node) -> str:
    """A key as it is written: to YAML `no` would be false, and 5000 a number."""
    return node.value if isinstance(node, yaml.ScalarNode) else str(_plain(node))


def _plain(node: yaml.Node) -> Any:
    """The node's value as YAML's safe loader makes it; but 5:30 is no number to the base of 60 here."""
    if isinstance(node, yaml.ScalarNode) and ":" in node.value and node.tag.endswith((":int", ":float")):
        return node.value
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    except yaml.YAMLError:
        return node.value
    finally:
        loader.dispose()


def _at(file: Path, node: yaml.Node) -> str:
    return f"{file}:{node.start_mark.line + 1}"


def _suggest(name: str, known: Mapping[str, Key]) -> str:
    near = difflib.get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    return "known here: " + ", ".join(sorted(known))
