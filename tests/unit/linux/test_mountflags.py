# SPDX-License-Identifier: Apache-2.0
"""Options of mount(8) as flags of mount(2), in the one place that the shim, the layers and the volumes ask."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from teu.linux import mountflags, mounts

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SRC = Path(__file__).resolve().parents[3] / "src"


def test_flags_propagation_and_data() -> None:
    flags, propagation, data = mountflags.parse(["rbind", "ro", "rprivate", "lowerdir=a:b", "X-x", "rw"])
    assert flags == mounts.MS_BIND | mounts.MS_REC
    assert propagation == mounts.MS_PRIVATE | mounts.MS_REC
    assert data == ["lowerdir=a:b"]


@pytest.mark.parametrize("name", sorted(mountflags.FLAGS))
def test_what_is_cleared_has_been_set_before(name: str) -> None:
    """Each word takes back what its opposite has set, and nothing else."""
    more, less = mountflags.FLAGS[name]
    assert not more & less
    assert mountflags.parse(["nosuid", "noexec", name])[0] & ~less == (
        (mounts.MS_NOSUID | mounts.MS_NOEXEC) & ~less | more
    )


@ROOT_ONLY
@pytest.mark.parametrize(
    ("words", "seen"), [("suid,dev,nosuid,exec", "nosuid"), ("noexec,exec,relatime", "relatime"), ("shared", "rw")]
)
def test_a_volume_takes_all_words_of_mount(tmp_path: Path, words: str, seen: str) -> None:
    """Words that clear a flag, and those of propagation, are no options of the file system."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = next((SRC / "teu/engine").rglob("local_mount.py"))
    asked = json.dumps({"path": str(tmp_path), "options": {"type": "tmpfs", "device": "tmpfs", "o": words}})

    def alone() -> None:
        if libc.unshare(0x20000) or libc.mount(None, b"/", None, 0x4000 | 0x40000, None):
            os._exit(77)

    script = (
        "import subprocess, sys; "
        f"done = subprocess.run([sys.executable, '-IS', {str(program)!r}], input={asked.encode()!r}); "
        f"print(*[line for line in open('/proc/self/mountinfo') if {str(tmp_path)!r} in line]); "
        "sys.exit(done.returncode)"
    )
    done = subprocess.run([sys.executable, "-c", script], preexec_fn=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert seen in done.stdout.split()[5].split(",")
    assert ("shared:" in done.stdout) == (words == "shared")
