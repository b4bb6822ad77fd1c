# SPDX-License-Identifier: Apache-2.0
"""cp, export, save, load, import and build: archives in both directions."""

from __future__ import annotations

import base64
import io
import json
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prepared import Raw

from teu.cli import copy
from teu.cli.builds import classic as build
from teu.cli.errors import CommandError

GO_DIRECTORY = 1 << 31


def header(name: str, mode: int, link: str = "") -> dict[str, str]:
    found = {"name": name, "mode": mode, "size": 0, "linkTarget": link}
    return {"X-Docker-Container-Path-Stat": base64.b64encode(json.dumps(found).encode()).decode()}


def packed(*entries: tuple[str, bytes | None | str], **fields: Any) -> bytes:
    """A tar: of files (bytes), folders (None) and symbolic links (str)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.mode, member.mtime = 0o640, 1000
            if content is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o750
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            else:
                member.size = len(content)
            for key, value in fields.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(content if isinstance(content, bytes) else b""))
    return out.getvalue()


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return sorted(tar.getnames())


class Body(copy.Body):
    def __init__(self, data: bytes) -> None:
        self.rest, self.size = data, 0
        self.response = type("Empty", (), {"chunk": lambda _: b""})()  # type: ignore[assignment]


# cp out of a container -------------------------------------------------------------------------------------


def test_a_folder_out_of_a_container(daemon: Any, teu: Callable[..., Any], tmp_path: Path) -> None:
    data = packed(("dir", None), ("dir/file", b"text"), ("dir/link", "file"))
    daemon.on("GET", "/containers/c/archive", Raw(data, "application/x-tar", header("dir", GO_DIRECTORY | 0o750)))
    assert teu("cp", "c:/dir", str(tmp_path / "new")).code == 0
    made = tmp_path / "new"
    assert (made / "file").read_text() == "text" and (made / "link").readlink() == Path("file")
    assert stat.S_IMODE((made / "file").stat().st_mode) == 0o640 and (made / "file").stat().st_mtime == 1000
    assert stat.S_IMODE(made.stat().st_mode) == 0o750
    assert teu("cp", "c:/dir", str(made)).code == 0
    assert (made / "dir/file").read_text() == "text"
    assert daemon.last.query == {"path": "/dir"}
    (tmp_path / "plain").touch()
    assert teu("cp", "c:/dir", str(tmp_path / "plain")).err == "cannot copy directory\n"
    assert "does not exist" in teu("cp", "c:/dir", str(tmp_path / "no/such")).err


def test_a_file_out_of_a_container(daemon: Any, teu: Callable[..., Any], tmp_path: Path) -> None:
    daemon.on("GET", "/containers/c/archive", Raw(packed(("f", b"x")), "application/x-tar", header("f", 0o640)))
    assert teu("cp", "c:/f", str(tmp_path / "g")).code == 0 and (tmp_path / "g").read_text() == "x"
    assert teu("cp", "c:/f", f"{tmp_path}/h/").err == "no such directory\n"
    assert names(teu("cp", "c:/f", "-").out.encode()) == ["f"]


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([("a/../../x", b"1")], None),
        ([("l", "/"), ("l/x", b"1")], "refusing to write through"),
        ([("f", b"1"), ("f/x", b"1")], "refusing to write through"),
        ([("d", None), ("d", b"1")], "cannot overwrite directory"),
        ([("f", b"1"), ("f", None)], "cannot overwrite non-directory"),
    ],
)
def test_nothing_is_written_outside_of_the_target(tmp_path: Path, entries: list[Any], text: str | None) -> None:
    root = tmp_path / "in/root"
    root.mkdir(parents=True)
    if text is None:
        copy.unpack(Body(packed(*entries)), str(root), "a", "", False)
    else:
        with pytest.raises(CommandError, match=text):
            copy.unpack(Body(packed(*entries)), str(root), "", "", False)
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["root"]


def test_entries_keep_owners_only_where_that_is_wanted(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("chown is for root")
    data = packed(("d", None), ("d/f", b"x"), uid=12, gid=34)
    copy.unpack(Body(data), str(tmp_path), "d", "kept", True)
    copy.unpack(Body(data), str(tmp_path), "d", "ours", False)
    assert [(tmp_path / name / "f").stat().st_uid for name in ("kept", "ours")] == [12, 0]
    assert (tmp_path / "kept").stat().st_gid == 34


def test_hard_links_and_fifos(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("d/f"))
        for name, kind, link in (("d/hard", tarfile.LNKTYPE, "d/f"), ("d/fifo", tarfile.FIFOTYPE, "")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, link, 0o600
            tar.addfile(member)
    copy.unpack(Body(out.getvalue()), str(tmp_path), "d", "x", False)
    assert (tmp_path / "x/hard").samefile(tmp_path / "x/f") and (tmp_path / "x/fifo").is_fifo()


# cp into a container ---------------------------------------------------------------------------------------


def test_a_folder_into_a_container(daemon: Any, teu: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "src/sub").mkdir(parents=True)
    (tmp_path / "src/sub/f").write_text("x")
    there = Raw(b"", headers=header("dst", GO_DIRECTORY | 0o755))
    daemon.on("HEAD", "/containers/c/archive", there)
    daemon.on("PUT", "/containers/c/archive", 200)
    assert teu("cp", str(tmp_path / "src"), "c:/dst").code == 0
    assert names(daemon.last.body) == ["src", "src/sub", "src/sub/f"]
    assert daemon.last.query == {"noOverwriteDirNonDir": "true", "path": "/dst"}
    assert teu("cp", "-a", f"{tmp_path}/src/.", "c:/dst").code == 0
    assert names(daemon.last.body) == [".", "sub", "sub/f"]
    assert daemon.last.query["copyUIDGID"] == "true"
    daemon.on("HEAD", "/containers/c/archive", Raw(b"", headers=header("dst", 0o644)))
    assert teu("cp", str(tmp_path / "src"), "c:/dst").err == "cannot copy directory\n"
    assert "not a directory" in teu("cp", str(tmp_path / "src/sub/f"), "c:/dst/").err


def test_a_link_in_the_container_is_followed_once(daemon: Any, teu: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")

    def found(request: Any) -> Raw:
        is_link = request.query["path"] == "/a/link"
        return Raw(b"", headers=header("x", 1 << 27, "real") if is_link else header("real", GO_DIRECTORY))

    daemon.on("HEAD", "/containers/c/archive", found)
    daemon.on("PUT", "/containers/c/archive", 200)
    assert teu("cp", str(tmp_path / "f"), "c:/a/link").code == 0
    assert daemon.last.query["path"] == "/a/real"


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["", "c:/x"], "source can not be empty"),
        (["a", "b"], "must specify at least one container source"),
        (["a:/x", "b:/y"], "copying between containers is not supported"),
        (["/no/such", "c:/x"], "lstat /no/such: no such file or directory"),
    ],
)
def test_cp_refused(daemon: Any, teu: Callable[..., Any], argv: list[str], text: str) -> None:
    daemon.on("HEAD", "/containers/c/archive", Raw(b"", headers=header("x", GO_DIRECTORY)))
    assert text in teu("cp", *argv).err


@pytest.mark.parametrize(
    ("path", "container", "inner"),
    [("c:/x", "c", "/x"), ("/a:b", "", "/a:b"), ("./a:b", "", "./a:b"), ("x", "", "x"), ("c:", "c", "")],
)
def test_which_paths_are_a_containers(path: str, container: str, inner: str) -> None:
    assert copy.split_path(path) == (container, inner)


@pytest.mark.parametrize(
    ("path", "cleaned"), [("/a/../b/", "/b/"), ("/a/.", "/a/."), ("/a//b", "/a/b"), ("", "."), ("/", "/")]
)
def test_ends_that_mean_something_stay(path: str, cleaned: str) -> None:
    assert copy.clean(path) == cleaned


# Images ----------------------------------------------------------------------------------------------------


def test_volumes_go_out_and_in(daemon: Any, teu: Callable[..., Any], tmp_path: Path) -> None:
    daemon.on("GET", "/volumes/v/archive", Raw(b"files"))
    daemon.on("PUT", "/volumes/v/archive", 200)
    assert teu("volume", "export", "-o", str(tmp_path / "v.tar"), "v").code == 0
    assert (tmp_path / "v.tar").read_bytes() == b"files"
    assert teu("volume", "import", "v", str(tmp_path / "v.tar")).code == 0
    assert daemon.last.body == b"files"
    assert "no such file" in teu("volume", "import", "v", str(tmp_path / "none")).err


def test_save_and_export_appear_whole(daemon: Any, teu: Callable[..., Any], tmp_path: Path) -> None:
    daemon.on("GET", "/images/get", Raw(b"archive"))
    daemon.on("GET", "/containers/c/export", Raw(b"files"))
    assert teu("save", "-o", str(tmp_path / "i.tar"), "x:1").code == 0
    assert teu("export", "-o", str(tmp_path / "c.tar"), "c").code == 0
    assert [(tmp_path / name).read_bytes() for name in ("i.tar", "c.tar")] == [b"archive", b"files"]
    assert teu("save", "x:1").out == "archive"
    assert 'directory "/no/such" does not exist' in teu("save", "-o", "/no/such/x", "x:1").err
    assert "must be a file" in teu("export", "-o", str(tmp_path), "c").err
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_load_and_import(daemon: Any, teu: Callable[..., Any], tmp_path: Path) -> None:
    daemon.on("POST", "/images/load", Raw(b'{"stream":"Loaded image: x:1\\n"}\n', "application/json"))
    (tmp_path / "i.tar").write_bytes(b"archive")
    assert teu("load", "-i", str(tmp_path / "i.tar")).out == "Loaded image: x:1\n"
    assert (daemon.last.body, daemon.last.query) == (b"archive", {"quiet": "1"})
    assert teu("load", stdin=b"piped").code == 0 and daemon.last.body == b"piped"
    assert "is a directory" in teu("load", "-i", str(tmp_path)).err
    daemon.on("POST", "/images/create", Raw(b'{"status":"sha256:1"}\n', "application/json"))
    assert teu("import", "-c", "CMD x", "-m", "why", "-", "y:2", stdin=b"root").out == "sha256:1\n"
    assert daemon.last.body == b"root"
    assert daemon.last.query == {"fromSrc": "-", "repo": "y", "tag": "2", "message": "why", "changes": "CMD x"}
    teu("import", "https://h/x.tar")
    assert daemon.last.query["fromSrc"] == "https://h/x.tar"


# build -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "context"
    (made / "sub/deep").mkdir(parents=True)
    for name in ("Dockerfile", "keep.txt", "drop.log", "sub/drop.log", "sub/keep.log", "sub/deep/x", ".dockerignore"):
        (made / name).write_text(name)
    (made / ".dockerignore").write_text("# no\n**/*.log\n!sub/keep.log\nsub/deep\nDockerfile\n")
    return made


def test_the_context_is_what_is_not_ignored(folder: Path) -> None:
    data = b"".join(build.context(str(folder), "Dockerfile", ""))
    assert names(data) == [".dockerignore", "Dockerfile", "keep.txt", "sub", "sub/keep.log"]


def test_a_dockerfile_from_outside_is_added(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("FROM x")
    dockerfile, remote, body = build.find_context(str(folder), str(tmp_path / "other"))
    assert dockerfile.startswith(".dockerfile.") and not remote and body is not None
    assert dockerfile in names(b"".join(body))
    assert build.find_context(str(folder), "")[0] == "Dockerfile"
    assert build.find_context("https://h/x.git", "D")[:2] == ("D", "https://h/x.git")
    for where, file, text in ((str(folder), "/no/such", "evaluate symlinks"), ("/no/such", "", "not found")):
        with pytest.raises(CommandError, match=text):
            build.find_context(where, file)


def test_a_build(daemon: Any, teu: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    body = b'{"stream":"Step 1\\n"}\n{"aux":{"ID":"sha256:1"}}\n'
    daemon.on("POST", "/build", Raw(body, "application/json"))
    argv = ["--build-arg", "A=1", "-t", "x:1", "--label", "k=v", "--no-cache", "--iidfile", str(tmp_path / "id")]
    done = teu("build", *argv, str(folder))
    assert (done.code, done.out) == (0, "Step 1\n")
    assert (tmp_path / "id").read_text() == "sha256:1"
    query = daemon.last.query
    assert (query["dockerfile"], query["t"], query["nocache"], query["rm"]) == ("Dockerfile", "x:1", "1", "1")
    assert json.loads(query["buildargs"]) == {"A": "1"} and json.loads(query["labels"]) == {"k": "v"}
    assert "keep.txt" in names(daemon.last.body)
    daemon.on("POST", "/build", Raw(b'{"stream":"sha256:2\\n"}\n', "application/json"))
    assert teu("build", "-q", str(folder)).out == "sha256:2\n"
    daemon.on("POST", "/build", Raw(b'{"error":"no such step"}\n', "application/json"))
    assert teu("build", "-q", str(folder)).err == "no such step\n"
    daemon.on("POST", "/build", (501, "no"))
    assert "this engine has no builder" in teu("build", "-", stdin=b"tar").err
