# SPDX-License-Identifier: Apache-2.0
"""LLB, the language of the solver: making definitions, reading and validating them, what is understood of it."""
