"""`rac eval` on a labelled folder: the JSON that others build on, and errors before the work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nodes.cli import main
from pipeline.bundle import Bundle, load_bundle


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def cached(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped bundle's graphs as they were made for the other tests."""
    monkeypatch.setenv("RAC_CACHE", str(graphs.parent))


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["eval", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.usefixtures("cached")
def test_eval_of_the_shipped_bundle_prints_the_fixed_json(
    labelled: Path, default_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = evaluate(capsys, "--data", str(labelled), "--limit", "6", "--json")
    assert code == 0
    document = json.loads(out.splitlines()[-1])
    assert {"images", "reference_top1", "points"} <= set(document)
    assert document["images"] == 6
    assert document["reference_top1"] >= 0.5  # coffee and tripod are known
    depths, levels = default_bundle.manifest.depths, {point / 16 for point in default_bundle.manifest.levels16}
    seen = set()
    for point in document["points"]:
        assert {"codec", "depth", "rate", "bpp", "top1", "agreement"} <= set(point)
        assert point["codec"] == default_bundle.manifest.name
        assert 0 <= point["top1"] <= 1
        assert 0 <= point["agreement"] <= 1
        assert 0 < point["bpp"] < 8
        seen.add((point["depth"], point["rate"]))
    assert seen == {(depth, level) for depth in depths for level in levels if level == int(level)}
    assert default_bundle.short_id in err  # what was measured is said, but not in the JSON's stream
    assert out.count("\n") == 1


def test_eval_of_any_bundle_with_baselines_table_and_plot(
    tiny_folder: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    table, picture = tmp_path / "table.md", tmp_path / "plot.png"
    code, out, _ = evaluate(
        capsys,
        *("--bundle", str(tiny_folder), "--data", str(labelled), "--labels", str(labelled / "labels.csv")),
        *("--engine", "onnxruntime", "--baselines", "--markdown", str(table), "--plot", str(picture)),
    )
    assert code == 0
    rows = table.read_text(encoding="utf-8")
    assert out.startswith(rows.splitlines()[0])
    assert rows.count("| tiny |") == 4
    assert "| jpeg |" in rows
    assert picture.read_bytes().startswith(b"\x89PNG")
    # Untrained, it is honest about it.
    assert load_bundle(str(tiny_folder)).manifest.measured is None


@pytest.mark.usefixtures("cached")
def test_eval_prints_its_result_even_when_a_file_cannot_be_written(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = str(tmp_path / "no" / "table.md")
    code, out, err = evaluate(capsys, "--data", str(labelled), "--limit", "1", "--json", "--markdown", nowhere)
    assert code == 1
    assert json.loads(out)["images"] == 1
    assert err.splitlines()[-1].endswith("table.md: cannot be written: No such file or directory")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data", "nowhere"], "nowhere: neither a folder nor a tar"),
        (["--data", ".", "--bundle", "defualt"], "defualt: no such bundle"),
    ],
)
def test_eval_tells_what_is_missing_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = evaluate(capsys, *arguments)
    assert (code, out) == (1, "")
    assert text in err
    assert len(err.splitlines()) == 1


def test_eval_without_labels_names_the_way_out(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").write_bytes((labelled / "coffee-0.jpg").read_bytes())
    code, _, err = evaluate(capsys, "--data", str(tmp_path))
    assert code == 1
    assert "--labels" in err
