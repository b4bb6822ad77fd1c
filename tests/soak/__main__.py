# SPDX-License-Identifier: Apache-2.0
"""`./dev soak`: inside the namespace lab with the packages, where `dev` starts it."""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from pathlib import Path

EPILOG = """\
Clients run, exec, log, cp, pull, build, connect, publish, stop, restart, pause, kill, commit and remove at random.
Meanwhile the daemons, the builder, shims, runtimes and clients are killed, and journald, D-Bus and systemd's
manager are restarted and reloaded. What was acknowledged is in a ledger, and is asked for again at random
moments and at the end. Then all is removed, and nothing may be left: processes, mounts, links, cgroups, rules,
sockets, FIFOs, files, rows of all databases, blobs and snapshots, memory and descriptors of the daemons.

Exit status 1 where something contradicts the ledger; it is said with its time, and the journal of the whole run
is in build/soak/journal.log. The same seed gives the same choices; at which moments they come is up to the machine.
"""


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./dev soak",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Work and deaths for a long time: nothing acknowledged is lost, nothing is left.",
    )
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="how long (default: 60)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all choices (default: another each time)")
    parser.add_argument("--clients", type=int, default=4, metavar="K", help="at work at the same time (default: 4)")
    parser.add_argument("--rate", type=float, default=20, metavar="R", help="kills a minute (default: 20)")
    parser.add_argument("--power-cuts", metavar="N", help="instead of all this: cut the power of machines N times")
    parser.add_argument("--stop", action="store_true", help="stop at the first contradiction, and remove nothing")
    parser.add_argument("--results", type=Path, default=Path("/results"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.power_cuts:
        parser.error("--power-cuts N is all that there may be: it works on the host, not in the lab")
    return given


def main() -> int:
    given = options(sys.argv[1:])
    # What the system tests share.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))
    from soak import checks, clients, killers
    from soak.ledger import Ledger

    seed = given.seed or random.SystemRandom().randrange(1, 1 << 30)
    ledger = Ledger(seed, given.stop)
    print(f"soak: seed {seed}, {given.minutes:g} minutes, {given.clients} clients", flush=True)
    try:
        with clients.Workshop(ledger) as workshop:
            workers = [
                clients.Client(workshop, number, random.Random(seed * 1000 + number)) for number in range(given.clients)
            ]
            before = checks.Host.now()
            end = time.monotonic() + given.minutes * 60
            # The last part is without deaths: what the daemons then hold is what they keep.
            calm = end - min(120, given.minutes * 6)
            killer = killers.Killer(ledger, workshop, random.Random(seed), given.rate, calm)
            threads: list[clients.Client | threading.Thread] = [*workers, killer, checks.Watcher(ledger)]
            for thread in threads:
                thread.start()
            ledger.wait(end)
            ledger.over.set()
            for thread in threads:
                thread.join()
            if not (given.stop and ledger.contradictions):
                clients.finish(ledger, workers)
                checks.at_the_end(ledger, before)
    finally:  # also when somebody interrupts it
        ledger.over.set()
        checks.journal(ledger, given.results)
    print(ledger.report(), flush=True)
    return 1 if ledger.contradictions else 0


sys.exit(main())
