# SPDX-License-Identifier: Apache-2.0
"""teu-runc: `process` of config.json, exec, terminals and hooks, by what the container reports."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runc_bundle import RUNC, Bundle, exec_in, new_bundle


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    with new_bundle() as made:
        yield made


def status_of(said: str) -> dict[str, str]:
    return {key: value.strip() for key, _, value in (line.partition(":") for line in said.splitlines())}


# -- identity ---------------------------------------------------------------------------------------


def test_user_groups_and_umask(bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o027}
    said = bundle.says("id -u; id -g; id -G; umask; cat /proc/self/status")
    assert said.split("\n")[:4] == ["1000", "1001", "1001 5 6", "0027"]
    id = bundle.detached()
    assert exec_in(bundle, id, "umask; id -G") == "0027\n1001 5 6"
    assert exec_in(bundle, id, "id -u; id -g", "--user", "7:8") == "7\n8"


def test_default_umask(bundle: Bundle) -> None:
    assert bundle.says("umask") == "0022"


def test_home_is_that_of_the_users(bundle: Bundle) -> None:
    assert bundle.says("echo $HOME") == "/root"
    bundle.process["user"]["uid"] = 1000
    assert bundle.says("echo $HOME") == "/home/guest"
    bundle.process["user"]["uid"] = 4711
    assert bundle.says("echo $HOME") == "/"
    bundle.process["env"].append("HOME=/given")
    assert bundle.says("echo $HOME") == "/given"


def test_environment_is_exactly_what_is_given(bundle: Bundle) -> None:
    bundle.process["env"] = ["PATH=/bin", "A=1", "B=x=y", "A=2", "HOME=/"]
    assert sorted(bundle.says("env").split("\n")) == ["A=2", "B=x=y", "HOME=/", "PATH=/bin", "PWD=/", "SHLVL=1"]


def test_working_directory(bundle: Bundle) -> None:
    bundle.process["cwd"] = "/made/here"
    assert bundle.says("pwd") == "/made/here"
    id = bundle.detached()
    assert exec_in(bundle, id, "pwd", "--cwd", "/tmp") == "/tmp"
    done = bundle.runc("exec", "--cwd", "/nosuch", id, "true")
    assert done.returncode == 255 and "chdir to cwd" in done.stderr


def test_working_directory_that_only_the_user_may_enter(bundle: Bundle) -> None:
    private = bundle.rootfs / "private"
    private.mkdir()
    os.chown(private, 1000, 1000)
    private.chmod(0o700)
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    bundle.process["capabilities"] = {}
    bundle.process["cwd"] = "/private"
    assert bundle.says("pwd") == "/private"


def test_all_five_capability_sets(bundle: Bundle) -> None:
    one, two, three = "CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"
    bundle.process["capabilities"] = {
        "bounding": [one, two, three],
        "permitted": [one, two, three],
        "effective": [one],
        "inheritable": [one, two],
        "ambient": [two],
    }
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    found = status_of(bundle.says("cat /proc/self/status"))
    assert int(found["CapBnd"], 16) == 1 << 0 | 1 << 5 | 1 << 13
    assert int(found["CapAmb"], 16) == 1 << 5
    assert int(found["CapInh"], 16) == 1 << 0 | 1 << 5
    assert int(found["CapPrm"], 16) == 1 << 5, "after execve as an ordinary user only the ambient ones are left"


def test_unknown_capability_is_a_warning(bundle: Bundle) -> None:
    bundle.process["capabilities"]["bounding"] = ["CAP_CHOWN", "CAP_NONSENSE"]
    done = bundle.run("true")
    assert done.returncode == 0 and "CAP_NONSENSE" in done.stderr and "warning" in done.stderr


def test_no_capabilities_given_is_none(bundle: Bundle) -> None:
    del bundle.process["capabilities"]
    found = status_of(bundle.says("cat /proc/self/status"))
    assert {int(found[name], 16) for name in ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}


@pytest.mark.parametrize("wanted", [True, False])
def test_no_new_privileges(bundle: Bundle, wanted: bool) -> None:
    bundle.process["noNewPrivileges"] = wanted
    assert status_of(bundle.says("cat /proc/self/status"))["NoNewPrivs"] == str(int(wanted))


def test_rlimits(bundle: Bundle) -> None:
    bundle.process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    assert bundle.says("ulimit -n; ulimit -Hn; ulimit -c") == "77\n88\n0"
    id = bundle.detached()
    assert exec_in(bundle, id, "ulimit -n") == "77"


def test_oom_score_scheduler_and_io_priority(bundle: Bundle) -> None:
    bundle.process["oomScoreAdj"] = 321
    bundle.process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    bundle.process["ioPriority"] = {"class": "IOPRIO_CLASS_IDLE", "priority": 0}
    id = bundle.detached()
    pid = bundle.pid(id)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "321"
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH
    assert os.getpriority(os.PRIO_PROCESS, pid) == 7
    said = subprocess.run(["ionice", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "idle"


def test_execs_cpu_affinity(bundle: Bundle) -> None:
    bundle.process["execCPUAffinity"] = {"initial": "0", "final": "0"}
    id = bundle.detached()
    assert "Cpus_allowed_list:\t0\n" in exec_in(bundle, id, "cat /proc/self/status") + "\n"


def test_personality_and_domain_name(bundle: Bundle) -> None:
    bundle.config["domainname"] = "example.test"
    bundle.linux["personality"] = {"domain": "LINUX32"}
    said = bundle.says("uname -m; cat /proc/sys/kernel/domainname; hostname")
    assert said.split("\n")[1:] == ["example.test", "teu"]
    if os.uname().machine == "x86_64":
        assert said.startswith("i686")


def test_domain_name_by_a_sysctl_too(bundle: Bundle) -> None:
    bundle.config["domainname"] = "example.test"
    bundle.linux["sysctl"] = {"kernel.domainname": "example.test"}
    assert bundle.says("cat /proc/sys/kernel/domainname") == "example.test"
    bundle.linux["sysctl"] = {"kernel.domainname": "other.test"}
    assert "conflicts with the field domainname" in bundle.refuses()


def test_memory_policy(bundle: Bundle) -> None:
    bundle.linux["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0"}
    assert "bind:0" in bundle.says("cat /proc/self/numa_maps")
    assert "bind:0" in exec_in(bundle, bundle.detached(), "cat /proc/self/numa_maps")
    bundle.linux["memoryPolicy"] = {"mode": "MPOL_NOSUCH", "nodes": "0"}
    assert "memoryPolicy.mode" in bundle.refuses()


def test_session_keyring(bundle: Bundle) -> None:
    bundle.linux["maskedPaths"] = []
    if not Path("/proc/keys").exists():
        pytest.skip("this kernel has no /proc/keys")
    said = bundle.says("cat /proc/keys")
    assert f"_ses.{bundle.ids[-1]}" in said
    said = bundle.says("cat /proc/keys", flags=("--no-new-keyring",))
    assert f"_ses.{bundle.ids[-1]}" not in said
    # an exec finds the container's, so it has one keyring and not one more for each exec
    id = bundle.detached()
    execs = [exec_in(bundle, id, f"grep _ses.{id} /proc/keys").splitlines() for _ in range(2)]
    assert len(execs[0]) == 1 and execs[0][0].split()[0] == execs[1][0].split()[0], execs


@pytest.mark.needs("apparmor")
def test_apparmor(bundle: Bundle) -> None:
    profile = "profile teu-test flags=(attach_disconnected) { file, capability, signal, deny /secret r, }"
    subprocess.run(["apparmor_parser", "-r"], input=profile, text=True, check=True)
    (bundle.rootfs / "secret").write_text("x")
    bundle.process["apparmorProfile"] = "teu-test"
    assert bundle.says("cat /proc/self/attr/current; cat /secret 2>/dev/null || echo denied").endswith("denied")
    bundle.process["apparmorProfile"] = "no-such-profile"
    assert "no-such-profile" in bundle.refuses()


# -- descriptors ------------------------------------------------------------------------------------


def test_preserve_fds_and_listen_fds(bundle: Bundle) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"hello\n")
    os.close(write_end)
    bundle.process["args"] = ["sh", "-c", "cat <&3; ls /proc/self/fd | tr '\\n' ' '; echo $LISTEN_FDS $LISTEN_PID"]
    bundle.write()
    try:
        command = f'exec 3<&{read_end}; exec "$0" --root {bundle.root} run --preserve-fds 1 {bundle.new_id()}'
        done = subprocess.run(
            ["bash", "-c", command, RUNC],
            cwd=bundle.folder,
            pass_fds=[read_end],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("hello\n0 1 2 3 "), done.stdout
        command = f'exec 3<&{read_end}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" --root {bundle.root} run {bundle.new_id()}'
        done = subprocess.run(
            ["bash", "-c", command, RUNC],
            cwd=bundle.folder,
            pass_fds=[read_end],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.endswith(" 1 1\n"), done.stdout
    finally:
        os.close(read_end)
    done = bundle.run("true", flags=("--preserve-fds", "5"))
    assert done.returncode == 1 and "preserved-fd" in done.stderr


def test_pidfd_socket(bundle: Bundle) -> None:
    path = str(bundle.folder / "pidfd.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        bundle.process["args"] = ["sleep", "100"]
        bundle.write()
        id = bundle.new_id()
        bundle.leaving("run", "-d", "--pidfd-socket", path, id)
        connection, _ = server.accept()
        _, fds, _, _ = socket.recv_fds(connection, 16, 1)
    info = Path(f"/proc/self/fdinfo/{fds[0]}").read_text()
    os.close(fds[0])
    assert f"Pid:\t{bundle.pid(id)}" in info


# -- terminals ----------------------------------------------------------------------------------------


def _console(bundle: Bundle, *words: str) -> int:
    """The master that a command sends to its console socket."""
    path = str(bundle.folder / f"console{len(words)}{len(bundle.ids)}.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        got: list[int] = []

        def take() -> None:
            connection, _ = server.accept()
            _, fds, _, _ = socket.recv_fds(connection, 64, 1)
            got.extend(fds)
            connection.close()

        taker = threading.Thread(target=take)
        taker.start()
        bundle.leaving(*[path if word == "@" else word for word in words])
        taker.join(20)
    return got[0]


def _read_all(master: int) -> str:
    data = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:
            break
        if not piece:
            break
        data += piece
    os.close(master)
    return data.decode().replace("\r", "")


def test_terminal_with_its_size(bundle: Bundle) -> None:
    bundle.process["terminal"] = True
    bundle.process["consoleSize"] = {"height": 33, "width": 99}
    bundle.process["args"] = ["sh", "-c", "read x; stty size; tty; stat -c %t:%T /dev/console; ls /dev/pts"]
    bundle.write()
    id = bundle.new_id()
    master = _console(bundle, "create", "--console-socket", "@", id)
    assert struct.unpack("HHHH", fcntl.ioctl(master, termios.TIOCGWINSZ, bytes(8)))[:2] == (33, 99)
    bundle.ok("start", id)
    os.write(master, b"go\n")
    said = _read_all(master)
    assert "33 99\n/dev/pts/0\n88:0\n" in said, said
    assert said.split()[-2:] == ["0", "ptmx"]


def test_terminal_of_exec(bundle: Bundle) -> None:
    id = bundle.detached()
    process = {**bundle.process, "args": ["sh", "-c", "tty; echo $COLUMNS; stty size"], "terminal": True}
    process["consoleSize"] = {"height": 10, "width": 20}
    (bundle.folder / "process.json").write_text(json.dumps(process))
    master = _console(bundle, "exec", "-d", "--console-socket", "@", "-p", "process.json", id)
    assert "/dev/pts/0" in _read_all(master)


def test_terminal_in_the_foreground(bundle: Bundle) -> None:
    bundle.process["terminal"] = True
    done = bundle.run("sh", "-c", "tty; read x; echo got $x", input="word\n")
    assert done.returncode == 0 and "/dev/pts/0\n" in done.stdout and "got word\n" in done.stdout
    # Its newlines are newlines from the first on: the terminal is set up before the program is let go.
    assert "\r" not in done.stdout.replace("word\r\n", "")


def test_terminal_without_a_mount_namespace(bundle: Bundle) -> None:
    """Nothing is mounted in the root then, no devpts either: the terminal is one of the host's."""
    bundle.without_namespace("mount")
    del bundle.linux["maskedPaths"], bundle.linux["readonlyPaths"]
    bundle.process["terminal"] = True
    done = bundle.run("sh", "-c", "test -t 0 && test -t 2 && read x && echo got $x; ls /dev", input="word\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace("\r", "").split("\n")[-2:] == ["got word", ""], "and nothing is in its /dev"
    assert str(bundle.folder) not in Path("/proc/self/mountinfo").read_text()


def test_every_line_of_a_terminal_in_the_foreground(bundle: Bundle, rounds: Callable[[int], int]) -> None:
    bundle.process["terminal"] = True
    id = None
    for number in range(rounds(6)):
        said = bundle.run("echo", "here").stdout
        assert said == "here\n", number
        bundle.process["terminal"] = False
        id = id or bundle.detached()
        assert bundle.ok("exec", "-t", id, "echo", "here") == "here\n", number
        bundle.process["terminal"] = True


def test_terminal_needs_a_socket_when_detached(bundle: Bundle) -> None:
    bundle.process["terminal"] = True
    bundle.write()
    done = bundle.runc("create", bundle.new_id())
    assert done.returncode == 1 and "cannot allocate tty if runc will detach" in done.stderr
    bundle.process["terminal"] = False
    bundle.write()
    done = bundle.runc("create", "--console-socket", "x", bundle.new_id())
    assert done.returncode == 1 and "cannot use console socket" in done.stderr


# -- exec ------------------------------------------------------------------------------------------------


def test_exec_with_a_process_file(bundle: Bundle) -> None:
    id = bundle.detached()
    process = {
        "args": ["sh", "-c", "id -u; pwd; echo $X; cat /proc/self/status"],
        "cwd": "/tmp",
        "env": ["X=1", "PATH=/bin"],
        "user": {"uid": 5, "gid": 6},
        "capabilities": {"bounding": ["CAP_KILL"]},
        "noNewPrivileges": True,
    }
    (bundle.folder / "p.json").write_text(json.dumps(process))
    said = bundle.ok("exec", "--process", "p.json", id)
    assert said.startswith("5\n/tmp\n1\n")
    assert int(status_of(said)["CapBnd"], 16) == 1 << 5
    done = bundle.runc("exec", "-p", "nosuch.json", id)
    assert done.returncode == 255
    (bundle.folder / "p.json").write_text("{}")
    assert bundle.runc("exec", "-p", "p.json", id).returncode == 255


def test_exec_with_a_process_file_that_leaves_things_open(bundle: Bundle) -> None:
    """They are as for the container's first process."""
    bundle.process["capabilities"] = {"bounding": ["CAP_KILL", "CAP_CHOWN"]}
    bundle.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]
    id = bundle.detached()
    script = "cat /proc/self/status; ulimit -n; ulimit -Hn"
    process = {"args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
    for given, bounding, limits in (
        ({}, 1 << 5 | 1, ["77", "88"]),
        ({"capabilities": {}, "rlimits": []}, 0, ["77", "88"]),
        ({"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 55, "hard": 66}]}, 1 << 5 | 1, ["55", "66"]),
    ):
        (bundle.folder / "p.json").write_text(json.dumps({**process, **given}))
        said = bundle.ok("exec", "--process", "p.json", id)
        assert int(status_of(said)["CapBnd"], 16) == bounding, given
        assert said.split()[-2:] == limits, given


def test_exec_is_in_the_namespaces_and_the_cgroup(bundle: Bundle) -> None:
    id = bundle.detached()
    init = f"/proc/{bundle.pid(id)}"
    names = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts", "time")
    wanted = [os.readlink(f"{init}/ns/{name}") for name in names]
    script = f"for n in {' '.join(names)}; do readlink /proc/self/ns/$n; done; grep ^0: /proc/self/cgroup"
    said = exec_in(bundle, id, script).split("\n")
    assert said[:8] == wanted
    assert said[8] == "0::/"


def test_exec_detached_with_pid_file_and_env(bundle: Bundle) -> None:
    id = bundle.detached()
    bundle.leaving("exec", "-d", "--pid-file", "pid", "-e", "A=b", id, "sleep", "555")
    pid = int((bundle.folder / "pid").read_text())
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x00555\x00"
    assert b"A=b" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def test_exec_in_stopped_and_paused(bundle: Bundle) -> None:
    id = bundle.detached()
    bundle.ok("pause", id)
    done = bundle.runc("exec", id, "true")
    assert done.returncode == 255 and "paused" in done.stderr
    bundle.ok("resume", id)
    bundle.ok("kill", id, "KILL")
    bundle.wait_status(id, "stopped")
    done = bundle.runc("exec", id, "true")
    assert done.returncode == 255 and "cannot exec in a stopped container" in done.stderr


def test_exec_in_a_paused_container_if_asked_for(bundle: Bundle) -> None:
    """It stands still with the others, and goes on with them."""
    id = bundle.detached()
    bundle.ok("pause", id)
    words = [RUNC, "--root", str(bundle.root), "exec", "--ignore-paused", id, "sh", "-c", "echo went > /on; echo on"]
    running = subprocess.Popen(words, cwd=bundle.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    cgroup = json.loads((bundle.root / id / "state.json").read_text())["cgroup"]["path"]
    deadline = time.monotonic() + 20
    while len(Path(cgroup, "cgroup.procs").read_text().split()) < 2:
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.01)
    assert not (bundle.rootfs / "on").exists()
    bundle.ok("resume", id)
    assert running.communicate(timeout=20)[0] == "on\n" and running.returncode == 0


def test_exec_into_a_sub_cgroup(bundle: Bundle) -> None:
    id = bundle.detached()
    cgroup = json.loads((bundle.root / id / "state.json").read_text())["cgroup"]["path"]
    Path(cgroup, "below").mkdir()
    assert exec_in(bundle, id, "grep ^0: /proc/self/cgroup", "--cgroup", "below") == "0::/below"
    done = bundle.runc("exec", "--cgroup", "nosuch", id, "true")
    assert done.returncode == 255
    done = bundle.runc("exec", "--cgroup", "../..", id, "true")
    assert done.returncode == 255


def test_exec_where_the_container_made_cgroups_of_its_own(bundle: Bundle) -> None:
    """As systemd in a container does: its processes are in leaves, the top takes none."""
    bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", ["nosuid", "noexec", "nodev", "rw"])
    script = (
        "mkdir /sys/fs/cgroup/init && echo 1 > /sys/fs/cgroup/init/cgroup.procs && "
        "for c in $(cat /sys/fs/cgroup/cgroup.controllers); do echo +$c > /sys/fs/cgroup/cgroup.subtree_control; done; "
        "echo ready > /ready; sleep 1000"
    )
    id = bundle.detached("sh", "-c", script)
    while not (bundle.rootfs / "ready").exists():
        pass
    assert exec_in(bundle, id, "grep ^0: /proc/self/cgroup") in ("0::/init", "0::/")
    if exec_in(bundle, id, "cat /sys/fs/cgroup/cgroup.subtree_control"):
        done = bundle.runc("exec", "--cgroup", "/", id, "true")
        assert done.returncode == 255 and "busy" in done.stderr, "the one that was asked for, or none"


# -- hooks -----------------------------------------------------------------------------------------------


def _hook(bundle: Bundle, name: str, script: str, **more: object) -> dict[str, object]:
    path = bundle.folder / f"{name}.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"path": str(path), "args": [name, "argument"], "env": ["HOOK=" + name], **more}


def test_hooks_in_order_with_state(bundle: Bundle) -> None:
    log = bundle.folder / "hooks.log"
    script = f'echo "$HOOK $0 $1 $(readlink /proc/self/ns/mnt) $(cat)" >> {log}'
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    bundle.config["hooks"] = {kind: [_hook(bundle, kind, script)] for kind in kinds}
    started_script = "#!/bin/sh\necho startContainer $(readlink /proc/self/ns/mnt) $(cat) > /started\n"
    (bundle.rootfs / "start.sh").write_text(started_script)
    (bundle.rootfs / "start.sh").chmod(0o755)
    bundle.config["hooks"]["startContainer"] = [{"path": "/start.sh", "env": ["PATH=/bin"]}]
    bundle.config["annotations"] = {"a.b": "c"}
    id = bundle.created()
    ours = os.readlink("/proc/self/ns/mnt")
    inside = os.readlink(f"/proc/{bundle.pid(id)}/ns/mnt")
    assert [line.split()[0] for line in log.read_text().splitlines()] == list(kinds[:3])
    assert not (bundle.rootfs / "started").exists()
    bundle.ok("start", id)
    started = (bundle.rootfs / "started").read_text().split(None, 2)
    assert started[1] == inside
    assert json.loads(started[2])["status"] == "created"
    bundle.ok("delete", "--force", id)
    lines = [line.split(None, 4) for line in log.read_text().splitlines()]
    assert [line[0] for line in lines] == list(kinds)
    for kind, path, argument, namespace, state in lines:
        assert path.endswith(f"{kind}.sh") and argument == "argument"
        assert namespace == (inside if kind == "createContainer" else ours)
        found = json.loads(state)
        assert found["id"] == id and found["bundle"] == str(bundle.folder) and found["annotations"] == {"a.b": "c"}
        expected = {"prestart": "created", "poststart": "running", "poststop": "stopped"}.get(kind, "creating")
        assert found["status"] == expected, kind
        assert ("pid" in found) == (kind != "poststop")


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_hook_that_fails_ends_it(bundle: Bundle, kind: str) -> None:
    bundle.config["hooks"] = {kind: [_hook(bundle, kind, "echo it was me; exit 3")]}
    error = bundle.refuses()
    assert f"error running {kind} hook #0" in error and "exit status 3" in error and "it was me" in error


@pytest.mark.parametrize("kind", ["createRuntime", "startContainer"])
def test_a_hook_that_a_signal_ends(bundle: Bundle, kind: str) -> None:
    bundle.config["hooks"] = {kind: [{"path": "/bin/sh", "args": ["sh", "-c", "kill -SEGV $$; sleep 9"]}]}
    assert f"error running {kind} hook #0: signal: segmentation fault" in bundle.refuses()


def test_a_hook_that_takes_too_long(bundle: Bundle) -> None:
    bundle.config["hooks"] = {"createRuntime": [_hook(bundle, "slow", "sleep 100", timeout=1)]}
    assert "hook ran past specified timeout" in bundle.refuses()


def test_a_poststop_hook_that_fails_is_a_warning(bundle: Bundle) -> None:
    bundle.config["hooks"] = {"poststop": [_hook(bundle, "poststop", "exit 1")]}
    done = bundle.run("true")
    assert done.returncode == 0
    assert "poststop hook #0" in done.stderr and "level=warning" in done.stderr


@pytest.mark.parametrize("kind", ["startContainer", "poststart"])
def test_a_hook_of_start_that_fails_ends_the_container(bundle: Bundle, kind: str) -> None:
    """runtime-spec, "Lifecycle": an error, and what create did is undone, with poststop hooks."""
    log = bundle.folder / "poststop.log"
    failing = {"path": "/bin/false"} if kind == "startContainer" else _hook(bundle, kind, "exit 1")
    bundle.config["hooks"] = {kind: [failing], "poststop": [_hook(bundle, "poststop", f"echo gone >> {log}")]}
    assert f"error running {kind} hook #0" in bundle.refuses("sleep", "100")
    assert log.read_text() == "gone\n"
    id = bundle.created()
    pid = bundle.pid(id)
    done = bundle.runc("start", id)
    assert done.returncode == 1 and f"error running {kind} hook #0" in done.stderr
    assert not (bundle.root / id).exists() and log.read_text() == "gone\n" * 2
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("kind", ["prestart", "createContainer", "startContainer", "poststart", "poststop"])
def test_every_kind_of_hook_has_a_time_limit(bundle: Bundle, kind: str) -> None:
    slow = {"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}
    bundle.config["hooks"] = {kind: [slow]}
    done = bundle.run("true")
    assert "hook ran past specified timeout" in done.stderr
    assert done.returncode == (0 if kind == "poststop" else 1)


def test_start_hook_is_under_the_filter_and_has_the_environment(bundle: Bundle) -> None:
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}
    bundle.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    bundle.process["env"].append("ONE=two")
    script = bundle.rootfs / "hook.sh"
    script.write_text("#!/bin/sh\n[ $ONE = two ] && ! mkdir /made\n")
    script.chmod(0o755)
    bundle.config["hooks"] = {"startContainer": [{"path": "/hook.sh"}]}
    bundle.says("true")
    assert not (bundle.rootfs / "made").exists()


# -- seccomp ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nnp", [True, False])
def test_seccomp_filter(bundle: Bundle, nnp: bool) -> None:
    bundle.process["noNewPrivileges"] = nnp
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    }
    for id in (None, bundle.detached()):
        script = "mkdir /tmp/x 2>&1; grep ^Seccomp: /proc/self/status"
        said = bundle.says(script) if id is None else exec_in(bundle, id, script)
        assert "Operation not supported" in said or "Not supported" in said, said
        assert "Seccomp:\t2" in said


def test_seccomp_listener_gets_the_descriptor(bundle: Bundle) -> None:
    path = str(bundle.folder / "agent.sock")
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": path,
        "listenerMetadata": "some words",
        "syscalls": [{"names": ["chroot"], "action": "SCMP_ACT_NOTIFY"}],
    }
    got = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def agent() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                data, fds, _, _ = socket.recv_fds(connection, 65536, 4)
                got.append((json.loads(data), [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]))
                for fd in fds:
                    os.close(fd)

        thread = threading.Thread(target=agent)
        thread.start()
        id = bundle.detached()
        bundle.ok("exec", id, "true")
        thread.join(20)
    first, second = got
    assert first[0]["state"]["id"] == id and first[0]["metadata"] == "some words" and first[0]["fds"] == ["seccompFd"]
    assert "seccomp" in first[1][0] and "seccomp" in second[1][0]
    assert first[0]["pid"] == bundle.pid(id) and second[0]["pid"] != first[0]["pid"]


# -- readiness -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["start", "run -d", "run"])
def test_a_container_says_ready(bundle: Bundle, how: str) -> None:
    path = str(bundle.folder / "host.sock")
    (bundle.rootfs / "run").mkdir()
    # busybox has no sd_notify: we say it for the container, on its socket
    bundle.process["args"] = ["sh", "-c", "echo $NOTIFY_SOCKET > /told; sleep 1000"]
    bundle.write()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as host:
        host.bind(path)
        host.settimeout(20)
        id = bundle.new_id()
        environment = {**os.environ, "NOTIFY_SOCKET": path}
        base = [RUNC, "--root", str(bundle.root)]
        if how == "start":
            with bundle.output.open("w") as output:
                subprocess.run([*base, "create", id], cwd=bundle.folder, env=environment, check=True, stdout=output)
        with bundle.output.open("w") as output:
            runner = subprocess.Popen([*base, *how.split(), id], cwd=bundle.folder, env=environment, stdout=output)
        inside = bundle.root / id / "notify/notify.sock"
        told = bundle.rootfs / "told"
        deadline = time.monotonic() + 20
        while not inside.exists() or not told.exists() or not told.read_text().endswith("\n"):
            assert time.monotonic() < deadline
        assert told.read_text() == "/run/notify/notify.sock\n"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as container:
            container.sendto(b"STATUS=warming up\n", str(inside))
            container.sendto(b"READY=1\n", str(inside))
        assert host.recv(100) == b"READY=1\n"
        assert host.recv(100) == f"MAINPID={bundle.pid(id)}\n".encode()
        assert host.recv(100) == b"BARRIER=1", "it stays until it has been read"
        if how != "run":
            assert runner.wait(20) == 0
        bundle.ok("delete", "--force", id)
        assert runner.wait(20) == (137 if how == "run" else 0)
        assert not (bundle.root / id).exists()


@pytest.mark.needs("systemd", "systemd-notify", "systemd-run")
def test_systemd_sees_that_a_container_is_ready(bundle: Bundle) -> None:
    """A unit of Type=notify whose program is teu-runc: its start is done when the container says so."""
    for name in ("lib", "lib64"):
        (bundle.rootfs / name).symlink_to(f"usr/{name}")
    bundle.mount("/usr", "bind", "/usr", ["rbind", "ro"])
    script = "while [ ! -e /go ]; do sleep 0.05; done; /usr/bin/systemd-notify --ready --status=warm; exec sleep 1000"
    bundle.process["args"] = ["sh", "-c", script]
    bundle.process["env"] = ["PATH=/bin"]
    bundle.write()
    id = bundle.new_id()
    unit = f"teu-ready-{id}.service"
    program = subprocess.run(["which", RUNC], capture_output=True, text=True, check=True).stdout.strip()

    def show(name: str) -> str:
        return subprocess.run(["systemctl", "show", "-P", name, unit], capture_output=True, text=True).stdout.strip()

    starting = subprocess.Popen(
        [
            "systemd-run",
            "-q",
            f"--unit={unit}",
            "-p",
            "Type=notify",
            "-p",
            "NotifyAccess=all",
            f"--working-directory={bundle.folder}",
            program,
            "--root",
            str(bundle.root),
            "run",
            id,
        ]
    )
    try:
        deadline = time.monotonic() + 60
        while bundle.runc("state", id).returncode or bundle.status(id) != "running":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert show("ActiveState") == "activating" and starting.poll() is None
        (bundle.rootfs / "go").touch()
        assert starting.wait(60) == 0
        assert show("ActiveState") == "active"
        assert int(show("MainPID")) == bundle.pid(id)
    finally:
        bundle.runc("delete", "--force", id)
        subprocess.run(["systemctl", "stop", unit], check=False)
        subprocess.run(["systemctl", "reset-failed", unit], check=False, capture_output=True)
        starting.wait(60)


def test_a_filter_that_knows_no_newer_calls(bundle: Bundle) -> None:
    """Loaded early (without no-new-privileges), it must not keep us from finding the program."""
    bundle.process["noNewPrivileges"] = False
    names = ["faccessat2", "faccessat", "access"]
    rule = {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    bundle.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    assert bundle.says("echo fine") == "fine"


def test_a_program_that_only_a_capability_makes_executable(bundle: Bundle) -> None:
    program = bundle.rootfs / "bin/own"
    program.write_bytes((bundle.rootfs / "bin/busybox").read_bytes())
    program.chmod(0o744)
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    bundle.process["capabilities"] = {}
    assert "permission denied" in bundle.refuses("/bin/own", "true")
    capability = ["CAP_DAC_OVERRIDE"]
    kinds = ("bounding", "effective", "inheritable", "permitted", "ambient")
    bundle.process["capabilities"] = dict.fromkeys(kinds, capability)
    done = bundle.run("/bin/own", "echo", "fine")
    assert done.returncode in (0, 127) and "permission denied" not in done.stderr
