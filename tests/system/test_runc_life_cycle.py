# SPDX-License-Identifier: Apache-2.0
"""teu-runc: the specification's states and errors, also when things die in between."""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runc_bundle import RUNC, Bundle, exec_in, libc, new_bundle


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    with new_bundle() as made:
        yield made


def test_states_in_order(bundle: Bundle) -> None:
    id = bundle.created("sleep", "1000")
    state = bundle.state(id)
    assert state["status"] == "created"
    assert state["id"] == id and state["bundle"] == str(bundle.folder) and state["rootfs"] == str(bundle.rootfs)
    assert state["ociVersion"] == "1.0.2" and state["owner"] == ""
    assert Path(f"/proc/{state['pid']}").exists()
    bundle.ok("start", id)
    assert bundle.status(id) == "running"
    assert Path(f"/proc/{state['pid']}/cmdline").read_bytes() == b"sleep\x001000\x00"
    bundle.ok("kill", id, "KILL")
    bundle.wait_status(id, "stopped")
    assert bundle.state(id)["pid"] == 0
    bundle.ok("delete", id)
    done = bundle.runc("state", id)
    assert done.returncode == 1 and "container does not exist" in done.stderr


def test_the_program_is_there_when_start_returns(bundle: Bundle, rounds: Callable[[int], int]) -> None:
    for how in ("start", "run", "exec") * rounds(5):
        if how == "start":
            id = bundle.created()
            bundle.ok("start", id)
        else:
            id = bundle.detached()
        pid = bundle.pid(id)
        if how == "exec":
            bundle.leaving("exec", "-d", "--pid-file", "pid", id, "sleep", "999")
            pid = int((bundle.folder / "pid").read_text())
            (bundle.folder / "pid").unlink()
        assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n", how
        bundle.ok("delete", "--force", id)


def test_create_twice(bundle: Bundle) -> None:
    id = bundle.created()
    done = bundle.runc("create", id)
    assert done.returncode == 1 and "already exists" in done.stderr
    assert bundle.status(id) == "created"


def test_start_twice_and_start_of_stopped(bundle: Bundle) -> None:
    id = bundle.created()
    bundle.ok("start", id)
    done = bundle.runc("start", id)
    assert done.returncode == 1 and "cannot start an already running container" in done.stderr
    bundle.ok("kill", id, "9")
    bundle.wait_status(id, "stopped")
    done = bundle.runc("start", id)
    assert done.returncode == 1 and "cannot start a container that has stopped" in done.stderr


def test_kill_of_stopped_and_unknown_signal(bundle: Bundle) -> None:
    id = bundle.detached()
    assert "unknown signal" in bundle.runc("kill", id, "NOSUCH").stderr
    bundle.ok("kill", id, "SIGKILL")
    bundle.wait_status(id, "stopped")
    done = bundle.runc("kill", id, "TERM")
    assert done.returncode == 1 and "container not running" in done.stderr
    assert bundle.runc("kill", "--all", id, "TERM").returncode == 0


def test_delete_of_running(bundle: Bundle) -> None:
    id = bundle.detached()
    done = bundle.runc("delete", id)
    assert done.returncode == 1 and "is not stopped" in done.stderr
    bundle.ok("delete", "--force", id)
    assert not (bundle.root / id).exists()


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
@pytest.mark.parametrize("own_pids", [True, False])
def test_kill_of_created(bundle: Bundle, name: str, own_pids: bool) -> None:
    """Also as first process of a pid namespace, which no signal reaches that has no handler there."""
    if not own_pids:
        bundle.without_namespace("pid")
    id = bundle.created()
    bundle.ok("kill", id, name)
    bundle.wait_status(id, "stopped")
    bundle.ok("delete", id)


def test_delete_of_created(bundle: Bundle) -> None:
    id = bundle.created()
    pid = bundle.pid(id)
    bundle.ok("delete", id)
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()


def test_delete_of_unknown(bundle: Bundle) -> None:
    assert bundle.runc("delete", "nobody").returncode == 1
    assert bundle.runc("delete", "--force", "nobody").returncode == 0


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "../x", "/abs", "a b", "a\nb", "ü"])
def test_ids_that_are_paths(bundle: Bundle, id: str) -> None:
    bundle.write()
    marker = bundle.folder / "keep"
    marker.write_text("x")
    for words in (["create", "--", id], ["run", "--", id], ["delete", "--force", "--", id], ["state", "--", id]):
        done = bundle.runc(*words)
        assert done.returncode == 1 and "container" in done.stderr, words
    assert marker.exists() and bundle.rootfs.exists()


def test_first_process_dies_before_start(bundle: Bundle) -> None:
    id = bundle.created()
    os.kill(bundle.pid(id), signal.SIGKILL)
    bundle.wait_status(id, "stopped")
    assert "stopped" in bundle.runc("start", id).stderr
    bundle.ok("delete", id)


@pytest.mark.parametrize(
    ("args", "code"), [(["true"], 0), (["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -KILL $$; sleep 9"], 137)]
)
def test_exit_codes_of_exec_and_run(bundle: Bundle, args: list[str], code: int) -> None:
    id = bundle.detached()
    assert bundle.runc("exec", id, *args).returncode == code
    if code != 137:  # the first process of a pid namespace is safe from its own signals
        assert bundle.run(*args).returncode == code


def test_first_process_killed_gives_128_and_the_signal(bundle: Bundle) -> None:
    bundle.process["args"] = ["sleep", "1000"]
    bundle.write()
    id = bundle.new_id()
    runner = subprocess.Popen([RUNC, "--root", str(bundle.root), "run", id], cwd=bundle.folder)
    deadline = time.monotonic() + 20
    while bundle.runc("state", id).returncode or bundle.status(id) != "running":
        assert time.monotonic() < deadline
    bundle.ok("kill", id, "KILL")
    assert runner.wait(20) == 137
    assert not (bundle.root / id).exists()


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["nosuch"], 'exec: "nosuch": executable file not found in $PATH'),
        (["/nosuch"], 'exec: "/nosuch": stat /nosuch: no such file or directory'),
        (["/etc/passwd"], 'exec: "/etc/passwd": permission denied'),
        (["/etc"], 'exec: "/etc": is a directory'),
    ],
)
def test_a_program_that_cannot_be(bundle: Bundle, args: list[str], text: str) -> None:
    text = text.replace('"', '\\"')
    assert text in bundle.refuses(*args)
    id = bundle.detached()
    done = bundle.runc("exec", id, *args)
    assert done.returncode == 255 and text in done.stderr


def test_exec_format_error(bundle: Bundle) -> None:
    (bundle.rootfs / "bin/odd").write_bytes(b"\x7fnot a program")
    (bundle.rootfs / "bin/odd").chmod(0o755)
    assert "exec format error" in bundle.refuses("odd")


def test_errors_in_the_log(bundle: Bundle) -> None:
    log = bundle.folder / "log"
    done = bundle.runc("--log", str(log), "--log-format", "json", "state", "nobody")
    assert done.stderr == "container does not exist\n"
    entry = json.loads(log.read_text())
    assert entry["level"] == "error" and entry["msg"] == "container does not exist" and "time" in entry
    bundle.runc("--log", str(log), "state", "nobody")
    assert 'level=error msg="container does not exist"' in log.read_text()


def test_pid_file_and_foreign_working_directory(bundle: Bundle) -> None:
    bundle.process["args"] = ["sleep", "100"]
    bundle.write()
    id = bundle.new_id()
    pid_file = bundle.folder / "pid"
    done = subprocess.run(
        [RUNC, "--root", str(bundle.root), "create", "-b", str(bundle.folder), "--pid-file", "pid", id],
        cwd=bundle.folder,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0
    assert int(pid_file.read_text()) == bundle.pid(id)


def test_usage_errors(bundle: Bundle) -> None:
    for words in ([], ["--nosuch"], ["a", "b"]):
        done = bundle.runc("state", *words)
        assert done.returncode == 1 and "Incorrect Usage" in done.stdout
    assert bundle.runc("--help").returncode == 0
    assert bundle.runc("create", "--help").returncode == 0
    assert bundle.runc("--version").stdout.startswith("teu-runc version")
    assert bundle.runc("nosuch").returncode == 3


def test_run_passes_signals_on(bundle: Bundle) -> None:
    bundle.process["args"] = ["sh", "-c", "trap 'echo got; exit 42' USR1; echo ready; while :; do sleep 0.05; done"]
    bundle.write()
    runner = subprocess.Popen(
        [RUNC, "--root", str(bundle.root), "run", bundle.new_id()], cwd=bundle.folder, stdout=subprocess.PIPE, text=True
    )
    assert runner.stdout is not None
    assert runner.stdout.readline() == "ready\n"
    runner.send_signal(signal.SIGUSR1)
    assert runner.stdout.readline() == "got\n"
    assert runner.wait(20) == 42


def test_keep(bundle: Bundle) -> None:
    assert bundle.run("true", flags=("--keep",)).returncode == 0
    assert bundle.status(bundle.ids[-1]) == "stopped"


def test_kill_without_pid_namespace_reaches_all(bundle: Bundle) -> None:
    bundle.without_namespace("pid")
    id = bundle.detached("sh", "-c", "sleep 987 & sleep 986")
    cgroup = json.loads((bundle.root / id / "state.json").read_text())["cgroup"]["path"]
    deadline = time.monotonic() + 10
    while len(Path(cgroup, "cgroup.procs").read_text().split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    bundle.ok("kill", id, "KILL")
    bundle.wait_status(id, "stopped")
    deadline = time.monotonic() + 10
    while Path(cgroup, "cgroup.procs").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _left(bundle: Bundle, id: str) -> list[str]:
    """What of a container can still be found."""
    found = []
    if (bundle.root / id).exists():
        found.append("state")
    for folder, folders, _ in os.walk("/sys/fs/cgroup"):
        if id in folders:
            found.append(f"cgroup {folder}/{id}")
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        try:
            if id.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(f"process {pid}")
        except OSError:
            continue
    if id in Path("/proc/self/mountinfo").read_text():
        found.append("mount")
    return found


@pytest.mark.parametrize("command", ["create", "run"])
def test_kill_9_at_any_moment(bundle: Bundle, rounds: Callable[[int], int], command: str) -> None:
    """Whatever a killed teu-runc left, one delete --force removes."""
    bundle.process["args"] = ["sleep", "1000"]
    times = []
    for number in range(rounds(8)):
        id = bundle.new_id()
        bundle.process["env"] = [f"WHO={id}", "PATH=/bin"]
        bundle.write()
        runner = subprocess.Popen(
            [RUNC, "--root", str(bundle.root), command, id],
            cwd=bundle.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if number == 0:
            began = time.monotonic()
            while not (bundle.root / id / "state.json").exists() or bundle.status(id) not in ("created", "running"):
                pass
            times.append(time.monotonic() - began)
        else:
            time.sleep(random.uniform(0, max(0.02, times[0])))
        runner.kill()
        runner.wait()
        bundle.ok("delete", "--force", id)
        deadline = time.monotonic() + 10
        while left := _left(bundle, id):
            assert time.monotonic() < deadline, f"round {number}: {left}"
            time.sleep(0.02)
        bundle.ids.remove(id)
    print(f"{command}: {rounds(8)} deaths, nothing left")


PTRACE_TRACEME, PTRACE_SYSCALL, PTRACE_SETOPTIONS = 0, 24, 0x4200
PTRACE_O_EXITKILL = 0x100000


def _killed_at(bundle: Bundle, words: list[str], stop: int) -> int:
    """Run teu-runc, and kill it at that system-call stop (its entry or its exit); how many it came to."""
    ptrace = libc().ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    with bundle.output.open("w") as output:
        pid = os.fork()
        if pid == 0:
            try:
                os.chdir(bundle.folder)
                null = os.open("/dev/null", os.O_RDONLY)
                for number, fd in enumerate((null, output.fileno(), output.fileno())):
                    os.dup2(fd, number)
                ptrace(PTRACE_TRACEME, 0, None, None)
                os.execvp(RUNC, [RUNC, "--root", str(bundle.root), *words])
            finally:
                os._exit(99)
    _, status = os.waitpid(pid, 0)  # the stop at execve
    ptrace(PTRACE_SETOPTIONS, pid, None, PTRACE_O_EXITKILL)
    signal_number = seen = 0
    while os.WIFSTOPPED(status):
        if seen == stop:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return seen
        ptrace(PTRACE_SYSCALL, pid, None, signal_number)
        _, status = os.waitpid(pid, 0)
        signal_number = 0
        if os.WIFSTOPPED(status):
            if os.WSTOPSIG(status) == signal.SIGTRAP:
                seen += 1
            else:
                signal_number = os.WSTOPSIG(status)
    return seen


@pytest.mark.needs("fast")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("verb", ["create", "run", "start", "exec", "delete"])
def test_kill_9_at_every_step(bundle: Bundle, rounds: Callable[[int], int], verb: str) -> None:
    """Killed before or after any of its system calls, it leaves nothing that one delete --force does not remove."""
    count, moment = rounds(20), -1
    for number in range(count + 1):
        id = bundle.new_id()
        bundle.process["env"] = [f"WHO={id}", "PATH=/bin"]
        bundle.process["args"] = ["sleep", "1000"]
        bundle.write()
        if verb in ("start", "delete"):
            bundle.leaving("create", id)
        elif verb == "exec":
            bundle.leaving("run", "-d", id)
        words = {
            "create": ["create", id],
            "run": ["run", "-d", id],
            "start": ["start", id],
            "exec": ["exec", "-d", id, "sleep", "1000"],
            "delete": ["delete", "--force", id],
        }[verb]
        if number == 0:
            # to its end: so many stops there are
            total = _killed_at(bundle, words, -1)
            assert total > 100, bundle.output.read_text()
        else:
            # one in each part of them
            moment = random.randint(total * (number - 1) // count + 1, total * number // count)
            _killed_at(bundle, words, moment)
        if verb == "start":
            assert bundle.status(id) in ("created", "running", "stopped")
        bundle.ok("delete", "--force", id)
        deadline = time.monotonic() + 20
        while left := _left(bundle, id):
            assert time.monotonic() < deadline, f"stop {moment} of {total}: {left}"
            time.sleep(0.02)
        bundle.ids.remove(id)


def test_delete_force_during_create(bundle: Bundle, rounds: Callable[[int], int]) -> None:
    """Another teu-runc may delete what one is still making: one of them wins, nothing is left."""
    bundle.process["args"] = ["sleep", "1000"]
    for _ in range(rounds(6)):
        id = bundle.new_id()
        bundle.write()
        maker = subprocess.Popen(
            [RUNC, "--root", str(bundle.root), "create", id],
            cwd=bundle.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(random.uniform(0, 0.05))
        bundle.ok("delete", "--force", id)
        maker.wait(20)
        bundle.ok("delete", "--force", id)
        assert not (bundle.root / id).exists()


@pytest.mark.timeout(400)
def test_hundreds_at_once(bundle: Bundle, rounds: Callable[[int], int]) -> None:
    bundle.process["args"] = ["sleep", "1000"]
    bundle.write()
    ids = [bundle.new_id() for _ in range(rounds(50))]
    base = [RUNC, "--root", str(bundle.root)]

    def all_at_once(*words: str) -> None:
        with bundle.output.open("w") as output:
            running = [
                subprocess.Popen([*base, *words, id], cwd=bundle.folder, stdin=subprocess.DEVNULL, stderr=output)
                for id in ids
            ]
        for one in running:
            assert one.wait(200) == 0, bundle.output.read_text()

    began = time.monotonic()
    all_at_once("create")
    print(f"{len(ids)} created in {time.monotonic() - began:.2f} s")
    assert {bundle.status(id) for id in ids[:5]} == {"created"}
    all_at_once("start")
    listed = json.loads(bundle.ok("list", "--format", "json"))
    assert sorted(one["id"] for one in listed) == sorted(ids)
    assert {one["status"] for one in listed} == {"running"}
    all_at_once("delete", "--force")
    assert not any((bundle.root / id).exists() for id in ids)


def test_a_newer_record_is_refused_with_words(bundle: Bundle) -> None:
    id = bundle.created()
    path = bundle.root / id / "state.json"
    record = json.loads(path.read_text())
    assert record["version"] == 1
    path.write_text(json.dumps({**record, "version": 99}))
    assert "version 99" in bundle.runc("state", id).stderr
    path.write_text(json.dumps({**record, "something_new": 1}))
    assert bundle.status(id) == "created"


# What the first release of teu-runc wrote; a later one reads it for ever.
FIRST_RECORD = (
    "version",
    "id",
    "bundle",
    "rootfs",
    "created",
    "ociVersion",
    "annotations",
    "init_process_pid",
    "init_process_start",
    "cgroup",
    "namespace_paths",
    "rootless",
    "systemd_cgroup",
    "ready",
)


def test_an_older_record_is_read(bundle: Bundle) -> None:
    """A container made by the first version lives on under this one: every command knows what to do with it."""
    id = bundle.created()
    path = bundle.root / id / "state.json"

    def older() -> None:
        record = json.loads(path.read_text())
        path.write_text(json.dumps({key: record[key] for key in FIRST_RECORD if key in record}))

    older()
    assert bundle.status(id) == "created"
    bundle.ok("start", id)
    older()
    assert exec_in(bundle, id, "hostname") == "teu"
    assert json.loads(bundle.ok("ps", "-f", "json", id)) == [bundle.pid(id)]
    assert json.loads(bundle.ok("list", "-f", "json"))[0]["id"] == id
    assert json.loads(bundle.ok("events", "--stats", id))["id"] == id
    bundle.ok("pause", id)
    assert bundle.status(id) == "paused"
    bundle.ok("resume", id)
    bundle.ok("update", "--pids-limit", "-1", id)
    older()
    bundle.ok("kill", id, "KILL")
    bundle.wait_status(id, "stopped")
    older()
    bundle.ok("delete", id)
    assert not (bundle.root / id).exists()


def test_exec_while_created(bundle: Bundle) -> None:
    id = bundle.created()
    assert exec_in(bundle, id, "hostname") == "teu"


def test_a_container_without_process(bundle: Bundle) -> None:
    """runtime-spec: it can be created, and start of it is an error (which need not be returned; as crun's is not)."""
    del bundle.config["process"]
    bundle.write()
    id = bundle.new_id()
    bundle.leaving("create", id)
    assert bundle.status(id) == "created"
    done = bundle.runc("start", id)
    assert done.returncode == 0 and "level=error" in done.stderr and "no process" in done.stderr
    bundle.wait_status(id, "stopped")
    assert "has stopped" in bundle.runc("start", id).stderr
    bundle.ok("delete", id)
    done = bundle.runc("run", bundle.new_id())
    assert done.returncode == 1 and "process property must not be empty" in done.stderr


def test_list_of_a_root_that_is_not_there(bundle: Bundle) -> None:
    done = bundle.runc("list")
    assert done.returncode == 1 and "no such file or directory" in done.stderr
    bundle.root.mkdir()
    assert bundle.ok("list", "-q") == ""
