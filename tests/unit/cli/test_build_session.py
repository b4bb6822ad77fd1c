# SPDX-License-Identifier: Apache-2.0
"""A build's session from end to end: teu's side of it against the builder's, over a real connection in this process."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from teu.buildkit.core import errors
from teu.buildkit.session import auth, content, filesync, fsutil, secrets, ssh, upload
from teu.buildkit.session.fsutil import DATA, FIN, STAT, Packet
from teu.buildkit.session.manager import Manager
from teu.buildkit.session.manager import Session as Theirs
from teu.cli.builds import keys, messages, receiving, sending, solve, store
from teu.cli.builds.session import Offer, Session
from teu.cli.builds.wire import BuildError, Link
from teu.cli.config import ConfigFile
from teu.cli.errors import CommandError
from teu.http2.connection import CANCELLED
from teu.oci import ed25519
from teu.oci.fsutil import GO_DIR, GO_SYMLINK
from teu.ttrpc import codec


@contextlib.contextmanager
def session(tmp_path: Path, fill: Callable[[Offer], None]) -> Iterator[Theirs]:
    """The builder's view of a session that offers what `fill` puts into it."""
    (tmp_path / "config").mkdir(exist_ok=True)
    offer = Offer(ConfigFile(str(tmp_path / "config")))
    fill(offer)
    ours = Session(offer)
    near, far = socket.socketpair()
    link = Link(near, serve=ours.serve)
    manager = Manager()
    thread = threading.Thread(target=manager.serve_socket, args=(ours.identity(), far), daemon=True)
    thread.start()
    theirs = manager.get(ours.id, 30)
    try:
        yield theirs
    finally:
        link.close()
        thread.join(30)
        assert not thread.is_alive()
        offer.agents.close()


def pulled(theirs: Theirs, into: Path, **more: Any) -> filesync.fsutil.Received:
    into.mkdir(exist_ok=True)
    folder = os.open(into, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return filesync.diff_copy(theirs, more.pop("name", "context"), folder, **more)
    finally:
        os.close(folder)


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        data = os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (status.st_mode, data)
    return found


def made(folder: Path) -> Path:
    (folder / "src" / "deep").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "a").write_bytes(b"one")
    (folder / "big").write_bytes(os.urandom(700_000))
    (folder / "src" / "main.py").write_text("print()")
    (folder / "src" / "deep" / "x.o").write_text("object")
    (folder / "src.txt").write_text("sorts between, for a careless walk")
    os.link(folder / "a", folder / "hard")
    (folder / "link").symlink_to("src/main.py")
    (folder / "void").write_bytes(b"")
    (folder / "a").chmod(0o4751)
    os.mkfifo(folder / "pipe", 0o600)
    return folder


def test_a_folder_comes_whole_and_then_not_again(tmp_path: Path) -> None:
    source = made(tmp_path / "source")
    with session(tmp_path, lambda offer: offer.folders.update(context=str(source))) as theirs:
        first = pulled(theirs, tmp_path / "copy")
        assert tree(tmp_path / "copy") == tree(source)
        assert (tmp_path / "copy/hard").stat().st_ino == (tmp_path / "copy/a").stat().st_ino
        assert first.files == 6
        again = pulled(theirs, tmp_path / "copy")
        assert (again.files, again.deleted) == (0, 0)
        (source / "a").write_bytes(b"three")
        (source / "void").unlink()
        third = pulled(theirs, tmp_path / "copy")
        assert third.deleted == 1 and third.size == 5
        assert tree(tmp_path / "copy") == tree(source)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"include": ["src"]}, {"src", "src/deep", "src/deep/x.o", "src/main.py"}),
        ({"include": ["src/**/*.o"]}, {"src", "src/deep", "src/deep/x.o"}),
        ({"include": ["a", "nothing"]}, {"a"}),
        ({"exclude": ["*", "!src/main.py"]}, {"src", "src/main.py"}),
        ({"exclude": ["src", "big", "link", "hard", "pipe"]}, {"a", "empty", "src.txt", "void"}),
        ({"exclude": ["**/*.o", "b*"], "include": ["src", "big"]}, {"src", "src/deep", "src/main.py"}),
        ({"follow": ["link"]}, {"link", "src", "src/main.py"}),
        ({"follow": ["l*"]}, {"link", "src", "src/main.py"}),
        ({"follow": ["src/../a"]}, {"a"}),
    ],
)
def test_only_what_is_asked_for_is_told(tmp_path: Path, asked: dict[str, list[str]], expected: set[str]) -> None:
    source = made(tmp_path / "source")
    with session(tmp_path, lambda offer: offer.folders.update(context=str(source))) as theirs:
        pulled(theirs, tmp_path / "copy", **asked)
    assert set(tree(tmp_path / "copy")) == expected


def test_all_is_meant_by_the_folder_itself(tmp_path: Path) -> None:
    source = made(tmp_path / "source")
    with session(tmp_path, lambda offer: offer.folders.update(context=str(source))) as theirs:
        pulled(theirs, tmp_path / "copy", follow=["/", "a"])
    assert tree(tmp_path / "copy") == tree(source)


def test_links_that_lead_out_stay_inside(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "etc").mkdir(parents=True)
    (source / "etc/passwd").write_text("inside")
    (source / "out").symlink_to("../../../etc/passwd")
    (source / "loop").symlink_to("loop")
    with session(tmp_path, lambda offer: offer.folders.update(context=str(source))) as theirs:
        pulled(theirs, tmp_path / "copy", follow=["out", "loop"])
    assert (tmp_path / "copy/etc/passwd").read_text() == "inside"


def test_names_that_are_no_text(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / os.fsdecode(b"caf\xe9")).write_text("latin")
    (source / "ünïcode").write_text("utf-8")
    with session(tmp_path, lambda offer: offer.folders.update(context=str(source))) as theirs:
        pulled(theirs, tmp_path / "copy", include=[os.fsdecode(b"caf\xe9"), "ünïcode"])
    assert tree(tmp_path / "copy") == tree(source)


@pytest.mark.parametrize("name", ["big", "src"])
def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As any user but root meets it."""
    source = made(tmp_path / "source")
    really = os.open

    def refused(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == name and flags & os.O_ACCMODE == os.O_RDONLY:
            raise PermissionError(13, "Permission denied", path)
        return really(path, flags, mode, dir_fd=dir_fd)

    with session(tmp_path, lambda offer: offer.folders.update(context=str(source))) as theirs:
        monkeypatch.setattr(sending.os, "open", refused)
        with pytest.raises(errors.Error, match=f"open {name}: permission denied"):
            pulled(theirs, tmp_path / "copy")
        monkeypatch.undo()


@pytest.mark.parametrize("told", [True, False])
def test_a_builder_that_only_says_it_was_cancelled(tmp_path: Path, told: bool) -> None:
    """BuildKit cancels what waits for a file that we could not send, and now and then that is its whole answer."""

    class Cancels:
        """A builder that asks for nothing, and cancels the build."""

        address = "unix:///nowhere"

        def session(self, identity: Any, serve: Any) -> None: ...

        def stream(self, method: str, name: str, **fields: Any) -> Any:
            return Nothing()

        def control(self, method: str, **fields: Any) -> Any:
            if told:
                work._session.failures.append("open secret: permission denied")
            raise BuildError(CANCELLED, "context canceled")

    class Nothing(list[bytes]):
        def close(self) -> None: ...

    builder: Any = Cancels()
    work = solve.Build(builder, Offer(ConfigFile(str(tmp_path))), {}, "quiet")
    with pytest.raises(solve.Failed) as caught:
        work.run()
    assert (caught.value.error.code == CANCELLED) is not told
    assert ("error from sender: open secret: permission denied" in caught.value.text) is told


def test_a_folder_that_was_not_offered(tmp_path: Path) -> None:
    with session(tmp_path, lambda offer: offer.folders.update(context=str(tmp_path))) as theirs:
        with pytest.raises(errors.NotFound, match="no access allowed to dir"):
            pulled(theirs, tmp_path / "copy", name="other")


def test_a_file_that_goes_meanwhile_comes_empty(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "gone").write_text("x")
    (source / "stays").write_text("y")
    with session(tmp_path, lambda offer: offer.folders.update(context=str(source))) as theirs:
        with theirs.stream(filesync.DIFF_COPY, Packet, [("dir-name", "context")]) as call:
            told = [call.receive() for _ in range(3)]
            assert [packet.stat.path for packet in told if packet] == [b"gone", b"stays", b""]
            (source / "gone").unlink()
            call.send_many([Packet(type=1, ID=0), Packet(type=1, ID=1)])
            data = [call.receive() for _ in range(3)]
            assert [(packet.ID, packet.data) for packet in data if packet] == [(0, b""), (1, b"y"), (1, b"")]
            call.send(Packet(type=FIN))
            call.end()
            last = call.receive()
            assert last is not None and last.type == FIN and call.receive() is None


# Results.


def sent(theirs: Theirs, source: Path) -> None:
    folder = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
    try:
        filesync.send_tree(theirs, fsutil.Folder(folder), 0)
    finally:
        os.close(folder)


def test_a_result_is_put_beside_what_is_there(tmp_path: Path) -> None:
    source, out = made(tmp_path / "source"), tmp_path / "out"
    (source / "pipe").unlink()
    out.mkdir()
    (out / "mine").write_text("stays")
    (out / "src").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (out / "big").mkdir()
    (out / "big/old").write_text("in the way")
    (out / "void").symlink_to(tmp_path / "untouched")
    (tmp_path / "untouched").write_text("untouched")
    with session(tmp_path, lambda offer: offer.targets.update({0: str(out)})) as theirs:
        sent(theirs, source)
    assert tree(out) == {**tree(source), "mine": (0o100644 & ~0 | (out / "mine").stat().st_mode, b"stays")}
    assert (tmp_path / "untouched").read_text() == "untouched" and not list((tmp_path / "elsewhere").iterdir())


def entry(path: bytes, mode: int = 0o644, **more: Any) -> Packet:
    return Packet(type=STAT, stat={"path": path, "mode": mode, **more})


@pytest.mark.parametrize(
    "packets",
    [
        [entry(b"../out")],
        [entry(b"/etc/passwd")],
        [entry(b"a/../../out")],
        [entry(b"b"), entry(b"a")],
        [entry(b"a/b")],
        [entry(b"a", GO_SYMLINK | 0o777, linkname=b"/"), entry(b"a/b")],
        [entry(b"a", linkname=b"../../secret")],
        [entry(b"a", linkname=b"b")],
        [entry(b"."), entry(b"a")],
        [entry(b"a\0b")],
        [Packet(type=DATA, ID=7, data=b"unasked")],
        [entry(b"a", 1 << 24)],
    ],
)
def test_a_hostile_builder_writes_nowhere_else(tmp_path: Path, packets: list[Packet]) -> None:
    (tmp_path / "secret").write_text("secret")
    before = tree(tmp_path)
    out = tmp_path / "deep/out"
    with session(tmp_path, lambda offer: offer.targets.update({0: str(out)})) as theirs:
        with theirs.stream(filesync.SEND, Packet, [(filesync.EXPORTER_ID, "0")]) as call:
            call.send_many(packets)
            with pytest.raises(errors.Error):
                while call.receive() is not None:
                    pass
    after = {path: value for path, value in tree(tmp_path).items() if not path.startswith(("deep", "config"))}
    assert after == before
    assert not [path for path in tree(out) if path not in ("a", "b")]


def test_a_link_of_the_result_is_not_followed(tmp_path: Path) -> None:
    """A folder that became a link while the transfer went on."""
    out = tmp_path / "out"
    (tmp_path / "elsewhere").mkdir()
    with session(tmp_path, lambda offer: offer.targets.update({0: str(out)})) as theirs:
        with theirs.stream(filesync.SEND, Packet, [(filesync.EXPORTER_ID, "0")]) as call:
            call.send_many([entry(b"a", GO_DIR | 0o755), entry(b"a/b")])
            asked = call.receive()
            assert asked is not None and asked.ID == 1
            (out / "a").rmdir()
            (out / "a").symlink_to(tmp_path / "elsewhere")
            call.send_many([Packet(type=STAT), Packet(type=DATA, ID=1, data=b"x"), Packet(type=DATA, ID=1)])
            with pytest.raises(errors.Error):
                while call.receive() is not None:
                    pass
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "image.tar"
    target.write_bytes(b"old")

    def broken() -> Iterator[bytes]:
        yield b"half"
        assert target.read_bytes() == b"old"
        raise errors.Internal("the builder fell over")

    offer = {0: receiving.Target(str(target))}
    with session(tmp_path, lambda each: each.targets.update(offer)) as theirs:
        with pytest.raises(errors.Internal):
            filesync.send_file(theirs, broken())
        for _ in range(1000):
            if {path.name for path in tmp_path.iterdir()} == {"config", "image.tar"}:
                break
            threading.Event().wait(0.02)
        assert {path.name for path in tmp_path.iterdir()} == {"config", "image.tar"}
        assert target.read_bytes() == b"old"
        filesync.send_file(theirs, [b"a" * 3_000_000, b"b"])
    assert target.read_bytes() == b"a" * 3_000_000 + b"b"


@pytest.mark.parametrize("path", ["", "nowhere/x.tar", "/"])
def test_where_no_file_can_be(tmp_path: Path, path: str) -> None:
    with pytest.raises(CommandError):
        receiving.Target(f"{tmp_path}/{path}").check()


# What else a builder may ask for.


def test_credentials_of_the_users_file(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.json").write_text(
        '{"auths": {"https://index.docker.io/v1/": {"auth": "bWU6c2VjcmV0"}, "r.example": {"identitytoken": "t"}}}'
    )
    with session(tmp_path, lambda offer: None) as theirs:
        assert auth.credentials(theirs, "registry-1.docker.io") == ("me", "secret")
        assert auth.credentials(theirs, "r.example") == ("", "t")
        assert auth.credentials(theirs, "other.example") == ("", "")


def test_tokens_without_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder knows a key of ours and the token; it is the client who speaks with the token server."""
    seen: list[tuple[str, str | None]] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["Authorization"]))
            data = b'{"token": "the token"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.json").write_text('{"auths": {"r.example": {"auth": "bWU6c2VjcmV0"}}}')
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    realm = f"http://127.0.0.1:{server.server_port}/token"
    known = []
    for _ in range(2):
        with session(tmp_path, lambda offer: None) as theirs:
            key = auth.token_authority(theirs, "r.example")
            assert key is not None and auth.verify_authority(theirs, "r.example", key)
            assert not auth.verify_authority(theirs, "other.example", key)
            known.append(key)
            token = auth.fetch_token(theirs, "r.example", realm, "service", ["repository:x:pull"])
            assert token.token == "the token"
            with pytest.raises(errors.Error, match="without TLS"):
                auth.fetch_token(theirs, "r.example", "http://192.0.2.1/token", "service", [])
    server.shutdown()
    server.server_close()
    assert known[0] == known[1], "a later build proves to be the same user's"
    assert (tmp_path / "config/.token_seed").stat().st_mode & 0o777 == 0o600
    assert seen[0] == ("/token?service=service&scope=repository%3Ax%3Apull&account=me", "Basic bWU6c2VjcmV0")
    monkeypatch.setenv("BUILDKIT_NO_CLIENT_TOKEN", "1")
    with session(tmp_path, lambda offer: None) as theirs:
        assert auth.token_authority(theirs, "r.example") is None


def test_signatures() -> None:
    """RFC 8032, section 7.1, test 2."""
    seed = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    key = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert ed25519.public_key(seed).hex() == key and ed25519.sign(seed, b"\x72").hex() == signature
    assert ed25519.verify(bytes.fromhex(key), b"\x72", bytes.fromhex(signature))


def test_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"\0from a file")
    monkeypatch.setenv("TOKEN", "from the environment")
    given = [f"id=one,src={tmp_path}/file", "id=two,env=TOKEN", "id=TOKEN", "type=env,id=three,src=TOKEN"]
    with session(tmp_path, lambda offer: offer.secrets.update(map(keys.parse_secret, given))) as theirs:
        assert secrets.get(theirs, "one") == b"\0from a file"
        for name in ("two", "TOKEN", "three"):
            assert secrets.get(theirs, name) == b"from the environment"
        with pytest.raises(errors.NotFound):
            secrets.get(theirs, "four")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("src=x", "secret missing ID"),
        ("id=a,src=/nowhere/x", "failed to stat /nowhere/x"),
        ("id=a,what=x", "unexpected key 'what'"),
        ("id", "must be a key=value pair"),
        ("id=a,type=x", "unsupported secret type"),
    ],
)
def test_secrets_that_are_none(text: str, problem: str) -> None:
    with pytest.raises(CommandError, match=problem):
        keys.parse_secret(text)


def test_an_agent(tmp_path: Path) -> None:
    path = str(tmp_path / "agent")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def echo() -> None:
        connection, _ = listener.accept()
        while data := connection.recv(100):
            connection.sendall(data.upper())
        connection.close()

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    with session(tmp_path, lambda offer: offer.agents.add(f"mine={path}")) as theirs:
        ssh.check(theirs, "mine")
        with pytest.raises(errors.Error, match="unset ssh forward key"):
            ssh.check(theirs)
        with ssh.Forwarding(theirs, str(tmp_path), "mine") as forwarding:
            client = socket.socket(socket.AF_UNIX)
            client.connect(forwarding.path)
            client.sendall(b"hello")
            assert client.recv(100) == b"HELLO"
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b""
            client.close()
    thread.join(5)
    listener.close()


def test_keys_from_files_get_an_agent_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSH's programs are stood in for by scripts that take what they are called with."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ssh-agent").write_text(
        "#!/usr/bin/python3\nimport socket, sys, time\ns = socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[3])\n"
        "s.listen()\ntime.sleep(60)\n"
    )
    (programs / "ssh-add").write_text(f'#!/bin/sh\n[ -S "$SSH_AUTH_SOCK" ] && echo "$@" >>{tmp_path}/added\n')
    for path in programs.iterdir():
        path.chmod(0o755)
    for name in ("one", "two"):
        (tmp_path / name).write_text("a key")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    agents = keys.Agents()
    agents.add(f"mine={tmp_path}/one,{tmp_path}/two")
    path = agents.socket("mine")
    assert (tmp_path / "added").read_text() == f"-q {tmp_path}/one {tmp_path}/two\n"
    assert Path(path).is_socket() and Path(path).parent.stat().st_mode & 0o777 == 0o700
    agents.close()
    assert not Path(path).parent.exists()
    with pytest.raises(CommandError, match="only single socket"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "s"))
        agents.add(f"x={tmp_path}/s,{tmp_path}/one")


def test_an_upload_goes_once(tmp_path: Path) -> None:
    with session(tmp_path, lambda offer: offer.uploads.update(x=lambda: iter([b"a" * 2_000_000, b"b"]))) as theirs:
        assert b"".join(upload.pull(theirs, "http://buildkit-session/x")) == b"a" * 2_000_000 + b"b"
        with pytest.raises(errors.NotFound):
            list(upload.pull(theirs, "http://buildkit-session/x"))


def test_a_store_of_blobs(tmp_path: Path) -> None:
    folder = store.Store(str(tmp_path / "layout"), writes=True)
    folder.prepare()
    data = os.urandom(3_000_000)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with session(tmp_path, lambda offer: offer.stores.update({"local:x": folder})) as theirs:
        there = content.Store(theirs, "local:x")
        with pytest.raises(errors.NotFound):
            there.info(digest)
        assert there.write("ref", [data[:1000], data[1000:]], len(data), digest)
        assert there.info(digest).size == len(data)
        assert not there.write("again", [data], len(data), digest)
        assert b"".join(there.read(digest)) == data
        assert b"".join(there.read(digest, 5, 7)) == data[5:12]
        with pytest.raises(errors.FailedPrecondition):
            there.write("bad", [b"other"], 5, f"sha256:{'0' * 64}")
        for bad in ("sha256:../../../etc/passwd", "../x:y", "sha256:AB"):
            with pytest.raises(errors.InvalidArgument):
                there.info(bad)
        with pytest.raises(errors.NotFound):
            content.Store(theirs, "local:y").info(digest)
        there.delete(digest)
    assert not list((tmp_path / "layout/ingest").iterdir())


def test_names_in_a_layout(tmp_path: Path) -> None:
    folder = store.Store(str(tmp_path), writes=True)
    folder.prepare()
    assert folder.find("latest") == ""
    folder.name({"digest": "sha256:one", "size": 1}, [{store.REF_NAME: "latest"}])
    assert folder.find("latest") == folder.find("anything") == "sha256:one"
    folder.name({"digest": "sha256:two", "size": 1}, [{store.REF_NAME: "latest"}])
    folder.name({"digest": "sha256:three", "size": 1}, [{store.REF_NAME: "three"}])
    assert (folder.find("latest"), folder.find("three"), folder.find("four")) == ("sha256:two", "sha256:three", "")


# The codec.


def test_tables_are_those_of_the_protos() -> None:
    """Each table has the numbers, names and types of its message."""
    from google.protobuf import descriptor_pool

    from teu.api.buildkit import control_pb2, errdefs_pb2, gateway_pb2  # noqa: F401
    from teu.api.buildkit.fsutil import raw_pb2  # noqa: F401
    from teu.api.buildkit.session import auth_pb2, secrets_pb2, ssh_pb2, upload_pb2  # noqa: F401
    from teu.api.grpc.health.v1 import health_pb2  # noqa: F401
    from teu.api.services.content.v1 import content_pb2  # noqa: F401

    pool = descriptor_pool.Default()
    kinds = {
        1: "double",
        3: "int64",
        4: "uint64",
        5: "int32",
        8: "bool",
        9: "string",
        12: "bytes",
        13: "uint32",
        14: "enum",
    }
    for name, table in messages.TABLES.items():
        message = pool.FindMessageTypeByName(name)
        for number, (field, kind) in table.items():
            known = message.fields_by_number[number]
            assert known.name == field, f"{name} {number}"
            expected = kinds.get(known.type) or known.message_type.full_name
            if known.label == known.LABEL_REPEATED:
                plain = known.message_type is not None and known.message_type.GetOptions().map_entry
                values = plain and all(each.type == 9 for each in known.message_type.fields)
                expected = "map" if values else f"*{expected}"
            assert kind == expected, f"{name}.{field}"


def test_a_stat_by_hand_is_a_stat(tmp_path: Path) -> None:
    from teu.cli.builds.sending import Entry, data_packets, stat_packet

    (tmp_path / "x").write_text("abc")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    status = (tmp_path / "x").stat()
    packet = codec.decode_table(
        messages.TABLES,
        messages.TABLES["teu.fsutil.Packet"],
        stat_packet(Entry("d/x", descriptor, "x", status), 0o644),
    )
    os.close(descriptor)
    stat = packet["stat"]
    assert (stat["path"], stat["mode"], stat["size"], stat["modTime"]) == (b"d/x", 0o644, 3, status.st_mtime_ns)
    assert (stat["uid"], stat["gid"], stat["linkname"]) == (status.st_uid, status.st_gid, b"")
    parts = [messages.decode("teu.fsutil.Packet", data) for data in data_packets(300, b"a" * 70_000)]
    assert [len(part["data"]) for part in parts] == [32768, 32768, 4464]
    assert {(part["ID"], part["type"]) for part in parts} == {(300, DATA)}
