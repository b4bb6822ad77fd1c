# SPDX-License-Identifier: Apache-2.0
"""From a ContainerConfig, its pod and its image to the OCI runtime specification. Called by `containers`, on threads.

The defaults are containerd's, because images and pods rely on them. What cannot be is InvalidArgument, by its field.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teu.api.cri.v1 import cri_pb2 as cri
from teu.containerd.core.errors import FailedPrecondition, InvalidArgument
from teu.containerd.cri.records import Pod
from teu.containerd.cri.users import Maps
from teu.linux import apparmor, capabilities
from teu.linux.trees import walk
from teu.oci import cdi, defaults, jsontext, runtime_spec
from teu.oci.defaults import mount
from teu.oci.seccomp import default_profile

Json = dict[str, Any]
VERSION = "1.1.0"
TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
TTY_GROUP = 5  # of terminals, by Debian's and by everybody's /etc/group
STRICT = ("nosuid", "noexec", "nodev")
_PREFIX = "io.kubernetes.cri."
CDI_ANNOTATION = "cdi.k8s.io/"
# What a request may say of a bind mount; whether it can be written, and its propagation, have fields of their own.
BIND_OPTIONS = frozenset(
    [
        "dev",
        "nodev",
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
    ]
)
_SKIPPED = {b"pts", b"shm", b"fd", b"mqueue", b".lxc", b".lxd-mounts", b".udev"}


@dataclass(slots=True)
class Inside:
    """What of a pod a container gets into it: paths on the host."""

    files: Mapping[str, str]  # /etc/hosts and so on, by their place
    shared_memory: str  # of /dev/shm
    namespaces: Mapping[str, str]  # path by the specification's type, of those to join; "" for one of its own
    hostname: str


@dataclass(slots=True)
class Wanted:
    """All that a specification is made of."""

    id: str
    pod: Pod
    config: Any  # ContainerConfig
    image: Mapping[str, Any]  # `config` of the image's configuration
    image_name: str
    inside: Inside
    uid: int = 0
    gid: int = 0
    groups: list[int] = field(default_factory=list)
    volumes: Mapping[str, str] = field(default_factory=dict)  # the image's: place -> path on the host
    edits: cdi.Edits = field(default_factory=cdi.Edits)  # what its CDI devices give
    images: Mapping[int, str] = field(default_factory=dict)  # image volumes: number of the mount -> path on the host

    owns_devices: bool = False  # whether its devices belong to whom the request says that it runs as
    maps: Maps | None = None  # of its pod's user namespace, which is among those to join

    @property
    def security(self) -> Any:
        """LinuxContainerSecurityContext."""
        return self.config.linux.security_context


def build(wanted: Wanted) -> Json:
    """The specification. Raises InvalidArgument, and FailedPrecondition where the host lacks something."""
    config, security = wanted.config, wanted.security
    if security.privileged and not wanted.pod.config.linux.security_context.privileged:
        raise InvalidArgument("no privileged container allowed in sandbox")
    bounding = capability_set(security)
    mounts, propagation = _mounts(wanted)
    linux: Json = {
        "namespaces": namespaces(wanted.inside.namespaces, private_cgroup=not security.privileged or bool(wanted.maps)),
        "resources": resources(config.linux.resources),
        "cgroupsPath": cgroups_path(wanted.pod.config.linux.cgroup_parent, wanted.id),
        "maskedPaths": [] if security.privileged else list(security.masked_paths),
        "readonlyPaths": [] if security.privileged else list(security.readonly_paths),
    }
    linux |= _mappings(wanted.maps)
    if propagation:
        linux["rootfsPropagation"] = propagation
    nodes, rules = devices(config.devices, privileged=security.privileged)
    if wanted.owns_devices:
        nodes = [{**node, **_owner(security)} for node in nodes]
    linux["resources"]["devices"] = rules
    if nodes:
        linux["devices"] = nodes
    if (profile := seccomp(security, bounding)) is not None:
        linux["seccomp"] = profile
    spec: Json = {
        "ociVersion": VERSION,
        "process": _process(wanted, bounding),
        "root": {"path": "rootfs", "readonly": security.readonly_rootfs},
        "mounts": mounts,
        "linux": linux,
        "annotations": notes(wanted),
    }
    try:
        cdi.edit(spec, wanted.edits)
        runtime_spec.check(spec)
    except runtime_spec.SpecError as error:
        raise InvalidArgument(str(error)) from None
    except (cdi.Broken, OSError) as error:
        raise FailedPrecondition(f"CDI device injection failed: {error}") from None
    return spec


def _mappings(maps: Maps | None) -> Json:
    """The members of `linux` by which a runtime knows whose the ids of a joined user namespace are."""
    return {"uidMappings": maps.uids.json, "gidMappings": maps.gids.json} if maps else {}


def device_names(config: Any) -> list[str]:
    """The CDI devices of a ContainerConfig, by its field and by annotations, as device plugins of before have them."""
    found = [one.name for one in config.CDI_devices]
    for key, value in sorted(config.annotations.items()):
        if key.startswith(CDI_ANNOTATION):
            found += value.split(",")
    return list(dict.fromkeys(found))


def notes(wanted: Wanted) -> dict[str, str]:
    """By which other tools know whose container it is."""
    return {
        **sandbox_notes(wanted.pod, "container"),
        f"{_PREFIX}container-name": wanted.config.metadata.name,
        f"{_PREFIX}image-name": wanted.image_name,
    }


def sandbox_notes(pod: Pod, kind: str) -> dict[str, str]:
    """The part of them that says of which pod it is; `kind` is what it is there: container or sandbox."""
    of = pod.config.metadata
    return {
        f"{_PREFIX}container-type": kind,
        f"{_PREFIX}sandbox-id": pod.id,
        f"{_PREFIX}sandbox-name": of.name,
        f"{_PREFIX}sandbox-namespace": of.namespace,
        f"{_PREFIX}sandbox-uid": of.uid,
    }


def cgroups_path(parent: str, id: str) -> str:
    """A scope below the slice that the pod was given, whose name cAdvisor knows; a plain path below one that is no
    slice."""
    name = posixpath.basename(parent.rstrip("/"))
    if not parent or name.endswith(".slice"):
        return f"{name or 'teu.slice'}:cri-containerd:{id}"
    return posixpath.join(parent, id)


def in_slice(spec: Json) -> bool:
    """Whether systemd is to make the container's cgroup."""
    return str(spec["linux"]["cgroupsPath"]).count(":") == 2


def namespaces(joined: Mapping[str, str], *, private_cgroup: bool) -> list[Json]:
    """linux.namespaces: those of `joined`, and what each container has for itself."""
    found: list[Json] = [{"type": "mount"}]
    if private_cgroup:
        found.append({"type": "cgroup"})
    return found + [{"type": kind, "path": path} if path else {"type": kind} for kind, path in joined.items()]


# The process


def command(config: Any, image: Mapping[str, Any]) -> list[str]:
    """The command line, of which the image has what the request does not (Kubernetes: command is the entry point)."""
    program, arguments = list(config.command), list(config.args)
    if not program:
        if not arguments:
            arguments = list(image.get("Cmd") or [])
        program = list(image.get("Entrypoint") or [])
    if not program + arguments:
        raise InvalidArgument("no command specified")
    return program + arguments


def environment(wanted: Wanted) -> list[str]:
    """Later settings replace earlier ones."""
    values: dict[str, str] = {"PATH": defaults.PATH}
    if wanted.config.tty:
        values["TERM"] = "xterm"
    for text in wanted.image.get("Env") or ():
        name, _, value = text.partition("=")
        values[name] = value
    values["HOSTNAME"] = wanted.inside.hostname
    for one in wanted.config.envs:
        values[one.key] = os.fsdecode(one.value)
    return [f"{name}={value}" for name, value in values.items()]


def _process(wanted: Wanted, bounding: list[str]) -> Json:
    config, security = wanted.config, wanted.security
    ambient = [_capability(name) for name in security.capabilities.add_ambient_capabilities]
    sets = {name: list(bounding) for name in ("bounding", "effective", "permitted")}
    if ambient:
        for name in ("bounding", "effective", "permitted"):
            sets[name] += [one for one in ambient if one not in sets[name]]
        sets["ambient"] = sets["inheritable"] = ambient
    process: Json = {
        "terminal": config.tty,
        "user": {"uid": wanted.uid, "gid": wanted.gid, "additionalGids": wanted.groups},
        "args": command(config, wanted.image),
        "env": environment(wanted),
        "cwd": config.working_dir or wanted.image.get("WorkingDir") or "/",
        "capabilities": sets,
        "noNewPrivileges": security.no_new_privs,
        "oomScoreAdj": config.linux.resources.oom_score_adj,
    }
    if profile := _apparmor(security):
        process["apparmorProfile"] = profile
    return process


def _capability(name: str) -> str:
    full = name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"
    if full not in capabilities.NAMES:
        raise InvalidArgument(f"unknown capability {name!r}")
    return full


def capability_set(security: Any) -> list[str]:
    """The capabilities that programs in the container may have."""
    if security.privileged:
        return capabilities.available()
    add = [name.upper() for name in security.capabilities.add_capabilities]
    drop = [name.upper() for name in security.capabilities.drop_capabilities]
    found = list(defaults.CAPABILITIES)
    if "ALL" in add:
        found = capabilities.available()
    if "ALL" in drop:
        found = []
    for name in map(_capability, (name for name in add if name != "ALL")):
        if name not in found:
            found.append(name)
    without = {_capability(name) for name in drop if name != "ALL"}
    return [name for name in found if name not in without]


def profile_of(security: Any, name: str, old: str) -> tuple[int, str]:
    """(type, reference) of a SecurityProfile, or what the field that it has replaced says."""
    if security.HasField(name):
        profile = getattr(security, name)
        return profile.profile_type, profile.localhost_ref
    text = getattr(security, old)
    if text.startswith("localhost/"):
        return cri.SecurityProfile.Localhost, text.removeprefix("localhost/")
    if text in ("runtime/default", "docker/default"):
        return cri.SecurityProfile.RuntimeDefault, ""
    if text in ("", "unconfined"):
        return cri.SecurityProfile.Unconfined, ""
    raise InvalidArgument(f"{old}: {text!r} is no profile")


def seccomp(security: Any, bounding: list[str]) -> Json | None:
    """linux.seccomp; None for a container that may call all."""
    kind, reference = profile_of(security, "seccomp", "seccomp_profile_path")
    if kind != cri.SecurityProfile.Localhost and reference:
        raise InvalidArgument("seccomp config invalid LocalhostRef must only be set if ProfileType is Localhost")
    if security.privileged or kind == cri.SecurityProfile.Unconfined:
        return None
    if kind == cri.SecurityProfile.RuntimeDefault:
        return default_profile(bounding)
    try:
        found = jsontext.loads(Path(reference).read_bytes())
        runtime_spec.check_seccomp(found)
    except OSError as error:
        raise InvalidArgument(
            f'failed to load local seccomp profile "{reference}": {(error.strerror or "").lower()}'
        ) from None
    except ValueError as error:
        raise InvalidArgument(f'failed to load local seccomp profile "{reference}": {error}') from None
    return dict(found)


def _apparmor(security: Any) -> str:
    """The name of the profile; "" for none."""
    kind, reference = profile_of(security, "apparmor", "apparmor_profile")
    if not security.HasField("apparmor") and not security.apparmor_profile:
        kind = cri.SecurityProfile.RuntimeDefault  # where nobody says anything, as of containerd
    if not apparmor.enabled():
        if kind == cri.SecurityProfile.Localhost:
            raise FailedPrecondition("apparmor is not supported on this host")
        return ""
    if security.privileged or kind == cri.SecurityProfile.Unconfined:
        return ""
    if kind == cri.SecurityProfile.Localhost:
        name = reference.removeprefix("localhost/")
        if not apparmor.loaded(name):
            raise InvalidArgument(f"apparmor profile not found {name}")
        return name
    try:
        return apparmor.default_profile(apparmor.DEFAULT)
    except apparmor.NotLoaded as error:
        raise FailedPrecondition(str(error)) from None


# Resources and devices


def resources(wanted: Any) -> Json:
    """linux.resources of a LinuxContainerResources: 0 is no limit."""
    cpu: Json = {}
    for name, key in (
        ("cpu_shares", "shares"),
        ("cpu_quota", "quota"),
        ("cpu_period", "period"),
        ("cpuset_cpus", "cpus"),
        ("cpuset_mems", "mems"),
    ):
        if value := getattr(wanted, name):
            cpu[key] = value
    memory: Json = {}
    if wanted.memory_limit_in_bytes:
        memory["limit"] = wanted.memory_limit_in_bytes
    if wanted.memory_swap_limit_in_bytes:
        memory["swap"] = wanted.memory_swap_limit_in_bytes
    found: Json = {}
    if cpu:
        found["cpu"] = cpu
    if memory:
        found["memory"] = memory
    # kubelet names all sizes of pages with the limit 0, wherever it runs.
    huge = [{"pageSize": one.page_size, "limit": one.limit} for one in wanted.hugepage_limits]
    if any(one["limit"] for one in huge) or (huge and _has_hugetlb()):
        found["hugepageLimits"] = huge
    if wanted.unified:
        found["unified"] = dict(wanted.unified)
    return found


def _has_hugetlb() -> bool:
    try:
        return "hugetlb" in Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    except OSError:
        return False


def _node(path: str, inside: str) -> Json:
    try:
        found = os.stat(path)
    except OSError as error:
        raise InvalidArgument(f"device {path}: {(error.strerror or '').lower()}") from None
    if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise InvalidArgument(f"{path} is not a device node")
    return {
        "path": inside,
        "type": "c" if stat.S_ISCHR(found.st_mode) else "b",
        "major": os.major(found.st_rdev),
        "minor": os.minor(found.st_rdev),
        "fileMode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
    }


def _owner(security: Any) -> Json:
    """The members of a device by which it belongs to a container's user and group, as far as they are given."""
    asked = (("uid", "run_as_user"), ("gid", "run_as_group"))
    return {key: getattr(security, name).value for key, name in asked if security.HasField(name)}


def _below(top: str) -> list[str]:
    """The paths of the devices in a folder."""
    folder = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        below = [
            f"{top}/{os.fsdecode(path)}" for path, _, _, _ in walk(folder) if _SKIPPED.isdisjoint(path.split(b"/"))
        ]
    finally:
        os.close(folder)
    modes = []
    for path in below:
        try:
            modes.append((path, os.lstat(path).st_mode))
        except OSError:
            continue  # it has gone meanwhile
    return [path for path, mode in modes if stat.S_ISCHR(mode) or stat.S_ISBLK(mode)]


def devices(wanted: Iterable[Any], *, privileged: bool) -> tuple[list[Json], list[Json]]:
    """linux.devices, and the rules of linux.resources.devices."""
    if privileged:
        terminals = ("/dev/console", "/dev/ptmx", "/dev/tty")
        return [_node(path, path) for path in _below("/dev") if path not in terminals], [
            {"allow": True, "access": "rwm"}
        ]
    nodes, rules = [], defaults.device_rules()
    for number, one in enumerate(wanted):
        if not one.permissions or one.permissions.strip("rwm"):
            raise InvalidArgument(
                f"config.devices[{number}].permissions must be of r, w and m, not {one.permissions!r}"
            )
        source = os.path.realpath(one.host_path)
        inside = one.container_path or one.host_path
        pairs = [(source, inside)]
        if os.path.isdir(source):
            pairs = [(path, inside + path[len(source) :]) for path in _below(source)]
        for path, place in pairs:
            node = _node(path, place)
            nodes.append(node)
            rule = {key: node[key] for key in ("type", "major", "minor")}
            rules.append({"allow": True, "access": one.permissions, **rule})
    return nodes, rules


# Mounts


def place(path: str) -> str:
    """A path of the container, absolute and without detours."""
    return "/" + posixpath.normpath("/" + path).lstrip("/")


def _mounts(wanted: Wanted) -> tuple[list[Json], str]:
    """The mounts in the order in which they are made, and linux.rootfsPropagation."""
    security = wanted.security
    access = "rw" if security.privileged else "ro"
    found = {entry["destination"]: entry for entry in _basic(wanted, access)}
    for where, source in wanted.volumes.items():
        # The files are as the image has them.
        found[where] = {**mount(where, "bind", source, "rbind", "rprivate", "rw"), **_mappings(wanted.maps)}
    own = "ro" if security.readonly_rootfs else "rw"
    for where, source in wanted.inside.files.items():
        found[where] = mount(where, "bind", source, "rbind", "rprivate", own)
    found["/dev/shm"] = mount("/dev/shm", "bind", wanted.inside.shared_memory, "rbind", "rprivate", "rw")
    propagation = ""
    for number, one in enumerate(wanted.config.mounts):
        where = place(one.container_path)
        if not one.container_path.startswith("/"):
            raise InvalidArgument(f"config.mounts[{number}].container_path must be absolute: {one.container_path!r}")
        entry, of_root = _asked(number, one, where, wanted.images.get(number) or one.host_path)
        found[where] = entry
        propagation = "rshared" if "rshared" in (of_root, propagation) else of_root or propagation
    for given in wanted.edits.mounts:
        found[place(given["destination"])] = {**given, "destination": place(given["destination"])}
    return sorted(found.values(), key=lambda entry: entry["destination"].rstrip("/").count("/")), propagation


def _basic(wanted: Wanted, access: str) -> list[Json]:
    host_ipc = wanted.inside.namespaces.get("ipc") is None
    terminals = ["newinstance", "ptmxmode=0666", "mode=0620"]
    if wanted.maps is None or wanted.maps.gids.length > TTY_GROUP:
        terminals.append(f"gid={TTY_GROUP}")
    system = mount("/sys", "sysfs", "sysfs", *STRICT, access)
    if wanted.maps and wanted.inside.namespaces.get("network") is None:
        # A sysfs shows a network, and is mounted by its owner alone: this one is the host's.
        system = mount("/sys", "bind", "/sys", "rbind", "rprivate", *STRICT, "rro")
    return [
        mount("/proc", "proc", "proc", *STRICT),
        mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", *terminals),
        mount("/dev/mqueue", "bind", "/dev/mqueue", "rbind", *STRICT)
        if host_ipc
        else mount("/dev/mqueue", "mqueue", "mqueue", *STRICT),
        system,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", *STRICT, "relatime", access),
    ]


def _asked(number: int, one: Any, where: str, given: str) -> tuple[Json, str]:
    """A mount of the request, of the path that is given, and what it needs of the root's propagation."""
    if not given:
        raise InvalidArgument(f"config.mounts[{number}].host_path must name what is mounted on {where}")
    if not os.path.lexists(given):
        os.makedirs(given, exist_ok=True)
    source = os.path.realpath(given)
    options = ["rbind"]
    of_root = ""
    if one.propagation == cri.PROPAGATION_BIDIRECTIONAL:
        must_be(source, given, "shared")
        options.append("rshared")
        of_root = "rshared"
    elif one.propagation == cri.PROPAGATION_HOST_TO_CONTAINER:
        must_be(source, given, "shared or slave")
        options.append("rslave")
        of_root = "rslave"
    else:
        options.append("rprivate")
    if one.recursive_read_only:
        if not one.readonly:
            raise InvalidArgument("recursive read-only mount requires readonly")
        if one.propagation != cri.PROPAGATION_PRIVATE:
            raise InvalidArgument("recursive read-only mount requires PROPAGATION_PRIVATE")
        options.append("rro")
    else:
        options.append("ro" if one.readonly else "rw")
    for option in one.mount_options:
        if option not in BIND_OPTIONS:
            told = f"{option!r} is none of {', '.join(sorted(BIND_OPTIONS))}"
            raise InvalidArgument(f"config.mounts[{number}].mount_options: {told}")
        options.append(option)
    entry = mount(where, "bind", source, *options)
    if one.uidMappings and not one.HasField("image"):  # those of an image's layers are mapped already
        entry |= {"uidMappings": _ids(one.uidMappings), "gidMappings": _ids(one.gidMappings)}
    return entry, of_root


def _ids(mappings: Iterable[Any]) -> list[Json]:
    """IDMapping messages as the runtime specification has them."""
    return [{"containerID": one.container_id, "hostID": one.host_id, "size": one.length} for one in mappings]


def must_be(source: str, told: str, wanted: str) -> None:
    """Of the mount that has the source: that it is shared with others as far as propagation needs it."""
    place, tags = "/", []
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields = line.split()
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            if (source == point or source.startswith(point.rstrip("/") + "/")) and len(point) >= len(place):
                place, tags = point, fields[6 : fields.index("-")]
    begins = ("shared:",) if wanted == "shared" else ("shared:", "master:")
    if not any(tag.startswith(begins) for tag in tags):
        raise InvalidArgument(f'path "{told}" is mounted on "{place}" but it is not a {wanted} mount')


# The init of a pod whose containers share their process ids


def of_init(program: str, joined: Mapping[str, str], maps: Maps | None = None) -> Json:
    """The specification of a pod's init, which does nothing but to be there and to reap."""
    return {
        "ociVersion": VERSION,
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/init", "-P"],
            "env": [],
            "cwd": "/",
            "capabilities": {name: [] for name in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            mount("/proc", "proc", "proc", *STRICT),
            # runc and crun make devices, whatever is asked for.
            mount("/dev", "tmpfs", "tmpfs", "nosuid", "noexec", "mode=755", "size=64k"),
            mount("/init", "bind", program, "bind", "ro", "nosuid", "nodev"),
        ],
        "linux": {
            "namespaces": [*namespaces(joined, private_cgroup=True), {"type": "pid"}],
            **_mappings(maps),
            "resources": {"devices": defaults.device_rules()},
            "seccomp": default_profile([]),
            "maskedPaths": list(defaults.MASKED_PATHS),
            "readonlyPaths": list(defaults.READONLY_PATHS),
        },
    }
