"""`rac eval --all`: whatever rows there are, missing ones with their reason, and nothing measured twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nodes.cli import main
from pipeline.bundle import Bundle
from pipeline.errors import EvaluationError
from pipeline.evaluation import comparison, comparison_command
from pipeline.evaluation.accuracy import RatePoint, make_point
from pipeline.evaluation.baselines import MissingCodec, picture_codecs
from pipeline.evaluation.comparison import Bench, System, network_systems
from pipeline.evaluation.comparison_report import Facts, as_json, as_markdown
from pipeline.evaluation.costs import count_bundle
from pipeline.evaluation.point_store import PointStore, digest
from pipeline.evaluation.sweep_file import Network, read_sweep
from pipeline.evaluation.timing import Times, camera_picture, time_interleaved
from pipeline.view import make_view

NUM_PICTURES = 40


def network_fields(name: str, status: str = "done", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "system": "paper N=0, fixed",
        "family": "paper",
        "network": "paper",
        "schedule": "single_stage",
        "classifier_training": "fixed",
        "lmbda": 1.28,
        "depths": None,
        "note": "of a test",
        "status": status,
        "reason": "",
        "bundle": f"{name}/bundle",
        "pictures_seen": 40,
        "training_s": 3.0,
        **changes,
    }


def write_sweep(folder: Path, networks: list[dict[str, Any]]) -> Path:
    content = {
        "format_version": 1,
        "name": "tiny",
        "budget": {"pictures": 40},
        "training_pictures": 20,
        "labelled": 0,
        "networks": networks,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def networks(views: NDArray[np.uint8], classifier: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder with one untrained network of the paper's N = 0; read only."""
    import torch

    from pipeline.codec.classifier import LITE0, classifier_sha256
    from pipeline.codec.export import BundleFacts
    from pipeline.codec.paper import PaperShape, build_paper_codec
    from pipeline.codec.paper_bundle import export_paper_bundle

    torch.manual_seed(1)
    shape = PaperShape("paper", 0, 24)
    codec = build_paper_codec(shape)
    codec.fit_initial_scale((torch.from_numpy(views[:4, :, :, ::-1].copy()).permute(0, 3, 1, 2).float() - 127) / 128)
    folder = tmp_path_factory.mktemp("sweep")
    facts = BundleFacts("fixed-n0", LITE0, classifier_sha256(LITE0), "stride4", {})
    export_paper_bundle(codec, shape, facts, views[:6], folder / "fixed-n0" / "bundle")
    rows = [network_fields("fixed-n0"), network_fields("gone"), network_fields("later", "missing", lmbda=5.12)]
    rows.append(network_fields("torn", "broken", system="Entropic Student", reason="log and weights disagree"))
    return write_sweep(folder, rows)


@pytest.fixture
def _few_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(*, all_speeds: bool) -> list[Any]:
        assert all_speeds
        jpeg = next(iter(picture_codecs(("jpeg",))))
        return [replace(jpeg, qualities=(5, 30, 80)), MissingCodec("avif", "not installed (a Pillow with AVIF)")]

    missing = MissingCodec("hyperprior, CompressAI's weights", "the weights cannot be downloaded (no way)")
    monkeypatch.setattr(comparison_command, "find_codecs", find)
    monkeypatch.setattr(comparison_command, "find_pretrained", lambda say: [missing])
    monkeypatch.setattr(comparison, "TIMED_PICTURES", 2)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_few_codecs")
def test_all_rows_that_are_there_stand_in_one_table(
    networks: Path,
    tiny_folder: Path,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("RAC_CACHE", str(tmp_path / "cache"))
    (picture := tmp_path / "pictures" / "broken.jpg").parent.mkdir()
    for file in labelled.iterdir():
        (tmp_path / "pictures" / file.name).write_bytes(file.read_bytes())
    picture.write_bytes(b"no picture")
    with (tmp_path / "pictures" / "labels.csv").open("a", encoding="utf-8") as labels:
        labels.write("broken.jpg,3\n")
    out = tmp_path / "out"
    arguments = ["eval", "--all", "--bundle", str(tiny_folder), "--data", str(tmp_path / "pictures")]
    arguments += ["--networks", str(networks), "--out", str(out), "--engine", "onnxruntime", "--json"]
    assert main(arguments) == 0
    stdout, stderr = capsys.readouterr()
    content = json.loads(stdout)
    assert content == json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert (content["images"], content["unreadable"]) == (8, 1)
    systems = {system["name"]: system for system in content["systems"]}
    assert set(systems) == {"local_classifier", "jpeg", "bundle tiny N=0", "bundle tiny N=1", "paper N=0, fixed"}
    missing = {row["system"]: row["reason"] for row in content["missing"]}
    assert missing["avif"].startswith("not installed")
    assert missing["hyperprior, CompressAI's weights"].startswith("the weights cannot be downloaded")
    assert missing["paper N=0, fixed, lambda 5.12"] == "not trained yet"
    assert missing["Entropic Student, lambda 1.28"] == "broken: log and weights disagree"
    assert "does not work" in missing["paper N=0, fixed, lambda 1.28"]  # the one whose bundle is gone
    assert systems["local_classifier"]["points"][0]["bpp"] is None
    assert systems["local_classifier"]["points"][0]["agreement"] == 1
    assert [point["rate"] for point in systems["paper N=0, fixed"]["points"]] == [1.28]
    assert systems["paper N=0, fixed"]["cost"]["encoder_parameters"] == 32_960
    assert systems["paper N=0, fixed"]["cost"]["encoder_macs"] == 25_690_112
    assert systems["paper N=0, fixed"]["delta_top1"] is None  # one rate is no curve, and the baseline is missing
    assert all(system["encode"]["median_ms"] > 0 for system in systems.values())
    shipped = {name: system["encode_as_shipped"] for name, system in systems.items()}
    assert shipped.pop("paper N=0, fixed")["median_ms"] > 0
    assert set(shipped.values()) == {None}
    assert all(row["missing"] for row in content["additions"])  # no dead zones, and no network of ours
    page = (out / "comparison.md").read_text(encoding="utf-8")
    assert "| avif | not installed" in page
    assert "+0.93" in page  # the paper's own, beside ours
    assert (out / "rate-accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "delta-accuracy.png").exists()  # without its baseline it would be empty
    # The second time nothing is measured again but the times, and the page comes out on standard output.
    assert "measuring jpeg" in stderr
    assert main(arguments[:-1]) == 0
    stdout, stderr = capsys.readouterr()
    assert [line for line in stderr.splitlines() if line.startswith("measuring")] == [
        "measuring times",
        "measuring intervals",
    ]
    assert stdout.splitlines()[0] == page.splitlines()[0]


def test_all_with_a_folder_that_is_no_sweep_says_how_to_make_one(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--all", "--data", str(labelled), "--networks", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "rac sweep makes it" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 1}', '{"format_version": 2}'])
def test_a_sweep_file_of_another_form_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content, encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"sweep\.json"):
        read_sweep(tmp_path)


# The report, on made-up points


def made_bench(store: Path) -> Bench:
    labels = np.zeros(NUM_PICTURES, np.int64)
    nothing: Any = None
    return Bench(
        views=np.zeros((NUM_PICTURES, 1, 1, 3), np.uint8),
        labels=labels,
        reference=labels,
        engine=nothing,
        graphs=store,
        engine_name="onnxruntime",
        precision="fp32",
        threads=1,
        classifier_sha256="",
        store=PointStore(store, []),
        say=lambda text: None,
    )


def made_point(bpp: float, wrong: int, depth: int | None = None) -> RatePoint:
    labels = np.zeros(NUM_PICTURES, np.int64)
    predictions = (np.arange(NUM_PICTURES) < wrong).astype(np.int64)
    num_bytes = np.full(NUM_PICTURES, round(bpp * 224 * 224 / 8), np.int64)
    return replace(make_point("made", bpp, predictions, num_bytes, labels, labels), depth=depth, bpp=bpp)


FACTS = Facts("made", NUM_PICTURES, 0, "none", "onnxruntime", "fp32", 1)


def nested_network(depths: tuple[int, ...] | None) -> Network:
    return Network("x", "x", "nested", "nested", "fixed", None, depths, "", Path(), 40, 1.0, "")


def test_report_measures_curves_against_the_entropic_student_and_jpeg(tmp_path: Path) -> None:
    rates = (0.1, 0.2, 0.4, 0.8, 1.6)
    worse = [made_point(rate, wrong) for rate, wrong in zip(rates, (20, 16, 12, 8, 6), strict=True)]
    better = [made_point(rate / 2, wrong) for rate, wrong in zip(rates, (20, 16, 12, 8, 6), strict=True)]
    systems = [
        System("jpeg", "picture codec", worse),
        System("Entropic Student", "paper", worse),
        System("ablation A", "paper", better),
    ]
    content = as_json(systems, [], made_bench(tmp_path), FACTS, None)
    by_name = {system["name"]: system for system in content["systems"]}
    assert by_name["Entropic Student"]["delta_top1"] is None
    assert by_name["ablation A"]["delta_top1"]["value"] > 3
    assert (by_name["ablation A"]["delta_top1"]["low_bpp"], by_name["ablation A"]["delta_top1"]["high_bpp"]) == (
        0.1,
        0.8,
    )
    assert by_name["ablation A"]["bd_rate_jpeg_agreement"]["value"] == pytest.approx(-0.5)
    row = next(row for row in content["ablation"] if row["ablation"] == "A")
    assert row["published"] == 0.13
    assert row["ours"] == by_name["ablation A"]["delta_top1"]
    interval = by_name["jpeg"]["points"][0]["interval"]["agreement"]
    assert interval[0] < 0.5 < interval[1]
    page = as_markdown(content)
    assert "| ablation A | 0.05 |" in page
    assert "-50 %" in page
    assert page.count("not there") == 3  # B and both C
    assert "No trained networks were given" in page


def test_report_compares_one_network_for_all_with_one_alone_at_its_rate(tmp_path: Path) -> None:
    whole = System("ours N=4", "ours", [made_point(0.1, 16, 4), made_point(0.4, 8, 4)], depth=4)
    whole.networks = [nested_network(None)]
    alone = System("ours alone, N=4", "ours", [made_point(0.2, 10, 4), made_point(0.9, 4, 4)], depth=4)
    alone.networks = [nested_network((4,))]
    content = as_json([whole, alone], [], made_bench(tmp_path), FACTS, None)
    (pair,) = content["pairs"]  # of the two rates one lies on the other's curve
    assert pair["alone"] == "ours alone, N=4"
    assert pair["alone_agreement"] == 75
    assert pair["ours_agreement"] == pytest.approx(70)  # half way in ln(bpp) between 60 and 80
    assert pair["difference"] == pytest.approx(-5)
    assert "-5.0" in as_markdown(content)


# Its parts


def test_counted_cost_of_a_nested_bundle_grows_with_depth(tiny_bundle: Bundle) -> None:
    shallow, deep = count_bundle(tiny_bundle, 0), count_bundle(tiny_bundle, 1)
    # Patch embedding 3 -> 8 at stride 8, a perceptron 8 -> 16 -> 6; or one block of width 16 and a head 8 -> 6.
    assert shallow.encoder_macs == 784 * (8 * 192 + 8 * 16 + 16 * 6)
    assert deep.encoder_macs == 784 * (8 * 192 + 8 * 9 + 2 * 8 * 16 + 8 * 6)
    assert shallow.encoder_macs_without_gdn == shallow.encoder_macs
    assert (shallow.decoder_macs, shallow.decoder_parameters) == (deep.decoder_macs, deep.decoder_parameters)


def test_points_come_back_from_the_disk_only_for_the_same_pictures(tmp_path: Path) -> None:
    points = [made_point(0.5, 3), made_point(0.25, 7, depth=2)]
    PointStore(tmp_path, ["a"]).save("webp m4", "key", points)
    assert [path.name for path in tmp_path.iterdir()] == ["webp-m4.json"]
    found = PointStore(tmp_path, ["a"]).load("webp m4", "key")
    assert found is not None
    for point, expected in zip(found, points, strict=True):
        assert (point.bpp, point.depth, point.agreement) == (expected.bpp, expected.depth, expected.agreement)
        np.testing.assert_array_equal(point.predictions, expected.predictions)
    assert PointStore(tmp_path, ["b"]).load("webp m4", "key") is None
    assert PointStore(tmp_path, ["a"]).load("webp m4", "other") is None
    (tmp_path / "webp-m4.json").write_text((tmp_path / "webp-m4.json").read_text()[:50], encoding="utf-8")
    assert PointStore(tmp_path, ["a"]).load("webp m4", "key") is None


def test_digest_names_content_and_shape() -> None:
    views = np.arange(12, dtype=np.uint8)
    assert digest([views]) == digest([views.copy()])
    assert len({digest([views]), digest([views.reshape(3, 4)]), digest([views.astype(np.int64)]), digest([])}) == 4


def test_times_are_taken_in_turn_without_the_warm_up() -> None:
    order: list[str] = []
    ticks = iter(range(0, 10_000_000, 1_000_000))  # each look at the clock is a millisecond later
    systems: dict[str, Callable[[NDArray[np.uint8]], object]] = {
        name: (lambda picture, name=name: order.append(name)) for name in "ab"
    }
    pictures = np.zeros((1, 2, 2, 3), np.uint8)
    times = time_interleaved(systems, pictures, lambda: next(ticks))
    assert order == ["a", "b", "a", "b"]
    assert times == {"a": Times(1.0, 1.0), "b": Times(1.0, 1.0)}


def test_a_cameras_picture_shows_the_view(views: NDArray[np.uint8]) -> None:
    picture = camera_picture(views[0])
    assert picture.shape == (720, 1280, 3)
    back = make_view(picture)
    assert np.abs(back.astype(int) - views[0]).mean() < 4


def test_a_network_for_another_classifier_is_a_missing_row(networks: Path, tmp_path: Path) -> None:
    sweep = read_sweep(networks)
    systems, missing = network_systems(made_bench(tmp_path), sweep.networks[:1])
    assert systems == []
    assert [row.reason for row in missing] == ["is for another classifier"]
