# SPDX-License-Identifier: Apache-2.0
"""The decoder of request bodies and its table, and that what the table calls used is read somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from teu.engine.api import router
from teu.engine.core import fields, kinds
from teu.engine.core.errors import BadRequest, EngineError

ENGINE = Path(fields.__file__).parents[1]

THING = fields.Object(
    {
        "Name": fields.WORD,
        "Text": fields.TEXT,
        "Count": fields.INT64,
        "Small": fields.UINT16,
        "On": fields.FLAG,
        "Words": fields.WORDS,
        "Size": fields.SIZE,
        "List": fields.ListOf(fields.Object({"Name": fields.WORD})),
        "Labels": fields.LABELS,
        "Set": fields.SET,
        "Never": fields.refused(fields.INT64, "not here; do without", 501, allowed=(5,)),
    }
)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"name": "a", "COUNT": 1}, {"Name": "a", "Count": 1}),
        ({"Name": "a", "name": "b"}, {"Name": "b"}),  # the last one counts, as in Go
        ({"Name": None, "Unknown": [float("inf")], "Count": 0}, {"Count": 0}),
        ({"Words": "sh"}, {"Words": ["sh"]}),
        ({"Words": [None, "a"]}, {"Words": ["", "a"]}),
        ({"Size": [1]}, {"Size": [1, 0]}),
        ({"Size": [1, 2, "x"]}, {"Size": [1, 2]}),
        ({"List": [{"name": "x"}, None]}, {"List": [{"Name": "x"}, {}]}),
        ({"Labels": {"b": "2", "a": None}}, {"Labels": {"a": "", "b": "2"}}),
        ({"Set": {"x": {"y": 1}, "z": None}}, {"Set": {"x": {}, "z": {}}}),
        ({"Text": "a\0\ud800b", "Labels": {"\udc00": "\ud83d\ude00"}}, {"Text": "a\0�b", "Labels": {"�": "😀"}}),
        ({"Never": 0}, {"Never": 0}),
        ({"Never": 5}, {"Never": 5}),
        (None, {}),
    ],
)
def test_what_is_read(given: Any, read: dict[str, Any]) -> None:
    assert THING.read(given) == read


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "the request body must be an object, not a list"),
        ({"name": 5}, "Name must be a string, not a number"),
        ({"Name": "a\0b"}, "Name must not contain a NUL character: 'a\\x00b'"),
        ({"Count": "5"}, "Count must be a whole number, not a string"),
        ({"Count": True}, "Count must be a whole number, not true"),
        ({"Count": 1.0}, "Count must be a whole number, not the number 1.0"),
        ({"Count": float("inf")}, "Count must be a whole number, not a number out of range"),
        ({"Count": 1 << 63}, f"Count must be between {-(1 << 63)} and {(1 << 63) - 1}, not {1 << 63}"),
        ({"Small": -1}, "Small must be between 0 and 65535, not -1"),
        ({"On": 0}, "On must be true or false, not a number"),
        ({"Words": {}}, "Words must be a list of strings, not an object"),
        ({"Words": ["a", 5]}, "Words[1] must be a string, not a number"),
        ({"List": [{}, {"Name": []}]}, "List[1].Name must be a string, not a list"),
        ({"Labels": {"a": False}}, "Labels.a must be a string, not false"),
        ({"Set": {"a": 5}}, "Set.a must be an object, not a number"),
        ({"Never": 1}, "Never: not here; do without"),
    ],
)
def test_what_is_refused(given: Any, says: str) -> None:
    with pytest.raises(EngineError) as caught:
        THING.read(given)
    assert str(caught.value) == says
    assert caught.value.status == (501 if "Never" in says else 400)


class Inner(kinds.Record):
    word: str = kinds.member("Word", kinds.WORD, "")
    size: int | None = kinds.member("Size", kinds.INT64)


class Outer(kinds.Record):
    count: int = kinds.member("Count", kinds.INT64, 7)
    name: str | None = kinds.member("Name", kinds.WORD)
    labels: dict[str, str] = kinds.member("Labels", kinds.LABELS, {})
    inner: Inner = kinds.member("Inner", kinds.RecordOf(Inner), Inner())
    many: list[Inner] = kinds.member("Many", kinds.ListOf(kinds.RecordOf(Inner)), [])


OUTER, WITH_NULLS = kinds.RecordOf(Outer), kinds.RecordOf(Outer, nulls=True)


def test_defaults_are_a_record_s_own() -> None:
    one, other = OUTER.read({"count": 0}), OUTER.read(None)
    assert (one.count, other.count, one.name) == (0, 7, None)
    one.labels["a"], one.inner.word = "b", "c"
    assert other == Outer() and other.labels == {} and other.inner.word == ""


def test_a_record_is_written_as_it_was_read() -> None:
    given = {"Count": 0, "Labels": {"a": "b"}, "Inner": {"Word": "x"}, "Many": [{"Word": "y"}, {"Word": ""}]}
    record = OUTER.read(given)
    assert record == Outer(count=0, labels={"a": "b"}, inner=Inner(word="x"), many=[Inner(word="y"), Inner()])
    assert OUTER.write(record) == given
    assert WITH_NULLS.write(record) == {**given, "Name": None}
    assert OUTER.build({**given, "Name": None}) == record
    newer = OUTER.build({**given, "Newer": [5]})  # of another teud
    assert newer.unknown == {"Newer": [5]} and OUTER.write(newer.copy()) == {**given, "Newer": [5]}
    assert record.copy() == record and record.copy() is not record


def test_a_record_of_one_member_is_written() -> None:
    class One(kinds.Record):
        word: str | None = kinds.member("Word", kinds.WORD)

    assert kinds.RecordOf(One).write(One(word="ab")) == {"Word": "ab"}
    assert kinds.RecordOf(One, nulls=True).write(One()) == {"Word": None}


def test_a_record_refuses_by_path_and_has_no_other_attributes() -> None:
    with pytest.raises(BadRequest, match=r"^here\.Many\[1\]\.Word must be a string, not a number$"):
        OUTER.read({"Many": [{}, {"Word": 5}]}, "here")
    with pytest.raises(TypeError, match="Inner has no colour"):
        Inner(colour="red")  # type: ignore[call-arg]


@pytest.mark.parametrize("text", [b"NaN", b"[-Infinity]", b"[" * 100_000, b"\xef\xbb\xbf{}", b"{} x"])
def test_what_is_no_json(text: bytes) -> None:
    with pytest.raises(ValueError):
        kinds.loads(text)


def test_numbers_of_any_length_are_read() -> None:
    """Where no field is: Go does not look at them, and Python must not fail over them."""
    assert kinds.loads(b'{"x":' + b"9" * 5000 + b',"y":"\xff"}') == {"x": float("inf"), "y": "�"}


# ---- the table ---------------------------------------------------------------------------------------------


def used(kind: object) -> Iterator[str]:
    if isinstance(kind, kinds.Shape):
        for name, field in kind.fields.items():
            if field.standing == fields.USED:
                yield name
                yield from used(field.kind)
    elif isinstance(kind, (kinds.ListOf, kinds.MapOf)):
        yield from used(kind.kind)


def attributes_of(kind: object) -> dict[str, set[str]]:
    """What the records call the fields, as deep as they go."""
    result: dict[str, set[str]] = {}
    if isinstance(kind, kinds.RecordOf):
        for attribute, member in kind.record.members.items():
            result.setdefault(member.name, set()).add(attribute)
    inner = [field.kind for field in kind.fields.values()] if isinstance(kind, kinds.Shape) else []
    inner += [kind.kind] if isinstance(kind, (kinds.ListOf, kinds.MapOf)) else []
    for one in inner:
        for name, found in attributes_of(one).items():
            result.setdefault(name, set()).update(found)
    return result


def sources() -> str:
    return "\n".join(path.read_text() for path in ENGINE.rglob("*.py") if path.name != "fields.py")


# A mount with options of another type than its own is refused by their name's end; the type itself is.
OTHERWISE = {"ImageOptions", "ClusterOptions"}
# Endpoints are the networks' affair, which have a table of their own; requests for devices are refused as a whole.
KEPT = {*used(fields.ENDPOINT), *used(fields.DEVICE_REQUEST)}


@pytest.mark.parametrize(
    "name", ["CONTAINER", "UPDATE", "CHANGE", "EXEC", "EXEC_START", "VOLUME", "LOGIN", "DISCONNECT"]
)
def test_what_is_used_is_read_somewhere(name: str) -> None:
    text = sources()
    attributes = {**attributes_of(fields.RESOURCES), **attributes_of(getattr(fields, name))}
    for field in set(used(getattr(fields, name))) - KEPT - OTHERWISE:
        reads = [rf'"{re.escape(field)}"', *(rf'\.{one}\b|"{one}"' for one in attributes.get(field, ()))]
        assert re.search("|".join(reads), text), f"{name}: {field} is in the table, and nobody reads it"


def test_parameters_that_are_used_are_read_somewhere() -> None:
    text = sources()
    for parameters in fields.PARAMETERS.values():
        for name, parameter in parameters.items():
            if parameter.standing == fields.USED and name != "filters":
                assert re.search(rf'"{re.escape(name)}"', text), name


def test_the_table_knows_the_routes() -> None:
    """Every route that reads parameters is in the table, and none that is not served."""
    router.load()
    served = set(router.served())
    assert set(fields.PARAMETERS) <= served
    none = re.compile(
        r"/(_ping|debug|\{anything:path\}|version|info|auth|plugins|swarm|nodes|services|tasks|secrets|configs)(/.*)?"
    )
    silent = {pattern for method, pattern in served - set(fields.PARAMETERS) if not none.fullmatch(pattern)}
    assert silent == {
        "/containers/{name}/pause",
        "/containers/{name}/ready",
        "/containers/{name}/unpause",
        "/containers/{name}/update",
        "/containers/{name}/change",
        "/containers/{name}/changes",
        "/containers/{name}/export",
        "/containers/{name}/exec",
        "/exec/{identity}/start",
        "/exec/{identity}/json",
        "/distribution/{name:path}/json",
        "/networks/create",
        "/networks/{name}",
        "/networks/{name}/connect",
        "/networks/{name}/disconnect",
        "/volumes/create",
        "/volumes/{name}",
        "/volumes/{name}/archive",
        "/containers/{name}/checkpoints",
        "/containers/{name}/checkpoints/{checkpoint}",
        "/grpc",
        "/session",
    }


def test_parameters_that_cannot_be_had() -> None:
    check = fields.check_parameters
    check("POST", "/containers/{name}/start", {"checkpoint": [""], "detachKeys": ["a"]})
    with pytest.raises(BadRequest, match="checkpoint: "):
        check("POST", "/containers/{name}/start", {"checkpoint": ["x"]})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"Type": "volume", "Source": "", "Target": "/x", "ReadOnly": False}, {"Type": "volume", "Target": "/x"}),
        ({"ReadOnly": True, "Consistency": ""}, {"ReadOnly": True}),
        ({"VolumeOptions": {"NoCopy": False, "Labels": {}, "Subpath": ""}}, {"VolumeOptions": {}}),
        ({"VolumeOptions": {"DriverConfig": {"Name": "", "Options": {}}}}, {"VolumeOptions": {"DriverConfig": {}}}),
        ({"TmpfsOptions": {"SizeBytes": 0, "Mode": 0o1770}}, {"TmpfsOptions": {"Mode": 0o1770}}),
        ({"BindOptions": {"Propagation": "", "NonRecursive": False}}, {"BindOptions": {}}),
    ],
)
def test_what_is_empty_in_a_mount_is_not_told(given: dict[str, object], told: dict[str, object]) -> None:
    assert fields.MOUNT.write(fields.MOUNT.read(given, "Mounts[0]")) == told
    assert fields.MOUNT.write(fields.MOUNT.build(given)) == told  # as an older teud wrote it


def test_what_is_empty_in_a_check_of_health_is_not_told() -> None:
    given = {"Test": ["CMD", "true"], "Interval": 0, "Timeout": 5, "Retries": 0}
    assert fields.HEALTH.write(fields.HEALTH.read(given, "Healthcheck")) == {"Test": ["CMD", "true"], "Timeout": 5}
