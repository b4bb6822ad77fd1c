# SPDX-License-Identifier: Apache-2.0
"""Does teu-runc start as quickly as it can? It begins with the host's libpython and an archive of byte code (see
teu.coldstart); where one of them does not fit the host's Python it is a script, in twice the time.

Called by `report`."""

from __future__ import annotations

import os

from teu.cli.host.finding import OK, WARNING, Finding, exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM, SCRIPT = "/usr/sbin/teu-runc", "/usr/lib/teu/teu-runc"
PYTHON, LIBRARIES = "/usr/bin/python3", "/usr/lib"
# Minor versions of Python that src/c/teu-coldstart.c knows.
KNOWN = (11, 12, 13, 14)
SLOW = "teu-runc starts as a script, in twice the time: "


def quick_start(root: str) -> Iterator[Finding]:
    """Nothing is told where the package's teu-runc is not installed."""
    if not exists(root, PROGRAM) or not exists(root, SCRIPT):
        return
    try:
        name = os.readlink(root + PYTHON)
    except OSError:
        name = "no link"
    version = name.removeprefix("python")
    if version not in [f"3.{minor}" for minor in KNOWN]:
        text = f"{SLOW}it knows Python 3.{KNOWN[0]} to 3.{KNOWN[-1]}, and {PYTHON} is {name}"
        yield Finding(WARNING, "quick start", text, "install a version of Teu that knows it; until then all else works")
    elif not has_library(root, f"libpython{version}.so.1.0"):
        text = f"{SLOW}Python is {version}, and its library is not there"
        yield Finding(WARNING, "quick start", text, f"apt-get install libpython{version}")
    elif not exists(root, f"{SCRIPT}.cpython-{version.replace('.', '')}"):
        text = f"{SLOW}its byte code for Python {version} is not there"
        yield Finding(WARNING, "quick start", text, "dpkg-reconfigure teu-runc")
    else:
        yield Finding(OK, "quick start", f"teu-runc begins with libpython{version} and its own byte code")


def has_library(root: str, name: str) -> bool:
    """In the folder of an architecture, as x86_64-linux-gnu."""
    try:
        folders = os.listdir(root + LIBRARIES)
    except OSError:
        return False
    return any("-linux-" in folder and exists(root, f"{LIBRARIES}/{folder}/{name}") for folder in folders)
