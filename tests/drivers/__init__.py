# SPDX-License-Identifier: Apache-2.0
"""What every driver of the engine has to do, as checks that take one: a file for each kind of driver.

The unit tests run them on those that need nothing, tests/system/test_engine_drivers.py on all of the registries."""
