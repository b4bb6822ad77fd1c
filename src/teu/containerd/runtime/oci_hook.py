# SPDX-License-Identifier: Apache-2.0
"""`teu-containerd oci-hook -- PROGRAM ARG…`: a hook for OCI runtimes that becomes PROGRAM, after what is in double
braces in its arguments and environment has been filled in from the container's state, as `containerd oci-hook` does:
{{id}}, {{bundle}}, {{rootfs}}, {{pid}}, {{status}}, {{annotation "KEY"}}."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any


def filled(text: str, state: dict[str, Any], root: str) -> str:
    """Raises ValueError for a name that is none of these."""
    known = {
        "id": state.get("id", ""),
        "bundle": state.get("bundle", ""),
        "rootfs": root,
        "pid": state.get("pid", 0),
        "status": state.get("status", ""),
    }

    def value(match: re.Match[str]) -> str:
        word = match[1].strip()
        key = re.fullmatch(r'annotation\s+"([^"]*)"', word)
        if key:
            return str((state.get("annotations") or {}).get(key[1], ""))
        if word not in known:
            raise ValueError(f"{match[0]}: give one of {', '.join(known)}, annotation")
        return str(known[word])

    return re.sub(r"\{\{(.*?)\}\}", value, text)


def main(argv: list[str]) -> int:
    """Become the program; 1 where that cannot be, which is said on stderr."""
    words = argv[1:] if argv[:1] == ["--"] else argv
    try:
        if not words:
            raise ValueError("give the program to become")
        state = json.load(sys.stdin)
        with open(os.path.join(state["bundle"], "config.json")) as file:
            root = os.path.join(state["bundle"], json.load(file)["root"]["path"])
        arguments = [filled(word, state, root) for word in words]
        environment = {name: filled(value, state, root) for name, value in os.environ.items()}
        os.execve(arguments[0], arguments, environment)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"teu-containerd: oci-hook: {error}", file=sys.stderr)
    return 1
