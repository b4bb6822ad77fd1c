# SPDX-License-Identifier: Apache-2.0
"""Starts workers for layers and waits for them. Called by the diff service and the transfer service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import teu
from teu.containerd.errors import DataLoss, Error, Internal, InvalidArgument, ResourceExhausted, Unknown

_SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(teu.__file__)))
_PROGRAM = (
    "import sys; sys.path[:0] = [{source!r}]; sys.path.append('/usr/lib/python3/dist-packages'); "
    "from teu.containerd.layers.worker import main; main(sys.argv[1])"
)
_KINDS: dict[str, type[Error]] = {"full": ResourceExhausted, "invalid": InvalidArgument, "internal": Internal}


def mounts_as_json(mounts: Iterable[Any]) -> list[dict[str, Any]]:
    return [
        {"type": one.type, "source": one.source, "target": one.target, "options": list(one.options)} for one in mounts
    ]


def _start(job: dict[str, Any], descriptors: tuple[int, ...]) -> subprocess.Popen[bytes]:
    job["parent"] = os.getpid()
    return subprocess.Popen(
        [sys.executable, "-IS", "-X", "no_debug_ranges", "-c", _PROGRAM.format(source=_SOURCE), json.dumps(job)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
        cwd="/",
        env={"LANG": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )


def _finish(worker: subprocess.Popen[bytes], cancelled: Callable[[], bool]) -> dict[str, Any]:
    """Its answer, or its error. A worker whose client has left is killed: its work would be thrown away."""
    while True:
        try:
            out, trouble = worker.communicate(timeout=0.1)
            break
        except subprocess.TimeoutExpired:
            if cancelled():
                worker.kill()
    try:
        answer: dict[str, Any] = json.loads(out)
    except ValueError:
        last = trouble.decode(errors="replace").strip().splitlines()[-1:] or [f"status {worker.returncode}"]
        raise Unknown(f"the layer's worker failed: {last[0]}") from None
    if "error" in answer:
        raise _KINDS.get(answer["error"], Unknown)(answer["message"])
    return answer


def _never() -> bool:
    return False


class Layers:
    def __init__(self, state: str, parallel: int) -> None:
        self._target = os.path.join(state, "layers")
        os.makedirs(self._target, mode=0o700, exist_ok=True)
        self._slots = threading.BoundedSemaphore(parallel)

    def apply(
        self, blob: int, digest: str, mounts: Iterable[Any], *, sync: bool = False,
        cancelled: Callable[[], bool] = _never,
    ) -> dict[str, Any]:  # fmt: skip
        """Unpack the layer that `blob` is open on; DataLoss when it is not what its digest says."""
        job = {
            "do": "apply", "mounts": mounts_as_json(mounts), "target": self._target, "blob": blob, "sync": sync,
        }  # fmt: skip
        with self._slots:
            try:
                answer = _finish(_start(job, (blob,)), cancelled)
            except InvalidArgument as error:
                raise InvalidArgument(f"failed to extract layer {digest}: {error.message}") from None
            except Error as error:
                raise type(error)(f"failed to extract layer {digest}: {error.message}") from None
        if answer["blob"] != digest:
            raise DataLoss(f"blob {digest} is damaged: its content has the digest {answer['blob']}; remove and pull it")
        return answer

    def compare(
        self, left: Iterable[Any], right: Iterable[Any], compression: str, write: Callable[[bytes], None],
        cancelled: Callable[[], bool] = _never,
    ) -> dict[str, Any]:  # fmt: skip
        """Pack what `right` has changed over `left`; the layer goes to `write` as it is made."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        job = {
            "do": "compare", "left": mounts_as_json(left), "right": mounts_as_json(right), "target": self._target,
            "out": writing, "compression": compression,
        }  # fmt: skip
        with self._slots:
            try:
                worker = _start(job, (writing,))
            finally:
                os.close(writing)
            try:
                with open(reading, "rb", buffering=0) as stream:
                    while data := stream.read(1 << 20):
                        write(data)
            except BaseException:
                worker.kill()
                worker.communicate()
                raise
            return _finish(worker, cancelled)
