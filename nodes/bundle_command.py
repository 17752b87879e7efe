"""`rac bundle`: look into a bundle, or verify every byte of it."""

from __future__ import annotations

import argparse
import json

from rich.console import Console
from rich.table import Table

from nodes.lifecycle import EXIT_OK
from pipeline.bundle import Bundle, find_bundle, load_bundle


def run(args: argparse.Namespace) -> int:
    """Entry of the sub-command; returns the exit code.

    Args:
        args: action (show or verify), bundle, json.
    """
    bundle = load_bundle(args.bundle)  # verifies; an error names what is wrong
    path = str(find_bundle(args.bundle))
    if args.json:
        print(json.dumps({"id": bundle.bundle_id.hex(), "path": path, **bundle.manifest.model_dump(mode="json")}))
    elif args.action == "verify":
        print(f"{path}: {len(bundle.files)} files are as sealed, id {bundle.bundle_id.hex()}")
    else:
        _show(bundle, path)
    return EXIT_OK


def _show(bundle: Bundle, path: str) -> None:
    manifest, console = bundle.manifest, Console(highlight=False, soft_wrap=True)
    size = sum(entry.size_bytes for entry in manifest.files.values())
    levels = [level16 / 16 for level16 in manifest.levels16]
    console.print(f"{manifest.name} {bundle.bundle_id.hex()}")
    console.print(f"  {path}, {size / 1e6:.2f} MB, classifier {manifest.classifier} cut at {manifest.cut}")
    console.print(f"  depths {', '.join(map(str, manifest.depths))}; levels {levels[0]:g} to {levels[-1]:g}")
    console.print(f"  trained: {', '.join(f'{key} {value}' for key, value in manifest.training.items())}")
    if manifest.measured is None:
        return
    table = Table(title=f"measured on {manifest.measured.pictures} pictures ({manifest.measured.source})")
    for heading in ("depth", "level", "bpp", "agreement", "share of top-1"):
        table.add_column(heading, justify="right")
    for point in manifest.measured.points:
        share = "-" if point.share_of_top1 is None else f"{point.share_of_top1:.3f}"
        table.add_row(str(point.depth), f"{point.level16 / 16:g}", f"{point.bpp:.3f}", f"{point.agreement:.3f}", share)
    console.print(table)
