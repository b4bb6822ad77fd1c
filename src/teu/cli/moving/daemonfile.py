# SPDX-License-Identifier: Apache-2.0
"""docker's daemon.json becomes a file of teud.yaml.d: each key is used, needless, or named as not understood. Called by
`importing`.

A table says which key means something else here; of all others teud itself is asked whether it takes them, by that name
and with that value (`teud --validate`). Without teud on this host only those are used that are known to be the same."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile

from teu.cli.errors import CommandError
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

FILE = "/etc/docker/daemon.json"
TARGET = "/etc/teu/teud.yaml.d/50-docker.yaml"
SERVER = "/usr/sbin/teud"
USED, NEEDLESS, UNKNOWN = "used", "needless", "not understood"

# The same here as there, in every version of teud.
SAME = (
    "bip",
    "bip6",
    "cgroup-parent",
    "default-address-pools",
    "default-gateway",
    "default-gateway-v6",
    "default-cgroupns-mode",
    "default-ipc-mode",
    "default-network-opts",
    "default-shm-size",
    "default-ulimits",
    "dns",
    "dns-opts",
    "dns-search",
    "fixed-cidr",
    "fixed-cidr-v6",
    "host-gateway-ips",
    "icc",
    "init",
    "init-path",
    "insecure-registries",
    "labels",
    "log-format",
    "max-concurrent-uploads",
    "max-download-attempts",
    "min-api-version",
    "proxies",
    "ip",
    "ip-forward",
    "ip-masq",
    "ipv6",
    "log-driver",
    "firewall",
    "log-level",
    "log-opts",
    "max-concurrent-downloads",
    "metrics-addr",
    "mtu",
    "no-new-privileges",
    "registry-mirrors",
    "runtimes",
    "default-runtime",
    "seccomp-profile",
    "shutdown-timeout",
)
# Where teud does that anyway, or where it does not matter; and why.
ALWAYS = {
    "containerd": "teud has a containerd of its own",
    "containerd-namespace": "teud has a containerd of its own",
    "containerd-plugin-namespace": "managed plugins are in the namespace plugins.teu",
    "data-root": "docker's folder stays docker's; images, volumes and containers are taken over from it",
    "exec-root": "docker's folder stays docker's",
    "experimental": "nothing here is behind it",
    "graph": "docker's folder stays docker's; images, volumes and containers are taken over from it",
    "group": "the unit teud.socket says which group its socket has",
    "live-restore": "containers always outlive teud",
    "pidfile": "systemd knows the process",
    "raw-logs": "teud's messages have no colours",
    "userland-proxy": "rules of the kernel publish ports",
    "userland-proxy-path": "rules of the kernel publish ports",
}
# What there is no key for, and what does it.
ELSEWHERE = {
    "cpu-rt-period": "control groups of version 2 have no real-time budgets",
    "cpu-rt-runtime": "control groups of version 2 have no real-time budgets",
    "builder": "builds are teu-buildkitd's: teu-buildkitd.yaml(5)",
    "oom-score-adjust": "systemctl edit teud: OOMScoreAdjust=",
    "userns-remap": "containers of the other engine's ids are not taken over",
}
Verdict = tuple[str, str, str]


class Result:
    """`values`: teud.yaml's keys. `verdicts`: (docker's key, used or needless or not understood, what or why)."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.verdicts: list[Verdict] = []

    def say(self, key: str, verdict: str, why: str) -> None:
        self.verdicts.append((key, verdict, why))

    def use(self, key: str, name: str, value: Any) -> None:
        self.values[name] = value
        self.say(key, USED, f"{name}: {jsontext.dumps(value)}")


def read(path: str) -> dict[str, Any]:
    """The file's mapping. CommandError where it is none; FileNotFoundError."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        found = jsontext.loads(data) if data.strip() else {}
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise CommandError(f"{path} is not a JSON object")
    return found


def translate(given: dict[str, Any]) -> Result:
    """Every key, in the file's order."""
    result = Result()
    for key, value in given.items():
        if key in SPECIAL:
            SPECIAL[key](result, key, value)
        elif key in ALWAYS:
            result.say(key, NEEDLESS, ALWAYS[key])
        else:
            result.use(key, key, value)
    return result


def _debug(result: Result, key: str, value: Any) -> None:
    if value is True:
        result.use(key, "log-level", "debug")
    else:
        result.say(key, NEEDLESS, "is so")


def _log_opts(result: Result, key: str, value: Any) -> None:
    if isinstance(value, dict):
        result.use(
            key, key, {name: each if isinstance(each, str) else jsontext.dumps(each) for name, each in value.items()}
        )
    else:
        result.say(key, UNKNOWN, "it is not an object")


def _hosts(result: Result, key: str, value: Any) -> None:
    addresses = value if isinstance(value, list) else [value]
    sockets = [each for each in addresses if isinstance(each, str) and each.startswith("unix://")]
    others = [str(each) for each in addresses if each not in sockets and not str(each).startswith("fd://")]
    if others:
        result.say(key, UNKNOWN, f"{', '.join(others)}: teud listens on Unix sockets alone; from afar use ssh")
    if sockets and not others:
        result.say(
            key, NEEDLESS, "the unit teud.socket listens; docker's own address comes with the package teu-docker"
        )
    elif not others:
        result.say(key, NEEDLESS, "systemd listens")


def _iptables(result: Result, key: str, value: Any) -> None:
    if value is False and key == "iptables":
        result.use(key, "firewall", "none")
    elif value is False:
        result.say(key, UNKNOWN, "teud's rules are for both families, or (firewall: none) for neither")
    else:
        result.say(key, NEEDLESS, "teud has its own rules in nftables; see firewall in teud.yaml(5)")


def _storage(result: Result, key: str, value: Any) -> None:
    if value in ("overlay2", "overlayfs", "overlay"):
        result.say(key, NEEDLESS, "overlayfs is the default")
    else:
        result.say(key, UNKNOWN, f"teud keeps images on overlayfs, not on {value}")


def _storage_opts(result: Result, key: str, value: Any) -> None:
    others = []
    for each in value if isinstance(value, list) else [value]:
        name, equals, size = str(each).partition("=")
        if name.lower() == "overlay2.size" and equals:
            result.use(key, "default-storage-size", size)
        else:
            others.append(str(each))
    if others:
        why = "options of snapshotters are teu-containerd's: teu-containerd.yaml(5)"
        result.say(key, UNKNOWN, f"{', '.join(others)}: {why}")


def _exec_opts(result: Result, key: str, value: Any) -> None:
    if value == ["native.cgroupdriver=systemd"]:
        result.say(key, NEEDLESS, "every container is a unit of systemd's")
    else:
        result.say(key, UNKNOWN, "every container is a unit of systemd's")


def _features(result: Result, key: str, value: Any) -> None:
    known = {"buildkit": True, "containerd-snapshotter": True}
    if isinstance(value, dict) and all(known.get(name) == each for name, each in value.items()):
        result.say(key, NEEDLESS, "is so")
    else:
        result.say(key, UNKNOWN, "teud has no such features")


def _default_runtime(result: Result, key: str, value: Any) -> None:
    if value == "runc":
        result.say(key, NEEDLESS, "teu-runc is in its place; --runtime io.containerd.runc.v2 is runc")
    else:
        result.use(key, key, value)


def _gateway(result: Result, key: str, value: Any) -> None:
    result.use(key, "host-gateway-ips", [value])


def _proxy(result: Result, key: str, value: Any) -> None:
    """As docker's flags are called; in daemon.json they are keys of `proxies`."""
    result.use(key, "proxies", {**result.values.get("proxies", {}), key: value})


SPECIAL: dict[str, Callable[[Result, str, Any], None]] = {
    "debug": _debug,
    "default-runtime": _default_runtime,
    "exec-opts": _exec_opts,
    "features": _features,
    "host-gateway-ip": _gateway,
    "hosts": _hosts,
    "http-proxy": _proxy,
    "https-proxy": _proxy,
    "ip6tables": _iptables,
    "iptables": _iptables,
    "log-opts": _log_opts,
    "no-proxy": _proxy,
    "storage-driver": _storage,
    "storage-opts": _storage_opts,
}
# Keys that teud looks at together.
TOGETHER: tuple[tuple[str, ...], ...] = (
    ("log-driver", "log-opts"),
    ("default-runtime", "runtimes"),
    ("bip", "fixed-cidr", "default-gateway"),
)
TOGETHER += (("bip6", "fixed-cidr-v6", "default-gateway-v6", "ipv6"),)


def text(values: dict[str, Any], source: str) -> str:
    """The file: JSON's values are YAML's as well."""
    head = f"# Made of {source} by `teu system import-docker`. Keys: teud.yaml(5)\n"
    return head + "".join(f"{key}: {jsontext.dumps(value)}\n" for key, value in values.items())


def refused(values: dict[str, Any]) -> str:
    """What teud says to these values; "" where it takes them."""
    with tempfile.TemporaryDirectory(prefix="teu-import-") as folder:
        path = f"{folder}/teud.yaml"
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text(values, FILE))
        done = subprocess.run(
            [SERVER, "--validate", "--config", path], capture_output=True, text=True, errors="replace", check=False
        )
        if not done.returncode:
            return ""
        said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        return re.sub(rf"{re.escape(path)}:\d+: ", "", said)


def settle(result: Result) -> None:
    """Take out what teud refuses, and say so: key by key, or those together that it looks at together."""
    if not os.access(SERVER, os.X_OK):
        for key in [key for key in result.values if key not in SAME]:
            _take_out(result, key, "teud is not here to be asked")
        return
    if not result.values or not refused(result.values):
        return
    groups = [group for group in TOGETHER if any(key in result.values for key in group)]
    grouped = {key for group in groups for key in group}
    for group in [*groups, *((key,) for key in result.values if key not in grouped)]:
        part = {key: result.values[key] for key in group if key in result.values}
        said = refused(part)
        if not said:
            continue
        for key in part:
            _take_out(result, key, said.rpartition("teud: ")[2])


def _take_out(result: Result, key: str, why: str) -> None:
    del result.values[key]
    for number, (theirs, verdict, what) in enumerate(result.verdicts):
        if verdict == USED and what.startswith(f"{key}: "):
            result.verdicts[number] = (theirs, UNKNOWN, ELSEWHERE.get(theirs, why))


def write(result: Result, source: str, target: str = TARGET) -> None:
    """Put the file in its place, whole or not at all."""
    folder = os.path.dirname(target)
    os.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.teu-import"  # no *.yaml: nobody reads it
    with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text(result.values, source))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
