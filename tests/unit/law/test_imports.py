# SPDX-License-Identifier: Apache-2.0
"""The one law in the source: neighbours know each other only by the wire, and what starts cold imports little."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sourcetree import nodes, parsed

from teu.coldstart.archive import PROGRAMS as ARCHIVED

SRC = Path(__file__).resolve().parents[3] / "src"
PROGRAMS = ("cli", "ctr", "engine", "buildkit", "containerd", "shim", "runc")
SHARED = ("linux", "oci", "systemd", "ttrpc", "http2", "api", "config", "grpcclient", "cni", "trust")

# Which parts of teu a part may import, beside itself.
MAY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(PROGRAMS, SHARED),
    "runc": ("linux", "oci", "systemd"),
    "cli": ("linux", "oci", "systemd", "http2", "ttrpc", "config", "trust"),
    "shim": ("linux", "oci", "systemd", "ttrpc"),
    "ttrpc": ("linux",),
    "http2": (),
    "systemd": ("linux",),
    "oci": ("linux",),
    "cni": ("oci",),
    "linux": (),
    "coldstart": (),
    "grpcclient": (),  # its stubs of api are found by their names
    "trust": ("oci", "config"),
    "config": ("oci",),  # sizes and lengths of time are read by oci/units
}

# The rooms of the builder, from the roof down: a room imports those on floors below it, none beside it and none above.
BUILDKIT_FLOORS = (
    "main",
    "daemon",
    "rooms",
    "control",
    "frontends exporters ops",
    "sources worker solver config",
    "cache session llb",
    "core",
)

# Not to be loaded by programs that start cold or live once per container, and why: design, "Code layout".
# What is large for what a shim would do with it; `signal` and `socket` bring the others.
IDLE = [
    "collections",
    "contextlib",
    "ctypes",
    "enum",
    "functools",
    "json",
    "random",
    "re",
    "shutil",
    "signal",
    "socket",
    "tempfile",
    "threading",
    "tomllib",
    "typing",
]
HEAVY = ("grpc", "google.protobuf", "asyncio", "yaml", "typing", "dataclasses", "http.client", "logging")
COLD = {"runc": "teu.runc.main", "cli": "teu.cli.main"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((SRC / "teu").rglob("*.py")):
        parts = path.relative_to(SRC / "teu").with_suffix("").parts
        if parts[0] not in ("api", "__init__"):
            yield parts[0], path


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands in the file."""
    package = ".".join(path.relative_to(SRC).parent.parts)
    for node in nodes(path, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        else:
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            if base == "teu":
                for alias in node.names:
                    yield node.lineno, f"teu.{alias.name}"
            else:
                yield node.lineno, base


def test_parts_import_only_what_they_may() -> None:
    broken = []
    for part, path in modules():
        assert part in MAY, f"{path}: a new part of teu: say in {__file__} what it may import"
        for line, name in imported(path):
            if not name.startswith("teu."):
                continue
            other = name.split(".")[1]
            if other not in (part, "__version__", *MAY[part]):
                broken.append(f"{path.relative_to(SRC)}:{line}: {part} imports {name}")
    assert not broken, "\n".join(broken)


def test_the_builders_rooms_import_downwards() -> None:
    broken = []
    floor = {room: number for number, rooms in enumerate(BUILDKIT_FLOORS) for room in rooms.split()}
    for part, path in modules():
        room = path.relative_to(SRC / "teu").with_suffix("").parts[1] if part == "buildkit" else "__init__"
        if room == "__init__":
            continue
        assert room in floor, f"{path}: a new room of the builder: say in {__file__} on which floor it stands"
        for line, name in inner_names(path):
            other = name.split(".")[2] if name.startswith("teu.buildkit.") else room
            if other != room and floor[other] <= floor[room]:
                broken.append(f"{path.relative_to(SRC)}:{line}: {room} imports {name}")
    assert not broken, "\n".join(broken)


def test_the_ground_floor_is_the_standard_library_alone() -> None:
    broken = []
    for part, path in modules():
        if part == "linux":
            for line, name in imported(path):
                top = name.split(".")[0]
                # libnftables' own binding is the one way to it, and is loaded where it is called.
                if top not in sys.stdlib_module_names and top not in ("teu", "__future__", "nftables"):
                    broken.append(f"{path.relative_to(SRC)}:{line}: {name}")
    assert not broken, "\n".join(broken)


def test_a_quick_start_finds_all_in_its_archive() -> None:
    """A part of teu that a program may import, and that is not there, would be looked for in files."""
    for program, part in (("teu", "cli"), ("teu-runc", "runc")):
        parts = {name.removesuffix(".py") for name in ARCHIVED[program][1]}
        assert parts == {part, *MAY[part]}


def test_the_generators_quick_start_has_its_own_modules_alone() -> None:
    """All that they import of teu, and none beside: what is in the archive is read at each start."""
    entry, files = ARCHIVED["teu-system-generator"]
    names = {"teu", *(name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files)}
    names = {f"teu.{name}" if name != "teu" else name for name in names}
    known, wanted = {"teu"}, [entry]
    while wanted:
        name = wanted.pop()
        if name in known:
            continue
        known.add(name)
        wanted.append(name.rpartition(".")[0])
        path = SRC / (name.replace(".", "/") + ".py")
        if path.exists():
            # `from a import b` is a, and b where that is a module
            found = [other for _, other in (*imported(path), *inner_names(path)) if other.startswith("teu.")]
            wanted += [other for other in found if (SRC / (other.replace(".", "/") + ".py")).exists()]
    assert known == names


@pytest.mark.parametrize("part", sorted(COLD))
def test_cold_programs_load_nothing_heavy(part: str) -> None:
    """Import the program as its script does (-IS), and look at what came with it."""
    script = f"import sys; sys.path.insert(0, {str(SRC)!r}); import {COLD[part]}; print(*sys.modules)"
    done = subprocess.run(["/usr/bin/python3", "-IS", "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = [name for name in HEAVY if name in loaded]
    assert not heavy, f"import {COLD[part]} loads {', '.join(heavy)}"


def test_the_zygote_has_only_what_a_shim_uses(tmp_path: Path) -> None:
    """The page tables of all that it has are made anew at each of its forks, and at each of theirs."""
    script = f"import sys; sys.path.insert(0, {str(SRC)!r})\nimport teu.shim.main, teu.shim.zygote\n"
    script += "teu.shim.warmup.run()\nassert teu.shim.runtime._loaded\nprint(*sys.modules)"
    environment = {"PATH": str(SRC.parent / "bin"), "TMPDIR": str(tmp_path)}
    python = ["/usr/bin/python3", "-IS", "-c", script]
    done = subprocess.run(python, capture_output=True, text=True, check=True, env=environment)
    idle = {*HEAVY, *IDLE} & set(done.stdout.split())
    assert not idle, f"the shim's zygote loads {', '.join(sorted(idle))}"


def test_every_file_says_its_licence() -> None:
    top = SRC.parent
    listing = subprocess.run(["git", "-C", str(top), "ls-files", "-z"], capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    silent = []
    for name in listing.stdout.decode().split("\0"):
        path = top / name
        if not name.endswith((".py", ".sh", ".c", ".proto", ".service", ".socket", ".slice")) or not path.exists():
            continue
        if "SPDX-License-Identifier: Apache-2.0" not in path.read_text()[:400]:
            silent.append(name)
    assert not silent, f"no SPDX line in {', '.join(silent)}"


# Packages whose modules a cold start may run.
STARTED_COLD = ("runc", "linux", "systemd", "coldstart")
FORGIVING = {"replace", "surrogateescape", "ignore", "backslashreplace"}


def test_no_strict_codec_where_python_has_none() -> None:
    """In a cold start (teu.coldstart) Python has no registry of error handlers: text that is no Unicode is a crash in a
    strict encode or decode, in place of an exception. os.fsencode and os.fsdecode take everything. Halves of surrogate
    pairs in byte code cannot even be read."""
    broken = []
    files = [path for part, path in modules() if part in STARTED_COLD]
    for path in [*files, SRC / "teu/oci/jsontext.py", SRC / "teu/oci/runtime_spec.py"]:
        for node in nodes(path, ast.Constant, ast.Call):
            where = f"{path.relative_to(SRC)}:{getattr(node, 'lineno', 0)}"
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
                broken.append(f"{where}: half of a surrogate pair in a constant")
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr not in ("encode", "decode"):
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "memory_policy":  # a module of ours
                continue
            given = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "errors")]
            ways: list[ast.expr] = []
            for value in given:
                ways += (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,)
            if not ways or not all(isinstance(way, ast.Constant) and way.value in FORGIVING for way in ways):
                broken.append(f"{where}: a strict {node.func.attr}()")
    assert not broken, "\n".join(broken)


# What the header of a daemon's main says its functions import late, with its cost.
LATE = {
    part: tuple(
        re.findall(
            r"^    (\S+) +\d+ ms", ast.get_docstring(parsed(SRC / f"teu/{part}/main.py"), clean=False) or "", re.M
        )
    )
    for part in ("engine", "buildkit")
}


def inner_names(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import, `from a import b` as a.b."""
    for node in nodes(path, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        else:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_an_import_inside_a_function_says_what_it_spares() -> None:
    """Beside it, or above the block of imports that it is in, a comment says its cost, or what else forbids the top.
    What the engine and the builder import late in many places is told of once."""
    assert all(LATE.values()), "the lists in teu/engine/main.py and teu/buildkit/main.py are not found"
    silent = []
    for part, path in modules():
        if part == "coldstart":  # which is about what may be imported when, and says so as a whole
            continue
        late = {line for line, name in inner_names(path) if name.startswith(LATE.get(part, ("-",)))}
        lines = path.read_text().splitlines()
        functions = [
            range(function.lineno, (function.end_lineno or function.lineno) + 1)
            for function in nodes(path, ast.FunctionDef, ast.AsyncFunctionDef)
        ]
        for node in nodes(path, ast.Import, ast.ImportFrom):
            if node.lineno in late or not any(node.lineno in lines_of for lines_of in functions):
                continue
            at = node.lineno - 1
            while lines[at].lstrip().startswith(("import ", "from ")) and "#" not in lines[at]:
                at -= 1
            if "#" not in lines[at]:
                silent.append(f"{path.relative_to(SRC)}:{node.lineno}: {lines[node.lineno - 1].strip()}")
    assert not silent, "\n".join(silent)


def python_files() -> Iterator[Path]:
    """All Python of the tree, also what has no suffix; the stubs, which are generated, left out."""
    top = SRC.parent
    for folder in ("src/teu", "tests", "bin", "packaging", "man", "benchmarks"):
        for path in sorted((top / folder).rglob("*")):
            if not path.is_file() or "src/teu/api" in str(path) or "debian" in path.parts:
                continue
            if path.suffix == ".py":
                yield path
            elif not path.suffix:
                with path.open("rb") as file:
                    if re.match(rb"#!.*python", file.readline(100)):
                        yield path


def test_a_caught_exception_is_called_error() -> None:
    """One name for one thing: error; stop for the end of an iteration, which is none."""
    others = []
    # Of tests only those are parsed that may have one.
    another = re.compile(r"\bexcept\b[^:]*\bas\s+(?!(error|stop)\b)")
    for path in python_files():
        if not another.search(path.read_text()):
            continue
        for node in nodes(path, ast.ExceptHandler):
            if node.name not in (None, "error", "stop"):
                others.append(f"{path.relative_to(SRC.parent)}:{node.lineno}: {node.name}")
    assert not others, "\n".join(others)
