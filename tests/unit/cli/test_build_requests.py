# SPDX-License-Identifier: Apache-2.0
"""A build's command line as a request: exporters, caches, options of the frontend, contexts."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from teu.api.buildkit import policy_pb2
from teu.cli import build
from teu.cli.builds import contexts, messages, modern, outputs, request, result
from teu.cli.builds.contexts import Inputs, is_archive, is_remote
from teu.cli.builds.request import GATEWAY_IP, SNAPSHOTTER, Engine, Request
from teu.cli.builds.session import Offer
from teu.cli.command import Cli
from teu.cli.config import ConfigFile
from teu.cli.errors import CommandError
from teu.cli.options import parse, parse_table

MOBY = Engine({GATEWAY_IP: "172.17.0.1"}, True)
WHOLE = Engine({SNAPSHOTTER: "overlayfs", GATEWAY_IP: "172.17.0.1"}, True)
REMOTE = Engine({SNAPSHOTTER: "overlayfs"}, False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("BUILDX_", "BUILDKIT_", "DOCKER_", "TEU_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "config"))
    (tmp_path / "context").mkdir()
    (tmp_path / "context/Dockerfile").write_text("FROM scratch\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "context"


def asked(*argv: str, engine: Engine = MOBY, where: str = "context") -> tuple[dict[str, Any], Request]:
    """(fields of Solve, the request) of a command line."""
    options, _ = parse(parse_table(build.COMMANDS["image build"].table), list(argv))
    globals_, _ = parse(parse_table("--config string x\n--host list x"), [])
    for name in ("context", "tls", "tlsverify", "tlscacert", "tlscert", "tlskey"):
        globals_[name] = ""
    made = Request(Cli(globals_), options, engine)
    try:
        return made.make(where), made
    finally:
        made.close()


def test_what_docker_asks_for_without_options(folder: Path) -> None:
    fields, made = asked("-t", "x:1")
    assert fields["Frontend"] == "dockerfile.v0"
    assert fields["FrontendAttrs"] == {"filename": "Dockerfile", "image-resolve-mode": "local"}
    assert fields["Exporters"] == [{"Type": "moby", "Attrs": {"name": "x:1"}}]
    assert fields["ExporterDeprecated"] == "moby" and fields["Cache"] == {"Exports": [], "Imports": []}
    assert made.offer.folders == {"context": "context", "dockerfile": "context"}


def test_options_of_the_frontend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "yes")
    fields, _ = asked(
        *("--build-arg", "A=1", "--build-arg", "FROM_HERE", "--build-arg", "NOT_SET", "--label", "k=v", "--label", "l"),
        *("--target", "one", "--platform", "linux/arm64", "--pull", "--no-cache", "--network", "host"),
        *("--add-host", "a:1.2.3.4", "--add-host", "b=::1", "--add-host", "g:host-gateway", "--shm-size", "1m"),
        *(
            "--ulimit",
            "nofile=1024",
            "--ulimit",
            "core=0:-1",
            "--cgroup-parent",
            "my.slice",
            "--allow",
            "security.insecure",
        ),
    )
    assert fields["FrontendAttrs"] == {
        "filename": "Dockerfile",
        "image-resolve-mode": "pull",
        "platform": "linux/arm64",
        "target": "one",
        "no-cache": "",
        "build-arg:A": "1",
        "build-arg:FROM_HERE": "yes",
        "label:k": "v",
        "label:l": "",
        "force-network-mode": "host",
        "add-hosts": "a=1.2.3.4,b=::1,g=172.17.0.1",
        "shm-size": "1048576",
        "ulimit": "nofile=1024:1024,core=0:-1",
        "cgroup-parent": "my.slice",
    }
    assert fields["Entitlements"] == ["security.insecure", "network.host"]
    assert asked("--no-cache-filter", "a,b", "--no-cache-filter", "c")[0]["FrontendAttrs"]["no-cache"] == "a,b,c"


def test_limits_of_steps(folder: Path) -> None:
    words = ("-m", "64m", "--memory-swap", "-1", "-c", "512", "--cpu-period", "100000", "--cpu-quota", "50000")
    words += ("--cpuset-cpus", "0-1", "--cpuset-mems", "0")
    wanted = {"memory": "67108864", "memswap": "-1", "cpushares": "512", "cpuperiod": "100000", "cpuquota": "50000"}
    wanted |= {"cpusetcpus": "0-1", "cpusetmems": "0"}
    for version, limited in (("v0.26.0+teu.0.2.0", True), ("v0.31.0", True), ("v1.0.0", True), ("v0.30.1", False)):
        attributes = asked(*words, engine=Engine({}, True, version))[0]["FrontendAttrs"]
        assert {name: attributes.get(name) for name in wanted} == (wanted if limited else dict.fromkeys(wanted))
    assert not Engine({}, True).limits and not Engine({}, True, "v0").limits


def test_proxies_of_the_users_file(folder: Path) -> None:
    (folder.parent / "config").mkdir()
    (folder.parent / "config/config.json").write_text('{"proxies": {"default": {"httpProxy": "http://p"}}}')
    attributes = asked("--build-arg", "HTTP_PROXY=mine")[0]["FrontendAttrs"]
    assert (attributes["build-arg:HTTP_PROXY"], attributes["build-arg:http_proxy"]) == ("mine", "http://p")


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--network", "mine"], 'network mode "mine" not supported by buildkit'),
        (["--ulimit", "nofile"], "invalid ulimit argument"),
        (["--add-host", "nothing"], "bad format for add-host"),
        (["--add-host", "a:nowhere"], "invalid IP address"),
        (["-t", "UPPER"], 'invalid tag "UPPER"'),
        (["--push"], "tag is needed when pushing"),
        (["-o", "type=local"], "dest is required for local output"),
        (["-o", "dest=x,a=b"], "type is required for output"),
        (["-o", "type=oci,dest=x.tar"], "OCI exporter is not supported for the docker driver"),
        (["-o", "type=strange"], "unsupported output type"),
        (["-o", "type=tar,dest=nowhere/x"], "nowhere is no folder"),
        (["-o", "type=local,dest=context/Dockerfile"], "is a file"),
        (["--platform", "linux/amd64,linux/arm64"], "Multi-platform build is not supported"),
        (["--sbom", "true"], "Attestation is not supported"),
        (["--cache-to", "type=local,dest=c"], "Cache export is not supported"),
        (["--cache-from", "ref=x"], "type required"),
        (["--annotation", "a"], "expected key=value"),
        (["--build-context", "x=nowhere"], "no such file or directory"),
        (["--build-context", "x"], "expected key=value"),
        (["--ssh", "default"], "make sure SSH_AUTH_SOCK is set"),
        (["--ssh", "a=/nowhere/key"], "failed to stat"),
        (["--no-cache", "--no-cache-filter", "x"], "not allowed to be used together"),
        (["-f", "nowhere/Dockerfile"], "lstat nowhere"),
    ],
)
def test_what_cannot_be_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], problem: str) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(CommandError, match=problem):
        asked(*argv)


def test_results_and_who_takes_them(folder: Path) -> None:
    fields, made = asked("-o", "out", "-o", "type=tar,dest=x.tar", "-o", "type=cacheonly")
    assert [one["Type"] for one in fields["Exporters"]] == ["local", "tar"]
    assert made.offer.targets[0] == "out" and getattr(made.offer.targets[1], "path", "") == "x.tar"
    assert asked("-o", "type=cacheonly")[0]["Exporters"] == []
    assert asked("--check")[0]["Exporters"] == []
    fields, made = asked("-t", "r.example/x", "--push")
    assert fields["Exporters"][0] == {"Type": "moby", "Attrs": {"name": "r.example/x"}}
    assert made.push == ["r.example/x"]
    fields, made = asked("-t", "r.example/x", "--push", engine=WHOLE)
    assert fields["Exporters"][0]["Attrs"] == {"push": "true", "name": "r.example/x"} and not made.push
    fields, _ = asked("-t", "x", "--load", "--annotation", "a=b", "--annotation", "index:c=d", engine=WHOLE)
    assert fields["Exporters"] == [
        {
            "Type": "moby",
            "Attrs": {"name": "x", "annotation.a": "b", "annotation-index.c": "d"},
        }
    ]
    assert asked(engine=REMOTE)[0]["Exporters"] == []
    with pytest.raises(CommandError, match="no engine"):
        asked("--load", engine=REMOTE)


def test_a_result_as_a_layout(folder: Path) -> None:
    fields, made = asked("-t", "x:1", "-o", "type=oci,tar=false,dest=layout", engine=WHOLE)
    assert fields["Exporters"][0]["Type"] == "oci" and made.offer.stores["export"].writes
    made.settle({"containerimage.descriptor": "eyJkaWdlc3QiOiJzaGEyNTY6YWEiLCJzaXplIjoxfQ=="})
    assert made.offer.stores["export"].find("x:1") == "sha256:aa"


def test_caches(folder: Path) -> None:
    fields, made = asked(
        *("--cache-from", "r.example/c", "--cache-from", "type=registry,ref=x", "--cache-to", "type=inline"),
        *("--cache-to", "type=local,dest=cache,mode=max", "--build-arg", "BUILDKIT_INLINE_CACHE=1"),
        engine=WHOLE,
    )
    assert fields["Cache"]["Imports"] == [
        {"Type": "registry", "Attrs": {"ref": "r.example/c"}},
        {"Type": "registry", "Attrs": {"ref": "x"}},
    ]
    assert json.loads(fields["FrontendAttrs"]["cache-imports"]) == fields["Cache"]["Imports"]
    assert [one["Type"] for one in fields["Cache"]["Exports"]] == ["inline", "local", "inline"]
    made.settle({"cache.manifest": '{"digest": "sha256:aa", "size": 1}'})
    fields, made = asked("--cache-from", "type=local,src=cache", engine=WHOLE)
    assert fields["Cache"]["Imports"][0]["Attrs"] == {"src": "cache", "digest": "sha256:aa"}
    assert not made.offer.stores["local:cache"].writes
    assert asked("--cache-from", "type=local,src=nowhere")[0]["Cache"]["Imports"] == []


def test_attestations(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attributes(*argv: str) -> dict[str, str]:
        found = asked(*argv, engine=WHOLE)[0]["FrontendAttrs"]
        return {key: value for key, value in found.items() if key.startswith("attest:")}

    assert attributes() == {"attest:provenance": "mode=min,inline-only=true"}
    assert attributes("--provenance=false") == {}
    assert attributes("--provenance", "mode=max", "--sbom", "true") == {
        "attest:provenance": "mode=max",
        "attest:sbom": "",
    }
    assert attributes("--attest", "type=sbom,generator=x", "--attest", "type=provenance,disabled=true") == {
        "attest:sbom": "generator=x"
    }
    with pytest.raises(CommandError, match="duplicate"):
        attributes("--sbom", "true", "--attest", "type=sbom")
    monkeypatch.setenv("BUILDX_NO_DEFAULT_ATTESTATIONS", "1")
    assert attributes() == {}


POLICY = {
    "version": 1,
    "rules": [
        {"action": "DENY", "selector": {"identifier": "docker-image://*"}},
        {
            "action": 2,
            "selector": {
                "identifier": "http://a/.*",
                "match_type": "REGEX",
                "constraints": [{"key": "k", "value": "v", "condition": "NOTEQUAL"}],
            },
            "updates": {"identifier": "http://b/$1", "attrs": {"http.checksum": "x"}},
        },
    ],
}


def test_a_policy_for_sources(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON, and as protobuf, by which rules are compared here."""
    wanted = json_format.ParseDict(
        json.loads(json.dumps(POLICY).replace("match_type", "matchType")), policy_pb2.Policy()
    )
    file = tmp_path / "policy"
    assert "SourcePolicy" not in asked()[0]
    monkeypatch.setenv("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY", str(file))
    for data in (json.dumps(POLICY).encode(), wanted.SerializeToString()):
        file.write_bytes(data)
        given = asked()[0]["SourcePolicy"]
        assert policy_pb2.Policy.FromString(messages.encode(f"{messages.POLICY}Policy", **given)) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "failed to parse source policy"),
        (b"[]", "the policy is no object"),
        (b"[" * 100_000, "failed to parse source policy"),
        (b'{"rules": {}}', "rules is no list"),
        (b'{"rules": [null]}', "a rule is no object"),
        (b'{"rules": [{"action": "DENY"}]}', "selector is no object"),
        (b'{"rules": [{"action": "MAYBE", "selector": {}}]}', "none of ALLOW, DENY, CONVERT: MAYBE"),
        (b'{"rules": [{"selector": {"identifier": 1}}]}', "identifier is no text"),
        (b'{"rules": [{"selector": {"match_type": 9}}]}', "none of WILDCARD"),
        (None, "failed to read policy file"),
    ],
)
def test_a_policy_that_is_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes | None, words: str
) -> None:
    monkeypatch.setenv("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY", str(tmp_path / "policy"))
    if text is not None:
        (tmp_path / "policy").write_bytes(text)
    with pytest.raises(CommandError, match=words):
        asked()


def test_policies_in_rego_are_not_passed_over(folder: Path) -> None:
    """Those that --policy names, and the one that buildx finds beside the Dockerfile."""
    for value in ("filename=x.rego", "reset=true", "strict=true", "log-level=debug", "disabled=maybe", "x"):
        with pytest.raises(CommandError, match=f"^--policy {value}: .*docker buildx"):
            asked("--policy", value)
    (folder / "My.file").write_text("FROM scratch\n")
    (folder / "Dockerfile.rego").write_text("package docker\n")
    for argv in ((), ("--policy", "disabled=false")):
        with pytest.raises(CommandError, match=r"^context/Dockerfile\.rego: .*--policy disabled=true builds without"):
            asked(*argv)
    without = asked("--policy", "disabled=true")[0]
    assert "SourcePolicy" not in without and without["FrontendAttrs"]["filename"] == "Dockerfile"
    assert asked("-f", "context/My.file")[0]
    assert asked(where="https://github.com/a/b.git")[0]
    with pytest.raises(CommandError, match=r"--policy filename=x\.rego"):
        asked("--policy", "disabled=true,filename=x.rego")


def test_annotations_of_levels() -> None:
    assert outputs.parse_annotations(["a=b", "index,manifest:c=d=e", "manifest[linux/amd64]:f=g", "https://x:h=i"]) == {
        "annotation.a": "b",
        "annotation-index.c": "d=e",
        "annotation.c": "d=e",
        "annotation[linux/amd64].f": "g",
        "annotation.https://x:h": "i",
    }


# Contexts.


def inputs(where: str, file: str = "") -> tuple[Inputs, Offer]:
    offer = Offer(ConfigFile("/nowhere"))
    made = Inputs(offer)
    made.add(where, file)
    return made, offer


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    left = io.BytesIO(data)
    monkeypatch.setattr(contexts.os, "read", lambda _, size: left.read(size))


def test_places_of_a_dockerfile(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub/My.file").write_text("FROM scratch")
    made, offer = inputs("context", "context/sub/My.file")
    assert made.attributes["filename"] == "My.file" and offer.folders["dockerfile"] == "context/sub"
    (folder / "Dockerfile").rename(folder / "dockerfile")
    assert inputs("context")[0].attributes["filename"] == "dockerfile"
    made, offer = inputs("https://github.com/a/b.git#main:sub", "D")
    assert made.attributes == {"context": "https://github.com/a/b.git#main:sub", "filename": "D"}
    assert not offer.folders
    made, offer = inputs("git@github.com:a/b.git", str(folder / "dockerfile"))
    assert made.attributes["dockerfilekey"] == "dockerfile" and offer.folders == {"dockerfile": str(folder)}
    with pytest.raises(CommandError, match='path "nowhere" not found'):
        inputs("nowhere")


def test_a_folder_is_known_again(folder: Path) -> None:
    """By the builder, who has most of its files; whatever it is called, as the key is a header's value."""
    names = ["one/app", "two/app", "a\r\nb", "\udcff", "ü"]
    for name in names:
        (folder / name).mkdir(parents=True)
    (folder / "link").symlink_to("one/app")
    keys = [inputs(str(folder / name))[1].shared_key for name in names]
    assert len(set(keys)) == len(names)
    assert all(key.isascii() and key.isprintable() for key in keys)
    assert inputs("context/one/app")[1].shared_key == inputs(str(folder / "link"))[1].shared_key == keys[0]
    # It says nothing of the machine to whom the builder belongs.
    assert contexts._machine() not in keys[0] and "app" not in keys[0]


def test_the_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"FROM scratch\n")
    made, offer = inputs("-")
    assert Path(offer.folders["dockerfile"], "Dockerfile").read_text() == "FROM scratch\n"
    assert not list(Path(offer.folders["context"]).iterdir()) and not offer.uploads
    made.close()
    assert not Path(offer.folders["dockerfile"]).exists() and not Path(offer.folders["context"]).exists()
    stdin(monkeypatch, b"FROM scratch\n")
    made, offer = inputs("context", "-")
    assert Path(offer.folders["dockerfile"], "Dockerfile").exists() and offer.folders["context"] == "context"
    assert made.attributes["dockerfilekey"] == "dockerfile"
    made.close()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(folder / "Dockerfile", "Dockerfile")
    stdin(monkeypatch, archive.getvalue())
    made, offer = inputs("-", "other")
    ((number, source),) = offer.uploads.items()
    assert made.attributes == {"context": f"http://buildkit-session/{number}", "filename": "other"}
    assert b"".join(source()) == archive.getvalue()
    for data, file, problem in ((b"FROM x", "D", "ambiguous"), (b"", "-", "can't use stdin for both")):
        stdin(monkeypatch, data)
        with pytest.raises(CommandError, match=problem):
            inputs("-", file)


def test_what_is_an_archive() -> None:
    for head in (b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"):
        assert is_archive(head)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("x"))
    block = archive.getvalue()
    assert is_archive(block)
    old = bytearray(block[:512])  # as before POSIX: no mark, a checksum
    old[257:265] = bytes(8)
    old[148:156] = b" " * 8
    old[148:155] = b"%06o\0" % sum(old)
    assert is_archive(bytes(old)) and not is_archive(b"FROM scratch\n" * 50) and not is_archive(bytes(1024))


@pytest.mark.parametrize(
    ("text", "remote"),
    [
        ("https://x/y.git", True),
        ("git@host:x", True),
        ("github.com/a/b", True),
        ("user@host:path/x", True),
        ("context", False),
        ("./a@b", False),
        ("/x/y", False),
    ],
)
def test_what_is_remote(text: str, remote: bool) -> None:
    assert is_remote(text) == remote


def test_named_contexts(folder: Path) -> None:
    fields, made = asked(
        *(
            "--build-context",
            "a=context",
            "--build-context",
            "b=docker-image://x",
            "--build-context",
            "context=context",
        ),
        *("--build-context", "c=https://x/y.git"),
    )
    attributes = fields["FrontendAttrs"]
    assert attributes["context:a"] == "local:a" and attributes["context:context"] == "local:_context"
    assert attributes["context:b"] == "docker-image://x" and attributes["context:c"] == "https://x/y.git"
    assert made.offer.folders["a"] == made.offer.folders["_context"] == "context"
    (folder / "index.json").write_text(
        '{"manifests": [{"digest": "sha256:aa", "annotations": {"org.opencontainers.image.ref.name": "v1"}}]}'
    )
    fields, made = asked("--build-context", "l=oci-layout://context:v1")
    ((name, store),) = made.offer.stores.items()
    assert fields["FrontendAttrs"]["context:l"] == f"oci-layout://{name.removeprefix('oci:')}:v1@sha256:aa"
    assert not store.writes
    with pytest.raises(CommandError, match="no such directory"):
        asked("--build-context", "l=oci-layout://nowhere:v1")


# Results.


def test_what_is_told_of_a_result() -> None:
    answer = {"containerimage.config.digest": "sha256:c", "containerimage.digest": "sha256:d"}
    assert result.image_id(answer) == "sha256:c"
    assert result.image_id({"containerimage.digest": "sha256:d"}) == "sha256:d"
    text = result.metadata({"z": "plain", "a": "eyJ4IjogMX0="}, "ref", [])
    assert text == '{\n  "a": {\n    "x": 1\n  },\n  "buildx.build.ref": "default/default/ref",\n  "z": "plain"\n}'


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], ("build", {})),
        (["--check"], ("check", {})),
        (["--call", "outline,format=json"], ("outline", {"format": "json"})),
        (["--print", "targets"], ("targets", {})),
        (["--call", "check", "--check"], ("check", {})),
    ],
)
def test_questions(argv: list[str], expected: tuple[str, dict[str, str]]) -> None:
    options, _ = parse(parse_table(build.COMMANDS["image build"].table), argv)
    assert modern.question_of(options) == expected


def test_variables_of_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "x")
    monkeypatch.delenv("NOT_HERE", raising=False)
    assert request.variables(["A=b=c", "HERE", "NOT_HERE", "E="]) == {"A": "b=c", "HERE": "x", "E": ""}


def test_the_revision_goes_with_provenance(folder: Path) -> None:
    def git(*argv: str) -> str:
        told = ("-c", "user.name=x", "-c", "user.email=x@x", "-C", str(folder.parent))
        return subprocess.run(["git", *told, *argv], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    git("remote", "add", "origin", "https://me:secret@h.example/x.git")
    found = asked(engine=WHOLE)[0]["FrontendAttrs"]
    assert found["vcs:revision"] == git("rev-parse", "HEAD") and found["vcs:source"] == "https://h.example/x.git"
    assert found["vcs:localdir:context"] == found["vcs:localdir:dockerfile"] == "context"
    assert not [key for key in asked(engine=MOBY)[0]["FrontendAttrs"] if key.startswith("vcs:")]
    assert not [key for key in asked("--provenance=false", engine=WHOLE)[0]["FrontendAttrs"] if key.startswith("vcs:")]
