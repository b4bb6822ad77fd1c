# SPDX-License-Identifier: Apache-2.0
"""What comes out of builds, and what is kept of them: images by all clients of the engine, registries, archives,
caches that travel, attestations, several platforms, dates; the cache and the history as clients see and prune them.

The clients are Debian's docker and teu on teud, and buildx with its remote driver on the builder's own socket."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import images
import peers
import pytest
import whole
from builds import prune, scopes
from lab_kind import PATIENCE
from scripted_registry import ScriptedRegistry, tar
from whole import eventually

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "buildkit"))
from githttp import Served

TEU = "/usr/bin/teu"
TEUD = "unix:///run/teu/teud.sock"
BUILDER = "unix:///run/teu/buildkitd.sock"

NEEDS = ("docker", "buildx", "docker-registry", "git", "skopeo", "systemd")
pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(300)]

STAGES = """\
FROM busybox AS base
RUN echo {mark} >/made
FROM base AS work
COPY file /file
RUN cat /made /file >/both
FROM scratch
COPY --from=work /both /both
"""


class Said(NamedTuple):
    code: int
    out: str
    text: str  # both streams


class Clients:
    """The clients, with folders of their own; `mark` makes steps that no test before has made."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.mark = str(time.time_ns())
        self.context = top / "context"
        self.context.mkdir()
        (self.context / "file").write_text("content\n")
        self.environment = {
            **os.environ,
            "DOCKER_HOST": TEUD,
            "BUILDX_CONFIG": str(top / "buildx"),
            "DOCKER_CONFIG": str(top / "docker"),
            "DOCKER_CLI_HINTS": "false",
            "HOME": str(top),
        }

    def dockerfile(self, text: str, name: str = "Dockerfile") -> None:
        (self.context / name).write_text(text.replace("{mark}", self.mark))

    def run(self, *argv: str, code: int | None = 0, env: Mapping[str, str] | None = None) -> Said:
        """In the context."""
        done = subprocess.run(
            argv,
            cwd=self.context,
            env={**self.environment, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120 * PATIENCE,
        )
        assert code is None or done.returncode == code, (argv, done.stdout[-2000:], done.stderr[-3000:])
        return Said(done.returncode, done.stdout, done.stdout + done.stderr)

    def docker(self, *argv: str, code: int | None = 0, **env: str) -> str:
        """Standard output and error."""
        return self.run("docker", *argv, code=code, env=env).text

    def teu(self, *argv: str, code: int | None = 0, **env: str) -> str:
        return self.run(TEU, *argv, code=code, env=env).text

    def inspect(self, name: str) -> dict[str, Any]:
        status, found = images.api("GET", f"/images/{name}/json")
        assert status == 200, found
        return dict(found)


def create_remote(clients: Clients) -> None:
    clients.docker("buildx", "create", "--name", "teu", "--driver", "remote", BUILDER)


@pytest.fixture(scope="module", autouse=True)
def busybox() -> Iterator[None]:
    """It is there; and what builds have left by their names is not, in the end."""
    images.need_busybox()
    before = set(images.ctr("images", "ls", "-q"))
    yield
    for name in set(images.ctr("images", "ls", "-q")) - before:
        whole.teu("rmi", "-f", name, check=False)
    whole.teu("image", "prune", "-f")


@pytest.fixture
def clients(tmp_path: Path) -> Clients:
    return Clients(tmp_path)


@pytest.fixture
def both(tmp_path: Path) -> Clients:
    """With a builder `teu` of buildx."""
    made = Clients(tmp_path)
    create_remote(made)
    return made


@pytest.fixture(scope="module")
def registry() -> Iterator[peers.Registry]:
    with peers.registry() as daemon:
        yield daemon


def way(client: str, *argv: str) -> tuple[str, ...]:
    """A build by docker or by teu on teud, or by buildx or by teu on the builder's own socket."""
    words = {
        "docker": ("docker", "buildx", "build", "--builder=default"),
        "teu": (TEU, "build"),
        "remote": ("docker", "buildx", "build", "--builder=teu"),
        "teu-remote": (TEU, "build", "--builder", BUILDER),
    }[client]
    return (*words, "--progress=plain", *argv, ".")


# ---- archives ---------------------------------------------------------------------------------------


class Layout:
    """An OCI layout in an archive."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as archive:
            self.files = {
                member.name: file.read() for member in archive if (file := archive.extractfile(member)) is not None
            }

    def json(self, descriptor: Mapping[str, Any]) -> Any:
        return json.loads(self.data(descriptor))

    def data(self, descriptor: Mapping[str, Any]) -> bytes:
        data = self.files["blobs/" + descriptor["digest"].replace(":", "/")]
        assert len(data) == descriptor["size"]
        assert "sha256:" + hashlib.sha256(data).hexdigest() == descriptor["digest"]
        return data

    @property
    def top(self) -> dict[str, Any]:
        (one,) = json.loads(self.files["index.json"])["manifests"]
        return dict(one)

    def manifests(self) -> tuple[list[Any], list[Any]]:
        """(images, attestations) as the index lists them."""
        document = self.json(self.top)
        entries = document.get("manifests", [self.top])
        kinds: tuple[list[Any], list[Any]] = ([], [])
        for entry in entries:
            kinds["vnd.docker.reference.type" in entry.get("annotations", {})].append(entry)
        return kinds

    def statements(self) -> dict[str, Any]:
        """Predicates by their types, of all attestations."""
        found = {}
        for entry in self.manifests()[1]:
            for layer in self.json(entry)["layers"]:
                statement = self.json(layer)
                assert layer["annotations"]["in-toto.io/predicate-type"] == statement["predicateType"]
                assert statement["subject"][0]["digest"]["sha256"] in {
                    one["digest"].partition(":")[2] for one in self.manifests()[0]
                }
                found[statement["predicateType"]] = statement["predicate"]
        return found


# ---- images of the engine ---------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["docker", "teu"])
def test_an_image_without_a_name(clients: Clients, client: str) -> None:
    """`docker run $(docker build -q .)`; it is one image, however often it is built, and a name makes it no other."""
    clients.dockerfile("FROM busybox\nRUN echo {mark} >/made\nCMD cat /made\n")
    program = {"docker": "docker", "teu": TEU}[client]
    first = clients.run(program, "build", "-q", ".").out.strip()
    assert clients.run(program, "run", "--rm", first).out.strip() == clients.mark
    assert clients.run(program, "build", "-q", ".").out.strip() == first
    dangling = [name for name in images.ctr("images", "ls", "-q") if name.startswith("dangling@")]
    assert first in clients.run(program, "images", "-q", "--no-trunc", "--filter", "dangling=true").out.split()
    for _ in range(2):
        assert clients.run(program, "build", "-q", "-t", "results:named", ".").out.strip() == first
    assert [name for name in images.ctr("images", "ls", "-q") if name.startswith("dangling@")] == dangling
    assert first not in clients.run(program, "images", "-q", "--no-trunc", "--filter", "dangling=true").out.split()
    assert clients.inspect("results:named")["Size"] > 1_000_000
    clients.run(program, "rmi", "results:named")
    assert first not in clients.run(program, "images", "-a", "-q", "--no-trunc").out.split()
    assert clients.run(program, "run", "--rm", first, code=125).text


def test_what_a_step_changes_is_changed_nowhere_else(clients: Clients) -> None:
    """Files that are copied as they are have two names: in the context that the builder keeps, and in the result."""
    clients.dockerfile(
        "FROM busybox AS copied\nWORKDIR /w-{mark}\nCOPY d .\n"
        "FROM copied\nRUN echo more >>f && chmod 600 g && rm h && ln i j\n"
    )
    folder = clients.context / "d"
    folder.mkdir()
    for name in ("f", "g", "h", "i"):
        (folder / name).write_text(f"{name}\n")
        (folder / name).chmod(0o644)
    tag = f"second-name-{clients.mark}"

    def look(which: str, script: str) -> str:
        return clients.teu("run", "--rm", "--network", "none", f"{tag}:{which}", "sh", "-c", script)

    try:
        clients.teu("build", "-t", f"{tag}:first", ".")
        clients.teu("build", "-t", f"{tag}:copied", "--target", "copied", ".")
        assert look("copied", "cat f g h i; stat -c %h f; stat -c %a g; ls") == "f\ng\nh\ni\n2\n644\nf\ng\nh\ni\n"
        assert look("first", "cat f; stat -c %a g; ls") == "f\nmore\n600\nf\ng\ni\nj\n"
        (folder / "f").write_text("changed\n")
        clients.teu("build", "-t", f"{tag}:second", ".")
        clients.teu("build", "-t", f"{tag}:again", "--target", "copied", "--no-cache", ".")
        assert look("again", "cat f g h i; stat -c %a g; ls") == "changed\ng\nh\ni\n644\nf\ng\nh\ni\n"
        assert look("second", "cat f; ls") == "changed\nmore\nf\ng\ni\nj\n"
        assert look("copied", "cat f") == "f\n" and look("first", "cat f") == "f\nmore\n"
    finally:
        clients.teu("rmi", "-f", *(f"{tag}:{which}" for which in ("first", "copied", "second", "again")), code=None)


def test_files_that_tell_of_a_build(both: Clients) -> None:
    both.dockerfile(STAGES)
    told = {}
    for client in ("docker", "teu", "remote", "teu-remote"):
        output = ("-o", "type=image") if "remote" in client else ()
        names = ("--iidfile", str(both.top / f"{client}.id"), "--metadata-file", str(both.top / f"{client}.json"))
        both.run(*way(client, "-t", "results:told", *output, *names))
        metadata = json.loads((both.top / f"{client}.json").read_text())
        assert metadata.pop("buildx.build.ref").count("/") == 2
        metadata.pop("buildx.build.provenance", None)
        # The index is of this build, since its provenance tells when it was.
        assert metadata["containerimage.descriptor"].pop("digest") == metadata.pop("containerimage.digest")
        told[client] = (metadata, (both.top / f"{client}.id").read_text())
    assert told["docker"][0] == told["teu"][0] and told["remote"][0] == told["teu-remote"][0]
    assert told["docker"][0]["image.name"] == "docker.io/library/results:told"
    assert told["teu"][1] == both.inspect("results:told")["Id"]
    both.teu("rmi", "results:told")


@pytest.mark.parametrize("client", ["teu", "teu-remote"])
def test_files_and_archives(clients: Clients, client: str) -> None:
    clients.dockerfile(STAGES)
    both = f"{clients.mark}\ncontent\n"
    top = clients.top
    clients.run(*way(client, "-o", str(top / "folder"), "-o", f"type=tar,dest={top}/x.tar"))
    assert (top / "folder/both").read_text() == both and os.listdir(top / "folder") == ["both"]
    with tarfile.open(top / "x.tar") as archive:
        file = archive.extractfile("both")
        assert archive.getnames() == ["both"] and file is not None and file.read().decode() == both
    names = ("-t", "results:archive")
    outputs = [f"type=oci,dest={top}/oci.tar", f"type=docker,dest={top}/docker.tar"]
    clients.run(*way(client, *names, "-o", outputs[0], "-o", outputs[1], "-o", "type=image"))
    for kind in ("oci", "docker"):
        clients.teu("rmi", "results:archive")
        assert "results:archive" in clients.teu("load", "-i", f"{top}/{kind}.tar")
        clients.teu("save", "-o", f"{top}/{kind}-again.tar", "results:archive")
        assert Layout(top / f"{kind}.tar").manifests()[0]
    clients.teu("rmi", "results:archive")
    # A layout in a folder, and a build from it.
    layout = f"{top}/layout"
    clients.run(*way(client, *names, "-o", f"type=oci,tar=false,dest={layout}"))
    clients.dockerfile("FROM base\nCOPY file /more\n", "From")
    base = ("-f", "From", "--build-context", f"base=oci-layout://{layout}:archive")
    clients.run(*way(client, *base, "-o", str(top / "more")))
    assert sorted(os.listdir(top / "more")) == ["both", "more"]


# ---- registries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["docker", "teu", "remote", "teu-remote"])
def test_a_push(both: Clients, registry: peers.Registry, client: str) -> None:
    """With annotations; the image in the registry is what the build says, and the engine runs it."""
    both.dockerfile("FROM busybox\nRUN echo {mark} >/made\n")
    name = f"{registry.address}/pushed/{client}:1"
    metadata = both.top / "m.json"
    words = ("-t", name, "--push", "--annotation", "index:who=me", "--metadata-file", str(metadata))
    assert f"pushing manifest for {name}" in both.run(*way(client, *words)).text
    digest = json.loads(metadata.read_text())["containerimage.digest"]
    index = json.loads(both.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}").out)
    assert index["annotations"]["who"] == "me" and len(index["manifests"]) == 2
    one = json.loads(both.run("skopeo", "inspect", "--tls-verify=false", f"docker://{name}").out)
    assert one["Digest"] == digest
    both.docker("rmi", name, code=None)
    both.docker("pull", "-q", name)
    assert both.run("docker", "run", "--rm", name, "cat", "/made").out.strip() == both.mark
    both.docker("rmi", name)


def test_an_image_of_single_files(both: Clients, registry: peers.Registry) -> None:
    """compression=estargz: the engine of this builder and another one's have the files, and nothing besides."""
    both.dockerfile("FROM busybox\nCOPY file /folder/file\nRUN rm /folder/file && echo {mark} >/folder/made\n")
    name = f"{registry.address}/single:files"
    output = f"type=image,name={name},push=true,compression=estargz"
    both.run(*way("teu", "-o", output))
    script = "ls -a / /folder; cat /folder/made"
    for again in (False, True):
        if again:
            both.teu("rmi", name)
            both.teu("pull", "-q", name)
        said = both.teu("run", "--rm", "--network=none", name, "sh", "-c", script)
        assert said.endswith(f"\nmade\n{both.mark}\n") and "stargz" not in said, said
    both.teu("rmi", name)
    folder = both.top / "copied"
    both.run("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{name}", f"dir:{folder}")
    document = json.loads((folder / "manifest.json").read_text())
    marked = [STARGZ in layer.get("annotations", {}) for layer in document["layers"]]
    assert marked == [False, True, True]


@pytest.mark.parametrize("statements", ["true", "false"])
@pytest.mark.parametrize("client", ["docker", "teu"])
def test_what_is_built_for_the_engine_and_pushed_later(
    both: Clients, registry: peers.Registry, client: str, statements: str
) -> None:
    """It is a snapshot of the build's, and takes no second place; its push compresses it, and tells of that image."""
    noise = os.urandom(3 << 20)
    (both.context / "noise").write_bytes(noise + bytes(5 << 20))
    both.dockerfile("FROM busybox\nCOPY noise /noise\nRUN echo {mark} >/made\n")
    name = f"{registry.address}/later/{client}-{statements}:1"
    both.run(*way(client, "-t", name, f"--provenance={statements}"))
    before = both.inspect(name)
    plain = before["RootFS"]["Layers"][-2].partition(":")[2]
    content = Path("/var/lib/teu/containerd/content")
    data = content / "lean" / plain / "data"
    assert data.stat().st_size > 8 << 20 > 1 << 20 > data.stat().st_blocks * 512, "the file is in the snapshot alone"
    assert both.run("docker", "run", "--rm", name, "sha256sum", "/noise").out.split()[0] == (
        hashlib.sha256(noise + bytes(5 << 20)).hexdigest()
    )
    assert data.exists(), "to run it, nothing of it was read"
    pushed = (both.docker if client == "docker" else both.teu)("push", name)
    digest = re.findall(r"digest: (sha256:\w+)", pushed)[-1]
    after = both.inspect(name)
    assert (after["Id"], after["RootFS"]) == (before["Id"], before["RootFS"])
    assert after["RepoDigests"] == [f"{name.rpartition(':')[0]}@{digest}"]
    document = json.loads(both.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}").out)
    if statements == "true":
        image, about = document["manifests"]
        assert about["annotations"]["vnd.docker.reference.digest"] == image["digest"]
        place = f"docker://{name.rpartition(':')[0]}"
        told = json.loads(
            both.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"{place}@{about['digest']}").out
        )
        statement = json.loads(images.blob(registry.address, f"later/{client}-true", told["layers"][0]["digest"]))
        assert {one["digest"]["sha256"] for one in statement["subject"]} == {image["digest"].partition(":")[2]}
        document = json.loads(
            both.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"{place}@{image['digest']}").out
        )
    layers = document["layers"]
    assert all(layer["mediaType"].endswith("gzip") for layer in layers) and 3 << 20 < layers[-2]["size"] < 4 << 20
    assert not data.exists() and (content / "blobs/sha256" / plain).stat().st_size > 8 << 20
    again = (both.docker if client == "docker" else both.teu)("push", name)
    assert digest in again and "Pushed" not in again
    both.docker("rmi", name)
    both.docker("pull", "-q", f"{name.rpartition(':')[0]}@{digest}")
    assert both.inspect(f"{name.rpartition(':')[0]}@{digest}")["Id"] == before["Id"]
    both.docker("rmi", f"{name.rpartition(':')[0]}@{digest}")


def test_digests_and_compressions_in_a_registry(both: Clients, registry: peers.Registry) -> None:
    both.dockerfile("FROM scratch\nCOPY file /file\n")
    name = f"{registry.address}/pushed/kinds"
    endings = {"uncompressed": "tar", "gzip": "gzip", "zstd": "zstd", "estargz": "gzip"}
    for kind, ending in endings.items():
        text = f"type=image,name={name}:{kind},push=true,store=false,compression={kind},force-compression=true"
        both.run(*way("remote", "--provenance=false", "-o", text + ",oci-mediatypes=true"))
        raw = both.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}:{kind}").out
        (layer,) = json.loads(raw)["layers"]
        assert layer["mediaType"].endswith(ending)
        assert (STARGZ in layer.get("annotations", {})) == (kind == "estargz")
    metadata = both.top / "m.json"
    text = f"type=image,name={name},push=true,push-by-digest=true,name-canonical=true"
    both.run(*way("remote", "--provenance=false", "-o", text, "--metadata-file", str(metadata)))
    digest = json.loads(metadata.read_text())["containerimage.digest"]
    both.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}@{digest}")
    both.run("skopeo", "inspect", "--tls-verify=false", f"docker://{name}:latest", code=2)
    both.teu("rmi", f"{name}@{digest}")


# ---- caches that travel -----------------------------------------------------------------------------


def cached(text: str) -> dict[str, bool]:
    """The steps of a progress, and whether each came from the cache."""
    found = {}
    for number, name in re.findall(r"^#(\d+) (\[[^]]*\d/\d\] (?:RUN|COPY).*)$", text, re.MULTILINE):
        found[name.partition("] ")[2]] = f"#{number} CACHED" in text.splitlines()
    return found


@pytest.mark.parametrize(
    ("client", "kind"), [("docker", "local"), ("teu", "registry"), ("teu", "local"), ("remote", "registry")]
)
def test_a_cache_of_all_steps_or_of_the_result(both: Clients, registry: peers.Registry, client: str, kind: str) -> None:
    """mode=min has what the result is made of, mode=max all steps."""
    both.dockerfile(STAGES)
    for mode in ("min", "max"):
        place = f"ref={registry.address}/cache:{client}-{mode}" if kind == "registry" else f"dest={both.top}/{mode}"
        both.run(*way(client, "-o", "type=cacheonly", "--cache-to", f"type={kind},{place},mode={mode}"))
    for mode in ("min", "max"):
        prune()
        place = f"ref={registry.address}/cache:{client}-{mode}" if kind == "registry" else f"src={both.top}/{mode}"
        source = ("--cache-from", f"type={kind},{place}")
        out = both.top / f"out-{mode}"
        text = both.run(*way(client, *source, "-o", str(out))).text
        assert (out / "both").read_text() == f"{both.mark}\ncontent\n"
        assert cached(text)["COPY --from=work /both /both"], text
        work = cached(both.run(*way(client, *source, "-o", "type=cacheonly", "--target=work")).text)
        assert [work["COPY file /file"], work["RUN cat /made /file >/both"]] == [mode == "max"] * 2, work


@pytest.mark.parametrize("client", ["docker", "teu"])
def test_a_cache_inside_of_an_image(clients: Clients, registry: peers.Registry, client: str) -> None:
    clients.dockerfile("FROM busybox\nRUN echo {mark} >/made\nCOPY file /file\n")
    name = f"{registry.address}/inline:{client}"
    clients.run(*way(client, "-t", name, "--push", "--cache-to", "type=inline"))
    clients.docker("rmi", name, code=None)
    prune()
    text = clients.run(*way(client, "--cache-from", name, "-o", str(clients.top / "out"))).text
    assert f"importing cache manifest from {name}" in text and list(cached(text).values()) == [True, True], text
    # As classic clients of BuildKit ask for it.
    words = ("build", "-q", "-t", name, "--build-arg", "BUILDKIT_INLINE_CACHE=1", ".")
    clients.docker(*words)
    clients.docker("push", "-q", name)
    clients.docker("rmi", name)
    prune()
    text = clients.run(*way(client, "--cache-from", name, "-o", "type=cacheonly")).text
    assert list(cached(text).values()) == [True, True], text


# ---- attestations -----------------------------------------------------------------------------------

SCANNER = r"""FROM busybox
COPY --chmod=755 <<"SCRIPT" /scan
#!/bin/sh
set -e
names=$({ ls $BUILDKIT_SCAN_SOURCE; ls ${BUILDKIT_SCAN_SOURCE_EXTRAS:-/none} 2>/dev/null; } | tr "\n" " ")
echo "scanning $names"
cat >$BUILDKIT_SCAN_DESTINATION/found.spdx.json <<STATEMENT
{
  "_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://spdx.dev/Document",
  "predicate": {"name": "$names"}
}
STATEMENT
SCRIPT
ENTRYPOINT ["/scan"]
"""


def provenance_of(statements: Mapping[str, Any]) -> dict[str, Any]:
    ((_, found),) = [one for one in statements.items() if one[0].startswith("https://slsa.dev/provenance/")]
    return dict(found)


@pytest.mark.parametrize("client", ["docker", "teu", "remote"])
def test_provenance(both: Clients, client: str) -> None:
    both.dockerfile("FROM busybox\nARG WHO=nobody\nCOPY file /file\nRUN echo {mark} $WHO\n")
    found = {}
    for mode in ("min", "max"):
        path = both.top / f"{mode}.tar"
        words = ("--build-arg", "WHO=somebody", "--provenance", f"mode={mode}", "-o", f"type=oci,dest={path}")
        both.run(*way(client, *words))
        found[mode] = provenance_of(Layout(path).statements())
    for mode, told in found.items():
        text = json.dumps(told)
        assert ("somebody" in text) == (mode == "max"), mode
        assert (both.mark in text) == (mode == "max"), mode
        materials = told.get("materials") or told["buildDefinition"]["resolvedDependencies"]
        assert [one["uri"].partition("@")[0] for one in materials] == ["pkg:docker/busybox"], materials


@pytest.mark.parametrize("client", ["docker", "teu", "remote"])
def test_attestations_as_artifacts(both: Clients, registry: peers.Registry, client: str) -> None:
    """oci-artifact=true: they go to a registry and come from there, and the engine has the image beside them."""
    both.dockerfile("FROM busybox\nCOPY file /file\n")
    name = f"{registry.address}/artifacts:{client}"
    output = f"type=image,name={name},push=true,oci-artifact=true"
    both.run(*way(client, "--provenance=mode=min", "-o", output))
    document = json.loads(both.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}").out)
    image, attested = document["manifests"]
    whole_name = f"{registry.address}/artifacts@{attested['digest']}"
    raw = both.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{whole_name}").out
    manifest = json.loads(raw)
    assert manifest["artifactType"] == "application/vnd.docker.attestation.manifest.v1+json"
    assert manifest["subject"]["digest"] == image["digest"] and manifest["config"]["size"] == 2
    for _ in range(2):
        assert both.teu("run", "--rm", "--network=none", name, "cat", "/file") == "content\n"
        both.teu("rmi", name)
        both.teu("pull", "-q", name)
    both.teu("rmi", name)


@pytest.mark.parametrize("client", ["docker", "teu", "remote"])
def test_what_a_scanner_finds(both: Clients, client: str) -> None:
    """An image of which nobody knows more than that it follows BuildKit's protocol of SBOM generators."""
    both.dockerfile(SCANNER, "Scanner")
    both.docker("build", "-q", "-f", "Scanner", "-t", "results:scanner", ".")
    both.dockerfile(STAGES)
    path = both.top / "x.tar"
    words = ("--attest", "type=sbom,generator=results:scanner", "-o", f"type=oci,dest={path}")
    said = both.run(*way(client, "--provenance=false", *words)).text
    assert "scanning " in said
    statements = Layout(path).statements()
    assert statements == {"https://spdx.dev/Document": {"name": "both "}}
    # More stages, as the Dockerfile asks for them.
    both.dockerfile(STAGES.replace("FROM base AS work\n", "FROM base AS work\nARG BUILDKIT_SBOM_SCAN_STAGE=true\n"))
    both.run(*way(client, "--provenance=false", *words))
    assert Layout(path).statements() == {"https://spdx.dev/Document": {"name": "both sbom-work "}}
    broken = ("--attest", "type=sbom,generator=results:none-of-this", "-o", f"type=oci,dest={path}")
    assert "none-of-this" in both.run(*way(client, *broken), code=1).text
    both.teu("rmi", "results:scanner")


# ---- dates, platforms -------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["docker", "teu", "remote"])
def test_two_builds_of_one_date_are_one(both: Clients, client: str) -> None:
    """SOURCE_DATE_EPOCH, by the environment or as an argument; without it the digests differ."""
    both.dockerfile("FROM busybox\nCOPY file /file\nRUN echo made >/made; mkdir /folder\n")
    digests = []
    for number, epoch in enumerate(("1700000000", "1700000000", "")):
        os.utime(both.context / "file", (1_750_000_000 + number, 1_750_000_000 + number))
        path = both.top / f"{number}.tar"
        words = ("--no-cache", "--provenance=false", "-o", f"type=oci,dest={path},rewrite-timestamp=true")
        if epoch and client == "docker":
            words = ("--build-arg", f"SOURCE_DATE_EPOCH={epoch}", *words)
        both.run(*way(client, *words), env={"SOURCE_DATE_EPOCH": epoch} if epoch else {})
        layout = Layout(path)
        digests.append(layout.top["digest"])
        if not number:
            time.sleep(1.1)  # a layer's times are whole seconds
        if not epoch:
            continue
        manifest = layout.json(layout.top)
        config = layout.json(manifest["config"])
        assert config["created"] == "2023-11-14T22:13:20Z"
        for layer in manifest["layers"][1:]:  # the base's is as it came
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layout.data(layer)))) as files:
                assert all(member.mtime <= 1_700_000_000 for member in files)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("client", ["docker", "teu", "remote"])
def test_two_platforms_in_one_index(both: Clients, registry: peers.Registry, client: str) -> None:
    both.dockerfile(
        "FROM scratch\nARG TARGETARCH TARGETPLATFORM BUILDPLATFORM\nLABEL for=$TARGETPLATFORM on=$BUILDPLATFORM\n"
        "COPY file /file-$TARGETARCH\n"
    )
    path = both.top / "x.tar"
    platforms = ("--platform", "linux/amd64,linux/arm64")
    both.run(*way(client, *platforms, "-t", "results:two", "-o", f"type=oci,dest={path}"))
    layout = Layout(path)
    made, attested = layout.manifests()
    assert [one["platform"]["architecture"] for one in made] == ["amd64", "arm64"] and len(attested) == 2
    for one in made:
        config = layout.json(layout.json(one)["config"])
        architecture = one["platform"]["architecture"]
        assert config["architecture"] == architecture
        assert config["config"]["Labels"] == {"for": f"linux/{architecture}", "on": "linux/amd64"}
    # In folders, in the engine, and in a registry.
    both.run(*way(client, *platforms, "-o", str(both.top / "out")))
    found = sorted(str(one.relative_to(both.top / "out")) for one in (both.top / "out").rglob("file*"))
    assert found == ["linux_amd64/file-amd64", "linux_arm64/file-arm64"]
    name = f"{registry.address}/two:{client}"
    both.run(*way(client, *platforms, "-t", name, "--push"))
    raw = both.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}").out
    assert len(json.loads(raw)["manifests"]) == 4
    if client != "remote":
        both.run(*way(client, *platforms, "-t", "results:two"))
        assert both.inspect("results:two")["Architecture"] == "amd64"
        both.teu("rmi", "results:two")


def test_a_step_of_a_platform_that_nothing_here_can_run(clients: Clients) -> None:
    clients.dockerfile('FROM scratch\nCOPY file /file\nRUN ["/file"]\n')
    said = clients.run(*way("teu", "--platform", "linux/s390x"), code=1).text
    assert "linux/s390x" in said and "emulator" in said, said


STARGZ = "containerd.io/snapshot/stargz/toc.digest"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
# The head of a program for LoongArch, which nobody has here: little-endian ELF of 64 bits, machine 258.
FOREIGN = b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\2\1" + bytes(44)


@pytest.fixture
def emulator() -> Iterator[Path]:
    """The kernel runs programs of LoongArch by busybox: each is the applet of its name. The entry of binfmt_misc."""
    mounted = (BINFMT / "register").exists()
    if not mounted:
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], check=True)
    entry = BINFMT / "teu-test-loong64"
    magic = "".join(f"\\x{byte:02x}" for byte in FOREIGN[:20])
    (BINFMT / "register").write_text(f":{entry.name}:M::{magic}::{shutil.which('busybox')}:F")
    yield entry
    if entry.exists():
        entry.write_text("-1")
    if not mounted:
        subprocess.run(["umount", BINFMT], check=True)


@pytest.mark.parametrize("client", ["docker", "teu", "remote"])
def test_steps_of_a_platform_that_an_emulator_runs(both: Clients, emulator: Path, client: str) -> None:
    """Beside those of the host, in one build. An emulator that comes or goes is known without a restart."""
    own = both.context / "bin-amd64"
    foreign = both.context / "bin-loong64"
    for folder, program in ((own, Path(shutil.which("busybox") or "").read_bytes()), (foreign, FOREIGN)):
        folder.mkdir()
        for name in ("sh", "uname"):
            (folder / name).write_bytes(program)
            (folder / name).chmod(0o755)
    both.dockerfile(
        "FROM scratch\nARG TARGETARCH\nCOPY bin-$TARGETARCH /bin/\n"
        f"RUN echo $TARGETARCH {{mark}} {client} >/made; uname -s >>/made\n"
    )
    out, archive = both.top / "out", both.top / "two.tar"
    platforms = ("--platform", "linux/amd64,linux/loong64")
    both.run(*way(client, *platforms, "-o", str(out)))
    for architecture in ("amd64", "loong64"):
        text = (out / f"linux_{architecture}/made").read_text()
        assert text == f"{architecture} {both.mark} {client}\nLinux\n"
    both.run(*way(client, *platforms, "-o", f"type=oci,dest={archive}"))
    layout = Layout(archive)
    configs = [layout.json(layout.json(one)["config"]) for one in layout.manifests()[0]]
    assert [config["architecture"] for config in configs] == ["amd64", "loong64"]
    assert "linux/loong64" in both.teu("builder", "inspect")
    emulator.write_text("-1")
    assert "linux/loong64" not in both.teu("builder", "inspect")
    said = both.run(*way(client, "--no-cache", *platforms, "-o", str(out)), code=1).text
    assert "emulator" in said and "linux/loong64" in said, said


LIMITS = ("--memory=64m", "--memory-swap=64m", "--cpu-period=50000", "--cpu-quota=25000", "--cpu-shares=512")


@pytest.mark.needs("memory", "cpu")
@pytest.mark.parametrize("client", ["teu", "teu-remote", "teu-classic", "docker-classic"])
def test_limits_of_steps(clients: Clients, client: str) -> None:
    """What a step sees of its own cgroup, by BuildKit's protocol and by the classic request."""
    clients.dockerfile(
        f"FROM busybox\nRUN cd /sys/fs/cgroup; cat memory.max memory.swap.max cpu.max cpu.weight # {client} {{mark}}\n"
    )
    if client.endswith("classic"):
        said = clients.run(client.partition("-")[0], "build", *LIMITS, ".", env={"DOCKER_BUILDKIT": "0"}).text
    else:
        said = clients.run(*way(client, *LIMITS, "-o", "type=cacheonly")).text
    lines = [line.split(" ", 2)[-1] if line.startswith("#") else line for line in said.splitlines()]
    at = lines.index(str(64 << 20))
    assert lines[at + 1 : at + 3] == ["0", "25000 50000"] and 1 < int(lines[at + 3]) < 100, said


# ---- POST /build ------------------------------------------------------------------------------------


class Contexts(BaseHTTPRequestHandler):
    files: dict[str, bytes]

    def do_GET(self) -> None:
        data = self.files.get(self.path)
        self.send_response(200 if data is not None else 404)
        kind = "text/plain" if self.path.endswith("file") else "application/x-tar"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: Any) -> None: ...


def test_contexts_that_are_elsewhere(clients: Clients) -> None:
    """The classic request with `remote`: an archive, a Dockerfile alone, a repository, a folder of it."""
    dockerfile = f"FROM busybox\nRUN echo {clients.mark} >/made\n"
    Contexts.files = {
        "/context.tar": tar(("Dockerfile", (dockerfile + "COPY x /x\n").encode()), ("x", b"x of the archive")),
        "/Dockerfile": (dockerfile + "RUN echo alone >/x\n").encode(),
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Contexts)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    repositories = Served(clients.top / "served")
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        repositories.repository(
            "a.git",
            {
                "Dockerfile": dockerfile + "COPY x /x\n",
                "x": "x of git",
                "sub/Dockerfile": dockerfile + "COPY x /x\n",
                "sub/x": "x below",
            },
        )
        for where, said in (
            (f"{address}/context.tar", "x of the archive"),
            (f"{address}/Dockerfile", "alone"),
            (f"{repositories.address}/a.git#main", "x of git"),
            (f"{repositories.address}/a.git#main:sub", "x below"),
        ):
            text = clients.docker("build", "-t", "results:remote", where, DOCKER_BUILDKIT="0")
            assert "Successfully tagged results:remote" in text, text
            assert clients.docker("run", "--rm", "results:remote", "cat", "/x").strip() == said
        # docker downloads and clones itself; the engine does it for who asks by the API.
        for where, said in ((f"{address}/context.tar", "archive"), (f"{repositories.address}/a.git#:sub", "below")):
            query = f"remote={where.replace('#', '%23')}&t=results:remote&nocache=1"
            status, answer = images.api("POST", f"/build?{query}", b"")
            assert status == 200 and any("Successfully built" in one.get("stream", "") for one in answer), answer
            assert said in clients.docker("run", "--rm", "results:remote", "cat", "/x")
        status, answer = images.api("POST", f"/build?remote={address}/nowhere.tar", b"")
        assert "404" in json.dumps(answer), answer
    finally:
        for each in (server, repositories.server):
            each.shutdown()
            each.server_close()
        clients.docker("rmi", "results:remote", code=None)


def test_who_asks_a_registry(clients: Clients) -> None:
    """X-Registry-Config: docker's configuration goes with the classic request, and with BuildKit's session."""
    with ScriptedRegistry() as there:
        there.image("app", "1", tar(("a", os.urandom(1000))))
        there.token, there.credentials = os.urandom(8).hex(), "me:hunter2"
        clients.dockerfile(f"FROM {there.address}/app:1\nLABEL a={{mark}}\n")
        for buildkit in ("0", "1"):
            said = clients.docker("build", "-t", "results:auth", ".", code=1, DOCKER_BUILDKIT=buildkit)
            assert "authorize" in said or "authorization" in said, said
        assert "authoriz" in clients.teu("build", ".", code=1)
        clients.run("sh", "-c", f"echo hunter2 | docker login -u me --password-stdin {there.address}")
        for buildkit in ("0", "1"):
            clients.docker("build", "-t", "results:auth", "--no-cache", ".", DOCKER_BUILDKIT=buildkit)
            clients.docker("rmi", "results:auth")
        clients.teu("build", "-t", "results:auth", ".")
        clients.docker("rmi", "results:auth")


@pytest.mark.parametrize("client", ["docker", "classic", "teu"])
def test_a_client_that_is_interrupted(clients: Clients, client: str) -> None:
    clients.dockerfile("FROM busybox\nRUN echo {mark}; sleep 60\n")
    program = TEU if client == "teu" else "docker"
    eventually("no step runs", lambda: not scopes(), 10)
    process = subprocess.Popen(
        [program, "build", "."],
        cwd=clients.context,
        env={**clients.environment, "DOCKER_BUILDKIT": "0" if client == "classic" else "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        eventually("the step runs", scopes)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=30 * PATIENCE)
        assert process.returncode == 130 if client == "teu" else process.returncode, text
        eventually("the step has ended", lambda: not scopes(), 10)
        assert time.monotonic() - begun < 3 * PATIENCE, text
    finally:
        process.kill()
        process.wait()


def test_a_build_that_is_cancelled_by_its_id(clients: Clients) -> None:
    """POST /build/cancel."""
    context = tar(("Dockerfile", f"FROM busybox\nRUN echo {clients.mark}; sleep 60\n".encode()))
    answers: list[Any] = []
    build_id = f"id-{clients.mark}"
    asked = threading.Thread(target=lambda: answers.append(images.api("POST", f"/build?buildid={build_id}", context)))
    asked.start()
    eventually("the step runs", scopes)
    assert images.api("POST", f"/build/cancel?id={build_id}")[0] == 200
    asked.join(30 * PATIENCE)
    assert answers and "cancel" in json.dumps(answers[0][1][-1]), answers
    eventually("the step has ended", lambda: not scopes(), 10)


# ---- the cache, and builds that were ----------------------------------------------------------------


def rows(text: str) -> list[list[str]]:
    """A table's cells, without times."""
    return sorted(line.split()[:3] for line in text.splitlines() if line.split())


def test_the_cache_as_clients_see_it(both: Clients) -> None:
    """`docker buildx du`, `teu builder du`, `system df`, `builder prune` by all ways; images stay usable."""
    prune()
    both.dockerfile("FROM busybox\nRUN echo {mark} >/made; head -c 300000 /dev/urandom >/big\nCOPY file /file\n")
    both.docker("build", "-q", "-t", "results:kept", ".")
    theirs = rows(both.docker("buildx", "du", "--builder=default"))
    assert rows(both.teu("builder", "du")) == theirs == rows(both.docker("buildx", "du", "--builder=teu"))
    assert rows(both.teu("builder", "du", "--builder", BUILDER)) == theirs
    chosen = ("--filter", "type=source.local")
    assert rows(both.teu("builder", "du", *chosen)) == rows(both.docker("buildx", "du", *chosen))
    told = json.loads(both.run("docker", "system", "df", "--format", "json").out.splitlines()[3])
    assert told["Type"] == "Build Cache" and int(told["TotalCount"]) >= 4 and told["Size"] != "0B"
    status, answer = images.api("GET", "/system/df?type=build-cache")
    kinds = {one["Type"] for one in answer["BuildCache"]}
    assert status == 200 and {"regular", "source.local"} <= kinds
    assert not answer.get("Images") and not answer.get("Containers")
    shown = both.docker("system", "df", "-v")
    assert all(one["ID"][:12] in shown for one in answer["BuildCache"])
    for name in ("description", "LastUsedAt", "UsageCount", "InUse", "Shared"):
        assert any(key.lower() == name.lower() for key in answer["BuildCache"][0]), name

    assert both.docker("builder", "prune", "-f", "--filter", "until=1h").split() == ["Total:", "0B"]
    assert both.teu("builder", "prune", "-f", "--filter", "until=1h").split() == ["Total:", "0B"]
    assert both.mark in both.teu("builder", "du", "--verbose")
    said = both.docker("builder", "prune", "-f", "--filter", "type=source.local")
    assert "Total" in said and "type=source.local" not in said
    assert both.mark in both.teu("builder", "du", "--verbose")
    assert "source.local" not in both.teu("builder", "du", "--verbose")
    # What an image shares stays for `prune` without -a.
    assert both.mark in both.teu("builder", "prune", "-f", "--verbose") + both.teu("builder", "du", "--verbose")
    both.docker("builder", "prune", "-a", "-f")
    assert len(rows(both.teu("builder", "du"))) <= 3
    assert both.run("docker", "run", "--rm", "results:kept", "cat", "/made").out.strip() == both.mark
    # By the engine's own API, with its limits.
    both.docker("build", "-q", "-t", "results:kept", ".")
    status, answer = images.api("POST", "/build/prune?all=1&keep-storage=100000000000")
    assert (status, answer["SpaceReclaimed"]) == (200, 0)
    status, answer = images.api("POST", "/build/prune?all=1")
    assert status == 200 and answer["CachesDeleted"] and answer["SpaceReclaimed"] > 0
    status, answer = images.api("POST", '/build/prune?filters={"nonsense":["x"]}')
    assert status == 400 and "nonsense" in answer["message"]
    both.docker("build", "-q", ".")
    assert "Total reclaimed space" in both.docker("system", "prune", "-f")
    assert both.run("docker", "run", "--rm", "results:kept", "cat", "/file").out == "content\n"
    both.docker("rmi", "results:kept")


@pytest.mark.parametrize("builder", ["default", BUILDER])
def test_builds_that_were(clients: Clients, builder: str) -> None:
    def history(*argv: str, code: int = 0) -> str:
        return clients.run(TEU, "builder", "history", argv[0], "--builder", builder, *argv[1:], code=code).text

    clients.dockerfile(STAGES)
    metadata = clients.top / "m.json"
    name = f"results:{clients.mark}"
    words = ("-t", name, "--metadata-file", str(metadata), "--build-arg", "A=b", "--target=work")
    clients.run(*way("docker", *words))
    ref = json.loads(metadata.read_text())["buildx.build.ref"].rpartition("/")[2]
    assert history("ls", "-q").splitlines()[0] == ref
    assert history("ls", "-q", "--filter", f"ref={ref}").split() == [ref]
    assert "Completed" in history("ls", "--filter", "status=completed").partition(ref)[2].splitlines()[0]
    shown = history("inspect", ref[:12])
    for text in (ref, "Completed", f"docker.io/library/{name}", "work", "A", clients.inspect(name)["Id"]):
        assert text in shown, text
    told = json.loads(history("inspect", "--format", "json", "^0"))
    assert told["Ref"] == ref and told["Status"] == "completed" and told["NumCompletedSteps"] >= 5
    logs = history("logs", ref)
    assert f"RUN echo {clients.mark} >/made" in logs and re.search(r"^#\d+ DONE ", logs, re.MULTILINE)
    assert json.loads(history("logs", "--progress", "rawjson", ref).splitlines()[0])

    clients.dockerfile("FROM busybox\nRUN echo {mark} is broken; exit 3\n", "Broken")
    clients.teu("build", "-f", "Broken", ".", code=1)
    shown = history("inspect")
    assert "Status:" in shown and "Error" in shown and "Broken:2" in shown and "exit code: 3" in shown, shown
    assert f"{clients.mark} is broken" in history("logs")
    broken = history("ls", "-q", "--filter", "status=error").split()[0]
    history("rm", ref, broken)
    assert not {ref, broken} & set(history("ls", "-q").split())
    assert f"no record found for reference {ref}" in history("inspect", ref, code=1)
    clients.teu("rmi", name)


def test_a_running_build_is_in_the_history(clients: Clients) -> None:
    """Its log can be followed while it runs."""
    clients.dockerfile("FROM busybox\nRUN echo {mark}; sleep 2\n")
    process = subprocess.Popen(
        [TEU, "build", "."], cwd=clients.context, env=clients.environment, stderr=subprocess.DEVNULL
    )
    try:
        eventually("the step runs", scopes)
        (ref,) = clients.run(TEU, "builder", "history", "ls", "-q", "--filter", "status=running").out.split()
        assert clients.mark in clients.teu("builder", "history", "logs", ref)
        assert process.wait(30 * PATIENCE) == 0
        assert "Completed" in clients.teu("builder", "history", "inspect", ref)
    finally:
        process.kill()
        process.wait()


# ---- teu build on teud ------------------------------------------------------------------------------


def test_secrets_and_arguments_of_teu(clients: Clients) -> None:
    (clients.top / "file").write_text("secret-of-a-file")
    clients.dockerfile(
        "FROM busybox\nARG A\nRUN --mount=type=secret,id=a --mount=type=secret,id=b,env=B,required "
        "echo {mark} $A $(sha256sum </run/secrets/a) $(echo -n $B | sha256sum) >/sums\n"
    )
    out = clients.top / "out"
    secrets = ("--secret", f"id=a,src={clients.top}/file", "--secret", "id=b,env=TOKEN")
    clients.teu("build", *secrets, "--build-arg", "A", "-o", str(out), ".", TOKEN="secret-of-env", A="from-env")
    sums = [hashlib.sha256(text).hexdigest() for text in (b"secret-of-a-file", b"secret-of-env")]
    assert (out / "sums").read_text().split() == [clients.mark, "from-env", sums[0], "-", sums[1], "-"]
    missing = clients.teu("build", "--no-cache", "--secret", f"id=a,src={clients.top}/file", ".", code=1)
    assert "b: not found" in missing and "Dockerfile:3" in missing, missing


def test_only_what_changed_travels_to_teud(clients: Clients) -> None:
    def sent() -> float:
        said = clients.teu("build", "--progress=plain", "-o", "type=cacheonly", ".")
        told = re.findall(r"transferring context: ([\d.]+)(B|kB|MB)", said)
        return float(told[-1][0]) * {"B": 1, "kB": 1e3, "MB": 1e6}[told[-1][1]] if told else 0.0

    clients.dockerfile("FROM scratch\nCOPY used /\n")
    (clients.context / "used").mkdir()
    for number in range(100):
        (clients.context / f"used/{number}").write_bytes(os.urandom(20_000))
    (clients.context / "unused").write_bytes(os.urandom(5_000_000))
    assert 2e6 <= sent() < 3e6
    assert sent() < 50_000
    (clients.context / "used/7").write_bytes(os.urandom(300_000))
    assert 300_000 <= sent() < 400_000


def test_two_folders_of_one_name_travel_once_each(clients: Clients, tmp_path: Path) -> None:
    def sent(folder: Path) -> float:
        said = clients.teu("build", "--progress=plain", "-o", "type=cacheonly", str(folder))
        told = re.findall(r"transferring context: ([\d.]+)(B|kB|MB)", said)
        return float(told[-1][0]) * {"B": 1, "kB": 1e3, "MB": 1e6}[told[-1][1]] if told else 0.0

    folders = [tmp_path / name / "same" for name in ("one", "two")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY file /\n")
        (folder / "file").write_bytes(os.urandom(1_000_000))
        assert sent(folder) > 900_000
    assert [sent(folder) < 50_000 for folder in folders] == [True, True]


def test_questions_to_the_builders_frontend(clients: Clients) -> None:
    clients.dockerfile("FROM busybox as Base\nARG A=1\nfrom base as second\nCOPY file /file\nCMD echo x\n")
    said = clients.teu("build", "--check", ".", code=1)
    for rule in ("FromAsCasing", "ConsistentInstructionCasing", "StageNameCasing", "JSONArgsRecommended"):
        assert rule in said, said
    clients.dockerfile("FROM busybox AS base\nARG A=1\nFROM base AS second\nCOPY file /file\n")
    assert "no warnings" in clients.teu("build", "--check", ".").lower()
    assert re.search(r"second \(default\)|second.*default", clients.teu("build", "--call", "targets", "."))
    assert "A" in clients.run(TEU, "build", "--call", "outline", "--target", "base", ".").out
    value = json.loads(clients.run(TEU, "build", "--call", "targets,format=json", ".").out)
    assert [one["name"] for one in value["targets"]] == ["base", "second"]


def test_linked_targets_on_both_ways(both: Clients) -> None:
    """bake on teud and on the socket; several results, loaded into the engine by type=docker where it is the engine."""
    both.dockerfile("FROM busybox\nRUN echo {mark} >/made\n")
    bake = {
        "group": {"default": {"targets": ["one", "two"]}},
        "target": {
            "base": {"dockerfile": "Dockerfile"},
            "one": {
                "contexts": {"base": "target:base"},
                "dockerfile-inline": "FROM base\nRUN cat /made >/one",
                "output": ["type=image,name=results:one"],
            },
            "two": {
                "contexts": {"base": "target:base", "one": "target:one"},
                "dockerfile-inline": "FROM base\nCOPY --from=one /one /two",
                "output": ["type=image,name=results:two"],
            },
        },
    }
    (both.context / "docker-bake.json").write_text(json.dumps(bake))
    for builder in ("default", "teu"):
        both.docker("buildx", "bake", f"--builder={builder}", "--progress=plain")
        for name in ("one", "two"):
            said = both.run("docker", "run", "--rm", f"results:{name}", "cat", f"/{name}").out
            assert said.strip() == both.mark
        both.docker("rmi", "results:one", "results:two")
