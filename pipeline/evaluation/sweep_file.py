"""What a sweep left behind, by its `sweep.json`: networks with their bundles, and those that are missing.

Training writes the file and measuring reads it; neither imports the other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import EvaluationError

SWEEP_FILE = "sweep.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Network:
    """One trained network, or one that should have been.

    Attributes:
        system: what its row and curve are called.
        lmbda: its rate's own weight in the loss; None where it has several rates.
        depths: that are measured; None for all.
        bundle: or the weights file, of a baseline.
        missing: why there is no row; "" where there is one.
    """

    name: str
    system: str
    family: str
    network: str
    classifier_training: str
    lmbda: float | None
    depths: tuple[int, ...] | None
    note: str
    bundle: Path
    pictures_seen: int
    training_s: float
    missing: str


@dataclass(frozen=True, slots=True)
class SweepResult:
    """All networks of a sweep and the budget that they share."""

    name: str
    budget: dict[str, Any]
    training_pictures: int
    labelled: int
    networks: tuple[Network, ...]


def read_sweep(folder: Path) -> SweepResult:
    """Read what a sweep says of itself.

    Raises:
        EvaluationError: there is none, or it is of another version.
    """
    path = folder / SWEEP_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise EvaluationError(f"{path}: of format {content['format_version']}, this program reads {FORMAT_VERSION}")
        return SweepResult(
            content["name"],
            dict(content["budget"]),
            int(content["training_pictures"]),
            int(content["labelled"]),
            tuple(_network(folder, fields) for fields in content["networks"]),
        )
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read ({error.strerror}); rac sweep makes it") from error
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path}: is not what rac sweep writes ({error})") from error


def _network(folder: Path, fields: dict[str, Any]) -> Network:
    reasons = {
        "done": "",
        "missing": "not trained yet",
        "begun": "training is not at its end",
        "broken": f"broken: {fields['reason']}",
        "failed": f"failed: {fields['reason']}",
    }
    return Network(
        name=fields["name"],
        system=fields["system"],
        family=fields["family"],
        network=fields["network"],
        classifier_training=fields["classifier_training"],
        lmbda=fields["lmbda"],
        depths=None if fields["depths"] is None else tuple(fields["depths"]),
        note=fields["note"],
        bundle=folder / fields["bundle"],
        pictures_seen=int(fields["pictures_seen"]),
        training_s=float(fields["training_s"]),
        missing=reasons[fields["status"]],
    )
