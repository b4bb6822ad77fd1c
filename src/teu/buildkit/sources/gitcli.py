# SPDX-License-Identifier: Apache-2.0
"""The host's git, run for a build: apart from the host's configuration, without hooks, with network protocols only.

Called by sources.git. What is secret is given in the environment of the process (GIT_CONFIG_…), which only root reads,
and not among its arguments, which everybody does; in what git writes it is hidden. A build that nobody waits for ends
git with all that it started.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import IO

from teu.buildkit.core import errors
from teu.buildkit.core.identifiers import new_id
from teu.buildkit.sources.base import Asker
from teu.linux.trees import discard_tree

log = logging.getLogger("teu.buildkit")

PROGRAM = "git"
PROTOCOLS = "http:https:ssh:git"
OUTPUT_MAX = 32 << 20  # bytes of an answer, such as a list of references
TOLD_MAX = 256 << 10  # bytes of messages of one call that are shown
KEPT_MAX = 16 << 10  # bytes of messages that an error shows
PATIENCE = 5.0  # seconds from the word that it ends to its end by force
PASSED_ON = (
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO"),
)
# What a repository, or whoever serves it, shall not decide. A URL that transfers nothing for a minute has ended.
SETTINGS = (
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.askPass", ""),
    ("core.symlinks", "true"),
    ("core.autocrlf", "false"),
    ("credential.helper", ""),
    ("safe.directory", "*"),
    ("init.defaultBranch", "master"),
    ("advice.detachedHead", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("http.lowSpeedLimit", "1"),
    ("http.lowSpeedTime", "60"),
    ("http.followRedirects", "initial"),
)


class GitError(errors.Error):
    """git failed; `output` is what it said."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class Git:
    """Runs git for one source; a context manager, whose folder goes at its end.

    `settings`: configuration beside SETTINGS, where secrets may be; `secrets`: texts that are hidden in what is told.
    `place`: where its folder is made."""

    def __init__(
        self,
        asker: Asker,
        settings: Sequence[tuple[str, str]] = (),
        secrets: Sequence[str] = (),
        place: str | None = None,
    ) -> None:
        self._asker = asker
        self._settings = [*SETTINGS, *settings]
        self._secrets = [secret for secret in secrets if secret]
        self.folder = os.path.join(place or "/tmp", f"teu-git-{new_id()}")
        os.mkdir(self.folder, 0o700)
        self.socket = ""
        self._hosts = ""

    def __enter__(self) -> Git:
        return self

    def __exit__(self, *problem: object) -> None:
        discard_tree(self.folder)

    def know_hosts(self, text: str) -> None:
        """Only hosts of this text (a known_hosts file) are spoken to over ssh."""
        self._hosts = os.path.join(self.folder, "known_hosts")
        with open(self._hosts, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text if text.endswith("\n") else text + "\n")

    def _environment(self, local: bool) -> dict[str, str]:
        empty = os.path.join(self.folder, "home")
        os.makedirs(empty, mode=0o700, exist_ok=True)
        environment = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "HOME": empty,
            "XDG_CONFIG_HOME": empty,
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_SYSTEM": "/dev/null",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": f"{PROTOCOLS}:file" if local else PROTOCOLS,
            "GIT_SSH_COMMAND": self._ssh(),
            "GIT_SSH_VARIANT": "ssh",
            "GIT_CONFIG_COUNT": str(len(self._settings)),
        }
        for number, (key, value) in enumerate(self._settings):
            environment[f"GIT_CONFIG_KEY_{number}"] = key
            environment[f"GIT_CONFIG_VALUE_{number}"] = value
        environment.update((name, os.environ[name]) for name in PASSED_ON if name in os.environ)
        if self.socket:
            environment["SSH_AUTH_SOCK"] = self.socket
        return environment

    def _ssh(self) -> str:
        """ssh finds the home of root by itself: no key and no configuration of the host is to be used."""
        known = f"-o StrictHostKeyChecking=yes -o UserKnownHostsFile={self._hosts}"
        anybody = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        return (
            "ssh -F /dev/null -o BatchMode=yes -o IdentityFile=none -o GlobalKnownHostsFile=/dev/null "
            f"-o ForwardAgent=no -o ControlPath=none -o ConnectTimeout=30 {known if self._hosts else anybody}"
        )

    def run(
        self,
        *arguments: str,
        git_dir: str = "",
        work_tree: str = "",
        local: bool = False,
        told: bool = False,
    ) -> bytes:
        """What git answers; `told`: what it says beside is shown in the step. `local`: paths of this host may be
        fetched from, for this once. Raises GitError, Cancelled, FailedPrecondition where there is no git."""
        self._asker.check()
        places = ([f"--git-dir={git_dir}"] if git_dir else []) + ([f"--work-tree={work_tree}"] if work_tree else [])
        command = [PROGRAM, *places, *arguments]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=work_tree or self.folder,
                env=self._environment(local),
                start_new_session=True,
                umask=0o022,
            )
        except FileNotFoundError:
            raise errors.FailedPrecondition(
                "git is not installed on the builder's host: sources of git need it"
            ) from None
        assert process.stdout is not None and process.stderr is not None
        said = _Said(process.stderr, self._asker if told else None, self._hidden)
        ending = _Ending(process.pid)
        with self._asker.on_cancel(ending.begin):
            output = process.stdout.read(OUTPUT_MAX + 1)
            if len(output) > OUTPUT_MAX:
                ending.force()
            _leave_nobody(process)
            code = process.wait()
            ending.end()
        said.join()
        process.stdout.close()
        process.stderr.close()
        self._asker.check()
        if len(output) > OUTPUT_MAX:
            raise errors.ResourceExhausted(f"git {arguments[0]}: an answer of more than {OUTPUT_MAX} bytes")
        if code:
            words = self._hidden(bytes(said.kept)).decode(errors="replace").strip()
            raise GitError(f"git stderr:\n{words}: exit status {code}", words)
        return output

    def _hidden(self, text: bytes) -> bytes:
        for secret in self._secrets:
            text = text.replace(secret.encode("utf-8", "surrogateescape"), b"xxxxx")
        return text


def _leave_nobody(process: subprocess.Popen[bytes]) -> None:
    """Wait for git, and end what it started and left: before it is reaped, so that the number is its own still."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


class _Ending:
    """Ends a process and all that it started: first with a word, then by force."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._over = False

    def _kill(self, number: int) -> None:
        with self._lock:
            if not self._over:
                try:
                    os.killpg(self._pid, number)
                except (ProcessLookupError, PermissionError):
                    pass

    def begin(self) -> None:
        self._kill(signal.SIGTERM)
        timer = threading.Timer(PATIENCE, self.force)
        timer.daemon = True
        with self._lock:
            if not self._over:
                self._timer = timer
                timer.start()

    def force(self) -> None:
        self._kill(signal.SIGKILL)

    def end(self) -> None:
        """It has been reaped: its number means nothing any more."""
        with self._lock:
            self._over = True
            if self._timer is not None:
                self._timer.cancel()


class _Said:
    """What git says beside its answer, line by line."""

    def __init__(self, pipe: IO[bytes], asker: Asker | None, hidden: object) -> None:
        self._pipe = pipe
        self._asker = asker
        self._hidden = hidden
        self.kept = bytearray()
        self._thread = threading.Thread(target=self._read, name="git", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        told = 0
        while line := self._pipe.readline(64 << 10):
            self.kept += line
            del self.kept[:-KEPT_MAX]
            if self._asker is not None and told < TOLD_MAX:
                told += len(line)
                self._asker.log(2, self._hidden(line))  # type: ignore[operator]

    def join(self) -> None:
        self._thread.join()
