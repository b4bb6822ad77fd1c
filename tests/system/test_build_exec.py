# SPDX-License-Identifier: Apache-2.0
"""Steps of a build on real daemons: on teu-containerd, and on Debian's containerd with runc.

The worker and the executor are the builder's own, in this process; only what is above them is the test's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import peers
import pytest
import whole
from taskhouse import TeuContainerd
from unit.buildkit.tunnel import client

from teu.api.buildkit import errdefs_pb2, gateway_pb2
from teu.api.buildkit import ops_pb2 as pb
from teu.api.buildkit.session import secrets_pb2, ssh_pb2
from teu.api.services.containers.v1 import containers_pb2
from teu.buildkit.cache.store import Store
from teu.buildkit.core import errors
from teu.buildkit.core.op import Ref
from teu.buildkit.core.snapshots import Kind
from teu.buildkit.llb.load import Edge, Metadata, Vertex
from teu.buildkit.ops.containers import Containers
from teu.buildkit.ops.exec import ExecOp, Steps
from teu.buildkit.session import secrets, ssh
from teu.buildkit.session.manager import Manager
from teu.buildkit.worker.client import Client
from teu.buildkit.worker.executor import HOST, NONE, Box, Executor, Settings, Wish
from teu.buildkit.worker.mounts import Bind
from teu.buildkit.worker.network import BRIDGE, VETH
from teu.buildkit.worker.spec import Process
from teu.buildkit.worker.worker import ContainerdWorker

pytestmark = [pytest.mark.needs("ctr", "systemd"), pytest.mark.timeout(300)]

SRC = Path(__file__).resolve().parents[2] / "src"


class Context:
    """What an operation asks of the solver."""

    def __init__(self, sessions: list[str]) -> None:
        self.vertex: Any = None
        self.out = b""
        self.err = b""
        self._sessions = sessions
        self._cancelled = threading.Event()
        self._calls: list[Callable[[], None]] = []
        self.wrote = threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def check(self) -> None:
        if self.cancelled:
            raise errors.Cancelled("context canceled")

    def wait(self, seconds: float) -> bool:
        return self._cancelled.wait(seconds)

    @contextlib.contextmanager
    def on_cancel(self, call: Callable[[], None]) -> Iterator[None]:
        self._calls.append(call)
        try:
            yield
        finally:
            self._calls.remove(call)

    def cancel(self) -> None:
        self._cancelled.set()
        for call in list(self._calls):
            call()

    def waiting(self) -> Any:
        return contextlib.nullcontext()

    def sessions(self) -> list[str]:
        return self._sessions

    def log(self, stream: int, data: bytes) -> None:
        if stream == 1:
            self.out += data
        else:
            self.err += data
        self.wrote.set()


class Builder:
    """A worker and its executor on a daemon, with a base of busybox."""

    def __init__(self, daemon: Any, folder: Path) -> None:
        self.daemon = daemon
        self.folder = folder
        self.client = Client(str(daemon.address))
        self.store = Store(str(folder / "cache.db"))
        self.worker = ContainerdWorker(
            self.client, self.store, str(folder / "mounts"), platforms=lambda: ["linux/amd64"]
        )
        self.worker.start()
        self.executor = Executor(self.client, self.worker.id, Settings(state=str(folder / "steps"), run="/run/teu"))
        self.sessions = Manager()
        self.known: list[str] = []
        worker: Any = self.worker
        self.steps = Steps(worker, self.executor, self.sessions)
        self.base = self.tree(lambda top: peers.busybox_rootfs(top))
        self.context = Context([])

    def tree(self, fill: Callable[[Path], object]) -> Any:
        active = self.worker.active(None, Kind())
        with active.mounted() as top:
            fill(Path(top))
        return active.commit()

    def vertex(self, script: str | list[str], inputs: int = 1, **more: Any) -> Vertex:
        meta = {"cwd": "/", "removeMountStubsRecursive": True, **more.pop("meta", {})}
        args = script if isinstance(script, list) else ["/bin/sh", "-c", script]
        mounts = [pb.Mount(dest="/", input=0, output=0), *more.pop("mounts", [])]
        op = pb.Op(inputs=[pb.Input(digest=f"sha256:{number}") for number in range(inputs)])
        op.exec.CopyFrom(pb.ExecOp(meta=pb.Meta(args=args, **meta), mounts=mounts, **more))
        return Vertex("sha256:x", op, tuple(Edge(one.digest, 0) for one in op.inputs), "", Metadata(), "sha256:x")

    def run(
        self, script: str | list[str], *inputs: Any, root: Any = None, context: Context | None = None, **more: Any
    ) -> list[Any]:
        """Do a step on the base, or another root; its results. What it wrote is in `self.context`."""
        given: list[Ref] = [root or self.base, *inputs]
        self.context = context or Context(self.known)
        op: Any = ExecOp(self.vertex(script, len(given), **more), self.steps)
        return list(op.execute(self.context, given))

    def out(self, script: str, *inputs: Any, **more: Any) -> str:
        for result in self.run(script, *inputs, **more):
            result.release()
        return self.context.out.decode()

    def files(self, result: Any) -> set[str]:
        """What is new in a result."""
        with result.mounted() as top, self.base.mounted() as before:
            found = {
                os.path.relpath(os.path.join(path, name), top)
                for path, folders, names in os.walk(top)
                for name in [*folders, *names]
            }
            return {name for name in found if not os.path.lexists(f"{before}/{name}")}

    def close(self) -> None:
        self.executor.close()
        assert os.listdir(self.folder / "steps") == []
        self.base.release()
        self.worker.close()
        self.store.close()
        self.client.close()


@contextlib.contextmanager
def daemons(name: str) -> Iterator[Any]:
    # The host's own builder, if another test has woken it, is on the same bridge, and keeps it.
    subprocess.run(["systemctl", "stop", "teu-buildkitd.service"], check=True)
    daemon = TeuContainerd() if name == "teu" else peers.Containerd()
    try:
        daemon.launch()
        yield daemon
    finally:
        daemon.stop()
        daemon.remove()


@pytest.fixture(scope="module", params=["teu", "debian"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Any]:
    with daemons(request.param) as found:
        yield found


@pytest.fixture
def builder(daemon: Any) -> Iterator[Builder]:
    os.makedirs("/run/teu", mode=0o755, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="teu-build-", dir="/run"))
    before = Path("/proc/self/mountinfo").read_text().count("\n")
    made = Builder(daemon, folder)
    yield made
    made.close()
    assert peers.run(*daemon.client, "-n", "teu", "containers", "ls", "-q").stdout == ""
    assert peers.run(*daemon.client, "-n", "teu", "tasks", "ls", "-q").stdout == ""
    whole.eventually("no mount is left", lambda: Path("/proc/self/mountinfo").read_text().count("\n") <= before)
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert BRIDGE not in links
    whole.eventually(
        "no interface is left",
        lambda: VETH not in subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout,
    )
    peers.clear(folder)


def scopes() -> list[str]:
    return [str(path) for path in Path("/sys/fs/cgroup").rglob("*.scope") if "teu-build.slice" in str(path)]


# The step itself


def test_a_step_writes_its_output_and_its_root(builder: Builder) -> None:
    (result,) = builder.run("echo hello; echo oh >&2; echo x >/made; mkdir /d; echo $A", meta={"env": ["A=b"]})
    assert builder.context.out == b"hello\nb\n"
    assert builder.context.err == b"oh\n"
    assert builder.files(result) == {"made", "d"}
    assert builder.out("cat /made", root=result) == "x\n"
    result.release()


def test_the_root_has_no_trace_of_mounts(builder: Builder) -> None:
    mounts = [
        pb.Mount(dest="/var/tmp/deep/t", input=-1, output=-1, mountType=pb.TMPFS),
        pb.Mount(dest="/c", input=-1, output=-1, mountType=pb.CACHE, cacheOpt=pb.CacheOpt(ID="trace")),
    ]
    with builder.base.mounted() as top:
        before = os.stat(f"{top}/etc").st_mtime_ns
    (result,) = builder.run("ls -d /var/tmp/deep/t /c && cat /etc/hosts /etc/resolv.conf", mounts=mounts)
    assert b"127.0.0.1\tlocalhost buildkitsandbox" in builder.context.out
    # What the runtime itself mounts needs places in this bare root, which BuildKit leaves, too.
    assert builder.files(result) <= {"proc", "sys", "dev"}
    with result.mounted() as top:
        assert os.stat(f"{top}/etc").st_mtime_ns == before
    result.release()


def test_an_exit_status_is_told(builder: Builder) -> None:
    with pytest.raises(errors.Error) as caught:
        builder.run("echo last words; exit 7")
    assert caught.value.message == (
        'process "/bin/sh -c echo last words; exit 7" did not complete successfully: exit code: 7'
    )
    assert gateway_pb2.ExitMessage(Code=7) in caught.value.details
    assert any(isinstance(detail, errdefs_pb2.Solve) for detail in caught.value.details)
    assert builder.context.out == b"last words\n"
    for result in builder.run("exit 7", meta={"validExitCodes": [7, 8]}):
        result.release()


def test_a_program_that_there_is_not(builder: Builder) -> None:
    with pytest.raises(errors.Error) as caught:
        builder.run(["/nothing"])
    assert caught.value.message == 'process "/nothing" did not complete successfully: exit code: 1'
    assert gateway_pb2.ExitMessage(Code=1) in caught.value.details
    said = (
        rb'runc run failed: unable to start container process: .*"/nothing": stat /nothing: no such file or directory\n'
    )
    assert re.fullmatch(said, builder.context.err)
    assert not builder.context.out


def test_users_and_folders(builder: Builder) -> None:
    def fill(top: Path) -> None:
        peers.busybox_rootfs(top)
        (top / "etc").mkdir(exist_ok=True)
        (top / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nwww:x:33:34::/var/www:/bin/sh\n")
        (top / "etc/group").write_text("root:x:0:\nweb:x:34:\nmore:x:50:www\n")

    base = builder.tree(fill)
    try:
        mounts = [pb.Mount(dest="/", input=1, output=0)]
        vertex = builder.vertex("id -u; id -g; id -G; echo $HOME; pwd; touch here; ls -ldn /srv/a", 2)
        vertex.op.exec.mounts[0].CopyFrom(mounts[0])
        vertex.op.exec.meta.user = "www"
        vertex.op.exec.meta.cwd = "/srv/a"
        context = builder.context = Context([])
        op: Any = ExecOp(vertex, builder.steps)
        for result in op.execute(context, [builder.base, base]):
            result.release()
        lines = context.out.decode().splitlines()
        assert lines[:2] == ["33", "34"]
        assert set(lines[2].split()) == {"34", "50"}
        assert lines[3:5] == ["/var/www", "/srv/a"]
        assert re.search(r" 33 +34 ", lines[5])
    finally:
        base.release()


def test_what_a_step_may(builder: Builder) -> None:
    script = "grep CapEff /proc/self/status; mount -t tmpfs x /tmp && echo mounted; true"
    text = builder.out(script)
    assert "CapEff:\t00000000a80425fb" in text
    assert "mounted" not in text
    assert "Seccomp:\t2" in builder.out("grep Seccomp: /proc/self/status")
    insecure = builder.out("grep -e CapEff -e Seccomp: /proc/self/status; mount -t tmpfs x /tmp && echo mounted",
                           security=pb.INSECURE)  # fmt: skip
    assert "mounted" in insecure
    assert "Seccomp:\t0" in insecure


@pytest.mark.needs("apparmor", "packages")  # the profile's file is the package's
def test_a_step_is_confined(builder: Builder) -> None:
    assert builder.out("cat /proc/self/attr/current").startswith("teu-default (enforce)")
    # Where runc has a profile of its own, which confines nothing, the step keeps that one.
    assert "unconfined" in builder.out("cat /proc/self/attr/current", security=pb.INSECURE)


def test_a_step_is_in_a_scope_of_the_builders_slice(builder: Builder) -> None:
    box = builder.executor.box(Wish(builder.worker.active(builder.base, Kind()), network=NONE, name="[2/3] RUN x"))
    try:
        box.start(Process(("sleep", "60"), ("PATH=/bin",)))
        (scope,) = scopes()
        assert f"teu-{box.id}.scope" in scope
        assert "teu.slice/teu-build.slice" in scope
    finally:
        box.kill()
        box.release()
    whole.eventually("the scope has gone", lambda: not scopes())


# Networks


def test_the_default_network_goes_out(builder: Builder) -> None:
    text = builder.out("ip -o -4 addr show eth0; ip route; hostname")
    assert "inet 172." in text or "inet 192.168." in text
    assert "default via" in text
    assert text.endswith("buildkitsandbox\n")
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        gateway = builder.executor.network.gateway
        threading.Thread(target=lambda: listener.accept()[0].sendall(b"hi\n"), daemon=True).start()
        assert builder.out(f"nc {gateway} {port} </dev/null") == "hi\n"


def test_no_network_and_the_hosts(builder: Builder) -> None:
    assert "eth0" not in builder.out("ip -o link", network=pb.NONE)
    assert BRIDGE in builder.out(f"ip -o link show {BRIDGE} || true; ls /sys/class/net", network=pb.HOST) or (
        "lo" in builder.context.out.decode()
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=lambda: listener.accept()[0].sendall(b"hi\n"), daemon=True).start()
        assert builder.out(f"nc 127.0.0.1 {port} </dev/null", network=pb.HOST) == "hi\n"
    assert HOST == pb.HOST and NONE == pb.NONE


def test_names(builder: Builder) -> None:
    text = builder.out(
        "hostname; cat /etc/hosts",
        meta={"hostname": "mine", "extraHosts": [pb.HostIP(Host="db", IP="10.1.2.3")]},
    )
    assert text.startswith("mine\n127.0.0.1\tlocalhost mine\n")
    assert "10.1.2.3\tdb\n" in text
    for text in ("/etc/hosts", "/etc/resolv.conf"):
        with pytest.raises(errors.Error):
            builder.run(f"echo x >>{text}")


# Mounts


def test_binds(builder: Builder) -> None:
    def fill(top: Path) -> None:
        (top / "part").mkdir()
        (top / "part/file").write_text("inside\n")
        (top / "secret").write_text("outside\n")

    source = builder.tree(fill)
    mounts = [
        pb.Mount(dest="/read", input=1, output=-1, readonly=True, selector="/part"),
        pb.Mount(dest="/file", input=1, output=-1, readonly=True, selector="/part/file"),
        pb.Mount(dest="/lost", input=1, output=-1),
        pb.Mount(dest="/kept", input=1, output=1, selector="part"),
    ]
    script = (
        "cat /read/file /file; ls -A /read; touch /read/x || echo readonly; ls /read/..;"
        " echo y >/lost/y; cat /lost/secret; echo z >/kept/z"
    )
    root, kept = builder.run(script, source, mounts=mounts)
    text = builder.context.out.decode()
    assert text.startswith("inside\ninside\nfile\nreadonly\n")
    assert "outside" in text
    with kept.mounted() as top:
        assert sorted(os.listdir(f"{top}/part")) == ["file", "z"]
        assert os.listdir(top).count("y") == 0
    assert not builder.files(root) & {"read", "file", "lost", "kept"}
    with pytest.raises(errors.NotFound, match="no such file or directory"):
        builder.run("true", source, mounts=[pb.Mount(dest="/m", input=1, output=-1, selector="/none")])
    for one in (root, kept, source):
        one.release()


def cache(**more: Any) -> pb.Mount:
    option = pb.CacheOpt(ID=more.pop("ID", "one"), sharing=more.pop("sharing", pb.SHARED))
    return pb.Mount(**{"dest": "/c", "input": -1, "output": -1, "mountType": pb.CACHE, "cacheOpt": option, **more})


def test_a_cache_outlives_its_step_and_is_in_no_result(builder: Builder) -> None:
    (result,) = builder.run("echo kept >/c/f", mounts=[cache()])
    assert not builder.files(result) - {"proc", "sys", "dev"}
    result.release()
    assert builder.out("cat /c/f", mounts=[cache()]) == "kept\n"
    assert builder.out("ls /c", mounts=[cache(ID="other")]) == ""


def test_a_cache_of_a_users_own(builder: Builder) -> None:
    """As the Dockerfile's frontend asks for uid, gid and mode: a folder of another tree is what it begins with."""

    def fill(top: Path) -> None:
        (top / "cache").mkdir(mode=0o750)
        os.chown(top / "cache", 33, 34)

    start = builder.tree(fill)
    mount = cache(ID="own", input=1, selector="/cache")
    found: list[str] = []

    def one(script: str) -> None:
        other = Context([])
        op: Any = ExecOp(builder.vertex(script, 2, mounts=[mount]), builder.steps)
        for result in op.execute(other, [builder.base, start]):
            result.release()
        found.append(other.out.decode())

    one("ls -ldn /c; echo a >/c/a")
    assert re.match(r"drwxr-x--- +2 +33 +34 ", found[0])
    # Two at a time see each other's files, though there is an overlay below.
    both = [threading.Thread(target=one, args=(script,)) for script in (
        "echo b >/c/b; for i in $(seq 100); do [ -e /c/d ] && break; sleep 0.1; done; ls /c",
        "for i in $(seq 100); do [ -e /c/b ] && break; sleep 0.1; done; echo d >/c/d; ls /c",
    )]  # fmt: skip
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert found[1] == found[2] == "a\nb\nd\n"
    start.release()


def test_a_cache_with_racing_links_leads_nowhere(builder: Builder) -> None:
    """CVE-2024-23651: one step exchanges a folder of a shared cache for a link while others mount it."""

    def fill(top: Path) -> None:
        (top / "a").mkdir()
        (top / "a/inside").touch()

    start = builder.tree(fill)
    stop = Context([])

    def swap() -> None:
        script = "while :; do mv /c/a /c/b; ln -s /etc /c/a; rm /c/a; mv /c/b /c/a; done"
        op: Any = ExecOp(builder.vertex(script, 2, mounts=[cache(ID="race", input=1)]), builder.steps)
        with contextlib.suppress(errors.Cancelled):
            op.execute(stop, [builder.base, start])

    thread = threading.Thread(target=swap)
    thread.start()
    seen: set[str] = set()
    try:
        for _ in range(15):
            context = Context([])
            mount = cache(ID="race", input=1, selector="/a", dest="/m")
            op: Any = ExecOp(builder.vertex("ls -A /m", 2, mounts=[mount]), builder.steps)
            try:
                for result in op.execute(context, [builder.base, start]):
                    result.release()
            except errors.Error as error:
                # It was not there, or was taken away before the runtime came.
                assert b"o such file or directory" in error.message.encode() + context.err
                continue
            seen.add(context.out.decode())
    finally:
        stop.cancel()
        thread.join()
    assert seen <= {"inside\n", ""}
    start.release()


def test_tmpfs(builder: Builder) -> None:
    mount = pb.Mount(dest="/t", input=-1, output=-1, mountType=pb.TMPFS, TmpfsOpt=pb.TmpfsOpt(size=65536))
    text = builder.out("grep ' /t ' /proc/mounts; head -c 100000 /dev/zero >/t/x || echo full", mounts=[mount])
    assert "size=64k" in text
    assert text.endswith("full\n")


WORD = b"s3cr3t-and-nobody-else-knows"


@contextlib.contextmanager
def with_client(builder: Builder) -> Iterator[None]:
    def give(request: Any, context: Any) -> Any:
        import grpc

        if request.ID != "word":
            context.abort(grpc.StatusCode.NOT_FOUND, "none")
        return secrets_pb2.GetSecretResponse(data=WORD)

    def check_agent(request: Any, context: Any) -> Any:
        return ssh_pb2.CheckAgentResponse()

    def agent(requests: Any, context: Any) -> Iterator[Any]:
        for request in requests:
            yield ssh_pb2.BytesMessage(data=b"agent: " + request.data)

    methods = {
        secrets.METHOD: (False, False, secrets_pb2.GetSecretRequest, secrets_pb2.GetSecretResponse, give),
        f"{ssh.PREFIX}CheckAgent": (False, False, ssh_pb2.CheckAgentRequest, ssh_pb2.CheckAgentResponse, check_agent),
        f"{ssh.PREFIX}ForwardAgent": (True, True, ssh_pb2.BytesMessage, ssh_pb2.BytesMessage, agent),
    }
    with client(methods, builder.sessions, "session"):
        builder.known = ["session"]
        yield


def secret(**more: Any) -> pb.Mount:
    option = pb.SecretOpt(**{"ID": "word", "uid": 5, "gid": 6, "mode": 0o440, **more})
    return pb.Mount(dest="/run/secrets/word", input=-1, output=-1, mountType=pb.SECRET, secretOpt=option)


def test_secrets_are_seen_by_the_step_alone(builder: Builder) -> None:
    with with_client(builder):
        script = (
            "ls -ln /run/secrets/word; wc -c </run/secrets/word; echo ${#WORD}; touch /made; sleep 2;"
            " echo x >/run/secrets/word || echo readonly"
        )
        found: list[str] = []

        def look() -> None:
            while builder.context.out.count(b"\n") < 3:  # it runs
                time.sleep(0.02)
            builder_out = subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
            found.append(builder_out)
            # What its container says of itself, for whoever asks containerd.
            listed = builder.client.containers.List(containers_pb2.ListContainersRequest()).containers
            found.append("\n".join(str(json.loads(one.spec.value)) for one in listed))

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        (result,) = builder.run(script, mounts=[secret()], secretenv=[pb.SecretEnv(ID="word", name="WORD")])
        looking.join()
        text = builder.context.out.decode()
        assert re.match(rf"-r--r----- +1 5 +6 +{len(WORD)} ", text)
        assert text.splitlines()[1:] == [str(len(WORD)), str(len(WORD)), "readonly"]
        assert len(found) == 2 and "'args'" in found[1]
        assert WORD.decode() not in found[0] and WORD.decode() not in found[1]
        assert builder.files(result) <= {"made", "proc", "sys", "dev"}
        result.release()
        # An optional one that there is not, and a needed one.
        assert builder.out("ls /run 2>/dev/null; true", mounts=[secret(ID="none", optional=True)]) == ""
        with pytest.raises(errors.Error, match="^secret none: not found$") as caught:
            builder.run("true", mounts=[secret(ID="none")])
        assert caught.value.code == 2  # UNKNOWN, which clients leave out
        with pytest.raises(errors.Error) as caught:
            builder.run("exit 1", mounts=[secret()], secretenv=[pb.SecretEnv(ID="word", name="WORD")])
        assert WORD.decode() not in caught.value.message + str(caught.value.details)
    left = subprocess.run(
        ["grep", "-rl", WORD.decode(), str(builder.folder), str(builder.daemon.run)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert left == ""


def test_an_agent(builder: Builder) -> None:
    mount = pb.Mount(
        dest="/run/agent", input=-1, output=-1, mountType=pb.SSH, SSHOpt=pb.SSHOpt(ID="k", uid=7, mode=0o600)
    )
    with pytest.raises(errors.Error):
        builder.run("true", mounts=[mount])
    with with_client(builder):
        answers: list[bytes] = []

        def ask() -> None:
            """As a process of the step: this busybox has no client for such a socket."""
            paths = whole.eventually("it is there", lambda: list(Path("/proc").glob("[0-9]*/root/run/agent")))
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(paths[0]))  # type: ignore[index]
                connection.sendall(b"hi")
                answers.append(connection.recv(100))

        thread = threading.Thread(target=ask)
        thread.start()
        text = builder.out("ls -ln /run/agent; sleep 2", mounts=[mount])
        thread.join()
    assert text.startswith("srw------- ")
    assert text.split()[2] == "7"
    assert answers == [b"agent: hi"]


# Ending


def test_what_nobody_waits_for_ends_within_a_second(builder: Builder) -> None:
    context = Context([])
    failures: list[BaseException] = []

    def work() -> None:
        try:
            builder.run(
                "trap '' TERM INT; (sleep 600 & sleep 600) & echo on; while :; do sleep 600; done", context=context
            )
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert context.wrote.wait(30)
    began = time.monotonic()
    context.cancel()
    thread.join()
    assert time.monotonic() - began < 1.5
    assert isinstance(failures[0], errors.Cancelled)


@pytest.mark.needs("memory")
def test_want_of_memory_is_said(builder: Builder) -> None:
    vertex = builder.vertex("tail /dev/zero")
    limits = pb.LinuxResources(memory=32 << 20, memorySwap=32 << 20)
    op: Any = ExecOp(replace(vertex, metadata=Metadata(linux_resources=limits)), builder.steps)
    with pytest.raises(errors.Error, match="did not complete successfully: cannot allocate memory") as caught:
        op.execute(Context([]), [builder.base])
    assert gateway_pb2.ExitMessage(Code=137) in caught.value.details


def test_what_a_step_uses_is_sampled(builder: Builder) -> None:
    builder.steps.sampled = lambda context: True
    op: Any = ExecOp(builder.vertex("for i in $(seq 20000); do :; done; sleep 1"), builder.steps)
    for result in op.execute(Context([]), [builder.base]):
        result.release()
    assert 1 <= len(op.samples) <= 10
    assert op.samples[-1]["cpuStat"]["usageNanos"] > 0
    assert op.samples[0]["timestamp"] < op.samples[-1]["timestamp"] or len(op.samples) == 1


def test_what_is_left_behind_ends_with_the_step(builder: Builder) -> None:
    began = time.monotonic()
    for result in builder.run("sleep 600 & echo done"):
        result.release()
    assert time.monotonic() - began < 10
    assert builder.context.out == b"done\n"


def test_a_builder_that_died_left_a_step(builder: Builder) -> None:
    script = f"""
import sys, threading
sys.path[:0] = [{str(SRC)!r}]
from teu.buildkit.core.snapshots import Mount
from teu.buildkit.worker.client import Client
from teu.buildkit.worker.executor import Executor, Settings, Wish
from teu.buildkit.worker.spec import Process
class Root:
    def mounts(self):
        return [Mount("bind", sys.argv[1], ("rbind", "rw"))]
executor = Executor(Client({str(builder.daemon.address)!r}), {builder.worker.id!r},
                    Settings(state={str(builder.folder / "steps")!r}, run="/run/teu"))
box = executor.box(Wish(Root()))
box.start(Process(("sleep", "600"), ("PATH=/bin",)))
print(box.id, flush=True)
threading.Event().wait()
"""
    root = peers.busybox_rootfs(builder.folder / "root")
    process = subprocess.Popen([sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    identity = process.stdout.readline().strip()
    assert identity
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert any(identity in scope for scope in scopes())
    builder.executor.recover()
    whole.eventually("the scope has gone", lambda: not any(identity in scope for scope in scopes()))
    assert os.listdir(builder.folder / "steps") == []
    assert builder.out("echo next") == "next\n"


def test_a_step_outlives_its_daemon(builder: Builder) -> None:
    context = Context([])
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(builder.run("echo a; sleep 4; echo b >/b", context=context)))
    thread.start()
    assert context.wrote.wait(60)
    builder.daemon.kill()
    builder.daemon.launch()
    thread.join(60)
    (result,) = found
    assert "b" in builder.files(result)
    result.release()


def test_an_engine_that_starts_leaves_steps_alone(builder: Builder) -> None:
    """teud's sweep removes what is in containerd's namespace and nobody's."""
    context = Context([])
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(builder.run("echo a; sleep 8; echo b >/b", context=context)))
    thread.start()
    assert context.wrote.wait(60)
    stray = containers_pb2.Container(id="stray")
    stray.runtime.name = builder.executor.runtime.name
    builder.client.containers.Create(containers_pb2.CreateContainerRequest(container=stray))
    ids = [*builder.daemon.client, "-n", "teu", "containers", "ls", "-q"]
    with tempfile.TemporaryDirectory(prefix="teu-", dir="/run") as folder:
        arguments = ["--containerd", str(builder.daemon.address), "--data-root", f"{folder}/data"]
        arguments += ["--exec-root", f"{folder}/exec", "-H", f"unix://{folder}/sock"]
        engine = subprocess.Popen(["/usr/sbin/teud", *arguments])
        try:
            whole.eventually("it has swept", lambda: "stray" not in peers.run(*ids).stdout)
            assert len(peers.run(*ids).stdout.split()) == 1
            thread.join(60)
        finally:
            engine.terminate()
            engine.wait()
    (result,) = found
    assert "b" in builder.files(result)
    result.release()


def test_steps_in_a_row(builder: Builder) -> None:
    """How long ten steps take that do nothing, for who reads the output; ./dev bench holds more of them to docker's."""
    builder.out("true")
    began = time.monotonic()
    for _ in range(5):
        builder.out("true")
    middle = time.monotonic()
    for _ in range(5):
        builder.out("true", network=pb.NONE)
    end = time.monotonic()
    print(json.dumps({"default": middle - began, "none": end - middle}))


# Several processes


def box_of(builder: Builder, **more: Any) -> Box:
    return builder.executor.box(Wish(builder.worker.active(builder.base, Kind()), **more))


ENV = ("PATH=/bin:/usr/bin:/sbin",)


def test_several_processes_in_one_box(builder: Builder) -> None:
    out: dict[str, bytearray] = {"first": bytearray(), "second": bytearray(), "third": bytearray()}
    box = box_of(builder)
    try:
        first = box.start(Process(("cat",), ENV), out["first"].extend, stdin=True)
        second = box.execute(Process(("sh", "-c", "ps; exit 5"), ENV), out["second"].extend)
        assert second.wait() == 5
        assert b"cat" in out["second"]
        script = "trap 'echo got; exit 3' USR1; echo on; while :; do sleep 0.1; done"
        third = box.execute(Process(("sh", "-c", script), ENV), out["third"].extend)
        whole.eventually("it is on", lambda: b"on" in out["third"])
        third.signal(signal.SIGUSR1)
        assert third.wait() == 3
        assert out["third"] == b"on\ngot\n"
        first.write(b"hello\n")
        whole.eventually("it comes back", lambda: out["first"] == b"hello\n")
        err = bytearray()
        assert box.execute(Process(("/nothing",), ENV), err=err.extend).wait() == 255
        assert b'"/nothing": stat /nothing: no such file or directory' in err
        fourth = box.execute(Process(("sleep", "600"), ENV))
        first.close_input()
        assert first.wait() == 0
        assert fourth.wait() != 0
        with pytest.raises(errors.FailedPrecondition, match="has stopped"):
            box.execute(Process(("true",), ENV))
    finally:
        box.release()


def test_a_terminal(builder: Builder) -> None:
    out = bytearray()
    box = box_of(builder)
    try:
        process = box.start(
            Process(("sh", "-c", "tty; stty size; read x; stty size; exit 9"), ENV, terminal=True, size=(80, 24)),
            out.extend,
            stdin=True,
        )
        whole.eventually("the first size", lambda: b"24 80" in out)
        process.resize(100, 50)
        process.write(b"\n")
        assert process.wait() == 9
        assert b"/dev/pts/0" in out
        assert b"50 100" in out
    finally:
        box.release()


def test_trees_of_a_box_are_changed_together(builder: Builder) -> None:
    active = builder.worker.active(None, Kind())
    box = box_of(builder, mounts=[Bind("/out", active)])
    try:
        assert box.start(Process(("sh", "-c", "echo x >/out/x"), ENV)).wait() == 0
    finally:
        box.release()
    result = active.commit()
    with result.mounted() as top:
        assert os.listdir(top) == ["x"]
    result.release()


def test_a_frontends_container(builder: Builder) -> None:
    """As the control room has it: mounts by results, processes by their messages."""
    request = gateway_pb2.NewContainerRequest(
        ContainerID="not/a name",
        hostname="front",
        Network=pb.NONE,
        Mounts=[
            pb.Mount(dest="/", input=-1, output=0, resultID="base"),
            pb.Mount(dest="/t", input=-1, output=-1, mountType=pb.TMPFS),
        ],
    )
    place = Containers(builder.steps).place(request, [builder.base, None], [])
    out = bytearray()
    try:
        init = gateway_pb2.InitMessage(
            Meta=pb.Meta(args=["sh", "-c", "hostname; echo x >/x; echo y >/t/y; cat; exit 4"]), Fds=[0, 1]
        )
        first = place.start(init, out.extend, out.extend)
        more = bytearray()
        other = gateway_pb2.InitMessage(Meta=pb.Meta(args=["sh", "-c", "echo $TERM; cat /x; cat /t/y; tty"]), Tty=True)
        whole.eventually("the first is there", lambda: b"front" in out)
        second = place.start(other, more.extend, more.extend)
        assert second.wait() == 0
        assert more.startswith(b"xterm\r\nx\r\ny\r\n/dev/pts/")
        with place.root(0) as root:
            assert os.stat("x", dir_fd=root).st_size == 2
            with pytest.raises(OSError, match="Read-only"):
                os.mkdir("y", dir_fd=root)
        for index in (1, 2):
            with pytest.raises(errors.NotFound), place.root(index):
                pass
        first.write(b"from here\n")
        first.close_input()
        assert first.wait() == 4
        assert out == b"front\nfrom here\n"
    finally:
        place.release()
        place.release()
    with pytest.raises(errors.Cancelled):
        place.start(init, out.extend, out.extend)


def test_a_frontends_container_is_given_up_at_work(builder: Builder) -> None:
    request = gateway_pb2.NewContainerRequest(ContainerID="x", Mounts=[pb.Mount(dest="/", input=-1, output=0)])
    place = Containers(builder.steps).place(request, [builder.base], [])
    init = gateway_pb2.InitMessage(Meta=pb.Meta(args=["sleep", "600"]))
    process = place.start(init, lambda _: None, lambda _: None)
    began = time.monotonic()
    place.release()
    assert process.wait() == 137
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("cwd", ["/proc/self/fd/3", "/proc/1/cwd", "/way/4"])
def test_a_working_directory_leads_nobody_to_the_host(builder: Builder, cwd: str) -> None:
    """CVE-2024-21626."""
    (linked,) = builder.run("ln -s /proc/self/fd /way")
    vertex = builder.vertex("pwd; cat etc/shadow", 1)
    vertex.op.exec.meta.cwd = cwd
    context = Context([])
    op: Any = ExecOp(vertex, builder.steps)
    with pytest.raises(errors.Error):
        op.execute(context, [linked])
    assert context.out == b""
    linked.release()
