# SPDX-License-Identifier: Apache-2.0
"""What is kept and run: snapshots, blobs and leases of containerd, and steps as tasks in it."""
