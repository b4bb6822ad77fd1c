# SPDX-License-Identifier: Apache-2.0
"""What ps shows of a process that has taken another's place; capabilities given up for good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[3] / "src"
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from teu.linux import capabilities, commandline
if sys.argv[2] == "without":
    resource, _ = capabilities.mask(["CAP_SYS_RESOURCE"])
    capabilities.limit(capabilities.permitted() & ~resource)
    assert not capabilities.permitted() & resource
commandline.show(["/usr/bin/containerd-shim-teu-v2", "-id", "x y"])
print(open("/proc/self/cmdline").read().rstrip("\\0").replace("\\0", "|"), open("/proc/self/comm").read().strip())
"""


@pytest.mark.parametrize("right", ["with", "without"])
def test_the_words_are_shown(right: str) -> None:
    """With CAP_SYS_RESOURCE the kernel is told of other words, without it the old ones are overwritten."""
    if right == "with" and os.geteuid():
        pytest.skip("needs root")
    command = [sys.executable, "-c", PROGRAM, str(SRC), right, "-" * 200]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "/usr/bin/containerd-shim-teu-v2|-id|x y containerd-shim\n", done.stderr
