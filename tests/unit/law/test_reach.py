# SPDX-License-Identifier: Apache-2.0
"""Logic is tested without a lab: so many modules of each program are named by the unit tests themselves.

A module counts where a file of unit tests imports it, or a name of it, by its own path; what comes along with another
import does not. Packages' headers and modules without a function have nothing to test and are not counted. A module
that a unit test drives in a process of its own (the shim's service, a layer's worker) may be tested better than this
says, and none is tested less.
"""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
from sourcetree import nodes
from test_circles import SRC, TOP, modules

UNIT = TOP / "tests/unit"
TWO_THIRDS = 2 / 3


def has_functions(path: Path) -> bool:
    return any(nodes(path, ast.FunctionDef, ast.AsyncFunctionDef))


def named(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of ours that a test's file imports by their own names."""
    found = set()
    for node in nodes(path, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else str(node.module))
    return found & set(known)


@pytest.fixture(scope="module")
def reached() -> dict[str, tuple[set[str], set[str]]]:
    """Of each part: the modules that count, and those of them that the unit tests name."""
    known = {name: path for name, path in modules().items() if has_functions(path)}
    tests = [path for path in UNIT.rglob("*.py") if path.parent.name != "law"]
    seen = set().union(*(named(path, known) for path in [*tests, TOP / "tests/engine_parts.py"]))
    parts: dict[str, tuple[set[str], set[str]]] = {}
    for name in known:
        of_part, of_these = parts.setdefault(name.split(".")[1], (set(), set()))
        of_part.add(name)
        if name in seen:
            of_these.add(name)
    return parts


@pytest.mark.parametrize(
    ("part", "least"),
    [("engine", 50), *((part, TWO_THIRDS) for part in ("buildkit", "containerd", "shim", "cli", "ctr"))],
)
def test_unit_tests_reach(part: str, least: float, reached: dict[str, tuple[set[str], set[str]]]) -> None:
    all_of_it, some = reached[part]
    wanted = least if least >= 1 else math.ceil(least * len(all_of_it))
    assert len(some) >= wanted, (
        f"unit tests name {len(some)} of the {len(all_of_it)} modules of {part}, not {wanted}; none names "
        + ", ".join(sorted(all_of_it - some))
    )


def test_what_comes_along_does_not_count(tmp_path: Path) -> None:
    known = {"teu.linux.trees": SRC / "teu/linux/trees.py", "teu.linux.inside": SRC / "teu/linux/inside.py"}
    (tmp_path / "test_x.py").write_text("from teu.linux import trees\nfrom teu.linux.trees import walk\nimport teu\n")
    assert named(tmp_path / "test_x.py", known) == {"teu.linux.trees"}
