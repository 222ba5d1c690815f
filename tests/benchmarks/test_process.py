"""Sides wait in processes of their own, and what goes wrong there is told here."""

import os
from pathlib import Path

import pytest
from synthetic_images import make_image_folder

from benchmarks.process import Worker, run_command
from pipeline.errors import NoInputError, StorageError, UsageError


def test_a_worker_measures_as_often_as_it_is_asked() -> None:
    with Worker("matrix product") as worker:
        assert worker.start_seconds > 0
        for _ in range(2):
            assert worker.ask()["gflops"] > 0
        assert worker.peak is None or 10e6 < worker.peak < 1e9


def test_an_expected_failure_in_a_worker_is_one_here() -> None:
    with pytest.raises(NoInputError, match="gone does not exist"):
        Worker("decoding", folder="gone", image_size=8)


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="mobilenet_v2 has no layer 'block5'"):
        Worker(
            "book's loop", base="mobilenet_v2", image_size=32, weights="random", layer="block5",
            cache_dir="cache", whole=False,
        )  # fmt: skip


def test_a_worker_that_dies_is_told_from_one_that_answers(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Worker("matrix product") as worker:
        for _ in range(2):
            with pytest.raises(
                StorageError, match="measures matrix product ended without an answer"
            ):
                worker.ask(unknown=1)
    assert "TypeError" in capfd.readouterr().err  # the traceback of what is a bug


def test_a_command_gives_its_document_and_what_it_cost() -> None:
    root = make_image_folder(Path("synthetic"), per_class=2)
    done = run_command(["extract", os.fspath(root), "--base", "pixels", "--json"])
    assert done.document["computed"] == 4
    assert done.seconds > done.document["seconds"]
    assert done.peak is None or 10e6 < done.peak < 1e9


def test_a_command_that_fails_gives_its_reason() -> None:
    with pytest.raises(StorageError, match=r"extract failed: error: .*gone does not exist"):
        run_command(["extract", "gone", "--json"])
