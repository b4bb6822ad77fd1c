# SPDX-License-Identifier: Apache-2.0
"""Routes: volumes. Called by the router."""
