# SPDX-License-Identifier: Apache-2.0
"""The keys of teud.yaml. Called by main; documented for operators in teud.yaml(5) and the shipped file."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any
from urllib.parse import urlsplit

from teu.config import (
    Key,
    Kind,
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
    size,
    text,
)
from teu.engine.containers import defaults, runtimes
from teu.engine.containers.defaults import Limit
from teu.engine.core.errors import EngineError
from teu.engine.logs import registry
from teu.engine.networks import hostfirewall, options
from teu.engine.networks.ipam import Source
from teu.oci import cdi
from teu.trust import files

FILE = "/etc/teu/teud.yaml"
API_OLDEST = "1.24"
LEVELS = ("debug", "info", "warn", "error", "fatal")


def address(value: object) -> str:
    """Where to listen."""
    if isinstance(value, str):
        if value.startswith(("fd://", "unix:///")):
            return value
        if value.startswith("tcp://") and tcp_target(value, 1) is not None:
            return value
    raise Wrong("give fd://, unix:///path or tcp://HOST:PORT")


def tcp_target(value: str, port: int) -> tuple[str, int] | None:
    """(host, port) of tcp://[HOST][:PORT]; an empty host is every address, and `port` the one where none is given.
    None: it is none."""
    try:
        parts = urlsplit(value)
        given = parts.port
    except ValueError:
        return None
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc or not parts.netloc:
        return None
    return parts.hostname or "", given if given is not None else port


def _of(version: int, read: Any, says: str) -> Kind:
    """A text that `read` takes, which gives something of that family; or an empty one."""

    def check(value: object) -> str:
        try:
            if value == "" or isinstance(value, str) and read(value).version == version:
                return str(value)
        except ValueError:
            pass
        raise Wrong(says)

    return check


def either_address(value: object) -> str:
    """An address of either family, or an empty text."""
    try:
        if isinstance(value, str):
            return str(ip_address(value)) if value else ""
    except ValueError:
        pass
    raise Wrong("give an IP address, such as 127.0.0.1")


def source_of_subnets(value: object) -> Source:
    """One of default-address-pools."""
    says = "give {base: 10.200.0.0/16, size: 24}, a network and the length of the prefixes of its pieces"
    if not isinstance(value, dict) or set(value) != {"base", "size"}:
        raise Wrong(says)
    size = value["size"]
    try:
        base = ip_network(value["base"])
    except ValueError as error:
        raise Wrong(f"{says}: {error}") from None
    if isinstance(size, bool) or not isinstance(size, int) or not base.prefixlen <= size <= base.max_prefixlen - 2:
        raise Wrong(f"{says}; size is from {base.prefixlen} to {base.max_prefixlen - 2} here")
    return Source(base, size)


def _mtu(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value and not 68 <= value <= 65535:
        raise Wrong("give a whole number, 68 to 65535, or 0")
    return value


def server_address(value: object) -> str:
    """Of a server for names; one of a link (fe80::1%eth0), too."""
    try:
        if isinstance(value, str) and ip_address(value.partition("%")[0]):
            return value
    except ValueError:
        pass
    raise Wrong("give an IP address, such as 192.0.2.53")


def _printable(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or not value.strip():
        raise Wrong("give a string of one line")
    return value


def ulimit(value: object) -> Limit:
    """One of default-ulimits, in --ulimit's form or docker's."""
    says = "give SOFT:HARD, one number for both, or {Soft: 1024, Hard: 2048}; -1 is no limit"
    if isinstance(value, dict):
        known = {str(key).lower(): each for key, each in value.items()}
        soft, hard, name = known.pop("soft", None), known.pop("hard", None), known.pop("name", "")
        if known or not isinstance(name, str) or not all(type(each) is int for each in (soft, hard)):
            raise Wrong(says)
        return Limit(int(soft or 0), int(hard or 0), name.lower())
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Wrong(says)
    first, colon, second = str(value).partition(":")
    try:
        return Limit(int(first), int(second if colon else first))
    except ValueError:
        raise Wrong(says) from None


def _stop_seconds(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= 86400:
        raise Wrong("give a whole number of seconds, 0 to 86400, or -1: no end")
    return value


def _seccomp(value: object) -> str:
    if value not in ("", "builtin", "unconfined") and not (isinstance(value, str) and value.startswith("/")):
        raise Wrong("give builtin, unconfined or the absolute path of a profile")
    return str(value)


def _metrics_address(value: object) -> str:
    if value == "":
        return ""
    if isinstance(value, str) and (place := tcp_target(f"tcp://{value}", 0)) and place[1]:
        return value
    raise Wrong("give HOST:PORT, such as 127.0.0.1:9323")


FEATURES = ("buildkit", "cdi", "containerd-snapshotter")


def _features(value: object) -> dict[str, bool]:
    if not isinstance(value, dict) or any(name not in FEATURES or on is not True for name, on in value.items()):
        raise Wrong(f"give {{{', '.join(f'{name}: true' for name in FEATURES)}}}, or leave it out")
    return value


def _runtime(value: object) -> object:
    """Kept as it is written."""
    try:
        runtimes.read(value)
    except ValueError as error:
        raise Wrong(str(error)) from None
    return value


def _api_version(value: object) -> str:
    match = re.fullmatch(r"1\.(\d{1,3})", str(value))
    if not isinstance(value, str | float) or not match or int(match[1]) < 24:
        raise Wrong('give a version, "1.24" or a newer one')
    return str(value)


def without_proxy(value: object) -> bool:
    """userland-proxy: there is none."""
    if value is not False:
        raise Wrong("give false, or leave it out")
    return False


KEYS = (
    Key("hosts", list_of(address), ["unix:///run/teu/teud.sock"], "where to listen; the unit's -H fd:// goes first"),
    Key("tls", boolean, False, "encrypt tcp:// addresses; tlsverify, without which they are refused, implies it"),
    Key(
        "tlsverify",
        boolean,
        False,
        "serve tcp:// addresses with TLS, and only clients with a certificate of tlscacert's authority",
    ),
    Key("tlscacert", path, "/etc/teu/tls/ca.pem", "certificate of the authority of clients", reload=True),
    Key("tlscert", path, "/etc/teu/tls/cert.pem", "teud's own certificate; read again when it changes", reload=True),
    Key("tlskey", path, "/etc/teu/tls/key.pem", "the key of that certificate", reload=True),
    Key(
        "tls-names",
        list_of(text),
        [],
        "names in clients' certificates (common or alternative ones) that are let in; empty: all of the authority",
        reload=True,
    ),
    Key(
        "insecure-tcp",
        boolean,
        False,
        "serve tcp:// without tlsverify, too: whoever reaches the address is root on this host",
    ),
    Key(
        "authorization-plugins",
        list_of(text),
        [],
        "docker's plugins that are asked of each request, and whether its answer may be given",
        reload=True,
    ),
    Key("group", text, "teu", "group of a socket that teud makes itself"),
    Key(
        "containerd",
        path,
        "/run/teu/containerd.sock",
        "socket of containerd's gRPC API: teu-containerd's or containerd's",
    ),
    Key("builder", path, "/run/teu/buildkitd.sock", "socket of BuildKit's gRPC API: teu-buildkitd's or buildkitd's"),
    Key("data-root", path, "/var/lib/teu/engine", "persistent state: engine.db, volumes, container files"),
    Key("exec-root", path, "/run/teu/engine", "state that a reboot ends: FIFOs, network namespaces"),
    Key("log-level", one_of(*LEVELS), "info", "least level of teud's own messages", reload=True),
    Key(
        "log-format",
        one_of("text", "json"),
        "text",
        "of teud's own messages: text, with fields in the journal; json: an object on a line, as dockerd's",
    ),
    Key(
        "metrics-addr",
        _metrics_address,
        "",
        "where Prometheus gets figures, by HTTP at /metrics, and whoever else reaches it; with it teud stays, whatever"
        " idle-exit says; empty: nowhere",
    ),
    Key(
        "features",
        _features,
        {},
        "known to docker's users; what can be turned on there is always on here",
    ),
    Key(
        "labels",
        list_of(matching(r"[^=\s][^=]*=.*", "give KEY=VALUE")),
        [],
        "what this engine is called by those who choose among several: KEY=VALUE in teu info",
        reload=True,
    ),
    Key(
        "min-api-version",
        _api_version,
        API_OLDEST,
        "oldest version of the Engine API that a client may speak",
        reload=True,
    ),
    Key(
        "image-policy",
        matching(r"(/.*)?", 'give an absolute path, such as /etc/teu/policy.yaml, or ""'),
        files.FILE,
        "file that says which images of registries are let in, by their signatures; see teu-policy(5). Without it, or"
        " where this is empty, all are",
        reload=True,
    ),
    Key("storage-driver", text, "overlayfs", "snapshotter of containerd for images and containers"),
    Key(
        "image-ids",
        one_of("config", "target"),
        "config",
        "what names an image: the digest of its configuration, or of the manifest or index that its name stands for, as"
        " since docker keeps images in containerd",
    ),
    Key(
        "default-runtime",
        text,
        runtimes.OWN,
        "runtime of containers that name none: one of runtimes, teu, runc, or containerd's name of a shim",
        reload=True,
    ),
    Key(
        "runtimes",
        map_of(_runtime),
        {},
        "more runtimes for --runtime, by names of yours: a program with runc's command line, or a shim of containerd's",
        reload=True,
    ),
    Key(
        "firewall",
        one_of(*hostfirewall.MODES),
        hostfirewall.OBEY,
        "how published ports stand to the host's own firewall: obey it, open as with docker, none; see teu-firewall(7)",
    ),
    Key(
        "log-driver",
        text,
        "journald",
        "log driver of containers that name none: journald, json-file, local, none, syslog, fluentd, gelf or a plugin"
        " (see teu-logs(7))",
        reload=True,
    ),
    Key("log-opts", map_of(text), {}, "its options", reload=True),
    Key(
        "cdi-spec-dirs",
        list_of(path),
        list(cdi.FOLDERS),
        "where files of CDI devices are, for --device VENDOR/CLASS=NAME and --gpus; the later before the earlier",
        reload=True,
    ),
    Key("init", boolean, False, "run an init in containers that do not say", reload=True),
    Key("init-path", text, "", "the init program for --init; empty: docker-init or tini-static", reload=True),
    Key(
        "default-shm-size",
        size,
        defaults.SHM_SIZE,
        "size of /dev/shm in a container that is made without --shm-size",
        reload=True,
    ),
    Key(
        "default-storage-size",
        size,
        0,
        "how much a container may write into its root that is made without --storage-opt size; 0: all there is; see"
        " teud(8)",
        reload=True,
    ),
    Key(
        "default-ipc-mode",
        one_of(*defaults.IPC_MODES),
        "private",
        "IPC namespace of a container that is made without --ipc",
        reload=True,
    ),
    Key(
        "default-cgroupns-mode",
        one_of(*defaults.CGROUPNS_MODES),
        "private",
        "cgroup namespace of a container that is made without --cgroupns",
        reload=True,
    ),
    Key(
        "default-ulimits",
        map_of(ulimit),
        {},
        "limits, as {nofile: 1024:4096}, of every container that is started without a --ulimit of that name",
        reload=True,
    ),
    Key(
        "default-stop-timeout",
        _stop_seconds,
        defaults.STOP_SECONDS,
        "seconds from the stop signal to SIGKILL for containers without --stop-timeout",
        reload=True,
    ),
    Key(
        "no-new-privileges",
        boolean,
        False,
        "start containers without a way to more privileges (setuid programs); --security-opt no-new-privileges=false"
        " says otherwise for one",
        reload=True,
    ),
    Key(
        "seccomp-profile",
        _seccomp,
        "builtin",
        "seccomp profile of containers that name none, in docker's format; the file is read again when it changes",
        reload=True,
    ),
    Key(
        "dns",
        list_of(server_address),
        [],
        "servers for names of containers that name none; empty: the host's own",
        reload=True,
    ),
    Key(
        "dns-search",
        list_of(_printable),
        [],
        "search domains of containers that name none; empty: the host's own",
        reload=True,
    ),
    Key(
        "dns-opts",
        list_of(_printable),
        [],
        "options in resolv.conf of containers that name none; empty: the host's own",
        reload=True,
    ),
    Key(
        "host-gateway-ips",
        list_of(server_address),
        [],
        "what host-gateway stands for in --add-host; empty: the host's address on the container's network",
        reload=True,
    ),
    Key("cgroup-parent", text, "", "slice of containers that name none; empty: teu.slice", reload=True),
    Key("apparmor-profile", text, "teu-default", "AppArmor profile where it is loaded; empty: none", reload=True),
    Key(
        "default-address-pools",
        list_of(source_of_subnets),
        [],
        "where the subnets of networks come from that name none; of a family that is not among them as if empty:"
        " 172.17.0.0/16 to 172.31.0.0/16 and pieces of 192.168.0.0/16, for IPv6 pieces of a network of this host's own",
    ),
    Key(
        "default-network-opts",
        map_of(map_of(text)),
        {},
        "by driver, options of every new network that says nothing of them: {bridge: {KEY: VALUE}}",
    ),
    Key(
        "bip",
        _of(4, ip_interface, "give an IPv4 address with the length of its network, such as 10.9.0.1/24"),
        "",
        "address of the default bridge, and so its subnet; empty: from default-address-pools. It, and what else is of"
        " its subnets, is changed once no container is on the bridge",
    ),
    Key(
        "fixed-cidr",
        _of(4, ip_network, "give an IPv4 network, such as 10.9.0.128/25"),
        "",
        "part of the default bridge's subnet that containers' addresses are taken from",
    ),
    Key(
        "default-gateway",
        _of(4, ip_address, "give an IPv4 address"),
        "",
        "by whom the default bridge's containers go out; empty: by the bridge",
    ),
    Key("ipv6", boolean, False, "the default bridge has IPv6, too"),
    Key(
        "bip6",
        _of(6, ip_interface, "give an IPv6 address with the length of its network, such as fd00:9::1/64"),
        "",
        "as bip, for IPv6",
    ),
    Key(
        "fixed-cidr-v6",
        _of(6, ip_network, "give an IPv6 network, such as fd00:9::/64"),
        "",
        "as fixed-cidr, for IPv6",
    ),
    Key(
        "default-gateway-v6",
        _of(6, ip_address, "give an IPv6 address"),
        "",
        "as default-gateway, for IPv6",
    ),
    Key("mtu", _mtu, 0, "MTU of the default bridge and its containers, 68 to 65535; 0: the kernel's"),
    Key("icc", boolean, True, "containers on the default bridge reach each other"),
    Key(
        "ip",
        either_address,
        "",
        "address of the host at which the default bridge's ports are published that name none; empty: every one",
    ),
    Key("ip-masq", boolean, True, "the default bridge's containers go out under the host's address"),
    Key(
        "ip-forward",
        boolean,
        True,
        "turn the host's forwarding on, without which containers have no way out; false: leave it as it is",
    ),
    Key(
        "userland-proxy", without_proxy, False, "known to docker's users; rules of the kernel publish ports, no program"
    ),
    Key(
        "idle-exit",
        duration,
        60.0,
        "exit after so long without a client and without a container that needs teud, where systemd listens; 0: never",
        reload=True,
    ),
    Key("shutdown-timeout", integer(0, 3600), 5, "seconds that open requests get when teud stops"),
    Key(
        "insecure-registries",
        list_of(matching(r"[^/\s]+(/\d+)?", "give HOST, HOST:PORT or a network such as 10.0.0.0/8")),
        [],
        "registries spoken to by http, or https with an unknown certificate",
        reload=True,
    ),
    Key("registry-mirrors", list_of(text), [], "mirrors of Docker Hub, tried first", reload=True),
    Key("max-concurrent-downloads", integer(1, 64), 3, "layers downloaded at the same time", reload=True),
    Key("max-concurrent-uploads", integer(1, 64), 5, "layers of a push that are sent at the same time", reload=True),
    Key(
        "max-download-attempts",
        integer(1, 100),
        5,
        "how often a registry is asked again after a failure that may pass",
        reload=True,
    ),
    Key(
        "proxies",
        section(
            Key("http-proxy", text, "", "for registries without TLS, as http://proxy.example:3128"),
            Key("https-proxy", text, "", "for registries with TLS"),
            Key("no-proxy", text, "", "hosts and domains that are reached without, with commas between them"),
        ),
        {},
        "by which proxies registries are reached; where they say nothing, HTTP_PROXY, HTTPS_PROXY and NO_PROXY do",
    ),
)


def _doubled(labels: list[str]) -> str:
    """A key with several values among labels; "" where there is none."""
    known: dict[str, str] = {}
    for key, _, value in (label.partition("=") for label in labels):
        if known.setdefault(key, value) != value:
            return key
    return ""


def check(settings: Settings) -> None:
    """What a single key cannot tell. Raises EngineError with the remedy."""
    try:
        registry.check(settings["log-driver"], settings["log-opts"])
    except EngineError as error:
        key = "log-opts" if settings["log-driver"] in registry.DRIVERS else "log-driver"
        raise EngineError(f"{settings.where(key)}: {key}: {error}; see teud.yaml(5)") from None
    if any(host.startswith("tcp://") for host in settings["hosts"]):
        check_tcp(settings)
    if doubled := _doubled(settings["labels"]):
        raise EngineError(f"{settings.where('labels')}: labels: {doubled} has several values; see teud.yaml(5)")
    try:
        runtimes.find("", settings)
    except EngineError as error:
        raise EngineError(f"{settings.where('default-runtime')}: default-runtime: {error}; see teud.yaml(5)") from None
    for key, wrong in (*options.check(settings), *defaults.check(settings)):
        raise EngineError(f"{settings.where(key)}: {key}: {wrong}; see teud.yaml(5)")


def check_tcp(settings: Settings) -> None:
    """Raises EngineError unless who comes by TCP has to show a certificate, or the operator has said that none is asked
    for."""
    if not settings["tlsverify"] and not settings["insecure-tcp"]:
        raise EngineError(
            "an address of TCP is served only with tlsverify: true and certificates, as whoever reaches it is root on "
            "this host; insecure-tcp: true serves it to all; see teud.yaml(5)"
        )
