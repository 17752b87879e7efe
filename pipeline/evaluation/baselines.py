"""Picture codecs in front of the same classifier on the same views; their real bytes, headers included.

    jpeg         Pillow, tables of its own (optimize), 4:2:0
    webp m0..m6  Pillow, lossy, method 0 (fastest) to 6
    avif         Pillow, at its default speed
    bpg          `bpgenc` and `bpgdec` where they are on PATH, 4:4:4
    hevc         else libx265 through PyAV as the stand-in for BPG: one intra picture, 4:4:4, the same colour transform
                 and the presets that BPG's levels stand for. Counted is the elementary stream, without any container,
                 with its parameter sets (about 80 bytes a picture), where BPG has a shorter header of its own

A codec that is not installed is a `MissingCodec`, which says so in the table.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EvaluationError
from pipeline.evaluation.accuracy import RatePoint, classify_reference, make_point
from pipeline.inference import Engine

JPEG_QUALITIES = (5, 10, 20, 30, 50, 70, 85, 95)
WEBP_QUALITIES = (1, 8, 15, 30, 50, 70, 86, 95)
AVIF_QUALITIES = (10, 25, 40, 55, 65, 75, 90)
QUANTISERS = (51, 48, 45, 40, 38, 36, 34, 32, 30, 28, 26)
"""QP of HEVC and BPG, most compressed first; the paper's from 26 on and the end of the scale."""
WEBP_METHODS = (4, 0, 1, 2, 3, 5, 6)
"""As the paper sweeps them; the default first."""
BPG_LEVELS = {4: "fast", 0: "ultrafast", 8: "veryslow"}
"""BPG's compression levels that the paper sweeps, and the x265 preset of each; the one of its main figure first."""
CODEC_NAMES = ("jpeg", "webp", "avif", "hevc")
PROGRAM_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class PictureCodec:
    """A codec with its encoder and decoder; pictures are uint8 (H, W, 3) BGR.

    Attributes:
        qualities: the codec's own numbers, in the order of rising rate.
    """

    name: str
    qualities: tuple[int, ...]
    encode: Callable[[NDArray[np.uint8], int], bytes]
    decode: Callable[[bytes], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class MissingCodec:
    """A codec that cannot be measured here."""

    name: str
    reason: str


def picture_codecs(names: tuple[str, ...] = CODEC_NAMES, *, all_speeds: bool = False) -> Iterator[PictureCodec]:
    """The codecs that are installed."""
    return (codec for codec in find_codecs(names, all_speeds=all_speeds) if isinstance(codec, PictureCodec))


def find_codecs(
    names: tuple[str, ...] = CODEC_NAMES, *, all_speeds: bool = False
) -> Iterator[PictureCodec | MissingCodec]:
    """Every named codec, or that it is missing: Pillow's where Pillow is, else OpenCV's JPEG and WebP.

    Args:
        all_speeds: each speed setting that the paper sweeps, as a codec of its own; else the default one.
    """
    for name in names:
        yield from _FINDERS[name](all_speeds)


def _find_jpeg(all_speeds: bool) -> Iterator[PictureCodec | MissingCodec]:
    if _pillow_has(None):
        yield _with_pillow("jpeg", JPEG_QUALITIES, optimize=True)  # tables of its own: 0.12 bpp less at quality 5
    else:
        yield _with_opencv("jpeg", ".jpg", cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITIES)


def _find_webp(all_speeds: bool) -> Iterator[PictureCodec | MissingCodec]:
    if _pillow_has("webp"):
        for method in WEBP_METHODS if all_speeds else WEBP_METHODS[:1]:
            yield _with_pillow("webp", WEBP_QUALITIES, f"webp m{method}" if all_speeds else "webp", method=method)
    elif _pillow_has(None):
        yield MissingCodec("webp", "not installed (this Pillow has no WebP)")
    else:
        yield _with_opencv("webp", ".webp", cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITIES)


def _find_avif(all_speeds: bool) -> Iterator[PictureCodec | MissingCodec]:
    if _pillow_has("avif"):
        yield _with_pillow("avif", AVIF_QUALITIES, max_threads=1)
    else:
        yield MissingCodec("avif", "not installed (a Pillow with AVIF)")


def _find_hevc(all_speeds: bool) -> Iterator[PictureCodec | MissingCodec]:
    levels = BPG_LEVELS if all_speeds else {4: BPG_LEVELS[4]}
    if shutil.which("bpgenc") and shutil.which("bpgdec"):
        for level in levels:
            yield _with_bpg(f"bpg m{level}" if all_speeds else "bpg", level)
    elif _has_x265():
        for preset in levels.values():
            yield _with_x265(f"hevc {preset}" if all_speeds else "hevc", preset)
    else:
        yield MissingCodec("hevc", "not installed (bpgenc and bpgdec, or PyAV with libx265)")


_FINDERS: dict[str, Callable[[bool], Iterator[PictureCodec | MissingCodec]]] = {
    "jpeg": _find_jpeg,
    "webp": _find_webp,
    "avif": _find_avif,
    "hevc": _find_hevc,
}


def _pillow_has(feature: str | None) -> bool:
    try:
        from PIL import features
    except ImportError:
        return False
    return feature is None or bool(features.check(feature))


def _has_x265() -> bool:
    try:
        import av
    except ImportError:
        return False
    return "libx265" in av.codecs_available


def _with_pillow(library: str, qualities: tuple[int, ...], name: str = "", **options: int) -> PictureCodec:
    from PIL import Image

    def encode(view: NDArray[np.uint8], quality: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(view[:, :, ::-1]).save(buffer, library, quality=quality, **options)
        return buffer.getvalue()

    def decode(content: bytes) -> NDArray[np.uint8]:
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.uint8)[:, :, ::-1]

    return PictureCodec(name or library, qualities, encode, decode)


def _with_opencv(name: str, suffix: str, flag: int, qualities: tuple[int, ...]) -> PictureCodec:
    def encode(view: NDArray[np.uint8], quality: int) -> bytes:
        return bytes(cv2.imencode(suffix, view, [flag, quality])[1])

    def decode(content: bytes) -> NDArray[np.uint8]:
        return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), np.uint8)

    return PictureCodec(name, qualities, encode, decode)


def _with_x265(name: str, preset: str) -> PictureCodec:
    """One intra picture of constant QP, on one thread; planes Y, Cb, Cr of BT.601 in full range, as BPG's."""
    import av

    parameters = "keyint=1:pools=none:frame-threads=1:wpp=0:info=0:ipratio=1.0:log-level=none"

    def encode(view: NDArray[np.uint8], quality: int) -> bytes:
        encoder = av.CodecContext.create("libx265", "w")
        assert isinstance(encoder, av.VideoCodecContext)
        encoder.height, encoder.width = view.shape[:2]
        encoder.pix_fmt, encoder.time_base = "yuv444p", Fraction(1, 25)
        encoder.options = {"preset": preset, "x265-params": f"qp={quality}:{parameters}"}
        planes = cv2.cvtColor(view, cv2.COLOR_BGR2YCrCb)[:, :, [0, 2, 1]].transpose(2, 0, 1)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(planes), format="yuv444p")
        return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])

    def decode(content: bytes) -> NDArray[np.uint8]:
        decoder = av.CodecContext.create("hevc", "r")
        assert isinstance(decoder, av.VideoCodecContext)
        decoder.thread_count = 1
        frames = [*decoder.decode(av.Packet(content)), *decoder.decode(None)]
        planes = frames[0].to_ndarray()[[0, 2, 1]].transpose(1, 2, 0)
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(planes), cv2.COLOR_YCrCb2BGR), np.uint8)

    return PictureCodec(name, QUANTISERS, encode, decode)


def _with_bpg(name: str, level: int) -> PictureCodec:
    """BPG by its own programs; their times hold the start of a process and a PNG, as the paper's do."""

    def encode(view: NDArray[np.uint8], quality: int) -> bytes:
        with TemporaryDirectory() as folder:
            picture, coded = Path(folder) / "view.png", Path(folder) / "view.bpg"
            cv2.imwrite(str(picture), view)
            _run("bpgenc", "-q", str(quality), "-f", "444", "-m", str(level), "-o", str(coded), str(picture))
            return coded.read_bytes()

    def decode(content: bytes) -> NDArray[np.uint8]:
        with TemporaryDirectory() as folder:
            coded, picture = Path(folder) / "view.bpg", Path(folder) / "view.png"
            coded.write_bytes(content)
            _run("bpgdec", "-o", str(picture), str(coded))
            return np.asarray(cv2.imread(str(picture)), np.uint8)

    return PictureCodec(name, QUANTISERS, encode, decode)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=PROGRAM_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        text = " ".join(error.stderr.decode(errors="replace").split())[:200]
        raise EvaluationError(f"{command[0]} ended with code {error.returncode}: {text}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EvaluationError(f"{command[0]} cannot be run: {error}") from error


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
