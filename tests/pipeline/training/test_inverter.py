"""`rac invert`: symbols become pictures again, and it is said how near they come."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nodes.cli import main
from pipeline.bundle import Bundle
from pipeline.codec.nested import BlockTransform
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.errors import TrainingError
from pipeline.training import invert_command
from pipeline.training import inverter as inverter_module
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.inverter import Inverter, Listener, Step, invert, train_inverter
from pipeline.training.picture_quality import psnr

NUM_STEPS = 40


def test_listener_sees_the_encoders_symbols_and_the_bundles_gains(
    tiny_bundle: Bundle, views: NDArray[np.uint8]
) -> None:
    listener = Listener(tiny_bundle, 1, [0, 1])
    symbols = listener.symbols(views[:2], [1, 0])
    encoder = Encoder(tiny_bundle)
    expected = [encoder.symbols(views[row], OperatingPoint(1, level16)) for row, level16 in enumerate((16, 0))]
    np.testing.assert_array_equal(symbols.numpy(), np.stack(expected))
    # What the gain multiplies the inverse gain undoes, but for the channel that the untrained codec holds at zero.
    product = listener.inverse_gains * torch.from_numpy(np.stack([tiny_bundle.gains[0], tiny_bundle.gains[16]]))
    torch.testing.assert_close(product[:, :5], torch.ones(2, 5))


def test_inverter_of_a_dct_sees_the_positions_of_its_blocks() -> None:
    """The same weights draw the same from coefficients as from the values that they are of."""
    torch.manual_seed(1)
    plain = Inverter(torch.ones(1, 3))
    blocks = Inverter(torch.ones(1, 48), block_side=4)
    blocks.load_state_dict(plain.state_dict() | {"inverse_gains": torch.ones(1, 48)})
    y, level = torch.randn(1, 3, 8, 8), torch.tensor([0])
    torch.testing.assert_close(blocks(BlockTransform(4, 3)(y), level), plain(y, level), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("depth", "levels", "text"), [(3, [0], "no depth 3; it has 0, 1"), (0, [0, 2], "no level 2; it has 0, 1")]
)
def test_what_the_bundle_does_not_have_is_named(tiny_bundle: Bundle, depth: int, levels: list[int], text: str) -> None:
    with pytest.raises(TrainingError, match=text):
        Listener(tiny_bundle, depth, levels)


@pytest.mark.timeout(600)
def test_training_draws_each_picture_from_its_own_symbols(
    tiny_bundle: Bundle, views: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even six random channels hold something of brightness and colour; an inverter finds it in a few steps."""
    monkeypatch.setattr(inverter_module, "BATCH", 4)
    monkeypatch.setattr(inverter_module, "WARM_UP_STEPS", 5)
    listener = Listener(tiny_bundle, 0, [1])
    steps: list[Step] = []
    pictures = [view[:64, :64] for view in views]

    def train() -> Inverter:
        return train_inverter(
            listener, pictures, 224, lambda seen: seen / (4 * NUM_STEPS), steps.append, lambda: len(steps) == NUM_STEPS
        )

    inverter = train()
    drawn = invert(inverter, listener, views[:8], 0)
    assert (drawn.shape, drawn.dtype) == (views[:8].shape, np.uint8)
    own = np.mean([psnr(view, each) for view, each in zip(views[:8], drawn, strict=True)])
    others = np.mean([psnr(view, each) for view, each in zip(views[:8], np.roll(drawn, 1, axis=0), strict=True)])
    grey = np.mean([psnr(view, np.full_like(view, 127)) for view in views[:8]])
    assert own > grey + 1
    assert own > others + 1
    assert [step.number for step in steps] == list(range(1, NUM_STEPS + 1))
    assert steps[-1].seen == 4 * NUM_STEPS


def arguments(tiny_folder: Path, picture_folder: Path, *more: str) -> list[str]:
    data = ["--data", str(picture_folder), "--side-px", "128"]
    return ["invert", "--bundle", str(tiny_folder), *data, "--levels", "0", "1", "--depth", "1", *more]


@pytest.mark.timeout(600)
def test_invert_measures_and_draws_and_measures_again_without_training(
    tiny_folder: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(picture_folder, tmp_path / "eval")
    (tmp_path / "eval" / "broken.jpg").write_bytes(b"no picture")
    out, eval_folder = tmp_path / "out", str(tmp_path / "eval")
    more = ["--eval", eval_folder, "--limit", "3", "--show", eval_folder, "--json"]
    command = arguments(tiny_folder, picture_folder, *more, "--pictures", "48", "--out", str(out))
    assert main(command) == 0
    stdout, stderr = capsys.readouterr()
    content = json.loads(stdout.splitlines()[-1])
    assert content == json.loads((out / "inversion.json").read_text(encoding="utf-8"))
    assert (content["depth"], content["pictures_seen"], content["training_pictures"]) == (1, 48, 20)
    assert (content["eval"]["images"], content["held_out"]["images"]) == (3, 4)
    assert [row["level"] for row in content["eval"]["rows"]] == [0, 1, None]
    assert all(row["psnr"] > 5 for row in content["eval"]["rows"])
    assert content["eval"]["rows"][1]["bytes"] > content["eval"]["rows"][0]["bytes"] > 0
    page = (out / "inversion.md").read_text(encoding="utf-8")
    assert "Features are not anonymous" in page
    assert "| 3 pictures of eval | bytes a frame | PSNR, dB | SSIM |" in page
    pairs = cv2.imread(str(out / "pairs.png"))
    assert pairs is not None
    assert pairs.shape[1] == 3 * 224 + 2 * 4  # the original and two levels
    assert pairs.shape[0] > 6 * 224
    again = [*command, "--weights", str(out / "inverter.pt")]
    again[again.index(str(out))] = str(tmp_path / "again")
    assert main(again) == 0
    stdout, _ = capsys.readouterr()
    found = json.loads(stdout)  # alone: no line of a training before it
    assert found["eval"]["rows"][0]["psnr"] == pytest.approx(content["eval"]["rows"][0]["psnr"], rel=1e-4)
    assert (found["minutes"], found["pictures_seen"]) == (content["minutes"], 48)
    # An inverter of another depth would draw noise, and say that features are safe.
    again[again.index("--depth") + 1] = "0"
    assert main(again) == 2
    assert "was trained for another depth" in capsys.readouterr().err


@pytest.mark.timeout(600)
def test_a_stop_leaves_what_was_learnt(
    tiny_folder: Path,
    picture_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Stopping(invert_command._ShownSteps):
        def step(self, step: Step) -> None:
            super().step(step)
            if step.number == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(invert_command, "_ShownSteps", Stopping)
    more = ["--pictures", "4000000", "--out", str(tmp_path / "out")]
    assert main(arguments(tiny_folder, picture_folder, *more)) == 0
    assert "inverter.pt measures what it has learnt" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "out" / "inverter.pt")["facts"]["pictures_seen"] == 32
    assert not (tmp_path / "out" / "inversion.json").exists()


@pytest.mark.parametrize(
    ("more", "code", "text"),
    [
        (["--levels", "-1"], 2, "-1"),
        (["--side-px", "50"], 2, "must be at least"),
        (["--eval", "nowhere"], 1, "nowhere: no such folder of pictures"),
        (["--weights", "nowhere.pt"], 1, "nowhere.pt: not a checkpoint"),
    ],
)
def test_a_mistake_is_one_line(
    tiny_folder: Path,
    picture_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    code: int,
    text: str,
) -> None:
    command = [*arguments(tiny_folder, picture_folder), "--out", str(tmp_path), *more]
    try:
        found = main(command)
    except SystemExit as error:
        found = int(error.code or 0)
    assert found == code
    assert text in capsys.readouterr().err.splitlines()[-1]
