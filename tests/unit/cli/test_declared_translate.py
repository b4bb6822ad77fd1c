# SPDX-License-Identifier: Apache-2.0
"""Declared files become units: every key of podman's is used or refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from teu.cli.declared import files, keys, translate
from teu.cli.declared.translate import House, Unit
from teu.systemd import logfields


def made(folder: Path, **texts: str) -> tuple[dict[str, Unit], list[str]]:
    """Units by name, and problems, of files: web_container is web.container."""
    for name, text in texts.items():
        stem, _, kind = name.rpartition("_")
        (folder / f"{stem.replace('__', '@')}.{kind}").write_text(text)
    declared, problems = files.load((str(folder),))
    house = House(declared)
    units = {}
    for one in declared.values():
        unit = translate.translate(house, one)
        units[unit.name] = unit
        problems += one.problems
    return units, [str(problem).removeprefix(f"{folder}/") for problem in problems]


def container(folder: Path, lines: str, more: str = "") -> Unit:
    units, problems = made(folder, web_container=f"[Container]\nImage=busybox\n{lines}\n{more}")
    assert not problems
    return units["web.service"]


def options(unit: Unit) -> list[str]:
    return unit.command[2 : unit.command.index("--")]


def refused(folder: Path, lines: str, more: str = "") -> str:
    """The problem of a container's file whose third line is the first of `lines`."""
    units, problems = made(folder, web_container=f"[Container]\nImage=busybox\n{lines}\n{more}")
    assert len(problems) == 1, problems
    assert "validate" in units["web.service"].text
    return problems[0]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("AddCapability=CAP_A CAP_B", ["--cap-add=CAP_A", "--cap-add=CAP_B"]),
        ("AddDevice=-/dev/a /dev/b:/dev/c", ["--device-if-there=/dev/a", "--device=/dev/b:/dev/c"]),
        ("AddHost=a:1.2.3.4", ["--add-host=a:1.2.3.4"]),
        ("Annotation=a=1 'b=2 3'", ["--annotation=a=1", "--annotation=b=2 3"]),
        ("AutoUpdate=registry", ["--label=io.containers.autoupdate=registry"]),
        ("AppArmor=unconfined", ["--security-opt=apparmor=unconfined"]),
        ("CgroupsMode=split", []),
        ("DNS=1.1.1.1\nDNSOption=ndots:1\nDNSSearch=x", ["--dns=1.1.1.1", "--dns-option=ndots:1", "--dns-search=x"]),
        ("DropCapability=all", ["--cap-drop=all"]),
        ('Entrypoint=["a","b"]', ['--entrypoint=["a","b"]']),
        ("Environment=A=1 'B=2 3'\nEnvironment=C=%i", ["--env=A=1", "--env=B=2 3", "--env=C=%i"]),
        ("EnvironmentFile=/etc/a %h/b", ["--env-file=/etc/a", "--env-file=%h/b"]),
        ("EnvironmentHost=yes", ["--env-host"]),
        ("ExposeHostPort=50-59", ["--expose=50-59"]),
        ("User=1\nGroup=2\nGroupAdd=3", ["--user=1:2", "--group-add=3"]),
        (
            "HealthCmd=a b\nHealthInterval=5s\nHealthRetries=2",
            ["--health-cmd=a b", "--health-interval=5s", "--health-retries=2"],
        ),
        ("HealthCmd=none", ["--no-healthcheck"]),
        ("HealthTimeout=1s\nHealthStartPeriod=2s", ["--health-timeout=1s", "--health-start-period=2s"]),
        ("HealthOnFailure=kill\nHealthLogDestination=local", ["--health-on-failure=kill"]),
        ("HostName=h\nIP=1.2.3.4\nIP6=::1", ["--hostname=h", "--ip=1.2.3.4", "--ip6=::1"]),
        ("HttpProxy=yes", ["--http-proxy"]),
        ("Label=a=1 b=2", ["--label=a=1", "--label=b=2"]),
        ("LogDriver=json-file\nLogOpt=max-size=1m", ["--log-driver=json-file", "--log-opt=max-size=1m"]),
        ("Mask=/a:/b\nUnmask=ALL", ["--mask=/a:/b", "--unmask=ALL"]),
        ("Memory=1g\nPidsLimit=5\nShmSize=1m", ["--memory=1g", "--pids-limit=5", "--shm-size=1m"]),
        ("Mount=type=tmpfs,target=/x", ["--mount=type=tmpfs,target=/x"]),
        ("Network=host", ["--network=host"]),
        (
            "Network=n:ip=1.2.3.4,alias=a,mac=x\nNetworkAlias=b",
            ["--network=name=n,ip=1.2.3.4,alias=a,mac-address=x", "--network-alias=b"],
        ),
        ("Network=container:other", ["--network=container:other"]),
        ("NoNewPrivileges=yes", ["--security-opt=no-new-privileges"]),
        ("Notify=healthy", ["--notify=healthy"]),
        ("Notify=true", ["--notify=container"]),
        ("PodmanArgs=--cpus 2 '--label=a b'", ["--cpus", "2", "--label=a b"]),
        ("PublishPort=8080:80", ["--publish=8080:80"]),
        ("Pull=newer\nRetry=2\nRetryDelay=1s", ["--pull=newer", "--retry=2", "--retry-delay=1s"]),
        ("ReadOnly=yes\nReadOnlyTmpfs=no", ["--read-only", "--read-only-tmpfs=false"]),
        ("RunInit=yes", ["--init"]),
        (
            "SeccompProfile=/a.json\nSecurityLabelDisable=yes",
            ["--security-opt=seccomp=/a.json", "--security-opt=label=disable"],
        ),
        ("StopSignal=SIGINT\nStopTimeout=5", ["--stop-signal=SIGINT", "--stop-timeout=5"]),
        ("Sysctl=net.a=1 net.b=2", ["--sysctl=net.a=1", "--sysctl=net.b=2"]),
        ("Timezone=local", ["--tz=local"]),
        ("Tmpfs=/work:rw", ["--tmpfs=/work:rw"]),
        ("Ulimit=nofile=1:2", ["--ulimit=nofile=1:2"]),
        ("UserNS=host", ["--userns=host"]),
        ("VolatileTmp=yes", ["--tmpfs=/tmp:rw,size=512M,mode=1777"]),
        ("Volume=/a:/b:ro\nVolume=name:/c\nVolume=/d", ["--volume=/a:/b:ro", "--volume=name:/c", "--volume=/d"]),
        ("WorkingDir=/w", ["--workdir=/w"]),
        ("Secret=db,type=env,target=DB", ["--secret=db,type=env,target=DB"]),
    ],
)
def test_keys_become_options(tmp_path: Path, lines: str, expected: list[str]) -> None:
    found = [word for word in options(container(tmp_path, lines)) if not word.startswith(("--unit=", "--name="))]
    found = [word for word in found if word != "--log-driver=journald"]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("Volume=/run/systemd/journal/socket:/run/systemd/journal/socket", True),
        ("Volume=/dev/log:/dev/log:rw", True),
        ("Volume=/run:/run:ro", True),
        ("Mount=type=bind,source=/run/systemd/journal,target=/j", True),
        ("Mount=type=bind,src=/,target=/host", True),
        ("Volume=/run/systemd/journalx:/x\nVolume=/srv:/dev/log\nMount=type=tmpfs,target=/dev/log", False),
    ],
)
def test_a_socket_of_the_journals_gives_its_messages_the_name(tmp_path: Path, lines: str, told: bool) -> None:
    text = container(tmp_path, lines).text
    assert ("\nLogExtraFields=CONTAINER_NAME=systemd-%N\n" in text) is told, text


def test_every_key_is_in_the_table_and_says_what_becomes_of_it(tmp_path: Path) -> None:
    for kind, (section, table) in keys.SECTIONS.items():
        for key, how in table.items():
            assert how == "own" or how.partition(" ")[0] in ("flag", "all", "words", "truth", "no:"), f"{section} {key}"
            if how.startswith("no: "):
                _, problems = made(
                    tmp_path, **{f"web_{kind}": f"[{section}]\nImage=x\nImageTag=x\nFile=/x\n{key}=yes\n"}
                )
                assert any(f"web.{kind}:5: {key}= is refused: {how[4:]}" == problem for problem in problems), problems
                (tmp_path / f"web.{kind}").unlink()


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ("Imagination=1", "has no key Imagination"),
        ("AutoUpdate=yes", "registry or local"),
        ("AutoUpdate=local\nPull=always", "taken back"),
        ("CgroupsMode=enabled", "split"),
        ("Group=1", "needs User="),
        ("GroupAdd=keep-groups", "keep-groups"),
        ("HealthInterval=disable", "HealthCmd=none"),
        ("HealthLogDestination=/x", "last five"),
        ("HealthOnFailure=pray", "none, kill, restart or stop"),
        ("LogDriver=k8s-file", "podman's alone"),
        ("Mount=type=glob,src=x,target=/x", "type=glob"),
        ("Network=pasta", "podman's alone"),
        ("Network=n:interface_name=x", "interface_name"),
        ("Network=none.network", "no file none.network"),
        ("Notify=maybe", "neither yes nor no"),
        ("Pod=x", "NAME.pod"),
        ("Pod=x.pod", "no file x.pod"),
        ("PodmanArgs=--restart=always", "Restart="),
        ("Pull=perhaps", "always, missing, never or newer"),
        ("Secret=a,colour=red", "colour"),
        ("StopTimeout=long", "whole seconds"),
        ("UserNS=keep-id", "UserNS=host"),
        ("Volume=/a:/b:U", "option U"),
        ("Volume=none.volume:/b", "no file none.volume"),
        ("Exec='a", "not closed"),
        ("ReadOnly=perhaps", "neither yes nor no"),
    ],
)
def test_what_cannot_be_has_its_line(tmp_path: Path, lines: str, wrong: str) -> None:
    problem = refused(tmp_path, lines)
    assert problem.startswith("web.container:3: ") and wrong in problem


def test_what_systemd_is_told(tmp_path: Path) -> None:
    text = container(
        tmp_path, "StopTimeout=100\nReloadSignal=HUP\nVolume=/srv/x:/x", "[Service]\nRestart=always\n"
    ).text
    for line in (
        "Type=notify",
        "NotifyAccess=main",
        "Delegate=yes",
        "KillMode=mixed",
        "TimeoutStopSec=120",
        "ExecReload=/usr/bin/teu kill --signal=HUP systemd-%N",
        "RequiresMountsFor=/srv/x",
        "Requires=teud.socket",
        "Wants=network-online.target",
        "Restart=always",
        "ExecStopPost=-/usr/libexec/teu/teu-unit remove --unit=%n systemd-%N",
        "SyslogIdentifier=%N",
    ):
        assert f"\n{line}\n" in text, text


def test_what_was_given_counts_more(tmp_path: Path) -> None:
    more = "[Unit]\nDescription=Mine\n[Service]\nTimeoutStopSec=5\nSyslogIdentifier=me\nExecStartPre=/bin/true\n"
    more += "[Quadlet]\nDefaultDependencies=no\n"
    text = container(tmp_path, "StopTimeout=100\nReloadCmd=a 'b c'", more).text
    assert text.count("TimeoutStopSec=") == 1 and "TimeoutStopSec=5" in text
    assert text.count("SyslogIdentifier=") == 1 and text.count("Description=") == 1
    assert "network-online" not in text
    assert 'ExecReload=/usr/bin/teu exec systemd-%N a "b c"' in text and "ExecStartPre=/bin/true" in text


@pytest.mark.parametrize(
    "line", ["Type=simple", "KillMode=process", "ExecStart=/bin/x", "NotifyAccess=all", "Delegate=no"]
)
def test_what_would_break_the_unit_is_refused(tmp_path: Path, line: str) -> None:
    assert refused(tmp_path, "Exec=x", f"[Service]\n{line}\n").startswith("web.container:5: ")


def test_a_task_that_ends(tmp_path: Path) -> None:
    text = container(tmp_path, "Exec=true", "[Service]\nType=oneshot\n").text
    assert text.count("Type=") == 1 and "NotifyAccess" not in text


def test_files_name_each_other(tmp_path: Path) -> None:
    units, problems = made(
        tmp_path,
        web_container="[Unit]\nAfter=db.container x.service\n[Container]\nImage=app.image\nVolume=data.volume:/d\n"
        "Network=net.network\nMount=type=volume,source=own.volume,target=/o\n",
        db_container="[Container]\nImage=busybox\nContainerName=db\n",
        side_container="[Container]\nImage=busybox\nNetwork=db.container\n",
        app_image="[Image]\nImage=example.org/app:1\n",
        data_volume="[Volume]\n",
        own_volume="[Volume]\nVolumeName=mine\n",
        net_network="[Network]\nServiceName=wire\n",
    )
    assert not problems
    web = units["web.service"]
    assert web.command[web.command.index("--") + 1] == "example.org/app:1"
    assert {"--volume=systemd-data:/d", "--network=systemd-net", "--mount=type=volume,source=mine,target=/o"} <= set(
        web.command
    )
    for line in ("Requires=data-volume.service", "Requires=wire.service", "Requires=own-volume.service"):
        assert line in web.text
    assert "Requires=app-image.service\nAfter=app-image.service" in web.text
    assert "\nAfter=db.service x.service\n" in web.text
    side = units["side.service"]
    assert "--network=container:db" in side.command and "BindsTo=db.service" in side.text


def test_pods_and_their_members(tmp_path: Path) -> None:
    units, problems = made(
        tmp_path,
        web_pod="[Pod]\nPublishPort=80:80\nVolume=shared:/s\n",
        a_container="[Container]\nImage=busybox\nPod=web.pod\n",
        b_container="[Container]\nImage=busybox\nPod=web.pod\nStartWithPod=no\n",
        c_container="[Container]\nImage=busybox\nPod=web.pod\nPublishPort=1:1\n",
    )
    assert len(problems) == 1 and problems[0].startswith("c.container:4: PublishPort= belongs into web.pod")
    pod, member = units["web-pod.service"], units["a.service"]
    assert "--publish=80:80" in pod.command and "--name=systemd-web" in pod.command
    assert "Wants=a.service\nBefore=a.service" in pod.text and "Wants=b.service" not in pod.text
    assert "StopWhenUnneeded=yes" in pod.text and "BindsTo=web-pod.service" in member.text
    assert {"--network=container:systemd-web", "--ipc=container:systemd-web", "--volume=shared:/s"} <= set(
        member.command
    )


def test_templates(tmp_path: Path) -> None:
    units, problems = made(
        tmp_path,
        t___container="[Container]\nImage=busybox\nExec=sleep %i\nVolume=d@%i.volume:/d\n",
        d___volume="[Volume]\n",
    )
    assert not problems
    text = units["t@.service"].text
    assert "--name=systemd-%p_%i" in text and "sleep %i" in text and "--volume=systemd-d_%i:/d" in text
    assert "Requires=d-volume@%i.service" in text and "-- systemd-d_%i" in units["d-volume@.service"].text


def test_networks_and_volumes(tmp_path: Path) -> None:
    units, problems = made(
        tmp_path,
        net_network="[Network]\nSubnet=10.1.0.0/24\nGateway=10.1.0.1\nIPRange=10.1.0.0/28\nInternal=yes\nIPv6=no\n"
        "InterfaceName=br9\nOptions=mtu=1400\nLabel=a=1\nNetworkDeleteOnStop=yes\n",
        d_volume="[Volume]\nDevice=/dev/sdb\nType=ext4\nOptions=noatime\nUser=root\nGroup=root\nCopy=yes\n",
    )
    assert not problems
    assert units["net-network.service"].command[3:] == [
        "--gateway=10.1.0.1",
        "--ip-range=10.1.0.0/28",
        "--ipv6=false",
        "--internal",
        "--label=a=1",
        "--subnet=10.1.0.0/24",
        "--opt=com.docker.network.bridge.name=br9",
        "--opt=com.docker.network.driver.mtu=1400",
        "--",
        "systemd-net",
    ]
    assert "ExecStopPost=-/usr/bin/teu network rm systemd-net" in units["net-network.service"].text
    volume = units["d-volume.service"]
    assert {"--opt=device=/dev/sdb", "--opt=type=ext4", "--opt=o=noatime", "--owner=root", "--owner-group=root"} <= set(
        volume.command
    )
    assert "Type=oneshot\nRemainAfterExit=yes" in volume.text


@pytest.mark.parametrize(
    ("kind", "text", "wrong"),
    [
        ("network", "[Network]\nDisableDNS=yes\n", "2: DisableDNS"),
        ("network", "[Network]\nIPAMDriver=dhcp\n", "2: IPAMDriver"),
        ("network", "[Network]\nOptions=isolate=true\n", "2: Options"),
        ("volume", "[Volume]\nType=ext4\n", "2: Type= needs Device="),
        ("volume", "[Volume]\nCopy=no\n", "2: Copy"),
        ("volume", "[Volume]\nDriver=image\n", "2: Driver"),
        ("image", "[Image]\n", "has no Image="),
        ("image", "[Image]\nImage=oci-archive:/x\n", "2: Image"),
        ("image", "[Image]\nImage=x\nTLSVerify=no\n", "3: TLSVerify"),
        ("image", "[Image]\nImage=x\nVariant=v7\n", "3: Variant= needs Arch="),
        ("build", "[Build]\nFile=x\n", "has no ImageTag="),
        ("build", "[Build]\nImageTag=x\n", "has no File="),
        ("build", "[Build]\nImageTag=x\nFile=x\nForceRM=no\n", "4: ForceRM"),
        ("build", "[Build]\nImageTag=x\nFile=x\nPull=never\n", "4: Pull"),
        ("build", "[Build]\nImageTag=x\nSetWorkingDirectory=file\n", "3: SetWorkingDirectory"),
        ("pod", "[Pod]\nExitPolicy=burn\n", "2: ExitPolicy"),
        ("container", "[Unit]\nDescription=x\n", "has no section [Container]"),
        ("container", "[Container]\nImage=x\n[Kube]\nYaml=x\n", "4: [Kube] is no section"),
        ("container", "[Container]\nImage=x\n[Install]\nAlso=y\n", "4: [Install] has no key Also"),
    ],
)
def test_other_kinds_have_mistakes_too(tmp_path: Path, kind: str, text: str, wrong: str) -> None:
    _, problems = made(tmp_path, **{f"x_{kind}": text})
    assert any(wrong in problem for problem in problems), problems


def test_images_and_builds(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").touch()
    units, problems = made(
        tmp_path,
        i_image="[Image]\nImage=x:1\nArch=aarch64\nVariant=v8\nAllTags=yes\nCreds=a:b\nAuthFile=auth.json\nTLSVerify=yes\n",
        b_build="[Build]\nImageTag=localhost/b\nSetWorkingDirectory=unit\nTarget=t\nBuildArg=A=1\nPull=always\nSecret=id=x,src=/x\n",
        f_build="[Build]\nImageTag=localhost/f\nFile=sub/Dockerfile\nNetwork=host\nPodmanArgs=--no-cache\n",
        u_container="[Container]\nImage=b.build\n",
    )
    assert not problems
    assert units["i-image.service"].command[3:] == [
        "--all-tags",
        "--creds=a:b",
        f"--authfile={tmp_path}/auth.json",
        "--platform=linux/arm64/v8",
        "--",
        "x:1",
    ]
    build = units["b-build.service"].command
    assert build[:3] == ["/usr/bin/teu", "build", "--progress=plain"] and build[-1] == str(tmp_path)
    assert {"--tag=localhost/b", "--target=t", "--build-arg=A=1", "--pull", "--secret=id=x,src=/x"} <= set(build)
    other = units["f-build.service"].command
    assert f"--file={tmp_path}/sub/Dockerfile" in other and other[-1] == f"{tmp_path}/sub" and "--no-cache" in other
    user = units["u.service"]
    assert (
        user.command[-1] == "localhost/b" and "--pull=never" in user.command and "Requires=b-build.service" in user.text
    )


def test_relative_paths_begin_at_the_file(tmp_path: Path) -> None:
    unit = container(tmp_path, "Volume=./html:/srv\nEnvironmentFile=web.env\nMount=type=bind,src=../x,target=/x")
    assert f"--volume={tmp_path}/html:/srv" in unit.command and f"--env-file={tmp_path}/web.env" in unit.command
    assert f"--mount=type=bind,src={tmp_path.parent}/x,target=/x" in unit.command
    assert f"RequiresMountsFor={tmp_path}/html" in unit.text


def test_a_part_of_a_mount_has_podmans_name_too(tmp_path: Path) -> None:
    unit = container(
        tmp_path, "Mount=type=image,source=a,target=/a,subpath=b\nMount=type=volume,source=c,target=/c,subpath=d"
    )
    assert "--mount=type=image,source=a,target=/a,image-subpath=b" in unit.command
    assert "--mount=type=volume,source=c,target=/c,volume-subpath=d" in unit.command


def test_a_secret_asks_systemd_for_the_credential(tmp_path: Path) -> None:
    text = container(tmp_path, "Secret=a\nSecret=b", "[Service]\nLoadCredential=b:/etc/b\n").text
    assert "LoadCredential=a\nImportCredential=a" in text and text.count("LoadCredential=b") == 1


def test_journald_listens_where_it_is_looked_for() -> None:
    """Of what is bound elsewhere the generator does not ask where that is."""
    assert all(path[:4] in translate.JOURNAL_NEAR for path in logfields.SOCKETS)
