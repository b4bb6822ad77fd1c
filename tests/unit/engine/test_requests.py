# SPDX-License-Identifier: Apache-2.0
"""What clients send: Config and HostConfig, mounts, times, filters, users, detach keys, capabilities."""

from __future__ import annotations

import json
import signal
import time
import types
from typing import Any

import pytest

from teu.engine.api.messages import Query
from teu.engine.containers import hostconfig
from teu.engine.core import fields, times
from teu.engine.core.errors import BadRequest, NotFound
from teu.engine.lifecycle import create
from teu.engine.spec import mounts, process, resources
from teu.engine.streams.detach import Filter, parse
from teu.linux.capabilities import available
from teu.oci.seccomp import default_profile


def host(**values: Any) -> fields.HostConfig:
    return hostconfig.clean_host_config(fields.HOST_CONFIG.read(values, "HostConfig"), "journald", {})


def cleaned(**values: Any) -> fields.Config:
    return hostconfig.clean_config(fields.CONFIG.read(values))


@pytest.mark.parametrize(
    "config",
    [
        {"Env": "A=1"},
        {"Env": ["=x"]},
        {"Env": [1]},
        {"Cmd": {"a": 1}},
        {"Tty": "yes"},
        {"Labels": {"a": 1}},
        {"StopSignal": "SIGNOTHING"},
        {"StopTimeout": True},
        {"WorkingDir": "relative"},
        {"Healthcheck": {"Test": ["WHAT"]}},
        {"Healthcheck": {"Interval": 5}},
        {"Hostname": "x" * 64},
    ],
)
def test_a_bad_config_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        cleaned(**config)


@pytest.mark.parametrize(
    "values",
    [
        {"Memory": 1024},
        {"Memory": "64m"},
        {"MemorySwap": 10 << 20},
        {"Memory": 64 << 20, "MemorySwap": 32 << 20},
        {"NanoCpus": 10**9, "CpuQuota": 50000},
        {"CpuShares": -1},
        {"RestartPolicy": {"Name": "sometimes"}},
        {"RestartPolicy": {"Name": "always", "MaximumRetryCount": 3}},
        {"RestartPolicy": {"Name": "always"}, "AutoRemove": True},
        {"LogConfig": {"Type": "papyrus"}},
        {"LogConfig": {"Type": "json-file", "Config": {"max-size": "lots"}}},
        {"LogConfig": {"Type": "json-file", "Config": {"max-file": "0"}}},
        {"LogConfig": {"Type": "journald", "Config": {"max-size": "3m"}}},
        {"IpcMode": "everything"},
        {"PidMode": "other"},
        {"CgroupnsMode": "x"},
        {"ShmSize": -1},
        {"Ulimits": ["nofile"]},
        {"OomScoreAdj": 2000},
        {"Links": ["a:b"], "NetworkMode": "host"},
        {"BlkioWeight": 5},
    ],
)
def test_a_bad_host_config_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        host(**values)


EVERY = {"cpu", "cpuset", "io", "memory", "pids"}
LIMITED = {
    "Memory": 64 << 20,
    "MemoryReservation": 32 << 20,
    "PidsLimit": 7,
    "CpuShares": 7,
    "CpuPeriod": 5000,
    "CpuQuota": 5000,
    "BlkioWeight": 100,
    "BlkioDeviceReadBps": [{"Path": "/dev/null", "Rate": 7}],
}


def test_limits_are_kept_where_they_can_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostconfig, "_swap_is_limited", lambda: True)
    warnings: list[str] = []
    limited = host(**LIMITED)
    kept = limited.copy()
    hostconfig.discard(limited, EVERY, warnings)
    assert (limited, warnings) == (kept, [])
    hostconfig.discard(limited, EVERY - {"pids", "io"}, warnings)
    assert len(warnings) == 3 and limited.pids_limit is None and limited.blkio_device_read_bps == []
    assert limited.memory == 64 << 20
    hostconfig.discard(limited, set(), warnings)
    assert (limited.memory, limited.memory_swap, limited.memory_reservation) == (0, -1, 0)
    assert "memory" not in resources.resources(limited) and "cpu" not in resources.resources(limited)


def test_fields_of_cgroup_v1_are_discarded_everywhere() -> None:
    warnings: list[str] = []
    limited = host(MemorySwappiness=7, OomKillDisable=True)
    hostconfig.discard(limited, EVERY, warnings)
    assert len(warnings) == 2 and limited.memory_swappiness is None and limited.oom_kill_disable is False


@pytest.mark.parametrize(
    "values", [{"NanoCpus": 10**13}, {"CpusetCpus": "x"}, {"CpusetCpus": "2-1"}, {"CpusetMems": "-"}]
)
def test_cpus_that_are_not_there(values: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        hostconfig.discard(host(**values), EVERY, [])
    if "NanoCpus" in values:
        with pytest.raises(BadRequest):
            hostconfig.discard(host(NanoCpus=1), EVERY - {"cpu"}, [])


def test_defaults_and_names_in_any_case() -> None:
    found = host(memory=64 << 20, LogConfig={})
    assert found.memory == 64 << 20
    assert found.memory_swap == 128 << 20
    assert found.log_config == fields.LogConfig(type="journald")
    assert found.restart_policy == fields.RestartPolicy(name="no")
    assert found.network_mode == "bridge"
    assert found.shm_size == 64 << 20


@pytest.mark.parametrize(
    ("text", "number"),
    [("TERM", 15), ("SIGKILL", 9), ("9", 9), ("hup", 1), ("RTMIN+3", signal.SIGRTMIN + 3), ("SIGRTMAX-1", 63)],
)
def test_signals(text: str, number: int) -> None:
    assert hostconfig.signal_number(text) == number


@pytest.mark.parametrize("text", ["0", "65", "NOPE", "-1", "RTMIN+99", ""])
def test_bad_signals(text: str) -> None:
    with pytest.raises(BadRequest):
        hostconfig.signal_number(text)


def test_the_image_counts_where_the_client_is_silent() -> None:
    image = {
        "Cmd": ["serve"],
        "Entrypoint": ["/entry"],
        "Env": ["A=image", "B=image"],
        "User": "www",
        "WorkingDir": "/srv",
        "Labels": {"x": "image", "y": "image"},
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/data": {}},
        "StopSignal": "SIGQUIT",
    }
    config = cleaned(Env=["A=mine"], Labels={"x": "mine"}, ExposedPorts={"81/tcp": {}})
    create.merge(config, image)
    assert create.command(config) == ("/entry", ["serve"])
    assert sorted(config.env or []) == ["A=mine", "B=image"]
    assert config.labels == {"x": "mine", "y": "image"}
    assert set(config.exposed_ports or {}) == {"80/tcp", "81/tcp"}
    assert (config.user, config.working_dir, config.stop_signal) == ("www", "/srv", "SIGQUIT")
    config = cleaned(Cmd=["other"])
    create.merge(config, image)
    assert create.command(config) == ("/entry", ["other"])
    config = cleaned(Entrypoint="sh")
    create.merge(config, image)
    assert create.command(config) == ("sh", [])
    config = cleaned(Entrypoint=[""], Cmd=["ls", "-l"])
    create.merge(config, image)
    assert create.command(config) == ("ls", ["-l"])
    with pytest.raises(BadRequest):
        create.command(cleaned())


def test_times() -> None:
    assert times.parse("0", "since") == 0
    assert times.parse("1700000000.25", "since") == 1700000000_250000000
    assert times.parse("2023-11-14T22:13:20Z", "since") == 1700000000 * 10**9
    assert times.parse("2023-11-14T22:13:20.123456789Z", "since") == 1700000000_123456789
    assert times.parse("2023-11-14T23:13:20+01:00", "since") == 1700000000 * 10**9
    assert abs(times.parse("1h30m", "since") - (time.time_ns() - 5400 * 10**9)) < 10**9
    for bad in ("yesterday", "a\nb", "2023-11-14T22:13:20.\u0663Z", "\u0661" * 3):
        with pytest.raises(BadRequest):
            times.parse(bad, "since")


def test_filters() -> None:
    old = Query("filters=%7B%22label%22%3A%7B%22a%22%3Atrue%2C%22b%22%3Afalse%7D%7D")
    assert old.filters() == {"label": ["a"]}
    assert Query("filters=%7B%22name%22%3A%5B%22x%22%5D%7D").filters() == {"name": ["x"]}
    assert Query("filters=%7B%22name%22%3Anull%7D").filters() == {}
    assert Query("filters=null").filters() == Query("filters=").filters() == {}
    for bad in ("%5B%5D", "%7B", "%7B%22a%22%3A1%7D", "%7B%22a%22%3A%5B1%5D%7D", "%7B%22a%22%3A%7B%22b%22%3A5%7D%7D"):
        with pytest.raises(BadRequest):
            Query(f"filters={bad}").filters()


def test_detach_keys() -> None:
    assert parse("ctrl-p,ctrl-q") == b"\x10\x11"
    assert parse("a,ctrl-@,ctrl-_") == b"a\x00\x1f"
    for bad in ("ctrl-", "ctrl-pp", "word", "ctrl-P"):
        with pytest.raises(BadRequest):
            parse(bad)
    keys = Filter("")
    assert keys.feed(b"ls\n") == (b"ls\n", False)
    assert keys.feed(b"a\x10") == (b"a", False)
    assert keys.feed(b"b") == (b"\x10b", False)
    assert keys.feed(b"\x10\x10\x11rest") == (b"\x10", True)
    across = Filter("x,y")
    assert across.feed(b"1x") == (b"1", False)
    assert across.feed(b"y2") == (b"", True)


def test_capabilities() -> None:
    known = available()
    usual = process.capabilities(host())
    assert "CAP_CHOWN" in usual and "CAP_SYS_ADMIN" not in usual
    assert "CAP_NET_ADMIN" in process.capabilities(host(CapAdd=["net_admin"]))
    assert "CAP_CHOWN" not in process.capabilities(host(CapDrop=["CAP_CHOWN"]))
    assert process.capabilities(host(CapDrop=["ALL"])) == []
    assert process.capabilities(host(CapDrop=["ALL"], CapAdd=["KILL"])) == ["CAP_KILL"]
    assert process.capabilities(host(CapAdd=["ALL"])) == known
    assert process.capabilities(host(Privileged=True)) == known
    with pytest.raises(BadRequest):
        process.capabilities(host(CapAdd=["FLYING"]))


def test_seccomp_follows_capabilities() -> None:
    plain = default_profile(["CAP_CHOWN"])
    mighty = default_profile(["CAP_SYS_ADMIN", "CAP_SYS_TIME"])
    assert "mount" not in plain["syscalls"][0]["names"]
    assert {"mount", "clone3", "clock_settime"} <= set(mighty["syscalls"][0]["names"])
    assert plain["syscalls"][-1] == {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
    assert {"ptrace", "openat2", "futex_waitv"} <= set(plain["syscalls"][0]["names"])
    assert not {"kexec_load", "add_key", "keyctl", "bpf", "userfaultfd", "io_uring_setup"} & set(
        plain["syscalls"][0]["names"]
    )


def security(given: fields.HostConfig, **more: Any) -> process.Security:
    return process.security_options(given, {"no-new-privileges": False, "seccomp-profile": "builtin", **more})


def test_security_options() -> None:
    parsed = security(host(SecurityOpt=["no-new-privileges", "seccomp=unconfined", "apparmor:x"]))
    assert parsed.no_new_privileges and parsed.seccomp == "unconfined" and parsed.apparmor == "x"
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
        ],
    }
    own = security(host(SecurityOpt=[f"seccomp={json.dumps(profile)}"])).seccomp
    assert isinstance(own, dict)
    assert [rule["names"] for rule in own["syscalls"]] == [["read"]]
    for bad in ("seccomp=/a/file", "seccomp={", "nonsense", "what=ever"):
        with pytest.raises(BadRequest):
            security(host(SecurityOpt=[bad]))


class _Volumes:
    def ensure(self, name: str | None, *_: Any, **__: Any) -> Any:
        return types.SimpleNamespace(name=name or "f" * 64, mountpoint=f"/v/{name}", driver="local", anonymous=not name)


def _container(**values: Any) -> tuple[Any, Any]:
    settings = {"data-root": "/var/lib/teu/engine"}
    engine = types.SimpleNamespace(
        config=settings, volumes=_Volumes(), containers=types.SimpleNamespace(find=lambda name: None)
    )
    config = fields.Config(volumes=values.pop("Volumes", None))
    return engine, types.SimpleNamespace(id="c" * 64, config=config, host_config=host(**values))


def test_mount_points() -> None:
    engine, container = _container(
        Binds=["/src:/dst:ro,rslave", "named:/named", "/anonymous"],
        Mounts=[{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 4096, "Mode": 0o700}}],
        Volumes={"/image": {}, "/dst": {}},
    )
    points = {point.destination: point for point in mounts.collect(engine, container)}
    assert set(points) == {"/dst", "/named", "/anonymous", "/t", "/image"}
    assert points["/dst"].source == "/src" and not points["/dst"].rw
    assert points["/dst"].propagation == "rslave"
    assert points["/named"].name == "named" and points["/named"].options.copy_image
    defaults = ["noexec", "nosuid", "nodev", "rprivate"]
    assert points["/t"].options.tmpfs == [*defaults, "size=4096", "mode=700"]


@pytest.mark.parametrize(
    "values",
    [
        {"Binds": ["/a:b"]},
        {"Binds": ["/a:/"]},
        {"Binds": ["/a:/b:sometimes"]},
        {"Binds": ["/a:/b:ro:z"]},
        {"Binds": [":/b"]},
        {"Binds": ["/a:/b", "/c:/b/"]},
        {"Mounts": [{"Type": "bind", "Source": "/nonexistent/path", "Target": "/b"}]},
        {"Mounts": [{"Type": "bind", "Target": "/b"}]},
        {"Mounts": [{"Type": "npipe", "Source": "a", "Target": "/b"}]},
        {"Mounts": [{"Type": "volume"}]},
        {"Tmpfs": {"/b": "colour=blue"}},
        {"Tmpfs": {"relative": ""}},
    ],
)
def test_bad_mounts(values: dict[str, Any]) -> None:
    engine, container = _container(**values)
    with pytest.raises(BadRequest):
        mounts.collect(engine, container)


def test_volumes_from_nobody() -> None:
    engine, container = _container(VolumesFrom=["nobody"])
    with pytest.raises(NotFound):
        mounts.collect(engine, container)


def test_resources() -> None:
    values = resources.resources(host(NanoCpus=1_500_000_000, Memory=64 << 20, PidsLimit=100, CpusetCpus="0-1"))
    assert values == {
        "cpu": {"period": 100_000, "quota": 150_000, "cpus": "0-1"},
        "memory": {"limit": 64 << 20, "swap": 128 << 20},
        "pids": {"limit": 100},
    }
    assert resources.resources(host()) == {}
