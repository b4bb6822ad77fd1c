# SPDX-License-Identifier: Apache-2.0
"""Versions of the Engine API that Debian's stable docker does not know, beside one that does: the members of answers at
each version up to 1.51. Nearly as test_engine_versions.py, which has those up to 1.45."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import engine
import peers
import pytest
import whole
from test_engine_versions import ask

pytestmark = [pytest.mark.needs("docker", "dockerd", "trixie", "namespace", "newer-docker"), pytest.mark.timeout(300)]

ROOT = peers.NEWER
# What is told by Teu alone, and by docker alone: another store of images, no experiments, and what docker tells at
# versions that do not have it.
OURS = {
    "/images/busybox/json": {"Descriptor", "Created", "Container"},  # docker's image has no date
    "/containers/shaped/json": {"ImageManifestDescriptor"},
    "/networks/bridge": {"EnableIPv4"},
}
THEIRS = {"/info": {"ProductLicense"}, "/images/busybox/json": {"Descriptor"}, "/networks/bridge": {"EnableIPv4"}}


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[str, str]]:
    engine.need_busybox()
    whole.remove_everything()
    with peers.dockerd(network=True, path=f"{ROOT}/usr/sbin:{ROOT}/usr/bin") as daemon:
        daemon.load_busybox()
        pair = (engine.SOCKET, str(daemon.socket))
        for path in pair:
            body = {
                "Image": "busybox",
                "Cmd": ["sleep", "1000"],
                "HostConfig": {"NetworkMode": "bridge", "Annotations": {"a": "b"}},
            }
            assert ask(path, 51, "POST", "/containers/create?name=shaped", body).status == 201
            assert ask(path, 51, "POST", "/containers/shaped/start").status == 204
        yield pair
        for path in pair:
            ask(path, 51, "DELETE", "/containers/shaped?force=1")


def members(value: Any, *parts: str) -> set[str]:
    for part in parts:
        value = value[part]
    return set(value)


@pytest.mark.parametrize("minor", [44, 46, 47, 48, 49, 50, 51])
@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("/containers/shaped/json", ()),
        ("/containers/shaped/json", ("NetworkSettings",)),
        ("/images/busybox/json", ()),
        ("/images/busybox/json", ("Config",)),
        ("/networks/bridge", ()),
        ("/info", ()),
        ("/info", ("RuncCommit",)),
        ("/info", ("RegistryConfig",)),
        ("/system/df", ()),
    ],
)
def test_members_are_those_of_the_version(
    both: tuple[str, str], minor: int, target: str, parts: tuple[str, ...]
) -> None:
    ours, theirs = (members(ask(path, minor, "GET", target).body, *parts) for path in both)
    if not parts:
        ours -= OURS.get(target, set())
        theirs -= THEIRS.get(target, set())
    assert ours == theirs


def test_rows_of_containers(both: tuple[str, str]) -> None:
    for minor in (45, 46, 48, 51):
        rows = [ask(path, minor, "GET", "/containers/json").body for path in both]
        ours, theirs = (next(row for row in found if row["Names"] == ["/shaped"]) for found in rows)
        assert set(ours) - {"ImageManifestDescriptor"} == set(theirs), minor
        assert ours["HostConfig"] == theirs["HostConfig"], minor
        endpoints = [row["NetworkSettings"]["Networks"]["bridge"] for row in (ours, theirs)]
        assert set(endpoints[0]) - set(endpoints[1]) == set(), minor
