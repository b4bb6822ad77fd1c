# SPDX-License-Identifier: Apache-2.0
"""The builder whole: Debian's buildx on teu-buildkitd's socket, its frontends, cache, history, idle exit and deaths."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from lab_kind import PATIENCE
from whole import call, eventually, main_pid, out, teu

from teu.api.buildkit import control_pb2, control_pb2_grpc, errdefs_pb2, gateway_pb2, gateway_pb2_grpc
from teu.api.rpc import status_pb2
from teu.buildkit.core import errors
from teu.buildkit.llb import build

pytestmark = [pytest.mark.needs("docker", "systemd"), pytest.mark.timeout(300)]

SERVICE = "teu-buildkitd.service"
SOCKET = "/run/teu/buildkitd.sock"


@pytest.fixture(scope="module", autouse=True)
def busybox(tmp_path_factory: pytest.TempPathFactory) -> None:
    if "busybox" not in teu("images").stdout:
        archive = tmp_path_factory.mktemp("image") / "busybox.tar"
        call(str(Path(__file__).resolve().parents[2] / "packaging/make-busybox-image"), str(archive))
        teu("load", "-q", "-i", str(archive))


@pytest.fixture
def buildx(tmp_path: Path) -> Iterator[Buildx]:
    made = Buildx(tmp_path)
    yield made
    made.run("rm", "--keep-state", "teu", check=False)


class Buildx:
    def __init__(self, top: Path, address: str = SOCKET) -> None:
        self.top = top
        self.context = top / "context"
        self.context.mkdir()
        self.environment = {**os.environ, "BUILDX_CONFIG": str(top / "buildx"), "HOME": str(top)}
        self.run("create", "--name", "teu", "--driver", "remote", f"unix://{address}")

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["docker", "buildx", *argv],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *argv: str, check: bool = True) -> str:
        process = self.start(*argv)
        try:
            text, _ = process.communicate(timeout=120 * PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{argv}: {process.communicate()[0][-3000:]}") from None
        assert not check or process.returncode == 0, text[-3000:]
        return text

    def build(self, dockerfile: str, *argv: str, check: bool = True) -> str:
        (self.context / "Dockerfile").write_text(dockerfile)
        return self.run(*self.words(*argv), check=check)

    def words(self, *argv: str) -> list[str]:
        output = [] if any(word.startswith(("--output", "-o")) for word in argv) else ["--output=type=cacheonly"]
        return ["build", "--builder=teu", "--progress=plain", *output, *argv, str(self.context)]


@pytest.fixture
def control() -> Iterator[Any]:
    with grpc.insecure_channel(f"unix:{SOCKET}") as channel:
        yield control_pb2_grpc.ControlStub(channel)


def scopes() -> list[str]:
    text = out("systemctl", "list-units", "--plain", "--no-legend", "--type=scope", "teu-*.scope")
    return [
        line.split()[0]
        for line in text.splitlines()
        if "teu-build" in out("systemctl", "show", "-p", "Slice", line.split()[0])
    ]


def test_a_dockerfile_is_built_and_then_cached(buildx: Buildx) -> None:
    mark = time.time_ns()
    dockerfile = f"FROM busybox\nCOPY file /file\nRUN cat /file && echo {mark} >/made\n"
    (buildx.context / "file").write_text(f"content {mark}\n")
    text = buildx.build(dockerfile)
    assert f"content {mark}" in text and "[3/3] RUN cat /file" in text
    assert "CACHED" in buildx.build(dockerfile).partition("[3/3]")[2]
    (buildx.context / "file").write_text(f"other {mark}\n")
    assert f"other {mark}" in buildx.build(dockerfile)


def test_a_step_that_fails_is_shown_with_its_line_and_its_output(buildx: Buildx) -> None:
    text = buildx.build("FROM busybox\nRUN echo here it is && false\n", check=False)
    assert "here it is" in text and "Dockerfile:2" in text and ">>> RUN echo here it is" in text
    assert "exit code: 1" in text


def test_steps_run_in_scopes_of_their_own_slice(buildx: Buildx) -> None:
    (buildx.context / "Dockerfile").write_text(f"FROM busybox\nRUN sleep 60 # {time.time_ns()}\n")
    process = buildx.start(*buildx.words())
    try:
        eventually("a scope of the step", scopes)
        process.send_signal(signal.SIGKILL)
        begun = time.monotonic()
        eventually("the step's end", lambda: not scopes())
        assert time.monotonic() - begun < 3 * PATIENCE
    finally:
        process.kill()
        process.wait()


def test_workers_usage_prune_and_history(buildx: Buildx, control: Any) -> None:
    mark = str(time.time_ns())
    buildx.build(f"FROM busybox\nRUN echo {mark}\n")
    assert "linux/amd64" in buildx.run("inspect", "teu")
    assert f"from exec /bin/sh -c echo {mark}" in buildx.run("du", "--builder=teu", "--verbose")
    events = list(control.ListenBuildHistory(control_pb2.BuildHistoryRequest(EarlyExit=True), timeout=60))
    assert events[0].type == control_pb2.COMPLETE and events[0].record.numCompletedSteps
    logs = control.Status(control_pb2.StatusRequest(Ref=events[0].record.Ref), timeout=60)
    assert mark in "".join(one.msg.decode() for response in logs for one in response.logs)
    gone = list(control.Prune(control_pb2.PruneRequest(filter=["description~=" + mark]), timeout=60))
    assert [one.RecordType for one in gone] == ["regular"]


def listed(control: Any, **asked: Any) -> dict[str, Any]:
    request = control_pb2.BuildHistoryRequest(EarlyExit=True, **asked)
    for attempt in range(10):
        try:
            return {event.record.Ref: event.record for event in control.ListenBuildHistory(request, timeout=60)}
        except grpc.RpcError as error:  # the builder before it has gone meanwhile
            if error.code() != grpc.StatusCode.UNAVAILABLE or attempt == 9:
                raise
            time.sleep(0.2)
    raise AssertionError("not reached")


def history(*argv: str) -> str:
    """`teu builder history` of the builder itself."""
    done = call("teu", "builder", "history", *argv, f"--builder=unix://{SOCKET}")
    return done.stdout + done.stderr


def test_each_build_that_ended_is_in_the_history(buildx: Buildx, control: Any) -> None:
    """Made, failed, left by its client, ended with the builder: with steps and what they said; the next one has it."""
    before = set(listed(control))
    mark = str(time.time_ns())
    buildx.build(f"FROM busybox\nRUN echo made-{mark}\n")
    buildx.build(f"FROM busybox\nRUN echo failed-{mark} && false\n", check=False)
    buildx.build("FROM busybox\nNONSENSE\n", check=False)
    ends: dict[str, Callable[[Any], object]] = {
        "left": lambda process: process.kill(),
        "stopped": lambda process: call("systemctl", "restart", SERVICE),
    }
    for name, end in ends.items():
        (buildx.context / "Dockerfile").write_text(f"FROM busybox\nRUN echo {name}-{mark}; sleep 60\n")
        process = buildx.start(*buildx.words())
        eventually("the build", lambda: listed(control, ActiveOnly=True))
        (ref,) = listed(control, ActiveOnly=True)
        logs = control.Status(control_pb2.StatusRequest(Ref=ref), timeout=60)
        assert any(f"{name}-{mark}" in one.msg.decode() for response in logs for one in response.logs)
        end(process)
        process.communicate(timeout=60 * PATIENCE)
        eventually("its end", lambda ref=ref: ref not in listed(control, ActiveOnly=True))
    new = [one for ref, one in listed(control).items() if ref not in before]
    new.sort(key=lambda record: record.CreatedAt.ToNanoseconds())
    assert [record.error.code for record in new] == [0, 2, 2, 1, 1], new
    assert all(record.HasField("CompletedAt") and record.numTotalSteps for record in new)
    for name, record in zip(("made", "failed", "", "left", "stopped"), new):
        assert f"{name}-{mark}" in history("logs", record.Ref) or not name
    assert "exit code: 1" in history("inspect", new[1].Ref) and "unknown instruction" in history("inspect", new[2].Ref)
    statuses = dict(line.split()[:1] + [line] for line in history("ls").splitlines())
    for word, record in zip(("Completed", "Error", "Error", "Canceled", "Canceled"), new):
        assert word in statuses[record.Ref]
    history("rm", new[0].Ref)
    assert new[0].Ref not in listed(control)


def test_a_debugger_looks_into_a_step_that_failed(control: Any) -> None:
    """As `buildx build --invoke on-error` does: it is the build's frontend, and opens what the error names."""
    with grpc.insecure_channel(f"unix:{SOCKET}") as channel:
        bridge = gateway_pb2_grpc.LLBBridgeStub(channel)
        ref = f"debug-{time.time_ns()}"
        more: Any = {"metadata": [("buildkit-controlapi-buildid", ref)], "timeout": 60}
        solving = control.Solve.future(control_pb2.SolveRequest(Ref=ref), timeout=200)
        step = build.image("docker.io/library/busybox:latest").run(("sh", "-c", f"echo {ref} >/left; exit 3"))
        asked = gateway_pb2.SolveRequest(Definition=step.root.definition(), Evaluate=True)
        with pytest.raises(grpc.RpcError) as caught:
            bridge.Solve(asked, **more)
        status = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
        details = {type(one): one for one in errors.from_status(status_pb2.Status.FromString(status)).details}
        assert details[gateway_pb2.ExitMessage].Code == 3 and details[errdefs_pb2.Vertex].digest
        solve = details[errdefs_pb2.Solve]
        assert list(solve.op.exec.meta.args)[0] == "sh"
        found = []
        for identifier in (*solve.inputIDs, *solve.mountIDs):
            request = gateway_pb2.NewContainerRequest(ContainerID=identifier)
            request.Mounts.add(dest="/", resultID=identifier)
            bridge.NewContainer(request, **more)
            init = gateway_pb2.InitMessage(ContainerID=identifier, Fds=[1, 2])
            init.Meta.args.extend(["sh", "-c", "cat /left || echo nothing"])
            init.Meta.env.append("PATH=/bin")
            sent: queue.Queue[Any] = queue.Queue()
            sent.put(gateway_pb2.ExecMessage(ProcessID="p", Init=init))
            answers = bridge.ExecProcess(iter(sent.get, None), **more)
            output = b""
            for answer in answers:
                output += answer.File.Data if answer.File.Fd == 1 else b""
                if answer.HasField("Exit"):
                    sent.put(None)
            found.append(output.decode().strip())
        assert found == ["nothing", ref]
        bridge.Return(gateway_pb2.ReturnRequest(error=status_pb2.Status(code=1, message="seen")), **more)
        with pytest.raises(grpc.RpcError, match="seen"):
            solving.result()
    assert not scopes()
    gone = f"mount / from exec sh -c echo {ref}"
    assert gone not in "".join(one.Description for one in control.DiskUsage(control_pb2.DiskUsageRequest()).record)


def test_concurrent_builds_share_their_steps(buildx: Buildx, tmp_path: Path) -> None:
    uuid = "/proc/sys/kernel/random/uuid"
    (buildx.context / "Dockerfile").write_text(f"FROM busybox\nRUN sleep 2; sed s/^/made-/ {uuid} # {time.time_ns()}\n")
    found: list[str] = []

    def one() -> None:
        found.append(buildx.run(*buildx.words()))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len({word for text in found for word in re.findall(r"made-[0-9a-f-]{36}", text)}) == 1


def test_it_survives_its_death(buildx: Buildx) -> None:
    mark = time.time_ns()
    done = f"FROM busybox\nRUN echo first {mark} >/first\n"
    buildx.build(done)
    (buildx.context / "Dockerfile").write_text(done + f"RUN sleep 60; echo {mark}\n")
    process = buildx.start(*buildx.words())
    eventually("the step", scopes)
    os.kill(main_pid(SERVICE), signal.SIGKILL)
    process.communicate(timeout=60 * PATIENCE)
    assert process.returncode != 0
    text = buildx.build(done)
    assert "CACHED" in text.partition("[2/2]")[2]
    eventually("no step is left", lambda: not scopes())


def test_calls_that_are_given_up_leave_no_connection(control: Any) -> None:
    """Each by its own connection, and at once: not when Python looks for circles."""
    control.Info(control_pb2.InfoRequest())

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{main_pid(SERVICE)}/fd"))

    def give_up() -> None:
        own = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(f"unix:{SOCKET}", own) as channel:
            # A build without a definition waits for its client, which never says what the result is.
            asked = control_pb2.SolveRequest(Ref=os.urandom(12).hex())
            with pytest.raises(grpc.RpcError) as caught:
                control_pb2_grpc.ControlStub(channel).Solve(asked, timeout=0.2)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    give_up()
    before = descriptors()
    for _ in range(10):
        give_up()
    eventually("they are closed", lambda: descriptors() < before + 3, timeout=5)


def test_it_leaves_when_idle_and_comes_again(buildx: Buildx, tmp_path: Path) -> None:
    drop = Path("/etc/teu/buildkitd.yaml.d/idle.yaml")
    drop.parent.mkdir(exist_ok=True)
    drop.write_text("idle-exit: 1s\ngc: {delay: 500ms}\n")
    try:
        call("systemctl", "restart", SERVICE)
        buildx.build("FROM busybox\nRUN true\n")
        eventually("it leaves", lambda: main_pid(SERVICE) == 0, 60)
        assert out("systemctl", "show", "--value", "-p", "Result", SERVICE) == "success"
        buildx.build("FROM busybox\nRUN true\n")
    finally:
        drop.unlink()
        call("systemctl", "restart", SERVICE)


def test_secrets_are_nowhere(buildx: Buildx) -> None:
    secret = f"secret-{time.time_ns()}"
    (buildx.top / "key").write_text(secret)
    text = buildx.build(
        "FROM busybox\nRUN --mount=type=secret,id=key wc -c /run/secrets/key && cp /etc/passwd /x\n",
        f"--secret=id=key,src={buildx.top}/key",
    )
    assert f"{len(secret)} /run/secrets/key" in text
    found = subprocess.run(
        ["grep", "-rlF", secret, "/var/lib/teu", "/run/teu"], capture_output=True, text=True, check=False
    )
    assert not found.stdout


def test_results_go_to_the_engine_and_to_the_client(buildx: Buildx) -> None:
    mark = str(time.time_ns())
    dockerfile = f'FROM busybox\nRUN echo {mark} >/made\nENTRYPOINT ["cat"]\nCMD ["/made"]\n'
    metadata = buildx.top / "metadata.json"
    buildx.build(dockerfile, "--output=type=image,name=control:1", f"--metadata-file={metadata}")
    assert teu("run", "--rm", "control:1").stdout.strip() == mark
    told = json.loads(metadata.read_text())
    assert told["image.name"] == "docker.io/library/control:1"
    assert told["containerimage.descriptor"]["digest"] == told["containerimage.digest"]
    buildx.build(dockerfile, f"--output=type=local,dest={buildx.top}/out")
    assert (buildx.top / "out/made").read_text().strip() == mark
    teu("rmi", "control:1")
    for kind in ("docker", "oci"):
        buildx.build(dockerfile, f"--output=type={kind},name=control:{kind},dest={buildx.top}/{kind}.tar")
        teu("load", "-q", "-i", f"{buildx.top}/{kind}.tar")
        assert teu("run", "--rm", f"control:{kind}").stdout.strip() == mark
        teu("rmi", f"control:{kind}")


@pytest.mark.parametrize("cache", ["local", "inline"])
def test_a_cache_travels(buildx: Buildx, control: Any, cache: str) -> None:
    mark = str(time.time_ns())
    dockerfile = f"FROM busybox\nRUN echo {mark} >/made\n"
    if cache == "local":
        buildx.build(dockerfile, f"--cache-to=type=local,dest={buildx.top}/cache,mode=max")
        source = f"--cache-from=type=local,src={buildx.top}/cache"
    else:
        buildx.build(dockerfile, "--cache-to=type=inline", "--output=type=image,name=control:cache")
        source = "--cache-from=control:cache"
    list(control.Prune(control_pb2.PruneRequest(all=True), timeout=60))
    text = buildx.build(dockerfile, source, f"--output=type=local,dest={buildx.top}/out")
    assert "CACHED" in text.partition("[2/2]")[2], text
    assert (buildx.top / "out/made").read_text().strip() == mark
    if cache == "inline":
        teu("rmi", "control:cache")


def test_ten_builds_at_once(buildx: Buildx) -> None:
    mark = time.time_ns()
    contexts = []
    for number in range(10):
        context = buildx.top / f"c{number}"
        context.mkdir()
        (context / "Dockerfile").write_text(f"FROM busybox\nRUN echo {mark}; sleep 1\nRUN echo {mark}-{number}\n")
        contexts.append(context)
    running = [
        buildx.start("build", "--builder=teu", "--progress=plain", "--output=type=cacheonly", str(context))
        for context in contexts
    ]
    for number, process in enumerate(running):
        text, _ = process.communicate(timeout=120 * PATIENCE)
        assert process.returncode == 0 and f"{mark}-{number}" in text, text[-2000:]
    assert not scopes()


def test_garbage_is_collected_by_the_policies(buildx: Buildx) -> None:
    drop = Path("/etc/teu/buildkitd.yaml.d/gc.yaml")
    drop.parent.mkdir(exist_ok=True)
    mark = str(time.time_ns())
    buildx.build(f"FROM busybox\nRUN echo {mark} && head -c 1m /dev/zero >/big\n")
    policy = f"all: {{filters: ['description~={mark}'], max-used-space: 1}}"
    drop.write_text(f"gc:\n  delay: 500ms\n  policies:\n    {policy}\n")
    try:
        call("systemctl", "restart", SERVICE)
        buildx.run("inspect", "teu")
        eventually("it is gone", lambda: mark not in buildx.run("du", "--builder=teu", "--verbose"), 60)
    finally:
        drop.unlink()
        call("systemctl", "restart", SERVICE)


def test_the_interrupt_of_a_client_ends_its_steps(buildx: Buildx) -> None:
    (buildx.context / "Dockerfile").write_text(f"FROM busybox\nRUN sleep 60 # {time.time_ns()}\n")
    process = buildx.start(*buildx.words())
    eventually("a scope of the step", scopes)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=30 * PATIENCE)
    assert process.returncode != 0 and "cancel" in text.lower()
    eventually("the step's end", lambda: not scopes(), 5)


# Through teud, and on the real containerd


def test_docker_build_and_bake_through_teud(buildx: Buildx) -> None:
    mark = str(time.time_ns())
    (buildx.context / "Dockerfile").write_text(f"FROM busybox\nRUN echo {mark} >/made\n")
    (buildx.context / "docker-bake.json").write_text(
        json.dumps(
            {
                "target": {
                    "base": {"dockerfile": "Dockerfile"},
                    "app": {
                        "contexts": {"base": "target:base"},
                        "dockerfile-inline": "FROM base\nRUN cat /made >/copied\n",
                        "tags": ["control:baked"],
                    },
                }
            }
        )
    )
    environment = {**buildx.environment, "DOCKER_HOST": "unix:///run/teu/teud.sock"}

    def docker(*argv: str) -> str:
        done = subprocess.run(
            ["docker", *argv],
            cwd=buildx.context,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120 * PATIENCE,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    docker("build", "--progress=plain", "-t", "control:docker", ".")
    assert mark in docker("run", "--rm", "control:docker", "cat", "/made")
    docker("buildx", "bake", "--builder=default", "--progress=plain", "app")
    assert mark in docker("run", "--rm", "control:baked", "cat", "/copied")
    assert "Build Cache" in docker("system", "df")
    docker("rmi", "control:docker", "control:baked")


@pytest.mark.needs("ctr")
def test_on_debian_s_containerd(tmp_path: Path) -> None:
    archive = tmp_path / "busybox.tar"
    call(str(Path(__file__).resolve().parents[2] / "packaging/make-busybox-image"), str(archive))
    call("systemctl", "start", "containerd")
    call("ctr", "--namespace=buildtest", "images", "import", "--base-name=docker.io/library/busybox", str(archive))
    address = f"{tmp_path}/b.sock"
    config = tmp_path / "b.yaml"
    config.write_text("namespace: buildtest\ncontainerd: /run/containerd/containerd.sock\n")
    words = ["teu-buildkitd", "--config", str(config), "--address", address]
    words += ["--root", f"{tmp_path}/root", "--state", "/run/teu/buildkit-test"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        eventually("its socket", lambda: Path(address).exists())
        buildx = Buildx(tmp_path, address)
        mark = str(time.time_ns())
        text = buildx.build(f"FROM busybox\nRUN echo {mark} >/made\n", f"--output=type=local,dest={tmp_path}/out")
        assert "exporting to client directory" in text
        assert (tmp_path / "out/made").read_text().strip() == mark
    finally:
        process.terminate()
        told, _ = process.communicate(timeout=30 * PATIENCE)
        print(told[-3000:])
        call("ctr", "namespaces", "remove", "--cgroup", "buildtest", check=False)
        call("systemctl", "stop", "containerd")
        call("systemctl", "stop", SERVICE)  # the bridge, which both had, went with the other one
    assert process.returncode == 0


FRONTEND = r"""
import os, socket, sys, threading
sys.path[:0] = ["/python"]
import grpc
from teu.api.buildkit import gateway_pb2, gateway_pb2_grpc, ops_pb2

# What comes in and goes out by the standard streams is a connection; grpc has to be given an address for it.
listener = socket.socket(socket.AF_UNIX)
listener.bind("/stdio")
listener.listen()

def carry():
    connection, _ = listener.accept()
    def inwards():
        while data := os.read(0, 65536):
            connection.sendall(data)
    threading.Thread(target=inwards, daemon=True).start()
    while data := connection.recv(65536):
        while data:
            data = data[os.write(1, data):]

threading.Thread(target=carry, daemon=True).start()
bridge = gateway_pb2_grpc.LLBBridgeStub(grpc.insecure_channel("unix:/stdio"))
options = dict(value.split("=", 1) for name, value in os.environ.items() if name.startswith("BUILDKIT_FRONTEND_OPT_"))
assert bridge.Ping(gateway_pb2.PingRequest(), timeout=30).Workers[0].platforms
assert os.path.getsize("/run/config/buildkit/metadata/frontend.bin")
print("frontend of", options["source"], "for", options["filename"], file=sys.stderr, flush=True)
inside = sorted(os.listdir("/run"))
request = gateway_pb2.SolveRequest(
    Frontend="dockerfile.v0", FrontendOpt={name: options[name] for name in ("filename", "cmdline")},
    allowResultReturn=True, allowResultArrayRef=True, Evaluate=True,
)
result = bridge.Solve(request, timeout=60).result
made = bridge.ReadFile(gateway_pb2.ReadFileRequest(Ref=result.ref.id, FilePath="/made"), timeout=30).Data
print("made", made.decode().strip(), "with", inside, file=sys.stderr, flush=True)
bridge.Return(gateway_pb2.ReturnRequest(result=result), timeout=30)
"""


# The files of the modules that the program needs.
NEEDED = """
import encodings.ascii, encodings.idna, encodings.latin_1, hashlib, json, os, re, socket, sys, threading
import grpc
from teu.api.buildkit import gateway_pb2, gateway_pb2_grpc, ops_pb2
try:
    gateway_pb2_grpc.LLBBridgeStub(grpc.insecure_channel("unix:/none")).Ping(gateway_pb2.PingRequest(), timeout=5)
except grpc.RpcError as error:
    str(error)
for module in list(sys.modules.values()):
    if "/" in (getattr(module, "__file__", None) or "") and "/teu/" not in module.__file__:
        print(module.__file__)
"""


@pytest.fixture(scope="module")
def frontend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image that is a frontend: as much of this machine's Python, gRPC and the stubs as the program needs."""
    top = tmp_path_factory.mktemp("frontend")
    python = Path("/usr/bin/python3").resolve()
    root = top / "root"
    needed = {str(python), *call(str(python), "-c", NEEDED).stdout.splitlines()}
    libraries = [name for name in needed if ".so" in name]
    for line in call("ldd", str(python), *libraries).stdout.splitlines():
        needed |= {word for word in line.split() if word.startswith("/") and not word.endswith(":")}
    for name in needed:
        (root / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, root / name[1:])
    shutil.copytree("/usr/lib/python3/dist-packages/teu/api", root / "python/teu/api")
    (root / "python/teu/__init__.py").touch()
    (root / "frontend.py").write_text(FRONTEND)
    (top / "Dockerfile").write_text(
        f"FROM scratch\nCOPY root /\nENV PYTHONPATH=/usr/lib/python3/dist-packages\n"
        f'ENTRYPOINT ["{python}", "-X", "faulthandler", "/frontend.py"]\n'
    )
    buildx = Buildx(top)
    try:
        output = "--output=type=image,name=frontend:1,compression=uncompressed"
        buildx.run("build", "--builder=teu", "--provenance=false", output, str(top))
    finally:
        buildx.run("rm", "--keep-state", "teu")
    yield "docker.io/library/frontend:1"
    call("teu-ctr", "-n", "teu", "images", "rm", "--sync", "docker.io/library/frontend:1")


def test_a_frontend_in_an_image_runs_as_a_container(buildx: Buildx, frontend: str) -> None:
    mark = time.time_ns()
    text = buildx.build(f"# syntax={frontend}\nFROM busybox\nRUN echo {mark} >/made\n")
    assert f"frontend of {frontend}" in text and f"made {mark} with ['config']" in text
    assert not scopes()


def test_what_configuration_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "b.yaml"
    file.write_text("gc:\n  polices: {}\n")
    done = call("teu-buildkitd", "--config", str(file), "--validate", check=False)
    assert done.returncode == 1 and "gc.polices: unknown key; did you mean policies?" in done.stderr
    file.write_text(json.dumps({"registries": {"x": {"certificates": ["/a"]}}}))
    assert "give a key for each" in call("teu-buildkitd", "--config", str(file), "--validate", check=False).stderr
