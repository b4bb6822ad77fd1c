# SPDX-License-Identifier: Apache-2.0
"""Debian's dockerd with its BuildKit, and teud with teu-buildkitd, side by side: builds on both, and their results.

    with both_builders(folder) as both:
        for side in both:
            side.docker("build", ...)               # Debian's docker with buildx on this side
            side.teu("build", ...)                  # teu on this side
            side.saved({"name:1"})                  # configuration and files of images

What may differ between two right builders is made equal where it is read: digests, identifiers and durations in texts;
of times only whether one is the build's own or one that was given; the order of a layer's entries.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import peers
from dockerfile_shapes import all_bases, base_archive
from lab_kind import PATIENCE

TEU = "/usr/bin/teu"
CTR = f"{TEU}-ctr"
SOCKET = "/run/teu/teud.sock"
BUSYBOX = "docker.io/library/busybox:latest"
LIMIT = 100.0

Entry = tuple[Any, ...]
T = TypeVar("T")


class Image(NamedTuple):
    """An image as `docker save` tells it, made comparable."""

    config: dict[str, Any]
    history: list[dict[str, Any]]
    layers: list[dict[str, Entry]]  # path -> type, mode, owner, content or target, extended attributes, time


class Built(NamedTuple):
    code: int
    out: str
    text: str

    @property
    def steps(self) -> dict[str, str]:
        """Of a plain progress: the name of each step, and what it said."""
        return steps_of(self.text)


class Side:
    """One of both, with folders of its own for its clients."""

    def __init__(self, name: str, socket: str, folder: Path, root: str = "") -> None:
        """root: where docker's client is unpacked, for one that is not the lab's."""
        self.name, self.socket = name, socket
        self.folder = folder
        folder.mkdir(parents=True)
        self.began = time.time() - 1
        self.environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{socket}",
            "DOCKER_CONFIG": str(folder / "docker"),
            "BUILDX_CONFIG": str(folder / "buildx"),
            "HOME": str(folder),
            "DOCKER_CLI_HINTS": "false",
            "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
        }
        # Whether a time is now or given: a proxy or a date of the machine is none of the builds.
        for variable in ("SOURCE_DATE_EPOCH", "SSH_AUTH_SOCK", "DOCKER_BUILDKIT", "BUILDKIT_PROGRESS"):
            self.environment.pop(variable, None)
        (folder / "docker").mkdir()
        if root:
            self.environment["PATH"] = f"{programs(root)}:{self.environment['PATH']}"
            config = {"cliPluginsExtraDirs": [f"{root}/usr/libexec/docker/cli-plugins"]}
            (folder / "docker/config.json").write_text(json.dumps(config))

    def run(
        self,
        *argv: str,
        code: int | None = 0,
        stdin: bytes | None = None,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Built:
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        done = subprocess.run(
            argv,
            env={**self.environment, **(environment or {})},
            cwd=cwd,
            capture_output=True,
            timeout=LIMIT * PATIENCE,
            check=False,
            **given,
        )
        out, text = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if code is not None and done.returncode != code:
            raise AssertionError(
                f"{self.name}: {' '.join(argv)}: exit {done.returncode}\n{out[-2000:]}\n{text[-3000:]}"
            )
        return Built(done.returncode, out, text)

    def docker(self, *argv: str, **more: Any) -> Built:
        return self.run("docker", *argv, **more)

    def teu(self, *argv: str, **more: Any) -> Built:
        return self.run(TEU, "-H", f"unix://{self.socket}", *argv, **more)

    def saved(self, names: Iterable[str]) -> dict[str, Image]:
        """These images, by one `docker save`."""
        wanted = sorted(names)
        if not wanted:
            return {}
        path = self.folder / "saved.tar"
        self.docker("save", "-o", str(path), *wanted)
        with tarfile.open(path) as tar:
            table = json.loads(_content(tar, "manifest.json"))
            layers: dict[str, dict[str, Entry]] = {}
            found = {}
            for row in table:
                config = json.loads(_content(tar, row["Config"]))
                for name in row["Layers"]:
                    if name not in layers:
                        layers[name] = entries_of(_content(tar, name), self.began)
                image = _image(config, [layers[name] for name in row["Layers"]])
                found |= {short(name): image for name in row["RepoTags"] or ()}
        path.unlink()
        return {name: found[name] for name in wanted if name in found}


def programs(root: str) -> str:
    """The part of PATH for what is unpacked there."""
    return f"{root}/usr/sbin:{root}/usr/bin"


class Both(NamedTuple):
    theirs: Side
    ours: Side

    def each(self, call: Callable[[Side], T]) -> list[T]:
        """What it returns for either side, theirs first; both at the same time."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(call, self))


def _names(side: Side) -> set[str]:
    """Of all images that teud has."""
    return set(side.run(CTR, "-n", "teu", "images", "ls", "-q").out.split())


def short(name: str) -> str:
    return name.removeprefix("docker.io/").removeprefix("library/")


@contextlib.contextmanager
def both_builders(folder: Path, root: str = "") -> Iterator[Both]:
    """Both, with the base images; what was made on teud's side is removed at the end, and its own busybox is back.
    root: where another docker than the lab's is unpacked, whose daemon and client are used."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "bases.tar"
    base_archive(archive)
    needs_all = folder / "all"
    needs_all.mkdir()
    (needs_all / "Dockerfile").write_text(all_bases())
    with peers.dockerd(network=True, path=programs(root) if root else "") as daemon:
        sides = (("dockerd", str(daemon.socket), folder / "theirs"), ("teud", SOCKET, folder / "ours"))
        both = Both(*(Side(*side, root) for side in sides))
        before = _names(both.ours)
        kept = folder / "before.tar"
        if BUSYBOX in before:
            both.ours.docker("save", "-o", str(kept), BUSYBOX)
        # Nothing is there from before: what a step says is heard where it runs.
        both.ours.docker("builder", "prune", "-af")
        try:
            for side in both:
                side.docker("load", "-q", "-i", str(archive))
                # The peer's builds that first see an image at the same moment each have their own record of it, and
                # what was made on all but one of them is not found in the cache.
                side.docker("build", "-q", str(needs_all))
            archive.unlink()
            yield both
        finally:
            # At once: the engine would collect garbage after each of some hundred.
            gone = sorted(_names(both.ours) - before)
            both.ours.run(CTR, "-n", "teu", "images", "rm", "--sync", *gone)
            if kept.exists():
                both.ours.docker("load", "-q", "-i", str(kept))
                both.ours.docker("image", "prune", "-f")


# ---- what images hold ------------------------------------------------------------------------------


def _content(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None, name
    return file.read()


def _newer(value: Any) -> Any:
    """A line of the history as newer versions of BuildKit, and ours, write it: the peer's has ports as Go shows a map,
    and arguments without what was given for them, of which the names are compared."""
    if isinstance(value, str) and value.startswith("EXPOSE map["):
        return value.replace("EXPOSE map[", "EXPOSE [").replace(":{}", "")
    if isinstance(value, str) and value.startswith("ARG "):
        return "ARG " + " ".join(re.findall(r"(?<!\S)([A-Za-z_]\w*)(?==|\s|$)", value[4:]))
    return value


def _image(config: dict[str, Any], layers: list[dict[str, Entry]]) -> Image:
    history = []
    for line in config.get("history", ()):
        assert line.get("created"), line
        history.append({key: _newer(value) for key, value in line.items() if key != "created"})
    inner = {key: value for key, value in config.get("config", {}).items() if value not in (None, "", [], {}, False)}
    kept = {"config": inner, **{key: config.get(key) for key in ("architecture", "os", "variant", "author")}}
    return Image(kept, history, layers)


KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
    tarfile.LNKTYPE: "hard link",
    tarfile.FIFOTYPE: "fifo",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
}


def entries_of(data: bytes, began: float) -> dict[str, Entry]:
    """The entries of a layer by their path; a time since `began` is NOW."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    found: dict[str, Entry] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            path = "/" + info.name.strip("/").removeprefix("./")
            if path in ("/", "/."):
                continue  # one of both has the top itself, which says nothing
            content: Any = ""
            if info.isreg():
                file = tar.extractfile(info)
                assert file is not None
                content = digest_of(file.read())
            elif info.issym() or info.islnk():
                content = info.linkname.removeprefix("./") if info.issym() else "/" + info.linkname.strip("./")
            elif info.ischr() or info.isblk():
                content = f"{info.devmajor}:{info.devminor}"
            extended = tuple(
                (key.removeprefix("SCHILY.xattr."), value)
                for key, value in sorted(info.pax_headers.items())
                if key.startswith("SCHILY.xattr.")
            )
            mode = oct(info.mode & 0o7777) if not info.issym() else ""
            when = "NOW" if info.mtime >= began else str(int(info.mtime))
            if path.rpartition("/")[2].startswith(".wh."):
                found[path] = ("whiteout",)  # mode and time are those of nothing
                continue
            found[path] = (KINDS[info.type], mode, f"{info.uid}:{info.gid}", content, extended, when)
    if "/etc" in found:  # docker's steps touch it for resolv.conf and hosts; ours leave no trace of them
        entry = found.pop("/etc")
        if any(path.startswith("/etc/") for path in found):
            found["/etc"] = entry[:-1]
    return found


def digest_of(data: bytes) -> str:
    """Short texts as they are: a difference shall be readable."""
    if len(data) < 100:
        return data.decode(errors="backslashreplace")
    return f"{len(data)} bytes, {hashlib.sha256(data).hexdigest()[:12]}"


def tree_of(folder: Path, began: float) -> dict[str, Entry]:
    """Files below a folder, as `entries_of`."""
    found: dict[str, Entry] = {}
    for path in sorted(folder.rglob("*")):
        told = path.lstat()
        content = os.readlink(path) if path.is_symlink() else digest_of(path.read_bytes()) if path.is_file() else ""
        when = "NOW" if told.st_mtime >= began else str(int(told.st_mtime))
        found[str(path.relative_to(folder))] = (oct(told.st_mode), f"{told.st_uid}:{told.st_gid}", content, when)
    return found


# ---- what builds say -------------------------------------------------------------------------------

STEP = re.compile(r"#(\d+) (.*)")
SAID = re.compile(r"\d+\.\d+ (.*)|\d+\.\d+$")
COLOUR = re.compile(r"\x1b\[\d*m")
OVER = re.compile(r"(DONE|CACHED|CANCELED|ERROR:|WARNING:|sha256:|resolve |transferring |extracting |\.\.\.)")


def steps_of(text: str) -> dict[str, str]:
    """Names of steps in a plain progress, and what each said. Those of the builder's own are there without words."""
    names: dict[str, str] = {}
    said: dict[str, str] = {}
    for line in text.splitlines():
        found = STEP.fullmatch(line)
        if not found:
            continue
        number, rest = found.groups()
        if number == "0":
            continue  # which builder, says buildx
        if number not in names:
            names[number] = neutral(rest)
            said.setdefault(names[number], "")
        elif (words := SAID.fullmatch(rest)) and names[number].startswith("["):
            said[names[number]] += neutral(words.group(1) or "") + "\n"
    return said


def failure_of(text: str) -> str:
    """The end of a failed build's text: from the step that failed, or from the error."""
    lines = [COLOUR.sub("", line) for line in text.splitlines() if not STEP.fullmatch(line)]
    lines = [line for line in lines if line.strip()]
    # Warnings are an aspect of their own.
    lines = [line for line in lines if not line.startswith(" - ") and "found (use --debug" not in line]
    return "\n".join(neutral(re.sub(r"^\d+\.\d+ ", "", line)) for line in lines)


def warnings_of(text: str) -> list[str]:
    lines = [COLOUR.sub("", line) for line in text.splitlines()]
    return [line.strip() for line in lines if line.startswith((" - ", "WARNING:"))]


def neutral(text: str) -> str:
    """Without what differs from one run to the next."""
    text = text.replace("ERROR: failed to build: ", "ERROR: ")
    # Which of the two it says depends on whose end it sees first, the frontend's or the build's.
    text = text.replace("ERROR: failed to run Build function: ", "ERROR: failed to solve: ")
    # An image of docker's own store has no digest that a name could be pinned to.
    text = re.sub(r"@sha256:[0-9a-f]{64}", "", text)
    text = re.sub(r"sha256:[0-9a-f]{64}", "DIGEST", text)
    # What concurrent builds share has the name that the first of them gave it, there as here.
    text = re.sub(r"^\[[^]]*\] FROM ", "FROM ", text)
    text = re.sub(r"\b(?:[0-9a-f-]{36}|[0-9a-z]{25})::[0-9a-z]{25}\b|\b[0-9a-z]{25}\b", "IDENT", text)
    # Where the peer has a tree meanwhile.
    text = re.sub(r"/var/lib/teu-peer-dockerd-\w+/(?:tmp/buildkit-mount\d+|overlay2/\w+/merged)", "", text)
    # Older words for the same.
    text = text.replace("[internal] settings cache mount", "[internal] setting cache mount")
    text = text.replace("process: error during container init: ", "process: ")
    return re.sub(r"\b\d+\.\d+s\b", "TIME", text)


class Raw(NamedTuple):
    """Of a progress in JSON: steps with whether each came from the cache, and warnings with their places."""

    steps: dict[str, bool]
    warnings: list[tuple[str, str, str]]


def raw_of(text: str) -> Raw:
    names: dict[str, str] = {}
    steps: dict[str, bool] = {}
    warnings = set()
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        told = json.loads(line)
        for vertex in told.get("vertexes") or ():
            name = names.setdefault(vertex["digest"], neutral(vertex["name"]))
            steps[name] = steps.get(name, False) or bool(vertex.get("cached"))
        for warning in told.get("warnings") or ():
            places = [f"{one['start']['line']}-{one['end']['line']}" for one in warning.get("range") or ()]
            words = base64.b64decode(warning.get("short") or "").decode()
            warnings.add((words, warning.get("url") or "", " ".join(places)))
    return Raw(steps, sorted(warnings))


# ---- gRPC over what `/grpc` gives ------------------------------------------------------------------


class Tunnel:
    """A socket for gRPC's clients, each connection of which becomes one by POST /grpc on an engine's socket."""

    def __init__(self, engine: str, path: Path) -> None:
        self.engine = engine
        self.address = f"unix:{path}"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.connect(self.engine)
        server.sendall(b"POST /grpc HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            got = server.recv(1)
            if not got:
                client.close()
                return
            head += got
        assert head.startswith(b"HTTP/1.1 101"), head
        threading.Thread(target=_carry, args=(client, server), daemon=True).start()
        _carry(server, client)

    def close(self) -> None:
        self.listener.close()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def marshalled(operations: Sequence[Any], end: bool = True) -> Any:
    """A definition of operations in JSON, whose inputs are `[number of an earlier one, output]`; the last one's first
    output is the result."""
    from google.protobuf import json_format

    from teu.api.buildkit import ops_pb2

    made = ops_pb2.Definition()
    blobs = getattr(made, "def")
    digests: list[str] = []
    for given in [*operations, {"inputs": [[len(operations) - 1, 0]]}] if end else operations:
        fields = {key: value for key, value in given.items() if key not in ("inputs", "name")}
        operation = json_format.ParseDict(fields, ops_pb2.Op())
        for number, index in given.get("inputs", ()):
            operation.inputs.add(digest=digests[number] if isinstance(number, int) else number, index=index)
        blob = operation.SerializeToString(deterministic=True)
        digests.append("sha256:" + hashlib.sha256(blob).hexdigest())
        blobs.append(blob)
        made.metadata.get_or_create(digests[-1])  # Go's clients have one of each, and frontends count on it
        if given.get("name"):
            made.metadata[digests[-1]].description["llb.customname"] = given["name"]
    return made
