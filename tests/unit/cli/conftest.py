# SPDX-License-Identifier: Apache-2.0
"""A daemon of prepared answers on a unix socket, and the client run against it in this process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from prepared import Daemon, Handler, Server

from teu.cli import main


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    found = Daemon()
    handler = type("Bound", (Handler,), {"daemon": found})
    with Server(str(tmp_path / "teud.sock"), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@pytest.fixture
def teu(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Result]]:
    """`teu(*argv, stdin=b"")`: (exit code, output, errors)."""
    for name in [name for name in os.environ if name.startswith(("DOCKER_", "TEU_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TZ", "UTC")

    def leave(code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        raise SystemExit(code)

    monkeypatch.setattr(main, "leave", leave)
    # Our server writes from this process too: a client that goes away must not end it.
    monkeypatch.setattr(main, "end_as_filters_do", lambda: None)
    kept = os.dup(0)

    def run(*argv: str, stdin: bytes = b"") -> Result:
        given = tmp_path / "stdin"
        given.write_bytes(stdin)
        file = os.open(given, os.O_RDONLY)
        os.dup2(file, 0)
        os.close(file)
        options = ("-H", f"unix://{tmp_path}/teud.sock", "--config", str(tmp_path / "config"))
        monkeypatch.setattr(sys, "argv", ["teu", *options, *argv])
        capfd.readouterr()
        with given.open() as text, monkeypatch.context() as patched:
            patched.setattr(sys, "stdin", text)
            with pytest.raises(SystemExit) as left:
                main.main()
        return Result(int(left.value.code or 0), *capfd.readouterr())

    yield run
    os.dup2(kept, 0)
    os.close(kept)
