# SPDX-License-Identifier: Apache-2.0
"""Images and containers as tar archives: save, load, import, export."""

from __future__ import annotations

import os
import stat
import sys

from teu.cli.command import Cli, Command
from teu.cli.errors import CommandError
from teu.cli.options import Options
from teu.cli.registry import check_reference, show_progress, split_tag
from teu.cli.streams import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from teu.cli.http import Response

BLOCK = 1 << 18
TAR = {"Content-Type": "application/x-tar"}


def read_file(file: int) -> Iterator[bytes]:
    while block := os.read(file, BLOCK):
        yield block


def open_input(path: str) -> int:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CommandError(f"open {path}: {(error.strerror or '').lower()}") from None
    if stat.S_ISDIR(os.fstat(file).st_mode):
        os.close(file)
        raise CommandError(f"read {path}: is a directory")
    return file


def write_output(response: Response, path: str) -> None:
    """Write a stream to `path`, which appears only when it is whole; or to standard output."""
    if not path:
        for piece in response.chunks():
            write_all(1, piece)
        return
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise CommandError(f'invalid output path: directory "{folder}" does not exist')
    if os.path.exists(path) and not os.path.isfile(path):
        if os.path.isdir(path):
            raise CommandError(f'invalid output path: "{path}" must be a file, not a folder')
        try:
            with open(path, "wb") as stream:
                for piece in response.chunks():
                    stream.write(piece)
        except OSError as error:
            raise CommandError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
        return
    temporary = f"{folder}/.teu-{os.getpid()}.part"  # not longer than any name may be
    try:
        with open(temporary, "wb") as stream:
            for piece in response.chunks():
                stream.write(piece)
        os.replace(temporary, path)
    except BaseException as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise CommandError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
        raise


def refuse_terminal(path: str, what: str) -> None:
    if not path and os.isatty(1):
        raise CommandError(f"cowardly refusing to {what} to a terminal. Use the -o flag or redirect")


def _platforms(cli: Cli, options: Options) -> dict[str, Any]:
    if not options["platform"]:
        return {}
    from teu.cli import platforms  # 0.5 ms

    return platforms.several(cli, options["platform"], "1.48")


def save(cli: Cli, options: Options, operands: list[str]) -> int:
    refuse_terminal(options["output"], "save")
    query = {"names": operands, **_platforms(cli, options)}
    response = cli.client.open("GET", "/images/get", query)
    write_output(response, options["output"])
    return 0


def load(cli: Cli, options: Options, operands: list[str]) -> int:
    path = options["input"]
    if not path and os.isatty(0):
        raise CommandError("requested load from stdin, but stdin is empty")
    file = open_input(path) if path else 0
    quiet = options["quiet"] or not os.isatty(1)
    query = {"quiet": "1" if quiet else "0", **_platforms(cli, options)}
    response = cli.client.open("POST", "/images/load", query, read_file(file), headers=TAR)
    if response.headers.get("content-type", "").startswith("application/json"):
        show_progress(response.messages())
    else:
        sys.stdout.write(response.read().decode("utf-8", "replace"))
    return 0


def import_image(cli: Cli, options: Options, operands: list[str]) -> int:
    source = operands[0]
    repository, tag = "", ""
    if len(operands) > 1:
        check_reference(operands[1])
        repository, tag = split_tag(operands[1])
    query = {
        "repo": repository,
        "tag": tag,
        "message": options["message"],
        "changes": options["change"],
        "platform": options["platform"],
    }
    if source.startswith(("http://", "https://", "ftp://")):
        response = cli.client.open("POST", "/images/create", {"fromSrc": source, **query})
    else:
        file = 0 if source == "-" else open_input(source)
        response = cli.client.open("POST", "/images/create", {"fromSrc": "-", **query}, read_file(file), headers=TAR)
    show_progress(response.messages())
    return 0


def export(cli: Cli, options: Options, operands: list[str]) -> int:
    refuse_terminal(options["output"], "save")
    write_output(cli.client.open("GET", f"/containers/{operands[0]}/export"), options["output"])
    return 0


COMMANDS = {
    "container export": Command(export, "[OPTIONS] CONTAINER", 1, 1, "-o --output  string  Write to this file"),
    "image save": Command(
        save,
        "[OPTIONS] IMAGE [IMAGE...]",
        1,
        None,
        """
-o --output    string   Write to this file
   --platform  strings  Only these platforms, OS[/ARCH[/VARIANT]], or all
""",
    ),
    "image load": Command(
        load,
        "[OPTIONS]",
        0,
        0,
        """
-i --input     string   Read from this file
   --platform  strings  Only these platforms, OS[/ARCH[/VARIANT]], or all
-q --quiet     bool     Do not show the progress
""",
    ),
    "image import": Command(
        import_image,
        "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
        1,
        2,
        """
-c --change    list    Apply a Dockerfile instruction to the image
-m --message   string  Note where it came from
   --platform  string  Platform of the image, OS[/ARCH[/VARIANT]]
""",
    ),
}
