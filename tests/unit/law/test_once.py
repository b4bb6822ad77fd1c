# SPDX-License-Identifier: Apache-2.0
"""What the ground floors have is written once: the kernel's numbers stand in teu.linux, each in one place."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

from sourcetree import parsed
from test_imports import SRC, modules

# Families of names of the kernel's headers. Values of files' flags and signals are the standard library's.
KERNEL = re.compile(
    r"(MS|MNT|RESOLVE|MOUNT_ATTR|OPEN_TREE|MOVE_MOUNT|FSOPEN|FSCONFIG|FSMOUNT|NR|PR|SECCOMP|BPF"
    r"|NLM_F|NLMSG|RTM|IFLA|IFA|RTA|IFF|NFT|NFTA|NFNL)_[A-Za-z0-9_]+|CLONE_NEW[A-Z]+"
)


def test_the_kernel_s_numbers_are_in_one_place() -> None:
    places = defaultdict(list)
    for part, path in modules():
        for node in parsed(path).body:
            targets = node.targets if isinstance(node, ast.Assign) else ()
            for target in targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name) and KERNEL.fullmatch(name.id):
                        places[name.id].append((part, f"{path.relative_to(SRC)}:{node.lineno}"))
    wrong = [
        f"{name}: {', '.join(where for _, where in found)}"
        for name, found in sorted(places.items())
        if len(found) > 1 or found[0][0] != "linux"
    ]
    assert places and not wrong, "\n".join(wrong)
