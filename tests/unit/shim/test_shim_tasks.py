# SPDX-License-Identifier: Apache-2.0
"""A whole shim in a process of its own, with a shell script as its OCI runtime: the task API, the events, the exits.

The runtime's containers are plain shell processes that wait until `start` lets them go. systemd is not asked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf import any_pb2

from teu.containerd.core import errors
from teu.containerd.cri.attach import Attaches
from teu.containerd.cri.execs import Execs
from teu.containerd.cri.pipes import Pipe, Streams
from teu.containerd.cri.records import RUNNING
from teu.containerd.runtime.tasks import Stdio
from teu.shim import cleanup, idmapped
from teu.ttrpc import client, frames
from teu.ttrpc import messages as m
from teu.ttrpc.status import ALREADY_EXISTS, FAILED_PRECONDITION, NOT_FOUND, UNIMPLEMENTED, UNKNOWN, StatusError

SRC = Path(__file__).resolve().parents[3] / "src"
TASKS = "containerd.task.v2.Task"
SANDBOXES = "containerd.runtime.sandbox.v1.Sandbox"
RUNC = r"""#!/bin/sh
echo "$@" >> "$STATE/calls"
while [ $# -gt 0 ]; do
    case $1 in
        --root | --log | --log-format) [ "$1" = --log ] && LOG=$2; shift 2 ;;
        *) break ;;
    esac
done
verb=$1; shift
[ -e "$STATE/fail-$verb" ] && { echo '{"level":"error","msg":"the runtime says no"}' >> "$LOG"; exit 1; }
while [ $# -gt 0 ]; do
    case $1 in
        --pid-file) pid=$2; shift 2 ;;
        --bundle) bundle=$2; shift 2 ;;
        --process) process=$2; shift 2 ;;
        --resources) cp "$2" "$STATE/update"; shift 2 ;;
        --*) shift ;;
        *) break ;;
    esac
done
exec 3<&0  # a shell's background has no standard input unless it is told
case $verb in
    create) (while [ ! -e "$STATE/go" ]; do sleep 0.01; done; exec sh "$bundle/script") <&3 & echo $! > "$pid" ;;
    start) touch "$STATE/go" ;;
    exec) args=$(sed 's/.*"args": *\["\([^"]*\)".*/\1/' "$process"); sh -c "$args" <&3 & echo $! > "$pid" ;;
    ps) echo '[1, 2]' ;;
    features) echo '{"ociVersionMin": "1.0.0"}' ;;
esac
"""
CHILD = """
import os, socket, sys
sys.path.insert(0, sys.argv[1])
from teu.shim import placement, server
placement.systemd_is_running = lambda: False
listener = socket.socket(fileno=int(sys.argv[2]))
server.serve(server.Parameters(namespace="ns", container="c", bundle=os.getcwd(), socket_path=listener.getsockname(),
    ttrpc_address=sys.argv[3], command=[], debug=False, environment=dict(os.environ)), listener)
"""


class Events(threading.Thread):
    """containerd's end of the events: accepts all, after refusing the first `refused`."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.topics: list[str] = []
        self.seen: list[Any] = []
        self.refused = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.start()

    def run(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
                self.serve(peer)
            except ConnectionResetError:
                continue  # a shim that was killed
            except OSError:
                return

    def serve(self, peer: socket.socket) -> None:
        reader = frames.Reader()
        while data := peer.recv(65536):
            for stream, _, _, payload in reader.feed(data):
                request = m.decode("ttrpc.Request", payload)
                forwarded = m.decode("containerd.services.events.ttrpc.v1.ForwardRequest", request["payload"])
                answer: dict[str, Any] = {}
                if self.refused:
                    self.refused -= 1
                    answer = {"status": {"code": 13, "message": "not now"}}
                else:
                    self.topics.append(forwarded["envelope"]["topic"])
                    self.seen.append(forwarded["envelope"]["event"])
                peer.sendall(frames.pack(stream, frames.RESPONSE, m.encode("ttrpc.Response", answer)))


class Shim:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = folder / "bundle"
        self.bundle.mkdir()
        (folder / "bin").mkdir()
        (folder / "bin/runc").write_text(RUNC)
        (folder / "bin/runc").chmod(0o755)
        self.script("exit 3")
        self.spec({})
        self.events = Events(folder / "events")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / "shim"))
        listener.listen()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(SRC), str(listener.fileno()), f"unix://{folder}/events"],
            cwd=self.bundle,
            pass_fds=[listener.fileno()],
            env={**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "STATE": str(folder)},
        )
        listener.close()

    def script(self, text: str) -> None:
        (self.bundle / "script").write_text(text + "\n")

    def spec(self, spec: dict[str, Any]) -> None:
        spec = {"linux": {"namespaces": [{"type": "pid"}]}, **spec}
        (self.bundle / "config.json").write_text(json.dumps(spec))

    def calls(self) -> list[str]:
        """The subcommands that the runtime was run with, in order."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [line.split("--log-format json ")[1].split()[0] for line in lines]


class Api:
    """The task API of one shim."""

    def __init__(self, shim: Shim, link: client.Client) -> None:
        self.shim = shim
        self.link = link

    async def __call__(self, method: str, timeout: float = 10, **request: Any) -> dict[str, Any]:
        return await self.link.task(TASKS, method, {"id": "c", **request}, timeout)

    async def create(self, **request: Any) -> dict[str, Any]:
        options = m.encode_any(
            "containerd.runc.v1.Options", {"binary_name": "runc", "root": str(self.shim.folder / "r")}
        )
        return await self("Create", bundle=str(self.shim.bundle), options=options, **request)

    async def ready(self) -> None:
        """Wait until the script has said that its traps are set."""
        while not (self.shim.folder / "ready").exists():
            await asyncio.sleep(0.01)

    async def refused(self, method: str, **request: Any) -> StatusError:
        with pytest.raises(StatusError) as caught:
            await self(method, **request)
        return caught.value


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    made = Shim(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()
    made.events.listener.close()
    for file in made.bundle.glob("*.pid"):
        try:
            os.kill(int(file.read_text() or 0), signal.SIGKILL)
        except (ProcessLookupError, ValueError):
            pass


def talk(shim: Shim, story: Callable[[Api], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        link = await client.connect(f"unix://{shim.folder}/shim")
        try:
            async with asyncio.timeout(30):
                await story(Api(shim, link))
        finally:
            link.close()

    asyncio.run(run())


def test_the_life_of_a_container(shim: Shim) -> None:
    shim.script("exit 3")

    async def story(api: Api) -> None:
        made = await api.create()
        assert made["pid"] == int((shim.bundle / "init.pid").read_text())
        assert (await api("State"))["status"] == m.CREATED
        assert (await api.refused("Create", bundle=str(shim.bundle))).code == ALREADY_EXISTS
        waiting = asyncio.ensure_future(api("Wait"))
        assert (await api("Start"))["pid"] == made["pid"]
        ended = await waiting
        assert ended["exit_status"] == 3
        assert (await api("State"))["status"] == m.STOPPED
        assert json.loads((shim.bundle / "exit.json").read_text())["exit_status"] == 3
        assert (await api("Delete"))["exit_status"] == 3
        assert (await api.refused("State")).code == NOT_FOUND
        await api("Shutdown")

    talk(shim, story)
    assert shim.process.wait(10) == 0
    assert shim.calls() == ["create", "start", "delete"]
    assert shim.events.topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    assert not (shim.folder / "shim").exists()


def test_variables_that_the_record_does_not_have(shim: Shim) -> None:
    shim.script("exit 3")
    shim.spec({"process": {"env": ["A=b"]}})

    async def story(api: Api) -> None:
        options = m.encode_any("containerd.runc.v1.Options", {"binary_name": "runc", "environment": [b"SECRET=w\xff"]})
        await api("Create", bundle=str(shim.bundle), options=options)
        assert json.loads((shim.bundle / "config.json").read_text())["process"]["env"] == ["A=b", "SECRET=w\udcff"]
        assert "SECRET" not in (shim.bundle / "options.json").read_text()
        await api("Start")
        await api("Wait")
        await api("Delete")

    talk(shim, story)


def test_the_process_has_the_clients_fifos(shim: Shim) -> None:
    shim.script('read line; echo "got $line"; echo "note" >&2')
    paths = {name: str(shim.folder / name) for name in ("stdin", "stdout", "stderr")}
    for path in paths.values():
        os.mkfifo(path)
    ours = {name: os.open(path, os.O_RDWR | os.O_NONBLOCK) for name, path in paths.items()}

    async def story(api: Api) -> None:
        await api.create(**paths)
        await api("Start")
        os.write(ours["stdin"], b"hello\n")
        await api("CloseIO", stdin=True)
        await api("Wait")
        assert os.read(ours["stdout"], 100) == b"got hello\n"
        await api("Delete")
        assert os.read(ours["stderr"], 100) == b"note\n"

    talk(shim, story)


def test_a_log_that_the_shim_writes_and_who_looks_on(shim: Shim) -> None:
    shim.script('read line; echo "got $line"; echo "note" >&2; head -c 1000000 /dev/zero; echo; echo last')
    stdin, log, attach = (str(shim.folder / name) for name in ("stdin", "log", "attach"))
    os.mkfifo(stdin)
    ours = os.open(stdin, os.O_RDWR | os.O_NONBLOCK)
    seen: dict[int, bytes] = {1: b"", 2: b""}

    def look(client: socket.socket) -> None:
        while packet := client.recv(70_000):
            seen[packet[0]] += packet[1:]

    async def story(api: Api) -> None:
        await api.create(stdin=stdin, stdout=f"cri://{log}", stderr=attach)
        await api("Start")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(attach)
            looking = asyncio.create_task(asyncio.to_thread(look, client))
            await asyncio.sleep(0.2)  # it is let in
            os.write(ours, b"hello\n")
            await api("Wait")
            await api("Delete")
            await looking

    talk(shim, story)
    assert seen == {1: b"got hello\n" + bytes(1_000_000) + b"\nlast\n", 2: b"note\n"}
    lines = [line.split(b" ", 3)[1:] for line in Path(log).read_bytes().splitlines()]
    assert lines[-1] == [b"stdout", b"F", b"last"] and [b"stderr", b"F", b"note"] in lines


class Tasks:
    """teu-containerd's tasks as the CRI calls them, for the one of a shim."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def exec(self, _namespace: str, _id: str, exec_id: str, stdio: Stdio, spec: Any) -> None:
        packed = {"type_url": spec.type_url, "value": spec.value}
        await self._api("Exec", exec_id=exec_id, spec=packed, **stdio.fields())

    async def start(self, _namespace: str, _id: str, exec_id: str = "") -> None:
        await self._api("Start", exec_id=exec_id)

    async def wait(self, _namespace: str, _id: str, exec_id: str = "") -> Any:
        return SimpleNamespace(status=(await self._api("Wait", exec_id=exec_id))["exit_status"])

    async def kill(self, _namespace: str, _id: str, number: int, exec_id: str = "") -> None:
        try:
            await self._api("Kill", exec_id=exec_id, signal=number)
        except StatusError as error:
            raise errors.from_code(error.code, error.message) from None

    async def delete_process(self, _namespace: str, _id: str, exec_id: str) -> None:
        try:
            await self._api("Delete", exec_id=exec_id)
        except StatusError as error:
            raise errors.from_code(error.code, error.message) from None

    async def close_io(self, _namespace: str, _id: str, exec_id: str = "") -> None:
        await self._api("CloseIO", exec_id=exec_id, stdin=True)


class Kept:
    """A client's stream."""

    def __init__(self) -> None:
        self.data = b""

    async def write(self, data: bytes) -> None:
        self.data += data

    async def end(self) -> None:
        pass


class Streamed(Execs):
    """Commands with the streams of a client, whose record is here."""

    def _process(self, _container: Any, command: list[str], _terminal: bool) -> any_pb2.Any:
        return any_pb2.Any(type_url="p", value=json.dumps({"args": command, "cwd": "/"}).encode())


def streamed(api: Api) -> Streamed:
    context: Any = SimpleNamespace(tasks=Tasks(api), pool=None)
    containers: Any = SimpleNamespace(state_of=lambda _id: str(api.shim.folder))
    return Streamed(context, containers)


def test_a_command_with_a_clients_streams(shim: Shim) -> None:
    shim.script("exec sleep 100")
    container: Any = SimpleNamespace(id="c", state=RUNNING)

    async def story(api: Api) -> None:
        await api.create()
        await api("Start")
        stdin, out, err = Pipe(), Kept(), Kept()
        script = "sleep 0.2; cat; echo note >&2; head -c 300000 /dev/zero; exit 4"
        streams = Streams(stdin, out, err, None)
        running = asyncio.create_task(streamed(api).stream(container, [script], streams, terminal=False))
        await stdin.put(b"hello\n")
        stdin.finish()
        assert await running == 4
        assert out.data == b"hello\n" + bytes(300_000) and err.data == b"note\n"
        assert not list(shim.folder.glob("exec-*"))

    talk(shim, story)


def test_a_command_whose_client_leaves(shim: Shim) -> None:
    shim.script("exec sleep 100")
    container: Any = SimpleNamespace(id="c", state=RUNNING)

    async def story(api: Api) -> None:
        await api.create()
        await api("Start")
        out = Kept()
        streams = Streams(Pipe(), out, None, None)
        running = asyncio.create_task(
            streamed(api).stream(container, ["echo $$; exec sleep 99"], streams, terminal=False)
        )
        while not out.data:
            await asyncio.sleep(0.02)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(ProcessLookupError):
            os.kill(int(out.data), 0)
        assert not list(shim.folder.glob("exec-*"))

    talk(shim, story)


@pytest.mark.parametrize("leaves", [False, True])
def test_a_client_at_a_container(shim: Shim, leaves: bool) -> None:
    shim.script("cat; echo done >&2; exit 2")
    config = SimpleNamespace(stdin=True, stdin_once=True, tty=False)
    container: Any = SimpleNamespace(id="c", state=RUNNING, config=config)
    containers: Any = SimpleNamespace(state_of=lambda _id: str(shim.folder))
    os.mkfifo(shim.folder / "stdin")

    async def story(api: Api) -> None:
        paths = {name: str(shim.folder / name) for name in ("stdin", "attach", "log")}
        await api.create(stdin=paths["stdin"], stdout=f"cri://{paths['log']}", stderr=paths["attach"])
        await api("Start")
        stdin, out, err = Pipe(), Kept(), Kept()
        context: Any = SimpleNamespace(tasks=Tasks(api))
        attached = Attaches(context, containers).attach(container, Streams(stdin, out, err, None))
        attaching = asyncio.create_task(attached)
        await asyncio.sleep(0.2)
        await stdin.put(b"hello\n")
        while not out.data:
            await asyncio.sleep(0.02)
        if leaves:
            attaching.cancel()
        else:
            stdin.finish()
        assert (await api("Wait"))["exit_status"] == 2  # its input has ended
        await api("Delete")
        if leaves:
            with pytest.raises(asyncio.CancelledError):
                await attaching
        else:
            assert await attaching == 0 and err.data == b"done\n"
        assert out.data == b"hello\n" and not (shim.folder / "stdin").exists()

    talk(shim, story)


def test_why_a_container_was_not_made_or_started(shim: Shim) -> None:
    async def story(api: Api) -> None:
        (shim.folder / "fail-create").touch()
        with pytest.raises(StatusError, match="OCI runtime create failed: the runtime says no"):
            await api.create()
        (shim.folder / "fail-create").unlink()
        (shim.folder / "fail-start").touch()
        await api.create()
        told = await api.refused("Start")
        assert told.code == UNKNOWN and "start failed: the runtime says no" in told.message
        (shim.folder / "fail-start").unlink()
        await api("Start")
        await api("Wait")
        assert "cannot start a stopped process" in (await api.refused("Start")).message
        await api("Delete")

    talk(shim, story)
    assert shim.events.topics.count("/tasks/create") == 1


def test_signals_and_states(shim: Shim) -> None:
    shim.script("trap 'exit 9' TERM; touch $STATE/ready; while :; do sleep 0.02; done")

    async def story(api: Api) -> None:
        await api.create()
        await api("Start")
        assert "cannot delete a running process" in (await api.refused("Delete")).message
        await api("Pause")
        assert (await api("State"))["status"] == m.PAUSED
        assert "cannot exec in a paused container" in (await api.refused("Exec", exec_id="e")).message
        await api("Resume")
        await api("Update", resources={"type_url": "x", "value": b'{"memory": {}}'})
        assert (shim.folder / "update").read_text() == '{"memory": {}}'
        assert (await api("Connect"))["shim_pid"] == shim.process.pid
        await api.ready()
        await api("Kill", signal=15)
        assert (await api("Wait"))["exit_status"] == 9
        assert (await api.refused("Kill", signal=15)).code == NOT_FOUND
        await api("Delete")

    talk(shim, story)
    assert shim.calls() == ["create", "start", "pause", "resume", "update", "delete"]
    assert "/tasks/paused" in shim.events.topics and "/tasks/resumed" in shim.events.topics


def test_a_signal_ends_a_process_with_128_and_its_number(shim: Shim) -> None:
    shim.script("exec sleep 100")

    async def story(api: Api) -> None:
        await api.create()
        await api("Start")
        await api("Kill", signal=9)
        assert (await api("Wait"))["exit_status"] == 137
        await api("Delete")

    talk(shim, story)


def test_further_processes(shim: Shim) -> None:
    shim.script("exec sleep 100")

    async def story(api: Api) -> None:
        await api.create()
        await api("Start")
        # Not gone before the runtime is: the runtime's shell would collect it, which no runtime does.
        spec = {"type_url": "p", "value": json.dumps({"args": ["sleep 0.2; exit 5"], "cwd": "/"}).encode()}
        await api("Exec", exec_id="e", spec=spec)
        assert (await api.refused("Exec", exec_id="e", spec=spec)).code == ALREADY_EXISTS
        assert (await api.refused("Kill", exec_id="e", signal=9)).code == FAILED_PRECONDITION
        await api("Start", exec_id="e")
        assert (await api("Wait", exec_id="e"))["exit_status"] == 5
        assert (await api.refused("ResizePty", exec_id="e")).code == UNKNOWN
        assert (await api("Delete", exec_id="e"))["exit_status"] == 5
        assert (await api.refused("State", exec_id="e")).code == NOT_FOUND
        assert (await api("State"))["status"] == m.RUNNING
        await api("Kill", signal=9)
        await api("Wait")
        assert (await api.refused("Start", exec_id="e")).code == NOT_FOUND
        await api("Delete")

    talk(shim, story)
    assert [topic for topic in shim.events.topics if "exec" in topic] == ["/tasks/exec-added", "/tasks/exec-started"]


def test_a_shim_that_is_told_to_stop_uses_the_containers_signal(shim: Shim) -> None:
    shim.spec({"annotations": {"org.opencontainers.image.stopSignal": "USR1"}})
    shim.script("trap 'exit 4' USR1; touch $STATE/ready; while :; do sleep 0.02; done")

    async def story(api: Api) -> None:
        await api.create()
        await api("Start")
        waiting = asyncio.ensure_future(api("Wait"))
        await api("Connect")  # answered after the request before it has been taken
        await api.ready()
        shim.process.send_signal(signal.SIGTERM)
        assert (await waiting)["exit_status"] == 4

    talk(shim, story)
    assert shim.process.wait(10) == 0


def test_events_wait_for_a_containerd_that_is_away(shim: Shim) -> None:
    """What it refuses once is sent again; in order, each once."""
    shim.events.refused = 2

    async def story(api: Api) -> None:
        await api.create()
        await api("Start")
        await api("Wait")
        await api("Delete")
        await api("Shutdown")

    talk(shim, story)
    shim.process.wait(10)
    assert shim.events.topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    ended = m.decode("containerd.events.TaskExit", shim.events.seen[2]["value"])
    assert (ended["container_id"], ended["exit_status"]) == ("c", 3)


def test_a_sandbox_keeps_the_shim_without_containers(shim: Shim) -> None:
    async def story(api: Api) -> None:
        async def sandbox(method: str, **request: Any) -> dict[str, Any]:
            request_type, response_type = m.SANDBOX_METHODS[method]
            data = m.encode(
                request_type, {"sandbox_id": "s", **request} if method != "Platform" else {"sandbox_id": "s"}
            )
            return m.decode(response_type, await api.link.call_raw(SANDBOXES, method, data, 10))

        with pytest.raises(StatusError, match="sandbox s not found"):
            await sandbox("StartSandbox")
        await sandbox("CreateSandbox", bundle_path=str(shim.bundle))
        with pytest.raises(StatusError, match="this shim keeps the sandbox s"):
            await sandbox("CreateSandbox", bundle_path=str(shim.bundle))
        assert (await sandbox("SandboxStatus"))["state"] == "SANDBOX_NOTREADY"
        assert (await sandbox("StartSandbox"))["pid"] == shim.process.pid
        assert (await sandbox("SandboxStatus"))["state"] == "SANDBOX_READY"
        assert (await sandbox("Platform"))["platform"]["os"] == "linux"
        await sandbox("PingSandbox")
        await api("Shutdown")
        assert shim.process.poll() is None
        waiting = asyncio.ensure_future(sandbox("WaitSandbox"))
        await sandbox("PingSandbox")  # answered after the request before it has been taken
        await sandbox("StopSandbox")
        assert (await waiting)["exit_status"] == 0

    talk(shim, story)
    assert shim.process.wait(10) == 0


def test_what_is_no_method_or_no_message(shim: Shim) -> None:
    async def story(api: Api) -> None:
        with pytest.raises(StatusError) as caught:
            await api.link.call_raw(TASKS, "Nope", b"", 10)
        assert caught.value.code == UNIMPLEMENTED
        with pytest.raises(StatusError, match="malformed"):
            await api.link.call_raw(TASKS, "State", b"\xff\xff", 10)

    talk(shim, story)


# What a dead shim left -------------------------------------------------------------------------------------


def test_the_cleanup_after_a_dead_shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, root = tmp_path / "bundle", tmp_path / "root"
    (root / "ns/c").mkdir(parents=True)
    bundle.mkdir()
    (tmp_path / "runc").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    (tmp_path / "runc").chmod(0o755)
    (bundle / "options.json").write_text(json.dumps({"root": str(root), "binary_name": str(tmp_path / "runc")}))
    (bundle / "init.pid").write_text("42")
    (bundle / "address").write_text(f"unix://{tmp_path}/gone")
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "gone"))
    left.close()
    answer = m.decode("task.DeleteResponse", cleanup.delete("ns", "c", str(bundle)))
    assert (answer["pid"], answer["exit_status"]) == (42, 137)
    assert (tmp_path / "called").read_text().split()[-3:] == ["delete", "--force", "c"]
    assert not (tmp_path / "gone").exists()
    record = {"pid": 43, "exit_status": 5, "exited_at": 1_000_000_000}
    (bundle / cleanup.EXIT_RECORD).write_text(json.dumps(record))
    answer = m.decode("task.DeleteResponse", cleanup.delete("ns", "c", str(bundle)))
    assert (answer["pid"], answer["exit_status"], answer["exited_at"]["seconds"]) == (43, 5, 1)


def test_the_socket_of_a_shim_that_lives_stays(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "address").write_text(f"unix://{tmp_path}/alive")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "alive"))
        listener.listen()
        (bundle / "options.json").write_text(json.dumps({"root": str(tmp_path / "none")}))
        cleanup.delete("ns", "c", str(bundle))
    assert (tmp_path / "alive").exists()


def test_what_the_runtime_says_of_itself(tmp_path: Path) -> None:
    (tmp_path / "runc").write_text('#!/bin/sh\necho \'{"ociVersionMin": "1.0.0"}\'\n')
    (tmp_path / "runc").chmod(0o755)
    options = m.encode_any("containerd.runc.v1.Options", {"binary_name": str(tmp_path / "runc")})
    packed = m.encode("google.protobuf.Any", options)
    found = m.decode("containerd.types.RuntimeInfo", cleanup.info("name", packed))
    assert (found["name"], found["features"]["value"]) == ("name", b'{"ociVersionMin": "1.0.0"}\n')
    (tmp_path / "runc").write_text("#!/bin/sh\nexit 1\n")  # an older one has no such command
    assert m.decode("containerd.types.RuntimeInfo", cleanup.info("name", packed))["features"] is None


# Mapped ids ------------------------------------------------------------------------------------------------


def test_maps_of_a_mount() -> None:
    options = ["ro", "uidmap=0:1000:10,10:2000:1", "gidmap=0:5:6"]
    assert idmapped._map(options, "uidmap=") == b"0 1000 10\n10 2000 1\n"
    assert idmapped._map(options, "gidmap=") == b"0 5 6\n"
    with pytest.raises(ValueError, match="expected CONTAINER:HOST:LENGTH"):
        idmapped._map(["uidmap=0:x:1"], "uidmap=")
    with pytest.raises(ValueError, match="gidmap is missing"):
        idmapped._map(options[:2], "gidmap=")
