# SPDX-License-Identifier: Apache-2.0
"""What users of the command line found: each on the real docker and on teu, with the same daemon (teud)."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images
import pytest
from lab_kind import PATIENCE

pytestmark = pytest.mark.needs("docker", "namespace")
DOCKER = {**os.environ, "DOCKER_HOST": "unix:///run/teu/teud.sock", "DOCKER_CLI_HINTS": "false"}


@pytest.fixture(scope="module", autouse=True)
def plain() -> Iterator[None]:
    """A container with little, one with health and ports, a network and a volume."""
    images.need_busybox()
    for words in (
        ["volume", "create", "plain-v"],
        ["network", "create", "plain-n"],
        ["run", "-d", "--name", "plain", "--network", "host", "busybox", "sleep", "1000"],
        [
            "create",
            "--name",
            "rich",
            "--health-cmd",
            "true",
            "--health-interval",
            "90s",
            "--label",
            "a=b",
            "--init=false",
            "--stop-timeout",
            "3",
            "-v",
            "plain-v:/v",
            "--network",
            "plain-n",
            "--expose",
            "80",
            "busybox",
            "true",
        ],
    ):
        teu(*words)
    yield
    teu("rm", "-f", "plain", "rich")
    teu("network", "rm", "plain-n")
    teu("volume", "rm", "plain-v")


def run(program: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        [program, *words], env=DOCKER, capture_output=True, text=True, timeout=60 * PATIENCE, check=False, **options
    )


def teu(*words: str) -> str:
    done = run("teu", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- templates of inspect have Go's types (F69) ----------------------------------------------------

TEMPLATES = {
    "plain": """
        {{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}
        {{.State.Health}}|{{json .State.Health}}|{{with .State.Health}}x{{else}}y{{end}}
        {{.State.Health.Status}}
        {{.Config.Labels.nope}}|{{index .Config.Labels "nope"}}|{{json .Config.Labels}}
        {{.HostConfig.Binds}}|{{len .HostConfig.Binds}}|{{json .HostConfig.Binds}}|{{range .HostConfig.Binds}}x{{end}}
        {{.HostConfig.Sysctls}}|{{.HostConfig.Tmpfs}}|{{.HostConfig.Init}}|{{.HostConfig.Annotations}}
        {{.HostConfig.Sysctls.x}}|{{.HostConfig.Annotations.x}}
        {{.Config.ExposedPorts}}|{{.Config.Healthcheck}}|{{.Config.StopTimeout}}|{{.Config.Entrypoint}}
        {{if not .Config.Healthcheck}}no{{end}}{{if .Config.StopTimeout}}t{{end}}
        {{.NetworkSettings.Networks.nope}}|{{with .NetworkSettings.Networks.nope}}{{.IPAddress}}{{end}}
        {{.NetworkSettings.Ports}}|{{index .NetworkSettings.Ports "80/tcp"}}
        {{(index .NetworkSettings.Ports "80/tcp")}}|{{len (index .NetworkSettings.Ports "80/tcp")}}
        {{range $p, $c := .NetworkSettings.Ports}}{{$p}}{{end}}|{{.HostConfig.PortBindings}}
        {{.Id}}|{{.HostConfig.Dns}}|{{.HostConfig.NanoCpus}}|{{(index .NetworkSettings.Ports "80/tcp" 0).HostPort}}
        {{.HostConfig.MemorySwappiness}}|{{.HostConfig.PidsLimit}}|{{.HostConfig.OomKillDisable}}
        {{.SizeRw}}|{{.ExecIDs}}|{{.Mounts}}|{{.HostConfig.RestartPolicy}}|{{.HostConfig.LogConfig.Config}}
        {{.State.Nope}}
        {{.Nope}}
        {{.state.Health}}
        {{.HostConfig.ConsoleSize}}|{{.HostConfig.Ulimits}}|{{.HostConfig.Devices}}|{{.HostConfig.CapAdd}}
        {{if eq .State.Status "running"}}up{{end}}|{{.State.ExitCode}}|{{.State.Running}}
    """,
    "rich": """
        {{.Config.Healthcheck.Interval}}|{{json .Config.Healthcheck.Interval}}|{{.Config.Healthcheck.Test}}
        {{.Config.StopTimeout}}|{{.HostConfig.Init}}|{{.Config.ExposedPorts}}|{{.Config.Labels.a}}
        {{range .Mounts}}{{.Name}}:{{.Destination}}:{{.RW}}{{end}}|{{(index .Mounts 0).Type}}
        {{(index .NetworkSettings.Networks "plain-n").NetworkID}}|{{.NetworkSettings.Networks.bridge}}
        {{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{$v.Links}} {{$v.IPAMConfig}}{{end}}
    """,
    "busybox": """
        {{.Config.Labels.nope}}|{{.Config.Healthcheck}}|{{.RepoDigests}}|{{.Config.Volumes}}|{{.Config.ExposedPorts}}
        {{.Os}}/{{.Architecture}}{{.Variant}}|{{.Author}}|{{.RootFS.Type}}|{{len .RootFS.Layers}}
        {{.Nope}}
    """,
    "plain-n": """
        {{.Options.x}}|{{.Options}}|{{.Labels}}|{{.Labels.x}}|{{.Peers}}|{{len .Containers}}
        {{.ConfigFrom.Network}}|{{.Created}}
        {{(index .IPAM.Config 0).Subnet}}|{{.IPAM.Driver}}|{{.IPAM.Options}}|{{.Services}}
    """,
    "plain-v": """
        {{.Status}}|{{.Labels}}|{{.Labels.x}}|{{.Options}}|{{.Options.x}}|{{.UsageData}}|{{.Driver}}|{{.Scope}}
        {{.Nope}}
    """,
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_inspect(name: str) -> None:
    different = []
    for template in filter(None, (line.strip() for line in TEMPLATES[name].splitlines())):
        real, ours = (run(program, "inspect", "-f", template, name) for program in ("docker", "teu"))
        if (real.stdout, real.returncode) != (ours.stdout, ours.returncode):
            different.append(
                f"{template}\n  docker {real.returncode} {real.stdout}{real.stderr}"
                f"\n  teu    {ours.returncode} {ours.stdout}{ours.stderr}"
            )
    assert not different, "\n".join(different)


@pytest.mark.parametrize(
    "words",
    [
        "ps -a --format|raw",
        "images --format|raw",
        "volume ls --format|raw",
        "network ls --format|raw",
        "ps -as --format|raw",
        "ps -aq --format|raw",
        "images -q --format|raw",
        "images --digests --format|raw",
        "volume ls -q --format|raw",
        """ps -a --format|{{js "<a'b\\"c>&=\u00e9"}}""",
        'ps -a --format|{{define "x"}}<{{.}}>{{end}}{{template "x" .Names}}',
        'ps -a --format|{{block "x" .Names}}[{{.}}]{{end}}',
        'ps -a --format|{{template "y" .}}',
        'ps -a --format|{{define "x"}}{{template "x" .}}{{end}}ok',
    ],
)
def test_formats_of_lists(words: str) -> None:
    command, _, form = words.partition("|")
    real, ours = (run(program, *command.split(" "), form) for program in ("docker", "teu"))
    said, expected = (re.sub(r"\bUp [^\n]*", "Up", one.stdout) for one in (ours, real))  # a second may pass between
    assert (said, ours.returncode) == (expected, real.returncode), ours.stderr


# -- standard descriptors that are closed (F70) ----------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "ps >&-",
        "ps <&-",
        "ps 2>&-",
        "version <&- >&- 2>&-",
        "run --rm -i --network none busybox wc -c <&-",
        "run --rm --network none busybox echo ok 2>&-",
        "run --rm --network none busybox echo ok >&-",
        "exec -i plain wc -c <&-",
        "load <&-",
        "cp - plain:/tmp <&-",
        "import - <&-",
        "logs plain >&-",
        "inspect plain >&-",
        "pull nosuch/x 2>&-",
    ],
)
def test_closed_descriptors(command: str) -> None:
    ended = [
        subprocess.run(
            ["sh", "-c", f"exec {program} {command}"],
            env=DOCKER,
            capture_output=True,
            text=True,
            timeout=60 * PATIENCE,
            check=False,
        )
        for program in ("docker", "teu")
    ]
    real, ours = ended
    assert ours.returncode == real.returncode, ours.stderr
    assert "Traceback" not in ours.stderr and "unexpected error" not in ours.stderr
    if command.startswith("import"):
        teu("rmi", *{done.stdout.strip() for done in ended} - {""})
    elif not command.startswith(("version", "ps")):
        assert ours.stdout == real.stdout


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_of_ctr(closed: str) -> None:
    for command in ("teu-ctr version", "teu-ctr -n teu containers ls", "teu-ctr -n teu images import -"):
        done = subprocess.run(
            ["sh", "-c", f"exec {command} {closed}"],
            capture_output=True,
            text=True,
            timeout=60 * PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == (1 if "import" in command else 0), done.stderr


# -- stats ends with the daemon (V4) ---------------------------------------------------------------


def test_stats_ends_with_the_daemon(tmp_path: Path) -> None:
    output = (tmp_path / "out").open("wb")
    watching = subprocess.Popen(["teu", "stats"], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 30 * PATIENCE
        while b"plain" not in (tmp_path / "out").read_bytes():
            assert time.monotonic() < deadline and watching.poll() is None
            time.sleep(0.1)
        subprocess.run(["systemctl", "restart", "teud"], check=True, timeout=60 * PATIENCE)
        watching.wait(30 * PATIENCE)
    finally:
        watching.kill()
        watching.wait()


# -- what is not supported is refused, what is asked for is done (R22) ------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [("pull busybox", 1), ("push busybox", 1), ("run --rm busybox true", 125), ("create busybox", 125)],
)
def test_content_trust_is_refused(words: str, code: int) -> None:
    first, *rest = words.split(" ")
    for command, more in ((words, {"DOCKER_CONTENT_TRUST": "1"}), (f"{first} --disable-content-trust=false", {})):
        asked = command.split(" ") if more else [*command.split(" "), *rest]
        done = subprocess.run(
            ["teu", *asked], env={**DOCKER, **more}, capture_output=True, text=True, timeout=60 * PATIENCE, check=False
        )
        assert done.returncode == code and "content trust is not supported" in done.stderr, command
    for value in ("0", "false", ""):
        done = subprocess.run(
            ["teu", "create", "--name", "untrusted", "busybox"],
            env={**DOCKER, "DOCKER_CONTENT_TRUST": value},
            capture_output=True,
            timeout=60 * PATIENCE,
            check=False,
        )
        assert done.returncode == 0
        teu("rm", "untrusted")


def test_an_empty_volume_is_wrong_usage() -> None:
    real, ours = (run(program, "create", "-v", "", "busybox") for program in ("docker", "teu"))
    assert real.returncode == ours.returncode == 125 and ours.stderr


# -- what breaks where a stream's data come from is told (F43) --------------------------------------


def test_a_source_that_breaks_is_named() -> None:
    """Both programs read from a connection that is reset."""
    subprocess.run(["systemctl", "start", "containerd"], check=True, timeout=60 * PATIENCE)
    said = {}
    try:
        for program in ("ctr", "teu-ctr"):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                theirs.sendall(b"x" * 100)
                ours.sendall(b"never read")  # an end with something unread in it is a reset
                reader = subprocess.Popen(
                    [program, "content", "ingest", f"broken-{program}"],
                    stdin=ours,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                ours.close()
                time.sleep(0.5)
                theirs.close()
                _, error = reader.communicate(timeout=60 * PATIENCE)
                said[program] = (reader.returncode, error.partition(": ")[2])
    finally:
        # What of docker's is taken over stands in the way of it while it runs.
        subprocess.run(["systemctl", "stop", "containerd"], check=True, timeout=60 * PATIENCE)
    assert said["teu-ctr"] == said["ctr"]
    assert "read /dev/stdin: connection reset by peer" in said["teu-ctr"][1]
