# SPDX-License-Identifier: Apache-2.0
"""VS Code's dev containers (devcontainers/cli, spec-node/singleContainer.ts and spec-shutdown/dockerUtils.ts), which
run docker's command line: `ps` by labels, `inspect`, `events` until it starts, `run` with its outputs attached, a shell
that is kept open by `exec -i` and given commands, `exec -it`, and `stop`. Each command pings first."""

from __future__ import annotations

from typing import Any

from recorded import JSON, UPGRADE, Call, Hear, Story, filters
from recorded.go import created, exec_started, executed

API = "/v1.45"
WHO = {"User-Agent": "Docker-Client/26.1.5 (linux)"}
SENDS = {**WHO, **JSON}
HIJACKS = {**SENDS, **UPGRADE}
LABELS = {
    "devcontainer.local_folder": "/home/me/project",
    "devcontainer.config_file": "/home/me/project/.devcontainer.json",
}
LABELLED = filters(label=[f"{key}={value}" for key, value in LABELS.items()])
SCRIPT = 'echo Container started\ntrap "exit 0" 15\n\nexec "$@"\nwhile sleep 1 & wait $!; do :; done'
CONTAINER = created(
    {
        "AttachStdout": True,
        "AttachStderr": True,
        "Image": "busybox",
        "Env": ["FROM=devcontainer"],
        "Cmd": ["-c", SCRIPT, "-"],
        "Entrypoint": ["/bin/sh"],
        "Labels": {**LABELS, "devcontainer.metadata": "[]"},
        "ExposedPorts": {"8080/tcp": {}},
    },
    {
        "NetworkMode": "default",
        "PortBindings": {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "48394"}]},
        "CapAdd": ["SYS_PTRACE"],
        "SecurityOpt": ["seccomp=unconfined"],
        "Mounts": [
            {"Type": "bind", "Source": "/usr/share", "Target": "/workspaces/project"},
            {"Type": "volume", "Source": "vscode", "Target": "/vscode"},
        ],
    },
    {},
)


def shell(commands: bytes, until: bytes, number: int) -> Hear:
    """shellServer: each command is followed by a mark and its exit code, on both outputs."""
    return Hear(f"the {number}. command", "docker exec -i: start", sends=commands, until=until, exact=False)


def listed(number: int, **members: Any) -> Call:
    return Call(
        f"docker ps -q -a, {number}", "GET", f"{API}/containers/json?all=1&filters={LABELLED}", headers=WHO, **members
    )


STORY = Story(
    api=(1, 45),
    steps=[
        Call("docker: ping", "HEAD", "/_ping", headers=WHO),
        Call(
            "docker version",
            "GET",
            f"{API}/version",
            headers=WHO,
            shape=False,
            types=("Os", "Arch", "Components/0/Version"),
        ),
        listed(1, told={"": []}),
        Call(
            "docker inspect --type image",
            "GET",
            f"{API}/images/busybox/json",
            headers=WHO,
            same=(
                "Config/User",
                "Config/Env",
                "Config/Labels",
                "Config/Entrypoint",
                "Config/Cmd",
                "Os",
                "Architecture",
            ),
        ),
        Call("docker inspect of none", "GET", f"{API}/images/vsc-project-uid/json", headers=WHO, status=404),
        Call("docker events", "GET", f"{API}/events?filters={filters(event=['start'])}", headers=WHO, beside=True),
        # docker run --sig-proxy=false -a STDOUT -a STDERR
        Call(
            "docker run: create", "POST", f"{API}/containers/create", CONTAINER, 201, SENDS, {"id": "Id"}, ("Warnings",)
        ),
        Call(
            "docker run: attach",
            "POST",
            f"{API}/containers/<id>/attach?stderr=1&stdout=1&stream=1",
            status=101,
            headers={**WHO, "Content-Type": "text/plain", **UPGRADE},
            beside=True,
        ),
        Call("docker run: wait", "POST", f"{API}/containers/<id>/wait?condition=next-exit", headers=WHO, beside=True),
        Call("docker run: start", "POST", f"{API}/containers/<id>/start", status=204, headers=WHO),
        Hear("it says that it has started", "docker run: attach", until=b"Container started\n"),
        Hear(
            "the event",
            "docker events",
            until=b'"start"',
            lines=True,
            leaves=True,
            told={
                "0/Action": "start",
                "0/Actor/Attributes/devcontainer.local_folder": "/home/me/project",
                "0/Actor/Attributes/image": "busybox",
            },
            same=("*/Type", "*/Action", "*/scope"),
        ),
        listed(2, same=("*/State", "*/Image", "*/Ports", "*/Labels", "*/Command")),
        Call(
            "docker inspect --type container",
            "GET",
            f"{API}/containers/<id>/json",
            headers=WHO,
            same=(
                "State/Status",
                "Config/Image",
                "Config/User",
                "Config/Env",
                "Config/Labels",
                "HostConfig/SecurityOpt",
                "NetworkSettings/Ports",
            ),
        ),
        # docker exec -i -u root CONTAINER /bin/sh, for as long as the window is open
        Call("docker exec -i: inspect", "GET", f"{API}/containers/<id>/json", headers=WHO, shape=False),
        Call(
            "docker exec -i: create",
            "POST",
            f"{API}/containers/<id>/exec",
            executed(["/bin/sh"], User="root", AttachStdin=True, AttachStdout=True, AttachStderr=True),
            201,
            SENDS,
            {"shell": "Id"},
        ),
        Call("docker exec -i: start", "POST", f"{API}/exec/<shell>/start", exec_started(), 101, HIJACKS, beside=True),
        shell(b"echo -n m1; ( id -u ); echo -n m1$?m1; echo -n m1$?m1 >&2\n", b"m10m1", 1),
        shell(b"echo -n m2; ( cd /workspaces/project && pwd ); echo -n m2$?m2; echo -n m2$?m2 >&2\n", b"m20m2", 2),
        shell(b"echo -n m3; ( echo $FROM; exit 5 ); echo -n m3$?m3; echo -n m3$?m3 >&2\n", b"m35m3", 3),
        # docker exec -i -t, a terminal
        Call(
            "docker exec -it: create",
            "POST",
            f"{API}/containers/<id>/exec",
            executed(
                ["/bin/sh", "-c", "stty size; tty"],
                User="root",
                AttachStdin=True,
                AttachStdout=True,
                AttachStderr=True,
                Tty=True,
                ConsoleSize=[33, 99],
                WorkingDir="/workspaces/project",
                Env=["TERM=xterm-256color"],
            ),
            201,
            SENDS,
            {"terminal": "Id"},
        ),
        Call(
            "docker exec -it: start",
            "POST",
            f"{API}/exec/<terminal>/start",
            {**exec_started(tty=True), "ConsoleSize": [33, 99]},
            101,
            HIJACKS,
            beside=True,
        ),
        Hear("what it shows", "docker exec -it: start", leaves=True),
        Call(
            "docker exec -it: inspect",
            "GET",
            f"{API}/exec/<terminal>/json",
            headers=WHO,
            until=lambda told: not told["Running"],
            told={"ExitCode": 0},
            same=("ProcessConfig",),
        ),
        # the window is closed: shutdownAction stopContainer
        Hear("the shell's input ends", "docker exec -i: start", shuts=True, leaves=True, exact=False),
        Call("docker stop", "POST", f"{API}/containers/<id>/stop", status=204, headers=WHO),
        Hear("docker run: the end of its output", "docker run: attach", leaves=True),
        Hear("docker run: its code", "docker run: wait", lines=True, leaves=True, same=("0/StatusCode",)),
        # dockerd's list may be behind the answer of its stop.
        listed(3, until=lambda told: told[0]["State"] == "exited", same=("*/State",)),
        # the next window: startExistingContainer
        Call("docker start", "POST", f"{API}/containers/<id>/start", status=204, headers=WHO),
        listed(4, told={"0/State": "running"}),
        Call("docker rm -f", "DELETE", f"{API}/containers/<id>?force=1", status=204, headers=WHO),
        Call("docker volume rm", "DELETE", f"{API}/volumes/vscode", status=204, headers=WHO),
    ],
)
