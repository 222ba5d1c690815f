"""Data of the report's galleries: the map, mistakes, likely label errors, duplicates."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import FeatureTable
from pipeline.evaluation.audit import AuditResult, tolerate
from pipeline.evaluation.duplicates import DuplicatePair, duplicate_sets
from pipeline.evaluation.result import Comparison, Outcome
from pipeline.evaluation.rows import read_input
from pipeline.evaluation.table import percent
from pipeline.images.scan import SPLIT_NAMES
from pipeline.models.heatmaps import Heatmap, heatmaps, maps_layer
from pipeline.report.markup import name_text, render
from pipeline.report.plots import GLYPHS, POINTS, STYLES, draw_dots, inline_svg
from pipeline.report.thumbnails import read_thumbnails
from pipeline.spec import CLASSES
from pipeline.text import counted

MAX_POINTS = 2000  # more hide each other
PICTURE_COLUMNS, PICTURE_ROWS = 13, 8  # of a grid: one picture per cell, so that none overlap
MAX_MISTAKES, MAX_SUSPECTS, MAX_GROUPS = 24, 40, 20
MAX_PER_GROUP = 4  # more pictures of a group show nothing new
CELL, PICTURE = 80, 54  # sides of a cell of the map and of its picture, in points
MARGIN = 26  # around the map, for the outermost dots

log = logging.getLogger("pipeline")

Rows = npt.NDArray[np.int64]
Points = npt.NDArray[np.float64]


def feature_map(findings: AuditResult) -> dict[str, Any]:
    """Plot two principal components of pooled features: a dot per image, and some pictures."""
    table, classes = findings.table, findings.table.classes
    rows = spread_rows(table.columns.labels)
    points, (first, second) = pca_points(read_input(table, findings.layer, rows, "pooled"))
    labels = table.columns.labels[rows]
    # by class; more would look alike
    is_styled = table.task == CLASSES and len(classes) <= STYLES
    size = np.array([PICTURE_COLUMNS * CELL, PICTURE_ROWS * CELL])
    shown = counted(len(rows), "image")
    if len(rows) < len(table):
        shown = f"{len(rows):,} of {len(table):,} images"
    text = name_text(
        f"Principal component analysis (PCA) of the {findings.layer} features, pooled, of "
        f"{shown}: images close to each other look similar to the heads. "
        f"The two axes explain {percent(first + second)} % of the variance ({percent(first)} and "
        f"{percent(second)} %), so a head may separate images that overlap here."
    )
    chosen, middles = choose_pictures(points)
    thumbnails = read_thumbnails(table, rows[chosen].tolist())
    pictures = []
    for index, middle in zip(chosen.tolist(), middles, strict=True):
        row, label = int(rows[index]), int(labels[index])
        left, top = MARGIN + middle * size - PICTURE / 2
        picture = {
            "class": classes[label] if table.task == CLASSES else "image",
            "path": table.columns.paths[row],
            "address": thumbnails[row].address,
            "left": left,
            "top": top,
            "style": f"s{label}" if is_styled else "plain",
            "glyph": GLYPHS[label] if is_styled else "",
        }
        if picture["address"]:
            pictures.append(picture)
    width, height = ((size + 2 * MARGIN) / POINTS).tolist()
    drawing = inline_svg(
        lambda axes: draw_dots(axes, MARGIN + points * size, labels, is_styled=is_styled),
        label=f"Map of the features. {text}",
        size=(width, height),
        layout="bare",
        overlay=render("map_pictures.html", pictures=pictures, side=PICTURE),
    )
    return {
        "text": text,
        "missing": sorted({each.reason for each in thumbnails.values() if each.reason}),
        "drawing": drawing,
        "legend": list(zip(GLYPHS, classes, strict=False)) if is_styled else [],
    }


def mistakes(comparison: Comparison, findings: AuditResult) -> dict[str, Any] | None:
    """Show the test images that the head misclassifies, the most confident mistakes first."""
    test, classes = comparison.shown.test, comparison.classes
    wrong = np.flatnonzero(~test.correct)
    if not len(wrong):
        return None
    shown = wrong[np.argsort(-test.scores[wrong].max(axis=1), kind="stable")][:MAX_MISTAKES]
    rows, found = test.rows[shown].tolist(), []
    with tolerate("the heat maps of the mistakes", log.warning):
        found = explain(comparison.shown, findings.table, rows, test.predicted[shown].tolist())
    images = read_images(findings.table, rows, dict(zip(rows, found, strict=False)))
    for image, index in zip(images, shown.tolist(), strict=True):
        predicted, label = test.predicted[index], test.labels[index]
        image["classes"] = [
            ("predicted", classes[predicted], test.scores[index, predicted]),
            ("labelled", classes[label], test.scores[index, label]),
        ]
    method = found[0].method if found else ""
    return {"wrong": len(wrong), "count": len(test), "images": images, "method": method}


def explain(
    outcome: Outcome, table: FeatureTable, rows: Sequence[int], numbers: Sequence[int]
) -> list[Heatmap]:
    """Return the heat map of a class for each row, or none if the maps are not cached.

    None after folds, too: the classifier that made a mistake was not kept.
    """
    bundle = outcome.bundle
    if bundle is None or outcome.folds or len(table.layers.get(maps_layer(bundle), ())) != 3:
        return []
    maps = table.features(maps_layer(bundle), np.asarray(rows))
    return heatmaps(bundle, maps, numbers)


def suspects(findings: AuditResult) -> dict[str, Any] | None:
    """Show the images whose labels are likely wrong."""
    classes, shown = findings.table.classes, findings.suspects[:MAX_SUSPECTS]
    if not shown:
        return None
    images = read_images(findings.table, [each.row for each in shown])
    for image, each in zip(images, shown, strict=True):
        image["classes"] = [
            ("labelled", classes[each.label], each.label_probability),
            ("predicted", classes[each.suggested], each.suggested_probability),
        ]
    return {"count": len(findings.suspects), "images": images}


def duplicates(comparison: Comparison, findings: AuditResult) -> dict[str, Any] | None:
    """Show groups of duplicates: those across splits or folds first, then the largest."""
    table, pairs = findings.table, findings.duplicates
    parts = "folds" if comparison.shown.folds else "splits"
    group_of = duplicate_sets(pairs, len(table))
    pairs_of: dict[int, list[DuplicatePair]] = {}
    for pair in pairs:
        pairs_of.setdefault(int(group_of[pair.first]), []).append(pair)
    groups = [(np.flatnonzero(group_of == key).tolist(), each) for key, each in pairs_of.items()]
    if not groups:
        return None
    groups.sort(key=lambda group: (not _is_across(group[1]), -len(group[0])))
    shown = []
    for rows, group_pairs in groups[:MAX_GROUPS]:
        images = read_images(table, rows[:MAX_PER_GROUP])
        for image, row in zip(images, rows, strict=False):
            image["split"] = SPLIT_NAMES[table.columns.splits[row]] if parts == "splits" else ""
        shown.append({"images": images, "text": _describe_group(len(rows), group_pairs, parts)})
    return {
        "images": sum(len(rows) for rows, _ in groups),
        "count": len(groups),
        "across": sum(_is_across(group_pairs) for _, group_pairs in groups),
        "parts": parts,
        "groups": shown,
    }


def _is_across(pairs: Sequence[DuplicatePair]) -> bool:
    return any(pair.across for pair in pairs)


def _describe_group(count: int, pairs: Sequence[DuplicatePair], parts: str) -> str:
    text = "identical files"
    if not all(pair.exact for pair in pairs):
        text = f"near-duplicates, similarity {min(pair.similarity for pair in pairs):.3f}"
        text += " or more" if count > 2 else ""
    if _is_across(pairs):
        text += f", in different {parts}"
    if count > MAX_PER_GROUP:
        text += f"; {count - MAX_PER_GROUP:,} more not shown"
    return f"{counted(count, 'image')}: {text}" if count > 2 else text


def read_images(
    table: FeatureTable, rows: Sequence[int], explained: Mapping[int, Heatmap] | None = None
) -> list[dict[str, Any]]:
    thumbnails = read_thumbnails(table, rows, explained)
    return [{"path": table.columns.paths[row], "thumbnail": thumbnails[row]} for row in rows]


def spread_rows(labels: Rows, most: int = MAX_POINTS) -> Rows:
    """Return at most ``most`` rows (n,), ascending, spread evenly over the classes."""
    by_class = np.argsort(labels, kind="stable")
    if len(labels) > most:
        by_class = by_class[np.linspace(0, len(labels) - 1, most).round().astype(np.int64)]
    return np.sort(by_class)


def pca_points(features: npt.NDArray[np.float32]) -> tuple[Points, tuple[float, float]]:
    """Reduce features (n, D), n at least 3, to two principal components.

    Returns points (n, 2), 99 % of each axis in 0 … 1, and the share of the variance that each axis
    explains.
    """
    from sklearn.decomposition import PCA

    # ARPACK needs three columns
    wide = np.pad(features, ((0, 0), (0, max(0, 3 - features.shape[1]))))
    if (wide == wide[0]).all():
        return np.full((len(wide), 2), 0.5), (0.0, 0.0)
    components = PCA(2, svd_solver="arpack", random_state=0)
    points = components.fit_transform(wide.astype(np.float64))
    first, second = components.explained_variance_ratio_.tolist()
    low, high = np.quantile(points, (0.005, 0.995), axis=0)
    points = (points - low) / np.where(high > low, high - low, 1)
    return points.clip(-0.02, 1.02), (first, second)


def choose_pictures(points: Points) -> tuple[Rows, Points]:
    """Return the point nearest to the middle of each grid cell (m,), and the middles (m, 2)."""
    grid = np.array([PICTURE_COLUMNS, PICTURE_ROWS])
    scaled = points.clip(0, 1 - 1e-9) * grid
    cells = np.floor(scaled)
    distance = np.square(scaled - cells - 0.5).sum(axis=1)
    order = np.argsort(distance, kind="stable")
    _, first = np.unique(cells[order] @ (1, PICTURE_COLUMNS), return_index=True)
    chosen = np.sort(order[first])
    return chosen, (cells[chosen] + 0.5) / grid
