# SPDX-License-Identifier: Apache-2.0
"""Which commands exist, under which names, and in which module each one lives.

Read by `main` (to load one module only), by the help, the man pages and the completion. A module named here
has a table COMMANDS whose entries say the rest (see `command.Command`)."""

from __future__ import annotations

# Modules whose commands do without the rest of a quick start (see `command.whole_python`): they leave nothing behind
# when they are ended in their midst, and ask nobody.
QUICK = frozenset(
    ("attach", "containers", "events", "execute", "images", "info", "inspect", "lifecycle", "logs", "networks", "run")
    + ("update", "volumes")
)
# Full name: (module in this package, one-line summary).
INDEX = {
    "builder du": ("builds.manage", "Show what is in the build cache"),
    "builder history inspect": ("builds.history", "Show all that is known of a build"),
    "builder history logs": ("builds.history", "Show a build's output again"),
    "builder history ls": ("builds.history", "List builds"),
    "builder history rm": ("builds.history", "Forget builds"),
    "builder inspect": ("builds.manage", "Show the workers of a builder"),
    "builder ls": ("builds.manage", "List builders"),
    "builder prune": ("builds.manage", "Remove the build cache"),
    "checkpoint create": ("checkpoints", "Make a checkpoint of a running container"),
    "checkpoint ls": ("checkpoints", "List the checkpoints of a container"),
    "checkpoint rm": ("checkpoints", "Remove a checkpoint"),
    "container attach": ("attach", "Attach the terminal's input and output to a running container"),
    "container commit": ("lifecycle", "Make a new image from a container's changes"),
    "container cp": ("copy", "Copy files between a container and the local file system"),
    "container create": ("run", "Create a container without starting it"),
    "container diff": ("containers", "Show which files of a container have changed"),
    "container exec": ("execute", "Run a command in a running container"),
    "container export": ("archives", "Write a container's file system as a tar archive"),
    "container inspect": ("inspect", "Show all that is known of containers"),
    "container kill": ("lifecycle", "Send a signal to running containers"),
    "container logs": ("logs", "Show what a container has written"),
    "container ls": ("containers", "List containers"),
    "container pause": ("lifecycle", "Freeze all processes of containers"),
    "container port": ("containers", "Show the published ports of a container"),
    "container prune": ("prune", "Remove all stopped containers"),
    "container rename": ("lifecycle", "Give a container another name"),
    "container restart": ("lifecycle", "Stop and start containers"),
    "container rm": ("lifecycle", "Remove containers"),
    "container run": ("run", "Create a container from an image and start it"),
    "container start": ("attach", "Start stopped containers"),
    "container stats": ("stats", "Show what containers use, live"),
    "container stop": ("lifecycle", "Stop running containers"),
    "container top": ("containers", "Show the processes of a container"),
    "container unpause": ("lifecycle", "Thaw paused containers"),
    "container update": ("update", "Change limits and other settings of containers"),
    "container wait": ("lifecycle", "Wait until containers stop, then print their exit codes"),
    "context create": ("contexts", "Create a context: a named way to a daemon"),
    "context export": ("contexts", "Write a context with its certificates as a tar archive"),
    "context import": ("contexts", "Make a context from a tar or zip archive"),
    "context inspect": ("contexts", "Show all that is known of contexts"),
    "context ls": ("contexts", "List contexts"),
    "context rm": ("contexts", "Remove contexts"),
    "context show": ("contexts", "Print the name of the current context"),
    "context update": ("contexts", "Change a context"),
    "context use": ("contexts", "Choose the context of all commands to come"),
    "generate unit": ("declared.written", "Write the file that declares a container as a unit"),
    "image build": ("build", "Build an image from a Dockerfile"),
    "image history": ("images", "Show how an image was made"),
    "image import": ("archives", "Make an image from a tar archive of a file system"),
    "image inspect": ("inspect", "Show all that is known of images"),
    "image load": ("archives", "Load images from a tar archive"),
    "image ls": ("images", "List images"),
    "image prune": ("prune", "Remove unused images"),
    "image pull": ("registry", "Download an image from a registry"),
    "image push": ("registry", "Upload an image to a registry"),
    "image rm": ("images", "Remove images"),
    "image save": ("archives", "Write images to a tar archive"),
    "image signatures": ("signatures", "Show what is signed and attested of an image"),
    "image tag": ("images", "Give an image a further name"),
    "manifest annotate": ("manifests", "Say for which platform a manifest of a list is"),
    "manifest create": ("manifests", "Make a list of manifests, to annotate and to push"),
    "manifest inspect": ("manifests", "Show a manifest, or a list of manifests"),
    "manifest push": ("manifests", "Upload a list of manifests to a registry"),
    "manifest rm": ("manifests", "Remove lists of manifests from here"),
    "network connect": ("networks", "Connect a container to a network"),
    "network create": ("networks", "Create a network"),
    "network disconnect": ("networks", "Disconnect a container from a network"),
    "network inspect": ("inspect", "Show all that is known of networks"),
    "network ls": ("networks", "List networks"),
    "network prune": ("prune", "Remove unused networks"),
    "network rm": ("networks", "Remove networks"),
    "plugin create": ("engineplugins", "Make a plugin of a folder with config.json and rootfs"),
    "plugin disable": ("engineplugins", "Disable a plugin"),
    "plugin enable": ("engineplugins", "Enable a plugin"),
    "plugin inspect": ("engineplugins", "Show all that is known of plugins"),
    "plugin install": ("engineplugins", "Download a plugin from a registry and enable it"),
    "plugin ls": ("engineplugins", "List plugins"),
    "plugin push": ("engineplugins", "Upload a plugin to a registry"),
    "plugin rm": ("engineplugins", "Remove plugins"),
    "plugin set": ("engineplugins", "Change the settings of a plugin"),
    "plugin upgrade": ("engineplugins", "Download a newer version of a plugin"),
    "system auto-update": ("declared.autoupdate", "Restart declared containers that have new images"),
    "system dial-stdio": ("dialstdio", "Pass standard input and output on to the daemon, for ssh:// at the other end"),
    "system check": ("host.report", "Show what of this host stands in the way of containers"),
    "system df": ("diskusage", "Show how much disk space is used"),
    "system events": ("events", "Show what happens in the daemon, live"),
    "system import-docker": ("moving.importing", "Take over what dockerd or podman has on this host"),
    "system info": ("info", "Show the state and the settings of the daemon"),
    "system prune": ("prune", "Remove all unused data"),
    "system validate": ("declared.validate", "Check declared containers, and show which units they are"),
    "volume create": ("volumes", "Create a volume"),
    "volume export": ("volumes", "Write what is in a volume as a tar archive"),
    "volume import": ("volumes", "Put what is in a tar archive into a volume"),
    "volume inspect": ("inspect", "Show all that is known of volumes"),
    "volume ls": ("volumes", "List volumes"),
    "volume prune": ("prune", "Remove unused volumes"),
    "volume rename": ("volumes", "Give a volume another name"),
    "volume rm": ("volumes", "Remove volumes"),
    "compose-units": (
        "declared.projects",
        "Make a compose project units of systemd: a target, a service for each member",
    ),
    "inspect": ("inspect", "Show all that is known of containers, images, volumes and networks"),
    "login": ("registry", "Log in to a registry"),
    "logout": ("registry", "Log out of a registry"),
    "search": ("registry", "Search a registry for images"),
    "version": ("info", "Show the versions of client and daemon"),
}

GROUPS = {
    "builder": "Manage builds",
    "builder history": "Look at builds that were",
    "checkpoint": "Manage checkpoints",
    "container": "Manage containers",
    "context": "Manage contexts: named ways to daemons",
    "generate": "Write files for systemd",
    "image": "Manage images",
    "manifest": "Manage lists of manifests, for images of several platforms",
    "network": "Manage networks",
    "plugin": "Manage plugins of the engine",
    "system": "Manage the daemon",
    "volume": "Manage volumes",
}

# The short names of the top level.
CONTAINER_SHORT = """attach commit cp create diff exec export kill logs pause port rename restart rm run start
stats stop top unpause update wait"""
IMAGE_SHORT = "build history import load pull push save tag"
SHORT = {
    **{name: "container " + name for name in CONTAINER_SHORT.split()},
    "ps": "container ls",
    **{name: "image " + name for name in IMAGE_SHORT.split()},
    "images": "image ls",
    "rmi": "image rm",
    "events": "system events",
    "info": "system info",
}

# Further names inside a group.
ALIASES = {
    "container list": "container ls",
    "container ps": "container ls",
    "container remove": "container rm",
    "image list": "image ls",
    "image remove": "image rm",
    "builder b": "image build",
    "builder build": "image build",
    "builder history list": "builder history ls",
    "builder history remove": "builder history rm",
    "builder list": "builder ls",
    "checkpoint list": "checkpoint ls",
    "checkpoint remove": "checkpoint rm",
    "plugin list": "plugin ls",
    "plugin remove": "plugin rm",
    "context list": "context ls",
    "context remove": "context rm",
    "network list": "network ls",
    "network remove": "network rm",
    "volume list": "volume ls",
    "volume remove": "volume rm",
}

COMMON = "run exec ps build pull push images login logout search version info".split()  # noqa: SIM905


def names_of(full: str) -> list[str]:
    """All names of a command, as the help shows them."""
    group = [alias for alias, name in ALIASES.items() if name == full]
    short = [name for name, target in SHORT.items() if target == full]
    return [full, *group, *short]
