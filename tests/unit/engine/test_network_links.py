# SPDX-License-Identifier: Apache-2.0
"""Links of containers on the default bridge: names, environment, and a way where neighbours have none."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest
from drivers import networks as suite
from networkhouse import Engine, container, reach, start

from teu.engine.containers import hostconfig
from teu.engine.core import fields
from teu.engine.core.errors import BadRequest, Conflict, EngineError, NotFound
from teu.engine.core.fields import HOST_CONFIG
from teu.engine.spec.process import environment
from teu.engine.views.containers import inspect
from teu.linux import neighbours, netlink, netns, nftables

REDIRECTS = "/proc/sys/net/ipv6/conf/eth0/accept_redirects"


def asked(engine: Any, name: str, links: list[str], env: tuple[str, ...] = (), exposed: tuple[str, ...] = ()) -> Any:
    body = {"Env": list(env), "ExposedPorts": {key: {} for key in exposed}}
    made = parts.container(engine, name, body, NetworkMode="default", Links=links)
    engine.endpoints.check(made, fields.NETWORKING.read({}), (1, 45), [])
    return made


def test_what_is_asked_for(tmp_path: Path) -> None:
    engine = parts.engine(tmp_path)
    engine.networks.start()
    db = asked(engine, "db", [])
    web = asked(engine, "web", ["db", "/db:/old/store", "db:store"])
    assert web.host_config.links == [f"{db.id}:db", f"{db.id}:store"]
    assert inspect(engine, web, False)["HostConfig"]["Links"] == ["/db:/web/db", "/db:/web/store"]  # type: ignore[index]
    assert inspect(engine, db, False)["HostConfig"]["Links"] is None  # type: ignore[index]
    with pytest.raises(BadRequest, match="could not get container for nobody: No such container: nobody"):
        asked(engine, "lost", ["nobody:n"])
    for mode, kind in (("host", "host type networking"), ("container:db", "container type network")):
        with pytest.raises(
            BadRequest, match=f"options: {kind} can't be used with links. This would result in undefined"
        ):
            hostconfig.check_networking(HOST_CONFIG.read({"NetworkMode": mode, "Links": ["db"]}))
    # Who is a guest in another's network has nothing of its own there; and a name is one container's.
    guest = parts.container(engine, "guest", NetworkMode="container:db")
    engine.endpoints.check(guest, fields.NETWORKING.read({}), (1, 45), [])
    assert asked(engine, "host", ["guest:db", "web:db"]).host_config.links == [f"{db.id}:db"]
    parts.container(engine, "open", NetworkMode="host")
    with pytest.raises(BadRequest, match="host type networking can't be used with links"):
        asked(engine, "lost2", ["open"])
    # On a network of users they are that network's names.
    parts.network(engine.networks, "front")
    named = parts.container(engine, "named", NetworkMode="front", Links=["db:store"])
    engine.endpoints.check(named, fields.NETWORKING.read({}), (1, 45), [])
    assert named.host_config.links is None
    assert named.network_settings.networks["front"].links == ["db:store"]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    with suite.own_namespace():
        engine = Engine(tmp_path, {"icc": False})
        yield engine
        engine.end()


def linked(engine: Engine, tmp_path: Path) -> tuple[Any, Any, Any]:
    """A server, who has a link to it, and who has none."""
    db = container(engine, tmp_path, 1, exposed={"80/tcp": {}, "53/udp": {}, "81/tcp": {}, "82/tcp": {}})
    db.config.env = ["USER=me", "PATH=/bin", "EMPTY="]
    web = container(engine, tmp_path, 2, Links=["c1:my-db"])
    return db, web, container(engine, tmp_path, 3)


def test_names_and_environment(engine: Engine, tmp_path: Path) -> None:
    db, web, _ = linked(engine, tmp_path)
    with pytest.raises(Conflict, match="Cannot link to a non running container: /c1 AS /c2/my-db"):
        engine.endpoints.attach(web)
    parts.network(engine.networks, "front")
    container(engine, tmp_path, 4, "front")
    elsewhere = container(engine, tmp_path, 5, Links=["c4:other"])
    with pytest.raises(Conflict, match="Cannot link to /c4, as it does not belong to the default network"):
        engine.endpoints.attach(elsewhere)
    for each in (db, web):
        start(engine, each)
    address = db.network_settings.networks["bridge"].address
    assert f"{address}\tmy-db h1 c1\n" in Path(web.directory, "hosts").read_text()
    told = engine.endpoints.links.environment(web)
    for entry in (
        f"MY_DB_PORT=tcp://{address}:80",
        f"MY_DB_PORT_80_TCP=tcp://{address}:80",
        f"MY_DB_PORT_80_TCP_ADDR={address}",
        "MY_DB_PORT_53_UDP_PORT=53",
        "MY_DB_PORT_53_UDP_PROTO=udp",
        f"MY_DB_PORT_80_TCP_START=tcp://{address}:80",
        f"MY_DB_PORT_80_TCP_END=tcp://{address}:82",
        "MY_DB_PORT_80_TCP_PORT_END=82",
        "MY_DB_NAME=/c2/my-db",
        "MY_DB_ENV_USER=me",
        "MY_DB_ENV_EMPTY=",
    ):
        assert entry in told
    assert not any("ENV_PATH" in entry for entry in told)
    web.config.env = ["MY_DB_NAME=mine"]
    assert "MY_DB_NAME=mine" in environment(web, False, None, told)
    assert engine.endpoints.links.environment(db) == []


def serve(engine: Engine, one: Any, port: int) -> socket.socket:
    return netns.run_in(engine.endpoints._active[one.id].namespace, lambda: socket.create_server(("0.0.0.0", port)))


def reaches(engine: Engine, one: Any, other: Any, port: int, timeout: float = 5.0) -> bool:
    address = other.network_settings.networks["bridge"].address
    return netns.run_in(engine.endpoints._active[one.id].namespace, lambda: reach(address, port, timeout))


def kept_out(engine: Engine, one: Any, other: Any, port: int) -> bool:
    return not reaches(engine, one, other, port, 0.3)


def test_a_way_where_neighbours_have_none(engine: Engine, tmp_path: Path) -> None:
    db, web, other = linked(engine, tmp_path)
    for each in (db, web, other):
        start(engine, each)
    with serve(engine, db, 80), serve(engine, db, 99), serve(engine, web, 80):
        assert reaches(engine, web, db, 80)
        assert kept_out(engine, web, db, 99)
        assert kept_out(engine, other, db, 80)
        assert kept_out(engine, db, web, 80)
    # The other one is started anew, and has another address.
    engine.endpoints.detach(db)
    taken = container(engine, tmp_path, 4)
    start(engine, taken)
    with serve(engine, taken, 80):
        assert kept_out(engine, web, taken, 80)
    before = taken.network_settings.networks["bridge"].address
    start(engine, db)
    address = db.network_settings.networks["bridge"].address
    assert address != before
    hosts = Path(web.directory, "hosts").read_text()
    assert f"{address}\tmy-db h1 c1\n" in hosts
    assert before not in hosts
    with serve(engine, db, 80):
        assert reaches(engine, web, db, 80)
        # The rules are made anew, by somebody's doing and by the next daemon.
        nftables.run("flush ruleset")
        engine.endpoints.drivers["bridge"]._mend_table()  # type: ignore[attr-defined]
        assert reaches(engine, web, db, 80)
        with engine.living(web), engine.living(db):
            engine.begin()
            engine.endpoints.recover([web, db])
            assert reaches(engine, web, db, 80)
            assert kept_out(engine, db, web, 80)
    engine.endpoints.detach(web)
    assert "linked4" in nftables.run("list ruleset")
    assert f"{address} . tcp" not in nftables.run("list set inet teu linked4")


def test_a_way_for_ipv6(engine: Engine, tmp_path: Path) -> None:
    if not Path("/proc/sys/net/ipv6").exists():
        pytest.skip("this kernel has no IPv6")
    engine.settings = {"icc": False, "ipv6": True, "fixed-cidr-v6": "fd00:66::/64"}
    engine.begin()
    db, web, other = linked(engine, tmp_path)
    again = container(engine, tmp_path, 4, Links=["c1:db"])
    for each in (db, web, other, again):
        start(engine, each)

    def serves(one: Any, port: int) -> socket.socket:
        address = one.network_settings.networks["bridge"].address6
        return netns.run_in(
            engine.endpoints._active[one.id].namespace,
            lambda: socket.create_server((address, port), family=socket.AF_INET6),
        )

    def reaches6(one: Any, far: Any, port: int, timeout: float = 5.0) -> bool:
        address = far.network_settings.networks["bridge"].address6
        return netns.run_in(engine.endpoints._active[one.id].namespace, lambda: reach(address, port, timeout))

    def answered() -> list[str]:
        with netlink.Socket() as kernel:
            index = netlink.link_index(kernel.link("teu0"))
            return sorted(str(address) for address in neighbours.answered_for(kernel, index))

    mine = {one.id: one.network_settings.networks["bridge"].address6 for one in engine.known}
    with serves(db, 80), serves(db, 99), serves(web, 80):
        for _ in range(8):  # the host says that there is a straight way, which is not heeded
            assert reaches6(web, db, 80)
        heeded = netns.run_in(engine.endpoints._active[web.id].namespace, Path(REDIRECTS).read_text)
        assert heeded == "0\n"
        assert not reaches6(web, db, 99, 0.3)
        assert not reaches6(other, db, 80, 0.3)
        assert not reaches6(db, web, 80, 0.3)
        with engine.living(web), engine.living(db), engine.living(again):
            with netlink.Socket() as kernel:  # as a daemon leaves it that died
                index = netlink.link_index(kernel.link("teu0"))
                kernel.send([neighbours.answer_for(IPv6Address("fd00:66::77"), index)])
                kernel.send([neighbours.answer_no_more(IPv6Address(mine[web.id]), index)])
            other.running = False
            engine.begin()
            engine.endpoints.recover([web, db, again])
            assert answered() == sorted({mine[db.id], mine[web.id], mine[again.id]})
            assert reaches6(web, db, 80)
            # And where somebody takes the bridge away.
            subprocess.run(["ip", "link", "delete", "teu0"], check=True)
            engine.begin()
            engine.endpoints.recover([web, db, again])
            assert answered() == sorted({mine[db.id], mine[web.id], mine[again.id]})
            assert reaches6(web, db, 80)
            assert not reaches6(db, web, 80, 0.3)
    engine.endpoints.detach(web)
    assert answered() == sorted({mine[db.id], mine[again.id]})
    engine.endpoints.detach(again)
    assert answered() == []


def test_neighbours_that_talk_need_no_way(tmp_path: Path, engine: Engine) -> None:
    engine.settings = {}
    engine.begin()
    db, web, other = linked(engine, tmp_path)
    for each in (db, web, other):
        start(engine, each)
    assert "elements" not in nftables.run("list set inet teu linked4")
    with serve(engine, db, 99):
        assert reaches(engine, other, db, 99)


def test_a_link_that_goes(engine: Engine, tmp_path: Path) -> None:
    db, web, other = linked(engine, tmp_path)
    engine.known.remove(other)
    more = container(engine, tmp_path, 4, Links=["c1:my-db", "c1:store"])
    for each in (db, web, more):
        start(engine, each)
    assert engine.endpoints.links.other_names() == {db.id: ["/c2/my-db", "/c4/my-db", "/c4/store"]}
    with serve(engine, db, 80):
        assert reaches(engine, more, db, 80)
        engine.endpoints.unlink("c4/my-db")
        assert more.host_config.links == [f"{db.id}:store"]
        hosts = Path(more.directory, "hosts").read_text()
        assert "\tmy-db h1 c1\n" not in hosts
        assert "\tstore h1 c1\n" in hosts
        assert reaches(engine, more, db, 80)  # by the other one
        engine.endpoints.unlink("/c4/store")
        assert kept_out(engine, more, db, 80)
        assert reaches(engine, web, db, 80)
    assert more.host_config.links is None
    for text, error, says in (
        ("c4/store", NotFound, "No such container: c4/store"),
        ("nobody/store", NotFound, "No such container: nobody/store"),
        ("nobody", NotFound, "No such container: nobody"),
        ("c4", EngineError, "Conflict, cannot remove the default link name of the container"),
    ):
        with pytest.raises(error, match=says):
            engine.endpoints.unlink(text)
    # Of one that does not run, and whose other one is gone.
    engine.endpoints.detach(web)
    engine.endpoints.detach(db)
    engine.known.remove(db)
    engine.endpoints.unlink("c2/my-db")
    assert web.host_config.links is None


def test_who_is_not_on_the_default_network(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "front")
    db = container(engine, tmp_path, 1, "front")
    start(engine, db)
    web = container(engine, tmp_path, 2, Links=["c1"])
    with pytest.raises(Conflict, match="Cannot link to /c1, as it does not belong to the default network"):
        engine.endpoints.attach(web)
