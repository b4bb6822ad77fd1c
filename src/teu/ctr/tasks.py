# SPDX-License-Identifier: Apache-2.0
"""Tasks: list, start, attach, exec, kill, pause, resume, ps, metrics, delete. (checkpoint: `checkpoint`.)"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from teu.api.cgroups.v2 import metrics_pb2
from teu.api.types.runc.options import oci_pb2
from teu.ctr import cni, containers
from teu.ctr.client import Client
from teu.ctr.client import tasks_pb2 as pb
from teu.ctr.commands import Command, Ctr, need
from teu.ctr.errors import CommandError, NotFound
from teu.ctr.fifos import Conversation, Fifos
from teu.ctr.flags import Options
from teu.ctr.helptext import help_text
from teu.ctr.output import STATUS, Failures, log, table
from teu.ctr.run import IO_FLAGS, TASK_FLAGS, create_task, looked_into, packed
from teu.ctr.spec import set_user
from teu.linux import signals
from teu.oci import jsontext

PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"


def get_task(client: Client, identity: str) -> Any:
    containers.get(client, identity)
    try:
        return client.tasks.Get(pb.GetRequest(container_id=identity)).process
    except NotFound as error:
        raise NotFound(f"no running task found: {error.text}") from None


def list_tasks(ctr: Ctr, options: Options, operands: list[str]) -> None:
    found = sorted(ctr.client.tasks.List(pb.ListTasksRequest()).tasks, key=lambda task: str(task.id))
    if options["quiet"]:
        for task in found:
            ctr.print(task.id)
        return
    rows = ((task.id, task.pid, STATUS[task.status]) for task in found)
    table([("TASK", "PID", "STATUS"), *rows], 4, 4, last="headed")


def start(ctr: Ctr, options: Options, operands: list[str]) -> int:
    identity = need(operands, "container id")[0]
    client = ctr.client
    conversation, _ = create_task(ctr, options, identity)
    try:
        if not options["detach"]:
            conversation.wait()
        client.tasks.Start(pb.StartRequest(container_id=identity))
        if options["detach"]:
            return 0
        code = conversation.run()
        client.tasks.Delete(pb.DeleteTaskRequest(container_id=identity))
    finally:
        if not options["detach"]:
            conversation.fifos.remove()
    return code


def attach(ctr: Ctr, options: Options, operands: list[str]) -> int:
    identity = need(operands, "container id")[0]
    task = get_task(ctr.client, identity)
    fifos = Fifos(task.stdin, task.stdout, task.stderr)
    conversation = Conversation(ctr.client, identity, "", fifos, task.terminal)
    try:
        fifos.open()
    except OSError as error:
        raise CommandError(f"the input and output of {identity} are not FIFOs any more: {error}") from None
    conversation.wait()
    code = conversation.run()
    ctr.client.tasks.Delete(pb.DeleteTaskRequest(container_id=identity))
    return code


def execute(ctr: Ctr, options: Options, operands: list[str]) -> int:
    exec_id = options["exec-id"]
    if not exec_id:
        ctr.print(help_text("tasks exec"))
        raise CommandError('Required flag "exec-id" not set')
    identity, *arguments = need(operands, "container id")
    client = ctr.client
    container = containers.get(client, identity)
    get_task(client, identity)
    spec = jsontext.loads(container.spec.value)
    process = spec["process"]
    process["terminal"] = options["tty"]
    process["args"] = arguments
    if options["cwd"]:
        process["cwd"] = options["cwd"]
    if options["user"]:
        if container.snapshot_key:
            with looked_into(client, container.snapshotter, container.snapshot_key) as root:
                set_user(spec, options["user"], root)
        else:
            set_user(spec, options["user"], Path(spec["root"]["path"]))
    request = pb.ExecProcessRequest(
        container_id=identity,
        exec_id=exec_id,
        terminal=options["tty"],
        spec=packed(PROCESS_TYPE, json.dumps(process).encode()),
    )
    if options["log-uri"]:
        fifos = Fifos()
        request.stdout = request.stderr = options["log-uri"]
    else:
        fifos = Fifos.make(exec_id, options["tty"], options["fifo-dir"])
        request.stdin, request.stdout, request.stderr = fifos.stdin, fifos.stdout, fifos.stderr
    conversation = Conversation(client, identity, exec_id, fifos, options["tty"])
    try:
        fifos.open()
        client.tasks.Exec(request)
        if not options["detach"]:
            conversation.wait()
        try:
            client.tasks.Start(pb.StartRequest(container_id=identity, exec_id=exec_id))
        except CommandError:
            client.tasks.DeleteProcess(pb.DeleteProcessRequest(container_id=identity, exec_id=exec_id))
            raise
        if options["detach"]:
            return 0
        code = conversation.run()
        client.tasks.DeleteProcess(pb.DeleteProcessRequest(container_id=identity, exec_id=exec_id))
    finally:
        if not options["detach"]:
            fifos.remove()
    return code


def signal_number(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return signals.named(text)
    except ValueError:
        raise CommandError(f"invalid signal: {text}") from None


def kill(ctr: Ctr, options: Options, operands: list[str]) -> None:
    identity = need(operands, "container id")[0]
    if options["all"] and options["exec-id"]:
        raise CommandError("specify an exec-id or all; not both")
    client = ctr.client
    get_task(client, identity)
    container = containers.get(client, identity)
    text = options["signal"]
    if not text:
        text = container.labels.get("io.containerd.image.config.stop-signal", "SIGTERM")
    request = pb.KillRequest(
        container_id=identity, exec_id=options["exec-id"], signal=signal_number(text), all=options["all"]
    )
    if cni.EXTENSION in container.extensions:
        try:
            enabled = jsontext.loads(container.extensions[cni.EXTENSION].value).get("EnableCni")
        except (ValueError, AttributeError):
            raise CommandError(f"failed to unmarshal cni metadata extension  {cni.EXTENSION}") from None
        if enabled:
            network = cni.network()
            try:
                network.remove(f"{ctr.namespace}-{identity}")
            except CommandError as error:
                log("error", "network remove error", error=error.text)
                raise
    client.tasks.Kill(request)


def pause(ctr: Ctr, options: Options, operands: list[str]) -> None:
    identity = need(operands, "container id")[0]
    get_task(ctr.client, identity)
    ctr.client.tasks.Pause(pb.PauseTaskRequest(container_id=identity))


def resume(ctr: Ctr, options: Options, operands: list[str]) -> None:
    identity = need(operands, "container id")[0]
    get_task(ctr.client, identity)
    ctr.client.tasks.Resume(pb.ResumeTaskRequest(container_id=identity))


def processes(ctr: Ctr, options: Options, operands: list[str]) -> None:
    identity = need(operands, "container id")[0]
    get_task(ctr.client, identity)
    rows: list[tuple[object, ...]] = [("PID", "INFO")]
    for process in ctr.client.tasks.ListPids(pb.ListPidsRequest(container_id=identity)).processes:
        info = "-"
        if process.HasField("info"):
            detail = oci_pb2.ProcessDetails()
            detail.ParseFromString(process.info.value)
            info = f'exec_id:"{detail.exec_id}"'
        rows.append((process.pid, info))
    table(rows, 1, 4, last="bare")


def metrics(ctr: Ctr, options: Options, operands: list[str]) -> None:
    identity = need(operands, "container id")[0]
    get_task(ctr.client, identity)
    if options["format"] not in ("table", "json"):
        raise CommandError("format must be table or json")
    found = ctr.client.tasks.Metrics(pb.MetricsRequest(filters=[f"id=={identity}"])).metrics
    if not found:
        raise CommandError("no metrics received")
    metric = found[0]
    if not metric.data.type_url.endswith("io.containerd.cgroups.v2.Metrics"):
        raise CommandError(f"cannot convert metric data of type {metric.data.type_url}")
    data = metrics_pb2.Metrics()
    data.ParseFromString(metric.data.value)
    if options["format"] == "json":
        ctr.print(json.dumps(MessageToDict(data, preserving_proto_field_name=True), indent=2))
        return
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(metric.timestamp.seconds))
    table([("ID", "TIMESTAMP"), (metric.id, f"{stamp}.{metric.timestamp.nanos:09d} +0000 UTC")], 1, 4)
    ctr.print("")
    rows: list[tuple[object, ...]] = [("METRIC", "VALUE")]
    for part, names in (
        ("pids", ("current", "limit")),
        ("cpu", ("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec")),
        ("memory", ("usage", "usage_limit", "swap_usage", "swap_limit")),
    ):
        if data.HasField(part):
            rows += [(f"{part}.{name}", getattr(getattr(data, part), name)) for name in names]
    table(rows, 1, 4)


def delete(ctr: Ctr, options: Options, operands: list[str]) -> None:
    client = ctr.client
    exec_id = options["exec-id"]
    failures = Failures()
    for identity in operands:
        try:
            state = STATUS[get_task(client, identity).status]
        except CommandError as error:
            failures.add(error, f"failed to load task from {identity}")
            continue
        try:
            if options["force"]:
                killing = pb.KillRequest(container_id=identity, exec_id=exec_id, signal=9, all=not exec_id)
                try:
                    client.tasks.Kill(killing)
                    client.tasks.Wait(pb.WaitRequest(container_id=identity, exec_id=exec_id), timeout=30)
                except CommandError:
                    pass
            if exec_id:
                try:
                    client.tasks.Get(pb.GetRequest(container_id=identity, exec_id=exec_id))
                except NotFound as error:
                    raise NotFound(f"no running process found: {error.text}") from None
                answer = client.tasks.DeleteProcess(pb.DeleteProcessRequest(container_id=identity, exec_id=exec_id))
            else:
                if not options["force"] and state not in ("STOPPED", "CREATED"):
                    raise CommandError(f"task must be stopped before deletion: {state.lower()}: failed precondition")
                answer = client.tasks.Delete(pb.DeleteTaskRequest(container_id=identity))
            if answer.exit_status:
                log("warning", f"task {exec_id or identity} exit with non-zero exit code {answer.exit_status}")
        except CommandError as error:
            if exec_id:
                raise
            failures.add(error, f"unable to delete {identity}")
    failures.end()


COMMANDS = {
    "tasks list": Command(list_tasks, "[flags]", "quiet,q bool Print only the IDs"),
    "tasks start": Command(start, "[flags] CONTAINER", IO_FLAGS + TASK_FLAGS + "detach,d bool Do not wait for it"),
    "tasks attach": Command(attach, "CONTAINER"),
    "tasks exec": Command(
        execute,
        "[flags] CONTAINER CMD [ARG...]",
        """
cwd       string  Working directory
tty,t     bool    Give the process a terminal
detach,d  bool    Do not wait for it
exec-id   string  Name of the process; must be given
fifo-dir  string  Folder for the FIFOs of input and output
log-uri   string  Where the output goes
user      string  NAME|UID[:GROUP|GID]
""",
    ),
    "tasks kill": Command(
        kill,
        "[flags] CONTAINER",
        """
signal,s  string  The signal (the image's stop signal, else SIGTERM)
exec-id   string  To this process
all,a     bool    To all processes of the container
""",
    ),
    "tasks pause": Command(pause, "CONTAINER"),
    "tasks resume": Command(resume, "CONTAINER"),
    "tasks ps": Command(processes, "CONTAINER"),
    "tasks metrics": Command(metrics, "[flags] CONTAINER", "format string=table `table` or `json`"),
    "tasks delete": Command(
        delete,
        "[flags] CONTAINER [CONTAINER, ...]",
        """
force,f  bool    Kill it first
exec-id  string  Delete this process
""",
    ),
}
