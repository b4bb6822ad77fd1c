# SPDX-License-Identifier: Apache-2.0
"""Blobs: list, get, ingest, delete, label, edit, active, prune."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from google.protobuf.field_mask_pb2 import FieldMask

from teu.ctr import blobs
from teu.ctr.client import content_pb2 as pb
from teu.ctr.client import errors, leases_pb2, local_time
from teu.ctr.commands import Command, Ctr, need
from teu.ctr.errors import CommandError, NotFound
from teu.ctr.flags import Options
from teu.ctr.output import Failures, age, label_text, log, tabbed
from teu.oci import digest as digests
from teu.oci.labels import CONTENT
from teu.oci.units import human_size


def all_blobs(ctr: Ctr, filters: list[str]) -> list[pb.Info]:
    with errors():
        return [info for part in ctr.client.content.List(pb.ListContentRequest(filters=filters)) for info in part.info]


def checked(text: str) -> str:
    try:
        return digests.check(text)
    except digests.DigestError as error:
        raise CommandError(str(error).partition(": '")[0]) from None


def list_content(ctr: Ctr, options: Options, operands: list[str]) -> None:
    try:
        found = sorted(all_blobs(ctr, operands), key=lambda info: str(info.digest))
    except CommandError:
        if not options["quiet"]:
            tabbed([("DIGEST", "SIZE", "AGE", "LABELS")])
        raise
    if options["quiet"]:
        for info in found:
            ctr.print(info.digest)
        return
    rows = [
        (info.digest, human_size(info.size), age(local_time(info.created_at)), label_text(info.labels) or "-")
        for info in found
    ]
    tabbed([("DIGEST", "SIZE", "AGE", "LABELS"), *rows])


def get(ctr: Ctr, options: Options, operands: list[str]) -> None:
    for digest in operands or [""]:
        for data in blobs.read(ctr.client, checked(digest)):
            sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _read_input() -> bytes:
    try:
        return os.read(0, blobs.CHUNK)
    except OSError as error:
        raise CommandError(f"failed to copy: read /dev/stdin: {(error.strerror or '').lower()}") from None


def ingest(ctr: Ctr, options: Options, operands: list[str]) -> None:
    reference = need(operands, "must specify a transaction reference")[0]
    expected = checked(options["expected-digest"]) if options["expected-digest"] else ""

    def source(offset: int) -> Iterator[bytes]:
        while data := _read_input():
            # What an earlier, broken ingest under the same key has stored is not sent again.
            skipped = min(offset, len(data))
            offset -= skipped
            if data[skipped:]:
                yield data[skipped:]

    blobs.write(ctr.client, reference, options["expected-size"], expected, source)


def delete(ctr: Ctr, options: Options, operands: list[str]) -> None:
    failures = Failures()
    for digest in operands:
        try:
            ctr.client.content.Delete(pb.DeleteContentRequest(digest=checked(digest)))
        except NotFound:
            continue
        except CommandError as error:
            failures.add(error, f"could not delete {digest}")
            continue
        ctr.print(digest)
    failures.end()


def label(ctr: Ctr, options: Options, operands: list[str]) -> None:
    digest = checked([*operands, ""][0])
    wanted = {key: value for key, _, value in (word.partition("=") for word in operands[1:])}
    info = blobs.set_labels(ctr.client, digest, wanted)
    ctr.print(label_text(info.labels))


def active(ctr: Ctr, options: Options, operands: list[str]) -> None:
    try:
        pattern = re.compile(operands[0] if operands else "")
    except re.error as error:
        raise CommandError(f"invalid regular expression {operands[0]}: {error}: invalid argument") from None
    statuses = ctr.client.content.ListStatuses(pb.ListStatusesRequest()).statuses
    rows = [
        (status.ref, human_size(status.offset), age(local_time(status.started_at)), "")
        for status in sorted(statuses, key=lambda status: str(status.ref))
        if pattern.search(status.ref)
    ]
    tabbed([("REF", "SIZE", "AGE", ""), *rows])


def edit(ctr: Ctr, options: Options, operands: list[str]) -> None:
    digest = checked([*operands, ""][0])
    if options["validate"]:
        raise CommandError("validating the edit result not supported")
    if not options["editor"]:
        raise CommandError("editor is required")
    with tempfile.NamedTemporaryFile(prefix="edit-") as file:
        for data in blobs.read(ctr.client, digest):
            file.write(data)
        file.flush()
        done = subprocess.run(["sh", "-c", f'{options["editor"]} "$1"', "sh", file.name], check=False)
        if done.returncode:
            raise CommandError(f"the editor ended with status {done.returncode}")
        with open(file.name, "rb") as result:
            ctr.print(blobs.store(ctr.client, result.read()))


def prune_references(ctr: Ctr, options: Options, operands: list[str]) -> None:
    """Drop the labels by which manifests keep their layers, which snapshots hold; then let the daemon collect."""
    client = ctr.client
    if options["dry"]:
        log("debug", "dry run, no changes will be applied")
    for info in all_blobs(ctr, []):
        layers = [key for key in sorted(info.labels) if key.startswith(f"{CONTENT}.l.")]
        for key in layers if options["dry"] else ():
            log("debug", "Removing label", digest=info.digest, label=key)
        if layers and not options["dry"]:
            mask = FieldMask(paths=["labels." + key for key in layers])
            client.content.Update(pb.UpdateRequest(info=pb.Info(digest=info.digest), update_mask=mask))
    if not options["dry"] and not options["async"]:
        # Whatever is deleted in step with its caller is deleted after a collection of garbage.
        lease = client.leases.Create(leases_pb2.CreateRequest(id="teu-ctr-" + os.urandom(6).hex())).lease.id
        client.leases.Delete(leases_pb2.DeleteRequest(id=lease, sync=True))


COMMANDS = {
    "content list": Command(list_content, "[flags] [<filter>, ...]", "quiet,q bool Print only the digests"),
    "content get": Command(get, "[<digest>, ...]"),
    "content ingest": Command(
        ingest,
        "[flags] <key>",
        """
expected-size    int     The blob must have this size
expected-digest  string  The blob must have this digest
""",
    ),
    "content delete": Command(delete, "[<digest>, ...]"),
    "content label": Command(label, "<digest> [<label>=<value> ...]"),
    "content active": Command(
        active,
        "[flags] [<regexp>]",
        """
timeout,t  duration  Accepted for ctr's sake [$CONTAINERD_FETCH_TIMEOUT]
root       string=/tmp/content  Accepted for ctr's sake
""",
    ),
    "content edit": Command(
        edit,
        "[flags] <digest>",
        """
validate  string  Accepted for ctr's sake
editor    string  The editor to use [$EDITOR]
""",
    ),
    "content prune references": Command(
        prune_references,
        "[flags]",
        """
async  bool  Leave the clean-up to the daemon's own time
dry    bool  Only show what would be done
""",
    ),
}
