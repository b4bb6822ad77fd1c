# SPDX-License-Identifier: Apache-2.0
"""The profile of AppArmor, without a host that has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from teu.linux import apparmor


class Host:
    """A host with AppArmor in a folder: its switch, its profiles, and a parser that notes what it is asked to load."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for name in ("ENABLED", "PROFILES", "FILE", "DISABLED"):
            monkeypatch.setattr(apparmor, name, str(folder / name))
        self.parser = folder / "apparmor_parser"
        monkeypatch.setattr(apparmor, "parser", lambda: str(self.parser) if self.parser.exists() else None)
        (folder / "ENABLED").write_text("Y\n")
        (folder / "PROFILES").write_text("other (enforce)\n")
        (folder / "FILE").write_text("profile teu-default {}\n")

    def parse(self, script: str) -> None:
        self.parser.write_text(f"#!/bin/sh\n{script}\n")
        self.parser.chmod(0o755)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_the_profile_is_loaded_before_the_first_container(host: Host) -> None:
    host.parse(f'echo "$@" >>{host.folder}/asked; echo "teu-default (enforce)" >>{host.folder}/PROFILES')
    assert apparmor.default_profile("teu-default") == "teu-default"
    assert apparmor.default_profile("teu-default") == "teu-default"
    assert (host.folder / "asked").read_text() == f"--replace --skip-cache {host.folder}/FILE\n", "once"


def test_a_profile_that_cannot_be_loaded_is_an_error_that_says_why(host: Host) -> None:
    host.parse("echo 'line 3: syntax error' >&2; exit 1")
    with pytest.raises(apparmor.NotLoaded, match="could not be loaded from .*: line 3: syntax error$"):
        apparmor.default_profile("teu-default")


def test_where_there_is_no_profile_to_have(host: Host) -> None:
    """No parser, another name that nobody has loaded, the administrator's word, a kernel without AppArmor."""
    assert not apparmor.supported()
    assert apparmor.default_profile("teu-default") == ""
    host.parse("exit 1")
    assert apparmor.supported()
    assert apparmor.default_profile("mine") == "" and apparmor.default_profile("") == ""
    assert apparmor.default_profile("other") == "other", "it is loaded, whoever did it"
    (host.folder / "DISABLED").symlink_to("/nowhere")
    assert apparmor.default_profile("teu-default") == ""
    (host.folder / "DISABLED").unlink()
    (host.folder / "ENABLED").write_text("N\n")
    assert apparmor.default_profile("other") == "" and not apparmor.supported()
