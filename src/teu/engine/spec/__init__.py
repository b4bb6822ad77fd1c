# SPDX-License-Identifier: Apache-2.0
"""From a container's record to config.json."""
