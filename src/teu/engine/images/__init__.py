# SPDX-License-Identifier: Apache-2.0
"""Images: their names and documents in containerd, and how they come, go and change."""
