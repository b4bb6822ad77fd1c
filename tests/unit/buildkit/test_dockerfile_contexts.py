# SPDX-License-Identifier: Apache-2.0
"""Where files come from: local contexts, remote ones, named ones; and the options of a request."""

from __future__ import annotations

import base64
import json
import tarfile
from typing import Any

import pytest
from dockerfiles import AMD64, DIGEST, Builder, image, names, options, steps, vertexes

from teu.buildkit.core.errors import Error, Unimplemented
from teu.buildkit.frontends.dockerfile import frontend
from teu.buildkit.frontends.dockerfile.client import Client, ImageConfig, NotAnImage, parse_options
from teu.buildkit.frontends.dockerfile.contexts import Contexts, is_archive
from teu.buildkit.frontends.dockerfile.errors import DockerfileError
from teu.buildkit.llb import build
from teu.buildkit.llb.platforms import Platform


def context_of(text: str, builder: Builder | None = None, **given: str) -> Any:
    return next(one.op.source for one in steps(text, builder, **given) if one.name == "[internal] load build context")


def test_a_local_context() -> None:
    builder = Builder(files={".dockerignore": b"a\n!b\n"})
    found = context_of("FROM scratch\nCOPY x y/../z /\nADD w /", builder)
    assert found.identifier == "local://context"
    assert dict(found.attrs) == {
        "local.session": "session",
        "local.followpaths": '["w","x","z"]',
        "local.excludepatterns": '["a","!b"]',
        "local.sharedkeyhint": "context",
    }
    assert "read .dockerignore" in builder.asked


def test_all_of_a_context() -> None:
    found = context_of("FROM scratch\nCOPY . /\nCOPY a /")
    assert "local.followpaths" not in found.attrs
    mounted = context_of("FROM a\nRUN --mount=source=s,target=/t x")
    assert mounted.attrs["local.followpaths"] == '["s"]'


def test_only_the_target_counts_for_paths() -> None:
    found = context_of("FROM scratch AS a\nCOPY x /\nFROM scratch AS b\nCOPY y /", target="a")
    assert found.attrs["local.followpaths"] == '["x"]'


def test_a_session_of_its_own() -> None:
    raw = {"local-sessionid:context": "other"}
    contexts = Contexts(parse_options(raw, "session"), Builder())
    state = contexts.main([])
    assert vertexes(state.definition())[0].op.source.attrs["local.session"] == "other"


@pytest.mark.parametrize(
    ("given", "identifier", "attribute"),
    [
        ("https://h/r.git#main:sub", "git://h/r.git#main:sub", ("git.fullurl", "https://h/r.git")),
        ("github.com/o/r", "git://github.com/o/r", ("git.fullurl", "github.com/o/r")),
        ("git@h:o/r.git", "git://h/o/r.git", ("git.mountsshsock", "default")),
    ],
)
def test_git_contexts(given: str, identifier: str, attribute: tuple[str, str]) -> None:
    found = steps("FROM scratch\nCOPY a /", context=given)[0]
    assert found.op.source.identifier == identifier
    assert found.op.source.attrs[attribute[0]] == attribute[1]
    assert found.name == f"[internal] load git source {given}"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://me:word@h/r.git#main", "https://xxxxx:xxxxx@h/r.git#main"),
        ("https://token@h/r.git", "https://xxxxx@h/r.git"),
        ("ssh://git@h/r.git", "ssh://git@h/r.git"),
    ],
)
def test_nobody_sees_the_credentials_of_a_context(given: str, shown: str) -> None:
    found = steps("FROM scratch\nCOPY a /", context=given)[0]
    assert found.name == f"[internal] load git source {shown}"
    assert found.op.source.attrs["git.fullurl"] == given.partition("#")[0]


def test_http_contexts() -> None:
    archive = Builder(files={"context": b"\x1f\x8b\x08rest"})
    found = steps("FROM scratch\nCOPY a /", archive, context="https://h/c.tgz")
    assert [one.op.WhichOneof("op") for one in found] == ["source", "file", "file"]
    assert found[1].op.file.actions[0].copy.attemptUnpackDockerCompatibility
    plain = Builder(files={"context": b"FROM scratch\n"})
    result = frontend.build(options(context="https://h/Dockerfile"), plain)
    assert result.targets and plain.asked[:2] == ["read context", "read context"]
    with pytest.raises(DockerfileError, match="failed to read downloaded context"):
        steps("FROM scratch", Builder(), context="https://h/x")


@pytest.mark.parametrize(
    ("ignored", "left_out"),
    [
        (b"Dockerfile\n.dockerignore\n", ["/.dockerignore", "/Dockerfile"]),
        (b"*\n!.dockerignore\n!x\n", ["/Dockerfile"]),
        (b"x\n", []),
        (None, []),
    ],
)
def test_a_classic_context(ignored: bytes | None, left_out: list[str]) -> None:
    """What a client of the classic builder had to send is no file of the context where .dockerignore says so."""
    files = {"context": b"\x1f\x8b\x08rest", **({".dockerignore": ignored} if ignored else {})}
    given = {"context": "https://h/c.tgz"}
    usual = steps("FROM scratch\nCOPY . /", Builder(files=files), **given)
    found = steps("FROM scratch\nCOPY . /", Builder(files=files), classic_context="", **given)
    removed = [action.rm for one in found[2:-1] for action in one.op.file.actions]
    assert [action.path for action in removed] == left_out
    assert all(action.allowNotFound for action in removed)
    assert len(found) == len(usual) + bool(left_out)


def test_inputs_are_contexts() -> None:
    given = build.scratch().file(build.Mkfile("/x", 0o644, b"")).definition()
    found = steps("FROM scratch\nCOPY x /", Builder(inputs={"context": given}))
    assert found[0].op.file.actions[0].mkfile.path == "/x"
    narrowed = steps("FROM scratch\nCOPY x /", Builder(inputs={"context": given}), contextsubdir="s")
    assert narrowed[1].op.file.actions[0].copy.src == "/s"


def _named(text: str, builder: Client, **contexts: str) -> list[Any]:
    raw = {f"context:{name}": value for name, value in contexts.items()}
    return vertexes(
        frontend.compile(text.encode(), parse_options(raw, "session", (AMD64,)), builder).targets[0].definition
    )


def test_a_named_image_for_a_base() -> None:
    builder = Builder()
    found = _named("FROM a\nRUN x", builder, a="docker-image://b:1")
    assert [one.name for one in found] == ["[context a] b:1", "[1/2] RUN x"]
    assert found[0].op.source.identifier == "docker-image://docker.io/library/b:1"
    assert "[context a] load metadata for b:1" in builder.asked


def test_a_named_context_for_a_stage() -> None:
    found = _named("FROM a AS s\nRUN no\nFROM scratch\nCOPY --from=s /x /", Builder(), s="local:dir")
    assert [one.name for one in found] == ["[context s] load from client", "[stage-1 1/1] COPY --from=s /x /"]
    assert dict(found[0].op.source.attrs) == {
        "local.session": "session",
        "local.followpaths": '["x"]',
        "local.sharedkeyhint": "context:s-",
    }
    scratch = _named("FROM a AS s\nFROM scratch\nCOPY --from=s /x /", Builder(), s="docker-image://scratch")
    assert [one.name for one in scratch] == ["[stage-1 1/1] COPY --from=s /x /"]


def test_a_named_context_for_one_platform() -> None:
    raw = {"context:a::linux/arm64": "docker-image://arm", "context:a": "docker-image://any", "platform": "linux/arm64"}
    found = frontend.compile(b"FROM a\nRUN x", parse_options(raw, "s"), Builder())
    assert vertexes(found.targets[0].definition)[0].name == "[context a::linux/arm64] arm"


@pytest.mark.parametrize(
    ("given", "identifier"),
    [
        ("https://h/r.git#v1", "git://h/r.git#v1"),
        ("git://h/r", "git://h/r"),
        ("https://h/x.tgz", "https://h/x.tgz"),
        (f"oci-layout://store:x@{DIGEST}", f"oci-layout://docker.io/library/a@{DIGEST}"),
    ],
)
def test_other_named_contexts(given: str, identifier: str) -> None:
    found = _named("FROM scratch\nCOPY --from=a /x /", Builder(), a=given)
    assert found[0].op.source.identifier == identifier


def test_results_of_other_builds() -> None:
    given = build.image("docker.io/library/z:1").run(["made"]).root.definition()
    metadata = {"containerimage.config": base64.b64encode(json.dumps(image(Env=["Z=1"])).encode()).decode()}
    raw = {"context:a": "input:one", "input-metadata:one": json.dumps(metadata)}
    found = frontend.compile(b"FROM a\nRUN x", parse_options(raw, "s"), Builder(inputs={"one": given}))
    last = vertexes(found.targets[0].definition)[-1].op.exec
    assert "Z=1" in last.meta.env


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing", "invalid context specifier nothing for a"),
        ("ftp://x", "unsupported context source ftp for a"),
        ("input:x", "invalid input x for a"),
        ("oci-layout://store", 'oci-layout reference "store" has no digest'),
    ],
)
def test_wrong_named_contexts(given: str, message: str) -> None:
    with pytest.raises(Error, match=message):
        _named("FROM a", Builder(), a=given)


class _Policies(Builder):
    """A policy turns each image into another one, so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def resolve_image_config(
        self,
        name: str,
        platform: Platform | None,
        resolve_mode: str,
        log_name: str,
        store: tuple[str, str] | None = None,
    ) -> ImageConfig:
        if self.left:
            self.left -= 1
            raise NotAnImage("docker-image://again")
        return super().resolve_image_config(name, platform, resolve_mode, log_name, store)


def test_policies_may_change_a_named_context_ten_times() -> None:
    assert _named("FROM a\nRUN x", _Policies(10), a="docker-image://b")
    with pytest.raises(DockerfileError, match="context recursion limit exceeded"):
        _named("FROM a\nRUN x", _Policies(99), a="docker-image://b")


def test_the_dockerfile_is_read() -> None:
    builder = Builder(files={"sub/Dockerfile": b"FROM a\nCOPY x /", "sub/Dockerfile.dockerignore": b"own\n"})
    result = frontend.build(options(filename="sub/Dockerfile"), builder)
    source = next(one for one in vertexes(result.targets[0].definition) if one.name == "[internal] load build context")
    assert source.op.source.attrs["local.excludepatterns"] == '["own"]'
    assert "read .dockerignore" not in builder.asked
    info = result.targets[0].definition.Source.infos[0]
    assert info.filename == "sub/Dockerfile"
    load = vertexes(info.definition)[0]
    assert load.name == "[internal] load build definition from sub/Dockerfile"
    assert dict(load.op.source.attrs) == {
        "local.session": "session",
        "local.followpaths": '["sub/Dockerfile","sub/Dockerfile.dockerignore","sub/dockerfile"]',
        "local.sharedkeyhint": "dockerfile",
        "local.differ": "none",
    }


def test_a_dockerfile_in_small_letters() -> None:
    assert frontend.build(options(), Builder(files={"dockerfile": b"FROM a"})).targets
    with pytest.raises(DockerfileError, match="failed to read dockerfile: open Dockerfile: no such file or directory"):
        frontend.build(options(), Builder())


def test_other_frontends() -> None:
    builder = Builder(files={"Dockerfile": b"# syntax=x/y:1 arg\nFROM a"})
    assert frontend.build(options(), builder).targets
    with pytest.raises(frontend.Forward) as caught:
        frontend.build(options(), builder, lambda name: name.startswith("docker/dockerfile"))
    assert (caught.value.reference, caught.value.command_line) == ("x/y:1", "x/y:1 arg")
    assert frontend.build(options(cmdline="x/y:1"), builder, lambda name: False).targets
    with pytest.raises(frontend.Forward):
        frontend.build(options(arg_BUILDKIT_SYNTAX="z"), builder, lambda name: False)


@pytest.mark.parametrize(
    ("caps", "error"),
    [
        ("moby.buildkit.frontend.inputs,moby.buildkit.frontend.contexts+forward", None),
        ("moby.buildkit.frontend.nothing", "unsupported frontend capability moby.buildkit.frontend.nothing"),
        ("moby.buildkit.frontend.nothing+forward", "unsupported frontend capability moby.buildkit.frontend.nothing"),
    ],
)
def test_capabilities_of_the_frontend(caps: str, error: str | None) -> None:
    builder = Builder(files={"Dockerfile": b"FROM a"})
    if error is None:
        assert frontend.build(_raw({"frontend.caps": caps}), builder).targets
        return
    with pytest.raises(Unimplemented, match=error):
        frontend.build(_raw({"frontend.caps": caps}), builder)


def _raw(raw: dict[str, str]) -> Any:
    return parse_options(raw, "session", (AMD64,))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"platform": "nope"},
            'failed to parse target platform nope: "nope": unknown operating system or architecture',
        ),
        ({"image-resolve-mode": "x"}, "invalid image-resolve-mode: x"),
        ({"add-hosts": "x"}, "failed to parse additional hosts: invalid key-value pair x"),
        ({"add-hosts": "x=y"}, "failed to parse additional hosts: failed to parse IP y"),
        ({"shm-size": "x"}, "failed to parse shm size"),
        ({"ulimit": "x=1"}, "failed to parse ulimit: invalid ulimit type: x"),
        ({"ulimit": "nofile=2:1"}, "ulimit soft limit must be less than or equal to hard limit: 2 > 1"),
        ({"force-network-mode": "x"}, "invalid netmode x"),
        ({"multi-platform": "x"}, "invalid boolean value for multi-platform: x"),
        ({"multi-platform": "0", "platform": "arm64,amd64"}, "returning multiple target platforms is not allowed"),
        ({"cache-imports": "{"}, "failed to unmarshal cache-imports"),
        ({"attest:x": ""}, 'unknown attestation type "x"'),
        ({"attest:sbom": "generator=A!"}, "failed to parse sbom scanner A!"),
        ({"memory": "-1"}, "failed to parse resource limits: invalid memory value: -1: must be > 0"),
        ({"memswap": "0"}, "must be -1"),
        ({"cpusetcpus": "3-1"}, "invalid cpusetcpus value: 3-1"),
        ({"build-arg:BUILDKIT_DOCKERFILE_CHECK": "x"}, 'invalid check option "x"'),
        ({"build-arg:BUILDKIT_DISABLE_FILEOP": "1"}, "was removed in BuildKit 0.11"),
    ],
)
def test_wrong_options(raw: dict[str, str], message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse_options(raw)
    assert message in str(caught.value)


def test_options() -> None:
    found = _raw(
        {
            "platform": "arm64,linux/amd64",
            "cache-from": "a,b",
            "cache-imports": '[{"Type":"local","Attrs":{"src":"x"}}]',
            "attest:sbom": "generator=scan,X=y",
            "no-cache": "",
        }
    )
    assert [str(one) for one in found.platforms] == ["linux/arm64", "linux/amd64"]
    assert found.multi_platform
    assert found.cache_imports == [
        {"Type": "local", "Attrs": {"src": "x"}},
        {"Type": "registry", "Attrs": {"ref": "a"}},
        {"Type": "registry", "Attrs": {"ref": "b"}},
    ]
    assert found.sbom == ("docker.io/library/scan:latest", {"X": "y"})
    assert found.ignores_cache("any")


def test_archives() -> None:
    assert is_archive(b"BZh9") and is_archive(b"\xfd7zXZ\x00")
    assert not is_archive(b"FROM a\n") and not is_archive(b"")
    assert not is_archive(bytes(1024)) and not is_archive(b"FROM scratch\n" * 50)
    finer = tarfile.TarInfo("Dockerfile")
    finer.mtime = 1.5
    assert is_archive(finer.tobuf(tarfile.PAX_FORMAT)[:1024]) and is_archive(finer.tobuf(tarfile.PAX_FORMAT)[:512])


def test_a_bill_of_materials() -> None:
    scanner = image(Entrypoint=["scan"], WorkingDir="/s")
    builder = Builder({"docker.io/library/scan:latest": scanner, "docker.io/library/a:latest": image()})
    raw = {"attest:sbom": "generator=scan,LEVEL=1", "build-arg:BUILDKIT_SBOM_SCAN_STAGE": "one"}
    text = b"ARG BUILDKIT_SBOM_SCAN_STAGE\nFROM a AS one\nRUN x\nFROM scratch\nCOPY --from=one /x /\n"
    (target,) = frontend.compile(text, _raw(raw), builder).targets
    found = vertexes(target.sbom)[-1]
    assert found.name == "[linux/amd64] generating sbom using docker.io/library/scan:latest"
    assert (list(found.op.exec.meta.args), found.op.exec.meta.cwd) == (["scan"], "/s")
    assert "BUILDKIT_SCAN_SOURCE=/run/src/core/sbom" in found.op.exec.meta.env
    assert "BUILDKIT_SCAN_LEVEL=1" in found.op.exec.meta.env
    assert {one.dest for one in found.op.exec.mounts} == {
        "/", "/tmp", "/run/src/core/sbom", "/run/src/extras/sbom-one", "/run/out/",
    }  # fmt: skip
    bare = Builder({"docker.io/library/scan:latest": image(), "docker.io/library/a:latest": image()})
    with pytest.raises(DockerfileError, match="scanner docker.io/library/scan:latest does not have cmd"):
        frontend.compile(text, _raw(raw), bare)


def test_a_broken_configuration() -> None:
    class Broken(Builder):
        def resolve_image_config(self, *given: Any, **more: Any) -> ImageConfig:
            return ImageConfig("docker.io/library/a:latest", DIGEST, b"[1]")

    with pytest.raises(DockerfileError, match="failed to parse image config"):
        names("FROM a", Broken())
