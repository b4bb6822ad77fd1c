# SPDX-License-Identifier: Apache-2.0
"""Runtime handlers: which there are, and what their runtimes say that they can."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from containerd_parts import Daemon
from test_cri_users import MAPPED

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.cri.v1 import cri_pb2_grpc
from teu.config import ConfigError, load
from teu.containerd.config import KEYS
from teu.containerd.core.errors import FailedPrecondition, InvalidArgument, Unavailable
from teu.containerd.cri import handlers, namespaces, shims
from teu.containerd.cri.handlers import Features, Handlers, read_features
from teu.containerd.cri.records import Pod

BOTH = {"mountOptions": ["ro", "rro"], "linux": {"mountExtensions": {"idmap": {"enabled": True}}}}


def runtime(folder: Path, told: str, name: str = "runtime", code: int = 0) -> str:
    """A program that says what it can, when it is asked."""
    (folder / f"{name}.told").write_text(told)
    program = folder / name
    program.write_text(f'#!/bin/sh\n[ "$1" = features ] || exit 9\ncat {folder}/{name}.told\nexit {code}\n')
    program.chmod(0o755)
    return str(program)


def configured(**handlers: tuple[str, str]) -> dict[str, dict[str, str]]:
    """As the configuration has them: the program and the shim, by the handler's name."""
    return {name: {"binary": binary, "shim": shim} for name, (binary, shim) in handlers.items()}


@pytest.mark.parametrize(
    ("told", "features"),
    [
        (json.dumps(BOTH), Features(True, True)),
        (json.dumps({"mountOptions": ["ro"], "linux": {}}), Features()),
        (json.dumps({"mountOptions": ["rro"], "linux": None}), Features(True, False)),
        ('{"linux": {"mountExtensions": {"idmap": {"enabled": false}}}}', Features()),
        ("{}", Features()),
        ("[]", Features()),
        ("unknown command", Features()),
    ],
)
def test_what_a_runtime_says(tmp_path: Path, told: str, features: Features) -> None:
    assert read_features(runtime(tmp_path, told)) == features


def test_a_runtime_that_fails(tmp_path: Path) -> None:
    assert read_features(runtime(tmp_path, json.dumps(BOTH), code=1)) == Features()
    assert read_features(str(tmp_path / "nosuch")) == Features()


def test_handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, old = runtime(tmp_path, json.dumps(BOTH), "whole"), runtime(tmp_path, "{}", "old")
    found = Handlers(configured(w=(whole, ""), o=(old, ""), own=("", ""), x=("/no/such", "")))
    found.probe("/proc")  # where no ids can be mapped
    assert [one.name for one in found.all()] == ["", "own", "o", "w"]
    assert found.named("w").binary == whole and found.named("").binary == found.named("own").binary == ""
    assert found.named("w").features == found.named("own").features == Features(True, True)
    assert not found.has_users(found.named("w"))
    with pytest.raises(FailedPrecondition, match="no user namespaces: ids of mounts of /proc cannot be mapped"):
        found.check_users(found.named("w"))
    monkeypatch.setattr(namespaces, "user_obstacle", lambda _folder: "")
    found.probe("/x")
    assert found.has_users(found.named("")) and not found.has_users(found.named("o"))
    found.check_users(found.named("w"))
    with pytest.raises(FailedPrecondition, match="its mounts cannot have their ids mapped"):
        found.check_users(found.named("o"))
    with pytest.raises(InvalidArgument, match='no runtime for "nosuch" is configured'):
        found.named("nosuch")
    with pytest.raises(FailedPrecondition, match="is not there: /no/such"):
        found.named("x")


def test_handlers_of_other_shims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, shim = runtime(tmp_path, json.dumps(BOTH), "runc"), runtime(tmp_path, "", "shim")
    monkeypatch.setattr(handlers, "_FOLDERS", str(tmp_path))
    found = Handlers(configured(a=("", shim), b=(whole, shim), c=("", "io.containerd.nosuch.v2"), d=("crun", shim)))
    found.probe("/proc")
    assert [(one.name, one.binary, one.shim) for one in found.all()] == [
        ("", "", ""),
        ("a", whole, shim),
        ("b", whole, shim),
    ]
    assert found.named("a").features == Features(True, False)
    for name, told in (("c", "runc by io.containerd.nosuch.v2"), ("d", f"crun by {shim}")):
        with pytest.raises(FailedPrecondition, match=f"is not there: {told}"):
            found.named(name)


def test_read_only_mounts_that_a_runtime_cannot_make(tmp_path: Path) -> None:
    found = Handlers(configured(o=(runtime(tmp_path, "{}"), "")))
    found.probe("/proc")
    config = cri.ContainerConfig(mounts=[{"readonly": True}, {"readonly": True, "recursive_read_only": True}])
    found.check_container("", config)
    with pytest.raises(FailedPrecondition, match=r"RROUnsupported: config.mounts\[1\]"):
        found.check_container("o", config)
    del config.mounts[1]
    found.check_container("o", config)


@pytest.mark.parametrize("binary", ["a/b", "a b", "/bin/", "[1]"])
def test_programs_that_are_none(tmp_path: Path, binary: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"cri: {{runtimes: {{x: {{binary: {binary}}}}}}}\n")
    with pytest.raises(ConfigError, match="such as crun"):
        load(file, KEYS)


@pytest.mark.parametrize("shim", ["a b", "io..x", "x/y", "."])
def test_shims_that_are_none(tmp_path: Path, shim: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f'cri: {{runtimes: {{x: {{shim: "{shim}"}}}}}}\n')
    with pytest.raises(ConfigError, match="such as io.containerd.runc.v2"):
        load(file, KEYS)


def test_the_log_of_another_shims_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Path(__file__).resolve().parents[3] / "bin/containerd-shim-teu-v2"
    monkeypatch.setattr(shims, "find_binary", lambda _name: str(program))
    folder, log = tmp_path / "state", tmp_path / "logs/0.log"
    folder.mkdir()
    pod = Pod("p" * 64, cri.PodSandboxConfig())
    for _ in range(2):  # the second finds what a daemon has left that ended meanwhile
        told = shims.streams(str(folder), pod, str(log), "", terminal=False)
        assert (told.stdout, told.stderr) == (str(folder / "stdout"), str(folder / "stderr"))
        assert shims.still_writes(str(folder)) and log.read_bytes() == b""
    with open(told.stdout, "wb") as out, open(told.stderr, "wb"):
        out.write(b"line\n")
    deadline = time.monotonic() + 20
    while shims.still_writes(str(folder)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert log.read_bytes().endswith(b" stdout F line\n")
    assert not shims.let_go(str(folder))
    terminal = shims.streams(str(folder), pod, "", "/in", terminal=True)
    assert (terminal.stdin, terminal.stderr) == ("/in", "") and terminal.terminal
    assert shims.let_go(str(folder))
    monkeypatch.setattr(shims, "find_binary", lambda _name: "/no/such")
    with pytest.raises(Unavailable, match="nobody can write"):
        shims.streams(str(folder), pod, "", "", terminal=True)


def test_a_node_with_handlers(tmp_path: Path) -> None:
    old = runtime(tmp_path, "{}")
    more = f"  runtimes:\n    old: {{binary: {old}}}\n    runc: {{}}\n    gone: {{binary: /no/such}}\n"
    daemon = Daemon(tmp_path, f"cri:\n  enabled: true\n  networks: {tmp_path}/net.d\n{more}").start()
    try:
        with daemon.channel() as channel:
            stub = cri_pb2_grpc.RuntimeServiceStub(channel)
            told = {one.name: one.features for one in stub.Status(cri.StatusRequest()).runtime_handlers}
            assert set(told) == {"", "runc", "old"}
            assert told["runc"].recursive_read_only_mounts and not told["old"].recursive_read_only_mounts
            assert not told["old"].user_namespaces

            def refused(handler: str, **options: Any) -> str:
                config = cri.PodSandboxConfig(metadata={"name": "p"})
                config.linux.security_context.namespace_options.CopyFrom(cri.NamespaceOption(**options))
                try:
                    stub.RunPodSandbox(cri.RunPodSandboxRequest(config=config, runtime_handler=handler))
                except Exception as error:
                    return str(error)
                raise AssertionError(handler)

            assert "no runtime for" in refused("nosuch") and "is not there" in refused("gone")
            assert "has no user namespaces" in refused("old", userns_options=MAPPED)
            images = cri_pb2_grpc.ImageServiceStub(channel)
            asked = cri.ImageStatusRequest(image={"image": "x", "runtime_handler": "old"})
            assert not images.ImageStatus(asked).HasField("image")
            asked.image.runtime_handler = "nosuch"
            with pytest.raises(Exception, match="no runtime for"):
                images.ImageStatus(asked)
    finally:
        assert daemon.stop() == 0
