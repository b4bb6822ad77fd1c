# SPDX-License-Identifier: Apache-2.0
"""`compose-units`: the declared files and the target of a compose project, written, shown and removed.

    /etc/teu/containers/PROJECT/PROJECT-*.container ...     see composed.py
    /etc/systemd/system/PROJECT.target

The compose files are read by compose itself, so what it reads is what `compose up` would run. What is written has a
mark in its first line; nothing without the mark of this project is replaced or removed.
"""

from __future__ import annotations

import os

from teu.cli import plugins
from teu.cli.command import PROGRAM, Cli, Command
from teu.cli.declared import files, translate
from teu.cli.declared.composed import VARIABLES, Project, mark
from teu.cli.declared.validate import wrong_options
from teu.cli.errors import CommandError
from teu.cli.options import Options
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")


def document(cli: Cli, options: Options, operands: list[str]) -> dict[str, Any]:
    """The project as compose has it. CommandError where compose is not there, or refuses the files."""
    path = plugins.find(cli, "compose")
    if not path:
        raise CommandError("compose-units reads the files by docker's compose: install it: apt install docker-compose")
    words = [path, "compose"]
    for option, values in (
        ("--file", operands),
        ("--profile", options["profile"]),
        ("--env-file", options["env-file"]),
        ("--project-name", [options["project-name"]] if options["project-name"] else []),
    ):
        words += [f"{option}={value}" for value in values]
    status, answer = output([*words, "config", "--format=json"], plugins.environment(cli, [PROGRAM]))
    if status:
        raise CommandError(f"compose could not read the project: exit status {status}", status)
    found = jsontext.loads(answer)
    if not isinstance(found, dict) or not found.get("name"):
        raise CommandError(f"{path} gave no project: compose-units needs docker-compose 2")
    return found


def output(words: list[str], environment: dict[str, str]) -> tuple[int, bytes]:
    """Run a program: (exit status, what it wrote)."""
    read, write = os.pipe()
    try:
        child = os.posix_spawn(words[0], words, environment, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)])
    except OSError as error:
        os.close(read)
        raise CommandError(f"cannot run {words[0]}: {error.strerror}") from None
    finally:
        os.close(write)
    with open(read, "rb", 0) as file:
        text = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def sources(operands: list[str]) -> list[str]:
    """The compose files, as absolute paths; those that compose itself finds where none is given."""
    if operands:
        return [os.path.abspath(path) for path in operands]
    place = os.getcwd()
    while True:
        for name in DEFAULT_NAMES:
            if os.path.exists(f"{place}/{name}"):
                return [f"{place.rstrip('/')}/{name}"]
        if place == "/":
            return []
        place = os.path.dirname(place)


def place_of(paths: list[str], path: tuple[str, ...]) -> str:
    """FILE:LINE of a key of the document, in the last file that has all of it; only FILE where none is so plain."""
    best, where = 0, paths[0] if paths else "compose"
    for name in paths:
        try:
            with open(name, encoding="utf-8") as file:
                lines = file.read().split("\n")
        except (OSError, UnicodeDecodeError):
            continue
        depth, line = deepest(lines, path)
        if depth >= best and depth:
            best, where = depth, f"{name}:{line}"
    return where


def deepest(lines: list[str], path: tuple[str, ...]) -> tuple[int, int]:
    """How much of a path of keys stands in a file in the block style, and the line of the last of those keys."""
    depth, found, indents = 0, 0, [-1]
    for number, raw in enumerate(lines, 1):
        text = raw.strip()
        indent = len(raw) - len(raw.lstrip())
        if not text or text[0] == "#":
            continue
        if indent <= indents[-1]:
            break  # the part is over in which the next key would be
        key = text.partition(":")[0].strip("\"'") if ":" in text else ""
        if depth < len(path) and key == path[depth] and (len(indents) < 3 or indent > indents[-1]):
            depth, found = depth + 1, number
            indents.append(indent)
        if depth == len(path):
            break
    return depth, found


class Writer:
    """What is to be at some paths, and what is there."""

    def __init__(self, cli: Cli, project: str) -> None:
        self.cli = cli
        self.mark = f"# {mark(project)}"

    def there(self, path: str) -> str | None:
        """The text of a file of ours; None where there is none. CommandError for one that is somebody else's."""
        try:
            with open(path, encoding="utf-8", newline="") as file:
                text = file.read()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"cannot read {path}: {error}") from None
        if not text.startswith(self.mark):
            raise CommandError(f"{path} is not of this project: it does not begin with {self.mark!r}; move it away")
        return text

    def differences(self, wanted: dict[str, str | None]) -> list[str]:
        """The paths that would change, each with its difference told. None: the file is to go."""
        import difflib  # 5 ms, for this command alone

        changed = []
        for path, text in sorted(wanted.items()):
            before = self.there(path)
            if before == text:
                continue
            changed.append(path)
            old, new = ((one or "").splitlines() for one in (before, text))
            names = ("/dev/null" if before is None else path, "/dev/null" if text is None else path)
            self.cli.print("\n".join(difflib.unified_diff(old, new, *names, lineterm="")))
        return changed

    def write(self, path: str, text: str | None) -> None:
        """Put a file in its place, whole or not at all, or take it away."""
        folder, _, name = path.rpartition("/")
        try:
            if text is None:
                os.unlink(path)
                return
            os.makedirs(folder, 0o755, exist_ok=True)
            aside = f"{folder}/.{name}.new"
            mode = 0o600 if name.endswith(f".{VARIABLES}") else 0o644
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "wb", 0) as file:
                file.write(text.encode())
                os.fsync(file.fileno())
            os.rename(aside, path)
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror}") from None

    def ours(self, folder: str) -> list[str]:
        """The files of this project in a folder."""
        found = []
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            path = f"{folder}/{name}"
            if name.rpartition(".")[2] in (*files.KINDS, VARIABLES) and os.path.isfile(path):
                with open(path, "rb", 0) as file:
                    if file.read(len(self.mark.encode())) == self.mark.encode():
                        found.append(path)
        return found


def mistakes(project: Project) -> list[str]:
    """What the generator would say of the files, which is a fault of compose-units or a value that none can have."""
    declared = {}
    for name, text in project.files.items():
        if name.endswith(f".{VARIABLES}"):
            continue
        one = declared[name] = files.Declared(name, name)
        one.parse(text, name)
    house = translate.House(declared)
    for one in declared.values():
        made = translate.translate(house, one)
        wrong, word = wrong_options(made.command) if not one.problems else ("", "")
        if wrong:
            one.problems.append(files.Problem(one.path, 0, f"{word}: {wrong}"))
    return [str(problem) for one in declared.values() for problem in one.problems]


def compose_units(cli: Cli, options: Options, operands: list[str]) -> int:
    if options["remove"] and options["project-name"] and not operands:
        name = options["project-name"]
        wanted: dict[str, str | None] = {}
    else:
        paths = sources(operands)
        project = Project(document(cli, options, operands), ", ".join(paths) or "compose")
        name, wanted = project.name, {}
        if not options["remove"]:
            told = [f"{place_of(paths, path)}: {'.'.join(path)}: {reason}" for path, reason in project.problems]
            told = told or mistakes(project)
            if told:
                cli.warn("\n".join(told))
                return 1
            wanted = {f"{options['directory']}/{name}/{file}": text for file, text in project.files.items()}
            wanted[f"{options['unit-directory']}/{name}.target"] = project.target
    writer = Writer(cli, name)
    folder, target = f"{options['directory']}/{name}", f"{options['unit-directory']}/{name}.target"
    for path in [*writer.ours(folder), target]:
        if path not in wanted and os.path.exists(path):
            wanted[path] = None
    changed = writer.differences(wanted)
    if options["dry-run"] or not changed:
        return 0
    for path in changed:
        writer.write(path, wanted[path])
    if options["remove"]:
        try:
            os.rmdir(folder)
        except OSError:
            pass  # drop-ins and files of others stay
        cli.warn(f"the units stay until they are stopped: systemctl stop {name}.target && systemctl daemon-reload")
    else:
        cli.warn(f"next: systemctl daemon-reload && systemctl enable --now {name}.target")
    return 0


COMMANDS = {
    "compose-units": Command(
        compose_units,
        "[OPTIONS] [FILE...]",
        0,
        None,
        """
-d --directory       string=/etc/teu/containers  Where declared files go, into a folder of the project's name
-n --dry-run         bool    Only show what would change
   --env-file        list    Read variables for the compose files from a file
   --profile         list    Take the services of this profile as well
-p --project-name    string  The name of the project
   --remove          bool    Take the files of the project away
   --unit-directory  string=/etc/systemd/system  Where the target goes
""",
    ),
}
