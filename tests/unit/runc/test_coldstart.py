# SPDX-License-Identifier: Apache-2.0
"""The archive of byte code, and the stand-ins for modules of the standard library that are in it."""

from __future__ import annotations

import importlib.util
import marshal
import os
import posixpath
import struct
from pathlib import Path
from typing import Any

import pytest

from teu.coldstart import archive
from teu.coldstart.standin import os as standin

PACKAGE = Path(archive.__file__).parent.parent


def read(program: str = "teu-runc") -> tuple[dict[str, Any], bytes]:
    data = archive.archive(program, PACKAGE)
    kind, magic, importer, size = struct.unpack_from("=8sIII", data)
    assert (kind, magic) == (b"teu-pyc2", int.from_bytes(importlib.util.MAGIC_NUMBER, "little"))
    assert marshal.loads(data[20 : 20 + importer]).co_filename.endswith("coldstart/importer.py")
    start = 20 + importer
    return marshal.loads(data[start : start + size]), data[start + size :]


@pytest.mark.parametrize(("program", "own"), [("teu-runc", "runc"), ("teu", "cli")])
def test_every_module_of_the_program_is_in_it(program: str, own: str) -> None:
    index, codes = read(program)
    modules = index["modules"]
    for part in ("linux", "oci", "systemd", own):
        for file in (PACKAGE / part).rglob("*.py"):
            assert str(file) in {place[2] for place in modules.values()}
    for name in ("os", "struct", "teu", f"teu.{own}", f"teu.{own}.main"):
        offset, size, _ = modules[name]
        namespace: dict[str, Any] = {"__name__": name}
        exec(marshal.loads(codes[offset : offset + size]), namespace)
    assert callable(namespace["main"])
    assert index["entry"] in modules


def test_strict_codecs_ask_first(tmp_path: Path) -> None:
    """What may fail is not called before there is a way to fail; what cannot is called as it stands."""
    asked: list[tuple[Any, str]] = []

    def codec(value: Any, name: str) -> Any:
        asked.append((value, name))
        return getattr(value, name)

    text = "from __future__ import annotations\n"
    text += (
        "found = ['é'.encode(), b'a'.decode('ascii'), 'b'.encode('utf-8', 'replace'), 'c'.encode(errors='strict')]\n"
    )
    (tmp_path / "odd.py").write_text(text)
    namespace: dict[str, Any] = {"__codec__": codec}
    exec(archive.compiled(tmp_path / "odd.py"), namespace)
    assert namespace["found"] == ["é".encode(), "a", b"b", b"c"]
    assert asked == [("é", "encode"), (b"a", "decode"), ("c", "encode")]


def test_documentation_is_left_out_and_code_is_not() -> None:
    index, codes = read()
    offset, size, _ = index["modules"]["teu.runc.arguments"]
    code = codes[offset : offset + size]
    assert b"flag provided but not defined" in code
    assert b"The command line, as runc reads it" not in code


def test_layouts_name_the_running_python_right() -> None:
    """teu-coldstart.c says what number the byte code of each Python has that it knows."""
    source = (PACKAGE.parent / "c/teu-coldstart.c").read_text()
    table = source[source.index("layouts[] = {") :].split("};")[0]
    numbers = {int(row.split(",")[0]): int(row.split(",")[1]) for row in table.split("{")[2:]}
    minor = int(os.sys.version_info.minor)  # type: ignore[attr-defined]
    if minor in numbers:
        assert numbers[minor] == int.from_bytes(importlib.util.MAGIC_NUMBER[:2], "little")
    assert {11, 13} <= set(numbers)


@pytest.mark.parametrize("path", ["/a/b", "/a//b", "/a/./b", "/a/../b", "/", "a/b", ".", "/a/b/", "/a/.b", "//a"])
def test_paths_are_what_posixpath_says(path: str) -> None:
    assert standin.path.abspath(path) == posixpath.abspath(path)
    assert standin.path.dirname(path) == posixpath.dirname(path)
    assert standin.path.exists(path) == posixpath.exists(path)
    assert standin.path.isdir(path) == posixpath.isdir(path)
    assert standin.path.normpath(path) == posixpath.normpath(path)


def test_the_stand_in_hands_on_what_it_lacks(tmp_path: Path) -> None:
    for name in ("a\udcff", "é", "plain"):
        assert standin.fsdecode(standin.fsencode(name)) == os.fsdecode(os.fsencode(name)) == name
    assert standin.environ["PATH"] == os.environ["PATH"]
    standin.makedirs(tmp_path / "a/b", exist_ok=True)
    assert (tmp_path / "a/b").is_dir()
    with pytest.raises(AttributeError):
        standin.__getattr__("no_such_name")
