# SPDX-License-Identifier: Apache-2.0
"""The soak: clients work at random for hours while what they work with is killed, and a ledger keeps account.

    ledger      what was acknowledged, and so has to be true; the contradictions that were found
    clients     threads that run, stop, exec, log, copy, pull, connect and remove, each with things of its own
    killers     what kills, restarts and reloads programs, journald, D-Bus and systemd's manager
    checks      what the host and the daemons held before, and have to hold again at the end

`./dev soak --help` tells how it is run.
"""
