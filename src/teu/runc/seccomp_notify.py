# SPDX-License-Identifier: Apache-2.0
"""Hand the seccomp listener of a container to its agent (runtime-spec, "Seccomp", `listenerPath`).

Called by create and exec when the profile has SCMP_ACT_NOTIFY: the container's last step has
installed the filter and passed the listener's descriptor back.
"""

from __future__ import annotations

from _socket import AF_UNIX, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket
from array import array

from teu.linux.seccomp import SeccompError
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def process_state(profile: dict[str, Any], state: dict[str, Any], pid: int) -> bytes:
    """The "container process state" in JSON. `pid` is the process that got the filter."""
    message: dict[str, Any] = {"ociVersion": state["ociVersion"], "fds": ["seccompFd"], "pid": pid}
    if profile.get("listenerMetadata"):
        message["metadata"] = profile["listenerMetadata"]
    message["state"] = state
    return jsontext.to_bytes(message)


def send(listener: int, profile: dict[str, Any], state: dict[str, Any], pid: int | None = None) -> None:
    """Send the descriptor `listener` to the agent at the profile's listenerPath.

    `profile` is `linux.seccomp` or the whole spec; `state` the container's state as `state` prints
    it; `pid` the process of an exec. SeccompError when the agent is not there.
    """
    if "ociVersion" in profile:
        profile = profile["linux"]["seccomp"]
    path = profile.get("listenerPath")
    if not path:
        raise SeccompError("linux.seccomp.listenerPath: needed for SCMP_ACT_NOTIFY")
    message = process_state(profile, state, state["pid"] if pid is None else pid)
    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        connection.connect(path)
        rights = [(SOL_SOCKET, SCM_RIGHTS, array("i", [listener]).tobytes())]
        sent = connection.sendmsg([message], rights)
        while sent < len(message):
            sent += connection.send(message[sent:])
    except OSError as error:
        raise SeccompError(
            f"linux.seccomp.listenerPath: failed to connect with seccomp agent at {path}: {error.strerror}"
        ) from error
    finally:
        connection.close()
