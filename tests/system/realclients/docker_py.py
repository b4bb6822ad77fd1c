# SPDX-License-Identifier: Apache-2.0
"""docker-py's newest release: images, containers, streams, archives, networks, volumes, events, classes of errors."""

from __future__ import annotations

import io
import socket
import tarfile
import threading
from typing import Any

import docker
from docker.types import DriverConfig, EndpointConfig, Healthcheck, LogConfig, Mount, Ulimit
from said import Said, until

said = Said()
client = docker.from_env(timeout=60)
api = client.api
SCRIPT = "trap 'exit 7' TERM; echo out; echo err >&2; touch /ready; while :; do sleep 0.1; done"


def tarred(**files: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name.replace("__", "."))
            entry.size, entry.mode = len(text), 0o640
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def images() -> None:
    said.step("build", _built)
    said.step("tags", lambda: sorted(client.images.get("pybuilt:1").tags))
    said.step("labels", lambda: client.images.get("pybuilt:1").labels)
    said.step("config", lambda: _part(client.images.get("pybuilt:1").attrs["Config"], "Cmd", "Env", "WorkingDir"))
    said.step("bad build", lambda: client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN exit 9\n"), rm=True))
    said.step("bad dockerfile", lambda: client.images.build(fileobj=io.BytesIO(b"NOSUCH x\n"), rm=True))
    said.step("tag", lambda: client.images.get("pybuilt:1").tag("pybuilt", "2"))
    said.step("both", lambda: sorted(client.images.get("pybuilt:1").tags))
    said.step("bad tag", lambda: client.images.get("pybuilt:1").tag("BAD NAME"))
    said.step("history", lambda: len(client.images.get("pybuilt:1").history()) > 1)
    data = b"".join(client.images.get("pybuilt:1").save(named=True))
    said.step("remove", lambda: [client.images.remove("pybuilt:1"), client.images.remove("pybuilt:2")])
    said.step("removed", lambda: client.images.get("pybuilt:1"))
    said.step("load", lambda: [image.tags for image in client.images.load(data)])
    said.step("list", lambda: [image.tags for image in client.images.list(filters={"label": "made=by-py"})])
    said.step("no pull", lambda: client.images.pull("localhost:1/nosuch", tag="1"))
    said.step("no image", lambda: client.images.get("nosuch"))


def _built() -> Any:
    dockerfile = b"FROM busybox\nARG WHAT=no\nLABEL made=by-py what=$WHAT\nENV A=b\nWORKDIR /w\n"
    dockerfile += b"RUN echo $WHAT >file\nCMD cat file\n"
    _, log = client.images.build(fileobj=io.BytesIO(dockerfile), tag="pybuilt:1", buildargs={"WHAT": "yes"}, rm=True)
    lines = "".join(line.get("stream", "") for line in log)
    return "Successfully built" in lines, "Successfully tagged pybuilt:1" in lines


def _part(value: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value.get(name) for name in names}


def containers() -> None:
    said.step("run", lambda: client.containers.run("pybuilt:1", remove=True))
    said.step("run fails", lambda: client.containers.run("busybox", ["sh", "-c", "echo bad >&2; exit 3"], remove=True))
    try:
        client.containers.run("busybox", ["sh", "-c", "echo bad >&2; exit 3"], remove=True)
    except docker.errors.ContainerError as error:
        said["run failed"] = [error.exit_status, error.stderr]
    said.step("no command", lambda: client.containers.run("busybox", ["nosuchcommand"], name="pynone"))
    said.step("what is left of it", lambda: client.containers.get("pynone").status)
    said.step("its code", lambda: client.containers.get("pynone").attrs["State"]["ExitCode"])
    said.step("it goes", lambda: client.containers.get("pynone").remove())
    client.volumes.create("pydata", labels={"a": "b"}, driver_opts={})
    network = client.networks.create("pynet", driver="bridge", labels={"n": "1"}, attachable=True)
    one = client.containers.create(
        "busybox",
        ["sh", "-c", SCRIPT],
        name="pyone",
        hostname="one",
        environment={"A": "b"},
        labels={"from": "py"},
        user="0:0",
        working_dir="/tmp",
        mounts=[
            Mount("/data", "pydata", type="volume", driver_config=DriverConfig("local")),
            Mount("/scratch", "", type="tmpfs", tmpfs_size=1 << 20, tmpfs_mode=0o1770),
            Mount("/host", "/etc", type="bind", read_only=True),
        ],
        ports={"80/tcp": None, "81/udp": ("127.0.0.1", 48181)},
        restart_policy={"Name": "on-failure", "MaximumRetryCount": 2},
        healthcheck=Healthcheck(test=["CMD", "test", "-e", "/ready"], interval=200_000_000, retries=3),
        log_config=LogConfig(type="json-file", config={"max-size": "1m"}),
        ulimits=[Ulimit(name="nofile", soft=500, hard=600)],
        cap_drop=["MKNOD"],
        extra_hosts={"other": "192.0.2.7"},
        dns=["192.0.2.53"],
        sysctls={"net.ipv4.ip_forward": "0"},
        shm_size="8m",
        network="pynet",
        networking_config={"pynet": EndpointConfig(api._version, aliases=["uno"])},
        init=False,
        tty=False,
        stdin_open=True,
        stop_signal="SIGTERM",
        detach=True,
    )
    said.step("created", lambda: one.status)
    said.step("same name", lambda: client.containers.create("busybox", name="pyone"))
    one.start()
    said.step("started again", lambda: one.start())
    said.step("healthy", lambda: until(lambda: one.reload() or one.health == "healthy"))
    host = one.attrs["HostConfig"]
    names = (
        "RestartPolicy",
        "LogConfig",
        "Ulimits",
        "CapDrop",
        "ExtraHosts",
        "Dns",
        "Sysctls",
        "ShmSize",
        "NetworkMode",
    )
    said["host config"] = _part(host, *names, "Mounts", "PortBindings", "AutoRemove", "Privileged")
    said["configuration"] = _part(
        one.attrs["Config"],
        "Hostname",
        "User",
        "Cmd",
        "WorkingDir",
        "Labels",
        "StopSignal",
        "ExposedPorts",
        "Healthcheck",
    )
    said["mounts"] = sorted(
        [each["Type"], each.get("Name", ""), each["Destination"], each["RW"], each["Mode"]]
        for each in one.attrs["Mounts"]
    )
    ports = one.attrs["NetworkSettings"]["Ports"]
    # dockerd's program listens on [::] as well; teud publishes by rules, on what the network has.
    said["ports"] = {
        port: [each["HostIp"] for each in given if ":" not in each["HostIp"]] for port, given in ports.items()
    }
    endpoint = one.attrs["NetworkSettings"]["Networks"]["pynet"]
    said["aliases"] = endpoint["Aliases"], sorted(set(endpoint["DNSNames"]) - {one.short_id})
    inside = (
        "ulimit -n; hostname; cat /proc/sys/net/ipv4/ip_forward; grep -c 192.0.2.7 /etc/hosts; stat -c %a /scratch; pwd"
    )
    said.step("inside", lambda: one.exec_run(["sh", "-c", inside]).output)
    said.step(
        "exec",
        lambda: tuple(one.exec_run(["sh", "-c", "echo $B; echo e >&2; exit 4"], demux=True, environment=["B=c"])),
    )
    said.step("exec fails", lambda: _refused(one))
    said.step("exec in background", lambda: one.exec_run(["true"], detach=True).output)
    said.step("exec of a user", lambda: one.exec_run(["id", "-u"], user="nobody").output)
    said.step("logs", lambda: [one.logs(stdout=True, stderr=False), one.logs(stdout=False), one.logs(tail=0)])
    said.step("timestamps", lambda: one.logs(timestamps=True, stderr=False).split(b" ")[1])
    said.step("put", lambda: one.put_archive("/tmp", tarred(a__txt="hello", b__txt="there")))
    said.step("put nowhere", lambda: one.put_archive("/nosuch", tarred(a__txt="x")))
    said.step("get", lambda: _got(one, "/tmp/a.txt"))
    said.step("get nothing", lambda: one.get_archive("/tmp/nosuch"))
    said.step("diff", lambda: sorted(each["Path"] for each in one.diff() if each["Path"].startswith("/tmp/")))
    said.step("top", lambda: one.top(ps_args="-o pid,args")["Titles"])
    said.step(
        "stats", lambda: sorted(set(one.stats(stream=False)) & {"cpu_stats", "memory_stats", "networks", "name", "id"})
    )
    said.step("pause", lambda: [one.pause(), one.reload(), one.status])
    said.step("paused twice", lambda: one.pause())
    said.step("exec in paused", lambda: one.exec_run(["true"]))
    said.step("unpause", lambda: [one.unpause(), one.reload(), one.status])
    said.step("rename", lambda: [one.rename("pyrenamed"), one.reload(), one.name])
    said.step("update", lambda: sorted(one.update(restart_policy={"Name": "no"})))
    said.step("remove running", lambda: one.remove())
    said.step("other network", lambda: client.networks.get("bridge").connect(one))
    said.step("joined", lambda: [one.reload(), sorted(one.attrs["NetworkSettings"]["Networks"])][1])
    said.step("twice", lambda: client.networks.get("bridge").connect(one))
    said.step("left", lambda: client.networks.get("bridge").disconnect(one))
    said.step("volume in use", lambda: client.volumes.get("pydata").remove())
    said.step("network in use", lambda: network.remove())
    said.step(
        "commit", lambda: one.commit("pycommitted", "1", changes=["CMD true"], author="me").attrs["Config"]["Cmd"]
    )
    said.step("listed", lambda: [each.name for each in client.containers.list(filters={"label": "from=py"})])
    said.step("by ancestor", lambda: [each.name for each in client.containers.list(filters={"ancestor": "busybox"})])
    said.step("bad filter", lambda: client.containers.list(filters={"nosuch": "x"}))
    said.step("stop", lambda: [one.stop(timeout=10), one.wait()["StatusCode"], one.reload(), one.status])
    said.step("stopped twice", lambda: one.stop())
    said.step("killed when stopped", lambda: one.kill())
    said.step("exec when stopped", lambda: one.exec_run(["true"]))
    said.step("export", lambda: _exported(one))
    said.step("restart", lambda: [one.restart(timeout=0), one.reload(), one.status])
    said.step("kill", lambda: [one.kill("SIGKILL"), one.wait()["StatusCode"]])
    said.step("removed", lambda: one.remove(v=True, force=True))
    said.step("removed twice", lambda: one.remove())
    said.step("volume stays", lambda: client.volumes.get("pydata").attrs["Labels"])
    said.step("volume goes", lambda: client.volumes.get("pydata").remove())
    said.step("no volume", lambda: client.volumes.get("pydata"))
    said.step("network", lambda: _part(network.attrs, "Driver", "Internal", "Attachable", "Labels", "Scope"))
    said.step("same network", lambda: client.networks.create("pynet", check_duplicate=True))
    said.step("network goes", lambda: network.remove())
    said.step("no network", lambda: network.reload())


def _refused(container: Any) -> Any:
    code, output = container.exec_run(["nosuchcommand"])
    return code, b'exec: "nosuchcommand": executable file not found in $PATH' in output


def _got(container: Any, path: str) -> Any:
    chunks, about = container.get_archive(path)
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        member = archive.getmembers()[0]
        return [
            member.name,
            member.mode,
            about["name"],
            about["size"],
            about["mode"],
            archive.extractfile(member).read(),
        ]


def _exported(container: Any) -> Any:
    with tarfile.open(fileobj=io.BytesIO(b"".join(container.export()))) as archive:
        names = {name.lstrip("./") for name in archive.getnames()}
    return sorted(names & {"tmp/a.txt", "bin/busybox", ".dockerenv", "data", "host", "scratch"})


def streams() -> None:
    """Standard input through a hijacked connection; logs that are followed; events."""
    taken: list[Any] = []
    events = client.events(decode=True, filters={"container": "pycat", "type": "container"})
    reader = threading.Thread(target=lambda: taken.extend(_until_destroyed(events)))
    reader.start()
    cat = client.containers.create("busybox", ["cat"], name="pycat", stdin_open=True, detach=True)
    sock = cat.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    cat.start()
    sock._sock.sendall(b"one\ntwo\n")
    lines = cat.logs(stream=True, follow=True)
    said.step("followed", lambda: [next(lines), next(lines)])
    said.step("frame", lambda: _frames(sock._sock, 8))
    sock._sock.shutdown(socket.SHUT_WR)
    said.step("cat goes on without StdinOnce", lambda: [cat.reload(), cat.status][1])
    sock.close()
    cat.stop(timeout=0)
    said.step("no more lines", lambda: list(lines))
    said.step("code", lambda: cat.wait(timeout=20))
    cat.remove()
    reader.join(20)
    said["events"] = sorted(each["Action"] for each in taken)  # of dockerd's the last ones come in either order
    said["attributes"] = sorted({key for each in taken for key in each["Actor"]["Attributes"]})
    tty = client.containers.run(
        "busybox", ["sh", "-c", "stty size; tty"], tty=True, stdin_open=True, detach=True, name="pytty"
    )
    said.step("tty ends", lambda: tty.wait()["StatusCode"])
    said.step("tty", lambda: tty.logs().split(b"\r\n")[1:])
    tty.remove()


def _frames(sock: Any, wanted: int) -> Any:
    """The kind of each frame and all that they carry."""
    sock.settimeout(20)
    data, kinds = b"", set()
    while len(data) < wanted:
        header = sock.recv(8)
        kinds.add(header[0])
        size = int.from_bytes(header[4:], "big")
        while size:
            part = sock.recv(size)
            size -= len(part)
            data += part
    return sorted(kinds), data


def _until_destroyed(events: Any) -> Any:
    for event in events:
        yield event
        if event["Action"] == "destroy":
            events.close()
            return


def prune() -> None:
    client.containers.create("busybox", ["true"], name="pypruned", labels={"prune": "me"})
    client.volumes.create("pypruned", labels={"prune": "me"})
    client.networks.create("pypruned", labels={"prune": "me"})
    filters = {"label": "prune=me"}
    said.step("containers pruned", lambda: len(client.containers.prune(filters)["ContainersDeleted"]))
    said.step("networks pruned", lambda: client.networks.prune(filters)["NetworksDeleted"])
    said.step("volumes pruned", lambda: client.volumes.prune({**filters, "all": True})["VolumesDeleted"])
    said.step("nothing to prune", lambda: client.containers.prune(filters))
    said.step("bad prune", lambda: client.containers.prune({"nosuch": "x"}))
    for name in ("pybuilt:1", "pycommitted:1"):
        said.step(f"{name} goes", lambda name=name: client.images.remove(name))
    said.step("swarm", lambda: client.swarm.attrs)
    said.step("services", lambda: client.services.list())
    said.step("plugins", lambda: [plugin.name for plugin in client.plugins.list()])
    said.step("ping", lambda: client.ping())


images()
containers()
streams()
prune()
client.close()
said.tell()
