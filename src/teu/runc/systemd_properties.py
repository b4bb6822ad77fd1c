# SPDX-License-Identifier: Apache-2.0
"""Limits of the OCI runtime-spec as properties of a systemd unit (systemd.resource-control(5)).

Called by the systemd driver of `teu.runc.cgroups` alone. Properties are triples of name, D-Bus
signature and value. Only what systemd knows is repeated here; the driver writes every limit to the
cgroup as well.
"""

from __future__ import annotations

from teu.linux.cgroup_files import UINT64_MAX, CgroupError
from teu.linux.cgroups import DEFAULT_CPU_PERIOD, cpu_weight, swap_limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Property = tuple[str, str, Any]
    Resources = dict[str, Any]

ANNOTATION = "org.systemd.property."
# systemd counts quotas in whole percents of a CPU: of a second, 10 ms.
QUOTA_STEP = 10_000


def _uint64(value: int) -> int:
    """-1 is "infinity", and that is the largest number."""
    return UINT64_MAX if value < 0 else value


def from_resources(resources: Resources, version: Callable[[], int]) -> tuple[list[Property], Resources]:
    """The properties, and the resources as they are then to be written to the cgroup.

    They differ in one number: a CPU quota is rounded up to systemd's step, or a reload of systemd
    would change it. `version` is asked only where an answer depends on it.
    """
    properties: list[Property] = []
    memory = resources.get("memory") or {}
    if memory.get("limit"):
        properties.append(("MemoryMax", "t", _uint64(memory["limit"])))
    if memory.get("reservation"):
        properties.append(("MemoryLow", "t", _uint64(memory["reservation"])))
    swap = swap_limit(memory.get("swap"), memory.get("limit"))
    if swap is not None:
        properties.append(("MemorySwapMax", "t", _uint64(swap)))
    cpu = resources.get("cpu") or {}
    # A weight of zero means idle since systemd 252.
    if cpu.get("idle") == 1 and version() >= 252:
        properties.append(("CPUWeight", "t", 0))
    elif cpu.get("shares"):
        properties.append(("CPUWeight", "t", cpu_weight(cpu["shares"])))
    quota = cpu.get("quota") or 0
    rounded = _add_quota(properties, quota, cpu.get("period") or 0)
    if rounded != quota:
        resources = {**resources, "cpu": {**cpu, "quota": rounded}}
    pids = (resources.get("pids") or {}).get("limit")
    if pids is not None:
        properties.append(("TasksMax", "t", max(_uint64(pids), 1)))
    for field, name in (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes")):
        if cpu.get(field):
            properties.append((name, "ay", cpu_mask(cpu[field], f"linux.resources.cpu.{field}")))
    properties += from_unified(resources.get("unified") or {}, version)
    return properties, resources


def _add_quota(properties: list[Property], quota: int, period: int) -> int:
    """CPUQuotaPeriodUSec and CPUQuotaPerSecUSec; answers the quota rounded up to systemd's step."""
    if period:
        properties.append(("CPUQuotaPeriodUSec", "t", period))
    if not quota and not period:
        return quota
    per_second = UINT64_MAX
    if quota > 0:
        period = period or DEFAULT_CPU_PERIOD
        per_second = quota * 1_000_000 // period
        if per_second % QUOTA_STEP:
            per_second = (per_second // QUOTA_STEP + 1) * QUOTA_STEP
            quota = per_second * period // 1_000_000
    properties.append(("CPUQuotaPerSecUSec", "t", per_second))
    return quota


def cpu_mask(ranges: str, field: str) -> bytes:
    """`0-3,7` as a bit mask, least significant byte first."""
    mask = 0
    for part in ranges.split(","):
        first, dash, last = part.strip().partition("-")
        if not first and not dash:
            continue
        numbers = part.isascii() and first.isdigit() and (not dash or last.isdigit()) and len(last or first) < 6
        if not numbers or dash and int(last) < int(first):
            raise CgroupError(f"{field}: {part!r} is not a number or a range")
        for number in range(int(first), int(last if dash else first) + 1):
            mask |= 1 << number
    if not mask:
        raise CgroupError(f"{field}: {ranges!r} names nothing")
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


UNIFIED_SIZES = {
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.min": "MemoryMin",
    "memory.max": "MemoryMax",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
}


def from_unified(unified: dict[str, str], version: Callable[[], int]) -> list[Property]:
    """Properties for those files of version 2 that systemd knows."""
    properties: list[Property] = []
    idle = (unified.get("cpu.idle") or "").strip() == "1" and version() >= 252
    for name, text in unified.items():
        value = text.strip()
        field = f"linux.resources.unified[{name}]"
        if name == "cpu.idle":
            if idle:
                properties.append(("CPUWeight", "t", 0))
        elif name == "cpu.weight":
            if not idle:
                properties.append(("CPUWeight", "t", _number(value, field)))
        elif name == "cpu.max":
            words = value.split()
            if len(words) not in (1, 2):
                raise CgroupError(f'{field}: {text!r} is not "QUOTA PERIOD"')
            quota = 0 if words[0] == "max" else _number(words[0], field)
            period = _number(words[1], field) if len(words) == 2 else DEFAULT_CPU_PERIOD
            _add_quota(properties, quota, period)
        elif name == "cpuset.cpus":
            properties.append(("AllowedCPUs", "ay", cpu_mask(value, field)))
        elif name == "cpuset.mems":
            properties.append(("AllowedMemoryNodes", "ay", cpu_mask(value, field)))
        elif name in UNIFIED_SIZES:
            number = UINT64_MAX if value == "max" else _number(value, field)
            properties.append((UNIFIED_SIZES[name], "t", max(number, 1) if name == "pids.max" else number))
    return properties


def _number(text: str, field: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise CgroupError(f"{field}: {text!r} is not a number")
    return int(text)


def from_devices(rules: list[dict[str, Any]]) -> list[Property]:
    """DevicePolicy and DeviceAllow.

    systemd can only allow. Rules that deny after allowing, and wildcards it has no word for, are
    left to our own program, which replaces systemd's on the cgroup.
    """
    allowed: dict[tuple[str, int | None, int | None], str] = {}
    allow_all = False
    for rule in rules:
        kind, access = rule.get("type") or "a", rule.get("access") or "rwm"
        major, minor = (None if (n := rule.get(key)) is None or n < 0 else n for key in ("major", "minor"))
        if kind == "a" and major is None and minor is None and set(access) == set("rwm"):
            allowed.clear()
            allow_all = bool(rule["allow"])
        elif not rule["allow"]:
            # Deny lists are none of systemd's: fall back to what is allowed for certain.
            allow_all = False
            for key in list(allowed):
                if kind in ("a", key[0]) and major in (None, key[1]) and minor in (None, key[2]):
                    allowed[key] = "".join(letter for letter in allowed[key] if letter not in access)
        else:
            for each in "bc" if kind == "a" else kind.replace("u", "c"):
                key = (each, major, minor)
                allowed[key] = "".join(x for x in "rwm" if x in access or x in allowed.get(key, ""))
    if allow_all:
        return [("DeviceAllow", "a(ss)", []), ("DevicePolicy", "s", "auto")]
    entries = []
    for (each, major, minor), access in allowed.items():
        if not access:
            continue
        long = "block" if each == "b" else "char"
        if major is not None and minor is not None:
            entries.append((f"/dev/{long}/{major}:{minor}", access))
        elif major is not None:
            entries.append((f"{long}-{major}", access))
        elif minor is None:
            entries.append((f"{long}-*", access))
    # The empty list first: assignments to a list property add to it.
    return [("DeviceAllow", "a(ss)", []), ("DevicePolicy", "s", "strict"), ("DeviceAllow", "a(ss)", entries)]


# ---- annotations -------------------------------------------------------------------------------

INTEGERS = {
    "byte": "y",
    "int16": "n",
    "uint16": "q",
    "int32": "i",
    "uint32": "u",
    "int64": "x",
    "uint64": "t",
    "handle": "h",
}


def from_annotations(annotations: dict[str, str]) -> list[Property]:
    """`org.systemd.property.NAME: VALUE` annotations, VALUE in GVariant's text format, as with runc.

    NAMEs in `Sec` are given in seconds and become systemd's `USec`.
    """
    properties: list[Property] = []
    for key, text in annotations.items():
        if not key.startswith(ANNOTATION):
            continue
        name = key[len(ANNOTATION) :]
        if not (name.isascii() and name.isalpha() and len(name) >= 3):
            raise CgroupError(f"annotations: {key}: {name!r} is not the name of a property")
        signature, value = parse_variant(text, key)
        if name.endswith("Sec") and not name.endswith("USec"):
            name = name.removesuffix("Sec") + "USec"
            if signature not in ("n", "q", "i", "u", "x", "t", "d", "y"):
                raise CgroupError(f"annotations: {key}: {text!r} is not a number of seconds")
            signature, value = "t", int(value * 1_000_000)
        properties.append((name, signature, value))
    return properties


def parse_variant(text: str, field: str) -> tuple[str, Any]:
    """A GVariant text value: strings, booleans, numbers with or without their type, arrays of these."""
    word = text.strip()
    problem = CgroupError(f"annotations: {field}: {text!r} is not a value in GVariant's text format")
    if word in ("true", "false"):
        return "b", word == "true"
    if word[:1] in "'\"" and word:
        if len(word) < 2 or word[-1] != word[0]:
            raise problem
        return "s", word[1:-1].replace("\\" + word[0], word[0]).replace("\\\\", "\\")
    if word.startswith("@"):
        signature, _, rest = word[1:].partition(" ")
        found, value = parse_variant(rest, field) if rest.strip() != "[]" else (signature, [])
        if signature[:1] == "a" and found[:1] == "a" or signature in INTEGERS.values() or signature in "sbd":
            return signature, value
        raise problem
    if word.startswith("["):
        if not word.endswith("]"):
            raise problem
        members = [parse_variant(part, field) for part in _split_list(word[1:-1])]
        if not members or len({signature for signature, _ in members}) != 1:
            raise problem
        return "a" + members[0][0], [value for _, value in members]
    kind, _, number = word.rpartition(" ")
    try:
        if kind in INTEGERS:
            return INTEGERS[kind], int(number, 0)
        if kind == "double":
            return "d", float(number)
        if kind:
            raise problem
        if number.lstrip("+-").isdigit() or number.startswith("0x"):
            return "i", int(number, 0)
        return "d", float(number)
    except ValueError:
        raise problem from None


def _split_list(text: str) -> list[str]:
    """Split at commas outside quotes."""
    parts, current, quote = [], "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote and not current.endswith("\\") else quote
        elif letter in "'\"":
            quote = letter
        elif letter == ",":
            parts.append(current)
            current = ""
            continue
        current += letter
    return [part for part in [*parts, current] if part.strip()]
