# SPDX-License-Identifier: Apache-2.0
"""The first process of a running container: it itself, not whoever has its number by now.

The number of a process is another's once it has ended and was reaped, and the engine may hear of that late. So the
moment at which the process was started, which never changes and is the kernel's, is noted while a container is
made and its process waits for the start (`Container.pid_started`), and compared at each use. What is compared is an
open folder of /proc, and all that is wanted is looked up in it: such a folder never becomes another process's.

Called by rootfs (cp, users), stats, limits and spec (namespaces that another container joins).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from teu.linux import cgroup_files

if TYPE_CHECKING:
    from teu.engine.containers.model import Container


def started(pid: int) -> int:
    """When it was started, in ticks since the machine was; 0: there is no such process."""
    try:
        folder = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return _started(folder)
    except OSError:
        return 0
    finally:
        os.close(folder)


@contextlib.contextmanager
def held(container: Container) -> Iterator[int]:
    """A descriptor of its folder in /proc; what is looked up in it is this process's, or fails.

    Raises ProcessLookupError where it has gone, whoever has its number."""
    gone = ProcessLookupError(errno.ESRCH, f"the first process of container {container.name} has gone")
    pid, moment = container.pid, container.pid_started
    if not container.running or not pid:
        raise gone
    try:
        folder = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise gone from None
    try:
        try:
            same = _started(folder) == moment
        except OSError:
            same = False
        if not same:
            raise gone
        yield folder
    finally:
        os.close(folder)


def cgroup(folder: int) -> str:
    """The cgroup v2 folder of a process, whose folder in /proc is given."""
    try:
        path = cgroup_files.in_listing(read(folder, "cgroup"))
    except OSError:
        return ""
    top = cgroup_files.place()
    return top + path if top and path is not None else ""


def namespace(container: Container, kind: str) -> int:
    """A descriptor of its namespace of this kind ("net", "pid", "ipc", ...), which outlives the process.

    Raises ProcessLookupError where the process has gone. To a runtime it is named by `path_of`."""
    with held(container) as folder:
        try:
            return os.open(f"ns/{kind}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            raise ProcessLookupError(errno.ESRCH, f"the first process of container {container.name} ends") from error


def path_of(descriptor: int) -> str:
    """What others open to get what this descriptor is of, while it is open."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def read(folder: int, name: str) -> str:
    """A file of the process whose folder `held` gives."""
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder), errors="replace") as file:
        return file.read()


def _started(folder: int) -> int:
    # proc_pid_stat(5): the 22nd field; the second one, a name in parentheses, may have anything in it.
    return int(read(folder, "stat").rpartition(")")[2].split()[19])
