# SPDX-License-Identifier: Apache-2.0
"""`image signatures`, on a registry that has some: the list, by keys and by a policy, and --verify."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import signatures as made
from system.scripted_registry import ScriptedRegistry, tar

from teu.cli import main
from teu.cli.errors import CommandError
from teu.oci import distribution

PROVENANCE = "https://slsa.dev/provenance/v1"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedRegistry]:
    monkeypatch.setattr(distribution, "BACKOFF_SECONDS", 0.01)
    with ScriptedRegistry() as started:
        started.referrers = True
        yield started


@pytest.fixture
def teu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*argv: str) -> str:
        capsys.readouterr()
        assert main.dispatch(["--config", str(tmp_path), "image", "signatures", *argv]) == 0
        return capsys.readouterr().out

    return call


def attach(server: ScriptedRegistry, tag: str, layers: Any, kind: str = "", subject: Any = None) -> None:
    manifest, blobs = made.artifact(layers, kind, subject)
    for data in blobs:
        server.put(data)
    server.manifest("app", tag, made.OCI_MANIFEST, manifest)


def offer(server: ScriptedRegistry, key: Any) -> dict[str, Any]:
    """An image of two platforms, with BuildKit's attestation; its index has one of everything."""
    amd = server.image("app", "amd", tar(("file", b"x")))
    arm = server.image("app", "arm", tar(("file", b"y")), architecture="arm64")
    layer = made.layer("application/vnd.in-toto+json", b"{}", {"in-toto.io/predicate-type": PROVENANCE})
    attach(server, "own", [layer])
    kind, data = server.manifests["app", "own"]
    own = {"mediaType": kind, "digest": made.digest_of(data), "size": len(data)}
    annotations = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": amd["digest"]}
    entries = [
        {**amd, "platform": {"os": "linux", "architecture": "amd64"}},
        {**arm, "platform": {"os": "linux", "architecture": "arm64"}},
        {**own, "platform": {"os": "unknown", "architecture": "unknown"}, "annotations": annotations},
    ]
    document = {"schemaVersion": 2, "mediaType": made.OCI_INDEX, "manifests": entries}
    index = server.manifest("app", "1", made.OCI_INDEX, document)
    tag, name = index["digest"].replace(":", "-"), f"{server.address}/app"
    signed = made.payload(index["digest"], name)
    attach(server, f"{tag}.sig", [made.simple_layer(key, signed), made.simple_layer(made.new_key(), signed)])
    statement = made.statement(index["digest"], PROVENANCE, name)
    attach(server, f"{tag}.att", [made.layer(made.DSSE, made.encode(made.envelope(key, statement)))])
    attach(server, "b", [made.layer(made.BUNDLE, made.bundle(key, statement))], made.BUNDLE, index)
    signs = made.statement(index["digest"], "https://sigstore.dev/cosign/sign/v1")
    attach(server, "c", [made.layer(made.BUNDLE, made.bundle(key, signs))], made.BUNDLE, index)
    attach(server, "d", [made.layer("text/spdx", b"x")], "application/x.sbom", index)
    return {"index": index, "amd": amd, "arm": arm, "name": name}


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_list(server: ScriptedRegistry, teu: Callable[..., str], tmp_path: Path) -> None:
    key = made.new_key()
    image = offer(server, key)
    name = f"{image['name']}:1"
    found = rows(teu("--format", "json", "--policy", "", name))
    assert [(row["Kind"], row["Format"], row["Type"], row["Verified"]) for row in found] == [
        ("signature", "cosign", "", ""),
        ("signature", "cosign", "", ""),
        ("attestation", "cosign", PROVENANCE, ""),
        ("attestation", "sigstore bundle", PROVENANCE, ""),
        ("signature", "sigstore bundle", "", ""),
        ("artifact", "application/x.sbom", "text/spdx", ""),
        ("attestation", "buildkit", PROVENANCE, ""),
    ]
    assert {row["Subject"] for row in found[:-1]} == {image["index"]["digest"]}
    assert found[-1]["Subject"] == image["amd"]["digest"]
    assert teu("-q", name).split() == [row["Digest"] for row in found]
    (tmp_path / "k.pub").write_bytes(made.public_pem(key))
    found = rows(teu("--format", "json", "--key", f"{tmp_path}/k.pub", name))
    assert [row["Verified"] for row in found] == ["yes", "no", "yes", "yes", "yes", "", ""]
    assert found[0]["Signer"] == f"{tmp_path}/k.pub" and "none of the keys" in found[1]["Reason"]
    plain = teu("--key", f"{tmp_path}/k.pub", name)
    assert plain.splitlines()[0].split() == ["KIND", "FORMAT", "TYPE", "VERIFIED", "SIGNER", "DIGEST"]


def test_by_platform(server: ScriptedRegistry, teu: Callable[..., str]) -> None:
    key = made.new_key()
    image = offer(server, key)
    arm = image["arm"]["digest"]
    attach(server, f"{arm.replace(':', '-')}.sig", [made.simple_layer(key, made.payload(arm, image["name"]))])
    found = rows(teu("--format", "json", "--platform", "linux/arm64", f"{image['name']}:1"))
    assert [row["Place"] for row in found if row["Subject"] == arm] == [f"{arm.replace(':', '-')}.sig"]
    for platform, says in (("linux/s390x", "has no manifest for linux/s390x"), ("a b", "invalid component")):
        with pytest.raises(CommandError, match=says):
            teu("--platform", platform, f"{image['name']}:1")


def test_by_a_policy(server: ScriptedRegistry, teu: Callable[..., str], tmp_path: Path) -> None:
    key = made.new_key()
    name = f"{offer(server, key)['name']}:1"
    (tmp_path / "k.pub").write_bytes(made.public_pem(key))
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"default: {{cosign: {{keys: [{tmp_path}/k.pub]}}}}\n")
    found = rows(teu("--format", "json", "--policy", str(policy), name))
    assert [row["Verified"] for row in found] == ["yes", "no", "", "no", "no", "", ""]
    assert "identity: any" in found[4]["Reason"]
    teu("--verify", "--policy", str(policy), name)
    policy.write_text("default: {require: reject}\n")
    with pytest.raises(CommandError, match=r"is refused by .*policy.yaml:1: default: it lets no image in"):
        teu("--verify", "--policy", str(policy), name)
    assert rows(teu("--format", "json", "--policy", str(policy), name))[0]["Verified"] == ""
    policy.write_text("default: nothing\n")
    with pytest.raises(CommandError, match=r"policy.yaml:1: default: is not a mapping"):
        teu("--policy", str(policy), name)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--key", "/k", "--policy", "/p"], "--key stands for itself"),
        (["--key", "/k", "--verify"], "--key stands for itself"),
        (["--local", "--verify"], "leave out --verify"),
        (["--key", "/nowhere/k"], "/nowhere/k cannot be read"),
    ],
)
def test_what_does_not_go_together(teu: Callable[..., str], argv: list[str], says: str) -> None:
    with pytest.raises(CommandError, match=says):
        teu(*argv, "127.0.0.1:1/app")


def test_nothing_is_there(server: ScriptedRegistry, teu: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    server.image("app", "1", tar(("file", b"x")))
    assert teu("--format", "json", f"{server.address}/app:1") == ""
    with pytest.raises(CommandError, match="no such manifest"):
        teu(f"{server.address}/app:2")
    monkeypatch.setattr("teu.trust.files.FILE", "/nowhere/policy.yaml")
    with pytest.raises(CommandError, match="--verify needs a policy"):
        teu("--verify", f"{server.address}/app:1")


# -- copies --------------------------------------------------------------------------------------------------


def push(server: ScriptedRegistry, to: ScriptedRegistry, *digests: str) -> None:
    """The image alone."""
    for digest in digests:
        kind, data = server.manifests["app", digest]
        to.manifests["far", digest] = kind, data
        if kind == made.OCI_INDEX:
            to.manifests["far", "1"] = kind, data


@pytest.mark.parametrize("lists", [True, False])
def test_all_of_it_travels(server: ScriptedRegistry, teu: Callable[..., str], lists: bool, tmp_path: Path) -> None:
    key = made.new_key()
    image = offer(server, key)
    (tmp_path / "k.pub").write_bytes(made.public_pem(key))
    amd = image["amd"]["digest"]
    attach(server, f"{amd.replace(':', '-')}.sig", [made.simple_layer(key, made.payload(amd, image["name"]))])
    with ScriptedRegistry() as far:
        far.writable, far.referrers = True, lists
        name = f"{far.address}/far:1"
        with pytest.raises(CommandError, match="push the image first"):
            teu("--copy-to", name, f"{image['name']}:1")
        push(server, far, image["index"]["digest"], amd)
        lines = teu("--copy-to", name, f"{image['name']}:1").splitlines()
        assert len(lines) == 6 and all(line.endswith(f" to {far.address}/far") for line in lines)
        assert f"Copied {amd.replace(':', '-')}.sig to {far.address}/far" in lines
        kept = {reference for place, reference in far.manifests if place == "far"}
        assert (image["index"]["digest"].replace(":", "-") in kept) is not lists
        attached_there = json.loads(far.manifests["far", "1"][1])["manifests"]
        far.manifests["far", attached_there[2]["digest"]] = server.manifests["app", attached_there[2]["digest"]]
        command = ("--format", "{{.Kind}} {{.Format}} {{.Type}} {{.Verified}}", "--key", f"{tmp_path}/k.pub")
        assert sorted(teu(*command, name).splitlines()) == sorted(teu(*command, f"{image['name']}:1").splitlines())
        # Once more is nothing.
        assert teu("--copy-to", name, f"{image['name']}:1") == ""
        tag = image["index"]["digest"].replace(":", "-") + ".sig"
        far.manifests["far", tag] = far.manifests["far", f"{amd.replace(':', '-')}.sig"]
        with pytest.raises(CommandError, match="is there, and another one: it is not replaced"):
            teu("--copy-to", name, f"{image['name']}:1")


def test_blobs_are_mounted_within_a_registry(server: ScriptedRegistry, teu: Callable[..., str]) -> None:
    image = offer(server, made.new_key())
    server.writable = True
    push(server, server, image["index"]["digest"])
    assert len(teu("--copy-to", f"{server.address}/far:1", f"{image['name']}:1").splitlines()) == 5
    assert not [path for method, path, _ in server.requests if method == "PUT" and "/blobs/" in path]


def test_a_copy_is_not_a_list(teu: Callable[..., str]) -> None:
    with pytest.raises(CommandError, match="leave out --key"):
        teu("--copy-to", "127.0.0.1:1/x", "--key", "/k", "127.0.0.1:1/app")
