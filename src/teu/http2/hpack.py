# SPDX-License-Identifier: Apache-2.0
"""HPACK, the header compression of HTTP/2 (RFC 7541). Called by http2.

Written headers are never entered into the other end's table: a session makes few calls, and what has no state cannot
get out of step. Read headers may use everything, within the limits that http2 has announced.
"""

from __future__ import annotations

from collections.abc import Iterable

TABLE_SIZE = 4096  # bytes; the default, of which nothing else was announced

# Appendix A, in order from 1; a name alone has the empty value.
_STATIC_TEXT = """
    :authority; :method=GET; :method=POST; :path=/; :path=/index.html; :scheme=http; :scheme=https;
    :status=200; :status=204; :status=206; :status=304; :status=400; :status=404; :status=500; accept-charset;
    accept-encoding=gzip, deflate; accept-language; accept-ranges; accept; access-control-allow-origin; age;
    allow; authorization; cache-control; content-disposition; content-encoding; content-language;
    content-length; content-location; content-range; content-type; cookie; date; etag; expect; expires; from;
    host; if-match; if-modified-since; if-none-match; if-range; if-unmodified-since; last-modified; link;
    location; max-forwards; proxy-authenticate; proxy-authorization; range; referer; refresh; retry-after;
    server; set-cookie; strict-transport-security; transfer-encoding; user-agent; vary; via; www-authenticate;
"""
STATIC: tuple[tuple[str, str], ...] = tuple(
    (name, value)
    for name, _, value in (entry.strip().partition("=") for entry in _STATIC_TEXT.strip(" \n;").split(";"))
)
_STATIC_PAIRS = {pair: index for index, pair in reversed(tuple(enumerate(STATIC, 1)))}
_STATIC_NAMES = {pair[0]: index for index, pair in reversed(tuple(enumerate(STATIC, 1)))}

# Appendix B: the code is canonical, so the length of each sign's code is all there is to know. Bits, 63 added.
_LENGTHS = (
    r"LV[[[[[[[W][[][[[[[[[[][[[[[[[[[EIIKLEGJIIGJGEEEDDDEEEEEEEFGNEKILEFFFFFFFFFFFFFFFFFFFFFFGFGLRLMENDEDEDEEEDFFEEEDEFEDDE"
    r"FFFFFNJML[SUSSUUUVUVVVVVWVWWUVWVVVVTUVUVVWUTSUUVVTVUUWTUVVTTUTVUVVSUUUVUUVYYSRUVUXYYYZZYWXRTYZZYZWTTYY[ZZZSWSTUTTVUUXX"
    r"WWYVYZYYZZZZZ[ZZZZZY]"
)


def _codes() -> dict[tuple[int, int], int]:
    """(bits, code) of each sign; 256 is the end, which no text may hold."""
    found, code, before = {}, 0, 0
    for bits, sign in sorted((ord(letter) - 63, sign) for sign, letter in enumerate(_LENGTHS)):
        code <<= bits - before
        found[bits, code] = sign
        code, before = code + 1, bits
    return found


_HUFFMAN = _codes()
_END_OF_STRING = 256


class HpackError(ValueError):
    """A header block that is broken: the connection's state is lost with it (COMPRESSION_ERROR)."""


def huffman(data: bytes) -> bytes:
    """The text of Huffman-coded bytes."""
    text = bytearray()
    code = bits = 0
    for byte in data:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            bits += 1
            sign = _HUFFMAN.get((bits, code))
            if sign is not None:
                if sign == _END_OF_STRING:
                    raise HpackError("the end of a string inside it")
                text.append(sign)
                code = bits = 0
            elif bits > 30:
                raise HpackError("no such Huffman code")
    if bits > 7 or code != (1 << bits) - 1:
        raise HpackError("padding of a string that is none")
    return bytes(text)


def integer(value: int, prefix: int, first: int = 0) -> bytes:
    """An integer in the lower `prefix` bits of the byte `first` and what follows (section 5.1)."""
    most = (1 << prefix) - 1
    if value < most:
        return bytes((first | value,))
    out = bytearray((first | most,))
    value -= most
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _string(value: str) -> bytes:
    data = value.encode()
    return integer(len(data), 7) + data


def encode(headers: Iterable[tuple[str, str]]) -> bytes:
    """A header block; names in lower case."""
    out = bytearray()
    for name, value in headers:
        pair = _STATIC_PAIRS.get((name, value))
        if pair is not None:
            out += integer(pair, 7, 0x80)
            continue
        known = _STATIC_NAMES.get(name)
        # Never indexed, on no way: a request's metadata may name what is secret.
        out += integer(known, 4, 0x10) if known is not None else b"\x10" + _string(name)
        out += _string(value)
    return bytes(out)


class Decoder:
    """Reads header blocks, one after the other: each may refer to what was in those before."""

    def __init__(self, limit: int) -> None:
        """limit: bytes of all names and values of one block, 32 added for each header."""
        self._limit = limit
        self._table: list[tuple[str, str]] = []  # the newest first
        self._size = 0
        self._most = TABLE_SIZE

    def decode(self, block: bytes) -> list[tuple[str, str]]:
        """The headers of the next block, whole, in their order (RFC 7541, 6). Raises HpackError where it breaks a rule
        or is over the limit: the table is not to be trusted then, and the connection has to end."""
        headers: list[tuple[str, str]] = []
        at, total = 0, 0
        while at < len(block):
            byte = block[at]
            if byte & 0x80:
                index, at = self._integer(block, at, 7)
                name, value = self._entry(index)
            elif byte & 0xE0 == 0x20:
                if headers:
                    raise HpackError("a change of the table's size between headers")
                size, at = self._integer(block, at, 5)
                if size > TABLE_SIZE:
                    raise HpackError("a larger table than was announced")
                self._most = size
                self._evict()
                continue
            else:
                enter = bool(byte & 0x40)
                index, at = self._integer(block, at, 6 if enter else 4)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = self._text(block, at)
                value, at = self._text(block, at)
                if enter:
                    self._table.insert(0, (name, value))
                    self._size += self._cost(name, value)
                    self._evict()
            total += self._cost(name, value)
            if total > self._limit:
                raise HpackError("more headers than were announced as the most")
            headers.append((name, value))
        return headers

    @staticmethod
    def _cost(name: str, value: str) -> int:
        return len(name) + len(value) + 32

    def _evict(self) -> None:
        while self._size > self._most:
            self._size -= self._cost(*self._table.pop())

    def _entry(self, index: int) -> tuple[str, str]:
        if not index:
            raise HpackError("index 0")
        if index <= len(STATIC):
            return STATIC[index - 1]
        if index - len(STATIC) > len(self._table):
            raise HpackError(f"index {index} is beyond the table")
        return self._table[index - len(STATIC) - 1]

    @staticmethod
    def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
        most = (1 << prefix) - 1
        value = block[at] & most
        at += 1
        if value < most:
            return value, at
        shift = 0
        while True:
            if at >= len(block) or shift > 28:
                raise HpackError("an integer without an end")
            byte = block[at]
            at += 1
            value += (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value, at

    def _text(self, block: bytes, at: int) -> tuple[str, int]:
        if at >= len(block):
            raise HpackError("a string is missing")
        coded = bool(block[at] & 0x80)
        length, at = self._integer(block, at, 7)
        data = block[at : at + length]
        if len(data) != length:
            raise HpackError("a string is cut off")
        return (huffman(data) if coded else data).decode("latin-1"), at + length
