# SPDX-License-Identifier: Apache-2.0
"""Routes: networks. Called by the router."""
