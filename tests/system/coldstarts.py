# SPDX-License-Identifier: Apache-2.0
"""What the tests of quick starts share: a program's archive of byte code, and being without a file for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path("/usr/lib/teu")


def archive(program: str) -> Path:
    """That of the host's Python; there is one."""
    (found,) = FOLDER.glob(f"{program}.cpython-*")
    return found


@contextlib.contextmanager
def without(path: Path) -> Iterator[None]:
    """In the block it has another name."""
    aside = path.with_name(path.name + ".aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)
