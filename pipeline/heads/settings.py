"""The dense head's settings; apart from the head, so that ``--help`` shows them without Keras."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Optimizer = Literal["rmsprop", "adam", "sgd"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)


@dataclass(frozen=True, kw_only=True)
class DenseSettings:
    """How the dense head is built and trained; the defaults are the book's (DLwP 5.3)."""

    epochs: int = 30
    batch_size: int = 20
    units: int = 256
    dropout: float = 0.5
    learning_rate: float = 2e-5
    optimizer: Optimizer = "rmsprop"

    def changed(self) -> dict[str, Any]:
        """The settings that are not the book's."""
        book = asdict(DenseSettings())
        return {name: value for name, value in asdict(self).items() if value != book[name]}
