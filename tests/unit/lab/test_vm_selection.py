# SPDX-License-Identifier: Apache-2.0
"""What the emulated VM runs is chosen by name: no name there is of something that was renamed or has gone."""

from __future__ import annotations

import ast
from typing import Any

from lab.runner import SOURCE

SYSTEM = SOURCE / "tests/system"


def constant(name: str) -> Any:
    """A constant of the system tests' conftest.py, which cannot be imported here."""
    for node in ast.parse((SYSTEM / "conftest.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"no {name} in conftest.py")


def test_files_are_there() -> None:
    files = {*constant("VM_FILES"), *constant("VM_LEFT_OUT")}
    assert [name for name in files if not (SYSTEM / name).is_file()] == []
    assert constant("VM_TESTS").keys() <= files


def test_tests_are_there() -> None:
    for file, names in constant("VM_TESTS").items():
        found = {node.name for node in ast.parse((SYSTEM / file).read_text()).body if isinstance(node, ast.FunctionDef)}
        assert set(names) <= found, f"{file}: {set(names) - found}"
