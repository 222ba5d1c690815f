"""One sentence says what the training curves show."""

import numpy as np
import pytest

from pipeline.report.curves import describe_curves, smooth


def history(
    val_loss: list[float], val_accuracy: list[float] | None = None
) -> dict[str, list[float]]:
    epochs = len(val_loss)
    falling = (0.7 * 0.8 ** np.arange(epochs)).tolist()
    return {
        "loss": falling,
        "accuracy": [1 - value for value in falling],
        "val_loss": val_loss,
        "val_accuracy": val_accuracy or [0.9] * epochs,
    }


def valley(turn: int, epochs: int, slope: float = 0.02) -> list[float]:
    return [0.2 + slope * abs(epoch - turn) for epoch in range(1, epochs + 1)]


@pytest.mark.parametrize(("turn", "epochs"), [(3, 8), (10, 30), (20, 60)])
def test_overfitting_is_dated(turn: int, epochs: int) -> None:
    assert f"from epoch {turn} on" in describe_curves(history(valley(turn, epochs)))


def test_noise_does_not_move_the_turn_far() -> None:
    random = np.random.default_rng(0)
    noisy = [value + random.normal(0, 0.01) for value in valley(12, 40)]
    sentence = describe_curves(history(noisy))
    assert 9 <= int(sentence.split("from epoch ")[1].split()[0]) <= 15


def test_accuracy_that_holds_while_loss_rises_is_explained() -> None:
    losses = valley(5, 20)
    assert "holds all the same" in describe_curves(history(losses, [0.95] * 20))
    falls = describe_curves(history(losses, [0.95] * 10 + [0.9] * 10))
    assert "falls with it, from 95.0 % to 90.0 %" in falls


def test_a_head_that_still_learns_is_told_to_go_on() -> None:
    sentence = describe_curves(history((0.7 * 0.95 ** np.arange(20)).tolist()))
    assert "more epochs would probably help" in sentence
    assert "Overfitting" not in sentence


def test_a_flat_end_is_neither() -> None:
    sentence = describe_curves(history([0.6, 0.4, 0.3, 0.21] + [0.2] * 16))
    assert "levelled off at 0.200, from about epoch 5 on" in sentence


@pytest.mark.parametrize(("first", "last", "epochs"), [(5.0, 4.615, 8), (4.6, 4.31, 30)])
def test_a_loss_that_falls_evenly_has_not_levelled_off(
    first: float, last: float, epochs: int
) -> None:
    sentence = describe_curves(history(np.linspace(first, last, epochs).tolist()))
    assert "still falls at the end" in sentence


def test_a_rise_that_does_not_matter_is_no_overfitting() -> None:
    falls, rises = np.geomspace(0.3, 5e-8, 10), np.linspace(5e-8, 1e-7, 10)
    assert "levelled off at 0.000" in describe_curves(history([*falls, *rises]))


def test_noise_alone_is_neither_overfitting_nor_progress() -> None:
    random = np.random.default_rng(0)
    told = [describe_curves(history(random.normal(0.7, 0.01, 20).tolist())) for _ in range(50)]
    assert sum("levelled off" in sentence for sentence in told) >= 47


@pytest.mark.parametrize(
    ("losses", "expected"), [([0.3, 0.2], "Too few"), ([0.5] * 9 + [float("nan")], "diverged")]
)
def test_what_cannot_be_judged_is_not(losses: list[float], expected: str) -> None:
    assert expected in describe_curves(history(losses))


def test_smoothing_is_the_books() -> None:
    # each point: factor × the smoothed one before + (1 - factor) × itself; the first as it is
    assert smooth([1.0, 2.0, 4.0], 0.5) == [1.0, 1.5, 2.75]
    assert smooth([3.0, 1.0], 0.0) == [3.0, 1.0]
    assert smooth([], 0.8) == []
