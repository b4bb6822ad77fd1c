# SPDX-License-Identifier: Apache-2.0
"""`image signatures`: what is signed and attested of an image, at its registry, or beside it in the engine. A registry
is asked from here, as with `manifest`; no daemon has a part in that."""

from __future__ import annotations

from teu.cli import table
from teu.cli.command import Cli, Command
from teu.cli.errors import CommandError
from teu.cli.manifests import INSECURE, fetched, named, registry, said
from teu.cli.options import Options
from teu.config import ConfigError
from teu.oci import image_spec
from teu.oci.distribution import RegistryError
from teu.trust import attached, cosign, files, keys, policy
from teu.trust.errors import Refused, TrustError
from teu.trust.verify import Judge, allow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from teu.oci.distribution import Registry
    from teu.oci.image_spec import Descriptor
    from teu.oci.reference import Reference
    from teu.trust.attached import Attached

# What lists call the kinds: as users of cosign tree and docker buildx imagetools know them.
KINDS = {
    attached.COSIGN: "signature",
    attached.NOTATION: "signature",
    attached.ATTESTATION: "attestation",
    attached.SBOM: "sbom",
    attached.OTHER: "artifact",
}
FORMATS = {
    attached.COSIGN: "cosign",
    attached.NOTATION: "notation",
    attached.ATTESTATION: "cosign",
    attached.BUNDLE: "sigstore bundle",
    attached.SBOM: "cosign",
}
PREDICATE = "in-toto.io/predicate-type"
HEADINGS = {
    "Kind": "KIND",
    "Format": "FORMAT",
    "Type": "TYPE",
    "Verified": "VERIFIED",
    "Signer": "SIGNER",
    "Reason": "REASON",
    "Subject": "SUBJECT",
    "Place": "PLACE",
    "Digest": "DIGEST",
}


class Row:
    """A line of the list: one signature, statement or other thing that is attached to `subject`."""

    def __init__(self, kind: str, form: str, type_: str, subject: str, place: str, digest: str) -> None:
        self.kind, self.form, self.type = kind, form, type_
        self.subject, self.place, self.digest = subject, place, digest
        self.verified = self.signer = self.reason = ""


class Keys:
    """What --key asks: whose the signatures are, whatever name they give."""

    def __init__(self, paths: list[str]) -> None:
        self._trusted = cosign.Trusted([keys.load(path) for path in paths])
        self._rule = policy.Cosign("--key", tuple(paths), "any", {}, ())

    def judge(self, row: Row, one: Attached, data: bytes, target: Descriptor, wanted: Reference) -> None:
        if one.kind not in (attached.COSIGN, attached.BUNDLE, attached.ATTESTATION):
            return
        row.verified = "no"
        try:
            if row.kind == "attestation":
                signer = cosign.attestation(one, data, target["digest"], self._trusted.keys).signer
            else:
                signer = cosign.check(one, data, target["digest"], wanted, self._rule, self._trusted)
        except TrustError as error:
            row.reason = str(error)
        else:
            row.verified, row.signer = "yes", signer


class Rules:
    """What a policy says of each."""

    def __init__(self, file: str, wanted: Reference) -> None:
        rule = policy.read(file).rule(wanted)
        self._judge = Judge(rule) if rule.require == policy.SIGNED else None

    def judge(self, row: Row, one: Attached, data: bytes, target: Descriptor, wanted: Reference) -> None:
        if self._judge is None or one.kind not in self._judge.kinds:
            return
        found = self._judge.look(one, data, target, wanted)
        row.verified, row.signer = "yes" if found.places else "no", found.by
        row.reason = "; ".join(found.notes if found.places else (why for _, why in found.why))


def _rows(place: Registry, wanted: Reference, target: Descriptor, judge: Callable[..., None] | None) -> Iterator[Row]:
    for one in attached.find(place, wanted.path, target["digest"]):
        row = Row(
            KINDS.get(one.kind, ""),
            FORMATS.get(one.kind, one.artifact),
            one.layer["mediaType"] if one.kind in (attached.SBOM, attached.OTHER) else "",
            target["digest"],
            one.place,
            one.layer["digest"],
        )
        if one.kind in (attached.ATTESTATION, attached.BUNDLE) or (judge and one.kind in attached.SIGNATURES):
            try:
                data = attached.payload(place, wanted.path, one)
            except (RegistryError, TrustError) as error:
                row.verified, row.reason = "no", str(error)
                yield row
                continue
            type_ = cosign.unverified_type(data) if one.kind in (attached.ATTESTATION, attached.BUNDLE) else ""
            if one.kind == attached.BUNDLE:
                row.kind = "signature" if type_ in ("", cosign.SIGNS) else "attestation"
            row.type = "" if type_ == cosign.SIGNS else type_
            if judge:
                judge(row, one, data, target, wanted)
        yield row


def _beside(place: Registry, wanted: Reference, entries: list[Descriptor]) -> Iterator[Row]:
    """What BuildKit has put into the index itself; nobody has signed it but who signs the index."""
    for entry in entries:
        annotations = entry.get("annotations") or {}
        if annotations.get("vnd.docker.reference.type") != "attestation-manifest":
            continue
        subject = annotations.get("vnd.docker.reference.digest", "")
        _, data = place.manifest(wanted.path, entry["digest"])
        for layer in image_spec.manifest(image_spec.decode(data, "manifest"))["layers"]:
            if type_ := (layer.get("annotations") or {}).get(PREDICATE):
                yield Row("attestation", "buildkit", type_, subject, entry["digest"], layer["digest"])


def _platforms(options: Options) -> list[image_spec.Platform]:
    try:
        return [image_spec.parse_platform(each) for each in options["platform"]]
    except image_spec.SpecError as error:
        raise CommandError(str(error)) from None


def _judge(options: Options, wanted: Reference, file: str) -> Callable[..., None] | None:
    try:
        if options["key"]:
            return Keys(options["key"]).judge
        return Rules(file, wanted).judge if file else None
    except (ConfigError, TrustError) as error:
        raise CommandError(str(error)) from None


def _remote(cli: Cli, options: Options, wanted: Reference, file: str) -> list[Row]:
    judge, platforms = _judge(options, wanted, file), _platforms(options)
    rows: list[Row] = []
    with registry(cli, wanted.domain, options["insecure"]) as place:
        found, data = fetched(place, wanted)
        target: Descriptor = {name: found[name] for name in ("mediaType", "digest", "size")}  # type: ignore[assignment]
        rows += _rows(place, wanted, target, judge)
        if target["mediaType"] not in image_spec.INDEXES:
            return rows
        entries = image_spec.index(image_spec.decode(data, "index"))["manifests"]
        for platform in platforms:
            chosen = image_spec.choose(entries, platform)
            if not chosen:
                raise CommandError(f"{wanted.familiar()} has no manifest for {platform}")
            rows += _rows(place, wanted, chosen[0], judge)
        rows += _beside(place, wanted, entries)
    return rows


def _verify(cli: Cli, options: Options, wanted: Reference, file: str) -> list[str]:
    """What the policy only wants told of the image. Raises CommandError where it refuses it."""
    if not file:
        raise CommandError("--verify needs a policy: there is none at /etc/teu/policy.yaml; name one with --policy")
    with registry(cli, wanted.domain, options["insecure"]) as place:
        found, data = fetched(place, wanted)
        ways: list[list[Any]] = [[found]]
        if found["mediaType"] in image_spec.INDEXES:
            entries = image_spec.index(image_spec.decode(data, "index"))["manifests"]
            wishes = _platforms(options) or [image_spec.host_platform()]
            ways = [[found, *image_spec.choose(entries, wish)[:1]] for wish in wishes]
        return allow(place, wanted, ways, file)


def _local(cli: Cli, image: str) -> list[Row]:
    answer = cli.client.get(f"/images/{image}/attestations")
    return [Row("attestation", "buildkit", one["PredicateType"], "", "", one["Descriptor"]["digest"]) for one in answer]


def _copy(cli: Cli, options: Options, image: str) -> int:
    """Everything that is attached to an image, to the same image at another place."""
    from teu.cli.signaturecopy import copied  # 0.5 ms

    for name in ("format", "key", "local", "platform", "policy", "quiet", "verify"):
        if options[name]:
            raise CommandError(f"--copy-to copies all of them as they are: leave out --{name}")
    wanted, to = named(image), named(options["copy-to"])
    with (
        registry(cli, wanted.domain, options["insecure"]) as source,
        registry(cli, to.domain, options["insecure"]) as destination,
    ):
        for line in said(lambda: copied(source, wanted, destination, to)):
            cli.print(line)
    return 0


COLUMNS: dict[str, Callable[[Any], Any]] = {
    "Kind": lambda row: row.kind,
    "Format": lambda row: row.form,
    "Type": lambda row: row.type,
    "Verified": lambda row: row.verified,
    "Signer": lambda row: row.signer,
    "Reason": lambda row: row.reason,
    "Subject": lambda row: row.subject,
    "Place": lambda row: row.place,
    "Digest": lambda row: row.digest,
}


def signatures(cli: Cli, options: Options, operands: list[str]) -> int:
    chosen = options["policy"] or files.FILE
    file = chosen if options["policy"] or files.configured(chosen) else ""
    if options["copy-to"]:
        return _copy(cli, options, operands[0])
    if options["key"] and (options["policy"] or options["verify"]):
        raise CommandError("--key stands for itself: leave out --policy and --verify")
    wanted = named(operands[0])
    if options["local"]:
        for name in ("key", "platform", "policy", "verify"):
            if options[name]:
                raise CommandError(
                    f"--local lists what came with the image, which nobody has signed: leave out --{name}"
                )
        rows = _local(cli, operands[0])
    else:
        try:
            rows = said(lambda: _remote(cli, options, wanted, file))
        except TrustError as error:
            raise CommandError(str(error)) from None
    default = ["Kind", "Format", "Type", "Verified", "Signer", "Digest"]
    quiet = "Digest" if options["quiet"] else ""
    table.print_list(rows, COLUMNS, HEADINGS, default, options["format"], quiet=quiet)
    if not options["verify"]:
        return 0
    try:
        for note in said(lambda: _verify(cli, options, wanted, file)):
            cli.warn(note)
    except Refused as error:
        raise CommandError(str(error)) from None
    return 0


COMMANDS = {
    "image signatures": Command(
        signatures,
        "[OPTIONS] IMAGE",
        1,
        1,
        INSECURE
        + """
   --copy-to   string   Copy them to this image, which has the same digest, in place of a list
   --format    string   `table`, `table TEMPLATE`, `json` or a Go template
   --key       strings  File with a public key in PEM: say which of them are by it
   --local     bool     List what came with the image into the engine
   --platform  strings  Also of the image for this platform, OS[/ARCH[/VARIANT]]
   --policy    string   The policy that says whose signatures count (default: /etc/teu/policy.yaml where it is there)
-q --quiet     bool     Show only the digests
   --verify    bool     Fail where the policy would not let the image in
""",
    ),
}
