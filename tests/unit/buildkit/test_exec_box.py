# SPDX-License-Identifier: Apache-2.0
"""The life of a step, with a containerd that only writes down what it is asked: order, cancelling, and what is left."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teu.api.types.runc.options import oci_pb2
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Mount
from teu.buildkit.worker import network, tasks
from teu.buildkit.worker.executor import NONE, SANDBOX, Executor, Settings, Wish
from teu.buildkit.worker.mounts import Tmpfs
from teu.buildkit.worker.spec import Process
from teu.linux import apparmor
from teu.oci.labels import BUILDER

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to open a root")


class Fake:
    """containerd. A task ends when it is killed, or when `end` says so."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.records: dict[str, Any] = {}
        self.ended = threading.Event()
        self.status = 0
        self.running = False
        self.fail: dict[str, errors.Error] = {}
        self.options: Any = None
        self.rootfs: list[Any] = []
        self.during: dict[str, Callable[[], None]] = {}
        self.containers = self.tasks = self.introspection = self

    def __getattr__(self, name: str) -> Any:
        def call(request: Any, timeout: float | None = None, **_: Any) -> Any:
            self.calls.append(name)
            if name in self.during:
                self.during.pop(name)()
            if name in self.fail:
                raise self.fail.pop(name)
            return getattr(self, f"on_{name}")(request)

        return call

    def on_Plugins(self, request: Any) -> Any:
        return SimpleNamespace(plugins=[SimpleNamespace(exports={"default-runtime": "io.containerd.teu.v2"})])

    def on_Create(self, request: Any) -> Any:
        if hasattr(request, "container"):
            self.records[request.container.id] = request.container
            return None
        self.options = request.options
        self.rootfs = list(request.rootfs)
        for path in filter(None, (request.stdout, request.stderr)):
            os.close(os.open(path, os.O_WRONLY))
        self.running = True
        return SimpleNamespace(pid=os.getpid())

    def on_Update(self, request: Any) -> Any:
        assert request.update_mask.paths == ["spec"]
        self.records[request.container.id].spec.CopyFrom(request.container.spec)

    def on_Start(self, request: Any) -> Any:
        return SimpleNamespace(pid=os.getpid())

    def on_Wait(self, request: Any) -> Any:
        assert self.ended.wait(20)
        return SimpleNamespace(exit_status=self.status)

    def on_Kill(self, request: Any) -> Any:
        if not self.running:
            raise errors.NotFound("no such task")
        assert request.all and request.signal == 9
        self.end(137)

    def on_Delete(self, request: Any) -> Any:
        if hasattr(request, "container_id"):
            if self.running and not self.ended.is_set():
                raise errors.FailedPrecondition("it runs")
            if not self.running:
                raise errors.NotFound("no such task")
            self.running = False
            return None
        self.records.pop(request.id, None)
        return None

    def on_ResizePty(self, request: Any) -> Any:
        raise errors.NotFound("no such task")

    on_CloseIO = on_ResizePty

    def on_List(self, request: Any) -> Any:
        return SimpleNamespace(containers=list(self.records.values()))

    def end(self, status: int) -> None:
        self.status = status
        self.ended.set()


class Tree:
    def __init__(self, path: Path) -> None:
        self.path = path

    def mounts(self) -> list[Mount]:
        return [Mount("bind", str(self.path), ("rbind", "rw"))]

    def mounted(self) -> Any:
        raise AssertionError("a whole tree is not mounted here")


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def executor(fake: Fake, tmp_path: Path) -> Iterator[Executor]:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/passwd").write_text("www:x:33:34::/var/www:\n")
    client: Any = fake
    made = Executor(client, "worker", Settings(state=str(tmp_path / "state"), run=str(tmp_path), apparmor=""))
    yield made
    made.close()
    assert os.listdir(tmp_path / "state") == [] or not (tmp_path / "state").exists()


def wish(tmp_path: Path, **more: Any) -> Wish:
    return Wish(**{"root": Tree(tmp_path / "root"), "network": NONE, **more})


def test_a_step_from_begin_to_end(executor: Executor, fake: Fake, tmp_path: Path) -> None:
    box = executor.box(wish(tmp_path, mounts=[Tmpfs("/mnt/t", 5)]), "abc")
    assert (tmp_path / "root/mnt/t").is_dir()
    process = box.start(Process(("true",), cwd="/work", user="www"))
    spec = json.loads(fake.records["abc"].spec.value)
    assert fake.records["abc"].labels[BUILDER] == "worker"
    assert fake.records["abc"].runtime.name == "io.containerd.teu.v2"
    assert spec["process"]["user"]["uid"] == 33
    assert {"/etc/hosts", "/etc/resolv.conf", "/mnt/t"} < {entry["destination"] for entry in spec["mounts"]}
    assert os.stat(tmp_path / "root/work").st_uid == 33
    fake.end(3)
    assert process.wait() == process.wait() == 3
    box.release()
    box.release()
    assert fake.calls == ["Plugins", "Create", "Create", "Start", "Wait", "Delete", "Delete"]
    assert sorted(os.listdir(tmp_path / "root")) == ["etc", "work"]
    assert os.listdir(tmp_path / "root/etc") == ["passwd"]
    assert executor.boxes() == []


class Overlay(Tree):
    def mounts(self) -> list[Mount]:
        folders = [f"{self.path}-{name}" for name in ("lower", "upper", "work")]
        for folder in folders:
            os.makedirs(folder, exist_ok=True)
        lower, upper, work = folders
        return [Mount("overlay", "overlay", (f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}"))]


def test_an_overlay_is_mounted_once_and_released_beside_its_commit(
    executor: Executor, fake: Fake, tmp_path: Path
) -> None:
    try:
        box = executor.box(wish(tmp_path, root=Overlay(tmp_path / "o"), mounts=[Tmpfs("/mnt/t", 5)]), "abc")
    except OSError as error:
        pytest.skip(f"no overlay on this file system: {error}")
    place, upper = f"{tmp_path}/state/abc/root", tmp_path / "o-upper"
    assert os.path.ismount(place)
    process = box.start(Process(("true",), cwd="/work"))
    assert [(one.type, one.source) for one in fake.rootfs] == [("bind", place)]
    fake.end(0)
    assert process.wait() == 0
    reached = threading.Event()
    fake.during["Delete"] = lambda: reached.wait(20) and None
    with box.releasing():
        assert os.listdir(upper) == ["work"]  # nothing of it changes any more
        assert os.path.ismount(place)
        reached.set()
    assert not os.path.exists(place)
    box.release()
    assert fake.calls == ["Plugins", "Create", "Create", "Start", "Wait", "Delete", "Delete"]
    assert executor.boxes() == []


def test_secrets_are_not_in_the_record(executor: Executor, fake: Fake, tmp_path: Path) -> None:
    box = executor.box(wish(tmp_path))
    env = ("WORD=old", "OTHER=x")
    process = box.start(Process(("true",), env, user="www", secrets=("WORD=s3cret\udcff", "HOME=/s3cret")))
    told = fake.records[box.id].spec.value
    assert b"s3cret" not in told
    assert json.loads(told)["process"]["env"] == ["OTHER=x"]
    assert oci_pb2.Options.FromString(fake.options.value).environment == [b"WORD=s3cret\xff", b"HOME=/s3cret"]
    fake.end(0)
    process.wait()
    box.release()


def test_secrets_with_a_runtime_that_has_no_place_for_them(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    client: Any = fake
    settings = Settings(state=str(tmp_path / "state"), run=str(tmp_path), apparmor="", runtime="io.containerd.runc.v2")
    executor = Executor(client, "worker", settings)
    box = executor.box(wish(tmp_path))
    seen: list[list[str]] = []
    names = iter(("the container", "the task"))

    def look() -> None:
        """When the task is made of it, and when it starts."""
        if next(names) == "the container":
            fake.during["Create"] = look
            return
        seen.append(json.loads(fake.records[box.id].spec.value)["process"]["env"])

    fake.during["Create"] = look
    process = box.start(Process(("true",), ("WORD=old", "A=b"), secrets=("WORD=s3cret",)))
    assert seen == [["A=b", "WORD=s3cret"]]
    told = json.loads(fake.records[box.id].spec.value)
    assert told["process"]["env"] == ["A=b"] and told["root"], "whoever looks at it sees none"
    assert fake.calls.index("Update") < fake.calls.index("Start")
    fake.end(0)
    process.wait()
    executor.close()


@pytest.mark.parametrize(
    ("configured", "insecure", "profile"),
    [
        ("mine", False, "mine"),
        ("not-loaded", False, None),  # as the key says: where it is loaded
        ("", False, None),
        ("mine", True, None),
    ],
)
def test_the_profile_of_steps_is_the_configured_one(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: str, insecure: bool, profile: str | None
) -> None:
    """apparmor-profile of buildkitd.yaml, on a kernel that has two."""
    (tmp_path / "enabled").write_text("Y\n")
    (tmp_path / "profiles").write_text("teu-default (enforce)\nmine (complain)\n")
    monkeypatch.setattr(apparmor, "ENABLED", str(tmp_path / "enabled"))
    monkeypatch.setattr(apparmor, "PROFILES", str(tmp_path / "profiles"))
    (tmp_path / "root").mkdir()
    client: Any = fake
    executor = Executor(client, "worker", Settings(str(tmp_path / "state"), run=str(tmp_path), apparmor=configured))
    box = executor.box(wish(tmp_path, insecure=insecure))
    process = box.start(Process(("true",)))
    told = json.loads(fake.records[box.id].spec.value)["process"]
    assert told.get("apparmorProfile") == profile
    fake.end(0)
    process.wait()
    executor.close()


def test_what_runs_is_killed(executor: Executor, fake: Fake, tmp_path: Path) -> None:
    box = executor.box(wish(tmp_path))
    process = box.start(Process(("sleep",)))
    began = time.monotonic()
    box.kill()
    assert process.wait() == 137
    assert time.monotonic() - began < 1
    box.release()
    assert fake.records == {}


def test_a_kill_while_it_is_being_made(executor: Executor, fake: Fake, tmp_path: Path) -> None:
    box = executor.box(wish(tmp_path))
    fake.during["Create"] = box.kill
    with pytest.raises(errors.Cancelled):
        box.start(Process(("sleep",)))
    box.release()
    assert fake.records == {} and not fake.running
    assert "Start" not in fake.calls


def test_a_kill_before_anything_is_made(executor: Executor, fake: Fake, tmp_path: Path) -> None:
    box = executor.box(wish(tmp_path))
    box.kill()
    with pytest.raises(errors.Cancelled):
        box.start(Process(("sleep",)))
    box.release()
    assert fake.calls == []


@pytest.mark.parametrize("where", ["Create", "Start"])
def test_a_start_that_fails_leaves_nothing(executor: Executor, fake: Fake, tmp_path: Path, where: str) -> None:
    box = executor.box(wish(tmp_path))
    fake.fail[where] = errors.Error("no")
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(errors.Error, match="no"):
        box.start(Process(("sleep",)))
    fake.ended.set()
    box.release()
    assert fake.records == {} and not fake.running
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("failed to create shim task: OCI runtime create failed: runc create failed: unable to: x", b"unable to: x"),
        ('OCI runtime create failed: runc create failed: exec: "a\nb": no: unknown', b'exec: "a\nb": no'),
        ("OCI runtime start failed: exec /x: exec format error: unknown", b"exec /x: exec format error"),
    ],
)
def test_what_cannot_be_run_says_so_itself(
    executor: Executor, fake: Fake, tmp_path: Path, told: str, said: bytes, terminal: bool
) -> None:
    """As with BuildKit: the runtime's words are the process's last ones."""
    box = executor.box(wish(tmp_path))
    fake.fail["Start"] = errors.Error(told)
    out, err = bytearray(), bytearray()
    process = box.start(Process(("x",), terminal=terminal), out.extend, err.extend, stdin=True)
    assert process.wait() == process.wait() == 1
    assert bytes(out if terminal else err) == b"runc run failed: " + said + b"\n"
    assert not (err if terminal else out)
    process.resize(1, 1)
    process.close_input()
    with pytest.raises(BrokenPipeError):
        process.write(b"x")
    with pytest.raises(errors.FailedPrecondition, match="has stopped"):
        box.execute(Process(("y",)))
    fake.ended.set()
    box.release()
    assert fake.records == {} and not fake.running


def test_users_that_there_are_not(executor: Executor, tmp_path: Path) -> None:
    box = executor.box(wish(tmp_path))
    with pytest.raises(errors.Error, match="unable to find user nobody: no matching entries in passwd file"):
        box.start(Process(("true",), user="nobody"))
    box.release()


def test_names_of_containers(executor: Executor, tmp_path: Path) -> None:
    for bad in ("a/b", "..", "a-b", "x" * 100):
        with pytest.raises(errors.InvalidArgument):
            executor.box(wish(tmp_path), bad)
    box = executor.box(wish(tmp_path), "one")
    with pytest.raises(errors.AlreadyExists):
        executor.box(wish(tmp_path), "one")
    with pytest.raises(errors.FailedPrecondition):
        box.execute(Process(("true",)))
    box.release()


def test_what_a_predecessor_left_goes(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"
    (state / "old/m1").mkdir(parents=True)
    fake.records["old"] = SimpleNamespace(id="old")
    client: Any = fake
    executor = Executor(client, "worker", Settings(state=str(state)))
    swept: list[str] = []
    monkeypatch.setattr(network.Network, "sweep", lambda self: swept.append("network"))
    executor.recover()
    assert swept == ["network"]
    assert fake.records == {}
    assert os.listdir(state) == []
    executor.close()
    with pytest.raises(errors.Unavailable):
        executor.box(wish(tmp_path))


def test_a_failing_network_is_told(executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise errors.Error("failed to create the step's network: no")

    monkeypatch.setattr(network.Network, "take", refuse)
    with pytest.raises(errors.Error, match="the step's network: no"):
        executor.box(wish(tmp_path, network=SANDBOX))
    assert executor.boxes() == []
    assert sorted(os.listdir(tmp_path / "root")) == ["etc"]


def test_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = [SimpleNamespace(exports={})]
    client: Any = SimpleNamespace(introspection=SimpleNamespace(Plugins=lambda _: SimpleNamespace(plugins=told)))
    monkeypatch.setattr(os.path, "isdir", lambda _: True)
    assert tasks.Runtime.of(client) == ("io.containerd.runc.v2", tasks.SYSTEMD_CGROUP)
    assert tasks.Runtime.of(client, "io.containerd.teu.v2") == ("io.containerd.teu.v2", b"")
    told[0].exports["default-runtime"] = "io.containerd.teu.v2"
    assert tasks.Runtime.of(client) == ("io.containerd.teu.v2", b"")
