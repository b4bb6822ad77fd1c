# SPDX-License-Identifier: Apache-2.0
"""The one error of this floor."""

from __future__ import annotations


class CniError(Exception):
    """A configuration or a plugin that failed: `text` for a person, in libcni's words where clients know them, and the
    plugin's `code` (CNI, "Error"), 0 without one."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.code = code
