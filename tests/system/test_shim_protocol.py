# SPDX-License-Identifier: Apache-2.0
"""The shim's protocol by hand, beside Debian's containerd-shim-runc-v2: the same commands and the same calls to
both, and the same answers, codes and events of both."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
import shimwire
import taskhouse
from shimwire import OWN, REAL, Bench, Client, Receiver, process

pytestmark = pytest.mark.needs("systemd", "containerd-shim-runc-v2", "runc", "crun", "trixie")


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="teu-wire-", dir="/var/lib") as made:
        yield Path(made)


class Script:
    """Calls and what came of them, so that two shims can be compared."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.results: list[tuple[str, Any]] = []
        # what differs from run to run, and its name
        self.names: dict[Any, str] = {}

    def __call__(self, method: str, **fields: Any) -> dict[str, Any]:
        from teu.ttrpc.status import StatusError

        told = [f"{key}={value}" for key, value in fields.items() if isinstance(value, str | int) and key != "bundle"]
        shown = " ".join([method, *told])
        try:
            answer = self.client.task(method, **fields)
            result: Any = {key: self.plain(key, value) for key, value in answer.items()}
        except StatusError as error:
            answer, result = {}, f"code {error.code}"
            self.last_error = error.message
        self.results.append((shown, result))
        return answer

    def plain(self, key: str, value: Any) -> Any:
        """A value without what is each run's own."""
        if key == "exited_at":
            return bool(value) and value["seconds"] > 0
        if isinstance(value, dict):
            return {name: self.plain(name, part) for name, part in value.items()}
        if isinstance(value, list):
            return [self.plain("", part) for part in value]
        if isinstance(value, str | int) and not isinstance(value, bool):
            return self.names.get(value, value)
        return value

    def name(self, value: Any, name: str) -> None:
        if value:
            self.names[value] = name


TASKLESS = (
    "State",
    "Start",
    "Delete",
    "Pids",
    "Pause",
    "Resume",
    "Checkpoint",
    "Kill",
    "ResizePty",
    "CloseIO",
    "Update",
    "Wait",
    "Stats",
)


RESOURCES = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


def life(bench: Bench, version: int) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """All methods in all states; the answers and the events."""
    from teu.ttrpc.status import StatusError

    bench.bundle("one", ["sleep", "600"])
    bench.bundle("bad", ["/nonsense"])
    address = bench.start("one")
    client = bench.client(address, version)
    call = Script(client)
    call.name(client.task("Connect")["shim_pid"], "SHIM")
    call.name(str(bench.base / shimwire.NAMESPACE / "one"), "BUNDLE")
    call.name(str(bench.rootfs), "ROOTFS")

    # without a container
    call("Connect", id="one")
    for method in TASKLESS:
        call(method, id="one")
    call("Exec", id="one", exec_id="e", spec=process("true"))
    for service, method, payload in (
        (client.service, "Nonsense", b""),
        ("containerd.task.v9.Task", "State", b""),
        (client.service, "State", b"\xff\xff\xff"),
    ):
        try:
            client.raw(service, method, payload)
        except StatusError as error:
            call.results.append((f"{method} {payload!r}", error.code))
    for runtime in ("nonsense", "/etc/passwd"):
        call("Create", **bench.request("one", runtime))
    call("Create", **bench.request("bad"))
    call("Create", **(bench.request("one") | {"options": {"type_url": "nonsense.Options", "value": b"\x0a\x01x"}}))
    call("Create", **(bench.request("one") | {"rootfs": [{"type": "ext4", "source": "/nonsense"}]}))

    # created
    request = bench.request("one")
    created = bench.client(address, version).task("Create", **request)
    call.name(created["pid"], "PID")
    call("State", id="one")
    call("Connect", id="one")
    for method in ("Pause", "Resume", "Checkpoint", "CloseIO"):
        call(method, id="one")
    call("ResizePty", id="one", width=80, height=25)
    call("Update", id="one", resources={"type_url": RESOURCES, "value": b"{}"})
    call("Update", id="one", resources={"type_url": RESOURCES, "value": b"nonsense"})
    call("Pids", id="one")
    call("Shutdown", id="one")  # changes nothing while there are containers

    # running
    call("Start", id="one")
    call("State", id="one")
    for method in ("Start", "Delete", "Resume"):
        call(method, id="one")
    waits = client.begin("Wait", id="one")
    call("Exec", id="one", exec_id="e1", spec=process("sleep", "600"))
    call("Exec", id="one", exec_id="e1", spec=process("sleep", "600"))
    call("Exec", id="one", exec_id="e2", spec={"type_url": shimwire.PROCESS, "value": b"nonsense"})
    call("State", id="one", exec_id="e1")
    call("Kill", id="one", exec_id="e1", signal=9)
    call("ResizePty", id="one", exec_id="e1", width=80, height=25)
    started = client.task("Start", id="one", exec_id="e1")
    call.name(started["pid"], "E1")
    call("State", id="one", exec_id="e1")
    call("Pids", id="one")
    call("Delete", id="one", exec_id="e1")
    if bench.binary == OWN:  # the other one counts it wrongly and panics at the container's end
        with pytest.raises(StatusError, match="cannot start a running process"):
            client.task("Start", id="one", exec_id="e1")
    for method in ("State", "Start", "Delete", "Wait", "Kill", "CloseIO", "ResizePty"):
        call(method, id="one", exec_id="none")
    call("Exec", id="one", exec_id="e3", spec=process("/nonsense"))
    call("Start", id="one", exec_id="e3")
    call("State", id="one", exec_id="e3")
    call("Wait", id="one", exec_id="e3")
    call("Delete", id="one", exec_id="e3")
    call("Exec", id="one", exec_id="e4", spec=process("true"))
    call("Delete", id="one", exec_id="e4")
    call("Kill", id="one", signal=99)

    # paused
    call("Pause", id="one")
    call("State", id="one")
    call("State", id="one", exec_id="e1")
    for method in ("Pause", "Start", "Delete"):
        call(method, id="one")
    call("Exec", id="one", exec_id="e5", spec=process("true"))
    call("Resume", id="one")
    call("State", id="one")

    # an exec that has ended
    call("Kill", id="one", exec_id="e1", signal=15)
    call("Wait", id="one", exec_id="e1")
    call("State", id="one", exec_id="e1")
    call("Kill", id="one", exec_id="e1", signal=9)
    call("ResizePty", id="one", exec_id="e1", width=80, height=25)
    call("CloseIO", id="one", exec_id="e1", stdin=True)
    if bench.binary == OWN:
        with pytest.raises(StatusError, match="cannot start a stopped process"):
            client.task("Start", id="one", exec_id="e1")
    call("Delete", id="one", exec_id="e1")
    for method in ("Delete", "State", "Wait"):
        call(method, id="one", exec_id="e1")

    # stopped
    call("Exec", id="one", exec_id="e6", spec=process("true"))
    call("Kill", id="one", signal=9, all=True)
    call.results.append(("the Wait", client.end("Wait", waits)["exit_status"]))
    call("Wait", id="one")
    call("State", id="one")
    call("Start", id="one", exec_id="e6")
    for method in ("Start", "Pause", "Resume", "Checkpoint"):
        call(method, id="one")
    for number in (9, 15, 1):
        call("Kill", id="one", signal=number)
        call("Kill", id="one", signal=number, all=True)
    call("ResizePty", id="one", width=80, height=25)
    call("CloseIO", id="one", stdin=True)
    call("Update", id="one", resources={"type_url": RESOURCES, "value": b"{}"})
    call("Exec", id="one", exec_id="e7", spec=process("true"))
    call("Delete", id="one")

    # gone
    call("Delete", id="one")
    call("State", id="one")
    call("Connect", id="one")
    peers.wait_until(lambda: "delete" in bench.events.topics("one"), "the end is told")
    told = [
        (topic, {key: call.plain(key, value) for key, value in event.items()}) for topic, event in bench.events.told
    ]
    client.shut_down()
    path = Path(address.removeprefix("unix://"))
    peers.wait_until(lambda: not path.exists(), "the socket is gone")
    return call.results, told


# What the real one says wrongly, and ours does not: it forgets to translate this error.
BETTER = {"CloseIO id=one exec_id=none": ("code 2", "code 5")}


@contextlib.contextmanager
def bench_of(binary: str, folder: Path) -> Iterator[Bench]:
    folder.mkdir()
    with Receiver(folder / "events") as events, Bench(binary, folder, events) as bench:
        yield bench


def test_every_method_in_every_state(base: Path) -> None:
    """Answers, codes and events, for both versions of the task API."""
    with bench_of(REAL, base / "real") as bench:
        answers, events = life(bench, 2)
    expected = [(call, BETTER[call][1] if result == BETTER.get(call, ("",))[0] else result) for call, result in answers]
    for version in (2, 3):
        with bench_of(OWN, base / f"own{version}") as bench:
            ours, told = life(bench, version)
        assert [pair for pair in zip(expected, ours, strict=True) if pair[0] != pair[1]] == []
        assert told == events
    print(f"{len(answers)} calls, {len(events)} events")


def service_of(bench: Bench, name: str) -> int:
    """The process that serves a container's shim."""
    address = (bench.base / shimwire.NAMESPACE / name / "address").read_text()
    return int(bench.client(address).task("Connect")["shim_pid"])


@pytest.mark.parametrize("binary", [REAL, OWN])
def test_start(binary: str, base: Path) -> None:
    """What `start` prints, for whom, and that one shim serves what it should."""
    with bench_of(binary, base / "one") as bench:
        for name, notes in (
            ("a", {}),
            ("b", {}),
            ("pod", {"io.kubernetes.cri.sandbox-id": "pod"}),
            ("member", {"io.kubernetes.cri.sandbox-id": "pod"}),
            ("group", {"io.containerd.runc.v2.group": "g"}),
            ("both", {"io.containerd.runc.v2.group": "g", "io.kubernetes.cri.sandbox-id": "pod"}),
        ):
            bundle = bench.bundle(name, ["sleep", "600"], notes)
            address = bench.start(name)
            assert address.startswith("unix:///run/") and (bundle / "address").read_text() == address
            bench.client(address)
        shims = {name: service_of(bench, name) for name in ("a", "b", "pod", "member", "group", "both")}
        assert shims["pod"] == shims["member"] and shims["group"] == shims["both"]
        assert len(set(shims.values())) == 4
        first = bench.start("a")
        assert service_of(bench, "a") == shims["a"], "it is served already"
        os.kill(shims["a"], signal.SIGKILL)
        peers.wait_until(lambda: not taskhouse.alive(shims["a"]), "the shim is dead")
        assert bench.start("a") == first
        assert service_of(bench, "a") != shims["a"], "a new one in the place of a dead one"
        score = int(Path("/proc/self/oom_score_adj").read_text())
        assert int(Path(f"/proc/{shims['b']}/oom_score_adj").read_text()) == score + 1


@pytest.mark.parametrize("binary", [REAL, OWN])
def test_command_line_mistakes(binary: str, base: Path) -> None:
    with bench_of(binary, base / "one") as bench:
        bench.bundle("x", ["true"])
        for flags, code, words in (
            (["-id", "x", "start"], 1, "namespace cannot be empty"),
            (["-nonsense", "start"], 2, "flag provided but not defined: -nonsense"),
            (["-namespace"], 2, "flag needs an argument: -namespace"),
        ):
            done = peers.run(binary, *flags, code=code)
            assert words in done.stderr and not done.stdout
        for flag in ("-v", "--v", "-v=true"):
            assert peers.run(binary, flag).stdout.startswith(f"{Path(binary).name}:\n  Version: ")


def test_core_scheduling(base: Path) -> None:
    """SCHED_CORE is obeyed, or refused where the kernel cannot, as by the real one."""
    libc = ctypes.CDLL(None, use_errno=True)
    codes = {}
    for binary in (REAL, OWN):
        with bench_of(binary, base / Path(binary).name) as bench:
            bench.bundle("x", ["true"])
            done = bench.run("start", "x", environment={"SCHED_CORE": "1"})
            codes[binary] = done.returncode
            if done.returncode:
                assert done.stderr and not done.stdout
                continue
            shim = bench.client(done.stdout.decode()).task("Connect")["shim_pid"]
            cookie = ctypes.c_ulonglong()
            assert libc.prctl(62, 0, shim, 0, ctypes.byref(cookie)) == 0 and cookie.value  # PR_SCHED_CORE_GET
    assert codes[OWN] == codes[REAL]


def test_start_for_each_version(base: Path) -> None:
    """An address for who knows no better, else JSON of version 2 or 3; whatever stands on standard input."""
    from teu.ttrpc import messages as m

    # runtime options (containerd 1.7 to 2.2), BootstrapParams (2.3), and neither
    inputs = [m.encode("google.protobuf.Any", shimwire.options(binary_name="runc")), b"\x0a\x02x2\x12\x04wire", b""]
    with bench_of(OWN, base / "one") as bench:
        for n, (limit, version) in enumerate((("", 0), ("1", 0), ("many", 0), ("2", 2), ("3", 3), ("7", 3))):
            name = f"x{n}"
            bench.bundle(name, ["true"])
            environment = {"MAX_SHIM_VERSION": limit} if limit else {}
            shown = bench.run("start", name, stdin=inputs[n % len(inputs)], environment=environment).stdout.decode()
            address = json.loads(shown)["address"] if version else shown
            if version:
                assert json.loads(shown) == {"version": version, "address": address, "protocol": "ttrpc"}
            client = bench.client(address, version or 2)
            assert client.task("Connect")["task_pid"] == 0
            client.shut_down()
        # the address of containerd, which is part of the socket's name, by the environment alone
        bench.bundle("y", ["true"])
        first = bench.start("y")
        bench.client(first)
        command = [OWN, "-namespace", shimwire.NAMESPACE, "-id", "y", "start"]
        environment = {"PATH": os.environ["PATH"], "GRPC_ADDRESS": bench.address}
        again = subprocess.run(
            command,
            cwd=bench.base / shimwire.NAMESPACE / "y",
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        assert again.stdout == first


def test_info(base: Path) -> None:
    """RuntimeInfo for the options on standard input; the features are the runtime's own."""
    from teu.ttrpc import messages as m

    def info(stdin: bytes) -> dict[str, Any]:
        done = subprocess.run([OWN, "-info"], input=stdin, capture_output=True, check=True)
        return m.decode("containerd.types.RuntimeInfo", done.stdout)

    plain = info(b"")
    assert plain["name"] == "io.containerd.teu.v2" and plain["version"]["version"] and plain["options"] is None
    for runtime in ("runc", "crun", "teu-runc"):
        given = shimwire.options(binary_name=runtime, systemd_cgroup=True)
        told = info(m.encode("google.protobuf.Any", given))
        assert told["options"] == given
        assert told["features"]["type_url"] == "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
        assert json.loads(told["features"]["value"]) == json.loads(peers.run(runtime, "features").stdout)
    assert json.loads(plain["features"]["value"]) == json.loads(peers.run("teu-runc", "features").stdout)
    for wrong in (m.encode("google.protobuf.Any", shimwire.options(binary_name="nonsense")), b"\xff\xff"):
        done = subprocess.run([OWN, "-info"], input=wrong, capture_output=True, check=False)
        assert done.returncode == 1 and done.stderr and not done.stdout


def mounted(path: Path) -> bool:
    with open("/proc/self/mounts") as mounts:
        return any(line.split()[1] == str(path) for line in mounts)


@pytest.mark.parametrize("binary", [REAL, OWN])
def test_delete_after_a_killed_shim(binary: str, base: Path) -> None:
    """What `delete` prints, and that nothing of the container is left."""
    from teu.ttrpc import messages as m

    with bench_of(binary, base / "one") as bench:
        bundle = bench.bundle("x", ["sleep", "600"])
        client = bench.client(bench.start("x"))
        pid = bench.create(client, "x")["pid"]
        client.task("Start", id="x")
        shim = client.task("Connect", id="x")["shim_pid"]
        cgroup = Path("/sys/fs/cgroup" + Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::")[2].split("\n")[0])
        assert cgroup.is_dir() and mounted(bundle / "rootfs")
        if binary == OWN:  # in a scope, though nobody's daemon has started it
            assert str(cgroup).endswith("/teu.slice/teu-x.scope/container")
            assert "/teu.slice/teu-x.scope/shim\n" in Path(f"/proc/{shim}/cgroup").read_text()
        os.kill(shim, signal.SIGKILL)
        assert client.closed()
        for expected in (pid, pid):  # the second time there is nothing left to do
            done = bench.run("delete", "x", "-bundle", str(bundle))
            assert done.returncode == 0, done
            answer = m.decode("task.DeleteResponse", done.stdout)
            assert (answer["pid"], answer["exit_status"]) == (expected, 137) and answer["exited_at"]["seconds"] > 0
        peers.wait_until(lambda: not taskhouse.alive(pid), "the container is gone")
        assert not mounted(bundle / "rootfs")
        assert not list((base / "one" / "state" / shimwire.NAMESPACE).glob("*"))
        peers.wait_until(lambda: not cgroup.exists(), "the cgroup is gone")


def test_delete_knows_an_exit_before(base: Path) -> None:
    """A container that had ended when its shim was killed: its status is not lost."""
    from teu.ttrpc import messages as m

    with bench_of(OWN, base / "one") as bench:
        bundle = bench.bundle("x", ["sh", "-c", "exit 7"])
        client = bench.client(bench.start("x"))
        pid = bench.create(client, "x")["pid"]
        client.task("Start", id="x")
        ended = client.task("Wait", id="x")
        os.kill(client.task("Connect", id="x")["shim_pid"], signal.SIGKILL)
        assert client.closed()
        answer = m.decode("task.DeleteResponse", bench.run("delete", "x", "-bundle", str(bundle)).stdout)
        assert answer == {"pid": pid, "exit_status": 7, "exited_at": ended["exited_at"]}


LIMITS = {
    "memory": {"limit": 50 << 20, "swap": 60 << 20, "reservation": 20 << 20},
    "pids": {"limit": 30},
    "cpu": {"quota": 50000, "period": 100000},
}


@pytest.mark.parametrize("limits", [{}, pytest.param(LIMITS, marks=pytest.mark.needs("memory", "pids", "cpu"))])
def test_stats(limits: dict[str, Any], base: Path) -> None:
    """Every field that the real shim tells of a container is told by ours, with the value that it has there."""
    from teu.shim import cgroup
    from teu.ttrpc import messages as m

    kind = "io.containerd.cgroups.v2.Metrics"

    def flat(stats: Any, path: str = "") -> dict[str, Any]:
        """path -> value of all that is not empty; tables by their names, which come in any order."""
        if isinstance(stats, list):
            stats = {
                str(row.get("pagesize") or row.get("device") or (row["major"], row["minor"])): row for row in stats
            }
        if isinstance(stats, dict):
            return {name: value for key, part in stats.items() for name, value in flat(part, f"{path}/{key}").items()}
        return {path: stats} if stats else {}

    def told(client: Client) -> bytes:
        stats = client.task("Stats", id="x")["stats"]
        assert stats["type_url"] == kind
        return bytes(stats["value"])

    for binary in (REAL, OWN):
        with bench_of(binary, base / Path(binary).name) as bench:
            bench.bundle("x", ["sleep", "600"], resources=limits)
            client = bench.client(bench.start("x"))
            pid = bench.create(client, "x")["pid"]
            client.task("Start", id="x")
            folder = cgroup.path_of(pid)
            once = told(client)
            assert m.encode(kind, m.decode(kind, once)) == once, "no field is unknown to our tables"

            def same(client: Client = client, folder: str = folder) -> bool:
                theirs = flat(m.decode(kind, told(client)))
                ours = flat(cgroup.metrics(folder))
                pressure = any("/psi/" in path for path in theirs)  # not told by containerd 1.7
                ours = {path: value for path, value in ours.items() if pressure or "/psi/" not in path}
                # where a controller is not there, the real one does not look
                paths = ours.keys() | theirs.keys() if limits else theirs.keys()
                differ = {
                    path: (ours.get(path), theirs.get(path)) for path in paths if ours.get(path) != theirs.get(path)
                }
                assert differ == {}
                return True

            peers.wait_until(same, f"{binary} and the files say the same")
            stats = m.decode(kind, told(client))
            if limits:
                assert stats["memory"]["usage_limit"] == 50 << 20 and stats["memory"]["anon"] > 0
                assert stats["pids"] == {"current": 1, "limit": 30} and stats["cpu"]["usage_usec"] > 0
                change = {"pids": {"limit": 20}, "memory": {"limit": 40 << 20}}
                client.task("Update", id="x", resources={"type_url": RESOURCES, "value": json.dumps(change).encode()})
                stats = m.decode(kind, told(client))
                assert (stats["pids"]["limit"], stats["memory"]["usage_limit"]) == (20, 40 << 20)


@pytest.mark.parametrize("binary", [REAL, OWN])
def test_terminal_and_streams(binary: str, base: Path) -> None:
    """A terminal of the size that is asked for, and standard input that ends when it is closed; FIFOs by hand."""
    with bench_of(binary, base / "one") as bench:
        fifos = {name: str(base / name) for name in ("stdin", "stdout", "stderr", "in2", "out2", "err2")}
        ends = {}
        for name, path in fifos.items():
            os.mkfifo(path)
            ends[name] = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        try:
            bench.bundle("x", ["sh"], terminal=True)
            client = bench.client(bench.start("x"))
            bench.create(client, "x", terminal=True, stdin=fifos["stdin"], stdout=fifos["stdout"])
            client.task("ResizePty", id="x", width=83, height=27)
            client.task("Start", id="x")
            state = client.task("State", id="x")
            assert state["terminal"] and (state["stdin"], state["stdout"]) == (fifos["stdin"], fifos["stdout"])
            os.write(ends["stdin"], b"stty size; echo [$((1+1))]\n")
            shown = read_until(ends["stdout"], b"[2]\r\n")
            assert b"27 83\r\n" in shown

            client.task(
                "Exec",
                id="x",
                exec_id="e",
                spec=process("sh", "-c", "cat; echo end >&2; exit 5"),
                stdin=fifos["in2"],
                stdout=fifos["out2"],
                stderr=fifos["err2"],
            )
            client.task("Start", id="x", exec_id="e")
            os.write(ends["in2"], b"fed")
            assert read_until(ends["out2"], b"fed") == b"fed"
            assert client.task("State", id="x", exec_id="e")["status"] == 2
            os.close(ends.pop("in2"))
            client.task("CloseIO", id="x", exec_id="e", stdin=True)
            assert client.task("Wait", id="x", exec_id="e")["exit_status"] == 5
            assert read_until(ends["err2"], b"end\n") == b"end\n"
            client.task("Delete", id="x", exec_id="e")
            os.write(ends["stdin"], b"exit 6\n")
            assert client.task("Wait", id="x")["exit_status"] == 6
            client.task("Delete", id="x")
        finally:
            for fd in ends.values():
                os.close(fd)


def waiting_in(fd: int) -> int:
    """How many bytes are in a FIFO."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


@pytest.mark.parametrize("binary", [REAL, OWN])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_reader_that_hangs(binary: str, terminal: bool, base: Path) -> None:
    """Of all outputs: calls are served, the end is told, and what fits into the FIFOs is there afterwards."""
    with bench_of(binary, base / "one") as bench:
        ends = {}
        for name in ("stdout", "stderr"):
            os.mkfifo(base / name)
            ends[name] = os.open(base / name, os.O_RDWR | os.O_NONBLOCK)
        try:
            script = "head -c 1000000 /dev/zero >&2 & exec head -c 1000000 /dev/zero"
            bench.bundle("x", ["sh", "-c", script], terminal=terminal)
            client = bench.client(bench.start("x"))
            outputs = {"stdout": str(base / "stdout")} | ({} if terminal else {"stderr": str(base / "stderr")})
            bench.create(client, "x", terminal=terminal, **outputs)
            client.task("Start", id="x")
            peers.wait_until(lambda: waiting_in(ends["stdout"]) >= 4000, "nobody reads what is there")
            client.task("Exec", id="x", exec_id="e", spec=process("sh", "-c", "exit 3"))
            client.task("Start", id="x", exec_id="e")
            assert client.task("Wait", id="x", exec_id="e")["exit_status"] == 3
            assert client.task("State", id="x")["status"] == 2
            client.task("Kill", id="x", signal=9)
            assert client.task("Wait", id="x")["exit_status"] == 137
            peers.wait_until(lambda: bench.events.topics("x").count("exit") == 2, "the exit is told")
            for name in outputs:
                count = waiting_in(ends[name])
                assert count and len(read_until(ends[name], b"\0" * count)) >= count
            client.task("Delete", id="x")
        finally:
            for fd in ends.values():
                os.close(fd)


def logger(folder: Path, before: str = "") -> tuple[str, Path]:
    """A logging binary's URI, and the file that it writes: its container, its arguments, both outputs."""
    program, log = folder / "logger", folder / "collected"
    lines = ["#!/bin/sh", before, f'echo "$CONTAINER_ID $*" >{log}', "exec 5>&-"]
    program.write_text("\n".join([*lines, f"cat <&3 >>{log} &", f"cat <&4 >>{log} &", "wait\n"]))
    program.chmod(0o755)
    return f"binary://{program}?key=value", log


@pytest.mark.parametrize("binary", [REAL, OWN])
@pytest.mark.parametrize("terminal", [False, True])
def test_logging_binary(binary: str, terminal: bool, base: Path) -> None:
    with bench_of(binary, base / "one") as bench:
        uri, log = logger(base)
        bench.bundle("x", ["sh", "-c", "echo out; echo err >&2; exit 4"], terminal=terminal)
        client = bench.client(bench.start("x"))
        bench.create(client, "x", terminal=terminal, stdout=uri)
        client.task("Start", id="x")
        assert client.task("Wait", id="x")["exit_status"] == 4
        expected = ["x", "key", "value", "out", "err"]
        peers.wait_until(lambda: sorted(log.read_text().split()) == sorted(expected), "the logger has all")
        client.task("Delete", id="x")


def test_a_logging_binary_that_is_never_ready(base: Path) -> None:
    """It holds up its own container alone, and can be killed."""
    with bench_of(OWN, base / "one") as bench:
        notes = {"io.kubernetes.cri.sandbox-id": "pod"}
        for name in ("quick", "slow"):
            bench.bundle(name, ["sleep", "600"], notes)
        client = bench.client(bench.start("quick"))
        bench.create(client, "quick")
        uri, log = logger(base, f"echo $$ >{base}/pid; while [ ! -e {base}/go ]; do sleep 0.05; done")
        bench.start("slow")
        waiting = bench.client((bench.base / shimwire.NAMESPACE / "slow" / "address").read_text())
        creation = waiting.begin("Create", **(bench.request("slow") | {"stdout": uri}))
        peers.wait_until(lambda: (base / "pid").exists(), "the logger has begun")
        client.task("Start", id="quick")
        assert client.task("State", id="quick")["status"] == 2
        one_exec(client, "quick", "e", 3)
        (base / "go").touch()
        assert waiting.end("Create", creation)["pid"]
        assert log.read_text() == "slow key value\n"


def test_unknown_log_scheme(base: Path) -> None:
    from teu.ttrpc.status import StatusError

    with bench_of(OWN, base / "one") as bench:
        client = start_sleeper(bench, "x")
        target = base / "target"
        target.touch()
        for n, terminal in enumerate((False, True)):
            client.task(
                "Exec",
                id="x",
                exec_id=f"e{n}",
                spec=process("echo", "out"),
                terminal=terminal,
                stdout=f"nonsense://{target}",
            )
            with pytest.raises(StatusError, match="unknown STDIO scheme nonsense"):
                client.task("Start", id="x", exec_id=f"e{n}")
            client.task("Wait", id="x", exec_id=f"e{n}")
            client.task("Delete", id="x", exec_id=f"e{n}")
        assert target.read_text() == ""


def read_until(fd: int, end: bytes) -> bytes:
    """What comes out of a FIFO, to that end."""
    got = b""

    def ended() -> bool:
        nonlocal got
        with contextlib.suppress(BlockingIOError):
            got += os.read(fd, 65536)
        return end in got

    peers.wait_until(ended, f"{end!r} to be written")
    return got


def start_sleeper(bench: Bench, name: str) -> Client:
    bench.bundle(name, ["sleep", "600"])
    client = bench.client(bench.start(name))
    bench.create(client, name, "crun")  # it is quick
    client.task("Start", id=name)
    return client


def one_exec(client: Client, name: str, exec_id: str, code: int) -> None:
    client.task("Exec", id=name, exec_id=exec_id, spec=process("sh", "-c", f"exit {code}"))
    client.task("Start", id=name, exec_id=exec_id)
    assert client.task("Wait", id=name, exec_id=exec_id)["exit_status"] == code
    client.task("Delete", id=name, exec_id=exec_id)


def exec_events(first: int, last: int) -> list[tuple[str, str, int]]:
    return [
        (topic, f"e{n}", n if topic == "exit" else 0)
        for n in range(first, last)
        for topic in ("exec-added", "exec-started", "exit")
    ]


def told_of_execs(events: Receiver, name: str) -> list[tuple[str, str, int]]:
    return [
        (topic.removeprefix("/tasks/"), event.get("exec_id") or event["id"], event.get("exit_status", 0))
        for topic, event in events.of(name)
        if topic.startswith("/tasks/exec-") or topic == "/tasks/exit" and event["id"] != name
    ]


def test_events_while_containerd_is_away(base: Path) -> None:
    """They wait for it, and come in their order and once; so they do when it goes a second time."""
    rounds = 10
    with bench_of(OWN, base / "one") as bench:
        client = start_sleeper(bench, "x")
        one_exec(client, "x", "e0", 0)
        peers.wait_until(lambda: len(bench.events.of("x")) == 5, "the first events")
        for first in (1, 1 + rounds):
            bench.events.stop()
            for n in range(first, first + rounds):
                one_exec(client, "x", f"e{n}", n)
            assert told_of_execs(bench.events, "x") == exec_events(0, first), "nobody is there to be told"
            bench.events.start()
            peers.wait_until(
                lambda last=first + rounds: len(told_of_execs(bench.events, "x")) >= 3 * last, "it is told"
            )
            assert told_of_execs(bench.events, "x") == exec_events(0, first + rounds)
        bench.events.stop()
        client.task("Kill", id="x", signal=9)
        assert client.task("Wait", id="x")["exit_status"] == 137
        bench.events.start()
        peers.wait_until(
            lambda: bench.events.topics("x").count("exit") == 2 * rounds + 2, "the container's end is told"
        )
        client.task("Delete", id="x")
        peers.wait_until(lambda: "delete" in bench.events.topics("x"), "the last event")
        assert bench.events.topics("x")[-2:] == ["exit", "delete"]
        assert len(bench.events.of("x")) == 2 + 3 * (2 * rounds + 1) + 2


def test_a_containerd_that_takes_no_events(base: Path) -> None:
    """It hangs, or refuses: calls are served all the same, and what was not taken is told again to the next."""
    with bench_of(OWN, base / "one") as bench:
        bench.events.answers = False
        client = start_sleeper(bench, "x")
        for n in range(20):
            one_exec(client, "x", f"e{n}", n)
        peers.wait_until(lambda: bench.events.told, "the first event has come")
        assert bench.events.topics("x") == ["create"], "one at a time, and each until it is taken"
        bench.events.stop()
        bench.events.told.clear()
        bench.events.answers = True
        bench.events.start()
        peers.wait_until(lambda: len(bench.events.of("x")) >= 62, "all is told")
        assert bench.events.topics("x")[:2] == ["create", "start"]
        assert told_of_execs(bench.events, "x") == exec_events(0, 20)

        bench.events.refusals = 2
        one_exec(client, "x", "refused", 9)
        peers.wait_until(lambda: bench.events.of("x")[-1][1].get("exit_status") == 9, "the last exit is told")
        assert bench.events.topics("x")[62:] == [*["exec-added"] * 3, "exec-started", "exit"], "again until it is taken"


def test_exits_are_told_once(base: Path) -> None:
    """Of many at once, whoever ends first: each exit once, the container's own last."""
    count = 40
    with bench_of(OWN, base / "one") as bench:
        client = start_sleeper(bench, "x")
        waits = {}
        for n in range(count):
            command = f"exit {n}" if n % 2 else "exec sleep 600"
            client.task("Exec", id="x", exec_id=f"e{n}", spec=process("sh", "-c", command))
        started = [client.begin("Start", id="x", exec_id=f"e{n}") for n in range(count)]
        for n in range(count):
            client.end("Start", started[n])
            waits[n] = client.begin("Wait", id="x", exec_id=f"e{n}")
        ends = {f"e{n}": client.end("Wait", waits[n])["exit_status"] for n in range(1, count, 2)}
        client.task("Kill", id="x", signal=9)
        ends |= {f"e{n}": client.end("Wait", waits[n])["exit_status"] for n in range(0, count, 2)}
        assert ends == {f"e{n}": n if n % 2 else 137 for n in range(count)}
        assert client.task("Wait", id="x")["exit_status"] == 137
        peers.wait_until(lambda: bench.events.topics("x").count("exit") > count, "the container's exit is told")
        client.task("Delete", id="x")
        peers.wait_until(lambda: "delete" in bench.events.topics("x"), "its end is told")
        exits = [event for topic, event in bench.events.of("x") if topic == "/tasks/exit"]
        assert exits[-1]["id"] == "x"
        assert sorted((event["id"], event["exit_status"]) for event in exits[:-1]) == sorted(ends.items())


def test_subreaper(base: Path) -> None:
    """Without a pid namespace, what an exec leaves behind becomes the shim's child: it is reaped, and killed with
    the container."""
    with bench_of(OWN, base / "one") as bench:
        bench.bundle("x", ["sleep", "600"], namespaces=("mount", "ipc", "uts"))
        client = bench.client(bench.start("x"))
        pid = bench.create(client, "x")["pid"]
        client.task("Start", id="x")
        shim = client.task("Connect", id="x")["shim_pid"]
        client.task("Exec", id="x", exec_id="e", spec=process("sh", "-c", "sleep 600 & sleep 600 & exit 3"))
        client.task("Start", id="x", exec_id="e")
        assert client.task("Wait", id="x", exec_id="e")["exit_status"] == 3

        def children() -> set[int]:
            return {int(child) for child in Path(f"/proc/{shim}/task/{shim}/children").read_text().split()}

        orphans = {entry["pid"] for entry in client.task("Pids", id="x")["processes"]} - {pid}
        assert len(orphans) == 2
        peers.wait_until(lambda: children() == {pid, *orphans}, "they are the shim's")
        os.kill(orphans.pop(), signal.SIGTERM)
        peers.wait_until(lambda: children() == {pid, *orphans}, "it is reaped")
        client.task("Kill", id="x", signal=9)
        assert client.task("Wait", id="x")["exit_status"] == 137
        peers.wait_until(lambda: not children(), "no process and no zombie is left")
        client.task("Delete", id="x")
        assert [event["id"] for topic, event in bench.events.of("x") if topic == "/tasks/exit"] == ["e", "x"]


def test_shim_cgroup(base: Path) -> None:
    """A shim that is told a cgroup (ShimCgroup) goes there, and makes no scope of its own."""
    from teu.ttrpc.status import StatusError

    chosen = Path("/sys/fs/cgroup/teu-chosen")
    chosen.mkdir()
    try:
        with bench_of(OWN, base / "one") as bench:
            bench.bundle("x", ["sleep", "600"])
            client = bench.client(bench.start("x"))
            shim = client.task("Connect")["shim_pid"]
            request = bench.request("x")
            missing = shimwire.options(binary_name="runc", root=str(bench.base / "state"), shim_cgroup="/teu-missing")
            with pytest.raises(StatusError, match="teu-missing"):
                client.task("Create", **(request | {"options": missing}))
            given = shimwire.options(binary_name="runc", root=str(bench.base / "state"), shim_cgroup="/teu-chosen")
            pid = client.task("Create", **(request | {"options": given}))["pid"]
            client.task("Start", id="x")
            assert "0::/teu-chosen\n" in Path(f"/proc/{shim}/cgroup").read_text()
            assert f"0::/{shimwire.NAMESPACE}/x\n" in Path(f"/proc/{pid}/cgroup").read_text()
            assert peers.run("systemctl", "show", "--value", "-p", "LoadState", "teu-x.scope").stdout == "not-found\n"
            client.task("Kill", id="x", signal=9)
            client.task("Wait", id="x")
            client.task("Delete", id="x")
            client.shut_down()
            peers.wait_until(lambda: not taskhouse.alive(shim), "the shim has left")
    finally:
        peers.wait_until(lambda: chosen.rmdir() or True, "the cgroup to be empty")
