"""Who vouches for a bundle: Ed25519 signatures of its id, in a file beside the manifest.

The id is the hash of the manifest, which holds the hashes of all files: so one signature stands for every byte, and
the node's part of a bundle carries the same one as the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.ed25519 import SIGNATURE_BYTES, is_signed, sign
from pipeline.errors import BundleSignatureError

_CONTEXT = b"edge-cloud-rac bundle 1\0"
"""In front of every id: what is signed here can be taken for nothing else."""


def sign_bundle(secret: bytes, bundle_id: bytes) -> bytes:
    """Content of the signature file: hex and a newline."""
    return sign(secret, _CONTEXT + bundle_id).hex().encode() + b"\n"


def check_signature(bundle_id: bytes, content: bytes | None, trusted: Sequence[bytes]) -> None:
    """Make sure that one of the trusted keys signed this bundle.

    Args:
        content: of the signature file; None where there is none.
        trusted: public keys of 32 bytes; none: nothing is asked for.
    Raises:
        BundleSignatureError: none of them did.
    """
    if not trusted:
        return
    name = bundle_id.hex()[:12]
    if content is None:
        raise BundleSignatureError(f"bundle {name} is not signed, and bundle.trusted_keys asks for it")
    signature = _parse(content)
    if not any(is_signed(public, _CONTEXT + bundle_id, signature) for public in trusted):
        raise BundleSignatureError(f"bundle {name} is signed by none of bundle.trusted_keys")


def _parse(content: bytes) -> bytes:
    try:
        signature = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:
        return b""
    return signature if len(signature) == SIGNATURE_BYTES else b""
