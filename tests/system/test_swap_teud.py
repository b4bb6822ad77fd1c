# SPDX-License-Identifier: Apache-2.0
"""The swap: teud on Debian's containerd, with Debian's shim and with ours below it.

A second teud runs beside the installed one, which has no containers meanwhile: networks are the host's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import images
import peers
import pytest
import whole
from scripted_registry import ScriptedRegistry

RUNTIMES = ("io.containerd.runc.v2", "io.containerd.teu.v2")


class Teud:
    """teud on a containerd; calling it runs `teu` against it."""

    def __init__(self, containerd: str, runtime: str) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="teu-swap-", dir="/var/lib"))
        self.run = Path(tempfile.mkdtemp(prefix="teu-swap-", dir="/run"))
        self.socket = self.run / "teud.sock"
        self._argv = [
            "teud",
            "-H",
            f"unix://{self.socket}",
            f"--containerd={containerd}",
            "--data-root",
            str(self.root),
            "--exec-root",
            str(self.run / "exec"),
            "--default-runtime",
            runtime,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.run / "log", "ab") as log:
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log)
        whole.eventually("teud answers", lambda: self("version", check=False).returncode == 0)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process:
            self._process.send_signal(number)
            self._process.wait(30)

    def __call__(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return whole.teu("-H", f"unix://{self.socket}", *argv, check=check)

    def out(self, *argv: str) -> str:
        return self(*argv).stdout.strip()

    def remove(self) -> None:
        with contextlib.suppress(AssertionError):
            for identity in self.out("ps", "-aq").split():
                self("rm", "-f", "-v", identity, check=False)
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.rmtree(self.run, ignore_errors=True)


@pytest.fixture(scope="module", params=RUNTIMES)
def teud(request: pytest.FixtureRequest) -> Iterator[Teud]:
    images.need_busybox()
    whole.remove_everything()
    with peers.containerd() as containerd:
        made = Teud(str(containerd.address), request.param)
        try:
            made.start()
            archive = made.run / "busybox.tar"
            whole.teu("save", "-o", str(archive), whole.IMAGE)
            made("load", "-i", str(archive))
            yield made
        finally:
            made.remove()


pytestmark = pytest.mark.needs("containerd", "ctr", "fast")


def test_run_logs_and_exit_codes(teud: Teud) -> None:
    assert teud.out("run", "--rm", "busybox", "echo", "hello") == "hello"
    assert teud("run", "--rm", "busybox", "sh", "-c", "exit 42", check=False).returncode == 42
    teud("run", "--name", "talks", "busybox", "sh", "-c", "echo one; echo two >&2")
    done = teud("logs", "talks")
    assert (done.stdout, done.stderr) == ("one\n", "two\n")
    teud("rm", "talks")


def test_exec_network_and_volume(teud: Teud) -> None:
    teud("run", "-d", "--name", "box", "-v", "kept:/data", "-p", "127.0.0.1:8077:80", "busybox", "sleep", "600")
    assert teud.out("exec", "box", "sh", "-c", "echo x > /data/file; cat /data/file") == "x"
    assert teud("exec", "box", "sh", "-c", "exit 3", check=False).returncode == 3
    assert "8077" in whole.out("nft", "list", "map", "inet", "teu", "published_at4")
    teud("rm", "-f", "box")
    assert teud.out("run", "--rm", "-v", "kept:/data", "busybox", "cat", "/data/file") == "x"
    teud("volume", "rm", "kept")
    assert "table inet teu {" not in whole.out("nft", "list", "ruleset")


def test_pull_commit_and_removal(teud: Teud) -> None:
    with ScriptedRegistry() as registry:
        registry.image("app", "1", images.busybox_layer(**{"etc/pulled": b"yes\n"}))
        name = f"{registry.address}/app:1"
        teud("pull", name)
        teud("run", "--name", "changes", name, "sh", "-c", "echo new > /etc/new")
        teud("commit", "changes", "made:1")
        assert teud.out("run", "--rm", "made:1", "sh", "-c", "cat /etc/pulled /etc/new") == "yes\nnew"
        teud("rm", "changes")
        teud("rmi", "made:1", name)
        assert teud.out("images", "-q") == teud.out("images", "-q", "busybox")


def test_a_limit_is_refused_that_nobody_would_hold(teud: Teud) -> None:
    """containerd's own snapshotter hands the label of it to nobody."""
    done = teud("create", "--name", "limited", "--storage-opt", "size=8m", "busybox", check=False)
    assert done.returncode == 1 and "--storage-opt is not supported for overlayfs" in done.stderr
    assert teud("inspect", "limited", check=False).returncode


def test_platforms_of_an_index(teud: Teud) -> None:
    """The name's label says which is meant, and the index lets go of what nobody means any more: also there."""
    with ScriptedRegistry() as registry:
        layers = {"amd64": images.busybox_layer(), "s390x": images.busybox_layer(**{"etc/other": b"yes\n"})}
        made = {one: registry.image("app", one, layer, architecture=one) for one, layer in layers.items()}
        registry.index("app", "1", **made)
        name = f"{registry.address}/app:1"
        for platform in ("amd64", "s390x", "amd64", "s390x"):
            teud("pull", "--platform", f"linux/{platform}", name)
            assert teud.out("image", "inspect", "-f", "{{.Architecture}}", name) == platform
        assert len(teud.out("images", "-q", "-f", "dangling=true").split()) == 1
        teud("image", "prune", "-f")
        teud("tag", name, "kept:1")
        teud("rmi", name)
        assert teud.out("image", "inspect", "-f", "{{.Architecture}}", "kept:1") == "s390x"
        teud("rmi", "kept:1")
        assert teud.out("images", "-qa") == teud.out("images", "-q", "busybox")


def test_containers_outlive_the_engine(teud: Teud) -> None:
    teud("run", "-d", "--name", "box", "busybox", "sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done")
    teud("run", "-d", "--name", "ends", "busybox", "sh", "-c", "sleep 1; exit 7")
    pid = teud.out("inspect", "-f", "{{.State.Pid}}", "box")
    teud.stop(signal.SIGKILL)
    teud.start()
    assert teud.out("inspect", "-f", "{{.State.Pid}}", "box") == pid
    assert os.path.exists(f"/proc/{pid}")
    assert teud.out("wait", "ends") == "7"
    teud("stop", "-t", "0", "box")
    lines = teud.out("logs", "box").split()
    assert lines == [str(number) for number in range(1, len(lines) + 1)]
    teud("rm", "box", "ends")
