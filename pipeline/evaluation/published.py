"""The paper's own published numbers on ImageNet (50,000 pictures, 224 x 224, ResNet-50), to be set beside ours.

Accuracies are top-1 in percent. `ENTROPIC_STUDENT` and the ablations are the points behind the paper's Fig. 5 and Table
I, as its authors' plot scripts had them; rates there are estimated entropies, not coded bytes.
Source: Duan and Zhu 2022, and the scripts published with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evaluation.curves import Curve

ENTROPIC_STUDENT: Curve = ((0.1466, 57.37), (0.3307, 71.608), (0.5959, 74.226), (0.8868, 75.096), (1.3119, 75.314))
ABLATIONS: dict[str, Curve] = {
    "A": (
        *((0.1339, 57.48), (0.2204, 67.95), (0.2761, 70.90), (0.4072, 72.60), (0.5741, 74.03), (0.8367, 74.75)),
        (3.267, 76.21),
    ),
    "B": ((0.1586, 63.66), (0.2393, 68.46), (0.3798, 71.77), (0.5382, 74.02), (0.7771, 75.07), (1.135, 75.87)),
    "C": (
        *((0.1102, 68.77), (0.162, 70.60), (0.2124, 71.53), (0.3188, 72.93), (0.442, 73.64), (0.7213, 74.88)),
        (1.194, 75.10),
    ),
}


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of the paper's Table I.

    Attributes:
        macs: of the encoder, GDN left out.
        latency_ms: of encoding one picture on the authors' CPU.
        delta_accuracy: in points, by the paper's formula (`pipeline.evaluation.curves.paper_compat`).
    """

    macs: float
    latency_ms: float
    delta_accuracy: float


TABLE_I: dict[str, TableRow] = {
    "Entropic Student": TableRow(0.466e9, 13.8, 0.0),
    "A": TableRow(0.466e9, 13.8, 0.13),
    "B": TableRow(0.457e9, 9.10, 0.20),
    "C": TableRow(0.489e9, 6.70, 0.93),
}
