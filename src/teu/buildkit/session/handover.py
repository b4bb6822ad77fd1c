# SPDX-License-Identifier: Apache-2.0
"""Sessions whose connection another process hands over: teud's, of the clients that open one there.

A connection to the socket (SOCK_SEQPACKET) brings one message: JSON {"headers": [[name, value], …], "early": base64 of
what was read of the client's connection already}, and the client's connection as its descriptor. There is no answer; a
connection that is not wanted is closed. Who may connect is who may use the builder: the socket has its mode.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import socket
import threading

from teu.buildkit.core import errors
from teu.buildkit.session.manager import Manager

log = logging.getLogger("teu.buildkit")

MESSAGE_MAX = 128 << 10
GIVE_SECONDS = 10.0  # for the message to come


def serve(listener: socket.socket, manager: Manager) -> None:
    """Take connections until the listener is shut down. Each is a thread for as long as it lasts."""
    while True:
        try:
            giver, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_take, args=(giver, manager), name="session handover", daemon=True).start()


def _take(giver: socket.socket, manager: Manager) -> None:
    descriptors: list[int] = []
    with giver:
        giver.settimeout(GIVE_SECONDS)
        try:
            message, descriptors, flags, _ = socket.recv_fds(giver, MESSAGE_MAX, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            log.warning("a session was not handed over: %s", error)
            return
    if len(descriptors) != 1:
        for descriptor in descriptors:
            os.close(descriptor)
        log.warning("a session was handed over without its connection")
        return
    connection = socket.socket(fileno=descriptors[0])
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("the message is too long")
        said = json.loads(message)
        headers = [(str(name), str(value)) for name, value in said["headers"]]
        early = base64.b64decode(said["early"], validate=True)
    except (ValueError, TypeError, KeyError, binascii.Error, RecursionError) as error:
        connection.close()
        log.warning("a session was handed over with a message that cannot be read: %s", error)
        return
    try:
        manager.serve_socket(headers, connection, early)
    except errors.Error as error:
        connection.close()
        log.info("a session was refused: %s", error)
