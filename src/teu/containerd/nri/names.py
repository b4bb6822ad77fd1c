# SPDX-License-Identifier: Apache-2.0
"""Names of plugins, and where their files are. Called by `plugins` and `plugin`."""

from __future__ import annotations

import os
import re

_INDEX = re.compile(r"[0-9]{2}")
_NAME = re.compile(r"[A-Za-z0-9_.+-]+")
_WASM = b"\0asm\1\0\0\0"


def check(index: str, name: str) -> None:
    """ValueError where these are no index (two digits, by which plugins are asked in order) and no name."""
    if not _INDEX.fullmatch(index):
        raise ValueError(f'invalid plugin index "{index}", must be 2 digits')
    if not _NAME.fullmatch(name):
        raise ValueError(f'invalid plugin name "{name}": use letters, digits and any of _ . + -')


def split(file: str) -> tuple[str, str]:
    """(index, name) of a program's file, which is called INDEX-NAME. ValueError."""
    index, dash, name = file.partition("-")
    if not dash:
        raise ValueError(f'invalid plugin name "{file}", idx-pluginname expected')
    check(index, name)
    return index, name


def programs(folder: str) -> list[tuple[str, str, str]]:
    """(index, name, path) of the programs in a folder, in their order; nothing where there is no such folder. Also the
    name of what cannot be a plugin is there: `split` refuses it. OSError."""
    found = []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    for entry in entries:
        if entry.is_file() and entry.stat().st_mode & 0o111:
            index, _, name = entry.name.partition("-")
            found.append((index, name, entry.path))
    return found


def is_wasm(path: str) -> bool:
    """Whether a file is a program for WebAssembly. OSError."""
    with open(path, "rb") as file:
        return file.read(len(_WASM)) == _WASM


def configuration(folder: str, index: str, name: str) -> str:
    """What is in INDEX-NAME.conf of a folder, else in NAME.conf, else nothing. OSError."""
    for file in (f"{index}-{name}.conf", f"{name}.conf"):
        try:
            with open(os.path.join(folder, file), encoding="utf-8", errors="surrogateescape") as opened:
                return opened.read()
        except FileNotFoundError:
            continue
    return ""
