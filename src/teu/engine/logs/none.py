# SPDX-License-Identifier: Apache-2.0
"""The log driver none: attached clients get the output, and nothing of it is kept."""

from __future__ import annotations

from teu.engine.logs.driver import Registration
from teu.engine.logs.options import check_nothing

NONE = Registration(frozenset(), check_nothing, lambda source: None)
