# SPDX-License-Identifier: Apache-2.0
"""No import circle: what a module needs to be understood stands below it, in Python, in C and in the shell."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from sourcetree import nodes

TOP = Path(__file__).resolve().parents[3]
SRC = TOP / "src"

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """All modules of the source by their dotted names, the generated stubs left out."""
    found = {}
    for path in sorted((SRC / "teu").rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        if parts[1] != "api":
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports: at its top, in functions and for the type checker alike."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in nodes(path, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            base = node.module or ""
            if node.level:
                above = package.split(".")
                base = ".".join([*above[: len(above) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
    return {one for one in found if one in known and one != name}


def circles(graph: Graph) -> list[list[str]]:
    """The sets of nodes that reach each other (Tarjan's strongly connected components), those of one node left out."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1 or node in graph.get(node, ()):
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def told(circle: list[str], graph: Graph) -> str:
    return "\n".join(f"  {one} -> {', '.join(sorted(graph[one] & set(circle)))}" for one in circle)


def test_the_search_finds_circles() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert circles(graph) == [["b", "c"], ["e"]]


def test_no_import_circle_in_the_source() -> None:
    known = modules()
    graph = {name: imported(name, path, known) for name, path in known.items()}
    found = circles(graph)
    assert not found, "\n\n".join(told(circle, graph) for circle in found)


def test_no_circle_of_includes_in_the_c_parts() -> None:
    files = {path.name: path for path in (SRC / "c").rglob("*.[ch]")}
    assert files, "the C parts have moved: look for them here"
    graph = {
        name: {Path(one).name for one in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE)}
        for name, path in files.items()
    }
    assert not circles(graph), circles(graph)


def shell_scripts() -> dict[str, Path]:
    """Scripts of sh and bash in the tree, by their paths."""
    found = {}
    for folder in ("packaging", "completions", "bin", "systemd", "src/c", "tests/lab", "benchmarks", ".ci"):
        for path in sorted((TOP / folder).rglob("*")):
            if path.is_file() and (path.suffix == ".sh" or _has_shell_line(path)):
                found[str(path.relative_to(TOP))] = path
    found["dev"] = TOP / "dev"
    return found


def _has_shell_line(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline(100)
    return bool(re.match(rb"#!.*\b(ba|da)?sh\b", first))


def test_no_circle_of_sources_in_the_shell_parts() -> None:
    scripts = shell_scripts()
    graph = {}
    for name, path in scripts.items():
        read = re.findall(r"^\s*(?:source|\.)\s+[\"']?([^\s\"';&|]+)", path.read_text(), re.MULTILINE)
        graph[name] = {other for other in scripts for word in read if Path(other).name == Path(word).name}
    assert not circles(graph), circles(graph)
