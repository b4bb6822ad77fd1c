# SPDX-License-Identifier: Apache-2.0
"""Repositories for tests behind a real HTTP server (git http-backend)."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WHO = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_COMMITTER_DATE": "2020-01-02T03:04:05Z",
    "GIT_AUTHOR_DATE": "2020-01-02T03:04:05Z",
}


def run(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always", *arguments]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **WHO}, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


class Backend(BaseHTTPRequestHandler):
    """git http-backend as CGI."""

    root: Path
    password = ""
    seen: list[str]

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(data)

    def answer(self, data: bytes) -> None:
        self.seen.append(self.path)
        if self.password and self.headers.get("Authorization") != self.password:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(data)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=data, env=environment, capture_output=True, timeout=60)
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        fields = [line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line]
        status = next((value for key, value in fields if key == "Status"), "200 OK")
        self.send_response(int(status.split()[0]))
        for key, value in fields:
            if key != "Status":
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


def commit(folder: Path, files: dict[str, str], message: str = "x") -> str:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    run(folder, "add", "--all")
    run(folder, "commit", "--quiet", "--allow-empty", "-m", message)
    return run(folder, "rev-parse", "HEAD")


@functools.cache
def _made(files: tuple[tuple[str, str], ...]) -> tempfile.TemporaryDirectory[str]:
    """A repository to copy: most tests want the same one."""
    folder = tempfile.TemporaryDirectory(prefix="teu-unit-")
    run(Path(folder.name), "init", "--quiet", "--template=")
    commit(Path(folder.name), dict(files))
    return folder


class Served:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.handler = type("Own", (Backend,), {"root": folder, "seen": []})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        self.server.socket.settimeout(5)  # select may tell of one who has gone again: accept would wait for ever
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def repository(self, name: str, files: dict[str, str]) -> Path:
        """One with a commit of these files."""
        return shutil.copytree(_made(tuple(files.items())).name, self.folder / name)

    def commit(self, folder: Path, files: dict[str, str], message: str = "x") -> str:
        """The name of a new commit, with these files over those that are there."""
        return commit(folder, files, message)
