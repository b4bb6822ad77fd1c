# SPDX-License-Identifier: Apache-2.0
"""containerd-shim-teu-v2: the command line that containerd runs (the shim binary protocol).

    containerd-shim-teu-v2 -namespace NS -id ID -address GRPC start     makes a shim; prints its address
    containerd-shim-teu-v2 -namespace NS -id ID -bundle DIR delete      cleans up after a dead shim
    containerd-shim-teu-v2 -info                                        describes the runtime
    containerd-shim-teu-v2 -namespace NS -id ID -address GRPC           serves (on -socket, or descriptor 3)

`start` runs in the bundle's folder.  TTRPC_ADDRESS is where events go, MAX_SHIM_VERSION says that
containerd understands JSON bootstrap parameters and up to which version of the task API.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys

from teu import __version__
from teu.linux.standard import open_what_is_closed
from teu.shim import placement, server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

NAME = "io.containerd.teu.v2"
PROGRAM = "containerd-shim-teu-v2"
SOCKET_FOLDER = "/run/teu/s"
TASK_API_VERSION = 3
STDIN_MAX = 10 << 20

_FLAGS = {
    "namespace": "",
    "id": "",
    "address": "",
    "publish-binary": "",
    "bundle": "",
    "socket": "",
    "debug-socket": "",
    "debug": False,
    "v": False,
    "version": False,
    "info": False,
}


class UsageError(ValueError):
    """The command line is wrong."""


class FlagError(UsageError):
    """There is no such flag, or its value is missing: exit status 2, as of Go's programs."""


def parse_flags(args: list[str]) -> tuple[dict[str, Any], str]:
    """Flags in Go's manner (-flag value, -flag=value, --flag), and the action behind them."""
    flags: dict[str, Any] = dict(_FLAGS)
    at = 0
    while at < len(args) and args[at].startswith("-") and args[at] not in ("-", "--"):
        name, separator, value = args[at].lstrip("-").partition("=")
        at += 1
        if name not in flags:
            raise FlagError(f"flag provided but not defined: -{name}")
        if isinstance(_FLAGS[name], bool):
            flags[name] = not separator or value.lower() in ("1", "t", "true")
            continue
        if not separator:
            if at >= len(args):
                raise FlagError(f"flag needs an argument: -{name}")
            value = args[at]
            at += 1
        flags[name] = value
    return flags, args[at] if at < len(args) else ""


def socket_path(folder: str, address: str, namespace: str, group: str) -> str:
    """Where the shim of a group listens: the same for every container of it, and another for another
    daemon; hashed, because a socket's path has room for 107 bytes only."""
    from _blake2 import blake2b  # hashlib would load OpenSSL into every shim

    digest = blake2b(f"{address}/{namespace}/{group}".encode(), digest_size=20).hexdigest()
    return os.path.join(folder, digest)


def listen(path: str) -> socket.socket | None:
    """A new listening socket there, or None if a shim is already serving it."""
    os.makedirs(os.path.dirname(path), 0o711, exist_ok=True)
    for _ in range(3):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
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
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
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
    return json.dumps({"version": version, "address": address, "protocol": "ttrpc"})


def start_shim(
    flags: dict[str, Any],
    environment: dict[str, str],
    bundle: str,
    *,
    launch: Callable[[server.Parameters, socket.socket], None] = server.fork,
) -> str:
    """Make sure that a shim serves the bundle, and return its address.

    `launch` makes the process that serves, where none does yet; this one is to end soon."""
    namespace, container = flags["namespace"], flags["id"]
    if not container:
        raise UsageError("shim id cannot be empty")
    group = placement.group_of(placement.read_spec(bundle), container)
    grpc_address = flags["address"] or environment.get("GRPC_ADDRESS", "")
    path = socket_path(SOCKET_FOLDER, grpc_address, namespace, group)
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


def _start(flags: dict[str, Any]) -> int:
    bundle = flags["bundle"] or os.getcwd()
    server.schedule_apart()  # here, too, so that the caller is told where it cannot be had
    sys.stdout.write(bootstrap(start_shim(flags, dict(os.environ), bundle), dict(os.environ)))
    sys.stdout.flush()
    return 0


def _serve(flags: dict[str, Any]) -> NoReturn:
    path = flags["socket"]
    if path:
        listener = listen(path)
        if listener is None:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)
    else:
        listener = socket.socket(fileno=3)
        path = listener.getsockname()
    server.serve(
        server.Parameters(
            namespace=flags["namespace"],
            container=flags["id"],
            bundle=os.getcwd(),
            socket_path=path,
            ttrpc_address=os.environ.get("TTRPC_ADDRESS", ""),
            command=[],
            debug=flags["debug"],
            environment=dict(os.environ),
        ),
        listener,
    )


def main() -> int:
    """The exit status of the command."""
    open_what_is_closed()
    try:
        flags, action = parse_flags(sys.argv[1:])
        flags["program"] = sys.argv[0]
        if flags["version"] or flags["v"]:
            print(f"{PROGRAM}:\n  Version:  {__version__}")
            return 0
        if action == "zygote":
            from teu.shim import zygote  # 4 ms and 0.2 MB

            return zygote.main()
        if flags["info"]:
            from teu.shim import cleanup  # 2 ms and 0.1 MB

            sys.stdout.buffer.write(cleanup.info(NAME, sys.stdin.buffer.read(STDIN_MAX)))
            return 0
        if not flags["namespace"]:
            raise UsageError("shim namespace cannot be empty")
        if action == "start":
            return _start(flags)
        if action == "delete":
            from teu.shim import cleanup  # 2 ms and 0.1 MB

            sys.stdout.buffer.write(cleanup.delete(flags["namespace"], flags["id"], flags["bundle"]))
            return 0
        if action:
            raise UsageError(f"unknown action {action!r}: expected start or delete")
        _serve(flags)
    except (OSError, ValueError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2 if isinstance(error, FlagError) else 1
