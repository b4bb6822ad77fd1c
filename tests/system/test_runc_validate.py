# SPDX-License-Identifier: Apache-2.0
"""teu-runc refuses a bad config.json before anything is touched, and says which field is wrong."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runc_bundle import Bundle, new_bundle

pytestmark = pytest.mark.needs("teu-runc")


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    with new_bundle() as made:
        yield made


def put(config: dict[str, Any], place: str, value: Any) -> None:
    *path, last = place.split(".")
    for name in path:
        config = config.setdefault(name, {})
    config[last] = value


BAD: list[tuple[str, Any, str]] = [
    ("ociVersion", "9.0.0", "ociVersion"),
    ("process.cwd", "tmp", "process.cwd"),
    ("process.args", [], "process.args"),
    ("process.rlimits", [{"type": "RLIMIT_NO", "soft": 1, "hard": 1}], "process.rlimits[0].type"),
    ("root", {}, "root.path"),
    ("root", {"path": "no-such-root"}, "no-such-root"),
    ("mounts", [{"destination": "/x", "type": "tmpfs", "options": ["idmap"]}], "mounts[0].options"),
    ("hooks", {"prestart": [{"path": "relative"}]}, "hooks.prestart[0].path"),
    ("linux.namespaces", [{"type": "moon"}], "linux.namespaces[0].type"),
    ("linux.namespaces", [{"type": "pid"}], "hostname"),
    ("linux.sysctl", {"vm.swappiness": "1"}, "linux.sysctl[vm.swappiness]"),
    ("linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}], "linux.uidMappings"),
    ("linux.resources", {"memory": {"limit": "1g"}}, "linux.resources.memory.limit"),
    ("linux.resources", {"devices": [{"allow": True}]}, "linux.resources.devices[0].access"),
    ("linux.seccomp", {"defaultAction": "NO"}, "linux.seccomp.defaultAction"),
]


@pytest.mark.parametrize("verb", ["create", "run"])
@pytest.mark.parametrize(("place", "value", "field"), BAD, ids=[f"{place}-{field}" for place, _, field in BAD])
def test_refused(bundle: Bundle, verb: str, place: str, value: Any, field: str) -> None:
    mark = bundle.folder / "mark"
    bundle.config["hooks"] = {"prestart": [{"path": "/bin/touch", "args": ["touch", str(mark)]}]}
    bundle.linux["cgroupsPath"] = f"/teutest/{bundle.folder.name}"
    put(bundle.config, place, value)
    bundle.write()
    identifier = bundle.new_id()
    done = bundle.runc(verb, identifier)
    assert done.returncode == 1
    assert field in done.stderr
    assert not (bundle.root / identifier).exists(), "a state folder"
    assert not Path(f"/sys/fs/cgroup/teutest/{bundle.folder.name}").exists(), "a cgroup"
    assert not mark.exists(), "a hook has run"


def test_no_config(bundle: Bundle) -> None:
    done = bundle.runc("run", bundle.new_id())
    assert done.returncode == 1 and "config.json" in done.stderr and "not found" in done.stderr


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"ociVersion": "1.0.0"} x', '"x"'])
def test_no_json(bundle: Bundle, text: str) -> None:
    (bundle.folder / "config.json").write_text(text)
    done = bundle.runc("run", bundle.new_id())
    assert done.returncode == 1 and "config.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_in_the_log(bundle: Bundle, tmp_path: Path) -> None:
    """The form in which containerd reads the error."""
    bundle.process["cwd"] = "relative"
    bundle.write()
    log = tmp_path / "log.json"
    done = bundle.runc("--log", str(log), "--log-format", "json", "run", bundle.new_id())
    assert done.returncode == 1
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert entries[-1]["level"] == "error" and "process.cwd" in entries[-1]["msg"] and entries[-1]["time"]


def test_exec_checks_its_process(bundle: Bundle, tmp_path: Path) -> None:
    identifier = bundle.detached()
    file = tmp_path / "process.json"
    file.write_text(json.dumps({**bundle.process, "args": ["true"], "cwd": "relative"}))
    done = bundle.runc("exec", "--process", str(file), identifier)
    assert done.returncode != 0 and "process.cwd" in done.stderr
    file.write_text(json.dumps({**bundle.process, "args": []}))
    done = bundle.runc("exec", "--process", str(file), identifier)
    assert done.returncode != 0 and "process.args" in done.stderr


# ---- spec, features, list, ps ------------------------------------------------------------------


def test_spec_runs(bundle: Bundle) -> None:
    bundle.ok("spec")
    config = json.loads((bundle.folder / "config.json").read_text())
    assert config["process"]["args"] == ["sh"] and config["process"]["terminal"] is True
    config["process"].update(terminal=False, args=["echo", "hello"])
    (bundle.folder / "config.json").write_text(json.dumps(config))
    assert bundle.ok("run", bundle.new_id()) == "hello\n"


def test_spec_does_not_overwrite(bundle: Bundle) -> None:
    bundle.ok("spec", "--bundle", str(bundle.folder))
    before = (bundle.folder / "config.json").read_text()
    done = bundle.runc("spec")
    assert done.returncode == 1 and "File config.json exists. Remove it first" in done.stderr
    assert (bundle.folder / "config.json").read_text() == before


def test_spec_rootless(bundle: Bundle) -> None:
    bundle.ok("spec", "--rootless")
    config = json.loads((bundle.folder / "config.json").read_text())
    assert {"type": "user"} in config["linux"]["namespaces"]
    assert {"type": "network"} not in config["linux"]["namespaces"]
    assert config["linux"]["uidMappings"] == [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    assert "resources" not in config["linux"]


@pytest.mark.needs("runc")
def test_features_have_runcs_shape(bundle: Bundle) -> None:
    ours = json.loads(bundle.ok("features"))
    theirs = json.loads(subprocess.run(["runc", "features"], capture_output=True, text=True, check=True).stdout)
    assert set(theirs) <= set(ours)
    assert set(theirs["linux"]) <= set(ours["linux"])
    assert ours["hooks"] == theirs["hooks"]
    assert set(theirs["mountOptions"]) <= set(ours["mountOptions"])
    assert set(theirs["linux"]["namespaces"]) <= set(ours["linux"]["namespaces"])
    assert ours["linux"]["capabilities"] == theirs["linux"]["capabilities"]
    for name in ("actions", "operators", "archs"):
        assert set(theirs["linux"]["seccomp"][name]) <= set(ours["linux"]["seccomp"][name])
    assert ours["linux"]["cgroup"]["v2"] is True
    assert ours["linux"]["seccomp"]["knownFlags"] == theirs["linux"]["seccomp"].get("knownFlags", FLAGS) or set(
        theirs["linux"]["seccomp"]["knownFlags"]
    ) <= set(FLAGS)


FLAGS = [
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
]


def test_features_are_true(bundle: Bundle) -> None:
    """Each is asked of the program: what features names is accepted, and what it does not is refused."""
    linux = json.loads(bundle.ok("features"))["linux"]
    assert linux["seccomp"]["knownFlags"] == FLAGS
    bundle.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [], "flags": []}
    for flag in linux["seccomp"]["supportedFlags"]:
        bundle.linux["seccomp"]["flags"] = [flag]
        assert bundle.says("echo fine") == "fine", flag
    bundle.linux["seccomp"]["flags"] = []
    for action in linux["seccomp"]["actions"]:
        rule = {"names": ["chroot"], "action": action}
        bundle.linux["seccomp"]["syscalls"] = [rule]
        if action == "SCMP_ACT_NOTIFY":
            bundle.linux["seccomp"]["listenerPath"] = "/no/such/agent"
            assert "listenerPath" in bundle.refuses()
            del bundle.linux["seccomp"]["listenerPath"]
        else:
            assert bundle.says("echo fine") == "fine", action
    bundle.linux["seccomp"]["syscalls"] = [
        {
            "names": ["chroot"],
            "action": "SCMP_ACT_LOG",
            "args": [
                {"index": 0, "value": 5, "valueTwo": 5, "op": operator} for operator in linux["seccomp"]["operators"]
            ],
        }
    ]
    names = ("X86_64", "X86", "X32", "AARCH64", "ARM", "PPC64LE", "MIPSEL64", "RISCV64")
    bundle.linux["seccomp"]["architectures"] = [f"SCMP_ARCH_{name}" for name in names]
    assert set(bundle.linux["seccomp"]["architectures"]) <= set(linux["seccomp"]["archs"])
    assert bundle.says("echo fine") == "fine"
    for kind in ("bounding", "effective", "permitted"):
        bundle.process["capabilities"][kind] = linux["capabilities"]
    done = bundle.run("true")
    assert done.returncode == 0 and "unknown" not in done.stderr.replace("unknown or unavailable", "")
    for kind in linux["namespaces"]:
        if kind != "user":
            bundle.namespace(kind)
    for mode in linux["memoryPolicy"]["modes"]:
        bundle.linux["memoryPolicy"] = {"mode": mode, "nodes": "0"}
        assert "memoryPolicy.mode" not in bundle.run("true").stderr, mode


def test_list(bundle: Bundle) -> None:
    bundle.root.mkdir(exist_ok=True)
    assert json.loads(bundle.ok("list", "-f", "json")) is None
    identifier = bundle.detached()
    pid = bundle.pid(identifier)
    title, line = bundle.ok("list").splitlines()
    assert title.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert line.split()[:4] == [identifier, str(pid), "running", str(bundle.folder)] and line.split()[5] == "root"
    (entry,) = json.loads(bundle.ok("list", "--format=json"))
    assert {"ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "owner"} <= set(entry)
    assert entry["id"] == identifier and entry["owner"] == "root"
    assert bundle.ok("list", "-q") == f"{identifier}\n"
    done = bundle.runc("list", "-f", "yaml")
    assert done.returncode == 1 and "invalid format option" in done.stderr


def test_ps(bundle: Bundle) -> None:
    identifier = bundle.detached()
    pid = bundle.pid(identifier)
    title, line = bundle.ok("ps", identifier).splitlines()
    assert title.split()[:2] == ["UID", "PID"] and line.split()[1] == str(pid) and "sleep 1000" in line
    assert json.loads(bundle.ok("ps", "--format", "json", identifier)) == [pid]
    title, line = bundle.ok("ps", identifier, "-e", "-o", "pid,comm").splitlines()
    assert line.split() == [str(pid), "sleep"]
    done = bundle.runc("ps", identifier, "-o", "comm", "-e")
    assert done.returncode == 1 and "PID" in done.stderr
