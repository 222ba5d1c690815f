"""Edits of suspects.csv apply to the right rows."""

import csv
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feature_sets import draw_columns, write_cache

from pipeline.cache.file import FeatureTable, read_table
from pipeline.errors import BadDataError, NoInputError
from pipeline.evaluation.audit import AuditResult
from pipeline.evaluation.label_edits import (
    COLUMNS,
    DROPPED,
    apply_label_edits,
    read_label_edits,
    write_suspects,
)
from pipeline.evaluation.suspects import Suspect

UNEDITED = -2
CLASSES = ("cats", "dogs", "=1+1", "고양이")
PATHS = (
    b"train/cats/1.jpg",
    b"train/cats/\xff\n2.jpg",
    b"=cmd|' /C calc'!A0/3.jpg",
    b'-dogs/a,b;"c".jpg',
    "고양이/4.jpg".encode(),
    b"train/cats/copy of 1.jpg",
    b"train/cats/1.jpeg",
    b"@x/'7.jpg",
)


@pytest.fixture
def table(tmp_path: Path) -> FeatureTable:
    labels = [0, 0, 2, 1, 3, 0, 0, 1]
    columns = replace(draw_columns(labels), paths=np.array(PATHS))
    keys = columns.digests.copy()
    keys[5] = keys[0]  # one file under two names
    columns = replace(columns, digests=keys)
    return read_table(
        write_cache(tmp_path / "set.h5", labels=labels, classes=CLASSES, columns=columns)
    )


def suspects_file(table: FeatureTable, path: Path = Path("suspects.csv")) -> Path:
    suspects = tuple(
        Suspect(
            row=row,
            label=int(table.columns.labels[row]),
            suggested=1,
            label_probability=0.01,
            suggested_probability=0.98,
        )
        for row in range(len(table))
    )
    write_suspects(
        path,
        AuditResult(
            table=table, layer="block5_pool", duplicates=(), suspects=suspects, learning_curve=None
        ),
    )
    return path


def edited(text: str | bytes) -> Path:
    path = Path("edits.csv")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def edits_of(path: Path, table: FeatureTable) -> np.ndarray:
    (edits,) = read_label_edits(path, [table])
    return np.array([edits.get(row, UNEDITED) for row in range(len(table))])


def after_edits(table: FeatureTable, *texts: str) -> FeatureTable:
    paths = []
    for number, text in enumerate(texts):
        paths.append(Path(f"round{number}.csv"))
        paths[-1].write_text(text)
    (after,) = apply_label_edits(paths, [table])
    return after


def records(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def hexadecimal(table: FeatureTable, row: int) -> str:
    return table.columns.digests[row].tobytes().hex()


def test_an_unedited_file_changes_nothing(table: FeatureTable) -> None:
    assert (edits_of(suspects_file(table), table) == UNEDITED).all()


def test_suspects_are_written_for_spreadsheets_one_per_line(table: FeatureTable) -> None:
    content = suspects_file(table).read_bytes()
    assert content.startswith(b"\xef\xbb\xbf" + ",".join(COLUMNS).encode())
    assert content.count(b"\n") == 1 + len(table)


@pytest.mark.parametrize("matched_by", ["digest", "path"])
def test_every_row_round_trips(table: FeatureTable, matched_by: str) -> None:
    path = Path("edits.csv")
    for row in range(len(PATHS)):
        written = records(suspects_file(table))
        written[row] |= {"drop": "yes"} | ({"digest": ""} if matched_by == "path" else {})
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(written)
        copies = {0, 5} if matched_by == "digest" and row in (0, 5) else {row}
        assert set(np.flatnonzero(edits_of(path, table) == DROPPED).tolist()) == copies


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_can_be_the_new_label_as_written(table: FeatureTable, name: str) -> None:
    label = CLASSES.index(name)
    shown = next(
        record["label"]
        for record, own in zip(
            records(suspects_file(table)), table.columns.labels.tolist(), strict=True
        )
        if own == label
    )
    for spelling in {name, shown}:
        edits = edits_of(edited(f"path,new_label\n{PATHS[6].decode()},{spelling}\n"), table)
        assert edits[6] == label


def test_applied_edits_relabel_and_drop_rows_with_their_features(table: FeatureTable) -> None:
    text = (
        f"digest,new_label,drop\n{hexadecimal(table, 0)},dogs,\n{hexadecimal(table, 3)},,x\n"
        f"{hexadecimal(table, 4)},,\n"
    )
    (after,) = apply_label_edits([edited(text)], [table])
    kept = [0, 1, 2, 4, 5, 6, 7]
    assert after.columns.labels.tolist() == [1, 0, 2, 3, 1, 0, 1]  # both copies of the file
    assert after.columns.paths.tolist() == [PATHS[row] for row in kept]
    np.testing.assert_array_equal(
        after.features("block5_pool"), table.features("block5_pool")[kept]
    )
    assert table.columns.labels[0] == 0  # the argument is unchanged


def test_a_path_without_digest_means_that_file_and_not_its_copies(table: FeatureTable) -> None:
    edits = edits_of(edited("path,drop\ntrain/cats/copy of 1.jpg,yes\n"), table)
    assert np.flatnonzero(edits == DROPPED).tolist() == [5]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffpath;new_label\r\ntrain/cats/1.jpg;dogs\r\n",  # Excel, in most of Europe
        "path\tnew_label\ntrain/cats/1.jpg\tdogs",
        'Path , NEW_LABEL,remark\n"train/cats/1.jpg", dogs ,"a\nb"\n\n',
        "new_label,drop,path\ndogs,no,train/cats/1.jpg\n",
        "path,new_label\ntrain/cats/1.jpeg\ntrain/cats/1.jpg,dogs\n",  # a short line
    ],
)
def test_formats_of_spreadsheets_and_editors_are_read(table: FeatureTable, text: str) -> None:
    (after,) = apply_label_edits([edited(text)], [table])
    assert after.columns.labels.tolist() == [1, 0, 2, 1, 3, 0, 0, 1]


def test_a_decomposed_name_is_the_same_name(table: FeatureTable) -> None:
    name = unicodedata.normalize("NFD", "고양이")
    assert edits_of(edited(f"path,new_label\n{name}/4.jpg,{name}\n"), table)[4] == 3
    assert edits_of(edited(f"path,drop\n{name}/4.jpg,yes\n"), table)[4] == DROPPED


@pytest.mark.parametrize("answer", ["yes", "x", "1", "TRUE", " Yes "])
def test_drop_takes_several_words(table: FeatureTable, answer: str) -> None:
    assert edits_of(edited(f"path,drop\ntrain/cats/1.jpg,{answer}\n"), table)[0] == DROPPED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,new_label\ntrain/cats/1.jpg,dgos",
            r"edits\.csv:2: dgos is not .*mean dogs\?",
        ),
        (
            "path,new_label\n\ntrain/cats/1.jpg,horse",
            ":3: horse is not a class; .*are cats",
        ),
        ("path,new_label\ntrain/cat/1.jpg,dogs", r":2: no image is called .*mean train/cats/1\.jp"),
        ("path,drop,new_label\ntrain/cats/1.jpg,x,dogs", ":2 both drops and relabels"),
        (
            "path,drop\ntrain/cats/1.jpg,maybe",
            ":2: drop: expected yes or empty; received 'maybe'",
        ),
        ("path,drop\n,yes", ":2 names no image"),
        ("digest,drop\nabc,yes", ":2: no image has the digest abc"),
        ("digest,drop\n" + 64 * "0" + ",yes", ":2: no image has the digest 0"),
        ("file,drop\na,yes", r":1 needs the columns path or digest.*'file, drop'"),
        ("path,label\na,yes", ":1 needs the columns"),
        ('path,drop\n"a,yes', "is not CSV: EOF inside string"),
        (b"path,drop\ntrain/cats/\xff2.jpg,yes", r":2 is not UTF-8.*digest"),
        ("path,new_label\n".encode("utf-16") + b"\0", ":2 is not UTF-8"),
        ("path,drop\ntrain/cats/1.jpg,what".encode("utf-16"), ":2: drop: expected yes or empty"),
        (
            "path,new_label\ntrain/cats/1.jpg,dogs\ntrain/cats/1.jpg,cats",
            r":3 contradicts edits\.csv:2 on train/cats/1\.jpg",
        ),
        (
            "path,new_label,drop\ntrain/cats/1.jpg,dogs,\ntrain/cats/1.jpg,,x",
            r":3 contradicts edits\.csv:2",
        ),
    ],
)
def test_invalid_edits_are_refused_with_their_line(
    table: FeatureTable, text: str | bytes, message: str
) -> None:
    with pytest.raises(BadDataError, match=message) as raised:
        read_label_edits(edited(text), [table])
    assert "\n" not in str(raised.value)


def test_a_repeated_edit_is_accepted(table: FeatureTable) -> None:
    line = "train/cats/1.jpg,dogs\n"
    assert edits_of(edited("path,new_label\n" + 2 * line), table)[0] == 1


def test_a_missing_file_is_refused(table: FeatureTable) -> None:
    with pytest.raises(NoInputError, match="is empty"):
        read_label_edits(edited(""), [])
    with pytest.raises(NoInputError, match=r"--labels nowhere\.csv cannot be read"):
        read_label_edits(Path("nowhere.csv"), [table])


def rows_of(table: FeatureTable, rows: list[int]) -> FeatureTable:
    places = np.array(rows)
    return replace(table, columns=table.columns.take(places), file_rows=table.file_rows[places])


def test_an_image_need_not_be_in_every_cache(table: FeatureTable) -> None:
    tables = [rows_of(table, [0, 1, 2, 3, 4]), rows_of(table, [7, 6, 3, 2, 4, 1])]
    text = "path,new_label,drop\ntrain/cats/1.jpg,dogs,\n-dogs/a,,\n@x/'7.jpg,,yes\n"
    first, second = apply_label_edits([edited(text)], tables)
    assert first.columns.labels.tolist() == [1, 0, 2, 1, 3]
    assert second.columns.paths.tolist() == [PATHS[row] for row in (6, 3, 2, 4, 1)]
    with pytest.raises(BadDataError, match=r"edits\.csv:2: no image is called train/cats/9\.jpg"):
        apply_label_edits([edited("path,drop\ntrain/cats/9.jpg,yes\n")], tables)


def test_a_second_file_adds_to_the_first_and_goes_before_it(table: FeatureTable) -> None:
    first = "path,new_label,drop\ntrain/cats/1.jpg,dogs,\ntrain/cats/1.jpeg,,yes\n@x/'7.jpg,,x\n"
    second = "path,new_label\ntrain/cats/1.jpeg,dogs\ntrain/cats/copy of 1.jpg,dogs\n"
    assert after_edits(table, first, second).columns.labels.tolist() == [1, 0, 2, 1, 3, 1, 1]
    assert after_edits(table, second, first).columns.labels.tolist() == [1, 0, 2, 1, 3, 1]


def test_a_class_without_images_is_removed(
    table: FeatureTable, caplog: pytest.LogCaptureFixture
) -> None:
    after = after_edits(table, f"digest,drop\n{hexadecimal(table, 2)},yes\n")
    assert after.classes == ("cats", "dogs", "고양이")
    assert after.columns.labels.tolist() == [0, 0, 1, 2, 0, 0, 1]
    assert "--labels drops every image of =1+1; removed from the classes" in caplog.text


def test_a_class_with_images_in_one_cache_stays_in_all(table: FeatureTable) -> None:
    tables = [rows_of(table, [0, 2, 3]), rows_of(table, [0, 2, 3, 4])]
    edits = edited("path,drop\n고양이/4.jpg,no\ntrain/cats/1.jpg,yes\n")
    for after in apply_label_edits([edits], tables):
        assert after.classes == ("dogs", "=1+1", "고양이")
        assert after.columns.labels.tolist()[:2] == [1, 0]


def test_a_file_that_drops_everything_is_refused(table: FeatureTable) -> None:
    rows = "".join(f"{hexadecimal(table, row)},yes\n" for row in range(len(table)))
    path = edited(f"digest,drop\n{rows}")
    with pytest.raises(BadDataError, match=r"--labels edits\.csv drops every image of .*set\.h5"):
        apply_label_edits([path], [table])
