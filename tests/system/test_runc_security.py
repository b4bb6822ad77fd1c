# SPDX-License-Identifier: Apache-2.0
"""teu-runc's defences, one test per known way out. Each fails when its defence is taken out."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runc_bundle import RUNC, Bundle, exec_in, full_proc, libc, new_bundle


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    with new_bundle() as made:
        yield made


def _host_programs() -> dict[str, str]:
    """What an attacker would like to overwrite."""
    paths = [os.path.realpath("/usr/bin/python3"), "/usr/libexec/teu/teu-runc-init", "/usr/sbin/teu-runc"]
    paths += [str(path) for path in Path("/usr/lib/python3/dist-packages/teu/runc").glob("teu-runc-init")]
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths if Path(path).exists()}


# -- CVE-2019-5736: /proc/self/exe -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["link", "script"])
def test_executing_proc_self_exe_gives_the_sealed_copy(bundle: Bundle, how: str) -> None:
    """The container's program is /proc/self/exe: what runs again is teu-runc-init from its memfd, read-only."""
    before = _host_programs()
    bad = bundle.rootfs / "bin/bad"
    if how == "link":
        bad.symlink_to("/proc/self/exe")
    else:
        bad.write_text("#!/proc/self/exe\n")
        bad.chmod(0o755)
    bundle.run("/bin/bad")
    id = bundle.detached()
    bundle.runc("exec", id, "/bin/bad")
    assert _host_programs() == before


def test_what_a_created_container_shows_as_exe_is_sealed(bundle: Bundle) -> None:
    id = bundle.created()
    exe = f"/proc/{bundle.pid(id)}/exe"
    assert os.readlink(exe).startswith("/memfd:teu-runc-init")
    fd = os.open(exe, os.O_RDONLY)
    try:
        import fcntl

        seals = fcntl.fcntl(fd, 1034)  # F_GET_SEALS
        assert seals & 0xF == 0xF, "not sealed against writing, growing, shrinking and new seals"
        with pytest.raises(OSError):
            os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC)
    finally:
        os.close(fd)


def test_exec_into_a_hostile_container(bundle: Bundle) -> None:
    """A process of the container, with CAP_SYS_PTRACE, watches every new process and opens what it executes.

    At no moment of an exec may that be a file of the host: only the memfd, or a program of the container.
    """
    for kind in ("bounding", "effective", "permitted"):
        given = bundle.process["capabilities"]
        given[kind] = [*given[kind], "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]
    watch = (
        "cd /proc; while :; do for p in [0-9]*; do "
        "l=$(readlink /proc/$p/exe 2>/dev/null) && case $l in /bin/busybox) ;; *) echo $l >> /seen ;; esac; done; done"
    )
    id = bundle.detached("sh", "-c", watch)
    for _ in range(25):
        bundle.runc("exec", id, "true")
    seen = bundle.rootfs / "seen"
    names = set(seen.read_text().split("\n")) if seen.exists() else set()
    assert not {name for name in names if name and "memfd:teu-runc-init" not in name}, names


# -- CVE-2024-21626: leaked descriptors, working directory outside -------------------------------------


def test_no_descriptor_of_the_host_inside(bundle: Bundle) -> None:
    secret = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY)
    listening = os.open("/etc/hostname", os.O_RDONLY)
    try:
        os.set_inheritable(secret, True)
        os.set_inheritable(listening, True)
        bundle.process["args"] = ["sh", "-c", "ls /proc/self/fd; ls /proc/1/fd"]
        bundle.write()
        done = subprocess.run(
            [RUNC, "--root", str(bundle.root), "run", bundle.new_id()],
            cwd=bundle.folder,
            close_fds=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=True,
        )
        shown = done.stdout.split()
        assert set(shown) <= {"0", "1", "2", "3"}, shown  # 3: ls's own of the folder
        id = bundle.detached()
        done = subprocess.run(
            [RUNC, "--root", str(bundle.root), "exec", id, "sh", "-c", "ls -l /proc/self/fd /proc/1/fd"],
            close_fds=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=True,
        )
        assert "/etc" not in done.stdout
    finally:
        os.close(secret)
        os.close(listening)


def test_a_created_container_holds_no_descriptor_of_the_host(bundle: Bundle) -> None:
    bundle.process["args"] = ["sleep", "1000"]
    bundle.write()
    id = bundle.new_id()
    secret = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.set_inheritable(secret, True)
        with bundle.output.open("w") as output:
            words = [RUNC, "--root", str(bundle.root), "create", id]
            subprocess.run(
                words, cwd=bundle.folder, close_fds=False, stdout=output, stdin=subprocess.DEVNULL, check=True
            )
    finally:
        os.close(secret)
    folder = Path(f"/proc/{bundle.pid(id)}/fd")
    held = {name.name: os.readlink(name) for name in folder.iterdir()}
    above = {number: target for number, target in held.items() if int(number) > 2}
    assert all(target.endswith("/exec.fifo") or target == "/proc" for target in above.values()), above


@pytest.mark.parametrize("call", ["close_range", "close", "fcntl"])
@pytest.mark.parametrize("privileges", [True, False], ids=["new-privileges", "no-new-privileges"])
def test_a_filter_that_refuses_to_close_descriptors(bundle: Bundle, call: str, privileges: bool) -> None:
    """Loaded before the last steps (without no-new-privileges), it must not leave the host's /proc open inside."""
    bundle.process["noNewPrivileges"] = not privileges
    rule = {"names": [call], "action": "SCMP_ACT_ERRNO"}
    bundle.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    script = "for n in 3 4 5 6 7 8 9 10 11 12 13 14 15; do [ -e /proc/$$/fd/$n ] && readlink /proc/$$/fd/$n; done; true"
    assert bundle.says(script) == ""
    id = bundle.detached("sh", "-c", "while :; do sleep 1; done")
    # Not in the terminal's way: start and run return when execve has closed all.
    assert exec_in(bundle, id, script) == ""
    inside = Path(f"/proc/{bundle.pid(id)}/fd")
    assert {name.name for name in inside.iterdir()} <= {"0", "1", "2", "10"}, "10: the shell's own copy"


@pytest.mark.parametrize("number", range(3, 12))
def test_working_directory_by_descriptor(bundle: Bundle, number: int) -> None:
    """process.cwd /proc/self/fd/N must not reach a folder of the host that the runtime has open."""
    bundle.process["cwd"] = f"/proc/self/fd/{number}"
    done = bundle.run("sh", "-c", "pwd; ls -a . ..")
    if done.returncode == 0:
        assert "etc" not in done.stdout.split()[1:] or done.stdout.startswith("/\n"), done.stdout
    assert "config.json" not in done.stdout and "state.json" not in done.stdout
    assert done.returncode != 0
    bundle.process["cwd"] = "/"
    id = bundle.detached()
    done = bundle.runc("exec", "--cwd", f"/proc/self/fd/{number}", id, "ls")
    assert done.returncode != 0, done.stdout


# -- CVE-2021-30465, CVE-2019-19921: races through links -----------------------------------------------


def test_destinations_through_links_stay_inside(bundle: Bundle) -> None:
    outside = bundle.folder / "outside"
    outside.mkdir()
    (bundle.rootfs / "abs").symlink_to("/../../../../../../.." + str(outside))
    (bundle.rootfs / "rel").symlink_to("../../../../../../../../../.." + str(outside))
    (bundle.rootfs / "chain").symlink_to("abs/deeper")
    for destination in ("/abs/one", "/rel/two", "/chain/three", "/../../four"):
        bundle.mount(destination, "tmpfs")
    mounts = bundle.says("grep tmpfs /proc/mounts")
    for name in ("one", "two", "three", "four"):
        assert f"/{name} " in mounts
    assert not any(outside.iterdir())


def test_mount_race_through_a_shared_volume(bundle: Bundle, rounds: Callable[[int], int]) -> None:
    """A neighbour swaps a folder of a shared volume with a link to the host's root while we mount below it."""
    volume = bundle.folder / "volume"
    (volume / "a").mkdir(parents=True)
    (volume / "b").symlink_to("/../../../../../../../" + str(bundle.folder / "target"))
    target = bundle.folder / "target"
    target.mkdir()
    bundle.mount("/vol", "bind", str(volume), ["rbind", "rw"])
    for number in range(8):
        bundle.mount(f"/vol/a/m{number}", "tmpfs")
    stop = threading.Event()
    renameat2 = libc().syscall

    def swap() -> None:
        one, other = str(volume / "a").encode(), str(volume / "b").encode()
        while not stop.is_set():
            renameat2(316 if os.uname().machine == "x86_64" else 276, -100, one, -100, other, 2)

    attacker = threading.Thread(target=swap)
    attacker.start()
    try:
        for _ in range(rounds(20)):
            done = bundle.run("sh", "-c", "cat /proc/self/mountinfo")
            for line in done.stdout.splitlines():
                place = line.split()[4]
                assert place.startswith(("/vol", "/proc", "/dev", "/sys")) or place == "/" or "/target/" in place, line
            assert not any(target.iterdir()), "a folder was made on the host"
    finally:
        stop.set()
        attacker.join()


@pytest.mark.parametrize("place", ["proc", "sys"])
def test_proc_and_sys_must_be_real_folders(bundle: Bundle, place: str) -> None:
    """CVE-2019-19921, CVE-2023-27561: a link there would leave a forged procfs to write labels to."""
    (bundle.rootfs / place).rmdir()
    (bundle.rootfs / "elsewhere").mkdir()
    (bundle.rootfs / place).symlink_to("elsewhere")
    assert "must be mounted on ordinary directory" in bundle.refuses()


def test_nothing_is_mounted_inside_proc(bundle: Bundle) -> None:
    """CVE-2025-52881: not by path and not by a link that leads there."""
    (bundle.rootfs / "way").symlink_to("/proc/self/attr")
    for destination in ("/proc/self/attr", "/proc/sys/kernel", "/way"):
        bundle.mount(destination, "tmpfs")
        assert "inside /proc" in bundle.refuses() or "magic" in bundle.refuses()
        bundle.config["mounts"].pop()
    bundle.mount("/proc", "bind", str(bundle.rootfs / "tmp"), ["rbind"])
    assert "cannot be mounted" in bundle.refuses()


def test_sysctl_through_a_forged_proc(bundle: Bundle) -> None:
    """The container's /proc/sys is a volume with a link to a dangerous file: the sysctl goes to the real one."""
    forged = bundle.folder / "forged"
    (forged / "kernel").mkdir(parents=True)
    victim = bundle.rootfs / "victim"
    victim.write_text("untouched")
    (forged / "kernel/msgmax").symlink_to("/victim")
    bundle.config["mounts"] = [m for m in bundle.config["mounts"] if m["destination"] != "/proc"]
    (bundle.rootfs / "proc/sys/kernel").mkdir(parents=True)
    (bundle.rootfs / "proc/sys/kernel/msgmax").symlink_to("/victim")
    bundle.linux["sysctl"] = {"kernel.msgmax": "12345"}
    bundle.linux["maskedPaths"] = bundle.linux["readonlyPaths"] = []
    bundle.mount("/realproc", "proc")
    assert bundle.says("cat /realproc/sys/kernel/msgmax") == "12345"
    assert victim.read_text() == "untouched"


# -- CVE-2025-31133, CVE-2025-52565: masks and the console ----------------------------------------------


def test_masks_do_not_use_the_containers_null(bundle: Bundle) -> None:
    """The container's /dev/null is a link to what an attacker would like to see bound over a masked path."""
    bundle.config["mounts"] = [m for m in bundle.config["mounts"] if not m["destination"].startswith("/dev")]
    own = bundle.folder / "own-dev"
    own.mkdir()
    (own / "null").symlink_to("/proc/sys/kernel/core_pattern")
    bundle.mount("/dev", "bind", str(own), ["bind"])
    bundle.linux["maskedPaths"] = ["/proc/uptime", "/proc/meminfo"]
    assert bundle.says("stat -c '%t:%T' /proc/uptime /proc/meminfo").split() == ["1:3", "1:3"]


def test_an_image_with_a_forged_null_gets_a_real_one(bundle: Bundle) -> None:
    bundle.config["mounts"] = [m for m in bundle.config["mounts"] if not m["destination"].startswith("/dev")]
    (bundle.rootfs / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    assert bundle.says("stat -c '%t:%T %F' /dev/null") == "1:3 character special file"


def test_a_folder_is_masked_by_an_empty_read_only_one(bundle: Bundle) -> None:
    (bundle.rootfs / "secret").mkdir()
    (bundle.rootfs / "secret/file").write_text("x")
    bundle.linux["maskedPaths"] = ["/secret", "/proc/acpi", "/nosuch"]
    assert bundle.says("ls -A /secret; touch /secret/x 2>/dev/null || echo read-only") == "read-only"


def test_console_is_bound_by_descriptor(bundle: Bundle) -> None:
    """/dev/console and /dev/pts are links to somewhere else: the terminal does not go there."""
    bundle.process["terminal"] = True
    bundle.config["mounts"] = [m for m in bundle.config["mounts"] if m["destination"] in ("/proc", "/sys", "/dev/pts")]
    (bundle.rootfs / "dev/pts").mkdir()
    (bundle.rootfs / "victim").write_text("untouched")
    (bundle.rootfs / "dev/console").symlink_to("/victim")
    done = bundle.run("sh", "-c", "stat -c %F /victim /dev/console; cat /victim")
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace("\r", "").split("\n")[:3] == [
        "regular file",
        "character special file",
        "untouched",
    ]


def test_a_forged_ptmx_is_refused(bundle: Bundle) -> None:
    bundle.process["terminal"] = True
    bundle.config["mounts"] = [m for m in bundle.config["mounts"] if not m["destination"].startswith("/dev")]
    (bundle.rootfs / "dev/pts").mkdir()
    os.mkfifo(bundle.rootfs / "dev/pts/ptmx")
    assert "not a terminal multiplexer" in bundle.refuses()


# -- CVE-2022-29162, CVE-2016-9962, CVE-2024-45310 --------------------------------------------------------


def test_no_inheritable_capabilities(bundle: Bundle) -> None:
    id = bundle.detached()
    for said in (bundle.says("cat /proc/self/status"), exec_in(bundle, id, "cat /proc/self/status")):
        assert "CapInh:\t0000000000000000" in said
    said = exec_in(bundle, id, "cat /proc/self/status", "--cap", "CAP_SYS_ADMIN")
    assert "CapInh:\t0000000000000000" in said and "CapAmb:\t0000000000000000" in said


@pytest.mark.needs("strace")
def test_the_last_step_begins_by_not_being_dumpable(bundle: Bundle) -> None:
    """execve made it dumpable; where no identity changes, nothing but its first call undoes that."""
    bundle.process["args"] = ["true"]
    bundle.write()
    log = bundle.folder / "trace"
    words = ["strace", "-f", "-o", str(log), RUNC, "--root", str(bundle.root), "run", bundle.new_id()]
    subprocess.run(words, cwd=bundle.folder, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    lines = log.read_text().splitlines()
    begins = next(i for i, line in enumerate(lines) if "execveat(" in line and "teu-runc-init" in line)
    pid = lines[begins].split()[0]
    calls = [line.split(None, 1)[1] for line in lines[begins + 1 :] if line.split()[0] == pid]
    calls = [call for call in calls if not call.startswith("<... execveat")]
    assert calls[0].startswith("prctl(PR_SET_DUMPABLE, SUID_DUMP_DISABLE"), calls[0]


def test_not_dumpable_before_execve(bundle: Bundle) -> None:
    """From the clone to the user's execve: /proc/PID belongs to root although ids may have changed."""
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    id = bundle.created()
    pid = bundle.pid(id)
    assert os.stat(f"/proc/{pid}/mem").st_uid == 0, "dumpable: it would belong to 1000"
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Uid:\t1000\t1000" in status
    bundle.ok("start", id)
    deadline = time.monotonic() + 10
    while os.stat(f"/proc/{pid}/mem").st_uid != 1000:
        assert time.monotonic() < deadline


@pytest.mark.needs("strace")
def test_exec_is_not_dumpable_in_the_containers_pid_namespace(bundle: Bundle) -> None:
    """The helper becomes not dumpable before it joins, and its child before it goes on (CVE-2016-9962)."""
    id = bundle.detached()
    log = bundle.folder / "trace"
    subprocess.run(
        [
            "strace",
            "-f",
            "-o",
            str(log),
            "-e",
            "trace=prctl,setns,clone,execve,execveat",
            RUNC,
            "--root",
            str(bundle.root),
            "exec",
            id,
            "true",
        ],
        check=True,
        capture_output=True,
    )
    lines = [line.split(None, 1)[1] for line in log.read_text().splitlines()]
    joined = next(i for i, line in enumerate(lines) if line.startswith("setns("))
    entered = next(i for i, line in enumerate(lines) if "teu-runc-init" in line and "exec" in line)
    assert any("PR_SET_DUMPABLE, SUID_DUMP_DISABLE" in line for line in lines[entered:joined])
    assert any("PR_SET_DUMPABLE, SUID_DUMP_DISABLE" in line for line in lines[joined:])


def test_nothing_is_made_outside_of_the_root(bundle: Bundle) -> None:
    """CVE-2024-45310: missing destinations are made, never through a link out of the root."""
    outside = bundle.folder / "outside"
    outside.mkdir()
    (bundle.rootfs / "out").symlink_to(outside)
    (bundle.rootfs / "up").symlink_to("../outside")
    file = bundle.folder / "file"
    file.write_text("x")
    bundle.mount("/out/made/file", "bind", str(file), ["bind"])
    bundle.mount("/up/made", "tmpfs")
    bundle.linux["devices"] = [{"path": "/out/device", "type": "c", "major": 1, "minor": 3}]
    bundle.process["cwd"] = "/up/cwd"
    bundle.says("true")
    assert not any(outside.iterdir())


# -- no look-up in the container's root ---------------------------------------------------------------------


@pytest.mark.needs("strace")
@pytest.mark.parametrize("command", ["run", "exec"])
def test_no_file_is_looked_up_in_the_root_after_the_pivot(bundle: Bundle, command: str) -> None:
    """No import, no library, no locale: between pivot_root (or setns) and the user's execve only what is named.

    For exec the child that the helper clones after joining is followed as well: its calls come from the same program.
    """
    bundle.process["args"] = ["true"]
    bundle.write()
    id = bundle.new_id()
    words = ["run", id]
    if command == "exec":
        id = bundle.detached()
        words = ["exec", id, "true"]
    log = bundle.folder / "trace"
    subprocess.run(
        [
            "strace",
            "-f",
            "-o",
            str(log),
            "-e",
            "trace=%file,pivot_root,setns,execve,execveat",
            RUNC,
            "--root",
            str(bundle.root),
            *words,
        ],
        cwd=bundle.folder,
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    inside: dict[str, bool] = {}
    bad = []
    for line in log.read_text().splitlines():
        pid, call = line.split(None, 1)
        if call.startswith("pivot_root(") or (command == "exec" and call.startswith("setns(")):
            inside[pid] = True
        if not inside.get(pid):
            continue
        if call.startswith("execve(") and "execveat" not in call:
            inside[pid] = False
        allowed = ("pivot_root(", "mount(NULL", "umount2(", "chdir(", "getcwd(", "execve", "setns(", "<... ", "+++")
        named = ('"/"', '"/dev/null"', '"self/fd/', "AT_EMPTY_PATH", "/bin/true", "/sbin/true")
        if not call.startswith(allowed) and not any(name in call for name in named):
            bad.append(call)
    assert inside and not bad, bad


def test_hostile_root_with_python_files(bundle: Bundle) -> None:
    """An image full of modules with our names: none of them runs."""
    for place in ("usr/lib/python3/dist-packages", f"usr/lib/python3.{sys.version_info.minor}", "src"):
        folder = bundle.rootfs / place
        (folder / "encodings").mkdir(parents=True)
        for name in ("os", "sys", "json", "errno", "traceback", "linecache", "sitecustomize", "encodings/utf_8"):
            (folder / f"{name}.py").write_text("open('/pwned', 'w').write('x')\n")
    bundle.says("true")
    bundle.refuses("nosuch")
    id = bundle.detached()
    bundle.runc("exec", id, "nosuch")
    assert not (bundle.rootfs / "pwned").exists()


def test_user_namespace_hides_unreachable_sources_safely(bundle: Bundle) -> None:
    """A source below a folder that the mapped root may not enter is opened from outside, and only that."""
    full_proc()
    private = bundle.folder / "private"
    (private / "inner").mkdir(parents=True)
    (private / "inner/file").write_text("data")
    private.chmod(0o700)
    bundle.map_ids()
    bundle.mount("/data", "bind", str(private / "inner"), ["bind", "ro"])
    assert bundle.says("cat /data/file; echo; ls /data/.. | grep -c private || true") == "data\n0"
