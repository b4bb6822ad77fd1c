# SPDX-License-Identifier: Apache-2.0
"""The first Python of ours that runs in a cold start: where imports come from. In the archive as `boot`.

Python's core is there and no more: strings are encoded as UTF-8; there is no importlib, no importer of files, no
codecs, no open(), no sys.stdout, sys.path or sys.executable. Two steps make up for that, each at the moment that
something needs it:

    importer.become_importlib   1 ms: at the first import that is neither in the archive nor built in
    complete                    2.5 ms: an import that is not frozen in Python either, `_signal`, or open() of a text
"""

from __future__ import annotations

import builtins
import sys

import _coldstart  # type: ignore[import-not-found]  # made by teu-coldstart.c

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
importer: Any = sys.modules["_frozen_importlib"]
_index: dict[str, Any] = _coldstart.index
_modules: dict[str, tuple[int, int, str]] = _index["modules"]
_extensions: dict[str, str] = _index["extensions"]
importer.code = _coldstart.code
importer.modules = _modules
importer.extensions = _extensions

from marshal import loads  # noqa: E402

importer.loads = loads


class Archive:
    """importlib's finder and loader of the archive's modules and extensions."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> Any:
        from _frozen_importlib import ModuleSpec

        if name in _modules:
            file = _modules[name][2]
            spec = ModuleSpec(name, _loader, origin=file)
            if file.endswith("/__init__.py"):
                spec.submodule_search_locations = [file[:-12]]
            return spec
        if name in _extensions:
            return ModuleSpec(name, _loader, origin=_extensions[name])
        if name == "_signal":
            complete()  # it is built in, and cannot be imported before; this does import it
            found = sys.modules.get(name)
            if found is None:
                return None
            found.__spec__ = ModuleSpec(name, _loader)  # else importlib would go by the one that it has
            return found.__spec__
        return None

    @staticmethod
    def create_module(spec: Any) -> Any:
        if spec.name in _extensions:
            from _imp import create_dynamic

            return create_dynamic(spec)
        if spec.name == "_signal":
            # A second one would find Python's own handlers installed, and take them for somebody else's.
            return sys.modules["_signal"]
        return None

    @staticmethod
    def exec_module(module: Any) -> None:
        name = module.__name__
        if name == "_signal":
            return
        if name in _extensions:
            from _imp import exec_dynamic

            exec_dynamic(module)
            return
        offset, size, module.__file__ = _modules[name]
        exec(loads(_coldstart.code[offset : offset + size]), module.__dict__)


_loader: Any = Archive  # the class itself: there is nothing to tell instances apart


class LastResort:
    """Asked when nobody else has the module: Python's own start is completed, then its own importers have it."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> Any:
        before = len(sys.meta_path) - 1
        complete()
        for finder in sys.meta_path[before:]:
            spec = finder.find_spec(name, path, target)  # type: ignore[arg-type]
            if spec is not None:
                return spec
        return None


def _importlib_came() -> None:
    global _importlib
    _importlib = True
    sys.meta_path.insert(0, Archive)
    sys.meta_path.append(LastResort)


def complete() -> None:
    """Do what Python's start left out. Once; nothing when it is done."""
    if not _importlib:
        importer.become_importlib()
    if LastResort not in sys.meta_path:
        return
    sys.meta_path.remove(LastResort)
    for name in ("os", "struct"):  # whoever comes now gets the real ones
        _modules.pop(name, None)
        before = sys.modules.pop(name, None)
        if before is not None and "_real" in before.__dict__:  # the stand-in, and not what that has loaded
            before.__dict__.pop("environ", None)  # which programs change: it is the real one's from now on
    words = sys.argv
    _coldstart.complete()
    sys.argv = words
    sys.path.append(_index["path"])
    _coldstart.completed()


def codec(value: Any, name: str) -> Any:
    """The method `encode` or `decode` of a value, to be called strictly. What is ASCII cannot fail; for others Python's
    start is completed, as its core looks for the way to fail where there is no table of those."""
    if not (isinstance(value, str | bytes | bytearray) and value.isascii()):
        complete()
    return getattr(value, name)


def open(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
    """builtins.open until the start is completed, which puts Python's own there."""
    if "b" not in mode:
        complete()
    from _io import open as real

    return real(file, mode, *arguments, **options)


importer.importlib_came = _importlib_came
_importlib = False
builtins.open = open
builtins.__codec__ = codec  # type: ignore[attr-defined]  # archive.py has it called
_coldstart.completed = lambda: None  # a program may have something to do then
sys.path = []
try:
    __import__(_index["entry"], None, None, ["main"]).main()
except BaseException:
    complete()  # what prints it needs it
    raise
