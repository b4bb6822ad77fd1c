# SPDX-License-Identifier: Apache-2.0
"""Routes: streams. Called by the router."""
