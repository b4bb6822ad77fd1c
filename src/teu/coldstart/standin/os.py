# SPDX-License-Identifier: Apache-2.0
"""os without what it imports (1.6 ms, for abstract base classes above all): system calls, the plainest of os.path."""

from __future__ import annotations

import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SEEK_SET = 0
SEEK_CUR = 1
SEEK_END = 2


def _real() -> Any:
    """The os that Python has. It takes this one's place for all who import it from now on."""
    found: Any = sys.modules.get("os")
    if found is None or found.__dict__ is globals():
        import posixpath  # noqa: F401  # is in no archive: then importlib is there (see importer)

        sys.modules.pop("os", None)
        from _frozen_importlib import FrozenImporter, _load  # type: ignore[attr-defined]

        found = _load(FrozenImporter.find_spec("os"))
    return found


def __getattr__(name: str) -> Any:
    if name == "environ":  # posix has it as bytes
        value: Any
        if "os" in sys.modules and sys.modules["os"].__dict__ is globals():
            value = {fsdecode(key): fsdecode(word) for key, word in posix.environ.items()}
        else:
            value = _real().environ
    else:
        value = getattr(posix, name, posix)  # each when it is used: there are 400
        if value is posix:
            value = getattr(_real(), name)
    globals()[name] = value
    return value


def fsencode(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")


def fsdecode(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")


class _Path:
    """os.path. Names it lacks are posixpath's."""

    def __getattr__(self, name: str) -> Any:
        import posixpath

        value = getattr(posixpath, name)
        setattr(self, name, value)
        return value

    @staticmethod
    def exists(path: Any) -> bool:
        try:
            posix.stat(path)
        except (OSError, ValueError):
            return False
        return True

    @staticmethod
    def isdir(path: Any) -> bool:
        try:
            return posix.stat(path).st_mode & 0o170000 == 0o040000
        except (OSError, ValueError):
            return False

    @staticmethod
    def dirname(path: str) -> str:
        head = path[: path.rfind("/") + 1]
        return head.rstrip("/") or head

    def abspath(self, path: str) -> str:
        if path[:1] == "/" and path[-1:] != "/" and "//" not in path and "/." not in path:
            return path
        return str(self.__getattr__("abspath")(path))


path = _Path()
