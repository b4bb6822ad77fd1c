# SPDX-License-Identifier: Apache-2.0
"""`manifest`: lists of manifests, made here and pushed to a registry. No daemon has a part in it.

CONFIG/manifests/LIST/MANIFEST      docker's own store: names with `:` as `-` and `/` as `_`; a file is JSON, {"Ref",
                                    "Descriptor", "Raw": base64, "SchemaV2Manifest" or "OCIManifest"}"""

from __future__ import annotations

import base64
import os

from teu.cli.command import Cli, Command
from teu.cli.config import registry_of
from teu.cli.errors import CommandError
from teu.cli.options import Options
from teu.oci import digest as digests
from teu.oci import jsontext
from teu.oci.distribution import Credentials, NotFound, Registry, RegistryError
from teu.oci.distribution import Options as Way
from teu.oci.reference import Reference, ReferenceError_, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
INDEX = "application/vnd.oci.image.index.v1+json"
KINDS = {
    "application/vnd.docker.distribution.manifest.v2+json": "SchemaV2Manifest",
    "application/vnd.oci.image.manifest.v1+json": "OCIManifest",
}
PLATFORM = ("architecture", "os", "os.version", "os.features", "variant", "features")
# What a list may name, by docker's rule.
SYSTEMS = {
    "darwin": ("386", "amd64", "arm", "arm64"),
    "dragonfly": ("amd64",),
    "freebsd": ("386", "amd64", "arm"),
    "linux": ("386", "amd64", "arm", "arm64", "ppc64le", "mips64", "mips64le", "riscv64", "s390x"),
    "netbsd": ("386", "amd64", "arm"),
    "openbsd": ("386", "amd64", "arm"),
    "plan9": ("386", "amd64"),
    "solaris": ("amd64",),
    "windows": ("386", "amd64"),
}


class Missing(CommandError):
    """There is no such manifest."""


def named(text: str) -> Reference:
    """A name with its tag or digest. Raises CommandError."""
    try:
        found = parse(text)
    except ReferenceError_ as error:
        raise CommandError(str(error)) from None
    return found if found.tag or found.digest else found._replace(tag="latest")


def whole(reference: Reference) -> str:
    text = reference.name + (f":{reference.tag}" if reference.tag else "")
    return f"{text}@{reference.digest}" if reference.digest else text


class Lists:
    """The lists below the folder of config.json."""

    def __init__(self, cli: Cli) -> None:
        self._root = cli.folder + "/manifests"

    def _folder(self, target: Reference) -> str:
        return f"{self._root}/{whole(target).replace(':', '-').replace('/', '_')}"

    def _path(self, target: Reference, manifest: Reference) -> str:
        return f"{self._folder(target)}/{whole(manifest).replace(':', '-').replace('/', '_')}"

    def read(self, target: Reference, manifest: Reference) -> dict[str, Any]:
        """One of a list. Raises Missing."""
        return self._load(self._path(target, manifest), whole(manifest))

    def _load(self, path: str, name: str) -> dict[str, Any]:
        try:
            with open(path, "rb") as file:
                found: dict[str, Any] = jsontext.loads(file.read(), exact=True)
            if not digests.is_digest(found["Descriptor"]["digest"]) or not isinstance(found["Ref"], str):
                raise ValueError("it has no digest")
            return found
        except FileNotFoundError:
            raise Missing(f"No such manifest: {name}") from None
        except OSError as error:
            raise CommandError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(f"{path} is no manifest of a list ({error}): remove it") from None

    def all(self, target: Reference) -> list[dict[str, Any]]:
        """All of a list, in the order of their files' names. Raises Missing."""
        try:
            names = sorted(os.listdir(self._folder(target)))
        except FileNotFoundError:
            raise Missing(f"No such manifest: {whole(target)}") from None
        return [self._load(f"{self._folder(target)}/{name}", name) for name in names]

    def write(self, target: Reference, manifest: Reference, entry: dict[str, Any]) -> None:
        path = self._path(target, manifest)
        try:
            os.makedirs(self._folder(target), 0o755, exist_ok=True)
            with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as file:
                file.write(jsontext.dumps(entry))
            os.replace(f"{path}.{os.getpid()}", path)
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror}") from None

    def remove(self, target: Reference) -> None:
        folder = self._folder(target)
        try:
            for name in os.listdir(folder):
                os.unlink(f"{folder}/{name}")
            os.rmdir(folder)
        except OSError as error:
            raise CommandError(f"cannot remove {folder}: {error.strerror}") from None


def registry(cli: Cli, domain: str, insecure: bool) -> Registry:
    """The registry of that name, with the user's credentials."""
    auth = cli.config.auth(registry_of(f"{domain}/x"))
    credentials = Credentials(
        auth.get("username", ""),
        auth.get("password", ""),
        auth.get("identitytoken", ""),
        auth.get("registrytoken", ""),
    )
    return Registry(domain, credentials, Way(insecure=(domain,) if insecure else ()))


def fetched(place: Registry, reference: Reference) -> tuple[dict[str, Any], bytes]:
    """(descriptor, bytes) of what a name stands for. Raises Missing, CommandError."""
    try:
        descriptor, data = place.manifest(reference.path, reference.digest or reference.tag)
    except NotFound:
        raise Missing(f"no such manifest: {whole(reference)}") from None
    return dict(descriptor), data


def entry_of(place: Registry, reference: Reference, descriptor: dict[str, Any], data: bytes) -> dict[str, Any]:
    """A manifest of one image, as the store has it; its platform is what its configuration says."""
    kind = KINDS.get(descriptor["mediaType"])
    if kind is None:
        what = "a manifest list" if descriptor["mediaType"] in (LIST, INDEX) else "not a manifest"
        raise CommandError(f"{whole(reference)} is {what}")
    manifest = jsontext.loads(data, exact=True)
    digester = digests.for_digest(manifest["config"]["digest"])
    config = b"".join(place.blob(reference.path, manifest["config"]))
    digester.update(config)
    if digester.digest() != manifest["config"]["digest"]:
        raise CommandError(f"image config verification failed for digest {manifest['config']['digest']}")
    said = jsontext.loads(config, exact=True)
    platform = {key: said[key] for key in PLATFORM if said.get(key)}
    return {
        "Ref": whole(reference),
        "Descriptor": {**descriptor, "platform": platform},
        "Raw": base64.b64encode(data).decode(),
        kind: manifest,
    }


def known(cli: Cli, target: Reference, reference: Reference, insecure: bool) -> dict[str, Any]:
    """A manifest that the list has already, else the registry's."""
    try:
        found = Lists(cli).read(target, reference)
        if found.get("Raw"):
            return found
    except Missing:
        pass
    with registry(cli, reference.domain, insecure) as place:
        return entry_of(place, reference, *fetched(place, reference))


def as_list(entries: list[dict[str, Any]], target: Reference) -> dict[str, Any]:
    """The list of these manifests, as it goes to the registry."""
    manifests = []
    for entry in entries:
        domain = named(entry["Ref"]).domain
        if domain != target.domain:
            raise CommandError(
                f"cannot use source images from a different registry than the target image: {domain} != {target.domain}"
            )
        descriptor = entry["Descriptor"]
        platform = descriptor.get("platform") or {}
        shown = {key: platform.get(key, "") for key in ("architecture", "os")}
        shown |= {key: platform[key] for key in PLATFORM[2:] if platform.get(key)}
        manifests.append({key: descriptor[key] for key in ("mediaType", "size", "digest")} | {"platform": shown})
    oci = bool(manifests) and KINDS.get(manifests[0]["mediaType"]) == "OCIManifest"
    return {"schemaVersion": 2, "mediaType": INDEX if oci else LIST, "manifests": manifests}


def create(cli: Cli, options: Options, operands: list[str]) -> int:
    target = named(operands[0])
    lists = Lists(cli)
    try:
        lists.all(target)
        if not options["amend"]:
            raise CommandError("refusing to amend an existing manifest list with no --amend flag")
    except Missing:
        pass
    for word in operands[1:]:
        reference = named(word)
        lists.write(target, reference, said(lambda each=reference: known(cli, target, each, options["insecure"])))
    cli.print(f"Created manifest list {whole(target)}")
    return 0


def said(action: Any) -> Any:
    """What a registry says, with its errors as ours."""
    try:
        return action()
    except RegistryError as error:
        raise CommandError(str(error)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(f"what the registry has there is no manifest: {error}") from None


def annotate(cli: Cli, options: Options, operands: list[str]) -> int:
    target, reference = named(operands[0]), named(operands[1])
    try:
        entry = Lists(cli).read(target, reference)
    except Missing:
        raise CommandError(f"manifest for image {operands[1]} does not exist in {operands[0]}") from None
    platform = entry["Descriptor"].setdefault("platform", {})
    for option, key in (("os", "os"), ("arch", "architecture"), ("variant", "variant"), ("os-version", "os.version")):
        if options[option]:
            platform[key] = options[option]
    features = [word for text in options["os-features"] for word in text.split(",") if word]
    if features:
        platform["os.features"] = list(dict.fromkeys([*(platform.get("os.features") or []), *features]))
    if platform.get("architecture") not in SYSTEMS.get(platform.get("os", ""), ()):
        pair = f"{options['os']}/{options['arch']}"
        raise CommandError(f"manifest entry for image has unsupported os/arch combination: {pair}")
    Lists(cli).write(target, reference, entry)
    return 0


def inspect(cli: Cli, options: Options, operands: list[str]) -> int:
    reference = named(operands[-1])
    lists = Lists(cli)
    if len(operands) > 1:
        show(cli, lists.read(named(operands[0]), reference), options["verbose"])
        return 0
    try:
        entries = lists.all(reference)
    except Missing:
        with registry(cli, reference.domain, options["insecure"]) as place:
            said(lambda: remote(cli, place, reference, options["verbose"]))
        return 0
    show_list(cli, entries, reference, options["verbose"])
    return 0


def remote(cli: Cli, place: Registry, reference: Reference, verbose: bool) -> None:
    """Show what a registry has under a name."""
    descriptor, data = fetched(place, reference)
    if descriptor["mediaType"] not in (LIST, INDEX):
        show(cli, entry_of(place, reference, descriptor, data), verbose)
        return
    entries = []
    for each in jsontext.loads(data, exact=True)["manifests"]:
        one = reference._replace(digest=each["digest"])
        entry = entry_of(place, one, *fetched(place, one))
        entry["Descriptor"]["platform"] = each.get("platform") or {}
        entries.append(entry)
    show_list(cli, entries, reference, verbose)


def show(cli: Cli, entry: dict[str, Any], verbose: bool) -> None:
    if verbose:
        cli.print(jsontext.dumps(entry, "\t"))
    else:
        cli.print(jsontext.dumps(jsontext.loads(base64.b64decode(entry["Raw"]), exact=True), "\t"))


def show_list(cli: Cli, entries: list[dict[str, Any]], target: Reference, verbose: bool) -> None:
    cli.print(jsontext.dumps(entries, "\t") if verbose else jsontext.dumps(as_list(entries, target), "   "))


def push(cli: Cli, options: Options, operands: list[str]) -> int:
    (word,) = operands
    target = named(word)
    lists = Lists(cli)
    entries = lists.all(target)
    for entry in entries:
        platform = entry["Descriptor"].get("platform") or {}
        if not platform.get("architecture") or not platform.get("os"):
            raise CommandError(f"manifest {entry['Ref']} must have an OS and Architecture to be pushed to a registry")
    made = as_list(entries, target)
    data = jsontext.dumps(made, "   ").encode()
    with registry(cli, target.domain, options["insecure"]) as place:
        said(lambda: _push(cli, place, target, entries))
        said(lambda: place.put_manifest(target.path, target.tag or target.digest, made["mediaType"], data))
    cli.print(digests.of(data))
    if options["purge"]:
        lists.remove(target)
    return 0


def _push(cli: Cli, place: Registry, target: Reference, entries: list[dict[str, Any]]) -> None:
    """Have the registry put the manifests of other repositories, and what they name, into the target's."""
    for entry in entries:
        reference = named(entry["Ref"])
        if reference.path == target.path:
            continue
        descriptor = entry["Descriptor"]
        manifest = entry.get("SchemaV2Manifest") or entry["OCIManifest"]
        for blob in [manifest["config"], *manifest["layers"]]:
            foreign = (descriptor.get("platform") or {}).get("os") == "windows"
            if place.mount_blob(target.path, blob["digest"], reference.path) and not foreign:
                raise CommandError(f"error mounting {reference.name}@{blob['digest']} to {whole(target)}")
        data = base64.b64decode(entry["Raw"])
        place.put_manifest(target.path, descriptor["digest"], descriptor["mediaType"], data)
        cli.print(f"Pushed ref {target.name}@{descriptor['digest']} with digest: {descriptor['digest']}")


def remove(cli: Cli, options: Options, operands: list[str]) -> int:
    errors = []
    for word in operands:
        try:
            target = named(word)
            Lists(cli).all(target)
            Lists(cli).remove(target)
        except CommandError as error:
            errors.append(error.text)
    if errors:
        raise CommandError("\n".join(errors))
    return 0


INSECURE = "   --insecure  bool  Speak to a registry without TLS, or with an unknown certificate\n"
COMMANDS = {
    "manifest annotate": Command(
        annotate,
        "[OPTIONS] MANIFEST_LIST MANIFEST",
        2,
        2,
        """
   --arch         string   The architecture that it is for
   --os           string   The operating system that it is for
   --os-features  strings  A feature of the operating system that it needs
   --os-version   string   The version of the operating system that it is for
   --variant      string   The variant of the architecture that it is for
""",
    ),
    "manifest create": Command(
        create,
        "MANIFEST_LIST MANIFEST [MANIFEST...]",
        2,
        None,
        INSECURE + "-a --amend  bool  Add to a list that is there",
    ),
    "manifest inspect": Command(
        inspect,
        "[OPTIONS] [MANIFEST_LIST] MANIFEST",
        1,
        2,
        INSECURE + "-v --verbose  bool  Show the descriptor and the platform too",
    ),
    "manifest push": Command(
        push,
        "[OPTIONS] MANIFEST_LIST",
        1,
        1,
        INSECURE + "-p --purge  bool  Remove the list here when it is pushed",
    ),
    "manifest rm": Command(remove, "MANIFEST_LIST [MANIFEST_LIST...]", 1, None),
}
