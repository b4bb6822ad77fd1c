# SPDX-License-Identifier: Apache-2.0
"""Containers as records: what they are, where they are kept and found, what a client may say about them.

Nothing here knows an image, a network or a volume."""
