# SPDX-License-Identifier: Apache-2.0
"""`teu build` and `teu builder` on the BuildKit of Debian's dockerd, beside docker's own buildx: one command line, one
result. The daemon has docker's own image store, and in the second half containerd's, with which it can do more.

A step's number depends on which of two begins first, so texts are compared as sets of lines without numbers and times.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import signal
import socket
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest

TEU = "/usr/bin/teu"

pytestmark = pytest.mark.needs("docker", "dockerd", "trixie")

DOCKERFILE = """\
ARG GREETING=hello
FROM scratch AS base
COPY busybox /bin/busybox
COPY busybox /bin/sh
ENV PATH=/bin

FROM base AS work
ARG GREETING
RUN busybox echo "$GREETING" >/greeting; busybox mkdir /made; busybox chmod 2711 /made
COPY src /src
COPY link /link
LABEL stage=work

FROM scratch AS files
COPY --from=work /src /src
COPY --from=work /greeting /made /

FROM work
CMD ["/bin/busybox", "cat", "/greeting"]
"""


@pytest.fixture(scope="module")
def docker() -> Iterator[peers.Dockerd]:
    with peers.dockerd(network=True) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def modern() -> Iterator[peers.Dockerd]:
    with peers.dockerd(network=True, config={"features": {"containerd-snapshotter": True}}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context")
    (folder / "busybox").write_bytes(peers.BUSYBOX.read_bytes())
    (folder / "busybox").chmod(0o755)
    (folder / "Dockerfile").write_text(DOCKERFILE)
    (folder / "src/deep").mkdir(parents=True)
    for name in ("src/one", "src/two.log", "src/deep/three", "target"):
        (folder / name).write_text(name)
    (folder / "src/one").chmod(0o4751)
    (folder / "src/inner").symlink_to("deep/three")
    (folder / "link").symlink_to("target")
    (folder / "big").write_bytes(os.urandom(3_000_000))
    (folder / ".dockerignore").write_text("# not these\n**/*.log\n!nothing\n")
    return folder


def command(docker: peers.Dockerd, program: str, *argv: str) -> list[str]:
    return [program, *docker.client[1:], *argv]


def built(
    docker: peers.Dockerd, program: str, where: str, *argv: str, code: int | None = 0, **more: Any
) -> subprocess.CompletedProcess[str]:
    plain = () if any(word in argv for word in ("-q", "--progress")) else ("--progress", "plain")
    return peers.run(*command(docker, program, "build", *plain, *argv, where), code=code, **more)


def lines(text: str) -> set[str]:
    """What a build says, without what differs from run to run."""
    text = text.replace("ERROR: failed to build: ", "ERROR: ")
    found = set()
    for line in text.splitlines():
        line = re.sub(r"^#\d+ ", "# ", line)
        line = re.sub(r"sha256:[0-9a-f]{64}|\b[0-9a-z]{25}\b", "DIGEST", line)
        line = re.sub(r"\b\d+\.\d+s?\b|\b[0-9.]+k?M?B\b", "N", line)
        if line and "..." not in line and "transferring" not in line and "exporting layers" not in line:
            # What is quick is told once, at its end, or twice.
            found.add(re.sub(r"( N)?( done)?$", "", line))
    return found


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        data = os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (mode, data)
    return found


# ---- the same images --------------------------------------------------------------------------------


SAME_IMAGES = [
    (),
    ("--label", "a=b", "--label", "c"),
    ("--build-arg", "GREETING=bye"),
    ("--build-arg", "FROM_ENVIRONMENT"),
    ("--target", "base"),
    ("--target", "files"),
    ("--network", "none"),
    ("--platform", "linux/amd64"),
    ("--add-host", "a:1.2.3.4", "--shm-size", "8m", "--ulimit", "nofile=100:200"),
    ("--build-context", "extra=src"),
    ("-t", "two:1", "-t", "two:2"),
    ("--provenance=false",),
    ("--cache-from", "nothing/at:all", "--build-arg", "BUILDKIT_INLINE_CACHE=0"),
]


@pytest.mark.parametrize("argv", SAME_IMAGES, ids=lambda argv: " ".join(argv) or "plain")
def test_the_image_is_dockers(docker: peers.Dockerd, context: Path, argv: tuple[str, ...]) -> None:
    """Its identifier is a digest of all that is in it; the second builder finds the first one's steps."""
    theirs = built(docker, "docker", str(context), *argv, "-q")
    ours = built(docker, TEU, str(context), *argv, "-q")
    assert ours.stdout == theirs.stdout and ours.stdout.startswith("sha256:")
    for name in ("two:1", "two:2") if "-t" in argv else ():
        assert docker("image", "inspect", "-f", "{{.Id}}", name) == ours.stdout


def test_the_words_are_dockers(docker: peers.Dockerd, context: Path) -> None:
    built(docker, "docker", str(context))
    theirs = built(docker, "docker", str(context), "-t", "words")
    ours = built(docker, TEU, str(context), "-t", "words")
    assert lines(ours.stderr) == lines(theirs.stderr) and not ours.stdout
    assert '#0 building with "default" instance using docker driver' in ours.stderr
    fresh = ("--no-cache", "-t", "words")
    assert lines(built(docker, TEU, str(context), *fresh).stderr) == lines(
        built(docker, "docker", str(context), *fresh).stderr
    )


BROKEN = {
    "a step": (
        "FROM scratch\nCOPY busybox /bin/sh\n\nRUN echo one; echo two; exit 7\n# more\n# lines\n# here\n",
        (),
    ),
    "a copy": ("FROM scratch\nCOPY nowhere /x\n", ()),
    "syntax": ("FROM scratch\nNONSENSE x\nRUN y\n", ()),
    "no stage": ("FROM scratch\nCOPY target /\n", ("--target", "other")),
    "empty": ("# nothing\n", ()),
    "heredoc": ("FROM scratch\nCOPY busybox /bin/sh\nRUN <<X\necho a\nexit 2\nX\n", ()),
    "arguments": ("FROM scratch\nCOPY\n", ()),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_failure_is_told_as_docker_does(docker: peers.Dockerd, context: Path, tmp_path: Path, name: str) -> None:
    text, argv = BROKEN[name]
    (tmp_path / "Broken").write_text(text)
    argv = ("-f", str(tmp_path / "Broken"), *argv)
    built(docker, "docker", str(context), *argv, code=None)  # what can be cached is
    theirs = built(docker, "docker", str(context), *argv, code=None)
    ours = built(docker, TEU, str(context), *argv, code=None)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout) and ours.returncode
    mine, other = ours.stderr.replace("ERROR: failed to build: ", "ERROR: "), theirs.stderr
    end = mine.rfind("------\n >")
    if end >= 0:  # from the failed step to the end, letter by letter but for times
        differs = r"\d+\.\d{3}|\b[0-9a-z]{25}\b"
        assert re.sub(differs, "T", mine[end:]) == re.sub(differs, "T", other[other.rfind("------\n >") :])
    assert lines(mine) == lines(other)


@pytest.mark.parametrize(
    "argv",
    [
        ("nowhere",),
        ("--network", "mine", "."),
        ("-t", "UPPER", "."),
        ("--push", "."),
        ("-o", "type=oci,dest=x", "."),
        ("--platform", "linux/amd64,linux/arm64", "."),
        ("--progress", "strange", "."),
        ("--secret", "src=x", "."),
        ("--ssh", "default", "."),
        ("--no-cache", "--no-cache-filter", "x", "."),
        ("-f", "nowhere/Dockerfile", "."),
        ("-f", "Nowhere", "."),
        ("--unknown", "."),
        (),
    ],
    ids=" ".join,
)
def test_what_both_refuse(docker: peers.Dockerd, context: Path, argv: tuple[str, ...]) -> None:
    env = {**os.environ, "SSH_AUTH_SOCK": ""}
    codes = []
    for program in ("docker", TEU):
        done = subprocess.run(
            command(docker, program, "build", *argv), cwd=context, capture_output=True, text=True, env=env, check=False
        )
        assert done.stderr and not done.stdout, (program, done)
        codes.append(bool(done.returncode))
    assert codes == [True, True]


# ---- contexts ---------------------------------------------------------------------------------------


def test_only_what_changed_travels(docker: peers.Dockerd, tmp_path: Path) -> None:
    def sent() -> float:
        """Bytes of the context, as the builder counts them."""
        said = built(docker, TEU, str(tmp_path)).stderr
        number, unit = re.findall(r"transferring context: ([\d.]+)(B|kB|MB)", said)[-1]
        return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit]

    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY used /\n")
    (tmp_path / "used").mkdir()
    for number in range(200):
        (tmp_path / f"used/{number}").write_bytes(os.urandom(10_000))
    (tmp_path / "unused").write_bytes(os.urandom(5_000_000))
    first = sent()
    assert 2e6 <= first < 3e6
    assert sent() < 100_000
    (tmp_path / "used/7").write_bytes(os.urandom(300_000))
    assert 300_000 <= sent() < 400_000


def test_ignored_files(docker: peers.Dockerd, context: Path, tmp_path: Path) -> None:
    for name, text in (
        ("Dockerfile", "FROM scratch\nCOPY . /\n"),
        ("Other", "FROM scratch\nCOPY . /\n"),
        (".dockerignore", "*\n!keep\n!sub/in\nsub/in/no\n"),
        ("Other.dockerignore", "keep\n"),
        ("keep", "x"),
        ("drop", "x"),
        ("sub/in/yes", "x"),
        ("sub/in/no", "x"),
        ("sub/out", "x"),
    ):
        (tmp_path / "c" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / name).write_text(text)
    for argv in ((), ("-f", str(tmp_path / "c/Other"))):
        for program in ("docker", TEU):
            out = tmp_path / f"{Path(program).name}{len(argv)}"
            built(docker, program, str(tmp_path / "c"), *argv, "-o", str(out))
        assert tree(tmp_path / f"teu{len(argv)}") == tree(tmp_path / f"docker{len(argv)}")
    assert set(tree(tmp_path / "teu0")) == {"keep", "sub", "sub/in", "sub/in/yes"}


def test_the_standard_input(docker: peers.Dockerd, context: Path) -> None:
    text = "FROM scratch\nLABEL from=stdin\n"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, data in (("Dockerfile", text + "COPY x /\n"), ("D2", text), ("x", "x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data.encode()))
    for argv, data in (
        (("-",), text.encode()),
        (("-f", "-", str(context)), text.encode()),
        (("-",), archive.getvalue()),
        (("-f", "D2", "-"), archive.getvalue()),
    ):
        images = []
        for program in ("docker", TEU):
            done = subprocess.run(
                command(docker, program, "build", "-q", *argv), input=data, capture_output=True, check=False
            )
            assert done.returncode == 0, done.stderr.decode()
            images.append(done.stdout)
        assert images[0] == images[1] and images[0].startswith(b"sha256:")


def test_a_file_that_changes_while_it_is_read(docker: peers.Dockerd, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY f /\n")
    over = threading.Event()

    def change() -> None:
        number = 0
        while not over.is_set():
            number += 1
            (tmp_path / "f/new").write_bytes(os.urandom(1 + number % 50_000))
            with contextlib.suppress(FileNotFoundError):
                (tmp_path / "f/new").rename(tmp_path / f"f/{number % 5}")
                (tmp_path / f"f/{(number + 2) % 5}").unlink()

    (tmp_path / "f").mkdir()
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(5):
            done = built(docker, TEU, str(tmp_path), code=None, timeout=60)
            assert done.returncode in (0, 1) and "Traceback" not in done.stderr
    finally:
        over.set()
        thread.join()
    built(docker, TEU, str(tmp_path))


def test_what_cannot_be_read_is_named(docker: peers.Dockerd, tmp_path: Path) -> None:
    folder = Path("/tmp/teu-unreadable")
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    (folder / "secret").write_text("x")
    (folder / "secret").chmod(0)
    folder.chmod(0o755)
    docker.socket.chmod(0o666)
    docker.socket.parent.chmod(0o755)
    user = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
    done = peers.run(*user, TEU, "-H", docker.host, "build", str(folder), code=1, env={"HOME": "/nowhere"})
    assert "open secret: permission denied" in done.stderr, done.stderr
    (folder / "secret").unlink()
    done = peers.run(*user, TEU, "-H", docker.host, "build", "-o", str(folder / "x"), str(folder), code=1)
    assert "Permission denied" in done.stderr or "permission denied" in done.stderr, done.stderr


def test_secrets_are_in_no_layer(docker: peers.Dockerd, context: Path, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/sha256sum\n"
        "RUN --mount=type=secret,id=a --mount=type=secret,id=b /bin/sha256sum /run/secrets/a /run/secrets/b >/sums\n"
        "RUN --mount=type=secret,id=c,required /bin/sha256sum /run/secrets/c\n"
    )
    (tmp_path / "file").write_text("topsecret-one")
    env = {"TOKEN": "topsecret-two"}
    argv = ("-f", str(tmp_path / "Dockerfile"), "--secret", f"id=a,src={tmp_path}/file", "--secret", "id=b,env=TOKEN")
    missing = [built(docker, program, str(context), *argv, code=1, env=env).stderr for program in ("docker", TEU)]
    assert lines(missing[0]) == lines(missing[1])
    (tmp_path / "two").write_text((tmp_path / "Dockerfile").read_text().replace(",required", ""))
    argv = ("-f", str(tmp_path / "two"), *argv[2:], "--secret", "id=c,env=TOKEN", "--no-cache", "-t", "secrets")
    built(docker, TEU, str(context), *argv, env=env)
    assert "topsecret" not in docker("history", "--no-trunc", "secrets") + docker("inspect", "secrets")
    saved = tmp_path / "saved.tar"
    docker("save", "-o", str(saved), "secrets")
    assert b"topsecret" not in saved.read_bytes()


# ---- results ----------------------------------------------------------------------------------------


def test_files_of_a_result(docker: peers.Dockerd, context: Path, tmp_path: Path) -> None:
    for program in ("docker", TEU):
        out = tmp_path / Path(program).name
        built(docker, program, str(context), "--target", "files", "-o", str(out))
        built(docker, program, str(context), "--target", "files", "-o", f"type=tar,dest={out}.tar")
        plain = command(docker, program, "build", "--target", "files", "-o", "-", str(context))
        data = subprocess.run(plain, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(data)) as streamed, tarfile.open(f"{out}.tar") as kept:
            assert streamed.getnames() == kept.getnames()
            assert "src/deep/three" in kept.getnames()
    assert tree(tmp_path / "teu") == tree(tmp_path / "docker")
    assert stat.S_IMODE((tmp_path / "teu/src/one").stat().st_mode) == 0o4751
    assert not list(tmp_path.glob("*.tmp"))


def test_two_results_of_one_build(docker: peers.Dockerd, context: Path, tmp_path: Path) -> None:
    out = ("-o", str(tmp_path / "out"), "-o", f"type=tar,dest={tmp_path}/x.tar")
    theirs = built(docker, "docker", str(context), "--target", "files", *out, code=None)
    ours = built(docker, TEU, str(context), "--target", "files", *out, code=None)
    assert bool(ours.returncode) == bool(theirs.returncode), ours.stderr
    if not ours.returncode:
        assert (tmp_path / "out/src/one").exists() and tarfile.is_tarfile(tmp_path / "x.tar")


def test_files_that_tell_of_the_build(docker: peers.Dockerd, context: Path, tmp_path: Path) -> None:
    said = {}
    for program in ("docker", TEU):
        name = Path(program).name
        argv = (
            "-t",
            "told",
            "--iidfile",
            str(tmp_path / f"{name}.id"),
            "--metadata-file",
            str(tmp_path / f"{name}.json"),
        )
        built(docker, program, str(context), *argv)
        said[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert (tmp_path / "teu.id").read_text() == (tmp_path / "docker.id").read_text()
    assert said["teu"].keys() == said["docker"].keys()
    for value in said.values():
        value.pop("buildx.build.ref")
        value.pop("buildx.build.provenance", None)
    assert said["teu"] == said["docker"]


def test_progress_as_json(docker: peers.Dockerd, context: Path) -> None:
    """Its lines have the members that Go's client writes."""
    said = built(docker, TEU, str(context), "--progress", "rawjson", "--no-cache", "--target", "work").stderr
    members: dict[str, set[str]] = {}
    for line in said.splitlines():
        for key, items in json.loads(line).items():
            for item in items:
                members.setdefault(key, set()).update(item)
    assert members["vertexes"] >= {"digest", "inputs", "name", "started", "completed"}
    assert members["statuses"] >= {"id", "vertex", "current", "timestamp", "started"}


def test_an_interrupt_ends_the_build(docker: peers.Dockerd, context: Path, tmp_path: Path) -> None:
    (tmp_path / "Slow").write_text("FROM scratch\nCOPY busybox /bin/sh\nRUN echo here; while :; do :; done\n")
    argv = command(
        docker, TEU, "build", "--progress", "plain", "--no-cache", "-f", str(tmp_path / "Slow"), str(context)
    )
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if " here" in line and "RUN" not in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(30) == 130, rest
    assert "CANCELED" in rest or "context canceled" in rest, rest
    peers.wait_until(lambda: not running("while :; do :; done"), "the end of the step", 15)


def running(text: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes() and b"sh" in path.read_bytes():
                return path.parent.name != str(os.getpid())
    return False


def test_on_a_terminal(docker: peers.Dockerd, context: Path) -> None:
    """Everything that the build did stands there at the end; what it drew stays within the terminal."""
    master, slave = os.openpty()
    argv = command(docker, TEU, "build", "--no-cache", "--target", "work", str(context))
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    out = b""
    with contextlib.suppress(OSError):
        while data := os.read(master, 65536):
            out += data
    assert process.wait(60) == 0, out.decode(errors="replace")
    os.close(master)
    last = rendered(out.decode())
    assert "FINISHED" in last.splitlines()[0] and "docker:default" in last.splitlines()[0]
    for part in ("[internal] load build definition", "[base 1/2] COPY busybox", "[work 3/3] COPY link"):
        assert part in last
    assert all(len(line) <= 80 for line in last.splitlines())


def rendered(out: str) -> str:
    """What a terminal shows that has got this."""
    rows: list[str] = [""]
    row = 0
    for sign, number, kind, text in re.findall(r"(\x1b\[)\??(\d*)([A-Za-z])|([^\x1b]+)", out):
        if sign and kind == "A":
            row -= int(number)
        elif sign and kind == "J":
            del rows[row + 1 :]
            rows[row] = ""
        for piece in re.split(r"(\r?\n)", text):
            if "\n" in piece:
                row += 1
                if row == len(rows):
                    rows.append("")
            elif piece.strip("\r"):
                rows[row] = piece.strip("\r")
    return "\n".join(rows)


# ---- the classic request ----------------------------------------------------------------------------


def test_the_classic_builder(docker: peers.Dockerd, context: Path, tmp_path: Path) -> None:
    (tmp_path / "Classic").write_text("FROM scratch\nCOPY src /src\nLABEL a=b\n")
    env = {"DOCKER_BUILDKIT": "0"}
    images = []
    for program in ("docker", TEU):
        argv = ("build", "-f", str(tmp_path / "Classic"), "-t", "classic", str(context))
        done = peers.run(*command(docker, program, *argv), env=env)
        assert "Successfully built" in done.stdout and "Step 3/3 : LABEL a=b" in done.stdout
        images.append(docker("image", "inspect", "-f", "{{.RootFS.Layers}}", "classic"))
    assert images[0] == images[1]
    done = peers.run(*command(docker, TEU, "build", "--secret", "id=x", str(context)), code=1, env=env)
    assert "requires BuildKit" in done.stderr


# ---- the cache, and builds that were ----------------------------------------------------------------


def test_the_cache_as_both_see_it(docker: peers.Dockerd, context: Path) -> None:
    built(docker, TEU, str(context))

    def rows(*argv: str) -> list[list[str]]:
        return sorted(line.split()[:3] for line in peers.run(*argv).stdout.splitlines() if line.split())

    ours = rows(*command(docker, TEU, "builder", "du"))
    theirs = rows(*command(docker, "docker", "buildx", "du"))
    assert ours == theirs
    assert rows(*command(docker, TEU, "builder", "du")) == theirs
    ours = rows(*command(docker, TEU, "builder", "du", "--filter", "type=source.local"))
    assert ours == rows(*command(docker, "docker", "buildx", "du", "--filter", "type=source.local"))
    assert "true" in {row[1] for row in ours}
    said = peers.run(*command(docker, TEU, "builder", "du", "--filter", "description=COPY", "--verbose")).stdout
    assert "COPY busybox /bin/busybox" in said and "local source" not in said
    assert "default" in peers.run(*command(docker, TEU, "builder", "ls")).stdout
    assert "linux/amd64" in peers.run(*command(docker, TEU, "builder", "inspect")).stdout


def test_builds_that_were(docker: peers.Dockerd, context: Path, tmp_path: Path) -> None:
    def history(*argv: str, code: int | None = 0) -> str:
        return peers.run(*command(docker, TEU, "builder", "history", *argv), code=code).stdout

    metadata = tmp_path / "m.json"
    built(docker, TEU, str(context), "--metadata-file", str(metadata), "--no-cache", "--target", "work")
    ref = json.loads(metadata.read_text())["buildx.build.ref"].rpartition("/")[2]
    assert history("ls", "-q").splitlines()[0] == ref
    assert "Completed" in history("ls")
    assert "[base 1/2] COPY busybox" in peers.run(*command(docker, TEU, "builder", "history", "logs", ref)).stderr
    assert ref in history("inspect", ref[:10]) and "Completed" in history("inspect")
    assert json.loads(history("inspect", "--format", "json", "^0"))["Ref"] == ref
    (tmp_path / "Broken").write_text("FROM scratch\nCOPY nowhere /\n")
    built(docker, TEU, str(context), "-f", str(tmp_path / "Broken"), code=1)
    assert "Error" in history("ls") and "Broken:2" in history("inspect")
    history("rm", ref)
    assert ref not in history("ls", "-q").splitlines()
    history("inspect", ref, code=1)


def test_the_cache_goes(docker: peers.Dockerd, context: Path) -> None:
    built(docker, TEU, str(context))
    said = peers.run(*command(docker, TEU, "builder", "prune", "-f", "--filter", "until=1h")).stdout
    assert said.endswith("Total:\t0B\n")
    said = peers.run(*command(docker, TEU, "builder", "prune", "-a", "-f")).stdout
    assert re.search(r"Total:\t[\d.]+MB", said), said
    assert "Total:" in peers.run(*command(docker, "docker", "buildx", "du")).stdout


# ---- a builder's own socket -------------------------------------------------------------------------


@contextlib.contextmanager
def buildkitd(docker: peers.Dockerd, path: Path) -> Iterator[str]:
    """dockerd's BuildKit behind a socket of its own, as buildkitd has it: HTTP/2 from the first byte."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    clients = []

    def serve(client: socket.socket) -> None:
        clients.append(client)
        engine = socket.socket(socket.AF_UNIX)
        engine.connect(str(docker.socket))
        engine.sendall(b"POST /grpc HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += engine.recv(1)
        ends = {client: engine, engine: client}
        while True:
            for end in select.select(list(ends), [], [])[0]:
                data = end.recv(65536)
                if not data:
                    client.close()
                    engine.close()
                    return
                ends[end].sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"unix://{path}"
    finally:
        listener.close()
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


def test_a_builder_that_goes(docker: peers.Dockerd, context: Path, tmp_path: Path) -> None:
    """Its client ends with words, and so does the build on the other side."""
    (tmp_path / "Slow").write_text("FROM scratch\nCOPY busybox /bin/sh\nRUN echo here; while :; do : gone; done\n")
    with buildkitd(docker, tmp_path / "s") as address:
        argv = [TEU, "build", "--builder", address, "--progress", "plain", "--no-cache", "-f", str(tmp_path / "Slow")]
        process = subprocess.Popen([*argv, str(context)], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if " here" in line and "RUN" not in line:
                break
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 1 and "ERROR: failed to build: failed to solve: Unavailable" in rest, rest
    peers.wait_until(lambda: not running("do : gone; done"), "the end of the step", 15)


def test_a_buildkitd(docker: peers.Dockerd, context: Path, tmp_path: Path) -> None:
    """The session goes through Control.Session there."""
    with buildkitd(docker, tmp_path / "s") as address:
        out = tmp_path / "out"
        peers.run(
            TEU, "build", "--builder", address, "--target", "files", "--provenance=false", "-o", str(out), str(context)
        )
        assert (out / "src/deep/three").read_text() == "src/deep/three"
        done = peers.run(TEU, "builder", "du", env={"BUILDKIT_HOST": address})
        assert "Total:" in done.stdout
    done = peers.run(TEU, "build", "--builder", f"unix://{tmp_path}/nowhere", str(context), code=1)
    assert "cannot connect to the builder" in done.stderr


def test_a_policy_for_sources(
    docker: peers.Dockerd, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EXPERIMENTAL_BUILDKIT_SOURCE_POLICY, for builds and for questions to the frontend."""
    policy = tmp_path / "policy.json"
    monkeypatch.setenv("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY", str(policy))
    for name, code in (("context", 1), ("other", 0)):
        rules = [{"action": "DENY", "selector": {"identifier": f"local://{name}"}}]
        policy.write_text(json.dumps({"rules": rules}))
        for program in ("docker", TEU):
            said = built(docker, program, str(context), "--no-cache", "--target", "files", code=code).stderr
            assert ("denied by policy" in said) == bool(code), (program, said)
    policy.write_text(json.dumps({"rules": [{"action": "DENY", "selector": {"identifier": "local://dockerfile"}}]}))
    done = peers.run(*command(docker, TEU, "build", "--call", "targets", str(context)), code=1)
    assert "denied by policy" in done.stderr
    policy.write_text("{")
    for program in ("docker", TEU):
        assert "failed to parse source policy" in built(docker, program, str(context), code=1).stderr


def test_over_tls(context: Path, tmp_path: Path) -> None:
    peers.run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{tmp_path}/key.pem", "-out", f"{tmp_path}/ca.pem"),
    )
    port = peers.free_port()
    ca = ("--tlscacert", f"{tmp_path}/ca.pem")
    tls = ("--tls", *ca, "--tlscert", f"{tmp_path}/ca.pem", "--tlskey", f"{tmp_path}/key.pem")
    with peers.dockerd(options=["--host", f"tcp://127.0.0.1:{port}", *tls], network=True):
        for argv in (tls, ("--tlsverify", *tls[1:])):
            out = tmp_path / argv[0]
            target = ("build", "--no-cache", "--target", "files", "-o", str(out), str(context))
            peers.run(TEU, "-H", f"tcp://127.0.0.1:{port}", *argv, *target)
            assert (out / "src/deep/three").read_text() == "src/deep/three"


# ---- containerd's image store -----------------------------------------------------------------------


def test_archives_of_images(modern: peers.Dockerd, context: Path, tmp_path: Path) -> None:
    found = {}
    for program in ("docker", TEU):
        name = Path(program).name
        for kind in ("oci", "docker"):
            path = tmp_path / f"{name}.{kind}"
            argv = ("-t", "x:1", "--provenance=false", "-o", f"type={kind},dest={path}")
            built(modern, program, str(context), *argv)
            with tarfile.open(path) as tar:
                index = tar.extractfile("index.json")
                assert index is not None
                found[name, kind] = json.load(index)["manifests"][0]["digest"]
    assert found["teu", "oci"] == found["docker", "oci"] and found["teu", "docker"] == found["docker", "docker"]
    layout = tmp_path / "layout"
    built(modern, TEU, str(context), "-t", "x:1", "--provenance=false", "-o", f"type=oci,tar=false,dest={layout}")
    index = json.loads((layout / "index.json").read_text())["manifests"]
    assert index[0]["digest"] == found["teu", "oci"]
    (tmp_path / "From").write_text("FROM base\nLABEL on=layout\n")
    base = ("--build-context", f"base=oci-layout://{layout}", "--provenance=false")
    argv = (*base, "-f", str(tmp_path / "From"), "-q")
    assert built(modern, TEU, str(context), *argv).stdout == built(modern, "docker", str(context), *argv).stdout


def test_platforms_and_attestations(modern: peers.Dockerd, context: Path, tmp_path: Path) -> None:
    (tmp_path / "Both").write_text("FROM scratch\nARG TARGETARCH\nLABEL arch=$TARGETARCH\nCOPY target /\n")
    argv = ("-f", str(tmp_path / "Both"), "--platform", "linux/amd64,linux/arm64", "--provenance", "mode=max")
    kinds = []
    for program in ("docker", TEU):
        path = tmp_path / f"{Path(program).name}.tar"
        built(modern, program, str(context), *argv, "-t", "many", "-o", f"type=oci,dest={path}")
        with tarfile.open(path) as tar:

            def blob(name: str, tar: tarfile.TarFile = tar) -> Any:
                file = tar.extractfile(name)
                assert file is not None
                return json.load(file)

            digest = blob("index.json")["manifests"][0]["digest"]
            inner = blob(f"blobs/{digest.replace(':', '/')}")["manifests"]
        kinds.append([(one["platform"]["architecture"], sorted(one.get("annotations", {}))) for one in inner])
    assert kinds[0] == kinds[1] and [arch for arch, _ in kinds[1]] == ["amd64", "arm64", "unknown", "unknown"]


@pytest.mark.needs("docker-registry")
def test_registries_and_caches(modern: peers.Dockerd, context: Path, tmp_path: Path) -> None:
    with peers.registry() as registry:
        name = f"{registry.address}/some/image:1"
        cache = ("--cache-to", f"type=local,dest={tmp_path}/cache,mode=max", "--cache-to", "type=inline")
        built(modern, TEU, str(context), "-t", name, "--push", *cache)
        assert (tmp_path / "cache/index.json").exists()
        for program in ("docker", TEU):
            peers.run(*command(modern, "docker", "buildx", "prune", "-a", "-f"))
            said = built(modern, program, str(context), "--cache-from", f"type=local,src={tmp_path}/cache").stderr
            assert re.search(r"COPY busybox /bin/busybox\n(#\d+ [^\n]*\n)*#\d+ CACHED", said), (program, said)
        peers.run(*command(modern, "docker", "buildx", "prune", "-a", "-f"))
        said = built(modern, TEU, str(context), "--cache-from", name).stderr
        assert "CACHED" in said and f"importing cache manifest from {name}" in said


@pytest.mark.needs("docker-registry")
def test_a_push_with_the_engines_own_store(docker: peers.Dockerd, context: Path) -> None:
    with peers.registry() as registry:
        name = f"{registry.address}/some/image:1"
        said = built(docker, TEU, str(context), "-t", name, "--push").stderr
        assert f"pushing {name}" in said
        docker("rmi", name)
        docker("pull", name)


def test_questions_to_the_frontend(docker: peers.Dockerd, context: Path) -> None:
    def asked(*argv: str, code: int = 0) -> str:
        return peers.run(*command(docker, TEU, "build", *argv, str(context)), code=code).stdout

    targets = asked("--call", "targets")
    assert all(name in targets for name in ("base", "work", "files", "(default)"))
    assert "GREETING" in asked("--call", "outline")
    value = json.loads(asked("--call", "targets,format=json"))
    assert [one.get("name", "") for one in value["targets"]] == ["base", "work", "files", ""]
    assert not asked("--check", code=1)  # this BuildKit is older than the checks
