# SPDX-License-Identifier: Apache-2.0
"""Runs the shim's usual paths once in the zygote, so that what they load and specialise is shared.

Python loads some modules late and rewrites hot bytecode in place; done in each shim, both would be
private memory of each.

What is alive then is made immortal: nothing in it counts references any more, so its pages stay shared. The holes of
the heap are filled and the collector is told to leave all of it alone. A shim is forked before its parameters are
known, and what is needed once (JSON, D-Bus, mounts) is done in helpers that it forks.
"""

from __future__ import annotations

import _ctypes
import gc
import os
import sys

from teu.linux import mountflags, sockets
from teu.linux.calling import c_long, function
from teu.oci import jsontext
from teu.shim import cgroup, placement, runtime
from teu.shim.loop import Loop
from teu.shim.publisher import Publisher
from teu.shim.service import Service, read_options
from teu.systemd.bus import marshal, unmarshal
from teu.ttrpc import frames
from teu.ttrpc import messages as m
from teu.ttrpc.server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any
else:
    import _signal as signal  # signal is 0.9 MiB more (see teu.linux.sockets)

# Python specialises a function's bytecode after some runs of it.
ROUNDS = 12

# Where the rounds take place, as nobody else writes there; else among the temporary files.
PLACE, PREFIX = "/run/teu", "warm-"

_FUNCFLAG_CDECL = 1

# The reference counts of immortal objects: in Python 3.12 and 3.13, and in 3.14, where it is half of a word.
_IMMORTAL = (0xFFFFFFFF, 0xC0000000)


def run() -> None:
    """The runtime's program, and a shim's life without a container, a few times over."""
    runtime.load()
    place = os.environ.get("TMPDIR", "/tmp")
    if os.access(PLACE, os.W_OK):
        place = PLACE
        sweep(place)
    # tempfile would be 600 KiB more in the zygote, and in the page tables of each process that comes of it
    folder = os.path.join(place, f"{PREFIX}{os.getpid()}-{os.urandom(8).hex()}")
    os.mkdir(folder, 0o700)
    try:
        spec = {"annotations": {}, "linux": {"cgroupsPath": "/x/y", "namespaces": [{"type": "pid"}]}}
        with open(os.path.join(folder, "config.json"), "wb") as file:
            file.write(jsontext.to_ascii(spec))
        for _ in range(ROUNDS):
            _session(folder)
    finally:
        _remove(folder)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)


def sweep(place: str) -> None:
    """Remove the folders of those that were killed in their rounds."""
    for name in os.listdir(place):
        pid = name.removeprefix(PREFIX).partition("-")[0]
        if not name.startswith(PREFIX) or not pid.isdigit() or os.path.exists(f"/proc/{pid}"):
            continue
        try:
            _remove(os.path.join(place, name))
        except OSError:
            pass  # another zygote removes it as well


def _remove(folder: str) -> None:
    for left in os.listdir(folder):
        os.unlink(os.path.join(folder, left))
    os.rmdir(folder)


def _free_blocks() -> dict[int, int]:
    """Free blocks in partly used pools of Python's allocator, by block size."""
    report = os.memfd_create("mallocstats")
    stderr = os.dup(2)
    os.dup2(report, 2)
    try:
        sys._debugmallocstats()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    text = os.pread(report, 1 << 20, 0).decode()
    os.close(report)
    rows = (line.split() for line in text.splitlines())
    return {int(row[1]): int(row[4]) for row in rows if len(row) == 5 and all(word.isdigit() for word in row)}


def immortalize() -> None:
    """Make everything that is alive immortal, where this Python knows such objects (PEP 683).

    A reference to an object is counted in the object, so each shim would copy every page with an object that it as much
    as looks at.  Of an immortal one the references are not counted.  It is never freed either: what a zygote
    holds it holds to its end."""
    immortal = _Count.from_address(id(None)).value
    if immortal not in _IMMORTAL or sys.getrefcount(None) != immortal:
        return  # another Python, which counts otherwise
    frame = type(sys._getframe())
    seen: set[int] = set()
    todo = gc.get_objects()
    mine = {id(seen), id(todo)}
    while todo:
        one = todo.pop()
        key = id(one)
        if key in seen or key in mine or type(one) is frame:
            continue
        seen.add(key)
        todo += gc.get_referents(one)
    del one, todo
    for key in seen:
        _Count.from_address(key).value = immortal


class _Count(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """A reference count."""

    _type_ = "I"


_plugs: list[object] = []


class _Size(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "L"


class _Mallinfo(_ctypes.Structure):
    _fields_ = [
        (name, _Size)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


class _MallinfoFunction(_ctypes.CFuncPtr):
    _flags_ = _FUNCFLAG_CDECL
    _restype_ = _Mallinfo


def plug() -> None:
    """Fill the holes that loading has left in the heap.

    A shim would put its own small objects there, each into another page, and so copy most of them;
    with the holes filled they go into fresh pages next to each other."""
    header = sys.getsizeof(b"")
    for size, count in sorted(_free_blocks().items(), reverse=True):
        if size > header:
            _plugs.append([bytes(size - header) for _ in range(count)])
    malloc, free, sbrk = function("malloc"), function("free"), function("sbrk")
    try:
        mallinfo = _MallinfoFunction(_ctypes.dlsym(_ctypes.dlopen(None, 0), "mallinfo2"))  # type: ignore[arg-type]
    except OSError:
        return
    size = 65536
    while size >= 32:
        top = int(sbrk(c_long(0))) - mallinfo().keepcost
        block = int(malloc(c_long(size)))
        if block >= top or mallinfo().fordblks <= mallinfo().keepcost:
            free(c_long(block))
            size //= 2


def _session(folder: str) -> None:
    loop = Loop()
    path = os.path.join(folder, "s")
    with sockets.Socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        publisher = Publisher(loop, path, "x", print)
        service = Service(loop, "x", publisher, print)
        server = Server(loop, listener, service.dispatch)
        with sockets.Socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as client:
            client.connect(path)
            requests: list[tuple[str, dict[str, Any]]] = [
                ("Connect", {"id": "x"}),
                ("State", {"id": "x"}),
                ("Kill", {"id": "x", "signal": 9}),
            ]
            for n, (method, request) in enumerate(requests):
                payload = m.encode(
                    "ttrpc.Request",
                    {
                        "service": m.TASK_SERVICES[0],
                        "method": method,
                        "payload": m.encode(m.TASK_METHODS[method][0], request),
                    },
                )
                client.sendall(frames.pack(2 * n + 1, frames.REQUEST, payload))
            child = os.posix_spawn("/bin/true", ["/bin/true"], {})
            loop.wait_exit(child).then(lambda _: loop.stop())
            loop.run()
            publisher.publish("TaskExit", {"container_id": "x", "exited_at": m.timestamp(1)})
            loop.after(0, loop.stop)
            loop.run()
            publisher.close()
            server.close()
    loop.close()
    os.unlink(path)
    placement.write_spec(folder, placement.read_spec(folder))
    placement.scope_name("a:b:c", "x")
    read_options(m.encode_any("containerd.runc.v1.Options", {"binary_name": "x"}))
    request = {
        "id": "x",
        "bundle": folder,
        "options": m.encode_any("containerd.runc.v1.Options", {"root": "x"}),
        "rootfs": [{"type": "overlay", "source": "overlay", "target": "", "options": ["ro", "upperdir=x"]}],
    }
    m.decode("task.CreateTaskRequest", m.encode("task.CreateTaskRequest", request))
    mountflags.parse(["ro", "lowerdir=a:b"])
    runtime.last_error(os.path.join(folder, "log.json"))
    body = marshal("ssa(sv)a(sa(sv))", ("x", "fail", [("PIDs", ("au", [1])), ("Delegate", ("b", True))], []))
    unmarshal("ssa(sv)a(sa(sv))", body)
    cgroup.metrics(cgroup.path_of("self"))
    cgroup.processes(folder)
