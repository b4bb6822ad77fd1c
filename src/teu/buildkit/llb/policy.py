# SPDX-License-Identifier: Apache-2.0
"""Source policies: rules of a client, or of a configuration, that allow, deny or rewrite the sources of a build.

Each policy is a list of rules, of which the last that matches says whether a source is allowed; one that converts
changes the source, and all policies are asked again. What no rule speaks of is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from teu.api.buildkit import policy_pb2
from teu.buildkit.core.errors import InvalidArgument, PermissionDenied

CONVERSIONS_MAX = 20  # of one source; more go round in circles
RULES_MAX = 10_000
PATTERN_MAX = 4096  # characters


class Policies:
    """Some policies as one: a llb.load.Policy."""

    def __init__(self, policies: Sequence[Any], more: Sequence[Any] = (), *, regexes: bool = True) -> None:
        """`more` are asked after the others, and can take back nothing of what those forbid; `regexes` false: they are
        of somebody whose regular expressions nobody wants to run. InvalidArgument for what cannot be understood."""
        self._policies = [[_Rule(rule, True) for rule in policy.rules] for policy in policies]
        self._policies += [[_Rule(rule, regexes) for rule in policy.rules] for policy in more]
        if sum(len(rules) for rules in self._policies) > RULES_MAX:
            raise InvalidArgument(f"a source policy of more than {RULES_MAX} rules")

    def __bool__(self) -> bool:
        return any(self._policies)

    def __call__(self, op: Any) -> bool:
        """Ask about a pb.Op of a source, and change it as they say; whether it was changed. PermissionDenied."""
        return self.apply(op.source)

    def apply(self, source: Any) -> bool:
        """The same for the pb.SourceOp."""
        changed = False
        for _ in range(CONVERSIONS_MAX + 1):
            if not any(self._ask(rules, source) for rules in self._policies):
                return changed
            changed = True
        raise InvalidArgument("too many mutations on a single source: too many operations")

    @staticmethod
    def _ask(rules: Sequence[_Rule], source: Any) -> bool:
        denied = False
        identifier = source.identifier
        for rule in rules:
            if not rule.matches(identifier, source.attrs):
                continue
            if rule.action == policy_pb2.CONVERT:
                if rule.convert(source):
                    return True
            else:
                denied = rule.action == policy_pb2.DENY
        if denied:
            raise PermissionDenied(f'source "{identifier}" denied by policy: source denied by policy')
        return False


class _Rule:
    def __init__(self, rule: Any, regexes: bool) -> None:
        self.action = rule.action
        self._identifier = rule.selector.identifier
        self._updates = rule.updates
        if rule.action not in (policy_pb2.ALLOW, policy_pb2.DENY, policy_pb2.CONVERT):
            raise InvalidArgument(f"source policy: unknown action {rule.action}")
        kind = rule.selector.match_type
        if kind not in (policy_pb2.REGEX, policy_pb2.WILDCARD, policy_pb2.EXACT):
            raise InvalidArgument(f"unknown match type: {kind}")
        self._regex = _regex(self._identifier, regexes) if kind == policy_pb2.REGEX else None
        self._pieces = re.split(r"\*+", self._identifier) if kind == policy_pb2.WILDCARD else []
        self._constraints = [
            (one, _regex(one.value, regexes) if one.condition == policy_pb2.MATCHES else None)
            for one in rule.selector.constraints
        ]

    def matches(self, identifier: str, attributes: Mapping[str, str]) -> bool:
        for one, pattern in self._constraints:
            value = attributes.get(one.key, "")
            if one.condition == policy_pb2.EQUAL and value != one.value:
                return False
            if one.condition == policy_pb2.NOTEQUAL and value == one.value:
                return False
            if pattern is not None and not pattern.search(value):
                return False
        return self._identifier == identifier or self._groups(identifier) is not None

    def _groups(self, identifier: str) -> list[str] | None:
        """What the pattern's parts match, after the whole of it; None where it does not match."""
        if self._regex is not None:
            found = self._regex.search(identifier)
            return [found[0], *(group or "" for group in found.groups())] if found else None
        stars = _stars(self._pieces, identifier) if self._pieces else None
        return [identifier, *stars] if stars is not None else None

    def convert(self, source: Any) -> bool:
        wanted = self._updates.identifier or source.identifier
        groups = self._groups(source.identifier)
        if groups is not None:
            # What the pattern's parts matched may stand in the new name, as $1 or ${1}.
            def one(place: re.Match[str]) -> str:
                number = int(place[1] or place[2])
                return groups[number] if number < len(groups) else ""

            wanted = re.sub(r"\$(?:\{(\d{1,4})\}|(\d{1,4}))", one, wanted)
        changed = bool(source.identifier != wanted)
        source.identifier = wanted
        for key, value in self._updates.attrs.items():
            if key not in source.attrs or source.attrs[key] != value:
                source.attrs[key] = value
                changed = True
        return changed


def _regex(text: str, allowed: bool) -> re.Pattern[str]:
    if not allowed:
        raise InvalidArgument("regular expressions in a source policy are taken from the client of the build alone")
    if len(text) > PATTERN_MAX:
        raise InvalidArgument(f"a pattern of {len(text)} characters in a source policy")
    try:
        return re.compile(text)
    except re.error as error:
        raise InvalidArgument(f'invalid regex "{text}": {error}') from None


def _stars(pieces: Sequence[str], text: str) -> list[str] | None:
    """What the stars between the pieces match, each as much as it can, the first ones first; None where they do not.
    The pieces are looked for from the end, each once, so no text makes it slow."""
    first, *middle = pieces
    if not middle:
        return [] if text == first else None
    last = middle.pop()
    end = len(text) - len(last)
    if end < len(first) or not text.startswith(first) or not text.endswith(last):
        return None
    found = []
    for piece in reversed(middle):
        at = text.rfind(piece, len(first), end)
        if at < 0:
            return None
        found.append(text[at + len(piece) : end])
        end = at
    return [text[len(first) : end], *reversed(found)]
