# SPDX-License-Identifier: Apache-2.0
"""Images against the policy. Called by the gate, with the documents that are going to be pulled, and before anything
of them is stored: what is verified is a digest, and what is unpacked is of that digest.

An index that is signed vouches for all below it. Where it is not, each of its manifests that is pulled has to be signed
itself, or an index on the way to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from teu.config import ConfigError
from teu.oci.distribution import Aborted, RegistryError
from teu.trust import attached, cosign, keyless, keys, notation
from teu.trust.attached import ATTESTATION, BUNDLE, COSIGN, NOTATION
from teu.trust.errors import Refused, TrustError
from teu.trust.policy import ANYTHING, AUTHENTICITY, LOG, REJECT, Cosign, Rule, read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from teu.oci.image_spec import Descriptor
    from teu.oci.reference import Reference
    from teu.trust.attached import Attached, Source

TOLD = 3  # reasons in one error


class Found(NamedTuple):
    """What one signature or attestation meets: the `places` of the policy, `by` whom; or why it meets nothing."""

    places: tuple[str, ...] = ()
    by: str = ""
    notes: tuple[str, ...] = ()
    why: tuple[tuple[str, str], ...] = ()  # (place, reason)


class Judge:
    """One rule, with its keys and certificates loaded."""

    def __init__(self, rule: Rule, now: float | None = None) -> None:
        """`now`: seconds since 1970, for tests. Raises TrustError for a key that cannot be used."""
        self.rule = rule
        self._now = now
        self._signers = _trusted(rule.cosign) if rule.cosign else cosign.Trusted(())
        self._stores = notation.Stores(rule.notation) if rule.notation else None
        self._attesters = {each.place: [keys.load(file) for file in each.keys] for each in rule.attestations}

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is to be looked for at the registry."""
        found = [COSIGN, BUNDLE] if self.rule.cosign else []
        found += [NOTATION] if self.rule.notation else []
        return tuple(dict.fromkeys([*found, *([ATTESTATION, BUNDLE] if self.rule.attestations else [])]))

    @property
    def places(self) -> list[str]:
        """The lines of the policy that must be met."""
        one = [each.place for each in (self.rule.cosign, self.rule.notation) if each is not None]
        return [*one, *(each.place for each in self.rule.attestations)]

    def look(self, one: Attached, data: bytes, target: Descriptor, wanted: Reference) -> Found:
        """What a signature or an attestation, whose layer has `data`, proves of `target`."""
        met: list[str] = []
        by: list[str] = []
        notes: tuple[str, ...] = ()
        why: list[tuple[str, str]] = []
        rule = self.rule
        if rule.cosign and one.kind in (COSIGN, BUNDLE):
            place = rule.cosign.place
            try:
                signer = cosign.check(one, data, target["digest"], wanted, rule.cosign, self._signers)
                met, by = [place], [signer]
            except Exception as error:
                why.append((place, _words(error)))
        if rule.notation and self._stores and one.kind == NOTATION:
            place = rule.notation.place
            try:
                proven = notation.check(one, data, target, rule.notation, self._stores, self._now)
                met, by, notes = [place], [proven.signer], proven.notes
            except Exception as error:
                why.append((place, _words(error)))
        for each in rule.attestations if one.kind in (ATTESTATION, BUNDLE) else ():
            try:
                statement = cosign.attestation(one, data, target["digest"], self._attesters[each.place])
                if statement.predicate_type != each.predicate:
                    raise TrustError(f"it is an attestation of the type {statement.predicate_type}")
                met.append(each.place)
                by.append(statement.signer)
            except Exception as error:
                why.append((each.place, _words(error)))
        return Found(tuple(met), ", ".join(dict.fromkeys(by)), notes, tuple(why))


def _trusted(rule: Cosign) -> cosign.Trusted:
    """Raises TrustError for a key or a certificate that cannot be used."""
    return cosign.Trusted(
        [keys.load(file) for file in rule.keys],
        [keys.load(file) for file in rule.rekor_keys],
        keyless.Authorities(rule.fulcio) if rule.fulcio else None,
    )


def _words(error: Exception) -> str:
    """What is wrong with a signature. Whatever a decoder makes of bytes that anybody may have pushed: it is no proof,
    and another signature may be one."""
    if isinstance(error, TrustError):
        return str(error)
    return f"it cannot be read: {type(error).__name__}: {error}"


class Judged(NamedTuple):
    """Of a manifest or an index: for each line that is not met, why; and what is only logged."""

    open: dict[str, list[str]]
    notes: list[str]


def judged(source: Source, wanted: Reference, target: Descriptor, judge: Judge) -> Judged:
    """What signatures at a registry prove of one manifest. Raises RegistryError, TrustError."""
    missing: dict[str, list[str]] = {place: [] for place in judge.places}
    notes: list[str] = []
    for one in attached.find(source, wanted.path, target["digest"], judge.kinds):
        try:
            data = attached.payload(source, wanted.path, one)
        except Aborted:
            raise
        except (RegistryError, TrustError) as error:
            for reasons in missing.values():
                reasons.append(f"{one.place}: {error}")
            continue
        found = judge.look(one, data, target, wanted)
        for place in found.places:
            missing.pop(place, None)
            notes += [f"{one.place}: {note}" for note in found.notes]
        for place, why in found.why:
            if place in missing:
                missing[place].append(f"{one.place}: {why}")
        if not missing:
            break
    rule = judge.rule.notation
    if rule and missing.get(rule.place) == [] and rule.actions[AUTHENTICITY] == LOG:
        # The level audit: what is not signed at all is let in, and told (trust-store-trust-policy).
        del missing[rule.place]
        notes.append("there is no signature of the Notary Project's")
    return Judged(missing, notes)


def allow(source: Source, wanted: Reference, ways: Sequence[Sequence[Descriptor]], file: str) -> list[str]:
    """Let an image in, or not. `ways`: for each manifest that is to be pulled the descriptors from what the name stands
    for down to it. What is returned is to be logged: what the policy only wants told.

    Raises Refused, and RegistryError where the registry cannot say what it has."""
    try:
        rule = read(file).rule(wanted)
    except ConfigError as error:
        raise Refused(f"{wanted.familiar()} is refused, as the policy for images has a mistake: {error}") from None
    if rule.require == ANYTHING:
        return []
    if rule.require == REJECT:
        raise Refused(f"{wanted.familiar()} is refused by {rule.place}: it lets no image in")
    try:
        judge = Judge(rule)
        return _allow(source, wanted, ways, judge)
    except TrustError as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{wanted.familiar()} is refused by {rule.place}: {error}") from None


def _allow(source: Source, wanted: Reference, ways: Sequence[Sequence[Descriptor]], judge: Judge) -> list[str]:
    known: dict[str, Judged] = {}
    notes: list[str] = []
    for way in ways:
        for target in way:
            digest = target["digest"]
            if digest not in known:
                known[digest] = judged(source, wanted, target, judge)
                notes += known[digest].notes if not known[digest].open else []
            if not known[digest].open:
                break
        else:
            raise Refused(_refusal(wanted, way, known))
    return notes


def _refusal(wanted: Reference, way: Sequence[Descriptor], known: dict[str, Judged]) -> str:
    root = way[0]["digest"]
    place, reasons = next(iter(known[root].open.items()))
    for below in way[1:]:
        # What is signed by somebody else tells more than what is not signed.
        found = known[below["digest"]].open.get(place, [])
        reasons = reasons or [f"{below['digest']}: {each}" for each in found]
    text = f"{wanted.familiar()} ({root}) is refused by {place}: "
    if not reasons:
        return text + "there is nothing of that kind at the registry"
    more = f"; and {len(reasons) - TOLD} more" if len(reasons) > TOLD else ""
    return text + "; ".join(reasons[:TOLD]) + more
