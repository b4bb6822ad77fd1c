# SPDX-License-Identifier: Apache-2.0
"""`--change` of import and commit: Dockerfile instructions applied to an image configuration's config.

Serves CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR, HEALTHCHECK.
"""

from __future__ import annotations

import json
import posixpath
import shlex
from typing import Any

from teu.engine.errors import BadRequest


def apply(config: dict[str, Any], changes: list[str]) -> None:
    """Apply every instruction to `config` in place. Raises BadRequest with the instruction."""
    for change in changes:
        for line in change.splitlines():
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            word, _, rest = line.partition(" ")
            function = _INSTRUCTIONS.get(word.upper())
            if function is None:
                raise BadRequest(f"{word.upper()} is not a valid change command")
            try:
                function(config, rest.strip())
            except ValueError as error:
                raise BadRequest(f"invalid change {line!r}: {error}") from None


def _json_list(text: str) -> list[str] | None:
    if text.startswith("["):
        try:
            value = json.loads(text)
        except ValueError:
            return None
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
    return None


def _command(text: str) -> list[str] | None:
    if not text:
        return None
    exact = _json_list(text)
    return exact if exact is not None else ["/bin/sh", "-c", text]


def _pairs(text: str) -> list[tuple[str, str]]:
    words = shlex.split(text)
    if not words:
        raise ValueError("it needs an argument")
    if "=" not in words[0]:
        name, _, value = text.partition(" ")
        return [(name, value.strip().strip('"'))]
    result = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"{word!r} is not name=value")
        result.append((name, value))
    return result


def _cmd(config: dict[str, Any], text: str) -> None:
    config["Cmd"] = _command(text)


def _entrypoint(config: dict[str, Any], text: str) -> None:
    config["Entrypoint"] = _command(text)


def _env(config: dict[str, Any], text: str) -> None:
    env = list(config.get("Env") or [])
    for name, value in _pairs(text):
        env = [item for item in env if item.partition("=")[0] != name]
        env.append(f"{name}={value}")
    config["Env"] = env


def _label(config: dict[str, Any], text: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs(text))}


def _expose(config: dict[str, Any], text: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in text.split():
        number, _, protocol = word.partition("/")
        first, _, last = number.partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or protocol not in ("", "tcp", "udp", "sctp"):
            raise ValueError(f"{word!r} is not a port")
        for port in range(int(first), int(last or first) + 1):
            if not 0 < port < 65536:
                raise ValueError(f"{word!r} is not a port")
            ports[f"{port}/{protocol or 'tcp'}"] = {}
    config["ExposedPorts"] = ports


def _volume(config: dict[str, Any], text: str) -> None:
    paths = _json_list(text)
    volumes = dict(config.get("Volumes") or {})
    for path in paths if paths is not None else text.split():
        volumes[path] = {}
    config["Volumes"] = volumes


def _workdir(config: dict[str, Any], text: str) -> None:
    config["WorkingDir"] = posixpath.normpath(posixpath.join(config.get("WorkingDir") or "/", text))


def _user(config: dict[str, Any], text: str) -> None:
    config["User"] = text


def _stopsignal(config: dict[str, Any], text: str) -> None:
    config["StopSignal"] = text


def _onbuild(config: dict[str, Any], text: str) -> None:
    config["OnBuild"] = [*(config.get("OnBuild") or []), text]


def _healthcheck(config: dict[str, Any], text: str) -> None:
    words = text.split()
    options: dict[str, Any] = {}
    names = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod", "retries": "Retries",
             "start-interval": "StartInterval"}  # fmt: skip
    while words and words[0].startswith("--"):
        name, _, value = words.pop(0)[2:].partition("=")
        if name not in names:
            raise ValueError(f"unknown option --{name}")
        options[names[name]] = int(value) if name == "retries" else duration(value)
    if not words:
        raise ValueError("it needs CMD or NONE")
    kind, rest = words[0].upper(), " ".join(words[1:])
    if kind == "NONE":
        config["Healthcheck"] = {"Test": ["NONE"]}
    elif kind == "CMD" and rest:
        exact = _json_list(rest)
        config["Healthcheck"] = {"Test": ["CMD", *exact] if exact is not None else ["CMD-SHELL", rest], **options}
    else:
        raise ValueError("it needs CMD or NONE")


_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def duration(text: str) -> int:
    """Go's notation of a duration ("1m30s") in nanoseconds."""
    import re

    parts = re.findall(r"([0-9.]+)(ns|us|µs|ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration")
    return int(sum(float(number) * _UNITS[unit] for number, unit in parts))


_INSTRUCTIONS = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "LABEL": _label,
    "EXPOSE": _expose,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
    "USER": _user,
    "STOPSIGNAL": _stopsignal,
    "ONBUILD": _onbuild,
    "HEALTHCHECK": _healthcheck,
}
