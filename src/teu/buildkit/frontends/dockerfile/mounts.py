# SPDX-License-Identifier: Apache-2.0
"""RUN --mount and --device: what their comma-separated fields say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from teu.buildkit.frontends.dockerfile.errors import DockerfileError, did_you_mean
from teu.buildkit.frontends.dockerfile.lint import boolean
from teu.buildkit.frontends.dockerfile.shell import quoted

Expand = Callable[[str], str]

TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARING = ("shared", "private", "locked")
_KEYS = (
    *("type", "from", "source", "target", "readonly", "id", "sharing", "required", "size", "mode", "uid", "gid"),
    *("src", "dst", "destination", "ro", "rw", "readwrite", "env"),
)
_TEXTS = {  # what is taken as it is given
    "from": "origin",
    **dict.fromkeys(("source", "src"), "source"),
    **dict.fromkeys(("target", "dst", "destination"), "target"),
    "id": "id",
    "env": "env",
}
_NUMBERS = {"mode": 8, "uid": 10, "gid": 10}  # and to which base
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+) ?([kKmMgGtTpP]?)[iI]?[bB]?\Z", re.ASCII)


@dataclass
class Mount:
    """One mount of a RUN. Owner and mode are None where nothing was said; env is a secret's variable."""

    type: str = "bind"
    origin: str = ""  # from=
    source: str = ""
    target: str = ""
    readonly: bool = False
    size: int = 0
    id: str = ""
    sharing: str = ""
    required: bool = False
    env: str | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True)
class Device:
    """A CDI device of a RUN."""

    name: str = ""
    required: bool = False


def csv_fields(text: str) -> list[str]:
    """The fields of one CSV line; a field may stand in double quotes, with "" for one. Raises DockerfileError."""
    fields: list[str] = []
    at = 0
    if not text:
        return []
    while True:
        if text.startswith('"', at):
            part: list[str] = []
            at += 1
            while True:
                end = text.find('"', at)
                if end < 0:
                    raise DockerfileError(
                        f'parse error on line 1, column {len(text) + 1}: extraneous or missing " in quoted-field'
                    )
                part.append(text[at:end])
                at = end + 1
                if not text.startswith('"', at):
                    break
                part.append('"')
                at += 1
            if at < len(text) and text[at] != ",":
                raise DockerfileError(f'parse error on line 1, column {at}: extraneous or missing " in quoted-field')
            fields.append("".join(part))
        else:
            end = text.find(",", at)
            end = len(text) if end < 0 else end
            field = text[at:end]
            if '"' in field:
                raise DockerfileError(
                    f'parse error on line 1, column {at + field.index(chr(34)) + 1}: bare " in non-quoted-field'
                )
            fields.append(field)
            at = end
        if at >= len(text):
            return fields
        at += 1


def ram_bytes(text: str) -> int | None:
    """64m, 1g, 512: binary units, as docker reads sizes of memory; None for what is none."""
    match = _SIZE.match(text)
    if match is None:
        return None
    return int(float(match[1]) * 1024 ** ("kmgtp".index(match[2].lower()) + 1 if match[2] else 0))


def parse_mount(text: str, expand: Expand | None) -> Mount:
    """One --mount. Without `expand` only what holds no variable is checked: the rest when its stage is built."""
    try:
        fields = csv_fields(text)
    except DockerfileError as error:
        raise error.prefixed("failed to parse csv mounts") from None
    mount = Mount()
    readonly: bool | None = None
    for given in fields:
        key, separator, value = given.partition("=")
        key = key.lower()
        if expand is None:
            dollar = value.find("$")
            if separator and key == "from":
                if dollar >= 0 and dollar != len(value) - 1:
                    raise DockerfileError(f"'{key}' doesn't support variable expansion, define alias stage instead")
                mount.origin = value
            continue
        if separator:
            value = expand(value)
        elif key in ("readonly", "ro", "readwrite", "rw", "required"):
            value = "true"
        else:
            raise DockerfileError(f"invalid field '{given}' must be a key=value pair")
        if key in ("readonly", "ro"):
            readonly = _boolean(key, value)
        elif key in ("readwrite", "rw"):
            readonly = not _boolean(key, value)
        else:
            _set(mount, key, value, given)
    if expand is not None:
        _check(mount)
        mount.readonly = mount.type not in ("cache", "tmpfs") if readonly is None else readonly
    return mount


def _set(mount: Mount, key: str, value: str, given: str) -> None:
    if key in _TEXTS:
        setattr(mount, _TEXTS[key], value)
    elif key in _NUMBERS:
        setattr(mount, key, _number(key, value, _NUMBERS[key]))
    elif key == "type":
        mount.type = value.lower()
        if mount.type not in TYPES:
            raise DockerfileError(did_you_mean(f"unsupported mount type {quoted(value)}", value, TYPES))
    elif key == "required" and mount.type in ("secret", "ssh"):
        mount.required = _boolean(key, value)
    elif key == "size" and mount.type == "tmpfs":
        size = ram_bytes(value)
        if size is None:
            raise DockerfileError(f"invalid value for {key}: {value}")
        mount.size = size
    elif key in ("required", "size"):
        raise DockerfileError(f"unexpected key '{key}' for mount type '{mount.type}'")
    elif key == "sharing":
        mount.sharing = value.lower()
        if mount.sharing not in SHARING:
            raise DockerfileError(did_you_mean(f"unsupported sharing value {quoted(value)}", value, SHARING))
    else:
        raise DockerfileError(did_you_mean(f"unexpected key '{key}' in '{given}'", key, _KEYS))


def _check(mount: Mount) -> None:
    if mount.type not in ("secret", "ssh", "cache"):
        for name, value in (("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)):
            if value is not None:
                raise DockerfileError(f'{name} not allowed for "{mount.type}" type mounts')
    if mount.type == "secret":
        if mount.origin:
            raise DockerfileError("secret mount should not have a from")
        if mount.sharing:
            raise DockerfileError("secret mount should not define sharing")
        if not (mount.source or mount.target or mount.id):
            raise DockerfileError("invalid secret mount. one of source, target required")
        if mount.source and mount.id:
            raise DockerfileError("both source and id can't be set")
    if mount.sharing and mount.type != "cache":
        raise DockerfileError(f"invalid cache sharing set for {mount.type} mount")


def _boolean(key: str, value: str) -> bool:
    state = boolean(value)
    if state is None:
        raise DockerfileError(f"invalid value for {key}: {value}")
    return state


def _number(key: str, value: str, base: int) -> int:
    digits = "01234567" if base == 8 else "0123456789"
    if not value or any(character not in digits for character in value) or int(value, base) >> 32:
        raise DockerfileError(f"invalid value {value} for {key}")
    return int(value, base)


def parse_device(text: str) -> Device:
    """One --device: NAME[,required[=bool]] or name=NAME."""
    try:
        fields = csv_fields(text)
    except DockerfileError as error:
        raise error.prefixed("failed to parse csv devices") from None
    name, required = "", False
    for given in fields:
        key, separator, value = given.partition("=")
        key = key.lower()
        if key == "required":
            required = _boolean(key, value) if separator else True
        elif separator and key == "name":
            if name:
                raise DockerfileError(f"device name already set to {name}")
            name = value
        elif not name:
            name = given
        elif not separator:
            raise DockerfileError(f"invalid field '{given}' must be a key=value pair")
        else:
            raise DockerfileError(did_you_mean(f"unexpected key '{key}' in '{given}'", key, ("name", "required")))
    return Device(name, required)
