# SPDX-License-Identifier: Apache-2.0
"""What the tests of images, networks and volumes share: the busybox image, the API, what containerd holds."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import whole
from scripted_registry import tar

SOCKET = "/run/teu/teud.sock"
CONTAINERD = "/run/teu/containerd.sock"
SHIPPED = Path("/usr/share/teu/images")


def need_busybox() -> None:
    """The image of the package, or one made like it."""
    if whole.teu("image", "inspect", whole.IMAGE, check=False).returncode == 0:
        return
    shipped = sorted(SHIPPED.glob("*.tar")) if SHIPPED.is_dir() else []
    path = shipped[0] if shipped else Path("/tmp/teu-test-busybox.tar")
    if not shipped and not path.exists():
        tool = Path(__file__).parents[2] / "packaging/make-busybox-image"
        subprocess.run(["/usr/bin/python3", tool, path], check=True)
    whole.teu("load", "-i", str(path))


def busybox_layer(**files: bytes) -> bytes:
    """A layer with a shell in it, and these files."""
    program = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    return tar(
        ("bin/", None),
        ("bin/sh", program),
        ("bin/busybox", program),
        ("tmp/", None),
        ("etc/", None),
        *((name, data) for name, data in files.items()),
    )


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(120)
        self.sock.connect(SOCKET)


def api(method: str, path: str, body: Any = None, version: str = "1.48") -> tuple[int, Any]:
    """(status, decoded answer); a stream of JSON lines becomes a list."""
    connection = _Connection("teu")
    as_json = isinstance(body, (dict, list))
    headers = {"Content-Type": "application/json"} if as_json else {}
    data = json.dumps(body).encode() if as_json else body
    connection.request(method, f"/v{version}{path}", data, headers)
    response = connection.getresponse()
    text = response.read().decode(errors="replace")
    connection.close()
    if not text.strip():
        return response.status, None
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, [json.loads(line) for line in text.splitlines() if line.strip()]


def blob(registry: str, repository: str, digest: str) -> bytes:
    """A blob of a registry on this machine."""
    connection = http.client.HTTPConnection(registry)
    connection.request("GET", f"/v2/{repository}/blobs/{digest}")
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    assert answer.status == 200, (answer.status, data)
    return data


def ctr(*argv: str) -> list[str]:
    """Lines of Debian's ctr about teu-containerd's namespace of teud."""
    return whole.out("ctr", "-a", CONTAINERD, "-n", "teu", *argv).splitlines()


def ingests() -> list[str]:
    """What is being written, and what has come of layers whose pull ended early: that is kept for the next pull."""
    return [line.split()[0] for line in ctr("content", "active")[1:]]


def held() -> dict[str, list[str]]:
    """What containerd holds for teud: for comparing before and after. The layer between an image and its containers
    comes with the first container and goes with the image, whose own snapshots it keeps: they would be seen."""
    return {
        "content": sorted(ctr("content", "ls", "-q")),
        "ingests": sorted(ref for ref in ingests() if not ref.startswith("layer-")),
        "snapshots": sorted(line.split()[0] for line in ctr("snapshots", "ls")[1:] if not line.startswith("init-")),
        "leases": sorted(ctr("leases", "ls", "-q")),
        "images": sorted(ctr("images", "ls", "-q")),
        "containers": sorted(ctr("containers", "ls", "-q")),
    }


def pulling() -> list[str]:
    """The leases under which teud is making something; what the builder keeps has leases of its own."""
    return [lease for lease in ctr("leases", "ls", "-q") if lease.startswith("teud-")]


def collect() -> None:
    """Have containerd collect what nothing needs; returns when it has."""
    ctr("leases", "create", "--id", "baseline")
    ctr("leases", "delete", "--sync", "baseline")


def baseline() -> dict[str, list[str]]:
    """What containerd holds to begin with, after what it was about to collect anyway."""
    collect()
    return held()


def settle(before: dict[str, list[str]]) -> None:
    """Wait until containerd holds what it held before; fails with the difference.

    What else was on its way out at the beginning may have gone meanwhile, but no container, and no image that has a
    name: one without goes with any prune."""

    def difference() -> list[str]:
        now = held()
        left = [f"{kind}: {entry} is left" for kind in now for entry in sorted(set(now[kind]) - set(before[kind]))]
        gone = [
            f"{kind}: {entry} is gone"
            for kind in ("images", "containers")
            for entry in sorted(set(before[kind]) - set(now[kind]))
            if not entry.startswith("dangling@")
        ]
        return left + gone

    try:
        whole.eventually("containerd holds what it held before", lambda: not difference(), timeout=60)
    except AssertionError:
        raise AssertionError(f"what containerd holds differs from before: {difference()}") from None
