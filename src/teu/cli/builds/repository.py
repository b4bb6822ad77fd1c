# SPDX-License-Identifier: Apache-2.0
"""Which git revision a build is of, for its provenance. Called by request.

BUILDX_GIT_INFO=false turns it off, as in buildx; BUILDX_GIT_CHECK_DIRTY=true tells changes, which takes git a while."""

from __future__ import annotations

import os

from teu.cli.options import FALSE, TRUE


def attributes(context: str, dockerfile: str) -> dict[str, str]:
    """vcs:… of two folders of ours; empty where they are in no repository, or git is not there."""
    if os.environ.get("BUILDX_GIT_INFO", "") in FALSE:
        return {}
    top = os.path.realpath(context)
    while not os.path.exists(f"{top}/.git"):
        above = os.path.dirname(top)
        if above == top:
            return {}
        top = above
    revision = _git(top, "rev-parse", "HEAD")
    if not revision:
        return {}
    if os.environ.get("BUILDX_GIT_CHECK_DIRTY") in TRUE and _git(top, "status", "--porcelain", "--ignored"):
        revision += "-dirty"
    found = {"vcs:revision": revision}
    remote = _git(top, "config", "--get", "remote.origin.url") or _git(top, "config", "--get", "remote.upstream.url")
    if remote:
        found["vcs:source"] = _without_password(remote)
    for key, folder in (("context", context), ("dockerfile", dockerfile)):
        inner = os.path.relpath(os.path.realpath(folder), top)
        if folder and not inner.startswith(".."):
            found[f"vcs:localdir:{key}"] = inner
    return found


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _git(folder: str, *argv: str) -> str:
    import subprocess  # 11 ms, for provenance alone

    # Nothing that the repository's own settings name is run.
    safe = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
    try:
        done = subprocess.run(
            ["git", *safe, "-C", folder, *argv], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, UnicodeError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
