# SPDX-License-Identifier: Apache-2.0
"""Small programs in Go on the libraries that real ones are made with: Debian's packages of those are compiled with
Debian's Go, once, and kept in the cache.

Called by the runner for the namespace stage, and by `./dev lab start --newer`. The sources are in tests/lab/go/NAME:

    nri-plugin     a plugin of the Node Resource Interface, on its stub (tests/system/test_cri_nri_newer.py)
    kube-client    kubelet's own client of the CRI, client-go's executors (tests/system/test_cri_kubelet.py)

    CACHE/NAME-HASH/NAME        HASH covers the recipe and main.go

A new machine needs some minutes for one: the packages stand on many others, 2 GiB in all, which are thrown away then.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lab import rootfs

RELEASE = "forky"  # the first with the interfaces of containerd 2.1 and Kubernetes 1.36
SOURCES = Path(__file__).parent / "go"


@dataclass(frozen=True)
class Program:
    """One of them; `packages` are the libraries it stands on. Those of two may exclude each other."""

    name: str
    packages: str

    @property
    def source(self) -> Path:
        return SOURCES / self.name / "main.go"

    @property
    def inside(self) -> str:
        """Where a lab shows its folder (tests/system/conftest.py)."""
        return f"/opt/{self.name}"

    def ensure(self) -> Path:
        """The folder, made now if it is not there. CalledProcessError, FileNotFoundError where that cannot be done."""
        recipe = "\n".join([RELEASE, f"golang-go {self.packages}", self.source.read_text()])
        final = rootfs.CACHE / f"{self.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:10]}"
        if rootfs.used(final):
            return final
        with rootfs.cache_lock(f"lock-{self.name}"):
            if rootfs.used(final):
                return final
            print(f"lab: building {self.name} in {final} (once)", file=sys.stderr, flush=True)
            work = rootfs.CACHE / f"partial-{self.name}"
            shutil.rmtree(work, ignore_errors=True)
            (work / "out").mkdir(parents=True)
            try:
                _toolchain(work / "root", self.packages)
                _build(work, self)
                rootfs.forget(f"{self.name}-*")
                (work / "out").rename(final)
            finally:
                shutil.rmtree(work, ignore_errors=True)
            rootfs.used(final)
        return final


NRI_PLUGIN = Program("nri-plugin", "golang-github-containerd-nri-dev")
KUBE_CLIENT = Program("kube-client", "golang-k8s-cri-client-dev golang-k8s-client-go-dev")
ALL = (NRI_PLUGIN, KUBE_CLIENT)


def _toolchain(root: Path, packages: str) -> None:
    """Go and the packages, unpacked and not installed: they are only read."""
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract"]
    command += ['--aptopt=Apt::Install-Recommends "false"', "--dpkgopt=path-exclude=/usr/share/doc/*"]
    # A mirror of a release in the making may be some weeks behind.
    command += ['--aptopt=Acquire::Check-Valid-Until "false"']
    command += ["--include=" + ",".join(["golang-go", *packages.split()]), RELEASE, str(root)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _build(work: Path, program: Program) -> None:
    (go,) = (work / "root/usr/lib").glob("go-*")
    tree = work / "gopath/src" / program.name
    tree.mkdir(parents=True)
    shutil.copy(program.source, tree)
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": str(work),
        "GOROOT": str(go),
        "GOPATH": f"{work}/gopath:{work}/root/usr/share/gocode",
        "GOCACHE": str(work / "gocache"),
        "GO111MODULE": "off",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }
    command = [str(go / "bin/go"), "build", "-ldflags=-s -w", "-o", f"{work}/out/{program.name}", "."]
    subprocess.run(command, cwd=tree, env=environment, check=True, stdin=subprocess.DEVNULL)
