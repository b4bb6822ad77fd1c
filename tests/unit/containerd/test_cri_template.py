# SPDX-License-Identifier: Apache-2.0
"""The network of a node from a template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from teu.containerd.core.errors import FailedPrecondition, InvalidArgument
from teu.containerd.cri.template import NAME, fields, render, write

# As a node's administrator writes it for containerd.
CONTAINERDS = """{{- /* two families */ -}}
{
  "name": "k8s-pod-network",
  "cniVersion": "1.0.0",
  "plugins": [
    {
      "type": "ptp",
      "mtu": 1460,
      "ipam": {
        "type": "host-local",
        "subnet": "{{.PodCIDR}}",
        "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
        "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"""


def test_a_template_for_containerd(tmp_path: Path) -> None:
    template, folder = tmp_path / "template", tmp_path / "net.d"
    template.write_text(CONTAINERDS)
    write(str(template), str(folder), "10.1.2.0/24, fd00:1::/64")
    assert [one.name for one in folder.iterdir()] == [NAME]
    ipam = json.loads((folder / NAME).read_text())["plugins"][0]["ipam"]
    assert ipam["subnet"] == "10.1.2.0/24"
    assert ipam["ranges"] == [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]
    assert ipam["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("plain { } text", "plain { } text"),
        ("{{ .PodCIDR }}", "a/1"),
        ("{{range .Routes}}<{{.}}>{{end}}", "<r>"),
        ("{{range $x := .PodCIDRRanges}}{{$x}};{{end}}", "a/1;b/2;"),
        ("{{range $i, $x := .PodCIDRRanges}}{{$i}}{{end}}", "01"),
        ("{{range .None}}{{.}}{{$unknown}}{{end}}|", "|"),
        ("{{if .None}}a{{else}}b{{end}}", "b"),
        ("{{if .Routes}}a{{else}}{{.Unknown}}{{end}}", "a"),
        ("{{if .None}}{{range $i, $x := .Nothing}}{{$x}}{{end}}{{else}}b{{end}}", "b"),
        ("{{range .PodCIDRRanges}}{{range $r := .}}{{end}}{{end}}", None),
        ("a  {{- .PodCIDR -}}\n b", "aa/1b"),
        ("a  {{- .PodCIDR }} b", "aa/1 b"),
        ("a  {{- if .Routes -}}\n b {{- end }} c", "ab c"),
        ("{{.Unknown}}", None),
        ("{{printf .PodCIDR}}", None),
        ("{{if .Routes}}", None),
        ("{{range .Routes}}", None),
        ("{{range $i, $x = .Routes}}{{end}}", None),
        ("{{range .PodCIDR}}{{end}}", None),
        ("{{end}}", None),
        ("a{{else}}b", None),
    ],
)
def test_actions(text: str, made: str | None) -> None:
    known = {".PodCIDR": "a/1", ".PodCIDRRanges": ["a/1", "b/2"], ".Routes": ["r"], ".None": []}
    if made is None:
        with pytest.raises(ValueError, match=r"\{\{|nothing is known|is no list"):
            render(text, known)
    else:
        assert render(text, known) == made


def test_ranges() -> None:
    assert fields("10.0.0.0/8") == {
        ".PodCIDR": "10.0.0.0/8",
        ".PodCIDRRanges": ["10.0.0.0/8"],
        ".Routes": ["0.0.0.0/0"],
    }
    for bad in ("nonsense", "10.0.0.0/99", "10.0.0.0/8,", ","):
        with pytest.raises(InvalidArgument):
            fields(bad)


@pytest.mark.parametrize("text", ["no JSON", '{"name": "x"}', "{{.Unknown}}", '{"name": "x", "plugins": [{}]}'])
def test_a_template_that_is_none(tmp_path: Path, text: str) -> None:
    template, folder = tmp_path / "template", tmp_path / "net.d"
    template.write_text(text)
    with pytest.raises(FailedPrecondition, match="the network's template"):
        write(str(template), str(folder), "10.0.0.0/8")
    assert not folder.exists()
    with pytest.raises(FailedPrecondition):
        write(str(tmp_path / "none"), str(folder), "10.0.0.0/8")
