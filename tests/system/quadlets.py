# SPDX-License-Identifier: Apache-2.0
"""Twenty Quadlet projects of the kinds that people publish, rewritten small for test_declared_public.

What is theirs is kept: which keys are used together, how files name each other, specifiers, list forms and quoting. The
programs are busybox's. RUN stands for the program, STAYS for one that ends when it is told to.
"""

from __future__ import annotations

from typing import NamedTuple

IMAGE = "docker.io/library/busybox:latest"
STAYS = "sh -c \"trap 'exit 0' TERM; sleep 1000 & wait\""


class Project(NamedTuple):
    """`files` go to /etc/teu/containers (units of systemd's own kinds to systemd); the units in `start` are started;
    then each of `shows` must hold: the container, a template of `teu inspect`, what that gives."""

    files: dict[str, str]
    start: tuple[str, ...]
    shows: tuple[tuple[str, str, str], ...]


def container(keys: str, *, unit: str = "", service: str = "Restart=always", run: str = STAYS) -> str:
    """A .container file as they mostly look."""
    text = f"[Unit]\n{unit}\n\n" if unit else ""
    text += f"[Container]\nImage={IMAGE}\n{keys.strip()}\n"
    text += f"Exec={run}\n" if run else ""
    return f"{text}\n[Service]\n{service}\n\n[Install]\nWantedBy=multi-user.target default.target\n"


PROJECTS = {
    "wordpress": Project(
        {
            "wordpress.network": "[Network]\nNetworkName=wordpress\nLabel=app=wordpress\n",
            "wordpress-db.volume": "[Volume]\n",
            "wordpress-data.volume": "[Volume]\nVolumeName=wordpress-data\n",
            "wordpress-db.container": container(
                "ContainerName=wordpress-db\nNetwork=wordpress.network\nVolume=wordpress-db.volume:/var/lib/mysql:Z\n"
                "Environment=MARIADB_DATABASE=wordpress MARIADB_USER=wp\nEnvironment=MARIADB_RANDOM_ROOT_PASSWORD=1"
            ),
            "wordpress.container": container(
                "ContainerName=wordpress\nNetwork=wordpress.network\nVolume=wordpress-data.volume:/var/www/html:z\n"
                "PublishPort=127.0.0.1:8301:80\nEnvironment=WORDPRESS_DB_HOST=wordpress-db",
                unit="Requires=wordpress-db.service\nAfter=wordpress-db.service",
            ),
        },
        ("wordpress.service",),
        (
            ("wordpress", "{{(index .Mounts 0).Name}}", "wordpress-data"),
            ("wordpress-db", "{{.State.Status}}", "running"),
            ("wordpress", "{{.HostConfig.NetworkMode}}", "wordpress"),
        ),
    ),
    "nextcloud in a pod": Project(
        {
            "nextcloud.pod": "[Pod]\nPodName=nextcloud\nPublishPort=127.0.0.1:8302:80\n",
            "nextcloud-redis.container": container("Pod=nextcloud.pod\nContainerName=nextcloud-redis"),
            "nextcloud-db.container": container(
                "Pod=nextcloud.pod\nContainerName=nextcloud-db\nVolume=/etc:/backup:ro\nShmSize=64m\n"
                "Environment=POSTGRES_DB=nextcloud"
            ),
            "nextcloud-app.container": container(
                "Pod=nextcloud.pod\nContainerName=nextcloud-app\nEnvironment=POSTGRES_HOST=localhost",
                unit="Requires=nextcloud-db.service nextcloud-redis.service\n"
                "After=nextcloud-db.service nextcloud-redis.service",
                run='sh -c "mkdir /w; echo cloud >/w/index.html; exec httpd -f -h /w"',
            )
            + "\n[Container]\nStopSignal=SIGKILL\n",
        },
        ("nextcloud-pod.service", "nextcloud-app.service"),
        (
            ("nextcloud-db", "{{.HostConfig.ShmSize}}", str(64 << 20)),
            ("nextcloud-redis", "{{.State.Status}}", "running"),
        ),
    ),
    "caddy": Project(
        {
            "caddy.container": container(
                "ContainerName=caddy\nAddCapability=NET_ADMIN\nPublishPort=127.0.0.1:8303:80/tcp\n"
                "PublishPort=127.0.0.1:8303:80/udp\nVolume=caddy-data.volume:/data\nVolume=/etc/hostname:/etc/caddy/"
                "Caddyfile:ro,Z",
                unit="Description=Caddy web server\nWants=network-online.target\nAfter=network-online.target",
                service="Restart=on-failure\nTimeoutStartSec=900\nExecReload=/usr/bin/teu exec caddy true",
            ),
            "caddy-data.volume": "[Volume]\nVolumeName=caddy-data\n",
        },
        ("caddy.service",),
        (("caddy", "{{json .HostConfig.CapAdd}}", '["NET_ADMIN"]'),),
    ),
    "traefik with the engine's socket": Project(
        {
            "proxy.network": "[Network]\nSubnet=10.213.31.0/24\nGateway=10.213.31.1\nInternal=true\n",
            "traefik.container": container(
                "ContainerName=traefik\nNetwork=proxy.network:ip=10.213.31.5\nSecurityLabelDisable=true\n"
                "Volume=/run/teu/teud.sock:/var/run/docker.sock:ro\nNoNewPrivileges=true\n"
                'Label="traefik.enable=true" "traefik.http.routers.api.rule=Host(`traefik.example`)"',
                unit="After=teud.socket\nRequires=teud.socket",
            ),
        },
        ("traefik.service",),
        (
            ("traefik", '{{index .Config.Labels "traefik.http.routers.api.rule"}}', "Host(`traefik.example`)"),
            ("traefik", "{{json .HostConfig.SecurityOpt}}", '["no-new-privileges","label=disable"]'),
        ),
    ),
    "postgres with a password": Project(
        {
            "postgres.volume": "[Volume]\nUser=70\nGroup=70\n",
            "postgres.container": container(
                "ContainerName=postgres\nVolume=postgres.volume:/var/lib/postgresql/data\nSecret=pg-password,type=env,"
                "target=POSTGRES_PASSWORD\nSecret=pg-password,mode=0400\nHealthCmd=test -d /var/lib/postgresql/data\n"
                "HealthInterval=1s\nHealthRetries=5\nHealthStartPeriod=5s\nHealthOnFailure=kill\nNotify=healthy",
                service="Restart=always\nSetCredential=pg-password:geheim",
            ),
        },
        ("postgres.service",),
        (("postgres", "{{.State.Health.Status}}", "healthy"),),
    ),
    "vaultwarden": Project(
        {
            "vaultwarden.container": container(
                "ContainerName=vaultwarden\nAutoUpdate=registry\nUser=1000\nGroup=1000\nReadOnly=true\n"
                "DropCapability=ALL\nNoNewPrivileges=true\nTmpfs=/run/vault:size=1m\nEnvironment=ROCKET_PORT=8080\n"
                'Environment="SIGNUPS_ALLOWED=false" "DOMAIN=https://vault.example"\nPublishPort=127.0.0.1:8304:8080'
            ),
        },
        ("vaultwarden.service",),
        (
            ("vaultwarden", "{{.Config.User}}", "1000:1000"),
            ("vaultwarden", "{{.HostConfig.ReadonlyRootfs}} {{json .HostConfig.CapDrop}}", 'true ["ALL"]'),
            ("vaultwarden", '{{index .Config.Labels "io.containers.autoupdate"}}', "registry"),
        ),
    ),
    "home assistant": Project(
        {
            "homeassistant.container": container(
                "ContainerName=homeassistant\nNetwork=host\nTimezone=local\nAddCapability=NET_RAW NET_ADMIN\n"
                "AddDevice=-/dev/ttyACM0:/dev/ttyACM0\nAddDevice=/dev/null:/dev/zigbee:rw\nVolume=/run/dbus:/run/dbus:ro",
                service="Restart=always\nRestartSec=5",
            ),
        },
        ("homeassistant.service",),
        (
            ("homeassistant", "{{.HostConfig.NetworkMode}}", "host"),
            ("homeassistant", "{{len .HostConfig.Devices}}", "1"),
        ),
    ),
    "pi-hole": Project(
        {
            "pihole.container": container(
                "ContainerName=pihole\nHostName=pihole\nDNS=127.0.0.1\nDNS=9.9.9.9\nDNSOption=ndots:1\nDNSSearch=lan\n"
                "AddHost=router.lan:192.0.2.1\nPublishPort=127.0.0.1:8305:53/tcp\nPublishPort=127.0.0.1:8305:53/udp\n"
                "Sysctl=net.ipv4.ip_unprivileged_port_start=0\nEnvironment=TZ=Europe/Berlin"
            ),
        },
        ("pihole.service",),
        (
            ("pihole", "{{json .HostConfig.Dns}}", '["127.0.0.1","9.9.9.9"]'),
            ("pihole", "{{.Config.Hostname}}", "pihole"),
        ),
    ),
    "gitea": Project(
        {
            "gitea.network": "[Network]\n",
            "gitea-data.volume": "[Volume]\nLabel=backup=yes\n",
            "gitea.container": container(
                "Network=gitea.network\nNetworkAlias=git\nVolume=gitea-data.volume:/data\nEnvironmentFile=./gitea.env\n"
                "PublishPort=127.0.0.1:8306:3000\nPublishPort=127.0.0.1:8307:22\nPull=missing"
            ),
            "gitea.env": "USER_UID=1000\nUSER_GID=1000\n",
        },
        ("gitea.service",),
        (
            ("systemd-gitea", "{{.HostConfig.NetworkMode}}", "systemd-gitea"),
            ("systemd-gitea", '{{range .Config.Env}}{{if eq . "USER_GID=1000"}}{{.}}{{end}}{{end}}', "USER_GID=1000"),
        ),
    ),
    "grafana and prometheus": Project(
        {
            "monitoring.network": "[Network]\nIPv6=true\n",
            "prometheus.container": container(
                "ContainerName=prometheus\nNetwork=monitoring.network\nVolume=/etc/os-release:/etc/prometheus/"
                "prometheus.yml:ro\nUser=65534\nStopTimeout=5"
            ),
            "node-exporter.container": container(
                "ContainerName=node-exporter\nNetwork=host\nVolume=/:/host:ro\nPodmanArgs=--pid=host"
            ),
            "grafana.container": container(
                "ContainerName=grafana\nNetwork=monitoring.network\nEnvironment=GF_SERVER_ROOT_URL=http://%H:3000\n"
                "PublishPort=127.0.0.1:8308:3000",
                unit="Wants=prometheus.service node-exporter.service\nAfter=prometheus.service node-exporter.service",
            ),
        },
        ("grafana.service",),
        (
            ("node-exporter", "{{.HostConfig.PidMode}}", "host"),
            ("prometheus", "{{.Config.StopTimeout}}", "5"),
        ),
    ),
    "jellyfin": Project(
        {
            "jellyfin.container": container(
                "ContainerName=jellyfin\nAddDevice=-/dev/dri/renderD128\nAddDevice=-/dev/dri:/dev/dri\nGroupAdd=44\n"
                "Mount=type=tmpfs,destination=/cache,tmpfs-size=1048576\n"
                "Mount=type=bind,source=/usr/share,destination=/media,readonly=true\nUlimit=nofile=4096:8192\n"
                "LogDriver=journald",
                service="Restart=always\nSuccessExitStatus=0 143",
            ),
        },
        ("jellyfin.service",),
        (
            ("jellyfin", "{{json .HostConfig.GroupAdd}}", '["44"]'),
            ("jellyfin", "{{(index .HostConfig.Ulimits 0).Hard}}", "8192"),
        ),
    ),
    "wireguard": Project(
        {
            "wg.container": container(
                "ContainerName=wg\nAddCapability=NET_ADMIN SYS_MODULE\nSysctl=net.ipv4.conf.all.src_valid_mark=1\n"
                "Sysctl=net.ipv4.ip_forward=1\nVolume=/lib/modules:/lib/modules:ro\nPublishPort=127.0.0.1:8309:51820/udp"
            ),
            "torrent.container": container(
                "ContainerName=torrent\nNetwork=wg.container\nEnvironment=PUID=1000 PGID=1000 UMASK=022",
            ),
        },
        ("torrent.service",),
        (("torrent", "{{slice .HostConfig.NetworkMode 0 10}}", "container:"),),
    ),
    "syncthing": Project(
        {
            "syncthing.container": container(
                "ContainerName=syncthing\nHostName=%H-sync\nVolume=%S/syncthing-test:/var/syncthing\nNetwork=host\n"
                "RunInit=true\nHealthCmd=CMD-SHELL true || exit 1\nHealthInterval=60s",
                service="Restart=on-failure\nStateDirectory=syncthing-test",
            ),
        },
        ("syncthing.service",),
        (("syncthing", "{{.HostConfig.Init}}", "true"),),
    ),
    "mailcow-like with env files and limits": Project(
        {
            "dovecot.container": container(
                "ContainerName=dovecot\nMemory=64m\nPidsLimit=100\nAnnotation=org.example.role=imap\n"
                "Label=role=imap\nSeccompProfile=unconfined\nUnmask=/proc/kcore\nMask=/proc/version",
                service="Restart=always\nTasksMax=200\nCPUWeight=50\nSlice=mail.slice",
            ),
        },
        ("dovecot.service",),
        (("dovecot", '{{index .HostConfig.Annotations "org.example.role"}} {{.Config.Labels.role}}', "imap imap"),),
    ),
    "a cron job by a timer": Project(
        {
            "backup.container": container("ContainerName=backup", service="Type=oneshot", run="echo saved").partition(
                "[Install]"
            )[0],
            "backup.timer": "[Timer]\nOnActiveSec=1s\nAccuracySec=100ms\nUnit=backup.service\n",
        },
        ("backup.timer",),
        (),
    ),
    "a template for many sites": Project(
        {
            "site@.container": container(
                "ContainerName=site-%i\nEnvironment=SITE=%i\nLabel=site=%i\nVolume=site-%i-data:/srv"
            )
            + "DefaultInstance=main\n",
        },
        ("site@one.service", "site@two.service"),
        (
            ("site-one", '{{index .Config.Labels "site"}}', "one"),
            ("site-two", "{{(index .Mounts 0).Name}}", "site-two-data"),
        ),
    ),
    "an image and a build": Project(
        {
            "base.image": f"[Image]\nImage={IMAGE}\n",
            "tool.build": "[Build]\nImageTag=localhost/teu-tool:latest\nFile=./Containerfile.tool\n"
            "SetWorkingDirectory=unit\nBuildArg=WORD=built\n",
            "Containerfile.tool": f"FROM {IMAGE}\nARG WORD\nRUN echo $WORD >/word\n",
            "tool.container": container("ContainerName=tool").replace(f"Image={IMAGE}", "Image=tool.build"),
        },
        ("tool.service",),
        (("tool", "{{.Config.Image}}", "localhost/teu-tool:latest"),),
    ),
    "socket activation": Project(
        {
            "echo.socket": "[Socket]\nListenStream=127.0.0.1:8310\n",
            "echo.container": container(
                "ContainerName=echo\nNetwork=none\nNotify=no",
                unit="Requires=echo.socket\nAfter=echo.socket",
                service="",
            ),
        },
        ("echo.socket", "echo.service"),
        (("echo", '{{range .Config.Env}}{{if eq . "LISTEN_FDS=1"}}{{.}}{{end}}{{end}}', ""),),
    ),
    "minio with reload and restart rules": Project(
        {
            "minio.container": container(
                "ContainerName=minio\nEntrypoint=/bin/sh\nReloadSignal=SIGHUP\nWorkingDir=/tmp\nStopSignal=SIGINT\n"
                "StopTimeout=20\nExposeHostPort=9000\nPublishPort=127.0.0.1:8311:9000\nIP=10.213.32.9\n"
                "Network=minio.network",
                service="Restart=on-abnormal\nRestartSec=30s",
                run="-c \"trap 'exit 0' INT; trap 'touch /tmp/reloaded' HUP; while :; do sleep 0.1; done\"",
            ),
            "minio.network": "[Network]\nDriver=bridge\nSubnet=10.213.32.0/24\nIPRange=10.213.32.0/25\n"
            "Options=mtu=1400\n",
        },
        ("minio.service",),
        (
            ("minio", "{{json .Config.Entrypoint}} {{.Config.StopSignal}}", '["/bin/sh"] SIGINT'),
            ("minio", '{{(index .NetworkSettings.Networks "systemd-minio").IPAddress}}', "10.213.32.9"),
        ),
    ),
    "unifi with drop-ins and quoting": Project(
        {
            "unifi.container": container(
                'ContainerName=unifi\nEnvironment="JVM_OPTS=-Xmx512M -Xms128M" TZ=UTC\n'
                "Environment=MONGO_PASS='a $$b %%c'\nLabel=one=1 \\\n  two=2"
            ),
            "unifi.container.d/10-more.conf": "[Container]\nEnvironment=FROM=dropin\n[Service]\nNice=5\n",
        },
        ("unifi.service",),
        (
            ("unifi", '{{index .Config.Labels "two"}}', "2"),
            ("unifi", '{{range .Config.Env}}{{if eq . "JVM_OPTS=-Xmx512M -Xms128M"}}ok{{end}}{{end}}', "ok"),
            ("unifi", '{{range .Config.Env}}{{if eq . "MONGO_PASS=a $b %c"}}ok{{end}}{{end}}', "ok"),
            ("unifi", '{{range .Config.Env}}{{if eq . "FROM=dropin"}}ok{{end}}{{end}}', "ok"),
        ),
    ),
}
