"""``python -m benchmarks.drawn_cache``: a drawn cache that the commands read."""

import json
from pathlib import Path

import numpy as np
from command import run_command

from benchmarks.drawn_cache import main
from pipeline.cache.file import read_table


def test_drawn_cache_is_complete_and_classified_better_than_by_chance(tmp_path: Path) -> None:
    path = tmp_path / "drawn.h5"
    assert main(["1000", "64", "--classes", "4", "--out", str(path)]) == 0
    table = read_table(path)
    assert table.features("drawn").shape == (1000, 64)
    assert set(np.unique(table.columns.splits)) == {1, 2, 3}
    assert run_command("cache", "verify", path).returncode == 0
    command = ("classify", path, "--heads", "lda", "--no-audit", "--save", "none", "--json")
    (row,) = json.loads(run_command(*command).stdout)["rows"]
    assert 0.4 < row["test_accuracy"] < 1
