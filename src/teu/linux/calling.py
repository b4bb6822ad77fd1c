# SPDX-License-Identifier: Apache-2.0
"""System calls through `_ctypes` (0.5 ms to import) and never `ctypes` (3 ms). Called by teu.linux.syscalls."""

from __future__ import annotations

import _ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The smallest part of ctypes that a system call needs: a long, a buffer, a function.
_FUNCFLAG_CDECL = 1
_FUNCFLAG_PYTHONAPI = 4  # keeps the GIL
_FUNCFLAG_USE_ERRNO = 8


class c_long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """A C long, in which the kernel takes arguments and gives results; ctypes' own would have to be imported."""

    _type_ = "l"


class c_char(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """A C char, of which buffers are made."""

    _type_ = "c"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _FUNCFLAG_CDECL | _FUNCFLAG_USE_ERRNO
    _restype_ = c_long


class _FunctionKeepingGIL(_ctypes.CFuncPtr):
    _flags_ = _FUNCFLAG_CDECL | _FUNCFLAG_USE_ERRNO | _FUNCFLAG_PYTHONAPI
    _restype_ = c_long


_libc = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]


def function(name: str) -> Any:
    """A function of the C library that takes integers. OSError where it has none of that name."""
    return _Function(_ctypes.dlsym(_libc, name))


_syscall_address = _ctypes.dlsym(_libc, "syscall")
_syscall = _Function(_syscall_address)
_syscall_keeping_gil = _FunctionKeepingGIL(_syscall_address)

_buffer_types: dict[int, Any] = {}
_array_type: Any = type


def buffer(data: bytes) -> Any:
    """Memory with a copy of these bytes, which the kernel may write to. It lives as long as the result is held."""
    kind = _buffer_types.get(len(data))
    if kind is None:
        kind = _array_type("buffer", (_ctypes.Array,), {"_type_": c_char, "_length_": len(data)})
        _buffer_types[len(data)] = kind
    return kind.from_buffer_copy(data)


def address(of: Any) -> int:
    """Where a buffer is in this process's memory: for structures that hold pointers."""
    return int(_ctypes.addressof(of))


def call(number: int, *args: int | bytes | None | Any) -> int:
    """A system call: its result, or -errno. Nothing is raised. Bytes are passed as pointers to them, None as a null
    pointer, numbers as longs. Other threads run meanwhile."""
    result = int(_syscall(c_long(number), *[c_long(a) if type(a) is int else a for a in args]))
    return -_ctypes.get_errno() if result == -1 else result


def call_keeping_gil(number: int, *args: int | bytes | None | Any) -> int:
    """As `call`, for what is over at once: other threads wait, which spares two changes of the interpreter's lock."""
    result = int(_syscall_keeping_gil(c_long(number), *[c_long(a) if type(a) is int else a for a in args]))
    return -_ctypes.get_errno() if result == -1 else result
