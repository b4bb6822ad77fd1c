# SPDX-License-Identifier: Apache-2.0
"""What a build came to: its image's ID, the files that tell of it. Called by build and request."""

from __future__ import annotations

import binascii

from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DIGEST, CONFIG_DIGEST = "containerimage.digest", "containerimage.config.digest"


def _value(text: str) -> Any:
    """An answer of an exporter: some are JSON in base64."""
    try:
        found = jsontext.loads(binascii.a2b_base64(text, strict_mode=True))
    except ValueError:
        return text
    return found if isinstance(found, dict) else text


def descriptor_of(answer: dict[str, str], key: str) -> dict[str, Any] | None:
    """A descriptor that an exporter answered, as JSON or as JSON in base64."""
    text = answer.get(key, "")
    found = _value(text)
    if isinstance(found, str) and text.startswith("{"):
        try:
            found = jsontext.loads(text)
        except ValueError:
            return None
    return found if isinstance(found, dict) and found.get("digest") else None


def image_id(answer: dict[str, str]) -> str:
    """What docker calls the image's ID: its configuration's digest, else its manifest's; "" where there is no image."""
    return answer.get(CONFIG_DIGEST) or answer.get(DIGEST) or ""


def metadata(answer: dict[str, str], ref: str, warnings: list[Any]) -> str:
    """What --metadata-file gets: the exporters' answers, and which build it was."""
    values: dict[str, Any] = {key: _value(text) for key, text in answer.items()}
    values["buildx.build.ref"] = f"default/default/{ref}"
    if warnings:
        values["buildx.build.warnings"] = warnings
    return jsontext.dumps({key: values[key] for key in sorted(values)}, "  ")
