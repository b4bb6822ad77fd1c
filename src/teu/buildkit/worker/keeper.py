# SPDX-License-Identifier: Apache-2.0
"""Who gives records up: cache.policies.Keeper over the worker. Called by prune, and by the daemon from time to time."""

from __future__ import annotations

from teu.buildkit.cache.policies import Usage
from teu.buildkit.core import errors
from teu.buildkit.worker.worker import ContainerdWorker


class WorkerKeeper:
    """cache.policies.Keeper."""

    def __init__(self, worker: ContainerdWorker) -> None:
        self._worker = worker

    def usages(self) -> list[Usage]:
        raise errors.Unimplemented("usages")

    def free_space(self) -> int:
        raise errors.Unimplemented("free_space")

    def measure(self, name: str) -> int:
        raise errors.Unimplemented("measure")

    def remove(self, name: str) -> bool:
        raise errors.Unimplemented("remove")
