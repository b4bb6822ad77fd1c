# SPDX-License-Identifier: Apache-2.0
"""What every volume driver has to do (teu.engine.volumes.drivers.driver). Each check takes a driver of its own and
options for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from teu.engine.core.errors import BadRequest
from teu.engine.volumes.drivers import registry
from teu.engine.volumes.drivers.driver import Driver
from teu.engine.volumes.drivers.plugin import Remote


class Sample(NamedTuple):
    name: str
    options: dict[str, str]

    def driver(self, root: str) -> Driver:
        return registry.Drivers(root)[self.name]

    def __str__(self) -> str:
        return f"{self.name} {' '.join(f'{key}={value}' for key, value in self.options.items())}".strip()


# Of each driver: options with which a volume can be made here.
OPTIONS: dict[str, list[dict[str, str]]] = {
    "local": [{}, {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,nosuid"}],
    "teu-test-plugin": [{"colour": "blue"}],  # a volumeplugin.VolumePlugin, which whoever runs the checks has started
}


def samples(mounted: bool) -> list[Sample]:
    """`mounted`: also those that have to be mounted, which needs root."""
    assert set(registry.DRIVERS) <= set(OPTIONS)
    every = [Sample(name, options) for name, each in OPTIONS.items() for options in each]
    return [one for one in every if mounted or one.name not in registry.DRIVERS or not one.options]


def options_are_checked(driver: Driver, options: dict[str, str]) -> None:
    assert driver.check(options) == options
    if isinstance(driver, Remote):  # the plugin knows its own
        assert driver.check({**options, "unheard-of": "1"})
        return
    with pytest.raises(BadRequest):
        driver.check({**options, "unheard-of": "1"})


def a_volume_is_made_once(driver: Driver, options: dict[str, str]) -> None:
    assert driver.create("data", options)
    assert not driver.create("data", options)
    driver.mount("data", options)
    assert os.path.isdir(driver.path("data"))
    driver.unmount("data")
    driver.remove("data")


def its_files_are_there_while_it_is_mounted(driver: Driver, options: dict[str, str]) -> None:
    driver.create("data", options)
    driver.mount("data", options)
    Path(driver.path("data"), "file").write_text("x")
    driver.mount("data", options)
    assert Path(driver.path("data"), "file").read_text() == "x", "it was mounted over itself"
    driver.unmount("data")
    assert Path(driver.path("data"), "file").exists() != driver.has_to_be_mounted(options)
    driver.unmount("data")
    driver.remove("data")


def a_volume_is_no_other(driver: Driver, options: dict[str, str]) -> None:
    for name in ("one", "two"):
        driver.create(name, options)
        driver.mount(name, options)
    Path(driver.path("one"), "file").write_text("x")
    assert os.listdir(driver.path("two")) == []
    driver.release("one")
    driver.remove("one")
    assert os.path.isdir(driver.path("two"))
    driver.unmount("two")
    driver.remove("two")


def a_removal_leaves_nothing(driver: Driver, options: dict[str, str]) -> None:
    driver.create("data", options)
    driver.mount("data", options)
    Path(driver.path("data"), "folder/below").mkdir(parents=True)
    driver.release("data")
    driver.remove("data")
    assert not os.path.lexists(driver.path("data"))
    driver.remove("data")
    assert driver.create("data", options), "something of it was left"
    driver.mount("data", options)
    assert os.listdir(driver.path("data")) == []
    driver.unmount("data")
    driver.remove("data")


def what_it_uses_of_the_host_is_told(driver: Driver, options: dict[str, str]) -> None:
    driver.create("data", options)
    paths = driver.host_paths("data", options)
    assert driver.path("data") in paths
    assert all(path.startswith("/") for path in paths)
    driver.remove("data")


CHECKS = (
    options_are_checked,
    a_volume_is_made_once,
    its_files_are_there_while_it_is_mounted,
    a_volume_is_no_other,
    a_removal_leaves_nothing,
    what_it_uses_of_the_host_is_told,
)
