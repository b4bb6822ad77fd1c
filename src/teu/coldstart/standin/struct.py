# SPDX-License-Identifier: Apache-2.0
"""struct is a file around _struct, which is built in."""

from _struct import *  # noqa: F403

TYPE_CHECKING = False
if not TYPE_CHECKING:
    from _struct import error  # noqa: F401
