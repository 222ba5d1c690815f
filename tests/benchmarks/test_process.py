"""Sides run in their own processes; their failures are reported in this one."""

import os
from pathlib import Path

import pytest
from synthetic_images import make_image_folder

from benchmarks.book import Loop
from benchmarks.process import Worker, run_command
from pipeline.errors import NoInputError, StorageError, UsageError


@pytest.mark.slow
def test_worker_measures_on_each_request() -> None:
    with Worker("matrix product") as worker:
        assert worker.start_seconds > 0
        for _ in range(2):
            assert 0.5 < worker.ask()["gflops"] < 1e6
        assert worker.peak is None or 10e6 < worker.peak < 1e9


def test_expected_failure_of_a_worker_is_raised_here() -> None:
    with pytest.raises(NoInputError, match="gone does not exist"):
        Worker("decoding", folder="gone", image_size=8)


def test_unknown_layer_is_named() -> None:
    with pytest.raises(UsageError, match="mobilenet_v3_small has no layer 'block5'"):
        Loop(
            base="mobilenet_v3_small", image_size=32, weights="random", layer="block5",
            cache_dir="cache", whole=False,
        )  # fmt: skip


def test_worker_that_dies_is_an_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Worker("matrix product") as worker:
        for _ in range(2):
            with pytest.raises(
                StorageError, match="measures matrix product ended without an answer"
            ):
                worker.ask(unknown=1)
    assert "TypeError" in capfd.readouterr().err  # the traceback of a bug


def test_command_returns_its_json_seconds_and_peak_memory() -> None:
    root = make_image_folder(Path("synthetic"), per_class=2)
    done = run_command(["extract", os.fspath(root), "--base", "pixels", "--json"])
    assert done.document["computed"] == 4
    assert done.seconds > done.document["seconds"]
    assert done.peak is None or 10e6 < done.peak < 1e9


def test_failed_command_is_an_error_with_its_last_line() -> None:
    with pytest.raises(StorageError, match=r"extract failed: error: .*gone does not exist"):
        run_command(["extract", "gone", "--json"])
