# SPDX-License-Identifier: Apache-2.0
"""What each instruction does to its stage: to the file system to come, and to the image's configuration.

COPY and ADD are in `copies`, RUN is in `runs`.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping

from teu.buildkit.frontends.dockerfile import copies, lint, ports, runs
from teu.buildkit.frontends.dockerfile.errors import DockerfileError, suggestion
from teu.buildkit.frontends.dockerfile.ignore import join
from teu.buildkit.frontends.dockerfile.image import health_document, health_line
from teu.buildkit.frontends.dockerfile.instructions import (
    Add,
    Arg,
    Argument,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Instruction,
    Label,
    Maintainer,
    Onbuild,
    Run,
    Shell,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from teu.buildkit.frontends.dockerfile.lint import Linter
from teu.buildkit.frontends.dockerfile.shell import Lexer, expanded, quoted, upper_first
from teu.buildkit.frontends.dockerfile.stages import ArgInfo, Setting, Step, Work
from teu.buildkit.llb.build import Mkdir, owner

CONTENT_LIMIT = 8 << 20  # characters of a file that a Dockerfile holds, expanded
PORTS_LIMIT = 3 * 65536
SBOM_CONTEXT = "BUILDKIT_SBOM_SCAN_CONTEXT"
SBOM_STAGE = "BUILDKIT_SBOM_SCAN_STAGE"
_DENIED = re.compile(
    r"(?:_|^)(?:apikey|auth|credential|credentials|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE
)
_ALLOWED = re.compile(r"(?:_|^)(?:public|file|version)(?:_|$)", re.IGNORECASE)


def take(work: Work, step: Step, setting: Setting) -> None:
    """Do one step of a stage. Raises DockerfileError."""
    instruction = step.instruction
    linter = setting.linter.under(instruction.comments)
    work.in_trigger = step.onbuild

    def expand(word: str) -> str:
        found = setting.lexer.expand(word, work.state.environment)
        report_undefined(instruction, work.args, work.state.environment, found.unmatched, linter)
        return found.text

    def expand_contents(word: str) -> str:
        found = Lexer(process_quotes=False, limit=CONTENT_LIMIT).expand(word, work.state.environment)
        report_undefined(instruction, work.args, work.state.environment, found.unmatched, linter)
        return found.text

    if not isinstance(instruction, Arg):
        instruction.expand(expand)
    if isinstance(instruction, Copy):
        instruction.expand_contents(expand_contents)
        _copy(work, step, instruction, setting, linter)
    elif isinstance(instruction, Run):
        runs.run(work, instruction, step.sources, setting)
    elif isinstance(instruction, Label):
        _label(work, instruction, setting, linter)
    elif isinstance(instruction, Env):
        _env(work, instruction, setting, linter)
    elif isinstance(instruction, Workdir):
        workdir(work, instruction, setting, linter)
    elif isinstance(instruction, Cmd | Entrypoint):
        _command(work, instruction, setting, linter)
    elif isinstance(instruction, Expose):
        _expose(work, instruction, setting, linter)
    elif isinstance(instruction, Volume):
        _volume(work, instruction, setting)
    elif isinstance(instruction, Arg):
        _arg(work, instruction, setting, linter)
    else:
        _simple(work, instruction, setting, linter)


def _simple(work: Work, instruction: Instruction, setting: Setting, linter: Linter) -> None:
    """Instructions that set one thing of the configuration."""
    if isinstance(instruction, Healthcheck):
        _once(work, "HEALTHCHECK", instruction, linter)
        work.image.config["Healthcheck"] = health_document(instruction.health)
        work.image.commit(health_line(instruction.health), False, setting.epoch)
    elif isinstance(instruction, User):
        user(work, instruction.user)
        work.image.commit(f"USER {instruction.user}", False, setting.epoch)
    elif isinstance(instruction, StopSignal):
        check_signal(instruction.signal)
        work.image.config["StopSignal"] = instruction.signal
        work.image.commit(f"STOPSIGNAL {instruction.signal}", False, setting.epoch)
    elif isinstance(instruction, Shell):
        work.image.config["Shell"] = instruction.shell
        work.image.commit(f"SHELL [{' '.join(instruction.shell)}]", False, setting.epoch)
    elif isinstance(instruction, Maintainer):
        work.image.head["author"] = instruction.maintainer
        work.image.commit(f"MAINTAINER {instruction.maintainer}", False, setting.epoch)
    elif isinstance(instruction, Onbuild):
        work.image.config["OnBuild"] = [*(work.image.config.get("OnBuild") or []), instruction.expression]


def report_undefined(
    instruction: Instruction, args: list[Argument], environment: Mapping[str, str], names: set[str], linter: Linter
) -> None:
    known = {argument.key for argument in args}
    for name in sorted(names - known - {SBOM_CONTEXT, SBOM_STAGE}):
        meant = suggestion(name, environment)
        text = f"Usage of undefined variable '${name}'" + (f" (did you mean ${meant}?)" if meant else "")
        linter.run(lint.UNDEFINED_VAR, instruction.location, text)


def _no_secret(keyword: str, key: str, instruction: Instruction, linter: Linter) -> None:
    if _DENIED.search(key) and not _ALLOWED.search(key):
        text = f"Do not use ARG or ENV instructions for sensitive data ({keyword} {quoted(key)})"
        linter.run(lint.SECRETS_USED_IN_ARG_OR_ENV, instruction.location, text)


def _old_form(instruction: Env, linter: Linter) -> None:
    for pair in instruction.pairs:
        if pair.old_form:
            name = instruction.name
            text = f'"{name} key=value" should be used instead of legacy "{name} key value" format'
            linter.run(lint.LEGACY_KEY_VALUE_FORMAT, instruction.location, text)


def _env(work: Work, instruction: Env, setting: Setting, linter: Linter) -> None:
    _old_form(instruction, linter)
    for pair in instruction.pairs:
        _no_secret("ENV", pair.key, instruction, linter)
        work.state = work.state.env(pair.key, pair.value)
        work.image.set_env(pair.key, pair.value)
    work.image.commit("ENV " + " ".join(map(str, instruction.pairs)), False, setting.epoch)


def _label(work: Work, instruction: Label, setting: Setting, linter: Linter) -> None:
    _old_form(instruction, linter)
    labels = work.image.config.setdefault("Labels", {})
    for pair in instruction.pairs:
        labels[pair.key] = pair.value
    work.image.commit("LABEL " + " ".join(map(str, instruction.pairs)), False, setting.epoch)


def _arg(work: Work, instruction: Arg, setting: Setting, linter: Linter) -> None:
    said = []
    given = setting.options.build_args
    for argument in instruction.arguments:
        _no_secret("ARG", argument.key, instruction, linter)
        value = argument.value
        inherited = False
        if argument.key in given:
            value = given[argument.key]
        elif value is not None:
            environment = work.state.environment
            found = setting.lexer.expand(value, environment)
            report_undefined(instruction, work.args, environment, found.unmatched, linter)
            value = found.text
        elif argument.key in setting.global_args:
            value = setting.global_args[argument.key]
            inherited = True
        taken = Argument(argument.key, value, argument.description)
        if value is not None and argument.key not in (SBOM_CONTEXT, SBOM_STAGE):
            work.state = work.state.env(argument.key, value)
        if not inherited:
            work.outline.args[argument.key] = ArgInfo(taken, instruction.location, value or "")
        work.outline.used.add(argument.key)
        work.args = [*work.args, taken]
        said.append(argument.key if value is None else f"{argument.key}={value}")
    work.image.commit("ARG " + " ".join(said), False, setting.epoch)


def user(work: Work, name: str) -> None:
    work.state = work.state.with_(user=name)
    work.image.config["User"] = name


def set_workdir(work: Work, path: str) -> str:
    """The folder that steps and the image begin in; relative ones to the one before."""
    current = work.image.text("WorkingDir")
    path = path or current or "/"
    folder = path if path.startswith("/") else join("/", current, path)
    work.image.config["WorkingDir"] = folder
    work.state = work.state.dir(folder)
    return folder


def workdir(work: Work, instruction: Workdir, setting: Setting, linter: Linter) -> None:
    if not work.workdir_set and not instruction.path.startswith("/"):
        text = f"Relative workdir {quoted(instruction.path)} can have unexpected results if the base image changes"
        linter.run(lint.WORKDIR_RELATIVE_PATH, instruction.location, text)
    work.workdir_set = True
    folder = set_workdir(work, instruction.path)
    if folder != "/":
        shown = upper_first(expanded(setting.lexer, instruction.code, work.state.environment))
        name = work.prefixed(shown, work.platform or setting.target_platform, work.state.environment)
        marks = setting.marks(instruction, name, work)
        marks.ignore_cache = False
        made = Mkdir(
            folder,
            0o755,
            parents=True,
            owner=owner(work.image.text("User")) if work.image.text("User") else None,
            time=-1 if setting.epoch is None else setting.epoch * 10**9,
        )
        work.state = work.state.file(made, marks)
    work.image.commit("WORKDIR " + folder, folder != "/", setting.epoch)


def _once(work: Work, keyword: str, instruction: Instruction, linter: Linter) -> None:
    before = work.once.get(keyword)
    if before is not None:
        text = (
            f"Multiple {instruction.name} instructions should not be used in the same stage because only the last one "
            "will be used"
        )
        linter.run(lint.MULTIPLE_INSTRUCTIONS_DISALLOWED, before, text)
    work.once[keyword] = instruction.location


def _command(work: Work, instruction: Cmd | Entrypoint, setting: Setting, linter: Linter) -> None:
    keyword = "CMD" if isinstance(instruction, Cmd) else "ENTRYPOINT"
    _once(work, keyword, instruction, linter)
    args = instruction.args
    if instruction.shell:
        if not work.image.config.get("Shell"):
            reason = "to prevent unintended behavior related to OS signals"
            text = f"JSON arguments recommended for {instruction.name} {reason}"
            linter.run(lint.JSON_ARGS_RECOMMENDED, instruction.location, text)
        args = runs.with_shell(work.image, args)
    if isinstance(instruction, Cmd):
        work.image.config["Cmd"] = args
        work.image.config["ArgsEscaped"] = True
    else:
        work.image.config["Entrypoint"] = args
        if "CMD" not in work.once:
            work.image.config.pop("Cmd", None)
    work.image.commit(f"{keyword} [{' '.join(map(quoted, args))}]", False, setting.epoch)


def _expose(work: Work, instruction: Expose, setting: Setting, linter: Linter) -> None:
    found: list[str] = []
    for word in instruction.ports:
        for port in setting.lexer.words(word, work.state.environment):
            found += ports.parse(port, instruction.location, linter)
            if len(found) > PORTS_LIMIT:
                raise DockerfileError("EXPOSE names more ports than there are")
    exposed = work.image.config.setdefault("ExposedPorts", {})
    for port in found:
        exposed[port] = {}
    work.image.commit(f"EXPOSE [{' '.join(found)}]", False, setting.epoch)


def _volume(work: Work, instruction: Volume, setting: Setting) -> None:
    volumes = work.image.config.setdefault("Volumes", {})
    for volume in instruction.volumes:
        if not volume:
            raise DockerfileError("VOLUME specified can not be an empty string")
        volumes[volume] = {}
    work.image.commit(f"VOLUME [{' '.join(instruction.volumes)}]", False, setting.epoch)


_RANGE = re.compile(r"(?:SIG)?RTM(?:IN(?:\+([1-9]|1[0-5]))?|AX(?:-([1-9]|1[0-4]))?)\Z")


def check_signal(text: str) -> None:
    """Raises DockerfileError for what is no signal's name or number."""
    digits = text[1:] if text[:1] in ("+", "-") else text
    if digits.isascii() and digits.isdigit():
        if int(text) == 0:
            raise DockerfileError(f"invalid signal: {text}")
        return
    name = text.upper()
    known = "SIG" + name.removeprefix("SIG")
    if known in signal.Signals.__members__ or known in ("SIGSTKFLT", "SIGUNUSED") or _RANGE.match(name):
        return
    raise DockerfileError(f"invalid signal: {text}")


def _copy(work: Work, step: Step, instruction: Copy, setting: Setting, linter: Linter) -> None:
    adds = isinstance(instruction, Add)
    source = setting.context
    ignored = setting.ignored
    if step.sources:
        origin = step.sources[0]
        if not origin.dispatched:
            raise DockerfileError(
                f"cannot copy from stage {quoted(instruction.origin)}, it needs to be defined before current stage "
                f"{quoted(work.name)}"
            )
        source, ignored = origin.state, None
    copies.copy(work, instruction, source, ignored, setting, linter)
    paths = {
        join("/", path) for path in instruction.sources if not adds or not path.startswith(("http://", "https://"))
    }
    (step.sources[0].paths if step.sources else work.context_paths).update(paths)
