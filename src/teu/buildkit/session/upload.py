# SPDX-License-Identifier: Apache-2.0
"""What the client has as one stream, such as a tar archive from its standard input. Called by the http source.

Clients name it as a URL of a host that is none: `http://buildkit-session/ID`.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from teu.api.buildkit.session import upload_pb2
from teu.buildkit.core import errors
from teu.buildkit.session.manager import Session

METHOD = "/moby.upload.v1.Upload/Pull"
HOST = "buildkit-session"


def pull(session: Session, url: str, limit: int = 1 << 40) -> Iterator[bytes]:
    """The stream's bytes as they come; ResourceExhausted beyond `limit`. Closing the iterator cancels the transfer."""
    session.require(METHOD, "the client uploads nothing")
    parts = urlsplit(url)
    metadata = [("urlpath", unquote(parts.path)), ("urlhost", parts.netloc)]
    size = 0
    with session.stream(METHOD, upload_pb2.BytesMessage, metadata) as call:
        for message in call:
            size += len(message.data)
            if size > limit:
                raise errors.ResourceExhausted(f"the upload has more than {limit} bytes")
            if message.data:
                yield message.data
