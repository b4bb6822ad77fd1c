# SPDX-License-Identifier: Apache-2.0
"""No daemon walks or removes a tree by the standard library: that recurses over what others chose, follows paths that
others change, cannot see a bind mount, and goes through it. teu.linux.trees does it with care."""

from __future__ import annotations

import ast
from pathlib import Path

from sourcetree import nodes

SRC = Path(__file__).resolve().parents[3] / "src/teu"
FORBIDDEN = {
    ("os.path", "ismount"),
    ("posixpath", "ismount"),
    ("shutil", "rmtree"),
    ("shutil", "copytree"),
    ("os", "walk"),
    ("os", "fwalk"),
    ("os", "removedirs"),
}
EXCEPT = {
    "cli/copy.py": "the user's own files, packed as the user",
    "cli/builds/classic.py": "the user's own files, packed as the user",
    "engine/files/visitor.py": "within the container's root, with nothing of Teu to import",
}


def test_trees_are_walked_and_removed_with_care() -> None:
    found = []
    names = {name for _, name in FORBIDDEN}
    for path in sorted(SRC.rglob("*.py")):
        place = str(path.relative_to(SRC))
        for node in nodes(path, ast.Attribute):
            if node.attr in names and (ast.unparse(node.value), node.attr) in FORBIDDEN:
                found.append((place, f"{ast.unparse(node)} in line {node.lineno}"))
        for line in nodes(path, ast.ImportFrom):
            found += [
                (place, f"{line.module}.{alias.name} in line {line.lineno}")
                for alias in line.names
                if (line.module, alias.name) in FORBIDDEN
            ]
    assert [one for one in found if one[0] not in EXCEPT] == []
