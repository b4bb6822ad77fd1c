# SPDX-License-Identifier: Apache-2.0
"""The validation programs of the OCI runtime-tools, built once from Debian's source package and kept in the cache.

Called by the runner before the namespace stage, for tests/system/test_runc_validation.py.

Debian's binary package has the tool's library alone; its source package has validation/ and cmd/runtimetest as well.
They are compiled with Debian's Go and Debian's packages of what they import (in a root file system that is thrown
away afterwards), but for one: a little package that prints the Test Anything Protocol, for which tap.go stands in.

    CACHE/oci-validation-HASH/      HASH covers the recipe below
        runtimetest                 runs inside the containers
        rootfs-ARCH.tar.gz          their root
        NAME                        a program; it runs $RUNTIME, in this folder

A new machine needs about two minutes for it; the rest of the time it costs nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lab import rootfs

RELEASE = "trixie"
SOURCE_PACKAGE = "golang-github-opencontainers-runtime-tools"
PACKAGES = """
    golang-go golang-github-opencontainers-runtime-tools-dev golang-github-opencontainers-specs-dev
    golang-github-opencontainers-selinux-dev golang-github-google-uuid-dev golang-github-mrunalp-fileutils-dev
    golang-gocapability-dev golang-github-hashicorp-go-multierror-dev golang-github-sirupsen-logrus-dev
    golang-github-urfave-cli-dev golang-golang-x-sys-dev
"""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
IMPORT = "github.com/opencontainers/runtime-tools"
TAP = Path(__file__).parent / "tap.go"
# Where a lab shows them (tests/system/conftest.py).
INSIDE = "/opt/oci-validation"


def folder() -> Path:
    """Where the programs are, once they have been made."""
    recipe = "\n".join([RELEASE, SOURCE_PACKAGE, *PACKAGES.split(), TAP.read_text()])
    return rootfs.CACHE / f"oci-validation-{hashlib.sha256(recipe.encode()).hexdigest()[:10]}"


def ensure() -> Path:
    """The folder, made now if it is not there. CalledProcessError, FileNotFoundError where that cannot be done."""
    final = folder()
    if final.is_dir():
        return final
    with rootfs.cache_lock("lock-oci-validation"):
        if final.is_dir():
            return final
        print(f"lab: building the OCI validation programs in {final} (once)", file=sys.stderr, flush=True)
        work = rootfs.CACHE / "partial-oci-validation"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            _toolchain(work / "root")
            _source(work)
            _build(work)
            for old in rootfs.CACHE.glob("oci-validation-*"):
                shutil.rmtree(old, ignore_errors=True)
            (work / "out").rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return final


def _toolchain(root: Path) -> None:
    """Go and the packages, unpacked and not installed: they are only read."""
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", "--skip=cleanup/apt/lists"]
    command += ['--aptopt=Apt::Install-Recommends "false"', "--dpkgopt=path-exclude=/usr/share/doc/*"]
    command += ["--include=" + ",".join(PACKAGES.split()), RELEASE, str(root)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _source(work: Path) -> None:
    """The source package's tarball, from where the toolchain came from; apt checks it."""
    lines = (work / "root/etc/apt/sources.list").read_text().splitlines()
    archive = next(line.split()[1:] for line in lines if line.startswith("deb ") and f" {RELEASE} " in line)
    sources = work / "sources.list"
    sources.write_text(f"deb-src [signed-by={KEYRING}] {' '.join(archive)}\n")
    for name in ("state/lists/partial", "cache/archives/partial", "source"):
        (work / name).mkdir(parents=True)
    options = {
        "Dir::State": work / "state",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": work / "cache",
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    subprocess.run([*apt, "update"], check=True, stdin=subprocess.DEVNULL)
    # Not every mirror has the description file beside the tarball, and it is not needed.
    command = [*apt, "source", "--download-only", SOURCE_PACKAGE]
    done = subprocess.run(
        command, cwd=work / "source", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    tarballs = list((work / "source").glob("*.orig.tar.*"))
    if len(tarballs) != 1:
        raise FileNotFoundError(f"Debian's source package {SOURCE_PACKAGE}: {done.stderr.strip()}")
    tree = work / "gopath/src" / IMPORT
    tree.mkdir(parents=True)
    subprocess.run(["tar", "-xf", tarballs[0], "-C", tree, "--strip-components=1"], check=True)


def _build(work: Path) -> None:
    (go,) = (work / "root/usr/lib").glob("go-*")
    tree = work / "gopath/src" / IMPORT
    tap = work / "gopath/src/github.com/mndrix/tap-go"
    tap.mkdir(parents=True)
    shutil.copy(TAP, tap)
    out = work / "out"
    out.mkdir()
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
    command = [str(go / "bin/go"), "build", "-ldflags=-s -w", "-o", f"{out}/", "./cmd/runtimetest", "./validation/..."]
    subprocess.run(command, cwd=tree, env=environment, check=True, stdin=subprocess.DEVNULL)
    for tarball in tree.glob("rootfs-*.tar.gz"):
        shutil.copy(tarball, out)
