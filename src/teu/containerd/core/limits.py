# SPDX-License-Identifier: Apache-2.0
"""Limits of containerd's API that more than one room holds to."""

from __future__ import annotations

MAX_MESSAGE = 16 << 20  # bytes of a gRPC message, both ways: containerd's own limit
