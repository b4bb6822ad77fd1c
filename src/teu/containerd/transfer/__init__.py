# SPDX-License-Identifier: Apache-2.0
"""Images between registries, archives and the stores, below the transfer service."""
