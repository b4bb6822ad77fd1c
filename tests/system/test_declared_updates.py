# SPDX-License-Identifier: Apache-2.0
"""`teu system auto-update` with a registry: a new image, one that does not get ready, and one built here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from declared import Declared, declare, start, state
from images import busybox_layer
from scripted_registry import ScriptedRegistry
from whole import call, out, show, teu

pytestmark = pytest.mark.needs("systemd", "teud")
__all__ = ["declare"]


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    """Made before what is declared, so that its images go when their containers have gone."""
    with ScriptedRegistry() as made:
        yield made
        for name in out("teu", "images", "-a", "--format", "{{.Repository}}@{{.ID}}").splitlines():
            if name.startswith((made.address, "localhost/teu-local")):
                teu("rmi", "-f", name.partition("@")[2])


def version() -> str:
    return teu("exec", "systemd-app", "busybox", "cat", "/etc/version").stdout


def test_new_images_and_the_way_back(registry: ScriptedRegistry, declare: Declared) -> None:
    name = f"{registry.address}/app:1"
    registry.image("app", "1", busybox_layer(**{"etc/version": b"one", "etc/good": b""}))
    declare.write(
        app_container=f"[Container]\nImage={name}\nAutoUpdate=registry\nExec=busybox sleep 1000\nStopSignal=SIGKILL\n"
        "Notify=healthy\nHealthCmd=test -e /etc/good\nHealthInterval=1s\nHealthRetries=1\nHealthOnFailure=kill\n"
    )
    start("app.service")
    assert teu("system", "auto-update").stdout == f"app.service systemd-app {name} no\n"
    registry.image("app", "1", busybox_layer(**{"etc/version": b"two", "etc/good": b""}))
    assert teu("system", "auto-update", "--dry-run").stdout == f"app.service systemd-app {name} pending\n"
    assert version() == "one"
    assert teu("system", "auto-update").stdout == f"app.service systemd-app {name} yes\n"
    assert version() == "two" and state("app.service") == "active"
    registry.image("app", "1", busybox_layer(**{"etc/version": b"three"}))
    done = teu("system", "auto-update", check=False)
    assert (done.returncode, done.stdout) == (1, f"app.service systemd-app {name} rolled back\n")
    assert version() == "two" and state("app.service") == "active"


def test_an_image_of_this_host(registry: ScriptedRegistry, declare: Declared) -> None:
    for tag in ("1", "2"):
        registry.image("app", tag, busybox_layer(**{"etc/version": tag.encode()}))
        teu("pull", f"{registry.address}/app:{tag}")
    teu("tag", f"{registry.address}/app:1", "localhost/teu-local:x")
    declare.write(
        app_container="[Container]\nImage=localhost/teu-local:x\nAutoUpdate=local\n"
        "Exec=busybox sleep 1000\nStopSignal=SIGKILL\n"
    )
    start("app.service")
    teu("tag", f"{registry.address}/app:2", "localhost/teu-local:x")
    assert teu("system", "auto-update").stdout.endswith(" yes\n")
    assert version() == "2"


def test_the_timer_is_there_and_runs_it(declare: Declared) -> None:
    if show("teu-auto-update.timer", "LoadState") != "loaded":
        pytest.skip("the lab has the tree, not the packages")
    assert show("teu-auto-update.timer", "UnitFileState") == "disabled"
    call("systemctl", "start", "teu-auto-update.service")
    assert show("teu-auto-update.service", "Result") == "success"
