# SPDX-License-Identifier: Apache-2.0
"""What is told of containers, images and the machine. Reads, never writes."""
