# SPDX-License-Identifier: Apache-2.0
"""Files of a container for cp and export: starts the visitor for the container's root.

`asked` is what the client called the container: its messages name it so."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from teu.engine.containers.visits import Visit
from teu.engine.core.errors import BadRequest, EngineError, NotFound
from teu.engine.files import rootfs

if TYPE_CHECKING:
    import io

    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine
    from teu.engine.files.paths import Asked, Description, Options

CHUNK = 256 << 10


@contextlib.contextmanager
def _visit(engine: Engine, container: Container, verb: str, path: str, asked: str, options: Options) -> Iterator[Visit]:
    """The visitor at work; at the end it is waited for, and what went wrong is raised.

    The lock is held until the visit is known to who starts or removes the container, and no longer."""
    writes = verb == "untar"
    with container.lock, contextlib.ExitStack() as here:
        if container.removed:
            raise NotFound(f"No such container: {asked or container.name}")
        here.callback(container.visits.settle)
        alive = container.running and container.pid
        if writes:
            container.touched = True
        if writes and not alive:
            root = container.visits.writable_root(lambda: rootfs.opened(engine, container))
        elif options.get("whole") and not alive:
            root = here.enter_context(rootfs.snapshot(engine, container, readonly=True))
        else:
            root = here.enter_context(rootfs.opened(engine, container, readonly=not writes))
        process = start(root, verb, {**options, "path": path})
        visit = Visit(process, holds=bool(alive) or writes, shares=writes and not alive)
        container.visits.enter(visit)
    said: list[bytes] = []
    try:
        assert process.stderr is not None
        listener = threading.Thread(target=listen, args=(process.stderr, said), daemon=True)
        listener.start()
        yield visit
        process.wait()
        listener.join()
        visit.check()
        if process.returncode != 0:
            raise _failed(container, asked or container.name, path, b"".join(said))
    finally:
        container.visits.leave(visit)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def start(root: int, verb: str, options: Asked) -> subprocess.Popen[bytes]:
    """The visitor, for a root that is open."""
    return subprocess.Popen(
        [
            "/usr/bin/python3",
            "-IS",
            "-X",
            "no_debug_ranges",
            str(Path(__file__).with_name("visitor.py")),
            str(root),
            verb,
            json.dumps(options),
        ],
        stdin=subprocess.PIPE if verb == "untar" else subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if verb == "untar" else subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(root,),
        env={"LC_ALL": "C.UTF-8"},
        cwd="/",
    )


def listen(stream: IO[bytes], said: list[bytes]) -> None:
    """Take what the visitor says at its end, while it works."""
    with stream:
        said.append(stream.read())


def _failed(container: Container, asked: str, path: str, said: bytes) -> EngineError:
    kind, message = problem(said, f"container {container.id}")
    if kind == "missing":
        return NotFound(f"Could not find the file {path} in container {asked}")
    return BadRequest(message) if kind == "no place" else EngineError(message)


def problem(said: bytes, whose: str) -> tuple[str, str]:
    """(kind, message) of what the visitor has said of its failure."""
    try:
        found = json.loads(said)
        return str(found["kind"]), str(found["message"])
    except ValueError:
        last = said[-500:].decode(errors="replace").strip() or "it was killed"
        return "error", f"the work on the files of {whose} failed: {last}"


def describe(engine: Engine, container: Container, path: str, asked: str = "") -> Description:
    """Of the file itself, where it is a link. Raises NotFound."""
    with _visit(engine, container, "stat", path, asked, {}) as visit:
        assert visit.process.stdout is not None
        out = visit.process.stdout.read()
    result: Description = json.loads(out)
    return result


def pack(engine: Engine, container: Container, path: str, whole: bool = False, asked: str = "") -> Iterator[bytes]:
    """A tar archive, in chunks. An error before the first byte is raised at the first next()."""
    with _visit(engine, container, "tar", path, asked, {"whole": whole}) as visit:
        assert visit.process.stdout is not None
        while chunk := visit.process.stdout.read(CHUNK):
            yield chunk
            visit.moved()


def unpack(
    engine: Engine,
    container: Container,
    path: str,
    body: io.RawIOBase | io.BytesIO,
    replace: bool,
    owner: tuple[int, int] | None,
    asked: str = "",
) -> None:
    readonly = container.host_config.readonly_rootfs
    options: Options = {"replace": replace, "owner": list(owner) if owner else None, "readonly": readonly}
    with _visit(engine, container, "untar", path, asked, options) as visit:
        pipe = visit.process.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            while chunk := body.read(CHUNK):
                visit.check()
                pipe.write(chunk)
                pipe.flush()
                visit.moved()
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
