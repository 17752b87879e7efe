"""Model delivery with real processes: a node that has no bundle, one whose cloud changes its mind, and one without."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pipeline.bundle import load_bundle, seal_bundle
from tests.e2e.conftest import PATIENT, Start, start_cloud
from tests.e2e.programs import PATIENCE_S, Program, node_metrics_balance, sum_of

pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")

ORDINARY = {"superseded", "no_credit", "link_down", "rate_limit", "lost_in_link", "shutdown"}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with another id and the same weights; the same in every run, so that its graphs are made once."""
    folder = tmp_path_factory.mktemp("bundles") / "other"
    bundle = load_bundle("default")
    seal_bundle(folder, bundle.manifest.model_copy(update={"name": "other"}), bundle.files)
    return folder


def cloud_with(start: Start, folder: Path, other: Path, offer: str) -> Program:
    """A cloud that serves both bundles and offers one of them, by a file that can be changed."""
    path = folder / "cloud.yaml"
    path.write_text(f"bundles: [default, '{other}']\noffer: '{offer}'\n")
    return start_cloud(start, "--config", str(path))


def start_node(start: Start, cloud: Program | str, cache: Path, *cameras: str, bundle: str = "auto") -> Program:
    endpoint = cloud if isinstance(cloud, str) else cloud.get("start")[0]["endpoint"]
    named = [word for camera in cameras or ("test:?fps=20",) for word in ("--camera", camera)]
    words = [*named, "--cloud", endpoint, "--metrics-port", "0", "--bundle", bundle]
    return start("rac-node", *words, RAC_CACHE=str(cache), RAC_LINK__RECONNECT_MAX_S="1")


def test_node_without_a_bundle_fetches_it_and_the_next_start_needs_no_cloud(
    start: Start, other: Path, tmp_path: Path
) -> None:
    cloud = cloud_with(start, tmp_path, other, str(other))
    cache = tmp_path / "node-cache"
    node = start_node(start, cloud, cache)
    node.wait_event("result", 10)
    expected = load_bundle(str(other))
    assert node.get("start")[0]["bundle"] == expected.short_id
    (folder,) = (path for path in (cache / "bundles").iterdir() if path.is_dir())
    assert folder.name == expected.bundle_id.hex()
    # Encoders and tables travel, the decoder does not.
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *expected.files} - {"decoder.safetensors"}
    assert set(node.end()["dropped"]) <= ORDINARY
    cloud.end()
    again = start_node(start, "tcp://127.0.0.1:9", cache)
    assert again.wait_event("start")["bundle"] == expected.short_id
    again.end()


def test_offer_that_changes_while_nodes_stream(start: Start, other: Path, tmp_path: Path) -> None:
    """One node follows; the other one, with a bundle of its own, is served as before."""
    cloud = cloud_with(start, tmp_path, other, "default")
    node = start_node(start, cloud, tmp_path / "cache", "door=test:?fps=20", "yard=test:?seed=4&fps=20")
    fixed = start_node(start, cloud, tmp_path / "cache", bundle="default")
    for each in (node, fixed):
        each.wait_event("result", 10)
    first, second = load_bundle("default").short_id, load_bundle(str(other)).short_id
    node.wait_metrics(lambda found: found.get(("rac_node_bundle_info", first, "efficientnet_lite0")) == 1)

    path = tmp_path / "cloud.yaml"
    path.write_text(path.read_text().replace("offer: 'default'", f"offer: '{other}'"))
    cloud.send_signal(signal.SIGHUP)
    change = node.wait_event("bundle", outcome="ok")
    assert change["bundle"] == second
    node.wait_more("result", 20)
    found = node.wait_metrics(lambda found: ("rac_node_bundle_info", second, "efficientnet_lite0") in found)
    assert ("rac_node_bundle_info", first, "efficientnet_lite0") not in found
    assert found["rac_node_bundle_updates_total", "ok"] == 1
    assert node_metrics_balance(found)
    assert [line["reason"] for line in node.get("link", state="down")] == ["renewed"]
    offered = cloud.wait_metrics(lambda found: found["rac_cloud_bundle_offered", second] == 1)
    assert offered["rac_cloud_bundle_offered", first] == 0

    # An offer that this cloud does not serve changes nothing.
    path.write_text(path.read_text().replace(f"offer: '{other}'", "offer: 'nowhere'"))
    cloud.send_signal(signal.SIGHUP)
    cloud.wait_said("the offer stays as it is")
    fixed.wait_more("result", 20)
    for each in (node, fixed):
        summary = each.end()
        assert set(summary["dropped"]) <= ORDINARY
        assert summary["results"] > 30
    assert fixed.get("link", state="down") == []
    summary = cloud.end()
    assert set(summary["results"]) <= {"ok", "unroutable"}


def test_cloud_that_dies_during_the_delivery_is_waited_for(start: Start, other: Path, tmp_path: Path) -> None:
    cloud = cloud_with(start, tmp_path, other, "default")
    endpoint = cloud.get("start")[0]["endpoint"]
    cloud.send_signal(signal.SIGKILL)
    cloud.process.wait()
    node = start_node(start, endpoint, tmp_path / "cache")
    node.wait_event("link", state="down")
    again = start("rac-cloud", "--bind", endpoint, "--metrics-port", "0", "--workers", "1", **PATIENT)
    node.wait_event("result", 5)
    found = node.metrics()
    assert sum_of(found, "rac_node_bundle_updates_total") == 0
    node.end()
    again.end()


def test_node_that_is_stopped_while_it_waits_for_a_bundle_ends_in_order(start: Start, tmp_path: Path) -> None:
    node = start_node(start, "tcp://127.0.0.1:9", tmp_path / "cache")
    node.wait_event("link", state="down")
    node.send_signal(signal.SIGTERM)
    assert node.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in node.errors
