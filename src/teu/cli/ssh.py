# SPDX-License-Identifier: Apache-2.0
"""ssh://[USER@]HOST[:PORT][/SOCKET]: a connection to a daemon on another machine, through ssh(1).

Each connection is one ssh, whose input and output are ours; at the other end runs `teu system dial-stdio`, or docker's
where there is no teu. Loaded by `http.Client` for such an address. ssh does what the user's ssh_config says, so that
ControlMaster makes one login of many connections."""

from __future__ import annotations

import _socket
import os

from teu.cli.errors import CommandError, ConnectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CONNECT_SECONDS = 30


def parse(host: str) -> tuple[str, str, str, str]:
    """(user, host, port, path of the socket) of an address; what is not given is empty. Raises CommandError."""

    def wrong(why: str) -> CommandError:
        return CommandError(f"ssh host connection is not valid: invalid SSH URL: {why}")

    rest = host.partition("://")[2]
    for mark, name in (("?", "query parameters"), ("#", "fragments")):
        if mark in rest:
            raise wrong(f'{name} are not allowed: "{rest.partition(mark)[2]}"')
    place, slash, path = rest.partition("/")
    user, _, address = place.rpartition("@")
    if ":" in user:
        raise wrong("plain-text password is not supported")
    if address.startswith("["):
        name, _, port = address[1:].partition("]")
        port = port.removeprefix(":")
    else:
        name, _, port = address.partition(":")
    if not name:
        raise wrong("hostname is empty")
    if port and not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise wrong(f'invalid port "{port}"')
    path = slash + path if path.strip("/") else ""
    for text in (user, name):
        if text.startswith("-") or any(ord(letter) <= 32 or letter in "'\"\\$`" for letter in text):
            raise wrong(f'invalid character in "{text}"')
    return user, name, port, path


def quoted(text: str) -> str:
    """One word for a POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def command(host: str) -> list[str]:
    """The ssh that connects to the daemon at that address. Raises CommandError for an address that is none."""
    user, name, port, path = parse(host)
    words = (f"--host {quoted('unix://' + path)} " if path else "") + "system dial-stdio"
    # The other end's login shell may be any: sh is what reads this. Docker's clients need docker there, ours either.
    remote = f"command -v teu >/dev/null 2>&1 && exec teu {words}; exec docker {words}"
    argv = ["ssh"]
    if user:
        argv += ["-l", user]
    if port:
        argv += ["-p", port]
    return [*argv, "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-T", "--", name, f"exec sh -c {quoted(remote)}"]


def connect(host: str) -> Any:
    """A socket that ssh reads from and writes to. Raises CommandError, and ConnectError where ssh cannot be started."""
    argv = command(host)
    ours, theirs = _socketpair()
    actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0), (os.POSIX_SPAWN_DUP2, theirs.fileno(), 1)]
    try:
        # In a session of its own: what the terminal sends to us must not end the connection. A daemon with a password
        # in place of a key is asked for by SSH_ASKPASS, as with docker.
        # No signal is held back from it, as some are from us while something is attached (streams.Signals).
        os.posix_spawnp("ssh", argv, os.environ, file_actions=actions, setsid=True, setsigmask=())
    except OSError as error:
        ours.close()
        raise ConnectError(f"cannot start ssh for {host}: {error.strerror}; install openssh-client") from None
    finally:
        theirs.close()
    return ours


def _socketpair() -> tuple[Any, Any]:
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
