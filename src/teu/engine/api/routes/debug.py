# SPDX-License-Identifier: Apache-2.0
"""Routes for who looks for a fault in the daemon: /debug/…, while log-level is debug, as dockerd has them in its debug
mode. Called by the router.

    /debug/pprof/            which profiles there are
    /debug/pprof/goroutine   stacks of all threads, as SIGUSR1 writes them into the journal
    /debug/pprof/cmdline     the command line, with NULs between its words
    /debug/vars              what the process takes, as JSON
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
from typing import TYPE_CHECKING

from teu.engine.api.messages import Request, Response, json_response, text
from teu.engine.api.router import route
from teu.engine.core.errors import NotFound
from teu.linux import memory
from teu.systemd import stacks

if TYPE_CHECKING:
    from teu.engine.engine import Engine

PROFILES = ("cmdline", "goroutine")


def _allow(engine: Engine) -> None:
    if engine.config["log-level"] != "debug":
        raise NotFound("page not found")


@route("GET", "/debug/pprof/")
def index(engine: Engine, request: Request) -> Response:
    _allow(engine)
    return text("\n".join(PROFILES) + "\n")


@route("GET", "/debug/pprof/goroutine")
def threads(engine: Engine, request: Request) -> Response:
    _allow(engine)
    return text("\n".join(stacks.lines()) + "\n")


@route("GET", "/debug/pprof/cmdline")
def command_line(engine: Engine, request: Request) -> Response:
    _allow(engine)
    return text("\0".join(sys.argv))


@route("GET", "/debug/vars")
def variables(engine: Engine, request: Request) -> Response:
    _allow(engine)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return json_response(
        {
            "cmdline": sys.argv,
            "resident": memory.resident(),
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "threads": threading.active_count(),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "objects": len(gc.get_objects()),
        }
    )
