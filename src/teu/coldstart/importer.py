# SPDX-License-Identifier: Apache-2.0
"""The import system of a cold start, until one needs Python's own: in an archive as `importer`.

Python's core runs frozen code under the name _frozen_importlib, and calls it for each import of what is not in
sys.modules. teu-coldstart.c has it run this file there in place of importlib, which takes a millisecond. Here are the
three functions that the core calls, for the archive's modules and extensions, and for what is built in. At the
first import of anything else (`become_importlib`) importlib's code is executed in this very module, so that the
names below become its own, and it goes on from there. Threads, reloading, specs, finders: importlib's.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType
    from typing import Any

sys: Any = None
_imp: Any = None
# boot.py says what is in the archive, and what it wants to do when importlib is there.
code = memoryview(b"")
modules: dict[str, tuple[int, int, str]] = {}
extensions: dict[str, str] = {}
loads: Any = None
importlib_came: Any = None
importlib_is_here = False


def _install(sys_module: Any, imp_module: Any) -> None:
    global sys, _imp
    sys = sys_module
    _imp = imp_module


def _find_and_load(name: str, import_: Any) -> ModuleType:
    """The module, which is not in sys.modules."""
    parent, _, child = name.rpartition(".")
    if parent and parent not in sys.modules:
        _find_and_load(parent, import_)
    make: Callable[[str], Any]
    if name in modules:
        make = _from_archive
    elif name in extensions:
        make = _from_file
    elif name in sys.builtin_module_names and name != "_signal":  # which needs a completed start, see boot.py
        make = _built_in
    else:
        become_importlib()
        return _find_and_load(name, import_)  # importlib's
    try:
        make(name)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    module: ModuleType = sys.modules[name]
    if parent:
        setattr(sys.modules[parent], child, module)
    return module


def _handle_fromlist(module: Any, fromlist: Iterable[str], import_: Any) -> Any:
    """from module, a package, import these: such as are modules are imported."""
    for name in fromlist:
        if not hasattr(module, name):
            full = module.__name__ + "." + name
            if full not in modules:
                become_importlib()
                return _handle_fromlist(module, fromlist, import_)  # importlib's
            _find_and_load(full, import_)
    return module


def _from_archive(name: str) -> None:
    module = sys.modules[name] = type(sys)(name)
    offset, size, file = modules[name]
    module.__file__ = file
    if file.endswith("/__init__.py"):
        module.__path__ = [file[:-12]]
    exec(loads(code[offset : offset + size]), module.__dict__)


def _built_in(name: str) -> None:
    module = sys.modules[name] = _imp.create_builtin(type(sys.implementation)(name=name))
    _imp.exec_builtin(module)


def _from_file(name: str) -> None:
    module = sys.modules[name] = _imp.create_dynamic(type(sys.implementation)(name=name, origin=extensions[name]))
    _imp.exec_dynamic(module)


def become_importlib() -> None:
    """Put importlib in the place of this; once, though an import that was under way may ask for it again: its parent
    or another name of its list has brought importlib then."""
    global importlib_is_here
    if importlib_is_here:
        return
    importlib_is_here = True
    came = importlib_came
    # it would take them for the frozen ones of these names
    ours = {name: sys.modules.pop(name) for name in modules if name in sys.modules}
    sys.modules["_coldstart"].importlib()
    exec(_imp.get_frozen_object(__name__), globals())
    _install(sys, _imp)  # importlib's
    sys.modules.update(ours)
    came()
