# SPDX-License-Identifier: Apache-2.0
"""The solver: the graphs of all builds as one, what of it has to run, and when."""
