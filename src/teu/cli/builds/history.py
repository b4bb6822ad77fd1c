# SPDX-License-Identifier: Apache-2.0
"""`builder history`: builds that were, as the builder remembers them. A build is named by its reference (which may come
as BUILDER/NODE/REF, from a metadata file), by a beginning of it, or by ^N: the N-th newest."""

from __future__ import annotations

import time

from teu.cli import table
from teu.cli.builds import failure
from teu.cli.builds.manage import BUILDER, asking, opened
from teu.cli.builds.messages import CONTENT, CONTROL, decode, encode, seconds
from teu.cli.builds.progress import Trace, moment
from teu.cli.builds.result import image_id
from teu.cli.builds.solve import display_for
from teu.cli.builds.wire import Builder, BuildError, described
from teu.cli.command import Cli, Command
from teu.cli.errors import CommandError
from teu.cli.options import Options
from teu.http2 import calls
from teu.oci import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

COMPLETE, DELETED = 1, 2
LOGS_MAX = 256 << 20
HEADINGS = {
    "Ref": "BUILD ID",
    "Name": "NAME",
    "Status": "STATUS",
    "CreatedAt": "CREATED AT",
    "Duration": "DURATION",
    "Cached": "CACHED STEPS",
}


def records(builder: Builder, ref: str = "") -> list[Any]:
    """Builds that the builder remembers, the newest first."""
    found: dict[str, Any] = {}
    call = builder.stream("ListenBuildHistory", "BuildHistoryRequest", EarlyExit=True, Ref=ref)
    for data in call:
        event = decode(f"{CONTROL}BuildHistoryEvent", data)
        record = event["record"]
        if record is None:
            continue
        if event["type"] == DELETED:
            found.pop(record["Ref"], None)
        else:
            found[record["Ref"]] = record
    return sorted(found.values(), key=lambda one: seconds(one["CreatedAt"]), reverse=True)


def chosen(builder: Builder, name: str) -> Any:
    """The build of that name; CommandError where there is none, or more than one."""
    ref = name.rpartition("/")[2]
    every = records(builder)
    if not ref or ref.startswith("^"):
        number = ref[1:] or "0"
        if not number.isdecimal() or int(number) >= len(every):
            raise CommandError(f"no record found for reference {name or '^0'}")
        return every[int(number)]
    exact = [one for one in every if one["Ref"] == ref]
    found = exact or [one for one in every if one["Ref"].startswith(ref)]
    if not found:
        raise CommandError(f"no record found for reference {name}")
    if len(found) > 1:
        raise CommandError(f"reference {name} is ambiguous: {', '.join(one['Ref'] for one in found)}")
    return found[0]


def status_of(record: Any) -> str:
    if not record["CompletedAt"]:
        return "Running"
    if record["error"]:
        return "Canceled" if record["error"]["code"] == 1 else "Error"
    return "Completed"


def name_of(record: Any) -> str:
    """What a person would call a build: its context, its target."""
    attributes = record["FrontendAttrs"]
    where = attributes.get("context") or attributes.get("vcs:localdir:context") or ""
    file = attributes.get("filename", "")
    name = where if where and where != "." else file
    if where and file and file != "Dockerfile":
        name = f"{where}/{file}"
    if attributes.get("target"):
        name += f" ({attributes['target']})"
    return name or record["Frontend"]


def took(record: Any) -> float:
    begin = seconds(record["CreatedAt"])
    return max(0.0, (seconds(record["CompletedAt"]) or time.time()) - begin)


def took_text(record: Any) -> str:
    length = took(record)
    if length < 60:
        return f"{length:.1f}s"
    minutes = int(length) // 60
    return f"{minutes // 60}h {minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m {int(length) % 60:02d}s"


COLUMNS = {
    "Ref": lambda record: record["Ref"],
    "Name": name_of,
    "Status": status_of,
    "CreatedAt": lambda record: units.ago(seconds(record["CreatedAt"])),
    "Duration": took_text,
    "Cached": lambda record: f"{record['numCachedSteps']}/{record['numTotalSteps']}",
}


@asking
def ls(cli: Cli, options: Options, operands: list[str]) -> int:
    found = records(opened(cli, options))
    if options["filter"]:
        found = [one for one in found if all(_fits(one, text) for text in options["filter"])]
    if options["no-trunc"] or options["quiet"] or options["format"]:
        shown = COLUMNS
    else:
        shown = {**COLUMNS, "Name": lambda record: table.ellipsis(name_of(record), 36)}
    default = ["Ref", "Name", "Status", "CreatedAt", "Duration"]
    quiet = "Ref" if options["quiet"] else ""
    table.print_list(found, shown, HEADINGS, default, options["format"], quiet=quiet)
    return 0


def _fits(record: Any, text: str) -> bool:
    key, _, value = text.partition("=")
    if key == "status":
        return status_of(record).lower() == value.lower()
    if key == "ref":
        return bool(record["Ref"] == value)
    raise CommandError(f'unsupported filter "{key}": use status=running|completed|error|canceled or ref=ID')


@asking
def logs(cli: Cli, options: Options, operands: list[str]) -> int:
    builder = opened(cli, options)
    record = chosen(builder, operands[0] if operands else "")
    mode = options["progress"]
    if mode not in ("plain", "rawjson", "tty"):
        raise CommandError(f"unsupported progress mode {mode}")
    trace = Trace()
    display = display_for(mode, trace, "")
    if not record["CompletedAt"]:
        data = b""
        for message in builder.stream("Status", "StatusRequest", Ref=record["Ref"]):
            _show(display, trace, message)
    elif record["logs"]:
        data = blob(builder, record["logs"]["digest"])
    else:
        data = b""
    at = 0
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        _show(display, trace, data[at + 4 : at + 4 + size])
        at += 4 + size
    display.done()
    return 0


def _show(display: Any, trace: Trace, data: bytes) -> None:
    try:
        message = decode(f"{CONTROL}StatusResponse", data)
    except ValueError:
        raise CommandError("the build's log is damaged") from None
    trace.update(message)
    display.update(message)


def blob(builder: Builder, digest: str) -> bytes:
    """A blob of the builder's, such as a build's log."""
    out = bytearray()
    with calls.Call(builder.connection, "/containerd.services.content.v1.Content/Read") as call:
        call.send(encode(f"{CONTENT}ReadContentRequest", digest=digest))
        call.end()
        for message in call:
            out += decode(f"{CONTENT}ReadContentResponse", message)["data"]
            if len(out) > LOGS_MAX:
                raise CommandError(f"{digest}: more than {LOGS_MAX} bytes")
    return bytes(out)


@asking
def inspect(cli: Cli, options: Options, operands: list[str]) -> int:
    builder = opened(cli, options)
    record = chosen(builder, operands[0] if operands else "")
    if options["format"]:
        table.print_list([as_value(record)], _values(record), {}, [], options["format"])
        return 0
    rows = [f"Name:\t{name_of(record)}", f"Ref:\t{record['Ref']}"]
    attributes = record["FrontendAttrs"]
    for key, title in (
        ("context", "Context:"),
        ("filename", "Dockerfile:"),
        ("vcs:source", "VCS Repository:"),
        ("vcs:revision", "VCS Revision:"),
        ("target", "Target:"),
        ("platform", "Platform:"),
    ):
        if attributes.get(key):
            rows.append(f"{title}\t{attributes[key]}")
    steps = f"{record['numCompletedSteps']}/{record['numTotalSteps']} ({record['numCachedSteps']} cached)"
    rows += [
        "",
        f"Started:\t{units.local_time(int(seconds(record['CreatedAt'])))}",
        f"Duration:\t{took_text(record)}",
        f"Status:\t{status_of(record)}",
        f"Build Steps:\t{steps}",
    ]
    if record["numWarnings"]:
        rows.append(f"Warnings:\t{record['numWarnings']}")
    image = image_id(record["ExporterResponse"])
    if image:
        name = record["ExporterResponse"].get("image.name", "")
        rows += ["", *([f"Image:\t{name}"] if name else []), f"Digest:\t{image}"]
    out = [table.align(rows, 8, 2)]
    for prefix, title in (("build-arg:", "Build Arg"), ("label:", "Label")):
        pairs = {key.removeprefix(prefix): value for key, value in attributes.items() if key.startswith(prefix)}
        if pairs:
            lines = [f"{title.upper()}\tVALUE", *(f"{key}\t{value}" for key, value in sorted(pairs.items()))]
            out += ["", table.align(lines, 8, 2)]
    if record["error"]:
        error = _error_of(builder, record)
        out += ["", f"Error: {described(error)}", failure.places(error)]
    cli.print("\n".join(out).rstrip("\n"))
    return 0


def _error_of(builder: Builder, record: Any) -> BuildError:
    """What a build failed with. Its details, such as the place in the Dockerfile, may be a blob of their own."""
    status = encode("google.rpc.Status", **record["error"])
    if record["externalError"]:
        try:
            status = blob(builder, record["externalError"]["digest"])
        except BuildError:
            pass  # it is gone: the text is what there is
    return BuildError(record["error"]["code"], record["error"]["message"], status)


def as_value(record: Any) -> dict[str, Any]:
    return {
        "Name": name_of(record),
        "Ref": record["Ref"],
        "Status": status_of(record).lower(),
        "StartedAt": moment(record["CreatedAt"]),
        "CompletedAt": moment(record["CompletedAt"]),
        "Duration": int(took(record) * 1e9),
        "NumCompletedSteps": record["numCompletedSteps"],
        "NumTotalSteps": record["numTotalSteps"],
        "NumCachedSteps": record["numCachedSteps"],
        "Config": record["FrontendAttrs"],
        "ExporterResponse": record["ExporterResponse"],
        "Error": record["error"]["message"] if record["error"] else "",
    }


def _values(record: Any) -> dict[str, Any]:
    def column(name: str) -> Any:
        return lambda value: value[name]

    return {name: column(name) for name in as_value(record)}


@asking
def rm(cli: Cli, options: Options, operands: list[str]) -> int:
    if not operands and not options["all"]:
        raise CommandError("rm requires at least one argument")
    if operands and options["all"]:
        raise CommandError("rm requires either --all or at least one argument")
    builder = opened(cli, options)
    refs = [one["Ref"] for one in records(builder) if one["CompletedAt"]] if options["all"] else []
    failed = []
    for name in operands:
        try:
            refs.append(chosen(builder, name)["Ref"])
        except CommandError as error:
            failed.append(error.text)
    for ref in refs:
        try:
            builder.call(
                f"/{CONTROL}Control/UpdateBuildHistory",
                f"{CONTROL}InfoRequest",
                f"{CONTROL}UpdateBuildHistoryRequest",
                Ref=ref,
                Delete=True,
            )
        except BuildError as error:
            failed.append(described(error))
    if failed:
        raise CommandError("\n".join(f"ERROR: {text}" for text in failed))
    return 0


COMMANDS = {
    "builder history inspect": Command(
        inspect,
        "[OPTIONS] [REF]",
        0,
        1,
        BUILDER
        + """
   --format  string  A template, or json
""",
    ),
    "builder history logs": Command(
        logs,
        "[OPTIONS] [REF]",
        0,
        1,
        BUILDER
        + """
   --progress  string=plain  How it is shown: plain, rawjson or tty
""",
    ),
    "builder history ls": Command(
        ls,
        "[OPTIONS]",
        0,
        0,
        BUILDER
        + """
   --filter    filter  Show only what fits, status=running|completed|error|canceled or ref=ID
   --format    string  A template for each build, or json
   --no-trunc  bool    Do not shorten names
-q --quiet     bool    Show only the references
""",
    ),
    "builder history rm": Command(
        rm,
        "[OPTIONS] [REF...]",
        0,
        None,
        BUILDER
        + """
-a --all  bool  Forget all builds
""",
    ),
}
