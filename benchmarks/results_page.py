"""Write docs/RESULTS.md: comparison with the book, methods, effects of single changes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from scipy import stats

from benchmarks.results_steps import LAYERS, Amount
from pipeline.bases.registry import BASES
from pipeline.evaluation.statistics import wilson_interval
from pipeline.text import duration, file_size, printable

NOT_MEASURED = "not measured"

Row = Mapping[str, Any]
Answers = Mapping[str, Mapping[str, Any]]  # step -> the JSON that it printed


@dataclass(frozen=True)
class DatasetResults:
    """An image set and the answers of its steps; ``likeness``: similarity to ImageNet in words."""

    name: str
    likeness: str
    amount: Amount
    answers: Answers

    def rows(self, step: str, head: str) -> list[Row]:
        """Return the rows of a head in a step, one for each seed that was run."""
        names = [f"{self.name}/{step}-{seed}" for seed in range(self.amount.seeds)]
        answers = [self.answers[name] for name in names if name in self.answers]
        return [row for answer in answers for row in answer["rows"] if row["head"] == head]

    @property
    def test_images(self) -> int:
        return sum(self._split_counts().get("test", {}).values())

    @property
    def train_images(self) -> int:
        return sum(self._split_counts().get("train", {}).values())

    def _split_counts(self) -> Mapping[str, Mapping[str, int]]:
        for answer in self.answers.values():
            if "run" in answer:
                counts: Mapping[str, Mapping[str, int]] = answer["run"]["caches"][0]["split_counts"]
                return counts
        return {}


def make_page(sets: Sequence[DatasetResults], command: str, *, curves: str | None) -> str:
    """Return the page as Markdown; ``curves`` is the picture of fine-tuning next to the page."""
    parts = [
        "# Results",
        "The command below generates this page from runs of this project's commands. Accuracies "
        "are in per cent, on test images that no choice depends on, with the 95 % Wilson "
        "interval; with several seeds, the accuracy is their mean.",
        f"```console\n$ {command}\n```",
        *_book_comparison(sets[0]),
        *_methods(sets),
        *_differences(sets),
    ]
    if curves:
        parts += [
            "## Fine-tuning by epoch",
            "Dots: measured values; lines: the book's moving average, factor 0.8.",
            f"![Loss and accuracy of fine-tuning by epoch]({curves})",
        ]
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------ comparison with the book


def _book_comparison(measured: DatasetResults) -> Iterator[str]:
    """Compare with *Deep Learning with Python*, 5.2 and 5.3, and the posts it is based on."""
    views = measured.amount.views
    cached = measured.rows("classify-rescale-0", "dense")
    native = measured.rows("classify-native-0", "dense")
    tuned = measured.rows("finetune-0", "fine_tuned")
    frozen = measured.rows("finetune-0", "frozen_head")
    scratch = measured.rows("scratch", "scratch")
    yield "## Comparison with the book"
    yield (
        f"The book trains on 2,000 photographs of cats and dogs; this page trains on "
        f"{measured.train_images:,} and tests on {measured.test_images:,}. The book rescales "
        f"pixels by 1/255; the default here is the preprocessing that VGG16 was trained with."
    )
    epochs = measured.amount.head_epochs
    rows = [
        ("features of VGG16 at 150 pixels", "(4, 4, 512)", str(BASES["vgg16"].feature_shape)),
        ("parameters of its base", "14,714,688", f"{BASES['vgg16'].parameters:,}"),
        (
            "parameters of the head, in four tensors",
            "2,097,665",
            f"{frozen[0]['parameters']:,}" if frozen else NOT_MEASURED,
        ),
        (
            "parameters of the convnet from scratch",
            "3,453,121",
            f"{scratch[0]['parameters']:,}" if scratch else NOT_MEASURED,
        ),
        ("method one: features once, 1/255, dense head", "about 90 %", _accuracy(measured, cached)),
        ("method one with VGG16's own preprocessing", "", _accuracy(measured, native)),
        (
            "method two: end to end, augmented, frozen base",
            "about 96 %",
            _accuracy(measured, measured.rows("end_to_end", "frozen_head")),
        ),
        (
            f"method two from the cache: {views} views per image",
            "",
            _accuracy(measured, measured.rows(f"classify-native-{views}", "dense")),
        ),
        ("after fine-tuning block 5", "92 to 97 %", _accuracy(measured, tuned)),
        ("small convnet from scratch, augmented", "82 %", _accuracy(measured, scratch)),
        (
            "an epoch of the head, on a CPU",
            "under 1 s",
            _seconds([row["fit_seconds"] / epochs for row in native]),
        ),
    ]
    yield _table(("quantity", "book", "here"), rows)
    yield (
        f"The convnet from scratch trains for at most {measured.amount.scratch_epochs} epochs "
        f"(book: 100), method two for {measured.amount.end_to_end_epochs} (book: 30, on a GPU)."
    )


# ------------------------------------------------------------------------------ by method


def _methods(sets: Sequence[DatasetResults]) -> Iterator[str]:
    yield "## Methods"
    yield (
        "Extraction and training are times of the machine that generated this page, while it ran "
        "other programs; disk is the size of the cache with that number of views. The best "
        "method depends on the size of the image set and on its similarity to ImageNet."
    )
    for each in sets:
        yield (
            f"### {printable(each.name)}: {each.train_images:,} training images, {each.likeness}"
        )
        yield _table(
            ("method", "preprocessing", "views", "unfrozen", "test %", "extraction", "training",
             "disk"),
            list(_method_rows(each)),
        )  # fmt: skip
    yield "### Tens of thousands of images, similar to ImageNet or not"
    yield f"{NOT_MEASURED.capitalize()}."
    yield "### On a GPU"
    yield (
        f"{NOT_MEASURED.capitalize()}: extraction with VGG16 and EfficientNetB0, the book's second "
        "method with its 30 epochs, fine-tuning end to end."
    )


def _method_rows(each: DatasetResults) -> Iterator[Sequence[str]]:
    views = each.amount.views
    for mode, most in (("native", views), ("rescale", 2 * views)):
        for count in dict.fromkeys((0, views, most)):
            for head in ("dense", "logistic"):
                rows = each.rows(f"classify-{mode}-{count}", head)
                extraction, disk = _cost(each, mode, count, LAYERS[-1:])
                yield (
                    f"{head} on the frozen base", mode, str(count), "–", _accuracy(each, rows),
                    extraction, _seconds([row["fit_seconds"] for row in rows]), disk,
                )  # fmt: skip
    for count in (0, views):
        rows = each.rows(f"finetune-{count}", "fine_tuned")
        extraction, disk = _cost(each, "native", count, LAYERS)
        yield (
            "fine-tuned from the cache", "native", str(count), "block5", _accuracy(each, rows),
            extraction, _seconds([row["fit_seconds"] for row in rows]), disk,
        )  # fmt: skip
    for step, head, name, mode in (
        ("end_to_end", "frozen_head", "end to end, augmented on the fly", "native"),
        ("scratch", "scratch", "small convnet from scratch, augmented on the fly", "rescale"),
    ):
        rows = each.rows(step, head)
        seconds = _seconds([row["fit_seconds"] for row in rows])
        yield (name, mode, "new", "–", _accuracy(each, rows), "–", seconds, "–")


def _cost(each: DatasetResults, mode: str, views: int, layers: Sequence[str]) -> tuple[str, str]:
    """Return extraction time and disk space with this number of views per training image."""
    answer = each.answers.get(f"{each.name}/extract-{mode}")
    if answer is None or not answer["computed"]:
        return NOT_MEASURED, NOT_MEASURED
    rows = answer["images"] + each.train_images * views
    seconds = answer["seconds"] / answer["computed"] * rows
    with h5py.File(answer["cache"]) as file:
        stored = sum(
            file[f"features/{layer}"].id.get_storage_size() / len(file["views"]) for layer in layers
        )
    return duration(seconds), file_size(round(stored * rows))


# ---------------------------------------------------------------------------- differences


def _differences(sets: Sequence[DatasetResults]) -> Iterator[str]:
    yield "## Effects of single changes"
    yield (
        f"Mean difference of test accuracy in percentage points, paired by seed "
        f"({sets[0].amount.seeds} seeds), with the 95 % interval of Student's t. The interval "
        "covers random weights and batches, not the choice of test images; one image is "
        + ", ".join(f"{100 / each.test_images:.1f} points of {printable(each.name)}"
                    for each in sets if each.test_images)
        + "."
    )  # fmt: skip
    rows = []
    for each in sets:
        views = each.amount.views
        pairs = [
            (f"{views} views, own preprocessing, dense", f"classify-native-{views}", "dense",
             "classify-native-0", "dense"),
            (f"{views} views, 1/255, dense", f"classify-rescale-{views}", "dense",
             "classify-rescale-0", "dense"),
            (f"{2 * views} views, 1/255, dense", f"classify-rescale-{2 * views}", "dense",
             "classify-rescale-0", "dense"),
            ("fine-tuned, relative to its frozen head", "finetune-0", "fine_tuned", "finetune-0",
             "frozen_head"),
            (f"fine-tuned with {views} views, relative to its frozen head", f"finetune-{views}",
             "fine_tuned", f"finetune-{views}", "frozen_head"),
        ]  # fmt: skip
        for change, step, head, other_step, other_head in pairs:
            changed, unchanged = each.rows(step, head), each.rows(other_step, other_head)
            rows.append((printable(each.name), change, _difference(changed, unchanged)))
    yield _table(("set", "change", "points"), rows)


def _difference(changed: Sequence[Row], unchanged: Sequence[Row]) -> str:
    if len(changed) != len(unchanged) or len(changed) < 2:
        return NOT_MEASURED
    points = [
        100 * (one["test_accuracy"] - other["test_accuracy"])
        for one, other in zip(changed, unchanged, strict=True)
    ]
    standard_error = float(np.std(points, ddof=1)) / math.sqrt(len(points))
    half = float(stats.t.ppf(0.975, len(points) - 1)) * standard_error
    mean = float(np.mean(points))
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


# ----------------------------------------------------------------------------------- cells


def _accuracy(each: DatasetResults, rows: Sequence[Row]) -> str:
    if not rows:
        return NOT_MEASURED
    accuracy = float(np.mean([row["test_accuracy"] for row in rows]))
    low, high = wilson_interval(accuracy * each.test_images, each.test_images)
    seeds = f", {len(rows)} seeds" if len(rows) > 1 else ""
    return f"{100 * accuracy:.1f} ({100 * low:.1f}–{100 * high:.1f}){seeds}"


def _seconds(values: Sequence[float]) -> str:
    if not values:
        return NOT_MEASURED
    mean = float(np.mean(values))
    return duration(mean) if mean >= 10 else f"{mean:.2g} s"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
