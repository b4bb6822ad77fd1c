# SPDX-License-Identifier: Apache-2.0
"""Confinement and the host's firewall. Called by `report`."""

from __future__ import annotations

import os
import shutil
import subprocess

from teu.cli.host.finding import ERROR, OK, WARNING, Finding, exists, read
from teu.linux import apparmor, ufw
from teu.oci import jsontext
from teu.systemd.firewalld import Firewalld

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


PATH = "/usr/sbin:/sbin:/usr/bin"


def seccomp(root: str) -> Iterator[Finding]:
    """Filters of system calls, and the library that makes them."""
    if not exists(root, "/proc/sys/kernel/seccomp/actions_avail"):
        yield Finding(
            ERROR,
            "seccomp",
            "this kernel has no filters of system calls",
            "boot one with CONFIG_SECCOMP_FILTER, such as Debian's",
        )
    else:
        yield Finding(OK, "seccomp", "this kernel filters system calls")


def confinement(root: str) -> Iterator[Finding]:
    """AppArmor: is it in the kernel, can its profile be loaded, is it?"""
    if read(root, apparmor.ENABLED).strip() != "Y":
        built = exists(root, "/sys/module/apparmor")
        remedy = (
            "add apparmor=1 security=apparmor to the kernel's command line" if built else "boot a kernel that has it"
        )
        text = "is off in this kernel" if built else "is not in this kernel"
        yield Finding(WARNING, "AppArmor", f"{text}: containers run without a profile", remedy)
        return
    if not exists(root, apparmor.PROFILES):
        yield Finding(
            WARNING,
            "AppArmor",
            "the kernel's list of profiles is not there: containers run without one",
            "mount -t securityfs securityfs /sys/kernel/security",
        )
        return
    profiles = read(root, apparmor.PROFILES)
    if f"{apparmor.DEFAULT} (" in profiles:
        yield Finding(OK, "AppArmor", f"the profile {apparmor.DEFAULT} is loaded")
    elif exists(root, apparmor.DISABLED):
        yield Finding(
            WARNING, "AppArmor", f"{apparmor.DEFAULT} is disabled by {apparmor.DISABLED}", f"rm {apparmor.DISABLED}"
        )
    elif not any(exists(root, f"{folder}/apparmor_parser") for folder in ("/usr/sbin", "/sbin", "/usr/bin")):
        yield Finding(
            WARNING, "AppArmor", "nothing here loads profiles: containers run without one", "apt-get install apparmor"
        )
    elif not exists(root, apparmor.FILE):
        yield Finding(WARNING, "AppArmor", f"{apparmor.FILE} is gone", "apt-get install --reinstall teu")
    else:
        yield Finding(OK, "AppArmor", f"the profile {apparmor.DEFAULT} is loaded when a container first needs it")


def firewall(root: str) -> Iterator[Finding]:
    """Whose rules stand between the world and published ports."""
    if ufw.read(root or "/") is not None:
        yield Finding(
            OK, "firewall", "ufw governs published ports: `ufw allow PORT/tcp` opens one, see teu-firewall(7)"
        )
        return
    if not root and firewalld_runs():
        text = "firewalld governs published ports: `firewall-cmd --add-port=PORT/tcp` opens one, see teu-firewall(7)"
        yield Finding(OK, "firewall", text)
        return
    if read(root, "/proc/net/ip_tables_names").split():
        yield Finding(
            WARNING,
            "firewall",
            "there are rules of the old iptables (iptables-legacy), which nobody else sees and which hold as well",
            "look at them with iptables-legacy -S; Debian's iptables with update-alternatives --set iptables "
            "/usr/sbin/iptables-nft makes rules that all see",
        )
    if not shutil.which("nft", path=PATH):
        yield Finding(ERROR, "firewall", "nft(8) is not installed", "apt-get install nftables")
    elif os.geteuid() != 0:
        yield Finding(WARNING, "firewall", "only root sees the rules: not looked at", "run teu system check as root")
    elif not root:
        yield from rules()


def firewalld_runs() -> bool:
    try:
        with Firewalld():
            return True
    except OSError:
        return False


def nft(*words: str) -> Any:
    """What nft(8) answers, as JSON. OSError where it refuses."""
    done = subprocess.run([shutil.which("nft", path=PATH) or "nft", "-j", *words], capture_output=True, check=False)
    if done.returncode:
        raise OSError(done.returncode, done.stderr.decode("utf-8", "replace").strip())
    return jsontext.loads(done.stdout)


def rules() -> Iterator[Finding]:
    """Chains at the hook forward that let nothing pass which no rule accepts."""
    try:
        items = nft("list", "ruleset")["nftables"]
    except OSError as error:
        yield Finding(
            ERROR, "firewall", f"the kernel's nftables cannot be asked: {error.strerror}", "boot Debian's kernel"
        )
        return
    chains = list(closed(items))
    for family, table, chain in chains:
        yield Finding(
            WARNING,
            "firewall",
            f"the chain {chain} of the table {family} {table} drops what it does not accept, containers' traffic too",
            f"nft insert rule {family} {table} {chain} iifname 'teu*' accept; nft insert rule {family} {table} {chain} "
            "ct state established,related accept; for published ports nft insert rule "
            f"{family} {table} {chain} ct status dnat accept; and the same where these rules are kept",
        )
    if not chains:
        yield Finding(OK, "firewall", "no chain of the host's drops what containers send")


def closed(items: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Of a ruleset as nft shows it in JSON (libnftables-json(5)): (family, table, chain) of each that forwards, drops
    by its policy, and neither names our interfaces nor asks docker's chain, where teud has its own rules."""
    opened = set()
    for item in items:
        rule = item.get("rule")
        if rule and ("teu" in (text := jsontext.dumps(rule["expr"])) or "DOCKER-USER" in text):
            opened.add((rule["family"], rule["table"], rule["chain"]))
    for item in items:
        chain = item.get("chain")
        if not chain or chain.get("hook") != "forward" or chain.get("policy") != "drop":
            continue
        name = (chain["family"], chain["table"], chain["name"])
        if name not in opened and name[:2] != ("inet", "teu"):
            yield name
