# SPDX-License-Identifier: Apache-2.0
"""Leases: create, list, delete."""

from __future__ import annotations

import os
import time

from teu.ctr.client import leases_pb2 as pb
from teu.ctr.client import local_time
from teu.ctr.commands import Command, Ctr
from teu.ctr.errors import CommandError
from teu.ctr.flags import Options, labels
from teu.ctr.helptext import help_text
from teu.ctr.output import Failures, label_text, table
from teu.oci.labels import expiring


def local(seconds: float) -> str:
    zone = time.strftime("%z", time.localtime(seconds))
    zone = "Z" if zone == "+0000" else zone[:3] + ":" + zone[3:]
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds)) + zone


def list_leases(ctr: Ctr, options: Options, operands: list[str]) -> None:
    found = ctr.client.leases.List(pb.ListRequest(filters=operands)).leases
    if options["quiet"]:
        for lease in found:
            ctr.print(lease.id)
        return
    rows = [
        (lease.id, local(local_time(lease.created_at)), label_text(lease.labels) or "-")
        for lease in sorted(found, key=lambda lease: str(lease.id))
    ]
    table([("ID", "CREATED AT", "LABELS"), *rows])


def create(ctr: Ctr, options: Options, operands: list[str]) -> None:
    wanted = labels(operands)
    if options["expires"]:
        wanted |= expiring(options["expires"])
    identity = options["id"] or f"{time.time_ns() % 1_000_000_000}-{os.urandom(3).hex()[:4]}"
    ctr.print(ctr.client.leases.Create(pb.CreateRequest(id=identity, labels=wanted)).lease.id)


def delete(ctr: Ctr, options: Options, operands: list[str]) -> None:
    if not operands:
        ctr.print(help_text("leases delete"))
    failures = Failures()
    for number, identity in enumerate(operands):
        last = number == len(operands) - 1
        try:
            ctr.client.leases.Delete(pb.DeleteRequest(id=identity, sync=options["sync"] and last))
        except CommandError as error:
            failures.add(error, "" if last else f"failed to delete lease {identity}")
            continue
        ctr.print(identity)
    failures.end()


COMMANDS = {
    "leases list": Command(list_leases, "[flags] <filter>", "quiet,q bool Print only the IDs"),
    "leases create": Command(
        create,
        "[flags] <label>=<value> ...",
        """
id         string           Name of the lease
expires,x  duration=24h0m0s   When it ends; 0 for never
""",
    ),
    "leases delete": Command(delete, "[flags] <lease id> ...", "sync bool Wait until what it held is removed"),
}
