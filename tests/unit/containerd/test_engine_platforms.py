# SPDX-License-Identifier: Apache-2.0
"""teud's images of several platforms, on a daemon of ours and a registry that does as told: what a pull brings, what is
told of it, what is saved, loaded and removed, with ids of configurations and of targets; pulls that go on later."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest
from containerd_parts import Daemon, root_only
from system.scripted_registry import OCI_INDEX, ScriptedRegistry, tar

from teu.engine.api import messages, router
from teu.engine.backend import content
from teu.engine.core.errors import BadRequest, Conflict, EngineError, NotFound
from teu.engine.engine import Engine
from teu.engine.images import load, platforms, pull, removal, save
from teu.engine.images.platforms import Choice
from teu.engine.images.store import parse_reference
from teu.engine.views import images as images_view
from teu.engine.views import system
from teu.oci import distribution, image_spec

pytestmark = root_only

HOST = image_spec.host_platform()
OTHERS = ("s390x", "riscv64")
ARCHITECTURES = (HOST.architecture, *OTHERS)


@pytest.fixture(params=["config", "target"])
def ids(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(daemon: Daemon, tmp_path: Path, ids: str) -> Iterator[Engine]:
    engine = parts.engine(tmp_path, containerd=daemon.address, storage_driver="native", image_ids=ids)
    engine.containerd.ensure_namespace()
    yield engine
    engine.containerd.close()
    engine.database.close()


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as made:
        yield made


def offered(registry: ScriptedRegistry, tag: str = "1", common: bytes = b"c") -> dict[str, Any]:
    """An index of ARCHITECTURES, each with a layer that all have and one of its own, and an attestation of the host's;
    the descriptors by architecture, "index" and "attestation"."""
    made: dict[str, Any] = {}
    for architecture in ARCHITECTURES:
        layers = tar(("common", common)), tar((f"file-{architecture}", tag.encode()))
        made[architecture] = registry.image("app", architecture + tag, *layers, architecture=architecture)
    statement, other = b'{"_type":"https://in-toto.io/Statement/v0.1"}', b'{"_type":"other"}'
    empty = b'{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":[]}}'
    document = {
        "schemaVersion": 2,
        "mediaType": image_spec.OCI_MANIFEST,
        "config": {"mediaType": image_spec.OCI_CONFIG, "digest": registry.put(empty), "size": len(empty)},
        "layers": [
            {
                "mediaType": "application/vnd.in-toto+json",
                "digest": registry.put(text),
                "size": len(text),
                **({"annotations": {"in-toto.io/predicate-type": kind}} if kind else {}),
            }
            for text, kind in (
                (statement, "https://slsa.dev/provenance/v1"),
                (other, "https://spdx.dev/Document"),
                (b"{}", ""),
            )
        ],
    }
    made["attestation"] = registry.manifest("app", f"attestation{tag}", image_spec.OCI_MANIFEST, document)
    entries = [
        {**made[architecture], "platform": {"os": "linux", "architecture": architecture}}
        for architecture in ARCHITECTURES
    ]
    entries.append(
        {
            **made["attestation"],
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": made[HOST.architecture]["digest"],
            },
        }
    )
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    made["index"] = registry.manifest("app", tag, OCI_INDEX, index)
    return made


def pulled(engine: Engine, registry: ScriptedRegistry, *wanted: str, tag: str = "1") -> str:
    """The last line of a pull of these platforms."""
    reference = parse_reference(f"{registry.address}/app:{tag}")
    told = list(pull.pull(engine.images, reference, platforms.choice(wanted), "", False))
    return str(told[-1]["status"])


def here(engine: Engine, text: str) -> dict[str, bool]:
    """What is here as a whole of each platform, and of the attestation."""
    name, _ = engine.images.lookup(text)
    found = engine.images.parts(name, sizes=True)
    return {part.platform.architecture if part.platform else part.kind: part.whole for part in found}


def asked(engine: Engine, method: str, target: str, version: tuple[int, int] = (1, 45)) -> Any:
    path, _, query = target.partition("?")
    router.load()
    handler, _, arguments = router.find(method, path)
    return json.loads(handler(engine, messages.Request(method, path, query, version=version), **arguments).body)


def text(engine: Engine, registry: ScriptedRegistry, tag: str = "1") -> str:
    return f"{registry.address}/app:{tag}"


def test_a_pull_brings_the_hosts_platform(engine: Engine, registry: ScriptedRegistry, ids: str) -> None:
    made = offered(registry)
    name = text(engine, registry)
    assert "Downloaded newer image" in pulled(engine, registry)
    assert here(engine, name) == {HOST.architecture: True, "s390x": False, "riscv64": False, "attestation": False}
    image = engine.images.resolve(name)
    assert image.details.manifest_digest == made[HOST.architecture]["digest"]
    assert image.id == (made["index"]["digest"] if ids == "target" else image.details.config_digest)
    assert engine.images.resolve(image.id[7:19]).id == image.id
    assert engine.images.resolve(image.details.config_digest).id == image.id
    assert "is up to date" in pulled(engine, registry)


def test_several_platforms_stay_beside_each_other(engine: Engine, registry: ScriptedRegistry, ids: str) -> None:
    made = offered(registry)
    name = text(engine, registry)
    pulled(engine, registry, "linux/s390x", str(HOST))
    assert here(engine, name) == {HOST.architecture: True, "s390x": True, "riscv64": False, "attestation": True}
    assert "is up to date" in pulled(engine, registry, "linux/s390x", str(HOST))
    # What the name means is the host's, of what it has the other can be asked for.
    assert engine.images.resolve(name).details.manifest_digest == made[HOST.architecture]["digest"]
    other = engine.images.image(engine.images.lookup(name)[0], image_spec.parse_platform("s390x"))
    assert other.config["architecture"] == "s390x"
    with pytest.raises(NotFound, match=rf"wanted linux/riscv64, actual: linux/{HOST.architecture}, linux/s390x"):
        engine.images.resolve(name, "linux/riscv64")
    with pytest.raises(EngineError, match="no matching manifest for linux/mips64le"):
        pulled(engine, registry, "linux/s390x", "linux/mips64le")
    # They survive a collection, with or without the ones that come later.
    pulled(engine, registry, platforms.ALL)
    engine.images.collect()
    assert set(here(engine, name).values()) == {True}
    assert "is up to date" in pulled(engine, registry, "all")
    assert len(images_view.listing(engine, {})) == 1


def test_a_pull_of_one_platform_more(engine: Engine, registry: ScriptedRegistry, ids: str) -> None:
    """With ids of configurations the name moves to it, as it ever did; with those of targets the image has it, too."""
    offered(registry)
    name = text(engine, registry)
    pulled(engine, registry)
    first = engine.images.resolve(name)
    pulled(engine, registry, "linux/s390x")
    rows = {row["Id"]: row["RepoTags"] for row in images_view.listing(engine, {})}
    if ids == "target":
        assert rows == {first.id: [name]}
        assert engine.images.resolve(name).config["architecture"] == HOST.architecture
    else:
        second = engine.images.resolve(name)
        assert second.config["architecture"] == "s390x"
        assert rows == {first.id: [], second.id: [name]}
    assert here(engine, name)[HOST.architecture] and here(engine, name)["s390x"]
    assert "is up to date" in pulled(engine, registry, "linux/s390x")


def test_manifests_and_descriptors_are_told(engine: Engine, registry: ScriptedRegistry) -> None:
    made = offered(registry)
    name = text(engine, registry)
    pulled(engine, registry)
    assert "Descriptor" not in asked(engine, "GET", f"/images/{name}/json")
    assert asked(engine, "GET", f"/images/{name}/json", (1, 48))["Descriptor"] == made["index"]
    assert "Descriptor" not in asked(engine, "GET", "/images/json")[0]
    (row,) = asked(engine, "GET", "/images/json?manifests=1")
    assert row["Descriptor"] == made["index"]
    summaries = {one["ID"]: one for one in row["Manifests"]}
    assert asked(engine, "GET", f"/images/{name}/json?manifests=true")["Manifests"] == row["Manifests"]
    host = summaries[made[HOST.architecture]["digest"]]
    assert host["Available"] and host["Kind"] == "image"
    assert host["ImageData"]["Platform"] == {"architecture": HOST.architecture, "os": "linux"}
    assert host["ImageData"]["Containers"] == []
    assert host["Size"]["Total"] == host["Size"]["Content"] + host["ImageData"]["Size"]["Unpacked"]
    manifest = json.loads(registry.manifests["app", host["ID"]][1])
    blobs = [manifest["config"], *manifest["layers"]]
    assert host["Size"]["Content"] == host["Descriptor"]["size"] + sum(blob["size"] for blob in blobs)
    absent = summaries[made["s390x"]["digest"]]
    assert not absent["Available"] and absent["Size"] == {"Content": 0, "Total": 0}
    assert absent["Descriptor"]["platform"] == {"os": "linux", "architecture": "s390x"}
    attests = summaries[made["attestation"]["digest"]]
    assert attests["Kind"] == "attestation" and "ImageData" not in attests
    assert attests["AttestationData"] == {"For": made[HOST.architecture]["digest"]}


def test_one_platform_is_inspected(engine: Engine, registry: ScriptedRegistry, ids: str) -> None:
    made = offered(registry)
    name = text(engine, registry)
    pulled(engine, registry, "all")
    for platform in ("linux/s390x", '{"os":"linux","architecture":"s390x"}'):
        shown = asked(engine, "GET", f"/images/{name}/json?platform={platform}")
        assert shown["Architecture"] == "s390x" and shown["RepoTags"] == [name]
        told = asked(engine, "GET", f"/images/{name}/json?platform={platform}", (1, 49))["Descriptor"]
        assert told == {**made["s390x"], "platform": {"os": "linux", "architecture": "s390x"}}
        layers = asked(engine, "GET", f"/images/{name}/history?platform={platform}")
        assert [layer["CreatedBy"] for layer in layers] == ["layer 1", "layer 0"]
    with pytest.raises(BadRequest, match="exclude each other"):
        asked(engine, "GET", f"/images/{name}/json?platform=s390x&manifests=1")
    for wrong in ('{"os":"linux"}', "{", '{"os":1,"architecture":"x"}', "[/]"):
        with pytest.raises(BadRequest):
            asked(engine, "GET", f"/images/{name}/json?platform={wrong}")


def archived(engine: Engine, name: str, *wanted: str) -> tuple[bytes, dict[str, Any], set[str]]:
    """An archive, its index.json and the digests of its blobs."""
    data = b"".join(save.save(engine.images, [name], choice=platforms.choice(wanted)))
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        blobs = {f"sha256:{member.name.rpartition('/')[2]}" for member in opened if "blobs/sha256/" in member.name}
        file = opened.extractfile("index.json")
        assert file is not None
        return data, json.loads(file.read()), blobs


def test_platforms_are_saved_and_loaded(engine: Engine, registry: ScriptedRegistry, ids: str) -> None:
    made = offered(registry)
    name = text(engine, registry)
    pulled(engine, registry, "all")
    _, index, blobs = archived(engine, name, "linux/s390x")
    assert [one["digest"] for one in index["manifests"]] == [made["s390x"]["digest"]]
    assert made["index"]["digest"] not in blobs
    _, index, blobs = archived(engine, name)
    whole = ids == "target"
    assert index["manifests"][0]["digest"] == made["index" if whole else HOST.architecture]["digest"]
    assert (made["attestation"]["digest"] in blobs) is whole
    two, index, blobs = archived(engine, name, "linux/s390x", str(HOST))
    assert [one["digest"] for one in index["manifests"]] == [made["index"]["digest"]]
    assert {made[one]["digest"] for one in ("s390x", HOST.architecture, "attestation")} <= blobs
    assert made["riscv64"]["digest"] not in blobs
    other = engine.images.resolve(name, "linux/s390x").details
    assert archived(engine, other.config_digest)[1]["manifests"][0]["digest"] == other.manifest_digest
    with pytest.raises(NotFound, match="nothing whole for linux/arm64"):
        archived(engine, name, "linux/s390x", "linux/arm64" if HOST.architecture != "arm64" else "linux/amd64")

    removal.remove(engine.images, engine.containers, name, force=True)
    engine.images.collect()
    list(load.load(engine.images, io.BytesIO(two)))
    assert here(engine, name) == {HOST.architecture: True, "s390x": True, "riscv64": False, "attestation": True}
    assert engine.images.resolve(name).config["architecture"] == HOST.architecture
    assert engine.images.lookup(name)[0].target["digest"] == made["index"]["digest"]

    removal.remove(engine.images, engine.containers, name, force=True)
    engine.images.collect()
    list(load.load(engine.images, io.BytesIO(two), wanted=[image_spec.parse_platform("s390x")]))
    engine.images.collect()
    assert here(engine, name) == {HOST.architecture: False, "s390x": True, "riscv64": False, "attestation": False}
    assert engine.images.resolve(name).config["architecture"] == "s390x"
    with pytest.raises(NotFound, match="nothing for linux/riscv64 in this archive"):
        list(load.load(engine.images, io.BytesIO(two), wanted=[image_spec.parse_platform("riscv64")]))


def test_a_platform_is_removed(engine: Engine, registry: ScriptedRegistry, ids: str) -> None:
    made = offered(registry)
    name = text(engine, registry)
    pulled(engine, registry, "all")
    user = parts.container(engine, "user")
    other = engine.images.resolve(name, "linux/s390x")
    user.image_id, user.chain_id = other.id, other.chain_id
    remove = f"/images/{name}?platforms="
    with pytest.raises(Conflict, match=r"must be forced\) - image is being used by stopped container"):
        asked(engine, "DELETE", remove + '{"os":"linux","architecture":"s390x"}')
    engine.containers.remove(user)
    gone = asked(engine, "DELETE", remove + '{"os":"linux","architecture":"s390x"}')
    assert gone == [{"Deleted": made["s390x"]["digest"]}]
    assert here(engine, name) == {HOST.architecture: True, "s390x": False, "riscv64": True, "attestation": True}
    assert not content.exists(engine.containerd, made["s390x"]["digest"])
    with pytest.raises(NotFound, match="has nothing for linux/s390x here"):
        asked(engine, "DELETE", remove + "linux/s390x")
    # With the host's goes what attests it, and the name means what is left.
    asked(engine, "DELETE", remove + str(HOST))
    assert here(engine, name) == {HOST.architecture: False, "s390x": False, "riscv64": True, "attestation": False}
    assert engine.images.resolve(name).config["architecture"] == "riscv64"
    with pytest.raises(BadRequest, match="has no other platform here"):
        asked(engine, "DELETE", remove + "linux/riscv64")
    removal.remove(engine.images, engine.containers, name)
    engine.images.collect()
    for digest in (one["digest"] for one in made.values()):
        assert not content.exists(engine.containerd, digest)


def test_a_container_of_another_platform_keeps_the_image(engine: Engine, registry: ScriptedRegistry) -> None:
    offered(registry)
    name = text(engine, registry)
    pulled(engine, registry, "all")
    other = engine.images.resolve(name, "linux/s390x")
    user = parts.container(engine, "user", {"Image": name})
    user.image_id, user.chain_id = other.id, other.chain_id
    with pytest.raises(Conflict):
        removal.remove(engine.images, engine.containers, name)
    assert removal.prune(engine.images, engine.containers, {"dangling": ["false"]})["ImagesDeleted"] is None
    (row,) = asked(engine, "GET", "/images/json?manifests=1&shared-size=1")
    assert row["Containers"] == -1  # told since 1.51
    (row,) = asked(engine, "GET", "/images/json?manifests=1", (1, 51))
    assert row["Containers"] == 1
    users = {one["ID"]: one["ImageData"]["Containers"] for one in row["Manifests"] if one["Kind"] == "image"}
    assert users.pop(other.details.manifest_digest) == [user.id] and not any(users.values())
    # It is found by its id, as what it is.
    assert engine.images.resolve(other.details.config_digest).config["architecture"] == "s390x"


def test_what_images_share_is_counted_once(engine: Engine, registry: ScriptedRegistry, ids: str) -> None:
    common = b"x" * 300_000
    offered(registry, "1", common)
    offered(registry, "2", common)
    for tag in ("1", "2"):
        pulled(engine, registry, "all", tag=tag)
    usage = system.usage(engine, {"image"}, (1, 45))
    rows: Any = usage["Images"]
    assert all(row["Size"] >= 300_000 for row in rows)
    total = usage["LayersSize"]
    assert isinstance(total, int) and 300_000 <= total <= sum(row["Size"] for row in rows) - 300_000
    removal.remove(engine.images, engine.containers, text(engine, registry, "1"))
    left = system.usage(engine, {"image"}, (1, 45))["LayersSize"]
    freed = removal.prune(engine.images, engine.containers, {"dangling": ["false"]})["SpaceReclaimed"]
    assert isinstance(left, int) and left - 2_000 <= freed <= left
    assert system.usage(engine, {"image"}, (1, 45))["LayersSize"] == 0


def test_a_store_of_the_other_ids_is_taken_over(daemon: Daemon, tmp_path: Path, registry: ScriptedRegistry) -> None:
    """Containers know their image by the id of the time when they were made."""
    offered(registry)
    for before, after in (("config", "target"), ("target", "config")):
        (tmp_path / before).mkdir()
        engine = parts.engine(tmp_path / before, containerd=daemon.address, storage_driver="native", image_ids=before)
        engine.containerd.ensure_namespace()
        name = text(engine, registry)
        pulled(engine, registry)
        old = engine.images.resolve(name)
        new = parts.engine(tmp_path / before / "x", containerd=daemon.address, storage_driver="native", image_ids=after)
        user = parts.container(new, "user", {"Image": name})
        user.image_id, user.chain_id = old.id, old.chain_id
        now = new.images.resolve(name)
        assert now.id != old.id
        assert new.images.resolve(old.id).id == now.id
        assert asked(new, "GET", "/containers/json?all=1")[0]["Image"] == name
        assert asked(new, "GET", f'/containers/json?all=1&filters={{"ancestor":["{name}"]}}')[0]["Id"] == user.id
        with pytest.raises(Conflict, match="is using its referenced image"):
            removal.remove(new.images, new.containers, name)
        new.containers.remove(user)
        removal.remove(new.images, new.containers, name)
        for one in (engine, new):
            one.containerd.close()
            one.database.close()


def ingests(engine: Engine) -> dict[str, int]:
    from teu.api.services.content.v1 import content_pb2

    found = engine.containerd.content.ListStatuses(content_pb2.ListStatusesRequest()).statuses
    return {status.ref: int(status.offset) for status in found}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "BACKOFF_SECONDS", 0.001)


@pytest.mark.usefixtures("impatient")
def test_a_pull_goes_on_where_it_broke_off(engine: Engine, registry: ScriptedRegistry) -> None:
    """Also in a daemon that is started anew, whose sweep leaves what it can go on from."""
    from teu.engine.lifecycle import sweep

    data = tar(("file", bytes(range(256)) * 4000))
    registry.image("app", "1", data, compression="", architecture=HOST.architecture)
    (layer,) = json.loads(registry.manifests["app", "1"][1])["layers"]
    registry.broken[layer["digest"]] = 1000
    with pytest.raises(EngineError, match="ends after"):
        pulled(engine, registry)
    registry.broken.clear()
    (kept,) = ingests(engine).values()
    assert 0 < kept < layer["size"]
    assert sweep.sweep(engine, start=True)
    engine.images.collect()
    assert list(ingests(engine).values()) == [kept]
    registry.requests.clear()
    pulled(engine, registry)
    ranges = [headers.get("range") for _, path, headers in registry.requests if layer["digest"] in path]
    assert ranges == [f"bytes={kept}-"]
    assert ingests(engine) == {}
    assert content.exists(engine.containerd, layer["digest"])


def test_broken_bytes_are_not_gone_on_from(engine: Engine, registry: ScriptedRegistry) -> None:
    registry.image("app", "1", tar(("file", b"x" * 5000)), architecture=HOST.architecture)
    (layer,) = json.loads(registry.manifests["app", "1"][1])["layers"]
    registry.corrupt.add(layer["digest"])
    with pytest.raises(EngineError, match="verification failed"):
        pulled(engine, registry)
    assert ingests(engine) == {}


@pytest.mark.usefixtures("impatient")
def test_prune_gives_up_what_was_not_pulled_to_its_end(engine: Engine, registry: ScriptedRegistry) -> None:
    registry.image("app", "1", tar(("file", bytes(range(256)) * 4000)), compression="", architecture=HOST.architecture)
    (layer,) = json.loads(registry.manifests["app", "1"][1])["layers"]
    registry.broken[layer["digest"]] = 1000
    with pytest.raises(EngineError):
        pulled(engine, registry)
    (kept,) = ingests(engine).values()
    assert removal.prune(engine.images, engine.containers, {"label": ["x"]})["SpaceReclaimed"] == 0
    assert removal.prune(engine.images, engine.containers, {})["SpaceReclaimed"] == kept
    assert ingests(engine) == {}


def test_choices() -> None:
    assert platforms.choice([]) == Choice() and not Choice().several and Choice().single is None
    one = platforms.choice(["linux/arm64/v8"])
    assert str(one.single) == "linux/arm64" and not one.several
    assert platforms.choice(["all"]).several and platforms.choice(["arm64", "amd64"]).several
    assert platforms.choice(["arm64", '{"os":"linux","architecture":"arm64"}']) == platforms.choice(["arm64"])
    with pytest.raises(BadRequest, match="invalid"):
        platforms.choice(["!"])


def test_what_builders_say_of_an_image(engine: Engine, registry: ScriptedRegistry, ids: str) -> None:
    offered(registry)
    pulled(engine, registry, "all")
    target = f"/images/{text(engine, registry)}/attestations"
    provenance, bill = asked(engine, "GET", target)
    assert provenance["PredicateType"] == "https://slsa.dev/provenance/v1" and "Statement" not in provenance
    assert provenance["Descriptor"]["mediaType"] == "application/vnd.in-toto+json"
    assert provenance["Descriptor"]["annotations"] == {"in-toto.io/predicate-type": provenance["PredicateType"]}
    assert bill["PredicateType"] == "https://spdx.dev/Document"
    (found,) = asked(engine, "GET", f"{target}?statement=1&type={bill['PredicateType']}&type=%20&platform=")
    assert found == {**bill, "Statement": {"_type": "other"}}
    assert asked(engine, "GET", f"{target}?type=nothing") == []
    assert asked(engine, "GET", f"{target}?platform=linux/s390x") == []
    with pytest.raises(NotFound, match="has no manifest for linux/mips"):
        asked(engine, "GET", f"{target}?platform=linux/mips")
    with pytest.raises(BadRequest, match="only one platform"):
        asked(engine, "GET", f"{target}?platform=linux/s390x&platform=linux/amd64")
    with pytest.raises(NotFound):
        asked(engine, "GET", "/images/nosuch/attestations")


def test_attestations_that_are_not_here(engine: Engine, registry: ScriptedRegistry, ids: str) -> None:
    offered(registry)
    pulled(engine, registry)
    with pytest.raises(NotFound, match="is not available locally"):
        asked(engine, "GET", f"/images/{text(engine, registry)}/attestations")


def test_images_in_the_shape_of_their_version(engine: Engine, registry: ScriptedRegistry, ids: str) -> None:
    offered(registry)
    pulled(engine, registry)
    name = text(engine, registry)
    for minor in (43, 44, 47, 48, 49, 50, 51, 52, 53, 55):
        one = asked(engine, "GET", f"/images/{name}/json", (1, minor))
        (row,) = asked(engine, "GET", "/images/json", (1, minor))
        assert ("Descriptor" in one) == ("Descriptor" in row) == (minor >= 48)
        assert ("VirtualSize" in one) == ("VirtualSize" in row) == (minor < 44)
        assert ("Hostname" in one["Config"]) == (minor < 50) and ("User" in one["Config"]) == (minor < 52)
        assert ("GraphDriver" in one) == ("Parent" in one) == (minor < 52)
        assert ("ContainerConfig" in one) == (minor < 45)
        assert row["Containers"] == (0 if minor >= 51 else -1)
        identity = {"Pull": [{"Repository": f"{registry.address}/app"}]}
        assert one.get("Identity") == (identity if minor >= 53 else None)
    (row,) = asked(engine, "GET", "/images/json?manifests=1&identity=1", (1, 54))
    assert {"Pull": [{"Repository": f"{registry.address}/app"}]} in [part.get("Identity") for part in row["Manifests"]]
    with pytest.raises(BadRequest, match="identity requires manifests"):
        asked(engine, "GET", "/images/json?identity=1", (1, 54))


def test_which_manifest_a_container_has(engine: Engine, registry: ScriptedRegistry, ids: str) -> None:
    made = offered(registry)
    pulled(engine, registry)
    image = engine.images.resolve(text(engine, registry))
    expected = {key: made[HOST.architecture][key] for key in ("mediaType", "digest", "size")}
    for _ in range(2):
        found = engine.images.manifest_of(image)
        assert found.pop("platform")["architecture"] == HOST.architecture  # type: ignore[misc]
        assert found == expected


def test_df_of_a_later_version(engine: Engine, registry: ScriptedRegistry, ids: str) -> None:
    offered(registry)
    pulled(engine, registry)
    brief: Any = system.usage(engine, {"image"}, (1, 52))
    assert brief["ImageUsage"]["TotalCount"] == 1 and brief["ImageUsage"]["TotalSize"] == brief["LayersSize"]
    assert brief["ImageUsage"]["Reclaimable"] == brief["Images"][0]["Size"] and "Items" not in brief["ImageUsage"]
    whole: Any = system.usage(engine, {"image"}, (1, 52), verbose=True)
    assert set(whole) == {"ImageUsage"} and whole["ImageUsage"]["Items"] == brief["Images"]
    assert set(system.usage(engine, {"image"}, (1, 51), verbose=True)) == {"Images", "LayersSize"}
