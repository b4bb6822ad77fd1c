# SPDX-License-Identifier: Apache-2.0
"""Tasks and sandboxes at work: shims and bundles, the zygote, restarts, checkpoints. It knows the stores, no wire."""
