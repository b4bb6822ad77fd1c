# SPDX-License-Identifier: Apache-2.0
"""Layers of images: unpacked into a tree, packed from one; by worker processes that `run` starts."""
