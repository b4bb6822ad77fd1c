# SPDX-License-Identifier: Apache-2.0
"""teud's images on a daemon of ours: names and ids, import, save and load, moving tags, removal, prune, the sweep."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest
from containerd_parts import Daemon, root_only

from teu.engine.backend import containerd, content
from teu.engine.core.departure import NOBODY
from teu.engine.core.errors import BadRequest, Conflict, NotFound
from teu.engine.engine import Engine
from teu.engine.images import load, packing, removal, save
from teu.engine.lifecycle import sweep
from teu.engine.views import images as images_view
from teu.oci import digest as digests
from teu.oci import image_spec

pytestmark = root_only


@pytest.fixture
def engine(daemon: Daemon, tmp_path: Path) -> Iterator[Engine]:
    engine = parts.engine(tmp_path, containerd=daemon.address, storage_driver="native")
    engine.containerd.ensure_namespace()
    yield engine
    engine.containerd.close()
    engine.database.close()


def layer(**files: str) -> io.BytesIO:
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    result.seek(0)
    return result


def imported(engine: Engine, name: str, *changes: str, **files: str) -> str:
    """The id of an image with these files."""
    told = list(load.import_(engine.images, layer(**files), name, "", list(changes), ""))
    return str(told[-1]["status"])


def names(engine: Engine) -> set[str]:
    return {name.name for name in engine.images.names()}


def told(messages: Iterable[dict[str, Any]]) -> str:
    return "".join(str(message.get("stream", "")) for message in messages)


def test_an_import_is_found_by_name_and_id(engine: Engine) -> None:
    identity = imported(engine, "docker.io/library/one:latest", 'CMD ["sh"]', "LABEL a=b", file="text")
    image = engine.images.resolve("one")
    assert image.id == identity
    assert image.config["config"] == {"Cmd": ["sh"], "Labels": {"a": "b"}}
    assert engine.images.resolve(identity[:20]).id == identity
    assert engine.images.resolve(identity.removeprefix("sha256:")[:12]).id == identity
    with pytest.raises(NotFound, match="No such image: two"):
        engine.images.resolve("two")
    with pytest.raises(BadRequest):
        engine.images.resolve("ONE")


def test_a_tag_that_moves_leaves_the_image_without_one(engine: Engine) -> None:
    first = imported(engine, "docker.io/library/one:latest", file="1")
    second = imported(engine, "docker.io/library/one:latest", file="2")
    assert engine.images.resolve("one").id == second
    rows = {row["Id"]: row["RepoTags"] for row in images_view.listing(engine, {})}
    assert rows == {first: [], second: ["one:latest"]}
    dangling = images_view.listing(engine, {"dangling": ["true"]})
    assert [row["Id"] for row in dangling] == [first]
    assert [row["Id"] for row in images_view.listing(engine, {"label": ["a"]})] == []


def test_what_is_saved_is_loaded_elsewhere(engine: Engine) -> None:
    identity = imported(engine, "docker.io/library/one:latest", file="text")
    engine.images.add(
        engine.images.lookup("one")[0].target, ["docker.io/library/two:x"], engine.images.resolve("one").details
    )
    archive = b"".join(save.save(engine.images, ["one", "two:x"]))
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        assert {"manifest.json", "index.json", "oci-layout"} <= set(opened.getnames())
    removal.remove(engine.images, engine.containers, "one", force=True)
    removal.remove(engine.images, engine.containers, "two:x", force=True)
    assert names(engine) == set()
    said = told(load.load(engine.images, io.BytesIO(archive)))
    assert said == "Loaded image: one:latest\nLoaded image: two:x\n"
    assert engine.images.resolve("one").id == engine.images.resolve("two:x").id == identity


def test_what_is_pushed_is_compressed(engine: Engine) -> None:
    """Once, and for all names of the image; what a registry has is pushed as it is."""
    images = engine.images
    identity = imported(engine, "docker.io/library/one:latest", file="text" * 1000)
    before = images.resolve("one")
    images.set_name("docker.io/library/two:1", before.target)
    imported(engine, "docker.io/library/other:latest", file="2")
    others = images.resolve("other").target
    name = packing.packed(images, images.lookup("one")[0], NOBODY)
    after = images.resolve("one")
    assert name.target == after.target == images.resolve("two:1").target != before.target
    assert (after.id, after.chain_id) == (identity, before.chain_id)
    (plain,), (packed,) = before.details.manifest["layers"], after.details.manifest["layers"]
    assert packed["mediaType"] == plain["mediaType"] + "+gzip" and packed["size"] < plain["size"]
    assert gzip.decompress(content.read(images.client, packed["digest"])) == content.read(
        images.client, plain["digest"]
    )
    assert content.info(images.client, packed["digest"]).labels["containerd.io/uncompressed"] == plain["digest"]
    assert images.resolve("other").target == others
    assert packing.packed(images, name, NOBODY) == name, "there is nothing more to do"
    removal.remove(images, engine.containers, "one")
    assert images.resolve("two:1").id == identity and names(engine) == {
        "docker.io/library/two:1",
        "docker.io/library/other:latest",
    }
    (layer,) = images.resolve("other").details.manifest["layers"]
    content.label(images.client, layer["digest"], content.source_label("registry.example", "other"))
    assert packing.packed(images, images.lookup("other")[0], NOBODY).target == others


def test_what_is_said_of_an_image_is_said_of_the_compressed_one(engine: Engine) -> None:
    """An index with statements, as a build makes it. Where one cannot be read the image is pushed as it is."""
    images = engine.images
    imported(engine, "docker.io/library/one:latest", file="text" * 1000)
    manifest = images.resolve("one").target

    def put(kind: str, document: Any) -> Any:
        data = image_spec.encode(document)
        content.put(images.client, data, None, content.children_labels(document) | {"containerd.io/gc.root": "1"})
        return image_spec.descriptor(kind, data)

    def index(statement: Any) -> Any:
        layer = {**put(packing.STATEMENT, statement), "annotations": {"in-toto.io/predicate-type": "p"}}
        config = put(image_spec.OCI_CONFIG, {"rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}})
        about = {"schemaVersion": 2, "mediaType": image_spec.OCI_MANIFEST, "config": config, "layers": [layer]}
        told = {packing.REFERENCE_TYPE: "attestation-manifest", packing.REFERENCE_DIGEST: manifest["digest"]}
        entries = [
            {**manifest, "platform": {"os": "linux", "architecture": "amd64"}},
            {**put(image_spec.OCI_MANIFEST, about), "annotations": told},
            {**manifest, "digest": digests.of(b"elsewhere"), "platform": {"os": "linux", "architecture": "s390x"}},
        ]
        return put(image_spec.OCI_INDEX, {"schemaVersion": 2, "mediaType": image_spec.OCI_INDEX, "manifests": entries})

    def read(descriptor: Any) -> Any:
        return json.loads(content.read(images.client, descriptor["digest"]))

    value = manifest["digest"].partition(":")[2]
    subjects = [{"name": "_", "digest": {"sha256": value}}, {"name": "other", "digest": {"sha256": "0" * 64}}]
    for number, bad in enumerate(({"subject": 3}, {"subject": [{}]}, {})):
        target = index(bad)
        images.set_name(f"docker.io/library/bad:{number}", target, manifest["digest"])
        name = images.lookup(f"bad:{number}")[0]
        assert packing.packed(images, name, NOBODY) == name
    before = index({"_type": "t", "subject": subjects, "predicate": {"\u00fc": 1}})
    images.set_name("docker.io/library/both:1", before, manifest["digest"])
    name = packing.packed(images, images.lookup("both:1")[0], NOBODY)
    assert name.target["digest"] != before["digest"] and name.target["mediaType"] == image_spec.OCI_INDEX
    own, about, elsewhere = read(name.target)["manifests"]
    assert own["platform"] == {"os": "linux", "architecture": "amd64"} and own["digest"] == name.meant
    assert elsewhere["digest"] == digests.of(b"elsewhere")
    (layer,) = read(own)["layers"]
    assert layer["mediaType"] == image_spec.OCI_LAYER_GZIP
    assert about["annotations"][packing.REFERENCE_DIGEST] == own["digest"]
    (layer,) = read(about)["layers"]
    assert read(read(about)["config"])["rootfs"]["diff_ids"] == [layer["digest"]]
    assert layer["annotations"] == {"in-toto.io/predicate-type": "p"}
    subjects[0]["digest"]["sha256"] = own["digest"].partition(":")[2]
    assert read(layer) == {"_type": "t", "subject": subjects, "predicate": {"\u00fc": 1}}
    assert images.resolve("both:1").id == images.resolve("one").id
    assert packing.packed(images, name, NOBODY) == name


def test_what_is_no_archive_of_images_is_refused(engine: Engine) -> None:
    with pytest.raises(BadRequest):
        list(load.load(engine.images, io.BytesIO(b"no archive" * 200)))
    with pytest.raises(BadRequest):
        list(load.import_(engine.images, io.BytesIO(b"short"), "", "", [], ""))
    with pytest.raises(NotFound):
        save.save(engine.images, ["nothing"])
    assert names(engine) == set()


def test_an_image_in_use_stays(engine: Engine) -> None:
    identity = imported(engine, "docker.io/library/one:latest", file="text")
    user = parts.container(engine, "user")
    user.image_id = identity
    with pytest.raises(Conflict, match="container .* is using its referenced image"):
        removal.remove(engine.images, engine.containers, "one")
    assert removal.prune(engine.images, engine.containers, {"dangling": ["false"]})["ImagesDeleted"] is None
    engine.containers.remove(user)
    gone = removal.remove(engine.images, engine.containers, "one")
    assert gone[0] == {"Untagged": "one:latest"}
    assert {"Deleted": identity} in gone
    assert names(engine) == set()


def test_prune_takes_those_without_a_name(engine: Engine) -> None:
    first = imported(engine, "", file="1")
    imported(engine, "docker.io/library/one:latest", file="2")
    done = removal.prune(engine.images, engine.containers, {})
    assert {"Deleted": first} in done["ImagesDeleted"]
    assert done["SpaceReclaimed"] > 0
    assert names(engine) == {"docker.io/library/one:latest"}


def test_a_removal_reads_nothing_of_those_that_stay(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else many of them would take as long as their number squared. What is remembered is of names that are there."""
    from teu.api.services.images.v1 import images_pb2

    for number in range(5):
        imported(engine, f"docker.io/library/many:{number}", file=str(number))
    engine.images.all()
    read: list[str] = []
    document = engine.images.document
    monkeypatch.setattr(
        engine.images, "document", lambda digest, what: (read.append(digest), document(digest, what))[1]
    )
    for number in range(3):
        removal.remove(engine.images, engine.containers, f"many:{number}")
    assert names(engine) == {"docker.io/library/many:3", "docker.io/library/many:4"}
    assert len(read) <= 3  # what each of the three was
    engine.containerd.images.Delete(images_pb2.DeleteImageRequest(name="docker.io/library/many:3", sync=True))
    assert [each[0].name for each in engine.images.by_id().values()] == ["docker.io/library/many:4"]
    assert len(engine.images._details) == 1


def test_what_was_left_half_made_is_swept(engine: Engine) -> None:
    """A lease of an engine that was killed, and with it what it kept."""
    from teu.api.services.leases.v1 import leases_pb2

    client = engine.containerd
    client.leases.Create(leases_pb2.CreateRequest(id="teud-" + "0" * 32))
    client.leases.Create(leases_pb2.CreateRequest(id="somebody"))
    with client.lease() as working:
        assert sweep.sweep(engine, start=True)
        left = {lease.id for lease in client.leases.List(leases_pb2.ListRequest()).leases}
        assert left == {"somebody", working}


def test_without_a_containerd_it_is_said(tmp_path: Path) -> None:
    engine = parts.engine(tmp_path)
    with pytest.raises(containerd.Unavailable):
        engine.images.names(timeout=1)
    engine.containerd.close()
