# SPDX-License-Identifier: Apache-2.0
"""Modules of teu-ctr one by one, with as much of a daemon, a registry or a shim as each of them asks for."""

from __future__ import annotations

import hashlib
import http.server
import json
import socketserver
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("grpc")

from memorydaemon import MemoryDaemon, Service, digest_of

from teu.api.services.images.v1 import images_pb2
from teu.api.services.introspection.v1 import introspection_pb2
from teu.api.services.sandbox.v1 import sandbox_pb2
from teu.api.types import descriptor_pb2, platform_pb2
from teu.ctr import about, checkpoint, convert, images, leases, pprof, sandboxes, shim, transfer
from teu.ctr.commands import Ctr
from teu.ctr.errors import CommandError, NotFound
from teu.ctr.flags import Options
from teu.ctr.progress import Progress
from teu.oci import distribution, image_spec, reference
from teu.ttrpc.status import StatusError


@pytest.fixture
def daemon() -> MemoryDaemon:
    return MemoryDaemon()


def given(options: dict[str, Any]) -> Options:
    made = Options()
    made.update(options)
    return made


def context(daemon: Any = None, **options: Any) -> Ctr:
    made = Ctr(given({"namespace": "default", "address": "/run/c.sock", "debug": False, **options}))
    made._client = daemon
    return made


# about ------------------------------------------------------------------------------------------------------


def test_plugins_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    linux = platform_pb2.Platform(os="linux", architecture="arm64", variant="v8")
    good = introspection_pb2.Plugin(type="io.t", id="good", requires=["io.r"], platforms=[linux, linux])
    good.exports["root"] = "/r"
    bad = introspection_pb2.Plugin(type="io.t", id="bad", capabilities=["a", "b"])
    bad.init_err.code, bad.init_err.message = 12, "no such thing"
    about.show_details([good, bad])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["Type:", "io.t"],
        ["ID:", "good"],
        ["Requires:"],
        ["io.r"],
        ["Platforms:", "linux/arm64/v8"],
        ["Exports:"],
        ["root", "/r"],
        [],
        ["Type:", "io.t"],
        ["ID:", "bad"],
        ["Capabilities:", "a,b"],
        ["Error:"],
        ["Code:", "Unimplemented"],
        ["Message:", "no", "such", "thing"],
    ]


def test_the_status_of_plugins(capsys: pytest.CaptureFixture[str], daemon: MemoryDaemon) -> None:
    skipped, failed = (introspection_pb2.Plugin(type="t", id=name) for name in ("skipped", "failed"))
    skipped.init_err.message, failed.init_err.message = "not here: skip plugin", "broken"
    daemon.plugins = [introspection_pb2.Plugin(type="t", id="well"), skipped, failed]
    about.plugins(context(daemon), given({"quiet": False, "detailed": False}), [])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:] == [["t", "well", "-", "ok"], ["t", "skipped", "-", "skip"], ["t", "failed", "-", "error"]]


def test_a_specification_for_linux_alone(capsys: pytest.CaptureFixture[str]) -> None:
    about.spec(context(), given({"platform": "linux/arm64"}), [])
    assert json.loads(capsys.readouterr().out)["process"]["cwd"] == "/"
    with pytest.raises(CommandError, match="windows"):
        about.spec(context(), given({"platform": "windows"}), [])


# checkpoint -------------------------------------------------------------------------------------------------


def test_a_task_is_paused_while_it_is_saved(daemon: MemoryDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.processes["c"] = SimpleNamespace(status=2)
    daemon.image("img", [b"layer"], ("linux", "amd64"))
    daemon.container_store.kept["c"] = SimpleNamespace(image="img", snapshot_key="", snapshotter="")
    memory = descriptor_pb2.Descriptor(media_type=checkpoint.MEMORY, digest=daemon.blob(b"pages"), size=5)
    daemon.tasks._methods["Checkpoint"] = lambda request: SimpleNamespace(descriptors=[memory])
    options = given({"exit": False, "image-path": "", "work-path": ""})
    checkpoint.checkpoint_task(context(daemon), options, ["c"])
    name = capsys.readouterr().out.strip()
    assert name.startswith("containerd.io/checkpoint/c:")
    called = daemon.called()
    assert called.index("tasks.Pause") < called.index("tasks.Checkpoint") < called.index("tasks.Resume")
    target = daemon.image_store.kept[name].target
    index = json.loads(daemon.blobs[target.digest])
    assert [part["digest"] for part in index["manifests"]] == [
        memory.digest,
        daemon.image_store.kept["img"].target.digest,
    ]
    kept = daemon.infos.kept[target.digest].labels
    assert set(kept.values()) == {part["digest"] for part in index["manifests"]}, "its parts are no garbage"
    assert index["annotations"] == {"image.name": "img"}


def test_a_task_goes_on_when_it_cannot_be_saved(daemon: MemoryDaemon) -> None:
    def refuse(request: Any) -> None:
        raise CommandError("no criu here")

    daemon.processes["c"] = SimpleNamespace(status=2)
    daemon.container_store.kept["c"] = SimpleNamespace(image="", snapshot_key="")
    daemon.tasks._methods["Checkpoint"] = refuse
    options = given({"exit": False, "image-path": "", "work-path": ""})
    with pytest.raises(CommandError, match="no criu here"):
        checkpoint.checkpoint_task(context(daemon), options, ["c"])
    assert daemon.called()[-1] == "tasks.Resume"


# convert ----------------------------------------------------------------------------------------------------


def test_documents_are_spelt_as_go_spells_them() -> None:
    """The digest of a converted image is ctr's own: the order of members, and what Go's encoder escapes."""
    document = {"layers": [], "annotations": {"b": "<&>", "a": "\u2028ü"}, "mediaType": "m", "schemaVersion": 2}
    assert (
        convert.encoded(document)
        == (
            '{"schemaVersion":2,"mediaType":"m","layers":[],"annotations":{"a":"\\u2028ü","b":"\\u003c\\u0026\\u003e"}}'
        ).encode()
    )
    assert list(json.loads(convert.encoded({"variant": "v8", "os": "linux", "architecture": "arm64"}))) == [
        "architecture",
        "os",
        "variant",
    ]


def test_an_index_of_fewer_platforms_forgets_the_others(daemon: MemoryDaemon) -> None:
    entries = []
    for machine in ("amd64", "arm64"):
        target = daemon.image(machine, [machine.encode()], ("linux", machine))
        entries.append({**target, "platform": {"os": "linux", "architecture": machine}})
    data = json.dumps({"schemaVersion": 2, "mediaType": image_spec.OCI_INDEX, "manifests": entries}).encode()
    kept = {f"containerd.io/gc.ref.content.m.{number}": each["digest"] for number, each in enumerate(entries)}
    index = {"mediaType": image_spec.OCI_INDEX, "digest": daemon.blob(data, kept), "size": len(data)}
    client: Any = daemon
    wanted = [image_spec.Platform("linux", "arm64", "v8")]
    found = convert.Converter(client, uncompress=False, to_oci=False, wanted=wanted).convert(index)
    assert found is not None
    assert [each["digest"] for each in json.loads(daemon.blobs[found["digest"]])["manifests"]] == [entries[1]["digest"]]
    assert list(daemon.infos.kept[found["digest"]].labels.values()) == [entries[1]["digest"]]
    assert convert.Converter(client, uncompress=False, to_oci=False, wanted=None).convert(index) is None


# images -----------------------------------------------------------------------------------------------------


def test_an_image_is_shown_as_a_tree(daemon: MemoryDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a platform that is not here only what the index says of it."""
    target = daemon.image("x", [b"one", b"two"], ("linux", "amd64"))
    entries = [
        {**target, "platform": {"os": "linux", "architecture": "amd64"}},
        {**target, "digest": digest_of(b"away"), "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}},
    ]
    data = json.dumps({"schemaVersion": 2, "mediaType": image_spec.OCI_INDEX, "manifests": entries}).encode()
    index = descriptor_pb2.Descriptor(media_type=image_spec.OCI_INDEX, digest=daemon.blob(data), size=len(data))
    daemon.image_store.kept["many"] = images_pb2.Image(name="many", target=index, labels={"a": "b"})
    images.inspect(context(daemon), given({"content": False}), ["many"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "many" and shown[3] == '│    Label "a": "b"'
    assert shown[4].startswith(f"└── {image_spec.OCI_INDEX} @{index.digest} (")
    marks = [line[: len(line) - len(line.lstrip("│├└─ "))] for line in shown[5:]]
    assert marks == [
        "    ├── ",
        "    │   │    ",
        "    │   ├── ",
        "    │   ├── ",
        "    │   └── ",
        "    └── ",
        "        │    ",
        "        └──  ",
    ]
    assert shown[6].endswith("Platform: linux/amd64") and shown[11].endswith("Platform: linux/arm/v7")
    assert shown[12].endswith("Content does not exist locally, skipping")
    images.inspect(context(daemon), given({"content": True}), ["many"])
    assert '    │   │"mediaType"' in capsys.readouterr().out.replace('│   "', '│"')


def test_names_are_references_where_nobody_says_otherwise(daemon: MemoryDaemon) -> None:
    daemon.image("x", [b"one"], ("linux", "amd64"))
    options = {"force": False, "skip-reference-check": False}
    with pytest.raises(CommandError, match='error parsing reference: "not:a:name" is not a valid repository/tag'):
        images.tag(context(daemon), given(options), ["x", "not:a:name"])
    images.tag(context(daemon), given({**options, "skip-reference-check": True}), ["x", "not:a:name"])
    assert "not:a:name" in daemon.image_store.kept


# leases -----------------------------------------------------------------------------------------------------


def test_times_of_leases_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for zone, text in (("UTC", "2023-11-14T22:13:20Z"), ("IST-5:30", "2023-11-15T03:43:20+05:30")):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            assert leases.local(1_700_000_000) == text
    finally:
        monkeypatch.undo()
        time.tzset()


# pprof ------------------------------------------------------------------------------------------------------


def test_a_profile_is_what_the_socket_serves(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if "/heap" in self.path else 404)
            self.send_header("Content-Length", "3")
            self.end_headers()
            self.wfile.write(b"\x00\xff!")

        def log_message(self, *_: Any) -> None: ...

    path = str(tmp_path / "debug.sock")
    options = given({"debug": 1, "debug-socket": path, "seconds": 2.5})
    with pytest.raises(CommandError, match=f"dial unix {path}: connect: no such file or directory"):
        pprof.show("heap", context(), options, [])
    with socketserver.ThreadingUnixStreamServer(path, Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        pprof.show("heap", context(), options, [])
        assert capfdbinary.readouterr().out == b"\x00\xff!"
        with pytest.raises(CommandError, match="http get failed with status: 404"):
            pprof.show("block", context(), options, [])
        server.shutdown()
    assert asked[0] == "/debug/pprof/heap?seconds=2.5&debug=1"


# sandboxes --------------------------------------------------------------------------------------------------


class Sandboxes:
    """The sandbox store and controller of a daemon; `refuse` has the controller's methods that fail, and how."""

    def __init__(self, **refuse: CommandError) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.kept: dict[str, Any] = {}

        def controller(name: str) -> Any:
            def method(request: Any) -> None:
                if name in refuse:
                    raise refuse[name]

            return method

        def get(request: Any) -> Any:
            if request.sandbox_id not in self.kept:
                raise NotFound(f"sandbox {request.sandbox_id}: not found")
            return sandbox_pb2.StoreGetResponse(sandbox=self.kept[request.sandbox_id])

        store = {
            "Create": lambda request: self.kept.update({request.sandbox.sandbox_id: request.sandbox}),
            "Delete": lambda request: self.kept.pop(request.sandbox_id),
            "Get": get,
        }
        names = ("Create", "Start", "Status", "Stop", "Shutdown")
        self.sandboxes = Service("store", self.calls, store)
        self.sandbox_controller = Service("controller", self.calls, {name: controller(name) for name in names})

    def called(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def pod(tmp_path: Path) -> str:
    file = tmp_path / "pod.json"
    file.write_text('{"hostname": "h"}')
    return str(file)


def test_a_sandbox_is_recorded_and_started(pod: str, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = Sandboxes()
    sandboxes.run(context(daemon), given({"runtime": "io.containerd.teu.v2"}), [pod, "s"])
    assert capsys.readouterr().out == "s\n"
    assert daemon.called() == ["store.Create", "controller.Create", "controller.Start"]
    assert json.loads(daemon.kept["s"].spec.value) == {"hostname": "h"}
    assert daemon.kept["s"].runtime.name == "io.containerd.teu.v2"
    assert [request.sandboxer for _, request in daemon.calls[1:]] == ["shim"] * 2, (
        "containerd 2 has several controllers"
    )
    assert daemon.kept["s"].sandboxer == "shim"


@pytest.mark.parametrize(("kept", "asked"), [("", "shim"), ("podsandbox", "podsandbox")])
def test_a_sandbox_is_removed_by_the_controller_that_has_made_it(kept: str, asked: str) -> None:
    daemon = Sandboxes()
    daemon.kept["a"] = sandbox_pb2.StoreCreateRequest(sandbox={"sandboxer": kept}).sandbox
    sandboxes.remove(context(daemon), given({"force": False}), ["a"])
    assert [name for name, _ in daemon.calls[1:4]] == ["controller.Status", "controller.Stop", "controller.Shutdown"]
    assert [request.sandboxer for _, request in daemon.calls[1:4]] == [asked] * 3
    assert not daemon.kept


def test_a_sandbox_that_does_not_start_leaves_nothing(pod: str) -> None:
    daemon = Sandboxes(Start=CommandError("no network"))
    with pytest.raises(CommandError, match="failed to start: no network"):
        sandboxes.run(context(daemon), given({"runtime": "r"}), [pod, "s"])
    assert daemon.called()[-2:] == ["controller.Shutdown", "store.Delete"]
    assert not daemon.kept
    told = Sandboxes(Start=CommandError("invalid envelope topic"))
    sandboxes.run(context(told), given({"runtime": "r"}), [pod, "s"])
    assert told.kept, "containerd 1.7 calls this a failure though the sandbox runs"


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="failed to read sandbox config: open .*: no such file or directory"):
        sandboxes.run(context(Sandboxes()), given({"runtime": "r"}), [str(tmp_path / "none"), "s"])
    (tmp_path / "bad").write_text("{")
    with pytest.raises(CommandError, match="failed to parse sandbox config"):
        sandboxes.run(context(Sandboxes()), given({"runtime": "r"}), [str(tmp_path / "bad"), "s"])


@pytest.mark.parametrize(("force", "kept"), [(False, ["a"]), (True, [])])
def test_a_sandbox_that_does_not_stop(force: bool, kept: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    daemon = Sandboxes(Stop=CommandError("it hangs"))
    daemon.kept["a"] = sandbox_pb2.StoreCreateRequest().sandbox
    sandboxes.remove(context(daemon), given({"force": force}), ["unknown", "a"])
    told = capsys.readouterr().err
    assert "failed to load sandbox unknown" in told and "it hangs" in told
    assert ("deleted: a" in told) is force
    assert list(daemon.kept) == kept


# shim -------------------------------------------------------------------------------------------------------


def test_where_a_shim_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bundle says, else the name that containerd's shims give their socket by rule."""
    monkeypatch.setattr(shim.glob, "glob", lambda pattern: [str(tmp_path)] if pattern.startswith("/run/*/*/d") else [])
    (tmp_path / "address").write_text("unix:///run/old\n")
    assert shim.address_of(context(), "c") == "unix:///run/old"
    (tmp_path / "bootstrap.json").write_text('{"version": 3, "address": "unix:///run/new", "protocol": "ttrpc"}')
    assert shim.address_of(context(), "c") == "unix:///run/new"
    monkeypatch.setattr(shim.glob, "glob", lambda pattern: [])
    wanted = "/run/teu/s/" + hashlib.sha256(b"/run/c.sock/default/c").hexdigest()
    monkeypatch.setattr(shim.Path, "exists", lambda path: str(path) == wanted)
    assert shim.address_of(context(), "c") == f"unix://{wanted}"
    with pytest.raises(
        CommandError, match=r"fail to connect to container shim with sockets: \[/run/containerd/s/\w+ /run/teu/s/\w+\]"
    ):
        shim.address_of(context(), "other")


class Connection:
    """A shim that speaks one version of the task API."""

    def __init__(self, speaks: str) -> None:
        self.speaks = speaks
        self.calls: list[tuple[str, str]] = []
        self.closed = False

    async def task(self, service: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
        self.calls.append((service, method))
        if service != self.speaks:
            raise StatusError(12, f"service {service}")
        return {"id": request["id"], "status": 2, "pid": 7, "exited_at": {"seconds": 0}, "stdin": ""}

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("speaks", shim.SERVICES)
def test_a_shim_is_spoken_to_in_its_version(
    speaks: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = Connection(speaks)

    async def connect(address: str) -> Connection:
        return connection

    monkeypatch.setattr(shim, "address_of", lambda ctr, identity: "unix:///s")
    monkeypatch.setattr(shim.ttrpc, "connect", connect)
    options = {"id": "c", "shim-address": "", "api-version": 3}
    shim.state(context(), given(options), [])
    assert json.loads(capsys.readouterr().out) == {"id": "c", "status": 2, "pid": 7}
    assert connection.calls[-1] == (speaks, "State") and connection.closed
    with pytest.raises(CommandError, match=r"shim ID \(--id\) or address \(--shim-address\) must be specified"):
        shim.state(context(), given({**options, "id": ""}), [])
    asked = given({**options, "api-version": 2, "task-id": "other"})
    asked.changed.add("api-version")
    if speaks == shim.SERVICES[0]:
        shim.state(context(), asked, [])
        assert json.loads(capsys.readouterr().out)["id"] == "other"
    else:
        with pytest.raises(CommandError, match="service containerd.task.v2.Task"):
            shim.state(context(), asked, [])


# transfer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["busybox", "library/busybox:1", "docker.io/UPPER:1", "localhost/x:ta g"])
def test_names_that_are_not_whole(text: str) -> None:
    with pytest.raises(CommandError, match="failed to resolve reference"):
        transfer.parse_reference(text)


def test_names_of_parts() -> None:
    for kind, name in (
        (image_spec.OCI_INDEX, "index"),
        (image_spec.DOCKER_MANIFEST, "manifest"),
        (image_spec.OCI_LAYER_GZIP, "layer"),
        (image_spec.OCI_CONFIG, "config"),
    ):
        assert transfer.part_name({"mediaType": kind, "digest": "sha256:x"}) == f"{name}-sha256:x"


def test_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.getpass, "getpass", lambda prompt: "typed")
    cases = {("", ""): None, ("u:p:q", ""): ("u", "p:q", ""), ("u", ""): ("u", "typed", ""), ("", "t"): ("", "", "t")}
    for (user, refresh), wanted in cases.items():
        found = transfer.credentials(given({"user": user, "refresh": refresh}))
        assert (found[:3] if found else None) == wanted


def test_files_for_tls_are_missed_before_anything_is_asked(tmp_path: Path) -> None:
    none = {"tlscacert": "", "tlscert": "", "tlskey": ""}
    assert transfer.check_tls(given(none)) == ()
    with pytest.raises(CommandError, match="must be set together"):
        transfer.check_tls(given({**none, "tlscert": "c"}))
    with pytest.raises(CommandError, match="open /no/k: no such file|open /no/c: no such file"):
        transfer.check_tls(given({**none, "tlscert": "/no/c", "tlskey": "/no/k"}))
    (tmp_path / "ca").write_text("no certificate")
    with pytest.raises(CommandError, match="failed to load TLS CAs .*: invalid data"):
        transfer.check_tls(given({**none, "tlscacert": str(tmp_path / "ca")}))
    with pytest.raises(CommandError, match='failed to read "/no/ca": open /no/ca: no such file or directory'):
        transfer.check_tls(given({**none, "tlscacert": "/no/ca"}))


class Registry:
    """An image's parts as a registry has them."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs
        self.asked: list[str] = []

    def manifest(self, repository: str, digest: str) -> tuple[str, bytes]:
        self.asked.append(digest)
        return "", self.blobs[digest]

    def blob(self, repository: str, descriptor: dict[str, Any], offset: int) -> list[bytes]:
        self.asked.append(descriptor["digest"])
        return [self.blobs[descriptor["digest"]][offset:]]


def test_an_image_is_fetched_once_and_keeps_its_parts(daemon: MemoryDaemon) -> None:
    there = MemoryDaemon()
    target = there.image("x", [b"one", b"two", b"one"], ("linux", "amd64"))
    registry: Any = Registry(there.blobs)
    parsed = reference.parse("example.org/a/b:1")
    client: Any = daemon
    fetcher = transfer.Fetcher(client, registry, parsed, Progress(), jobs=2)
    fetcher.tree(target, lambda entries: entries)
    assert sorted(registry.asked) == sorted(there.blobs), "each part once"
    assert daemon.blobs == there.blobs
    labels = daemon.infos.kept[target["digest"]].labels
    assert {digest_of(b"one"), digest_of(b"two")} < set(labels.values())
    assert labels["containerd.io/distribution.source.example.org"] == "a/b"
    fetcher.tree(target, lambda entries: entries)
    assert len(registry.asked) == len(there.blobs), "what is here is not asked for again"


def test_of_other_platforms_no_layers_are_fetched(daemon: MemoryDaemon) -> None:
    there = MemoryDaemon()
    entries = [
        {**there.image(name, [name.encode()], (name, "amd64")), "platform": {"os": name, "architecture": "amd64"}}
        for name in ("plan9", "linux")
    ]
    data = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    index = {"mediaType": image_spec.OCI_INDEX, "digest": there.blob(data), "size": len(data)}
    client: Any = daemon
    registry: Any = Registry(there.blobs)
    fetcher = transfer.Fetcher(client, registry, reference.parse("example.org/a:1"), Progress(), jobs=0)

    def choice(platform: str) -> Any:
        return transfer.platform_choice(given({"all-platforms": False, "platform": [platform]}))

    with pytest.raises(NotFound, match="no manifest of the image fits"):
        fetcher.tree(index, choice("linux/riscv64"))
    fetcher.tree(index, choice("linux/amd64"), "all-metadata")
    assert set(there.blobs) - set(daemon.blobs) == {digest_of(b"plan9")}


def test_what_is_pushed(daemon: MemoryDaemon) -> None:
    client: Any = daemon
    target = daemon.image("x:1", [b"one"], ("linux", "amd64"))
    nothing = {"manifest": "", "manifest-type": "t", "platform": []}
    assert transfer.push_target(client, given(nothing), "x:1")["digest"] == target["digest"]
    chosen = transfer.push_target(client, given({**nothing, "manifest": target["digest"]}), "x:1")
    assert chosen == {"mediaType": "t", "digest": target["digest"], "size": target["size"]}
    with pytest.raises(NotFound, match="unable to resolve image to manifest"):
        transfer.push_target(client, given(nothing), "other")


def test_a_reference_that_a_registry_does_not_have() -> None:
    def resolve(path: str, wanted: str) -> Any:
        raise distribution.NotFound("404") if wanted == "gone" else distribution.RegistryError("500: broken")

    registry: Any = SimpleNamespace(resolve=resolve)
    for tag, told in (("gone", "x.org/a:gone: not found"), ("b", "500: broken")):
        text = f"x.org/a:{tag}"
        with pytest.raises(CommandError, match=told):
            transfer.resolve(registry, reference.parse(text), text)
    with pytest.raises(CommandError, match="object required"):
        transfer.resolve(registry, reference.parse("x.org/a"), "x.org/a")
