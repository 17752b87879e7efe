"""Ed25519 signatures, for bundles: checked once when one arrives, made once when one is sealed.

Plain integers instead of a library: a check takes some tens of milliseconds, and the node needs no further dependency.
Checking handles nothing secret. Signing takes a time that depends on the secret key: do it on a machine of your own.

Source: RFC 8032, section 5.1 (and its test vectors).
"""

from __future__ import annotations

import hashlib

KEY_BYTES = 32
SIGNATURE_BYTES = 64

_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_ROOT = pow(2, (_P - 1) // 4, _P)

# A point (x, y) as (X, Y, Z, T) with x = X/Z, y = Y/Z, x y = T/Z: additions need no division.
_Point = tuple[int, int, int, int]
_NEUTRAL: _Point = (0, 1, 1, 0)


def public_key(secret: bytes) -> bytes:
    """The public key, 32 bytes, of a secret one of 32 random bytes."""
    return _pack(_multiply(_expand(secret)[0], _BASE))


def sign(secret: bytes, message: bytes) -> bytes:
    """The signature of a message, 64 bytes; the same every time."""
    scalar, prefix = _expand(secret)
    public = _pack(_multiply(scalar, _BASE))
    nonce = _hash(prefix, message)
    packed = _pack(_multiply(nonce, _BASE))
    proof = (nonce + _hash(packed, public, message) * scalar) % _ORDER
    return packed + proof.to_bytes(KEY_BYTES, "little")


def is_signed(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the owner of a public key made this signature of this message; False for whatever is malformed."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    owner, point = _unpack(public), _unpack(signature[:KEY_BYTES])
    proof = int.from_bytes(signature[KEY_BYTES:], "little")
    if owner is None or point is None or proof >= _ORDER:
        return False
    challenge = _hash(signature[:KEY_BYTES], public, message)
    return _are_equal(_multiply(proof, _BASE), _add(point, _multiply(challenge, owner)))


def _expand(secret: bytes) -> tuple[int, bytes]:
    if len(secret) != KEY_BYTES:
        raise ValueError(f"a secret key has {KEY_BYTES} bytes")
    digest = hashlib.sha512(secret).digest()
    scalar = int.from_bytes(digest[:KEY_BYTES], "little")
    return (scalar & ((1 << 254) - 8)) | (1 << 254), digest[KEY_BYTES:]


def _hash(*parts: bytes) -> int:
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % _ORDER


def _add(first: _Point, second: _Point) -> _Point:
    a = (first[1] - first[0]) * (second[1] - second[0]) % _P
    b = (first[1] + first[0]) * (second[1] + second[0]) % _P
    c = 2 * first[3] * second[3] * _D % _P
    d = 2 * first[2] * second[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _multiply(scalar: int, point: _Point) -> _Point:
    result = _NEUTRAL
    while scalar:
        if scalar & 1:
            result = _add(result, point)
        point = _add(point, point)
        scalar >>= 1
    return result


def _are_equal(first: _Point, second: _Point) -> bool:
    same_x = (first[0] * second[2] - second[0] * first[2]) % _P == 0
    return same_x and (first[1] * second[2] - second[1] * first[2]) % _P == 0


def _pack(point: _Point) -> bytes:
    inverse = pow(point[2], -1, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(KEY_BYTES, "little")


def _unpack(content: bytes) -> _Point | None:
    packed = int.from_bytes(content, "little")
    y, sign_bit = packed & ((1 << 255) - 1), packed >> 255
    if y >= _P:
        return None
    x = _find_x(y, sign_bit)
    return None if x is None else (x, y, 1, x * y % _P)


def _find_x(y: int, sign_bit: int) -> int | None:
    """The x of a point on the curve with this y; None where there is none."""
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    if square == 0:
        return None if sign_bit else 0
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT % _P
    if (x * x - square) % _P:
        return None
    return _P - x if x & 1 != sign_bit else x


def _base() -> _Point:
    y = 4 * pow(5, -1, _P) % _P
    x = _find_x(y, 0)
    assert x is not None
    return x, y, 1, x * y % _P


_BASE = _base()
