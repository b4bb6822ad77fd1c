# SPDX-License-Identifier: Apache-2.0
"""Caches that travel: what is exported is found again, and what others wrote is read with care."""

from __future__ import annotations

import base64
import json
from random import Random
from typing import Any

import pytest

from teu.buildkit.cache import remote
from teu.buildkit.cache.keys import CONTENT, root
from teu.buildkit.cache.remote import BadCache, Chain, Options, export, inline, read, read_inline, read_manifest, write
from teu.oci import digest as digests

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def sha(text: str) -> str:
    return digests.of(text.encode())


def layer(text: str) -> dict[str, Any]:
    return {
        "mediaType": GZIP,
        "digest": sha(text),
        "size": len(text),
        "annotations": {remote.UNCOMPRESSED: sha(text + "u")},
    }


IMAGE, RUN, COPY = root("image", 0), "derived:run", "derived:copy"
CONTENT_KEY = root("files", CONTENT)
LAYERS = {
    "r-image": [layer("base")],
    "r-run": [layer("base"), layer("run")],
    "r-copy": [layer("base"), layer("run"), layer("copy")],
}


def chains() -> list[Chain]:
    return [
        Chain(IMAGE, "image", 0, (), "r-image", 1.0),
        Chain(CONTENT_KEY, "files", CONTENT, (), "", 0.0),
        Chain(root("local", 0), "local", 0, (), "r-local", 2.0),
        Chain(RUN, "run", 0, (((IMAGE, "sel"),),), "r-run", 3.25),
        Chain(COPY, "copy", 0, (((RUN, ""),), ((CONTENT_KEY, ""), (root("local", 0), ""))), "r-copy", 4.0),
    ]


class Shelf:
    """Layers of results; some are made only when that is allowed."""

    def __init__(self, made: tuple[str, ...] = tuple(LAYERS)) -> None:
        self.made = set(made)
        self.asked: list[tuple[str, bool]] = []

    def __call__(self, result: str, make: bool) -> list[dict[str, Any]] | None:
        self.asked.append((result, make))
        if make and result in LAYERS:
            self.made.add(result)
        return LAYERS[result] if result in self.made else None


def blobs(config: dict[str, Any], record: dict[str, Any]) -> list[str]:
    at, found = record["layers"][0]["layer"], []
    while at != -1:
        found.append(config["layers"][at]["blob"])
        at = config["layers"][at]["parent"]
    return found[::-1]


def test_an_export_is_found_again() -> None:
    exported = export(chains(), Shelf(), "max")
    keys = read("registry", json.dumps(exported.config).encode(), exported.layers)
    (run,) = keys.linked([(root("image", 0), "sel")], 0, "run", 0)
    assert keys.linked([(root("image", 0), "")], 0, "run", 0) == set()
    assert keys.linked([(root("image", 0), "sel")], 0, "run", 1) == set()
    (record,) = keys.results(run)
    assert record.remote == LAYERS["r-run"] and record.created == 3.25
    by_run = keys.linked([(run, "")], 0, "copy", 0)
    by_content = keys.linked([(CONTENT_KEY, "")], 1, "copy", 0)
    by_definition = keys.linked([(root("local", 0), "")], 1, "copy", 0)
    assert by_run == by_content == by_definition
    (copy,) = by_run
    assert keys.results(copy)[0].remote == LAYERS["r-copy"]


def test_min_makes_layers_for_the_result_alone() -> None:
    shelf = Shelf(())
    exported = export(chains(), shelf, "min")
    assert ("r-copy", True) in shelf.asked and ("r-run", False) in shelf.asked
    results = [record for record in exported.config["records"] if "layers" in record]
    assert [record["digest"] for record in results] == [root("copy", 0)]
    assert len(exported.config["records"]) == 5
    shelf = Shelf(())
    results = [record for record in export(chains(), shelf, "max").config["records"] if "layers" in record]
    assert {record["digest"] for record in results} == {root("copy", 0), root("run", 0)}


def test_min_goes_down_to_what_has_layers() -> None:
    """The result itself is of no layer (a local folder, nothing of its own): the next below it is the one."""
    made = chains()
    made.append(Chain("derived:top", "top", 0, (((COPY, ""),),), "r-none", 5.0))
    shelf = Shelf(())
    exported = export(made, shelf, "min")
    assert [record["digest"] for record in exported.config["records"] if "layers" in record] == [root("copy", 0)]
    assert root("top", 0) not in {record["digest"] for record in exported.config["records"]}


def test_what_is_not_to_be_exported() -> None:
    made = chains()
    made[3] = Chain(RUN, "run", 0, made[3].inputs, "r-run", 3.0, export=False)
    made.append(Chain("derived:r", "random:1", 0, (), "r-x", 5.0))
    made.append(Chain("derived:top", "top", 0, (((COPY, ""),), (("derived:r", ""),)), "r-copy", 6.0))
    exported = export(made, Shelf(), "max")
    assert [record["digest"] for record in exported.config["records"] if "layers" in record] == [root("copy", 0)]
    assert export([], Shelf()).empty
    assert export(made[:3], Shelf(), "max").empty


def test_the_same_chains_give_the_same_bytes() -> None:
    first = write(export(chains(), Shelf(), "max"), Options())
    random = Random(1)
    for _ in range(20):
        made = chains()
        head = made[:3]
        random.shuffle(head)
        assert write(export([*head, *made[3:]], Shelf(), "max"), Options()) == first


def test_layers_are_shared() -> None:
    exported = export(chains(), Shelf(), "max")
    config = exported.config
    assert len(config["layers"]) == 3 and len(exported.layers) == 3
    found = {record["digest"]: blobs(config, record) for record in config["records"] if "layers" in record}
    assert found[root("copy", 0)] == [sha("base"), sha("run"), sha("copy")]
    assert found[root("run", 0)] == [sha("base"), sha("run")]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (Options(), remote.OCI_MANIFEST),
        (Options(image_manifest=False), remote.OCI_INDEX),
        (Options(image_manifest=False, oci=False), remote.DOCKER_INDEX),
    ],
)
def test_the_forms_in_a_registry(options: Options, kind: str) -> None:
    exported = export(chains(), Shelf(), "max")
    written = write(exported, options)
    assert written.manifest["mediaType"] == kind == json.loads(written.manifest_data)["mediaType"]
    assert written.config["digest"] == digests.of(written.config_data)
    manifest = read_manifest(written.manifest_data)
    assert manifest.config == written.config
    assert [one["digest"] for one in manifest.layers] == [one["digest"] for one in exported.layers]
    types = {one["mediaType"] for one in manifest.layers}
    assert types == {GZIP if options.oci else "application/vnd.docker.image.rootfs.diff.tar.gzip"}
    assert len(read("r", written.config_data, manifest.layers)) == 2


def test_options_of_an_export() -> None:
    assert Options.parse({}) == Options("min", True, True, False)
    assert Options.parse({"mode": "max", "oci-mediatypes": "false", "ref": "x"}) == Options("max", False, False, False)
    assert Options.parse({"image-manifest": "0", "ignore-error": "true"}) == Options("min", False, True, True)
    for wrong in (
        {"mode": "mid"},
        {"oci-mediatypes": "maybe"},
        {"oci-mediatypes": "false", "image-manifest": "true"},
    ):
        with pytest.raises(ValueError):
            Options.parse(wrong)


def image(records: bytes, count: int = 3) -> bytes:
    return json.dumps(
        {
            "rootfs": {"type": "layers", "diff_ids": [sha(name + "u") for name in ("base", "run", "copy")[:count]]},
            "history": [
                {"created": "2024-01-02T03:04:05.123456789Z", "created_by": "FROM"},
                {"empty_layer": True},
                {"created_by": "RUN"},
            ],
            remote.INLINE_KEY: remote.inline_value(records),
        }
    ).encode()


def test_a_cache_inside_of_an_image() -> None:
    records = inline(export(chains(), Shelf(), "max"), [sha("base"), sha("run"), sha("copy")])
    layers = [{"mediaType": GZIP, "digest": sha(name), "size": 1} for name in ("base", "run", "copy")]
    keys = read_inline("inline", image(records), layers)
    assert keys is not None and len(keys) == 2
    (run,) = keys.linked([(IMAGE, "sel")], 0, "run", 0)
    (record,) = keys.results(run)
    assert [one["digest"] for one in record.remote] == [sha("base"), sha("run")]
    assert record.remote[0]["annotations"][remote.CREATED_AT] == "2024-01-02T03:04:05.123456789Z"
    assert record.remote[1]["annotations"] == {remote.UNCOMPRESSED: sha("runu"), remote.DESCRIPTION: "RUN"}
    # The layers of the manifest are compressed otherwise, the uncompressed ones are the same.
    by_plain = inline(export(chains(), Shelf(), "max"), [sha(name + "u") for name in ("base", "run", "copy")])
    assert by_plain == records


def test_inline_with_other_layers() -> None:
    # Another base below: results are no beginning of the image, and come as chains.
    records = json.loads(inline(export(chains(), Shelf(), "max"), [sha("x"), sha("base"), sha("run"), sha("copy")]))
    assert sorted(record["chains"][0]["layers"] for record in records if "chains" in record) == [[1, 2], [1, 2, 3]]
    assert not any("layers" in record for record in records)
    assert inline(export(chains(), Shelf(), "max"), [sha("x")]) == b""
    document = {
        "layers": [{"blob": sha(name), "parent": -1} for name in ("x", "base", "run", "copy")],
        "records": records,
    }
    keys = read("r", json.dumps(document).encode(), [layer(name) for name in ("x", "base", "run", "copy")])
    (run,) = keys.linked([(IMAGE, "sel")], 0, "run", 0)
    assert [one["digest"] for one in keys.results(run)[0].remote] == [sha("base"), sha("run")]


def test_images_without_a_cache() -> None:
    assert read_inline("i", b'{"rootfs": {"diff_ids": []}}', []) is None
    assert read_inline("i", image(b"[]", 1), []) is None
    with pytest.raises(BadCache):
        read_inline("i", json.dumps({remote.INLINE_KEY: "!", "rootfs": {"diff_ids": []}}).encode(), [])
    manifest = read_manifest(json.dumps({"config": {"mediaType": "x", "digest": sha("c"), "size": 1}}).encode())
    assert manifest.config is None and manifest.image_config is not None
    index = read_manifest(json.dumps({"manifests": [{"mediaType": "x", "digest": sha("c"), "size": 1}]}).encode())
    assert index.config is None and len(index.manifests) == 1


def test_a_parent_that_is_not_written_is_the_first() -> None:
    """Go leaves out a 0."""
    document = {
        "layers": [{"blob": sha("a"), "parent": -1}, {"blob": sha("b")}],
        "records": [{"digest": "K", "layers": [{"layer": 1, "createdAt": "2024-01-01T00:00:00Z"}]}],
    }
    keys = read("r", json.dumps(document).encode(), [layer("a"), layer("b")])
    assert [one["digest"] for one in keys.results("K")[0].remote] == [sha("a"), sha("b")]
    assert read("r", json.dumps(document).encode(), [layer("b")]).results("K") == []


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "no object"),
        ({"records": {}}, "a list was expected"),
        ({"records": [1]}, "invalid record 0"),
        ({"records": [{}]}, "record 0 has no digest"),
        ({"records": [{"digest": "a", "inputs": [[]]}]}, "invalid empty input for record 0"),
        ({"records": [{"digest": "a", "inputs": [[{"link": 0}]]}]}, "invalid looping record"),
        (
            {"records": [{"digest": "a", "inputs": [[{"link": 1}]]}, {"digest": "b", "inputs": [[{"link": 0}]]}]},
            "invalid looping record",
        ),
        ({"records": [{"digest": "a", "inputs": [[{"link": 9}]]}]}, "invalid index 9"),
        ({"records": [{"digest": "a", "inputs": [[{"link": -1}]]}]}, "invalid index -1"),
        ({"records": [{"digest": "a", "layers": [{"layer": 0}]}]}, "invalid index 0"),
        (
            {"layers": [{"blob": sha("a"), "parent": 0}], "records": [{"digest": "a", "layers": [{"layer": 0}]}]},
            "invalid looping layer",
        ),
        ({"layers": [{"blob": 1}], "records": [{"digest": "a", "layers": [{"layer": 0}]}]}, "invalid layer"),
    ],
)
def test_broken_caches_are_refused(document: Any, words: str) -> None:
    with pytest.raises(BadCache, match=words):
        read("r", json.dumps(document).encode(), [layer("a")])


def test_no_bytes_make_a_reader_fall() -> None:
    random = Random(2)
    good = write(export(chains(), Shelf(), "max"), Options())
    for data, reader in (
        (good.config_data, lambda raw: read("r", raw, LAYERS["r-copy"])),
        (good.manifest_data, read_manifest),
        (
            image(inline(export(chains(), Shelf(), "max"), [sha("base")])),
            lambda raw: read_inline("r", raw, [layer("base")]),
        ),
    ):
        for _ in range(400):
            raw = bytearray(data)
            for _ in range(random.randint(1, 4)):
                raw[random.randrange(len(raw))] = random.choice(b'0123456789"{}[],:-a')
            try:
                reader(bytes(raw))
            except BadCache:
                pass
    with pytest.raises(BadCache):
        read("r", b"[" * 100_000, [])
    with pytest.raises(BadCache):
        read_inline("r", image(base64.b64encode(b"x")), [])
