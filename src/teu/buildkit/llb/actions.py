# SPDX-License-Identifier: Apache-2.0
"""Changes of files, as one operation of LLB has them: made folders, files and links, removals, copies."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Any

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.llb.marks import text, texts
from teu.buildkit.llb.outputs import Files


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
            path=text(absolute(directory, self.path)),
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
            path=text(absolute(directory, self.path)), mode=self.mode & 0o777, data=self.data, timestamp=self.time
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
                path=text(absolute(directory, self.path)),
                allowNotFound=self.allow_not_found,
                allowWildcard=self.allow_wildcard,
            )
        )


@dataclass(frozen=True)
class Copy:
    """A copy out of another State. mode is octal, or None to keep it; mode_text is symbolic (u+x)."""

    source: Files
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
            src=text(join(self.source.directory or "/", self.src)),
            dest=text(absolute(directory, self.dest, keep_slash=True)),
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


def clean(path: str) -> str:
    cleaned = posixpath.normpath(path or ".")
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def join(directory: str, path: str) -> str:
    return clean(posixpath.join("/", directory, path))


def absolute(directory: str, path: str, keep_slash: bool = False) -> str:
    """An absolute path; keep_slash keeps a / or /. at its end, which says that a folder is meant."""
    result = join(directory, path)
    if keep_slash:
        if path.endswith("/") and not result.endswith("/"):
            result += "/"
        elif path.endswith("/."):
            result += "." if result == "/" else "/."
    return result
