# SPDX-License-Identifier: Apache-2.0
"""One record never stops the engine: every member of every kind of record is poisoned, files are cut and overwritten.

Records are made through the API, then changed in engine.db while teud is away: one record per poisoned member, all of
them in one database, so that each start of teud meets all of them at once.
"""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
import os
import random
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images
import pytest
import scripted_registry
import whole
from whole import call, eventually, out, show, teu

ROOT = Path("/var/lib/teu/engine")
DATABASE = ROOT / "engine.db"
SOCKET = "/run/teu/teud.sock"
MISSING = object()
POISONS: tuple[tuple[str, Any], ...] = (
    ("null", None),
    ("number", 7),
    ("text", "poison"),
    ("list", [7]),
    ("object", {"poison": 7}),
    ("missing", MISSING),
    ("surrogate", "half \ud800"),
)


def systemctl(verb: str, *units: str, check: bool = True) -> None:
    """start or restart; how often that was done before does not count."""
    call("systemctl", "reset-failed", *units, check=False)
    call("systemctl", verb, *units, check=check)


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(SOCKET)


def api(method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = _Connection("teud")
    try:
        connection.request(
            method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        text = answer.read()
        kind = answer.headers.get("Content-Type", "")
        return answer.status, json.loads(text) if "json" in kind and text.strip() else text
    finally:
        connection.close()


@contextlib.contextmanager
def away() -> Iterator[sqlite3.Connection]:
    """The database while teud is away."""
    call("systemctl", "stop", "teud.service", "teud.socket")
    connection = sqlite3.connect(DATABASE, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()
        call("systemctl", "reset-failed", "teud.service", check=False)
        systemctl("start", "teud.socket")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    images.need_busybox()
    whole.remove_everything()
    yield
    all_removed([entry["Id"] for entry in api("GET", "/containers/json?all=1")[1]])
    for name in out("teu", "network", "ls", "-q", "-f", "type=custom").split():
        teu("network", "rm", name, check=False)
    for name in out("teu", "volume", "ls", "-q").split():
        teu("volume", "rm", name, check=False)
    assert sorted(path.name for path in (ROOT / "volumes").iterdir()) == []
    eventually("nothing is left behind", lambda: not whole.leftovers())


def paths(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every member of a JSON value, however deep."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*here, key)
        yield from paths(inner, (*here, key))


def poisoned(record: Any, path: tuple[Any, ...], poison: Any) -> Any:
    if not path:
        return poison
    result = copy.deepcopy(record)
    place = result
    for key in path[:-1]:
        place = place[key]
    if poison is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = poison
    return result


def dump(record: Any) -> str:
    return json.dumps(record)


def works(name: str) -> None:
    """A good container beside the poisoned ones: it has run on, and all can be done with it."""
    assert out("teu", "exec", name, "echo", "in it") == "in it"
    teu("stop", "-t", "0", name)
    teu("start", name)
    assert whole.inspect(name)["State"]["Status"] == "running"  # type: ignore[index]


def is_removed(container: str) -> None:
    status, answer = api("DELETE", f"/containers/{container}?force=1&v=1")
    assert status == 204, (container, status, answer)
    assert api("GET", f"/containers/{container}/json")[0] == 404


def all_removed(containers: list[str]) -> None:
    """Eight at a time: it is many."""
    left, failures = list(containers), []

    def work() -> None:
        while left:
            with contextlib.suppress(IndexError):
                name = left.pop()
                try:
                    is_removed(name)
                except Exception as error:
                    failures.append((name, error))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_network_that_a_running_container_has_left() -> None:
    """Its record names a network by its mode that it is not on any more."""
    teu("network", "create", "left")
    whole.run_detached("leaver", "sleep", "600", flags=("--network", "left"))
    teu("network", "disconnect", "left", "leaver")
    systemctl("restart", "teud.service")
    assert whole.inspect("leaver")["State"]["Status"] == "running"  # type: ignore[index]
    works_without_network = out("teu", "exec", "leaver", "cat", "/proc/net/dev")
    assert "eth0" not in works_without_network
    whole.run_detached("other", "sleep", "600")
    works("other")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("which", ["stopped", "running"])
def test_every_member_of_a_container(which: str) -> None:
    teu("network", "create", "front")
    whole.run_detached("good", "sleep", "600", flags=("-p", "18081:80", "-v", "kept:/kept"))
    whole.run_detached(
        "model",
        "sleep",
        "600",
        flags=(
            "--network",
            "front",
            "-p",
            "18082:80",
            "-v",
            "modelled:/data",
            "-v",
            "/anonymous",
            "--label",
            "one=1",
            "-e",
            "ONE=1",
            "--health-cmd",
            "true",
            "--health-interval",
            "1h",
            "--ulimit",
            "nofile=100",
            "--dns",
            "192.0.2.1",
            "--add-host",
            "a:192.0.2.2",
            "--cap-add",
            "SYS_TIME",
            "--tmpfs",
            "/tmp",
            "--restart",
            "on-failure:3",
            "--log-driver",
            "json-file",
            "--log-opt",
            "max-size=1m",
            "--sysctl",
            "net.ipv4.ip_forward=0",
            "--network-alias",
            "al",
        ),
    )
    if which == "stopped":
        teu("stop", "-t", "0", "model")
    made = []
    with away() as database:
        row = database.execute("SELECT id, data FROM containers WHERE name = 'model'").fetchone()
        record = json.loads(row[1])
        record["ended"] = [1, 10**18] if which == "stopped" else None
        record["host_config"]["RestartPolicy"] = {"Name": "no", "MaximumRetryCount": 0}
        database.execute("BEGIN")
        for path in [(), *paths(record)]:
            of_its_running = path[:1] in (("state",), ("network_settings",), ("mounts",))
            if path and of_its_running != (which == "running"):
                continue
            for kind, poison in POISONS:
                if not path and poison is MISSING:
                    continue
                identity, name = f"{len(made) + 1:064x}", f"bad{len(made)}"
                data = dump(poisoned({**record, "id": identity, "name": name}, path, poison))
                made.append((identity, path, kind))
                database.execute("INSERT INTO containers VALUES (?, ?, ?)", (identity, name, data))
        # And rows that are no records at all.
        for data in (b"\xff\xfe{", "", "[" * 100_000, '{"id":', b"\0", "NaN", 5):
            identity, name = f"{len(made) + 1:064x}", f"bad{len(made)}"
            made.append((identity, ("the row",), "no JSON"))
            database.execute("INSERT INTO containers VALUES (?, ?, ?)", (identity, name, data))
        database.execute("COMMIT")
    status, listed = api("GET", "/containers/json?all=1&size=0")
    assert status == 200
    shown = {entry["Id"]: entry for entry in listed}
    assert whole.inspect("good")["State"]["Status"] == "running"  # type: ignore[index]
    dead = 0
    for identity, path, kind in made:
        assert identity in shown, (path, kind)
        status, answer = api("GET", f"/containers/{identity}/json")
        assert status == 200, (path, kind, answer)
        state = answer["State"]
        assert (state["Status"] == "dead") == (shown[identity]["State"] == "dead"), (path, kind)
        if state["Status"] == "dead":
            dead += 1
            assert "is damaged: " in state["Error"], (path, kind, state)
            assert not state["Running"]
        if kind == "surrogate" and path:
            assert state["Status"] == "dead", path
    assert dead > len(made) // 2, (dead, len(made))
    for query in ("filters=%7B%22label%22%3A%5B%22one%22%5D%7D", "filters=%7B%22network%22%3A%5B%22front%22%5D%7D"):
        assert api("GET", f"/containers/json?all=1&{query}")[0] == 200
    for other in ("/networks", "/networks/front", "/volumes", "/images/json", "/info"):
        assert api("GET", other)[0] == 200, other
    # What is dead cannot be started, and says why.
    status, answer = api("POST", f"/containers/{made[0][0]}/start")
    assert status == 409
    assert "is damaged" in answer["message"]
    works("good")
    # A second start of teud meets what the first has left.
    systemctl("restart", "teud.service")
    assert len(api("GET", "/containers/json?all=1")[1]) == len(listed)
    # Whatever a member was, the same stands in for it: of each some kinds of poison are enough here.
    all_removed([identity for identity, _path, _kind in made[::3]])
    works("good")
    with away() as database:
        gone = {identity for identity, _path, _kind in made[::3]}
        kept = {row[0] for row in database.execute("SELECT id FROM containers")}
        assert not gone & kept
        assert len(kept) == len(made) - len(gone) + 2
        database.execute("DELETE FROM containers WHERE name LIKE 'bad%'")


def test_a_running_container_whose_record_is_damaged() -> None:
    """Its processes are not touched until it is removed, and nobody gets its address; then all of it goes."""
    identity = whole.run_detached("broken", "sleep", "600", flags=("-p", "18083:80"))
    address = whole.inspect("broken")["NetworkSettings"]["IPAddress"]  # type: ignore[index]
    pid = whole.inspect("broken")["State"]["Pid"]  # type: ignore[index]
    with away() as database:
        data = json.loads(database.execute("SELECT data FROM containers").fetchone()[0])
        data["host_config"]["LogConfig"] = data["config"]["Env"] = 7
        database.execute("UPDATE containers SET data = ?", (dump(data),))
    state: dict[str, Any] = whole.inspect("broken")["State"]  # type: ignore[assignment]
    assert (state["Status"], state["Running"], state["Pid"]) == ("dead", False, pid)
    assert "config.Env is a number" in state["Error"]
    assert "host_config.LogConfig is a number" in state["Error"]
    assert "Dead" in out("teu", "ps", "-a")
    other = whole.run_detached("other", "sleep", "600")
    assert whole.inspect(other)["NetworkSettings"]["IPAddress"] != address  # type: ignore[index]
    assert Path(f"/proc/{pid}").exists()
    done = teu("rm", "broken", check=False)
    assert done.returncode == 1
    assert "its processes run" in done.stderr
    assert Path(f"/proc/{pid}").exists()
    teu("rm", "-f", "broken")
    eventually("its processes are gone", lambda: not Path(f"/proc/{pid}").exists())
    assert not (ROOT / "containers" / identity).exists()


def test_a_record_that_has_lost_its_id() -> None:
    """What is in containerd and on the disk may be its own: nothing is swept before it is removed."""
    identity = whole.run_detached("lost", "sleep", "600", flags=("-v", "/data"))
    volume = out("teu", "volume", "ls", "-q")
    with away() as database:
        database.execute("UPDATE containers SET id = ?, data = ?", ("poison", b"\xff\xff"))
    listed = api("GET", "/containers/json?all=1")[1]
    assert [(entry["Names"], entry["State"]) for entry in listed] == [(["/lost"], "dead")]
    assert len(listed[0]["Id"]) == 64
    assert whole.shims(identity)
    assert (ROOT / "containers" / identity).exists()
    assert out("teu", "volume", "ls", "-q") == volume
    teu("rm", "-f", "lost")
    eventually("what was its own is swept", lambda: not whole.shims(identity))
    eventually("its folder is swept", lambda: not (ROOT / "containers" / identity).exists())


def test_every_member_of_a_network() -> None:
    teu("network", "create", "--label", "one=1", "-o", "com.docker.network.driver.mtu=1400", "model")
    whole.run_detached("good", "sleep", "600", flags=("--network", "model"))
    whole.run_detached("plain", "sleep", "600")
    made = []
    with away() as database:
        record = json.loads(database.execute("SELECT data FROM networks WHERE name = 'model'").fetchone()[0])
        record["IPAM"]["Config"][0].update(Subnet="10.231.0.0/16", Gateway="10.231.0.1", IPRange="10.231.1.0/24")
        for path in [(), *paths(record)]:
            for kind, poison in POISONS:
                if not path and poison is MISSING:
                    continue
                identity, name = f"{len(made) + 1:064x}", f"bad{len(made)}"
                made.append((identity, name, path, kind))
                data = dump(poisoned({**record, "Id": identity, "Name": name}, path, poison))
                database.execute("INSERT INTO networks VALUES (?, ?, ?)", (identity, name, data))
        database.execute("INSERT INTO networks VALUES (?, ?, ?)", ("x" * 3, b"\xff", b"\xff"))
        # A predefined one cannot be removed: it is made anew, with what can be read of it.
        bridge = json.loads(database.execute("SELECT data FROM networks WHERE name = 'bridge'").fetchone()[0])
        database.execute("UPDATE networks SET data = ? WHERE name = 'bridge'", (dump({**bridge, "Labels": 7}),))
        database.execute("UPDATE networks SET data = '' WHERE name = 'host'")
    status, listed = api("GET", "/networks")
    assert status == 200
    shown = {entry["Id"] for entry in listed}
    for identity, name, path, kind in made:
        assert identity in shown, (path, kind)
        for reference in (identity, name):
            status, answer = api("GET", f"/networks/{reference}")
            assert status == 200, (path, kind, answer)
        if kind == "surrogate" and path:
            assert "is damaged" in answer["Status"]["Error"], path
    assert json.loads(out("teu", "network", "inspect", "bridge"))[0]["IPAM"]["Config"] == bridge["IPAM"]["Config"]
    done = teu("run", "--rm", "--network", "bad0", whole.IMAGE, "true", check=False)
    assert done.returncode != 0
    assert "is damaged" in done.stderr
    for name in ("good", "plain"):
        assert "eth0" in out("teu", "exec", name, "cat", "/proc/net/dev")
        works(name)
        assert "eth0" in out("teu", "exec", name, "cat", "/proc/net/dev")
    for entry in listed:
        if entry["Name"] not in ("bridge", "host", "none", "model"):
            assert api("DELETE", f"/networks/{entry['Id']}")[0] == 204, entry
    assert {entry["Name"] for entry in api("GET", "/networks")[1]} == {"bridge", "host", "none", "model"}


def test_every_member_of_a_volume() -> None:
    teu("volume", "create", "--label", "one=1", "-o", "type=tmpfs", "-o", "device=tmpfs", "model")
    whole.run_detached("good", "sleep", "600", flags=("-v", "model:/data", "-v", "plain:/plain", "-v", "/anonymous"))
    made = []
    with away() as database:
        record = json.loads(database.execute("SELECT data FROM volumes WHERE name = 'model'").fetchone()[0])
        record.update(Container="", Removing=False)
        for path in [(), *paths(record)]:
            for kind, poison in POISONS:
                if not path and poison is MISSING:
                    continue
                if path == ("Container",) and kind == "text":
                    continue  # a container that is not there: it is removed with that
                name = f"bad{len(made)}"
                made.append((name, path, kind))
                data = dump(poisoned(record, path, poison))
                database.execute("INSERT INTO volumes VALUES (?, ?)", (name, data))
                (ROOT / "volumes" / name / "_data").mkdir(parents=True)
        for name, data in ((b"\xff", "{}"), ("../../escape", "{}"), ("a b", b"\xff")):
            database.execute("INSERT INTO volumes VALUES (?, ?)", (name, data))
    status, listed = api("GET", "/volumes")
    assert status == 200
    shown = {entry["Name"]: entry for entry in listed["Volumes"]}
    for name, path, kind in made:
        assert name in shown, (path, kind)
        status, answer = api("GET", f"/volumes/{name}")
        assert status == 200, (path, kind, answer)
        if kind == "surrogate" and path:
            assert "is damaged" in answer["Status"]["Error"], path
    done = teu("run", "--rm", "-v", "bad0:/data", whole.IMAGE, "true", check=False)
    assert done.returncode != 0
    assert "is damaged" in done.stderr
    assert api("GET", "/system/df")[0] == 200
    works("good")
    assert "/data" in out("teu", "exec", "good", "mount")
    kept = {point["Name"] for point in whole.inspect("good")["Mounts"]}  # type: ignore[attr-defined]
    assert len(kept) == 3
    assert kept <= set(shown)
    for name in shown:
        if name not in kept:
            assert api("DELETE", f"/volumes/{name}")[0] == 204, name
    assert {entry["Name"] for entry in api("GET", "/volumes")[1]["Volumes"]} == kept


def test_what_a_start_is_left_with_on_the_way_of_one_container() -> None:
    """A step of the recovery that fails for one container: that one is dead with the reason, and the others go on."""
    victim = whole.run_detached("victim", "sleep", "600", flags=("--log-driver", "json-file"))
    whole.run_detached("beside", "sleep", "600")
    logs = ROOT / "containers" / victim / f"{victim}-json.log"
    with away():
        logs.unlink(missing_ok=True)
        marker = Path(f"/run/teu/engine/{victim}/position")
        marker.unlink()
        marker.mkdir()
    state: dict[str, Any] = whole.inspect("victim")["State"]  # type: ignore[assignment]
    assert state["Status"] == "dead"
    assert "could not be recovered" in state["Error"]
    works("beside")
    teu("rm", "-f", "victim")
    assert not whole.shims(victim)


def test_a_removal_that_is_refused_does_not_end_the_recovery() -> None:
    """--rm containers are removed at a start; where one is being started meanwhile, the others get theirs."""
    names = [f"gone{number}" for number in range(6)]
    for name in names:
        teu("create", "--rm", "--name", name, whole.IMAGE, "sleep", "600")
    teu("create", "--name", "comes", "--restart", "always", whole.IMAGE, "sleep", "600")
    with away() as database:
        data = json.loads(database.execute("SELECT data FROM containers WHERE name = 'comes'").fetchone()[0])
        data["started_once"] = True
        database.execute("UPDATE containers SET data = ? WHERE name = 'comes'", (dump(data),))
    starters = [threading.Thread(target=lambda name=name: api("POST", f"/containers/{name}/start")) for name in names]
    for thread in starters:
        thread.start()
    for thread in starters:
        thread.join()
    eventually("the last one runs", lambda: whole.inspect("comes")["State"]["Running"])  # type: ignore[index]
    assert "recovery was not completed" not in out("journalctl", "-u", "teud", "-n", "60")


# -- what ends beside something else ---------------------------------------------------------------------


def test_ended_execs_hold_no_threads() -> None:
    whole.run_detached("many", "sleep", "600")
    engine = whole.main_pid("teud.service")
    before = len(os.listdir(f"/proc/{engine}/task"))
    for _ in range(24):
        teu("exec", "many", "true")
    eventually("their threads have ended", lambda: len(os.listdir(f"/proc/{engine}/task")) < before + 12)


def test_restarts_at_once_of_a_container_that_is_removed_at_its_end() -> None:
    identity = whole.run_detached("again", "sleep", "600", flags=("--rm",))
    for gap in (0.01, 0.03):
        threads = [threading.Thread(target=api, args=("POST", "/containers/again/restart?t=0")) for _ in range(6)]
        for thread in threads:
            thread.start()
            time.sleep(gap)
        for thread in threads:
            thread.join()
        assert api("GET", f"/containers/{identity}/json")[1]["State"]["Status"] == "running"


def test_images_are_listed_beside_removals(tmp_path: Path) -> None:
    """What a list has found may be gone before it is told: it is left out, or told as it was."""
    for number in range(10):
        layer = tmp_path / f"{number}.tar"
        layer.write_bytes(scripted_registry.tar((f"file{number}", b"passing")))
        teu("import", str(layer), f"passing:t{number}")
    answers: list[tuple[int, Any]] = []
    done = threading.Event()

    def lists() -> None:
        while not done.is_set():
            answers.append(api("GET", "/images/json?all=1"))

    threads = [threading.Thread(target=lists) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        for number in range(10):
            assert api("DELETE", f"/images/passing:t{number}")[0] == 200
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert {status for status, _answer in answers} == {200}


def test_an_image_whose_record_is_damaged() -> None:
    """It is left out of the lists, inspect says why, and it can be removed; the others are there."""
    metadata = "/var/lib/teu/containerd/metadata.db"
    call("systemctl", "stop", "teud.service", "teu-containerd.service", "teud.socket", "teu-containerd.socket")
    try:
        with contextlib.closing(sqlite3.connect(metadata, isolation_level=None)) as database:
            names = [row[1] for row in database.execute("PRAGMA table_info(images)")]
            row = database.execute("SELECT * FROM images WHERE namespace = 'teu' AND name LIKE '%busybox%'").fetchone()
            for column in ("record", "labels", "target", "created"):
                changed = {**dict(zip(names, row)), "name": f"localhost/bad-{column}:1", column: b"poison"}
                database.execute(f"INSERT INTO images VALUES ({', '.join('?' * len(names))})", list(changed.values()))
    finally:
        systemctl("start", "teu-containerd.socket", "teud.socket")
    status, listed = api("GET", "/images/json")
    assert status == 200
    tags = {tag for image in listed for tag in image["RepoTags"]}
    assert any("busybox" in tag for tag in tags)
    assert "localhost/bad-record:1" not in tags
    done = teu("image", "inspect", "localhost/bad-record:1", check=False)
    assert done.returncode == 1
    assert out("teu", "run", "--rm", whole.IMAGE, "echo", "runs") == "runs"
    for column in ("record", "labels", "target", "created"):
        teu("rmi", f"localhost/bad-{column}:1")
    assert "localhost" not in out("teu", "images")
    assert out("teu", "run", "--rm", whole.IMAGE, "echo", "runs") == "runs"


def test_a_containerd_whose_state_cannot_be_read() -> None:
    """It ends with 65 and is not started again and again; teud waits, says so, and goes on when it is there."""
    metadata = Path("/var/lib/teu/containerd/metadata.db")
    units = ("teud.service", "teu-containerd.service", "teud.socket", "teu-containerd.socket")
    call("systemctl", "stop", *units)
    kept = {path: path.read_bytes() for end in ("", "-wal") if (path := Path(f"{metadata}{end}")).exists()}
    try:
        for path in kept:
            path.unlink()
        metadata.mkdir()
        systemctl("start", "teu-containerd.socket", "teud.socket")
        systemctl("start", "teu-containerd.service", check=False)
        eventually("it is refused", lambda: show("teu-containerd.socket", "ActiveState") == "inactive")
        assert show("teu-containerd.service", "ExecMainStatus") == "65"
        done = teu("ps", check=False)
        assert done.returncode == 1
        assert "containerd at /run/teu/containerd.sock cannot be reached" in done.stderr
        assert show("teud.service", "ActiveState") == "active"
        assert int(show("teud.service", "NRestarts")) == 0
    finally:
        metadata.rmdir()
        for path, data in kept.items():
            path.write_bytes(data)
        systemctl("start", "teu-containerd.service")
    eventually("teud goes on by itself", lambda: teu("ps", check=False).returncode == 0)


# -- files that cannot be read ---------------------------------------------------------------------------


@pytest.fixture
def backup() -> Iterator[dict[str, bytes]]:
    """The database's files as they were; they are put back."""
    whole.run_detached("good", "sleep", "600")
    for number in range(3):
        teu("create", "--name", f"made{number}", "--label", f"long={'x' * 3000}", whole.IMAGE, "true")
    teu("volume", "create", "vol")
    call("systemctl", "stop", "teud.service", "teud.socket")
    files = {path: Path(path).read_bytes() for path in _files() if os.path.exists(path)}
    yield files  # type: ignore[misc]
    put_back(files)  # type: ignore[arg-type]
    works("good")
    assert len(api("GET", "/containers/json?all=1")[1]) == 4


def _files() -> list[str]:
    return [str(DATABASE), f"{DATABASE}-wal", f"{DATABASE}-shm"]


def put_back(files: dict[str, bytes]) -> None:
    call("systemctl", "stop", "teud.service", "teud.socket", check=False)
    for path in _files():
        if os.path.isdir(path):
            shutil.rmtree(path)
        Path(path).unlink(missing_ok=True)
    for path, data in files.items():
        Path(path).write_bytes(data)
    call("systemctl", "reset-failed", "teud.service", "teud.socket", check=False)
    systemctl("start", "teud.socket")


def outcome() -> str:
    """How teud takes its files: it serves lists, or it ended with 65 and told why; nothing else is right."""
    since = out("date", "+%s.%N")
    begun = int(show("teud.service", "NRestarts") or 0)
    systemctl("start", "teud.service", check=False)

    def settled() -> str:
        if show("teud.service", "ActiveState") == "failed":
            return "failed"
        with contextlib.suppress(OSError, http.client.HTTPException):
            return "served" if api("GET", "/_ping")[0] == 200 and api("GET", "/volumes")[0] in (200, 500) else ""
        return ""

    found = str(eventually("it serves, or gives up", settled))
    said = out("journalctl", "-u", "teud.service", "--since", f"@{since}", "-o", "cat")
    assert int(show("teud.service", "NRestarts") or 0) == begun, said
    if found == "failed":
        assert show("teud.service", "ExecMainStatus") == "65", said
        assert str(DATABASE) in said
        assert "move" in said
    else:
        for path in ("/containers/json?all=1", "/networks", "/volumes", "/images/json"):
            status, answer = api("GET", path)
            assert status == 200, (path, answer)
    assert "Traceback" not in said
    return found


def test_files_that_are_none(backup: dict[str, bytes]) -> None:
    """Empty, a folder, of a newer version, without its tables, of another kind: 65, and the way out."""

    def folder() -> None:
        DATABASE.unlink()
        DATABASE.mkdir()

    def statement(sql: str) -> None:
        with contextlib.closing(sqlite3.connect(DATABASE)) as database:
            database.execute(sql)
            database.commit()

    def of_another_kind() -> None:
        DATABASE.write_bytes(b"this is not a database, whatever its name says" * 100)

    def log_folder() -> None:
        Path(f"{DATABASE}-wal").unlink(missing_ok=True)
        Path(f"{DATABASE}-wal").mkdir()

    for name, damage in {
        "empty": lambda: os.truncate(DATABASE, 0),
        "folder": folder,
        "journal": log_folder,
        "newer": lambda: statement("PRAGMA user_version = 999"),
        "no table": lambda: statement("DROP TABLE networks"),
        "no column": lambda: statement("ALTER TABLE volumes RENAME COLUMN data TO datum"),
        "other": of_another_kind,
    }.items():
        put_back(backup)
        call("systemctl", "stop", "teud.socket", "teud.service")
        damage()
        assert outcome() == "failed", name
        # Who asks is told, and starts no loop.
        done = teu("ps", check=False)
        assert done.returncode == 1, name
        assert str(DATABASE) in done.stderr, name
        assert int(show("teud.service", "NRestarts") or 0) == 0


def test_files_cut_and_overwritten_anywhere(backup: dict[str, bytes]) -> None:
    dice = random.Random(20260)
    found = []
    for number in range(6):
        put_back(backup)
        call("systemctl", "stop", "teud.socket", "teud.service")
        victim = Path(dice.choice([path for path, data in backup.items() if data and not path.endswith("shm")]))
        data = bytearray(victim.read_bytes())
        if number % 2:
            del data[dice.randrange(1, len(data)) :]
        else:
            for _ in range(dice.choice((1, 20, 400))):
                data[dice.randrange(len(data))] = dice.randrange(256)
        victim.write_bytes(data)
        Path(f"{DATABASE}-shm").unlink(missing_ok=True)
        found.append(outcome())
    assert "failed" in found
