# SPDX-License-Identifier: Apache-2.0
"""Hooks of docker's CLI plugins: what a plugin has to say after a command, at a terminal.

    config.json:  "plugins": {"NAME": {"hooks": "build,image ls", "error-hooks": "run"}}, "features": {"hooks": "true"}

A plugin is asked (docker-NAME NAME docker-cli-plugin-hooks JSON) when the command begins with the words of one of its
hooks; its answer is {"Type": 0, "Template": text}. They are off unless DOCKER_CLI_HOOKS, DOCKER_CLI_HINTS or the
feature say otherwise, as with docker. Loaded where config.json has plugins, and standard output is a terminal."""

from __future__ import annotations

import os
import sys

from teu.cli import plugins
from teu.cli.command import Cli
from teu.cli.options import TRUE, Options
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HOOK = "docker-cli-plugin-hooks"
LINES_MAX = 10


def enabled(cli: Cli) -> bool:
    for name in ("DOCKER_CLI_HOOKS", "DOCKER_CLI_HINTS"):
        if value := os.environ.get(name):
            return value in TRUE
    return (cli.config.values.get("features") or {}).get("hooks") in TRUE


def match(wanted: str | None, called: str) -> str:
    """The first of the hooks `a,b c` with whose words a command begins; empty for none."""
    words = called.split(" ")
    for hook in (wanted or "").split(","):
        parts = hook.split(" ")
        if hook and words[: len(parts)] == parts:
            return hook
    return ""


def after(cli: Cli, called: str, options: Options | None, operands: list[str], failure: str) -> None:
    """Ask the plugins that want to be asked after this command, and print what they say. A plugin that misbehaves is
    passed over. `options` is None for a plugin's command, whose words only it understands."""
    configured = cli.config.values.get("plugins")
    if not configured or not enabled(cli):
        return
    messages: list[str] = []
    for name, settings in configured.items():
        hook = match(settings.get("hooks"), called)
        if not hook and failure:
            hook = match(settings.get("error-hooks"), called)
        path = plugins.find(cli, name) if hook else ""
        if path:
            request: dict[str, Any] = {"RootCmd": hook, "Flags": flags_of(options, operands)}
            if failure:
                request["CommandError"] = failure
            messages += spoken(ask(cli, path, name, request), called, options, operands)
    if messages:
        sys.stdout.flush()
        sys.stderr.write("\n\033[1mWhat's next:\033[0m\n" + "".join(f"    {line}\n" for line in messages))


def flags_of(options: Options | None, operands: list[str]) -> dict[str, str]:
    """The options that were given: values of booleans only, as others may be secrets."""
    if options is None:
        return {word.removeprefix("-").removeprefix("-"): "" for word in operands if word.startswith("-")}
    given = {name: options[name] for name in sorted(options.changed)}
    return {name: str(value).lower() if isinstance(value, bool) else "" for name, value in given.items()}


def ask(cli: Cli, path: str, name: str, request: dict[str, Any]) -> str:
    """The template that a plugin answers with; empty for none."""
    import subprocess  # 11 ms, at a terminal only

    try:
        done = subprocess.run(
            [path, name, HOOK, jsontext.dumps(request)],
            capture_output=True,
            env=plugins.environment(cli, sys.argv),
            check=True,
        )
        answer = jsontext.loads(done.stdout, exact=True)
        return str(answer.get("Template") or "") if answer.get("Type") == 0 else ""
    except (OSError, subprocess.SubprocessError, ValueError, AttributeError):
        return ""


def spoken(text: str, called: str, options: Options | None, operands: list[str]) -> list[str]:
    """The lines of a template; none where it is empty, broken or too long."""
    if "{{" in text:
        from teu.oci.template import FUNCTIONS, Template, TemplateError  # 8 ms

        def option(name: str) -> str:
            value = options.get(name) if options is not None else None
            if value is None:
                raise TemplateError(f"no flag {name}")
            return str(value).lower() if isinstance(value, bool) else str(value)

        def operand(number: int) -> str:
            if not 0 <= number < len(operands):
                raise TemplateError(f"{number}th argument not set")
            return operands[number]

        FUNCTIONS.update(
            command=lambda: called.rpartition(" ")[2],
            flagValue=option,
            argValue=operand,
            flag=lambda _, name: option(name),
            arg=lambda _, number: operand(number),
        )
        try:
            text = Template(text).render({"Name": called.rpartition(" ")[2]})
        except TemplateError:
            return []
    lines = text.split("\n")
    return lines if text.strip() and len(lines) <= LINES_MAX + 1 else []
