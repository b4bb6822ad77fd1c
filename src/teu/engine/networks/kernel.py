# SPDX-License-Identifier: Apache-2.0
"""The engine's netlink socket in the host's network namespace. Used under the networks' lock."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teu.linux.netlink import Socket


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
