"""The status pages of real programs in a real browser: an operator sees which cameras are bad, why and since when."""

from __future__ import annotations

import json
import signal
import urllib.request

from tests.browser import Browser
from tests.e2e.conftest import Start, start_cloud
from tests.e2e.programs import PATIENCE_S, Program

ROWS = "[...document.querySelectorAll('#cameras tbody tr')].map(tr => tr.innerText.replace(/\\s+/g, ' '))"


def page_of(program: Program) -> str:
    return str(program.get("start")[0]["metrics"]).removesuffix("metrics")


def start_node(start: Start, name: str, cloud: Program, *cameras: str) -> Program:
    arguments = [word for camera in cameras for word in ("--camera", camera)]
    endpoint = cloud.get("start")[0]["endpoint"]
    node = start("rac-node", "--name", name, *arguments, "--cloud", endpoint, "--metrics-port", "0")
    node.wait_event("result", 3)
    return node


def test_operator_sees_a_fleet_and_what_becomes_of_it(start: Start, browser: Browser) -> None:
    cloud = start_cloud(start)
    cloud.wait_metrics(lambda found: found["rac_cloud_workers", "starting"] == 0)
    assert page_of(cloud) == cloud.get("start")[0]["page"]
    dock = start_node(start, "dock", cloud, "door=test:?seed=1&fps=2", "yard=test:?seed=2&fps=2")
    gate = start_node(start, "gate", cloud, "barrier=test:?seed=3&fps=2")
    with browser.tab(page_of(cloud)) as tab, browser.tab(page_of(dock)) as own:
        rows = tab.wait_for(ROWS, lambda rows: len(rows) == 3 and all(" ok " in row for row in rows))
        # Whichever dropped most comes first.
        names = sorted(row.split(" ok ")[0].strip() for row in rows)
        assert names == ["dock / door", "dock / yard", "gate / barrier"]
        own.wait_for(ROWS, lambda rows: len(rows) == 2 and all(" ok " in row for row in rows))
        assert own.text("#title") == "rac-node dock"
        assert own.evaluate("document.getElementById('workers-section').hidden")

        status = json.loads(urllib.request.urlopen(page_of(cloud) + "status.json", timeout=PATIENCE_S).read())
        door = next(row for row in status["cameras"] if row["camera"] == "door")
        results = sum(row["results"] for row in status["cameras"])
        assert results > 0
        cloud.wait_metrics(lambda found: found["rac_cloud_results_total", "ok"] >= results)
        assert door["class"]
        assert door["latency_ms"] > 0
        assert {worker["state"] for worker in status["workers"]} <= {"ready", "busy"}

        gate.send_signal(signal.SIGKILL)
        rows = tab.wait_for(ROWS, lambda rows: " down " in rows[0])
        assert rows[0].startswith("gate / barrier")
        assert "for " in rows[0]
        tab.wait_for("document.getElementById('cameras-figure').innerText", lambda text: text == "1 bad of 3")

        cloud.send_signal(signal.SIGKILL, group=True)
        tab.wait_for("document.getElementById('connection').innerText", lambda text: "Connection lost" in text)
        rows = own.wait_for(ROWS, lambda rows: all("no session with a cloud" in row for row in rows))
        assert "link down" in own.wait_for(
            "document.querySelector('#cameras tbody').innerText", lambda text: "link" in text
        )
        assert own.complaints() == []
        assert all(url.startswith(page_of(dock)) for url in own.requests())
        assert all(url.startswith(page_of(cloud)) for url in tab.requests())
