# SPDX-License-Identifier: Apache-2.0
"""What a volume driver is: where the files of a volume come from. The store has the names, the records and the users.

A driver is one file and one line in the registry, and is made once, of the folder that has all volumes of the engine.
The store calls it under the volume's own lock, for one volume never from two threads at once. tests/drivers/volumes.py
has the checks for every driver.
"""

from __future__ import annotations

from typing import Protocol


class Driver(Protocol):
    """A volume driver, for all volumes whose records name it. Options are those of --opt."""

    def check(self, options: dict[str, str]) -> dict[str, str]:
        """The options of a volume that is to be made, as they are to be kept. Raises BadRequest."""

    def create(self, name: str, options: dict[str, str]) -> bool:
        """Make the place of a volume; durable when it returns, and nothing new is left where it fails. What is there of
        that name is used. Whether nothing was."""

    def path(self, name: str) -> str:
        """Where the host sees the volume's files; of one that has to be mounted, meanwhile. Empty: nobody
        knows."""

    def scope(self, name: str) -> str:
        """Who has the volume: local, or global for every engine with this driver."""

    def has_to_be_mounted(self, options: dict[str, str]) -> bool:
        """Whether its files are at its path between `mount` and `unmount` alone."""

    def mount(self, name: str, options: dict[str, str]) -> None:
        """Raises EngineError, at last when its time is over: nobody waits for a server without an end. Where it is
        mounted already, also by an engine that was killed, that is it: a volume is never stacked."""

    def unmount(self, name: str) -> None:
        """Twice is fine. Raises OSError."""

    def host_paths(self, name: str, options: dict[str, str]) -> list[str]:
        """What of the host's files a container with this volume uses: mounts below which must be there before."""

    def release(self, name: str) -> None:
        """Before a removal, which is not written down yet: unmount it. Raises Conflict, or OSError, where a removal
        would fail or would touch what belongs to others."""

    def rename(self, name: str, new: str) -> None:
        """Nobody has it. One that was interrupted is done again: then it may be there under the new name already.
        Raises BadRequest where the driver cannot, OSError."""

    def remove(self, name: str) -> None:
        """Remove all of it. One that was interrupted is done again; of what is not there nothing is said. Raises
        OSError."""
