# SPDX-License-Identifier: Apache-2.0
"""The short-lived commands: `delete`, which cleans up after a shim that is gone, and `-info`.

Both run in a process of their own, with or without a shim alive, and write one protobuf message.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time

from teu import __version__
from teu.shim import rootfs
from teu.shim.cgroup import mount_point
from teu.shim.runtime import DEFAULT_BINARY, DEFAULT_ROOT, RuntimeFailed, find_binary
from teu.shim.service import EXIT_RECORD, OPTIONS_TYPE, read_options
from teu.ttrpc import messages as m

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RUNTIME_SECONDS = 30
ATTEMPTS = 5
FEATURES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def _read_json(path: str) -> dict[str, Any]:
    try:
        with open(path) as file:
            value = json.load(file)
        return value if isinstance(value, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _read_pid(path: str) -> int:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _cgroup_of(bundle: str) -> str:
    """The container's cgroup, if it is in a scope of ours; else ""."""
    path = (_read_json(os.path.join(bundle, "config.json")).get("linux") or {}).get("cgroupsPath") or ""
    return mount_point() + path if os.path.dirname(path).endswith(".scope") else ""


def _kill_shims_cgroup(bundle: str) -> None:
    """End a runtime that the dead shim left running: it would go on making what is deleted here."""
    path = _cgroup_of(bundle)
    if path:
        _kill_all(os.path.join(os.path.dirname(path), "shim"))


def _kill_all(folder: str) -> None:
    """End all processes of a cgroup and wait, a little, until they have."""
    try:
        with open(os.path.join(folder, "cgroup.kill"), "w") as file:
            file.write("1")
        for _ in range(200):
            with open(os.path.join(folder, "cgroup.events")) as file:
                if "populated 0" in file.read():
                    return
            time.sleep(0.01)
    except OSError:
        pass  # the cgroup is gone, as it should be


def _socket_of(bundle: str) -> str:
    try:
        with open(os.path.join(bundle, "address")) as file:
            return file.read().removeprefix("unix://")
    except OSError:
        return ""


def _is_served(path: str) -> bool:
    """Whether a shim lives there: one of a group goes on when one of its containers is deleted."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def delete(namespace: str, container: str, bundle: str) -> bytes:
    """Remove what a dead shim left of a container; the answer has its exit status if that is known,
    else that of SIGKILL."""
    # containerd runs this in the bundle of the container, or of its group's first one.
    bundle = bundle or os.path.join(os.path.dirname(os.getcwd()), container)
    options = _read_json(os.path.join(bundle, "options.json"))
    record = _read_json(os.path.join(bundle, EXIT_RECORD))
    pid = _read_pid(os.path.join(bundle, "init.pid"))
    path = _socket_of(bundle)
    alive = bool(path) and _is_served(path)
    if not alive:
        _kill_shims_cgroup(bundle)
    root = os.path.join(options.get("root") or DEFAULT_ROOT, namespace)
    known = os.path.join(root, container)
    for _ in range(ATTEMPTS):
        # One that was killed in the middle, by the OOM killer for instance, leaves the rest to the next.
        if not os.path.isdir(known) or not _delete_container(root, container, bundle, options):
            break
    if os.path.isdir(known) and (cgroup := _cgroup_of(bundle)):
        _kill_all(cgroup)  # without its shim, and no longer in its root file system, it must not run on
    rootfs.unmount_all(os.path.join(bundle, "rootfs"))
    if path and not alive:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
    return m.encode(
        "task.DeleteResponse",
        {
            "pid": record.get("pid", pid),
            "exit_status": record.get("exit_status", 128 + signal.SIGKILL),
            "exited_at": m.timestamp(record.get("exited_at", time.time_ns())),
        },
    )


def _delete_container(root: str, container: str, bundle: str, options: dict[str, Any]) -> bool:
    """Have the runtime delete what it still knows; whether it was killed meanwhile."""
    try:
        binary = find_binary(options.get("binary_name") or DEFAULT_BINARY)
        command = [binary, "--root", root, "--log", os.path.join(bundle, "log.json"), "--log-format", "json"]
        if options.get("systemd_cgroup"):
            command.append("--systemd-cgroup")
        done = subprocess.run(
            [*command, "delete", "--force", container],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=RUNTIME_SECONDS,
            check=False,
        )
        return done.returncode < 0
    except (OSError, subprocess.SubprocessError, RuntimeFailed):
        return False  # what can be cleaned up without it is still cleaned up


def info(name: str, packed: bytes) -> bytes:
    """containerd.types.RuntimeInfo, for options given as an Any."""
    answer: dict[str, Any] = {"name": name, "version": {"version": __version__}}
    binary_name = ""
    if packed:
        packed_options = m.decode("google.protobuf.Any", packed)
        options = read_options(packed_options)
        binary_name = options["binary_name"]
        answer["options"] = m.encode_any(OPTIONS_TYPE, options)
    try:
        binary = find_binary(binary_name or DEFAULT_BINARY)
        features = subprocess.run(
            [binary, "features"], stdin=subprocess.DEVNULL, capture_output=True, timeout=RUNTIME_SECONDS, check=True
        ).stdout
        json.loads(features)
        answer["features"] = {"type_url": FEATURES_TYPE, "value": features}
    except (subprocess.SubprocessError, ValueError):
        pass  # an older runtime has no such command
    except RuntimeFailed as error:
        raise ValueError(str(error)) from error
    return m.encode("containerd.types.RuntimeInfo", answer)
