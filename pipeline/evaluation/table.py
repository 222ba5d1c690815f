"""The results table as text: for a terminal, a pipe and Markdown."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.evaluation.result import Result
from pipeline.text import printable

if TYPE_CHECKING:
    from rich.table import Table

GAP = 2  # spaces between two columns
MAX_PARAMS, MAX_STATUS = 28, 40  # characters; results.csv has the full text


@dataclass(frozen=True)
class Column:
    """A column of the table; a narrow terminal omits the least important ones."""

    title: str
    cell: Callable[[Result], str]
    importance: int
    is_text: bool = False


def percent(share: float) -> str:
    """Return 0.9745 as '97.5'; empty for NaN."""
    return "" if math.isnan(share) else f"{100 * share:.1f}"


def _decimals(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _significant(value: float) -> str:
    """Return two significant digits, without an exponent: <0.001, 0.042, 1.3, 24."""
    if math.isnan(value):
        return ""
    if value < 0.001:
        return "<0.001"
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


def _probability(value: float) -> str:
    return "<0.001" if value < 0.001 else _decimals(value)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def _test(result: Result) -> str:
    """Return ``96.8 ± 0.4 (94.9–98.0)``, or why there is no accuracy."""
    if result.status:
        return _cut(printable(result.status), MAX_STATUS)
    spread = "" if math.isnan(result.test_spread) else f" ± {percent(result.test_spread)}"
    interval = f"{percent(result.test_low)}–{percent(result.test_high)}"
    return f"{percent(result.test_accuracy)}{spread} ({interval})"


def _balanced(result: Result) -> str:
    """Return the balanced accuracy, empty where it equals the accuracy."""
    balanced = percent(result.balanced_accuracy)
    return "" if balanced == percent(result.test_accuracy) else balanced


def _verdict(result: Result) -> str:
    return f"{result.verdict} *" if result.recommended else result.verdict


# shown only where they distinguish rows, in this order
IDENTITY = (
    Column("base", lambda result: printable(result.base), 9, is_text=True),
    Column("layer", lambda result: printable(result.layer), 9, is_text=True),
    Column("size", lambda result: str(result.image_size), 9),
    Column("fingerprint", lambda result: result.fingerprint, 9, is_text=True),
    Column("cache", lambda result: result.cache, 9, is_text=True),
    Column("views", lambda result: str(result.views), 9),
)
COLUMNS = (
    Column("head", lambda result: printable(result.head), 10, is_text=True),
    Column("input", lambda result: result.input, 6, is_text=True),
    Column("params", lambda result: _cut(result.params, MAX_PARAMS), 5, is_text=True),
    Column("train %", lambda result: percent(result.train_accuracy), 4),
    Column("val %", lambda result: percent(result.validation_accuracy), 8),
    Column("verdict", _verdict, 9, is_text=True),
    Column("test % (95 %)", _test, 10),
    Column("p (Holm)", lambda result: _probability(result.p_holm), 3),
    Column("balanced %", _balanced, 7),
    Column("F1 %", lambda result: percent(result.macro_f1), 2),
    Column("AUC", lambda result: _decimals(result.roc_auc), 3),
    Column("log loss", lambda result: _decimals(result.log_loss), 3),
    Column("Brier", lambda result: _decimals(result.brier), 1),
    Column("ECE %", lambda result: percent(result.ece), 2),
    Column("top-5 %", lambda result: percent(result.top5_accuracy), 7),
    Column("fit s", lambda result: _significant(result.fit_seconds), 4),
    Column("ms/image", lambda result: _significant(result.predict_ms), 1),
    Column("parameters", lambda result: f"{result.parameters:,}" if result.fits else "", 1),
)


def columns_of(results: Sequence[Result]) -> list[Column]:
    """Return the identity columns that distinguish rows, and the others that are not empty."""
    identity: list[Column] = []
    kinds = 1
    for column in IDENTITY:
        columns = [*identity, column]
        kinds_with = len({tuple(each.cell(result) for each in columns) for result in results})
        if kinds_with > kinds:
            identity, kinds = columns, kinds_with
    return identity + [column for column in COLUMNS if any(map(column.cell, results))]


def explain_views(results: Sequence[Result]) -> str:
    """Return sentences on the use of augmented views, each after a space; empty without views."""
    views, tta = (sorted({getattr(result, of) for result in results}) for of in ("views", "tta"))
    text = ""
    if any(views):
        text += (
            f" Heads are trained on each training image and {' or '.join(map(str, views))} "
            f"augmented views of it; train accuracy is of unaugmented images."
        )
    if any(tta):
        text += (
            f" Probabilities on validation and test are means over each image and "
            f"{' or '.join(map(str, tta))} augmented views of it."
        )
    return text


def _width(column: Column, results: Sequence[Result]) -> int:
    return max(len(column.title), *(len(column.cell(result)) for result in results))


def fit_columns(results: Sequence[Result], width: int) -> list[Column]:
    """Return the columns that fit a terminal of that width, without the least important."""
    columns = columns_of(results)
    widths = {column.title: _width(column, results) for column in columns}
    while len(columns) > 1 and sum(widths[each.title] + GAP for each in columns) - GAP > width:
        columns.remove(min(reversed(columns), key=lambda column: column.importance))
    return columns


def plain_table(results: Sequence[Result]) -> str:
    """Return all columns as aligned text, for a pipe or a file."""
    columns = columns_of(results)
    widths = [_width(column, results) for column in columns]
    lines = [[column.title for column in columns], ["-" * width for width in widths]]
    lines += [[column.cell(result) for column in columns] for result in results]
    return "\n".join(
        (" " * GAP)
        .join(
            cell.ljust(width) if column.is_text else cell.rjust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        )
        .rstrip()
        for line in lines
    )


def markdown_table(results: Sequence[Result]) -> str:
    """Return all columns as a Markdown table."""
    columns = columns_of(results)
    lines = [[column.title for column in columns]]
    lines.append([":--" if column.is_text else "--:" for column in columns])
    lines += [[column.cell(result).replace("|", "\\|") for column in columns] for result in results]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rich_table(results: Sequence[Result], *, width: int) -> "Table":
    """Return the columns that fit a terminal of that width, the recommended row in bold."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = fit_columns(results, width)
    missing = [column.title for column in columns_of(results) if column not in columns]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    if missing:
        table.caption = f"terminal too narrow for {', '.join(missing)}; see results.csv"
        table.caption_justify = "left"
    for column in columns:
        justify = "left" if column.is_text else "right"
        table.add_column(column.title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for result in results:
        style = "bold green" if result.recommended else ""
        table.add_row(*(Text(column.cell(result), style=style) for column in columns))
    return table
