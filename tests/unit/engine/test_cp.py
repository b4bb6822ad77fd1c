# SPDX-License-Identifier: Apache-2.0
"""cp and export by the visitor, on a folder that stands for a container's root. Needs root."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest

from teu.engine.containers.model import Container
from teu.engine.core.errors import EngineError, NotFound
from teu.engine.engine import Engine
from teu.engine.files import cp, rootfs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to confine a visitor")


class Box:
    def __init__(self, engine: Engine, container: Container, root: Path) -> None:
        self.engine = engine
        self.container = container
        self.root = root

    def got(self, path: str, whole: bool = False) -> dict[str, tarfile.TarInfo]:
        data = b"".join(cp.pack(self.engine, self.container, path, whole))
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            return {member.name: member for member in archive}

    def put(self, path: str, *entries: tuple[str, bytes], owner: tuple[int, int] | None = None) -> None:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            for name, content in entries:
                entry = tarfile.TarInfo(name)
                entry.size, entry.uid, entry.gid = len(content), 5, 6
                archive.addfile(entry, io.BytesIO(content))
        data.seek(0)
        cp.unpack(self.engine, self.container, path, data, False, owner)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root\n")
    (root / "etc/link").symlink_to("/etc/passwd")
    (root / "out").symlink_to("/../../..")
    os.link(root / "etc/passwd", root / "etc/same")

    @contextlib.contextmanager
    def opened(*_: Any, **__: Any) -> Iterator[int]:
        descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    monkeypatch.setattr(rootfs, "opened", opened)
    monkeypatch.setattr(rootfs, "snapshot", opened)
    engine = parts.engine(tmp_path)
    return Box(engine, parts.container(engine, "web"), root)


def test_a_file_is_described(box: Box) -> None:
    found = cp.describe(box.engine, box.container, "/etc/passwd")
    assert (found["name"], found["size"], found["linkTarget"]) == ("passwd", 5, "")
    link = cp.describe(box.engine, box.container, "/etc/link")
    assert (link["name"], link["linkTarget"]) == ("link", "/etc/passwd")
    with pytest.raises(NotFound, match="Could not find the file /nothing in container web"):
        cp.describe(box.engine, box.container, "/nothing")


def test_a_folder_comes_with_all_that_is_in_it(box: Box) -> None:
    found = box.got("/etc")
    assert set(found) == {"etc", "etc/passwd", "etc/link", "etc/same"}
    assert found["etc/link"].linkname == "/etc/passwd"
    kinds = {found["etc/passwd"].type, found["etc/same"].type}
    assert kinds == {tarfile.REGTYPE, tarfile.LNKTYPE}


def test_an_export_is_the_whole_root(box: Box) -> None:
    assert {"etc", "etc/passwd", "out"} <= {name.rstrip("/") for name in box.got("/", whole=True)}


def test_what_is_put_there_is_there(box: Box) -> None:
    box.put("/etc", ("new", b"text"), ("sub/deep", b"deep"))
    assert (box.root / "etc/new").read_bytes() == b"text"
    assert (box.root / "etc/sub/deep").read_bytes() == b"deep"
    status = (box.root / "etc/new").stat()
    assert (status.st_uid, status.st_gid) == (5, 6)
    box.put("/etc", ("owned", b""), owner=(7, 8))
    status = (box.root / "etc/owned").stat()
    assert (status.st_uid, status.st_gid, stat.S_ISREG(status.st_mode)) == (7, 8, True)
    assert box.container.touched


def test_no_link_leads_out_of_the_root(box: Box) -> None:
    assert cp.describe(box.engine, box.container, "/out/etc/passwd")["size"] == 5
    box.put("/out", ("inside", b"x"))
    assert (box.root / "inside").read_bytes() == b"x"
    for name in ("../escaped", "/../escaped"):
        with contextlib.suppress(EngineError):
            box.put("/etc", (name, b"x"))
    assert not (box.root.parent / "escaped").exists()


def test_where_nothing_is_nothing_is_put(box: Box) -> None:
    with pytest.raises(NotFound):
        box.put("/nowhere", ("x", b"x"))
    with pytest.raises(EngineError):
        box.put("/etc/passwd", ("x", b"x"))
    assert sorted(os.listdir(box.root)) == ["etc", "out"]


def test_of_a_removed_container_nothing_is_seen(box: Box) -> None:
    box.container.removed = True
    with pytest.raises(NotFound, match="No such container: web"):
        cp.describe(box.engine, box.container, "/etc")
