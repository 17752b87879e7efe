"""Ed25519 as in RFC 8032: its vectors, and every kind of signature that must not pass."""

from __future__ import annotations

import random

import pytest

from pipeline.ed25519 import _ORDER, is_signed, public_key, sign

# RFC 8032, section 7.1: secret key, public key, message, signature.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe2465"
        "5141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb0"
        "0d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc0"
        "27beceea1ec40a",
    ),
]
SECRET = bytes(range(32))
PUBLIC = public_key(SECRET)
MESSAGE = b"a bundle"
SIGNATURE = sign(SECRET, MESSAGE)


@pytest.mark.parametrize(("secret", "public", "message", "signature"), VECTORS)
def test_vectors_of_the_rfc(secret: str, public: str, message: str, signature: str) -> None:
    content = bytes.fromhex(message)
    assert public_key(bytes.fromhex(secret)).hex() == public
    assert sign(bytes.fromhex(secret), content).hex() == signature
    assert is_signed(bytes.fromhex(public), content, bytes.fromhex(signature))


def test_any_flipped_bit_is_found() -> None:
    chance = random.Random(1)
    assert is_signed(PUBLIC, MESSAGE, SIGNATURE)
    for _ in range(60):
        spoiled = bytearray(SIGNATURE)
        spoiled[chance.randrange(64)] ^= 1 << chance.randrange(8)
        assert not is_signed(PUBLIC, MESSAGE, bytes(spoiled))
    assert not is_signed(PUBLIC, MESSAGE + b"x", SIGNATURE)
    assert not is_signed(public_key(bytes(32)), MESSAGE, SIGNATURE)


def test_second_signature_cannot_be_made_of_the_first() -> None:
    """The order added to the proof gives the same point: it has to be refused as too large."""
    proof = int.from_bytes(SIGNATURE[32:], "little") + _ORDER
    assert not is_signed(PUBLIC, MESSAGE, SIGNATURE[:32] + proof.to_bytes(32, "little"))


@pytest.mark.parametrize(
    ("public", "signature"),
    [
        (b"", SIGNATURE),
        (PUBLIC + b"x", SIGNATURE),
        (PUBLIC, b""),
        (PUBLIC, SIGNATURE + b"x"),
        (b"\xff" * 32, SIGNATURE),
        (PUBLIC, b"\xff" * 64),
        (b"\x02" + bytes(31), SIGNATURE),  # no point of the curve has this y
        (PUBLIC, b"\x01" + bytes(30) + b"\x80" + SIGNATURE[32:]),  # x = 0 with a sign
    ],
)
def test_malformed_input_is_no_signature(public: bytes, signature: bytes) -> None:
    assert not is_signed(public, MESSAGE, signature)


def test_secret_key_has_a_size() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        sign(b"short", MESSAGE)
