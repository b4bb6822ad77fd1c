# SPDX-License-Identifier: Apache-2.0
"""Files in a tree that somebody else has filled: what is none is never opened."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from teu.linux import inside


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_text("content")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/fifo")
    os.mkfifo(tmp_path / "fifo")
    descriptor = os.open(tmp_path, os.O_PATH)
    yield descriptor
    os.close(descriptor)


def test_a_file_is_read(root: int) -> None:
    assert inside.read_file(root, "/file") == b"content" and inside.read_file(root, "file", 3) == b"con"
    with open(inside.open_file(root, "../file"), "rb") as file:
        assert file.read() == b"content"


@pytest.mark.parametrize(
    ("path", "number"),
    [("fifo", errno.EINVAL), ("link", errno.EINVAL), ("folder", errno.EISDIR), ("nothing", errno.ENOENT)],
)
def test_what_is_no_file_is_not_opened(path: str, number: int, root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2026-93320: a device of an image is one of the host, and some act on being opened."""
    flags: list[int] = []
    openat2, opened = inside.openat2, os.open

    def first(directory: int, name: str, how: int, *more: Any) -> int:
        flags.append(how)
        return openat2(directory, name, how, *more)

    def second(name: Any, how: int, *more: Any, **others: Any) -> int:
        flags.append(how)
        return opened(name, how, *more, **others)

    monkeypatch.setattr(inside, "openat2", first)
    monkeypatch.setattr(os, "open", second)
    with pytest.raises(OSError) as caught:
        inside.open_file(root, path)
    assert caught.value.errno == number
    assert inside.read_file(root, path) == b""
    assert flags and all(how & os.O_PATH for how in flags)
