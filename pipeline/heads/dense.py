"""The book's head: one hidden layer with dropout (DLwP 5.3, listing 5.18), trained in NumPy."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.errors import UsageError
from pipeline.heads.blocks import in_blocks
from pipeline.heads.head import Candidate, FitOptions, Floats, Head, HeadSpec, Input
from pipeline.heads.minibatch import Array, Measures, Member, probabilities, train_networks
from pipeline.heads.settings import DenseSettings
from pipeline.heads.training import LabelledRows, TrainingSet
from pipeline.text import counted

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class DenseClassifier:
    """A trained network; shapes as in `pipeline.heads.minibatch.Weights`, float32."""

    hidden_kernel: Array
    hidden_bias: Array
    output_kernel: Array
    output_bias: Array
    has_probabilities: bool = True

    @property
    def parameters(self) -> int:
        return (
            self.hidden_kernel.size
            + self.hidden_bias.size
            + self.output_kernel.size
            + self.output_bias.size
        )

    def scores(self, features: Floats) -> npt.NDArray[np.float64]:
        with np.errstate(all="ignore"):  # of diverged weights
            return in_blocks(self._scores, features)

    def _scores(self, features: Floats) -> npt.NDArray[np.float64]:
        hidden = np.maximum(features @ self.hidden_kernel + self.hidden_bias, 0)
        logits = hidden @ self.output_kernel + self.output_bias
        shares = probabilities(logits).astype(np.float64)
        if shares.shape[1] == 1:
            return np.hstack([1 - shares, shares])
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))  # in float32 1 ± 1e-7


class Dense(Head):
    """A hidden layer with dropout; every setting with every seed, all in one pass over the rows.

    A seed draws initial weights and dropout; the order of the rows is the same for all.
    """

    default_input: ClassVar[Input] = "flat"
    draws: ClassVar[bool] = True
    uses_all_cores: ClassVar[bool] = True

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        wanted = {each for each in options.dense if options.wants(each.changed())}
        members = [
            Member(settings, seed)
            for settings in sorted(wanted, key=_freedom)
            for seed in dict.fromkeys(options.seeds)
        ]
        if not members:
            return
        passes = {(each.epochs, each.batch_size, each.optimizer) for each in wanted}
        if len(passes) > 1:
            raise UsageError(
                "dense: a grid shares epochs, batch_size and optimizer; received "
                + "; ".join(" ".join(map(str, each)) for each in sorted(passes))
            )
        epochs = members[0].settings.epochs
        what = f" {counted(len(members), 'network')}" if len(members) > 1 else ""
        log.debug("dense: training%s for %s", what, counted(epochs, "epoch"))

        def report(epoch: int, measured: Sequence[Measures]) -> None:
            log.debug(
                "epoch %d/%d: loss %s, accuracy %s %%; validation loss %s, accuracy %s %%",
                epoch + 1,
                epochs,
                _span([each["loss"] for each in measured], ".4f"),
                _span([100 * each["accuracy"] for each in measured], ".1f"),
                _span([each["val_loss"] for each in measured], ".4f"),
                _span([100 * each["val_accuracy"] for each in measured], ".1f"),
            )

        networks = train_networks(train, validation, members, on_epoch=report)
        for member, network in zip(members, networks, strict=True):
            yield Candidate(
                spec=HeadSpec("dense", member.settings.changed()),
                classifier=DenseClassifier(*network.weights),
                seed=member.seed,
                history=network.history,
            )


def _freedom(settings: DenseSettings) -> tuple[float, int, float]:
    """Sorts the most regularised first."""
    return -settings.dropout, settings.units, settings.learning_rate


def _span(values: Sequence[float], form: str) -> str:
    """``0.1234`` of one value, ``0.1234–0.2345`` of several."""
    return "–".join(format(value, form) for value in dict.fromkeys((min(values), max(values))))
