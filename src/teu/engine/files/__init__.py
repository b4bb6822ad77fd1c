# SPDX-License-Identifier: Apache-2.0
"""A container's root file system from outside: opened, looked at, packed, unpacked and compared."""
