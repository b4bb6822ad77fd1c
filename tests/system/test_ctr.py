# SPDX-License-Identifier: Apache-2.0
"""`teu-ctr` beside Debian's `ctr`, on Debian's containerd and on teu-containerd: what one prints the other prints,
and what one makes the other finds."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
from test_cli_terminal import Terminal

TREE = Path(__file__).resolve().parents[2]
TEU_CTR = str(TREE / "bin/teu-ctr") if (TREE / "bin/teu-ctr").exists() else "/usr/bin/teu-ctr"
OURS = "/run/teu/containerd.sock"
NAMESPACE = "ctr-test"

# Debian 12 has ctr 1.6, whose words differ from those of 1.7.
pytestmark = pytest.mark.needs("ctr", "containerd", "trixie")


class Side:
    """One daemon: both clients on it."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        # Debian's ctr asks for CPU shares by default, which not every lab's cgroups can do.
        self.run_flags = ["--runtime", "io.containerd.runc.v2"] if name == "debian" else []

    def argv(self, program: str, *words: str) -> list[str]:
        given = peers.as_of_ours(words) if program == "ctr" else words
        return [program, "--address", self.address, "-n", NAMESPACE, *given]

    def ctr(self, *words: str, code: int | None = 0, stdin: str | None = None) -> str:
        return peers.run(*self.argv("ctr", *words), code=code, stdin=stdin).stdout

    def ours(self, *words: str, code: int | None = 0, stdin: str | None = None) -> str:
        return peers.run(*self.argv(TEU_CTR, *words), code=code, stdin=stdin).stdout


@pytest.fixture(scope="module", params=["debian", "teu"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    if request.param == "debian":
        with peers.containerd() as daemon:
            found = Side("debian", str(daemon.address))
            found.ours("images", "import", str(peers.archive()))
            yield found
        return
    found = Side("teu", OURS)
    found.ours("images", "import", str(peers.archive()))
    yield found
    for task in found.ours("tasks", "ls", "-q").split():
        found.ours("tasks", "rm", "-f", task, code=None)
    for container in found.ours("containers", "ls", "-q").split():
        found.ours("containers", "rm", container, code=None)
    for image in found.ours("images", "ls", "-q").split():
        found.ours("images", "rm", "--sync", image)
    for lease in found.ours("leases", "ls", "-q").split():
        found.ours("leases", "rm", lease)


@pytest.fixture
def running(side: Side) -> Iterator[str]:
    """A container that sleeps, made by teu-ctr."""
    side.ours("run", "-d", "--null-io", *side.run_flags, peers.IMAGE, "sleeper", "sleep", "100000")
    yield "sleeper"
    side.ours("tasks", "rm", "-f", "sleeper", code=None)
    side.ours("containers", "rm", "sleeper")


def normal(text: str) -> str:
    text = re.sub(r"\b(teu-)?ctr(?=[: ])", "PROGRAM", text)
    text = re.sub(r'time="[^"]*"', "TIME", text)
    text = re.sub(r'invalid platform "([^"]*)":', r"invalid platform \1:", text)  # in quotes until ctr 1.7
    text = re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "MOMENT", text)
    # Labels come in the order of a map.
    text = re.sub(r"^\S+=\S*,\S+$", lambda found: ",".join(sorted(found[0].split(","))), text, flags=re.M)
    # The tabs after a column follow the width of its widest age.
    return re.sub(r"\t+", "\t", re.sub(r"(Less than a second|\d+ seconds?|About a minute|\d+ minutes?)", "AGE", text))


SAME = """
namespaces ls -q
namespaces rm nosuch
images ls
images ls -q
images ls name==docker.io/library/busybox:latest
images check
images check -q
images usage docker.io/library/busybox:latest
images rm nosuch
images tag nosuch x
images usage nosuch
images export /tmp/none.tar nosuch
images prune
content ls
content ls -q
content get sha256:0000000000000000000000000000000000000000000000000000000000000000
content get sha256:123
content active
snapshots ls
snapshots tree
snapshots usage
snapshots usage -b
snapshots info nosuch
snapshots --snapshotter overlayfs ls
containers ls
containers ls -q
containers info nosuch
containers rm nosuch
containers rm
tasks ls
tasks ls -q
tasks ps nosuch
tasks kill nosuch
tasks start nosuch
tasks rm nosuch
tasks pause nosuch
tasks exec --exec-id x nosuch ls
leases ls
plugins ls -q
info
run nosuch x
run
run --rm -d docker.io/library/busybox:latest x
deprecations list
"""


@pytest.mark.parametrize("line", [line for line in SAME.splitlines() if line])
def test_the_same_as_ctr(side: Side, line: str) -> None:
    results = []
    for program in ("ctr", TEU_CTR):
        done = peers.run(*side.argv(program, *shlex.split(line)), code=None)
        results.append((normal(done.stdout), normal(done.stderr), done.returncode))
    assert results[1] == results[0]


def test_a_running_container_looks_the_same(side: Side, running: str) -> None:
    for line in ("tasks ls", "containers ls", "tasks ps sleeper", "snapshots ls", "snapshots mounts /mnt sleeper"):
        words = line.split()
        assert normal(side.ours(*words)) == normal(side.ctr(*words)), line
    for line in ("containers info sleeper", "containers info --spec sleeper", "snapshots info sleeper"):
        words = line.split()
        assert json.loads(side.ours(*words)) == json.loads(side.ctr(*words)), line
    metrics = side.ours("tasks", "metrics", "sleeper")
    assert re.search(r"^METRIC +VALUE", metrics, re.M)
    theirs = side.ctr("tasks", "metrics", "sleeper")
    names = re.compile(r"^(\w+\.\w+) ", re.M)
    assert names.findall(metrics) == names.findall(theirs)


def test_what_ctr_made_is_ours_to_use(side: Side) -> None:
    """ctr creates, teu-ctr starts, executes, pauses and removes; and the other way round."""
    runtime = side.run_flags or ["--runtime", "io.containerd.teu.v2"]
    for maker, user in ((side.ctr, side.ours), (side.ours, side.ctr)):
        maker("containers", "create", *runtime, "--label", "a=b", peers.IMAGE, "shared", "sleep", "100000")
        user("tasks", "start", "-d", "--null-io", "shared")
        user("tasks", "exec", "--exec-id", "e1", "shared", "sh", "-c", "echo out; exit 4", code=4)
        assert "c=d" in user("containers", "label", "shared", "c=d")
        user("tasks", "pause", "shared")
        assert "PAUSED" in maker("tasks", "ls")
        user("tasks", "resume", "shared")
        assert user("containers", "ls", "-q", "labels.a==b") == "shared\n"
        maker("tasks", "kill", "-s", "SIGKILL", "shared")
        peers.wait_until(lambda user=user: "STOPPED" in user("tasks", "ls"), "the task stops")
        # teu-ctr tells the exit status by its own, ctr only warns of it.
        user("tasks", "rm", "shared", code=None)
        maker("containers", "rm", "shared")
        assert "shared" not in user("snapshots", "ls")


def test_run(side: Side) -> None:
    def run(*words: str, code: int = 0, stdin: str | None = None) -> str:
        return side.ours("run", "--rm", *side.run_flags, *words, code=code, stdin=stdin)

    image = peers.IMAGE
    assert run(image, "r1", "echo", "hello") == "hello\n"
    assert run(image, "r1", "sh", "-c", "exit 7", code=7) == ""
    big = "0123456789abcde\n" * 50_000
    assert run(image, "r1", "cat", stdin=big) == big
    assert run("--env", "A=b", "--cwd", "/tmp", image, "r1", "sh", "-c", "echo $A; pwd") == "b\n/tmp\n"
    assert run("--user", "nobody", image, "r1", "id", "-u") == "65534\n"
    assert run("--hostname", "boat", image, "r1", "hostname") == "boat\n"
    assert run("--net-host", image, "r1", "sh", "-c", "ls /sys/class/net") == peers.run("ls", "/sys/class/net").stdout
    assert run("--mount", "type=bind,src=/etc,dst=/host,options=rbind:ro", image, "r1", "cat", "/host/hostname")
    assert run("--read-only", image, "r1", "touch", "/x", code=1) == ""
    assert "0000000000000000" in run(
        *(
            word
            for name in (
                "CHOWN",
                "KILL",
                "SETUID",
                "SETGID",
                "MKNOD",
                "NET_RAW",
                "FOWNER",
                "FSETID",
                "SETFCAP",
                "SETPCAP",
                "DAC_OVERRIDE",
                "SYS_CHROOT",
                "AUDIT_WRITE",
                "NET_BIND_SERVICE",
            )
            for word in ("--cap-drop", "CAP_" + name)
        ),
        image,
        "r1",
        "grep",
        "CapEff",
        "/proc/1/status",
    )
    assert run("--seccomp", image, "r1", "grep", "Seccomp:", "/proc/1/status").split()[1] == "2"
    assert run("--privileged", image, "r1", "sh", "-c", "ls /dev/null && mount -t tmpfs t /tmp && echo ok").endswith(
        "ok\n"
    )
    run(image, "r1", "nosuch", code=1)
    assert "r1" not in side.ours("containers", "ls", "-q").split()
    assert "r1" not in side.ours("snapshots", "ls").split()
    assert not list(Path("/run/teu/ctr-fifo").iterdir())


def test_run_at_a_terminal(side: Side) -> None:
    terminal = Terminal(*side.argv(TEU_CTR, "run", "--rm", "-t", *side.run_flags, peers.IMAGE, "tty1", "sh"))
    terminal.expect("# ")
    terminal.type("stty size\n")
    terminal.expect(r"\n33 120")
    terminal.resize(40, 90)

    def resized() -> bool:
        terminal.type("stty size\n")
        return "40 90" in terminal.expect(r"\n\d+ \d+")

    peers.wait_until(resized, "the new size arrives", 20)
    terminal.type("exit 5\n")
    assert terminal.code() == 5


def test_signals_and_attach(side: Side) -> None:
    script = "trap 'echo got; exit 11' TERM; echo up; while :; do sleep 0.05; done"
    argv = side.argv(TEU_CTR, "run", "--rm", *side.run_flags, peers.IMAGE, "sig", "sh", "-c", script)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.stdout.read() == "got\n"
        assert process.wait(30) == 11


def test_events(side: Side) -> None:
    with subprocess.Popen(side.argv(TEU_CTR, "events"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            # The subscription has no acknowledgement: label an image until its event is seen.
            lines: list[str] = []
            os.set_blocking(process.stdout.fileno(), False)

            def seen() -> bool:
                side.ours("images", "label", peers.IMAGE, f"n={len(lines)}")
                lines.extend(process.stdout.readlines() if process.stdout else [])
                return bool(lines)

            peers.wait_until(seen, "an event arrives")
            assert re.search(
                rf"^\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\S* \+0000 UTC {NAMESPACE} /images/update "
                rf'{{"name":"{peers.IMAGE}"',
                lines[0],
            ), lines[0]
        finally:
            process.kill()
    side.ours("images", "label", peers.IMAGE, "n=")


def test_content_and_snapshots(side: Side, tmp_path: Path) -> None:
    digest = "sha256:b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c"
    lease = side.ours("leases", "create", "--id", "held", "a=b").strip()
    assert lease == "held"
    assert normal(side.ours("leases", "ls")) == normal(side.ctr("leases", "ls"))
    side.ours("content", "ingest", "--expected-digest", digest, "ref", stdin="foo\n")
    assert side.ctr("content", "get", digest) == "foo\n"
    assert side.ours("content", "label", digest, "k=v").strip() == "k=v"
    side.ours("content", "ingest", "--expected-digest", digest, "ref2", stdin="foo\n")  # there already
    side.ours("content", "ingest", "--expected-digest", digest[:-1] + "0", "ref3", stdin="foo\n", code=1)
    assert side.ours("content", "rm", digest).strip() == digest
    side.ours("leases", "rm", "held")
    chain = re.findall(r"^(sha256:\S+) .*Committed", side.ours("snapshots", "ls"), re.M)[0]
    side.ours("snapshots", "prepare", "active", chain)
    target = tmp_path / "mnt"
    target.mkdir()
    mounts = side.ours("snapshots", "mounts", str(target), "active")
    assert mounts == side.ctr("snapshots", "mounts", str(target), "active")
    peers.run("sh", "-c", mounts)
    (target / "new").write_text("x")
    peers.run("umount", str(target))
    (tmp_path / "layer.tar.gz").write_bytes(
        subprocess.run(side.argv(TEU_CTR, "snapshots", "diff", "active"), capture_output=True, check=True).stdout
    )
    assert peers.run("tar", "tzf", str(tmp_path / "layer.tar.gz")).stdout.split() == ["new"]
    side.ours("snapshots", "commit", "committed", "active")
    tree = side.ours("snapshots", "tree")
    assert f" {chain}\n  \\_ committed\n" in tree
    assert tree == side.ctr("snapshots", "tree")
    side.ours("snapshots", "rm", "committed")
    side.ours("images", "mount", peers.IMAGE, str(target))
    assert (target / "bin/busybox").exists()
    assert side.ours("images", "unmount", "--rm", str(target)).strip() == str(target)
    assert not list(target.iterdir())


def test_images_go_out_and_come_in(side: Side, tmp_path: Path) -> None:
    archive = str(tmp_path / "image.tar")
    side.ours("images", "tag", peers.IMAGE, "local/copy:1")
    side.ours("images", "export", archive, "local/copy:1")
    side.ours("images", "rm", "local/copy:1")
    assert "unpacking local/copy:1" in side.ctr("images", "import", archive).replace("docker.io/", "")
    names = [name for name in side.ours("images", "ls", "-q").split() if name.endswith("local/copy:1")]
    assert len(names) == 1
    assert names[0] in side.ours("images", "check", "-q").split()
    side.ours("images", "rm", names[0])


@pytest.mark.needs("docker-registry")
def test_push_and_pull(side: Side) -> None:
    with peers.registry() as registry:
        name = f"{registry.address}/some/image:1"
        side.ours("images", "tag", peers.IMAGE, name)
        assert re.search(r"manifest-sha256:\w{64}: +done", side.ours("images", "push", "--plain-http", name))
        digest = next(line.split()[2] for line in side.ours("images", "ls").splitlines() if line.startswith(name))
        side.ours("images", "rm", "--sync", name)
        shown = side.ours("images", "pull", "--plain-http", name)
        assert re.search(rf"^{re.escape(name)}: +resolved", shown, re.M)
        assert "unpacking linux/" in shown and digest in shown
        assert side.ctr("images", "check", "-q", f"name=={name}").strip() == name
        assert side.ours("run", "--rm", *side.run_flags, name, "pulled", "echo", "x") == "x\n"
        side.ours("content", "fetch", "--plain-http", name)
        assert '"layers"' in side.ours("content", "fetch-object", "--plain-http", name)
        failed = peers.run(
            *side.argv(TEU_CTR, "images", "pull", "--plain-http", f"{registry.address}/nosuch:1"), code=1
        )
        assert failed.stderr.endswith("not found\n")
        side.ours("images", "rm", "--sync", name)


def test_the_shim_itself(side: Side, running: str) -> None:
    assert '"pid": ' in side.ours("shim", "--id", running, "state")
    assert side.ours("shim", "exec", "--id", running, "--env", "PATH=/bin", "e9", "true").startswith(
        "process running with pid "
    )


def test_a_daemon_that_is_not_there() -> None:
    done = peers.run(TEU_CTR, "-a", "/nosuch", "ns", "ls", code=1)
    assert done.stderr.startswith('teu-ctr: failed to dial "/nosuch": no such file or directory')
    done = peers.run(TEU_CTR, "tasks", "ls", "-x", code=1)
    assert done.stdout.startswith("Incorrect Usage: flag provided but not defined: -x\n\nNAME:\n   teu-ctr tasks list")
    assert peers.run(TEU_CTR, "nosuch", code=3).stderr == "No help topic for 'nosuch'\n"


# Done by ctr in one namespace and by teu-ctr in another, on the same daemon: NAMESPACE, ARCHIVE, FOLDER are filled in,
# FIRST and LAYER are the digests of the image's manifest and layer, CHAIN its snapshot. `<TEXT` feeds standard input.
# What nothing refers to may be collected between any two lines.
STORY = """
namespaces create extra-NAMESPACE a=b c=d
namespaces label extra-NAMESPACE a= e=f
namespaces create extra-NAMESPACE
namespaces create
namespaces create bad/name
namespaces rm extra-NAMESPACE
namespaces rm extra-NAMESPACE
namespaces rm
images import --digests=false ARCHIVE
images ls
images import ARCHIVE-none
images check
images tag docker.io/library/busybox:latest example.org/one:1 example.org/two:2
images tag docker.io/library/busybox:latest example.org/one:1
images tag --force docker.io/library/busybox:latest example.org/one:1
images tag docker.io/library/busybox:latest
images ls -q
images ls -q name~=example
images ls name~=example labels.none
images ls name==
images label example.org/one:1 k=v l=m
images label example.org/one:1 k=
images label --replace-all example.org/one:1 n=o
images label example.org/none:1 n=o
images label
images rm example.org/two:2
images rm example.org/two:2 example.org/one:1
images rm --sync example.org/none:1
images rm
images usage docker.io/library/busybox:latest
images mount docker.io/library/busybox:latest FOLDER
images unmount --rm FOLDER
images mount example.org/none:1 FOLDER
images mount docker.io/library/busybox:latest
images export FOLDER/out.tar docker.io/library/busybox:latest
images export FOLDER/out.tar
images export FOLDER/none.tar example.org/none:1
images prune
images ls
images ls -q
images import --digests=false --no-unpack FOLDER/out.tar
images check -q
snapshots ls
content get FIRST
content get FIRST-none
content get
content label FIRST x=y
content label FIRST x=
content label
content ls digest==FIRST
content ls -q labels.none
content ls digest=x
content ingest one <hello
content label sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824 containerd.io/gc.root=now
content ingest --expected-size x three <hello
content active
content ingest
content rm sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824
content rm sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824
content rm not-a-digest
content prune references
snapshots ls
snapshots prepare one CHAIN
snapshots prepare one CHAIN
snapshots prepare two nosuch
snapshots view seen CHAIN
snapshots info one
snapshots usage one
snapshots label one a=b
snapshots label one a=
snapshots label nosuch a=b
snapshots commit done one
snapshots commit done nosuch
snapshots tree
snapshots rm CHAIN
snapshots rm seen done
snapshots rm seen
snapshots rm
snapshots unpack FIRST
snapshots unpack
snapshots --snapshotter nosuch ls
leases create --id one a=b
leases create --id one
leases create --id two -x 0 x=y
leases ls -q
leases rm one two
leases rm one
containers create SHIM --label a=b docker.io/library/busybox:latest c1 sleep 1000
containers create SHIM docker.io/library/busybox:latest c1 sleep 1000
containers create docker.io/library/busybox:latest
containers create
containers create example.org/none:1 c2
containers ls
containers ls -q labels.a==b
containers ls id==
containers label c1 a= c=d
containers label c1 a=
containers label nosuch a=
containers label
containers info nosuch
containers rm nosuch
containers rm c1 nosuch
run --rm RUNTIME --null-io docker.io/library/busybox:latest r1 sh -c "exit 3"
run --rm RUNTIME docker.io/library/busybox:latest r1 nosuch-program
run --rm RUNTIME --env A=b --cwd /tmp --user 5:6 --hostname boat IMAGE r1 sh -c "echo $A; pwd; id -u; hostname; sleep 1"
run --rm RUNTIME --cap-drop CAP_CHOWN --read-only IMAGE r1 sh -c "touch /x; grep Cap /proc/1/status; sleep 0.3"
run --rm RUNTIME --cap-add CHOWN docker.io/library/busybox:latest r1 true
run --rm RUNTIME --mount type=bind,src=/etc,dst=/x docker.io/library/busybox:latest r1 true
run --rm RUNTIME --mount nonsense docker.io/library/busybox:latest r1 true
run --rm RUNTIME --with-ns net:/proc/1/ns/net docker.io/library/busybox:latest r1 sh -c "exit 4"
run --rm RUNTIME --with-ns nonsense docker.io/library/busybox:latest r1 true
run --rm --runtime nonsense docker.io/library/busybox:latest r9 true
run RUNTIME --nosuchflag docker.io/library/busybox:latest r1 true
run -d RUNTIME --null-io docker.io/library/busybox:latest t1 sleep 100000
run -d RUNTIME --null-io docker.io/library/busybox:latest t1 sleep 100000
containers rm t1
tasks ls -q
tasks exec --exec-id e1 t1 sh -c "echo hello; sleep 0.3; exit 5"
tasks exec --exec-id e1 t1 nosuch-program
tasks exec --exec-id e1 --user 7:8 --cwd /tmp t1 sh -c "id -u; pwd; sleep 0.3"
tasks exec --exec-id e1
tasks pause t1
tasks pause t1
tasks exec --exec-id e1 t1 true
tasks resume t1
tasks resume t1
tasks kill --signal SIGNONE t1
tasks kill
tasks rm t1
tasks start t1
tasks checkpoint
tasks metrics nosuch
tasks ps
tasks kill -s SIGKILL --exec-id nosuch t1
tasks rm --exec-id nosuch t1
tasks rm -f t1
tasks rm -f t1
containers rm t1
tasks ls
plugins ls id==overlayfs
plugins ls -q type~=nosuch
plugins ls type=
events --nosuchflag
version --nosuchflag
images rm --sync docker.io/library/busybox:latest
images ls
content ls
snapshots ls
leases ls
"""


# On one daemon: what differs between daemons is compared elsewhere (test_containerd_conformance).
@pytest.mark.parametrize("side", ["teu"], indirect=True)
@pytest.mark.timeout(400)
def test_a_story_told_by_both(side: Side, tmp_path: Path) -> None:
    layout = json.loads(peers.run("tar", "xOf", str(peers.archive()), "index.json").stdout)
    first = layout["manifests"][0]["digest"]
    manifest = json.loads(peers.run("tar", "xOf", str(peers.archive()), f"blobs/{first.replace(':', '/')}").stdout)
    chain = manifest["layers"][0]["digest"]  # one uncompressed layer: its own chain ID
    shim = " ".join(side.run_flags or ["--runtime", "io.containerd.teu.v2"])
    answers: dict[str, list[tuple[str, str, str, int]]] = {}
    for program in ("ctr", TEU_CTR):
        namespace = f"story{len(answers)}-{os.getpid()}{time.monotonic_ns()}"
        folder = tmp_path / namespace
        folder.mkdir()
        fill = {
            "NAMESPACE": namespace,
            "ARCHIVE": str(peers.archive()),
            "FOLDER": str(folder),
            "FIRST": first,
            "CHAIN": chain,
            "IMAGE": peers.IMAGE,
            "SHIM": shim,
            "RUNTIME": f"{shim} --cpu-shares 0",
        }
        told = answers.setdefault(program, [])
        for line in STORY.strip().splitlines():
            words, _, stdin = line.partition(" <")
            for name, value in fill.items():
                words = words.replace(name, value)
            given = peers.as_of_ours(shlex.split(words)) if program == "ctr" else shlex.split(words)
            argv = [program, "--address", side.address, "-n", namespace, *given]
            done = peers.run(*argv, code=None, stdin=stdin or None, timeout=30)
            if done.stdout.startswith("Incorrect Usage"):
                done.stdout = done.stdout.partition("\n")[0]  # the help that follows is in words of our own
            out, err = (
                normal(text.replace(namespace, "NAMESPACE").replace(str(folder), "FOLDER"))
                for text in (done.stdout, done.stderr)
            )
            told.append((line, out, err, done.returncode))
    found = [
        f"{theirs[0]}\n    ctr:     {theirs[1:]}\n    teu-ctr: {ours[1:]}"
        for theirs, ours in zip(answers["ctr"], answers[TEU_CTR], strict=True)
        if theirs != ours
    ]
    assert not found, f"{len(found)} of {len(answers['ctr'])} lines differ\n" + "\n".join(found)
