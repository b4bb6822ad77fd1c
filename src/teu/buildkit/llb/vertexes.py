# SPDX-License-Identifier: Apache-2.0
"""The operations of LLB, and their outputs. `build` has the words to make them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.llb.actions import Action, Copy
from teu.buildkit.llb.marks import BuildError, Marks, text, texts
from teu.buildkit.llb.outputs import Files, Output, Vertex, settled_output
from teu.buildkit.llb.platforms import Platform

NO_INPUT = -1
NO_OUTPUT = -1


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
        settled = settled_output(output)
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
    source: Files | None = None
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
        self, base: Files, args: Sequence[str], mounts: Iterable[Mount], process: Process, marks: Marks
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
            if mount.source is not None and (settled := settled_output(mount.source.output)) is not None
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
        self._meta(run.meta, environment)
        run.network = _NETWORK[self.network]
        run.security = pb.INSECURE if process.insecure else pb.SANDBOX
        run.cdiDevices.extend(pb.CDIDevice(name=text(one.name), optional=one.optional) for one in process.devices)
        self._mount(run, inputs)
        self._hand_secrets(run)
        for socket, target in zip(process.ssh, sockets, strict=True):
            message = run.mounts.add(input=NO_INPUT, dest=text(target), mountType=pb.SSH)
            message.SSHOpt.CopyFrom(
                pb.SSHOpt(
                    ID=text(socket.id), uid=socket.uid, gid=socket.gid, mode=socket.mode, optional=socket.optional
                )
            )
        return op

    def _meta(self, meta: Any, environment: Mapping[str, str]) -> None:
        process = self.process
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

    def _mount(self, run: Any, inputs: _Inputs) -> None:
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

    def _hand_secrets(self, run: Any) -> None:
        for secret in self.process.secrets:
            if secret.env is not None:
                run.secretenv.add(ID=text(secret.id), name=text(secret.env), optional=secret.optional)
            if secret.target is not None:
                message = run.mounts.add(input=NO_INPUT, dest=text(secret.target), mountType=pb.SECRET)
                message.secretOpt.CopyFrom(
                    pb.SecretOpt(
                        ID=text(secret.id), uid=secret.uid, gid=secret.gid, mode=secret.mode, optional=secret.optional
                    )
                )


class File(Vertex):
    """Changes of files, one after the other."""

    def __init__(self, base: Files, actions: Iterable[Action], marks: Marks) -> None:
        super().__init__(marks)
        self.base = base
        self.actions = tuple(actions)
        marks.caps.add("file.base")
        for action in self.actions:
            marks.caps |= action.caps()

    def inputs(self) -> list[Output]:
        outputs = [self.base.output, *(one.source.output for one in self.actions if isinstance(one, Copy))]
        return [settled for output in outputs if (settled := settled_output(output)) is not None]

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
    def __init__(self, states: Sequence[Files], marks: Marks) -> None:
        super().__init__(marks)
        self.states = list(states)
        marks.caps.add("mergeop")

    def inputs(self) -> list[Output]:
        return [settled for state in self.states if (settled := settled_output(state.output)) is not None]

    def op(self, refer: Callable[[Output], Any], default: Platform) -> Any:
        op = _op(None)
        inputs = _Inputs(op, refer)
        for state in self.states:
            op.merge.inputs.add(input=inputs.index(state.output, share=False))
        return op


class Diff(Vertex):
    def __init__(self, lower: Files, upper: Files, marks: Marks) -> None:
        super().__init__(marks)
        self.lower = lower
        self.upper = upper
        marks.caps.add("diffop")

    def inputs(self) -> list[Output]:
        return [settled for state in (self.lower, self.upper) if (settled := settled_output(state.output)) is not None]

    def op(self, refer: Callable[[Output], Any], default: Platform) -> Any:
        op = _op(None)
        inputs = _Inputs(op, refer)
        op.diff.lower.input = inputs.index(self.lower.output, share=False)
        op.diff.upper.input = inputs.index(self.upper.output, share=False)
        return op


class Build(Vertex):
    """A definition that another operation wrote into a file."""

    def __init__(self, source: Files, filename: str, marks: Marks) -> None:
        super().__init__(marks)
        self.source = source
        self.filename = filename
        marks.caps.add("source.buildop.llbfilename")

    def inputs(self) -> list[Output]:
        settled = settled_output(self.source.output)
        return [] if settled is None else [settled]

    def op(self, refer: Callable[[Output], Any], default: Platform) -> Any:
        op = _op(self.marks.platform or default)
        _Inputs(op, refer).index(self.source.output)
        op.build.builder = -1
        op.build.inputs["buildkit.llb.definition"].input = 0
        if self.filename:
            op.build.attrs["llbbuild.filename"] = text(self.filename)
        return op


class Defined(Vertex):
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
