"""The results table as text: for a terminal, a pipe and Markdown."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.evaluation.result import Result
from pipeline.evaluation.tasks import TASKS, Task
from pipeline.spec import CLASSES
from pipeline.text import printable

if TYPE_CHECKING:
    from rich.table import Table

GAP = 2  # spaces between two columns
MAX_PARAMS, MAX_STATUS = 28, 40  # characters; results.csv has the full text
NOTHING = "–"  # a number that does not apply


@dataclass(frozen=True)
class Column:
    """A column of the table: text, or a number, whose text is empty if it does not apply.

    By default the table has the columns with text in any row that ``is_shown`` accepts.
    """

    title: str
    text: Callable[[Result], str]
    is_text: bool = False
    is_shown: Callable[[Result], bool] = lambda result: True

    def cell(self, result: Result) -> str:
        return self.text(result) or ("" if self.is_text else NOTHING)


def _column_name(title: str) -> str:
    """Return the name for ``--columns``: ``test % (95 %)`` -> ``test``."""
    return re.sub(r" (%|s$|\().*", "", title.strip()).lower().replace(" ", "-").replace("_", "-")


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


def _verdict(result: Result) -> str:
    return f"{result.verdict} *" if result.recommended else result.verdict


def _is_imbalanced(result: Result) -> bool:
    return percent(result.balanced_accuracy) != percent(result.test_accuracy)


# shown only where they distinguish rows, in this order
IDENTITY = (
    Column("base", lambda result: printable(result.base), is_text=True),
    Column("layer", lambda result: printable(result.layer), is_text=True),
    Column("size", lambda result: str(result.image_size)),
    Column("fingerprint", lambda result: result.fingerprint, is_text=True),
    Column("cache", lambda result: result.cache, is_text=True),
    Column("views", lambda result: str(result.views)),
)
# the most important first: a narrow terminal omits the last
COLUMNS = (
    Column("head", lambda result: printable(result.head), is_text=True),
    Column("test % (95 %)", _test),
    Column("verdict", _verdict, is_text=True),
    Column("note", lambda result: result.note, is_text=True),
    Column("recall %", lambda result: percent(result.recall_at_5_percent_false_alarms)),
    Column("false alarms %", lambda result: percent(result.false_alarms)),
    Column("val %", lambda result: percent(result.validation_accuracy)),
    Column("balanced %", lambda result: percent(result.balanced_accuracy), is_shown=_is_imbalanced),
    Column("top-5 %", lambda result: percent(result.top5_accuracy)),
    Column("input", lambda result: result.input, is_text=True),
    Column("log loss", lambda result: _decimals(result.log_loss)),
    Column("p (Holm)", lambda result: _probability(result.p_holm)),
    Column("train %", lambda result: percent(result.train_accuracy)),
    Column("parameters", lambda result: f"{result.parameters:,}" if result.fits else ""),
    Column("params", lambda result: _cut(result.params, MAX_PARAMS), is_text=True),
    Column("fit s", lambda result: _significant(result.fit_seconds)),
    Column("ECE %", lambda result: percent(result.ece)),
    Column("AUC", lambda result: _decimals(result.roc_auc)),
    Column("F1 %", lambda result: percent(result.macro_f1)),
    Column("Brier", lambda result: _decimals(result.brier)),
    Column("ms/image", lambda result: _significant(result.predict_ms)),
    Column("coverage %", lambda result: percent(result.coverage), is_shown=lambda _: False),
    Column("kept %", lambda result: percent(result.kept_accuracy), is_shown=lambda _: False),
)


def _task_columns(task: Task) -> tuple[Column, ...]:
    """Return the columns of a task without classes: its metrics replace those of classes."""
    measure, unit = task.measure, " %" if task.in_percent else ""

    def number(column: str) -> Callable[[Result], str]:
        return lambda result: task.text(result.metrics[column])

    def with_interval(metric: str) -> Callable[[Result], str]:
        def text(result: Result) -> str:
            if result.status:
                return _cut(printable(result.status), MAX_STATUS) if metric == measure else ""
            names = [f"test_{metric}{end}" for end in ("", "_low", "_high")]
            value, low, high = (task.text(result.metrics[name], metric) for name in names)
            return f"{value} ({low}–{high})"

        return text

    others = [
        Column(f"{title}{unit}", with_interval(metric))
        for metric, title in task.titles.items()
        if metric != measure
    ]
    kept = {column.title: column for column in COLUMNS}
    return (
        kept["head"],
        Column(f"test {task.title}{unit} (95 %)", with_interval(measure)),
        kept["verdict"],
        kept["note"],
        Column(f"val {task.title}{unit}", number(f"validation_{measure}")),
        *others,
        kept["input"],
        kept["p (Holm)"],
        Column(f"train {task.title}{unit}", number(f"train_{measure}")),
        *(kept[title] for title in ("parameters", "params", "fit s", "ms/image")),
    )


COLUMNS_OF = {CLASSES: COLUMNS} | {name: _task_columns(task) for name, task in TASKS.items()}


def named_columns(names: str, task: str | None = None) -> list[Column]:
    """Return the columns of a comma list, ``head,test,log-loss``; UsageError for unknown names.

    Without a task, those of any task are known.
    """
    tables = COLUMNS_OF.values() if task is None else (COLUMNS_OF[task],)
    every = (column for columns in (*tables, IDENTITY) for column in columns)
    known = {_column_name(column.title): column for column in every}
    wanted = [_column_name(name) for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in known]:
        raise UsageError(
            f"--columns has no {printable(unknown[0])}; choose from {', '.join(known)}"
        )
    return [known[name] for name in dict.fromkeys(wanted)]


def columns_of(results: Sequence[Result]) -> list[Column]:
    """Return the identity columns that distinguish rows, and the others that are not empty."""
    identity: list[Column] = []
    kinds = 1
    for column in IDENTITY:
        columns = [*identity, column]
        kinds_with = len({tuple(each.cell(result) for each in columns) for result in results})
        if kinds_with > kinds:
            identity, kinds = columns, kinds_with
    task = results[0].task if results else CLASSES
    return identity + [
        column
        for column in COLUMNS_OF[task]
        if any(column.text(result) and column.is_shown(result) for result in results)
    ]


def legend(columns: Sequence[Column], results: Sequence[Result], *, recommends: bool) -> list[str]:
    """Return a line for each of these columns that needs one; ``recommends``: what * means."""
    star = "recommended" if recommends else "chosen on validation, but not recommended"
    if results and results[0].task != CLASSES:
        return _task_legend(columns, star)
    spread = any(not math.isnan(result.test_spread) for result in results)
    fits = "; ±: standard deviation over fits" if spread else ""
    lines = {
        "verdict": f"*: {star}; ≈ best: at most a standard error below the best on validation",
        "test": f"(95 %): 95 % interval of the accuracy on test{fits}",
        "recall": "recall: of images that are not normal, above a threshold that at most 5 % of "
        "normal validation images exceed; false alarms: normal test images above it",
        "p": "p: McNemar test against the best on test; above 0.05 the difference may be chance",
    }
    names = [_column_name(column.title) for column in columns]
    return [lines[name] for name in names if name in lines]


def _task_legend(columns: Sequence[Column], star: str) -> list[str]:
    titles = " ".join(column.title for column in columns)
    lines = {
        "verdict": f"*: {star}; ≈ best: at most a standard error below the best on validation",
        "(95 %)": "in brackets: 95 % interval on test, of bootstrap samples of the images",
        "p (Holm)": "p: paired bootstrap against the best on test; above 0.05 it may be chance",
    }
    return [line for title, line in lines.items() if title in titles]


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


def fit_columns(columns: Sequence[Column], results: Sequence[Result], width: int) -> list[Column]:
    """Return the columns that fit a terminal of that width, without the last."""
    ends = accumulate(_width(column, results) + GAP for column in columns)
    fitting = [each for each, end in zip(columns, ends, strict=True) if end - GAP <= width]
    return fitting or [*columns[:1]]


def plain_table(results: Sequence[Result], columns: Sequence[Column] = ()) -> str:
    """Return these or all columns as aligned text, for a pipe or a file."""
    columns = columns or columns_of(results)
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


def rich_table(results: Sequence[Result], columns: Sequence[Column], *, width: int) -> "Table":
    """Return the columns that fit a terminal of that width, the recommended row in bold."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    fitting = fit_columns(columns, results, width)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    if missing := [column.title for column in columns[len(fitting) :]]:
        table.caption = (
            f"terminal too narrow for {', '.join(missing)}; see results.csv, or choose --columns"
        )
        table.caption_justify = "left"
    for column in fitting:
        justify = "left" if column.is_text else "right"
        table.add_column(column.title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for result in results:
        style = "bold green" if result.recommended else ""
        table.add_row(*(Text(column.cell(result), style=style) for column in fitting))
    return table
