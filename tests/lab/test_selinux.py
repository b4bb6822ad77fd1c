# SPDX-License-Identifier: Apache-2.0
"""SELinux labels of teu-runc (of processes, mounts, keyrings) on a kernel that enforces them, with runc as the judge.

The machine is booted once, without systemd; in it both runtimes run each case of selinux/inside.py. Runs on the host,
as root. The packages must have been built (./dev deb).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab import bare
from lab.selinux import inside

SOURCE = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).with_name("selinux")
PACKAGES = list((SOURCE / "dist").glob("teu-runc_*.deb"))
KERNEL = "lsm=landlock,lockdown,yama,integrity,selinux selinux=1 enforcing=0"
HOST = "system_u:system_r:system_t:s0"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the labs need root"),
    pytest.mark.skipif(not PACKAGES, reason="no packages: ./dev deb"),
]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """{case: {runtime: [what came of each command]}}."""
    policy = tmp_path_factory.mktemp("selinux") / "policy"
    # version 33 is what Linux 5.18 and all later ones read
    command = ["checkpolicy", "-M", "-U", "allow", "-c", "33", "-o", str(policy), str(FOLDER / "policy.conf")]
    subprocess.run(command, check=True)
    files = {name: (FOLDER / name).read_bytes() for name in ("init", "inside.py", "probe.py")}
    answer = bare.run("trixie", KERNEL, {**files, "policy": policy.read_bytes()}, PACKAGES)
    result: dict[str, dict[str, Any]] = json.loads(answer)
    return result


def seen(outcome: dict[str, Any]) -> dict[str, Any]:
    """What the probe in the container saw."""
    assert outcome["status"] == 0, outcome
    result: dict[str, Any] = json.loads(outcome["stdout"])
    result["mounts"].pop("/proc/kcore", None)  # a masked file: runc binds the container's null device, we the host's
    return result


def reason(outcome: dict[str, Any]) -> str:
    """Why it was refused, in the system's words."""
    assert outcome["status"] != 0 and not outcome["stdout"], outcome
    return str(outcome["stderr"]).strip().rstrip('"').rpartition(": ")[2]


@pytest.mark.parametrize("case", inside.CASES)
def test_same_as_runc(tried: dict[str, dict[str, Any]], case: str) -> None:
    theirs, ours = (tried[case][runtime] for runtime in ("runc", "teu-runc"))
    assert len(theirs) == len(ours) == 1 + len(inside.CASES[case][2] if len(inside.CASES[case]) > 2 else ())
    for their, our in zip(theirs, ours):
        if their["status"]:
            assert reason(our) == reason(their), (their, our)
        elif their["stdout"]:
            left, right = seen(their), seen(our)
            del left["keyring id"], right["keyring id"]
            assert right == left
        else:
            assert our["status"] == 0 and not our["stdout"], our


def test_without_a_policy_a_label_is_refused(tried: dict[str, dict[str, Any]]) -> None:
    for runtime, word in (("runc", "selinux"), ("teu-runc", "SELinux")):
        (outcome,) = tried["no policy"][runtime]
        assert outcome["status"] == 1 and word in outcome["stderr"] and "run failed" in outcome["stderr"], outcome


def test_labels_of_a_container(tried: dict[str, dict[str, Any]]) -> None:
    there = seen(tried["process and mounts"]["teu-runc"][0])
    assert there["process"]["current"] == inside.PROCESS
    # nothing of how we set it is left to the process
    assert not any(there["process"][name] for name in ("exec", "keycreate", "fscreate", "sockcreate"))
    assert there["keyring"]["label"] == inside.PROCESS
    labelled = ["/dev", "/dev/pts", "/dev/shm", "/lab/copied", "/mnt", "/srv"]
    assert there["mounts"] == dict.fromkeys(labelled, inside.MOUNT)
    for path in (*labelled, "/dev/null", "/dev/mqueue", "/lab/copied/file"):
        assert there["files"][path] == inside.MOUNT, path
    for path in ("/proc", "/sys", "/opt", "/opt/file"):
        assert there["files"][path].endswith(":system_t:s0"), path


def test_without_a_label_everything_has_the_hosts(tried: dict[str, dict[str, Any]]) -> None:
    there = seen(tried["no label"]["teu-runc"][0])
    assert there["process"]["current"] == there["keyring"]["label"] == HOST
    assert not there["mounts"]


def test_label_among_the_options_of_a_mount(tried: dict[str, dict[str, Any]]) -> None:
    assert seen(tried["mount with a label"]["teu-runc"][0])["mounts"] == {"/media": inside.MOUNT}


def test_labels_of_an_exec(tried: dict[str, dict[str, Any]]) -> None:
    started, plain, other, described, undescribed, unknown, forbidden = tried["exec"]["teu-runc"]
    assert started["status"] == 0, started
    assert seen(plain)["process"]["current"] == inside.PROCESS
    assert seen(other)["process"]["current"] == inside.OTHER
    assert seen(described)["process"]["current"] == inside.OTHER
    # a process.json without a label does not let the process out of the container's
    assert seen(undescribed)["process"]["current"] == inside.PROCESS
    assert inside.NONSENSE in unknown["stderr"] and reason(unknown) == "invalid argument"
    assert reason(forbidden) == "permission denied"
    # all of them are in the session keyring of the container, with its label
    assert {seen(one)["keyring"]["label"] for one in (plain, other, described, undescribed)} == {inside.PROCESS}
    assert len({seen(one)["keyring id"] for one in (plain, other, described, undescribed)}) == 1


@pytest.mark.parametrize("case", ["unknown process label", "unknown mount label"])
def test_refusal_names_the_label(tried: dict[str, dict[str, Any]], case: str) -> None:
    (outcome,) = tried[case]["teu-runc"]
    assert outcome["status"] == 1 and inside.NONSENSE in outcome["stderr"]
    assert "run failed: unable to start container process: error during container init: " in outcome["stderr"]
