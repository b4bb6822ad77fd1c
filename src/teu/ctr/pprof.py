# SPDX-License-Identifier: Apache-2.0
"""`pprof`: profiles of containerd by its debug socket, as net/http/pprof of Go serves them. teu-containerd is not
written in Go and serves none: the socket to give is one of a real containerd."""

from __future__ import annotations

import functools
import http.client
import socket
import sys

from teu.ctr.commands import Command, Ctr
from teu.ctr.errors import CommandError
from teu.ctr.flags import Options


def show(profile: str, ctr: Ctr, options: Options, operands: list[str]) -> None:
    query = f"debug={options['debug']}"
    if "seconds" in options:
        query = f"seconds={options['seconds']:g}&{query}"
    path, url = options["debug-socket"], f"/debug/pprof/{profile}?{query}"
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


COMMANDS = {
    "pprof block": command("block", ""),
    "pprof goroutines": command("goroutine", "=2"),
    "pprof heap": command("heap", ""),
    "pprof profile": command("profile", "", "30s"),
    "pprof threadcreate": command("threadcreate", ""),
    "pprof trace": command("trace", "", "5s"),
}
