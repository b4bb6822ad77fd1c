# SPDX-License-Identifier: Apache-2.0
"""`run --use-api-socket`: the container has the daemon's socket, and the user's log-ins to registries beside it, where
docker's and our own client look for them. Called by `run`, before the container is made and after that."""

from __future__ import annotations

import io
import tarfile

from teu.cli.archives import TAR
from teu.cli.command import Cli
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# In the container; and of the daemon's machine, where that is another one.
SOCKET = "/var/run/docker.sock"
FOLDER = "/run/secrets/docker"
Logins = dict[str, dict[str, str]]


def prepare(cli: Cli, body: dict[str, Any]) -> Logins:
    """Add the socket to what is mounted; the log-ins that `bring` brings, of which the body tells already. None where
    the container has a configuration of its own. Raises CommandError where they cannot be read."""
    kind, _, path = cli.client.host.partition("://")
    source = path if kind == "unix" else SOCKET
    mounts = body["HostConfig"].get("Mounts") or []
    socket = {"Type": "bind", "Source": source, "Target": SOCKET, "BindOptions": {}}
    body["HostConfig"]["Mounts"] = [*mounts, socket]
    environment = body.get("Env") or []
    if any(entry.startswith("DOCKER_CONFIG=") for entry in environment):
        return {}
    logins: Logins = cli.config.logins()
    if logins:
        body["Env"] = [*environment, f"DOCKER_CONFIG={FOLDER}"]
    return logins


def bring(cli: Cli, container: str, logins: Logins) -> None:
    """Into a container that has not run yet."""
    data = jsontext.dumps({"auths": logins}, "\t").encode()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo(f"{FOLDER}/config.json".lstrip("/"))
        entry.size, entry.mode = len(data), 0o600
        tar.addfile(entry, io.BytesIO(data))
    cli.client.call("PUT", f"/containers/{container}/archive", {"path": "/"}, [archive.getvalue()], headers=TAR)
