# SPDX-License-Identifier: Apache-2.0
"""`build`: an image, or files, from a Dockerfile. By BuildKit's protocol where the engine speaks it, else, or with
DOCKER_BUILDKIT=0, by the classic request. What it does is in the package `builds`; here are its options."""

from __future__ import annotations

import os
import sys

from teu.cli.builds import failure, result
from teu.cli.builds.progress import as_json
from teu.cli.builds.receiving import replace
from teu.cli.builds.request import Engine, Request
from teu.cli.builds.solve import MODES, Build, Failed
from teu.cli.builds.wire import Builder, BuildError, NoBuilder, address_of, described
from teu.cli.command import Cli, Command
from teu.cli.config import auth_header, registry_of
from teu.cli.errors import CommandError
from teu.cli.options import FALSE, TRUE, Options
from teu.cli.registry import show_progress
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What --call (and --print) may ask of a frontend.
CALLS = {
    "check": "frontend.lint",
    "lint": "frontend.lint",
    "outline": "frontend.outline",
    "targets": "frontend.targets",
}
# Options of the classic builder alone: BuildKit's steps have no limits of their own.
CLASSIC = (
    "compress",
    "cpu-period",
    "cpu-quota",
    "cpu-shares",
    "cpuset-cpus",
    "cpuset-mems",
    "force-rm",
    "isolation",
    "memory",
    "memory-swap",
    "rm",
    "security-opt",
)
# Options of BuildKit alone.
MODERN = (
    "allow",
    "annotation",
    "attest",
    "build-context",
    "cache-to",
    "call",
    "check",
    "load",
    "metadata-file",
    "no-cache-filter",
    "output",
    "print",
    "provenance",
    "push",
    "sbom",
    "secret",
    "ssh",
)


def build(cli: Cli, options: Options, operands: list[str]) -> int:
    wanted = os.environ.get("DOCKER_BUILDKIT", "")
    if wanted and wanted not in TRUE | FALSE:
        raise CommandError(
            "DOCKER_BUILDKIT environment variable expects boolean value: "
            f'strconv.ParseBool: parsing "{wanted}": invalid syntax'
        )
    address = address_of(cli, options["builder"])
    if wanted in FALSE and not address:
        return by_classic(cli, options, operands)
    try:
        builder = Builder(cli, address)
    except NoBuilder:
        return by_classic(cli, options, operands)
    except BuildError as error:
        raise CommandError(f"ERROR: {described(error)}") from None
    try:
        return by_buildkit(cli, options, operands[0], builder)
    finally:
        builder.close()


def by_classic(cli: Cli, options: Options, operands: list[str]) -> int:
    modern = [name for name in MODERN if name in options.changed]
    if modern:
        raise CommandError(
            f"the --{modern[0]} option requires BuildKit, which this engine does not have, or DOCKER_BUILDKIT=0 forbids"
        )
    from teu.cli.builds import classic  # 13 ms, tarfile's

    return classic.build(cli, options, operands)


def by_buildkit(cli: Cli, options: Options, where: str, builder: Builder) -> int:
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
        workers = builder.control("ListWorkers")["record"]
    except BuildError as error:
        raise CommandError(f"ERROR: {described(error)}") from None
    labels = workers[0]["Labels"] if workers else {}
    request = Request(cli, options, Engine(labels, not builder.address))
    try:
        fields = request.make(where)
        work = Build(builder, request.offer, fields, mode)
        question = question_of(options)
        if question[0] != "build":
            return ask(cli, work, *question)
        answer = work.run()
        request.settle(answer)
    except Failed as error:
        raise CommandError(error.text, 130 if error.error.code == 1 else 1) from None
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
    repository, _, tag = name.rpartition(":")
    headers = auth_header(cli.config, registry_of(name))
    response = cli.client.open("POST", f"/images/{repository}/push", {"tag": tag}, headers=headers)
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
    answer = work.ask({"requestid": name, "frontend.caps": "moby.buildkit.frontend.subrequests", **attributes})
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


COMMANDS = {
    "image build": Command(
        build,
        "[OPTIONS] PATH | URL | -",
        1,
        1,
        """
   --add-host       list     Add a line to the hosts file, NAME:ADDRESS (host-gateway for the host's own)
   --allow          list     Let steps have what they need a permission for: network.host, security.insecure
   --annotation     list     Annotate the image's manifest or index, [LEVEL:]KEY=VALUE
   --attest         list     Attestations of the image, type=sbom|provenance[,KEY=VALUE]
   --build-arg      list     Set a build-time variable, NAME=VALUE, or NAME to copy ours
   --build-context  list     A further context, NAME=PATH, docker-image://IMAGE, oci-layout://PATH or a URL
   --builder        string   The builder: default (the engine's), or unix://PATH of a buildkitd
   --cache-from     list     Where to look for cached steps, IMAGE or type=registry|local|…,KEY=VALUE
   --cache-to       list     Where to leave the cache, type=inline|registry|local|…,KEY=VALUE
   --call           string=build  What to do: build, check, outline or targets, and format=json after a comma
   --cgroup-parent  string   The slice (or cgroup path) of the build
   --check          bool     Only check the Dockerfile (--call=check)
!  --compress       bool     Compress the context (classic builder)
   --cpu-period     int      Length of the CFS period in microseconds (classic builder)
   --cpu-quota      int      CPU time per period in microseconds (classic builder)
-c --cpu-shares     int      Relative weight of CPU time (classic builder)
   --cpuset-cpus    string   CPUs to run on, as 0-3,5 (classic builder)
   --cpuset-mems    string   Memory nodes to use, as 0-1 (classic builder)
-f --file           string   The Dockerfile (PATH/Dockerfile), - for the standard input
   --force-rm       bool     Remove intermediate containers of a failed build too (classic builder)
   --iidfile        string   Write the image's ID to this file
!  --isolation      string   Accepted for docker's sake
   --label          list     Attach a label to the image, KEY=VALUE
   --load           bool     Put the image into the engine (-o type=docker)
-m --memory         bytes    Most memory the build may use (classic builder)
   --memory-swap    swap     Most memory and swap together, -1 for no limit on swap (classic builder)
   --metadata-file  string   Write what the build came to, as JSON, to this file
   --network        string=default  Network of the build: default, host or none
   --no-cache       bool     Do not use the cache
   --no-cache-filter  strings  Do not use the cache for these stages
-o --output         list     Where the result goes, PATH or type=local|tar|oci|docker|image|registry|cacheonly,dest=PATH
   --platform       strings  Platforms of the image, OS[/ARCH[/VARIANT]]
!  --print          string   As --call
   --progress       string=auto  How progress is shown: auto, tty, plain, quiet or rawjson
   --provenance     string   Attest how the image came about (--attest type=provenance): true, false, mode=min|max
   --pull           bool     Look for newer base images
   --push           bool     Push the image to its registry (-o type=registry)
-q --quiet          bool     Show only the image's ID
   --rm             bool=true  Remove intermediate containers (classic builder)
   --sbom           string   Attest what the image consists of (--attest type=sbom): true, false, generator=IMAGE
   --secret         list     A secret for steps that ask for it, id=NAME[,src=PATH|,env=VARIABLE]
   --security-opt   strings  Security options of the build (classic builder)
   --shm-size       bytes    Size of /dev/shm
!  --squash         bool     One layer for all steps (classic builder)
   --ssh            list     An ssh agent or keys for steps that ask for them, default or ID[=SOCKET|KEY[,KEY]]
-t --tag            list     Name of the image, NAME[:TAG]
   --target         string   Build only up to this stage
   --ulimit         list     Limits of processes, NAME=SOFT[:HARD]
""",
    ),
}
