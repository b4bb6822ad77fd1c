# SPDX-License-Identifier: Apache-2.0
"""teu-runc as a fork of the shim is the process that a fresh start would be: nothing of the shim shows in it.

The same container is made twice: by the packaged teu-runc, which the shim forks, and by the same program under
another path, which it executes. What the kernel tells of teu-runc, of a hook, of the container's first process and of
an exec'd one must be equal.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
from lab_kind import PATIENCE

pytestmark = pytest.mark.needs("packages", "fast")

PACKAGED = "/usr/sbin/teu-runc"
# the name that a process has, and what differs between any two of them
OWN = re.compile(r"^(Pid|Ngid|Tgid|PPid|NS\w+|Vm\w+|Rss\w+|Huge\w+|\w*ctxt_switches|SigQ|Untag\w+|x86\w+):")
LOOK = """\
echo "status"; cat /proc/$1/status
for file in limits oom_score_adj timerslack_ns personality coredump_filter; do
    echo "$file"; cat /proc/$1/$file
done
echo "scheduling"; grep -E "^(policy|prio)" /proc/$1/sched
echo "cgroup"; cat /proc/$1/cgroup
echo "descriptors"; ls -l /proc/$1/fd | sed "s/.*[0-9]:[0-9][0-9] //; s/tmp[a-z0-9_]*//; s/[0-9]\\{4,\\}/N/g"
"""
HOOK = f"""#!/bin/sh
look() {{
{LOOK}
}}
until grep -q "^State:.S" /proc/$PPID/status; do :; done # it has started us, and waits
{{
    look $PPID
    tr '\\0' '\\n' </proc/$PPID/cmdline
    readlink /proc/$PPID/cwd
    cat /proc/$PPID/loginuid /proc/$PPID/sessionid; grep Threads /proc/$PPID/status
    echo "environment"; sort /proc/self/environ -z | tr '\\0' '\\n'
    grep -E "^(Sig|Cap|NoNew|Umask|Groups)" /proc/self/status
}} >$2/hook-$1 2>&1
"""


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield peers.busybox_rootfs(tmp_path_factory.mktemp("fresh") / "rootfs")


def ctr(*argv: str) -> str:
    done = subprocess.run(["teu-ctr", *argv], capture_output=True, text=True, timeout=60 * PATIENCE, check=False)
    assert done.returncode == 0, (argv, done.stderr)
    return done.stdout


def views(binary: str, name: str, rootfs: Path, base: Path) -> dict[str, list[str]]:
    """What is seen of a container that this runtime makes: by a hook, by its first process, by an exec'd one."""
    hook = base / "hook"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    options = base / f"{name}.toml"
    options.write_text(f'BinaryName = "{binary}"\n')
    subprocess.run([PACKAGED, "spec", "--bundle", str(base)], check=True)
    config = base / "config.json"
    spec = json.loads(config.read_text())
    config.unlink()
    look = ["/bin/sh", "-c", f"set -- self\n{LOOK}env"]
    spec["process"] |= {"terminal": False, "args": [*look[:2], look[2] + "; sleep 600"]}
    spec["root"] = {"path": str(rootfs), "readonly": True}
    spec["linux"]["cgroupsPath"] = f"teu.slice:teu:{name}"
    spec["hooks"] = {"createRuntime": [{"path": str(hook), "args": ["hook", name, str(base)]}]}
    described = base / f"{name}.json"
    described.write_text(json.dumps(spec))
    log = base / f"{name}.log"
    flags = ["--runtime", "io.containerd.teu.v2", "--runtime-config-path", str(options), "--config", str(described)]
    ctr("run", "-d", *flags, "--log-uri", f"file://{log}", name)
    try:
        executed = ctr("tasks", "exec", "--exec-id", "e", name, *look)
        peers.wait_until(lambda: log.exists() and "PATH=" in log.read_text(), "the first process has spoken", 30)
        seen = {"hook": (base / f"hook-{name}").read_text(), "first": log.read_text(), "exec": executed}
    finally:
        ctr("tasks", "delete", "--force", name)
        ctr("containers", "delete", name)
    return {
        who: [line.replace(name, "NAME") for line in text.splitlines() if not OWN.match(line)]
        for who, text in seen.items()
    }


def test_a_fork_of_the_shim_is_as_a_fresh_start(rootfs: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "bin" / "teu-runc"
    elsewhere.parent.mkdir()
    os.symlink(PACKAGED, elsewhere)
    forked = views(PACKAGED, "fork1", rootfs, tmp_path)
    executed = views(str(elsewhere), "exec1", rootfs, tmp_path)
    for who in ("first", "exec", "hook"):
        ours, theirs = ([line.replace(str(elsewhere), PACKAGED) for line in one[who]] for one in (forked, executed))
        assert len(ours) > 60, ours
        different = [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]]
        assert not different, who
