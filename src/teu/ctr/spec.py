# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime specification of a new container: the default, the image's configuration, the user's options.

Called by `run` and `oci spec`."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from teu.ctr import blockio
from teu.ctr.errors import CommandError
from teu.ctr.flags import Options
from teu.linux import capabilities
from teu.oci import defaults, jsontext
from teu.oci.defaults import mount
from teu.oci.seccomp import default_profile

Json = dict[str, Any]

VERSION = "1.2.0"
PATH = f"PATH={defaults.PATH}"
MASKED = [*defaults.MASKED_PATHS[:-1], defaults.POWERCAP, defaults.MASKED_PATHS[-1]]
NAMESPACES = ("cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts")


def default(namespace: str, identity: str) -> Json:
    """A container with private namespaces, few capabilities and no limits."""
    return {
        "ociVersion": VERSION,
        "process": {
            "user": {"uid": 0, "gid": 0},
            "cwd": "/",
            **defaults.rights(defaults.CAPABILITIES),
        },
        "root": {"path": "rootfs"},
        "mounts": [
            mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
            *defaults.mounts(),
            mount("/run", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "cgroupsPath": f"/{namespace}/{identity}".rstrip("/"),
            "namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount", "network", "cgroup")],
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(defaults.READONLY_PATHS),
        },
    }


def device_rules() -> list[Json]:
    """The devices that every container may use, besides none at all."""

    def allow(kind: str, major: int, minor: int | None, access: str = "rwm") -> Json:
        rule: Json = {"allow": True, "type": kind, "major": major, "access": access}
        if minor is not None:
            rule["minor"] = minor
        return rule

    return [
        *(allow("c", major, minor) for major, minor in ((1, 3), (1, 8), (1, 7), (5, 0), (1, 5), (1, 9), (5, 1))),
        allow("c", 136, None),
        allow("c", 5, 2),
    ]


def own_capabilities() -> list[str]:
    """All capabilities that we have to give."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        mask = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return [name for number, name in enumerate(capabilities.NAMES) if mask >> number & 1]


def merge_environment(base: list[str], more: list[str]) -> list[str]:
    """Later settings replace earlier ones; a name without a value removes it."""
    values = {word.partition("=")[0]: word for word in base}
    for word in more:
        name, equals, _ = word.partition("=")
        if equals:
            values[name] = word
        else:
            values.pop(name, None)
    return list(values.values())


def from_image(spec: Json, config: Mapping[str, Any], arguments: list[str]) -> None:
    """What the image says of its process; the user is `set_user`'s."""
    process = spec["process"]
    process["env"] = merge_environment([PATH], config.get("Env") or [])
    command = arguments or config.get("Cmd") or []
    process["args"] = [*(config.get("Entrypoint") or []), *command]
    if config.get("WorkingDir"):
        process["cwd"] = config["WorkingDir"]


def lines_of(root: Path | None, name: str) -> list[list[str]]:
    """The fields of /etc/passwd or /etc/group below `root`, which is not followed through links."""
    if root is None:
        return []
    path = root / "etc" / name
    try:
        if (root / "etc").is_symlink() or path.is_symlink():
            return []
        return [line.split(":") for line in path.read_text(errors="replace").splitlines() if line.count(":") > 2]
    except OSError:
        return []


def set_user(spec: Json, text: str, root: Path | None) -> None:
    """`NAME|UID[:GROUP|GID]` by the container's own files; the groups that its user is in are added."""
    name, _, group = text.partition(":")
    users = lines_of(root, "passwd")
    groups = lines_of(root, "group")
    uid, gid, user_name = 0, 0, name or "root"
    if name.isascii() and name.isdigit():
        uid = int(name)
        entry = next((fields for fields in users if fields[2] == name), None)
        user_name = entry[0] if entry else name
        gid = int(entry[3]) if entry and entry[3].isdigit() else 0
    elif name:
        entry = next((fields for fields in users if fields[0] == name), None)
        if entry is None:
            raise CommandError(f"no users found: the image has no user {name}")
        uid, gid = int(entry[2]), int(entry[3])
    if group.isascii() and group.isdigit():
        gid = int(group)
    elif group:
        found = next((fields for fields in groups if fields[0] == group), None)
        if found is None:
            raise CommandError(f"no groups found: the image has no group {group}")
        gid = int(found[2])
    user: Json = {"uid": uid, "gid": gid}
    more = sorted(int(f[2]) for f in groups if user_name in f[3].split(",") and f[2].isdigit() and int(f[2]) != gid)
    user["additionalGids"] = [gid, *more]
    spec["process"]["user"] = user


def parse_mount(text: str) -> Json:
    mount: Json = {"options": []}
    for field in text.split(","):
        key, equals, value = field.partition("=")
        if not equals:
            raise CommandError("invalid mount specification: expected key=val")
        if key == "type":
            mount["type"] = value
        elif key in ("source", "src"):
            mount["source"] = value
        elif key in ("destination", "dst", "target"):
            mount["destination"] = value
        elif key == "options":
            mount["options"] = value.split(":")
        else:
            raise CommandError(f"mount option {key!r} not supported".replace("'", '"'))
    if not mount.get("destination"):
        raise CommandError(f"mount {text} has no destination")
    return mount


def host_device(path: str) -> Json:
    found = os.stat(path)
    if stat.S_ISCHR(found.st_mode):
        kind = "c"
    elif stat.S_ISBLK(found.st_mode):
        kind = "b"
    else:
        raise CommandError(f"{path} is not a device")
    return {
        "path": path,
        "type": kind,
        "major": os.major(found.st_rdev),
        "minor": os.minor(found.st_rdev),
        "fileMode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
    }


def devices_below(path: str) -> list[Json]:
    if not os.path.isdir(path):
        try:
            return [host_device(path)]
        except OSError as error:
            raise CommandError(f"device {path}: {(error.strerror or '').lower()}") from None
    found = []
    for name in sorted(os.listdir(path)):
        inner = os.path.join(path, name)
        if name in ("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console") or os.path.islink(inner):
            continue
        if os.path.isdir(inner):
            found += devices_below(inner)
        else:
            try:
                found.append(host_device(inner))
            except (OSError, CommandError):
                continue
    return found


def add_device(spec: Json, device: Json) -> None:
    linux = spec["linux"]
    linux.setdefault("devices", []).append(device)
    rule = {key: device[key] for key in ("type", "major", "minor")}
    linux["resources"]["devices"].append({"allow": True, **rule, "access": "rwm"})


def change_capabilities(spec: Json, change: Callable[[list[str]], list[str]]) -> None:
    sets = spec["process"]["capabilities"]
    for name in ("bounding", "effective", "permitted"):
        sets[name] = change(sets[name])


def apply_options(spec: Json, options: Options) -> None:
    """The flags of `run` and `containers create`."""
    spec["linux"]["resources"]["devices"] += device_rules()
    set_process(spec, options)
    if options["privileged-without-host-devices"] and not options["privileged"]:
        raise CommandError("can't use 'privileged-without-host-devices' without 'privileged' specified")
    if options["privileged"]:
        make_privileged(spec, with_devices=not options["privileged-without-host-devices"])
    if options["net-host"]:
        use_host_network(spec)
    if options["annotation"]:
        spec["annotations"] = {key: value for key, _, value in (text.partition("=") for text in options["annotation"])}
    set_capabilities(spec, options)
    set_profiles(spec, options)
    limits(spec, options)
    join_namespaces(spec, options["with-ns"])
    if options["gpus"]:
        add_gpus(spec, options["gpus"])
    if options["allow-new-privs"]:
        spec["process"]["noNewPrivileges"] = False
    for path in options["device"]:
        for device in devices_below(path):
            add_device(spec, device)
    set_linux(spec, options)


def set_process(spec: Json, options: Options) -> None:
    """Environment, mounts, root file system, working directory and terminal."""
    process = spec["process"]
    env = merge_environment(process.get("env") or [PATH], given_environment(options))
    process["env"] = merge_environment(env, ["TERM=xterm"]) if options["tty"] else env
    spec["mounts"] += [parse_mount(text) for text in options["mount"]]
    if options["read-only"]:
        spec["root"]["readonly"] = True
    if options["cwd"]:
        process["cwd"] = options["cwd"]
    if options["tty"]:
        process["terminal"] = True


def given_environment(options: Options) -> list[str]:
    """The lines of --env-file, then those of --env."""
    path, lines = options["env-file"], []
    if path:
        try:
            text = Path(path).read_text()
        except OSError as error:
            raise CommandError(f"open {path}: {(error.strerror or '').lower()}") from None
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [*lines, *options["env"]]


def make_privileged(spec: Json, with_devices: bool) -> None:
    """All that we may do ourselves: capabilities, /proc and /sys to write to, and where wanted the host's devices."""
    process, linux = spec["process"], spec["linux"]
    every = own_capabilities()
    process["capabilities"] = {name: list(every) for name in ("bounding", "effective", "permitted")}
    process["noNewPrivileges"] = False
    linux["maskedPaths"], linux["readonlyPaths"] = [], []
    for entry in spec["mounts"]:
        if entry["type"] in ("sysfs", "cgroup", "cgroup2"):
            entry["options"] = ["rw" if option == "ro" else option for option in entry["options"]]
    if with_devices:
        linux.setdefault("devices", []).extend(devices_below("/dev"))
        linux["resources"]["devices"] = [{"allow": True, "access": "rwm"}]


def use_host_network(spec: Json) -> None:
    """The host's network with its names: no network namespace, /etc/hosts, /etc/resolv.conf, the host's name."""
    process, linux = spec["process"], spec["linux"]
    linux["namespaces"] = [entry for entry in linux["namespaces"] if entry["type"] != "network"]
    for path in ("/etc/hosts", "/etc/resolv.conf"):
        spec["mounts"].append({"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]})
    process["env"] = merge_environment(process["env"], [f"HOSTNAME={os.uname().nodename}"])


def set_capabilities(spec: Json, options: Options) -> None:
    for name in (*options["cap-add"], *options["cap-drop"]):
        if not name.startswith("CAP_"):
            raise CommandError("capabilities must be specified with 'CAP_' prefix")
    change_capabilities(spec, lambda have: have + [name for name in options["cap-add"] if name not in have])
    change_capabilities(spec, lambda have: [name for name in have if name not in options["cap-drop"]])


def set_profiles(spec: Json, options: Options) -> None:
    """The profiles of seccomp and AppArmor."""
    process, path = spec["process"], options["seccomp-profile"]
    if path and not options["seccomp"]:
        raise CommandError("seccomp must be set to true, if using a custom seccomp-profile")
    if path:
        try:
            spec["linux"]["seccomp"] = jsontext.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise CommandError(f"cannot load seccomp profile {path}: {error}") from None
    elif options["seccomp"]:
        spec["linux"]["seccomp"] = default_profile(process["capabilities"]["bounding"])
    if options["apparmor-profile"] and options["apparmor-default-profile"]:
        raise CommandError("apparmor-profile conflicts with apparmor-default-profile")
    profile = options["apparmor-profile"] or options["apparmor-default-profile"]
    if profile:
        process["apparmorProfile"] = profile


def join_namespaces(spec: Json, texts: list[str]) -> None:
    """--with-ns TYPE:PATH."""
    linux = spec["linux"]
    for text in texts:
        kind, colon, path = text.partition(":")
        if not colon:
            raise CommandError("joining a Linux namespace using --with-ns requires the format 'nstype:path'")
        if kind not in NAMESPACES:
            raise CommandError(f"the Linux namespace type specified in --with-ns is not valid: {kind}")
        kept = [entry for entry in linux["namespaces"] if entry["type"] != kind]
        linux["namespaces"] = [*kept, {"type": kind, "path": path}]


def set_linux(spec: Json, options: Options) -> None:
    """Cgroup, propagation, classes of block I/O and of caches, host name and user namespace."""
    linux = spec["linux"]
    if "cgroup" in options.changed:
        linux["cgroupsPath"] = options["cgroup"]
    if options["rootfs-propagation"]:
        linux["rootfsPropagation"] = options["rootfs-propagation"]
    limited = blockio.of_class(options["blockio-config-file"], options["blockio-class"])
    if limited is not None:
        linux["resources"]["blockIO"] = limited
    if options["rdt-class"]:
        linux["intelRdt"] = {"closID": options["rdt-class"]}
    if options["hostname"]:
        spec["hostname"] = options["hostname"]
    if options["uidmap"] or options["gidmap"]:
        linux["uidMappings"] = [mapping(text) for text in options["uidmap"]]
        linux["gidMappings"] = [mapping(text) for text in options["gidmap"]]
        linux["namespaces"].append({"type": "user"})


def add_gpus(spec: Json, numbers: list[str]) -> None:
    """Let nvidia-container-cli, which must be on this host, put these devices into the container."""
    for number in numbers:
        if not (number.isascii() and number.isdigit()):
            raise CommandError(f'invalid value "{number}" for flag -gpus: parse error')
    hook = shutil.which("teu-containerd") or shutil.which("containerd")
    cli = shutil.which("nvidia-container-cli")
    for name, path in (("containerd", hook), ("nvidia-container-cli", cli)):
        if not path:
            raise CommandError(f'exec: "{name}": executable file not found in $PATH')
    capabilities = ("compute", "compat32", "graphics", "utility", "video", "display")
    configure = ["configure", f"--device={','.join(numbers)}", *(f"--{name}" for name in capabilities)]
    spec.setdefault("hooks", {}).setdefault("prestart", []).append(
        {
            "path": hook,
            "args": ["containerd", "oci-hook", "--", cli, "--load-kmods", *configure, "--pid={{pid}}", "{{rootfs}}"],
            "env": [f"{name}={value}" for name, value in os.environ.items()],
        }
    )


def mapping(text: str) -> Json:
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise CommandError("user namespace mappings require the format `container-id:host-id:size`")
    return {"containerID": int(parts[0]), "hostID": int(parts[1]), "size": int(parts[2])}


def limits(spec: Json, options: Options) -> None:
    resources = spec["linux"]["resources"]
    quota, period = options["cpu-quota"], options["cpu-period"]
    if options["cpus"] > 0:
        if quota != -1 or period:
            raise CommandError("cpus and quota/period should be used separately")
        quota, period = int(options["cpus"] * 100000), 100000
    cpu: Json = {}
    if quota != -1:
        cpu["quota"] = quota
    if period:
        cpu["period"] = period
    if options["cpu-shares"]:
        cpu["shares"] = options["cpu-shares"]
    for name, key in (("cpuset-cpus", "cpus"), ("cpuset-mems", "mems")):
        if options[name]:
            cpu[key] = options[name]
    if cpu:
        resources["cpu"] = cpu
    if options["memory-limit"]:
        resources["memory"] = {"limit": options["memory-limit"]}


FLAGS = """
cgroup          string   Cgroup path; empty for the runtime's own
platform        string   Platform of the image, OS/ARCH[/VARIANT]
uidmap          strings  User ID mapping, CONTAINER:HOST:LENGTH
gidmap          strings  Group ID mapping, CONTAINER:HOST:LENGTH
privileged-without-host-devices  bool  Privileged, but without the host's devices
cpus            float    How many CPUs' worth of time
cpu-shares      int      Relative weight of CPU time
cpuset-cpus     string   CPUs to run on, as 1-2,4
cpuset-mems     string   Memory nodes to use
cpu-quota       int=-1   CPU time per period in microseconds
cpu-period      int      Length of the period in microseconds
memory-limit    int      Most memory in bytes
config,c        string   Take the specification from this file
cwd             string   Working directory of the process
env             strings  Set an environment variable, NAME=VALUE
env-file        string   Read environment variables from a file
annotation      strings  Annotation for the runtime, KEY=VALUE
mount           strings  Mount something, type=bind,src=/a,dst=/b,options=rbind:ro
net-host        bool     Use the host's network
privileged      bool     All capabilities and devices
read-only       bool     Read-only root file system
tty,t           bool     Give the process a terminal
with-ns         strings  Join a namespace, TYPE:PATH
allow-new-privs bool     Let programs gain privileges
cap-add         strings  Give a capability (CAP_…)
cap-drop        strings  Take a capability away (CAP_…)
seccomp         bool     Use the default seccomp profile
seccomp-profile string   Use this seccomp profile
apparmor-default-profile  string  AppArmor profile
apparmor-profile          string  AppArmor profile
rdt-class       string   Class for cache and memory bandwidth
hostname        string   Host name inside
user,u          string   NAME|UID[:GROUP|GID]
rootfs-propagation  string  Mount propagation of the root file system
device          strings  Give access to a device, or to all devices below a folder
gpus            strings  Numbers of NVIDIA's devices; needs nvidia-container-cli
"""
