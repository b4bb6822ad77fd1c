# SPDX-License-Identifier: Apache-2.0
"""sources.git with the real git: repositories of this test behind a real HTTP server."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakeworker import Asker, Worker
from githttp import Served, run
from tunnel import client

from teu.api.buildkit.session import secrets_pb2
from teu.buildkit.core import errors
from teu.buildkit.llb.platforms import host
from teu.buildkit.session.manager import Manager
from teu.buildkit.sources import git as source
from teu.buildkit.sources import gitcli

SECRETS = "/moby.buildkit.secrets.v1.Secrets/GetSecret"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "served")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    (tmp_path / "worker").mkdir()
    return Worker(tmp_path / "worker")


def opened(worker: Worker, address: str, fragment: str = "", sessions: Manager | None = None, **attributes: str) -> Any:
    given = {"git.fullurl": address, **{f"git.{key}": value for key, value in attributes.items()}}
    text = address.partition("://")[2] + (f"#{fragment}" if fragment else "")
    return source.Repositories(worker, sessions or Manager()).open(text, given, host())  # type: ignore[arg-type]


def files(snapshot: Any) -> dict[str, str]:
    return {
        str(path.relative_to(snapshot.path)): path.read_text()
        for path in sorted(snapshot.path.rglob("*"))
        if path.is_file() and ".git/" not in str(path)
    }


def test_default_branch_branch_tag_and_commit(served: Served, worker: Worker) -> None:
    folder = served.repository("a.git", {"one": "1", "sub/two": "2"})
    first = run(folder, "rev-parse", "HEAD")
    run(folder, "tag", "light")
    run(folder, "tag", "-a", "noted", "-m", "noted")
    noted = run(folder, "rev-parse", "noted")
    run(folder, "checkout", "--quiet", "-b", "other")
    second = served.commit(folder, {"one": "one"})
    run(folder, "checkout", "--quiet", "main")
    for fragment, commit, pin, text in (
        ("", first, first, "1"),
        ("main", first, first, "1"),
        ("refs/heads/other", second, second, "one"),
        ("light", first, first, "1"),
        ("noted", first, noted, "1"),
        ("refs/tags/noted", first, noted, "1"),
        (first, first, first, "1"),
    ):
        asker = Asker()
        one = opened(worker, f"{served.address}/a.git", fragment)
        key = one.key(asker)
        assert (key.key, key.pin) == (commit, pin), fragment
        snapshot = one.snapshot(asker)
        assert files(snapshot) == {"one": text, "sub/two": "2"}
        assert not (snapshot.path / ".git").exists()
        snapshot.release()
    # One repository for all of them, and one checkout for each commit.
    assert len(worker.find("source.git.checkout")) == 2
    assert len(worker.find("regular")) == 1
    assert not worker.active_now


def test_what_is_here_is_not_fetched_again(served: Served, worker: Worker) -> None:
    folder = served.repository("a.git", {"one": "1"})
    first = run(folder, "rev-parse", "HEAD")
    opened(worker, f"{served.address}/a.git").snapshot(Asker())
    before = len(served.handler.seen)
    one = opened(worker, f"{served.address}/a.git", first, subdir="")
    one.key(Asker())
    assert one.snapshot(Asker()).path.name
    assert len(served.handler.seen) == before  # a commit by its name, of which all is here


def test_subdirectory(served: Served, worker: Worker) -> None:
    folder = served.repository("a.git", {"top": "t", "sub/sub/deep": "d", "sub/x": "x"})
    (folder / "link").symlink_to("/etc")
    (folder / "inner").symlink_to("sub")
    served.commit(folder, {})
    one = opened(worker, f"{served.address}/a.git", "main:sub")
    assert one.key(Asker()).key.endswith(":sub")
    assert files(one.snapshot(Asker())) == {"sub/deep": "d", "x": "x"}
    # CVE-2026-33748: a subdirectory leads through no link, and not out.
    for subdir in ("link", "inner", "inner/sub", "top", "nothing"):
        with pytest.raises((errors.InvalidArgument, errors.NotFound)):
            opened(worker, f"{served.address}/a.git", f"main:{subdir}").snapshot(Asker())
    assert files(opened(worker, f"{served.address}/a.git", "main:../../sub").snapshot(Asker())).keys() == {
        "sub/deep",
        "x",
    }
    assert not worker.active_now


def test_keep_git_dir(served: Served, worker: Worker) -> None:
    folder = served.repository("a.git", {"one": "1"})
    head = served.commit(folder, {"one": "2"})
    run(folder, "tag", "-a", "v1", "-m", "m")
    tag = run(folder, "rev-parse", "v1")
    one = opened(worker, f"{served.address}/a.git", "main", keepgitdir="true")
    assert one.key(Asker()).key == f"{head}.git#refs/heads/main"
    snapshot = one.snapshot(Asker())
    assert run(snapshot.path, "rev-parse", "HEAD") == head
    assert run(snapshot.path, "rev-parse", "refs/heads/main") == head
    assert run(snapshot.path, "rev-list", "--count", "HEAD") == "1"
    assert run(snapshot.path, "status", "--porcelain") == ""
    assert run(snapshot.path, "remote", "get-url", "origin") == f"{served.address}/a.git"
    assert not (snapshot.path / ".git/FETCH_HEAD").exists()
    assert str(worker.folder).encode() not in b"".join(
        path.read_bytes() for path in (snapshot.path / ".git").rglob("*") if path.is_file()
    )
    one = opened(worker, f"{served.address}/a.git", "v1", keepgitdir="true")
    assert one.key(Asker()).key == f"{tag}.git#refs/tags/v1"
    assert run(one.snapshot(Asker()).path, "describe") == "v1"
    one = opened(worker, f"{served.address}/a.git", head, keepgitdir="true")
    assert one.key(Asker()).key == f"{head}.git#{head}"
    assert run(one.snapshot(Asker()).path, "rev-parse", "HEAD") == head


def test_times_of_the_commit(served: Served, worker: Worker) -> None:
    served.repository("a.git", {"d/one": "1"})
    one = opened(worker, f"{served.address}/a.git", mtime="commit")
    assert one.key(Asker()).key.endswith("(mtime=commit)")
    snapshot = one.snapshot(Asker())
    for path in (snapshot.path, snapshot.path / "d", snapshot.path / "d/one"):
        assert path.stat().st_mtime == 1577934245
    assert (snapshot.path / "d/one").stat().st_mode & 0o777 == 0o644


def test_checksum(served: Served, worker: Worker) -> None:
    folder = served.repository("a.git", {"one": "1"})
    head = run(folder, "rev-parse", "HEAD")
    assert opened(worker, f"{served.address}/a.git", "main", checksum=head[:8]).key(Asker()).pin == head
    with pytest.raises(errors.FailedPrecondition, match="expected checksum to match"):
        opened(worker, f"{served.address}/a.git", "main", checksum="0" * 40).key(Asker())
    with pytest.raises(errors.FailedPrecondition, match="expected checksum to match"):
        opened(worker, f"{served.address}/a.git", head, checksum="0" * 7).key(Asker())
    for bad in ("xyz", "-1", "main"):
        with pytest.raises(errors.InvalidArgument, match="expected hex commit hash"):
            opened(worker, f"{served.address}/a.git", "main", checksum=bad)


def test_fetch_by_commit(served: Served, worker: Worker) -> None:
    folder = served.repository("a.git", {"one": "1"})
    run(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    first = run(folder, "rev-parse", "HEAD")
    served.commit(folder, {"one": "2"})
    one = opened(worker, f"{served.address}/a.git", "main", checksum=first, fetchbycommit="true")
    assert one.key(Asker()).key == first
    assert not served.handler.seen
    assert files(one.snapshot(Asker())) == {"one": "1"}
    with pytest.raises(errors.InvalidArgument, match="fetch-by-commit requires a checksum"):
        opened(worker, f"{served.address}/a.git", "main", fetchbycommit="true").key(Asker())
    with pytest.raises(errors.InvalidArgument, match="full commit SHA"):
        opened(worker, f"{served.address}/a.git", "main", checksum=first[:9], fetchbycommit="true").key(Asker())


def test_a_commit_that_no_reference_is_at(served: Served, worker: Worker) -> None:
    """A server that gives only what it advertises is asked for all of it."""
    folder = served.repository("a.git", {"one": "1"})
    first = run(folder, "rev-parse", "HEAD")
    served.commit(folder, {"one": "2"})
    run(folder, "config", "uploadpack.allowAnySHA1InWant", "false")
    run(folder, "config", "protocol.version", "0")
    assert files(opened(worker, f"{served.address}/a.git", first).snapshot(Asker())) == {"one": "1"}


def test_a_branch_that_moves_on(served: Served, worker: Worker) -> None:
    folder = served.repository("a.git", {"one": "1"})
    one = opened(worker, f"{served.address}/a.git", "main")
    one.key(Asker())
    served.commit(folder, {"one": "2"})
    assert files(one.snapshot(Asker())) == {"one": "1"}  # what its key says
    assert files(opened(worker, f"{served.address}/a.git", "main").snapshot(Asker())) == {"one": "2"}
    # A branch in the place of a folder of branches, and a tag that is another one.
    run(folder, "checkout", "--quiet", "-b", "a")
    run(folder, "tag", "t")
    assert files(opened(worker, f"{served.address}/a.git", "a").snapshot(Asker())) == {"one": "2"}
    run(folder, "checkout", "--quiet", "main")
    run(folder, "branch", "-D", "a")
    run(folder, "checkout", "--quiet", "-b", "a/b")
    served.commit(folder, {"one": "3"})
    run(folder, "tag", "--force", "t")
    assert files(opened(worker, f"{served.address}/a.git", "a/b").snapshot(Asker())) == {"one": "3"}
    assert files(opened(worker, f"{served.address}/a.git", "t").snapshot(Asker())) == {"one": "3"}


def test_submodules(served: Served, worker: Worker) -> None:
    served.repository("inner.git", {"i": "i"})
    middle = served.repository("middle.git", {"m": "m"})
    run(middle, "submodule", "--quiet", "add", "../inner.git", "deep")
    served.commit(middle, {})
    outer = served.repository("outer.git", {"o": "o"})
    run(outer, "submodule", "--quiet", "add", f"{served.address}/middle.git", "sub/mid")
    run(outer, "config", "--file", ".gitmodules", "submodule.sub/mid.url", "../middle.git")
    served.commit(outer, {})
    one = opened(worker, f"{served.address}/outer.git", "main")
    found = files(one.snapshot(Asker()))
    assert {key: value for key, value in found.items() if ".gitmodules" not in key} == {
        "o": "o",
        "sub/mid/m": "m",
        "sub/mid/deep/i": "i",
    }
    assert not any(name.endswith(".git") for name in found)
    one = opened(worker, f"{served.address}/outer.git", "main", skipsubmodules="true")
    assert one.key(Asker()).key.endswith("(skip-submodules)")
    assert "sub/mid/m" not in files(one.snapshot(Asker()))
    one = opened(worker, f"{served.address}/outer.git", "main:sub")
    assert files(one.snapshot(Asker()))["mid/m"] == "m"
    kept = opened(worker, f"{served.address}/outer.git", "main", keepgitdir="true").snapshot(Asker())
    assert run(kept.path, "status", "--porcelain") == ""
    assert files(kept)["sub/mid/deep/i"] == "i"


def test_a_submodule_of_the_host(served: Served, worker: Worker, tmp_path: Path) -> None:
    """CVE-2022-39253 and what came after: no path of the builder's host is a repository to fetch from."""
    secret = tmp_path / "secret"
    secret.mkdir()
    run(secret, "init", "--quiet")
    (secret / "key").write_text("secret")
    run(secret, "add", "--all")
    run(secret, "commit", "--quiet", "-m", "x")
    for address in (str(secret), f"file://{secret}", f"ext::sh -c 'touch {tmp_path}/ran'"):
        outer = served.repository(f"outer{abs(hash(address))}.git", {"o": "o"})
        run(outer, "submodule", "--quiet", "add", str(secret), "sub")
        run(outer, "config", "--file", ".gitmodules", "submodule.sub.url", address)
        served.commit(outer, {})
        with pytest.raises(gitcli.GitError, match=r"transport '(file|ext)' not allowed"):
            opened(worker, f"{served.address}/{outer.name}", "main").snapshot(Asker())
    assert not (tmp_path / "ran").exists()
    assert not worker.active_now


def test_a_repository_decides_nothing(served: Served, worker: Worker, tmp_path: Path) -> None:
    """Hooks, filters and links of a repository run nothing and lead nowhere."""
    folder = served.repository("a.git", {".gitattributes": "* filter=evil\n", "one": "1"})
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    served.commit(folder, {})
    snapshot = opened(worker, f"{served.address}/a.git").snapshot(Asker())
    assert os.readlink(snapshot.path / "out") == str(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    # A bare repository that the cache keeps is told nothing by what was put into its hooks.
    (name,) = worker.find("regular")
    hooks = worker.folder / name / "hooks"
    hooks.mkdir(exist_ok=True)
    for hook in ("post-checkout", "reference-transaction", "post-index-change"):
        (hooks / hook).write_text(f"#!/bin/sh\ntouch {tmp_path}/hook\n")
        (hooks / hook).chmod(0o755)
    served.commit(folder, {"one": "2"})
    opened(worker, f"{served.address}/a.git", keepgitdir="true").snapshot(Asker())
    assert not (tmp_path / "hook").exists()


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc",
        "/etc",
        "ext::sh -c id",
        "-oProxyCommand=id",
        "ssh://-oProxyCommand=id/x.git",
        "ssh://user@-oProxyCommand=id/x.git",
        "ssh://-oa@host/x.git",
        "-u@host:x",
        "user@-host:x",
        "user@host:-x",
        "ftp://host/x.git",
        "https://host/a\nb.git",
        "https://host/a b.git",
        "https://host:port/x.git",
        "https:///x.git",
        "ssh://user:password@host/x.git",
        "https://host/-x",
    ],
)
def test_addresses_that_are_none(worker: Worker, address: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="invalid git remote"):
        opened(worker, address)


def test_addresses() -> None:
    assert source.located("github.com/a/b.git").remote == "https://github.com/a/b.git"
    assert source.located("git@github.com:a/b.git").remote == "git@github.com:a/b.git"
    assert source.located("ssh://git@host:22/a.git").remote == "ssh://git@host:22/a.git"
    with_name = source.located("https://me:hunter2@host:8443/a.git")
    assert with_name.remote == "https://host:8443/a.git"
    assert with_name.credentials == ("me", "hunter2")


@pytest.mark.parametrize(
    "ref",
    [
        "--upload-pack=touch /tmp/x",
        "-x",
        "a..b",
        "a b",
        "a:b",
        "+a",
        "^a",
        "a^{}",
        "a*",
        "a?",
        "a[b",
        "a\\b",
        "a@{1}",
        "@",
        "/a",
        "a/",
        "a.",
        "a.lock",
        "a\x07",
        "a//b",
        ".a",
        "x" * 2000,
    ],
)
def test_references_that_are_none(ref: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="invalid git ref"):
        source.check_ref(ref)


def test_references_that_are_some() -> None:
    for ref in ("main", "v1.0", "feature/x-1", "refs/pull/7/merge", "a@b", "0" * 40):
        source.check_ref(ref)


def test_a_default_branch_that_is_an_option(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remote says what its branch is: that is no more trusted than what a client says."""
    monkeypatch.setattr(
        gitcli.Git, "run", lambda self, *arguments, **more: b"ref: refs/heads/--upload-pack=x y\tHEAD\n"
    )
    with pytest.raises(errors.InvalidArgument, match="invalid git ref"):
        opened(worker, "https://example.org/a.git").key(Asker())


def secret_client(values: dict[str, bytes]) -> Any:
    def get(request: Any, context: Any) -> Any:
        if request.ID not in values:
            import grpc

            context.abort(grpc.StatusCode.NOT_FOUND, "no such secret")
        return secrets_pb2.GetSecretResponse(data=values[request.ID])

    return {SECRETS: (False, False, secrets_pb2.GetSecretRequest, secrets_pb2.GetSecretResponse, get)}


def test_tokens_and_headers(served: Served, worker: Worker) -> None:
    served.repository("a.git", {"one": "1"})
    token = base64.b64encode(b"x-access-token:hunter2").decode()
    host_name = served.address.removeprefix("http://")
    for password, values, attributes in (
        (f"basic {token}", {"GIT_AUTH_TOKEN": b"hunter2\n"}, {"authtokensecret": "GIT_AUTH_TOKEN"}),
        (
            f"basic {token}",
            {f"GIT_AUTH_TOKEN.{host_name}": b"hunter2", "GIT_AUTH_TOKEN": b"x"},
            {"authtokensecret": "GIT_AUTH_TOKEN"},
        ),
        ("Bearer abc", {"GIT_AUTH_HEADER": b"Bearer abc"}, {"authheadersecret": "GIT_AUTH_HEADER"}),
    ):
        served.handler.password = password
        manager = Manager()
        with client(secret_client(values), manager):
            asker = Asker("one")
            one = opened(worker, f"{served.address}/a.git", sessions=manager, **attributes)
            assert one.snapshot(asker).path.exists()
            assert b"hunter2" not in asker.logged and token.encode() not in asker.logged
    with pytest.raises(gitcli.GitError, match="could not read Username|Authentication failed"):
        opened(worker, f"{served.address}/a.git").key(Asker())


def test_secrets_are_in_no_process_list_and_no_repository(
    served: Served, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.repository("a.git", {"one": "1"})
    served.handler.password = "basic " + base64.b64encode(b"me:hunter2").decode()
    seen: list[list[str]] = []
    start = subprocess.Popen

    def popen(command: list[str], **more: Any) -> Any:
        seen.append(command)
        return start(command, **more)

    monkeypatch.setattr(subprocess, "Popen", popen)
    asker = Asker()
    address = served.address.replace("http://", "http://me:hunter2@") + "/a.git"
    one = opened(worker, address, keepgitdir="true")
    snapshot = one.snapshot(asker)
    assert seen and not any("hunter2" in word for command in seen for word in command)
    for folder in (snapshot.path, *(worker.folder / name for name in worker.find("regular"))):
        for path in folder.rglob("*"):
            if path.is_file():
                assert b"hunter2" not in path.read_bytes(), path
    assert "hunter2" not in str(worker.kinds) + str(worker.known) + str(one.material()) + repr(asker.told)
    with pytest.raises(gitcli.GitError) as raised:
        opened(worker, address.replace("hunter2", "hunter3")).key(Asker())
    assert "hunter3" not in str(raised.value)


def test_it_ends_with_the_build(worker: Worker) -> None:
    """A server that says nothing holds nobody: git and its helpers end when nobody waits."""
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        asker = Asker()
        one = opened(worker, f"http://127.0.0.1:{silent.getsockname()[1]}/a.git")
        threading.Timer(0.5, asker.cancel).start()
        begin = time.monotonic()
        with pytest.raises(errors.Cancelled):
            one.key(asker)
        assert time.monotonic() - begin < 4


def test_what_was_kept_is_damaged(served: Served, worker: Worker) -> None:
    """A newer git (2.53) goes on where what it needs is not damaged, an older one (2.39) does not, and all is fetched
    anew. What was asked for comes either way, also where it was damaged itself."""
    folder = served.repository("a.git", {"one": "1"})
    first = run(folder, "rev-parse", "HEAD")
    opened(worker, f"{served.address}/a.git").snapshot(Asker())
    (name,) = worker.find("regular")
    for path in (worker.folder / name / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"")
    served.commit(folder, {"one": "2"})
    assert files(opened(worker, f"{served.address}/a.git").snapshot(Asker())) == {"one": "2"}
    assert files(opened(worker, f"{served.address}/a.git", fragment=first).snapshot(Asker())) == {"one": "1"}


def test_meta(served: Served, worker: Worker) -> None:
    from teu.api.buildkit import gateway_pb2

    folder = served.repository("a.git", {"one": "1"})
    run(folder, "tag", "-a", "v1", "-m", "noted")
    request = gateway_pb2.ResolveSourceMetaRequest()
    request.Source.attrs["git.fullurl"] = f"{served.address}/a.git"
    request.Git.ReturnObject = True
    repositories = source.Repositories(worker, Manager())  # type: ignore[arg-type]
    answer = repositories.meta(request, "x/a.git#v1", host(), Asker()).Git
    assert answer.Checksum == run(folder, "rev-parse", "v1")
    assert answer.CommitChecksum == run(folder, "rev-parse", "HEAD")
    assert answer.Ref == "refs/tags/v1"
    assert b"noted" in answer.TagObject and b"tree " in answer.CommitObject


def test_sha256_repositories(served: Served, worker: Worker) -> None:
    folder = served.folder / "s.git"
    folder.mkdir(parents=True)
    run(folder, "init", "--quiet", "--object-format=sha256")
    head = served.commit(folder, {"one": "1"})
    assert len(head) == 64
    one = opened(worker, f"{served.address}/s.git", keepgitdir="true")
    assert one.key(Asker()).pin == head
    assert files(one.snapshot(Asker())) == {"one": "1"}


def test_what_this_builder_does_not_do(worker: Worker) -> None:
    with pytest.raises(errors.Unimplemented, match="signatures"):
        opened(worker, "https://example.org/a.git", **{"sig.pubkey": "x"})
    with pytest.raises(errors.InvalidArgument, match=r"git\.mtime"):
        opened(worker, "https://example.org/a.git", mtime="never")


def test_who_waits_for_another_ends_with_its_build(worker: Worker) -> None:
    repositories = source.Repositories(worker, Manager())  # type: ignore[arg-type]
    asker = Asker()
    with repositories.locks.hold("remote x", Asker()):
        threading.Timer(0.2, asker.cancel).start()
        with pytest.raises(errors.Cancelled), repositories.locks.hold("remote x", asker):
            pass
        with repositories.locks.hold("remote y", asker):
            pass
    with repositories.locks.hold("remote x", Asker()):
        pass


def test_a_checkout_that_fails(served: Served, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is told as it is; what is damaged is not kept for the next."""
    served.repository("a.git", {"one": "1"})
    real = gitcli.Git.run

    def broken(text: str) -> Any:
        def checkout(self: gitcli.Git, *arguments: str, **more: Any) -> bytes:
            if arguments[0] == "checkout":
                raise gitcli.GitError(text, text)
            return real(self, *arguments, **more)

        return checkout

    for text, kept in (("error: no space left", 1), ("fatal: bad object 1234", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(gitcli.Git, "run", broken(text))
            with pytest.raises(gitcli.GitError, match=text):
                opened(worker, f"{served.address}/a.git").snapshot(Asker())
        assert len(worker.find("regular")) == kept
        assert not worker.active_now and not worker.find("source.git.checkout")
    assert files(opened(worker, f"{served.address}/a.git").snapshot(Asker())) == {"one": "1"}
