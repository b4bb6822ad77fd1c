# SPDX-License-Identifier: Apache-2.0
"""The records of metadata.db and the blobs, one module per kind, and the collection of what nothing leads to."""
