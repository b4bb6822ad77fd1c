# SPDX-License-Identifier: Apache-2.0
"""Files as people have them for podman, for twenty of the programs that they run most, each shortened to what it shows
of the language: all are taken without a change, and their values are those that `teu run` takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from teu.cli.declared import files, translate
from teu.cli.declared.validate import wrong_options

FILES = {
    "actual.container": """[Container]
ContainerName=actual
Image=docker.io/actualbudget/actual-server:latest
PublishPort=127.0.0.1:5006:5006
Volume=%h/actual:/data:Z
AutoUpdate=registry

[Service]
Restart=always

[Install]
WantedBy=default.target
""",
    "adguard.container": """[Container]
Image=docker.io/adguard/adguardhome
PublishPort=53:53/tcp
PublishPort=53:53/udp
PublishPort=[::]:3000:3000
Volume=adguard-work.volume:/opt/adguardhome/work
Volume=/etc/adguard:/opt/adguardhome/conf:z
AddCapability=NET_BIND_SERVICE NET_RAW
DropCapability=all
NoNewPrivileges=true
""",
    "adguard-work.volume": "[Volume]\nVolumeName=adguard-work\n",
    "caddy.container": """[Unit]
Description=Caddy web server
After=network-online.target local-fs.target

[Container]
Image=docker.io/library/caddy:2
Exec=/usr/bin/caddy run --config /etc/caddy/Caddyfile
Network=web.network
Network=inner.network
PublishPort=80:80
PublishPort=443:443/udp
Volume=./Caddyfile:/etc/caddy/Caddyfile:ro,Z
Volume=caddy-data.volume:/data
ReloadCmd=/usr/bin/caddy reload --config /etc/caddy/Caddyfile

[Service]
Restart=on-failure
TimeoutStartSec=900

[Install]
WantedBy=multi-user.target default.target
""",
    "web.network": "[Unit]\nDescription=Of the web\n\n[Network]\nSubnet=10.10.0.0/24\nLabel=app=web\n",
    "inner.network": """[Network]
NetworkName=inner
Internal=true
IPv6=true
Subnet=fd00:1::/64
Subnet=10.11.0.0/24
""",
    "caddy-data.volume": "[Volume]\nLabel=app=caddy\n",
    "db.container": """[Container]
Image=docker.io/library/postgres:16-alpine
ContainerName=db
Environment=POSTGRES_USER=app POSTGRES_DB=app
Environment="PGDATA=/var/lib/postgresql/data/with space"
Secret=db-password,type=env,target=POSTGRES_PASSWORD
Network=inner.network
Volume=/srv/db:/var/lib/postgresql/data
HealthCmd=pg_isready -U app
HealthInterval=10s
HealthStartPeriod=30s
HealthRetries=5
HealthOnFailure=kill
Notify=healthy
ShmSize=256m
StopTimeout=60
""",
    "forgejo.container": """[Unit]
Requires=db.container
After=db.container

[Container]
Image=codeberg.org/forgejo/forgejo:9
User=1000
Group=1000
Network=inner.network
NetworkAlias=git
PublishPort=2222:22
EnvironmentFile=/etc/forgejo.env
Volume=/etc/localtime:/etc/localtime:ro
Timezone=local
Tmpfs=/tmp
""",
    "grafana.container": """[Container]
Image=docker.io/grafana/grafana-oss:latest
Environment=GF_SERVER_ROOT_URL=https://example.org/%%h
Pod=monitoring.pod
Volume=grafana.volume:/var/lib/grafana:Z
LogDriver=journald
LogOpt=tag=grafana
""",
    "grafana.volume": "[Volume]\nUser=472\nGroup=0\n",
    "prometheus.container": """[Container]
Image=quay.io/prometheus/prometheus
Pod=monitoring.pod
Exec=--config.file=/etc/prometheus/prometheus.yml --storage.tsdb.retention.time=30d
Mount=type=bind,source=/etc/prometheus,destination=/etc/prometheus,ro
UserNS=host
ReadOnly=true
""",
    "monitoring.pod": "[Pod]\nPublishPort=3001:3000\nNetwork=web.network\nPodmanArgs=--dns 9.9.9.9\n",
    "homeassistant.container": """[Container]
Image=ghcr.io/home-assistant/home-assistant:stable
Network=host
AddDevice=-/dev/ttyUSB0:/dev/ttyUSB0
AddDevice=/dev/null
Volume=/srv/ha:/config
Volume=/run/dbus:/run/dbus:ro
PodmanArgs=--privileged
SecurityLabelDisable=true
""",
    "jellyfin.container": """[Container]
Image=docker.io/jellyfin/jellyfin
GroupAdd=105
AddDevice=/dev/dri
PublishPort=8096:8096/tcp
Volume=/media:/media:ro,rslave
Mount=type=tmpfs,destination=/cache/transcodes,tmpfs-size=4g
Label=io.containers.autoupdate=registry "traefik.http.routers.j.rule=Host(`j.example.org`)"
[Service]
MemoryMax=4G
CPUQuota=200%
""",
    "mosquitto.container": """[Container]
Image=docker.io/library/eclipse-mosquitto:2
Entrypoint=["/docker-entrypoint.sh","/usr/sbin/mosquitto"]
Exec=-c /mosquitto/config/mosquitto.conf
Ulimit=nofile=65536:65536
StopSignal=SIGINT
Sysctl=net.core.somaxconn=1024
""",
    "pihole.container": """[Container]
Image=docker.io/pihole/pihole:latest
Network=lan.network:ip=192.168.7.53
DNS=127.0.0.1
DNSSearch=lan
HostName=pi.hole
AddHost=router.lan:192.168.7.1
""",
    "lan.network": """[Network]
Driver=macvlan
Subnet=192.168.7.0/24
Gateway=192.168.7.1
Options=parent=eth0
Options=mtu=1500
""",
    "redis.container": """[Container]
Image=redis.image
Exec=redis-server --save 60 1 --loglevel warning
Memory=256m
PidsLimit=100
RunInit=yes
ReloadSignal=SIGHUP
[Unit]
StartLimitIntervalSec=60
StartLimitBurst=5
""",
    "redis.image": "[Image]\nImage=docker.io/library/redis:7\nRetry=5\nRetryDelay=10s\nArch=x86_64\n",
    "site.build": """[Build]
ImageTag=localhost/site:latest
File=./Containerfile
SetWorkingDirectory=unit
BuildArg=A=1
Pull=newer
""",
    "site.container": "[Container]\nImage=site.build\nPublishPort=8080:8080\nUnmask=ALL\nAnnotation=run.oci.keep=1\n",
    "sleep@.container": """[Container]
Image=busybox
Exec=sleep %i
Label=instance=%i
[Install]
DefaultInstance=9
WantedBy=a.target
""",
    "syncthing.container": """[Container]
Image=docker.io/syncthing/syncthing
HostName=sync-%H
Environment=PUID=%U PGID=%G
ExposeHostPort=22000
PublishPort=21027:21027/udp
Volume=sync.volume:/var/syncthing
""",
    "sync.volume": "[Volume]\nDevice=/dev/disk/by-label/sync\nType=ext4\nOptions=noatime,nodev\n",
    "task.container": """[Container]
Image=docker.io/alpine/git
Exec=sh -c 'git -C /repo pull; echo "done at $$(date)"'
Pull=always
[Service]
Type=oneshot
""",
    "traefik.container": """[Container]
Image=docker.io/library/traefik:v3
PublishPort=80:80
Volume=/run/teu/teud.sock:/var/run/docker.sock
SeccompProfile=unconfined
Mask=/proc/acpi:/sys/firmware
CgroupsMode=split
""",
    "uptime.container": """[Container]
Image=docker.io/louislam/uptime-kuma:1
HealthCmd=["extra/healthcheck"]
HealthTimeout=5s
Notify=true
[Service]
WatchdogSec=30
""",
    "vault.container": """[Container]
Image=docker.io/vaultwarden/server:latest-alpine
Secret=admin-token,type=mount,target=/run/token,uid=1000,mode=0400
EnvironmentHost=false
ReadOnlyTmpfs=true
IP6=fd00:1::9
IP=10.11.0.9
Network=inner.network
[Service]
LoadCredential=admin-token:/etc/vault.token
SuccessExitStatus=143
[Quadlet]
DefaultDependencies=false
""",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> tuple[translate.House, dict[str, files.Declared]]:
    folder = tmp_path_factory.mktemp("public")
    for name, text in FILES.items():
        Path(folder / name).write_text(text)
    found, problems = files.load((str(folder),))
    assert not problems and len(found) == len(FILES)
    return translate.House(found), found


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_is_taken_as_it_is(name: str, house: tuple[translate.House, dict[str, files.Declared]]) -> None:
    one = house[1][name]
    unit = translate.translate(house[0], one)
    assert not one.problems
    assert wrong_options(unit.command) == ("", "")
    assert "ExecStart=" in unit.text
