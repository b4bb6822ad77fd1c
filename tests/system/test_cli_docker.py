# SPDX-License-Identifier: Apache-2.0
"""`teu` on Debian's dockerd: the swap row, and the proof that teu says what docker says.

Each case runs with docker and with teu on the same daemon; output, errors and exit code must be equal (but for
the program's name, and what differs by nature: IDs, times, the texts of help). teu's words are those of docker 28;
docker_words has what those of 26 are there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import docker_words
import peers
import pytest

TEU = "/usr/bin/teu"

# Debian 12 has docker 20.10, whose words differ from those of 26.
pytestmark = pytest.mark.needs("docker", "dockerd", "trixie")


@pytest.fixture(scope="module")
def docker() -> Iterator[peers.Dockerd]:
    with peers.dockerd(network=True) as daemon:
        daemon.load_busybox()
        daemon("network", "create", "--subnet", "10.199.0.0/24", "--label", "k=v", "net1")
        daemon(
            "run",
            "-d",
            "--name",
            "web",
            "-p",
            "18080:80",
            "-p",
            "18081-18083:81-83/udp",
            "-v",
            "data:/data",
            "-l",
            "a=b",
            "--network",
            "net1",
            "busybox",
            "sleep",
            "100000",
        )
        daemon("run", "--name", "done", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3", code=3)
        daemon("create", "--name", "notyet", "busybox", "true")
        daemon("tag", "busybox", "localhost:5000/x/y:z")
        yield daemon
        daemon("rm", "-f", "web", "done", "notyet")


def both(docker: peers.Dockerd, argv: list[str], stdin: str | None = None) -> tuple[tuple[str, str, int], ...]:
    results = []
    for program in (["docker", *docker.client[1:]], [TEU, *docker.client[1:]]):
        done = peers.run(*program, *argv, code=None, stdin=stdin)
        texts = [
            re.sub(r"\b(docker|teu)(?=[: ]|$)", "PROGRAM", re.sub(r"[0-9a-f]{12,64}", "ID", text))
            for text in (done.stdout, done.stderr)
        ]
        results.append((texts[0], texts[1], done.returncode))
    return results[0], results[1]


SAME = """
ps
ps -a
ps -aq --no-trunc
ps -l
ps -n 1
ps -as
ps -a --no-trunc
ps -a --format '{{.Names}}|{{.Image}}|{{.State}}|{{.Ports}}|{{.Mounts}}|{{.Networks}}|{{.LocalVolumes}}|{{.Command}}'
ps --format 'table {{.Names}}\\t{{.Status}}\\t{{upper .Image}}'
ps --format '{{.Label "a"}} {{.Labels}}'
ps -a --filter status=exited --format json
ps -a --format '{{json .}}' --filter name=notyet
container ls --filter label=a=b -q
ps --filter foo
ps --filter foo=bar
ps -z
ps --all=maybe
ps --format '{{.ID'
container nope-nope --help
port web
port web 80
port web 80/udp
port web 9
images
images -a --digests
images -q --no-trunc
images busybox
images --format '{{.Repository}}:{{.Tag}} {{.Size}}'
image ls --filter reference=nosuch*
history busybox
history --no-trunc --format '{{.CreatedBy}} {{.Size}}' busybox
network ls --format '{{.Name}} {{.Driver}} {{.Scope}} {{.Labels}}'
network ls --filter type=custom
network inspect net1 -f '{{.Name}} {{json .IPAM.Config}}'
volume ls
volume ls -q --filter name=data
volume inspect data -f '{{.Name}} {{.Driver}}'
inspect web
inspect done notyet
inspect nosuch
inspect web nosuch
inspect -f '{{.State.Status}} {{.State.ExitCode}} {{.Config.Cmd}} {{.HostConfig.PortBindings}}' done
inspect -f '{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{$v.IPAddress}} {{end}}' web
inspect -f '{{json .Config.Labels}} {{index .Config.Labels "a"}} {{len .Mounts}}' web
inspect -f '{{.Nope}}' web
inspect -f '{{.State.Nope}}' web
inspect -f '{{.Id}}' nosuch
inspect --type=image busybox -f '{{.Os}}'
inspect --type=volume web
container inspect nosuch
image inspect nosuch
volume inspect nosuch
network inspect nosuch
logs done
logs --tail 1 web
logs nosuch
logs --since nonsense done
top web
top web -o pid,args
diff web
exec web echo hello
exec web sh -c 'echo out; echo err >&2; exit 5'
exec -e A=b -w /tmp -u 1:2 web sh -c 'echo $A; pwd; id -u; id -g'
exec web nosuch
exec done true
exec nosuch true
exec -it web true
run --rm busybox echo hello
run --rm --network none busybox sh -c 'exit 7'
run --rm --network none busybox sh -c 'kill -9 $$'
run --rm --network none busybox nosuch
run --rm --network none busybox /etc
run --rm --network none -w /tmp -e A=1 -h name busybox sh -c 'pwd; echo $A; hostname'
run --rm --network none --entrypoint ls busybox -d /tmp
run --rm --network none --read-only busybox touch /x
run --rm --network none --mount type=tmpfs,target=/t,tmpfs-size=1m busybox grep -c ' /t ' /proc/mounts
run --rm --network none --ulimit nofile=64:64 busybox sh -c 'ulimit -n'
run --rm --network none --cap-drop ALL busybox grep CapEff /proc/1/status
run --rm --network none --add-host foo:1.2.3.4 --dns 9.9.9.9 busybox grep foo /etc/hosts
run --name web busybox
run -d --name web busybox
run Busybox
run busybox:
run --nope busybox
run
run -p x busybox
run -p 1-3:1-2 busybox
run --mount type=nope busybox
run --mount type=bind,source=/nosuch/dir,target=/x busybox
run -v a:b:c:d:e busybox
run --memory x busybox
run --cpus x busybox
run -e =x busybox
run --network nosuch busybox
run --network name=x,nope=1 busybox
run --restart nope busybox
run --restart always --rm busybox
run --ulimit x busybox
run --ulimit nofile=5:3 busybox
run --device x:y:z busybox
run --env-file /nosuch busybox
run --security-opt seccomp=/nosuch busybox
run --pid nope busybox
run --health-retries -1 busybox
run --sysctl nope busybox
run --dns nope busybox
run --log-driver none --log-opt a=b busybox
run --runtime nope busybox
run --cap-add nope busybox
run --pull nope busybox
run --pull never nosuch
run --detach-keys nope -it busybox
run -d -a stdin busybox
create --name notyet busybox
start nosuch
stop nosuch web2
kill done
rm
rm web
rm nosuch
rm -f nosuch
rename done web
pause done
unpause web
update web
update --restart nope web
wait done
wait nosuch
attach done
tag nosuch x
tag busybox UP
rmi nosuch
rmi -f nosuch
volume rm nosuch
volume rm data
network rm nosuch
network rm bridge
network create --subnet nope n
network connect nosuch web
save nosuch
export nosuch
commit nosuch
import /nosuch
load -i /nosuch
login
logout localhost:5000
system df
system df --format '{{.Type}} {{.TotalCount}}'
system events --since 10m --until 0s --filter container=done --format '{{.Type}} {{.Action}} {{.Actor.Attributes.name}}'
version --format '{{.Server.Version}} {{.Server.APIVersion}}'
info --format '{{.Driver}} {{.NCPU}} {{.ServerVersion}}'
stats --no-stream --format '{{.Name}}' web
stats --no-stream nosuch
nope
"""
# The program's own summary of a command follows its usage line.
SUMMARY = re.compile(r"(Usage:  PROGRAM [^\n]*\n)(.|\n)*")
RUNNING_TIME = re.compile(r"(Up )?(About an? \w+|Less than a second|\d+ (second|minute|hour|year)s?)( ago)?")


@pytest.mark.parametrize("line", [line for line in SAME.splitlines() if line])
def test_the_same_as_docker(docker: peers.Dockerd, line: str) -> None:
    def normal(text: str) -> str:
        text = RUNNING_TIME.sub("TIME", SUMMARY.sub(r"\1", text))
        # The width of a column follows the words of the times.
        return re.sub(r"  +", "  ", text)

    argv = shlex.split(line)
    theirs, ours = both(docker, argv)
    theirs = (docker_words.of_client(theirs[0], argv), docker_words.of_client(theirs[1], argv), theirs[2])
    if argv[0] == "images":  # docker lists the names of one image in any order
        theirs, ours = (("\n".join(sorted(r[0].split("\n"))), *r[1:]) for r in (theirs, ours))
    if line == "container nope-nope --help":
        assert ours[2] == 1
        return
    assert tuple(map(normal, ours[:2])) == tuple(map(normal, theirs[:2]))
    assert ours[2] == theirs[2]


def teu(docker: peers.Dockerd, *argv: str, code: int | None = 0, stdin: str | None = None) -> str:
    return peers.run(TEU, *docker.client[1:], *argv, code=code, stdin=stdin).stdout


def test_input_half_close_and_big_streams(docker: peers.Dockerd) -> None:
    big = "0123456789abcde\n" * 200_000
    assert teu(docker, "run", "-i", "--rm", "--network=none", "busybox", "cat", stdin=big) == big
    assert teu(docker, "exec", "-i", "web", "wc", "-c", stdin=big).strip() == str(len(big))
    teu(docker, "create", "-i", "--name", "half", "--network=none", "busybox", "sh", "-c", "cat; exit 6")
    assert teu(docker, "start", "-ai", "half", stdin="in\n", code=6) == "in\n"
    assert teu(docker, "logs", "half") == "in\n"
    teu(docker, "rm", "half")


def test_signals_are_passed_on(docker: peers.Dockerd) -> None:
    script = "trap 'echo got; exit 11' TERM; echo up; while :; do sleep 0.05; done"
    argv = [TEU, *docker.client[1:], "run", "--rm", "--network=none", "busybox", "sh", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.stdout.read() == "got\n"
        assert process.wait(30) == 11


def test_copying(docker: peers.Dockerd, tmp_path: Path) -> None:
    """The rules of cp, told by what lies where afterwards: teu's copies beside docker's."""
    source = tmp_path / "d"
    (source / "sub").mkdir(parents=True)
    (source / "a").write_text("a")
    (source / "sub/b").write_text("b")
    (source / "link").symlink_to("a")
    (source / "a").chmod(0o750)
    listing = "cd {} && find . | sort | while read f; do stat -c '%N %a %s' \"$f\"; done"
    views = []
    for name, program in (("docker", "docker"), ("teu", TEU)):
        there = f"/copied-{name}"
        peers.run(program, *docker.client[1:], "exec", "web", "mkdir", there)

        def cp(*argv: str, code: int = 0, program: str = program) -> None:
            peers.run(program, *docker.client[1:], "cp", *argv, code=code)

        cp(str(source), f"web:{there}")
        cp(f"{source}/.", f"web:{there}/contents")
        cp(f"{source}/a", f"web:{there}/renamed")
        cp("-L", f"{source}/link", f"web:{there}/followed")
        cp(f"{source}/a", f"web:{there}/nosuch/", code=1)
        cp(str(source), f"web:{there}/renamed", code=1)
        inside = peers.run(program, *docker.client[1:], "exec", "web", "sh", "-c", listing.format(there)).stdout
        here = tmp_path / name
        here.mkdir()
        cp(f"web:{there}/d", str(here))
        cp(f"web:{there}/d/.", f"{here}/new")
        cp(f"web:{there}/d/a", f"{here}/file")
        cp(f"web:{there}/d/link", f"{here}/link")
        cp(f"web:{there}/nosuch", str(here), code=1)
        outside = peers.run("sh", "-c", listing.format(here)).stdout
        archive = peers.run("sh", "-c", f"{program} {shlex.join(docker.client[1:])} cp web:{there}/d - | tar t").stdout
        views.append((inside, outside, archive))
    assert views[1] == views[0]
    assert "sub/b" in views[1][0]


def test_a_hostile_archive_stays_inside(docker: peers.Dockerd, tmp_path: Path) -> None:
    """What a container sends is not trusted: a link planted in the target is not written through."""
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "d").symlink_to(outside)
    teu(docker, "exec", "web", "sh", "-c", "mkdir -p /h/d && echo x > /h/d/f")
    teu(docker, "cp", "web:/h/.", str(target), code=1)
    assert not list(outside.iterdir())


def test_images_go_out_and_come_in(docker: peers.Dockerd, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    teu(docker, "tag", "busybox", "copy:1")
    teu(docker, "save", "-o", str(archive), "copy:1")
    assert teu(docker, "rmi", "copy:1") == "Untagged: copy:1\n"
    assert teu(docker, "load", "-i", str(archive)) == "Loaded image: copy:1\n"
    assert teu(docker, "run", "--rm", "--network=none", "copy:1", "echo", "x") == "x\n"
    teu(docker, "rmi", "copy:1")
    teu(docker, "create", "--name", "src", "busybox")
    teu(docker, "export", "-o", str(archive), "src")
    imported = teu(docker, "import", "-c", "ENV A=b", "-m", "note", str(archive), "imported:1").strip()
    assert teu(docker, "inspect", "-f", "{{.Id}} {{.Config.Env}} {{.Comment}}", "imported:1").strip() == (
        f"{imported} [A=b] note"
    )
    committed = teu(docker, "commit", "-a", "me", "-c", 'CMD ["true"]', "src", "committed").strip()
    assert teu(docker, "inspect", "-f", "{{.Id}} {{.Author}} {{json .Config.Cmd}}", "committed").strip() == (
        f'{committed} me ["true"]'
    )
    teu(docker, "rm", "src")
    teu(docker, "rmi", "imported:1", "committed")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.needs("docker-registry")
def test_pull_push_and_log_in(docker: peers.Dockerd, tmp_path: Path) -> None:
    with peers.registry() as registry:
        name = f"{registry.address}/some/image:1"
        teu(docker, "tag", "busybox", name)
        pushed = teu(docker, "push", name)
        assert re.search(r"^1: digest: sha256:\w{64} size: \d+$", pushed, re.M)
        teu(docker, "rmi", name)
        theirs, ours = both(docker, ["pull", name])
        assert ours[2] == 0
        assert ours[0].splitlines()[-1] == theirs[0].splitlines()[-1] == name
        assert "Status: Image is up to date" in ours[0]
        assert teu(docker, "pull", "-q", name) == name + "\n"
        # A run of an image that is not here pulls it, and says so on standard error only.
        teu(docker, "rmi", name)
        done = peers.run(TEU, *docker.client[1:], "run", "--rm", "--network=none", name, "echo", "pulled")
        assert done.stdout == "pulled\n"
        assert f"Unable to find image '{name}' locally" in done.stderr
        assert "Status: Downloaded newer image" in done.stderr
        theirs, ours = both(docker, ["pull", f"{registry.address}/nosuch"])
        assert ours == theirs
        login = ["--config", str(tmp_path), "-H", docker.host, "login", "-u", "u", "--password-stdin"]
        done = peers.run(TEU, *login, registry.address, stdin="secret\n")
        assert done.stdout == "Login Succeeded\n"
        theirs_config = tmp_path / "theirs"
        peers.run("docker", "--config", str(theirs_config), *login[2:], registry.address, stdin="secret\n")
        assert (tmp_path / "config.json").read_text().split() == (theirs_config / "config.json").read_text().split()
        teu(docker, "rmi", name)


def test_prompts_and_prune(docker: peers.Dockerd) -> None:
    teu(docker, "create", "--name", "prunable", "--label", "p=1", "busybox")
    argv = ["container", "prune", "--filter", "label=p=1"]
    theirs, ours = both(docker, argv, stdin="n\n")
    assert ours == theirs
    assert "prunable" in teu(docker, "ps", "-a", "--format", "{{.Names}}")
    container = teu(docker, "ps", "-aq", "--no-trunc", "--filter", "name=prunable").strip()
    assert teu(docker, *argv, stdin="y\n").endswith(
        f"continue? [y/N] Deleted Containers:\n{container}\n\nTotal reclaimed space: 0B\n"
    )
    theirs, ours = both(docker, ["system", "prune", "--filter", "label=nosuch", "--volumes"], stdin="y\n")
    # Our words of the warning are our own; what was done is told alike.
    assert ours[0].splitlines()[-1] == theirs[0].splitlines()[-1]


def test_the_daemons_socket_in_a_container(docker: peers.Dockerd, tmp_path: Path) -> None:
    logins = {"auths": {"registry.example": {"auth": "bWU6d29yZA=="}}}
    (tmp_path / "config.json").write_text(json.dumps(logins))
    script = (
        "test -S /var/run/docker.sock && stat -c '%a %u' $DOCKER_CONFIG/config.json && cat $DOCKER_CONFIG/config.json"
    )
    create = ["create", "--use-api-socket", "--name", "sock", "--network=none", "busybox", "sh", "-c", script]
    peers.run(TEU, "--config", str(tmp_path), "-H", docker.host, *create)
    try:
        mode, _, text = teu(docker, "start", "-a", "sock").partition("\n")
        assert (mode, json.loads(text)) == ("600 0", logins)
    finally:
        teu(docker, "rm", "-f", "sock")


def test_many_at_once(docker: peers.Dockerd) -> None:
    names = [f"many{number}" for number in range(4)]
    for name in names:
        teu(docker, "run", "-d", "--network=none", "--name", name, "busybox", "sleep", "1000")
    started = time.monotonic()
    done = peers.run(TEU, *docker.client[1:], "stop", "-t", "2", *names, "nosuch", code=1)
    assert time.monotonic() - started < 2 * len(names), "containers are stopped one after another"
    assert done.stdout.split() == names
    assert "No such container: nosuch" in done.stderr
    assert teu(docker, "wait", *names).split() == ["137"] * 4
    assert teu(docker, "rm", *names).split() == names


def test_a_reader_that_goes_away_ends_the_output(docker: peers.Dockerd) -> None:
    command = f"{TEU} {shlex.join(docker.client[1:])} run --rm --network=none busybox yes | head -n 1"
    assert peers.run("bash", "-c", command).stdout == "y\n"
    for name in teu(docker, "ps", "-q", "--filter", "ancestor=busybox", "--no-trunc").split():
        if name != teu(docker, "inspect", "-f", "{{.Id}}", "web").strip():
            teu(docker, "rm", "-f", name)
