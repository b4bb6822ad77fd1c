# SPDX-License-Identifier: Apache-2.0
"""Paths without detours, and what a .dockerignore says of them (patterns: oci.patterns)."""

from __future__ import annotations

from teu.buildkit.frontends.dockerfile.errors import DockerfileError
from teu.oci.patterns import BadPattern, Patterns

_BOM = b"\xef\xbb\xbf"


def clean(path: str) -> str:
    """The shortest equal path (Go's path.Clean): no empty or . parts, .. resolved where a name stands before it."""
    rooted = path.startswith("/")
    parts: list[str] = []
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".." or not rooted:
            parts.append(part)
    return ("/" if rooted else "") + "/".join(parts) or "."


def join(*parts: str) -> str:
    """Go's path.Join: the parts that are not empty with / between them, cleaned."""
    present = [part for part in parts if part]
    return clean("/".join(present)) if present else ""


def read_ignore_file(data: bytes) -> list[str]:
    """The patterns of a .dockerignore file, relative to the context."""
    result = []
    for number, raw in enumerate(data.split(b"\n")):
        line = raw.removesuffix(b"\r")
        if number == 0:
            line = line.removeprefix(_BOM)
        text = line.decode("utf-8", "surrogateescape")
        if text.startswith("#"):
            continue
        text = text.strip()
        if not text:
            continue
        excepted = text.startswith("!")
        if excepted:
            text = text[1:].strip()
        if text:
            text = clean(text)
            if len(text) > 1:
                text = text.removeprefix("/")
        result.append("!" + text if excepted else text)
    return result


class Ignored:
    """What a .dockerignore leaves out. Raises DockerfileError for a line that is no pattern."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        try:
            self.patterns = Patterns(texts)
        except BadPattern as error:
            raise DockerfileError(str(error)) from None

    @property
    def has_exceptions(self) -> bool:
        return self.patterns.exceptions

    @property
    def everything(self) -> bool:
        """Whether a line leaves out all that the context has."""
        return any(text in ("*", "**", "**/*") for text in self.texts)

    def __contains__(self, path: str) -> bool:
        return self.patterns.matches(path)[0]
