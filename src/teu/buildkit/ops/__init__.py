# SPDX-License-Identifier: Apache-2.0
"""What executes a vertex: an Op of core.op for each kind that LLB has."""
