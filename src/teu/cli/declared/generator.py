# SPDX-License-Identifier: Apache-2.0
"""teu-system-generator: makes units of the files in teu-containers(7). See systemd.generator(7).

systemd runs it at boot, before anything else, and at each daemon-reload, and waits for it. So it imports next to
nothing: of 50 files it makes units in 14 ms, 7 of which are Python's own start. It must not fail: a file with a
mistake costs that file alone. Mistakes go to the journal, or where that is not there yet, to the kernel's log.
"""

from __future__ import annotations

import os
import sys

from teu.cli.declared import files, translate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

JOURNAL = "/run/systemd/journal/socket"
KERNEL_LOG = "/dev/kmsg"
NAME = "teu-system-generator"
# For tests, and for looking at what some files become: folders in the place of FOLDERS, between colons.
FOLDERS_VARIABLE = "TEU_UNIT_DIRS"


def folders() -> tuple[str, ...]:
    given = os.environ.get(FOLDERS_VARIABLE)
    return tuple(given.split(":")) if given else files.FOLDERS


def everything(house_of: tuple[str, ...]) -> tuple[list[translate.Unit], list[files.Problem]]:
    """All units of the files in these folders, and all that is wrong with the files."""
    declared, problems = files.load(house_of)
    house = translate.House(declared)
    units: dict[str, translate.Unit] = {}
    for one in declared.values():
        unit = translate.translate(house, one)
        if unit.name in units:
            one.problems.append(files.Problem(one.path, 0, f"the unit {unit.name} is already that of another file"))
        else:
            units[unit.name] = unit
        problems += one.problems
    return list(units.values()), problems


def log(problems: list[files.Problem]) -> None:
    """Tell the journal. What cannot be told is told again by the unit when it is started."""
    import _socket  # 1 ms, and only where something is wrong

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        for problem in problems:
            fields = f"PRIORITY=3\nSYSLOG_IDENTIFIER={NAME}\nCODE_FILE={problem.path}\nCODE_LINE={problem.line}\n"
            fields += f"MESSAGE={_one_line(problem)}\n"
            connection.sendto(fields.encode("utf-8", "replace"), JOURNAL)
        return
    except OSError:
        pass  # journald has not started yet
    finally:
        connection.close()
    try:
        file = os.open(KERNEL_LOG, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    for problem in problems:
        os.write(file, f"<3>{NAME}: {_one_line(problem)}\n".encode("utf-8", "replace"))
    os.close(file)


def _one_line(problem: files.Problem) -> str:
    return str(problem).replace("\n", " ")


def write(folder: str, units: list[translate.Unit]) -> None:
    """Write the units and their links below the generator's folder."""
    for unit in units:
        path = f"{folder}/{unit.name}"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(file, unit.text.encode("utf-8", "surrogateescape"))
        finally:
            os.close(file)
        for link in unit.links:
            place, _, _ = f"{folder}/{link}".rpartition("/")
            try:
                if place != folder:
                    os.makedirs(place, 0o755, exist_ok=True)
                os.symlink(f"../{unit.name}" if place != folder else unit.name, f"{folder}/{link}")
            except FileExistsError:
                pass  # two files ask for one link: systemd would take the first as well


def main() -> NoReturn:
    """Called by systemd with three folders, normal, early and late: units belong into the first."""
    code = 0
    try:
        if len(sys.argv) < 2:
            sys.stderr.write(f"usage: {NAME} FOLDER [EARLY LATE]\n")
            os._exit(2)
        units, problems = everything(folders())
        write(sys.argv[1], units)
        if problems:
            log(problems)
    except OSError as error:
        sys.stderr.write(f"{NAME}: {error}\n")
        code = 1
    os._exit(code)
