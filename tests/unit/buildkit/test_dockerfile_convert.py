# SPDX-License-Identifier: Apache-2.0
"""Dockerfiles to definitions, step names, configurations and history."""

from __future__ import annotations

import json

import pytest
from dockerfiles import (
    DIGEST,
    Builder,
    compiled,
    config,
    history,
    image,
    names,
    steps,
    vertexes,
)

from teu.api.buildkit import errdefs_pb2
from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.core.errors import Error
from teu.buildkit.frontends.dockerfile.errors import DockerfileError
from teu.buildkit.llb import load

BASE = f"docker.io/library/a:latest@{DIGEST}"


def test_step_names_of_one_stage() -> None:
    text = "FROM a\nARG X=1\nENV Y=2\nWORKDIR /w\nrun echo $X ${Y} $Z\nCOPY a $Y /b/\nCMD x"
    assert names(text) == [
        f"[1/4] FROM {BASE}",
        "[2/4] WORKDIR /w",
        "[3/4] RUN echo 1 2 $Z",
        "[internal] load build context",
        "[4/4] COPY a 2 /b/",
    ]


def test_step_names_of_several_stages() -> None:
    text = "FROM a AS build\nRUN make\nFROM scratch\nCOPY --from=build /o /o\n" + "RUN x\n" * 9
    found = names(text)
    assert found[:3] == [f"[build 1/2] FROM {BASE}", "[build 2/2] RUN make", "[stage-1  1/10] COPY --from=build /o /o"]
    assert found[-1] == "[stage-1 10/10] RUN x"


def test_only_needed_stages() -> None:
    builder = Builder()
    text = "FROM a AS one\nRUN 1\nFROM b AS two\nRUN 2\nFROM c AS three\nCOPY --from=one / /\nFROM d\nRUN 4\n"
    found = names(text, builder, target="three")
    assert found == [
        f"[three 1/2] FROM docker.io/library/c:latest@{DIGEST}",
        f"[one 1/2] FROM {BASE}",
        "[one 2/2] RUN 1",
        "[three 2/2] COPY --from=one / /",
    ]
    assert sorted(one for one in builder.asked if "metadata" in one) == [
        "[internal] load metadata for docker.io/library/a:latest",
        "[internal] load metadata for docker.io/library/c:latest",
    ]


def test_a_stage_on_a_stage() -> None:
    text = "FROM a AS one\nENV A=1\nUSER u\nWORKDIR /w\nONBUILD RUN trigger\nFROM one\nRUN x"
    assert names(text) == [
        f"[one 1/2] FROM {BASE}",
        "[one 2/2] WORKDIR /w",
        "[stage-1 1/2] ONBUILD RUN trigger",
        "[stage-1 2/2] RUN x",
    ]
    run = steps(text)[-1].op.exec
    assert (list(run.meta.env), run.meta.user, run.meta.cwd) == (["PATH=/bin", "A=1"], "u", "/w")
    assert "OnBuild" not in config(text)["config"]


def test_triggers_of_an_image() -> None:
    base = image(OnBuild=["COPY --from=b /x /y", "RUN <<E\nhi\nE", "ENV A=$B"])
    images = {"docker.io/library/a:latest": base, "docker.io/library/b:latest": image()}
    found = names("FROM a\nRUN y", Builder(images))
    assert found == [
        f"[1/2] FROM {BASE}",  # what the image brings is not known before
        f"FROM docker.io/library/b:latest@{DIGEST}",
        "[2/5] ONBUILD COPY --from=b /x /y",
        "[3/5] ONBUILD RUN <<E (hi)",
        "[4/5] RUN y",
    ]
    assert "OnBuild" not in config("FROM a\nRUN y", Builder(images))["config"]
    kept = config("FROM a\nONBUILD RUN z", Builder({"docker.io/library/a:latest": image()}))["config"]
    assert kept["OnBuild"] == ["RUN z"]


def test_an_image_whose_trigger_copies_from_itself() -> None:
    images = {"docker.io/library/a:latest": image(OnBuild=["COPY --from=a / /x"])}
    assert names("FROM a", Builder(images))[-1] == "[2/2] ONBUILD COPY --from=a / /x"


def test_history_and_configuration() -> None:
    text = """FROM a
ARG A=1 B
ENV C=d E="f g"
LABEL l=m
WORKDIR w
RUN x $A
RUN ["y", "z"]
COPY --chown=1:2 --chmod=755 a b/
ADD c /
EXPOSE 80 53/udp
VOLUME /v /x
USER u
STOPSIGNAL SIGUSR1
SHELL ["/bin/bash", "-c"]
HEALTHCHECK --interval=5s CMD ["t"]
ENTRYPOINT ["e"]
CMD c d
MAINTAINER me
ONBUILD RUN o
"""
    assert history(text) == [
        ("ARG A=1 B", False),
        ("ENV C=d E=f g", False),
        ("LABEL l=m", False),
        ("WORKDIR /w", True),
        ("RUN |2 A=1 B= /bin/sh -c x $A # buildkit", True),
        ("RUN |2 A=1 B= y z # buildkit", True),
        ("COPY --chown=1:2 --chmod=755 a b/ # buildkit", True),
        ("ADD c / # buildkit", True),
        ("EXPOSE [53/udp 80/tcp]", False),
        ("VOLUME [/v /x]", False),
        ("USER u", False),
        ("STOPSIGNAL SIGUSR1", False),
        ("SHELL [/bin/bash -c]", False),
        ('HEALTHCHECK &{["CMD" "t"] "5s" "0s" "0s" "0s" \'\\x00\'}', False),
        ('ENTRYPOINT ["e"]', False),
        ('CMD ["/bin/bash" "-c" "c d"]', False),
        ("MAINTAINER me", False),
    ]
    document = config(text)
    assert list(document) == ["author", "architecture", "os", "rootfs", "history", "config"]
    assert document["author"] == "me"
    assert "created" not in document
    assert document["config"] == {
        "User": "u",
        "ExposedPorts": {"53/udp": {}, "80/tcp": {}},
        "Env": ["PATH=/bin", "C=d", "E=f g"],
        "Entrypoint": ["e"],
        "Cmd": ["/bin/bash", "-c", "c d"],
        "Volumes": {"/v": {}, "/x": {}},
        "WorkingDir": "/w",
        "Labels": {"l": "m"},
        "StopSignal": "SIGUSR1",
        "ArgsEscaped": True,
        "Healthcheck": {"Test": ["CMD", "t"], "Interval": 5000000000},
        "OnBuild": ["RUN o"],
        "Shell": ["/bin/bash", "-c"],
    }


def test_labels_of_the_request() -> None:
    assert config("FROM a\nLABEL x=z k=l", label_x="y")["config"]["Labels"] == {"x": "y", "k": "l"}


def test_entrypoint_clears_a_command_of_the_base_only() -> None:
    images = {"docker.io/library/a:latest": image(Cmd=["old"])}
    assert "Cmd" not in config('FROM a\nENTRYPOINT ["e"]', Builder(images))["config"]
    assert config('FROM a\nCMD ["c"]\nENTRYPOINT ["e"]', Builder(images))["config"]["Cmd"] == ["c"]
    assert "Entrypoint" not in config("FROM a\nENTRYPOINT []", Builder(images))["config"]


def test_scratch() -> None:
    document = config("FROM scratch\nCOPY a /")
    assert document["config"] == {
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "WorkingDir": "/",
    }
    assert document["rootfs"] == {"type": "layers", "diff_ids": None}


def test_a_base_keeps_its_history_and_loses_what_nobody_knows() -> None:
    base = {**image(), "docker_version": "1", "container": "x"}
    document = config("FROM a", Builder({"docker.io/library/a:latest": base}))
    assert document["history"] == [{"created": "2024-01-01T00:00:00Z", "created_by": "base"}]
    assert not {"docker_version", "container", "created"} & set(document)


def test_arguments() -> None:
    text = """ARG V=1
ARG W=${V}2
FROM a:$V AS one
ARG W
ARG X=${W}3
ARG TARGETARCH HTTP_PROXY
RUN echo $W $X $TARGETARCH $V
"""
    found = steps(text, arg_V="9", arg_HTTP_PROXY="http://p")
    assert found[0].name.startswith("[1/2] FROM docker.io/library/a:9@")
    run = found[1].op.exec
    assert found[1].name == "[2/2] RUN echo 92 923 amd64 $V"
    environment = list(run.meta.env)
    assert environment == ["PATH=/bin", "W=92", "X=923", "TARGETARCH=amd64", "HTTP_PROXY=http://p"]
    assert run.meta.proxy_env.http_proxy == "http://p"
    assert history(text)[-1][0].startswith("RUN |4 W=12 X=123 TARGETARCH=amd64 HTTP_PROXY= /bin/sh -c echo")


def test_a_proxy_is_no_part_of_a_step_that_does_not_declare_it() -> None:
    run = steps("FROM a\nRUN x", arg_https_proxy="p")[-1].op.exec
    assert list(run.meta.env) == ["PATH=/bin"]
    assert run.meta.proxy_env.https_proxy == "p"


def test_an_overridden_default_may_be_nonsense() -> None:
    assert steps("FROM a\nARG X=${Y?no}\nRUN $X", arg_X="1")
    with pytest.raises(DockerfileError, match="Y: no"):
        steps("FROM a\nARG X=${Y?no}\nRUN $X")


@pytest.mark.parametrize(
    ("text", "given", "message", "line"),
    [
        ("ARG A=1", {}, "dockerfile contains no stages to build", 0),
        ("FROM ${X}", {}, "base name (${X}) should not be blank", 1),
        ("FROM a AS b\n", {"target": "c"}, 'target stage "c" could not be found (did you mean b?)', 0),
        ("FROM A!", {}, 'failed to parse stage name "A!": invalid reference format', 1),
        ("FROM --platform=$X a", {}, "empty platform value from expression $X", 1),
        (
            "FROM --platform=nope a",
            {},
            'failed to parse platform nope: "nope": unknown operating system or architecture',
            1,
        ),
        ("FROM a\nCOPY --from=$x a b", {}, "variable expansion is not supported for --from", 2),
        ("FROM a\nCOPY --from=7 a b", {}, "invalid stage index 7", 2),
        ("FROM a\nCOPY --from=0 a b", {}, "circular dependency detected on stage: stage-0", 2),
        (
            "FROM a AS b\nCOPY --from=c / /\nFROM a AS c\nCOPY --from=b / /",
            {},
            "circular dependency detected on stage",
            2,
        ),
        (
            "FROM a AS b\nCOPY --from=c / /\nFROM a AS c\n",
            {"target": "b"},
            'cannot copy from stage "c", it needs to be defined before current stage "b"',
            2,
        ),
        (
            "FROM a AS b\nRUN --mount=from=c,target=/x y\nFROM a AS c\n",
            {"target": "b"},
            'cannot mount from stage "c" to "/x", stage needs to be defined before current command',
            2,
        ),
        ("FROM a\nRUN --mount=target=/ x", {}, 'invalid mount target "/"', 2),
        ("FROM a\nRUN --mount=type=$T,target=/x x", {}, 'unsupported mount type ""', 2),
        ("FROM a\nRUN --mount=type=ssh,source=x x", {}, "ssh does not support source", 2),
        (
            "FROM a\nCOPY --chmod=99 a b",
            {},
            "invalid chmod parameter: '99'. it should be octal string and between 0 and 07777",
            2,
        ),
        ("FROM a\nCOPY --chmod=10000 a b", {}, "invalid chmod parameter: '10000'", 2),
        ("FROM a\nCOPY https://h/x /", {}, "source can't be a URL for COPY", 2),
        ("FROM a\nCOPY https://h/x.git /", {}, "source can't be a git ref for COPY", 2),
        ("FROM a\nADD --checksum=sha256:1 a b /", {}, "checksum can't be specified for multiple sources", 2),
        ("FROM a\nADD --checksum=sha256:1 a /", {}, "checksum requires HTTP(S) or Git sources", 2),
        ("FROM a\nSTOPSIGNAL SIGNOPE", {}, "invalid signal: SIGNOPE", 2),
        ("FROM a\nEXPOSE 99999", {}, "invalid containerPort: 99999", 2),
        ("FROM Upper/Case", {}, "must be lowercase", 1),
        ("FROM a\nWORKDIR ${X:?said so}", {}, "X: said so", 2),
        ("ARG A=${B:?no}\nFROM a", {}, "B: no", 1),
        ("FROM a", {"arg_SOURCE_DATE_EPOCH": "soon"}, "invalid SOURCE_DATE_EPOCH: soon", 0),
    ],
)
def test_errors_say_what_and_where(text: str, given: dict[str, str], message: str, line: int) -> None:
    with pytest.raises(Error) as caught:
        compiled(text, **given)
    assert message in caught.value.message
    places = [detail for detail in caught.value.details if isinstance(detail, errdefs_pb2.Source)]
    if line:
        assert len(places) == 1 or "circular" in message
        assert places[0].ranges[0].start.line == line
        assert (places[0].info.filename, places[0].info.data) == ("Dockerfile", text.encode())


def test_an_image_that_is_not_there() -> None:
    with pytest.raises(Error) as caught:
        compiled("FROM a AS debian\nFROM debain", Builder({}))
    assert caught.value.message == "debain: docker.io/library/debain:latest: not found (did you mean debian?)"
    assert caught.value.code == 5
    (place,) = caught.value.details
    assert place.ranges[0].start.line == 2


def test_platforms() -> None:
    text = "FROM --platform=$BUILDPLATFORM a AS b\nARG TARGETPLATFORM TARGETARCH\nRUN make $TARGETARCH\n"
    text += "FROM a\nCOPY --from=b /x /x\n"
    result = compiled(text, platform="linux/amd64,linux/arm64")
    assert result.several
    assert [target.id for target in result.targets] == ["linux/amd64", "linux/arm64"]
    found = [vertex.name for vertex in vertexes(result.targets[1].definition)]
    assert found == [
        f"[linux/arm64 stage-1 1/2] FROM {BASE}",
        f"[linux/amd64 b 1/2] FROM {BASE}",
        "[linux/amd64->arm64 b 2/2] RUN make arm64",
        "[linux/arm64 stage-1 2/2] COPY --from=b /x /x",
    ]
    assert vertexes(result.targets[1].definition)[0].op.platform.Architecture == "arm64"
    document = json.loads(result.targets[1].config)
    assert (document["os"], document["architecture"]) == ("linux", "arm64")
    assert set(result.metadata) == {
        "containerimage.config/linux/amd64",
        "containerimage.config/linux/arm64",
        "containerimage.base.config/linux/amd64",
        "containerimage.base.config/linux/arm64",
        "refs.platforms",
    }
    assert json.loads(result.metadata["refs.platforms"])["Platforms"][1] == {
        "ID": "linux/arm64",
        "Platform": {"architecture": "arm64", "os": "linux"},
    }


def test_names_of_steps_on_nothing_for_several_platforms() -> None:
    """Those of docker's BuildKit, for stages without an image below them."""
    text = "FROM scratch AS one\nCOPY a /a\nFROM --platform=$BUILDPLATFORM scratch AS two\nARG TARGETPLATFORM\n"
    text += "COPY a /b\nFROM scratch\nCOPY --from=one /a /a\nCOPY --from=two /b /b\n"
    result = compiled(text, platform="linux/amd64,linux/arm/v7")
    found = [vertex.name for vertex in vertexes(result.targets[1].definition) if not vertex.name.startswith("[int")]
    assert sorted(found) == [
        "[linux/arm/v7 one 1/1] COPY a /a",
        "[linux/arm/v7 stage-2 1/2] COPY --from=one /a /a",
        "[linux/arm/v7 stage-2 2/2] COPY --from=two /b /b",
        "[linux/arm/v7 two 1/1] COPY a /b",
    ]


def test_epoch() -> None:
    text = "FROM a\nENV A=b\nWORKDIR /w"
    result = compiled(text, arg_SOURCE_DATE_EPOCH="1700000000")
    document = json.loads(result.targets[0].config)
    assert document["history"][-1]["created"] == "2023-11-14T22:13:20Z"
    assert result.metadata["source.date.epoch"] == b"1700000000"
    made = vertexes(result.targets[0].definition)[-1].op.file.actions[0].mkdir
    assert made.timestamp == 1700000000 * 10**9
    assert compiled("ARG SOURCE_DATE_EPOCH=5\nFROM a").targets[0].epoch == 5


def test_options_reach_every_step() -> None:
    given = {
        "add_hosts": "h=1.2.3.4",
        "shm_size": "64",
        "ulimit": "nofile=1:2",
        "cgroup_parent": "p",
        "hostname": "n",
        "force_network_mode": "none",
        "memory": "1024",
    }
    (_, vertex) = steps("FROM a\nRUN x", **given)
    meta = vertex.op.exec.meta
    assert (meta.hostname, meta.cgroupParent, meta.extraHosts[0].IP) == ("n", "p", "1.2.3.4")
    assert (meta.ulimit[0].Name, meta.ulimit[0].Soft, meta.ulimit[0].Hard) == ("nofile", 1, 2)
    assert vertex.op.exec.network == pb.NONE
    assert [(one.dest, one.TmpfsOpt.size) for one in vertex.op.exec.mounts if one.mountType == pb.TMPFS] == [
        ("/dev/shm", 64)
    ]
    assert vertex.metadata.linux_resources.memory == 1024


@pytest.mark.parametrize(("given", "ignored"), [("", {"one", "two"}), ("one", {"one"}), ("TWO", {"two"})])
def test_no_cache(given: str, ignored: set[str]) -> None:
    found = steps("FROM a AS one\nRUN x\nFROM one AS two\nRUN y", no_cache=given)
    assert {vertex.name.split()[0][1:] for vertex in found if vertex.metadata.ignore_cache} == ignored


def test_places_of_steps() -> None:
    definition = compiled("FROM a\nRUN x \\\n  y\n").targets[0].definition
    places = {
        vertex.name: [one.start.line for one in definition.Source.locations[vertex.digest].locations[0].ranges]
        for vertex in vertexes(definition)
    }
    assert places == {f"[1/2] FROM {BASE}": [1], "[2/2] RUN x   y": [2, 3]}
    assert definition.Source.infos[0].language == "Dockerfile"


def test_the_command_beside_a_step() -> None:
    found = steps("FROM a\nRUN x $A")
    assert [vertex.metadata.description["com.docker.dockerfile.v1.command"] for vertex in found] == [
        "FROM a",
        "RUN x $A",
    ]


def test_equal_requests_are_equal_bytes() -> None:
    text = "FROM a AS b\nCOPY --link x /\nRUN --mount=type=cache,target=/c y\n"
    text += "FROM b\nCOPY --from=b --link . .\nADD https://h/x /"
    one, other = (compiled(text).targets[0] for _ in range(2))
    assert one.definition.SerializeToString(deterministic=True) == other.definition.SerializeToString(
        deterministic=True
    )
    assert one.config == other.config


@pytest.mark.parametrize(
    "text",
    [
        "FROM scratch",
        "FROM a",
        "FROM a\nRUN --mount=type=secret,id=s --mount=type=ssh --mount=type=tmpfs,target=/t x",
        "FROM a\nCOPY --link a /\nCOPY --parents ./a/./b /c\nADD git@h:x.git /y",
        "FROM a\nRUN <<E\n#!/bin/x\nE\nCOPY <<A /a\nA",
    ],
)
def test_the_solver_takes_it(text: str) -> None:
    definition = compiled(text).targets[0].definition
    assert not getattr(definition, "def") or load.load(definition).vertexes


def test_a_stage_of_many_steps() -> None:
    assert len(steps("FROM a\n" + "RUN x\n" * 1500)) == 1501


def test_an_empty_dockerfile() -> None:
    with pytest.raises(DockerfileError, match="the Dockerfile cannot be empty"):
        compiled("")
