# SPDX-License-Identifier: Apache-2.0
"""The builder against those who mean it harm: contexts, Dockerfiles, definitions and frontends that want out. One test
per known hole of BuildKit, by its number; git's are among the unit tests (test_source_git), racing caches and false
DiffIDs, too (test_build_exec, test_source_image)."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import builds
import grpc
import pytest
from builds import SERVICE, Client, Definition, Following, scopes
from lab_kind import PATIENCE
from test_build_control import FRONTEND, Buildx, buildx, busybox, frontend
from whole import call, eventually, main_pid, teu

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "buildkit"))
from githttp import Served

from teu.api.buildkit import ops_pb2 as pb
from teu.api.buildkit.fsutil import raw_pb2

__all__ = ["busybox", "buildx", "frontend"]  # fixtures

pytestmark = [pytest.mark.needs("docker", "systemd"), pytest.mark.timeout(300)]

WORDS = re.compile(r"Traceback|internal error|NoneType|[A-Z]\w+Error:|object has no|list index|out of range$")


@pytest.fixture
def client(busybox: None) -> Iterator[Client]:
    with Client() as made:
        yield made


class Outside:
    """A folder of the host that nothing may touch, nor read."""

    def __init__(self, top: Path) -> None:
        self.top = top / "outside"
        self.secret = f"outside-{os.urandom(8).hex()}"
        self.top.mkdir()
        (self.top / "secret").write_text(self.secret)
        (self.top / "secret").chmod(0o600)
        (self.top / "passwd").write_text("root:x:12345:12345::/:/bin/sh\n")
        (self.top / "empty").touch()
        (self.top / "folder").mkdir()
        self._before = self._now()

    def _now(self) -> dict[str, Any]:
        found = {}
        for path in (self.top, *sorted(self.top.rglob("*"))):
            status = path.lstat()
            attributes = [(name, os.getxattr(path, name)) for name in os.listxattr(path)]
            data = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, data, attributes)
        return found

    def check(self, *texts: str) -> None:
        """It is as it was, and nothing of it is in these texts."""
        assert self._now() == self._before
        assert not any(self.secret in text for text in texts)


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    return Outside(tmp_path)


def refusal(call: Callable[..., Any], *words: Any, **fields: Any) -> grpc.RpcError:
    """The error that a call ends with: one for people, of a builder that is still there."""
    pid = main_pid(SERVICE)
    with pytest.raises(grpc.RpcError) as caught:
        call(*words, **fields)
    error = caught.value
    text = error.details() or ""
    assert error.code() is not grpc.StatusCode.UNAVAILABLE, text
    assert not WORDS.search(text), text
    assert main_pid(SERVICE) == pid or not pid
    return error


def attempt(call: Callable[..., Any], *words: Any, **fields: Any) -> Any:
    """What a call answers, or its error, which is one for people."""
    try:
        return call(*words, **fields)
    except grpc.RpcError as error:
        assert not WORDS.search(error.details() or ""), error.details()
        return error
    except ValueError:
        return None  # gRPC's own, of what is no text


# -- contexts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["COPY", "ADD"])
@pytest.mark.parametrize(
    "path", ["../outside/secret", "/../outside/secret", "link", "folder/secret", "up/outside/secret"]
)
def test_a_context_reaches_not_outside(path: str, verb: str, buildx: Buildx, outside: Outside) -> None:
    context = buildx.context
    (context / "link").symlink_to(outside.top / "secret")
    (context / "folder").symlink_to(outside.top)
    (context / "up").symlink_to("..")
    out = buildx.top / "out"
    text = buildx.build(f"FROM scratch\n{verb} {path} /x\n", f"--output=type=local,dest={out}", check=False)
    found = [path.read_text() for path in out.rglob("*") if path.is_file()] if out.is_dir() else []
    outside.check(text, *found)


@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore"])
def test_a_dockerfile_that_is_something_else(name: str, buildx: Buildx, outside: Outside) -> None:
    """A link out, and a FIFO that nobody writes to (CVE-2026-93320)."""
    for kind in ("link", "fifo"):
        path = buildx.context / name
        (buildx.context / "Dockerfile").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        if name != "Dockerfile":
            (buildx.context / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
        if kind == "link":
            path.symlink_to(outside.top / "secret")
        else:
            os.mkfifo(path)
        client = Following(buildx.start(*buildx.words()))
        try:
            client.wait(30)
        finally:
            client.process.kill()
        # What buildx reads of a context by itself, it reads as its user.
        assert not WORDS.search(client.text), client.text[-2000:]


DIR, LINK, DEVICE, CHARACTER = 1 << 31, 1 << 27, 1 << 26, 1 << 21


def stat(path: bytes, mode: int = 0o644, **fields: Any) -> Any:
    return raw_pb2.Packet(type=0, stat=raw_pb2.Stat(path=path, mode=mode, **fields))


def hostile_walks(outside: Outside) -> dict[str, list[list[Any]]]:
    """Each is told in turn by one client with one shared key: what the first one leaves, the next one finds."""
    top = os.fsencode(outside.top)
    attributes = {"user.pwned": b"1", "security.capability": bytes.fromhex("0100000200200000") + bytes(12)}
    return {
        "up": [[stat(b"../outside/pwned")], [stat(b"..", DIR | 0o755), stat(b"../pwned")]],
        "absolute": [[stat(top + b"/pwned")]],
        "link, then through it": [
            [stat(b"a", LINK | 0o777, linkname=top)],
            [stat(b"a", DIR | 0o755), stat(b"a/pwned")],
            [stat(b"a", LINK | 0o777, linkname=top), stat(b"a/pwned")],
        ],
        "hard link": [[stat(b"a", linkname=top + b"/secret")], [stat(b"a", linkname=b"../outside/secret")]],
        "hard link through a link": [
            [stat(b"l", LINK | 0o777, linkname=top + b"/secret"), stat(b"m", linkname=b"l", mode=0o666)]
        ],
        # GHSA-w26x-xg27-7qjc: attributes of what a link leads to.
        "attributes of a link": [
            [stat(b"a", LINK | 0o777, linkname=top + b"/secret", xattrs=attributes)],
            [stat(b"a", LINK | 0o777, linkname=top, xattrs=attributes), stat(b"b", linkname=b"a", xattrs=attributes)],
        ],
        "times and modes of a link": [[stat(b"a", LINK | 0o4777, linkname=top + b"/secret", uid=1000, modTime=5)]],
        "whiteout": [[stat(b"a", DEVICE | CHARACTER | 0o600)]],
        "device": [[stat(b"a", DEVICE | 0o666, devmajor=7, devminor=0)]],
    }


@pytest.mark.parametrize("name", [
    "up", "absolute", "link, then through it", "hard link", "hard link through a link", "attributes of a link",
    "times and modes of a link", "whiteout", "device",
])  # fmt: skip
def test_a_hostile_sender_of_a_context(name: str, client: Client, outside: Outside) -> None:
    """GHSA-g2h8-426c-7976: a client that speaks the session's file protocol as no walk would."""
    for walk in hostile_walks(outside)[name]:

        def diff_copy(requests: Any, context: Any, walk: list[Any] = walk) -> Iterator[Any]:
            yield from walk
            yield raw_pb2.Packet(type=0)
            for request in requests:
                if request.type == 1:
                    yield raw_pb2.Packet(type=2, ID=request.ID, data=b"pwned")
                    yield raw_pb2.Packet(type=2, ID=request.ID)
                elif request.type == 3:
                    yield raw_pb2.Packet(type=3)
                    return
                else:
                    return

        methods = {"/moby.filesync.v1.FileSync/DiffCopy": (True, True, raw_pb2.Packet, raw_pb2.Packet, diff_copy)}
        with builds.session(methods) as identifier:
            definition = Definition()
            source = definition.source("local://context", local_session=identifier, local_sharedkeyhint=f"k{name}")
            step = definition.file(source, mkfile=pb.FileActionMkFile(path="/made", mode=0o644, timestamp=-1))
            try:
                client.solve(definition.end(step), Session=identifier)
            except grpc.RpcError as error:
                assert error.code() is not grpc.StatusCode.UNAVAILABLE and not WORDS.search(error.details() or "")
        outside.check()


def test_an_archive_that_wants_out(buildx: Buildx, outside: Outside) -> None:
    """ADD unpacks inside of its destination alone, whatever is in the archive and whatever it is unpacked upon."""
    with tarfile.open(buildx.context / "evil.tar", "w") as archive:
        for name, kind, link in (
            ("../../../../../../../" + str(outside.top)[1:] + "/pwned", tarfile.REGTYPE, ""),
            (f"{outside.top}/pwned", tarfile.REGTYPE, ""),
            ("l", tarfile.SYMTYPE, str(outside.top)),
            ("l/pwned", tarfile.REGTYPE, ""),
            ("h", tarfile.LNKTYPE, f"{outside.top}/secret"),
            ("h", tarfile.LNKTYPE, "../../outside/secret"),
            ("l", tarfile.DIRTYPE, ""),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = kind, link, 0o4777
            archive.addfile(entry)
    out = buildx.top / "out"
    text = buildx.build("FROM scratch\nADD evil.tar /a/\n", f"--output=type=local,dest={out}", check=False)
    assert not WORDS.search(text)
    outside.check(text, *(path.read_text() for path in out.rglob("*") if path.is_file() and not path.is_symlink()))


# -- destinations ------------------------------------------------------------------------------------------------------


DESTINATIONS = {
    "a link": "RUN ln -s {out} /link\nCOPY file /link/pwned",
    "a link as the destination": "RUN ln -s {out}/secret /link\nCOPY file /link",
    "a link up": "RUN ln -s ../../../../../../../../../../../../{out} /link\nCOPY file /link/pwned",
    "a link to another's root": "RUN ln -s /proc/1/root{out} /link\nCOPY file /link/pwned",
    "a link to a descriptor": "RUN ln -s /proc/self/fd/7 /link\nCOPY file /link/pwned",
    "a folder": "RUN ln -s {out} /link\nCOPY . /link/",
    "ADD": "RUN ln -s {out} /link\nADD file /link/pwned",
    "ADD of an archive": "RUN ln -s {out} /link\nADD a.tar /link/",
    "COPY --link": "RUN ln -s {out} /link\nCOPY --link file /link/pwned",
    "WORKDIR": "RUN ln -s {out} /link\nWORKDIR /link/pwned\nRUN touch here",
    "--chown by a passwd elsewhere": "RUN rm -f /etc/passwd; ln -s {out}/passwd /etc/passwd\nCOPY --chown=root file /x",
    "--chmod": "RUN ln -s {out} /link\nCOPY --chmod=777 --chown=1000:1000 file /link/secret",
    "a heredoc": "RUN ln -s {out} /link\nCOPY <<E /link/secret\npwned\nE",
    "a mount": "RUN ln -s {out} /link\nRUN --mount=type=tmpfs,target=/link/pwned true",
    "a cache": "RUN ln -s {out} /link\nRUN --mount=type=cache,target=/link/folder touch /link/folder/pwned",
    "--parents": "RUN ln -s {out} /link\nCOPY --parents ./file /link/",
    "from a link": "RUN ln -s {out} /link\nFROM scratch\nCOPY --from=one /link/secret /x",
    "from a link whole": "RUN ln -s {out}/secret /link\nFROM scratch\nCOPY --from=one /link /x",
    "from a wildcard": "RUN ln -s {out} /link\nFROM scratch\nCOPY --from=one /link/s* /",
    "a bind of a link": "RUN ln -s {out} /link\nFROM busybox\nRUN --mount=from=one,source=/link,target=/m cat /m/*",
}


@pytest.mark.parametrize("name", DESTINATIONS)
def test_what_is_written_and_read_is_inside(name: str, buildx: Buildx, outside: Outside) -> None:
    (buildx.context / "file").write_text("pwned")
    with tarfile.open(buildx.context / "a.tar", "w") as archive:
        archive.add(buildx.context / "file", "pwned")
        archive.add(buildx.context / "file", "secret")
    dockerfile = "# syntax=docker/dockerfile:1-labs\nFROM busybox AS one\n" + DESTINATIONS[name].format(out=outside.top)
    out = buildx.top / "out.tar"
    text = buildx.build(f"{dockerfile}\n", f"--output=type=tar,dest={out}", check=False)
    assert not WORDS.search(text), text[-2000:]
    outside.check(text)
    assert not out.exists() or outside.secret.encode() not in out.read_bytes()


def test_stubs_of_mounts(buildx: Buildx, outside: Outside) -> None:
    """CVE-2024-23652: what a mount needed is removed afterwards, and a step makes its path lead elsewhere meanwhile."""
    for what in ("empty", "folder"):
        kind = "type=bind,source=file" if what == "empty" else "type=tmpfs"
        (buildx.context / "file").touch()
        text = buildx.build(
            f"FROM busybox\nRUN --mount={kind},target=/d/{what} mv /d /old && ln -s {outside.top} /d; ls -ld /d\n",
            check=False,
        )
        assert not WORDS.search(text), text[-2000:]
        outside.check()


@pytest.mark.parametrize("number", [3, 7, 9, 12])
def test_a_working_directory_in_a_descriptor(number: int, buildx: Buildx, outside: Outside) -> None:
    """CVE-2024-21626, by a Dockerfile."""
    up = "../" * 12
    text = buildx.build(
        f"FROM busybox\nWORKDIR /proc/self/fd/{number}\nRUN cat {up}{str(outside.top)[1:]}/secret\n", check=False
    )
    assert not WORDS.search(text), text[-2000:]
    outside.check(text)


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_secrets_are_seen_by_their_step_alone(buildx: Buildx, tmp_path: Path) -> None:
    """In no layer, history, log of the builder, cache key, process list, and in no file of the host: neither while the
    step runs nor after it."""
    secret, mark = f"secret-{os.urandom(12).hex()}", f"s{time.time_ns()}"
    variable = f"variable-{os.urandom(12).hex()}"
    buildx.environment["TOKEN"], buildx.environment["VARIABLE"] = secret, variable
    since = f"@{time.time():.3f}"
    dockerfile = (
        f"FROM busybox\nRUN --mount=type=secret,id=v,env=VARIABLE --mount=type=secret,id=t,target=/t "
        f"test ${{#VARIABLE}} = 33 && test $(cat /t | wc -c) = 31 && sleep 3 && echo {mark} >/made\n"
    )
    (buildx.context / "Dockerfile").write_text(dockerfile)
    given = ("--secret=id=t,env=TOKEN", "--secret=id=v,env=VARIABLE")
    client = Following(
        buildx.start(*buildx.words(*given, f"--output=type=image,name={mark}:1", "--provenance=mode=max"))
    )
    eventually("the step", scopes)
    time.sleep(0.5)
    step = {int(pid) for path in builds.whole.CGROUPS.rglob("teu-build.slice/**/cgroup.procs") for pid in _pids(path)}
    meanwhile = []
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        for name in ("cmdline", "environ"):
            try:
                data = (path / name).read_bytes()
            except OSError:
                continue
            ours = pid in step or pid == client.process.pid or _child_of(pid, client.process.pid)
            if any(one.encode() in data for one in (secret, variable)) and not (ours and name == "environ"):
                meanwhile.append(f"{name} of {data[:100]!r}")
    assert not meanwhile
    on_disk = _files_with(secret, "/var/lib/teu") + _files_with(variable, "/var/lib/teu")
    assert client.wait() == 0, client.text[-2000:]
    assert not on_disk, "while the step runs"
    assert not _files_with(secret, "/var/lib/teu", "/run/teu")
    assert not _files_with(variable, "/var/lib/teu", "/run/teu")
    archive = tmp_path / "image.tar"
    teu("save", "-o", str(archive), f"{mark}:1")
    subprocess.run(["tar", "-xf", str(archive), "-C", str(tmp_path)], check=True)
    told = [
        client.text,
        teu("history", "--no-trunc", f"{mark}:1").stdout,
        teu("inspect", f"{mark}:1").stdout,
        call("journalctl", "--since", since, "-o", "json", "--all").stdout,
        buildx.run("du", "--builder=teu", "--verbose"),
    ]
    for one in (secret, variable):
        assert not _files_with(one, str(tmp_path))
        assert not any(one in text or base64.b64encode(one.encode()).decode() in text for text in told)
    # Another secret is another step's matter: the cache does not know of it.
    buildx.environment["TOKEN"] = buildx.environment["VARIABLE"] = "another"
    assert "CACHED" in buildx.run(*buildx.words(*given))
    teu("rmi", f"{mark}:1")


def _pids(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _child_of(pid: int, parent: int) -> bool:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == parent
    except (OSError, ValueError, IndexError):
        return False


def _files_with(text: str, *folders: str) -> list[str]:
    done = subprocess.run(
        ["grep", "-rlaF", "--devices=skip", text, *folders], capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines()


def test_credentials_of_a_git_url_are_in_no_attestation(buildx: Buildx, tmp_path: Path) -> None:
    """CVE-2023-26054; nor in the names of steps, the history, the log, or any file of the builder."""
    since = f"@{time.time():.3f}"
    served = Served(tmp_path / "served")
    token = os.urandom(8).hex()
    try:
        served.repository("a.git", {"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
        address = served.address.replace("http://", f"http://user:{token}@")
        output = tmp_path / "image.tar"
        text = buildx.run(
            "build", "--builder=teu", "--progress=plain", "--provenance=mode=max", "--build-arg", f"FROM={address}/b",
            f"--output=type=oci,dest={output}", f"{address}/a.git#main",
        )  # fmt: skip
        told = output.read_bytes()
        assert b"a.git" in told
        assert token.encode() not in told
        assert "xxxxx:xxxxx@127.0.0.1" in text
        assert token not in text
        assert token not in call("journalctl", "--since", since, "-o", "json", "--all").stdout
        assert not _files_with(token, "/var/lib/teu", "/run/teu")
    finally:
        served.server.shutdown()
        served.server.server_close()


# -- definitions -------------------------------------------------------------------------------------------------------


def _exec(**changes: Any) -> Any:
    op = pb.Op()
    op.exec.meta.args.append("true")
    op.exec.meta.cwd = "/"
    op.exec.mounts.add(input=0, dest="/", output=0)
    for name, value in changes.items():
        if name == "mount":
            op.exec.mounts.add(**value)
        elif name == "root":
            for field, one in value.items():
                setattr(op.exec.mounts[0], field, one)
        else:
            op.exec.ClearField(name)
    return op


def _file(*actions: Any) -> Any:
    op = pb.Op()
    op.file.SetInParent()
    op.file.actions.extend(actions)
    return op


def _merge(*numbers: int) -> Any:
    op = pb.Op()
    op.merge.SetInParent()
    for number in numbers:
        op.merge.inputs.add(input=number)
    return op


BAD = {
    # CVE-2024-23650, GHSA-qx3x-mv6r-52p6: what is missing, and numbers of what is not there.
    "nothing": pb.Op(),
    "no meta": _exec(meta=None),
    "no mounts": _exec(mounts=None),
    "root of what is not there": _exec(root={"input": 5}),
    "root of less than nothing": _exec(root={"input": -7}),
    "output of what is not there": _exec(root={"output": 1 << 40}),
    "mount of no kind": _exec(mount={"input": -1, "dest": "/m", "output": -1, "mountType": 77}),
    "cache without options": _exec(mount={"input": -1, "dest": "/m", "output": -1, "mountType": 3}),
    "secret without options": _exec(mount={"input": -1, "dest": "/m", "output": -1, "mountType": 1}),
    "ssh without options": _exec(mount={"input": -1, "dest": "/m", "output": -1, "mountType": 2}),
    "source of nothing": pb.Op(source=pb.SourceOp()),
    "source of no kind": pb.Op(source=pb.SourceOp(identifier="nothing://x")),
    "blob of no digest": pb.Op(source=pb.SourceOp(identifier="docker-image+blob://127.0.0.1:1/x@sha256:0")),
    "build of nothing": pb.Op(build=pb.BuildOp(builder=9)),
    "diff of nothing": pb.Op(diff=pb.DiffOp()),
    # CVE-2026-93321
    "no actions": _file(),
    "action of nothing": _file(pb.FileAction(input=0, output=0)),
    "action upon what is not there": _file(pb.FileAction(input=9, output=0, mkdir=pb.FileActionMkDir(path="/x"))),
    "action upon itself": _file(pb.FileAction(input=1, output=0, mkdir=pb.FileActionMkDir(path="/x"))),
    "copy of what is not there": _file(
        pb.FileAction(input=0, secondaryInput=77, output=0, copy=pb.FileActionCopy(src="/", dest="/x"))
    ),
    "copy of less than nothing": _file(
        pb.FileAction(input=0, secondaryInput=-9, output=0, copy=pb.FileActionCopy(src="/", dest="/x"))
    ),
    "result that is not there": _file(pb.FileAction(input=0, output=55, mkdir=pb.FileActionMkDir(path="/x"))),
    "no result": _file(pb.FileAction(input=0, output=-1, mkdir=pb.FileActionMkDir(path="/x"))),
    "one result twice": _file(
        pb.FileAction(input=0, output=0, mkdir=pb.FileActionMkDir(path="/x")),
        pb.FileAction(input=1, output=0, mkdir=pb.FileActionMkDir(path="/y")),
    ),
    "owner by the name in nothing": _file(
        pb.FileAction(
            input=0,
            output=0,
            mkfile=pb.FileActionMkFile(
                path="/x",
                owner=pb.ChownOpt(user=pb.UserOpt(byName=pb.NamedUserOpt(name="root", input=-3))),
            ),
        )
    ),
    # CVE-2026-93322
    "merge of what is not there": _merge(0, 5),
    "merge of less than nothing": _merge(0, -5),
}


@pytest.mark.parametrize("name", BAD)
def test_definitions_that_are_none(name: str, client: Client) -> None:
    op = pb.Op.FromString(BAD[name].SerializeToString())
    definition = Definition()
    inputs = () if op.WhichOneof("op") == "source" else (definition.source(),)
    made = definition.end(definition.add(op, *inputs))
    refusal(client.solve, made)


def test_results_that_there_are_not(client: Client) -> None:
    definition = Definition()
    image = definition.source()
    definition.add(pb.Op(), f"{image}@7")
    refusal(client.solve, definition.message)
    definition = Definition()
    step = definition.step("true", root=definition.source())
    definition.add(pb.Op(), f"{step}@3")
    refusal(client.solve, definition.message)
    for blobs in ([], [b""], [b"\xff"], [b"\x0a\xff\xff\xff\xff\x0f"]):
        message = pb.Definition()
        getattr(message, "def").extend(blobs)
        if blobs:
            refusal(client.solve, message)


REQUESTS: dict[str, dict[str, Any]] = {
    "Solve": {"Frontend": "gateway.v0"},
    "Solve ": {"Frontend": "gateway.v0", "FrontendOpt": {"source": "../../x"}},
    "Solve  ": {"Frontend": "nothing.v0"},
    "Solve   ": {"Frontend": "dockerfile.v0", "FrontendInputs": {"context": pb.Definition(), "": pb.Definition()}},
    "ResolveSourceMeta": {},
    "ResolveSourceMeta ": {"Source": pb.SourceOp(identifier="x")},
    "ResolveImageConfig": {},
    "ResolveImageConfig ": {"Ref": "../../x", "ResolverType": 1},
    "ReadFile": {"Ref": "nothing", "FilePath": "/x"},
    "ReadDir": {"Ref": "nothing", "DirPath": "/x", "IncludePattern": "["},
    "StatFile": {"Ref": "nothing", "Path": "/x"},
    "Evaluate": {"Ref": "nothing"},
    "ReleaseContainer": {"ContainerID": "nothing"},
    "ReadFileContainer": {"message": "ReadFileRequest", "Ref": "nothing", "FilePath": "/", "MountIndex": 99},
    "NewContainer": {},
    "NewContainer ": {"ContainerID": "x" * 300},
    "NewContainer  ": {"ContainerID": "x", "Mounts": [pb.Mount(dest="/", resultID="nothing")]},
    "NewContainer   ": {"ContainerID": "x", "Mounts": [pb.Mount(dest="/m", mountType=77)]},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_of_frontends_that_are_none(name: str, client: Client) -> None:
    """CVE-2024-23650, GHSA-4hgw-qrhw-fhg8."""
    fields = dict(REQUESTS[name])
    with client.frontend() as frontend:
        frontend.call("Ping")
        refusal(frontend.call, name.strip(), **fields)
        frontend.call("Ping")


def test_messages_to_processes_that_are_none(client: Client) -> None:
    """GHSA-4hgw-qrhw-fhg8: of no process, twice the same, of a container that goes meanwhile."""
    gateway = client.gateway
    message, init, file = gateway.ExecMessage, gateway.InitMessage, gateway.FdMessage
    with client.frontend() as frontend:
        definition = Definition()
        root = frontend.solve(definition.end(definition.source()))
        mount = pb.Mount(dest="/", resultID=root)
        frontend.call("NewContainer", ContainerID="box", Mounts=[mount])
        long = init(ContainerID="box", Meta=pb.Meta(args=["sleep", "100"], cwd="/"), Fds=[1, 2])
        for messages in (
            [message()],
            [message(ProcessID="x")],
            [message(ProcessID="x", File=file(Fd=0, Data=b"x"))],
            [message(ProcessID="x", Init=init())],
            [message(ProcessID="x", Init=init(ContainerID="nothing"))],
            [message(ProcessID="x", Init=init(ContainerID="box"))],
            [message(ProcessID="x", Init=init(ContainerID="box", Meta=pb.Meta(args=["/nothing"], cwd="../..")))],
            [message(ProcessID="x", Init=long), message(ProcessID="x", Init=long)],
            [message(ProcessID="x", Init=long), message(ProcessID="x", File=file(Fd=7, Data=b"x"))],
            [message(ProcessID="x", Init=long), message(ProcessID="x", Signal=gateway.SignalMessage(Name="NONE"))],
        ):
            try:
                ended = frontend.run(*messages)
                assert any(one.HasField("Exit") for one in ended) or not ended
            except grpc.RpcError as error:
                assert not WORDS.search(error.details() or ""), error.details()
        # One that goes while its process runs.
        thread = threading.Thread(target=lambda: time.sleep(1) or frontend.call("ReleaseContainer", ContainerID="box"))
        frontend.call("ReleaseContainer", ContainerID="box")
        frontend.call("NewContainer", ContainerID="box", Mounts=[mount])
        thread.start()
        try:
            frontend.run(message(ProcessID="x", Init=long))
        except grpc.RpcError as error:
            assert not WORDS.search(error.details() or ""), error.details()
        thread.join()
        frontend.call("Ping")
    eventually("no step is left", lambda: not scopes())


@pytest.mark.parametrize("path", ["/", "", ".", "..", "../..", "/..", "*", "/*", "../*", "/.", "//", "a/../.."])
@pytest.mark.parametrize("wildcard", [False, True])
def test_removals_in_nothing(path: str, wildcard: bool, client: Client) -> None:
    """GHSA-32pv-7hq5-qhwq: upon an empty tree nothing is removed, and nothing of the host."""
    mark = Path(f"/tmp/teu-removals-{os.getpid()}")
    mark.write_text("here")
    definition = Definition()
    step = definition.file(rm=pb.FileActionRm(path=path, allowNotFound=True, allowWildcard=wildcard))
    try:
        client.solve(definition.end(step))
    except grpc.RpcError as error:
        assert not WORDS.search(error.details() or ""), error.details()
    assert mark.read_text() == "here"
    mark.unlink()


NAMES = (
    "../../../../../../../../tmp/teu-escaped",
    "/tmp/teu-escaped",
    "..",
    "a/../../../tmp/teu-escaped",
    "\0",
    "a\nb",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_frontends_are_no_paths(name: str, client: Client) -> None:
    """CVE-2026-33747: whatever a frontend names, nothing of this name is written on the host."""

    with client.frontend() as frontend:
        definition = Definition()
        root = frontend.solve(definition.end(definition.source()))
        mounts = [
            pb.Mount(dest="/", resultID=root),
            pb.Mount(dest=f"/m/{name}", input=-1, mountType=pb.TMPFS),
        ]
        attempt(frontend.call, "NewContainer", ContainerID=name, Mounts=mounts[:1], hostname=name)
        attempt(frontend.call, "NewContainer", ContainerID="box", Mounts=mounts)
        hosts = [pb.HostIP(Host=name, IP="1.2.3.4")]
        attempt(frontend.call, "NewContainer", ContainerID="hosts", Mounts=mounts[:1], extraHosts=hosts)
        meta = pb.Meta(args=["true"], cwd="/", hostname=name, cgroupParent=name)
        for container in (name, "box", "hosts"):
            init = client.gateway.InitMessage(ContainerID=container, Meta=meta)
            attempt(frontend.run, client.gateway.ExecMessage(ProcessID=name, Init=init))

        def changed(step: Any) -> None:
            cache = step.mounts.add(input=-1, output=-1, dest="/cache", mountType=pb.CACHE)
            cache.cacheOpt.ID = name
            secret = step.mounts.add(input=-1, output=-1, dest="/secret", mountType=pb.SECRET)
            secret.secretOpt.ID, secret.secretOpt.optional = name, True
            step.meta.cgroupParent = name
            step.meta.extraHosts.add(Host=name, IP="1.2.3.4")

        for change in (changed, lambda step: setattr(step.mounts[0], "selector", name)):
            definition = Definition()
            step = definition.step("touch", "/cache/x", root=definition.source(), change=change)
            attempt(frontend.solve, definition.end(step))
        for source in (f"local://{name}", f"oci-layout://{name}@sha256:{'0' * 64}", f"git://127.0.0.1:1/x#main:{name}"):
            definition = Definition()
            attempt(frontend.solve, definition.end(definition.source(source)))
    ref = client.messages.SolveRequest
    attempt(client.control.Solve, ref(Ref=name), timeout=30)
    assert not os.path.lexists("/tmp/teu-escaped") and not list(Path("/tmp").glob("teu-escaped*"))
    for folder in ("/run/teu", "/var/lib/teu/buildkit", "/var/lib/teu"):
        assert not [path for path in Path(folder).iterdir() if "escaped" in path.name]
    assert not list(Path("/sys/fs/cgroup").rglob("*escaped*"))


def test_a_download_s_name_is_no_path(client: Client) -> None:
    """CVE-2026-33747, by the name that a server or a frontend gives a download."""
    from scripted_registry import ScriptedRegistry

    with ScriptedRegistry() as files, client.frontend() as frontend:
        digest = files.put(b"downloaded")
        for name in ("../../../../tmp/teu-escaped", "/tmp/teu-escaped", "..", "a/b"):
            definition = Definition()
            source = definition.source(f"http://{files.address}/v2/a/blobs/{digest}", http_filename=name)
            try:
                frontend.solve(definition.end(source))
            except grpc.RpcError as error:
                assert not WORDS.search(error.details() or ""), error.details()
    assert not os.path.lexists("/tmp/teu-escaped")


# -- special files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def special() -> Callable[[Definition], str]:
    """A tree with FIFOs and devices where files are expected."""

    def make(definition: Definition) -> str:
        script = (
            "mkfifo /fifo /d.fifo; mknod /null c 1 3; mknod /kmsg c 1 11; mknod /disk b 7 0; mkdir -p /etc; "
            "rm -f /etc/passwd /etc/group; mkfifo /etc/passwd; mknod /etc/group c 1 5; ln -s /fifo /link"
        )
        return definition.step("sh", "-c", script, root=definition.source())

    return make


@pytest.mark.parametrize("path", ["/fifo", "/null", "/kmsg", "/disk", "/link", "/etc/passwd", "/etc/group"])
def test_special_files_are_not_opened(path: str, client: Client, special: Callable[[Definition], str]) -> None:
    """CVE-2026-93320: what is read, copied, written and unpacked is a file; nobody waits for what a FIFO says, and
    no device of the host is reached."""
    begun = time.monotonic()
    with client.frontend() as frontend:
        definition = Definition()
        root = frontend.solve(definition.end(special(definition)))
        error = refusal(frontend.read, root, path)
        assert "not a regular file" in (error.details() or ""), error.details()
        made: list[tuple[str, dict[str, Any]]] = [
            ("written", {"mkfile": pb.FileActionMkFile(path=path, data=b"x", mode=0o644, timestamp=-1)}),
            ("made", {"mkdir": pb.FileActionMkDir(path=f"{path}/x", makeParents=True, mode=0o755, timestamp=-1)}),
        ]
        for unpack in (False, True):
            for follow in (False, True):
                made.append(
                    (
                        "copied",
                        {
                            "copy": pb.FileActionCopy(
                                src=path,
                                dest="/copied",
                                mode=-1,
                                timestamp=-1,
                                followSymlink=follow,
                                attemptUnpackDockerCompatibility=unpack,
                            )
                        },
                    )
                )
        made.append(("covered", {"copy": pb.FileActionCopy(src="/bin/busybox", dest=path, mode=-1, timestamp=-1)}))
        owner = pb.ChownOpt(
            user=pb.UserOpt(byName=pb.NamedUserOpt(name="a", input=0)),
            group=pb.UserOpt(byName=pb.NamedUserOpt(name="a", input=0)),
        )
        made.append(("owned", {"mkfile": pb.FileActionMkFile(path="/new", mode=0o644, timestamp=-1, owner=owner)}))
        for what, action in made:
            definition = Definition()
            tree = special(definition)
            step = definition.file(tree, *([tree] if what in ("copied", "covered") else []), **action)
            try:
                result = frontend.solve(definition.end(step))
                if what == "copied":
                    refusal(frontend.read, result, "/copied")
            except grpc.RpcError as error:
                assert not WORDS.search(error.details() or ""), error.details()
        definition = Definition()
        tree = special(definition)

        def as_user(step: Any) -> None:
            step.meta.user = "nobody:nobody"

        refusal(frontend.solve, definition.end(definition.step("true", root=tree, change=as_user)))
    assert time.monotonic() - begun < 60 * PATIENCE


def test_a_list_of_groups_without_an_end(client: Client) -> None:
    """GHSA-72x6-4j93-7w86: no more of it is read than a list of groups has."""
    definition = Definition()
    script = "truncate -s 3G /etc/group || dd if=/dev/zero of=/etc/group bs=1M seek=3071 count=1"
    tree = definition.step("sh", "-c", script, root=definition.source())

    def as_user(step: Any) -> None:
        step.meta.user = "root:nosuch"

    step = definition.step("true", root=tree, change=as_user)
    before = _memory()
    refusal(client.solve, definition.end(step))
    assert _memory() < before + (200 << 20)


def _memory() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{main_pid(SERVICE)}/status").read_text())
    return int(found[1]) << 10 if found else 0


def test_devices_that_nobody_offers(client: Client) -> None:
    """GHSA-r456-g3gm-cvxf: one that may be missing is left out, one that is needed is an error."""
    for optional in (True, False):
        definition = Definition()

        def wanted(step: Any, optional: bool = optional) -> None:
            step.cdiDevices.add(name="vendor.example/device=none", optional=optional)

        step = definition.step("true", root=definition.source(), change=wanted)
        if optional:
            client.solve(definition.end(step))
        else:
            refusal(client.solve, definition.end(step))


@pytest.mark.needs("git")
def test_one_repository_is_asked_for_twice(client: Client, tmp_path: Path) -> None:
    """GHSA-2fqp-xg6f-v7gj."""
    served = Served(tmp_path / "served")
    try:
        served.repository("a.git", {"one": "1"})
        with client.frontend() as frontend:
            source = pb.SourceOp(identifier=f"git://{served.address.removeprefix('http://')}/a.git#main")
            source.attrs["git.fullurl"] = f"{served.address}/a.git"
            told = [frontend.call("ResolveSourceMeta", Source=source) for _ in range(3)]
            assert len({str(one.Git) for one in told}) == 1 and told[0].Git.Checksum
    finally:
        served.server.shutdown()
        served.server.server_close()


# -- frontends ---------------------------------------------------------------------------------------------------------


def test_entitlements_of_containers_of_frontends(client: Client) -> None:
    """CVE-2024-23653, GHSA-7236-3392-c5c6: what a build was not given, no container of its frontend has, nor a step."""
    with client.frontend() as frontend:
        definition = Definition()
        root = frontend.solve(definition.end(definition.source()))
        mounts = [pb.Mount(dest="/", resultID=root)]
        error = refusal(frontend.call, "NewContainer", ContainerID="a", Mounts=mounts, Network=pb.HOST)
        assert "network.host is not allowed" in (error.details() or "")
        frontend.call("NewContainer", ContainerID="b", Mounts=mounts)
        error = refusal(frontend.run, _process(client, "b", ["true"], security=pb.INSECURE))
        assert "security.insecure is not allowed" in (error.details() or "")
        script = "grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status; mount -t tmpfs x /mnt; ls /run/teu"
        answers = frontend.run(_process(client, "b", ["sh", "-c", script]))
        text = b"".join(one.File.Data for one in answers if one.HasField("File")).decode()
        assert "CapEff:\t00000000a80425fb" in text and "Seccomp:\t2" in text, text
        assert "ermission denied" in text or "not permitted" in text, text
        for change in (
            lambda step: setattr(step, "network", pb.HOST),
            lambda step: setattr(step, "security", pb.INSECURE),
        ):
            definition = Definition()
            step = definition.step("true", root=definition.source(), change=change)
            error = refusal(frontend.solve, definition.end(step))
            assert "is not allowed" in (error.details() or "")
    # Nor does a client get what the configuration does not allow.
    for name in ("security.insecure", "network.host", "device=x", "nothing"):
        refusal(client.solve, definition.message, Entitlements=[name])


def _process(client: Client, box: str, args: list[str], security: int = 0) -> Any:
    meta = pb.Meta(args=args, cwd="/", env=["PATH=/bin:/sbin"])
    init = client.gateway.InitMessage(ContainerID=box, Meta=meta, Fds=[1, 2], Security=security)
    return client.gateway.ExecMessage(ProcessID=f"p{time.time_ns()}", Init=init)


HOSTILE = (
    FRONTEND.partition("options = dict(")[0]
    + r"""
import hashlib, json

found = {}

def attempt(name, call):
    try:
        found[name] = "done: " + str(call())[:200]
    except grpc.RpcError as error:
        found[name] = f"{error.code().name}: {error.details()}"
    except OSError as error:
        found[name] = f"refused: {error.strerror}"

def solve(change):
    definition = ops_pb2.Definition()
    source, step, last = ops_pb2.Op(), ops_pb2.Op(), ops_pb2.Op()
    source.source.identifier = "docker-image://docker.io/library/busybox:latest"
    step.exec.meta.args.append("true")
    step.exec.meta.cwd = "/"
    step.exec.mounts.add(input=0, dest="/", output=0)
    change(step.exec)
    for op in (source, step, last):
        blobs = getattr(definition, "def")
        if blobs:
            op.inputs.add(digest="sha256:" + hashlib.sha256(blobs[-1]).hexdigest())
        blobs.append(op.SerializeToString())
    request = gateway_pb2.SolveRequest(Definition=definition, allowResultReturn=True, Evaluate=True)
    return bridge.Solve(request, timeout=60)

status = dict(line.split(":", 1) for line in open("/proc/self/status"))
for name in ("CapEff", "CapBnd", "Seccomp", "NoNewPrivs"):
    found[name] = status[name].strip()
found["run"] = sorted(os.listdir("/run"))
found["devices"] = sorted(os.listdir("/dev"))
found["environment"] = sorted(name for name in os.environ if "TOKEN" in name or "SECRET" in name)
found["descriptors"] = sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2
                              and os.path.exists(f"/proc/self/fd/{fd}"))
attempt("sysctl", lambda: open("/proc/sys/kernel/core_pattern", "w").write("|/x"))
attempt("cgroup", lambda: os.mkdir("/sys/fs/cgroup/x"))
attempt("module", lambda: open("/proc/sysrq-trigger", "w").write("h"))
attempt("memory", lambda: open("/dev/mem", "rb").read(1))
attempt("unshare", lambda: os.unshare(os.CLONE_NEWNS) if hasattr(os, "unshare") else None)
attempt("host", lambda: open("/proc/1/root/etc/shadow").read())
attempt("insecure step", lambda: solve(lambda step: setattr(step, "security", 1)))
attempt("step on the host's network", lambda: solve(lambda step: setattr(step, "network", 1)))
plain = solve(lambda step: None).result.ref.id or solve(lambda step: None).result.refDeprecated
mount = ops_pb2.Mount(dest="/", resultID=plain)
attempt("container on the host's network",
        lambda: bridge.NewContainer(gateway_pb2.NewContainerRequest(ContainerID="a", Mounts=[mount], Network=1)))
bridge.NewContainer(gateway_pb2.NewContainerRequest(ContainerID="b", Mounts=[mount]), timeout=60)
init = gateway_pb2.InitMessage(ContainerID="b", Meta=ops_pb2.Meta(args=["true"], cwd="/"), Security=1)
attempt("insecure process",
        lambda: list(bridge.ExecProcess(iter([gateway_pb2.ExecMessage(ProcessID="p", Init=init)]), timeout=60)))
for path in ("../../../../..OUTSIDE", "/proc/1/root/OUTSIDE", "/../../OUTSIDE", "/../bin/sh"):
    attempt("read " + path, lambda: bridge.ReadFile(gateway_pb2.ReadFileRequest(Ref=plain, FilePath=path), timeout=60))
usage = grpc.insecure_channel("unix:/stdio").unary_unary("/moby.buildkit.v1.Control/DiskUsage")
attempt("control", lambda: usage(b"", timeout=5))
print("HOSTILE " + json.dumps(found), file=sys.stderr, flush=True)
sys.exit(1)
"""
)


def test_a_hostile_frontend_gets_no_more_than_a_container(
    buildx: Buildx, frontend: str, outside: Outside, tmp_path: Path
) -> None:
    (buildx.context / "hostile.py").write_text(HOSTILE.replace("OUTSIDE", f"{outside.top}/secret"))
    buildx.build(
        f"FROM {frontend}\nCOPY hostile.py /frontend.py\n",
        "--output=type=image,name=hostile:1,compression=uncompressed",
        "--provenance=false",
    )
    try:
        buildx.environment["SECRET_TOKEN"] = outside.secret
        text = buildx.build(
            "# syntax=docker.io/library/hostile:1\nFROM busybox\n", "--secret=id=t,env=SECRET_TOKEN", check=False
        )
        line = re.search(r"HOSTILE (\{.*\})", text)
        assert line, text[-3000:]
        found = json.loads(line[1])
        print(json.dumps(found, indent=1))
        assert int(found["CapEff"], 16) & ~0xA80425FB == 0 and found["Seccomp"] == "2"
        assert found["run"] == ["config"] and found["environment"] == []
        assert not {"mem", "kmsg", "sda", "loop0", "fuse", "kvm"} & set(found["devices"])
        assert all(place.startswith(("socket:", "pipe:", "anon_inode:", "/stdio")) for place in found["descriptors"])
        for name in ("sysctl", "cgroup", "module", "memory", "host"):
            assert not found[name].startswith("done"), (name, found[name])
        for name in ("insecure step", "insecure process"):
            assert "security.insecure is not allowed" in found[name], found[name]
        for name in ("step on the host's network", "container on the host's network"):
            assert "network.host is not allowed" in found[name], found[name]
        # A way up ends at the root of the result, which has a file of this name itself.
        assert found.pop("read /../bin/sh").startswith("done")
        assert all(value.startswith("NOT_FOUND") for name, value in found.items() if name.startswith("read "))
        outside.check(text)
        assert found["control"].startswith("UNIMPLEMENTED")
    finally:
        teu("rmi", "-f", "hostile:1")
    eventually("no step is left", lambda: not scopes())
