# SPDX-License-Identifier: Apache-2.0
"""What teud.yaml says of containers that say nothing themselves."""

from __future__ import annotations

import json
import os
import types
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest

from teu import config as configuration
from teu.engine.config import KEYS, check
from teu.engine.containers import defaults, hostconfig
from teu.engine.containers.defaults import Limit
from teu.engine.core.errors import EngineError
from teu.engine.core.fields import CONFIG, CONTAINER, HOST_CONFIG
from teu.engine.lifecycle import create
from teu.engine.networks import files
from teu.engine.networks.options import Defaults, Naming
from teu.engine.spec import process
from teu.engine.views import containers as views
from teu.linux import resolver


def told(tmp_path: Path, text: str) -> configuration.Settings:
    file = tmp_path / "teud.yaml"
    file.write_text(text)
    settings = configuration.load(file, KEYS, must_exist=True)
    check(settings)
    return settings


def cleaned(settings: configuration.Settings, version: tuple[int, int] = (1, 45), **host: Any) -> Any:
    engine: Any = types.SimpleNamespace(config=settings)
    body = CONTAINER.read({"Image": "x", "HostConfig": host})
    return create._host_config(engine, body, version, [])


def test_what_a_new_container_gets(tmp_path: Path) -> None:
    settings = told(
        tmp_path, "default-shm-size: 128M\ndefault-ipc-mode: shareable\ndefault-cgroupns-mode: host\nlog-driver: none\n"
    )
    host = cleaned(settings)
    assert (host.shm_size, host.ipc_mode, host.cgroupns_mode) == (128 << 20, "shareable", "host")
    own = cleaned(settings, ShmSize=1 << 20, IpcMode="private", CgroupnsMode="private")
    assert (own.shm_size, own.ipc_mode, own.cgroupns_mode) == (1 << 20, "private", "private")


def test_without_a_word_it_is_dockers(tmp_path: Path) -> None:
    host = cleaned(told(tmp_path, ""))
    assert (host.shm_size, host.ipc_mode, host.cgroupns_mode) == (64 << 20, "private", "private")
    assert cleaned(told(tmp_path, ""), (1, 39)).ipc_mode == "shareable"


def test_ulimits_in_all_forms(tmp_path: Path) -> None:
    settings = told(
        tmp_path,
        "default-ulimits:\n  nofile: 5:30\n  core: -1\n"
        "  nproc: {Name: nproc, Hard: 20, Soft: 10}\n  stack: {soft: 1, hard: -1}\n",
    )
    assert settings["default-ulimits"] == {
        "nofile": Limit(5, 30),
        "core": Limit(-1, -1),
        "nproc": Limit(10, 20, "nproc"),
        "stack": Limit(1, -1),
    }
    host = HOST_CONFIG.read({"Ulimits": [{"Name": "NOFILE", "Soft": 7, "Hard": 8}]})
    merged = [(limit.name, limit.soft, limit.hard) for limit in defaults.ulimits(host, settings)]
    assert merged == [("NOFILE", 7, 8), ("core", -1, -1), ("nproc", 10, 20), ("stack", 1, -1)]
    assert {"type": "RLIMIT_CORE", "soft": 2**64 - 1, "hard": 2**64 - 1} in process.rlimits(
        defaults.ulimits(host, settings)
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("default-ulimits: {files: 3}\n", "default-ulimits: files is none; there are"),
        ("default-ulimits: {nofile: 9:3}\n", "nofile: the soft limit 9 is above the hard limit 3"),
        ("default-ulimits: {nofile: {Name: core, Soft: 1, Hard: 1}}\n", "nofile is named core below"),
        ("seccomp-profile: /nowhere/profile.json\n", "/nowhere/profile.json cannot be read: No such file"),
        ("seccomp-profile: /proc/self/limits\n", "is no seccomp profile"),
    ],
)
def test_what_together_makes_no_sense(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(EngineError) as caught:
        told(tmp_path, text)
    assert says in str(caught.value)
    assert f"{tmp_path}/teud.yaml:1: " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("default-ulimits: {nofile: many}\n", "give SOFT:HARD"),
        ("default-ulimits: {nofile: {Soft: 1}}\n", "give SOFT:HARD"),
        ("default-ulimits: {nofile: {Soft: 1, Hard: 2, More: 3}}\n", "give SOFT:HARD"),
        ("default-ulimits: {nofile: true}\n", "give SOFT:HARD"),
        ("default-ipc-mode: host\n", "give one of private, shareable"),
        ("default-cgroupns-mode: container\n", "give one of private, host"),
        ("default-stop-timeout: -2\n", "give a whole number of seconds"),
        ("seccomp-profile: profile.json\n", "give builtin, unconfined or the absolute path"),
        ("dns: [ns.example]\n", "give an IP address"),
        ('dns-search: ["a\\nnameserver 6.6.6.6"]\n', "give a string of one line"),
        ("host-gateway-ips: [here]\n", "give an IP address"),
    ],
)
def test_what_alone_makes_no_sense(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(configuration.ConfigError, match=says):
        told(tmp_path, text)


def security(settings: configuration.Settings, **host: Any) -> process.Security:
    return process.security_options(HOST_CONFIG.read(host, "HostConfig"), settings)


def test_privileges_and_the_seccomp_profile(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW"}))
    settings = told(tmp_path, f"no-new-privileges: true\nseccomp-profile: {profile}\n")
    found = security(settings)
    assert found.no_new_privileges
    assert isinstance(found.seccomp, dict) and found.seccomp["defaultAction"] == "SCMP_ACT_ALLOW"
    assert not security(settings, SecurityOpt=["no-new-privileges=false"]).no_new_privileges
    assert security(settings, SecurityOpt=["seccomp=unconfined"]).seccomp == "unconfined"
    assert security(settings, SecurityOpt=["seccomp=builtin"]).seccomp == ""
    assert security(settings, Privileged=True).seccomp == "", "a privileged container has none unless it names one"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}))
    changed = security(settings).seccomp
    assert isinstance(changed, dict) and changed["defaultAction"] == "SCMP_ACT_ERRNO", "the file is another"
    os.unlink(profile)
    with pytest.raises(EngineError, match="cannot be read"):
        security(settings)
    assert security(settings, SecurityOpt=["seccomp=unconfined"]).seccomp == "unconfined", "who does not need it starts"
    assert security(told(tmp_path, "seccomp-profile: unconfined\n")).seccomp == "unconfined"


def test_the_time_to_stop(tmp_path: Path) -> None:
    settings = told(tmp_path, "default-stop-timeout: 3\n")
    assert defaults.stop_seconds(CONFIG.read({}), settings) == 3
    assert defaults.stop_seconds(CONFIG.read({"StopTimeout": 0}), settings) == 0
    assert defaults.stop_seconds(CONFIG.read({}), told(tmp_path, "")) == 10


def test_lists_that_nobody_has_given_are_null(tmp_path: Path) -> None:
    """Compose and Terraform send null, docker's command line an empty list: each reads again what it has sent."""
    engine = parts.engine(tmp_path)
    names = ["Devices", "Ulimits", *hostconfig.BLOCK_LIMITS.values()]
    sent = parts.container(engine, "sent", None, **dict.fromkeys(names, []))
    for container, told in ((parts.container(engine), None), (sent, [])):
        shown = views._host_config(engine, container)
        assert [shown[name] for name in names] == [told] * len(names)


def test_inspect_tells_the_ulimits_in_force(tmp_path: Path) -> None:
    engine = parts.engine(tmp_path, default_ulimits={"nofile": Limit(5, 6)})
    container = parts.container(engine)
    shown = views._host_config(engine, container)
    assert shown["Ulimits"] == [{"Name": "nofile", "Soft": 5, "Hard": 6}]
    assert container.host_config.ulimits is None, "the record keeps what was asked for"


def test_names_and_a_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_host(*_: object) -> resolver.Resolver:
        found = resolver.Resolver()
        found.servers = ["192.0.2.1"]
        return found

    monkeypatch.setattr(files, "host_resolver", of_host)
    settings = {"dns": ["192.0.2.53"], "dns-search": ["a.example"], "dns-opts": ["ndots:2"], "host-gateway-ips": []}
    known = Defaults(settings)
    host = HOST_CONFIG.read({})
    text = files.resolv_conf(known.names(host), True)
    assert {"nameserver 192.0.2.53", "search a.example", "options ndots:2"} <= set(text.splitlines())
    own = HOST_CONFIG.read({"Dns": ["192.0.2.9"]})
    assert known.names(own) == Naming(["192.0.2.9"], ["a.example"], ["ndots:2"], [])
    settings["dns"] = []
    assert "nameserver 192.0.2.1" in files.resolv_conf(known.names(host), True)
    assert Defaults().names(host) == Naming([], [], [], [])


def test_the_hosts_gateway() -> None:
    host = HOST_CONFIG.read({"ExtraHosts": ["up:host-gateway", "other:192.0.2.7"]})
    assert files.extra_hosts(host, ["192.0.2.1", "2001:db8::1"]) == [
        ("192.0.2.1", "up"),
        ("2001:db8::1", "up"),
        ("192.0.2.7", "other"),
    ]
