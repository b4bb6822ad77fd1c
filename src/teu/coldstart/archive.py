# SPDX-License-Identifier: Apache-2.0
"""Writes a program's archive of byte code. Called when a package is installed: python3 -IS archive.py PROGRAM

    /usr/lib/teu/PROGRAM.cpython-3XX    for the Python that runs this; replaced by rename
        "teu-pyc2", magic number of the byte code, lengths of importer and index (4 bytes each, this machine's order)
        importer    marshal of importer.py's code
        index       marshal: {"boot": code, "entry": module that has main(), "path": where teu is,
                              "modules": {name: (offset, size, file)}, "extensions": {name: file}}
        modules     marshal of each module's code, at its offset

Only modules of ours are in it: those of the standard library may be mended by an upgrade that does not know of us.
Documentation is left out, and so is `from __future__ import annotations`, which the compiler is told instead.
"""

from __future__ import annotations
import __future__

import ast
import importlib.machinery
import importlib.util
import marshal
import os
import struct
import sys
from pathlib import Path
from types import CodeType

FOLDER = Path("/usr/lib/teu")
# program: (the module with main(), the packages and modules it may import)
PROGRAMS = {
    "teu-runc": ("teu.runc.main", ("linux", "oci", "runc", "systemd")),
    "teu": ("teu.cli.cold", ("cli", "config.py", "http2", "linux", "oci", "systemd", "trust", "ttrpc")),
    "teu-system-generator": (
        "teu.cli.declared.generator",
        (
            "cli/__init__.py",
            *(f"cli/declared/{name}.py" for name in ("__init__", "files", "generator", "keys", "translate")),
            "systemd/__init__.py",
            "systemd/logfields.py",
        ),
    ),
}
# What they import of the standard library that is neither built in nor frozen in every Python: files of their own.
EXTENSIONS = ("_ctypes", "_json", "_socket", "binascii", "fcntl", "select", "termios")
# Ways to deal with text that is no Unicode which Python's core has by itself.
FORGIVING = ("replace", "surrogateescape", "ignore", "backslashreplace")


def _without_texts(tree: ast.Module) -> ast.Module:
    """Leave out documentation and __future__ imports."""
    tree.body = [node for node in tree.body if not (isinstance(node, ast.ImportFrom) and node.module == "__future__")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            text = first.value if isinstance(first, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                assert first is not None
                node.body = node.body[1:] or [ast.copy_location(ast.Pass(), first)]
    return tree


class _Codecs(ast.NodeTransformer):
    """A strict encode() or decode() asks boot.py's `codec` first: without the whole of Python it must not fail."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in ("encode", "decode"):
            ways = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "errors")]
            forgiving = (*FORGIVING, "surrogatepass") if function.attr == "encode" else FORGIVING
            if not ways or not all(isinstance(way, ast.Constant) and way.value in forgiving for way in ways):
                name = ast.Name("__codec__", ast.Load())
                asked = ast.Call(name, [function.value, ast.Constant(function.attr)], [])
                node.func = ast.fix_missing_locations(ast.copy_location(asked, function))
        return node


def compiled(file: Path) -> CodeType:
    """The code of a source file. It must begin with `from __future__ import annotations`, as all of ours do."""
    tree = _Codecs().visit(_without_texts(ast.parse(file.read_bytes(), str(file))))
    flags = __future__.annotations.compiler_flag
    code = compile(tree, str(file), "exec", flags=flags, dont_inherit=True)
    assert isinstance(code, CodeType)
    return code


def _modules(package: Path, parts: tuple[str, ...]) -> dict[str, Path]:
    found = {"teu": package / "__init__.py"}
    for part in parts:
        for file in sorted((package / part).rglob("*.py")) if not part.endswith(".py") else [package / part]:
            words = ("teu", *file.relative_to(package).with_suffix("").parts)
            found[".".join(words[:-1] if words[-1] == "__init__" else words)] = file
    for file in (package / "coldstart/standin").glob("[!_]*.py"):
        found[file.stem] = file
    return found


def _extensions() -> dict[str, str]:
    found = {}
    for name in EXTENSIONS:
        spec = None if name in sys.builtin_module_names else importlib.machinery.PathFinder.find_spec(name)
        if spec is not None and spec.origin:
            found[name] = spec.origin
    return found


def archive(program: str, package: Path) -> bytes:
    """The archive of a program whose modules are in the folder `package` (that of teu)."""
    entry, parts = PROGRAMS[program]
    places = {}
    codes = b""
    for name, file in _modules(package, parts).items():
        code = marshal.dumps(compiled(file))
        places[name] = (len(codes), len(code), str(file))
        codes += code
    importer = marshal.dumps(compiled(package / "coldstart/importer.py"))
    boot = compiled(package / "coldstart/boot.py")
    index = marshal.dumps(
        {"boot": boot, "entry": entry, "path": str(package.parent), "modules": places, "extensions": _extensions()}
    )
    magic = int.from_bytes(importlib.util.MAGIC_NUMBER, "little")
    return struct.pack("=8sIII", b"teu-pyc2", magic, len(importer), len(index)) + importer + index + codes


def main() -> None:
    package = Path(__file__).resolve().parent.parent
    for program in sys.argv[1:]:
        place = FOLDER / f"{program}.{sys.implementation.cache_tag}"
        temporary = place.with_name(f".{place.name}.{os.getpid()}")
        temporary.write_bytes(archive(program, package))
        temporary.chmod(0o644)
        temporary.rename(place)
        for other in FOLDER.glob(f"{program}.cpython-*"):
            if other != place:
                other.unlink()


if __name__ == "__main__":
    main()
