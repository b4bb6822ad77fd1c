# SPDX-License-Identifier: Apache-2.0
"""nftables by libnftables: commands in nft's language, applied as one transaction. Called by teud's networks."""

from __future__ import annotations

import threading
from typing import Any

_lock = threading.Lock()
_library: Any = None


class Error(Exception):
    """nft refused the commands; str() is its reason."""


def run(commands: str, handles: bool = False) -> str:
    """Apply all commands, or none; returns their output, with the rules' handles if asked. The library is loaded
    at the first call (7 ms)."""
    global _library
    with _lock:
        if _library is None:
            import nftables

            _library = nftables.Nftables()
        _library.set_handle_output(handles)
        code, output, error = _library.cmd(commands)
    return _result(code, output, error)


def run_here(commands: str) -> str:
    """The same in the network namespace of the calling thread, which `run` does not see."""
    import nftables

    library = nftables.Nftables()
    library.set_handle_output(False)
    return _result(*library.cmd(commands))


def _result(code: int, output: Any, error: Any) -> str:
    if code:
        reason = " ".join(str(error).split())
        raise Error(reason or f"nft failed with {code}")
    return str(output)
