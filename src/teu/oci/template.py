# SPDX-License-Identifier: Apache-2.0
"""Go's text templates, as far as `--format` and a log's `tag` need them: fields, pipelines, variables, if, else, range,
with, break, continue, define, comments and trim marks, Go's built-in functions and docker's own (json, join, split,
lower, upper, title, pad, truncate, println).

Called by `teu` only when a format was given, and by the engine's log drivers. Data are dicts, lists and scalars as JSON
has them, and rows: objects with a `field(name)` method."""

from __future__ import annotations

import re

from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

TOKEN = re.compile(
    r"""\s*(?:
    (?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)
  | (?P<char>'(?:[^'\\]|\\.)+')
  | (?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?(?:[eE][-+]?\d+)?))
  | (?P<declare>:=)
  | (?P<assign>=)
  | (?P<field>(?:\.[A-Za-z_]\w*)+)
  | (?P<variable>\$\w*(?:\.[A-Za-z_]\w*)*)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<dot>\.)
  | (?P<mark>[|(),])
)""",
    re.X,
)


class TemplateError(Exception):
    """What is wrong with a template, or with what it is given, in Go's words."""


class Missing:
    """The value of a key that is not there; it prints as `<no value>`."""

    def __repr__(self) -> str:
        return "<no value>"


MISSING = Missing()


class Nil:
    """A nil pointer of Go's: false, printed as <nil>, null in JSON, without fields."""

    raw = None

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Nil)

    def __hash__(self) -> int:
        return 0

    def __str__(self) -> str:
        return "<nil>"


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


def tokens(text: str) -> list[tuple[str, str]]:
    """The words of an action: (kind, word), kinds being the names of TOKEN's groups, and chain."""
    result: list[tuple[str, str]] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise TemplateError(f"unexpected {text[position:].strip()[:1]!r} in operand".replace("'", '"'))
        kind = match.lastgroup or ""
        before = text[match.start() : match.start(kind)]
        word = match.group(kind)
        # `(…).Field`: a field that touches a closing bracket belongs to it.
        if kind == "field" and not before and result and result[-1] == ("mark", ")"):
            kind = "chain"
        result.append((kind, word))
        position = match.end()
    return result


def unquote(text: str) -> str:
    """What a string or character of Go's means."""
    if text[0] == "`":
        return text[1:-1]
    body = text[1:-1]
    simple = {
        "n": "\n",
        "t": "\t",
        "r": "\r",
        "\\": "\\",
        '"': '"',
        "'": "'",
        "a": "\a",
        "b": "\b",
        "f": "\f",
        "v": "\v",
    }

    def replace(match: re.Match[str]) -> str:
        code = match.group(1)
        if len(code) > 1:
            number = int(code[1:], 16)
            if number > 0x10FFFF or 0xD800 <= number < 0xE000:  # no character, as halves of surrogate pairs are none
                raise TemplateError(f"bad character syntax: {text}")
            return chr(number)
        return simple.get(code, code)

    return re.sub(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", replace, body)


def number_of(text: str) -> int | float:
    """A number of Go's. Raises TemplateError."""
    try:
        if re.search(r"[.eE]", text) and "x" not in text.lower():
            return float(text)
        return int(text, 0)
    except ValueError:  # 007, or more digits than any number has
        raise TemplateError(f'bad number syntax: "{text[:40]}"') from None


def character_of(text: str) -> int:
    """The number of a character in quotes. Raises TemplateError."""
    found = unquote(text)
    if len(found) != 1:
        raise TemplateError(f"malformed character constant: {text}")
    return ord(found)


def end_of_action(text: str, position: int) -> int:
    """Where the `}}` is that ends the action, which may have some in quotes."""
    quoted = ""
    while position < len(text):
        letter = text[position]
        if quoted:
            if letter == "\\" and quoted != "`":
                position += 1
            elif letter == quoted:
                quoted = ""
        elif letter in "\"'`":
            quoted = letter
        elif text.startswith("}}", position):
            return position
        position += 1
    raise TemplateError("unclosed action")


def operand_of(kind: str, word: str) -> tuple[Any, ...]:
    """One word of a command, parsed."""
    if kind == "string":
        return ("value", unquote(word))
    if kind == "char":
        return ("value", character_of(word))
    if kind == "number":
        return ("value", number_of(word))
    if kind == "field":
        return ("field", word[1:].split("."))
    if kind == "variable":
        name, *fields = word.split(".")
        return ("variable", name, fields)
    if kind == "dot":
        return ("dot",)
    if kind != "name":
        raise TemplateError(f'unexpected "{word}" in command')
    if word in ("true", "false"):
        return ("value", word == "true")
    if word == "nil":
        return ("value", None)
    if word in FUNCTIONS or word in ("and", "or"):
        return ("function", word)
    raise TemplateError(f'function "{word}" not defined')


class Template:
    """A parsed template. `missing_error`: an unknown key is an error (as for inspect), else `<no value>`."""

    def __init__(self, text: str, missing_error: bool = False) -> None:
        self.missing_error = missing_error
        self.source = text
        self.pieces = self._split(text)
        self.position = 0
        self.named: dict[str, list[Any]] = {}
        self.loops = 0  # how many loops the place being parsed is in
        try:
            self.nodes, end = self._block(())
        except RecursionError:
            raise TemplateError("it is nested too deeply") from None
        if end:
            raise TemplateError("unexpected {{" + end + "}}")

    @staticmethod
    def _split(text: str) -> list[tuple[bool, str]]:
        """(is_action, text) pieces, with the trim marks applied."""
        pieces: list[tuple[bool, str]] = []
        position = 0
        trim = False
        while True:
            start = text.find("{{", position)
            literal = text[position : start if start >= 0 else len(text)]
            if trim:
                literal = literal.lstrip()
            if start < 0:
                if literal:
                    pieces.append((False, literal))
                return pieces
            inner = start + 2
            if text[inner : inner + 2] in ("- ", "-\n", "-\t"):
                literal = literal.rstrip()
                inner += 2
            if literal:
                pieces.append((False, literal))
            if text[inner:].lstrip().startswith("/*"):
                close = text.find("*/", inner)
                end = text.find("}}", close)
                if close < 0 or end < 0:
                    raise TemplateError("unclosed comment")
                trim = text[close + 2 : end].rstrip().endswith("-")
                position = end + 2
                continue
            end = end_of_action(text, inner)
            action = text[inner:end]
            trim = len(action) > 1 and action.endswith("-") and action[-2].isspace()
            if trim:
                action = action[:-1]
            pieces.append((True, action.strip()))
            position = end + 2

    def _block(self, ends: tuple[str, ...]) -> tuple[list[Any], str]:
        """Nodes up to one of the `ends`; returns what ended them."""
        nodes: list[Any] = []
        while self.position < len(self.pieces):
            is_action, text = self.pieces[self.position]
            self.position += 1
            if not is_action:
                nodes.append(("text", text))
                continue
            word = text.partition(" ")[0]
            if word in ("end", "else"):
                if word in ends or (word == "end" and "end" in ends):
                    return nodes, text
                return nodes, text
            if word in ("define", "template", "block"):
                nodes += self._named(word, text[len(word) :])
            elif word in ("if", "with", "range"):
                nodes.append(self._control(word, text[len(word) :]))
            elif word in ("break", "continue"):
                if not self.loops:
                    raise TemplateError("{{" + word + "}} outside {{range}}")
                nodes.append((word,))
            elif not text:
                raise TemplateError("missing value for command")
            else:
                nodes.append(("action", self._pipeline(tokens(text), False), text))
        if ends:
            raise TemplateError("unexpected EOF")
        return nodes, ""

    def _named(self, word: str, rest: str) -> list[Any]:
        """define, template and block: a template with a name."""
        words = tokens(rest)
        if not words or words[0][0] != "string":
            raise TemplateError(f"unexpected {rest.strip()[:20]!r} in {word} clause".replace("'", '"'))
        name = unquote(words[0][1])
        pipeline = self._pipeline(words[1:], False) if words[1:] else None
        if word != "template":
            outside, self.loops = self.loops, 0
            nodes, _ = self._block(("end",))
            self.loops = outside
            if word == "block" and pipeline is None:
                raise TemplateError("missing value for block clause")
            self.named[name] = nodes
        return [] if word == "define" else [("template", name, pipeline)]

    def _control(self, word: str, rest: str) -> tuple[Any, ...]:
        pipeline = self._pipeline(tokens(rest), word == "range")
        self.loops += word == "range"
        nodes, end = self._block(("end", "else"))
        self.loops -= word == "range"
        otherwise: list[Any] = []
        if end.startswith("else"):
            more = end[4:].strip()
            if more:
                inner_word = more.partition(" ")[0]
                if inner_word not in ("if", "with"):
                    raise TemplateError(f"unexpected {{{{{end}}}}}")
                otherwise = [self._control(inner_word, more[len(inner_word) :])]
                return (word, pipeline, nodes, otherwise, rest.strip())
            otherwise, end = self._block(("end",))
        return (word, pipeline, nodes, otherwise, rest.strip())

    def _pipeline(self, words: list[tuple[str, str]], in_range: bool) -> tuple[Any, ...]:
        """(declared variables, is declaration, commands); a command is a list of operands."""
        names: list[str] = []
        declares = False
        if words and words[0][0] == "variable":
            if len(words) > 1 and words[1][0] in ("declare", "assign"):
                names, declares, words = [words[0][1]], words[1][0] == "declare", words[2:]
            elif (
                in_range
                and len(words) > 3
                and words[1] == ("mark", ",")
                and words[2][0] == "variable"
                and words[3][0] in ("declare", "assign")
            ):
                names, declares, words = [words[0][1], words[2][1]], words[3][0] == "declare", words[4:]
        commands, rest = self._commands(words)
        if rest:
            raise TemplateError(f"unexpected {rest[0][1]!r} in input".replace("'", '"'))
        return names, declares, commands

    def _commands(self, words: list[tuple[str, str]]) -> tuple[list[Any], list[tuple[str, str]]]:
        """(the commands of a pipeline, the words from its closing bracket on)."""
        commands: list[Any] = []
        current: list[Any] = []
        while words and words[0] != ("mark", ")"):
            kind, word = words[0]
            words = words[1:]
            if (kind, word) == ("mark", "|"):
                if not current:
                    raise TemplateError("missing value for command")
                commands.append(current)
                current = []
            elif (kind, word) == ("mark", "("):
                operand, words = self._parenthesised(words)
                current.append(operand)
            else:
                current.append(operand_of(kind, word))
        if not current:
            raise TemplateError("missing value for command")
        commands.append(current)
        return commands, words

    def _parenthesised(self, words: list[tuple[str, str]]) -> tuple[Any, list[tuple[str, str]]]:
        """(a pipeline in brackets with the fields that follow it, the words after it)."""
        inner, words = self._commands(words)
        if not words or words[0] != ("mark", ")"):
            raise TemplateError("unclosed left paren")
        words = words[1:]
        if words and words[0][0] == "chain":
            return ("chain", ("pipe", inner), words[0][1][1:].split(".")), words[1:]
        return ("pipe", inner), words

    # Evaluation ------------------------------------------------------------------------------------------

    def render(self, data: Any) -> str:
        """The text that it makes of the data. Raises TemplateError."""
        out: list[str] = []
        try:
            self._run(self.nodes, data, [{"$": data}], out)
        except RecursionError:
            raise TemplateError("exceeded maximum template depth") from None
        except MemoryError:  # a range over a large number, for one
            raise TemplateError("the output does not fit into memory") from None
        return "".join(out)

    def _run(self, nodes: list[Any], dot: Any, scopes: list[dict[str, Any]], out: list[str]) -> None:
        for node in nodes:
            kind = node[0]
            if kind == "text":
                out.append(node[1])
            elif kind == "action":
                value = self._evaluate(node[1], dot, scopes)
                if not node[1][0]:
                    out.append(show(value))
            elif kind == "if":
                value = self._evaluate(node[1], dot, [*scopes, {}])
                self._run(node[2] if truthy(value) else node[3], dot, [*scopes, {}], out)
            elif kind == "with":
                inner = [*scopes, {}]
                value = self._evaluate(node[1], dot, inner)
                if truthy(value):
                    self._run(node[2], value, inner, out)
                else:
                    self._run(node[3], dot, inner, out)
            elif kind == "template":
                if node[1] not in self.named:
                    raise TemplateError(f'template "{node[1]}" not defined')
                value = self._evaluate(node[2], dot, scopes) if node[2] else None
                self._run(self.named[node[1]], value, [{"$": value}], out)
            elif kind == "range":
                self._range(node, dot, scopes, out)
            elif kind == "break":
                raise _Break
            elif kind == "continue":
                raise _Continue

    def _range(self, node: Any, dot: Any, scopes: list[dict[str, Any]], out: list[str]) -> None:
        names, _, commands = node[1]
        value = self._evaluate(([], False, commands), dot, scopes)
        if isinstance(value, dict):
            items: Iterable[tuple[Any, Any]] = sorted(value.items())
        elif isinstance(value, list):
            items = enumerate(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            items = ((number, number) for number in range(value))
        elif value is None or value is MISSING:
            items = ()
        else:
            raise TemplateError(f"range can't iterate over {show(value)}")
        empty = True
        for key, item in items:
            empty = False
            scope: dict[str, Any] = {}
            if len(names) == 1:
                scope[names[0]] = item
            elif names:
                scope[names[0]], scope[names[1]] = key, item
            try:
                self._run(node[2], item, [*scopes, scope], out)
            except _Continue:
                continue
            except _Break:
                break
        if empty:
            self._run(node[3], dot, [*scopes, {}], out)

    def _evaluate(self, pipeline: Any, dot: Any, scopes: list[dict[str, Any]]) -> Any:
        names, declares, commands = pipeline
        value = self._pipe(commands, dot, scopes)
        if names:
            name = names[0]
            if declares:
                scopes[-1][name] = value
            else:
                for scope in reversed(scopes):
                    if name in scope:
                        scope[name] = value
                        break
                else:
                    raise TemplateError(f'undefined variable "{name}"')
        return value

    def _pipe(self, commands: list[Any], dot: Any, scopes: list[dict[str, Any]]) -> Any:
        value: Any = None
        for number, operands in enumerate(commands):
            final = [value] if number else []
            first = operands[0]
            if first[0] == "function":
                name = first[1]
                if name in ("and", "or"):
                    value = None
                    for operand in operands[1:] + [("value", item) for item in final]:
                        value = self._operand(operand, dot, scopes)
                        if truthy(value) == (name == "or"):
                            break
                    continue
                arguments = [self._operand(operand, dot, scopes) for operand in operands[1:]] + final
                if name == "call":
                    what = describe(operands[1]) if len(operands) > 1 else "a pipeline's value"
                    raise TemplateError(f"error calling call: non-function {what}")
                try:
                    value = FUNCTIONS[name](*arguments)
                except TypeError as error:
                    if "argument" in str(error) and "positional" in str(error):
                        raise TemplateError(f"wrong number of args for {name}: got {len(arguments)}") from None
                    raise TemplateError(f"error calling {name}: {error}") from None
                except TemplateError as error:
                    raise TemplateError(f"error calling {name}: {error}") from None
            else:
                if len(operands) > 1 or final:
                    raise TemplateError(f"can't give argument to non-function {describe(first)}")
                value = self._operand(first, dot, scopes)
        return value

    def _operand(self, operand: Any, dot: Any, scopes: list[dict[str, Any]]) -> Any:
        kind = operand[0]
        if kind == "value":
            return operand[1]
        if kind == "dot":
            return dot
        if kind == "field":
            return self._fields(dot, operand[1])
        if kind == "pipe":
            return self._pipe(operand[1], dot, scopes)
        if kind == "chain":
            return self._fields(self._operand(operand[1], dot, scopes), operand[2])
        if kind == "variable":
            for scope in reversed(scopes):
                if operand[1] in scope:
                    return self._fields(scope[operand[1]], operand[2])
            raise TemplateError(f'undefined variable "{operand[1]}"')
        if kind == "function":
            return self._pipe([[operand]], dot, scopes)
        raise AssertionError(kind)

    def _where(self, names: list[str], number: int) -> str:
        """`:LINE:COLUMN: executing "" at <.Field>` for the field `names[number]`."""
        offset = max(self.source.find("." + ".".join(names)), 0) + sum(len(name) + 1 for name in names[:number])
        line = self.source.count("\n", 0, offset) + 1
        column = offset - (self.source.rfind("\n", 0, offset) + 1)
        return f'template: :{line}:{column}: executing "" at <.{".".join(names)}>'

    def _fields(self, value: Any, names: list[str]) -> Any:
        for number, name in enumerate(names):
            if isinstance(value, dict):
                if name in value:
                    value = value[name]
                elif (key := same_word(name, value)) is not None:
                    value = value[key]
                elif hasattr(value, "unknown"):
                    value.unknown(name)
                elif self.missing_error:
                    raise TemplateError(f'{self._where(names, number)}: map has no entry for key "{name}"')
                else:
                    value = MISSING
            elif hasattr(value, "field"):
                try:
                    value = value.field(name)
                except LookupError as error:
                    raise TemplateError(f"{self._where(names, number)}: {error.args[0]}") from None
            elif isinstance(value, Nil):
                raise TemplateError(f"{self._where(names, number)}: nil pointer evaluating {value.kind}.{name}")
            elif value is None or value is MISSING:
                if self.missing_error:
                    raise TemplateError(f"{self._where(names, number)}: nil pointer evaluating .{name}")
                return MISSING
            else:
                raise TemplateError(
                    f"{self._where(names, number)}: can't evaluate field {name} in type {go_type(value)}"
                )
        return value


def same_word(name: str, value: dict[str, Any]) -> str | None:
    """The key that differs from `name` only in case: docker's templates name Go's fields (`.ID`, `.APIVersion`),
    the daemon's JSON spells some of them otherwise (`Id`, `ApiVersion`)."""
    if not name[:1].isupper():
        return None
    return next((key for key in value if key.lower() == name.lower()), None)


def describe(operand: Any) -> str:
    """An operand as an error names it."""
    return "." + ".".join(operand[1]) if operand[0] == "field" else str(operand[-1])


def go_type(value: Any) -> str:
    """What Go calls the type of a value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "float64"
    if isinstance(value, list):
        return "[]interface {}"
    return "string" if isinstance(value, str) else "map[string]interface {}"


def truthy(value: Any) -> bool:
    """Whether `if` takes it for true."""
    return value is not MISSING and bool(value)


def show(value: Any, nested: bool = False) -> str:
    """As Go prints it with %v."""
    if value is True or value is False:
        return "true" if value else "false"
    if value is None:
        return "<nil>" if nested else "<no value>"
    if hasattr(value, "shown"):
        return str(value.shown(show))
    if isinstance(value, float):
        if isinstance(value, jsontext.Exact) and "e" not in value.text.lower():
            return value.text
        return f"{value:g}"
    if isinstance(value, dict):
        if not value and nested:
            return "{}"
        return "map[" + " ".join(f"{key}:{show(item, True)}" for key, item in sorted(value.items())) + "]"
    if isinstance(value, list):
        return "[" + " ".join(show(item, True) for item in value) + "]"
    return str(value)


def _json(value: Any) -> str:
    if hasattr(value, "as_map"):
        return jsontext.escaped(value.as_map())
    return "null" if value is MISSING else jsontext.dumps(getattr(value, "raw", value))


def _text(value: Any) -> str:
    """An argument that must be a text."""
    return str(_typed(value, str, "string"))


def _count(value: Any) -> int:
    """An argument that must be a whole number."""
    return int(_typed(value, int, "int"))


def _typed(value: Any, kind: type, name: str) -> Any:
    if isinstance(value, kind) and (kind is not int or not isinstance(value, bool)):
        return value
    if value is None or value is MISSING or isinstance(value, Nil):
        raise TemplateError(f"invalid value; expected {name}")
    raise TemplateError(f"wrong type for value; expected {name}; got {go_type(value)}")


def _split(text: Any, separator: Any) -> list[str]:
    whole, mark = _text(text), _text(separator)
    return whole.split(mark) if mark else list(whole)


def _title(text: Any) -> str:
    return re.sub(r"(^|\s)(\w)", lambda match: match.group(1) + match.group(2).upper(), _text(text))


def _truncate(text: Any, length: Any) -> str:
    whole, most = _text(text), _count(length)
    return whole[:most] if most >= 0 else whole


def _label(labels: Any, name: str) -> str:
    return show(labels.get(name, "")) if isinstance(labels, dict) else ""


def _join(items: Any, separator: Any) -> str:
    if not isinstance(items, list):
        raise TemplateError(f"expected []string; found {go_type(items)}" if items is not None else "nil is not a list")
    return _text(separator).join(show(item) for item in items)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, list):
            if not isinstance(key, int):
                raise TemplateError(f"cannot index slice/array with type {go_type(key)}")
            if not 0 <= key < len(value):
                raise TemplateError(f"reflect: slice index out of range: {key}")
            value = value[key]
        elif isinstance(value, dict):
            if hasattr(value, "key"):
                raise TemplateError(f"value has type {go_type(key)}; should be {value.key}")
            if not isinstance(key, str):
                raise TemplateError(f"value has type {go_type(key)}; should be string")
            value = value.get(key, getattr(value, "zero", MISSING))
        elif isinstance(value, str):
            data = as_bytes(value)
            if not 0 <= _count(key) < len(data):
                raise TemplateError(f"reflect: string index out of range: {key}")
            value = data[key]
        else:
            raise TemplateError(
                "index of untyped nil" if value in (None, MISSING) else f"can't index item of type {go_type(value)}"
            )
    return value


def as_bytes(text: str) -> bytes:
    """What Go counts of a string. A byte that is no UTF-8, as a slice may leave, is one."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a pair of a JSON text
        return text.encode("utf-8", "surrogatepass")


def _slice(value: Any, *bounds: Any) -> Any:
    if not isinstance(value, (str, list)):
        missing = value is None or value is MISSING or isinstance(value, Nil)
        raise TemplateError("slice of untyped nil" if missing else f"can't slice item of type {go_type(value)}")
    if len(bounds) > 3 or (len(bounds) == 3 and isinstance(value, str)):
        raise TemplateError(f"too many slice indexes: {len(bounds)}")
    numbers = [_count(bound) for bound in bounds]
    whole = as_bytes(value) if isinstance(value, str) else value
    start = numbers[0] if numbers else 0
    end = numbers[1] if len(numbers) > 1 else len(whole)
    for number in numbers:
        if not 0 <= number <= len(whole):
            raise TemplateError(f"index out of range: {number}")
    if start > end:
        raise TemplateError(f"invalid slice index: {start} > {end}")
    part = whole[start:end]
    return part.decode("utf-8", "surrogateescape") if isinstance(part, bytes) else part


def _length(value: Any) -> int:
    if value is None or value is MISSING or isinstance(value, Nil):
        raise TemplateError("len of nil pointer")
    if isinstance(value, str):
        return len(as_bytes(value))
    if not isinstance(value, (dict, list)):
        raise TemplateError(f"len of type {go_type(value)}")
    return len(value)


def _compare(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compare(left: Any, right: Any) -> bool:
        numbers = [isinstance(value, (int, float)) and not isinstance(value, bool) for value in (left, right)]
        if not all(numbers) and not (isinstance(left, str) and isinstance(right, str)):
            raise TemplateError("incompatible types for comparison")
        return test(left, right)

    return compare


def _equal(left: Any, *others: Any) -> bool:
    return any(left == other and isinstance(left, bool) == isinstance(other, bool) for other in others)


WIDEST = 1_000_000  # Go's own limit of what a verb may be wide


def _printf(form: Any, *values: Any) -> str:
    rest = list(values)

    def replace(match: re.Match[str]) -> str:
        flags, verb = match.group(1), match.group(2)
        if verb == "%":
            return "%"
        if not verb:
            return "%!(NOVERB)"
        if not rest:
            return f"%!{verb}(MISSING)"
        value = rest.pop(0)
        if any(int(number) > WIDEST for number in re.findall(r"[0-9]+", flags)):
            return f"%!(BADWIDTH)%!{verb}({go_type(value)}={show(value)})"
        if verb in "vs":
            return ("%" + flags + "s") % (show(value),)
        if verb == "q":
            return jsontext.dumps(show(value))
        if verb == "t":
            return show(value)
        if verb == "T":
            return go_type(value)
        try:
            if verb not in "doxXeEfFgGc":  # the others are Python's own
                raise ValueError
            return str(("%" + flags + verb) % value)
        except (TypeError, ValueError, OverflowError):
            return f"%!{verb}({go_type(value)}={show(value)})"

    text = re.sub(r"%([-+# 0]*[0-9]{0,20}(?:\.[0-9]{1,20})?)([a-zA-Z%]|\Z)", replace, _text(form))
    if rest:
        extra = ("<nil>" if value is None else f"{go_type(value)}={show(value)}" for value in rest)
        text += f"%!(EXTRA {', '.join(extra)})"
    return text


def _print(*values: Any) -> str:
    out = ""
    for number, value in enumerate(values):
        if number and not isinstance(value, str) and not isinstance(values[number - 1], str):
            out += " "
        out += show(value)
    return out


def _pad(text: Any, before: Any, after: Any) -> str:
    whole, left, right = _text(text), _count(before), _count(after)
    if not 0 <= left <= WIDEST or not 0 <= right <= WIDEST:
        raise TemplateError(f"the padding must be between 0 and {WIDEST}")
    return " " * left + whole + " " * right if whole else whole


def _html(*values: Any) -> str:
    text = _print(*values)
    for letter, code in (("&", "&amp;"), ("'", "&#39;"), ('"', "&#34;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(letter, code)
    return text


_JS = {
    "\\": "\\\\",
    "'": "\\'",
    '"': '\\"',
    "<": "\\u003C",
    ">": "\\u003E",
    "&": "\\u0026",
    "=": "\\u003D",
}


def _js(text: str) -> str:
    """Text that may stand in a string of JavaScript, as Go's JSEscapeString has it."""
    return "".join(_JS.get(letter) or (letter if letter.isprintable() else f"\\u{ord(letter):04X}") for letter in text)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": _json,
    "join": _join,
    "split": _split,
    "lower": lambda text: _text(text).lower(),
    "upper": lambda text: _text(text).upper(),
    "title": _title,
    "pad": _pad,
    "truncate": _truncate,
    "println": lambda *values: " ".join(show(value) for value in values) + "\n",
    "print": _print,
    "printf": _printf,
    "len": _length,
    "index": _index,
    "_label": _label,
    "slice": _slice,
    "not": lambda value: not truthy(value),
    "eq": _equal,
    "ne": lambda left, right: not _equal(left, right),
    "lt": _compare(lambda left, right: left < right),
    "le": _compare(lambda left, right: left <= right),
    "gt": _compare(lambda left, right: left > right),
    "ge": _compare(lambda left, right: left >= right),
    "html": _html,
    "js": lambda *values: _js(_print(*values)),
    "urlquery": lambda *values: __import__("urllib.parse").parse.quote_plus(_print(*values), errors="replace"),
    "call": lambda *_: None,  # there is no function among the values
}


def located(error: TemplateError) -> str:
    """The error with its place, where it does not know a better one."""
    text = str(error)
    return text if text.startswith("template: ") else "template: :1: " + text
