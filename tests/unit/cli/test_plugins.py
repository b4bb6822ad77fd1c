# SPDX-License-Identifier: Apache-2.0
"""docker's CLI plugins: which program it is, what it is given, what it says of itself; hooks; what is not here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teu.cli import elsewhere, hooks, main, plugins
from teu.cli.command import GLOBAL_FLAGS, Cli
from teu.cli.errors import CommandError
from teu.cli.options import Options, parse, parse_table

TEU = Path(__file__).resolve().parents[3] / "bin/teu"
GOOD = {"SchemaVersion": "0.1.0", "Vendor": "v", "Version": "1", "ShortDescription": "does it"}
BODY = """#!/bin/sh
case "$1" in docker-cli-plugin-metadata) echo 'METADATA'; exit CODE;; esac
case "$2" in docker-cli-plugin-hooks) echo "$3" > "$0.asked"; cat "$0.answer"; exit 0;; esac
case "$1" in __complete) printf 'one\\tthe first\\ntwo\\n_activeHelp_ x\\n:4\\n'; exit 0;; esac
echo "$@"; echo "$DOCKER_HOST|$DOCKER_CONFIG|$DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND"; exit 7
"""


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("DOCKER_", "TEU_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`make(name, folder="cli-plugins", metadata=GOOD, code=0)`: a plugin below a folder of the test's."""
    monkeypatch.setattr(plugins, "SYSTEM", (str(tmp_path / "system"),))

    def write(name: str, folder: str = "cli-plugins", metadata: Any = GOOD, code: int = 0) -> Path:
        path = tmp_path / folder / f"docker-{name}"
        path.parent.mkdir(exist_ok=True)
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        path.write_text(BODY.replace("METADATA", text).replace("CODE", str(code)))
        path.chmod(0o755)
        return path

    return write


def cli_of(tmp_path: Path, *argv: str) -> Cli:
    return Cli(parse(parse_table(GLOBAL_FLAGS), ["--config", str(tmp_path), *argv])[0])


def teu(tmp_path: Path, *argv: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "DOCKER_CONFIG": str(tmp_path), **more}
    return subprocess.run([TEU, *argv], capture_output=True, text=True, env=environment, check=False)


def test_the_first_folder_wins(tmp_path: Path, make: Callable[..., Path]) -> None:
    system, user, extra = make("it", "system"), make("it"), make("it", "extra")
    assert plugins.find(cli_of(tmp_path), "it") == str(user)
    (tmp_path / "config.json").write_text(json.dumps({"cliPluginsExtraDirs": [str(extra.parent)]}))
    assert plugins.find(cli_of(tmp_path), "it") == str(extra)
    (found,) = plugins.everything(cli_of(tmp_path))
    assert found.as_json() == {
        **GOOD,
        "Name": "it",
        "Path": str(extra),
        "ShadowedPaths": [str(user), str(system)],
    }
    for path in (user, extra):
        path.unlink()
    assert plugins.find(cli_of(tmp_path), "it") == str(system)
    for name in ("../it", "It", "a-b", "", "1a", "nosuch"):
        assert plugins.find(cli_of(tmp_path), name) == ""


@pytest.mark.parametrize(
    ("name", "metadata", "code", "wrong"),
    [
        ("it", GOOD, 0, ""),
        ("it", {**GOOD, "SchemaVersion": "1.9.9"}, 0, ""),
        ("it", {**GOOD, "SchemaVersion": "2.0.0"}, 0, "must be lower than 2.0.0"),
        ("it", {**GOOD, "SchemaVersion": "x"}, 0, "wrong format"),
        ("it", {**GOOD, "SchemaVersion": ""}, 0, "cannot be empty"),
        ("it", {**GOOD, "Vendor": ""}, 0, "does not define a vendor"),
        ("it", "nonsense", 0, "invalid metadata"),
        ("it", "[1]", 0, "it is no JSON object"),
        ("it", GOOD, 3, "exit status 3"),
        ("ps", GOOD, 0, "duplicates builtin command"),
        ("a-b", GOOD, 0, "did not match"),
    ],
)
def test_what_is_a_plugin(
    tmp_path: Path, make: Callable[..., Path], name: str, metadata: Any, code: int, wrong: str
) -> None:
    make(name, metadata=metadata, code=code)
    (found,) = plugins.everything(cli_of(tmp_path))
    assert wrong in found.wrong and bool(wrong) == bool(found.wrong)
    good, bad = plugins.shown(cli_of(tmp_path))
    assert (good, bad) == (({}, {name: found.wrong}) if wrong else ({"it*": "does it"}, {}))


def test_one_that_cannot_be_started_or_says_nothing(
    tmp_path: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make("plain").chmod(0o644)
    make("slow").write_text("#!/bin/sh\nexec sleep 1000\n")
    monkeypatch.setattr(plugins, "PATIENCE_MS", 100)
    plain, slow = plugins.everything(cli_of(tmp_path))
    assert "cannot be started" in plain.wrong and "exit status -9" in slow.wrong


def test_it_gets_our_words_and_finds_our_daemon(tmp_path: Path, make: Callable[..., Path]) -> None:
    make("it")
    done = teu(tmp_path, "-D", "it", "up", "--x", "y")
    assert done.stdout == f"-D it up --x y\nunix:///run/teu/teud.sock|{tmp_path}|{TEU}\n" and done.returncode == 7
    assert teu(tmp_path, "-H", "unix:///h", "it").stdout.startswith("-H unix:///h it\n|")
    assert teu(tmp_path, "it", TEU_HOST="unix:///t").stdout.startswith("it\nunix:///t|")
    assert teu(tmp_path, "it", DOCKER_HOST="unix:///d").stdout.startswith("it\nunix:///d|")
    # A context is the plugin's to resolve: DOCKER_HOST would go before it.
    assert teu(tmp_path, "it", DOCKER_CONTEXT="far").stdout.startswith("it\n|")
    assert teu(tmp_path, "-c", "far", "it").stdout.startswith("-c far it\n|")
    assert teu(tmp_path, "help", "it").stdout.startswith("help it\n")
    assert teu(tmp_path, "it", "--help").stdout.startswith("it --help\n")
    (tmp_path / "config.json").write_text('{"currentContext": "far"}')
    assert teu(tmp_path, "it").stdout.startswith("it\n|")


def test_buildx_bake_and_the_alias(tmp_path: Path, make: Callable[..., Path]) -> None:
    assert "docker-buildx" in teu(tmp_path, "bake").stderr
    make("buildx")
    assert teu(tmp_path, "-D", "bake", "x").stdout.startswith("-D buildx bake x\n")
    assert teu(tmp_path, "buildx", "du").stdout.startswith("buildx du\n")
    (tmp_path / "config.json").write_text('{"aliases": {"builder": "buildx"}}')
    for words in ("build .", "image build .", "builder build ."):
        assert teu(tmp_path, *words.split()).stdout.startswith("buildx build .\n")
    assert teu(tmp_path, "build", ".", DOCKER_BUILDKIT="0", DOCKER_HOST="unix:///x").returncode == 1
    (tmp_path / "config.json").write_text('{"aliases": {"ps": "x"}}')
    assert 'not allowed to alias "ps"' in teu(tmp_path, "build", ".").stderr


def test_commands_of_ours_ask_no_plugin(tmp_path: Path, make: Callable[..., Path]) -> None:
    make("ps")
    assert "teud.sock" in teu(tmp_path, "ps").stderr
    script = (
        f"import sys; sys.path.insert(0, {str(TEU.parent.parent / 'src')!r}); import teu.cli.main; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", script], capture_output=True, text=True, check=True)
    assert not {"teu.cli.plugins", "teu.cli.hooks", "teu.cli.elsewhere"} & set(done.stdout.split())


def test_what_plugins_offer(tmp_path: Path, make: Callable[..., Path]) -> None:
    make("it")
    assert teu(tmp_path, "__complete", "it", "x", "o").stdout == "one\n"
    assert teu(tmp_path, "__complete", "it", "").stdout == "one\ntwo\n"
    assert "it\n" in teu(tmp_path, "__complete", "i").stdout
    assert re.search(r"^  it\* +does it$", teu(tmp_path, "--help").stdout, re.M)


# hooks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "called", "found"),
    [
        ("run", "run", "run"),
        ("image,image ls", "image ls", "image"),
        ("image ls", "image", ""),
        ("im", "image", ""),
        ("ps,run", "run", "run"),
        ("", "run", ""),
        (None, "run", ""),
    ],
)
def test_which_hook_is_meant(wanted: str | None, called: str, found: str) -> None:
    assert hooks.match(wanted, called) == found


def given(**values: Any) -> Options:
    made = Options()
    made.update(values)
    made.changed = set(values)
    return made


@pytest.mark.parametrize(
    ("variables", "features", "speaks"),
    [
        ({}, {}, False),
        ({}, {"hooks": "true"}, True),
        ({"DOCKER_CLI_HOOKS": "1"}, {}, True),
        ({"DOCKER_CLI_HINTS": "true"}, {}, True),
        ({"DOCKER_CLI_HOOKS": "false"}, {"hooks": "true"}, False),
    ],
)
def test_plugins_speak_when_they_may(
    tmp_path: Path,
    make: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    features: dict[str, str],
    speaks: bool,
) -> None:
    path = make("it")
    Path(f"{path}.answer").write_text('{"Type": 0, "Template": "{{command}} {{flagValue \\"tag\\"}} {{arg . 0}}"}')
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    file = {"plugins": {"it": {"hooks": "image build", "error-hooks": "ps"}}, "features": features}
    (tmp_path / "config.json").write_text(json.dumps(file))
    hooks.after(cli_of(tmp_path), "image build", given(tag="t", pull=True), ["dir"], "")
    hooks.after(cli_of(tmp_path), "ps", given(), [], "")
    assert capsys.readouterr().err == ("\n\033[1mWhat's next:\033[0m\n    build t dir\n" if speaks else "")
    if speaks:
        asked = json.loads(Path(f"{path}.asked").read_text())
        assert asked == {"RootCmd": "image build", "Flags": {"tag": "", "pull": "true"}}
        hooks.after(cli_of(tmp_path), "ps", given(), [], "it failed")
        asked = json.loads(Path(f"{path}.asked").read_text())
        assert asked == {"RootCmd": "ps", "Flags": {}, "CommandError": "it failed"}


@pytest.mark.parametrize(
    "answer", ["", "nonsense", "[]", '{"Type": 1, "Template": "x"}', '{"Type": 0, "Template": "{{arg . 5}}"}']
)
def test_a_hook_that_misbehaves_is_passed_over(
    tmp_path: Path,
    make: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
) -> None:
    Path(f"{make('it')}.answer").write_text(answer)
    monkeypatch.setenv("DOCKER_CLI_HOOKS", "1")
    (tmp_path / "config.json").write_text('{"plugins": {"it": {"hooks": "ps"}, "gone": {"hooks": "ps"}}}')
    hooks.after(cli_of(tmp_path), "ps", given(), [], "")
    assert capsys.readouterr().err == ""


# what is not here -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(elsewhere.INSTEAD))
def test_what_is_not_here_says_what_to_use(tmp_path: Path, make: Callable[..., Path], name: str) -> None:
    make("other")
    with pytest.raises(CommandError, match="Instead, "):
        main.dispatch(["--config", str(tmp_path), *name.split(), "--some", "words"])


@pytest.mark.parametrize("key", ["cliPluginsExtraDirs", "pruneFilters", "plugins", "aliases", "currentContext"])
def test_a_key_of_another_kind_is_told(tmp_path: Path, key: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({key: 1}))
    with pytest.raises(CommandError, match=f"config.json: {key} must be"):
        _ = cli_of(tmp_path).config
