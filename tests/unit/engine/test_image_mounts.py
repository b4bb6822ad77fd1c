# SPDX-License-Identifier: Apache-2.0
"""Mounts of images: what is taken of a request, and what becomes of it. tests/system/test_mounts_images.py mounts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_parts as parts
import pytest

from teu.engine.containers.state import MOUNT_POINT
from teu.engine.core.errors import BadRequest
from teu.engine.core.fields import HOST_CONFIG
from teu.engine.engine import Engine
from teu.engine.files import snapshots
from teu.engine.spec import mounts

CHAIN, ID = "sha256:" + "c" * 64, "sha256:" + "1" * 64


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = parts.engine(tmp_path)
    monkeypatch.setattr(made.images, "resolve", lambda text: SimpleNamespace(id=ID, chain_id=CHAIN))
    return made


def asked(**members: Any) -> dict[str, Any]:
    return {"Type": "image", "Source": "shown", "Target": "/shown", **members}


def test_it_is_read_only_and_keeps_what_the_name_means_now(engine: Engine) -> None:
    container = parts.container(engine, Mounts=[asked(ImageOptions={"Subpath": "deep/er"})])
    (point,) = mounts.collect(engine, container)
    assert (point.type, point.name, point.source, point.rw) == ("image", "shown", ID, False)
    assert (point.options.subpath, point.options.chain) == ("deep/er", CHAIN)
    again = MOUNT_POINT.build(MOUNT_POINT.write(point))
    assert (again.options.chain, again.options.subpath) == (CHAIN, "deep/er")


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"Source": ""}, "field Source must not be empty"),
        ({"ImageOptions": {"Subpath": "/etc"}}, "subpath must be a relative path within the image"),
        ({"ImageOptions": {"Subpath": "a/../../b"}}, "subpath must be a relative path within the image"),
        ({"VolumeOptions": {}}, "VolumeOptions must not be specified on this type"),
        ({"Type": "volume", "ImageOptions": {}}, "ImageOptions must not be specified on this type"),
        ({"Type": "npipe"}, "mount type unknown; there are bind, volume, tmpfs, image"),
    ],
)
def test_what_is_refused(engine: Engine, members: dict[str, Any], says: str) -> None:
    container = parts.container(engine, Mounts=[asked(**members)])
    with pytest.raises(BadRequest, match=says):
        mounts.collect(engine, container)


def test_each_place_has_a_snapshot_of_its_own(engine: Engine) -> None:
    container = parts.container(engine, Mounts=[asked(), asked(Target="/other")])
    container.mounts = mounts.collect(engine, container)
    keys = {snapshots.image_key(container, point) for point in container.mounts}
    assert len(keys) == 2 and all(key.startswith(f"{container.id}-") for key in keys)
    other = parts.container(engine, VolumesFrom=[container.name])
    copied = mounts.collect(engine, other)
    assert [point.options.chain for point in copied] == [CHAIN, CHAIN]
    assert not keys & {snapshots.image_key(other, point) for point in copied}


def test_the_table_has_its_fields() -> None:
    host = HOST_CONFIG.read({"Mounts": [asked(ImageOptions={"Subpath": "x"})]}, "HostConfig")
    assert host.mounts and host.mounts[0].image_options and host.mounts[0].image_options.subpath == "x"
