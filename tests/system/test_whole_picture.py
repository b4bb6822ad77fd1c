# SPDX-License-Identifier: Apache-2.0
"""The process picture of one running container, seen from /proc, systemd, the journal and strace."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
import whole
from whole import out, teu


@pytest.fixture(scope="module", autouse=True)
def busybox() -> None:
    images.need_busybox()


@pytest.fixture(scope="module")
def web(busybox: None) -> Iterator[str]:
    whole.remove_everything()
    yield whole.run_detached("web", "sleep", "600")
    teu("rm", "-f", "web", check=False)


def only(found: dict[int, list[str]]) -> int:
    assert len(found) == 1, found
    return next(iter(found))


def test_daemons_are_in_their_services(web: str) -> None:
    for unit, program in (("teud.service", "teud"), ("teu-containerd.service", "teu-containerd")):
        pid = whole.main_pid(unit)
        assert pid, f"{unit} is not running"
        assert whole.program_of(pid)[0] == program
        assert whole.cgroup_of(pid) == whole.show(unit, "ControlGroup")
        assert whole.show(unit, "Type") == "notify"


def test_one_shim_in_its_own_scope(web: str) -> None:
    shim = only(whole.shims(web))
    args = whole.shims(web)[shim]
    words = dict(zip(args[::2], args[1::2]))
    assert words["-namespace"] and words["-id"] == web and words["-address"] == "/run/teu/containerd.sock"
    assert whole.cgroup_of(shim) == f"/teu.slice/teu-{web}.scope/shim"
    assert whole.parent_of(shim) == 1
    scope = f"teu-{web}.scope"
    assert whole.show(scope, "ActiveState") == "active"
    assert whole.show(scope, "Delegate") == "yes"
    assert whole.show(scope, "Slice") == "teu.slice"
    assert whole.show(scope, "Transient") == "yes"
    assert whole.show(scope, "CollectMode") == "inactive-or-failed"


def test_container_is_a_child_of_the_shim(web: str) -> None:
    shim = only(whole.shims(web))
    inside = whole.procs(whole.scope_of(web) / "container")
    assert len(inside) == 1
    assert whole.parent_of(inside[0]) == shim
    assert whole.argv_of(inside[0])[-2:] == ["sleep", "600"]
    assert Path(f"/proc/{inside[0]}/ns/pid").readlink() != Path("/proc/1/ns/pid").readlink()
    state = whole.inspect("web")["State"]
    assert isinstance(state, dict) and state["Pid"] == inside[0]


def test_no_runtime_is_left(web: str) -> None:
    assert whole.processes("teu-runc") == {}


def test_systemd_shows_it_by_name(web: str) -> None:
    status = out("systemctl", "status", "--no-pager", f"teu-{web}.scope")
    assert "web" in status.splitlines()[0]
    assert "sleep 600" in status
    listed = out("systemctl", "list-units", "--plain", "--no-legend", "teu-*.scope")
    assert [line.split()[0] for line in listed.splitlines() if f"Container web ({web[:12]})" in line] == [
        f"teu-{web}.scope"
    ]
    pid = out("teu", "inspect", "-f", "{{.State.Pid}}", "web")
    assert out("systemctl", "status", "--no-pager", pid).splitlines()[0] == status.splitlines()[0]
    tree = out("systemd-cgls", "--no-pager", "-l", "-u", "teu.slice")
    assert f"teu-{web}.scope" in tree and "sleep 600" in tree


def test_journal_and_logs_show_the_same_lines() -> None:
    teu("run", "--name", "speaker", whole.IMAGE, "sh", "-c", "echo one; echo two; echo three >&2")
    try:
        # By its id: the journal of a lab that stays up has the lines of an earlier speaker, too.
        identity = out("teu", "inspect", "--format", "{{.Id}}", "speaker")
        matches = ("CONTAINER_NAME=speaker", f"CONTAINER_ID_FULL={identity}")
        whole.eventually(
            "three lines in the journal",
            lambda: sorted(out("journalctl", "-o", "cat", "--no-pager", *matches).split()) == ["one", "three", "two"],
        )
        done = teu("logs", "speaker")
        assert done.stdout == "one\ntwo\n" and done.stderr == "three\n"
    finally:
        teu("rm", "-f", "speaker")


def test_a_scopes_log_is_its_containers() -> None:
    """systemctl status and journalctl -u show it, with the priorities that lines begin with."""
    said = "echo plain; echo '<3>broken'; echo '<7>detail' >&2; echo '<8>none'; sleep 600"
    identity = teu("run", "-d", "--name", "speaker", whole.IMAGE, "sh", "-c", said).stdout.strip()
    unit = f"teu-{identity}.scope"

    def entries(*matches: str) -> list[tuple[str, str, str]]:
        fields = "--output-fields=MESSAGE,PRIORITY,CONTAINER_STREAM,CONTAINER_ID_FULL"
        lines = out("journalctl", "-o", "json", "--no-pager", fields, "-u", unit, *matches).splitlines()
        found = [entry for entry in map(json.loads, lines) if entry.get("CONTAINER_ID_FULL") == identity]
        return sorted((each["MESSAGE"], each["PRIORITY"], each.get("CONTAINER_STREAM", "")) for each in found)

    try:
        whole.eventually("four lines", lambda: len(entries()) == 4)
        assert entries() == [
            ("<8>none", "6", ""),
            ("broken", "3", "stdout"),
            ("detail", "7", "stderr"),
            ("plain", "6", ""),
        ]
        assert entries("-p", "err") == [("broken", "3", "stdout")]
        status = out("systemctl", "status", "--no-pager", unit)
        for text in ("plain", "broken", "detail"):
            assert text in status
        done = teu("logs", "speaker")
        assert done.stdout == "plain\n<3>broken\n<8>none\n"
        assert done.stderr == "<7>detail\n"
    finally:
        teu("rm", "-f", "speaker")


# A message by journald's own protocol, with a field of its sender's.
SENDS = (
    "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
    " s.sendto(b'MESSAGE=' + sys.argv[1].encode() + b'\\nCOLOUR=blue\\nPRIORITY=4\\n', '/run/systemd/journal/socket')"
)


def test_what_a_container_sends_to_the_journal_has_its_name() -> None:
    journal = "/run/systemd/journal/socket"
    flags = ("-v", f"{journal}:{journal}", "-v", "/usr:/usr:ro", "-v", "/usr/lib:/lib:ro", "-v", "/usr/lib64:/lib64:ro")
    identity = teu(
        "run", "-d", "--name", "sender", "--network", "none", *flags, whole.IMAGE, "/bin/busybox", "sleep", "600"
    ).stdout.strip()
    file = Path(f"/run/systemd/units/log-extra-fields:teu-{identity}.scope")

    def sent(name: str, text: str) -> list[dict[str, str]]:
        teu("exec", name, "/usr/bin/python3", "-c", SENDS, text)
        matches = (f"CONTAINER_NAME={name}", f"CONTAINER_ID_FULL={identity}", "COLOUR=blue")
        found = out("journalctl", "-o", "json", "--no-pager", *matches)
        return [entry for entry in map(json.loads, found.splitlines()) if entry["MESSAGE"] == text]

    try:
        assert file.exists()
        (entry,) = whole.eventually("it is there", lambda: sent("sender", "own words")[:1])  # type: ignore[misc]
        assert entry["PRIORITY"] == "4" and entry["IMAGE_NAME"] == whole.IMAGE
        assert entry["_SYSTEMD_UNIT"] == f"teu-{identity}.scope"
        teu("rename", "sender", "called")
        whole.eventually("the new name is there", lambda: sent("called", "other words"))
    finally:
        teu("rm", "-f", "sender", "called", check=False)
    assert not file.exists()
    plain = whole.run_detached("plain", "sleep", "600")
    try:
        assert not Path(f"/run/systemd/units/log-extra-fields:teu-{plain}.scope").exists(), "it needs none"
    finally:
        teu("rm", "-f", "plain")


def test_the_runtime_ran_with_the_runc_command_line(tmp_path: Path) -> None:
    """exec is traced in everything that teu-containerd's service holds, and what it forks; a process that ends is held
    up for a moment, so that the command lines of those which are there for a millisecond are seen as well."""
    out("teu", "version")
    pids = whole.procs(whole.CGROUPS / whole.show("teu-containerd.service", "ControlGroup").lstrip("/"))
    trace = tmp_path / "exec.strace"
    tracer = subprocess.Popen(
        [
            "strace",
            "-f",
            "-qq",
            "-s",
            "4096",
            "-e",
            "trace=execve,execveat,exit_group",
            "-e",
            "inject=exit_group:delay_enter=500000",
            "-o",
            str(trace),
            *(f"-p{p}" for p in pids),
        ]
    )
    seen: dict[int, list[str]] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            seen.update(whole.processes("teu-runc"))

    looker = threading.Thread(target=look)
    try:
        whole.eventually(
            "strace has attached",
            lambda: all("TracerPid:\t0\n" not in Path(f"/proc/{p}/status").read_text() for p in pids),
        )
        looker.start()
        ident = whole.run_detached("traced", "sleep", "600")
        teu("rm", "-f", "traced")
    finally:
        over.set()
        tracer.send_signal(signal.SIGINT)
        tracer.wait()
        if looker.ident:
            looker.join()
    executed = []
    for line in trace.read_text().splitlines():
        if "execve" not in line or "= 0" not in line:
            continue
        words = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
        names = [w.rpartition("/")[2] for w in words]
        if "teu-runc" in names[:4]:
            executed.append(words[names.index("teu-runc") + 1 :])
    verbs = []
    for args in executed + list(seen.values()):
        assert "--root" in args or any(a.startswith("--root=") for a in args), args
        assert ident in args[-2:], args  # kill has the signal behind it
        verbs.append([a for a in args if a in ("create", "start", "kill", "delete")])
    # What runs as a fork of the shim (test_whole_fast_starts.py) is a process with that command line all the same.
    for verb in ("create", "start", "delete"):
        assert [verb] in verbs, verbs


def test_stop_of_the_scope_stops_the_container_gracefully() -> None:
    script = "trap 'echo asked to stop; exit 42' TERM; echo ready; while :; do sleep 0.05; done"
    ident = whole.run_detached("polite", "sh", "-c", script)
    try:
        whole.eventually("the container is ready", lambda: "ready" in teu("logs", "polite").stdout)
        begin = time.monotonic()
        out("systemctl", "stop", f"teu-{ident}.scope")
        assert time.monotonic() - begin < 30
        state = whole.eventually(
            "the engine knows the exit",
            lambda: (lambda s: s if isinstance(s, dict) and s["Status"] == "exited" else None)(
                whole.inspect("polite")["State"]
            ),
        )
        assert isinstance(state, dict) and state["ExitCode"] == 42
        assert "Exited (42)" in out("teu", "ps", "-a", "--filter", "name=polite")
        assert "asked to stop" in teu("logs", "polite").stdout
        assert not whole.scope_of(ident).exists()
    finally:
        teu("rm", "-f", "polite", check=False)


def test_stop_of_the_scope_ends_a_container_that_ignores_it() -> None:
    ident = whole.run_detached("deaf", "sh", "-c", "trap '' TERM; while :; do sleep 0.2; done")
    try:
        out("systemctl", "stop", f"teu-{ident}.scope")
        whole.eventually("exit 137", lambda: "Exited (137)" in out("teu", "ps", "-a", "--filter", "name=deaf"))
    finally:
        teu("rm", "-f", "deaf", check=False)


def test_systemctl_kill_reaches_the_container() -> None:
    ident = whole.run_detached("target", "sh", "-c", "trap 'exit 3' USR1; while :; do sleep 0.05; done")
    try:
        inside = whole.procs(whole.scope_of(ident) / "container")
        assert inside
        time.sleep(0.2)
        out("teu", "kill", "-s", "USR1", "target")
        assert out("teu", "wait", "target") == "3"
    finally:
        teu("rm", "-f", "target", check=False)


def test_nothing_is_left_after_the_last_container() -> None:
    whole.remove_everything()
    try:
        whole.eventually("the host is clean", lambda: not whole.leftovers(), timeout=15)
    except AssertionError:
        raise AssertionError(f"left: {whole.leftovers()}") from None
    tables = json.loads(out("nft", "-j", "list", "tables"))["nftables"]
    assert not [t for t in tables if "table" in t and t["table"]["name"].startswith("teu")]
