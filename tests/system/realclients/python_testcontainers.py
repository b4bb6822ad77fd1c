# SPDX-License-Identifier: Apache-2.0
"""testcontainers for Python: containers that are waited for in each way, a network with aliases, files, a built image,
a compose project, and its own labels, by which its reaper (an image, and so not here) would find what is left."""

from __future__ import annotations

import tempfile
import urllib.request
from pathlib import Path

import docker
from said import Said, until
from testcontainers.compose import DockerCompose
from testcontainers.core.container import DockerContainer
from testcontainers.core.image import DockerImage
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import (
    CompositeWaitStrategy,
    ContainerStatusWaitStrategy,
    ExecWaitStrategy,
    FileExistsWaitStrategy,
    HealthcheckWaitStrategy,
    HttpWaitStrategy,
    LogMessageWaitStrategy,
    PortWaitStrategy,
)

said = Said()
client = docker.from_env()
SERVER = "mkdir /www; echo $WHAT >/www/index.html; echo begun; exec httpd -f -v -p 80 -h /www"


def server(**options: object) -> DockerContainer:
    return DockerContainer("busybox", **options).with_command(["sh", "-c", SERVER]).with_env("WHAT", "served")  # type: ignore[arg-type]


def waits() -> None:
    for name, strategy in {
        "log": LogMessageWaitStrategy("begun"),
        "port": PortWaitStrategy(80),
        "http": HttpWaitStrategy(80, "/").for_status_code(200),
        "file": FileExistsWaitStrategy("/nosuch-on-the-host"),
        "exec": ExecWaitStrategy(["test", "-e", "/www/index.html"]),
        "status": ContainerStatusWaitStrategy(),
        "all": CompositeWaitStrategy(LogMessageWaitStrategy("begun"), PortWaitStrategy(80)),
    }.items():
        with_files = name == "file"
        container = server(ports=[80]).waiting_for(strategy.with_startup_timeout(1 if with_files else 20))
        said.step(f"waits for {name}", lambda container=container: started(container))
        container.stop()
    sick = (
        DockerContainer("busybox")
        .with_command(["sleep", "100"])
        .with_kwargs(healthcheck={"test": ["CMD", "false"], "interval": 100_000_000, "retries": 2})
    )
    said.step("never healthy", lambda: sick.waiting_for(HealthcheckWaitStrategy().with_startup_timeout(20)).start())
    sick.stop()
    ends = DockerContainer("busybox").with_command(["sh", "-c", "exit 5"])
    said.step("ends at once", lambda: ends.waiting_for(LogMessageWaitStrategy("x").with_startup_timeout(20)).start())
    said.step("its code", lambda: ends.get_wrapped_container().wait()["StatusCode"])
    ends.stop()
    said.step("no image", lambda: DockerContainer("localhost:1/nosuch:1").start())


def started(container: DockerContainer) -> list[object]:
    container.start()
    url = f"http://{container.get_container_host_ip()}:{container.get_exposed_port(80)}/"
    page = until(lambda: fetched(url))
    assert isinstance(page, list)
    return page


def fetched(url: str) -> list[object]:
    """Empty where nobody answers: not each way to wait says that the server listens."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return [answer.status, answer.read().decode()]
    except OSError:
        return []


def together() -> None:
    with Network() as network, tempfile.TemporaryDirectory() as folder:
        Path(folder, "given").write_text("given\n")
        web = server().with_network(network).with_network_aliases("web", "www").with_exposed_ports(80)
        web.with_volume_mapping(folder, "/given", "ro").with_tmpfs_mount("/scratch", "size=1m")
        web.with_copy_into_container(b"copied", "/copied")
        web.waiting_for(LogMessageWaitStrategy("begun"))
        with web, DockerContainer("busybox").with_command(["sleep", "100"]).with_network(network) as asks:
            said.step("by alias", lambda: tuple(asks.exec(["wget", "-qO-", "http://www/"])))
            said.step("by no alias", lambda: asks.exec(["wget", "-qO-", "http://nosuch.invalid/"]).exit_code)
            said.step("read-only", lambda: web.exec(["sh", "-c", "cat /given/given; touch /given/x"]).exit_code)
            said.step("tmpfs", lambda: web.exec(["sh", "-c", "grep -c ' /scratch tmpfs' /proc/mounts"]).output)
            said.step("logs", lambda: web.get_logs()[0])
            wrapped = web.get_wrapped_container()
            wrapped.reload()
            labels = wrapped.labels
            said["labels"] = sorted(labels)
            session = f"org.testcontainers.session-id={labels['org.testcontainers.session-id']}"
            filters = {"label": session}
            said.step("of the session", lambda: len(client.containers.list(filters=filters)))
            said.step("networks of the session", lambda: len(client.networks.list(filters=filters)))
            said.step("what stops also removes", lambda: asks.get_wrapped_container().status)
        said.step("left", lambda: client.containers.list(all=True, filters=filters))
    said.step("networks left", lambda: client.networks.list(filters=filters))


def built() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Dockerfile").write_text("FROM busybox\nCOPY said /said\nCMD cat /said && sleep 100\n")
        Path(folder, "said").write_text("built and run\n")
        with DockerImage(path=folder, tag="tcbuilt:1") as image:
            with DockerContainer(str(image)).waiting_for(LogMessageWaitStrategy("built and run")) as container:
                said.step("built", lambda: container.get_logs()[0])
        said.step("image goes", lambda: client.images.get("tcbuilt:1"))
        Path(folder, "compose.yaml").write_text(
            "services:\n  one:\n    image: busybox\n    init: false\n    stop_grace_period: 0s\n"
            f'    command: ["sh", "-c", {SERVER.replace("$", "$$")!r}]\n'
            "    environment: {WHAT: composed}\n    ports: [80]\n"
        )
        with DockerCompose(folder, pull=False, wait=True) as compose:
            container = compose.get_container("one")
            said.step("composed", lambda: [container.Service, container.State, container.ExitCode])
            said.step("command", lambda: compose.exec_in_container(["cat", "/www/index.html"], "one"))
            said.step("composed logs", lambda: "begun" in compose.get_logs("one")[0])
            port = compose.get_service_port("one", 80)
            url = f"http://127.0.0.1:{port}/"
            said.step("composed port", lambda: until(lambda: fetched(url)))
        label = {"label": "com.docker.compose.project"}
        said.step("composed goes", lambda: client.containers.list(all=True, filters=label))


waits()
together()
built()
said.tell()
