# SPDX-License-Identifier: Apache-2.0
"""The rooms of teu-containerd stand on floors, and imports go down only: also inside functions, and for type checkers.

core           errors, filters, events, the database; no object of containerd's API
snapshotters   a file each behind one Protocol
layers         a layer into a tree, and out of one
stores         the records, and what is garbage
runtime        tasks and sandboxes at work: containerd's services for them, without a wire
transfer       images between registries, archives and the stores
nri            plugins of the Node Resource Interface, who know nothing of pods here
state          one record of all that
server         the wires: gRPC, events of shims, metrics
services, cri  decode, call, answer
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from sourcetree import nodes

SRC = Path(__file__).resolve().parents[3] / "src"
HOUSE = SRC / "teu/containerd"
FLOORS = (
    "core config",
    "snapshotters layers",
    "stores",
    "runtime transfer nri",
    "state server",
    "services cri",
    "daemon",
    "main",
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}


def modules() -> dict[str, Path]:
    """Path of each module, by its name below teu.containerd."""
    found = {}
    for path in sorted(HOUSE.rglob("*.py")):
        parts = path.relative_to(HOUSE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found[name] = path
    return found


def arrows(path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, module below teu.containerd) of each import of the own house, wherever it stands in the file."""
    for node in nodes(path, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert not node.level, f"{path}:{node.lineno}: name the module from the top"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            below = name.removeprefix("teu.containerd.")
            if below != name:
                yield node.lineno, below if below in known else below.rpartition(".")[0]


def test_imports_go_down_only() -> None:
    broken = []
    known = modules()
    for name, path in known.items():
        room = name.split(".")[0]
        assert room in FLOOR, f"{path}: a new room: say in {__file__} on which floor it stands"
        for line, other in arrows(path, known):
            below = other.split(".")[0]
            if below != room and FLOOR[below] >= FLOOR[room]:
                broken.append(f"{path.relative_to(SRC)}:{line}: {room} may not know {other}")
    assert not broken, "\n".join(broken)


def test_no_module_imports_itself_by_way_of_others() -> None:
    known = modules()
    left = {name: {other for _, other in arrows(path, known)} - {name} for name, path in known.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left, "a circle, and who imports it: " + ", ".join(sorted(left))


def test_the_law_sees_what_it_forbids(tmp_path: Path) -> None:
    """Imports in functions and for type checkers count, and so does a module that is named by its package."""
    module = tmp_path / "module.py"
    module.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from teu.containerd.state import Context\n"
        "def late():\n    from teu.containerd.runtime import shims\n    import teu.containerd.daemon\n"
    )
    assert sorted(other for _, other in arrows(module, modules())) == ["daemon", "runtime.shims", "state"]
