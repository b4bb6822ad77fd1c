# SPDX-License-Identifier: Apache-2.0
"""The shim's parts, each by itself: command line, options, placement, streams, mounts' options, exits."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from teu.shim import cgroup, main, placement, rootfs, runtime, service, start, stdio, warmup
from teu.shim.loop import Future, Lock, Loop
from teu.shim.process import Exec, Process, StreamOwner, exit_code
from teu.shim.runtime import last_error
from teu.ttrpc import messages as m
from teu.ttrpc.status import StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.shim.loop import Coroutine


def test_flags() -> None:
    flags, action = main.parse_flags(["-namespace", "k8s.io", "--id=x", "-debug", "-bundle", "/b", "delete"])
    assert (flags["namespace"], flags["id"], flags["debug"], flags["bundle"], action) == (
        "k8s.io",
        "x",
        True,
        "/b",
        "delete",
    )
    assert main.parse_flags(["-debug=false", "start"])[0]["debug"] is False
    for bad in (["-nonsense"], ["-id"]):
        with pytest.raises(main.UsageError):
            main.parse_flags(bad)


def test_bootstrap() -> None:
    assert start.bootstrap("unix:///s", {}) == "unix:///s"
    assert start.bootstrap("unix:///s", {"MAX_SHIM_VERSION": "1"}) == "unix:///s"
    for offered, version in (("2", 2), ("3", 3), ("9", 3)):
        assert json.loads(start.bootstrap("unix:///s", {"MAX_SHIM_VERSION": offered})) == {
            "version": version,
            "address": "unix:///s",
            "protocol": "ttrpc",
        }


def test_one_socket_per_group_and_daemon() -> None:
    path = start.socket_path("/run/teu/s", "/run/a.sock", "n" * 76, "x" * 76)
    assert len(path) < 107
    others = {start.socket_path("/run/teu/s", *key) for key in (("/b", "n", "x"), ("/a", "m", "x"), ("/a", "n", "y"))}
    assert len(others | {path}) == 4


def test_listen_again_after_a_killed_shim(tmp_path: Path) -> None:
    path = str(tmp_path / "folder" / "s")
    first = start.listen(path)
    assert first is not None
    assert start.listen(path) is None
    first.close()  # as kill -9 does: the file stays
    second = start.listen(path)
    assert second is not None
    assert os.stat(path).st_mode & 0o777 == 0o600
    second.close()


def test_options() -> None:
    packed = m.encode_any("containerd.runc.v1.Options", {"binary_name": "crun", "systemd_cgroup": True})
    assert service.read_options(packed)["binary_name"] == "crun"
    assert service.read_options(None)["root"] == ""
    body = b'BinaryName = "runc"\nIoUid = 5\nSystemdCgroup = true\n'
    packed = m.encode_any("runtimeoptions.v1.Options", {"config_body": body})
    options = service.read_options(packed)
    assert (options["binary_name"], options["io_uid"], options["systemd_cgroup"]) == ("runc", 5, True)
    with pytest.raises(ValueError, match="Nonsense"):
        service.read_options(m.encode_any("runtimeoptions.v1.Options", {"config_body": b"Nonsense = 1"}))
    with pytest.raises(ValueError, match="expected"):
        service.read_options({"type_url": "other", "value": b""})
    with pytest.raises(ValueError, match="environment must not contain a NUL"):
        service.read_options(m.encode_any("containerd.runc.v1.Options", {"environment": [b"A=b\0"]}))


@pytest.mark.parametrize(
    ("spec", "env"),
    [
        ({"process": {}}, ["A=\udcff", "B="]),
        ({"process": {"env": None}}, ["A=\udcff", "B="]),
        ({"process": {"env": ["C=d"]}}, ["C=d", "A=\udcff", "B="]),
        ({"process": {"env": "C=d"}}, "C=d"),
    ],
)
def test_variables_beside_the_spec(spec: dict[str, Any], env: Any) -> None:
    placement.add_variables(spec, [b"A=\xff", b"B="])
    assert spec["process"]["env"] == env


@pytest.mark.parametrize("spec", [{}, {"process": None}, {"process": []}])
def test_a_spec_without_a_process_stays_so(spec: dict[str, Any]) -> None:
    before = str(spec)
    placement.add_variables(spec, [b"A=b"])
    assert str(spec) == before


@pytest.mark.parametrize(
    ("name", "number"),
    [("SIGQUIT", 3), ("quit", 3), ("9", 9), ("", 15), ("nonsense", 15), ("SIGRTMIN+3", signal.SIGRTMIN + 3)],
)
def test_signal_number(name: str, number: int) -> None:
    assert service.signal_number(name) == number


def test_scope_name() -> None:
    assert placement.scope_name("/default/x", "x") == ("teu.slice", "teu-x.scope")
    assert placement.scope_name("my.slice:web:x", "x") == ("my.slice", "web-x.scope")
    assert placement.scope_name(":teu:x", "x") == ("teu.slice", "teu-x.scope")


def test_a_unit_that_delegates_its_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shim stands in shim/, the container in container/; controllers are handed down to both floors."""
    monkeypatch.setattr(placement, "mount_point", lambda: str(tmp_path))
    above = tmp_path / "system.slice/a:b.service"
    above.mkdir(parents=True)
    (above / "cgroup.controllers").write_text("pids\n")
    inner = above / "teu-x"
    inner.mkdir()
    (inner / "cgroup.controllers").write_text("pids\n")
    spec: dict[str, Any] = {"linux": {"cgroupsPath": "/system.slice/a:b.service:teu:x"}}
    found = placement.Placement("teu")
    assert found.join_unit([7], spec, "x")
    assert spec["linux"]["cgroupsPath"] == "/system.slice/a:b.service/teu-x/container"
    assert (inner / "shim/cgroup.procs").exists() and not found.unit
    assert (above / "cgroup.subtree_control").read_text() == (inner / "cgroup.subtree_control").read_text() == "+pids"
    for other in ("teu.slice:teu:x", "/default/x", ""):
        assert not placement.Placement("teu").join_unit([7], {"linux": {"cgroupsPath": other}}, "x")
    with pytest.raises(FileNotFoundError):
        placement.Placement("teu").join_unit([7], {"linux": {"cgroupsPath": "/none.service:teu:x"}}, "x")


def test_group() -> None:
    assert placement.group_of({}, "x") == "x"
    assert placement.group_of({"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}, "x") == "pod"
    notes = {"io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "first"}
    assert placement.group_of({"annotations": notes}, "x") == "first"


def test_pid_namespace() -> None:
    assert service.shares_pids({}) is True
    assert service.shares_pids({"linux": {"namespaces": [{"type": "pid"}]}}) is False
    assert service.shares_pids({"linux": {"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}]}}) is True


def test_long_overlays_are_made_short() -> None:
    parent, data = rootfs.shorten_overlay("index=off,lowerdir=/s/1/fs:/s/2/fs,upperdir=/u")
    assert (parent, data) == ("/s", "index=off,lowerdir=1/fs:2/fs,upperdir=/u")


def test_last_error(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    assert last_error(str(log)) == ""
    log.write_text('{"level":"error","msg":"old"}\n')
    size = log.stat().st_size
    with log.open("a") as file:
        file.write('{"level":"error","msg":"why"}\nnot json\n{"level":"info","msg":"no"}\n')
    assert last_error(str(log), size) == "why"
    assert last_error(str(log), log.stat().st_size) == ""
    # As crun writes from 1.28 on; then what a runtime that was killed has not finished.
    entry = '{\n  "msg": "a {brace\\nand more",\n  "level": "error",\n  "time": "2026"\n}\n'
    log.write_text(entry.replace("more", "less") + entry + '{\n  "level": "error",\n  "msg": "to')
    assert last_error(str(log)) == "a {brace\nand more"


def test_exit_code() -> None:
    assert [exit_code(status) for status in (0, 7 << 8, 9, 15 | 0x80)] == [0, 7, 137, 143]


def test_log_uri() -> None:
    assert stdio.parse_uri("/run/x/stdout") == ("fifo", "/run/x/stdout", [])
    assert stdio.parse_uri("file:///var/log/x") == ("file", "/var/log/x", [])
    assert stdio.parse_uri("binary:///usr/bin/logger?a=b&flag=&c=%2F") == (
        "binary",
        "/usr/bin/logger",
        ["a", "b", "flag", "c", "/"],
    )


def test_fifo_outlives_its_readers(tmp_path: Path) -> None:
    """What the process writes while no reader is there is read later; EOF comes with its exit, not before."""
    path = str(tmp_path / "stdout")
    os.mkfifo(path)
    streams = stdio.Streams()
    streams.open("", path, "", container="x", namespace="y")
    out = os.dup(streams.child_fds()[1])  # as the container's process has it
    streams.close_child()
    os.write(out, b"one ")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 100) == b"one "
    with pytest.raises(BlockingIOError):
        os.read(reader, 100)
    os.close(reader)
    os.write(out, b"two")
    os.close(out)
    streams.exited()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 100) == b"two"
    assert os.read(reader, 100) == b""
    os.close(reader)
    streams.close()


def test_standard_error_is_the_process_only_after_its_start(tmp_path: Path) -> None:
    """What a failing runtime writes there is dropped; later all of it arrives, however slow the reader."""
    path = str(tmp_path / "stderr")
    os.mkfifo(path)
    streams = stdio.Streams()
    streams.open("", "", path, container="x", namespace="y")
    os.write(streams.child_fds()[2], b"runtime failed")
    streams.close()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 100) == b""

    loop = Loop()
    streams = stdio.Streams()
    streams.open("", "", path, container="x", namespace="y")
    writer = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", "head -c 500000 /dev/zero >&2"],
        {},
        file_actions=[(os.POSIX_SPAWN_DUP2, streams.child_fds()[2], 2)],
    )
    streams.started(loop)
    assert streams.relay
    got = 0

    def read_some() -> None:
        nonlocal got
        try:
            while data := os.read(reader, 3000):
                got += len(data)
            return
        except BlockingIOError:
            loop.after(0.001, read_some)

    read_some()
    exited = loop.wait_exit(writer)
    exited.then(lambda _: streams.exited())
    streams.relay.drained.then(lambda _: loop.stop())
    loop.run()
    while data := os.read(reader, 65536):
        got += len(data)
    assert got == 500000
    streams.close()
    os.close(reader)
    loop.close()


@pytest.mark.parametrize("room", [1, 2, 3])
def test_the_last_output_of_a_terminal_that_nobody_reads_yet(tmp_path: Path, room: int) -> None:
    """A full FIFO, an end, and output in the terminal that is not counted where one can ask for it."""
    path = str(tmp_path / "out")
    os.mkfifo(path)
    loop = Loop()

    def session() -> None:
        master, slave = os.openpty()
        tty.setraw(slave)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, room * 4096)
        console = stdio.Console(loop, master, "", path)
        written = os.urandom(4000)  # what a terminal takes at once
        writer = threading.Thread(target=lambda: [os.write(slave, written), os.write(slave, written), os.close(slave)])
        writer.start()
        while writer.is_alive() and not console.output.drained.done:
            console.output._copy()  # not after its end, which can come before the thread's
        writer.join()
        console.exited()
        got = b""

        def read_some() -> None:
            nonlocal got
            try:
                got += os.read(reader, 65536)
            except BlockingIOError:
                pass
            loop.after(0, read_some if not console.output.drained.done else loop.stop)

        loop.after(0, read_some)
        loop.run()
        console.close()
        while data := os.read(reader, 65536):
            got += data
        os.close(reader)
        assert got == written * 2

    for _ in range(100):
        session()
    loop.close()


def test_close_stdin(tmp_path: Path) -> None:
    path = str(tmp_path / "stdin")
    os.mkfifo(path)
    streams = stdio.Streams()
    streams.open(path, "", "", container="x", namespace="y")
    process = os.dup(streams.child_fds()[0])
    streams.close_child()
    os.set_blocking(process, False)
    client = os.open(path, os.O_WRONLY)
    os.write(client, b"hello")
    os.close(client)
    assert os.read(process, 100) == b"hello"
    with pytest.raises(BlockingIOError):
        os.read(process, 100)  # a client that left is no end of file
    streams.close_stdin()
    assert os.read(process, 100) == b""
    os.close(process)
    streams.close()


def test_streams_leak_nothing(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for name in ("in", "out", "err"):
        os.mkfifo(tmp_path / name)
    for out in (str(tmp_path / "out"), f"file://{tmp_path}/new/log", str(tmp_path / "missing"), "nonsense://x"):
        streams = stdio.Streams()
        try:
            streams.open(str(tmp_path / "in"), out, str(tmp_path / "err"), container="x", namespace="y")
        except (OSError, ValueError):
            pass
        streams.close()
    assert not set(os.listdir("/proc/self/fd")) - before


def test_loop_and_lock() -> None:
    loop = Loop()
    order: list[str] = []
    lock = Lock()

    def work(name: str, seconds: float):  # type: ignore[no-untyped-def]
        yield lock.acquire()
        try:
            order.append(name + "+")
            yield loop.sleep(seconds)
            order.append(name + "-")
            if name == "b":
                raise ValueError("as expected")
        finally:
            lock.release()
        return name

    futures = [loop.spawn(work("a", 0.02)), loop.spawn(work("b", 0.01)), loop.spawn(work("c", 0))]
    futures[-1].then(lambda _: loop.stop())
    loop.run()
    assert order == ["a+", "a-", "b+", "b-", "c+", "c-"]
    assert futures[0].value == "a" and isinstance(futures[1].error, ValueError)

    # exits: of a child known in time, and of one collected before anybody asked
    loop.expect()
    early = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 4"], {})
    os.waitid(os.P_PID, early, os.WEXITED | os.WNOWAIT)
    loop.reap()
    results: list[Future] = [loop.wait_exit(early), loop.wait_exit(os.posix_spawn("/bin/sh", ["sh"], {}))]
    loop.unexpect()
    for future in results:
        future.then(lambda _: loop.stop() if all(f.done for f in results) else None)
    loop.run()
    assert [exit_code(future.value) for future in results] == [4, 0]
    loop.close()


def test_a_timer_that_is_years_away() -> None:
    """A client's deadline: epoll itself takes no more than 24 days."""
    loop = Loop()
    read_end, write_end = os.pipe()
    loop.after(9e9, lambda: pytest.fail("years are not over"))
    loop.watch(read_end, select.EPOLLIN, lambda _events: loop.stop())
    os.write(write_end, b"x")
    loop.run()
    loop.close()
    os.close(read_end)
    os.close(write_end)


def test_a_timer_that_is_forgotten() -> None:
    loop = Loop()
    called = []
    kept = loop.after(0.01, lambda: called.append("kept"))
    timers = [loop.after(10**9, lambda: called.append("never")) for _ in range(1000)]
    for timer in timers:
        loop.forget(timer)
        loop.forget(timer)
    assert len(loop._timers) < 100 and len(loop._due) == 1
    loop.forget(loop.after(0, lambda: called.append("never")))
    loop.after(0.02, loop.stop)
    loop.run()
    loop.forget(kept)
    assert called == ["kept"]
    loop.close()


def test_what_a_client_is_told_of_an_error() -> None:
    assert service._told(FileNotFoundError(2, "No such file or directory", "/b/x")) == "/b/x: no such file or directory"
    assert service._told(OSError(36, "File name too long")) == "file name too long"
    assert service._told(ValueError("x")) == "x" and service._told(KeyError()) == "KeyError"


@pytest.mark.parametrize("text", [b"\xfay#\xf0", b"{", b"[1]", b"[" * 100_000, b""])
def test_a_configuration_that_is_none(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match="config.json") as told:
        placement.read_spec(str(tmp_path))
    assert "codec" not in str(told.value)


def test_text_with_a_nul_is_refused() -> None:
    request = m.decode("task.CreateTaskRequest", m.encode("task.CreateTaskRequest", {"id": "a", "bundle": "/b"}))
    assert service._with_nul(request) == ""
    assert service._with_nul({**request, "stdin": "a\0b"}) == "stdin"
    assert service._with_nul({**request, "rootfs": [{"type": "x", "options": ["a", "\0"]}]}) == "rootfs.options"
    packed = {"type_url": service.OPTIONS_TYPE, "value": m.encode(service.OPTIONS_TYPE, {"root": "/\0"})}
    with pytest.raises(ValueError, match="root must not contain a NUL"):
        service.read_options(packed)


@pytest.mark.parametrize(
    "line", ["Root = 5", 'IoUid = "1"', "BinaryName = true", 'SystemdCgroup = "yes"', "IoGid = true"]
)
def test_runtime_options_of_another_type(line: str) -> None:
    body = m.encode(service.GENERIC_OPTIONS_TYPE, {"config_body": line.encode()})
    with pytest.raises(ValueError, match="must not be"):
        service.read_options({"type_url": service.GENERIC_OPTIONS_TYPE, "value": body})


@pytest.mark.parametrize("value", [b"null", b"[]", b"1", b'"x"', b"[" * 100_000, b"", b"\xff", None], ids=range(8))
def test_a_process_to_exec_that_is_none(value: bytes | None, tmp_path: Path) -> None:
    loop = Loop()
    request = dict.fromkeys(("stdin", "stdout", "stderr"), "") | {"id": "c", "exec_id": "e", "terminal": False}
    spec = None if value is None else {"type_url": "x", "value": value}
    with pytest.raises(StatusError, match="exec e: malformed process spec: ") as refused:
        Exec(loop, str(tmp_path), request | {"spec": spec}, lambda _text: None)
    assert "NoneType" not in refused.value.message and "object does not" not in refused.value.message
    loop.close()


def test_a_coroutine_that_is_given_up() -> None:
    loop, end, left = Loop(), Future(), []

    def wait() -> Coroutine:
        try:
            yield end
        finally:
            left.append(True)

    running = loop.spawn(wait())
    running.cancel(ValueError("enough"))
    assert left and isinstance(running.error, ValueError)
    running.cancel(ValueError("again"))
    end.set()  # what it waited for may come yet
    assert str(running.error) == "enough"
    loop.close()


@pytest.mark.parametrize("early", [False, True])
def test_no_signal_goes_to_a_pid_that_was_given_back(early: bool, tmp_path: Path) -> None:
    """Between the collection of a process and the word of its end, which waits for its execs, the pid may be
    anybody's."""
    loop = Loop()
    request = {"stdin": "", "stdout": "", "stderr": "", "terminal": False}
    process = Process(loop, str(tmp_path), request, print)
    process.on_exited = lambda _status: None
    pid_file = tmp_path / "pid"

    class Started(runtime.Runtime):
        def run(self, *args: str, **_: object) -> Coroutine:
            child = subprocess.Popen(["true"] if early else ["sleep", "600"])
            pid_file.write_text(str(child.pid))
            if early:  # it is gone before its start has been told
                yield loop.sleep(0.3)

    options = {"binary_name": "x", "root": "", "systemd_cgroup": False}
    start = loop.spawn(
        process.run_with_stdio(
            Started(loop, "x", str(tmp_path), options), StreamOwner("c", "n", 0, 0), str(pid_file), "create"
        )
    )
    start.then(lambda _: loop.stop())
    if not start.done:
        loop.run()
    assert start.error is None
    if not early:
        process.send_signal(signal.SIGKILL)
        loop.after(0.3, loop.stop)
        loop.run()
    with subprocess.Popen(["sleep", "600"]) as bystander:
        process.pid = bystander.pid  # as the kernel may choose
        with pytest.raises(StatusError, match="already finished"):
            process.send_signal(signal.SIGKILL)
        assert bystander.poll() is None
        bystander.kill()
    loop.close()


def test_metrics_of_a_made_up_cgroup(tmp_path: Path) -> None:
    for name, text in {
        "pids.current": "3\n",
        "pids.max": "max\n",
        "cpu.stat": "usage_usec 10\nnr_throttled 2\n",
        "memory.stat": "anon 4096\nnew_in_some_kernel 1\n",
        "memory.current": "8192\n",
        "memory.max": "100\n",
        "memory.events": "low 0\noom_kill 2\n",
        "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
        "cpu.pressure": "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\n",
        "hugetlb.2MB.current": "0\n",
        "hugetlb.2MB.max": "max\n",
        "hugetlb.2MB.events": "max 1\n",
        "rdma.max": "mlx4_0 hca_handle=2 hca_object=max\n",
    }.items():
        (tmp_path / name).write_text(text)
    metrics = m.decode(
        "io.containerd.cgroups.v2.Metrics", m.encode("io.containerd.cgroups.v2.Metrics", cgroup.metrics(str(tmp_path)))
    )
    assert metrics["pids"] == {"current": 3, "limit": (1 << 64) - 1}
    assert (metrics["cpu"]["usage_usec"], metrics["cpu"]["psi"]["some"]["avg10"]) == (10, 1.5)
    assert (metrics["memory"]["anon"], metrics["memory"]["usage"], metrics["memory"]["usage_limit"]) == (
        4096,
        8192,
        100,
    )
    assert metrics["io"]["usage"] == [{"major": 8, "minor": 0, "rbytes": 1, "wbytes": 2, "rios": 3, "wios": 4}]
    assert metrics["hugetlb"][0]["failcnt"] == 1 and metrics["memory_events"]["oom_kill"] == 2
    assert metrics["rdma"]["limit"][0]["hca_objects"] == 0xFFFFFFFF


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a short name: without CAP_SYS_RESOURCE a fork's command line reaches as far as our own."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


def test_a_program_is_loaded_once_and_run_by_forks(short_path: Path) -> None:
    program = short_path / "greeter"
    text = (
        "#!/usr/bin/python3\n# loadable: greet\nimport os, sys\n"
        "def main():\n"
        "    words = open('/proc/self/cmdline').read().rstrip('\\0').split('\\0')\n"
        "    os.write(1, repr((words, sorted(os.listdir('/proc/self/fd')))).encode())\n"
        "    os.write(2, b'not well')\n"
        "    os._exit(3 if sys.argv[1:] == ['greet', 'you'] else 4)\n"
        "if __name__ == '__main__':\n    os._exit(5)\n"
    )
    program.write_text(text)
    loaded = runtime.Loaded(str(program))
    assert loaded.commands == ["greet"]
    assert loaded.serves(str(program), "greet")
    assert not loaded.serves(str(program), "leave") and not loaded.serves("/other", "greet")
    files = [os.memfd_create(name) for name in ("in", "out", "errors")]
    listening = os.memfd_create("a descriptor of the shim's, which the program must not get")
    try:
        pid = loaded.fork([str(program), "greet", "you"], (files[0], files[1], files[2]), None, -1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        # the fourth is the listing's own
        told = repr(([str(program), "greet", "you"], ["0", "1", "2", "3"]))
        assert os.pread(files[1], 4096, 0).decode() == told
        assert os.pread(files[2], 4096, 0) == b"not well"
    finally:
        for fd in (*files, listening):
            os.close(fd)
    os.utime(program, ns=(1, 1))
    assert not loaded.serves(str(program), "greet"), "an upgrade is executed"
    for other in ("#!/bin/sh\n# loadable: greet\n", "#!/usr/bin/python3\nprint()\n"):
        program.write_text(other)
        with pytest.raises(ValueError, match="cannot be loaded"):
            runtime.Loaded(str(program))


def test_what_comes_before_is_done_in_the_runtimes_process(short_path: Path) -> None:
    """It is told when that has ended; where it fails the runtime does not run."""
    program = short_path / "greeter"
    program.write_text(
        "#!/usr/bin/python3\n# loadable: greet\nimport os, sys\n"
        "def main():\n    os.write(2, b'not well')\n    os._exit(3)\n"
        "if __name__ == '__main__':\n    os._exit(5)\n"
    )
    loaded = runtime.Loaded(str(program))
    command = [str(program), "greet"]
    for ending, told, failure in (
        (None, ["runs", "/"], "not well"),
        (OSError(28, "no space left", "/x"), [], "failed: [Errno 28] no space left: '/x'"),
        (LookupError("y"), [], "LookupError: y"),
    ):
        found: list[object] = []

        def work(started: list[int], ending: Exception | None = ending) -> object:
            assert started == []
            if ending is not None:
                raise ending
            return ["runs", "/"]

        before = runtime.Before(work, found.extend, lambda error: ValueError(f"failed: {error}"))
        loop = Loop()
        run = runtime.Run(loop, command, "/", str(short_path / "log"), None, loaded=loaded, before=before)
        result = loop.spawn(run.wait())
        result.then(lambda _, loop=loop: loop.stop())
        loop.run()
        loop.close()
        assert found == told and str(result.error) == failure
        assert isinstance(result.error, runtime.RuntimeFailed) == (ending is None)


def test_what_is_immortal_counts_no_references() -> None:
    """In an interpreter of its own: nothing there can be freed any more."""
    script = (
        "import sys, gc\nfrom teu.shim import warmup\nname = 'a word ' * 3\nkept = [name]\n"
        "before = sys.getrefcount(kept)\nwarmup.immortalize()\nmore = [kept, kept, name]\n"
        "print(before < 10, sys.getrefcount(kept) == sys.getrefcount(name) == sys.getrefcount(None),\n"
        "      kept == ['a word ' * 3], gc.collect() >= 0)"
    )
    source = str(Path(runtime.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONPATH": source}
    )
    knows = sys.getrefcount(None) in warmup._IMMORTAL
    assert done.stdout.split() == ["True", str(knows), "True", "True"]


def test_folders_of_killed_rounds_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f"warm-{dead.pid}-x", f"warm-{os.getpid()}-x", "warm-x", "containerd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    odd = tmp_path / f"warm-{dead.pid}-odd"
    (odd / "folder").mkdir(parents=True)  # not of ours: it does not keep the zygote from its work
    warmup.sweep(str(tmp_path))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"warm-{os.getpid()}-x", "warm-x", "containerd", odd.name}
