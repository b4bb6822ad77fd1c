# SPDX-License-Identifier: Apache-2.0
"""Lists: `table`, `json`, `raw` and template formats over rows.

A kind of list is a dict of column name -> function(object) -> text, and the headings of the columns.
Called by every
`ls` command, stats, history and df."""

from __future__ import annotations

import sys

from teu.cli.errors import CommandError
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

MIN_WIDTH, PADDING = 10, 3


class Row:
    """One object seen through its columns; templates ask for `field`."""

    def __init__(self, columns: Mapping[str, Callable[[Any], Any]], value: Any) -> None:
        self.columns = columns
        self.value = value

    def field(self, name: str) -> Any:
        column = self.columns.get(name)
        if column is None:
            raise LookupError(f"can't evaluate field {name} in type *formatter.Context")
        return column(self.value)

    def as_map(self) -> dict[str, Any]:
        names = (name for name in sorted(self.columns) if name not in ("Label", "LabelMap"))
        values = ((name, self.columns[name](self.value)) for name in names)
        return {name: getattr(value, "raw", value) for name, value in values}


def align(lines: Iterable[str], least: int = MIN_WIDTH, padding: int = PADDING) -> str:
    """Lay out lines of tab-separated cells; the last cell of a line is not padded."""
    cells = [line.split("\t") for line in lines]
    # A column's width is taken over neighbouring lines that have it, as elastic tab stops do.
    widths: list[list[int]] = [[0] * (len(row) - 1) for row in cells]
    for column in range(max((len(row) for row in cells), default=0) - 1):
        start = 0
        while start < len(cells):
            if column >= len(cells[start]) - 1:
                start += 1
                continue
            end = start
            width = least
            while end < len(cells) and column < len(cells[end]) - 1:
                width = max(width, len(cells[end][column]) + padding)
                end += 1
            for number in range(start, end):
                widths[number][column] = width
            start = end
    return "\n".join(
        "".join(cell.ljust(width) for cell, width in zip(row, row_widths)) + row[-1]
        for row, row_widths in zip(cells, widths)
    )


class Headings:
    """What a `table TEMPLATE` is rendered with for its first line: every column is its own heading."""

    def __init__(self, headings: dict[str, str], columns: Mapping[str, Any]) -> None:
        self.headings = headings
        self.columns = columns

    def field(self, name: str) -> str:
        if name in self.headings:
            return self.headings[name]
        raise LookupError(f'map has no entry for key "{name}"')


def heading_template(text: str) -> str:
    """A table's template for the line of headings: only the fields count, not what is done with them."""
    import re  # 6 ms

    def simplify(match: re.Match[str]) -> str:
        label = re.search(r'\.Label\s+"([^"]*)"', match.group(0))
        if label:
            name = label.group(1).rpartition(".")[2]
            return name.replace("-", " ").replace("_", " ")
        if re.match(r"\{\{-?\s*(if|else|end|range|with)\b", match.group(0)):
            return ""
        field = re.search(r"\.\w+", match.group(0))
        return "{{" + field.group(0) + "}}" if field else match.group(0)

    return re.sub(r"\{\{.*?\}\}", simplify, text)


def print_list(
    objects: Iterable[Any],
    columns: Mapping[str, Callable[[Any], Any]],
    headings: dict[str, str],
    default: list[str],
    form: str = "",
    *,
    quiet: str = "",
    out: Callable[[str], Any] | None = None,
    raw: tuple[str, ...] = (),
) -> None:
    """Print `objects`: `default` names the columns of the plain table, `quiet` the one column of -q,
    `form` is the
    user's --format; `raw` names its lines of `raw`, as `label Column`."""
    write = out or sys.stdout.write
    if raw and form == "raw":
        lines = [line for line in raw if not quiet or line.endswith(f" {quiet}")]
        for value in objects:
            for label, _, name in (line.partition(" ") for line in lines):
                write(f"{label}: {columns[name](value)}".rstrip(" ") + "\n")
            write("" if quiet else "\n")
        return
    if quiet and (not form or form == "table" or form == "raw"):
        for value in objects:
            write(str(columns[quiet](value)) + "\n")
        return
    if form in ("", "table"):
        lines = ["\t".join(headings[name] for name in default)]
        lines += ["\t".join(str(columns[name](value)) for name in default) for value in objects]
        write(align(lines) + "\n")
        return
    if form == "json" or form.replace(" ", "") == "{{json.}}":
        for value in objects:
            write(jsontext.escaped(Row(columns, value).as_map()) + "\n")
        return
    from teu.cli.template import compile_template  # 8 ms
    from teu.oci.template import TemplateError, located

    is_table = form.startswith(("table ", "table\t"))
    text = form[6:].strip(" ") if is_table else form
    text = text.replace("\\t", "\t").replace("\\n", "\n")
    full = {**columns, "Label": lambda value: ""} if "Label" not in columns else columns
    template = compile_template(label_calls(text))
    lines = []
    try:
        if is_table:
            lines.append(compile_template(heading_template(text)).render(Headings(headings, columns)))
        for value in objects:
            lines.append(template.render(Row(full, value)))
    except TemplateError as error:
        raise CommandError("failed to execute template: " + located(error)) from None
    joined = "\n".join(lines)
    if lines:
        write((align(joined.split("\n")) if is_table else joined) + "\n")


def label_calls(text: str) -> str:
    """`.Label "x"` is the one method with an argument: written as a function over all labels."""
    if ".Label " not in text:
        return text
    import re  # 6 ms

    return re.sub(r'\.Label\s+("[^"]*"|`[^`]*`)', r"(_label .LabelMap \1)", text)


def labels_text(labels: dict[str, str] | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items()))


def short_id(name: str, whole: bool = False) -> str:
    """Twelve digits of an ID, without its algorithm."""
    if whole:
        return name
    return name.partition(":")[2][:12] if ":" in name else name[:12]


def ellipsis(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
