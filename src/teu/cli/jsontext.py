# SPDX-License-Identifier: Apache-2.0
"""JSON without the json package: its C parts alone start 4 ms sooner than json, which pulls in re and enum.

Called by everything in this package that reads or writes the Engine API."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    make_scanner: Any
    make_encoder: Any
    encode_basestring: Any
else:
    try:
        from _json import encode_basestring, make_encoder, make_scanner
    except ImportError:  # an interpreter without the C parts
        make_scanner = None


class Exact(float):
    """A float that remembers how it was written, so that `inspect` shows what the daemon sent."""

    text: str

    def __new__(cls, text: str) -> Exact:
        self = super().__new__(cls, text)
        self.text = text
        return self


class _Context:
    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = Exact
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}


def loads(text: str | bytes | bytearray) -> Any:
    """Raises ValueError when `text` is not JSON."""
    if not isinstance(text, str):
        text = text.decode("utf-8", "replace")
    if make_scanner is None:
        import json  # 8 ms

        return json.loads(text)
    text = text.strip()
    try:
        value, end = make_scanner(_Context)(text, 0)
    except StopIteration:
        raise ValueError("the text is not JSON: " + text[:100]) from None
    except RecursionError:
        raise ValueError("the text is nested too deeply") from None
    if end != len(text):
        raise ValueError("text after the end of the JSON value: " + text[end : end + 100])
    return value


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} has no JSON form")


def dumps(value: Any, sort_keys: bool = False) -> str:
    """Compact JSON, non-ASCII text as it is."""
    if make_scanner is None:
        import json  # 8 ms

        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys)
    encode = make_encoder({}, _refuse, encode_basestring, None, ":", ",", sort_keys, False, True)
    return "".join(encode(value, 0))


def escaped(value: Any) -> str:
    """As Go's json.Marshal: what means something in HTML is escaped. So docker prints lists in JSON."""
    text = dumps(value)
    for letter in "<>&":
        if letter in text:
            text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def pretty(value: Any, indent: str = "    ", level: int = 0) -> str:
    """JSON on many lines in the form of Go's json.Indent: `[]` and `{}` stay on one line."""
    if isinstance(value, dict):
        if not value:
            return "{}"
        inner = "\n" + indent * (level + 1)
        body = ("," + inner).join(f"{dumps(str(k))}: {pretty(v, indent, level + 1)}" for k, v in value.items())
        return "{" + inner + body + "\n" + indent * level + "}"
    if isinstance(value, list):
        if not value:
            return "[]"
        inner = "\n" + indent * (level + 1)
        body = ("," + inner).join(pretty(v, indent, level + 1) for v in value)
        return "[" + inner + body + "\n" + indent * level + "]"
    if isinstance(value, Exact):
        return value.text
    return dumps(value)
