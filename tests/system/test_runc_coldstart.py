# SPDX-License-Identifier: Apache-2.0
"""The packages' quick start (teu.coldstart) is the one that happens; without its parts all goes on as a script."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from runc_bundle import Bundle, new_bundle

from teu.coldstart import archive as archives

pytestmark = pytest.mark.needs("packages")

PROGRAM = "/usr/sbin/teu-runc"
FOLDER = Path("/usr/lib/teu")


def archive() -> Path:
    (found,) = FOLDER.glob("teu-runc.cpython-*")
    return found


@contextlib.contextmanager
def without(path: Path) -> Iterator[None]:
    aside = path.with_name(path.name + ".aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    with new_bundle() as made:
        yield made


def traced(bundle: Bundle, *words: str, calls: str = "%file") -> list[str]:
    """What files a command looks for, or other calls of it."""
    log = bundle.folder / "trace"
    subprocess.run(
        ["strace", "-qq", "-e", f"trace={calls}", "-o", log, PROGRAM, "--root", str(bundle.root), *words],
        check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    return log.read_text().splitlines()


def test_no_module_is_looked_for_in_files(bundle: Bundle) -> None:
    id = bundle.detached()
    for words in (("state", id), ("kill", id, "0"), ("delete", "-f", id)):
        calls = traced(bundle, *words)
        assert any(str(archive()) in call for call in calls)
        assert not [call for call in calls if ".py" in call.replace(".cpython-", "") or "dist-packages" in call]


def test_what_is_left_out_is_made_up_for(bundle: Bundle) -> None:
    """A regular expression, a text file, a traceback: what needs the rest of Python gets it."""
    id = bundle.detached()
    assert bundle.runc("delete", "-f", "-r", f"^{id}$").stdout == ""
    assert "UID" in bundle.runc("ps", bundle.detached()).stdout
    assert json.loads(bundle.runc("features").stdout)["ociVersionMin"]
    subprocess.run([PROGRAM, "spec", "-b", str(bundle.folder / "rootfs/tmp")], check=True, timeout=60)
    assert (bundle.folder / "rootfs/tmp/config.json").exists()


def test_short_commands_do_not_need_importlib(bundle: Bundle, tmp_path: Path) -> None:
    """Nor what comes with it: an importer that cannot become it serves them, and only them."""
    package = tmp_path / "teu"
    shutil.copytree(Path(archives.__file__).parent.parent, package)
    importer = package / "coldstart/importer.py"
    text = importer.read_text()
    begin = "def become_importlib() -> None:\n"
    assert begin in text
    importer.write_text(text.replace(begin, begin + '    raise OSError("importlib is wanted")\n'))
    id = bundle.detached()
    whole = archive().read_bytes()
    archive().write_bytes(archives.archive("teu-runc", package))
    try:
        assert json.loads(bundle.runc("state", id).stdout)["status"] == "running"
        assert id in bundle.runc("list").stdout
        for words in (["pause", id], ["resume", id], ["kill", id, "KILL"], ["delete", "-f", id]):
            bundle.runc(*words)
        failed = subprocess.run([PROGRAM, "features"], capture_output=True, text=True, timeout=60, check=False)
        assert failed.returncode
        assert "importlib is wanted" in failed.stderr
    finally:
        archive().write_bytes(whole)
    assert json.loads(bundle.runc("features").stdout)["ociVersionMin"]


def test_the_heap_is_asked_for_in_one_page(bundle: Bundle) -> None:
    """A start touches hundreds of pages, each of which costs a fault: where there are huge ones, it is one fault."""
    calls = traced(bundle, "state", bundle.detached(), calls="madvise,brk")
    (asked,) = [index for index, call in enumerate(calls) if "2097152, MADV_HUGEPAGE" in call]
    place = int(calls[asked].partition("(")[2].partition(",")[0], 16)
    assert place % (2 << 20) == 0
    end = max(int(call.rpartition("= ")[2], 16) for call in calls[:asked] if call.startswith("brk"))
    assert end >= place + (2 << 20)


@pytest.mark.parametrize("missing", ["archive", "stale", "libpython"])
def test_without_a_part_it_starts_as_a_script(bundle: Bundle, missing: str) -> None:
    id = bundle.detached()
    quick = bundle.runc("state", id).stdout
    if missing == "stale":
        # byte code of another Python
        whole = archive().read_bytes()
        archive().write_bytes(whole[:8] + b"\0\0\0\0" + whole[12:])
        try:
            slow = bundle.runc("state", id).stdout
        finally:
            archive().write_bytes(whole)
    else:
        (library,) = Path("/usr/lib").glob(f"*/libpython{archive().suffix.removeprefix('.cpython-')[0]}.*.so.1.0")
        with without(archive() if missing == "archive" else library):
            calls = traced(bundle, "state", id)
            slow = bundle.runc("state", id).stdout
            script = f'execve("/usr/bin/python3", ["/usr/bin/python3", "-IS", "{FOLDER}/teu-runc"'
            assert any(script in call for call in calls)
            assert bundle.runc("exec", id, "echo", "hello").stdout == "hello\n"
    assert json.loads(quick) == json.loads(slow)


def test_the_environment_does_not_reach_the_interpreter(bundle: Bundle, tmp_path: Path) -> None:
    """As with python -I: no PYTHON* variable changes what runs."""
    (tmp_path / "os.py").write_text("raise SystemExit('hostile')\n")
    (tmp_path / "re.py").write_text("raise SystemExit('hostile')\n")
    bundle.root.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONHOME": str(tmp_path), "PYTHONSTARTUP": "x"}
    for words in (["list"], ["delete", "-f", "-r", "^nosuch$"]):
        done = subprocess.run(
            [PROGRAM, "--root", str(bundle.root), *words],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
