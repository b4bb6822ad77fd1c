# SPDX-License-Identifier: Apache-2.0
"""JSON without the json package, for programs that start cold.

`import json` costs 5 ms, nearly all of it for `re` and `enum`, which the C scanner never uses.
This module drives that same scanner and its encoder (`_json`, 0.2 ms) directly. teu.runc, teu.shim and teu.cli call it.
"""

from __future__ import annotations

from _json import encode_basestring, encode_basestring_ascii, make_encoder, make_scanner, scanstring
from posix import O_CLOEXEC, O_RDONLY, close, fstat, read
from posix import open as open_descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    # What a JSON text can say, for who reads or hands on what others have written.
    Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]

_CONSTANTS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_WHITESPACE = " \t\n\r"


class _Context:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float: Any = float
    parse_int = int
    parse_constant = _CONSTANTS.__getitem__
    memo: dict[str, str] = {}


class Exact(float):
    """A float that remembers how it was written, so that it can be shown as it was sent."""

    text: str

    def __new__(cls, text: str) -> Exact:
        self = super().__new__(cls, text)
        self.text = text
        return self


# A scanner takes what it needs from its context when it is made.
_scan: Any = make_scanner(_Context)  # type: ignore[arg-type]
_Context.strict = False
_Context.parse_float = Exact
_scan_exact: Any = make_scanner(_Context)  # type: ignore[arg-type]


def loads(text: str | bytes | bytearray, own: bool = False, exact: bool = False) -> Any:
    """The value of a JSON text. Raises ValueError that names the position.

    What is no Unicode in it, bytes that are no UTF-8 and halves of surrogate pairs, is U+FFFD in the value, as in Go's:
    so every string of it can be encoded, by whom it may be. With `own`, for what `dumps` has written, bytes that
    are no UTF-8 come back as they were (surrogateescape). With `exact`, for what is shown to people, floats are
    `Exact`, and control characters may stand in strings."""
    if not isinstance(text, str):
        # not "utf-8-sig", which imports its codec
        text = text.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape" if own else "replace")
    start = 0
    size = len(text)
    while start < size and text[start] in _WHITESPACE:
        start += 1
    try:
        value, end = (_scan_exact if exact else _scan)(text, start)
    except StopIteration as stop:
        raise ValueError(f"invalid JSON: expecting a value {_where(text, stop.value)}") from None
    except RecursionError:
        raise ValueError("invalid JSON: it is nested too deeply") from None
    except SystemError:
        # Python 3.11's scanner has no words of its own where json.decoder is not imported.
        import json  # 7 ms

        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"invalid JSON: {error}") from None
    while end < size and text[end] in _WHITESPACE:
        end += 1
    if end != size:
        raise ValueError(f"invalid JSON: extra data {_where(text, end)}")
    if "\\ud" in text or "\\uD" in text:
        try:
            return _without_surrogates(value, own)
        except RecursionError:
            raise ValueError("invalid JSON: it is nested too deeply") from None
    return value


def first(text: str, at: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at a position of a text, and the position behind it. Raises ValueError."""
    try:
        value, end = _scan(text, at)
    except (StopIteration, RecursionError, SystemError):
        raise ValueError(f"invalid JSON: no value {_where(text, at)}") from None
    return value, end


def _without_surrogates(value: Any, own: bool) -> Any:
    if isinstance(value, str):
        if value.isascii():
            return value
        # As numbers: byte code with half a pair in a text could not be read in a cold start.
        return "".join(
            "\ufffd" if 0xD800 <= ord(letter) <= 0xDFFF and not (own and 0xDC80 <= ord(letter) <= 0xDCFF) else letter
            for letter in value
        )
    if isinstance(value, list):
        return [_without_surrogates(item, own) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(key, own): _without_surrogates(item, own) for key, item in value.items()}
    return value


def _where(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return f"at line {line}, column {column}"


def read_file(path: str) -> bytes:
    """What is in a file, without the io module, which a short program may have no other use for."""
    fd = open_descriptor(path, O_RDONLY | O_CLOEXEC)
    try:
        data = read(fd, fstat(fd).st_size + 1)
        while more := read(fd, 65536):
            data += more
    finally:
        close(fd)
    return data


def load_file(path: str, own: bool = False) -> Any:
    """The value of a JSON file, see `loads`. ValueError names the file."""
    data = read_file(path)
    try:
        return loads(data, own)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} has no JSON form")


_encode: Any = make_encoder(None, _refuse, encode_basestring, None, ":", ",", False, False, True)
_encode_ascii: Any = make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, True)
_encode_sorted: Any = make_encoder(None, _refuse, encode_basestring, None, ":", ",", True, False, True)


def dumps(value: Any, indent: str = "", sort_keys: bool = False) -> str:
    """JSON text of dicts, lists, tuples, strings, numbers, booleans and None; what is no ASCII stays as it is.

    indent "  " gives the layout of Go's json.MarshalIndent, which runc and docker print, `Exact` floats as they were
    written. TypeError for what has no JSON form."""
    if indent:
        return _pretty(value, indent, "\n")
    return "".join((_encode_sorted if sort_keys else _encode)(value, 0))


def to_ascii(value: Any) -> bytes:
    """JSON in which all that is no ASCII is escaped, and so also what is no Unicode: read with `own`, it is as it
    was."""
    return "".join(_encode_ascii(value, 0)).encode("ascii", "replace")


def _pretty(value: Any, indent: str, margin: str) -> str:
    inner = margin + indent
    if isinstance(value, dict) and value:
        body = [f"{dumps(str(key))}: {_pretty(item, indent, inner)}" for key, item in value.items()]
        return "{" + inner + ("," + inner).join(body) + margin + "}"
    if isinstance(value, list | tuple) and value:
        return "[" + inner + ("," + inner).join([_pretty(item, indent, inner) for item in value]) + margin + "]"
    return value.text if isinstance(value, Exact) else dumps(value)


def escaped(value: Any) -> str:
    """As Go's json.Marshal: what means something in HTML is escaped. So docker prints lists in JSON."""
    text = dumps(value)
    for letter in "<>&":
        if letter in text:
            text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def to_bytes(value: Any, indent: str = "") -> bytes:
    """JSON for others to read: in UTF-8, with U+FFFD in place of what is none."""
    text = dumps(value, indent)
    data = text.encode("utf-8", "surrogateescape")
    return data if text.isascii() else data.decode("utf-8", "replace").encode("utf-8", "replace")


__all__ = [
    "Exact",
    "dumps",
    "escaped",
    "first",
    "load_file",
    "loads",
    "read_file",
    "scanstring",
    "to_ascii",
    "to_bytes",
]
