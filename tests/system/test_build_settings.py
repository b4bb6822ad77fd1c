# SPDX-License-Identifier: Apache-2.0
"""What buildkitd.yaml says, on the builder that runs by it: slice and limits of steps, network, name resolution,
proxies, mirrors; and what the journal has of a build."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from whole import call, eventually, out

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "buildkit"))
from bothbuilders import TEU
from githttp import Served
from scripted_registry import ScriptedRegistry, tar
from test_build_control import SERVICE, SOCKET, Buildx, buildx, busybox, frontend

from teu.api.buildkit import control_pb2, control_pb2_grpc

__all__ = ["busybox", "buildx", "frontend"]  # fixtures

pytestmark = [pytest.mark.needs("docker", "git", "systemd"), pytest.mark.timeout(300)]


@contextlib.contextmanager
def configured(text: str) -> Iterator[None]:
    """The builder with these settings."""
    drop = Path("/etc/teu/buildkitd.yaml.d/settings.yaml")
    drop.parent.mkdir(exist_ok=True)
    drop.write_text(text)
    try:
        call("teu-buildkitd", "--validate")
        call("systemctl", "restart", SERVICE)
        yield
    finally:
        drop.unlink()
        call("systemctl", "restart", SERVICE)


class Proxy:
    """A proxy of HTTP on loopback, for hosts that only it knows; `asked` has what it was asked for."""

    def __init__(self, hosts: dict[str, str]) -> None:
        self._hosts = hosts
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request of a connection, then whatever follows goes the same way."""
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := client.recv(1 << 16)):
                    return
                head += data
            line, _, rest = head.partition(b"\r\n")
            method, target, version = line.decode().split()
            found = re.fullmatch(r"http://([^/]+)(/.*)?", target)
            assert found, target
            self.asked.append(target)
            host, _, port = self._hosts[found[1]].partition(":")
            with socket.create_connection((host, int(port))) as server:
                # One request for each connection: the next may be for another host.
                rest = re.sub(rb"(?mi)^(proxy-)?connection:.*\r\n", b"", rest)
                server.sendall(f"{method} {found[2] or '/'} {version}\r\nConnection: close\r\n".encode() + rest)
                other = {client: server, server: client}
                while True:
                    for ready in select.select([client, server], [], [])[0]:
                        if not (data := ready.recv(1 << 16)):
                            return
                        other[ready].sendall(data)


def test_registries_downloads_and_repositories_by_a_proxy(buildx: Buildx, tmp_path: Path) -> None:
    """Names that only the proxy knows; what `no` has is spoken to directly."""
    repositories = Served(tmp_path / "repositories")
    repositories.repository("a.git", {"file": "of git"})
    with ScriptedRegistry() as registry:
        registry.image("base", "1", tar(("base", b"of the registry")))
        direct = registry.address
        hosts = {
            "registry.test": registry.address,
            "git.test": repositories.address.removeprefix("http://"),
            "files.test": repositories.address.removeprefix("http://"),
        }
        with Proxy(hosts) as proxy:
            registries = f"registries: {{registry.test: {{http: true}}, '{direct}': {{http: true}}}}\n"
            with configured(f"proxy: {{http: '{proxy.address}', no: 127.0.0.1}}\n{registries}"):
                buildx.build(
                    f"FROM registry.test/base:1\nCOPY --from={direct}/base:1 base /direct\n"
                    "ADD http://git.test/a.git /git\nADD http://files.test/a.git/HEAD /head\n",
                    f"--output=type=local,dest={tmp_path}/out",
                )
                made = tmp_path / "out"
                assert (made / "base").read_bytes() == b"of the registry" == (made / "direct").read_bytes()
                assert (made / "git/file").read_text() == "of git" and (made / "head").read_text().startswith("ref:")
                # Steps are told of a proxy by their build alone.
                said = buildx.build("FROM busybox\nRUN env | grep -ci proxy || echo none of them\n")
                assert "none of them" in said
            asked = {re.split(r"/+", target)[1] for target in proxy.asked}
            assert asked == set(hosts)
    repositories.server.shutdown()


def test_slice_and_limits_of_steps(buildx: Buildx) -> None:
    """A step's cgroup is in the slice that is configured, and a build's own parent goes before it."""
    with configured("worker: {slice: settings-build.slice, labels: {made: here}}\n"):
        for argv, wanted in (
            ((), "settings-build.slice"),
            (("--cgroup-parent=settings-other.slice",), "settings-other"),
        ):
            dockerfile = f"FROM busybox\nRUN sleep 60 # {time.time_ns()}\n"
            (buildx.context / "Dockerfile").write_text(dockerfile)
            process = buildx.start(*buildx.words(*argv))
            try:
                eventually(
                    "a scope of the step",
                    lambda wanted=wanted: list(Path("/sys/fs/cgroup").glob(f"**/{wanted}*/*.scope")),
                )
                assert not list(Path("/sys/fs/cgroup").glob("**/teu-build.slice/*.scope"))
            finally:
                process.kill()
                process.wait()
            eventually("its end", lambda: not list(Path("/sys/fs/cgroup").glob("**/settings-*.slice/*.scope")))
        with grpc.insecure_channel(f"unix:{SOCKET}") as channel:
            workers = control_pb2_grpc.ControlStub(channel).ListWorkers(control_pb2.ListWorkersRequest(), timeout=60)
            assert workers.record[0].Labels["made"] == "here"


def test_network_and_names_of_steps(buildx: Buildx) -> None:
    text = "network: {subnet: 10.233.0.0/24, mtu: 1400}\n"
    text += "dns: {servers: [192.0.2.53], search: [settings.test], options: ['ndots:3']}\n"
    with configured(text):
        said = buildx.build(f"FROM busybox\nRUN ip addr show; cat /etc/resolv.conf # {time.time_ns()}\n", "--no-cache")
        assert "inet 10.233.0." in said and "mtu 1400" in said
        for line in ("nameserver 192.0.2.53", "search settings.test", "options ndots:3"):
            assert line in said, said
    with configured("network: {mode: none}\n"):
        said = buildx.build(f"FROM busybox\nRUN ip addr show # {time.time_ns()}\n")
        assert "LOOPBACK" in said and "eth0" not in said


CDI = {
    "cdiVersion": "0.6.0",
    "kind": "settings.test/device",
    "containerEdits": {"env": ["OF_THE_FILE=1"]},
    "devices": [
        {
            "name": "zero",
            "containerEdits": {
                "env": ["GIVEN=by the device"],
                "deviceNodes": [{"path": "/dev/settings", "hostPath": "/dev/zero"}],
                "mounts": [
                    {"hostPath": "/etc/os-release", "containerPath": "/opt/deep/release", "options": ["ro"]},
                    {"hostPath": "/usr/lib/systemd", "containerPath": "/opt/folder", "options": ["ro"]},
                    {"hostPath": "/dev/null", "containerPath": "/opt/node"},
                    {"hostPath": "tmpfs", "containerPath": "/opt/memory", "type": "tmpfs"},
                ],
                "hooks": [
                    {"hookName": "createRuntime", "path": "/usr/bin/touch", "args": ["touch", "/run/teu-cdi-hook"]}
                ],
            },
        },
        {"name": "free", "annotations": {"org.mobyproject.buildkit.device.autoallow": "true"}},
        {"name": "absent", "containerEdits": {"deviceNodes": [{"path": "/dev/none-of-this"}]}},
    ],
}


def test_devices(tmp_path: Path) -> None:
    """RUN --device: a node that works, mounts that leave no trace, variables, hooks; and who may have it."""
    folder, hook, context = tmp_path / "cdi", Path("/run/teu-cdi-hook"), tmp_path / "context"
    folder.mkdir()
    context.mkdir()
    (folder / "settings.json").write_text(json.dumps(CDI))
    mark = time.time_ns()

    def step(device: str, *argv: str, code: int = 0) -> str:
        """What a step with this device says; Debian's buildx does not know that devices can be allowed."""
        command = f"head -c 2 /dev/settings | od -x; env; ls -lR /opt; true # {mark}"
        (context / "Dockerfile").write_text(f"FROM busybox\nRUN --device={device} {command}\n")
        output = () if any(one.startswith("-o") for one in argv) else ("-o", "type=cacheonly")
        words = ("build", "--builder", f"unix://{SOCKET}", "--progress=plain", *output, *argv, str(context))
        done = call(TEU, *words, check=False)
        assert done.returncode == code, done.stderr
        return done.stderr

    with configured(f"devices: {{folders: ['{folder}']}}\n"):
        name = "settings.test/device=zero"
        for allow in ("device", f"device={name}"):
            hook.unlink(missing_ok=True)
            said = step(f"{name},required", f"--allow={allow}", "--no-cache", f"-o{tmp_path}/out")
            for words in ("GIVEN=by the device", "OF_THE_FILE=1", "0000", "/opt/folder:", "/opt/memory:"):
                assert words in said, said
            assert hook.exists() and not (tmp_path / "out/opt").exists()
        assert f"device {name} is requested by the build but not allowed" in step(name, code=1)
        assert "OF_THE_FILE=1" in step("settings.test/device=free")
        assert "OF_THE_FILE" not in step("settings.test/device=other", "--no-cache")
        said = step("settings.test/device=other,required", code=1)
        assert 'required device "settings.test/device=other" is not registered' in said
        said = step("settings.test/device=absent", "--allow=device", code=1)
        assert "CDI device injection failed" in said and "/dev/none-of-this" in said
        said = call(TEU, "builder", "inspect", "--builder", f"unix://{SOCKET}").stdout
        assert re.search(rf"Name:\s+{name}\n\s+Automatically allowed:\s+false", said), said
    with configured(f"devices: {{folders: ['{folder}'], allowed: [settings.test/device]}}\n"):
        assert "GIVEN=by the device" in step(name, "--no-cache")
    with configured(f"devices: {{folders: ['{folder}']}}\nentitlements: []\n"):
        assert "not allowed by build daemon configuration" in step(name, "--allow=device", code=1)
    hook.unlink(missing_ok=True)


def test_frontends_that_are_fetched(buildx: Buildx, frontend: str) -> None:
    """`# syntax=docker/dockerfile` is the built-in frontend, or the image of that name, as is configured; and images
    of other repositories are frontends only where they may."""
    name = "docker.io/docker/dockerfile:1"
    call("teu-ctr", "-n", "teu", "images", "tag", frontend, name)
    try:
        for text, fetched in (("{}", False), ("{fetch-dockerfile: true}", True)):
            with configured(f"frontends: {text}\n"):
                said = buildx.build(f"# syntax=docker/dockerfile:1\nFROM busybox\nRUN echo {time.time_ns()} >/made\n")
                assert ("frontend of docker/dockerfile:1" in said) == fetched, said
        with configured("frontends: {allowed-repositories: [docker.io/docker/dockerfile]}\n"):
            said = buildx.build(f"# syntax={frontend}\nFROM busybox\nRUN echo x >/made\n", check=False)
            assert "frontend of" not in said and "is not an allowed gateway source" in said, said
    finally:
        call("teu-ctr", "-n", "teu", "images", "rm", "--sync", name)


@pytest.mark.needs("pids")
def test_processes_that_a_step_may_have(buildx: Buildx) -> None:
    dockerfile = f"FROM busybox\nRUN cat /sys/fs/cgroup/pids.max # {time.time_ns()}\n"
    with configured("worker: {pids-limit: 321}\n"):
        assert re.search(r"^#\d+ [\d.]+ 321$", buildx.build(dockerfile), re.MULTILINE)


def test_a_mirror_is_asked_first(buildx: Buildx, tmp_path: Path) -> None:
    with ScriptedRegistry() as mirror:
        mirror.image("somewhere/base", "1", tar(("base", b"of the mirror")))
        text = f"registries: {{registry.invalid: {{mirrors: ['http://{mirror.address}']}}}}\n"
        with configured(text):
            buildx.build("FROM registry.invalid/somewhere/base:1\n", f"--output=type=local,dest={tmp_path}/out")
    assert (tmp_path / "out/base").read_bytes() == b"of the mirror"


def test_as_many_steps_at_a_time_as_are_configured(buildx: Buildx) -> None:
    mark = time.time_ns()
    stages = [f"FROM busybox AS s{number}\nRUN sleep 1; echo {mark} >/m{number}\n" for number in range(3)]
    copies = "".join(f"COPY --from=s{number} /m{number} /\n" for number in range(3))
    with configured("parallelism: 1\n"):
        (buildx.context / "Dockerfile").write_text("".join(stages) + "FROM scratch\n" + copies)
        process = buildx.start(*buildx.words())
        most = 0
        while process.poll() is None:
            most = max(most, len(list(Path("/sys/fs/cgroup").glob("**/teu-build.slice/*.scope"))))
            time.sleep(0.02)
        assert process.returncode == 0 and most == 1


def test_what_the_journal_has_of_a_build(buildx: Buildx, tmp_path: Path) -> None:
    """Each build by its reference: TEU_BUILD."""
    for dockerfile, words in (("FROM busybox\nRUN true\n", "has ended"), ("FROM busybox\nRUN false\n", "has failed")):
        metadata = tmp_path / "metadata.json"
        metadata.unlink(missing_ok=True)
        since = time.time()
        buildx.build(dockerfile, f"--metadata-file={metadata}", "--no-cache", check="true" in dockerfile)

        def entries(since: float = since) -> list[dict[str, Any]]:
            text = out("journalctl", "-u", SERVICE, "-o", "json", f"--since=@{since}")
            return [json.loads(line) for line in text.splitlines()]

        eventually("its end is told", lambda words=words: [one for one in entries() if words in str(one["MESSAGE"])])
        refs = {one["TEU_BUILD"] for one in entries() if "TEU_BUILD" in one}
        assert len(refs) == 1
        if metadata.exists():
            assert json.loads(metadata.read_text())["buildx.build.ref"].endswith(*refs)


def test_builds_of_long_ago_are_forgotten(buildx: Buildx) -> None:
    """history.max-age, which a reload applies: also where no build comes after."""

    def known(channel: grpc.Channel) -> set[str]:
        request = control_pb2.BuildHistoryRequest(EarlyExit=True)
        events = control_pb2_grpc.ControlStub(channel).ListenBuildHistory(request, timeout=60)
        return {event.record.Ref for event in events}

    with configured("idle-exit: 0\n"), grpc.insecure_channel(f"unix:{SOCKET}") as channel:
        before = known(channel)
        buildx.build("FROM busybox\n")
        assert len(known(channel) - before) == 1
        drop = Path("/etc/teu/buildkitd.yaml.d/settings.yaml")
        drop.write_text("idle-exit: 0\nhistory: {max-age: 1s}\n")
        call("systemctl", "reload", SERVICE)
        eventually("none of them is known", lambda: not known(channel))
