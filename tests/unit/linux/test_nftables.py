# SPDX-License-Identifier: Apache-2.0
"""libnftables in a process with more descriptors than select(2) knows: there it would end the process. And what the
kernel is asked without it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from drivers import networks as suite

from teu.linux import nftables

CROWD = """
import os, resource
from teu.linux import nftables
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))
if {reserved}:
    nftables.reserve()
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
for call in (nftables.run, nftables.run):
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


@pytest.mark.skipif(os.geteuid() != 0, reason="nftables is root's")
def test_chains_and_rules_are_asked_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    with suite.own_namespace():
        nftables.run(
            "add table inet one\nadd chain inet one a\nadd chain inet one b\nadd rule inet one a drop\n"
            "add rule inet one a meta l4proto { tcp, udp } accept\n"
            "add table ip one\nadd chain ip one a\nadd rule ip one a drop\n"
            "add table inet other\nadd chain inet other c\nadd rule inet other c drop\n"
        )
        monkeypatch.setattr(nftables, "run", None)
        assert nftables.chains("inet one") == {"a", "b"}
        assert nftables.count_rules("inet one") == {"a": 2}
        assert nftables.chains("ip one") == {"a"}
        assert nftables.chains("ip6 one") == nftables.chains("inet on") == set()
        assert nftables.count_rules("ip6 one") == nftables.count_rules("inet on") == {}
