# SPDX-License-Identifier: Apache-2.0
"""DeviceRequests: `--device vendor/class=name` and `--gpus`: devices of the Container Device Interface (oci.cdi).

What `--gpus` means is said by the files that a vendor's toolkit writes: nvidia.com/gpu, and amd.com/gpu where there is
none of those. Called at create, which refuses what no machine could give, at start, which needs them, and by info.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from teu.engine.core.errors import BadRequest, EngineError
from teu.oci import cdi

if TYPE_CHECKING:
    from teu.engine.core.fields import DeviceRequest

GPUS = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}
CDI = "cdi"
ALL = "all"
EVERY = -1  # as a count


def check(requests: Sequence[DeviceRequest]) -> None:
    """Raises BadRequest."""
    for one in requests:
        if one.driver == CDI:
            for name in one.device_ids or ():
                kind, _, rest = name.partition("=")
                try:
                    cdi.check_kind(kind, name)
                except cdi.Broken as error:
                    raise BadRequest(f"CDI device injection failed: {error}") from None
                if not rest:
                    raise BadRequest(f'CDI device injection failed: invalid device "{name}"')
        elif one.driver not in (None, "", *GPUS) or not any("gpu" in (each or ()) for each in one.capabilities or ()):
            raise _refused(one)
        if one.count and one.device_ids and one.driver != CDI:
            raise BadRequest("cannot set both Count and DeviceIDs on device request")


def _refused(one: DeviceRequest) -> BadRequest:
    wanted = " ".join(f"[{' '.join(each or ())}]" for each in one.capabilities or ())
    return BadRequest(f'could not select device driver "{one.driver or ""}" with capabilities: [{wanted}]')


def edits(folders: Sequence[str], requests: Sequence[DeviceRequest]) -> cdi.Edits:
    """What the devices give to a specification. Raises EngineError where this machine has them not."""
    if not requests:
        return cdi.Edits()
    there = cdi.Devices(folders)
    names: dict[str, None] = {}
    for one in requests:
        names |= dict.fromkeys((one.device_ids or ()) if one.driver == CDI else _gpus(there, one))
    missing = [name for name in names if name not in there.all()]
    if missing:
        raise EngineError(f"CDI device injection failed: unresolvable CDI devices {', '.join(missing)}")
    return there.edits(names)


def edit(specification: dict[str, object], given: cdi.Edits) -> None:
    """Change a specification, whose mounts have them already. Raises EngineError."""
    try:
        cdi.edit(specification, given)
    except OSError as error:  # docker's words, by which its client chooses the exit status
        told = f'failed to stat CDI host device "{error.filename}": {(error.strerror or str(error)).lower()}'
        raise EngineError(f"CDI device injection failed: {told}") from None
    except cdi.Broken as error:
        raise EngineError(f"CDI device injection failed: {error}") from None


def _gpus(there: cdi.Devices, one: DeviceRequest) -> list[str]:
    kinds = [GPUS[one.driver]] if one.driver else list(GPUS.values())
    for kind in kinds:
        found = [name for name in there.all() if name.startswith(kind + "=")]
        if found:
            break
    else:
        raise EngineError(f"{_refused(one)}: no file in the CDI directories has {' or '.join(kinds)}")
    if one.device_ids:
        return [f"{kind}={name}" for name in one.device_ids]
    single = [name for name in found if name != f"{kind}={ALL}"]
    count = one.count or 0
    if count == EVERY:
        return [f"{kind}={ALL}"] if f"{kind}={ALL}" in found else single
    # A GPU has a number, and its UUID as another name.
    numbered = sorted(
        (name for name in single if name.partition("=")[2].isdecimal()), key=lambda name: int(name.partition("=")[2])
    )
    single = numbered or single
    if count > len(single):
        raise EngineError(f"{count} GPUs are wanted, and {kind} has {len(single)}")
    return single[:count]


def discovered(folders: Sequence[str]) -> list[dict[str, str]]:
    """Those of this machine, as info shows them."""
    return [{"Source": CDI, "ID": name} for name in cdi.Devices(folders).all()]
