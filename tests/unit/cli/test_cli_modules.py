# SPDX-License-Identifier: Apache-2.0
"""Modules of teu one by one: the types of templates, what disks hold, prune's questions, what a shell may offer."""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest
from prepared import Daemon

from teu.cli import completion, diskusage, prune, shapes, update
from teu.cli.command import load
from teu.cli.createspec import restart_policy
from teu.cli.options import Options, parse, parse_table
from teu.oci.template import Nil, TemplateError

# shapes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5µs"),
        (30_000_000, "30ms"),
        (1_000_000_000, "1s"),
        (90_000_000_000, "1m30s"),
        (3_600_000_000_000, "1h0m0s"),
        (3_661_500_000_000, "1h1m1.5s"),
        (-250_000_000, "-250ms"),
    ],
)
def test_durations_print_as_gos(nanoseconds: int, text: str) -> None:
    assert shapes.Duration(nanoseconds).shown(None) == text


@pytest.mark.parametrize(
    ("json", "text"),
    [
        ("2024-05-01T12:00:00.500Z", "2024-05-01 12:00:00.5 +0000 UTC"),
        ("2024-05-01T12:00:00.000Z", "2024-05-01 12:00:00 +0000 UTC"),
        ("2024-05-01T12:00:00+02:00", "2024-05-01 12:00:00 +0200 +0200"),
        ("never", "never"),
    ],
)
def test_times_print_as_gos(json: str, text: str) -> None:
    assert shapes.Time(json).shown(None) == text


def test_what_the_daemon_leaves_out_has_gos_zero_value() -> None:
    """A field that docker's structures have is there whether or not the JSON has it; no other is."""
    found = shapes.dressed({"Id": "x", "State": {"Running": True}, "HostConfig": {}}, "container")
    assert (found["Id"], found["Name"], found["RestartCount"]) == ("x", "", 0)
    assert found["State"]["Running"] and isinstance(found["State"]["Health"], Nil)
    assert found["HostConfig"]["Binds"] == [] and not found["HostConfig"]["Privileged"]
    assert found["Config"].__class__ is Nil, "a pointer"
    assert bool(found), "a structure is true, even an empty one"
    with pytest.raises(TemplateError, match="can't evaluate field Nope in type container"):
        found.unknown("Nope")
    assert found["State"].raw == {"Running": True}


def test_an_images_configuration_has_no_empty_fields_in_json() -> None:
    found = shapes.dressed({"Config": {"Cmd": ["sh"], "User": "", "Hostname": "", "Volumes": None}}, "image")
    assert found["Config"].raw == {"Cmd": ["sh"]}
    assert (found["Config"]["User"], found["Config"]["Volumes"]) == ("", {})
    with pytest.raises(TemplateError, match="can't evaluate field Hostname"):
        found["Config"].unknown("Hostname")


def test_keys_of_ports_are_no_texts_and_maps_know_their_zero() -> None:
    ports = shapes.dressed({"80/tcp": [{"HostIp": "::", "HostPort": "1"}], "81/tcp": None}, "{}[]PortBinding")
    assert ports.key == "nat.Port" and ports["81/tcp"] == [] and ports.zero == []
    assert ports["80/tcp"][0].shown(lambda value, _: str(value)) == "{:: 1}"
    assert shapes.dressed("text", "{}s") == "text", "what has another type is left as it is"
    assert shapes.dressed([1], "NetworkSettings") == [1]


@pytest.mark.parametrize("name", sorted(shapes.STRUCTURES))
def test_every_structure_can_be_made_of_nothing(name: str) -> None:
    words = shapes.STRUCTURES[name].split()
    assert list(shapes.dressed(None, name)) == words[::2]


# diskusage --------------------------------------------------------------------------------------------------


def test_what_can_be_had_back() -> None:
    found = {
        "LayersSize": 1000,
        "Images": [
            {"Size": 600, "SharedSize": 200, "Containers": 1},
            {"Size": 500, "SharedSize": -1, "Containers": 2},
            {"Size": 300, "SharedSize": 0, "Containers": 0},
        ],
        "Containers": [{"State": "running", "SizeRw": 30}, {"State": "exited", "SizeRw": 70}, {"State": "paused"}],
        "Volumes": [
            {"UsageData": {"Size": 40, "RefCount": 1}},
            {"UsageData": {"Size": 60, "RefCount": 0}},
            {"UsageData": {"Size": -1, "RefCount": 0}},
            {},
        ],
        "BuildCache": [
            {"Size": 10, "Shared": False, "InUse": True},
            {"Size": 20, "Shared": False, "InUse": False},
            {"Size": 99, "Shared": True, "InUse": False},
        ],
    }
    rows = [tuple(row.values()) for row in diskusage.summary(found)]
    assert rows == [
        ("Images", "3", "2", "1kB", "600B (60%)"),
        ("Containers", "3", "2", "100B", "70B (70%)"),
        ("Local Volumes", "4", "1", "100B", "60B (60%)"),
        ("Build Cache", "3", "1", "30B", "20B"),
    ]
    assert [row["Reclaimable"] for row in diskusage.summary({})] == ["0B"] * 4, "and no division by nothing"


# prune ------------------------------------------------------------------------------------------------------


def asked(**options: Any) -> Options:
    made = Options()
    made.update({"force": False, "filter": [], "all": False, "volumes": False, **options})
    return made


@pytest.mark.parametrize(
    ("answer", "yes"), [("y\n", True), ("Y \n", True), ("yes\n", False), ("\n", False), ("", False)]
)
def test_only_yes_is_yes(answer: str, yes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    assert prune.ask(asked(), "All goes.") is yes
    assert prune.ask(asked(force=True), "All goes.")


def test_who_says_no_has_not_failed(daemon: Daemon, teu: Callable[..., Any]) -> None:
    found = teu("system", "prune", "--volumes", stdin=b"n\n")
    assert (found.code, found.err) == (0, "")
    assert "all anonymous volumes not used" in found.out and "Are you sure" in found.out
    assert not [call for call in daemon.calls() if call.startswith("POST")]


def test_a_prune_of_all_asks_for_each_kind(daemon: Daemon, teu: Callable[..., Any]) -> None:
    """An engine without a builder has no cache, which is no failure."""
    for kind, reply in {
        "containers": {"ContainersDeleted": ["c"], "SpaceReclaimed": 1000},
        "networks": {"NetworksDeleted": ["n"]},
        "volumes": {"VolumesDeleted": ["v"], "SpaceReclaimed": 500},
        "images": {"ImagesDeleted": [{"Untagged": "i:1"}, {"Deleted": "sha256:1"}], "SpaceReclaimed": 500},
    }.items():
        daemon.on("POST", f"/{kind}/prune", reply)
    found = teu("system", "prune", "-f", "--volumes")
    assert found.code == 0 and found.out.endswith("Total reclaimed space: 2kB\n")
    assert [call.split("/")[1] for call in daemon.calls() if call.endswith("prune")] == [
        "containers",
        "networks",
        "volumes",
        "images",
        "build",
    ]
    refused = teu("system", "prune", "-f", "--volumes", "--filter", "until=1h")
    assert refused.code == 1 and 'The "until" filter is not supported' in refused.err


# update -----------------------------------------------------------------------------------------------------


def test_what_was_not_given_is_not_changed(daemon: Daemon, teu: Callable[..., Any]) -> None:
    daemon.on("POST", "/containers/a/update", {"Warnings": ["careful"]})
    daemon.on("POST", "/containers/b/update", (409, "it is being removed"))
    found = teu("update", "--memory", "64m", "--restart", "on-failure:3", "b", "a")
    assert (found.code, found.out) == (1, "a\ncareful\n") and "it is being removed" in found.err
    assert daemon.last.body == {"Memory": 64 << 20, "RestartPolicy": restart_policy("on-failure:3")}
    assert teu("update", "a").code == 1
    known = {flag.name for flag in parse_table(load("container update").table)}
    assert set(update.FIELDS) <= known


# completion -------------------------------------------------------------------------------------------------


class Shown:
    """A client whose lists have one of each."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def get(self, path: str, query: Any = None) -> Any:
        self.asked.append((path, query))
        return {
            "/containers/json": [{"Names": ["/web", "/other/alias"]}],
            "/images/json": [{"RepoTags": ["busybox:latest", "<none>:<none>"]}, {"RepoTags": None}],
            "/networks": [{"Name": "net"}],
            "/volumes": {"Volumes": [{"Name": "vol"}]},
            "/info": {"Plugins": {"Log": ["journald", "some-plugin"]}},
        }[path]


def offered(*words: str) -> tuple[list[str], Shown]:
    client = Shown()
    cli: Any = type("Cli", (), {"client": client, "options": None, "config": Namespace(values={}), "folder": "/nope"})()
    return completion.offers(cli, list(words)), client


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("run", ""), ["busybox"]),
        (("run", "busybox", ""), []),
        (("stop", "a", ""), ["web"]),
        (("exec", "web", ""), []),
        (("network", "connect", ""), ["net"]),
        (("network", "connect", "net", ""), ["web"]),
        (("volume", "rm", ""), ["vol"]),
        (("inspect", ""), ["web", "busybox", "net", "vol"]),
        (("run", "--network", ""), ["net"]),
        (("run", "--log-driver", ""), ["journald", "some-plugin"]),
        (("run", "--log-opt", ""), [f"{name}=" for name in completion.LOG_OPTIONS.split()]),
        (("run", "--pull", ""), ["always", "missing", "never"]),
        (("run", "--pull="), [f"--pull={value}" for value in ("always", "missing", "never")]),
        (("--nonsense", ""), []),
    ],
)
def test_what_may_stand_there(words: tuple[str, ...], found: list[str]) -> None:
    assert offered(*words)[0] == found


def test_for_what_is_no_command_nothing_is_offered(daemon: Daemon, teu: Callable[..., Any]) -> None:
    found = teu("__complete", "nonsense", "")
    assert (found.code, found.out, found.err) == (0, "", "")


def test_only_those_that_run_can_be_stopped() -> None:
    assert offered("stop", "")[1].asked == [("/containers/json", {"all": True, "filters": completion.RUNNING})]
    assert offered("start", "")[1].asked == [("/containers/json", {"all": True, "filters": completion.STOPPED})]


def test_commands_and_options_are_offered_without_asking() -> None:
    first, client = offered("")
    assert {"run", "container", "version"} <= set(first) and client.asked == []
    assert "ls" in offered("volume", "")[0]
    assert {"--help", "--rm", "--network"} <= set(offered("run", "-")[0])
    _, given = parse(parse_table(load("container run").table), ["--rm", "busybox", "-x"], interspersed=False)
    assert given == ["busybox", "-x"] and offered("run", "busybox", "-")[0] == [], "those are the command's own"
