# SPDX-License-Identifier: Apache-2.0
"""The lowest room: errors, filters, events, the database and its rows. It knows no object of containerd's API."""
