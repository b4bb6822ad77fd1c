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
    for folder in ("/run/containerd/s", "/run/teu/s"):
        path = Path(folder) / hashlib.sha256(rule.encode()).hexdigest()
        if path.exists():
            return f"unix://{path}"
    raise CommandError(f"fail to connect to container {identity}'s shim")


def call(ctr: Ctr, identity: str, *calls: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls one after another on one connection, by the version of the task API that the shim speaks."""

    async def talk() -> list[dict[str, Any]]:
        connection = await ttrpc.connect(address_of(ctr, identity))
        results: list[dict[str, Any]] = []
        service = SERVICES[0]
        for method, request in calls:
            try:
                results.append(await connection.task(service, method, request))
            except StatusError as error:
                if "service" not in str(error) or service == SERVICES[1] or results:
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
    identity: str = options["id"]
    if not identity:
        raise CommandError("container id must be specified")
    return identity


def state(ctr: Ctr, options: Options, operands: list[str]) -> None:
    identity = wanted(options)
    found = call(ctr, identity, ("State", {"id": identity}))[0]
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
    identity = wanted(options)
    call(ctr, identity, ("Start", {"id": identity}))


def delete(ctr: Ctr, options: Options, operands: list[str]) -> None:
    identity = wanted(options)
    found = call(ctr, identity, ("Delete", {"id": identity}))[0]
    ctr.print(f"container deleted and returned exit status {found['exit_status']}")


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
    started = call(ctr, identity, ("Exec", request), ("Start", target))
    ctr.print(f"process running with pid {started[1]['pid']}")
    if not options["attach"]:
        return 0
    status = int(call(ctr, identity, ("Wait", target))[0]["exit_status"])
    for file in files:
        try:
            while data := os.read(file, 1 << 16):
                write_all(1, data)
        except BlockingIOError:
            pass
        os.close(file)
    return status


COMMANDS = {
    "shim state": Command(state, ""),
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
