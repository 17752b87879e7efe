"""Pictures of the dashboards for the README: `python -m tests.deploy.render_dashboards --minutes 8`.

Starts a cloud, two nodes and a Prometheus on this machine, lets them run, and draws each panel from what its queries
give. So that there is something to see, one camera never opens, a worker is killed after a third of the time, and after
two thirds a node is stopped for a while, as by a cable that is pulled. Nothing here is Grafana.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from deploy.grafana.boards.model import Json
from tests.deploy.drawing import Answers, draw
from tests.deploy.grafana import DASHBOARDS, View, panels
from tests.deploy.prometheus import Prometheus
from tests.e2e.conftest import START_WITH, starter
from tests.e2e.programs import ROOT

PICTURES = ROOT / "deploy/grafana"
#: Colours of a picture; it has few, and the file becomes a third of the size.
NUM_COLORS = 256
#: Said to be the scrape interval, so that rates are smooth at a few frames a second.
SHOWN_SCRAPE_S = 5
FROZEN_S = 15
#: Nobody listens there.
CAMERA_THAT_NEVER_OPENS = "roof=http://127.0.0.1:9/"


def main() -> None:
    """Run the fleet, then write one picture for each dashboard."""
    parser = argparse.ArgumentParser(description="draw the dashboards from a fleet on this machine")
    parser.add_argument("--minutes", type=float, default=8.0, help="how long the fleet runs (%(default)s)")
    seconds = parser.parse_args().minutes * 60
    with tempfile.TemporaryDirectory() as name, ExitStack() as programs:
        prometheus = run_fleet(Path(name), programs, seconds)
        end_s = time.time()
        view = View(range_s=round(seconds), points=240, scrape_s=SHOWN_SCRAPE_S)
        for uid, dashboard in DASHBOARDS.items():
            answers = {panel["id"]: ask(prometheus, dashboard, panel, view) for panel in panels(dashboard)}
            path = PICTURES / f"{uid}.png"
            path.write_bytes(picture(dashboard, answers, end_s - view.range_s, end_s))
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def run_fleet(folder: Path, programs: ExitStack, seconds: float) -> Prometheus:
    """A fleet that has run for so long since its first result; it ends with the stack."""
    start = starter(folder, programs)
    cloud = start("rac-cloud", *START_WITH, RAC_POOL__BATCH_TIMEOUT_S="10")
    cloud.wait_event("ready")
    link = ("--cloud", cloud.get("start")[0]["endpoint"], "--metrics-port", "0", "--reference-every", "3")
    gate = ("--camera", "gate=test:?seed=0&fps=4", "--camera", "hall=test:?seed=1&fps=2")
    dock = start("rac-node", *gate, "--name", "dock", "--rate", "3", *link)
    fence = ("--camera", "fence=test:?seed=4&fps=2", "--camera", "pond=test:?seed=5&fps=1")
    yard = start("rac-node", *fence, "--camera", CAMERA_THAT_NEVER_OPENS, "--name", "yard", "--rate", "1.5", *link)
    nodes = {"dock": dock, "yard": yard}
    for node in nodes.values():
        node.wait_event("start")
    storage = folder / "prometheus"
    storage.mkdir()
    targets = {"rac-cloud": [(cloud, {})], "rac-node": [(node, {"node": name}) for name, node in nodes.items()]}
    prometheus = programs.enter_context(Prometheus(storage, targets))
    prometheus.wait_for("count(rac_node_link_up == 1) == 2")
    pause = threading.Event()
    pause.wait(seconds / 3)
    os.kill(cloud.workers()[0], signal.SIGKILL)
    pause.wait(seconds / 3)
    yard.send_signal(signal.SIGSTOP)
    pause.wait(FROZEN_S)
    yard.send_signal(signal.SIGCONT)
    pause.wait(max(0.0, seconds / 3 - FROZEN_S))
    return prometheus


def ask(prometheus: Prometheus, dashboard: Json, panel: Json, view: View) -> Answers:
    """What a panel's queries give now, or over the chosen time."""
    queries = [view.fill(target["expr"], dashboard, panel) for target in panel["targets"]]
    if panel["targets"][0]["instant"]:
        return Answers(samples=[prometheus.query(query) for query in queries])
    return Answers(series=[prometheus.query_range(query, view.range_s, view.step_s(panel)) for query in queries])


def picture(dashboard: Json, answers: dict[int, Answers], start_s: float, end_s: float) -> bytes:
    """The dashboard as a PNG of few colours."""
    drawn = io.BytesIO()
    draw(dashboard, answers, start_s, end_s).savefig(drawn, format="png")
    drawn.seek(0)
    written = io.BytesIO()
    few = (
        Image.open(drawn)
        .convert("RGB")
        .quantize(NUM_COLORS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    )
    few.save(written, format="PNG", optimize=True)
    return written.getvalue()


if __name__ == "__main__":
    main()
