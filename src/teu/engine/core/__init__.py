# SPDX-License-Identifier: Apache-2.0
"""What every room of the engine stands on. Knows no object of Docker's: no container, image, network or volume."""
