"""One sentence describes the training curves."""

import numpy as np
import pytest

from pipeline.report.curves import describe_curves, smooth


def history(
    val_loss: list[float], val_accuracy: list[float] | None = None, *, accuracy: float = 0.9
) -> dict[str, list[float]]:
    epochs = len(val_loss)
    return {
        "loss": (0.7 * 0.8 ** np.arange(epochs)).tolist(),
        "accuracy": [accuracy] * epochs,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy or [0.9] * epochs,
    }


def valley(turn: int, epochs: int, slope: float = 0.02) -> list[float]:
    return [0.2 + slope * abs(epoch - turn) for epoch in range(1, epochs + 1)]


@pytest.mark.parametrize(("turn", "epochs"), [(3, 8), (10, 30), (20, 60)])
def test_overfitting_names_its_first_epoch(turn: int, epochs: int) -> None:
    assert f"from epoch {turn} on" in describe_curves(history(valley(turn, epochs)))


def test_noise_barely_moves_the_epoch_of_overfitting() -> None:
    random = np.random.default_rng(0)
    noisy = [value + random.normal(0, 0.01) for value in valley(12, 40)]
    sentence = describe_curves(history(noisy))
    assert 9 <= int(sentence.split("from epoch ")[1].split()[0]) <= 15


def test_accuracy_that_does_not_fall_while_loss_rises_is_explained() -> None:
    losses = valley(5, 20)
    assert "Validation accuracy does not fall" in describe_curves(history(losses, [0.95] * 20))
    falls = describe_curves(history(losses, [0.95] * 10 + [0.9] * 10))
    assert "falls too, from 95.0 % to 90.0 %" in falls


def test_loss_that_still_falls_suggests_more_epochs() -> None:
    sentence = describe_curves(history((0.7 * 0.95 ** np.arange(20)).tolist()))
    assert "more epochs would probably help" in sentence
    assert "Overfitting" not in sentence


@pytest.mark.parametrize(
    "losses", [[0.6, 0.4, *[0.3] * 18], (0.7 * 0.95 ** np.arange(20)).tolist()]
)
def test_a_gap_between_training_and_validation_accuracy_is_overfitting(losses: list[float]) -> None:
    sentence = describe_curves(history(losses, [0.856] * 20, accuracy=1.0))
    assert "training accuracy is 100.0 %, validation accuracy 85.6 %" in sentence
    assert "no " not in sentence
    for accuracy in (0.87, 0.8):
        small = describe_curves(history(losses, [0.856] * 20, accuracy=accuracy))
        assert "There is no" in small


def test_a_level_end_is_neither_overfitting_nor_progress() -> None:
    sentence = describe_curves(history([0.6, 0.4, 0.3, 0.21] + [0.2] * 16))
    assert "level at 0.200 from about epoch 5 on" in sentence


@pytest.mark.parametrize(("first", "last", "epochs"), [(5.0, 4.615, 8), (4.6, 4.31, 30)])
def test_a_loss_that_falls_evenly_is_not_level(first: float, last: float, epochs: int) -> None:
    sentence = describe_curves(history(np.linspace(first, last, epochs).tolist()))
    assert "still falls at the end" in sentence


def test_a_negligible_rise_is_not_overfitting() -> None:
    falls, rises = np.geomspace(0.3, 5e-8, 10), np.linspace(5e-8, 1e-7, 10)
    assert "level at 0.000" in describe_curves(history([*falls, *rises]))


def test_noise_alone_is_neither_overfitting_nor_progress() -> None:
    random = np.random.default_rng(0)
    sentences = [describe_curves(history(random.normal(0.7, 0.01, 20).tolist())) for _ in range(50)]
    assert sum("is level" in sentence for sentence in sentences) >= 47


@pytest.mark.parametrize(
    ("losses", "expected"), [([0.3, 0.2], "Too few"), ([0.5] * 9 + [float("nan")], "diverged")]
)
def test_too_few_epochs_and_divergence_are_reported(losses: list[float], expected: str) -> None:
    assert expected in describe_curves(history(losses))


def test_smoothing_is_an_exponential_moving_average() -> None:
    # each point: factor × the smoothed one before + (1 - factor) × itself; the first is unchanged
    assert smooth([1.0, 2.0, 4.0], 0.5) == [1.0, 1.5, 2.75]
    assert smooth([3.0, 1.0], 0.0) == [3.0, 1.0]
    assert smooth([], 0.8) == []
