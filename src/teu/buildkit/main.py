# SPDX-License-Identifier: Apache-2.0
"""teu-buildkitd: the command line, the sockets, the signals. bin/teu-buildkitd calls main().

The watchdog is fed only while the solver's lock is to be had: a builder that brings no build on is started again.

Its rooms import these where they are called. Each costs the builder once (Debian 12):

    grpc                  28 ms    only the wire needs it: who uses a room alone, as its tests do, is spared it
    teu.oci.distribution   8 ms    http.client, for registries, of which a cached build asks none
    zstandard              1 ms    and 0.4 MB, for layers that few ask for
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

from teu import __version__
from teu.buildkit.config import FILE, KEYS, check
from teu.config import EX_CONFIG, EX_DATAERR, ConfigError, Settings, load
from teu.linux import memory
from teu.linux.standard import open_what_is_closed
from teu.systemd import activation, journal, notify, stacks

if TYPE_CHECKING:
    from teu.buildkit.daemon import Daemon

log = logging.getLogger("teu.buildkit")

ARENAS = 2  # of the C library's memory
TRIM_SECONDS = 30.0
_FLAGS = ("address", "containerd", "root", "state", "log-level")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="teu-buildkitd", description="Serves BuildKit's API.", allow_abbrev=False)
    result.add_argument("-c", "--config", default=FILE, metavar="FILE", help=f"configuration (default {FILE})")
    result.add_argument("-a", "--addr", "--address", dest="address", metavar="SOCKET", help="socket of the gRPC API")
    result.add_argument("--containerd", metavar="SOCKET", help="containerd's gRPC socket")
    result.add_argument("--root", metavar="FOLDER", help="persistent state")
    result.add_argument("--state", metavar="FOLDER", help="state that a reboot ends")
    result.add_argument(
        "--allow-insecure-entitlement", action="append", metavar="NAME", help="what clients may ask for beside the rest"
    )
    result.add_argument("-l", "--log-level", metavar="LEVEL", help="debug, info, warn or error")
    result.add_argument("-D", "--debug", action="store_true", help="the same as --log-level debug")
    result.add_argument("--validate", action="store_true", help="check the configuration and exit")
    result.add_argument("-v", "--version", action="version", version=f"teu-buildkitd {__version__}")
    return result


def settings(options: argparse.Namespace) -> Settings:
    """The file, and the command line over it. Raises ConfigError."""
    result = load(options.config, KEYS, must_exist=options.config != FILE)
    for flag in _FLAGS:
        value = getattr(options, flag.replace("-", "_"))
        if value:
            result[flag] = value.removeprefix("unix://")
    if options.debug:
        result["log-level"] = "debug"
    if options.allow_insecure_entitlement:
        result["entitlements"] = [*result["entitlements"], *options.allow_insecure_entitlement]
    check(result)
    return result


def main() -> int:
    open_what_is_closed()
    options = parser().parse_args()
    try:
        config = settings(options)
    except ConfigError as error:
        print(f"teu-buildkitd: {error}", file=sys.stderr)
        return 1 if options.validate else EX_CONFIG
    if options.validate:
        print("configuration OK")
        return 0
    journal.setup("teu-buildkitd", config["log-level"])
    return serve(config, options)


def turn_away(sockets: list[socket.socket]) -> None:
    """Close the connections of those who wait. Where they stayed in the queue of systemd's sockets, systemd would start
    us for them again and again."""
    for listener in sockets:
        listener.setblocking(False)
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()


def _locked(root: str) -> int | None:
    """A lock on the root, for as long as its descriptor is open; None where another builder has it."""
    os.makedirs(root, 0o700, exist_ok=True)
    descriptor = os.open(f"{root}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def serve(config: Settings, options: argparse.Namespace) -> int:
    begun = time.monotonic()
    memory.few_arenas(ARENAS)
    os.umask(0o022)
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.signal(signal.SIGUSR1, lambda *_: stacks.show(log))
    sockets = [one for _, one in activation.listen_sockets()]
    _proxies(config)
    if _locked(config["root"]) is None:
        log.critical("cannot start: another builder uses %s", config["root"])
        turn_away(sockets)
        return 1
    # gRPC and all rooms, a quarter of a second: what is wrong before this is said at once
    from teu.buildkit.cache.database import Newer, Unusable
    from teu.buildkit.daemon import Daemon

    try:
        daemon = Daemon(config)
        api = next((one for one in sockets if one.type == socket.SOCK_STREAM), None)
        daemon.serve(api, next((one for one in sockets if one.type == socket.SOCK_SEQPACKET), None))
    except (Unusable, OSError) as error:
        log.critical("cannot start: %s", error)
        turn_away(sockets)
        return EX_DATAERR if isinstance(error, Newer) else 1

    def start() -> None:
        try:
            daemon.start()
            log.info("ready after %.0f ms", (time.monotonic() - begun) * 1000)
        except Exception as error:
            daemon.failure = error
            log.critical("the builder cannot start: %s", error, exc_info=True)
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=start, name="start", daemon=True).start()
    notify.ready(f"Serving {config['address']}")
    _wait(daemon, signals, options, activated=api is not None)
    notify.stopping()
    daemon.stop()
    logging.shutdown()
    sys.stdout.flush()
    # Threads that wait for clients or for gRPC are not worth waiting for.
    os._exit(1 if daemon.failure is not None else 0)


def _proxies(config: Settings) -> None:
    """For whoever speaks to registries and servers: the environment, as everywhere."""
    for key, name in (("http", "HTTP_PROXY"), ("https", "HTTPS_PROXY"), ("no", "NO_PROXY")):
        if config["proxy"][key]:
            os.environ[name] = os.environ[name.lower()] = config["proxy"][key]


def _wait(daemon: Daemon, signals: set[signal.Signals], options: argparse.Namespace, *, activated: bool) -> None:
    """Until a signal ends the builder, or it has been idle; the watchdog is fed meanwhile."""
    interval = notify.watchdog_interval()
    trimmed = time.monotonic()
    while True:
        limit = daemon.settings["idle-exit"] if activated else 0.0
        patience = min((seconds for seconds in (interval, limit / 4) if seconds), default=TRIM_SECONDS)
        received = signal.sigtimedwait(signals, min(patience, TRIM_SECONDS))
        if received is None:
            idle = daemon.idle_seconds()
            if limit and idle >= limit:
                log.info("idle for %.0f s: leaving, the socket wakes us", idle)
                return
            if idle and time.monotonic() - trimmed > TRIM_SECONDS:
                trimmed = time.monotonic()
                memory.trim()
            if interval and daemon.alive():
                notify.watchdog()
        elif received.si_signo == signal.SIGHUP:
            reload(daemon, options)
        else:
            return


def reload(daemon: Daemon, options: argparse.Namespace) -> None:
    notify.reloading()
    try:
        applied, ignored = daemon.reload(settings(options))
    except ConfigError as error:
        log.error("the configuration is kept as it was: %s", error)
    else:
        log.info("configuration read again: changed %s", ", ".join(applied) or "nothing")
        if ignored:
            log.warning("these keys need a restart of teu-buildkitd to take effect: %s", ", ".join(ignored))
    notify.ready(f"Serving {daemon.settings['address']}")
