# SPDX-License-Identifier: Apache-2.0
"""A network and IPAM plugin of docker's protocol for the tests, which keeps what it was asked: JSON over HTTP on a unix
socket. Its containers are joined by a bridge of its own."""

from __future__ import annotations

import contextlib
import http.server
import json
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FOLDER = Path("/run/docker/plugins")
BRIDGE = "plugbr0"

Answer = dict[str, Any] | tuple[int, str]


class Failed(Exception):
    """What a plugin says when it does not do what it is asked."""


def ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True, capture_output=True, text=True)


def mac_of(endpoint: str) -> str:
    """The one that the plugin gives an endpoint."""
    return f"02:70:{endpoint[:2]}:{endpoint[2:4]}:{endpoint[4:6]}:{endpoint[6:8]}"


class Plugin:
    """`asked` is what came: (method, body), in the order of the answers. An entry of `answers`, a value or a function
    of the request's body, replaces the plugin's own answer to a method; (status, text) is an HTTP error."""

    def __init__(self, name: str = "house", folder: Path = FOLDER) -> None:
        self.name = name
        self.path = folder / f"{name}.sock"
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: dict[str, Answer | Callable[[Any], Answer]] = {}
        self.implements = ["NetworkDriver", "IpamDriver"]
        self.replay = False
        self.bridge = False
        self.port = 0
        self.networks: dict[str, str] = {}  # with the gateway
        self.endpoints: dict[str, str] = {}
        self.pools: dict[str, str] = {}
        self.given: dict[str, set[str]] = {}

    # -- the wire ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def running(self, tls: ssl.SSLContext | bool | None = None) -> Iterator[Plugin]:
        """It listens: on its socket, or where `tls` is said, at `port`; False is without TLS."""
        plugin = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                chunked = self.headers.get("Transfer-Encoding") == "chunked"
                body = self.chunks() if chunked else self.rfile.read(length)
                status, answer = plugin.answer(self.path[1:], body, dict(self.headers))
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.docker.plugins.v1.2+json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def chunks(self) -> bytes:
                result = b""
                while size := int(self.rfile.readline(), 16):
                    result += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return result

            def address_string(self) -> str:
                return "engine"

            def log_message(self, *_: Any) -> None: ...

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        class TcpServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
            daemon_threads = True

        if tls is not None:
            made: socketserver.BaseServer = TcpServer(("127.0.0.1", 0), Handler)
            if isinstance(tls, ssl.SSLContext):
                made.socket = tls.wrap_socket(made.socket, server_side=True)
            self.port = made.server_address[1]
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            made = Server(str(self.path), Handler)
        with made as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()
                self.path.unlink(missing_ok=True)
        if self.bridge:
            subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)

    def answer(self, method: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        asked = json.loads(body) if body.strip() else None
        self.asked.append((method, asked))
        self.headers.append(headers)
        own = self.answers.get(method)
        try:
            given = own(asked) if callable(own) else own
            if given is None:
                function = getattr(self, method.replace(".", "_").lower(), None)
                given = function(asked) if function else (404, "page not found")
        except Failed as error:
            given = {"Err": str(error), "Error": str(error)}
        if isinstance(given, tuple):
            return given[0], given[1].encode()
        return 200, json.dumps(given).encode()

    def methods(self) -> list[str]:
        return [method for method, _ in self.asked]

    def of(self, method: str) -> list[Any]:
        """The bodies of a method's requests."""
        return [body for name, body in self.asked if name == method]

    # -- the network driver ------------------------------------------------------------------

    def plugin_activate(self, _: Any) -> Answer:
        return {"Implements": self.implements}

    def networkdriver_getcapabilities(self, _: Any) -> Answer:
        return {"Scope": "local", "ConnectivityScope": "local"}

    def networkdriver_createnetwork(self, asked: Any) -> Answer:
        data = [*(asked["IPv4Data"] or []), *(asked["IPv6Data"] or [])]
        self.networks[asked["NetworkID"]] = (data[0].get("Gateway") or "").partition("/")[0] if data else ""
        return {}

    def networkdriver_deletenetwork(self, asked: Any) -> Answer:
        if self.networks.pop(asked["NetworkID"], None) is None:
            raise Failed(f"no network {asked['NetworkID']}")
        return {}

    def networkdriver_createendpoint(self, asked: Any) -> Answer:
        self.endpoints[asked["EndpointID"]] = asked["NetworkID"]
        interface = asked["Interface"] or {}
        return {"Interface": {} if interface.get("MacAddress") else {"MacAddress": mac_of(asked["EndpointID"])}}

    def networkdriver_endpointoperinfo(self, _: Any) -> Answer:
        return {"Value": {}}

    def networkdriver_join(self, asked: Any) -> Answer:
        mark = asked["EndpointID"][:8]
        if not self.bridge:
            self.bridge = True
            subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)
            ip("link", "add", BRIDGE, "type", "bridge")
            ip("link", "set", BRIDGE, "up")
        ip("link", "add", f"plug{mark}", "type", "veth", "peer", "name", f"pout{mark}")
        ip("link", "set", f"pout{mark}", "master", BRIDGE, "up")
        return {
            "InterfaceName": {"SrcName": f"plug{mark}", "DstPrefix": "plug"},
            "Gateway": self.networks[asked["NetworkID"]],
            "StaticRoutes": [{"Destination": "203.0.113.0/24", "RouteType": 1}],
        }

    def networkdriver_programexternalconnectivity(self, _: Any) -> Answer:
        return {}

    def networkdriver_revokeexternalconnectivity(self, _: Any) -> Answer:
        return {}

    def networkdriver_leave(self, _: Any) -> Answer:
        return {}

    def networkdriver_deleteendpoint(self, asked: Any) -> Answer:
        if self.endpoints.pop(asked["EndpointID"], None) is None:
            raise Failed(f"no endpoint {asked['EndpointID']}")
        subprocess.run(["ip", "link", "del", f"pout{asked['EndpointID'][:8]}"], check=False, capture_output=True)
        return {}

    def networkdriver_discovernew(self, _: Any) -> Answer:
        return {}

    def networkdriver_discoverdelete(self, _: Any) -> Answer:
        return {}

    # -- the addresses -----------------------------------------------------------------------

    def ipamdriver_getcapabilities(self, _: Any) -> Answer:
        return {"RequiresMACAddress": False, "RequiresRequestReplay": self.replay}

    def ipamdriver_getdefaultaddressspaces(self, _: Any) -> Answer:
        return {"LocalDefaultAddressSpace": "houselocal", "GlobalDefaultAddressSpace": "houseglobal"}

    def ipamdriver_requestpool(self, asked: Any) -> Answer:
        subnet = asked["Pool"] or ("fd00:201::/64" if asked["V6"] else f"10.201.{len(self.pools)}.0/24")
        identity = f"pool-{subnet}"
        self.pools[identity] = subnet
        self.given.setdefault(identity, set())
        return {"PoolID": identity, "Pool": subnet, "Data": {}}

    def ipamdriver_releasepool(self, asked: Any) -> Answer:
        if self.pools.pop(asked["PoolID"], None) is None:
            raise Failed(f"no pool {asked['PoolID']}")
        return {}

    def ipamdriver_requestaddress(self, asked: Any) -> Answer:
        import ipaddress

        subnet = ipaddress.ip_network(self.pools[asked["PoolID"]])
        taken = self.given[asked["PoolID"]]
        wanted = asked["Address"] or next((str(one) for one in subnet.hosts() if str(one) not in taken), "")
        if not wanted:
            raise Failed("no address is left")
        if wanted in taken and not self.replay:
            raise Failed(f"{wanted} is taken")
        taken.add(wanted)
        return {"Address": f"{wanted}/{subnet.prefixlen}", "Data": {}}

    def ipamdriver_releaseaddress(self, asked: Any) -> Answer:
        if asked["Address"] not in self.given[asked["PoolID"]]:
            raise Failed(f"{asked['Address']} is not taken")
        self.given[asked["PoolID"]].discard(asked["Address"])
        return {}
