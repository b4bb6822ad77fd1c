# SPDX-License-Identifier: Apache-2.0
"""A container's or an exec's streams over a connection that a client has handed over, and logs as frames. Called by the
routes of attach, exec and logs."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator

from teu.engine.api.messages import Request
from teu.engine.containers.model import Container
from teu.engine.logs.driver import Selection
from teu.engine.streams.detach import Filter
from teu.engine.streams.frames import frame
from teu.engine.streams.hub import Client, Hub

FRAME_SIZE = 64 << 10
RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"


def content_type(request: Request, tty: bool, taken_over: bool = False) -> str:
    """Multiplexed has its own name since API 1.42; where the connection is taken over, if its client has asked for an
    upgrade."""
    named = request.version >= (1, 42) and (not taken_over or "upgrade" in request.headers)
    return MULTIPLEXED if named and not tty else RAW


def serve(
    hub: Hub,
    client: Client,
    sock: socket.socket,
    early: bytes,
    stdin: bool,
    keys: Filter,
    close_stdin: Callable[[], None],
) -> bool:
    """Carry input until the connection or the process ends. True: the client typed the detach keys."""
    data = early
    ending = False
    try:
        while not client.ended.is_set():
            if data and stdin and not ending:
                kept, detach = keys.feed(data)
                if kept and not hub_write(hub, client, kept, sock):
                    ending = True
                if detach:
                    hub.detach(client)
                    return True
            data = sock.recv(1 << 16)
            if not data:
                break
        if not client.ended.is_set():
            # The client's sending half is closed: its input ends, its output goes on.
            if stdin:
                close_stdin()
            _until_gone(client, sock)
    except OSError:
        pass
    hub.detach(client)
    return False


def hub_write(hub: Hub, client: Client, data: bytes, sock: socket.socket) -> bool:
    """To the process; before it is started there is no stdin yet, so wait for it, as long as the client does."""
    while not hub.has_stdin:
        if client.ended.wait(0.01) or gone(sock):
            return False
    return hub.write_stdin(data)


def gone(sock: socket.socket) -> bool:
    """Whether the client has closed the connection altogether; one that has only said its last may still listen."""
    poll = select.poll()
    poll.register(sock, 0)  # POLLHUP and POLLERR are always told
    return bool(poll.poll(0))


def _until_gone(client: Client, sock: socket.socket) -> None:
    """Input was shut down; wait for the end of the output, or for the client to vanish altogether."""
    poll = select.poll()
    poll.register(sock, 0)  # POLLHUP and POLLERR are always told
    while not client.ended.is_set():
        if any(mask & (select.POLLHUP | select.POLLERR) for _, mask in poll.poll(500)):
            return


def frames(container: Container, selection: Selection, raw: bool = False) -> Iterator[bytes]:
    """A container's log as the API sends it; b"" where there is nothing to say for a while. `raw`: without saying of
    which stream it is, as with a terminal."""
    driver = container.hub.driver
    if driver is None:
        driver = container.hub.driver = container.open_log()
    if driver is None:
        return
    kind = 0
    parts: list[bytes] = []
    size = 0

    def gathered() -> bytes:
        """Lines of one stream that follow one another go out together: for who follows, which takes a frame for a
        line (docker-py hands them on one by one), a frame each; else in one frame."""
        nonlocal size
        data = b"".join(parts)
        parts.clear()
        size = 0
        if raw or container.tty:
            return data
        lines = [data]
        if selection.follow:
            *whole, rest = data.split(b"\n")
            lines = [*(line + b"\n" for line in whole), rest]
        return b"".join(frame(kind, line) for line in lines if line)

    for piece in driver.read(selection):
        if parts and (piece is None or piece.kind != kind or size >= FRAME_SIZE):
            yield gathered()
        if piece is None:
            yield b""
            continue
        kind = piece.kind
        parts.append(piece.data)
        size += len(piece.data)
    if parts:
        yield gathered()
