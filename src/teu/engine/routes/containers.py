# SPDX-License-Identifier: Apache-2.0
"""Routes: containers. Called by the router."""
