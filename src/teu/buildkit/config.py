# SPDX-License-Identifier: Apache-2.0
"""The keys of buildkitd.yaml, and what they mean to the rooms. Called by main and daemon; documented for operators in
teu-buildkitd.yaml(5) and the shipped file.
"""

from __future__ import annotations

import re
from typing import Any

from teu.buildkit.cache.policies import Policy, defaults, size
from teu.config import (
    ConfigError,
    Key,
    Settings,
    Wrong,
    boolean,
    duration,
    integer,
    list_of,
    map_of,
    matching,
    one_of,
    path,
    section,
    text,
)
from teu.oci import cdi
from teu.trust import files

FILE = "/etc/teu/buildkitd.yaml"
LEVELS = ("debug", "info", "warn", "error")

_SPACE = re.compile(r"(100|\d{1,2})%|\d+(\.\d+)?\s*[kKmMgGtTpP]?([iI]?[bB])?")


def space(value: Any) -> str:
    """Bytes, or a part of the file system."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not _SPACE.fullmatch(text):
        raise Wrong("give a size such as 512m, 10GB or 20% of the file system")
    return text


_subnet = matching(r"|\d{1,3}(\.\d{1,3}){3}/\d{1,2}", "give a subnet such as 10.210.0.0/16")
_LIMITS = (
    Key("reserved-space", space, "0", "the cache is never made smaller than that; 0: no such limit"),
    Key("max-used-space", space, "0", "nor left bigger; 0: no such limit"),
    Key(
        "min-free-space", space, "0", "what has to be free on the disk, as far as the reserve allows; 0: no such limit"
    ),
)

KEYS = (
    Key("address", path, "/run/teu/buildkitd.sock", "socket of the gRPC API where systemd passes none"),
    Key("containerd", path, "/run/teu/containerd.sock", "socket of containerd's gRPC API: teu-containerd's, or any"),
    Key("namespace", text, "teu", "namespace in containerd; the engine's images are in teu"),
    Key("root", path, "/var/lib/teu/buildkit", "persistent state: cache.db, history.db"),
    Key("state", path, "/run/teu/buildkit", "state that a reboot ends: FIFOs, mounts, network namespaces"),
    Key("log-level", one_of(*LEVELS), "info", "least level that is logged", reload=True),
    Key(
        "idle-exit",
        duration,
        60.0,
        "exit after so long without a call and a build, where systemd listens; 0: never",
        reload=True,
    ),
    Key("parallelism", integer(0, 4096), 0, "steps that run at the same time; 0: as many as builds have ready"),
    Key(
        "entitlements",
        list_of(one_of("network.host", "security.insecure", "device")),
        ["network.host", "device"],
        "what clients may ask for with --allow: network.host, security.insecure, device",
    ),
    Key(
        "frontends",
        section(
            Key(
                "fetch-dockerfile",
                boolean,
                False,
                "fetch the image that `# syntax=docker/dockerfile` names; else the built-in frontend takes its place",
                reload=True,
            ),
            Key("gateway", boolean, True, "run frontends of other images, each in a container", reload=True),
            Key(
                "allowed-repositories",
                list_of(text),
                [],
                "repositories that frontends may come from; empty: any",
                reload=True,
            ),
        ),
        {},
        "frontends",
    ),
    Key(
        "worker",
        section(
            Key("snapshotter", text, "overlayfs", "snapshotter of containerd"),
            Key(
                "runtime",
                text,
                "",
                "runtime of steps; empty: io.containerd.teu.v2, or what containerd has. With any other one, secrets"
                " that a step has as variables are in containerd's record of its container until it starts",
            ),
            Key("platforms", list_of(text), [], "platforms that steps may run on; empty: the host's and binfmt's"),
            Key("labels", map_of(text), {}, "labels that clients see of the worker"),
            Key(
                "slice",
                matching(r"[\w-]+\.slice", "give a slice, such as teu-build.slice"),
                "teu-build.slice",
                "slice of steps that name none",
            ),
            Key("apparmor-profile", text, "teu-default", "AppArmor profile of steps where it is loaded; empty: none"),
            Key("pids-limit", integer(), 0, "processes that a step may have; 0: any number"),
        ),
        {},
        "how steps run",
    ),
    Key(
        "devices",
        section(
            Key(
                "folders",
                list_of(path),
                list(cdi.FOLDERS),
                "where files of CDI devices are, the later before the earlier",
            ),
            Key(
                "allowed",
                list_of(text),
                [],
                "devices (VENDOR/CLASS=NAME) and kinds of them (VENDOR/CLASS) that steps may have without --allow",
            ),
        ),
        {},
        "devices of steps (RUN --device)",
    ),
    Key(
        "network",
        section(
            Key("mode", one_of("bridge", "host", "none"), "bridge", "network of steps that ask for none"),
            Key("subnet", _subnet, "", "of the bridge; empty: one that is free"),
            Key("mtu", integer(0, 65536), 0, "of the bridge; 0: the kernel's"),
            Key("pool", integer(0, 16), 2, "network namespaces that wait for steps"),
        ),
        {},
        "network of steps",
    ),
    Key(
        "dns",
        section(
            Key("servers", list_of(text), [], "name servers of steps; empty: the host's"),
            Key("search", list_of(text), [], "search domains of steps"),
            Key("options", list_of(text), [], "options of resolv.conf"),
        ),
        {},
        "name resolution of steps",
    ),
    Key(
        "proxy",
        section(
            Key("http", text, "", "HTTP_PROXY of the builder, for registries and downloads"),
            Key("https", text, "", "HTTPS_PROXY"),
            Key("no", text, "", "NO_PROXY: hosts that are spoken to directly"),
        ),
        {},
        "proxies",
    ),
    Key(
        "registries",
        map_of(
            section(
                Key("mirrors", list_of(text), [], "asked first, to pull: HOST[:PORT][/PATH] or URLs"),
                Key("http", boolean, False, "speak plain http"),
                Key("insecure", boolean, False, "accept any certificate, and http where there is no TLS"),
                Key("ca", list_of(path), [], "files of certificate authorities"),
                Key("certificates", list_of(path), [], "client certificates"),
                Key("keys", list_of(path), [], "their keys, in the same order"),
            )
        ),
        {},
        "registries by HOST[:PORT]",
    ),
    Key(
        "image-policy",
        matching(r"(/.*)?", 'give an absolute path, such as /etc/teu/policy.yaml, or ""'),
        files.FILE,
        "file that says which images of registries are let in, by their signatures; see teu-policy(5). Without it, or"
        " where this is empty, all are",
    ),
    Key("certs", path, "/etc/teu/certs.d", "folder of registries' certificates and hosts.toml, as docker's certs.d"),
    Key(
        "gc",
        section(
            Key("enabled", boolean, True, "collect garbage after builds, and now and then", reload=True),
            Key("delay", duration, 10.0, "from the end of a build to the collection after it"),
            *_LIMITS,
            Key(
                "policies",
                map_of(
                    section(
                        Key("filters", list_of(text), [], "records that it is about; empty: all"),
                        Key("all", boolean, False, "internal records and those of frontends, too"),
                        Key("keep-duration", duration, 0.0, "what was used since then stays"),
                        *_LIMITS,
                    )
                ),
                {},
                "policies, gone through in this order; empty: BuildKit's four, with the limits above",
            ),
        ),
        {},
        "garbage collection",
    ),
    Key(
        "history",
        section(
            Key("max-age", duration, 48 * 3600.0, "builds that ended longer ago are forgotten; 0: never", reload=True),
            Key("max-entries", integer(), 50, "how many builds are kept; 0: any number", reload=True),
        ),
        {},
        "history of builds",
    ),
)


def check(settings: Settings) -> None:
    """What one key alone cannot tell. Raises ConfigError."""
    for host, one in settings["registries"].items():
        if len(one["certificates"]) != len(one["keys"]):
            raise ConfigError(
                f"{settings.where(f'registries.{host}')}: registries.{host}: has {len(one['certificates'])}"
                f" certificates and {len(one['keys'])} keys; give a key for each certificate"
            )
    level: Any = settings["log-level"]
    if level not in LEVELS:
        raise ConfigError(f"--log-level {level}: give {', '.join(LEVELS)}")


def policies(settings: Settings, total: int) -> tuple[Policy, ...]:
    """The policies of the garbage collection, on a file system of `total` bytes; none where it is switched off."""
    gc = settings["gc"]
    if not gc["enabled"]:
        return ()

    def limits(one: Any) -> dict[str, int]:
        return {
            "reserved": size(one["reserved-space"], total),
            "max_used": size(one["max-used-space"], total),
            "min_free": size(one["min-free-space"], total),
        }

    if not gc["policies"]:
        return defaults(total, **limits(gc))
    return tuple(
        Policy(tuple(one["filters"]), one["all"], one["keep-duration"], **limits(one))
        for one in gc["policies"].values()
    )
