# SPDX-License-Identifier: Apache-2.0
"""In the VM: pulls, commits, builds and runs containers for test_power_cuts.py until the power is cut, and says what
there is.

Started, with all that it imports, before the machine is frozen. It talks to the host in lines of JSON over a
virtio-serial port. From the host, one at a time: {"do": "open" | "work" | "empty", ...}. From here, while it works:

    {"by": THREAD, "begin": "make" | "take", "keys": [KEY...]}              now it is asked for
    {"by": THREAD, "done": "make" | "take", "keys": [KEY...], "value": …}   now it is acknowledged

and in the end of "open" and "empty" {"seen": {KEY: VALUE}, "garbage": [WHAT...]}. A KEY is what and which:

    blob N, layer N, image N      what a client of containerd makes: content, its committed snapshot, and an image
    pulled K                      an image that teud pulled from the registry
    container N, exit N           a container of teud's, and the exit code that it told
    made N                        the image that container N was committed to
    built N                       the image of build N, of a step and of a file of its context
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import http.client
import io
import itertools
import json
import os
import random
import re
import select
import shutil
import socket
import sqlite3
import struct
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc

from teu.api.services.content.v1 import content_pb2, content_pb2_grpc
from teu.api.services.diff.v1 import diff_pb2, diff_pb2_grpc
from teu.api.services.images.v1 import images_pb2, images_pb2_grpc
from teu.api.services.leases.v1 import leases_pb2, leases_pb2_grpc
from teu.api.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc

REGISTRY = "127.0.0.1:5000"
PULLED = 2  # images in the registry
BUSYBOX = "/usr/share/teu/images/busybox.oci.tar"
BUILDER = "teu-buildkitd.service"
BUILDERS = ("buildkit-",)  # how what it has in containerd is called
CONTEXT = Path("/run/context")
AGE = 1_700_000_000  # of the context's file: so many seconds since 1970, and the build's number
KEPT = 2  # of each kind a worker keeps so many, and takes the older ones away
STATE = Path("/var/lib/teu")
ROOT = STATE / "containerd"
LIMIT = 300.0  # seconds, for anything
NUMBER = "test/number"
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207


# --- the host ----------------------------------------


class Host:
    """The other end of the port."""

    def __init__(self) -> None:
        names = Path("/sys/class/virtio-ports").glob("*/name")
        path = next(name.parent.name for name in names if name.read_text().strip() == "test")
        self._port = os.open(f"/dev/{path}", os.O_RDWR | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._buffer = b""

    def wait(self) -> None:
        """Until it is there."""
        poll = select.poll()
        poll.register(self._port, select.POLLIN)
        while any(events & select.POLLHUP for _, events in poll.poll(0)):
            time.sleep(0.1)

    def read(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            data = os.read(self._port, 65536)
            if not data:
                self.wait()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def write(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._port, data) :]

    def make(self, by: str, key: str, work: Callable[[], Any], value: Any = None) -> Any:
        """Do work, which makes key; its value is this, or what work returns."""
        self.write({"by": by, "begin": "make", "keys": [key]})
        done = work()
        value = done if value is None else value
        self.write({"by": by, "done": "make", "keys": [key], "value": value})
        return value

    def take(self, by: str, keys: list[str], work: Callable[[], Any]) -> None:
        """Do work, which removes keys."""
        self.write({"by": by, "begin": "take", "keys": keys})
        work()
        self.write({"by": by, "done": "take", "keys": keys})


# --- containerd ----------------------------------------


def layer(number: int) -> tuple[bytes, dict[str, str]]:
    """A tar, the same for the same number; and the hash of each of its files."""
    chance = random.Random(number)
    files = {f"d{index % 2}/f{index}": chance.randbytes(chance.choice((10, 5_000, 80_000))) for index in range(6)}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue(), {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


class Containerd:
    """A client of teu-containerd in a namespace."""

    def __init__(self, channel: grpc.Channel, namespace: str) -> None:
        self.namespace = namespace
        self._content = content_pb2_grpc.ContentStub(channel)
        self._diff = diff_pb2_grpc.DiffStub(channel)
        self._images = images_pb2_grpc.ImagesStub(channel)
        self._leases = leases_pb2_grpc.LeasesStub(channel)
        self._snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)

    def _call(self, lease: str = "") -> dict[str, Any]:
        metadata = [("containerd-namespace", self.namespace)]
        return {"metadata": [*metadata, ("containerd-lease", lease)] if lease else metadata, "timeout": LIMIT}

    def write(self, number: int, data: bytes, lease: str) -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        labels = {NUMBER: str(number), "containerd.io/gc.ref.snapshot.overlayfs": f"layer-{number}"}
        ask = content_pb2.WriteContentRequest
        requests = [ask(action=0, ref=f"ref-{number}", total=len(data))]
        for at in range(0, len(data), 50_000):
            requests.append(ask(action=1, ref=f"ref-{number}", offset=at, data=data[at : at + 50_000]))
        end = {"ref": f"ref-{number}", "offset": len(data), "total": len(data)}
        requests.append(ask(action=2, expected=digest, labels=labels, **end))
        *_, last = self._content.Write(iter(requests), **self._call(lease))
        assert last.action == 2
        return digest

    def unpack(self, number: int, digest: str, size: int, lease: str) -> None:
        key, call = f"unpack-{number}", self._call(lease)
        prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key=key)
        mounts = self._snapshots.Prepare(prepare, **call).mounts
        blob = {"media_type": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size}
        self._diff.Apply(diff_pb2.ApplyRequest(diff=blob, mounts=mounts), **call)
        commit = snapshots_pb2.CommitSnapshotRequest(snapshotter="overlayfs", key=key, name=f"layer-{number}")
        self._snapshots.Commit(commit, **call)

    def tag(self, number: int, digest: str) -> None:
        image = images_pb2.Image(name=f"image-{number}", target={"media_type": "m", "digest": digest, "size": 1})
        self._images.Create(images_pb2.CreateImageRequest(image=image), **self._call())

    def untag(self, number: int) -> None:
        self._images.Delete(images_pb2.DeleteImageRequest(name=f"image-{number}", sync=True), **self._call())

    def lease(self, name: str) -> None:
        self._leases.Create(leases_pb2.CreateRequest(id=name), **self._call())

    def release(self, name: str, sync: bool = False) -> None:
        self._leases.Delete(leases_pb2.DeleteRequest(id=name, sync=sync), **self._call())

    def leases(self) -> list[str]:
        return [one.id for one in self._leases.List(leases_pb2.ListRequest(), **self._call()).leases]

    def images(self) -> dict[int, str]:
        """Numbers of the images that there are, and their targets."""
        found = self._images.List(images_pb2.ListImagesRequest(), **self._call()).images
        return {int(one.name.partition("-")[2]): one.target.digest for one in found}

    def blobs(self) -> dict[str, str]:
        """Their digests, and the test's numbers."""
        answers = self._content.List(content_pb2.ListContentRequest(), **self._call())
        return {info.digest: info.labels.get(NUMBER, "") for answer in answers for info in answer.info}

    def ingests(self) -> list[str]:
        found = self._content.ListStatuses(content_pb2.ListStatusesRequest(), **self._call()).statuses
        return [one.ref for one in found]

    def whole(self, digest: str) -> bool:
        """Whether the blob has the digest that it is kept under; or is no longer there, for it was garbage."""
        found = hashlib.sha256()
        try:
            for answer in self._content.Read(content_pb2.ReadContentRequest(digest=digest), **self._call()):
                found.update(answer.data)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            return digest not in self.blobs()
        return "sha256:" + found.hexdigest() == digest

    def snapshots(self, *filters: str) -> list[str]:
        request = snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs", filters=filters)
        return [info.name for answer in self._snapshots.List(request, **self._call()) for info in answer.info]

    def files(self, name: str) -> dict[str, str]:
        """path -> hash of each file of a committed snapshot."""
        key = f"look-{name}"
        view = snapshots_pb2.ViewSnapshotRequest(snapshotter="overlayfs", key=key, parent=name)
        (mount,) = self._snapshots.View(view, **self._call("look")).mounts
        source = Path(mount.source)
        paths = [path for path in source.rglob("*") if path.is_file()]
        found = {str(path.relative_to(source)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
        self._snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter="overlayfs", key=key), **self._call())
        return found


# --- the engine ----------------------------------------


class Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(LIMIT)
        self.sock.connect("/run/teu/teud.sock")


def ask(method: str, path: str, body: bytes | dict[str, Any] | None = None, expected: tuple[int, ...] = ()) -> Any:
    """The answer of teud's API, read as JSON where it is that; any of `expected`, or of the 200s."""
    kind = "application/x-tar" if isinstance(body, bytes) else "application/json"
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    connection = Connection("localhost")
    try:
        connection.request(method, path, data, {"Content-Type": kind})
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    assert answer.status in expected or answer.status < 300, (method, path, answer.status, text)
    try:
        return json.loads(text)
    except ValueError:
        return text


def image_id(name: str) -> str | None:
    """None where there is no such image."""
    found: str | None = ask("GET", f"/images/{name}/json", expected=(404,)).get("Id")
    return found


def pull(key: int) -> str:
    text = ask("POST", f"/images/create?fromImage={quote(REGISTRY, safe='')}/pulled&tag={key}")
    assert b'"error"' not in text, text
    found = image_id(f"{REGISTRY}/pulled:{key}")
    assert found
    return found


def create(name: str, image: str, script: str) -> str:
    body = {"Image": image, "Cmd": ["sh", "-c", script], "HostConfig": {"NetworkMode": "none"}}
    identity: str = ask("POST", f"/containers/create?name={name}", body)["Id"]
    return identity


def finish(name: str) -> int:
    ask("POST", f"/containers/{name}/start")
    code: int = ask("POST", f"/containers/{name}/wait")["StatusCode"]
    return code


def commit(name: str, number: int) -> str:
    identity: str = ask("POST", f"/commit?container={name}&repo=made&tag={number}")["Id"]
    return identity


def containers() -> dict[int, dict[str, Any]]:
    """Those of the test, by their numbers."""
    found = ask("GET", "/containers/json?all=1")
    return {int(one["Names"][0][2:]): one for one in found if one["Names"][0].startswith("/c")}


def tagged(name: str) -> dict[int, str]:
    """Images of a name, by the numbers that are their tags: their IDs."""
    tags = [(tag, one["Id"]) for one in ask("GET", "/images/json") for tag in one["RepoTags"] or ()]
    return {int(tag.partition(":")[2]): identity for tag, identity in tags if tag.startswith(f"{name}:")}


def kept(image: str) -> dict[str, bytes]:
    """Name -> content of the files in an image's folder /kept."""
    create("look", image, "true")
    archive = ask("GET", "/containers/look/archive?path=/kept")
    ask("DELETE", "/containers/look")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {member.name: tar.extractfile(member) for member in tar if member.isreg()}
        return {Path(name).name: file.read() for name, file in files.items() if file}


# --- the builder ----------------------------------------


def lines(number: int) -> bytes:
    """100,000 bytes, as many for each number below 100,000,000."""
    return (f"{number:08}\n".encode() * 12_000)[:100_000]


def build(number: int) -> tuple[str, int]:
    """The image's ID, and how many steps were in the cache. The builds have one context, whose file changes."""
    CONTEXT.mkdir(exist_ok=True)
    step = f"mkdir /kept; yes {number:08} | head -c 100000 >/kept/step"
    (CONTEXT / "Dockerfile").write_text(f"FROM busybox\nRUN {step}\nCOPY file /kept/file\n")
    (CONTEXT / "file").write_bytes(lines(number))
    os.utime(CONTEXT / "file", (AGE + number, AGE + number))
    words = ["teu", "build", "--progress=plain", "--provenance=false", "--network=none", "-t", f"built:{number}"]
    done = subprocess.run([*words, str(CONTEXT)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    identity = image_id(f"built:{number}")
    assert identity
    steps = re.findall(r"^#(\d+) \[\d/\d\] (?:RUN|COPY)", done.stderr, re.MULTILINE)
    return identity, len([step for step in set(steps) if f"#{step} CACHED" in done.stderr.splitlines()])


def wrong_builds(newest: int) -> list[str]:
    """What is wrong with the newest image that was built, and with what the builder remembers. The one after it may
    have been under way: its context may be on the disk, and what is known of it may not, or the other way round."""

    def right(number: int) -> bool:
        return kept(f"built:{number}") == {"step": lines(number), "file": lines(number)}

    before = image_id(f"built:{newest}")
    found = [] if right(newest) else [f"built {newest}"]
    build(newest + 1)
    found += [] if right(newest + 1) else [f"built {newest + 1}, after the cut"]
    ask("DELETE", f"/images/built:{newest + 1}")
    again, cached = build(newest)
    if again != before or cached != 2:
        found.append(f"built {newest} again: {again} with {cached} cached steps, was {before}")
    return found


# --- work ----------------------------------------


def clients(host: Host, first: int) -> None:
    """What a client of containerd does when it pulls, and when it commits: under a lease, the image last."""
    with grpc.insecure_channel("unix:/run/teu/containerd.sock") as channel:
        client = Containerd(channel, "default")
        for number in itertools.count(first):
            data, files = layer(number)
            lease = f"client-{number}"
            client.lease(lease)
            digest = host.make("clients", f"blob {number}", partial(client.write, number, data, lease))
            host.make("clients", f"layer {number}", partial(client.unpack, number, digest, len(data), lease), files)
            host.make("clients", f"image {number}", partial(client.tag, number, digest), digest)
            client.release(lease)
            for old in sorted(client.images())[:-KEPT]:
                keys = [f"{kind} {old}" for kind in ("image", "layer", "blob")]
                host.take("clients", keys, partial(client.untag, old))


def pulls(host: Host) -> None:
    """teud pulls what is not there, and removes what is."""
    while True:
        key = random.randrange(PULLED)
        name = f"{REGISTRY}/pulled:{key}"
        if image_id(name):
            host.take("pulls", [f"pulled {key}"], partial(ask, "DELETE", f"/images/{name}"))
        else:
            host.make("pulls", f"pulled {key}", partial(pull, key))


def runs(host: Host, first: int) -> None:
    """teud runs containers, tells their exit codes, and commits them."""
    for number in itertools.count(first):
        name = f"c{number}"
        script = f"yes {number} | head -c 100000 >/kept; exit {number % 200 + 3}"
        host.make("runs", f"container {number}", partial(create, name, "busybox", script))
        host.make("runs", f"exit {number}", partial(finish, name))
        host.make("runs", f"made {number}", partial(commit, name, number))
        for old in sorted(containers())[:-KEPT]:
            keys = [f"container {old}", f"exit {old}"]
            host.take("runs", keys, partial(ask, "DELETE", f"/containers/c{old}?force=1"))
        for old in sorted(tagged("made"))[:-KEPT]:
            host.take("runs", [f"made {old}"], partial(ask, "DELETE", f"/images/made:{old}"))


def builds(host: Host, first: int) -> None:
    """The builder makes images of steps and of a context that changes."""
    for number in itertools.count(first):
        host.make("builds", f"built {number}", lambda number=number: build(number)[0])
        for old in sorted(tagged("built"))[:-KEPT]:
            host.take("builds", [f"built {old}"], partial(ask, "DELETE", f"/images/built:{old}"))


def work(host: Host, first: int) -> None:
    """All of it at once. Ends with the machine, or by an error, of which the host is told."""

    def guarded(target: Callable[..., None], *arguments: Any) -> None:
        try:
            target(*arguments)
        except Exception as error:
            host.write({"failed": f"{target.__name__}: {type(error).__name__}: {error}"})

    for target, arguments in (
        (clients, (host, first)),
        (pulls, (host,)),
        (runs, (host, first)),
        (builds, (host, first)),
    ):
        threading.Thread(target=guarded, args=(target, *arguments), daemon=True).start()


# --- look ----------------------------------------


@contextlib.contextmanager
def both() -> Iterator[list[Containerd]]:
    """Clients of the test's namespace, and of the engine's."""
    with grpc.insecure_channel("unix:/run/teu/containerd.sock") as channel:
        yield [Containerd(channel, "default"), Containerd(channel, "teu")]


def seen() -> tuple[dict[str, Any], list[str]]:
    """What there is, and what is damaged."""
    found: dict[str, Any] = {}
    damaged = []
    with both() as (client, engine):
        for one in (client, engine):
            damaged += [f"blob {digest}" for digest in one.blobs() if not one.whole(digest)]
        found.update({f"blob {number}": digest for digest, number in client.blobs().items()})
        client.lease("look")
        for name in client.snapshots("kind==committed"):
            found[name.replace("-", " ")] = client.files(name)
        client.release("look", sync=False)
        found.update({f"image {number}": digest for number, digest in client.images().items()})
    for key in range(PULLED):
        if identity := image_id(f"{REGISTRY}/pulled:{key}"):
            found[f"pulled {key}"] = identity
    for number, container in containers().items():
        found[f"container {number}"] = container["Id"]
        state = ask("GET", f"/containers/c{number}/json")["State"]
        if state["Running"]:
            damaged.append(f"container {number} runs")
        elif state["Status"] == "exited":
            found[f"exit {number}"] = state["ExitCode"]
    images = tagged("made")
    found.update({f"made {number}": identity for number, identity in images.items()})
    if images:
        newest = max(images)
        if list(kept(f"made:{newest}").values()) != [(f"{newest}\n".encode() * 100_000)[:100_000]]:
            damaged.append(f"made {newest}")
    images = tagged("built")
    found.update({f"built {number}": identity for number, identity in images.items()})
    if images:
        damaged += wrong_builds(max(images))
    return found, damaged


def layers_of_database() -> tuple[set[str], set[str]]:
    """(The numbers of the snapshots, which are the names of their folders; the names of those that nobody has).

    Two keys may be of one snapshot, so the API does not tell how many there are. One stays as well below another, and
    where a blob's files are in it."""
    with contextlib.closing(sqlite3.connect(f"file:{ROOT / 'metadata.db'}?mode=ro", uri=True, timeout=10)) as database:
        of = "WHERE snapshotter = 'overlayfs'"
        rows = database.execute(f"SELECT id, name, parent FROM layers {of}").fetchall()
        had = {name for (name,) in database.execute(f"SELECT backend FROM snapshots {of}")}
    had |= {json.loads(path.read_text())["snapshot"] for path in (ROOT / "content/lean").glob("*/parts.json")}
    above = {id: parent for id, _, parent in rows}
    todo, needed = [id for id, name, _ in rows if name in had], set()
    while todo:
        if (id := todo.pop()) is not None and id not in needed:
            needed.add(id)
            todo.append(above.get(id))
    return {str(id) for id, _, _ in rows}, {name for id, name, _ in rows if id not in needed}


def garbage(builder: bool = True) -> list[str]:
    """What is on the disk or in the database, and nobody's, once the test's client has given up what it had begun.
    `builder`: that one may hold something."""
    known = BUILDERS if builder else ()
    with both() as (client, engine):
        leases = client.leases()
        for position, lease in enumerate(leases):
            client.release(lease, sync=position == len(leases) - 1)
        ask("POST", "/images/prune")  # what a pull had of a layer is kept, for a pull that goes on

        def left() -> list[str]:
            images = client.images()
            blobs = client.blobs()
            wanted = {digest.partition(":")[2] for digest in (*blobs, *engine.blobs())}
            folders = set(os.listdir(ROOT / "snapshots/overlayfs"))
            kept, needless = layers_of_database()
            result = [f"blob {digest}" for digest in blobs if digest not in images.values()]
            result += [f"file {name}" for name in os.listdir(ROOT / "content/blobs/sha256") if name not in wanted]
            result += [f"ingest {name}" for name in os.listdir(ROOT / "content/ingest")]
            result += [f"ingest {ref}" for one in (client, engine) for ref in one.ingests()]
            result += [f"lease {name}" for name in client.leases()]
            result += [f"lease {name}" for name in engine.leases() if not name.startswith(known)]
            layers = {f"layer-{number}" for number in images}
            result += [f"snapshot {name}" for name in client.snapshots() if name not in layers]
            result += [f"snapshot {name}" for name in engine.snapshots() if name.startswith(("extract-", "commit-"))]
            result += [f"folder {name} of no snapshot" for name in folders - kept]
            result += [f"snapshot {name} without a folder" for name in kept - folders]
            result += [f"record of snapshot {name}, which nobody has" for name in needless]
            return result

        deadline = time.monotonic() + LIMIT
        while (result := left()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return result


def switch_on(request: dict[str, Any]) -> None:
    """What a boot does: the clock, entropy that no other machine has, the disk, the services."""
    time.clock_settime(time.CLOCK_REALTIME, request["time"])
    entropy = bytes.fromhex(request["entropy"])
    random.seed(entropy)
    with open("/dev/random", "wb") as device:
        fcntl.ioctl(device, RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
        fcntl.ioctl(device, RNDRESEEDCRNG)
    subprocess.run(["systemctl", "stop", "teu-lab-agent"], check=True)  # it polls
    subprocess.run(["modprobe", "-a", "virtio_scsi", "sd_mod"], check=True)
    deadline = time.monotonic() + LIMIT
    while not os.path.exists("/dev/sda"):
        assert time.monotonic() < deadline, "no disk"
        time.sleep(0.02)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"/dev/sda", os.fsencode(STATE), b"ext4", 0, None):
        raise OSError(ctypes.get_errno(), "mount /dev/sda")
    services = [
        "teu-containerd.socket",
        "teud.socket",
        "teu-containerd.service",
        "teud.service",
        "teu-buildkitd.socket",
    ]
    subprocess.run(["systemctl", "start", *services], check=True)


def look(host: Host) -> None:
    subprocess.run(["teu", "builder", "du"], check=True, stdout=subprocess.DEVNULL)  # it starts, and clears up
    found, damaged = seen()
    host.write({"seen": found, "garbage": [f"damaged: {each}" for each in damaged] + garbage()})


def empty(host: Host) -> None:
    """Remove all images and containers: then there is nothing at all."""
    for number in containers():
        ask("DELETE", f"/containers/c{number}?force=1")
    for one in ask("GET", "/images/json"):
        ask("DELETE", f"/images/{one['Id']}?force=1")
    subprocess.run(["teu", "builder", "prune", "-af"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["systemctl", "stop", BUILDER], check=True)
    with both() as (client, engine):
        for number in client.images():
            client.untag(number)
        deadline = time.monotonic() + LIMIT
        while left := [*client.blobs(), *engine.blobs(), *client.snapshots(), *engine.snapshots()]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
    host.write({"seen": {}, "garbage": left + garbage(builder=False)})


def prepare() -> None:
    """Before the machine is frozen: a registry with images; then nothing else is left of them."""

    def run(*command: str) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    storage = {"filesystem": {"rootdirectory": "/run/registry"}}
    Path("/run/registry.yml").write_text(json.dumps({"version": "0.1", "http": {"addr": REGISTRY}, "storage": storage}))
    run("systemd-run", "--quiet", "--unit=registry", "docker-registry", "serve", "/run/registry.yml")
    run("teu", "load", "-q", "-i", BUSYBOX)
    deadline = time.monotonic() + LIMIT
    host, _, port = REGISTRY.partition(":")
    while True:
        try:
            socket.create_connection((host, int(port))).close()
            break
        except OSError:
            assert time.monotonic() < deadline, "no registry"
            time.sleep(0.1)
    for key in range(PULLED):
        name = f"{REGISTRY}/pulled:{key}"
        script = "head -c 400000 /dev/urandom >/random"
        run("teu", "run", "--network=none", f"--name=c{key}", "busybox", "sh", "-c", script)
        run("teu", "commit", f"c{key}", name)
        run("teu", "push", "-q", name)
    sockets = [f"{name}.socket" for name in ("teu-buildkitd", "teud", "teu-containerd")]
    run("systemctl", "stop", *sockets, BUILDER, "teud", "teu-containerd")
    shutil.rmtree(STATE)
    shutil.rmtree("/run/teu")
    STATE.mkdir(mode=0o711)
    os.sync()


def main() -> None:
    host = Host()
    prepare()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    host.wait()
    while True:
        request = host.read()
        try:
            if request["do"] == "open":
                switch_on(request)
                if not image_id("busybox"):
                    ask("POST", "/images/load", Path(BUSYBOX).read_bytes())
                look(host)
            elif request["do"] == "work":
                work(host, request["first"])
            elif request["do"] == "empty":
                empty(host)
        except Exception as error:
            host.write({"failed": f"{request['do']}: {type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
