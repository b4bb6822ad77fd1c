# SPDX-License-Identifier: Apache-2.0
"""A Dockerfile's text to instructions with their lines."""

from __future__ import annotations

import pytest

from teu.buildkit.frontends.dockerfile.errors import DockerfileError, Range, excerpt, lines, merged
from teu.buildkit.frontends.dockerfile.parser import Node, find_directive, parse, syntax_of


def only(text: str) -> Node:
    (node,) = parse(text.encode()).nodes
    return node


@pytest.mark.parametrize(
    ("line", "flags", "args", "json"),
    [
        ("FROM a AS b", [], ["a", "AS", "b"], False),
        ("  FROM   --platform=$X   a", ["--platform=$X"], ["a"], False),
        ("RUN echo  a   b", [], ["echo  a   b"], False),
        ('RUN ["a", "b c"]', [], ["a", "b c"], True),
        ("RUN ['a']", [], ["['a']"], False),
        ("RUN [ -d /x ]", [], ["[ -d /x ]"], False),
        (
            'RUN --mount=type=bind,target="/a b" --network=none x',
            ["--mount=type=bind,target=/a b", "--network=none"],
            ["x"],
            False,
        ),
        ("RUN --mount=a\\ b x", ["--mount=a b"], ["x"], False),
        ("RUN -- --x", [], ["--x"], False),
        ("COPY a b /c", [], ["a", "b", "/c"], False),
        ('COPY ["a b", "/c"]', [], ["a b", "/c"], True),
        ("ENV a=b c='d e'", [], ["a", "b", "=", "c", "'d e'", "="], False),
        ("ENV a b c", [], ["a", "b c", ""], False),
        ("ENV a=b\\ c d=", [], ["a", "b\\ c", "=", "d", "", "="], False),
        ('LABEL "a b"=c', [], ['"a b"', "c", "="], False),
        ("ARG a b=c d='x y'", [], ["a", "b=c", "d='x y'"], False),
        ("CMD", [], [], False),
        ("EXPOSE 80  443", [], ["80", "443"], False),
        ("HEALTHCHECK --interval=5s CMD curl x", ["--interval=5s"], ["CMD", "curl x"], False),
        ('HEALTHCHECK CMD ["a", "b"]', [], ["CMD", "a", "b"], True),
        ("HEALTHCHECK NONE", [], ["NONE"], False),
        ("ONBUILD RUN  echo a", [], ["RUN", "echo a"], False),
        ("USER  a b ", [], ["a b"], False),
        ("VOLUME /a /b", [], ["/a", "/b"], False),
        ("SHELL sh -c", [], ["sh -c"], False),
    ],
)
def test_lines(line: str, flags: list[str], args: list[str], json: bool) -> None:
    node = only(line)
    assert (node.flags, node.args, node.json) == (flags, args, json)


def test_continuation_comments_and_lines() -> None:
    parsed = parse(b"# head\nFROM a\n\nRUN one \\\n  # a comment\n   two \\  \n\n three\r\n  RUN x\\\\\nCMD y \\\n")
    assert [(node.original, node.start, node.end) for node in parsed.nodes] == [
        ("FROM a", 2, 2),
        ("RUN one    two  three", 4, 8),
        ("RUN x\\\\", 9, 9),
        ("CMD y ", 10, 10),
    ]
    assert parsed.nodes[0].comments == ["head"]
    assert parsed.empty_continuations == [lines(8, 8)]


@pytest.mark.parametrize(
    ("text", "escape"),
    [("FROM a", "\\"), ("# escape=`\nFROM a", "`"), ("#Escape = `\nFROM a", "`"), ("# x\n# escape=`\nFROM a", "\\")],
)
def test_escape(text: str, escape: str) -> None:
    assert parse(text.encode()).escape == escape


def test_another_escape_continues_lines() -> None:
    assert [node.original for node in parse(b"# escape=`\nRUN a `\n b\\\nCMD c").nodes] == ["RUN a  b\\", "CMD c"]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"# syntax=docker/dockerfile:1\nFROM a", ("docker/dockerfile:1", "docker/dockerfile:1", 1)),
        (b"\xef\xbb\xbf#syntax = a b c\n", ("a", "a b c", 1)),
        (b"#!/usr/bin/x\n# escape=`\n# syntax=a\n", ("a", "a", 3)),
        (b"// syntax=a\n{}", ("a", "a", 1)),
        (b'{"syntax": "a"}', ("a", "a", 0)),
        (b"# a comment\n# syntax=a\n", None),
        (b"FROM a\n# syntax=a\n", None),
    ],
)
def test_syntax(data: bytes, found: tuple[str, str, int] | None) -> None:
    result = syntax_of(data)
    assert result == (None if found is None else (found[0], found[1], (Range(found[2], found[2]),)))


def test_check_directive() -> None:
    found = find_directive("check", b"# syntax=a\n# check=skip=all;error=true\nFROM a")
    assert found is not None and (found.value, found.line) == ("skip=all;error=true", 2)


def test_heredocs() -> None:
    node = only("COPY <<A <<-'B' <<\"C\" /x/\n1 $x\nA\n\t2\n\tB\nC\n")
    found = [(one.name, one.expand, one.chomp, one.content) for one in node.heredocs]
    assert found == [("A", True, False, "1 $x\n"), ("B", False, True, "\t2\n"), ("C", False, False, "")]
    assert (node.start, node.end) == (1, 6)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("RUN <<E\nx\nE", 1),
        ("RUN cat <<E | tr a b\nx\nE", 1),
        ("RUN 3<<E cat\nx\nE", 1),
        ("ONBUILD RUN <<E\nx\nE", 1),
        ("RUN echo '<<E'", 0),
        ("RUN echo $((1<<2))", 0),
        ('RUN ["<<E"]', 0),
        ("CMD <<E", 0),
        ("RUN cat <<<E", 0),
    ],
)
def test_what_opens_a_heredoc(text: str, count: int) -> None:
    node = parse(text.encode()).nodes[0]
    assert len(node.heredocs) == count


@pytest.mark.parametrize(
    ("text", "message", "places"),
    [
        ("", "file with no instructions", [0]),
        ("# only\n", "file with no instructions", [1]),
        ("FROM a\nRUN <<E\nx\n", "unterminated heredoc", [2, 3]),
        ("# escape=x\nFROM a", "invalid escape token 'x' does not match ` or \\", [0]),
        ("# syntax=a\n# syntax=b\nFROM a", "only one syntax parser directive can be used", [1]),
        ("FROM a\nENV x", "ENV must have two arguments", [2]),
        ("FROM a\nENV a=b c", 'Syntax error - can\'t find = in "c". Must be of the form: name=value', [2]),
        ('FROM a\nCMD ["a", 1]', "when using JSON array syntax, arrays must be comprised of strings only", [2]),
        ("FROM a\nRUN " + "x" * 70000, "dockerfile line greater than max allowed size of 65535", [1]),
    ],
)
def test_errors(text: str, message: str, places: list[int]) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse(text.encode())
    assert str(caught.value) == message
    assert [part.start for part in caught.value.locations[0]] == places


def test_bytes_that_are_no_utf8_stay() -> None:
    node = parse(b"COPY <<E /x\n\xff\nE\n").nodes[0]
    assert node.heredocs[0].content.encode("utf-8", "surrogateescape") == b"\xff\n"


def test_comments_belong_to_the_next_instruction() -> None:
    nodes = parse(b"# a\n# b\nFROM x\n# c\n#\n# d\n\nRUN y\nRUN z").nodes
    assert [node.comments for node in nodes] == [["a", "b"], ["d"], []]


def test_excerpt() -> None:
    text = b"FROM a\nRUN b\nRUN c\nRUN d\nRUN e\nRUN f"
    assert excerpt("Dockerfile", text, lines(3, 3)) == (
        "Dockerfile:3\n--------------------\n   1 |     FROM a\n   2 |     RUN b\n   3 | >>> RUN c\n   4 |     RUN d\n"
        "   5 |     RUN e\n--------------------\n"
    )
    assert excerpt("Dockerfile", text, ()) == ""
    assert excerpt("Dockerfile", text, lines(9, 9)) == ""


def test_merged_places() -> None:
    assert merged([lines(3, 4), (Range(3, 5),), lines(1, 1)]) == (Range(1, 1), Range(3, 5))
