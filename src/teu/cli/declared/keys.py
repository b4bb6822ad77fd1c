# SPDX-License-Identifier: Apache-2.0
"""Every key that podman 5 has in its Quadlet files, by section: what it becomes, or why it is refused.

    flag --x     the last value is the option's
    all --x      each value is
    words --x    each word of each value is
    truth --x    yes or no
    own          translate.py knows it
    no: REASON   refused with this reason, in the journal and by `teu system validate`

Options are those of `teu run`, of `teu network create` and so on, and teu-unit's own (unit.py).
"""

from __future__ import annotations

MODULE = "no: modules of containers.conf are podman's; defaults for all containers are in /etc/teu/teud.yaml"
GLOBAL = "no: options of the podman program; the unit finds the daemon by the variable TEU_HOST"
IDS = "no: a container has no user namespace of its own here"
OLD = "no: podman itself has given it up for UserNS="
RETRY = "flag --retry"
CHECK_LOG = "no: the engine keeps the last five results of a check, see teu inspect"
LABELS = "no: the engine's containers have no SELinux labels"
CERTIFICATES = "no: put a registry's certificates into /etc/docker/certs.d/HOST"
INSECURE = "no: a registry without TLS is named in /etc/teu/teud.yaml, insecure-registries"

CONTAINER = {
    "AddCapability": "words --cap-add",
    "AddDevice": "own",
    "AddHost": "all --add-host",
    "Annotation": "words --annotation",
    "AppArmor": "own",
    "AutoUpdate": "own",
    "CgroupsMode": "own",
    "ContainerName": "own",
    "ContainersConfModule": MODULE,
    "DNS": "all --dns",
    "DNSOption": "all --dns-option",
    "DNSSearch": "all --dns-search",
    "DropCapability": "words --cap-drop",
    "Entrypoint": "flag --entrypoint",
    "Environment": "words --env",
    "EnvironmentFile": "own",
    "EnvironmentHost": "truth --env-host",
    "Exec": "own",
    "ExposeHostPort": "all --expose",
    "GIDMap": IDS,
    "GlobalArgs": GLOBAL,
    "Group": "own",
    "GroupAdd": "own",
    "HealthCmd": "own",
    "HealthInterval": "own",
    "HealthLogDestination": "own",
    "HealthMaxLogCount": CHECK_LOG,
    "HealthMaxLogSize": CHECK_LOG,
    "HealthOnFailure": "own",
    "HealthRetries": "flag --health-retries",
    "HealthStartPeriod": "flag --health-start-period",
    "HealthStartupCmd": "flag --health-startup-cmd",
    "HealthStartupInterval": "flag --health-startup-interval",
    "HealthStartupRetries": "flag --health-startup-retries",
    "HealthStartupSuccess": "flag --health-startup-success",
    "HealthStartupTimeout": "flag --health-startup-timeout",
    "HealthTimeout": "flag --health-timeout",
    "HostName": "flag --hostname",
    "HttpProxy": "truth --http-proxy",
    "IP": "flag --ip",
    "IP6": "flag --ip6",
    "Image": "own",
    "Label": "words --label",
    "LogDriver": "own",
    "LogOpt": "all --log-opt",
    "Mask": "own",
    "Memory": "flag --memory",
    "Mount": "own",
    "Network": "own",
    "NetworkAlias": "all --network-alias",
    "NoNewPrivileges": "own",
    "Notify": "own",
    "PidsLimit": "flag --pids-limit",
    "Pod": "own",
    "PodmanArgs": "own",
    "PublishPort": "all --publish",
    "Pull": "own",
    "ReadOnly": "truth --read-only",
    "ReadOnlyTmpfs": "truth --read-only-tmpfs",
    "ReloadCmd": "own",
    "ReloadSignal": "own",
    "RemapGid": OLD,
    "RemapUid": OLD,
    "RemapUidSize": OLD,
    "RemapUsers": OLD,
    "Retry": RETRY,
    "RetryDelay": "flag --retry-delay",
    "Rootfs": "no: a container here is of an image; teu import makes one of a folder",
    "RunInit": "truth --init",
    "SeccompProfile": "own",
    "Secret": "own",
    "SecurityLabelDisable": "own",
    "SecurityLabelFileType": LABELS,
    "SecurityLabelLevel": LABELS,
    "SecurityLabelNested": LABELS,
    "SecurityLabelType": LABELS,
    "ServiceName": "own",
    "ShmSize": "flag --shm-size",
    "StartWithPod": "own",
    "StopSignal": "flag --stop-signal",
    "StopTimeout": "own",
    "SubGIDMap": IDS,
    "SubUIDMap": IDS,
    "Sysctl": "words --sysctl",
    "Timezone": "flag --tz",
    "Tmpfs": "all --tmpfs",
    "UIDMap": IDS,
    "Ulimit": "all --ulimit",
    "Unmask": "own",
    "User": "own",
    "UserNS": "own",
    "VolatileTmp": "own",
    "Volume": "own",
    "WorkingDir": "flag --workdir",
}

POD = {
    "AddHost": "all --add-host",
    "ContainersConfModule": MODULE,
    "DNS": "all --dns",
    "DNSOption": "all --dns-option",
    "DNSSearch": "all --dns-search",
    "ExitPolicy": "own",
    "GIDMap": IDS,
    "GlobalArgs": GLOBAL,
    "HostName": "flag --hostname",
    "IP": "flag --ip",
    "IP6": "flag --ip6",
    "Label": "words --label",
    "Network": "own",
    "NetworkAlias": "all --network-alias",
    "PodName": "own",
    "PodmanArgs": "own",
    "PublishPort": "all --publish",
    "RemapGid": OLD,
    "RemapUid": OLD,
    "RemapUidSize": OLD,
    "RemapUsers": OLD,
    "ServiceName": "own",
    "ShmSize": "flag --shm-size",
    "StopTimeout": "own",
    "SubGIDMap": IDS,
    "SubUIDMap": IDS,
    "UIDMap": IDS,
    "UserNS": "own",
    "Volume": "own",
}

NETWORK = {
    "ContainersConfModule": MODULE,
    "DNS": "no: servers of names are given to containers (DNS=), or to all in /etc/teu/teud.yaml",
    "DisableDNS": "own",
    "Driver": "flag --driver",
    "Gateway": "all --gateway",
    "GlobalArgs": GLOBAL,
    "IPAMDriver": "own",
    "IPRange": "all --ip-range",
    "IPv6": "truth --ipv6",
    "InterfaceName": "own",
    "Internal": "truth --internal",
    "Label": "words --label",
    "NetworkDeleteOnStop": "own",
    "NetworkName": "own",
    "Options": "own",
    "PodmanArgs": "own",
    "ServiceName": "own",
    "Subnet": "all --subnet",
}

VOLUME = {
    "ContainersConfModule": MODULE,
    "Copy": "own",
    "Device": "own",
    "Driver": "own",
    "GlobalArgs": GLOBAL,
    "Group": "flag --owner-group",
    "Image": "no: volumes of the driver image are podman's; mount an image with Mount=type=image",
    "Label": "words --label",
    "Options": "own",
    "PodmanArgs": "own",
    "ServiceName": "own",
    "Type": "own",
    "User": "flag --owner",
    "VolumeName": "own",
}

IMAGE = {
    "AllTags": "truth --all-tags",
    "Arch": "own",
    "AuthFile": "own",
    "CertDir": CERTIFICATES,
    "ContainersConfModule": MODULE,
    "Creds": "flag --creds",
    "DecryptionKey": "no: images that are encrypted cannot be read",
    "GlobalArgs": GLOBAL,
    "Image": "own",
    "ImageTag": "own",
    "OS": "own",
    "PodmanArgs": "own",
    "Retry": RETRY,
    "RetryDelay": "flag --retry-delay",
    "ServiceName": "own",
    "TLSVerify": "own",
    "Variant": "own",
}

BUILD = {
    "Annotation": "words --annotation",
    "Arch": "own",
    "AuthFile": "no: the passwords for registries are those of the user root, see teu-login(1)",
    "BuildArg": "words --build-arg",
    "ContainersConfModule": MODULE,
    "DNS": "no: steps of a build ask the servers that /etc/teu/buildkitd.yaml names",
    "DNSOption": "no: steps of a build ask the servers that /etc/teu/buildkitd.yaml names",
    "DNSSearch": "no: steps of a build ask the servers that /etc/teu/buildkitd.yaml names",
    "Environment": "no: a build takes BuildArg=, and the Dockerfile's ENV",
    "File": "own",
    "ForceRM": "own",
    "GlobalArgs": GLOBAL,
    "GroupAdd": "no: steps of a build have the groups of the image's user",
    "IgnoreFile": "no: the builder reads .dockerignore, or DOCKERFILE.dockerignore",
    "ImageTag": "own",
    "Label": "words --label",
    "Network": "own",
    "PodmanArgs": "own",
    "Pull": "own",
    "Retry": "no: the builder itself tries again",
    "RetryDelay": "no: the builder itself tries again",
    "Secret": "all --secret",
    "ServiceName": "own",
    "SetWorkingDirectory": "own",
    "TLSVerify": "own",
    "Target": "flag --target",
    "Variant": "own",
    "Volume": "no: a step has RUN --mount=type=bind and type=cache in the Dockerfile",
}

# Of the section that a kind of file has for itself.
SECTIONS = {
    "container": ("Container", CONTAINER),
    "pod": ("Pod", POD),
    "network": ("Network", NETWORK),
    "volume": ("Volume", VOLUME),
    "image": ("Image", IMAGE),
    "build": ("Build", BUILD),
}
QUADLET = {"DefaultDependencies": "own"}
INSTALL = ("Alias", "WantedBy", "RequiredBy", "UpheldBy", "DefaultInstance")

# Keys of [Unit] whose words may name declared files.
DEPENDENCIES = frozenset(
    (
        "After",
        "Before",
        "BindsTo",
        "Conflicts",
        "OnFailure",
        "OnSuccess",
        "PartOf",
        "PropagatesReloadTo",
        "PropagatesStopTo",
        "ReloadPropagatedFrom",
        "Requires",
        "Requisite",
        "StopPropagatedFrom",
        "Upholds",
        "Wants",
    )
)

# A container that is in a pod has what belongs to the network from the pod.
OF_THE_POD = frozenset(
    ("AddHost", "DNS", "DNSOption", "DNSSearch", "HostName", "IP", "IP6", "Network", "NetworkAlias", "PublishPort")
)

# podman's words for the options of networks, by what the drivers here call them.
NETWORK_OPTIONS = {
    "mtu": "com.docker.network.driver.mtu",
    "parent": "parent",
    "vlan": "",
    "isolate": "",
    "metric": "",
    "no_default_route": "",
    "vrf": "",
    "bclim": "",
}

# podman's own log drivers, which teud does not have
FOREIGN_LOGS = ("k8s-file", "passthrough", "passthrough-tty")
# podman's own kinds of networks for containers
FOREIGN_NETWORKS = ("pasta", "slirp4netns", "private", "ns")
