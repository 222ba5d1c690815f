"""results/<run>/ contains the table in three formats, and the plots."""

import csv
import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from feature_sets import alternating_labels, folder_splits, write_cache

from pipeline.errors import CannotCreateError
from pipeline.evaluation.compare import compare_heads
from pipeline.evaluation.result import COLUMN_NAMES, Comparison
from pipeline.report.run_folder import write_run


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    cache = write_cache(
        tmp_path_factory.mktemp("cache") / "synthetic.h5",
        labels=alternating_labels(100),
        splits=folder_splits(100),
        classes=("a|b", "<c>"),
    )
    return compare_heads(cache, heads="logistic,linear_svm,majority")


def test_csv_json_and_markdown_contain_the_same(comparison: Comparison, tmp_path: Path) -> None:
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


def test_runs_in_the_same_second_get_different_folders(
    comparison: Comparison, tmp_path: Path
) -> None:
    now = datetime.now()
    seconds = [now + timedelta(seconds=second) for second in range(300)]
    taken = [tmp_path / "results" / f"{each:%Y-%m-%d_%H%M%S}-synthetic" for each in seconds]
    for folder in taken:
        folder.mkdir(parents=True)
    written = write_run(comparison, tmp_path / "results")
    assert written.name in {f"{folder.name}-2" for folder in taken}
    assert (written / "results.json").is_file()


def test_a_plot_that_fails_is_a_warning(
    comparison: Comparison,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no font has\nthis letter.")

    monkeypatch.setattr("pipeline.report.plots.write_confusion", fail)
    folder = write_run(comparison, tmp_path / "results")
    line = "confusion.png failed (ValueError: no font has this letter); the table is complete"
    assert line in caplog.messages
    assert (folder / "report.html").is_file()


def test_uncreatable_results_folder_is_an_error(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotCreateError, match="choose another --out"):
        write_run(comparison, tmp_path / "file" / "results")
    with pytest.raises(CannotCreateError, match="choose another --out"):
        write_run(comparison, tmp_path / "file")
