# SPDX-License-Identifier: Apache-2.0
"""Results to images, archives and folders: configurations and their history, manifests, attestations, one digest for
one result; attributes that cannot be meant."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakeworker import Asker, Snapshot, Worker

from teu.buildkit.core import errors
from teu.buildkit.core.exports import (
    BASE_CONFIG,
    CONFIG,
    EPOCH,
    INLINE_CACHE,
    PLATFORMS,
    Attestation,
    Build,
    Part,
    Result,
)
from teu.buildkit.core.snapshots import History, Kind, Layer
from teu.buildkit.exporters import attributes, config, images, provenance, statements, trees
from teu.buildkit.exporters.image import ImageExporter
from teu.buildkit.exporters.registry import Exporters
from teu.buildkit.llb.platforms import Platform
from teu.buildkit.sources.base import Material
from teu.oci import digest as digests

AMD64 = Platform("linux", "amd64")


class Task(Asker):
    def __init__(self) -> None:
        super().__init__()
        self.warned: list[str] = []

    def warn(self, short: str, **more: Any) -> None:
        self.warned.append(short)


def layer(worker: Worker, text: str) -> Layer:
    data = gzip.compress(text.encode(), mtime=0)
    digest = worker.content.write([data])
    diff = digests.of(text.encode())
    descriptor = {
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": digest,
        "size": len(data),
        "annotations": {"containerd.io/uncompressed": diff, "kept": "yes"},
    }
    return Layer(descriptor, diff)


def snapshot(worker: Worker, *texts: str) -> Snapshot:
    made = worker.image([layer(worker, text) for text in texts], Kind())
    assert made is not None
    made.made = [History(f"RUN {text}", 1_700_000_000.5 + number) for number, text in enumerate(texts)]
    return made


def build(**attributes: str) -> Build:
    given = {key.replace("__", ":"): value for key, value in attributes.items()}
    return Build("ref1", "", "dockerfile.v0", given, 1_700_000_000.0, materials)


def materials() -> list[Material]:
    return [
        Material("image", "docker.io/library/alpine:3.19", f"sha256:{'ab' * 32}", AMD64),
        Material("git", "https://me:secret@example.com/x.git#main", "c" * 40),
        Material("local", "context"),
    ]


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


def stored(worker: Worker, digest: str) -> Any:
    return json.loads(worker.content.blobs[digest])


CASES = [
    # what the frontend says, the layers, what stands there in the end: (created_by, created, empty)
    (
        [{"created_by": "ENV A", "empty_layer": True}, {"created_by": "RUN one"}],
        [History("RUN one", 100.0)],
        [("ENV A", "1970-01-01T00:01:40Z", True), ("RUN one", "1970-01-01T00:01:40Z", False)],
    ),
    (
        [{"created_by": "base", "created": "2020-01-01T00:00:00Z"}, {"created_by": "CMD", "empty_layer": True}],
        [History("base"), History("COPY x", 50.25)],
        [
            ("base", "2020-01-01T00:00:00Z", False),
            ("CMD", "1970-01-01T00:00:50.25Z", True),
            ("COPY x", "1970-01-01T00:00:50.25Z", False),
        ],
    ),
    (
        [{"created_by": "a"}, {"created_by": "b"}],
        [History("a", 1.0)],
        [("a", "1970-01-01T00:00:01Z", False), ("b", "1970-01-01T00:00:01Z", True)],
    ),
    (None, [History("only", 3.0)], [("only", "1970-01-01T00:00:03Z", False)]),
    ([{"created_by": "x", "empty_layer": True}], [], [("x", None, True)]),
]


@pytest.mark.parametrize(("given", "made", "told"), CASES)
def test_history_has_an_entry_for_each_layer(given: Any, made: list[History], told: list[Any]) -> None:
    layers = [{"annotations": {"containerd.io/uncompressed": f"sha256:{n}"}} for n, _ in enumerate(made)]
    document = json.loads(config.finished({"history": given} if given else {}, layers, made, None))
    shown = [(one["created_by"], one.get("created"), bool(one.get("empty_layer"))) for one in document["history"]]
    assert shown == told
    assert document["rootfs"] == {"type": "layers", "diff_ids": [f"sha256:{n}" for n, _ in enumerate(made)]}
    assert document.get("created") == told[-1][1]


def test_no_moment_is_after_the_epoch() -> None:
    given = {
        "created": "2024-05-05T10:00:00.5Z",
        "history": [{"created": "1999-01-01T00:00:00Z", "created_by": "old"}, {"created_by": "new"}],
    }
    layers = [{"annotations": {"containerd.io/uncompressed": f"sha256:{n}"}} for n in range(2)]
    document = json.loads(config.finished(given, layers, [History("old"), History("new", 2e9)], 1_000_000_000))
    assert document["created"] == "2001-09-09T01:46:40Z"
    assert [one["created"] for one in document["history"]] == ["1999-01-01T00:00:00Z", "2001-09-09T01:46:40Z"]


def test_what_a_base_says_of_its_past_stays(worker: Worker) -> None:
    """Its moments are the same in every build; from the first entry that is not the base's, the epoch is the limit."""
    base = [
        {"created": "2024-01-01T00:00:00Z", "created_by": "ADD root"},
        {"created": "2024-01-02T00:00:00Z", "created_by": "CMD", "empty_layer": True},
        {"created": "2024-01-03T00:00:00Z", "created_by": "LABEL", "empty_layer": True},
    ]
    own = [{"created_by": "RUN x"}, {"created": "2024-01-03T00:00:00Z", "created_by": "LABEL", "empty_layer": True}]
    given = {"architecture": "amd64", "os": "linux", "history": [{**base[0], "author": ""}, base[1], *own]}
    metadata = {
        CONFIG: json.dumps(given).encode(),
        BASE_CONFIG: json.dumps({**given, "history": base}).encode(),
        EPOCH: b"1000000000",
    }
    exporter = ImageExporter.make(worker, None, {"name": "app"})  # type: ignore[arg-type]
    exporter.export(Task(), Result({"": Part(snapshot(worker, "root", "x"))}, metadata), build())
    manifest = stored(worker, worker.images.targets["docker.io/library/app:latest"]["digest"])
    document = stored(worker, manifest["config"]["digest"])
    assert [one["created"][:4] for one in document["history"]] == ["2024", "2024", "2001", "2001"]
    for broken in (None, {}, {"history": None}, {"history": ["x"]}):
        layers = [{"annotations": {"containerd.io/uncompressed": "sha256:0"}}]
        data = config.finished({"history": base[:1]}, layers, [History("")], 1_000_000_000, base=broken)
        assert json.loads(data)["history"][0]["created"] == "2001-09-09T01:46:40Z"


def test_an_image_of_one_platform(worker: Worker) -> None:
    exporter = ImageExporter.make(worker, None, {"name": "app,app:2,app", "annotation.who": "me"})  # type: ignore[arg-type]
    result = Result({"": Part(snapshot(worker, "one", "two"))}, {CONFIG: b'{"architecture":"amd64","os":"linux"}'})
    answer = exporter.export(Task(), result, build())
    target = worker.images.targets["docker.io/library/app:latest"]
    assert worker.images.targets == {"docker.io/library/app:latest": target, "docker.io/library/app:2": target}
    manifest = stored(worker, target["digest"])
    assert manifest["annotations"] == {"who": "me"}
    assert [one["annotations"] for one in manifest["layers"]] == [{"kept": "yes"}] * 2
    document = stored(worker, manifest["config"]["digest"])
    assert document["rootfs"]["diff_ids"] == [digests.of(b"one"), digests.of(b"two")]
    assert [one["created_by"] for one in document["history"]] == ["RUN one", "RUN two"]
    labels = worker.content.labels[target["digest"]]
    assert labels == {
        "containerd.io/gc.ref.content.config": manifest["config"]["digest"],
        "containerd.io/gc.ref.content.l.0": manifest["layers"][0]["digest"],
        "containerd.io/gc.ref.content.l.1": manifest["layers"][1]["digest"],
    }
    assert answer.values["containerimage.digest"] == target["digest"]
    assert answer.values["containerimage.config.digest"] == manifest["config"]["digest"]
    assert answer.values["image.name"] == "docker.io/library/app:latest,docker.io/library/app:2"
    descriptor = json.loads(base64.b64decode(answer.values["containerimage.descriptor"]))
    assert descriptor["digest"] == target["digest"]


def test_a_name_that_moves_leaves_its_image(worker: Worker) -> None:
    exporter = ImageExporter.make(worker, None, {"name": "app"})  # type: ignore[arg-type]
    exporter.export(Task(), Result({"": Part(snapshot(worker, "one"))}), build())
    first = worker.images.targets["docker.io/library/app:latest"]
    exporter.export(Task(), Result({"": Part(snapshot(worker, "one"))}), build())
    assert worker.images.targets == {"docker.io/library/app:latest": first}
    exporter.export(Task(), Result({"": Part(snapshot(worker, "two"))}), build())
    assert worker.images.targets["docker.io/library/app:latest"] != first
    assert worker.images.targets[f"dangling@{first['digest']}"] == first
    worker.images.targets.clear()
    nameless = ImageExporter.make(worker, None, {"dangling-name-prefix": "dangling@"})  # type: ignore[arg-type]
    nameless.export(Task(), Result({"": Part(snapshot(worker, "one"))}), build())
    assert list(worker.images.targets) == [f"dangling@{first['digest']}"]


def test_an_image_that_is_built_again_leaves_nothing(worker: Worker) -> None:
    """Its attestations tell of another build, so its index is another one; the image in it is the same."""
    exporter = ImageExporter.make(worker, None, {"name": "app"})  # type: ignore[arg-type]
    for number in range(3):
        made = build(attest__provenance="mode=min")
        exporter.export(Task(), Result({"": Part(snapshot(worker, "one"))}), replace(made, started=float(number)))
    assert list(worker.images.targets) == ["docker.io/library/app:latest"]
    before = worker.images.targets["docker.io/library/app:latest"]
    exporter.export(Task(), Result({"": Part(snapshot(worker, "two"))}), build(attest__provenance="mode=min"))
    assert worker.images.targets[f"dangling@{before['digest']}"] == before


def test_an_engines_client_may_name_no_image(worker: Worker) -> None:
    """type=moby: the image is kept, under one name however often it is built, and can be run at once."""
    make = Exporters(worker, None, None)  # type: ignore[arg-type]
    exporter = make("moby", 0, {})
    assert isinstance(exporter, ImageExporter) and exporter.unpack
    exporter = replace(exporter, unpack=False)
    for number in range(2):
        made = replace(build(attest__provenance="mode=min"), started=float(number))
        answer = exporter.export(Task(), Result({"": Part(snapshot(worker, "one"))}), made)
    ((name, target),) = worker.images.targets.items()
    (image, _) = stored(worker, target["digest"])["manifests"]
    assert target["digest"] == answer.values["containerimage.digest"] and name == f"dangling@{image['digest']}"
    assert make("moby", 0, {"store": "false"}) and make("moby", 0, {"unpack": "false"})


def test_layers_for_the_engine_are_not_compressed(worker: Worker) -> None:
    """But where their digests are in something else, and where they go to a registry at once."""
    make = Exporters(worker, None, None)  # type: ignore[arg-type]

    def asked(kind: str, made: Build, metadata: dict[str, bytes] | None = None, **attributes: str) -> str:
        exporter = make(kind, 0, {"name": "app", **attributes})
        assert isinstance(exporter, ImageExporter)
        one: Any = snapshot(worker, "one")
        replace(exporter, unpack=False, push=False).export(Task(), Result({"": Part(one)}, metadata or {}), made)
        return str(one.compressions[-1].kind)

    assert asked("moby", build()) == "uncompressed"
    assert asked("image", build()) == "gzip"
    assert asked("moby", build(attest__provenance="mode=min")) == "uncompressed"
    assert asked("moby", build(), {INLINE_CACHE: b"{}"}) == "gzip"
    assert asked("moby", build(), push="true") == "gzip"
    assert asked("moby", build(), compression="zstd") == "zstd"


def two_platforms(worker: Worker) -> Result:
    platforms = [
        {"ID": "linux/amd64", "Platform": {"os": "linux", "architecture": "amd64"}},
        {"ID": "linux/arm/v7", "Platform": {"os": "linux", "architecture": "arm", "variant": "v7"}},
    ]
    parts = {"linux/amd64": Part(snapshot(worker, "amd")), "linux/arm/v7": Part(snapshot(worker, "arm"))}
    return Result(parts, {PLATFORMS: json.dumps({"Platforms": platforms}).encode(), EPOCH: b"1000000000"})


def test_an_image_of_two_platforms_with_provenance(worker: Worker) -> None:
    given = {
        "name": "app",
        "annotation[linux/arm/v7].only": "arm",
        "annotation-index.all": "index",
        "annotation-manifest-descriptor.in": "index too",
    }
    exporter = ImageExporter.make(worker, None, given)  # type: ignore[arg-type]
    exporter.export(Task(), two_platforms(worker), build(attest__provenance="mode=min", **{"build-arg__A": "secret"}))
    index = stored(worker, worker.images.targets["docker.io/library/app:latest"]["digest"])
    assert index["annotations"] == {"all": "index"}
    assert [one["platform"] for one in index["manifests"]] == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm", "os": "linux", "variant": "v7"},
        {"architecture": "unknown", "os": "unknown"},
        {"architecture": "unknown", "os": "unknown"},
    ]
    assert index["manifests"][0]["annotations"] == {"in": "index too"}
    assert "annotations" not in stored(worker, index["manifests"][0]["digest"])
    assert stored(worker, index["manifests"][1]["digest"])["annotations"] == {"only": "arm"}
    attested = index["manifests"][2]
    assert attested["annotations"] == {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": index["manifests"][0]["digest"],
    }
    (found,) = stored(worker, attested["digest"])["layers"]
    assert found["annotations"] == {"in-toto.io/predicate-type": "https://slsa.dev/provenance/v0.2"}
    statement = stored(worker, found["digest"])
    assert statement["subject"] == [
        {
            "name": "pkg:docker/app@latest?platform=linux%2Famd64",
            "digest": {"sha256": index["manifests"][0]["digest"].removeprefix("sha256:")},
        }
    ]
    assert "secret" not in json.dumps(statement)


def test_attestations_as_artifacts(worker: Worker) -> None:
    """OCI image specification 1.1, "Guidelines for Artifact Usage": an empty configuration, and whom it is of."""
    exporter = ImageExporter.make(worker, None, {"name": "app", "oci-artifact": "true"})  # type: ignore[arg-type]
    exporter.export(Task(), two_platforms(worker), build(attest__provenance="mode=min"))
    index = stored(worker, worker.images.targets["docker.io/library/app:latest"]["digest"])
    manifest = stored(worker, index["manifests"][2]["digest"])
    assert manifest["artifactType"] == "application/vnd.docker.attestation.manifest.v1+json"
    assert manifest["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
        "data": "e30=",
    }
    first = index["manifests"][0]
    assert manifest["subject"] == {name: first[name] for name in ("mediaType", "digest", "size")}
    assert stored(worker, manifest["layers"][0]["digest"])["predicateType"].startswith("https://slsa.dev/provenance")
    assert stored(worker, manifest["config"]["digest"]) == {}


def test_an_archive_of_one_platform_is_no_index_for_what_is_for_images_alone(worker: Worker) -> None:
    """buildx asks for provenance by default, and docker load takes an archive of one image."""
    asked = build(attest__provenance="mode=min,inline-only=true")
    metadata = {
        CONFIG: b'{"architecture":"amd64","os":"linux"}',
        PLATFORMS: b'{"Platforms":[{"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}}]}',
    }
    result = Result({"": Part(snapshot(worker, "one"))}, metadata)
    options = attributes.image_options({"name": "app"}, False, ())
    image = images.assemble(worker, options, Task(), result, asked, None, attested=False)  # type: ignore[arg-type]
    assert image.single and "docker" in image.target["mediaType"]
    image = images.assemble(worker, options, Task(), result, asked, None)  # type: ignore[arg-type]
    assert image.target["mediaType"] == "application/vnd.oci.image.index.v1+json"
    assert "oci" in image.manifests[0].descriptor["mediaType"]


def test_two_builds_of_one_result_have_one_digest(tmp_path: Path) -> None:
    found = set()
    for number in range(2):
        worker = Worker(tmp_path / str(number))
        exporter = ImageExporter.make(worker, None, {"name": "app", "rewrite-timestamp": "true"})  # type: ignore[arg-type]
        result = two_platforms(worker)
        for part in result.parts.values():
            assert part.snapshot is not None
            part.snapshot.made = [History("RUN", 2e9 + number)]  # type: ignore[attr-defined]
        found.add(exporter.export(Task(), result, build()).values["containerimage.digest"])
    assert len(found) == 1


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("image", {"push": "true"}, "tag is needed when pushing to registry"),
        ("image", {"name": "A"}, "failed to parse A"),
        ("image", {"push": "maybe"}, "non-bool value specified for push"),
        ("image", {"compression": "estargz", "oci-mediatypes": "false"}, '"compression=estargz" conflicts with'),
        ("image", {"compression": "lz4"}, "unsupported layer compression type lz4"),
        ("image", {"compression-level": "x"}, "non-integer value x specified for compression-level"),
        ("image", {"annotation-manifest[linux/amd64]": "x"}, "invalid annotation"),
        ("image", {"annotation-config.a": "x"}, "unrecognized annotation type config"),
        ("image", {"annotation-index[linux/amd64].a": "x"}, "index annotations cannot be platform specific"),
        ("image", {"source-date-epoch": "soon"}, "invalid SOURCE_DATE_EPOCH: soon"),
        ("image", {"unpack": "true", "store": "false"}, "store=false"),
        ("oci", {"oci-artifact": "true", "oci-mediatypes": "false"}, '"oci-artifact=true" conflicts with'),
        ("image", {"compression": "zstd", "oci-mediatypes": "false"}, '"compression=zstd" conflicts with'),
        ("image", {"prefer-nondist-layers": "true"}, "prefer-nondist-layers=true"),
        ("docker", {"tar": "false"}, "tar=false is for type=oci"),
        ("local", {"attestation-prefix": "../x"}, "invalid attestation-prefix"),
        ("local", {"mode": "all"}, "invalid local exporter mode"),
        ("nothing", {}, "exporter 'nothing' could not be found"),
    ],
)
def test_what_an_exporter_cannot_be(worker: Worker, kind: str, given: dict[str, str], said: str) -> None:
    with pytest.raises(errors.Error) as refused:
        Exporters(worker, None, None)(kind, 0, given)  # type: ignore[arg-type]
    assert said in refused.value.message


def test_an_attribute_that_nobody_knows_is_named(worker: Worker) -> None:
    task = Task()
    exporter = ImageExporter.make(worker, None, {"colour": "red"})  # type: ignore[arg-type]
    exporter.export(task, Result({"": Part(None)}), build())
    assert task.warned == ["the exporter does not know the attribute colour"]


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (b"{", "failed to parse platforms"),
        (b'{"Platforms": []}', "invalid empty platforms index"),
        (b'{"Platforms": [{"ID": "a", "Platform": {}}]}', "failed to find platform mapping for linux/amd64"),
    ],
)
def test_results_whose_platforms_cannot_be_told(worker: Worker, metadata: bytes, said: str) -> None:
    result = two_platforms(worker)
    result.metadata[PLATFORMS] = metadata
    with pytest.raises(errors.InvalidArgument, match=said):
        images.parts_of(result)
    with pytest.raises(errors.InvalidArgument, match="missing platforms mapping"):
        images.parts_of(Result(result.parts))


def test_a_bill_of_materials_comes_from_the_files_of_a_step(worker: Worker, tmp_path: Path) -> None:
    scanned = snapshot(worker, "scan")
    (scanned.path / "out").mkdir(parents=True)
    (scanned.path / "out/a.json").write_text('{"spdxVersion": "SPDX-2.3"}')
    (scanned.path / "out/link").symlink_to("/etc/passwd")
    (scanned.path / "bundle").mkdir()
    (scanned.path / "bundle/x.json").write_text(
        '{"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "t", "subject": [{"name": "lie"}], '
        '"predicate": 1}'
    )
    one = Attestation(scanned, "/out/a.json", statements.SPDX)
    result = Result({"": Part(None)}, attestations={"": [one, Attestation(scanned, "bundle", bundle=True)]})
    made = statements.of_part(worker, result, build(), "", AMD64, (), inline=True)
    assert [(each.predicate_type, each.predicate, each.file) for each in made] == [
        (statements.SPDX, {"spdxVersion": "SPDX-2.3"}, "sbom.spdx.json"),
        ("t", 1, "x.json"),
    ]
    for path in ("/out/link", "/nothing", "/out"):
        result.attestations[""] = [Attestation(scanned, path, statements.SPDX)]
        with pytest.raises(errors.InvalidArgument):
            statements.of_part(worker, result, build(), "", AMD64, (), inline=True)
    hidden = Attestation(scanned, "/out/a.json", statements.SPDX, metadata={"inline-only": b"true"})
    result.attestations[""] = [hidden]
    assert statements.of_part(worker, result, build(), "", AMD64, (), inline=False) == []


@pytest.mark.parametrize("version", ["v0.2", "v1"])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_provenance(mode: str, version: str) -> None:
    given = {
        "attest:provenance": f"mode={mode},version={version},builder-id=me",
        "filename": "D",
        "build-arg:A": "b",
        "label:x": "y",
        "target": "t",
        "context": "https://me:secret@example.com/x.git#main",
        "vcs:revision": "abc",
        "cgroup-parent": "host",
    }
    build = Build("ref1", "", "dockerfile.v0", given, 1_700_000_000.0, materials)
    asked = provenance.asked(given)
    assert asked is not None
    kind, made = provenance.predicate(asked, Result(), build, "", AMD64)
    text = json.dumps(made)
    assert "secret" not in text
    assert "cgroup-parent" not in text
    assert ("build-arg:A" in text) == (mode == "max")
    if version == "v0.2":
        assert kind == "https://slsa.dev/provenance/v0.2"
        source, dependencies = made["invocation"]["configSource"], made["materials"]
        assert made["metadata"]["completeness"] == {
            "parameters": mode == "max",
            "environment": True,
            "materials": False,
        }
        assert ("buildConfig" in made) == (mode == "max")
        assert source["entryPoint"] == "D"
        assert made["builder"] == {"id": "me"}
    else:
        assert kind == "https://slsa.dev/provenance/v1"
        source = made["buildDefinition"]["externalParameters"]["configSource"]
        dependencies = made["buildDefinition"]["resolvedDependencies"]
        assert source["path"] == "D"
        assert ("buildConfig" in made["buildDefinition"]["internalParameters"]) == (mode == "max")
    assert source["digest"] == {"sha1": "c" * 40}
    assert dependencies == [
        {"uri": "pkg:docker/alpine@3.19?platform=linux%2Famd64", "digest": {"sha256": "ab" * 32}},
        {"uri": "https://xxxxx:xxxxx@example.com/x.git#main", "digest": {"sha1": "c" * 40}},
    ]


def test_whether_there_is_to_be_provenance() -> None:
    assert provenance.asked({}) is None
    assert provenance.asked({"attest:provenance": "disabled=true"}) is None
    assert provenance.asked({"attest:provenance": ""}) == provenance.Asked()
    only = provenance.asked({"build-arg:BUILDKIT_ATTEST_PROVENANCE": "mode=min,inline-only=true"})
    assert only is not None and only.inline_only
    for wrong in ("mode=some", "version=v9", "filename=a/b", "reproducible=x"):
        with pytest.raises(errors.InvalidArgument):
            provenance.asked({"attest:provenance": wrong})


def folder(path: Path, *names: str) -> int:
    for name in names:
        place = path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(name)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[int, int]]:
    one = folder(tmp_path / "one", "a/b", "a-b", "c", "z")
    (tmp_path / "one/link").symlink_to("c")
    os.link(tmp_path / "one/c", tmp_path / "one/d")
    two = folder(tmp_path / "two", "a/x", "b")
    yield one, two
    os.close(one)
    os.close(two)


def test_trees_in_one_archive(opened: tuple[int, int]) -> None:
    """Folders of platforms, files of our own among those of the tree, in the order that a receiver wants; one time."""
    roots = [
        trees.Root(b"linux_arm", opened[1], {}),
        trees.Root(b"linux_amd64", opened[0], {b"b.json": b"{}", b"c": b"own"}),
    ]
    data = b"".join(trees.archive(trees.Whole(roots, 1_000_000_000, 0)))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [
            *("linux_amd64", "linux_amd64/a", "linux_amd64/a/b", "linux_amd64/a-b", "linux_amd64/b.json"),
            *("linux_amd64/c", "linux_amd64/d", "linux_amd64/link", "linux_amd64/z"),
            *("linux_arm", "linux_arm/a", "linux_arm/a/x", "linux_arm/b"),
        ]
        assert {member.mtime for member in members} == {1_000_000_000}
        assert archive.extractfile("linux_amd64/c").read() == b"own"  # type: ignore[union-attr]
        assert archive.extractfile("linux_amd64/a/b").read() == b"a/b"  # type: ignore[union-attr]
        assert archive.extractfile("linux_amd64/b.json").read() == b"{}"  # type: ignore[union-attr]


def test_trees_of_platforms_in_one_place(opened: tuple[int, int], tmp_path: Path) -> None:
    whole = trees.Whole([trees.Root(b"", opened[0]), trees.Root(b"", opened[1])], None, 0)
    assert [entry.path for entry in whole.entries()] == [b"a", b"a/b", b"a/x", b"a-b", b"b", b"c", b"d", b"link", b"z"]
    assert b"".join(whole.read(b"a/x")) == b"a/x"
    assert b"".join(whole.read(b"a/b")) == b"a/b"
    (tmp_path / "two/c").write_text("another")
    with pytest.raises(errors.InvalidArgument, match="cannot overwrite c"):
        list(whole.entries())


def test_attribute_words() -> None:
    assert attributes.words('a=b,"c=d,e",f') == {"a": "b", "c": "d,e", "f": ""}
    assert attributes.boolean({"a": ""}, "a")
    assert statements.purl("localhost:5000/a/b:1", AMD64) == "pkg:docker/localhost%3A5000/a/b@1?platform=linux%2Famd64"
