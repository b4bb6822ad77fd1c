# SPDX-License-Identifier: Apache-2.0
"""One run of a plugin (CNI section 2): the request in its environment and on its standard input, a deadline for the
whole of its process group, and what it answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from teu.cni.errors import CniError
from teu.oci import jsontext

Json = dict[str, Any]
PLUGINS = ("/opt/cni/bin", "/usr/lib/cni")  # the second is Debian's
# What libcni calls the verbs in its errors.
_DOING = {"ADD": "add", "DEL": "delete", "CHECK": "check", "STATUS": "status", "GC": "gc"}


def run(
    verb: str,
    plugin: Json,
    more: Json,
    variables: Mapping[str, str],
    folders: Sequence[str],
    timeout: float | None = None,
) -> tuple[bytes, bytes]:
    """Run the plugin of a chain with its part of the configuration and `more`: its standard output and error.

    `variables` are the CNI_ ones besides CNI_COMMAND and CNI_PATH, `timeout` is in seconds. Raises CniError for a
    plugin that is not there, fails, or has not ended in time: then it is killed with all that it has started."""
    kind = plugin["type"]
    named = f' name="{plugin["name"]}"' if plugin.get("name") else ""
    begin = f'plugin type="{kind}"{named} failed ({_DOING[verb]}): '
    if "/" in kind:
        raise CniError(f"{begin}invalid plugin name: {kind}")
    programs = [path for path in (os.path.join(folder, kind) for folder in folders) if os.path.isfile(path)]
    if not programs:
        raise CniError(f'{begin}failed to find plugin "{kind}" in path [{" ".join(folders)}]')
    program = programs[0]
    environment = {**os.environ, **variables, "CNI_COMMAND": verb, "CNI_PATH": ":".join(folders)}
    given = json.dumps({**plugin, **more}, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    try:
        process = subprocess.Popen(
            [program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise CniError(f"{begin}fork/exec {program}: {(error.strerror or '').lower()}") from None
    with process:
        try:
            out, err = process.communicate(given, timeout)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise CniError(f"{begin}no answer within {timeout:g} s, so it was killed") from None
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        text, code = complaint(out, err, process.returncode)
        raise CniError(begin + text, code)
    return out, err


def complaint(out: bytes, err: bytes, status: int) -> tuple[str, int]:
    """What a plugin says of its failure, and the code of it (CNI, "Error")."""
    text, told = out.decode(errors="replace"), err.decode(errors="replace")
    if not text:
        if told:
            return f"netplugin failed: {json.dumps(told, ensure_ascii=False)}", 0
        return f"netplugin failed with no error message: exit status {status}", 0
    try:
        found = jsontext.loads(text)
        code = found.get("code")
        words = str(found.get("msg", "")) + (f"; {found['details']}" if found.get("details") else "")
        return words, code if isinstance(code, int) else 0
    except (ValueError, AttributeError) as error:
        return f"netplugin failed but error parsing its diagnostic message {json.dumps(text)}: {error}", 0
