# SPDX-License-Identifier: Apache-2.0
"""Making definitions of LLB: what a build does, as a graph of operations.

    base = image("docker.io/library/debian:13")
    built = base.run(("make",), mounts=[Mount("/src", local("context"))]).root
    definition = scratch().file(copy(built, "/out", "/")).definition(platform)

A State is a file system to come, with the environment that a process in it would have. States never change: every
method gives a new one, and work is described, not done. A definition is the same bytes for the same States: operations
stand after their inputs, and an operation's digest is that of its bytes, in which names, places and groups for the
progress do not count: these are metadata beside it.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.llb import platforms
from teu.buildkit.llb.platforms import Platform
from teu.oci import jsontext

NO_INPUT = -1
NO_OUTPUT = -1
AUTH_TOKEN = "GIT_AUTH_TOKEN"
AUTH_HEADER = "GIT_AUTH_HEADER"


class BuildError(ValueError):
    """What was described cannot be an operation."""


class Ranges(Protocol):
    """Lines of a source file, both ends included, counted from 1."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


@dataclass
class SourceMap:
    """The file that operations come from, for messages that show its lines."""

    filename: str
    data: bytes
    language: str = "Dockerfile"
    definition: Any = None  # how the file itself is had, a pb.Definition

    def message(self) -> Any:
        info = pb.SourceInfo(filename=text(self.filename), data=self.data, language=self.language)
        if self.definition is not None:
            info.definition.CopyFrom(self.definition)
        return info


@dataclass(frozen=True)
class Group:
    """Vertexes that progress shows as one. A weak one is shown only where another of the group is."""

    id: str
    name: str
    weak: bool = False


@dataclass
class Marks:
    """What is said beside an operation: nothing of it is in the operation's digest, but for the platform."""

    name: str = ""
    command: str = ""  # the line of the Dockerfile
    platform: Platform | None = None
    ignore_cache: bool = False
    group: Group | None = None
    resources: Any = None  # pb.LinuxResources
    locations: list[tuple[SourceMap, tuple[Ranges, ...]]] = field(default_factory=list)
    caps: set[str] = field(default_factory=set)

    def message(self) -> Any:
        result = pb.OpMetadata(ignore_cache=self.ignore_cache)
        if self.name:
            result.description["llb.customname"] = text(self.name)
        if self.command:
            result.description["com.docker.dockerfile.v1.command"] = text(self.command)
        for cap in sorted(self.caps):
            result.caps[cap] = True
        if self.group is not None:
            result.progress_group.CopyFrom(
                pb.ProgressGroup(id=self.group.id, name=text(self.group.name), weak=self.group.weak)
            )
        if self.resources is not None:
            result.linux_resources.CopyFrom(self.resources)
        return result


def text(value: str) -> str:
    """Text that protobuf takes: U+FFFD in place of bytes that are no UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return value


def texts(values: Iterable[str]) -> list[str]:
    return [text(value) for value in values]


class Vertex:
    """An operation."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks

    def inputs(self) -> list[Output]:
        """The outputs of other operations that it needs, each once, in a fixed order."""
        return []

    def op(self, refer: Callable[[Output], Any], default: Platform) -> Any:
        """The pb.Op; `refer` gives the pb.Input of an output."""
        raise NotImplementedError


class Output:
    """One result of an operation. `platform` is what a State made of it runs on, where the operation knows."""

    def __init__(self, vertex: Vertex, index: int = 0, platform: Platform | None = None) -> None:
        self.vertex = vertex
        self.index = index
        self.platform = platform

    def settled(self) -> Output | None:
        return self


class Later(Output):
    """An output that is known only before the definition is made: `settle` is asked once, then. None is scratch."""

    def __init__(self, settle: Callable[[], State]) -> None:
        self._settle = settle
        self._state: State | None = None
        self.platform = None

    def settled(self) -> Output | None:
        if self._state is None:
            self._state = self._settle()
        return self._state.output.settled() if self._state.output is not None else None


def _settled(output: Output | None) -> Output | None:
    return None if output is None else output.settled()


def _platform_message(platform: Platform) -> Any:
    return pb.Platform(
        OS=text(platform.os),
        Architecture=text(platform.architecture),
        Variant=text(platform.variant),
        OSVersion=text(platform.os_version),
        OSFeatures=texts(platform.os_features),
    )


def _op(platform: Platform | None) -> Any:
    op = pb.Op(constraints=pb.WorkerConstraints())
    op.constraints.SetInParent()
    if platform is not None:
        op.platform.CopyFrom(_platform_message(platform))
    return op


class _Inputs:
    """The inputs of one operation, equal ones once."""

    def __init__(self, op: Any, refer: Callable[[Output], Any]) -> None:
        self.op = op
        self.refer = refer

    def index(self, output: Output | None, share: bool = True) -> int:
        """The number of an output among the inputs; NO_INPUT for scratch."""
        settled = _settled(output)
        if settled is None:
            return NO_INPUT
        message = self.refer(settled)
        if share:
            for number, other in enumerate(self.op.inputs):
                if other.digest == message.digest and other.index == message.index:
                    return number
        self.op.inputs.append(message)
        return len(self.op.inputs) - 1


class Source(Vertex):
    """What comes from outside: identifier is scheme://what."""

    def __init__(self, identifier: str, attributes: Mapping[str, str], marks: Marks) -> None:
        super().__init__(marks)
        self.identifier = identifier
        self.attributes = dict(attributes)

    def op(self, refer: Callable[[Output], Any], default: Platform) -> Any:
        if not self.identifier:
            raise BuildError("source identifier can't be empty")
        specific = self.identifier.startswith(("docker-image://", "oci-layout://"))
        op = _op(self.marks.platform or default if specific else None)
        op.source.identifier = text(self.identifier)
        for key, value in sorted(self.attributes.items()):
            op.source.attrs[key] = text(value)
        return op


@dataclass
class Mount:
    """A mount of a process. `source` None is scratch; `selector` is the path in it.

    cache is the name of a cache that outlives the build; tmpfs its size in bytes, zero without a limit; no_output says
    that what is written is lost.
    """

    target: str
    source: State | None = None
    selector: str = ""
    readonly: bool = False
    cache: str = ""
    sharing: str = "shared"
    tmpfs: int | None = None
    no_output: bool = False

    @property
    def has_output(self) -> bool:
        return not (self.readonly or self.no_output or self.cache or self.tmpfs is not None)


@dataclass(frozen=True)
class Secret:
    """A secret as a file (target), as a variable (env), or both."""

    id: str
    target: str | None = None
    env: str | None = None
    optional: bool = False
    uid: int = 0
    gid: int = 0
    mode: int = 0o400


@dataclass(frozen=True)
class SSH:
    """A socket of the client's ssh agent; an empty target gives it a place of its own."""

    id: str = ""
    target: str = ""
    optional: bool = False
    uid: int = 0
    gid: int = 0
    mode: int = 0o600


@dataclass(frozen=True)
class Proxy:
    http: str = ""
    https: str = ""
    ftp: str = ""
    no: str = ""
    all: str = ""


@dataclass(frozen=True)
class Ulimit:
    name: str
    soft: int
    hard: int


@dataclass(frozen=True)
class Device:
    """A CDI device."""

    name: str
    optional: bool = False


@dataclass(frozen=True)
class Process:
    """What a run may say beyond its arguments."""

    network: str | None = None  # "", "host", "none": that of the State where None
    insecure: bool = False
    proxy: Proxy | None = None
    secrets: tuple[Secret, ...] = ()
    ssh: tuple[SSH, ...] = ()
    devices: tuple[Device, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()
    cgroup_parent: str = ""
    valid_exit_codes: tuple[int, ...] = ()
    readonly_root: bool = False


_NETWORK = {"": pb.UNSET, "host": pb.HOST, "none": pb.NONE}
_SHARING = {"shared": pb.SHARED, "private": pb.PRIVATE, "locked": pb.LOCKED}


class Exec(Vertex):
    """A process in a State, with mounts; those that are written to are outputs, the root the first of them by path."""

    def __init__(
        self, base: State, args: Sequence[str], mounts: Iterable[Mount], process: Process, marks: Marks
    ) -> None:
        super().__init__(marks)
        self.base = base
        self.args = tuple(args)
        root = Mount("/", base, readonly=process.readonly_root)
        self.mounts = sorted([root, *mounts], key=lambda mount: mount.target.encode("utf-8", "surrogateescape"))
        self.process = process
        self._caps()

    def _caps(self) -> None:
        caps = self.marks.caps
        caps |= {"exec.meta.base", "exec.meta.setsdefaultpath"}
        process = self.process
        for wanted, cap in (
            (process.ulimits, "exec.meta.ulimit"),
            (self.marks.resources, "exec.meta.linux.resources"),
            (self.network, "exec.meta.network"),
            (process.insecure, "exec.meta.security"),
            (process.proxy, "exec.meta.proxyenv"),
            (process.secrets, "exec.mount.secret"),
            (any(secret.env is not None for secret in process.secrets), "exec.secretenv"),
            (process.ssh, "exec.mount.ssh"),
            (process.devices, "exec.meta.cdi"),
            (process.valid_exit_codes, "exec.validexitcode"),
        ):
            if wanted:
                caps.add(cap)
        for mount in self.mounts:
            if mount.selector:
                caps.add("exec.mount.selector")
            if mount.cache:
                caps |= {"exec.mount.cache", "exec.mount.cache.sharing"}
            elif mount.tmpfs is not None:
                caps.add("exec.mount.tmpfs")
                if mount.tmpfs:
                    caps.add("exec.mount.tmpfs.size")
            elif mount.source is not None and mount.source.output is not None:
                caps.add("exec.mount.bind")

    @property
    def network(self) -> str:
        return self.base.network if self.process.network is None else self.process.network

    def inputs(self) -> list[Output]:
        return [
            settled
            for mount in self.mounts
            if mount.source is not None and (settled := _settled(mount.source.output)) is not None
        ]

    def output_of(self, wanted: Mount) -> int:
        return [mount for mount in self.mounts if mount.has_output].index(wanted)

    def op(self, refer: Callable[[Output], Any], default: Platform) -> Any:
        if not self.args:
            raise BuildError("arguments are required")
        if not self.base.directory:
            raise BuildError("working directory is required")
        op = _op(self.marks.platform or self.base.platform or default)
        inputs = _Inputs(op, refer)
        process = self.process
        run = op.exec
        environment = dict(self.base.environment)
        sockets = [socket.target or f"/run/buildkit/ssh_agent.{at}" for at, socket in enumerate(process.ssh)]
        if sockets:
            environment.setdefault("SSH_AUTH_SOCK", sockets[0])
        meta = run.meta
        meta.args.extend(texts(self.args))
        meta.env.extend(text(f"{key}={value}") for key, value in environment.items())
        meta.cwd = text(self.base.directory)
        meta.user = text(self.base.user)
        meta.hostname = text(self.base.hostname)
        meta.cgroupParent = text(process.cgroup_parent)
        meta.removeMountStubsRecursive = True
        meta.validExitCodes.extend(process.valid_exit_codes)
        meta.extraHosts.extend(pb.HostIP(Host=text(host), IP=text(ip)) for host, ip in process.extra_hosts)
        meta.ulimit.extend(pb.Ulimit(Name=text(one.name), Soft=one.soft, Hard=one.hard) for one in process.ulimits)
        if process.proxy is not None:
            proxy = process.proxy
            meta.proxy_env.CopyFrom(
                pb.ProxyEnv(
                    http_proxy=text(proxy.http),
                    https_proxy=text(proxy.https),
                    ftp_proxy=text(proxy.ftp),
                    no_proxy=text(proxy.no),
                    all_proxy=text(proxy.all),
                )
            )
        run.network = _NETWORK[self.network]
        run.security = pb.INSECURE if process.insecure else pb.SANDBOX
        run.cdiDevices.extend(pb.CDIDevice(name=text(one.name), optional=one.optional) for one in process.devices)
        written = 0
        for mount in self.mounts:
            message = run.mounts.add()
            message.input = inputs.index(mount.source.output if mount.source is not None else None)
            message.dest = text(mount.target)
            message.readonly = mount.readonly
            message.selector = text(mount.selector)
            message.output = NO_OUTPUT
            if mount.has_output:
                message.output = written
                written += 1
            if mount.cache:
                message.mountType = pb.CACHE
                message.cacheOpt.ID = text(mount.cache)
                message.cacheOpt.sharing = _SHARING[mount.sharing]
            if mount.tmpfs is not None:
                if message.input != NO_INPUT:
                    raise BuildError("tmpfs mounts must use scratch")
                message.mountType = pb.TMPFS
                message.TmpfsOpt.SetInParent()
                message.TmpfsOpt.size = mount.tmpfs
        for secret in process.secrets:
            if secret.env is not None:
                run.secretenv.add(ID=text(secret.id), name=text(secret.env), optional=secret.optional)
            if secret.target is not None:
                message = run.mounts.add(input=NO_INPUT, dest=text(secret.target), mountType=pb.SECRET)
                message.secretOpt.CopyFrom(
                    pb.SecretOpt(
                        ID=text(secret.id), uid=secret.uid, gid=secret.gid, mode=secret.mode, optional=secret.optional
                    )
                )
        for socket, target in zip(process.ssh, sockets, strict=True):
            message = run.mounts.add(input=NO_INPUT, dest=text(target), mountType=pb.SSH)
            message.SSHOpt.CopyFrom(
                pb.SSHOpt(
                    ID=text(socket.id), uid=socket.uid, gid=socket.gid, mode=socket.mode, optional=socket.optional
                )
            )
        return op


@dataclass(frozen=True)
class Owner:
    """NAME[:GROUP] of a file to come: numbers as they are, names from the /etc/passwd of the file system written to."""

    user: str | int
    group: str | int | None = None

    def message(self, base: int) -> Any:
        result = pb.ChownOpt(user=self._one(self.user, base))
        if self.group is not None:
            result.group.CopyFrom(self._one(self.group, base))
        return result

    @staticmethod
    def _one(value: str | int, base: int) -> Any:
        if isinstance(value, int):
            return pb.UserOpt(byID=value)
        return pb.UserOpt(byName=pb.NamedUserOpt(name=text(value), input=base))


def owner(value: str) -> Owner:
    """USER[:GROUP] as docker writes it."""

    def one(part: str) -> str | int:
        if part == "root":
            return 0
        digits = part[1:] if part[:1] in ("+", "-") else part
        if digits.isascii() and digits.isdigit() and -(1 << 31) <= int(part) < 1 << 31:
            return int(part) & 0xFFFFFFFF
        return part or 0

    user, separator, group = value.partition(":")
    return Owner(one(user), one(group) if separator else None)


@dataclass(frozen=True)
class Mkdir:
    path: str
    mode: int
    parents: bool = False
    owner: Owner | None = None
    time: int = -1  # nanoseconds of the epoch; -1 is the time of the build

    def caps(self) -> set[str]:
        return set()

    def fill(self, action: Any, directory: str, base: int) -> None:
        made = pb.FileActionMkDir(
            path=text(_path(directory, self.path)),
            mode=self.mode & 0o777,
            makeParents=self.parents,
            timestamp=self.time,
        )
        if self.owner is not None:
            made.owner.CopyFrom(self.owner.message(base))
        action.mkdir.CopyFrom(made)


@dataclass(frozen=True)
class Mkfile:
    path: str
    mode: int
    data: bytes
    owner: Owner | None = None
    time: int = -1

    def caps(self) -> set[str]:
        return set()

    def fill(self, action: Any, directory: str, base: int) -> None:
        made = pb.FileActionMkFile(
            path=text(_path(directory, self.path)), mode=self.mode & 0o777, data=self.data, timestamp=self.time
        )
        if self.owner is not None:
            made.owner.CopyFrom(self.owner.message(base))
        action.mkfile.CopyFrom(made)


@dataclass(frozen=True)
class Symlink:
    old: str
    new: str
    owner: Owner | None = None
    time: int = -1

    def caps(self) -> set[str]:
        return {"file.symlink.create"}

    def fill(self, action: Any, directory: str, base: int) -> None:
        made = pb.FileActionSymlink(oldpath=text(self.old), newpath=text(self.new), timestamp=self.time)
        if self.owner is not None:
            made.owner.CopyFrom(self.owner.message(base))
        action.symlink.CopyFrom(made)


@dataclass(frozen=True)
class Remove:
    path: str
    allow_not_found: bool = False
    allow_wildcard: bool = False

    def caps(self) -> set[str]:
        return set()

    def fill(self, action: Any, directory: str, base: int) -> None:
        action.rm.CopyFrom(
            pb.FileActionRm(
                path=text(_path(directory, self.path)),
                allowNotFound=self.allow_not_found,
                allowWildcard=self.allow_wildcard,
            )
        )


@dataclass(frozen=True)
class Copy:
    """A copy out of another State. mode is octal, or None to keep it; mode_text is symbolic (u+x)."""

    source: State
    src: str
    dest: str
    owner: Owner | None = None
    mode: int | None = None
    mode_text: str = ""
    follow_symlinks: bool = False
    contents_only: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    unpack: bool = False
    create_dest: bool = False
    wildcard: bool = False
    empty_wildcard: bool = False
    replace_existing: bool = False
    time: int = -1

    def caps(self) -> set[str]:
        result = set()
        if self.include or self.exclude:
            result.add("file.copy.includeexcludepatterns")
        if self.required:
            result.add("file.copy.requiredpaths")
        if self.replace_existing:
            result.add("file.copy.alwaysreplaceexistingdestpaths")
        if self.mode_text:
            result.add("file.copy.modestring")
        return result

    def fill(self, action: Any, directory: str, base: int) -> None:
        made = pb.FileActionCopy(
            src=text(_join(self.source.directory or "/", self.src)),
            dest=text(_path(directory, self.dest, keep_slash=True)),
            mode=-1 if self.mode is None and not self.mode_text else self.mode or 0,
            modeStr=text(self.mode_text),
            followSymlink=self.follow_symlinks,
            dirCopyContents=self.contents_only,
            attemptUnpackDockerCompatibility=self.unpack,
            createDestPath=self.create_dest,
            allowWildcard=self.wildcard,
            allowEmptyWildcard=self.empty_wildcard,
            timestamp=self.time,
            include_patterns=texts(self.include),
            exclude_patterns=texts(self.exclude),
            required_paths=texts(self.required),
            alwaysReplaceExistingDestPaths=self.replace_existing,
        )
        if self.owner is not None:
            made.owner.CopyFrom(self.owner.message(base))
        action.copy.CopyFrom(made)


Action = Mkdir | Mkfile | Symlink | Remove | Copy


def _clean(path: str) -> str:
    cleaned = posixpath.normpath(path or ".")
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def _join(directory: str, path: str) -> str:
    return _clean(posixpath.join("/", directory, path))


def _path(directory: str, path: str, keep_slash: bool = False) -> str:
    """An absolute path; keep_slash keeps a / or /. at its end, which says that a folder is meant."""
    result = _join(directory, path)
    if keep_slash:
        if path.endswith("/") and not result.endswith("/"):
            result += "/"
        elif path.endswith("/."):
            result += "." if result == "/" else "/."
    return result


class File(Vertex):
    """Changes of files, one after the other."""

    def __init__(self, base: State, actions: Iterable[Action], marks: Marks) -> None:
        super().__init__(marks)
        self.base = base
        self.actions = tuple(actions)
        marks.caps.add("file.base")
        for action in self.actions:
            marks.caps |= action.caps()

    def inputs(self) -> list[Output]:
        outputs = [self.base.output, *(one.source.output for one in self.actions if isinstance(one, Copy))]
        return [settled for output in outputs if (settled := _settled(output)) is not None]

    def op(self, refer: Callable[[Output], Any], default: Platform) -> Any:
        if not self.actions:
            raise BuildError("action is required")
        op = _op(None)
        inputs = _Inputs(op, refer)
        base = inputs.index(self.base.output)
        sources = [inputs.index(one.source.output) if isinstance(one, Copy) else NO_INPUT for one in self.actions]
        count = len(op.inputs)
        for at, (one, source) in enumerate(zip(self.actions, sources, strict=True)):
            action = op.file.actions.add()
            action.input = base if at == 0 else count + at - 1
            action.secondaryInput = source
            action.output = 0 if at + 1 == len(self.actions) else NO_OUTPUT
            one.fill(action, self.base.directory or "/", base)
        return op


class Merge(Vertex):
    def __init__(self, states: Sequence[State], marks: Marks) -> None:
        super().__init__(marks)
        self.states = list(states)
        marks.caps.add("mergeop")

    def inputs(self) -> list[Output]:
        return [settled for state in self.states if (settled := _settled(state.output)) is not None]

    def op(self, refer: Callable[[Output], Any], default: Platform) -> Any:
        op = _op(None)
        inputs = _Inputs(op, refer)
        for state in self.states:
            op.merge.inputs.add(input=inputs.index(state.output, share=False))
        return op


class Diff(Vertex):
    def __init__(self, lower: State, upper: State, marks: Marks) -> None:
        super().__init__(marks)
        self.lower = lower
        self.upper = upper
        marks.caps.add("diffop")

    def inputs(self) -> list[Output]:
        return [settled for state in (self.lower, self.upper) if (settled := _settled(state.output)) is not None]

    def op(self, refer: Callable[[Output], Any], default: Platform) -> Any:
        op = _op(None)
        inputs = _Inputs(op, refer)
        op.diff.lower.input = inputs.index(self.lower.output, share=False)
        op.diff.upper.input = inputs.index(self.upper.output, share=False)
        return op


class Build(Vertex):
    """A definition that another operation wrote into a file."""

    def __init__(self, source: State, filename: str, marks: Marks) -> None:
        super().__init__(marks)
        self.source = source
        self.filename = filename
        marks.caps.add("source.buildop.llbfilename")

    def inputs(self) -> list[Output]:
        settled = _settled(self.source.output)
        return [] if settled is None else [settled]

    def op(self, refer: Callable[[Output], Any], default: Platform) -> Any:
        op = _op(self.marks.platform or default)
        _Inputs(op, refer).index(self.source.output)
        op.build.builder = -1
        op.build.inputs["buildkit.llb.definition"].input = 0
        if self.filename:
            op.build.attrs["llbbuild.filename"] = text(self.filename)
        return op


class _Defined(Vertex):
    """An operation of a definition that was made elsewhere: its bytes and its digest stay."""

    def __init__(self, data: bytes, digest: str, message: Any, metadata: Any, parts: list[Output]) -> None:
        super().__init__(Marks())
        self.data = data
        self.digest = digest
        self.message = message
        self.metadata = metadata
        self.parts = parts

    def inputs(self) -> list[Output]:
        return self.parts


@dataclass(frozen=True)
class State:
    """A file system to come (None: an empty one), and what a process in it would find."""

    output: Output | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: str = ""
    hostname: str = ""
    network: str = ""
    platform: Platform | None = None

    def env(self, key: str, value: str) -> State:
        """With a variable, which comes last."""
        environment = {name: old for name, old in self.environment.items() if name != key}
        environment[key] = value
        return replace(self, environment=environment)

    def dir(self, path: str) -> State:
        return replace(self, directory=path if path.startswith("/") else _join(self.directory or "/", path))

    def with_(self, **changes: Any) -> State:
        """With another user, hostname, network or platform."""
        return replace(self, **changes)

    def at(self, output: Output | None) -> State:
        """The same surroundings of another file system."""
        known = output.platform if output is not None else None
        return replace(self, output=output, platform=known or self.platform)

    def run(
        self,
        args: Sequence[str],
        mounts: Iterable[Mount] = (),
        process: Process | None = None,
        marks: Marks | None = None,
    ) -> Run:
        """A process in this file system."""
        vertex = Exec(self, args, mounts, process or Process(), marks or Marks())
        return Run(self, vertex)

    def file(self, actions: Action | Sequence[Action], marks: Marks | None = None) -> State:
        """Changes of this file system's files, in their order."""
        given = [actions] if isinstance(actions, Action) else list(actions)
        return self.at(Output(File(self, given, marks or Marks())))

    def with_image_config(self, config: Mapping[str, Any]) -> State:
        """With the environment, folder and platform of an image's configuration."""
        inner = config.get("config") or {}
        state = self
        for variable in inner.get("Env") or []:
            key, _, value = str(variable).partition("=")
            if key:
                state = state.env(key, value)
        state = state.dir(str(inner.get("WorkingDir") or ""))
        if config.get("architecture") and config.get("os"):
            state = state.with_(
                platform=Platform(
                    str(config["os"]),
                    str(config["architecture"]),
                    str(config.get("variant") or ""),
                    str(config.get("os.version") or ""),
                    tuple(config.get("os.features") or ()),
                )
            )
        return state

    def definition(self, platform: Platform | None = None) -> Any:
        """The pb.Definition. `platform` is that of operations that name none; the host's where it is None."""
        return _Writer(platform or platforms.host()).write(self)


@dataclass(frozen=True)
class Run:
    """A process's results."""

    base: State
    vertex: Exec

    @property
    def root(self) -> State:
        """The file system after the process."""
        for mount in self.vertex.mounts:
            if mount.target == "/":
                return self.output(mount)
        raise BuildError("a process without a root")

    def output(self, mount: Mount) -> State:
        """What a mount holds after the process."""
        if mount.readonly:
            return self.base.at(mount.source.output if mount.source is not None else None)
        if mount.tmpfs is not None:
            raise BuildError(f"tmpfs mount for {mount.target} can't be used as a parent")
        if not mount.has_output:
            raise BuildError(f"mount marked no-output and {mount.target} can't be used as a parent")
        return self.base.at(Output(self.vertex, self.vertex.output_of(mount), self.vertex.marks.platform))


class _Writer:
    """Writes one definition: every operation once, after its inputs."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.digests: dict[int, str] = {}
        self.kept: list[Vertex] = []  # keeps the ids above from being used again
        self.result = pb.Definition()
        self.written: set[str] = set()
        self.maps: list[SourceMap] = []
        self.locations: dict[str, list[Any]] = {}

    def refer(self, output: Output) -> Any:
        return pb.Input(digest=self.digests[id(output.vertex)], index=output.index)

    def write(self, state: State) -> Any:
        last = _settled(state.output)
        if last is None:
            return self.result
        # Without recursion: a Dockerfile may have more steps than Python has frames.
        waiting: list[tuple[Vertex, bool]] = [(last.vertex, False)]
        entered: set[int] = set()
        while waiting:
            vertex, ready = waiting.pop()
            if id(vertex) in self.digests:
                continue
            if ready:
                self.add(vertex)
                continue
            if id(vertex) in entered:
                raise BuildError("an operation needs its own result")
            entered.add(id(vertex))
            self.kept.append(vertex)
            waiting.append((vertex, True))
            waiting += [(part.vertex, False) for part in reversed(vertex.inputs())]
        end = pb.Op(inputs=[self.refer(last)])
        data = end.SerializeToString(deterministic=True)
        caps = {"constraints", "platform"}
        for metadata in self.result.metadata.values():
            if metadata.ignore_cache:
                caps.add("meta.ignorecache")
            if metadata.description:
                caps.add("meta.description")
            if metadata.HasField("export_cache"):
                caps.add("meta.exportcache")
        self.append(data, Marks(caps=caps).message())
        self.sources()
        return self.result

    def add(self, vertex: Vertex) -> None:
        if isinstance(vertex, _Defined):
            digest = self.append(vertex.data, vertex.metadata)
        else:
            op = vertex.op(self.refer, self.platform)
            digest = self.append(op.SerializeToString(deterministic=True), vertex.marks.message())
        self.digests[id(vertex)] = digest
        for source_map, ranges in vertex.marks.locations:
            if source_map not in self.maps:
                self.maps.append(source_map)
            location = pb.Location(sourceIndex=self.maps.index(source_map))
            for part in ranges:
                location.ranges.add(start=pb.Position(line=part.start), end=pb.Position(line=part.end))
            self.locations.setdefault(digest, []).append(location)

    def append(self, data: bytes, metadata: Any) -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        known = self.result.metadata[digest]
        if metadata is not None:
            if metadata.HasField("progress_group"):
                known.ClearField("progress_group")
            known.MergeFrom(metadata)
        if digest not in self.written:
            self.written.add(digest)
            getattr(self.result, "def").append(data)
        return digest

    def sources(self) -> None:
        source = self.result.Source
        source.SetInParent()
        source.infos.extend(one.message() for one in self.maps)
        for digest, locations in self.locations.items():
            source.locations[digest].locations.extend(locations)


def scratch() -> State:
    """An empty file system."""
    return State()


def _source(identifier: str, attributes: Mapping[str, str], marks: Marks, *caps: str) -> State:
    marks.caps.update(caps)
    return State().at(Output(Source(identifier, attributes, marks), 0, marks.platform))


def image(
    reference: str,
    platform: Platform | None = None,
    resolve_mode: str = "default",
    checksum: str = "",
    record_type: str = "",
    marks: Marks | None = None,
) -> State:
    """An image by its full reference. resolve_mode: default, pull (ask the registry) or local (take what is there)."""
    marks = marks or Marks()
    marks.platform = platform or marks.platform
    attributes = {}
    caps = ["source.image"]
    if resolve_mode not in ("", "default"):
        attributes["image.resolvemode"] = resolve_mode
        if resolve_mode == "pull":
            caps.append("source.image.resolvemode")
    if record_type:
        attributes["image.recordtype"] = record_type
    if checksum:
        attributes["image.checksum"] = checksum
        caps.append("source.image.checksum")
    return _source("docker-image://" + reference, attributes, marks, *caps)


def local(
    name: str,
    session: str = "",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow: Sequence[str] = (),
    shared_key: str = "",
    differ: str = "",
    unique: str = "",
    marks: Marks | None = None,
) -> State:
    """A folder of the client, by the name that its session knows it by."""
    attributes: dict[str, str] = {}
    caps = ["source.local"]
    for key, value, cap in (
        ("local.session", session, "sessionid"),
        ("local.includepattern", _json(include), "includepatterns"),
        ("local.followpaths", _json(follow), "followpaths"),
        ("local.excludepatterns", _json(exclude), "excludepatterns"),
        ("local.sharedkeyhint", shared_key, "sharedkeyhint"),
        ("local.unique", "" if session else unique, "unique"),
    ):
        if value:
            attributes[key] = value
            caps.append("source.local." + cap)
    if differ:
        attributes["local.differ"] = differ
    return _source("local://" + name, attributes, marks or Marks(), *caps)


def _json(values: Sequence[str]) -> str:
    if not values:
        return ""
    # Go's encoder also hides these three, for pages of HTML; whoever compares attributes sees them.
    encoded = jsontext.dumps(texts(values))
    return encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def git(
    remote: str,
    host: str,
    path: str,
    ref: str = "",
    subdir: str = "",
    keep_git_dir: bool = False,
    checksum: str = "",
    submodules: bool = True,
    mtime: str = "",
    fetch_by_commit: bool = False,
    ssh: bool = False,
    marks: Marks | None = None,
) -> State:
    """A git repository; `remote` is its address for git, host and path name it whatever the protocol."""
    identifier = host + _clean("/" + path)
    if ref or subdir:
        identifier += "#" + ref + (":" + subdir if subdir else "")
    attributes = {"git.authtokensecret": AUTH_TOKEN, "git.authheadersecret": AUTH_HEADER}
    caps = ["source.git"]
    for key, value, cap in (
        ("git.fullurl", remote, "fullurl"),
        ("git.keepgitdir", "true" if keep_git_dir else "", "keepgitdir"),
        ("git.checksum", checksum, "checksum"),
        ("git.skipsubmodules", "" if submodules else "true", "skipsubmodules"),
        ("git.mtime", mtime, "mtime"),
        ("git.fetchbycommit", "true" if fetch_by_commit else "", "fetchbycommit"),
        ("git.mountsshsock", "default" if ssh else "", "mountsshsock"),
    ):
        if value:
            attributes[key] = value
            caps.append("source.git." + cap)
    return _source("git://" + identifier, attributes, marks or Marks(), *caps)


def http(url: str, filename: str = "", checksum: str = "", mode: int = 0, marks: Marks | None = None) -> State:
    """A download: one file of that name."""
    attributes = {}
    caps = ["source.http"]
    if checksum:
        attributes["http.checksum"] = checksum
        caps.append("source.http.checksum")
    if filename:
        attributes["http.filename"] = filename
    if mode:
        attributes["http.perm"] = f"0{mode & 0o777:o}"
        caps.append("source.http.perm")
    return _source(url, attributes, marks or Marks(), *caps)


def oci_layout(
    reference: str, session: str = "", store: str = "", platform: Platform | None = None, marks: Marks | None = None
) -> State:
    """An image in a layout that the client's session serves."""
    marks = marks or Marks()
    marks.platform = platform or marks.platform
    attributes = {}
    if session:
        attributes["oci.session"] = session
    if store:
        attributes["oci.store"] = store
    return _source("oci-layout://" + reference, attributes, marks, "source.ocilayout")


def copy(source: State, src: str, dest: str, **options: Any) -> Copy:
    return Copy(source, src, dest, **options)


def merge(states: Sequence[State], marks: Marks | None = None) -> State:
    """One file system over the other; empty ones do not count."""
    present = [state for state in states if state.output is not None]
    if not present:
        return scratch()
    if len(present) == 1:
        return present[0]
    return present[0].at(Output(Merge(present, marks or Marks())))


def diff(lower: State, upper: State, marks: Marks | None = None) -> State:
    """What `upper` has beyond `lower`."""
    if lower.output is None:
        return upper if upper.output is not None else scratch()
    return lower.at(Output(Diff(lower, upper, marks or Marks())))


def build(source: State, filename: str = "", marks: Marks | None = None) -> State:
    """The result of a definition in a file of `source`."""
    return State().at(Output(Build(source, filename, marks or Marks())))


def later(settle: Callable[[], State]) -> State:
    """A State that is decided when the first definition with it is made."""
    return State(Later(settle))


def from_definition(definition: Any) -> State:
    """The State of a definition that was made elsewhere. Raises BuildError where it hangs together badly."""
    data = list(getattr(definition, "def"))
    if not data:
        return scratch()
    messages: dict[str, tuple[bytes, Any]] = {}
    end = ""
    for one in data:
        message = pb.Op()
        try:
            message.ParseFromString(one)
        except Exception as error:  # protobuf's own class differs between its versions
            raise BuildError(f"failed to parse llb proto op: {error}") from None
        end = "sha256:" + hashlib.sha256(one).hexdigest()
        messages[end] = (one, message)
    # Operations stand after their inputs; what does not is asked for again below.
    vertexes: dict[str, _Defined] = {}
    maps = [SourceMap(one.filename, one.data, one.language, one.definition) for one in definition.Source.infos]

    def outputs(message: Any) -> list[Output]:
        found = []
        for part in message.inputs:
            if part.digest not in vertexes:
                raise BuildError(f"invalid missing input digest {part.digest}")
            vertex = vertexes[part.digest]
            platform = None
            if vertex.message.HasField("platform"):
                known = vertex.message.platform
                platform = Platform(
                    known.OS, known.Architecture, known.Variant, known.OSVersion, tuple(known.OSFeatures)
                )
            found.append(Output(vertex, part.index, platform))
        return found

    for digest, (one, message) in messages.items():
        if digest == end:
            break
        metadata = definition.metadata.get(digest)
        vertex = _Defined(one, digest, message, metadata, outputs(message))
        if digest in definition.Source.locations:
            for location in definition.Source.locations[digest].locations:
                if not 0 <= location.sourceIndex < len(maps):
                    raise BuildError(f"failed to find source map with index {location.sourceIndex}")
                ranges = tuple(_Lines(part.start.line, part.end.line) for part in location.ranges)
                vertex.marks.locations.append((maps[location.sourceIndex], ranges))
        vertexes[digest] = vertex
    last = outputs(messages[end][1])
    if not last:
        return scratch()
    return State().at(last[0])


@dataclass(frozen=True)
class _Lines:
    start: int
    end: int
