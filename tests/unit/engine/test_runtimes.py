# SPDX-License-Identifier: Apache-2.0
"""What --runtime and teud.yaml's runtimes name, and what containerd's shim is told of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest

from teu import config as configuration
from teu.engine.config import KEYS, check
from teu.engine.containers import runtimes
from teu.engine.containers.runtimes import Runtime
from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.lifecycle import shimoptions
from teu.engine.spec import build

FORMS = """
runtimes:
  kata: io.containerd.kata.v2
  crun: {path: /usr/bin/crun, runtimeArgs: [--debug, "a b"]}
  bare: {path: crun}
  own: {runtimeType: io.containerd.runc.v2, options: {Root: /run/x, SystemdCgroup: false}}
  shim: {runtimeType: /opt/shim, options: {ConfigPath: /etc/shim.toml, TypeUrl: t}}
default-runtime: crun
"""


def told(tmp_path: Path, text: str) -> configuration.Settings:
    file = tmp_path / "teud.yaml"
    file.write_text(text)
    settings = configuration.load(file, KEYS, must_exist=True)
    check(settings)
    return settings


def test_names(tmp_path: Path) -> None:
    settings = told(tmp_path, FORMS)
    assert runtimes.find("kata", settings) == Runtime("io.containerd.kata.v2")
    assert runtimes.find("", settings) == Runtime(runtimes.OWN, "/usr/bin/crun", ("--debug", "a b"))
    assert runtimes.find("bare", settings) == Runtime(runtimes.OWN, "crun")
    assert runtimes.find("shim", settings).shim == "/opt/shim"
    assert runtimes.find("runc", settings).shim == "io.containerd.runc.v2"
    assert runtimes.find("teu", settings).shim == runtimes.OWN
    assert runtimes.find("io.containerd.any.v1", settings).shim == "io.containerd.any.v1"
    for unknown in ("nobody", "/usr/bin/crun", "io.containerd.x", "io.containerd.x.v2\n"):
        with pytest.raises(BadRequest, match="unknown or invalid runtime name"):
            runtimes.find(unknown, settings)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("/usr/bin/crun", "give {path: PROGRAM}"),
        ("kata", "runtimeType is like"),
        ("3", "give a name such as"),
        ("{path: /a, runtimeType: io.containerd.a.v2}", "one of the two"),
        ("{}", "one of the two"),
        ("{path: /a, options: {Root: /x}}", "options go with a runtimeType"),
        ("{path: a/b}", "absolute path, or its name"),
        ("{path: /a, runtimeArgs: --debug}", "runtimeArgs is a list"),
        ("{runtimeType: io.containerd.a.v2, runtimeArgs: [x]}", "runtimeArgs go with a path"),
        ("{runtimeType: io.containerd.runc.v2, options: {Rute: /x}}", "options has no Rute"),
        ("{runtimeType: io.containerd.runc.v2, options: {Root: 3}}", "options has no Root of that type"),
        ("{path: /a, args: []}", "give a name such as"),
    ],
)
def test_what_names_none(tmp_path: Path, entry: str, says: str) -> None:
    with pytest.raises(configuration.ConfigError, match=says):
        told(tmp_path, f"runtimes:\n  a: {entry}\n")


def test_a_default_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"teud.yaml:1: default-runtime: unknown or invalid runtime name: crun"):
        told(tmp_path, "default-runtime: crun\n")


def options(told: shimoptions.Told) -> Any:
    from teu.api.types.runc.options import oci_pb2

    assert told.type_url == "containerd.runc.v1.Options"
    return oci_pb2.Options.FromString(told.value)


def test_what_the_shim_is_told(tmp_path: Path) -> None:
    settings = told(tmp_path, FORMS)

    def of(name: str, systemd: bool = False) -> shimoptions.Told:
        return shimoptions.told(runtimes.find(name, settings), systemd, str(tmp_path))

    assert of("teu") == of("kata") == ("", b"")
    assert of("runc", systemd=True) == ("containerd.runc.v1.Options", b"\x48\x01")
    assert options(of("bare")).binary_name == "crun"
    own = options(of("own", systemd=True))
    assert (own.root, own.systemd_cgroup) == ("/run/x", False), "what the file says is so"
    assert of("shim").type_url == "runtimeoptions.v1.Options"
    from teu.api.types.runtimeoptions.v1 import api_pb2

    assert api_pb2.Options.FromString(of("shim").value).config_path == "/etc/shim.toml"


def test_arguments_go_before_the_shims_own(tmp_path: Path) -> None:
    program = tmp_path / "a program"
    program.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    program.chmod(0o755)
    runtime = Runtime(runtimes.OWN, str(program), ("--flag", "it's $HOME"))
    script = options(shimoptions.told(runtime, False, str(tmp_path / "data"))).binary_name
    said = subprocess.run([script, "create", "c 1"], capture_output=True, text=True, check=True).stdout
    assert said == "--flag|it's $HOME|create|c 1|"
    assert options(shimoptions.told(runtime, False, str(tmp_path / "data"))).binary_name == script
    assert os.listdir(os.path.dirname(script)) == [os.path.basename(script)]


def test_a_program_is_in_the_shims_scope(tmp_path: Path) -> None:
    """Its cgroup is given as for our own runtime, and it asks systemd for nothing."""
    engine = parts.engine(tmp_path, runtimes={"crun": {"path": "/usr/bin/crun"}})
    container = parts.container(engine, Runtime="crun")
    assert build.cgroups_path(engine, container) == f"teu.slice:teu:{container.id}"
    assert not build.systemd_cgroup(engine, container)
    engine.config["runtimes"] = {}
    with pytest.raises(BadRequest, match="crun"):
        build.runtime(engine, container)
