# SPDX-License-Identifier: Apache-2.0
"""Volumes as archives, with the real visitor: what comes out of one goes into another."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import threading
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest

from teu.engine.api.messages import Query
from teu.engine.api.routes.volumes import export_volume, import_volume, rename_volume
from teu.engine.core.errors import BadRequest, Conflict, EngineError, NotFound
from teu.engine.engine import Engine
from teu.engine.files import volumes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    made = parts.engine(tmp_path)
    made.volumes.start()
    return made


def filled(engine: Engine, name: str) -> Path:
    root = Path(engine.volumes.ensure(name).mountpoint)
    os.chown(root, 999, 998)
    root.chmod(0o2770)
    (root / "sub").mkdir(mode=0o711)
    (root / "sub/file").write_text("kept\n")
    os.chown(root / "sub/file", 33, 34)
    os.link(root / "sub/file", root / "same")
    (root / "link").symlink_to("/etc/passwd")
    os.mkfifo(root / "pipe", 0o640)
    os.utime(root / "sub", ns=(0, 1_600_000_000_123_456_789))
    os.utime(root, ns=(0, 1_500_000_000_000_000_000))
    return root


def test_it_comes_back_as_it_was(engine: Engine, tmp_path: Path) -> None:
    source = filled(engine, "one")
    archive = b"".join(volumes.pack(engine, "one"))
    target = Path(engine.volumes.ensure("two").mountpoint)
    (target / "link").write_text("in the way")
    volumes.unpack(engine, "two", io.BytesIO(archive))

    def known(path: Path) -> tuple[Any, ...]:
        status = path.lstat()
        return status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_nlink

    for name in (".", "sub", "sub/file", "same", "pipe"):
        assert known(target / name) == known(source / name), name
    assert os.readlink(target / "link") == "/etc/passwd"
    assert (target / "sub/file").read_text() == "kept\n" and (target / "same").samefile(target / "sub/file")
    with tarfile.open(fileobj=io.BytesIO(archive)) as names:
        assert names.getnames()[0] == "." and "./sub/file" in names.getnames()


def test_attributes_of_users_are_in_it(engine: Engine) -> None:
    source = filled(engine, "one")
    try:
        for path in (source, source / "sub", source / "sub/file"):
            os.setxattr(path, "user.colour", b"blue\0")
    except OSError:
        pytest.skip("this file system keeps no attributes of users")
    target = Path(engine.volumes.ensure("two").mountpoint)
    volumes.unpack(engine, "two", io.BytesIO(b"".join(volumes.pack(engine, "one"))))
    for path in (target, target / "sub", target / "sub/file"):
        assert os.getxattr(path, "user.colour") == b"blue\0"


def test_an_archive_that_leads_out(engine: Engine, tmp_path: Path) -> None:
    root = Path(engine.volumes.ensure("one").mountpoint)
    (root / "out").symlink_to(tmp_path)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        entry = tarfile.TarInfo("out/file")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    data.seek(0)
    with pytest.raises(EngineError, match="out/file: No such file"):
        volumes.unpack(engine, "one", data)  # the volume is the root, and there is no such folder in it
    assert not (tmp_path / "file").exists()


def test_what_is_no_archive(engine: Engine) -> None:
    engine.volumes.ensure("one")
    with pytest.raises(EngineError, match="invalid tar archive"):
        volumes.unpack(engine, "one", io.BytesIO(b"nothing of the kind" * 100))
    with pytest.raises(NotFound):
        next(volumes.pack(engine, "nobody"))
    asked: Any = type("Asked", (), {})
    with pytest.raises(NotFound):
        export_volume(engine, asked, "nobody")  # before the answer has a status
    answer = export_volume(engine, asked, "one")
    assert answer.chunks is not None and b"./" in b"".join(answer.chunks)
    request: Any = type("Asked", (), {"body": io.BytesIO(b""), "query": Query("name=")})
    with pytest.raises(NotFound):
        import_volume(engine, request, "nobody")
    with pytest.raises(BadRequest):
        rename_volume(engine, request, "one")


def test_it_stays_while_it_is_read(engine: Engine) -> None:
    """And who goes in the middle leaves nothing."""
    root = Path(engine.volumes.ensure("one").mountpoint)
    (root / "large").write_bytes(bytes(4 << 20))
    pieces = volumes.pack(engine, "one")
    next(pieces)
    with pytest.raises(Conflict, match=r"volume is in use - \[tar "):
        engine.volumes.remove("one")
    before = threading.active_count()
    pieces.close()  # type: ignore[attr-defined]
    engine.volumes.remove("one")
    assert threading.active_count() <= before
    assert stat.S_ISDIR(os.stat(engine.volumes.root).st_mode)
