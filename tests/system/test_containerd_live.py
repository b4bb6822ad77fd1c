# SPDX-License-Identifier: Apache-2.0
"""Tasks that run: the same requests to Debian's containerd and to teu-containerd, the same answers and events.

Debian's containerd always works with its own shim and runc. Ours works with that shim as well, so that only the
daemon differs, and with our own shim and runtime, so that the whole house does. Beyond code and fields the texts of
errors are compared as well, but for what `TEXTS` names.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import peers
import pytest
from conformance import CALL_LIMIT, SERVICES, Answer, Both, Client, both_daemons, class_of, decoded, metrics_of
from google.protobuf import any_pb2, json_format
from taskhouse import OWN_SHIM, PATH, REAL_SHIM, alive, argv_of

from teu.api.cgroups.v2 import metrics_pb2 as cgroup_metrics
from teu.api.events import task_pb2 as task_events
from teu.api.services.containers.v1 import containers_pb2, containers_pb2_grpc
from teu.api.services.tasks.v1 import tasks_pb2
from teu.api.types.runc.options import oci_pb2

pytestmark = [pytest.mark.needs("containerd", "trixie", "fast"), pytest.mark.timeout(200)]

KNOWN = (cgroup_metrics, task_events, oci_pb2)  # their messages are decoded by name
SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
REFUSALS = ("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "UNIMPLEMENTED")
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    with both_daemons() as made:
        yield made


def process(*argv: str, terminal: bool = False) -> dict[str, Any]:
    return {"user": {"uid": 0, "gid": 0}, "args": list(argv), "env": [PATH], "cwd": "/", "terminal": terminal}


def specification(*argv: str, terminal: bool = False) -> dict[str, Any]:
    return {
        "ociVersion": "1.1.0",
        "process": process(*argv, terminal=terminal),
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
    }


def anything(kind: str, value: Any) -> any_pb2.Any:
    return any_pb2.Any(type_url=kind, value=json.dumps(value).encode())


class Told(NamedTuple):
    """One call and its answer, with what differs from run to run made equal."""

    call: str
    answer: Answer


class Story:
    """Calls on one daemon, told one after another."""

    def __init__(self, client: Client, runtime: str, folder: Path, name: str) -> None:
        self.client = client
        self.runtime = runtime
        self.folder = folder
        self.namespace = name
        self.rootfs = folder / "rootfs"
        self.told: list[Told] = []
        self.eventful = True
        self.deleted = 0  # tasks
        self._held: list[int] = []

    def __call__(self, what: str, request: Any = None, **fields: Any) -> Answer:
        """A call whose answer is compared; `fields` are short for a request to the container `c`."""
        asked = request if request is not None else {"containerId": "c", **fields}
        answer = self.client(what, asked, self.namespace)
        self.deleted += (what, answer.code) == ("tasks.Delete", "OK")
        shown = "(made)" if request is not None and not isinstance(request, dict) else json.dumps(asked)
        equal = Answer(answer.code, self.plain(answer.fields), self.plain(answer.text), answer.raw)
        self.told.append(Told(f"{what} {shown}", equal))
        return answer

    def plain(self, value: Any) -> Any:
        """Without what is only this run's: its folder, the daemon's, its namespace, pids and times."""
        told = json.dumps(_equal(value))
        for place, name in ((self.folder, "FOLDER"), (self.client.daemon.run, "RUN"), (self.namespace, "NAMESPACE")):
            told = told.replace(str(place), name)
        return json.loads(told)

    def leave_out(self, field: str) -> None:
        """Do not compare this field of the last answer, or its `text`."""
        call, answer = self.told[-1]
        if field == "text":
            self.told[-1] = Told(call, answer._replace(text=""))
            return
        fields = [{key: value for key, value in one.items() if key != field} for one in answer.fields]
        self.told[-1] = Told(call, answer._replace(fields=fields))

    def container(self, spec: Any, id: str = "c") -> None:
        made = containers_pb2.CreateContainerRequest()
        made.container.id, made.container.runtime.name = id, self.runtime
        made.container.spec.CopyFrom(anything(SPEC_TYPE, spec))
        stub = containers_pb2_grpc.ContainersStub(self.client.channel)
        stub.Create(made, metadata=[("containerd-namespace", self.namespace)], timeout=CALL_LIMIT)

    def forget(self, id: str = "c") -> None:
        self("containers.Delete", {"id": id})

    def create(self, id: str = "c", rootfs: str = "", **fields: Any) -> Answer:
        mount = {"type": "bind", "source": rootfs or str(self.rootfs), "options": ["rbind", "rw"]}
        return self("tasks.Create", {"containerId": id, "rootfs": [mount], **fields})

    def exec(self, exec_id: str, *argv: str, terminal: bool = False, spec: Any = None, **fields: str) -> Answer:
        asked = tasks_pb2.ExecProcessRequest(container_id="c", exec_id=exec_id, terminal=terminal, **fields)
        asked.spec.CopyFrom(anything(PROCESS_TYPE, spec or process(*argv, terminal=terminal)))
        return self("tasks.Exec", asked)

    def update(self, resources: Any) -> Answer:
        asked = tasks_pb2.UpdateTaskRequest(container_id="c")
        asked.resources.CopyFrom(anything(RESOURCES_TYPE, resources))
        return self("tasks.Update", asked)

    def fifo(self, name: str) -> str:
        """A FIFO that has a reader and a writer from the start: no end waits for another."""
        path = self.folder / name
        os.mkfifo(path)
        self._held.append(os.open(path, os.O_RDWR))
        return str(path)

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)


def _equal(value: Any) -> Any:
    """Without process ids, which are told as being there, times of events, and a bundle's place."""
    if isinstance(value, dict):
        return {
            key: "PID"
            if key == "pid" and inner
            else "TIME"
            if key == "exitedAt"
            else inner.rpartition("/")[2]
            if key == "bundle"
            else _equal(inner)
            for key, inner in value.items()
        }
    return [_equal(inner) for inner in value] if isinstance(value, (list, tuple)) else value


# ---- the stories -------------------------------------------------------------------------------


def life(s: Story) -> None:
    s.container(specification("sleep", "1000"))
    s("tasks.Get")
    s.create()
    s.create()
    s("tasks.Get")
    s("tasks.Get", execId="nosuch")
    s("tasks.List", {})
    s("tasks.Start", execId="nosuch")
    s("tasks.Start")
    s("tasks.Start")
    s("tasks.Get")
    s("tasks.List", {})
    s("tasks.ListPids")
    s("tasks.Delete")
    s("tasks.Delete", {"containerId": "nosuch"})
    s("tasks.Kill", execId="nosuch", signal=9)
    s("tasks.Kill", signal=0)
    s("tasks.Kill", signal=200)
    s("tasks.ResizePty", width=80, height=24)
    s("tasks.ResizePty", execId="nosuch", width=80, height=24)
    s("tasks.CloseIO")
    s("tasks.CloseIO", stdin=True)
    s("tasks.CloseIO", execId="nosuch", stdin=True)
    s("tasks.Wait", execId="nosuch")
    s("tasks.DeleteProcess", execId="nosuch")
    s("tasks.DeleteProcess", execId="")
    s.update({})
    s("tasks.Checkpoint", options={"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "x"})
    s("tasks.Metrics", {"filters": ["id==nosuch"]})
    s("tasks.Kill", signal=9)
    s("tasks.Wait")
    s("tasks.Wait")
    stopped(s)
    s("tasks.Delete")
    s("tasks.Delete")
    s("tasks.Get")
    s("tasks.List", {})
    s.forget()
    s("tasks.Get")


def stopped(s: Story) -> None:
    """What a process answers that has ended."""
    s("tasks.Get")
    s("tasks.List", {})
    s("tasks.Start")
    s("tasks.Kill", signal=9)
    s("tasks.Kill", signal=9, all=True)
    s("tasks.Pause")
    s("tasks.Resume")
    s("tasks.ListPids")
    s("tasks.ResizePty", width=80, height=24)
    s("tasks.CloseIO", stdin=True)
    s.update({})
    s("tasks.Checkpoint")
    s.exec("late", "true")
    s("tasks.Start", execId="late")


def processes(s: Story) -> None:
    """Further processes in a task."""
    s.container(specification("sleep", "1000"))
    s.create()
    s("tasks.Start")
    s.exec("bad/id", "true")
    s.exec("x" * 77, "true")
    s.exec("", "true")
    s.exec("one", "sleep", "1000")
    s.exec("one", "sleep", "1000")
    s("tasks.Get", execId="one")
    s("tasks.ListPids")
    s("tasks.Kill", execId="one", signal=9)
    s("tasks.ResizePty", execId="one", width=80, height=24)
    s("tasks.Start", execId="one")
    s("tasks.Get", execId="one")
    s("tasks.List", {})
    pids = s("tasks.ListPids")
    s.told[-1] = Told("details of ListPids", Answer(pids.code, details(pids), "", []))
    s("tasks.DeleteProcess", execId="one")
    s("tasks.ResizePty", execId="one", width=80, height=24)
    s("tasks.Kill", execId="one", signal=15)
    s("tasks.Wait", execId="one")
    s("tasks.Get", execId="one")
    s("tasks.Kill", execId="one", signal=15)
    s("tasks.CloseIO", execId="one", stdin=True)
    s("tasks.DeleteProcess", execId="one")
    s("tasks.DeleteProcess", execId="one")
    s("tasks.Get", execId="one")
    s.exec("five", "sh", "-c", "exit 5")
    s("tasks.Start", execId="five")
    s("tasks.Wait", execId="five")
    s("tasks.DeleteProcess", execId="five")
    s.exec("unmade", "true")
    s("tasks.DeleteProcess", execId="unmade")
    s("tasks.Get", execId="unmade")
    # A process that runs is ended by its task.
    s.exec("last", "sleep", "1000")
    s("tasks.Start", execId="last")
    s("tasks.Kill", signal=9)
    s("tasks.Wait")
    s("tasks.Wait", execId="last")
    s("tasks.DeleteProcess", execId="last")
    s("tasks.Delete")
    s.forget()


def no_program(s: Story) -> None:
    """A further process that cannot start. (runc's shim does not survive its container's end after that.)"""
    s.container(specification("sleep", "1000"))
    s.create()
    s("tasks.Start")
    s.exec("none", "no-such-program")
    s("tasks.Start", execId="none")
    s("tasks.Get", execId="none")
    s("tasks.Wait", execId="none")
    s("tasks.Kill", execId="none", signal=9)
    s("tasks.DeleteProcess", execId="none")
    s("tasks.Get", execId="none")


def details(pids: Answer) -> Any:
    """The process' name behind each pid, in an order of their own."""
    return sorted(
        json.dumps(json_format.MessageToDict(decoded(one.info))) if one.info.type_url else ""
        for one in pids.raw[0].processes
    )


def frozen(s: Story) -> None:
    s.container(specification("sleep", "1000"))
    s.create()
    s("tasks.Pause")
    s("tasks.Resume")
    s("tasks.Get")
    s("tasks.Start")
    s("tasks.Resume")
    s("tasks.Get")
    s.exec("before", "true")
    s("tasks.Pause")
    s("tasks.Get")
    s("tasks.List", {})
    s("tasks.Pause")
    s("tasks.Start")
    s("tasks.Start", execId="before")
    s.exec("while", "true")
    s("tasks.ListPids")
    s("tasks.Delete")
    s("tasks.CloseIO", stdin=True)
    s.update({})
    s("tasks.Resume")
    s("tasks.Get")
    s("tasks.Pause")
    s("tasks.Kill", signal=9)
    s("tasks.Wait")
    s("tasks.Get")
    s("tasks.Delete")
    s.forget()


def never_started(s: Story) -> None:
    s.eventful = False  # runc's shim tells of the exit after the deletion
    s.container(specification("sleep", "1000"))
    s.create()
    s("tasks.ListPids")
    s("tasks.CloseIO", stdin=True)
    s("tasks.ResizePty", width=80, height=24)
    s.update({})
    s("tasks.Checkpoint")
    s("tasks.Delete")
    s.leave_out("exitStatus")  # the process may have been reaped before that answer or not
    s("tasks.Get")
    s.create()
    s("tasks.Kill", signal=9)
    s("tasks.Wait")
    s("tasks.Get")
    s("tasks.Start")
    s("tasks.Delete")
    s.forget()


def streams(s: Story) -> None:
    s.container(specification("sh", "-c", "cat; exit 3"))
    standard = {"stdin": s.fifo("in"), "stdout": s.fifo("out"), "stderr": s.fifo("err")}
    s.create(**standard)
    s("tasks.Start")
    s("tasks.Get")
    feed(s, standard["stdin"], b"fed\n")
    s.told.append(Told("the output", Answer("OK", os.read(s._held[1], 100).decode(), "", [])))
    s.exec("e", "cat", stdin=s.fifo("ein"), stdout=s.fifo("eout"), stderr=s.fifo("eerr"))
    s("tasks.Start", execId="e")
    s("tasks.Get", execId="e")
    feed(s, f"{s.folder}/ein", b"also\n")
    s.told.append(Told("the exec's", Answer("OK", os.read(s._held[4], 100).decode(), "", [])))
    os.close(s._held[3])
    s("tasks.CloseIO", execId="e", stdin=True)
    s("tasks.Wait", execId="e")
    s("tasks.CloseIO", execId="e", stdin=True)
    s("tasks.DeleteProcess", execId="e")
    os.close(s._held[0])
    s("tasks.CloseIO", stdin=True)
    s("tasks.Wait")
    s("tasks.CloseIO", stdin=True)
    s("tasks.Delete")
    s._held[:] = [one for place, one in enumerate(s._held) if place not in (0, 3)]
    s.forget()


def feed(s: Story, path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def terminals(s: Story) -> None:
    s.container(specification("sh", "-c", "read x; stty size; exec sleep 1000", terminal=True))
    s.create(terminal=True, stdin=s.fifo("in"), stdout=s.fifo("out"))
    s("tasks.ResizePty", width=91, height=33)
    s("tasks.Start")
    s("tasks.ResizePty", width=92, height=34)
    s("tasks.Get")
    feed(s, f"{s.folder}/in", b"\n")
    seen = b""
    while b"34 92" not in seen:
        seen += os.read(s._held[1], 100)
    s.exec("t", "sleep", "1000", terminal=True, stdin=s.fifo("ein"), stdout=s.fifo("eout"))
    s("tasks.ResizePty", execId="t", width=80, height=24)
    s("tasks.Start", execId="t")
    s("tasks.ResizePty", execId="t", width=80, height=24)
    s("tasks.Get", execId="t")
    s("tasks.CloseIO", execId="t", stdin=True)
    s("tasks.Kill", execId="t", signal=9)
    s("tasks.Wait", execId="t")
    s("tasks.ResizePty", execId="t", width=80, height=24)
    s("tasks.DeleteProcess", execId="t")
    s("tasks.Kill", signal=9)
    s("tasks.Wait")
    s("tasks.ResizePty", width=80, height=24)
    s("tasks.Delete")
    s.forget()


def failures(s: Story) -> None:
    """Tasks that cannot be made: no trace of them is left."""
    s.container(specification("no-such-program"))
    s.create()
    s("tasks.Start")
    s("tasks.Get")
    s("tasks.Delete")
    s("tasks.Get")
    s.create(rootfs="/nowhere/at/all")
    s("tasks.Get")
    s.create(stdout=f"{s.folder}/no/such/fifo")
    s("tasks.Delete")
    s.create(stdout="odd://place")
    s("tasks.Get")
    s.create(runtimePath="io.containerd.nosuch.v9")
    s.create(runtimePath="/no/such/shim")
    s.forget()
    s.container({"ociVersion": "1.1.0"}, "empty")
    s.create("empty")
    s("tasks.Get", {"containerId": "empty"})
    s.forget("empty")
    s.container([], "odd")
    s.create("odd")
    s.leave_out("text")  # of whoever reads the specification first
    s("tasks.Get", {"containerId": "odd"})
    s.forget("odd")
    s("tasks.List", {})


STORIES: dict[str, Callable[[Story], None]] = {
    story.__name__: story
    for story in (life, processes, no_program, frozen, never_started, streams, terminals, failures)
}


def left_untold(s: Story) -> bool:
    """Whether Debian's shim is gone: on a busy machine it ends with the news of a deletion unsent. Ours sends them."""
    of_the_story = {str(s.client.daemon.address), s.namespace}
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return s.runtime == REAL_SHIM and not any(alive(pid) and of_the_story <= set(argv_of(pid)) for pid in pids)


def without_deletions(events: list[Any]) -> list[Any]:
    return [event for event in events if event[0] != "/tasks/delete"]


class Listener:
    """The task events of a namespace."""

    def __init__(self, client: Client, namespace: str) -> None:
        method = SERVICES["events"].methods_by_name["Subscribe"]
        self._stream = client.channel.unary_stream(
            f"/{SERVICES['events'].full_name}/Subscribe",
            request_serializer=class_of(method.input_type).SerializeToString,
            response_deserializer=class_of(method.output_type).FromString,
        )(class_of(method.input_type)(filters=[f"namespace=={namespace}"]), timeout=CALL_LIMIT * 2)
        self._marked = threading.Event()
        self.events: list[Any] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        event = {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "x"}

        def ready() -> bool:
            client("events.Publish", {"topic": "/mark", "event": event}, namespace)
            return self._marked.wait(0.05)

        try:
            peers.wait_until(ready, "the events are subscribed")
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for envelope in self._stream:
                if envelope.topic == "/mark":
                    self._marked.set()
                elif envelope.topic.startswith("/tasks/"):
                    self.events.append((envelope.topic, json_format.MessageToDict(decoded(envelope.event))))

    def lacks(self, deletions: int) -> bool:
        """Whether not so many are told of."""
        return len(self.events) - len(without_deletions(self.events)) < deletions

    def close(self) -> None:
        self._stream.cancel()
        self._thread.join(CALL_LIMIT)


def play(client: Client, runtime: str, story: str, folder: Path) -> tuple[list[Told], list[Any], bool]:
    """A story on one daemon: its answers, the events that were told meanwhile, and whether there is one missing."""
    folder.mkdir()
    peers.busybox_rootfs(folder / "rootfs")
    s = Story(client, runtime, folder, f"{story.replace('_', '-')}-{runtime.split('.')[2]}")
    listener = Listener(client, s.namespace)
    try:
        STORIES[story](s)
        # A shim tells of a deletion by itself, which may be after the answer to whoever has asked for it.
        if s.eventful:
            peers.wait_until(lambda: not listener.lacks(s.deleted) or left_untold(s), "the deletions are told")
    finally:
        s.close()
        listener.close()
    deleted = s.deleted
    # What a story has left, it has left on purpose.
    s("tasks.Kill", signal=9)
    s("tasks.Wait")
    s("tasks.Delete")
    s("containers.Delete", {"id": "c"})
    events = [s.plain(one) for one in listener.events] if s.eventful else []
    return s.told[:-4], events, s.eventful and listener.lacks(deleted)


def same(their: Answer, our: Answer, texts: bool) -> bool:
    """`UNKNOWN` is an error that containerd does not class: ours may say which it is."""
    if texts and plain(their) != plain(our):
        return False
    if their.code == "UNKNOWN":
        return our.code in (*REFUSALS, "UNKNOWN")
    return (their.code, their.fields) == (our.code, our.fields)


def plain(answer: Answer) -> str:
    """The text of an error without its class, which containerd 1.7 repeats at the end, and containerd 2 does not."""
    return answer.text.removesuffix(f": {answer.code.lower().replace('_', ' ')}").strip()


@pytest.mark.parametrize("story", STORIES)
def test_the_same_life(both: Both, story: str, tmp_path: Path) -> None:
    theirs, their_events, they_lack = play(both.theirs, REAL_SHIM, story, tmp_path / "theirs")
    found = []
    for runtime in (REAL_SHIM, OWN_SHIM):
        ours, our_events, we_lack = play(both.ours, runtime, story, tmp_path / runtime)
        for (call, our), (_, their) in zip(ours, theirs, strict=True):
            if not same(their, our, texts=runtime == REAL_SHIM):
                found.append(f"{call}\n    containerd: {their[:3]}\n    ours, {runtime}: {our[:3]}")
        # What Debian's shim did not tell of, on either daemon, is no difference between the daemons.
        one, other = their_events, our_events
        if they_lack or we_lack:
            one, other = without_deletions(one), without_deletions(other)
        if one != other:
            shown = [
                "\n".join(("", *map(str, events))).replace("\n", "\n        ") for events in (their_events, our_events)
            ]
            found.append(f"events\n    containerd: {shown[0]}\n    ours, {runtime}: {shown[1]}")
    assert not found, f"{len(found)} answers differ\n" + "\n".join(found)


def test_the_same_metrics(both: Both, tmp_path: Path) -> None:
    """A running task has the same rows on the page for Prometheus, and the same kinds of numbers over gRPC."""
    found = []
    for client, runtime in ((both.theirs, REAL_SHIM), (both.ours, REAL_SHIM), (both.ours, OWN_SHIM)):
        folder = tmp_path / f"{len(found)}"
        folder.mkdir()
        peers.busybox_rootfs(folder / "rootfs")
        s = Story(client, runtime, folder, "metrics")
        s.container(specification("sleep", "1000"))
        s.create()
        s("tasks.Start")
        rows = set()
        for name, labels in metrics_of(client):
            if ("container_id", "c") in labels and not name.startswith("container_io_"):  # a line for each disk in use
                assert ("runtime", runtime) in labels and ("namespace", "metrics") in labels
                rows.add((name, labels - {("runtime", runtime)}))
        (metric,) = s("tasks.Metrics", {"filters": ["id==c"]}).raw[0].metrics
        numbers = decoded(metric.data)
        parts = {field.name for field, _ in numbers.ListFields()} - {"io", "hugetlb", "network"}
        s("tasks.Kill", signal=9)
        s("tasks.Wait")
        s("tasks.Delete")
        s.forget()
        assert not any(("container_id", "c") in labels for _, labels in metrics_of(client))
        found.append((rows, metric.id, metric.data.type_url, parts))
    assert len(found[0][0]) > 30
    for rows, *more in found[1:]:
        assert rows ^ found[0][0] == set()
        assert more == list(found[0][1:])
