# SPDX-License-Identifier: Apache-2.0
"""Names of mount units, which mounts a path is on, and the file that has a daemon started at boot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from teu.systemd import host
from teu.systemd.bus import BusError

# As systemd-escape --path --suffix=mount says.
NAMES = (
    ("/", "-.mount"),
    ("/srv", "srv.mount"),
    ("/srv/data", "srv-data.mount"),
    ("/var/lib/a-b", "var-lib-a\\x2db.mount"),
    ("/a b/ü", "a\\x20b-\\xc3\\xbc.mount"),
    ("/.hidden/x", "\\x2ehidden-x.mount"),
    ("/x/.y", "x-.y.mount"),
    ("/a\\b", "a\\x5cb.mount"),
    ("/x:y_z.", "x:y_z..mount"),
    ("/new\nline", "new\\x0aline.mount"),
)


@pytest.mark.parametrize(("place", "name"), NAMES)
def test_names_are_systemds(place: str, name: str) -> None:
    assert host.mount_unit(place) == name


def test_places_of() -> None:
    assert host.places_of(["/a/b/c", "/a/d", "/"]) == ["/a", "/a/b", "/a/b/c", "/a/d"]


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc")
    assert "/proc" in host.places_of([f"{tmp_path}/link/sys"])
    assert f"{tmp_path}/link" not in host.places_of([f"{tmp_path}/link/sys"])


def test_mounted() -> None:
    assert "proc.mount" in host.mounted(["/proc/sys/kernel"])
    assert host.mounted(["/"]) == []


def test_mountinfo_escapes() -> None:
    assert host._in_table("/a b\\c\td") == b"/a\\040b\\134c\\011d"


def test_bound() -> None:
    mounts = [
        {"destination": "/a", "type": "bind", "source": "/x"},
        {"destination": "/b", "source": "/y", "options": ["rbind", "ro"]},
        {"destination": "/c", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/d", "type": "bind", "source": "relative"},
        {"destination": "/e", "type": "none"},
    ]
    assert host.bound({"mounts": mounts}) == ["/x", "/y"]
    assert host.bound({}) == []


def test_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    marker = host.Marker(str(tmp_path))
    marker.put(False)
    assert not marker.there
    marker.put(True)
    marker.put(True)
    assert (tmp_path / host.MARKER).exists() and host.Marker(str(tmp_path)).there
    os.unlink(tmp_path / host.MARKER)
    marker.put(False)
    assert not marker.there

    # What the unit looks at, wherever the data is.
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/state:{tmp_path}/other")
    (tmp_path / "state").mkdir()
    host.Marker(str(tmp_path)).put(True)
    assert (tmp_path / "state" / host.MARKER).exists() and not (tmp_path / host.MARKER).exists()


class Answers:
    """A bus on which one service says something, one nothing, and one is none."""

    def __init__(self, timeout: float) -> None: ...

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def call(self, *words: object) -> list[object]:
        if words[3] == "GetUnit":
            (name,) = words[5]  # type: ignore[misc]
            if name == "none.service":
                raise BusError("org.freedesktop.systemd1.NoSuchUnit", "")
            return [name]
        assert words[5] == ("org.freedesktop.systemd1.Service", "StatusText")
        return [("s", {"web.service": "Serving", "bad.service": "a\x1b]0;b\x07é\n"}.get(str(words[1]), ""))]


def test_what_services_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "Bus", Answers)
    assert host.said(["none.service", "web.service", "mute.service"]) == {"web.service": "Serving"}
    assert host.said(["bad.service"]) == {"bad.service": "a?]0;b?é?"}, "nothing that a terminal obeys"

    def away(timeout: float) -> Answers:
        raise ConnectionRefusedError

    monkeypatch.setattr(host, "Bus", away)
    assert host.said(["web.service"]) == {}
