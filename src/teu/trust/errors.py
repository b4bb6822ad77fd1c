# SPDX-License-Identifier: Apache-2.0
"""What stands in the way of an image."""

from __future__ import annotations


class TrustError(Exception):
    """One signature, key or certificate does not prove what it should; the text says why."""


class Refused(TrustError):
    """The policy does not let the image in: which image, by which line of the policy, and what was wrong."""
