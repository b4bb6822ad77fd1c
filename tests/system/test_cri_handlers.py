# SPDX-License-Identifier: Apache-2.0
"""Pods of a RuntimeClass: the real runc and crun, by runtime handlers, under the shims of our own pods and under
containerd's own shim."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crihouse
import peers
import pytest
from crihouse import Client
from runc_bundle import full_proc
from test_cri_users import COUNT, HOST, MAPPINGS, options

from teu.api.cri.v1 import cri_pb2 as cri

pytestmark = [pytest.mark.needs("containerd", "ctr", "systemd", "runc", "crun"), pytest.mark.timeout(300)]

SHIM = "io.containerd.runc.v2"
RUNTIMES = f"""  runtimes:
    runc: {{binary: runc}}
    crun: {{binary: crun}}
    teu: {{}}
    shim-runc: {{shim: {SHIM}}}
    shim-crun: {{shim: {SHIM}, binary: crun}}
    gone: {{binary: /no/such}}
"""
OTHERS = ["shim-runc", "shim-crun"]
HANDLERS = ["runc", "crun", "teu", *OTHERS]


@pytest.fixture(scope="module")
def one() -> Iterator[Client]:
    with crihouse.ours(RUNTIMES) as client:
        yield client


def run_pod(one: Client, name: str, handler: str, **more: Any) -> Any:
    config = one.pod_config(name, **more)
    Path(config.log_directory).mkdir(parents=True, exist_ok=True)
    return one.call("RunPodSandbox", config=config, runtime_handler=handler).pod_sandbox_id, config


def test_handlers_are_told(one: Client) -> None:
    told = {handler.name: handler.features for handler in one.call("Status").runtime_handlers}
    assert set(told) == {"", *HANDLERS}
    for name in ("runc", "crun"):
        says = json.loads(peers.run(name, "features").stdout)
        assert told[name].recursive_read_only_mounts == ("rro" in says["mountOptions"])
    assert told["teu"] == told[""]
    assert not told["shim-runc"].user_namespaces
    assert one.refused("RunPodSandbox", config=one.pod_config("x"), runtime_handler="gone")[0] == "FAILED_PRECONDITION"


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_whole_life(one: Client, handler: str) -> None:
    pod = run_pod(one, f"life-{handler}", handler)
    status = one.call("PodSandboxStatus", pod_sandbox_id=pod[0]).status
    assert status.runtime_handler == handler and status.network.ip
    id = one.run_container(pod, "c", ["sh", "-c", "echo out; sleep 1000"])
    root = Path("/run/teu/runc/k8s.io")
    if handler == "crun":
        assert id in peers.run("crun", "--root", str(root), "list", "-q").stdout
    peers.wait_until(lambda: one.log(pod, "c") == [("stdout", "F", "out")], "the line")
    done = one.exec(id, "sh", "-c", "hostname; exit 3")
    assert (done.stdout, done.exit_code) == (f"host-life-{handler}\n".encode(), 3)
    assert one.exec(id, "cat", "/proc/1/cmdline").stdout == b"sleep\0001000\0"
    unit = f"cri-containerd-{id}.scope"
    assert peers.run("systemctl", "is-active", unit).stdout.strip() == "active"
    assert one.call("ContainerStats", container_id=id).stats.attributes.id == id
    one.call("StopContainer", container_id=id, timeout=0)
    assert one.status(id).exit_code == 137
    assert one.output(pod, "ends", ["id", "-u"]) == "0\n"
    one.remove_pod(pod)


@pytest.mark.needs("catatonit")
def test_the_end_of_a_container_runs_the_runtime_once(tmp_path: Path) -> None:
    program, noted = tmp_path / "teu-runc", tmp_path / "noted"
    note = f'case $word in create|start|kill|delete) echo "$word" >>{noted};; esac'
    program.write_text(f'#!/bin/sh\nfor word; do {note}; done\nexec /usr/sbin/teu-runc "$@"\n')
    program.chmod(0o755)
    with crihouse.ours(f"  runtimes:\n    noted: {{binary: {program}}}\n") as one:
        pod = run_pod(one, "noted", "noted")
        id = one.run_container(pod, "c", ["sleep", "1000"])
        assert sorted(noted.read_text().split()) == ["create", "start"]
        one.call("StopContainer", container_id=id, timeout=0)
        assert one.status(id).exit_code == 137
        assert sorted(noted.read_text().split()) == ["create", "delete", "start"]


@pytest.mark.parametrize("handler", HANDLERS)
def test_processes_are_shared(one: Client, handler: str) -> None:
    config = one.pod_config(f"shared-{handler}")
    config.linux.security_context.namespace_options.pid = cri.POD
    Path(config.log_directory).mkdir(parents=True, exist_ok=True)
    pod = (one.call("RunPodSandbox", config=config, runtime_handler=handler).pod_sandbox_id, config)
    ids = []
    for name in ("a", "b"):
        made = one.container_config(name, ["sleep", "1001"], peers.IMAGE)
        made.linux.security_context.namespace_options.pid = cri.POD
        ids.append(one.call("CreateContainer", pod_sandbox_id=pod[0], config=made).container_id)
        one.call("StartContainer", container_id=ids[-1])
    assert one.exec(ids[0], "ps", "-o", "args").stdout.count(b"sleep 1001") == 2
    one.remove_pod(pod)


@pytest.mark.parametrize("handler", ["crun", "runc", "teu"])
def test_pods_with_users(one: Client, handler: str) -> None:
    full_proc()
    [can] = [told.features for told in one.call("Status").runtime_handlers if told.name == handler]
    config = one.pod_config(f"users-{handler}", **options())
    Path(config.log_directory).mkdir(parents=True, exist_ok=True)
    if not can.user_namespaces:
        assert one.refused("RunPodSandbox", config=config, runtime_handler=handler)[0] == "FAILED_PRECONDITION"
        return
    pod = (one.call("RunPodSandbox", config=config, runtime_handler=handler).pod_sandbox_id, config)
    source = one.folder / f"users-{handler}"
    source.mkdir()
    mounts = [
        {"container_path": "/data", "host_path": str(source), **MAPPINGS},
        {"container_path": "/image", "readonly": True, "image": {"image": peers.IMAGE}, **MAPPINGS},
    ]
    look = "cat /proc/self/uid_map; stat -c %u / /bin/busybox /data /image/bin/busybox; touch /data/x && echo wrote"
    told = one.output(pod, "c", ["sh", "-c", look], mounts=mounts, **options()).split()
    assert told == ["0", str(HOST), str(COUNT), "0", "0", "0", "0", "wrote"]
    assert (source / "x").stat().st_uid == 0
    one.remove_pod(pod)


@pytest.mark.parametrize("handler", ["runc", "crun", "teu"])
def test_the_hosts_null_device_stays_its_own(one: Client, handler: str) -> None:
    before = os.stat("/dev/null")
    assert (before.st_uid, before.st_gid, before.st_mode & 0o777) == (0, 0, 0o666)
    pod = run_pod(one, f"null-{handler}", handler)
    more = {
        "linux": {"security_context": {"run_as_user": {"value": 1234}, "namespace_options": {"pid": cri.CONTAINER}}}
    }
    id = one.run_container(pod, "c", ["sh", "-c", "chmod 0 /proc/self/fd/0; read x; sleep 1000"], **more)
    assert one.exec(id, "sh", "-c", "chmod 0 /proc/self/fd/0; cat; echo ended").stdout == b"ended\n"
    after = os.stat("/dev/null")
    assert (after.st_uid, after.st_gid, after.st_mode) == (0, 0, before.st_mode)
    one.remove_pod(pod)


@pytest.mark.needs("criu")
@pytest.mark.parametrize("handler", ["runc", "teu", "shim-runc"])
def test_containers_are_saved(one: Client, tmp_path: Path, handler: str) -> None:
    pod = run_pod(one, f"saved-{handler}", handler)
    id = one.run_container(pod, "c", ["sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done"])
    peers.wait_until(lambda: len(one.log(pod, "c")) > 5, "it counts")
    one.call("CheckpointContainer", container_id=id, location=str(tmp_path / "x.tar"), timeout=60)
    with tarfile.open(tmp_path / "x.tar") as archive:
        assert "checkpoint/inventory.img" in archive.getnames()
    before = len(one.log(pod, "c"))
    peers.wait_until(lambda: len(one.log(pod, "c")) > before + 5, "it counts on")
    one.remove_pod(pod)


@pytest.mark.parametrize("handler", HANDLERS)
def test_pods_outlive_the_daemon(handler: str) -> None:
    with crihouse.ours(RUNTIMES) as one:
        pod = run_pod(one, "lasting", handler)
        id = one.run_container(pod, "c", ["sleep", "1000"])
        one.daemon.kill()
        assert isinstance(one.daemon, crihouse.TeuContainerd)
        crihouse.launch(one.daemon, one.folder, RUNTIMES)
        one.connect()
        assert one.exec(id, "echo", "there").stdout == b"there\n"
        assert one.output(pod, "after", ["echo", "ran"]) == "ran\n"
        # also where its handler is not configured any more
        one.daemon.kill()
        crihouse.launch(one.daemon, one.folder)
        one.connect()
        assert one.exec(id, "echo", "there").stdout == b"there\n"
        one.remove_pod(pod)


# Those of another shim


def processes_of(id: str) -> list[str]:
    """The command lines of processes that belong to a container's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if f"cri/{id}" in words:
            found.append(words)
    return found


@pytest.mark.parametrize("handler", OTHERS)
def test_another_shim_serves_the_containers_of_a_pod(one: Client, handler: str) -> None:
    pod = run_pod(one, f"another-{handler}", handler)
    ids = [one.run_container(pod, name, ["sleep", "1000"]) for name in ("a", "b")]
    scope = f"teu-pod-{pod[0][:12]}.scope"
    tree = peers.run("systemctl", "status", "--no-pager", scope, code=None).stdout
    assert tree.count("containerd-shim-runc-v2") == 1 and tree.count("cri-log") == 2
    assert all(one.exec(id, "echo", "there").stdout == b"there\n" for id in ids)
    one.call("StopContainer", container_id=ids[0], timeout=0)
    peers.wait_until(lambda: not processes_of(ids[0]), "its log is written")
    one.call("RemoveContainer", container_id=ids[0])
    assert one.status(ids[1]).state == cri.CONTAINER_RUNNING
    one.remove_pod(pod)
    peers.wait_until(lambda: "inactive" in peers.run("systemctl", "is-active", scope, code=None).stdout, "it goes")
    assert not processes_of(ids[1])


@pytest.mark.parametrize("handler", OTHERS)
def test_every_line_is_there_when_it_has_ended(one: Client, handler: str) -> None:
    pod = run_pod(one, f"lines-{handler}", handler)
    script = "n=0; while [ $n -lt 2000 ]; do n=$((n+1)); echo $n; done; printf end; exit 5"
    for tty in (False, True):
        id = one.run_container(pod, f"c{tty}", ["sh", "-c", script], tty=tty)
        assert one.ended(id).exit_code == 5
        found = [text.strip() for _, _, text in one.log(pod, f"c{tty}")]
        assert found == [*map(str, range(1, 2001)), "end"]
    one.remove_pod(pod)


@pytest.mark.parametrize("handler", OTHERS)
def test_it_talks_on_while_the_daemon_is_away(handler: str) -> None:
    with crihouse.ours(RUNTIMES) as one:
        pod = run_pod(one, "talks", handler)
        script = "n=0; while true; do n=$((n+1)); echo line $n; sleep 0.01; done"
        id = one.run_container(pod, "talks", ["sh", "-c", script])
        one.daemon.kill()
        before = len(one.log(pod, "talks"))
        peers.wait_until(lambda: len(one.log(pod, "talks")) > before + 20, "it talks on")
        path = Path(pod[1].log_directory, "talks.log")
        assert isinstance(one.daemon, crihouse.TeuContainerd)
        crihouse.launch(one.daemon, one.folder, RUNTIMES)
        one.connect()
        assert one.status(id).state == cri.CONTAINER_RUNNING
        old = path.with_suffix(".old")
        path.rename(old)
        one.call("ReopenContainerLog", container_id=id)
        peers.wait_until(lambda: path.stat().st_size > 500, "it goes on in the new file")
        one.call("StopContainer", container_id=id, timeout=0)
        texts = [line.split(" ", 3)[3] for line in (old.read_text() + path.read_text()).splitlines()]
        numbers = [int(text.split()[1]) for text in texts]
        assert numbers == list(range(1, len(numbers) + 1))
        one.remove_pod(pod)


def test_a_program_that_is_not_there_leaves_nothing(one: Client) -> None:
    pod = run_pod(one, "nosuch", "shim-runc")
    id = one.create(pod, "c", ["/no/such/program"])
    assert "no such file or directory" in one.refused("StartContainer", container_id=id)[1]
    assert one.status(id).reason == "StartError"
    peers.wait_until(lambda: not processes_of(id), "nobody waits for its output")
    one.remove_pod(pod)


def test_another_shim_that_is_killed(one: Client) -> None:
    pod = run_pod(one, "killed", "shim-runc")
    id = one.run_container(pod, "c", ["sleep", "1000"])
    procs = Path(f"/sys/fs/cgroup/teu.slice/teu-pod-{pod[0][:12]}.scope/shim/cgroup.procs")
    for pid in procs.read_text().split():
        if b"containerd-shim-runc-v2" in Path(f"/proc/{pid}/cmdline").read_bytes():
            peers.run("kill", "-9", pid)
    assert one.ended(id).exit_code in (137, 255)
    one.remove_pod(pod)
    assert not processes_of(id)
