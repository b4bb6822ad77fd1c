# SPDX-License-Identifier: Apache-2.0
"""teud: the command line, the sockets, the signals. bin/teud calls main().

The watchdog is fed only while the pump turns: a daemon that moves no output is restarted.

A start without containers does without these, so functions import them. Each costs the daemon once (Debian 12):

    grpc                  28 ms   7.6 MB
    google.protobuf       20 ms   4.7 MB
    teu.api                2 ms   0.1 MB    a file of stubs, when protobuf is there
    teu.linux.netlink      3 ms   0.1 MB
"""

from __future__ import annotations

import argparse
import contextlib
import grp
import json
import logging
import os
import signal
import socket
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teu import __version__
from teu import config as configuration
from teu.engine.config import API_OLDEST, FILE, KEYS, LEVELS, check, check_tcp, tcp_target
from teu.engine.core.errors import EngineError, Unreadable
from teu.linux import memory
from teu.linux.standard import open_what_is_closed
from teu.systemd import host, journal, notify, stacks
from teu.systemd.activation import listen_sockets

if TYPE_CHECKING:
    from collections.abc import Callable

    from teu.engine.api.server import Server  # 11 ms
    from teu.engine.daemon import Daemon  # 34 ms
    from teu.engine.engine import Engine

log = logging.getLogger("teu.engine")

ARENAS = 2  # of the C library's memory

# How long the host's shutdown waits for us to know its containers again, before it stops them.
SHUTDOWN_SECONDS = 20.0

# Options of the command line that stand for keys of the file, and win over them.
OPTIONS = (
    "containerd",
    "data_root",
    "exec_root",
    "group",
    "log_level",
    "storage_driver",
    "default_runtime",
    "log_driver",
    "cgroup_parent",
    "init_path",
    "tls",
    "tlsverify",
    "tlscacert",
    "tlscert",
    "tlskey",
)


# More of dockerd's options: those of the keys with the same names, and those that are one more of a list.
SINGLE = (
    "default_cgroupns_mode",
    "default_ipc_mode",
    "default_shm_size",
    "log_format",
    "max_concurrent_downloads",
    "max_concurrent_uploads",
    "max_download_attempts",
    "metrics_addr",
    "seccomp_profile",
)
LISTED = {
    "dns": "dns",
    "dns_opt": "dns-opts",
    "dns_search": "dns-search",
    "host_gateway_ip": "host-gateway-ips",
    "label": "labels",
}

# Keys whose values the event of a reload tells, as dockerd's does.
TOLD = (
    "authorization-plugins",
    "default-ipc-mode",
    "default-runtime",
    "default-shm-size",
    "insecure-registries",
    "labels",
    "max-concurrent-downloads",
    "max-concurrent-uploads",
    "max-download-attempts",
    "registry-mirrors",
    "runtimes",
)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="teud", description="Serves the Docker Engine API.", allow_abbrev=False)
    result.add_argument(
        "-H", "--host", action="append", metavar="ADDRESS", help="where to listen: fd://, unix:///path, tcp://HOST:PORT"
    )
    result.add_argument("--containerd", metavar="SOCKET", help="containerd's gRPC socket")
    result.add_argument("--config", "--config-file", default=FILE, metavar="FILE", help=f"default: {FILE}")
    result.add_argument("--validate", action="store_true", help="check the configuration and exit")
    result.add_argument("--data-root", metavar="DIR", help="persistent state")
    result.add_argument("--exec-root", metavar="DIR", help="state that a reboot ends")
    result.add_argument("-G", "--group", metavar="GROUP", help="group of a socket that teud makes")
    result.add_argument("-l", "--log-level", choices=LEVELS, help="least level logged")
    result.add_argument("-D", "--debug", action="store_true", help="the same as --log-level debug")
    result.add_argument("-s", "--storage-driver", metavar="NAME", help="containerd's snapshotter")
    result.add_argument("--default-runtime", metavar="NAME", help="containerd's runtime for containers that name none")
    result.add_argument("--log-driver", metavar="NAME", help="log driver of containers that name none")
    result.add_argument("--log-opt", action="append", metavar="KEY=VALUE", help="option of that log driver")
    result.add_argument("--cgroup-parent", metavar="SLICE", help="slice of containers that name none")
    result.add_argument("--init", action="store_true", default=None, help="run an init in containers")
    result.add_argument("--init-path", metavar="FILE", help="the init program")
    result.add_argument("--insecure-registry", action="append", metavar="HOST", help="registry to speak http to")
    result.add_argument("--registry-mirror", action="append", metavar="URL", help="mirror of Docker Hub")
    result.add_argument("--authorization-plugin", action="append", metavar="NAME", help="ask it of each request")
    result.add_argument("--tls", action="store_true", default=None, help="encrypt tcp:// addresses")
    result.add_argument("--tlsverify", action="store_true", default=None, help="and ask clients for certificates")
    result.add_argument("--tlscacert", metavar="FILE", help="certificate of the authority of clients")
    result.add_argument("--tlscert", metavar="FILE", help="teud's own certificate")
    result.add_argument("--tlskey", metavar="FILE", help="the key of that certificate")
    for name in SINGLE:
        result.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help="as the key of the same name")
    for name, key in LISTED.items():
        result.add_argument(f"--{name.replace('_', '-')}", action="append", metavar="VALUE", help=f"one more of {key}")
    result.add_argument(
        "--default-ulimit", action="append", metavar="NAME=SOFT:HARD", help="one more of default-ulimits"
    )
    result.add_argument("--add-runtime", action="append", metavar="NAME=PATH", help="one more of runtimes")
    result.add_argument("--no-new-privileges", action="store_true", default=None, help="as the key of the same name")
    for name in ("http-proxy", "https-proxy", "no-proxy"):
        result.add_argument(f"--{name}", metavar="VALUE", help="as the key of proxies of the same name")
    result.add_argument("-p", "--pidfile", metavar="FILE", help="write the process id there")
    result.add_argument("-v", "--version", action="version", version=f"teud {__version__}")
    return result


def settings(options: argparse.Namespace) -> configuration.Settings:
    """The file, and the command line over it. Raises ConfigError or EngineError."""
    result = configuration.load(options.config, KEYS, must_exist=options.config != FILE)
    for key in OPTIONS:
        value = getattr(options, key)
        if value is not None:
            result[key.replace("_", "-")] = value
    if options.host:
        result["hosts"] = options.host
    if options.debug:
        result["log-level"] = "debug"
    if options.init:
        result["init"] = True
    for key, values in (
        ("insecure-registries", options.insecure_registry),
        ("registry-mirrors", options.registry_mirror),
        ("authorization-plugins", options.authorization_plugin),
    ):
        if values:
            result[key] = [*result[key], *values]
    if options.log_opt:
        result["log-opts"] = {**result["log-opts"], **dict(entry.partition("=")[::2] for entry in options.log_opt)}
    _more_options(options, result)
    result["containerd"] = result["containerd"].removeprefix("unix://")
    check(result)
    if result["min-api-version"] != API_OLDEST:
        from teu.engine.api.server import API_VERSION, version_text  # 11 ms

        if tuple(map(int, result["min-api-version"].split("."))) > API_VERSION:
            raise EngineError(
                f"{result.where('min-api-version')}: min-api-version: the newest version that teud speaks is "
                f"{version_text(API_VERSION)}"
            )
    return result


def _more_options(options: argparse.Namespace, result: configuration.Settings) -> None:
    """The options of SINGLE and LISTED, and their like. Raises EngineError for what their keys do not take."""
    for name in SINGLE:
        key, value = name.replace("_", "-"), getattr(options, name)
        if value is not None:
            result[key] = _taken(key, int(value) if value.isdigit() else value)
    for name, key in LISTED.items():
        if given := getattr(options, name):
            result[key] = [*result[key], *_taken(key, given)]
    if options.no_new_privileges:
        result["no-new-privileges"] = True
    limits = dict(entry.partition("=")[::2] for entry in options.default_ulimit or ())
    result["default-ulimits"] = {**result["default-ulimits"], **_taken("default-ulimits", limits)}
    runtimes = {name: {"path": path} for name, _, path in (entry.partition("=") for entry in options.add_runtime or ())}
    result["runtimes"] = {**result["runtimes"], **_taken("runtimes", runtimes)}
    for name in ("http-proxy", "https-proxy", "no-proxy"):
        if value := getattr(options, name.replace("-", "_")):
            result["proxies"] = {**result["proxies"], name: value}


def _taken(key: str, value: object) -> Any:
    """What the key makes of a value of the command line."""
    kind = next(each.kind for each in KEYS if each.name == key)
    try:
        return kind(value)
    except configuration.Wrong as error:
        raise EngineError(f"option for {key}: bad value {value!r}; {error}") from None


def proxies(config: configuration.Settings) -> None:
    """For whoever speaks to registries: the environment, as everywhere."""
    for key, value in config["proxies"].items():
        if value:
            name = key.upper().replace("-", "_")
            os.environ[name] = os.environ[name.lower()] = value


def listeners(config: configuration.Settings) -> list[socket.socket]:
    """A socket for each address of `hosts`. Raises EngineError, and ConfigError where an address may not be served."""
    result: list[socket.socket] = []
    passed: list[tuple[str, socket.socket]] | None = None
    for address in config["hosts"]:
        if address.startswith("fd://"):
            passed = listen_sockets() if passed is None else passed
            result += _passed(address, passed)
        elif address.startswith("unix:///"):
            result.append(_listen(address.removeprefix("unix://"), config["group"]))
        else:
            result += _listen_tcp(address, 2376 if config["tls"] or config["tlsverify"] else 2375)
    for name, sock in passed or ():
        if sock not in result:
            log.warning("nobody serves the socket %s that systemd passes: no fd:// address means it", name)
    if any(sock.family != socket.AF_UNIX for sock in result):
        try:
            check_tcp(config)
        except EngineError as error:
            refuse(str(error), result)
            raise configuration.ConfigError(str(error)) from None
    return result


def _passed(address: str, passed: list[tuple[str, socket.socket]]) -> list[socket.socket]:
    """The sockets of systemd that fd://, fd://*, fd://NUMBER (of the descriptor) or fd://NAME (FileDescriptorName=)
    means."""
    if not passed:
        raise EngineError(f"-H {address} needs sockets from systemd, and none were passed; use -H unix:///path")
    wanted = address.removeprefix("fd://")
    found = [sock for name, sock in passed if wanted in ("", "*", name, str(sock.fileno()))]
    if not found:
        there = ", ".join(f"{name} ({sock.fileno()})" for name, sock in passed)
        raise EngineError(f"-H {address}: systemd passes no such socket; there are {there}")
    return found


def _listen_tcp(address: str, port: int) -> list[socket.socket]:
    """Listening sockets on all addresses of a host's name; an empty one is every address of this host."""
    target = tcp_target(address, port)
    if target is None:
        raise EngineError(f"-H {address}: not an address that teud serves; use fd://, unix:///path or tcp://HOST:PORT")
    result = []
    try:
        for family, _, _, _, place in socket.getaddrinfo(
            target[0] or None, target[1], type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = socket.socket(family, socket.SOCK_STREAM)
            result.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(place)
            sock.listen(4096)
    except (OSError, UnicodeError) as error:
        for sock in result:
            sock.close()
        raise EngineError(f"-H {address}: {getattr(error, 'strerror', None) or error}") from None
    return result


def _listen(path: str, group: str) -> socket.socket:
    Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise EngineError(f"{path} is served by another process; stop that one or choose another -H")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o117)
    try:
        sock.bind(path)
    finally:
        os.umask(before)
    try:
        os.chown(path, 0, grp.getgrnam(group).gr_gid)
    except (KeyError, PermissionError):
        pass
    sock.listen(4096)
    return sock


def main() -> int:
    open_what_is_closed()
    options = parser().parse_args()
    try:
        config = settings(options)
    except (configuration.ConfigError, EngineError) as error:
        print(f"teud: {error}", file=sys.stderr)
        if options.validate:
            return 1
        refuse(str(error), [sock for _, sock in listen_sockets()])
        return configuration.EX_CONFIG
    if options.validate:
        print("configuration OK")
        return 0
    level = "error" if config["log-level"] == "fatal" else config["log-level"]
    journal.setup("teud", level, objects=config["log-format"] == "json")
    proxies(config)
    if options.pidfile:
        Path(options.pidfile).write_text(f"{os.getpid()}\n")
    try:
        return serve(config, options)
    except configuration.ConfigError as error:
        log.critical("cannot start: %s", error)
        return configuration.EX_CONFIG
    except (EngineError, OSError, sqlite3.DatabaseError) as error:
        log.critical("cannot start: %s", error)
        return _status(error)


def refuse(reason: str, sockets: list[socket.socket]) -> None:
    """Tell those who have connected already why there is no engine. Unanswered they would stay in the queue of
    systemd's socket, for which systemd would start us again and again."""
    answer = json.dumps({"message": f"the engine is not up: {reason}"}).encode() + b"\n"
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Server: Teu/{__version__} (linux)\r\nContent-Length: {len(answer)}\r\n\r\n"
    )
    for listener in sockets:
        listener.setblocking(False)
        with contextlib.suppress(OSError):
            while True:
                client, _address = listener.accept()
                with client, contextlib.suppress(OSError):
                    client.settimeout(1)
                    client.recv(64 << 10)  # what is unread when it is closed would reset the connection
                    client.sendall(head.encode() + answer)
                    client.shutdown(socket.SHUT_WR)
                    client.recv(64 << 10)


def _status(error: BaseException | None) -> int:
    """Of the process. A file of a newer version, or a broken one, does not mend itself; a full disk may."""
    if error is None:
        return 0
    return configuration.EX_DATAERR if isinstance(error, Unreadable) else 1


def serve(config: configuration.Settings, options: argparse.Namespace) -> int:
    # 45 ms, which --validate and --help do without.
    from teu.engine.api import router
    from teu.engine.api.server import Server
    from teu.engine.daemon import Daemon

    begun = time.monotonic()
    memory.few_arenas(ARENAS)
    os.umask(0o022)
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.signal(signal.SIGUSR1, lambda *_: stacks.show(log))
    sockets = listeners(config)
    guard = None
    if (config["tls"] or config["tlsverify"]) and any(sock.family != socket.AF_UNIX for sock in sockets):
        from teu.engine.api.tls import Guard  # 15 ms, for sockets that are reached from elsewhere

        guard = Guard(config)
    router.load()
    try:
        daemon = Daemon(config)
    except Unreadable as error:
        refuse(str(error), sockets)
        raise
    engine = daemon.engine
    _tell_figures(config, engine)
    server = Server(engine, sockets, guard)
    server.start()

    def start() -> None:
        try:
            daemon.start()
            log.info("ready after %.0f ms", (time.monotonic() - begun) * 1000)
        except Exception as error:
            engine.failure = error
            log.critical("the engine cannot start: %s", error, exc_info=not isinstance(error, EngineError))
            os.kill(os.getpid(), signal.SIGTERM)

    addresses = [sock.getsockname() for sock in sockets]
    threading.Thread(target=start, name="start", daemon=True).start()
    _tell_ready(daemon)
    idle = _wait(daemon, server, signals, options)
    notify.stopping()
    if not idle and host.is_going_down():
        daemon.last_exits()
    server.close()
    server.finish(config["shutdown-timeout"], idle=idle)
    needed = idle and daemon.left_idle()
    daemon.stop()
    if needed:
        _knock(sockets, addresses)
    _remove_traces(config, options)
    logging.shutdown()
    sys.stdout.flush()
    # Threads that wait for clients or for gRPC are not worth waiting for.
    os._exit(_status(engine.failure))


def _tell_ready(daemon: Daemon) -> None:
    if daemon.woken_by_shutdown:
        daemon.engine.ready.wait(SHUTDOWN_SECONDS)  # systemd stops the containers as soon as we say so
    notify.ready("Serving the Docker Engine API")


def _tell_figures(config: configuration.Settings, engine: Engine) -> None:
    """To Prometheus, where there is an address for it, and to plugins that collect them; until the process ends.
    Raises EngineError."""

    def serve(listener: socket.socket) -> Callable[[], None]:
        from teu.engine.api.metrics import Metrics  # as below

        served = Metrics(engine, [listener])
        served.start()
        return served.close

    engine.plugins.serve_figures = serve
    if config["metrics-addr"]:
        from teu.engine.api.metrics import Metrics  # 1 ms, for those who ask

        try:
            sockets = _listen_tcp(f"tcp://{config['metrics-addr']}", 0)
        except EngineError as error:
            raise EngineError(f"metrics-addr: {str(error).removeprefix('-H tcp://')}") from None
        Metrics(engine, sockets).start()


def _remove_traces(config: configuration.Settings, options: argparse.Namespace) -> None:
    """Sockets of our own, and the file of the process's id."""
    for address in config["hosts"]:
        if address.startswith("unix://"):
            Path(address.removeprefix("unix://")).unlink(missing_ok=True)
    if options.pidfile:
        Path(options.pidfile).unlink(missing_ok=True)


def _wait(daemon: Daemon, server: Server, signals: set[signal.Signals], options: argparse.Namespace) -> bool:
    """Until a signal ends the daemon, or it has been idle (True); the watchdog is fed as long as the pump turns."""
    engine = daemon.engine
    interval = notify.watchdog_interval()
    # At sockets of its own nobody would answer meanwhile.
    may_leave = all(host.startswith("fd://") for host in engine.config["hosts"]) and not engine.config["metrics-addr"]
    while True:
        limit = engine.config["idle-exit"] if may_leave else 0.0
        patience = min((seconds for seconds in (interval, limit / 2) if seconds), default=0.0)
        received = signal.sigtimedwait(signals, patience) if patience else signal.sigwaitinfo(signals)
        if received is None:
            if limit and server.idle_seconds() >= limit and daemon.idle(limit) and daemon.leave_idle():
                log.info("idle for %.0f s: leaving, the socket wakes us", server.idle_seconds())
                return True
            if not interval:
                continue
            try:
                engine.pump.call(lambda: None, timeout=interval)
            except TimeoutError:
                log.error("the pump does not turn: the watchdog is not fed")
                continue
            notify.watchdog()
        elif received.si_signo == signal.SIGHUP:
            reload(engine, options)
        else:
            return False


def _knock(sockets: list[socket.socket], addresses: list[Any]) -> None:
    """Connect to our sockets, which are systemd's alone by now: it starts the next engine once this one has gone."""
    for sock, address in zip(sockets, addresses, strict=True):
        with contextlib.suppress(OSError), socket.socket(sock.family, socket.SOCK_STREAM) as knocking:
            knocking.settimeout(2)
            knocking.connect(address)
            return


def reload(engine: Engine, options: argparse.Namespace) -> None:
    notify.reloading()
    try:
        fresh = settings(options)
        applied, restart = configuration.changed(engine.config, fresh, KEYS)
        for key in applied:
            engine.config[key] = fresh[key]
        journal.set_level(fresh["log-level"])
        told = f"changed {', '.join(applied) or 'nothing'}"
        log.info("configuration read again: %s", told)
        if restart:
            log.warning("these keys need a restart of teud to take effect: %s", ", ".join(restart))
            told += f"; a restart is needed for {', '.join(restart)}"
        values = {key: value if isinstance(value := engine.config[key], str) else json.dumps(value) for key in TOLD}
        engine.events.publish("daemon", "reload", engine.id, {"name": os.uname().nodename, **values})
    except (configuration.ConfigError, EngineError) as error:
        log.error("the configuration is kept as it was: %s", error)
        told = f"the configuration is kept as it was: {error}"
    notify.ready(f"Serving the Docker Engine API; the reload: {told}")
