"""What Grafana's transformations make of a table's queries, as far as our dashboards use them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from deploy.grafana.boards.model import Json
from tests.deploy.prometheus import Sample

Cell = float | str
Rows = list[dict[str, Cell]]


def transformed(panel: Json, answers: Sequence[Sequence[Sample]]) -> tuple[list[str], list[list[Cell | None]]]:
    """Headings and rows of a table panel.

    Args:
        answers: samples of each of its queries.
    """
    several = len(answers) > 1
    frames = [
        [{**labels, (f"Value #{target['refId']}" if several else "Value"): value} for labels, value in samples]
        for target, samples in zip(panel["targets"], answers, strict=True)
    ]
    rows: Rows = []
    headings: dict[str, str] = {}
    for step in panel["transformations"]:
        options = step["options"]
        match step["id"]:
            case "merge":
                rows = _merged(frames)
            case "sortBy":
                [order] = options["sort"]
                rows.sort(key=lambda row: _sort_key(row.get(order["field"])), reverse=order["desc"])
            case "limit":
                rows = rows[: options["limitField"]]
            case "organize":
                shown = sorted(options["indexByName"], key=options["indexByName"].__getitem__)
                headings = {
                    name: options["renameByName"].get(name, name)
                    for name in shown
                    if name not in options["excludeByName"]
                }
            case _:
                raise AssertionError(step["id"])
    return list(headings.values()), [[row.get(name) for name in headings] for row in rows]


def _merged(frames: Sequence[Rows]) -> Rows:
    """Rows whose common labels are equal become one."""
    rows: Rows = []
    for row in (row for frame in frames for row in frame):
        for known in rows:
            common = {name for name in known.keys() & row.keys() if not name.startswith("Value")}
            labels = {name for name in row if not name.startswith("Value")}
            if (
                common
                and (common == labels or common == _labels(known))
                and all(known[name] == row[name] for name in common)
            ):
                known.update(row)
                break
        else:
            rows.append(dict(row))
    return rows


def _labels(row: dict[str, Cell]) -> set[str]:
    return {name for name in row if not name.startswith("Value")}


def _sort_key(value: Any) -> float:
    return math.inf if value is None or math.isnan(value) else float(value)
