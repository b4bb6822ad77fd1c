# SPDX-License-Identifier: Apache-2.0
"""sources.http with a real server on loopback."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fakeworker import Asker, Worker
from tunnel import client

from teu.api.buildkit import gateway_pb2
from teu.api.buildkit.session import secrets_pb2, upload_pb2
from teu.buildkit.core import errors
from teu.buildkit.llb.platforms import host
from teu.buildkit.session.manager import Manager
from teu.buildkit.sources import download
from teu.buildkit.sources import http as source

DATA = b"hello\n" * 1000
DATE = "Thu, 02 Jan 2020 03:04:05 GMT"
SECONDS = 1577934245


class Handler(BaseHTTPRequestHandler):
    answer: Callable[[Any], None]
    seen: list[dict[str, str]]

    def do_GET(self) -> None:
        self.seen.append({"path": self.path, **{key.lower(): value for key, value in self.headers.items()}})
        type(self).answer(self)

    def give(self, data: bytes = DATA, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers and status != 304:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status != 304:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


class Served:
    def __init__(self) -> None:
        self.handler = type("Own", (Handler,), {"seen": [], "answer": staticmethod(lambda one: one.give())})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        self.server.socket.settimeout(5)  # select may tell of one who has gone again: accept would wait for ever
        self.server.daemon_threads = True
        self.place = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answers(self, answer: Callable[[Any], None]) -> list[dict[str, str]]:
        self.handler.answer = staticmethod(answer)  # type: ignore[assignment]
        self.handler.seen.clear()
        return self.handler.seen


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    (tmp_path / "worker").mkdir()
    return Worker(tmp_path / "worker")


def opened(worker: Worker, text: str, sessions: Manager | None = None, size: int = 1 << 30, **attributes: str) -> Any:
    given = {f"http.{key.replace('_', '.')}": value for key, value in attributes.items()}
    downloads = source.Downloads(worker, sessions or Manager(), "http", size)  # type: ignore[arg-type]
    return downloads.open(text, given, host())


def sha(data: bytes = DATA) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_file(served: Served, worker: Worker) -> None:
    served.answers(lambda one: one.give(Last_Modified=DATE))
    asker = Asker()
    one = opened(worker, f"{served.place}/a/file.txt?x=1")
    key = one.key(asker)
    assert key.pin == sha()
    snapshot = one.snapshot(asker)
    (path,) = snapshot.path.iterdir()
    assert (path.name, path.read_bytes()) == ("file.txt", DATA)
    assert path.stat().st_mode & 0o7777 == 0o600
    assert path.stat().st_mtime == SECONDS
    assert len(served.handler.seen) == 1
    assert asker.told[-1] == ("downloading file.txt", len(DATA), len(DATA), "downloading", True)
    # BuildKit's own key of this file.
    written = f'{{"Filename":"file.txt","Perm":0,"UID":0,"GID":0,"Checksum":"{sha()}","LastModTime":"{DATE}"}}'
    assert key.key == sha(written.encode())


def test_name_mode_and_owner(served: Served, worker: Worker) -> None:
    one = opened(worker, f"{served.place}/x", filename="other", perm="0755", uid="7", gid="0x8")
    snapshot = one.snapshot(Asker())
    status = (snapshot.path / "other").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime) == (0o755, 7, 8, 0)
    for key, value in (("perm", "x"), ("perm", "010000"), ("uid", "-1"), ("gid", "4294967295")):
        with pytest.raises(errors.InvalidArgument):
            opened(worker, f"{served.place}/x", **{key: value})


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ('attachment; filename="a b.txt"', "a b.txt"),
        ("attachment; filename=plain", "plain"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename=".."', "download"),
        ('attachment; filename="."', "download"),
        ('attachment; filename="/"', "url-name"),
        ('attachment; filename="a/"', "url-name"),
        ("attachment; filename*=UTF-8''%e2%82%ac.txt", "€.txt"),
        ("attachment; filename*=UTF-8''..%2f..%2fx", "x"),
        ('attachment; filename="a\x7fb"', "download"),
        ("attachment", "url-name"),
        ('attachment; filename="' + "x" * 300 + '"', "download"),
    ],
)
def test_names_that_a_server_says(said: str, name: str) -> None:
    wanted = source.Wanted("http://host/dir/url-name")
    assert source.file_name(wanted, said) == name


def test_names_of_addresses() -> None:
    for url, name in (
        ("http://host", "download"),
        ("http://host/", "download"),
        ("http://host/..", "download"),
        ("http://host/a%2f..%2f..%2fb", "b"),
        ("http://host/a%00b", "download"),
        ("http://host/x/", "x"),
    ):
        assert source.file_name(source.Wanted(url)) == name, url
    assert source.file_name(source.Wanted("http://host/x", filename="../../y")) == "y"


def test_a_name_leads_nowhere(served: Served, worker: Worker) -> None:
    served.answers(lambda one: one.give(Content_Disposition='attachment; filename="../../../evil"'))
    snapshot = opened(worker, f"{served.place}/x").snapshot(Asker())
    assert [path.name for path in snapshot.path.iterdir()] == ["evil"]
    assert not list(worker.folder.parent.glob("evil"))


def test_it_is_asked_whether_it_is_still_that(served: Served, worker: Worker) -> None:
    def answer(one: Any) -> None:
        if one.headers.get("If-None-Match") == '"v1"':
            one.give(status=304)
        else:
            one.give(ETag='W/"v1"', Last_Modified=DATE)

    seen = served.answers(answer)
    first = opened(worker, f"{served.place}/x")
    key = first.key(Asker())
    again = opened(worker, f"{served.place}/x")
    assert again.key(Asker()) == key
    assert again.snapshot(Asker()).id == first.snapshot(Asker()).id
    assert [one.get("if-none-match") for one in seen] == [None, '"v1"']
    # Another file of the same address, or a request that is made another way, is asked for anew.
    opened(worker, f"{served.place}/x", perm="0644").key(Asker())
    assert seen[-1].get("if-none-match") is None
    # A new version is another file, and both are known.
    served.answers(lambda one: one.give(b"new", ETag='"v2"'))
    newer = opened(worker, f"{served.place}/x")
    assert newer.key(Asker()).pin == sha(b"new")
    served.answers(lambda one: one.give(b"other", ETag='"v1"'))  # a server that knows no If-None-Match
    assert opened(worker, f"{served.place}/x").key(Asker()).pin == sha()


def test_it_is_asked_by_its_date(served: Served, worker: Worker) -> None:
    def answer(one: Any) -> None:
        if one.headers.get("If-Modified-Since") == DATE:
            one.give(status=304)
        else:
            one.give(Last_Modified=DATE)

    served.answers(answer)
    key = opened(worker, f"{served.place}/x").key(Asker())
    assert opened(worker, f"{served.place}/x").key(Asker()) == key
    assert len(worker.kinds) == 1


def test_a_checksum(served: Served, worker: Worker) -> None:
    seen = served.answers(lambda one: one.give())
    one = opened(worker, f"{served.place}/x", checksum=sha())
    assert one.key(Asker()).pin == sha()
    assert not seen  # nobody is asked before the file is needed
    assert (one.snapshot(Asker()).path / "x").read_bytes() == DATA
    again = opened(worker, f"{served.place}/x", checksum=sha())
    again.snapshot(Asker())
    assert len(seen) == 1  # it is here
    bad = opened(worker, f"{served.place}/y", checksum=sha(b"other"))
    bad.key(Asker())
    with pytest.raises(errors.FailedPrecondition, match="digest mismatch"):
        bad.snapshot(Asker())
    assert len(worker.kinds) == 1 and not worker.active_now
    sha512 = f"sha512:{hashlib.sha512(DATA).hexdigest()}"
    assert opened(worker, f"{served.place}/x", checksum=sha512).snapshot(Asker())
    with pytest.raises(errors.InvalidArgument, match="invalid checksum"):
        opened(worker, f"{served.place}/x", checksum="sha256:abc")


def test_what_a_server_refuses(served: Served, worker: Worker) -> None:
    for status, kind in ((404, errors.NotFound), (403, errors.PermissionDenied), (500, errors.Unavailable)):
        served.answers(lambda one, status=status: one.give(status=status))  # type: ignore[misc]
        with pytest.raises(kind, match=f"invalid response status {status}"):
            opened(worker, f"{served.place}/x").key(Asker())
    assert not worker.kinds


def test_redirects_have_an_end(served: Served, worker: Worker) -> None:
    seen = served.answers(lambda one: one.give(status=302, Location="/again"))
    with pytest.raises(errors.FailedPrecondition, match="stopped after 10 redirects"):
        opened(worker, f"{served.place}/x").key(Asker())
    assert len(seen) == 11
    for location in ("file:///etc/passwd", "ftp://x/y", "gopher://x"):
        served.answers(lambda one, location=location: one.give(status=301, Location=location))  # type: ignore[misc]
        with pytest.raises(errors.InvalidArgument, match="which is not HTTP"):
            opened(worker, f"{served.place}/x").key(Asker())


def test_sizes_have_an_end(served: Served, worker: Worker) -> None:
    with pytest.raises(errors.ResourceExhausted):
        opened(worker, f"{served.place}/x", size=100).key(Asker())

    def endless(one: Any) -> None:
        one.send_response(200)
        one.end_headers()
        for _ in range(1000):
            one.wfile.write(b"x" * 1000)

    served.answers(endless)
    with pytest.raises(errors.ResourceExhausted):
        opened(worker, f"{served.place}/x", size=5000).key(Asker())
    served.answers(lambda one: one.give(b"short", Content_Length="100"))
    with pytest.raises(errors.Unavailable, match="5 of 100|after 5"):
        opened(worker, f"{served.place}/x").key(Asker())
    assert not worker.kinds


def test_a_secret_goes_to_its_host_only(served: Served, worker: Worker) -> None:
    other = Served()
    try:
        got = other.answers(lambda one: one.give())
        seen = served.answers(lambda one: one.give(status=302, Location=f"http://{other.place}/y"))
        values = {"mine": b"Basic abc", "HTTP_AUTH_TOKEN_127.0.0.1": b"tok"}

        def get(request: Any, context: Any) -> Any:
            if request.ID not in values:
                import grpc

                context.abort(grpc.StatusCode.NOT_FOUND, "none")
            return secrets_pb2.GetSecretResponse(data=values[request.ID])

        methods = {
            "/moby.buildkit.secrets.v1.Secrets/GetSecret": (
                False,
                False,
                secrets_pb2.GetSecretRequest,
                secrets_pb2.GetSecretResponse,
                get,
            )
        }
        manager = Manager()
        with client(methods, manager):
            opened(worker, f"{served.place}/x", manager, authheadersecret="mine").key(Asker("one"))
            assert seen[-1]["authorization"] == "Basic abc"
            assert "authorization" not in got[-1]
            opened(worker, f"{served.place}/x", manager).key(Asker("one"))
            assert seen[-1]["authorization"] == "Bearer tok"
            with pytest.raises(errors.NotFound, match="failed to retrieve HTTP auth secret nothing"):
                opened(worker, f"{served.place}/x", manager, authheadersecret="nothing").key(Asker("one"))
        assert "Basic abc" not in str(worker.known) + str(worker.kinds)
    finally:
        other.server.shutdown()
        other.server.server_close()


def test_headers(served: Served, worker: Worker) -> None:
    seen = served.answers(lambda one: one.give())
    given = {"http.header.accept": "text/x", "http.header.User-Agent": "me", "http.header.cookie": "no"}
    downloads = source.Downloads(worker, Manager(), "http")  # type: ignore[arg-type]
    downloads.open(f"{served.place}/x", given, host()).key(Asker())
    assert seen[0]["accept"] == "text/x" and seen[0]["user-agent"] == "me" and "cookie" not in seen[0]
    with pytest.raises(errors.InvalidArgument):
        downloads.open(f"{served.place}/x", {"http.header.accept": "a\r\nX: y"}, host())


def test_an_upload(worker: Worker) -> None:
    def pull(requests: Any, context: Any) -> Iterator[Any]:
        metadata = dict(context.invocation_metadata())
        assert (metadata["urlpath"], metadata["urlhost"]) == ("/abc", "buildkit-session")
        for at in range(0, len(DATA), 1000):
            yield upload_pb2.BytesMessage(data=DATA[at : at + 1000])

    message = upload_pb2.BytesMessage
    manager = Manager()
    with client({"/moby.upload.v1.Upload/Pull": (True, True, message, message, pull)}, manager):
        one = opened(worker, "buildkit-session/abc", manager)
        assert one.key(Asker("one")).pin == sha()
        assert (one.snapshot(Asker("one")).path / "abc").read_bytes() == DATA


def test_a_proxy(served: Served, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = served.answers(lambda one: one.give())
    monkeypatch.setenv("http_proxy", f"http://me:pass@{served.place}")
    monkeypatch.setenv("no_proxy", "")
    opened(worker, "example.invalid/a/x?y").key(Asker())
    assert seen[0]["path"] == "http://example.invalid/a/x?y"
    assert seen[0]["host"] == "example.invalid"
    assert seen[0]["proxy-authorization"].startswith("Basic ")


def test_it_ends_with_the_build(worker: Worker) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        asker = Asker()
        threading.Timer(0.3, asker.cancel).start()
        begin = time.monotonic()
        with pytest.raises(errors.Cancelled):
            opened(worker, f"127.0.0.1:{silent.getsockname()[1]}/x").key(asker)
        assert time.monotonic() - begin < 3


def test_addresses_that_are_none(worker: Worker) -> None:
    for text in ("", "/x", "host:port/x", "[::1/x"):
        with pytest.raises(errors.InvalidArgument):
            opened(worker, text).key(Asker())
    assert download.shown("https://me:secret@host/x") == "https://xxxxx:xxxxx@host/x"
    with pytest.raises(errors.Unavailable):
        opened(worker, "127.0.0.1:1/x").key(Asker())


def test_meta(served: Served, worker: Worker) -> None:
    served.answers(lambda one: one.give(Last_Modified=DATE))
    request = gateway_pb2.ResolveSourceMetaRequest()
    downloads = source.Downloads(worker, Manager(), "http")  # type: ignore[arg-type]
    answer = downloads.meta(request, f"{served.place}/x", host(), Asker()).HTTP
    assert (answer.Checksum, answer.Filename, answer.LastModified.seconds) == (sha(), "x", SECONDS)
    request.HTTP.ChecksumRequest.Algo = 2
    request.HTTP.ChecksumRequest.Suffix = b"tail"
    answer = downloads.meta(request, f"{served.place}/x", host(), Asker()).HTTP
    assert answer.ChecksumResponse.Digest == f"sha512:{hashlib.sha512(DATA + b'tail').hexdigest()}"


def test_it_went_meanwhile(served: Served, worker: Worker) -> None:
    one = opened(worker, f"{served.place}/x", checksum=sha())
    one.snapshot(Asker()).release()
    one.close()
    worker.remove(next(iter(worker.kinds)))
    assert (one.snapshot(Asker()).path / "x").read_bytes() == DATA


def test_what_was_downloaded_for_a_key_is_held_until_the_build_has_gone(served: Served, worker: Worker) -> None:
    one = opened(worker, f"{served.place}/x")
    one.key(Asker())
    assert sum(worker.holders.values()) == 1
    result = one.snapshot(Asker())
    one.close()
    one.close()
    assert sum(worker.holders.values()) == 1
    result.release()
    assert sum(worker.holders.values()) == 0
