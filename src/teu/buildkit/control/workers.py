# SPDX-License-Identifier: Apache-2.0
"""What the builder says of itself: its version, its worker, platforms and policies. Called by control and bridge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from teu import __version__
from teu.api.buildkit import ops_pb2, worker_pb2
from teu.buildkit.cache.policies import Policy
from teu.buildkit.core import errors
from teu.buildkit.llb.platforms import Platform
from teu.oci import cdi
from teu.oci.filters import FilterError, in_map, parse_all

PACKAGE = "github.com/moby/buildkit"  # whose API this is: clients look for it
API_VERSION = "v0.26.0"  # of BuildKit, whose API, frontend options and history are served
DOCKERFILE_VERSION = "1.20.0"


def version() -> Any:
    return worker_pb2.BuildkitVersion(
        package=PACKAGE,
        version=f"{API_VERSION}+teu.{__version__}",
        dockerfileVersion=DOCKERFILE_VERSION,
    )


def gc_policies(policies: Iterable[Policy]) -> list[Any]:
    return [
        worker_pb2.GCPolicy(
            all=one.all,
            filters=one.filters,
            keepDuration=int(one.keep_duration * 1e9),
            reservedSpace=one.reserved,
            maxUsedSpace=one.max_used,
            minFreeSpace=one.min_free,
        )
        for one in policies
    ]


def record(
    identifier: str,
    labels: Mapping[str, str],
    platforms: Sequence[Platform],
    policies: Iterable[Policy],
    devices: cdi.Devices | None = None,
) -> Any:
    """The WorkerRecord of the one worker."""
    there = devices.all() if devices is not None else {}
    return worker_pb2.WorkerRecord(
        ID=identifier,
        Labels=labels,
        platforms=[
            ops_pb2.Platform(OS=one.os, Architecture=one.architecture, Variant=one.variant) for one in platforms
        ],
        GCPolicy=gc_policies(policies),
        BuildkitVersion=version(),
        CDIDevices=[
            worker_pb2.CDIDevice(
                Name=name, AutoAllow=devices is not None and devices.may(name), Annotations=one.annotations
            )
            for name, one in there.items()
        ],
    )


def chosen(worker: Any, filters: Sequence[str]) -> bool:
    """Whether one of the filters (id, labels.NAME) wants this worker. Raises InvalidArgument."""

    def field(path: Sequence[str]) -> str | None:
        if path[:1] == ["id"]:
            return str(worker.ID)
        return in_map(path[1:], dict(worker.Labels)) if path[:1] == ["labels"] else None

    try:
        return parse_all(filters)(field)
    except FilterError as error:
        raise errors.InvalidArgument(f"{error}: invalid argument") from None
