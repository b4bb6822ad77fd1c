# SPDX-License-Identifier: Apache-2.0
"""The one question of who pulls: is this image let in? Called by teud, teu-containerd and teu-buildkitd before anything
of an image is stored; each has its own error for a refusal, and its own log for what the policy only wants told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teu.trust import files
from teu.trust.errors import Refused

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable, Sequence

    from teu.oci.image_spec import Descriptor
    from teu.oci.reference import Reference
    from teu.trust.attached import Source


def let_in(
    source: Source,
    wanted: Reference,
    ways: Iterable[Sequence[Descriptor]],
    file: str,
    refusal: type[Exception],
    log: logging.Logger,
) -> None:
    """Ask the policy, where there is one (teu-policy(5)). `ways`, as of `verify.allow`, are walked only then.

    Raises `refusal` with the policy's words, RegistryError where the registry does not tell its signatures."""
    if not files.configured(file):
        return
    from teu.trust import verify  # 5 ms, and with the first key 16 ms and 4.4 MB: for hosts with a policy

    try:
        notes = verify.allow(source, wanted, list(ways), file)
    except Refused as error:
        raise refusal(str(error)) from None
    for note in notes:
        log.warning("image %s: the policy lets it in, and: %s", wanted, note)
