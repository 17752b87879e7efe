"""The status page in a real browser, over a server whose state the test makes up; and how it is served."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodes.metrics_server import Health, MetricsServer, start_metrics_server
from nodes.page_files import FOLDER, PATHS
from nodes.status_board import StatusBoard
from pipeline.cloud_actions import CloseReason
from pipeline.fleet_status import FleetStatus, SlotFacts
from pipeline.ledger import Outcome
from tests.browser import Browser, Tab

S = 1_000_000_000
MS = 1_000_000
SCRIPT = "<script>document.title='taken'</script><img src=x onerror=alert(1)>"
LONG = "a" * 64
ROWS = "[...document.querySelectorAll('#cameras tbody tr')]"
NAMES = f"{ROWS}.map(tr => tr.querySelector('th span span + span').textContent)"


class Program:
    """A server with a fleet behind it, and a loop that answers it."""

    def __init__(self) -> None:
        self.fleet = FleetStatus(100, 0)
        self.now_ns = 0
        self.facts: dict[str, Any] = {
            "program": "rac-cloud",
            "name": "here",
            "version": "1",
            "bundles": "default ab",
            "wire_note": "frames",
            "hint": "rac-node --camera test:",
            "trouble": [],
            "facts": {"Queue": "0 of 512 frames"},
        }
        self.slots = [SlotFacts(0, "busy", 0, 600_000_000), SlotFacts(1, "dead", 0, 0)]
        self.board = StatusBoard()
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._hangs = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        health = Health()
        self.server = start_metrics_server(NoMetrics(), health, "127.0.0.1", 0, may_move=False, board=self.board)

    @property
    def url(self) -> str:
        return self.server.page_url

    def hang(self) -> None:
        """The loop stops turning; the server's threads go on."""
        self._hangs = True

    def close(self) -> None:
        self._ends.set()
        self._thread.join()
        self.server.close()

    def stream(self, node: str, camera: str, seconds: int = 20, outcome: Outcome = Outcome.OK) -> None:
        """A camera that sends a frame a second."""
        best = (SCRIPT, 0.5) if node == "evil" else ("coffee_mug", 0.5)
        with self._lock:
            self.fleet.open_session(node.encode(), node, (camera,), self.now_ns)
            for sequence in range(seconds):
                self.now_ns += S
                self.fleet.receive(node, camera, sequence, 1500, self.now_ns)
                self.fleet.answer(node, camera, outcome, 40 * MS, best, 4, 2.0)
                if self.fleet.is_due(self.now_ns):
                    self.fleet.sample(self.now_ns)

    def _run(self) -> None:
        while not self._ends.wait(0.02):
            if self.board.is_wanted and not self._hangs:
                with self._lock:
                    self.board.publish({**self.facts, **self.fleet.document(self.slots, self.now_ns)})


class NoMetrics:
    def render(self, accept: str = "") -> tuple[bytes, str]:
        return b"", "text/plain"


@pytest.fixture
def program() -> Iterator[Program]:
    made = Program()
    yield made
    made.close()


def fetch(server: MetricsServer, path: str, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body, dict(response.getheaders())


def shown(tab: Tab) -> list[str]:
    """Names of the cameras in their order."""
    tab.wait_for("!document.getElementById('content').hidden")
    names: list[str] = tab.evaluate(NAMES)
    return names


def assert_clean(tab: Tab, program: Program) -> None:
    """Nothing in the console, and nothing asked for elsewhere."""
    assert tab.complaints() == []
    assert all(url.startswith(program.url) for url in tab.requests()), tab.requests()


# --- how it is served ---


def test_every_file_is_served_under_a_strict_policy(program: Program) -> None:
    for path, (name, kind) in PATHS.items():
        status, body, headers = fetch(program.server, path)
        assert (status, headers["Content-Type"]) == (200, kind)
        assert body == (FOLDER / name).read_text(encoding="utf-8")
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert fetch(program.server, path, "HEAD")[:2] == (200, "")
        assert fetch(program.server, path, "POST")[0] == 405


def test_only_listed_files_are_served(program: Program) -> None:
    for path in ("/index.html", "/../page_files.py", "/page/../../pyproject.toml", "/%2e%2e/", "/page.css/"):
        assert fetch(program.server, path)[0] == 404


def test_files_name_nothing_outside_and_nothing_inline() -> None:
    """What the policy would refuse must not be there, or the page would be broken instead of unsafe."""
    for name, _ in PATHS.values():
        text = (FOLDER / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
        assert "innerHTML" not in text
        assert " style=" not in text
        assert " onclick" not in text


def test_status_is_json_and_says_how_old_it_is(program: Program) -> None:
    program.stream("dock", "door")
    status, body, headers = fetch(program.server, "/status.json?x=1")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert headers["Content-Security-Policy"] == "default-src 'none'"
    document = json.loads(body)
    assert document["cameras"][0]["camera"] == "door"
    assert 0 <= document["age_s"] < 60


# --- in a browser ---


def test_live_values_appear_and_change(program: Program, browser: Browser) -> None:
    program.stream("dock", "door", 20)
    with browser.tab(program.url) as tab:
        assert shown(tab) == ["dock / door"]
        row = tab.text("#cameras tbody tr")
        assert "ok" in row
        assert "coffee mug 50 %" in row
        assert "40 ms" in row
        assert tab.text("#fps-figure") == "1.0"
        assert tab.text("#cost-figure") == "3.9 GB"
        assert tab.evaluate("document.querySelectorAll('.chart svg polyline').length") == 4
        assert tab.evaluate("document.querySelector('#fps-chart').getAttribute('aria-label')").startswith(
            "last 5 minutes"
        )
        assert "600 MB" in tab.text("#workers")
        program.stream("dock", "door", 60, Outcome.STALE)
        tab.wait_for("document.querySelector('#cameras tbody').innerText", lambda text: "stale 60" in text)
        assert "dropping" in tab.text("#cameras tbody tr")
        assert tab.text("#cameras-figure") == "1 bad of 1"
        assert tab.evaluate("document.title").startswith("(1) here")
        assert_clean(tab, program)


def test_worst_come_first_and_every_column_sorts_by_keyboard(program: Program, browser: Browser) -> None:
    program.stream("b", "good", 30)
    program.stream("a", "good", 30)
    program.stream("c", "lossy", 30, Outcome.WORKER_LOST)
    program.stream("d", "gone", 5)
    program.fleet.close_session(b"d", CloseReason.TIMEOUT, program.now_ns)
    program.fleet.open_session(b"b", "b", ("good",), program.now_ns)
    program.fleet.receive("b", "good", 100, 1500, program.now_ns)
    program.fleet.receive("a", "good", 100, 1500, program.now_ns)
    with browser.tab(program.url) as tab:
        assert shown(tab) == ["d / gone", "c / lossy", "a / good", "b / good"]
        assert "silent without a goodbye" in tab.text("#cameras tbody tr")
        headings = "document.querySelectorAll('#cameras thead button')"
        tab.evaluate(f"{headings}[0].focus()")
        tab.press("Enter", 13)
        assert shown(tab) == ["a / good", "b / good", "c / lossy", "d / gone"]
        assert tab.evaluate("document.querySelector('#cameras th[aria-sort=ascending]').innerText") == "Camera"
        tab.press("Enter", 13)
        assert shown(tab) == ["d / gone", "c / lossy", "b / good", "a / good"]
        asked = len(tab.requests())
        tab.wait_for("1", lambda _: len(tab.requests()) > asked + 1)
        assert tab.evaluate(f"document.activeElement === {headings}[0]"), "focus survives the next values"
        tab.evaluate("document.getElementById('only-bad').click()")
        assert shown(tab) == ["d / gone", "c / lossy"]
        tab.evaluate(
            "const box = document.getElementById('filter'); box.value = 'LOSS'; box.dispatchEvent(new Event('input'))"
        )
        assert shown(tab) == ["c / lossy"]
        assert_clean(tab, program)


def test_names_that_are_scripts_are_harmless(program: Program, browser: Browser) -> None:
    program.facts |= {
        "name": SCRIPT,
        "trouble": [SCRIPT],
        "facts": {SCRIPT: SCRIPT},
        "bundles": SCRIPT,
        "version": SCRIPT,
    }
    program.stream("evil", SCRIPT)
    with browser.tab(program.url) as tab:
        assert shown(tab) == [f"evil / {SCRIPT}"]
        assert SCRIPT in tab.text("#trouble")
        assert tab.evaluate("document.querySelectorAll('img').length") == 0
        assert tab.evaluate("document.querySelectorAll('script').length") == 1
        assert tab.evaluate("document.title") != "taken"
        assert_clean(tab, program)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 700, 390, 320])
def test_no_width_overflows_in_either_theme(program: Program, browser: Browser, width: int, *, dark: bool) -> None:
    program.stream(LONG, LONG)
    program.stream("gone", "yard", 5, Outcome.STALE)
    program.fleet.close_session(b"gone", CloseReason.PROTOCOL_ERROR, program.now_ns)
    program.facts["trouble"] = ["no worker can serve: " + LONG]
    with browser.tab(program.url, width=width, height=844, dark=dark, phone=width < 500) as tab:
        assert len(shown(tab)) == 2
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        ground = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (ground == "rgb(20, 23, 26)") == dark
        # A card on a narrow screen says for each value what it is.
        heading = tab.evaluate("getComputedStyle(document.querySelector('#cameras tbody td'), '::before').content")
        assert ("State" in heading) == (width < 960)
        assert tab.evaluate(CONTRASTS) == [], "text of too little contrast"
        assert_clean(tab, program)


# Texts whose contrast to what they stand on is under 4.5, by WCAG's formula.
CONTRASTS = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (c) => c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  const light = (colour) => colour.slice(0, 3).map(linear)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('body *')].filter((node) => node.offsetParent
    && [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim())).filter((node) => {
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
  }).map((node) => node.outerHTML.slice(0, 120));
})()"""


def test_tables_are_tables_for_those_who_do_not_see_them(program: Program, browser: Browser) -> None:
    program.stream("dock", "door")
    with browser.tab(program.url, width=390, phone=True) as tab:
        shown(tab)
        tree = tab.call("Accessibility.getFullAXTree")["nodes"]
        roles = [node["role"]["value"] for node in tree if not node["ignored"]]
        assert roles.count("table") == 2
        assert roles.count("columnheader") == 15
        assert roles.count("rowheader") == 3
        named = {(node["role"]["value"], node.get("name", {}).get("value")) for node in tree}
        assert {("table", "Cameras"), ("table", "Workers"), ("rowheader", "dock / door")} <= named
        assert ("searchbox", "Show") in named
        assert tab.evaluate("document.getAnimations().length") == 0


def test_empty_states_say_what_to_do(program: Program, browser: Browser) -> None:
    with browser.tab(program.url) as tab:
        assert shown(tab) == []
        assert tab.text("#no-cameras") == "No camera yet. rac-node --camera test:"
        program.stream("dock", "door")
        tab.wait_for(NAMES, lambda names: names == ["dock / door"])
        tab.evaluate("document.getElementById('only-bad').click()")
        assert tab.text("#no-cameras") == "No camera is bad."
        assert_clean(tab, program)


def test_server_that_is_gone_is_shown_with_the_age_of_the_values(program: Program, browser: Browser) -> None:
    program.stream("dock", "door")
    with browser.tab(program.url) as tab:
        assert shown(tab) == ["dock / door"]
        assert tab.evaluate("document.getElementById('connection').hidden")
        program.server.close()
        text = tab.wait_for("document.getElementById('connection').innerText", lambda text: "lost" in text)
        assert text.startswith("Connection lost; trying again. The data is ")
        first = int(text.split()[-3])
        tab.wait_for("document.getElementById('connection').innerText", lambda text: int(text.split()[-3]) > first)
        assert shown(tab) == ["dock / door"], "the last values stay, marked as old"
        assert tab.evaluate("document.body.className") == "old"
        port = program.server.port
        health = Health()
        program.server = start_metrics_server(
            NoMetrics(), health, "127.0.0.1", port, may_move=False, board=program.board
        )
        tab.wait_for("document.getElementById('connection').hidden")
        assert tab.evaluate("document.body.className") == ""


def test_program_that_hangs_is_shown_with_the_age_of_the_values(program: Program, browser: Browser) -> None:
    program.stream("dock", "door")
    with browser.tab(program.url) as tab:
        shown(tab)
        program.hang()
        text = tab.wait_for("document.getElementById('connection').innerText", lambda text: "old values" in text)
        assert text.startswith("The program answers with old values. The data is ")


def test_page_is_part_of_the_package() -> None:
    """Next to the module that serves it; `test_wheel` looks for it in a wheel."""
    assert {path.name for path in FOLDER.iterdir()} == {name for name, _ in PATHS.values()}
    assert (Path(__file__).parents[2] / "nodes" / "page").samefile(FOLDER)
