# SPDX-License-Identifier: Apache-2.0
"""Entry of teu-containerd: arguments, configuration, and what must happen before grpc starts its threads.

grpcio is not safe to fork under, so the zygote that forks shims is started first. Everything of grpc is imported after
that, by `daemon`.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys

from teu import __version__
from teu.config import EX_CONFIG, ConfigError, Settings, load
from teu.containerd.config import FILE, KEYS
from teu.containerd.runtime import processes
from teu.linux.standard import open_what_is_closed
from teu.systemd import activation, journal

log = logging.getLogger("teu.containerd")

_FLAGS = ("root", "state", "address", "log-level")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="teu-containerd", description="Teu's container daemon: containerd's API.", allow_abbrev=False
    )
    parser.add_argument("-c", "--config", default=FILE, metavar="FILE", help=f"configuration (default {FILE})")
    parser.add_argument("-a", "--address", "-H", "--host", metavar="SOCKET", help="socket of the gRPC API")
    parser.add_argument("--root", metavar="FOLDER", help="persistent state")
    parser.add_argument("--state", metavar="FOLDER", help="state that a reboot ends")
    parser.add_argument("-l", "--log-level", metavar="LEVEL", help="debug, info, warn or error")
    parser.add_argument("--validate", action="store_true", help="check the configuration and exit")
    parser.add_argument("-v", "--version", action="version", version=f"teu-containerd {__version__}")
    return parser.parse_args(argv)


def _levels(name: str) -> str:
    """containerd's names of levels, in ours."""
    return {"trace": "debug", "warning": "warn", "fatal": "error", "panic": "error"}.get(name, name)


def _settings(arguments: argparse.Namespace) -> Settings:
    """The file, and the command line over it. Raises ConfigError."""
    config = load(arguments.config, KEYS, must_exist=arguments.config != FILE)
    for flag in _FLAGS:
        value = getattr(arguments, flag.replace("-", "_"))
        if value:
            config[flag] = value.removeprefix("unix://") if flag == "address" else value
    config["log-level"] = _levels(config["log-level"])
    if config["log-level"] not in journal.LEVELS:
        raise ConfigError(f"--log-level {config['log-level']}: give debug, info, warn or error")
    return config


def main(argv: list[str] | None = None) -> int:
    open_what_is_closed()
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["oci-hook"]:
        from teu.containerd.runtime import oci_hook  # 2 ms, of a program of its own

        return oci_hook.main(words[1:])
    arguments = _arguments(argv)
    try:
        config = _settings(arguments)
    except ConfigError as error:
        print(f"teu-containerd: {error}", file=sys.stderr)
        return 1 if arguments.validate else EX_CONFIG
    if arguments.validate:
        print(f"{arguments.config}: valid")
        return 0
    journal.setup("teu-containerd", config["log-level"])
    sockets = [one for _name, one in activation.listen_sockets()]
    return _run(arguments, config, sockets)


def _run(arguments: argparse.Namespace, config: Settings, sockets: list[socket.socket]) -> int:
    helper = None
    try:
        from teu.containerd.runtime import zygote  # 9 ms, which --validate does without
    except ImportError as error:
        log.info("no zygote: %s", error)
    else:
        helper = zygote.start()
    # after it: the zygote's shims, and their containers, keep the limits that this process was given
    processes.raise_descriptor_limit()
    from teu.containerd import daemon  # 80 ms, all of grpc: nothing may fork beside its threads

    return daemon.run(config, lambda: _settings(arguments), sockets, helper)
