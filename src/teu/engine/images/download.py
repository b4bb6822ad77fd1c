# SPDX-License-Identifier: Apache-2.0
"""POST /images/create?fromSrc=URL: a root file system's archive from an address, for load.import_."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from teu import __version__
from teu.engine.core.errors import BadRequest, EngineError, Forbidden, NotFound, Unauthorized

if TYPE_CHECKING:
    from teu.engine.images.transfer import Message
    from teu.oci.archive import Stream

SECONDS = 60  # that a server may be silent
# As dockerd tells of the server's.
REFUSALS: dict[int, type[EngineError]] = {400: BadRequest, 401: Unauthorized, 403: Forbidden, 404: NotFound}
SAID_MAX = 1000  # bytes of what a server says with a refusal


class _Arriving:
    """The body, whose end may not be early."""

    def __init__(self, answer: http.client.HTTPResponse, address: str) -> None:
        self._answer = answer
        self._address = address

    def read(self, size: int = -1, /) -> bytes:
        try:
            data = self._answer.read(None if size < 0 else size)
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"the download from {self._address} broke off: {_words(error)}") from None
        if not data and (missing := self._answer.length):
            raise EngineError(f"the download from {self._address} broke off, {missing} bytes before its end")
        return data


def checked(text: str) -> str:
    """The address that a client means; http:// may be left out, as in docker. Raises BadRequest."""
    address = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or any(character <= " " or character > "~" for character in address):
        raise BadRequest(f"invalid source {text[:200]!r}: give - for the request's body, or an address of http(s)")
    return address


def _opener() -> urllib.request.OpenerDirector:
    """http(s) alone, also behind a redirect: Python's own goes on to ftp."""
    opener = urllib.request.OpenerDirector()
    for kind in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(kind())
    return opener


def _words(error: object) -> str:
    """What is to be told of it, without Python's number of it."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def opened(address: str) -> tuple[Stream, http.client.HTTPResponse]:
    """What comes from there, and what is to be closed afterwards. Raises EngineError, of REFUSALS' kinds
    where the server refuses."""
    request = urllib.request.Request(address, headers={"User-Agent": f"teu/{__version__}"})
    try:
        answer = _opener().open(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(SAID_MAX).decode("utf-8", "replace").strip()
        raise REFUSALS.get(error.code, EngineError)(
            f"failed to GET {address} with status {error.code} {error.reason}: {said}"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise EngineError(f"failed to GET {address}: {_words(getattr(error, 'reason', None) or error)}") from None
    return _Arriving(answer, address), answer


def told(address: str, answer: http.client.HTTPResponse, messages: Iterator[Message]) -> Iterator[Message]:
    """The messages of the import, after that of the download, which ends with them."""
    with answer:
        yield {"status": f"Downloading from {address}"}
        yield from messages
