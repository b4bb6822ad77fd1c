# SPDX-License-Identifier: Apache-2.0
"""Keys of /etc/teu/containerd.yaml. See teu-containerd.yaml(5)."""

from __future__ import annotations

from teu.config import Key, boolean, duration, integer, list_of, map_of, matching, one_of, path, section, text
from teu.trust import files

FILE = "/etc/teu/containerd.yaml"

_host_port = matching(r"(\[[0-9A-Fa-f:.]+\]|[^:/\s]+):\d{1,5}", "give HOST:PORT, such as 127.0.0.1:0")
_path_or_none = matching(r"(/.*)?", "give an absolute path, such as /etc/teu/streaming.crt")
_template = matching(r"(/.*)?", "give an absolute path, such as /etc/teu/network.template")
_program = matching(r"((/\S*)?[^/\s]+)?", "give a program, such as crun or /usr/bin/crun")
_shim = matching(r"(/\S+|\w+(\.[\w-]+)+)?", "give a runtime's name, such as io.containerd.runc.v2")
_socket = matching(r"(unix://)?/.+", "give a socket, such as /run/teu/teud.sock")

KEYS = (
    Key("root", path, "/var/lib/teu/containerd", "persistent state: content, snapshots, metadata.db"),
    Key("state", path, "/run/teu/containerd", "state that a reboot ends: bundles of running tasks"),
    Key("address", path, "/run/teu/containerd.sock", "socket of the gRPC API; with .ttrpc appended, of shims' events"),
    Key("log-level", one_of("debug", "info", "warn", "error"), "info", "least level that is logged", reload=True),
    Key("threads", integer(4, 1024), 64, "calls that may block at the same time"),
    Key("idle-exit", duration, 60.0, "exit after so long without a call, where systemd listens; 0: never", reload=True),
    Key("wake", list_of(_socket), [], "sockets to connect to when a task exits", reload=True),
    Key(
        "restart-interval",
        duration,
        10.0,
        "compare tasks with the containerd.io/restart labels of their containers so often; 0: never",
        reload=True,
    ),
    Key(
        "image-policy",
        matching(r"(/.*)?", 'give an absolute path, such as /etc/teu/policy.yaml, or ""'),
        files.FILE,
        "file that says which images of registries are let in, by their signatures; see teu-policy(5). Without it, or"
        " where this is empty, all are",
    ),
    Key("default-runtime", text, "io.containerd.teu.v2", "runtime of tasks whose container names none"),
    Key(
        "metrics",
        section(
            Key(
                "address",
                text,
                "",
                "HOST:PORT or /socket that serves Prometheus' /v1/metrics; with it idle-exit is 0; empty: none",
            )
        ),
        {},
        "metrics",
    ),
    Key(
        "gc",
        section(
            Key("delay", duration, 0.01, "sweep so long after a deletion, so that a burst makes one sweep"),
            Key("threshold", integer(1), 100, "collect what is unreferenced after so many changes with a deletion"),
            Key("interval", duration, 60.0, "or so long after a deletion"),
        ),
        {},
        "garbage collection",
    ),
    Key(
        "events",
        section(Key("queue", integer(16), 65536, "events a slow subscriber may fall behind before it is cut off")),
        {},
        "event exchange",
    ),
    Key(
        "snapshots",
        section(
            Key("default", text, "overlayfs", "snapshotter where a request names none"),
            Key("sync", boolean, True, "force a snapshot to disk before its commit is answered"),
            Key("remap", boolean, False, "overlayfs remaps ids by mounts; shims of containerd 1.x do not know how"),
            Key(
                "proxies",
                map_of(
                    section(
                        Key("address", path, "", "socket of the proxy"),
                        Key("capabilities", list_of(text), [], "capabilities to tell clients of"),
                    )
                ),
                {},
                "snapshotters served by other programs over gRPC, by name",
            ),
        ),
        {},
        "snapshotters",
    ),
    Key(
        "unpack",
        section(
            Key("parallel", integer(1, 64), 3, "layers unpacked at the same time"),
        ),
        {},
        "layers",
    ),
    Key(
        "cri",
        section(
            Key("enabled", boolean, False, "serve Kubernetes' Container Runtime Interface, too"),
            Key("name", text, "containerd", "what the runtime is called in Kubernetes: the scheme of containers' ids"),
            Key("networks", path, "/etc/cni/net.d", "configurations of CNI, of which the first by name is the pods'"),
            Key("network-plugins", list_of(path), ["/opt/cni/bin", "/usr/lib/cni"], "folders of CNI's plugins"),
            Key(
                "network-template",
                _template,
                "",
                "template of a configuration of CNI, for a node that has none when kubelet tells the pods' addresses",
            ),
            Key("network-timeout", duration, 120.0, "a plugin that runs so long is killed"),
            Key(
                "registries",
                path,
                "/etc/containerd/certs.d",
                "a folder for each registry that is reached in its own way, with a hosts.toml",
            ),
            Key(
                "streaming-address",
                _host_port,
                "127.0.0.1:0",
                "where kubelet is sent to for exec, attach and port-forward; port 0 is any free one",
            ),
            Key("streaming-certificate", _path_or_none, "", "file with the certificate by which that speaks TLS"),
            Key("streaming-key", _path_or_none, "", "file with its private key; empty: it is in the certificate's"),
            Key(
                "cdi-spec-dirs",
                list_of(path),
                ["/etc/cdi", "/var/run/cdi"],
                "where files of CDI devices are, the later before the earlier",
            ),
            Key(
                "device-ownership",
                boolean,
                False,
                "devices belong to the user and the group that a container's security context names",
            ),
            Key(
                "runtimes",
                map_of(
                    section(
                        Key("binary", _program, "", "program or path of an OCI runtime, such as crun; empty: teu-runc"),
                        Key("shim", _shim, "", "another shim than the pods', with containerd's options for runc"),
                    )
                ),
                {},
                "runtimes for RuntimeClasses, by their handlers",
            ),
            Key("pinned-images", list_of(text), [], "images that kubelet is never to remove"),
        ),
        {},
        "pods of Kubernetes",
    ),
    Key(
        "nri",
        section(
            Key("disable", boolean, False, "do without plugins of the Node Resource Interface, where pods are served"),
            Key("socket-path", path, "/var/run/nri/nri.sock", "socket that plugins connect to"),
            Key("plugin-path", path, "/opt/nri/plugins", "folder of plugins that are started, called NN-NAME"),
            Key("plugin-config-path", path, "/etc/nri/conf.d", "their configurations, NN-NAME.conf or NAME.conf"),
            Key("plugin-registration-timeout", duration, 5.0, "a plugin that has not registered then is disconnected"),
            Key("plugin-request-timeout", duration, 2.0, "a plugin that has not answered then is disconnected"),
            Key("disable-connections", boolean, False, "only the plugins that are started here; no socket"),
            Key(
                "default-validator",
                section(
                    Key("enable", boolean, False, "check what plugins change of containers by these keys"),
                    Key("reject-oci-hook-adjustment", boolean, False, "no hooks"),
                    Key(
                        "reject-runtime-default-seccomp-adjustment",
                        boolean,
                        False,
                        "no other seccomp policy than the runtime's default, where the pod asks for that",
                    ),
                    Key(
                        "reject-unconfined-seccomp-adjustment",
                        boolean,
                        False,
                        "no seccomp policy where the pod asks for none",
                    ),
                    Key(
                        "reject-custom-seccomp-adjustment",
                        boolean,
                        False,
                        "no other seccomp policy than the pod's own",
                    ),
                    Key("reject-namespace-adjustment", boolean, False, "no other namespaces"),
                    Key("reject-sysctl-adjustment", boolean, False, "no sysctls"),
                    Key(
                        "required-plugins",
                        list_of(text),
                        [],
                        "plugins without which no container is made; pods may name more in the annotation"
                        " required-plugins.noderesource.dev",
                    ),
                    Key(
                        "tolerate-missing-plugins-annotation",
                        text,
                        "",
                        "annotation by which a pod does without them; empty: none",
                    ),
                ),
                {},
                "built-in validator",
            ),
        ),
        {},
        "plugins of the Node Resource Interface (NRI), where pods are served",
    ),
)
