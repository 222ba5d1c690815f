"""Predictions as text, one by one."""

import csv
import io
import json
import os
from collections.abc import Iterator

import numpy as np
import pytest
from rich.cells import cell_len

from pipeline.models.heatmaps import Heatmap
from pipeline.models.image_predictions import Prediction
from pipeline.report.prediction_formats import csv_lines, json_parts, table_lines
from pipeline.text import printable

CLASSES = ("cat", "고양이", "a\x1b[31m")


def draw_predictions(*names: bytes) -> list[Prediction]:
    random = np.random.default_rng(0)
    return [
        Prediction(row, path=name, classes=CLASSES)
        for name, row in zip(names, random.dirichlet([1, 1, 1], len(names)), strict=True)
    ]


NAMES = (b"a.jpg", "강아지/긴 이름.jpg".encode(), b"\xff,\n\x1b[2J.jpg")


def test_table_is_aligned_in_a_terminals_cells_and_names_are_escaped() -> None:
    made = draw_predictions(*NAMES)
    lines = "".join(table_lines(made, paths=NAMES, classes=CLASSES, top=3)).splitlines()
    assert lines[0].split() == ["path", "label", "probability", "margin", "then"]
    assert len(lines) == 4
    assert all("\x1b" not in line for line in lines)
    assert len({cell_len(line) for line in lines[1:]}) == 1
    column = lines[0].index("probability") + len("probability")
    for line, prediction in zip(lines[1:], made, strict=True):
        before = f"{prediction.probability:.4f}"
        assert cell_len(line[: line.index(before) + len(before)]) == column


def test_table_of_one_class_has_no_column_for_others() -> None:
    made = draw_predictions(b"a.jpg")
    title, line = "".join(table_lines(made, paths=[b"a.jpg"], classes=CLASSES, top=1)).splitlines()
    assert title.split()[-1] == "margin"
    assert line.split()[0] == "a.jpg"
    assert len(line.split()) == 4


def test_csv_preserves_the_bytes_of_names() -> None:
    made = draw_predictions(*NAMES)
    text = "".join(csv_lines(made, top=2, named=os.fsdecode))
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [os.fsencode(row["path"]) for row in rows] == list(NAMES)
    for row, prediction in zip(rows, made, strict=True):
        (label, probability), (second, share) = prediction.top(2)
        assert (row["label"], float(row["probability"])) == (label, probability)
        assert (row["label_2"], float(row["probability_2"])) == (second, share)
        assert float(row["margin"]) == probability - share
    shown = "".join(csv_lines(made, top=1, named=printable))
    assert "\x1b" not in shown


def test_json_parts_make_one_document() -> None:
    made = draw_predictions(*NAMES)
    parts = json_parts(made, top=2, head={"model": {"head": "x"}}, tail=lambda: {"skipped": []})
    document = json.loads("".join(parts))
    assert set(document) == {"model", "images", "skipped"}
    assert [os.fsencode(image["path"]) for image in document["images"]] == list(NAMES)
    for image, prediction in zip(document["images"], made, strict=True):
        assert [(top["label"], top["probability"]) for top in image["top"]] == prediction.top(2)
        assert (image["label"], image["margin"]) == (prediction.label, prediction.margin)


@pytest.mark.parametrize("kind", ["table", "csv", "json"])
def test_text_of_a_prediction_precedes_the_next_prediction(kind: str) -> None:
    made: list[bytes] = []

    def predictions() -> Iterator[Prediction]:
        for prediction in draw_predictions(*NAMES):
            made.append(prediction.path)
            yield prediction

    parts = {
        "table": lambda: table_lines(predictions(), paths=NAMES, classes=CLASSES, top=2),
        "csv": lambda: csv_lines(predictions(), top=2, named=os.fsdecode),
        "json": lambda: json_parts(predictions(), top=2, head={"model": {}}, tail=dict),
    }[kind]()
    assert "a.jpg" in next(parts)
    assert made == [b"a.jpg"]


@pytest.mark.parametrize("task", ["classes", "multilabel", "regression"])
def test_heat_maps_are_a_last_column_and_part_of_the_json(task: str) -> None:
    heatmap = Heatmap("cat", np.array([[0.5, -1.0]]), "cam", file="maps/1\x1b.png")
    count = 1 if task == "regression" else 3
    prediction = Prediction(
        np.full(count, 0.5), path=b"a", classes=CLASSES[:count], task=task, heatmap=heatmap
    )
    titles, line = csv.reader(io.StringIO("".join(csv_lines([prediction], top=1, named=printable))))
    assert (titles[-1], line[-1]) == ("heatmap", "maps/1\\x1b.png")
    assert len(titles) == len(line)
    parts = json_parts([prediction], top=1, head={"model": {}}, tail=lambda: {"cached": 0})
    (image,) = json.loads("".join(parts))["images"]
    expected = {"label": "cat", "method": "cam", "values": [[0.5, -1.0]], "file": "maps/1\x1b.png"}
    assert image["heatmap"] == expected
