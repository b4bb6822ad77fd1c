# SPDX-License-Identifier: Apache-2.0
"""What the versions of Docker's API have different from each other, in three tables: members of answers, members of
bodies, and routes. Called by the views, which make an answer with all members of all versions, by the routes and the
server.

What is here is what moby's history of the API says (api/docs/CHANGELOG.md), and its routers do. Where a version changes
what a request means, and not how it looks, the code that does it asks for the version itself.

A parameter of an address that a later version has brought is heeded at an earlier one as well: whoever sends it means
it, and `teu` asks no server twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from teu.engine.core.errors import BadRequest

Version = tuple[int, int]

FIRST: Version = (1, 24)
LAST: Version = (1, 1 << 30)


class Member(NamedTuple):
    """A member of an answer that not all versions have: there from `since` on, and up to the one before `until`.

    `path`: names with dots between them, in which `*` is each item of a list, or each value of an object.
    `empty`: it is left out only where there is nothing in it."""

    path: str
    since: Version = FIRST
    until: Version = LAST
    empty: bool = False


class Given(NamedTuple):
    """The same of a request's body. What its version does not have is passed over; with `refused` whoever gives it is
    told that, unless it is empty. `value`: only this one is meant."""

    path: str
    since: Version = FIRST
    until: Version = LAST
    refused: str = ""
    value: object = None


def _of(prefix: str, names: str, since: Version = FIRST, until: Version = LAST, empty: bool = False) -> list[Member]:
    return [Member(prefix + name, since, until, empty) for name in names.split()]


# Of the endpoint on the default bridge, and what has had no meaning for long.
_OF_THE_BRIDGE = """Bridge HairpinMode LinkLocalIPv6Address LinkLocalIPv6PrefixLen SecondaryIPAddresses
    SecondaryIPv6Addresses EndpointID Gateway GlobalIPv6Address GlobalIPv6PrefixLen IPAddress IPPrefixLen IPv6Gateway
    MacAddress"""
# Members of a container's Config that are none of an image's.
_OF_CONTAINERS = """Hostname Domainname AttachStdin AttachStdout AttachStderr Tty OpenStdin StdinOnce Image
    NetworkDisabled MacAddress StopTimeout"""
_OF_BLOCK_DEVICES = (
    "BlkioWeightDevice",
    "BlkioDeviceReadBps",
    "BlkioDeviceWriteBps",
    "BlkioDeviceReadIOps",
    "BlkioDeviceWriteIOps",
)

ANSWERS: dict[str, tuple[Member, ...]] = {
    "containers": (
        Member("*.HostConfig.Annotations", since=(1, 46)),
        Member("*.ImageManifestDescriptor", since=(1, 48)),
        Member("*.NetworkSettings.Networks.*.GwPriority", since=(1, 48), empty=True),
        Member("*.Health", since=(1, 52)),
    ),
    "container": (
        Member("ImageManifestDescriptor", since=(1, 48)),
        Member("NetworkSettings.Networks.*.GwPriority", since=(1, 48), empty=True),
        Member("Config.MacAddress", until=(1, 52)),
        Member("Config.OnBuild", until=(1, 52), empty=True),
        Member("GraphDriver", until=(1, 52)),
        Member("Storage", since=(1, 52)),
        *_of("NetworkSettings.", _OF_THE_BRIDGE, until=(1, 52)),
    ),
    "statistics": (Member("os_type", since=(1, 52)),),
    "images": (
        Member("*.VirtualSize", until=(1, 44)),
        Member("*.Manifests.*.Identity", since=(1, 54)),
    ),
    "image": (
        Member("VirtualSize", until=(1, 44)),
        Member("Created", until=(1, 44), empty=True),
        *_of("", "Container ContainerConfig", until=(1, 45)),
        *_of("Config.", _OF_CONTAINERS, until=(1, 50)),
        *_of("Config.", "Cmd Entrypoint Env Labels OnBuild User Volumes WorkingDir", until=(1, 52), empty=True),
        *_of("", "Parent Comment DockerVersion Author", until=(1, 52), empty=True),
        Member("GraphDriver", until=(1, 52)),
        Member("Identity", since=(1, 53)),
    ),
    "network": (
        Member("EnableIPv4", since=(1, 48)),
        Member("Status.IPAM", since=(1, 52)),
        Member("Status", since=(1, 52), empty=True),
    ),
    "info": (
        Member("Containerd", since=(1, 46)),
        *_of("RegistryConfig.AllowNondistributableArtifacts", "CIDRs Hostnames", until=(1, 47)),
        *_of("", "ContainerdCommit.Expected RuncCommit.Expected InitCommit.Expected", until=(1, 49)),
        Member("FirewallBackend", since=(1, 49)),
        *_of("", "BridgeNfIptables BridgeNfIp6tables", until=(1, 50)),
        Member("DiscoveredDevices", since=(1, 50)),
    ),
    "df": (
        Member("BuilderSize", until=(1, 42)),
        Member("Images.*.VirtualSize", until=(1, 44)),
        Member("Containers.*.HostConfig.Annotations", since=(1, 46)),
        *_of("", "ImageUsage ContainerUsage VolumeUsage BuildCacheUsage", since=(1, 52)),
    ),
    "event": tuple(_of("", "status id from", until=(1, 52))),
}

BODIES: dict[str, tuple[Given, ...]] = {
    "create": (
        Given("HostConfig.AutoRemove", since=(1, 25)),  # it was the client's to do
        Given("HostConfig.Mounts.*.BindOptions.NonRecursive", since=(1, 40)),
        Given("HostConfig.Mounts.*.BindOptions.CreateMountpoint", since=(1, 42)),
        Given("HostConfig.ConsoleSize", since=(1, 42)),
        Given("HostConfig.Annotations", since=(1, 43)),
        Given("Healthcheck.StartInterval", since=(1, 44)),
        Given("NetworkingConfig.EndpointsConfig.*.MacAddress", since=(1, 44)),
        Given(
            "HostConfig.Mounts.*.BindOptions.ReadOnlyForceRecursive",
            since=(1, 44),
            refused="BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer",
        ),
        Given(
            "HostConfig.Mounts.*.VolumeOptions.Subpath",
            since=(1, 45),
            refused="VolumeOptions.Subpath needs API v1.45 or newer",
        ),
        Given("NetworkingConfig.EndpointsConfig.*.GwPriority", since=(1, 48)),
        Given(
            "HostConfig.Mounts.*.Type",
            since=(1, 48),
            refused='Mount type "image" needs API v1.48 or newer',
            value="image",
        ),
        Given(
            "MacAddress",
            until=(1, 52),
            refused="container-wide MAC address no longer supported; use endpoint-specific MAC address instead",
        ),
    ),
    "update": (
        Given("PidsLimit", since=(1, 40)),
        # Before, a list of no devices has said nothing.
        *(Given(name, since=(1, 55), value=[]) for name in _OF_BLOCK_DEVICES),
    ),
    "exec": (Given("ConsoleSize", since=(1, 42)),),
    "network": (Given("EnableIPv4", since=(1, 48)),),
}


# Routes that versions before have not. dockerd has come to refuse older ones, too, at versions that it has no more by
# default (POST /containers/prune before 1.25); those that Debian has answer them at all versions, and so are they here.
ROUTES: dict[tuple[str, str], Version] = {("GET", "/images/{name:path}/attestations"): (1, 55)}


def check_route(method: str, pattern: str, version: Version) -> None:
    """Raises BadRequest for a route that this version does not have. It is no 404, as in Docker: that has a meaning of
    its own with most routes."""
    since = ROUTES.get((method, pattern), FIRST)
    if version < since:
        raise BadRequest(f"{method} {pattern} requires minimum API version {since[0]}.{since[1]}")


def fit(answer: str, value: object, version: Version) -> None:
    """Leave out of an answer, of one of ANSWERS' kinds, what this version does not have."""
    for member in ANSWERS[answer]:
        if not member.since <= version < member.until:
            for place, name in _places(value, member.path.split(".")):
                if not (member.empty and place[name]):
                    del place[name]


def heed(body: str, value: object, version: Version) -> None:
    """Leave out of a body, of one of BODIES' kinds, what this version does not have. Raises BadRequest."""
    for given in BODIES[body]:
        if given.since <= version < given.until:
            continue
        for place, name in _places(value, given.path.split("."), _named):
            if given.value is not None and place[name] != given.value:
                continue
            if given.refused and place[name]:
                raise BadRequest(given.refused)
            del place[name]


def _named(place: dict[str, object], name: str) -> list[str]:
    """In a body the case of a name does not matter (kinds.Shape)."""
    return [key for key in place if key.casefold() == name.casefold()]


def _exactly(place: dict[str, object], name: str) -> list[str]:
    return [name] if name in place else []


def _places(
    value: object, path: list[str], found: Callable[[dict[str, object], str], list[str]] = _exactly
) -> list[tuple[dict[str, object], str]]:
    """Where a path leads: objects, and the name in each, of those that have it, as `found` finds it."""
    name, *rest = path
    if name == "*":
        inner = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
        return [place for one in inner for place in _places(one, rest, found)]
    if not isinstance(value, dict):
        return []
    keys = found(value, name)
    if not rest:
        return [(value, key) for key in keys]
    return [place for key in keys for place in _places(value[key], rest, found)]
