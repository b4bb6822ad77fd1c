# SPDX-License-Identifier: Apache-2.0
"""Image references as Docker's users write them, and in the full form that containerd keeps.

    busybox                    docker.io/library/busybox:latest      familiar: busybox:latest
    user/app:1                 docker.io/user/app:1                  familiar: user/app:1
    localhost:5000/app@sha256  localhost:5000/app@sha256:...         familiar: the same

Grammar of a reference (distribution's): [domain/]path[:tag][@digest], a domain being the first part
where that has a dot, a colon or an upper-case letter, or is "localhost".
"""

from __future__ import annotations

import re
from typing import NamedTuple

from teu.oci import digest as digests

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
OFFICIAL = "library/"
NAME_LENGTH = 255

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}\Z")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}\Z")


class ReferenceError_(ValueError):
    """The text is no image reference; str() is the message that docker's users know."""


class Reference(NamedTuple):
    """A parsed reference. `tag` and `digest` are empty where none was written."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The full repository name: docker.io/library/busybox."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The repository name as docker shows it: busybox."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        rest = self.path.removeprefix(OFFICIAL)
        return rest if "/" not in rest else self.path

    def __str__(self) -> str:
        return self.name + self._suffix()

    def familiar(self) -> str:
        """As docker shows it: without docker.io and library/, with its tag or digest."""
        return self.familiar_name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def with_default_tag(self) -> Reference:
        """The same with ":latest" where neither tag nor digest was written."""
        return self if self.tag or self.digest else self._replace(tag=DEFAULT_TAG)


def parse(text: str) -> Reference:
    """Parse what a user wrote; raises ReferenceError_ with docker's message."""
    if not text:
        raise ReferenceError_("invalid reference format: repository name must have at least one component")
    if _IDENTIFIER.match(text):
        raise ReferenceError_(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    rest, at, digest = text.partition("@")
    domain, path_and_tag = _split_domain(rest)
    path, _colon, tag = path_and_tag.partition(":")
    if path != path.lower():
        raise ReferenceError_(f"invalid reference format: repository name ({path}) must be lowercase")
    if not _PATH.match(path) or not _DOMAIN.match(domain):
        raise ReferenceError_("invalid reference format")
    if _colon and not _TAG.match(tag):
        raise ReferenceError_("invalid reference format")
    if at:
        if not _DIGEST.match(digest):
            raise ReferenceError_("invalid reference format")
        try:
            digests.check(digest)
        except digests.DigestError as error:
            raise ReferenceError_(str(error)) from None
    reference = Reference(domain, path, tag, digest)
    if len(path) > NAME_LENGTH or len(reference.name) > NAME_LENGTH:
        raise ReferenceError_(f"repository name must not be more than {NAME_LENGTH} characters")
    return reference


def _split_domain(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if slash and (any(c in first for c in ".:") or first == "localhost" or first.lower() != first):
        domain = DEFAULT_DOMAIN if first == "index.docker.io" else first
    else:
        domain, rest = DEFAULT_DOMAIN, text
    if domain == DEFAULT_DOMAIN and "/" not in rest:
        rest = OFFICIAL + rest
    return domain, rest
