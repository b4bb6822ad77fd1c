# SPDX-License-Identifier: Apache-2.0
"""The process of a specification: its environment, capabilities, limits and security options. For the container's first
process and for execs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from teu.engine.containers import defaults
from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.spec import users
from teu.linux import selinux
from teu.linux.capabilities import available
from teu.oci import defaults as image_defaults
from teu.oci import jsontext
from teu.oci.seccomp import ARCHITECTURES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from teu.engine.containers.model import Container
    from teu.engine.core.fields import HostConfig, Ulimit
    from teu.engine.engine import Engine
    from teu.oci.runtime_spec import Object


def capabilities(host: HostConfig) -> list[str]:
    known = available()

    def names(key: str, words: list[str] | None) -> list[str]:
        result = []
        for word in words or ():
            name = word.upper()
            if name == "ALL":
                result.append(name)
                continue
            name = name if name.startswith("CAP_") else f"CAP_{name}"
            if name not in known:
                raise BadRequest(f'invalid {key}: unknown capability: "{name}"')
            result.append(name)
        return result

    add, drop = names("CapAdd", host.cap_add), names("CapDrop", host.cap_drop)
    if host.privileged:
        return known
    if "ALL" in drop:
        return known if "ALL" in add else [name for name in known if name in add]
    base = known if "ALL" in add else [name for name in image_defaults.CAPABILITIES if name in known]
    result = [name for name in base if name not in drop]
    return result + [name for name in known if name in add and name not in result and name not in drop]


class Security(NamedTuple):
    """--security-opt, parsed."""

    no_new_privileges: bool = False
    seccomp: str | Object = ""  # "" is the default, "unconfined", or a profile
    apparmor: str = ""
    writable_cgroups: bool = False


def security_options(host: HostConfig, settings: Mapping[str, Any]) -> Security:
    """What a container says, over what teud.yaml says. Raises BadRequest; EngineError where the profile that the
    latter names cannot be read."""
    result = Security(no_new_privileges=settings["no-new-privileges"])
    profile = "" if host.privileged else settings["seccomp-profile"]
    for option in host.security_opt or ():
        if option in ("no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"):
            result = result._replace(no_new_privileges=True)
            continue
        key, equals, value = option.partition("=")
        if not equals:
            key, equals, value = option.partition(":")
        if key == "no-new-privileges" and value == "false":
            result = result._replace(no_new_privileges=False)
            continue
        if not equals or key not in ("seccomp", "apparmor", "label", "writable-cgroups"):
            raise BadRequest(f'invalid --security-opt 2: "{option}"')
        if key == "label":
            # Without SELinux a label is nothing to anybody; with it, "disable" is what happens anyway.
            if value != "disable" and selinux.enabled():
                raise BadRequest(f'--security-opt "{option}": containers get no SELinux labels; use label=disable')
        elif key == "writable-cgroups":
            result = result._replace(writable_cgroups=_writable_cgroups(host, option, value))
        elif key == "apparmor":
            result = result._replace(apparmor="" if value == "builtin" else value)
        else:
            profile = ""
            result = result._replace(seccomp=_seccomp(host, value))
    return result._replace(seccomp=_default_seccomp(host, profile)) if profile else result


def _default_seccomp(host: HostConfig, profile: str) -> str | Object:
    """Of containers that name no profile."""
    if not profile.startswith("/"):
        return "" if profile == "builtin" else profile
    try:
        return _own_profile(defaults.seccomp_profile(profile), capabilities(host))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EngineError(f"seccomp-profile: {profile}: decoding seccomp profile failed: {error}") from None


def _writable_cgroups(host: HostConfig, option: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise BadRequest(f'--security-opt "{option}": true or false is expected')
    if value == "true" and host.cgroupns_mode == "host":
        raise BadRequest("writable-cgroups needs a cgroup namespace of the container's own: --cgroupns private")
    return value == "true"


def _seccomp(host: HostConfig, value: str) -> str | Object:
    if value in ("unconfined", "builtin", ""):
        return "" if value == "builtin" else value
    try:
        return _own_profile(jsontext.loads(value), capabilities(host))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadRequest(f"decoding seccomp profile failed: {error}") from None


def _own_profile(profile: Object, caps: list[str]) -> Object:
    """A profile in docker's format (archMap, includes, excludes) as the specification wants it."""
    machine = os.uname().machine
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    result: Object = {"defaultAction": profile["defaultAction"]}
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


class Command(NamedTuple):
    """A process that is wanted in a container."""

    arguments: list[str]
    user: str  # by the container's own files
    directory: str
    tty: bool
    environment: list[str] = []  # more than the container's
    privileged: bool = False  # has all capabilities, whatever the container has


def process(
    engine: Engine, container: Container, wanted: Command, security: Security, console_size: list[int] | None
) -> Object:
    """The process of a specification, of a container or an exec. `console_size`: height and width; 0 where unknown."""
    host = container.host_config
    caps = available() if wanted.privileged else capabilities(host)
    user = users.find(engine, container, wanted.user, host.group_add)
    linked = engine.endpoints.links.environment(container)
    environ = environment(container, wanted.tty, wanted.environment, linked)
    if user.home and not any(entry.startswith("HOME=") for entry in environ):
        environ.append(f"HOME={user.home}")
    result: Object = {
        "terminal": wanted.tty,
        "user": {"uid": user.uid, "gid": user.gid, "umask": 0o22},
        "args": wanted.arguments,
        "env": environ,
        "cwd": wanted.directory,
        "capabilities": {
            "bounding": caps,
            "effective": caps if user.uid == 0 else [],
            "permitted": caps if user.uid == 0 else [],
        },
        "oomScoreAdj": host.oom_score_adj,
    }
    if user.groups:
        result["user"]["additionalGids"] = user.groups
    if wanted.tty and console_size and any(console_size):
        result["consoleSize"] = {"height": console_size[0], "width": console_size[1]}
    if security.no_new_privileges:
        result["noNewPrivileges"] = True
    if container.apparmor_profile not in ("", "unconfined"):
        result["apparmorProfile"] = container.apparmor_profile
    if limits := defaults.ulimits(host, engine.config):
        result["rlimits"] = rlimits(limits)
    return result


def environment(
    container: Container, tty: bool, extra: list[str] | None = None, linked: list[str] | None = None
) -> list[str]:
    """PATH, HOSTNAME and TERM, then what links say, under what the configuration says; later entries win."""
    values = {"PATH": image_defaults.PATH, "HOSTNAME": container.hostname}
    if tty:
        values["TERM"] = "xterm"
    for entry in (linked or []) + (container.config.env or []) + (extra or []):
        name, equals, value = entry.partition("=")
        if equals:
            values[name] = value
        else:
            values.pop(name, None)
    return [f"{name}={value}" for name, value in values.items()]


def rlimits(ulimits: Iterable[Ulimit]) -> list[Object]:
    return [
        {
            "type": f"RLIMIT_{(limit.name or '').upper()}",
            "soft": _limit(limit.soft or 0),
            "hard": _limit(limit.hard or 0),
        }
        for limit in ulimits
    ]


def _limit(value: int) -> int:
    return value if value >= 0 else (1 << 64) - 1
