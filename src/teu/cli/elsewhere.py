# SPDX-License-Identifier: Apache-2.0
"""Docker's commands that are not teu's: what to use instead. Loaded by `main` when a command is not found.

Swarm is left out by design: Teu's containers are units of one host. dockerd answers these outside of a swarm with an
error as well."""

from __future__ import annotations

from teu.cli.command import PROGRAM
from teu.cli.errors import CommandError

SWARM = "is a command of swarm, which Teu does not have"
UNITS = "declare a container, teu-containers(7), or use `teu compose`, of which `teu compose-units` makes units"

# The first word, or the first two: (why it is not here, what to use instead).
INSTEAD = {
    "swarm": (SWARM, f"{UNITS}; for more than one host use a context for each (teu-context-create(1)), or Kubernetes"),
    "node": (SWARM, "use `teu info` on each host, with a context for each: teu-context-create(1)"),
    "node ps": (SWARM, "use `teu ps` with a context for each host: teu-context-create(1)"),
    "service": (SWARM, UNITS),
    "service logs": (SWARM, "use `teu logs`, `teu compose logs` or journalctl -u"),
    "service ls": (SWARM, "use `teu ps`, `teu compose ls` or systemctl list-units"),
    "service ps": (SWARM, "use `teu ps`, `teu compose ps` or systemctl status"),
    "service rm": (SWARM, "use `teu rm`, `teu compose down` or systemctl disable"),
    "service scale": (SWARM, "use `teu compose up --scale`, or a template unit of systemd"),
    "service update": (SWARM, "use `teu update`, or `teu compose up -d`"),
    "stack": (SWARM, "use `teu compose`, which reads the same files: `teu compose up -d` deploys one"),
    "stack config": (SWARM, "use `teu compose config`"),
    "stack rm": (SWARM, "use `teu compose down`"),
    "stack ls": (SWARM, "use `teu compose ls`"),
    "secret": (SWARM, "use `teu run --mount type=bind,readonly`, secrets of `teu compose`, or credentials of systemd"),
    "config": (SWARM, "use `teu run --mount type=bind,readonly`, or configs of `teu compose`"),
    "volume update": ("is for volumes of swarm's clusters", "make a new volume: teu-volume-create(1)"),
    "trust": ("is a plugin of docker's that is not installed", "sign and verify images with cosign or notation"),
    "compose": ("is a plugin of docker's that is not installed", "install it: apt install docker-compose"),
    "bake": ("is of docker's plugin buildx, which is not installed", "install it: apt install docker-buildx"),
}  # fmt: skip


def refuse(words: list[str]) -> None:
    """Raises CommandError for a command that docker has, and teu has not; comes back from any other."""
    for name in (" ".join(words[:2]), words[0]):
        if name in INSTEAD:
            why, instead = INSTEAD[name]
            called = " ".join(word for word in words[: name.count(" ") + 1])
            raise CommandError(f"{PROGRAM}: '{called}' {why}. Instead, {instead}")
