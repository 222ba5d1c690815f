"""The page of results shows what was measured, and names what was not."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from benchmarks.results import reproduce
from benchmarks.results_page import DatasetResults, make_page
from benchmarks.results_steps import Amount, Step, run_step, steps_of
from pipeline.errors import BadDataError


def answer(**accuracies: float) -> dict[str, Any]:
    counts = {"train": {"a": 30, "b": 30}, "validation": {"a": 10, "b": 10}, "test": {"a": 50}}
    return {
        "run": {"caches": [{"split_counts": counts}]},
        "rows": [
            {"head": head, "test_accuracy": value, "fit_seconds": 15.0, "parameters": 7}
            for head, value in accuracies.items()
        ],
    }


@pytest.fixture
def answers(tmp_path: Path) -> dict[str, Any]:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["views"] = np.zeros(100, np.int16)
        for layer, width in (("block4_pool", 2000), ("block5_pool", 1000)):
            file.create_dataset(f"features/{layer}", data=np.zeros((100, width), np.int8))
    found: dict[str, Any] = {
        "pets/extract-native": {
            "images": 100, "computed": 50, "seconds": 10.0, "cache": str(tmp_path / "x.h5"),
        },
    }  # fmt: skip
    for seed in range(3):
        found[f"pets/classify-native-0-{seed}"] = answer(dense=0.80 + seed / 50)
        found[f"pets/classify-native-4-{seed}"] = answer(dense=0.86 + seed / 50)
    return found


def test_page_shows_measured_values_and_names_missing_ones(answers: dict[str, Any]) -> None:
    page = make_page(
        [DatasetResults("pets", "like ImageNet", Amount(), answers)], "run it", curves=None
    )
    lines = page.splitlines()
    (plain,) = (line for line in lines if "dense on the frozen base | native | 0" in line)
    # 100 images at 0.2 s each; 0.1 MB of block5_pool
    assert "82.0 (69.2–90.2), 3 seeds | 20 s | 15 s | 100.0 kB" in plain
    (views,) = (line for line in lines if "dense on the frozen base | native | 4" in line)
    assert "| 1 min 8 s |" in views  # 60 of them have four views more
    (tuned,) = (line for line in lines if "fine-tuned from the cache | native | 0" in line)
    assert tuned.count("not measured") == 2
    assert "| pets | 4 views, own preprocessing, dense | +6.0 (+6.0 to +6.0) |" in lines
    assert "| pets | fine-tuned, relative to its frozen head | not measured |" in lines
    assert "| parameters of its base | 14,714,688 | 14,714,688 |" in lines


def test_steps_contain_every_method_and_read_only_earlier_steps() -> None:
    steps = list(steps_of(Path("data/pets"), "imagenet", Amount()))
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    assert {name.split("/")[1].split("-")[0] for name in names} == {
        "extract", "classify", "finetune", "scratch", "end_to_end",
    }  # fmt: skip
    for index, step in enumerate(steps):
        for word in step.arguments:
            if word.startswith("{cache:"):
                assert word[7:-1] in names[:index]
    assert len(list(steps_of(Path("data/pets"), "imagenet", Amount(seeds=1)))) < len(steps) / 2


def test_step_runs_once_and_its_failure_is_an_error(tmp_path: Path, synthetic_set: Path) -> None:
    step = Step(
        "synthetic/extract", ("pipeline.extract", str(synthetic_set), "--base", "pixels", "--json")
    )
    assert run_step(step, tmp_path)["computed"] == 72
    assert run_step(step, tmp_path)["computed"] == 72  # read, not run: a second run computes 0
    with pytest.raises(BadDataError, match="synthetic/bad ended with exit code 66"):
        run_step(Step("synthetic/bad", ("pipeline.extract", "--base", "none")), tmp_path)
    assert not (tmp_path / "synthetic/bad.json").exists()


def test_page_without_measurements_says_not_measured(tmp_path: Path) -> None:
    page = reproduce(
        [(Path("data/pets"), "like ImageNet")],
        weights="imagenet",
        amount=Amount(),
        folder=tmp_path / "runs",
        page=tmp_path / "page.md",
        only_collect=True,
        command="collect",
    )
    assert page.read_text().count("not measured") > 20


@pytest.mark.slow
def test_reproduction_runs_all_steps_and_writes_the_page(
    tmp_path: Path, synthetic_set: Path
) -> None:
    page = reproduce(
        [(synthetic_set, "synthetic")],
        weights="random",
        amount=Amount(
            views=1, epochs=1, scratch_epochs=1, end_to_end_epochs=1, head_epochs=2, seeds=1
        ),
        folder=tmp_path / "runs",
        page=tmp_path / "docs" / "page.md",
        only_collect=False,
        command="all",
    )
    methods, _, changes = page.read_text().partition("## Effects of single changes")
    assert "| not measured" not in methods
    assert "not measured" in changes  # one seed has no interval
    assert (page.parent / "finetuning.png").read_bytes().startswith(b"\x89PNG")
