# SPDX-License-Identifier: Apache-2.0
"""Authorization plugins, docker's protocol of them: each is asked of each request, and of what is about to be answered.

    POST /AuthZPlugin.AuthZReq  {User, UserAuthNMethod, RequestMethod, RequestUri, RequestBody, RequestHeaders}
    POST /AuthZPlugin.AuthZRes  the same, and {ResponseStatusCode, ResponseBody, ResponseHeaders}

with an answer of {Allow, Msg, Err}. User is the common name of a TLS client's certificate. Bodies are there where they
are JSON, in base64. Called by the server where teud.yaml names plugins; who does not answer, allows nothing."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Sequence
from typing import Any

from teu.engine.api.messages import Request, Response
from teu.engine.core import plugins
from teu.engine.core.errors import EngineError, Forbidden, TooLarge

KIND = "authz"
BODY_MAX = 1 << 20
"""Bytes of a JSON body: what is longer cannot be shown to the plugins, and is refused."""
# Headers that carry passwords.
SECRET = ("authorization", "x-registry-config", "x-registry-auth")


class Authorization:
    """One request's way through the plugins, by their `names`."""

    def __init__(self, names: Sequence[str], user: str, target: str, request: Request) -> None:
        """`target`: the request's, as it came, with its version and query."""
        self.names = names
        self._request = request
        self._target = target
        self._asked: dict[str, Any] = {
            "User": user,
            "UserAuthNMethod": "TLS" if user else "",
            "RequestMethod": request.method,
            "RequestUri": target,
            "RequestHeaders": shown(request.pairs),
        }

    def ask(self, body: bytes) -> None:
        """Raises Forbidden where a plugin denies the request, EngineError where one fails."""
        if body:
            self._asked["RequestBody"] = base64.b64encode(body).decode()
        self._all("AuthZPlugin.AuthZReq")

    def answer(self, response: Response) -> None:
        """Of what the handler has made of it; a denial ends that. Raises as `ask`."""
        self._asked["ResponseStatusCode"] = response.status
        self._asked["ResponseHeaders"] = dict(response.headers)
        if response.chunks is None and response.body and self._tells(response.headers.get("Content-Type", "")):
            self._asked["ResponseBody"] = base64.b64encode(response.body).decode()
        try:
            self._all("AuthZPlugin.AuthZRes")
        except EngineError:
            close = getattr(response.chunks, "close", None)
            with contextlib.ExitStack() as stack:
                for end in (close, response.done):
                    if end is not None:
                        stack.callback(end)
            raise

    def _tells(self, kind: str) -> bool:
        """Whether plugins see a body of this type: JSON, but for passwords."""
        path = self._target.partition("?")[0]
        return kind.split(";")[0].strip().lower() == "application/json" and not path.endswith("/auth")

    def body(self) -> bytes:
        """Of the request, as far as plugins see it; it is read here, and can be read again. Raises TooLarge."""
        if not self._tells(self._request.headers.get("content-type", "")):
            return b""
        data = b""
        while part := self._request.body.read(1 << 16):
            data += part
            if len(data) > BODY_MAX:
                raise TooLarge(f"authorization plugins are shown bodies of up to {BODY_MAX >> 20} MiB; this is larger")
        return data

    def _all(self, method: str) -> None:
        for name in self.names:
            try:
                answer = plugins.get(name, KIND).call(method, self._asked)
            except EngineError as error:
                raise EngineError(f"plugin {name} failed with error: {error}") from error
            if plugins.member(answer, "Allow") is not True:
                text = plugins.words(answer, "Msg")
                raise Forbidden(f"authorization denied by plugin {name}: {text}")


def shown(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """A request's headers for plugins, with the letters that Go gives to their names."""
    return {
        "-".join(part.capitalize() for part in name.split("-")): value
        for name, value in pairs
        if name.lower() not in SECRET
    }
