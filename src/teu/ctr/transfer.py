# SPDX-License-Identifier: Apache-2.0
"""Images between registries, archives and containerd: pull, push, import, export, content fetch and push-object.

The registry is spoken to by `teu.oci.distribution`, archives are read and written by `teu.oci.archive`; blobs go
straight into containerd's content store and are unpacked there."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

from teu.ctr import blobs
from teu.ctr.blobs import Json
from teu.ctr.client import Client, content_pb2
from teu.ctr.errors import CommandError, NotFound
from teu.ctr.flags import Options, labels
from teu.ctr.main import SNAPSHOTTER, Command, Ctr, need
from teu.ctr.output import binary
from teu.oci import archive, distribution, image_spec, reference

DOWNLOADS = 3
WIDTH = 38
CLEAR_LINE = "\x1b[2K\r"


class Status:
    """The lines of progress: on a terminal drawn again as parts advance, else written once when a part is done."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[str, int, int]] = {}
        self.lock = threading.Lock()
        self.started = time.monotonic()
        self.terminal = os.isatty(1)
        self.drawn = 0
        self.last = 0.0

    def set(self, name: str, state: str, offset: int = 0, total: int = 0) -> None:
        with self.lock:
            before = self.parts.get(name)
            self.parts[name] = (state, offset, total)
            if not self.terminal:
                if state in ("done", "exists", "resolved") and (before is None or before[0] != state):
                    sys.stdout.write(self.line(name) + "\n")
                return
            now = time.monotonic()
            if now - self.last > 0.1 or (before is not None and before[0] != state):
                self.last = now
                self.draw()

    def line(self, name: str) -> str:
        state, offset, total = self.parts[name]
        share = min(offset / total, 1.0) if total else 1.0 if state in ("done", "exists", "resolved") else 0.0
        bar = ("+" * int(share * WIDTH)).ljust(WIDTH, "-")
        size = f" {binary(offset)}/{binary(total)}" if total and state == "downloading" else ""
        return f"{name + ':':<84} {state:<14} |{bar}|{size}"

    def draw(self) -> None:
        text = f"\x1b[{self.drawn}A" if self.drawn else ""
        for name in self.parts:
            text += CLEAR_LINE + self.line(name) + "\n"
        seconds = time.monotonic() - self.started
        done = sum(offset for _, offset, _ in self.parts.values())
        text += (
            CLEAR_LINE + f"elapsed: {seconds:<4.1f}s total: {binary(done)} ({binary(done / max(seconds, 0.001))}/s)\n"
        )
        self.drawn = len(self.parts) + 1
        sys.stdout.write(text)
        sys.stdout.flush()

    def finish(self) -> None:
        if self.terminal:
            with self.lock:
                self.draw()


def credentials(options: Options) -> distribution.Credentials | None:
    if not options["user"] and not options["refresh"]:
        return None
    user, colon, password = options["user"].partition(":")
    if user and not colon and not options["refresh"]:
        import getpass

        password = getpass.getpass("Password: ")
    return distribution.Credentials(user, password, options["refresh"])


def registry_for(options: Options, parsed: reference.Reference) -> distribution.Registry:
    insecure = (parsed.domain,) if options["plain-http"] or options["skip-verify"] else ()
    certs = options["hosts-dir"] or distribution.CERTS_DIRECTORY
    return distribution.Registry(
        parsed.domain, credentials(options), distribution.Options(insecure=insecure, certs=certs)
    )


def parse_reference(text: str) -> reference.Reference:
    """ctr wants whole names: docker.io/library/busybox:latest."""
    first = text.partition("/")[0]
    if "/" not in text or not ("." in first or ":" in first or first == "localhost"):
        raise CommandError(f'failed to resolve reference "{text}": invalid reference: a whole name is needed, '
                           f"as docker.io/library/{text.rpartition('/')[2]}")  # fmt: skip
    try:
        return reference.parse(text)
    except reference.ReferenceError_ as error:
        raise CommandError(f'failed to resolve reference "{text}": {error}') from None


def part_name(descriptor: Json) -> str:
    kind = descriptor["mediaType"]
    if kind in image_spec.INDEXES:
        return f"index-{descriptor['digest']}"
    if kind in image_spec.MANIFESTS:
        return f"manifest-{descriptor['digest']}"
    return f"{'layer' if image_spec.is_layer(kind) else 'config'}-{descriptor['digest']}"


class Fetcher:
    """Brings an image's parts from a registry into the content store, children before parents are labelled."""

    def __init__(
        self, client: Client, registry: distribution.Registry, parsed: reference.Reference, status: Status, jobs: int
    ) -> None:
        self.client = client
        self.registry = registry
        self.repository = parsed.path
        self.source = {f"containerd.io/distribution.source.{parsed.domain}": parsed.path}
        self.status = status
        self.jobs = jobs or DOWNLOADS

    def blob(self, descriptor: Json) -> None:
        name, size, digest = part_name(descriptor), descriptor["size"], descriptor["digest"]
        if blobs.exists(self.client, digest):
            self.status.set(name, "exists", size, size)
            blobs.set_labels(self.client, digest, self.source)
            return
        self.status.set(name, "downloading", 0, size)

        def pieces(offset: int) -> Iterator[bytes]:
            for piece in self.registry.blob(self.repository, descriptor, offset):
                offset += len(piece)
                self.status.set(name, "downloading", offset, size)
                yield piece

        blobs.write(self.client, name, size, digest, pieces, self.source)
        self.status.set(name, "done", size, size)

    def manifest(self, descriptor: Json) -> None:
        """A manifest or index itself, without its children."""
        if not blobs.exists(self.client, descriptor["digest"]):
            _, data = self.registry.manifest(self.repository, descriptor["digest"])
            blobs.write(
                self.client, part_name(descriptor), len(data), descriptor["digest"], lambda offset: [data[offset:]],
                self.source,
            )  # fmt: skip
        self.status.set(part_name(descriptor), "done", descriptor["size"], descriptor["size"])

    def tree(self, descriptor: Json, wanted: Callable[[list[Json]], list[Json]], metadata_only: bool = False) -> None:
        """All of an image: `wanted` picks the entries of an index."""
        self.manifest(descriptor)
        if descriptor["mediaType"] in image_spec.INDEXES:
            entries = image_spec.index(blobs.document(self.client, descriptor)).get("manifests") or []
            chosen = wanted(entries)
            if not chosen:
                raise NotFound("no manifest of the image fits this platform: not found")
            for entry in chosen:
                self.tree(image_spec.check_descriptor(entry, "index"), wanted, metadata_only)
            self.label(descriptor, entries)
            return
        manifest = image_spec.manifest(blobs.document(self.client, descriptor))
        parts = [manifest["config"], *([] if metadata_only else manifest["layers"])]
        unique = {part["digest"]: part for part in parts}
        with ThreadPoolExecutor(self.jobs) as pool:
            for result in [pool.submit(self.blob, part) for part in unique.values()]:
                result.result()
        self.label(descriptor, [manifest["config"], *manifest["layers"]])

    def label(self, descriptor: Json, below: list[Json]) -> None:
        blobs.set_labels(self.client, descriptor["digest"], blobs.reference_labels(descriptor, below))


def platform_choice(options: Options) -> Callable[[list[Json]], list[Json]]:
    if options["all-platforms"]:
        return lambda entries: entries
    wanted = image_spec.parse_platform(options["platform"]) if options["platform"] else image_spec.host_platform()
    return lambda entries: image_spec.choose(entries, wanted)[:1]


def resolve(registry: distribution.Registry, parsed: reference.Reference, text: str) -> Json:
    wanted = parsed.digest or parsed.tag
    if not wanted:
        raise CommandError(f'failed to resolve reference "{text}": object required')
    try:
        return registry.resolve(parsed.path, wanted) or registry.manifest(parsed.path, wanted)[0]
    except distribution.NotFound:
        raise NotFound(f'failed to resolve reference "{text}": {text}: not found') from None
    except distribution.RegistryError as error:
        raise CommandError(f'failed to resolve reference "{text}": {error}') from None


def fetch_image(ctr: Ctr, options: Options, text: str, metadata_only: bool = False) -> tuple[Json, Status]:
    parsed = parse_reference(text)
    status = Status()
    with registry_for(options, parsed) as registry:
        status.set(text, "resolving")
        target = resolve(registry, parsed, text)
        status.set(text, "resolved")
        fetcher = Fetcher(ctr.client, registry, parsed, status, options.get("max-concurrent-downloads", 0))
        try:
            fetcher.tree(target, platform_choice(options), metadata_only)
        except (distribution.RegistryError, image_spec.SpecError) as error:
            raise CommandError(f"failed to fetch {text}: {error}") from None
    status.finish()
    return target, status


def pull(ctr: Ctr, options: Options, operands: list[str]) -> None:
    text = need(operands, "image ref")[0]
    client = ctr.client
    started = time.monotonic()
    with client.leased():
        target, _ = fetch_image(ctr, options, text)
        blobs.put_image(client, text, target, labels(options["label"]))
        if options["all-platforms"]:
            chosen = blobs.manifests(client, target)[:1] if not options["platform"] else []
        else:
            chosen = blobs.manifests(client, target, options["platform"])[:1]
        for descriptor, manifest in chosen:
            where = options["platform"] or str(image_spec.host_platform())
            ctr.print(f"unpacking {where} {descriptor['digest']}...")
            sys.stdout.flush()
            chain = blobs.unpack(client, manifest, options["snapshotter"])
            if options["print-chainid"]:
                ctr.print(f"image chain ID: {chain}")
    ctr.print(f"done: {(time.monotonic() - started) * 1000:.6f}ms\t")


def fetch(ctr: Ctr, options: Options, operands: list[str]) -> None:
    text = need(operands, "image ref")[0]
    with ctr.client.leased():
        target, _ = fetch_image(ctr, options, text, options["metadata-only"])
        blobs.put_image(ctr.client, text, target, labels(options["label"]))


def push(ctr: Ctr, options: Options, operands: list[str]) -> None:
    text = need(operands, "remote image ref")[0]
    local = operands[1] if len(operands) > 1 else text
    client = ctr.client
    if options["manifest"]:
        info = client.content.Info(content_pb2.InfoRequest(digest=options["manifest"])).info
        target = {"mediaType": options["manifest-type"], "digest": info.digest, "size": info.size}
    else:
        try:
            target = blobs.as_json(blobs.get_image(client, local).target)
        except NotFound as error:
            raise NotFound(f"unable to resolve image to manifest: {error.text}") from None
        if options["platform"]:
            target = blobs.manifests(client, target, options["platform"])[0][0]
    parsed = parse_reference(text)
    status = Status()
    started = time.monotonic()
    with registry_for(options, parsed) as registry:

        def upload(descriptor: Json) -> None:
            name, size, digest = part_name(descriptor), descriptor["size"], descriptor["digest"]
            if registry.has_blob(parsed.path, digest):
                status.set(name, "exists", size, size)
                return

            def content() -> Iterator[bytes]:
                offset = 0
                for piece in blobs.read(client, digest):
                    offset += len(piece)
                    status.set(name, "uploading", offset, size)
                    yield piece

            status.set(name, "uploading", 0, size)
            registry.upload(parsed.path, descriptor, content)
            status.set(name, "done", size, size)

        def tree(descriptor: Json, name: str) -> None:
            below = blobs.children(client, descriptor)
            kept = [child for child in below if blobs.exists(client, child["digest"])]
            if len(kept) < len(below) and descriptor["mediaType"] not in image_spec.INDEXES:
                raise CommandError(f"content of {descriptor['digest']} is not whole: not found")
            if len(kept) < len(below):
                raise CommandError("parts of the index are not at hand: use --platform to push one manifest")
            if descriptor["mediaType"] in image_spec.INDEXES:
                for child in kept:
                    tree(child, child["digest"])
            else:
                unique = {child["digest"]: child for child in kept}
                with ThreadPoolExecutor(options["max-concurrent-uploaded-layers"] or DOWNLOADS) as pool:
                    for result in [pool.submit(upload, child) for child in unique.values()]:
                        result.result()
            data = b"".join(blobs.read(client, descriptor["digest"]))
            registry.put_manifest(parsed.path, name, descriptor["mediaType"], data)
            status.set(part_name(descriptor), "done", descriptor["size"], descriptor["size"])

        try:
            tree(target, parsed.tag or parsed.digest or "latest")
        except distribution.RegistryError as error:
            raise CommandError(f"failed to push {text}: {error}") from None
    status.finish()
    ctr.print(f"done: {(time.monotonic() - started) * 1000:.6f}ms\t")


# Archives --------------------------------------------------------------------------------------------------


class ContentSink:
    """Where `archive.read` puts blobs: the content store."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.count = 0

    def store(self, stream: archive.Stream, size: int, expected: str, name: str) -> str:
        from teu.oci import digest as digests

        digester = digests.Digester()

        def pieces(offset: int) -> Iterator[bytes]:
            position = 0
            while data := stream.read(blobs.CHUNK):
                digester.update(data)
                if position + len(data) > offset:
                    yield data[max(offset - position, 0) :]
                position += len(data)

        self.count += 1
        if expected and blobs.exists(self.client, expected):
            while stream.read(blobs.CHUNK):
                pass
            return expected
        blobs.write(self.client, f"import-{os.getpid()}-{time.time_ns()}-{self.count}", size, expected, pieces)
        digest = digester.digest()
        if expected and digest != expected:
            raise archive.ArchiveError(f"{name} has the digest {digest}, {expected} was expected")
        return digest

    def read(self, digest: str) -> bytes:
        return b"".join(blobs.read(self.client, digest))


def import_names(image: archive.ArchiveImage, options: Options) -> list[str]:
    base, digest = options["base-name"], image.target["digest"]
    names = list(image.names)
    if base:
        names = [name for name in names if name.rpartition(":")[0] == base or name.startswith(base)] or [
            f"{base}:{name.rpartition(':')[2]}" for name in names if "/" not in name
        ]
    if options["digests"] and not (names and options["skip-digest-for-named"]):
        names.append(f"{base or 'import-' + time.strftime('%Y-%m-%d')}@{digest}")
    return names


def import_images(ctr: Ctr, options: Options, operands: list[str]) -> None:
    path = need(operands, "archive")[0]
    client = ctr.client
    source: BinaryIO = sys.stdin.buffer
    if path != "-":
        try:
            source = open(path, "rb")
        except OSError as error:
            raise CommandError(f"open {path}: {(error.strerror or '').lower()}") from None
    with client.leased():
        try:
            found = archive.read(source, ContentSink(client))
        except (archive.ArchiveError, image_spec.SpecError) as error:
            raise CommandError(f"{path}: {error}") from None
        if not found:
            raise CommandError(f"{path} has no images")
        for image in found:
            for descriptor in reversed(list(blobs.walk(client, image.target))):
                below = blobs.children(client, descriptor) if is_parent(descriptor) else []
                if below:
                    wanted = blobs.reference_labels(descriptor, below)
                    blobs.set_labels(client, descriptor["digest"], wanted)
            for name in import_names(image, options):
                blobs.put_image(client, name, image.target)
                if options["no-unpack"]:
                    continue
                sys.stdout.write(f"unpacking {name} ({image.target['digest']})...")
                sys.stdout.flush()
                _, manifest = blobs.manifests(client, image.target, options["platform"])[0]
                blobs.unpack(client, manifest, options["snapshotter"])
                ctr.print("done")


def is_parent(descriptor: Json) -> bool:
    return descriptor["mediaType"] in image_spec.INDEXES or descriptor["mediaType"] in image_spec.MANIFESTS


def export(ctr: Ctr, options: Options, operands: list[str]) -> None:
    out, *names = need(operands, *["please provide both an output filename and an image reference to export"] * 2)
    client = ctr.client
    images = []
    for name in names:
        target = blobs.as_json(blobs.get_image(client, name).target)
        if not options["all-platforms"]:
            target = blobs.manifests(client, target, options["platform"])[0][0]
        below = [part for part in blobs.walk(client, target) if part["digest"] != target["digest"]]
        missing = [part for part in below if not blobs.exists(client, part["digest"])]
        if missing:
            raise NotFound(f"content {missing[0]['digest']}: not found")
        _, manifest = blobs.manifests(client, target, options["platform"])[0]
        unique = list({part["digest"]: part for part in below}.values())
        layers = [layer["digest"] for layer in manifest["layers"]]
        images.append(archive.ExportImage([name], target, unique, manifest["config"]["digest"], layers))

    def content(digest: str) -> Iterable[bytes]:
        return blobs.read(client, digest)

    if out == "-":
        for piece in archive.write(images, content):
            sys.stdout.buffer.write(piece)
        return
    temporary = f"{out}.{os.getpid()}.part"
    try:
        with open(temporary, "wb") as file:
            for piece in archive.write(images, content):
                file.write(piece)
        os.replace(temporary, out)
    except OSError as error:
        raise CommandError(f"{out}: {(error.strerror or '').lower()}") from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


# Parts of images ---------------------------------------------------------------------------------------------


def fetch_object(ctr: Ctr, options: Options, operands: list[str]) -> None:
    text = need(operands, "image ref")[0]
    parsed = parse_reference(text)
    with registry_for(options, parsed) as registry:
        try:
            _, data = registry.manifest(parsed.path, parsed.digest or parsed.tag)
        except distribution.RegistryError as error:
            raise CommandError(f'failed to resolve reference "{text}": {error}') from None
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def fetch_blob(ctr: Ctr, options: Options, operands: list[str]) -> None:
    text, *wanted = need(operands, "image ref", "digest")
    parsed = parse_reference(text)
    with registry_for(options, parsed) as registry:
        for digest in wanted:
            try:
                answer = registry.request("GET", f"/v2/{parsed.path}/blobs/{digest}", registry.pull_scope(parsed.path))
                while data := answer.response.read(blobs.CHUNK):
                    sys.stdout.buffer.write(data)
            except distribution.RegistryError as error:
                raise CommandError(f"failed to fetch {digest}: {error}") from None
    sys.stdout.buffer.flush()


def push_object(ctr: Ctr, options: Options, operands: list[str]) -> None:
    text, digest, kind = need(operands, "remote ref", "object", "type")[:3]
    parsed = parse_reference(text)
    info: Any = ctr.client.content.Info(content_pb2.InfoRequest(digest=digest)).info
    descriptor: Json = {"mediaType": kind, "digest": digest, "size": info.size}
    with registry_for(options, parsed) as registry:
        try:
            if is_parent(descriptor):
                data = b"".join(blobs.read(ctr.client, digest))
                registry.put_manifest(parsed.path, parsed.tag or digest, kind, data)
            elif not registry.has_blob(parsed.path, digest):
                registry.upload(parsed.path, descriptor, lambda: blobs.read(ctr.client, digest))
        except distribution.RegistryError as error:
            raise CommandError(f"failed to push {digest}: {error}") from None
    ctr.print(f"Pushed {digest} {kind}")


REGISTRY = """
skip-verify,k  bool    Do not check certificates
plain-http     bool    Speak plain HTTP
user,u         string  USER[:PASSWORD] for the registry
refresh        string  Refresh token for the registry
hosts-dir      string  Folder with the certificates of registries
tlscacert      string  Accepted for ctr's sake: use --hosts-dir
tlscert        string  Accepted for ctr's sake: use --hosts-dir
tlskey         string  Accepted for ctr's sake: use --hosts-dir
http-dump      bool    Accepted for ctr's sake
http-trace     bool    Accepted for ctr's sake
"""
SNAPSHOTTER_FLAG = f"snapshotter string={SNAPSHOTTER} Snapshotter [$CONTAINERD_SNAPSHOTTER]\n"
PLATFORMS = """
platform       string  Platform, OS/ARCH[/VARIANT]
all-platforms  bool    All platforms
"""
COMMANDS = {
    "images pull": Command(
        pull,
        "[flags] <ref>",
        REGISTRY
        + SNAPSHOTTER_FLAG
        + PLATFORMS
        + """
label          strings  Label for the image, KEY=VALUE
all-metadata   bool     Accepted for ctr's sake
print-chainid  bool     Print the name of the topmost snapshot
max-concurrent-downloads  int  So many parts at once
local          bool     Accepted for ctr's sake
""",
    ),
    "images push": Command(
        push,
        "[flags] <remote> [<local>]",
        REGISTRY
        + """
manifest       string  Push this manifest
manifest-type  string=application/vnd.oci.image.manifest.v1+json  Its kind
platform       string  Push the manifest of this platform
max-concurrent-uploaded-layers  int  So many layers at once
local          bool    Accepted for ctr's sake
allow-non-distributable-blobs  bool  Accepted for ctr's sake
""",
    ),
    "images import": Command(
        import_images,
        "[flags] <in>",
        SNAPSHOTTER_FLAG
        + PLATFORMS
        + """
base-name      string  Only images of this name, and the name for tags without one
digests        bool    Make images named by their digests too
skip-digest-for-named  bool  But not for those that have a name
index-name     string  Accepted for ctr's sake
no-unpack      bool    Do not unpack
local          bool    Accepted for ctr's sake
compress-blobs bool    Accepted for ctr's sake
discard-unpacked-layers  bool  Accepted for ctr's sake
""",
    ),
    "images export": Command(
        export,
        "[flags] <out> <image> ...",
        PLATFORMS
        + """
skip-manifest-json         bool  Accepted for ctr's sake
skip-non-distributable     bool  Accepted for ctr's sake
local                      bool  Accepted for ctr's sake
""",
    ),
    "content fetch": Command(
        fetch,
        "[flags] <remote>",
        REGISTRY
        + PLATFORMS
        + """
label          strings  Label for the image, KEY=VALUE
all-metadata   bool     Accepted for ctr's sake
metadata-only  bool     No layers
""",
    ),
    "content fetch-object": Command(fetch_object, "[flags] <remote>", REGISTRY),
    "content fetch-blob": Command(fetch_blob, "[flags] <remote> [<digest>, ...]", REGISTRY),
    "content push-object": Command(push_object, "[flags] <remote> <object> <type>", REGISTRY),
}
