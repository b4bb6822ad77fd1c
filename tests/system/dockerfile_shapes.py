# SPDX-License-Identifier: Apache-2.0
"""Shapes of Dockerfiles as people write them, and the base images that they stand on, made without a network.

A shape is one file in `dockerfiles/`: what it is for, how it is built, and the files of its context.

    # Two stages: what compiles stays behind.             comment
    ! --build-arg VERSION=1 --target final                words of the command line; {folder} is the shape's own folder,
                                                          {http} and {git} are what `Served` gives
    ! env TOKEN=secret                                    the client's environment
    ! code 1                                              the exit code of docker build, 0 otherwise
    ! crlf                                                the Dockerfile has a byte order mark and Windows' line ends
    ! streams                                             steps write to both streams: their lines have no order
    ! newer                                               what only a newer docker than Debian's has
    ! only files                                          what is compared of it, all otherwise: see `ASPECTS`
    -- Dockerfile --                                      a file; what follows, up to the next such line, is in it
    -- run.sh 0755 --                                     ...with this mode
    -- link -> target --                                  a symbolic link
    -- empty/ 0700 --                                     a folder

The base images have the names and the configuration of well-known ones, and in the place of their tools one script that
says how it was called and makes what the tool would make.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import peers

FOLDER = Path(__file__).parent / "dockerfiles"
# All files of all contexts are as old, and no file that a build makes is.
PINNED = 1_577_934_245
ASPECTS = ("code", "text", "steps", "logs", "warnings", "config", "history", "files", "output")


class File(NamedTuple):
    path: str
    mode: int
    text: str = ""
    link: str = ""


class Shape(NamedTuple):
    name: str
    about: str
    argv: tuple[str, ...]
    environment: dict[str, str]
    code: int
    only: tuple[str, ...]
    files: tuple[File, ...]
    newer: bool = False
    streams: bool = False  # steps write to both of theirs: which line comes first is nobody's

    def words(self, folder: Path, **places: str) -> list[str]:
        """Its words of a command line, without the context."""
        words = list(self.argv)
        for name, value in {"folder": str(folder), **places}.items():
            words = [word.replace(f"{{{name}}}", value) for word in words]
        return words

    @property
    def has_output(self) -> bool:
        return any(word.startswith(("-o", "--output")) for word in self.argv)


HEADER = re.compile(r"-- (?P<path>.+?)(?: -> (?P<link>.+?)| (?P<mode>0[0-7]{3,4}))? --")


def _header(line: str) -> File:
    found = HEADER.fullmatch(line)
    assert found, line
    path, link, mode = found["path"], found["link"] or "", found["mode"]
    return File(path, int(mode, 8) if mode else 0o755 if path.endswith("/") else 0o644, link=link)


def read(path: Path) -> Shape:
    """Read a shape; ValueError where a line says nothing."""
    about: list[str] = []
    argv: list[str] = []
    environment: dict[str, str] = {}
    code, only, crlf, streams, newer = 0, ASPECTS, False, False, False
    files: list[File] = []
    for line in path.read_text().splitlines(keepends=True):
        bare = line.rstrip("\n")
        if bare.startswith("-- ") and bare.endswith(" --"):
            files.append(_header(bare))
        elif files:
            files[-1] = files[-1]._replace(text=files[-1].text + line)
        elif bare.startswith("# "):
            about.append(bare[2:])
        elif bare.startswith("! env "):
            name, _, value = bare[6:].partition("=")
            environment[name] = value
        elif bare.startswith("! code "):
            code = int(bare[7:])
        elif bare.startswith("! only "):
            only = tuple(bare[7:].split())
        elif bare == "! crlf":
            crlf = True
        elif bare == "! streams":
            streams = True
        elif bare == "! newer":
            newer = True
        elif bare.startswith("! "):
            argv += shlex.split(bare[2:])
        elif bare:
            raise ValueError(f"{path.name}: what is {bare!r}?")
    if crlf:
        files = [file._replace(text="\ufeff" + file.text.replace("\n", "\r\n")) for file in files]
    return Shape(path.stem, " ".join(about), tuple(argv), environment, code, only, tuple(files), newer, streams)


def all_shapes() -> list[Shape]:
    return [read(path) for path in sorted(FOLDER.glob("*.txt"))]


def lay_out(shape: Shape, folder: Path) -> Path:
    """Write its files, all of one age, into a new folder; returns that."""
    folder.mkdir()
    for file in shape.files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.link:
            path.symlink_to(file.link)
        elif file.path.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text(file.text, newline="")
    for file in shape.files:
        if not file.link:
            (folder / file.path).chmod(file.mode)
    for top, folders, files in os.walk(folder, topdown=False):
        for name in (*folders, *files):
            os.utime(Path(top) / name, (PINNED, PINNED), follow_symlinks=False)
    os.utime(folder, (PINNED, PINNED))
    return folder


# ---- base images -----------------------------------------------------------------------------------

TOOLS = "go npm node yarn pip python python3 cargo mvn java gradle apt-get apk make gcc composer bundle dotnet nginx"
TOOL = r"""#!/bin/sh
# Stands for many tools: says how it was called, and makes what was asked for.
name=${0##*/}
echo "$name $*"
out=
last=
for word in "$@"; do
    [ "$last" = -o ] && out=$word
    last=$word
done
case "$name $1" in
"go build" | "gcc "*)
    mkdir -p "$(dirname "$out")"
    { echo '#!/bin/sh'; echo "echo $name ${GOOS:-here}/${GOARCH:-any} CGO_ENABLED=${CGO_ENABLED-unset}"; } >"$out"
    chmod 755 "$out" ;;
"go mod") mkdir -p "${GOPATH:-/go}/pkg/mod" && sort go.mod >"${GOPATH:-/go}/pkg/mod/list" ;;
"npm ci" | "npm install" | "yarn install")
    mkdir -p node_modules/.bin && cp package.json node_modules/.list && ln -s ../.list node_modules/.bin/list ;;
"npm run" | "yarn build") mkdir -p dist && cat src/* >dist/bundle.js ;;
"pip install" | "pip wheel")
    mkdir -p /usr/local/lib/python/site-packages && echo "$*" >>/usr/local/lib/python/site-packages/installed ;;
"python -m" | "python3 -m") [ "$2" != venv ] || { mkdir -p "$3/bin" && ln -s /usr/local/bin/pip "$3/bin/pip"; } ;;
"cargo build") mkdir -p target/release && cat src/*.rs >target/release/app && chmod 755 target/release/app ;;
"mvn "* | "gradle "*) mkdir -p target && cat src/*.java >target/app.jar 2>/dev/null || : ;;
"apt-get install" | "apk add") mkdir -p /var/lib/packages && printf '%s\n' "$@" >>/var/lib/packages/list ;;
"make "*) mkdir -p build && cat Makefile >build/made ;;
esac
"""
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIME = "2024-01-02T03:04:05Z"

_Entry = tuple[str, bytes | None, dict[str, Any]]


def _tar(*entries: _Entry) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data, more in entries:
            info = tarfile.TarInfo(name)
            info.mode = 0o755 if data is None else 0o644
            info.mtime = PINNED
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size = len(data or b"")
            for key, value in more.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data) if data else None)
    return buffer.getvalue()


def _tools() -> bytes:
    folders: list[_Entry] = [(name, None, {}) for name in ("usr", "usr/local", "usr/local/bin", "usr/local/lib")]
    tool: _Entry = ("usr/local/bin/tool", TOOL.encode(), {"mode": 0o755})
    links: list[_Entry] = [
        (f"usr/local/bin/{name}", b"", {"type": tarfile.SYMTYPE, "linkname": "tool"}) for name in sorted(TOOLS.split())
    ]
    entry: _Entry = (
        "usr/local/bin/docker-entrypoint.sh",
        b'#!/bin/sh\nset -e\necho "entrypoint: $*"\nexec "$@"\n',
        {"mode": 0o755},
    )
    return _tar(*folders, tool, *links, entry)


def _distroless() -> bytes:
    return _tar(
        ("etc", None, {}),
        ("etc/passwd", b"root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/none\n", {}),
        ("etc/group", b"root:x:0:\nnonroot:x:65532:\n", {}),
        ("home", None, {}),
        ("home/nonroot", None, {"uid": 65532, "gid": 65532, "mode": 0o700}),
        ("tmp", None, {"mode": 0o1777}),
    )


def _special() -> bytes:
    """One of everything that a file system can hold."""
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    return _tar(
        ("special", None, {"mode": 0o2750, "gid": 100}),
        ("special/setuid", b"setuid", {"mode": 0o4755}),
        ("special/sticky", None, {"mode": 0o1777, "uid": 33, "gid": 33}),
        ("special/hard", b"hard", {"mode": 0o640}),
        ("special/hardlink", b"", {"type": tarfile.LNKTYPE, "linkname": "special/hard", "mode": 0o640}),
        ("special/absolute", b"", {"type": tarfile.SYMTYPE, "linkname": "/special/hard"}),
        ("special/dangling", b"", {"type": tarfile.SYMTYPE, "linkname": "nowhere"}),
        ("special/to-folder", b"", {"type": tarfile.SYMTYPE, "linkname": "sticky"}),
        ("special/fifo", b"", {"type": tarfile.FIFOTYPE, "mode": 0o600}),
        ("special/with blank", b"blank", {}),
        ("special/ümläut", b"umlaut", {}),
        ("special/owned", b"owned", {"uid": 1234, "gid": 4321, "mode": 0o604}),
        (
            "special/capable",
            b"capable",
            {"mode": 0o755, "pax_headers": {"SCHILY.xattr.security.capability": capability.decode("latin-1")}},
        ),
        ("special/old", b"old", {"mtime": 1}),
        ("special/empty", b"", {}),
    )


def _own_file(base: str) -> str:
    """The file that a base image has and no other."""
    return f"usr/share-{hashlib.sha256(base.encode()).hexdigest()[:8]}"


def all_bases() -> str:
    """A Dockerfile that needs each base image."""
    copies = [f"COPY --from={name} /{_own_file(name)} /{number}" for number, name in enumerate(_bases())]
    return "\n".join(["FROM scratch", *copies, ""])


def _bases() -> dict[str, tuple[dict[str, Any], tuple[bytes, ...]]]:
    """Name -> configuration and layers. No two have the same files: builds at the same time share what is the same,
    and tell of it with the words of whichever came first."""
    return {
        name: (config, (*layers, _tar((_own_file(name), b"", {})))) for name, (config, layers) in _base_kinds().items()
    }


def _base_kinds() -> dict[str, tuple[dict[str, Any], tuple[bytes, ...]]]:
    shell, tools = peers.busybox_layer(), _tools()
    usual = (shell, tools)

    def config(*environment: str, **more: Any) -> dict[str, Any]:
        return {"Env": [*environment, PATH] if environment else [PATH], **more}

    return {
        "docker.io/library/busybox:latest": (config(Cmd=["sh"]), (shell,)),
        "docker.io/library/alpine:3.20": (config(Cmd=["/bin/sh"]), usual),
        "docker.io/library/debian:trixie-slim": (config(Cmd=["bash"]), usual),
        "docker.io/library/golang:1.23-alpine": (
            {
                "Env": [
                    "PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "GOLANG_VERSION=1.23.4",
                    "GOTOOLCHAIN=local",
                    "GOPATH=/go",
                ],
                "WorkingDir": "/go",
                "Cmd": ["sh"],
            },
            usual,
        ),
        "docker.io/library/node:22-slim": (
            config(
                "NODE_VERSION=22.12.0",
                "YARN_VERSION=1.22.22",
                Entrypoint=["docker-entrypoint.sh"],
                Cmd=["node"],
            ),
            usual,
        ),
        "docker.io/library/python:3.13-slim": (
            config("LANG=C.UTF-8", "PYTHON_VERSION=3.13.1", Cmd=["python3"]),
            usual,
        ),
        "docker.io/library/rust:1.83-slim": (
            config("RUSTUP_HOME=/usr/local/rustup", "CARGO_HOME=/usr/local/cargo"),
            usual,
        ),
        "docker.io/library/maven:3-eclipse-temurin-21": (
            config("JAVA_HOME=/opt/java", "MAVEN_CONFIG=/root/.m2", Entrypoint=["/usr/local/bin/tool"], Cmd=["mvn"]),
            usual,
        ),
        "docker.io/library/nginx:stable": (
            config(
                "NGINX_VERSION=1.26.2",
                Entrypoint=["/docker-entrypoint.sh"],
                Cmd=["nginx", "-g", "daemon off;"],
                ExposedPorts={"80/tcp": {}},
                StopSignal="SIGQUIT",
                Labels={"maintainer": "someone"},
            ),
            usual,
        ),
        "gcr.io/distroless/static:nonroot": (
            config("SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt", User="65532", WorkingDir="/home/nonroot"),
            (_distroless(),),
        ),
        "docker.io/library/onbuild:1": (
            config(
                WorkingDir="/usr/src/app",
                Cmd=["true"],
                OnBuild=["COPY package.json ./", "RUN npm install", "ENV TRIGGERED=yes", "COPY . ."],
            ),
            usual,
        ),
        "docker.io/library/configured:1": (
            config(
                "INHERITED=value with blanks",
                User="nobody",
                WorkingDir="/work",
                Entrypoint=["/bin/echo", "inherited"],
                Cmd=["arguments"],
                Volumes={"/data": {}},
                ExposedPorts={"8080/tcp": {}, "53/udp": {}},
                Labels={"one": "1", "two": ""},
                StopSignal="SIGINT",
                Healthcheck={"Test": ["CMD-SHELL", "true"], "Interval": 30_000_000_000, "Retries": 5},
                Shell=["/bin/sh", "-ec"],
            ),
            usual,
        ),
        "docker.io/library/special:1": (config(Cmd=["sh"]), (shell, _special())),
    }


def base_archive(path: Path) -> list[str]:
    """Write what `docker load` takes: all base images. Returns their names."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    blobs: dict[str, bytes] = {}

    def put(data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return digest

    def described(kind: str, data: bytes) -> dict[str, Any]:
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": f"sha256:{put(data)}",
            "size": len(data),
        }

    table, index = [], []
    for name, (config, layers) in _bases().items():
        body = json.dumps(
            {
                "architecture": machine,
                "os": "linux",
                "created": TIME,
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{put(layer)}" for layer in layers]},
                "history": [
                    *({"created": TIME, "created_by": f"layer {number} of a base"} for number in range(len(layers))),
                    {"created": TIME, "created_by": "CMD of a base", "empty_layer": True},
                ],
            }
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": described("config.v1+json", body),
                "layers": [described("layer.v1.tar", layer) for layer in layers],
            }
        ).encode()
        tag = name.rpartition(":")[2]
        notes = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag}
        index.append({**described("manifest.v1+json", manifest), "annotations": notes})
        table.append(
            {
                "Config": f"blobs/sha256/{put(body)}",
                "RepoTags": [name],
                "Layers": [f"blobs/sha256/{put(layer)}" for layer in layers],
            }
        )
    files: Mapping[str, bytes] = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": index}).encode(),
        "manifest.json": json.dumps(table).encode(),
        **blobs,
    }
    with tarfile.open(path, "w") as tar:
        for file, data in files.items():
            info = tarfile.TarInfo(file)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    return list(_bases())
