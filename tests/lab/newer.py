# SPDX-License-Identifier: Apache-2.0
"""docker of Debian's next release, unpacked and not installed: a peer whose BuildKit is newer than trixie's.

Called by the runner for the namespace stage, and by `./dev lab start --newer`, for the tests in
tests/system/test_build_conformance_newer.py. Its programs need no library that is newer than trixie's.

    CACHE/newer-docker-HASH/        HASH covers the recipe below
        usr/bin, usr/sbin, usr/libexec/docker/cli-plugins, …
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from lab import rootfs

RELEASE = "forky"
PACKAGES = "docker.io docker-cli docker-buildx kubectl"
# Where a lab shows it (tests/system/conftest.py).
INSIDE = "/opt/newer-docker"


def ensure() -> Path:
    """The folder, made now (half a minute, from the network) if it is not there. CalledProcessError, FileNotFoundError
    where that cannot be done."""
    recipe = f"{RELEASE} {PACKAGES}"
    final = rootfs.CACHE / f"newer-docker-{hashlib.sha256(recipe.encode()).hexdigest()[:10]}"
    if rootfs.used(final):
        return final
    with rootfs.cache_lock("lock-newer-docker"):
        if rootfs.used(final):
            return final
        print(f"lab: unpacking {RELEASE}'s docker into {final} (once)", file=sys.stderr, flush=True)
        partial = rootfs.CACHE / "partial-newer-docker"
        shutil.rmtree(partial, ignore_errors=True)
        command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract"]
        command += ['--aptopt=Apt::Install-Recommends "false"', "--dpkgopt=path-exclude=/usr/share/doc/*"]
        # A mirror of a release in the making may be some weeks behind.
        command += ['--aptopt=Acquire::Check-Valid-Until "false"']
        command += ["--include=" + ",".join(PACKAGES.split()), RELEASE, str(partial)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        rootfs.forget("newer-docker-*")
        partial.rename(final)
        rootfs.used(final)
    return final
