# SPDX-License-Identifier: Apache-2.0
"""teu-runc's entry: global options, then the one command's module. Called by bin/teu-runc."""

from __future__ import annotations

import os
import sys

from teu import __version__
from teu.linux.standard import open_what_is_closed
from teu.runc import arguments, log
from teu.runc.commands import COMMANDS, Settings
from teu.runc.errors import RuncError, UsageError, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SPEC_VERSION = "1.3.0"

GLOBAL_FLAGS = {
    "debug": ("", "bool", False, "enable debug logging"),
    "log": ("", "string", "", "file to write the log to (default: standard error)"),
    "log-format": ("", "string", "text", "'text' (default) or 'json'"),
    "root": ("", "string", "", "folder for the state of containers (should be on a tmpfs)"),
    "systemd-cgroup": ("", "bool", False, 'let systemd make the cgroups: cgroupsPath is "slice:prefix:name"'),
    "rootless": ("", "string", "auto", "ignore cgroup permission errors ('true', 'false' or 'auto')"),
    "help": ("h", "bool", False, "show help"),
    "version": ("v", "bool", False, "print the version"),
}


def _default_root() -> str:
    """/run/teu-runc, or $XDG_RUNTIME_DIR/teu-runc for an ordinary user (made, with the sticky bit)."""
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime_dir and (os.geteuid() != 0 or _root_of_a_user_namespace()):
        root = runtime_dir + "/teu-runc"
        os.makedirs(root, 0o700, exist_ok=True)
        os.chmod(root, 0o1700)  # the sticky bit keeps cleaners away
        return root
    return Settings.root


def _root_of_a_user_namespace() -> bool:
    from teu.linux.namespaces import in_user_namespace  # 0.4 ms that only root with XDG_RUNTIME_DIR and no --root pays

    return in_user_namespace()


def _global_help() -> str:
    text = "NAME:\n   teu-runc - Open Container Initiative runtime\n\nUSAGE:\n"
    text += "   teu-runc [global options] command [command options] [arguments...]\n"
    text += f"\nVERSION:\n   {__version__}\n\nCOMMANDS:\n   " + "\n   ".join(COMMANDS) + "\n\nGLOBAL OPTIONS:\n"
    for name, (short, kind, _default, summary) in GLOBAL_FLAGS.items():
        text += f"   --{name}{', -' + short if short else ''}{'' if kind == 'bool' else ' value'}  {summary}\n"
    return text


def _print(text: str) -> None:
    os.write(1, os.fsencode(text))


def _told_to_go() -> bool:
    """Wait for a starter's word, where one asks for it.

    A starter that loads us ahead of time sets TEU_RUNC_HOLD to the descriptor of a pipe: a byte in it says go, its end
    says that we are not needed."""
    held = os.environ.pop("TEU_RUNC_HOLD", "")
    if not held:
        return True
    told = os.read(int(held), 1)
    os.close(int(held))
    return told != b""


class _Call:
    """One call of teu-runc. What it learns on the way stays here, so that an error can be told in its terms."""

    def __init__(self, argv: list[str]) -> None:
        self.words = argv[1:]
        self.settings = Settings()
        self.settings.program = argv[0]
        self.name = ""  # of the command
        self.module: Any = None

    def run(self) -> int:
        options, words = arguments.parse(self.words, GLOBAL_FLAGS, stop_at=1)
        self._configure(options)
        if options["version"]:
            _print(f"teu-runc version {__version__}\nspec: {SPEC_VERSION}\n")
            return 0
        if "root" in options.given:
            self.settings.root = os.path.abspath(options["root"])
            self.settings.root_given = True
            if self.settings.root == "/":
                raise RuncError("Option --root argument should not be set to /")
        if options["help"] or not options.positional or options.positional[0] in ("help", "h"):
            _print(_global_help())
            return 0
        self.name = options.positional[0]
        if self.name not in COMMANDS:
            _print(_global_help())
            raise RuncError(f"No help topic for '{self.name}'", 3)
        if "root" not in options.given:
            self.settings.root = _default_root()
        return self._command(words)

    def _configure(self, options: arguments.Arguments) -> None:
        settings = self.settings
        log.configure(options["log"], options["log-format"], options["debug"])
        settings.debug = options["debug"]
        settings.log = options["log"]
        settings.systemd_cgroup = options["systemd-cgroup"]
        settings.rootless = options["rootless"].lower() or "auto"
        if settings.rootless not in ("auto", "true", "t", "1", "false", "f", "0"):
            raise RuncError(f"invalid value {options['rootless']!r} for --rootless: true, false or auto")

    def _command(self, words: list[str]) -> int:
        """Load the command's module and run it with the words that follow its name."""
        self.module = module = __import__(COMMANDS[self.name], None, None, ["main"])
        flags = {**module.FLAGS, "help": ("h", "bool", False, "show help")}
        parsed, rest = arguments.parse(words, flags, getattr(module, "STOP_AT", None))
        parsed.positional += rest
        if parsed["help"]:
            _print(arguments.help_text(self.name, module.SUMMARY, module.USAGE, flags))
            return 0
        self._check_count(len(parsed.positional), *module.ARGUMENTS)
        if not _told_to_go():
            return 0
        called = f"{self.name} {' '.join(parsed.positional)}"
        log.debug(f"teu-runc {__version__} {called}: root {self.settings.root}, pid {os.getpid()}")
        return int(module.main(parsed, self.settings))

    def _check_count(self, count: int, least: int, most: int | None) -> None:
        called = f'{self.settings.program}: "{self.name}" requires'
        if least == most and count != least:
            raise UsageError(f"{called} exactly {least} argument(s)")
        if count < least:
            raise UsageError(f"{called} a minimum of {least} argument(s)")
        if most is not None and count > most:
            raise UsageError(f"{called} a maximum of {most} argument(s)")

    def show_usage(self) -> None:
        _print("Incorrect Usage.\n\n")
        if self.module is None:
            _print(_global_help())
        else:
            module = self.module
            _print(arguments.help_text(self.name, module.SUMMARY, module.USAGE, module.FLAGS))


def _run(argv: list[str]) -> int:
    call = _Call(argv)
    try:
        return call.run()
    except (RuncError, OSError, ValueError) as error:
        if isinstance(error, UsageError):
            call.show_usage()
        message = text_of(error)
        log.error(message)
        if not log.to_stderr():
            os.write(2, os.fsencode(message) + b"\n")
        return error.exit_code if isinstance(error, RuncError) else 1
    except Exception as error:
        # A fault of ours: our caller sees it like any other error, and --debug shows where it is.
        if call.settings.debug:
            raise
        log.error(f"internal error: {type(error).__name__}: {error} (run it with --debug to see where)")
        return 255 if call.name == "exec" else 1


def main() -> None:
    """Run the command in sys.argv and leave, without the interpreter's own farewell."""
    open_what_is_closed()
    try:
        code = _run(sys.argv)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 1
    stdout = getattr(sys, "stdout", None)  # a cold start makes it only when something needs it
    if stdout is not None:
        try:
            stdout.flush()
        except OSError:
            pass
    os._exit(code)
