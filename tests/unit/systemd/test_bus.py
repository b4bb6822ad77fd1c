# SPDX-License-Identifier: Apache-2.0
"""The D-Bus wire format and a whole exchange with a server made of plain bytes."""

import os
import socket
import struct
import threading

import pytest

from teu.systemd.bus import Bus, BusError, _write, marshal, split_signature, unmarshal


def test_split_signature() -> None:
    assert split_signature("sa(sv)a{sv}aayu(i(ss))") == ["s", "a(sv)", "a{sv}", "aay", "u", "(i(ss))"]


@pytest.mark.parametrize(
    ("signature", "values"),
    [
        ("yqut", [1, 2, 3, 1 << 40]),
        ("ss", ["", "é"]),
        ("a(sv)", [[("PIDs", ("au", [1, 2])), ("Delegate", ("b", True))]]),
        ("a(sa(sv))", [[]]),
        ("ayx", [b"abc", -5]),
        ("a{sv}g", [{"a": ("s", "b"), "c": ("t", 7)}, "a{sv}"]),
        ("nid", [-2, -3, 1.5]),
    ],
)
def test_round_trip(signature: str, values: list[object]) -> None:
    assert unmarshal(signature, marshal(signature, values)) == values


def test_known_bytes() -> None:
    # by hand from the specification: array length excludes the padding before the first element
    assert marshal("yat", [1, [2]]) == b"\1\0\0\0" + b"\x08\0\0\0" + b"\x02" + b"\0" * 7
    assert marshal("s", ["hi"]) == b"\2\0\0\0hi\0"
    assert marshal("v", [("u", 5)]) == b"\1u\0\0\5\0\0\0"


def _message(kind: int, fields: list[object], signature: str, values: list[object]) -> bytes:
    body = marshal(signature, values)
    if signature:
        fields = [*fields, (8, ("g", signature))]
    out = bytearray(struct.pack("<cBBBII", b"l", kind, 0, 1, len(body), 9))
    _write(out, "a(yv)", fields)
    out += b"\0" * (-len(out) % 8)
    return bytes(out) + body


def test_exchange(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "bus")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    seen: list[bytes] = []

    def serve() -> None:
        peer, _ = listener.accept()
        data = b""
        while b"BEGIN\r\n" not in data:
            data += peer.recv(4096)
        peer.sendall(b"OK 0123\r\n")
        peer.sendall(_message(2, [(5, ("u", 1))], "s", [":1.1"]))
        signal = _message(4, [(1, ("o", "/j")), (3, ("s", "JobRemoved"))], "uoss", [1, "/j", "u", "done"])
        peer.sendall(signal + _message(2, [(5, ("u", 2))], "o", ["/j"]))
        peer.sendall(_message(3, [(5, ("u", 3)), (4, ("s", "org.x.Bad"))], "s", ["no such thing"]))
        while chunk := peer.recv(4096):
            seen.append(chunk)
        peer.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with Bus(path) as bus:
        assert bus.call("a.b", "/", "a.b", "Start", "s", ("x",)) == ["/j"]
        assert bus.wait_signal("JobRemoved", lambda body: body[1] == "/j")[3] == "done"
        with pytest.raises(BusError) as error:
            bus.call("a.b", "/", "a.b", "Stop")
        assert error.value.name == "org.x.Bad" and "no such thing" in str(error.value)
    thread.join()
    listener.close()
