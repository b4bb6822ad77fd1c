# SPDX-License-Identifier: Apache-2.0
"""Debian's docker CLI on teud: the life of containers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import whole
from engine import (
    ENVIRONMENT,
    HOST,
    IMAGE,
    alive,
    detached,
    docker,
    eventually,
    inspect,
    need_busybox,
    out,
    remove,
    run,
    state,
)

pytestmark = pytest.mark.needs("docker")


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    need_busybox()


@pytest.fixture(scope="module")
def web(image: None) -> Iterator[str]:
    remove("web-e")
    detached("web-e", "sleep", "600")
    yield "web-e"
    remove("web-e")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    mine = "t-" + re.sub(r"\W+", "-", request.node.name)[:40].strip("-")
    remove(mine)
    yield mine
    remove(mine)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (("sh", "-c", "exit 7"), 7, ""),
        (("sh", "-c", "kill -TERM $$; sleep 1; exit 3"), 3, ""),
        (("sh", "-c", "sh -c 'kill -9 $$'; exit $?"), 137, ""),
        (("nosuch",), 127, "executable file not found in $PATH"),
        (("/etc/passwd",), 126, "permission denied"),
    ],
)
def test_exit_codes_of_run(command: tuple[str, ...], code: int, words: str) -> None:
    done = run(IMAGE, *command, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stderr.count("docker: Error") == bool(words)


def test_run_takes_its_flags(tmp_path: Path) -> None:
    bound = tmp_path / "bound"
    bound.mkdir()
    (bound / "there").write_text("bound")
    for folder in (bound, *bound.parents[:3]):
        folder.chmod(0o755)
    script = "id; pwd; echo $FOO; hostname; cat /bound/there; touch /bound/x 2>&1; grep ' /scratch ' /proc/mounts"
    done = run(
        "-e",
        "FOO=bar",
        "-w",
        "/tmp",
        "-u",
        "1000:10",
        "-v",
        f"{bound}:/bound:ro",
        "--tmpfs",
        "/scratch:size=64k",
        "--uts",
        "host",
        IMAGE,
        "sh",
        "-c",
        script,
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("uid=1000 gid=10")
    assert lines[1:3] == ["/tmp", "bar"]
    assert lines[4].startswith("bound")
    assert "Read-only file system" in done.stdout
    assert "size=64k" in lines[-1]
    named = docker(
        "run", "--rm", "--network", "none", "--hostname", "inner", IMAGE, "sh", "-c", "hostname; cat /etc/hostname"
    )
    assert named.stdout.split() == ["inner", "inner"]
    assert run("--entrypoint", "echo", IMAGE, "a", "b").stdout == "a b\n"


def test_confinement_is_dockers() -> None:
    status = run(IMAGE, "cat", "/proc/self/status").stdout
    assert re.search(r"^CapEff:\s+00000000a80425fb$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)
    assert (
        run(IMAGE, "sh", "-c", "unshare -m true; mount -t tmpfs x /mnt; cat /proc/kcore | wc -c", check=False).stdout
        == "0\n"
    )
    dropped = run("--cap-drop", "ALL", "--security-opt", "no-new-privileges", IMAGE, "cat", "/proc/self/status").stdout
    assert re.search(r"^CapBnd:\s+0+$", dropped, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", dropped, re.MULTILINE)
    free = run("--privileged", IMAGE, "cat", "/proc/self/status").stdout
    assert re.search(r"^Seccomp:\s+0$", free, re.MULTILINE)
    limits = run("--ulimit", "nofile=123:456", IMAGE, "sh", "-c", "ulimit -Sn; ulimit -Hn").stdout
    assert limits.split() == ["123", "456"]
    assert "Read-only" in run("--read-only", IMAGE, "touch", "/x", check=False).stderr
    assert run("--init", IMAGE, "cat", "/proc/1/comm").stdout != "cat\n"


def test_life_cycle(name: str) -> None:
    identity = out(
        "create", "--name", name, *HOST, IMAGE, "sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.05; done"
    )
    assert state(name)["Status"] == "created"
    assert out("start", name) == f"{name}\n"
    found = state(name)
    assert found["Running"] and alive(found["Pid"])
    assert docker("start", name).returncode == 0
    assert identity.startswith(out("ps", "-q", "--filter", f"name={name}").strip())
    assert docker("rm", name, check=False).returncode == 1
    out("pause", name)
    assert "(Paused)" in out("ps", "--filter", f"name={name}")
    assert "frozen" in Path(f"/proc/{found['Pid']}/cgroup").read_text() or state(name)["Paused"]
    assert docker("exec", name, "true", check=False).returncode == 1
    out("unpause", name)
    out("stop", name)
    stopped = state(name)
    assert (stopped["Status"], stopped["ExitCode"], stopped["Pid"]) == ("exited", 5, 0)
    assert not alive(found["Pid"])
    assert re.search(r"Exited \(5\)", out("ps", "-a", "--filter", f"name={name}"))
    out("restart", name)
    assert state(name)["Running"]
    out("rename", name, f"{name}-new")
    assert docker("inspect", name, check=False).returncode == 1
    out("rename", f"{name}-new", name)
    out("kill", "-s", "KILL", name)
    assert state(name)["ExitCode"] == 137
    assert out("wait", name) == "137\n"
    assert "is not running" in docker("kill", name, check=False).stderr
    out("rm", name)
    assert docker("inspect", name, check=False).returncode == 1


def test_stop_waits_and_then_kills(name: str) -> None:
    detached(name, "sh", "-c", "trap '' TERM; sleep 600 & wait; sleep 600")
    out("stop", "-t", "1", name)
    assert state(name)["ExitCode"] == 137


def test_a_signal_at_once_waits_for_the_start(tmp_path: Path, rounds: Callable[[int], int]) -> None:
    """What the container did can be seen before its start has been answered; the signal arrives all the same."""
    import http.client
    import socket

    script = "trap 'exit 8' TERM; : >/seen/now; while :; do sleep 0.05; done"
    refused = []
    for number in range(rounds(10)):
        name = f"at-once-{number}"
        out("create", "--name", name, *HOST, "-v", f"{tmp_path}:/seen", IMAGE, "sh", "-c", script)
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(ENVIRONMENT["DOCKER_HOST"].removeprefix("unix://"))
        starting = subprocess.Popen(["docker", "start", name], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (tmp_path / "now").exists():
            assert time.monotonic() < deadline
        connection.request("POST", f"/containers/{name}/kill?signal=TERM")
        answer = connection.getresponse()
        if answer.status != 204:
            refused.append(answer.read())
            docker("kill", name, check=False)
        connection.close()
        assert starting.wait(60) == 0
        assert out("wait", name).strip() == ("137" if answer.status != 204 else "8")
        docker("rm", name)
        (tmp_path / "now").unlink()
    assert not refused


def test_restart_policy(name: str) -> None:
    detached(name, "sh", "-c", "echo run; exit 3", flags=(*HOST, "--restart", "on-failure:2"))
    eventually(
        "the last attempt is over", lambda: state(name)["Status"] == "exited" and inspect(name)["RestartCount"] == 2
    )
    assert out("logs", name).split() == ["run"] * 3
    out("update", "--restart", "always", name)
    out("start", name)
    eventually("it is restarting", lambda: inspect(name)["RestartCount"] > 0)
    out("stop", name)
    assert state(name)["Status"] == "exited"


@pytest.mark.parametrize("policy", ["no", "always"])
def test_removal_while_the_shim_dies(policy: str, rounds: Callable[[int], int]) -> None:
    """The shim is killed, and the container removed at any moment of what follows."""
    for number in range(rounds(5)):
        name = f"headless{number}"
        out("run", "-d", "--restart", policy, "--name", name, IMAGE, "sleep", "600")
        first = int(out("inspect", "-f", "{{.State.Pid}}", name))
        shim = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(shim, signal.SIGKILL)
        time.sleep(number * 0.03)
        out("rm", "-f", name)
        assert name not in out("ps", "-a", "--format", "{{.Names}}").split()
        eventually("its process is gone", lambda gone=first: not Path(f"/proc/{gone}").exists())


def test_remove_after_exit(name: str) -> None:
    detached(name, "sleep", "0.2", flags=(*HOST, "--rm"))
    eventually("it is gone", lambda: docker("inspect", name, check=False).returncode == 1)


def test_exec(web: str) -> None:
    assert out("exec", web, "echo", "x") == "x\n"
    assert docker("exec", web, "sh", "-c", "echo e >&2; exit 9", check=False).returncode == 9
    assert docker("exec", web, "sh", "-c", "echo e >&2").stderr == "e\n"
    assert out("exec", "-i", web, "cat", stdin=b"in\0put") == "in\0put"
    assert out("exec", "-e", "A=b", "-w", "/tmp", "-u", "bin", web, "sh", "-c", "id -un; pwd; echo $A").split() == [
        "bin",
        "/tmp",
        "b",
    ]
    missing = docker("exec", web, "nosuch", check=False)
    assert missing.returncode == 127 and "executable file not found" in missing.stdout + missing.stderr
    assert docker("exec", web, "/etc/passwd", check=False).returncode == 126
    out("exec", "-d", web, "touch", "/tmp/detached")
    eventually(
        "the detached exec ran", lambda: docker("exec", web, "test", "-e", "/tmp/detached", check=False).returncode == 0
    )
    assert inspect(web)["ExecIDs"] is None
    big = docker("exec", web, "sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x").stdout
    assert len(big) == 5_000_000


def test_queries(web: str) -> None:
    rows = out("top", web).splitlines()
    assert rows[0].split()[:2] == ["UID", "PID"] and "sleep 600" in rows[1]
    assert out("top", web, "-o", "pid,comm").splitlines()[1].split()[1] == "sleep"
    assert (
        out("ps", "--format", "{{.Names}} {{.Image}} {{.Command}}", "--filter", f"name={web}")
        == f'{web} busybox "sleep 600"\n'
    )
    identity = inspect(web)["Id"]
    assert inspect(identity[:12])["Name"] == f"/{web}"
    for good in (
        "status=running",
        f"id={identity[:8]}",
        "ancestor=busybox",
        "label=nothing",
        "exited=0",
        "health=none",
    ):
        found = out("ps", "-a", "-q", "--no-trunc", "--filter", good).split()
        assert (identity in found) == (good.split("=")[0] not in ("label", "exited")), good
    assert docker("ps", "--filter", "colour=blue", check=False).returncode == 1
    stats = json.loads(out("stats", "--no-stream", "--format", "json", web))
    assert stats["Name"] == web
    assert int(json.loads(out("info", "--format", "json"))["ContainersRunning"]) >= 1
    assert json.loads(out("version", "--format", "json"))["Server"]["ApiVersion"] == "1.55"
    assert "Containers" in out("system", "df")


def test_conflicts_and_unknown_names(web: str) -> None:
    taken = docker("run", "--name", web, IMAGE, "true", check=False)
    assert taken.returncode == 125 and "is already in use by container" in taken.stderr
    for verb in ("inspect", "logs", "start", "stop", "kill", "rm", "wait", "top", "pause", "attach"):
        done = docker(verb, "nobody", check=False)
        assert done.returncode == 1 and "o such" in done.stderr, (verb, done.stderr)
    assert docker("rm", "-f", "nobody", check=False).returncode == 0
    assert docker("exec", "nobody", "true", check=False).returncode == 1


def test_copy(web: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "file").write_text("one")
    (source / "deep" / "two").write_text("two")
    (source / "link").symlink_to("file")
    out("cp", str(source), f"{web}:/tmp/")
    assert out("exec", web, "cat", "/tmp/source/deep/two", "/tmp/source/link") == "twoone"
    out("cp", f"{web}:/tmp/source/.", str(tmp_path / "back"))
    assert (tmp_path / "back/deep/two").read_text() == "two"
    assert (tmp_path / "back/link").is_symlink()
    assert docker("cp", f"{web}:/nowhere", str(tmp_path), check=False).returncode == 1
    # A link in the container that points at the host's file reads the container's.
    secret = Path("/root/a-file-of-the-host")
    secret.write_text("secret")
    out("exec", web, "ln", "-s", str(secret), "/tmp/escape")
    out("exec", web, "ln", "-s", "/../../../..", "/tmp/up")
    assert docker("cp", "-L", f"{web}:/tmp/escape", str(tmp_path / "stolen"), check=False).returncode == 1
    out("cp", str(source / "file"), f"{web}:/tmp/up/landed")
    secret.unlink()
    assert not Path("/landed").exists()
    assert out("exec", web, "cat", "/landed") == "one"
    assert "A /tmp/source/deep/two" in out("diff", web).splitlines()
    assert "/etc/hosts" not in out("diff", web)


def test_copy_to_a_stopped_container_and_export(name: str, tmp_path: Path) -> None:
    import io
    import tarfile

    out("create", "--name", name, *HOST, "-v", "/vol", IMAGE, "cat", "/root/new", "/vol/new")
    (tmp_path / "new").write_text("content ")
    out("cp", str(tmp_path / "new"), f"{name}:/root/new")
    out("cp", str(tmp_path / "new"), f"{name}:/vol/new")
    assert out("start", "-a", name) == "content content "
    out("cp", f"{name}:/vol/new", str(tmp_path / "again"))
    assert (tmp_path / "again").read_text() == "content "
    target = tmp_path / "export.tar"
    out("export", "-o", str(target), name)
    with tarfile.open(fileobj=io.BytesIO(target.read_bytes())) as archive:
        member = archive.extractfile("root/new")
        assert member is not None and member.read() == b"content "
        assert archive.getmember("bin/busybox").isfile()


def test_archives_that_climb_out(web: str) -> None:
    import http.client
    import io
    import socket
    import tarfile

    from engine import SOCKET

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(SOCKET)

    for bad in ("../../climbed", "a/../../../climbed"):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            info = tarfile.TarInfo(bad)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
        connection = Connection("x")
        connection.request("PUT", f"/v1.45/containers/{web}/archive?path=/tmp", data.getvalue())
        assert connection.getresponse().status == 500
        connection.close()
    assert docker("exec", web, "ls", "/climbed", check=False).returncode == 1
    assert not Path("/climbed").exists()


def test_health(name: str) -> None:
    flags = (*HOST, "--health-cmd", "test -e /fine", "--health-interval", "100ms", "--health-retries", "2")
    detached(name, "sleep", "600", flags=flags)
    assert state(name)["Health"]["Status"] == "starting"
    eventually("it is unhealthy", lambda: state(name)["Health"]["Status"] == "unhealthy")
    assert "(unhealthy)" in out("ps", "--filter", f"name={name}")
    out("exec", name, "touch", "/fine")
    eventually("it is healthy", lambda: state(name)["Health"]["Status"] == "healthy")
    assert out("ps", "-q", "--filter", "health=healthy", "--filter", f"name={name}")
    assert state(name)["Health"]["Log"][-1]["ExitCode"] == 0


def happened(name: str, since: str) -> list[str]:
    """What has happened to a container, but for its execs."""
    until = f"{time.time():.6f}"
    text = out("events", "--since", since, "--until", until, "--filter", f"container={name}", "--format", "{{.Action}}")
    return [action for action in text.splitlines() if not action.startswith("exec_")]


def rules(**given: str) -> tuple[str, ...]:
    """What teu has flags for."""
    found = (f"--annotation=io.teu.health-{name.replace('_', '-')}={text}" for name, text in given.items())
    return tuple(found)


UNWELL = ("--health-cmd", "test ! -e /ill", "--health-interval", "100ms", "--health-retries", "2")


@pytest.mark.parametrize("action", ["none", "kill", "restart", "stop"])
def test_what_is_done_with_the_unhealthy(name: str, action: str) -> None:
    """kill leaves the rest to the restart policy, stop does not: it is as if a user had."""
    since = f"{time.time():.6f}"
    flags = (*HOST, *UNWELL, *rules(on_failure=action), "--restart", "always", "--stop-timeout", "1")
    detached(name, "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done", flags=flags)
    first = state(name)["Pid"]
    out("exec", name, "touch", "/ill")
    eventually("it is unhealthy", lambda: "health_status: unhealthy" in happened(name, since))
    if action == "none":
        time.sleep(0.5)
        assert state(name)["Pid"] == first
    elif action == "stop":
        eventually("it is stopped", lambda: state(name)["Status"] == "exited")
        assert state(name)["ExitCode"] == 3
    else:
        eventually("it runs again", lambda: state(name)["Running"] and state(name)["Pid"] not in (0, first))
        # It is ended again and again, every two checks, until that is done in time.
        eventually("it is healed", lambda: docker("exec", name, "rm", "-f", "/ill", check=False).returncode == 0)
        eventually("it is healthy", lambda: state(name)["Health"]["Status"] == "healthy")
    wanted = [] if action == "none" else [f"health_on_failure: {action}"]
    assert [each for each in happened(name, since) if each.startswith("health_on")][:1] == wanted
    died = [each for each in happened(name, since) if each == "die"]
    assert bool(died) == (action != "none")


def test_a_check_for_the_start(name: str) -> None:
    since = f"{time.time():.6f}"
    startup = rules(startup_cmd="test -e /started", startup_interval="100ms", startup_success="2")
    detached(name, "sleep", "600", flags=(*HOST, *UNWELL, *startup))
    eventually("it was looked at", lambda: len(state(name)["Health"]["Log"]) >= 2)
    assert state(name)["Health"]["Status"] == "starting"
    out("exec", name, "touch", "/started")
    eventually("it is healthy", lambda: state(name)["Health"]["Status"] == "healthy")
    told = [each for each in happened(name, since) if each.startswith("health")]
    assert told == ["health_startup: passed", "health_status: healthy"]


def test_one_that_does_not_start_is_started_anew(name: str) -> None:
    since = f"{time.time():.6f}"
    startup = rules(startup_cmd="false", startup_interval="100ms", startup_retries="2")
    detached(name, "sh", "-c", "trap exit TERM; while :; do sleep 0.1; done", flags=(*HOST, *UNWELL, *startup))
    first = state(name)["Pid"]
    eventually("it runs again", lambda: state(name)["Running"] and state(name)["Pid"] not in (0, first))
    told = [each for each in happened(name, since) if each.startswith("health")]
    assert told[:2] == ["health_startup: failed", "health_on_failure: restart"]


def test_health_rules_need_a_check(name: str) -> None:
    done = docker("create", "--name", name, *rules(on_failure="kill"), "busybox", check=False)
    assert done.returncode
    assert "no health check" in done.stderr


def test_events(name: str) -> None:
    import time

    since = f"{time.time():.6f}"
    detached(name, "sh", "-c", "exit 4", flags=(*HOST, "--label", "colour=blue"))
    assert out("wait", name) == "4\n"
    out("rm", name)
    text = out(
        "events", "--since", since, "--until", f"{time.time():.6f}", "--filter", f"container={name}", "--format", "json"
    )
    events = [json.loads(line) for line in text.splitlines()]
    actions = [event["Action"] for event in events]
    assert actions == ["create", "start", "die", "destroy"]
    died = events[2]["Actor"]["Attributes"]
    assert died["exitCode"] == "4" and died["colour"] == "blue" and died["image"] == "busybox" and died["name"] == name
    filtered = out(
        "events",
        "--since",
        since,
        "--until",
        f"{time.time():.6f}",
        "--filter",
        "event=die",
        "--filter",
        "label=colour=blue",
    )
    assert len(filtered.splitlines()) == 1


def test_volumes_fill_and_stay(name: str) -> None:
    docker("volume", "rm", f"{name}-v", check=False)
    assert run(
        "-v", f"{name}-v:/etc", IMAGE, "sh", "-c", "cat /etc/passwd | head -n 1; echo mine >/etc/mine"
    ).stdout.startswith("root:")
    assert run("-v", f"{name}-v:/x", IMAGE, "cat", "/x/mine").stdout == "mine\n"
    detached(name, "sleep", "600", flags=(*HOST, "-v", f"{name}-v:/v", "-v", "/anonymous"))
    mounts = {mount["Destination"]: mount for mount in inspect(name)["Mounts"]}
    assert mounts["/v"]["Name"] == f"{name}-v" and mounts["/anonymous"]["Type"] == "volume"
    assert run("--volumes-from", name, IMAGE, "cat", "/v/mine").stdout == "mine\n"
    assert docker("volume", "rm", f"{name}-v", check=False).returncode == 1
    remove(name)
    out("volume", "rm", f"{name}-v")
    assert mounts["/anonymous"]["Name"] not in out("volume", "ls", "-q")


def test_namespaces_of_others(name: str) -> None:
    detached(name, "sleep", "600", flags=("--network", "none", "--ipc", "shareable"))
    out("exec", name, "sh", "-c", "echo shared >/dev/shm/x")
    flags = ("--rm", "--pid", f"container:{name}", "--ipc", f"container:{name}", "--network", f"container:{name}")
    text = docker("run", *flags, IMAGE, "sh", "-c", "ps; cat /dev/shm/x").stdout
    assert "sleep 600" in text and "shared" in text
    assert "sleep 600" in docker("run", "--rm", "--pid", "host", IMAGE, "ps").stdout


@pytest.mark.needs("memory", "pids")
def test_limits(name: str) -> None:
    flags = ("--memory", "64m", "--pids-limit", "50", "--network", "none")
    detached(name, "sleep", "600", flags=flags)
    assert out("exec", name, "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max").split() == [
        "67108864",
        "50",
    ]
    out("update", "--memory", "96m", "--memory-swap", "192m", name)
    assert out("exec", name, "cat", "/sys/fs/cgroup/memory.max").strip() == str(96 << 20)
    stats = json.loads(out("stats", "--no-stream", "--format", "json", name))
    assert stats["MemUsage"].endswith("96MiB")
    killed = docker(
        "run",
        "--name",
        f"{name}-oom",
        "--memory",
        "16m",
        "--memory-swap",
        "16m",
        IMAGE,
        "sh",
        "-c",
        "x=$(head -c 100m /dev/zero | tr '\\0' x); echo $x | wc -c",
        check=False,
    )
    try:
        assert killed.returncode in (137, 2, 1)
    finally:
        remove(f"{name}-oom")


@pytest.mark.needs("strace", "fast")
def test_an_idle_engine_does_not_wake_up(name: str, tmp_path: Path) -> None:
    """Nothing happens in its containers: no thread of teud's own makes a system call. (grpc's timers tick once a
    second; their threads bear names of their own.)"""
    detached(name, "sleep", "600")
    engine = whole.main_pid("teud.service")
    own = {entry.parent.name for entry in Path(f"/proc/{engine}/task").glob("*/comm") if entry.read_text() == "teud\n"}
    assert own
    trace = tmp_path / "trace"
    argv = ["timeout", "5", "strace", "-f", "-qq", "-p", str(engine), "-o", str(trace)]
    for _ in range(3):
        time.sleep(2)  # what the start of the container, and the end of those before it, still had to do
        subprocess.run(argv, check=False)
        calls = [line for line in trace.read_text().splitlines() if line.split()[0] in own and "resum" not in line]
        ended = [line for line in calls if " = " in line]
        if len(ended) < 60:
            break
    # The watchdog is fed, and once in a minute everything is looked at: that may fall into these seconds.
    assert len(ended) < 60, ended


@pytest.mark.needs("fast")
@pytest.mark.timeout(200)
def test_one_that_is_being_started_is_removed_whole(rounds: Callable[[int], int]) -> None:
    """A forced removal while another client starts the container: nothing runs on that no record stands for."""
    for number in range(rounds(8)):
        name = f"short-{number}"
        starting = subprocess.Popen(
            ["docker", "run", "-d", "--name", name, *HOST, IMAGE, "sleep", "600"],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while starting.poll() is None:
            if found := out("ps", "-aq", "--filter", f"name={name}").split():
                docker("rm", "-f", *found, check=False)
        docker("rm", "-f", name, check=False)
    listed = whole.out("teu-ctr", "-n", "teu", "tasks", "ls", "-q").split()
    known = out("ps", "-q", "--no-trunc").split()
    assert sorted(listed) == sorted(known)


@pytest.mark.needs("systemd", "fast")
def test_a_task_that_no_record_stands_for_is_swept() -> None:
    """Neither in engine.db nor in containerd's: what a removal that died half-way leaves at worst."""
    import grpc

    from teu.api.services.containers.v1 import containers_pb2

    whole.call("teu-ctr", "-n", "teu", "run", "-d", "docker.io/library/busybox:latest", "stray", "sleep", "600")
    with grpc.insecure_channel("unix:/run/teu/containerd.sock") as channel:
        delete = channel.unary_unary(
            "/containerd.services.containers.v1.Containers/Delete",
            request_serializer=containers_pb2.DeleteContainerRequest.SerializeToString,
        )
        delete(containers_pb2.DeleteContainerRequest(id="stray"), metadata=[("containerd-namespace", "teu")])
    assert "stray" in whole.out("teu-ctr", "-n", "teu", "tasks", "ls", "-q").split()
    whole.call("systemctl", "restart", "teud.service")
    out("ps")
    eventually("it is gone", lambda: "stray" not in whole.out("teu-ctr", "-n", "teu", "tasks", "ls", "-q").split())
    assert "stray" not in whole.out("teu-ctr", "-n", "teu", "containers", "ls", "-q").split()
    whole.call("teu-ctr", "-n", "teu", "snapshots", "rm", "stray")
