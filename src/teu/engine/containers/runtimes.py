# SPDX-License-Identifier: Apache-2.0
"""What --runtime names: a shim of containerd's, and what it is told. Called by create and start. `runtimes` of
teud.yaml names more of them, in docker's forms:

    kata: io.containerd.kata.v2                                       a shim, by containerd's name
    crun: {path: /usr/bin/crun, runtimeArgs: [--debug]}               a program with runc's command line, under our shim
    own:  {runtimeType: io.containerd.runc.v2, options: {Root: /x}}   a shim with options
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from teu.engine.core.errors import BadRequest

OWN = "io.containerd.teu.v2"
RUNC = "io.containerd.runc.v2"
SHORT = {"runc": RUNC, "teu": OWN}

# Options of the shims that drive a program with runc's command line, as docker names them, and in containerd's message.
OPTIONS: dict[str, tuple[str, type]] = {
    "BinaryName": ("binary_name", str),
    "CriuImagePath": ("criu_image_path", str),
    "CriuWorkPath": ("criu_work_path", str),
    "IoGid": ("io_gid", int),
    "IoUid": ("io_uid", int),
    "NoNewKeyring": ("no_new_keyring", bool),
    "NoPivotRoot": ("no_pivot_root", bool),
    "Root": ("root", str),
    "ShimCgroup": ("shim_cgroup", str),
    "SystemdCgroup": ("systemd_cgroup", bool),
}
_NAME = re.compile(r"io\.containerd\.[\w.-]+\.v\d|/[^\0]+")


class Runtime(NamedTuple):
    """`shim`: containerd's name. `path`, with `arguments` before its own: the program that the shim is to run, or
    empty. `options`: more for the shim, by docker's names."""

    shim: str
    path: str = ""
    arguments: tuple[str, ...] = ()
    options: Mapping[str, Any] = {}

    @property
    def of_runc(self) -> bool:
        """Whether the shim takes the options of OPTIONS."""
        return self.shim in (OWN, RUNC)


def read(value: object) -> Runtime:
    """One of `runtimes`. Raises ValueError with what it may be."""
    if isinstance(value, str):
        value = {"runtimeType": value}
        if value["runtimeType"].startswith("/"):
            raise ValueError("give {path: PROGRAM} for an OCI runtime, or {runtimeType: SHIM} for a shim")
    if not isinstance(value, dict) or set(value) - {"path", "runtimeArgs", "runtimeType", "options"}:
        raise ValueError("give a name such as io.containerd.kata.v2, or {path, runtimeArgs}, or {runtimeType, options}")
    path, shim = value.get("path") or "", value.get("runtimeType") or ""
    arguments, options = value.get("runtimeArgs") or [], value.get("options") or {}
    if not isinstance(path, str) or not isinstance(shim, str) or bool(path) == bool(shim):
        raise ValueError("give a path or a runtimeType, one of the two")
    if path and (options or "\0" in path or "/" in path and not path.startswith("/")):
        raise ValueError("path is a program's absolute path, or its name; options go with a runtimeType")
    if shim and (arguments or not _NAME.fullmatch(shim)):
        raise ValueError("runtimeType is like io.containerd.kata.v2, or a shim's path; runtimeArgs go with a path")
    if not isinstance(arguments, list) or not all(isinstance(one, str) and "\0" not in one for one in arguments):
        raise ValueError("runtimeArgs is a list of strings")
    if not isinstance(options, dict):
        raise ValueError("options is a mapping")
    runtime = Runtime(shim or OWN, path, tuple(arguments), options)
    for name, given in options.items() if runtime.of_runc else ():
        known = OPTIONS.get(name)
        if known is None or type(given) is not known[1]:
            there = ", ".join(f"{each} ({kind.__name__})" for each, (_, kind) in OPTIONS.items())
            raise ValueError(f"options has no {name} of that type; there are {there}")
    return runtime


def find(name: str, settings: Mapping[str, Any]) -> Runtime:
    """What a user or a record names; the default where it is empty. Raises BadRequest."""
    name = name or settings["default-runtime"]
    configured = settings["runtimes"]
    if name in configured:
        return read(configured[name])
    name = SHORT.get(name, name)
    if not _NAME.fullmatch(name) or name.startswith("/"):
        raise BadRequest(f"unknown or invalid runtime name: {name}")
    return Runtime(name)
