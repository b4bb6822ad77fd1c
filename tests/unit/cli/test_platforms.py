# SPDX-License-Identifier: Apache-2.0
"""--platform on images that are here, of daemons that heed it and of those that would not; images --tree."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from prepared import Raw

ARM = '{"architecture":"arm64","os":"linux"}'


@pytest.fixture(params=["Teu/1.0 (linux)", "Docker/29"])
def able(daemon: Any, request: pytest.FixtureRequest) -> Any:
    """teud, whose API is 1.45; or dockerd with a newer one."""
    headers = {"Api-Version": "1.45" if request.param.startswith("Teu") else "1.52", "Server": request.param}
    daemon.on("GET", "/_ping", Raw(b"OK", "text/plain", headers))
    return daemon


def test_a_platform_is_asked_for(able: Any, teu: Callable[..., Any]) -> None:
    able.on("GET", "/images/box/history", [])
    assert teu("history", "--platform", "arm64", "box").code == 0
    assert json.loads(able.last.query["platform"]) == json.loads(ARM)
    able.on("GET", "/images/box/json", {"Id": "x"})
    assert teu("image", "inspect", "--platform", "linux/arm/v6", "box").code == 0
    assert json.loads(able.last.query["platform"]) == {"architecture": "arm", "os": "linux", "variant": "v6"}
    able.on("GET", "/images/get", Raw(b"tar"))
    assert teu("save", "--platform", "linux/arm64", "--platform", "linux/amd64", "box").out == "tar"
    assert json.loads(able.last.query["platform"]) == json.loads(ARM)
    assert teu("save", "--platform", "all", "box").out == "tar"
    assert able.last.query["platform"] == "all"
    able.on("POST", "/images/load", {"stream": "Loaded"})
    assert teu("load", "--platform", "linux/arm64", stdin=b"tar").code == 0
    assert json.loads(able.last.query["platform"]) == json.loads(ARM)
    able.on("DELETE", "/images/box", [{"Deleted": "sha256:x"}])
    assert teu("rmi", "--platform", "linux/arm64", "box").out == "Deleted: sha256:x\n"
    assert json.loads(able.last.query["platforms"]) == json.loads(ARM)
    able.on("POST", "/images/box/push", {"status": "pushed"})
    assert teu("push", "--platform", "linux/arm64", "box").code == 0
    assert json.loads(able.last.query["platform"]) == json.loads(ARM)
    done = teu("history", "--platform", "a/b/c/d", "box")
    assert done.code == 1 and "invalid platform" in done.err


def test_a_daemon_that_would_not_heed_it_is_not_asked(daemon: Any, teu: Callable[..., Any]) -> None:
    for argv, version in (
        (("history", "--platform", "arm64", "box"), "1.48"),
        (("image", "inspect", "--platform", "arm64", "box"), "1.49"),
        (("save", "--platform", "arm64", "box"), "1.48"),
        (("save", "--platform", "arm64", "--platform", "amd64", "box"), "1.52"),
        (("rmi", "--platform", "arm64", "box"), "1.50"),
        (("push", "--platform", "arm64", "box"), "1.46"),
        (("images", "--tree"), "1.47"),
    ):
        done = teu(*argv)
        assert done.code == 1 and f"requires API version {version}, but the daemon has 1.45" in done.err, argv
        assert daemon.last.path == "/_ping"
    done = teu("pull", "--platform", "arm64", "--platform", "amd64", "box")
    assert done.code == 1 and "several platforms are for teud" in done.err
    daemon.on("POST", "/images/create", {"status": "done"})
    assert teu("pull", "--platform", "arm64", "box").code == 0
    assert daemon.last.query["platform"] == "arm64"


def manifest(architecture: str, kind: str = "image", available: bool = True, users: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {"ID": f"sha256:{architecture:0>64}", "Kind": kind, "Available": available}
    found["Size"] = {"Content": 1_000_000, "Total": 3_000_000}
    if kind == "image":
        found["ImageData"] = {"Platform": {"os": "linux", "architecture": architecture}, "Containers": ["x"] * users}
    return found


def test_a_tree_of_platforms(able: Any, teu: Callable[..., Any]) -> None:
    image = {
        "Id": "sha256:" + "ab" * 32,
        "RepoTags": ["box:1", "box:2"],
        "Manifests": [
            manifest("amd64", users=1),
            manifest("arm64"),
            manifest("s390x", available=False),
            manifest("unknown", "attestation"),
        ],
    }
    able.on("GET", "/images/json", [image, {"Id": "sha256:" + "cd" * 32, "RepoTags": []}])
    done = teu("images", "--tree")
    assert [line.split() for line in done.out.splitlines()] == [
        ["IMAGE", "ID", "DISK", "USAGE", "CONTENT", "SIZE", "IN", "USE"],
        ["box:1"],
        ["box:2", "ab" * 6, "9MB", "3MB", "U"],
        ["├─", "linux/amd64", "0" * 12, "3MB", "1MB", "U"],
        ["└─", "linux/arm64", "0" * 12, "3MB", "1MB"],
        ["<untagged>", "cd" * 6, "0B", "0B"],
    ]
    assert able.last.query == {"manifests": "1"}
    for other in ("-q", "--no-trunc", "--digests"):
        assert "is not supported with --tree" in teu("images", "--tree", other).err
