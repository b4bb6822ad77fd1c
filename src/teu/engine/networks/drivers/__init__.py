# SPDX-License-Identifier: Apache-2.0
"""How the containers of a network are joined: one file for each driver."""
