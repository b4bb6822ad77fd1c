# SPDX-License-Identifier: Apache-2.0
"""A declared file becomes a unit: its text, its name, its links.

    web.container   web.service           teu-unit container ...     Type=notify, in the unit's own cgroup
    web.pod         web-pod.service       teu-unit pod ...           holds the namespaces of its members
    web.network     web-network.service   teu-unit network ...       Type=oneshot, and so are the next
    web.volume      web-volume.service    teu-unit volume ...
    web.image       web-image.service     teu-unit image ...
    web.build       web-build.service     teu build ...

What a file asks for stands in ExecStart= as options of `teu run` and the like, so that systemd replaces specifiers and
variables there, and `systemctl cat` shows everything. Names of things are podman's: systemd-NAME, unless the file gives
one. A file with a mistake becomes a unit of its name that tells the mistake when it is started.

Called by the generator, so it imports next to nothing.
"""

from __future__ import annotations

from teu.cli.declared import keys
from teu.cli.declared.files import BLANK, Declared, Entry, Problem, command_line, since_empty, truth, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SUFFIX = {
    "container": "",
    "pod": "-pod",
    "network": "-network",
    "volume": "-volume",
    "image": "-image",
    "build": "-build",
}
HELPER = "/usr/libexec/teu/teu-unit"
TEU = "/usr/bin/teu"
# What the daemons need is theirs to say; this is what a unit needs to reach them, and to end before them.
DAEMONS = "teud.socket teud.service teu-containerd.service teu-containerd.socket"
STOP_SECONDS = 10
# How much longer than the container systemd waits, and what it waits without being told (its DefaultTimeoutStopSec).
MARGIN_SECONDS, SYSTEMD_SECONDS = 20, 90
# Of a unit, for systemd.
NAME_SIZE = 255 - len(".service")
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@")
# What begins the path of each folder in which journald listens, for a source without slashes at its end.
JOURNAL_NEAR = ("", "/run", "/dev")
KILLED = "mixed"


class Unit:
    """What a declared file became: `name` of the unit, its `text`, `links` below the generator's folder, and the words
    of its `command`, none where the file has a mistake."""

    def __init__(self, name: str, text: str, links: list[str], command: list[str]) -> None:
        self.name = name
        self.text = text
        self.links = links
        self.command = command


class House:
    """All declared files, which name one another."""

    def __init__(self, declared: dict[str, Declared], helper: str = HELPER, program: str = TEU) -> None:
        self.declared = declared
        self.helper = helper
        self.program = program
        self.members: dict[str, list[str]] = {}
        for one in declared.values():
            entry = one.last("Container", "Pod")
            if one.kind == "container" and entry is not None:
                self.members.setdefault(entry.value, []).append(one.name)

    def find(self, name: str, entry: Entry) -> Declared:
        """The file of that name; an instance that is no file has its template's. Problem where there is none."""
        found = self.declared.get(name)
        if found is None and "@" in name:
            stem, _, kind = name.rpartition(".")
            found = self.declared.get(f"{stem.partition('@')[0]}@.{kind}")
        if found is None:
            raise entry.problem(f"{entry.key}={entry.value}: there is no file {name}")
        return found

    def service(self, name: str, entry: Entry) -> str:
        """The unit that a declared file becomes, by the file's name."""
        stem, _, kind = name.rpartition(".")
        given = self.find(name, entry).last(keys.SECTIONS[kind][0], "ServiceName")
        return (given.value if given else _suffixed(stem, kind)) + ".service"

    def resource(self, name: str, entry: Entry) -> str:
        """The name that the thing of a declared file has in the engine."""
        stem, _, kind = name.rpartition(".")
        found = self.find(name, entry)
        section = keys.SECTIONS[kind][0]
        if kind in ("image", "build"):
            tags = found.every(section, "ImageTag") or found.every(section, "Image")
            if not tags:
                raise entry.problem(f"{entry.key}={entry.value}: {name} does not say which image it is")
            return tags[0].value
        given = found.last(section, f"{section}Name")
        if given is None:
            return "systemd-" + stem.replace("@", "_")
        if "%" in given.value:
            raise entry.problem(f"{entry.key}={entry.value}: {given.value} in {given.path} means another name here")
        return given.value


def unit_name(one: Declared) -> str:
    """The name of the unit that a file becomes."""
    given = one.last(keys.SECTIONS[one.kind][0], "ServiceName")
    return (given.value if given and _can_name(given.value) else _suffixed(one.stem, one.kind)) + ".service"


def _can_name(text: str) -> bool:
    """Whether systemd takes it as a service's name, without .service: systemd.unit(5)."""
    return 0 < len(text) <= NAME_SIZE and NAME_CHARACTERS.issuperset(text)


def _suffixed(stem: str, kind: str) -> str:
    base, at, instance = stem.partition("@")
    return base + SUFFIX[kind] + at + instance


class Command:
    """A command line that grows."""

    def __init__(self, *start: str) -> None:
        self.words = list(start)

    def add(self, *more: str) -> None:
        self.words += more

    def text(self) -> str:
        return command_line(self.words)


class Translation:
    """One file on its way to a unit. What is wrong is gathered in the file's problems."""

    def __init__(self, house: House, one: Declared) -> None:
        self.house = house
        self.one = one
        self.section, self.table = keys.SECTIONS[one.kind]
        self.own = one.keyed.get(self.section, {})
        self.unit: list[tuple[str, str]] = []
        self.service: list[tuple[str, str]] = []

    # -- what a file says --

    def last(self, key: str) -> Entry | None:
        if key not in self.own:
            return None
        entry = self.own[key][-1]
        return entry if entry.value else None

    def value(self, key: str, default: str = "") -> str:
        found = self.last(key)
        return found.value if found else default

    def every(self, key: str) -> list[Entry]:
        return since_empty(self.own[key]) if key in self.own else []

    def words(self, key: str) -> list[str]:
        return [word for entry in self.every(key) for word in words(entry)] if key in self.own else []

    def yes(self, key: str) -> bool:
        found = self.last(key)
        return truth(found) if found else False

    def given(self, section: str, key: str) -> str:
        found = self.one.last(section, key)
        return found.value if found else ""

    # -- what holds for all kinds --

    def needs(self, name: str, entry: Entry, *, bound: bool = False) -> None:
        """This unit needs the unit of another declared file."""
        other = self.house.service(name, entry)
        self.unit += [("BindsTo" if bound else "Requires", other), ("After", other)]

    def path(self, entry: Entry, text: str) -> str:
        """A path that may be relative to the file."""
        if text[:1] in ("/", "%", "") or text.startswith("~"):
            return text
        return _normal(f"{entry.folder()}/{text}")

    def check(self) -> None:
        """Refuse keys that are unknown, or have no meaning here."""
        known = self.table
        given = self.one.last(self.section, "ServiceName")
        if given and not _can_name(given.value):
            text = f"use letters, digits and :-_.\\@ for a unit's name, at most {NAME_SIZE}"
            self.one.problems.append(given.problem(f"{given.key}={given.value}: {text}"))
        for section, entries in self.one.sections.items():
            if section == self.section:
                for entry in entries:
                    how = known.get(entry.key)
                    if how is None:
                        self.one.problems.append(entry.problem(f"[{section}] has no key {entry.key}"))
                    elif how.startswith("no: ") and entry.value:
                        self.one.problems.append(entry.problem(f"{entry.key}= is refused: {how[4:]}"))
            elif section in ("Quadlet", "Install"):
                table = keys.QUADLET if section == "Quadlet" else keys.INSTALL
                self.one.problems += [
                    entry.problem(f"[{section}] has no key {entry.key} here")
                    for entry in entries
                    if entry.key not in table
                ]
            elif section not in ("Unit", "Service") and not section.startswith("X-"):
                text = (
                    f"[{section}] is no section of a {self.one.kind} file: it has [{self.section}], [Unit], [Service]"
                )
                text += " and [Install]"
                where = entries[0] if entries else None
                self.one.problems.append(where.problem(text) if where else Problem(self.one.path, 0, text))
        if self.section not in self.one.sections:
            self.one.problems.append(Problem(self.one.path, 0, f"has no section [{self.section}]"))
        for key in ("ExecStart", "NotifyAccess", "Delegate"):
            found = self.one.last("Service", key)
            if found:
                self.one.problems.append(found.problem(f"{key}= follows from [{self.section}] and cannot be given"))

    def plain(self, command: Command) -> None:
        """Add the options that are in the table."""
        for key in sorted(self.own):  # in the order of the table
            how = self.table.get(key, "own")
            if how == "own":
                continue
            kind, _, option = how.partition(" ")
            if kind == "flag":
                if self.last(key):
                    command.add(f"{option}={self.value(key)}")
            elif kind == "all":
                command.words += [f"{option}={entry.value}" for entry in self.every(key)]
            elif kind == "words":
                command.words += [f"{option}={word}" for word in self.words(key)]
            elif kind == "truth" and self.last(key):
                command.add(option if self.yes(key) else f"{option}=false")

    def dependencies(self) -> list[tuple[str, str]]:
        """[Unit] as it was given, names of declared files replaced by those of their units."""
        found = []
        for entry in self.one.section("Unit"):
            value = entry.value
            if entry.key in keys.DEPENDENCIES and any(f".{kind}" in value for kind in SUFFIX):
                value = " ".join(
                    self.house.service(word, entry) if word.rpartition(".")[2] in SUFFIX else word
                    for word in value.split()
                )
            found.append((entry.key, value))
        return found

    def finish(self, command: Command, oneshot: bool) -> Unit:
        """The unit, from what was gathered, and its command."""
        self.service.insert(0, ("ExecStart", command.text()))
        unit = self.dependencies()
        given = {key for key, _ in unit}
        head = [] if "Description" in given else [("Description", f"{self.one.stem} ({self.one.kind})")]
        head += [("SourcePath", self.one.path), ("Documentation", "man:teu-containers(7)")]
        head += [("Requires", "teud.socket"), ("After", DAEMONS)]
        default = self.one.last("Quadlet", "DefaultDependencies")
        if default is None or truth(default):
            head += [("Wants", "network-online.target"), ("After", "network-online.target")]
        service = [(entry.key, entry.value) for entry in self.one.section("Service")]
        given = {key for key, _ in service}
        if oneshot:
            self.service += [("Type", "oneshot"), ("RemainAfterExit", "yes")]
        self.service.append(("SyslogIdentifier", "%N"))
        lists = ("Exec", "LoadCredential", "ImportCredential")  # a further line of these adds to the others
        own = [(key, value) for key, value in self.service if key not in given or key.startswith(lists)]
        text = f"# Made by teu-system-generator from {self.one.path}\n\n"
        text += _section("Unit", head + self.unit + unit) + "\n" + _section("Service", own + service)
        return Unit(unit_name(self.one), text, links(self.one), command.words)


def _section(name: str, lines: list[tuple[str, str]]) -> str:
    return f"[{name}]\n" + "".join([f"{key}={value}\n" for key, value in lines])


def _normal(path: str) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", ".", ".."):
            parts.append(part)
    return "/" + "/".join(parts)


def links(one: Declared) -> list[str]:
    """The links that [Install] asks for, relative to the generator's folder; all of them lead to the unit."""
    asked = one.keyed.get("Install")
    if not asked:
        return []
    name = unit_name(one)
    if one.template:
        instance = one.last("Install", "DefaultInstance")
        if instance is None:
            return []
        name = name.replace("@.", f"@{instance.value}.")
    found = [word for entry in one.every("Install", "Alias") for word in entry.value.split()]
    for key, folder in (("WantedBy", "wants"), ("RequiredBy", "requires"), ("UpheldBy", "upholds")):
        if key not in asked:
            continue
        found += [f"{word}.{folder}/{name}" for entry in one.every("Install", key) for word in entry.value.split()]
    return [link for link in found if not link.startswith("/") and ".." not in link]


# -- containers and pods --


def _container(t: Translation) -> Unit:
    image = t.last("Image")
    if image is None:
        raise Problem(t.one.path, 0, "has no Image=")
    command = Command(t.house.helper, "container", "--unit=%n")
    name = t.value("ContainerName") or ("systemd-%p_%i" if "@" in t.one.stem else "systemd-%N")
    command.add(f"--name={name}")
    if not t.last("LogDriver"):
        command.add("--log-driver=journald")
    oneshot = _service_type(t, command)
    t.plain(command)
    _security(t, command)
    _health(t, command)
    _user(t, command)
    _networks(t, command)
    _volumes(t, command)
    for entry in t.every("EnvironmentFile"):
        command.words += [f"--env-file={t.path(entry, word)}" for word in words(entry)]
    _secrets(t, command)
    _pod(t, command)
    _end(t, command, name)
    _settings(t, command)
    _journal_fields(t, command, name)
    command.words += _podman_args(t)
    name_of_image = image.value
    if name_of_image.endswith((".image", ".build")):
        t.needs(name_of_image, image)
        name_of_image = t.house.resource(name_of_image, image)
        if not t.last("Pull"):
            command.add("--pull=never" if image.value.endswith(".build") else "--pull=missing")
    command.add("--", name_of_image)
    program = t.last("Exec")
    if program:
        command.words += words(program)
    t.service.append(("ExecStopPost", Command("-" + t.house.helper, "remove", "--unit=%n", name).text()))
    t.service += [("Delegate", "yes"), ("KillMode", KILLED)]
    if not oneshot:
        t.service += [("Type", "notify"), ("NotifyAccess", "main")]
    return t.finish(command, False)


def _journal_fields(t: Translation, command: Command, name: str) -> None:
    """What a container writes to journald's socket by itself, where that is bound into it, has its name."""
    sources = [word.removeprefix("--volume=").partition(":")[0] for word in command.words if word[:9] == "--volume="]
    for entry in t.every("Mount"):
        parts = (part.partition("=") for part in entry.value.split(","))
        sources += [value for key, _, value in parts if key in ("source", "src")]
    near = [source for source in (source.rstrip("/") for source in sources) if source[:4] in JOURNAL_NEAR]
    if not near:
        return
    from teu.systemd.logfields import SOCKETS  # 0.4 ms as a script, and only where something of /run or /dev is bound

    if any(f"{path}/".startswith(f"{source}/") for source in near for path in SOCKETS):
        t.service.append(("LogExtraFields", f"CONTAINER_NAME={name}"))


def _service_type(t: Translation, command: Command) -> bool:
    """Whether the unit is a task that ends, Type=oneshot; --notify= says when it is ready."""
    kind = t.one.last("Service", "Type")
    if kind and kind.value not in ("notify", "oneshot"):
        raise kind.problem(f"Type={kind.value} is refused: a container's unit is of the type notify, or oneshot")
    killed = t.one.last("Service", "KillMode")
    if killed and killed.value != KILLED:
        raise killed.problem(f"KillMode={killed.value} is refused: with {KILLED} a container gets its own stop signal")
    oneshot = kind is not None and kind.value == "oneshot"
    notify = t.last("Notify")
    if notify and notify.value.lower() == "healthy":
        command.add("--notify=healthy")
    elif notify and truth(notify):
        command.add("--notify=container")
    if notify and oneshot and len(command.words) and command.words[-1].startswith("--notify"):
        raise notify.problem("Notify= has no meaning with Type=oneshot, which is ready when it has ended")
    return oneshot


def _security(t: Translation, command: Command) -> None:
    if t.yes("NoNewPrivileges"):
        command.add("--security-opt=no-new-privileges")
    if t.yes("SecurityLabelDisable"):
        command.add("--security-opt=label=disable")
    if t.last("SeccompProfile"):
        command.add(f"--security-opt=seccomp={t.value('SeccompProfile')}")
    if t.last("AppArmor"):
        command.add(f"--security-opt=apparmor={t.value('AppArmor')}")
    for key, option in (("Mask", "--mask"), ("Unmask", "--unmask")):
        command.words += [f"{option}={word}" for word in t.words(key)]
    for word in t.words("AddDevice"):
        command.add(f"--device-if-there={word[1:]}" if word[0] == "-" else f"--device={word}")
    mode = t.last("CgroupsMode")
    if mode and mode.value != "split":
        raise mode.problem(
            f"CgroupsMode={mode.value} is refused: a declared container stands in its unit's cgroup (split)"
        )


def _health(t: Translation, command: Command) -> None:
    check = t.last("HealthCmd")
    if check:
        command.add("--no-healthcheck" if check.value == "none" else f"--health-cmd={check.value}")
    interval = t.last("HealthInterval")
    if interval and interval.value == "disable":
        raise interval.problem("HealthInterval=disable is refused: HealthCmd=none is a container without a check")
    if interval:
        command.add(f"--health-interval={interval.value}")
    where = t.last("HealthLogDestination")
    if where and where.value != "local":
        raise where.problem(f"HealthLogDestination={where.value} is refused: {keys.CHECK_LOG[4:]}")
    action = t.last("HealthOnFailure")
    if action:
        if action.value not in ("none", "kill", "restart", "stop"):
            raise action.problem(f"HealthOnFailure={action.value}: give none, kill, restart or stop")
        command.add(f"--health-on-failure={action.value}")


def _user(t: Translation, command: Command) -> None:
    user, group = t.value("User"), t.last("Group")
    if group and not user:
        raise group.problem("Group= needs User=")
    if user:
        command.add(f"--user={user}:{group.value}" if group else f"--user={user}")
    for entry in t.every("GroupAdd"):
        if entry.value == "keep-groups":
            raise entry.problem("GroupAdd=keep-groups is refused: a unit of the system has no user's groups")
        command.add(f"--group-add={entry.value}")


def _user_namespace(t: Translation, command: Command) -> None:
    found = t.last("UserNS")
    if found and found.value != "host":
        raise found.problem(f"UserNS={found.value} is refused: {keys.IDS[4:]}; UserNS=host is what there is")
    if found:
        command.add("--userns=host")


def _networks(t: Translation, command: Command) -> None:
    for entry in t.every("Network"):
        name, colon, options = entry.value.partition(":")
        if name in keys.FOREIGN_NETWORKS:
            raise entry.problem(f"Network={entry.value} is refused: that network is podman's alone")
        if name == "container":
            command.add(f"--network={entry.value}")
            continue
        if name.endswith(".network"):
            t.needs(name, entry)
            name = t.house.resource(name, entry)
        elif name.endswith(".container"):
            t.needs(name, entry, bound=True)
            name = "container:" + t.house.resource(name, entry)
        if not colon:
            command.add(f"--network={name}")
            continue
        fields = [f"name={name}"]
        for option in options.split(","):
            key, _, value = option.partition("=")
            known = {"ip": "ip", "ip6": "ip6", "mac": "mac-address", "alias": "alias"}.get(key)
            if known is None:
                raise entry.problem(f"Network={entry.value}: {key} is refused; a network has ip, ip6, mac and alias")
            fields.append(f"{known}={value}")
        command.add(f"--network={','.join(fields)}")


def _volume_text(t: Translation, entry: Entry) -> str:
    """A value of Volume= for `--volume`."""
    source, colon, rest = entry.value.partition(":")
    if not colon:
        return entry.value
    if source.endswith(".volume"):
        t.needs(source, entry)
        source = t.house.resource(source, entry)
    elif source[0:1] in ("/", ".", "%", "~"):
        source = t.path(entry, source)
        if source.startswith("/"):
            t.unit.append(("RequiresMountsFor", source))
    target, colon, options = rest.partition(":")
    if colon:
        for option in options.split(","):
            if option in ("U", "O", "idmap") or option.startswith(("upperdir=", "workdir=", "idmap=")):
                raise entry.problem(f"Volume={entry.value}: the option {option} is podman's alone")
    return f"{source}:{target}{':' + options if colon else ''}"


def _volumes(t: Translation, command: Command) -> None:
    command.words += [f"--volume={_volume_text(t, entry)}" for entry in t.every("Volume")]
    if t.yes("VolatileTmp") and not t.yes("ReadOnly"):
        command.add("--tmpfs=/tmp:rw,size=512M,mode=1777")
    for entry in t.every("Mount"):
        for word in words(entry):
            command.add(f"--mount={_mount(t, entry, word)}")


def _mount(t: Translation, entry: Entry, text: str) -> str:
    """A value of Mount= for `--mount`: sources that are declared files, and relative paths, are replaced."""
    fields = text.split(",")
    kind = next((field.partition("=")[2] for field in fields if field.startswith("type=")), "volume")
    if kind not in ("bind", "volume", "tmpfs", "image"):
        raise entry.problem(f"Mount={text}: type={kind} is refused: give bind, volume, tmpfs or image")
    done = []
    for field in fields:
        key, equals, value = field.partition("=")
        if key in ("source", "src") and value.endswith((".volume", ".image", ".build")):
            t.needs(value, entry)
            value = t.house.resource(value, entry)
        elif key in ("source", "src") and kind == "bind":
            value = t.path(entry, value)
            if value.startswith("/"):
                t.unit.append(("RequiresMountsFor", value))
        elif key == "subpath" and kind in ("volume", "image"):  # podman's name of it
            key = f"{kind}-subpath"
        done.append(f"{key}{equals}{value}")
    return ",".join(done)


def _secrets(t: Translation, command: Command) -> None:
    """podman's secrets are systemd's credentials here: of the unit, or else of /etc/credstore and its like."""
    secrets = t.every("Secret")
    if not secrets:
        return
    given = set()
    for key in ("LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted"):
        given |= {entry.value.partition(":")[0] for entry in t.one.every("Service", key)}
    for entry in secrets:
        for word in words(entry):
            name, _, options = word.partition(",")
            for option in options.split(",") if options else ():
                if option.partition("=")[0] not in ("type", "target", "uid", "gid", "mode"):
                    raise entry.problem(
                        f"Secret={word}: {option} is refused; a secret has type, target, uid, gid and mode"
                    )
            if name not in given:
                t.service += [("LoadCredential", name), ("ImportCredential", name)]
                given.add(name)
            command.add(f"--secret={word}")


def _pod(t: Translation, command: Command) -> None:
    entry = t.last("Pod")
    if entry is None:
        return
    if not entry.value.endswith(".pod"):
        raise entry.problem(f"Pod={entry.value}: give the name of a file, NAME.pod")
    pod = t.house.find(entry.value, entry)
    for found in t.one.section(t.section):
        if found.key in keys.OF_THE_POD and found.value:
            raise found.problem(f"{found.key}= belongs into {pod.name}: containers of a pod share its network")
    t.needs(entry.value, entry, bound=True)
    name = t.house.resource(entry.value, entry)
    command.add(f"--network=container:{name}", f"--ipc=container:{name}", f"--label=io.teu.pod={name}")
    other = Translation(t.house, pod)
    command.words += [f"--volume={_volume_text(other, volume)}" for volume in pod.every("Pod", "Volume")]
    t.unit += other.unit


def _end(t: Translation, command: Command, name: str) -> None:
    """The end of a container, and what it does at `systemctl reload`."""
    seconds = STOP_SECONDS
    limit = t.last("StopTimeout")
    if limit:
        if not limit.value.isdecimal():
            raise limit.problem(f"StopTimeout={limit.value}: give whole seconds")
        seconds = int(limit.value)
        command.add(f"--stop-timeout={seconds}")
    if seconds + MARGIN_SECONDS > SYSTEMD_SECONDS:
        t.service.append(("TimeoutStopSec", str(seconds + MARGIN_SECONDS)))
    cmd, sign = t.last("ReloadCmd"), t.last("ReloadSignal")
    if cmd and sign:
        raise sign.problem("ReloadSignal= and ReloadCmd= exclude each other")
    if cmd:
        t.service.append(("ExecReload", Command(t.house.program, "exec", name, *words(cmd)).text()))
    if sign:
        t.service.append(("ExecReload", Command(t.house.program, "kill", f"--signal={sign.value}", name).text()))


def _settings(t: Translation, command: Command) -> None:
    driver = t.last("LogDriver")
    if driver:
        if driver.value in keys.FOREIGN_LOGS:
            raise driver.problem(f"LogDriver={driver.value} is refused: that driver is podman's alone")
        command.add(f"--log-driver={driver.value}")
    pull = t.last("Pull")
    if pull:
        if pull.value not in ("always", "missing", "never", "newer"):
            raise pull.problem(f"Pull={pull.value}: give always, missing, never or newer")
        command.add(f"--pull={pull.value}")
    _auto_update(t, command)
    _user_namespace(t, command)
    with_pod = t.last("StartWithPod")
    if with_pod:
        truth(with_pod)


def _auto_update(t: Translation, command: Command) -> None:
    found, image, pull = t.last("AutoUpdate"), t.value("Image"), t.value("Pull")
    if found is None:
        return
    if found.value not in ("registry", "local"):
        raise found.problem(f"AutoUpdate={found.value}: give registry or local")
    if "@" in image:
        raise found.problem(f"AutoUpdate={found.value} is refused: {image} is one image for ever")
    if pull in ("always", "newer"):
        raise found.problem(f"AutoUpdate={found.value} is refused: with Pull={pull} no image could be taken back")
    command.add(f"--label=io.containers.autoupdate={found.value}")


def _podman_args(t: Translation) -> list[str]:
    found = t.words("PodmanArgs")
    for entry in t.every("PodmanArgs"):
        for word in words(entry):
            if word.startswith("--restart") or word in ("--rm", "-d", "--detach", "--replace"):
                raise entry.problem(
                    f"PodmanArgs={word} is refused: the unit starts the container again, see Restart= of [Service]"
                )
    return found


def _pod_unit(t: Translation) -> Unit:
    name = t.value("PodName") or ("systemd-%p_%i" if "@" in t.one.stem else f"systemd-{t.one.stem}")
    command = Command(t.house.helper, "pod", "--unit=%n", f"--name={name}")
    policy = t.last("ExitPolicy")
    if policy and policy.value not in ("stop", "continue"):
        raise policy.problem(f"ExitPolicy={policy.value}: give stop or continue")
    if not policy or policy.value == "stop":
        t.unit.append(("StopWhenUnneeded", "yes"))
    _service_type(t, command)
    t.plain(command)
    _networks(t, command)
    _end(t, command, name)
    _user_namespace(t, command)
    command.words += _podman_args(t)
    for member in t.house.members.get(t.one.name, ()):
        other = t.house.declared[member]
        start = other.last("Container", "StartWithPod")
        if not other.template and (start is None or truth(start)):
            t.unit += [("Wants", unit_name(other)), ("Before", unit_name(other))]
    t.service.append(("ExecStopPost", Command("-" + t.house.helper, "remove", "--unit=%n", name).text()))
    t.service += [("Delegate", "yes"), ("KillMode", KILLED), ("Type", "notify"), ("NotifyAccess", "main")]
    return t.finish(command, False)


# -- what is made once --


def _network(t: Translation) -> Unit:
    name = t.value("NetworkName") or "systemd-" + t.one.stem.replace("@", "_%i" if t.one.template else "_")
    command = Command(t.house.helper, "network", "--unit=%n")
    t.plain(command)
    if t.yes("DisableDNS"):
        entry = t.last("DisableDNS")
        assert entry is not None
        raise entry.problem("DisableDNS=yes is refused: the engine answers for the names of its containers")
    driver = t.last("IPAMDriver")
    if driver and driver.value != "host-local":
        raise driver.problem(f"IPAMDriver={driver.value} is refused: addresses are the engine's (host-local)")
    bridge = t.last("InterfaceName")
    if bridge:
        kind = t.value("Driver", "bridge")
        command.add(f"--opt={'com.docker.network.bridge.name' if kind == 'bridge' else 'parent'}={bridge.value}")
    for entry in t.every("Options"):
        for option in entry.value.split(","):
            key, _, value = option.strip(BLANK).partition("=")
            written = keys.NETWORK_OPTIONS.get(key, key)
            if key == "mode":
                written = f"{t.value('Driver')}_mode"
            if not written:
                raise entry.problem(f"Options={option}: that option is podman's alone")
            command.add(f"--opt={written}={value}")
    command.words += t.words("PodmanArgs")
    command.add("--", name)
    if t.yes("NetworkDeleteOnStop"):
        t.service.append(("ExecStopPost", Command("-" + t.house.program, "network", "rm", name).text()))
    return t.finish(command, True)


def _volume(t: Translation) -> Unit:
    name = t.value("VolumeName") or "systemd-" + t.one.stem.replace("@", "_%i" if t.one.template else "_")
    command = Command(t.house.helper, "volume", "--unit=%n")
    t.plain(command)
    copy = t.last("Copy")
    if copy and not truth(copy):
        raise copy.problem("Copy=no is refused: give the option nocopy where the volume is mounted")
    driver = t.last("Driver")
    if driver and driver.value == "image":
        raise driver.problem("Driver=image is refused: mount an image with Mount=type=image")
    if driver:
        command.add(f"--driver={driver.value}")
    device, kind, options = t.last("Device"), t.last("Type"), t.last("Options")
    for entry, needs in ((kind, device), (options, device)):
        if entry and not needs:
            raise entry.problem(f"{entry.key}= needs Device=")
    for option, entry in (("device", device), ("type", kind), ("o", options)):
        if entry:
            command.add(f"--opt={option}={entry.value}")
    if device and (device.value.startswith("/") and not device.value.startswith("/dev/")):
        t.unit.append(("RequiresMountsFor", device.value))
    command.words += t.words("PodmanArgs")
    command.add("--", name)
    return t.finish(command, True)


def _platform(t: Translation) -> list[str]:
    system, machine, variant = t.value("OS"), t.value("Arch"), t.value("Variant")
    if not (system or machine or variant):
        return []
    if variant and not machine:
        entry = t.last("Variant")
        assert entry is not None
        raise entry.problem("Variant= needs Arch=")
    machine = {"aarch64": "arm64", "x86_64": "amd64"}.get(machine, machine)
    return ["--platform=" + "/".join(part for part in (system or "linux", machine, variant) if part)]


def _checked(t: Translation) -> None:
    found = t.last("TLSVerify")
    if found and not truth(found):
        raise found.problem(f"TLSVerify=no is refused: {keys.INSECURE[4:]}")


def _image(t: Translation) -> Unit:
    image = t.last("Image")
    if image is None:
        raise Problem(t.one.path, 0, "has no Image=")
    command = Command(t.house.helper, "image", "--unit=%n")
    if ":" in image.value and image.value.partition(":")[0] in ("docker-archive", "oci-archive", "oci", "dir"):
        raise image.problem(f"Image={image.value} is refused: teu load reads archives")
    t.plain(command)
    _checked(t)
    auth = t.last("AuthFile")
    if auth:
        command.add(f"--authfile={t.path(auth, auth.value)}")
    command.words += _platform(t) + t.words("PodmanArgs")
    command.add("--", image.value)
    return t.finish(command, True)


def _build(t: Translation) -> Unit:
    tags = t.every("ImageTag")
    if not tags:
        raise Problem(t.one.path, 0, "has no ImageTag=")
    command = Command(t.house.program, "build", "--progress=plain")
    command.words += [f"--tag={entry.value}" for entry in tags]
    t.plain(command)
    _checked(t)
    force = t.last("ForceRM")
    if force and not truth(force):
        raise force.problem("ForceRM=no is refused: a step leaves nothing behind")
    pull = t.last("Pull")
    if pull:
        if pull.value not in ("always", "missing", "true", "newer"):
            raise pull.problem(f"Pull={pull.value} is refused: give always, newer or missing")
        if pull.value != "missing":
            command.add("--pull")
    for entry in t.every("Network"):
        if entry.value not in ("host", "none", "default"):
            raise entry.problem(f"Network={entry.value} is refused: steps of a build have host, none or default")
        command.add(f"--network={entry.value}")
    command.words += _platform(t) + t.words("PodmanArgs")
    _context(t, command)
    return t.finish(command, True)


def _context(t: Translation, command: Command) -> None:
    """The Dockerfile and the folder of a build."""
    file, place = t.last("File"), t.last("SetWorkingDirectory")
    given = t.given("Service", "WorkingDirectory")
    if not file and not place and not given:
        raise Problem(t.one.path, 0, "has no File= and no SetWorkingDirectory=")
    context = given
    if place and place.value == "unit":
        context = given or t.one.path.rpartition("/")[0]
    elif place and place.value == "file":
        if not file:
            raise place.problem("SetWorkingDirectory=file needs File=")
        context = given or t.path(file, file.value).rpartition("/")[0]
    elif place:
        remote = place.value.startswith(("https://", "http://", "git://", "github.com/", "git@"))
        context = place.value if remote else t.path(place, place.value)
    if file:
        text = file.value
        if not text.startswith(("https://", "http://")):
            text = t.path(file, text)
        command.add(f"--file={text}")
        if not context:
            context = text.rpartition("/")[0]
    command.add("--", context)


KINDS: dict[str, Callable[[Translation], Unit]] = {
    "container": _container,
    "pod": _pod_unit,
    "network": _network,
    "volume": _volume,
    "image": _image,
    "build": _build,
}


def translate(house: House, one: Declared) -> Unit:
    """The unit of a file. What is wrong is then in the file's problems, and the unit tells it when it is started."""
    translation = Translation(house, one)
    translation.check()
    try:
        unit = KINDS[one.kind](translation)
    except Problem as error:
        if str(error) not in {str(known) for known in one.problems}:
            one.problems.append(error)
    if not one.problems:
        return unit
    lines = [("Description", f"{one.name}, which has a mistake"), ("SourcePath", one.path)]
    lines.append(("Documentation", "man:teu-containers(7)"))
    command = Command(house.program, "system", "validate", "--quiet", one.path)
    text = f"# Made by teu-system-generator from {one.path}, which has a mistake\n\n" + _section("Unit", lines)
    service = [("Type", "oneshot"), ("SyslogIdentifier", "%N"), ("ExecStart", command.text())]
    return Unit(unit_name(one), text + "\n" + _section("Service", service), links(one), [])
