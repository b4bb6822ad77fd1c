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
import json
import os
import signal
import socket
import sys

from teu.shim import main as program
from teu.shim import warmup
from teu.shim.server import set_command_line

# Room in this process's own words for the command line of a shim (see set_command_line).
PADDING = 512


def main() -> int:
    """Serve until the daemon is gone; the exit status."""
    if len(sys.argv) == 2:
        # Without CAP_SYS_RESOURCE a longer command line can only be shown over a longer one.
        os.execv(sys.argv[0], [sys.argv[0], "zygote", "-" * PADDING])
    set_command_line([sys.argv[0], "zygote"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warmup.run()
    gc.collect()
    gc.freeze()
    daemon = socket.socket(fileno=os.dup(0))
    requests = daemon.makefile("rb")
    environment = dict(os.environ)
    for line in requests:
        try:
            request = json.loads(line)
            environment["TTRPC_ADDRESS"] = request["ttrpc_address"]
            environment["GRPC_ADDRESS"] = request["address"]
            environment["NAMESPACE"] = request["namespace"]
            flags = {"namespace": request["namespace"], "id": request["id"], "address": request["address"],
                     "debug": request.get("debug", False), "program": sys.argv[0]}
            address = program.start_shim(flags, environment, request["bundle"], forget=(daemon.fileno(),))
            answer = {"address": address}
        except (OSError, ValueError, KeyError) as e:
            answer = {"error": f"{type(e).__name__}: {e}"}
        daemon.sendall(json.dumps(answer).encode() + b"\n")
    return 0
