# SPDX-License-Identifier: Apache-2.0
"""`teu-ctr` command lines, drawn from the program's own tables, on a namespace of their own."""

from __future__ import annotations

import os
import random
import subprocess
from typing import Any

from fuzz import answers, mutate, programs
from fuzz.frame import Run, target

LIMIT = 25.0
LASTING = {
    "events",
    "run",
    "tasks attach",
    "tasks exec",
    "tasks start",
    "shim exec",
    "sandboxes run",
    "containers restore",
}
LASTING_SECONDS = 3.0
# What writes to the host by right is not asked to.
LEFT_OUT = {"install", "images mount", "content edit", "shim start", "shim delete", "shim exec"}
NAMESPACE = "fuzz"
AT_ONCE = 50  # names on a command line
VALUES = {
    "label": ("a=b", "a", "=b"),
    "env": ("A=b",),
    "platform": ("linux/amd64", "linux"),
    "mount": ("type=tmpfs,src=tmpfs,dst=/m,options=size=1m", "type=bind,src=/tmp,dst=/m,options=rbind:ro"),
    "snapshotter": ("overlayfs", "native"),
    "expires": ("1h", "0"),
    "signal": ("TERM", "9"),
    "format": ("json", "table"),
    "exec-id": ("e1",),
    "user": ("0:0",),
    "cwd": ("/",),
    "memory-limit": ("1000000",),
    "cpus": ("0.5",),
    "gpus": ("0",),
    "runtime": ("io.containerd.teu.v2",),
    "timeout": ("5s",),
    "connect-timeout": ("2s",),
    "user-data": ("a:b",),
}
NAMES = (
    "fuzz-c",
    "fuzz-no",
    "docker.io/library/busybox:latest",
    "fuzz/made:t",
    "sha256:" + "0" * 64,
    "fuzz-l",
    "fuzz-s",
)


class Lines:
    """Draws command lines of `teu-ctr`."""

    def __init__(self, dice: random.Random) -> None:
        from teu.ctr import commands

        self.dice = dice
        self.names = [name for name in commands.COMMANDS if name not in LEFT_OUT and not name.startswith("pprof")]
        self.tables = {name: commands.all_flags(name, commands.load(name)) for name in self.names}

    def value(self, flag: Any) -> str:
        dice = self.dice
        if flag.name in VALUES and dice.random() < 0.8:
            known = dice.choice(VALUES[flag.name])
            return known if dice.random() < 0.5 else mutate.changed_text(dice, known)[:2000]
        if flag.kind in ("int", "float", "duration") and dice.random() < 0.8:
            return f"{dice.choice(mutate.NUMBERS)}{dice.choice(('', '', 's', 'h'))}"
        text = mutate.text(dice)[:2000]
        return text if "/" not in text and ".." not in text else "x"

    def draw(self) -> tuple[str, list[str]]:
        dice = self.dice
        name = dice.choice(self.names)
        words = ["-n", NAMESPACE if dice.random() < 0.93 else mutate.text(dice)[:200], *name.split()]
        table = self.tables[name]
        for flag in dice.sample(table, min(len(table), dice.choice((0, 1, 1, 2, 3)))):
            if flag.kind == "bool":
                words.append(flag.dashed if dice.random() < 0.8 else f"{flag.dashed}={self.value(flag)}")
            else:
                words += dice.choice(([flag.dashed, self.value(flag)], [f"{flag.dashed}={self.value(flag)}"]))
        if name in ("run", "containers create"):
            operands = [NAMES[2], dice.choice(("fuzz-c", "fuzz-x")), "true"]
        elif name in ("images export", "images import"):
            operands = [dice.choice(("out", "in.tar", "-")), NAMES[2]]
        else:
            operands = [dice.choice(NAMES) for _ in range(dice.choice((0, 1, 1, 2, 2, 3)))]
        if dice.random() < 0.2:
            text = mutate.text(dice)[:1000]
            operands.append(text if "/" not in text else "x")
        words += operands
        # As the kernel hands words over: without NUL, halves of surrogates only where they stand for bytes.
        return name, [word.replace("\0", "").encode("utf-8", "replace").decode() for word in words]


def clean() -> None:
    """The namespace and what is in it go away; teud's is untouched."""
    answers.clean()
    for group, listing, removal in (
        ("tasks", ("ls", "-q"), ("rm", "-f")),
        ("containers", ("ls", "-q"), ("rm",)),
        ("images", ("ls", "-q"), ("rm",)),
        ("leases", ("ls", "-q"), ("rm",)),
        ("content", ("ls", "-q"), ("rm",)),
    ):
        names = [name for name in ctr(group, *listing).split("\n") if name]
        for start in range(0, len(names), AT_ONCE):
            ctr(group, *removal, *names[start : start + AT_ONCE])
    for _ in range(8):  # children before their parents
        for kind in ("overlayfs", "native"):
            for line in ctr("snapshots", "--snapshotter", kind, "ls").splitlines()[1:]:
                ctr("snapshots", "--snapshotter", kind, "rm", line.split()[0])
    # each holds a connection of the daemon's
    names = [line.split()[0] for line in ctr("sandboxes", "ls").splitlines()[1:] if line.strip()]
    for start in range(0, len(names), AT_ONCE):
        ctr("sandboxes", "rm", "-f", *names[start : start + AT_ONCE])
    names = [line.split(" ")[0] for line in ctr("namespaces", "ls").splitlines()[1:]]
    names = [name for name in names if name not in ("teu", "default", "moby")]
    for start in range(0, len(names), AT_ONCE):
        ctr("namespaces", "rm", *names[start : start + AT_ONCE])


def ctr(*words: str) -> str:
    done = subprocess.run(
        ["teu-ctr", "-n", NAMESPACE, *words], capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=60
    )
    return done.stdout.decode(errors="replace")


@target("ctr", "command lines of teu-ctr")
def fuzz(run: Run) -> None:
    from teu.ctr import main

    answers.warm()
    place = programs.Workplace("ctr")
    lines = Lines(run.random)
    environment = {"PATH": "/usr/bin:/usr/sbin:/bin", "HOME": str(place.path), "LANG": "C.UTF-8"}
    with run.watched(clean=clean):
        while run.going():
            if run.inputs % 20 == 0:
                place.fresh()
                place.put("in.tar", mutate.data(run.random, b"\0" * 1024))
                os.mkdir(place.path / "d")
            name, words = lines.draw()
            case = f"{words!r}"
            run.trying(case)
            lasting = name in LASTING
            limit = LASTING_SECONDS if lasting else LIMIT
            ended = programs.run(main.main, ["teu-ctr", *words], limit, environment, b"", str(place.path))
            if fault := programs.wrong(ended):
                run.finding(f"teu-ctr {name}: {fault}", f"{case}\n{ended.err[-3000:].decode(errors='replace')}")
            elif ended.status is None and not lasting:
                run.finding(f"teu-ctr {name}: did not end within {LIMIT:.0f} s", case)
    place.remove()
