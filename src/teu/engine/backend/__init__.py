# SPDX-License-Identifier: Apache-2.0
"""containerd's API as the engine uses it: identifiers and plain values in and out, no object of the engine's."""
