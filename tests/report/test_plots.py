"""Plots are drawn for any number of classes and any name, without a word on stderr."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pipeline.evaluation.result import Outcome, Result
from pipeline.report.plots import draw_confusion, draw_curves, smooth

NAN = float("nan")


def drawn_outcome(class_count: int = 2, *, epochs: int = 5) -> Outcome:
    random = np.random.default_rng(class_count)
    numbers = dict.fromkeys(
        ("train_accuracy", "validation_accuracy", "test_accuracy", "test_low", "test_high"), 0.5
    ) | dict.fromkeys(("macro_f1", "roc_auc", "log_loss", "top5_accuracy"), NAN)
    result = Result(
        head="dense",
        input="flat",
        params="",
        fit_seconds=1.0,
        predict_ms=1.0,
        parameters=1,
        base="vgg16",
        layer="block5_pool",
        image_size=150,
        fingerprint="0" * 12,
        cache="cache/drawn.h5",
        **numbers,
    )
    history = {
        name: tuple(random.random(epochs))
        for name in ("loss", "accuracy", "val_loss", "val_accuracy")
    }
    confusion = random.integers(0, 3, (class_count,) * 2) + np.eye(class_count, dtype=int) * 50
    return Outcome(result=result, confusion=confusion, history=history)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, to look into."""
    saved: list[Figure] = []
    original = Figure.savefig

    def savefig(self: Figure, *args: object, **settings: object) -> None:
        saved.append(self)
        original(self, *args, **settings)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("class_count", [2, 10, 60])
def test_confusion_is_drawn_for_few_and_many_classes(
    class_count: int, tmp_path: Path, figures: list[Figure]
) -> None:
    outcome = drawn_outcome(class_count)
    names = [f"class {number}" for number in range(class_count)]
    draw_confusion(outcome, names, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) > 400
    axes = figures[0].axes[0]
    counts = outcome.confusion
    if class_count <= 10:
        assert len(texts(axes)) == class_count**2
        share = 100 * counts[0, 0] / counts[0].sum()
        assert texts(axes)[0] == f"{share:.1f} %\n{counts[0, 0]}"
        assert [label.get_text() for label in axes.get_yticklabels()] == names
    else:
        assert texts(axes) == []
    assert axes.get_xlabel().startswith("predicted class")
    assert axes.get_ylabel().startswith("true class")
    correct = 100 * np.trace(counts) / counts.sum()
    assert f"{correct:.1f} % of {counts.sum():,} test images" in figures[0].get_suptitle()


@pytest.mark.parametrize(
    "name", ["$\\frac{$", "猫", "قطة", "a" * 300, "x\x1b[31m\ny", "", "_", "100 % <b>"]
)
def test_any_class_name_is_drawn_in_silence(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_confusion(drawn_outcome(), [name, "dogs"], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 5000
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("epochs", "smoothing"), [(1, 0.8), (30, 0.8), (30, 0.0)])
def test_curves_show_each_epoch_and_the_moving_average(
    epochs: int, smoothing: float, tmp_path: Path, figures: list[Figure]
) -> None:
    outcome = drawn_outcome(epochs=epochs)
    draw_curves(outcome, tmp_path / "curves.png", smoothing=smoothing)
    assert (tmp_path / "curves.png").stat().st_size > 5000
    loss, accuracy = figures[0].axes
    assert outcome.history is not None
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        dots, line, val_dots, val_line = (artist.get_ydata() for artist in axes.lines)
        np.testing.assert_allclose(dots, outcome.history[name])
        np.testing.assert_allclose(line, smooth(outcome.history[name], smoothing))
        np.testing.assert_allclose(val_dots, outcome.history[f"val_{name}"])
        np.testing.assert_allclose(val_line, smooth(outcome.history[f"val_{name}"], smoothing))
        assert axes.get_xlabel() == "epoch"
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == ["train", "validation"]


def test_smoothing_is_the_books() -> None:
    # each point: factor × the smoothed one before + (1 - factor) × itself; the first as it is
    assert smooth([1.0, 2.0, 4.0], 0.5) == [1.0, 1.5, 2.75]
    assert smooth([3.0, 1.0], 0.0) == [3.0, 1.0]
    assert smooth([], 0.8) == []


def test_an_accuracy_of_100_percent_is_not_cut(tmp_path: Path, figures: list[Figure]) -> None:
    outcome = drawn_outcome(epochs=4)
    history = {**(outcome.history or {}), "accuracy": (1.0,) * 4, "val_accuracy": (1.0,) * 4}
    draw_curves(
        Outcome(result=outcome.result, confusion=outcome.confusion, history=history),
        tmp_path / "curves.png",
        smoothing=0.8,
    )
    low, high = figures[0].axes[1].get_ylim()
    assert low < 1 < high
