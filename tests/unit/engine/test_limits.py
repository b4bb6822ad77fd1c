# SPDX-License-Identifier: Apache-2.0
"""`update`: what is given is changed, and nothing else; what cannot be is refused, and leaves all as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest

from teu.engine.backend import tasks
from teu.engine.containers import hostconfig
from teu.engine.containers.model import Container
from teu.engine.core.errors import BadRequest, Conflict, EngineError
from teu.engine.core.fields import UPDATE, HostConfig, RestartPolicy
from teu.engine.engine import Engine
from teu.engine.lifecycle import limits

EVERY = {"cpu", "cpuset", "io", "memory", "pids"}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(hostconfig, "controllers", lambda: EVERY)
    monkeypatch.setattr(hostconfig, "_swap_is_limited", lambda: True)
    return parts.engine(tmp_path)


def saved(engine: Engine, made: Container) -> HostConfig:
    """As a new engine reads it."""
    again = parts.another(engine.config)
    again.containers.load()
    found = again.containers.get(made.id)
    assert found is not made
    return found.host_config


def test_what_is_given_is_changed(engine: Engine) -> None:
    made = parts.container(engine, Memory=64 << 20, CpuShares=512)
    assert limits.update(engine, made, {"Memory": 128 << 20, "MemorySwap": -1, "CpuShares": 0}) == []
    assert (made.host_config.memory, made.host_config.cpu_shares) == (128 << 20, 512)
    assert saved(engine, made).memory == 128 << 20


def test_what_its_log_was_checked_for_may_be_gone(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "socket").touch()
    options = {"syslog-address": f"unix://{tmp_path}/socket"}
    made = parts.container(engine, LogConfig={"Type": "syslog", "Config": options})
    (tmp_path / "socket").unlink()
    assert limits.update(engine, made, {"CpuShares": 7}) == []
    assert saved(engine, made).log_config.config == options and made.host_config.log_config.type == "syslog"


def test_a_number_of_cpus_takes_the_place_of_a_quota(engine: Engine) -> None:
    made = parts.container(engine, CpuPeriod=100_000, CpuQuota=50_000)
    limits.update(engine, made, {"NanoCpus": 10**9})
    assert (made.host_config.nano_cpus, made.host_config.cpu_quota) == (10**9, 0)


def test_a_restart_policy(engine: Engine) -> None:
    made = parts.container(engine)
    limits.update(engine, made, UPDATE.read({"RestartPolicy": {"Name": "always"}}))
    assert made.host_config.restart_policy == RestartPolicy(name="always")
    passing = parts.container(engine, AutoRemove=True)
    with pytest.raises(Conflict, match="AutoRemove is enabled"):
        limits.update(engine, passing, UPDATE.read({"RestartPolicy": {"Name": "always"}}))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"Memory": 256 << 20}, Conflict),
        ({"Memory": 1 << 10}, BadRequest),
        ({"NanoCpus": 10**15}, BadRequest),
    ],
)
def test_what_is_refused_changes_nothing(engine: Engine, body: dict[str, Any], error: type[EngineError]) -> None:
    weight = [{"Path": "/dev/null", "Weight": 300}]
    made = parts.container(engine, Memory=64 << 20, MemorySwap=128 << 20, BlkioWeightDevice=weight)
    before = made.host_config.copy()
    with pytest.raises(error):
        limits.update(engine, made, body)
    assert made.host_config == before
    assert saved(engine, made) == before


RATES = ("BlkioDeviceReadBps", "BlkioDeviceWriteBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps")


def test_limits_of_devices_are_taken_away(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since API 1.55 an empty list is one; nothing, and null, is not."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(tasks, "update", lambda _client, _identity, wanted: told.append(wanted))
    rate = [{"Path": "/dev/null", "Rate": 1000}, {"Path": "/dev/zero", "Rate": 2000}]
    weight = [{"Path": "/dev/null", "Weight": 300}]
    made = parts.container(engine, BlkioWeightDevice=weight, **dict.fromkeys(RATES, rate))
    before = made.host_config.copy()
    limits.update(engine, made, UPDATE.read(dict.fromkeys((*RATES, "BlkioWeightDevice"))))
    assert made.host_config == before and told == []
    made.state.runs(1, made.created)
    limits.update(engine, made, UPDATE.read({"BlkioDeviceReadBps": rate[1:], "BlkioDeviceWriteIOps": []}))
    (wanted,) = told
    zero, null = {"major": 1, "minor": 5}, {"major": 1, "minor": 3}
    assert wanted["blockIO"]["throttleReadBpsDevice"] == [{**zero, "rate": 2000}, {**null, "rate": 0}]
    assert wanted["blockIO"]["throttleWriteIOPSDevice"] == [{**null, "rate": 0}, {**zero, "rate": 0}]
    assert [one.path for one in saved(engine, made).blkio_device_read_bps] == ["/dev/zero"]
    assert saved(engine, made).blkio_device_write_iops == []
    for weights in ([], [{"Path": "/dev/zero", "Weight": 5}]):
        with pytest.raises(BadRequest, match="stop it before"):
            limits.update(engine, made, UPDATE.read({"BlkioWeightDevice": weights}))
    made.state.ends(0, made.created, False)
    limits.update(engine, made, UPDATE.read({"BlkioWeightDevice": []}))
    assert made.host_config.blkio_weight_device == [] and len(told) == 1
