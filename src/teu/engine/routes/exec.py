# SPDX-License-Identifier: Apache-2.0
"""Routes: exec. Called by the router."""
