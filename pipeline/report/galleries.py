"""Sections with pictures: the map, mistakes, likely label errors, duplicates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import SPLIT_NAMES, FeatureTable
from pipeline.evaluation.duplicates import DuplicateGroup, group_duplicates
from pipeline.evaluation.result import Comparison, Outcome
from pipeline.evaluation.rows import read_input
from pipeline.evaluation.table import percent
from pipeline.report.feature_map import (
    PICTURE_COLUMNS,
    PICTURE_ROWS,
    FeatureMap,
    cell_middle,
    choose_pictures,
    lay_out,
    spread_rows,
)
from pipeline.report.markup import (
    Content,
    Markup,
    Section,
    element,
    isolated,
    joined,
    name_of,
    name_text,
    scroll_box,
)
from pipeline.report.plots import GLYPHS, POINTS, STYLES, draw_dots, inline_svg
from pipeline.report.thumbnails import Thumbnail, read_thumbnails
from pipeline.text import counted

MOST_MISTAKES, MOST_SUSPECTS, MOST_GROUPS = 24, 40, 20
MOST_ALIKE = 4  # pictures of a group; more show nothing new
CELL, PICTURE = 80, 54  # sides of a cell of the map and of the picture in it, in the map's units
MARGIN = 26  # around the map, for the outermost dots

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """What is shown as pictures, each read once.

    Attributes
    ----------
    outcome : the one looked at.
    mistakes : places in its test predictions, the most confident first.
    groups : of duplicates.
    on_map : places in the map's rows of those with a picture there.
    thumbnails : by row of the table.
    """

    table: FeatureTable
    layer: str
    classes: Sequence[str]
    outcome: Outcome
    mistakes: Rows
    groups: Sequence[DuplicateGroup]
    feature_map: FeatureMap
    on_map: Rows
    thumbnails: Mapping[int, Thumbnail]


def make_gallery(comparison: Comparison) -> Gallery | None:
    """Choose and read all pictures; None where nothing was looked into."""
    findings, outcome = comparison.findings, comparison.shown
    if findings is None or outcome.test is None:
        return None
    table, test = findings.table, outcome.test
    wrong = np.flatnonzero(~test.correct)
    mistakes = wrong[np.argsort(-test.scores[wrong].max(axis=1), kind="stable")][:MOST_MISTAKES]
    rows = spread_rows(np.arange(len(table)), table.columns.labels)
    feature_map = lay_out(rows, read_input(table, findings.layer, rows, "pooled"))
    on_map = choose_pictures(feature_map)
    wanted = [*test.rows[mistakes].tolist(), *rows[on_map].tolist()]
    wanted += [suspect.row for suspect in findings.suspects[:MOST_SUSPECTS]]
    groups = group_duplicates(findings.duplicates)
    for group in groups[:MOST_GROUPS]:
        wanted += group.rows[:MOST_ALIKE]
    return Gallery(
        table=table,
        layer=findings.layer,
        classes=comparison.classes,
        outcome=outcome,
        mistakes=mistakes,
        groups=groups,
        feature_map=feature_map,
        on_map=on_map,
        thumbnails=read_thumbnails(table, wanted),
    )


def map_section(gallery: Gallery) -> Section:
    """The features on a plane, with pictures."""
    drawn, classes = gallery.feature_map, gallery.classes
    labels = gallery.table.columns.labels[drawn.rows]
    is_styled = len(classes) <= STYLES  # by class; more would look alike
    width, height = PICTURE_COLUMNS * CELL, PICTURE_ROWS * CELL
    first, second = drawn.explained
    text = name_text(
        f"Principal component analysis (PCA) of the {gallery.layer} features, pooled, of "
        f"{counted(len(drawn.rows), 'image')}: what lies close looks alike to the heads. The two "
        f"axes hold {percent(first + second)} % of the variance ({percent(first)} and "
        f"{percent(second)} %), so what overlaps here may still be told apart."
    )
    svg = inline_svg(
        lambda axes: draw_dots(axes, MARGIN + drawn.points * (width, height), labels),
        label=f"Map of the features. {text}",
        size=((width + 2 * MARGIN) / POINTS, (height + 2 * MARGIN) / POINTS),
        layout="bare",
        overlay=[_map_picture(gallery, place, is_styled) for place in gallery.on_map.tolist()],
    )
    entries = [
        element("li", element("span", GLYPHS[label], class_=f"s{label}"), name_of(name))
        for label, name in enumerate(classes[:STYLES])
    ]
    reasons = sorted({each.reason for each in gallery.thumbnails.values() if each.reason})
    body = joined(
        element("p", text),
        element("p", f"Some pictures are missing: {'; '.join(reasons)}.") if reasons else None,
        element(
            "figure",
            scroll_box("Map of the features", svg),
            element("ul", *entries, class_="legend") if is_styled else None,
        ),
    )
    return Section("map", "Map of the features", body)


def _map_picture(gallery: Gallery, place: int, is_styled: bool) -> Markup | None:
    """A picture in its grid cell, framed and marked in the style of its class."""
    row = int(gallery.feature_map.rows[place])
    thumbnail, columns = gallery.thumbnails[row], gallery.table.columns
    if not thumbnail.address:
        return None
    label = int(columns.labels[row])
    x, y = cell_middle(gallery.feature_map.points[place])
    left = MARGIN + x * PICTURE_COLUMNS * CELL - PICTURE / 2
    top = MARGIN + y * PICTURE_ROWS * CELL - PICTURE / 2
    box: dict[str, Content] = {
        "x": f"{left:g}",
        "y": f"{top:g}",
        "width": PICTURE,
        "height": PICTURE,
    }
    title = f"{isolated(gallery.classes[label])}: {isolated(columns.paths[row])}"
    style = f"s{label}" if is_styled else "plain"
    corner = {"x": f"{left + PICTURE:g}", "y": f"{top + 5:g}", "text_anchor": "middle"}
    return element(
        "g",
        element("title", title),
        element("image", **box, href=thumbnail.address, preserveAspectRatio="xMidYMid slice"),
        element("rect", **box, class_=f"picture {style}"),
        element("text", GLYPHS[label], **corner, class_=f"mark {style}") if is_styled else None,
    )


def mistakes_section(gallery: Gallery) -> Section | None:
    """The test images that the head got wrong, the surest first."""
    test = gallery.outcome.test
    if test is None or not len(gallery.mistakes):
        return None
    cards = []
    for place in gallery.mistakes.tolist():
        true, taken = int(test.labels[place]), int(test.predicted[place])
        scores = test.scores[place] if gallery.outcome.has_probabilities else None
        said = [
            _said("taken for", gallery.classes[taken], None if scores is None else scores[taken]),
            _said("labelled", gallery.classes[true], None if scores is None else scores[true]),
        ]
        cards.append(_card(gallery, int(test.rows[place]), said))
    wrong = len(test) - int(test.correct.sum())
    text = f"{counted(wrong, 'test image')} of {len(test):,} classified wrongly"
    text += f", the {len(cards)} most confident of them." if len(cards) < wrong else "."
    if gallery.outcome.has_probabilities:
        text += " With each the probabilities that the head gives."
    body = joined(element("p", text), element("ul", *cards, class_="gallery"))
    return Section("mistakes", "The most confident mistakes", body)


def suspects_section(comparison: Comparison, gallery: Gallery) -> Section | None:
    """Rows whose label is probably wrong."""
    suspects = comparison.findings.suspects if comparison.findings else ()
    if not suspects:
        return None
    cards = [
        _card(
            gallery,
            suspect.row,
            [
                _said("labelled", gallery.classes[suspect.label], suspect.label_probability),
                _said(
                    "looks like", gallery.classes[suspect.suggested], suspect.suggested_probability
                ),
            ],
        )
        for suspect in suspects[:MOST_SUSPECTS]
    ]
    first = f", the first {len(cards)} here" if len(cards) < len(suspects) else ""
    text = joined(
        f"{counted(len(suspects), 'image')}{first}: a classifier that never saw the image thinks "
        f"it is of another class. Not all are errors. To correct some, edit ",
        element("code", "suspects.csv"),
        " and run again with ",
        element("code", "--labels suspects.csv"),
        ".",
    )
    body = joined(element("p", text), element("ul", *cards, class_="gallery"))
    return Section("suspects", "Likely label errors", body)


def duplicates_section(gallery: Gallery) -> Section | None:
    """Groups of the same picture, side by side."""
    groups = gallery.groups
    if not groups:
        return None
    shown = groups[:MOST_GROUPS]
    images = counted(sum(len(group.rows) for group in groups), "image")
    across = sum(group.across for group in groups)
    text = f"{images} in {counted(len(groups), 'group')}, each of the same picture; "
    parts = _parts(gallery)
    text += (
        f"{counted(across, 'group')} across {parts}, which makes test figures look too good."
        if across
        else f"none across {parts}."
    )
    if len(shown) < len(groups):
        text += f" The first {len(shown)} are shown."
    cards = [_group(gallery, group) for group in shown]
    body = joined(element("p", text), element("ul", *cards, class_="gallery groups"))
    return Section("duplicates", "Duplicates", body)


def _parts(gallery: Gallery) -> str:
    """Between which parts images are told apart."""
    return "folds" if gallery.outcome.folds else "splits"


def _group(gallery: Gallery, group: DuplicateGroup) -> Markup:
    splits = np.zeros_like(gallery.table.columns.splits)  # folds take no notice of them
    if not gallery.outcome.folds:
        splits = gallery.table.columns.splits
    pictures = (
        element(
            "div",
            _picture(gallery, row),
            _file(gallery, row, split=SPLIT_NAMES[int(splits[row])] if splits[row] else None),
        )
        for row in group.rows[:MOST_ALIKE]
    )
    what = "identical files"
    if not group.identical:
        what = f"nearly the same, similarity {group.similarity:.3f}"
        if len(group.rows) > 2:
            what += " or more"
    where = f", across {_parts(gallery)}" if group.across else ""
    left = len(group.rows) - MOST_ALIKE
    more = f"; {left:,} more not shown" if left > 0 else ""
    words = f"{what}{where}{more}"
    if len(group.rows) > 2:
        words = f"{counted(len(group.rows), 'image')}: {words}"
    return element("li", element("div", *pictures, class_="group"), element("p", words))


def _card(gallery: Gallery, row: int, said: Sequence[Markup]) -> Markup:
    """A picture with what is said of it."""
    return element("li", _picture(gallery, row), element("dl", *said), _file(gallery, row))


def _said(what: str, name: str, probability: float | None) -> Markup:
    """``taken for cats 97.1 %``."""
    chance = None if probability is None else element("dd", f"{_chance(probability)} %")
    return element("div", element("dt", what), element("dd", name_of(name)), chance)


def _chance(probability: float) -> str:
    """In percent, without a 100 or a 0 that is none."""
    if 0.9995 <= probability < 1:
        return ">99.9"
    return "<0.1" if 0 < probability < 0.0005 else percent(probability)


def _picture(gallery: Gallery, row: int) -> Markup:
    thumbnail = gallery.thumbnails[row]
    if not thumbnail.address:
        return element("div", thumbnail.reason, class_="picture missing")
    path = isolated(gallery.table.columns.paths[row])
    return element("img", src=thumbnail.address, alt=path, class_="picture")


def _file(gallery: Gallery, row: int, *, split: str | None = None) -> Markup:
    path = name_of(gallery.table.columns.paths[row])
    return element("p", path, f" ({split})" if split else None, class_="file")
