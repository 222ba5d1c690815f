"""Sides wait in processes of their own, and what goes wrong there is told here."""

import os
from pathlib import Path

import pytest
from drawing import draw_set

from pipeline.benchmark.drawn import draw_cache
from pipeline.benchmark.process import Worker, run_command
from pipeline.errors import NoInputError, StorageError, UsageError


def test_a_worker_measures_as_often_as_it_is_asked() -> None:
    cache = os.fspath(draw_cache(Path("drawn.h5"), divisor=100))
    with Worker("h5py", cache=cache) as plain, Worker("reading", cache=cache) as ours:
        assert ours.start_seconds > 0
        for worker in (plain, ours, plain):
            assert 0 < worker.ask()["seconds"] < 5
        assert ours.peak is None or 10e6 < ours.peak < 1e9


def test_an_expected_failure_in_a_worker_is_one_here() -> None:
    with pytest.raises(NoInputError, match=r"gone\.h5 does not exist"):
        Worker("dense", cache="gone.h5", epochs=1)


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="mobilenet_v2 has no layer 'block5'"):
        Worker(
            "book's loop", base="mobilenet_v2", image_size=32, weights="random", layer="block5",
            cache_dir="cache", whole=False,
        )  # fmt: skip


def test_a_worker_that_dies_is_told_from_one_that_answers(
    capfd: pytest.CaptureFixture[str],
) -> None:
    cache = draw_cache(Path("drawn.h5"), divisor=100)
    with Worker("h5py", cache=os.fspath(cache)) as worker:
        cache.unlink()
        with pytest.raises(StorageError, match="measures h5py ended without an answer"):
            worker.ask()
        with pytest.raises(StorageError, match="measures h5py ended without an answer"):
            worker.ask()
    assert "FileNotFoundError" in capfd.readouterr().err  # the traceback of what is a bug


def test_a_command_gives_its_document_and_what_it_cost() -> None:
    root = draw_set(Path("drawn"), per_class=2)
    done = run_command(["extract", os.fspath(root), "--base", "pixels", "--json"])
    assert done.document["computed"] == 4
    assert done.seconds > done.document["seconds"]
    assert done.peak is None or 10e6 < done.peak < 1e9


def test_a_command_that_fails_gives_its_reason() -> None:
    with pytest.raises(StorageError, match=r"extract failed: error: .*gone does not exist"):
        run_command(["extract", "gone", "--json"])
