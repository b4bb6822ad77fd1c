# SPDX-License-Identifier: Apache-2.0
"""`teu`: docker's command line for teud (or dockerd). bin/teu calls `main`.

This module finds the command, loads its module (and no other), parses its options and turns errors into
messages and exit codes: 125 for wrong usage and for a daemon that refuses `run`, 1 for other failures, else
what the command says. Everything imported here is on the way of every command, so it is little. So this package does
without typing (8 ms), socket (5 ms: _socket), signal (4 ms) and dataclasses (12 ms). In the package it begins in
`cold`, without most of Python's own start (4 ms): `_signal`, and what comes with it, is imported where it is needed."""

from __future__ import annotations

import os
import sys

from teu import __version__
from teu.cli import commands
from teu.cli.command import GLOBAL_FLAGS, PROGRAM, Cli, Command, find, load, whole_python
from teu.cli.errors import APIError, CommandError, ConnectError
from teu.cli.options import FALSE, Usage, parse, parse_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def check_operands(command: Command, called: str, count: int) -> None:
    least, most = command.least, command.most
    if count >= least and (most is None or count <= most):
        return
    from teu.cli import helptext  # 6 ms

    if most == 0:
        need = "accepts no arguments"
    elif least == most:
        need = f"requires {least} argument{'' if least == 1 else 's'}"
    elif count < least:
        need = f"requires at least {least} argument{'' if least == 1 else 's'}"
    elif least == 0:
        need = f"requires at most {most} argument{'' if most == 1 else 's'}"
    else:
        need = f"requires at least {least} and at most {most} arguments"
    raise CommandError(helptext.mistake(called, f"{PROGRAM}: '{PROGRAM} {called}' {need}"))


def dispatch(argv: list[str]) -> int:
    try:
        options, words = parse(parse_table(GLOBAL_FLAGS), argv, interspersed=False)
    except Usage as error:
        usage = f"Usage:  {PROGRAM} [OPTIONS] COMMAND [ARG...]\n\nRun '{PROGRAM} --help' for more information"
        raise CommandError(f"{error}\n\n{usage}", 125) from None
    cli = Cli(options)
    if options["version"]:
        cli.print(f"Teu version {__version__}")
        return 0
    if words and words[0] == "help":
        words, options["help"] = words[1:], True
    if not words:
        from teu.cli import helptext  # 6 ms

        cli.print(helptext.top(cli))
        return 0
    if words[0] == "__complete":
        from teu.cli import completion  # 0.3 ms

        return completion.complete(cli, words[1:])
    if words[0] not in commands.SHORT and words[0] not in commands.GROUPS and words[0] not in commands.INDEX:
        code = of_others(cli, argv, words)
        if code is not None:
            return code
    elif cli.mentions("aliases") and (code := aliased(cli, argv, words)) is not None:
        return code
    try:
        full, called, used = find(words)
    except CommandError:
        from teu.cli import elsewhere  # 0.3 ms, on the way to an error

        elsewhere.refuse(words)
        raise
    if not full:
        from teu.cli import helptext  # 6 ms

        cli.print(helptext.group(called))
        return 0
    command = load(full)
    cli.called = called
    # Options of the top level may follow the command's name too, as in `teu ps -H ...`: docker refuses
    # that, so do we.
    try:
        given, operands = parse(parse_table(command.table), words[used:], command.interspersed)
    except Usage as error:
        from teu.cli import helptext  # 6 ms, on the way to an error

        raise CommandError(helptext.mistake(called, str(error)), 125) from None
    if given["help"] or options["help"]:
        from teu.cli import helptext  # 6 ms

        cli.print(helptext.command(called, command))
        return 0
    check_operands(command, called, len(operands))
    if not (os.isatty(1) and cli.mentions("plugins")):
        return command.function(cli, given, operands) or 0
    from teu.cli import hooks  # 1 ms, at a terminal, where the user's file has plugins

    try:
        code = command.function(cli, given, operands) or 0
    except (APIError, CommandError, ConnectError) as error:
        hooks.after(cli, called, given, operands, str(error))
        raise
    hooks.after(cli, called, given, operands, f"exited with code {code}" if code else "")
    return code


def of_others(cli: Cli, argv: list[str], words: list[str]) -> int | None:
    """A command that is not ours: the exit status of docker's plugin of that name, or a CommandError that says what to
    use instead. None: it is ours under another name, or nobody's."""
    whole_python()
    from teu.cli import elsewhere, plugins  # 1.5 ms, that a command of ours does not pay

    name = "buildx" if words[0] == "bake" else words[0]
    path = plugins.find(cli, name)
    if not path:
        elsewhere.refuse(words)
        return None
    if words[0] == "bake":
        os.environ.setdefault("BUILDX_BUILDER", cli.context)
        argv = [*argv[: len(argv) - len(words)], "buildx", *words]
    code = plugins.run(cli, path, [sys.argv[0], *argv])
    from teu.cli import hooks  # 1 ms, at a terminal, where the user's file has plugins

    hooks.after(cli, " ".join(words), None, words[1:], f"exited with code {code}" if code else "")
    return code


def aliased(cli: Cli, argv: list[str], words: list[str]) -> int | None:
    """`builder` among the file's aliases, as `docker buildx install` writes it: builds are that plugin's. None: it is
    not there."""
    for name in cli.config.values.get("aliases") or {}:
        if name != "builder":
            raise CommandError(f'not allowed to alias "{name}" (allowed: builder)')
    plugin = (cli.config.values.get("aliases") or {}).get("builder")
    before = argv[: len(argv) - len(words)]
    if words[0] == "builder":
        rest = words[1:]
    elif words[0] == "build" or words[:2] == ["image", "build"]:
        rest = words[words.index("build") :]
    else:
        return None
    if not plugin or os.environ.get("DOCKER_BUILDKIT") in FALSE:
        return None
    return of_others(cli, [*before, plugin, *rest], [plugin, *rest])


def shown_byte(letter: str) -> bytes:
    """What is printed for half of a surrogate pair: the byte of the command line that it stands for, or the sign for
    what cannot be shown, where a JSON text has it."""
    code = ord(letter)
    return bytes([code - 0xDC00]) if 0xDC80 <= code <= 0xDCFF else b"\xef\xbf\xbd"


def as_it_came(error: UnicodeError) -> tuple[bytes, int]:
    """What is printed for what is no text, for Python's streams."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return b"".join(map(shown_byte, error.object[error.start : error.end])), error.end


def prepare_streams() -> None:
    """Whatever the locale says: the API, names and our own marks are UTF-8, as docker's are. Output is gathered in
    blocks on pipes and files; the streams of containers bypass it (os.write)."""
    import _codecs  # built in; a quick start has no table of ways to fail that could be added to

    _codecs.register_error("teu", as_it_came)
    sys.stdout.reconfigure(encoding="utf-8", errors="teu")  # type: ignore[union-attr]
    sys.stderr.reconfigure(encoding="utf-8", errors="teu")  # type: ignore[union-attr]


def end_as_filters_do() -> None:
    """A reader that goes away ends us quietly; sockets are written with MSG_NOSIGNAL."""
    import _signal  # type: ignore[import-not-found]  # built in, and completes a quick start, which has done this

    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)


def main() -> NoReturn:
    """As a script: Python's own start has been."""
    if None in (sys.stdin, sys.stdout, sys.stderr):  # as Python shows a descriptor that the caller has closed
        from teu.linux.standard import open_what_is_closed  # 0.2 ms that the others do not pay

        open_what_is_closed()
    end_as_filters_do()
    argv = sys.argv[1:]
    other_locale = sys.stdout.encoding != "utf-8"
    prepare_streams()
    if other_locale:
        argv = [os.fsencode(word).decode("utf-8", "surrogateescape") for word in argv]
    run(argv)


def run(argv: list[str]) -> NoReturn:
    """The command of these words, to its end."""
    code = 1
    try:
        code = dispatch(argv)
    except CommandError as error:
        code = error.code
        report(error.text)
    except (APIError, ConnectError) as error:
        report(str(error))
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if "-D" in sys.argv or "--debug" in sys.argv:
            sys.stdout.flush()
            raise
        report(f"{PROGRAM}: unexpected error: {type(error).__name__}: {error}\nRun with -D for the traceback.")
    leave(code)


def report(text: str) -> None:
    if text:
        sys.stdout.flush()
        sys.stderr.write(text + "\n")


def leave(code: int) -> NoReturn:
    """Exit without the interpreter's tear-down: nothing is left to do but to flush."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1
    os._exit(code)
