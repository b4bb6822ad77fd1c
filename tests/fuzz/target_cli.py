# SPDX-License-Identifier: Apache-2.0
"""`teu` command lines, drawn from the program's own tables of options: values that fit, values that nearly fit, and
values that do not; environment files, label files, the client's configuration, filters, templates, and tables of Go's
templates over odd data. Whatever is asked, the program ends in time with words for a person."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz import answers, mutate, programs
from fuzz.frame import Run, target

LIMIT = 25.0
MEMORY = 1 << 30  # more than it has already
# Commands that may go on, by right, until somebody ends them.
LASTING = {
    "system events",
    "container stats",
    "container attach",
    "container wait",
    "container run",
    "container exec",
    "container logs",
    "container start",
    "container stop",
    "container restart",
}
LASTING_SECONDS = 1.5
# Options that name a file of the host to be written.
WRITTEN = {"output", "cidfile", "iidfile", "metadata-file"}
FIELDS = (
    ".ID",
    ".Name",
    ".Names",
    ".Image",
    ".Status",
    ".State",
    ".Labels",
    ".Ports",
    ".CreatedAt",
    ".Size",
    ".Config",
    ".Config.Env",
    ".HostConfig.Binds",
    ".NetworkSettings.Networks",
    ".State.Pid",
    ".Id",
    ".",
    ".Nothing",
    ".Mounts",
    ".Created",
    ".RepoTags",
    ".IPAM.Config",
    ".Config.Labels",
    ".HostConfig.PortBindings",
)
CALLS = (
    "json",
    "len",
    "upper",
    "lower",
    "title",
    "html",
    "js",
    "urlquery",
    "print",
    "println",
    "not",
    "printf",
    "index",
    "slice",
    "join",
    "split",
    "pad",
    "truncate",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "and",
    "or",
    "call",
    "table",
    "define",
    "template",
    "block",
    "nothing",
    "break",
)
ODDITIES = ("{{/* c */}}", "{{/* c", "{{break}}", "{{continue}}", "{{end}}", "{{", "}}", "{{{.}}}", "table ")
CONTROLS = ("if", "with", "range", "range $i, $e :=", "range $e :=", "if $x :=", 'block "a"', "else")
FORMS = (
    '"%s"',
    '"%d"',
    '"%-*s"',
    '"%5.2f"',
    '"%x"',
    '"%q"',
    '"%v"',
    '"%!"',
    '"%999999999d"',
    '"%%"',
    '"%+v"',
    '"%T"',
    '"%[2]s"',
    '"%c"',
    '"%U"',
    '"%e"',
    '"%t"',
    '"%p"',
    '"%"',
    '"%.s"',
    '"%.999999999f"',
    '"%99999999999999999999s"',
    '"%08b"',
    '"%o"',
    '"%#x"',
    '"% d"',
)
NUMBERS = (
    "0",
    "1",
    "-1",
    "5",
    "99999999999",
    "0x7f",
    "1e3",
    "1e999",
    "1_000",
    "0b11",
    "0o7",
    "'a'",
    "9" * 30,
    "1.5",
    "-0",
)
STRINGS = (
    '""',
    '","',
    '"a"',
    '"\\n"',
    '"\\x41"',
    '"\\u00e9"',
    '"\\U99999999"',
    '"\\ud800"',
    '"\\8"',
    '"\\',
    "`raw`",
    "`",
    '"b.c"',
    "''",
    "'ab'",
    "'\\''",
    "'\\U00110000'",
)

VALUES: dict[str, tuple[str, ...]] = {
    "env": ("A=b", "A", "=b", "A=b=c"),
    "label": ("a=b", "a", "=b"),
    "volume": ("fuzz-vol:/v", "/tmp:/t:ro", "/v", "a:b:c:d"),
    "mount": (
        "type=tmpfs,target=/m",
        "type=bind,src=/tmp,dst=/m,ro",
        "type=volume,src=fuzz-vol,dst=/m,volume-label=a=b",
        'type=tmpfs,"dst=/a,b"',
        "type=bind,source=/nope,target=/x",
    ),
    "publish": ("127.0.0.1::80", "8000-8002:80-82/udp", "[::1]:80:80", "80"),
    "expose": ("80", "80-90/tcp"),
    "network": ("none", "host", "fuzz-net", "name=fuzz-net,alias=a,ip=1.2.3.4", "container:fuzz-run"),
    "memory": ("64m", "1g", "0"),
    "memory-swap": ("-1", "128m"),
    "cpus": ("0.5", "1.5", "1/3"),
    "cpuset-cpus": ("0", "0-1"),
    "ulimit": ("nofile=64:128", "nofile=1024"),
    "device": ("/dev/null:/dev/x:rwm", "/dev/null", "vendor.com/class=name"),
    "restart": ("no", "on-failure:3", "always"),
    "log-opt": ("max-size=1m",),
    "log-driver": ("json-file", "none", "journald"),
    "since": ("1h", "2020-01-01", "0"),
    "until": ("1h", "2020-01-01T00:00:00", "1"),
    "tail": ("1", "all"),
    "user": ("0:0",),
    "tmpfs": ("/t:size=1m,mode=700", "/t"),
    "security-opt": ("no-new-privileges", "seccomp=unconfined", "label=disable"),
    "sysctl": ("net.ipv4.ip_forward=1",),
    "dns": ("1.1.1.1",),
    "add-host": ("a:1.2.3.4", "a=::1", "x:host-gateway"),
    "platform": ("linux/amd64",),
    "pull": ("never",),
    "health-interval": ("1s",),
    "stop-signal": ("TERM", "9"),
    "signal": ("TERM", "9", "SIGRTMIN+3"),
    "ip": ("172.18.0.9",),
    "mac-address": ("02:42:00:00:00:01",),
    "gpus": ("all",),
    "subnet": ("10.77.0.0/24", "fd00::/64"),
    "gateway": ("10.77.0.1",),
    "ip-range": ("10.77.0.128/25",),
    "aux-address": ("a=10.77.0.9",),
    "opt": ("type=tmpfs", "device=tmpfs"),
    "driver": ("bridge", "local", "null"),
    "change": ("CMD a", 'ENTRYPOINT ["a"]', "ENV A=b"),
    "detach-keys": ("ctrl-p,ctrl-q", "a"),
    "pid": ("host",),
    "blkio-weight-device": ("/dev/null:100",),
    "device-read-bps": ("/dev/null:1mb",),
    "storage-opt": ("size=1G",),
    "group-add": ("1",),
    "cap-add": ("ALL", "NET_ADMIN"),
    "type": ("container", "image"),
    "sort": ("ID",),
    "env-file": ("env",),
    "label-file": ("labels",),
    "output": ("out",),
    "input": ("in.tar",),
    "cidfile": ("cid",),
    "username": ("u",),
    "password": ("p",),
    "context": ("default",),
    "volumes-from": ("fuzz-idle:ro",),
    "runtime": ("teu",),
}
FILTERS = (
    "label=a",
    "label!=a",
    "name=fuzz",
    "status=running",
    "exited=0",
    "ancestor=busybox",
    "before=fuzz-run",
    "x=y",
    "since=fuzz-idle",
    "volume=fuzz-vol",
    "network=fuzz-net",
    "health=none",
    "publish=80",
    "expose=80-90/tcp",
    "until=1h",
    "dangling=true",
    "reference=busy*",
    "driver=bridge",
    "type=custom",
    "scope=local",
    "event=start",
    "id=a",
    "is-task=1",
    "=",
    "a",
    "=a",
    "label=",
    "until=99999999999999999999h",
    "reference=[",
    "before=",
)
OPERANDS = {
    "container": ("fuzz-run", "fuzz-idle", "fuzz-tty", "fuzz-no"),
    "image": ("busybox", "fuzz/made:t", "no:such"),
    "network": ("fuzz-net", "bridge", "fuzz-no"),
    "volume": ("fuzz-vol", "fuzz-no"),
}


def operand_value(dice: random.Random) -> str:
    return mutate.text(dice)[:3000].replace("\0", "")


def template(dice: random.Random, depth: int = 3) -> str:
    """A template, mostly one that Go would take."""
    parts = []
    for _ in range(dice.choice((1, 1, 2, 3))):
        kind = dice.randrange(10)
        if kind < 5 or not depth:
            parts.append(("{{", "{{- ")[dice.random() < 0.1] + pipeline(dice) + ("}}", " -}}")[dice.random() < 0.1])
        elif kind == 5:
            word = dice.choice(CONTROLS)
            middle = template(dice, depth - 1)
            other = "{{else}}" + template(dice, depth - 1) if dice.random() < 0.3 else ""
            # A range over a number is as long as it: by right.
            over = dice.choice(FIELDS) if word.startswith("range") else pipeline(dice)
            parts.append("{{" + f"{word} {over}" + "}}" + middle + other + ("{{end}}" if dice.random() < 0.95 else ""))
        elif kind == 6:
            parts.append('{{define "a"}}' + template(dice, depth - 1) + '{{template "a" .}}{{end}}{{template "a" .}}')
        elif kind == 7:
            parts.append("{{$x := " + pipeline(dice) + "}}{{$x}}{{$x = 1}}")
        elif kind == 8:
            parts.append(dice.choice(ODDITIES))
        else:
            parts.append(dice.choice(("\\t", "text", "\\n", "\\x", "é")))
    text = "".join(parts)
    return mutate.changed_text(dice, text)[:5000].replace("\0", "") if dice.random() < 0.25 else text


def pipeline(dice: random.Random, depth: int = 2) -> str:
    steps = []
    for number in range(dice.choice((1, 1, 1, 2, 3))):
        words = [dice.choice(CALLS)] if number or dice.random() < 0.5 else [argument(dice, depth)]
        if words[0] in CALLS:
            if words[0] == "printf":
                words.append(dice.choice(FORMS))
            words += [argument(dice, depth) for _ in range(dice.choice((0, 1, 1, 2, 3)))]
        steps.append(" ".join(words))
    return " | ".join(steps)


def argument(dice: random.Random, depth: int) -> str:
    kind = dice.randrange(8)
    if kind < 3:
        return dice.choice(FIELDS)
    if kind == 3:
        return dice.choice(NUMBERS)
    if kind == 4:
        return dice.choice(STRINGS)
    if kind == 5:
        return dice.choice(("true", "false", "nil", "$", "$x", "$.ID"))
    if kind == 6 and depth:
        return f"({pipeline(dice, depth - 1)}){dice.choice(('', '', '.ID'))}"
    return dice.choice(FIELDS)


class Lines:
    """Draws command lines of `teu`."""

    def __init__(self, dice: random.Random, place: programs.Workplace) -> None:
        from teu.cli import command, commands, options

        self.dice, self.place = dice, place
        self.names = [
            name
            for name in commands.INDEX
            for _ in range(
                8
                if name in ("container run", "container create")
                else 3
                if "inspect" in name or name.endswith(" ls")
                else 1
            )
        ]
        self.tables = {name: options.parse_table(command.load(name).table) for name in commands.INDEX}
        self.top = options.parse_table(command.GLOBAL_FLAGS)

    def value(self, flag: Any) -> str:
        dice = self.dice
        name = flag.name
        if name == "format":
            named = dice.choice(("json", "table", "raw", "pretty", "table {{.ID}}"))
            return template(dice) if dice.random() < 0.85 else named
        if name == "filter":
            known = dice.choice(FILTERS)
            return known if dice.random() < 0.6 else mutate.changed_text(dice, known)
        if name in VALUES and dice.random() < 0.8:
            known = dice.choice(VALUES[name])
            text = known if dice.random() < 0.45 else mutate.changed_text(dice, known)
        elif flag.kind in ("int", "uint16", "bytes", "swap", "decimal", "duration") and dice.random() < 0.8:
            text = f"{dice.choice(mutate.NUMBERS)}{dice.choice(('', '', 'm', 's', 'g', 'h', 'kb', 'us', ' '))}"
        elif flag.kind == "bool":
            text = dice.choice(("true", "false", "1", "0", "x", ""))
        else:
            text = mutate.text(dice)
        if name in WRITTEN and ("/" in text or ".." in text):
            return "out"
        return text[:4000]

    def options(self, table: list[Any]) -> list[str]:
        dice = self.dice
        words: list[str] = []
        for flag in dice.sample(table, min(len(table), dice.choice((0, 1, 1, 2, 3, 5)))):
            if flag.name == "help" and dice.random() < 0.9:
                continue
            if flag.kind == "bool":
                words.append(f"--{flag.name}" if dice.random() < 0.8 else f"--{flag.name}={self.value(flag)}")
            elif flag.short and dice.random() < 0.3:
                words += dice.choice(([f"-{flag.short}", self.value(flag)], [f"-{flag.short}{self.value(flag)}"]))
            else:
                words += dice.choice(([f"--{flag.name}", self.value(flag)], [f"--{flag.name}={self.value(flag)}"]))
        return words

    def operands(self, name: str) -> list[str]:
        dice = self.dice
        group, _, verb = name.partition(" ")
        if verb in ("run", "create") and group == "container":
            words = ["busybox", dice.choice(("true", "true", "id", "false"))]
        elif verb == "cp":
            words = [
                dice.choice(("fuzz-run:/etc/passwd", "in.tar", "-", "fuzz-run:/etc", "fuzz-no:/x", "d")),
                dice.choice(("fuzz-run:/tmp/", "out", "-", "fuzz-run:/nope/x", "fuzz-idle:/", "d/")),
            ]
            return words if dice.random() < 0.8 else words[: dice.randrange(3)]
        elif verb == "exec":
            words = ["fuzz-run", "true"]
        elif verb in ("tag", "rename", "commit"):
            words = [dice.choice(OPERANDS["image" if verb == "tag" else "container"]), "fuzz/made:t"]
        elif verb in ("connect", "disconnect"):
            words = ["fuzz-net", dice.choice(OPERANDS["container"])]
        elif verb in ("import", "load"):
            words = ["in.tar"] if verb == "import" else []
        elif verb in ("ls", "prune", "df", "events", "info") or name == "version":
            words = []
        elif verb == "create":
            words = ["fuzz-made"]
        elif name in ("login", "logout", "search", "image pull", "image push"):
            words = [dice.choice(("127.0.0.1:1", "127.0.0.1:1/a/b:c", "busybox"))]
        elif verb == "build":
            words = ["."]
        else:
            pool = OPERANDS.get(group, OPERANDS[dice.choice(list(OPERANDS))])
            words = [dice.choice(pool) for _ in range(dice.choice((1, 1, 2)))]
        if dice.random() < 0.25:
            at = dice.randrange(len(words) + 1)
            new = operand_value(dice)
            words[at : at + dice.randrange(2)] = [new]
        return words

    def files(self) -> None:
        dice = self.dice
        lines = b"A=b\n# c\n\nC\nD=e f\n\xef\xbb\xbfE=g\n  F=h\n"
        self.place.put("env", mutate.data(dice, lines) if dice.random() < 0.7 else lines)
        self.place.put("labels", mutate.data(dice, b"a=b\nc\n\n# d\n"))
        self.place.put("in.tar", mutate.data(dice, b"\0" * 1024))
        config = {
            "auths": {"127.0.0.1:1": {"auth": "YTpi"}, "https://index.docker.io/v1/": {}},
            "detachKeys": "ctrl-x",
            "psFormat": "{{.ID}}",
            "imagesFormat": "table {{.ID}}",
            "HttpHeaders": {"A": "b"},
            "credsStore": "none",
            "credHelpers": {"x": "y"},
            "proxies": {"default": {"httpProxy": "http://x"}},
        }
        value = mutate.json_value(dice, config) if dice.random() < 0.8 else config
        data = json.dumps(value).encode("utf-8", "surrogatepass")
        os.makedirs(self.place.path / "config", exist_ok=True)
        self.place.put("config/config.json", mutate.data(dice, data) if dice.random() < 0.15 else data)

    def draw(self) -> tuple[str, list[str], dict[str, str], bytes]:
        """(command, arguments, environment, standard input)"""
        dice = self.dice
        name = dice.choice(self.names)
        words = []
        if dice.random() < 0.1:
            words += self.options([flag for flag in self.top if flag.name not in ("help", "version")])
        words += [*name.split(), *self.options(self.tables[name])]
        operands = self.operands(name)
        if dice.random() < 0.1:
            words.append("--")
        words += operands
        if dice.random() < 0.04:
            words = ["__complete", *words]
        if dice.random() < 0.1:
            at = dice.randrange(len(words))
            words[at] = mutate.changed_text(dice, words[at])[:1000]
        words = [
            word.replace("\0", "")
            .encode("utf-8", "surrogateescape" if _escaped(word) else "replace")
            .decode("utf-8", "surrogateescape")
            for word in words
        ]
        environment = {"PATH": "/usr/bin:/usr/sbin:/bin", "HOME": str(self.place.path), "LANG": "C.UTF-8"}
        if dice.random() < 0.3:
            environment["DOCKER_CONFIG"] = str(self.place.path / "config")
        if dice.random() < 0.15:
            key = dice.choice(
                (
                    "TEU_HOST",
                    "DOCKER_HOST",
                    "DOCKER_API_VERSION",
                    "DOCKER_TLS_VERIFY",
                    "DOCKER_CERT_PATH",
                    "COLUMNS",
                    "LANG",
                    "LC_ALL",
                    "TZ",
                    "DOCKER_DEFAULT_PLATFORM",
                    "DOCKER_CONTEXT",
                    "HOME",
                    "TEU_CONFIG",
                    "DOCKER_HIDE_LEGACY_COMMANDS",
                    "NO_COLOR",
                    "TERM",
                )
            )
            environment[key] = operand_value(dice).encode("utf-8", "replace").decode()[:500]
        stdin = dice.choice((b"", b"", b"y\n", b"n\n", b"u\np\n", dice.randbytes(200)))
        return name, words, environment, stdin


def _escaped(text: str) -> bool:
    """Whether it can be a word of a command line, with bytes that are no UTF-8."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


@target("cli", "command lines of teu, with environment files, configuration, filters and templates")
def fuzz(run: Run) -> None:
    from teu.cli import main

    answers.warm()
    place = programs.Workplace("cli")
    lines = Lines(run.random, place)
    with run.watched(clean=answers.clean):
        answers.ensure()
        count = 0
        while run.going():
            if count % 10 == 0:
                place.fresh()
                os.mkdir(place.path / "d")
                lines.files()
            if count % 25 == 0:
                answers.ensure()
            count += 1
            name, words, environment, stdin = lines.draw()
            case = f"{words!r}\n{environment!r}\nstdin {stdin!r}"
            run.trying(case)
            lasting = name in LASTING or "__complete" in words
            ended = programs.run(
                main.main, ["teu", *words], LASTING_SECONDS if lasting else LIMIT, environment, stdin, str(place.path)
            )
            if fault := programs.wrong(ended):
                run.finding(f"teu {name}: {fault}", f"{case}\n{ended.err[-3000:].decode(errors='replace')}")
            elif ended.status is None and not lasting:
                run.finding(f"teu {name}: did not end within {LIMIT:.0f} s", case)
    place.remove()


@target("cli-templates", "templates of --format, over odd data, as Go reads them", alone=True)
def templates(run: Run) -> None:
    dice = run.random
    base = {
        "ID": "abc",
        "Name": "n",
        "Names": ["a", "b"],
        "Labels": {"a": "b", "": None},
        "Size": 5,
        "Created": 1.5,
        "Status": None,
        "Config": {"Env": ["A=b"], "Labels": None},
        "State": {"Pid": 0, "Running": True},
        "Mounts": [],
        "Ports": [{"a": [1]}],
    }
    _render(run, dice, base)


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
    """For what is tried alone: the odd data may be large, and so may be what this process had before."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    had = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (had + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _render(run: Run, dice: random.Random, base: dict[str, Any]) -> None:
    from teu.cli.errors import CommandError
    from teu.cli.template import compile_template
    from teu.oci.template import TemplateError

    while run.going():
        text = template(dice)
        data = mutate.json_value(dice, base) if dice.random() < 0.5 else base
        case = f"{text!r}\n{data!r}"
        run.trying(case)
        began = time.process_time()  # the machine may be busy with much else
        try:
            with _little_memory():
                compile_template(text).render(data)
        except (CommandError, TemplateError):
            pass
        except Exception as error:
            import traceback

            place = traceback.extract_tb(error.__traceback__)[-1]
            run.finding(f"template: {type(error).__name__}: {str(error)[:100]} at {place.name}", case)
        if time.process_time() - began > 5:
            run.finding("template: it takes longer than 5 s of a processor", case)
