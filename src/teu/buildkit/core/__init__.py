# SPDX-License-Identifier: Apache-2.0
"""What every room of the builder needs: errors, progress, identifiers."""
