# SPDX-License-Identifier: Apache-2.0
"""RUN: a process in the stage's file system, with its mounts."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from teu.buildkit.frontends.dockerfile.contexts import internal
from teu.buildkit.frontends.dockerfile.errors import DockerfileError
from teu.buildkit.frontends.dockerfile.ignore import clean, join
from teu.buildkit.frontends.dockerfile.image import Image
from teu.buildkit.frontends.dockerfile.instructions import Argument, Run
from teu.buildkit.frontends.dockerfile.mounts import Mount as Asked
from teu.buildkit.frontends.dockerfile.parser import heredoc_in, without_tabs
from teu.buildkit.frontends.dockerfile.shell import Lexer, expanded, quoted, upper_first
from teu.buildkit.frontends.dockerfile.stages import Setting, Work
from teu.buildkit.llb import build
from teu.buildkit.llb.build import SSH, Device, Marks, Mkdir, Mkfile, Mount, Owner, Process, Secret, State

_PIPES = "/dev/pipes/"


def with_shell(image: Image, args: list[str]) -> list[str]:
    """The image's shell, with the arguments as one text."""
    shell = image.config.get("Shell")
    if not shell:
        shell = ["cmd", "/S", "/C"] if image.platform.os == "windows" else ["/bin/sh", "-c"]
    return [*shell, " ".join(args)]


def run(work: Work, instruction: Run, sources: list[Work], setting: Setting) -> None:
    """Raises DockerfileError."""
    work.paths.add("/")  # a process may read anything
    environment = work.state.environment
    args, summary, script = _command(work, instruction)
    if instruction.shell:
        args = with_shell(work.image, args)
    secrets, sockets = _secrets(work, instruction), _sockets(work, instruction)
    mounts = [*script, *_mounts(work, instruction, sources, setting)]
    options = setting.options
    if options.shm_size > 0:
        mounts.append(Mount("/dev/shm", tmpfs=options.shm_size))
    process = Process(
        network=None if instruction.network == "default" else instruction.network,
        insecure=instruction.security == "insecure",
        proxy=setting.proxy,
        secrets=tuple(secrets),
        ssh=tuple(sockets),
        devices=tuple(Device(device.name, not device.required) for device in instruction.devices),
        ulimits=options.ulimits,
        extra_hosts=options.extra_hosts,
        cgroup_parent=options.cgroup_parent,
    )
    lexer = Lexer(setting.lexer.escape, raw_quotes=True, keep_unset=True)
    masked = {**environment, **{secret.env: "****" for secret in secrets if secret.env is not None}}
    shown = upper_first(expanded(lexer, instruction.code + summary, masked))
    marks = setting.marks(instruction, work.prefixed(shown, work.state.platform, environment), work)
    marks.command = instruction.code
    marks.resources = options.resources
    work.state = work.state.run(args, mounts, process, marks).root
    line = "RUN " + _with_args(args, work.args, environment) + " # buildkit"
    work.image.commit(line, True, setting.epoch)


def _command(work: Work, instruction: Run) -> tuple[list[str], str, list[Mount]]:
    """Arguments, what the step's name says of a heredoc, and the mount that a script is in."""
    args, files = instruction.args, instruction.files
    if not files:
        return args, "", []
    if len(args) != 1 or not instruction.shell:
        raise DockerfileError(f"parsing produced an invalid run command: [{' '.join(args)}]")
    if heredoc_in(args[0]) is None:
        # More than one heredoc, or words beside it: the shell reads them.
        return ["".join([args[0], *(f"\n{file.content}{file.name}" for file in files)])], "", []
    first = files[0]
    data = without_tabs(first.content) if first.chomp else first.content
    summary = f" ({_summary(first.content)})"
    if work.image.platform.os == "windows" or not data.startswith("#!"):
        return [data], summary, []
    marks = internal("preparing inline document")
    marks.platform = work.platform
    script = build.scratch().file(Mkfile(first.name, 0o755, data.encode("utf-8", "surrogateescape")), marks)
    # A file of its own, which is run: what #! says is the kernel's to read.
    return [join(_PIPES, first.name)], summary, [Mount(_PIPES, script, "/", readonly=True)]


def _summary(text: str) -> str:
    lines = text.strip().replace("\r\n", "\n").split("\n")
    return lines[0] + ("..." if len(lines) > 1 else "")


def _with_args(args: list[str], given: list[Argument], environment: Mapping[str, str]) -> str:
    """The command with the ARGs that it saw before it: |1 NAME=value /bin/sh -c ..."""
    seen: dict[str, str] = {}
    for argument in given:
        seen[argument.key] = environment.get(argument.key, argument.value or "")
    before = [f"|{len(seen)}", *(f"{key}={value}" for key, value in seen.items())] if seen else []
    return " ".join([*before, *args])


def _mounts(work: Work, instruction: Run, sources: list[Work], setting: Setting) -> list[Mount]:
    result = []
    for asked, source in zip(instruction.mounts, sources, strict=True):
        if asked.type in ("secret", "ssh"):
            continue
        origin = asked.origin or ("scratch" if asked.type == "cache" else "")
        state = setting.context
        if origin:
            state = source.state
            if not source.dispatched:
                raise DockerfileError(
                    f"cannot mount from stage {quoted(origin)} to {quoted(asked.target)}, stage needs to be defined "
                    "before current command"
                )
        mount = Mount("", state, readonly=asked.readonly)
        if asked.type == "tmpfs":
            state = build.scratch()
            mount.source, mount.tmpfs = state, asked.size
        elif asked.type == "bind" and not asked.readonly:
            mount.no_output = True
        elif asked.type == "cache":
            mount.sharing = asked.sharing or "shared"
            mount.cache = f"{setting.options.cache_namespace}/{asked.id or clean(asked.target)}"
        mount.target = asked.target
        if not clean(asked.target).startswith("/"):
            mount.target = join("/", work.state.directory, asked.target)
        if mount.target == "/":
            raise DockerfileError(f"invalid mount target {quoted(mount.target)}")
        path = join("/", asked.source)
        if path != "/":
            mount.selector = path
        elif asked.uid is not None or asked.gid is not None or asked.mode is not None:
            mount.source, mount.selector = _owned(asked, state), "/cache"
        result.append(mount)
        (source.paths if origin else work.context_paths).add(path)
    return result


def _owned(asked: Asked, state: State) -> State:
    mode = 0o755 if asked.mode is None else asked.mode
    made = Mkdir("/cache", mode, owner=Owner(asked.uid or 0, asked.gid or 0))
    return state.file(made, Marks(name="[internal] setting cache mount permissions"))


def _owner(asked: Asked, mode: int) -> dict[str, int]:
    """Owner and mode: the default mode holds only where nothing is said."""
    return {"uid": asked.uid or 0, "gid": asked.gid or 0, "mode": mode if asked.mode is None else asked.mode}


def _secrets(work: Work, instruction: Run) -> list[Secret]:
    result = []
    for asked in instruction.mounts:
        if asked.type != "secret":
            continue
        identity = asked.source or asked.id or posixpath.basename(asked.target.rstrip("/")) or "."
        target = asked.target or None
        if asked.env is None and target is None:
            target = "/run/secrets/" + (posixpath.basename(identity.rstrip("/")) or "/")
        work.outline.secrets.setdefault(identity, (asked.required, instruction.location))
        result.append(Secret(identity, target, asked.env, not asked.required, **_owner(asked, 0o400)))
    return result


def _sockets(work: Work, instruction: Run) -> list[SSH]:
    result = []
    for asked in instruction.mounts:
        if asked.type != "ssh":
            continue
        if asked.source:
            raise DockerfileError("ssh does not support source")
        work.outline.ssh.setdefault(asked.id or "default", (asked.required, instruction.location))
        result.append(SSH(asked.id, asked.target, not asked.required, **_owner(asked, 0o600)))
    return result
