"""Sections with pictures: the map, mistakes, likely label errors, duplicates."""

from collections.abc import Sequence

import numpy as np

from pipeline.cache.file import SPLIT_NAMES, FeatureTable
from pipeline.evaluation.duplicates import DuplicateGroup, group_duplicates
from pipeline.evaluation.findings import Findings
from pipeline.evaluation.result import Comparison
from pipeline.evaluation.rows import read_input
from pipeline.evaluation.table import percent
from pipeline.report.feature_map import (
    PICTURE_COLUMNS,
    PICTURE_ROWS,
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
from pipeline.report.thumbnails import read_thumbnails
from pipeline.text import counted

MOST_MISTAKES, MOST_SUSPECTS, MOST_GROUPS = 24, 40, 20
MOST_ALIKE = 4  # pictures of a group; more show nothing new
CELL, PICTURE = 80, 54  # sides of a cell of the map and of the picture in it, in the map's units
MARGIN = 26  # around the map, for the outermost dots


def map_section(comparison: Comparison, findings: Findings) -> Section:
    """The features on a plane, with pictures."""
    table, classes = findings.table, comparison.classes
    rows = spread_rows(np.arange(len(table)), table.columns.labels)
    points, (first, second) = lay_out(read_input(table, findings.layer, rows, "pooled"))
    labels = table.columns.labels[rows]
    is_styled = len(classes) <= STYLES  # by class; more would look alike
    width, height = PICTURE_COLUMNS * CELL, PICTURE_ROWS * CELL
    text = name_text(
        f"Principal component analysis (PCA) of the {findings.layer} features, pooled, of "
        f"{counted(len(rows), 'image')}: what lies close looks alike to the heads. The two "
        f"axes hold {percent(first + second)} % of the variance ({percent(first)} and "
        f"{percent(second)} %), so what overlaps here may still be told apart."
    )
    on_map = choose_pictures(points)
    thumbnails = read_thumbnails(table, rows[on_map].tolist())
    overlay = []
    for place in on_map.tolist():
        row, label = int(rows[place]), int(labels[place])
        title = f"{isolated(classes[label])}: {isolated(table.columns.paths[row])}"
        middle = cell_middle(points[place])
        if address := thumbnails[row].address:
            overlay.append(_map_picture(address, title, middle, label if is_styled else None))
    svg = inline_svg(
        lambda axes: draw_dots(axes, MARGIN + points * (width, height), labels),
        label=f"Map of the features. {text}",
        size=((width + 2 * MARGIN) / POINTS, (height + 2 * MARGIN) / POINTS),
        layout="bare",
        overlay=overlay,
    )
    entries = [
        element("li", element("span", GLYPHS[label], class_=f"s{label}"), name_of(name))
        for label, name in enumerate(classes[:STYLES])
    ]
    reasons = sorted({each.reason for each in thumbnails.values() if each.reason})
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


def _map_picture(
    address: str, title: str, middle: tuple[float, float], label: int | None
) -> Markup:
    """A picture in its grid cell, framed and marked in the style of its class."""
    left = MARGIN + middle[0] * PICTURE_COLUMNS * CELL - PICTURE / 2
    top = MARGIN + middle[1] * PICTURE_ROWS * CELL - PICTURE / 2
    box: dict[str, Content] = {
        "x": f"{left:g}",
        "y": f"{top:g}",
        "width": PICTURE,
        "height": PICTURE,
    }
    style, mark = "plain", None
    if label is not None:
        style, x, y = f"s{label}", f"{left + PICTURE:g}", f"{top + 5:g}"
        mark = element(
            "text", GLYPHS[label], x=x, y=y, text_anchor="middle", class_=f"mark {style}"
        )
    return element(
        "g",
        element("title", title),
        element("image", **box, href=address, preserveAspectRatio="xMidYMid slice"),
        element("rect", **box, class_=f"picture {style}"),
        mark,
    )


def mistakes_section(comparison: Comparison, findings: Findings) -> Section | None:
    """The test images that the head got wrong, the surest first."""
    outcome, classes = comparison.shown, comparison.classes
    test = outcome.test
    if test.correct.all():
        return None
    wrong = np.flatnonzero(~test.correct)
    shown = wrong[np.argsort(-test.scores[wrong].max(axis=1), kind="stable")][:MOST_MISTAKES]
    cards = []
    for place in shown.tolist():
        said = [("taken for", int(test.predicted[place])), ("labelled", int(test.labels[place]))]
        scores = test.scores[place]
        entries = [_said(what, classes[label], scores[label]) for what, label in said]
        cards.append((int(test.rows[place]), entries))
    text = f"{counted(len(wrong), 'test image')} of {len(test):,} classified wrongly"
    text += f", the {len(cards)} most confident of them." if len(cards) < len(wrong) else "."
    text += " With each the probabilities that the head gives."
    body = joined(element("p", text), _cards(findings.table, cards))
    return Section("mistakes", "The most confident mistakes", body)


def suspects_section(comparison: Comparison, findings: Findings) -> Section | None:
    """Rows whose label is probably wrong."""
    suspects, classes = findings.suspects, comparison.classes
    if not suspects:
        return None
    cards = [
        (
            each.row,
            [
                _said("labelled", classes[each.label], each.label_probability),
                _said("looks like", classes[each.suggested], each.suggested_probability),
            ],
        )
        for each in suspects[:MOST_SUSPECTS]
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
    body = joined(element("p", text), _cards(findings.table, cards))
    return Section("suspects", "Likely label errors", body)


def duplicates_section(comparison: Comparison, findings: Findings) -> Section | None:
    """Groups of the same picture, side by side."""
    groups, table = group_duplicates(findings.duplicates), findings.table
    if not groups:
        return None
    shown = groups[:MOST_GROUPS]
    images = counted(sum(len(group.rows) for group in groups), "image")
    across = sum(group.across for group in groups)
    text = f"{images} in {counted(len(groups), 'group')}, each of the same picture; "
    parts = "folds" if comparison.shown.folds else "splits"  # between which images are told apart
    text += (
        f"{counted(across, 'group')} across {parts}, which makes test figures look too good."
        if across
        else f"none across {parts}."
    )
    if len(shown) < len(groups):
        text += f" The first {len(shown)} are shown."
    pictures = _pictures(table, [row for group in shown for row in group.rows[:MOST_ALIKE]])
    cards = []
    for group in shown:
        copies = []
        for row in group.rows[:MOST_ALIKE]:
            split = SPLIT_NAMES[int(table.columns.splits[row])] if parts == "splits" else ""
            file = _file(table, row, note=f" ({split})" if split else None)
            copies.append(element("div", pictures[row], file))
        words = element("p", _group_text(group, parts))
        cards.append(element("li", element("div", *copies, class_="group"), words))
    body = joined(element("p", text), element("ul", *cards, class_="gallery groups"))
    return Section("duplicates", "Duplicates", body)


def _group_text(group: DuplicateGroup, parts: str) -> str:
    count = len(group.rows)
    words = "identical files"
    if not group.identical:
        words = f"nearly the same, similarity {group.similarity:.3f}"
        words += " or more" if count > 2 else ""
    if group.across:
        words += f", across {parts}"
    if count > MOST_ALIKE:
        words += f"; {count - MOST_ALIKE:,} more not shown"
    return f"{counted(count, 'image')}: {words}" if count > 2 else words


def _cards(table: FeatureTable, cards: Sequence[tuple[int, Sequence[Markup]]]) -> Markup:
    """Pictures of rows with what is said of each."""
    pictures = _pictures(table, [row for row, _ in cards])
    items = (
        element("li", pictures[row], element("dl", *said), _file(table, row)) for row, said in cards
    )
    return element("ul", *items, class_="gallery")


def _said(what: str, name: str, probability: float | None) -> Markup:
    """``taken for cats 97.1 %``."""
    chance = None if probability is None else element("dd", f"{_chance(probability)} %")
    return element("div", element("dt", what), element("dd", name_of(name)), chance)


def _chance(probability: float) -> str:
    """In percent, without a 100 or a 0 that is none."""
    if 0.9995 <= probability < 1:
        return ">99.9"
    return "<0.1" if 0 < probability < 0.0005 else percent(probability)


def _pictures(table: FeatureTable, rows: Sequence[int]) -> dict[int, Markup]:
    """Row -> its picture, or the reason why there is none."""
    return {
        row: element(
            "img", src=each.address, alt=isolated(table.columns.paths[row]), class_="picture"
        )
        if each.address
        else element("div", each.reason, class_="picture missing")
        for row, each in read_thumbnails(table, rows).items()
    }


def _file(table: FeatureTable, row: int, *, note: str | None = None) -> Markup:
    return element("p", name_of(table.columns.paths[row]), note, class_="file")
