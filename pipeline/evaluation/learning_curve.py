"""Accuracy against the number of training images: would more of them help?"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.metrics import log_loss_of
from pipeline.evaluation.probe import fit_components, fit_probe
from pipeline.evaluation.splits import TEST, TRAIN, VALIDATION

DRAWS = 5
IMAGES_PER_CLASS = 10  # the smallest size has so many, in the mean
MOST_IMAGES = 5000  # of more training images, the curve ends here
FEATURES = 256  # principal components that are learned from: as accurate, and 4 times as fast
PENALTIES = (0.1, 1.0, 10.0, 100.0)  # C on rows of mean squared length 1
TOO_COARSE = 0.02  # noise in accuracy above which nothing can be said


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """Accuracy against the number of training images.

    Attributes
    ----------
    sizes : (S,) ascending; the last is all training images, or 5,000.
    accuracies : (S, R) on held-out images, of R random draws of each size.
    head : for people: ``logistic (C=1)``.
    sentence : whether more images would help.
    """

    sizes: npt.NDArray[np.int64]
    accuracies: npt.NDArray[np.float64]
    head: str
    sentence: str


def learning_curve(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    side: npt.NDArray[np.uint8],
    *,
    class_count: int,
    seed: int = 0,
) -> LearningCurve | None:
    """Fit logistic regression on halves of halves of the training images, test each.

    Sizes halve from all images (5,000 at most) down to about ten per class; every draw has every
    class, in its share. C is chosen on validation with all images.

    ``side`` (N,) are split numbers. None where not even half of the images are ten per class, or a
    class is missing in train.
    """
    train = labels[side == TRAIN]
    counts = np.bincount(train, minlength=class_count)
    whole = min(len(train), MOST_IMAGES)
    if counts.min() < 1 or whole // 2 < IMAGES_PER_CLASS * class_count:
        return None
    sizes = [whole]
    while sizes[0] // 2 >= IMAGES_PER_CLASS * class_count:
        sizes.insert(0, sizes[0] // 2)
    random = np.random.default_rng(seed)
    orders = [_stratified_order(train, random) for _ in range(DRAWS)]

    components = fit_components(features[side == TRAIN], FEATURES)
    rows, held_out, tested = (
        components.transform(features[side == part]) for part in (TRAIN, VALIDATION, TEST)
    )
    first = orders[0][:whole]
    fits = {C: fit_probe(rows[first], train[first], C) for C in PENALTIES}
    validation = labels[side == VALIDATION]
    losses = {C: log_loss_of(validation, fits[C].predict_proba(held_out)) for C in PENALTIES}
    penalty = min(PENALTIES, key=lambda C: losses[C])
    correct = np.empty((len(sizes), DRAWS, len(tested)), bool)
    for draw, order in enumerate(orders):
        for place, size in enumerate(sizes):
            known, drawn = fits[penalty], order[:size]
            if size < len(train):  # every draw of all images is the same one
                known = fit_probe(rows[drawn], train[drawn], penalty)
            correct[place, draw] = known.predict(tested) == labels[side == TEST]
    return LearningCurve(
        sizes=np.asarray(sizes, np.int64),
        accuracies=correct.mean(axis=2),
        head=f"logistic (C={penalty:g}) on {rows.shape[1]} principal components",
        sentence=conclude(sizes[-2], sizes[-1], correct[-2], correct[-1]),
    )


def conclude(
    half: int, whole: int, before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]
) -> str:
    """One sentence on the last doubling, from half to whole: would more images help?

    The gain's noise is the spread of the draws of half the images, and the standard error of the
    gain paired by test image. A gain within one such is none, one beyond two is sure.

    ``before`` and ``after``, (R, n), say which test images each draw of either size has right.
    """
    spread = float(before.mean(axis=1).std(ddof=1))
    gains = after.mean(axis=0) - before.mean(axis=0)  # (n,)
    gain = float(gains.mean())
    noise = math.hypot(spread, float(gains.std()) / math.sqrt(len(gains)))
    low, high = (round(100 * float(each.mean()), 1) for each in (before, after))
    points = round(abs(high - low), 1)
    change = f"{'rose' if high > low else 'fell'} by {points} points" if points else "stayed"
    found = (
        f"From {half:,} to {whole:,} training images accuracy {change} "
        f"({low} to {high} %; draws spread ±{100 * spread:.1f})"
    )
    if after.all():
        return f"{found}: every test image is right, so more images can show no gain here"
    if gain > 2 * noise and points >= 1:
        return f"{found}: more images would help"
    if gain > noise and points > 0:
        return f"{found}: more images would probably help a little"
    if noise > TOO_COARSE:
        return f"{found}: too few test images to say whether more would help"
    return f"{found}, no clear gain: more images of this kind would hardly help"


def _stratified_order(
    labels: npt.NDArray[np.int64], random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """A random order of the rows (N,) of which every beginning has each class in its share.

    One row of each class comes first, however rare it is.
    """
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        place[rows] = (np.arange(len(rows)) + random.random()) / len(rows)
        place[rows[0]] = -random.random()
    return np.argsort(place, kind="stable")
