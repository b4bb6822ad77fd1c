# SPDX-License-Identifier: Apache-2.0
"""`build` for engines that offer the classic build API (or with DOCKER_BUILDKIT=0): sends the folder, shows what the
engine says. Where the engine has no builder, the error says what to use instead. Called by build."""

from __future__ import annotations

import binascii
import os
import posixpath
import sys
import tarfile

from teu.cli.archives import read_file
from teu.cli.command import Cli
from teu.cli.config import ConfigFile
from teu.cli.copy import Pipe, add_member
from teu.cli.errors import APIError, CommandError
from teu.cli.options import Options, key_values
from teu.cli.registry import show_progress
from teu.oci import jsontext
from teu.oci.patterns import BadPattern, Patterns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from teu.cli.http import Response

NO_BUILDER = (
    "this engine has no builder: install teu-buildkitd on its machine, or build with buildah or podman "
    "(`buildah build -t NAME .`), then `buildah push NAME oci-archive:FILE` and `teu load -i FILE`"
)


def ignored_by(folder: str, dockerfile: str) -> Patterns:
    """The patterns of NAME.dockerignore beside the Dockerfile, else of the context's .dockerignore."""
    for path in (f"{dockerfile}.dockerignore", f"{folder}/.dockerignore"):
        try:
            with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
                lines = file.read().split("\n")
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            return Patterns(filter(None, (clean(line) for line in lines)))
        except BadPattern as error:
            raise CommandError(f"checking context: {error}") from None
    return Patterns(())


def clean(line: str) -> str:
    """A line of .dockerignore as a pattern; "" where it is none."""
    line = line.strip()
    if not line or line.startswith("#"):
        return ""
    exception = "!" if line.startswith("!") else ""
    return exception + (posixpath.normpath("/" + line.removeprefix("!").strip()).lstrip("/") or ".")


def context(folder: str, dockerfile: str, extra: str) -> Iterator[bytes]:
    """The folder as a tar stream; a Dockerfile from outside is added under the name `dockerfile`."""
    pipe = Pipe()
    rules = ignored_by(folder, extra or f"{folder}/{dockerfile}")
    always = {dockerfile, ".dockerignore"}
    with tarfile.open(fileobj=pipe, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 16) as archive:  # type: ignore[call-overload]
        for base, folders, files in os.walk(folder):
            for name in sorted(folders + files):
                path = os.path.join(base, name)
                inner = os.path.relpath(path, folder)
                if inner not in always and rules.matches(inner)[0]:
                    if name in folders and not rules.exceptions:
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
    headers = registry_header(cli.config)
    if body is not None:
        headers["Content-Type"] = "application/x-tar"
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


def registry_header(config: ConfigFile) -> dict[str, str]:
    """X-Registry-Config: the credentials for all registries that the user's file knows."""
    servers = {*(config.values.get("auths") or {}), *(config.values.get("credHelpers") or {})}
    known = {server: auth for server in sorted(servers) if (auth := config.auth(server))}
    if not known:
        return {}
    text = binascii.b2a_base64(jsontext.dumps(known).encode(), newline=False).decode()
    return {"X-Registry-Config": text.replace("+", "-").replace("/", "_")}


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
        "platform": ",".join(options["platform"]),
        "cachefrom": [jsontext.dumps(options["cache-from"])] if options["cache-from"] else None,
        "squash": options["squash"],
        "ulimits": [jsontext.dumps(ulimits(options["ulimit"]))] if options["ulimit"] else None,
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


def ulimits(values: list[str]) -> list[dict[str, Any]]:
    """--ulimit NAME=SOFT[:HARD] as the API has it. CommandError for what is none."""
    found = []
    for text in values:
        name, equals, limits = text.partition("=")
        soft, _, hard = limits.partition(":")
        try:
            found.append({"Name": name, "Soft": int(soft), "Hard": int(hard or soft)})
        except ValueError:
            equals = ""
        if not equals:
            raise CommandError(f'invalid argument "{text}" for "--ulimit" flag: invalid ulimit argument: {text}', 125)
    return found


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
