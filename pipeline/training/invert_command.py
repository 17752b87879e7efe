"""`rac invert`: draw pictures from a bundle's symbols again, and say how near they come.

The training's length is time of computing, of all threads together: a busy machine takes longer and learns as much.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bundle import Bundle, load_bundle
from pipeline.errors import ConfigError, TrainingError
from pipeline.frames import VIEW_SIDE_PX
from pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.command import stop_requests
from pipeline.training.datasets import load_pictures, read_pictures, use_views
from pipeline.training.inverter import Inverter, Listener, Step, invert, train_inverter
from pipeline.training.picture_quality import psnr, ssim
from pipeline.training.progress import IntervalMeans, Watcher, choose_watchers

JSON_FILE, PAGE_FILE, PAIRS_FILE, WEIGHTS_FILE = "inversion.json", "inversion.md", "pairs.png", "inverter.pt"
FORMAT_VERSION = 1
DEFAULT_DEPTH = 4
LINE_STEPS = 50
MEASURED_HELD_OUT = 200
MAX_PAIRS = 6
SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "text.png")
"""Photographs of scikit-image's wheel that anybody may publish: in the public domain or CC0."""
GAP_PX, HEAD_PX = 4, 26
NOT_ANONYMOUS = (
    "Features are not anonymous: who reads the wire and has the bundle can draw the picture again from its symbols, at "
    "every level. Treat them like the pictures."
)


@dataclass(frozen=True, slots=True)
class Quality:
    """How near the pictures of one level come to the originals, on average.

    Attributes:
        level: None for the thumbnail.
        bytes: length of the bitstream with its header; of the thumbnail none is given.
        psnr: dB, mean of the pictures' own.
    """

    level: int | None
    bytes: float | None
    psnr: float
    ssim: float


def run(args: argparse.Namespace) -> int:
    """Entry of the sub-command; returns the exit code.

    Args:
        args: bundle, data, minutes, pictures, levels, depth, side_px, eval, show, limit, weights, out, threads, json.
    """
    bundle, levels = load_bundle(args.bundle), sorted(set(args.levels))
    listener = Listener(bundle, _depth(bundle, args.depth), levels)
    shown = _shown_pictures(args.show)
    evaluated = [] if args.eval is None else read_pictures(args.eval)[: args.limit]
    pictures = load_pictures(tuple(args.data))
    torch.set_num_threads(args.threads)
    folder = Path(args.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be made: {error.strerror}") from error
    depth = listener.points[0].depth
    _say(
        f"{bundle.manifest.name} {bundle.short_id}, depth {depth}, levels {', '.join(map(str, levels))}: "
        f"{len(pictures.training)} pictures, {len(pictures.held_out)} held out, {pictures.unreadable} unreadable"
    )
    if args.weights is not None:
        inverter, facts = _read_weights(Path(args.weights), bundle, listener, levels)
    else:
        inverter, facts = _train(args, listener, pictures.training, folder)
        facts |= {"training_pictures": len(pictures.training), "held_out_pictures": len(pictures.held_out)}
        state = {"bundle": bundle.bundle_id.hex(), "depth": depth, "levels": levels, "facts": facts}
        save_checkpoint(state | {"inverter": inverter.state_dict()}, folder / WEIGHTS_FILE)
    if not facts["is_whole"]:
        _say(f"stopped after {facts['minutes']} minutes; --weights {folder / WEIGHTS_FILE} measures what it has learnt")
        return 0
    held_out = use_views(pictures.held_out, MEASURED_HELD_OUT, args.side_px)
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "bundle": bundle.manifest.name,
        "bundle_id": bundle.bundle_id.hex(),
        "depth": depth,
        **facts,
        "held_out": _measured("held out of the training pictures", inverter, listener, held_out),
        "eval": None,
    }
    if evaluated:
        content["eval"] = _measured(f"of {Path(args.eval).name}", inverter, listener, use_views(evaluated))
    page = as_markdown(content)
    print(json.dumps(content) if args.json else page, flush=True)
    try:
        (folder / JSON_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (folder / PAGE_FILE).write_text(page, encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{error.filename}: cannot be written: {error.strerror}") from error
    if shown:
        write_pairs(inverter, listener, use_views(shown), folder / PAIRS_FILE)
    else:
        _say("no pairs: name pictures with --show, or install scikit-image (extra [demo])")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _depth(bundle: Bundle, asked: int | None) -> int:
    depths = bundle.manifest.depths
    return asked if asked is not None else DEFAULT_DEPTH if DEFAULT_DEPTH in depths else max(depths)


def _shown_pictures(folder: str | None) -> list[NDArray[np.uint8]]:
    """Pictures for the pairs: the first ones of a folder, or scikit-image's where it is installed."""
    if folder is not None:
        return read_pictures(folder)[:MAX_PAIRS]
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        return []
    paths = [Path(spec.origin).parent / "data" / name for name in SAMPLES]
    found = [cv2.imread(str(path), cv2.IMREAD_COLOR) for path in paths if path.is_file()]
    return [np.asarray(picture, np.uint8) for picture in found if picture is not None]


def _train(
    args: argparse.Namespace, listener: Listener, pictures: Sequence[NDArray[np.uint8]], folder: Path
) -> tuple[Inverter, dict[str, Any]]:
    begun = time.process_time()

    def minutes() -> float:
        return (time.process_time() - begun) / 60

    def progress(seen: int) -> float:
        if args.pictures is not None:
            return seen / int(args.pictures)
        return minutes() / float(args.minutes)

    watchers = choose_watchers(folder, args.json)
    show = _ShownSteps(watchers, progress)
    try:
        with stop_requests() as should_stop:
            inverter = train_inverter(listener, pictures, args.side_px, progress, show.step, should_stop)
    finally:
        for watcher in watchers:
            watcher.close()
    facts = {"minutes": round(minutes(), 1), "pictures_seen": show.seen, "is_whole": progress(show.seen) >= 1}
    return inverter, facts


class _ShownSteps:
    """Steps of the training to what shows them."""

    def __init__(self, watchers: Sequence[Watcher], progress: Callable[[int], float]) -> None:
        self._watchers, self._progress, self._means = watchers, progress, IntervalMeans()
        self._begun = self._before = time.monotonic()
        self.seen = 0

    def step(self, step: Step) -> None:
        now, share = time.monotonic(), min(1.0, self._progress(step.seen))
        parts = {"error": step.error}
        self._means.add(parts, step.seen - self.seen, now - self._before)
        self._before, self.seen = now, step.seen
        left_s = (now - self._begun) * (1 / share - 1)
        for watcher in self._watchers:
            watcher.step(step.number, share, left_s, self._means.images_per_s, parts)
        if step.number % LINE_STEPS == 0:
            line = {"step": step.number, "progress": round(share, 3), **self._means.take()}
            for watcher in self._watchers:
                watcher.line(line)


def _read_weights(path: Path, bundle: Bundle, listener: Listener, levels: list[int]) -> tuple[Inverter, dict[str, Any]]:
    """An inverter that was trained before, for the same bundle, depth and levels."""
    state = load_checkpoint(path)
    wanted = {"bundle": bundle.bundle_id.hex(), "depth": listener.points[0].depth, "levels": levels}
    for key, value in wanted.items():
        if state.get(key) != value:
            raise ConfigError("command line", "--weights", f"{path} was trained for another {key}")
    try:
        inverter = Inverter(listener.inverse_gains, listener.block_side)
        inverter.load_state_dict(state["inverter"])
        return inverter.eval(), {**state["facts"], "is_whole": True}
    except (KeyError, TypeError, RuntimeError) as error:
        raise TrainingError(f"{path}: holds no inverter ({' '.join(str(error).split())[:120]})") from error


def _measured(name: str, inverter: Inverter, listener: Listener, views: NDArray[np.uint8]) -> dict[str, Any]:
    rows = []
    for index, point in enumerate(listener.points):
        _say(f"measuring level {point.level16 // 16} on {len(views)} pictures ({name})")
        drawn = invert(inverter, listener, views, index)
        rows.append(_quality(views, drawn, point.level16 // 16, listener.mean_bytes(views, index)))
    rows.append(_quality(views, _thumbnails(views), None, None))
    return {"name": name, "images": len(views), "rows": [asdict(row) for row in rows]}


def _quality(views: NDArray[np.uint8], drawn: NDArray[np.uint8], level: int | None, num_bytes: float | None) -> Quality:
    pairs = list(zip(views, drawn, strict=True))
    psnrs, ssims = [psnr(*pair) for pair in pairs], [ssim(*pair) for pair in pairs]
    return Quality(level, num_bytes, float(np.mean(psnrs)), float(np.mean(ssims)))


def _thumbnails(views: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each view as 28 x 28 pixels and blown up again: a measure of what the figures mean."""
    small = [cv2.resize(view, (28, 28), interpolation=cv2.INTER_AREA) for view in views]
    side = (VIEW_SIDE_PX, VIEW_SIDE_PX)
    return np.stack([np.asarray(cv2.resize(each, side, interpolation=cv2.INTER_CUBIC), np.uint8) for each in small])


def as_markdown(content: dict[str, Any]) -> str:
    """The page for people, from the JSON object."""
    measured = [part for part in (content["eval"], content["held_out"]) if part is not None]
    seen = f"{content['pictures_seen']:,} views of {content['training_pictures']:,} pictures"
    lines = [
        f"Bundle {content['bundle']}, depth {content['depth']}: an inverter for all levels that saw {seen}, "
        f"{content['minutes']:g} minutes of one core.",
        "",
    ]
    for part in measured:
        lines += [
            f"| {part['images']} pictures {part['name']} | bytes a frame | PSNR, dB | SSIM |",
            "|---|---|---|---|",
        ]
        for row in part["rows"]:
            name = "28 x 28 thumbnail" if row["level"] is None else f"level {row['level']}"
            size = "" if row["bytes"] is None else f"{row['bytes']:.0f}"
            lines.append(f"| {name} | {size} | {row['psnr']:.1f} | {row['ssim']:.2f} |")
        lines.append("")
    return "\n".join([*lines, NOT_ANONYMOUS]) + "\n"


def write_pairs(inverter: Inverter, listener: Listener, views: NDArray[np.uint8], path: Path) -> None:
    """One row a picture: the original, and what each level's symbols still show.

    Raises:
        TrainingError: the file cannot be written.
    """
    columns = {"original": views}
    for index, point in enumerate(listener.points):
        columns[f"level {point.level16 // 16}"] = invert(inverter, listener, views, index)
    step = VIEW_SIDE_PX + GAP_PX
    sheet = np.full((HEAD_PX + len(views) * step, len(columns) * step - GAP_PX, 3), 255, np.uint8)
    for column, (name, pictures) in enumerate(columns.items()):
        place = (column * step + 2, HEAD_PX - 8)
        cv2.putText(sheet, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
        for row, picture in enumerate(pictures):
            top, left = HEAD_PX + row * step, column * step
            sheet[top : top + VIEW_SIDE_PX, left : left + VIEW_SIDE_PX] = picture
    try:
        path.write_bytes(cv2.imencode(".png", sheet, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes())
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written: {error.strerror}") from error
    _say(f"{path}: {len(views)} pictures and what {len(columns) - 1} levels show of them")
