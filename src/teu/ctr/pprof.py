# SPDX-License-Identifier: Apache-2.0
"""`pprof` and `shim pprof`: profiles of containerd, or of a shim, by its debug socket, as net/http/pprof of Go serves
them. teu-containerd and its shim are not written in Go and serve none: what is asked is a real containerd, or a shim of
it that was started with debug."""

from __future__ import annotations

import functools
import http.client
import os
import socket
import sys

from teu.ctr.commands import Command, Ctr
from teu.ctr.errors import CommandError
from teu.ctr.flags import Options
from teu.ctr.shim import socket_of


def of_shim(ctr: Ctr, options: Options) -> str:
    """The debug socket of a shim, by containerd's rule."""
    if not options["id"]:
        raise CommandError("container id must be provided")
    return socket_of(os.path.join(ctr.options["address"], ctr.namespace, options["id"], "debug"))


def show(profile: str, ctr: Ctr, options: Options, operands: list[str]) -> None:
    query = f"debug={options['debug']}"
    if "seconds" in options:
        query = f"seconds={options['seconds']:g}&{query}"
    path, url = options.get("debug-socket") or of_shim(ctr, options), f"/debug/pprof/{profile}?{query}"
    connection = http.client.HTTPConnection(".")
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(path)
    except OSError as error:
        told = f"dial unix {path}: connect: {(error.strerror or '').lower()}"
        raise CommandError(f'Get "http://.{url}": {told}') from None
    connection.request("GET", url)
    answer = connection.getresponse()
    if answer.status != 200:
        raise CommandError(f"http get failed with status: {answer.status} {answer.reason}")
    while data := answer.read(1 << 16):
        sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def command(profile: str, debug: str, seconds: str = "") -> Command:
    table = f"debug int{debug} How much of it as text; 0 for the form that `go tool pprof` reads\n"
    if seconds:
        table += f"seconds,s duration={seconds} For so long\n"
    return Command(functools.partial(show, profile), "[flags]", table)


PROFILES = {
    "pprof block": command("block", ""),
    "pprof goroutines": command("goroutine", "=2"),
    "pprof heap": command("heap", ""),
    "pprof profile": command("profile", "", "30s"),
    "pprof threadcreate": command("threadcreate", ""),
    "pprof trace": command("trace", "", "5s"),
}
COMMANDS = {**PROFILES, **{f"shim {name}": each for name, each in PROFILES.items()}}
