# SPDX-License-Identifier: Apache-2.0
"""teu-buildkitd: builds by BuildKit's protocol, on containerd's API alone. A neighbour of all other programs here."""
