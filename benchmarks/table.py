"""Format the results of `benchmarks.speed` as text tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.stage_one import EXTRACT
from pipeline.text import counted, duration, file_size, printable

Document = Mapping[str, Any]


def table_lines(document: Document) -> Iterator[str]:
    """Yield the lines of all tables."""
    run = document["run"]
    yield (
        f"{counted(run['cores'], 'core')}, {counted(run['rounds'], 'round')}: medians (quartiles)"
    )
    if "stage_one" in document:
        yield ""
        yield from _stage_one(document["stage_one"])
    if "stage_two" in document:
        yield ""
        yield from _stage_two(document["stage_two"])


def _stage_one(stage: Document) -> Iterator[str]:
    image = "synthetic image" if stage["drawn"] else "image"
    gflop = stage["operations_per_image"] / 1e9
    yield (
        f"stage one: {stage['base']} at {stage['image_size']} pixels, {printable(stage['layer'])}, "
        f"{gflop:.2f} GFLOP per image, {counted(stage['images'], image)}"
    )
    title = ["", "images/s", "× book", "of roofline", "error", "start-up", "peak memory"]
    yield from _aligned([title, *(_side(side) for side in stage["sides"])])
    product = stage["matrix_product_gflops"]
    yield f"roofline: matrix products reach {_spread(product, '.0f')} GFLOP/s"
    ceiling = stage["ceiling"]
    yield (
        f"{EXTRACT} with {ceiling['engine']} reaches {_spread(ceiling['reached'], '.0%')} of the "
        f"ceiling 1/(1/engine + 1/decoding), {ceiling['images_per_second']['median']:.1f} images/s"
    )
    for run, words in (("first", "first run"), ("again", "later runs")):
        command = stage["command"][run]
        yield (
            f"the whole command, {words}: {duration(command['seconds'])}, peak memory "
            f"{_memory(command['peak_bytes'])}"
        )
    for name in stage["gpus"]:
        yield f"TensorFlow computes on {printable(name)}"
    for name, reason in stage["left_out"].items():
        yield f"engine {name} is not measured: {printable(reason)}"


def _side(side: Document) -> list[str]:
    share, error = side["share_of_matrix_product"], side["relative_error"]
    return [
        side["side"],
        _spread(side["images_per_second"], ".1f"),
        _spread(side["against_book"], ".2f"),
        f"{share['median']:.0%}" if share else "",
        "" if error is None else f"{error:.0e}",
        duration(side["start_seconds"]),
        _memory(side["peak_bytes"]),
    ]


def _stage_two(stage: Document) -> Iterator[str]:
    yield (
        f"stage two: an epoch of a dense head on {stage['rows']:,} × {stage['features']:,} "
        f"synthetic features, batches of {stage['batch_size']}"
    )
    title = ["", "seconds", "times faster", "peak memory"]
    rows = [
        [
            side["side"],
            _spread(side["seconds_per_epoch"], ".3f"),
            _spread(side["times_faster"], ".2f"),
            _memory(side["peak_bytes"]),
        ]
        for side in stage["sides"]
    ]
    yield from _aligned([title, *rows])


def _spread(values: Mapping[str, float], form: str) -> str:
    """Return ``8.1 (7.9–8.2)``."""
    low, high = format(values["low"], form), format(values["high"], form)
    return f"{values['median']:{form}} ({low.removesuffix('%')}–{high})"


def _memory(count: int | None) -> str:
    return "unknown" if count is None else file_size(count)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the rows, the first column left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = (
            text.rjust(width) if index else text.ljust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *others]).rstrip()
