# SPDX-License-Identifier: Apache-2.0
"""The daemon takes all the descriptors that it may have; what it starts is given what the daemon was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import teu

SCRIPT = """
import resource, subprocess
from teu.containerd.runtime import processes
show = ["/bin/sh", "-c", "ulimit -S -n; ulimit -H -n; echo $0 $1", "a b", "$c"]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 100))
assert processes.with_given_limits(show) is show, "nothing is changed, so nothing is in between"
processes.raise_descriptor_limit()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (100, 100)
print(subprocess.run(processes.with_given_limits(show), capture_output=True, text=True, check=True).stdout)
"""


def test_limits() -> None:
    environment = {"PYTHONPATH": str(Path(teu.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.stdout.split("\n")[:3] == ["64", "100", "a b $c"], done.stderr
