# SPDX-License-Identifier: Apache-2.0
"""Source policies (moby.buildkit.v1.sourcepolicy): what a build may take its files from. Called by control, which gives
`Policies` to llb.load, and before it asks what a source is.

    ALLOW, DENY   the last rule of a policy that fits decides; what no rule fits is allowed
    CONVERT       the source becomes another one; all policies are asked about that again

A rule fits by its identifier, exactly, with wildcards ("*"), or as a regular expression, and by attributes. What was
matched stands for $1, ${1}, … in the new identifier. An image's name is seen in its full form, a repository's without
the name of a user, so that no other way to write them gets by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from teu.api.buildkit import policy_pb2
from teu.buildkit.core import errors
from teu.oci import reference

CONVERSIONS_MAX = 20  # of one source
PATTERN_MAX = 1024
IDENTIFIER_MAX = 8192
RULES_MAX = 10_000
IMAGE, GIT = "docker-image://", "git://"
_NAME = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+))", re.ASCII)


class Denied(errors.PermissionDenied):
    """A source that the policy does not allow."""


class Policies:
    """All policies of a build; called with a pb.Op of a source, which it may change: then the answer is True."""

    def __init__(self, policies: Sequence[Any]) -> None:
        self._policies = list(policies)
        if sum(len(policy.rules) for policy in self._policies) > RULES_MAX:
            raise errors.InvalidArgument(f"source policies with more than {RULES_MAX} rules")

    def __bool__(self) -> bool:
        return bool(self._policies)

    def __call__(self, op: Any) -> bool:
        """Raises Denied, or InvalidArgument for a rule that cannot be understood."""
        return self.evaluate(op.source)

    def evaluate(self, source: Any) -> bool:
        """The same of a pb.SourceOp."""
        if not self._policies:
            return False
        changed = False
        for _ in range(CONVERSIONS_MAX + 1):
            if not any(self._asked(policy, source) for policy in self._policies):
                return changed
            changed = True
        raise errors.InvalidArgument("too many mutations on a single source: too many operations")

    def _asked(self, policy: Any, source: Any) -> bool:
        """Has this policy changed the source? Raises Denied."""
        identifier = normalized(source.identifier)
        denied = False
        for rule in policy.rules:
            found = _matched(rule.selector, identifier, source.attrs)
            if found is None:
                continue
            if rule.action == policy_pb2.CONVERT:
                if _converted(rule, found, source, identifier):
                    return True
            elif rule.action in (policy_pb2.ALLOW, policy_pb2.DENY):
                denied = rule.action == policy_pb2.DENY
            else:
                raise errors.InvalidArgument(f"source policy: unknown action {rule.action}")
        if denied:
            raise Denied(f"source {identifier!r} denied by policy: source denied by policy".replace("'", '"'))
        return False


def normalized(identifier: str) -> str:
    """An identifier as rules see it."""
    if len(identifier) > IDENTIFIER_MAX:
        raise errors.InvalidArgument(f"a source's identifier of {len(identifier)} characters")
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


def _converted(rule: Any, found: _Match, source: Any, identifier: str) -> bool:
    if not rule.HasField("updates"):
        raise errors.InvalidArgument("error mutating source policy: missing destination for convert rule")
    target = found.formatted(rule.updates.identifier or rule.selector.identifier)
    changed = False
    if target and target != identifier:
        source.identifier = target
        changed = True
    for key, value in rule.updates.attrs.items():
        if source.attrs.get(key, "") != value:
            source.attrs[key] = value
            changed = True
    return changed


@dataclass(frozen=True, slots=True)
class _Match:
    formatted: Callable[[str], str]


def _matched(selector: Any, identifier: str, attributes: Mapping[str, str]) -> _Match | None:
    for constraint in selector.constraints:
        value = attributes.get(constraint.key, "")
        if constraint.condition == policy_pb2.EQUAL:
            fits = value == constraint.value
        elif constraint.condition == policy_pb2.NOTEQUAL:
            fits = value != constraint.value
        elif constraint.condition == policy_pb2.MATCHES:
            fits = compiled(constraint.value).search(value[:IDENTIFIER_MAX]) is not None
        else:
            raise errors.InvalidArgument(f"unknown attr condition: {constraint.condition}")
        if not fits:
            return None
    exactly = identifier in (selector.identifier, normalized(selector.identifier))
    if selector.match_type == policy_pb2.EXACT:
        return _Match(lambda text: text) if exactly else None
    if selector.match_type == policy_pb2.REGEX:
        expression = compiled(selector.identifier)
        if not exactly and expression.search(identifier) is None:
            return None
        return _Match(
            lambda text: expression.sub(lambda match: _filled(text, [match[0], *match.groups("")]), identifier)
        )
    if selector.match_type == policy_pb2.WILDCARD:
        if "**" in selector.identifier:
            raise errors.InvalidArgument(f'invalid wildcard: "**" in {errors.cut(selector.identifier, 200)}')
        parts = wildcard(selector.identifier, identifier)
        if parts is not None:
            return _Match(lambda text: _filled(text, [identifier, *parts]))
        return _Match(lambda text: identifier) if exactly else None
    raise errors.InvalidArgument(f"unknown match type: {selector.match_type}")


def wildcard(pattern: str, text: str) -> list[str] | None:
    """What each "*" stands for, where the first stands for as much as can be; None where it does not match."""
    first, *middle = pattern.split("*")
    if not middle:
        return [] if text == pattern else None
    last = middle.pop()
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return None
    end = len(text) - len(last)
    found: list[str] = []
    for literal in reversed(middle):
        at = text.rfind(literal, len(first), end)
        if at < 0:
            return None
        found.append(text[at + len(literal) : end])
        end = at
    return [text[len(first) : end], *reversed(found)]


def _filled(template: str, parts: Sequence[str]) -> str:
    """$1 and ${1} as Go's regexp expands them: what is not there is empty."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name is None:
            return "$"
        return parts[int(name)] if name.isdecimal() and len(name) < 4 and int(name) < len(parts) else ""

    return _NAME.sub(value, template)


def compiled(pattern: str) -> re.Pattern[str]:
    """A regular expression of a client. Python goes back and forth where Go does not: what could do so without an end,
    a repetition in a repetition, is refused."""
    if len(pattern) > PATTERN_MAX or _nested(pattern):
        raise errors.InvalidArgument(f"regex {errors.cut(pattern, 200)!r} is too complex for a source policy")
    try:
        return re.compile(pattern, re.ASCII)
    except (re.error, RecursionError, OverflowError) as error:
        raise errors.InvalidArgument(f"invalid regex {errors.cut(pattern, 200)!r}: {error}") from None


REPETITIONS_MAX = 4  # without an end, of one expression


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
