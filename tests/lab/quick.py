# SPDX-License-Identifier: Apache-2.0
"""`./dev unit`, `./dev system`, `./dev check`: what one runs again and again while a line is changed.

    unit     unit tests on this machine, two processes per processor where there are many of them
    system   system tests in a lab that stays up between two runs and has this tree live
    check    everything that must pass before a commit: format, rules, types, unit

The runner of all stages (runner.py) takes its command lines from here, so that a test passes in both or in neither.

The kept lab is an instance of the namespace lab (namespace.py) of this tree's own. Its folder has a file `tree`: what
this tree was when the lab last read it, in two parts. Where the part `machine` has changed (units, configuration, the
lab itself), the lab is booted anew; where `programs` has, its byte code is made and the daemons are restarted.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import places

from lab import namespace, rootfs

SOURCE = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"

# What ruff looks at; src/teu/api is generated.
TREE = ("src", "tests", "bin", "packaging", "benchmarks")
# ruff and mypy are not in Debian 12, or too old there.
PINS = ("ruff==0.17.6", "mypy==2.4.1")
# For each processor: half of a test's time is the wait for another process, for the kernel or for a disk. No more than
# so many of them, for each reads all files before its first test.
PROCESSES, PROCESSES_AT_MOST = 2, 12
# Arguments of pytest that want the terminal, which the processes of pytest-xdist do not have.
ONE_PROCESS = ("-s", "--capture=no", "--pdb", "--trace")

# What a lab reads at its boot, and what its programs read at their start.
MACHINE = ("systemd", "etc", "tests/lab/namespace.py", "tests/lab/rootfs.py")
PROGRAMS = ("src/teu", "bin")
INSTALLED = "/usr/lib/python3/dist-packages/teu"  # where a lab with the tree live shows src/teu
RELOAD = f"""
mount -o remount,bind,rw {INSTALLED} && python3 -m compileall -q {INSTALLED}
mount -o remount,bind,ro {INSTALLED}
systemctl reset-failed
systemctl try-restart teu-containerd.service teud.service teu-buildkitd.service || exit
"""
# Tests look for their containers by name in the journal, where those of the run before would be found as well.
FORGET = "journalctl -q --rotate --vacuum-time=1s"


def instance(use: str) -> str:
    """The name of a lab of this tree's own: two trees on a machine can run their tests at once."""
    return f"{use}-{hashlib.sha256(str(SOURCE).encode()).hexdigest()[:6]}"


# --- the command lines ----------------------------------------


def tools() -> Path:
    """bin/ of a virtual environment with ruff and mypy, made where it is missing."""
    place = rootfs.CACHE / "tools"
    stamp = place / "pins"
    if not stamp.exists() or stamp.read_text() != " ".join(PINS):
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([PYTHON, "-m", "venv", str(place)], check=True)
        subprocess.run([place / "bin/pip", "install", "--quiet", *PINS], check=True)
        stamp.write_text(" ".join(PINS))
    return place / "bin"


def lint_commands(fix: bool = False) -> dict[str, list[str]]:
    """The command line of each part of lint, by its name; with fix those that mend what they can."""
    where = tools()
    typed = sorted(str(path) for path in (SOURCE / "src/teu").iterdir() if path.name not in ("api", "__pycache__"))
    return {
        "format": [str(where / "ruff"), "format", *([] if fix else ["--diff"]), "--quiet", *TREE],
        "rules": [str(where / "ruff"), "check", *(["--fix"] if fix else []), "--quiet", *TREE],
        "types": [str(where / "mypy"), "--python-executable", PYTHON, "--no-error-summary", *typed],
    }


def environment() -> dict[str, str]:
    """The environment of the commands of lint and of the unit tests.

    Unit tests start hundreds of programs of this tree. Where the user wants no byte code beside the source it goes to
    build/, for without any each of those programs would be compiled anew, which is half of all their time. Servers of
    tests have certificates of their own: to read the host's is 25 ms for each connection.
    """
    found = dict(os.environ, MYPYPATH="src", SSL_CERT_FILE=os.devnull, SSL_CERT_DIR=os.devnull)
    if found.pop("PYTHONDONTWRITEBYTECODE", ""):
        found.setdefault("PYTHONPYCACHEPREFIX", str(SOURCE / "build/bytecode"))
    return found


def paths(arguments: Sequence[str]) -> list[str]:
    """Those of pytest's arguments that name files or folders of this tree."""
    return [each for each in arguments if not each.startswith("-") and (SOURCE / each.split("::")[0]).exists()]


def mistyped(arguments: Sequence[str]) -> str:
    """The first of pytest's arguments that looks like a path of this tree and names nothing, or ""."""
    looks = (each for each in arguments if not each.startswith("-") and re.match(r"[\w./-]*(/|\.py\b)", each))
    return next((each for each in looks if not paths([each])), "")


def unit_command(arguments: Sequence[str]) -> list[str]:
    """pytest on the unit tests that arguments name, or on all; folders by two processes for each processor."""
    wanted = paths(arguments)
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "lab.unitplugin"]
    if not any(each.startswith("--basetemp") for each in arguments):
        command += temporary()
    many = not wanted or any((SOURCE / each).is_dir() for each in wanted)
    if many and not any(each in ONE_PROCESS for each in arguments):
        processes = min(PROCESSES * len(os.sched_getaffinity(0)), PROCESSES_AT_MOST)
        command += ["-n", str(processes), "--dist", "loadfile"]
    return [*command, *arguments, *([] if wanted else ["tests/unit"])]


def temporary() -> list[str]:
    """pytest's argument for a folder in memory that is this run's alone; without one where there is no room for it.

    Those of this tree's runs that have ended and left theirs are removed.
    """
    above = places.quickest()
    if above != places.MEMORY:
        return []
    name = instance("teu-unit")
    for left in Path(above).glob(f"{name}-*"):
        if not os.path.exists(f"/proc/{left.name.rpartition('-')[2]}"):
            shutil.rmtree(left, ignore_errors=True)
    return [f"--basetemp={above}/{name}-{os.getpid()}"]


def system_command(arguments: Sequence[str]) -> list[str]:
    """pytest inside a lab, where the tree is at /src; without a path in arguments on all system tests."""
    inside = [f"/src/{each}" if each.startswith("tests/") else each for each in arguments]
    if not any(each.startswith("/src/tests/") for each in inside):
        inside.append("/src/tests/system")
    return [
        *["env", "PYTHONDONTWRITEBYTECODE=1", PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        *["--rootdir=/src", "-c", "/src/pyproject.toml", *inside],
    ]


# --- the kept lab ----------------------------------------


def print_of(parts: Sequence[str], source: Path = SOURCE) -> str:
    """Changes whenever a file of parts is written, made or removed; byte code does not count."""
    digest = hashlib.sha256()
    for part in parts:
        for folder, folders, files in os.walk(source / part):
            folders[:] = sorted(each for each in folders if each != "__pycache__")
            for name in sorted(files):
                _add(digest, os.path.join(folder, name))
        if (source / part).is_file():
            _add(digest, str(source / part))
    return digest.hexdigest()


def _add(digest: hashlib._Hash, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # an editor's own file, gone again
        found = os.stat(path)
        digest.update(f"{path}\0{found.st_mtime_ns}\0{found.st_size}\0{found.st_ino}\n".encode())


def needed(known: dict[str, str], now: dict[str, str]) -> str:
    """What a lab that has read the tree known needs to have read the tree now: boot, restart, or nothing ("")."""
    if known.get("machine") != now["machine"]:
        return "boot"
    return "restart" if known.get("programs") != now["programs"] else ""


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Hold the kept lab against another run: tests look for what others leave."""
    folder = SOURCE / "build"
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"dev: waiting: another ./dev system works in {name}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def prepare(name: str, release: str, fresh: bool) -> None:
    """Bring the kept lab up, with this tree as it is now."""
    began = time.monotonic()
    now = {"machine": print_of(MACHINE), "programs": print_of(PROGRAMS)}
    stamp = namespace.INSTANCES / name / "tree"
    known: dict[str, str] = {}
    if namespace.pid_of(name) and not fresh:
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(stamp.read_text())
    step = needed(known, now)
    if step == "boot":
        namespace.stop(name)
        namespace.start(name, release, SOURCE, dev=True)
        what = f"lab {name} is up"
    else:
        script = f"{RELOAD if step else ''}{FORGET}"
        inside = namespace.enter_command(name, ["sh", "-c", script])
        if subprocess.run(inside, stdin=subprocess.DEVNULL, check=False).returncode:
            raise namespace.LabError(f"the daemons did not start: ./dev lab shell --name {name}, then journalctl -e")
        what = f"the source has changed: the daemons of lab {name} are restarted"
    if step:
        print(f"dev: {what} ({time.monotonic() - began:.1f} s)", file=sys.stderr, flush=True)
        stamp.write_text(json.dumps(now))


# --- the commands ----------------------------------------


def unit(arguments: list[str]) -> NoReturn:
    """`./dev unit`: becomes pytest, so that an interrupt is pytest's own and its fixtures clean up."""
    parser = argparse.ArgumentParser(
        prog="./dev unit",
        usage="./dev unit [PATH[::TEST]...] [ARGUMENTS OF PYTEST]",
        description="Run unit tests on this machine: all of them, or those of the files and folders named.",
        epilog="Several processes share all tests, or those of a folder; one runs a file, or all with -s or --pdb.\n"
        "What tests write is in memory where there is room; it stays there when one has failed, until the next run.\n\n"
        "  ./dev unit tests/unit/oci/test_reference.py\n"
        "  ./dev unit tests/unit/engine -k volume -x",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _, extra = parser.parse_known_args(arguments)
    if wrong := mistyped(extra):
        parser.error(f"there is no {wrong} in this tree")
    command = unit_command(extra)
    os.chdir(SOURCE)
    os.execve(command[0], command, environment())


def system(arguments: list[str]) -> int:
    """`./dev system`: its exit status."""
    parser = argparse.ArgumentParser(
        prog="./dev system",
        usage="./dev system [--fresh] [--release R] PATH[::TEST]... [ARGUMENTS OF PYTEST]\n       ./dev system --stop",
        description="Run system tests in a namespace lab that has this tree live and stays up for the next run.",
        epilog="The lab is booted by the first run. Later ones restart its daemons if the source has changed since,\n"
        "and boot it again if units, configuration or the lab have. Without a PATH that is all. What a failed\n"
        "test left behind may fail others: --fresh boots the lab anew. Tests that need the Debian packages are\n"
        "skipped: ./dev test --only ns runs those.\n\n"
        "  ./dev system tests/system/test_whole_picture.py -k tree\n"
        "  ./dev system --stop",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fresh", action="store_true", help="boot the lab anew before the tests")
    parser.add_argument("--stop", action="store_true", help="end the lab; nothing of it is left")
    parser.add_argument("--release", default="trixie", choices=rootfs.RELEASES, help="default: trixie")
    options, extra = parser.parse_known_args(arguments)
    if wrong := mistyped(extra):
        parser.error(f"there is no {wrong} in this tree")
    name = instance("dev" if options.release == "trixie" else f"dev-{options.release}")
    try:
        with alone(name):
            if options.stop:
                namespace.stop(name)
                return 0
            prepare(name, options.release, options.fresh)
            if not paths(extra):
                print(f"dev: a shell there: ./dev lab shell --name {name}", file=sys.stderr)
                return 0
            return namespace.execute(name, system_command(extra))
    except namespace.LabError as error:
        print(f"dev: {error}", file=sys.stderr)
        return 125


PARTS = ("format", "rules", "types", "unit")


def check(arguments: list[str]) -> int:
    """`./dev check`: 0 if all parts pass, else 1.

    All parts run at once, and each has its output in one piece when it has ended: the types take a processor for
    seconds while the unit tests often wait.
    """
    parser = argparse.ArgumentParser(
        prog="./dev check",
        description="All that must pass before a commit: format, rules (ruff), types (mypy --strict), unit tests.",
        epilog="With --fix the format and what ruff can mend are mended first.",
    )
    parser.add_argument("--only", action="append", default=[], metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--fix", action="store_true", help="mend instead of refusing, where a tool can")
    options = parser.parse_args(arguments)
    only = [part for each in options.only for part in each.split(",")] or list(PARTS)
    if unknown := set(only) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    if options.fix:
        mending = lint_commands(fix=True)
        for part in ("rules", "format"):  # in this order: a mended line may want another format
            _output_of(mending[part])
    began = time.monotonic()
    commands = {**lint_commands(), "unit": unit_command([])}
    failed: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(len(PARTS)) as pool:
        running = {pool.submit(_output_of, commands[part]): part for part in PARTS if part in only}
        for done in concurrent.futures.as_completed(running):
            status, output = done.result()
            part = running[done]
            if status:
                failed.append(part)
                print(output, end="")
            print(f"=== {part}: {'FAILED' if status else 'ok'} after {time.monotonic() - began:.1f} s", flush=True)
    print(f"=== check: {'FAILED: ' + ', '.join(failed) if failed else 'all passed'}", flush=True)
    return 1 if failed else 0


def _output_of(command: list[str]) -> tuple[int, str]:
    """Run command in the tree; its exit status and what it said."""
    done = subprocess.run(
        command,
        cwd=SOURCE,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return done.returncode, done.stdout


def main() -> int:
    """Which of the three, with what; the exit status."""
    return {"unit": unit, "system": system, "check": check}[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
