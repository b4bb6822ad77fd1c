# SPDX-License-Identifier: Apache-2.0
"""`system check` on hosts that no lab is: folders with the files that it reads. What it says of a real one is in
tests/system/test_moving_in.py."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teu.cli.host import control, kernel, quickstart, report, security
from teu.cli.host.finding import Finding

RELEASE = "6.12.48+deb13-amd64"
UNIFIED = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n/dev/vda1 / ext4 rw,relatime 0 0\n"
CONTROLLERS = "cpuset cpu io memory hugetlb pids rdma misc\n"


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def bad(found: list[Finding]) -> dict[str, Finding]:
    assert all(bool(each.remedy) == (each.level != "ok") for each in found), [each.text for each in found]
    return {each.subject: each for each in found if each.level != "ok"}


def test_cgroups_of_version_2(tmp_path: Path) -> None:
    root = write(tmp_path, {"/proc/self/mounts": UNIFIED, "/sys/fs/cgroup/cgroup.controllers": CONTROLLERS})
    assert not bad(list(control.cgroups(root)))


def test_cgroups_of_version_1_and_hybrid(tmp_path: Path) -> None:
    mounts = "tmpfs /sys/fs/cgroup tmpfs ro 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw 0 0\n"
    root = write(tmp_path, {"/proc/self/mounts": mounts})
    (found,) = control.cgroups(root)
    assert found.level == "error"
    assert "version 1;" in found.text
    assert "systemd.unified_cgroup_hierarchy=1" in found.remedy
    write(tmp_path, {"/sys/fs/cgroup/unified/cgroup.procs": ""})
    assert "hybrid" in next(iter(control.cgroups(root))).text


@pytest.mark.parametrize(
    ("files", "says", "remedy"),
    [
        ({}, "not offered", "cgroup_enable=memory"),
        ({"/proc/cmdline": "quiet cgroup_disable=memory\n"}, "switched off", "take cgroup_disable=memory away"),
        ({"/proc/cgroups": "#subsys_name\thierarchy\nmemory\t4\t1\t1\n"}, "version 1", "cgroup_no_v1=all"),
    ],
)
def test_a_controller_is_missing(tmp_path: Path, files: dict[str, str], says: str, remedy: str) -> None:
    there = {"/proc/self/mounts": UNIFIED, "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n"}
    found = bad(list(control.cgroups(write(tmp_path, there | files))))
    assert list(found) == ["cgroup memory"]
    assert says in found["cgroup memory"].text
    assert remedy in found["cgroup memory"].remedy


def test_systemd_and_its_bus(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert "PID 1" in next(control.systemd(root)).text
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert "bus" in next(control.systemd(root)).text
    write(tmp_path, {"/run/dbus/system_bus_socket": ""})
    assert next(control.systemd(root)).level == "ok"


def test_kernels_version(tmp_path: Path) -> None:
    for release, level in ((RELEASE, "ok"), ("5.10.0-30-amd64", "error"), ("5.14", "ok"), ("4.19.1", "error")):
        root = write(tmp_path, {"/proc/sys/kernel/osrelease": release + "\n"})
        assert next(kernel.version(root)).level == level, release


def configured(root: Path, without: str = "", modules: str = "") -> str:
    """A host whose kernel shows its options, all as modules, and has these installed."""
    names = [option for option, _, _ in kernel.MODULES.values()] + list(kernel.OPTIONS)
    lines = "".join(f"CONFIG_{name}=m\n" for name in names if name != without)
    installed = "".join(f"kernel/net/{name}.ko.xz: kernel/x.ko\n" for name in kernel.MODULES if name != modules)
    files = {"/proc/sys/kernel/osrelease": RELEASE + "\n", f"/lib/modules/{RELEASE}/modules.dep": installed}
    files[f"/boot/config-{RELEASE}"] = lines
    return write(root, files)


def test_all_options_are_there(tmp_path: Path) -> None:
    assert not bad(list(kernel.options(configured(tmp_path))))


def test_an_option_is_missing(tmp_path: Path) -> None:
    found = bad(list(kernel.options(configured(tmp_path, without="OVERLAY_FS"))))
    assert list(found) == ["kernel overlay"]
    assert found["kernel overlay"].level == "error"
    assert "CONFIG_OVERLAY_FS" in found["kernel overlay"].text
    found = bad(list(kernel.options(configured(tmp_path, without="CFS_BANDWIDTH"))))
    assert found["kernel CFS_BANDWIDTH"].level == "warning"


def test_the_kernel_shows_its_options_itself(tmp_path: Path) -> None:
    root = configured(tmp_path)
    text = (tmp_path / f"boot/config-{RELEASE}").read_text().replace("CONFIG_VETH=m\n", "")
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(text.encode()))
    assert list(bad(list(kernel.options(root)))) == ["kernel veth"]


def test_a_module_is_not_installed_or_refused_or_too_late(tmp_path: Path) -> None:
    root = configured(tmp_path, modules="bridge")
    assert "is not in /lib/modules" in bad(list(kernel.options(root)))["kernel bridge"].text
    write(tmp_path, {"/proc/modules": "bridge 401408 1 br_netfilter, Live 0x0\n"})
    assert not bad(list(kernel.options(root)))
    write(tmp_path, {"/etc/modprobe.d/hard.conf": "# none\ninstall overlay /bin/false\n"})
    found = bad(list(kernel.options(root)))["kernel overlay"]
    assert "/etc/modprobe.d/hard.conf" in found.text
    assert "install overlay" in found.remedy
    write(tmp_path, {"/proc/sys/kernel/modules_disabled": "1\n"})
    assert "modules-load.d" in bad(list(kernel.options(root)))["kernel veth"].remedy


def test_nothing_shows_the_options(tmp_path: Path) -> None:
    root = write(tmp_path, {"/proc/sys/kernel/osrelease": RELEASE + "\n"})
    found = bad(list(kernel.options(root)))
    assert list(found) == ["kernel options"]
    assert "overlay" in found["kernel options"].text


def test_namespaces(tmp_path: Path) -> None:
    root = write(tmp_path, {f"/proc/self/ns/{name}": "" for name in kernel.NAMESPACES})
    assert not bad(list(kernel.namespaces(root)))
    write(tmp_path, {"/proc/sys/user/max_user_namespaces": "0\n"})
    assert "sysctl" in bad(list(kernel.namespaces(root)))["namespace user"].remedy
    (tmp_path / "proc/self/ns/net").unlink()
    assert bad(list(kernel.namespaces(root)))["namespace net"].level == "error"


@pytest.mark.parametrize(
    ("mounts", "level"),
    [
        ("/dev/vda1 / ext4 rw 0 0\n", "ok"),
        ("overlay / overlay rw 0 0\n", "error"),
        ("overlay / overlay rw 0 0\n/dev/vdb /var/lib/teu xfs rw 0 0\n", "ok"),
        ("overlay / overlay rw 0 0\n/dev/vdb /var/lib ext4 ro,noatime 0 0\n", "error"),
        ("/dev/vda1 / ext4 rw 0 0\nnas:/ /var/lib/teux nfs4 rw 0 0\n", "ok"),
        ("/dev/vda1 / ext4 rw 0 0\nnas:/ /var nfs4 rw 0 0\n", "error"),
    ],
)
def test_the_file_system_of_images(tmp_path: Path, mounts: str, level: str) -> None:
    (found,) = kernel.storage(write(tmp_path, {"/proc/self/mounts": mounts}))
    assert found.level == level, found.text


def test_apparmor(tmp_path: Path) -> None:
    def said() -> Finding:
        (found,) = security.confinement(str(tmp_path))
        return found

    assert "not in this kernel" in said().text
    write(tmp_path, {"/sys/module/apparmor/parameters/enabled": "N\n"})
    assert "apparmor=1" in said().remedy
    write(tmp_path, {"/sys/module/apparmor/parameters/enabled": "Y\n"})
    assert "securityfs" in said().remedy
    write(tmp_path, {"/sys/kernel/security/apparmor/profiles": "docker-default (enforce)\n"})
    assert said().remedy == "apt-get install apparmor"
    write(tmp_path, {"/usr/sbin/apparmor_parser": "", "/etc/apparmor.d/teu-default": ""})
    assert said().level == "ok"
    write(tmp_path, {"/etc/apparmor.d/disable/teu-default": ""})
    assert said().remedy == "rm /etc/apparmor.d/disable/teu-default"
    write(tmp_path, {"/sys/kernel/security/apparmor/profiles": "teu-default (enforce)\n"})
    assert "is loaded" in said().text


def test_ufw(tmp_path: Path) -> None:
    (found,) = security.firewall(write(tmp_path, {"/etc/ufw/ufw.conf": "ENABLED=yes\n"}))
    assert found.level == "ok"
    assert "ufw allow" in found.text


def test_chains_that_drop_what_is_forwarded() -> None:
    def chain(table: str, name: str, policy: str, hook: str = "forward", family: str = "inet") -> dict[str, object]:
        return {"chain": {"family": family, "table": table, "name": name, "hook": hook, "policy": policy}}

    items = [
        {"metainfo": {}},
        chain("filter", "forward", "drop"),
        chain("filter", "input", "drop", "input"),
        chain("other", "forward", "accept"),
        chain("teu", "between", "drop"),
        chain("mine", "forward", "drop"),
        {"rule": {"family": "inet", "table": "mine", "chain": "forward", "expr": [{"match": {"right": "teu*"}}]}},
        chain("filter", "FORWARD", "drop", family="ip"),
        {
            "rule": {
                "family": "ip",
                "table": "filter",
                "chain": "FORWARD",
                "expr": [{"jump": {"target": "DOCKER-USER"}}],
            }
        },
    ]
    assert list(security.closed(items)) == [("inet", "filter", "forward")]


def test_the_quick_start_of_programs(tmp_path: Path) -> None:
    """Each thing that it needs is missed in turn, and then there."""
    root = str(tmp_path)
    assert not list(quickstart.quick_start(root)), "teu-runc is not installed"
    write(tmp_path, {"/usr/sbin/teu-runc": "", "/usr/lib/teu/teu-runc": "", "/usr/bin/python3.14": ""})
    python = tmp_path / "usr/bin/python3"
    python.symlink_to("python3.99")
    assert "python3.99" in bad(list(quickstart.quick_start(root)))["quick start"].text
    python.unlink()
    python.symlink_to("python3.14")
    write(tmp_path, {"/usr/lib/x86_64-linux-gnu/libpython3.13.so.1.0": ""})
    assert bad(list(quickstart.quick_start(root)))["quick start"].remedy == "apt-get install libpython3.14"
    write(tmp_path, {"/usr/lib/x86_64-linux-gnu/libpython3.14.so.1.0": ""})
    assert bad(list(quickstart.quick_start(root)))["quick start"].remedy == "dpkg-reconfigure teu-runc"
    write(tmp_path, {"/usr/lib/teu/teu-runc.cpython-314": ""})
    (found,) = quickstart.quick_start(root)
    assert found.level == "ok" and found.text.startswith("teu-runc begins with libpython3.14")
    write(tmp_path, {"/usr/bin/teu": "", "/usr/lib/teu/teu": ""})
    missed, found = quickstart.quick_start(root)
    assert missed.remedy == "dpkg-reconfigure teu" and found.text.startswith("teu-runc begins")
    write(tmp_path, {"/usr/lib/teu/teu.cpython-314": ""})
    (found,) = quickstart.quick_start(root)
    assert found.level == "ok" and found.text.startswith("teu-runc and teu begin with")
    write(tmp_path, {quickstart.PROGRAMS["teu-system-generator"]: "", "/usr/lib/teu/teu-system-generator": ""})
    missed, _ = quickstart.quick_start(root)
    assert missed.remedy == "dpkg-reconfigure teu" and missed.text.startswith("teu-system-generator starts as a")
    write(tmp_path, {"/usr/lib/teu/teu-system-generator.cpython-314": ""})
    (found,) = quickstart.quick_start(root)
    assert found.text.startswith("teu-runc, teu and teu-system-generator begin with")


def test_the_quick_start_knows_the_same_pythons_as_its_program() -> None:
    source = (Path(__file__).resolve().parents[3] / "src/c/teu-coldstart.c").read_text()
    table = source[source.index("layouts[] = {") : source.index("static const struct layout *layout;")]
    assert tuple(map(int, re.findall(r"^    \{(\d+),", table, re.M))) == quickstart.KNOWN


def test_the_command(teu: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Finding("ok", "kernel", "Linux 6.12"), Finding("warning", "AppArmor", "is off", "switch it on")]
    monkeypatch.setattr(report, "look", lambda: found)
    done = teu("system", "check")
    assert done.code == 0
    assert done.out.splitlines()[:3] == [
        "ok       kernel    Linux 6.12",
        "warning  AppArmor  is off",
        "                   do: switch it on",
    ]
    found.append(Finding("error", "cgroup", "version 1", "reboot"))
    done = teu("system", "check", "-q", "--format", "json")
    assert done.code == 1
    assert [json.loads(line)["Level"] for line in done.out.splitlines()] == ["warning", "error"]
    assert teu("system", "check", "--format", "{{.Level}}").code == 125


def test_a_policy_for_images(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    assert list(report.policy(str(file))) == []
    file.write_text("default: {require: reject}\nscopes: {a.example: {require: insecure-accept-anything}}\n")
    (found,) = report.policy(str(file))
    assert (found.level, found.subject, found.text) == ("ok", "policy.yaml", "is valid, with 1 scope")
    file.write_text("default: {require: some}\n")
    (found,) = report.policy(str(file))
    assert found.level == "error" and f"{file}:1: default.require: bad value" in found.text
    file.write_text("default: {require: reject}\nscopes: {a.example: {cosign: {keys: [/nowhere/k.pub]}}}\n")
    (found,) = report.policy(str(file))
    assert found.text.endswith(
        ":2: scopes.a.example: lets no image in: /nowhere/k.pub cannot be read: No such file or directory"
    )
    assert bad([found])
