"""What happens to bytes on purpose: flips, cuts, insertions, copies, and lengths that lie."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

Mutation = Callable[[bytes, Random], bytes]

# Bytes that mean something to a parser: ends of ranges, and the heads of msgpack's arrays, maps, texts and extensions.
TELLING_BYTES = bytes((0x00, 0x01, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, *range(0xC0, 0x100)))


def flip_bit(content: bytes, random: Random) -> bytes:
    spoiled = bytearray(content)
    spoiled[random.randrange(len(spoiled))] ^= 1 << random.randrange(8)
    return bytes(spoiled)


def change_bytes(content: bytes, random: Random) -> bytes:
    spoiled = bytearray(content)
    for _ in range(random.randint(1, 16)):
        spoiled[random.randrange(len(spoiled))] = random.randrange(256)
    return bytes(spoiled)


def put_telling_byte(content: bytes, random: Random) -> bytes:
    spoiled = bytearray(content)
    spoiled[random.randrange(min(len(spoiled), 64))] = random.choice(TELLING_BYTES)
    return bytes(spoiled)


def cut(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content))]


def cut_words(content: bytes, random: Random) -> bytes:
    return content[: len(content) - 4 * random.randint(1, max(1, len(content) // 4 - 1))]


def drop_middle(content: bytes, random: Random) -> bytes:
    start, end = sorted(random.randrange(len(content) + 1) for _ in range(2))
    return content[:start] + content[end:]


def insert(content: bytes, random: Random) -> bytes:
    place = random.randrange(len(content) + 1)
    return content[:place] + random.randbytes(random.choice((1, 4, 8, 64))) + content[place:]


def repeat(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content))
    return content + content[start : start + 4 * random.randint(1, 64)]


def blank(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content))
    length = random.randint(1, 64)
    return content[:start] + random.choice((b"\0", b"\xff")) * length + content[start + length :]


def swap_words(content: bytes, random: Random) -> bytes:
    words = [content[place : place + 4] for place in range(0, len(content), 4)]
    one, other = random.randrange(len(words)), random.randrange(len(words))
    words[one], words[other] = words[other], words[one]
    return b"".join(words)


MUTATIONS: tuple[Mutation, ...] = (
    flip_bit,
    change_bytes,
    put_telling_byte,
    cut,
    cut_words,
    drop_middle,
    insert,
    repeat,
    blank,
    swap_words,
)


def mutate(content: bytes, random: Random) -> bytes:
    """One to three mutations, one on the other."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = random.choice(MUTATIONS)(content, random) if content else random.randbytes(4)
    return content
