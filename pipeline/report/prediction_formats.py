"""Format predictions as text, one by one: an aligned table, CSV or JSON."""

import csv
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

from rich.cells import cell_len, set_cell_size

from pipeline.cache.fill import RowProgress
from pipeline.evaluation.statistics import wilson_interval
from pipeline.heads.names import classes_of_normal
from pipeline.images.scan import Skipped
from pipeline.models.image_predictions import ImagePredictions, Prediction
from pipeline.models.rejection import NONE_OF_THESE, UNLIKE, UNSURE, Rejection
from pipeline.report.sheets import MAX_PICTURES
from pipeline.spec import CLASSES, MULTILABEL, REGRESSION
from pipeline.text import counted, printable

log = logging.getLogger("pipeline")

GAP = "  "
MAX_CLASSES = 20  # of a summary; ImageNet has 1,000
LABEL_SEPARATOR = "|"  # between labels in CSV, as in tables of labels
MAX_CONFUSED = 3  # other classes that a class is taken for


class Tally:
    """Iterate over predictions and count them; log and collect skipped files."""

    def __init__(self, predictions: ImagePredictions, progress: RowProgress | None = None) -> None:
        self.predictions = predictions
        self.images = 0
        self.cached = 0
        self.first: list[Prediction] = []  # for a contact sheet
        self.skipped: list[Skipped] = []
        self.counts: Counter[tuple[str | None, str]] = Counter()  # class folder, predicted class
        self.numbers: list[float] = []  # of a regression
        self.rejected: Counter[str] = Counter()  # by reason, with "" for those that are kept
        self.kept: Counter[bool] = Counter()  # in class folders: whether they are right
        self._progress = progress

    def __iter__(self) -> Iterator[Prediction]:
        for item in self.predictions:
            if isinstance(item, Skipped):
                log.warning("skipped %s: %s", printable(item.path), item.reason)
                self.skipped.append(item)
            else:
                self.images += 1
                self.cached += item.cached
                if item.task == CLASSES:
                    folder = self._class_folder(item)
                    self.counts[folder, item.label] += 1
                    if item.rejection is not None:
                        self.rejected[item.rejection.reason] += 1
                        if not item.rejection.reason and folder is not None:
                            self.kept[folder == item.label] += 1
                elif item.task == MULTILABEL:
                    self.counts.update((None, label) for label, _ in item.labels)
                else:
                    self.numbers.append(item.number)
                if len(self.first) < MAX_PICTURES:
                    self.first.append(item)
                if self._progress:  # only from the first result on: the network loads before
                    self._progress(self.images + len(self.skipped), self.predictions.total)
                yield item

    def summary(self) -> dict[str, Any]:
        """Count predictions by class and, of images in class folders, the right and wrong ones.

        For other tasks: the number of images with each label, or the range of the numbers.
        """
        task = self.predictions.model.task
        if task == REGRESSION:
            values = sorted(self.numbers)
            if not values:
                return {}
            mean = sum(values) / len(values)
            return {"lowest": values[0], "mean": mean, "highest": values[-1]}
        if task == MULTILABEL:
            return {"predicted": {label: count for (_, label), count in self.counts.most_common()}}
        predicted, images, right = Counter[str](), Counter[str](), Counter[str]()
        confused = []
        for (folder, label), count in self.counts.most_common():
            predicted[label] += count
            if folder is None:
                continue
            images[folder] += count
            if folder == label:
                right[folder] += count
            else:
                confused.append({"class": folder, "predicted": label, "images": count})
        total = images.total()
        return {
            "predicted": dict(predicted),
            "in_class_folders": dict(images),
            "right": {name: right[name] for name in images},
            "confused": confused,
            "accuracy": right.total() / total if total else None,
            **self._rejection_summary(),
        }

    def _rejection_summary(self) -> dict[str, Any]:
        """Count the rejected images by reason, and the right ones of those that are kept."""
        if not self.rejected:
            return {}
        kept = self.kept.total()
        return {
            "rejected": self.rejected.total() - self.rejected[""],
            **{reason: self.rejected[reason] for reason in (UNSURE, UNLIKE)},
            "kept_in_class_folders": kept,
            "kept_accuracy": self.kept[True] / kept if kept else None,
        }

    @cached_property
    def _with_normal(self) -> frozenset[tuple[str, ...]]:
        """The folders of a folder with the normal images, for classes such as good, not good."""
        normal, *others = self.predictions.model.classes
        if (normal, *others) != classes_of_normal(normal):
            return frozenset()
        paths = map(_folders, self.predictions.paths)
        return frozenset(
            path[:depth] for path in paths for depth, name in enumerate(path) if name == normal
        )

    def _class_folder(self, prediction: Prediction) -> str | None:
        """Return the class that a folder of an image's path names, the innermost one.

        A folder of another name beside that of the normal images is not normal.
        """
        folders = _folders(prediction.path)
        for depth in reversed(range(len(folders))):
            if folders[depth] in prediction.classes:
                return folders[depth]
            if folders[:depth] in self._with_normal:
                return prediction.classes[1]
        return None


def _folders(path: str | bytes) -> tuple[str, ...]:
    return tuple(os.fsdecode(path).replace(os.sep, "/").split("/")[:-1])


def summary_lines(tally: Tally) -> Iterator[str]:
    """Yield lines on the predictions of each class and the accuracy in class folders."""
    if tally.images < 2:
        return
    summary, classes = tally.summary(), tally.predictions.model.classes
    if tally.predictions.model.task == REGRESSION:
        texts = [f"{name} {value:.6g}" for name, value in summary.items()]
        yield f"{printable(classes[0])}: {', '.join(texts)}\n"
        return
    if tally.predictions.model.task == MULTILABEL:
        counts = [f"{printable(name)} {count:,}" for name, count in summary["predicted"].items()]
        yield f"images by label: {', '.join(counts) or 'none'}\n"
        return
    note = "; cached images may be those of the training" if tally.cached else ""
    predicted, images, right = (summary[key] for key in ("predicted", "in_class_folders", "right"))
    found = [name for name in classes if name in predicted or name in images]
    shown = sorted(found, key=lambda name: -predicted.get(name, 0))[:MAX_CLASSES]
    width = max(len("class"), *(cell_len(printable(name)) for name in shown))
    titles = ["predicted", "images", "right %", "wrong predictions"] if images else ["predicted"]
    yield GAP.join([set_cell_size("class", width), *titles]) + "\n"
    for name in filter(shown.__contains__, found):
        cells = [set_cell_size(printable(name), width), f"{predicted.get(name, 0):9,}"]
        if images:
            count = images.get(name, 0)
            cells += [f"{count:6,}", f"{100 * right[name] / count:7.1f}" if count else " " * 7]
            wrong = [each for each in summary["confused"] if each["class"] == name]
            texts = [f"{printable(each['predicted'])} {each['images']:,}" for each in wrong]
            cells.append(", ".join(texts[:MAX_CONFUSED] + ["…"] * (len(texts) > MAX_CONFUSED)))
        yield GAP.join(cells).rstrip() + "\n"
    if len(found) > len(shown):
        yield f"and {counted(len(found) - len(shown), 'class', 'classes')} more\n"
    if images:
        total, correct = sum(images.values()), sum(right.values())
        low, high = (100 * bound for bound in wilson_interval(correct, total))
        yield (
            f"{100 * correct / total:.1f} % of {counted(total, 'image')} in class folders are "
            f"right (95 % interval {low:.1f}–{high:.1f}){note}\n"
        )
    if "rejected" in summary:
        yield _rejection_line(tally, summary)


def _rejection_line(tally: Tally, summary: Mapping[str, Any]) -> str:
    text = (
        f"{NONE_OF_THESE}: {summary['rejected']:,} of {counted(tally.images, 'image')} "
        f"({summary[UNSURE]:,} {UNSURE}, {summary[UNLIKE]:,} {UNLIKE} the cached images)"
    )
    if total := summary["kept_in_class_folders"]:
        low, high = (100 * bound for bound in wilson_interval(tally.kept[True], total))
        text += (
            f"; {100 * summary['kept_accuracy']:.1f} % of the {total:,} kept in class folders are "
            f"right (95 % interval {low:.1f}–{high:.1f})"
        )
    return f"{text}\n"


def _rejection_text(rejection: Rejection | None) -> str:
    """Return why an image is rejected: ``unsure: cat or dog``; empty if it is kept."""
    if rejection is None or not rejection.reason:
        return ""
    if rejection.reason == UNLIKE:
        return f"{UNLIKE} the cached images"
    names = [printable(name) for name in rejection.classes[:MAX_CONFUSED]]
    names += ["…"] * (len(rejection.classes) > MAX_CONFUSED)
    return f"{UNSURE}: {' or '.join(names) or 'no class is probable enough'}"


def _neighbor_lines(prediction: Prediction) -> str:
    """Return an indented line for each neighbor: similarity, label and path."""
    width = max((cell_len(printable(each.label)) for each in prediction.neighbors), default=0)
    return "".join(
        f"{GAP * 2}{each.similarity:.4f}{GAP}{set_cell_size(printable(each.label), width)}{GAP}"
        f"{printable(each.path)}\n"
        for each in prediction.neighbors
    )


def table_lines(
    predictions: Iterable[Prediction], *, paths: Sequence[bytes], classes: Sequence[str], top: int
) -> Iterator[str]:
    """Yield aligned lines, titles first; all paths and classes determine the widths."""
    path_width = max(len("path"), *(cell_len(printable(path)) for path in paths))
    label_width = max(len("label"), *(cell_len(printable(name)) for name in classes))
    titles = f"{set_cell_size('path', path_width)}{GAP}{set_cell_size('label', label_width)}{GAP}"
    titles += f"probability{GAP}margin{GAP * (top > 1)}{'then' if top > 1 else ''}\n"
    for prediction in predictions:
        (label, probability), *others = prediction.top(top)
        if reason := _rejection_text(prediction.rejection):
            reason += "" if reason.startswith(UNSURE) else f", else {printable(label)}"
            label = NONE_OF_THESE
        cells = [
            set_cell_size(printable(prediction.path), path_width),
            set_cell_size(printable(label), label_width),
            f"{probability:11.4f}",
            f"{prediction.margin:6.4f}",
            *(
                f"{set_cell_size(printable(name), label_width)} {share:.4f}"
                for name, share in others
            ),
            *([reason] if reason else []),
        ]
        yield titles + GAP.join(cells) + "\n" + _neighbor_lines(prediction)
        titles = ""


def target_lines(
    predictions: Iterable[Prediction], *, paths: Sequence[bytes], classes: Sequence[str]
) -> Iterator[str]:
    """Yield aligned lines: the labels above 0.5 with their probabilities, or the number."""
    width = max(len("path"), *(cell_len(printable(path)) for path in paths))
    titles = {MULTILABEL: "labels", REGRESSION: printable(classes[0])}
    for number, prediction in enumerate(predictions):
        if not number:
            yield f"{set_cell_size('path', width)}{GAP}{titles[prediction.task]}\n"
        text = f"{prediction.number:.6g}"
        if prediction.task == MULTILABEL:
            labels = [f"{printable(name)} {share:.4f}" for name, share in prediction.labels]
            text = ", ".join(labels) or "–"
        line = f"{set_cell_size(printable(prediction.path), width)}{GAP}{text}\n"
        yield line + _neighbor_lines(prediction)


def _target_record(prediction: Prediction) -> dict[str, Any]:
    """Return the labels above 0.5 and all probabilities, or the number, of an image."""
    if prediction.task == REGRESSION:
        return {"name": prediction.classes[0], "number": prediction.number}
    probabilities = dict(zip(prediction.classes, prediction.probabilities.tolist(), strict=True))
    return {"labels": [name for name, _ in prediction.labels], "probabilities": probabilities}


def _target_csv(
    predictions: Iterable[Prediction], named: Callable[[str | bytes], str], neighbors: int
) -> Iterator[str]:
    """Yield a line per image: path and number, or labels and a column of each probability."""
    for index, prediction in enumerate(predictions):
        is_number = prediction.task == REGRESSION
        names = [named(name) for name in prediction.classes]
        details = _csv_details(prediction, named, neighbors)
        if not index:
            yield _to_csv(["path", *([] if is_number else ["labels"]), *names, *details])
        labels = [] if is_number else [LABEL_SEPARATOR.join(named(n) for n, _ in prediction.labels)]
        values = [named(prediction.path), *labels, *prediction.probabilities.tolist()]
        yield _to_csv([*values, *details.values()])


def _csv_details(
    prediction: Prediction, named: Callable[[str | bytes], str], neighbors: int
) -> dict[str, Any]:
    """Return the columns of what was requested besides the prediction."""
    heatmap, rejection = prediction.heatmap, prediction.rejection
    details: dict[str, Any] = {} if heatmap is None else {"heatmap": named(heatmap.file)}
    if rejection is not None:
        details |= {"rejected": bool(rejection.reason), "reason": rejection.reason}
    for rank in range(neighbors):
        each = prediction.neighbors[rank] if rank < len(prediction.neighbors) else None
        name = f"neighbor_{rank + 1}"
        details[name] = named(each.path) if each else ""
        details[f"{name}_label"] = named(each.label) if each else ""
        details[f"{name}_similarity"] = each.similarity if each else ""
    return details


def csv_lines(
    predictions: Iterable[Prediction],
    *,
    top: int,
    named: Callable[[str | bytes], str],
    neighbors: int = 0,
) -> Iterator[str]:
    """Yield CSV lines, column names first; ``named`` converts paths and labels to text."""
    predictions = iter(predictions)
    first = next(predictions, None)
    predictions = chain(() if first is None else (first,), predictions)
    if first is not None and first.task != CLASSES:
        yield from _target_csv(predictions, named, neighbors)
        return
    names = ["path", "label", "probability", "margin"]
    names += [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("label", "probability")]
    titles = _to_csv([*names, *(_csv_details(first, named, neighbors) if first else ())])
    for prediction in predictions:
        (label, probability), *others = prediction.top(top)
        values = [named(prediction.path), named(label), probability, prediction.margin]
        for name, share in others:
            values += [named(name), share]
        values += _csv_details(prediction, named, neighbors).values()
        yield titles + _to_csv(values)
        titles = ""


def json_parts(
    predictions: Iterable[Prediction],
    *,
    top: int,
    head: Mapping[str, Any],
    tail: Callable[[], Mapping[str, Any]],
) -> Iterator[str]:
    """Yield parts of one JSON document: ``head``, ``images``, and ``tail`` after the last image."""
    prefix = _to_json(head)[:-1] + ', "images": [\n'
    for prediction in predictions:
        record: dict[str, Any] = {"path": os.fsdecode(prediction.path)}
        if prediction.task == CLASSES:
            (label, probability), *_ = best = prediction.top(top)
            record |= {
                "label": label,
                "probability": probability,
                "margin": prediction.margin,
                "top": [{"label": name, "probability": share} for name, share in best],
            }
        else:
            record |= _target_record(prediction)
        if prediction.heatmap is not None:
            values = prediction.heatmap.values.tolist()
            record["heatmap"] = {**vars(prediction.heatmap), "values": values}
        if prediction.rejection is not None:
            record["rejection"] = prediction.rejection.to_dict()
        if prediction.neighbors:
            record["neighbors"] = [
                {
                    "path": os.fsdecode(each.path),
                    "label": each.label,
                    "similarity": each.similarity,
                }
                for each in prediction.neighbors
            ]
        yield prefix + _to_json({**record, "cached": prediction.cached})
        prefix = ",\n"
    yield "\n], " + _to_json(tail())[1:] + "\n"


def _to_json(value: Mapping[str, Any]) -> str:
    """Return one line of JSON; escapes preserve names that are not UTF-8."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, allow_nan=False)
    return text


def _to_csv(values: Sequence[Any]) -> str:
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
