# SPDX-License-Identifier: Apache-2.0
"""What a managed plugin says of itself in config.json (docker's "plugin config v0"), in records of the API's Plugin;
the privileges that it wants, and its settings, with docker's words for what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.core.kinds import (
    FLAG,
    TEXT,
    UINT32,
    WORD,
    WORD_LIST,
    ListOf,
    Record,
    RecordOf,
    loads,
    meaningless,
    member,
)

CONFIG_LIMIT = 1 << 20
_TYPE = re.compile(r"([a-z0-9_]+)\.([a-z0-9_]+)/([0-9][a-z0-9.]*)\Z", re.IGNORECASE)


class Args(Record):
    name: str = member("Name", TEXT, "")
    description: str = member("Description", TEXT, "")
    settable: list[str] | None = member("Settable", WORD_LIST)
    value: list[str] | None = member("Value", WORD_LIST)


class Env(Record):
    name: str = member("Name", WORD, "")
    description: str = member("Description", TEXT, "")
    settable: list[str] | None = member("Settable", WORD_LIST)
    value: str | None = member("Value", WORD)


class Mount(Record):
    name: str = member("Name", TEXT, "")
    description: str = member("Description", TEXT, "")
    settable: list[str] | None = member("Settable", WORD_LIST)
    source: str | None = member("Source", WORD)
    destination: str = member("Destination", WORD, "")
    type: str = member("Type", WORD, "")
    options: list[str] | None = member("Options", WORD_LIST)


class Device(Record):
    name: str = member("Name", TEXT, "")
    description: str = member("Description", TEXT, "")
    settable: list[str] | None = member("Settable", WORD_LIST)
    path: str | None = member("Path", WORD)


class Interface(Record):
    """`types`: docker.volumedriver/1.0 and its like."""

    protocol: str | None = member("ProtocolScheme", TEXT)
    socket: str = member("Socket", WORD, "")
    types: list[str] | None = member("Types", WORD_LIST)


class Linux(Record):
    all_devices: bool = member("AllowAllDevices", FLAG, False)
    capabilities: list[str] | None = member("Capabilities", WORD_LIST)
    devices: list[Device] | None = member("Devices", ListOf(RecordOf(Device, nulls=True)))


class Network(Record):
    type: str = member("Type", WORD, "")


class RootFs(Record):
    type: str | None = member("type", TEXT)
    diff_ids: list[str] | None = member("diff_ids", WORD_LIST)


class User(Record):
    """dockerd runs every plugin as root, whatever it says here."""

    uid: int | None = member("UID", meaningless(UINT32))
    gid: int | None = member("GID", meaningless(UINT32))


class Config(Record):
    """What is written in config.json. Docker shows what is not given as null, and leaves out what is None here of
    DockerVersion, ProtocolScheme, User's and rootfs'."""

    args: Args = member("Args", RecordOf(Args, nulls=True), Args())
    description: str = member("Description", TEXT, "")
    documentation: str = member("Documentation", TEXT, "")
    docker_version: str | None = member("DockerVersion", TEXT)
    entrypoint: list[str] | None = member("Entrypoint", WORD_LIST)
    env: list[Env] | None = member("Env", ListOf(RecordOf(Env, nulls=True)))
    interface: Interface = member("Interface", RecordOf(Interface, nulls=True), Interface())
    ipc_host: bool = member("IpcHost", FLAG, False)
    linux: Linux = member("Linux", RecordOf(Linux, nulls=True), Linux())
    mounts: list[Mount] | None = member("Mounts", ListOf(RecordOf(Mount, nulls=True)))
    network: Network = member("Network", RecordOf(Network), Network())
    pid_host: bool = member("PidHost", FLAG, False)
    propagated: str = member("PropagatedMount", WORD, "")
    user: User = member("User", RecordOf(User), User())
    working_dir: str = member("WorkDir", WORD, "")
    rootfs: RootFs | None = member("rootfs", RecordOf(RootFs))


class Settings(Record):
    """What of the configuration a user may have changed."""

    args: list[str] = member("Args", WORD_LIST, [])
    devices: list[Device] = member("Devices", ListOf(RecordOf(Device, nulls=True)), [])
    env: list[str] = member("Env", WORD_LIST, [])
    mounts: list[Mount] = member("Mounts", ListOf(RecordOf(Mount, nulls=True)), [])


class Privilege(Record):
    name: str = member("Name", TEXT, "")
    description: str = member("Description", TEXT, "")
    value: list[str] | None = member("Value", WORD_LIST)


CONFIG, SETTINGS = RecordOf(Config, nulls=True), RecordOf(Settings)
PRIVILEGE = RecordOf(Privilege, nulls=True)
PRIVILEGES = ListOf(PRIVILEGE)
ARGUMENTS = ListOf(TEXT)


class Type(NamedTuple):
    """What a plugin implements: docker.volumedriver/1.0."""

    prefix: str
    capability: str
    version: str


def decode(data: bytes) -> Config:
    """config.json. Raises BadRequest where it is none."""
    try:
        found = loads(data)
    except ValueError as error:
        raise BadRequest(f"failed to parse config: {error}") from None
    config = CONFIG.read(found, "")
    for text in config.interface.types or ():
        if not _TYPE.match(text):
            raise BadRequest(f"failed to parse config: invalid interface type {text!r}: it is like docker.authz/1.0")
    socket = config.interface.socket
    if "/" in socket or socket in (".", ".."):
        raise BadRequest(f"failed to parse config: Interface.Socket is a name, and no path: {socket!r}")
    for what, path in (("PropagatedMount", config.propagated), ("WorkDir", config.working_dir)):
        if path and (not path.startswith("/") or ".." in path.split("/")):
            raise BadRequest(f"failed to parse config: {what} is no absolute path: {path!r}")
    return config


def encoded(config: Config) -> dict[str, Any]:
    """The API's PluginConfig, which is also config.json."""
    result = CONFIG.write(config)
    for key in ("DockerVersion", "rootfs"):
        if result[key] is None:
            del result[key]
    interface = result["Interface"]
    if not interface["ProtocolScheme"]:
        del interface["ProtocolScheme"]
    return result


def types(config: Config) -> list[Type]:
    """What it implements."""
    found = (_TYPE.match(text) for text in config.interface.types or ())
    return [Type(match[1].lower(), match[2].lower(), match[3]) for match in found if match]


# -- privileges ------------------------------------------------------------------------------------------


def privileges(config: Config) -> list[Privilege]:
    """What it wants that a container does not have by itself, in docker's order and words."""
    found: list[tuple[str, str, list[str]]] = []
    if config.network.type not in ("", "null", "bridge"):
        found.append(("network", "permissions to access a network", [config.network.type]))
    if config.ipc_host:
        found.append(("host ipc namespace", "allow access to host ipc namespace", ["true"]))
    if config.pid_host:
        found.append(("host pid namespace", "allow access to host pid namespace", ["true"]))
    sources = (mount.source for mount in config.mounts or ())
    found += [("mount", "host path to mount", [source]) for source in sources if source is not None]
    paths = (device.path for device in config.linux.devices or ())
    found += [("device", "host device to access", [path]) for path in paths if path is not None]
    if config.linux.all_devices:
        found.append(("allow-all-devices", "allow 'rwm' access to all devices", ["true"]))
    if config.linux.capabilities:
        found.append(("capabilities", "list of additional capabilities required", list(config.linux.capabilities)))
    return [Privilege(name=name, description=about, value=value) for name, about, value in found]


def check_granted(config: Config, granted: Iterable[Privilege]) -> None:
    """That exactly what it wants was granted, in whatever order. Raises EngineError."""

    def plain(some: Iterable[Privilege]) -> list[tuple[str, list[str]]]:
        return sorted((one.name, sorted(one.value or ())) for one in some)

    if plain(privileges(config)) != plain(granted):
        raise EngineError("incorrect privileges")


# -- settings --------------------------------------------------------------------------------------------


def defaults(config: Config) -> Settings:
    """The settings of a new plugin."""
    return Settings(
        args=list(config.args.value or ()),
        devices=[device.copy() for device in config.linux.devices or ()],
        env=[f"{env.name}={env.value}" for env in config.env or () if env.value is not None],
        mounts=[mount.copy() for mount in config.mounts or ()],
    )


class _Asked(NamedTuple):
    """NAME[.FIELD]=VALUE."""

    name: str
    field: str
    value: str

    @property
    def shown(self) -> str:
        return f"{self.name}.{self.field}" if self.field else self.name


def _asked(text: str) -> _Asked:
    name, equals, value = text.partition("=")
    if equals and not name:
        raise EngineError("invalid format, must be <name>[.<field>][=<value>]")
    at = name.rfind(".")
    return _Asked(name[:at], name[at + 1 :], value) if at > 0 else _Asked(name, "", value)


def _check_settable(asked: _Asked, field: str, settable: Sequence[str] | None) -> None:
    given = asked.field
    if not given:
        if settable and len(settable) > 1:
            raise EngineError("multiple fields are settable, one must be specified")
        given = settable[0] if settable else ""
    if given != field or field not in (settable or ()):
        raise EngineError(f'"{asked.shown if asked.field else (asked._replace(field=given).shown)}" is not settable')


def change(config: Config, settings: Settings, words: Iterable[str]) -> tuple[Config, Settings]:
    """Both as they are after these NAME[.FIELD]=VALUE, of which all are good. Raises EngineError."""
    config, settings = CONFIG.build(CONFIG.write(config)), SETTINGS.build(SETTINGS.write(settings))
    settings.env = list(settings.env)
    for asked in [_asked(word) for word in words]:
        _change(config, settings, asked)
    return config, settings


def _change(config: Config, settings: Settings, asked: _Asked) -> None:
    for env in config.env or ():
        if env.name == asked.name:
            _check_settable(asked, "value", env.settable)
            _set_variable(settings.env, asked.name, asked.value)
            return
    for mount in config.mounts or ():
        if mount.name == asked.name:
            _check_settable(asked, "source", mount.settable)
            if mount.source is None:
                raise EngineError("plugin config has no mount source")
            for one in (mount, *(other for other in settings.mounts if other.name == asked.name)):
                one.source = asked.value
            return
    for device in config.linux.devices or ():
        if device.name == asked.name:
            _check_settable(asked, "path", device.settable)
            if device.path is None:
                raise EngineError("plugin config has no device path")
            for each in (device, *(other for other in settings.devices if other.name == asked.name)):
                each.path = asked.value
            return
    if config.args.name == asked.name:
        _check_settable(asked, "value", config.args.settable)
        settings.args = asked.value.split(" ")
        return
    raise EngineError(f'setting "{asked.name}" not found in the plugin configuration')


def _set_variable(variables: list[str], name: str, value: str) -> None:
    for number, variable in enumerate(variables):
        if variable.partition("=")[0] == name:
            variables[number] = f"{name}={value}"
            return
    variables.append(f"{name}={value}")
