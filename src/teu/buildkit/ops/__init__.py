# SPDX-License-Identifier: Apache-2.0
"""What executes a vertex: one file per kind of operation."""
