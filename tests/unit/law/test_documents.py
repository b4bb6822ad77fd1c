# SPDX-License-Identifier: Apache-2.0
"""The documents at the top of the tree say what is so: every path that they name is there, every name in
ARCHITECTURE.md is one of the tree's own words, and every number in it is held to its place in the source."""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]
TEU = TOP / "src/teu"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")

# With these a path of this tree begins: names at its top, and the folders and files of src/teu, which are named
# without it. What is not there any more is listed as well, so that a path into it is missed.
PARTS = ("api", "buildkit", "cli", "coldstart", "config.py", "containerd", "ctr", "engine", "linux", "oci", "runc")
PARTS += ("shim", "systemd", "ttrpc", "http2")
TOPS = (".ci", "benchmarks", "bin", "completions", "dev", "etc", "man", "packaging", "protos", "src", "systemd")
TOPS += ("tests",)
SOURCE_FILE = re.compile(r"[\w.*{},-]+\.(?:py|c|md|sh)")


def words(document: str) -> Iterator[tuple[int, str]]:
    """(line, word) of everything that is set as code, in a line or as a block, and of links to files."""
    block = False
    for number, line in enumerate((TOP / document).read_text().splitlines(), 1):
        if line.startswith("```"):
            block = not block
        elif block or line.startswith("    "):
            yield from ((number, word) for word in line.split("  # ")[0].split())
        else:
            for piece in re.findall(r"`([^`]+)`", line):
                yield from ((number, word) for word in piece.split())
            yield from ((number, target) for target in re.findall(r"\]\(([^)#:]+)\)", line))


def braces(text: str) -> list[str]:
    """a/{b,c} as the shell has it: a/b and a/c."""
    pieces = [piece.strip("{}").split(",") for piece in re.findall(r"\{[^}]*\}|[^{]+", text)]
    return ["".join(each) for each in itertools.product(*pieces)]


def is_there(path: str) -> bool:
    """Whether a path, perhaps with * in it, names something: from the top of the tree or from src/teu."""
    return any(next(root.glob(path.strip("/")), None) is not None for root in (TOP, TEU))


def missing(word: str) -> str:
    """What is wrong with a word of a document, if it is a path of this tree that names nothing; else ""."""
    word = word.removeprefix("./").rstrip(".,;:")
    path, _, test = word.partition("::")
    first = path.split("/")[0]
    if "/" not in path:
        if SOURCE_FILE.fullmatch(path) and not (TOP / path).exists():
            return f"{path}: say the folder, too"
        return ""
    if path.startswith("/") or re.search(r"[<>$()\[\]|=…]|[A-Z]{4}", path) or first not in (*TOPS, *PARTS):
        return ""  # of the host, an address, a pattern
    gone = [each for each in braces(path) if not is_there(each)]
    if gone:
        return f"{', '.join(gone)}: there is no such path"
    if test and not re.search(rf"^def {re.escape(test)}\(", (TOP / path).read_text(), re.MULTILINE):
        return f"{path} has no test {test}"
    return ""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_is_there(document: str) -> None:
    broken = [f"{document}:{line}: {fault}" for line, word in words(document) if (fault := missing(word))]
    assert not broken, "\n" + "\n".join(broken)


def test_a_path_that_is_not_there_is_missed() -> None:
    for word in ("engine/nothing.py", "src/teu/nowhere/", "engine/{main,nothing}.py", "nothing.py", "./tests/x.py"):
        assert missing(word), word
    for word in (
        "engine/main.py",
        "src/teu/cli/",
        "engine/{main,config}.py",
        "linux/*.py",
        "/run/teu/teud.sock",
        "dev",
    ):
        assert not missing(word), word
    assert missing("tests/unit/law/test_documents.py::test_nothing")


def test_modules_that_are_named_exist() -> None:
    broken = []
    for document in DOCUMENTS:
        for line, word in words(document):
            if re.fullmatch(r"teu(\.[a-z_0-9]+)+", word) and not word.endswith((".1", ".service", ".slice", ".sock")):
                place = TOP / "src" / word.replace(".", "/")
                if not (place.is_dir() or place.with_suffix(".py").exists()):
                    broken.append(f"{document}:{line}: there is no module {word}")
    assert not broken, "\n" + "\n".join(broken)


def test_every_release_has_its_changes() -> None:
    """CHANGELOG.md has the releases of Debian's, in its order, and perhaps what is not released yet before them."""
    released = re.findall(r"^teu \(([^)]+)\)", (TOP / "packaging/debian/changelog").read_text(), re.MULTILINE)
    told = re.findall(r"^## (\S+)", (TOP / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released and [each for each in told if each != "Not"] == released
    assert "Not" not in told[1:]


def test_blame_leaves_out_commits_that_are_there() -> None:
    """A hash that a rebase has changed leaves out nothing."""
    shallow = subprocess.run(
        ["git", "-C", str(TOP), "rev-parse", "--is-shallow-repository"], capture_output=True, text=True, check=False
    )
    if shallow.stdout.strip() != "false":
        pytest.skip("not a git checkout with its history")
    hashes = re.findall(r"^[0-9a-f]{40}$", (TOP / ".git-blame-ignore-revs").read_text(), re.MULTILINE)
    assert hashes
    for one in hashes:
        subprocess.run(["git", "-C", str(TOP), "merge-base", "--is-ancestor", one, "HEAD"], check=True)


# --- ARCHITECTURE.md ----------------------------------------

ARCHITECTURE = (TOP / "ARCHITECTURE.md").read_text()


def value(path: str, name: str) -> object:
    """The constant that a module of src/teu gives this name."""
    for node in ast.parse((TEU / path).read_text()).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(each, ast.Name) and each.id == name for each in node.targets
        ):
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} has no constant {name}")


def test_it_is_read_in_ten_minutes() -> None:
    assert len(ARCHITECTURE.splitlines()) <= 200 and len(ARCHITECTURE.split()) <= 2600


def test_its_words_are_the_trees_own() -> None:
    """A name that is nowhere else, as after a renaming, is out of date here."""
    listing = subprocess.run(["git", "-C", str(TOP), "ls-files", "-z"], capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    files = [TOP / os.fsdecode(name) for name in listing.stdout.split(b"\0") if name and not name.endswith(b".md")]
    sources = [path for path in files if path.is_file() and path.name != Path(__file__).name]
    text = "\0".join(path.read_text(errors="replace") for path in sources)
    unknown = [
        f"ARCHITECTURE.md:{number}: `{piece}` is nowhere in the tree"
        for number, line in enumerate(ARCHITECTURE.splitlines(), 1)
        for piece in ([] if line.startswith("    ") else re.findall(r"`([^`]+)`", line))
        for word in piece.split()
        if word not in text and not is_there(word.removeprefix("./")) and not is_module(word)
    ]
    assert not unknown, "\n" + "\n".join(unknown)


def is_module(word: str) -> bool:
    place = TOP / "src" / word.replace(".", "/")
    return word.startswith("teu.") and (place.is_dir() or place.with_suffix(".py").exists())


def test_its_numbers_are_those_of_the_source() -> None:
    """Each number in the text stands here with where it comes from. One that is not here cannot be trusted there."""
    units = [(TOP / "systemd" / f"{name}.service").read_text() for name in ("teud", "teu-buildkitd", "teu-containerd")]
    newest = ".".join(map(str, _tuple("engine/server.py", "engine/api/server.py", name="API_VERSION")))
    oldest = ".".join(map(str, _tuple("engine/server.py", "engine/api/server.py", name="API_MINIMUM")))
    held = {
        newest: True,
        oldest: True,
        str(value("cli/http.py", "API_VERSION")): True,
        str(value("oci/runtime_spec.py", "VERSION")).rpartition(".")[0]: True,
        str(value("config.py", "EX_CONFIG")): all("RestartPreventExitStatus=65 78" in unit for unit in units),
        "65": all("RestartPreventExitStatus=65 78" in unit for unit in units),
        "255": "255" in (TOP / "man/teud.8").read_text(),
        "2": True,  # cgroup version 2, task API version 2
        "3": (TOP / "protos/teu/api/runtime/task/v3").is_dir(),
    }
    plain = re.sub(r"`[^`]*`", "", "\n".join(line for line in ARCHITECTURE.splitlines() if not line.startswith("    ")))
    plain = re.sub(r"\b\w+\(\d\)|^\d\. |CVE-\d+-\d+|HTTP/1\.1|[vV]\d\b|SIGUSR1|UTF-8", "", plain, flags=re.MULTILINE)
    found = set(re.findall(r"\d[\d.]*\d|\d", plain))
    assert not found - set(held), f"which source holds {sorted(found - set(held))}?"
    assert all(held[number] for number in found), held


def _tuple(*places: str, name: str) -> tuple[int, ...]:
    path = next(place for place in places if (TEU / place).exists())
    found = value(path, name)
    assert isinstance(found, tuple)
    return found


def test_its_programs_are_those_that_may_not_know_each_other() -> None:
    from test_imports import MAY, PROGRAMS

    rows = re.findall(r"^\| `[\w-]+` \| `teu\.(\w+)` \|", ARCHITECTURE, re.MULTILINE)
    assert sorted(rows) == sorted(PROGRAMS)
    numbers = {"Five": 5, "Six": 6, "Seven": 7, "Eight": 8}
    for document in ("ARCHITECTURE.md", "README.md"):
        said = re.search(r"\b(Five|Six|Seven|Eight) programs", (TOP / document).read_text())
        assert said and numbers[said.group(1)] == len(PROGRAMS), document
    shared = re.search(r"the ground floor \(([^)]*)\)", ARCHITECTURE)
    assert shared
    assert set(re.findall(r"\w+", shared.group(1))) == {part for part in MAY if part not in (*PROGRAMS, "coldstart")}


def test_its_floors_are_those_of_the_law() -> None:
    import test_containerd_floors
    import test_engine_floors
    import test_imports

    drawn = ARCHITECTURE.partition("in `src/teu/buildkit`")[2].split("\n\n")[1].splitlines()
    assert [floor.strip() for floor in drawn] == list(test_imports.BUILDKIT_FLOORS)
    for law in (test_engine_floors, test_containerd_floors):
        after = ARCHITECTURE.partition(f"`tests/unit/law/{law.__name__}.py`")[2]
        drawn = after.split("\n\n")[1].splitlines()
        assert [floor.strip() for floor in drawn] == list(reversed(law.FLOORS)), law.__name__
