# SPDX-License-Identifier: Apache-2.0
"""Contexts: create, export, import, inspect, ls, rm, show, update, use. The store is `contextstore`."""

from __future__ import annotations

import os
import sys

from teu.cli import table
from teu.cli.command import Cli, Command
from teu.cli.contextstore import (
    ARCHIVE_MAX,
    DEFAULT,
    DOCKER,
    META_FILE,
    NotFound,
    Store,
    check_name,
    of_text,
    read_file,
)
from teu.cli.errors import CommandError
from teu.cli.inspect import show
from teu.cli.networks import natural_key
from teu.cli.options import FALSE, TRUE, Options, split_csv
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

KEYS = ("from", "host", "ca", "cert", "key", "skip-tls-verify")
DESCRIPTION = "Current DOCKER_HOST based configuration"

HEADINGS = {"Name": "NAME", "Description": "DESCRIPTION", "DockerEndpoint": "DOCKER ENDPOINT", "Error": "ERROR"}
COLUMNS: dict[str, Callable[[Any], Any]] = {
    "Current": lambda value: value["Current"],
    "Description": lambda value: value["Description"],
    "DockerEndpoint": lambda value: value["DockerEndpoint"],
    "Error": lambda value: value["Error"],
    "Name": lambda value: value["Name"],
}


def store_of(cli: Cli) -> Store:
    return Store(cli.folder)


def read(cli: Cli, name: str) -> dict[str, Any]:
    """A context; also the one that -H and the environment say. Raises NotFound."""
    if name != DEFAULT:
        return store_of(cli).read(name)
    host, tls = cli.default_endpoint()
    skip = tls is not None and "verify" not in tls
    return {"Name": DEFAULT, "Metadata": {}, "Endpoints": {DOCKER: {"Host": host, "SkipTLSVerify": skip}}}


def tls_data(cli: Cli, name: str) -> dict[tuple[str, str], bytes]:
    """(endpoint, file): content, of a context's certificates and keys."""
    if name != DEFAULT:
        return store_of(cli).tls_data(name)
    tls = cli.default_endpoint()[1] or {}
    return {(DOCKER, f"{key}.pem"): read_file(tls[key]) for key in ("ca", "cert", "key") if key in tls}


def check_new(cli: Cli, name: str) -> None:
    check_name(name)
    try:
        store_of(cli).read(name)
    except NotFound:
        return
    raise CommandError(f'context "{name}" already exists')


def endpoint_of(cli: Cli, words: list[str]) -> tuple[dict[str, Any], dict[tuple[str, str], bytes]]:
    """What --docker says: the endpoint, and its certificates. Raises CommandError."""
    given: dict[str, str] = {}
    for word in [part for text in words for part in split_csv(text)]:
        key, equals, value = word.partition("=")
        if not equals:
            text = f'invalid argument "{word}" for "--docker" flag: {word} must be formatted as key=value'
            from teu.cli import helptext  # 6 ms, on the way to an error

            raise CommandError(helptext.mistake(cli.called, text), 125)
        given[key] = value
    try:
        for key in given:
            if key not in KEYS:
                raise CommandError(f"unrecognized config key: {key}")
        if "from" in given:
            endpoint = read(cli, given["from"])["Endpoints"].get(DOCKER)
            if endpoint is None:
                raise CommandError(f'unable to get endpoint from context "{given["from"]}"')
            return endpoint, {}
        files = {}
        for key in ("ca", "cert", "key"):
            if given.get(key):
                files[DOCKER, f"{key}.pem"] = read_file(given[key])
        skip = given.get("skip-tls-verify", "false")
        if skip not in TRUE and skip not in FALSE:
            raise CommandError(f'skip-tls-verify: parsing "{skip}": invalid syntax')
    except CommandError as error:
        raise CommandError(f"unable to create docker endpoint config: {error.text}") from None
    return {"Host": given.get("host", ""), "SkipTLSVerify": skip in TRUE}, files


def create(cli: Cli, options: Options, operands: list[str]) -> int:
    (name,) = operands
    check_new(cli, name)
    description = options["description"]
    store = store_of(cli)
    words = given_endpoint(options)
    if options["from"] or words is None:
        if words:
            raise CommandError("cannot use --docker flag when --from is set")
        source = options["from"] or cli.context
        meta, files = read(cli, source), tls_data(cli, source)
        if source == DEFAULT:
            meta["Metadata"] = {"Description": DESCRIPTION}
        if description:
            meta["Metadata"]["Description"] = description
        meta["Name"] = name
    else:
        endpoint, files = endpoint_of(cli, words)
        about = {"Description": description} if description else {}
        meta = {"Name": name, "Metadata": about, "Endpoints": {DOCKER: endpoint}}
    store.write(meta)
    store.write_tls(name, files)
    return done(cli, name, f'Successfully created context "{name}"')


def given_endpoint(options: Options) -> list[str] | None:
    """The words of --docker; None where it is not given."""
    return list(options["docker"]) if "docker" in options.changed else None


def done(cli: Cli, name: str, text: str) -> int:
    cli.print(name)
    cli.warn(text)
    return 0


def update(cli: Cli, options: Options, operands: list[str]) -> int:
    (name,) = operands
    check_name(name)
    store = store_of(cli)
    meta = store.read(name)
    if options["description"]:
        meta["Metadata"]["Description"] = options["description"]
    words = given_endpoint(options)
    files = None
    if words is not None:
        meta["Endpoints"][DOCKER], files = endpoint_of(cli, words)
    store.write(meta)
    if files is not None:
        others = {key: value for key, value in store.tls_data(name).items() if key[0] != DOCKER}
        store.write_tls(name, {**others, **files})
    return done(cli, name, f'Successfully updated context "{name}"')


def use(cli: Cli, options: Options, operands: list[str]) -> int:
    (name,) = operands
    chosen = ""
    if name != DEFAULT:
        check_name(name)
        store_of(cli).read(name)
        chosen = name
    choose(cli, chosen)
    done(cli, name, f'Current context is now "{name}"')
    variable = overriding()
    if chosen and variable:
        cli.warn(
            f"Warning: {variable} environment variable overrides the active context. "
            f'To use "{name}", either set the global --context flag, or unset {variable} environment variable.'
        )
    return 0


def choose(cli: Cli, name: str) -> None:
    """Write the current context into config.json, unless it is so already; empty for the default."""
    if cli.config.get("currentContext") == name:
        return
    if name:
        cli.config.values["currentContext"] = name
    else:
        cli.config.values.pop("currentContext", None)
    cli.config.save()


def overriding() -> str:
    """The variable that goes before the current context, if one is set."""
    return next((name for name in ("TEU_HOST", "DOCKER_HOST") if os.environ.get(name)), "")


def show_current(cli: Cli, options: Options, operands: list[str]) -> int:
    cli.print(cli.context)
    return 0


def list_contexts(cli: Cli, options: Options, operands: list[str]) -> int:
    current = cli.context
    rows = []
    for meta in [*store_of(cli).all(), read(cli, DEFAULT)]:
        name, endpoint = meta["Name"], meta["Endpoints"].get(DOCKER)
        about = DESCRIPTION if name == DEFAULT else meta["Metadata"].get("Description") or ""
        error = "" if endpoint is not None else "cannot find docker endpoint in context"
        rows.append(row(name, name == current, about, (endpoint or {}).get("Host") or "", error))
    if current not in [found["Name"] for found in rows]:
        try:
            read(cli, current)
            text = ""
        except CommandError as error:
            text = error.text
        rows.append(row(current, True, "", "", text))
    rows.sort(key=lambda found: natural_key(found["Name"]))
    form = options["format"]
    shown = "table" in form or not form
    columns = dict(COLUMNS)
    if shown:
        columns["Name"] = lambda value: value["Name"] + (" *" if value["Current"] else "")
        columns["Error"] = lambda value: table.ellipsis(value["Error"], 45)
        columns["Description"] = lambda value: table.ellipsis(value["Description"], 60)
    quiet = "Name" if options["quiet"] else ""
    if quiet:
        columns["Name"] = COLUMNS["Name"]
    table.print_list(rows, columns, HEADINGS, ["Name", "Description", "DockerEndpoint", "Error"], form, quiet=quiet)
    variable = overriding()
    if variable:
        cli.warn(
            f"Warning: {variable} environment variable overrides the active context. "
            f"To use a context, either set the global --context flag, or unset {variable} environment variable."
        )
    return 0


def row(name: str, current: bool, description: str, host: str, error: str) -> dict[str, Any]:
    return {
        "Name": name,
        "Current": current,
        "Description": description,
        "DockerEndpoint": host,
        "Error": error,
    }


def inspect(cli: Cli, options: Options, operands: list[str]) -> int:
    store = store_of(cli)

    def get(name: str) -> tuple[str, Any]:
        meta = read(cli, name)
        endpoint = meta["Endpoints"].get(DOCKER)
        if endpoint is not None:
            endpoint.setdefault("SkipTLSVerify", False)
        if name == DEFAULT:
            files: dict[str, list[str]] = {}
            for folder, file in tls_data(cli, name):
                files.setdefault(folder, []).append(file)
            storage = {"MetadataPath": "<IN MEMORY>", "TLSPath": "<IN MEMORY>"}
        else:
            files = store.tls_files(name)
            storage = {"MetadataPath": store.meta_path(name), "TLSPath": store.tls_path(name)}
        return "context", {**meta, "TLSMaterial": files, "Storage": storage}

    return show(cli, operands or [cli.context], options["format"], get)


def remove(cli: Cli, options: Options, operands: list[str]) -> int:
    errors = []
    current = cli.context
    store = store_of(cli)
    for name in operands:
        if name == DEFAULT:
            errors.append(f'context "{DEFAULT}" cannot be removed')
        elif name == current and not options["force"]:
            errors.append(f'context "{name}" is in use, set -f flag to force remove')
        elif not options["force"] and not os.path.exists(store.meta_path(name)):
            errors.append(f'context "{name}" does not exist')
        else:
            if name == current:
                choose(cli, "")
            store.remove(name)
            cli.print(name)
    if errors:
        raise CommandError("\n".join(errors))
    return 0


def export(cli: Cli, options: Options, operands: list[str]) -> int:
    import io  # loaded at Python's start
    import tarfile  # 15 ms

    name = operands[0]
    target = operands[1] if len(operands) > 1 else f"{name}.dockercontext"
    if name != DEFAULT:
        check_name(name)
    meta, files = read(cli, name), tls_data(cli, name)
    if target == "-" and os.isatty(1):
        raise CommandError("cowardly refusing to export to a terminal, specify a file path")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:

        def add(path: str, data: bytes | None, mode: int) -> None:
            entry = tarfile.TarInfo(path)
            entry.mode = mode
            if data is None:
                entry.type = tarfile.DIRTYPE
            else:
                entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data) if data is not None else None)

        add(META_FILE, jsontext.dumps(meta).encode(), 0o644)
        add("tls", None, 0o700)
        for endpoint in sorted({endpoint for endpoint, _ in files}):
            add(f"tls/{endpoint}", None, 0o700)
        for (endpoint, file), data in files.items():
            add(f"tls/{endpoint}/{file}", data, 0o600)
    if target == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(buffer.getvalue())
        sys.stdout.buffer.flush()
        return 0
    try:
        made = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(made, "wb") as stream:
            stream.write(buffer.getvalue())
    except OSError as error:
        raise CommandError(f"open {target}: {(error.strerror or '').lower()}") from None
    cli.warn(f'Written file "{target}"')
    return 0


def entries(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the files in an archive, which is of tar or zip. Raises CommandError."""
    import io  # loaded at Python's start

    if data.startswith(b"PK\3\4"):
        import zipfile  # 18 ms

        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for info in archive.infolist():
                    if info.is_dir():
                        continue
                    if info.file_size > ARCHIVE_MAX:
                        raise CommandError(f"{info.filename}: it is larger than {ARCHIVE_MAX >> 20} MiB")
                    yield info.filename, archive.read(info)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise CommandError(f"the archive cannot be read: {error}") from None
        return
    import tarfile  # 15 ms

    # docker writes neither the end of an archive nor what fills its last block up.
    data += bytes(-len(data) % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                if member.isreg():
                    stream = tar.extractfile(member)
                    assert stream is not None
                    yield member.name, stream.read()
    except tarfile.TarError as error:
        raise CommandError(f"the archive cannot be read: {error}") from None


def import_context(cli: Cli, options: Options, operands: list[str]) -> int:
    name, source = operands
    check_new(cli, name)
    if source == "-":
        data = sys.stdin.buffer.read(ARCHIVE_MAX + 1)
    else:
        data = read_file(source)
    if len(data) > ARCHIVE_MAX:
        raise CommandError(f"the archive is larger than {ARCHIVE_MAX >> 20} MiB")
    meta = None
    files = {}
    for path, content in entries(data):
        parts = path.split("/")
        if path == META_FILE:
            try:
                meta = of_text(content)
            except ValueError as error:
                raise CommandError(f"{path}: {error}") from None
        elif len(parts) != 3 or parts[0] != "tls" or "\\" in path or not all(part.strip(".") for part in parts):
            raise CommandError(f"{path}: unexpected context file")
        else:
            files[parts[1], parts[2]] = content
    if meta is None:
        raise CommandError("invalid context: no metadata found")
    store = store_of(cli)
    store.write({**meta, "Name": name})
    store.write_tls(name, files)
    return done(cli, name, f'Successfully imported context "{name}"')


CREATE = """
   --description  string   Description of the context
   --docker       strings  The daemon: host=, ca=, cert=, key= (files), skip-tls-verify=true; or from=CONTEXT
"""
COMMANDS = {
    "context create": Command(
        create,
        "[OPTIONS] CONTEXT",
        1,
        1,
        CREATE + "   --from         string   Make it of this context",
    ),
    "context export": Command(export, "[OPTIONS] CONTEXT [FILE|-]", 1, 2),
    "context import": Command(import_context, "CONTEXT FILE|-", 2, 2),
    "context inspect": Command(
        inspect,
        "[OPTIONS] [CONTEXT] [CONTEXT...]",
        0,
        None,
        "-f --format string Print through a Go template, or as JSON with `json`",
    ),
    "context ls": Command(
        list_contexts,
        "[OPTIONS]",
        0,
        0,
        """
   --format  string  Print as `table`, `table TEMPLATE`, `json` or through a Go template
-q --quiet   bool    Print names only
""",
    ),
    "context rm": Command(
        remove, "[OPTIONS] CONTEXT [CONTEXT...]", 1, None, "-f --force bool Also the one that is in use"
    ),
    "context show": Command(show_current, "", 0, 0),
    "context update": Command(update, "[OPTIONS] CONTEXT", 1, 1, CREATE),
    "context use": Command(use, "CONTEXT", 1, 1),
}
