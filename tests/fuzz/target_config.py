# SPDX-License-Identifier: Apache-2.0
"""teu-runc with changed configurations, whose paths lie in a hostile root: links to the host, in circles, and out."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from fuzz import shapes
from fuzz.frame import Run, target

SECONDS = 60
FAULT = re.compile(
    r"internal error|Traceback|(?:Key|Type|Attribute|Index|Unicode\w*|Assertion|Runtime|Overflow|Recursion)Error\b"
    r"|(?:Unbound\w*|Name|Lookup|Zero\w*|Memory)Error\b|invalid literal|NoneType|object has no|not subscriptable"
    r"|can't decode|can't encode|embedded null|not iterable|Python int too large|signed integer|must be str, "
    r"|expected str|_encode|int too|struct\.error|format requires|unhashable|surrogates not|list index",
)
# where a path of a configuration may point to: in the root, in a link of it, out of it
PATHS = (
    "/",
    "/a",
    "/a/b/c",
    "/link-etc",
    "/link-etc/victim",
    "/link-up",
    "/link-up/victim",
    "/link-self",
    "/link-loop/x",
    "/link-dev/x",
    "/link-victim",
    "/link-victim/a",
    "/link-nowhere",
    "/link-nowhere/x",
    "/proc",
    "/proc/self/root/x",
    "/proc/1/root",
    "/dev",
    "/dev/null",
    "/dev/pts",
    "/dev/shm/x",
    "/sys",
    "/sys/fs/cgroup",
    "/etc",
    "/etc/passwd",
    "/file",
    "/file/x",
    "/fifo",
    "../../x",
    "/../../x",
    "/a/../../../x",
    "relative",
    ".",
    "",
    "/bin/sh",
    "/tmp",
    "/new/deep/er",
    "/x" * 200,
    "/" + "x" * 300,
    "/link-file",
    "/link-proc/1/root/x",
)


def base(place: Path) -> dict[str, Any]:
    """A configuration with a bit of everything that this lab can do."""
    import runc_bundle

    config = copy.deepcopy(runc_bundle.BASE)
    config["mounts"] += [
        {"destination": "/data", "type": "bind", "source": str(place / "source"), "options": ["rbind", "ro"]},
        {"destination": "/data/file", "type": "bind", "source": str(place / "source/file"), "options": ["bind"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=1m", "tmpcopyup"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro"]},
    ]
    linux = config["linux"]
    linux["devices"] = [
        {"path": "/dev/fuzz", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 0, "gid": 0}
    ]
    linux["sysctl"] = {"net.ipv4.ip_forward": "0"}
    linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}], "unified": {}}
    linux["rootfsPropagation"] = "private"
    linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {
                "names": ["mount", "ptrace"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 1,
                "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_EQ"}],
            }
        ],
    }
    linux["cgroupsPath"] = "/fuzz-config/x"
    linux["personality"] = {"domain": "LINUX"}
    linux["timeOffsets"] = {"monotonic": {"secs": 1, "nanosecs": 2}}
    linux["namespaces"].append({"type": "time"})
    config["process"] |= {
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}],
        "oomScoreAdj": 100,
        "apparmorProfile": "",
        "consoleSize": {"height": 20, "width": 80},
        "scheduler": {"policy": "SCHED_OTHER", "nice": 1},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
        "execCPUAffinity": {"initial": "0", "final": "0"},
    }
    config["process"]["user"] |= {"additionalGids": [1, 2], "umask": 18}
    config["annotations"] = {"org.example": "x"}
    config["hooks"] = {
        kind: [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 5}]
        for kind in ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    }
    config["domainname"] = "example"
    return config


def hostile_root(root: Path, victim: Path) -> None:
    """Links where a container's files are looked for."""
    for name, link in (
        ("link-etc", "/etc"),
        ("link-up", "../../../../../../../.." + str(victim)),
        ("link-self", "."),
        ("link-loop", "link-loop"),
        ("link-dev", "/dev"),
        ("link-victim", str(victim)),
        ("link-nowhere", "/nowhere/at/all"),
        ("link-file", str(victim / "a")),
        ("link-proc", "/proc"),
    ):
        with contextlib.suppress(FileExistsError):
            os.symlink(link, root / name)
    (root / "a/b/c").mkdir(parents=True, exist_ok=True)
    (root / "file").write_text("x")
    if not (root / "fifo").exists():
        os.mkfifo(root / "fifo")


def _redirected(random: random.Random, root: Path, victim: Path) -> list[str]:
    """Put links where folders of the root were; what was done."""
    done = []
    for name in random.sample(("dev", "proc", "sys", "tmp", "etc", "root", "data", "a"), random.choice((0, 1, 1, 2))):
        place = root / name
        if place.is_symlink() or not place.exists():
            with contextlib.suppress(OSError):
                place.unlink()
        else:
            shutil.rmtree(place)
        link = random.choice(
            (
                str(victim),
                "/",
                "..",
                "../../../../../../../.." + str(victim),
                "/proc/self/cwd",
                name,
                "/nowhere",
                "file",
            )
        )
        os.symlink(link, place)
        done.append(f"{name} -> {link}")
    return done


# What is the host's own by its nature, so that a change there would be no finding: hooks are programs of the host,
# sources of binds are shown, without a mount namespace all happens on the host. It is changed within what is harmless.
def _harmless(random: random.Random, config: Any, place: Path) -> Any:
    if not isinstance(config, dict):
        return config
    for mount in _objects(config.get("mounts")):
        source, options = mount.get("source"), mount.get("options")
        if not isinstance(source, str):
            continue
        bind = isinstance(options, list) and ("bind" in options or "rbind" in options)
        if source.startswith(("/", ".")) and not source.startswith(str(place)):
            mount["source"] = random.choice((str(place / "source"), str(place / "source/file"), "tmpfs", "proc"))
        if bind and not mount["source"].startswith("/"):
            mount["source"] = str(place / "source")
    hooks = config.get("hooks")
    for kind in hooks.values() if isinstance(hooks, dict) else []:
        for hook in _objects(kind):
            if isinstance(hook.get("path"), str) and hook["path"] not in ("/bin/true", "/bin/false"):
                hook["path"] = random.choice(("/bin/true", "/nowhere", "/bin/false", "", "relative"))
    for root in _objects([config.get("root")]):
        if isinstance(root.get("path"), str) and root["path"] != "rootfs":
            roots = ("rootfs/a", "rootfs/link-self", "rootfs/file", "nowhere", "", "rootfs/fifo", "rootfs/../rootfs")
            root["path"] = random.choice(roots)
    for linux in _objects([config.get("linux")]):
        path = linux.get("cgroupsPath")
        if isinstance(path, str) and not path.startswith("/fuzz-config/"):
            long = "/fuzz-config/" + "x" * 300
            paths = ("", "/fuzz-config/y", "fuzz-config/z", "/fuzz-config/../fuzz-config/w", "a:b:c", long)
            linux["cgroupsPath"] = random.choice(paths)
        names = linux.get("namespaces")
        if isinstance(names, list) and all(isinstance(one, dict) for one in names):
            others = [one for one in names if one.get("type") != "mount"]
            if not any(one.get("type") == "mount" and not one.get("path") for one in names):
                linux["namespaces"] = [*others, {"type": "mount"}]
    return config


def _objects(values: Any) -> list[dict[str, Any]]:
    """The objects of what may be a list."""
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []


def picture() -> dict[str, tuple[Any, ...]]:
    """The host's files that a container could reach by a link, and what names the host."""
    found: dict[str, tuple[Any, ...]] = {"host name": tuple(os.uname())}
    for top in ("/etc", "/dev", "/tmp/fuzz-victim"):
        for folder, _, files in os.walk(top):
            if folder.startswith(("/dev/pts", "/dev/fd", "/dev/shm", "/dev/mqueue")):
                continue
            for name in [*files, "."]:
                with contextlib.suppress(OSError):
                    status = os.lstat(f"{folder}/{name}")
                    device = top == "/dev"  # their times change as they are used
                    found[f"{folder}/{name}"] = (
                        status.st_mode,
                        status.st_uid,
                        status.st_gid,
                        status.st_rdev,
                        *(() if device else (status.st_size, status.st_mtime_ns)),
                    )
    found["mounts"] = tuple(sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()))
    found["ip_forward"] = (Path("/proc/sys/net/ipv4/ip_forward").read_text(),)
    return found


@target(
    "config-json", "teu-runc create and run with changed configurations in a root full of links; the host is as it was"
)
def fuzz(run: Run) -> None:
    import runc_bundle

    place = Path(tempfile.mkdtemp(prefix="fuzz-config-", dir="/var/lib"))
    victim = Path("/tmp/fuzz-victim")
    victim.mkdir(exist_ok=True)
    (victim / "a").write_text("as it was")
    (victim / "sub").mkdir(exist_ok=True)
    (place / "source").mkdir()
    (place / "source/file").write_text("x")
    runc_bundle.make_root(place / "pristine")
    hostile_root(place / "pristine", victim)
    good = base(place)
    _new_root(place)
    (place / "config.json").write_text(json.dumps(good))
    status, said = _done(["teu-runc", "--root", str(place / "state"), "run", "f"], place)
    assert status == 0, said
    accepted = 0
    links: list[str] = []

    def clean() -> None:
        shutil.rmtree(place, ignore_errors=True)
        cgroups = Path("/sys/fs/cgroup/fuzz-config")
        for path in [*sorted(cgroups.rglob("*"), reverse=True), cgroups]:
            if path.is_dir():
                with contextlib.suppress(OSError):
                    path.rmdir()

    with run.watched(ignore=lambda each: str(place) in each):
        before = picture()
        while run.going():
            if links or run.random.random() < 0.1:
                _new_root(place)
            links = _redirected(run.random, place / "rootfs", victim) if run.random.random() < 0.2 else []
            config = (
                good
                if links and run.random.random() < 0.5
                else shapes.changed(run.random, good, run.random.choice((1, 1, 1, 2, 3)), fitting=0.7)
            )
            config = copy.deepcopy(config)
            _paths(run.random, config)
            config = _harmless(run.random, config, place)
            if (
                isinstance(config, dict)
                and isinstance(config.get("process"), dict)
                and config["process"].get("terminal")
            ):
                config["process"]["terminal"] = False
            try:
                text = json.dumps(config).encode()
            except (TypeError, ValueError):
                continue
            if run.random.random() < 0.03:
                text = shapes.damaged(run.random, text)
            (place / "config.json").write_bytes(text)
            name = f"f{run.inputs}"
            verb = run.random.choice(("run", "run", "create"))
            case = f"{verb}, links {links}\n{text.decode(errors='backslashreplace')}"
            run.trying(case)
            words = [
                "teu-runc",
                "--root",
                str(place / "state"),
                *(["--systemd-cgroup"] if run.random.random() < 0.1 else []),
                verb,
                name,
            ]
            status, said = _done(words, place)
            accepted += status == 0
            if status is None:
                run.finding(f"{verb}: not done within {SECONDS} s", case)
            elif status < 0:
                run.finding(f"{verb}: ended by signal {-status}: {said[-150:]}", case)
            elif found := FAULT.search(said):
                run.finding(f"{verb}: {said[max(0, found.start() - 80) : found.end() + 120]}", case)
            elif status and not said.strip() and verb == "create":
                run.finding(f"{verb}: failed with {status} without a word", case)
            for words in (
                (["start", name], ["state", name], ["delete", "--force", name])
                if verb == "create" and status == 0
                else (["delete", "--force", name],)
            ):
                status, said = _done(["teu-runc", "--root", str(place / "state"), *words], place)
                if status is None or status < 0 or FAULT.search(said):
                    run.finding(f"{words[0]} afterwards: {status}: {said[:200]}", case)
            if (place / "state" / name).exists():
                run.finding("left behind: state of the container", case)
                shutil.rmtree(place / "state" / name, ignore_errors=True)
            after = picture()
            if after != before:
                changes = [
                    f"{key}: {before.get(key)} -> {after.get(key)}"
                    for key in before.keys() | after.keys()
                    if before.get(key) != after.get(key)
                ]
                if any(change.startswith("mounts") for change in changes):
                    changes += sorted(set(after["mounts"]) ^ set(before["mounts"]))
                run.finding(f"the host has changed: {sorted(changes)[0][:200]}", f"{case}\n{changes}"[:20000])
                before = after
        clean()
    print(f"config-json: {accepted} of {run.inputs} configurations were accepted")
    shutil.rmtree(victim)


def _done(words: list[str], place: Path) -> tuple[int | None, str]:
    """Exit status, or None where it hangs, and the output; that is a file, for what stays would hold a pipe open."""
    with (place / "output").open("w+b") as output:
        process = subprocess.Popen(words, cwd=place, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            status: int | None = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
    return status, (place / "output").read_bytes().decode(errors="replace")[-4000:]


def _new_root(place: Path) -> None:
    shutil.rmtree(place / "rootfs", ignore_errors=True)
    subprocess.run(["cp", "-a", str(place / "pristine"), str(place / "rootfs")], check=True)


def _paths(random: random.Random, config: Any) -> None:
    """Other paths, in some cases, where the configuration has paths of the container."""
    if not isinstance(config, dict) or random.random() < 0.4:
        return
    for _ in range(random.choice((1, 1, 2, 3))):
        with contextlib.suppress(KeyError, TypeError, IndexError, AttributeError):
            path = random.choice(PATHS)
            kind = random.randrange(7)
            if kind <= 2:
                random.choice(config["mounts"])["destination"] = path
            elif kind == 3:
                config["linux"]["maskedPaths"].append(path)
            elif kind == 4:
                config["linux"]["readonlyPaths"].append(path)
            elif kind == 5:
                config["linux"]["devices"][0]["path"] = path
            else:
                config["process"]["cwd"] = path
