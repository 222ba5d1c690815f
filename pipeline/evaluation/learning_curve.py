"""The learning curve: accuracy against the number of training images."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.metrics import Labels, log_loss_of
from pipeline.evaluation.probe import (
    FeatureRows,
    fit_components,
    fit_probe,
    stratified_order,
    transform,
)
from pipeline.evaluation.splits import TEST, TRAIN, VALIDATION
from pipeline.text import counted

DRAWS = 5
IMAGES_PER_CLASS = 10  # on average, in the smallest training set
MAX_IMAGES = 5000  # in the largest training set
MAX_EVALUATED = 20_000  # images of validation, and of test: a standard error of at most 0.4 %
FEATURES = 256  # principal components: as accurate as all features, and 4 times as fast
C_GRID = (0.1, 1.0, 10.0, 100.0)  # for rows of mean squared length 1
TOO_COARSE = 0.02  # noise in accuracy that allows no conclusion


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """Accuracy against the number of training images.

    Attributes
    ----------
    sizes : (S,) ascending; the last is all training images, or 5,000.
    accuracies : (S, R) on test images, of R random draws of each size.
    head : name and setting, ``logistic (C=1)``.
    sentence : whether more images would help.
    """

    sizes: npt.NDArray[np.int64]
    accuracies: npt.NDArray[np.float64]
    head: str
    sentence: str


def learning_curve(
    features: FeatureRows,
    labels: Labels,
    split: npt.NDArray[np.uint8],
    *,
    class_count: int,
    seed: int = 0,
) -> LearningCurve | None:
    """Fit logistic regression on training sets of halving size; return their test accuracies.

    Sizes halve from all images (5,000 at most) down to about ten per class; every draw contains
    every class, in proportion. C is chosen on validation, with the largest size.

    ``split`` (N,) are split numbers; of more than 20,000 rows of validation or test, a stratified
    sample is evaluated. Returns None if half of the images are fewer than ten per
    class, or train lacks a class.
    """
    train = labels[split == TRAIN]
    counts = np.bincount(train, minlength=class_count)
    sizes = [min(len(train), MAX_IMAGES)]
    while sizes[0] // 2 >= IMAGES_PER_CLASS * class_count:
        sizes.insert(0, sizes[0] // 2)
    if counts.min() < 1 or len(sizes) == 1:
        return None
    random = np.random.default_rng(seed)
    orders = [stratified_order(train, random)[: sizes[-1]] for _ in range(DRAWS)]
    of_train, of_validation, of_test = (
        np.flatnonzero(split == part) for part in (TRAIN, VALIDATION, TEST)
    )
    of_validation, of_test = (
        rows[np.sort(stratified_order(labels[rows], np.random.default_rng(seed))[:MAX_EVALUATED])]
        for rows in (of_validation, of_test)
    )
    used, places = np.unique(orders, return_inverse=True)
    train, orders = train[used], list(places.reshape(DRAWS, -1))

    components = fit_components(features, FEATURES, of_train)
    train_rows, validation_rows, test_rows = (
        transform(components, features, rows) for rows in (of_train[used], of_validation, of_test)
    )
    first, validation = orders[0], labels[of_validation]
    fits = {C: fit_probe(train_rows[first], train[first], C) for C in C_GRID}
    probabilities = {C: fit.predict_proba(validation_rows) for C, fit in fits.items()}
    chosen = min(C_GRID, key=lambda C: log_loss_of(validation, probabilities[C]))
    correct = np.empty((len(sizes), DRAWS, len(test_rows)), bool)
    for draw, order in enumerate(orders):
        for index, size in enumerate(sizes):
            fit, drawn = fits[chosen], order[:size]
            if size < len(of_train):  # all draws of all images are the same
                fit = fit_probe(train_rows[drawn], train[drawn], chosen)
            correct[index, draw] = fit.predict(test_rows) == labels[of_test]
    return LearningCurve(
        sizes=np.asarray(sizes, np.int64),
        accuracies=correct.mean(axis=2),
        head=f"logistic (C={chosen:g}) on {train_rows.shape[1]} principal components",
        sentence=conclude(sizes[-2], sizes[-1], correct[-2], correct[-1]),
    )


def conclude(
    half: int, whole: int, before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]
) -> str:
    """Return a sentence on the gain of the last doubling: would more images help?

    The noise combines the spread of the draws of half the images with the standard error of the
    gain, paired by test image. A gain below the noise is not clear; above twice the noise it is.

    ``before`` and ``after``, (R, n) bool: whether each draw classifies each test image correctly.
    """
    spread = float(before.mean(axis=1).std(ddof=1))
    gains = after.mean(axis=0) - before.mean(axis=0)  # (n,)
    gain = float(gains.mean())
    noise = math.hypot(spread, float(gains.std()) / math.sqrt(len(gains)))
    low, high = (round(100 * float(each.mean()), 1) for each in (before, after))
    points = round(abs(high - low), 1)
    change = f"{'rose' if high > low else 'fell'} by {points} points" if points else "stayed"
    levels = f"{low} to {high} %" if points else f"{high} %"
    result = (
        f"From {half:,} to {whole:,} training images the accuracy of a logistic regression on "
        f"{counted(len(gains), 'test image')} {change} ({levels}; draws spread "
        f"±{100 * spread:.1f})"
    )
    if after.all():
        return f"{result}: all of these are right, so a gain cannot show"
    if gain > 2 * noise and points >= 1:
        return f"{result}: more images would help"
    if gain > noise and points > 0:
        return f"{result}: more images would probably help a little"
    if noise > TOO_COARSE:
        return f"{result}: too few test images to tell whether more would help"
    return f"{result}, no clear gain: more images of this kind would hardly help"
