# SPDX-License-Identifier: Apache-2.0
"""`run --blockio-config-file FILE --blockio-class NAME`: classes of block I/O, one of which becomes
linux.resources.blockIO.

    Classes:
      NAME:
        - Weight: 200                   of all devices
        - Devices: [/dev/vd*, /dev/disk/by-id/x]
          Weight: 100
          ThrottleReadBps: 50M          …WriteBps, …ReadIOPS, …WriteIOPS
"""

from __future__ import annotations

import glob
import os
import stat
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

from teu.ctr.errors import CommandError

Json = dict[str, Any]
# Of a class: the runtime-spec's name for it, and the least and most it may be.
QUANTITIES = {
    "Weight": ("weightDevice", 10, 1000),
    "ThrottleReadBps": ("throttleReadBpsDevice", 0, None),
    "ThrottleWriteBps": ("throttleWriteBpsDevice", 0, None),
    "ThrottleReadIOPS": ("throttleReadIOPSDevice", 0, None),
    "ThrottleWriteIOPS": ("throttleWriteIOPSDevice", 0, None),
}
UNITS: dict[str, int | Fraction] = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "E": 10**18,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
    "Pi": 1 << 50,
    "Ei": 1 << 60,
    "m": Fraction(1, 1000),
    "u": Fraction(1, 10**6),
    "n": Fraction(1, 10**9),
}


def of_class(file: str, name: str) -> Json | None:
    """linux.resources.blockIO; None where no class is asked for. Raises CommandError."""
    classes = load(file) if file else {}
    if not name:
        return None
    if name not in classes:
        raise CommandError(f'blockio-class error: no OCI BlockIO parameters for class "{name}"')
    return classes[name]


def load(file: str) -> dict[str, Json]:
    import yaml  # 16 ms, for one option of run

    begin = "blockio-config-file error: "
    try:
        text = Path(file).read_text()
    except OSError as error:
        why = f"open {file}: {(error.strerror or '').lower()}"
        raise CommandError(f'{begin}failed to read config file "{file}": {why}') from None
    try:
        table = yaml.safe_load(text) or {}
        return {str(name): made(entries or []) for name, entries in (table.get("Classes") or {}).items()}
    except (yaml.YAMLError, ValueError, AttributeError, TypeError) as error:
        raise CommandError(f'{begin}failed to set configuration from file "{file}": {error}') from None


def made(entries: list[Json]) -> Json:
    """One class. Raises ValueError with all that is wrong with it."""
    result: Json = {}
    wrong: list[str] = []
    for entry in entries:
        amounts: dict[str, int] = {}
        for name, (_, least, most) in QUANTITIES.items():
            try:
                amount = quantity(name, str(entry.get(name) or ""), least, most)
            except ValueError as error:
                wrong.append(str(error))
                continue
            if amount is not None:
                amounts[name] = amount
        if entry.get("Devices") is None:
            if "Weight" in amounts:
                result["weight"] = amounts.pop("Weight")
            if amounts:
                named = zip(("rbps", "wbps", "riops", "wiops"), list(QUANTITIES)[1:])
                told = " ".join(f'{short}="{entry.get(name) or ""}"' for short, name in named)
                wrong.append(f"ignoring throttling ({told}): Devices not listed")
            continue
        for major, minor in devices(entry["Devices"]):
            for name, amount in amounts.items():
                key = "weight" if name == "Weight" else "rate"
                listed = result.setdefault(QUANTITIES[name][0], [])
                listed[:] = [each for each in listed if (each["major"], each["minor"]) != (major, minor)]
                listed.append({"major": major, "minor": minor, key: amount})
    if wrong:
        number = f"{len(wrong)} error{'s' if len(wrong) > 1 else ''} occurred:\n"
        raise ValueError(number + "".join(f"\t* {each}\n" for each in wrong) + "\n")
    return result


def quantity(name: str, text: str, least: int, most: int | None) -> int | None:
    """`64M` and the like, as Kubernetes writes quantities; rounded up."""
    if not text:
        return None
    digits = text.rstrip("".join(set("".join(UNITS))))
    try:
        exact = Fraction(digits) * Fraction(UNITS[text[len(digits) :]])
    except (ValueError, KeyError):
        raise ValueError(f'syntax error in "{name}" ("{text}")') from None
    value = -(-exact.numerator // exact.denominator)
    if value < least:
        raise ValueError(f'value of "{name}" ({value}) smaller than minimum ({least})')
    if most is not None and value > most:
        raise ValueError(f'value of "{name}" ({value}) bigger than maximum ({most})')
    return value


def devices(patterns: list[str]) -> list[tuple[int, int]]:
    """The block devices that the patterns mean; what is none, or a partition, is told and left out."""
    found: list[tuple[int, int]] = []
    for pattern in patterns:
        paths = sorted(glob.glob(pattern))
        if not paths:
            warn(f'device wildcard "{pattern}" does not match any device nodes')
        for path in paths:
            path = os.path.realpath(path)
            entry = os.stat(path)
            if stat.S_ISCHR(entry.st_mode):
                warn(f'file "{path}" is a character device')
            elif not stat.S_ISBLK(entry.st_mode):
                warn(f'file "{path}" is not a device')
            elif os.minor(entry.st_rdev) & 0xF:
                warn(f'skipping "{path}": cannot weight/throttle partitions')
            elif (number := (os.major(entry.st_rdev), os.minor(entry.st_rdev))) not in found:
                found.append(number)
    if not found:
        warn(f"no matches on any of Devices: [{' '.join(patterns)}], parameters ignored")
    return found


def warn(text: str) -> None:
    sys.stderr.write(f"[ blockio ] W: {text}\n")
