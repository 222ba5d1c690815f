"""results/<run>/ holds the table in three forms, and the plots."""

import csv
import json
from datetime import datetime
from pathlib import Path

import pytest
from feature_sets import alternating_labels, folder_splits, write_cache

from pipeline.errors import CannotCreateError
from pipeline.evaluation.compare import compare_heads
from pipeline.evaluation.result import COLUMN_NAMES, Comparison
from pipeline.report import run_folder
from pipeline.report.run_folder import write_run


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    cache = write_cache(
        tmp_path / "synthetic.h5",
        labels=alternating_labels(100),
        splits=folder_splits(100),
        classes=("a|b", "<c>"),
    )
    return compare_heads(cache, heads="logistic,linear_svm,majority")


def test_csv_json_and_markdown_tell_the_same(comparison: Comparison, tmp_path: Path) -> None:
    command = "python -m pipeline.classify synthetic.h5"
    folder = write_run(comparison, tmp_path / "results", command=command)
    document = json.loads((folder / "results.json").read_text("utf-8"))
    assert list(document) == ["run", "rows"]
    assert document["run"]["command"] == command
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(document["rows"]) == len(comparison.results)
    for line, row, result in zip(lines, document["rows"], comparison.results, strict=True):
        assert tuple(line) == tuple(row) == COLUMN_NAMES
        assert {name: "" if value is None else str(value) for name, value in row.items()} == line
        assert row["head"] == result.head
        assert row["test_accuracy"] == result.test_accuracy
    assert all(row["top5_accuracy"] is None for row in document["rows"])
    markdown = (folder / "results.md").read_text("utf-8")
    assert command in markdown
    assert comparison.results[0].fingerprint in markdown
    assert "| logistic |" in markdown
    assert 'id="reliability"' in (folder / "report.html").read_text("utf-8")
    assert (folder / "confusion.png").is_file()
    assert not (folder / "curves.png").exists()


def test_two_runs_in_one_second_have_folders_of_their_own(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Stopped":
            return cls(2026, 11, 21, 14, 30)

    monkeypatch.setattr(run_folder, "datetime", Stopped)
    names = [write_run(comparison, tmp_path / "results").name for _ in range(3)]
    assert names == [
        "2026-11-21_143000-synthetic",
        "2026-11-21_143000-synthetic-2",
        "2026-11-21_143000-synthetic-3",
    ]


def test_results_that_cannot_be_made_are_told(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotCreateError, match="choose another --out"):
        write_run(comparison, tmp_path / "file" / "results")
    with pytest.raises(CannotCreateError, match="choose another --out"):
        write_run(comparison, tmp_path / "file")
