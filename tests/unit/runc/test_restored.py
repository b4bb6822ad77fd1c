# SPDX-License-Identifier: Apache-2.0
"""Processes that criu has restored: which have more than their specification gives."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from teu.linux.cgroup_files import own
from teu.runc.errors import RuncError
from teu.runc.restored import check, excess, family, mask

STATUS = """Name:\tsh
Threads:\t1
NoNewPrivs:\t1
CapInh:\t0000000000000000
CapPrm:\t0000000000000020
CapEff:\t0000000000000020
CapBnd:\t0000000000000021
CapAmb:\t0000000000000000
Seccomp:\t2
"""
BOTH: dict[str, Any] = {"capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"]}, "noNewPrivileges": True}


def test_masks() -> None:
    assert mask([]) == 0 and mask(["CAP_CHOWN", "CAP_KILL", "CAP_NONE"]) == 0x21


@pytest.mark.parametrize(
    ("status", "process", "linux", "told"),
    [
        (STATUS, BOTH, {"seccomp": {"x": 1}}, ""),
        (STATUS, {"capabilities": {"bounding": ["CAP_KILL"]}}, {}, "capabilities (CapBnd) 0x1"),
        (STATUS, {}, {}, "capabilities (CapPrm) 0x20"),
        (STATUS.replace("Privs:\t1", "Privs:\t0"), BOTH, {}, "no no_new_privs"),
        (STATUS.replace("Seccomp:\t2", "Seccomp:\t0"), BOTH, {"seccomp": {"x": 1}}, "no seccomp profile"),
        (STATUS.replace("Seccomp:\t2", "Seccomp:\t0"), BOTH, {}, ""),
    ],
)
def test_rights(status: str, process: dict[str, Any], linux: dict[str, Any], told: str) -> None:
    assert excess(status, process, linux) == told


def test_a_process_and_its_children() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 100 & echo $!; wait"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            pids = family(process.pid)
            assert pids == [process.pid, child]
            nothing: dict[str, Any] = {"capabilities": {"bounding": []}}
            if os.geteuid() == 0:
                with pytest.raises(RuncError, match="capabilities"):
                    check({"process": nothing}, pids, own(process.pid))
            with pytest.raises(RuncError, match="another cgroup"):
                check({"process": nothing}, pids, "/no/such")
            with pytest.raises(RuncError, match="the host's network namespace"):
                check({"linux": {"namespaces": [{"type": "network"}]}}, pids, own(process.pid))
        finally:
            os.kill(child, 9)
