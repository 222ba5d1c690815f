"""The audit finds planted duplicates and wrong labels, and reports no merely similar pictures."""

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feature_sets import SPEC, draw_columns, write_cache

from pipeline.cache.file import read_table
from pipeline.evaluation.audit import Audit, AuditResult
from pipeline.evaluation.audit_features import audit_input
from pipeline.evaluation.duplicates import MAX_PAIRS, duplicate_sets, find_duplicates
from pipeline.evaluation.splits import make_splits
from pipeline.evaluation.suspects import (
    MAX_TRAINING_ROWS,
    Suspect,
    find_doubtful,
    find_suspects,
    out_of_fold,
    rank_suspects,
)

COUNT = 600


def draw(count: int = COUNT, width: int = 64, seed: int = 0) -> np.ndarray:
    """Features of similar pictures: one large shared component, many small ones."""
    random = np.random.default_rng(seed)
    shared = random.normal(size=(count, 1)) * random.normal(size=(1, width)) * 5
    return (shared + random.normal(size=(count, width)) + 3).astype(np.float32)


def digests(count: int, salt: str = "") -> np.ndarray:
    names = [hashlib.sha256(f"{salt}{row}".encode()).digest() for row in range(count)]
    return np.frombuffer(b"".join(names), "V32")


def splits_of(count: int) -> np.ndarray:
    return np.resize(np.array([1, 1, 2, 3], np.uint8), count)


def rows_of(pairs: list) -> set[tuple[int, int]]:
    return {(pair.first, pair.second) for pair in pairs}


def test_slightly_changed_copies_are_found_and_nothing_else() -> None:
    features = draw()
    assert find_duplicates(features, digests(COUNT), splits_of(COUNT)) == []
    noise = np.random.default_rng(1).normal(size=(30, 64)).astype(np.float32)
    features[300:330] = features[:30] + 0.1 * noise
    pairs = find_duplicates(features, digests(COUNT), splits_of(COUNT))
    assert rows_of(pairs) == {(row, row + 300) for row in range(30)}
    assert all(not pair.exact and 0.95 < pair.similarity < 1 for pair in pairs)


def test_all_pairs_of_a_group_of_near_copies_are_found() -> None:
    features, copies = draw(), 8
    random = np.random.default_rng(1)
    features[:copies] = features[0] + 0.1 * random.normal(size=(copies, 64))
    pairs = find_duplicates(features, digests(COUNT), splits_of(COUNT))
    assert rows_of(pairs) == set(itertools.combinations(range(copies), 2))


def test_identical_files_make_a_chain_in_each_split_and_a_pair_between_splits() -> None:
    keys, splits = digests(COUNT).copy(), np.ones(COUNT, np.uint8)
    keys[[10, 20, 30, 40, 50]] = keys[10]
    splits[[40, 50]] = 3
    pairs = find_duplicates(draw(), keys, splits)
    assert [(each.first, each.second, each.across) for each in pairs] == [
        (10, 40, True), (10, 20, False), (10, 30, False), (40, 50, False),
    ]  # fmt: skip
    assert all(each.exact and each.similarity == 1 for each in pairs)


def test_pairs_across_splits_come_first_then_the_most_similar() -> None:
    features = draw()
    splits = np.ones(COUNT, np.uint8)
    splits[500:] = 3
    for place, (row, copy) in enumerate([(0, 100), (1, 501), (2, 102), (3, 503)], 1):
        features[copy] = features[row]
        features[copy, :32] += 0.03 * place
    pairs = find_duplicates(features, digests(COUNT), splits)
    assert [pair.first for pair in pairs] == [1, 3, 0, 2]


def test_large_sets_are_searched_in_blocks() -> None:
    count = 5000  # the first block has 3,355 rows
    features = draw(count, width=32)
    features[[100, 4500, 4900]] = features[[50, 3000, 4000]] + 0.02
    pairs = find_duplicates(features, digests(count), splits_of(count))
    assert rows_of(pairs) == {(50, 100), (3000, 4500), (4000, 4900)}


def draw_with_copies() -> tuple[np.ndarray, np.ndarray, set[tuple[int, int]]]:
    """Return features, splits and pairs of near copies: 21 with a test image, 10 within train."""
    features, splits = draw(), np.ones(COUNT, np.uint8)
    splits[:20] = splits[580:] = 3  # before and after their copies
    features[300:310] = features[:10] + 0.05
    features[590:] = features[310:320] + 0.05
    features[400:410] = features[320:330] + 0.05  # in train both
    features[10] = features[585] + 0.05  # in test both
    pairs = [(row, row + 300) for row in range(10)] + [(row, row + 280) for row in range(310, 320)]
    return features, splits, {*pairs, (10, 585), *((row, row + 80) for row in range(320, 330))}


def test_more_rows_than_all_pairs_are_compared_of_have_the_same_duplicates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, splits, expected = draw_with_copies()
    assert rows_of(find_duplicates(features, digests(COUNT), splits)) == expected
    monkeypatch.setattr("pipeline.evaluation.duplicates.MAX_ROWS", COUNT - 1)
    notes: list[str] = []
    pairs = find_duplicates(features, digests(COUNT), splits, note=notes.append)
    assert rows_of(pairs) == expected
    assert notes == []


def test_a_search_past_its_limit_looks_for_copies_of_test_images_first_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, splits, expected = draw_with_copies()
    monkeypatch.setattr("pipeline.evaluation.duplicates.MAX_ROWS", COUNT - 1)
    monkeypatch.setattr("pipeline.evaluation.duplicates.MAX_COMPARED", 1200)  # about 60 rows
    notes: list[str] = []
    pairs = rows_of(find_duplicates(features, digests(COUNT), splits, note=notes.append))
    within_train = {(row, row + 80) for row in range(320, 330)}
    assert expected - within_train <= pairs
    assert len(pairs & within_train) < 10
    (line,) = notes
    searched = int(line.removeprefix("near duplicates were searched for in ").split()[0])
    assert (splits == 3).sum() <= searched < 100
    assert line.endswith(" of 600 images (30 s)")


def test_very_many_equal_pictures_are_searched_within_cells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = draw(1000)
    features[:500] = features[0]
    monkeypatch.setattr("pipeline.evaluation.duplicates.MAX_ROWS", 999)
    pairs = find_duplicates(features, digests(1000), splits_of(1000))
    assert len(pairs) == MAX_PAIRS
    assert all(pair.second < 500 for pair in pairs)


def test_features_of_few_dimensions_have_few_chance_pairs() -> None:
    features = np.random.default_rng(0).normal(size=(2000, 5)).astype(np.float32)
    assert len(find_duplicates(features, digests(2000), splits_of(2000))) <= 5


def test_only_the_closest_of_very_many_pairs_are_kept() -> None:
    features = np.tile(draw(3), (100, 1))  # 3 pictures, 100 files each: 14,850 pairs
    assert len(find_duplicates(features, digests(300), splits_of(300))) == MAX_PAIRS


def test_many_copies_of_one_picture_in_train_do_not_hide_copies_of_test_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.evaluation.duplicates.MAX_PAIRS", 500)
    features, splits = draw(), np.repeat(np.array([1, 3], np.uint8), COUNT // 2)
    noise = np.random.default_rng(1).normal(size=(30, 64)).astype(np.float32)
    features[-30:] = features[:30] + 0.1 * noise
    features[100:150] = features[100]  # 1,225 pairs
    pairs = find_duplicates(features, digests(COUNT), splits)
    assert rows_of([pair for pair in pairs if pair.across]) == {
        (row, COUNT - 30 + row) for row in range(30)
    }


@pytest.mark.parametrize("scale", [1, 1e-30, 1e30])
@pytest.mark.parametrize("outliers", [2, 60])
def test_a_few_huge_values_neither_make_nor_hide_duplicates(outliers: int, scale: float) -> None:
    features = draw()
    features[300:330] = features[:30] + 0.02
    rows = np.arange(100, 100 + outliers)
    features[rows, rows % 64] = np.where(rows % 2, 1e5, -1e4) * rows
    pairs = find_duplicates(features * np.float32(scale), digests(COUNT), splits_of(COUNT))
    assert rows_of(pairs) == {(row, row + 300) for row in range(30)}
    assert all(pair.similarity > 0.95 for pair in pairs)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [0, 1, 2, 19, 40])
def test_tiny_sets_have_no_duplicates(count: int) -> None:
    features = draw(count)
    assert find_duplicates(features, digests(count), splits_of(count)) == []
    assert find_duplicates(features * 0, digests(count), splits_of(count)) == []


def draw_classes(
    count: int = 500, class_count: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.resize(np.arange(class_count), count)
    features = random.normal(size=(count, 40)) + 3 * random.normal(size=(class_count, 40))[labels]
    return features.astype(np.float32), labels


Find = Callable[..., list[Suspect]]
each_search = pytest.mark.parametrize("find", [find_suspects, find_doubtful])


@each_search
def test_wrong_labels_are_the_first_suspects_with_the_right_suggestion(find: Find) -> None:
    features, labels = draw_classes()
    right = labels.copy()
    wrong = np.random.default_rng(1).choice(len(labels), 15, replace=False)
    labels[wrong] = (labels[wrong] + 1) % 3
    suspects = find(features, labels, np.arange(len(labels)), 3)
    assert {each.row for each in suspects[:15]} == set(wrong.tolist())
    assert all(each.suggested == right[each.row] for each in suspects[:15])
    assert all(each.label == labels[each.row] for each in suspects)
    assert all(each.label_probability < 0.5 < each.suggested_probability for each in suspects[:15])


def test_suspects_equal_those_of_the_paper() -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(4), 200)
    labels = random.integers(0, 4, 200)
    thresholds = [
        sum(probabilities[row, k] for row in range(200) if labels[row] == k)
        / sum(labels[row] == k for row in range(200))
        for k in range(4)
    ]
    expected = []
    for row in range(200):
        above = [probabilities[row, k] - thresholds[k] for k in range(4)]
        own = above.pop(labels[row])
        if own < max(above):
            expected.append((own - max(above), row))
    expected.sort()
    suspects = rank_suspects(probabilities, labels, evaluated=np.ones(200, bool))
    assert [each.row for each in suspects] == [row for _, row in expected[:100]]
    # the confident joint: a class whose probability reaches its threshold, not the label's
    confident = {
        row
        for row in range(200)
        if probabilities[row, labels[row]] < thresholds[labels[row]]
        and any(probabilities[row, k] >= thresholds[k] for k in range(4) if k != labels[row])
    }
    assert confident <= {row for _, row in expected}


def test_no_row_is_evaluated_by_a_model_that_trained_on_its_copy() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 300)).astype(np.float32)  # a model can memorise each
    labels = random.integers(0, 2, 200)
    twice, both = np.concatenate([features, features]), np.concatenate([labels, labels])
    together = find_suspects(twice, both, np.tile(np.arange(200), 2), 2)
    apart = find_suspects(twice, both, np.arange(400), 2)
    assert len(together) == 100  # about half of the 400, of which 100 are kept
    assert len(apart) < 60  # most copies were memorised


def test_probabilities_of_held_out_rows_do_not_depend_on_their_labels() -> None:
    features, labels = draw_classes()
    fold = np.resize(np.arange(5), len(labels))
    flipped = np.where(fold == 2, (labels + 1) % 3, labels)
    before, after = (out_of_fold(features, each, fold, 3) for each in (labels, flipped))
    np.testing.assert_array_equal(before[fold == 2], after[fold == 2])
    assert not np.array_equal(before[fold == 1], after[fold == 1])
    np.testing.assert_allclose(before.sum(axis=1), 1)


@each_search
def test_classes_of_fewer_than_five_groups_have_no_suspects_and_are_not_suggested(
    find: Find,
) -> None:
    features, labels = draw_classes()
    labels[:4] = 3
    suspects = find(features, labels, np.arange(len(labels)), 5)
    assert all(each.label != 3 and each.suggested < 3 for each in suspects)
    assert find(features[:6], labels[:6], np.arange(6), 5) == []


def test_labels_that_may_be_wrong_follow_those_that_are_likely_wrong() -> None:
    features, labels = draw_classes()
    labels[:60] = np.random.default_rng(1).integers(0, 3, 60)
    groups = np.arange(len(labels))
    few = [each.row for each in find_suspects(features, labels, groups, 3)]
    more = [each.row for each in find_doubtful(features, labels, groups, 3)]
    assert set(few[:30]) <= set(more[:40])
    # a copy with the same wrong label is no support for it
    twice, both = np.concatenate([features, features]), np.concatenate([labels, labels])
    doubled = find_doubtful(twice, both, np.tile(groups, 2), 3)
    assert {each.row % len(labels) for each in doubled[:60]} >= set(more[:20])


def test_many_rows_are_evaluated_by_models_of_fewer() -> None:
    features, labels = draw_classes(MAX_TRAINING_ROWS * 5 // 4 + 100)
    labels[7] = (labels[7] + 1) % 3
    assert find_suspects(features[:, :10], labels, np.arange(len(labels)), 3)[0].row == 7


def test_the_same_seed_gives_the_same_suspects() -> None:
    features, labels = draw_classes(200)
    labels[:40] = np.random.default_rng(0).integers(0, 3, 40)
    groups = np.arange(len(labels))
    first, second, other = (find_suspects(features, labels, groups, 3, s) for s in (0, 0, 1))
    assert first == second != other


def test_linked_rows_are_numbered_by_their_set() -> None:
    keys = digests(6).copy()
    keys[[1, 4, 5]] = keys[1]
    groups = duplicate_sets(find_duplicates(draw(6), keys, np.ones(6, np.uint8)), 6)
    assert groups[1] == groups[4] == groups[5]
    assert len(set(groups.tolist())) == 4


def audit(path: Path, *, dropped: int | None = None) -> AuditResult:
    table = read_table(path)
    splits = make_splits(table.columns, table.classes)
    if dropped is not None:
        splits = replace(splits, train=splits.train[splits.train != dropped])
    return Audit(table=table, layer="block5_pool", splits=splits).findings


def write_spoiled(path: Path, *, wrong: int = 1, scale: float = 1) -> Path:
    """500 rows; row 499 (test) is the file of row 0 (train), 498 nearly the picture of row 3.

    The labels of row 9, and of every seventh row after it, are wrong.
    """
    features, labels = draw_classes(500, 2)
    splits = np.repeat(np.array([1, 2, 3], np.uint8), [300, 100, 100])
    features[499], labels[499] = features[0], labels[0]
    features[498], labels[498] = features[3] + 0.02, labels[3]
    labels[9 : 9 + 7 * wrong : 7] ^= 1
    columns = draw_columns(labels.tolist(), splits=splits.tolist())
    keys = columns.digests.copy()
    keys[499] = keys[0]
    return write_cache(
        path,
        labels=labels.tolist(),
        layers={"block5_pool": features * np.float32(scale)},
        columns=replace(columns, digests=keys),
    )


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    return write_spoiled(tmp_path / "set.h5")


def test_the_audit_of_a_cache_gives_row_numbers_and_notices(spoiled: Path) -> None:
    findings = audit(spoiled)
    assert [(p.first, p.second, p.exact, p.across) for p in findings.duplicates] == [
        (0, 499, True, True), (3, 498, False, True),
    ]  # fmt: skip
    assert findings.suspects[0].row == 9
    assert findings.learning_curve is not None
    assert findings.learning_curve.sizes[-1] == 300
    assert findings.notices == (
        "2 test images have duplicates in train (exact: 1, near: 1): exact ones inflate every "
        "accuracy; see report.html",
    )


def test_features_that_exceed_memory_have_the_same_findings(
    spoiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = audit(spoiled)
    monkeypatch.setattr("pipeline.evaluation.audit_features.MAX_BYTES", 0)
    reduced = audit(spoiled)
    assert reduced.notices == in_memory.notices
    assert rows_of(reduced.duplicates) == rows_of(in_memory.duplicates)
    assert reduced.suspects[0].row == in_memory.suspects[0].row == 9
    assert reduced.learning_curve is not None
    assert in_memory.learning_curve is not None
    np.testing.assert_allclose(
        reduced.learning_curve.accuracies, in_memory.learning_curve.accuracies, atol=0.02
    )


def test_audit_within_little_memory_says_how_many_images_it_searched(spoiled: Path) -> None:
    table = read_table(spoiled)
    splits = make_splits(table.columns, table.classes)
    findings = Audit(table=table, layer="block5_pool", splits=splits, memory=600_000).findings
    assert (0, 499, True) in [(p.first, p.second, p.exact) for p in findings.duplicates]
    assert findings.notices[-2:] == (
        "near duplicates were searched for in 390 of 500 images (30 s)",
        "label errors were searched for in 192 of 500 images (30 s)",
    )
    assert all(0 <= each.row < 500 for each in findings.suspects)


def test_rows_in_no_split_are_not_audited(spoiled: Path) -> None:
    findings = audit(spoiled, dropped=0)
    assert [(pair.first, pair.second) for pair in findings.duplicates] == [(3, 498)]
    assert findings.notices == (
        "1 test image has a duplicate in train (exact: 0, near: 1): see report.html",
    )


def test_a_clean_set_brings_no_notice(tmp_path: Path) -> None:
    labels = [0, 1] * 100
    findings = audit(write_cache(tmp_path / "set.h5", labels=labels, shape=(2, 2, 64)))
    assert findings.duplicates == ()
    assert findings.notices == ()


def test_pixels_are_averaged_to_16_by_16(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((8, 40, 33, 3)).astype(np.float32)
    path = write_cache(
        tmp_path / "set.h5",
        labels=[0, 1] * 4,
        layers={"pixels": images},
        spec=replace(SPEC, base="pixels"),
    )
    features = audit_input(read_table(path), "pixels", np.array([5, 2])).reshape(2, 16, 16, 3)
    np.testing.assert_allclose(features[0, 0, 0], images[5, :2, :2].mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(features[1, 15, 15], images[2, 38:, 31:].mean((0, 1)), rtol=1e-5)


def test_duplicates_in_two_folds_are_noticed(tmp_path: Path) -> None:
    features = draw(120)
    features[70] = features[3] + 0.01  # in another fold
    features[4] = features[5] + 0.01  # in the same
    cache = write_cache(tmp_path / "c.h5", labels=[0, 1] * 60, layers={"block5_pool:avg": features})
    table = read_table(cache)
    splits = make_splits(table.columns, table.classes)
    folds = np.split(np.arange(120), 3)
    findings = Audit(table=table, layer="block5_pool:avg", splits=splits, folds=folds).findings
    assert [(each.first, each.second, each.across) for each in findings.duplicates] == [
        (3, 70, True),
        (4, 5, False),
    ]
    assert findings.notices == (
        "1 pair of duplicates is in two folds (exact: 0, near: 1): see report.html",
    )


@pytest.mark.parametrize("scale", [2.0**-100, 1e-30, 1e-12, 1e8, 1e12, 1e30, 2.0**100])
def test_the_scale_of_the_features_changes_no_finding(tmp_path: Path, scale: float) -> None:
    plain = audit(write_spoiled(tmp_path / "plain.h5", wrong=40))
    scaled = audit(write_spoiled(tmp_path / "scaled.h5", wrong=40, scale=scale))
    assert plain.learning_curve is not None
    assert scaled.learning_curve is not None
    assert len(plain.suspects) > 20
    assert scaled.notices == plain.notices != ()
    np.testing.assert_array_equal(scaled.learning_curve.accuracies, plain.learning_curve.accuracies)
    if np.frexp(scale)[0] == 0.5:  # a power of two rounds nothing
        assert (scaled.duplicates, scaled.suspects) == (plain.duplicates, plain.suspects)
        return
    assert rows_of(scaled.duplicates) == rows_of(plain.duplicates)
    for one, other in zip(scaled.duplicates, plain.duplicates, strict=True):
        assert one.similarity == pytest.approx(other.similarity, abs=1e-6)
    assert [each.row for each in scaled.suspects] == [each.row for each in plain.suspects]
    for suspect, expected in zip(scaled.suspects, plain.suspects, strict=True):
        assert suspect.label_probability == pytest.approx(expected.label_probability, abs=1e-3)


@pytest.mark.parametrize(
    ("step", "section", "what"),
    [
        ("find_duplicates", "duplicates", "the search for duplicates"),
        ("find_suspects", "suspects", "the search for label errors"),
        ("learning_curve", "learning", "the learning curve"),
    ],
)
def test_a_step_that_fails_leaves_a_line_and_the_other_steps(
    spoiled: Path, monkeypatch: pytest.MonkeyPatch, step: str, section: str, what: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(f"pipeline.evaluation.audit.{step}", fail)
    findings = audit(spoiled)
    line = f"{what} failed (MemoryError); the table is complete"
    assert findings.failures == {section: line}
    assert findings.notices[0] == line
    assert bool(findings.duplicates) == (section != "duplicates")
    assert bool(findings.suspects) == (section != "suspects")
    assert (findings.learning_curve is None) == (section == "learning")


def test_features_that_cannot_be_read_leave_one_line(spoiled: Path) -> None:
    table = read_table(spoiled)
    splits = make_splits(table.columns, table.classes)
    spoiled.unlink()
    findings = Audit(table=table, layer="block5_pool", splits=splits).findings
    (line,) = findings.notices
    assert line.startswith("the audit failed (")
    assert findings.failures == dict.fromkeys(("learning", "suspects", "duplicates"), line)
