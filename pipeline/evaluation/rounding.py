"""What rounding towards zero brings: one bundle's networks with its dead zones and without, on equal terms.

A bundle's tables are fitted to symbols that were rounded with its dead zones; used without these they would cost what
is not the rounding's fault. So for this row both get tables of their own, fitted to the pictures that are measured, and
real bytes are counted with those.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.codec.export import fit_depth
from pipeline.decoding import BatchDecoder
from pipeline.encoder import Encoder
from pipeline.evaluation.accuracy import RatePoint, measure_bundle, whole_levels
from pipeline.evaluation.comparison import Bench, open_bundle

ROUNDING_DEPTH = 4
"""The exit that is measured; the deepest of a bundle without it."""


def with_rounding(bundle: Bundle, depth: int, views: NDArray[np.uint8], *, is_leaning: bool) -> Bundle:
    """A bundle for one depth and the whole levels, with its dead zones or with none, tables fitted to these views."""
    points = [point for point in whole_levels(bundle) if point.depth == depth]
    gains = {point.level16: bundle.gains[point.level16] for point in points}
    zones = {level16: bundle.dead_zones[level16] if is_leaning else 0.0 for level16 in gains}
    tables = fit_depth(depth, bundle.encoder_graph(depth), views, gains, zones)
    return replace(bundle, tables=tables, gains=gains, dead_zones=zones)


def measure_rounding(bench: Bench, bundle: Bundle) -> dict[bool, list[RatePoint]] | None:
    """Points at the whole levels of one depth, with the dead zones (True) and without; None where it has none.

    Raises:
        BundleError: the bundle does not work.
        EvaluationError: a bitstream of its own does not decode.
    """
    if not any(bundle.dead_zones[point.level16] for point in whole_levels(bundle)):
        return None
    depths = bundle.manifest.depths
    depth = ROUNDING_DEPTH if ROUNDING_DEPTH in depths else max(depths)
    chosen = [point for point in whole_levels(bundle) if point.depth == depth]
    found = {}
    for is_leaning in (True, False):
        name = f"{bundle.manifest.name} depth {depth}, {'with' if is_leaning else 'without'} dead zone"
        points = bench.store.load(name, bundle.short_id)
        if points is None:
            bench.say(name)
            own = with_rounding(bundle, depth, bench.views, is_leaning=is_leaning)
            engine, vectors = open_bundle(bench, bundle)
            decoder, encoder = BatchDecoder(own, engine, vectors), Encoder(own, bench.threads)
            points = measure_bundle(own, encoder, decoder, bench.views, bench.reference, bench.labels, chosen)
            bench.store.save(name, bundle.short_id, points)
        found[is_leaning] = points
    return found
