# SPDX-License-Identifier: Apache-2.0
"""The process that applies or makes one layer, or takes the archive of a checkpoint apart. Started by `layers.run` for
each, with the job as JSON in its argument.

A process of its own: its mounts are in a mount namespace that ends with it, its memory goes with it, layers are
unpacked side by side on all processors, and whatever a hostile layer does to it the daemon is not in it. It imports
little, since it starts cold for every layer.

    {"do": "apply", "mounts": [...], "target": FOLDER, "blob": FD, "sync": BOOL}
        -> {"digest": of the content, "size": of the content, "blob": digest of what was read, "entries": N}
    {"do": "compare", "left": [...], "right": [...], "target": FOLDER, "out": FD, "compression": "gzip"|"zstd"|"",
     "lean": BOOL}
        -> {"digest": of the content, "size": of the content, "blob": digest of what was written, "length": of it,
            "parts": [[PLACE, LENGTH, NAME], ...]}: what was left out of it, if "lean", and is in the files of the names
    {"do": "take_apart", "blob": FD, "folder": FOLDER, "memory": BYTES that criu's images may have}
        -> {"difference": digest of rootfs-diff.tar, or "", "blob": digest of what was read}

Each job has besides "parent": the daemon's process id. The answer is JSON on standard output;
{"error": KIND, "message": TEXT} when it failed.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys

from teu.linux.syscalls import PR_SET_PDEATHSIG, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _apply(job: dict[str, Any]) -> dict[str, Any]:
    # 4 ms, and 4 ms below: the process starts for each layer, and does one of the two.
    from teu.containerd.layers import mounting, streams, unpack
    from teu.linux import writeback
    from teu.oci import tar

    source = streams.Inflated(job["blob"])  # inflates while the mounts are made
    mounting.private_namespace()
    path = mounting.mount_all(job["mounts"], job["target"])
    root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with os.scandir(path) as present:
        fresh = next(present, None) is None
    unpacker = unpack.Unpacker(root, fresh=fresh)
    stream = tar.Source(source.next_chunk)
    unpacker.run(stream)
    stream.drain()
    blob, digest = source.digests()
    if job.get("sync"):
        writeback.syncfs(path)
    return {"digest": digest, "size": source.size, "blob": blob, "entries": unpacker.count}


def _compare(job: dict[str, Any]) -> dict[str, Any]:
    from teu.containerd.layers import compare  # 4 ms

    return compare.run(job)


def _take_apart(job: dict[str, Any]) -> dict[str, Any]:
    from teu.containerd.layers import checkpoint, streams  # 9 ms, for containers of checkpoints
    from teu.oci import tar

    source = streams.Inflated(job["blob"])
    archive = checkpoint.Archive(job["folder"], job["memory"])
    stream = tar.Source(source.next_chunk)
    archive.run(stream)
    stream.drain()
    return {"difference": archive.difference, "blob": source.digests()[0]}


def _end_with(parent: int) -> None:
    """Die when the daemon dies: nobody waits for the answer, and the next daemon begins anew."""
    prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


def failed(error: OSError | ValueError | OverflowError | MemoryError) -> dict[str, Any]:
    """What is answered in place of a result."""
    if isinstance(error, MemoryError):
        return {"error": "internal", "message": "out of memory"}
    if isinstance(error, OSError):
        from teu.oci import tar  # loaded by both

        kind = "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "system"
        where = f": {error.filename}" if error.filename else ""
        return {"error": kind, "message": tar.short(f"{error.strerror or error}{where}")}
    return {"error": "invalid", "message": str(error)}


def main(text: str) -> int:
    os.umask(0)
    job = json.loads(text)
    _end_with(job["parent"])
    try:
        answer = {"apply": _apply, "compare": _compare, "take_apart": _take_apart}[job["do"]](job)
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        answer = failed(error)
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    # no orderly end: a thread may still hold a chunk for a consumer that failed
    os._exit(1 if "error" in answer else 0)
