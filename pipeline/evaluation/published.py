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


@dataclass(frozen=True, slots=True)
class PublishedSystem:
    """A point of the paper's Fig. 4.

    Attributes:
        latency_ms: of encoding one 224 x 224 picture on the authors' CPU, by their programs.
        delta: points of top-1 over the Entropic Student: the mean over the rates that both have, by PCHIP through the
            published points, without the paper's mistake.
    """

    family: str
    label: str
    latency_ms: float
    delta: float


FIGURE_4: tuple[PublishedSystem, ...] = (
    PublishedSystem("Entropic Student", "", 13.8, 0.0),
    PublishedSystem("paper, joint", "N=0", 3.95, -0.08),
    PublishedSystem("paper, joint", "N=4", 6.70, 0.94),
    PublishedSystem("paper, joint", "N=8", 10.19, 0.97),
    PublishedSystem("paper, fixed", "N=0", 3.95, -2.45),
    PublishedSystem("paper, fixed", "N=4", 6.70, -0.66),
    PublishedSystem("paper, fixed", "N=8", 10.19, -0.46),
    PublishedSystem("webp", "m0", 1.30, -11.5),
    PublishedSystem("webp", "m4", 4.08, -7.6),
    PublishedSystem("webp", "m6", 9.46, -7.7),
    PublishedSystem("BPG", "m0", 29.8, -4.1),
    PublishedSystem("BPG", "m4", 45.3, -4.1),
    PublishedSystem("BPG", "m8", 87.9, -4.8),
    PublishedSystem("factorised prior", "", 47.3, -7.4),
    PublishedSystem("hyperprior", "", 67.8, -4.4),
)
