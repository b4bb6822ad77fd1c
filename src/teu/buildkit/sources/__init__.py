# SPDX-License-Identifier: Apache-2.0
"""Where files come from: images, clients' folders, git, http, OCI layouts; and caches that travel."""
