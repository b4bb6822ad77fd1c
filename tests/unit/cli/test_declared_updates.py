# SPDX-License-Identifier: Apache-2.0
"""`teu system auto-update`: what is updated, and what is taken back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prepared import Daemon, Request

from teu.cli.declared import autoupdate

OLD, NEW = "sha256:" + "0" * 64, "sha256:" + "1" * 64


@pytest.fixture
def house(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A container of web.service; `restarts` is what systemctl restart says, in turn."""
    state: dict[str, Any] = {"policy": "registry", "image": OLD, "restarts": [], "asked": [], "unit": "web.service"}
    daemon.on("GET", "/containers/json", [{"Id": "5" * 64}])

    def container(_: Request) -> Any:
        labels = {"io.teu.unit": state["unit"], "io.containers.autoupdate": state["policy"]}
        return {"Name": "/web", "Image": OLD, "Config": {"Image": "app:1", "Labels": labels}}

    daemon.on("GET", f"/containers/{'5' * 64}/json", container)
    daemon.on("GET", "/images/app:1/json", lambda _: {"Id": state["image"], "RepoDigests": ["app@sha256:a"]})
    daemon.on("POST", "/images/create", {"status": "done"})
    daemon.on("POST", f"/images/{OLD}/tag")
    daemon.on("GET", "/distribution/app:1/json", {"Descriptor": {"digest": "sha256:b"}})

    def systemctl(*words: str) -> bool:
        state["asked"].append(" ".join(words))
        return words[0] != "restart" or state["restarts"].pop(0)

    monkeypatch.setattr(autoupdate, "systemctl", systemctl)
    return state


def test_nothing_new(house: dict[str, Any], daemon: Daemon, teu: Callable[..., Any]) -> None:
    done = teu("system", "auto-update")
    assert (done.code, done.out) == (0, "web.service web app:1 no\n")
    assert "POST /images/create" in daemon.calls() and not house["asked"]


def test_a_new_image(house: dict[str, Any], teu: Callable[..., Any]) -> None:
    house["image"], house["restarts"] = NEW, [True]
    done = teu("system", "auto-update")
    assert (done.code, done.out) == (0, "web.service web app:1 yes\n")
    assert house["asked"] == ["reset-failed --quiet web.service", "restart web.service"]


def test_one_that_does_not_get_ready_is_taken_back(
    house: dict[str, Any], daemon: Daemon, teu: Callable[..., Any]
) -> None:
    house["image"], house["restarts"] = NEW, [False, True]
    done = teu("system", "auto-update")
    assert (done.code, done.out) == (1, "web.service web app:1 rolled back\n")
    assert daemon.last.path == f"/images/{OLD}/tag" and daemon.last.query == {"repo": "app", "tag": "1"}
    house["restarts"] = [False, False]
    done = teu("system", "auto-update")
    assert done.code == 1 and "nor with the old one" in done.err and done.out.endswith("failed\n")


def test_a_dry_run_changes_nothing(house: dict[str, Any], daemon: Daemon, teu: Callable[..., Any]) -> None:
    assert teu("system", "auto-update", "--dry-run").out.endswith("pending\n")
    house["policy"] = "local"
    assert teu("system", "auto-update", "--dry-run").out.endswith("no\n")
    house["image"] = NEW
    assert teu("system", "auto-update", "--dry-run").out.endswith("pending\n")
    assert not house["asked"] and "POST /images/create" not in daemon.calls()


def test_what_is_nobodys(house: dict[str, Any], teu: Callable[..., Any]) -> None:
    house["unit"] = ""
    done = teu("system", "auto-update")
    assert done.code == 1 and "not of a declared unit" in done.err
    house["unit"], house["policy"] = "web.service", "sometimes"
    assert "neither registry nor local" in teu("system", "auto-update").err
