# SPDX-License-Identifier: Apache-2.0
"""How the builder's rooms are put together: platforms of emulators, what nested definitions may, reloads, policies."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakeworker import Asker

from teu import config as configuration
from teu.api.buildkit import policy_pb2
from teu.buildkit import config, daemon, main, rooms
from teu.buildkit.cache.store import Store
from teu.buildkit.core import errors
from teu.buildkit.llb import build, platforms
from teu.buildkit.llb.load import NotAllowed
from teu.buildkit.llb.policy import Policies
from teu.buildkit.session.manager import Manager


def entry(machine: int, flags: str = "POCF", first: str = "enabled", kind: int = 2, order: int = 1) -> str:
    """What binfmt_misc says of an emulator."""
    number = machine.to_bytes(2, "little" if order == 1 else "big").hex()
    head = f"7f454c46{kind:02x}{order:02x}01{'00' * 9}" + ("0200" if order == 1 else "0002") + number
    return f"{first}\ninterpreter /usr/bin/emulator\nflags: {flags}\noffset 0\nmagic {head}\nmask {'ff' * 20}\n"


def test_platforms_of_emulators_that_are_switched_on(tmp_path: Path) -> None:
    (tmp_path / "qemu-aarch64").write_text(entry(183))
    (tmp_path / "any-name").write_text(entry(22, order=2))
    (tmp_path / "arm").write_text(entry(40, kind=1))
    (tmp_path / "qemu-riscv64").write_text(entry(243, first="disabled"))
    (tmp_path / "qemu-ppc64le").write_text(entry(21, flags="OC"))  # the steps would have to have it
    (tmp_path / "python3.11").write_text("enabled\ninterpreter /usr/bin/python3.11\nflags: \noffset 0\nmagic a70d\n")
    (tmp_path / "jar").write_text("enabled\ninterpreter /usr/bin/java\nflags: F\nextension .jar\n")
    (tmp_path / "short").write_text("enabled\ninterpreter /x\nflags: F\noffset 0\nmagic 7f454c460201\n")
    (tmp_path / "odd").write_text("enabled\nflags: F\noffset 0\nmagic xyz\n")
    (tmp_path / "status").write_text("enabled\n")
    found = rooms.host_platforms(str(tmp_path))
    assert found[0] == str(platforms.host())
    assert found[-4:] == ["linux/s390x", "linux/arm/v7", "linux/arm/v6", "linux/arm64"] and len(found) <= 6
    assert rooms.host_platforms(str(tmp_path / "nothing"))[0] == str(platforms.host())


def job(*given: str, policies: Any = ()) -> Any:
    policy = Policies(policies) if policies else None
    return SimpleNamespace(entitlements=SimpleNamespace(given=frozenset(given)), policy=lambda: policy)


class Job(SimpleNamespace):
    __hash__ = object.__hash__


def asked(*builds: Any) -> Any:
    return SimpleNamespace(jobs=lambda: {Job(rules=one) for one in builds})


def test_a_nested_definition_may_what_all_of_its_builds_may() -> None:
    definition = build.image("docker.io/library/busybox:latest").with_(network="host").run(("x",)).root.definition()
    entitled = job("network.host", "security.insecure")
    assert rooms.nested(definition, asked(entitled)).vertexes
    for others in ([entitled, job("security.insecure")], [job()], []):
        with pytest.raises(NotAllowed, match="network.host"):
            rooms.nested(definition, asked(*others))
    deny = policy_pb2.Rule(action=policy_pb2.DENY, selector=policy_pb2.Selector(identifier="docker-image://*"))
    strict = job("network.host", policies=[policy_pb2.Policy(rules=[deny])])
    with pytest.raises(errors.PermissionDenied):
        rooms.nested(definition, asked(entitled, strict))


def settings(tmp_path: Path, text: str) -> configuration.Settings:
    file = tmp_path / "buildkitd.yaml"
    file.write_text(text)
    return main.settings(main.parser().parse_args(["--config", str(file)]))


def test_what_git_needs_is_in_the_state_and_goes_with_the_builder(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "cache.db"))
    text = f"root: {tmp_path}/root\nstate: {tmp_path}/state\ncontainerd: {tmp_path}/none.sock\n"
    work = rooms.Work(settings(tmp_path, text), store, Manager())
    try:
        left = tmp_path / "state/git/teu-git-x"
        left.mkdir(parents=True)
        (left / "known_hosts").write_text("x")
        work.repositories.recover()
        assert not left.exists() and left.parent.stat().st_mode & 0o777 == 0o700
        source = work.sources.open("git://127.0.0.1:9/a.git", {}, platforms.host())
        with source.git(Asker()) as git:  # type: ignore[attr-defined]
            assert Path(git.folder).parent == left.parent
        assert not list(left.parent.iterdir())
    finally:
        work.client.close()
        store.close()


def test_a_reload_takes_over_what_may_change_and_names_the_rest(tmp_path: Path) -> None:
    old = settings(tmp_path, "")
    fresh = settings(
        tmp_path,
        "log-level: debug\nparallelism: 3\nhistory: {max-entries: 7}\nfrontends: {gateway: false}\n"
        "gc: {max-used-space: 1g}\nregistries: {x: {http: true}}\n",
    )
    applied, ignored = daemon._changes(old, fresh)
    assert set(applied) == {"log-level", "history.max-entries", "frontends.gateway"}
    assert set(ignored) == {"parallelism", "gc.max-used-space", "registries"}
    assert old["log-level"] == "debug" and old["history"]["max-entries"] == 7 and old["parallelism"] == 0
    assert old["frontends"]["gateway"] is False and old["gc"]["max-used-space"] == "0"


def test_policies_of_the_configuration(tmp_path: Path) -> None:
    total = 1 << 40
    assert len(config.policies(settings(tmp_path, ""), total)) == 4
    assert config.policies(settings(tmp_path, "gc: {enabled: false}\n"), total) == ()
    one, two = config.policies(
        settings(
            tmp_path,
            "gc:\n  policies:\n"
            "    10-caches: {filters: [type==exec.cachemount], keep-duration: 48h, max-used-space: 512MB}\n"
            "    20-rest: {all: true, reserved-space: 10%}\n",
        ),
        total,
    )
    assert one.filters == ("type==exec.cachemount",) and one.keep_duration == 48 * 3600 and one.max_used == 512 << 20
    assert two.all and two.reserved == 103_000_000_000
    limited = config.policies(settings(tmp_path, "gc: {max-used-space: 20GB}\n"), total)
    assert limited[-1].max_used == 20 << 30 and limited[-1].all


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gc: {max-used-space: much}\n", "gc.max-used-space: bad value 'much'; give a size"),
        ("entitlements: [all]\n", "entitlements: bad value 'all'; give one of network.host"),
        ("gc: {policies: {x: {filter: []}}}\n", "gc.policies.x.filter: unknown key; did you mean filters?"),
        ("worker: {slice: 'a b'}\n", "worker.slice: bad value"),
        ("network: {subnet: 10.0.0.0}\n", "give a subnet"),
        ("registries: {x: {keys: [/k]}}\n", "registries.x: has 0 certificates and 1 keys"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(configuration.ConfigError) as caught:
        settings(tmp_path, text)
    assert words in str(caught.value) and "buildkitd.yaml:1: " in str(caught.value)


def test_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "b.yaml"
    file.write_text("address: /a.sock\nentitlements: []\n")
    words = ["-c", str(file), "--addr", "unix:///b.sock", "-D", "--allow-insecure-entitlement", "security.insecure"]
    found = main.settings(main.parser().parse_args(words))
    assert found["address"] == "/b.sock" and found["log-level"] == "debug"
    assert found["entitlements"] == ["security.insecure"]
