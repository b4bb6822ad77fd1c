# SPDX-License-Identifier: Apache-2.0
"""The log driver syslog: each line is a message of RFC 3164 or RFC 5424, to the host's own syslog or over the network.

Over TLS with one of the formats of RFC 5424, messages are framed by their length (RFC 5425, section 4.3); else by a
newline, as docker sends them.
"""

from __future__ import annotations

import functools
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from teu.engine.core.errors import BadRequest
from teu.engine.core.kinds import natural
from teu.engine.logs.driver import Driver, LogSource, Registration, check_attributes, tag
from teu.engine.logs.options import ATTRIBUTES, CACHE, check_cache
from teu.engine.logs.remote import Message, Receiver, Remote, Stopped, address

if TYPE_CHECKING:
    import ssl

PORT = 514
LOCAL_SOCKETS = ("/dev/log", "/var/run/syslog", "/var/run/log")
FACILITIES = {
    name: number
    for number, name in enumerate(
        ["kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"]
        + 4 * [""]
        + [f"local{number}" for number in range(8)]
    )
    if name
}
FORMATS = ("", "rfc3164", "rfc5424", "rfc5424micro")
SEVERITIES = {1: 6, 2: 3}  # informational, error
OPTIONS = frozenset(
    {
        "syslog-address",
        "syslog-facility",
        "syslog-format",
        "syslog-tls-ca-cert",
        "syslog-tls-cert",
        "syslog-tls-key",
        "syslog-tls-skip-verify",
    }
)
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]  # whatever the locale


def _where(options: dict[str, str]) -> tuple[str, str, int, str]:
    """Scheme, host, port and path; nothing of it: the host's own syslog. Raises BadRequest."""
    text = options.get("syslog-address", "")
    if not text:
        return "", "", 0, ""
    url = address(text, "syslog-address")
    if url.scheme in ("unix", "unixgram"):
        if not os.path.exists(url.path):
            raise BadRequest(f"syslog-address: stat {url.path}: no such file or directory")
        return url.scheme, "", 0, url.path
    if url.scheme not in ("udp", "tcp", "tcp+tls"):
        raise BadRequest(
            f"syslog-address: unsupported scheme: '{url.scheme}'; there are udp, tcp, tcp+tls, unix and unixgram"
        )
    return url.scheme, url.hostname or "localhost", url.port or PORT, ""


def _facility(options: dict[str, str]) -> int:
    text = options.get("syslog-facility") or "daemon"
    number = FACILITIES.get(text, natural(text, 2))
    if number is None or number > 23:
        raise BadRequest(f"invalid syslog facility: {text}; there are {', '.join(FACILITIES)}, and 0 to 23")
    return number


def _check(options: dict[str, str]) -> None:
    _where(options)
    _facility(options)
    if options.get("syslog-format", "") not in FORMATS:
        raise BadRequest(f"Invalid syslog format: {options['syslog-format']}; there are {', '.join(FORMATS[1:])}")
    check_attributes(options)
    check_cache(options)


def trust(options: dict[str, str]) -> ssl.SSLContext:
    """What the receiver is asked for and shown. Raises OSError."""
    import ssl  # 6 ms, and most hosts have no such log

    made = ssl.create_default_context()
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT  # docker takes authorities that do not say what their key is for
    if "syslog-tls-skip-verify" in options:  # whatever its value, as in docker
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    elif options.get("syslog-tls-ca-cert"):
        made.load_verify_locations(options["syslog-tls-ca-cert"])
    if options.get("syslog-tls-cert") or options.get("syslog-tls-key"):
        made.load_cert_chain(options.get("syslog-tls-cert", ""), options.get("syslog-tls-key") or None)
    return made


class Syslog:
    """The sink."""

    def __init__(self, source: LogSource) -> None:
        options = source.options
        scheme, host, port, path = _where(options)
        self._receiver = Receiver(
            scheme, host, port, path, functools.partial(trust, options) if scheme == "tcp+tls" else None
        )
        self._local = not scheme
        # A message is a datagram, or what ends where the next one begins.
        self._datagrams = scheme in ("", "udp", "unixgram")
        self._format = options.get("syslog-format", "")
        self._counted = scheme == "tcp+tls" and self._format.startswith("rfc5424")
        facility = _facility(options)
        self._priorities = {kind: facility << 3 | severity for kind, severity in SEVERITIES.items()}
        label, host_name, process = tag(source), socket.gethostname(), os.getpid()
        if self._format.startswith("rfc5424"):
            self._head: Callable[[int, str], str] = lambda priority, moment: (
                f"<{priority}>1 {moment} {host_name} {label} {process} {label} - "
            )
        elif self._format == "rfc3164":
            self._head = lambda priority, moment: f"<{priority}>{moment} {host_name} {label}[{process}]: "
        else:
            self._head = lambda priority, moment: f"<{priority}>{moment} {label}[{process}]: "

    def connect(self) -> None:
        """As Sink has it."""
        if not self._local:
            self._receiver.connect()
            return
        for kind in ("unixgram", "unix"):
            for path in LOCAL_SOCKETS:
                receiver = Receiver(kind, "", 0, path)
                try:
                    receiver.connect()
                except OSError:
                    continue
                self._receiver.close()
                self._receiver, self._local = receiver, False
                self._datagrams = kind == "unixgram"
                return
        raise OSError("there is no syslog on this host: nobody listens at /dev/log")

    def send(self, messages: list[Message], stopping: threading.Event) -> int:
        """As docker: a second try on a new connection, and no third."""
        wires = [self._written(message) for message in messages if message.line]
        for attempt in range(2):
            try:
                self.connect()
                if attempt == 0 and self._receiver.gone():
                    raise OSError("the receiver has closed the connection")
                connection = self._receiver.connect()
                if self._datagrams:
                    while wires:
                        connection.send(wires[0])
                        wires.pop(0)
                else:
                    connection.sendall(b"".join(wires))
                return 0
            except OSError:
                self._receiver.close()
                if stopping.is_set():
                    raise Stopped from None
                if attempt:
                    raise
        return len(wires)

    def _written(self, message: Message) -> bytes:
        head = self._head(self._priorities[message.kind], _moment(message.moment, self._format))
        written = head.encode("utf-8", "surrogateescape") + message.line + b"\n"
        return b"%d %s" % (len(written), written) if self._counted else written

    def close(self) -> None:
        self._receiver.close()


def _moment(nanoseconds: int, form: str) -> str:
    """The time stamp of a format, in the host's own time."""
    seconds, rest = divmod(nanoseconds, 10**9)
    local = time.localtime(seconds)
    if not form.startswith("rfc5424"):
        return f"{_MONTHS[local.tm_mon - 1]} {local.tm_mday:2d} {time.strftime('%H:%M:%S', local)}"
    text = time.strftime("%Y-%m-%dT%H:%M:%S", local)
    if form == "rfc5424micro":
        text += f".{rest // 1000:06d}"
    return text + ("Z" if not local.tm_gmtoff else re.sub(r"(..)\Z", r":\1", time.strftime("%z", local)))


def _create(source: LogSource) -> Driver:
    return Remote(source, Syslog(source))


SYSLOG = Registration(OPTIONS | ATTRIBUTES | CACHE, _check, _create, remote=True)
