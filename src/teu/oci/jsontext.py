# SPDX-License-Identifier: Apache-2.0
"""JSON without the json package, for programs that start cold.

`import json` costs 5 ms, nearly all of it for `re` and `enum`, which the C scanner never uses.
This module drives that same scanner (`_json`, 0.2 ms) directly. Called by teu.runc and teu.cli.
"""

from __future__ import annotations

from _json import encode_basestring, make_scanner, scanstring
from posix import O_CLOEXEC, O_RDONLY, close, fstat, read
from posix import open as open_descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CONSTANTS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_WHITESPACE = " \t\n\r"


class _Context:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = _CONSTANTS.__getitem__
    memo: dict[str, str] = {}


_scan: Any = make_scanner(_Context)  # type: ignore[arg-type]


def loads(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError that names the position."""
    if isinstance(text, bytes):
        text = text.removeprefix(b"\xef\xbb\xbf").decode()  # not "utf-8-sig", which imports its codec
    start = 0
    size = len(text)
    while start < size and text[start] in _WHITESPACE:
        start += 1
    try:
        value, end = _scan(text, start)
    except StopIteration as stop:
        raise ValueError(f"invalid JSON: expecting a value {_where(text, stop.value)}") from None
    except SystemError:
        # Python 3.11's scanner has no words of its own where json.decoder is not imported.
        import json

        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"invalid JSON: {error}") from None
    while end < size and text[end] in _WHITESPACE:
        end += 1
    if end != size:
        raise ValueError(f"invalid JSON: extra data {_where(text, end)}")
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


def load_file(path: str) -> Any:
    """The value of a JSON file. ValueError names the file."""
    data = read_file(path)
    try:
        return loads(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def dumps(value: Any, indent: str = "", _margin: str = "\n") -> str:
    """JSON text of dicts, lists, tuples, strings, numbers, booleans and None.

    indent "  " gives the layout of Go's json.MarshalIndent, which runc prints.
    """
    if isinstance(value, str):
        return str(encode_basestring(value))
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int | float):
        return repr(value)
    inner = _margin + indent
    if isinstance(value, dict):
        if not value:
            return "{}"
        colon = ": " if indent else ":"
        items = [encode_basestring(str(key)) + colon + dumps(item, indent, inner) for key, item in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, list | tuple):
        if not value:
            return "[]"
        items = [dumps(item, indent, inner) for item in value]
        opening, closing = "[", "]"
    else:
        raise TypeError(f"{type(value).__name__} has no JSON form")
    if indent:
        return opening + inner + ("," + inner).join(items) + _margin + closing
    return opening + ",".join(items) + closing


__all__ = ["dumps", "load_file", "loads", "read_file", "scanstring"]
