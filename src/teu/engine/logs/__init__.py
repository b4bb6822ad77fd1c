# SPDX-License-Identifier: Apache-2.0
"""Where the output of a container is kept, and how it is read back: one file for each driver, and the registry of them.

Nothing here knows a container: a driver gets what it has to know of one as a LogSource."""
