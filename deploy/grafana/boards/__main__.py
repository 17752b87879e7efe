"""Write the dashboards anew: `python -m deploy.grafana.boards`."""

from __future__ import annotations

from deploy.grafana.boards.catalogue import BOARDS, FOLDER, render


def main() -> None:
    """Write one JSON file for each dashboard."""
    for board in BOARDS:
        path = FOLDER / f"{board.uid}.json"
        path.write_text(render(board), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
