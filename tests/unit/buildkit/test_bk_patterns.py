# SPDX-License-Identifier: Apache-2.0
"""Patterns of paths: what they match, and that no text makes them slow."""

from __future__ import annotations

import posixpath
import time
from random import Random

import pytest

from teu.oci.patterns import BadPattern, Patterns, has_wildcards, wildcard


@pytest.mark.parametrize(
    ("patterns", "path", "expected"),
    [
        (["*.go"], "a.go", True),
        (["*.go"], "x/a.go", False),
        (["**/*.go"], "x/y/a.go", True),
        (["**/*.go"], "a.go", True),
        (["**"], "any/thing", True),
        (["a/**"], "a/b/c", True),
        (["a/**/b"], "a/b", True),
        (["a/**/b"], "a/x/y/b", True),
        (["node_modules"], "node_modules/x/y", True),
        (["node_modules"], "src/node_modules", False),
        (["docs", "!docs/README.md"], "docs/README.md", False),
        (["docs", "!docs/README.md"], "docs/other.md", True),
        (["*", "!src"], "src/deep/file", False),
        (["*.md", "!README*.md", "README-secret.md"], "README-secret.md", True),
        (["*.md", "!README*.md", "README-secret.md"], "README.md", False),
        (["a?c"], "abc", True),
        (["a?c"], "a/c", False),
        (["[a-c]x"], "bx", True),
        (["[^a-c]x"], "bx", False),
        (["[^a-c]x"], "dx", True),
        (["\\*"], "*", True),
        (["\\*"], "x", False),
        (["a+b(c)"], "a+b(c)", True),
        (["./foo/"], "foo/bar", True),
        (["  spaces  "], "spaces", True),
        (["**foo"], "x/foo", True),
        ([""], "x", False),
    ],
)
def test_matches(patterns: list[str], path: str, expected: bool) -> None:
    made = Patterns(patterns)
    assert made.matches(path)[0] is expected
    # The same answer comes when the folders are asked first.
    parents: tuple[bool, ...] = ()
    parts = path.split("/")
    for count in range(1, len(parts) + 1):
        matched, parents = made.matches("/".join(parts[:count]), parents)
    assert matched is expected


@pytest.mark.parametrize("pattern", ["!", "[a", "a[", "[]", "[a-]", "x\\", "[-]"])
def test_bad_patterns(pattern: str) -> None:
    with pytest.raises(BadPattern):
        Patterns([pattern])


def test_wildcards_of_path_match() -> None:
    assert wildcard("/a/*/c").fullmatch("/a/b/c")
    assert not wildcard("/a/*").fullmatch("/a/b/c")
    assert wildcard("/a**").fullmatch("/ab") and not wildcard("/a**").fullmatch("/a/b")
    assert has_wildcards("a*") and not has_wildcards("a\\*") and has_wildcards("[x]")


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("**/a/" * 12 + "b", "a/" * 40 + "c"),
        ("*a" * 20 + "b", "a" * 200),
        ("**/*a*a*a/" * 8 + "b", "aaaaaaaa/" * 40 + "c"),
        ("**a" * 4 + "b", "a/" * 40 + "c"),
    ],
)
def test_no_pattern_is_slow(pattern: str, path: str) -> None:
    begun = time.monotonic()
    assert not Patterns([pattern]).matches(path)[0]
    assert time.monotonic() - begun < 2


def test_too_many_deep_wildcards_are_refused() -> None:
    with pytest.raises(BadPattern, match="too many"):
        Patterns(["**a" * 12])


def test_against_a_matcher_that_tries_everything() -> None:
    """Random patterns and paths of few letters, so that much matches."""
    random = Random(1)
    for _ in range(3000):
        pattern = "".join(
            random.choice(["a", "b", "/", "*", "**/", "?", "/**/", "a/"]) for _ in range(random.randint(1, 6))
        )
        path = "/".join(
            "".join(random.choice("ab") for _ in range(random.randint(1, 3))) for _ in range(random.randint(1, 4))
        )
        clean = posixpath.normpath(pattern).replace("//", "/")
        parts = path.split("/")
        expected = any(slow(clean, "/".join(parts[: count + 1])) for count in range(len(parts)))
        assert Patterns([pattern]).matches(path)[0] is expected, (pattern, path)


def slow(pattern: str, path: str) -> bool:
    if not pattern:
        return not path
    if pattern.startswith("**"):
        rest = pattern[2:].removeprefix("/")
        if not rest:
            return True
        return slow(rest, path) or any(path[at] == "/" and slow(rest, path[at + 1 :]) for at in range(len(path)))
    if pattern[0] == "*":
        length = len(path.split("/")[0])
        return any(slow(pattern[1:], path[at:]) for at in range(length + 1))
    if not path or (pattern[0] == "?" and path[0] == "/"):
        return False
    return (pattern[0] == "?" or pattern[0] == path[0]) and slow(pattern[1:], path[1:])
