# SPDX-License-Identifier: Apache-2.0
"""The driver host: containers are in the host's own network namespace, and nothing is made for them."""

from __future__ import annotations

from teu.engine.networks.drivers.null import Null


class Host(Null):
    """The driver of the network host."""

    name = "host"
    own_namespace = False
