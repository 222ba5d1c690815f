"""`DenseConfig`: the options of the dense head, without NumPy, for a quick ``--help``."""

import importlib.util
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Literal, get_args

from pipeline.config import documented, fraction, option, positive_number, whole_number
from pipeline.errors import UnreachableError, UsageError

Input = Literal["flat", "pooled"]  # of a head: flattened or averaged feature maps
Optimizer = Literal["rmsprop", "adam", "sgd"]
THRESHOLD = 0.5  # an image has the labels of a higher probability
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)

_number = partial(option, type=whole_number, metavar="N,…")


@documented
@dataclass(kw_only=True)
class DenseConfig:
    """Options of the dense head; the defaults are from *Deep Learning with Python*, 5.3.

    Raises UsageError for an impossible value.
    """

    epochs: int = _number(30, help="number of epochs (default: 30)")
    batch_size: int = _number(20, help="images per batch (default: 20)")
    units: int = _number(256, help="width of the hidden layer (default: 256)")
    dropout: float = option(0.5, type=fraction, metavar="P,…", help="dropout rate (default: 0.5)")
    learning_rate: float = option(
        2e-5, type=positive_number, metavar="R,…", help="learning rate (default: 2e-05)"
    )
    optimizer: Optimizer = option(
        "rmsprop", type=str, metavar="NAME,…", help="rmsprop, adam or sgd (default: rmsprop)"
    )
    patience: int | None = _number(
        None, help="epochs without a lower validation loss before stopping (default: never stop)"
    )
    tensorboard: str | None = option(
        None, type=str, metavar="DIR", help="folder for TensorBoard logs"
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "units", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"dense: {name}: expected a whole number from 1; received {value}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dense: dropout: expected 0 to below 1; received {self.dropout}")
        if not self.learning_rate > 0:
            raise UsageError(
                f"dense: learning_rate: expected a number above 0; received {self.learning_rate}"
            )
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(
                f"dense: optimizer: expected {' or '.join(OPTIMIZERS)}; received {self.optimizer!r}"
            )
        if self.tensorboard is not None and importlib.util.find_spec("tensorboard") is None:
            raise UnreachableError("tensorboard is missing: pip install -e '.[tensorboard]'")

    def changed(self) -> dict[str, Any]:
        """Return the values that differ from the defaults."""
        defaults = {field.name: field.default for field in fields(DenseConfig)}
        return {name: value for name, value in asdict(self).items() if value != defaults.get(name)}
