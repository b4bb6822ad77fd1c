# SPDX-License-Identifier: Apache-2.0
"""Routes: images. Called by the router."""
