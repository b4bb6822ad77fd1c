# SPDX-License-Identifier: Apache-2.0
"""What docker 26 says, in the words that docker 28 has for it.

Debian 13 has docker 26, Debian testing has docker 28; teu and teud say what the newer says. So beside docker 26 its
answer is put into the newer's words, and compared whole, where each difference between the two stands here with its
reason; beside docker 28 nothing is changed. Whose words they are: the client writes what is wrong with a command line
and how a list is laid out; what follows "Error response from daemon: " is the daemon's."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import peers

# The Engine API of docker 28.5, by which Debian's docker is told to be it.
NEWER = (1, 51)


def older() -> bool:
    """Whether Debian's docker here is the one before 28."""
    return peers.docker_api() < NEWER


class Words(NamedTuple):
    """A pattern over an answer, with PROGRAM for the program's name and ID for identifiers, and what 28 says there."""

    of_26: str
    of_28: str | Callable[[re.Match[str]], str]
    why: str


@functools.cache
def usage(called: str) -> str:
    """How docker's own help says that a command is called; `called` as PROGRAM network create."""
    told = peers.run("docker", *called.split()[1:], "--help", code=None).stdout
    line = re.search(r"(?m)^Usage:  (docker.*)$", told)
    assert line, (called, told)
    return re.sub(r"^docker\b", "PROGRAM", line[1])


def mistake(found: re.Match[str]) -> str:
    return f"{found[1]}\n\nUsage:  {usage(found[2])}\n\nRun '{found[2]} --help' for more information"


RUN = r"\1\n\nRun '\2 --help' for more information"
CLIENT = (
    Words(
        r"(?m)^PROGRAM: '(.*)' is not a PROGRAM command\.\nSee '(PROGRAM[\w -]*?) --help'$",
        r"PROGRAM: unknown command: PROGRAM \1\n\nRun '\2 --help' for more information",
        "an unknown command",
    ),
    Words(
        r"(?m)^\"(PROGRAM [\w -]+)\" (accepts no arguments|requires .*)\.\nSee '\1 --help'\.\n\n(Usage:  .*)\n"
        r"(?:.|\n)*",
        r"PROGRAM: '\1' \2\n\n\3\n\nRun '\1 --help' for more information\n",
        "operands: the command's summary is no more behind its usage",
    ),
    Words(r"(?m)^(PROGRAM: '.*' requires) exactly ", r"\1 ", "operands: a number alone"),
    Words(
        r"(?m)^(PROGRAM: [^\n]*(?:\n[^\n]+)*?)\.\nSee '(PROGRAM (?:run|create)) --help'\.$",
        RUN,
        "what is wrong with a container: no full stop is set behind the message",
    ),
    Words(r"(?m)^(.+)\nSee '(PROGRAM[\w -]*?) --help'\.$", mistake, "flags: the usage is shown"),
    Words(
        r"(?m)^(PROGRAM: Error response from daemon: [^\n]*(?:\n[^\n]+)*)\.\n\Z",
        r"\1\n\nRun 'PROGRAM run --help' for more information\n",
        "a start that failed: as any other failure of run",
    ),
    Words(
        r"(to be able to reuse that name)\n\nRun",
        r"\1.\n\nRun",
        "this message has a full stop of its own, which 26 takes away before it sets one",
    ),
    Words(
        r"Conflicting options: --restart and --rm",
        "conflicting options: cannot specify both --restart and --rm",
        "one form of words for all options that do not go together",
    ),
    Words(
        r"Conflicting options: -a and -d",
        "conflicting options: cannot specify both --attach and --detach",
        "one form of words for all options that do not go together",
    ),
    Words(r":::(\d[\d-]*->)", r"[::]:\1", "ports of ps: an IPv6 address has brackets"),
    Words(
        r'(?m)^(\{"Command":.*?"Networks":"[^"]*",)("Ports":)', r'\1"Platform":null,\2', "ps has the column Platform"
    ),
)
DAEMON = (
    Words(
        r"(invalid filter 'status=(\w+)')$",
        r"\1: invalid value for state (\2): must be one of created, running, paused, restarting, removing, exited,"
        " dead",
        "the filters' values are named",
    ),
    Words(
        r"unrecognized filter value for health: (\w+)$",
        r"invalid filter 'health=\1': invalid value for health (\1): must be one of none, starting, healthy, unhealthy",
        "the filters' values are named",
    ),
    Words(r"(daemon: )(Pool overlaps)", r"\1invalid pool request: \2", "the IPAM driver says what it refuses"),
    Words(
        r"network (\w+) id \w+ has active endpoints$",
        r'network \1 has active endpoints (name:"web" id:"ID")',
        "the endpoints are named; in these tests it is always web's",
    ),
    Words(
        r"container cannot be disconnected from host network or connected to host network",
        "cannot connect container to host network - container must be created in host network mode",
        "one message for each of the two",
    ),
    Words(
        r"(daemon: )(driver failed programming|failed to create endpoint|failed to add interface)",
        r"\1failed to set up container networking: \2",
        "a network of a container is set up after its task is made, which is said",
    ),
    Words(r'cannot remove container "/', 'cannot remove container "', "the container is named as it was asked for"),
    Words(r'\["127\.0\.0\.0/8"\]', '["::1/128","127.0.0.0/8"]', "IPv6's loopback is no less trusted"),
)


def of_client(text: str, argv: Sequence[str]) -> str:
    """What Debian's docker says to a command line, on either daemon, as the client of docker 28 says it."""
    if not older():
        return text
    for words in CLIENT:
        text = re.sub(words.of_26, words.of_28, text)
    if argv[:2] == ["network", "rm"] and "Error response from daemon" in text:
        text += "exit status 1\n"  # 26 ends with that status and does not say so
    if argv[:2] == ["image", "inspect"]:  # the client's type of an image's configuration has no empty fields any more
        text = re.sub(r'"\w+":(?:null|""|false),?', "", text).replace(",}", "}")
    return text


def newest(text: str, argv: Sequence[str]) -> str:
    """What Debian's docker says to a command line, on its own daemon or on teud, as docker 28 says it."""
    text = of_client(text, argv)
    for words in DAEMON if older() else ():
        text = "\n".join(re.sub(words.of_26, words.of_28, line) for line in text.split("\n"))
    return text
