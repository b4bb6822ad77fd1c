# SPDX-License-Identifier: Apache-2.0
"""Instructions of a Dockerfile over an image's configuration, as --change of commit and import has them."""

from __future__ import annotations

from typing import Any

import pytest

from teu.engine.core.errors import BadRequest
from teu.engine.images import instructions


def applied(*changes: str, **config: Any) -> dict[str, Any]:
    instructions.apply(config, list(changes))
    return config


@pytest.mark.parametrize(
    ("change", "config"),
    [
        ('CMD ["a", "b"]', {"Cmd": ["a", "b"]}),
        ("cmd a b", {"Cmd": ["/bin/sh", "-c", "a b"]}),
        ("ENTRYPOINT", {"Entrypoint": None}),
        ('ENV A=1 B="two words"', {"Env": ["A=1", "B=two words"]}),
        ("ENV A two words", {"Env": ["A=two words"]}),
        ("LABEL x=y", {"Labels": {"x": "y"}}),
        ("EXPOSE 80 53/udp 8000-8001", {"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}}),
        ('VOLUME ["/a", "/b c"]', {"Volumes": {"/a": {}, "/b c": {}}}),
        ("WORKDIR sub/../other", {"WorkingDir": "/other"}),
        ("USER 1000:1000", {"User": "1000:1000"}),
        ("STOPSIGNAL TERM", {"StopSignal": "TERM"}),
        ("ONBUILD RUN x", {"OnBuild": ["RUN x"]}),
        ("HEALTHCHECK NONE", {"Healthcheck": {"Test": ["NONE"]}}),
        (
            "HEALTHCHECK --interval=5s --retries=2 CMD test -e /x",
            {"Healthcheck": {"Test": ["CMD-SHELL", "test -e /x"], "Interval": 5 * 10**9, "Retries": 2}},
        ),
    ],
)
def test_each_instruction(change: str, config: dict[str, Any]) -> None:
    assert applied(change) == config


def test_variables_are_those_of_the_environment() -> None:
    config = applied("ENV B=$A/x", "WORKDIR ${B}", "LABEL l=${C:-none} m='$A'", Env=["A=/top"])
    assert config["Env"] == ["A=/top", "B=/top/x"]
    assert config["WorkingDir"] == "/top/x"
    assert config["Labels"] == {"l": "none", "m": "$A"}


def test_what_was_there_is_kept_or_replaced() -> None:
    config = applied("ENV A=2", "EXPOSE 80", Env=["A=1", "B=1"], ExposedPorts={"22/tcp": {}})
    assert config["Env"] == ["A=2", "B=1"]
    assert set(config["ExposedPorts"]) == {"22/tcp", "80/tcp"}


@pytest.mark.parametrize(
    "change",
    ["RUN x", "EXPOSE 0", "EXPOSE 80-70", "EXPOSE 80/icmp", "ENV", "HEALTHCHECK", "HEALTHCHECK --often=1 CMD x"],
)
def test_what_is_none_is_refused(change: str) -> None:
    with pytest.raises(BadRequest):
        applied(change)
