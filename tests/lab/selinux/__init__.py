# SPDX-License-Identifier: Apache-2.0
"""What the machine of test_selinux.py is given: its first process, the policy, and the cases that it tries."""
