# SPDX-License-Identifier: Apache-2.0
"""Bad input through the whole house: a clear message, docker's exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
import whole
from whole import out, teu

SOCKET = "/run/teu/teud.sock"


@pytest.fixture(scope="module", autouse=True)
def nothing_left() -> Iterator[None]:
    images.need_busybox()
    whole.remove_everything()
    yield
    assert out("teu", "ps", "-aq") == ""
    whole.eventually("the host is clean at the end", lambda: not whole.leftovers(), timeout=30)


def refused(code: int, *argv: str, says: str) -> None:
    done = teu(*argv, check=False)
    assert done.returncode == code, (argv, done.returncode, done.stdout, done.stderr)
    # The client of an exec reads from its streams why it did not start: as with docker, from standard output.
    told = done.stdout if argv[0] == "exec" else done.stderr
    assert says.lower() in told.lower(), (argv, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr


def test_unknown_image_with_no_registry_to_ask() -> None:
    # the registry named is on loopback and nothing listens there
    refused(125, "run", "--rm", "127.0.0.1:9/none", "true", says="connection refused")
    refused(1, "pull", "127.0.0.1:9/none", says="connection refused")
    refused(125, "run", "--rm", "--pull=never", "no-such-image", "true", says="no such image")


@pytest.mark.parametrize("reference", ["UPPER", "a b", "x:y:z", "-x/", "busybox@sha256:beef"])
def test_malformed_reference(reference: str) -> None:
    refused(125, "run", "--rm", "--", reference, "true", says="invalid reference format")


def test_name_in_use() -> None:
    teu("create", "--name", "taken", whole.IMAGE, "true")
    try:
        refused(125, "run", "--name", "taken", whole.IMAGE, "true", says="already in use")
    finally:
        teu("rm", "taken")


def test_port_in_use() -> None:
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))
        holder.listen()
        port = holder.getsockname()[1]
        refused(125, "run", "--rm", "-p", f"{port}:80", whole.IMAGE, "true", says="address already in use")
    assert out("teu", "ps", "-aq") == ""


def test_port_of_another_container() -> None:
    whole.run_detached("first", "sleep", "600", flags=("-p", "18080:80"))
    try:
        refused(125, "run", "--rm", "-p", "18080:80", whole.IMAGE, "true", says="port is already allocated")
    finally:
        teu("rm", "-f", "first")


def test_unknown_flag() -> None:
    refused(125, "run", "--no-such-flag", whole.IMAGE, says="unknown flag: --no-such-flag")
    refused(125, "ps", "--no-such-flag", says="unknown flag: --no-such-flag")


def test_unknown_command() -> None:
    refused(1, "frobnicate", says="unknown command: teu frobnicate")


def test_bad_bind_source() -> None:
    refused(
        125,
        "run",
        "--rm",
        "--mount",
        "type=bind,source=/no/such/folder,target=/x",
        whole.IMAGE,
        "true",
        says="bind source path does not exist",
    )
    refused(125, "run", "--rm", "-v", "/tmp:relative", whole.IMAGE, "true", says="invalid")


def test_command_not_found_and_not_executable() -> None:
    refused(127, "run", "--rm", whole.IMAGE, "no-such-command", says="no-such-command")
    refused(126, "run", "--rm", whole.IMAGE, "/etc", says="/etc")
    whole.run_detached("host", "sleep", "600")
    try:
        refused(127, "exec", "host", "no-such-command", says="no-such-command")
        refused(126, "exec", "host", "/etc", says="/etc")
    finally:
        teu("rm", "-f", "host")


def test_exit_codes_of_the_process() -> None:
    assert teu("run", "--rm", whole.IMAGE, "sh", "-c", "exit 42", check=False).returncode == 42
    # the kernel does not let the first process of a pid namespace kill itself: a child of it is the one here
    assert teu("run", "--rm", whole.IMAGE, "sh", "-c", "sh -c 'kill -9 $$'; exit $?", check=False).returncode == 137
    ident = whole.run_detached("killed", "sleep", "600")
    teu("kill", "killed")
    assert out("teu", "wait", ident) == "137"
    teu("rm", "killed")


def test_a_daemon_that_is_not_there() -> None:
    refused(1, "-H", "unix:///run/no-such.sock", "ps", says="/run/no-such.sock")


def test_a_user_outside_the_group() -> None:
    nobody = pwd.getpwnam("nobody")
    done = subprocess.run(
        ["teu", "ps"],
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/"},
    )
    assert done.returncode == 1
    assert "permission denied" in done.stderr.lower() and "group" in done.stderr


def test_socket_ownership() -> None:
    import grp

    info = Path(SOCKET).stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (0, grp.getgrnam("teu").gr_gid, 0o660)
    info = Path("/run/teu/containerd.sock").stat()
    assert (info.st_uid, info.st_mode & 0o777) == (0, 0o600)


def raw(request: bytes) -> tuple[int, bytes]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(SOCKET)
        try:
            sock.sendall(request)
        except BrokenPipeError:
            pass
        answer = b""
        while data := sock.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_malformed_and_oversized_bodies() -> None:
    def post(body: bytes, length: int | None = None) -> tuple[int, bytes]:
        return raw(
            b"POST /v1.45/containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % (length or len(body)) + body
        )

    status, body = post(b"{not json")
    assert status == 400 and json.loads(body)["message"]
    status, body = post(b'["a list"]')
    assert status == 400 and json.loads(body)["message"]
    status, body = post(b'{"Image": 7}')
    assert status == 400, body
    status, body = post(b" " * (1 << 20), length=1 << 40)
    assert status in (400, 413), body
    status, _ = raw(b"this is not http\r\n\r\n")
    assert status == 400
    assert out("teu", "ps", "-q") == ""


def test_bad_configuration_stops_the_start(tmp_path: Path) -> None:
    for program in ("teud", "teu-containerd"):
        config = tmp_path / f"{program}.yaml"
        config.write_text("# a comment\nno-such-key: 1\n")
        done = whole.call(program, "--validate", "--config", str(config), check=False)
        assert done.returncode != 0
        for wanted in (str(config), "2", "no-such-key"):
            assert wanted in done.stderr, done.stderr
        config.write_text("log-level: [unclear\n")
        done = whole.call(program, "--validate", "--config", str(config), check=False)
        assert done.returncode != 0 and str(config) in done.stderr and "Traceback" not in done.stderr
        config.write_text("")
        assert whole.call(program, "--validate", "--config", str(config)).returncode == 0
