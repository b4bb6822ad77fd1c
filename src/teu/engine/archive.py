# SPDX-License-Identifier: Apache-2.0
"""Files of a container for cp and export: starts the visitor in the container's root.

`asked` is what the client called the container: its messages name it so."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from teu.engine import rootfs
from teu.engine.errors import BadRequest, EngineError, NotFound

if TYPE_CHECKING:
    from teu.engine.container import Container
    from teu.engine.engine import Engine

CHUNK = 256 << 10


def _visit(root: int, verb: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/usr/bin/python3", "-IS", str(Path(__file__).with_name("visitor.py")), str(root), verb, json.dumps(options)],
        stdin=subprocess.PIPE if verb == "untar" else subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(root,), env={"LC_ALL": "C.UTF-8"}, cwd="/",
    )  # fmt: skip


def _failed(container: Container, asked: str, path: str, said: bytes) -> EngineError:
    try:
        problem = json.loads(said)
    except ValueError:
        return EngineError(
            f"working in the root of container {container.id} failed: {said[-500:].decode(errors='replace')}"
        )
    if problem["kind"] == "missing":
        return NotFound(f"Could not find the file {path} in container {asked}")
    if problem["kind"] == "bad":
        return BadRequest(problem["message"])
    return EngineError(problem["message"])


def describe(engine: Engine, container: Container, path: str, asked: str = "") -> dict[str, Any]:
    with rootfs.opened(engine, container, readonly=True) as root:
        out, said = (process := _visit(root, "stat", path=path)).communicate()
    if process.returncode != 0:
        raise _failed(container, asked or container.name, path, said)
    result: dict[str, Any] = json.loads(out)
    return result


def pack(engine: Engine, container: Container, path: str, whole: bool = False, asked: str = "") -> Iterator[bytes]:
    """A tar archive, in chunks. An error before the first byte is raised at the first next()."""
    opener = rootfs.snapshot if whole and not container.running else rootfs.opened
    with opener(engine, container, readonly=True) as root:
        process = _visit(root, "tar", path=path, whole=whole)
        said: list[bytes] = []
        assert process.stdout is not None and process.stderr is not None
        listener = threading.Thread(target=_listen, args=(process.stderr, said), daemon=True)
        listener.start()
        try:
            while chunk := process.stdout.read(CHUNK):
                yield chunk
            listener.join()
            if process.wait() != 0:
                raise _failed(container, asked or container.name, path, b"".join(said))
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _listen(stream: IO[bytes], said: list[bytes]) -> None:
    with stream:
        said.append(stream.read())


def unpack(
    engine: Engine,
    container: Container,
    path: str,
    body: Any,
    replace: bool,
    owner: tuple[int, int] | None,
    asked: str = "",
) -> None:
    with container.lock if not container.running else contextlib.nullcontext():
        container.touched = True
        with rootfs.opened(engine, container) as root:
            process = _visit(root, "untar", path=path, replace=replace, owner=owner)
            assert process.stdin is not None and process.stderr is not None
            said: list[bytes] = []
            listener = threading.Thread(target=_listen, args=(process.stderr, said), daemon=True)
            listener.start()
            try:
                with contextlib.suppress(BrokenPipeError):
                    while chunk := body.read(CHUNK):
                        process.stdin.write(chunk)
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            except BaseException:
                process.kill()
                raise
            finally:
                code = process.wait()
                listener.join()
            if code != 0:
                raise _failed(container, asked or container.name, path, b"".join(said))
