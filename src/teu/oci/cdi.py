# SPDX-License-Identifier: Apache-2.0
"""Devices as the Container Device Interface (CDI 1.0) describes them. Called by teud,
teu-buildkitd and the CRI of teu-containerd.

Whoever installs a device leaves a file in one of some folders, JSON or YAML:

    {"cdiVersion": "0.6.0", "kind": "vendor.example/class", "containerEdits": {…},
     "devices": [{"name": "first", "containerEdits": {"deviceNodes": [{"path": "/dev/first"}]}}]}

A device has the name `vendor.example/class=first`. Its edits, and those of its file, are what the specification of a
container gets: variables, nodes, mounts, hooks, groups. Files of a later folder take the place of an earlier one's; two
in one folder that have the same device have none of it. A file that cannot be understood is left out, and logged once.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from teu.oci import jsontext

log = logging.getLogger("teu.oci")

FOLDERS = ("/etc/cdi", "/var/run/cdi")
CLASS = "org.mobyproject.buildkit.device.class"  # BuildKit's annotations: another name for some devices,
ALLOWED = "org.mobyproject.buildkit.device.autoallow"  # and whether builds may have it without asking
FILE_MAX = 4 << 20  # bytes
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
TRUE = ("1", "t", "T", "true", "TRUE", "True")

_VENDOR = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?\Z")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?\Z")


class Broken(ValueError):
    """A file that is none of this interface's, or a name that is none of a device."""


class Unknown(LookupError):
    """No file has this device."""


class Node(NamedTuple):
    """A device of the host. What the file does not say, the host's own node does."""

    path: str
    host: str
    kind: str
    major: int
    minor: int
    mode: int | None
    permissions: str
    uid: int | None
    gid: int | None


class Edits(NamedTuple):
    """What a specification gets. Mounts and hooks are entries of it."""

    env: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()
    mounts: tuple[Mapping[str, Any], ...] = ()
    hooks: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    groups: tuple[int, ...] = ()

    def and_then(self, other: Edits) -> Edits:
        """These, and others after them."""
        return Edits(
            self.env + other.env,
            self.nodes + other.nodes,
            self.mounts + other.mounts,
            self.hooks + other.hooks,
            self.groups + other.groups,
        )


class Device(NamedTuple):
    """One device of a file."""

    name: str
    file: str
    annotations: Mapping[str, str]
    common: Edits  # of its file, once for all devices that come from there
    own: Edits


class Devices:
    """Those that the folders have now."""

    def __init__(self, folders: Sequence[str] = FOLDERS, allowed: Iterable[str] = ()) -> None:
        """allowed: names and kinds that a build may have without asking for them."""
        self._folders = folders
        self._allowed = frozenset(allowed)
        self._lock = threading.Lock()
        self._files: dict[str, tuple[tuple[int, int, int], list[Device]]] = {}

    def all(self) -> dict[str, Device]:
        """By their names, in order."""
        found: dict[str, Device] = {}
        with self._lock:
            there: set[str] = set()
            for folder in self._folders:
                mine: dict[str, Device] = {}
                twice: set[str] = set()
                for path in _files(folder):
                    there.add(path)
                    for device in self._read(path):
                        if device.name in mine:
                            twice.add(device.name)
                        mine[device.name] = device
                found |= {name: device for name, device in mine.items() if name not in twice}
                for name in twice:
                    found.pop(name, None)
            for path in set(self._files) - there:
                del self._files[path]
        return dict(sorted(found.items()))

    def _read(self, path: str) -> list[Device]:
        try:
            status = os.stat(path)
            mark = (status.st_ino, status.st_mtime_ns, status.st_size)
            if path not in self._files or self._files[path][0] != mark:
                try:
                    devices = parse(path, _document(path))
                except Broken as error:
                    log.warning("devices of %s are left out: %s", path, error)
                    devices = []
                self._files[path] = mark, devices
            return self._files[path][1]
        except OSError as error:
            log.warning("devices of %s are left out: %s", path, error.strerror)
            return []

    def find(self, name: str) -> list[str]:
        """The full names that are meant: KIND (the first of it), KIND=* (all), KIND=NAME, KIND=CLASS (an annotation).
        Raises Broken."""
        kind, _, rest = name.partition("=")
        check_kind(kind, name)
        mine = {one: device for one, device in self.all().items() if one.startswith(kind + "=")}
        if not rest:
            return list(mine)[:1]
        if rest == "*":
            return list(mine)
        if name in mine:
            return [name]
        return [one for one, device in mine.items() if device.annotations.get(CLASS) == rest]

    def may(self, name: str) -> bool:
        """Whether builds may have a device without asking."""
        if name in self._allowed or name.partition("=")[0] in self._allowed:
            return True
        device = self.all().get(name)
        return device is not None and device.annotations.get(ALLOWED, "") in TRUE

    def edits(self, names: Iterable[str]) -> Edits:
        """All that these devices give. Raises Unknown."""
        there = self.all()
        found, files = Edits(), set()
        for name in names:
            device = there.get(name)
            if device is None:
                raise Unknown(f'required device "{name}" is not registered')
            if device.file not in files:
                files.add(device.file)
                found = found.and_then(device.common)
            found = found.and_then(device.own)
        return found


def check_kind(kind: str, name: str) -> None:
    """Raises Broken where `kind`, of the device `name`, is no vendor/class."""
    vendor, slash, what = kind.partition("/")
    if not slash or not _VENDOR.match(vendor) or not _VENDOR.match(what):
        raise Broken(f'invalid device "{name}"')


def edit(spec: dict[str, Any], edits: Edits) -> None:
    """Change a specification; its mounts are the caller's. Raises OSError, Broken where a node is no device."""
    process, linux = spec["process"], spec["linux"]
    hidden = {one.partition("=")[0] for one in edits.env}
    if hidden:
        kept = [one for one in process.get("env", ()) if one.partition("=")[0] not in hidden]
        process["env"] = [*kept, *edits.env]
    user = process.get("user", {})
    for node in edits.nodes:
        made = _node(node, user)
        linux["devices"] = [one for one in linux.get("devices", ()) if one["path"] != node.path] + [made]
        if made["type"] in ("b", "c"):
            rule = {"allow": True, **{key: made[key] for key in ("type", "major", "minor")}, "access": node.permissions}
            linux.setdefault("resources", {}).setdefault("devices", []).append(rule)
    groups = [gid for gid in edits.groups if gid and gid not in user.get("additionalGids", ())]
    if groups:
        user["additionalGids"] = [*user.get("additionalGids", ()), *dict.fromkeys(groups)]
    for name, hook in edits.hooks:
        spec.setdefault("hooks", {}).setdefault(name, []).append(dict(hook))


def _node(node: Node, user: Mapping[str, Any]) -> dict[str, Any]:
    kind, major, minor, mode = node.kind, node.major, node.minor, node.mode
    if not kind or (kind != "p" and major < 0):
        status = os.stat(node.host, follow_symlinks=False)
        known = {stat.S_IFBLK: "b", stat.S_IFCHR: "c", stat.S_IFIFO: "p"}.get(stat.S_IFMT(status.st_mode), "")
        if not known or kind not in ("", known):
            raise Broken(f"{node.host} is no such device")
        kind = known
        if major < 0:
            major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        mode = stat.S_IMODE(status.st_mode) if mode is None else mode
    made: dict[str, Any] = {"path": node.path, "type": kind, "major": max(major, 0), "minor": max(minor, 0)}
    if mode is not None:
        made["fileMode"] = mode
    for key, given in (("uid", node.uid), ("gid", node.gid)):
        owner = user.get(key, 0) if given is None else given
        if owner or given is not None:
            made[key] = owner
    return made


def _files(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [f"{folder}/{name}" for name in sorted(names) if name.endswith((".json", ".yaml"))]


def _document(path: str) -> Any:
    with open(path, "rb") as file:
        data = file.read(FILE_MAX + 1)
    if len(data) > FILE_MAX:
        raise Broken(f"it has more than {FILE_MAX} bytes")
    try:
        if path.endswith(".json"):
            return jsontext.loads(data.decode())
        import yaml  # only where a file needs it

        return yaml.safe_load(data)
    except (ValueError, RecursionError) as error:
        raise Broken(str(error)) from None
    except Exception as error:  # yaml.YAMLError, which is not loaded with this module
        raise Broken(f"it is no YAML: {error}") from None


def parse(path: str, document: Any) -> list[Device]:
    """The devices of a file. Raises Broken."""
    given = _object(document, "the file")
    kind = _text(given, "kind")
    check_kind(kind, kind)
    if not _text(given, "cdiVersion"):
        raise Broken("it has no cdiVersion")
    common = _edits(given.get("containerEdits"))
    annotations = _annotations(given)
    devices = []
    for one in _list(given, "devices"):
        device = _object(one, "a device")
        name = _text(device, "name")
        if not _NAME.match(name):
            raise Broken(f"{name!r} is no name of a device")
        own = _edits(device.get("containerEdits"))
        devices.append(Device(f"{kind}={name}", path, {**annotations, **_annotations(device)}, common, own))
    return devices


def _annotations(given: Mapping[str, Any]) -> dict[str, str]:
    value = given.get("annotations")
    return {} if value is None else {key: _text(value, key) for key in _object(value, "annotations")}


def _edits(value: Any) -> Edits:
    if value is None:
        return Edits()
    given = _object(value, "containerEdits")
    for name in ("intelRdt", "netDevices"):
        if given.get(name):
            raise Broken(f"{name} is not supported")
    env = [_entry(one, "env") for one in _list(given, "env")]
    if any(not one.partition("=")[0] or "=" not in one for one in env):
        raise Broken("env has an entry without a name and a value")
    hooks = []
    for one in _list(given, "hooks"):
        name = _text(_object(one, "a hook"), "hookName")
        if name not in HOOKS or not _text(one, "path").startswith("/"):
            raise Broken(f"the hook {name!r} is none, or has no absolute path")
        hook: dict[str, Any] = {"path": one["path"]}
        for key in ("args", "env"):
            if values := [_entry(each, key) for each in _list(one, key)]:
                hook[key] = values
        if (timeout := _number(one, "timeout", 0)) is not None and timeout > 0:
            hook["timeout"] = timeout
        hooks.append((name, hook))
    groups = [_whole(one, "additionalGids") for one in _list(given, "additionalGids")]
    return Edits(
        tuple(env),
        tuple(_device_node(_object(one, "a device node")) for one in _list(given, "deviceNodes")),
        tuple(_mount(_object(one, "a mount")) for one in _list(given, "mounts")),
        tuple(hooks),
        tuple(groups),
    )


def _device_node(given: Mapping[str, Any]) -> Node:
    path = _text(given, "path")
    if not path.startswith("/"):
        raise Broken(f"the node {path!r} is no absolute path")
    kind = _text(given, "type")
    if kind not in ("", "b", "c", "u", "p"):
        raise Broken(f"the node {path} has the type {kind!r}")
    permissions = _text(given, "permissions") or "rwm"
    if set(permissions) - set("rwm"):
        raise Broken(f"the node {path} has the permissions {permissions!r}")
    # A number that is zero is one that is not said, as the interface has it.
    major = _number(given, "major", None) or -1
    minor = (_number(given, "minor", None) or 0) if major > 0 else -1
    return Node(
        path,
        _text(given, "hostPath") or path,
        "c" if kind == "u" else kind,
        major,
        minor,
        _number(given, "fileMode", None),
        permissions,
        _number(given, "uid", None),
        _number(given, "gid", None),
    )


def _mount(given: Mapping[str, Any]) -> dict[str, Any]:
    source, destination = _text(given, "hostPath"), _text(given, "containerPath")
    if not source or not destination.startswith("/"):
        raise Broken(f"the mount {source!r} at {destination!r} has no source, or no absolute path")
    options = [_entry(one, "options") for one in _list(given, "options")]
    kind = _text(given, "type") or "bind"
    if kind == "bind" and not {"bind", "rbind"} & set(options):
        options.insert(0, "rbind")
    return {"destination": destination, "type": kind, "source": source, "options": options}


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Broken(f"{what} is no object")
    return value


def _list(given: Mapping[str, Any], name: str) -> list[Any]:
    value = given.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise Broken(f"{name} is no list")
    return value


def _entry(value: Any, name: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise Broken(f"{name} has something that is no text")
    return value


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    return "" if value is None else _entry(value, name)


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
        raise Broken(f"{name} has something that is no number")
    return value


def _number(given: Mapping[str, Any], name: str, default: int | None) -> int | None:
    value = given.get(name)
    return default if value is None else _whole(value, name)
