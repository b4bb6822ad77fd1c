# SPDX-License-Identifier: Apache-2.0
"""How long the parts of a whole run take, for the runner (runner.py), which starts the longest first and deals the
files of a stage out evenly, and for the processes that share the unit tests (unitplugin.py).

seconds.json beside this file has the seconds of each file of tests and of each stage that is not dealt out, on an idle
machine with two processors. A file that it does not know is taken for as long as its text is. A number that is
wrong makes a run longer and nothing else. After a whole run on an idle machine

    PYTHONPATH=tests python3 -m lab.seconds

writes down what build/test says; what had no part in that run keeps its number.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lab.quick import SOURCE

TABLE = Path(__file__).with_name("seconds.json")
RESULTS = SOURCE / "build/test"
DEALT = ("ns", "lab")  # stages whose files are in the table in place of themselves


def load() -> dict[str, float]:
    """{stage or path below the tree: seconds}."""
    table: dict[str, float] = json.loads(TABLE.read_text())
    return table


def of_files(paths: Iterable[str], table: dict[str, float]) -> dict[str, float]:
    """The seconds of each of those files; of one that is not in the table by its size, as those that are."""
    size = {path: (SOURCE / path).stat().st_size for path in paths}
    known = [path for path in size if path in table]
    rate = sum(table[path] for path in known) / sum(size[path] for path in known) if known else 1e-3
    return {path: table.get(path, rate * size[path]) for path in size}


def measured(results: Path) -> dict[str, float]:
    """What the folder of a run's results says, in the form of the table."""
    found: Counter[str] = Counter()
    for stage in (*DEALT, "unit"):
        for junit in (*results.glob(f"{stage}*/junit.xml"), *results.glob(f"{stage}*.xml")):
            for case in ElementTree.parse(junit).getroot().iter("testcase"):
                path = case.get("classname", "").replace(".", "/") + ".py"
                if (SOURCE / path).is_file():
                    found[path] += float(case.get("time", 0))
    for file in results.glob("*.json"):
        told = json.loads(file.read_text())
        if told["stage"] not in (*DEALT, "images"):
            found[told["stage"]] = told["seconds"]
    return {name: max(0.1, round(seconds, 1)) for name, seconds in found.items()}


def main() -> None:
    """Bring the table up to date with the last run; files that have gone leave it."""
    table = load() | measured(RESULTS)
    kept = {name: table[name] for name in sorted(table) if "/" not in name or (SOURCE / name).is_file()}
    TABLE.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
