# SPDX-License-Identifier: Apache-2.0
"""The shim's long-lived process: becoming it, serving, and ending.

SIGTERM, or SIGURG from systemd (a stop of the scope, the host's shutdown), is a wish to stop the container: it gets
its stop signal, and SIGKILL after its time. Then the shim moves into a scope of its own, `…-exited.scope`, so that
the stop ends at once while the exit code can still be asked for. Where systemd refuses that, at shutdown, the shim
ends, and `exit.json` in the bundle lets `delete` report the exit. A shim that is given no container in UNUSED_SECONDS
ends.
"""

from __future__ import annotations

import gc
import os
import sys
import time

from teu.linux import commandline, memory, sockets
from teu.linux.syscalls import PR_SCHED_CORE, PR_SCHED_CORE_CREATE, PR_SET_CHILD_SUBREAPER, prctl
from teu.shim import placement
from teu.shim.loop import Loop
from teu.shim.publisher import Publisher
from teu.shim.service import Service
from teu.ttrpc.server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import NoReturn
else:
    import _signal as signal  # signal is 0.9 MiB more (see teu.linux.sockets)

MMAP_THRESHOLD = 128 << 10  # bytes, as it is to begin with

# How long the shim, when it ends, waits for its last event and answer to be taken.
FLUSH_SECONDS = 5.0
# So many new objects are made between two collections of garbage.
GC_THRESHOLD = 20000
# How long a new shim waits for its first container.
UNUSED_SECONDS = 20.0

# Variables for the daemon that started the shim; neither the shim nor the runtime may have them.
PRIVATE_VARIABLES = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "MAINPID",
    "FDSTORE",
    "MAX_SHIM_VERSION",
)


class Parameters:
    """What a shim is told when it is made."""

    def __init__(
        self,
        *,
        namespace: str,
        container: str,
        bundle: str,
        socket_path: str,
        ttrpc_address: str,
        command: list[str],
        debug: bool,
        environment: dict[str, str],
    ) -> None:
        self.namespace = namespace
        self.container = container
        self.bundle = bundle
        self.socket_path = socket_path
        self.ttrpc_address = ttrpc_address
        self.command = command  # shown by ps; empty to leave it
        self.debug = debug
        self.environment = environment


def schedule_apart() -> None:
    """Core scheduling (SCHED_CORE): from now on this thread, and what it forks, shares a processor's core with no
    other process.  OSError where the kernel or the processor has no such thing."""
    if os.environ.get("SCHED_CORE"):
        prctl(PR_SCHED_CORE, PR_SCHED_CORE_CREATE)


def fork(parameters: Parameters, listener: sockets.Socket) -> None:
    """Fork the shim's process.  It never returns; init adopts it as soon as the caller ends."""
    if not os.fork():
        become_shim(parameters, listener)


def become_shim(parameters: Parameters, listener: sockets.Socket) -> NoReturn:
    """In a forked process: be the shim."""
    try:
        os.setsid()
        schedule_apart()
        _adjust_oom_score()
        if parameters.command:
            commandline.show(parameters.command)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        serve(parameters, listener)
    except BaseException as error:  # nothing may return into the parent's code
        _log_line(parameters.bundle, f"shim failed: {type(error).__name__}: {error}")
    finally:
        os._exit(1)


def _adjust_oom_score() -> None:
    """One above the parent's, as containerd does: under memory pressure daemons go last, shims before."""
    with open("/proc/self/oom_score_adj", "r+") as file:
        score = int(file.read())
        if score < 1000:
            file.seek(0)
            file.write(str(score + 1))


def _log_line(bundle: str, text: str, level: str = "error") -> None:
    """A line in containerd's own format into the bundle's log FIFO, if containerd made one."""
    try:
        fd = os.open(os.path.join(bundle, "log"), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    try:
        os.write(fd, f'time="{stamp}" level={level} msg="{quoted}" runtime=io.containerd.teu.v2\n'.encode())
    except OSError:
        pass
    os.close(fd)


def serve(parameters: Parameters, listener: sockets.Socket) -> NoReturn:
    """Serve the task API until the client says Shutdown; then end the process."""
    for name, value in parameters.environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    for name in PRIVATE_VARIABLES:
        os.environ.pop(name, None)
    os.chdir("/")
    os.umask(0o022)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    # A request may have 4 MiB: what it took goes back to the system. (Else glibc keeps as much on its heap next time.)
    memory.mmap_threshold(MMAP_THRESHOLD)
    # What is alive now is shared with the process that this one was forked from: leave it untouched.
    gc.freeze()
    # A collection writes to what it visits; there is next to nothing in cycles here.
    gc.set_threshold(GC_THRESHOLD)

    def log(text: str) -> None:
        _log_line(parameters.bundle, text)

    loop = Loop()
    publisher = Publisher(loop, parameters.ttrpc_address, parameters.namespace, log)
    service = Service(loop, parameters.namespace, publisher, log)
    server = Server(loop, listener, service.dispatch)

    def finish(deadline: float) -> None:
        if (publisher.pending or server.pending) and time.monotonic() < deadline:
            loop.after(0.001, lambda: finish(deadline))
        else:
            loop.stop()

    def shutdown() -> None:
        try:
            os.unlink(parameters.socket_path)
        except FileNotFoundError:
            pass
        finish(time.monotonic() + FLUSH_SECONDS)

    service.on_shutdown = shutdown
    # The daemon may have died before it could ask for a container.
    loop.after(UNUSED_SECONDS, service.end_if_unused)
    for number in (signal.SIGTERM, placement.STOP_REQUEST):
        loop.on_signal(number, service.stop_gracefully)
    # An operator sends this to see what a daemon does: the container must not die of it.
    loop.on_signal(signal.SIGUSR1, lambda: _log_line(parameters.bundle, loop.described(), "info"))
    loop.run()
    server.close()
    publisher.close()
    sys.stdout.flush()
    os._exit(0)
