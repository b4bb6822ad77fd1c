# SPDX-License-Identifier: Apache-2.0
"""`--change` of import and commit: Dockerfile instructions applied to an image configuration's config.

Serves CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR, HEALTHCHECK.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from typing import TYPE_CHECKING

from teu.engine.core.errors import BadRequest
from teu.engine.core.kinds import natural
from teu.oci import jsontext
from teu.oci.units import parse_duration

if TYPE_CHECKING:
    from teu.oci.image_spec import ContainerConfig


def apply(config: ContainerConfig, changes: list[str]) -> None:
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
            value = jsontext.loads(text)
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


_VARIABLE = re.compile(
    r"""\\. | '[^']*' | "(?:\\.|[^"\\])*" | \$(?: (\w+) | \{(\w+) (?: :([-+]) ([^}]*) )? \} )""", re.VERBOSE | re.DOTALL
)


def _environment(config: ContainerConfig) -> dict[str, str]:
    return {name: value for name, _, value in (entry.partition("=") for entry in config.get("Env") or ())}


def _expanded(text: str, values: dict[str, str], special: str = "") -> str:
    """$name, ${name}, ${name:-else} and ${name:+then} by `values`; not in single quotes, nor after a backslash.

    A value's own `special` characters get a backslash, so that who splits the text into words finds them in it."""

    def replaced(match: re.Match[str]) -> str:
        name, found = match[1] or match[2], match[0]
        if not name:
            inner = found.startswith('"')
            return '"' + _expanded(found[1:-1], values, special and '"\\') + '"' if inner else found
        value = values.get(name, "")
        if match[3]:
            value = (value or match[4]) if match[3] == "-" else (match[4] if value else "")
        return "".join(f"\\{letter}" if letter in special else letter for letter in value)

    return _VARIABLE.sub(replaced, text)


def _pairs(text: str, values: dict[str, str]) -> list[tuple[str, str]]:
    words = shlex.split(text)
    if not words:
        raise ValueError("it needs an argument")
    if "=" not in words[0]:
        name, _, value = text.partition(" ")
        return [(name, _expanded(value.strip(), values).strip('"'))]
    result = []
    for word in shlex.split(_expanded(text, values, " \t\n\"'\\")):
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"{word!r} is not name=value")
        result.append((name, value))
    return result


def _cmd(config: ContainerConfig, text: str) -> None:
    config["Cmd"] = _command(text)


def _entrypoint(config: ContainerConfig, text: str) -> None:
    config["Entrypoint"] = _command(text)


def _env(config: ContainerConfig, text: str) -> None:
    env = list(config.get("Env") or [])
    for name, value in _pairs(text, _environment(config)):
        place = next((number for number, item in enumerate(env) if item.partition("=")[0] == name), len(env))
        env[place : place + 1] = [f"{name}={value}"]
    config["Env"] = env


def _label(config: ContainerConfig, text: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs(text, _environment(config)))}


def _expose(config: ContainerConfig, text: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in _expanded(text, _environment(config)).split():
        number, _, protocol = word.partition("/")
        first, _, last = number.partition("-")
        low, high = natural(first, 5), natural(last or first, 5)
        if not low or not high or low > high or high > 65535 or protocol not in ("", "tcp", "udp", "sctp"):
            raise ValueError(f"{word[:100]!r} is not a port")
        for port in range(low, high + 1):
            ports[f"{port}/{protocol or 'tcp'}"] = {}
    config["ExposedPorts"] = ports


def _volume(config: ContainerConfig, text: str) -> None:
    paths = _json_list(text)
    volumes = dict(config.get("Volumes") or {})
    for path in paths if paths is not None else _expanded(text, _environment(config)).split():
        volumes[path] = {}
    config["Volumes"] = volumes


def _workdir(config: ContainerConfig, text: str) -> None:
    path = _expanded(text, _environment(config))
    config["WorkingDir"] = posixpath.normpath(posixpath.join(config.get("WorkingDir") or "/", path))


def _user(config: ContainerConfig, text: str) -> None:
    config["User"] = _expanded(text, _environment(config))


def _stopsignal(config: ContainerConfig, text: str) -> None:
    config["StopSignal"] = _expanded(text, _environment(config))


def _onbuild(config: ContainerConfig, text: str) -> None:
    config["OnBuild"] = [*(config.get("OnBuild") or []), text]


def _healthcheck(config: ContainerConfig, text: str) -> None:
    words = text.split()
    options: dict[str, int] = {}
    names = {
        "interval": "Interval",
        "timeout": "Timeout",
        "start-period": "StartPeriod",
        "retries": "Retries",
        "start-interval": "StartInterval",
    }
    while words and words[0].startswith("--"):
        name, _, value = words.pop(0)[2:].partition("=")
        if name not in names:
            raise ValueError(f"unknown option --{name}")
        number = natural(value) if name == "retries" else parse_duration(value)
        if number is None:
            raise ValueError(f"{value[:100]!r} is no number of retries")
        if number < 0:
            raise ValueError(f"{value[:100]!r} is less than nothing")
        options[names[name]] = number
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
