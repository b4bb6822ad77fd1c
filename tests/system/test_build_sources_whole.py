# SPDX-License-Identifier: Apache-2.0
"""Sources through the whole builder, with Debian's buildx: all of them in one build, who asks a registry, policies."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "buildkit"))
from githttp import Served
from scripted_registry import ScriptedRegistry, digest_of, tar
from test_build_control import Buildx
from test_build_sources import push, registry

__all__ = ["registry"]  # a fixture

pytestmark = [pytest.mark.needs("docker", "docker-registry", "git", "systemd"), pytest.mark.timeout(300)]


@pytest.fixture
def buildx(tmp_path: Path) -> Iterator[Buildx]:
    (tmp_path / "buildx").mkdir()
    made = Buildx(tmp_path / "buildx")
    yield made
    made.run("rm", "--keep-state", "teu", check=False)


def test_a_build_of_all_sources(buildx: Buildx, registry: peers.Registry, tmp_path: Path) -> None:
    """An image of a registry, a context, a download with its checksum, a repository with a token that is nowhere."""
    token = os.urandom(12).hex()
    served = Served(tmp_path / "served")
    with ScriptedRegistry() as files:
        try:
            served.repository("a.git", {"one": token[:6], "sub/two": "2"})
            served.handler.password = "basic " + base64.b64encode(f"x-access-token:{token}".encode()).decode()
            digest = files.put(os.urandom(20_000))
            push(registry, "base", tar(("base", os.urandom(1000))), tar(("etc/", None), ("etc/base", b"base")))
            (buildx.context / "file").write_text(token[6:])
            dockerfile = f"""
FROM {registry.address}/base:1 AS base
FROM scratch
COPY --from=base /etc /etc
COPY file /file
ADD --checksum={digest} http://{files.address}/v2/a/blobs/{digest} /download
ADD {served.address}/a.git#main:sub /repository
ADD --keep-git-dir=true {served.address}/a.git /kept
"""
            out = tmp_path / "out"
            secret = ("--secret", "id=GIT_AUTH_TOKEN,env=TOKEN")
            buildx.environment["TOKEN"] = token
            text = buildx.build(dockerfile, *secret, f"--output=type=local,dest={out}")
            assert (out / "etc/base").read_bytes() == b"base"
            assert (out / "file").read_text() == token[6:]
            assert digest_of((out / "download").read_bytes()) == digest
            assert (out / "repository/two").read_text() == "2"
            assert (out / "kept/one").read_text() == token[:6] and (out / "kept/.git").is_dir()
            assert token not in text
            assert token not in "".join(path.read_text(errors="replace") for path in out.rglob("*") if path.is_file())
            # Nothing of it is made again, and what is known by its digest is not even asked for.
            files.requests.clear()
            again = buildx.build(dockerfile, *secret, f"--output=type=local,dest={tmp_path / 'again'}")
            assert again.count("CACHED") >= 4 and not files.requests
        finally:
            served.server.shutdown()
            served.server.server_close()


def test_a_git_context_and_a_named_context(buildx: Buildx, registry: peers.Registry, tmp_path: Path) -> None:
    served = Served(tmp_path / "served")
    try:
        dockerfile = "FROM scratch\nCOPY one /one\nCOPY --from=other /base /base\n"
        served.repository("a.git", {"one": "1", "Dockerfile": dockerfile})
        push(registry, "other", tar(("base", b"of the other")))
        out = tmp_path / "out"
        other = f"--build-context=other=docker-image://{registry.address}/other:1"
        words = ["build", "--builder=teu", "--progress=plain", f"--output=type=local,dest={out}", other]
        buildx.run(*words, f"{served.address}/a.git#main")
        assert (out / "one").read_text() == "1" and (out / "base").read_bytes() == b"of the other"
    finally:
        served.server.shutdown()
        served.server.server_close()


def test_a_registry_that_wants_to_know_who_asks(buildx: Buildx, tmp_path: Path) -> None:
    """The client's own configuration says who it is; the builder has no credentials of its own."""
    with ScriptedRegistry() as there:
        there.image("app", "1", tar(("a", os.urandom(1000))))
        there.token, there.credentials = os.urandom(8).hex(), "me:hunter2"
        dockerfile = f"FROM {there.address}/app:1\nCOPY file /file\n"
        (buildx.context / "file").write_text("x")
        assert "failed to authorize" in buildx.build(dockerfile, check=False)
        folder = tmp_path / "docker"
        folder.mkdir()
        auth = base64.b64encode(b"me:hunter2").decode()
        (folder / "config.json").write_text(json.dumps({"auths": {there.address: {"auth": auth}}}))
        buildx.environment["DOCKER_CONFIG"] = str(folder)
        assert "COPY file /file" in buildx.build(dockerfile)


def test_a_policy_denies_and_converts(buildx: Buildx, registry: peers.Registry, tmp_path: Path) -> None:
    push(registry, "base", tar(("base", b"base")))
    push(registry, "safe", tar(("base", b"safe")))
    policy = tmp_path / "policy.json"
    buildx.environment["EXPERIMENTAL_BUILDKIT_SOURCE_POLICY"] = str(policy)
    base, safe = (f"docker-image://{registry.address}/{name}:1" for name in ("base", "safe"))
    policy.write_text(json.dumps({"rules": [{"action": "DENY", "selector": {"identifier": base}}]}))
    dockerfile = f"FROM {registry.address}/base:1\n"
    assert "denied by policy" in buildx.build(dockerfile, check=False)
    rule = {"action": "CONVERT", "selector": {"identifier": base}, "updates": {"identifier": safe}}
    policy.write_text(json.dumps({"rules": [rule]}))
    buildx.build(dockerfile, f"--output=type=local,dest={tmp_path / 'out'}")
    assert (tmp_path / "out/base").read_bytes() == b"safe"
