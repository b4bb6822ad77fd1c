# SPDX-License-Identifier: Apache-2.0
"""Nothing in the source is there for nobody: what a module defines is named somewhere in the programs, not in tests
alone. A function with a decorator is called by whoever reads its mark, a service's by its name on the wire."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from test_imports import SRC, modules, python_files

TOP = SRC.parent

# Called by those who load the module by its name: services by the daemon, drivers' programs, commands.
BY_NAME = {"main", "register", "COMMANDS"}


def defined(path: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of functions, classes and constants of a module. Constants that are assigned in a row with others
    are a list of the kernel's or of a wire, and stand there for its order."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not node.decorator_list or isinstance(node, ast.ClassDef):
                yield node.lineno, node.name
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield node.lineno, target.id
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.lineno, node.target.id


def used(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name.rpartition(".")[2]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\w+", node.value) if len(node.value) < 200 else ()


def test_what_is_defined_is_used() -> None:
    names: Counter[str] = Counter()
    for path in python_files():
        if "tests" not in path.relative_to(TOP).parts:
            names.update(used(path))
    dead = []
    for _, path in modules():
        for line, name in defined(path):
            if not names[name] and name not in BY_NAME and not name.startswith("__"):
                dead.append(f"{path.relative_to(SRC)}:{line}: {name}")
    assert not dead, "nobody needs\n" + "\n".join(dead)
