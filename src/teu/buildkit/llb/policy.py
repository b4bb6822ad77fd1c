# SPDX-License-Identifier: Apache-2.0
"""Source policies: rules of a client, or of a configuration, that allow, deny or rewrite the sources of a build.

Each policy is a list of rules, of which the last that matches says whether a source is allowed; one that converts
changes the source, and all policies are asked again. What no rule speaks of is allowed.

A rule fits by its identifier, exactly, with wildcards ("*"), or as a regular expression, and by attributes. It sees an
image's name in its full form, and a repository's without the name of a user: no other way to write them gets by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from teu.api.buildkit import policy_pb2
from teu.buildkit.core.errors import InvalidArgument, PermissionDenied, cut
from teu.oci import reference

TOO_MANY = "too many mutations on a single source: too many operations"
CONVERSIONS_MAX = 20  # of one source; more go round in circles
RULES_MAX = 10_000
PATTERN_MAX = 4096  # characters
IDENTIFIER_MAX = 8192
REPETITIONS_MAX = 4  # without an end, of one regular expression
IMAGE, GIT = "docker-image://", "git://"
_PLACE = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+))", re.ASCII)


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
        raise InvalidArgument(TOO_MANY)

    @staticmethod
    def _ask(rules: Sequence[_Rule], source: Any) -> bool:
        denied = False
        identifier = normalized(source.identifier)
        for rule in rules:
            if not rule.matches(identifier, source.attrs):
                continue
            if rule.action == policy_pb2.CONVERT:
                if rule.convert(source, identifier):
                    return True
            else:
                denied = rule.action == policy_pb2.DENY
        if denied:
            raise PermissionDenied(f'source "{identifier}" denied by policy: source denied by policy')
        return False


def all_of(policies: Sequence[Callable[[Any], bool]]) -> Callable[[Any], bool] | None:
    """Several llb.load.Policy as one: what one of them has changed is asked of all again. None where there are none."""

    def ask(op: Any) -> bool:
        changed = False
        for _ in range(CONVERSIONS_MAX + 1):
            if not any(policy(op) for policy in policies):
                return changed
            changed = True
        raise InvalidArgument(TOO_MANY)

    return ask if policies else None


class _Rule:
    def __init__(self, rule: Any, regexes: bool) -> None:
        self.action = rule.action
        self._identifier = rule.selector.identifier
        self._exact = {self._identifier, normalized(self._identifier)}
        self._updates = rule.updates
        if rule.action == policy_pb2.CONVERT and not rule.HasField("updates"):
            raise InvalidArgument("error mutating source policy: missing destination for convert rule")
        if rule.action not in (policy_pb2.ALLOW, policy_pb2.DENY, policy_pb2.CONVERT):
            raise InvalidArgument(f"source policy: unknown action {rule.action}")
        kind = rule.selector.match_type
        if kind not in (policy_pb2.REGEX, policy_pb2.WILDCARD, policy_pb2.EXACT):
            raise InvalidArgument(f"unknown match type: {kind}")
        self._regex = _regex(self._identifier, regexes) if kind == policy_pb2.REGEX else None
        self._pieces = self._identifier.split("*") if kind == policy_pb2.WILDCARD else []
        if kind == policy_pb2.WILDCARD and "**" in self._identifier:
            raise InvalidArgument(f'invalid wildcard: "**" in {cut(self._identifier, 200)}')
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
        return identifier in self._exact or self._groups(identifier) is not None

    def _groups(self, identifier: str) -> list[str] | None:
        """What the pattern's parts match, after the whole of it; None where it does not match."""
        if self._regex is not None:
            if len(identifier) > IDENTIFIER_MAX:
                raise InvalidArgument(f"a source's identifier of {len(identifier)} characters")
            found = self._regex.search(identifier)
            return [found[0], *(group or "" for group in found.groups())] if found else None
        stars = _stars(self._pieces, identifier) if self._pieces else None
        return [identifier, *stars] if stars is not None else None

    def convert(self, source: Any, identifier: str) -> bool:
        """Change the source; what the pattern's parts matched may stand in the new name, as $1 or ${1}."""
        wanted = self._updates.identifier
        if wanted and self._regex is not None:
            wanted = self._regex.sub(
                lambda match: _filled(self._updates.identifier, [match[0], *match.groups("")]), identifier
            )
        elif wanted and self._pieces:
            groups = self._groups(identifier)
            wanted = _filled(wanted, groups) if groups is not None else identifier
        changed = bool(wanted and identifier != wanted)
        if changed:
            source.identifier = wanted
        for key, value in self._updates.attrs.items():
            if key not in source.attrs or source.attrs[key] != value:
                source.attrs[key] = value
                changed = True
        return changed


def normalized(identifier: str) -> str:
    """An identifier as rules see it."""
    if len(identifier) > IDENTIFIER_MAX:
        return identifier
    if identifier.startswith(IMAGE):
        try:
            return IMAGE + str(reference.parse(identifier.removeprefix(IMAGE)).with_default_tag())
        except reference.ReferenceError_:
            return identifier
    if identifier.startswith(GIT):
        address, hash_, fragment = identifier.removeprefix(GIT).partition("#")
        inner = address.partition("://")[2] if "://" in address else address
        place, slash, path = inner.partition("/")
        return f"{GIT}{place.rpartition('@')[2]}{slash}{path}{hash_}{fragment}"
    return identifier


def _filled(template: str, parts: Sequence[str]) -> str:
    """$1 and ${1} as Go's regexp expands them: what is not there is empty."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name is None:
            return "$"
        return parts[int(name)] if name.isdecimal() and len(name) < 4 and int(name) < len(parts) else ""

    return _PLACE.sub(value, template)


def _regex(text: str, allowed: bool) -> re.Pattern[str]:
    if not allowed:
        raise InvalidArgument("regular expressions in a source policy are taken from the client of the build alone")
    # Python goes back and forth where Go does not: what could do so without an end is refused.
    if len(text) > PATTERN_MAX or _nested(text):
        raise InvalidArgument(f'regex "{cut(text, 200)}" is too complex for a source policy')
    try:
        return re.compile(text, re.ASCII)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidArgument(f'invalid regex "{cut(text, 200)}": {error}') from None


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


def _nested(pattern: str) -> bool:
    """Whether what is repeated without an end is within what is repeated, or there are many of them."""
    groups = [False]  # for each that is open: has it a repetition within
    at = count = 0
    closed = False  # what stands before is a group with a repetition
    while at < len(pattern):
        letter = pattern[at]
        at += 1
        if letter == "\\":
            at += 1
        elif letter == "[":
            at = _class_end(pattern, at)
        elif letter == "(":
            groups.append(False)
        elif letter == ")" and len(groups) > 1:
            closed = groups.pop()
            groups[-1] = groups[-1] or closed
            continue
        elif letter in "*+{":
            if closed:
                return True
            count += 1
            groups[-1] = True
        closed = False
    return count > REPETITIONS_MAX


def _class_end(pattern: str, at: int) -> int:
    at += pattern.startswith("^", at)
    at += pattern.startswith("]", at)
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at + 1
