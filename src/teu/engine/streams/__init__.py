# SPDX-License-Identifier: Apache-2.0
"""A container's output and input while it runs: FIFOs and pipes to the log and to the clients that are attached."""
