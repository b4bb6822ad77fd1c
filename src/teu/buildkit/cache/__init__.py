# SPDX-License-Identifier: Apache-2.0
"""The cache: which result has which keys, what is in a tree of files, what is kept and for how long."""
