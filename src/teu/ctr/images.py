# SPDX-License-Identifier: Apache-2.0
"""Images: list, check, inspect, tag, label, delete, prune, usage, mount, unmount (the rest: `transfer`)."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from teu.ctr import blobs
from teu.ctr.client import Client, containers_pb2, content_pb2, go_time, snapshots_pb2
from teu.ctr.client import images_pb2 as pb
from teu.ctr.commands import SNAPSHOTTER, Command, Ctr, need
from teu.ctr.errors import AlreadyExists, CommandError, NotFound
from teu.ctr.flags import REGISTRY, Options
from teu.ctr.output import Failures, binary, label_text, log, table
from teu.oci import image_spec, reference
from teu.oci.labels import rooted

SNAPSHOTTER_FLAG = f"snapshotter string={SNAPSHOTTER} Snapshotter [$CONTAINERD_SNAPSHOTTER]\n"


def all_images(client: Client, filters: list[str]) -> list[Any]:
    found = client.images.List(pb.ListImagesRequest(filters=filters)).images
    return sorted(found, key=lambda image: str(image.name))


def total_size(client: Client, name: str, target: image_spec.Descriptor) -> int:
    """Of the manifest for this machine and all below it, as ctr counts. Where that is not at hand: of what is known of
    it, and a warning."""
    try:
        chosen, _ = blobs.manifests(client, target)[0]
    except (CommandError, image_spec.SpecError):
        missing, known = target, [target]
        try:
            if target["mediaType"] in image_spec.INDEXES:
                entries = blobs.document(client, target).get("manifests") or []
                known += image_spec.choose(entries, image_spec.host_platform())[:1]
                missing = known[-1]
        except (CommandError, image_spec.SpecError):
            pass
        if blobs.exists(client, missing["digest"]):
            return 0  # nothing of the image is for this machine
        told = f"content digest {missing['digest']}: not found"
        log("error", f"failed calculating size for image {name}", error=told)
        return sum(part["size"] for part in known)
    seen: dict[str, int] = {target["digest"]: target["size"]}
    for descriptor in blobs.walk(client, chosen):
        seen[descriptor["digest"]] = descriptor["size"]
    return sum(seen.values())


def list_images(ctr: Ctr, options: Options, operands: list[str]) -> None:
    client = ctr.client
    try:
        found = all_images(client, operands)
    except CommandError as error:
        raise type(error)(f"failed to list images: {error.text}") from None
    if options["quiet"]:
        for image in found:
            ctr.print(image.name)
        return
    rows = []
    for image in found:
        target = blobs.as_json(image.target)
        rows.append(
            (
                image.name,
                image.target.media_type,
                image.target.digest,
                binary(total_size(client, image.name, target)),
                ",".join(blobs.platforms(client, target)) or "-",
                label_text(image.labels) or "-",
            )
        )
    table([("REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"), *rows])


def check(ctr: Ctr, options: Options, operands: list[str]) -> None:
    client = ctr.client
    rows = []
    found = all_images(client, operands)
    if not found:
        return
    for image in found:
        target = blobs.as_json(image.target)
        status, complete = "complete", True
        try:
            _, manifest = blobs.manifests(client, target)[0]
        except (CommandError, image_spec.SpecError):
            status, size, complete = "unavailable (0/?)", "0.0 B/?", False
        else:
            required = [manifest["config"], *(manifest.get("layers") or [])]
            present = [part for part in required if blobs.exists(client, part["digest"])]
            if len(present) < len(required):
                status, complete = "incomplete", False
            status += f" ({len(present)}/{len(required)})"
            size = "/".join(binary(sum(part["size"] for part in parts)) for parts in (present, required))
        unpacked = complete and blobs.is_unpacked(client, target, options["snapshotter"])
        if options["quiet"]:
            if complete and unpacked:
                ctr.print(image.name)
            continue
        rows.append((image.name, image.target.media_type, image.target.digest, status, size, str(unpacked).lower()))
    if not options["quiet"]:
        table([("REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED"), *rows], last="headed")


def tag(ctr: Ctr, options: Options, operands: list[str]) -> None:
    asked = "please provide an image reference to tag"
    source, *targets = need(operands, f"{asked} from", f"{asked} to")
    client = ctr.client
    image = blobs.get_image(client, source)
    for name in targets:
        if not options["skip-reference-check"]:
            try:
                reference.parse(name)
            except reference.ReferenceError_ as error:
                told = f'error parsing reference: "{name}" is not a valid repository/tag {error}'
                raise CommandError(told) from None
        copy = pb.Image(name=name, target=image.target, labels=image.labels)
        try:
            client.images.Create(pb.CreateImageRequest(image=copy))
        except AlreadyExists:
            if not options["force"]:
                raise
            client.images.Delete(pb.DeleteImageRequest(name=name))
            client.images.Create(pb.CreateImageRequest(image=copy))
        ctr.print(name)


def inspect(ctr: Ctr, options: Options, operands: list[str]) -> None:
    """An image as a tree: what it is, and what each manifest, configuration and layer of it is."""
    image = blobs.get_image(ctr.client, [*operands, ""][0])
    ctr.print(image.name)
    for name, moment in (("Created", image.created_at), ("Updated", image.updated_at)):
        ctr.print(f"│    {name}: {go_time(moment)}")
    for key, value in sorted(image.labels.items()):
        ctr.print(f"│    Label {json.dumps(key)}: {json.dumps(value)}")
    _Tree(ctr, options["content"]).show(blobs.as_json(image.target), "└── ", "    ")


class _Tree:
    """What an image consists of, line by line. `content`: with labels, and with what is in documents."""

    def __init__(self, ctr: Ctr, content: bool) -> None:
        self._ctr = ctr
        self._content = content

    def show(self, target: image_spec.Descriptor, first: str, rest: str) -> None:
        """A manifest or an index and all below it; `first`, `rest`: before its first line, and before the others."""
        self._line(first, target)
        platform = target.get("platform") or {}
        if platform.get("architecture"):
            words = [str(platform.get(key) or "") for key in ("os", "architecture", "variant")]
            self._ctr.print(f"{rest}│    Platform: {'/'.join(filter(None, words))}")
        if not blobs.exists(self._ctr.client, target["digest"]):
            self._ctr.print(f"{rest}└──  Content does not exist locally, skipping")
            return
        self._inside(target, f"{rest}│   ")
        document = blobs.document(self._ctr.client, target)
        if target["mediaType"] in image_spec.INDEXES:
            entries = document.get("manifests") or []
            for number, entry in enumerate(entries, 1):
                last = number == len(entries)
                self.show(entry, rest + ("└── " if last else "├── "), rest + ("    " if last else "│   "))
        elif target["mediaType"] in image_spec.MANIFESTS:
            layers = document.get("layers") or []
            self._line(rest + ("├── " if layers else "└── "), document["config"])
            self._inside(document["config"], rest + ("│   " if layers else "    "))
            for number, layer in enumerate(layers, 1):
                self._line(rest + ("└── " if number == len(layers) else "├── "), layer)

    def _line(self, before: str, one: image_spec.Descriptor) -> None:
        self._ctr.print(f"{before}{one['mediaType']} @{one['digest']} ({one['size']} bytes)")

    def _inside(self, one: image_spec.Descriptor, before: str) -> None:
        if not self._content:
            return
        client = self._ctr.client
        labels = client.content.Info(content_pb2.InfoRequest(digest=one["digest"])).info.labels
        told = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(labels.items())]
        self._box("Labels─", before, told)
        if one["mediaType"].endswith("json"):
            found = json.loads(b"".join(blobs.read(client, one["digest"])))
            self._box("Content", before, json.dumps(found, indent=3, ensure_ascii=False).split("\n"))

    def _box(self, title: str, before: str, lines: list[str]) -> None:
        if lines:
            edge = "─" * 8
            middle = [f"{before}│{line}" for line in lines]
            self._ctr.print("\n".join([f"{before}┌{edge}{title}{edge}", *middle, f"{before}└{'─' * 23}"]))


def label(ctr: Ctr, options: Options, operands: list[str]) -> None:
    name = need(operands, "please specify an image")[0]
    wanted = {key: value for key, _, value in (word.partition("=") for word in operands[1:])}
    paths = ["labels"] if options["replace-all"] else ["labels." + key for key in wanted]
    image = pb.Image(name=name, labels=wanted)
    image.target.SetInParent()  # containerd 1.7 falls over without one, though the mask does not name it
    updated = ctr.client.images.Update(pb.UpdateImageRequest(image=image, update_mask=FieldMask(paths=paths))).image
    ctr.print(label_text(updated.labels))


def delete(ctr: Ctr, options: Options, operands: list[str]) -> None:
    failures = Failures()
    for number, name in enumerate(operands):
        last = number == len(operands) - 1
        try:
            ctr.client.images.Delete(pb.DeleteImageRequest(name=name, sync=options["sync"] and last))
        except NotFound:
            log("warning", f"{name}: image not found")
            continue
        except CommandError as error:
            failures.add(error, f"unable to delete {name}", f"unable to delete {name}: {error.text}")
            continue
        ctr.print(name)
    failures.end()


def prune(ctr: Ctr, options: Options, operands: list[str]) -> None:
    if not options["all"]:
        log("warning", "No images pruned. `image prune` requires --all to be specified.")
        return
    client = ctr.client
    used = {c.image for c in client.containers.List(containers_pb2.ListContainersRequest()).containers}
    doomed = [image.name for image in all_images(client, []) if image.name not in used]
    for number, name in enumerate(doomed):
        client.images.Delete(pb.DeleteImageRequest(name=name, sync=number == len(doomed) - 1))
        log("info", f"deleted image: {name}\n")


def usage(ctr: Ctr, options: Options, operands: list[str]) -> None:
    client, snapshotter = ctr.client, options["snapshotter"]
    name = need(operands, "image ref")[0]
    try:
        image = blobs.get_image(client, name)
    except NotFound as error:
        raise NotFound(f"failed to ensure if image {name} exists: {error.text}") from None
    target = blobs.as_json(image.target)
    _, manifest = blobs.manifests(client, target)[0]
    if not blobs.is_unpacked(client, target, snapshotter):
        raise CommandError(f"image {image.name} isn't unpacked in snapshotter {snapshotter}")
    chains = image_spec.chain_ids(blobs.image_config(client, manifest)["rootfs"]["diff_ids"])
    rows = []
    for chain in reversed(chains):
        found = client.snapshots.Usage(snapshots_pb2.UsageRequest(snapshotter=snapshotter, key=chain))
        rows.append((chain, binary(found.size), found.inodes))
    table([("KEY", "SIZE", "INODES"), *rows])


def mount_all(mounts: Any, target: str) -> None:
    """Mount what a snapshotter says; undone again when a part fails."""
    done: list[str] = []
    for mount in mounts:
        where = target + "/" + mount.target.lstrip("/") if mount.target else target
        argv = ["mount", "-t", mount.type, mount.source, where]
        if mount.type == "bind" or "bind" in mount.options or "rbind" in mount.options:
            argv = ["mount", mount.source, where]
        if mount.options:
            argv[1:1] = ["-o", ",".join(mount.options)]
        result = subprocess.run(argv, capture_output=True, text=True, check=False)
        if result.returncode:
            for path in reversed(done):
                subprocess.run(["umount", path], check=False)
            raise CommandError(f"failed to mount {mount.source} at {where}: {result.stderr.strip()}")
        done.append(where)
        if "ro" in mount.options and len(argv) and argv[1] == "-o" and argv[-2] == mount.source:
            subprocess.run(["mount", "-o", "remount,bind,ro", where], check=False)


def unmount_all(target: str) -> None:
    """All that is mounted there, one over the other."""
    while True:
        with open("/proc/self/mounts", encoding="utf-8") as table_file:
            if not any(line.split()[1] == target for line in table_file):
                return
        result = subprocess.run(["umount", target], capture_output=True, text=True, check=False)
        if result.returncode:
            raise CommandError(f"failed to unmount {target}: {result.stderr.strip()}")


def mount(ctr: Ctr, options: Options, operands: list[str]) -> None:
    name, target = need(
        operands, "please provide an image reference to mount", "please provide a target path to mount to"
    )[:2]
    client, snapshotter = ctr.client, options["snapshotter"]
    image = blobs.get_image(client, name)
    _, manifest = blobs.manifests(client, blobs.as_json(image.target), options["platform"])[0]
    with client.leased():
        chain = blobs.unpack(client, manifest, snapshotter, options["sync-fs"])
        prepare = client.snapshots.Prepare if options["rw"] else client.snapshots.View
        request = snapshots_pb2.PrepareSnapshotRequest if options["rw"] else snapshots_pb2.ViewSnapshotRequest
        labels = rooted()
        try:
            mounts = prepare(request(snapshotter=snapshotter, key=target, parent=chain, labels=labels)).mounts
        except AlreadyExists:
            mounts = client.snapshots.Mounts(snapshots_pb2.MountsRequest(snapshotter=snapshotter, key=target)).mounts
        try:
            mount_all(mounts, target)
        except CommandError:
            client.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=target))
            raise
    ctr.print(chain)
    ctr.print(target)


def unmount(ctr: Ctr, options: Options, operands: list[str]) -> None:
    target = need(operands, "please provide a target path to unmount from")[0]
    unmount_all(os.path.realpath(target))
    if options["rm"]:
        request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=options["snapshotter"], key=target)
        try:
            ctr.client.snapshots.Remove(request)
        except NotFound:
            pass
    ctr.print(target)


# ctr's mount and unmount have a registry's options, with which they do nothing.
UNUSED_REGISTRY = "".join(
    f"{line.split(None, 2)[0]} {line.split(None, 2)[1]} Accepted for ctr's sake\n"
    for line in REGISTRY.splitlines()
    if line
)
COMMANDS = {
    "images list": Command(list_images, "[flags] [<filter>, ...]", "quiet,q bool Print only the names"),
    "images check": Command(
        check, "[flags] [<filter>, ...]", SNAPSHOTTER_FLAG + "quiet,q bool Print only the names of ready images"
    ),
    "images tag": Command(
        tag,
        "[flags] <source_ref> <target_ref> [<target_ref>, ...]",
        """
force  bool  Let the name point to this image though it is taken
local  bool  Accepted for ctr's sake
skip-reference-check  bool  Take any name, also one that is no reference
""",
    ),
    "images inspect": Command(inspect, "<image> [flags]", "content bool Show labels, and what is in documents"),
    "images label": Command(label, "[flags] <name> [<key>=<value>, ...]", "replace-all,r bool Drop all other labels"),
    "images delete": Command(
        delete, "[flags] <ref> [<ref>, ...]", "sync bool Wait until the garbage collector has removed what it kept"
    ),
    "images prune": Command(prune, "[flags]", "all bool Remove all images that no container uses"),
    "images usage": Command(usage, "[flags] <ref>", SNAPSHOTTER_FLAG),
    "images mount": Command(
        mount,
        "[flags] <ref> <target>",
        UNUSED_REGISTRY
        + SNAPSHOTTER_FLAG
        + """
label     strings  Accepted for ctr's sake
rw        bool     Writable
platform  string   Platform, OS/ARCH[/VARIANT]
sync-fs   bool     Each layer is on the disk before the next one is unpacked
""",
    ),
    "images unmount": Command(
        unmount,
        "[flags] <target>",
        UNUSED_REGISTRY
        + SNAPSHOTTER_FLAG
        + """
label     strings  Accepted for ctr's sake
rm        bool     Remove the snapshot too
""",
    ),
}
