# SPDX-License-Identifier: Apache-2.0
"""What kubectl needs of an API server and a kubelet to reach the pods of one CRI: their discovery documents, the pods
themselves, logs, and the streams of exec, attach and port-forward, which go to where the CRI says.

    with Relay(client, {"web": pod}) as relay:
        relay.kubectl("exec", "web", "--", "hostname")

As an API server's, what the two ends say to each other after the first request is not looked into.
"""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import threading
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
from crihouse import Client
from peers import NEWER, PATIENCE

from teu.api.cri.v1 import cri_pb2 as cri

KUBECTL = f"{NEWER}/usr/bin/kubectl"
PODS = "/api/v1/namespaces/default/pods/"
WAYS = {"exec": "Exec", "attach": "Attach", "portforward": "PortForward"}
RESOURCES = [
    {"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": ["get", "list", "watch"]},
    *(
        {"name": f"pods/{name}", "singularName": "", "namespaced": True, "kind": kind, "verbs": ["create", "get"]}
        for name, kind in (
            ("exec", "PodExecOptions"),
            ("attach", "PodAttachOptions"),
            ("portforward", "PodPortForwardOptions"),
        )
    ),
    {"name": "pods/log", "singularName": "", "namespaced": True, "kind": "Pod", "verbs": ["get"]},
]
FOUND: dict[str, dict[str, Any]] = {
    "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": RESOURCES},
}


class Relay:
    """On a port of its own. `pods` are those of `crihouse.Client.run_pod`, by their names."""

    def __init__(self, client: Client, pods: dict[str, Any], **more: str) -> None:
        """`more` are variables of kubectl's environment."""
        self.client, self.pods, self.more = client, pods, more
        self.asked: list[str] = []  # the method, the way and the protocol of each stream
        relay = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                relay.answer(self)

            do_POST = do_GET

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def __enter__(self) -> Relay:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    # What kubectl sees

    @property
    def environment(self) -> dict[str, str]:
        home = self.client.folder / "kubectl"
        home.mkdir(exist_ok=True)
        return {**os.environ, "HOME": str(home), "KUBECONFIG": "/dev/null", **self.more}

    def command(self, *words: str) -> list[str]:
        return [KUBECTL, f"--server=http://127.0.0.1:{self._server.server_address[1]}", *words]

    def kubectl(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Its end, whatever it is."""
        return subprocess.run(
            self.command(*words),
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=60 * PATIENCE,
            check=False,
            env=self.environment,
        )

    # What an API server answers

    def answer(self, asked: http.server.BaseHTTPRequestHandler) -> None:
        parts = urlsplit(asked.path)
        query = parse_qs(parts.query)
        name, _, way = parts.path.removeprefix(PODS).partition("/")
        if parts.path in FOUND:
            _say(asked, 200, FOUND[parts.path])
        elif not parts.path.startswith(PODS) or name not in self.pods:
            what = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            _say(asked, 404, {**what, "message": f'pods "{name}" not found'})
        elif not way:
            _say(asked, 200, self._pod(name))
        elif way == "log":
            self._log(asked, name, query)
        else:
            self._stream(asked, name, way, query)

    def _containers(self, name: str) -> dict[str, Any]:
        pod = self.pods[name][0]
        found = self.client.call("ListContainers", filter={"pod_sandbox_id": pod}).containers
        return {one.metadata.name: one for one in found}

    def _pod(self, name: str) -> dict[str, Any]:
        containers = self._containers(name)
        told = {one: self.client.status(found.id) for one, found in containers.items()}
        states = [
            {
                "name": one,
                "containerID": f"containerd://{status.id}",
                "ready": True,
                "state": {"running": {}} if status.state == cri.CONTAINER_RUNNING else {"terminated": {"exitCode": 0}},
            }
            for one, status in told.items()
        ]
        return {
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
            "spec": {
                "containers": [
                    {"name": one, "image": status.image.image, "stdin": True, "tty": one.startswith("tty")}
                    for one, status in told.items()
                ]
            },
            "status": {"phase": "Running", "containerStatuses": states},
        }

    def _log(self, asked: http.server.BaseHTTPRequestHandler, name: str, query: dict[str, list[str]]) -> None:
        container = query.get("container", [next(iter(self._containers(name)), "")])[0]
        lines = [f"{text}\n" for _, _, text in self.client.log(self.pods[name], container)]
        tail = int(query.get("tailLines", ["-1"])[0])
        data = "".join(lines if tail < 0 else lines[len(lines) - tail :]).encode()
        asked.send_response(200)
        asked.send_header("Content-Type", "text/plain")
        asked.send_header("Content-Length", str(len(data)))
        asked.end_headers()
        asked.wfile.write(data)

    def _stream(self, asked: http.server.BaseHTTPRequestHandler, name: str, way: str, query: dict[str, Any]) -> None:
        if asked.command == "POST" and "Content-Length" in asked.headers:
            asked.rfile.read(int(asked.headers["Content-Length"]))
        protocol = asked.headers.get("Sec-WebSocket-Protocol") or asked.headers.get("X-Stream-Protocol-Version") or ""
        self.asked.append(f"{asked.command} {way} {asked.headers.get('Upgrade')} {protocol}")
        try:
            url = urlsplit(self._where(name, way, query))
        except grpc.RpcError as error:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500}
            _say(asked, 500, {**status, "message": error.details()})
            return
        assert url.hostname and url.port
        lines = [f"{asked.command} {url.path} HTTP/1.1", f"Host: {url.netloc}"]
        lines += [
            f"{key}: {value}" for key, value in asked.headers.items() if key.lower() not in ("host", "content-length")
        ]
        with socket.create_connection((url.hostname, url.port)) as there:
            there.sendall("\r\n".join([*lines, "", ""]).encode())
            back = threading.Thread(target=_copy, args=(there.recv, asked.connection), daemon=True)
            back.start()
            _copy(asked.rfile.read1, there)  # type: ignore[attr-defined]
            back.join(10)
        asked.close_connection = True

    def _where(self, name: str, way: str, query: dict[str, Any]) -> str:
        if way == "portforward":
            ports = [int(one) for one in query.get("ports", [])]
            return str(self.client.call("PortForward", pod_sandbox_id=self.pods[name][0], port=ports).url)
        fields: dict[str, Any] = {key: query.get(key) == ["true"] for key in ("stdin", "stdout", "stderr", "tty")}
        if fields["tty"]:
            fields["stderr"] = False
        if way == "exec":
            fields["cmd"] = query["command"]
        container = self._containers(name)[query["container"][0]]
        return str(self.client.call(WAYS[way], container_id=container.id, **fields).url)


def _say(asked: http.server.BaseHTTPRequestHandler, status: int, document: dict[str, Any]) -> None:
    data = json.dumps(document).encode()
    asked.send_response(status)
    asked.send_header("Content-Type", "application/json")
    asked.send_header("Content-Length", str(len(data)))
    asked.end_headers()
    asked.wfile.write(data)


def _copy(read: Any, there: socket.socket) -> None:
    """Until one end has gone."""
    try:
        while data := read(65536):
            there.sendall(data)
        there.shutdown(socket.SHUT_WR)
    except OSError:
        pass
