"""A folder, expression or file names groups; identical files join groups."""

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feature_sets import draw_columns

from pipeline.cache.file import Columns
from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.evaluation.groups import (
    GroupOf,
    check_group_rule,
    identities_of,
    parse_group_rule,
)


def columns_with(paths: list[bytes]) -> Columns:
    return replace(draw_columns([0] * len(paths)), paths=np.asarray(paths, np.bytes_))


def partition(identities: np.ndarray) -> list[int]:
    """Number groups in the order of their first rows."""
    seen: dict[bytes, int] = {}
    return [seen.setdefault(identity.tobytes(), len(seen)) for identity in identities]


def test_without_a_rule_identical_files_are_a_group() -> None:
    columns = draw_columns([0, 0, 1])
    digests = columns.digests.copy()
    digests[2] = digests[0]
    assert partition(identities_of(replace(columns, digests=digests))) == [0, 1, 0]


CLASSES = ["c", "cats", "dogs"]


@pytest.mark.parametrize("split", [b"", b"train/", b"val/", b"site/", b"site/train/"])
def test_folder_means_the_folders_below_the_class(split: bytes) -> None:
    paths = [b"cats/a/1.jpg", b"cats/a/2.jpg", b"cats/b/1.jpg", b"dogs/a/3.jpg", b"dogs/4.jpg"]
    columns = columns_with([split + path for path in paths])
    rule = parse_group_rule("folder")
    assert partition(identities_of(columns, rule, CLASSES)) == [0, 0, 1, 2, 3]


def test_folder_is_the_whole_folder_if_paths_name_no_class() -> None:
    columns = columns_with([b"a/1.jpg", b"a/2.jpg", b"b/a/3.jpg", b"4.jpg"])
    assert partition(identities_of(columns, parse_group_rule("folder"), CLASSES)) == [0, 0, 1, 2]


def test_groups_of_the_cache_are_kept_together_without_a_rule() -> None:
    groups = np.array([b"x", b"y", b"x", b""])
    columns = replace(columns_with([b"a", b"b", b"c", b"d"]), groups=groups)
    assert partition(identities_of(columns)) == [0, 1, 0, 2]
    assert partition(identities_of(columns, parse_group_rule("[ab]"))) == [0, 1, 2, 3]


def test_equal_folder_names_of_two_classes_are_two_groups() -> None:
    columns = columns_with([b"cats/1/a.jpg", b"dogs/1/b.jpg", b"cats/2/c.jpg", b"cats/1/d.jpg"])
    assert partition(identities_of(columns, parse_group_rule("folder"), CLASSES)) == [0, 1, 2, 0]
    joined = parse_group_rule(r"/([^/]+)/[^/]+$")  # from the docstring
    assert partition(identities_of(columns, joined)) == [0, 0, 1, 0]


def test_an_expression_names_groups_by_its_first_group_or_whole_match() -> None:
    columns = columns_with([b"c/obj1_a.jpg", b"c/obj1_b.jpg", b"c/obj2_a.jpg", b"d/obj2_a.jpg"])
    assert partition(identities_of(columns, parse_group_rule(r"(obj\d)_"))) == [0, 0, 1, 1]
    assert partition(identities_of(columns, parse_group_rule(r"^\w/obj\d"))) == [0, 0, 1, 2]


def test_a_file_names_groups(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_bytes("\ufeffpath,group\nc/1.jpg,한 묶음\nc/3.jpg,한 묶음\n".encode())
    columns = columns_with([b"c/1.jpg", b"c/2.jpg", b"c/3.jpg"])
    assert partition(identities_of(columns, parse_group_rule(str(table)))) == [0, 1, 0]


def test_groups_that_share_a_file_are_one() -> None:
    columns = columns_with([b"c/a/1.jpg", b"c/a/2.jpg", b"c/b/1.jpg", b"c/b/2.jpg", b"c/x/1.jpg"])
    digests = columns.digests.copy()
    digests[2] = digests[1]
    joined = identities_of(replace(columns, digests=digests), parse_group_rule("folder"), CLASSES)
    assert partition(joined) == [0, 0, 0, 0, 1]


def test_an_added_group_changes_no_other() -> None:
    paths = [b"c/%d/%d.jpg" % (number // 3, number) for number in range(30)]
    rule = parse_group_rule("folder")
    few, many = (identities_of(columns_with(paths[:count]), rule, CLASSES) for count in (15, 30))
    assert [each.tobytes() for each in few] == [each.tobytes() for each in many[:15]]


def test_invalid_rules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="regular expression"):
        parse_group_rule("(")
    with pytest.raises(UsageError, match=r"matches none of 1 image; the first is c/1\.jpg"):
        identities_of(columns_with([b"c/1.jpg"]), parse_group_rule("folder"), CLASSES)
    with pytest.raises(NoInputError, match="cannot be read"):
        parse_group_rule(str(tmp_path / "gone.csv"))


def group_file(folder: Path, text: str) -> GroupOf:
    (folder / "groups.csv").write_text(text, "utf-8")
    return parse_group_rule(str(folder / "groups.csv"))


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffpath;group\r\n곰/1.jpg;a\r\n곰/3.jpg;a\r\n",
        "Path\tGroup\tremark\n곰/1.jpg\ta\n곰/3.jpg\ta\n곰/2.jpg\t\tno group\n",
        unicodedata.normalize("NFD", "path,group\n곰/1.jpg,a\n곰/3.jpg,a\n"),
        "digest,group\n{0},a\n{2},a\n",
    ],
)
def test_formats_of_spreadsheets_and_editors_are_read(tmp_path: Path, text: str) -> None:
    columns = columns_with([f"곰/{number}.jpg".encode() for number in (1, 2, 3)])
    text = text.format(*(digest.tobytes().hex() for digest in columns.digests))
    assert partition(identities_of(columns, group_file(tmp_path, text))) == [0, 1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file;group\n", r":1 needs the columns path or digest, and group; received 'file, group'"),
        ('path,group\na,"1\n', "is not CSV: EOF inside string"),
        ("path,group\nc/1.jpg,a\n\nc/1.jpg,b\n", r":4 contradicts .*groups\.csv:2 on"),
        ("path,group\n,a\n", r":2 names no image"),
    ],
)
def test_invalid_files_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadDataError, match=message) as raised:
        identities_of(columns_with([b"c/1.jpg"]), group_file(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_a_row_that_names_no_image_of_any_cache_is_refused(tmp_path: Path) -> None:
    rule = group_file(tmp_path, "path,group\nc/1.jpg,a\nc/2.jpg,a\n")
    both = [columns_with([b"c/1.jpg", b"c/3.jpg"]), columns_with([b"c/2.jpg"])]
    check_group_rule(rule, both)
    assert partition(identities_of(both[0], rule)) == [0, 1]
    with pytest.raises(BadDataError, match=r"groups\.csv:3: no image is called c/2\.jpg; did you"):
        check_group_rule(rule, both[:1])
    check_group_rule(parse_group_rule("folder"), both)
    check_group_rule(None, both)
