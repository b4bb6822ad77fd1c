# SPDX-License-Identifier: Apache-2.0
"""nftables by libnftables: commands in nft's language, applied as one transaction. Called by teud's networks.

The library waits with select(2), which knows no descriptor above 1023 and ends the whole process when it meets one.
So its socket gets a low descriptor, kept for it from the beginning (`reserve`); where there is none any more, the
commands are given to a process of their own.

`Changes` are the kernel's own notices of every change. What chains and rules there are, the kernel is asked itself
(`chains`, `count_rules`): the library would read all elements of all sets for the answer.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from teu.linux.netlink import Socket

_RESERVED = 8  # one is enough, if no other thread takes it first
_HIGHEST = 900  # from this descriptor on no more are opened, so that a socket keeps a number that select() takes

_ELSEWHERE = """
import sys, nftables
library = nftables.Nftables()
library.set_handle_output(sys.argv[1] == "1")
code, output, error = library.cmd(sys.stdin.read())
sys.stdout.write(output or "")
sys.stderr.write(error or "")
sys.exit(1 if code else 0)
"""

_lock = threading.Lock()
_library: Any = None
_kernel: Socket | None = None
_kept: list[int] = []


class Error(Exception):
    """nft refused the commands; str() is its reason."""


def reserve() -> None:
    """At the start of a process that is going to have many descriptors."""
    with _lock:
        if _library is None and not _kept:
            _kept.extend(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(_RESERVED))


def close() -> None:
    """Let go of what is open; the next call opens it in the network namespace that its thread is in then."""
    global _library, _kernel
    with _lock:
        _library = None
        if _kernel is not None:
            _kernel.close()
        _kernel = None


def _has_low_descriptors() -> bool:
    descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.close(descriptor)
    return descriptor < _HIGHEST


def run(commands: str, handles: bool = False) -> str:
    """Apply all commands, or none; returns their output, with the rules' handles if asked. The library is loaded
    at the first call (7 ms)."""
    global _library
    with _lock:
        if _library is None:
            while _kept:
                os.close(_kept.pop())
            if not _has_low_descriptors():
                return _run_elsewhere(commands, handles)
            import nftables  # 9 ms and 1.4 MB

            _library = nftables.Nftables()
        _library.set_handle_output(handles)
        code, output, error = _library.cmd(commands)
    return _result(code, output, error)


def _run_elsewhere(commands: str, handles: bool) -> str:
    """By a process of its own."""
    argv = [sys.executable, "-I", "-c", _ELSEWHERE, "1" if handles else "0"]
    done = subprocess.run(argv, input=commands, capture_output=True, text=True, check=False)
    return _result(done.returncode, done.stdout, done.stderr)


def _result(code: int, output: Any, error: Any) -> str:
    if code:
        reason = " ".join(str(error).split())
        raise Error(reason or f"nft failed with {code}")
    return str(output)


NETLINK_NETFILTER = 12
NFNLGRP_NFTABLES = 7
NFNL_SUBSYS_NFTABLES = 10
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE = 0, 2
NFT_MSG_NEWCHAIN, NFT_MSG_GETCHAIN, NFT_MSG_DELCHAIN = 3, 4, 5
NFT_MSG_NEWRULE, NFT_MSG_GETRULE, NFT_MSG_DELRULE = 6, 7, 8
NFT_MSG_DELSET = 11
NFTA_TABLE, NFTA_RULE_CHAIN, NFTA_CHAIN_NAME = 1, 2, 3  # every object's first attribute is its table's name
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_KINDS = {
    NFT_MSG_NEWCHAIN: "new chain",
    NFT_MSG_DELTABLE: "delete table",
    NFT_MSG_DELCHAIN: "delete chain",
    NFT_MSG_NEWRULE: "new rule",
    NFT_MSG_DELRULE: "delete rule",
    NFT_MSG_DELSET: "delete set",
}

_CHAIN_IN = {
    NFT_MSG_NEWCHAIN: NFTA_CHAIN_NAME,
    NFT_MSG_DELCHAIN: NFTA_CHAIN_NAME,
    NFT_MSG_NEWRULE: NFTA_RULE_CHAIN,
    NFT_MSG_DELRULE: NFTA_RULE_CHAIN,
}


def chains(table: str) -> set[str]:
    """The names of a table's chains, by its family and name; none where it is not there. Raises OSError."""
    family, name = _place(table)
    every = (_names(body, NFTA_TABLE, NFTA_CHAIN_NAME) for body in _listed(NFT_MSG_GETCHAIN, family))
    return {chain for of, chain in every if of == name}


def count_rules(table: str) -> Counter[str]:
    """How many rules each of a table's chains has; those that have none are left out. Raises OSError."""
    family, name = _place(table)
    every = (_names(body, NFTA_TABLE, NFTA_RULE_CHAIN) for body in _listed(NFT_MSG_GETRULE, family, name))
    return Counter(chain for of, chain in every if of == name)


def _place(table: str) -> tuple[int, str]:
    """The kernel's number of the family, and the name, of "inet teu"."""
    family, _, name = table.partition(" ")
    return next(number for number, text in _FAMILIES.items() if text == family), name


def _listed(kind: int, family: int, table: str = "") -> list[bytes]:
    """The kernel's messages about all of a kind, of a family, and of one table where it can choose. The socket stays
    open: the closing of one waits, some 20 ms, for all that was deleted a moment ago."""
    global _kernel
    from teu.linux import netlink  # 3 ms

    body = struct.pack("=BBH", family, 0, 0)
    if table:
        body += netlink.attribute(NFTA_TABLE, netlink.text(table))
    with _lock:
        _kernel = _kernel or netlink.Socket(NETLINK_NETFILTER)
        return _kernel.dump(NFNL_SUBSYS_NFTABLES << 8 | kind, body)


def _names(body: bytes, *kinds: int) -> list[str]:
    from teu.linux import netlink  # 3 ms

    found = netlink.attributes(body[4:])
    return [found.get(kind, b"").rstrip(b"\0").decode(errors="replace") for kind in kinds]


class Change(NamedTuple):
    """`table`: family and name. `chain` of chains and rules alone."""

    kind: str
    table: str
    chain: str


class Changes:
    """What happens to the ruleset of the network namespace in which this was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)

    def close(self) -> None:
        """Nothing is heard any more."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket, to wait in poll(2) for: readable when there are changes."""
        return self._socket.fileno()

    def wait(self) -> list[Change] | None:
        """The next changes of the kinds above; None: there were more than the kernel could keep for us."""
        while True:
            try:
                data = self._socket.recv(1 << 17)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return None
                raise
            found = parse_changes(data)
            if found:
                return found

    def pending(self) -> list[Change] | None:
        """Those that have come since the last call, which waits for none; None as of `wait`."""
        result: list[Change] = []
        while True:
            try:
                result += parse_changes(self._socket.recv(1 << 17, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return result
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return None
                raise


def parse_changes(data: bytes) -> list[Change]:
    """What the messages of one read tell of tables and chains; all others are passed over. What is cut off ends it."""
    result = []
    position = 0
    while position + 20 <= len(data):
        length, kind = struct.unpack_from("=IH", data, position)
        if length < 16:
            break
        if kind >> 8 == NFNL_SUBSYS_NFTABLES and kind & 0xFF in _KINDS:
            family = _FAMILIES.get(data[position + 16], "")
            named = _CHAIN_IN.get(kind & 0xFF, NFTA_TABLE)
            names = {NFTA_TABLE: "", named: ""}
            at, end = position + 20, min(position + length, len(data))
            while at + 4 <= end:
                size, attribute = struct.unpack_from("=HH", data, at)
                if size < 4:
                    break
                if attribute in names:
                    names[attribute] = data[at + 4 : at + size].rstrip(b"\0").decode(errors="replace")
                at += (size + 3) & ~3
            chain = names[named] if named != NFTA_TABLE else ""
            result.append(Change(_KINDS[kind & 0xFF], f"{family} {names[NFTA_TABLE]}", chain))
        position += (length + 3) & ~3
    return result
