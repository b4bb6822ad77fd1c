# SPDX-License-Identifier: Apache-2.0
"""How the rooms stand upon each other: worker, executor, sources, operations, solver, caches, exporters, frontends.

Called by the daemon. This is the one place that knows all of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from teu.buildkit.cache.store import Store
from teu.buildkit.control.boxes import Boxes
from teu.buildkit.control.build import Rooms
from teu.buildkit.control.containers import Containers
from teu.buildkit.control.programs import Runner
from teu.buildkit.control.view import BuildBridge
from teu.buildkit.core import errors
from teu.buildkit.core.op import Op
from teu.buildkit.exporters.registry import Exporters
from teu.buildkit.frontends import builtin, gateway
from teu.buildkit.llb import platforms
from teu.buildkit.llb.load import Graph, Vertex, load
from teu.buildkit.llb.policy import all_of
from teu.buildkit.ops import containers as places
from teu.buildkit.ops.build import BuildOp
from teu.buildkit.ops.diff import DiffOp
from teu.buildkit.ops.exec import ExecOp, Steps
from teu.buildkit.ops.file import FileOp
from teu.buildkit.ops.merge import MergeOp
from teu.buildkit.ops.passthrough import PassthroughOp
from teu.buildkit.ops.source import SourceOp
from teu.buildkit.session import exporter, verifier
from teu.buildkit.session.manager import Manager
from teu.buildkit.solver.jobs import Solver
from teu.buildkit.sources import registries
from teu.buildkit.sources.base import Sources
from teu.buildkit.sources.caches import Caches
from teu.buildkit.sources.git import Repositories
from teu.buildkit.sources.http import Downloads
from teu.buildkit.sources.image import Images
from teu.buildkit.sources.local import Locals
from teu.buildkit.sources.manifests import Documents
from teu.buildkit.sources.ocilayout import Layouts
from teu.buildkit.worker import executor, network
from teu.buildkit.worker.client import Client
from teu.buildkit.worker.keeper import WorkerKeeper
from teu.buildkit.worker.worker import ContainerdWorker
from teu.config import Settings
from teu.oci import cdi

log = logging.getLogger("teu.buildkit")

LABEL = "org.mobyproject.buildkit.worker."
SOLVER_SECONDS = 5.0  # for operations to end when the builder stops
BINFMT = "/proc/sys/fs/binfmt_misc"
MODES = {"bridge": executor.SANDBOX, "host": executor.HOST, "none": executor.NONE}

# What programs an emulator is registered for: the class, the byte order and the machine in the head of their ELF files
# (e_ident, e_machine), and the platforms they are of.
EMULATED = {
    (2, "little", 183): ("linux/arm64",),
    (1, "little", 40): ("linux/arm/v7", "linux/arm/v6"),
    (1, "little", 3): ("linux/386",),
    (2, "little", 62): ("linux/amd64",),
    (2, "little", 243): ("linux/riscv64",),
    (2, "little", 21): ("linux/ppc64le",),
    (2, "big", 22): ("linux/s390x",),
    (2, "little", 8): ("linux/mips64le",),
    (2, "big", 8): ("linux/mips64",),
    (2, "little", 258): ("linux/loong64",),
}
ORDERS = {1: "little", 2: "big"}


def host_platforms(folder: str = BINFMT) -> list[str]:
    """The host's platform, and those that an emulator is registered for now."""
    host = platforms.host()
    found = [str(host)]
    if host.architecture == "amd64":
        found.append("linux/386")
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return found
    for name in names:
        if name not in ("register", "status"):
            found += [one for one in emulated(os.path.join(folder, name)) if one not in found]
    return found


def emulated(path: str) -> tuple[str, ...]:
    """The platforms that an entry of binfmt_misc emulates; none where it is switched off, is for something else, or
    where the kernel would look for the emulator in the root of the step (without the flag F)."""
    try:
        lines = Path(path).read_text("ascii", "replace").splitlines()
    except OSError:
        return ()
    fields = dict(line.rstrip().rpartition(" ")[::2] for line in lines)
    try:
        head = bytes.fromhex(fields.get("magic", ""))
    except ValueError:
        return ()
    if lines[:1] != ["enabled"] or "F" not in fields.get("flags:", "") or not head.startswith(b"\x7fELF"):
        return ()
    order = ORDERS.get(head[5] if len(head) > 19 else 0)
    if order is None or fields.get("offset", "0") != "0":
        return ()
    machine = head[18] | head[19] << 8 if order == "little" else head[18] << 8 | head[19]
    return EMULATED.get((head[4], order, machine), ())


class Work:
    """What builds are made with, from the worker up to the solver. Nothing is asked of containerd before `start`."""

    def __init__(self, settings: Settings, store: Store, sessions: Manager) -> None:
        self.settings = settings
        self.sessions = sessions
        wanted = settings["worker"]
        self.client = Client(settings["containerd"], settings["namespace"])
        labels = {LABEL + "hostname": os.uname().nodename, LABEL + "network": settings["network"]["mode"]}
        self.worker = ContainerdWorker(
            self.client,
            store,
            settings["root"],
            snapshotter=wanted["snapshotter"],
            labels={**labels, **wanted["labels"]},
            platforms=(lambda: wanted["platforms"]) if wanted["platforms"] else host_platforms,
        )
        self.keeper = WorkerKeeper(self.worker, settings["root"])
        self.executor = executor.Executor(self.client, self.worker.id, _steps(settings))
        self.devices = cdi.Devices(settings["devices"]["folders"], settings["devices"]["allowed"])
        self.steps = Steps(self.worker, self.executor, sessions, devices=self.devices)
        self.containers = places.Containers(self.steps)
        documents = Documents(self.worker.content)
        self.access = access = registries.Access(sessions, _registries(settings))
        self.repositories = Repositories(self.worker, sessions, os.path.join(settings["state"], "git"))
        self.sources = Sources(
            {
                "docker-image": Images(self.worker, access, documents),
                "oci-layout": Layouts(self.worker, sessions, documents),
                "local": Locals(self.worker, sessions),
                "git": self.repositories,
                "http": Downloads(self.worker, sessions, "http"),
                "https": Downloads(self.worker, sessions, "https"),
            }
        )
        self.caches = Caches(self.worker, access, sessions, documents)
        self.solver = Solver(store, self.resolve, settings["parallelism"])

    def start(self) -> None:
        """Raises errors.Error; Unavailable where containerd does not answer."""
        self.worker.start()
        self.executor.recover()
        self.repositories.recover()

    def stop(self) -> None:
        if not self.solver.close(SOLVER_SECONDS):
            log.warning("some operations have not ended")
        self.executor.close()
        self.worker.close()
        self.client.close()

    def resolve(self, vertex: Vertex) -> Op:
        """The operation of a vertex. Raises errors.Error."""
        make = self._makers().get(vertex.kind)
        if make is None:
            raise errors.Unimplemented(f"no operation {vertex.kind}")
        return make(vertex)

    def nested(self, definition: Any, context: Any) -> Graph:
        return nested(definition, context, self.devices)

    def _makers(self) -> Mapping[str, Callable[[Vertex], Op]]:
        return {
            "source": lambda vertex: SourceOp(vertex, self.worker, self.sources),
            "exec": lambda vertex: ExecOp(vertex, self.steps),
            "file": lambda vertex: FileOp(vertex, self.worker),
            "merge": lambda vertex: MergeOp(vertex, self.worker),
            "diff": lambda vertex: DiffOp(vertex, self.worker),
            "build": lambda vertex: BuildOp(vertex, self.worker, self.nested),
            "passthrough": lambda vertex: PassthroughOp(vertex, self.worker),
        }


class Added:
    """build.SessionExporters."""

    def __init__(self, sessions: Manager) -> None:
        self._sessions = sessions

    def find(self, session: str, metadata: Mapping[str, bytes]) -> Sequence[exporter.Request]:
        return exporter.find(self._sessions.get(session), metadata, [])

    def finish(self, session: str, values: Mapping[str, str]) -> None:
        exporter.finalize(self._sessions.get(session), values)


def nested(definition: Any, context: Any, devices: cdi.Devices | None = None) -> Graph:
    """A definition that a step wrote, for a BuildOp: it may no more than each of the builds that it is for, and their
    policies hold for it. Raises load.Invalid, caps.CapError, errors.PermissionDenied."""
    builds = [job.rules for job in context.jobs() if job.rules is not None]
    given = [build.entitlements.given for build in builds]
    policies = [policy for build in builds if (policy := build.policy()) is not None]
    return load(
        definition,
        policy=all_of(policies),
        entitlements=frozenset.intersection(*given) if given else frozenset(),
        devices=devices,
    )


def _steps(settings: Settings) -> executor.Settings:
    wanted, net, dns = settings["worker"], settings["network"], settings["dns"]
    return executor.Settings(
        state=os.path.join(settings["state"], "steps"),
        runtime=wanted["runtime"],
        slice=wanted["slice"],
        apparmor=wanted["apparmor-profile"],
        default=MODES[net["mode"]],
        pids=wanted["pids-limit"],
        network=network.Settings(
            net["subnet"],
            net["mtu"],
            net["pool"],
            tuple(dns["servers"]),
            tuple(dns["search"]),
            tuple(dns["options"]),
        ),
    )


def _registries(settings: Settings) -> registries.Configuration:
    hosts = {
        name: registries.Host(
            tuple(one["mirrors"]),
            one["http"],
            one["insecure"],
            tuple(one["ca"]),
            tuple(zip(one["certificates"], one["keys"], strict=True)),
        )
        for name, one in settings["registries"].items()
    }
    return registries.Configuration(hosts, settings["certs"], settings["certs"], policy=settings["image-policy"])


def containers(work: Work, view: BuildBridge) -> Containers:
    """Those that the frontend of a build makes for itself."""
    return Containers(work.containers, [view.session] if view.session else [], view.build.entitlements.given)


def together(work: Work, worker: Callable[[], Any], workers: Callable[[], Any]) -> Rooms:
    """What a build stands on. `worker` and `workers` are what frontends are told of it, by LLBBridge and in the
    environment of their containers."""
    settings = work.settings
    frontends = settings["frontends"]
    runner = Runner(Boxes(work.steps), f"{settings['state']}/frontends", worker, lambda view: containers(work, view))
    return Rooms(
        work.solver,
        work.sources,
        work.caches,
        Exporters(work.worker, work.sessions, work.access),
        gateway.Images(
            runner,
            workers,
            lambda: frontends["allowed-repositories"],
            lambda: bool(frontends["gateway"]),
        ),
        [platforms.parse(text) for text in work.worker.platforms],
        frozenset(settings["entitlements"]),
        session_exporters=Added(work.sessions),
        devices=work.devices,
        verify=lambda session, asked: verifier.check(work.sessions.get(session), asked),
        is_builtin=lambda reference: not frontends["fetch-dockerfile"] and builtin.is_own(reference),
    )
