# SPDX-License-Identifier: Apache-2.0
"""The commands: which there are, under which names and in which module each one lives; what a command is made of
(`Command`), and what it gets (`Ctr`).

`main` finds a command here and loads its module, and no other; the help reads the same tables. A module named here has
a table COMMANDS of what `Command` holds. This module stands below all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from teu.ctr.errors import CommandError
from teu.ctr.flags import Flag, Options, parse, parse_table

if TYPE_CHECKING:
    from teu.ctr.client import Client

PROGRAM = "teu-ctr"
RUNTIME = "io.containerd.teu.v2"
SNAPSHOTTER = "overlayfs"

GLOBAL_FLAGS = """
debug                bool     Show the traceback of an unexpected error
address,a            string=/run/teu/containerd.sock  The daemon's socket [$CONTAINERD_ADDRESS]
timeout              duration Give up after this time, as 30s
connect-timeout      duration Give up connecting after this time
namespace,n          string=default  Work in this namespace [$CONTAINERD_NAMESPACE]
version,v            bool     Print the version and exit
"""

# Group or command: (aliases, summary).
GROUPS = {
    "plugins": (("plugin",), "What the daemon is made of"),
    "containers": (("c", "container"), "Manage containers"),
    "content": ((), "Manage blobs"),
    "content prune": ((), "Drop what keeps blobs"),
    "images": (("image", "i"), "Manage images"),
    "leases": ((), "Manage leases"),
    "namespaces": (("namespace", "ns"), "Manage namespaces"),
    "snapshots": (("snapshot",), "Manage snapshots"),
    "tasks": (("t", "task"), "Manage tasks"),
    "pprof": ((), "Profiles of a daemon written in Go, by its debug socket"),
    "oci": ((), "OCI tools"),
    "sandboxes": (("sandbox", "sb", "s"), "Manage sandboxes"),
    "shim": ((), "Talk to a shim directly"),
    "shim pprof": ((), "Profiles of a shim written in Go, by its debug socket"),
    "deprecations": ((), "What the daemon calls deprecated"),
}

# What all commands of a group have: given after the group's name, or among the command's own options.
GROUP_FLAGS = {
    "snapshots": f"snapshotter string={SNAPSHOTTER} Snapshotter [$CONTAINERD_SNAPSHOTTER]",
    "shim": "id string ID of the container\nshim-address string Where the shim listens (what its ID says)",
    "pprof": "debug-socket,d string=/run/containerd/debug.sock The daemon's debug socket",
}

# Full name: (module, aliases of its last word, summary). The module's COMMANDS has the rest.
COMMANDS = {
    "version": ("about", (), "Print the versions of client and daemon"),
    "info": ("about", (), "Print what the daemon says of itself"),
    "events": ("events", ("event",), "Print events as they happen"),
    "run": ("run", (), "Run a container"),
    "install": ("install", (), "Install the programs that an image carries on this host"),
    "plugins list": ("about", ("ls",), "List plugins"),
    "plugins inspect-runtime": ("runtimes", (), "Print what a runtime can do"),
    "deprecations list": ("about", ("ls",), "List warnings of deprecation"),
    "oci spec": ("about", (), "Print the default OCI specification"),
    "namespaces create": ("namespaces", ("c",), "Create a namespace"),
    "namespaces list": ("namespaces", ("ls",), "List namespaces"),
    "namespaces remove": ("namespaces", ("rm",), "Remove empty namespaces"),
    "namespaces label": ("namespaces", (), "Set or clear labels"),
    "images check": ("images", (), "Check that the content of images is at hand"),
    "images convert": ("convert", (), "Make another form of an image"),
    "images delete": ("images", ("del", "remove", "rm"), "Remove images"),
    "images export": ("transfer", (), "Write images to an archive"),
    "images inspect": ("images", ("i",), "Print what an image consists of, as a tree"),
    "images import": ("transfer", (), "Read images from an archive"),
    "images label": ("images", (), "Set or clear labels"),
    "images list": ("images", ("ls",), "List images"),
    "images mount": ("images", (), "Mount an image's file system"),
    "images prune": ("images", (), "Remove unused images"),
    "images pull": ("transfer", (), "Download an image"),
    "images push": ("transfer", (), "Upload an image"),
    "images tag": ("images", (), "Give an image further names"),
    "images unmount": ("images", (), "Unmount an image's file system"),
    "images usage": ("images", (), "Show what an image's snapshots take"),
    "content active": ("content", (), "List transfers under way"),
    "content delete": ("content", ("del", "remove", "rm"), "Delete blobs"),
    "content edit": ("content", (), "Edit a blob; the result is a new one"),
    "content fetch": ("transfer", (), "Download all content of an image"),
    "content fetch-object": ("transfer", (), "Print a manifest of a registry"),
    "content fetch-blob": ("transfer", (), "Print blobs of a registry"),
    "content get": ("content", (), "Print a blob"),
    "content ingest": ("content", (), "Store standard input"),
    "content label": ("content", (), "Set or clear labels"),
    "content list": ("content", ("ls",), "List blobs"),
    "content push-object": ("transfer", (), "Upload a blob or a manifest"),
    "content prune references": ("content", (), "Drop the labels by which manifests keep their layers"),
    "snapshots commit": ("snapshots", (), "Commit an active snapshot"),
    "snapshots diff": ("snapshots", (), "Print the difference of two snapshots as a layer"),
    "snapshots info": ("snapshots", (), "Print what is known of a snapshot"),
    "snapshots label": ("snapshots", (), "Set or clear labels"),
    "snapshots list": ("snapshots", ("ls",), "List snapshots"),
    "snapshots mounts": ("snapshots", ("m", "mount"), "Print the mount commands of a snapshot"),
    "snapshots prepare": ("snapshots", (), "Make an active snapshot"),
    "snapshots delete": ("snapshots", ("del", "remove", "rm"), "Remove snapshots"),
    "snapshots tree": ("snapshots", (), "Print the snapshots as a tree"),
    "snapshots unpack": ("snapshots", (), "Unpack the layers of a manifest"),
    "snapshots usage": ("snapshots", (), "Show what snapshots take"),
    "snapshots view": ("snapshots", (), "Make a read-only snapshot"),
    "leases create": ("leases", (), "Create a lease"),
    "leases delete": ("leases", ("del", "remove", "rm"), "Delete leases"),
    "leases list": ("leases", ("ls",), "List leases"),
    "containers checkpoint": ("checkpoint", (), "Save a container as an image"),
    "containers create": ("run", (), "Create a container"),
    "containers delete": ("containers", ("del", "remove", "rm"), "Delete containers"),
    "containers info": ("containers", (), "Print what is known of a container"),
    "containers label": ("containers", (), "Set or clear labels"),
    "containers list": ("containers", ("ls",), "List containers"),
    "containers restore": ("checkpoint", (), "Make a container of a saved one"),
    "tasks attach": ("tasks", (), "Attach to the input and output of a container"),
    "tasks checkpoint": ("checkpoint", (), "Save a running container as an image"),
    "tasks delete": ("tasks", ("del", "remove", "rm"), "Delete tasks"),
    "tasks exec": ("tasks", (), "Run a further process in a container"),
    "tasks kill": ("tasks", (), "Send a signal to a container"),
    "tasks list": ("tasks", ("ls",), "List tasks"),
    "tasks metrics": ("tasks", ("metric",), "Show what a task uses"),
    "tasks pause": ("tasks", (), "Freeze a container"),
    "tasks ps": ("tasks", (), "List the processes of a container"),
    "tasks resume": ("tasks", (), "Thaw a container"),
    "tasks start": ("tasks", (), "Start a container that exists"),
    "pprof block": ("pprof", (), "Where goroutines wait"),
    "pprof goroutines": ("pprof", (), "The stacks of all goroutines"),
    "pprof heap": ("pprof", (), "What the memory is used for"),
    "pprof profile": ("pprof", (), "Where the time goes"),
    "pprof threadcreate": ("pprof", (), "What made the threads"),
    "pprof trace": ("pprof", (), "A trace of what happens"),
    "sandboxes run": ("sandboxes", ("create", "c", "r"), "Run a sandbox"),
    "sandboxes list": ("sandboxes", ("ls",), "List sandboxes"),
    "sandboxes remove": ("sandboxes", ("rm",), "Remove sandboxes"),
    "shim delete": ("shim", (), "Delete the task"),
    "shim exec": ("shim", (), "Run a further process"),
    "shim start": ("shim", (), "Start the task"),
    "shim state": ("shim", (), "Print the state of the task"),
    "shim shutdown": ("shim", (), "End the shim, where it has no container"),
    "shim pprof block": ("pprof", (), "Where goroutines of the shim wait"),
    "shim pprof goroutines": ("pprof", (), "The stacks of all goroutines of the shim"),
    "shim pprof heap": ("pprof", (), "What the shim's memory is used for"),
    "shim pprof profile": ("pprof", (), "Where the shim's time goes"),
    "shim pprof threadcreate": ("pprof", (), "What made the shim's threads"),
    "shim pprof trace": ("pprof", (), "A trace of what happens in the shim"),
}


class Command:
    def __init__(self, function: Callable[[Ctr, Options, list[str]], int | None], usage: str, table: str = "") -> None:
        self.function = function
        self.usage = usage
        self.table = table


class Ctr:
    """What a command gets."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._client: Client | None = None

    @property
    def namespace(self) -> str:
        name: str = self.options["namespace"]
        return name

    @property
    def client(self) -> Client:
        if self._client is None:
            from teu.ctr.client import Client  # 90 ms, which help and completion do without

            options = self.options
            self._client = Client(
                options["address"], options["namespace"], options["timeout"], options["connect-timeout"]
            )
        return self._client

    def print(self, text: str) -> None:
        sys.stdout.write(text + "\n")


def find(words: list[str]) -> tuple[str, list[str], Options]:
    """(full name, the words after it, options of its group); the name of a group alone means its help.
    Raises CommandError for an unknown word and Usage for a wrong option of a group."""
    full, given = "", Options()
    while True:
        word, *rest = words
        for name, (aliases, *_) in [*GROUPS.items(), *((name, entry[1:2]) for name, entry in COMMANDS.items())]:
            group, _, last = name.rpartition(" ")
            if group == full and (word == last or word in aliases):
                break
        else:
            raise CommandError(f"No help topic for '{word}'", 3)
        if name in COMMANDS:
            return name, rest, given
        full = name
        table = GROUP_FLAGS.get(full, "")
        found, words = parse(parse_table(table), rest)
        given.update(found)
        given.changed |= found.changed
        if not words or words[0] in ("help", "h") or found["help"]:
            return full, words, given


def load(name: str) -> Command:
    command: Command = import_module("teu.ctr." + COMMANDS[name][0]).COMMANDS[name]
    return command


def all_flags(name: str, command: Command) -> list[Flag]:
    """Of a command and of the group that it is in."""
    own = parse_table(command.table)
    names = {flag.name for flag in own}
    return own + [flag for flag in parse_table(GROUP_FLAGS.get(name.partition(" ")[0], "")) if flag.name not in names]


def last_word(full: str) -> str:
    return full.rpartition(" ")[2]


def need(operands: list[str], *names: str) -> list[str]:
    """The operands, which must be there; a missing one is told by its name, or by what asks for it."""
    for number, name in enumerate(names):
        if number >= len(operands) or not operands[number]:
            raise CommandError(name if name.startswith(("please ", "must ")) else f"{name} must be provided")
    return operands
