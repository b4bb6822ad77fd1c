# SPDX-License-Identifier: Apache-2.0
"""Containers of pods that go on from checkpoints, and whole pods.

criu writes to /proc/sys when it restores, which is not to be written to in the namespace lab: the daemons have a mount
namespace with a /proc of its own there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crihouse
import peers
import pytest
from crihouse import Client
from lab_kind import which_lab
from test_containerd_checkpoint import OWN_PROC, started_by
from test_cri_checkpoint import read

from teu.api.cri.v1 import cri_pb2 as cri

pytestmark = [pytest.mark.needs("criu", "containerd", "ctr", "systemd", "trixie"), pytest.mark.timeout(300)]

# It counts in memory, into its log, and into a link (a file would be its 1 for a moment); it has changed its root file
# system; it waits for a word.
COUNT = """n=0; rm /bin/yes; mkdir /made; echo kept > /made/file
while :; do n=$((n+1)); ln -sfn $n /data/count; echo $n; sleep 0.05; done"""
HANDLERS = "  runtimes:\n    runc: {binary: runc}\n    crun: {binary: crun}\n    shim: {shim: io.containerd.runc.v2}\n"


@pytest.fixture(scope="module", autouse=True)
def own_proc() -> Iterator[None]:
    if which_lab() != "namespace":
        yield
        return
    # One for all of them: a daemon finds what the one before it has mounted.
    keeper = subprocess.Popen([*OWN_PROC, "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE)
    try:
        assert keeper.stdout is not None and keeper.stdout.readline()
        enter = ["nsenter", "--target", str(keeper.pid), "--mount"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(peers.Containerd, "start", started_by(enter), raising=False)
            yield
    finally:
        keeper.kill()
        keeper.wait()


@pytest.fixture(scope="module")
def one(own_proc: None) -> Iterator[Client]:
    with crihouse.ours(HANDLERS) as client:
        yield client


def again(one: Client, more: str = HANDLERS) -> None:
    """Kill the daemon, and start another."""
    one.daemon.kill()
    assert isinstance(one.daemon, crihouse.TeuContainerd)
    crihouse.launch(one.daemon, one.folder, more)
    one.connect()


def numbers(one: Client, pod: Any, name: str = "c") -> list[int]:
    """What a container has counted in its log."""
    return [int(text) for _, _, text in one.log(pod, name)]


def counts_on(one: Client, pod: Any, name: str = "c") -> None:
    before = len(numbers(one, pod, name))
    peers.wait_until(lambda: len(numbers(one, pod, name)) > before + 3, "it counts on")


def data(one: Client, name: str) -> list[dict[str, Any]]:
    """A folder of the host's, as a mount."""
    folder = one.folder / f"data-{name}"
    folder.mkdir(exist_ok=True)
    return [{"container_path": "/data", "host_path": str(folder)}]


def saved(one: Client, place: Path, name: str = "saved") -> tuple[Any, int]:
    """(pod, number that it has counted to) of a container that was saved, and removed."""
    pod = one.run_pod(name)
    id = one.run_container(pod, "c", ["sh", "-c", COUNT], mounts=data(one, name))
    peers.wait_until(lambda: len(numbers(one, pod)) > 3, "it counts")
    one.call("CheckpointContainer", container_id=id, location=str(place), timeout=60)
    log = read(place)["container.log"].decode().splitlines()
    one.call("RemoveContainer", container_id=id)
    return pod, int(log[-1].split()[-1])


@pytest.fixture(scope="module")
def archive(one: Client, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """An archive, and the number that it has counted to."""
    place = tmp_path_factory.mktemp("archive") / "a.tar"
    pod, number = saved(one, place)
    one.remove_pod(pod)
    return place, number


def nothing_is_left(one: Client, id: str) -> None:
    root, run = one.daemon.state / "root", one.daemon.run / "state"
    assert not list(root.glob(f"cri/{id}*")) and not list(run.glob(f"cri/{id}*"))
    assert id not in one.daemon("-n", "k8s.io", "snapshots", "ls") + one.daemon(
        "-n", "k8s.io", "containers", "ls", "-q"
    )
    assert peers.run("systemctl", "is-active", f"cri-containerd-{id}.scope", code=None).stdout.strip() == "inactive"


def test_a_container_goes_on(one: Client, archive: tuple[Path, int], tmp_path: Path) -> None:
    place, number = archive
    pod = one.run_pod("goes-on")
    beside = one.run_container(pod, "beside", ["sleep", "1000"])
    more = {"mounts": data(one, "goes-on"), "annotations": {"own": "x"}}
    id = one.create(pod, "c", [], str(place), **more)
    assert one.create(pod, "c", [], str(place), **more) == id  # the answer was lost
    status = one.status(id)
    assert status.state == cri.CONTAINER_CREATED and status.image.image == peers.IMAGE
    noted = dict(status.annotations)
    assert noted["restored"] == "true" and noted["checkpointImage"] == str(place) and noted["own"] == "x"
    assert noted["checkpointedAt"]
    again(one)  # it is as much of a container as any
    one.call("StartContainer", container_id=id)
    peers.wait_until(lambda: len(numbers(one, pod)) > number + 3, "it counts on")
    assert numbers(one, pod)[: number + 3] == list(range(1, number + 4))  # its log goes on, without a gap
    where = one.folder / "data-goes-on/count"
    peers.wait_until(lambda: where.is_symlink() and int(where.readlink().name) > number, "in what is mounted now")
    told = one.exec(id, "sh", "-c", "cat /made/file; ls /bin/yes; hostname; ip addr").stdout.decode()
    address = one.call("PodSandboxStatus", pod_sandbox_id=pod[0]).status.network.ip
    assert told.startswith("kept\nhost-goes-on\n") and address in told
    assert one.exec(beside, "hostname").stdout == b"host-goes-on\n"  # which is the pod's, and stays
    pid = json.loads(one.call("ContainerStatus", container_id=id, verbose=True).info["info"])["pid"]
    assert Path(f"/proc/{pid}/cgroup").read_text().strip().endswith(f"cri-containerd-{id}.scope/container") or (
        f"cri-containerd-{id}.scope" in Path(f"/proc/{pid}/cgroup").read_text()
    )
    assert not list((one.daemon.state / "root/cri").glob(f"{id}/saved"))
    again(one)
    assert one.status(id).state == cri.CONTAINER_RUNNING
    counts_on(one, pod)
    # and is saved, and goes on once more
    second = tmp_path / "second.tar"
    one.call("CheckpointContainer", container_id=id, location=str(second), timeout=60)
    counts_on(one, pod)
    one.call("StopContainer", container_id=id, timeout=0)
    assert one.status(id).exit_code == 137 and not Path(f"/proc/{pid}").exists()
    one.call("RemoveContainer", container_id=id)
    nothing_is_left(one, id)
    Path(pod[1].log_directory, "c.log").unlink()
    id = one.run_container(pod, "c", [], str(second), mounts=data(one, "goes-on"))
    peers.wait_until(lambda: len(numbers(one, pod)) > number + 9, "it counts on")
    assert numbers(one, pod)[: number + 9] == list(range(1, number + 10))
    one.remove_pod(pod)
    nothing_is_left(one, id)


def image_of(place: Path, into: Path, name: str) -> Path:
    """An image as checkpointctl makes one of an archive."""
    layer = place.read_bytes()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)

    def digest(text: bytes) -> str:
        return hashlib.sha256(text).hexdigest()

    def descriptor(kind: str, text: bytes, **more: Any) -> dict[str, Any]:
        kind = f"application/vnd.oci.image.{kind}"
        return {"mediaType": kind, "digest": f"sha256:{digest(text)}", "size": len(text), **more}

    rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest(layer)}"]}
    config = json.dumps({"architecture": machine, "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", config),
            "layers": [descriptor("layer.v1.tar", layer)],
            "annotations": {"org.criu.checkpoint.container.name": "c"},
        }
    ).encode()
    notes = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "1"}
    index = {"schemaVersion": 2, "manifests": [descriptor("manifest.v1+json", manifest, annotations=notes)]}
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode()}
    files |= {f"blobs/sha256/{digest(text)}": text for text in (config, layer, manifest)}
    with tarfile.open(into, "w") as made:
        for file, text in files.items():
            entry = tarfile.TarInfo(file)
            entry.size = len(text)
            made.addfile(entry, io.BytesIO(text))
    return into


COPY = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false"]


def test_an_image_of_a_checkpoint(archive: tuple[Path, int], tmp_path: Path) -> None:
    """On a node that has neither it nor the image of which it is; each is let in by the policy, as any other."""
    place, _ = archive
    with peers.registry() as registry:
        base = f"{registry.address}/group/busybox:1"
        policy = tmp_path / "policy.yaml"
        accept, reject = "{require: insecure-accept-anything}", "{require: reject}"
        policy.write_text(f"default: {accept}\n")
        with crihouse.ours(f"image-policy: {policy}\n") as one:
            peers.run(*COPY, f"oci-archive:{peers.busybox_archive(tmp_path / 'b.tar', 'b')}", f"docker://{base}")
            one.call("RemoveImage", image={"image": peers.IMAGE})
            id = one.pull(base)
            [known] = one.call("ImageStatus", image={"image": base}).image.repo_digests
            pod = one.run_pod("first")
            made = one.run_container(pod, "c", ["sh", "-c", COUNT], id, mounts=data(one, "first"))
            peers.wait_until(lambda: len(numbers(one, pod)) > 3, "it counts")
            place = tmp_path / "c.tar"
            one.call("CheckpointContainer", container_id=made, location=str(place))
            name = f"{registry.address}/group/saved:1"
            peers.run(*COPY, f"oci-archive:{image_of(place, tmp_path / 'i.tar', name)}", f"docker://{name}")
            one.remove_pod(pod)
            one.call("RemoveImage", image={"image": id})
            pod = one.run_pod("second")

            policy.write_text(f"default: {reject}\n")
            code, told = one.refused("PullImage", image={"image": name})
            assert code == "UNKNOWN" and told.startswith("SignatureValidationFailed: ")
            policy.write_text(f"default: {reject}\nscopes:\n  {registry.address}/group/saved: {accept}\n")
            image = one.pull(name)
            config = one.container_config("c", [], image, mounts=data(one, "second"))
            code, told = one.refused("CreateContainer", pod_sandbox_id=pod[0], config=config, sandbox_config=pod[1])
            assert "SignatureValidationFailed: " in told and known in told
            policy.write_text(f"default: {accept}\n")
            made = one.run_container(pod, "c", [], image, mounts=data(one, "second"))
            counts_on(one, pod)
            status = one.status(made)
            assert status.image_ref == known and status.annotations["checkpointImage"] == image
            one.remove_pod(pod)


@pytest.mark.needs("newer-docker")
def test_an_archive_of_containerds(own_proc: None, tmp_path: Path) -> None:
    with crihouse.both(newer=True) as (ours, theirs):
        place = tmp_path / "theirs.tar"
        pod, number = saved(theirs, place)
        theirs.remove_pod(pod)
        pod = ours.run_pod("of-theirs")
        id = ours.run_container(pod, "c", [], str(place), mounts=data(ours, "of-theirs"))
        peers.wait_until(lambda: numbers(ours, pod)[-1] > number + 3, "it counts on")
        # Theirs goes on while its log is saved: the last lines may come again.
        assert numbers(ours, pod)[:3] == [1, 2, 3] and numbers(ours, pod).count(1) == 1
        assert ours.exec(id, "hostname").stdout == b"host-of-theirs\n"
        ours.remove_pod(pod)


def changed(place: Path, into: Path, name: str, text: bytes | None) -> Path:
    """An archive with another file in the place of one; None: without it."""
    with tarfile.open(place) as old, tarfile.open(into, "w") as new:
        for member in old:
            if member.name != name:
                new.addfile(member, old.extractfile(member) if member.isfile() else None)
        if text is not None:
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            new.addfile(entry, io.BytesIO(text))
    return into


def test_what_cannot_go_on(one: Client, archive: tuple[Path, int], tmp_path: Path) -> None:
    place, _ = archive
    pod = one.run_pod("refused")

    def refused(image: object, pod: Any = pod, **more: Any) -> tuple[str, str]:
        config = one.container_config("c", [], str(image), **{"mounts": data(one, "refused"), **more})
        return one.refused("CreateContainer", pod_sandbox_id=pod[0], config=config, sandbox_config=pod[1])

    assert refused(tmp_path / "none.tar")[0] == "NOT_FOUND"
    assert refused("/etc/hostname")[0] == "INVALID_ARGUMENT"
    code, told = refused(place, mounts=[])
    assert code == "FAILED_PRECONDITION" and "needs mounts at /data" in told
    code, told = refused(place, linux={"security_context": {"capabilities": {"drop_capabilities": ["CHOWN"]}}})
    assert code == "FAILED_PRECONDITION" and "CAP_CHOWN" in told
    assert refused(place, tty=True)[0] == "FAILED_PRECONDITION"
    evil = tmp_path / "evil.tar"
    assert refused(changed(place, evil, "checkpoint/inventory.img", None))[0] == "INVALID_ARGUMENT"
    config = json.loads(read(place)["config.dump"])
    other = json.dumps({**config, "rootfsImageRef": f"sha256:{'0' * 64}", "rootfsImageName": ""}).encode()
    assert refused(changed(place, evil, "config.dump", other))[0] == "NOT_FOUND"
    for handler in ("runc", "crun", "shim"):
        config = one.pod_config(f"under-{handler}")
        Path(config.log_directory).mkdir()
        under = one.call("RunPodSandbox", config=config, runtime_handler=handler).pod_sandbox_id, config
        code, told = refused(place, under)
        assert code == "FAILED_PRECONDITION" and "give the pod a RuntimeClass whose handler is teu-runc" in told
        one.remove_pod(under)
    # Images that are damaged are criu's to find.
    bad = changed(place, evil, "checkpoint/pstree.img", b"damaged")
    id = one.create(pod, "c", [], str(bad), mounts=data(one, "refused"))
    code, told = one.refused("StartContainer", container_id=id)
    assert code == "UNKNOWN" and "criu failed" in told and "agic" in told  # criu's own words
    assert one.status(id).reason == "StartError"
    one.call("RemoveContainer", container_id=id)
    nothing_is_left(one, id)
    assert not [one for one in (one.daemon.state / "root/cri").glob("*") if one.name != pod[0]]
    one.remove_pod(pod)


def test_no_process_has_more_than_it_is_given(one: Client, tmp_path: Path) -> None:
    """criu's images say what criu gives back, whatever the archive says of itself."""
    place, evil = tmp_path / "a.tar", tmp_path / "evil.tar"
    pod = one.run_pod("rights")
    given = {"capabilities": {"add_capabilities": ["SYS_ADMIN"]}, "no_new_privs": True, "seccomp": {"profile_type": 0}}
    more = {"linux": {"security_context": given}}
    id = one.run_container(pod, "c", ["sh", "-c", "while :; do sleep 0.05; done"], **more)
    one.call("CheckpointContainer", container_id=id, location=str(place))
    one.call("RemoveContainer", container_id=id)
    text = read(place)["spec.dump"].replace(b', "CAP_SYS_ADMIN"', b"").replace(b',"CAP_SYS_ADMIN"', b"")
    assert b"SYS_ADMIN" not in text
    changed(place, evil, "spec.dump", text)
    del given["capabilities"]
    for _ in range(3):
        id = one.create(pod, "c", [], str(evil), **more)
        code, told = one.refused("StartContainer", container_id=id)
        assert code == "UNKNOWN" and "a process with capabilities" in told and "the container is not to have" in told
        one.call("RemoveContainer", container_id=id)
        nothing_is_left(one, id)
    given["capabilities"] = {"add_capabilities": ["SYS_ADMIN"]}
    id = one.run_container(pod, "c", [], str(place), **more)
    assert one.status(id).state == cri.CONTAINER_RUNNING
    told = one.exec(id, "grep", "-E", "^(NoNewPrivs|Seccomp):", "/proc/1/status").stdout.split()
    assert told == [b"NoNewPrivs:", b"1", b"Seccomp:", b"2"]
    one.remove_pod(pod)


def test_a_terminal(one: Client, tmp_path: Path) -> None:
    place = tmp_path / "a.tar"
    pod = one.run_pod("terminal")
    id = one.run_container(pod, "c", ["sh", "-c", COUNT], mounts=data(one, "terminal"), tty=True)
    peers.wait_until(lambda: len(one.log(pod, "c")) > 3, "it counts")
    one.call("CheckpointContainer", container_id=id, location=str(place))
    one.call("RemoveContainer", container_id=id)
    before = len(one.log(pod, "c"))
    one.run_container(pod, "c", [], str(place), mounts=data(one, "terminal"), tty=True)
    peers.wait_until(lambda: len(one.log(pod, "c")) > before + 3, "it counts on")
    one.remove_pod(pod)


@pytest.mark.needs("catatonit")
def test_processes_are_shared(one: Client, tmp_path: Path) -> None:
    """In a pod that has an init for all: what was saved there goes on there, and not in a pod of another kind."""

    def run(name: str) -> Any:
        config = one.pod_config(name)
        config.linux.security_context.namespace_options.pid = cri.POD
        Path(config.log_directory).mkdir(exist_ok=True)
        return one.call("RunPodSandbox", config=config).pod_sandbox_id, config

    def config(command: list[str], image: object) -> Any:
        made = one.container_config("c", command, str(image), mounts=data(one, "shared"))
        made.linux.security_context.namespace_options.pid = cri.POD
        return made

    def create(pod: Any, made: Any) -> str:
        return str(one.call("CreateContainer", pod_sandbox_id=pod[0], config=made, sandbox_config=pod[1]).container_id)

    place = tmp_path / "a.tar"
    pod = run("shared")
    id = create(pod, config(["sh", "-c", COUNT], peers.IMAGE))
    one.call("StartContainer", container_id=id)
    peers.wait_until(lambda: len(numbers(one, pod)) > 3, "it counts")
    one.call("CheckpointContainer", container_id=id, location=str(place))
    one.remove_pod(pod)
    pod = one.run_pod("not-shared")
    other = one.container_config("c", [], str(place), mounts=data(one, "shared"))
    code, told = one.refused("CreateContainer", pod_sandbox_id=pod[0], config=other, sandbox_config=pod[1])
    assert code == "FAILED_PRECONDITION" and "pid namespace" in told
    one.remove_pod(pod)
    pod = run("shared-again")
    id = create(pod, config([], place))
    one.call("StartContainer", container_id=id)
    counts_on(one, pod)
    assert b"/init -P" in one.exec(id, "ps", "-o", "args").stdout
    one.call("StopContainer", container_id=id, timeout=0)
    one.remove_pod(pod)
    nothing_is_left(one, id)


def test_a_daemon_that_ends_meanwhile_leaves_nothing(own_proc: None, tmp_path: Path) -> None:
    with crihouse.ours() as one:
        place = tmp_path / "a.tar"
        pod, _ = saved(one, place)
        large = changed(place, tmp_path / "large.tar", "checkpoint/pages-9.img", b"\0" * (128 << 20))
        config = one.container_config("c", [], str(large), mounts=data(one, "saved"))
        request = cri.CreateContainerRequest(pod_sandbox_id=pod[0], config=config, sandbox_config=pod[1])
        for wait in (0.1, 0.3, 0.6):
            asked = one.runtime.CreateContainer.future(request)
            time.sleep(wait)  # in whatever it is then
            done = asked.done()
            again(one, "")
            asked.cancel()
            known = [made.id for made in one.call("ListContainers").containers]
            root = one.daemon.state / "root"
            peers.wait_until(
                lambda root=root, known=known: {path.name for path in root.glob("cri/*")} <= {pod[0], *known}, "it goes"
            )
            assert not done or known
        id = one.create(pod, "c", [], str(place) if not known else str(large), mounts=data(one, "saved"))
        Path(pod[1].log_directory, "c.log").unlink()
        asked = one.runtime.StartContainer.future(cri.StartContainerRequest(container_id=id))
        time.sleep(0.15)
        again(one, "")
        asked.cancel()
        if one.status(id).state == cri.CONTAINER_CREATED:
            one.call("StartContainer", container_id=id)
        counts_on(one, pod)
        one.remove_pod(pod)
        nothing_is_left(one, id)


def test_whole_pods(one: Client, tmp_path: Path) -> None:
    config = one.pod_config("whole")
    pod = one.run_pod("whole")
    names, word = ("a", "b"), {"word": "x"}
    commands = {name: ["sh", "-c", COUNT] for name in names}

    def wanted(name: str, image: str = peers.IMAGE) -> Any:
        return one.container_config(name, commands[name], image, mounts=data(one, f"whole-{name}"))

    ids = [one.run_container(pod, name, commands[name], mounts=data(one, f"whole-{name}")) for name in names]
    for name in names:
        peers.wait_until(lambda name=name: len(numbers(one, pod, name)) > 3, "it counts")
    place = tmp_path / "pod"
    place.mkdir(mode=0o700)
    asked = {"pod_sandbox_id": pod[0], "output_path": str(place)}
    assert one.refused("CheckpointPod", **asked, container_ids=ids, options=word)[0] == "INVALID_ARGUMENT"
    assert one.refused("CheckpointPod", **asked)[0] == "INVALID_ARGUMENT"
    assert one.refused("CheckpointPod", **asked, container_ids=[ids[0], ids[0]])[0] == "INVALID_ARGUMENT"
    one.call("CheckpointPod", **asked, container_ids=ids)
    assert len(list(place.iterdir())) == 3 and (place / "checkpoint-manifest.json").is_file()
    for name in names:
        counts_on(one, pod, name)
    one.remove_pod(pod)
    for name in names:
        Path(config.log_directory, f"{name}.log").unlink()
    config.metadata.uid = "uid-anew"
    asked = {"checkpoint_path": str(place), "config": config}
    before = {pod.id for pod in one.call("ListPodSandbox").items}
    for configs in ([wanted("a")], [wanted("a"), wanted("b", "sha256:" + "0" * 64)]):
        assert one.refused("RestorePod", **asked, container_configs=configs)[0] == "FAILED_PRECONDITION"
    other = wanted("b")
    other.command[2] = "exit 0"
    code, told = one.refused("RestorePod", **asked, container_configs=[wanted("a"), other])
    assert code == "FAILED_PRECONDITION" and "args" in told
    configs = [wanted(name) for name in names]
    assert one.refused("RestorePod", **asked, container_configs=configs, runtime_handler="runc")[0] == (
        "FAILED_PRECONDITION"
    )
    assert {pod.id for pod in one.call("ListPodSandbox").items} == before  # a failure leaves nothing
    made = one.call("RestorePod", **asked, container_configs=configs)
    assert [restored.name for restored in made.restored_containers] == list(names)
    pod = made.pod_sandbox_id, config
    for restored in made.restored_containers:
        assert one.status(restored.container_id).state == cri.CONTAINER_CREATED
        one.call("StartContainer", container_id=restored.container_id)
    for name in names:
        counts_on(one, pod, name)
        found = numbers(one, pod, name)
        assert found == list(range(1, len(found) + 1))
    one.remove_pod(pod)
    for restored in made.restored_containers:
        nothing_is_left(one, restored.container_id)
