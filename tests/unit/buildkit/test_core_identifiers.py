# SPDX-License-Identifier: Apache-2.0
"""Addresses as others may see them."""

from __future__ import annotations

import pytest

from teu.buildkit.core.identifiers import without_credentials


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://host/x", "https://host/x"),
        ("https://me:word@host:1/x", "https://xxxxx:xxxxx@host:1/x"),
        ("https://me:w@rd@host", "https://xxxxx:xxxxx@host"),
        ("https://token@host?a=b@c", "https://xxxxx@host?a=b@c"),
        ("https://host/x@y", "https://host/x@y"),
        ("git@host:path", "git@host:path"),
        ("docker-image://name@sha256:0", "docker-image://name@sha256:0"),
        ("docker-image://host/name@sha256:0", "docker-image://host/name@sha256:0"),
        ("", ""),
    ],
)
def test_without_credentials(address: str, shown: str) -> None:
    assert without_credentials(address) == shown
