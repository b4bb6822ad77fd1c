# SPDX-License-Identifier: Apache-2.0
"""Builds the Debian packages in a cached build root, without network. Called by `./dev deb`.

usage: python3 -m lab.build SOURCE DIST [--lintian]
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lab import namespace, rootfs

# In a folder of their own below dist/, so that dist/*.deb may be installed beside docker: these take its place.
IN_PLACE_OF_DOCKER = ("teu-docker_",)

RELEASE = "trixie"  # nothing in the packages depends on the release: no library is linked, stubs fit both

BUILD = """
set -e
cd /build/teu
export DEB_BUILD_OPTIONS=nocheck LC_ALL=C.UTF-8
dpkg-buildpackage --build=binary --no-sign --root-command=
"""

LINTIAN = """
set -e
cd /build
lintian --allow-root --fail-on error,warning --tag-display-limit 0 --color never ./*.changes
"""


def files_of(source: Path) -> list[str]:
    """What goes into the build: all that git knows or would take, with changes not yet committed."""
    listing = subprocess.run(
        ["git", "-C", str(source), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        names = [os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
        return sorted(name for name in names if (source / name).is_file())
    found = []
    for folder, folders, files in os.walk(source):
        folders[:] = [name for name in folders if name not in ("__pycache__", "dist", "build", ".git", "api")]
        found += [os.path.relpath(os.path.join(folder, name), source) for name in files]
    return sorted(found)


def source_hash(source: Path, files: list[str]) -> str:
    """Changes whenever a build would give something else."""
    digest = hashlib.sha256(rootfs.recipe_hash(RELEASE, "build").encode())
    for name in files:
        if name.startswith(("tests/", "benchmarks/", ".ci/")):
            continue
        digest.update(name.encode() + b"\0" + hashlib.sha256((source / name).read_bytes()).digest())
    return digest.hexdigest()


def build(source: Path, dist: Path, lintian: bool) -> None:
    """Leave the packages in dist/, unless they are there already."""
    files = files_of(source)
    digest = source_hash(source, files)
    stamp = dist / ".built-from"
    built = stamp.read_text().split() if stamp.exists() else []
    if built[:1] == [digest] and (not lintian or "lintian" in built):
        return
    root = rootfs.ensure(RELEASE, "build")
    with tempfile.TemporaryDirectory(prefix="build-", dir=rootfs.CACHE) as folder:
        work = Path(folder)
        tree = work / "out" / "teu"
        for name in files:
            target = tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target, follow_symlinks=False)
        shutil.copytree(tree / "packaging/debian", tree / "debian", symlinks=True)
        log = work / "log"
        with log.open("wb") as output:
            _in_root(root, work, BUILD, output.fileno(), log)
        packages = sorted((work / "out").glob("*.deb"))
        if lintian:
            _in_root(root, work, LINTIAN, None, None)
        apart = dist / "in-place-of-docker"
        apart.mkdir(parents=True, exist_ok=True)
        for old in [*dist.glob("*.deb"), *apart.glob("*.deb")]:
            old.unlink()
        for package in packages:
            target = apart if package.name.startswith(IN_PLACE_OF_DOCKER) else dist
            shutil.copy(package, target)
            print(f"{target.relative_to(dist.parent)}/{package.name}")
        stamp.write_text(digest + (" lintian" if lintian else "") + "\n")


# In /build, where the packages are unpacked: as their installation would leave it, with the names of the files there.
COMPILE = """
set -e
python3 -m compileall -q -s /build -p / /build/usr/lib/python3/dist-packages
cd /build
find usr/lib/python3/dist-packages \\( -type d -o -name '*.pyc' \\) -print0 | sort -z |
    tar --no-recursion --owner=0 --group=0 -cf bytecode.tar --null -T -
"""


def bytecode(dist: Path, release: str) -> None:
    """Leave dist/bytecode.tar: the byte code that the installation of the packages in dist makes on that release.

    Where it is there before the installation, Debian's py3compile finds nothing to do: compiling takes an emulated
    machine a minute of its processor.
    """
    packages = sorted(dist.glob("*.deb"))
    stamp, target = dist / ".bytecode-of", dist / "bytecode.tar"
    root = rootfs.ensure(release)
    digest = hashlib.sha256(root.name.encode())
    for package in packages:
        digest.update(package.read_bytes())
    with rootfs.cache_lock("lock-bytecode"):
        if target.exists() and stamp.exists() and stamp.read_text() == digest.hexdigest():
            return
        with tempfile.TemporaryDirectory(prefix="bytecode-", dir=rootfs.CACHE) as folder:
            work = Path(folder)
            (work / "out").mkdir()
            for package in packages:
                subprocess.run(["dpkg-deb", "-x", str(package), str(work / "out")], check=True)
            _in_root(root, work, COMPILE, None, None)
            shutil.copy(work / "out/bytecode.tar", target)
        stamp.write_text(digest.hexdigest())


def _in_root(root: Path, work: Path, script: str, output: int | None, log: Path | None) -> None:
    """Run script in an overlay on root, in mount and network namespaces of its own."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(namespace.CLONE_NEWNS | namespace.CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare: the build needs root")
            for name in ("upper", "work", "root"):
                (work / name).mkdir(exist_ok=True)
            merged = work / "root"
            options = f"lowerdir={root},upperdir={work}/upper,workdir={work}/work"
            for command in (
                ["mount", "--make-rprivate", "/"],
                ["mount", "-t", "overlay", "build", "-o", options, str(merged)],
                ["mkdir", "-p", str(merged / "build")],
                ["mount", "--bind", str(work / "out"), str(merged / "build")],
                ["mount", "-t", "proc", "proc", str(merged / "proc")],
                ["mount", "--rbind", "/dev", str(merged / "dev")],
            ):
                subprocess.run(command, check=True)
            environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
            done = subprocess.run(
                ["chroot", str(merged), "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output is not None else None,
                env=environment,
                check=False,
            )
            status = 0 if done.returncode == 0 else 1
        except Exception as error:
            print(f"build: {error}", file=sys.stderr)
        os._exit(status)
    _, status = os.waitpid(pid, 0)
    if status:
        if log:
            sys.stderr.write("\n".join(log.read_text(errors="replace").splitlines()[-60:]) + "\n")
        sys.exit("build: failed")


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(prog="./dev deb", description="Build the Debian packages into dist/.")
    parser.add_argument("--lintian", action="store_true", help="and check them; any warning fails")
    options = parser.parse_args()
    source = Path(__file__).resolve().parents[2]
    build(source, source / "dist", options.lintian)


if __name__ == "__main__":
    main()
