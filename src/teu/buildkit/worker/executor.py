# SPDX-License-Identifier: Apache-2.0
"""How a step runs: as a task of containerd, in a scope under teu-build.slice. Called by ops.exec, and for containers of
frontends.

    box = executor.box(Wish(root, mounts, …))       all that its processes share is there; nothing runs
    process = box.start(Process(("make",)), out)    the first process; the others end with it
    other = box.execute(Process(("sh",)), out)
    code = process.wait()
    box.release()                                   what still runs is killed; nothing of it is left but the root

    STATE/ID/     a step's folder, root's alone: FIFOs, hosts, what mounts.py has there, and its root, mounted once
    label         io.teu.builder on the container: whose step it is. Who finds one of his own at his start has died
                  before, and removes it.

A secret is at rest nowhere: as a file it is in a tmpfs, and as a variable it goes to the shim with the task, beside the
record that containerd has of the container. Our own shim alone takes it so; for others it is in the record meanwhile.

`kill` may be called at any time by any thread: what runs gets SIGKILL, what would start does not.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from teu.api.buildkit import gateway_pb2
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Mount
from teu.buildkit.worker import mounting, mounts, network, roots, samples, spec, tasks
from teu.buildkit.worker.client import Client
from teu.buildkit.worker.spec import Limits, Process
from teu.buildkit.worker.stdio import Output, Stdio
from teu.linux import apparmor, inside, trees
from teu.oci import cdi, users

log = logging.getLogger("teu.buildkit")

SLICE = "teu-build.slice"
SANDBOX, HOST, NONE = 0, 1, 2  # pb.NetMode
SIGKILL = 9
KILL_POLL_SECONDS = 0.1
OUTPUT_SECONDS = 5.0  # for the rest of a process's output, where others of its box still hold its streams
NAME_MAX = 200  # characters of what people see of a step in its scope's description

# Exit statuses of a process that the runtime could not run, as runc itself ends with, which BuildKit starts steps by.
NOT_RUN, NOT_EXECUTED = 1, 255
_NOT_RUN = re.compile(
    r"OCI runtime (?:create|start|exec) failed: (?:runc (?:create|start) failed: |exec failed: )?(.*?)(?:: unknown)?\Z",
    re.DOTALL,
)

_ID = re.compile(r"[A-Za-z0-9]{1,76}\Z")  # BuildKit's, and no longer than containerd takes it


class Tree(Protocol):
    """The root of a step: an Active."""

    def mounts(self) -> list[Mount]: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """`state`: a folder that a reboot ends, the executor's own; `run`: that of all programs. `runtime`: "" for what the
    daemon prefers. `default`: the network of steps that ask for none (SANDBOX, HOST or NONE). `pids`: how many
    processes a step may have, 0 for any."""

    state: str = "/run/teu/buildkit/steps"
    run: str = "/run/teu"
    runtime: str = ""
    slice: str = SLICE
    apparmor: str = apparmor.DEFAULT
    default: int = SANDBOX
    pids: int = 0
    network: network.Settings = field(default_factory=network.Settings)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the processes of a box share. `extra_hosts`: (name, address). `recursive`: folders that were made for places
    of mounts go, too. `first`: what will be started first, where that is known already. `name`: for people. `sampled`:
    what it uses is to be looked at now and then. `devices`: what those of the host give.

    Raises errors.InvalidArgument where a text has a zero byte."""

    root: Tree
    mounts: Sequence[mounts.Wanted] = ()
    readonly: bool = False
    network: int = SANDBOX
    insecure: bool = False
    hostname: str = ""
    extra_hosts: Sequence[tuple[str, str]] = ()
    cgroup_parent: str = ""
    limits: Limits = Limits()
    recursive: bool = True
    first: Process | None = None
    name: str = ""
    sampled: bool = False
    devices: cdi.Edits = cdi.Edits()

    def __post_init__(self) -> None:
        spec.check_texts("the place of a mount", [one.dest for one in self.mounts])
        spec.check_texts("the source of a mount", [one.selector for one in self.mounts if isinstance(one, mounts.Bind)])
        spec.check_texts("a host's name", [self.hostname, *(text for pair in self.extra_hosts for text in pair)])
        spec.check_texts("a parent of cgroups", (self.cgroup_parent,))


class Executor:
    """`owner`: the worker's id."""

    def __init__(self, client: Client, owner: str, settings: Settings) -> None:
        self.client = client
        self.owner = owner
        self.settings = settings
        self.network = network.Network(settings.network, settings.run)
        self._lock = threading.Lock()
        self._runtime: tasks.Runtime | None = None
        self._boxes: dict[str, Box] = {}
        self._closed = False

    @property
    def runtime(self) -> tasks.Runtime:
        with self._lock:
            if self._runtime is None:
                self._runtime = tasks.Runtime.of(self.client, self.settings.runtime)
            return self._runtime

    def recover(self) -> None:
        """At the start, before any box: what a predecessor left running ends, and what is left of it goes. What cannot
        be removed now is logged, and is tried again at the next start."""
        for identity in tasks.list_containers(self.client, self.owner):
            log.info("removing step %s, which an earlier builder left", identity)
            try:
                tasks.discard(self.client, identity)
            except errors.Error as error:
                log.warning("step %s cannot be removed: %s", identity, error)
        state = self.settings.state
        for name in os.listdir(state) if os.path.isdir(state) else ():
            if _ID.match(name) and name not in self._boxes:
                _remove_folder(f"{state}/{name}")
        self.network.sweep()

    def warm(self, mode: int = SANDBOX) -> None:
        """A step with this network is about to run: what it needs may be made meanwhile."""
        if self._mode(mode) == SANDBOX:
            self.network.warm()

    def _mode(self, mode: int) -> int:
        return self.settings.default if mode == SANDBOX else mode

    def box(self, wish: Wish, identity: str = "") -> Box:
        """`identity`: letters and digits, or "" for any. Raises errors.Error."""
        identity = identity or secrets.token_hex(16)
        if not _ID.match(identity):
            raise errors.InvalidArgument(f"invalid container id {identity!r}: only letters and numbers are allowed")
        with self._lock:
            if self._closed:
                raise errors.Unavailable("the builder is stopping")
            if identity in self._boxes:
                raise errors.AlreadyExists(f"container {identity} already exists")
            box = self._boxes[identity] = Box(self, wish, identity)
        try:
            box.prepare()
        except BaseException:
            box.release()
            raise
        return box

    def forget(self, identity: str) -> None:
        with self._lock:
            self._boxes.pop(identity, None)

    def boxes(self) -> list[Box]:
        with self._lock:
            return list(self._boxes.values())

    def close(self) -> None:
        """The builder goes: all that runs is killed, and the network taken away."""
        with self._lock:
            self._closed = True
        for box in self.boxes():
            box.kill()
        for box in self.boxes():
            box.release()
        self.network.close()


class Running:
    """One process of a box. `wait` and `close` are its starter's; the rest may be called by any thread."""

    def __init__(self, box: Box, exec_id: str, stdio: Stdio, code: int | None = None) -> None:
        """`code`: the exit status of one that never ran."""
        self._box = box
        self._exec_id = exec_id
        self._stdio = stdio
        self._code = code
        self._waiting = threading.Lock()

    def wait(self) -> int:
        """The exit status, when it has ended and all that it wrote has been handed on. Twice is fine."""
        with self._waiting:
            if self._code is None:
                code = tasks.wait(self._box.client, self._box.id, self._exec_id)
                self._box.ended(self._exec_id, code)
                if not self._stdio.finish(OUTPUT_SECONDS):
                    log.debug("step %s: a process left others behind that hold its output", self._box.id)
                if self._exec_id:
                    tasks.delete_exec(self._box.client, self._box.id, self._exec_id)
                self._code = code
            return self._code

    def signal(self, number: int) -> None:
        """Raises errors.Error; one that has ended is fine."""
        try:
            tasks.kill(self._box.client, self._box.id, number, self._exec_id)
        except errors.NotFound:
            pass

    def resize(self, width: int, height: int) -> None:
        try:
            tasks.resize(self._box.client, self._box.id, width, height, self._exec_id)
        except errors.NotFound:
            pass

    def write(self, data: bytes) -> None:
        """To its standard input. BrokenPipeError where nobody reads it."""
        self._stdio.write(data)

    def close_input(self) -> None:
        self._stdio.close_input()
        tasks.close_stdin(self._box.client, self._box.id, self._exec_id)


class Box:
    """A step, or a frontend's container: what its processes share."""

    def __init__(self, executor: Executor, wish: Wish, identity: str) -> None:
        self.id = identity
        self.client = executor.client
        self.out_of_memory = False  # whether the kernel killed one of its processes for that
        self.samples: samples.Sampler | None = None
        self._executor = executor
        self._wish = wish
        self._folder = f"{executor.settings.state}/{identity}"
        self._undo = ExitStack()
        self._stubs: roots.Stubs | None = None
        self._lock = threading.Lock()
        self._killed = threading.Event()
        self._made = False  # there is a container, or may be
        self._first: Running | None = None
        self._ended = False
        self._released = False
        self._processes = 0
        self._cgroup = ""
        self._memory = samples.MemoryWatch("")
        self._apparmor = ""
        self._files: users.Files = (b"", b"")
        self._tree: list[Mount] = []
        self._root = ""  # where the builder has mounted it
        self._entries: list[dict[str, Any]] = []
        self._namespace: str | None = None
        self._named = False
        self._covers: tuple[str, ...] = ()

    # Before and after

    def prepare(self) -> None:
        """All that is there before the first process. Raises errors.Error."""
        wish, settings = self._wish, self._executor.settings
        os.makedirs(settings.state, 0o711, exist_ok=True)
        os.mkdir(self._folder, 0o700)
        self._undo.callback(_remove_folder, self._folder)
        self._take_network()
        self._apparmor = "" if wish.insecure else _profile(settings.apparmor)
        places = mounts.Places(self._folder, self._undo)
        needed: list[tuple[str, str]] = []
        for wanted in wish.mounts:
            entry, kind = places.entry(wanted)
            self._entries.append(entry)
            needed.append((wanted.dest, kind))
        taken = {dest for dest, _ in needed}
        for dest, text in self._own_files().items():
            if dest not in taken:
                path = f"{self._folder}/{os.path.basename(dest)}"
                Path(path).write_text(text, "utf-8", "surrogateescape")
                options = ["nosuid", "noexec", "nodev", "rbind", "rprivate", "ro"]
                self._entries.append({"destination": dest, "type": "bind", "source": path, "options": options})
                needed.append((dest, "file"))
        for given in wish.devices.mounts:
            dest = given["destination"]
            self._entries = [entry for entry in self._entries if entry["destination"] != dest] + [dict(given)]
            file = given["type"] == "bind" and not os.path.isdir(given["source"])
            needed.append((dest, "file" if file else "dir"))
            taken.add(dest)
        self._covers = tuple(sorted(taken))
        self._mount_root()
        stubs = roots.Stubs(wish.recursive)
        with self._opened() as root:
            self._files = _databases(root)
            self._stubs = stubs
            self._undo.callback(self._remove_stubs)
            stubs.make(root, needed)
            if wish.first is not None:
                self._make_directory(root, wish.first)

    def _mount_root(self) -> None:
        """Once for all that is done with it: before the step, by the runtime, which gets a bind of it, and after the
        step. Each unmounting of an overlay has the kernel write out the whole file system that it is on, and one with
        more folders than fsconfig(2) takes would need a mount namespace each time."""
        self._tree = self._wish.root.mounts()
        if len(self._tree) != 1 or self._tree[0].type != "overlay":
            return
        place = f"{self._folder}/root"
        os.mkdir(place, 0o700)
        mounting.mount_one(self._tree[0], place)
        self._undo.callback(trees.unmount, place)
        self._root = place
        self._tree = [Mount("bind", place, ("rbind", "rw"))]

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The root as a descriptor, for the block. Raises OSError."""
        if not self._root:
            with roots.opened(self._tree) as root:
                yield root
            return
        root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield root
        finally:
            os.close(root)

    def _take_network(self) -> None:
        mode = self._executor._mode(self._wish.network)
        if mode == SANDBOX:
            sandbox = self._executor.network.take()
            dirty = self._wish.insecure
            self._undo.callback(lambda: self._executor.network.give_back(sandbox, dirty=dirty))
            self._namespace, self._named = sandbox.path, sandbox.named
        elif mode == NONE:
            self._namespace = ""
        elif mode != HOST:
            raise errors.InvalidArgument(f"unknown network mode {mode}")

    def _own_files(self) -> Mapping[str, str]:
        wish, own = self._wish, self._namespace is not None
        resolv = network.resolv_conf(self._executor.settings.network, own, self._named)
        gateway = self._executor.network.gateway if self._namespace else ""
        return {
            "/etc/resolv.conf": resolv,
            "/etc/hosts": network.hosts(wish.hostname, wish.extra_hosts, gateway),
        }

    def _remove_stubs(self) -> None:
        """Twice is fine."""
        stubs, self._stubs = self._stubs, None
        if stubs is None:
            return
        try:
            with self._opened() as root:
                stubs.remove(root)
        except OSError as error:
            log.warning("step %s: places of mounts stay in its root: %s", self.id, error)

    def release(self) -> None:
        """Everything ends; the root is the caller's again. Never fails, twice is fine."""
        self.kill()
        with self._lock:
            if self._released:
                return
            self._released = True
            made, first = self._made, self._first
        if first is not None:
            try:
                first.wait()
            except errors.Error as error:
                log.debug("step %s: %s", self.id, error)
        if made:
            try:
                tasks.discard(self.client, self.id)
            except errors.Error as error:
                log.warning("step %s cannot be removed: %s", self.id, error)
        if self.samples is not None:
            self.samples.close()
        try:
            self._undo.close()
        except Exception:
            log.exception("step %s is not all cleared away", self.id)
        self._executor.forget(self.id)

    @contextmanager
    def releasing(self) -> Iterator[None]:
        """After the first process' end, which is that of all: `release` goes on beside the block, and has come to its
        end when the block is left. In the block the root does not change any more, and may be committed; but it may
        be mounted still, so nobody may see the result of that before the end. Where the root is no overlay, whose
        folders a commit leaves where they are, the release comes first."""
        if not self._root:
            self.release()
            yield
            return
        self._remove_stubs()
        thread = threading.Thread(target=self.release, name="release", daemon=True)
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def kill(self) -> None:
        """SIGKILL to all of it, now and until it has ended; waits for that no longer than a call takes."""
        with self._lock:
            again = self._killed.is_set()
            self._killed.set()
            running = self._made and not self._ended
        if running and not again:
            threading.Thread(target=self._kill, name="kill", daemon=True).start()

    def _kill(self) -> None:
        while not self._ended:
            try:
                tasks.kill(self.client, self.id, SIGKILL, everything=True)
            except errors.Error as error:
                log.debug("step %s: kill: %s", self.id, error)
            time.sleep(KILL_POLL_SECONDS)

    def _check(self) -> None:
        if self._killed.is_set():
            raise errors.Cancelled("context canceled")

    # Processes

    def start(
        self, process: Process, out: Output | None = None, err: Output | None = None, *, stdin: bool = False
    ) -> Running:
        """The first process. One that the runtime cannot run, as there is no such program, has ended already, and has
        written why, as with BuildKit. Raises errors.Error."""
        self._check()
        user = self._user(process)
        wish, settings = self._wish, self._executor.settings
        if process is not wish.first:
            with self._opened() as root:
                self._make_directory(root, process)
        limits = wish.limits if wish.limits.pids else replace(wish.limits, pids=settings.pids)
        around = spec.Surroundings(
            hostname=wish.hostname or network.HOSTNAME,
            namespace=self._namespace,
            cgroup=spec.cgroups_path(
                wish.cgroup_parent, self.id, own_slice=settings.slice, systemd=os.path.isdir("/run/systemd/system")
            ),
            mounts=self._entries,
            readonly=wish.readonly,
            insecure=wish.insecure,
            limits=limits,
            name=_plain(wish.name or " ".join(process.args)),
        )
        runtime = self._executor.runtime
        # What containerd has of a container is on its disk: the shim is told secrets itself, where it is ours.
        apart = runtime.takes_environment
        told = spec.build(self._process(process, user, secrets=not apart), around)
        if any(wish.devices):
            spec.give(told, wish.devices)
        secret = process.secrets if apart else ()
        stdio = Stdio(self._folder, out, err, terminal=process.terminal, stdin=stdin)
        try:
            with self._lock:
                self._check()
                self._made = True
            tasks.create_container(self.client, self.id, self._executor.owner, runtime, told, {})
            pid = tasks.create(self.client, self.id, self._tree, stdio.paths, process.terminal, runtime, secret)
            if process.secrets and not apart:
                # The runtime has them: nobody who looks at the container is to see them while it runs.
                shown = {**told, "process": self._process(process, user, secrets=False)}
                tasks.change_spec(self.client, self.id, shown)
            self._cgroup = samples.cgroup_of(pid)
            self._memory = samples.MemoryWatch(self._cgroup)
            self._check()
            tasks.start(self.client, self.id)
        except BaseException as error:
            self._ended = True
            stdio.discard()
            if self._killed.is_set():
                raise errors.Cancelled("context canceled") from error
            if (words := _not_run(error)) is None:
                raise
            _written(process, out, err)(b"runc run failed: %s\n" % words)
            self._first = Running(self, "", stdio, NOT_RUN)
            return self._first
        stdio.begin()
        first = self._first = Running(self, "", stdio)
        if wish.sampled and self._cgroup:
            self.samples = samples.Sampler(self._cgroup)
        return first

    def execute(
        self, process: Process, out: Output | None = None, err: Output | None = None, *, stdin: bool = False
    ) -> Running:
        """One more process, while the first one runs; as `start` where it cannot be run. Raises errors.Error."""
        self._check()
        if self._first is None or self._ended:
            raise errors.FailedPrecondition(f"container {self.id} {'has stopped' if self._first else 'does not run'}")
        with self._lock:
            self._processes += 1
            exec_id = f"exec{self._processes}"
        folder = f"{self._folder}/{exec_id}"
        os.mkdir(folder, 0o700)
        stdio = Stdio(folder, out, err, terminal=process.terminal, stdin=stdin)
        try:
            told = self._process(process, self._user(process))
            tasks.execute(self.client, self.id, exec_id, told, stdio.paths, process.terminal)
            try:
                tasks.start(self.client, self.id, exec_id)
            except BaseException:
                tasks.delete_exec(self.client, self.id, exec_id)
                raise
        except BaseException as error:
            stdio.discard()
            if (words := _not_run(error)) is None:
                raise
            _written(process, out, err)(b"exec failed: %s\n" % words)
            return Running(self, exec_id, stdio, NOT_EXECUTED)
        stdio.begin()
        return Running(self, exec_id, stdio)

    def _make_directory(self, root: int, process: Process) -> None:
        user = self._user(process)
        roots.make_directory(root, process.cwd, self._covers, user.uid, user.gid)

    def _user(self, process: Process) -> users.User:
        try:
            return users.lookup(self._files, process.user)
        except ValueError as error:
            raise errors.Error(str(error)) from None

    def _process(self, process: Process, user: users.User, *, secrets: bool = True) -> dict[str, Any]:
        return spec.process(
            process,
            user,
            insecure=self._wish.insecure,
            limits=self._wish.limits,
            apparmor=self._apparmor,
            secrets=secrets,
        )

    def ended(self, exec_id: str, status: int) -> None:
        """Told by a process of its own that has ended."""
        if not exec_id:
            self._ended = True
            self.out_of_memory = self._memory.ran_out(status)
            if self.samples is not None:
                self.samples.close()


def _databases(root: int) -> users.Files:
    return inside.read_file(root, "/etc/passwd"), inside.read_file(root, "/etc/group")


def _profile(name: str) -> str:
    try:
        return apparmor.default_profile(name)
    except apparmor.NotLoaded as error:
        raise errors.Error(str(error)) from None


def _not_run(error: BaseException) -> bytes | None:
    """Why the runtime cannot run a process; None where it is something else that failed."""
    found = _NOT_RUN.search(error.message) if isinstance(error, errors.Error) else None
    return found[1].encode("utf-8", "surrogateescape") if found else None


def _written(process: Process, out: Output | None, err: Output | None) -> Output:
    """Who gets what is said in a process's place."""
    output = out if process.terminal else err
    return output if output is not None else lambda data: None


def _plain(text: str) -> str:
    """One line, for a unit's description."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= NAME_MAX else line[: NAME_MAX - 1] + "…"


def _remove_folder(folder: str) -> None:
    """A step's folder with what is mounted in it. Never fails."""
    for place in sorted(trees.mounts_below(folder), reverse=True):
        try:
            trees.unmount(place)
        except OSError as error:
            log.warning("%s cannot be unmounted: %s", place, error)
    trees.discard_tree(folder)


# What is told of a process that failed


def quoted(text: str) -> str:
    """A text in quotation marks, as Go's %q writes it."""
    out = ['"']
    for character in text:
        if character in '"\\':
            out.append("\\" + character)
        elif character in _SHORT:
            out.append(_SHORT[character])
        elif 0xDC80 <= ord(character) <= 0xDCFF:  # a byte that is no text
            out.append(f"\\x{ord(character) - 0xDC00:02x}")
        elif character.isprintable():
            out.append(character)
        elif ord(character) < 0x80:
            out.append(f"\\x{ord(character):02x}")
        else:
            out.append(f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}")
    return "".join([*out, '"'])


_SHORT = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def failure(code: int, *, out_of_memory: bool = False, valid: Iterable[int] = ()) -> errors.Error | None:
    """The error that an exit status is, with BuildKit's words and the status as a detail; None where it is one of the
    valid ones, or zero where none are named."""
    if code in (tuple(valid) or (0,)):
        return None
    text = "cannot allocate memory" if out_of_memory else f"exit code: {code}"
    return errors.Error(text, [gateway_pb2.ExitMessage(Code=code)])
