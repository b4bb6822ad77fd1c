# SPDX-License-Identifier: Apache-2.0
"""Docker's plugins that are programs of the host: how one is found by its name, and asked.

    /run/docker/plugins/NAME.sock, NAME/NAME.sock                       the plugin's socket
    /etc/docker/plugins, /usr/lib/docker/plugins   NAME.spec, NAME/...  its address in a line: unix://, tcp://, http(s)://
                                                   NAME.json            {"Addr": ADDRESS, "TLSConfig": {...}}

A request is a POST to /METHOD with a JSON object, and so is the answer. The first one is Plugin.Activate, which says
what the plugin implements. A plugin that is there and does not listen yet is waited for; one whose answer does not come
is given up. One that the engine manages itself (core/managed.py) has precedence, and is not asked what it
implements. Called by the network driver remote, by the remote pools of addresses, and by the log and volume drivers of
plugins, and imported with the first of those.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import re
import socket
import ssl
import stat
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any, NamedTuple

from teu.engine.core.errors import BadRequest, Conflict, EngineError, NotFound
from teu.engine.core.managed import KNOWN, Managed

log = logging.getLogger("teu.engine")

SOCKETS = "/run/docker/plugins"
SPECIFICATIONS = ("/etc/docker/plugins", "/usr/lib/docker/plugins")
KIND = "application/vnd.docker.plugins.v1.2+json"
HOST = "plugin.moby.localhost"
NETWORKS, ADDRESSES, LOGS, VOLUMES = "NetworkDriver", "IpamDriver", "LogDriver", "VolumeDriver"

WAIT_SECONDS = 30.0
"""How long a plugin that does not listen is waited for, with pauses of 1, 2, 4 and 8 seconds between."""
ANSWER_SECONDS = 120.0
LONGEST_ANSWER = 4 << 20
SUN_PATH = 107  # bytes of a unix socket's address

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]*\Z")


class PluginError(EngineError):
    """A plugin did not do what it was asked. `missing`: it does not know the method. `silent`: it did not answer, so
    that nobody knows whether it was done."""

    def __init__(self, message: str, missing: bool = False, silent: bool = False) -> None:
        super().__init__(message)
        self.missing = missing
        self.silent = silent


def member(answer: dict[str, Any], name: str) -> Any:
    """What a plugin said: names are the same in small and capital letters, as docker reads them."""
    if name in answer:
        return answer[name]
    return next((value for key, value in answer.items() if key.lower() == name.lower()), None)


def section(answer: dict[str, Any], name: str) -> dict[str, Any]:
    """A member that is an object; empty where it is not there. Raises PluginError where it is something else."""
    found = member(answer, name)
    if found is not None and not isinstance(found, dict):
        raise PluginError(f"{name} in a plugin's answer is no object")
    return found or {}


def words(answer: dict[str, Any], name: str) -> str:
    """A member that is a text; empty where it is not there. Raises PluginError where it is something else."""
    found = member(answer, name)
    if found is not None and not isinstance(found, str):
        raise PluginError(f"{name} in a plugin's answer is no text")
    return found or ""


class Place(NamedTuple):
    """Where a plugin is. `tls`: the TLSConfig of its specification."""

    scheme: str
    address: str
    tls: dict[str, Any] | None = None


def find(name: str) -> Place | None:
    """Where the plugin of that name is; None where there is none. Raises EngineError where a specification is none."""
    if (managed := KNOWN.find(name)) is not None:
        return Place("unix", managed.socket)
    if not _NAME.match(name):
        return None
    for path in _paths(SOCKETS, name, ".sock"):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.stat(path).st_mode):
                return Place("unix", path)
    for folder in SPECIFICATIONS:
        for suffix in (".spec", ".json"):
            for path in _paths(folder, name, suffix):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(path) as file:
                    return _specified(path, file.read(1 << 16))
    return None


def names() -> list[str]:
    """Of the plugins that there are, of whatever kind; they may be away."""
    found = set()
    for folder, suffixes in ((SOCKETS, (".sock",)), *((each, (".spec", ".json")) for each in SPECIFICATIONS)):
        with contextlib.suppress(OSError):
            for entry in os.listdir(folder):
                name = next((entry.removesuffix(suffix) for suffix in suffixes if entry.endswith(suffix)), entry)
                found.update([name] if find_quietly(name) else [])
    return sorted(found)


def find_quietly(name: str) -> Place | None:
    """`find`, where a specification that is none is nothing."""
    try:
        return find(name)
    except EngineError:
        return None


def _paths(folder: str, name: str, suffix: str) -> tuple[str, str]:
    return f"{folder}/{name}{suffix}", f"{folder}/{name}/{name}{suffix}"


def _specified(path: str, text: str) -> Place:
    tls = None
    if path.endswith(".json"):
        try:
            found = json.loads(text)
            text, tls = str(found["Addr"]), found.get("TLSConfig")
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{path} is no specification of a plugin: {error}") from error
    url = urllib.parse.urlsplit(text.strip())
    if not url.scheme:
        raise EngineError(f"{path}: Unknown protocol")
    if url.scheme not in ("unix", "tcp", "http", "https"):
        raise EngineError(f"{path}: protocol {url.scheme} is not known; there are unix, tcp, http and https")
    return Place(url.scheme, url.netloc or url.path, tls if isinstance(tls, dict) else None)


class _Connection(http.client.HTTPConnection):
    """By a unix socket, by TCP, or by TLS."""

    def __init__(self, place: Place, timeout: float) -> None:
        super().__init__(HOST if place.scheme == "unix" else place.address, timeout=timeout)
        self._place = place

    def connect(self) -> None:
        if self._place.scheme == "unix":
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            self.sock.settimeout(self.timeout)
            connect(self.sock, self._place.address)
            return
        super().connect()
        if self._place.scheme == "https":
            name = self.host
            self.sock = _trust(self._place.tls or {}).wrap_socket(self.sock, server_hostname=name)


def _trust(tls: dict[str, Any]) -> ssl.SSLContext:
    """As docker has it: without an authority of its own to trust, a plugin is believed who it is."""
    result = ssl.create_default_context()
    if not tls.get("CAFile"):
        result.check_hostname, result.verify_mode = False, ssl.CERT_NONE
    else:
        result.load_verify_locations(str(tls["CAFile"]))
    if tls.get("CertFile"):
        result.load_cert_chain(str(tls["CertFile"]), str(tls.get("KeyFile") or "") or None)
    return result


def connect(to: socket.socket, path: str) -> None:
    """connect(2), also where the path is longer than an address may be. Raises OSError."""
    if len(os.fsencode(path)) <= SUN_PATH:
        to.connect(path)
        return
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        to.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    finally:
        os.close(folder)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class Plugin:
    """A plugin that has said what it implements. `capabilities`: of what it implements, as far as that was asked.
    `managed`: of the engine itself."""

    def __init__(self, name: str, place: Place, managed: Managed | None = None) -> None:
        self.name = name
        self.place = place
        self.managed = managed
        self.implements: tuple[str, ...] = ()
        self.capabilities: dict[str, dict[str, Any]] = {}

    def call(
        self, method: str, body: dict[str, Any] | None = None, patient: bool = True, seconds: float = 0.0
    ) -> dict[str, Any]:
        """Ask: the answer's members. `patient`: wait for one that does not listen; `seconds`: for its answer, or
        ANSWER_SECONDS. Raises PluginError."""
        limit = seconds or (self.managed.seconds if self.managed else 0.0) or ANSWER_SECONDS
        sent = b"" if body is None else json.dumps(body).encode() + b"\n"
        began = time.monotonic()
        pause = 1.0
        while True:
            try:
                answer = self._ask(method, sent, limit)
                break
            except (OSError, http.client.HTTPException) as error:
                told = self._told(method, error, limit)
                waited = time.monotonic() - began
                if isinstance(error, TimeoutError) or not patient or waited + pause >= WAIT_SECONDS:
                    raise PluginError(told, silent=True) from error
                log.warning("plugin %s: %s; it is asked again in %d s", self.name, told, pause)
                time.sleep(pause)
                pause *= 2
        refused = member(answer, "Error" if method.startswith(ADDRESSES) else "Err")
        if refused:
            raise PluginError(f"remote: {refused}")
        return answer

    @contextlib.contextmanager
    def stream(self, method: str, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
        """Ask for what is told bit by bit, for as long as there is something. Raises PluginError."""
        with contextlib.closing(_Connection(self.place, ANSWER_SECONDS)) as connection, contextlib.ExitStack() as stack:
            try:
                connection.request("POST", f"/{method}", json.dumps(body).encode() + b"\n", {"Accept": KIND})
                connection.sock.settimeout(None)
                stack.callback(_end, connection.sock)  # also under a thread that waits for more
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise PluginError(self._told(method, error, ANSWER_SECONDS)) from error
            if answer.status != 200:
                raise PluginError(f"{method}: {answer.read(LONGEST_ANSWER).decode(errors='replace')}")
            yield answer

    def _told(self, method: str, error: Exception, limit: float) -> str:
        what = f'Post "http://{HOST if self.place.scheme == "unix" else self.place.address}/{method}": '
        if isinstance(error, TimeoutError):
            return f"{what}no answer within {limit:.0f} s"
        if isinstance(error, OSError) and self.place.scheme == "unix":
            return f"{what}dial unix {self.place.address}: {(error.strerror or str(error)).lower()}"
        return f"{what}{str(error) or type(error).__name__}"

    def _ask(self, method: str, sent: bytes, limit: float) -> dict[str, Any]:
        with contextlib.closing(_Connection(self.place, limit)) as connection:
            connection.request("POST", f"/{method}", sent, {"Accept": KIND})
            answer = connection.getresponse()
            text = answer.read(LONGEST_ANSWER + 1)
        if len(text) > LONGEST_ANSWER:
            raise PluginError(f"{method}: an answer of more than {LONGEST_ANSWER} bytes")
        try:
            found = json.loads(text)
        except ValueError as error:
            if answer.status == 200:
                raise PluginError(f"{method}: {error}") from error
            found = None
        if answer.status != 200:
            told = member(found, "Err") if isinstance(found, dict) else ""
            raise PluginError(f"{method}: {told or text.decode(errors='replace')}", answer.status == 404)
        if not isinstance(found, dict):
            raise PluginError(f"{method}: the answer is no object")
        return found


_known: dict[str, Plugin] = {}
_lock = threading.Lock()


def get(name: str, kind: str, patient: bool = True, seconds: float = 0.0) -> Plugin:
    """The plugin of that name, which implements a kind: NETWORKS, ADDRESSES, LOGS or VOLUMES. One that was not asked
    before is asked as `call` does. Raises NotFound, PluginError."""
    managed = KNOWN.find(name)
    if managed is not None:
        return _managed(name, managed, kind, patient, seconds)
    place = find(name)
    if place is None:
        raise NotFound(f'plugin "{name}" not found')
    with _lock:
        plugin = _known.get(name)
    if plugin is None or plugin.place != place:
        plugin = Plugin(name, place)
        try:
            said = member(plugin.call("Plugin.Activate", patient=patient, seconds=seconds), "Implements")
            plugin.implements = tuple(map(str, said)) if isinstance(said, list) else ()
        except PluginError as error:
            raise PluginError(f"legacy plugin: {error}", silent=error.silent) from error
        for each in (NETWORKS, ADDRESSES):
            if each in plugin.implements:
                plugin.capabilities[each] = _capabilities(plugin, each, patient, seconds)
        with _lock:
            _known[name] = plugin
    if kind not in plugin.implements:
        raise EngineError(
            f"legacy plugin: Plugin does not implement the requested driver:"
            f' plugin="{name}", requested implementation="{kind}"'
        )
    return plugin


def _managed(name: str, managed: Managed, kind: str, patient: bool, seconds: float) -> Plugin:
    """`get`, of a plugin of the engine's: its configuration says what it implements. Raises Conflict, EngineError."""
    if not managed.enabled:
        raise Conflict(f"plugin {name} found but disabled")
    if kind.lower() not in managed.kinds:
        raise EngineError(f'plugin does not provide "{kind.lower()}" capability')
    with _lock:
        plugin = _known.get(managed.name)
    if plugin is None or plugin.managed != managed:
        plugin = Plugin(managed.name, Place("unix", managed.socket), managed)
        plugin.implements = tuple(
            each for each in (NETWORKS, ADDRESSES, LOGS, VOLUMES) if each.lower() in managed.kinds
        )
        for each in (NETWORKS, ADDRESSES):
            if each in plugin.implements:
                plugin.capabilities[each] = _capabilities(plugin, each, patient, seconds)
        with _lock:
            _known[managed.name] = plugin
    return plugin


def _capabilities(plugin: Plugin, kind: str, patient: bool, seconds: float) -> dict[str, Any]:
    """What a plugin can, which of addresses it need not say. Raises PluginError, BadRequest."""
    try:
        found = plugin.call(f"{kind}.GetCapabilities", patient=patient, seconds=seconds)
    except PluginError:
        if kind == NETWORKS:
            raise
        return {}
    scope = member(found, "Scope") or ""
    if kind == NETWORKS and scope not in ("local", "global"):
        raise BadRequest(f"invalid capability: expecting 'local' or 'global', got {scope}")
    return found
