"""A bundle on its way to a node: what travels, in which pieces, and how the node knows that it is right. No I/O.

What travels is the part that a node needs: encoders and tables, not the decoder. In one piece:

    length of the manifest (4 bytes, little-endian), manifest.json, the files in the order of their names, and the
    signature where there is one

The bundle's id is the SHA-256 of the manifest, and the manifest holds size and SHA-256 of every file. So a node that
was told an id knows for every byte whether it belongs there, with the decoder missing too. Names come from the manifest
and from a closed set; nothing is unpacked, run or unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pydantic import ValidationError

from pipeline.bundle import (
    DECODER_FILE,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    TABLES_FILE,
    Manifest,
    encoder_file,
    find_bundle,
    read_contents,
)
from pipeline.errors import BundleFormatError, BundleMismatchError
from pipeline.wire import BundleChunk, BundleRequest

LENGTH_BYTES = 4
MAX_MANIFEST_BYTES = 2**20
"""The measured table of 16 depths and 256 levels fits."""
MAX_PART_BYTES = 64 * 2**20
"""Some thirty times what an encoder for a camera box weighs; held in memory while it comes."""
MAX_SIGNATURE_BYTES = 256
"""Twice the hex of one; whether it is one is for `bundle_signature` to say."""
CHUNK_BYTES = 64 * 1024
OPEN_REQUESTS = 4
"""256 kB on the way: fills 40 Mbit/s at 50 ms, and leaves frames of the same link their turn."""
REPEAT_NS = 5_000_000_000
"""A request without an answer is made again."""


def pack_node_part(contents: Mapping[str, bytes]) -> bytes:
    """What travels of a bundle's files.

    Args:
        contents: bytes by name, manifest included.
    """
    manifest = contents[MANIFEST_FILE]
    names = sorted(name for name in contents if name not in (MANIFEST_FILE, DECODER_FILE, SIGNATURE_FILE))
    length = len(manifest).to_bytes(LENGTH_BYTES, "little")
    return b"".join((length, manifest, *(contents[name] for name in names), contents.get(SIGNATURE_FILE, b"")))


def read_node_part(name_or_path: str) -> bytes:
    """What travels of a bundle on this machine.

    Raises:
        BundleFormatError: there is none.
    """
    return pack_node_part(read_contents(find_bundle(name_or_path)))


def parse_node_part(bundle_id: bytes, content: bytes) -> dict[str, bytes]:
    """The files, each with the hash that the bundle's id stands for.

    Raises:
        BundleMismatchError: a byte is not the bundle's.
        BundleFormatError: the right bytes, and no bundle that this version knows.
    """
    manifest_bytes = _manifest_of(content)
    if manifest_bytes is None or hashlib.sha256(manifest_bytes).digest() != bundle_id:
        raise BundleMismatchError(f"what came is not bundle {bundle_id.hex()[:12]}")
    try:
        manifest = Manifest.model_validate_json(manifest_bytes)
    except (ValidationError, ValueError, RecursionError) as error:
        raise BundleFormatError(f"bundle {bundle_id.hex()[:12]}: manifest of another version") from error
    expected = {TABLES_FILE, *(encoder_file(depth) for depth in manifest.depths)}
    if set(manifest.files) - {DECODER_FILE} != expected:
        raise BundleFormatError(f"bundle {bundle_id.hex()[:12]}: its manifest names files that no bundle has")
    files, offset = {MANIFEST_FILE: manifest_bytes}, LENGTH_BYTES + len(manifest_bytes)
    for name in sorted(expected):
        entry = manifest.files[name]
        files[name] = content[offset : offset + entry.size_bytes]
        offset += entry.size_bytes
        if hashlib.sha256(files[name]).hexdigest() != entry.sha256:
            raise BundleMismatchError(f"bundle {bundle_id.hex()[:12]}: {name} came damaged")
    signature = content[offset:]
    if len(signature) > MAX_SIGNATURE_BYTES:
        raise BundleMismatchError(f"bundle {bundle_id.hex()[:12]}: more came than belongs to it")
    return files | ({SIGNATURE_FILE: signature} if signature else {})


def cut_chunk(part: bytes, request: BundleRequest) -> BundleChunk | None:
    """The piece that a node asks for; None where there is nothing of it."""
    chunk = part[request.offset : request.offset + request.length]
    return BundleChunk(request.bundle_id, request.offset, len(part), chunk) if chunk else None


class BundleFetch:
    """One bundle's pieces as they come; survives the sessions over which they do."""

    def __init__(self, bundle_id: bytes) -> None:
        self.bundle_id = bundle_id
        self._content = bytearray()
        self._total: int | None = None
        # Offsets: asked for, and when; the next one that was never asked for; those that are there.
        self._asked_ns: dict[int, int] = {}
        self._next_offset = 0
        self._have: set[int] = set()
        self._is_manifest_right = False

    def __repr__(self) -> str:
        return f"<BundleFetch {self.bundle_id.hex()[:12]}, {len(self._have)} pieces of {self._total} bytes>"

    @property
    def is_complete(self) -> bool:
        return self._total is not None and len(self._have) * CHUNK_BYTES >= self._total

    def requests(self, now_ns: int) -> list[BundleRequest]:
        """What to ask for now: the first piece alone, then a few at a time; what stays out is asked for again."""
        wanted = [offset for offset, asked_ns in self._asked_ns.items() if now_ns - asked_ns >= REPEAT_NS]
        end = CHUNK_BYTES if self._total is None else self._total
        while len(self._asked_ns) < OPEN_REQUESTS and self._next_offset < end:
            offset, self._next_offset = self._next_offset, self._next_offset + CHUNK_BYTES
            if offset not in self._have:
                self._asked_ns[offset] = now_ns
                wanted.append(offset)
        for offset in wanted:
            self._asked_ns[offset] = now_ns
        return [BundleRequest(self.bundle_id, offset, CHUNK_BYTES) for offset in wanted]

    def next_deadline_ns(self) -> int | None:
        """When a request has to be made again at the earliest."""
        return min(self._asked_ns.values()) + REPEAT_NS if self._asked_ns else None

    def take(self, chunk: BundleChunk) -> None:
        """Take a piece; one that was not asked for changes nothing.

        Raises:
            BundleMismatchError: it cannot belong to this bundle: throw all of it away.
            BundleFormatError: the bundle is larger than a node takes.
        """
        if chunk.bundle_id != self.bundle_id or chunk.offset not in self._asked_ns:
            return
        if self._total is None:
            if chunk.total > MAX_PART_BYTES:
                raise BundleFormatError(f"bundle of {chunk.total} bytes: a node takes {MAX_PART_BYTES}")
            self._total = chunk.total
            self._content = bytearray(chunk.total)
        if chunk.total != self._total or len(chunk.chunk) != min(CHUNK_BYTES, self._total - chunk.offset):
            raise BundleMismatchError(f"pieces of bundle {self.bundle_id.hex()[:12]} do not fit together")
        del self._asked_ns[chunk.offset]
        self._have.add(chunk.offset)
        self._content[chunk.offset : chunk.offset + len(chunk.chunk)] = chunk.chunk
        self._check_manifest()

    def lose_link(self) -> None:
        """The session ended: what was asked for is asked for again, what is there stays."""
        self._next_offset = min([self._next_offset, *self._asked_ns])
        self._asked_ns.clear()

    def files(self) -> dict[str, bytes]:
        """The files of a complete bundle; errors as for `parse_node_part`."""
        return parse_node_part(self.bundle_id, bytes(self._content))

    def _check_manifest(self) -> None:
        """Find a wrong bundle by its first pieces, before the others are fetched."""
        if self._is_manifest_right or 0 not in self._have:
            return
        end = LENGTH_BYTES + int.from_bytes(self._content[:LENGTH_BYTES], "little")
        if end > min(len(self._content), LENGTH_BYTES + MAX_MANIFEST_BYTES):
            raise BundleMismatchError(f"what comes is not bundle {self.bundle_id.hex()[:12]}")
        if any(offset not in self._have for offset in range(0, end, CHUNK_BYTES)):
            return
        manifest = _manifest_of(bytes(self._content[:end]))
        if manifest is None or hashlib.sha256(manifest).digest() != self.bundle_id:
            raise BundleMismatchError(f"what comes is not bundle {self.bundle_id.hex()[:12]}")
        self._is_manifest_right = True


def _manifest_of(content: bytes) -> bytes | None:
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    manifest = content[LENGTH_BYTES : LENGTH_BYTES + length]
    return manifest if 0 < length <= MAX_MANIFEST_BYTES and len(manifest) == length else None
