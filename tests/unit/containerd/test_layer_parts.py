# SPDX-License-Identifier: Apache-2.0
"""Parts of the layers' worker, called in this process: names, mounts, files made by threads, changes."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import layertools as tools
import pytest
from containerd_parts import root_only

from teu.containerd.layers import compare, files, mounting, unpack
from teu.oci import tar

# Names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("etc/passwd", "etc/passwd"),
        ("./etc/", "etc"),
        ("/etc//passwd", "etc/passwd"),
        ("a/./b/../c", "a/c"),
        ("a/..", ""),
        ("..a/b..", "..a/b.."),
        (".hidden", ".hidden"),
    ],
)
def test_names_are_cleaned(name: str, clean: str) -> None:
    assert unpack.clean(name) == clean


@pytest.mark.parametrize("name", ["..", "a/../../b", "/..", "a\0b"])
def test_names_that_no_layer_may_have(name: str) -> None:
    with pytest.raises(unpack.LayerError):
        unpack.clean(name)


# Mounts -----------------------------------------------------------------------------------------------------


def test_a_lone_bind_is_its_source(tmp_path: Path) -> None:
    """Nothing is mounted, so that no capability is needed either."""
    bind = {"type": "bind", "source": "/some/tree", "options": ["rbind", "rw"]}
    assert mounting.mount_all([bind], str(tmp_path)) == "/some/tree"
    assert mounting.mount_all([], str(tmp_path / "made")) == str(tmp_path / "made")
    assert (tmp_path / "made").is_dir()


@pytest.mark.parametrize(
    ("mounts", "found"),
    [
        ([{"type": "bind", "source": "/u", "options": ["rbind", "rw"]}], ("/u", [])),
        ([{"type": "bind", "source": "/l", "options": ["rbind", "ro"]}], ("", ["/l"])),
        ([{"type": "overlay", "source": "o", "options": ["upperdir=/u", "lowerdir=/b:/a"]}], ("/u", ["/b", "/a"])),
        ([{"type": "overlay", "source": "o", "options": ["lowerdir=/b:/a"]}], ("", ["/b", "/a"])),
        ([], ("", [])),
        ([{"type": "bind", "source": "/x"}, {"type": "bind", "source": "/y"}], ("", [])),
    ],
)
def test_folders_of_an_overlay(mounts: list[dict[str, object]], found: tuple[str, list[str]]) -> None:
    assert mounting.overlay_directories(mounts) == found


def test_long_options_become_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mount(2) takes one page of options: folders are told from the one that they have in common."""
    monkeypatch.chdir(tmp_path)
    top = tmp_path / "snapshots"
    top.mkdir()
    options = [f"lowerdir={top}/2/fs:{top}/1/fs", f"upperdir={top}/3/fs", f"workdir={top}/3/work", "index=off"]
    assert mounting._relative(options) == ["lowerdir=2/fs:1/fs", "upperdir=3/fs", "workdir=3/work", "index=off"]
    assert Path.cwd() == top


def test_more_layers_than_a_page_can_name() -> None:
    lowers = ":".join(f"/{number:0100}" for number in range(100))
    one = {"type": "overlay", "source": "overlay", "options": [f"lowerdir={lowers}"]}
    with pytest.raises(OSError, match="longer than a page") as caught:
        mounting._mount_one(one, "/nowhere")
    assert caught.value.errno == errno.E2BIG


# Files in threads -------------------------------------------------------------------------------------------


def entry(name: str, **fields: Any) -> tar.Entry:
    made = tar.Entry()
    made.name, made.mode, made.uid, made.gid = name, 0o640, os.getuid(), os.getgid()
    for field, value in fields.items():
        setattr(made, field, value)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[unpack.Parent]:
    parent = unpack.Parent(os.open(tmp_path, os.O_PATH | os.O_DIRECTORY))
    yield parent
    os.close(parent.fd)


def test_settled_files_are_there_with_all_that_they_have(folder: unpack.Parent, tmp_path: Path) -> None:
    made = files.Files()
    for number in range(files.BATCH_FILES * 2 + 3):
        one = entry(f"d/{number}", mtime=number * 1_000_000_007)
        made.add(files.NewFile(one, folder.fd, str(number), False, b"%d" % number), folder.identity)
    assert made.waits_for(folder.identity, "3")
    made.settle()
    assert not made.waits_for(folder.identity, "3")
    assert len(os.listdir(tmp_path)) == files.BATCH_FILES * 2 + 3
    status = (tmp_path / "5").stat()
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o640, 5_000_000_035)
    assert (tmp_path / "66").read_bytes() == b"66"


def test_the_failure_of_a_file_names_it(folder: unpack.Parent, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("before")
    made = files.Files()
    made.add(files.NewFile(entry("etc/taken"), folder.fd, "taken", False, b"after"), folder.identity)
    with pytest.raises(OSError, match="unpack 'etc/taken': File exists"):
        made.settle()
    assert (tmp_path / "taken").read_text() == "before"


def test_a_full_disk_is_told_as_one() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert files.explained(full, entry("x")) is full
    told = files.explained(OSError(errno.EPERM, "Operation not permitted"), entry("x"))
    assert str(told) == "[Errno 1] unpack 'x': Operation not permitted"
    assert files.explained(told, entry("y")) is told


# Changes ----------------------------------------------------------------------------------------------------


def changes(left: Path | None, right: Path, tmp_path: Path) -> tarfile.TarFile:
    """The layer of what `right` has changed over `left`, compared entry by entry in this process."""
    out = io.BytesIO()
    sink = compare.streams.Deflated(lambda data: out.write(data), "")
    compare._Both(compare._Writer(sink), str(left) if left else "", str(right)).run()
    sink.write(tar.END)
    sink.finish()
    out.seek(0)
    return tarfile.open(fileobj=out)


def test_what_has_not_changed_is_not_told(tmp_path: Path) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    for tree in (left, right):
        (tree / "same/deep").mkdir(parents=True)
        for name in ("same/deep/file", "gone", "changed"):
            (tree / name).write_text(name)
            os.utime(tree / name, ns=(5, 5))
    (right / "gone").unlink()
    (right / "changed").write_text("anything")
    (right / "new").symlink_to("same")
    with changes(left, right, tmp_path) as archive:
        found = {member.name: member for member in archive}
    assert sorted(found) == [".wh.gone", "changed", "new"]
    assert found["new"].linkname == "same"
    with changes(None, right, tmp_path) as archive:
        assert sorted(member.name for member in archive) == [
            "changed",
            "new",
            "same",
            "same/deep",
            "same/deep/file",
        ]


def test_folders_above_a_change_are_told_and_no_others(tmp_path: Path) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    for tree in (left, right):
        (tree / "a/b").mkdir(parents=True)
        (tree / "c").mkdir()
    (right / "a/b/new").touch()
    with changes(left, right, tmp_path) as archive:
        assert [member.name for member in archive] == ["a", "a/b", "a/b/new"]


def test_hard_links_and_sockets(tmp_path: Path) -> None:
    """The second name is a link to the first; a socket is of use to its process alone."""
    import socket

    right = tmp_path / "right"
    right.mkdir()
    (right / "a").write_text("once")
    os.link(right / "a", right / "b")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(right / "s"))
        with changes(None, right, tmp_path) as archive:
            found = {member.name: member for member in archive}
    assert sorted(found) == ["a", "b"]
    assert found["b"].islnk() and found["b"].linkname == "a"


@root_only
def test_an_upper_folder_is_the_answer_itself(tmp_path: Path) -> None:
    """Whiteouts and opaque marks of overlayfs become those of the layer format; a folder that was only copied up by the
    kernel is no change."""
    lower, upper, out = tmp_path / "lower", tmp_path / "upper", tmp_path / "layer"
    for tree in (lower, upper):
        (tree / "copied-up").mkdir(parents=True)
    (upper / "opaque").mkdir()
    os.setxattr(upper / "opaque", "trusted.overlay.opaque", b"y")
    os.mknod(upper / "gone", 0o020000, 0)
    options = [f"lowerdir={lower}", f"upperdir={upper}", f"workdir={tmp_path}/work"]
    job = {
        "left": [{"type": "bind", "source": str(lower), "options": ["rbind", "ro"]}],
        "right": [{"type": "overlay", "source": "overlay", "options": options}],
        "target": str(tmp_path / "none"),
        "compression": "gzip",
        "out": os.open(out, os.O_WRONLY | os.O_CREAT),
    }
    answer = compare.run(json.loads(json.dumps(job)))
    with tarfile.open(out) as archive:
        assert sorted(archive.getnames()) == [".wh.gone", "opaque", "opaque/.wh..wh..opq"]
    import gzip

    content = gzip.decompress(out.read_bytes())
    packed = out.read_bytes()
    assert answer == {
        "digest": tools.digest(content),
        "size": len(content),
        "blob": tools.digest(packed),
        "length": len(packed),
        "parts": [],
    }


@pytest.mark.parametrize("compression", ["", "gzip"])
def test_a_sink_that_fails_at_its_last_byte_says_so(compression: str) -> None:
    """A compressed stream of little data is written at its end only."""

    def refuse(data: bytes) -> None:
        raise OSError(errno.EPIPE, "nobody reads")

    sink = compare.streams.Deflated(refuse, compression)
    sink.write(b"little")
    with pytest.raises(OSError, match="nobody reads"):
        sink.finish()
