# SPDX-License-Identifier: Apache-2.0
"""`teu compose-units` with the real docker-compose: a project as units, beside what `compose up` makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from declared import PLACE, journal, shared_run, state
from images import need_busybox
from whole import call, eventually, out, teu

pytestmark = pytest.mark.needs("systemd", "teud")
__all__ = ["shared_run"]

COMPOSE = """\
name: shop
services:
  db:
    image: busybox
    command: ["sh", "-c", "echo $$GREETING > /data/said; sleep 1; touch /tmp/well; exec sleep 1000"]
    environment:
      GREETING: "good day: 100% $$"
    healthcheck:
      test: ["CMD", "test", "-e", "/tmp/well"]
      interval: 300ms
      retries: 100
    volumes: ["data:/data"]
    stop_signal: SIGKILL
  seed:
    image: busybox
    command: ["sh", "-c", "echo seeded"]
  web:
    image: busybox
    command: ["sh", "-c", "nslookup db >/dev/null && echo found; exec sleep 1000"]
    stop_signal: SIGKILL
    oom_score_adj: 300
    networks: {default: {}, back: {aliases: [www]}}
    secrets: [key]
    volumes_from: ["db:ro"]
    depends_on:
      db: {condition: service_healthy}
      seed: {condition: service_completed_successfully}
networks:
  back: {ipam: {config: [{subnet: 10.213.77.0/24}]}}
volumes: {data: {}}
secrets: {key: {file: ./key}}
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Path]:
    need_busybox()
    (tmp_path / "compose.yaml").write_text(COMPOSE)
    (tmp_path / "key").write_text("open sesame")
    try:
        yield tmp_path / "compose.yaml"
    finally:
        call("systemctl", "stop", "shop.target", "shop-*.service", check=False)
        teu("compose-units", "--remove", "-p", "shop", check=False)
        call("systemctl", "daemon-reload")
        call("systemctl", "reset-failed", check=False)
        teu("network", "rm", "shop_default", "shop_back", check=False)
        teu("volume", "rm", "shop_data", check=False)
        assert not (PLACE / "shop").exists()


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="this lab has no docker-compose")
def test_a_project_is_a_target_with_its_members(shop: Path, shared_run: None) -> None:
    assert "+++ /etc/teu/containers/shop/shop-web.container" in teu("compose-units", str(shop)).stdout
    assert teu("system", "validate", "-q", str(PLACE / "shop")).stdout == ""
    call("systemctl", "daemon-reload")
    call("systemctl", "start", "shop.target")
    # A target waits for what it wants.
    assert {name: state(f"shop-{name}.service") for name in ("db", "seed", "web")} == dict.fromkeys(
        ("db", "seed", "web"), "active"
    )
    members = out("systemctl", "list-dependencies", "--plain", "shop.target").split()
    assert {"shop-db.service", "shop-seed.service", "shop-web.service"} <= set(members)
    eventually("web has found db by its name", lambda: "found" in journal("shop-web.service"))
    assert "seeded" in journal("shop-seed.service")
    assert teu("exec", "shop-web-1", "cat", "/data/said").stdout == "good day: 100% $\n"
    assert "good day" not in out("systemctl", "cat", "shop-db.service"), "everybody reads a unit"
    assert (PLACE / "shop/shop-db.env").stat().st_mode & 0o777 == 0o600
    assert teu("exec", "shop-web-1", "cat", "/run/secrets/key").stdout == "open sesame"
    # As `compose up` has it: names, networks, aliases, volumes.
    found = json.loads(teu("inspect", "shop-web-1").stdout)[0]
    assert set(found["NetworkSettings"]["Networks"]) == {"shop_default", "shop_back"}
    assert {"web", "www"} <= set(found["NetworkSettings"]["Networks"]["shop_back"]["Aliases"])
    assert found["HostConfig"]["OomScoreAdj"] == 300
    call("systemctl", "stop", "shop.target")
    eventually("all have stopped", lambda: state("shop-web.service") == "inactive" == state("shop-db.service"))
    assert out("teu", "volume", "ls", "-q", "--filter", "name=shop_data") == "shop_data"


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="this lab has no docker-compose")
def test_compose_would_make_the_same(shop: Path) -> None:
    """The names of what is made are those of `compose up`, so the data of a project that ran so is there."""
    wanted = {}
    teu("compose", "-f", str(shop), "up", "-d", "--wait", "db")
    try:
        wanted = json.loads(teu("inspect", "shop-db-1").stdout)[0]
    finally:
        teu("compose", "-f", str(shop), "down")
    teu("compose-units", str(shop))
    call("systemctl", "daemon-reload")
    call("systemctl", "start", "shop-db.service")
    found = json.loads(teu("inspect", "shop-db-1").stdout)[0]
    for key in ("Cmd", "Entrypoint", "Healthcheck", "Image", "StopSignal", "WorkingDir", "User"):
        assert found["Config"][key] == wanted["Config"][key], key
    assert (
        "GREETING=good day: 100% $" in found["Config"]["Env"] and "GREETING=good day: 100% $" in wanted["Config"]["Env"]
    )
    assert set(found["NetworkSettings"]["Networks"]) == set(wanted["NetworkSettings"]["Networks"])
    assert [mount["Name"] for mount in found["Mounts"]] == [mount["Name"] for mount in wanted["Mounts"]]


@pytest.mark.needs("memory")
@pytest.mark.skipif(not shutil.which("docker-compose"), reason="this lab has no docker-compose")
def test_limits_are_those_of_the_unit(shop: Path, shared_run: None) -> None:
    shop.write_text(COMPOSE.replace("    oom_score_adj: 300\n", "    mem_limit: 64m\n"))
    teu("compose-units", str(shop))
    call("systemctl", "daemon-reload")
    call("systemctl", "start", "shop-web.service")
    assert json.loads(teu("inspect", "shop-web-1").stdout)[0]["HostConfig"]["Memory"] == 64 << 20


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="this lab has no docker-compose")
def test_what_is_refused_is_told_by_line(shop: Path) -> None:
    shop.write_text(COMPOSE.replace("    oom_score_adj: 300\n", "    deploy: {mode: global}\n"))
    done = teu("compose-units", str(shop), check=False)
    line = 1 + shop.read_text().split("\n").index("    deploy: {mode: global}")
    assert done.returncode == 1 and done.stderr.startswith(f"{shop}:{line}: services.web.deploy.mode: is refused")
    assert not (PLACE / "shop").exists()
