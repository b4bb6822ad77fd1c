# SPDX-License-Identifier: Apache-2.0
"""`shim`: talk to a container's shim directly, past the daemon."""

from __future__ import annotations

import asyncio
import base64
import glob
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from teu.ctr.commands import Command, Ctr
from teu.ctr.errors import CommandError
from teu.ctr.fifos import write_all
from teu.ctr.flags import Options
from teu.ctr.output import show_json
from teu.oci import jsontext
from teu.ttrpc import client as ttrpc
from teu.ttrpc.status import StatusError

SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
VERSIONS = (2, 3)


def socket_of(path: str, folder: str = "/run/containerd/s") -> str:
    """Where a shim listens by containerd's rule: of the path of the daemon's socket, the namespace and the id."""
    return f"{folder}/{hashlib.sha256(path.encode()).hexdigest()}"


def address_of(ctr: Ctr, identity: str) -> str:
    """Where the shim listens: what its bundle says, else where containerd's shims listen by rule."""
    for bundle in glob.glob(f"/run/*/*/{ctr.namespace}/{identity}") + glob.glob(
        f"/run/*/*/*/{ctr.namespace}/{identity}"
    ):
        for name in ("bootstrap.json", "address"):
            path = Path(bundle) / name
            if path.is_file():
                text = path.read_text().strip()
                return str(jsontext.loads(text)["address"]) if text.startswith("{") else text
    rule = os.path.join(ctr.options["address"], ctr.namespace, identity)
    tried = [socket_of(rule, folder) for folder in ("/run/containerd/s", "/run/teu/s")]
    for place in tried:
        if Path(place).exists():
            return f"unix://{place}"
    raise CommandError(f"fail to connect to container shim with sockets: [{' '.join(tried)}]")


def call(ctr: Ctr, options: Options, *calls: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls one after another on one connection, by the version of the task API that the shim speaks, or the one that
    is asked for."""
    asked = options["api-version"] if "api-version" in options.changed else 0
    if asked and asked not in VERSIONS:
        raise CommandError(f"unsupported api version {asked}")

    async def talk() -> list[dict[str, Any]]:
        connection = await ttrpc.connect(options["shim-address"] or address_of(ctr, options["id"]))
        results: list[dict[str, Any]] = []
        service = SERVICES[VERSIONS.index(asked) if asked else 0]
        for method, request in calls:
            try:
                results.append(await connection.task(service, method, request))
            except StatusError as error:
                if asked or "service" not in str(error) or service == SERVICES[1] or results:
                    raise
                service = SERVICES[1]
                results.append(await connection.task(service, method, request))
        connection.close()
        return results

    try:
        return asyncio.run(talk())
    except (StatusError, OSError, TimeoutError) as error:
        raise CommandError(str(error)) from None


def wanted(options: Options) -> str:
    """The task's id, which is the shim's where a shim has one container."""
    if not options["id"] and not options["shim-address"]:
        raise CommandError("shim ID (--id) or address (--shim-address) must be specified")
    identity: str = options.get("task-id") or options["id"]
    return identity


def state(ctr: Ctr, options: Options, operands: list[str]) -> None:
    found = call(ctr, options, ("State", {"id": wanted(options)}))[0]
    shown = {}
    for key, value in found.items():
        if value in ("", None, 0, False, b""):
            continue
        if key == "exited_at":
            value = {name: number for name, number in value.items() if number}
            if not value:
                continue
        shown[key] = base64.b64encode(value).decode() if isinstance(value, bytes) else value
    show_json(shown)


def start(ctr: Ctr, options: Options, operands: list[str]) -> None:
    call(ctr, options, ("Start", {"id": wanted(options)}))


def delete(ctr: Ctr, options: Options, operands: list[str]) -> None:
    found = call(ctr, options, ("Delete", {"id": wanted(options)}))[0]
    ctr.print(f"container deleted and returned exit status {found['exit_status']}")


def shutdown(ctr: Ctr, options: Options, operands: list[str]) -> None:
    """One that has a container goes on."""
    call(ctr, options, ("Shutdown", {"id": wanted(options)}))


def execute(ctr: Ctr, options: Options, operands: list[str]) -> int:
    identity = wanted(options)
    if not operands:
        raise CommandError("exec id must be provided")
    exec_id, *arguments = operands
    if options["spec"]:
        process = jsontext.loads(Path(options["spec"]).read_text())
    else:
        process = {
            "args": arguments,
            "cwd": options["cwd"] or "/",
            "env": options["env"],
            "noNewPrivileges": True,
            "terminal": options["tty"],
            "user": {"uid": 0, "gid": 0},
        }
    request = {
        "id": identity,
        "exec_id": exec_id,
        "terminal": options["tty"],
        "stdin": options["stdin"],
        "stdout": options["stdout"],
        "stderr": options["stderr"],
        "spec": {
            "type_url": "types.containerd.io/opencontainers/runtime-spec/1/Process",
            "value": json.dumps(process).encode(),
        },
    }
    files = []
    if options["attach"] and options["stdout"]:
        files.append(os.open(options["stdout"], os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    target = {"id": identity, "exec_id": exec_id}
    started = call(ctr, options, ("Exec", request), ("Start", target))
    ctr.print(f"process running with pid {started[1]['pid']}")
    if not options["attach"]:
        return 0
    status = int(call(ctr, options, ("Wait", target))[0]["exit_status"])
    for file in files:
        try:
            while data := os.read(file, 1 << 16):
                write_all(1, data)
        except BlockingIOError:
            pass
        os.close(file)
    return status


API_VERSION = "api-version int=3 Speak this version of the task API, 2 or 3, and no other"
COMMANDS = {
    "shim state": Command(
        state,
        "[flags]",
        f"task-id,t string Of this task, where the shim has several\n{API_VERSION}",
    ),
    "shim shutdown": Command(shutdown, "[flags]", API_VERSION),
    "shim start": Command(start, ""),
    "shim delete": Command(delete, ""),
    "shim exec": Command(
        execute,
        "[flags] EXEC_ID [CMD] [ARG...]",
        """
stdin     string   FIFO for its input
stdout    string   FIFO for its output
stderr    string   FIFO for its errors
tty,t     bool     Give the process a terminal
attach,a  bool     Wait for it and show its output
env,e     strings  Set an environment variable
cwd       string   Working directory
spec      string   Take the process's specification from this file
""",
    ),
}
