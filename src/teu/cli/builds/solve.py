# SPDX-License-Identifier: Apache-2.0
"""A build from its begin to its end, and a question to its frontend (`--call`). Called by build.

The main thread waits for Solve, another one reads Status and shows it, others serve the session. A build asks the
builder to run the frontend; a question makes us the frontend (LLBBridge): only so is the answer to be had.
"""

from __future__ import annotations

import os
import sys
import threading

from teu.cli.builds import failure, progress
from teu.cli.builds.messages import BRIDGE, CONTROL, decode, encode
from teu.cli.builds.session import Offer, Session
from teu.cli.builds.wire import UNKNOWN, Builder, BuildError, described
from teu.cli.errors import CommandError
from teu.http2 import calls
from teu.http2.connection import CANCELLED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STATUS_SECONDS = 5.0  # of silence after the build's end, until its last words are not waited for any more
TICK = 0.15
BUILD_ID = "buildkit-controlapi-buildid"
MODES = ("auto", "tty", "plain", "quiet", "rawjson")


class Failed(Exception):
    """The build failed; what there is to say has been said but for the error itself."""

    def __init__(self, error: BuildError, text: str) -> None:
        super().__init__(text)
        self.error = error
        self.text = text


def display_for(mode: str, trace: progress.Trace, where: str) -> progress.Display:
    """How --progress (or BUILDKIT_PROGRESS) wants it. where: the builder, for people."""
    terminal = sys.stderr.isatty()
    if mode == "tty" and not terminal:
        raise CommandError("failed to get console: provided file is not a console")
    if mode == "quiet":
        return progress.Display(trace)
    if mode == "rawjson":
        return progress.RawJSON(trace)
    if mode == "tty" or (mode == "auto" and terminal):
        from teu.cli.builds import screen  # 0.4 ms, on terminals alone

        return screen.Screen(trace, where)
    driver = where.partition(":")[0]
    return progress.Plain(trace, f'building with "default" instance using {driver} driver' if driver else "")


class Build:
    """One build on a builder. `run` it, or `ask` its frontend."""

    def __init__(self, builder: Builder, offer: Offer, request: dict[str, Any], mode: str) -> None:
        """request: the fields of Solve, but for who we are."""
        if mode not in MODES:
            raise CommandError(f"invalid progress mode {mode}")
        self.ref = _reference()
        self.trace = progress.Trace()
        self._builder = builder
        self._session = Session(offer)
        self._request = request
        self._mode = mode
        self._lock = threading.Lock()
        self._status_over = threading.Event()
        self._heard = threading.Event()
        where = f"remote:{os.path.basename(builder.address)}" if builder.address else "docker:default"
        self._display = display_for(mode, self.trace, where)

    def run(self) -> dict[str, str]:
        """Build; what the exporters answered. Raises Failed."""
        return self._within(lambda: self._solve(self._request))

    def ask(self, question: dict[str, str]) -> dict[str, bytes]:
        """The metadata with which the frontend answers a request of its own (requestid). Raises Failed."""
        found: dict[str, bytes] = {}

        def work() -> dict[str, str]:
            kept = ("Entitlements", "SourcePolicy")
            empty = {"Internal": True, **{name: self._request[name] for name in kept if name in self._request}}
            problem: list[BuildError] = []

            def solve() -> None:
                try:
                    self._solve(empty)
                except BuildError as error:
                    problem.append(error)

            outer = threading.Thread(target=solve, daemon=True)
            outer.start()
            try:
                found.update(self._frontend(question))
            except BuildError as error:
                outer.join(STATUS_SECONDS)
                # The outer error has the frontend's in it, with its places.
                raise (problem or [error])[0] from None
            outer.join(STATUS_SECONDS)
            return {}

        self._within(work)
        return found

    def _frontend(self, question: dict[str, str]) -> dict[str, bytes]:
        """Be the frontend: let the builder's own one answer, and hand on that it did."""
        metadata = ((BUILD_ID, self.ref),)

        def bridge(method: str, name: str, **fields: Any) -> bytes:
            return calls.unary(
                self._builder.connection, f"/{BRIDGE}LLBBridge/{method}", encode(name, **fields), metadata
            )

        bridge("Ping", f"{BRIDGE}PingRequest")
        options = {**self._request["FrontendAttrs"], **question}
        capabilities = [options["frontend.caps"]] if "frontend.caps" in options else []
        options["frontend.caps"] = ",".join([*capabilities, "moby.buildkit.frontend.subrequests+forward"])
        imports = (self._request.get("Cache") or {}).get("Imports") or []
        try:
            answer = bridge(
                "Solve",
                f"{BRIDGE}SolveRequest",
                Frontend=self._request["Frontend"],
                FrontendOpt=options,
                CacheImports=imports,
                allowResultReturn=True,
                allowResultArrayRef=True,
            )
        except BuildError as error:
            status = {"code": error.code, "message": error.message}
            try:
                bridge("Return", f"{BRIDGE}ReturnRequest", error=status)
            except BuildError:
                pass  # the first error is the one to be told
            raise
        result = decode(f"{BRIDGE}SolveResponse", answer)["result"] or {"metadata": []}
        bridge("Return", f"{BRIDGE}ReturnRequest", result=result)
        return {pair["key"]: pair["value"] for pair in result["metadata"]}

    def _solve(self, request: dict[str, Any]) -> dict[str, str]:
        fields = {"Ref": self.ref, "Session": self._session.id, **request}
        answer: dict[str, str] = self._builder.control("Solve", **fields)["ExporterResponse"]
        return answer

    def _within(self, work: Any) -> dict[str, str]:
        """Do it with the session and the progress around."""
        self._builder.session(self._session.identity(), self._session.serve)
        status = self._builder.stream("Status", "StatusRequest", Ref=self.ref)
        for function in (self._read_status, self._tick):
            threading.Thread(target=function, args=(status,), daemon=True).start()
        problem: BuildError | None = None
        answer: dict[str, str] = {}
        try:
            answer = work()
        except BuildError as error:
            problem = self._of_ours(error)
        except KeyboardInterrupt:
            # The builder ends what nobody waits for, once our call is gone.
            self._builder.close()
            problem = BuildError(CANCELLED, "context canceled")
        while not self._status_over.wait(STATUS_SECONDS) and self._heard.is_set():
            self._heard.clear()
        status.close()
        with self._lock:
            self._status_over.set()
            self._display.done()
        if problem is not None:
            raise Failed(problem, self._explained(problem))
        return answer

    def _of_ours(self, error: BuildError) -> BuildError:
        """Why it failed. Where we could not send a file, a builder cancels what waits for it, and may say no more."""
        if error.code == CANCELLED and self._session.failures:
            return BuildError(UNKNOWN, f"error from sender: {self._session.failures[0]}")
        return error

    def _read_status(self, status: calls.Call) -> None:
        try:
            for data in status:
                message = decode(f"{CONTROL}StatusResponse", data)
                self._heard.set()
                with self._lock:
                    if self._status_over.is_set():
                        return
                    self.trace.update(message)
                    self._display.update(message)
        except (BuildError, ValueError):
            pass  # Solve says why, or the build has ended without us
        self._status_over.set()

    def _tick(self, status: calls.Call) -> None:
        while not self._status_over.wait(TICK):
            with self._lock:
                if not self._status_over.is_set():
                    self._display.tick()

    def _explained(self, error: BuildError) -> str:
        """The places in the Dockerfile and the error, as they stand at the end of the output."""
        if self._mode == "rawjson":
            return f"ERROR: failed to build: failed to solve: {described(error)}"
        return f"{failure.places(error)}ERROR: failed to build: failed to solve: {described(error)}"


def _reference() -> str:
    """A name for a build as BuildKit makes them: 25 letters and digits."""
    number, letters = int.from_bytes(os.urandom(17)), ""
    while len(letters) < 25:
        number, digit = divmod(number, 36)
        letters += "0123456789abcdefghijklmnopqrstuvwxyz"[digit]
    return letters
