"""Making the cloud's graphs in a process of its own: what comes of it, and that a stop need not wait for it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from nodes import preparation
from nodes.lifecycle import StopRequest
from pipeline.errors import BundleFormatError, BundleMismatchError


class Bundle:
    """As much of one as the parent looks at."""

    bundle_id = bytes(32)


BUNDLE: Any = Bundle()


def answer_with_folder(answer: Connection, name: str, weights: Path | None) -> None:
    answer.send(f"/made/{name}")


def answer_with_error(answer: Connection, name: str, weights: Path | None) -> None:
    answer.send(BundleMismatchError("trained with other weights"))


def die(answer: Connection, name: str, weights: Path | None) -> None:
    os._exit(5)


def go_on_for_ever(answer: Connection, name: str, weights: Path | None) -> None:
    while True:
        answer.poll(None)


@pytest.fixture
def stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StopRequest]:
    monkeypatch.setenv("RAC_CACHE", str(tmp_path))
    with StopRequest() as made:
        yield made
    assert multiprocessing.active_children() == []


def prepare(monkeypatch: pytest.MonkeyPatch, target: Any, stop: StopRequest) -> Path | None:
    monkeypatch.setattr(preparation, "_prepare", target)
    return preparation.prepare_in_process("default", BUNDLE, None, stop)


def test_folder_comes_from_the_process(monkeypatch: pytest.MonkeyPatch, stop: StopRequest) -> None:
    assert prepare(monkeypatch, answer_with_folder, stop) == Path("/made/default")


def test_error_comes_from_the_process(monkeypatch: pytest.MonkeyPatch, stop: StopRequest) -> None:
    with pytest.raises(BundleMismatchError, match="other weights"):
        prepare(monkeypatch, answer_with_error, stop)


def test_death_of_the_process_is_an_error(monkeypatch: pytest.MonkeyPatch, stop: StopRequest) -> None:
    with pytest.raises(BundleFormatError, match="exit code 5"):
        prepare(monkeypatch, die, stop)


def test_stop_does_not_wait_for_the_graphs(monkeypatch: pytest.MonkeyPatch, stop: StopRequest) -> None:
    """The first start takes a minute on a small machine; Ctrl-C shall not."""
    stop.request()
    assert prepare(monkeypatch, go_on_for_ever, stop) is None
