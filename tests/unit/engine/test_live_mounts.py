# SPDX-License-Identifier: Apache-2.0
"""Mounts of a container that runs, with a process in a mount namespace of its own as the container."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest

from teu.engine.containers import proc
from teu.engine.containers.model import Container
from teu.engine.containers.state import MountOptions, MountPoint
from teu.engine.core import fields
from teu.engine.core.errors import BadRequest, Conflict, EngineError
from teu.engine.core.times import timestamp
from teu.engine.engine import Engine
from teu.engine.files import live, rootfs
from teu.engine.lifecycle import change
from teu.linux import inside as inside_root

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = parts.engine(tmp_path)
    made.pump.start()
    yield made
    made.pump.stop()


@pytest.fixture
def box(engine: Engine, tmp_path: Path) -> Iterator[Container]:
    """A container whose root is a folder of the test's, bound on itself in a namespace of its own."""
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    script = f"mount --bind {root} {root} && cd {root} && mount --make-private {root} && echo ready && exec sleep 60"
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", script], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        if child.stdout.readline() != b"ready\n":
            pytest.skip("this machine lets nobody mount")
        container = parts.container(engine, "box")
        Path(container.directory).mkdir(parents=True, exist_ok=True)
        container.state.runs(child.pid, timestamp())
        container.pid_started = proc.started(child.pid)
        yield container
        child.kill()


def inside(container: Container, path: str) -> Path:
    return Path(f"/proc/{container.pid}/root{path}")


def bound(source: Path, destination: str, **more: Any) -> MountPoint:
    return MountPoint(type="bind", source=str(source), destination=destination, options=MountOptions(), **more)


def mounted_at(container: Container, path: str) -> bool:
    table = Path(f"/proc/{container.pid}/mountinfo").read_text()
    return any(line.split()[4] == path for line in table.splitlines())


def test_a_folder_and_a_file_come_and_go(engine: Engine, box: Container, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given/file").write_text("from the host")
    base = str(tmp_path / "new")
    for source, place in ((tmp_path / "given", f"{base}/deep"), (tmp_path / "given/file", f"{base}/one")):
        point = bound(source, place)
        live.attach(engine, box, point)
        assert mounted_at(box, place) and not os.path.ismount(place), "it is seen in the container alone"
        seen = inside(box, place)
        assert (seen / "file" if seen.is_dir() else seen).read_text() == "from the host"
        live.detach(engine, box, point)
        assert not mounted_at(box, place)
        live.detach(engine, box, point)  # twice is fine


def test_a_read_only_one_cannot_be_written(engine: Engine, box: Container, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    place = str(tmp_path / "place")
    live.attach(engine, box, bound(tmp_path / "given", place, rw=False))
    with pytest.raises(OSError, match="Read-only"):
        (inside(box, place) / "x").write_text("")


def test_what_cannot_be_is_told(engine: Engine, box: Container, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "plain").write_text("")
    with pytest.raises(EngineError, match="of another kind"):
        live.attach(engine, box, bound(tmp_path / "given", str(tmp_path / "plain")))
    with pytest.raises(EngineError, match="nothing to be mounted"):
        live.attach(engine, box, bound(tmp_path / "none", str(tmp_path / "place")))
    box.pid_started += 1
    with pytest.raises(Conflict, match="has ended"):
        live.attach(engine, box, bound(tmp_path / "given", str(tmp_path / "place")))


def test_a_link_does_not_lead_into_proc(engine: Engine, box: Container, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "link").symlink_to("/proc/self/attr")
    with pytest.raises(EngineError, match="inside /proc"):
        live.attach(engine, box, bound(tmp_path / "given", str(tmp_path / "link")))


def test_a_link_does_not_lead_to_another_mount(engine: Engine, box: Container, tmp_path: Path) -> None:
    """The container has put a link where the way to its mount was: what is mounted behind that stays."""
    for name in ("given", "other", "before", "kept"):
        (tmp_path / name).mkdir()
    mine = bound(tmp_path / "given", str(tmp_path / "before/sys"))
    kept = bound(tmp_path / "other", str(tmp_path / "kept/sys"))
    for point in (mine, kept):
        live.attach(engine, box, point)
    (tmp_path / "before").rename(tmp_path / "away")
    (tmp_path / "before").symlink_to("kept")
    with pytest.raises(EngineError, match="another mount"):
        live.detach(engine, box, mine)
    assert mounted_at(box, kept.destination)
    (tmp_path / "before").unlink()
    (tmp_path / "before").symlink_to("away")  # as an image may have it: /var/run
    live.detach(engine, box, mine)
    assert not mounted_at(box, str(tmp_path / "away/sys")) and mounted_at(box, kept.destination)


def test_a_change_that_a_death_has_interrupted_is_done_again(engine: Engine, box: Container, tmp_path: Path) -> None:
    """The first time nobody wrote down that it is mounted."""
    (tmp_path / "given").mkdir()
    point = bound(tmp_path / "given", str(tmp_path / "place"))
    for access in (True, False):
        live.attach(engine, box, bound(tmp_path / "given", str(tmp_path / "place"), rw=access))
    with pytest.raises(OSError, match="Read-only"):
        (inside(box, point.destination) / "x").write_text("")
    live.detach(engine, box, point)
    assert not mounted_at(box, point.destination)


def test_who_has_waited_too_long_leaves_nothing_behind(
    engine: Engine, box: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that hung goes on later: by then the number of its descriptor may be another's."""
    (tmp_path / "given").mkdir()
    place = str(tmp_path / "place")
    going, gone = threading.Event(), threading.Event()
    make, close = inside_root.make_in_root, os.close
    trees: list[int] = []

    def hangs(*given: Any) -> int:
        going.wait(20)
        return make(*given)

    def source(*_: object) -> int:
        trees.append(tree(engine, bound(tmp_path / "given", place)))
        return trees[0]

    def closes(descriptor: int) -> None:
        close(descriptor)
        if descriptor in trees:
            assert going.is_set(), "it is still needed"
            gone.set()

    tree = rootfs.source_tree
    monkeypatch.setattr(rootfs, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(rootfs, "source_tree", source)
    monkeypatch.setattr(inside_root, "make_in_root", hangs)
    monkeypatch.setattr(os, "close", closes)
    with pytest.raises(EngineError, match="no answer"):
        live.attach(engine, box, bound(tmp_path / "given", place))
    assert not gone.is_set()
    going.set()
    assert gone.wait(20) and not mounted_at(box, place)


def test_whatever_goes_wrong_is_told(
    engine: Engine, box: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> int:
        raise ValueError("no such path")

    (tmp_path / "given").mkdir()
    monkeypatch.setattr(inside_root, "make_in_root", fails)
    with pytest.raises(EngineError, match="no such path"):
        live.attach(engine, box, bound(tmp_path / "given", str(tmp_path / "place")))


def asked(source: Path, target: str, **more: Any) -> fields.Mount:
    return fields.Mount(type="bind", source=str(source), target=target, **more)


def test_a_change_is_in_the_record_and_in_the_container(engine: Engine, box: Container, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    place = str(tmp_path / "place")
    change.change(engine, box, {"Mounts": [asked(tmp_path / "given", place)]})
    assert mounted_at(box, place) and [point.destination for point in box.mounts] == [place]
    assert [one.target for one in box.host_config.mounts or ()] == [place]
    change.change(engine, box, {"Mounts": []})
    assert not mounted_at(box, place) and box.mounts == [] and not box.host_config.mounts


def test_a_change_that_fails_changes_nothing(engine: Engine, box: Container, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "plain").write_text("")
    place = str(tmp_path / "place")
    wanted = [asked(tmp_path / "given", place), asked(tmp_path / "given", str(tmp_path / "plain"))]
    with pytest.raises(EngineError, match="of another kind"):
        change.change(engine, box, {"Mounts": wanted})
    assert not mounted_at(box, place) and box.mounts == [] and not box.host_config.mounts


def test_a_port_that_is_taken_leaves_the_mounts_as_they_were(
    engine: Engine, box: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "given").mkdir()
    place, other = str(tmp_path / "place"), str(tmp_path / "other")
    change.change(engine, box, {"Mounts": [asked(tmp_path / "given", place)]})

    def taken(*_: object) -> None:
        raise EngineError("the port is taken")

    monkeypatch.setattr(engine.endpoints, "publish_anew", taken)
    with pytest.raises(EngineError, match="taken"):
        change.change(engine, box, {"Mounts": [asked(tmp_path / "given", other)], "PortBindings": {}})
    assert mounted_at(box, place) and not mounted_at(box, other)
    assert [point.destination for point in box.mounts] == [place]


def test_places_do_not_hide_each_other(engine: Engine, box: Container, tmp_path: Path) -> None:
    (tmp_path / "given/b").mkdir(parents=True)
    outer, inner = str(tmp_path / "a"), str(tmp_path / "a/b")
    one, two = asked(tmp_path / "given", outer), asked(tmp_path / "given", inner)
    change.change(engine, box, {"Mounts": [two]})
    with pytest.raises(BadRequest, match="would hide"):
        change.change(engine, box, {"Mounts": [two, one]})
    change.change(engine, box, {"Mounts": []})
    change.change(engine, box, {"Mounts": [one]})
    change.change(engine, box, {"Mounts": [one, two]})
    with pytest.raises(BadRequest, match="would go with it"):
        change.change(engine, box, {"Mounts": [two]})
    with pytest.raises(BadRequest, match="Duplicate"):
        change.change(engine, box, {"Mounts": [one, two, asked(tmp_path / "given", outer, read_only=True)]})
    with pytest.raises(BadRequest, match="tmpfs"):
        change.change(engine, box, {"Mounts": [one, two, fields.Mount(type="tmpfs", target="/t")]})


def test_a_container_that_rests_is_changed_in_the_record(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    rests = parts.container(engine, "rests", Binds=[f"{tmp_path}/given:/old"])
    rests.mounts = [bound(tmp_path / "given", "/old")]
    change.change(engine, rests, {"Binds": [], "Mounts": [asked(tmp_path / "given", "/new")]})
    assert [point.destination for point in rests.mounts] == ["/new"] and rests.host_config.binds == []
