# SPDX-License-Identifier: Apache-2.0
"""Answers of the Engine API as the targets get and judge them, and the objects that the targets work on."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from dataclasses import dataclass, field
from typing import Any

SOCKET = "/run/teu/teud.sock"
BOUND = 30.0  # seconds in which an answer must begin

# What only an error of the program itself says: Python's own words.
PYTHON = re.compile(
    r"internal error|Traceback|object has no attribute|NoneType|unhashable|codec can't|not subscriptable"
    r"|is not iterable|argument of type|list index|string index|embedded null|surrogates not allowed"
    r"|takes \d+ positional|invalid literal for|must be (str|int|bytes)\b|not JSON serializable|dictionary changed"
    r"|maximum recursion|int too (large|big)|OverflowError|KeyError|ValueError|TypeError|\[Errno |bytes-like"
    r"|UNIQUE constraint|sqlite|NOT NULL constraint|Exception calling|unexpected error",
)


@dataclass
class Answer:
    """`body` is what came within the patience of a stream; `whole`: it came to its end."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = True
    trouble: str = ""  # what kept an answer from being one


class Connection(http.client.HTTPConnection):
    def __init__(self, patience: float) -> None:
        super().__init__("teu")
        self.raw = self.sock = socket.socket(socket.AF_UNIX)  # http.client forgets it where an answer has no length
        self.sock.settimeout(patience)
        self.sock.connect(SOCKET)

    def connect(self) -> None:
        raise ConnectionError("the connection is used up")


def ask(
    method: str,
    target: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    patience: float = BOUND,
    stream: float = 0.0,
    early: bytes = b"",
) -> Answer:
    """One request. `stream`: the answer may never end, so no more than this is waited for it; `early` is sent on a
    connection that was taken over. Raises TimeoutError when no answer begins."""
    connection = Connection(patience)
    try:
        try:
            connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            try:
                connection.send(body or b"")
            except (BrokenPipeError, ConnectionResetError):
                pass  # an answer that did not wait for the body
            response = connection.getresponse()
        except (http.client.HTTPException, ConnectionError) as error:
            return Answer(0, trouble=f"no answer: {type(error).__name__}: {error}")
        found = {name.lower(): value for name, value in response.getheaders()}
        if response.status == 101 or (stream and response.status == 200):
            return _some(connection.raw, response, found, stream or 0.2, early)
        try:
            return Answer(response.status, found, response.read())
        except (http.client.HTTPException, ConnectionError) as error:
            return Answer(response.status, found, trouble=f"the answer broke off: {type(error).__name__}: {error}")
    finally:
        connection.close()


def _some(
    sock: socket.socket, response: http.client.HTTPResponse, headers: dict[str, str], seconds: float, early: bytes
) -> Answer:
    data = b""
    end = time.monotonic() + seconds
    try:
        if early:
            sock.sendall(early)
        while (left := end - time.monotonic()) > 0 and len(data) < 1 << 20:
            sock.settimeout(left)
            part = response.fp.read1(1 << 16) if response.status == 101 else response.read1(1 << 16)
            if not part:
                return Answer(response.status, headers, data)
            data += part
    except (OSError, http.client.HTTPException, ValueError):
        pass
    finally:
        response.close()
    return Answer(response.status, headers, data, whole=False)


def wrong(answer: Answer) -> str:
    """What is wrong with an answer, whatever was asked; "" for nothing."""
    if answer.trouble:
        return answer.trouble
    kind = answer.headers.get("content-type", "")
    if answer.status >= 400:
        if not kind.startswith("application/json"):
            return f"an error of type {kind!r}"
        try:
            value = json.loads(answer.body, parse_constant=_refuse)
        except ValueError:
            return f"an error that is no JSON: {answer.body[:100]!r}"
        if not isinstance(value, dict) or not isinstance(value.get("message"), str) or not value["message"]:
            return f"an error without a message: {answer.body[:100]!r}"
        if found := PYTHON.search(value["message"]):
            return f"{answer.status} in the words of the program itself ({found[0]}): {value['message'][:300]}"
        return ""
    if kind.startswith("application/json") and answer.whole and answer.status != 101:
        for line in [answer.body] if b"\n" not in answer.body.strip() else answer.body.splitlines():
            try:
                value = json.loads(line or b"null", parse_constant=_refuse)
            except ValueError:
                return f"an answer that is no JSON: {line[:100]!r}"
            if isinstance(value, dict) and isinstance(value.get("error"), str) and PYTHON.search(value["error"]):
                return f"an error in a stream in the words of the program itself: {value['error'][:300]}"
    return ""


def _refuse(text: str) -> Any:
    raise ValueError(text)


# ---- objects -----------------------------------------------------------------------------------------------

LOOP = ["sh", "-c", "trap 'exit 0' TERM; echo one; echo two >&2; while :; do sleep 0.2; done"]
CONTAINERS: dict[str, dict[str, Any]] = {
    "fuzz-run": {"Image": "busybox", "Cmd": LOOP, "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}}},
    "fuzz-tty": {
        "Image": "busybox",
        "Cmd": ["cat"],
        "Tty": True,
        "OpenStdin": True,
        "HostConfig": {"NetworkMode": "none"},
    },
    "fuzz-idle": {"Image": "busybox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none", "Binds": ["fuzz-vol:/v"]}},
}
JSON = {"Content-Type": "application/json"}


def call(method: str, path: str, body: Any = None) -> Any:
    """A plain request of the target's own; the decoded answer, None for an error."""
    data = None if body is None else json.dumps(body).encode()
    answer = ask(method, f"/v1.45{path}", data, JSON if data is not None else {}, patience=120)
    if answer.status >= 400 or not answer.body.strip():
        return None
    return json.loads(answer.body)


def ensure() -> str:
    """The objects that requests are made for are there, and as they shall be. Returns an exec's identity."""
    import images

    if call("GET", "/images/busybox/json") is None:
        images.need_busybox()
    for name, body in CONTAINERS.items():
        there = call("GET", f"/containers/{name}/json")
        running = bool(there) and there["State"]["Status"] == "running"
        if there is None or (name != "fuzz-idle" and not running):
            call("DELETE", f"/containers/{name}?force=1")
            call("POST", f"/containers/create?name={name}", body)
            if name != "fuzz-idle":
                call("POST", f"/containers/{name}/start")
    if call("GET", "/networks/fuzz-net") is None:
        call("POST", "/networks/create", {"Name": "fuzz-net"})
    if call("GET", "/volumes/fuzz-vol") is None:
        call("POST", "/volumes/create", {"Name": "fuzz-vol"})
    made = call("POST", "/containers/fuzz-run/exec", {"Cmd": ["cat"], "AttachStdin": True, "AttachStdout": True})
    return str(made["Id"]) if made else "none"


def end_all() -> None:
    """Every container that runs gets what no process can ignore."""
    for each in call("GET", "/containers/json") or []:
        call("POST", f"/containers/{each['Id']}/kill")


def warm() -> None:
    """What comes with the first container and the first network, and stays, is there."""
    import images

    images.need_busybox()
    ensure()


def clean() -> None:
    """Nothing is left of containers, networks, volumes, and images but busybox."""
    import images

    for each in call("GET", "/containers/json?all=1") or []:
        call("DELETE", f"/containers/{each['Id']}?force=1&v=1")
    for each in call("GET", "/networks") or []:
        if each["Name"] not in ("bridge", "host", "none"):
            call("DELETE", f"/networks/{each['Id']}")
    for each in (call("GET", "/volumes") or {}).get("Volumes") or []:
        call("DELETE", f"/volumes/{each['Name']}?force=1")
    for each in call("GET", "/images/json?all=1") or []:
        tags = each.get("RepoTags") or []
        if "busybox:latest" in tags:
            for tag in tags:
                if tag != "busybox:latest":
                    call("DELETE", f"/images/{tag}?force=1")
        else:
            call("DELETE", f"/images/{each['Id']}?force=1")
    images.need_busybox()
