# SPDX-License-Identifier: Apache-2.0
"""The keys that detach a terminal (ctrl-p ctrl-q) in a stream of input. Used by attach and exec."""

from __future__ import annotations

from teu.engine.core.errors import BadRequest

DEFAULT = "ctrl-p,ctrl-q"


def parse(text: str) -> bytes:
    result = bytearray()
    for word in text.split(","):
        if len(word) == 1:
            result += word.encode()
            continue
        key = word.removeprefix("ctrl-")
        if word.startswith("ctrl-") and len(key) == 1 and ("a" <= key <= "z" or key in "@[\\]^_"):
            result.append(ord(key.upper()) & 0x1F)
            continue
        raise BadRequest(f'Unknown character: \'{word}\': detach keys are like "ctrl-p,ctrl-q" or "a,b"')
    return bytes(result)


class Filter:
    def __init__(self, text: str, terminal: bool = True) -> None:
        """Without a terminal nothing is looked for: the input may be any bytes."""
        self._keys = parse(text or DEFAULT)
        self._terminal = terminal
        self._seen = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What goes on to the process, and whether the keys were typed."""
        if not self._terminal or not self._seen and self._keys[0] not in data:
            return data, False
        kept = bytearray()
        for value in data:
            if value == self._keys[self._seen]:
                self._seen += 1
                if self._seen == len(self._keys):
                    return bytes(kept), True
                continue
            if self._seen:
                kept += self._keys[: self._seen]
                self._seen = 1 if value == self._keys[0] else 0
                if self._seen:
                    continue
            kept.append(value)
        return bytes(kept), False
