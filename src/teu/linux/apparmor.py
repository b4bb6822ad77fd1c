# SPDX-License-Identifier: Apache-2.0
"""The AppArmor profile of containers that name none. Called by the engine and the builder when a container starts.

The profile's text is a file of the package, /etc/apparmor.d/teu-default, which an administrator may change,
and which apparmor.service loads at boot. Where that has not happened, it is loaded here before the first
container starts. A kernel without AppArmor, or a host without its parser, has no profile and needs none.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
from pathlib import Path

log = logging.getLogger(__name__)

DEFAULT = "teu-default"
FILE = "/etc/apparmor.d/teu-default"
# The administrator's way to say that a profile is not to be loaded: aa-disable(8).
DISABLED = "/etc/apparmor.d/disable/teu-default"
ENABLED = "/sys/module/apparmor/parameters/enabled"
PROFILES = "/sys/kernel/security/apparmor/profiles"

_loading = threading.Lock()


class NotLoaded(Exception):
    """The profile is wanted, and cannot be loaded; the text says why."""


def enabled() -> bool:
    """Whether the kernel confines by AppArmor, and shows us its profiles (not in a container on such a host)."""
    try:
        return Path(ENABLED).read_text().strip() == "Y" and os.access(PROFILES, os.R_OK)
    except OSError:
        return False


def supported() -> bool:
    """Whether containers can have a profile here."""
    return enabled() and (parser() is not None or loaded(DEFAULT))


def parser() -> str | None:
    """The path of apparmor_parser(8), which loads profiles; None where the host has none."""
    return shutil.which("apparmor_parser", path="/usr/sbin:/sbin:/usr/bin")


def loaded(name: str) -> bool:
    """Whether the kernel has a profile of that name, in whatever mode; False where its list cannot be read."""
    try:
        # NAME (MODE), a line each
        return any(line.rpartition(" (")[0] == name for line in Path(PROFILES).read_text().splitlines())
    except OSError:
        return False


def default_profile(name: str) -> str:
    """The profile for a container that names none, `name` by the configuration; "" where there is none. Raises
    NotLoaded."""
    if not name or not enabled():
        return ""
    if loaded(name):
        return name
    if name != DEFAULT or os.path.lexists(DISABLED) or not os.path.exists(FILE):
        return ""
    program = parser()
    if program is None:
        return ""
    with _loading:
        if not loaded(name):
            _load(program)
    return name


def _load(program: str) -> None:
    # No cache: it would be a file that nobody takes away.
    done = subprocess.run(
        [program, "--replace", "--skip-cache", FILE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise NotLoaded(
            f"AppArmor is enabled, but the profile {DEFAULT} could not be loaded from {FILE}: {done.stderr.strip()}"
        )
    log.info("AppArmor profile %s is loaded", DEFAULT)
