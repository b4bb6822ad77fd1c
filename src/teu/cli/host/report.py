# SPDX-License-Identifier: Apache-2.0
"""`system check`: every check, one line each, and what to do below those that found something."""

from __future__ import annotations

import os
import subprocess

from teu.cli.command import Cli, Command
from teu.cli.errors import CommandError
from teu.cli.host import control, kernel, quickstart, security
from teu.cli.host.finding import ERROR, LEVELS, OK, WARNING, Finding
from teu.cli.options import Options
from teu.oci import jsontext
from teu.trust import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKS = (
    control.systemd,
    kernel.version,
    control.cgroups,
    kernel.namespaces,
    kernel.options,
    kernel.storage,
    security.seccomp,
    security.confinement,
    security.firewall,
    control.sockets,
    quickstart.quick_start,
)
DAEMONS = {"teud.yaml": "/usr/sbin/teud", "containerd.yaml": "/usr/sbin/teu-containerd"}


def look(root: str = "") -> list[Finding]:
    """All findings, in the order of the checks. `root`: a folder in place of this host's root."""
    found = [finding for check in CHECKS for finding in check(root)]
    return found if root else [*found, *configuration(), *policy()]


def configuration() -> Iterator[Finding]:
    """Do the daemons take their files? They check them themselves."""
    for name, program in DAEMONS.items():
        if not os.access(program, os.X_OK):
            continue
        done = subprocess.run([program, "--validate"], capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            text = f"{os.path.basename(program)} refuses it: {said}"
            yield Finding(ERROR, name, text, f"mend the file; `{os.path.basename(program)} --validate` checks it")
        else:
            yield Finding(OK, name, "is valid")


def policy(file: str = files.FILE) -> Iterator[Finding]:
    """Where there is a policy for images: does it say what it is to say, and are its keys keys?"""
    if not files.configured(file):
        return
    from teu.config import ConfigError  # these and the first key take 30 ms: for hosts with a policy
    from teu.trust import errors, verify
    from teu.trust import policy as policies

    name = os.path.basename(file)
    try:
        rules = policies.read(file).rules
    except ConfigError as error:
        text = f"no image of a registry is let in, as it has a mistake: {error}"
        yield Finding(ERROR, name, text, "mend the file; see teu-policy(5)")
        return
    wrong = False
    for rule in rules:
        try:
            verify.Judge(rule)
        except errors.TrustError as error:
            wrong = True
            yield Finding(ERROR, name, f"{rule.place}: lets no image in: {error}", "mend that; see teu-policy(5)")
    if not wrong:
        yield Finding(OK, name, f"is valid, with {len(rules) - 1} scope{'' if len(rules) == 2 else 's'}")


def check(cli: Cli, options: Options, operands: list[str]) -> int:
    if options["format"] not in ("", "json"):
        raise CommandError(f'--format takes "json" here, not "{options["format"]}"', 125)
    found = look()
    worst = max((LEVELS.index(finding.level) for finding in found), default=0)
    shown = [finding for finding in found if not options["quiet"] or finding.level != OK]
    if options["format"] == "json":
        for finding in shown:
            names = ("level", "subject", "text", "remedy")
            cli.print(jsontext.dumps({name.capitalize(): getattr(finding, name) for name in names}))
        return int(LEVELS[worst] == ERROR)
    width = max((len(finding.subject) for finding in shown), default=0)
    for finding in shown:
        cli.print(f"{finding.level:<8} {finding.subject:<{width}}  {finding.text}")
        if finding.remedy:
            cli.print(f"{'':<8} {'':<{width}}  do: {finding.remedy}")
    if not options["quiet"]:
        count = {level: sum(finding.level == level for finding in found) for level in LEVELS}
        cli.print(
            "\nContainers cannot run here as they should."
            if count[ERROR]
            else f"\nContainers can run here; {count[WARNING]} of the findings are for some of them."
            if count[WARNING]
            else "\nNothing stands in the way."
        )
    return int(LEVELS[worst] == ERROR)


COMMANDS = {
    "system check": Command(
        check,
        "[OPTIONS]",
        0,
        0,
        """
   --format  string  `json`: an object for each finding, with Level, Subject, Text and Remedy
-q --quiet   bool    Show only what stands in the way
""",
    ),
}
