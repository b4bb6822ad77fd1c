# SPDX-License-Identifier: Apache-2.0
"""The process of a specification: its environment, capabilities, limits and security options. For the container's first
process and for execs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from teu.engine.core.errors import BadRequest
from teu.linux import selinux
from teu.linux.capabilities import available
from teu.oci import defaults, jsontext
from teu.oci.seccomp import ARCHITECTURES

if TYPE_CHECKING:
    from teu.engine.containers.model import Container


def capabilities(host: dict[str, Any]) -> list[str]:
    known = available()

    def names(key: str) -> list[str]:
        result = []
        for word in host[key] or ():
            name = word.upper()
            if name == "ALL":
                result.append(name)
                continue
            name = name if name.startswith("CAP_") else f"CAP_{name}"
            if name not in known:
                raise BadRequest(f'invalid {key}: unknown capability: "{name}"')
            result.append(name)
        return result

    add, drop = names("CapAdd"), names("CapDrop")
    if host["Privileged"]:
        return known
    if "ALL" in drop:
        return known if "ALL" in add else [name for name in known if name in add]
    base = known if "ALL" in add else [name for name in defaults.CAPABILITIES if name in known]
    result = [name for name in base if name not in drop]
    return result + [name for name in known if name in add and name not in result and name not in drop]


def security_options(host: dict[str, Any]) -> dict[str, Any]:
    """--security-opt, parsed: no_new_privileges, seccomp ("" default, "unconfined", or a profile), apparmor,
    writable-cgroups."""
    result: dict[str, Any] = {"no_new_privileges": False, "seccomp": "", "apparmor": None, "writable-cgroups": False}
    for option in host["SecurityOpt"] or ():
        if option in ("no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"):
            result["no_new_privileges"] = True
            continue
        key, equals, value = option.partition("=")
        if not equals:
            key, equals, value = option.partition(":")
        if key == "no-new-privileges" and value == "false":
            continue
        if not equals or key not in ("seccomp", "apparmor", "label", "writable-cgroups"):
            raise BadRequest(f'invalid --security-opt 2: "{option}"')
        if key == "label":
            # Without SELinux a label is nothing to anybody; with it, "disable" is what happens anyway.
            if value != "disable" and selinux.enabled():
                raise BadRequest(f'--security-opt "{option}": containers get no SELinux labels; use label=disable')
            continue
        if key == "writable-cgroups":
            if value not in ("true", "false"):
                raise BadRequest(f'--security-opt "{option}": true or false is expected')
            if value == "true" and host["CgroupnsMode"] == "host":
                raise BadRequest("writable-cgroups needs a cgroup namespace of the container's own: --cgroupns private")
            result[key] = value == "true"
            continue
        if key == "seccomp" and value not in ("unconfined", "builtin", ""):
            try:
                value = _own_profile(jsontext.loads(value), capabilities(host))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise BadRequest(f"decoding seccomp profile failed: {error}") from None
        result[key] = "" if value == "builtin" else value
    return result


def _own_profile(profile: dict[str, Any], caps: list[str]) -> dict[str, Any]:
    """A profile in docker's format (archMap, includes, excludes) as the specification wants it."""
    machine = os.uname().machine
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    result: dict[str, Any] = {"defaultAction": profile["defaultAction"]}
    if profile.get("defaultErrnoRet") is not None:
        result["defaultErrnoRet"] = profile["defaultErrnoRet"]
    result["architectures"] = profile.get("architectures") or ARCHITECTURES.get(machine, [])
    rules = []
    for rule in profile.get("syscalls") or ():
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        if includes.get("arches") and arch not in includes["arches"] or arch in (excludes.get("arches") or ()):
            continue
        if any(name not in caps for name in includes.get("caps") or ()):
            continue
        if any(name in caps for name in excludes.get("caps") or ()):
            continue
        names = rule.get("names") or [rule["name"]]
        kept = {"names": names, "action": rule["action"]}
        for key in ("args", "errnoRet"):
            if rule.get(key) is not None:
                kept[key] = rule[key]
        rules.append(kept)
    result["syscalls"] = rules
    return result


def environment(container: Container, tty: bool, extra: list[str] | None = None) -> list[str]:
    """PATH, HOSTNAME and TERM, under what the configuration says; later entries win."""
    values = {"PATH": defaults.PATH, "HOSTNAME": container.hostname}
    if tty:
        values["TERM"] = "xterm"
    for entry in (container.config["Env"] or []) + (extra or []):
        name, equals, value = entry.partition("=")
        if equals:
            values[name] = value
        else:
            values.pop(name, None)
    return [f"{name}={value}" for name, value in values.items()]


def rlimits(host: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "type": f"RLIMIT_{limit['Name'].upper()}",
            "soft": _limit(limit.get("Soft", 0)),
            "hard": _limit(limit.get("Hard", 0)),
        }
        for limit in host["Ulimits"]
    ]


def _limit(value: int) -> int:
    return value if value >= 0 else (1 << 64) - 1
