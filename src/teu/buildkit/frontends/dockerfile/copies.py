# SPDX-License-Identifier: Apache-2.0
"""COPY and ADD: files of the context, of a stage, an image, the web, git, or written in the Dockerfile."""

from __future__ import annotations

import hashlib
import posixpath
import re
from typing import Any
from urllib.parse import unquote, urlsplit

from teu.buildkit.frontends.dockerfile import gitref, lint
from teu.buildkit.frontends.dockerfile.contexts import internal
from teu.buildkit.frontends.dockerfile.errors import DockerfileError
from teu.buildkit.frontends.dockerfile.ignore import Ignored, clean, join
from teu.buildkit.frontends.dockerfile.instructions import Add, Copy
from teu.buildkit.frontends.dockerfile.lint import Linter
from teu.buildkit.frontends.dockerfile.shell import expanded, quoted, upper_first
from teu.buildkit.frontends.dockerfile.stages import Setting, Work
from teu.buildkit.llb import build
from teu.buildkit.llb.actions import Action
from teu.buildkit.llb.build import Group, Marks, Mkfile, State
from teu.oci import digest as digests

_SYMBOLIC = re.compile(r"[ugoa]*(?:[-+=](?:[rwxXst]*|[ugo]))+(?:,[ugoa]*(?:[-+=](?:[rwxXst]*|[ugo]))+)*\Z")


def copy(
    work: Work, instruction: Copy, source: State, ignored: Ignored | None, setting: Setting, linter: Linter
) -> None:
    """Raises DockerfileError."""
    adds = isinstance(instruction, Add)
    destination = _destination(work.state, instruction.destination)
    common = _common(instruction)
    _check_checksum(instruction)
    environment = work.state.environment
    platform = work.platform or setting.target_platform
    shown = upper_first(expanded(setting.lexer, instruction.code, environment))
    name = work.prefixed(shown, platform, environment)
    actions: list[Action] = []
    for path in instruction.sources:
        found = gitref.parse(path)
        if found is not None and not found.looks_local:
            if not adds:
                raise DockerfileError("source can't be a git ref for COPY")
            state = _git(instruction, found, name)
            actions.append(build.Copy(state, "/", destination, create_dest=True, **common))
        elif gitref.is_http(path):
            if not adds:
                raise DockerfileError("source can't be a URL for COPY")
            file = _filename(path)
            checksum = _digest(instruction.checksum)
            state = build.http(path, file, checksum, marks=Marks(name=name))
            unpack = bool(instruction.unpack)
            actions.append(build.Copy(state, file, destination, create_dest=True, unpack=unpack, **common))
        else:
            _check_ignored(path, adds, ignored, instruction, linter)
            actions.append(_files(instruction, source, path, destination, common))
    for content in instruction.contents:
        marks = internal("preparing inline document")
        marks.platform = work.platform
        data = content.data.encode("utf-8", "surrogateescape")
        state = build.scratch().file(Mkfile(content.path, 0o644, data), marks)
        actions.append(build.Copy(state, content.path, destination, create_dest=True, **common))

    marks = setting.marks(instruction, name, work)
    if instruction.link and not instruction.chmod:
        # The files are a layer of their own, which stays the same whatever is below it; shown as one step.
        identity = hashlib.sha256(f"{platform.full}\0{work.stage.code}\0{name}".encode("utf-8", "replace"))
        group = Group(identity.hexdigest()[:25], name, weak=True)
        marks.group = group
        marks.platform = work.platform
        work.index -= 1
        linked = setting.marks(instruction, work.prefixed("LINK " + shown, platform, environment), work)
        linked.group = Group(group.id, group.name)
        files = build.scratch().file(actions, marks)
        merged = build.merge([work.state, files], linked)
        work.state = work.state.at(merged.output)
    else:
        work.state = work.state.file(actions, marks)
    work.image.commit(_history_line(instruction), True, setting.epoch)


def _history_line(instruction: Copy) -> str:
    said = ["ADD" if isinstance(instruction, Add) else "COPY"]
    if instruction.parents:
        said.append("--parents")
    if instruction.chown:
        said.append("--chown=" + instruction.chown)
    if instruction.chmod:
        said.append("--chmod=" + instruction.chmod)
    said += [*instruction.sources, *("<<" + content.path for content in instruction.contents), instruction.destination]
    return " ".join(said) + " # buildkit"


def _destination(state: State, path: str) -> str:
    """An absolute path, with the / at its end that says that it is a folder."""
    if path.startswith("/"):
        return path
    path = path if path not in ("", ".") else "./"
    result = join(state.directory or "/", path)
    if path.endswith("/") and not result.endswith("/"):
        return result + "/"
    if path.endswith("/."):
        return result + ("." if result == "/" else "/.")
    return result


def _common(instruction: Copy) -> dict[str, Any]:
    """What --chown, --chmod and --exclude say, for every source."""
    result: dict[str, Any] = {}
    if instruction.chown:
        result["owner"] = build.owner(instruction.chown)
    if instruction.excludes:
        result["exclude"] = tuple(instruction.excludes)
    mode = instruction.chmod
    if mode:
        octal = all(character in "01234567" for character in mode)
        wrong = f"invalid chmod parameter: '{mode}'. it should be octal string and between 0 and 07777"
        if octal and len(mode) <= 11:
            if int(mode, 8) > 0o7777:
                raise DockerfileError(wrong)
            result["mode"] = int(mode, 8)
        elif _SYMBOLIC.match(mode):
            result["mode_text"] = mode
        else:
            raise DockerfileError(wrong)
    return result


def _check_checksum(instruction: Copy) -> None:
    if not instruction.checksum:
        return
    if len(instruction.sources) != 1:
        raise DockerfileError("checksum can't be specified for multiple sources")
    if not gitref.is_http(instruction.sources[0]) and not gitref.is_git(instruction.sources[0]):
        raise DockerfileError("checksum requires HTTP(S) or Git sources")


def _digest(text: str) -> str:
    if text:
        try:
            digests.check(text)
        except digests.DigestError as error:
            raise DockerfileError(str(error)) from None
    return text


def _git(instruction: Copy, found: gitref.GitRef, name: str) -> State:
    keep = instruction.keep_git_dir
    if keep is not None and found.keep_git_dir is not None and keep != found.keep_git_dir:
        raise DockerfileError("inconsistent keep-git-dir configuration")
    checksum = instruction.checksum
    if checksum and found.checksum and checksum != found.checksum:
        raise DockerfileError(f"checksum mismatch {quoted(checksum)} != {quoted(found.checksum)}")
    return build.git(
        found.remote,
        found.host,
        found.path,
        found.ref,
        found.subdir,
        keep_git_dir=bool(keep if found.keep_git_dir is None else found.keep_git_dir),
        checksum=found.checksum or checksum,
        submodules=found.submodules is not False,
        mtime=found.mtime,
        fetch_by_commit=found.fetch_by_commit,
        ssh=found.scheme == "ssh",
        marks=Marks(name=name),
    )


def _filename(url: str) -> str:
    try:
        name = posixpath.basename(unquote(urlsplit(url).path).rstrip("/"))
    except ValueError:
        name = ""
    return name if name not in ("", ".", "..") else "__unnamed__"


def _files(instruction: Copy, source: State, path: str, destination: str, common: dict[str, Any]) -> build.Copy:
    include: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    if instruction.parents:
        # /./ says where the folders that are kept begin.
        parent, pivot, pattern = path.partition("/./")
        if not pivot:
            parent, pattern = "/", path
        pattern = pattern if pattern.startswith("/") else join("/", pattern)
        include = (pattern.removeprefix("/"),)
        if not _has_wildcards(parent) and not _has_wildcards(pattern):
            required = (join("/", parent, pattern),)
        path = parent
    path = path if path.startswith("/") else join("/", path)
    unpack = isinstance(instruction, Add) if instruction.unpack is None else instruction.unpack
    return build.Copy(
        source,
        path,
        destination,
        follow_symlinks=True,
        contents_only=True,
        include=include,
        required=required,
        unpack=unpack,
        create_dest=True,
        wildcard=True,
        empty_wildcard=True,
        **common,
    )


def _has_wildcards(text: str) -> bool:
    return any(mark in re.sub(r"\\.", "", text, flags=re.DOTALL) for mark in "*?[")


def _check_ignored(path: str, adds: bool, ignored: Ignored | None, instruction: Copy, linter: Linter) -> None:
    if ignored is None or ignored.has_exceptions:
        return
    path = clean(path)
    if path in (".", "/") and not ignored.everything:
        return
    if path in ignored:
        text = f"Attempting to {'Add' if adds else 'Copy'} file {quoted(path)} that is excluded by .dockerignore"
        linter.run(lint.COPY_IGNORED_FILE, instruction.location, text)
