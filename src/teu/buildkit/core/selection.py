# SPDX-License-Identifier: Apache-2.0
"""What of a tree of files an operation looks at. The digest of it is cache.contenthash."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a tree is looked at: a path from its root, and how.

    `follow`: a link at the end of the path is followed. `wildcard`: the path is a pattern of path.Match. Include and
    exclude patterns are relative to what the path selects; each of `required` must be the beginning of a path that is
    selected."""

    path: str = "/"
    follow: bool = False
    wildcard: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
