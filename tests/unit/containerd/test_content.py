# SPDX-License-Identifier: Apache-2.0
"""The content store's contract: resume, locks, verification, sharing between namespaces, collection."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from containerd_parts import make_context
from layertools import digest

from teu.api.services.content.v1 import content_pb2
from teu.containerd.core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from teu.containerd.state import Context

DATA = os.urandom(300_000)


def put(context: Context, data: bytes, namespace: str = "n", **labels: str) -> str:
    with context.content.writer(namespace, "put", total=len(data)) as writer:
        writer.truncate()
        writer.write(data)
        return writer.commit(len(data), digest(data), labels)


def read(context: Context, name: str, namespace: str = "n") -> bytes:
    with open(context.content.open(namespace, name), "rb") as file:
        return file.read()


def test_commit_and_read(context: Context) -> None:
    name = put(context, DATA, a="b")
    assert name == digest(DATA)
    info = context.content.info("n", name)
    assert (info.size, dict(info.labels)) == (len(DATA), {"a": "b"})
    assert read(context, name) == DATA
    assert os.stat(context.content.path(name)).st_mode & 0o222 == 0
    with pytest.raises(NotFound):
        context.content.status("n", "put")
    with pytest.raises(AlreadyExists):
        context.content.writer("n", "again", expected=name)


def test_resume_after_restart(tmp_path: Path) -> None:
    first = make_context(tmp_path)
    with first.content.writer("n", "ref", total=len(DATA)) as writer:
        writer.write(DATA[:100_000])
    first.close()
    second = make_context(tmp_path)
    assert second.content.status("n", "ref").offset == 100_000
    with second.content.writer("n", "ref", total=len(DATA)) as writer:
        assert writer.offset == 100_000
        writer.write(DATA[100_000:])
        assert writer.commit(len(DATA), digest(DATA), {}) == digest(DATA)
    second.close()


def test_a_resumed_writer_knows_when_the_last_byte_came(context: Context) -> None:
    """Not when the ingest began, and not by the kernel's stamp of the file, which may be from before the byte came."""
    with context.content.writer("n", "ref", total=len(DATA)) as writer:
        began = time.time_ns()
        writer.write(DATA[:100])
        written = writer.updated
    assert began <= written <= time.time_ns()
    with context.content.writer("n", "ref", total=len(DATA)) as writer:
        assert writer.updated == written > writer.started
    assert context.content.status("n", "ref").updated_at.ToNanoseconds() == written


def test_one_writer_at_a_time(context: Context) -> None:
    with context.content.writer("n", "ref"):
        with pytest.raises(Unavailable, match="locked"):
            context.content.writer("n", "ref")
        context.content.writer("other", "ref").close()
    context.content.writer("n", "ref").close()


def test_wrong_size_and_digest(context: Context) -> None:
    writer = context.content.writer("n", "ref")
    writer.write(b"abc")
    with pytest.raises(FailedPrecondition, match="failed size validation: 3 != 4"):
        writer.commit(4, "", {})
    writer = context.content.writer("n", "ref")
    with pytest.raises(FailedPrecondition, match="unexpected commit digest"):
        writer.commit(3, digest(b"abd"), {})
    assert context.content.status("n", "ref").offset == 3
    context.content.abort("n", "ref")
    assert os.listdir(context.content.ingests) == []
    assert not list(context.content.find("n"))


def test_namespaces_share_files_not_sight(context: Context) -> None:
    name = put(context, DATA, "a")
    with pytest.raises(NotFound):
        context.content.info("b", name)
    with pytest.raises(NotFound):
        context.content.open("b", name)
    with context.content.writer("b", "ref", expected=name) as writer:
        assert writer.offset == len(DATA)  # no data is needed
        writer.commit(len(DATA), name, {})
    assert read(context, name, "b") == DATA
    labels = content_pb2.Info(digest=name, labels={"containerd.io/gc.root": "now"})
    context.content.update("b", labels, ["labels"])
    context.content.delete("a", name)
    context.collector.collect()
    assert read(context, name, "b") == DATA


def test_writing_over_a_shared_blob_makes_a_file_of_its_own(context: Context) -> None:
    name = put(context, b"shared", "a")
    with context.content.writer("b", "ref", expected=name) as writer:
        writer.truncate()
        writer.write(b"other")
        assert writer.commit(5, "", {}) == digest(b"other")
    assert read(context, name, "a") == b"shared"
    assert read(context, digest(b"other"), "b") == b"other"


def test_labels_and_filters(context: Context) -> None:
    one, two = put(context, b"1", a="x"), put(context, b"2", b="y")
    assert [info.digest for info in context.content.find("n", ["labels.a==x"])] == [one]
    assert [info.digest for info in context.content.find("n", [f"digest=={two}"])] == [two]
    info = content_pb2.Info(digest=one, labels={"a": "", "c": "d"})
    updated = context.content.update("n", info, ["labels.a", "labels.c"])
    assert dict(updated.labels) == {"c": "d"}
    with pytest.raises(InvalidArgument, match='cannot update "size"'):
        context.content.update("n", info, ["size"])
    with pytest.raises(InvalidArgument, match="label key and value length"):
        context.content.update("n", content_pb2.Info(digest=one, labels={"k": "v" * 5000}), ["labels"])


def test_collection_keeps_what_is_being_written(context: Context) -> None:
    kept = put(context, b"kept", **{"containerd.io/gc.root": "now"})
    gone = put(context, b"gone")
    writer = context.content.writer("n", "young")
    writer.write(b"half")
    Path(context.content.path(digest(b"orphan"))).write_bytes(b"orphan")
    context.collector.collect()
    assert [info.digest for info in context.content.find("n")] == [kept]
    assert not os.path.exists(context.content.path(gone))
    assert not os.path.exists(context.content.path(digest(b"orphan")))
    writer.write(b"way")
    assert writer.commit(7, digest(b"halfway"), {}) == digest(b"halfway")


def test_lease_holds_what_is_written_under_it(context: Context) -> None:
    context.leases.create("n", "l", {})
    with context.content.writer("n", "ref", lease="l") as writer:
        writer.write(b"leased")
        name = writer.commit(0, "", {})
    context.collector.collect()
    assert read(context, name) == b"leased"
    context.leases.delete("n", "l")
    context.collector.collect()
    with pytest.raises(NotFound):
        context.content.info("n", name)
    with pytest.raises(NotFound, match='lease "nope"'):
        context.content.writer("n", "ref", lease="nope")


def test_new_content_is_told_of(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once; what was there already is nothing new."""
    told: list[tuple[str, str, int]] = []
    monkeypatch.setattr(
        context.content._events, "publish", lambda space, topic, event: told.append((space, topic, event.size))
    )
    with context.content.writer("n", "ref") as writer:
        writer.write(b"new")
        name = writer.commit(0, "", {})
    with context.content.writer("n", "again") as writer:
        writer.write(b"new")
        with pytest.raises(AlreadyExists):
            writer.commit(0, name, {})
    assert told == [("n", "/content/create", 3)]
