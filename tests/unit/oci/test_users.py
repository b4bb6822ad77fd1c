# SPDX-License-Identifier: Apache-2.0
"""Users and groups by the files of a root."""

from __future__ import annotations

from typing import Any

import pytest

from teu.oci import users

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:\nodd:x:7\n#no:x:1:1::/:\n"
GROUP = b"root:x:0:\nwww:x:33:\nextra:x:50:www,root\nmore:x:51:www\n"


@pytest.mark.parametrize(
    ("text", "extra", "wanted"),
    [
        ("", [], (0, 0, [0, 50], "/root")),
        ("www", [], (33, 33, [33, 50, 51], "/var/www")),
        ("33", [], (33, 33, [33, 50, 51], "/var/www")),
        ("www:more", [], (33, 51, [51], "/var/www")),
        ("1000", [], (1000, 0, [0], "")),
        ("1000:2000", ["extra", "77"], (1000, 2000, [2000, 50, 77], "")),
        (":more", [], (0, 51, [51], "/root")),
    ],
)
def test_users(text: str, extra: list[str], wanted: tuple[Any, ...]) -> None:
    assert tuple(users.lookup((PASSWD, GROUP), text, extra)) == wanted


@pytest.mark.parametrize(
    ("text", "extra"), [("nobody", []), ("www:nogroup", []), ("www", ["nogroup"]), ("4294967296", [])]
)
def test_unknown_users(text: str, extra: list[str]) -> None:
    with pytest.raises(ValueError):
        users.lookup((PASSWD, GROUP), text, extra)


def test_a_user_without_files_is_root() -> None:
    assert tuple(users.lookup((b"", b""), "")) == (0, 0, [0], "")


def test_a_number_of_any_length_is_an_answer() -> None:
    with pytest.raises(ValueError, match="must be in range"):
        users.lookup((b"", b""), "9" * 5000)


@pytest.mark.parametrize(("name", "told"), [("www", [50, 51]), ("33", [50, 51]), ("root", [50]), ("nobody", [])])
def test_memberships(name: str, told: list[int]) -> None:
    assert users.memberships((PASSWD, GROUP), name) == told
