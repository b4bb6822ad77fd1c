# SPDX-License-Identifier: Apache-2.0
"""The build checks one by one, and the questions of --call."""

from __future__ import annotations

import base64
import json

import pytest
from dockerfiles import Builder, compiled, findings, image

from teu.buildkit.core.errors import Unimplemented
from teu.buildkit.frontends.dockerfile import lint
from teu.buildkit.frontends.dockerfile.errors import DockerfileError

OTHER = {**image(), "architecture": "arm64"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("FROM a AS Base", ["StageNameCasing: Stage name 'Base' should be lowercase (line 1)"]),
        ("FROM a as base", ["FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)"]),
        ("from a AS base", ["FromAsCasing: 'AS' and 'from' keywords' casing do not match (line 1)"]),
        ("FROM a\nRUN b \\\n\n c", ["NoEmptyContinuation: Empty continuation line (line 4)"]),
        (
            "FROM a\nrun b\nRUN c",
            [
                "ConsistentInstructionCasing: Command 'run' should match the case of the command majority (uppercase) "
                "(line 2)"
            ],
        ),
        (
            "FROM a AS b\nFROM a AS b",
            ['DuplicateStageName: Duplicate stage name "b", stage names should be unique (line 2)'],
        ),
        (
            "FROM a AS scratch\nFROM b",
            ['ReservedStageName: Stage name should not use the same name as reserved stage "scratch" (line 1)'],
        ),
        (
            "FROM a\nCMD b",
            [
                "JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS "
                "signals (line 2)"
            ],
        ),
        ('FROM a\nSHELL ["x"]\nCMD b', []),
        (
            "FROM a\nMAINTAINER b",
            ["MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label (line 2)"],
        ),
        (
            "ARG VERSION=1\nFROM a:1$VERSIO",
            ["UndefinedArgInFrom: FROM argument 'VERSIO' is not declared (did you mean VERSION?) (line 2)"],
        ),
        (
            "FROM a\nWORKDIR b\nWORKDIR c",
            [
                'WorkdirRelativePath: Relative workdir "b" can have unexpected results if the base image changes '
                "(line 2)"
            ],
        ),
        ("FROM a\nWORKDIR /b\nWORKDIR c", []),
        ("FROM a\nCOPY $PAHT /x", ["UndefinedVar: Usage of undefined variable '$PAHT' (did you mean $PATH?) (line 2)"]),
        ("FROM a\nARG X\nCOPY $X /x", []),
        (
            'FROM a\nCMD ["b"]\nCMD ["c"]',
            [
                "MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage "
                "because only the last one will be used (line 2)"
            ],
        ),
        (
            "FROM a\nENV b c",
            ['LegacyKeyValueFormat: "ENV key=value" should be used instead of legacy "ENV key value" format (line 2)'],
        ),
        (
            "FROM --platform=$TARGETPLATFORM a",
            [
                "RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this "
                "is the default behavior (line 1)"
            ],
        ),
        (
            "FROM a\nARG API_KEY\nENV TOKEN=x PUBLIC_KEY=y",
            [
                'SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG "API_KEY") (line 2)',
                'SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV "TOKEN") (line 3)',
            ],
        ),
        (
            "FROM --platform=linux/arm64 a AS b\nFROM scratch",
            [
                'FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value "linux/arm64" '
                "(line 1)"
            ],
        ),
        ("FROM --platform=linux/arm64 a AS b-arm64\nFROM scratch", []),
        (
            "FROM a\nEXPOSE 80/TCP",
            ["ExposeProtoCasing: Defined protocol '80/TCP' in EXPOSE instruction should be lowercase (line 2)"],
        ),
        (
            "FROM a\nEXPOSE 1:80",
            [
                "ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found "
                "'1:80' (line 2)"
            ],
        ),
        ("# b is here\nFROM a AS b", []),
        (
            "# check=experimental=all\n#\n# is here\nFROM a AS b",
            ["InvalidDefinitionDescription: Comment for FROM should follow the format: `# b <description>` (line 4)"],
        ),
        ("# check=skip=JSONArgsRecommended,StageNameCasing\nFROM a AS B\nCMD b", []),
        ("# check=skip=all\nFROM a AS B\nCMD b", []),
        (
            "FROM a\n# check=skip=JSONArgsRecommended\nCMD b\nENTRYPOINT c",
            [
                "JSONArgsRecommended: JSON arguments recommended for ENTRYPOINT to prevent unintended behavior related "
                "to OS signals (line 4)"
            ],
        ),
    ],
)
def test_findings(text: str, found: list[str]) -> None:
    assert findings(text) == found


def test_defaults_of_global_arguments() -> None:
    text = "ARG TAG\nFROM a:${TAG}"
    expected = (
        "InvalidDefaultArgInFrom: Default value for ARG a:${TAG} results in empty or invalid base image name (line 2)"
    )
    assert findings(text, arg_TAG="1") == [expected]


def test_a_base_of_another_platform() -> None:
    assert findings("FROM a\nRUN x", Builder({"docker.io/library/a:latest": OTHER}), platform="linux/amd64") == [
        'InvalidBaseImagePlatform: Base image a was pulled with platform "linux/arm64", expected "linux/amd64" for '
        "current build (line 1)"
    ]


@pytest.mark.parametrize(
    ("ignore", "line", "found"),
    [
        (
            b"secret\n",
            "COPY secret/x /",
            ['CopyIgnoredFile: Attempting to Copy file "secret/x" that is excluded by .dockerignore (line 2)'],
        ),
        (
            b"*.o\n",
            "ADD a.o b.c /",
            ['CopyIgnoredFile: Attempting to Add file "a.o" that is excluded by .dockerignore (line 2)'],
        ),
        (b"secret\n!secret/x\n", "COPY secret/x /", []),
        (b".git\n", "COPY . /", []),
        (
            b"*\n",
            "COPY . /",
            ['CopyIgnoredFile: Attempting to Copy file "." that is excluded by .dockerignore (line 2)'],
        ),
        (b"x\n", "COPY --from=b x /", []),
    ],
)
def test_ignored_files(ignore: bytes, line: str, found: list[str]) -> None:
    assert findings(f"FROM a\n{line}", Builder(files={".dockerignore": ignore})) == found


def test_notes_say_all() -> None:
    builder = Builder()
    compiled("FROM a\nCMD b", builder)
    (note,) = builder.notes
    assert note.url == "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/"
    assert note.detail == lint.JSON_ARGS_RECOMMENDED.description
    assert note.info.filename == "Dockerfile"
    assert [part.start for part in note.location] == [2]


def test_findings_are_said_once_for_all_platforms() -> None:
    assert len(findings("FROM a\nCMD b", platform="linux/amd64,linux/arm64")) == 1


@pytest.mark.parametrize("given", [{}, {"arg_BUILDKIT_DOCKERFILE_CHECK": "error=true"}])
def test_findings_as_errors(given: dict[str, str]) -> None:
    text = "FROM a\nCMD b" if given else "# check=error=true\nFROM a\nCMD b"
    with pytest.raises(DockerfileError, match="lint violation found for rules: JSONArgsRecommended"):
        compiled(text, **given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("skip", 'invalid check option "skip"'),
        ("what=x", 'invalid check option "what"'),
        ("error=maybe", 'failed to parse check option "error=maybe"'),
    ],
)
def test_wrong_settings(text: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        lint.parse_config(text)
    assert message in str(caught.value)


def test_rules_have_addresses() -> None:
    rules = [value for value in vars(lint).values() if isinstance(value, lint.Rule)]
    assert len(rules) == 22
    assert len({rule.name for rule in rules}) == 22
    assert [rule.name for rule in rules if not rule.url] == ["InvalidBaseImagePlatform"]


CALLED = """# syntax=docker/dockerfile:1
ARG V=1
# base what all stand on
FROM a:$V AS base
# WHO is greeted
ARG WHO=you
RUN --mount=type=secret,id=s,required --mount=type=ssh x
FROM scratch
COPY --from=base /x /
"""


def test_outline() -> None:
    found = compiled(CALLED, requestid="frontend.outline").metadata
    document = json.loads(found["result.json"])
    assert document.pop("sources") == [base64.b64encode(CALLED.encode()).decode()]
    assert document == {
        "args": [
            {"name": "V", "value": "1", "location": {"ranges": [{"start": {"line": 2}, "end": {"line": 2}}]}},
            {
                "name": "WHO",
                "description": "is greeted",
                "value": "you",
                "location": {"ranges": [{"start": {"line": 6}, "end": {"line": 6}}]},
            },
        ],
        "secrets": [
            {"name": "s", "required": True, "location": {"ranges": [{"start": {"line": 7}, "end": {"line": 7}}]}}
        ],
        "ssh": [{"name": "default", "location": {"ranges": [{"start": {"line": 7}, "end": {"line": 7}}]}}],
    }
    assert found["version"] == b"1.0.0"
    assert found["result.txt"].decode() == (
        "BUILD ARG   VALUE   DESCRIPTION\nV           1       \nWHO         you     is greeted\n\n"
        "SECRET   REQUIRED\ns        true\n\nSSH       REQUIRED\ndefault   \n\n"
    )
    named = compiled(CALLED, requestid="frontend.outline", target="base").metadata["result.txt"].decode()
    assert named.startswith("TARGET:      base\nDESCRIPTION: what all stand on\n\n")


def test_targets() -> None:
    found = compiled(CALLED, requestid="frontend.targets").metadata
    document = json.loads(found["result.json"])
    assert document["targets"] == [
        {
            "name": "base",
            "description": "what all stand on",
            "base": "a:$V",
            "location": {"ranges": [{"start": {"line": 4}, "end": {"line": 4}}]},
        },
        {"default": True, "base": "scratch", "location": {"ranges": [{"start": {"line": 8}, "end": {"line": 8}}]}},
    ]
    assert found["result.txt"] == b"TARGET    DESCRIPTION\nbase      what all stand on\n(default) \n"


def test_check() -> None:
    text = "FROM a AS unused\nCMD b\nFROM scratch\nCOPY a /\n"
    found = compiled(text, requestid="frontend.lint").metadata
    document = json.loads(found["result.json"])
    (warning,) = document["warnings"]
    assert list(warning) == ["ruleName", "description", "url", "detail", "location"]
    assert (warning["ruleName"], warning["location"]["ranges"][0]["start"]["line"]) == ("JSONArgsRecommended", 2)
    assert list(document["sources"][0]) == ["filename", "data", "language"]
    assert found["result.statuscode"] == b"1"
    assert (
        found["result.txt"]
        .decode()
        .startswith(
            "\nWARNING: JSONArgsRecommended - https://docs.docker.com/go/dockerfile/rule/json-args-recommended/\n"
            "JSON arguments recommended for CMD to prevent unintended behavior related to OS signals\nDockerfile:2\n"
            "--------------------\n   1 |     FROM a AS unused\n   2 | >>> CMD b\n"
        )
    )
    clean = compiled("FROM scratch\nCOPY a /", requestid="frontend.lint").metadata
    assert json.loads(clean["result.json"])["warnings"] is None
    assert (clean["result.statuscode"], clean["result.txt"]) == (b"0", b"")


def test_a_check_tells_errors() -> None:
    found = compiled("FROM a\nCOPY a\n", requestid="frontend.lint").metadata
    error = json.loads(found["result.json"])["buildError"]
    assert error["message"].startswith("dockerfile parse error on line 2: COPY requires at least two arguments")
    assert error["location"]["ranges"] == [{"start": {"line": 2}, "end": {"line": 2}}]
    assert found["result.statuscode"] == b"1"


def test_what_is_answered() -> None:
    found = compiled("FROM a", requestid="frontend.subrequests.describe").metadata
    names = [one["name"] for one in json.loads(found["result.json"])]
    assert names == ["frontend.outline", "frontend.targets", "frontend.subrequests.describe"]
    assert found["result.txt"].decode().splitlines()[0] == "NAME                 VERSION DESCRIPTION"
    converted = json.loads(compiled("FROM a\nRUN x", requestid="frontend.convertllb").metadata["result.json"])
    assert len(converted["def"]) == 3 and set(converted["metadata"]) == set(converted["def"])
    with pytest.raises(Unimplemented, match="unsupported request frontend.nothing"):
        compiled("FROM a", requestid="frontend.nothing")
