"""Training curves, loss and accuracy by epoch: smoothed, and described in one sentence."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

MEASURES = ("loss", "accuracy", "val_loss", "val_accuracy")
MIN_EPOCHS = 5  # fewer show no trend
MIN_SHARE = 0.05  # of the fall of validation loss so far; smaller changes are ignored
MIN_CHANGE = 0.005  # nats; smaller changes are ignored
MIN_DROP = 0.005  # of accuracy, half a point; smaller drops are ignored
MIN_GAP = 0.02  # between training and validation accuracy; smaller gaps are no overfitting

History = Mapping[str, Sequence[float]]


def smooth(values: Sequence[float], factor: float) -> list[float]:
    """Return the exponential moving average (DLwP, 5.23); ``factor`` weighs the last average."""
    return list(accumulate(values, lambda last, value: last * factor + value * (1 - factor)))


def describe_curves(history: History) -> str:
    """Describe where validation loss is lowest and what follows; ``history`` has all `MEASURES`.

    The minimum is that of a centred moving average: unlike the plotted one, it does not lag. Only
    changes that are large relative to the fall of the loss so far and to its noise count.
    """
    if not all(math.isfinite(value) for measure in MEASURES for value in history[measure]):
        return "The training diverged: some losses are not finite. A lower learning rate may help."
    count = len(history["val_loss"])
    loss, accuracy, train_loss, train_accuracy = (
        _centred_average(history[name], count // 20)
        for name in ("val_loss", "val_accuracy", "loss", "accuracy")
    )
    overfits = (
        f"The head overfits: at the end training accuracy is {100 * train_accuracy[-1]:.1f} %, "
        f"validation accuracy {100 * accuracy[-1]:.1f} %."
    )
    has_gap = train_accuracy[-1] - accuracy[-1] > MIN_GAP
    if count < MIN_EPOCHS:
        return f"Too few epochs to show a trend.{' ' + overfits if has_gap else ''}"
    best, last = int(loss.argmin()), count - 1
    fall = loss[: best + 1].max() - loss[best]
    # Two epochs differ by less than this by chance: twice the median of the second differences,
    # which is 3.3 standard deviations of Gaussian noise, and 0 for a steady fall.
    noise = 2 * np.median(np.abs(np.diff(history["val_loss"], 2)))
    min_change = max(MIN_CHANGE, float(noise))
    min_rise = max(min_change, MIN_SHARE * min(fall, loss[best]))
    min_fall = max(min_change, MIN_SHARE * fall)
    if loss[last] - loss[best] > min_rise and train_loss[last] < train_loss[best]:
        text = (
            f"Overfitting from epoch {best + 1} on: validation loss is lowest there "
            f"({loss[best]:.3f}), then rises to {loss[-1]:.3f} while training loss keeps falling. "
        )
        then, now = (f"{100 * accuracy[epoch]:.1f} %" for epoch in (best, -1))
        if accuracy[-1] < accuracy[best] - MIN_DROP:
            return text + f"Validation accuracy falls too, from {then} to {now}."
        return text + (
            f"Validation accuracy does not fall ({then} at that epoch, {now} at the end): accuracy "
            f"depends only on the most probable class, while loss grows with the confidence in "
            f"the few wrong predictions."
        )
    before = last - max(1, count // 5)
    if loss[before] - loss[last] > min_fall:
        return (
            f"Validation loss still falls at the end, from {loss[before]:.3f} at epoch "
            f"{before + 1} to {loss[last]:.3f} at epoch {count}: more epochs would probably help. "
            f"{overfits if has_gap else 'There is no overfitting yet.'}"
        )
    level = int(np.flatnonzero(loss <= loss[best] + min_fall)[0])
    return (
        f"Validation loss is level at {loss[last]:.3f} from about epoch {level + 1} on: more "
        f"epochs would hardly help. "
        f"{overfits if has_gap else 'There is no significant overfitting.'}"
    )


def _centred_average(values: Sequence[float], reach: int) -> npt.NDArray[np.float64]:
    """Return the mean of each value and up to ``reach`` neighbours on each side."""
    array = np.asarray(values, np.float64)
    return np.array([array[max(0, i - reach) : i + reach + 1].mean() for i in range(len(array))])
