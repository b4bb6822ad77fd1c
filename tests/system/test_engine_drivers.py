# SPDX-License-Identifier: Apache-2.0
"""The drivers of the engine's registries, all of them, against the checks that each has to pass: here are the journal,
the kernel's mounts and its networks. They are used as teud uses them, without teud."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from drivers import logs, networks, volumes
from drivers.volumeplugin import VolumePlugin

from teu.engine.core import plugins


@pytest.mark.parametrize("kind", logs.kinds())
@pytest.mark.parametrize("check", logs.CHECKS, ids=lambda check: check.__name__)
def test_log_drivers(check: Any, kind: str, tmp_path: Path) -> None:
    def make(**options: str) -> logs.Run:
        return logs.Run(tmp_path, kind, {key.replace("_", "-"): value for key, value in options.items()})

    check(make)


@pytest.mark.parametrize("sample", volumes.samples(mounted=True), ids=str)
@pytest.mark.parametrize("check", volumes.CHECKS, ids=lambda check: check.__name__)
def test_volume_drivers(check: Any, sample: volumes.Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        if sample.name == "teu-test-plugin":
            monkeypatch.setattr(plugins, "SOCKETS", str(tmp_path / "sockets"))
            plugin = VolumePlugin(tmp_path / "sockets/teu-test-plugin.sock", tmp_path / "plugin")
            stack.callback(plugin.close)
        check(sample.driver(str(tmp_path / "volumes")), sample.options)


@pytest.mark.parametrize(("driver", "check"), networks.CHECKS, ids=lambda one: getattr(one, "__name__", one))
def test_network_drivers(driver: str, check: Any, tmp_path: Path) -> None:
    with networks.own_namespace():
        bench = networks.Bench(driver, tmp_path)
        try:
            check(bench)
        finally:
            bench.stopping.set()
