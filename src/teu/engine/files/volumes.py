# SPDX-License-Identifier: Apache-2.0
"""A volume as an archive: the visitor (visitor.py) at work on a volume in place of a container. Called by its routes.

The archive has the volume's folder itself as ./, owners, modes, times, links, capabilities, ACLs and users' extended
attributes. Meanwhile the volume is mounted, and is not removed; containers may have it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from teu.engine.containers.state import MountPoint
from teu.engine.core.errors import EngineError, NotFound
from teu.engine.files import cp, rootfs

if TYPE_CHECKING:
    import io
    import subprocess

    from teu.engine.engine import Engine
    from teu.engine.files.paths import Options


@contextlib.contextmanager
def _visit(engine: Engine, name: str, verb: str, path: str, options: Options) -> Iterator[subprocess.Popen[bytes]]:
    """The visitor at work; at the end it is waited for, and what went wrong is raised."""
    with engine.volumes.visited(name, f"{verb} {uuid.uuid4().hex[:12]}"):
        root = rootfs.source_tree(engine, MountPoint(type="volume", name=name, rw=verb == "untar"))
        if root < 0:
            raise NotFound(f"get {name}: the volume has no files")
        try:
            process = cp.start(root, verb, {**options, "path": path})
        finally:
            os.close(root)
        said: list[bytes] = []
        try:
            assert process.stderr is not None
            listener = threading.Thread(target=cp.listen, args=(process.stderr, said), daemon=True)
            listener.start()
            yield process
            process.wait()
            listener.join()
            if process.returncode != 0:
                raise EngineError(cp.problem(b"".join(said), f"volume {name}")[1])
        finally:
            if process.poll() is None:
                process.kill()  # who asked has gone
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


def pack(engine: Engine, name: str) -> Generator[bytes, None, None]:
    """A tar archive, in chunks. Raises, at the first next(), NotFound, Conflict and EngineError."""
    with _visit(engine, name, "tar", "/.", {"whole": False, "attributes": True}) as process:
        assert process.stdout is not None
        while chunk := process.stdout.read(cp.CHUNK):
            yield chunk


def unpack(engine: Engine, name: str, body: io.RawIOBase | io.BytesIO) -> None:
    """Extract an archive over what is in the volume. Raises NotFound, Conflict, EngineError; what was extracted until
    then stays."""
    options: Options = {"replace": True, "owner": None, "readonly": False, "top": True}
    with _visit(engine, name, "untar", "/", options) as process:
        pipe = process.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            while chunk := body.read(cp.CHUNK):
                pipe.write(chunk)
                pipe.flush()
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
