# SPDX-License-Identifier: Apache-2.0
"""Routes of a container's files: archive (docker cp) and export."""

from __future__ import annotations
