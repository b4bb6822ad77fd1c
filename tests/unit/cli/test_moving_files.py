# SPDX-License-Identifier: Apache-2.0
"""What `system import-docker` reads of other engines, file by file. The whole, with Debian's dockerd and podman, is in
tests/system/test_moving_in.py."""

from __future__ import annotations

import base64
import fcntl
import gzip
import hashlib
import io
import json
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teu.cli.moving import boltdb, containerdstore, daemonfile, dockerstore, importing, layers, podmanstore, tarsplit
from teu.cli.moving.things import Belongings, Container

TOP = Path(__file__).resolve().parents[3]
SIZE = 4096


def page(number: int, flags: int, count: int, body: bytes) -> bytes:
    whole = struct.pack("<QHHI", number, flags, count, max(0, (len(body) + 16 - 1) // SIZE)) + body
    return whole + bytes(-len(whole) % SIZE)


def leaf(items: list[tuple[int, bytes, bytes]]) -> bytes:
    table, data = b"", b""
    for number, (kind, key, value) in enumerate(items):
        pos = (len(items) - number) * 16 + len(data)
        table += struct.pack("<IIII", kind, pos, len(key), len(value))
        data += key + value
    return table + data


def branch(children: list[tuple[bytes, int]]) -> bytes:
    table, data = b"", b""
    for number, (key, child) in enumerate(children):
        table += struct.pack("<IIQ", (len(children) - number) * 16 + len(data), len(key), child)
        data += key
    return table + data


def meta(number: int, root: int, transaction: int, broken: bool = False) -> bytes:
    body = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, SIZE, 0, root, 0, 2, 9, transaction)
    return page(number, 4, 0, body + struct.pack("<Q", boltdb.checksum(body) ^ int(broken)))


@pytest.fixture
def bolt(tmp_path: Path) -> Path:
    """A bucket in a leaf of its own over two pages, below a branch; an inline one; an older root that is not it."""
    inline = struct.pack("<QQ", 0, 0) + struct.pack("<QHHI", 0, 2, 1, 0) + leaf([(0, b"in", b"line")])
    outer = leaf([(1, b"big", struct.pack("<QQ", 5, 0)), (1, b"small", inline)])
    pages = [
        meta(0, 4, 7),
        meta(1, 3, 8),
        page(2, 0x10, 0, b""),
        page(3, 2, 2, outer),
        page(4, 2, 0, b""),
        page(5, 1, 2, branch([(b"a", 6), (b"m", 8)])),
        page(6, 2, 2, leaf([(0, b"a", b"x" * 5000), (0, b"b", b"2")])),
        page(8, 2, 1, leaf([(0, b"m", b"3")])),
    ]
    path = tmp_path / "x.db"
    path.write_bytes(b"".join(pages))
    return path


def test_bolt(bolt: Path) -> None:
    with boltdb.Bolt(str(bolt)) as found:
        assert list(found.buckets()) == [b"big", b"small"]
        assert list(found.items(b"big")) == [(b"a", b"x" * 5000), (b"b", b"2"), (b"m", b"3")]
        assert list(found.items(b"small")) == [(b"in", b"line")]
        assert not list(found.items(b"none"))


def test_bolt_after_a_power_cut(bolt: Path) -> None:
    """The newer meta was being written: the older one holds."""
    data = bytearray(bolt.read_bytes())
    data[SIZE : 2 * SIZE] = meta(1, 3, 8, broken=True)
    bolt.write_bytes(data)
    with boltdb.Bolt(str(bolt)) as found:
        assert not list(found.buckets())


def test_bolt_of_a_writer_and_what_is_none(bolt: Path, tmp_path: Path) -> None:
    with bolt.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(boltdb.BoltError) as caught:
            boltdb.Bolt(str(bolt))
        assert caught.value.held
    other = tmp_path / "other"
    for data in (b"", b"x" * 100, bytes(9000)):
        other.write_bytes(data)
        with pytest.raises(boltdb.BoltError, match="not a bolt database"):
            boltdb.Bolt(str(other))
    for cut in range(2 * SIZE, 9 * SIZE, 1111):
        other.write_bytes(bolt.read_bytes()[:cut])
        try:
            with boltdb.Bolt(str(other)) as found:
                list(found.items(b"big"))
        except boltdb.BoltError as error:
            assert "damaged" in str(error)


def split_of(data: bytes, folder: Path, path: Path) -> None:
    """What docker keeps of a tar: its bytes without the files' content, which goes into a folder."""
    lines, at = [], 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            if not member.isfile():
                continue
            lines.append({"type": 2, "payload": base64.b64encode(data[at : member.offset_data]).decode()})
            content = data[member.offset_data : member.offset_data + member.size]
            (folder / member.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / member.name).write_bytes(content)
            lines.append({"type": 1, "name": member.name, "size": member.size, "payload": "AAAAAAAAAAA="})
            at = member.offset_data + member.size
    lines.append({"type": 2, "payload": base64.b64encode(data[at:]).decode()})
    path.write_bytes(gzip.compress("\n".join(json.dumps(line) for line in lines).encode()))


def tar_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def test_a_layer_is_put_together_to_the_byte(tmp_path: Path) -> None:
    data = tar_of({"etc/a": b"a" * 700, "b": b"", "c": os.urandom(300_000)})
    split_of(data, tmp_path / "diff", tmp_path / "split.gz")
    assert tarsplit.size(str(tmp_path / "split.gz")) == len(data)
    assert b"".join(tarsplit.assemble(str(tmp_path / "split.gz"), str(tmp_path / "diff"))) == data
    (tmp_path / "diff/c").write_bytes(b"short")
    with pytest.raises(tarsplit.LayerError, match="c has"):
        list(tarsplit.assemble(str(tmp_path / "split.gz"), str(tmp_path / "diff")))


def test_a_layers_folder_leads_nowhere_else(tmp_path: Path) -> None:
    split_of(tar_of({"etc/shadow": b"x" * 10}), tmp_path / "diff", tmp_path / "split.gz")
    (tmp_path / "diff/etc/shadow").unlink()
    (tmp_path / "diff/etc").rmdir()
    (tmp_path / "diff/etc").symlink_to("/etc")
    with pytest.raises(OSError):
        list(tarsplit.assemble(str(tmp_path / "split.gz"), str(tmp_path / "diff")))


def upper(root: Path) -> Path:
    folder = root / "upper"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/made").write_bytes(b"content")
    (folder / "etc/made").chmod(0o640)
    os.link(folder / "etc/made", folder / "etc/twin")
    (folder / "etc/link").symlink_to("/nowhere")
    os.mknod(folder / "etc/gone", 0o020000, 0)
    (folder / "opaque").mkdir()
    os.setxattr(folder / "opaque", "user.overlay.opaque", b"y")
    os.mkfifo(folder / "pipe")
    return folder


def test_changes_are_a_layer(tmp_path: Path) -> None:
    data = b"".join(layers.changes(str(upper(tmp_path))))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {member.name: member for member in archive}
        assert list(members) == [
            *("etc", "etc/.wh.gone", "etc/link", "etc/made", "etc/twin"),
            *("opaque", "opaque/.wh..wh..opq", "pipe"),
        ]
        assert members["etc/made"].mode == 0o640
        assert archive.extractfile("etc/made").read() == b"content"  # type: ignore[union-attr]
        assert members["etc/twin"].islnk() and members["etc/twin"].linkname == "etc/made"
        assert members["etc/link"].linkname == "/nowhere"
        assert members["pipe"].isfifo()
        assert not [key for key in members["opaque"].pax_headers if key.startswith("SCHILY")]


def test_what_is_no_change(tmp_path: Path) -> None:
    (tmp_path / "data/inner").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hosts").touch()
    assert not layers.has_changes(str(tmp_path), ["/data/inner", "/etc/hosts"])
    assert layers.has_changes(str(tmp_path), ["/data/inner"])
    (tmp_path / "etc/hosts").write_text("127.0.0.1 me\n")
    assert layers.has_changes(str(tmp_path), ["/data/inner", "/etc/hosts"])


def docker_root(root: Path) -> tuple[Path, str, bytes]:
    """A dockerd's folder with an image of two layers; (folder, the image's id, its lower layer)."""
    store = root / "image/overlay2"
    tars = [tar_of({"bin/sh": b"#!" * 400}), tar_of({"etc/conf": b"on\n"})]
    diffs = ["sha256:" + hashlib.sha256(data).hexdigest() for data in tars]
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": diffs}, "history": [{}, {}]}).encode()
    chain = ""
    for number, (diff, data) in enumerate(zip(diffs, tars)):
        chain = diff if not chain else "sha256:" + hashlib.sha256(f"{chain} {diff}".encode()).hexdigest()
        place = store / "layerdb" / chain.replace(":", "/")
        place.mkdir(parents=True)
        (place / "cache-id").write_text(f"cache{number}")
        split_of(data, root / f"overlay2/cache{number}/diff", place / "tar-split.json.gz")
    number_ = hashlib.sha256(config).hexdigest()
    (store / "imagedb/content/sha256").mkdir(parents=True)
    (store / "imagedb/content/sha256" / number_).write_bytes(config)
    names = {"web": {"web:1": f"sha256:{number_}", f"web@sha256:{'0' * 64}": f"sha256:{number_}"}}
    (store / "repositories.json").write_text(json.dumps({"Repositories": names}))
    return root, f"sha256:{number_}", tars[0]


def bucket(content: dict[str, Any]) -> bytes:
    """A bucket within a value; what is in it may be buckets."""
    return struct.pack("<QQ", 0, 0) + struct.pack("<QHHI", 0, 2, len(content), 0) + leaf(in_leaf(content))


def in_leaf(content: dict[str, Any]) -> list[tuple[int, bytes, bytes]]:
    return [
        (1, key.encode(), bucket(value)) if isinstance(value, dict) else (0, key.encode(), value)
        for key, value in sorted(content.items())
    ]


def database(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True)
    pages = [meta(0, 2, 1), meta(1, 2, 2), page(2, 2, len(content), leaf(in_leaf(content)))]
    path.write_bytes(b"".join(pages))


def containerd_root(root: Path) -> tuple[str, str, bytes]:
    """A containerd's folder with an index of two platforms; (the index's digest, the id of ours, its layer)."""

    def store(data: bytes | dict[str, Any]) -> str:
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        digest = hashlib.sha256(data).hexdigest()
        (root / containerdstore.CONTENT / "sha256").mkdir(parents=True, exist_ok=True)
        (root / containerdstore.CONTENT / "sha256" / digest).write_bytes(data)
        return f"sha256:{digest}"

    layer = gzip.compress(tar_of({"etc/conf": b"on\n"}))
    config = store({"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "d" * 64]}})
    ours = store({"config": {"digest": config}, "layers": [{"digest": store(layer)}]})
    mine = containerdstore.ARCHITECTURES[os.uname().machine]
    index = store(
        {
            "manifests": [
                {"digest": "sha256:" + "0" * 64, "platform": {"architecture": "s390x"}},
                {"digest": ours, "platform": {"architecture": mine}},
            ]
        }
    )
    foreign = store({"manifests": [{"digest": ours, "platform": {"architecture": "s390x"}}]})
    images: dict[str, Any] = {"docker.io/library/web:1": index, "moby-dangling@x": index, "foreign:1": foreign}
    images["gone:1"] = "sha256:" + "9" * 64
    targets = {name: {"target": {"digest": digest.encode()}} for name, digest in images.items()}
    database(root / containerdstore.METADATA, {"v1": {"moby": {"images": targets}, "k8s.io": {}}})
    snapshots = {"moby/7/" + "c" * 64: {"id": b"\xac\x02", "kind": b"\x02"}}
    database(root / containerdstore.SNAPSHOTS / "metadata.db", {"v1": {"snapshots": snapshots}})
    return index, config, layer


def test_images_in_containerd(tmp_path: Path) -> None:
    index, identity, layer = containerd_root(tmp_path)
    store = containerdstore.Store(str(tmp_path))
    try:
        assert store.images[index] is store.images[identity]
        assert store.images[index].names == ["docker.io/library/web:1"]
        assert store.incomplete == {
            "foreign:1": "it is of another platform",
            "gone:1": "containerd has no 999999999999 of it",
        }
        assert b"".join(store.images[index].layers[0].read()) == layer
        assert store.upper("c" * 64) == f"{tmp_path}/{containerdstore.SNAPSHOTS}/snapshots/300/fs"
        assert store.upper("d" * 64) == ""
    finally:
        store.close()


def members_of(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def test_dockers_images(tmp_path: Path) -> None:
    root, identity, lower = docker_root(tmp_path)
    with dockerstore.Docker(str(root)) as docker:
        (image,) = docker.read().images
    assert (image.id, image.names, image.label()) == (identity, ["web:1"], "web:1")
    found = members_of(b"".join(image.archive()))
    table = json.loads(found["manifest.json"])
    assert table == [{"Config": f"{identity[7:]}.json", "RepoTags": None, "Layers": ["0/layer.tar", "1/layer.tar"]}]
    assert hashlib.sha256(found[f"{identity[7:]}.json"]).hexdigest() == identity[7:]
    assert found["0/layer.tar"] == lower


def test_dockers_image_without_a_layer(tmp_path: Path) -> None:
    root, _, _ = docker_root(tmp_path)
    next(root.glob("image/overlay2/layerdb/sha256/*/tar-split.json.gz")).unlink()
    with dockerstore.Docker(str(root)) as docker:
        found = docker.read()
    assert not found.images
    assert [(left.kind, left.name) for left in found.left] == [("image", "web:1")]


def test_dockers_containers(tmp_path: Path) -> None:
    root, identity, _ = docker_root(tmp_path)
    number = "c" * 64
    folder = root / "containers" / number
    folder.mkdir(parents=True)
    record = {
        "Name": "/web",
        "Image": identity,
        "Driver": "overlay2",
        "Config": {"Hostname": number[:12], "Image": "web:1", "Env": ["A=1"]},
        "State": {"Running": False},
        "HasBeenStartedBefore": True,
        "MountPoints": {"/data": {"Type": "volume", "Name": "anonymous", "RW": True}},
        "NetworkSettings": {"Networks": {"front": {"Aliases": [number[:12], "www"], "IPAddress": "10.0.0.2"}}},
    }
    host: dict[str, Any] = {"NetworkMode": "front", "RestartPolicy": {"Name": "always"}, "Runtime": "runc"}
    host["LogConfig"] = {"Type": "json-file", "Config": {}}
    (folder / "config.v2.json").write_text(json.dumps(record))
    (folder / "hostconfig.json").write_text(json.dumps({**host, "MaskedPaths": None, "ConsoleSize": [0, 0]}))
    (root / "image/overlay2/layerdb/mounts" / number).mkdir(parents=True)
    (root / "image/overlay2/layerdb/mounts" / number / "mount-id").write_text("upper0")
    (root / "overlay2/upper0/diff/data").mkdir(parents=True)
    with dockerstore.Docker(str(root)) as docker:
        (container,) = docker.read().containers
        assert (container.name, container.image, container.called) == ("web", identity, "web:1")
        assert (container.changes, container.starts, container.told) == ("", True, [])
        mounts = [{"Type": "volume", "Source": "anonymous", "Target": "/data", "ReadOnly": False}]
        kept = {"NetworkMode": "front", "RestartPolicy": {"Name": "always"}, "Mounts": mounts}
        networks = {"EndpointsConfig": {"front": {"Aliases": ["www"]}}}
        assert container.body == {
            "Hostname": "",
            "Env": ["A=1"],
            "HostConfig": kept,
            "NetworkingConfig": networks,
        }
        (root / "overlay2/upper0/diff/made").write_text("x")
        changed = Container("web", identity, "web:1", {}, str(root / "overlay2/upper0/diff"))
        image = docker.changed_image(changed, "imported/web:latest")
        found = members_of(b"".join(image.archive()))
    config = json.loads(found[f"{image.id[7:]}.json"])
    assert config["rootfs"]["diff_ids"][2] == "sha256:" + hashlib.sha256(found["2/layer.tar"]).hexdigest()
    assert config["history"][2]["comment"] == "changes of the container web"


def test_what_a_network_was_asked_for() -> None:
    asked = {"PreferredPool": "", "SubPool": "172.18.5.0/24", "Gateway": "", "AuxAddresses": {"a": "172.18.0.9"}}
    record = {
        "ipamV4Config": json.dumps([asked]),
        "ipamV4Info": json.dumps([{"IPAMData": '{"Gateway":"172.18.0.1/16","Pool":"172.18.0.0/16"}'}]),
    }
    assert dockerstore.addresses(record, "V4") == [
        {
            "Subnet": "172.18.0.0/16",
            "Gateway": "172.18.0.1",
            "IPRange": "172.18.5.0/24",
            "AuxiliaryAddresses": {"a": "172.18.0.9"},
        }
    ]
    assert dockerstore.addresses(record, "V6") == []


def test_host_config_keeps_what_was_said() -> None:
    told: list[str] = []
    host = {"MemorySwappiness": 0, "Init": False, "OomKillDisable": None, "Memory": 0, "Runtime": "sysbox"}
    host["LogConfig"] = {"Type": "fluentd", "Config": {"tag": "x"}}
    host |= {"MaskedPaths": [], "Binds": ["/a:/data:ro"], "Mounts": [{"Type": "volume", "Target": "/m"}]}
    record = {"MountPoints": {"/data": {"Type": "volume", "Name": "x"}, "/m": {"Type": "volume", "Name": "made"}}}
    kept = dockerstore.host_config(host, record, "json-file", told)
    mounts = [{"Type": "volume", "Target": "/m", "Source": "made"}]
    said = {"MemorySwappiness": 0, "Init": False, "MaskedPaths": [], "Binds": ["/a:/data:ro"], "Mounts": mounts}
    assert kept == said
    assert [text.split(":")[0] for text in told] == ["its runtime sysbox", "its log driver fluentd"]


def test_shared_namespaces_are_named() -> None:
    found = Belongings()
    found.ids = {"f" * 64: "db"}
    found.containers = [Container("web", "", "", {"HostConfig": {"NetworkMode": "container:" + "f" * 64}})]
    found.name_the_shared()
    assert found.containers[0].body["HostConfig"]["NetworkMode"] == "container:db"


def test_podmans_containers() -> None:
    record = {
        "Id": "a" * 64,
        "Name": "web",
        "Config": {"Hostname": "a" * 12, "Env": ["container=podman", "A=1"], "StopSignal": "SIGTERM", "Cmd": ["sh"]},
        "HostConfig": {
            "CapAdd": ["CAP_NET_ADMIN"],
            "NetworkMode": "bridge",
            "PidMode": "private",
            "Tmpfs": {"/t": "rw,rprivate,size=1m,tmpcopyup"},
            "RestartPolicy": {"Name": "no"},
        },
        "Mounts": [
            {"Type": "volume", "Name": "v", "Source": "/x/v/_data", "Destination": "/v", "RW": True},
            {"Type": "bind", "Source": "/etc", "Destination": "/e", "RW": False, "Propagation": "rprivate"},
        ],
        "NetworkSettings": {"Networks": {"podman": {"Aliases": ["a" * 12, "web"]}}},
    }
    told: list[str] = []
    assert podmanstore.config(record) == {"Env": ["A=1"], "StopSignal": "SIGTERM", "Cmd": ["sh"]}
    host = podmanstore.host_config(record, told)
    assert host["CapAdd"] == ["NET_ADMIN"]
    assert host["Tmpfs"] == {"/t": "size=1m"}
    assert [mount["Source"] for mount in host["Mounts"]] == ["v", "/etc"]
    assert not {"NetworkMode", "PidMode", "RestartPolicy"} & set(host)
    assert not told
    assert podmanstore.networks(record) == {"bridge": {}}


def test_what_a_container_uses() -> None:
    host = {
        "Binds": ["data:/d", "/etc:/e:ro"],
        "Mounts": [
            {"Type": "volume", "Source": "more", "Target": "/m"},
            {"Type": "volume", "Target": "/anonymous"},
            {"Type": "bind", "Source": "/x", "Target": "/x"},
        ],
    }
    body = {"HostConfig": host, "NetworkingConfig": {"EndpointsConfig": {"front": {}, "default": {}}}}
    assert importing.uses(Container("web", "", "", body)) == (["more", "data"], ["front"])
    assert importing.uses(Container("web", "", "", {})) == ([], [])


def verdicts(given: dict[str, Any]) -> dict[str, str]:
    result = daemonfile.translate(given)
    daemonfile.settle(result)
    return {key: verdict for key, verdict, _ in result.verdicts}


@pytest.mark.parametrize("server", [str(TOP / "bin/teud"), "/nowhere/teud"])
def test_every_key_of_daemon_json_has_a_verdict(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemonfile, "SERVER", server)
    given = {"icc": False, "live-restore": True, "oom-score-adjust": -1, "made-up": 1, "hosts": ["fd://"]}
    assert verdicts(given) == {
        "icc": "used",
        "live-restore": "needless",
        "oom-score-adjust": "not understood",
        "made-up": "not understood",
        "hosts": "needless",
    }
    assert verdicts({"hosts": ["tcp://0.0.0.0:2375"]}) == {"hosts": "not understood"}
    assert verdicts({"storage-driver": "btrfs"}) == {"storage-driver": "not understood"}
    assert verdicts({"exec-opts": ["native.cgroupdriver=systemd"]}) == {"exec-opts": "needless"}
    result = daemonfile.translate({"storage-opts": ["overlay2.size=1G"]})
    assert result.values == {"default-storage-size": "1G"}
    daemonfile.settle(result)
    assert result.verdicts[0][1] == ("used" if os.access(server, os.X_OK) else "not understood")
    for given in (["overlay2.size=much"], ["overlay2.override_kernel_check=true"], "dm.basesize=10G"):
        result = daemonfile.translate({"storage-opts": given})
        daemonfile.settle(result)
        assert [verdict for _, verdict, _ in result.verdicts] == ["not understood"] and not result.values
    assert "teu-containerd.yaml" in result.verdicts[0][2]
    assert daemonfile.translate({"host-gateway-ip": "192.0.2.1"}).values == {"host-gateway-ips": ["192.0.2.1"]}
    flags = {"http-proxy": "http://a", "no-proxy": "b"}
    assert daemonfile.translate(flags).values == {"proxies": flags}
    assert daemonfile.translate({"iptables": False}).values == {"firewall": "none"}
    assert daemonfile.translate({"debug": True}).values == {"log-level": "debug"}
    runtimes = {"kata": {"runtimeType": "io.containerd.kata.v2"}, "crun": {"path": "/usr/bin/crun"}}
    assert daemonfile.translate({"runtimes": runtimes}).values == {"runtimes": runtimes}
    assert verdicts({"runtimes": runtimes}) == {"runtimes": "used"}


def test_teud_takes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemonfile, "SERVER", str(TOP / "bin/teud"))
    given: dict[str, Any] = {
        "log-driver": "json-file",
        "log-opts": {"max-size": "10m", "max-file": 3},
        "default-address-pools": [{"base": "10.200.0.0/16", "size": 24}],
        "registry-mirrors": ["https://mirror.example"],
        "mtu": 1400,
        "bip": "not an address",
        "max-concurrent-downloads": 1000,
    }
    result = daemonfile.translate(given)
    daemonfile.settle(result)
    assert set(given) - set(result.values) == {"bip", "max-concurrent-downloads"}
    said = {key: what for key, verdict, what in result.verdicts if verdict == daemonfile.UNKNOWN}
    assert said["bip"].startswith("bip: bad value 'not an address'; give an IPv4 address")
    target = tmp_path / "teud.yaml.d/50-docker.yaml"
    daemonfile.write(result, "/etc/docker/daemon.json", str(target))
    assert not daemonfile.refused(result.values)
    assert 'log-opts: {"max-size":"10m","max-file":"3"}' in target.read_text()
    assert [path.name for path in target.parent.iterdir()] == ["50-docker.yaml"]


def test_the_command_says_what_it_takes(teu: Callable[..., Any]) -> None:
    assert teu("system", "import-docker", "--only", "secrets").code == 125
    assert teu("system", "import-docker", "--from", "lxc").code == 125
