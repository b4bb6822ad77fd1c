# SPDX-License-Identifier: Apache-2.0
"""`start`: make sure that a shim serves a bundle, and tell containerd where. Called by `main` for the command line, and
by the zygote for a shim that it forks."""

from __future__ import annotations

import errno
import os

from teu.linux import sockets
from teu.oci import jsontext
from teu.shim import placement, server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PROGRAM = "containerd-shim-teu-v2"
TASK_API_VERSION = 3


class UsageError(ValueError):
    """The command line is wrong."""


def socket_path(folder: str, address: str, namespace: str, group: str) -> str:
    """Where the shim of a group listens: the same for every container of it, and another for another
    daemon; hashed, because a socket's path has room for 107 bytes only."""
    from _blake2 import blake2b  # hashlib would load OpenSSL into every shim

    digest = blake2b(f"{address}/{namespace}/{group}".encode(), digest_size=20).hexdigest()
    return os.path.join(folder, digest)


def listen(path: str) -> sockets.Socket | None:
    """A new listening socket there, or None if a shim is already serving it."""
    os.makedirs(os.path.dirname(path), 0o711, exist_ok=True)
    for _ in range(3):
        listener = sockets.Socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_CLOEXEC)
        mask = os.umask(0o177)
        try:
            listener.bind(path)
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise
        finally:
            os.umask(mask)
        with sockets.Socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_CLOEXEC) as probe:
            probe.settimeout(1)
            try:
                probe.connect(path)
                return None
            except OSError:
                try:
                    os.unlink(path)  # left by a shim that was killed
                except FileNotFoundError:
                    pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)


def _write_new(path: str, text: str) -> None:
    with open(path + ".tmp", "w") as file:
        file.write(text)
    os.rename(path + ".tmp", path)


def bootstrap(address: str, environment: dict[str, str]) -> str:
    """What `start` prints: JSON of version 2 or 3 for a containerd that says it knows it, else the address."""
    try:
        version = min(int(environment["MAX_SHIM_VERSION"]), TASK_API_VERSION)
    except (KeyError, ValueError):
        return address
    if version < 2:
        return address
    return jsontext.dumps({"version": version, "address": address, "protocol": "ttrpc"})


def start_shim(
    flags: dict[str, Any],
    environment: dict[str, str],
    bundle: str,
    *,
    launch: Callable[[server.Parameters, sockets.Socket], None] = server.fork,
) -> str:
    """Make sure that a shim serves the bundle, and return its address.

    `launch` makes the process that serves, where none does yet; this one is to end soon."""
    namespace, container = flags["namespace"], flags["id"]
    if not container:
        raise UsageError("shim id cannot be empty")
    group = placement.group_of(placement.read_spec(bundle), container)
    grpc_address = flags["address"] or environment.get("GRPC_ADDRESS", "")
    path = socket_path(placement.SOCKET_FOLDER, grpc_address, namespace, group)
    address = "unix://" + path
    listener = listen(path)
    if listener is not None:
        command = [flags.get("program") or PROGRAM, "-namespace", namespace, "-id", container, "-address", grpc_address]
        if flags["debug"]:
            command.append("-debug")
        ttrpc_address = environment.get("TTRPC_ADDRESS") or (grpc_address + ".ttrpc" if grpc_address else "")
        launch(
            server.Parameters(
                namespace=namespace,
                container=container,
                bundle=bundle,
                socket_path=path,
                ttrpc_address=ttrpc_address,
                command=command,
                debug=flags["debug"],
                environment=environment,
            ),
            listener,
        )
        listener.close()
    _write_new(os.path.join(bundle, "address"), address)
    return address
