# SPDX-License-Identifier: Apache-2.0
"""The network of a node made of a template, when kubelet is told the addresses of its pods (UpdateRuntimeConfig).
Called by `service`, on threads.

The template is a CNI configuration list with the actions of Go's text/template that such files have, so that those
written for containerd are understood:

    {{.PodCIDR}}                                        the first range
    {{range $i, $x := .PodCIDRRanges}} ... {{end}}      for each range; $x, or {{.}} within, is it
    {{range .Routes}} ... {{end}}                       for each default route: one of each family
    {{if $i}} ... {{else}} ... {{end}}                  unless it is 0 or empty
    {{- and -}}                                         without the white space before, and after
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from teu.cni import configuration
from teu.cni.errors import CniError
from teu.containerd.core.errors import FailedPrecondition, InvalidArgument

log = logging.getLogger("teu.containerd.cri")

NAME = "10-containerd-net.conflist"  # containerd's: what else a node runs may look for it

_ACTION = re.compile(r"(\s*\{\{- |\{\{)(.*?)( -\}\}\s*|\}\})", re.DOTALL)
_RANGE = re.compile(r"range(?:\s+(\$\w+)(?:\s*,\s*(\$\w+))?\s*:=)?\s+(\S+)")
_VALUE = re.compile(r"\.|\.[A-Z]\w*|\$\w*")
_Values = Mapping[str, Any]


def fields(pod_cidr: str) -> dict[str, Any]:
    """What a template may name, by the ranges of a node's pods, with commas between them. Raises InvalidArgument."""
    ranges = [one.strip() for one in pod_cidr.split(",")]
    routes = []
    for one in ranges:
        try:
            family = ipaddress.ip_network(one, strict=False).version
        except ValueError as error:
            raise InvalidArgument(f"pod_cidr: {error}") from None
        routes.append("0.0.0.0/0" if family == 4 else "::/0")
    return {".PodCIDR": ranges[0], ".PodCIDRRanges": ranges, ".Routes": routes}


class _Template:
    """A text and its actions, read once from the beginning to the end."""

    def __init__(self, text: str) -> None:
        self._parts = list(self._split(text))
        self._at = 0

    @staticmethod
    def _split(text: str) -> Iterator[tuple[bool, str]]:
        """(whether it is an action, it)."""
        end = 0
        for found in _ACTION.finditer(text):
            yield False, text[end : found.start()]
            yield True, found[2].strip()
            end = found.end()
        yield False, text[end:]

    def whole(self, values: _Values) -> str:
        """All of it. ValueError."""
        made, ended_by = self._block(values, wanted=True)
        if ended_by:
            raise ValueError(f"{{{{{ended_by}}}}} ends nothing")
        return made

    def _block(self, values: _Values, *, wanted: bool) -> tuple[str, str]:
        """What comes until the end of a block, "" where it is not `wanted`, and which action ends it."""
        made = ""
        while self._at < len(self._parts):
            is_action, text = self._parts[self._at]
            self._at += 1
            if not is_action:
                made += text
            elif text in ("end", "else"):
                return made if wanted else "", text
            elif text.startswith("if "):
                made += self._choice(self._value(text[3:].strip(), values, wanted=wanted), values, wanted=wanted)
            elif text.startswith("range "):
                made += self._each(text, values, wanted=wanted)
            elif not text.startswith("/*"):  # else a comment
                made += str(self._value(text, values, wanted=wanted))
        return made if wanted else "", ""

    def _choice(self, truth: Any, values: _Values, *, wanted: bool) -> str:
        made, ended_by = self._block(values, wanted=wanted and bool(truth))
        if ended_by == "else":
            other, ended_by = self._block(values, wanted=wanted and not truth)
            made += other
        self._must_end(ended_by)
        return made

    def _each(self, action: str, values: _Values, *, wanted: bool) -> str:
        found = _RANGE.fullmatch(action)
        if found is None:
            raise ValueError(f"{{{{{action}}}}} is not understood")
        items = self._value(found[3], values, wanted=wanted) if wanted else []
        if not isinstance(items, list):
            raise ValueError(f"{found[3]} is no list")
        begin, made = self._at, ""
        # Once more than there are items: to come to its end.
        for number, item in [*enumerate(items), (0, None)]:
            self._at = begin
            number_name, item_name = (found[1], found[2]) if found[2] else (None, found[1])
            named = {name: value for name, value in ((number_name, number), (item_name, item)) if name}
            text, ended_by = self._block({**values, ".": item, **named}, wanted=item is not None)
            made += text
            self._must_end(ended_by)
        return made

    @staticmethod
    def _must_end(ended_by: str) -> None:
        if ended_by != "end":
            raise ValueError("{{end}} is missing")

    @staticmethod
    def _value(name: str, values: _Values, *, wanted: bool) -> Any:
        if not _VALUE.fullmatch(name):
            raise ValueError(f"{{{{{name}}}}} is not understood")
        if name in values:
            return values[name]
        if wanted:
            raise ValueError(f"nothing is known of {name}")
        return ""


def render(text: str, values: _Values) -> str:
    """A template with what it names. Raises ValueError."""
    return _Template(text).whole(values)


def write(template: str, folder: str, pod_cidr: str) -> None:
    """Make the configuration of a template in a folder of configurations. Raises InvalidArgument for ranges
    that are none, and FailedPrecondition for a template that is none."""
    values = fields(pod_cidr)
    path = os.path.join(folder, NAME)
    unfinished = f"{path}.new"  # no name of a configuration
    try:
        with open(template, encoding="utf-8") as file:
            made = render(file.read(), values).encode()
        configuration.parse(made, whole=True)
        os.makedirs(folder, 0o755, exist_ok=True)
        with open(unfinished, "wb") as file_made:
            file_made.write(made)
            file_made.flush()
            os.fsync(file_made.fileno())
        os.rename(unfinished, path)
    except (CniError, OSError, ValueError) as error:
        told = error.text if isinstance(error, CniError) else error
        raise FailedPrecondition(f"the network's template {template}: {told}") from None
    log.info("pods have addresses of %s, by %s", pod_cidr, path)
