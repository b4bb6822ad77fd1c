# SPDX-License-Identifier: Apache-2.0
"""The law of the engine's rooms: a file imports what is in its own room and on the floors below, and no file imports,
by whatever way round, itself. Imports in functions and for types alone count as any other: who reads a file has to know
what they name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from sourcetree import nodes
from test_imports import SRC

ENGINE = SRC / "teu/engine"

# From the ground up. A room is a folder, or a file that stands beside the folders. Rooms of one floor do not know each
# other.
FLOORS = (
    "core wake",
    "backend builds logs",
    "streams",
    "containers",
    "images networks volumes",
    "plugins",
    "engine",
    "files",
    "spec",
    "lifecycle views",
    "api daemon config",
    "main",
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}


def files() -> Iterator[Path]:
    for path in sorted(ENGINE.rglob("*.py")):
        if path != ENGINE / "__init__.py":
            yield path


def room_of(path: Path) -> str:
    return path.relative_to(ENGINE).with_suffix("").parts[0]


def known(path: Path) -> Iterator[tuple[int, Path]]:
    """(line, file of the engine) of every import of one; `from room import name` is one of the file, or of what is in
    the room's own."""
    for node in nodes(path, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert not node.level, f"{path}:{node.lineno}: imports name what they import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for dotted in names:
            if not dotted.startswith("teu.engine."):
                continue
            place = SRC / dotted.replace(".", "/")
            while not place.is_dir() and not place.with_suffix(".py").exists():
                place = place.parent  # a name in a file
            yield node.lineno, place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in files()}
    assert rooms == set(FLOOR), f"say in {__file__} on which floor a new room is"


def test_imports_go_down_only() -> None:
    broken = []
    for path in files():
        room = room_of(path)
        for line, other in known(path):
            if room_of(other) != room and FLOOR[room_of(other)] >= FLOOR[room]:
                broken.append(f"{path.relative_to(SRC)}:{line}: {room} may not know {other.relative_to(ENGINE)}")
    assert not broken, "\n".join(broken)


def test_no_file_imports_itself_by_a_way_round() -> None:
    graph = {path: {other for _, other in known(path)} for path in files()}
    # What nobody in the rest imports, or imports nobody of the rest, is in no circle.
    left = set(graph)
    while True:
        out = {path for path in left if not graph[path] & left or not any(path in graph[other] for other in left)}
        if not out:
            break
        left -= out
    assert not left, "a circle of imports: " + ", ".join(sorted(str(path.relative_to(SRC)) for path in left))
