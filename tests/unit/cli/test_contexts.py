# SPDX-License-Identifier: Apache-2.0
"""Contexts: which one is in force, docker's store, archives; and the addresses of ssh."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prepared import Daemon

from teu.cli import main, ssh
from teu.cli.command import GLOBAL_FLAGS, Cli
from teu.cli.contextstore import Store
from teu.cli.errors import CommandError
from teu.cli.options import parse, parse_table

META = {"Name": "far", "Metadata": {"Description": "d", "Own": 1}, "Endpoints": {"docker": {"Host": "tcp://h:1"}}}


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("DOCKER_", "TEU_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`run(*argv)`: what it prints. `run(*argv, error="…")`: it has to end with that error."""

    def call(*argv: str, error: str = "") -> str:
        capsys.readouterr()
        if error:
            with pytest.raises(CommandError) as caught:
                main.dispatch(["--config", str(tmp_path), *argv])
            assert error in caught.value.text
        else:
            assert main.dispatch(["--config", str(tmp_path), *argv]) == 0
        return capsys.readouterr().out

    return call


def chosen(tmp_path: Path, *argv: str) -> Cli:
    return Cli(parse(parse_table(GLOBAL_FLAGS), ["--config", str(tmp_path), *argv])[0])


def test_which_context_is_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(tmp_path).context == "default"
    (tmp_path / "config.json").write_text('{"currentContext": "file"}')
    assert chosen(tmp_path).context == "file"
    monkeypatch.setenv("DOCKER_CONTEXT", "variable")
    assert chosen(tmp_path).context == "variable"
    for name in ("DOCKER_HOST", "TEU_HOST"):
        monkeypatch.setenv(name, "unix:///x")
        assert chosen(tmp_path).context == "default"
        assert chosen(tmp_path).client.host == "unix:///x"
        assert chosen(tmp_path, "-c", "option").context == "option"
        monkeypatch.delenv(name)
    assert chosen(tmp_path, "-H", "unix:///y").context == "default"
    with pytest.raises(CommandError, match="conflicting options"):
        _ = chosen(tmp_path, "-H", "unix:///y", "-c", "z").context
    with pytest.raises(CommandError, match=r'Failed to initialize: .* context "variable": context not found'):
        _ = chosen(tmp_path).client


def test_a_command_without_a_context_loads_no_store(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(main.__file__).parents[2])!r})\n"
        f"from teu.cli.command import GLOBAL_FLAGS, Cli; from teu.cli.options import parse, parse_table\n"
        f"Cli(parse(parse_table(GLOBAL_FLAGS), ['--config', {str(tmp_path)!r}])[0]).client\n"
        f"print([name for name in sys.modules if name in ('hashlib', 'teu.cli.contextstore', 'teu.cli.ssh')])"
    )
    (tmp_path / "config.json").write_text('{"auths": {}}')
    done = subprocess.run([sys.executable, "-IS", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_store_is_dockers(tmp_path: Path, run: Callable[..., str]) -> None:
    (tmp_path / "ca").write_text("CA")
    words = f"host=tcp://far:2376,ca={tmp_path}/ca"
    assert run("context", "create", "far", "--description", "d", "--docker", words) == "far\n"
    name = hashlib.sha256(b"far").hexdigest()
    assert json.loads((tmp_path / f"contexts/meta/{name}/meta.json").read_text()) == {
        "Name": "far",
        "Metadata": {"Description": "d"},
        "Endpoints": {"docker": {"Host": "tcp://far:2376", "SkipTLSVerify": False}},
    }
    ca = tmp_path / f"contexts/tls/{name}/docker/ca.pem"
    assert ca.read_text() == "CA" and ca.stat().st_mode & 0o777 == 0o600 and ca.parent.stat().st_mode & 0o777 == 0o700
    assert Store(str(tmp_path)).endpoint("far") == ("tcp://far:2376", {"ca": str(ca), "verify": "yes"})
    assert run("context", "update", "far", "--docker", "host=tcp://far:1,skip-tls-verify=true") == "far\n"
    assert Store(str(tmp_path)).endpoint("far") == ("tcp://far:1", {}) and not ca.exists()
    run("context", "update", "far", "--docker", "host=unix:///x")
    assert Store(str(tmp_path)).endpoint("far") == ("unix:///x", None)


def test_what_others_wrote_into_a_context_stays(tmp_path: Path, run: Callable[..., str]) -> None:
    store = Store(str(tmp_path))
    other = {"Host": "https://k", "SkipTLSVerify": False}
    store.write({**META, "Endpoints": {**META["Endpoints"], "kubernetes": other}})  # type: ignore[dict-item]
    store.write_tls("far", {("kubernetes", "key.pem"): b"k", ("docker", "key.pem"): b"d"})
    run("context", "update", "far", "--description", "e", "--docker", "host=unix:///x")
    found = store.read("far")
    assert found["Metadata"] == {"Description": "e", "Own": 1} and found["Endpoints"]["kubernetes"] == other
    assert store.tls_data("far") == {("kubernetes", "key.pem"): b"k"}


def test_use_writes_the_file_and_rm_takes_it_back(tmp_path: Path, run: Callable[..., str]) -> None:
    (tmp_path / "config.json").write_text('{"auths": {"r": {}}, "other": [1]}')
    run("context", "create", "far", "--docker", "host=unix:///far")
    assert run("context", "use", "far") == "far\n" and run("context", "show") == "far\n"
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "auths": {"r": {}},
        "other": [1],
        "currentContext": "far",
    }
    assert chosen(tmp_path).client.host == "unix:///far"
    run("context", "rm", "far", error='context "far" is in use, set -f flag to force remove')
    run("context", "rm", "default", "nosuch", error='"default" cannot be removed\ncontext "nosuch" does not exist')
    assert run("context", "rm", "-f", "far") == "far\n" and run("context", "show") == "default\n"
    assert not os.listdir(tmp_path / "contexts/meta")
    run("context", "use", "nosuch", error='context "nosuch": context not found')


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (("x",), 'context name "x" is invalid'),
        (("default",), '"default" is a reserved context name'),
        (("a/b",), "is invalid"),
        (("far", "--docker", "host=x"), 'context "far" already exists'),
        (("n1", "--docker", "host"), "host must be formatted as key=value"),
        (("n1", "--docker", "hots=x"), "unrecognized config key: hots"),
        (("n1", "--docker", "host=x,skip-tls-verify=maybe"), 'skip-tls-verify: parsing "maybe": invalid syntax'),
        (("n1", "--docker", "host=x,ca=/nope"), "open /nope: no such file or directory"),
        (("n1", "--from", "far", "--docker", "host=x"), "cannot use --docker flag when --from is set"),
        (("n1", "--from", "nosuch"), 'context "nosuch": context not found'),
    ],
)
def test_what_cannot_be_created(run: Callable[..., str], tmp_path: Path, argv: tuple[str, ...], error: str) -> None:
    Store(str(tmp_path)).write(META)
    run("context", "create", *argv, error=error)
    assert len(Store(str(tmp_path)).all()) == 1


def test_a_context_of_the_present_one(tmp_path: Path, run: Callable[..., str]) -> None:
    run("-H", "tcp://now:1", "context", "create", "one")
    run("context", "create", "two", "--from", "one", "--description", "other")
    run("context", "create", "three", "--docker", "from=one")
    found = {meta["Name"]: meta for meta in Store(str(tmp_path)).all()}
    assert {name: meta["Endpoints"]["docker"]["Host"] for name, meta in found.items()} == dict.fromkeys(
        ("one", "two", "three"), "tcp://now:1"
    )
    assert found["two"]["Metadata"] == {"Description": "other"} and found["three"]["Metadata"] == {}


def test_an_archive_goes_out_and_in(tmp_path: Path, run: Callable[..., str]) -> None:
    store = Store(str(tmp_path))
    store.write(META)
    store.write_tls("far", {("docker", "ca.pem"): b"CA", ("docker", "key.pem"): b"KEY"})
    target = tmp_path / "far.tar"
    run("context", "export", "far", str(target))
    assert target.stat().st_mode & 0o777 == 0o600
    run("context", "export", "far", str(target), error="file exists")
    with tarfile.open(target) as tar:
        assert tar.getnames() == ["meta.json", "tls", "tls/docker", "tls/docker/ca.pem", "tls/docker/key.pem"]
    run("context", "import", "again", str(target))
    assert store.read("again") == {**META, "Name": "again"} and store.tls_data("again") == store.tls_data("far")
    whole = target.read_bytes()
    assert b"KEY" in whole
    target.write_bytes(whole[: whole.index(b"KEY") + 3])  # as docker writes it: nothing after the last file
    run("context", "import", "short", str(target))
    assert store.tls_data("short") == store.tls_data("far")
    packed = tmp_path / "far.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("meta.json", json.dumps(META))
        archive.writestr("tls/docker/ca.pem", "CA")
    run("context", "import", "zipped", str(packed))
    assert store.tls_data("zipped") == {("docker", "ca.pem"): b"CA"}


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ({"tls/docker/ca.pem": b""}, "no metadata found"),
        ({"meta.json": b"[]"}, "meta.json: it is no JSON object"),
        ({"meta.json": b"{"}, "meta.json: "),
        ({"meta.json": b"{}", "tls/../x": b""}, "tls/../x: unexpected context file"),
        ({"meta.json": b"{}", "tls/docker/../../../x": b""}, "unexpected context file"),
        ({"meta.json": b"{}", "tls/docker/..": b""}, "unexpected context file"),
        ({"meta.json": b"{}", "other": b""}, "other: unexpected context file"),
        ({"meta.json": b'{"Endpoints": {"docker": {"Host": 1}}}'}, "Host must be a text"),
        ({"meta.json": b'{"Metadata": []  , "Endpoints": 1}'}, "Endpoints must be"),
    ],
)
def test_an_archive_that_is_no_context(
    tmp_path: Path, run: Callable[..., str], entries: dict[str, bytes], error: str
) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        for name, data in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    run("context", "import", "bad", str(tmp_path / "bad.tar"), error=error)
    assert not (tmp_path / "contexts").exists()


def test_lists_and_inspect(tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.write(META)
    store.write({"Name": "empty", "Metadata": {}, "Endpoints": {}})
    monkeypatch.setenv("DOCKER_CONTEXT", "gone")
    lines = [line.split("  ") for line in run("context", "ls").splitlines()]
    assert [line[0].rstrip() for line in lines] == ["NAME", "default", "empty", "far", "gone *"]
    assert "cannot find docker endpoint in context" in lines[2][-1] or "cannot find" in "".join(lines[2])
    assert run("context", "ls", "-q") == "default\nempty\nfar\ngone\n"
    found = json.loads(run("context", "inspect", "far"))
    assert found[0]["TLSMaterial"] == {} and found[0]["Storage"]["MetadataPath"] == store.meta_path("far")
    assert run("context", "inspect", "-f", "{{.Name}} {{.Endpoints.docker.Host}}", "far") == "far tcp://h:1\n"
    (tmp_path / "contexts/meta" / hashlib.sha256(b"far").hexdigest() / "meta.json").write_text("nonsense")
    run("context", "ls", error="parsing ")


@pytest.mark.parametrize(
    ("host", "parts"),
    [
        ("ssh://h", ("", "h", "", "")),
        ("ssh://me@h:22", ("me", "h", "22", "")),
        ("ssh://me@h:22/", ("me", "h", "22", "")),
        ("ssh://h/run/teu/teud.sock", ("", "h", "", "/run/teu/teud.sock")),
        ("ssh://me@[::1]:2222", ("me", "::1", "2222", "")),
    ],
)
def test_addresses_of_ssh(host: str, parts: tuple[str, ...]) -> None:
    assert ssh.parse(host) == parts


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("ssh://", "hostname is empty"),
        ("ssh://me:secret@h", "plain-text password is not supported"),
        ("ssh://h?x=1", "query parameters are not allowed"),
        ("ssh://h#x", "fragments are not allowed"),
        ("ssh://h:port", 'invalid port "port"'),
        ("ssh://-oProxyCommand=x", "invalid character"),
        ("ssh://-oProxyCommand=x@h", "invalid character"),
        ("ssh://a;b'@h", "invalid character"),
    ],
)
def test_what_is_no_address_of_ssh(host: str, why: str) -> None:
    with pytest.raises(CommandError, match=why.replace("(", r"\(")):
        ssh.command(host)


@pytest.mark.parametrize("program", ["teu", "docker"])
def test_the_other_end_runs_what_is_there(tmp_path: Path, program: str) -> None:
    """As sshd does, a shell gets the last word; no word of the address is read by it."""
    argv = ssh.command("ssh://me@h:22/run/a'; touch x/s.sock")
    assert argv[:5] == ["ssh", "-l", "me", "-p", "22"] and argv[-3:-1] == ["--", "h"]
    (tmp_path / "sh").symlink_to("/bin/sh")
    (tmp_path / program).write_text('#!/bin/sh\nprintf "%s|" "${0##*/}" "$@"\n')
    (tmp_path / program).chmod(0o755)
    shown = subprocess.run(["/bin/sh", "-c", argv[-1]], capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert shown.stdout == f"{program}|--host|unix:///run/a'; touch x/s.sock|system|dial-stdio|"


def test_dial_stdio_passes_both_ways(daemon: Daemon, teu: Callable[..., Any], tmp_path: Path) -> None:
    found = teu("system", "dial-stdio", stdin=b"GET /v1.45/_ping HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert found.code == 0 and found.out.startswith("HTTP/1.1 200 OK") and found.out.endswith("OK")
    assert daemon.calls() == ["GET /_ping"]


def test_names_are_offered(tmp_path: Path, run: Callable[..., str]) -> None:
    Store(str(tmp_path)).write(META)
    assert run("__complete", "--config", str(tmp_path), "context", "use", "") == "default\nfar\n"
    assert run("__complete", "--config", str(tmp_path), "-c", "f") == "far\n"
    assert run("__complete", "--config", str(tmp_path), "context", "show", "") == ""
