# SPDX-License-Identifier: Apache-2.0
"""Words of a Dockerfile: every form of a variable, quotes, escapes."""

from __future__ import annotations

import pytest

from teu.buildkit.frontends.dockerfile.errors import DockerfileError, suggestion
from teu.buildkit.frontends.dockerfile.shell import Lexer, quoted

ENVIRONMENT = {
    "x": "foobar",
    "empty": "",
    "path": "a/b/c",
    "file": "x.tar.gz",
    "two": "a b",
    "star": "a*b*c",
    "lines": "abc\nab",
}


@pytest.mark.parametrize(
    ("word", "result"),
    [
        ("$x", "foobar"),
        ("a${x}b", "afoobarb"),
        ("$unset", ""),
        ("$", "$"),
        ("a$ b", "a$ b"),
        ("$x-y", "foobar-y"),
        ("${unset:-w}", "w"),
        ("${unset-w}", "w"),
        ("${empty:-w}", "w"),
        ("${empty-w}", ""),
        ("${x:-w}", "foobar"),
        ("${x:+w}", "w"),
        ("${x+w}", "w"),
        ("${empty:+w}", ""),
        ("${empty+w}", "w"),
        ("${unset:+w}", ""),
        ("${unset+w}", ""),
        ("${x:?no}", "foobar"),
        ("${empty?no}", ""),
        ("${unset:-${x}y}", "foobary"),
        ("${unset:-${also:-deep}}", "deep"),
        ("${unset:-'a b'}", "a b"),
        ("${x#f*o}", "obar"),
        ("${x##f*o}", "bar"),
        ("${x#nothing}", "foobar"),
        ("${x#?}", "oobar"),
        ("${file%.*}", "x.tar"),
        ("${file%%.*}", "x"),
        ("${file#*.}", "tar.gz"),
        ("${file##*.}", "gz"),
        ("${x%bar}", "foo"),
        ("${star%\\*c}", "a*b"),
        ("${star#a\\*}", "b*c"),
        ("${path/\\//-}", "a-b/c"),
        ("${path//\\//-}", "a-b-c"),
        ("${path/b/$x}", "a/foobar/c"),
        ("${path//?/z}", "zzzzz"),
        ("${x/o*/1}", "f1"),
        ("${x//o/}", "fbar"),
        ("${unset/a/b}", ""),
        ("${star/a\\*b/x}", "x*c"),
        ("${path//*/x}", "x"),
        ("${path/*c/x}", "x"),
        ("${path/*d/x}", "a/b/c"),
        ("${path//b*/x}", "a/x"),
        ("${x/o*a/1}", "f1r"),
        ("${lines/a*/x}", "x\nab"),
        ("${lines//a*/x}", "x\nx"),
        ("${lines##*b}", "c\nab"),
        ("${x//\\?/z}", "foobar"),
        ("'$x'", "$x"),
        ('"$x"', "foobar"),
        ('"a\\"b"', 'a"b'),
        ('"a\\$x"', "a$x"),
        ('"a\\n"', "a\\n"),
        ("a\\$x", "a$x"),
        ("a\\\\b", "a\\b"),
        ("a\\", "a"),
        ("\"'$x'\"", "'foobar'"),
        ("$1 $@", " "),
        ("a<b <<c", "a<b <<c"),
    ],
)
def test_expansion(word: str, result: str) -> None:
    assert Lexer().word(word, ENVIRONMENT) == result


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("${x", "unsupported modifier (\ufffd) in substitution"),
        ("${", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${:x}", "syntax error: bad substitution"),
        ("${{x}}", "syntax error: bad substitution"),
        ("${x!y}", "unsupported modifier (!) in substitution"),
        ("${x:y}", "unsupported modifier (:y) in substitution"),
        ("${x:#y}", "unsupported modifier (:#) in substitution"),
        ("${x:-y", "syntax error: missing '}'"),
        ("${x/y", "syntax error: missing '/' in ${}"),
        ("${x/y/z", "syntax error: missing '}'"),
        ("${unset?}", "unset: is not allowed to be unset"),
        ("${empty:?}", "empty: is not allowed to be empty"),
        ("${unset:?so there}", "unset: so there"),
        ("${x#\\n}", "invalid pattern (\\n) in substitution: invalid escape '\\n'"),
        ("'abc", "unexpected end of statement while looking for matching single-quote"),
        ('"abc', "unexpected end of statement while looking for matching double-quote"),
    ],
)
def test_errors_have_the_word_and_buildkits_message(word: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        Lexer().word(word, ENVIRONMENT)
    assert str(caught.value) == f"failed to process {quoted(word)}: {message}"


@pytest.mark.parametrize(
    ("word", "result"),
    [
        ("a b  c", ["a", "b", "c"]),
        ('a "b c" d', ["a", "b c", "d"]),
        ("$two", ["a", "b"]),
        ('"$two"', ["a b"]),
        ("a\\ b", ["a b"]),
        ("pre${unset:-x y}", ["prex", "y"]),
        ("", []),
    ],
)
def test_words(word: str, result: list[str]) -> None:
    assert Lexer().words(word, ENVIRONMENT) == result


def test_names_that_were_asked_for() -> None:
    found = Lexer().expand("$x ${unset:-$also}", ENVIRONMENT)
    assert (found.matched, found.unmatched) == ({"x"}, {"unset", "also"})


def test_ways_of_a_lexer() -> None:
    assert Lexer("`").word("a`$x \\$x", ENVIRONMENT) == "a$x \\foobar"
    assert Lexer(raw_quotes=True).word("'a' \"$x\"", ENVIRONMENT) == "'a' \"foobar\""
    assert Lexer(raw_escapes=True).word("a\\$x", ENVIRONMENT) == "a\\$x"
    assert Lexer(process_quotes=False).word("'$x\"", ENVIRONMENT) == "'foobar\""
    keep = Lexer(keep_unset=True)
    assert keep.word("$x $u ${u} ${u:-w} ${u/a/b}", ENVIRONMENT) == "foobar $u ${u} ${u:-w} ${u/a/b}"


def test_nesting_has_an_end() -> None:
    with pytest.raises(DockerfileError, match="nested too deeply"):
        Lexer().word("${a:-" * 500 + "x" + "}" * 500)


def test_no_pattern_and_no_word_takes_long() -> None:
    environment = {"x": "a" * 100_000, "y": "a" * 1000}
    for word in ("${x//*a*a*a*a*a*a*a*b/}", "${x//a*b/}", "${x##*a*a*a*b}", "${x%%b*a*a*a*}", "${y//a/bb}"):
        assert Lexer().word(word, environment)
    with pytest.raises(DockerfileError, match="expands to more than 131072 characters"):
        Lexer().word("$x$x$x", environment)
    with pytest.raises(DockerfileError, match="longer than 1024"):
        Lexer().word("${x#" + "?" * 2000 + "}", environment)


def test_suggestions() -> None:
    assert suggestion("TARGETARC", ["TARGETARCH", "TARGETOS"]) == "TARGETARCH"
    assert suggestion("nothing", ["like", "it"]) == ""
    assert suggestion("same", ["same", "sane"]) == ""
    assert suggestion("COPPY", ["COPY"], case_sensitive=False) == "COPY"
    assert suggestion("coppy", ["COPY"], case_sensitive=False) == "copy"


def test_go_quotes() -> None:
    assert quoted('a"b\\\n\t\x01é\u2028\udcff') == '"a\\"b\\\\\\n\\t\\x01é\\u2028\\xff"'
