# SPDX-License-Identifier: Apache-2.0
"""A small blocking D-Bus client for talking to systemd.

The shim and teu-runc make one or two calls per container (StartTransientUnit and its like), so what
counts here is a cheap import and few round trips: no library, no introspection, no threads.  As root
the connection goes straight to PID 1 (/run/systemd/private, the socket that systemctl uses), which
also works where no message bus is installed; else to the system bus.

Values are passed with their D-Bus signature: `call(..., "ss", ("a", "b"))`.  A variant is a pair
`(signature, value)`, a struct a tuple, an array a list (or a dict for `a{..}`, bytes for `ay`).
The wire format is that of the D-Bus specification, sections "Type system" and "Message protocol".
"""

from __future__ import annotations

import errno
import os
import struct

from teu.linux import sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SYSTEMD_PRIVATE = "/run/systemd/private"
SYSTEM_BUS = "/run/dbus/system_bus_socket"

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
# header fields
PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL, DESTINATION, SENDER, SIGNATURE = 1, 2, 3, 4, 5, 6, 7, 8

MESSAGE_LENGTH_MAX = 128 << 20

_FIXED = {"y": "<B", "b": "<I", "n": "<h", "q": "<H", "i": "<i", "u": "<I", "x": "<q", "t": "<Q", "d": "<d", "h": "<I"}


class BusError(OSError):
    """The peer answered a call with an error; `name` is the D-Bus error name."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{message} ({name})" if message else name)
        self.name = name
        self.message = message


def _alignment(signature: str) -> int:
    kind = signature[0]
    if kind in _FIXED:
        return struct.calcsize(_FIXED[kind])
    return {"s": 4, "o": 4, "a": 4, "g": 1, "v": 1, "(": 8, "{": 8}[kind]


def split_signature(signature: str) -> list[str]:
    """The complete types of a signature: "sa(sv)u" gives ["s", "a(sv)", "u"]."""
    types: list[str] = []
    start = at = 0
    while at < len(signature):
        while signature[at] == "a":
            at += 1
        if signature[at] in "({":
            depth = 0
            while True:
                depth += (signature[at] in "({") - (signature[at] in ")}")
                if not depth:
                    break
                at += 1
        at += 1
        types.append(signature[start:at])
        start = at
    return types


def _pad(out: bytearray, alignment: int) -> None:
    out += b"\0" * (-len(out) % alignment)


def _write(out: bytearray, signature: str, value: Any) -> None:
    """Append one complete type."""
    kind = signature[0]
    _pad(out, _alignment(signature))
    if kind in _FIXED:
        out += struct.pack(_FIXED[kind], value)
    elif kind in "so":
        data = value.encode("utf-8", "replace")  # the bus ends a connection over what is no UTF-8
        out += struct.pack("<I", len(data)) + data + b"\0"
    elif kind == "g":
        out += bytes([len(value)]) + os.fsencode(value) + b"\0"
    elif kind == "v":
        _write(out, "g", value[0])
        _write(out, value[0], value[1])
    elif kind == "a":
        item = signature[1:]
        at = len(out)
        out += b"\0\0\0\0"
        _pad(out, _alignment(item))
        start = len(out)
        if item == "y":
            out += bytes(value)
        elif item[0] == "{":
            key_type, value_type = split_signature(item[1:-1])
            for key, member in value.items():
                _pad(out, 8)
                _write(out, key_type, key)
                _write(out, value_type, member)
        else:
            for member in value:
                _write(out, item, member)
        struct.pack_into("<I", out, at, len(out) - start)
    else:
        for item, member in zip(split_signature(signature[1:-1]), value, strict=True):
            _write(out, item, member)


def marshal(signature: str, values: tuple[Any, ...] | list[Any]) -> bytes:
    """The body for `signature`; one value for each complete type."""
    out = bytearray()
    for item, value in zip(split_signature(signature), values, strict=True):
        _write(out, item, value)
    return bytes(out)


def _read(data: bytes, at: int, signature: str, order: str) -> tuple[Any, int]:
    kind = signature[0]
    at += -at % _alignment(signature)
    if kind in _FIXED:
        layout = order + _FIXED[kind][1]
        value = struct.unpack_from(layout, data, at)[0]
        return (bool(value) if kind == "b" else value), at + struct.calcsize(layout)
    if kind in "so":
        length = struct.unpack_from(order + "I", data, at)[0]
        at += 4
        return data[at : at + length].decode(errors="surrogateescape"), at + length + 1
    if kind == "g":
        length = data[at]
        return os.fsdecode(data[at + 1 : at + 1 + length]), at + length + 2
    if kind == "v":
        inner, at = _read(data, at, "g", order)
        value, at = _read(data, at, inner, order)
        return (inner, value), at
    if kind == "a":
        length = struct.unpack_from(order + "I", data, at)[0]
        item = signature[1:]
        at += 4
        at += -at % _alignment(item)
        end = at + length
        if item == "y":
            return data[at:end], end
        if item[0] == "{":
            key_type, value_type = split_signature(item[1:-1])
            pairs = {}
            while at < end:
                at += -at % 8
                key, at = _read(data, at, key_type, order)
                pairs[key], at = _read(data, at, value_type, order)
            return pairs, end
        items = []
        while at < end:
            member, at = _read(data, at, item, order)
            items.append(member)
        return items, end
    members = []
    for item in split_signature(signature[1:-1]):
        member, at = _read(data, at, item, order)
        members.append(member)
    return tuple(members), at


def unmarshal(signature: str, data: bytes, order: str = "<") -> list[Any]:
    """The values in a body of that signature."""
    values, at = [], 0
    for item in split_signature(signature):
        value, at = _read(data, at, item, order)
        values.append(value)
    return values


class Message:
    """One received message: kind (METHOD_RETURN, SIGNAL, ...), header fields by number, body values."""

    __slots__ = ("kind", "fields", "body")

    def __init__(self, kind: int, fields: dict[int, Any], body: list[Any]) -> None:
        self.kind = kind
        self.fields = fields
        self.body = body


def own_uid() -> int:
    """Our user id as a peer outside our user namespace sees it (podman runs us as "root" in one)."""
    uid = os.geteuid()
    try:
        with open("/proc/self/uid_map") as file:
            maps = [[int(word) for word in line.split()] for line in file]
    except OSError:
        return uid
    for inside, outside, count in maps:
        if inside <= uid < inside + count:
            return outside + uid - inside
    return uid


class Bus:
    """A connection; use it as a context manager.  Not for use by several threads at once."""

    def __init__(self, path: str | None = None, timeout: float | None = 30.0) -> None:
        """Connect to `path`, or to systemd's private socket, or to the system bus, and authenticate."""
        choices = [path] if path else [SYSTEMD_PRIVATE, SYSTEM_BUS]
        if not path and os.geteuid():
            choices = [SYSTEM_BUS]
        self._serial = 0
        self._buffer = b""
        self._signals: list[Message] = []
        for n, choice in enumerate(choices):
            self._socket = sockets.Socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_CLOEXEC)
            try:
                self._socket.settimeout(timeout)
                self._socket.connect(choice)
                # Nothing here depends on an answer, so it all goes in one write.
                uid = (b"%d" % own_uid()).hex()
                self._socket.sendall(b"\0AUTH EXTERNAL " + os.fsencode(uid) + b"\r\nBEGIN\r\n")
                while b"\r\n" not in self._buffer:
                    self._fill()
                answer, _, self._buffer = self._buffer.partition(b"\r\n")
                if not answer.startswith(b"OK "):
                    raise PermissionError(errno.EACCES, "authentication refused")
                break
            except OSError as error:
                self._socket.close()
                if n + 1 == len(choices):
                    reason = f"connect to systemd's D-Bus socket: {error.strerror or error}"
                    raise OSError(error.errno, reason, choice) from error
        # A manager's own socket (PID 1's, or /run/user/UID/systemd/private) has no bus in between.
        self.direct = choice.endswith("/systemd/private")
        if not self.direct:
            self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """The connection ends. The bus forgets what this one listened to."""
        self._socket.close()

    def _fill(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("D-Bus connection closed by the peer")
        self._buffer += data

    def _receive(self) -> Message:
        while len(self._buffer) < 16:
            self._fill()
        order = "<" if self._buffer[:1] == b"l" else ">"
        body_length, _serial, fields_length = struct.unpack_from(order + "III", self._buffer, 4)
        start = 16 + fields_length + -fields_length % 8
        if start + body_length > MESSAGE_LENGTH_MAX:
            raise ConnectionError("D-Bus message over 128 MiB")
        while len(self._buffer) < start + body_length:
            self._fill()
        data, self._buffer = self._buffer[: start + body_length], self._buffer[start + body_length :]
        pairs, _ = _read(data, 12, "a(yv)", order)
        fields = {number: variant[1] for number, variant in pairs}
        return Message(data[1], fields, unmarshal(fields.get(SIGNATURE, ""), data[start:], order))

    def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        args: tuple[Any, ...] | list[Any] = (),
    ) -> list[Any]:
        """Call a method and return its values; BusError if the peer answers with an error.

        Signals that arrive meanwhile are kept for wait_signal()."""
        self._serial += 1
        serial = self._serial
        fields = [(PATH, ("o", path)), (INTERFACE, ("s", interface)), (MEMBER, ("s", member))]
        if destination and not getattr(self, "direct", False):
            fields.append((DESTINATION, ("s", destination)))
        if signature:
            fields.append((SIGNATURE, ("g", signature)))
        body = marshal(signature, args)
        out = bytearray(struct.pack("<cBBBII", b"l", METHOD_CALL, 0, 1, len(body), serial))
        _write(out, "a(yv)", fields)
        _pad(out, 8)
        self._socket.sendall(bytes(out) + body)
        while True:
            message = self._receive()
            if message.kind == SIGNAL:
                self._signals.append(message)
            elif message.fields.get(REPLY_SERIAL) == serial:
                if message.kind == ERROR:
                    text = message.body[0] if message.body and isinstance(message.body[0], str) else ""
                    raise BusError(message.fields.get(ERROR_NAME, ""), text)
                return message.body

    def add_match(self, rule: str) -> None:
        """Ask the bus daemon for signals; a direct connection gets them all without asking."""
        if not self.direct:
            self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch", "s", (rule,))

    def wait_signal(self, member: str, accept: Callable[[list[Any]], bool]) -> list[Any]:
        """The values of the first signal of that name that `accept` likes, received already or to come.

        TimeoutError when nothing arrives on the connection for its timeout."""
        while True:
            message = self._signals.pop(0) if self._signals else self._receive()
            if message.kind == SIGNAL and message.fields.get(MEMBER) == member and accept(message.body):
                return message.body
