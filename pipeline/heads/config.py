"""The dense head's options, apart from the head: ``--help`` shows them without loading NumPy."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from pipeline.errors import UsageError

Optimizer = Literal["rmsprop", "adam", "sgd"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)


@dataclass(kw_only=True)
class DenseConfig:
    """How the dense head is built and trained; the defaults are the book's (DLwP 5.3).

    Attributes
    ----------
    units : width of the hidden layer.
    patience : stop when the validation loss has not fallen for this many epochs, and keep the
        weights of the best one; None trains all epochs.
    tensorboard : folder for TensorBoard's event files.

    Raises UsageError for a value that no training can have.
    """

    epochs: int = 30
    batch_size: int = 20
    units: int = 256
    dropout: float = 0.5
    learning_rate: float = 2e-5
    optimizer: Optimizer = "rmsprop"
    patience: int | None = None
    tensorboard: str | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "units", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"dense: {name} is a number from 1; received {value}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dense: dropout is from 0 to below 1; received {self.dropout}")
        if not self.learning_rate > 0:
            raise UsageError(f"dense: learning_rate is above 0; received {self.learning_rate}")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(
                f"dense: optimizer is one of {', '.join(OPTIMIZERS)}; received {self.optimizer!r}"
            )

    def changed(self) -> dict[str, Any]:
        """The values that are not the book's."""
        book = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != book[name]}
