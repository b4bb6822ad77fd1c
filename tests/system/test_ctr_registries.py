# SPDX-License-Identifier: Apache-2.0
"""How `teu-ctr` and teu-containerd reach registries, beside Debian's `ctr`: TLS and its files, plain HTTP, folders
with hosts.toml, what --http-dump and --http-trace show."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import peers
import pytest
from scripted_registry import ScriptedRegistry
from test_ctr import OURS, TEU_CTR, Side, normal

from teu.api.services.transfer.v1 import transfer_pb2, transfer_pb2_grpc
from teu.api.types.transfer import imagestore_pb2, registry_pb2

# Debian 12 has ctr 1.6, whose words differ from those of 1.7.
pytestmark = pytest.mark.needs("ctr", "containerd", "docker-registry", "trixie")

# Not on loopback, where both trust without certificates; an address of this lab alone (TEST-NET-3).
HOST = "203.0.113.7"
SPACE = "ctr-registries"


class Houses(NamedTuple):
    """Registries with the same image: one wants TLS with a client's certificate, one speaks HTTP."""

    tls: str
    plain: str
    files: Path


def openssl(*words: str) -> None:
    peers.run("openssl", *words)


def certificates(folder: Path) -> None:
    """ca.pem; server.pem and client.pem of it, with their keys; both.pem is the client's with its key."""

    def key_and_request(name: str) -> None:
        openssl(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            f"{folder}/{name}.key",
            "-out",
            f"{folder}/{name}.csr",
            "-subj",
            f"/CN={name}",
        )

    openssl(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        f"{folder}/ca.key",
        "-out",
        f"{folder}/ca.pem",
        "-subj",
        "/CN=authority",
        "-days",
        "30",
    )
    (folder / "names").write_text(f"subjectAltName=IP:{HOST}\n")
    for name, more in (("server", ["-extfile", f"{folder}/names"]), ("client", [])):
        key_and_request(name)
        openssl(
            "x509",
            "-req",
            "-in",
            f"{folder}/{name}.csr",
            "-CA",
            f"{folder}/ca.pem",
            "-CAkey",
            f"{folder}/ca.key",
            "-CAcreateserial",
            "-days",
            "30",
            "-out",
            f"{folder}/{name}.pem",
            *more,
        )
    (folder / "both.pem").write_text((folder / "client.pem").read_text() + (folder / "client.key").read_text())


@pytest.fixture(scope="module")
def teu() -> Iterator[Side]:
    yield Side("teu", OURS)
    for space in (SPACE, SPACE + "-ours"):
        for image in peers.run(TEU_CTR, "-n", space, "images", "ls", "-q").stdout.split():
            peers.run(TEU_CTR, "-n", space, "images", "rm", "--sync", image)
        peers.run(TEU_CTR, "namespaces", "rm", space, code=None)


@pytest.fixture(scope="module")
def houses(teu: Side, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Houses]:
    folder = tmp_path_factory.mktemp("tls")
    certificates(folder)
    peers.run("ip", "address", "add", f"{HOST}/32", "dev", "lo")
    tls = {"certificate": f"{folder}/server.pem", "key": f"{folder}/server.key", "clientcas": [f"{folder}/ca.pem"]}
    shown = ["--tlscacert", f"{folder}/ca.pem", "--tlscert", f"{folder}/client.pem", "--tlskey", f"{folder}/client.key"]
    try:
        with peers.registry(HOST) as plain, peers.registry(HOST, tls) as guarded:
            peers.run(*asked("ctr", teu, "images", "import", str(peers.archive())))
            pushes = (("ctr", plain.address, ["--plain-http"]), (TEU_CTR, guarded.address, shown))
            for program, address, options in pushes:
                name = f"{address}/there/busybox:1"
                peers.run(*asked("ctr", teu, "images", "tag", peers.IMAGE, name))
                peers.run(*asked(program, teu, "images", "push", *options, name))
            yield Houses(guarded.address, plain.address, folder)
    finally:
        peers.run("ip", "address", "del", f"{HOST}/32", "dev", "lo")


def asked(program: str, side: Side, *words: str, space: str = SPACE) -> list[str]:
    """The whole command line of `ctr` or `teu-ctr`."""
    return [program, "-a", side.address, "-n", space, *(peers.as_of_ours(words) if program == "ctr" else words)]


def answers(side: Side, *words: str) -> dict[str, tuple[int, str]]:
    """Of `ctr` and of `teu-ctr`, each in a namespace of its own: exit code and what it says on standard error."""
    found = {}
    for program, space in (("ctr", SPACE), (TEU_CTR, SPACE + "-ours")):
        with contextlib.suppress(peers.Failed):
            peers.run(*asked(program, side, "images", "rm", "--sync", words[-1], space=space))
        done = peers.run(*asked(program, side, *words, space=space), code=None)
        found[program] = (done.returncode, normal(done.stderr))
    return found


def hosts(folder: Path, name: str, text: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "hosts.toml").write_text(text)
    return folder


# What follows `images pull`; whether it works. TLS and PLAIN are the addresses, FILES the folder of certificates.
PULLS = """
fails | TLS/there/busybox:1
fails | -k TLS/there/busybox:1
fails | --tlscacert FILES/ca.pem TLS/there/busybox:1
works | --tlscacert FILES/ca.pem --tlscert FILES/client.pem --tlskey FILES/client.key TLS/there/busybox:1
works | -k --tlscert FILES/client.pem --tlskey FILES/client.key TLS/there/busybox:1
fails | --tlscert FILES/client.pem --tlskey FILES/client.key TLS/there/busybox:1
fails | --plain-http TLS/there/busybox:1
fails | PLAIN/there/busybox:1
fails | -k PLAIN/there/busybox:1
works | --plain-http PLAIN/there/busybox:1
works | -k --plain-http PLAIN/there/busybox:1
fails | --plain-http PLAIN/there/none:1
"""
# The same, where the words are ctr's as well.
COMPLAINTS = """
--tlscert FILES/client.pem TLS/there/busybox:1
--tlskey FILES/client.key TLS/there/busybox:1
--tlscacert FILES/none.pem TLS/there/busybox:1
--tlscacert FILES/client.key TLS/there/busybox:1
--tlscert FILES/none.pem --tlskey FILES/client.key TLS/there/busybox:1
"""


def filled(line: str, houses: Houses) -> list[str]:
    for name, value in (("TLS", houses.tls), ("PLAIN", houses.plain), ("FILES", str(houses.files))):
        line = line.replace(name, value)
    return line.split()


@pytest.mark.timeout(400)
def test_who_is_spoken_to(teu: Side, houses: Houses) -> None:
    for line in PULLS.strip().splitlines():
        works, _, words = line.partition(" | ")
        for program, (code, told) in answers(teu, "images", "pull", *filled(words, houses)).items():
            assert (code == 0) == (works == "works"), f"{program} {words}: {told}"
    for line in COMPLAINTS.strip().splitlines():
        found = answers(teu, "images", "pull", *filled(line, houses))
        assert found[TEU_CTR] == found["ctr"], line
        assert found["ctr"][0] == 1


HOSTS_DIRS = {
    "certificates by port": ("TLS/there/busybox:1", "203.0.113.7_PORT_", ""),
    "certificates": ("TLS/there/busybox:1", "TLS", ""),
    "hosts.toml": (
        "TLS/there/busybox:1",
        "TLS",
        'ca = "../../ca.pem"\nclient = [["../../client.pem", "../../client.key"]]\n[host]',
    ),
    "one file": ("TLS/there/busybox:1", "TLS", 'skip_verify = true\nclient = "../../both.pem"\n[host]'),
    "not verified": ("TLS/there/busybox:1", "TLS", 'client = "../../both.pem"\n[host]'),
    "the default": ("TLS/there/busybox:1", "_default", 'ca = "FILES/ca.pem"\nclient = "../../both.pem"\n[host]'),
    "another place": ("far.example/there/busybox:1", "far.example", '[host."http://PLAIN"]\n'),
    "the second place": (
        "far.example/there/busybox:1",
        "far.example",
        '[host."http://203.0.113.7:9"]\n[host."http://PLAIN"]\n',
    ),
    "not to be trusted with tags": (
        "far.example/there/busybox:1",
        "far.example",
        'server = "http://203.0.113.7:9"\n[host."http://PLAIN"]\ncapabilities = ["pull"]\n',
    ),
    "nowhere": ("far.example/there/busybox:1", "far.example", 'server = "http://203.0.113.7:9"\n[host]\n'),
    "no such file": ("TLS/there/busybox:1", "TLS", 'ca = "none.pem"\n[host]'),
    "what is no file of hosts": ("PLAIN/there/busybox:1", "PLAIN", "a = ["),
    "nothing for it": ("PLAIN/there/busybox:1", "some.example", '[host."http://PLAIN"]\n'),
}
WORKING = (
    "certificates by port",
    "certificates",
    "hosts.toml",
    "one file",
    "the default",
    "another place",
    "the second place",
)


@pytest.mark.parametrize("case", HOSTS_DIRS)
def test_folders_of_hosts(teu: Side, houses: Houses, case: str) -> None:
    image, place, text = (
        word.replace("PORT", houses.tls.rpartition(":")[2])
        .replace("FILES", str(houses.files))
        .replace("TLS", houses.tls)
        .replace("PLAIN", houses.plain)
        for word in HOSTS_DIRS[case]
    )
    folder = hosts(houses.files / case.replace(" ", "-"), place, text)
    if case.startswith("certificates"):
        for name, source in (("ca.crt", "ca.pem"), ("client.cert", "client.pem"), ("client.key", "client.key")):
            (folder / place / name).write_text((houses.files / source).read_text())
        (folder / place / "hosts.toml").unlink()
    works = case in WORKING
    for program, (code, told) in answers(teu, "images", "pull", "--hosts-dir", str(folder), image).items():
        assert (code == 0) == works, f"{program}: {told}"
    # the daemon itself, asked as clients of containerd 2 ask it
    source = registry_pb2.OCIRegistry(reference=image, resolver=registry_pb2.RegistryResolver(host_dir=str(folder)))
    wanted = transfer_pb2.TransferRequest()
    for field, message in ((wanted.source, source), (wanted.destination, imagestore_pb2.ImageStore(name=image))):
        field.type_url = message.DESCRIPTOR.full_name
        field.value = message.SerializeToString()
    with grpc.insecure_channel(f"unix:{OURS}") as channel:
        call = transfer_pb2_grpc.TransferStub(channel).Transfer
        try:
            call(wanted, metadata=[("containerd-namespace", SPACE)], timeout=60)
        except grpc.RpcError as error:
            assert not works, error
        else:
            assert works


def test_a_mirror_hears_for_whom_it_answers(teu: Side, tmp_path: Path) -> None:
    with ScriptedRegistry() as registry:
        registry.image("there/image", "1")
        folder = hosts(
            tmp_path,
            "far.example",
            f'[host."http://{registry.address}"]\n[host."http://{registry.address}".header]\nX-Who = ["teu"]\n',
        )
        for program in ("ctr", TEU_CTR):
            registry.requests.clear()
            argv = [program, "-a", teu.address, "-n", SPACE, "content", "fetch-object", "--hosts-dir", str(folder)]
            peers.run(*argv, "far.example/there/image:1")
            assert registry.requests, program
            for _method, path, headers in registry.requests:
                assert path.endswith("?ns=far.example"), program
                assert {name.lower(): value for name, value in headers.items()}["x-who"] == "teu", program


def test_what_is_shown_of_the_exchanges(teu: Side, houses: Houses) -> None:
    name = f"{houses.plain}/there/busybox:1"
    for program in ("ctr", TEU_CTR):
        argv = [program, "--debug", "-a", teu.address, "-n", SPACE, "content", "fetch-object", "--plain-http"]
        done = peers.run(*argv, "--http-dump", name)
        assert '"schemaVersion"' in done.stdout
        # what ctr shows last can be lost at its end
        more = ["HTTP/1.1 200 OK", "schemaVersion"] if program == TEU_CTR else []
        for wanted in ("/v2/there/busybox/manifests/1 HTTP/1.1", f"Host: {houses.plain}", *more):
            assert wanted in done.stderr, program
        assert "Connection successful" not in done.stderr
    peers.run(*asked("ctr", teu, "images", "tag", "--force", peers.IMAGE, name))
    for program in ("ctr", TEU_CTR):
        _, *words = asked(program, teu, "images", "push", "--plain-http", "--http-trace", name)
        trace = peers.run(program, "--debug", *words).stderr
        assert re.search(rf'level=debug msg="Connection successful".* remote_addr="{re.escape(houses.plain)}"', trace)
        assert "HTTP/1.1" not in trace, program
