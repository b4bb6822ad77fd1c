# SPDX-License-Identifier: Apache-2.0
"""The shapes of Dockerfiles built by a docker that is newer than Debian's stable one (its daemon, its client, its
buildx), and by teu-buildkitd: what the older peer does not know, or says in other words.

As test_build_conformance.py, which has all shapes beside the stable one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import peers
import pytest
from bothbuilders import both_builders, neutral
from test_build_conformance import LEFT_OUT_OF_28, ON_PURPOSE_OF_28, SHAPES, Builds, check_alike, served
from test_build_conformance import ON_PURPOSE as OLDER

pytestmark = [
    pytest.mark.needs("docker", "dockerd", "buildx", "systemd", "trixie", "fast", "newer-docker"),
    pytest.mark.timeout(400),
]

ROOT = peers.NEWER
# What the older peer does otherwise because it is older, and what only this one has.
NAMES = [name for name, shape in SHAPES.items() if (shape.newer or name in OLDER) and name not in LEFT_OUT_OF_28]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    folder = tmp_path_factory.mktemp("builds")
    with both_builders(folder / "clients", ROOT) as both, served(folder) as places:
        made = Builds(both, folder, [SHAPES[name] for name in NAMES], places)
        yield made
        for agent in made.agents:
            agent.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_shape_is_built_alike(builds: Builds, name: str) -> None:
    check_alike(builds, name, ON_PURPOSE_OF_28.get(name, {}))


QUESTIONS = {
    "checks": ("--check",),
    "checks as JSON": ("--call=check,format=json",),
    "outline": ("--call=outline",),
    "outline as JSON": ("--call=outline,format=json",),
    "targets": ("--call=targets",),
    "targets as JSON": ("--call=targets,format=json",),
    "outline of a stage": ("--call=outline", "--target=base"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_to_the_frontend(builds: Builds, question: str) -> None:
    """By the newer docker to both builders, and by teu to ours."""
    words = ["build", *QUESTIONS[question], str(builds.folders["teud"] / "newer-checks")]
    theirs, ours = builds.both.each(lambda side: side.docker(*words, code=None))
    by_teu = builds.both.ours.teu(*words, code=None)
    assert by_teu.code == ours.code == theirs.code
    if "json" not in words[1]:
        assert neutral(ours.out).splitlines() == neutral(theirs.out).splitlines()
        return
    answers = [json.loads(said.out) for said in (theirs, ours, by_teu)]
    for answer in answers:
        for source in answer.get("sources", ()):
            if isinstance(source, dict):
                source.pop("definition")  # where the Dockerfile came from: sessions have names
    assert answers[0] == answers[1] == answers[2]
