# SPDX-License-Identifier: Apache-2.0
"""--format templates and tables, against what Go's text/template prints for the same."""

from __future__ import annotations

import pytest

from teu.cli import table
from teu.cli.containers import quoted, shown_ports
from teu.cli.errors import CommandError
from teu.oci import jsontext
from teu.oci.template import Template, TemplateError

DATA = jsontext.loads(
    """{"Name": "/web", "Id": "abc", "Ok": true, "Empty": "", "Count": 3, "Float": 1.50, "Null": null,
    "List": ["a", "b", "c"], "State": {"Status": "running", "Pid": 7}, "Labels": {"b": "2", "a.b": "1"},
    "Ports": {"80/tcp": [{"HostPort": "8080"}], "81/tcp": null}, "Volumes": {"/v": {}}}""",
    exact=True,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{{.Name}}", "/web"),
        ("{{.ID}}", "abc"),
        ("a {{ .State.Status }} b", "a running b"),
        ("{{json .State}}", '{"Status":"running","Pid":7}'),
        ("{{.List}} {{.Labels}} {{.Ok}} {{.Null}}", "[a b c] map[a.b:1 b:2] true <no value>"),
        ("{{.Volumes}}", "map[/v:{}]"),
        ("{{.Float}} {{json .Float}}", "1.50 1.5"),
        ('{{index .Labels "a.b"}}{{index .Labels "x"}}', "1<no value>"),
        ("{{index .List 1}}", "b"),
        ('{{(index (index .Ports "80/tcp") 0).HostPort}}', "8080"),
        ("{{range .List}}{{.}},{{end}}", "a,b,c,"),
        ("{{range $i, $e := .List}}{{$i}}={{$e}} {{end}}", "0=a 1=b 2=c "),
        ("{{range $k, $v := .Labels}}{{$k}}:{{$v}};{{end}}", "a.b:1;b:2;"),
        ("{{range .Empty2}}x{{else}}none{{end}}", "none"),
        ('{{range .List}}{{if eq . "b"}}{{continue}}{{end}}{{.}}{{end}}', "ac"),
        ('{{range .List}}{{if eq . "b"}}{{break}}{{end}}{{.}}{{end}}', "a"),
        ("{{if .Ok}}yes{{else}}no{{end}} {{if .Empty}}yes{{else if .Count}}{{.Count}}{{end}}", "yes 3"),
        ("{{with .State}}{{.Pid}} {{$.Id}}{{end}}", "7 abc"),
        ("{{$x := .Count}}{{$x}}", "3"),
        ("{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2"),
        ('{{join .List ", "}} {{.Name | upper | printf "%q"}}', 'a, b, c "/WEB"'),
        ('{{lower "AbC"}} {{title "a b"}} {{truncate "abcdef" 3}} {{pad "x" 1 2}}|', "abc A B abc  x  |"),
        ('{{split "a:b" ":"}} {{len .List}} {{slice .Id 0 2}}', "[a b] 3 ab"),
        (
            '{{eq .Count 3}} {{ne .Id "abc"}} {{lt 1 2}} {{and .Ok .Id}} {{or .Empty "z"}} {{not .Ok}}',
            "true false true abc z false",
        ),
        ('{{printf "%-5s|%05d|%v" .Id 42 .List}}', "abc  |00042|[a b c]"),
        ('{{printf "%s" .Id 42 "x"}}', "abc%!(EXTRA int=42, string=x)"),
        ('{{printf "x" .List}}', "x%!(EXTRA []interface {}=[a b c])"),
        ('{{printf "%d%%%" 1}}', "1%%!(NOVERB)"),
        ('{{slice "\u00e4b" 2}} {{slice "\u00e4b" 0 2}} {{len (slice "\u00e4b" 0 1)}}', "b \u00e4 1"),
        ("x {{- /* comment */ -}} y", "xy"),
        ("x {{- .Id -}} y", "xabcy"),
        ("{{println .Id 1}}", "abc 1\n"),
        ("{{\"a\\tb\"}}{{`c`}}{{'a'}}", "a\tbc97"),
        ("{{range 3}}{{.}}{{end}}", "012"),
        ("{{.Nope}}", "<no value>"),
    ],
)
def test_render(text: str, shown: str) -> None:
    assert Template(text).render(DATA) == shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{.Nope}}", 'template: :1:2: executing "" at <.Nope>: map has no entry for key "Nope"'),
        ("{{.State.Nope}}", 'template: :1:8: executing "" at <.State.Nope>: map has no entry for key "Nope"'),
        ("{{.Name.X}}", 'template: :1:7: executing "" at <.Name.X>: can\'t evaluate field X in type string'),
        ("{{index .List 9}}", "error calling index: reflect: slice index out of range: 9"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(text, missing_error=True).render(DATA)
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["{{", "{{if .X}}", "{{end}}", "{{foo}}", "{{.X | }}", "{{(.X}}", '{{"x}}'])
def test_malformed(text: str) -> None:
    with pytest.raises(TemplateError):
        Template(text)


COLUMNS = {"ID": lambda v: v["id"], "Names": lambda v: v["name"], "LabelMap": lambda v: {"a": "1"}}
HEADINGS = {"ID": "CONTAINER ID", "Names": "NAMES"}


def listed(form: str, quiet: str = "") -> str:
    out: list[str] = []
    values = [{"id": "123456789012", "name": "a"}, {"id": "1", "name": "b>c"}]
    table.print_list(values, COLUMNS, HEADINGS, ["ID", "Names"], form, quiet=quiet, out=out.append)
    return "".join(out)


def test_lists() -> None:
    assert listed("") == "CONTAINER ID   NAMES\n123456789012   a\n1              b>c\n"
    assert listed("table {{.Names}}\t{{upper .ID}}") == "NAMES     CONTAINER ID\na         123456789012\nb>c       1\n"
    assert listed("{{.Names}}:{{.ID}}") == "a:123456789012\nb>c:1\n"
    assert listed("json") == '{"ID":"123456789012","Names":"a"}\n{"ID":"1","Names":"b\\u003ec"}\n'
    assert listed("{{json .}}") == listed("json")
    assert listed('{{.Label "a"}}') == "1\n1\n"
    assert listed("", quiet="ID") == "123456789012\n1\n"
    with pytest.raises(CommandError, match="can't evaluate field Foo"):
        listed("{{.Foo}}")


def test_short_cells_take_ten_columns_and_lines_differ_in_length() -> None:
    assert table.align(["a\tb\tc", "d\te"]) == "a         b         c\nd         e"


def test_ports() -> None:
    def port(inside: int, outside: int = 0, address: str = "", kind: str = "tcp") -> dict[str, object]:
        return {"PrivatePort": inside, "PublicPort": outside, "IP": address, "Type": kind}

    assert shown_ports([port(80, 8080, "::")]) == "[::]:8080->80/tcp"
    assert shown_ports([{"PrivatePort": 80, "IP": "::", "Type": "tcp"}]) == "[::]:0->80/tcp"
    assert shown_ports([port(443), port(80, 8080, "0.0.0.0")]) == "443/tcp, 0.0.0.0:8080->80/tcp"
    assert shown_ports([port(n, n, "0.0.0.0") for n in (80, 81, 82)]) == "0.0.0.0:80-82->80-82/tcp"
    assert shown_ports([port(53, kind="udp"), port(53)]) == "53/tcp, 53/udp"
    assert shown_ports(None) == ""


def test_go_quoting() -> None:
    assert quoted('a"b\\\n\x01é') == '"a\\"b\\\\\\n\\x01é"'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{break}}", "{{break}} outside {{range}}"),
        ("{{range .List}}{{else}}{{continue}}{{end}}", "{{continue}} outside {{range}}"),
        ('{{range .List}}{{define "a"}}{{break}}{{end}}{{end}}', "{{break}} outside {{range}}"),
        ('{{"\\U99999999"}}', "bad character syntax"),
        ('{{"\\ud800"}}', "bad character syntax"),
        ("{{'ab'}}", "malformed character constant"),
        ("{{007}}", "bad number syntax"),
        ("{{" + "9" * 5000 + "}}", "bad number syntax"),
        ("{{" + "(" * 5000 + ".Name" + ")" * 5000 + "}}", "nested too deeply"),
        ("{{if .Name}}" * 3000 + "{{end}}" * 3000, "nested too deeply"),
        ("{{call .Name}}", "error calling call: non-function .Name"),
        ("{{upper .List}}", "expected string; got []interface {}"),
        ("{{lower .Count}}", "expected string; got int"),
        ("{{title .State}}", "expected string; got map"),
        ("{{split .Nothing .Name}}", "invalid value; expected string"),
        ("{{split .Name 1}}", "expected string; got int"),
        ("{{join .List 1}}", "expected string; got int"),
        ("{{truncate .Name .Name}}", "expected int; got string"),
        ("{{pad .Name 99999999999 1}}", "the padding must be between"),
        ("{{pad .Name -1 1}}", "the padding must be between"),
        ("{{slice .State 0 2}}", "can't slice item of type map"),
        ("{{slice .Name .Name}}", "expected int; got string"),
        ("{{slice .List 2 1}}", "invalid slice index: 2 > 1"),
        ("{{index .Name 99}}", "string index out of range: 99"),
        ("{{index .Labels .List}}", "value has type []interface {}; should be string"),
        ("{{lt .List .Count}}", "incompatible types for comparison"),
        ("{{lt .Null 1}}", "incompatible types for comparison"),
        ("{{printf .Count}}", "expected string; got int"),
    ],
)
def test_what_does_not_fit_is_told_as_an_error_of_the_template(text: str, says: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(text).render(DATA)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{{printf "%999999999999s" .Name}}', "%!(BADWIDTH)%!s(string=/web)"),
        ('{{printf "%.99999999f" .Float}}', "%!(BADWIDTH)%!f(float64=1.50)"),
        ('{{printf "%r" .Name}}', "%!r(string=/web)"),
        ('{{printf "%c" -1}}', "%!c(int=-1)"),
        ("{{range 99999999999999}}{{.}}{{break}}{{end}}", "0"),
        ("{{range .Nothing}}x{{else}}none{{end}}", "none"),
        ("{{range .List}}{{range $.List}}{{break}}{{end}}{{.}}{{end}}", "abc"),
    ],
)
def test_what_would_take_all_memory_does_not(text: str, shown: str) -> None:
    assert Template(text).render(DATA) == shown
