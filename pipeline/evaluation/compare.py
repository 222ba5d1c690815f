"""Fit every head on every cached layer; choose on validation, score once on test."""

import contextlib
import logging
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.cache.file import FeatureTable
from pipeline.errors import BadDataError
from pipeline.evaluation.caches import SplitCache, open_caches
from pipeline.evaluation.choose import Choice, choose
from pipeline.evaluation.inputs import input_of, read_input
from pipeline.evaluation.metrics import accuracy_of, confusion_matrix, measure
from pipeline.evaluation.result import Comparison, Outcome, Result
from pipeline.evaluation.splits import Shares
from pipeline.heads.head import FitOptions, Head, Input
from pipeline.heads.registry import HeadRequest, load_head, parse_heads
from pipeline.heads.settings import DenseSettings
from pipeline.heads.training import LabelledRows, TrainingSet
from pipeline.spec import check_seed
from pipeline.text import duration, printable

PACKAGES = ("numpy", "scikit-learn", "keras", "tensorflow")

log = logging.getLogger("pipeline")


def compare_heads(
    caches: Path | str | Sequence[Path | str],
    *,
    heads: str | Iterable[str] = "all",
    layers: Sequence[str] = (),
    split: str = "60/20/20",
    split_seed: int = 0,
    seed: int = 0,
    dense: DenseSettings | None = None,
) -> Comparison:
    """Compare classifiers on cached features.

    Parameters
    ----------
    caches : one cache file or several of the same classes.
    heads : ``all`` or NAME, NAME:flat, NAME:pooled, as a comma list or a sequence.
    layers : only these layers; all by default.
    split : train/validation/test shares where the set has no such folders.
    split_seed : another division of the same shares.
    seed : of the heads that draw at random; the same seed gives the same results.
    dense : settings of the dense head, the book's by default.

    Raises NoInputError, BadDataError or UsageError in one line.
    """
    check_seed(seed)
    requests = parse_heads(heads)
    shares = Shares.parse(split)
    options = FitOptions(seed=seed, dense=dense or DenseSettings())
    opened = open_caches(
        [Path(caches)] if isinstance(caches, str | Path) else [Path(path) for path in caches],
        layers=layers,
        shares=shares,
        split_seed=split_seed,
    )
    run = {
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "classes": list(opened[0].table.classes),
        "heads": [":".join(filter(None, (each.name, each.input))) for each in requests],
        "seed": seed,
        "split": str(shares),
        "split_seed": split_seed,
        "dense": asdict(options.dense),
        "versions": _versions(),
        "caches": [cache.describe() for cache in opened],
    }
    loaded = {request.name: load_head(request.name) for request in requests}
    outcomes: list[Outcome] = []
    # One thread: the BLAS of NumPy and that of SciPy wait for each other's threads in busy loops.
    # Fitting the logistic path (1,200 × 512, 2 cores) takes 0.2 s so, and 2.5 s with two threads.
    with threadpool_limits(limits=1, user_api="blas"):
        for cache in opened:
            for layer in cache.layers:
                outcomes += _compare_on_layer(cache, layer, requests, loaded, options)
    if not outcomes:
        raise BadDataError("no head could be fitted; see the warnings above")
    outcomes.sort(key=lambda each: (-each.result.validation_accuracy, each.result.parameters))
    return Comparison(outcomes=tuple(outcomes), classes=opened[0].table.classes, run=run)


@dataclass(frozen=True, kw_only=True)
class _Data:
    """One input of one layer, split."""

    train: TrainingSet
    validation: LabelledRows
    test: LabelledRows


def _compare_on_layer(
    cache: SplitCache,
    layer: str,
    requests: Sequence[HeadRequest],
    loaded: Mapping[str, Head],
    options: FitOptions,
) -> Iterator[Outcome]:
    data: dict[Input, _Data] = {}
    done = set()
    for request in requests:
        head = loaded[request.name]
        kind = input_of(cache.table, layer, wanted=request.input, default=head.default_input)
        if (request.name, kind) in done:  # of a vector, flat and pooled are the same
            continue
        done.add((request.name, kind))
        if kind not in data:
            data[kind] = _read_data(cache, layer, kind)
        row_name = f"{request.name} on {kind} {printable(layer)}"
        choice = choose(head, data[kind].train, data[kind].validation, options)
        if choice is None:
            log.warning(
                "%s diverged: its scores are not finite, its row is left out%s",
                row_name,
                "; try a lower --learning-rate" if request.name == "dense" else "",
            )
            continue
        log.info(
            "%s: validation %.1f %%, %s",
            row_name,
            100 * choice.validation_accuracy,
            duration(choice.fit_seconds),
        )
        if not choice.candidate.converged:
            log.warning(
                "%s stopped at its iteration limit with %s",
                row_name,
                choice.candidate.spec.params_text,
            )
        yield _score(choice, data[kind], table=cache.table, layer=layer, kind=kind)


def _read_data(cache: SplitCache, layer: str, kind: Input) -> _Data:
    table, splits = cache.table, cache.splits
    parts = (splits.train, splits.validation, splits.test)
    rows = np.concatenate(parts)  # read at one go: a chunk holds rows of all three
    ends = np.cumsum([len(part) for part in parts])[:-1]
    train, validation, test = (
        LabelledRows(features, labels)
        for features, labels in zip(
            np.split(read_input(table, layer, rows, kind), ends),
            np.split(table.columns.labels[rows], ends),
            strict=True,
        )
    )
    return _Data(
        train=TrainingSet(train.features, train.labels, len(table.classes)),
        validation=validation,
        test=test,
    )


def _score(choice: Choice, data: _Data, *, table: FeatureTable, layer: str, kind: Input) -> Outcome:
    """Measure a chosen classifier; the only place that looks at test."""
    classifier = choice.candidate.classifier
    train_scores = classifier.scores(data.train.features)
    started = time.perf_counter()
    scores = classifier.scores(data.test.features)
    seconds = time.perf_counter() - started
    measured = measure(data.test.labels, scores, has_probabilities=classifier.has_probabilities)
    return Outcome(
        result=Result(
            head=choice.candidate.spec.name,
            input=kind,
            params=choice.candidate.spec.params_text,
            train_accuracy=accuracy_of(data.train.labels, train_scores),
            validation_accuracy=choice.validation_accuracy,
            test_accuracy=measured.accuracy,
            test_low=measured.low,
            test_high=measured.high,
            macro_f1=measured.macro_f1,
            roc_auc=measured.roc_auc,
            log_loss=measured.log_loss,
            top5_accuracy=measured.top5_accuracy,
            fit_seconds=choice.fit_seconds,
            predict_ms=1000 * seconds / len(data.test),
            parameters=classifier.parameters,
            base=table.spec.base,
            layer=layer,
            image_size=table.spec.image_size,
            fingerprint=table.spec.fingerprint,
            cache=printable(table.path.as_posix()),
        ),
        confusion=confusion_matrix(data.test.labels, scores),
        history=choice.candidate.history,
    )


def _versions() -> dict[str, str]:
    """Versions of what computes here; read from metadata, nothing is imported."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
