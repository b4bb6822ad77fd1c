# SPDX-License-Identifier: Apache-2.0
"""The daemon's end of the shim's zygote (teu.shim.zygote): shims by fork instead of by a cold start.

start() must be called before gRPC is imported: the zygote inherits what is open and threaded then.
Without a zygote (no such program, or it died) shims are started cold; nothing else differs.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import threading

log = logging.getLogger("teu.containerd.zygote")

SHIM_BINARY = "containerd-shim-teu-v2"
# A zygote that does not answer by then is given up.
ANSWER_SECONDS = 10.0


class ZygoteGone(Exception):
    """There is no zygote to ask: start the shim cold."""


class ZygoteRefused(Exception):
    """The zygote answered, but the shim could not be started."""


class Zygote:
    """The running zygote.  start_shim() may be called from any thread."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self._process = process
        self._channel = channel
        self._answers = channel.makefile("rb")
        self._lock = threading.Lock()
        self._gone = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def start_shim(
        self, *, namespace: str, container: str, bundle: str, address: str, ttrpc_address: str, debug: bool = False
    ) -> str:
        """The address of a new shim for that bundle (or of the one that serves its group already)."""
        request = {
            "namespace": namespace,
            "id": container,
            "bundle": bundle,
            "address": address,
            "ttrpc_address": ttrpc_address,
            "debug": debug,
        }
        with self._lock:
            if self._gone:
                raise ZygoteGone
            try:
                self._channel.sendall(json.dumps(request).encode() + b"\n")
                line = self._answers.readline()
            except OSError as error:
                self._give_up(str(error))
                raise ZygoteGone from error
            if not line.endswith(b"\n"):
                self._give_up("end of file")
                raise ZygoteGone
        answer = json.loads(line)
        if "error" in answer:
            raise ZygoteRefused(answer["error"])
        return str(answer["address"])

    def _give_up(self, reason: str) -> None:
        log.warning("the shim zygote (pid %d) is gone, shims start cold from now on: %s", self.pid, reason)
        self._gone = True
        self._channel.close()
        self._process.kill()

    def close(self) -> None:
        """End it; shims made by it stay."""
        with self._lock:
            self._gone = True
            self._answers.close()
            self._channel.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def start(binary: str = "") -> Zygote | None:
    """Start the zygote, or None where the shim's program is not installed."""
    path = binary or shutil.which(SHIM_BINARY) or ""
    if not os.access(path, os.X_OK):
        return None
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [path, "zygote"], stdin=theirs.fileno(), stdout=subprocess.DEVNULL, start_new_session=True
        )
    ours.settimeout(ANSWER_SECONDS)
    return Zygote(process, ours)
