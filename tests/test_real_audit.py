"""Planted duplicates and wrong labels among real photographs are found. Slow."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import extract_features
from pipeline.cache.file import FeatureTable
from pipeline.evaluation.audit import Audit, AuditResult
from pipeline.evaluation.label_edits import apply_label_edits, write_suspects
from pipeline.evaluation.splits import make_splits

pytestmark = [pytest.mark.slow, pytest.mark.real_data]

COPIES = 20  # of each kind
WRONG_LABELS = 20  # among the 1,000 of train
# These two files of the set are one photograph, saved twice.
SAME_PHOTOGRAPH = {"train/dogs/dog.74.jpg", "train/dogs/dog.180.jpg"}

Planted = tuple[FeatureTable, dict[str, tuple[str, str]], set[str]]


def save_copy(kind: str, source: Path, target: Path) -> None:
    if kind == "exact":
        shutil.copyfile(source, target)
        return
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    if kind == "crop":
        left, top = round(0.025 * width), round(0.025 * height)
        image = image.crop((left, top, width - left, height - top))
    if kind == "rescale":
        image = image.resize((round(0.9 * width), round(0.9 * height)))
    image.save(target, "JPEG", quality=70 if kind == "quality" else 90)


@pytest.fixture(scope="module")
def planted(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Features of the photographs; copy -> its kind and original; paths with wrong labels."""
    root = tmp_path_factory.mktemp("planted") / "cats_and_dogs"
    shutil.copytree(assets / "data" / "cats_and_dogs", root, copy_function=shutil.copyfile)
    random = np.random.default_rng(0)
    train = sorted(
        path
        for path in root.glob("train/*/*")
        if path.relative_to(root).as_posix() not in SAME_PHOTOGRAPH
    )
    chosen = random.permutation(len(train))
    copies = {}
    for number, row in enumerate(chosen[: 4 * COPIES].tolist()):
        kind = ("exact", "quality", "crop", "rescale")[number % 4]
        target = root / "test" / train[row].parent.name / f"{kind}-{number}.jpg"
        save_copy(kind, train[row], target)
        copies[target.relative_to(root).as_posix()] = (
            kind,
            train[row].relative_to(root).as_posix(),
        )
    wrong = set()
    for row in chosen[-WRONG_LABELS:].tolist():
        other = {"cats": "dogs", "dogs": "cats"}[train[row].parent.name]
        moved = train[row].rename(root / "train" / other / train[row].name)
        wrong.add(moved.relative_to(root).as_posix())
    run = extract_features(
        root,
        base="MobileNetV2",
        image_size=160,
        pooling="avg",
        weights=assets / "weights" / "mobilenet_v2_imagenet_notop.weights.h5",
        cache_dir=root.parent / "cache",
    )
    return run.table, copies, wrong


@pytest.fixture(scope="module")
def audited(planted: Planted) -> AuditResult:
    table = planted[0]
    (layer,) = table.layers
    splits = make_splits(table.columns, table.classes)
    return Audit(table=table, layer=layer, splits=splits).findings


def test_planted_duplicates_are_found_with_few_false_alarms(
    planted: Planted, audited: AuditResult
) -> None:
    table, copies, _ = planted
    findings = audited
    paths = [path.decode() for path in table.columns.paths.tolist()]
    pairs = {frozenset((paths[p.first], paths[p.second])): p for p in findings.duplicates}
    for kind in ("exact", "quality", "crop", "rescale"):
        planted_pairs = [
            frozenset((copy, origin)) for copy, (way, origin) in copies.items() if way == kind
        ]
        recalled = [pairs.pop(pair) for pair in planted_pairs if pair in pairs]
        print(f"{kind}: {len(recalled)} of {len(planted_pairs)}")
        assert len(recalled) == COPIES
        assert all(pair.across for pair in recalled)
        assert all(pair.exact == (kind == "exact") for pair in recalled)
    false = [set(pair) for pair in pairs if set(pair) != SAME_PHOTOGRAPH]
    print(f"false alarms: {len(false)} of {len(table):,} images")
    assert len(false) <= 2
    assert f"{4 * COPIES} test images have duplicates in train" in findings.notices[0]
    assert f"(exact: {COPIES}, near: {3 * COPIES})" in findings.notices[0]


def test_planted_label_errors_are_among_the_first_suspects(
    planted: Planted, audited: AuditResult
) -> None:
    table, _, wrong = planted
    first = [table.columns.paths[each.row].decode() for each in audited.suspects[:40]]
    recalled = wrong & set(first)
    print(f"{len(recalled)} of {len(wrong)} wrong labels and {40 - len(recalled)} false alarms in")
    print(f"the first 40; in the first 20 {len(wrong & set(first[:20]))}")
    assert len(recalled) >= 15


def test_the_edited_file_corrects_the_labels(
    planted: Planted, audited: AuditResult, tmp_path: Path
) -> None:
    table, _, wrong = planted
    path = tmp_path / "suspects.csv"
    write_suspects(path, audited)
    lines = path.read_text("utf-8-sig").splitlines()
    for number, line in enumerate(lines):
        cells = line.split(",")
        if cells[0] in wrong:
            cells[6] = cells[3]
            lines[number] = ",".join(cells)
    path.write_text("\n".join(lines), "utf-8")
    (after,) = apply_label_edits([path], [table])
    changed = np.flatnonzero(after.columns.labels != table.columns.labels)
    assert len(changed) >= 15
    assert {table.columns.paths[row].decode() for row in changed} <= wrong
