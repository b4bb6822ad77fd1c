# SPDX-License-Identifier: Apache-2.0
"""How a volume with options is mounted: servers by name, files of credentials, options, and what nobody is to read."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from teu.engine.core.errors import EngineError
from teu.engine.volumes.drivers import local, local_mount

NAMES = {"nas.example": [("192.0.2.8", 2), ("2001:db8::8", 10)], "six.example": [("2001:db8::6", 10)]}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What mount(2) is told."""
    calls: list[tuple[Any, ...]] = []

    def lookup(host: str, port: None, family: int = 0, kind: int = 0) -> list[Any]:
        found = [address for address, of in NAMES.get(host, []) if family in (0, of)]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(local_mount, "syscall", lambda what, number, *arguments: calls.append((what, *arguments)))
    return calls


def data(kernel: list[tuple[Any, ...]], **options: str) -> str:
    local_mount.mount("/v", options)
    return bytes(kernel[-1][5] or b"").decode(errors="surrogateescape")


@pytest.mark.parametrize(
    ("kind", "device", "given", "told"),
    [
        ("nfs", "nas.example:/export", "rw,nfsvers=4.2", "nfsvers=4.2,addr=192.0.2.8"),
        ("nfs4", "nas.example:/export", "", "addr=192.0.2.8"),
        ("nfs", ":/export", "addr=nas.example,soft,nolock", "addr=192.0.2.8,soft,nolock"),
        ("nfs", "other:/export", "addr=192.0.2.1", "addr=192.0.2.1"),
        ("nfs", "[2001:db8::1]:/export", "", "addr=2001:db8::1"),
        ("nfs", "nas.example:/export", "proto=tcp6", "proto=tcp6,addr=2001:db8::8"),
        ("nfs", "[fe80::1%eth0]:/export", "", "addr=fe80::1%eth0"),
        ("cifs", "//nas.example/share", "username=u,password=p", "username=u,password=p,ip=192.0.2.8"),
        ("cifs", "\\\\nas.example\\share", "guest", "guest,ip=192.0.2.8"),
        ("smb3", "//x/share", "addr=six.example", "ip=2001:db8::6"),
        ("cifs", "//192.0.2.9/share", "vers=3.0,uid=5", "vers=3.0,uid=5,ip=192.0.2.9"),
    ],
)
def test_servers_by_name(kernel: list[tuple[Any, ...]], kind: str, device: str, given: str, told: str) -> None:
    assert data(kernel, type=kind, device=device, o=given) == told
    assert kernel[-1][1] == device.encode(), "the server sees the name that was given"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"type": "nfs", "device": "nobody.example:/x"}, "network volume address: nobody.example: Name or service"),
        ({"type": "nfs", "device": ":/x"}, "no server is named: give device=SERVER:/PATH, or addr=SERVER"),
        ({"type": "cifs", "device": "share"}, "no server is named: give device=//SERVER/SHARE"),
        ({"type": "cifs", "device": "//nas.example/s", "o": "credentials=/nowhere"}, "credentials in /nowhere cannot"),
    ],
)
def test_servers_that_are_none(kernel: list[tuple[Any, ...]], options: dict[str, str], says: str) -> None:
    with pytest.raises(OSError, match=says):
        local_mount.mount("/v", options)
    assert not kernel


def test_a_file_of_credentials(kernel: list[tuple[Any, ...]], tmp_path: Path) -> None:
    file = tmp_path / "nas.credentials"
    file.write_text("# of the nas\nusername=me\n password=a,b=c \nDOMAIN=corp\nother=1\n")
    told = data(kernel, type="cifs", device="//192.0.2.9/s", o=f"credentials={file},vers=3.0")
    assert told == "vers=3.0,username=me,password=a,,b=c,domain=corp,ip=192.0.2.9"
    file.write_bytes(b"password=\xe9\n")  # of another character set: the server's affair
    assert data(kernel, type="cifs", device="//192.0.2.9/s", o=f"cred={file}") == "password=\udce9,ip=192.0.2.9"


def test_nobody_is_shown_a_password(kernel: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_mount.masked("pass=a,,b,ro") == "pass=********,ro"
    assert local_mount.masked("username=u,password=p,password2=q") == "username=u,password=********,password2=********"
    data(kernel, type="cifs", device="//192.0.2.9/s", o="username=u,password=secret")
    assert "secret" not in kernel[-1][0] and "password=********" in kernel[-1][0]

    def refused(what: str, *_: object) -> None:
        raise OSError(errno.EPERM, f"{what}: Operation not permitted")

    monkeypatch.setattr(local_mount, "syscall", refused)
    with pytest.raises(OSError) as caught:
        local_mount.mount("/v", {"type": "cifs", "device": "//192.0.2.9/s", "o": "password=secret"})
    assert "secret" not in str(caught.value)


def test_a_password_is_in_no_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    real = subprocess.Popen

    def started(argv: list[str], **more: Any) -> Any:
        seen.append(argv)
        return real([sys.executable, "-c", "import sys; sys.stderr.write(sys.stdin.read()); sys.exit(1)"], **more)

    monkeypatch.setattr(local.subprocess, "Popen", started)
    with pytest.raises(EngineError, match="failed to mount local volume: .*password=secret"):
        local._mount({"type": "cifs", "device": "//192.0.2.9/s", "o": "password=secret"}, str(tmp_path))
    assert not any("secret" in word for word in seen[0])


def test_options_that_are_mounts_own(kernel: list[tuple[Any, ...]]) -> None:
    told = data(
        kernel, type="tmpfs", device="tmpfs", o="size=1m,_netdev,nofail,noauto,x-systemd.automount,user,mode=700"
    )
    assert told == "size=1m,mode=700"


def test_a_share_is_no_path_of_the_host(tmp_path: Path) -> None:
    driver = local.Local(str(tmp_path))
    assert driver.host_paths("v", {"type": "cifs", "device": "//nas/share"}) == [driver.path("v")]
    assert driver.host_paths("v", {"type": "none", "device": "/srv", "o": "bind"}) == [driver.path("v"), "/srv"]
