# SPDX-License-Identifier: Apache-2.0
"""The rules for the sources of a build that EXPERIMENTAL_BUILDKIT_SOURCE_POLICY names: a file of JSON, or of protobuf,
as buildx reads it. And what --policy asks for: policies in Rego, which are refused. Called by request where there is
one of them."""

from __future__ import annotations

import os

from teu.cli.builds.messages import POLICY, TABLES
from teu.cli.errors import CommandError
from teu.cli.options import FALSE, TRUE
from teu.oci import jsontext
from teu.ttrpc import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

VARIABLE = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY"
REGO = f"policies in Rego are followed by docker buildx alone, which builds here too; {VARIABLE} names rules for us"
ACTIONS = ("ALLOW", "DENY", "CONVERT")
MATCHES = ("WILDCARD", "EXACT", "REGEX")
CONDITIONS = ("EQUAL", "NOTEQUAL", "MATCHES")


def read() -> dict[str, Any] | None:
    """The Policy for Solve; None where the variable names none. CommandError for a file that is none."""
    path = os.environ.get(VARIABLE, "")
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise CommandError(f"failed to read policy file: open {path}: {error.strerror}") from None
    try:
        document = jsontext.loads(data.decode())
    except (ValueError, RecursionError) as error:
        try:
            return dict(codec.decode_table(TABLES, TABLES[POLICY + "Policy"], data))
        except ValueError:
            raise CommandError(f"failed to parse source policy: {path}: {error}") from None
    return _policy(document)


def check_rego(values: Sequence[str], beside: str) -> None:
    """--policy, and the file of this path that buildx looks for beside a Dockerfile. Rego is a language of its own that
    nobody here reads; a build that passed a policy over would be worse than none. CommandError, unless all that is
    wanted is that there be none (disabled=true)."""
    disabled = False
    for pair in (pair.strip() for value in values for pair in value.split(",")):
        name, _, text = pair.partition("=")
        if name != "disabled" or text not in TRUE | FALSE:
            raise CommandError(f"--policy {pair}: {REGO}")
        disabled = text in TRUE
    if not disabled and os.path.lexists(beside):
        raise CommandError(f"{beside}: {REGO}; --policy disabled=true builds without it")


def _policy(document: Any) -> dict[str, Any]:
    given = _object(document, "the policy")
    return {"version": _number(given, "version"), "rules": [_rule(one) for one in _list(given, "rules")]}


def _rule(value: Any) -> dict[str, Any]:
    given = _object(value, "a rule")
    rule: dict[str, Any] = {"action": _word(given, "action", ACTIONS)}
    selector = _object(given.get("selector"), "a rule's selector")
    constraints = [_object(one, "a constraint") for one in _list(selector, "constraints")]
    rule["selector"] = {
        "identifier": _text(selector, "identifier"),
        "match_type": _word(selector, "match_type", MATCHES),
        "constraints": [
            {
                "key": _text(one, "key"),
                "value": _text(one, "value"),
                "condition": _word(one, "condition", CONDITIONS),
            }
            for one in constraints
        ],
    }
    if given.get("updates") is not None:
        updates = _object(given["updates"], "updates")
        attributes = _object(updates.get("attrs") or {}, "attrs")
        rule["updates"] = {
            "identifier": _text(updates, "identifier"),
            "attrs": {key: _text(attributes, key) for key in attributes},
        }
    return rule


def _wrong(what: str) -> CommandError:
    return CommandError(f"failed to parse source policy: {what}")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(f"{what} is no object")
    return value


def _list(given: dict[str, Any], name: str) -> list[Any]:
    value = given.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _wrong(f"{name} is no list")
    return value


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name, "")
    if not isinstance(value, str):
        raise _wrong(f"{name} is no text")
    return value


def _number(given: dict[str, Any], name: str) -> int:
    value = given.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(f"{name} is no number")
    return value


def _word(given: dict[str, Any], name: str, words: Sequence[str]) -> int:
    """The number of a word, or the number itself."""
    value = given.get(name, 0)
    if isinstance(value, str) and value in words:
        return words.index(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(words):
        return value
    raise _wrong(f"{name} is none of {', '.join(words)}: {value}")
