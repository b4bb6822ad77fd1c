# SPDX-License-Identifier: Apache-2.0
"""pull, push, login, logout, search, and the names of images. `pull` is also called by `run`."""

from __future__ import annotations

import os
import sys

from teu.cli.command import Cli, Command
from teu.cli.config import DEFAULT_INDEX, auth_header, host_of, registry_of
from teu.cli.errors import CommandError
from teu.cli.options import FALSE, Options, filters
from teu.oci import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


def split_tag(name: str) -> tuple[str, str]:
    """(repository, tag); the tag is empty where there is none. A digest stays with the repository."""
    if "@" in name:
        return name, ""
    before, colon, after = name.rpartition(":")
    if not colon or "/" in after:
        return name, ""
    return before, after


def check_reference(name: str) -> None:
    """Refuse what cannot name an image, with docker's words."""
    repository, _, digest = name.partition("@")
    repository, tag = split_tag(repository)
    first, slash, rest = repository.partition("/")
    domain = ""
    if slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first):
        domain, path = first, rest
    else:
        path = repository
    if path != path.lower() and not domain:
        full = path if "/" in path else "library/" + path
        raise CommandError(f"invalid reference format: repository name ({full}) must be lowercase")
    if path != path.lower():
        raise CommandError(f"invalid reference format: repository name ({path}) must be lowercase")
    import re  # 6 ms

    component = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
    if not re.fullmatch(rf"{component}(?:/{component})*", path) or len(path) > 255:
        raise CommandError("invalid reference format")
    if (tag and not re.fullmatch(r"\w[\w.-]{0,127}", tag, re.ASCII)) or name.endswith(":"):
        raise CommandError("invalid reference format")
    if domain and not re.fullmatch(r"(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::\d+)?", domain):
        raise CommandError("invalid reference format")
    if "@" in name and not re.fullmatch(
        r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}", digest
    ):
        raise CommandError("invalid reference format")


def canonical(name: str) -> str:
    """`busybox` as `docker.io/library/busybox:latest`."""
    if registry_of(name) == DEFAULT_INDEX:
        rest = name.removeprefix("docker.io/").removeprefix("index.docker.io/")
        name = "docker.io/" + (rest if "/" in rest else "library/" + rest)
    return name if "@" in name or split_tag(name)[1] else name + ":latest"


class Progress:
    """Shows a stream of progress messages: on a terminal a line for each part, drawn again as it advances,
    else only lines that say something new."""

    def __init__(self, file: int) -> None:
        self.stream = sys.stderr if file == 2 else sys.stdout
        try:
            self.columns = os.get_terminal_size(file).columns
            self.terminal = True
        except OSError:
            self.columns, self.terminal = 0, False
        self.lines: dict[str, int] = {}

    def bar(self, detail: dict[str, Any]) -> str:
        current, total = detail.get("current") or 0, detail.get("total") or 0
        if current <= 0 and total <= 0:
            return ""
        done = units.human_size(current)
        if total <= 0:
            return f"{done:>8}"
        half = min(int(current / total * 100) // 2, 50)
        bar = f"[{'=' * half}>{' ' * (50 - half)}] " if self.columns > 110 else ""
        return bar + (f"{done:>8}" if current > total else f"{done:>8}/{units.human_size(total)}")

    def show(self, message: dict[str, Any]) -> None:
        if message.get("error") or message.get("errorDetail"):
            detail = message.get("errorDetail") or {}
            text = detail.get("message") or message.get("error")
            self.stream.flush()
            raise CommandError(str(text))
        write = self.stream.write
        part, status, stream = (
            message.get("id") or "",
            message.get("status") or "",
            message.get("stream") or "",
        )
        detail = message.get("progressDetail")
        bar = self.bar(detail) if detail else message.get("progress") or ""
        has_progress = detail is not None
        if not self.terminal:
            if bar and has_progress:
                return
            if stream:
                write(stream)
            elif status or part:
                write(f"{part}: {status}\n" if part else status + "\n")
            return
        up = 0
        if part and has_progress:
            if part not in self.lines:
                self.lines[part] = len(self.lines)
                write("\n")
            up = len(self.lines) - self.lines[part]
            write(f"\x1b[{up}A")
        elif not (part and has_progress):
            self.lines = {}
        if stream:
            write(stream)
        else:
            prefix = f"{part}: " if part else ""
            if has_progress:
                write("\x1b[2K\r")
            write(f"{prefix}{status}{' ' + bar if bar else ''}" + ("\r" if has_progress else "\n"))
        if up:
            write(f"\x1b[{up}B")
        self.stream.flush()


def show_progress(messages: Iterable[dict[str, Any]], file: int = 1, quiet: bool = False) -> list[dict[str, Any]]:
    """Show a stream of messages to its end; returns the `aux` values in it. Raises CommandError where it
    fails."""
    progress = Progress(file)
    extra = []
    for message in messages:
        if message.get("aux") is not None:
            extra.append(message["aux"])
        elif not quiet or message.get("error") or message.get("errorDetail"):
            progress.show(message)
    progress.stream.flush()
    return extra


def pull(
    cli: Cli, image: str, platform: str | list[str], *, quiet: bool, output: int = 1, all_tags: bool = False
) -> None:
    check_reference(image)
    platform = platform or os.environ.get("DOCKER_DEFAULT_PLATFORM", "")
    if platform == [ALL_PLATFORMS] or not isinstance(platform, str) and len(platform) > 1:
        from teu.cli import platforms  # 0.5 ms

        platforms.need(cli, "", "several platforms")
    repository, tag = split_tag(image)
    if "@" in image:
        repository, _, tag = image.partition("@")
        repository = split_tag(repository)[0]
    query = {"fromImage": repository, "tag": "" if all_tags else tag or "latest", "platform": platform}
    header = auth_header(cli.config, registry_of(image))
    response = cli.client.open("POST", "/images/create", query, headers=header)
    show_progress(response.messages(), output, quiet)
    cli.client.done(response)


def refuse_trust(options: Options, code: int = 1) -> None:
    """Nothing is done in the name of a trust that is not checked. As docker reads it: what is no word for no is yes."""
    if "disable-content-trust" in options.changed:
        wanted = not options["disable-content-trust"]
    else:
        wanted = os.environ.get("DOCKER_CONTENT_TRUST", "0") not in {"", *FALSE}
    if wanted:
        raise CommandError(
            "content trust is not supported: signatures of Notary would not be checked. Unset DOCKER_CONTENT_TRUST, or"
            " use --disable-content-trust, to go on without",
            code,
        )


def pull_command(cli: Cli, options: Options, operands: list[str]) -> int:
    image = operands[0]
    refuse_trust(options)
    check_reference(image)
    tagged = split_tag(image)[1] or "@" in image
    if options["all-tags"] and tagged:
        raise CommandError("tag can't be used with --all-tags/-a")
    if not options["all-tags"] and not tagged and not options["quiet"]:
        cli.print("Using default tag: latest")
    sys.stdout.flush()
    pull(cli, image, options["platform"], quiet=options["quiet"], all_tags=options["all-tags"])
    name = canonical(image)
    cli.print(split_tag(name)[0] if options["all-tags"] else name)
    return 0


def push_command(cli: Cli, options: Options, operands: list[str]) -> int:
    image = operands[0]
    refuse_trust(options)
    check_reference(image)
    repository, tag = split_tag(image)
    if options["all-tags"]:
        if tag or "@" in image:
            raise CommandError("tag can't be used with --all-tags/-a")
    elif not tag and "@" not in image:
        tag = "latest"
        if not options["quiet"]:
            cli.print("Using default tag: latest")
    sys.stdout.flush()
    query = {"tag": tag}
    if options["platform"]:
        from teu.cli import platforms  # 0.5 ms

        query.update(platforms.one(cli, options["platform"], "1.46"))
    header = auth_header(cli.config, registry_of(image))
    response = cli.client.open("POST", f"/images/{repository}/push", query, headers=header)
    show_progress(response.messages(), 1, options["quiet"])
    cli.client.done(response)
    if options["quiet"]:
        name = canonical(image)
        cli.print(split_tag(name)[0] if options["all-tags"] else name)
    return 0


def ask(text: str, hidden: bool = False) -> str:
    if not hidden:
        sys.stdout.write(text)
        sys.stdout.flush()
        return sys.stdin.readline().strip()
    import termios  # 0.4 ms

    saved = termios.tcgetattr(0)
    silent = termios.tcgetattr(0)
    silent[3] &= ~termios.ECHO
    # Before the prompt: a fast typist's password must not be shown either.
    termios.tcsetattr(0, termios.TCSADRAIN, silent)
    sys.stdout.write(text)
    sys.stdout.flush()
    try:
        return sys.stdin.readline().rstrip("\r\n")
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, saved)
        sys.stdout.write("\n")


def server_of(operands: list[str]) -> str:
    server = operands[0] if operands else ""
    if server in ("", "docker.io", "index.docker.io", "registry-1.docker.io"):
        return DEFAULT_INDEX
    return server if server == DEFAULT_INDEX else host_of(server)


def check_login(options: Options) -> None:
    """Raises CommandError for flags of `login` that do not go together, and for an empty name or password."""
    if "password" in options.changed and options["password-stdin"]:
        raise CommandError("conflicting options: cannot specify both --password and --password-stdin")
    if options["password-stdin"] and "username" not in options.changed:
        raise CommandError("the --password-stdin option requires --username to be set")
    for name in ("username", "password"):
        if name in options.changed and not options[name]:
            raise CommandError(f"{name} is empty")


def login(cli: Cli, options: Options, operands: list[str]) -> int:
    check_login(options)
    user, password = options["username"], options["password"]
    if password:
        cli.warn("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
    if options["password-stdin"]:
        password = sys.stdin.read().rstrip("\r\n")
    server = server_of(operands)
    auth: dict[str, str] = {}
    saved = cli.config.auth(server) if not user and not password else {}
    if saved.get("username"):
        cli.warn(f"Authenticating with existing credentials... [Username: {saved['username']}]")
        auth = saved
    else:
        if not (user and password) and not os.isatty(0):
            raise CommandError("Error: Cannot perform an interactive login from a non TTY device")
        if not user:
            user = ask("Username: ")
            if not user:
                raise CommandError("Error: Non-null Username Required")
        if not password:
            password = ask("Password: ", hidden=True)
            if not password:
                raise CommandError("Error: Password Required")
        auth = {"username": user, "password": password, "serveraddress": server}
    answer = cli.client.call("POST", "/auth", None, auth) or {}
    if answer.get("IdentityToken"):
        auth = {**auth, "password": "", "identitytoken": answer["IdentityToken"]}
    if not cli.config.helper(server):
        cli.warn(
            f"WARNING! Your password will be stored unencrypted in {cli.config.path}.\n"
            "Configure a credential helper (`credsStore`) to remove this warning."
        )
    cli.config.store(server, auth)
    if answer.get("Status"):
        cli.print(answer["Status"])
    return 0


def logout(cli: Cli, options: Options, operands: list[str]) -> int:
    server = server_of(operands)
    shown = "https://index.docker.io/v1/" if server == DEFAULT_INDEX else server
    cli.print(f"Removing login credentials for {shown}")
    cli.config.erase(server)
    return 0


def search(cli: Cli, options: Options, operands: list[str]) -> int:
    from teu.cli import table  # 0.9 ms

    query = {
        "term": operands[0],
        "limit": str(options["limit"]) if options["limit"] else None,
        "filters": filters(options["filter"]) or None,
    }
    header = auth_header(cli.config, registry_of(operands[0]))
    found = cli.client.call("GET", "/images/search", query, headers=header)

    def printed(text: str) -> str:
        """Without what a terminal would obey: anybody writes into a registry."""
        return "".join(letter if letter.isprintable() else " " for letter in text)

    def description(entry: dict[str, Any]) -> str:
        text = printed(entry.get("description") or "")
        return text if options["no-trunc"] else table.ellipsis(text, 45)

    view = {
        "Name": lambda entry: printed(entry["name"]),
        "Description": description,
        "StarCount": lambda entry: str(entry.get("star_count", 0)),
        "IsOfficial": lambda entry: "[OK]" if entry.get("is_official") else "",
        "IsAutomated": lambda entry: "[OK]" if entry.get("is_automated") else "",
    }
    headings = {
        "Name": "NAME",
        "Description": "DESCRIPTION",
        "StarCount": "STARS",
        "IsOfficial": "OFFICIAL",
        "IsAutomated": "AUTOMATED",
    }
    default = ["Name", "Description", "StarCount", "IsOfficial"]
    table.print_list(found or [], view, headings, default, options["format"])
    return 0


ALL_PLATFORMS = "all"
PLATFORM = "   --platform  string  Platform of the image, OS[/ARCH[/VARIANT]]\n"
TRUST = "   --disable-content-trust  bool=true  Must stay true: signatures are not checked\n"
COMMANDS = {
    "image pull": Command(
        pull_command,
        "[OPTIONS] NAME[:TAG|@DIGEST]",
        1,
        1,
        "   --platform  strings  Platforms of the image, OS[/ARCH[/VARIANT]], or all\n"
        + TRUST
        + """
-a --all-tags  bool  Download all tags of the repository
-q --quiet     bool  Show only the name
""",
    ),
    "image push": Command(
        push_command,
        "[OPTIONS] NAME[:TAG]",
        1,
        1,
        PLATFORM
        + TRUST
        + """
-a --all-tags  bool  Upload all tags of the repository
-q --quiet     bool  Show only the name
""",
    ),
    "login": Command(
        login,
        "[OPTIONS] [SERVER]",
        0,
        1,
        """
-p --password        string  The password (better: --password-stdin)
   --password-stdin  bool    Read the password from standard input
-u --username        string  The user's name
""",
    ),
    "logout": Command(logout, "[SERVER]", 0, 1),
    "search": Command(
        search,
        "[OPTIONS] TERM",
        1,
        1,
        """
-f --filter    filter  Show what fits, KEY=VALUE (is-official, stars)
   --format    string  `table`, `table TEMPLATE`, `json` or a Go template
   --limit     int     Show no more than so many
   --no-trunc  bool    Do not shorten anything
""",
    ),
}
