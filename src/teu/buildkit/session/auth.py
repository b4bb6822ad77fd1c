# SPDX-License-Identifier: Apache-2.0
"""The client's credentials for registries. Called by sources and exporters when a registry wants a token.

Two ways. A client that has an authority for a host (`token_authority`) fetches the tokens itself (`fetch_token`), and
no password leaves it: the authority is a public key made of its credentials and a salt of this process, so that builds
whose clients prove to own the same key (`verify_authority`) may share a token. An older client, or one that turned that
off, gives name and password (`credentials`).
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from teu.api.buildkit.session import auth_pb2
from teu.buildkit.core import errors
from teu.buildkit.session.manager import Session
from teu.oci import ed25519

PREFIX = "/moby.filesync.v1.Auth/"
SECONDS = 60.0  # the client may ask its credential helper, or a person
DEFAULT_EXPIRY = 60  # seconds, of a token whose server did not say

_SALT = secrets.token_bytes(32)  # of this process: keys made with it are of no use later


class Credentials(NamedTuple):
    """Without a name the secret is an identity token (a refresh token of OAuth); both empty: anonymous."""

    name: str
    secret: str


class Token(NamedTuple):
    token: str
    expires_in: int  # seconds from issued_at
    issued_at: int  # seconds since 1970; 0: not told


def credentials(session: Session, host: str) -> Credentials | None:
    """Name and secret for a registry; None where the client has no such service."""
    request = auth_pb2.CredentialsRequest(Host=host)
    try:
        answer = session.call(f"{PREFIX}Credentials", request, auth_pb2.CredentialsResponse, timeout=SECONDS)
    except errors.Unimplemented:
        return None
    return Credentials(answer.Username, answer.Secret)


def token_authority(session: Session, host: str) -> bytes | None:
    """The public key (32 bytes) of the client's credentials for a host; None where it fetches no tokens itself."""
    request = auth_pb2.GetTokenAuthorityRequest(Host=host, Salt=_SALT)
    try:
        answer = session.call(
            f"{PREFIX}GetTokenAuthority", request, auth_pb2.GetTokenAuthorityResponse, timeout=SECONDS
        )
    except (errors.Unimplemented, errors.Unavailable):
        if session.error is not None:
            raise
        return None
    if len(answer.PublicKey) != 32:
        raise errors.InvalidArgument(f"invalid pubkey length {len(answer.PublicKey)}")
    return bytes(answer.PublicKey)


def verify_authority(session: Session, host: str, key: bytes) -> bool:
    """Does the client own the credentials of this key? It signs what was never signed before."""
    payload = secrets.token_bytes(32)
    request = auth_pb2.VerifyTokenAuthorityRequest(Host=host, Salt=_SALT, Payload=payload)
    try:
        answer = session.call(
            f"{PREFIX}VerifyTokenAuthority", request, auth_pb2.VerifyTokenAuthorityResponse, timeout=SECONDS
        )
    except errors.Unimplemented:
        return False
    signature, message = answer.Signed[:64], answer.Signed[64:]
    return hmac.compare_digest(message, payload) and ed25519.verify(key, message, signature)


def fetch_token(
    session: Session, host: str, realm: str, service: str, scopes: Sequence[str], client_id: str = ""
) -> Token:
    """A token that the client fetches from the token server `realm`."""
    request = auth_pb2.FetchTokenRequest(ClientID=client_id, Host=host, Realm=realm, Service=service, Scopes=scopes)
    answer = session.call(f"{PREFIX}FetchToken", request, auth_pb2.FetchTokenResponse, timeout=SECONDS)
    return Token(answer.Token, answer.ExpiresIn or DEFAULT_EXPIRY, answer.IssuedAt)
