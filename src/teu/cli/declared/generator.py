# SPDX-License-Identifier: Apache-2.0
"""teu-system-generator: makes units of the files in teu-containers(7). See systemd.generator(7).

systemd runs it at boot, before anything else, and at each daemon-reload, and waits for it. So it imports next to
nothing, and has a quick start (teu.coldstart): of 50 files it makes units in 17 ms, where `python3 -IS -c pass` takes
12 (benchmarks/RESULTS.md). It needs /usr, and the folders that it reads and writes. It must not fail: a file with a
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


def write(folder: str, units: list[translate.Unit]) -> list[OSError]:
    """Write the units and their links below the generator's folder. What could not be written costs one unit, or one
    link, and is returned."""
    failed, written = [], []
    for unit in units:
        try:
            file = os.open(f"{folder}/{unit.name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                os.write(file, unit.text.encode("utf-8", "surrogateescape"))
            finally:
                os.close(file)
            written.append(unit)
        except OSError as error:  # a ServiceName= that no file can have, for one
            failed.append(error)
    made = set()
    for unit in written:  # now that a link's folder cannot take the place of a unit
        for link in unit.links:
            place, _, _ = link.rpartition("/")
            try:
                if place and place not in made:
                    _make_folder(f"{folder}/{place}")
                    made.add(place)
                os.symlink(f"../{unit.name}" if place else unit.name, f"{folder}/{link}")
            except FileExistsError:
                pass  # two files ask for one link: systemd would take the first as well
            except OSError as error:
                failed.append(error)
    return failed


def _make_folder(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass
    except FileNotFoundError:  # a link deep down, which systemd will not look at
        os.makedirs(path, 0o755, exist_ok=True)


def main() -> NoReturn:
    """Called by systemd with three folders, normal, early and late: units belong into the first."""
    code = 0
    try:
        if len(sys.argv) < 2:
            os.write(2, f"usage: {NAME} FOLDER [EARLY LATE]\n".encode("ascii", "replace"))
            os._exit(2)
        units, problems = everything(folders())
        for failure in write(sys.argv[1], units):
            os.write(2, f"{NAME}: {failure}\n".encode("utf-8", "replace"))
            code = 1
        if problems:
            log(problems)
    except OSError as error:
        os.write(2, f"{NAME}: {error}\n".encode("utf-8", "replace"))
        code = 1
    os._exit(code)
