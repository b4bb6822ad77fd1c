# SPDX-License-Identifier: Apache-2.0
"""DeviceRequests: which devices are meant, and what is refused when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.core.fields import HOST_CONFIG, DeviceRequest
from teu.engine.spec import device_requests


def requests(*given: dict[str, Any]) -> list[DeviceRequest]:
    found = HOST_CONFIG.read({"DeviceRequests": list(given)}, "HostConfig").device_requests
    assert found is not None
    return found


def put(folder: Path, kind: str, *names: str) -> str:
    document = {
        "cdiVersion": "0.6.0",
        "kind": kind,
        "containerEdits": {"env": [f"KIND={kind}"]},
        "devices": [
            {"name": name, "containerEdits": {"env": [f"DEVICE_{name.upper().replace('-', '_')}=1"]}} for name in names
        ],
    }
    (folder / f"{kind.replace('/', '-')}.json").write_text(json.dumps(document))
    return str(folder)


def named(folder: str, *given: dict[str, Any]) -> list[str]:
    edits = device_requests.edits([folder], requests(*given))
    return [entry.partition("=")[0].removeprefix("DEVICE_") for entry in edits.env if not entry.startswith("KIND")]


GPU = {"Capabilities": [["gpu"]]}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=1"]}, ["1"]),
        ({"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all", "nvidia.com/gpu=0"]}, ["ALL", "0"]),
        ({**GPU, "Count": -1}, ["ALL"]),
        ({**GPU, "Count": 1}, ["0"]),
        ({**GPU, "Count": 2}, ["0", "1"]),
        ({**GPU, "DeviceIDs": ["10", "GPU-uuid"]}, ["10", "GPU_UUID"]),
        ({**GPU, "Driver": "nvidia", "Count": 3}, ["0", "1", "10"]),
        ({**GPU, "Count": 0}, []),
    ],
)
def test_what_is_meant(given: dict[str, Any], found: list[str], tmp_path: Path) -> None:
    folder = put(tmp_path, "nvidia.com/gpu", "10", "1", "0", "all", "GPU-uuid")
    put(tmp_path, "amd.com/gpu", "0")
    assert named(folder, given) == found


def test_gpus_of_another_maker(tmp_path: Path) -> None:
    folder = put(tmp_path, "amd.com/gpu", "0", "1")
    assert named(folder, {**GPU, "Count": -1}) == ["0", "1"]
    assert named(folder, {**GPU, "Driver": "amd", "Count": 1}) == ["0"]
    with pytest.raises(EngineError, match=r'could not select device driver "nvidia" with capabilities: \[\[gpu\]\]'):
        named(folder, {**GPU, "Driver": "nvidia", "Count": 1})
    with pytest.raises(EngineError, match="3 GPUs are wanted, and amd.com/gpu has 2"):
        named(folder, {**GPU, "Count": 3})


def test_what_is_not_there_at_the_start(tmp_path: Path) -> None:
    folder = put(tmp_path, "vendor.example/class", "one")
    with pytest.raises(EngineError, match="unresolvable CDI devices vendor.example/class=two, x.example/y=z"):
        named(folder, {"Driver": "cdi", "DeviceIDs": ["vendor.example/class=two", "x.example/y=z"]})
    with pytest.raises(EngineError, match="could not select device driver"):
        named(folder, {**GPU, "Count": -1})
    assert device_requests.discovered([folder]) == [{"Source": "cdi", "ID": "vendor.example/class=one"}]
    assert device_requests.discovered([f"{folder}/none"]) == []


@pytest.mark.parametrize(
    "given",
    [
        {"Driver": "unheard-of", "Capabilities": [["gpu"]]},
        {"Driver": "nvidia"},
        {"Capabilities": [["tpu"]]},
        {"Driver": "cdi", "DeviceIDs": ["no-name"]},
        {"Driver": "cdi", "DeviceIDs": ["vendor.example/class"]},
        {**GPU, "Count": 1, "DeviceIDs": ["0"]},
    ],
)
def test_what_no_machine_could_give(given: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        device_requests.check(requests(given))
