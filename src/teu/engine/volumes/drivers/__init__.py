# SPDX-License-Identifier: Apache-2.0
"""Where the files of a volume come from: one file for each driver."""
