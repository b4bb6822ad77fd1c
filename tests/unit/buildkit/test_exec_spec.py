# SPDX-License-Identifier: Apache-2.0
"""A step as the runtime specification says it, and what is told of one that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from teu.api.buildkit import gateway_pb2
from teu.buildkit.core import errors
from teu.buildkit.worker import executor, network, samples, spec
from teu.buildkit.worker.spec import Limits, Process, Surroundings
from teu.linux import cgroup_files
from teu.oci.runtime_spec import check
from teu.oci.users import User

ROOT = User(0, 0, [0], "/root")


def around(**more: object) -> Surroundings:
    wanted = {"hostname": "h", "namespace": "/proc/1/fd/5", "cgroup": "teu-build.slice:teu:x", **more}
    return Surroundings(**wanted)  # type: ignore[arg-type]


def test_a_step_has_the_engines_defaults() -> None:
    told = spec.build(spec.process(Process(("true",), ("A=b",), "work"), ROOT), around())
    check(told)
    process, linux = told["process"], told["linux"]
    assert process["cwd"] == "/work"
    assert process["env"] == ["A=b", "HOME=/root"]
    assert "CAP_CHOWN" in process["capabilities"]["bounding"]
    assert "CAP_SYS_ADMIN" not in process["capabilities"]["bounding"]
    assert linux["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert "/proc/kcore" in linux["maskedPaths"]
    assert {"type": "network", "path": "/proc/1/fd/5"} in linux["namespaces"]
    assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert [entry["destination"] for entry in told["mounts"]][0] == "/proc"
    assert "/run" not in [entry["destination"] for entry in told["mounts"]]


def test_networks() -> None:
    first = spec.process(Process(("true",)), ROOT)
    assert {"type": "network"} in spec.build(first, around(namespace=""))["linux"]["namespaces"]
    host = spec.build(first, around(namespace=None))["linux"]["namespaces"]
    assert "network" not in [one["type"] for one in host]


def test_who_is_not_root_has_no_capabilities_in_effect() -> None:
    process = spec.process(Process(("true",)), User(33, 33, [33, 50], "/var/www"))
    assert process["capabilities"]["effective"] == []
    assert process["user"]["additionalGids"] == [33, 50]


def test_an_insecure_step() -> None:
    first = spec.process(Process(("true",)), ROOT, insecure=True, apparmor="teu-default")
    told = spec.build(first, around(insecure=True))
    check(told)
    assert "CAP_SYS_ADMIN" in first["capabilities"]["effective"]
    assert first["capabilities"]["ambient"] == first["capabilities"]["bounding"]
    assert "apparmorProfile" not in first
    assert "seccomp" not in told["linux"]
    assert told["linux"]["maskedPaths"] == told["linux"]["readonlyPaths"] == []
    assert "/dev/fuse" in [device["path"] for device in told["linux"]["devices"]]
    assert "rw" in next(entry for entry in told["mounts"] if entry["destination"] == "/sys")["options"]


def test_own_mounts_take_the_place_of_usual_ones() -> None:
    own = [
        {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": ["size=5"]},
        {"destination": "/a/b", "type": "tmpfs", "source": "tmpfs", "options": []},
        {"destination": "/a", "type": "tmpfs", "source": "tmpfs", "options": []},
    ]
    told = spec.build(spec.process(Process(("true",)), ROOT), around(mounts=own))
    places = [entry["destination"] for entry in told["mounts"]]
    assert places.count("/dev/shm") == 1
    assert places.index("/dev") < places.index("/dev/shm")
    assert places.index("/a") < places.index("/a/b")


def test_limits() -> None:
    limits = Limits((("nofile", 10, 20), ("core", -1, -1)), memory=1 << 20, shares=512, pids=7)
    process = spec.process(Process(("true",)), ROOT, limits=limits)
    assert process["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20},
        {"type": "RLIMIT_CORE", "soft": spec.UNLIMITED, "hard": spec.UNLIMITED},
    ]
    assert spec.resources(limits) == {
        "cpu": {"shares": 512},
        "memory": {"limit": 1 << 20},
        "pids": {"limit": 7},
    }
    for bad in (("nothing", 1, 1), ("nofile", 5, 4)):
        with pytest.raises(errors.InvalidArgument):
            spec.rlimits(Limits((bad,)))


@pytest.mark.parametrize(
    ("parent", "systemd", "wanted"),
    [
        ("", True, "teu-build.slice:teu:ID"),
        ("", False, "/teu-build/ID"),
        ("my.slice", True, "my.slice:teu:ID"),
        ("my.slice:", True, "my.slice:teu:ID"),
        ("my.slice:docker:", True, "my.slice:docker:ID"),
        ("/a/b", False, "/a/b/buildkit/ID"),
    ],
)
def test_where_the_cgroup_is(parent: str, systemd: bool, wanted: str) -> None:
    assert spec.cgroups_path(parent, "ID", own_slice="teu-build.slice", systemd=systemd) == wanted


@pytest.mark.parametrize("parent", ["../..", "/a/../../b", "a\nb", "/a/b", "a", ".slice", "a/b.slice", "a/b.slice:"])
def test_no_cgroup_is_outside(parent: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        spec.cgroups_path(parent, "ID", own_slice="teu-build.slice", systemd=True)


def test_the_error_of_an_exit_status() -> None:
    assert executor.failure(0) is None
    assert executor.failure(3, valid=[3, 4]) is None
    assert executor.failure(0, valid=[3]) is not None
    problem = executor.failure(1)
    assert problem is not None
    assert problem.details == [gateway_pb2.ExitMessage(Code=1)]
    told = problem.prefixed(f"process {executor.quoted('/bin/sh -c exit 1')} did not complete successfully")
    assert told.message == 'process "/bin/sh -c exit 1" did not complete successfully: exit code: 1'
    killed = executor.failure(137, out_of_memory=True)
    assert killed is not None
    assert killed.message == "cannot allocate memory"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('a "b" \\', r'"a \"b\" \\"'),
        ("line\nnext\t\x01", r'"line\nnext\t\x01"'),
        ("ü…", '"ü…"'),
        ("\u200b\U000e0001", r'"\u200b\U000e0001"'),
        ("\udcff", r'"\xff"'),
    ],
)
def test_texts_are_quoted_as_go_does(text: str, wanted: str) -> None:
    assert executor.quoted(text) == wanted


def test_hosts() -> None:
    text = network.hosts("", [("db", "10.0.0.5"), ("me", "host-gateway")], "172.20.0.1")
    assert text.splitlines() == [
        "127.0.0.1\tlocalhost buildkitsandbox",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "10.0.0.5\tdb",
        "172.20.0.1\tme",
    ]


def test_counts_of_sockets() -> None:
    text = b"sockets: used 3\nTCP: inuse 1 orphan 0 tw 2 alloc 5 mem 1\nUDP: inuse 0 mem 0\n"
    assert network.sockets_in(text) == (3, 2)


def test_samples_have_buildkits_names(tmp_path: object) -> None:
    folder = str(tmp_path)
    for name, text in (
        ("cgroup.procs", "1\n"),
        ("cpu.stat", "usage_usec 10\nuser_usec 4\nsystem_usec 6\n"),
        ("memory.stat", "anon 4096\nfile 1\npgfault 7\n"),
        ("memory.events", "low 0\noom_kill 2\n"),
        ("memory.peak", "8192\n"),
        ("io.stat", "8:0 rbytes=5 wbytes=6 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=1\n"),
        ("pids.current", "3\n"),
        ("cpu.pressure", "some avg10=0.50 avg60=0.00 avg300=0.00 total=9\n"),
    ):
        with open(f"{folder}/{name}", "w") as file:
            file.write(text)
    found = samples.take(folder)
    assert found["cpuStat"]["usageNanos"] == 10_000
    assert found["cpuStat"]["pressure"]["some"]["avg10"] == 0.5
    assert found["memoryStat"] == {"anon": 4096, "file": 1, "pgfault": 7, "oomKillEvents": 2, "peak": 8192}
    assert found["ioStat"]["readBytes"] == 6
    assert found["pidsStat"] == {"current": 3}
    assert samples.oom_kills(folder) == 2
    assert samples.oom_kills(f"{folder}/none") is None
    sampler = samples.Sampler(folder)
    sampler.close()
    assert len(sampler.found()) == 1


def test_who_ran_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup_files, "place", lambda: str(tmp_path))
    step, around = tmp_path / "slice/scope", tmp_path / "slice"
    step.mkdir(parents=True)

    def count(own: int, all_below: int) -> None:
        (step / "memory.events").write_text(f"oom 1\noom_kill {own}\n")
        (around / "memory.events").write_text(f"oom 1\noom_kill {all_below}\n")

    count(0, 5)
    watch = samples.MemoryWatch(str(step))
    assert not watch.ran_out(137)
    count(0, 6)  # a neighbour did
    assert not watch.ran_out(137)
    count(1, 7)
    assert watch.ran_out(1)
    (step / "memory.events").unlink()  # the scope went with its last process
    assert watch.ran_out(137)
    assert not watch.ran_out(1)
    (around / "memory.events").unlink()
    assert not watch.ran_out(137)
    assert not samples.MemoryWatch("").ran_out(137)
