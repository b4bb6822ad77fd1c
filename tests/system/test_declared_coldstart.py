# SPDX-License-Identifier: Apache-2.0
"""The quick start (teu.coldstart) of the generator: it is the one that happens, as early in a boot as systemd asks for
it; without its parts, and for every file, what the script writes is written."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from coldstarts import FOLDER, archive, without

pytestmark = pytest.mark.needs("packages")

PROGRAM = "/usr/lib/systemd/system-generators/teu-system-generator"
SCRIPT = ["/usr/bin/python3", "-IS", str(FOLDER / "teu-system-generator")]

PLAIN = (
    "[Container]\nImage=busybox\nVolume=/srv:/srv:ro\nEnvironment=A=1 'B=2 3'\n[Install]\nWantedBy=multi-user.target\n"
)
# Whatever may be in the folders, and whoever asks for more of Python than the start has.
ODD: dict[str, bytes] = {
    "plain.container": PLAIN.encode(),
    "letters.container": "[Unit]\nDescription=Größe \ufffd 한\n[Container]\nImage=busybox\nExec=\\u00e9 ä\n".encode(),
    "journal.container": b"[Container]\nImage=busybox\nVolume=/run/systemd/journal:/run/systemd/journal\n",
    "deep.container": b"[Container]\nImage=busybox\n[Install]\nAlias=a/b/c/deep.service\n",
    "latin.container": b"[Container]\nImage=busybox\nExec=\xff\n",
    "halves.container": b"[Container]\nImage=busybox\nExec=\\ud800\n",
    "mistake.container": b"[Container]\nImage=busybox\nImagination=1\n",
    "unclosed.container": b"[Container]\nImage=busybox\nExec='a\n",
    "big.container": b"[Container]\nImage=busybox\n" + b"Label=a=%n\n" * 20_000,
    "empty.container": b"",
    "t@.container": b"[Container]\nImage=busybox\n[Install]\nWantedBy=a.target\nDefaultInstance=7\n",
    "t@.container.d/10.conf": b"[Container]\nLabel=all=1\n",
    "below/web.pod": b"[Pod]\nPublishPort=80:80\n",
    "below/in.container": b"[Container]\nImage=i.image\nPod=web.pod\n",
    "below/i.image": b"[Image]\nImage=busybox\n",
    "n.network": b"[Network]\nSubnet=10.9.0.0/24\n",
    "v.volume": b"[Volume]\n",
    "b.build": b"[Build]\nImageTag=x\nFile=./Dockerfile\n",
    "x.kube": b"[Kube]\n",
    "odd\udcff.container": b"[Container]\nImage=busybox\n",
}


def declared(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "in"


def run(command: list[str], files: Path, target: Path) -> tuple[subprocess.CompletedProcess[bytes], dict[str, bytes]]:
    """Have units written: what it said, and every file and link."""
    target.mkdir()
    done = subprocess.run(
        [*command, target, target, target],
        env={"TEU_UNIT_DIRS": os.fsdecode(files)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done, tree(target)


def tree(target: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(target.rglob("*")):
        name = str(path.relative_to(target))
        if path.is_symlink():
            found[name] = b"-> " + os.fsencode(os.readlink(path))
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def traced(command: list[str], tmp_path: Path) -> list[str]:
    log = tmp_path / "trace"
    run(
        ["strace", "-qq", "-s", "200", "-e", "trace=%file", "-o", str(log), *command],
        tmp_path / "in",
        tmp_path / "traced",
    )
    shutil.rmtree(tmp_path / "traced")
    return log.read_text().splitlines()


def test_no_module_is_looked_for_in_files(tmp_path: Path) -> None:
    """Nor is Python's start completed: it would look for its library. This is what 50 files in 20 ms stand on."""
    declared(tmp_path, {name: ODD[name] for name in ("plain.container", "letters.container", "journal.container")})
    calls = traced([PROGRAM], tmp_path)
    assert any(str(archive("teu-system-generator")) in call for call in calls)
    calls = [
        call for call in calls if str(archive("teu-system-generator")) not in call and '"/usr/bin/python3"' not in call
    ]
    assert not [call for call in calls if "python" in call and "libpython" not in call]
    assert "CONTAINER_NAME" in run([PROGRAM], tmp_path / "in", tmp_path / "out")[1]["journal.service"].decode()


def test_a_file_is_opened_once(tmp_path: Path) -> None:
    """Of each declared file and each unit: nothing asks for it twice."""
    declared(tmp_path, {f"web{number}.container": PLAIN.encode() for number in range(50)})
    calls = traced([PROGRAM], tmp_path)
    for name in ("web7.container", "web7.service"):
        assert len([call for call in calls if re.search(rf"[/\"]{name}\"", call) and "symlink" not in call]) == 1, name
    made = [call for call in calls if call.startswith("mkdir") and "multi-user.target.wants" in call]
    assert len(made) == 1


def test_whatever_the_files_are_the_script_writes_the_same(tmp_path: Path) -> None:
    files = declared(tmp_path, ODD)
    quick, units = run([PROGRAM], files, tmp_path / "quick")
    slow, same = run(SCRIPT, files, tmp_path / "slow")
    assert (
        (quick.returncode, quick.stdout, quick.stderr) == (slow.returncode, slow.stdout, slow.stderr) == (0, b"", b"")
    )
    assert {name: text for name, text in units.items() if same.get(name) != text} == {}
    assert set(units) == set(same)
    assert "Größe \ufffd 한" in units["letters.service"].decode()
    for name in ("latin", "halves", "mistake", "unclosed", "empty"):
        assert f"system validate --quiet {files}/{name}.container" in units[f"{name}.service"].decode()
    assert units["a/b/c/deep.service"] == b"-> ../deep.service"
    assert units["a.target.wants/t@7.service"] == b"-> ../t@.service"


def test_what_goes_wrong_is_said(tmp_path: Path) -> None:
    files = declared(tmp_path, {"plain.container": PLAIN.encode()})
    for command in ([PROGRAM], SCRIPT):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (2, "usage: teu-system-generator FOLDER [EARLY LATE]\n")
        done = subprocess.run(
            [*command, tmp_path / "no\udcff"],
            env={"TEU_UNIT_DIRS": str(files)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1 and "No such file or directory: '" in done.stderr


@pytest.mark.parametrize("missing", ["archive", "stale", "libpython"])
def test_without_a_part_it_starts_as_a_script(tmp_path: Path, missing: str) -> None:
    files = declared(tmp_path, ODD)
    _, quick = run([PROGRAM], files, tmp_path / "quick")
    if missing == "stale":
        whole = archive("teu-system-generator").read_bytes()
        archive("teu-system-generator").write_bytes(whole[:8] + b"\0\0\0\0" + whole[12:])
        try:
            done, slow = run([PROGRAM], files, tmp_path / "slow")
        finally:
            archive("teu-system-generator").write_bytes(whole)
    else:
        (library,) = Path("/usr/lib").glob(
            f"*/libpython{archive('teu-system-generator').suffix.removeprefix('.cpython-')[0]}.*.so.1.0"
        )
        with without(archive("teu-system-generator") if missing == "archive" else library):
            calls = traced([PROGRAM], tmp_path)
            done, slow = run([PROGRAM], files, tmp_path / "slow")
        assert any(f'execve("/usr/bin/python3", ["/usr/bin/python3", "-IS", "{SCRIPT[2]}"' in call for call in calls)
    assert done.returncode == 0 and slow == quick


# As it is before local-fs.target, and less: the root file system and /usr, which cannot be written; nothing in /var and
# /proc, no variables, no descriptors.
EARLY = """
set -e
mount --make-rprivate /
mount --bind "$3" "$3"
for folder in /var /home /root /srv /proc; do mount -t tmpfs -o ro none $folder; done
mount -o remount,bind,ro /
if touch /usr/lib/teu/here 2>/dev/null; then exit 9; fi
exec env -i TEU_UNIT_DIRS="$1" "$2" "$3" "$3" "$3" <&- >&- 2>&-
"""


@pytest.mark.parametrize("missing", ["nothing", "archive"])
def test_it_works_before_any_file_system_is_there(tmp_path: Path, missing: str) -> None:
    files = declared(tmp_path, ODD)
    _, quick = run([PROGRAM], files, tmp_path / "quick")
    target = tmp_path / "early"
    target.mkdir()
    with without(archive("teu-system-generator")) if missing == "archive" else contextlib.nullcontext():
        early = ["unshare", "--mount", "sh", "-c", EARLY, "sh", str(files), PROGRAM, str(target)]
        done = subprocess.run(early, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert tree(target) == quick


def test_the_environment_does_not_reach_the_interpreter(tmp_path: Path) -> None:
    """As with python -I, though a problem (for the journal) and a deep link want more of Python."""
    files = declared(tmp_path, ODD)
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in ("os", "posixpath", "_socket", "encodings", "codecs", "socket", "stat"):
        (hostile / f"{name}.py").write_text("raise SystemExit('hostile')\n")
    target = tmp_path / "out"
    target.mkdir()
    done = subprocess.run(
        [PROGRAM, target],
        env={"TEU_UNIT_DIRS": str(files), "PYTHONPATH": str(hostile), "PYTHONHOME": str(hostile)},
        cwd=hostile,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (target / "plain.service").exists()
