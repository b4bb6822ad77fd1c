# SPDX-License-Identifier: Apache-2.0
"""A file system with project quotas, for unit tests of who asks for them: the answers of teu.linux.quota's two calls.

What the kernel does with a limit is shown by tests/system/test_disk_limits.py, in the VM.
"""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from teu.linux import quota

INHERIT = quota.FS_XFLAG_PROJINHERIT


class ProjectQuotas:
    """`joined`: the project of each file that was given one, by its path; `limits`: bytes, by project."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
        self.state = quota.FS_QUOTA_PDQ_ACCT | quota.FS_QUOTA_PDQ_ENFD
        self.joined: dict[str, int] = {}
        self.limits: dict[int, int] = {}
        self.dies_before_the_limit = False
        monkeypatch.setattr(quota, "LOCK", f"{folder}/projects.lock")
        monkeypatch.setattr(quota, "syscall", self._quotactl)
        monkeypatch.setattr(quota.fcntl, "ioctl", self._ioctl)

    def project(self, path: str) -> int:
        """What the file has, or inherits; 0."""
        path = os.path.realpath(path)
        while path != "/":
            if path in self.joined:
                return self.joined[path]
            path = os.path.dirname(path)
        return 0

    def limit(self, path: str) -> int:
        """How much may be below it; 0 is no limit."""
        return self.limits.get(self.project(path), 0)

    def used(self) -> set[int]:
        """The projects that files are in."""
        return {project for path, project in self.joined.items() if os.path.lexists(path)}

    def _ioctl(self, file: int, request: int, data: bytes) -> bytes:
        if request not in (quota.FS_IOC_FSGETXATTR, quota.FS_IOC_FSSETXATTR):
            raise OSError(errno.ENOTTY, "ioctl")
        path = os.readlink(f"/proc/self/fd/{file}")
        if request == quota.FS_IOC_FSSETXATTR:
            flags, _, _, project, _ = quota._FSXATTR.unpack(data)
            assert bool(flags & INHERIT) == os.path.isdir(path)
            self.joined[path] = project
            return data
        project = self.project(path)
        return quota._FSXATTR.pack(INHERIT if project and os.path.isdir(path) else 0, 0, 0, project, 0)

    def _quotactl(self, what: str, number: int, file: int, command: int, project: int, data: Any) -> int:
        assert (what, number, command & 0xFF) == ("quotactl_fd", 443, quota.PRJQUOTA)
        command >>= 8
        bytes_of = memoryview(data).cast("B")
        if not self.state:
            raise OSError(errno.ENOSYS, what)
        if command == quota.Q_XGETQSTAT:
            bytes_of[2:4] = self.state.to_bytes(2, "little")
        elif command == quota.Q_XSETQLIM:
            if self.dies_before_the_limit:
                raise ZeroDivisionError
            fields = quota._DISK_QUOTA.unpack(bytes(bytes_of))
            assert fields[:4] == (1, 2, quota.FS_DQ_BHARD | quota.FS_DQ_BSOFT, project)
            self.limits[project] = fields[4] * quota.BLOCK
            if not self.limits[project]:
                del self.limits[project]
        else:
            assert command == quota.Q_XGETQUOTA
            blocks = self.limits.get(project, 0) // quota.BLOCK
            inodes = list(self.joined.values()).count(project) if project in self.used() else 0
            if not blocks and not inodes:
                raise FileNotFoundError(errno.ENOENT, what)
            bytes_of[:] = quota._DISK_QUOTA.pack(1, 2, 0, project, blocks, 0, 0, 0, inodes * 8, inodes)
        return 0
