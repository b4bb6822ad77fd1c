# SPDX-License-Identifier: Apache-2.0
"""Debian's own containerd, dockerd, registry, podman and buildah, each in a place of its own.

For tests that put one of our programs in a real one's place. Nothing here uses the packages' units,
sockets or state: every daemon is started on private folders and ends with its `with` block.

    with peers.dockerd(runtimes={"teu": "/usr/sbin/teu-runc"}) as docker:
        docker.load_busybox()
        assert docker("run", "--rm", "--runtime=teu", "busybox", "echo", "hello") == "hello\n"

    with peers.containerd() as containerd:
        containerd.load_busybox()
        containerd("run", "--rm", "--runc-binary=/usr/sbin/teu-runc", peers.IMAGE, "c1", "true")

State is in a fresh folder under /var/lib, because overlayfs cannot lie on the lab's overlay root;
sockets and execution state in one under /run.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab_kind import PATIENCE

BUSYBOX = Path("/usr/bin/busybox")
# Where the docker of Debian testing is, and its containerd: with Debian 13 in a folder (lab.newer), with Debian testing
# where they belong.
NEWER = "/opt/newer-docker" if Path("/opt/newer-docker").exists() else ""
# The image as docker and podman know it, and as containerd does.
NAME = "busybox"
IMAGE = "docker.io/library/busybox:latest"
START_LIMIT = 60.0
STOP_LIMIT = 20.0


# ---- programs ----------------------------------------------------------------------------------


class Failed(AssertionError):
    """A program did not do as expected; the message has its command line and all of its output."""

    def __init__(self, argv: Sequence[str], result: subprocess.CompletedProcess[str]) -> None:
        super().__init__(
            f"{' '.join(argv)}: exit code {result.returncode}\n--- stdout\n{result.stdout}--- stderr\n{result.stderr}"
        )
        self.code = result.returncode
        self.stdout = result.stdout
        self.stderr = result.stderr


def run(
    *argv: str,
    code: int | None = 0,
    stdin: str | None = None,
    timeout: float = 100.0,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program; Failed unless it exits with `code` (None: any)."""
    where: dict[str, Any] = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    environment = {**os.environ, **(env or {})}
    result = subprocess.run(
        argv, capture_output=True, text=True, timeout=timeout * PATIENCE, env=environment, check=False, **where
    )
    if code is not None and result.returncode != code:
        raise Failed(argv, result)
    return result


def wait_until(probe: Callable[[], object], what: str, limit: float = START_LIMIT) -> Any:
    """Ask until the answer is true; exceptions count as no. AssertionError after `limit` seconds."""
    limit *= PATIENCE
    deadline = time.monotonic() + limit
    pause = 0.01
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = probe()
            if last:
                return last
        except (OSError, AssertionError, subprocess.SubprocessError) as error:
            last = error
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)
    raise AssertionError(f"{what}: not within {limit:.0f} s; last: {last!r}")


# ---- a busybox image ---------------------------------------------------------------------------


def busybox_layer() -> bytes:
    """A layer with Debian's static busybox, its applets as links, and an /etc that programs expect."""
    applets = run(str(BUSYBOX), "--list").stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, data: bytes | None = None, mode: int = 0o755, link: str = "") -> None:
            entry = tarfile.TarInfo(name)
            entry.mode = mode
            if link:
                entry.type, entry.linkname = tarfile.SYMTYPE, link
            elif data is None:
                entry.type = tarfile.DIRTYPE
            else:
                entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data) if data else None)

        for folder in ("bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "usr/bin", "usr/sbin", "var"):
            add(folder)
        add("tmp", mode=0o1777)
        add("bin/busybox", BUSYBOX.read_bytes())
        for applet in sorted(set(applets) - {"busybox"}):
            add(f"bin/{applet}", link="busybox")
        add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n", 0o644)
        add("etc/group", b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n", 0o644)
    return buffer.getvalue()


def busybox_archive(path: Path, name: str = IMAGE, more: Mapping[str, Any] | None = None) -> Path:
    """A `docker save` archive (with an OCI layout beside it) of the busybox image; `more` is for its `config`."""
    layer = busybox_layer()
    layer_id = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": ["sh"],
                **(more or {}),
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_id}"]},
            "history": [{"created_by": "tests/system/peers.py"}],
        }
    ).encode()
    config_id = hashlib.sha256(config).hexdigest()

    def descriptor(kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", config),
            "layers": [descriptor("layer.v1.tar", layer)],
        }
    ).encode()
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                **descriptor("manifest.v1+json", manifest),
                "annotations": {
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": "latest",
                },
            },
        ],
    }
    saved = [
        {
            "Config": f"blobs/sha256/{config_id}",
            "RepoTags": [name],
            "Layers": [f"blobs/sha256/{layer_id}"],
        }
    ]
    files = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps(index).encode(),
        "manifest.json": json.dumps(saved).encode(),
        f"blobs/sha256/{config_id}": config,
        f"blobs/sha256/{layer_id}": layer,
        f"blobs/sha256/{hashlib.sha256(manifest).hexdigest()}": manifest,
    }
    with tarfile.open(path, "w") as tar:
        for file, data in files.items():
            entry = tarfile.TarInfo(file)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return path


_archive: list[Path] = []


def archive() -> Path:
    """The busybox archive, made once per run of the tests."""
    if not _archive or not _archive[0].exists():
        _archive[:] = [busybox_archive(Path(tempfile.mkdtemp(prefix="teu-image-")) / "busybox.tar")]
    return _archive[0]


def busybox_rootfs(path: Path) -> Path:
    """The image as a folder, for OCI bundles."""
    path.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(busybox_layer())) as tar:
        # From Python 3.14 on the modes of folders (/tmp's) would be left out.
        tar.extraction_filter = getattr(tarfile, "fully_trusted_filter", lambda member, _: member)
        tar.extractall(path)
    return path


# ---- daemons -----------------------------------------------------------------------------------


def clear(folder: Path) -> None:
    """Remove a folder with whatever is mounted on it (dockerd binds its own) and in it."""
    with open("/proc/self/mounts") as mounts:
        points = [line.split()[1] for line in mounts]
    for point in reversed(points):
        if point == str(folder) or point.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", point], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)


# Process ids of the daemons that have been started here.
RUNNING: set[int] = set()


class Daemon:
    """A daemon in the foreground, its folders and its log. Call it to run its client."""

    def __init__(self, name: str) -> None:
        self.name = name
        base = Path("/var/lib") if os.geteuid() == 0 else Path(tempfile.gettempdir())
        self.state = Path(tempfile.mkdtemp(prefix=f"teu-peer-{name}-", dir=base))
        self.run = Path(tempfile.mkdtemp(prefix=f"teu-peer-{name}-", dir="/run"))
        self.log = self.run / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.client: list[str] = []
        self.env: dict[str, str] = {}  # of the client, besides the test's own

    def start(self, argv: list[str], ready: Callable[[], object], env: Mapping[str, str] | None = None) -> None:
        with self.log.open("ab") as log:
            # A session of its own: the test's terminal signals are none of its business.
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )
        RUNNING.add(self.process.pid)

        def is_ready() -> object:
            assert self.process
            if self.process.poll() is not None:
                raise SystemError(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")
            return ready()

        try:
            wait_until(is_ready, f"{self.name} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process
        self.process.send_signal(number)
        self.process.wait()

    def remove(self) -> None:
        """Unmount what is mounted on and below our folders, and remove them."""
        for folder in (self.run, self.state):
            clear(folder)

    def __call__(self, *argv: str, code: int | None = 0, stdin: str | None = None, timeout: float = 100.0) -> str:
        """Standard output of the client; Failed unless it exits with `code`."""
        return self.result(*argv, code=code, stdin=stdin, timeout=timeout).stdout

    def result(
        self, *argv: str, code: int | None = 0, stdin: str | None = None, timeout: float = 100.0
    ) -> subprocess.CompletedProcess[str]:
        try:
            return run(*self.client, *argv, code=code, stdin=stdin, timeout=timeout, env=self.env)
        except Failed as error:
            error.args = (f"{error}--- {self.name}\n{self.tail()}",)
            raise


class Containerd(Daemon):
    """Debian's containerd; calling it runs `ctr`."""

    def __init__(self) -> None:
        super().__init__("containerd")
        self.address = self.run / "containerd.sock"
        self.client = ["ctr", "--address", str(self.address)]

    def launch(self, extra: str = "") -> None:
        config = self.run / "config.toml"
        config.write_text(
            "version = 2\n"
            f'root = "{self.state}"\nstate = "{self.run}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\n  address = "{self.address}"\n{extra}\n'
        )
        self.start(
            ["containerd", "--config", str(config), "--log-level", "info"],
            lambda: self.address.exists() and run(*self.client, "version", code=0),
        )

    def load_busybox(self, namespace: str = "default") -> None:
        self("-n", namespace, "images", "import", "--digests=false", str(archive()))

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            for namespace in self("namespaces", "ls", "-q", timeout=20).split():
                for task in self("-n", namespace, "tasks", "ls", "-q", timeout=20).split():
                    run(*self.client, "-n", namespace, "tasks", "rm", "-f", task, code=None, timeout=30)
        super().stop()


@functools.cache
def docker_api() -> tuple[int, int]:
    """The newest version of the Engine API that Debian's docker here has: (1, 45) is docker 26's, (1, 51) 28.5's."""
    # The client exits with 1 where no daemon answers, and has told its own version by then.
    told = run("docker", "version", "--format", "{{.Client.DefaultAPIVersion}}", code=None).stdout
    major, minor = told.strip().split(".")
    return int(major), int(minor)


@functools.cache
def ctr_version() -> tuple[int, int]:
    """Of Debian's ctr, and its containerd: (1, 7) is Debian 13's, (2, 1) that of Debian testing."""
    found = re.search(r" (\d+)\.(\d+)", run("ctr", "--version").stdout)
    assert found
    return int(found[1]), int(found[2])


def as_of_ours(words: Sequence[str]) -> list[str]:
    """A command line of ctr with which it does what teu-ctr does. That of containerd 2 leaves images to the daemon's
    transfer service, and draws its progress, unless it is told to do all by itself; the earlier one brings documents of
    other platforms only where it is told to."""
    group, verb = [*words[:2], "", ""][:2]
    images = group in ("images", "image", "i")
    flag = ""
    if ctr_version() >= (2, 0):
        flag = "--local" if images and verb in ("import", "export", "pull", "push", "tag") else ""
    elif (images and verb == "pull") or (group, verb) == ("content", "fetch"):
        flag = "--all-metadata"
    return [group, verb, flag, *words[2:]] if flag else list(words)


class Dockerd(Daemon):
    """Debian's dockerd (with a containerd of its own, or a given one); calling it runs `docker`."""

    def __init__(self) -> None:
        super().__init__("dockerd")
        self.socket = self.run / "docker.sock"
        self.host = f"unix://{self.socket}"
        # No configuration of the user, no plugins asked.
        self.client = ["docker", "--config", str(self.run / "client"), "-H", self.host]

    def load_busybox(self) -> None:
        self("load", "-i", str(archive()))

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            names = self("ps", "-aq", timeout=20).split()
            if names:
                run(*self.client, "rm", "-f", *names, code=None, timeout=60)
        super().stop()


@contextlib.contextmanager
def containerd(extra: str = "") -> Iterator[Containerd]:
    """A containerd without CRI. `extra` is added to its configuration (TOML)."""
    daemon = Containerd()
    try:
        daemon.launch(extra)
        yield daemon
    finally:
        daemon.stop()
        daemon.remove()


@contextlib.contextmanager
def dockerd(
    runtimes: Mapping[str, str] | None = None,
    default_runtime: str = "",
    containerd_address: str = "",
    options: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    network: bool = False,
    path: str = "",
) -> Iterator[Dockerd]:
    """A dockerd. Without `network` it has no bridge, which spares a second of start-up; `path`: where its programs are
    looked for first.

    `runtimes` maps names to OCI runtimes' paths or containerd runtime names; `options` are more
    flags, `config` more keys of daemon.json.
    """
    daemon = Dockerd()
    given: dict[str, Any] = dict(config or {})
    if runtimes:
        given["runtimes"] = {
            name: {"path": value} if value.startswith("/") else {"runtimeType": value}
            for name, value in runtimes.items()
        }
    if default_runtime:
        given["default-runtime"] = default_runtime
    file = daemon.run / "daemon.json"
    file.write_text(json.dumps(given))
    argv = [
        "dockerd",
        "--host",
        daemon.host,
        "--config-file",
        str(file),
        "--data-root",
        str(daemon.state),
        "--exec-root",
        str(daemon.run / "exec"),
        "--pidfile",
        str(daemon.run / "pid"),
        "--log-level",
        "info",
    ]
    if not network:
        argv += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
    if containerd_address:
        argv += ["--containerd", containerd_address]
    try:
        daemon.start(
            [*argv, *options],
            lambda: daemon.socket.exists() and run(*daemon.client, "version", code=0),
            {"PATH": f"{path}:{os.environ['PATH']}"} if path else None,
        )
        yield daemon
    finally:
        daemon.stop()
        daemon.remove()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(host: str, port: int) -> bool:
    with socket.create_connection((host, port), 1):
        return True


class Registry(Daemon):
    """Debian's docker-registry; `address` is HOST:PORT."""

    def __init__(self, host: str) -> None:
        super().__init__("registry")
        self.address = f"{host}:{free_port()}"


@contextlib.contextmanager
def registry(host: str = "127.0.0.1", tls: Mapping[str, Any] | None = None) -> Iterator[Registry]:
    """A registry over HTTP, or with the settings of `tls` over HTTPS; empty."""
    daemon = Registry(host)
    config = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(daemon.state)}, "delete": {"enabled": True}},
        "http": {"addr": daemon.address, **({"tls": tls} if tls else {})},
    }
    file = daemon.run / "config.yml"
    # JSON is YAML.
    file.write_text(json.dumps(config))
    host, _, port = daemon.address.partition(":")
    env = {"OTEL_TRACES_EXPORTER": "none"}
    try:
        daemon.start(
            ["docker-registry", "serve", str(file)],
            lambda: answers(host, int(port)),
            env,
        )
        yield daemon
    finally:
        daemon.stop()
        daemon.remove()


class Podman:
    """podman (or buildah) with storage of its own; calling it runs the program.

    Where there is no pids controller, its default limit of 2048 processes is taken away.
    """

    def __init__(self, program: str, runtime: str, options: Sequence[str] = ()) -> None:
        self.state = Path(tempfile.mkdtemp(prefix=f"teu-peer-{program}-", dir="/var/lib"))
        self.run = Path(tempfile.mkdtemp(prefix=f"teu-peer-{program}-", dir="/run"))
        self.name = program
        pids = "pids" in Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
        config = self.run / "containers.conf"
        config.write_text("[containers]\n" + ("" if pids else "pids_limit = 0\n"))
        self.env = {"CONTAINERS_CONF": str(config)}
        storage = ["--root", str(self.state), "--runroot", str(self.run), "--storage-driver", "overlay"]
        if program == "podman":
            self.client = ["podman", *storage, "--runtime", runtime, "--tmpdir", str(self.run / "tmp"), *options]
        else:
            self.client = ["buildah", *storage, *options]

    def __call__(self, *argv: str, code: int | None = 0, stdin: str | None = None, timeout: float = 100.0) -> str:
        return self.result(*argv, code=code, stdin=stdin, timeout=timeout).stdout

    def result(
        self, *argv: str, code: int | None = 0, stdin: str | None = None, timeout: float = 100.0
    ) -> subprocess.CompletedProcess[str]:
        return run(*self.client, *argv, code=code, stdin=stdin, timeout=timeout, env=self.env)

    def load_busybox(self) -> None:
        """Into podman's storage; buildah takes the archive by `from docker-archive:`."""
        self("load", "-i", str(archive()))

    def remove(self) -> None:
        if self.name == "podman":
            with contextlib.suppress(Exception):
                self("pod", "rm", "-fa", "-t", "0", code=None, timeout=60)
                self("rm", "-fa", "-t", "0", code=None, timeout=60)
        for folder in (self.run, self.state):
            clear(folder)


@contextlib.contextmanager
def podman(runtime: str, cgroup_manager: str = "", options: Sequence[str] = ()) -> Iterator[Podman]:
    """podman with `--runtime`. `cgroup_manager` is systemd or cgroupfs."""
    more = [f"--cgroup-manager={cgroup_manager}"] if cgroup_manager else []
    client = Podman("podman", runtime, [*more, *options])
    try:
        yield client
    finally:
        client.remove()


@contextlib.contextmanager
def buildah(runtime: str) -> Iterator[Podman]:
    """buildah; pass `--runtime` to its `run` and `build` with `client.runtime`."""
    client = Podman("buildah", runtime)
    try:
        yield client
    finally:
        client.remove()
