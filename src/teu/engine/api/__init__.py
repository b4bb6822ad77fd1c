# SPDX-License-Identifier: Apache-2.0
"""Docker's Engine API over HTTP: it decodes, calls and answers."""
