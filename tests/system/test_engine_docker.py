# SPDX-License-Identifier: Apache-2.0
"""teud beside Debian's dockerd: each line is given to `docker` on dockerd, to `docker` on teud and to `teu` on teud.

Output, errors and exit code are the same but for what differs by nature: IDs, times, sizes on disk, the programs' names
and folders. Flags, columns, exit codes and messages are those that docker's users know.
test_cli_docker has both clients on dockerd; its lines are given to teud here, too. docker_words has what docker 26
says otherwise than docker 28, whose words are ours."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import docker_words
import peers
import pytest
import whole
from test_cli_docker import RUNNING_TIME, SAME, SUMMARY

# Debian 12 has docker 20.10, whose words differ from those of 26.
pytestmark = pytest.mark.needs("docker", "dockerd", "trixie", "fast")

IMAGE = "alike"
CLIENT = ("--config", "/run/no-such-configuration", "-H", "unix:///run/teu/teud.sock")
Answer = tuple[str, str, int]

# What there is in each house before the first line. The ports of the two daemons differ: 1808x and 2808x.
SCENE = """
network create --subnet 10.199.0.0/24 --label k=v net1
run -d --name web -p 18080:80 -p 18081-18083:81-83/udp -v data:/data -l a=b --network net1 IMAGE sleep 100000
run --name done --log-driver json-file IMAGE sh -c 'echo out; sleep 0.1; echo err >&2; exit 3'
run --name lines --log-driver json-file --network none IMAGE sh -c 'for i in 1 2 3 4 5 6 7 8 9; do echo line $i; done'
run --name told --log-driver json-file --log-opt labels=a --log-opt env=E -l a=b -e E=f --network none IMAGE echo told
create --name notyet IMAGE true
tag IMAGE localhost:5000/x/y:z
"""

# A line may build on the lines before it; together they leave things as they were. An image that is not there is
# not asked for by name: there is no registry.
MORE = r"""
events --since nonsense
events --since 2020-01-01 --until 2020-01-02
run --rm --network none -e A=1 -e B=two -e 'C=a b' IMAGE sh -c 'echo $A $B "$C"'
run --rm --network none -e HOME=/x -e PATH=/bin IMAGE env
run --rm --network none -e UNSET_ON_THE_HOST IMAGE sh -c 'echo "${UNSET_ON_THE_HOST-none}"'
run --rm --network none -w /made/for/it IMAGE pwd
run --rm --network none -w relative IMAGE pwd
run --rm --network none -u 12:34 IMAGE id
run --rm --network none -u nobody IMAGE id
run --rm --network none -u nobody:tty IMAGE id
run --rm --network none -u 1:nosuch IMAGE id
events --since MOMENT --until 0s --filter container=told --format '{{.Type}} {{.Action}}'
events --since MOMENT --until 0s --filter type=network --filter network=net1 --format '{{.Type}} {{.Action}}'
events --since MOMENT --until 0s --filter event=create --filter container=notyet --format '{{.Action}}'
events --since MOMENT --until 0s --filter event=die --filter container=done --format '{{.Actor.Attributes.exitCode}}'
events --since MOMENT --until 0s --filter label=a=b --filter event=start --format '{{.Actor.Attributes.name}}'
events --since MOMENT --until 0s --filter type=volume --filter event=mount --filter volume=data --format '{{.Actor.ID}}'
events --since MOMENT --until 0s --filter image=nosuch
events --since MOMENT --until 0s --filter type=nope
run --rm --network none -u nosuch IMAGE id
run --rm --network none -u 0 --group-add 5 --group-add 77 IMAGE id -G
run --rm --network none -v /etc/hostname:/h:ro IMAGE sh -c 'test -s /h && touch /h'
run --rm --network none -v /tmp:/host IMAGE test -d /host
run --rm --network none -v data:/d:ro IMAGE touch /d/x
run --rm --network none -v /a:/b:nope IMAGE true
run --rm --network none -v rel/ative:/b IMAGE true
run --rm --network none -v /:relative IMAGE true
run --rm --network none -v /tmp:/ IMAGE true
run --rm --network none -v /tmp:/x -v /etc:/x IMAGE true
run --rm --network none -v :/x IMAGE true
run --rm --network none -v n/o:/x IMAGE true
run --rm --network none -v /only IMAGE grep -c ' /only ' /proc/mounts
run --rm --network none --tmpfs /t:size=1m,mode=700 IMAGE stat -c %a /t
run --rm --network none --tmpfs relative IMAGE true
run --rm --network none --mount type=volume,target=/x,readonly IMAGE touch /x/y
run --rm --network none --mount type=bind,source=relative,target=/x IMAGE true
run --rm --network none --mount type=volume IMAGE true
run --rm --network none --volumes-from web:ro IMAGE touch /data/x
run --rm --network none --volumes-from nosuch IMAGE true
run --rm --entrypoint /bin/echo --network none IMAGE a b
run --rm --entrypoint '' --network none IMAGE echo plain
run --rm --entrypoint nosuch --network none IMAGE
run --rm --entrypoint /etc/passwd --network none IMAGE
run --rm --network none --hostname box IMAGE hostname
run --rm --network none --hostname box --domainname example.org IMAGE sh -c 'hostname; cat /etc/hostname'
run --rm --network host --hostname box IMAGE cat /etc/hostname
run --rm --network none --hostname 'bad name' IMAGE true
run --rm --network none --log-driver none IMAGE echo seen
run --rm --network none --log-driver json-file --log-opt max-size=1m --log-opt max-file=2 IMAGE echo seen
run --rm --network none --log-driver json-file --log-opt nosuch=1 IMAGE echo seen
run --rm --network none --log-driver journald --log-opt nosuch=1 IMAGE true
run --rm --network none -i IMAGE cat
run --rm --network none -a stdout IMAGE sh -c 'echo out; echo err >&2'
run --rm --network none -a stderr IMAGE sh -c 'echo out; echo err >&2'
run --rm --network none --init IMAGE sh -c 'exit 4'
run --rm --network none IMAGE sh -c 'kill -TERM $$'
run --rm --network none IMAGE sh -c 'exit 255'
run --rm --network none IMAGE ''
run --rm --network none IMAGE ./nosuch
run --rm --network none --user 1 IMAGE cat /etc/shadow
run --rm --network none --privileged IMAGE grep CapEff /proc/self/status
run --rm --network none IMAGE grep Cap /proc/self/status
run --rm --network none --cap-add NET_ADMIN --cap-drop CHOWN IMAGE grep CapBnd /proc/self/status
run --rm --network none --cap-add ALL IMAGE grep CapEff /proc/self/status
run --rm --network none -u 1 --cap-add NET_RAW IMAGE grep Cap /proc/self/status
run --rm --network none --security-opt no-new-privileges IMAGE grep NoNewPrivs /proc/self/status
run --rm --network none --security-opt nope IMAGE true
run --rm --network none --security-opt seccomp=unconfined IMAGE grep Seccomp: /proc/self/status
run --rm --network none IMAGE grep Seccomp: /proc/self/status
run --rm --network none --oom-score-adj 300 IMAGE cat /proc/self/oom_score_adj
run --rm --network none --oom-score-adj 3000 IMAGE true
run --rm --network none --sysctl net.ipv4.ip_forward=0 IMAGE cat /proc/sys/net/ipv4/ip_forward
run --rm --network none --sysctl kernel.nosuch=1 IMAGE true
run --rm --network none --shm-size 1m IMAGE sh -c 'df -k /dev/shm | tail -n 1 | tr -s " " | cut -d" " -f2'
run --rm --network none --device /dev/null:/dev/xx IMAGE test -c /dev/xx
run --rm --network none --device /dev/nosuch IMAGE true
run --rm --network none --pids-limit -1 IMAGE true
run --rm --network none --memory 1m IMAGE true
run --rm --network none --stop-signal NOPE IMAGE true
run --rm --network none --ipc nope IMAGE true
run --rm --network none --uts nope IMAGE true
run --rm --network none --uts host --hostname x IMAGE true
run --rm --network none --userns nope IMAGE true
run --rm --network none --pid container:nosuch IMAGE true
run --rm --network none --cgroupns nope IMAGE true
run --rm --network container:web IMAGE sh -c 'ip -4 -o addr show eth0 | grep -o 10.199.0'
run --rm --network container:web -p 1:1 IMAGE true
run --rm --network container:web --hostname x IMAGE true
run --rm --network host --ip 1.2.3.4 IMAGE true
run --rm --network net1 --ip 1.2.3.4 IMAGE true
run --rm --network net1 --ip 10.199.0.77 IMAGE sh -c 'ip -4 -o addr show eth0 | grep -o 10.199.0.77/24'
run --rm --network net1 --network-alias x --ip nope IMAGE true
run --rm --mac-address nope IMAGE true
run --rm --mac-address 02:42:00:00:00:07 IMAGE cat /sys/class/net/eth0/address
run --rm -p 18080:80 IMAGE true
run --rm -p 70000:80 IMAGE true
run --rm -p 80/nope IMAGE true
run --rm -p 1.2.3:80:80 IMAGE true
run --rm --expose nope IMAGE true
run --rm --network none --add-host nope IMAGE true
run --rm --network none --restart on-failure:x IMAGE true
run --rm --network none --health-cmd x --no-healthcheck IMAGE true
run --rm --network none --read-only --tmpfs /tmp IMAGE touch /tmp/x
run --rm --network none --ulimit core=0 --ulimit nproc=5:6 IMAGE sh -c 'ulimit -c'
run --rm --network none --annotation a=b IMAGE true
run --rm --name 'bad name' IMAGE true
run --rm --name web IMAGE true
create --name x1 --network none IMAGE sh -c 'exit 3'
start x1
wait x1
start -a x1
start --attach --interactive x1
start nosuch x1
restart -t 0 x1
wait x1
inspect -f '{{.State.Status}} {{.RestartCount}} {{.HostConfig.NetworkMode}} {{.Name}} {{.Path}} {{.Args}}' x1
rename x1 x2
rename x2 x2
rm x2 nosuch
create --name v1 -v /anonymous --network none IMAGE true
rm -v v1
run -d --name s1 --network none --stop-signal USR1 IMAGE sh -c 'trap "exit 7" USR1; while :; do sleep 0.05; done'
exec s1 true
stop s1
wait s1
start s1
kill -s nope s1
kill -s 99 s1
kill -s WINCH s1
restart -s USR1 s1
restart -t 0 s1 nosuch
kill --signal SIGUSR1 s1
wait s1 done
kill s1
pause s1
start s1
pause s1
ps --filter status=paused --format '{{.Names}} {{.State}}'
exec s1 true
pause s1
unpause s1
unpause s1
update --restart unless-stopped s1
stop -t 0 s1
rm s1
wait nosuch done
exec -e A=b web sh -c 'echo $A'
exec -w /etc web pwd
exec -u nobody web id
exec --privileged web grep CapEff /proc/self/status
exec web grep CapEff /proc/self/status
exec -d web true
exec -i web cat
exec web sh -c 'kill -9 $$'
exec notyet true
exec web
exec --env-file /nosuch web true
logs lines
logs -n 2 lines
logs --tail 0 lines
logs --tail all lines
logs --tail nope lines
logs --tail -3 lines
logs --since 1h lines
logs --since 0 -n 1 lines
logs --until 1h lines
logs --since 2020-01-01T00:00:00 --until 2020-01-02 lines
logs --until nonsense lines
logs --details told
logs --details lines
logs -f lines
logs -t nosuch
top web -eo pid,comm
top web -o nope
top notyet
top nosuch
ps -a --filter name=e
ps -a --filter name=^/done$
ps -a --filter exited=3 --format '{{.Names}}'
ps -a --filter status=nope
ps -a --filter status=created --format '{{.Names}}'
ps -a --filter label=a --format '{{.Names}}'
ps -a --filter label=a=c --format '{{.Names}}'
ps -a --filter before=lines --format '{{.Names}}'
ps -a --filter since=lines --format '{{.Names}}'
ps -a --filter since=nosuch
ps -a --filter volume=data --format '{{.Names}}'
ps -a --filter network=net1 --format '{{.Names}}'
ps -a --filter network=nosuch
ps -a --filter publish=18080 --format '{{.Names}}'
ps -a --filter publish=18081/udp --format '{{.Names}}'
ps -a --filter expose=80-90/tcp --format '{{.Names}}'
ps -a --filter ancestor=IMAGE --format '{{.Names}}'
ps -a --filter ancestor=nosuch
ps -a --filter health=none --format '{{.Names}}'
ps -a --filter health=nope
ps -a --filter is-task=true
ps -a --filter id=zzz
ps -n 2 --format '{{.Names}}'
ps -n -5 --format '{{.Names}}'
ps -a --format '{{.Names}} {{.Ports}}' --filter name=web
ps -a --format 'table {{.ID}}\t{{.Command}}' --no-trunc --filter name=lines
port web 80/tcp
port notyet
port nosuch
diff notyet
diff nosuch
inspect -f '{{json .HostConfig.PortBindings}} {{json .NetworkSettings.Ports}}' web
inspect -f '{{json .Mounts}}' notyet
inspect -f '{{range .Mounts}}{{.Type}} {{.Name}} {{.Destination}} {{.Driver}} {{.Mode}} {{.RW}}{{end}}' web
inspect -f '{{json .Config}}' told
inspect -f '{{json .HostConfig.LogConfig}}' told
inspect -f '{{json .HostConfig.RestartPolicy}} {{.HostConfig.ShmSize}} {{.HostConfig.IpcMode}}' web
inspect -f '{{.State.Running}} {{.State.Paused}} {{.State.Dead}} {{.State.Error}} {{.State.OOMKilled}}' done
inspect -f '{{json .State}}' notyet
inspect -f '{{json .NetworkSettings.Networks.net1.IPAMConfig}}' web
inspect --type container IMAGE
image inspect -f '{{.Os}} {{json .RootFS}} {{json .Config.Env}} {{json .RepoTags}}' IMAGE
image inspect -f '{{.Id}}' IMAGE nosuch
image inspect -f '{{json .Config}}' IMAGE
images --filter dangling=true
images --filter reference=al* --format '{{.Repository}}'
images --filter nope=1
images --filter label=x -q
images --filter before=nosuch
images --no-trunc --format '{{.ID}}' IMAGE:latest
images IMAGE:nosuch
tag IMAGE other:1
tag IMAGE other:2
tag IMAGE other/x/y
tag IMAGE
tag IMAGE a:b:c
tag IMAGE sha256:x
rmi other:1 other:2
rmi other/x/y nosuch
rmi -f nosuch other/x/y
rmi --no-prune nosuch
save
save nosuch IMAGE
load -i /nosuch
import /nosuch x:1
import - UP
history -q nosuch
history --format '{{.CreatedBy}} {{.Comment}}' IMAGE
commit -p nosuch x
commit -c NOPE notyet x
export nosuch -o /tmp/x
cp nosuch:/x /tmp
cp web:/nosuch /tmp
cp web:/x web:/y
cp /etc/passwd web:/nosuch/dir/
network create net1
network create --driver nosuch n
network create --subnet 10.199.0.0/25 n
network create --subnet 10.198.0.0/24 --gateway 1.2.3.4 n
network create --subnet 10.198.0.0/24 --ip-range 1.2.3.0/24 n
network create host
network rm nosuch net1
network rm host
network connect net1 web
network connect nosuch web
network connect host web
network connect net1 nosuch
network disconnect net1 notyet
network disconnect nosuch web
network ls --filter name=net1 --format '{{.Name}} {{.Driver}}'
network ls --filter driver=host --format '{{.Name}}'
network ls --filter nope=x
network ls --filter label=k=v --format '{{.Name}}'
network inspect -f '{{.Driver}} {{.Scope}} {{.Internal}} {{.EnableIPv6}} {{json .Labels}}' net1
network inspect -f '{{range .Containers}}{{.Name}}{{end}}' net1
volume create --label a=b named
volume create named
volume create 'bad name'
volume create --driver nosuch x
volume inspect -f '{{json .Labels}} {{.Scope}} {{json .Options}}' named
volume ls --filter label=a --format '{{.Name}}'
volume ls --filter dangling=true -q --filter name=named
volume ls --filter nope=x
volume rm named nosuch
volume rm data
volume rm -f nosuch
version --format '{{.Client.Os}} {{.Server.Os}} {{.Server.Arch}} {{.Server.MinAPIVersion}}'
info --format '{{.OSType}} {{.Architecture}} {{.NCPU}} {{.CgroupVersion}} {{.Swarm.LocalNodeState}}'
info --format '{{.Name}} {{.KernelVersion}} {{.OperatingSystem}} {{json .RegistryConfig.InsecureRegistryCIDRs}}'
system df --format '{{.Type}}'
search
stats --no-stream --format '{{.Name}}' web
stats --no-stream --no-trunc --format '{{.Container}}' nosuch
attach notyet
attach nosuch
container prune --filter nope=1 -f
container prune -f --filter label=nosuch
image prune -f --filter label=nosuch
network prune -f --filter label=nosuch
volume prune -f --filter label=nosuch
container ls --filter name=nope
container inspect -f '{{.Config.Image}}' web
container rm web
container stop nosuch
update --restart=no web
update --memory 4k notyet
update nosuch
"""

# Of test_cli_docker's lines, those whose answers differ, and why.
DIFFERENT = {
    "container nope-nope --help",  # help's own words
    "network create --subnet nope n",  # the message tells the form that is expected
    "inspect web",
    "inspect done notyet",
    "inspect web nosuch",  # folders, drivers; docker-py reads them elsewhere
    "network inspect net1 -f '{{.Name}} {{json .IPAM.Config}}'",  # the gateway is shown although nobody chose it
    "run --network nosuch busybox",  # refused at once; dockerd leaves a container behind
    "network ls --format '{{.Name}} {{.Driver}} {{.Scope}} {{.Labels}}'",  # docker lists in any order
    "system events --since 10m --until 0s --filter container=done --format '{{.Type}} {{.Action}}"
    " {{.Actor.Attributes.name}}'",  # what went before; MORE asks from the beginning of the scene
    "system df",
    "system df --format '{{.Type}} {{.TotalCount}}'",  # sizes; dockerd counts what has failed to start
    "version --format '{{.Server.Version}} {{.Server.APIVersion}}'",
    "info --format '{{.Driver}} {{.NCPU}} {{.ServerVersion}}'",
    "run --memory x busybox",
    "nope",
}
# Exit codes of docker 26 where 28 has others, which are ours.
CODES_OF_26 = {"exec web nosuch": 126}  # whatever did not start; 28: 127, as with `run`
# dockerd looks for a plugin of that name for 15 s. They make nothing, so the other lines need not wait for them.
WAITING = ["network create --driver nosuch n", "volume create --driver nosuch x"]
# What a client alone refuses is the same whatever the daemon.
OLD = [
    line
    for line in SAME.splitlines()
    if line
    and line not in DIFFERENT
    and not re.match(r"run (?!--rm|--name|--network|--runtime)|create|login|logout|history|port|volume|rename", line)
]
LINES = [line for line in MORE.splitlines() if line]


def shown(line: str) -> str:
    """The line as it is given: test_cli_docker's image may be on teud already, with other contents."""
    return re.sub(r"\b(busybox|IMAGE)\b", IMAGE, line)


def ask(base: list[str], lines: list[str], began: float) -> list[Answer]:
    """Each line's answer."""
    # That of Debian's docker.
    version = ".".join(map(str, peers.docker_api()))
    environment = {**os.environ, "DOCKER_CLI_HINTS": "false", "TEU_API_VERSION": version}
    result = []
    for line in lines:
        text = shown(line).replace("MOMENT", f"{began:.6f}")
        if CLIENT[-1] in base:
            text = text.replace("18080", "28080").replace("1808", "2808")
        done = subprocess.run(
            [*base, *shlex.split(text)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=100,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd="/tmp",
        )
        docker = base[0] == "docker"
        result.append((normal(line, done.stdout, docker), normal(line, done.stderr, docker), done.returncode))
    return result


def normal(line: str, text: str, docker: bool) -> str:
    """Without what differs by nature; what `docker` said in the words of its newest version here."""
    text = re.sub(r"\b(docker|teu)(?=[: ]|$)", "PROGRAM", re.sub(r"[0-9a-f]{12,64}", "ID", text))
    if docker:
        text = docker_words.newest(text, shlex.split(line))
    text = re.sub(r"\b2808", "1808", text)
    text = re.sub(r"\b\d+(\.\d+)?[kM]?B\b", "SIZE", text)
    # Docker's client packs for somebody who may not want it, and tells of that if it comes so far.
    text = re.sub(r"(?m)^time=\S+ level=error msg=\"Can't add file .* closed pipe\"\n", "", text)
    text = re.sub(r"20\d\d-\d\d-\d\d[T ][0-9:.]+(Z| \+0000 UTC)", "WHEN", text)
    # docker's proxy of published ports listens for IPv6, too.
    text = re.sub(r", \[::\]:\d+->\d+/\w+|\S+ -> \[::\]:\d+\n|(?m:^\[::\]:\d+\n)", "", text)
    text = re.sub(r',\{"HostIp":"::","HostPort":"\d+"\}', "", text)
    text = re.sub(r"Bind for (:::|0\.0\.0\.0:)", "Bind for ", text)
    # Of docker's two stores of images it is the one with manifests, as ours is, that tells a container's platform.
    text = re.sub(r'"Platform":\{[^}]*\}', '"Platform":null', text)
    text = re.sub(r"(endpoint )\w+_\w+( )", r"\1NAME\2", text)
    # runc's words vary from release to release; a status of gRPC is at their end.
    text = text.replace("error during container init: ", "").replace(": unknown.", ".").replace(": unknown\n", "\n")
    text = (
        text.replace(": permission denied: permission denied", ": permission denied")
        .replace("is a directory: permission denied", "is a directory")
        .replace(": unknown: permission denied", "")
    )
    if line.startswith("top"):
        text = re.sub(r"(?m)^(\w+ +)?\d+ .*?(sleep)", r"\1 \2", text)
    if line.startswith("images"):  # docker lists the names of one image in any order, and teud has others
        text = "\n".join(sorted(row for row in text.split("\n") if "busybox" not in row))
        if "-q" in line.split():
            text = text[:9]
    text = RUNNING_TIME.sub("TIME", SUMMARY.sub(r"\1", text))
    # The width of a column follows the words of the times; dashes of bare rows do not count.
    return re.sub(r"  +", "  ", text)


def lost(theirs: Answer, ours: Answer) -> bool:
    """Whether dockerd lost the end of a container's output, which it was seen to do on a busy machine with what a
    process writes right before its end. Only an answer that lacks its end is asked for again: all else counts."""
    return theirs != ours and theirs[2] == ours[2] and ours[0].startswith(theirs[0]) and ours[1].startswith(theirs[1])


def clear() -> None:
    whole.remove_everything()
    whole.teu("volume", "rm", "-f", "data", "named", check=False)
    whole.teu("network", "rm", "net1", check=False)
    whole.teu("rmi", "-f", "localhost:5000/x/y:z", "other:1", IMAGE, check=False)
    whole.teu("image", "prune", "-f")  # what another test's builds left would be in the lists


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Answer]]]:
    """What each house answered to each line. The two daemons are asked side by side."""
    name = f"docker.io/library/{IMAGE}:latest"
    archive = str(peers.busybox_archive(tmp_path_factory.mktemp("image") / "alike.tar", name))
    scene = [line for line in SCENE.splitlines() if line]
    found: dict[str, list[Answer]] = {}

    def play(base: list[str], lines: list[str]) -> list[Answer]:
        began = time.time()
        for line, answer in zip(scene, ask(base, scene, began), strict=True):
            assert answer[2] == (3 if " done " in line else 0), (base, line, answer)
        return ask(base, lines, began)

    clear()
    try:
        with peers.dockerd(network=True) as dockerd, ThreadPoolExecutor(1 + len(WAITING)) as beside:
            dockerd("load", "-i", archive)
            theirs = beside.submit(play, dockerd.client, [line for line in (*LINES, *OLD) if line not in WAITING])
            waited = [beside.submit(ask, dockerd.client, [line], 0.0) for line in WAITING]
            whole.teu("load", "-i", archive)
            docker = play(["docker", *CLIENT], [*LINES, *OLD])
            clear()
            whole.teu("load", "-i", archive)
            teu = play(["teu", *CLIENT], LINES)
            real = theirs.result()
            for line, one in sorted(zip(WAITING, waited, strict=True), key=lambda pair: LINES.index(pair[0])):
                real.insert(LINES.index(line), one.result()[0])
            for number, line in enumerate(LINES):
                if line.startswith("run --rm ") and lost(real[number], docker[number]):
                    real[number] = ask(dockerd.client, [line], 0.0)[0]
            for line, *three in zip([*LINES, *OLD], real, docker, [*teu, *docker[len(teu) :]], strict=True):
                found[line] = three
        yield found
    finally:
        clear()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("line", [*LINES, *OLD])
def test_the_same_as_docker(answers: dict[str, list[Answer]], line: str) -> None:
    theirs, docker, teu = answers[line]
    if docker_words.older() and line in CODES_OF_26:
        assert theirs[2] == CODES_OF_26[line] != docker[2]
        theirs = (*theirs[:2], docker[2])
    assert docker == theirs, "docker on teud"
    assert teu == theirs, "teu on teud"
