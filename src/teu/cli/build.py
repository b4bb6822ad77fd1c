# SPDX-License-Identifier: Apache-2.0
"""`build` for engines that offer the classic build API: sends the folder, shows what the engine says. Where the engine
has no builder, the error says what to use instead."""

from __future__ import annotations

import os
import re
import sys
import tarfile

from teu.cli import prune as pruning
from teu.cli.archives import read_file
from teu.cli.command import Cli, Command
from teu.cli.copy import Pipe, add_member
from teu.cli.errors import APIError, CommandError
from teu.cli.options import Options, filters, key_values
from teu.cli.registry import show_progress
from teu.oci.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from teu.cli.http import Response

NO_BUILDER = (
    "this engine has no builder. Build with buildah or podman (`buildah build -t NAME .`), "
    "then `buildah push NAME oci-archive:FILE` and `teu load -i FILE`"
)


def ignore_rules(folder: str) -> list[tuple[bool, Any]]:
    """The patterns of .dockerignore in order: (is exception, compiled pattern)."""
    try:
        with open(folder + "/.dockerignore", encoding="utf-8-sig") as file:
            lines = file.read().split("\n")
    except FileNotFoundError:
        return []
    rules = []
    for line in lines:
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        exception = line.startswith("!")
        pattern = os.path.normpath(line.lstrip("!").strip()).strip("/")
        text, position = "", 0
        while position < len(pattern):
            if pattern.startswith("**/", position):
                text, position = text + "(?:.*/)?", position + 3
            elif pattern.startswith("**", position):
                text, position = text + ".*", position + 2
            else:
                letter = pattern[position]
                end = pattern.find("]", position + 2) if letter == "[" else -1
                if letter == "*":
                    text += "[^/]*"
                elif letter == "?":
                    text += "[^/]"
                elif end > 0:
                    text += pattern[position : end + 1]
                    position = end
                else:
                    text += re.escape(letter)
                position += 1
        rules.append((exception, re.compile(text + "(?:/.*)?")))
    return rules


def ignored(name: str, rules: list[tuple[bool, Any]]) -> bool:
    result = False
    for exception, pattern in rules:
        if pattern.fullmatch(name):
            result = not exception
    return result


def context(folder: str, dockerfile: str, extra: str) -> Iterator[bytes]:
    """The folder as a tar stream; a Dockerfile from outside is added under the name `dockerfile`."""
    pipe = Pipe()
    rules = ignore_rules(folder)
    always = {dockerfile, ".dockerignore"}
    with tarfile.open(fileobj=pipe, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 16) as archive:  # type: ignore[call-overload]
        for base, folders, files in os.walk(folder):
            for name in sorted(folders + files):
                path = os.path.join(base, name)
                inner = os.path.relpath(path, folder)
                if inner not in always and ignored(inner, rules):
                    if name in folders and not any(exception for exception, _ in rules):
                        folders.remove(name)
                    continue
                if name in folders and os.path.islink(path):
                    folders.remove(name)
                add_member(archive, path, inner, owners=False)
                yield pipe.take()
        if extra:
            info = archive.gettarinfo(extra, dockerfile)
            with open(extra, "rb") as file:
                archive.addfile(info, file)
    yield pipe.take()


def build(cli: Cli, options: Options, operands: list[str]) -> int:
    dockerfile, remote, body = find_context(operands[0], options["file"])
    query = {"dockerfile": dockerfile, "remote": remote, **build_query(options)}
    headers = {"Content-Type": "application/x-tar"} if body is not None else {}
    try:
        response = cli.client.open("POST", "/build", query, body, headers=headers)
    except APIError as error:
        if error.status == 501 or (error.status == 404 and "page not found" in error.message.lower()):
            raise CommandError(NO_BUILDER) from None
        raise
    if options["quiet"]:
        image = read_quietly(response)
        cli.print(image)
    else:
        values = show_progress(response.messages())
        image = next((str(value["ID"]) for value in values if isinstance(value, dict) and value.get("ID")), "")
    sys.stdout.flush()
    if options["iidfile"]:
        with open(options["iidfile"], "w", encoding="utf-8") as file:
            file.write(image)
    return 0


def find_context(where: str, file: str) -> tuple[str, str, Iterator[bytes] | None]:
    """(the Dockerfile's name in the context, the URL that the daemon fetches, the context where we send it)."""
    dockerfile = file or "Dockerfile"
    if where == "-":
        return dockerfile, "", read_file(0)
    if where.startswith(("http://", "https://", "git://", "git@", "github.com/")):
        return dockerfile, where, None
    if not os.path.isdir(where):
        raise CommandError(f'unable to prepare context: path "{where}" not found')
    path = file or os.path.join(where, "Dockerfile")
    inner = os.path.relpath(os.path.realpath(path), os.path.realpath(where))
    if not os.path.exists(path):
        raise CommandError(
            f"unable to prepare context: unable to evaluate symlinks in Dockerfile path: "
            f"lstat {path}: no such file or directory"
        )
    if inner.startswith(".."):
        added = ".dockerfile." + os.urandom(8).hex()
        return added, "", context(where, added, path)
    return inner, "", context(where, inner, "")


def build_query(options: Options) -> dict[str, Any]:
    return {
        "t": options["tag"],
        "q": options["quiet"],
        "nocache": options["no-cache"],
        "pull": options["pull"],
        "rm": "1" if options["rm"] else "0",
        "forcerm": options["force-rm"],
        "buildargs": build_arguments(options["build-arg"]),
        "labels": key_values(options["label"]),
        "target": options["target"],
        "networkmode": options["network"],
        "extrahosts": options["add-host"],
        "platform": options["platform"],
        "memory": options["memory"] or None,
        "memswap": options["memory-swap"] or None,
        "shmsize": options["shm-size"] or None,
        "cpusetcpus": options["cpuset-cpus"],
        "cpusetmems": options["cpuset-mems"],
        "cpushares": options["cpu-shares"] or None,
        "cpuquota": options["cpu-quota"] or None,
        "cpuperiod": options["cpu-period"] or None,
        "cgroupparent": options["cgroup-parent"],
        "securityopt": [part for value in options["security-opt"] for part in value.split(",")],
        "version": "1",
    }


def read_quietly(response: Response) -> str:
    """Wait for the build's end. Gives the text of its answer, which is the image's ID when `q` was asked for."""
    texts = []
    for message in response.messages():
        if message.get("error"):
            raise CommandError(str(message["error"]))
        texts.append(message.get("stream") or "")
    return "".join(texts).strip()


def build_arguments(values: list[str]) -> dict[str, str | None]:
    result: dict[str, str | None] = {}
    for value in values:
        key, equals, text = value.partition("=")
        result[key] = text if equals else os.environ.get(key)
    return result


def prune(cli: Cli, options: Options, operands: list[str]) -> int:
    warning = "This will remove all build cache." if options["all"] else "This will remove all dangling build cache."
    if not pruning.ask(options, warning):
        raise pruning.Cancelled
    space, text = pruning.prune_build_cache(cli, filters(options["filter"]), options["all"])
    if text:
        cli.print(text)
    cli.print("Total:\t" + human_size(space))
    return 0


COMMANDS = {
    "image build": Command(
        build,
        "[OPTIONS] PATH | URL | -",
        1,
        1,
        """
   --add-host       list     Add a line to the hosts file, NAME:ADDRESS
   --build-arg      list     Set a build-time variable, NAME=VALUE, or NAME to copy ours
   --cgroup-parent  string   The slice (or cgroup path) of the build
   --cpu-period     int      Length of the CFS period in microseconds
   --cpu-quota      int      CPU time per period in microseconds
-c --cpu-shares     int      Relative weight of CPU time
   --cpuset-cpus    string   CPUs to run on, as 0-3,5
   --cpuset-mems    string   Memory nodes to use, as 0-1
-f --file           string   The Dockerfile (PATH/Dockerfile)
   --force-rm       bool     Remove intermediate containers of a failed build too
   --iidfile        string   Write the image's ID to this file
   --label          list     Attach a label to the image, KEY=VALUE
-m --memory         bytes    Most memory the build may use
   --memory-swap    swap     Most memory and swap together, -1 for no limit on swap
   --network        string=default  Network of the build
   --no-cache       bool     Do not use the cache
   --platform       string   Platform of the image, OS[/ARCH[/VARIANT]]
   --pull           bool     Look for newer base images
-q --quiet          bool     Show only the image's ID
   --rm             bool=true  Remove intermediate containers
   --security-opt   strings  Security options of the build
   --shm-size       bytes    Size of /dev/shm
-t --tag            list     Name of the image, NAME[:TAG]
   --target         string   Build only up to this stage
""",
    ),
    "builder prune": Command(
        prune,
        "[OPTIONS]",
        0,
        0,
        """
-a --all     bool    Remove the whole cache
   --filter  filter  Remove only what fits, KEY=VALUE (until)
-f --force   bool    Do not ask
""",
    ),
}
