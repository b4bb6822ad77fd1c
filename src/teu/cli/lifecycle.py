# SPDX-License-Identifier: Apache-2.0
"""Commands that do one thing to each container named: stop, kill, restart, rm, wait, pause, unpause,
rename, commit.

Many containers are asked for at once, up to PARALLEL of them.
"""

from __future__ import annotations

from teu.cli.command import Cli, Command
from teu.cli.errors import APIError, CommandError
from teu.cli.options import Options
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# So many requests are under way at once.
PARALLEL = 50


def at_once(cli: Cli, names: list[str], method: str, path: str, query: dict[str, Any]) -> list[APIError | Any]:
    """The same request for each container (`path` has `{}` for its name), PARALLEL at a time: JSON answers or
    errors, in order."""
    client = cli.client
    results: list[APIError | Any] = []
    for start in range(0, len(names), PARALLEL):
        some = names[start : start + PARALLEL]
        if len(some) == 1:
            try:
                results.append(client.call(method, path.format(some[0]), query))
            except APIError as error:
                results.append(error)
            continue
        waiting = [client.begin(method, path.format(name), query) for name in some]
        for connection in waiting:
            response = client.answer(connection)
            if response.status >= 400:
                results.append(client.failure(response))
                continue
            body = response.read()
            is_json = response.headers.get("content-type", "").startswith("application/json")
            results.append(jsontext.loads(body, exact=True) if body and is_json else None)
            connection.close()
    return results


def report_each(cli: Cli, names: list[str], results: list[APIError | Any], forgiven: bool = False) -> int:
    """Print the names that went well, then the errors; `forgiven`: unknown names are no failure."""
    failed = []
    for name, result in zip(names, results):
        if not isinstance(result, APIError):
            cli.print(name)
        elif forgiven and result.status == 404:
            cli.warn(str(result))
        else:
            failed.append(str(result))
    if failed:
        cli.warn("\n".join(failed))
        return 1
    return 0


def stop_query(options: Options) -> dict[str, Any]:
    given = [name for name in ("timeout", "time") if name in options.changed]
    if len(given) > 1:
        raise CommandError("conflicting options: cannot specify both --timeout and --time")
    return {"signal": options["signal"], "t": str(options[given[0]]) if given else None}


def stop(cli: Cli, options: Options, operands: list[str]) -> int:
    return report_each(cli, operands, at_once(cli, operands, "POST", "/containers/{}/stop", stop_query(options)))


def restart(cli: Cli, options: Options, operands: list[str]) -> int:
    return report_each(cli, operands, at_once(cli, operands, "POST", "/containers/{}/restart", stop_query(options)))


def kill(cli: Cli, options: Options, operands: list[str]) -> int:
    query = {"signal": options["signal"]}
    return report_each(cli, operands, at_once(cli, operands, "POST", "/containers/{}/kill", query))


def pause(cli: Cli, options: Options, operands: list[str]) -> int:
    return report_each(cli, operands, at_once(cli, operands, "POST", "/containers/{}/pause", {}))


def unpause(cli: Cli, options: Options, operands: list[str]) -> int:
    return report_each(cli, operands, at_once(cli, operands, "POST", "/containers/{}/unpause", {}))


def remove(cli: Cli, options: Options, operands: list[str]) -> int:
    names = [name.strip("/") for name in operands]
    if "" in names:
        raise CommandError("container name cannot be empty")
    query = {"v": options["volumes"], "link": options["link"], "force": options["force"]}
    return report_each(cli, names, at_once(cli, names, "DELETE", "/containers/{}", query), options["force"])


def wait(cli: Cli, options: Options, operands: list[str]) -> int:
    failed = []
    for result in at_once(cli, operands, "POST", "/containers/{}/wait", {}):
        if isinstance(result, APIError):
            failed.append(str(result))
        elif result.get("Error"):
            failed.append(result["Error"].get("Message", ""))
        else:
            cli.print(str(result["StatusCode"]))
    if failed:
        raise CommandError("\n".join(failed))
    return 0


def rename(cli: Cli, options: Options, operands: list[str]) -> int:
    old, new = (name.strip() for name in operands)
    if not old or not new:
        raise CommandError("Error: Neither old nor new names may be empty")
    try:
        cli.client.call("POST", f"/containers/{old}/rename", {"name": new})
    except APIError as error:
        raise CommandError(f"{error}\nError: failed to rename container named {old}") from None
    return 0


def commit(cli: Cli, options: Options, operands: list[str]) -> int:
    from teu.cli.registry import split_tag  # 0.9 ms

    repository, tag = split_tag(operands[1]) if len(operands) > 1 else ("", "")
    query = {
        "container": operands[0],
        "repo": repository,
        "tag": tag,
        "comment": options["message"],
        "author": options["author"],
        "changes": options["change"],
        "pause": None if options["pause"] else "0",
    }
    cli.print(cli.client.call("POST", "/commit", query, {})["Id"])
    return 0


MANY = "CONTAINER [CONTAINER...]"
STOP_FLAGS = """
-s --signal  string  Send this signal instead of the container's own
!  --time    int     As --timeout
-t --timeout int     Seconds to wait before killing it
"""
COMMANDS = {
    "container stop": Command(stop, "[OPTIONS] " + MANY, 1, None, STOP_FLAGS),
    "container restart": Command(restart, "[OPTIONS] " + MANY, 1, None, STOP_FLAGS),
    "container kill": Command(kill, "[OPTIONS] " + MANY, 1, None, "-s --signal string Send this signal (KILL)"),
    "container pause": Command(pause, MANY, 1, None),
    "container unpause": Command(unpause, MANY, 1, None),
    "container wait": Command(wait, MANY, 1, None),
    "container rename": Command(rename, "CONTAINER NEW_NAME", 2, 2),
    "container rm": Command(
        remove,
        "[OPTIONS] " + MANY,
        1,
        None,
        """
-f --force    bool  Kill and remove a running container too
-l --link     bool  Remove the link, not the container
-v --volumes  bool  Remove the container's anonymous volumes too
""",
    ),
    "container commit": Command(
        commit,
        "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
        1,
        2,
        """
-a --author   string     Note the author
-c --change   list       Apply a Dockerfile instruction to the image
-m --message  string     Note what was done
-p --pause    bool=true  Pause the container meanwhile
""",
    ),
}
