# SPDX-License-Identifier: Apache-2.0
"""Ed25519 signatures (RFC 8032): is this one of that key? Called by the builder's sessions, a few times in a build; and
made, by `teu build`, which proves so that it knows what it knew before.

A check takes some milliseconds. So does a signature, and how many tells of its key: it is for the client's own builder,
of a key that is made for one builder and is no credential.
"""

from __future__ import annotations

import hashlib

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
_ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)

# A point is (X, Y, Z, T) with x = X/Z, y = Y/Z, x*y = T/Z (section 5.1.4).
Point = tuple[int, int, int, int]


def _add(one: Point, other: Point) -> Point:
    a = (one[1] - one[0]) * (other[1] - other[0]) % P
    b = (one[1] + one[0]) * (other[1] + other[0]) % P
    c = 2 * one[3] * other[3] * D % P
    d = 2 * one[2] * other[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _times(number: int, point: Point) -> Point:
    result: Point = (0, 1, 1, 0)
    while number:
        if number & 1:
            result = _add(result, point)
        point = _add(point, point)
        number >>= 1
    return result


def _equal(one: Point, other: Point) -> bool:
    return not (one[0] * other[2] - other[0] * one[2]) % P and not (one[1] * other[2] - other[1] * one[2]) % P


def _point(data: bytes) -> Point | None:
    """Section 5.1.3; None where it is no point of the curve."""
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * _ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P or (not x and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


_BASE = _point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))
assert _BASE is not None


def _bytes(point: Point) -> bytes:
    """Section 5.1.2."""
    inverse = pow(point[2], P - 2, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _secret(seed: bytes) -> tuple[int, bytes]:
    """Section 5.1.5: the number that makes the public key, and what makes a signature's nonce."""
    digest = hashlib.sha512(seed).digest()
    number = int.from_bytes(digest[:32], "little")
    return number & (1 << 254) - 8 | 1 << 254, digest[32:]


def public_key(seed: bytes) -> bytes:
    """The public key (32 bytes) of a seed of 32 bytes."""
    assert _BASE is not None
    return _bytes(_times(_secret(seed)[0], _BASE))


def sign(seed: bytes, message: bytes) -> bytes:
    """Section 5.1.6: the signature, 64 bytes."""
    assert _BASE is not None
    number, prefix = _secret(seed)
    key = _bytes(_times(number, _BASE))
    nonce = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % ORDER
    commitment = _bytes(_times(nonce, _BASE))
    challenge = int.from_bytes(hashlib.sha512(commitment + key + message).digest(), "little") % ORDER
    return commitment + ((nonce + challenge * number) % ORDER).to_bytes(32, "little")


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    """Section 5.1.7: key of 32 bytes, signature of 64."""
    if len(key) != 32 or len(signature) != 64:
        return False
    public, commitment = _point(key), _point(signature[:32])
    response = int.from_bytes(signature[32:], "little")
    if public is None or commitment is None or response >= ORDER:
        return False
    assert _BASE is not None
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % ORDER
    return _equal(_times(response, _BASE), _add(commitment, _times(challenge, public)))
