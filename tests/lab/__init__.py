# SPDX-License-Identifier: Apache-2.0
"""The two labs that system tests run in, the package build, and the runner of all tests."""
