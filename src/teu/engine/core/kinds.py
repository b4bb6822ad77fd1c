# SPDX-License-Identifier: Apache-2.0
"""How JSON is read, and the types of what is in it: texts, numbers, lists, objects, and records. Used by the table of
fields (fields.py) and by all records that are kept in engine.db.

Bodies are read as Go reads them: keys without regard to case, null as good as absent, numbers only where they are
written as whole ones, halves of surrogates replaced. What does not fit is refused by the path of the field.

A record is a class whose attributes are the members of a JSON object:

    class Limit(Record):
        name: str | None = member("Name", WORD)
        soft: int | None = member("Soft", INT64)

    LIMIT = RecordOf(Limit)
    LIMIT.read({"name": "nofile"}, "Ulimits[0]")    of a client: checked, BadRequest with the path of what does not fit
    LIMIT.build({"Name": "nofile"})                 of engine.db, or of an image: checked elsewhere
    LIMIT.write(limit)                              {"Name": "nofile"}: what is None was not given
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, dataclass_transform

from teu.engine.core.errors import BadRequest, EngineError, Unavailable, Unsupported

USED, REFUSED, MEANINGLESS = "used", "refused", "meaningless"

ERRORS: dict[int, type[EngineError]] = {
    400: BadRequest,
    500: EngineError,
    501: Unsupported,
    503: Unavailable,
}

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


# ---- JSON --------------------------------------------------------------------------------------------------

DIGITS = 1000  # of a whole number; longer ones fit no field, and Python refuses them altogether


def _whole(text: str) -> int | float:
    return int(text) if len(text) <= DIGITS else float(text)


def natural(text: str, most: int = 9) -> int | None:
    """A number in decimal digits, no more of them than that; None for anything else, which int() may yet take."""
    return int(text) if 0 < len(text) <= most and text.isascii() and text.isdigit() else None


def _constant(text: str) -> object:
    raise ValueError(f"invalid character {text.lstrip('-')[0]!r} looking for beginning of value")


def loads(text: bytes) -> object:
    """A JSON text as Go reads it: bytes that are no UTF-8 are replaced, NaN is no number. Raises ValueError."""
    try:
        found: object = json.loads(text.decode("utf-8", "replace"), parse_int=_whole, parse_constant=_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return found


# ---- types -------------------------------------------------------------------------------------------------


class Kind(Protocol[T_co]):
    """A type: what it is called, and how a value of it is read. `read` raises BadRequest with the value's path."""

    name: str

    def read(self, value: object, path: str) -> T_co: ...


def _wrong(path: str, wanted: str, value: object) -> BadRequest:
    return BadRequest(f"{path or 'the request body'} must be {wanted}, not {_shown(value)}")


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "a number out of range" if value in (float("inf"), float("-inf")) else f"the number {value!r}"
    names: dict[type, str] = {str: "a string", int: "a number", list: "a list", dict: "an object"}
    return names[type(value)]


def whole_characters(text: str) -> str:
    """Without the halves of surrogate pairs that a JSON text may name: no file, process or database takes those."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Text:
    name = "a string"

    def __init__(self, nul: bool = True) -> None:
        self.nul = nul

    def read(self, value: object, path: str) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            raise _wrong(path, self.name, value)
        if not self.nul and "\0" in value:
            raise BadRequest(f"{path} must not contain a NUL character: {value!r}")
        return whole_characters(value)


class Flag:
    name = "true or false"

    def read(self, value: object, path: str) -> bool:
        if not isinstance(value, bool):
            if value is None:
                return False
            raise _wrong(path, self.name, value)
        return value


class MaybeFlag(Flag):
    """A flag of which null is not false, but nothing said."""

    def read(self, value: object, path: str) -> bool | None:  # type: ignore[override]
        return None if value is None else super().read(value, path)


class Whole:
    name = "a whole number"

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def read(self, value: object, path: str) -> int:
        if value is None:
            return 0
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(path, self.name, value)
        if not self.low <= value <= self.high:
            raise BadRequest(f"{path} must be between {self.low} and {self.high}, not {value}")
        return value


class Nothing:
    """Go's struct{}: the keys are what counts."""

    name = "an object"

    def read(self, value: object, path: str) -> dict[str, object]:
        if value is not None and not isinstance(value, dict):
            raise _wrong(path, self.name, value)
        return {}


class Presence:
    """An object that nobody here looks into: it is asked for, though it may be empty."""

    name = "an object"

    def read(self, value: object, path: str) -> bool:
        if not isinstance(value, dict):
            raise _wrong(path, self.name, value)
        return True


class ListOf(Generic[T]):
    def __init__(self, kind: Kind[T]) -> None:
        self.kind = kind
        self.name = "a list"

    def read(self, value: object, path: str) -> list[T] | None:
        if value is None:
            return None
        if not isinstance(value, list):
            raise _wrong(path, self.name, value)
        return [self.kind.read(item, f"{path}[{number}]") for number, item in enumerate(value)]


class Words:
    """A list of strings, or one string, which stands for a list of it."""

    name = "a list of strings"

    def read(self, value: object, path: str) -> list[str]:
        if isinstance(value, str):
            return [WORD.read(value, path)]
        if not isinstance(value, list):
            raise _wrong(path, self.name, value)
        return [WORD.read(item, f"{path}[{number}]") for number, item in enumerate(value)]


class Size:
    """Height and width: Go's array of two, in which what is missing is 0 and more is not looked at."""

    name = "a list of two numbers"

    def read(self, value: object, path: str) -> list[int]:
        if not isinstance(value, list):
            raise _wrong(path, self.name, value)
        given = [UINT64.read(item, f"{path}[{number}]") for number, item in enumerate(value[:2])]
        for number, side in enumerate(given):
            if side > 65535:
                raise BadRequest(f"{path}[{number}] must be between 0 and 65535, not {side}")
        return [*given, 0, 0][:2]


class MapOf(Generic[T]):
    def __init__(self, kind: Kind[T], in_order: bool = False) -> None:
        """`in_order`: shown in the order of the keys, whatever the order they came in."""
        self.kind = kind
        self.name = "an object"
        self.in_order = in_order

    def read(self, value: object, path: str) -> dict[str, T]:
        if not isinstance(value, dict):
            raise _wrong(path, self.name, value)
        items = [(whole_characters(key), self.kind.read(item, f"{path}.{key}")) for key, item in value.items()]
        if self.in_order:
            items.sort(key=lambda item: item[0])
        return dict(items)


# TEXT may be anything, a WORD goes to the kernel and can have no NUL.
TEXT, WORD, FLAG, MAYBE_FLAG = Text(), Text(nul=False), Flag(), MaybeFlag()
NOTHING, PRESENCE = Nothing(), Presence()
WORDS, SIZE = Words(), Size()
INT64, UINT64 = Whole(-(1 << 63), (1 << 63) - 1), Whole(0, (1 << 64) - 1)
UINT16, UINT32 = Whole(0, (1 << 16) - 1), Whole(0, (1 << 32) - 1)
WORD_LIST = ListOf(WORD)
LABELS, WORD_MAP = MapOf(TEXT, in_order=True), MapOf(WORD, in_order=True)
SET = MapOf(NOTHING, in_order=True)
OPTIONS = MapOf(WORD)


# ---- objects -----------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """What becomes of a member of an object. `default`: where it is not given. `says`: why it is refused, and what to
    do; a value in `allowed` is taken nevertheless."""

    kind: Kind[object]
    default: object = None
    standing: str = USED
    says: str = ""
    status: int = 400
    allowed: tuple[object, ...] = ()

    def check(self, value: object, path: str) -> None:
        """Raises the refusal. What a client leaves empty it does not ask for."""
        if self.standing == REFUSED and value and value not in self.allowed:
            raise ERRORS[self.status](f"{path}: {self.says}")

    def fresh(self) -> Any:
        """The default, of which each object has its own."""
        default = self.default
        if isinstance(default, (dict, list)):
            return default.copy()
        return type(default)() if isinstance(default, Record) else default


def refused(kind: Kind[object], says: str, status: int = 400, allowed: tuple[object, ...] = ()) -> Field:
    return Field(kind, None, REFUSED, says, status, allowed)


def meaningless(kind: Kind[object]) -> Field:
    return Field(kind, None, MEANINGLESS)


class Shape(Generic[T]):
    """An object whose members are known; the others are dropped. What it is read as is said by its two kinds."""

    name = "an object"

    def __init__(self, fields: Mapping[str, Field | Kind[object]]) -> None:
        self.fields = {key: value if isinstance(value, Field) else Field(value) for key, value in fields.items()}
        self._folded = {key.casefold(): key for key in self.fields}

    def read(self, value: object, path: str = "") -> T:
        raise NotImplementedError

    def given(self, value: object, path: str = "") -> dict[str, Any]:
        """The members that are given, under the API's own names."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise _wrong(path, self.name, value)
        result = {}
        fields = self.fields
        for key, given in value.items():
            if given is None:
                continue
            field = fields.get(key)
            if field is None:
                known = self._folded.get(key.casefold())
                if known is None:
                    continue
                key, field = known, fields[known]
            here = f"{path}.{key}" if path else key
            item = field.kind.read(given, here)
            if field.standing == REFUSED:
                field.check(item, here)
            result[key] = item
        return result


class Object(Shape[dict[str, Any]]):
    """Read as a dict of what is given."""

    def read(self, value: object, path: str = "") -> dict[str, Any]:
        return self.given(value, path)


# ---- records -----------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """An attribute of a record: the name in JSON, and what is read there."""

    name: str
    field: Field


def member(name: str, kind: Kind[object] | Field, default: object = None) -> Any:
    """What a record's attribute is declared with; the attribute's annotation says what `kind` reads."""
    return Member(name, (kind if isinstance(kind, Field) else Field(kind))._replace(default=default))


@dataclass_transform(kw_only_default=True)
class Record:
    """The members of a JSON object as attributes. Type checkers take it for a dataclass with keyword arguments.

    It is none: each start of teud would make 25 of those in 12 ms, and makes these in 1; and one of 72 members is
    filled in 4 µs, where a generated __init__ takes 24."""

    unknown: ClassVar[Mapping[str, object]] = {}
    """Members that another teud has written: kept for that one, and in the instance's own dict where there are any."""

    members: ClassVar[dict[str, Member]] = {}
    _defaults: ClassVar[dict[str, object]] = {}
    _fresh: ClassVar[tuple[tuple[str, Field], ...]] = ()

    def __init_subclass__(cls) -> None:
        declared = {name: value for name, value in vars(cls).items() if isinstance(value, Member)}
        for name in declared:
            delattr(cls, name)
        cls.members = {**cls.members, **declared}
        cls._defaults = {name: one.field.default for name, one in cls.members.items()}
        cls._fresh = tuple(
            (name, one.field)
            for name, one in cls.members.items()
            if isinstance(one.field.default, (dict, list, Record))
        )

    def __init__(self, **given: object) -> None:
        mine = self.__dict__
        mine.update(self._defaults)
        for name, field in self._fresh:
            if name not in given:
                mine[name] = field.fresh()
        mine.update(given)
        if len(mine) != len(self._defaults):
            raise TypeError(f"{type(self).__name__} has no {', '.join(set(mine) - set(self._defaults))}")

    def copy(self: RecordT) -> RecordT:
        """Another one with the same values; lists and dicts are shared."""
        made = self.__class__.__new__(self.__class__)
        made.__dict__.update(self.__dict__)
        return made

    def at_once(self, **changes: object) -> None:
        """Set several attributes, so that who reads without a lock sees all of them changed, or none."""
        self.__dict__.update(changes)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        said = (f"{name}={value!r}" for name, value in vars(self).items() if value != self._defaults.get(name))
        return f"{type(self).__name__}({', '.join(said)})"


RecordT = TypeVar("RecordT", bound=Record)
Codec = Callable[[Any], Any]


class RecordOf(Shape[RecordT]):
    """The one decoder and the one encoder of a class of records."""

    def __init__(self, record: type[RecordT], nulls: bool = False, empty: bool = True) -> None:
        """`nulls`: what is None is written as null, and not left out. Not `empty`: false, 0 and what is empty are left
        out as well, but for records, as where every member of a structure has Go's omitempty."""
        super().__init__({one.name: one.field for one in record.members.values()})
        self.record = record
        self.nulls, self.empty = nulls, empty
        self._keys = {one.name: attribute for attribute, one in record.members.items()}
        # The first one twice, and the second time for nothing: of one alone there would be no tuple.
        self._values = itemgetter(*record.members, next(iter(record.members)))
        self._builders = _found({attribute: _builder(self.fields[name].kind) for name, attribute in self._keys.items()})
        self._writers = _found({name: _writer(field.kind) for name, field in self.fields.items()})

    def read(self, value: object, path: str = "") -> RecordT:
        """Of a client. Raises BadRequest, or what the table says of the field, with the path."""
        keys = self._keys
        return self.record(**{keys[name]: item for name, item in self.given(value, path).items()})

    def build(self, value: Mapping[str, object]) -> RecordT:
        """Of JSON that has been checked, or is to be: nothing is looked at, and what is unknown is kept."""
        keys = self._keys
        given = {keys[name]: item for name, item in value.items() if item is not None and name in keys}
        for attribute, build in self._builders.items():
            if attribute in given:
                given[attribute] = build(given[attribute])
        record = self.record(**given)
        if not value.keys() <= keys.keys():
            record.at_once(unknown={name: item for name, item in value.items() if name not in keys})
        return record

    def write(self, record: RecordT) -> dict[str, Any]:
        """As JSON, in which the record's own lists and dicts stand."""
        result = self.written(vars(record))
        if record.unknown:
            result.update(record.unknown)
        return result

    def written(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """The same of somebody who has the record's attributes among others."""
        result: dict[str, Any] = dict(zip(self._keys, self._values(attributes)))
        for name, write in self._writers.items():
            if result[name]:
                result[name] = write(result[name])
        if self.nulls:
            return result
        if not self.empty:
            return {
                name: value for name, value in result.items() if value or (value is not None and name in self._writers)
            }
        return {name: value for name, value in result.items() if value is not None}


def _found(codecs: Mapping[str, Codec | None]) -> dict[str, Codec]:
    return {name: codec for name, codec in codecs.items() if codec is not None}


class PointerTo(Shape["RecordT | None"]):
    """A record of a client, of which null is not an empty one, but none."""

    def __init__(self, inner: RecordOf[RecordT]) -> None:
        super().__init__(inner.fields)
        self._inner = inner

    def read(self, value: object, path: str = "") -> RecordT | None:
        return None if value is None else self._inner.read(value, path)


def _builder(kind: Kind[object]) -> Codec | None:
    """How what stands in JSON for this kind becomes what it is read as; None where that is the same."""
    return kind.build if isinstance(kind, RecordOf) else _within(kind, _builder)


def _writer(kind: Kind[object]) -> Codec | None:
    return kind.write if isinstance(kind, RecordOf) else _within(kind, _writer)


def _within(kind: Kind[object], of: Callable[[Kind[object]], Codec | None]) -> Codec | None:
    if not isinstance(kind, (ListOf, MapOf)):
        return None
    each = of(kind.kind)
    if each is None:
        return None
    if isinstance(kind, ListOf):
        return lambda value: None if value is None else [each(item) for item in value]
    return lambda value: {key: each(item) for key, item in value.items()}
