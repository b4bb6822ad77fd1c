# SPDX-License-Identifier: Apache-2.0
"""A warm process from which shims are forked: `containerd-shim-teu-v2 zygote`.

teu-containerd starts it before it loads gRPC, and keeps the other end of its standard input, a stream
socket.  Each line there is a JSON object {"namespace", "id", "address", "ttrpc_address", "bundle",
"debug"}; each answer a line {"address"} or {"error"}.  What comes of it is a shim like any other: no child
of this process, with the command line that `start` would have given it.  This process has one thread,
keeps nothing, and ends at end of file.

Shims forked from here share their memory with it as long as neither writes to it: everything that a shim
needs is loaded, and run once, before the first fork.
"""

from __future__ import annotations

import gc
import marshal
import os
import sys

from teu.linux import commandline, sockets
from teu.oci import jsontext
from teu.shim import start, warmup
from teu.shim.server import PRIVATE_VARIABLES, Parameters, become_shim

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # signal is 0.9 MiB more (see teu.linux.sockets)

# Room in this process's own words for the command line of a shim (see teu.linux.commandline).
PADDING = 512


def _serve_request(line: bytes, daemon: sockets.Socket) -> None:
    """In a fork: start the shim, answer, and end, so that the shim is no child of the zygote.

    The shim is forked first and told its parameters when they are known: what is written here in finding
    them out is none of its memory."""
    ours, theirs = sockets.pair()
    if not os.fork():
        os.close(daemon.fileno())
        os.close(ours.fileno())
        _wait_for_parameters(theirs)
    theirs.close()

    def launch(parameters: Parameters, listener: sockets.Socket) -> None:
        sockets.send_with(ours, marshal.dumps(vars(parameters)), listener.fileno())

    try:
        request = jsontext.loads(line, own=True)
        environment = {
            "TTRPC_ADDRESS": request["ttrpc_address"],
            "GRPC_ADDRESS": request["address"],
            "NAMESPACE": request["namespace"],
        }
        flags = {
            "namespace": request["namespace"],
            "id": request["id"],
            "address": request["address"],
            "debug": request.get("debug", False),
            "program": sys.argv[0],
        }
        answer = {"address": start.start_shim(flags, environment, request["bundle"], launch=launch)}
    except (OSError, ValueError, KeyError) as error:
        answer = {"error": f"KeyError: {error}" if isinstance(error, KeyError) else str(error)}
    daemon.sendall(jsontext.to_ascii(answer) + b"\n")
    os._exit(0)


def _wait_for_parameters(parent: sockets.Socket) -> None:
    """In the shim's process; it ends when no shim is needed."""
    data, fd = sockets.receive_with(parent, 65536)
    if fd < 0:
        os._exit(0)
    parent.close()
    listener = sockets.Socket(sockets.AF_UNIX, sockets.SOCK_STREAM, 0, fileno=fd)
    become_shim(Parameters(**marshal.loads(data)), listener)


def main() -> int:
    """Serve until the daemon is gone; the exit status."""
    if len(sys.argv) == 2:
        # Without CAP_SYS_RESOURCE a longer command line can only be shown over a longer one.
        os.execv(sys.argv[0], [sys.argv[0], "zygote", "-" * PADDING])
    commandline.show([sys.argv[0], "zygote"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in PRIVATE_VARIABLES:
        os.environ.pop(name, None)
    daemon = sockets.Socket(fileno=os.dup(0))
    warmup.run()
    gc.collect()
    warmup.immortalize()
    warmup.plug()
    gc.disable()
    gc.freeze()
    while True:
        # One request at a time; as little as possible happens here, because what is written here after
        # a fork is no longer shared with the shims made before.
        line = daemon.recv(65536)
        if not line:
            return 0
        child = os.fork()
        if not child:
            gc.enable()
            _serve_request(line, daemon)
        os.waitpid(child, 0)
