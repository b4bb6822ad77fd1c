# SPDX-License-Identifier: Apache-2.0
"""COPY, ADD and RUN: the operations that they become."""

from __future__ import annotations

from typing import Any

import pytest
from dockerfiles import Builder, config, history, image, names, steps

from teu.api.buildkit import ops_pb2 as pb


def copies(line: str, before: str = "FROM a") -> list[Any]:
    """The copies of the last operation, and their sources' names."""
    found = steps(f"{before}\n{line}")
    return [action.copy for action in found[-1].op.file.actions]


def only(line: str) -> Any:
    (found,) = copies(line)
    return found


def run(line: str, before: str = "FROM a", **given: str) -> Any:
    return steps(f"{before}\n{line}", **given)[-1].op.exec


@pytest.mark.parametrize(
    ("line", "src", "dest"),
    [
        ("COPY a b", "/a", "/b"),
        ("COPY a .", "/a", "/"),
        ("COPY a/ /b/", "/a", "/b/"),
        ("COPY . .", "/", "/"),
        ("COPY ../x /y", "/x", "/y"),
        ("COPY *.go ./", "/*.go", "/"),
        ('COPY ["a b", "c d"]', "/a b", "/c d"),
    ],
)
def test_paths(line: str, src: str, dest: str) -> None:
    found = only(line)
    assert (found.src, found.dest) == (src, dest)


def test_a_destination_is_relative_to_the_workdir() -> None:
    (found,) = copies("COPY a b/", "FROM a\nWORKDIR /w")
    assert found.dest == "/w/b/"
    (found,) = copies("COPY a .", "FROM a\nWORKDIR /w")
    assert found.dest == "/w/"


def test_what_a_copy_always_says() -> None:
    found = only("COPY a b")
    assert found.followSymlink and found.dirCopyContents and found.createDestPath
    assert found.allowWildcard and found.allowEmptyWildcard
    assert not found.attemptUnpackDockerCompatibility
    assert (found.mode, found.timestamp, found.HasField("owner")) == (-1, -1, False)
    assert only("ADD a b").attemptUnpackDockerCompatibility
    assert not only("ADD --unpack=false a b").attemptUnpackDockerCompatibility


def test_owner_mode_and_excludes() -> None:
    found = only("COPY --chown=app:1000 --chmod=0755 --exclude=*.o --exclude=t a b")
    assert (found.owner.user.byName.name, found.owner.group.byID, found.mode) == ("app", 1000, 0o755)
    assert list(found.exclude_patterns) == ["*.o", "t"]
    assert only("COPY --chmod=u=rwX,go-w a b").modeStr == "u=rwX,go-w"
    assert only("COPY --chmod=0 a b").mode == 0


def test_variables_in_flags() -> None:
    (found,) = copies("COPY --chown=$U --chmod=$M $S $D", "FROM a\nENV U=1 M=600 S=x D=/y")
    assert (found.owner.user.byID, found.mode, found.src, found.dest) == (1, 0o600, "/x", "/y")


@pytest.mark.parametrize(
    ("line", "src", "include", "required"),
    [
        ("COPY --parents a/b /c", "/", ["a/b"], ["/a/b"]),
        ("COPY --parents ./a/./b/c /c", "/a", ["b/c"], ["/a/b/c"]),
        ("COPY --parents a/*.go /c", "/", ["a/*.go"], []),
    ],
)
def test_parents(line: str, src: str, include: list[str], required: list[str]) -> None:
    found = only(line)
    assert (found.src, list(found.include_patterns), list(found.required_paths)) == (src, include, required)
    assert history(f"FROM a\n{line}")[-1][0].startswith("COPY --parents ")


def test_several_sources_are_one_operation() -> None:
    found = steps("FROM a\nCOPY a b /c/")
    actions = found[-1].op.file.actions
    assert [(one.copy.src, one.input, one.secondaryInput, one.output) for one in actions] == [
        ("/a", 0, 1, -1),
        ("/b", 2, 1, 0),
    ]


def test_files_in_the_dockerfile() -> None:
    text = "FROM a\nENV X=1\nCOPY <<A <<'B' /d/\n$X \"q\" \\$X\nA\n$X\nB\n"
    found = steps(text)
    made = {
        one.op.file.actions[0].mkfile.path: one.op.file.actions[0].mkfile
        for one in found
        if one.name.startswith("[int")
    }
    assert {path: file.data for path, file in made.items()} == {"/A": b'1 "q" $X\n', "/B": b"$X\n"}
    assert made["/A"].mode == 0o644
    assert [one.copy.dest for one in found[-1].op.file.actions] == ["/d/", "/d/"]
    assert history(text)[-1] == ("COPY <<A <<B /d/ # buildkit", True)
    (inline,) = [one for one in steps("FROM a\nCOPY <<-E /x\n\ta\n\tE") if one.name.startswith("[internal")]
    assert inline.op.file.actions[0].mkfile.data == b"a\n"
    assert inline.name == "[internal] preparing inline document"


def test_downloads() -> None:
    checksum = "sha256:" + "0" * 64
    found = steps(f"FROM a\nADD --checksum={checksum} --chmod=600 https://h/p/x.tar.gz?y=1 /d/")
    source = next(one for one in found if one.op.source.identifier.startswith("https"))
    assert dict(source.op.source.attrs) == {"http.checksum": checksum, "http.filename": "x.tar.gz"}
    copied = found[-1].op.file.actions[0].copy
    assert (copied.src, copied.dest, copied.mode) == ("/x.tar.gz", "/d/", 0o600)
    assert not copied.attemptUnpackDockerCompatibility
    assert only("ADD --unpack https://h/x /").attemptUnpackDockerCompatibility
    unnamed = steps("FROM a\nADD https://h/ /d/")[1]
    assert unnamed.op.source.attrs["http.filename"] == "__unnamed__"
    assert source.name == found[-1].name == f"[2/2] ADD --checksum={checksum} --chmod=600 https://h/p/x.tar.gz?y=1 /d/"


def test_repositories() -> None:
    found = steps("FROM a\nADD --keep-git-dir=true https://h/r.git?branch=main&subdir=s /d")
    source = found[1].op.source
    assert source.identifier == "git://h/r.git#refs/heads/main:s"
    assert (source.attrs["git.keepgitdir"], source.attrs["git.fullurl"]) == ("true", "https://h/r.git")
    assert (found[-1].op.file.actions[0].copy.src, found[-1].op.file.actions[0].copy.dest) == ("/", "/d")
    by_ssh = steps("FROM a\nADD git@h:o/r.git#v1 /d")[1].op.source
    assert by_ssh.identifier == "git://h/o/r.git#v1"
    assert by_ssh.attrs["git.mountsshsock"] == "default"
    summed = steps("FROM a\nADD --checksum=abc https://h/r.git /d")[1].op.source
    assert summed.attrs["git.checksum"] == "abc"
    assert steps("FROM a\nADD github.com/o/r /d")[-1].op.file.actions[0].copy.src == "/github.com/o/r"


def test_linked_files_are_merged() -> None:
    found = steps("FROM a\nCOPY --link x /y\nRUN z")
    files, merged, last = found[2], found[3], found[4]
    assert (files.name, merged.name, last.name) == (
        "[2/3] COPY --link x /y",
        "[2/3] LINK COPY --link x /y",
        "[3/3] RUN z",
    )
    assert files.op.file.actions[0].input == -1
    assert len(merged.inputs) == 2 and merged.inputs[1] == files.digest
    groups = [one.metadata.progress_group for one in (files, merged)]
    assert groups[0].id == groups[1].id and [one.weak for one in groups] == [True, False]
    assert groups[0].name == "[2/3] COPY --link x /y"
    assert steps("FROM a\nCOPY --link --chmod=600 x /y")[-1].op.WhichOneof("op") == "file"
    assert steps("FROM scratch\nCOPY --link x /y")[-1].op.WhichOneof("op") == "file"


def test_copies_from_stages_images_and_numbers() -> None:
    found = names(
        "FROM a AS One\nRUN x\nFROM scratch\nCOPY --from=0 /a /\nCOPY --from=ONE /b /\nCOPY --from=img:1 /c /"
    )
    assert found[-1] == "[stage-1 3/3] COPY --from=img:1 /c /"
    assert any(name.startswith("FROM docker.io/library/img:1@") for name in found)


def test_a_process_by_default() -> None:
    found = run('RUN a "b"')
    assert list(found.meta.args) == ["/bin/sh", "-c", 'a "b"']
    assert (found.network, found.security, found.meta.cwd) == (pb.UNSET, pb.SANDBOX, "/")
    assert [(one.dest, one.input, one.output) for one in found.mounts] == [("/", 0, 0)]
    assert list(run('RUN ["a", "b"]').meta.args) == ["a", "b"]
    assert list(run("RUN x", 'FROM a\nSHELL ["/bin/bash", "-c"]').meta.args) == ["/bin/bash", "-c", "x"]


def test_every_mount() -> None:
    line = (
        "RUN --mount=type=bind,source=s,target=b --mount=type=bind,rw,target=/w --mount=type=cache,target=/c/ "
        "--mount=type=cache,target=/d,id=i,sharing=private,uid=1,mode=0700 "
        "--mount=type=cache,target=/e,from=img,src=/z --mount=type=tmpfs,target=/t,size=1k "
        "--mount=type=secret,id=s,required,uid=5 "
        "--mount=type=secret,id=t,env=TOKEN --mount=type=secret,target=/x/y --mount=type=ssh,id=k,target=/k x"
    )
    found = steps(f"FROM a\nWORKDIR /wd\n{line}")[-1].op
    mounts = {one.dest: one for one in found.exec.mounts}
    assert set(mounts) == {"/", "/wd/b", "/w", "/c/", "/d", "/e", "/t", "/run/secrets/s", "/x/y", "/k"}
    assert (mounts["/wd/b"].selector, mounts["/wd/b"].readonly, mounts["/wd/b"].output) == ("/s", True, -1)
    assert (mounts["/w"].readonly, mounts["/w"].output, mounts["/w"].selector) == (False, -1, "")
    assert (mounts["/c/"].cacheOpt.ID, mounts["/c/"].cacheOpt.sharing, mounts["/c/"].input) == ("//c", pb.SHARED, -1)
    assert (mounts["/d"].cacheOpt.ID, mounts["/d"].cacheOpt.sharing, mounts["/d"].selector) == (
        "/i",
        pb.PRIVATE,
        "/cache",
    )
    assert mounts["/e"].selector == "/z" and mounts["/e"].input >= 0
    assert (mounts["/t"].mountType, mounts["/t"].TmpfsOpt.size) == (pb.TMPFS, 1024)
    secret = mounts["/run/secrets/s"].secretOpt
    assert (secret.ID, secret.optional, secret.uid, secret.mode) == ("s", False, 5, 0o400)
    assert mounts["/x/y"].secretOpt.ID == "y" and mounts["/x/y"].secretOpt.optional
    assert [(one.ID, one.name, one.optional) for one in found.exec.secretenv] == [("t", "TOKEN", True)]
    assert (mounts["/k"].SSHOpt.ID, mounts["/k"].SSHOpt.mode) == ("k", 0o600)


def test_variables_in_mounts() -> None:
    found = run("RUN --mount=type=$T,target=$D/c x", "FROM a\nARG T=cache\nENV D=/d")
    assert found.mounts[1].cacheOpt.ID == "//d/c"


def test_a_name_space_of_caches() -> None:
    found = run("RUN --mount=type=cache,target=/c x", arg_BUILDKIT_CACHE_MOUNT_NS="ns")
    assert found.mounts[1].cacheOpt.ID == "ns//c"


def test_the_permissions_of_a_new_cache() -> None:
    found = steps("FROM a\nRUN --mount=type=cache,target=/c,uid=7 x")
    made = next(one for one in found if one.name == "[internal] setting cache mount permissions")
    mkdir = made.op.file.actions[0].mkdir
    assert (mkdir.path, mkdir.mode, mkdir.owner.user.byID, mkdir.owner.group.byID) == ("/cache", 0o755, 7, 0)


def test_network_security_and_devices() -> None:
    found = run("RUN --network=none --security=insecure --device=v/d=x,required --device=v/e=y x")
    assert (found.network, found.security) == (pb.NONE, pb.INSECURE)
    assert [(one.name, one.optional) for one in found.cdiDevices] == [("v/d=x", False), ("v/e=y", True)]
    assert run("RUN --network=host x").network == pb.HOST


@pytest.mark.parametrize(
    ("text", "args", "name"),
    [
        ("RUN <<E\na\nb\nE", ["/bin/sh", "-c", "a\nb\n"], "[2/2] RUN <<E (a...)"),
        ("RUN <<-E\n\ta\n\tE", ["/bin/sh", "-c", "a\n"], "[2/2] RUN <<-E (a)"),
        ("RUN cat <<E >x\n$A\nE", ["/bin/sh", "-c", "cat <<E >x\n$A\nE"], "[2/2] RUN cat <<E >x"),
        (
            "RUN <<A cat; <<B cat\n1\nA\n2\nB",
            ["/bin/sh", "-c", "<<A cat; <<B cat\n1\nA\n2\nB"],
            "[2/2] RUN <<A cat; <<B cat",
        ),
    ],
)
def test_heredocs(text: str, args: list[str], name: str) -> None:
    vertex = steps(f"FROM a\n{text}")[-1]
    assert (list(vertex.op.exec.meta.args), vertex.name) == (args, name)


def test_a_script_of_its_own() -> None:
    found = steps("FROM a\nRUN <<E\n#!/usr/bin/env python3\nprint(1)\nE")
    script = next(one for one in found if one.name.startswith("[internal"))
    mkfile = script.op.file.actions[0].mkfile
    assert (mkfile.path, mkfile.mode, mkfile.data) == ("/E", 0o755, b"#!/usr/bin/env python3\nprint(1)\n")
    last = found[-1].op.exec
    assert list(last.meta.args) == ["/bin/sh", "-c", "/dev/pipes/E"]
    assert [(one.dest, one.readonly) for one in last.mounts] == [("/", False), ("/dev/pipes/", True)]


def test_secrets_are_in_no_name() -> None:
    found = names("FROM a\nENV T=public\nRUN --mount=type=secret,id=t,env=T echo $T")
    assert found[-1] == "[stage-0 2/2] RUN --mount=type=secret,id=t,env=T echo ****"


def test_the_workdir_is_the_users() -> None:
    made = steps("FROM a\nUSER u:g\nWORKDIR /w")[-1].op.file.actions[0].mkdir
    assert (made.path, made.mode, made.makeParents) == ("/w", 0o755, True)
    assert (made.owner.user.byName.name, made.owner.group.byName.name) == ("u", "g")
    assert names("FROM a\nWORKDIR /")[-1].startswith("[1/2] FROM")


def test_a_base_without_a_path_gets_one() -> None:
    images = {"docker.io/library/a:latest": image(Env=["X=1"])}
    assert config("FROM a\nENV X=2", Builder(images))["config"]["Env"] == [
        "X=2",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]
