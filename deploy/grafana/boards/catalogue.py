"""All dashboards, and the text of their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from deploy.grafana.boards import accuracy, cloud, fleet, node
from deploy.grafana.boards.model import Board

FOLDER: Final = Path(__file__).parents[1] / "dashboards"
BOARDS: Final = (fleet.BOARD, accuracy.BOARD, cloud.BOARD, node.BOARD)


def render(board: Board) -> str:
    """The file that Grafana reads."""
    return json.dumps(board.to_json(), indent=1) + "\n"
