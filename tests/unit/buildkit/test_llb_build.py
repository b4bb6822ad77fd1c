# SPDX-License-Identifier: Apache-2.0
"""Definitions of LLB from States: what they say, and that they always say it in the same bytes."""

from __future__ import annotations

from typing import Any

import pytest

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.frontends.dockerfile.errors import lines
from teu.buildkit.llb import build, load, platforms
from teu.buildkit.llb.build import (
    SSH,
    BuildError,
    Copy,
    Device,
    Group,
    Marks,
    Mkdir,
    Mkfile,
    Mount,
    Owner,
    Process,
    Proxy,
    Remove,
    Secret,
    SourceMap,
    State,
    Symlink,
    Ulimit,
)
from teu.buildkit.llb.platforms import Platform, PlatformError

ARM = Platform("linux", "arm64")
AMD = Platform("linux", "amd64")


def ops(state: State, platform: Platform = AMD) -> list[Any]:
    return [pb.Op.FromString(data) for data in getattr(state.definition(platform), "def")]


def test_scratch_is_nothing() -> None:
    assert not ops(build.scratch())
    assert build.merge([build.scratch(), build.scratch()]).output is None
    assert build.diff(build.scratch(), build.scratch()).output is None


def test_a_definition_ends_with_what_it_is_about() -> None:
    first, last = ops(build.image("docker.io/library/a:1"))
    assert first.source.identifier == "docker-image://docker.io/library/a:1"
    assert (first.platform.OS, first.platform.Architecture) == ("linux", "amd64")
    assert first.HasField("constraints")
    assert [one.index for one in last.inputs] == [0] and last.WhichOneof("op") is None


def test_the_same_build_is_the_same_bytes() -> None:
    def made() -> bytes:
        base = build.image("a", ARM, marks=Marks(name="base"))
        state = base.env("B", "2").env("A", "1").env("B", "3").run(["x"], [Mount("/m", build.local("c"))]).root
        return bytes(state.definition().SerializeToString(deterministic=True))

    assert made() == made()


def test_names_and_groups_are_no_part_of_a_vertex() -> None:
    one = build.image("a", marks=Marks(name="one", group=Group("g", "group", True), ignore_cache=True))
    other = build.image("a")
    assert list(getattr(one.definition(), "def")) == list(getattr(other.definition(), "def"))
    (metadata, _) = sorted(one.definition().metadata.values(), key=lambda found: not found.ignore_cache)
    assert metadata.description["llb.customname"] == "one"
    assert (metadata.progress_group.id, metadata.progress_group.name, metadata.progress_group.weak) == (
        "g",
        "group",
        True,
    )


def test_environment_keeps_the_order_of_the_last_change() -> None:
    state = build.scratch().env("A", "1").env("B", "2").env("A", "3")
    run = ops(state.run(["x"]).root)[0].exec
    assert list(run.meta.env) == ["B=2", "A=3"]


def test_a_process_says_all() -> None:
    process = Process(
        network="none",
        insecure=True,
        proxy=Proxy(http="h", no="n"),
        secrets=(Secret("s", "/run/secrets/s", "S", True, 1, 2, 0o440),),
        ssh=(SSH("k"), SSH("l", "/sock", True, 1, 2, 0o644)),
        devices=(Device("v/d=x", True),),
        ulimits=(Ulimit("nofile", 1, 2),),
        extra_hosts=(("h", "1.2.3.4"),),
        cgroup_parent="p",
        valid_exit_codes=(0, 3),
    )
    base = build.image("a", ARM).dir("/w").with_(user="u", hostname="n")
    source = build.local("c")
    mounts = [
        Mount("/z", source, "/sub", readonly=True),
        Mount("/b", source, no_output=True),
        Mount("/c", cache="ns/id", sharing="locked"),
        Mount("/t", tmpfs=64),
        Mount("/o", build.scratch()),
    ]
    run = base.run(["/bin/sh", "-c", "x"], mounts, process)
    found = next(op for op in ops(run.root) if op.WhichOneof("op") == "exec")
    meta = found.exec.meta
    assert (list(meta.args), meta.cwd, meta.user, meta.hostname) == (["/bin/sh", "-c", "x"], "/w", "u", "n")
    assert list(meta.env) == ["SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0"]
    assert (meta.proxy_env.http_proxy, meta.proxy_env.no_proxy) == ("h", "n")
    assert (meta.cgroupParent, meta.removeMountStubsRecursive, list(meta.validExitCodes)) == ("p", True, [0, 3])
    assert [(one.Host, one.IP) for one in meta.extraHosts] == [("h", "1.2.3.4")]
    assert [(one.Name, one.Soft, one.Hard) for one in meta.ulimit] == [("nofile", 1, 2)]
    assert (found.exec.network, found.exec.security) == (pb.NONE, pb.INSECURE)
    assert [(one.name, one.optional) for one in found.exec.cdiDevices] == [("v/d=x", True)]
    assert [(one.ID, one.name, one.optional) for one in found.exec.secretenv] == [("s", "S", True)]
    assert found.platform.Architecture == "arm64"
    table = [(one.dest, one.input, one.output, one.readonly, one.mountType, one.selector) for one in found.exec.mounts]
    assert table == [
        ("/", 0, 0, False, pb.BIND, ""),
        ("/b", 1, -1, False, pb.BIND, ""),
        ("/c", -1, -1, False, pb.CACHE, ""),
        ("/o", -1, 1, False, pb.BIND, ""),
        ("/t", -1, -1, False, pb.TMPFS, ""),
        ("/z", 1, -1, True, pb.BIND, "/sub"),
        ("/run/secrets/s", -1, 0, False, pb.SECRET, ""),
        ("/run/buildkit/ssh_agent.0", -1, 0, False, pb.SSH, ""),
        ("/sock", -1, 0, False, pb.SSH, ""),
    ]
    assert found.exec.mounts[2].cacheOpt.sharing == pb.LOCKED
    assert found.exec.mounts[4].TmpfsOpt.size == 64
    assert found.exec.mounts[6].secretOpt.mode == 0o440
    assert ops(run.output(mounts[4]))[-1].inputs[0].index == 1
    for wrong, message in ((mounts[3], "tmpfs mount for /t"), (mounts[1], "mount marked no-output")):
        with pytest.raises(BuildError, match=message):
            run.output(wrong)
    caps = next(one.caps for one in run.root.definition().metadata.values() if "exec.meta.base" in one.caps)
    assert {"exec.mount.ssh", "exec.mount.secret", "exec.secretenv", "exec.meta.network", "exec.meta.cdi"} <= set(caps)


def test_files() -> None:
    base = build.image("a").dir("/w")
    source = build.local("c").dir("/s")
    actions = [
        Mkdir("d", 0o1755, parents=True, owner=Owner("u", 5)),
        Mkfile("/f", 0o644, b"x", time=7),
        Symlink("a", "b"),
        Remove("r", True, True),
        Copy(source, "x", "to/", mode=0o4755, include=("i",), exclude=("e",), required=("q",), unpack=True),
        Copy(source, "/y", ".", mode_text="u+x"),
    ]
    found = next(op for op in ops(base.file(actions)) if op.WhichOneof("op") == "file")
    chain = [(one.input, one.secondaryInput, one.output) for one in found.file.actions]
    assert chain == [(0, -1, -1), (2, -1, -1), (3, -1, -1), (4, -1, -1), (5, 1, -1), (6, 1, 0)]
    mkdir, mkfile, symlink, rm, first, second = (getattr(one, one.WhichOneof("action")) for one in found.file.actions)
    assert (mkdir.path, mkdir.mode, mkdir.makeParents, mkdir.timestamp) == ("/w/d", 0o755, True, -1)
    assert (mkdir.owner.user.byName.name, mkdir.owner.user.byName.input, mkdir.owner.group.byID) == ("u", 0, 5)
    assert (mkfile.path, mkfile.data, mkfile.timestamp) == ("/f", b"x", 7)
    assert (symlink.oldpath, symlink.newpath, rm.path) == ("a", "b", "/w/r")
    assert (first.src, first.dest, first.mode) == ("/s/x", "/w/to/", 0o4755)
    assert (second.src, second.dest, second.mode, second.modeStr) == ("/y", "/w", 0, "u+x")
    assert not found.HasField("platform")


def test_a_mode_that_nobody_says() -> None:
    copied = ops(build.scratch().file(Copy(build.local("c"), "a", "/b")))[1].file.actions[0]
    assert (copied.copy.mode, copied.input, copied.secondaryInput) == (-1, -1, 0)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("root", Owner(0)),
        ("1000:1000", Owner(1000, 1000)),
        ("user:group", Owner("user", "group")),
        (":5", Owner(0, 5)),
        ("a:", Owner("a", 0)),
    ],
)
def test_owners(text: str, result: Owner) -> None:
    assert build.owner(text) == result


def test_merge_and_diff() -> None:
    one, two = build.image("a"), build.image("b")
    merged = ops(build.merge([one, build.scratch(), two]))[2]
    assert [part.input for part in merged.merge.inputs] == [0, 1]
    assert build.merge([one]) is one
    changed = ops(build.diff(one, two))[2]
    assert (changed.diff.lower.input, changed.diff.upper.input) == (0, 1)
    assert build.diff(build.scratch(), two) is two


def test_sources() -> None:
    local = ops(build.local("c", "s", include=["i"], exclude=["<e>"], follow=["f"], shared_key="k", differ="none"))[0]
    assert local.source.identifier == "local://c"
    assert dict(local.source.attrs) == {
        "local.session": "s",
        "local.includepattern": '["i"]',
        "local.excludepatterns": '["\\u003ce\\u003e"]',
        "local.followpaths": '["f"]',
        "local.sharedkeyhint": "k",
        "local.differ": "none",
    }
    git = ops(build.git("https://h/a.git", "h", "/a.git", "main", "sub", keep_git_dir=True, submodules=False))[0]
    assert git.source.identifier == "git://h/a.git#main:sub"
    assert git.source.attrs["git.fullurl"] == "https://h/a.git"
    assert (git.source.attrs["git.keepgitdir"], git.source.attrs["git.skipsubmodules"]) == ("true", "true")
    http = ops(build.http("https://h/x", "x", "sha256:" + "0" * 64, 0o600))[0]
    assert dict(http.source.attrs) == {
        "http.checksum": "sha256:" + "0" * 64,
        "http.filename": "x",
        "http.perm": "0600",
    }
    pulled = ops(build.image("a", ARM, "pull", record_type="internal"))[0]
    assert dict(pulled.source.attrs) == {"image.resolvemode": "pull", "image.recordtype": "internal"}
    layout = ops(build.oci_layout("a@sha256:1", "s", "t", ARM))[0]
    assert dict(layout.source.attrs) == {"oci.session": "s", "oci.store": "t"}
    nested = ops(build.build(build.local("c"), "f"))[1]
    assert (nested.build.builder, nested.build.attrs["llbbuild.filename"]) == (-1, "f")


def test_places_are_told_with_their_file() -> None:
    file = SourceMap("Dockerfile", b"FROM a")
    marks = Marks(locations=[(file, lines(1, 2))])
    definition = build.image("a", marks=marks).definition()
    assert [one.filename for one in definition.Source.infos] == ["Dockerfile"]
    ((digest, places),) = definition.Source.locations.items()
    assert digest in definition.metadata
    assert [(one.start.line, one.end.line) for one in places.locations[0].ranges] == [(1, 1), (2, 2)]


def test_a_later_state_is_asked_once() -> None:
    asked = []

    def settle() -> State:
        asked.append(1)
        return build.local("c")

    context = build.later(settle)
    state = build.scratch().file([Copy(context, "a", "/a"), Copy(context, "b", "/b")])
    assert not asked
    assert [op.WhichOneof("op") for op in ops(state)] == ["source", "file", None]
    assert asked == [1]
    empty = build.scratch().file(Copy(build.later(build.scratch), "a", "/a"))
    assert ops(empty)[0].file.actions[0].secondaryInput == -1


def test_definitions_of_others_keep_their_bytes() -> None:
    inner = (
        build.image("a", ARM, marks=Marks(name="n", locations=[(SourceMap("D", b"x"), lines(1, 1))])).run(["x"]).root
    )
    first = inner.definition()
    outer = build.from_definition(first).file(Mkdir("/y", 0o755)).definition()
    assert list(getattr(outer, "def"))[:2] == list(getattr(first, "def"))[:2]
    assert outer.Source.infos[0].filename == "D"
    assert build.from_definition(pb.Definition()).output is None
    assert build.from_definition(build.image("a", ARM).definition()).platform == ARM
    broken = pb.Definition()
    getattr(broken, "def").extend(reversed(list(getattr(first, "def"))))
    with pytest.raises(BuildError, match="missing input"):
        build.from_definition(broken)
    garbage = pb.Definition()
    getattr(garbage, "def").append(b"\xff\xff")
    with pytest.raises(BuildError, match="failed to parse llb proto op"):
        build.from_definition(garbage)


def test_what_cannot_be_said() -> None:
    for wrong, message in (
        (build.scratch().run([]).root, "arguments are required"),
        (build.scratch().file([]), "action is required"),
        (build.scratch().run(["x"], [Mount("/t", build.image("a"), tmpfs=1)]).root, "tmpfs mounts must use scratch"),
    ):
        with pytest.raises(BuildError, match=message):
            wrong.definition()


def test_thousands_of_steps() -> None:
    state = build.image("a")
    for number in range(3000):
        state = state.run([str(number)]).root
    assert len(ops(state)) == 3002


def test_the_solver_takes_it() -> None:
    source = build.local("c", "s")
    base = build.image("docker.io/library/a:1").env("A", "b")
    process = Process(secrets=(Secret("s", "/s"),), ssh=(SSH(),))
    state = base.run(["x"], [Mount("/m", source, readonly=True), Mount("/c", cache="/i")], process).root
    state = build.merge([state, build.scratch().file(Copy(source, "a", "/b"))])
    graph = load.load(state.definition())
    assert len(graph.vertexes) >= 5


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("arm64", "linux/arm64"),
        ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
        ("macos/arm64", "darwin/arm64"),
        ("linux/386", "linux/386"),
    ],
)
def test_platforms(text: str, result: str) -> None:
    assert platforms.parse(text).full == result


@pytest.mark.parametrize("text", ["", "/", "linux/", "linux/a/b/c", "li nux/amd64", "nothing", "linux/amd64/$x"])
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(PlatformError):
        platforms.parse(text)
