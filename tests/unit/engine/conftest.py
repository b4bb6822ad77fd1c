# SPDX-License-Identifier: Apache-2.0
"""Engines of tests end with them: a kernel gives a user 128 inotify instances, and a process so many descriptors."""

from __future__ import annotations

from collections.abc import Iterator

import engine_parts
import pytest


@pytest.fixture(autouse=True)
def _engines_end() -> Iterator[None]:
    yield
    engine_parts.close()
