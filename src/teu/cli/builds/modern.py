# SPDX-License-Identifier: Apache-2.0
"""`build` by BuildKit's protocol: from the options to the exit code. Called by build."""

from __future__ import annotations

import os
import sys

from teu.cli.builds import failure, result
from teu.cli.builds.messages import CONTROL, decode
from teu.cli.builds.progress import as_json
from teu.cli.builds.receiving import replace
from teu.cli.builds.request import LIMITS, Engine, Request
from teu.cli.builds.solve import MODES, Build, Failed
from teu.cli.builds.wire import Builder, BuildError, described
from teu.cli.command import Cli
from teu.cli.config import auth_header, registry_of
from teu.cli.errors import CommandError
from teu.cli.options import TRUE, Options
from teu.cli.registry import show_progress, split_tag
from teu.http2.connection import CANCELLED
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.http2 import calls

# What --call (and --print) may ask of a frontend.
CALLS = {
    "check": "frontend.lint",
    "lint": "frontend.lint",
    "outline": "frontend.outline",
    "targets": "frontend.targets",
}
# Options of the classic builder alone.
CLASSIC = ("compress", "force-rm", "isolation", "rm", "security-opt")


def build(cli: Cli, options: Options, where: str, builder: Builder, asked: calls.Call) -> int:
    """Build at `builder`, of whom ListWorkers was asked; the exit code."""
    if options["squash"]:
        raise CommandError("squash currently not implemented by BuildKit; use several stages")
    mode = options["progress"] if "progress" in options.changed else os.environ.get("BUILDKIT_PROGRESS") or "auto"
    if options["quiet"]:
        if "progress" in options.changed and mode not in ("auto", "quiet"):
            raise CommandError(f"progress={mode} and quiet cannot be used together")
        mode = "quiet"
    if mode not in MODES:
        raise CommandError(f"invalid progress mode {mode}")
    for name in CLASSIC:
        if name in options.changed:
            cli.warn(f"WARNING: --{name} has no meaning for BuildKit, and is ignored")
    try:
        workers = [worker for data in asked for worker in decode(f"{CONTROL}ListWorkersResponse", data)["record"]]
    except BuildError as error:
        raise CommandError(f"ERROR: {described(error)}") from None
    if options["iidfile"] and os.path.isfile(options["iidfile"]):
        os.unlink(options["iidfile"])  # it would tell of another build where this one fails
    worker = workers[0] if workers else {"Labels": {}, "BuildkitVersion": None}
    engine = Engine(worker["Labels"], not builder.address, (worker["BuildkitVersion"] or {}).get("version", ""))
    for name in LIMITS:
        if name in options.changed and not engine.limits:
            cli.warn(f"WARNING: --{name} has no meaning for this BuildKit, and is ignored")
    request = Request(cli, options, engine)
    try:
        fields = request.make(where)
        work = Build(builder, request.offer, fields, mode)
        question = question_of(options)
        if question[0] != "build":
            return ask(cli, work, *question)
        answer = work.run()
        request.settle(answer)
    except Failed as error:
        raise CommandError(error.text, 130 if error.error.code == CANCELLED else 1) from None
    except CommandError as error:
        raise CommandError(
            f"ERROR: {error.text}" if error.code == 1 and error.text else error.text, error.code
        ) from None
    finally:
        request.close()
    return finish(cli, options, request, work, answer, mode)


def finish(cli: Cli, options: Options, request: Request, work: Build, answer: dict[str, str], mode: str) -> int:
    """Say and write what came out, and push what the engine has to push."""
    image = result.image_id(answer)
    if options["iidfile"]:
        replace(options["iidfile"], image)
    if options["metadata-file"]:
        warned = os.environ.get("BUILDX_METADATA_WARNINGS") in TRUE
        empty: dict[str, Any] = {"vertexes": [], "statuses": [], "logs": []}
        warnings = as_json({**empty, "warnings": work.trace.warnings}).get("warnings", []) if warned else []
        replace(options["metadata-file"], result.metadata(answer, work.ref, warnings))
    if mode not in ("quiet", "rawjson"):
        sys.stderr.write(failure.warnings_text(work.trace.warnings, bool(cli.options["debug"])))
        sys.stderr.flush()
    for name in request.push:
        show_push(cli, name, mode)
    if options["quiet"]:
        cli.print(image)
    elif "output" not in options.changed and not request.outputs:
        cli.warn(
            "WARNING: No output specified for this builder. The result only stays in the build cache. To have it as an "
            "image, use --push, or `-o type=docker,dest=FILE`"
        )
    return 0


def show_push(cli: Cli, name: str, mode: str) -> None:
    """Have the engine push an image, and show how it gets on."""
    repository, tag = split_tag(name)
    headers = auth_header(cli.config, registry_of(name))
    response = cli.client.open("POST", f"/images/{repository}/push", {"tag": tag or "latest"}, headers=headers)
    if mode not in ("quiet", "rawjson"):
        sys.stderr.write(f"pushing {name}\n")
    show_progress(response.messages(), 2, mode in ("quiet", "rawjson"))


def question_of(options: Options) -> tuple[str, dict[str, str]]:
    """(what is to be done, its attributes): --check, --call METHOD[,format=FORMAT][,…], --print."""
    text = (
        options["call"] if "call" in options.changed else options["print"] or ("check" if options["check"] else "build")
    )
    if options["check"] and text not in ("check", "lint"):
        raise CommandError(f"invalid method {text}, --check and --call cannot be used together")
    method, _, rest = text.partition(",")
    attributes = {}
    for field in rest.split(","):
        if field:
            key, equals, value = field.partition("=")
            attributes[key] = value if equals else "true"
    if method.startswith("format="):
        raise CommandError(f"invalid --call value: {text}")
    return method or "build", attributes


def ask(cli: Cli, work: Build, method: str, attributes: dict[str, str]) -> int:
    """Print what the frontend answers; its own status is ours."""
    kind = attributes.pop("format", "")
    name = CALLS.get(method, method if "." in method else f"frontend.{method}")
    answer = work.ask({"requestid": name, **attributes})
    text = answer.get("result.json" if kind == "json" or "result.txt" not in answer else "result.txt", b"")
    code = answer.get("result.statuscode", b"0")
    shown = text.decode("utf-8", "replace").rstrip("\n")
    if method in ("check", "lint") and kind != "json" and not shown:
        shown = "Check complete, no warnings found."
    if kind == "json":
        try:
            shown = jsontext.dumps(jsontext.loads(text, exact=True), "  ")
        except ValueError:
            pass  # as it came
    cli.print(shown)
    return int(code) if code.isdigit() else 1
