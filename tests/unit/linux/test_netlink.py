# SPDX-License-Identifier: Apache-2.0
"""The conversation with the kernel: lists that change while they are told, and changes that are made together."""

from __future__ import annotations

import errno
import os
import struct

import pytest
from drivers import networks as suite

from teu.linux import netlink
from teu.linux.nftables import NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWTABLE, chains, run
from teu.linux.rtnetlink import NLM_F_DUMP_INTR, NLMSG_DONE, RTM_GETLINK, RTM_NEWLINK

MULTI = 2


class Scripted(netlink.Socket):
    """A kernel that answers each request with the next of its answers: lists of bodies, and whether they changed."""

    def __init__(self, answers: list[tuple[list[bytes], bool]]) -> None:
        self.answers = answers
        self._sequence = 0
        self._socket = self  # type: ignore[assignment]
        self.waiting: list[bytes] = []

    def send(self, data: bytes) -> None:  # type: ignore[override]
        sequence = struct.unpack_from("=I", data, 8)[0]
        bodies, changed = self.answers.pop(0)
        flags = MULTI | (NLM_F_DUMP_INTR if changed else 0)
        for body in bodies:
            self.waiting.append(struct.pack("=IHHII", 16 + len(body), RTM_NEWLINK, flags, sequence, 0) + body)
        self.waiting.append(struct.pack("=IHHIIi", 20, NLMSG_DONE, flags, sequence, 0, 0))

    def recv(self, _size: int) -> bytes:
        return self.waiting.pop(0)


def test_a_list_that_changes_meanwhile_is_asked_for_again() -> None:
    kernel = Scripted([([b"1111"], True), ([b"1111", b"2222"], False), ([b"3333"], False)])
    assert kernel.dump(RTM_GETLINK, b"") == [b"1111", b"2222"]
    assert len(kernel.answers) == 1


def test_a_list_that_changes_all_the_time_is_taken_as_it_was_last() -> None:
    kernel = Scripted([([b"%04d" % number], True) for number in range(100)])
    assert kernel.dump(RTM_GETLINK, b"") == [b"%04d" % (netlink.DUMP_ATTEMPTS - 1)]


def table(name: str, flags: int) -> netlink.Message:
    body = struct.pack("=BBH", 2, 0, 0) + netlink.attribute(1, netlink.text(name))
    return netlink.Message(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWTABLE, flags, body, f"table {name}")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")
def test_netfilter_makes_all_of_them_or_none() -> None:
    create = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    with suite.own_namespace(), netlink.Socket(NETLINK_NETFILTER) as kernel:
        kernel.transact(NFNL_SUBSYS_NFTABLES, [table("one", create)])
        with pytest.raises(FileExistsError) as failure:
            kernel.transact(NFNL_SUBSYS_NFTABLES, [table("two", create), table("one", create), table("three", create)])
        assert failure.value.filename == "table one"
        assert run("list tables") == "table ip one\n"
        with pytest.raises(OSError) as failure:
            kernel.transact(99, [table("four", create)])
        assert failure.value.errno == errno.EINVAL
        kernel.transact(NFNL_SUBSYS_NFTABLES, [table("four", create)])  # what was answered is not answered again
        assert chains("ip four") == set()
