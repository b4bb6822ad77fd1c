# SPDX-License-Identifier: Apache-2.0
"""Where a build broke, and what it was warned of: lines of the Dockerfile with their surroundings. Called by solve."""

from __future__ import annotations

import binascii
import sys

from teu.cli.builds.messages import decode
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.cli.builds.wire import BuildError
    from teu.ttrpc.codec import Message

RULE = "-" * 20


def sources(error: BuildError) -> list[Message]:
    """The places that an error names (errdefs.Source), the outermost last."""
    found: list[Message] = []
    if not error.details:
        return found
    try:
        details = decode("google.rpc.Status", error.details)["details"]
    except ValueError:
        return found
    for detail in details:
        name = detail["type_url"].rpartition("/")[2]
        try:
            if name == "errdefs.Source+json":
                found.append(_of_json(jsontext.loads(detail["value"])))
            elif name == "errdefs.Source":
                found.append(decode("errdefs.Source", detail["value"]))
        except (ValueError, TypeError, AttributeError, KeyError):
            continue  # of another program; the message is enough
    return found


def _of_json(value: Any) -> Message:
    info = value.get("info") or {}
    ranges = []
    for span in value.get("ranges") or []:
        places = {}
        for key in ("start", "end"):
            place = span.get(key) or {}
            places[key] = {"line": int(place.get("line", 0)), "character": int(place.get("character", 0))}
        ranges.append(places)
    data = binascii.a2b_base64(info.get("data") or "")
    return {"info": {"filename": str(info.get("filename", "")), "data": data, "language": ""}, "ranges": ranges}


def lines_of(ranges: list[Message]) -> tuple[int, int]:
    """The first line and the last one of ranges; (0, 0) where they name none."""
    begins = [span["start"]["line"] for span in ranges if span["start"]]
    ends = [(span["end"] or span["start"])["line"] for span in ranges if span["start"]]
    return (min(begins), max(ends)) if begins else (0, 0)


def excerpt(info: Message, ranges: list[Message]) -> str:
    """The lines of a file that ranges name, marked, with some lines around them; "" where it has no such lines."""
    lines = info["data"].decode("utf-8", "replace").split("\n")
    first, last = lines_of(ranges)
    if not 1 <= first <= len(lines):
        return ""
    last = min(max(first, last), len(lines))
    begin, end = first, last
    room, taken = (4 if first == last else 2), 0
    while taken < room:
        if begin > 1:
            begin -= 1
            taken += 1
        if end < len(lines):
            end += 1
            taken += 1
        taken += 1
    marked: set[int] = set()
    for span in ranges:
        if span["start"]:
            last_of_it = min((span["end"] or span["start"])["line"], end)
            marked.update(range(max(begin, span["start"]["line"]), last_of_it + 1))
    out = [f"{info['filename']}:{first}", RULE]
    for number in range(begin, end + 1):
        out.append(f" {number:3d} | {'>>>' if number in marked else '   '} {lines[number - 1].rstrip(chr(13))}")
    return "\n".join([*out, RULE]) + "\n"


def places(error: BuildError) -> str:
    """All the places that an error names, as text."""
    return "".join(excerpt(source["info"], source["ranges"]) for source in sources(error) if source["info"])


def warnings_text(warnings: list[Message], whole: bool) -> str:
    """What is said of warnings at the end of a build. whole: with explanations and lines (--debug)."""
    if not warnings:
        return ""
    count = f"{len(warnings)} warning{'' if len(warnings) == 1 else 's'} found"
    head = f"{count}{'' if whole else ' (use --debug to expand)'}:"
    if sys.stderr.isatty():
        head = f"\x1b[33m{head}\x1b[0m"
    out = [f"\n {head}\n"]
    for warning in warnings:
        line = lines_of(warning["ranges"])[0]
        short = warning["short"].decode("utf-8", "replace")
        out.append(f" - {short}{f' (line {line})' if line and '(line' not in short else ''}\n")
        if not whole:
            continue
        out += [detail.decode("utf-8", "replace") + "\n" for detail in warning["detail"]]
        if warning["url"]:
            out.append(f"More info: {warning['url']}\n")
        if warning["info"] and warning["ranges"]:
            out.append(excerpt(warning["info"], warning["ranges"]))
        out.append("\n")
    return "".join(out)
