# SPDX-License-Identifier: Apache-2.0
"""Clients other than `docker build` with buildx, on Debian's dockerd and on teud: the classic request, compose, bake,
docker-py. What they say and what they make is compared."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bothbuilders import Both, Side, both_builders, neutral
from dockerfile_shapes import FOLDER as SHAPES
from dockerfile_shapes import lay_out, read

pytestmark = [pytest.mark.needs("docker", "dockerd", "buildx", "systemd", "trixie", "fast"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with both_builders(tmp_path_factory.mktemp("clients") / "clients") as made:
        yield made


def settings(side: Side, name: str) -> dict[str, Any]:
    """What an image's configuration says, without what is empty."""
    told = json.loads(side.docker("image", "inspect", name).out)[0]
    return {"Config": chosen(told["Config"]), "Os": told["Os"], "Architecture": told["Architecture"]}


def chosen(config: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty, and what the classic builder and BuildKit have of their own."""
    kept = {key: value for key, value in config.items() if value not in (None, "", [], {}, False)}
    for key in ("Image", "Hostname", "Domainname", "ArgsEscaped"):
        kept.pop(key, None)  # of the container that the classic builder commits, or of BuildKit alone
    if kept.get("WorkingDir") == "/":
        del kept["WorkingDir"]  # BuildKit's for none
    if kept.get("Healthcheck", {}).get("Test") == ["NONE"]:
        kept["Healthcheck"] = {"Test": ["NONE"]}  # an image that was a container still has how it was done
    return kept


# ---- the classic request ---------------------------------------------------------------------------

CLASSIC = [
    "python-pip",
    "arguments",
    "variables",
    "labels",
    "exposed",
    "commands",
    "shell",
    "healthcheck-none",
    "inherited",
    "onbuild",
    "copy-from",
    "user-workdir",
    "dockerignore",
    "whiteouts",
]
FOLDERS = "BuildKit's WORKDIR makes folders for the user of the step"
PLACES = "places of volumes and of work stay in images that were containers"
VARIABLES = "names of steps have their variables replaced"
# Shape -> aspect -> why the classic builder's differs.
CLASSIC_ON_PURPOSE: dict[str, dict[str, str]] = {
    "arguments": {"lines": VARIABLES},
    "healthcheck-none": {"paths": PLACES},
    "inherited": {"paths": PLACES, "files": FOLDERS, "lines": VARIABLES},
    "onbuild": {"lines": "the classic builder shows triggers in a way of its own"},
    "python-pip": {"lines": VARIABLES},
    "user-workdir": {"files": FOLDERS},
    "variables": {"lines": VARIABLES},
}


def classic_lines(text: str) -> list[str]:
    """Its steps, without identifiers."""
    found = []
    for line in text.splitlines():
        line = re.sub(r"^(Successfully built) [0-9a-f]{12}$", r"\1 ID", line)
        if line.startswith("Successfully "):
            found.append(line)
        elif step := re.match(r"Step \d+/\d+ : (?:ONBUILD )?(.*)", line):
            # Settings are no steps of BuildKit's, so that it counts others.
            text = re.sub(r"^FROM docker\.io/library/([^@]*)@sha256:[0-9a-f]{64}", r"FROM \1", step[1])
            found.append(re.sub(r"^FROM ([^ ]*):latest", r"FROM \1", text))
    return found


@pytest.mark.parametrize("name", CLASSIC)
def test_the_classic_request(both: Both, tmp_path: Path, name: str) -> None:
    """DOCKER_BUILDKIT=0: the same steps are named, and the same image is made."""
    shape = read(SHAPES / f"{name}.txt")
    meant = CLASSIC_ON_PURPOSE.get(name, {})
    tag = f"conformance/classic-{name}:latest"

    def build(side: Side) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
        folder = lay_out(shape, tmp_path / side.name)
        words = ["build", "-t", tag, *shape.words(folder), str(folder)]
        environment = {**shape.environment, "DOCKER_BUILDKIT": "0"}
        built = side.docker(*words, environment=environment)
        lines = classic_lines(built.out)
        files: dict[str, Any] = {}
        for layer in side.saved({tag})[tag].layers:
            # Layers are cut in another way there; what is in them at the end is the same.
            files |= {path: entry[:4] for path, entry in layer.items()}
        return lines, settings(side, tag), files

    (their_lines, their_settings, their_files), (lines, own_settings, own_files) = both.each(build)
    assert their_settings == own_settings
    alike = {
        "paths": {path for path in their_files if ".wh." not in path}
        ^ {path for path in own_files if ".wh." not in path},
        "files": {
            path: (entry, own_files[path])
            for path, entry in their_files.items()
            if ".wh." not in path and path in own_files and entry != own_files[path]
        },
        "lines": set(lines) - set(their_lines),
    }
    for aspect, differs in alike.items():
        if aspect in meant:
            assert differs, f"{name}: {aspect} does not differ any more: strike it from the table"
        else:
            assert not differs, aspect


@pytest.mark.parametrize(
    "dockerfile",
    [
        "FROM busybox\nRUN echo before; exit 7\n",
        "FROM busybox\nCOPY absent /x\n",
        "FROM busybox\nNONSENSE x\n",
        "FROM busybox\nENV A\n",
        "",
        "FROM none/at:all-of-this\n",
    ],
)
def test_the_classic_request_fails_alike(both: Both, tmp_path: Path, dockerfile: str) -> None:
    (tmp_path / "Dockerfile").write_text(dockerfile)

    def build(side: Side) -> int:
        built = side.docker("build", str(tmp_path), code=None, environment={"DOCKER_BUILDKIT": "0"})
        assert built.text.strip(), side.name
        return built.code

    codes = both.each(build)
    assert codes[0] == codes[1] and codes[0]


# ---- compose ---------------------------------------------------------------------------------------

COMPOSE = """\
services:
  web:
    build:
      context: .
      target: web
      args: {GREETING: hello}
      labels: {made-by: compose}
      additional_contexts: {extra: ./extra}
      secrets: [token]
    image: conformance/compose-web
    network_mode: none
    depends_on: [other]
  other:
    build:
      context: .
      dockerfile_inline: |
        FROM busybox
        RUN echo inline >/said
        CMD cat /said
    image: conformance/compose-other
    network_mode: none
secrets:
  token: {file: ./token}
"""
COMPOSED = """\
FROM busybox AS web
ARG GREETING=none
COPY --from=extra file /file
RUN --mount=type=secret,id=token wc -c </run/secrets/token >/length
RUN echo "$GREETING" >/said
CMD ["cat", "/said", "/file", "/length"]
FROM busybox
RUN false
"""


@pytest.mark.needs("compose")
@pytest.mark.parametrize("buildkit", ["1", "0"])
def test_compose(both: Both, tmp_path: Path, buildkit: str) -> None:
    """`build`, and `up --build`; in the classic way without what that does not know."""

    def compose_of(side: Side) -> tuple[list[dict[str, Any]], list[str]]:
        folder = tmp_path / side.name
        (folder / "extra").mkdir(parents=True)
        text, dockerfile = COMPOSE, COMPOSED
        if buildkit == "0":
            text = "".join(
                line
                for line in text.splitlines(keepends=True)
                if not re.search(r"additional_contexts|secrets: \[|^secrets:|token:", line)
            )
            text = re.sub(r"dockerfile_inline: \|\n(        .*\n)+", "dockerfile: Other\n", text)
            (folder / "Other").write_text("FROM busybox\nRUN echo inline >/said\nCMD cat /said\n")
            dockerfile = "\n".join(line for line in dockerfile.splitlines() if "--" not in line) + "\n"
            dockerfile = dockerfile.replace(', "/file", "/length"', "").replace("FROM busybox\nRUN false\n", "")
        (folder / "compose.yaml").write_text(text)
        (folder / "Dockerfile").write_text(dockerfile)
        (folder / "extra/file").write_text("extra\n")
        (folder / "token").write_text("token")
        environment = {"DOCKER_BUILDKIT": buildkit}
        compose = ("compose", "-p", "conformance", "--progress=plain")
        side.docker(*compose, "build", cwd=folder, environment=environment)
        images = [settings(side, f"conformance/compose-{name}") for name in ("web", "other")]
        try:
            ran = side.docker(*compose, "up", "--build", "--no-color", cwd=folder, environment=environment)
        finally:
            side.docker(*compose, "down", "--rmi", "all", cwd=folder, code=None)
        said = sorted(line for line in ran.out.splitlines() if " | " in line)
        for image in images:
            for key in [key for key in image["Config"].get("Labels", {}) if key.startswith("com.docker.compose")]:
                image["Config"]["Labels"].pop(key)
        return images, [re.sub(r"\s+\|\s+", " | ", line) for line in said]

    found = both.each(compose_of)
    assert found[0] == found[1]
    assert any(line.endswith("| hello") for line in found[0][1]), found[0]


# ---- bake ------------------------------------------------------------------------------------------

BAKE = """\
group "default" { targets = ["app", "test"] }
variable "TAG" { default = "one" }
target "base" {
  context = "base"
  args = { WORD = "from-bake" }
}
target "app" {
  contexts = { base = "target:base", files = "files" }
  dockerfile-inline = "FROM base\\nCOPY --from=files file /f\\nRUN cat /word >/x\\nCMD [\\"cat\\", \\"/x\\"]"
  tags = ["conformance/baked:${TAG}"]
  labels = { "baked" = "yes" }
}
target "test" {
  inherits = ["app"]
  dockerfile-inline = "FROM base\\nRUN test -s /word"
  tags = []
  output = ["type=cacheonly"]
}
"""


def test_bake(both: Both, tmp_path: Path) -> None:
    """Targets that stand on one another, several at once."""

    def bake(side: Side) -> tuple[Any, str, str]:
        folder = tmp_path / side.name
        (folder / "base").mkdir(parents=True)
        (folder / "files").mkdir()
        (folder / "docker-bake.hcl").write_text(BAKE)
        (folder / "base/Dockerfile").write_text('FROM busybox\nARG WORD\nRUN echo "$WORD" >/word\nENV BASE=yes\n')
        (folder / "files/file").write_text("file")
        tag = "conformance/baked:two"
        side.docker("buildx", "bake", "--progress=plain", cwd=folder, environment={"TAG": "two"})
        image = side.saved({tag})[tag]
        printed = side.docker("buildx", "bake", "--print", cwd=folder).out
        ran = side.docker("run", "--rm", "--network=none", tag).out
        return image, printed, ran

    found = both.each(bake)
    for theirs, ours in zip(found[0][0], found[1][0]):
        assert theirs == ours
    assert found[0][1:] == found[1][1:] and found[0][2] == "from-bake\n"


# ---- docker-py -------------------------------------------------------------------------------------


def python_client(side: Side) -> contextlib.closing[Any]:
    docker = pytest.importorskip("docker")
    return contextlib.closing(docker.DockerClient(base_url=f"unix://{side.socket}", timeout=100))


def said(log: Any) -> list[str]:
    text = "".join(one.get("stream", "") for one in log)
    return [line for line in text.splitlines() if line.startswith("Step ") or not re.match(r" --->|Removed|\[|$", line)]


def test_docker_py_builds(both: Both, tmp_path: Path) -> None:
    """By a folder, by an archive, by a Dockerfile alone; with arguments, a target, labels and a tag."""
    (tmp_path / "context").mkdir()
    (tmp_path / "context/Dockerfile").write_text(
        "FROM busybox AS one\nARG A\nCOPY file /file\nRUN echo $A $(cat /file)\nFROM one AS two\nLABEL two=2\n"
    )
    (tmp_path / "context/file").write_text("content")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(tmp_path / "context", arcname=".")
    found = []
    for side in both:
        with python_client(side) as client:
            ways: list[dict[str, Any]] = [
                {"path": str(tmp_path / "context"), "buildargs": {"A": "a"}, "tag": "conformance/py:1", "rm": True},
                {"path": str(tmp_path / "context"), "target": "one", "buildargs": {"A": "b"}, "labels": {"l": "m"}},
                {"fileobj": io.BytesIO(archive.getvalue()), "custom_context": True, "encoding": "gzip"},
                {"fileobj": io.BytesIO(b'FROM busybox\nCMD ["alone"]\n'), "forcerm": True, "nocache": True},
                {"path": str(tmp_path / "context"), "network_mode": "none", "shmsize": 1 << 20, "pull": False},
            ]
            results = []
            for way in ways:
                image, log = client.images.build(**way)
                lines = said(log)
                printed = [line for line in lines if line.startswith(("a ", "b "))]
                steps = [line.split()[3] for line in lines if line.startswith("Step ")]
                results.append(((chosen(image.attrs["Config"]), image.tags, printed), steps))
            found.append(results)
    for number, ((theirs, their_steps), (ours, steps)) in enumerate(zip(*found)):
        assert theirs == ours, number
        assert set(steps) <= set(their_steps) and steps, number  # settings are no steps of BuildKit's


def test_docker_py_fails_alike(both: Both) -> None:
    docker = pytest.importorskip("docker")
    for dockerfile in (b"FROM busybox\nRUN exit 5\n", b"NONSENSE\n", b"FROM busybox\nCOPY none /x\n", b""):
        messages = []
        for side in both:
            with python_client(side) as client:
                with pytest.raises((docker.errors.BuildError, docker.errors.APIError)) as failed:
                    client.images.build(fileobj=io.BytesIO(dockerfile), nocache=True)
                messages.append((type(failed.value).__name__, neutral(str(failed.value))))
        assert messages[0][0] == messages[1][0], messages
