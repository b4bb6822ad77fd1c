# SPDX-License-Identifier: Apache-2.0
"""One record never stops teu-containerd: every column of every kind of record is poisoned, and the file is damaged.

With the real daemon: records are made through its API, changed in metadata.db while it is away, and looked at, deleted
and worked beside through the API again.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from containerd_parts import Daemon, root_only

pytestmark = root_only

API = "containerd.services"
DIGEST = "sha256:" + "a" * 64
POISONS = [
    None,
    7,
    "poison",
    "[7]",
    '{"a": 7}',
    '{"a": "\\ud800"}',
    "[" * 5000,
    b"\xff\xfe",
    b"",
    -(1 << 63),
    1 << 62,
    1.5,
]


def containers(daemon: Daemon) -> dict[str, Any]:
    return {one.id: one for one in daemon.call(f"{API}.containers.v1.Containers", "List").containers}


def images(daemon: Daemon) -> dict[str, Any]:
    return {one.name: one for one in daemon.call(f"{API}.images.v1.Images", "List").images}


def leases(daemon: Daemon) -> dict[str, Any]:
    return {one.id: one for one in daemon.call(f"{API}.leases.v1.Leases", "List").leases}


def sandboxes(daemon: Daemon) -> dict[str, Any]:
    return {one.sandbox_id: one for one in daemon.call(f"{API}.sandbox.v1.Store", "List").list}


def streamed(daemon: Daemon, service: str, method: str, **fields: Any) -> list[Any]:
    from containerd_parts import find_method

    found = find_method(service, method)
    with daemon.channel() as channel:
        stub = channel.unary_stream(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=found.output_type._concrete_class.FromString,
        )
        request = found.input_type._concrete_class(**fields)
        answers = stub(request, timeout=30, metadata=[("containerd-namespace", "default")])
        return [info for answer in answers for info in answer.info]


def snapshots(daemon: Daemon) -> dict[str, Any]:
    return {one.name: one for one in streamed(daemon, f"{API}.snapshots.v1.Snapshots", "List", snapshotter="native")}


def blobs(daemon: Daemon) -> dict[str, Any]:
    return {one.digest: one for one in streamed(daemon, f"{API}.content.v1.Content", "List")}


def make(daemon: Daemon) -> None:
    daemon.call(
        f"{API}.containers.v1.Containers",
        "Create",
        container={
            "id": "model",
            "image": "model",
            "runtime": {"name": "io.containerd.teu.v2"},
            "snapshotter": "native",
            "snapshot_key": "model",
            "labels": {"a": "b"},
            "spec": {"type_url": "spec", "value": b"{}"},
        },
    )
    daemon.call(
        f"{API}.images.v1.Images",
        "Create",
        image={
            "name": "model",
            "labels": {"a": "b"},
            "target": {"media_type": "m", "digest": DIGEST, "size": 5, "annotations": {"k": "v"}},
        },
    )
    daemon.call(f"{API}.leases.v1.Leases", "Create", id="model", labels={"a": "b"})
    daemon.call(
        f"{API}.leases.v1.Leases", "AddResource", id="model", resource={"id": "kept", "type": "snapshots/native"}
    )
    daemon.call(
        f"{API}.sandbox.v1.Store",
        "Create",
        sandbox={"sandbox_id": "model", "runtime": {"name": "io.containerd.teu.v2"}, "labels": {"a": "b"}},
    )
    for key in ("model", "kept"):
        daemon.call(
            f"{API}.snapshots.v1.Snapshots",
            "Prepare",
            snapshotter="native",
            key=key,
            labels={"containerd.io/gc.root": "1"},
        )


TABLES = {
    "containers": ("id", containers, f"{API}.containers.v1.Containers", "Get", "Delete", "id"),
    "images": ("name", images, f"{API}.images.v1.Images", "Get", "Delete", "name"),
    "leases": ("id", leases, f"{API}.leases.v1.Leases", "", "Delete", "id"),
    "sandboxes": ("id", sandboxes, f"{API}.sandbox.v1.Store", "Get", "Delete", "sandbox_id"),
    "snapshots": ("key", snapshots, f"{API}.snapshots.v1.Snapshots", "Stat", "Remove", "key"),
    "blobs": ("digest", blobs, f"{API}.content.v1.Content", "Info", "Delete", "digest"),
}


def poison(database: sqlite3.Connection, table: str, key: str) -> list[tuple[str, str, Any]]:
    """A copy of the model for each column and poison; those that the table's own rules refuse are none."""
    names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    model = dict(zip(names, database.execute(f"SELECT * FROM {table} WHERE {key} = 'model'").fetchone()))
    made = []
    for column in names:
        for value in POISONS:
            identity = f"bad{len(made)}" if table != "blobs" else f"sha256:{len(made):064x}"
            row = {**model, key: identity, column: value}
            if table == "snapshots" and column != "backend":
                row["backend"] = f"default/9{len(made)}/bad"
                database.execute(
                    "INSERT OR IGNORE INTO layers (snapshotter, name, kind, labels, created, updated) "
                    "VALUES (?, ?, 2, '{}', 1, 1)",
                    ("native", row["backend"]),
                )
            try:
                database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(names))})", list(row.values()))
            except sqlite3.IntegrityError:
                continue
            made.append((identity, column, value))
    return made


def delete(daemon: Daemon, table: str, identity: str, namespace: str = "default") -> None:
    _key, _list, service, _get, verb, field = TABLES[table]
    more = {"snapshotter": "native"} if table == "snapshots" else {}
    daemon.call(service, verb, {"containerd-namespace": namespace}, **{field: identity}, **more)


def test_every_column_of_every_record(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    make(daemon)
    assert daemon.stop() == 0
    made = {}
    with sqlite3.connect(daemon.folder / "root/metadata.db") as database:
        database.execute("INSERT INTO blobs VALUES ('default', 'model', 5, '{}', 1, 1)")
        for table, (key, *_rest) in TABLES.items():
            made[table] = poison(database, table, key)
        database.execute("DELETE FROM blobs WHERE digest = 'model'")
        for column in ("ref", "total", "expected", "started", "expires"):
            for number, value in enumerate(POISONS):
                row = {"ref": f"{column}{number}", "total": 1, "expected": "", "started": 1, "expires": 1 << 62}
                with contextlib.suppress(sqlite3.IntegrityError):
                    database.execute(
                        "INSERT INTO ingests (namespace, ref, total, expected, started, expires) "
                        "VALUES ('default', ?, ?, ?, ?, ?)",
                        list({**row, column: value}.values()),
                    )
        database.execute("INSERT INTO lease_resources VALUES ('default', 'model', 'poison', 'x')")
        database.execute("UPDATE namespaces SET labels = '7'")
        for parent in (None, 10**9, "text"):
            database.execute("PRAGMA foreign_keys=OFF")
            database.execute(
                "INSERT INTO layers (snapshotter, name, parent, kind, labels, created, updated) "
                "VALUES ('native', ?, ?, 'kind', '7', 'x', ?)",
                (f"loose/{parent}", parent, b"\xff"),
            )
        database.execute("UPDATE layers SET parent = id WHERE name LIKE 'loose/%'")
    daemon.start()
    assert daemon.call(f"{API}.namespaces.v1.Namespaces", "List").namespaces
    for table, (key, listed, service, get, _verb, field) in TABLES.items():
        shown = listed(daemon)
        damaged = 0
        for identity, column, value in made[table]:
            if column in ("namespace", "snapshotter", key):
                continue  # found by another key, if at all: below
            assert identity in shown, (table, column, value)
            one = shown[identity]
            damaged += "teu.io/damaged" in one.labels
            if get:
                more = {"snapshotter": "native"} if table == "snapshots" else {}
                daemon.call(service, get, **{field: identity}, **more)
        assert damaged > len(made[table]) // 4, table
        assert any(name.startswith("damaged-") for name in shown), table  # who has lost its key
        if table != "blobs":
            assert "teu.io/damaged" not in shown["model"].labels, table
    ingests = daemon.call(f"{API}.content.v1.Content", "ListStatuses").statuses
    assert len(ingests) > 40
    for one in ingests:
        daemon.call(f"{API}.content.v1.Content", "Abort", ref=one.ref)
    # What is damaged is not written back, and no task is made of it.
    bad = next(one.id for one in containers(daemon).values() if "record" in one.labels.get("teu.io/damaged", ""))
    for method, fields in (
        (
            "containers.v1.Containers/Update",
            {"container": {"id": bad, "labels": {"x": "y"}}, "update_mask": {"paths": ["labels.x"]}},
        ),
        ("tasks.v1.Tasks/Create", {"container_id": bad}),
    ):
        with pytest.raises(grpc.RpcError) as refusal:
            daemon.call(f"{API}.{method.split('/')[0]}", method.split("/")[1], **fields)
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "is damaged" in refusal.value.details()
    # Everything else goes on: the collector does not take what a damaged record may need.
    daemon.call(
        f"{API}.containers.v1.Containers",
        "Create",
        container={"id": "new", "runtime": {"name": "io.containerd.teu.v2"}},
    )
    daemon.call(f"{API}.leases.v1.Leases", "Delete", id="model", sync=True)
    assert "kept" in snapshots(daemon)
    delete(daemon, "containers", "new")
    # All of it can be deleted, and then the collector works again.
    for table, (_key, listed, *_rest) in TABLES.items():
        for _ in range(2):  # children first
            for identity in listed(daemon):
                if identity not in ("model", "kept"):
                    with contextlib.suppress(grpc.RpcError):
                        delete(daemon, table, identity)
        assert not [identity for identity in listed(daemon) if identity not in ("model", "kept")]
    log = (daemon.folder / "log").read_text()
    assert "Traceback" not in log
    assert "is damaged" in log


def test_the_collector_waits_for_damaged_records(make_daemon: Callable[..., Daemon]) -> None:
    """A record whose labels cannot be read may need anything in its namespace, and nothing in another."""
    daemon = make_daemon()
    for namespace in ("default", "other"):
        headers = {"containerd-namespace": namespace}
        for key in ("loose", "second"):
            daemon.call(
                f"{API}.snapshots.v1.Snapshots",
                "Prepare",
                headers,
                snapshotter="native",
                key=key,
                labels={"containerd.io/gc.root": "1"},
            )
        daemon.call(f"{API}.leases.v1.Leases", "Create", headers, id="lease")
    assert daemon.stop() == 0
    with sqlite3.connect(daemon.folder / "root/metadata.db") as database:
        database.execute("UPDATE snapshots SET labels = '{}' WHERE key = 'loose'")
        database.execute("UPDATE leases SET labels = 'poison' WHERE namespace = 'default'")
    daemon.start()
    collect = (f"{API}.leases.v1.Leases", "Delete")
    daemon.call(f"{API}.leases.v1.Leases", "Create", id="another")
    daemon.call(*collect, id="another", sync=True)
    assert set(snapshots(daemon)) == {"loose", "second"}
    with pytest.raises(grpc.RpcError):
        daemon.call(
            f"{API}.snapshots.v1.Snapshots",
            "Stat",
            {"containerd-namespace": "other"},
            snapshotter="native",
            key="loose",
        )
    daemon.call(*collect, id="lease", sync=True)
    assert set(snapshots(daemon)) == {"second"}


# -- files that cannot be read ---------------------------------------------------------------------------


def outcome(daemon: Daemon) -> int:
    """How the daemon takes its files: 0, and it serves lists, or the status that it ended with."""
    log = daemon.folder / "log"
    log.unlink(missing_ok=True)
    try:
        daemon.start()
    except AssertionError:
        assert daemon.process is not None
        status = daemon.process.wait(30)
        text = log.read_text()
        assert "Traceback" not in text, text
        assert str(daemon.folder / "root/metadata.db") in text
        assert "move" in text
        return status
    for _key, listed, *_rest in TABLES.values():
        listed(daemon)
    daemon.kill()
    assert "Traceback" not in log.read_text(), log.read_text()
    return 0


def restore(daemon: Daemon, files: dict[str, bytes]) -> Path:
    database = daemon.folder / "root/metadata.db"
    for end in ("", "-wal", "-shm"):
        path = Path(f"{database}{end}")
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if end in files:
            path.write_bytes(files[end])
    return database


@pytest.fixture
def stopped(make_daemon: Callable[..., Daemon]) -> tuple[Daemon, dict[str, bytes]]:
    daemon = make_daemon()
    make(daemon)
    for number in range(30):
        daemon.call(f"{API}.leases.v1.Leases", "Create", id=f"lease{number}", labels={"long": "x" * 500})
    daemon.kill()
    database = daemon.folder / "root/metadata.db"
    return daemon, {end: Path(f"{database}{end}").read_bytes() for end in ("", "-wal")}


def test_files_that_are_none(stopped: tuple[Daemon, dict[str, bytes]]) -> None:
    daemon, files = stopped

    def folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def statement(sql: str) -> Callable[[Path], None]:
        def damage(path: Path) -> None:
            with sqlite3.connect(path) as database:
                database.execute(sql)

        return damage

    def of_another_kind(path: Path) -> None:
        path.write_bytes(b"no database, whatever its name says" * 100)
        Path(f"{path}-wal").unlink()  # all pages are in it still

    damages: dict[str, Callable[[Path], None]] = {
        "empty": lambda path: os.truncate(path, 0),
        "folder": folder,
        "journal": lambda path: folder(Path(f"{path}-wal")),
        "newer": statement("UPDATE meta SET value = '999' WHERE key = 'version'"),
        "version": statement("UPDATE meta SET value = 'x' WHERE key = 'version'"),
        "no table": statement("DROP TABLE leases"),
        "no column": statement("ALTER TABLE images RENAME COLUMN target TO aim"),
        "other": of_another_kind,
    }
    for name, damage in damages.items():
        path = restore(daemon, files)
        damage(path)
        assert outcome(daemon) == 65, name
    restore(daemon, files)
    assert outcome(daemon) == 0


def test_files_cut_and_overwritten_anywhere(stopped: tuple[Daemon, dict[str, bytes]]) -> None:
    daemon, files = stopped
    dice = random.Random(9)
    found = set()
    for number in range(10):
        path = restore(daemon, files)
        victim = Path(f"{path}{dice.choice(['', '-wal'])}")
        data = bytearray(victim.read_bytes())
        if number % 2:
            del data[dice.randrange(1, len(data)) :]
        else:
            for _ in range(dice.choice((1, 20, 400))):
                data[dice.randrange(len(data))] = dice.randrange(256)
        victim.write_bytes(data)
        found.add(outcome(daemon))
    assert found <= {0, 65}


def test_an_emptied_file_beside_nothing_is_a_first_start(tmp_path: Path, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon.kill()
    root = daemon.folder / "root"
    shutil.rmtree(root)
    root.mkdir()
    (root / "metadata.db").touch()
    daemon.start()
    assert containers(daemon) == {}
