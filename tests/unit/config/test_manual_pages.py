# SPDX-License-Identifier: Apache-2.0
"""Every flag of the daemons, the shim and the runtime is in its manual page, and every page has what a page must.
(Those of teu and teu-ctr: tests/unit/cli, tests/unit/ctr.)"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[3]


def page(name: str) -> str:
    """The page's text without what is only for the formatter."""
    text = (TREE / "man" / name).read_text()
    return re.sub(r"\\f[A-Z]|^\.\w+ ?", "", text.replace("\\-", "-"), flags=re.MULTILINE)


def words(name: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])-{1,2}\w[\w-]*", page(name)))


@pytest.mark.parametrize("daemon", ["teud", "teu-containerd", "teu-buildkitd"])
def test_flags_of_the_daemons(daemon: str) -> None:
    shown = subprocess.run([TREE / "bin" / daemon, "--help"], capture_output=True, text=True, check=True).stdout
    flags = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", shown.partition("options:")[2]))
    assert "--validate" in flags
    assert flags - {"-H"} <= words(f"{daemon}.8") | {"-d"} and ("-H" in words(f"{daemon}.8")) == ("-H" in flags)


def test_flags_of_the_runtime() -> None:
    from teu.runc.commands import COMMANDS
    from teu.runc.main import GLOBAL_FLAGS

    documented, text = words("teu-runc.8"), page("teu-runc.8")
    assert {f"--{name}" for name in GLOBAL_FLAGS} <= documented
    for command, module in COMMANDS.items():
        assert re.search(rf"\b{command}\b", text), f"{command} is in no page"
        missing = {f"--{name}" for name in importlib.import_module(module).FLAGS} - documented
        assert not missing, f"{command}: {', '.join(sorted(missing))}"


def test_flags_of_the_shim() -> None:
    from teu.shim.main import _FLAGS

    documented = words("containerd-shim-teu-v2.8")
    assert {f"-{name}" for name in _FLAGS} <= documented
    for action in ("start", "delete"):
        assert re.search(rf"\b{action}\b", page("containerd-shim-teu-v2.8"))


def test_options_of_networks() -> None:
    from teu.engine.networks import options, requests

    text = page("teu-networks.7")
    for option in (*options._BRIDGE, requests.OPTION_INTERFACE, requests.OPTION_SYSCTLS, *options.ROUTER.values()):
        assert option in text, option
    for mode in options.MODES:
        assert re.search(rf"^{mode}\b", text, re.MULTILINE), mode


def test_options_of_logs() -> None:
    from teu.cli.completion import LOG_OPTIONS
    from teu.engine.logs import registry

    text = page("teu-logs.7")
    known = set().union(*(registry.known(kind) for kind in registry.DRIVERS))
    for option in known:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), option
    for kind in registry.DRIVERS:
        assert re.search(rf"^{kind}$", text, re.MULTILINE), kind
    assert set(LOG_OPTIONS.split()) == known


def test_keys_of_declared_files() -> None:
    """Each kind of file has a page with all keys, those that are refused with the reason that an operator reads."""
    from teu.cli.declared import keys

    for kind, (section, table) in keys.SECTIONS.items():
        used, _, refused = page(f"teu.{kind}.5").partition("REFUSED KEYS")
        assert f"[{section}]" in used
        for key, how in table.items():
            if how.startswith("no: "):
                assert f"\n{key}=\n" in refused and how[4:][1:] in " ".join(refused.split()), f"{kind}: {key}"
            else:
                assert f"\n{key}=\n" in used, f"{kind}: {key}"


def test_the_page_of_kubernetes_names_keys_that_there_are(tmp_path: Path) -> None:
    from teu.config import load
    from teu.containerd.config import KEYS

    text = page("teu-kubernetes.7")
    written = tmp_path / "containerd.yaml"
    written.write_text("cri:\n  enabled: true\n")
    settings = load(written, KEYS)
    assert settings["cri"]["enabled"] is True and "\ncri:\n  enabled: true\n" in text
    named = set(re.findall(r"cri\.([a-z-]+)", text))
    assert named and named <= settings["cri"].keys()
    for key in ("networks", "registries"):
        assert settings["cri"][key] in text
    assert all(folder in text for folder in settings["cri"]["network-plugins"])


@pytest.mark.parametrize("name", sorted(path.name for path in (TREE / "man").glob("*.[1578]")))
def test_a_page_is_whole_and_clean(name: str) -> None:
    text = (TREE / "man" / name).read_text()
    for section in (".SH NAME", ".SH SYNOPSIS" if name[-1] in "18" else ".SH", ".SH DESCRIPTION", ".SH SEE ALSO"):
        assert section in text, section
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", TREE / "man" / name],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )
    assert not done.stderr


def test_a_page_that_is_made_has_one_text() -> None:
    """Of two entries with one key the first would be lost."""
    for node in ast.walk(ast.parse((TREE / "man/generate").read_text())):
        if isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            assert len(set(keys)) == len(keys), f"line {node.lineno}: {max(keys, key=keys.count)} stands twice"
