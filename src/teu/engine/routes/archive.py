# SPDX-License-Identifier: Apache-2.0
"""Routes: archive. Called by the router."""
