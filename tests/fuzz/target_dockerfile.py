# SPDX-License-Identifier: Apache-2.0
"""Dockerfiles, nearly right and far from it, with options of all kinds: each is built, or refused in time with words,
and what is built is a definition that the solver takes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from fuzz import mutate
from fuzz.frame import Run, target

SLOW_SECONDS = 5
GOOD = b"""# syntax=docker/dockerfile:1
ARG V=13
FROM debian:$V AS build
ARG TARGETARCH
ENV A=b PATH=/bin:${PATH:-/usr/bin}
WORKDIR /src
COPY --link --chown=1:2 go.* ./
RUN --mount=type=cache,target=/c,sharing=locked --mount=type=secret,id=t,env=TOK --mount=from=busybox,target=/b make \\
  # comment
  $TARGETARCH
FROM --platform=$BUILDPLATFORM scratch AS other
COPY --from=build --parents --exclude=*.o /out/./a /out/
ADD --checksum=sha256:0000000000000000000000000000000000000000000000000000000000000000 https://example.com/a.tgz /a/
ADD https://example.com/y.git?ref=main&subdir=s /g
COPY <<EOF <<-'TWO' /etc/
hello ${A/b/c} ${A##*x} ${A%b}
EOF
	two
	TWO
FROM build
ONBUILD RUN <<X
true
X
RUN <<E
#!/bin/sh
E
HEALTHCHECK --interval=30s --retries=3 CMD ["x"]
CMD ["a", "b"]
EXPOSE 80 443/udp 8000-8002
LABEL a=b "c d"='e f'
STOPSIGNAL SIGRTMIN+3
"""
WORDS = (
    *("FROM a AS b", "FROM", "RUN", "COPY", "ADD", "ENV", "ARG", "LABEL", "EXPOSE", "CMD", "SHELL", "ONBUILD", "USER"),
    *(
        "WORKDIR",
        "VOLUME",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "--from=b",
        "--link",
        "--parents",
        "--chmod=",
        "--mount=",
        "--",
    ),
    *("--mount=type=ssh", "--mount=type=tmpfs,target=/t,size=9", "<<E", '<<-"E"', "\n", "\n", "\nE\n", "${x:-", "}"),
    *("${x//*/", "${x#*a*b*c}", "$x", "$", "\\", "\\\n", "`", '"', "'", '["a","b"]', "[", "A=b", "1-65535", "/w", ".."),
    *(
        "# escape=`\n",
        "# check=skip=all;error=true\n",
        "git@h:x.git?ref=",
        "https://[",
        "http://h/%ff",
        "*",
        "/./",
        "0",
    ),
)
KEYS = ("platform", "target", "ulimit", "add-hosts", "no-cache", "shm-size", "cache-imports", "context", "memory")
MORE = ("context:a", "context:b", "attest:sbom", "build-arg:V", "build-arg:SOURCE_DATE_EPOCH", "multi-platform")
VALUES = (
    "a",
    "b",
    "1",
    "0",
    "linux/arm64,amd64",
    "local:x",
    "input:y",
    "docker-image://z",
    "https://h/x.git#a:b",
    "[]",
)
QUESTIONS = ("frontend.lint", "frontend.outline", "frontend.targets", "frontend.convertllb")


class _Builder:
    """Every image is there, and so are a Dockerfile and what its context leaves out."""

    def __init__(self, dockerfile: bytes, ignore: bytes) -> None:
        self.files = {"Dockerfile": dockerfile, ".dockerignore": ignore}

    def resolve_image_config(self, name: str, *_given: Any, **_more: Any) -> Any:
        from teu.buildkit.frontends.dockerfile.client import ImageConfig

        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["A=1"], "OnBuild": ["COPY --from=b / /x", "ENV B=$A"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]},
        }
        return ImageConfig(name, "sha256:" + "1" * 64, json.dumps(config).encode())

    def read_file(self, _definition: Any, path: str, limit: int | None = None) -> bytes | None:
        data = self.files.get(path)
        return data if data is None else data[:limit]

    def inputs(self) -> Mapping[str, Any]:
        return {}

    def warn(self, note: Any) -> None:
        pass


def _dockerfile(run: Run) -> bytes:
    dice = run.random
    if dice.random() < 0.5:
        return mutate.data(dice, GOOD)
    words = [dice.choice(WORDS) + dice.choice((" ", "", " ", "\n")) for _ in range(dice.randrange(1, 40))]
    return ("FROM a AS b\n" * (dice.random() < 0.8) + "".join(words)).encode()


@target("dockerfile", "Dockerfiles and options through the builder's own frontend, alone", alone=True)
def fuzz(run: Run) -> None:
    from teu.buildkit.core.errors import Error
    from teu.buildkit.frontends.dockerfile import frontend
    from teu.buildkit.frontends.dockerfile.client import parse_options
    from teu.buildkit.llb import load

    dice = run.random
    while run.going():
        text = _dockerfile(run)
        options = {key: dice.choice(VALUES) for key in (*KEYS, *MORE) if dice.random() < 0.06}
        if dice.random() < 0.1:
            options["requestid"] = dice.choice(QUESTIONS)
        case = {"options": options, "dockerfile": repr(text)}
        run.trying(case)
        began = time.monotonic()
        try:
            result = frontend.build(
                parse_options(options, "session"), _Builder(text, mutate.data(dice, b"a\n!b\n**/c\n"))
            )
            for one in result.targets:
                json.loads(one.config)
                if list(getattr(one.definition, "def")):
                    load.load(one.definition)
        except (Error, frontend.Forward):
            pass
        except Exception as error:
            run.finding(f"{type(error).__name__}: {error}"[:200], case)
        if time.monotonic() - began > SLOW_SECONDS:
            run.finding("a Dockerfile took longer than it should", case)
