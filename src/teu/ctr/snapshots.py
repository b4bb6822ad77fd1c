# SPDX-License-Identifier: Apache-2.0
"""Snapshots: list, tree, info, prepare, view, commit, mounts, delete, label, usage, diff, unpack."""

from __future__ import annotations

import sys
import time
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from teu.ctr import blobs
from teu.ctr.client import Client, content_pb2, diff_pb2, errors, rfc3339
from teu.ctr.client import snapshots_pb2 as pb
from teu.ctr.commands import GROUP_FLAGS, Command, Ctr, need
from teu.ctr.content import checked
from teu.ctr.errors import CommandError, NotFound
from teu.ctr.flags import Options, labels
from teu.ctr.helptext import help_text
from teu.ctr.images import all_images
from teu.ctr.output import binary, label_text, show_json, table
from teu.oci.labels import rooted

KINDS = {pb.Kind.UNKNOWN: "Unknown", pb.Kind.VIEW: "View", pb.Kind.ACTIVE: "Active", pb.Kind.COMMITTED: "Committed"}


def all_snapshots(ctr: Ctr, options: Options) -> list[Any]:
    with errors():
        found = [
            info
            for part in ctr.client.snapshots.List(pb.ListSnapshotsRequest(snapshotter=options["snapshotter"]))
            for info in part.info
        ]
    return sorted(found, key=lambda info: str(info.name))


def list_snapshots(ctr: Ctr, options: Options, operands: list[str]) -> None:
    rows = [(info.name, info.parent, KINDS[info.kind]) for info in all_snapshots(ctr, options)]
    table([("KEY", "PARENT", "KIND"), *rows])


def tree(ctr: Ctr, options: Options, operands: list[str]) -> None:
    below: dict[str, list[str]] = {}
    for info in all_snapshots(ctr, options):
        below.setdefault(info.parent, []).append(info.name)

    def show(name: str, level: int) -> None:
        ctr.print("  " * level + ("\\_" if level else "") + " " + name)
        for child in below.get(name, ()):
            show(child, level + 1)

    for name in below.get("", ()):
        show(name, 0)


def info(ctr: Ctr, options: Options, operands: list[str]) -> None:
    if len(operands) != 1:
        ctr.print(help_text("snapshots info"))
        return
    key = operands[0]
    found = ctr.client.snapshots.Stat(pb.StatSnapshotRequest(snapshotter=options["snapshotter"], key=key)).info
    value: dict[str, Any] = {"Kind": KINDS[found.kind], "Name": found.name}
    if found.parent:
        value["Parent"] = found.parent
    if found.labels:
        value["Labels"] = dict(sorted(found.labels.items()))
    value["Created"], value["Updated"] = rfc3339(found.created_at), rfc3339(found.updated_at)
    show_json(value)


def print_mounts(ctr: Ctr, target: str, mounts: Any) -> None:
    for mount in mounts:
        extra = f" -o {','.join(mount.options)}" if mount.options else ""
        where = target + "/" + mount.target.lstrip("/") if mount.target else target
        ctr.print(f"mount -t {mount.type} {mount.source} {where}{extra}")


def make(ctr: Ctr, options: Options, operands: list[str], writable: bool) -> None:
    if not 1 <= len(operands) <= 2:
        raise CommandError("key must be provided")
    key, parent = operands[0], operands[1] if len(operands) > 1 else ""
    root = rooted()
    call = ctr.client.snapshots.Prepare if writable else ctr.client.snapshots.View
    request = pb.PrepareSnapshotRequest if writable else pb.ViewSnapshotRequest
    mounts = call(request(snapshotter=options["snapshotter"], key=key, parent=parent, labels=root)).mounts
    if options["target"]:
        print_mounts(ctr, options["target"], mounts)
    if options["mounts"]:
        show_json(
            [
                {"Type": mount.type, "Source": mount.source, "Target": mount.target, "Options": list(mount.options)}
                for mount in mounts
            ]
        )


def prepare(ctr: Ctr, options: Options, operands: list[str]) -> None:
    make(ctr, options, operands, True)


def view(ctr: Ctr, options: Options, operands: list[str]) -> None:
    make(ctr, options, operands, False)


def mounts(ctr: Ctr, options: Options, operands: list[str]) -> None:
    if len(operands) != 2:
        ctr.print(help_text("snapshots mounts"))
        return
    target, key = operands
    found = ctr.client.snapshots.Mounts(pb.MountsRequest(snapshotter=options["snapshotter"], key=key)).mounts
    print_mounts(ctr, target, found)


def commit(ctr: Ctr, options: Options, operands: list[str]) -> None:
    if len(operands) != 2:
        ctr.print(help_text("snapshots commit"))
        return
    name, key = operands
    root = rooted()
    ctr.client.snapshots.Commit(
        pb.CommitSnapshotRequest(snapshotter=options["snapshotter"], name=name, key=key, labels=root)
    )


def delete(ctr: Ctr, options: Options, operands: list[str]) -> None:
    for key in operands:
        try:
            ctr.client.snapshots.Remove(pb.RemoveSnapshotRequest(snapshotter=options["snapshotter"], key=key))
        except CommandError as error:
            raise CommandError(f'failed to remove "{key}": {error.text}') from None


def label(ctr: Ctr, options: Options, operands: list[str]) -> None:
    name = need(operands, "name")[0]
    wanted = {key: value for key, _, value in (word.partition("=") for word in operands[1:])}
    request = pb.UpdateSnapshotRequest(
        snapshotter=options["snapshotter"],
        info=pb.Info(name=name, labels=wanted),
        update_mask=FieldMask(paths=["labels." + key for key in wanted]),
    )
    ctr.print(label_text(ctr.client.snapshots.Update(request).info.labels))


def usage(ctr: Ctr, options: Options, operands: list[str]) -> None:
    keys = operands or [info.name for info in all_snapshots(ctr, options)]
    rows = []
    for key in keys:
        try:
            found = ctr.client.snapshots.Usage(pb.UsageRequest(snapshotter=options["snapshotter"], key=key))
        except NotFound:
            if operands:
                raise
            continue
        rows.append((key, found.size if options["b"] else binary(found.size), found.inodes))
    table([("KEY", "SIZE", "INODES"), *rows])


def compare(client: Client, snapshotter: str, keys: list[str], request: Any) -> Any:
    """Let the daemon make a layer of the difference of two snapshots, or of one to its parent; `request` says how. The
    layer's descriptor."""
    made: list[str] = []

    def layers(key: str) -> Any:
        if not key:
            return []
        kind = client.snapshots.Stat(pb.StatSnapshotRequest(snapshotter=snapshotter, key=key)).info.kind
        if kind == pb.Kind.ACTIVE:
            return client.snapshots.Mounts(pb.MountsRequest(snapshotter=snapshotter, key=key)).mounts
        name = f"{key}-view-{time.time_ns()}"
        made.append(name)
        return client.snapshots.View(pb.ViewSnapshotRequest(snapshotter=snapshotter, key=name, parent=key)).mounts

    first = keys[0]
    try:
        if len(keys) > 1:
            lower, upper = layers(first), layers(keys[1])
        else:
            stat = client.snapshots.Stat(pb.StatSnapshotRequest(snapshotter=snapshotter, key=first)).info
            lower, upper = layers(stat.parent), layers(first)
        request.left.extend(lower)
        request.right.extend(upper)
        return client.diff.Diff(request).diff
    finally:
        for name in made:
            client.snapshots.Remove(pb.RemoveSnapshotRequest(snapshotter=snapshotter, key=name))


def diff(ctr: Ctr, options: Options, operands: list[str]) -> None:
    """The difference of two snapshots; of one, to its parent."""
    client = ctr.client
    need(operands, "snapshot id")
    kept = labels(options["label"])
    if options["keep"]:
        kept |= rooted()
    request = diff_pb2.DiffRequest(media_type=options["media-type"], ref=options["ref"], labels=kept)
    with client.leased():
        found = compare(client, options["snapshotter"], operands[:2], request)
        for data in blobs.read(client, found.digest):
            sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        if not options["keep"]:
            client.content.Delete(content_pb2.DeleteContentRequest(digest=found.digest))


def unpack(ctr: Ctr, options: Options, operands: list[str]) -> None:
    digest = checked([*operands, ""][0])
    client = ctr.client
    for image in all_images(client, []):
        target = blobs.as_json(image.target)
        if target["digest"] == digest:
            _, manifest = blobs.manifests(client, target)[0]
            with client.leased():
                blobs.unpack(client, manifest, options["snapshotter"], options["sync-fs"])
                ctr.print(f"unpacking {digest} ({target['mediaType']})...done")
            return
    raise CommandError("manifest not found")


SYNC_FS = "sync-fs bool Each layer is on the disk before the next one is unpacked"
PREPARE = """
target,t  string  Print the mount commands for this target
mounts    bool    Print the mounts as JSON
"""
COMMANDS = {
    "snapshots list": Command(list_snapshots, ""),
    "snapshots tree": Command(tree, ""),
    "snapshots info": Command(info, "<key>"),
    "snapshots prepare": Command(prepare, "[flags] <key> [<parent>]", PREPARE),
    "snapshots view": Command(view, "[flags] <key> [<parent>]", PREPARE),
    "snapshots mounts": Command(mounts, "<target> <key>"),
    "snapshots commit": Command(commit, "<key> <active>"),
    "snapshots delete": Command(delete, "<key> [<key>, ...]"),
    "snapshots label": Command(label, "<name> [<label>=<value> ...]"),
    "snapshots usage": Command(usage, "[flags] [<key>, ...]", "b bool Sizes in bytes"),
    "snapshots diff": Command(
        diff,
        "[flags] <idA> [<idB>]",
        """
media-type  string=application/vnd.oci.image.layer.v1.tar+gzip  Kind of the layer
ref         string   Name of the upload
keep        bool     Keep the blob
label       strings  Label for the blob, KEY=VALUE
""",
    ),
    "snapshots unpack": Command(unpack, "[flags] <digest>", f"{GROUP_FLAGS['snapshots']}\n{SYNC_FS}"),
}
