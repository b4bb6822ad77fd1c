# SPDX-License-Identifier: Apache-2.0
"""Git repositories as a Dockerfile or a context names them: URL#ref:subdir, or URL?ref=...&subdir=...

https:// and http:// are git only where the path ends in .git; git://, ssh:// and user@host:path always are. A context
may also be github.com/OWNER/NAME.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from teu.buildkit.frontends.dockerfile.errors import DockerfileError
from teu.buildkit.frontends.dockerfile.ignore import join
from teu.buildkit.frontends.dockerfile.lint import boolean
from teu.buildkit.frontends.dockerfile.shell import quoted

_SCHEME = re.compile(r"([a-zA-Z0-9]+)://")
_SWITCHES = {"keep-git-dir": "keep_git_dir", "submodules": "submodules", "fetch-by-commit": "fetch_by_commit"}
_SCP = re.compile(r"([a-zA-Z0-9\-_]+)@([a-zA-Z0-9\-.]+):(.*?)(?:\?(.*?))?(?:#(.*))?\Z", re.DOTALL)


@dataclass
class GitRef:
    """A repository and what is wanted of it. looks_local is the form github.com/..., which a COPY takes for a path."""

    remote: str
    scheme: str
    host: str
    path: str
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    looks_local: bool = False
    keep_git_dir: bool | None = None
    submodules: bool | None = None
    mtime: str = ""
    fetch_by_commit: bool = False


def parse(text: str) -> GitRef | None:
    """The repository, or None where the text names none. Raises DockerfileError for a repository with a bad query."""
    if text.startswith(("./", "../")):
        return None
    looks_local = text.startswith("github.com/")
    scheme = _SCHEME.match(text)
    if looks_local or scheme:
        if scheme and scheme[1].lower() not in ("http", "https", "ssh", "git"):
            return None
        try:
            parts = urlsplit("https://" + text if looks_local else text)
            host = parts.netloc.rpartition("@")[2]
            path = unquote(parts.path)
        except ValueError:
            return None
        query, fragment = parts.query, unquote(parts.fragment)
        remote = f"{parts.scheme}://{parts.netloc}{parts.path}"
        if looks_local:
            remote = remote.removeprefix("https://")
        elif parts.scheme in ("http", "https") and not path.endswith(".git"):
            return None
        found = GitRef(remote, parts.scheme, host, path, looks_local=looks_local)
    else:
        match = _SCP.match(text)
        if match is None:
            return None
        user, host, path, query, fragment = match[1], match[2], match[3], match[4] or "", match[5] or ""
        found = GitRef(f"{user}@{host}:{path}", "ssh", host, path)
    if fragment:
        found.ref, _, subdir = fragment.partition(":")
        found.subdir = join("/", subdir).removeprefix("/")
    _query(found, query)
    return found


def _query(found: GitRef, query: str) -> None:
    tag = branch = ""
    for key, values in parse_qs(query, keep_blank_values=True).items():
        if len(values) > 1:
            raise DockerfileError(f"query {quoted(key)} has multiple values")
        value = values[0]
        if not value and key not in _SWITCHES:
            raise DockerfileError(f"query {quoted(key)} has no value")
        if key == "ref":
            found.ref = _agreed("ref", found.ref, value)
        elif key == "tag":
            tag = value
        elif key == "branch":
            branch = value
        elif key == "subdir":
            found.subdir = _agreed("subdir", found.subdir, value)
        elif key in ("checksum", "commit"):
            found.checksum = value
        elif key in _SWITCHES:
            state = boolean(value) if value else True
            if state is None:
                raise DockerfileError(f"invalid {key} value: {quoted(value)}")
            setattr(found, _SWITCHES[key], state)
        elif key == "mtime":
            if value not in ("checkout", "commit"):
                raise DockerfileError(f'invalid mtime value: {quoted(value)} (must be "checkout" or "commit")')
            found.mtime = value
        else:
            raise DockerfileError(f"unexpected query {quoted(key)}")
    _name(found, tag, branch)


def _name(found: GitRef, tag: str, branch: str) -> None:
    if tag and branch:
        raise DockerfileError("branch conflicts with tag")
    for prefix, name in (("refs/tags/", tag), ("refs/heads/", branch)):
        if name:
            found.ref = _agreed("ref", found.ref, prefix + name.removeprefix(prefix))


def _agreed(what: str, one: str, other: str) -> str:
    if one and one != other:
        raise DockerfileError(f"{what} conflicts: {quoted(one)} vs {quoted(other)}")
    return other


def is_git(text: str) -> bool:
    try:
        return parse(text) is not None
    except DockerfileError:
        return False


def is_http(text: str) -> bool:
    return text.startswith(("http://", "https://")) and not is_git(text)
