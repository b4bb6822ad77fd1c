# SPDX-License-Identifier: Apache-2.0
"""teud: the command line, the sockets, the signals. bin/teud calls main()."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from teu import __version__

log = logging.getLogger("teu.engine")

LISTEN_FDS_START = 3

DEFAULTS: dict[str, Any] = {
    "hosts": ["unix:///run/teu/teud.sock"],
    "group": "teu",
    "containerd": "/run/teu/containerd.sock",
    "data-root": "/var/lib/teu/engine",
    "exec-root": "/run/teu/engine",
    "log-level": "info",
    "debug": False,
    "storage-driver": "overlayfs",
    "default-runtime": "io.containerd.teu.v2",
    "log-driver": "journald",
    "log-opts": {},
}


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="teud", description="Serves the Docker Engine API.")
    result.add_argument("-H", "--host", action="append", metavar="ADDRESS", help="fd:// or unix:///path")
    result.add_argument("--containerd", metavar="ADDRESS", help="containerd's socket")
    result.add_argument("--config", "--config-file", default="/etc/teu/teud.yaml", metavar="FILE")
    result.add_argument("--validate", action="store_true", help="check the configuration and exit")
    result.add_argument("--data-root", metavar="DIR")
    result.add_argument("--exec-root", metavar="DIR")
    result.add_argument("-G", "--group", metavar="GROUP", help="group of the unix socket")
    result.add_argument("-l", "--log-level", choices=["debug", "info", "warn", "error", "fatal"])
    result.add_argument("-D", "--debug", action="store_true", default=None)
    result.add_argument("--storage-driver", metavar="SNAPSHOTTER")
    result.add_argument("--default-runtime", metavar="NAME")
    result.add_argument("--log-driver", metavar="NAME")
    result.add_argument("-v", "--version", action="version", version=f"teud {__version__}")
    return result


def listeners(hosts: list[str], group: str) -> list[socket.socket]:
    result: list[socket.socket] = []
    for host in hosts:
        if host.startswith("fd://"):
            if os.environ.get("LISTEN_PID") != str(os.getpid()):
                raise SystemExit(
                    "teud: -H fd:// needs sockets from systemd (none were passed); use unix:///path"
                )
            count = int(os.environ.get("LISTEN_FDS", "0"))
            result += [socket.socket(fileno=LISTEN_FDS_START + index) for index in range(count)]
        elif host.startswith("unix://"):
            result.append(_listen(host.removeprefix("unix://"), group))
        else:
            raise SystemExit(f"teud: -H {host}: not an address that teud serves; use fd:// or unix:///path")
    return result


def _listen(path: str, group: str) -> socket.socket:
    import grp

    Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with probe:
            probe.connect(path)
        raise SystemExit(f"teud: {path} is served by another process; stop it or choose another -H")
    except FileNotFoundError:
        pass
    except ConnectionRefusedError:
        os.unlink(path)
    before = os.umask(0o117)
    try:
        sock.bind(path)
    finally:
        os.umask(before)
    try:
        os.chown(path, 0, grp.getgrnam(group).gr_gid)
    except (KeyError, PermissionError):
        pass
    sock.listen(512)
    return sock


def notify(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError as error:
            log.warning("sd_notify: %s", error)


def main() -> int:
    options = parser().parse_args()
    config = dict(DEFAULTS)
    for key in ("containerd", "data_root", "exec_root", "group", "log_level", "debug", "storage_driver",
                "default_runtime", "log_driver"):  # fmt: skip
        value = getattr(options, key)
        if value is not None:
            config[key.replace("_", "-")] = value
    if options.host:
        config["hosts"] = options.host
    if config["debug"]:
        config["log-level"] = "debug"
    if options.validate:
        print("configuration OK")
        return 0
    levels = {"warn": "WARNING", "fatal": "CRITICAL"}
    level = str(config["log-level"])
    logging.basicConfig(level=levels.get(level, level.upper()), format="%(levelname)s %(message)s")
    return serve(config)


def serve(config: dict[str, Any]) -> int:
    from teu.engine import router
    from teu.engine.engine import Engine
    from teu.engine.server import Server

    os.umask(0o022)
    ended = threading.Event()
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    sockets = listeners(config["hosts"], config["group"])
    router.load()
    engine = Engine(config)
    server = Server(engine, sockets)
    server.start()

    def start() -> None:
        try:
            before = time.monotonic()
            engine.start()
            log.info("ready after %.0f ms", (time.monotonic() - before) * 1000)
        except Exception as error:
            engine.failure = error
            log.critical("the engine cannot start: %s", error, exc_info=True)
            ended.set()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=start, name="start", daemon=True).start()
    notify("READY=1\nSTATUS=Serving the Docker Engine API")
    watchdog = int(os.environ.get("WATCHDOG_USEC", "0")) / 2_000_000 or None
    while True:
        received = signal.sigtimedwait(signals, watchdog) if watchdog else signal.sigwaitinfo(signals)
        if received is None:
            notify("WATCHDOG=1")
            continue
        if received.si_signo == signal.SIGHUP:
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            notify("READY=1")
            continue
        break
    notify("STOPPING=1")
    server.close()
    engine.stop()
    sys.stdout.flush()
    os._exit(1 if ended.is_set() else 0)
