# SPDX-License-Identifier: Apache-2.0
"""Sandboxes: run, list, remove, by the sandbox store and the sandbox controller of the daemon."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp

from teu.api.services.sandbox.v1 import sandbox_pb2 as pb
from teu.api.types import sandbox_pb2
from teu.ctr.commands import RUNTIME, Command, Ctr
from teu.ctr.errors import CommandError, NotFound
from teu.ctr.flags import Options
from teu.ctr.helptext import help_text
from teu.ctr.output import log, table
from teu.oci import jsontext

# The controller that runs sandboxes in shims. containerd 1.7 has that one alone; 2 refuses a call that names none, that
# of its own ctr as well.
SANDBOXER = "shim"
SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


def settled(call: Callable[[Any], object], request: Any) -> None:
    """Make a call to the sandbox controller. What containerd 1.7 calls failures though the deed is done is none: it
    cannot publish the events of its sandboxes, and misses the answer of a shim that ends as it was told to."""
    try:
        call(request)
    except CommandError as error:
        if "envelope topic" not in error.text and "ttrpc: closed" not in error.text:
            raise


def run(ctr: Ctr, options: Options, operands: list[str]) -> None:
    if len(operands) != 2:
        ctr.print(help_text("sandboxes run"))
        return
    path, identity = operands
    try:
        spec: Any = jsontext.loads(Path(path).read_text())
    except OSError as error:
        reason = f"open {path}: {(error.strerror or '').lower()}"
        raise CommandError(f"failed to read sandbox config: {reason}") from None
    except ValueError as error:
        raise CommandError(f"failed to parse sandbox config: {error}") from None
    client, controller = ctr.client, ctr.client.sandbox_controller
    now = Timestamp()
    now.GetCurrentTime()
    sandbox = sandbox_pb2.Sandbox(
        sandbox_id=identity,
        created_at=now,
        updated_at=now,
        runtime=sandbox_pb2.Sandbox.Runtime(
            name=options["runtime"], options=AnyMessage(type_url="google.protobuf.Empty")
        ),
        spec=AnyMessage(type_url=SPEC_TYPE, value=json.dumps(spec).encode()),
        sandboxer=SANDBOXER,
    )
    whose = {"sandbox_id": identity, "sandboxer": SANDBOXER}
    try:
        client.sandboxes.Create(pb.StoreCreateRequest(sandbox=sandbox))
    except CommandError as error:
        raise CommandError(f"failed to create new sandbox: {error.text}") from None
    try:
        # ctr 1.7 leaves this call out, so that its sandboxes never start: the daemon starts the shim in it.
        settled(controller.Create, pb.ControllerCreateRequest(sandbox=sandbox, **whose))
        settled(controller.Start, pb.ControllerStartRequest(**whose))
    except CommandError as error:
        with contextlib.suppress(CommandError):
            settled(controller.Shutdown, pb.ControllerShutdownRequest(**whose))
        client.sandboxes.Delete(pb.StoreDeleteRequest(sandbox_id=identity))
        raise CommandError(f"failed to start: {error.text}") from None
    ctr.print(identity)


def list_sandboxes(ctr: Ctr, options: Options, operands: list[str]) -> None:
    try:
        found = ctr.client.sandboxes.List(pb.StoreListRequest(filters=options["filters"])).list
    except CommandError as error:
        raise CommandError(f"failed to list sandboxes: {error.text}") from None
    rows = []
    for sandbox in found:
        stamp = sandbox.created_at
        fraction = f".{stamp.nanos:09d}".rstrip("0").rstrip(".")
        created = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(stamp.seconds))}{fraction} +0000 UTC"
        rows.append((sandbox.sandbox_id, created, sandbox.runtime.name))
    table([("ID", "CREATED", "RUNTIME"), *rows])


def remove(ctr: Ctr, options: Options, operands: list[str]) -> None:
    """What fails is told and left; the others are removed."""
    client, controller = ctr.client, ctr.client.sandbox_controller
    for identity in operands:
        step = "load"
        try:
            record = client.sandboxes.Get(pb.StoreGetRequest(sandbox_id=identity)).sandbox
            whose = {"sandbox_id": identity, "sandboxer": record.sandboxer or SANDBOXER}
            try:
                controller.Status(pb.ControllerStatusRequest(**whose))
            except CommandError as error:
                raise CommandError(f"failed to load sandbox {identity}, status request failed: {error.text}") from None
            step = "stop"
            try:
                settled(controller.Stop, pb.ControllerStopRequest(**whose))
            except NotFound:
                pass  # it does not run: its shim has died, or the host was started anew
            except CommandError as error:
                if not options["force"]:
                    raise
                log("error", f"failed to stop sandbox {identity}", error=error.text)
            step = "shutdown"
            try:
                settled(controller.Shutdown, pb.ControllerShutdownRequest(**whose))
            except NotFound:
                pass  # a shim that has ended when it was stopped may be cleaned up already
            client.sandboxes.Delete(pb.StoreDeleteRequest(sandbox_id=identity))
        except CommandError as error:
            log("error", f"failed to {step} sandbox {identity}", error=error.text)
            continue
        log("info", f"deleted: {identity}")


COMMANDS = {
    "sandboxes run": Command(
        run, "[flags] <pod-config.json> <sandbox-id>", f"runtime string={RUNTIME} Runtime name, or path of a shim"
    ),
    "sandboxes list": Command(list_sandboxes, "[flags]", "filters strings Only those that one of these filters fits"),
    "sandboxes remove": Command(
        remove, "[flags] <id> [<id>, ...]", "force,f bool Go on though a sandbox does not stop"
    ),
}
