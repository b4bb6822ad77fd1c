# SPDX-License-Identifier: Apache-2.0
"""cache.db: results are found by any key, forgotten without a trace, and there after a kill."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from teu.buildkit.cache import keys
from teu.buildkit.cache import store as cache_store
from teu.buildkit.cache.contenthash import Selection
from teu.buildkit.cache.database import Unusable
from teu.buildkit.cache.store import CACHE_MOUNT, Record, Store
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import SCRATCH

SRC = Path(__file__).resolve().parents[3] / "src"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path / "cache.db"), clock=iter(range(1000, 100000)).__next__)
    yield made
    made.close()


def count(tmp_path: Path, table: str) -> int:
    with sqlite3.connect(tmp_path / "cache.db") as other:
        return int(other.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_root_keys_are_those_of_buildkit() -> None:
    """sha256 of "DIGEST@OUTPUT"."""
    assert keys.root("sha256:aa", 0) == "sha256:" + __import__("hashlib").sha256(b"sha256:aa@0").hexdigest()
    assert keys.root("random:aa", 0).startswith("random:")


def test_a_result_is_found_by_any_of_its_keys(store: Store) -> None:
    by_definition, by_content = ("root-a", "selector"), ("content-a", "")
    store.save("K", "op", 0, [[by_definition, by_content], [("root-b", "")]], "result")
    for link in (by_definition, by_content):
        assert store.linked([link], 0, "op", 0) == {"K"}
    assert store.linked([("root-a", "")], 0, "op", 0) == set()
    assert store.linked([by_content], 1, "op", 0) == set()
    assert store.linked([by_content], 0, "op", 1) == set()
    assert store.linked([by_content], 0, "other", 0) == set()
    assert [one.id for one in store.results("K")] == ["result"]
    assert keys.intersection([store.linked([by_content], 0, "op", 0), store.linked([("root-b", "")], 1, "op", 0)]) == {
        "K"
    }


def test_several_results_the_newest_first(store: Store) -> None:
    store.save("K", "op", 0, [], "old")
    store.save("K", "op", 0, [], "new")
    assert [one.id for one in store.results("K")] == ["new", "old"]
    assert store.keys_of("old") == ["K"]
    store.forget("new")
    assert [one.id for one in store.results("K")] == ["old"]


def test_what_leads_nowhere_is_forgotten(store: Store, tmp_path: Path) -> None:
    store.save("A", "a", 0, [], "ra")
    store.save("B", "b", 0, [[("A", "")]], "rb")
    store.save("C", "c", 0, [[("B", "s"), ("content", "")]], "rc")
    store.forget("rb")
    # B has no result, but leads to one that has.
    assert store.linked([("A", "")], 0, "b", 0) == {"B"}
    assert store.backlinks("C") == [("B", 0, "c", 0, "s"), ("content", 0, "c", 0, "")]
    store.forget("rc")
    assert store.linked([("A", "")], 0, "b", 0) == set()
    assert [one.id for one in store.results("A")] == ["ra"]
    store.forget("ra")
    assert (count(tmp_path, "links"), count(tmp_path, "results")) == (0, 0)


def test_what_leads_to_the_empty_root_is_bounded(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No record goes with which it would be forgotten: the oldest of it goes by itself, with its links."""
    monkeypatch.setattr(cache_store, "EMPTY_MAX", 5)
    monkeypatch.setattr(cache_store, "EMPTY_STEP", 3)
    store.save("base", "op", 0, [], "r")
    for number in range(30):
        store.save(f"K{number:02}", f"op{number}", 0, [[("base", ""), (f"content{number}", "")]], SCRATCH)
        assert count(tmp_path, "results") <= 1 + 5 + 3
    store.forget_oldest(SCRATCH, 5)
    assert store.keys_of(SCRATCH) == [f"K{number}" for number in range(25, 30)]
    assert (count(tmp_path, "links"), count(tmp_path, "results")) == (10, 6)
    store.forget_oldest(SCRATCH, 0)
    assert (count(tmp_path, "links"), count(tmp_path, "results")) == (0, 1)


def test_forgetting_goes_through_circles(store: Store, tmp_path: Path) -> None:
    store.save("A", "op", 0, [[("B", "")]], "r")
    store.save("B", "op", 0, [[("A", "")]], "")
    store.forget("r")
    assert store.results("A") == []


def test_random_keys_are_not_kept(store: Store, tmp_path: Path) -> None:
    store.save(keys.root("random:1", 0), "random:1", 0, [], "r")
    store.save("K", "op", 0, [[(keys.root("random:1", 0), ""), ("content", "")]], "r2")
    assert count(tmp_path, "results") == 1
    assert count(tmp_path, "links") == 1


def test_records(store: Store) -> None:
    made = store.add(Record("1", description="pulled from x", data={"snapshot": "s"}))
    assert made.created == 1000
    store.add(Record("2", ("1",), mutable=True, kind=CACHE_MOUNT, retained=True))
    store.use("1")
    store.use("1")
    store.change("2", size=12, mutable=False, data={"a": 1})
    one, two = store.records()
    assert (one.used, one.uses, one.data) == (1003, 2, {"snapshot": "s"})
    assert (two.size, two.mutable, two.parents, two.kind, two.data) == (12, False, ("1",), CACHE_MOUNT, {"a": 1})
    with pytest.raises(TypeError):
        store.change("1", id="x")
    with pytest.raises(sqlite3.IntegrityError):
        store.add(Record("1"))


def test_a_dying_record_has_no_keys(store: Store) -> None:
    store.add(Record("1"))
    store.save("K", "op", 0, [], "1")
    store.give_up(["1"])
    assert store.results("K") == [] and store.records() == []
    assert [one.id for one in store.records(dying=True)] == ["1"]
    store.remove("1")
    assert store.records(dying=True) == []


def test_trees_are_kept_with_their_records(store: Store, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file").write_text("x")
    root = os.open(tmp_path / "root", os.O_PATH)
    store.add(Record("1"))
    tree = store.tree("1")
    whole = tree.checksum(root, Selection())
    store.keep_tree("1", tree)
    again = store.tree("1")
    assert again.checksum(root, Selection()) == whole and again.hashed == 0
    store.remove("1")
    tree.changed("file")
    store.keep_tree("1", tree)
    assert count(tmp_path, "trees") == 0
    os.close(root)


def test_it_is_there_after_a_kill(tmp_path: Path) -> None:
    """Each line that was said is of a save that had returned."""
    script = f"""
import sys; sys.path.insert(0, {str(SRC)!r})
from teu.buildkit.cache.store import Record, Store
store = Store({str(tmp_path / "cache.db")!r})
for number in range(100000):
    store.add(Record(f"r{{number}}"))
    store.save(f"K{{number}}", "op", 0, [[("content", str(number))]], f"r{{number}}")
    print(number, flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    lines = [int(child.stdout.readline()) for _ in range(Random(3).randint(20, 60))]
    child.send_signal(signal.SIGKILL)
    lines += [int(line) for line in child.stdout.read().split()]
    child.wait()
    again = Store(str(tmp_path / "cache.db"))
    for number in lines:
        assert [one.id for one in again.results(f"K{number}")] == [f"r{number}"]
        assert again.linked([("content", str(number))], 0, "op", 0) == {f"K{number}"}
        assert again.record(f"r{number}") is not None
    again.close()


@pytest.mark.parametrize("damage", ["garbage", "empty table", "cut"])
def test_a_damaged_file_is_moved_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "cache.db"
    store = Store(str(path))
    for number in range(200):
        store.save(f"K{number}", "op", 0, [], f"r{number}")
    store.close()
    if damage == "garbage":
        path.write_bytes(b"garbage" * 1000)
    elif damage == "cut":
        os.truncate(path, os.path.getsize(path) // 2)
    else:
        with sqlite3.connect(path) as other:
            other.execute("DROP TABLE links")
        other.close()
    store = Store(str(path))
    assert store.begun_anew and store.results("K1") == []
    assert [name for name in os.listdir(tmp_path) if ".damaged-" in name]
    store.save("K", "op", 0, [], "r")
    store.close()


def test_a_newer_file_is_left_alone(tmp_path: Path) -> None:
    Store(str(tmp_path / "cache.db")).close()
    with sqlite3.connect(tmp_path / "cache.db") as other:
        other.execute("PRAGMA user_version=99")
    other.close()
    with pytest.raises(Unusable, match="newer teu-buildkitd"):
        Store(str(tmp_path / "cache.db"))
    assert not [name for name in os.listdir(tmp_path) if ".damaged-" in name]


def test_a_full_disk_is_told_as_what_it_is(store: Store, tmp_path: Path) -> None:
    """And nothing of what did not fit is there; what fits goes on."""
    store.save("A", "op", 0, [], "r")
    pages = store._database.one("PRAGMA page_count")[0]
    store._database.one(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(errors.ResourceExhausted, match=r"cache\.db: no space left on device"):
        for number in range(1000):
            store.save(f"K{number}", "op" * 100, 0, [], f"r{number}")
    assert [one.id for one in store.results("A")] == ["r"]
    store._database.one("PRAGMA max_page_count = 1000000")
    store.save("B", "op", 0, [], "r")
    assert store.keys_of("r") == ["A", "B"]
    assert (tmp_path / "cache.db-reserve").stat().st_size in (0, 1 << 20)


def test_many_threads_save_and_forget(store: Store, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(20):
                store.save(f"K{step}", "op", 0, [[("content", str(step))]], f"r{number}-{step}")
                store.linked([("content", str(step))], 0, "op", 0)
                store.forget(f"r{number}-{step}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert (count(tmp_path, "links"), count(tmp_path, "results")) == (0, 0)
