# SPDX-License-Identifier: Apache-2.0
"""Nothing in the source is there for nobody: what a module defines is named somewhere in the programs, not in tests
alone. A function with a decorator is called by whoever reads its mark, a service's by its name on the wire."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sourcetree import nodes, parsed
from test_imports import SRC, imported, modules, python_files

TOP = SRC.parent

# Called by those who load the module by its name: services by the daemon, drivers' programs, commands.
BY_NAME = {"main", "register", "COMMANDS"}


def defined(path: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of functions, classes and constants of a module. Constants that are assigned in a row with others
    are a list of the kernel's or of a wire, and stand there for its order."""
    for node in parsed(path).body:
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
    yield from (node.id for node in nodes(path, ast.Name) if isinstance(node.ctx, ast.Load))
    yield from (node.attr for node in nodes(path, ast.Attribute))
    yield from (node.name.rpartition(".")[2] for node in nodes(path, ast.alias))
    for node in nodes(path, ast.Constant):
        if isinstance(node.value, str) and len(node.value) < 200:
            yield from re.findall(r"\w+", node.value)


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


# What is imported from outside of the standard library: by its name there, in Python's packages and in Debian's.
LIBRARIES = {
    "cryptography": (None, "python3-cryptography"),  # for hosts with a policy for images
    "google": ("protobuf", "python3-protobuf"),
    "grpc": ("grpcio", "python3-grpcio"),
    "h11": ("h11", "python3-h11"),
    "isal": (None, "python3-isal"),  # a host may do without it
    "nftables": (None, "python3-nftables"),  # nftables' own, which is in Debian alone
    "yaml": ("PyYAML", "python3-yaml"),
    "zstandard": ("zstandard", "python3-zstandard"),
}


def test_every_dependency_is_imported_and_every_import_declared() -> None:
    found = {name.split(".")[0] for _, path in modules() for _, name in imported(path)}
    # _coldstart is src/c, and _typeshed is there for the type checker alone.
    outside = found - set(sys.stdlib_module_names) - {"teu", "__future__", "_coldstart", "_typeshed"}
    assert outside == set(LIBRARIES), f"say in {__file__} where it comes from, or what went"
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert sorted(project["dependencies"]) == sorted(python for python, _ in LIBRARIES.values() if python)
    control = (TOP / "packaging/debian/control").read_text()
    wanted = set(re.findall(r"^ (python3-[\w-]+)", control.partition("Package:")[2], re.MULTILINE))
    assert wanted == {debian for _, debian in LIBRARIES.values()}
