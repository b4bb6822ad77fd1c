# SPDX-License-Identifier: Apache-2.0
"""Names that clients give to namespaces, containers, sandboxes, processes: which there may be."""

from __future__ import annotations

import re

from teu.containerd.core.errors import InvalidArgument

_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*")


def validate_identifier(name: str) -> str:
    """Names of namespaces, containers, sandboxes: containerd's rule, its limit of 76 characters."""
    if not name:
        raise InvalidArgument("identifier must not be empty")
    if len(name) > 76:
        raise InvalidArgument(f'identifier "{name}" greater than maximum length (76 characters)')
    if not _IDENTIFIER.fullmatch(name):
        raise InvalidArgument(f'identifier "{name}" must match ^{_IDENTIFIER.pattern}$')
    return name
