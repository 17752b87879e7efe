"""Picture codecs in front of the same classifier on the same views."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.accuracy import RatePoint, classify_reference, make_point
from pipeline.inference import Engine


@dataclass(frozen=True, slots=True)
class PictureCodec:
    """A codec with its encoder and decoder; pictures are uint8 (H, W, 3) BGR."""

    name: str
    qualities: tuple[int, ...]
    encode: Callable[[NDArray[np.uint8], int], bytes]
    decode: Callable[[bytes], NDArray[np.uint8]]


def _with_pillow(name: str, qualities: tuple[int, ...], **options: int) -> PictureCodec:
    from PIL import Image

    def encode(view: NDArray[np.uint8], quality: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(view[:, :, ::-1]).save(buffer, name, quality=quality, **options)
        return buffer.getvalue()

    def decode(content: bytes) -> NDArray[np.uint8]:
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.uint8)[:, :, ::-1]

    return PictureCodec(name.lower(), qualities, encode, decode)


def _with_opencv(name: str, suffix: str, flag: int, qualities: tuple[int, ...]) -> PictureCodec:
    def encode(view: NDArray[np.uint8], quality: int) -> bytes:
        return bytes(cv2.imencode(suffix, view, [flag, quality])[1])

    def decode(content: bytes) -> NDArray[np.uint8]:
        return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), np.uint8)

    return PictureCodec(name, qualities, encode, decode)


def picture_codecs(names: tuple[str, ...] = ("jpeg", "webp", "avif")) -> Iterator[PictureCodec]:
    """The codecs that are installed: Pillow's where it is, else OpenCV's JPEG and WebP."""
    try:
        from PIL import features
    except ImportError:
        if "jpeg" in names:
            yield _with_opencv("jpeg", ".jpg", cv2.IMWRITE_JPEG_QUALITY, (5, 10, 20, 30, 50))
        if "webp" in names:
            yield _with_opencv("webp", ".webp", cv2.IMWRITE_WEBP_QUALITY, (1, 15, 30, 50))
        return
    if "jpeg" in names:
        yield _with_pillow("JPEG", (5, 10, 20, 30, 50), optimize=True)  # tables of its own: 0.12 bpp less at quality 5
    if "webp" in names and features.check("webp"):
        yield _with_pillow("WEBP", (1, 15, 30, 50, 70))
    if "avif" in names and features.check("avif"):
        yield _with_pillow("AVIF", (10, 25, 40, 55, 65), max_threads=1)


def measure_picture_codec(
    codec: PictureCodec,
    quality: int,
    engine: Engine,
    views: NDArray[np.uint8],
    reference: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
) -> RatePoint:
    """Encode, decode and classify every view at one quality."""
    contents = [codec.encode(view, quality) for view in views]
    decoded = np.stack([codec.decode(content) for content in contents])
    num_bytes = np.array([len(content) for content in contents], np.int64)
    return make_point(codec.name, quality, classify_reference(engine, decoded), num_bytes, reference, labels)
