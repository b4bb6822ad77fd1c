# SPDX-License-Identifier: Apache-2.0
"""The files of a container: cp, export, commit, diff, sizes; what clients that stand still may hold up."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import http.client
import io
import json
import lzma
import os
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engine
import pytest
import whole
import zstandard
from engine import docker, out

TAR = "application/x-tar"


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    engine.need_busybox()


@pytest.fixture
def box(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a container, which is gone afterwards."""
    name = f"files-{os.getpid()}"
    yield name
    engine.remove(name)


def connect() -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(100)
    connection.sock.connect(engine.SOCKET)
    return connection


def ask(method: str, target: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = connect()
    try:
        headers = {} if body is None else {"Content-Type": TAR}
        connection.request(method, f"/v1.45/containers/{target}", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def put(name: str, path: str, *entries: tarfile.TarInfo, end: bytes = bytes(1024)) -> tuple[int, str]:
    """An archive of entries without data."""
    data = b"".join(entry.tobuf(tarfile.PAX_FORMAT) for entry in entries) + end
    status, said = ask("PUT", f"{name}/archive?path={path}", data)
    return status, json.loads(said)["message"] if said else ""


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **headers: str) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, link, 0o755
    made.pax_headers = {key.replace("__", "."): value for key, value in headers.items()}
    return made


def got(name: str, path: str = "", target: str = "archive") -> dict[str, tarfile.TarInfo]:
    status, data = ask("GET", f"{name}/{target}" + (f"?path={path}" if path else ""))
    assert status == 200, data
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: member for member in archive}


def succeeds(name: str, *command: str) -> bool:
    return docker("exec", name, *command, check=False).returncode == 0


def test_deep_folders_do_not_stop_anybody(box: str) -> None:
    """A container does not keep itself from being looked at."""
    depth = 5000
    out("create", "--name", box, *engine.HOST, engine.IMAGE, "true")
    assert put(box, "/tmp", entry("/".join(["d"] * depth) + "/f")) == (200, "")
    deepest = f"/{'d' * depth}/f"
    for target in ("archive?path=/tmp", "export"):
        status, data = ask("GET", f"{box}/{target}")
        assert status == 200
        assert data.replace(b"/", b"").count(b"tmp" + b"d" * depth + b"f") == 1
    paths = [row["Path"] for row in json.loads(ask("GET", f"{box}/changes")[1])]
    assert len(paths) == depth + 2
    assert paths[-1].replace("/", "") == "tmp" + deepest.replace("/", "")
    assert ask("GET", f"{box}/json?size=1")[0] == 200


def test_a_container_that_runs_is_copied_whole(box: str, tmp_path: Path) -> None:
    """Without what the kernel shows in it: that is in nobody's files."""
    flags = (*engine.HOST, "-v", "/data", "--tmpfs", "/run")
    engine.detached(box, "sh", "-c", "echo one >/data/one; echo two >/run/two; sleep 1000", flags=flags)
    engine.eventually("it has written", lambda: succeeds(box, "test", "-e", "/run/two"))
    whole.teu("cp", f"{box}:/", str(tmp_path / "all"))
    assert (tmp_path / "all/bin/busybox").is_file()
    assert (tmp_path / "all/data/one").read_text() == "one\n"
    assert (tmp_path / "all/run/two").read_text() == "two\n"
    for folder in ("proc", "sys", "dev"):
        assert os.listdir(tmp_path / "all" / folder) == []
        assert list(got(box, f"/{folder}"))[0] == folder
    assert list(got(box, "/proc")) == ["proc"]
    assert ask("HEAD", f"{box}/archive?path=/proc/version")[0] == 404
    assert ask("HEAD", f"{box}/archive?path=/sys/kernel/")[0] == 404
    assert put(box, "/proc", entry("x"))[0] == 400
    assert "proc" in got(box, target="export")


def test_what_a_container_has_before_its_first_start(box: str, tmp_path: Path) -> None:
    out("create", "--name", box, *engine.HOST, "-w", "/a/c", engine.IMAGE, "pwd")
    assert list(got(box, "/etc/hosts")) == ["hosts"]
    (tmp_path / "file").write_text("text")
    out("cp", str(tmp_path / "file"), f"{box}:/a/c")
    assert out("diff", box).splitlines() == ["A /a", "A /a/c", "A /a/c/file"]
    assert out("start", "-a", box) == "/a/c\n"
    assert "etc/hosts" in got(box, target="export")
    failed = docker("create", "-w", "/etc/passwd", engine.IMAGE, check=False)
    assert failed.returncode == 1 and "Cannot mkdir: /etc/passwd is not a directory" in failed.stderr


def test_hard_links_stay_hard_links(box: str) -> None:
    """Those between links, too."""
    make = "cd /tmp; ln -s target l1; ln l1 l2; echo x >f1; ln f1 f2; mkfifo p1; ln p1 p2"
    out("run", "--name", box, *engine.HOST, engine.IMAGE, "sh", "-c", make)
    for found in (got(box, "/tmp"), got(box, target="export")):
        for name, kind in (("l", tarfile.SYMTYPE), ("f", tarfile.REGTYPE), ("p", tarfile.FIFOTYPE)):
            assert found[f"tmp/{name}1"].type == kind
            assert (found[f"tmp/{name}2"].type, found[f"tmp/{name}2"].linkname) == (tarfile.LNKTYPE, f"tmp/{name}1")


def test_compressed_archives(box: str) -> None:
    engine.detached(box, "sleep", "1000")
    ways = {"bzip2": bz2.compress, "gzip": gzip.compress, "xz": lzma.compress, "zstd": zstandard.compress}
    for name, compress in ways.items():
        data = compress(entry(name).tobuf(tarfile.PAX_FORMAT) + bytes(200_000))
        assert ask("PUT", f"{box}/archive?path=/tmp", data) == (200, b"")
        if name != "zstd":  # whose reader does not tell that padding is missing
            status, said = ask("PUT", f"{box}/archive?path=/tmp", data[:-9])
            assert status == 500 and b"invalid tar archive" in said
    assert out("exec", box, "ls", "/tmp").split() == list(ways)


def test_holes_stay_holes(box: str) -> None:
    """A few bytes do not fill the disk."""
    engine.detached(box, "sleep", "1000")
    size = 1 << 40
    sparse = entry("sparse", GNU__sparse__size=str(size), GNU__sparse__map="0,1,1099511627775,1")
    sparse.size = 2
    assert put(box, "/tmp", sparse, end=b"ab" + bytes(510 + 1024)) == (200, "")
    found = os.stat(f"/proc/{engine.process_of(box)}/root/tmp/sparse")
    assert found.st_size == size and found.st_blocks * 512 < 1 << 20


def test_an_archive_follows_the_links_of_the_container(box: str) -> None:
    """Inside it: absolute ones, those that climb, and those that an earlier entry has made."""
    engine.detached(box, "sh", "-c", "mkdir -p /there/deep /place; ln -s /there /place/way; sleep 1000")
    engine.eventually("it is made", lambda: succeeds(box, "test", "-L", "/place/way"))
    entries = (
        entry("way/one"),
        entry("way/deep/two"),
        entry("up", tarfile.SYMTYPE, "../../../there/deep"),
        entry("up/three"),
        entry("hard", tarfile.LNKTYPE, "way/one"),
        entry("new/folder/four"),
    )
    assert put(box, "/place", *entries) == (200, "")
    found = out("exec", box, "find", "/there", "/place").split()
    assert {"/there/one", "/there/deep/two", "/there/deep/three", "/place/hard", "/place/new/folder/four"} <= set(found)
    # The folder itself is as it is; a folder and a file do not take each other's place unasked.
    assert put(box, "/place", entry(".", tarfile.DIRTYPE)) == (200, "")
    assert put(box, "/place&noOverwriteDirNonDir=1", entry("new"))[0] == 500
    assert put(box, "/place&noOverwriteDirNonDir=1", entry("hard", tarfile.DIRTYPE))[0] == 500
    assert put(box, "/place", entry("new")) == (200, "")
    assert out("exec", box, "find", "/place/new").split() == ["/place/new"]


# -- clients that stand still ---------------------------------------------------------------------------------


@contextlib.contextmanager
def half_sent(name: str) -> Iterator[http.client.HTTPConnection]:
    """An upload of which the first half has come, and no more."""
    connection = connect()
    header = entry("half").tobuf(tarfile.PAX_FORMAT)
    connection.putrequest("PUT", f"/v1.45/containers/{name}/archive?path=/tmp")
    connection.putheader("Content-Type", TAR)
    connection.putheader("Content-Length", str(1 << 30))
    connection.endheaders(header)
    try:
        engine.eventually("it has begun", lambda: b"half" in ask("GET", f"{name}/archive?path=/tmp")[1])
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def half_read(name: str) -> Iterator[http.client.HTTPResponse]:
    """A download of which the first bytes were read, and no more."""
    connection = connect()
    connection.request("GET", f"/v1.45/containers/{name}/export")
    answer = connection.getresponse()
    assert len(answer.read(512)) == 512
    try:
        yield answer
    finally:
        connection.close()


def visitors() -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and any(word.endswith("/visitor.py") for word in whole.argv_of(int(process.name))):
            found.append(int(process.name))
    return found


STILL: dict[str, Callable[[str], Any]] = {"upload": half_sent, "download": half_read}


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize("way", STILL)
def test_a_client_that_stands_still_does_not_hold_up_the_container(box: str, way: str, running: bool) -> None:
    """Nor does a start come upon another mount of the writable layer, which overlayfs does not define."""
    big = "head -c 30000000 /dev/zero >/big; exec sleep 1000"
    engine.detached(box, "sh", "-c", big)
    engine.eventually("it is large", lambda: succeeds(box, "pidof", "sleep"))
    if not running:
        out("kill", box)
    with STILL[way](box):
        engine.eventually("it is at work", visitors)
        if running:
            out("stop", "-t", "0", box)
        out("start", box, timeout=30)
        if running or way == "upload":  # the other one reads a mount of its own
            assert not visitors()
        assert out("exec", box, "echo", "well") == "well\n"
    with STILL[way](box):
        out("rm", "-f", box, timeout=30)
        assert docker("inspect", box, check=False).returncode == 1
        engine.eventually("nobody works on its files", lambda: not visitors())


def test_a_start_waits_for_a_copy_that_moves(box: str) -> None:
    out("create", "--name", box, *engine.HOST, engine.IMAGE, "wc", "-c", "/tmp/slow")
    size, piece = 2_000_000, 20_000
    header = entry("slow")
    header.size = size
    connection = connect()
    connection.putrequest("PUT", f"/v1.45/containers/{box}/archive?path=/tmp")
    connection.putheader("Content-Type", TAR)
    data = header.tobuf(tarfile.PAX_FORMAT) + bytes(size + -size % 512 + 1024)
    connection.putheader("Content-Length", str(len(data)))
    connection.endheaders(data[:512])
    engine.eventually("it has begun", lambda: visitors())
    said: list[str] = []
    starter = threading.Thread(target=lambda: said.append(out("start", "-a", box)))
    starter.start()
    for at in range(512, len(data), piece):
        connection.send(data[at : at + piece])
        time.sleep(0.01)
    assert connection.getresponse().status == 200
    connection.close()
    starter.join()
    assert said == [f"{size} /tmp/slow\n"]


def test_two_copies_at_once_into_a_container_that_does_not_run(box: str) -> None:
    """One mount serves both, and is gone after the last."""
    out("create", "--name", box, *engine.HOST, engine.IMAGE, "ls", "/tmp")
    with half_sent(box):
        assert put(box, "/tmp", entry("other")) == (200, "")
    engine.eventually("nobody works on its files", lambda: not visitors())
    assert out("start", "-a", box).split() == ["half", "other"]
