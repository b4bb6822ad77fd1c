# SPDX-License-Identifier: Apache-2.0
"""Volumes: their records, their folders, and who uses them."""
