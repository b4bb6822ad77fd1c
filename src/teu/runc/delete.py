# SPDX-License-Identifier: Apache-2.0
"""teu-runc delete: remove what a container holds: processes, cgroup, state."""

from __future__ import annotations

import os
import time

from teu.oci import jsontext
from teu.runc import cgroups, kill, state
from teu.runc.errors import NotFound, NotRunning, RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "delete any resources held by the container"
USAGE = "<container-id>"
FLAGS = {
    "force": ("f", "bool", False, "kill the container (SIGKILL) if it still runs"),
    "regex": ("r", "bool", False, "the id is a regular expression: delete all that match (as crun has it)"),
}
ARGUMENTS = (1, 1)

_SIGKILL = 9
_KILL_WAIT = 10.0


def main(arguments: Arguments, settings: Settings) -> int:
    if not arguments["regex"]:
        return delete(settings.root, arguments.positional[0], arguments["force"])
    import re  # 6 ms

    try:
        pattern = re.compile(arguments.positional[0])
    except re.error as error:
        raise RuncError(f"invalid regular expression: {error}") from None
    for container in state.load_all(settings.root):
        if pattern.search(container.id):
            delete(settings.root, container.id, arguments["force"])
    return 0


def delete(root: str, id: str, force: bool) -> int:
    """Delete one container."""
    try:
        container = state.load(root, id)
    except NotFound:
        # A create was killed after its first step, and left a folder without a record.
        _remove_folder(state.folder_of(root, id))
        if force:
            return 0
        raise
    lock = _take(container, force)
    if lock is None:
        return 0
    with lock:
        status = container.status()
        if not force and status not in (state.STOPPED, state.CREATED):
            raise RuncError(f"cannot delete container {id} that is not stopped: {status}")
        destroy(container, status)
    return 0


def _take(container: state.Container, force: bool) -> state.Lock | None:
    """The lock; with force also from a create that is still at work: its child is killed, so it gives up."""
    deadline = time.monotonic() + _KILL_WAIT
    while True:
        try:
            lock = state.Lock(container.folder, wait=False)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            if not force:
                status = container.status()
                raise RuncError(f"cannot delete container {container.id} that is not stopped: {status}") from None
            if time.monotonic() > deadline:
                raise RuncError(f"container {container.id} is still being created by another teu-runc") from None
            _kill(container)
            time.sleep(0.01)
        else:
            # another call may have removed it, or changed the record, before we got the lock
            try:
                container.record = state.load(os.path.dirname(container.folder), container.id).record
            except NotFound:
                lock.__exit__()
                return None
            return lock


def _kill(container: state.Container) -> None:
    try:
        kill.send(container, _SIGKILL)
    except (NotRunning, OSError):
        pass


def destroy(container: state.Container, status: str) -> None:
    """End all processes, remove the cgroup, run poststop hooks, forget the container. The record goes last."""
    if status != state.STOPPED:
        _kill(container)
        if not kill.wait_gone(container, _KILL_WAIT):
            raise RuncError("container init still running")
    cgroup = cgroups.load(container.record["cgroup"]) if container.record.get("cgroup") else None
    if cgroup is not None:
        # Without a pid namespace of its own, other processes outlive the first one.
        cgroup.kill()
        cgroup.delete()
    if container.record.get("intel_rdt"):
        from teu.runc import intel_rdt  # 0.05 ms

        intel_rdt.remove(container.record["intel_rdt"])
    config = container.folder + "/config.json"
    if os.path.exists(config) and b'"hooks"' in jsontext.read_file(config):
        from teu.runc import hooks  # 0.5 ms

        hooks.run_all_and_warn(container.spec(), "poststop", container.state(state.STOPPED))
    _remove_folder(container.folder)


def _remove_folder(folder: str) -> None:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in sorted(names, key=lambda name: name == "state.json"):
        path = f"{folder}/{name}"
        if name == "notify":
            _remove_folder(path)
            continue
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass
