"""How long and how fast to train; apart from the training, so that ``--help`` needs no NumPy."""

from dataclasses import dataclass

from pipeline.errors import UsageError
from pipeline.heads.config import DenseConfig


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Epochs of RMSprop with early stopping.

    Attributes
    ----------
    epochs : at most.
    patience : stop after as many epochs without a lower validation loss.

    Raises UsageError in one line for a setting that no training can have.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 20  # the book's
    patience: int = 5

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is a number from 1; received {getattr(self, name)}")
        if not 0 < self.learning_rate < 1:
            raise UsageError(f"learning_rate is above 0 and below 1; received {self.learning_rate}")


# Of Deep Learning with Python: listings 5.18 and 5.21, and 5.22
HEAD = Schedule(epochs=30, learning_rate=2e-5)
FINE_TUNING = Schedule(epochs=100, learning_rate=1e-5)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The head's network, and how each stage is trained."""

    network: DenseConfig
    head: Schedule
    joint: Schedule
