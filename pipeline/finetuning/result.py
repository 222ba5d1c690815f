"""What training a network gives; free of TensorFlow, for tables and reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

History = Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network as it was after its best epoch, the one of lowest validation loss.

    Attributes
    ----------
    weights : all that was trained, by name: ``block5_conv1/kernel``, ``head/hidden_kernel``.
    history : loss, accuracy, val_loss, val_accuracy by epoch; of training rows as each batch found
        them, before it learned from them.
    seconds : each epoch's training, without validation and checkpoint.
    best_epoch : from 1.
    validation_probabilities, test_probabilities : (N, K) float64.
    frozen_head : the head alone on the frozen base, where that was trained before.
    """

    weights: Mapping[str, npt.NDArray[np.float32]]
    history: History
    seconds: Sequence[float]
    best_epoch: int
    validation_probabilities: npt.NDArray[np.float64]
    test_probabilities: npt.NDArray[np.float64] | None = None
    frozen_head: "Trained | None" = None

    @property
    def trainable_parameters(self) -> int:
        """2,097,665 for the head alone on VGG16 at 150 pixels."""
        return sum(each.size for each in self.weights.values())

    @property
    def validation_accuracy(self) -> float:
        """Of the best epoch, 0 … 1."""
        return self.history["val_accuracy"][self.best_epoch - 1]

    @property
    def shortfall(self) -> str | None:
        """One line if it ends below the frozen head in validation accuracy, else None."""
        before = self.frozen_head
        if before is None or self.validation_accuracy >= before.validation_accuracy:
            return None
        return (
            f"fine-tuning ends below the frozen head: {100 * self.validation_accuracy:.1f} % "
            f"of validation instead of {100 * before.validation_accuracy:.1f} %"
        )


def named(weights: Mapping[str, Any]) -> str:
    """What is trained, for people: ``4 tensors, 2,097,665 parameters: head/hidden_kernel …``."""
    count = sum(int(np.prod(each.shape)) for each in weights.values())
    names = ", ".join(
        f"{name} ({' × '.join(map(str, each.shape))})" for name, each in weights.items()
    )
    return f"{len(weights)} tensors, {count:,} parameters: {names}"
