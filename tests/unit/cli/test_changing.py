# SPDX-License-Identifier: Apache-2.0
"""Commands that change containers, images, networks and volumes: their requests, and what they tell of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from prepared import Raw


def test_one_thing_to_many_containers(daemon: Any, teu: Callable[..., Any]) -> None:
    for name in ("a", "c"):
        daemon.on("POST", f"/containers/{name}/stop")
    done = teu("stop", "-t", "5", "-s", "INT", "a", "b", "c")
    assert done == (1, "a\nc\n", "Error response from daemon: no such thing: /containers/b/stop\n")
    assert [request.query for request in daemon.requests if "stop" in request.path] == [{"signal": "INT", "t": "5"}] * 3


@pytest.mark.parametrize(
    ("argv", "request_line", "query"),
    [
        (["kill", "-s", "HUP", "a"], "POST /containers/a/kill", {"signal": "HUP"}),
        (["restart", "a"], "POST /containers/a/restart", {}),
        (["pause", "a"], "POST /containers/a/pause", {}),
        (["unpause", "a"], "POST /containers/a/unpause", {}),
        (["rm", "-fv", "/a/"], "DELETE /containers/a", {"v": "1", "force": "1"}),
        (["rename", "a", " b "], "POST /containers/a/rename", {"name": "b"}),
        (["start", "a"], "POST /containers/a/start", {}),
        (["tag", "a", "b"], "POST /images/a/tag", {"repo": "b", "tag": "latest"}),
        (["tag", "a", "localhost:5000/b:1"], "POST /images/a/tag", {"repo": "localhost:5000/b", "tag": "1"}),
    ],
)
def test_requests(
    daemon: Any, teu: Callable[..., Any], argv: list[str], request_line: str, query: dict[str, str]
) -> None:
    daemon.on(*request_line.split())
    assert teu(*argv).code == 0
    assert (daemon.calls(), daemon.last.query) == ([request_line], query)


def test_wait_tells_each_status(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("POST", "/containers/a/wait", {"StatusCode": 3})
    daemon.on("POST", "/containers/b/wait", {"StatusCode": 0, "Error": {"Message": "gone wrong"}})
    assert teu("wait", "a") == (0, "3\n", "")
    assert teu("wait", "a", "b") == (1, "3\n", "gone wrong\n")


def test_an_unknown_container_is_no_failure_of_rm_force(daemon: Any, teu: Callable[..., Any]) -> None:
    told = "Error response from daemon: no such thing: /containers/a\n"
    assert teu("rm", "-f", "a") == (0, "", told)
    assert teu("rm", "a") == (1, "", told)
    assert teu("rm", "/") == (1, "", "container name cannot be empty\n")


def test_commit_and_rename_say_what_failed(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("POST", "/commit", {"Id": "sha256:1"})
    done = teu("commit", "-m", "why", "-a", "me", "-c", "ENV A=1", "--pause=false", "a", "x:2")
    assert done.out == "sha256:1\n"
    wanted = {
        "container": "a",
        "repo": "x",
        "tag": "2",
        "comment": "why",
        "author": "me",
        "changes": "ENV A=1",
        "pause": "0",
    }
    assert daemon.last.query == wanted
    assert teu("rename", "a", "b").err.endswith("Error: failed to rename container named a\n")
    assert teu("rename", "a", " ").err == "Error: Neither old nor new names may be empty\n"


def test_update_sends_only_what_was_given(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("POST", "/containers/a/update", {"Warnings": ["no swap"]})
    done = teu("update", "-m", "64m", "--cpus", "0.5", "--restart", "on-failure:3", "a")
    assert done == (0, "a\nno swap\n", "")
    assert daemon.last.body == {
        "Memory": 64 << 20,
        "NanoCpus": 500_000_000,
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
    }
    assert teu("update", "a").err == "you must provide one or more flags when using this command\n"
    assert teu("update", "--restart", ":3", "a").err.startswith("invalid restart policy format")


def test_update_of_what_docker_has_no_request_for(daemon: Any, teu: Callable[..., Any]) -> None:
    config = {"Env": ["A=1", "B=2"], "Healthcheck": {"Test": ["CMD", "true"], "Retries": 5}}
    bindings = {"80/tcp": [{"HostIp": "", "HostPort": "8080"}], "53/udp": None}
    daemon.on("GET", "/containers/a/json", {"Config": config, "HostConfig": {"PortBindings": bindings}})
    daemon.on("POST", "/containers/a/change", {"Warnings": ["later"]})
    done = teu("update", "-e", "C=3", "-e", "A=x", "--unsetenv", "B", "--health-interval", "1s", "a")
    assert done == (0, "a\nlater\n", "")
    assert daemon.last.body == {
        "Env": ["A=x", "C=3"],
        "Healthcheck": {"Test": ["CMD", "true"], "Retries": 5, "Interval": 1_000_000_000},
    }
    teu("update", "-p", "8443:443", "-p", "8080:80", "--unpublish", "53/udp", "a")
    assert daemon.last.body == {
        "PortBindings": {
            "80/tcp": [{"HostIp": "", "HostPort": "8080"}],
            "443/tcp": [{"HostIp": "", "HostPort": "8443"}],
        }
    }
    mounts = [{"Type": "volume", "Source": "data", "Target": "/data"}]
    host = {"Mounts": mounts, "Binds": ["/srv:/srv:ro", "/x"]}
    daemon.on("GET", "/containers/b/json", {"Config": {}, "HostConfig": host})
    daemon.on("POST", "/containers/b/change", {"Warnings": []})
    teu("update", "--mount", "type=bind,source=/a,target=/b,readonly", "b")
    bound = {"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True}
    assert daemon.last.body == {"Mounts": [*mounts, bound]}
    teu("update", "--unmount", "/srv/", "--unmount", "/data", "b")
    assert daemon.last.body == {"Mounts": [], "Binds": ["/x"]}
    assert "nothing that was asked for is mounted there" in teu("update", "--unmount", "/y", "b").err
    assert "target is required" in teu("update", "--mount", "type=bind,source=/a", "b").err
    teu("update", "--no-healthcheck", "a")
    assert daemon.last.body == {"Healthcheck": {"Test": ["NONE"]}}
    assert "port 81/tcp is not published" in teu("update", "--unpublish", "81", "a").err
    daemon.on("POST", "/containers/a/change", (404, "page not found"))
    done = teu("update", "-e", "C=3", "a")
    assert done.code == 1 and done.err == "--env: the daemon is not teud, which alone can change this\n"


def test_images_are_removed_or_told(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("DELETE", "/images/a", [{"Untagged": "a:latest"}, {"Deleted": "sha256:1"}])
    assert teu("rmi", "a") == (0, "Untagged: a:latest\nDeleted: sha256:1\n", "")
    missing = "Error response from daemon: no such thing: /images/b\n"
    assert teu("rmi", "-f", "b") == (0, "", missing)
    assert teu("rmi", "b") == (1, "", missing)
    daemon.on("DELETE", "/images/c", (409, "in use"))
    assert teu("rmi", "-f", "c") == (1, "", "Error response from daemon: in use\n")


def test_a_tag_needs_a_name_that_can_be_one(daemon: Any, teu: Callable[..., Any]) -> None:
    assert "is not a valid repository/tag" in teu("tag", "a", "B").err
    digest = "sha256:" + "0" * 64
    assert teu("tag", "a", f"b@{digest}").err == "refusing to create a tag with a digest reference\n"


def test_a_volume(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("POST", "/volumes/create", lambda request: {"Name": request.body["Name"]})
    assert teu("volume", "create", "-o", "type=tmpfs", "--label", "a", "v").out == "v\n"
    assert daemon.last.body == {"Name": "v", "Driver": "local", "DriverOpts": {"type": "tmpfs"}, "Labels": {"a": ""}}
    assert "a volume-name through both --name and" in teu("volume", "create", "--name", "x", "v").err
    daemon.on("POST", "/volumes/v/rename")
    assert teu("volume", "rename", "v", "w").code == 0
    assert daemon.last.query == {"name": "w"}
    daemon.on("DELETE", "/volumes/v")
    assert teu("volume", "rm", "-f", "v", "w") == (1, "v\n", "Error response from daemon: no such thing: /volumes/w\n")
    assert daemon.requests[-3].query == {"force": "1"} or daemon.requests[-2].query == {"force": "1"}


def test_a_network(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("POST", "/networks/create", {"Id": "n1"})
    argv = [
        "--subnet",
        "10.1.0.0/16,fd00::/64",
        "--gateway",
        "fd00::1",
        "--ip-range",
        "10.1.2.0/24",
        "--aux-address",
        "a=10.1.0.9",
    ]
    assert teu("network", "create", *argv, "--internal", "-o", "k=v", "n").out == "n1\n"
    body = daemon.last.body
    assert (body["Name"], body["Driver"], body["Internal"], body["Options"]) == ("n", "bridge", True, {"k": "v"})
    assert body["IPAM"]["Config"] == [
        {"Subnet": "10.1.0.0/16", "IPRange": "10.1.2.0/24", "AuxiliaryAddresses": {"a": "10.1.0.9"}},
        {"Subnet": "fd00::/64", "Gateway": "fd00::1"},
    ]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--gateway", "10.0.0.1"], "every ip-range or gateway must have a corresponding subnet"),
        (
            ["--subnet", "10.0.0.0/8", "--subnet", "10.1.0.0/16"],
            "multiple overlapping subnet configuration is not supported",
        ),
        (["--subnet", "10.0.0.0/8", "--gateway", "11.0.0.1"], "no matching subnet for gateway 11.0.0.1"),
        (["--subnet", "10.0.0.0/8", "--gateway", "x"], "invalid address: x"),
        (
            ["--subnet", "10.0.0.0/8", "--subnet", "11.0.0.0/8", "--gateway", "10.0.0.1", "--gateway", "10.0.0.2"],
            "cannot configure multiple gateways (10.0.0.2, 10.0.0.1) for the same subnet",
        ),
        (["--config-only", "-d", "bridge"], "the --config-only and --driver options cannot be used together"),
    ],
)
def test_a_network_refused(teu: Callable[..., Any], argv: list[str], text: str) -> None:
    assert teu("network", "create", *argv, "n") == (1, "", text + "\n")


def test_joining_and_leaving_a_network(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("POST", "/networks/n/connect")
    daemon.on("POST", "/networks/n/disconnect")
    argv = ["--ip", "10.0.0.2", "--alias", "a,b", "--link", "x:y", "--link-local-ip", "169.254.1.1"]
    assert teu("network", "connect", *argv, "--driver-opt", "k=v", "--gw-priority", "5", "n", "web").code == 0
    assert daemon.last.body == {
        "Container": "web",
        "EndpointConfig": {
            "IPAMConfig": {"IPv4Address": "10.0.0.2", "LinkLocalIPs": ["169.254.1.1"]},
            "Links": ["x:y"],
            "Aliases": ["a", "b"],
            "DriverOpts": {"k": "v"},
            "GwPriority": 5,
        },
    }
    assert teu("network", "disconnect", "-f", "n", "web").code == 0
    assert daemon.last.body == {"Container": "web", "Force": True}


def test_prune_asks_first(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("POST", "/containers/prune", {"ContainersDeleted": ["c1"], "SpaceReclaimed": 1500})
    done = teu("container", "prune", stdin=b"n\n")
    assert (done.code, daemon.requests) == (0, [])
    assert done.out == ("WARNING! This will remove all stopped containers.\nAre you sure you want to continue? [y/N] ")
    done = teu("container", "prune", "--filter", "until=5m", stdin=b"Y\n")
    assert done.out.endswith("Deleted Containers:\nc1\n\nTotal reclaimed space: 1.5kB\n")
    assert daemon.last.filters() == {"until": {"5m": True}}


def test_prune_of_each_kind(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("POST", "/images/prune", {"ImagesDeleted": [{"Untagged": "a:1"}, {"Deleted": "sha256:1"}]})
    assert teu("image", "prune", "-af").out == (
        "Deleted Images:\nuntagged: a:1\ndeleted: sha256:1\n\nTotal reclaimed space: 0B\n"
    )
    assert daemon.last.filters() == {"dangling": {"false": True}}
    daemon.on("POST", "/volumes/prune", {"VolumesDeleted": ["v"], "SpaceReclaimed": 10})
    assert teu("volume", "prune", "-af").out == "Deleted Volumes:\nv\n\nTotal reclaimed space: 10B\n"
    assert daemon.last.filters() == {"all": {"true": True}}
    daemon.on("POST", "/networks/prune", {"NetworksDeleted": None})
    assert teu("network", "prune", "-f") == (0, "", "")
    daemon.on("POST", "/build/prune", {"CachesDeleted": ["x"], "SpaceReclaimed": 7})
    assert teu("builder", "prune", "-f").out == "Deleted build cache objects:\nx\n\nTotal:\t7B\n"


def test_prune_of_everything(daemon: Any, teu: Callable[..., Any]) -> None:
    for kind in ("containers", "networks", "volumes", "images"):
        daemon.on("POST", f"/{kind}/prune", {"SpaceReclaimed": 100})
    done = teu("system", "prune", "--volumes", "--filter", "label=a", stdin=b"y\n")
    assert (
        "  - all anonymous volumes not used" in done.out
        and "Items to be pruned will be filtered with:\n  - label=a\n" in done.out
    )
    assert done.out.endswith("Total reclaimed space: 300B\n")  # an engine without a builder has no cache
    assert [json.loads(request.query["filters"]).get("label") for request in daemon.requests[:4]] == [{"a": True}] * 4
    assert "not supported" in teu("system", "prune", "--volumes", "--filter", "until=1h").err


def test_a_pull_shows_its_progress_and_the_name(daemon: Any, teu: Callable[..., Any]) -> None:
    messages = [{"status": "Pulling from library/busybox", "id": "latest"}, {"status": "Done"}]
    body = "".join(json.dumps(message) + "\n" for message in messages).encode()
    daemon.on("POST", "/images/create", Raw(body, "application/json"))
    done = teu("pull", "busybox")
    assert done.out == (
        "Using default tag: latest\nlatest: Pulling from library/busybox\nDone\ndocker.io/library/busybox:latest\n"
    )
    assert daemon.last.query == {"fromImage": "busybox", "tag": "latest"}
    assert teu("pull", "-q", "-a", "localhost:5000/x").out == "localhost:5000/x\n"
    assert teu("pull", "-a", "busybox:1").err == "tag can't be used with --all-tags/-a\n"
    daemon.on(
        "POST", "/images/create", Raw(b'{"errorDetail":{"message":"denied"},"error":"denied"}\n', "application/json")
    )
    assert teu("pull", "busybox") == (1, "Using default tag: latest\n", "denied\n")
    assert teu("pull", "--disable-content-trust=false", "busybox").err.startswith("content trust is not supported")


def test_a_push(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on(
        "POST",
        "/images/localhost:5000/x/push",
        Raw(b'{"status":"latest: digest: sha256:1 size: 5"}\n', "application/json"),
    )
    assert teu("push", "localhost:5000/x").out == "Using default tag: latest\nlatest: digest: sha256:1 size: 5\n"
    assert daemon.last.query == {"tag": "latest"}
    assert teu("push", "-q", "localhost:5000/x:latest").out == "localhost:5000/x:latest\n"


def test_login_and_logout(daemon: Any, teu: Callable[..., Any], tmp_path: Any) -> None:
    daemon.on("POST", "/auth", {"Status": "Login Succeeded"})
    done = teu("login", "-u", "me", "--password-stdin", "localhost:5000", stdin=b"word\n")
    assert (done.code, done.out) == (0, "Login Succeeded\n")
    assert daemon.last.body == {"username": "me", "password": "word", "serveraddress": "localhost:5000"}
    assert teu("login", "localhost:5000").err.startswith("Authenticating with existing credentials... [Username: me]\n")
    assert teu("logout", "localhost:5000").out == "Removing login credentials for localhost:5000\n"
    assert "localhost" not in (tmp_path / "config/config.json").read_text()
    assert "non TTY device" in teu("login", "localhost:5000").err
    assert "requires --username to be set" in teu("login", "--password-stdin").err
    assert teu("login", "-u", "me", "-p", "").err == "password is empty\n"
