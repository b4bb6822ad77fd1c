# SPDX-License-Identifier: Apache-2.0
"""A folder with the places of registries, as containerd's `config_path` and ctr's `--hosts-dir` name one. Called by
teu-ctr and by teu-containerd's transfer service.

    FOLDER/
      HOST[_PORT_]/     of this registry; HOST:PORT is looked at next
        hosts.toml      the places to ask, in the order of the file, and the registry itself at the end
        *.crt           without hosts.toml, as docker has it: authorities to trust,
        *.cert *.key    certificates to show, and their keys
      _default/         of every registry without a folder
"""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

OPERATIONS = ("pull", "resolve", "push")


class HostsError(Exception):
    """What a folder says is not understood."""


class Place(NamedTuple):
    """Where to ask. Without `netloc` it is the registry that an image's name says."""

    scheme: str = ""
    netloc: str = ""
    path: str = "/v2"
    operations: tuple[str, ...] = OPERATIONS
    authorities: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    verify: bool | None = None
    headers: tuple[tuple[str, str], ...] = ()


def places(folder: str, domain: str) -> list[Place]:
    """Where to ask for what is of `domain`, in this order. Raises HostsError and OSError."""
    host, colon, port = domain.rpartition(":")
    names = [f"{host}_{port}_", domain, "_default"] if colon else [domain, "_default"]
    for name in names:
        found = Path(folder, name)
        if found.exists():
            try:
                text = (found / "hosts.toml").read_text()
            except FileNotFoundError:
                text = ""
            return _from_file(found, text) if text else [_from_certificates(found)]
    return [Place()]


def _from_certificates(folder: Path) -> Place:
    names = sorted(entry for entry in folder.iterdir() if entry.is_file())
    pairs = []
    for path in names:
        if path.suffix == ".cert":
            key = path.with_suffix(".key")
            pairs.append((str(path), str(key) if key.exists() else ""))
    return Place(authorities=tuple(str(path) for path in names if path.suffix == ".crt"), pairs=tuple(pairs))


def _from_file(folder: Path, text: str) -> list[Place]:
    import tomllib  # 13 ms and 2.2 MB

    try:
        table = tomllib.loads(text)
        below = table.get("host") or {}
        if not isinstance(below, dict) or not all(isinstance(each, dict) for each in below.values()):
            raise HostsError("invalid `host` tree")
        found = [_place(folder, server, each) for server, each in below.items()]
        return [*found, _place(folder, str(table.get("server") or ""), table)]
    except (HostsError, ValueError) as error:
        raise HostsError(f"{folder}/hosts.toml: {error}") from None


def _place(folder: Path, server: str, table: dict[str, Any]) -> Place:
    scheme = netloc = ""
    path = "/v2"
    if server:
        parts = urlsplit(server if server.startswith("http") else "https://" + server)
        scheme, netloc = parts.scheme, parts.netloc
        path = posixpath.normpath(parts.path) if parts.path else ""
        if not path.endswith("/v2") and not table.get("override_path"):
            path = path.rstrip("/") + "/v2"
    operations = tuple(str(each).lower() for each in table.get("capabilities") or OPERATIONS)
    for each in operations:
        if each not in OPERATIONS:
            raise HostsError(f"unknown capability {each}")
    headers = []
    for name, values in (table.get("header") or {}).items():
        headers += [(name, str(value)) for value in (values if isinstance(values, list) else [values])]
    return Place(
        scheme,
        netloc,
        path,
        operations,
        tuple(str(folder / each) for each in _texts(table.get("ca"), "ca")),
        tuple(_pairs(folder, table.get("client"))),
        None if table.get("skip_verify") is None else not table["skip_verify"],
        tuple(headers),
    )


def _texts(value: Any, name: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise HostsError(f"invalid type for {name!r}".replace("'", '"'))
    return texts


def _pairs(folder: Path, value: Any) -> list[tuple[str, str]]:
    """A file with both, a list of those, or a list of [certificate, key]."""
    pairs = []
    for each in [value] if isinstance(value, str) else value or []:
        files = _texts(each, "client")
        if len(files) not in (1, 2) or (len(files) == 1 and not isinstance(each, str)):
            raise HostsError(f'invalid pair {each} for "client"')
        pairs.append((str(folder / files[0]), str(folder / files[1]) if len(files) == 2 else ""))
    return pairs
