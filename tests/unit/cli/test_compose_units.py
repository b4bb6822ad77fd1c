# SPDX-License-Identifier: Apache-2.0
"""`teu compose-units`: from what compose says of a project to declared files, and their place on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teu.cli import createspec
from teu.cli.declared import composed, files, projects, translate


def project(**services: Any) -> composed.Project:
    return of({"name": "shop", "services": services})


def of(document: dict[str, Any]) -> composed.Project:
    return composed.Project(document, "/srv/shop/compose.yaml")


def lines(made: composed.Project, name: str) -> list[str]:
    assert not made.problems, made.problems
    assert not projects.mistakes(made)
    return made.files[name].splitlines()


def web(**more: Any) -> list[str]:
    return lines(project(web={"image": "nginx:1", **more}), "shop-web.container")


def refused(**more: Any) -> list[tuple[str, str]]:
    return [(".".join(path), reason) for path, reason in project(web={"image": "nginx:1", **more}).problems]


def test_a_service_is_a_container_of_the_target() -> None:
    made = project(web={"image": "nginx:1", "command": None, "entrypoint": None, "networks": {"default": None}})
    assert lines(made, "shop-web.container") == [
        "# Made by teu compose-units of the project shop, from /srv/shop/compose.yaml",
        "# Changes belong there, or into drop-ins.",
        "",
        "[Unit]",
        "Description=shop-web-1 of the compose project shop",
        "PartOf=shop.target",
        "",
        "[Container]",
        "ContainerName=shop-web-1",
        "Image=nginx:1",
        "Network=shop-default.network:alias=web",
        "",
        "[Install]",
        "WantedBy=shop.target",
    ]
    assert "NetworkName=shop_default" in lines(made, "shop-default.network")
    assert "[Unit]\nDescription=Compose project shop\n" in made.target


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"command": ["sh", "-c", "echo $$HOME 100%"]}, 'Exec=sh -c "echo $$HOME 100%%"'),
        ({"entrypoint": ["/bin/sh", "-c"]}, 'Entrypoint=["/bin/sh","-c"]'),
        ({"environment": {"A": "x y", "B": None, "C": "$$1"}}, "EnvironmentFile=shop-web.env"),
        ({"environment": {"A": "x y", "B": None, "C": "$$1"}}, "Environment=B"),
        ({"environment": {"A": "1\n2"}}, 'Environment="A=1\\n2"'),
        ({"labels": {"a.b": "c"}}, "Label=a.b=c"),
        ({"ports": [{"mode": "ingress", "target": 80, "published": "8080"}]}, "PublishPort=8080:80/tcp"),
        (
            {"ports": [{"host_ip": "::1", "target": 53, "published": "53", "protocol": "udp"}]},
            "PublishPort=[::1]:53:53/udp",
        ),
        ({"ports": [{"target": 80}]}, "PublishPort=80/tcp"),
        ({"volumes": [{"type": "bind", "source": "/srv/a", "target": "/a", "bind": {}}]}, "Volume=/srv/a:/a"),
        (
            {"volumes": [{"type": "bind", "source": "/a:b", "target": "/a", "read_only": True}]},
            "Mount=type=bind,source=/a:b,target=/a,readonly",
        ),
        (
            {"volumes": [{"type": "bind", "source": "/a", "target": "/a", "bind": {"create_host_path": False}}]},
            "Mount=type=bind,source=/a,target=/a",
        ),
        ({"volumes": [{"type": "volume", "source": "data", "target": "/d"}]}, "Volume=shop-data.volume:/d"),
        ({"volumes": [{"type": "volume", "target": "/d"}]}, "Mount=type=volume,target=/d"),
        (
            {"volumes": [{"type": "tmpfs", "target": "/t", "tmpfs": {"size": "1048576", "mode": 0o1777}}]},
            "Tmpfs=/t:size=1048576,mode=1777",
        ),
        (
            {"volumes": [{"type": "image", "source": "app:1", "target": "/i", "image": {"subpath": "etc"}}]},
            "Mount=type=image,source=app:1,target=/i,image-subpath=etc",
        ),
        ({"mem_limit": "536870912"}, "Memory=536870912"),
        ({"deploy": {"resources": {"limits": {"cpus": 0.5, "memory": "1024000000"}}}}, "PodmanArgs=--cpus=0.5"),
        ({"healthcheck": {"test": ["CMD-SHELL", "curl -f localhost"]}}, "HealthCmd=curl -f localhost"),
        ({"healthcheck": {"test": ["CMD", "true"], "interval": "5s"}}, "HealthInterval=5s"),
        ({"healthcheck": {"disable": True}}, "HealthCmd=none"),
        ({"restart": "unless-stopped"}, "Restart=always"),
        ({"restart": "on-failure:3"}, "StartLimitBurst=4"),
        ({"deploy": {"restart_policy": {"condition": "on-failure", "delay": "5s"}}}, "RestartSec=5"),
        ({"stop_grace_period": "1m30.5s"}, "StopTimeout=91"),
        ({"ulimits": {"nofile": {"soft": 1, "hard": 2}}}, "Ulimit=nofile=1:2"),
        ({"extra_hosts": ["db=10.0.0.1"]}, "AddHost=db:10.0.0.1"),
        ({"user": "1000:100"}, "Group=100"),
        ({"read_only": True}, "ReadOnlyTmpfs=no"),
        (
            {"devices": [{"source": "/dev/null", "target": "/dev/x", "permissions": "rwm"}]},
            "AddDevice=/dev/null:/dev/x:rwm",
        ),
        ({"network_mode": "host"}, "Network=host"),
        ({"cap_add": ["NET_ADMIN"]}, "AddCapability=NET_ADMIN"),
        ({"cgroup_parent": "shop.slice"}, "Slice=shop.slice"),
        ({"tty": True}, "PodmanArgs=--tty"),
        ({"gpus": [{"count": -1}]}, "PodmanArgs=--gpus=count=all"),
        ({"logging": {"driver": "json-file", "options": {"max-size": "1m"}}}, "LogOpt=max-size=1m"),
        (
            {"post_start": [{"command": ["touch", "/x y"], "user": "root"}]},
            'ExecStartPost=/usr/bin/teu exec --user=root shop-web-1 touch "/x y"',
        ),
        (
            {"blkio_config": {"device_read_bps": [{"Path": "/dev/sda", "Rate": "1024"}]}},
            "PodmanArgs=--device-read-bps=/dev/sda:1024",
        ),
    ],
)
def test_keys_become_lines(given: dict[str, Any], expected: str) -> None:
    assert expected in web(**given)


@pytest.mark.parametrize(
    ("given", "where", "reason"),
    [
        ({"isolation": "hyperv"}, "services.web.isolation", "Windows"),
        ({"colour": "red"}, "services.web.colour", "not known"),
        ({"deploy": {"placement": {"constraints": ["node.role==manager"]}}}, "services.web.deploy.placement", "swarm"),
        ({"networks": {"default": {"gw_priority": 1}}}, "services.web.networks.default.gw_priority", "addresses"),
        ({"command": []}, "services.web.command", "empty command"),
        ({"depends_on": {"db": {"condition": "service_started"}}}, "services.web.depends_on.db", "--profile"),
        ({"secrets": [{"source": "key"}]}, "services.web.secrets", "file"),
        ({"cgroup_parent": "x\nExecStartPre=id\n.slice"}, "services.web.cgroup_parent", "break of line"),
        ({"labels": {"a": "b"}, "hostname": "a\nb"}, "services.web.hostname", "break of line"),
        ({"pull_policy": "daily"}, "services.web.pull_policy", "AutoUpdate="),
        ({"volumes": [{"type": "npipe", "source": "x", "target": "y"}]}, "services.web.volumes", "npipe"),
        ({"container_name": "a", "scale": 2}, "services.web.container_name", "one name"),
        ({"scale": 2, "ports": [{"target": 80, "published": "80"}]}, "services.web.ports", "port 80"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(given: dict[str, Any], where: str, reason: str) -> None:
    assert any(place == where and reason in text for place, text in refused(**given)), refused(**given)


def test_every_key_is_known_once() -> None:
    """The table has what compose's model has; a handler stands for each that is its own."""
    for table, owner in ((composed.SERVICE, composed.Member),):
        for key, how in table.items():
            if how == "own":
                assert hasattr(owner, f"_{key}"), key


def test_dependencies_wait_for_what_they_are_told() -> None:
    made = project(
        web={
            "image": "w",
            "depends_on": {
                "db": {"condition": "service_healthy", "required": True},
                "seed": {"condition": "service_completed_successfully", "required": True},
                "cache": {"condition": "service_started", "required": False, "restart": True},
            },
        },
        db={"image": "d", "healthcheck": {"test": ["CMD", "true"]}},
        seed={"image": "s"},
        cache={"image": "c", "deploy": {"replicas": 2}},
    )
    found = lines(made, "shop-web.container")
    for line in ("Requires=shop-db.service", "After=shop-db.service", "Requires=shop-seed.service"):
        assert line in found
    assert [line for line in found if line.startswith("Wants=")] == [
        "Wants=shop-cache-1.service",
        "Wants=shop-cache-2.service",
    ]
    assert "PartOf=shop-cache-1.service" in found
    assert "Notify=healthy" in lines(made, "shop-db.container")
    assert "Type=oneshot" in lines(made, "shop-seed.container")
    assert "ContainerName=shop-cache-2" in lines(made, "shop-cache-2.container")
    assert "shop-cache.container" not in made.files


def test_networks_volumes_secrets_and_builds() -> None:
    made = of(
        {
            "name": "shop",
            "services": {
                "web": {
                    "build": {"context": "/srv/shop", "dockerfile": "Dockerfile", "args": {"A": "1"}},
                    "networks": {"front": {"aliases": ["www"], "ipv4_address": "10.9.0.5"}, "outside": {"priority": 5}},
                    "volumes": [{"type": "volume", "source": "data", "target": "/d", "volume": {"nocopy": True}}],
                    "secrets": [{"source": "key", "target": "/run/secrets/key", "mode": "0400"}],
                    "configs": [{"source": "conf", "target": "/etc/conf"}],
                },
                "side": {"image": "s", "network_mode": "service:web", "pid": "service:web"},
            },
            "networks": {
                "front": {"name": "shop_front", "ipam": {"config": [{"subnet": "10.9.0.0/24"}]}, "internal": True},
                "outside": {"name": "lan", "external": True},
                "unused": {"name": "shop_unused", "driver": "macvlan"},
            },
            "volumes": {
                "data": {"name": "shop_data", "driver_opts": {"type": "nfs", "o": "addr=nas", "device": ":/x"}}
            },
            "secrets": {"key": {"name": "shop_key", "file": "/srv/shop/key"}},
            "configs": {"conf": {"name": "shop_conf", "file": "/srv/shop/conf"}},
        }
    )
    found = lines(made, "shop-web.container")
    assert [line for line in found if line.startswith("Network=")] == [
        "Network=lan:alias=web",
        "Network=shop-front.network:alias=web,alias=www,ip=10.9.0.5",
    ]
    for line in (
        "Image=shop-web.build",
        "Volume=shop-data.volume:/d:nocopy",
        "Secret=key,target=/run/secrets/key,mode=0400",
        "LoadCredential=key:/srv/shop/key",
        "Volume=/srv/shop/conf:/etc/conf:ro",
    ):
        assert line in found
    side = lines(made, "shop-side.container")
    assert "Network=container:shop-web-1" in side and "BindsTo=shop-web.service" in side
    assert "PodmanArgs=--pid=container:shop-web-1" in side
    build = lines(made, "shop-web.build")
    assert "ImageTag=shop-web" in build and "File=/srv/shop/Dockerfile" in build and "BuildArg=A=1" in build
    assert "Subnet=10.9.0.0/24" in lines(made, "shop-front.network")
    assert "PodmanArgs=--opt=o=addr=nas" in lines(made, "shop-data.volume")
    assert set(made.files) == {
        "shop-web.container",
        "shop-side.container",
        "shop-web.build",
        "shop-front.network",
        "shop-data.volume",
    }


def test_variables_are_for_root_alone(
    teu: Callable[..., Any], tmp_path: Path, compose: Callable[[dict[str, Any]], None]
) -> None:
    """Compose has them out of files that only some may read; a unit, and its command line, everybody reads."""
    variables = {"PASSWORD": " p%s$$w'\"#", "EMPTY": "", "LINES": "1\n2", "#": "x"}
    made = project(web={"image": "w", "environment": variables})
    found = lines(made, "shop-web.container")
    assert not any("PASSWORD" in line for line in found) and 'Environment="LINES=1\\n2"' in found
    places = (f"--directory={tmp_path}/declared", f"--unit-directory={tmp_path}/units")
    compose({"name": "shop", "services": {"web": {"image": "w", "network_mode": "host", "environment": variables}}})
    assert teu("compose-units", *places, "x.yaml").code == 0
    path = tmp_path / "declared/shop/shop-web.env"
    assert path.stat().st_mode & 0o777 == 0o600
    assert createspec.read_lines([str(path)], True) == ["EMPTY=", "PASSWORD= p%s$w'\"#"]
    declared = files.Declared("shop-web.container", str(path.with_suffix(".container")))
    declared.read(declared.path)
    unit = translate.translate(translate.House({"shop-web.container": declared}), declared)
    assert f"--env-file={path}" in unit.text
    assert teu("compose-units", *places, "--remove", "-p", "shop").code == 0
    assert not path.exists()


def test_units_of_the_files_need_each_other() -> None:
    made = project(web={"image": "w", "depends_on": {"db": {}}}, db={"image": "d"})
    declared = {}
    for name, text in made.files.items():
        declared[name] = files.Declared(name, f"/etc/teu/containers/shop/{name}")
        declared[name].parse(text, name)
    unit = translate.translate(translate.House(declared), declared["shop-web.container"])
    assert unit.name == "shop-web.service" and unit.links == ["shop.target.wants/shop-web.service"]
    assert "Requires=shop-default-network.service" in unit.text and "Requires=shop-db.service" in unit.text


COMPOSE = """\
# the shop
services:
  db:
    image: postgres
  web:
    image: nginx
    deploy:
      placement:
        constraints: [x]
networks:
  web: {}
"""


def test_the_place_is_a_line_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(COMPOSE)
    other = tmp_path / "more.yaml"
    other.write_text("services:\n  web:\n    tty: true\n")
    both = [str(path), str(other)]
    assert projects.place_of(both, ("services", "web", "deploy", "placement")) == f"{path}:8"
    assert projects.place_of(both, ("services", "web", "tty")) == f"{other}:3"
    assert projects.place_of(both, ("networks", "web")) == f"{path}:11"
    assert projects.place_of([str(tmp_path / "none")], ("services",)) == str(tmp_path / "none")


@pytest.fixture
def compose(tmp_path: Path) -> Callable[[dict[str, Any]], None]:
    """A plugin that says what it is told to, and writes down how it was called."""
    folder = tmp_path / "config/cli-plugins"
    folder.mkdir(parents=True)
    program = folder / "docker-compose"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\ncat {tmp_path}/answer\n')
    program.chmod(0o755)
    return lambda document: (tmp_path / "answer").write_text(json.dumps(document)) and None


def test_files_are_written_shown_and_removed(
    teu: Callable[..., Any], tmp_path: Path, compose: Callable[[dict[str, Any]], None]
) -> None:
    source = tmp_path / "compose.yaml"
    source.write_text(COMPOSE)
    places = (f"--directory={tmp_path}/declared", f"--unit-directory={tmp_path}/units")
    document: dict[str, Any] = {"name": "shop", "services": {"web": {"image": "nginx:1"}, "db": {"image": "d"}}}
    compose(document)
    shown = teu("compose-units", "-n", *places, "--profile", "all", str(source))
    assert shown.code == 0 and f"+++ {tmp_path}/declared/shop/shop-web.container" in shown.out
    assert not (tmp_path / "declared").exists()
    assert (tmp_path / "called").read_text() == f"compose --file={source} --profile=all config --format=json\n"

    done = teu("compose-units", *places, str(source))
    assert done.code == 0 and "systemctl enable --now shop.target" in done.err
    folder = tmp_path / "declared/shop"
    written = sorted(path.name for path in folder.iterdir())
    assert written == ["shop-db.container", "shop-default.network", "shop-web.container"]
    assert (tmp_path / "units/shop.target").exists()
    assert teu("compose-units", *places, str(source)).out == "", "nothing has changed"

    (folder / "mine.container").write_text("[Container]\nImage=x\n")
    (folder / "shop-web.container.d").mkdir()
    document["services"] = {"web": {"image": "nginx:2"}}
    compose(document)
    changed = teu("compose-units", *places, str(source))
    assert "-Image=nginx:1\n+Image=nginx:2\n" in changed.out
    assert not (folder / "shop-db.container").exists() and (folder / "mine.container").exists()

    gone = teu("compose-units", *places, "--remove", "-p", "shop")
    assert gone.code == 0 and "systemctl stop shop.target" in gone.err
    assert sorted(path.name for path in folder.iterdir()) == ["mine.container", "shop-web.container.d"]
    assert not (tmp_path / "units/shop.target").exists()


def test_what_is_somebody_elses_is_left_alone(
    teu: Callable[..., Any], tmp_path: Path, compose: Callable[[dict[str, Any]], None]
) -> None:
    compose({"name": "shop", "services": {"web": {"image": "nginx"}}})
    (tmp_path / "shop.target").write_text("[Unit]\nDescription=mine\n")
    done = teu("compose-units", f"--directory={tmp_path}/declared", f"--unit-directory={tmp_path}", "x.yaml")
    assert done.code == 1 and "shop.target is not of this project" in done.err
    assert not (tmp_path / "declared").exists() and "mine" in (tmp_path / "shop.target").read_text()


def test_a_refusal_writes_nothing(
    teu: Callable[..., Any], tmp_path: Path, compose: Callable[[dict[str, Any]], None]
) -> None:
    source = tmp_path / "compose.yaml"
    source.write_text(COMPOSE)
    compose({"name": "shop", "services": {"web": {"image": "n", "deploy": {"placement": {"constraints": ["x"]}}}}})
    done = teu("compose-units", f"--directory={tmp_path}/declared", f"--unit-directory={tmp_path}", str(source))
    assert done.code == 1
    assert done.err.startswith(f"{source}:8: services.web.deploy.placement: is refused: of swarm alone")
    assert not (tmp_path / "declared").exists()


def test_without_compose_it_says_what_to_install(teu: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from teu.cli import plugins

    monkeypatch.setattr(plugins, "SYSTEM", ())
    done = teu("compose-units", "compose.yaml")
    assert done.code == 1 and "apt install docker-compose" in done.err
