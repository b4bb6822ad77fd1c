# SPDX-License-Identifier: Apache-2.0
"""What a client says of itself to registries, in X-Registry-Auth."""

from __future__ import annotations

import base64
import logging

import pytest

from teu.engine.images import registries
from teu.oci.distribution import Credentials


def header(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).decode()


@pytest.mark.parametrize("given", ["", header(b"{}"), header(b'{"registryId": 0}')])
def test_none(given: str) -> None:
    assert registries.credentials(given) == Credentials()


@pytest.mark.parametrize("given", ["%%%", header(b"null"), header(b"undefined"), header(b"[1]")])
def test_what_cannot_be_read_is_none(given: str, caplog: pytest.LogCaptureFixture) -> None:
    """Some clients encode that they have none; whether any are needed is the registry's to say."""
    with caplog.at_level(logging.WARNING, "teu.engine"):
        assert registries.credentials(given) == Credentials()
        registries.connect({}, "127.0.0.1:1", given).close()
    assert "the registry is asked without credentials" in caplog.text


def test_some() -> None:
    assert registries.credentials(header(b'{"username": "u", "password": "p"}')) == Credentials("u", "p")
