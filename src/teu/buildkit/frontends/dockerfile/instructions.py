# SPDX-License-Identifier: Apache-2.0
"""The instructions of a Dockerfile with all that each may say, checked as BuildKit checks it.

parse_stages(parsed, linter) -> (stages, global ARGs)
parse_instruction(node, linter) -> one of the classes below
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from teu.buildkit.frontends.dockerfile import lint
from teu.buildkit.frontends.dockerfile.errors import DockerfileError, Location, did_you_mean
from teu.buildkit.frontends.dockerfile.lint import Linter
from teu.buildkit.frontends.dockerfile.mounts import Device, Expand, Mount, parse_device, parse_mount
from teu.buildkit.frontends.dockerfile.parser import Heredoc, Node, Parsed, heredoc_in, without_tabs
from teu.buildkit.frontends.dockerfile.shell import quoted

NAMES = (
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER"),
    *("ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
)
NETWORKS = ("default", "none", "host")
_STAGE_NAME = re.compile(r"[a-z][a-z0-9\-_.]*\Z")
_ONBUILD = re.compile(r"\A\s*ONBUILD\s*", re.IGNORECASE)
_MILLISECOND = 1_000_000


@dataclass
class Instruction:
    """What every instruction has: its name as written, its (joined) line, its place, the comments above it."""

    name: str
    code: str
    location: Location
    comments: list[str]

    def expand(self, expand: Expand) -> None:
        """Replace the variables of all that may hold some."""


@dataclass
class Pair:
    """NAME=value; old_form is `NAME value`."""

    key: str
    value: str
    old_form: bool = False

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


@dataclass
class Env(Instruction):
    pairs: list[Pair]

    def expand(self, expand: Expand) -> None:
        self.pairs = [Pair(expand(pair.key), expand(pair.value), pair.old_form) for pair in self.pairs]


@dataclass
class Label(Env):
    pass


@dataclass
class Maintainer(Instruction):
    maintainer: str


@dataclass
class Content:
    """A file written in the Dockerfile, by a heredoc of COPY or ADD."""

    path: str
    data: str
    expand: bool


@dataclass
class Copy(Instruction):
    """COPY or ADD."""

    sources: list[str]
    contents: list[Content]
    destination: str
    chown: str = ""
    chmod: str = ""
    link: bool = False
    excludes: list[str] = field(default_factory=list)
    origin: str = ""  # --from
    parents: bool = False
    keep_git_dir: bool | None = None
    checksum: str = ""
    unpack: bool | None = None

    def expand(self, expand: Expand) -> None:
        self.chown = expand(self.chown)
        self.chmod = expand(self.chmod)
        self.checksum = expand(self.checksum)
        self.sources = [expand(source) for source in self.sources]
        self.destination = expand(self.destination)

    def expand_contents(self, expand: Expand) -> None:
        for content in self.contents:
            if content.expand:
                content.data = expand(content.data)


@dataclass
class Add(Copy):
    pass


@dataclass
class Onbuild(Instruction):
    expression: str


@dataclass
class Workdir(Instruction):
    path: str

    def expand(self, expand: Expand) -> None:
        self.path = expand(self.path)


@dataclass
class Command(Instruction):
    """RUN, CMD, ENTRYPOINT: arguments, and whether the shell stands before them."""

    args: list[str]
    shell: bool
    files: list[Heredoc]


@dataclass
class Run(Command):
    mount_texts: list[str] = field(default_factory=list)
    mounts: list[Mount] = field(default_factory=list)
    network: str = "default"
    security: str = "sandbox"
    devices: list[Device] = field(default_factory=list)

    def expand(self, expand: Expand) -> None:
        self.mounts = [parse_mount(text, expand) for text in self.mount_texts]


@dataclass
class Cmd(Command):
    pass


@dataclass
class Entrypoint(Command):
    pass


@dataclass
class Health:
    """A health check; times are nanoseconds, zero is the engine's default."""

    test: list[str]
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass
class Healthcheck(Instruction):
    health: Health


@dataclass
class Expose(Instruction):
    ports: list[str]


@dataclass
class User(Instruction):
    user: str

    def expand(self, expand: Expand) -> None:
        self.user = expand(self.user)


@dataclass
class Volume(Instruction):
    volumes: list[str]

    def expand(self, expand: Expand) -> None:
        self.volumes = [expand(volume) for volume in self.volumes]


@dataclass
class StopSignal(Instruction):
    signal: str

    def expand(self, expand: Expand) -> None:
        self.signal = expand(self.signal)


@dataclass
class Argument:
    """One name of an ARG: its default (None without one), its description from the comment above."""

    key: str
    value: str | None
    description: str = ""


@dataclass
class Arg(Instruction):
    """ARG. Its values are expanded where they count: one that is overridden may be nonsense."""

    arguments: list[Argument]


@dataclass
class Shell(Instruction):
    shell: list[str]


@dataclass
class Stage:
    """FROM and what follows it."""

    name: str
    base: str
    keyword: str  # FROM as it was written
    platform: str
    code: str
    location: Location
    comments: list[str]
    description: str = ""
    commands: list[Instruction] = field(default_factory=list)


class _Flags:
    """--name=value of one instruction: each declared name once, but those that may repeat."""

    def __init__(self, given: list[str], texts: tuple[str, ...] = (), booleans: tuple[str, ...] = (),
                 lists: tuple[str, ...] = ()) -> None:  # fmt: skip
        self.texts: dict[str, str] = {}
        self.booleans: dict[str, bool] = {}
        self.lists: dict[str, list[str]] = {name: [] for name in lists}
        known = (*texts, *booleans, *lists)
        for flag in given:
            if flag == "--":
                return
            if not flag.startswith("--"):
                raise DockerfileError(f"arg should start with -- : {flag}")
            shown, separator, value = flag.partition("=")
            name = shown[2:]
            if name not in known:
                raise DockerfileError(did_you_mean(f"unknown flag: {shown}", name, known))
            if name in self.texts or name in self.booleans:
                raise DockerfileError(f"duplicate flag specified: {shown}")
            if name in booleans:
                if separator and not value:
                    raise DockerfileError(f"missing a value on flag: {shown}")
                if value.lower() not in ("", "true", "false"):
                    raise DockerfileError(f"expecting boolean value for flag {shown}, not: {value}")
                self.booleans[name] = value.lower() != "false"
                continue
            if not separator:
                raise DockerfileError(f"missing a value on flag: {shown}")
            if name in texts:
                self.texts[name] = value
            else:
                self.lists[name].append(value)

    def text(self, name: str, default: str = "") -> str:
        return self.texts.get(name, default)

    def boolean(self, name: str) -> bool:
        return self.booleans.get(name, False)


Base = tuple[str, str, Location, list[str]]


def _base(node: Node) -> Base:
    return node.name, node.original.strip(), node.location, node.comments


def _at_least_one(name: str, node: Node) -> None:
    if not node.args:
        raise DockerfileError(f"{name} requires at least one argument")


def _exactly_one(name: str, node: Node) -> None:
    if len(node.args) != 1:
        raise DockerfileError(f"{name} requires exactly one argument")


def _pairs(name: str, node: Node) -> list[Pair]:
    _Flags(node.flags)
    _at_least_one(name, node)
    if len(node.args) % 3:
        raise DockerfileError(f"Bad input to {name}, too many arguments")
    result = []
    for at in range(0, len(node.args), 3):
        key, value, separator = node.args[at : at + 3]
        if not key:
            raise DockerfileError(f"{name} names can not be blank")
        result.append(Pair(key, value, not separator))
    return result


def _env(node: Node, linter: Linter) -> Env:
    return Env(*_base(node), _pairs("ENV", node))


def _label(node: Node, linter: Linter) -> Label:
    return Label(*_base(node), _pairs("LABEL", node))


def _maintainer(node: Node, linter: Linter) -> Maintainer:
    linter.run(
        lint.MAINTAINER_DEPRECATED, node.location, "Maintainer instruction is deprecated in favor of using label"
    )
    _exactly_one("MAINTAINER", node)
    _Flags(node.flags)
    return Maintainer(*_base(node), node.args[0])


def _sources(name: str, node: Node) -> tuple[list[str], list[Content], str]:
    if len(node.args) < 2:
        raise DockerfileError(
            f"{name} requires at least two arguments, but only one was provided. Destination could not be determined"
        )
    destination = node.args[-1]
    if heredoc_in(destination) is not None:
        raise DockerfileError(f"{name} cannot accept a heredoc as a destination")
    contents = {heredoc.name: heredoc.content for heredoc in node.heredocs}
    sources: list[str] = []
    files: list[Content] = []
    for source in node.args[:-1]:
        heredoc = heredoc_in(source)
        if heredoc is None:
            sources.append(source)
            continue
        data = contents.get(heredoc.name, "")
        files.append(Content(heredoc.name, without_tabs(data) if heredoc.chomp else data, heredoc.expand))
    return sources, files, destination


def _add(node: Node, linter: Linter) -> Add:
    if len(node.args) < 2:
        _sources("ADD", node)
    flags = _Flags(node.flags, ("chown", "chmod", "checksum"), ("link", "keep-git-dir", "unpack"), ("exclude",))
    return Add(
        *_base(node),
        *_sources("ADD", node),
        chown=flags.text("chown"),
        chmod=flags.text("chmod"),
        link=flags.boolean("link"),
        excludes=flags.lists["exclude"],
        keep_git_dir=flags.booleans.get("keep-git-dir"),
        checksum=flags.text("checksum"),
        unpack=flags.booleans.get("unpack"),
    )


def _copy(node: Node, linter: Linter) -> Copy:
    if len(node.args) < 2:
        _sources("COPY", node)
    flags = _Flags(node.flags, ("chown", "from", "chmod"), ("link", "parents"), ("exclude",))
    return Copy(
        *_base(node),
        *_sources("COPY", node),
        chown=flags.text("chown"),
        chmod=flags.text("chmod"),
        link=flags.boolean("link"),
        excludes=flags.lists["exclude"],
        origin=flags.text("from"),
        parents=flags.boolean("parents"),
    )


def _from(node: Node, linter: Linter) -> Stage:
    args = node.args
    if len(args) == 3 and args[2] != args[2].lower():
        linter.run(lint.STAGE_NAME_CASING, node.location, f"Stage name '{args[2]}' should be lowercase")
    if len(args) >= 3:
        for same in (str.lower, str.upper):
            if node.name == same(node.name):
                if args[1] != same(args[1]):
                    text = f"'{args[1]}' and '{node.name}' keywords' casing do not match"
                    linter.run(lint.FROM_AS_CASING, node.location, text)
                break
    name = ""
    if len(args) == 3 and args[1].lower() == "as":
        name = args[2].lower()
        if not _STAGE_NAME.match(name):
            raise DockerfileError(
                f"invalid name for build stage: {quoted(args[2])}, name can't start with a number or contain symbols"
            )
    elif len(args) != 1:
        raise DockerfileError("FROM requires either one or three arguments")
    flags = _Flags(node.flags, ("platform",))
    stage = Stage(
        name, args[0], node.name, flags.text("platform"), node.original.strip(), node.location, node.comments,
        _description(node.comments, name),
    )  # fmt: skip
    if name:
        _check_description("FROM", [name], node, linter)
    return stage


def _onbuild(node: Node, linter: Linter) -> Onbuild:
    _at_least_one("ONBUILD", node)
    _Flags(node.flags)
    trigger = node.args[0].strip().upper()
    if trigger == "ONBUILD":
        raise DockerfileError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("MAINTAINER", "FROM"):
        raise DockerfileError(f"{trigger} isn't allowed as an ONBUILD trigger")
    expression = _ONBUILD.sub("", node.original)
    for heredoc in node.heredocs:
        expression += f"\n{heredoc.content}{heredoc.name}"
    return Onbuild(*_base(node), expression)


def _workdir(node: Node, linter: Linter) -> Workdir:
    _exactly_one("WORKDIR", node)
    _Flags(node.flags)
    return Workdir(*_base(node), node.args[0])


def _arguments(node: Node) -> list[str]:
    """JSON's list as it is; anything else as one text."""
    return node.args if node.json or not node.args else [" ".join(node.args)]


def _run(node: Node, linter: Linter) -> Run:
    flags = _Flags(node.flags, ("network", "security"), (), ("mount", "device"))
    run = Run(*_base(node), _arguments(node), not node.json, node.heredocs, flags.lists["mount"])
    run.devices = [parse_device(text) for text in flags.lists["device"]]
    run.mounts = [parse_mount(text, None) for text in run.mount_texts]
    run.network = flags.text("network", "default")
    if run.network not in NETWORKS:
        raise DockerfileError(f"invalid network mode {quoted(run.network)}")
    run.security = flags.text("security", "sandbox")
    if run.security not in ("insecure", "sandbox"):
        raise DockerfileError(f"security {quoted(run.security)} is not valid")
    return run


def _cmd(node: Node, linter: Linter) -> Cmd:
    _Flags(node.flags)
    return Cmd(*_base(node), _arguments(node), not node.json, node.heredocs)


def _entrypoint(node: Node, linter: Linter) -> Entrypoint:
    _Flags(node.flags)
    return Entrypoint(*_base(node), _arguments(node), not node.json, node.heredocs)


_UNITS = {"ns": 1, "us": 1000, "µs": 1000, "μs": 1000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)


def duration(text: str) -> int:
    """1h2m3.5s in nanoseconds, as Go's time.ParseDuration; raises DockerfileError."""
    body = text[1:] if text[:1] in ("-", "+") else text
    if body == "0":
        return 0
    total, at = 0, 0
    while at < len(body):
        match = _PART.match(body, at)
        if match is None:
            number = re.match(r"\d+(?:\.\d*)?|\.\d+", body[at:], re.ASCII)
            if number is None:
                break
            unit = re.match(r"[^\d.]*", body[at + number.end() :])
            if unit is None or not unit[0]:
                raise DockerfileError(f"time: missing unit in duration {quoted(text)}")
            raise DockerfileError(f"time: unknown unit {quoted(unit[0])} in duration {quoted(text)}")
        whole, _, part = match[1].partition(".")
        unit_size = _UNITS[match[2]]
        total += int(whole or 0) * unit_size + (int(part) * unit_size // 10 ** len(part) if part else 0)
        at = match.end()
    if at < len(body) or not body or total >= 1 << 63:
        raise DockerfileError(f"time: invalid duration {quoted(text)}")
    return -total if text.startswith("-") else total


def _interval(flags: _Flags, name: str) -> int:
    text = flags.text(name)
    value = duration(text) if text else 0
    if value and value < _MILLISECOND:
        raise DockerfileError(f'Interval "{name}" cannot be less than 1ms')
    return value


def _healthcheck(node: Node, linter: Linter) -> Healthcheck:
    _at_least_one("HEALTHCHECK", node)
    kind, args = node.args[0].upper(), node.args[1:]
    if kind == "NONE":
        if args:
            raise DockerfileError("HEALTHCHECK NONE takes no arguments")
        return Healthcheck(*_base(node), Health([kind]))
    flags = _Flags(node.flags, ("interval", "timeout", "start-period", "start-interval", "retries"))
    if kind != "CMD":
        raise DockerfileError(f"Unknown type {quoted(kind)} in HEALTHCHECK (try CMD)")
    if not args:
        raise DockerfileError("Missing command after HEALTHCHECK CMD")
    test = [kind, *args] if node.json else ["CMD-SHELL", " ".join(args)]
    health = Health(
        test,
        _interval(flags, "interval"),
        _interval(flags, "timeout"),
        _interval(flags, "start-period"),
        _interval(flags, "start-interval"),
    )
    retries = flags.text("retries")
    if retries:
        if not re.match(r"[+-]?[0-9]+\Z", retries):
            raise DockerfileError(f"strconv.ParseInt: parsing {quoted(retries)}: invalid syntax")
        count = int(retries)
        if not -(1 << 31) <= count < 1 << 31:
            raise DockerfileError(f"strconv.ParseInt: parsing {quoted(retries)}: value out of range")
        if count < 0:
            raise DockerfileError(f"--retries cannot be negative ({count})")
        health.retries = count
    return Healthcheck(*_base(node), health)


def _expose(node: Node, linter: Linter) -> Expose:
    _at_least_one("EXPOSE", node)
    _Flags(node.flags)
    return Expose(*_base(node), sorted(node.args))


def _user(node: Node, linter: Linter) -> User:
    _exactly_one("USER", node)
    _Flags(node.flags)
    return User(*_base(node), node.args[0])


def _volume(node: Node, linter: Linter) -> Volume:
    _at_least_one("VOLUME", node)
    _Flags(node.flags)
    volumes = [volume.strip() for volume in node.args]
    if not all(volumes):
        raise DockerfileError("VOLUME specified can not be an empty string")
    return Volume(*_base(node), volumes)


def _stopsignal(node: Node, linter: Linter) -> StopSignal:
    _exactly_one("STOPSIGNAL", node)
    return StopSignal(*_base(node), node.args[0])


def _arg(node: Node, linter: Linter) -> Arg:
    _at_least_one("ARG", node)
    arguments = []
    for word in node.args:
        key, separator, value = word.partition("=")
        if separator and not key:
            raise DockerfileError("ARG names can not be blank")
        arguments.append(Argument(key, value if separator else None, _description(node.comments, key)))
    _check_description("ARG", [argument.key for argument in arguments], node, linter)
    return Arg(*_base(node), arguments)


def _shell(node: Node, linter: Linter) -> Shell:
    _Flags(node.flags)
    _at_least_one("SHELL", node)
    if not node.json:
        raise DockerfileError("SHELL requires the arguments to be in JSON form")
    return Shell(*_base(node), node.args)


def _description(comments: list[str], name: str) -> str:
    """The rest of the first comment line that begins with the name."""
    if name:
        for line in comments:
            if line.startswith(name + " "):
                return line[len(name) + 1 :]
    return ""


def _check_description(keyword: str, names: list[str], node: Node, linter: Linter) -> None:
    if not node.comments or not names or node.comments[-1].split(" ")[0] in names:
        return
    example = names[0] if len(names) == 1 else "<arg_key>"
    text = f"Comment for {keyword} should follow the format: `# {example} <description>`"
    linter.run(lint.INVALID_DEFINITION_DESCRIPTION, node.location, text)


_PARSERS: dict[str, Callable[[Node, Linter], Instruction | Stage]] = {
    "add": _add,
    "arg": _arg,
    "cmd": _cmd,
    "copy": _copy,
    "entrypoint": _entrypoint,
    "env": _env,
    "expose": _expose,
    "from": _from,
    "healthcheck": _healthcheck,
    "label": _label,
    "maintainer": _maintainer,
    "onbuild": _onbuild,
    "run": _run,
    "shell": _shell,
    "stopsignal": _stopsignal,
    "user": _user,
    "volume": _volume,
    "workdir": _workdir,
}


def parse_instruction(node: Node, linter: Linter) -> Instruction | Stage:
    """One instruction; raises DockerfileError with its lines."""
    parser = _PARSERS.get(node.name.lower())
    try:
        if parser is None:
            message = f"unknown instruction: {node.name}"
            raise DockerfileError(did_you_mean(message, node.name, NAMES, case_sensitive=False))
        return parser(node, linter.under(node.comments))
    except DockerfileError as error:
        raise error.at(node.location) from None


def parse_stages(parsed: Parsed, linter: Linter) -> tuple[list[Stage], list[Arg]]:
    """The stages of a Dockerfile and the ARGs before the first; raises DockerfileError with lines."""
    stages: list[Stage] = []
    arguments: list[Arg] = []
    for node in parsed.nodes:
        try:
            found = parse_instruction(node, linter)
        except DockerfileError as error:
            raise error.prefixed(f"dockerfile parse error on line {node.start}") from None
        if isinstance(found, Stage):
            stages.append(found)
        elif stages:
            stages[-1].commands.append(found)
        elif isinstance(found, Arg):
            arguments.append(found)
        else:
            raise DockerfileError("no build stage in current context", node.location)
    return stages, arguments
