"""Edits of a labels file are on the disk at once, and none is lost."""

import csv
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from feature_sets import write_cache
from filelock import FileLock
from review_sets import CLASSES, review_columns

from pipeline.cache.file import FeatureTable, read_table
from pipeline.errors import BadDataError, BusyError, CannotCreateError, UsageError
from pipeline.evaluation.label_edits import DROPPED, read_label_edits
from pipeline.review import Edit, LabelsFile

LABELS = Path("labels.csv")
# Prints each row after its edit has returned.
EDITOR = """
import sys
from pathlib import Path
from pipeline.cache.file import read_table
from pipeline.review import LabelsFile
labels = LabelsFile(Path("labels.csv"), read_table(Path("set.h5")))
for row in range(int(sys.argv[1]), int(sys.argv[2])):
    labels.relabel(row, (int(labels.table.columns.labels[row]) + 1) % 3)
    print(row, flush=True)
"""


def make_table(count: int = 120) -> FeatureTable:
    columns = review_columns(count)
    labels = columns.labels.tolist()
    return read_table(write_cache(Path("set.h5"), labels=labels, classes=CLASSES, columns=columns))


@pytest.fixture
def table() -> FeatureTable:
    return make_table()


@pytest.fixture
def labels(table: FeatureTable) -> LabelsFile:
    return LabelsFile(LABELS, table)


def lines() -> list[dict[str, str]]:
    with LABELS.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def digest_of(table: FeatureTable, row: int) -> str:
    return table.columns.digests[row].tobytes().hex()


def test_edits_are_what_classify_reads_with_one_line_per_image(labels: LabelsFile) -> None:
    assert labels.edits() == {}
    for row in range(4, 7):  # each class becomes each other one
        for label in CLASSES:
            labels.relabel(row, label)
    labels.relabel(1, 2)
    labels.drop(2)
    labels.keep(10)
    kept = Edit(None)
    expected = {4: Edit(2), 5: kept, 6: Edit(2), 1: Edit(2), 2: Edit(DROPPED), 10: kept}
    expected[5] = kept if labels.table.columns.labels[5] == 2 else Edit(2)
    assert labels.edits() == expected
    assert len(lines()) == 6
    (read,) = read_label_edits(LABELS, [labels.table])
    assert read == {row: edit.label for row, edit in expected.items() if edit.label is not None}


def test_identical_files_are_edited_together(labels: LabelsFile) -> None:
    labels.drop(3)
    assert labels.edits() == {0: Edit(DROPPED), 3: Edit(DROPPED)}
    labels.keep(0)
    assert labels.edits() == {0: Edit(None), 3: Edit(None)}
    assert len(lines()) == 1


def test_an_edit_replaces_the_lines_of_copies_by_hand(labels: LabelsFile) -> None:
    LABELS.write_text("path,new_label\n3.jpg,고양이\n=cmd 0.jpg,cats\n4.jpg,cats\n")
    assert labels.edits() == {3: Edit(1), 0: Edit(0), 4: Edit(0)}  # a path is one file
    labels.relabel(0, 2)
    assert labels.edits() == {3: Edit(2), 0: Edit(2), 4: Edit(0)}
    labels.undo()
    assert labels.edits() == {3: Edit(1), 0: Edit(0), 4: Edit(0)}


def test_undo_restores_what_the_file_said_before(labels: LabelsFile) -> None:
    labels.relabel(0, 1)
    before = LABELS.read_bytes()
    labels.drop(3)
    labels.keep(5)
    assert labels.undo() == 5
    assert labels.undo() == 3
    assert LABELS.read_bytes() == before
    assert labels.undo() == 0
    assert labels.undo() is None
    assert labels.edits() == {}


def test_undo_does_not_take_back_the_edit_of_another_window(labels: LabelsFile) -> None:
    other = labels.session()
    labels.relabel(6, 1)
    labels.relabel(7, 2)
    other.drop(7)
    with pytest.raises(BadDataError, match=r"^7\.jpg was edited elsewhere since: nothing"):
        labels.undo()
    assert labels.edits()[7] == Edit(DROPPED)
    assert labels.undo() == 6  # the edit before
    assert other.undo() == 7
    assert labels.edits() == {7: Edit(2)}


def test_an_edit_by_hand_is_kept_with_its_columns(labels: LabelsFile) -> None:
    digest = digest_of(labels.table, 8)
    LABELS.write_text(
        f"Digest;path;new_label;remark\n;9.jpg;고양이;blurred\n{digest};;cats;\n"
        f"{64 * '0'};;cats;of another cache\n",
        encoding="utf-8-sig",
    )
    assert labels.edits() == {9: Edit(1), 8: Edit(0)}
    labels.drop(8)
    labels.relabel(11, 0)
    assert labels.edits() == {9: Edit(1), 8: Edit(DROPPED), 11: Edit(0)}
    assert [line["remark"] for line in lines()] == ["blurred", "", "of another cache", ""]
    assert labels.undo() == 11
    assert labels.undo() == 8
    assert labels.edits() == {9: Edit(1), 8: Edit(0)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,new_label\n4.jpg,dgos\n", r"labels\.csv:2: dgos is not a class"),
        (b"path,drop\n4.jpg,perhaps\n", ":2: drop: expected yes or empty"),
        (b"path,new_label,drop\n4.jpg,cats,yes\n", ":2 both drops and relabels"),
        (b"path,new_label\n4.jpg,cats\n4.jpg,cats\n4.jpg,\xea\xb3\xa0\xec\x96\x91\xec\x9d\xb4\n",
         r":4 contradicts labels\.csv:2"),
        (b"path,new_label\n\xff\xfe,cats\n", "is not UTF-8"),
        (b"\x00\x01\x02", "needs the columns path or digest"),
        (b"", "is empty"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line_and_never_overwritten(
    labels: LabelsFile, content: bytes, message: str
) -> None:
    LABELS.write_bytes(content)
    for edit in (lambda: labels.keep(5), lambda: labels.drop(5), labels.edits):
        with pytest.raises(Exception, match=message) as raised:
            edit()
        assert isinstance(raised.value, BadDataError) or not content
        assert "\n" not in str(raised.value)
    assert LABELS.read_bytes() == content


def test_an_unknown_class_is_refused(labels: LabelsFile) -> None:
    for label in ("horse", 3, -1, ""):
        with pytest.raises(UsageError, match="is not a class; the classes are cats"):
            labels.relabel(4, label)
    assert not LABELS.exists()


def test_a_held_lock_and_a_file_in_the_way_are_one_line(
    labels: LabelsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.review.labels_file.LOCK_SECONDS", 0.05)
    with FileLock("labels.csv.lock"), pytest.raises(BusyError, match="the edit is not saved"):
        labels.keep(4)
    Path("file").touch()
    with pytest.raises(CannotCreateError, match="choose another labels file"):
        LabelsFile(Path("file/labels.csv"), labels.table).keep(4)


def test_two_windows_at_once_lose_no_edit(labels: LabelsFile) -> None:
    def edit(rows: range) -> None:
        session = labels.session()
        for row in rows:
            session.drop(row)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(edit, (range(4, 34), range(34, 64))))
    assert labels.edits() == dict.fromkeys(range(4, 64), Edit(DROPPED))


def editor(first: int, end: int) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", EDITOR, str(first), str(end)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_at_once_lose_no_edit() -> None:
    labels = LabelsFile(LABELS, make_table(620))
    processes = [editor(10, 210), editor(210, 410)]
    assert [process.wait() for process in processes] == [0, 0]
    for process in processes:
        process.communicate()
    expected = (labels.table.columns.labels + 1) % len(CLASSES)
    assert labels.edits() == {row: Edit(int(expected[row])) for row in range(10, 410)}
    assert len(lines()) == 400


@pytest.mark.slow
def test_a_killed_process_loses_no_edit_that_returned() -> None:
    labels = LabelsFile(LABELS, make_table(620))
    first, saved = 10, set()
    for edits in (1, 3, 7, 12, 20, 33):
        process = editor(first, 610)
        assert process.stdout is not None
        for _ in range(edits):
            saved.add(int(process.stdout.readline()))
        os.kill(process.pid, signal.SIGKILL)
        saved.update(map(int, process.communicate()[0].split()))
        first = max(saved) + 1
        done = labels.edits()
        assert saved <= done.keys() <= saved | {first}  # one may have been saved unseen
    labels.keep(first)
    assert sorted(path.name for path in Path().glob("labels.csv*")) == [
        "labels.csv",
        "labels.csv.lock",
    ]
