# SPDX-License-Identifier: Apache-2.0
"""What changes a container: creation, start, stop, exits, health, restarts, recovery, removal."""
