# SPDX-License-Identifier: Apache-2.0
"""Names for containers that were given none: something calm, from a harbour."""

from __future__ import annotations

import secrets

ADJECTIVES = """
able amber ample azure bold brave brisk calm clear coral crisp early eager fair fleet fond free fresh gentle
glad golden grand hardy happy honest jolly keen kind lively loyal lucky merry mild nimble noble open placid
proud quick quiet rapid ready robust sandy serene sharp silver sober solid steady sunny swift tidy trusty
vivid
"""

THINGS = """
anchor barge bay beacon bollard bow breeze brig buoy cable canal cape capstan captain cargo channel coaster
compass coral crane current cutter deck delta dinghy dock eddy ferry fjord freighter frigate galley gull
harbour haven helm hull island jetty keel ketch lagoon lighthouse lock mast mole mooring oar pier pilot port
quay reef rigging rudder sail schooner shore sloop spar stern strait tide trawler tug wharf yawl
"""


def pick() -> str:
    return f"{secrets.choice(ADJECTIVES.split())}_{secrets.choice(THINGS.split())}"
