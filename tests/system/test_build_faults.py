# SPDX-License-Identifier: Apache-2.0
"""Builds under faults: kill -9 of each program at each kind of step, restarts, a full disk, registries that break off,
contexts that change, clients that vanish, many builds at once, pruning meanwhile. Nothing is left behind, and the next
build goes on from what was done."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import builds
import grpc
import peers
import pytest
import whole
from builds import SERVICE, Between, Following, Held, scopes
from lab_kind import PATIENCE
from scripted_registry import tar
from test_build_control import Buildx, buildx, busybox, control
from test_build_sources import push
from whole import call, eventually, main_pid, teu

from teu.api.buildkit import control_pb2, control_pb2_grpc

__all__ = ["busybox", "buildx", "control"]  # fixtures

pytestmark = [pytest.mark.needs("docker", "docker-registry", "ctr", "systemd"), pytest.mark.timeout(300)]

FULL = "no space left on device|i/o error"  # the second where an overlay upon a full tmpfs says so
TEUD = "unix:///run/teu/teud.sock"
FAULT = re.compile(r"Traceback|internal error|[A-Z]\w+Error:|NoneType", re.IGNORECASE)


@pytest.fixture(scope="module")
def registry() -> Iterator[peers.Registry]:
    with peers.registry() as daemon:
        push(daemon, "base", tar(("file", os.urandom(8 << 20))), tar(("other", os.urandom(100_000))))
        yield daemon


@pytest.fixture(scope="module")
def many_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A context that takes some time to travel."""
    top = tmp_path_factory.mktemp("many")
    for number in range(3000):
        folder = top / str(number % 50)
        folder.mkdir(exist_ok=True)
        (folder / f"{number}").write_bytes(b"%d" % number * 2000)
    return top


@pytest.fixture(scope="module", autouse=True)
def first_step(busybox: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What comes with the first step and with the first container, and stays, is there: bridges, rules, slices."""
    teu("run", "--rm", "busybox", "true")
    first = Buildx(tmp_path_factory.mktemp("first"))
    first.build(f"FROM busybox\nRUN echo {time.time_ns()}\n")
    first.run("rm", "--keep-state", "teu")


@pytest.fixture(scope="module")
def before(first_step: None) -> Held:
    return Held()


@pytest.fixture
def held(before: Held) -> Iterator[Held]:
    """What there was before the first of these tests is what there is after each of them, if it went well."""
    yield before
    before.settle()


def cached(text: str, step: str) -> bool:
    """Whether a step of a plain progress was not done again."""
    number = re.search(rf"^#(\d+) \[.*{re.escape(step)}", text, re.MULTILINE)
    assert number, f"no step {step!r} in {text[-3000:]}"
    return f"#{number[1]} CACHED" in text


def active() -> list[str]:
    """The references of the builds that are under way."""
    with grpc.insecure_channel(f"unix:{builds.SOCKET}") as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        request = control_pb2.BuildHistoryRequest(ActiveOnly=True, EarlyExit=True)
        return [event.record.Ref for event in stub.ListenBuildHistory(request, timeout=30) if event.record.Ref]


def answers() -> bool:
    """Whether the builder and containerd do."""
    with grpc.insecure_channel(f"unix:{builds.SOCKET}") as channel:
        try:
            control_pb2_grpc.ControlStub(channel).DiskUsage(control_pb2.DiskUsageRequest(), timeout=10)
        except grpc.RpcError:
            return False
    return call("ctr", "-a", "/run/teu/containerd.sock", "version", check=False).returncode == 0


# -- deaths at each kind of step ---------------------------------------------------------------------------------------


STEPS = ("context", "pull", "run", "copy", "export", "push", "cache")


class Stage:
    """Builds that are brought to a kind of step, and then go on, or begin again. `mark` is new for each of them: the
    step has not been done before, and all before it has."""

    def __init__(self, step: str, buildx: Buildx, registry: peers.Registry, many: Path, between: Between) -> None:
        self.step, self.buildx, self.registry, self.between = step, buildx, registry, between
        self.context = many if step == "context" else buildx.context
        self.mark = f"mark-{time.time_ns()}"
        self.first = f"RUN echo {self.mark} >/one"
        self.begin = f"FROM busybox AS one\n{self.first}\n"
        if step == "copy":
            script = "mkdir /files; for i in $(seq 6000); do echo $i >/files/$i; done"
            self.begin = f"FROM busybox AS files\nRUN {script} # {self.mark}\n{self.begin}"
        self.dockerfile = self.begin
        self.argv: list[str] = []
        self.tag = ""
        self.through = False
        self.number = 0
        self.done()
        if step == "copy":
            self.done(f"{self.begin}COPY --from=files /files/1 /\n")

    def start(self, dockerfile: str = "") -> Following:
        file = self.buildx.top / "Dockerfile"
        file.write_text(dockerfile or self.dockerfile)
        argv = [] if dockerfile else self.argv
        if not any("--output" in word for word in argv):
            argv = ["--output=type=cacheonly", *argv]
        builder = "default" if self.through else "teu"
        words = ["build", f"--builder={builder}", "--progress=plain", f"--file={file}", *argv, str(self.context)]
        return Following(self.buildx.start(*words))

    def done(self, dockerfile: str = "") -> str:
        client = self.start(dockerfile)
        assert client.wait(120) == 0, client.text[-3000:]
        assert not FAULT.search(client.text), client.text[-3000:]
        return client.text

    def to_context(self, client: Following) -> None:
        client.until(r"load build context")

    def to_pull(self, client: Following) -> None:
        assert self.between.reached.wait(60 * PATIENCE), client.text[-2000:]

    to_push = to_cache = to_pull

    def to_run(self, client: Following) -> None:
        eventually("a step", scopes)

    def to_copy(self, client: Following) -> None:
        client.until(r"COPY --from=files /files /files-")

    def to_export(self, client: Following) -> None:
        client.until(r"exporting layers|exporting to image")

    def prepare(self, through: bool) -> None:
        """What is done before the step that this is about, and the whole Dockerfile. `through`: through teud."""
        self.through = through
        if through:
            self.buildx.environment["DOCKER_HOST"] = TEUD
        else:
            self.buildx.environment.pop("DOCKER_HOST", None)
        self.number += 1
        mark = f"{self.mark}-{self.number}"
        if self.step == "context":
            builds.prune("type==source.local", everything=False)
            self.dockerfile = f"{self.begin}COPY . /many-{self.number}\n"
        elif self.step == "pull":
            name = f"base-{mark}"
            push(self.registry, name, tar(("file", os.urandom(1 << 20))), tar(("other", os.urandom(100_000))))
            self.dockerfile = (
                f"FROM {self.between.address}/{name}:1 AS base\n{self.begin}COPY --from=base /file /other /\n"
            )
        elif self.step == "run":
            self.dockerfile = f"{self.begin}RUN sleep 3; echo {mark} >/two\n"
        elif self.step == "copy":
            self.dockerfile = f"{self.begin}COPY --from=files /files /files-{self.number}\n"
        else:
            self.dockerfile = f"{self.begin}RUN head -c 20m /dev/urandom >/big # {mark}\n"
            self.done(self.dockerfile)
        if self.step == "export":
            self.tag = f"{mark}:1"
            self.argv = [f"--output=type=image,name={self.tag}"]
        elif self.step == "push":
            self.tag = f"{self.between.address}/pushed:{mark}"
            self.argv = [f"--output=type=image,name={self.tag},push=true"]
        elif self.step == "cache":
            self.argv = [f"--cache-to=type=registry,ref={self.between.address}/cache:{mark},mode=max"]
        held_up = {
            "pull": rb"GET /v2/base-[^ ]*/blobs/",
            "push": b"POST /v2/pushed/blobs",
            "cache": b"POST /v2/cache/blobs",
        }
        if self.step in held_up:
            self.between.hold(held_up[self.step])

    def struck(self, victim: str) -> None:
        """A build in which somebody dies at the step; and that all goes on from there."""
        self.prepare(through=victim == "teud")
        client = self.start()
        getattr(self, f"to_{self.step}")(client)
        DEATHS[victim](client)
        if victim == "client":
            struck = time.monotonic()
            eventually("the build's end", lambda: not active(), 5)
            eventually("the step's end", lambda: not scopes(), 5)
            assert time.monotonic() - struck < 3 * PATIENCE
        self.between.release()
        status = client.wait()
        if victim not in ("containerd", "restart containerd"):
            # Where the step was just over, it went well.
            assert status != 0 or self.step in ("context", "copy", "export"), client.text[-3000:]
        assert not FAULT.search(client.text), client.text[-3000:]
        eventually("they answer again", answers, 60)
        assert cached(self.done(), self.first)
        if self.tag:
            assert teu("run", "--rm", self.tag, "cat", "/one").stdout.strip() == self.mark
            teu("rmi", "-f", self.tag)
        assert not scopes()


def _kill(unit: str) -> Callable[[Following], None]:
    def strike(client: Following) -> None:
        death = whole.Death((unit,))
        death.strike(death.aim())

    return strike


def _restart(unit: str) -> Callable[[Following], None]:
    return lambda client: whole.Death((unit,), restart=True, limited=False).strike([])


DEATHS: dict[str, Callable[[Following], None]] = {
    "builder": _kill(SERVICE),
    "teud": _kill("teud.service"),
    "containerd": _kill("teu-containerd.service"),
    "client": lambda client: client.process.kill(),
    "restart builder": _restart(SERVICE),
    "restart containerd": _restart("teu-containerd.service"),
}
# Who dies at which step: the first two of each in every run of the suite, all of them with TEU_ROUNDS=3.
VICTIMS = {
    "context": ("builder", "client", "containerd", "teud"),
    "pull": ("containerd", "client", "builder", "teud"),
    "run": ("builder", "teud", "containerd", "client", "restart builder", "restart containerd"),
    "copy": ("builder", "containerd", "client", "teud"),
    "export": ("containerd", "restart builder", "builder", "client", "teud"),
    "push": ("builder", "client", "containerd", "teud"),
    "cache": ("teud", "builder", "containerd", "client"),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("step", STEPS)
def test_killed_at(
    step: str,
    buildx: Buildx,
    registry: peers.Registry,
    many_files: Path,
    held: Held,
    rounds: Callable[[int], int],
) -> None:
    with Between(registry.address) as between:
        stage = Stage(step, buildx, registry, many_files, between)
        for victim in VICTIMS[step][: rounds(2)]:
            print("victim:", victim)
            stage.struck(victim)


@pytest.mark.timeout(600)
def test_the_builder_is_killed_at_any_moment(
    buildx: Buildx, registry: peers.Registry, held: Held, rounds: Callable[[int], int]
) -> None:
    """Whatever the moment was: the next build is right, and nothing is left in the end."""
    seed = int(os.environ.get("TEU_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
    chance = random.Random(seed)
    print(f"seed: TEU_SEED={seed}")
    usual = 4.0
    for number in range(rounds(8)):
        mark = f"{seed}-{number}"
        (buildx.context / "file").write_text(mark)
        dockerfile = f"""
FROM {registry.address}/base:1 AS base
FROM busybox AS one
RUN --mount=type=cache,target=/c echo {mark} >>/c/log && echo {mark} >/one
FROM busybox
COPY --from=base /other /other
COPY --from=one /one /one
COPY file /file
RUN cat /one /file >/both
"""
        out = buildx.top / f"out{number}"
        (buildx.context / "Dockerfile").write_text(dockerfile)
        client = Following(buildx.start(*buildx.words(f"--output=type=local,dest={out}")))
        time.sleep(chance.uniform(0, usual))
        if pid := main_pid(SERVICE):
            os.kill(pid, 9)
        client.wait()
        assert not FAULT.search(client.text), client.text[-3000:]
        shutil.rmtree(out, ignore_errors=True)
        begun = time.monotonic()
        buildx.build(dockerfile, f"--output=type=local,dest={out}")
        usual = max(1.0, time.monotonic() - begun)
        assert (out / "both").read_text() == f"{mark}\n{mark}"
        assert (out / "other").stat().st_size == 100_000
        shutil.rmtree(out)
        builds.prune("type==source.local", everything=False)


# -- a full disk -------------------------------------------------------------------------------------------------------


def test_a_full_disk(tmp_path: Path) -> None:
    """A step, a context and an export that do not fit fail with the reason; what fits goes on to be built."""
    from test_containerd_faults import Daemon

    point = tmp_path / "disk"
    point.mkdir()
    call("mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(point))
    daemon = Daemon(point / "containerd")
    process: subprocess.Popen[str] | None = None
    address = f"{tmp_path}/b.sock"
    try:
        daemon.launch()
        daemon("-n", "full", "images", "import", "--base-name=docker.io/library/busybox", str(peers.archive()))
        config = tmp_path / "b.yaml"
        config.write_text(f"namespace: full\ncontainerd: {daemon.address}\ngc: {{enabled: false}}\n")
        words = ["teu-buildkitd", "--config", str(config), "--address", address]
        words += ["--root", f"{point}/buildkit", "--state", f"{tmp_path}/state"]
        log = open(tmp_path / "log", "w+")
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, text=True)
        eventually("its socket", lambda: Path(address).exists())
        buildx = Buildx(tmp_path, address)
        small = f"FROM busybox\nRUN echo {time.time_ns()} >/small\n"
        buildx.build(small)
        text = buildx.build(f"{small}RUN head -c 200m /dev/zero >/big\n", check=False)
        assert re.search(FULL, text, re.IGNORECASE) and "exit code: 1" in text, text[-3000:]
        (buildx.context / "big").write_bytes(os.urandom(120 << 20))
        text = buildx.build(f"{small}COPY big /big\n", check=False)
        assert re.search(FULL, text, re.IGNORECASE), text[-3000:]
        (buildx.context / "big").unlink()
        text = buildx.build(
            f"{small}RUN head -c 60m /dev/urandom >/big\n", "--output=type=image,name=full:1", check=False
        )
        assert re.search(FULL, text, re.IGNORECASE), text[-3000:]
        assert process.poll() is None
        # What was done is still there; and when there is room again, all goes.
        assert cached(buildx.build(small), "RUN echo")
        buildx.run("prune", "--builder=teu", "--force", "--all")
        text = buildx.build(f"{small}RUN head -c 20m /dev/zero >/big && echo fits\n")
        assert "fits" in text
        log.seek(0)
        assert not FAULT.search(log.read())
    finally:
        if process is not None:
            process.terminate()
            process.wait(60 * PATIENCE)
        daemon.stop()
        daemon.remove()
        os.rmdir("/run/teu/runc/full")  # which every namespace has, once something has run in it
        eventually("the disk is in use by nobody", lambda: call("umount", str(point), check=False).returncode == 0)


# -- registries --------------------------------------------------------------------------------------------------------


def test_a_registry_that_breaks_off_a_pull(buildx: Buildx, registry: peers.Registry, held: Held) -> None:
    """The pull goes on where it was broken."""
    with Between(registry.address) as between:
        between.cut, between.cuts = 3 << 20, 2
        dockerfile = f"FROM {between.address}/base:1 AS base\nFROM busybox\nCOPY --from=base /file /other /\n"
        text = buildx.build(dockerfile, f"--output=type=local,dest={buildx.top}/out")
        assert between.cuts == 0, text
        assert (buildx.top / "out/file").stat().st_size == 8 << 20


@pytest.mark.parametrize("what", ["push", "cache"])
def test_a_registry_that_breaks_off_an_upload(what: str, buildx: Buildx, registry: peers.Registry, held: Held) -> None:
    """It fails with words, or is tried again; the next one does the rest."""
    mark = time.time_ns()
    with Between(registry.address) as between:
        between.cut, between.cuts = 1 << 20, 1
        tag = f"{between.address}/broken:{mark}"
        output = f"--output=type=image,name={tag},push=true"
        if what == "cache":
            output = f"--cache-to=type=registry,ref={tag},mode=max"
        dockerfile = f"FROM busybox\nRUN head -c 8m /dev/urandom >/big # {mark}\n"
        text = buildx.build(dockerfile, output, check=False)
        assert between.cuts == 0 and not FAULT.search(text), text[-3000:]
        text = buildx.build(dockerfile, output)
        assert cached(text, "RUN head")
        if what == "push":
            teu("rmi", "-f", tag)
            assert teu("run", "--rm", tag, "wc", "-c", "/big").stdout.split()[0] == str(8 << 20)
            teu("rmi", "-f", tag)


def test_a_registry_that_says_nothing(buildx: Buildx, registry: peers.Registry, held: Held) -> None:
    """Who waits for it may leave: nothing of the builder waits on."""
    with Between(registry.address) as between:
        between.hold(b"GET /v2/base/blobs/")
        (buildx.context / "Dockerfile").write_text(f"FROM {between.address}/base:1\nCOPY Dockerfile /\n")
        client = Following(buildx.start(*buildx.words()))
        assert between.reached.wait(60 * PATIENCE)
        client.process.kill()
        eventually("the build's end", lambda: not active(), 3)
        client.wait()


# -- contexts ----------------------------------------------------------------------------------------------------------


def test_a_context_that_changes_while_it_is_read(buildx: Buildx, held: Held, rounds: Callable[[int], int]) -> None:
    """Each build is made, or refused with words; one of a context that stands still has just that."""
    dice = random.Random(7)
    top = buildx.context / "tree"
    outside = buildx.top / "outside"
    outside.write_text("outside")
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            path = top / f"{dice.randrange(5)}" / f"{dice.randrange(40)}"
            kind = dice.randrange(6)
            try:
                if kind < 2 and not path.is_symlink() and not path.parent.is_symlink():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(b"x" * dice.choice((0, 1, 70_000)))
                elif kind == 2:
                    path.unlink()
                elif kind == 3:
                    shutil.rmtree(path.parent, ignore_errors=True)
                    path.parent.symlink_to(outside.parent)
                elif kind == 4:
                    path.symlink_to(outside)
                elif path.parent.is_symlink():
                    path.parent.unlink()
            except OSError:
                continue
            time.sleep(0.0005)

    top.mkdir()
    (buildx.context / "Dockerfile").write_text("FROM scratch\nCOPY tree /tree\n")
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for number in range(rounds(8)):
            out = buildx.top / f"changing{number}"
            words = [f"--output=type=local,dest={out}", "--progress=plain"]
            if ours := bool(number % 2):
                done = teu("build", *words, str(buildx.context), check=False)
                text = done.stdout + done.stderr
            else:
                text = buildx.run(*buildx.words(*words), check=False)
            assert not FAULT.search(text), text[-3000:]
            for path in out.rglob("*"):
                content = b"" if path.is_symlink() or not path.is_file() else path.read_bytes()
                # Docker's client opens by its name what it has seen to be a file, and may follow a link then, wherever
                # that leads.
                assert set(content) <= {ord("x")} or not ours, path
    finally:
        stop.set()
        thread.join()
    out = buildx.top / "still"
    buildx.run(*buildx.words(f"--output=type=local,dest={out}"))
    assert listing(out / "tree") == listing(top)
    assert outside.read_text() == "outside"


def listing(top: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(folder, name)
            place = str(path.relative_to(top))
            found[place] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


# -- clients -----------------------------------------------------------------------------------------------------------


def test_a_step_goes_on_for_those_who_still_wait(buildx: Buildx, held: Held) -> None:
    (buildx.context / "Dockerfile").write_text(
        f"FROM busybox\nRUN sleep 100; sed s/^/made-/ /proc/sys/kernel/random/uuid # {time.time_ns()}\n"
    )
    clients = [Following(buildx.start(*buildx.words())) for _ in range(3)]
    eventually("a step", scopes)
    eventually("all builds", lambda: len(active()) == 3)
    (one,) = scopes()
    clients[0].process.kill()
    eventually("two are left", lambda: len(active()) == 2)
    assert scopes() == [one]
    clients[1].process.terminate()
    eventually("one is left", lambda: len(active()) == 1)
    assert scopes() == [one]

    def asleep() -> list[int]:
        return [pid for pid, words in whole.processes("sleep").items() if words == ["100"]]

    eventually("its process", asleep)  # the scope is there before it
    os.kill(asleep()[0], signal.SIGKILL)
    assert clients[2].wait() == 0 and "made-" in clients[2].text, clients[2].text[-2000:]
    for client in clients:
        client.wait()


def test_ten_builds_of_the_same_and_of_others_of_which_some_vanish(buildx: Buildx, held: Held) -> None:
    mark = time.time_ns()
    clients: list[tuple[int, Following]] = []
    for number in range(10):
        context = buildx.top / f"c{number}"
        context.mkdir()
        (context / "file").write_text(f"file {number % 3}")
        (context / "Dockerfile").write_text(
            f"FROM busybox AS a\nRUN sleep 1; echo {mark}\n"
            f"FROM busybox AS b\nRUN sleep 1; echo {mark}-{number % 5} >/b\n"
            "FROM a\nCOPY --from=b /b /b\nCOPY file /file\nRUN cat /b /file\n"
        )
        words = ["build", "--builder=teu", "--progress=plain", "--output=type=cacheonly", str(context)]
        clients.append((number, Following(buildx.start(*words))))
    time.sleep(1.5)
    gone = {1, 4, 8}
    for number, client in clients:
        if number in gone:
            client.process.kill()
    for number, client in clients:
        status = client.wait(120)
        if number not in gone:
            assert status == 0, client.text[-3000:]
            assert f"{mark}-{number % 5}" in client.text or "CACHED" in client.text
    assert not scopes() and not active()


# -- keeping -----------------------------------------------------------------------------------------------------------


def test_pruning_while_building(buildx: Buildx, held: Held, rounds: Callable[[int], int]) -> None:
    """Whatever is pruned meanwhile, a build finds what it made itself."""
    stop = threading.Event()
    raised: list[BaseException] = []

    def prune() -> None:
        while not stop.is_set():
            try:
                builds.prune()
            except BaseException as error:
                raised.append(error)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=prune)
    thread.start()
    try:
        for number in range(rounds(4)):
            mark = f"{time.time_ns()}"
            (buildx.context / "file").write_text(mark)
            out = buildx.top / f"out{number}"
            text = buildx.build(
                f"FROM busybox AS one\nRUN echo {mark} >/one\nFROM busybox AS two\nCOPY file /two\n"
                "FROM busybox\nCOPY --from=one /one /one\nCOPY --from=two /two /two\nRUN cat /one /two >/both\n",
                f"--output=type=local,dest={out}",
            )
            assert (out / "both").read_text() == f"{mark}\n{mark}", text
    finally:
        stop.set()
        thread.join()
    assert not raised, raised


def test_images_stay_usable_whatever_is_pruned(buildx: Buildx, held: Held) -> None:
    mark = f"kept-{time.time_ns()}"
    dockerfile = f"FROM busybox\nRUN echo {mark} >/one\nRUN echo {mark} >/two\n"
    buildx.build(dockerfile, f"--output=type=image,name={mark}:1")
    try:
        builds.prune()
        teu("builder", "prune", "-af")
        builds.prune()
        assert teu("run", "--rm", f"{mark}:1", "cat", "/one", "/two").stdout.split() == [mark, mark]
        archive = buildx.top / "image.tar"
        teu("save", "-o", str(archive), f"{mark}:1")
        # What is built upon it needs its files, and what is built again may be another tree, but is a right one.
        text = buildx.build(f"FROM {mark}:1\nRUN cat /one /two && echo upon it\n")
        assert "upon it" in text
        buildx.build(dockerfile, f"--output=type=image,name={mark}:2")
        builds.prune()
        assert teu("run", "--rm", f"{mark}:2", "cat", "/two").stdout.strip() == mark
        teu("rmi", "-f", f"{mark}:1")
        assert teu("run", "--rm", f"{mark}:2", "cat", "/one").stdout.strip() == mark
        teu("load", "-q", "-i", str(archive))
        assert teu("run", "--rm", f"{mark}:1", "cat", "/one").stdout.strip() == mark
    finally:
        teu("rmi", "-f", f"{mark}:1", f"{mark}:2", check=False)


def test_policies_by_age_size_free_space_and_filter(buildx: Buildx, control: Any, held: Held) -> None:
    mark = f"m{time.time_ns()}"
    for number in range(4):
        buildx.build(f"FROM busybox\nRUN head -c 4m /dev/zero >/big; echo {mark}-{number}\n")
        time.sleep(0.1)

    def there() -> list[int]:
        found = control.DiskUsage(control_pb2.DiskUsageRequest(), timeout=60).record
        return [number for number in range(4) if any(f"{mark}-{number}" in one.Description for one in found)]

    def size() -> int:
        found = control.DiskUsage(control_pb2.DiskUsageRequest(), timeout=60).record
        return sum(one.Size for one in found if not one.Shared)  # what an image has counts for no limit

    def prune(**policy: Any) -> None:
        list(control.Prune(control_pb2.PruneRequest(**policy), timeout=60))

    assert there() == [0, 1, 2, 3] and size() >= 16 << 20
    prune(keepDuration=3600 * 10**9)
    assert there() == [0, 1, 2, 3], "they were used within the hour"
    prune(filter=[f"description~={mark}-1"])
    assert there() == [0, 2, 3]
    prune(maxUsedSpace=size() - (1 << 20))
    assert there() == [2, 3], "the one that was not used for the longest time goes first"
    prune(minFreeSpace=1 << 60, reservedSpace=size() - (1 << 20))
    assert there() == [3], "no more than what is reserved stays, however little is free"
    prune(minFreeSpace=1 << 60, reservedSpace=size() + (1 << 20))
    assert there() == [3]
    prune(filter=["type==regular"])
    assert there() == []
