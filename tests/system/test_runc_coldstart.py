# SPDX-License-Identifier: Apache-2.0
"""The packages' quick start (teu.coldstart) is the one that happens; without its parts all goes on as a script."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coldstarts import FOLDER, archive, without
from runc_bundle import BASE, Bundle, new_bundle

from teu.coldstart import archive as archives
from teu.runc.commands import COMMANDS

pytestmark = pytest.mark.needs("packages")

PROGRAM = "/usr/sbin/teu-runc"


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    with new_bundle() as made:
        yield made


def traced(bundle: Bundle, *words: str, calls: str = "%file") -> list[str]:
    """What files a command looks for, or other calls of it."""
    log = bundle.folder / "trace"
    with (bundle.folder / "said").open("wb") as said:  # no pipe: what is created would hold it
        done = subprocess.run(
            ["strace", "-qq", "-e", f"trace={calls}", "-o", log, PROGRAM, "--root", str(bundle.root), *words],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            timeout=60,
        )
    assert done.returncode == 0, (bundle.folder / "said").read_text()
    return log.read_text().splitlines()


def test_no_module_is_looked_for_in_files(bundle: Bundle) -> None:
    id = bundle.detached()
    for words in (("state", id), ("kill", id, "0"), ("delete", "-f", id)):
        calls = traced(bundle, *words)
        assert any(str(archive("teu-runc")) in call for call in calls)
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
    whole = archive("teu-runc").read_bytes()
    archive("teu-runc").write_bytes(archives.archive("teu-runc", package))
    try:
        assert json.loads(bundle.runc("state", id).stdout)["status"] == "running"
        assert id in bundle.runc("list").stdout
        for words in (["pause", id], ["resume", id], ["kill", id, "KILL"], ["delete", "-f", id]):
            bundle.runc(*words)
        # Nor does what goes wrong.
        for words in (["state", id], ["kill", id], ["delete", id], ["exec", id, "true"], ["no-such"], ["start"]):
            failed = bundle.runc(*words)
            assert failed.returncode and failed.stderr
            assert "importlib is wanted" not in failed.stderr, words
        failed = subprocess.run([PROGRAM, "features"], capture_output=True, text=True, timeout=60, check=False)
        assert failed.returncode
        assert "importlib is wanted" in failed.stderr
    finally:
        archive("teu-runc").write_bytes(whole)
    assert json.loads(bundle.runc("features").stdout)["ociVersionMin"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_finds_its_modules(bundle: Bundle, command: str) -> None:
    """Those of the archive, and those for which importlib comes in the middle of another import."""
    refused = bundle.runc(command, "no-such-container", *(["true"] if command == "exec" else []))
    assert refused.returncode
    assert "internal error" not in refused.stderr


def test_a_warning_costs_no_start(bundle: Bundle) -> None:
    """create with something to warn of opens what it opens without."""
    opened = []
    for capabilities in (["CAP_CHOWN"], ["CAP_CHOWN", "CAP_NO_SUCH"]):
        bundle.process["capabilities"] = {"bounding": capabilities}
        bundle.process["args"] = ["true"]
        bundle.write()
        log, id = bundle.folder / f"log{len(capabilities)}", f"warned{len(capabilities)}"
        opened.append(traced(bundle, "--log", str(log), "create", "-b", str(bundle.folder), id))
        bundle.runc("delete", "-f", id)
    assert "CAP_NO_SUCH" in (bundle.folder / "log2").read_text()
    plain, warned = ([call for call in calls if "python" in call or ".so" in call] for calls in opened)
    assert len(warned) == len(plain)
    assert not [call for call in warned if ".py" in call.replace(".cpython-", "")]


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
        whole = archive("teu-runc").read_bytes()
        archive("teu-runc").write_bytes(whole[:8] + b"\0\0\0\0" + whole[12:])
        try:
            slow = bundle.runc("state", id).stdout
        finally:
            archive("teu-runc").write_bytes(whole)
    else:
        (library,) = Path("/usr/lib").glob(
            f"*/libpython{archive('teu-runc').suffix.removeprefix('.cpython-')[0]}.*.so.1.0"
        )
        with without(archive("teu-runc") if missing == "archive" else library):
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
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr


# -- text that is no Unicode: a strict codec that fails in a start that has no codecs would be a crash -----------------

# Where in config.json a text may stand.
PLACES = (
    ("annotations", "k"),
    ("hostname",),
    ("process", "args", 0),
    ("process", "cwd"),
    ("process", "env", 0),
    ("mounts", 0, "destination"),
    ("mounts", 0, "source"),
    ("mounts", 0, "type"),
    ("mounts", 1, "options", 0),
    ("linux", "maskedPaths", 0),
    ("linux", "readonlyPaths", 0),
    ("linux", "cgroupsPath"),
    ("linux", "sysctl", "k"),
    ("linux", "namespaces", 0, "path"),
    ("root", "path"),
    ("process", "apparmorProfile"),
    ("process", "user", "username"),
)


def put(config: Any, place: tuple[Any, ...], value: str) -> None:
    for step, after in itertools.pairwise(place):
        if isinstance(config, dict):
            config = config.setdefault(step, {} if isinstance(after, str) else ["x", "y"])
        else:
            config = config[step]
    config[place[-1]] = value


def ended(done: subprocess.CompletedProcess[bytes]) -> str:
    """What a command said; not ended by a signal, and no fault of its own (a crash of the child is told as one)."""
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert done.returncode >= 0 and done.returncode not in (134, 139), f"{done.args}: {done.returncode} {said}"
    assert "internal error" not in said and "killed by signal" not in said and "Traceback" not in said, said
    return said


def raw(bundle: Bundle, *words: str | bytes, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [PROGRAM, "--root", str(bundle.root), *words]
    options.setdefault("cwd", bundle.folder)
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("value", ["\\ud800", "a\\udfffb", "\\udcff", "\xff", "\0"], ids=ascii)
def test_texts_of_a_specification_that_are_no_unicode(bundle: Bundle, value: str) -> None:
    for place in PLACES:
        bundle.config = copy.deepcopy(BASE)
        put(bundle.config, place, "@@")
        escaped = "\\u0000" if value == "\0" else value
        data = json.dumps(bundle.config).encode().replace(b"@@", escaped.encode("latin-1"))
        (bundle.folder / "config.json").write_bytes(data)
        ended(raw(bundle, "run", "odd"))
        ended(raw(bundle, "delete", "-f", "odd"))


def test_what_is_no_unicode_reaches_the_process_as_with_runc(bundle: Bundle) -> None:
    """Go's JSON makes U+FFFD of it."""
    bundle.process["args"] = ["sh", "-c", 'printf %s "$1" | od -An -tx1', "sh", "@@"]
    text = json.dumps(bundle.config).encode()
    for value in (b"\xff", b"\\ud800"):
        (bundle.folder / "config.json").write_bytes(text.replace(b"@@", value))
        for program in (PROGRAM, "runc"):
            command = [program, "--root", str(bundle.root), "run", "odd"]
            done = subprocess.run(command, cwd=bundle.folder, stdin=subprocess.DEVNULL, capture_output=True, check=True)
            assert done.stdout.split() == [b"ef", b"bf", b"bd"], program


def test_files_of_commands_that_are_no_unicode(bundle: Bundle) -> None:
    id = bundle.detached()
    odd = bundle.folder / "odd.json"
    for data in (b'{"a":"\xff"}', b'{"args":["\\ud800"],"cwd":"/","user":{}}', b"\xff\xfe", b"[" * 100_000):
        odd.write_bytes(data)
        ended(raw(bundle, "exec", "-p", str(odd), id))
        ended(raw(bundle, "update", "-r", str(odd), id))
    ended(raw(bundle, "exec", id, b"ec\xffho"))
    ended(raw(bundle, "exec", "--cwd", b"/\xff", id, "true"))
    ended(raw(bundle, "kill", id, b"\xff"))
    ended(raw(bundle, b"st\xffate", id))
    ended(raw(bundle, "state", b"\xff"))
    ended(raw(bundle, "--log", b"/nonexistent\xff", "list"))
    assert raw(bundle, "exec", id, "echo", b"\xfe").stdout == b"\xfe\n"


def test_a_folder_whose_name_is_no_unicode(bundle: Bundle) -> None:
    """Legal on Linux: the bundle and the state's folder."""
    bundle.process["args"] = ["sleep", "1000"]
    bundle.write()
    folder = os.fsencode(bundle.folder.parent) + b"/odd\xff"
    os.symlink(bundle.folder, folder)
    root = os.fsencode(bundle.folder) + b"/state\xfe"

    def run(*words: str | bytes, cwd: bytes = b"/") -> bytes:
        output = bundle.folder / "said"
        with output.open("wb") as file:
            subprocess.run(
                [PROGRAM, "--root", root, *words],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=60,
                check=True,
            )
        return output.read_bytes()

    try:
        run("create", "-b", folder, "odd")
        run("start", "odd")
        told = json.loads(run("state", "odd"))
        assert told["status"] == "running" and told["bundle"].endswith("/odd\ufffd")
        assert b"odd" in run("list")
        assert json.loads(run("list", "-f", "json"))[0]["id"] == "odd"
        assert run("exec", "odd", "echo", "hello") == b"hello\n"
        run("delete", "-f", "odd")
    finally:
        os.unlink(folder)
        subprocess.run([PROGRAM, "--root", root, "delete", "-f", "odd"], check=False, capture_output=True)


def test_a_record_that_is_no_unicode_stops_nobody(bundle: Bundle) -> None:
    id = bundle.detached()
    other = bundle.detached()
    record = bundle.root / id / "state.json"
    whole = record.read_bytes()
    for value in (b'"\xff"', b'"\\ud800"', b"null", b"[]"):
        record.write_bytes(whole.replace(b'"version":1', b'"version":1,"odd":' + value))
        ended(raw(bundle, "state", id))
        assert other in ended(raw(bundle, "list"))
    record.write_bytes(b"[" * 5000)
    ended(raw(bundle, "state", id))
    assert other in ended(raw(bundle, "list"))
    record.write_bytes(whole)


# -- standard descriptors that are closed: /dev/null, as in Go's programs ----------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors(bundle: Bundle, closed: str) -> None:
    bundle.process["args"] = ["sh", "-c", "ls -l /proc/self/fd; cat; echo done >/seen"]
    bundle.write()
    id = "closed"
    command = f'exec "$0" --root {bundle.root} '

    def run(words: str) -> int:
        line = ["sh", "-c", command + words + closed, PROGRAM]
        return subprocess.run(line, cwd=bundle.folder, capture_output=True, timeout=60, check=False).returncode

    assert run(f"run {id} ") == 0
    assert (bundle.rootfs / "seen").read_text() == "done\n"
    assert run("list ") == 0
    assert run("features ") == 0
    assert run("state none ") == 1


def test_a_hook_may_have_any_time(bundle: Bundle) -> None:
    bundle.config["hooks"] = {"prestart": [{"path": "/bin/true", "timeout": 2**32}]}
    bundle.process["args"] = ["true"]
    bundle.write()
    ended(raw(bundle, "run", "patient"))
