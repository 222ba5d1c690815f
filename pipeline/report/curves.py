"""What the curves of a head show that is trained by epoch: smoothed, and in one sentence."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

MEASURES = ("loss", "accuracy", "val_loss", "val_accuracy")
FEWEST_EPOCHS = 5  # fewer show no shape
SHARE = 0.05  # of what the validation loss has fallen by: less is levelled off
LEAST = 0.005  # nats: no change that matters
HOLDS = 0.005  # half a point of accuracy lost is still holding it

History = Mapping[str, Sequence[float]]


def smooth(values: Sequence[float], factor: float) -> list[float]:
    """Exponential moving average, each point ``factor`` of the last (DLwP 5.3, listing 5.23)."""
    smoothed: list[float] = []
    for value in values:
        smoothed.append(smoothed[-1] * factor + value * (1 - factor) if smoothed else value)
    return smoothed


def describe_curves(history: History) -> str:
    """Say where validation loss turned and what that means; ``history`` has all `MEASURES`.

    Turns are looked for in a centred moving average: unlike the one that is drawn it does not lag.
    What counts as a change is measured by how far the loss has fallen so far, and by its noise.
    """
    if not all(math.isfinite(value) for measure in MEASURES for value in history[measure]):
        return "The training diverged: some losses are not finite. A lower learning rate may help."
    count = len(history["val_loss"])
    if count < FEWEST_EPOCHS:
        return "Too few epochs to tell overfitting from noise."
    loss, accuracy, train_loss = (
        _centred_average(history[name], count // 20)
        for name in ("val_loss", "val_accuracy", "loss")
    )
    turn, last = int(loss.argmin()), count - 1
    fallen = loss[: turn + 1].max() - loss[turn]
    # How far apart chance alone puts two epochs: 3.3 standard deviations of Gaussian noise.
    # From second differences, in which a steady fall leaves nothing; their median is half of it.
    noise = 2 * np.median(np.abs(np.diff(history["val_loss"], 2)))
    least = max(LEAST, float(noise))
    rise = loss[last] - loss[turn]
    if rise > max(least, SHARE * min(fallen, loss[turn])) and train_loss[last] < train_loss[turn]:
        text = (
            f"Overfitting from epoch {turn + 1} on: validation loss is lowest there "
            f"({loss[turn]:.3f}), then it rises to {loss[-1]:.3f} while training loss goes on "
            f"falling. "
        )
        then, now = (f"{100 * accuracy[epoch]:.1f} %" for epoch in (turn, -1))
        if accuracy[-1] < accuracy[turn] - HOLDS:
            return text + f"Validation accuracy falls with it, from {then} to {now}."
        return text + (
            f"Validation accuracy holds all the same ({then} there, {now} at the end): accuracy "
            f"counts only which class comes first, while loss grows with the certainty of the "
            f"few images that are wrong."
        )
    before = last - max(1, count // 5)
    if loss[before] - loss[last] > max(least, SHARE * fallen):
        return (
            f"Validation loss still falls at the end, from {loss[before]:.3f} at epoch "
            f"{before + 1} to {loss[last]:.3f} at epoch {count}: no overfitting yet, and more "
            f"epochs would probably help."
        )
    level = int(np.flatnonzero(loss <= loss[turn] + max(least, SHARE * fallen))[0])
    return (
        f"Validation loss has levelled off at {loss[last]:.3f}, from about epoch {level + 1} on: "
        f"no overfitting to speak of, and little to gain from more epochs."
    )


def _centred_average(values: Sequence[float], reach: int) -> npt.NDArray[np.float64]:
    """Mean of each value and ``reach`` neighbours on either side, fewer at the ends."""
    array = np.asarray(values, np.float64)
    return np.array([array[max(0, i - reach) : i + reach + 1].mean() for i in range(len(array))])
