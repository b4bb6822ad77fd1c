# SPDX-License-Identifier: Apache-2.0
"""containerd-shim-teu-v2: the command line that containerd runs (the shim binary protocol).

    containerd-shim-teu-v2 -namespace NS -id ID -address GRPC start     makes a shim; prints its address
    containerd-shim-teu-v2 -namespace NS -id ID -bundle DIR delete      cleans up after a dead shim
    containerd-shim-teu-v2 -info                                        describes the runtime
    containerd-shim-teu-v2 -bundle DIR cri-log                          writes the log of another shim's container
    containerd-shim-teu-v2 -namespace NS -id ID -address GRPC           serves (on -socket, or descriptor 3)

`start` runs in the bundle's folder.  TTRPC_ADDRESS is where events go, MAX_SHIM_VERSION says that
containerd understands JSON bootstrap parameters and up to which version of the task API.
"""

from __future__ import annotations

import errno
import os
import sys

from teu import __version__
from teu.linux import sockets
from teu.linux.standard import open_what_is_closed
from teu.shim import server
from teu.shim.start import PROGRAM, UsageError, bootstrap, listen, start_shim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

NAME = "io.containerd.teu.v2"
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
        listener = sockets.Socket(fileno=3)
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
        if action == "cri-log":
            from teu.shim import criwriter  # 3 ms and 0.1 MB

            return criwriter.main(flags["bundle"])
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
