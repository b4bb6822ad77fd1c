# SPDX-License-Identifier: Apache-2.0
"""Shapes of Dockerfiles as people write them, built by the BuildKit of Debian's dockerd and by teu-buildkitd.

Each is built twice on both sides. First by Debian's docker with its buildx (on teud's socket for ours), all shapes of
both sides beside each other: the exit codes, texts, steps, words of the steps, configuration, history and files are
compared. Then by `teu build`, which finds every step in the cache and makes the very same image. Where a difference is
meant, `ON_PURPOSE` says why; one that is there no more has to leave the table.
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import docker_words
import pytest
from bothbuilders import (
    Both,
    Built,
    Image,
    Raw,
    Side,
    both_builders,
    entries_of,
    failure_of,
    neutral,
    raw_of,
    tree_of,
    warnings_of,
)
from dockerfile_shapes import Shape, all_shapes, lay_out
from scripted_registry import tar

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "buildkit"))
import githttp

pytestmark = [pytest.mark.needs("docker", "dockerd", "buildx", "systemd", "trixie", "fast"), pytest.mark.timeout(400)]

SHAPES = {shape.name: shape for shape in all_shapes()}
AT_ONCE = 3  # builds of one side

CHECKS = "newer: the peer's frontend has no checks"
WORDS = "newer: the words have been changed since"
STABLE = "newer: what the peer has in an image of its own alone (labs)"
TRIGGERS = "newer: triggers are counted, and named as such"
# Shape -> aspect -> why it differs.
ON_PURPOSE: dict[str, dict[str, str]] = {
    "add-git": {"logs": "what git says of itself names folders of the builder; ours tells how much has come"},
    "copy-chmod-folder": {"files": "newer: the mode is that of folders that are made on the way, too"},
    "fails-checksum": {"text": WORDS},
    "fails-copy-outside": {"text": "the peer names a folder of its own, and no file of the context"},
    "fails-expose": {"text": WORDS},
    "fails-flag": {"text": "newer: the flag as it was written, and the nearest one to it"},
    "fails-insecure": {"text": STABLE, "steps": STABLE},
    "mounts-stubs": {"files": "the peer's places of mounts leave their folder's time changed"},
    "onbuild": {"steps": TRIGGERS, "logs": TRIGGERS},
    "onbuild-stage": {"steps": TRIGGERS, "logs": TRIGGERS},
    "parents-exclude": dict.fromkeys(("code", "text", "steps", "config", "history", "files"), STABLE),
    "step-environment": {"logs": "newer: /proc/interrupts is masked"},
    **{
        name: {"warnings": CHECKS}
        for name in (
            *("arguments", "case", "commands", "commands-shell", "continuation", "fails-base", "fails-base-name"),
            *("fails-copy-ignored", "heredoc-copy", "inherited", "inherited-command", "java-maven", "labels"),
            *("platform", "stage-names", "variables"),
        )
    },
}
NEWEST = "newest: the peer's is still another one"
# The same beside docker 28, which Debian testing has and test_build_conformance_newer shows in a lab with Debian 13.
ON_PURPOSE_OF_28: dict[str, dict[str, str]] = {
    "add-git": ON_PURPOSE["add-git"],
    "fails-checksum": {"text": NEWEST},
    "fails-copy-ignored": {"text": NEWEST, "warnings": "newest: the rule was an experiment before"},
    "fails-insecure": {"text": NEWEST, "steps": NEWEST},
    "mounts-stubs": ON_PURPOSE["mounts-stubs"],
    "newer-onbuild": {"steps": "the peer counts triggers into stages that have none"},
    "step-environment": {"logs": "newest: /proc/interrupts is masked"},
}
# Shapes that cannot be compared for a fault of that peer's, or that it has in an image of its own alone.
LEFT_OUT_OF_28 = {
    "fails-flag": "of two names that are as near it proposes either",
    "variables": "a port with variables that have defaults is cut at the first colon",
    **{name: meant["code"] for name, meant in ON_PURPOSE.items() if "code" in meant},
}
# Shape -> why the steps differ that `teu build` is told of when all of them are cached.
CACHED_ON_PURPOSE = {
    "copy-link-flag": "ours tells of merges as well",
    "onbuild": TRIGGERS,
    "onbuild-stage": TRIGGERS,
    "python-venv": "ours tells of merges as well",
}
# Whether Debian's docker here is 28 itself: then all shapes are compared, by its table.
OF_28 = shutil.which("docker") is not None and not docker_words.older()
PLAYED = [name for name, shape in SHAPES.items() if name not in LEFT_OUT_OF_28 or not OF_28]
PLAYED = [name for name in PLAYED if OF_28 or not SHAPES[name].newer]
MEANT = ON_PURPOSE_OF_28 if OF_28 else ON_PURPOSE
MEANT_CACHED = {name: why for name, why in CACHED_ON_PURPOSE.items() if not OF_28 or why != TRIGGERS}
# Shape -> the name of a step that two stages share -> the other stage's. The peer tells either, by chance.
SHARED = {"node-front": {"[builder 2/5] WORKDIR /app": "[deps 2/4] WORKDIR /app"}}


class Made(NamedTuple):
    """What one side made of a shape."""

    first: Built
    second: Built
    image: Image | None
    second_id: str
    output: dict[str, Any]

    def aspect(self, name: str, shape: Shape) -> Any:
        image = self.image
        shared = SHARED.get(shape.name, {})
        steps = sorted(shared.get(step, step) for step in self.first.steps)
        if shape.code:
            # Newer versions, and ours, have read it before they look at what stands below FROM.
            steps = [step for step in steps if step != "[internal] load .dockerignore"]
        logs = {step: words for step, words in self.first.steps.items() if words}
        text = failure_of(self.first.text) if self.first.code else ""
        if shape.streams:
            logs = {step: "".join(sorted(words.splitlines(keepends=True))) for step, words in logs.items()}
            text = "\n".join(sorted(text.splitlines()))
        found: dict[str, Any] = {
            "code": self.first.code,
            "text": text,
            "steps": steps,
            "logs": logs,
            "warnings": sorted(warnings_of(self.first.text)),  # the client shows them as they come
            "config": image and image.config,
            "history": image and image.history,
            "files": image and image.layers,
            "output": self.output,
        }
        return found[name]


class Files(BaseHTTPRequestHandler):
    """Files that never change."""

    def do_GET(self) -> None:
        archive = tar(("one", b"1\n"), ("folder/", None), ("folder/two", b"2\n"))
        contents = {
            "/file": b"downloaded\n",
            "/packed.tar.gz": gzip.compress(b"not opened", mtime=0),
            "/archive.tar": archive,
            "/archive.tar.gz": gzip.compress(archive, mtime=0),
        }
        data = contents.get(self.path)
        self.send_response(200 if data is not None else 404)
        self.send_header("Last-Modified", "Wed, 01 Jan 2020 10:20:30 GMT")
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: Any) -> None: ...


@contextlib.contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """Servers of files and of a repository, by the names that shapes have for them."""
    repositories = githttp.Served(folder / "repositories")
    files = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=files.serve_forever, args=(0.05,), daemon=True).start()
    repository = repositories.repository("a.git", {"one": "1", "sub/two": "2", "sub/deep/three": "3"})
    githttp.run(repository, "tag", "v1")
    repositories.commit(repository, {"sub/two": "later"})
    try:
        yield {"http": f"http://127.0.0.1:{files.server_port}", "git": repositories.address}
    finally:
        for server in (files, repositories.server):
            server.shutdown()
            server.server_close()


def _agent(path: Path) -> socket.socket:
    """An agent of SSH that has no keys, and says no to whatever it is asked."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, contextlib.suppress(OSError):
                    while client.recv(4096):
                        client.sendall(b"\0\0\0\1\5")

    threading.Thread(target=serve, daemon=True).start()
    return listener


class Builds:
    """All builds of the shapes that are asked for, and what came of them by side and shape."""

    def __init__(self, both: Both, folder: Path, wanted: list[Shape], places: dict[str, str]) -> None:
        self.both, self.wanted, self.places = both, wanted, places
        self.folders = {side.name: folder / side.name for side in both}
        self.agents = []
        for side in both:
            self.folders[side.name].mkdir()
            self.agents.append(_agent(self.folders[side.name] / "agent.sock"))
            for shape in wanted:
                lay_out(shape, self.folders[side.name] / shape.name)
        with ThreadPoolExecutor(2) as pool:
            sides = {side.name: pool.submit(self._side, side) for side in both}
        self.made = {name: future.result() for name, future in sides.items()}

    def _side(self, side: Side) -> dict[str, Made | BaseException]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            firsts = {shape.name: pool.submit(self._first, side, shape) for shape in self.wanted}
            seconds = {shape.name: pool.submit(self._second, side, shape, firsts[shape.name]) for shape in self.wanted}
        names = [
            tag_of(shape)
            for shape in self.wanted
            if not shape.has_output and not firsts[shape.name].exception() and not firsts[shape.name].result().code
        ]
        images = side.saved(names)
        made: dict[str, Made | BaseException] = {}
        for shape in self.wanted:
            failed = firsts[shape.name].exception() or seconds[shape.name].exception()
            if failed:
                made[shape.name] = failed
                continue
            second, ident = seconds[shape.name].result()
            first = firsts[shape.name].result()
            image = images.get(tag_of(shape))
            made[shape.name] = Made(first, second, image, ident, self._output(side, shape))
        return made

    def _words(self, side: Side, shape: Shape) -> list[str]:
        folder = self.folders[side.name] / shape.name
        return [*shape.words(folder, **self.places), str(folder)]

    def _first(self, side: Side, shape: Shape) -> Built:
        tag = [] if shape.has_output else ["-t", tag_of(shape)]
        words = ["build", "--progress=plain", *tag, *self._words(side, shape)]
        return side.docker(*words, code=None, environment=shape.environment)

    def _second(self, side: Side, shape: Shape, first: Future[Built]) -> tuple[Built, str]:
        before = first.result()
        if shape.code and side is self.both.theirs:
            return before, ""  # `teu build` is compared with docker's client on teud
        file = self.folders[side.name] / f"{shape.name}.id"
        tag = [] if shape.has_output else ["--iidfile", str(file), "-t", f"conformance/teu-{shape.name}"]
        words = ["build", "--progress=rawjson", *tag, *self._words(side, shape)]
        built = side.teu(*words, code=None, environment=shape.environment)
        return built, file.read_text() if file.exists() else ""

    def _output(self, side: Side, shape: Shape) -> dict[str, Any]:
        path = self.folders[side.name] / f"out-{shape.name}"
        if path.is_dir():
            return tree_of(path, side.began)
        archive = Path(f"{path}.tar")
        return dict(entries_of(archive.read_bytes(), side.began)) if archive.exists() else {}


def tag_of(shape: Shape) -> str:
    return f"conformance/{shape.name}:latest"


@pytest.fixture(scope="module")
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    asked = [getattr(item, "callspec", None) for item in request.session.items]
    names = {spec.params["name"] for spec in asked if spec and "name" in spec.params}
    folder = tmp_path_factory.mktemp("builds")
    with both_builders(folder / "clients") as both, served(folder) as places:
        made = Builds(both, folder, [shape for name, shape in SHAPES.items() if name in names], places)
        yield made
        for agent in made.agents:
            agent.close()


def told(value: Any) -> list[str]:
    """A value as lines, so that a difference of two can be read."""
    if isinstance(value, dict):
        return [f"{key}: {value[key]}" for key in sorted(value, key=str)]
    if isinstance(value, list):
        return [line for inner in value for line in told(inner)]
    return str(value).splitlines()


def difference(theirs: Any, ours: Any) -> str:
    left, right = told(theirs), told(ours)
    lines = [f"    theirs: {line}" for line in left if line not in right]
    lines += [f"    ours:   {line}" for line in right if line not in left]
    return "\n".join(lines) or f"    theirs: {theirs}\n    ours:   {ours}"


@pytest.mark.parametrize("name", PLAYED)
def test_a_shape_is_built_alike(builds: Builds, name: str) -> None:
    check_alike(builds, name, MEANT.get(name, {}))


def check_alike(builds: Builds, name: str, meant: Mapping[str, str]) -> None:
    """meant: aspects that differ, and why."""
    shape = SHAPES[name]
    sides = []
    for side in builds.both:
        made = builds.made[side.name][name]
        if isinstance(made, BaseException):
            raise made
        sides.append(made)
    theirs, ours = sides
    if theirs.first.code != shape.code:  # the table is wrong, or the peer cannot do it here
        raise AssertionError(f"{name}: their exit code is {theirs.first.code}\n{theirs.first.text[-3000:]}")
    found = []
    for aspect in shape.only:
        one, other = theirs.aspect(aspect, shape), ours.aspect(aspect, shape)
        if aspect in meant:
            if shape.code and aspect == "warnings":
                continue  # a client whose build fails prints what it has been told by then
            assert one != other, f"{name}: {aspect} does not differ any more: strike it from the table"
        elif one != other:
            found.append(f"{aspect} differs:\n{difference(one, other)}")
    assert not found, "\n".join([name, *found, "--- ours", ours.first.text[-1500:]])


@pytest.mark.parametrize("name", [name for name in PLAYED if not SHAPES[name].code])
def test_teu_builds_the_same_from_the_cache(builds: Builds, name: str) -> None:
    """On either side: the same image as docker's own client made, every step from the cache, the same warnings."""
    raws: list[Raw] = []
    for side in builds.both:
        made = builds.made[side.name][name]
        assert isinstance(made, Made)
        assert made.second.code == 0, made.second.text[-3000:]
        raws.append(raw_of(made.second.text))
        if not SHAPES[name].has_output:
            names = (tag_of(SHAPES[name]), f"conformance/teu-{name}")
            first, second = side.docker("image", "inspect", "-f", "{{.Id}}", *names).out.split()
            assert made.second_id == second, side.name
            assert first == second or "--no-cache-filter" in SHAPES[name].argv, side.name
    # Whether an image was there already, or another build has just asked for it, is chance.
    shared = SHARED.get(name, {})
    theirs, ours = [
        {shared.get(step, step): cached or step.startswith("FROM ") for step, cached in raw.steps.items()}
        for raw in raws
    ]
    if name in MEANT_CACHED:
        assert theirs != ours, f"{name} does not differ any more: strike it from the table"
        assert all(ours[step] for step in ours if step.startswith("[") and not step.startswith("[internal]"))
    else:
        assert theirs == ours, difference(theirs, ours)


@pytest.mark.parametrize("name", [name for name in PLAYED if SHAPES[name].code])
def test_teu_fails_with_the_same_words(builds: Builds, name: str) -> None:
    """`teu build` on teud, beside docker's client on teud."""
    made = builds.made["teud"][name]
    assert isinstance(made, Made)
    assert made.second.code == made.first.code
    last = [line for line in made.first.text.splitlines() if line.startswith("ERROR: ")][-1:]
    own = [line for line in made.second.text.splitlines() if line.startswith("ERROR: ")][-1:]
    assert [neutral(line) for line in own] == [neutral(line) for line in last], made.second.text[-2000:]
