# SPDX-License-Identifier: Apache-2.0
"""Limits as systemd has them and as the engine has them: `systemctl set-property` and `teu update` agree afterwards,
and systemd's own views (systemctl status, systemd-cgtop, systemd-analyze) tell the truth."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from declared import Declared, declare, start
from images import need_busybox
from whole import call, eventually, out, scope_of, show, teu

pytestmark = pytest.mark.needs("systemd", "teud", "memory", "cpu", "pids")
__all__ = ["declare"]
NAME = "limited"
MIB = 1 << 20


@pytest.fixture
def container() -> Iterator[str]:
    need_busybox()
    made = teu("run", "-d", "--name", NAME, "--network", "none", "--memory", "64m", "busybox", "sleep", "1000")
    try:
        yield made.stdout.strip()
    finally:
        teu("rm", "-f", NAME)


def shown(name: str = NAME) -> tuple[int, int, int]:
    host = json.loads(teu("inspect", "-f", "{{json .HostConfig}}", name).stdout)
    return host["Memory"] // MIB, host["NanoCpus"], host["PidsLimit"] or 0


def counted(name: str = NAME) -> str:
    return teu("stats", "--no-stream", "--format", "{{.MemUsage}}", name).stdout.strip().partition(" / ")[2]


def test_set_property_and_update_agree(container: str) -> None:
    unit = f"teu-{container}.scope"
    assert shown() == (64, 0, 0) and counted() == "64MiB"
    call("systemctl", "set-property", "--runtime", unit, "MemoryMax=32M", "CPUQuota=25%", "TasksMax=40")
    assert shown()[:2] == (32, 250_000_000) and counted() == "32MiB"
    assert (scope_of(container) / "memory.max").read_text() == f"{32 * MIB}\n"
    teu("update", "--memory", "96m", "--memory-swap", "96m", "--cpus", "0.5", "--pids-limit", "70", NAME)
    assert [show(unit, one) for one in ("MemoryMax", "CPUQuotaPerSecUSec", "TasksMax")] == [
        str(96 * MIB),
        "500ms",
        "70",
    ]
    assert shown() == (96, 500_000_000, 70) and counted() == "96MiB"
    call("systemctl", "daemon-reload")
    assert (scope_of(container) / "memory.max").read_text() == f"{96 * MIB}\n"
    teu("restart", "-t", "0", NAME)
    assert shown() == (96, 500_000_000, 70), "what update said is the container's; the scope is a new one"
    assert show(unit, "MemoryMax") == "infinity"


def test_a_declared_one_is_limited_by_its_service(declare: Declared) -> None:
    declare.write(
        limited_container="[Container]\nImage=busybox\nExec=sleep 1000\nStopSignal=SIGKILL\n[Service]\nMemoryMax=48M\n"
    )
    start("limited.service")
    assert shown("systemd-limited")[0] == 48 and counted("systemd-limited") == "48MiB"
    done = teu("update", "--memory", "96m", "--memory-swap", "96m", "systemd-limited")
    assert "limited.service has a limit of its own, MemoryMax=50331648" in done.stdout + done.stderr
    assert shown("systemd-limited")[0] == 48
    call("systemctl", "set-property", "--runtime", "limited.service", "MemoryMax=infinity")
    assert shown("systemd-limited")[0] == 96


def test_systemd_tells_the_truth(container: str) -> None:
    unit = f"teu-{container}.scope"
    teu("exec", NAME, "sh", "-c", "head -c 20000000 /dev/zero >/dev/shm/x")
    top = out("systemd-cgtop", "--batch", "--iterations=1", "--depth=3", "--raw", "--order=memory", "teu.slice")
    rows = {line.split()[0].lstrip("/"): line.split() for line in top.splitlines()}
    row = next(words for name, words in rows.items() if name.endswith(unit))
    assert int(row[1]) >= 2 and int(row[3]) > 20_000_000, row
    assert 20_000_000 < int(show(unit, "MemoryCurrent")) < 80_000_000
    status = out("systemctl", "status", unit)
    assert "sleep 1000" in status and NAME in status and "Memory:" in status and "Tasks: " in status
    dump = out("systemd-analyze", "dump", unit)
    assert f"Unit {unit}" in dump and NAME in dump and show(unit, "Delegate") == "yes"
    before = int(show(unit, "CPUUsageNSec"))
    teu("exec", NAME, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    eventually("it has used time", lambda: int(show(unit, "CPUUsageNSec")) > before)
