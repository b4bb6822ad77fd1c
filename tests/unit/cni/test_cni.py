# SPDX-License-Identifier: Apache-2.0
"""The runtime's side of CNI, with plugins of a few lines of shell that write down how they are called."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from teu.cni import configuration
from teu.cni.configuration import Folder
from teu.cni.errors import CniError
from teu.cni.network import Attachment, Network, addresses, attached, detach

PLUGIN = """#!/bin/sh
name=$(basename "$0")
echo "$CNI_COMMAND $name $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS" >>FOLDER/called
cat >FOLDER/$CNI_COMMAND-$name
if [ -e FOLDER/fails-$CNI_COMMAND-$name ]; then cat FOLDER/fails-$CNI_COMMAND-$name; exit 1; fi
if [ "$CNI_COMMAND" = ADD ]; then
    echo '{"interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/n"}],
           "ips": [{"address": "10.0.0.1/24", "interface": 0}, {"address": "10.0.0.2/24", "interface": 1},
                   {"address": "fd00::2/64"}]}'
fi
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "net.d").mkdir()
    for name in ("first", "second"):
        plugin = tmp_path / "bin" / name
        plugin.write_text(PLUGIN.replace("FOLDER", str(tmp_path)))
        plugin.chmod(0o755)
    return tmp_path


def network(place: Path, version: str = "1.1.0", timeout: float | None = 20, **more: Any) -> Network:
    plugins = [{"type": "first", "capabilities": {"portMappings": True, "bandwidth": False}}, {"type": "second"}]
    (place / "net.d/10-n.conflist").write_text(
        json.dumps({"name": "n", "cniVersion": version, "plugins": plugins, **more})
    )
    found = configuration.first(str(place / "net.d"))
    return Network(found, folders=[str(place / "bin")], results=str(place / "results"), timeout=timeout)


def calls(place: Path) -> list[str]:
    path = place / "called"
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [" ".join(line.split()[:2]) for line in found]


def given(place: Path, verb: str, plugin: str) -> Any:
    return json.loads((place / f"{verb}-{plugin}").read_text())


POD = Attachment(
    "c1",
    "/run/netns/x",
    args=(("IgnoreUnknown", "1"), ("K8S_POD_NAME", "p")),
    capabilities={"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}], "bandwidth": {"a": 1}},
)


def test_a_chain_is_gone_through_forth_and_back(place: Path) -> None:
    net = network(place)
    result = net.add(POD)
    assert (place / "called").read_text().splitlines()[0] == (
        "ADD first c1 /run/netns/x eth0 IgnoreUnknown=1;K8S_POD_NAME=p"
    )
    assert calls(place) == ["ADD first", "ADD second"]
    assert "prevResult" not in given(place, "ADD", "first") and given(place, "ADD", "second")["prevResult"]["ips"]
    assert result["cniVersion"] == "1.1.0" and addresses(result) == ["10.0.0.2", "fd00::2"]
    net.check(POD)
    assert calls(place) == ["CHECK first", "CHECK second"] and given(place, "CHECK", "first")["prevResult"] == result
    net.remove(Attachment("c1", ""))
    assert calls(place) == ["DEL second", "DEL first"] and given(place, "DEL", "second")["prevResult"] == result
    assert given(place, "DEL", "first")["runtimeConfig"] == given(place, "ADD", "first")["runtimeConfig"]
    assert attached(str(place / "results")) == []


def test_a_plugin_gets_what_it_is_capable_of(place: Path) -> None:
    network(place).add(POD)
    assert list(given(place, "ADD", "first")["runtimeConfig"]) == ["portMappings"]
    assert "runtimeConfig" not in given(place, "ADD", "second")


def test_what_is_kept_is_libcnis(place: Path) -> None:
    net = network(place)
    result = net.add(POD)
    path = place / "results/n-c1-eth0"
    kept = json.loads(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    assert kept["kind"] == "cniCacheV1" and kept["result"] == result and kept["networkName"] == "n"
    assert kept["cniArgs"] == [["IgnoreUnknown", "1"], ["K8S_POD_NAME", "p"]]
    assert json.loads(base64.b64decode(kept["config"]))["name"] == "n"


def test_the_configuration_may_be_gone_at_the_end(place: Path) -> None:
    network(place).add(POD)
    (place / "net.d/10-n.conflist").unlink()
    calls(place)
    [kept] = attached(str(place / "results"))
    detach(kept, folders=[str(place / "bin")])
    assert calls(place) == ["DEL second", "DEL first"] and attached(str(place / "results")) == []


def test_damaged_results_are_nobodys(place: Path) -> None:
    results = place / "results"
    results.mkdir()
    for number, text in enumerate(("", "{", "[]", '{"kind": "other"}', '{"kind": "cniCacheV1", "config": 3}')):
        (results / f"n-{number}-eth0").write_text(text)
    assert attached(str(results)) == [] and attached(str(place / "none")) == []


@pytest.mark.parametrize(("version", "asked"), [("1.0.0", []), ("1.1.0", ["STATUS first", "STATUS second"])])
def test_status_is_asked_of_those_that_know_it(place: Path, version: str, asked: list[str]) -> None:
    network(place, version).status()
    assert calls(place) == asked
    (place / "fails-STATUS-second").write_text('{"code": 50, "msg": "the plugin is not available"}')
    if asked:
        with pytest.raises(CniError, match="not available") as caught:
            network(place, version).status()
        assert caught.value.code == 50


def test_collection_names_what_stays(place: Path) -> None:
    net = network(place)
    net.collect([POD])
    assert calls(place) == ["GC first", "GC second"]
    assert given(place, "GC", "first")["cni.dev/valid-attachments"] == [{"containerID": "c1", "ifname": "eth0"}]
    network(place, "1.0.0").collect([POD])
    network(place, disableGC=True).collect([POD])
    assert calls(place) == []


def test_check_is_asked_where_it_may_be(place: Path) -> None:
    with pytest.raises(CniError, match="never attached"):
        network(place).check(POD)
    network(place).add(POD)
    calls(place)
    network(place, "0.3.1").check(POD)
    network(place, disableCheck=True).check(POD)
    assert calls(place) == []


def test_a_plugin_that_hangs_is_killed_with_what_it_has_started(place: Path) -> None:
    plugin = place / "bin/first"
    plugin.write_text(f"#!/bin/sh\nsleep 1000 & echo $! >{place}/child\nsleep 1000\n")
    before = time.monotonic()
    with pytest.raises(CniError, match=r"failed \(add\): no answer within 0.3 s"):
        network(place, timeout=0.3).add(POD)
    assert time.monotonic() - before < 10
    child = int((place / "child").read_text())
    for _ in range(100):
        try:
            if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
                return
            os.kill(child, 0)
        except (OSError, IndexError):
            return
        time.sleep(0.05)
    raise AssertionError("the child of the plugin lives on")


def test_a_failure_says_which_plugin(place: Path) -> None:
    (place / "fails-ADD-second").write_text('{"code": 7, "msg": "no room", "details": "at all"}')
    with pytest.raises(CniError) as caught:
        network(place).add(POD)
    assert caught.value.text == 'plugin type="second" failed (add): no room; at all' and caught.value.code == 7
    assert attached(str(place / "results")) == []


def test_changes_of_the_folder_are_noticed(place: Path) -> None:
    folder = Folder(str(place / "net.d"))
    with pytest.raises(CniError, match="no network config found"):
        folder.current()
    network(place)
    assert folder.current().name == "n" and folder.current() is folder.current()
    (place / "net.d/05-other.conf").write_text('{"name": "other", "type": "first"}')
    assert folder.current().name == "other"
    (place / "net.d/05-other.conf").write_text('{"name": 3, "type": "first"}')
    with pytest.raises(CniError, match="name is no text"):
        folder.current()
    for path in (place / "net.d").iterdir():
        path.unlink()
    (place / "net.d").rmdir()
    with pytest.raises(CniError, match="no network config found"):
        folder.current()
    (place / "net.d").mkdir()
    network(place)
    assert folder.current().name == "n"


@pytest.mark.parametrize(
    ("result", "wanted"),
    [
        ({}, []),
        ({"ip4": {"ip": "10.1.1.1/24"}, "ip6": {"ip": "fd00::1/64"}}, ["10.1.1.1", "fd00::1"]),
        ({"ips": [{"address": "10.0.0.2/24", "interface": 9}]}, ["10.0.0.2"]),
    ],
)
def test_addresses_of_a_result(result: Any, wanted: list[str]) -> None:
    assert addresses(result) == wanted


def test_an_address_that_is_none() -> None:
    with pytest.raises(CniError, match="'x', which is none"):
        addresses({"ips": [{"address": "x"}]})
