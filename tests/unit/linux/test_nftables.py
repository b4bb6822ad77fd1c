# SPDX-License-Identifier: Apache-2.0
"""libnftables in a process with more descriptors than select(2) knows: there it would end the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CROWD = """
import os, resource
from teu.linux import nftables
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))
if {reserved}:
    nftables.reserve()
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
for call in (nftables.run, nftables.run, nftables.run_here):
    call("list tables")
    try:
        call("list table inet nobody")
    except nftables.Error as error:
        assert "No such file" in str(error), error
    else:
        raise AssertionError("no error")
print("alive", nftables._library is not None)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="nftables is root's")
@pytest.mark.parametrize("reserved", [True, False])
def test_many_descriptors(reserved: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CROWD.format(reserved=reserved)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == f"alive {reserved}\n", (done.returncode, done.stderr)
