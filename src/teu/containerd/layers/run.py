# SPDX-License-Identifier: Apache-2.0
"""Starts workers for layers and waits for them. Called by the diff service and the transfer service.

A worker ends with the daemon (PR_SET_PDEATHSIG), when its client leaves, and when it has neither computed nor moved a
byte for STUCK_SECONDS.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import teu
from teu.containerd.core.errors import Cancelled, DataLoss, Error, Internal, InvalidArgument, ResourceExhausted, Unknown
from teu.containerd.core.messages import Mount
from teu.containerd.layers.worker import failed

STUCK_SECONDS = 300
LOOK_SECONDS = 1.0  # from one look at what a worker has done to the next
PACKED_MAX = 4 << 20  # bytes of a layer that is made here

_SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(teu.__file__)))
_PROGRAM = (
    "import sys; sys.path[:0] = [{source!r}]; sys.path.append('/usr/lib/python3/dist-packages'); "
    "from teu.containerd.layers.worker import main; main(sys.argv[1])"
)
_KINDS: dict[str, type[Error]] = {"full": ResourceExhausted, "invalid": InvalidArgument, "internal": Internal}


def mounts_as_json(mounts: Iterable[Mount]) -> list[dict[str, Any]]:
    """Mounts as the worker takes them."""
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


class _Watch:
    """Over a worker: its client may leave, and it may be stuck. Both end it; its work would be thrown away.

    Stuck is who in STUCK_SECONDS has neither used a processor nor moved a byte. There is no limit for one that works:
    layers have no limit either."""

    def __init__(
        self, worker: subprocess.Popen[bytes], cancelled: Callable[[], bool], moved: Callable[[], int]
    ) -> None:
        """`moved` tells how many bytes it has read or written."""
        self._worker = worker
        self._cancelled = cancelled
        self._moved = moved
        self._seen: tuple[bytes, ...] = ()
        self._since = self._looked = time.monotonic()
        self.failure: Error | None = None  # why it was ended

    def look(self) -> None:
        """To be called again and again, while the worker is at work."""
        if self._cancelled():
            self._end(Cancelled("the client has left while its layer was worked on"))
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        done = self._done()
        if done != self._seen:
            self._seen, self._since = done, now
        elif now - self._since > STUCK_SECONDS:
            self._end(Internal(f"the layer's worker did nothing for {STUCK_SECONDS} seconds, and was ended"))

    def _end(self, failure: Error) -> None:
        self.failure = self.failure or failure
        self._worker.kill()

    def _done(self) -> tuple[bytes, ...]:
        try:
            with open(f"/proc/{self._worker.pid}/stat", "rb") as file:
                used = file.read().rpartition(b")")[2].split()[11:15]  # user, system; of its children, too
        except OSError:
            used = []
        return (*used, b"%d" % self._moved())


def _finish(worker: subprocess.Popen[bytes], watch: _Watch) -> dict[str, Any]:
    """Its answer, or its error."""
    while True:
        try:
            out, trouble = worker.communicate(timeout=0.1)
            break
        except subprocess.TimeoutExpired:
            watch.look()
    if watch.failure is not None:
        raise watch.failure
    try:
        answer: dict[str, Any] = json.loads(out)
    except ValueError:
        last = trouble.decode(errors="replace").strip().splitlines()[-1:] or [f"status {worker.returncode}"]
        raise Unknown(f"the layer's worker failed: {last[0]}") from None
    if "error" in answer:
        raise _KINDS.get(answer["error"], Unknown)(answer["message"])
    return answer


def _place(blob: int) -> int:
    """How far the worker has come: it shares the open file, and so its place in it."""
    try:
        return os.lseek(blob, 0, os.SEEK_CUR)
    except OSError:  # a pipe
        return 0


def _never() -> bool:
    return False


class _Grown(Exception):
    """There is more to be packed than there was before."""


def _packed(
    left: list[dict[str, Any]], right: list[dict[str, Any]], compression: str
) -> tuple[dict[str, Any], bytes] | None:
    """(Answer, layer) of a change of few files: packing reads them without running into anything of theirs, and what it
    takes is known before. None for another."""
    from teu.containerd.layers import compare  # 4 ms, and most daemons make no layers

    made = bytearray()

    def take(data: bytes) -> None:
        if len(made) + len(data) > PACKED_MAX:
            raise _Grown
        made.extend(data)

    try:
        if not compare.few(left, right):
            return None
        return compare.pack(left, right, compression, take, None), bytes(made)
    except _Grown:  # what is compared may be in use by its container
        return None
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        answer = failed(error)
        raise _KINDS.get(answer["error"], Unknown)(answer["message"]) from None


class Layers:
    """Unpacks and packs layers, each in a worker process; `parallel` at the same time. Everything here blocks."""

    def __init__(self, state: str, parallel: int) -> None:
        self._target = os.path.join(state, "layers")
        os.makedirs(self._target, mode=0o700, exist_ok=True)
        self._slots = threading.BoundedSemaphore(parallel)

    @contextlib.contextmanager
    def _slot(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        """One of the places for workers; who has left does not wait for one."""
        while not self._slots.acquire(timeout=0.5):
            if cancelled():
                raise Cancelled("the client has left before its layer's turn came")
        try:
            yield
        finally:
            self._slots.release()

    def apply(
        self,
        blob: int,
        digest: str,
        mounts: Iterable[Mount],
        *,
        sync: bool = False,
        cancelled: Callable[[], bool] = _never,
    ) -> dict[str, Any]:
        """Unpack the layer that `blob` is open on; DataLoss when it is not what its digest says."""
        job = {
            "do": "apply",
            "mounts": mounts_as_json(mounts),
            "target": self._target,
            "blob": blob,
            "sync": sync,
        }
        with self._slot(cancelled):
            try:
                worker = _start(job, (blob,))
                answer = _finish(worker, _Watch(worker, cancelled, lambda: _place(blob)))
            except InvalidArgument as error:
                raise InvalidArgument(f"failed to extract layer {digest}: {error.message}") from None
            except Error as error:
                raise type(error)(f"failed to extract layer {digest}: {error.message}") from None
        if answer["blob"] != digest:
            raise DataLoss(f"blob {digest} is damaged: its content has the digest {answer['blob']}; remove and pull it")
        return answer

    def take_apart(self, blob: int, digest: str, folder: str, memory: int) -> str:
        """Write the files of a checkpoint's archive, that `blob` is open on, into an empty folder; `memory` is how many
        bytes criu's images may have. The digest of its rootfs-diff.tar, "" where it has none. Raises InvalidArgument
        for an archive that is none or asks for too much, DataLoss when it is not what `digest` says, if that is
        given."""
        job = {"do": "take_apart", "blob": blob, "folder": folder, "memory": memory}
        with self._slot(_never):
            worker = _start(job, (blob,))
            answer = _finish(worker, _Watch(worker, _never, lambda: _place(blob)))
        if digest and answer["blob"] != digest:
            raise DataLoss(f"blob {digest} is damaged: its content has the digest {answer['blob']}; remove and pull it")
        return str(answer["difference"])

    def compare(
        self,
        left: Iterable[Mount],
        right: Iterable[Mount],
        compression: str,
        out: int,
        *,
        lean: bool = False,
        cancelled: Callable[[], bool] = _never,
    ) -> dict[str, Any]:
        """Pack what `right` has changed over `left` into `out`, a file that is open for writing. Few files are packed
        here, without a worker. The answer is the worker's; `lean`: nobody writes to the tree any more, and what its
        large files have is left out."""
        before, after = mounts_as_json(left), mounts_as_json(right)
        small = _packed(before, after, compression)
        if small is not None:
            answer, data = small
            view = memoryview(data)
            while view:
                view = view[os.write(out, view) :]
            return answer
        job = {
            "do": "compare",
            "left": before,
            "right": after,
            "target": self._target,
            "out": out,
            "compression": compression,
            "lean": lean,
        }
        with self._slot(cancelled):
            worker = _start(job, (out,))
            try:
                return _finish(worker, _Watch(worker, cancelled, lambda: os.fstat(out).st_size))
            except BaseException:
                worker.kill()
                worker.communicate()
                raise
