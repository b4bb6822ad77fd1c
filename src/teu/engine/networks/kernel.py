# SPDX-License-Identifier: Apache-2.0
"""The engine's netlink socket in the host's network namespace, and what the kernel does in its own time. Used under
the networks' lock."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teu.linux.netlink import Socket

GOING_SECONDS = 2.0
_PAUSE_SECONDS = 0.02


def once_free(action: Callable[[], None], busy: int, aside: Callable[[], AbstractContextManager[None]]) -> None:
    """Do what the kernel refuses with `busy`, an errno, for as long as somebody has it: of a container that died with
    the daemon the namespace goes in the kernel's own time, some 50 ms, and with it the interfaces that nobody can name
    any more. Who has it after two seconds has it for good. `aside`: see Store.aside. Raises OSError."""
    until = time.monotonic() + GOING_SECONDS
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno != busy or time.monotonic() >= until:
                raise
        with aside():
            time.sleep(_PAUSE_SECONDS)


class Kernel:
    def __init__(self) -> None:
        self._socket: Socket | None = None

    def socket(self) -> Socket:
        """Opened at its first use."""
        if self._socket is None:
            from teu.linux import netlink

            self._socket = netlink.Socket()
        return self._socket

    def close(self) -> None:
        """The next use opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def delete_link(self, number: int) -> None:
        """By its number, as a name may be another's by now. Raises OSError; one that is not there is fine."""
        from teu.linux import netlink

        try:
            self.socket().send([netlink.delete_index(number)])
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
