# SPDX-License-Identifier: Apache-2.0
"""What a shim is told of a container's runtime, as containerd hands it on. Called by start.

DATA_ROOT/runtimes/SUM    a script for a runtime with arguments, named by what is in it: a shim calls a program by
                          its path alone. It stays, for the containers that have been started with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
from typing import Any, NamedTuple

from teu.engine.containers.runtimes import OPTIONS, Runtime

RUNC_OPTIONS = "containerd.runc.v1.Options"
OTHER_OPTIONS = "runtimeoptions.v1.Options"


class Told(NamedTuple):
    """Options as a message: its type, and itself encoded; both empty where there are none."""

    type_url: str = ""
    value: bytes = b""


def told(runtime: Runtime, systemd_cgroup: bool, data_root: str) -> Told:
    """`systemd_cgroup`: the runtime is to ask systemd for a scope. Raises OSError where a script cannot be written."""
    if not runtime.of_runc and runtime.options:
        return _other(runtime.options)
    fields: dict[str, Any] = {OPTIONS[name][0]: value for name, value in runtime.options.items()}
    if systemd_cgroup:
        fields.setdefault("systemd_cgroup", True)
    if runtime.path:
        fields["binary_name"] = _script(runtime, data_root) if runtime.arguments else runtime.path
    if not fields:
        return Told()
    from teu.api.types.runc.options import oci_pb2

    return Told(RUNC_OPTIONS, oci_pb2.Options(**fields).SerializeToString())


def _other(options: Any) -> Told:
    """For a shim that has options of its own: a file's path, or what would be in it."""
    from teu.api.types.runtimeoptions.v1 import api_pb2

    fields = {"TypeUrl": "type_url", "ConfigPath": "config_path"}
    message = api_pb2.Options(**{fields[name]: str(value) for name, value in options.items() if name in fields})
    if body := options.get("ConfigBody"):
        message.config_body = str(body).encode()
    return Told(OTHER_OPTIONS, message.SerializeToString())


def _script(runtime: Runtime, data_root: str) -> str:
    text = f'#!/bin/sh\nexec {shlex.join([runtime.path, *runtime.arguments])} "$@"\n'.encode()
    folder = f"{data_root}/runtimes"
    path = f"{folder}/{hashlib.sha256(text).hexdigest()[:32]}"
    if os.path.exists(path):
        return path
    os.makedirs(folder, mode=0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}.{id(runtime)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return path
