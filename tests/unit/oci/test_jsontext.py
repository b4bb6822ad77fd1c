# SPDX-License-Identifier: Apache-2.0
"""JSON for programs that start cold: teu's and teu-runc's."""

from __future__ import annotations

import json

import pytest

from teu.oci import jsontext


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", '{"a":[1,2.5,"é\\n"],"b":null,"c":true}', '"x"', "12345678901234567890", "-0.5", '[[],{"a":{}}]'],
)
def test_compact_text_comes_back(text: str) -> None:
    for exact in (False, True):
        assert jsontext.dumps(jsontext.loads(text, exact=exact)) == text
        assert jsontext.dumps(jsontext.loads(text.encode(), exact=exact)) == text


def test_many_lines_are_laid_out_as_by_go() -> None:
    value = {"a": [], "b": {}, "c": [1], "d": jsontext.loads("1.50", exact=True), "e": ("x", None)}
    assert jsontext.dumps(value, "    ") == (
        '{\n    "a": [],\n    "b": {},\n    "c": [\n        1\n    ],\n    "d": 1.50,\n'
        '    "e": [\n        "x",\n        null\n    ]\n}'
    )
    assert jsontext.dumps({"b": 1, "a": 2}, sort_keys=True) == '{"a":2,"b":1}'


@pytest.mark.parametrize("text", ["", "{", "[1] x", "nope", '{"a":1,}', "[" * 100_000])
def test_what_is_no_json(text: str) -> None:
    for exact in (False, True):
        with pytest.raises(ValueError):
            jsontext.loads(text, exact=exact)


def test_what_is_no_unicode_can_be_shown() -> None:
    """A daemon may send half of a surrogate pair: it is printed as U+FFFD, and not the end of the command."""
    for exact in (False, True):
        assert jsontext.loads('["\\ud800","\\ud83d\\ude00"]', exact=exact) == ["\ufffd", "\U0001f600"]
        assert jsontext.loads(b'"\xff"', exact=exact) == "\ufffd"


def test_control_characters() -> None:
    with pytest.raises(ValueError):
        jsontext.loads('"a\tb"')
    assert jsontext.loads('"a\tb"', exact=True) == "a\tb"


def test_what_has_no_form() -> None:
    for value in (object(), [b"x"], {"a": {1}}):
        with pytest.raises(TypeError, match="has no JSON form"):
            jsontext.dumps(value)
    assert jsontext.escaped("<a&b>") == '"\\u003ca\\u0026b\\u003e"'


def test_ascii_keeps_what_is_no_unicode() -> None:
    value = {"env": ["A=é", "B=\udcff", "C=\U0001f40b"], "n": [1, 2.5, None, True]}
    assert jsontext.to_ascii(value) == json.dumps(value, separators=(",", ":")).encode()
    assert jsontext.loads(jsontext.to_ascii(value), own=True) == value


def test_the_first_of_several_values() -> None:
    text = 'x {"a":\n1} {"b": 2'
    assert jsontext.first(text, 2) == ({"a": 1}, 10)
    for at in (0, 11, len(text)):
        with pytest.raises(ValueError):
            jsontext.first(text, at)
