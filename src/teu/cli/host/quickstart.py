# SPDX-License-Identifier: Apache-2.0
"""Do teu-runc, teu and its generator start as quickly as they can? They begin with the host's libpython and an archive
of byte code each (see teu.coldstart); where one of them does not fit the host's Python they are scripts, in twice the
time.

Called by `report`."""

from __future__ import annotations

import os

from teu.cli.host.finding import OK, WARNING, Finding, exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Where the packages have them, and the scripts beside which their byte code is.
PROGRAMS = {
    "teu-runc": "/usr/sbin/teu-runc",
    "teu": "/usr/bin/teu",
    "teu-system-generator": "/usr/lib/systemd/system-generators/teu-system-generator",
}
PACKAGES = {"teu-system-generator": "teu"}  # where it has another name
SCRIPTS = "/usr/lib/teu/"
PYTHON, LIBRARIES = "/usr/bin/python3", "/usr/lib"
# Minor versions of Python that src/c/teu-coldstart.c knows.
KNOWN = (11, 12, 13, 14)


def quick_start(root: str) -> Iterator[Finding]:
    """Nothing is told where the packages' programs are not installed."""
    programs = [name for name, path in PROGRAMS.items() if exists(root, path) and exists(root, SCRIPTS + name)]
    if not programs:
        return
    names = listed(programs)
    slow = f"{names} start{'s as a script' if len(programs) == 1 else ' as scripts'}, in twice the time: "
    try:
        name = os.readlink(root + PYTHON)
    except OSError:
        name = "no link"
    version = name.removeprefix("python")
    if version not in [f"3.{minor}" for minor in KNOWN]:
        text = f"{slow}known are Python 3.{KNOWN[0]} to 3.{KNOWN[-1]}, and {PYTHON} is {name}"
        yield Finding(WARNING, "quick start", text, "install a version of Teu that knows it; until then all else works")
        return
    if not has_library(root, f"libpython{version}.so.1.0"):
        text = f"{slow}Python is {version}, and its library is not there"
        yield Finding(WARNING, "quick start", text, f"apt-get install libpython{version}")
        return
    quick = [name for name in programs if exists(root, f"{SCRIPTS}{name}.cpython-{version.replace('.', '')}")]
    for name in programs:
        if name not in quick:
            text = f"{name} starts as a script, in twice the time: its byte code for Python {version} is not there"
            yield Finding(WARNING, "quick start", text, f"dpkg-reconfigure {PACKAGES.get(name, name)}")
    if quick:
        text = f"{listed(quick)} begin{'s' if len(quick) == 1 else ''} with libpython{version} and own byte code"
        yield Finding(OK, "quick start", text)


def listed(names: list[str]) -> str:
    """a, b and c"""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def has_library(root: str, name: str) -> bool:
    """In the folder of an architecture, as x86_64-linux-gnu."""
    try:
        folders = os.listdir(root + LIBRARIES)
    except OSError:
        return False
    return any("-linux-" in folder and exists(root, f"{LIBRARIES}/{folder}/{name}") for folder in folders)
