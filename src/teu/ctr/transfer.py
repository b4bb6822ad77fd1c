# SPDX-License-Identifier: Apache-2.0
"""Images between registries, archives and containerd: pull, push, import, export, content fetch and push-object.

The registry is spoken to by `teu.oci.distribution`, archives are read and written by `teu.oci.archive`; blobs go
straight into containerd's content store and are unpacked there.

Three blobs are under way at once. One that broke off goes on where its ingest ends, as with ctr.
"""

from __future__ import annotations

import getpass
import http.client
import os
import ssl
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Literal

from teu.ctr import blobs
from teu.ctr.client import Client, content_pb2
from teu.ctr.commands import SNAPSHOTTER, Command, Ctr, need
from teu.ctr.errors import CommandError, NotFound
from teu.ctr.flags import REGISTRY, Options, labels
from teu.ctr.output import log
from teu.ctr.progress import Progress
from teu.oci import archive, distribution, image_spec, reference, registries, registry_hosts
from teu.oci import digest as digests
from teu.oci.labels import SOURCE, UNCOMPRESSED, keeping
from teu.oci.units import duration_text

DOWNLOADS = 3
OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable."


def credentials(options: Options) -> distribution.Credentials | None:
    if not options["user"] and not options["refresh"]:
        return None
    user, colon, password = options["user"].partition(":")
    if user and not colon and not options["refresh"]:
        password = getpass.getpass("Password: ")
    return distribution.Credentials(user, password, options["refresh"])


class Shown(distribution.Watch):
    """--http-dump and --http-trace: exchanges as lines of the log on standard error."""

    def __init__(self, dump: bool, trace: bool) -> None:
        self.dump = dump
        self.trace = trace

    def show(self, data: bytes) -> None:
        for line in data.decode("utf-8", "backslashreplace").splitlines():
            log("info", line)

    def connected(self, address: str, reused: bool) -> None:
        if self.trace:
            log("debug", "Connection successful", remote_addr=address, reused=str(reused).lower())

    def sent(self, head: str, body: bytes | None) -> None:
        if self.dump:
            self.show(head.encode() + (body or b""))

    def received(self, head: str, response: http.client.HTTPResponse) -> Any:
        if not self.dump:
            return response
        self.show(head.encode())
        return ShownBody(response, self)


class ShownBody:
    """An answer that is shown while it is read."""

    def __init__(self, response: http.client.HTTPResponse, shown: Shown) -> None:
        self.response = response
        self.shown = shown
        self.status, self.headers, self.isclosed = response.status, response.headers, response.isclosed

    def read(self, size: int = -1) -> bytes:
        data = self.response.read(size)
        if data:
            self.shown.show(data)
        return data


def check_tls(options: Options) -> tuple[tuple[str, str], ...]:
    """What --tlscert and --tlskey name; complains of files as ctr does, before anything is asked for."""
    authority, certificate, key = options["tlscacert"], options["tlscert"], options["tlskey"]
    if not (authority or certificate or key):
        return ()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority:
        try:
            context.load_verify_locations(authority)
        except ssl.SSLError:
            raise CommandError(f'failed to load TLS CAs from "{authority}": invalid data') from None
        except OSError as error:
            why = (error.strerror or "").lower()
            raise CommandError(f'failed to read "{authority}": open {authority}: {why}') from None
    if not (certificate or key):
        return ()
    if not (certificate and key):
        raise CommandError("flags --tlscert and --tlskey must be set together")
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        named = f'(cert="{certificate}", key="{key}")'
        missing = next((name for name in (certificate, key) if not os.path.exists(name)), "")
        why = f"open {missing}: no such file or directory" if missing else str(error)
        raise CommandError(f"failed to load TLS client credentials {named}: {why}") from None
    return ((certificate, key),)


def registry_for(ctr: Ctr, options: Options, parsed: reference.Reference) -> registries.Registries:
    pairs = check_tls(options)
    # the connections themselves are for those who debug, as with ctr
    trace = options["http-trace"] and ctr.options["debug"]
    wanted = distribution.Options(
        verify=not options["skip-verify"],
        authority=options["tlscacert"],
        pairs=pairs,
        watch=Shown(options["http-dump"], trace) if options["http-dump"] or trace else None,
    )
    try:
        return registries.opened(
            parsed.domain, credentials(options), wanted, options["hosts-dir"], options["plain-http"]
        )
    except (registry_hosts.HostsError, distribution.RegistryError, OSError) as error:
        raise CommandError(str(error)) from None


def parse_reference(text: str) -> reference.Reference:
    """ctr wants whole names: docker.io/library/busybox:latest."""
    first = text.partition("/")[0]
    if "/" not in text or not ("." in first or ":" in first or first == "localhost"):
        raise CommandError(
            f'failed to resolve reference "{text}": invalid reference: a whole name is needed, '
            f"as docker.io/library/{text.rpartition('/')[2]}"
        )
    try:
        return reference.parse(text)
    except reference.ReferenceError_ as error:
        raise CommandError(f'failed to resolve reference "{text}": {error}') from None


def part_name(descriptor: image_spec.Descriptor) -> str:
    kind = descriptor["mediaType"]
    if kind in image_spec.INDEXES:
        return f"index-{descriptor['digest']}"
    if kind in image_spec.MANIFESTS:
        return f"manifest-{descriptor['digest']}"
    return f"{'layer' if image_spec.is_layer(kind) else 'config'}-{descriptor['digest']}"


# What to bring: the chosen manifests with all that they name; besides the other manifests and configurations; or
# manifests and configurations alone.
Extent = Literal["image", "all-metadata", "metadata"]


class Fetcher:
    """Brings an image's parts from a registry into the content store, children before parents are labelled."""

    def __init__(
        self, client: Client, registry: registries.Registries, parsed: reference.Reference, status: Progress, jobs: int
    ) -> None:
        self.client = client
        self.registry = registry
        self.repository = parsed.path
        self.source = {f"{SOURCE}.{parsed.domain}": parsed.path}
        self.status = status
        self.jobs = jobs or DOWNLOADS

    def blob(self, descriptor: image_spec.Descriptor) -> None:
        name, size, digest = part_name(descriptor), descriptor["size"], descriptor["digest"]
        if blobs.kept(self.client, digest):
            self.status.set(name, "exists")
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

    def manifest(self, descriptor: image_spec.Descriptor) -> None:
        """A manifest or index itself, without its children."""
        name = part_name(descriptor)
        if blobs.kept(self.client, descriptor["digest"]):
            self.status.set(name, "exists")
            blobs.set_labels(self.client, descriptor["digest"], self.source)
        else:
            self.status.set(name, "waiting")
            _, data = self.registry.manifest(self.repository, descriptor["digest"])
            blobs.write(
                self.client,
                name,
                len(data),
                descriptor["digest"],
                lambda offset: [data[offset:]],
                self.source,
            )
            self.status.set(name, "done", descriptor["size"], descriptor["size"])

    def tree(
        self,
        descriptor: image_spec.Descriptor,
        wanted: Callable[[list[image_spec.Descriptor]], list[image_spec.Descriptor]],
        extent: Extent = "image",
    ) -> None:
        """All of an image: `wanted` picks the entries of an index whose layers are brought too."""
        self.manifest(descriptor)
        if descriptor["mediaType"] in image_spec.INDEXES:
            entries = image_spec.index(blobs.document(self.client, descriptor)).get("manifests") or []
            chosen = wanted(entries)
            if not chosen:
                raise NotFound("no manifest of the image fits this platform: not found")
            for entry in entries:
                if entry in chosen or extent != "image":
                    below = extent if entry in chosen else "metadata"
                    self.tree(image_spec.check_descriptor(entry, "index"), wanted, below)
            self.label(descriptor, entries)
            return
        manifest = image_spec.manifest(blobs.document(self.client, descriptor))
        parts = [manifest["config"], *([] if extent == "metadata" else manifest["layers"])]
        unique = {part["digest"]: part for part in parts}
        for part in unique.values():
            self.status.set(part_name(part), "waiting")
        with ThreadPoolExecutor(self.jobs) as pool:
            for result in [pool.submit(self.blob, part) for part in unique.values()]:
                result.result()
        self.label(descriptor, [manifest["config"], *manifest["layers"]])

    def label(self, descriptor: image_spec.Descriptor, below: list[image_spec.Descriptor]) -> None:
        blobs.set_labels(self.client, descriptor["digest"], blobs.reference_labels(descriptor, below))


def platform_choice(options: Options) -> Callable[[list[image_spec.Descriptor]], list[image_spec.Descriptor]]:
    if options["all-platforms"]:
        return lambda entries: entries
    wanted = [blobs.parse_platform(text) for text in options["platform"]] or [image_spec.host_platform()]
    return lambda entries: [entry for each in wanted for entry in image_spec.choose(entries, each)[:1]]


def resolve(registry: registries.Registries, parsed: reference.Reference, text: str) -> image_spec.Descriptor:
    wanted = parsed.digest or parsed.tag
    if not wanted:
        raise CommandError(f'failed to resolve reference "{text}": object required')
    try:
        return registry.resolve(parsed.path, wanted)
    except distribution.NotFound:
        raise NotFound(f'failed to resolve reference "{text}": {text}: not found') from None
    except distribution.RegistryError as error:
        raise CommandError(f'failed to resolve reference "{text}": {error}') from None


def fetch_image(ctr: Ctr, options: Options, text: str, extent: Extent = "image") -> image_spec.Descriptor:
    """Bring an image into the content store, showing how far it is; its target."""
    parsed = parse_reference(text)
    status = Progress()
    with registry_for(ctr, options, parsed) as registry, status.shown(ctr.options["debug"]):
        status.set(text, "resolving")
        target = resolve(registry, parsed, text)
        status.set(text, "resolved")
        fetcher = Fetcher(ctr.client, registry, parsed, status, options.get("max-concurrent-downloads", 0))
        try:
            fetcher.tree(target, platform_choice(options), extent)
        except (distribution.RegistryError, image_spec.SpecError) as error:
            raise CommandError(f"failed to fetch {text}: {error}") from None
    return target


def metadata(options: Options) -> Extent:
    """Of an index all manifests and configurations are brought, as since ctr 2.0, but where that is not wanted."""
    return "image" if options["skip-metadata"] and not options["all-metadata"] else "all-metadata"


def pull(ctr: Ctr, options: Options, operands: list[str]) -> None:
    text = need(operands, "please provide an image reference to pull")[0]
    client = ctr.client
    with client.leased():
        target = fetch_image(ctr, options, text, metadata(options))
        blobs.put_image(client, text, target, labels(options["label"]))
        started = time.monotonic_ns()
        wanted = blobs.platforms(client, target) if options["all-platforms"] else options["platform"]
        for platform in wanted or [str(image_spec.host_platform())]:
            ctr.print(f"unpacking {platform} {target['digest']}...")
            sys.stdout.flush()
            _, manifest = blobs.manifests(client, target, platform)[0]
            chain = blobs.unpack(client, manifest, options["snapshotter"], options["sync-fs"])
            if options["print-chainid"]:
                ctr.print(f"image chain ID: {chain}")
    ctr.print(f"done: {duration_text(time.monotonic_ns() - started)}\t")


def fetch(ctr: Ctr, options: Options, operands: list[str]) -> None:
    text = need(operands, "image ref")[0]
    extent = "metadata" if options["metadata-only"] else metadata(options)
    with ctr.client.leased():
        target = fetch_image(ctr, options, text, extent)
        blobs.put_image(ctr.client, text, target, labels(options["label"]))


def push(ctr: Ctr, options: Options, operands: list[str]) -> None:
    text = need(operands, "please provide a remote image reference to push")[0]
    target = push_target(ctr.client, options, operands[1] if len(operands) > 1 else text)
    parsed = parse_reference(text)
    status = Progress()
    with registry_for(ctr, options, parsed) as registry, status.shown(ctr.options["debug"]):
        try:
            upload = Upload(ctr.client, registry, parsed.path, options, status)
            upload.push_tree(target, parsed.tag or parsed.digest or "latest")
        except distribution.RegistryError as error:
            raise CommandError(f"failed to push {text}: {error}") from None


def push_target(client: Client, options: Options, name: str) -> image_spec.Descriptor:
    """The descriptor to push: of --manifest, else of the image `name` (or of its one --platform)."""
    if options["manifest"]:
        info = client.content.Info(content_pb2.InfoRequest(digest=options["manifest"])).info
        return {"mediaType": options["manifest-type"], "digest": info.digest, "size": info.size}
    try:
        target = blobs.as_json(blobs.get_image(client, name).target)
    except NotFound as error:
        raise NotFound(f"unable to resolve image to manifest: {error.text}") from None
    if len(options["platform"]) == 1:
        target = blobs.manifests(client, target, options["platform"][0])[0][0]
    return target


class Upload:
    """Pushes descriptors to one repository (`path`) of a registry, each after what it refers to."""

    def __init__(
        self, client: Client, registry: registries.Registries, path: str, options: Options, status: Progress
    ) -> None:
        self.client = client
        self.registry = registry
        self.path = path
        self.status = status
        self.foreign_too = options["allow-non-distributable-blobs"]
        self.threads = options["max-concurrent-uploaded-layers"] or DOWNLOADS

    def push_tree(self, descriptor: image_spec.Descriptor, name: str) -> None:
        """An index or a manifest with all below it, under the tag or digest `name`."""
        self.status.set(part_name(descriptor), "waiting")
        is_index = descriptor["mediaType"] in image_spec.INDEXES
        below = blobs.children(self.client, descriptor)
        if not self.foreign_too:
            below = [child for child in below if not is_foreign(child)]
        kept = [child for child in below if blobs.exists(self.client, child["digest"])]
        if len(kept) < len(below) and not is_index:
            raise CommandError(f"content of {descriptor['digest']} is not whole: not found")
        if len(kept) < len(below):
            raise CommandError("parts of the index are not at hand: use --platform to push one manifest")
        if is_index:
            for child in kept:
                self.push_tree(child, child["digest"])
        else:
            self.push_blobs(list({child["digest"]: child for child in kept}.values()))
        data = b"".join(blobs.read(self.client, descriptor["digest"]))
        self.registry.put_manifest(self.path, name, descriptor["mediaType"], data)
        self.status.set(part_name(descriptor), "done", descriptor["size"], descriptor["size"])

    def push_blobs(self, descriptors: list[image_spec.Descriptor]) -> None:
        for descriptor in descriptors:
            self.status.set(part_name(descriptor), "waiting")
        with ThreadPoolExecutor(self.threads) as pool:
            for result in [pool.submit(self.push_blob, descriptor) for descriptor in descriptors]:
                result.result()

    def push_blob(self, descriptor: image_spec.Descriptor) -> None:
        name, size, digest = part_name(descriptor), descriptor["size"], descriptor["digest"]
        if not self.registry.has_blob(self.path, digest):

            def content() -> Iterator[bytes]:
                offset = 0
                for piece in blobs.read(self.client, digest):
                    offset += len(piece)
                    self.status.set(name, "uploading", offset, size)
                    yield piece

            self.status.set(name, "uploading", 0, size)
            self.registry.upload(self.path, descriptor, content)
        self.status.set(name, "done", size, size)


# Archives --------------------------------------------------------------------------------------------------


def gzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    machine = zlib.compressobj(6, zlib.DEFLATED, 31)
    for piece in pieces:
        if data := machine.compress(piece):
            yield data
    yield machine.flush()


class ContentSink:
    """Where `archive.read` puts blobs: the content store."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.count = 0

    def store(self, stream: archive.Stream, size: int, expected: str, name: str) -> str:
        digester = digests.Digester()

        def pieces(offset: int) -> Iterator[bytes]:
            position = 0
            while data := stream.read(blobs.CHUNK):
                digester.update(data)
                if position + len(data) > offset:
                    yield data[max(offset - position, 0) :]
                position += len(data)

        self.count += 1
        if expected and blobs.kept(self.client, expected):
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
    """Whole names as the archive has them; bare tags get a name before them."""
    base, digest = options["base-name"], image.target["digest"]
    prefix = base or "import-" + time.strftime("%Y-%m-%d")
    names = [name if "/" in name else f"{prefix}:{name.rpartition(':')[2]}" for name in image.names]
    if options["digests"] and not (names and options["skip-digest-for-named"]):
        names.append(f"{prefix}@{digest}")
    return names


def import_images(ctr: Ctr, options: Options, operands: list[str]) -> None:
    path = [*operands, ""][0]
    if options["skip-digest-for-named"] and not options["digests"]:
        raise CommandError("--skip-digest-for-named must be specified with --digests option")
    if options["discard-unpacked-layers"] and options["no-unpack"]:
        raise CommandError("--discard-unpacked-layers and --no-unpack are incompatible options")
    client, given = ctr.client, labels(options["label"]) if options["label"] else None
    source: BinaryIO = sys.stdin.buffer
    if path != "-":
        try:
            source = open(path, "rb")
        except OSError as error:
            raise CommandError(f"open {path}: {(error.strerror or '').lower()}") from None
    with client.leased():
        found = read_archive(client, source, path, options["compress-blobs"])
        if options["index-name"]:
            blobs.put_image(client, options["index-name"], index_of(client, [image.target for image in found]), given)
        for image in found:
            for name in import_names(image, options):
                blobs.put_image(client, name, image.target, given)
                if not options["no-unpack"]:
                    unpack_imported(ctr, options, name, image.target)


def read_archive(client: Client, source: BinaryIO, path: str, compressed: bool) -> list[archive.ArchiveImage]:
    """Store the blobs of an archive, with labels that say what refers to what. `compressed`: layers as gzip."""

    def compress(digest: str) -> tuple[str, int]:
        name = "compress-blob-" + digest.replace(":", "-")
        kept = {UNCOMPRESSED: digest}
        return blobs.write_unknown(client, name, gzipped(blobs.read(client, digest)), kept)

    try:
        found = archive.read(source, ContentSink(client), compress if compressed else None)
    except (archive.ArchiveError, image_spec.SpecError) as error:
        raise CommandError(f"{path}: {error}") from None
    if not found:
        raise CommandError(f"{path} has no images")
    for image in found:
        for descriptor in reversed(list(blobs.walk(client, image.target))):
            below = blobs.children(client, descriptor) if is_parent(descriptor) else []
            if below:
                blobs.set_labels(client, descriptor["digest"], blobs.reference_labels(descriptor, below))
    return found


def unpack_imported(ctr: Ctr, options: Options, name: str, target: image_spec.Descriptor) -> None:
    client = ctr.client
    sys.stdout.write(f"unpacking {name} ({target['digest']})...")
    sys.stdout.flush()
    descriptor, manifest = blobs.manifests(client, target, options["platform"])[0]
    blobs.unpack(client, manifest, options["snapshotter"], options["sync-fs"])
    if options["discard-unpacked-layers"]:
        references = blobs.reference_labels(descriptor, [manifest["config"], *manifest["layers"]])
        blobs.set_labels(client, descriptor["digest"], {key: "" for key in references if ".l." in key})
    ctr.print("done")


def index_of(client: Client, targets: list[image_spec.Descriptor]) -> image_spec.Descriptor:
    """An index of all that an archive has, stored."""
    unique = list({target["digest"]: target for target in targets}.values())
    data = image_spec.encode({"schemaVersion": 2, "mediaType": image_spec.OCI_INDEX, "manifests": unique})
    kept = keeping(manifests=unique)
    return {"mediaType": image_spec.OCI_INDEX, "digest": blobs.store(client, data, kept), "size": len(data)}


def is_parent(descriptor: image_spec.Descriptor) -> bool:
    return descriptor["mediaType"] in image_spec.INDEXES or descriptor["mediaType"] in image_spec.MANIFESTS


def is_foreign(descriptor: image_spec.Descriptor) -> bool:
    """A layer that its maker alone hands out."""
    kind: str = descriptor["mediaType"]
    return kind.startswith((image_spec.DOCKER_LAYER.replace(".diff", ".foreign.diff"), OCI_FOREIGN))


def export(ctr: Ctr, options: Options, operands: list[str]) -> None:
    out, *names = need(operands, *["please provide both an output filename and an image reference to export"] * 2)
    client = ctr.client
    images = []
    for name in names:
        target = blobs.as_json(blobs.get_image(client, name).target)
        platform = options["platform"][0] if options["platform"] else ""
        if not options["all-platforms"]:
            target = blobs.manifests(client, target, platform)[0][0]
        below = [part for part in blobs.walk(client, target) if part["digest"] != target["digest"]]
        if options["skip-non-distributable"]:
            below = [part for part in below if not is_foreign(part)]
        missing = [part for part in below if not blobs.exists(client, part["digest"])]
        if missing:
            raise NotFound(f"content {missing[0]['digest']}: not found")
        _, manifest = blobs.manifests(client, target, platform)[0]
        unique = list({part["digest"]: part for part in below}.values())
        layers = [layer["digest"] for layer in manifest["layers"]]
        images.append(archive.ExportImage([name], target, unique, manifest["config"]["digest"], layers))

    def content(digest: str) -> Iterable[bytes]:
        return blobs.read(client, digest)

    for_docker = not options["skip-manifest-json"]
    if out == "-":
        for piece in archive.write(images, content, for_docker):
            sys.stdout.buffer.write(piece)
        return
    temporary = f"{out}.{os.getpid()}.part"
    try:
        with open(temporary, "wb") as file:
            for piece in archive.write(images, content, for_docker):
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
    with registry_for(ctr, options, parsed) as registry:
        try:
            _, data = registry.manifest(parsed.path, parsed.digest or parsed.tag)
        except distribution.NotFound:
            raise NotFound(f"{text}: not found") from None
        except distribution.RegistryError as error:
            raise CommandError(f'failed to resolve reference "{text}": {error}') from None
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def fetch_blob(ctr: Ctr, options: Options, operands: list[str]) -> None:
    text, *wanted = need(operands, "must specify digests", "must specify digests")
    parsed = parse_reference(text)
    with registry_for(ctr, options, parsed) as registry:
        for digest in wanted:
            try:
                answer = registry.open_blob(parsed.path, digest, options["media-type"])
                while data := answer.response.read(blobs.CHUNK):
                    sys.stdout.buffer.write(data)
            except distribution.RegistryError as error:
                raise CommandError(f"failed to fetch {digest}: {error}") from None
    sys.stdout.buffer.flush()


def push_object(ctr: Ctr, options: Options, operands: list[str]) -> None:
    text, digest, kind = [*operands, "", "", ""][:3]
    try:
        digests.check(digest)
    except digests.DigestError:
        raise CommandError("invalid checksum digest format") from None
    need(operands, "remote ref", "object", "type")
    parsed = parse_reference(text)
    info: Any = ctr.client.content.Info(content_pb2.InfoRequest(digest=digest)).info
    descriptor: image_spec.Descriptor = {"mediaType": kind, "digest": digest, "size": info.size}
    with registry_for(ctr, options, parsed) as registry:
        try:
            if is_parent(descriptor):
                data = b"".join(blobs.read(ctr.client, digest))
                registry.put_manifest(parsed.path, parsed.tag or digest, kind, data)
            elif not registry.has_blob(parsed.path, digest):
                registry.upload(parsed.path, descriptor, lambda: blobs.read(ctr.client, digest))
        except distribution.RegistryError as error:
            raise CommandError(f"failed to push {digest}: {error}") from None
    ctr.print(f"Pushed {digest} {kind}")


SNAPSHOTTER_FLAG = f"snapshotter string={SNAPSHOTTER} Snapshotter [$CONTAINERD_SNAPSHOTTER]\n"
PLATFORMS = """
platform       strings  Platform, OS/ARCH[/VARIANT]
all-platforms  bool     All platforms
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
skip-metadata  bool     Only the manifests of the platforms that are pulled
all-metadata   bool     The manifests of all platforms, which are pulled anyway
print-chainid  bool     Print the name of the topmost snapshot
sync-fs        bool     Each layer is on the disk before the next one is unpacked
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
platform       strings  Push the manifest of this platform
max-concurrent-uploaded-layers  int  So many layers at once
local          bool    Accepted for ctr's sake
allow-non-distributable-blobs  bool  Push layers too that only their maker is to hand out
""",
    ),
    "images import": Command(
        import_images,
        "[flags] <in>",
        SNAPSHOTTER_FLAG
        + """
platform       string  Platform, OS/ARCH[/VARIANT]
all-platforms  bool    All platforms
base-name      string  Only images of this name, and the name for tags without one
digests        bool    Make images named by their digests too
skip-digest-for-named  bool  But not for those that have a name
index-name     string  Make an image of this name of all that the archive has
no-unpack      bool    Do not unpack
local          bool    Accepted for ctr's sake
compress-blobs bool    Compress layers without compression, of archives in docker's form
discard-unpacked-layers  bool  Do not keep the layers once they are unpacked
sync-fs        bool    Each layer is on the disk before the next one is unpacked
label          strings Label for the images, KEY=VALUE
""",
    ),
    "images export": Command(
        export,
        "[flags] <out> <image> ...",
        PLATFORMS
        + """
skip-manifest-json         bool  Without docker's manifest.json: an OCI layout alone
skip-non-distributable     bool  Without layers that only their maker is to hand out
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
skip-metadata  bool     Only the manifests of the platforms that are fetched
all-metadata   bool     The manifests of all platforms, which are fetched anyway
metadata-only  bool     No layers
""",
    ),
    "content fetch-object": Command(fetch_object, "[flags] <remote>", REGISTRY),
    "content fetch-blob": Command(
        fetch_blob,
        "[flags] <remote> [<digest>, ...]",
        REGISTRY + "media-type string Ask the registry for this type\n",
    ),
    "content push-object": Command(push_object, "[flags] <remote> <object> <type>", REGISTRY),
}
