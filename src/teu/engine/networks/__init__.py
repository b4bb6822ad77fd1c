# SPDX-License-Identifier: Apache-2.0
"""Networks, and the attachment of containers to them."""
