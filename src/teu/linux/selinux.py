# SPDX-License-Identifier: Apache-2.0
"""SELinux, as far as a runtime has to do with it. Called by teu-runc and by the check of a specification."""

from __future__ import annotations

import os

XATTR = "security.selinux"
_SELINUXFS = "/sys/fs/selinux"


def enabled() -> bool:
    """Whether processes and files have labels here: a policy is loaded, and its file system is there for us."""
    try:
        if not os.path.exists(f"{_SELINUXFS}/enforce") or os.statvfs(_SELINUXFS).f_flag & os.ST_RDONLY:
            return False
        with open("/proc/self/attr/current", "rb") as file:
            return file.read().rstrip(b"\0\n") != b"kernel"  # the only label that there is before the policy
    except OSError:
        return False
