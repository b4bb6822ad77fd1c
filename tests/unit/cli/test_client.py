# SPDX-License-Identifier: Apache-2.0
"""The client's own parts: HTTP, frames, detach keys, credentials, names of images; and what a cold start imports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prepared import Daemon

from teu import __version__
from teu.cli import archives, command, config, registry, streams
from teu.cli.errors import APIError, CommandError, ConnectError
from teu.cli.http import Client, Connection, Response, query_string
from teu.cli.main import as_it_came

BIN = Path(__file__).resolve().parents[3] / "bin/teu"


@pytest.fixture
def served(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A server that answers each connection's requests with the prepared texts, one per request."""
    path = tmp_path / "sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    answers: list[list[bytes]] = []
    seen: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            for answer in answers.pop(0) if answers else []:
                data = b""
                while b"\r\n\r\n" not in data:
                    piece = connection.recv(65536)
                    if not piece:
                        break
                    data += piece
                seen.append(data)
                connection.sendall(answer)
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    yield Client(f"unix://{path}"), answers, seen
    listener.close()


def test_bodies_and_kept_connections(served) -> None:  # type: ignore[no-untyped-def]
    client, answers, seen = served
    json_head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    answers.append(
        [
            json_head + b'Content-Length: 7\r\n\r\n{"a":1}',
            json_head + b"Transfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b'HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{"message": "x"}',
        ]
    )
    assert client.get("/a", {"x": "a b", "y": None, "z": True}) == {"a": 1}
    assert client.get("/b") == [1, 2]
    assert client.call("POST", "/c", None, {"k": "é"}) is None
    with pytest.raises(APIError, match="^Error response from daemon: x$"):
        client.get("/d")
    assert [request.split(b"\r\n")[0] for request in seen] == [
        b"GET /v1.51/a?x=a%20b&z=1 HTTP/1.1",
        b"GET /v1.51/b HTTP/1.1",
        b"POST /v1.51/c HTTP/1.1",
        b"GET /v1.51/d HTTP/1.1",
    ]
    assert b'{"k":"\xc3\xa9"}' in seen[2]


OLD = b"client version 1.51 is too new. Maximum supported API version is 1.45"


def test_a_daemon_that_has_an_older_version_only(served) -> None:  # type: ignore[no-untyped-def]
    """What it says is asked again in its version, once; to HEAD it can say nothing, and is asked something else."""
    client, answers, seen = served
    refusal = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(OLD)
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    answers += [[refusal, refusal + OLD, good, good], [good]]
    response = client.open("HEAD", "/a", check=False)
    assert response.status == 200
    client.done(response)
    assert client.call("POST", "/b") is None
    assert [request.split(b" HTTP")[0] for request in seen] == [
        b"HEAD /v1.51/a",
        b"GET /v1.51/_ping",
        b"GET /v1.45/_ping",
        b"HEAD /v1.45/a",
        b"POST /v1.45/b",
    ]
    seen.clear()
    refused = Client(client.host)
    answers += [[refusal, good, refusal]]
    response = refused.open("HEAD", "/a", check=False)
    assert response.status == 400 and [request.split(b" HTTP")[0] for request in seen] == [
        b"HEAD /v1.51/a",
        b"GET /v1.51/_ping",
        b"HEAD /v1.51/a",
    ]


def test_a_connection_that_the_daemon_closed_is_opened_again(served) -> None:  # type: ignore[no-untyped-def]
    client, answers, _ = served
    ok = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n"
    answers += [[ok + b"1"], [ok + b"2"]]
    assert client.get("/") == 1
    assert client.get("/") == 2


def test_queries() -> None:
    assert query_string({"a": ["x", "y"], "f": {"s": {"t": True}}, "n": "", "p": "/b c"}) == (
        "?a=x&a=y&f=%7B%22s%22:%7B%22t%22:true%7D%7D&p=%2Fb%20c"
    )


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="Is the teu daemon running"):
        Client(f"unix://{tmp_path}/none").get("/")
    with pytest.raises(ConnectError, match="systemctl start teud.socket"):
        raise ConnectError(Client("unix:///run/teu/teud.sock").explain(FileNotFoundError()))
    with pytest.raises(ConnectError, match="usermod -aG teu"):
        raise ConnectError(Client("unix:///run/teu/teud.sock").explain(PermissionError()))


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def test_frames_in_any_pieces(tmp_path: Path) -> None:
    data = frame(1, b"out1 ") + frame(2, b"err") + frame(1, b"") + frame(1, b"out2" * 1000)
    for size in (1, 3, 8, 9, len(data)):
        with (tmp_path / "o").open("w+b") as out, (tmp_path / "e").open("w+b") as err:
            splitter = streams.Demultiplexer({1: out.fileno(), 2: err.fileno()})
            for start in range(0, len(data), size):
                splitter.feed(data[start : start + size])
            out.seek(0)
            err.seek(0)
            assert (out.read(), err.read()) == (b"out1 " + b"out2" * 1000, b"err")


def test_detach_keys() -> None:
    assert streams.detach_sequence("ctrl-p,ctrl-q") == b"\x10\x11"
    assert streams.detach_sequence("a,ctrl-@,ctrl-\\") == b"a\0\x1c"
    with pytest.raises(CommandError, match="invalid detach keys"):
        streams.detach_sequence("ctrl-1")


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("me/x:1", "docker.io/me/x:1"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("docker.io/x", "docker.io/library/x:latest"),
        ("r.example/a/b@sha256:" + "0" * 64, "r.example/a/b@sha256:" + "0" * 64),
    ],
)
def test_names(name: str, canonical: str) -> None:
    registry.check_reference(name)
    assert registry.canonical(name) == canonical


@pytest.mark.parametrize("name", ["Busybox", "a:", "a//b", "-a", "a b", "a@sha256:1", "x/Y", "a:b:c", "http://x/y"])
def test_bad_names(name: str) -> None:
    with pytest.raises(CommandError, match="invalid reference format"):
        registry.check_reference(name)


def test_credentials(tmp_path: Path) -> None:
    file = config.ConfigFile(str(tmp_path / "new"))
    file.values["other"] = {"kept": 1}
    file.store("localhost:5000", {"username": "u", "password": "p:w"})
    assert os.stat(file.path).st_mode & 0o777 == 0o600
    again = config.ConfigFile(str(tmp_path / "new"))
    assert again.auth("localhost:5000") == {"serveraddress": "localhost:5000", "username": "u", "password": "p:w"}
    assert again.values["other"] == {"kept": 1}
    again.erase("localhost:5000")
    assert config.ConfigFile(str(tmp_path / "new")).auth("localhost:5000") == {}


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CommandError, match="is not a JSON object"):
        config.ConfigFile(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"proxies": [1]}', "proxies"),
        ('{"proxies": {"default": ["x"]}}', "proxies.default"),
        ('{"proxies": {"default": {"httpProxy": 5}}}', "proxies.default.httpProxy"),
        ('{"auths": {"a": {"auth": 1}}}', "auths.a.auth"),
        ('{"auths": "x"}', "auths"),
        ('{"credHelpers": {"a": {}}}', "credHelpers.a"),
        ('{"psFormat": []}', "psFormat"),
        ('{"detachKeys": 1}', "detachKeys"),
    ],
)
def test_a_file_with_values_of_other_types_is_told(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CommandError, match=f"config.json: {key} must be "):
        config.ConfigFile(str(tmp_path))


def test_what_is_null_or_unknown_in_a_file_is_left_alone(tmp_path: Path) -> None:
    text = '{"auths": {"a": null, "b": {"expires": 5, "auth": null}}, "proxies": null, "psFormat": null, "other": [1]}'
    (tmp_path / "config.json").write_text(text)
    file = config.ConfigFile(str(tmp_path))
    assert file.auth("a") == file.auth("c") == {} and file.get("psFormat") == ""
    file.store("c", {"username": "u", "password": "p"})
    assert config.ConfigFile(str(tmp_path)).auth("c")["password"] == "p"


@pytest.mark.parametrize("text", ["[" * 100000, '{"a":' * 100000], ids=["lists", "objects"])
def test_a_file_that_is_nested_without_end_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CommandError, match="is not a JSON object"):
        config.ConfigFile(str(tmp_path))


def test_headers_for_every_request(tmp_path: Path) -> None:
    assert "httpheaders" not in command.mentions(str(tmp_path))
    file = tmp_path / "config.json"
    file.write_text('{"auths": {}}')
    assert "httpheaders" not in command.mentions(str(tmp_path))
    file.write_text('{"HttpHeaders": {"x-META-a": "1", "User-Agent": "me", "host": "h", "Empty": null}}')
    assert "httpheaders" in command.mentions(str(tmp_path))
    assert config.ConfigFile(str(tmp_path)).headers() == {"X-Meta-A": "1", "Empty": ""}
    for name, value in (("", "x"), ("a b", "x"), ("a:", "x"), ("\u00e4", "x"), ("A", "x\\r\\nB: y"), ("A", "\\u0000")):
        file.write_text(f'{{"HttpHeaders": {{"{name}": "{value}"}}}}', "utf-8")
        with pytest.raises(CommandError, match="HttpHeaders: "):
            config.ConfigFile(str(tmp_path)).headers()


@pytest.mark.parametrize("folder", ["x" * 5000, "/proc/self/fd/none", "/dev/null/x"])
def test_a_file_that_cannot_be_written_is_told(folder: str) -> None:
    with pytest.raises(CommandError, match="cannot write .*/config.json: "):
        config.ConfigFile(folder).erase("x")


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CommandError, match="cannot read .*config.json: Is a directory"):
        config.ConfigFile(str(tmp_path))


def teu(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-IS", str(BIN), *argv],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
    )


def test_exit_codes_without_a_daemon(tmp_path: Path) -> None:
    host = f"unix://{tmp_path}/none"
    assert teu("-H", host, "run", "busybox").returncode == 125
    assert teu("-H", host, "ps").returncode == 1
    assert teu("ps", "--nope").returncode == 125
    assert teu("rm").returncode == 1
    assert teu("nope").returncode == 1
    assert teu("--version").stdout.startswith("Teu version ")
    assert "Usage:  teu run" in teu("run", "--help").stdout
    assert "Common Commands:" in teu().stdout


def test_a_cold_start_imports_little() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(BIN.parent.parent / 'src')!r})\n"
        "import teu.cli.run, teu.cli.http, teu.cli.containers, teu.cli.execute, teu.cli.logs, teu.cli.inspect\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {
        "json",
        "re",
        "enum",
        "socket",
        "typing",
        "argparse",
        "http.client",
        "asyncio",
        "dataclasses",
        "threading",
        "collections",
        "functools",
        "signal",
        "subprocess",
        "contextlib",
        "inspect",
        "grpc",
        "google",
    }
    assert not loaded & heavy


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_descriptors_are_taken_by_nobody(closed: str) -> None:
    """What a command opens is never its standard output: the next file would get the lowest free number."""
    code = (
        f"import sys; sys.path.insert(0, {str(BIN.parent.parent / 'src')!r}); sys.argv = ['teu', '--version']; "
        "import os; from teu.cli import main; "
        "main.leave = lambda code: (sys.stdout.flush(), os._exit(code + os.dup(0))); main.main()"
    )
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -IS -c "$0" {closed}', code], capture_output=True, text=True, check=False
    )
    assert done.returncode > 2, done.stderr  # the lowest number that was free
    assert done.stdout == ("" if "1>" in closed else f"Teu version {__version__}\n")


def test_completion_knows_commands_and_options(tmp_path: Path) -> None:
    host = f"unix://{tmp_path}/none"
    assert "run" in teu("__complete", "ru").stdout.split()
    assert teu("__complete", "container", "l").stdout.split() == ["logs", "ls"]
    assert "--network" in teu("__complete", "run", "--net").stdout.split()
    assert teu("__complete", "run", "--restart", "a").stdout.split() == ["always"]
    assert teu("__complete", "-H", host, "rm", "").stdout == ""


def test_bash_completion(tmp_path: Path) -> None:
    script = (
        f"PATH={BIN.parent}:$PATH; source {BIN.parent.parent / 'completions/teu'}\n"
        "COMP_WORDS=(teu container l) COMP_CWORD=2; _teu; printf '%s ' \"${COMPREPLY[@]}\"\n"
        "COMP_WORDS=(teu run --restart '') COMP_CWORD=3; _teu; printf '%s ' \"${COMPREPLY[@]}\"\n"
    )
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["logs", "ls", "always", "no", "on-failure", "unless-stopped"]


def test_output_is_utf8_in_any_locale(tmp_path: Path) -> None:
    path = tmp_path / "n\u00e4me"
    for locale in ("C", "POSIX", "C.UTF-8"):
        done = subprocess.run(
            [sys.executable, "-IS", str(BIN), "-H", f"unix://{path}", "ps"],
            capture_output=True,
            check=False,
            env={"LC_ALL": locale, "PATH": "/usr/bin"},
        )
        assert str(path).encode() in done.stderr


def test_what_is_no_text_is_printed_all_the_same(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff"
    for coding in ("utf-8:strict", "utf-8:surrogateescape", "ascii:strict"):
        done = subprocess.run(
            [sys.executable, "-S", str(BIN), "-H", b"unix://" + path, "ps"],
            capture_output=True,
            check=False,
            env={"PYTHONIOENCODING": coding, "LC_ALL": "C.UTF-8", "PATH": "/usr/bin"},
        )
        assert path in done.stderr
    (tmp_path / "config.json").write_text('{"psFormat": "\\ud800{{.ID}}", "auths": {"a": {"auth": "eDp5"}}}')
    assert config.ConfigFile(str(tmp_path)).get("psFormat") == "\ufffd{{.ID}}"
    error = UnicodeEncodeError("utf-8", "a\ud800\udcffb", 1, 3, "surrogates not allowed")
    assert as_it_came(error) == (b"\xef\xbf\xbd\xff", 3)


def test_two_events_in_one_packet_are_both_heard() -> None:
    """Nothing would tell of the second until the next packet comes."""
    from teu.cli.stats import arrived

    ours, theirs = socket.socketpair()
    with ours, theirs:
        chunks = b"".join(b"%x\r\n%s\n\r\n" % (len(text) + 1, text) for text in (b'{"a":1}', b'{"b":2}'))
        theirs.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
        response = Response(Connection(ours))
        lines, rest, alive = arrived(response, b"")
        assert (lines, rest, alive) == ([b'{"a":1}', b'{"b":2}'], b"", True)
        theirs.sendall(b"0\r\n\r\n")
        assert arrived(response, b"") == ([], b"", False)


@pytest.mark.parametrize(
    ("target", "no_proxy", "expected"),
    [
        (("10.1.2.3", 2375), "", ("proxy.test", 3128)),
        (("localhost", 2375), "", None),
        (("127.0.0.1", 2375), "", None),
        (("::1", 2375), "", None),
        (("engine.example.org", 2375), "example.org", None),
        (("engine.example.org", 2375), ".example.org:2375,other", None),
        (("engine.example.org", 2375), "example.org:80", ("proxy.test", 3128)),
        (("myexample.org", 2375), "example.org", ("proxy.test", 3128)),
        (("engine.example.org", 2375), "*", None),
    ],
)
def test_a_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, target: tuple[str, int], no_proxy: str, expected: object
) -> None:
    from teu.cli.http import proxy_for

    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert proxy_for("http", target) is None
    monkeypatch.setenv("HTTP_PROXY", "http://user:word@proxy.test:3128/")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_for("http", target) == expected
    assert proxy_for("https", target) is None


def test_a_request_by_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request line has the whole address, and the proxy's port is what is dialled."""
    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    heard: list[bytes] = []

    def proxy() -> None:
        connection, _ = server.accept()
        with connection:
            heard.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

    thread = threading.Thread(target=proxy)
    thread.start()
    assert Client("tcp://engine.example.org:2375").get("/info") == {}
    thread.join()
    server.close()
    assert heard[0].startswith(b"GET http://engine.example.org:2375/v") and b"Host: engine.example.org" in heard[0]


@pytest.mark.parametrize(
    ("words", "environment", "verify"),
    [
        (["--tls"], {}, False),
        (["--tlsverify"], {}, True),
        (["--tlsverify=false"], {}, False),
        (["--tls"], {"DOCKER_TLS_VERIFY": "1"}, True),
        ([], {"DOCKER_TLS_VERIFY": "1"}, True),
        ([], {}, None),
        (["--tlsverify=false"], {"DOCKER_TLS_VERIFY": "1"}, False),
        ([], {"DOCKER_TLS": "1"}, False),
    ],
)
def test_tls_is_asked_for_as_with_docker(
    monkeypatch: pytest.MonkeyPatch, words: list[str], environment: dict[str, str], verify: bool | None
) -> None:
    from teu.cli.command import GLOBAL_FLAGS, Cli
    from teu.cli.options import parse, parse_table

    for name in ("DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    options, _ = parse(parse_table(GLOBAL_FLAGS), [*words, "-H", "tcp://127.0.0.1:1"], False)
    tls = Cli(options).client.tls
    assert (None if tls is None else "verify" in tls) == verify


class _Chunks:
    def chunks(self) -> list[bytes]:
        return [b"one", b"two"]


def test_what_cannot_be_written_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    longest = tmp_path / ("a" * 255)  # as long as a name may be
    archives.write_output(_Chunks(), str(longest))  # type: ignore[arg-type]
    assert longest.read_bytes() == b"onetwo"
    longest.unlink()
    for path, why in ((tmp_path / ("a" * 256), "file name too long"), (Path("/proc/1/x"), ""), (Path("/dev/full"), "")):
        with pytest.raises(CommandError, match=f"cannot write {path}: .*{why}"):
            archives.write_output(_Chunks(), str(path))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=f"read {tmp_path}: is a directory"):
        archives.open_input(str(tmp_path))


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("tcp://127.0.0.1:99999", "a port is at most 65535"),
        ("tcp://127.0.0.1:" + "9" * 5000, "a port is at most 65535"),
        ("a" * 64 + ".example:80", "it has no name of a host"),
        ("tcp://\U000feb29:80", "it has no name of a host"),
    ],
    ids=["too large", "endless", "long label", "no letter"],
)
def test_a_host_that_can_be_none_is_told(host: str, says: str) -> None:
    done = teu("-H", host, "ps")
    assert done.returncode == 1 and says in done.stderr and "unexpected" not in done.stderr, done.stderr[-500:]


def test_certificates_that_are_none_are_told(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("none")
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        for option in ("--tlscacert", "--tlscert"):
            for name in ("none.pem", "missing.pem"):
                done = teu("-H", host, "--tlsverify", option, str(tmp_path / name), "ps")
                assert done.returncode == 1 and f"cannot use the certificates in {tmp_path / name}" in done.stderr


def test_headers_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.headers_of_environment('x-a=1,"B=2,3",host=h') == {"X-A": "1", "B": "2,3"}
    for text in ("=x", "x", "a=1,b", "a b=1"):
        with pytest.raises(CommandError, match="DOCKER_CUSTOM_HEADERS"):
            config.headers_of_environment(text)


def test_credentials_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"auths": {"file.test": {"auth": "ZjpwYXNz"}}}')
    file = config.ConfigFile(str(tmp_path))
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", '{"auths": {"https://env.test/v1/": {"auth": "dTpzZWNyZXQ="}}}')
    assert file.auth("env.test") == {"serveraddress": "env.test", "username": "u", "password": "secret"}
    assert file.auth("file.test")["username"] == "f" and file.auth("other.test") == {}
    for text in ("{", "[]", "{}", '{"auths": {"a": {}}}', '{"auths": {"a": {"auth": "eA=="}}}', '{"auths": {"a": 1}}'):
        monkeypatch.setenv("DOCKER_AUTH_CONFIG", text)
        with pytest.raises(CommandError, match="DOCKER_AUTH_CONFIG must be"):
            file.auth("env.test")


def test_filters_of_the_file_for_prune(daemon: Daemon, teu: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "config.json").write_text('{"pruneFilters": ["label=keep", "label!=drop", "until=1h", "nonsense"]}')
    daemon.on("POST", "/containers/prune", {})
    teu("container", "prune", "-f")
    assert daemon.last.filters() == {"label": {"keep": True}, "label!": {"drop": True}, "until": {"1h": True}}
    teu("container", "prune", "-f", "--filter", "label!=keep", "--filter", "label=mine")
    assert daemon.last.filters() == {
        "label": {"mine": True},
        "label!": {"keep": True, "drop": True},
        "until": {"1h": True},
    }
