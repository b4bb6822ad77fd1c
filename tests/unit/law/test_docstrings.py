# SPDX-License-Identifier: Apache-2.0
"""What others build upon says what it promises: every public class, function and method of a seam has a docstring.

A method that keeps the promise of a method of the same name needs none of its own: one of a class above it, or of the
Protocol of its room. Which errors and units a docstring has to tell no program can check; that it is there, this does.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from sourcetree import parsed
from test_imports import SRC

TEU = SRC / "teu"

# Ground floors, the services, the stores, and what drivers and snapshotters are.
SEAMS = (
    "linux",
    "oci",
    "systemd",
    "ttrpc",
    "trust",
    "http2",
    "buildkit/core",
    "containerd/services",
    "containerd/snapshotters",
    "containerd/stores",
    "engine/containers/store.py",
    "engine/images/store.py",
    "engine/logs",
    "engine/networks/drivers",
    "engine/networks/manager.py",
    "engine/networks/store.py",
    "engine/volumes/drivers",
    "engine/volumes/store.py",
)
# By room, the file and the name of what its classes are: who has a method of that name there keeps its promise.
PROTOCOLS = {
    "containerd/snapshotters": ("interface.py", "Snapshotter"),
    "engine/logs": ("driver.py", "Driver"),
    "engine/networks/drivers": ("driver.py", "Driver"),
    "engine/volumes/drivers": ("driver.py", "Driver"),
}
# Promised once for all, in the header of the package.
PROMISED = {"containerd/services": "register"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def classes(path: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in parsed(path).body if isinstance(node, ast.ClassDef)}


def told(node: ast.ClassDef) -> set[str]:
    """The methods of a class that have a docstring."""
    return {each.name for each in node.body if isinstance(each, Function) and ast.get_docstring(each)}


def silent(path: Path, known: dict[str, ast.ClassDef], promised: set[str]) -> Iterator[tuple[int, str]]:
    """(line, name) of what is public and has no docstring. `known`: classes that those of this file may derive from."""

    def inherited(node: ast.ClassDef) -> set[str]:
        found = told(node)
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in known and known[base.id] is not node:
                found |= inherited(known[base.id])
        return found

    for node in parsed(path).body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_") or node.name in promised:
            continue
        if not ast.get_docstring(node):
            yield node.lineno, node.name
        if isinstance(node, ast.ClassDef):
            enough = inherited(node) | promised
            for each in node.body:
                if isinstance(each, Function) and not each.name.startswith("_") and each.name not in enough:
                    yield each.lineno, f"{node.name}.{each.name}"


def test_what_others_build_upon_says_what_it_promises() -> None:
    missing = []
    for seam in SEAMS:
        place = TEU / seam
        paths = sorted(place.rglob("*.py")) if place.is_dir() else [place]
        assert paths, f"{seam} has moved: say where in {__file__}"
        known: dict[str, ast.ClassDef] = {}
        for path in paths:
            known |= classes(path)
        promised = {PROMISED[seam]} if seam in PROMISED else set()
        if seam in PROTOCOLS:
            file, name = PROTOCOLS[seam]
            promised |= told(classes(place / file)[name])
        for path in paths:
            own = promised if path.name != PROTOCOLS.get(seam, ("",))[0] else set()
            missing += [f"{path.relative_to(SRC)}:{line}: {name}" for line, name in silent(path, known, own)]
    assert not missing, "no docstring:\n" + "\n".join(missing)


def test_what_is_silent_is_found(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "class Base:\n    '''A base.'''\n    def kept(self):\n        '''Kept.'''\n    def other(self): ...\n"
        "class Derived(Base):\n    def kept(self): ...\n    def promised(self): ...\n    def _own(self): ...\n"
        "def f(): ...\ndef _g(): ...\n"
    )
    found = list(silent(file, classes(file), {"promised"}))
    assert found == [(5, "Base.other"), (6, "Derived"), (10, "f")]
