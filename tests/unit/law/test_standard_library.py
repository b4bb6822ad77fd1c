# SPDX-License-Identifier: Apache-2.0
"""No daemon walks or removes a tree by the standard library: that recurses over what others chose, follows paths that
others change, cannot see a bind mount, and goes through it. teu.linux.trees does it with care."""

from __future__ import annotations

import ast
from pathlib import Path

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
    for path in sorted(SRC.rglob("*.py")):
        place = str(path.relative_to(SRC))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and (ast.unparse(node.value), node.attr) in FORBIDDEN:
                found.append((place, f"{ast.unparse(node)} in line {node.lineno}"))
            elif isinstance(node, ast.ImportFrom):
                found += [
                    (place, f"{node.module}.{alias.name} in line {node.lineno}")
                    for alias in node.names
                    if (node.module, alias.name) in FORBIDDEN
                ]
    assert [one for one in found if one[0] not in EXCEPT] == []
