# SPDX-License-Identifier: Apache-2.0
"""Does this kernel have what containers need? Called by `report`.

Its options are read where the kernel or the distribution shows them: /proc/config.gz, /boot/config-RELEASE,
/lib/modules/RELEASE/config. Where no such file is, a driver counts as there when it is built in, loaded or installed.
"""

from __future__ import annotations

import glob
import gzip
import os

from teu.cli.host.finding import ERROR, OK, WARNING, Finding, exists, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# openat2 (5.6), mount_setattr (5.12) and cgroup.kill (5.14) have come by then.
LEAST = (5, 14)
# Module: option, level where it is missing, what needs it.
MODULES = {
    "overlay": ("OVERLAY_FS", ERROR, "file systems of images and containers"),
    "veth": ("VETH", ERROR, "networks of the driver bridge"),
    "bridge": ("BRIDGE", ERROR, "networks of the driver bridge"),
    "nf_tables": ("NF_TABLES", ERROR, "published ports and the way out"),
    "nf_conntrack": ("NF_CONNTRACK", ERROR, "published ports and the way out"),
    "nft_ct": ("NFT_CT", ERROR, "published ports and the way out"),
    "nft_chain_nat": ("NFT_NAT", ERROR, "published ports"),
    "nft_masq": ("NFT_MASQ", ERROR, "the way out"),
    "nft_fib_inet": ("NFT_FIB_INET", ERROR, "published ports"),
    "macvlan": ("MACVLAN", WARNING, "networks of the driver macvlan"),
    "ipvlan": ("IPVLAN", WARNING, "networks of the driver ipvlan"),
    "8021q": ("VLAN_8021Q", WARNING, "VLANs of a network's parent"),
}
# Option without a module: level where it is missing, what needs it.
OPTIONS = {
    "SECCOMP_FILTER": (ERROR, "the filter of system calls"),
    "CGROUP_BPF": (ERROR, "the rules for devices"),
    "CFS_BANDWIDTH": (WARNING, "--cpus"),
    "CHECKPOINT_RESTORE": (WARNING, "checkpoints"),
}
NAMESPACES = {
    "mnt": ERROR,
    "pid": ERROR,
    "net": ERROR,
    "ipc": ERROR,
    "uts": ERROR,
    "cgroup": WARNING,
    "user": WARNING,
}
ANOTHER = "boot a kernel that has it, such as Debian's (apt-get install linux-image-$(dpkg --print-architecture))"


def version(root: str) -> Iterator[Finding]:
    """New enough?"""
    release = read(root, "/proc/sys/kernel/osrelease").strip()
    numbers = []
    for part in release.split("-")[0].split(".")[:2]:
        numbers.append(int(part) if part.isdigit() else 0)
    if tuple(numbers) < LEAST:
        least = ".".join(map(str, LEAST))
        yield Finding(ERROR, "kernel", f"Linux {release} is older than {least}", "boot a newer kernel")
    else:
        yield Finding(OK, "kernel", f"Linux {release}")


def namespaces(root: str) -> Iterator[Finding]:
    """Each kind of namespace, and whether new users' ones may be made."""
    missing = [name for name in NAMESPACES if not exists(root, f"/proc/self/ns/{name}")]
    for name in missing:
        yield Finding(NAMESPACES[name], f"namespace {name}", "this kernel does not have it", ANOTHER)
    if not missing:
        yield Finding(OK, "namespaces", " ".join(NAMESPACES))
    if "user" not in missing and read(root, "/proc/sys/user/max_user_namespaces").strip() == "0":
        yield Finding(
            WARNING,
            "namespace user",
            "none may be made (user.max_user_namespaces is 0), so no remapped and no rootless containers",
            "sysctl user.max_user_namespaces=10000, and the same in a file of /etc/sysctl.d",
        )


class Kernel:
    """What is known of the running kernel: options (y or m), names of modules that it has, is loaded with, may load."""

    def __init__(self, root: str) -> None:
        self.root = root
        release = read(root, "/proc/sys/kernel/osrelease").strip()
        self.folder = f"/lib/modules/{release}"
        self.options = self._options(release)
        self.loaded = {line.split(" ")[0] for line in read(root, "/proc/modules").splitlines()}
        self.built_in = self._names("modules.builtin")
        self.installed = self._names("modules.dep")
        self.refused = self._refused()

    def _options(self, release: str) -> dict[str, str]:
        try:
            with gzip.open(self.root + "/proc/config.gz", "rt", errors="replace") as file:
                text = file.read()
        except (OSError, EOFError):
            text = read(self.root, f"/boot/config-{release}") or read(self.root, f"{self.folder}/config")
        pairs = (line.partition("=") for line in text.splitlines() if line.startswith("CONFIG_"))
        return {name.removeprefix("CONFIG_"): value for name, _, value in pairs}

    def _names(self, file: str) -> set[str]:
        """The modules of a list of modprobe's: path[: what it needs], a line each."""
        found = set()
        for line in read(self.root, f"{self.folder}/{file}").splitlines():
            name = os.path.basename(line.partition(":")[0]).partition(".ko")[0]
            found.add(name.replace("-", "_"))
        return found

    def _refused(self) -> dict[str, str]:
        """Modules that modprobe.d(5) has a program in place of, such as /bin/false: name to file."""
        found = {}
        for folder in ("/usr/lib/modprobe.d", "/lib/modprobe.d", "/run/modprobe.d", "/etc/modprobe.d"):
            for path in sorted(glob.glob(f"{self.root}{folder}/*.conf")):
                for line in read("", path).splitlines():
                    words = line.split()
                    if words[:1] == ["install"] and words[2:3] and words[2].endswith(("/false", "/true")):
                        found[words[1].replace("-", "_")] = path.removeprefix(self.root)
        return found

    def known(self) -> bool:
        """Whether anything says what this kernel has."""
        return bool(self.options or self.installed or self.built_in)

    def running(self, module: str) -> bool:
        """Whether a driver is loaded or built in."""
        return (
            module in self.loaded
            or module in self.built_in
            or self.options.get(MODULES[module][0]) == "y"
            or exists(self.root, f"/sys/module/{module}")
        )

    def obstacle(self, module: str) -> tuple[str, str]:
        """Why a driver cannot be had, and the remedy; two empty texts where it can."""
        option = MODULES[module][0]
        if self.running(module):
            return "", ""
        if self.options and option not in self.options:
            return f"this kernel was built without CONFIG_{option}", ANOTHER
        if read(self.root, "/proc/sys/kernel/modules_disabled").strip() == "1":
            remedy = f"put {module} into a file of /etc/modules-load.d, and reboot"
            return f"the module {module} is not loaded, and none may be any more (kernel.modules_disabled)", remedy
        if module in self.refused:
            file = self.refused[module]
            return f"the module {module} is refused by {file}", f"take its line `install {module}` out of {file}"
        if self.installed and module not in self.installed:
            return f"the module {module} is not in {self.folder}", f"install the package that has it, or {ANOTHER}"
        return "", ""


def options(root: str) -> Iterator[Finding]:
    """Drivers and options."""
    kernel = Kernel(root)
    well = True
    if not kernel.known():
        unknown = [module for module in MODULES if not kernel.running(module)]
        if unknown:
            yield Finding(
                WARNING,
                "kernel options",
                f"nothing here shows the kernel's options and modules; not looked at: {' '.join(unknown)}",
                "install the modules' package of this kernel, or have it built with CONFIG_IKCONFIG_PROC",
            )
            return
    for module, (_, level, needed) in MODULES.items():
        text, remedy = kernel.obstacle(module)
        if text:
            well = False
            yield Finding(level, f"kernel {module}", f"{text}; {needed} need it", remedy)
    for option, (level, needed) in OPTIONS.items():
        if kernel.options and option not in kernel.options:
            well = False
            text = f"this kernel was built without CONFIG_{option}, which {needed} need"
            yield Finding(level, f"kernel {option}", text, ANOTHER)
    if well:
        yield Finding(OK, "kernel options", "all that containers and networks need")


def storage(root: str) -> Iterator[Finding]:
    """Where images and containers live: overlayfs does not stand on itself, nor on what has no file types."""
    below, kind, flags = "", "", ""
    for line in read(root, "/proc/self/mounts").splitlines():
        words = line.split(" ")
        if len(words) > 3:
            at = words[1].rstrip("/")
            if ("/var/lib/teu" + "/").startswith(at + "/") and len(at) >= len(below):
                below, kind, flags = at, words[2], words[3]
    if kind in ("overlay", "nfs", "nfs4", "cifs", "vfat", "exfat", "9p", "fuseblk"):
        yield Finding(
            ERROR,
            "/var/lib/teu",
            f"is on a file system of the kind {kind}, which overlayfs cannot have its upper folders on",
            "mount one of the kind ext4, xfs or btrfs there",
        )
    elif "ro" in flags.split(","):
        yield Finding(ERROR, "/var/lib/teu", "is read-only", f"mount -o remount,rw {below or '/'}")
    elif kind:
        yield Finding(OK, "/var/lib/teu", f"is on {kind}")
