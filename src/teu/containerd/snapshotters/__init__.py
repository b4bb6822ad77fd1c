# SPDX-License-Identifier: Apache-2.0
"""Snapshotters: `interface` says what one is, `registry` which there are."""
