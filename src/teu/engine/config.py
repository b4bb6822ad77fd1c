# SPDX-License-Identifier: Apache-2.0
"""The keys of teud.yaml. Called by main; documented for operators in teud.yaml(5) and the shipped file."""

from __future__ import annotations

from teu.config import Key, Settings, Wrong, boolean, duration, integer, list_of, map_of, matching, one_of, path, text
from teu.engine.core.errors import EngineError
from teu.engine.logs import registry

FILE = "/etc/teu/teud.yaml"
LEVELS = ("debug", "info", "warn", "error", "fatal")


def address(value: object) -> str:
    """Where to listen."""
    if not isinstance(value, str) or not value.startswith(("fd://", "unix:///")):
        raise Wrong("give fd:// or unix:///path")
    return value


KEYS = (
    Key("hosts", list_of(address), ["unix:///run/teu/teud.sock"], "where to listen; the unit's -H fd:// goes first"),
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
    Key("storage-driver", text, "overlayfs", "snapshotter of containerd for images and containers"),
    Key("default-runtime", text, "io.containerd.teu.v2", "runtime of containers that name none", reload=True),
    Key("runtimes", map_of(text), {}, "short names for runtimes of containerd, for --runtime", reload=True),
    Key("log-driver", one_of(*registry.DRIVERS), "journald", "log driver of containers that name none", reload=True),
    Key("log-opts", map_of(text), {}, "its options", reload=True),
    Key("init", boolean, False, "run an init in containers that do not say", reload=True),
    Key("init-path", text, "", "the init program for --init; empty: docker-init or tini-static", reload=True),
    Key("cgroup-parent", text, "", "slice of containers that name none; empty: teu.slice", reload=True),
    Key("apparmor-profile", text, "teu-default", "AppArmor profile where it is loaded; empty: none", reload=True),
    Key(
        "idle-exit",
        duration,
        0.0,
        "exit after so long without a client and without a running container, where systemd listens; 0: never",
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
)


def check(settings: Settings) -> None:
    """What a single key cannot tell. Raises EngineError with the remedy."""
    try:
        registry.check(settings["log-driver"], settings["log-opts"])
    except EngineError as error:
        raise EngineError(f"{settings.where('log-opts')}: log-opts: {error}; see teud.yaml(5)") from None
