# SPDX-License-Identifier: Apache-2.0
"""What the tests of declared containers share: files in /etc/teu/containers, and what is left of them in the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from images import need_busybox
from whole import call, eventually, out, show, teu

PLACE = Path("/etc/teu/containers")
UNITS = Path("/run/systemd/system")
# The host's Python inside of a busybox: for programs that speak to systemd.
HOST_PYTHON = "Volume=/usr:/usr:ro\nVolume=/usr/lib:/lib:ro\nVolume=/usr/lib64:/lib64:ro\n"
SPEAK = "import socket,os,time,sys; say=lambda t: socket.socket(1,2).sendto(t.encode(),os.environ['NOTIFY_SOCKET'])"


class Declared:
    """Writes files and has systemd read them; takes all away in the end."""

    def __init__(self) -> None:
        self.files: list[Path] = []

    def write(self, **texts: str) -> None:
        """web_container is web.container, web__1_container is web@1.container; .socket units go to systemd itself."""
        for name, text in texts.items():
            stem, _, kind = name.rpartition("_")
            place = UNITS if kind in ("socket", "timer", "target") else PLACE
            self.file(place / f"{stem.replace('__', '@')}.{kind}", text)
        self.reload()

    def file(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.files.append(path)

    def reload(self) -> None:
        call("systemctl", "daemon-reload")

    def units(self) -> list[str]:
        """All units that systemd has of generated ones, instances as well."""
        found = []
        for path in Path("/run/systemd/generator").glob("*.service"):
            if path.read_text().startswith("# Made by teu-system-generator"):
                name = path.name.replace("@.", "@*.")
                listed = out("systemctl", "list-units", "--all", "--plain", "--no-legend", name).splitlines()
                found += [line.split()[0] for line in listed]
        return found

    def end(self) -> None:
        units = [*self.units(), *(path.name for path in self.files if path.parent == UNITS)]
        if units:
            call("systemctl", "stop", *units, check=False)
        for path in reversed(self.files):
            path.unlink(missing_ok=True)
            if path.parent not in (PLACE, UNITS):
                path.parent.rmdir() if not any(path.parent.iterdir()) else None
        self.files.clear()
        self.reload()
        call("systemctl", "reset-failed", check=False)


@pytest.fixture
def declare() -> Iterator[Declared]:
    need_busybox()
    found = Declared()
    try:
        yield found
    finally:
        found.end()
    left = json.loads(
        out("sh", "-c", "teu ps -a --filter label=io.teu.unit --format '{{json .Names}}' | head -1") or "null"
    )
    assert left is None, f"a container is left: {left}"
    assert not any(Path("/run/teu/units").glob("*")), "a unit's folder is left"


@pytest.fixture
def shared_run() -> Iterator[None]:
    """/run is a shared mount on every host, which systemd's credentials need; in a namespace lab it may be none."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[4] == "/run" and "shared:" not in line:
            call("mount", "--make-shared", "/run")
            yield
            call("mount", "--make-private", "/run")
            return
    yield


def start(unit: str, *, check: bool = True) -> int:
    return call("systemctl", "start", unit, check=check).returncode


def state(unit: str) -> str:
    return show(unit, "ActiveState")


def becomes(unit: str, wanted: str, timeout: float = 30) -> None:
    eventually(f"{unit} is {wanted}", lambda: state(unit) == wanted, timeout)


def inspect(name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(teu("inspect", name).stdout)[0]
    return found


def journal(unit: str) -> str:
    call("journalctl", "--sync")
    return out("journalctl", "-q", "-o", "cat", "-u", unit)
