# SPDX-License-Identifier: Apache-2.0
"""`system dial-stdio`: standard input and output are a connection to the daemon. It is what runs at the far end of
ssh://, for docker's clients as for ours."""

from __future__ import annotations

import os
import select

from teu.cli.command import Cli, Command
from teu.cli.errors import ConnectError
from teu.cli.options import Options
from teu.cli.streams import half_close, receive, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHUNK = 1 << 16


def dial(cli: Cli, options: Options, operands: list[str]) -> int:
    """Ends when the daemon has said its last. The end of our input is told to it; what it says then is still passed."""
    connection = cli.client.connect()
    sock: Any = connection.sock
    decoded = getattr(sock, "pending", None)  # TLS keeps data back that the kernel's poll does not see
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)
    poller.register(0, select.POLLIN)
    try:
        while True:
            ready = dict(poller.poll(0 if decoded is not None and decoded() else None))
            if sock.fileno() in ready or (decoded is not None and decoded()):
                data = receive(sock, CHUNK)
                if not data:
                    return 0
                write_all(1, data)
            if 0 in ready:
                data = os.read(0, CHUNK)
                if data:
                    connection.send(data)
                else:
                    poller.unregister(0)
                    half_close(sock)
    except OSError as error:
        raise ConnectError(f"the connection to the daemon broke: {error.strerror or error}") from None


COMMANDS = {"system dial-stdio": Command(dial, "", 0, 0)}
