# SPDX-License-Identifier: Apache-2.0
"""A volume plugin of docker's: a program that listens on a socket, and whose volumes are folders that are at their
place while somebody has them mounted. It counts, as most do. As a program: volumeplugin.py SOCKET FOLDER."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socketserver
import sys
import threading
from pathlib import Path
from typing import Any


class VolumePlugin:
    """`folder`: where its volumes are. `asked`: (method, body) of each request. `refuses`: methods that fail."""

    def __init__(self, socket: Path, folder: Path, scope: str = "global") -> None:
        self.folder = folder
        self.scope = scope
        self.asked: list[tuple[str, Any]] = []
        self.refuses: set[str] = set()
        self.options: dict[str, dict[str, str]] = {}
        self.mounts: dict[str, list[str]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        plugin = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *_: Any) -> None: ...

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = plugin.answer(self.path.lstrip("/"), json.loads(body) if body.strip() else {})
                data = json.dumps(answer).encode()
                self.send_response(500 if answer.get("Err") else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        socket.parent.mkdir(parents=True, exist_ok=True)
        socket.unlink(missing_ok=True)
        self.server = Server(str(socket), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def of(self, method: str) -> list[Any]:
        return [body for name, body in self.asked if name == f"VolumeDriver.{method}"]

    def _place(self, name: str) -> Path:
        return self.folder / "mounted" / name

    def answer(self, method: str, body: Any) -> dict[str, Any]:
        self.asked.append((method, body))
        if method == "Plugin.Activate":
            return {"Implements": ["VolumeDriver"]}
        verb, name = method.removeprefix("VolumeDriver."), body.get("Name", "")
        if verb in self.refuses:
            return {"Err": f"{verb} is refused"}
        if verb == "Capabilities":
            return {"Capabilities": {"Scope": self.scope}}
        if verb == "List":
            return {"Volumes": [{"Name": each, "Mountpoint": str(self._place(each))} for each in self.options]}
        if verb == "Create":
            self.options[name] = body.get("Opts") or {}
            (self.folder / "kept" / name).mkdir(parents=True)
            return {"Err": ""}
        if name not in self.options:
            return {"Err": f"no volume {name}"}
        place = self._place(name)
        if verb == "Remove":
            if self.mounts.get(name):
                return {"Err": f"volume {name} is mounted"}
            del self.options[name]
            shutil.rmtree(self.folder / "kept" / name)
        elif verb == "Mount":
            self.mounts.setdefault(name, []).append(body["ID"])
            place.parent.mkdir(exist_ok=True)
            if not place.is_symlink() and not place.exists():
                os.rename(self.folder / "kept" / name, place)
            return {"Mountpoint": str(place)}
        elif verb == "Unmount":
            self.mounts[name].remove(body["ID"])
            if not self.mounts[name]:
                os.rename(place, self.folder / "kept" / name)
        elif verb == "Path":
            return {"Mountpoint": str(place)}
        elif verb == "Get":
            return {"Volume": {"Name": name, "Mountpoint": str(place), "Status": {"colour": "blue"}}}
        return {"Err": ""}


if __name__ == "__main__":
    VolumePlugin(Path(sys.argv[1]), Path(sys.argv[2]))
    threading.Event().wait()
