# SPDX-License-Identifier: Apache-2.0
"""`manifest`: the store's files, the list that goes to a registry, what is refused before anything is asked."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teu.cli import main, manifests
from teu.cli.command import GLOBAL_FLAGS, Cli
from teu.cli.errors import CommandError
from teu.cli.options import parse, parse_table

DIGEST = "sha256:" + "a" * 64
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
TARGET = manifests.named("reg.test/web:1")


def entry(ref: str, kind: str = DOCKER, **platform: Any) -> dict[str, Any]:
    descriptor = {"mediaType": kind, "digest": DIGEST, "size": 2, "platform": platform}
    return {"Ref": ref, "Descriptor": descriptor, "Raw": base64.b64encode(b"{}").decode(), manifests.KINDS[kind]: {}}


@pytest.fixture
def lists(tmp_path: Path) -> manifests.Lists:
    return manifests.Lists(Cli(parse(parse_table(GLOBAL_FLAGS), ["--config", str(tmp_path)])[0]))


@pytest.fixture
def teu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*argv: str) -> str:
        capsys.readouterr()
        main.dispatch(["--config", str(tmp_path), "manifest", *argv])
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("reg.test/a:1", "reg.test/a:1"),
        (f"a/b@{DIGEST}", f"docker.io/a/b@{DIGEST}"),
    ],
)
def test_names_are_whole(text: str, full: str) -> None:
    assert manifests.whole(manifests.named(text)) == full
    with pytest.raises(CommandError):
        manifests.named("Bad Name")


def test_the_files_are_dockers(lists: manifests.Lists, tmp_path: Path) -> None:
    lists.write(TARGET, manifests.named("reg.test/web:b"), entry("reg.test/web:b"))
    lists.write(TARGET, manifests.named("reg.test/web:a"), entry("reg.test/web:a"))
    folder = tmp_path / "manifests/reg.test_web-1"
    assert sorted(path.name for path in folder.iterdir()) == ["reg.test_web-a", "reg.test_web-b"]
    assert [found["Ref"] for found in lists.all(TARGET)] == ["reg.test/web:a", "reg.test/web:b"]
    (folder / "reg.test_web-a").write_text("{}")
    with pytest.raises(CommandError, match="is no manifest of a list"):
        lists.all(TARGET)
    lists.remove(TARGET)
    with pytest.raises(manifests.Missing, match="No such manifest: reg.test/web:1"):
        lists.all(TARGET)


def test_a_list_as_it_goes_out() -> None:
    kept = entry("reg.test/web:a", architecture="arm64", os="linux", variant="v8", **{"os.features": ["x"]})
    made = manifests.as_list([kept], TARGET)
    assert json.dumps(made) == json.dumps({
        "schemaVersion": 2,
        "mediaType": manifests.LIST,
        "manifests": [
            {
                "mediaType": DOCKER,
                "size": 2,
                "digest": DIGEST,
                "platform": {"architecture": "arm64", "os": "linux", "os.features": ["x"], "variant": "v8"},
            }
        ],
    })  # fmt: skip
    oci = entry("reg.test/web:a", "application/vnd.oci.image.manifest.v1+json")
    assert manifests.as_list([oci], TARGET)["mediaType"] == manifests.INDEX
    with pytest.raises(CommandError, match="from a different registry"):
        manifests.as_list([entry("other.test/web:a")], TARGET)


def test_what_annotate_says(lists: manifests.Lists, teu: Callable[..., str]) -> None:
    lists.write(TARGET, manifests.named("reg.test/web:a"), entry("reg.test/web:a", os="linux"))
    words = ("annotate", "reg.test/web:1", "reg.test/web:a")
    teu(*words, "--arch", "arm64", "--os-features", "a,b", "--os-features", "a", "--os-version", "2")
    platform = lists.all(TARGET)[0]["Descriptor"]["platform"]
    assert platform == {"os": "linux", "architecture": "arm64", "os.features": ["a", "b"], "os.version": "2"}
    with pytest.raises(CommandError, match="unsupported os/arch combination"):
        teu(*words, "--arch", "odd")
    assert json.loads(teu("inspect", "reg.test/web:1"))["manifests"][0]["platform"]["os.version"] == "2"
    assert teu("inspect", "reg.test/web:1", "reg.test/web:a") == "{}\n"


def test_a_list_without_a_platform_is_not_pushed(lists: manifests.Lists, teu: Callable[..., str]) -> None:
    lists.write(TARGET, manifests.named("reg.test/web:a"), entry("reg.test/web:a"))
    with pytest.raises(CommandError, match="must have an OS and Architecture"):
        teu("push", "reg.test/web:1")
    with pytest.raises(CommandError, match="No such manifest: reg.test/other:1"):
        teu("rm", "reg.test/other:1", "reg.test/web:1")
    with pytest.raises(manifests.Missing):
        lists.all(TARGET)
