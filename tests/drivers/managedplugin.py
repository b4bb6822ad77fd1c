# SPDX-License-Identifier: Apache-2.0
"""A program for a managed plugin of docker's: volumes, logs, networks, addresses and figures, in a root file system
that has nothing but folders for the host's /usr. As a program: managedplugin.py SOCKET; what it was asked is in
/state/asked, and the figures that it has collected are in /state/figures.

Its volumes are folders of /state/volumes, bound into its PropagatedMount while somebody has them mounted."""

from __future__ import annotations

import ctypes
import http.server
import json
import os
import shutil
import socket
import socketserver
import struct
import sys
import threading
from pathlib import Path
from typing import Any

MOUNTED, KEPT, ASKED = Path("/mnt/volumes"), Path("/state/volumes"), Path("/state/asked")
LOGS = Path("/state/logs")
FIGURES, FIGURES_SOCKET = Path("/state/figures"), "/run/docker/metrics.sock"
SUBNET = "10.233.7"
MS_BIND, MNT_DETACH = 0x1000, 2

libc = ctypes.CDLL(None, use_errno=True)


def bind(source: Path, target: Path) -> None:
    if libc.mount(str(source).encode(), str(target).encode(), None, MS_BIND, None):
        raise OSError(ctypes.get_errno(), "mount", str(target))


def unbind(target: Path) -> None:
    libc.umount2(str(target).encode(), MNT_DETACH)


class Shelf:
    """VolumeDriver."""

    def __init__(self) -> None:
        self.mounts: dict[str, set[str]] = {}

    def answer(self, verb: str, body: Any) -> dict[str, Any]:
        name = body.get("Name", "")
        kept, place = KEPT / name, MOUNTED / name
        if verb == "Capabilities":
            return {"Capabilities": {"Scope": "local"}}
        if verb == "List":
            return {"Volumes": [{"Name": one.name, "Mountpoint": str(MOUNTED / one.name)} for one in KEPT.iterdir()]}
        if verb == "Create":
            kept.mkdir(parents=True, exist_ok=True)
            return {"Err": ""}
        if not name or not kept.exists():
            return {"Err": f"no volume {name}"}
        if verb == "Remove":
            shutil.rmtree(kept)
        elif verb == "Mount":
            users = self.mounts.setdefault(name, set())
            if not users and not os.path.ismount(place):
                place.mkdir(parents=True, exist_ok=True)
                bind(kept, place)
            users.add(body["ID"])
            return {"Mountpoint": str(place)}
        elif verb == "Unmount":
            users = self.mounts.setdefault(name, set())
            users.discard(body["ID"])
            if not users:
                unbind(place)
        elif verb == "Path":
            return {"Mountpoint": str(place)}
        elif verb == "Get":
            return {"Volume": {"Name": name, "Mountpoint": str(place), "Status": {"shelf": "oak"}}}
        return {"Err": ""}


def keep(path: str, container: str) -> None:
    """The entries of a FIFO go to a file, each as a line."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with open(path, "rb") as fifo, open(LOGS / container, "ab", buffering=0) as file:
        while len(head := fifo.read(4)) == 4:
            (size,) = struct.unpack(">I", head)
            file.write(repr(fifo.read(size)).encode() + b"\n")


class Addresses:
    """IpamDriver, of one subnet."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def answer(self, verb: str, body: Any) -> dict[str, Any]:
        if verb == "GetDefaultAddressSpaces":
            return {"LocalDefaultAddressSpace": "shelf", "GlobalDefaultAddressSpace": "shelves"}
        if verb == "RequestPool":
            return {"PoolID": "the-pool", "Pool": body.get("Pool") or f"{SUBNET}.0/24", "Data": {}}
        if verb == "RequestAddress":
            free = (f"{SUBNET}.{number}" for number in range(70, 90))
            wanted = body.get("Address") or next(one for one in free if one not in self.taken)
            self.taken.add(wanted)
            return {"Address": f"{wanted}/24", "Data": {}}
        if verb == "ReleaseAddress":
            self.taken.discard(body["Address"])
        return {}


ADDRESSES = Addresses()


def collect() -> None:
    """The engine's figures, as they are now."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(FIGURES_SOCKET)
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        found = b""
        while part := client.recv(1 << 16):
            found += part
    FIGURES.write_bytes(found)


def answer(shelf: Shelf, method: str, body: Any) -> dict[str, Any]:
    part, _, verb = method.partition(".")
    if part == "VolumeDriver":
        return shelf.answer(verb, body)
    if part == "LogDriver":
        if verb == "Capabilities":
            return {"Cap": {"ReadLogs": False}}
        if verb == "StartLogging":
            arguments = (body["File"], body["Info"]["ContainerID"])
            threading.Thread(target=keep, args=arguments, daemon=True).start()
        return {"Err": ""}
    if part == "NetworkDriver":
        if verb == "GetCapabilities":
            return {"Scope": "local", "ConnectivityScope": "local"}
        if verb == "CreateEndpoint":
            return {"Interface": {}}
        if verb == "Join":
            return {"DisableGatewayService": True}
        return {}
    if part == "IpamDriver":
        return ADDRESSES.answer(verb, body)
    if part == "MetricsCollector":
        if verb == "StartMetrics":
            collect()
        return {"Err": ""}
    if part == "AuthZPlugin":
        return {"Allow": not body.get("RequestUri", "").endswith("/volumes/forbidden"), "Msg": "not that one"}
    return {"Err": f"unknown method {method}"}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shelf = Shelf()

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(text) if text.strip() else {}
        method = self.path.lstrip("/")
        with open(ASKED, "a") as file:
            file.write(json.dumps([method, body]) + "\n")
        print("asked for", method, flush=True)
        if method == "Ends.Now":
            os._exit(3)
        told = answer(self.shelf, method, body)
        data = json.dumps(told).encode()
        self.send_response(500 if told.get("Err") else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    KEPT.mkdir(parents=True, exist_ok=True)
    ASKED.touch()
    with open("/state/environment", "w") as file:
        json.dump({"env": dict(os.environ), "argv": sys.argv}, file)
    Server(sys.argv[1], Handler).serve_forever()
