"""Plots of any number of classes and any name, without output on stderr."""

import re
import warnings
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from report.comparisons import DECOMPOSED, synthetic_result
from sklearn.metrics import confusion_matrix

from pipeline.evaluation.result import HeadPredictions, Outcome
from pipeline.report.curves import smooth
from pipeline.report.plots import (
    COLOURS,
    DASHES,
    GLYPHS,
    MARKERS,
    STYLES,
    draw_lines,
    inline_svg,
    short_name,
    write_confusion,
    write_curves,
)


def synthetic_outcome(class_count: int = 2, *, epochs: int = 5) -> Outcome:
    random = np.random.default_rng(class_count)
    labels = np.repeat(np.arange(class_count), 55)
    predicted = np.where(random.random(len(labels)) < 0.1, 0, labels)
    test = HeadPredictions(
        rows=np.arange(len(labels)),
        keys=np.zeros(len(labels), "V32"),
        paths=np.zeros(len(labels), "S1"),
        labels=labels,
        scores=np.eye(class_count)[predicted],
    )
    history = {
        name: tuple(random.random(epochs))
        for name in ("loss", "accuracy", "val_loss", "val_accuracy")
    }
    return Outcome(result=synthetic_result(head="dense", input="flat"), test=test, history=history)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The saved figures, for inspection."""
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
def test_confusion_matrix_fits_few_and_many_classes(
    class_count: int, tmp_path: Path, figures: list[Figure]
) -> None:
    outcome = synthetic_outcome(class_count)
    names = [f"class {number}" for number in range(class_count)]
    write_confusion(outcome, names, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) > 400
    axes = figures[0].axes[0]
    counts = confusion_matrix(
        outcome.test.labels, outcome.test.predicted, labels=range(class_count)
    )
    if class_count <= 10:
        assert len(texts(axes)) == class_count**2 + (counts > 0).sum()
        share = 100 * counts[0, 0] / counts[0].sum()
        assert texts(axes)[:2] == [f"{share:.1f} %", f"{counts[0, 0]}"]
        assert [label.get_text() for label in axes.get_yticklabels()] == names
    else:
        assert texts(axes) == []
    assert axes.get_xlabel().startswith("predicted class")
    assert axes.get_ylabel().startswith("true class")
    correct = 100 * np.trace(counts) / counts.sum()
    assert f"{correct:.1f} % of {counts.sum():,} test images" in figures[0].get_suptitle()


@pytest.mark.parametrize(
    "name", ["$\\frac{$", "猫", DECOMPOSED, "قطة", "a" * 300, "x\x1b[31m\ny", "", "_", "100 % <b>"]
)
def test_any_class_name_is_drawn_without_warnings(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_confusion(synthetic_outcome(), [name, "dogs"], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 5000
    err = capfd.readouterr().err
    assert not err or err.startswith("confusion.png shows boxes instead of ")


@pytest.mark.parametrize(("epochs", "smoothing"), [(1, 0.8), (30, 0.8), (30, 0.0)])
def test_curves_show_each_epoch_and_the_moving_average(
    epochs: int, smoothing: float, tmp_path: Path, figures: list[Figure]
) -> None:
    outcome = synthetic_outcome(epochs=epochs)
    write_curves(outcome, tmp_path / "curves.png", smoothing=smoothing)
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


def svg(label: str = "said") -> str:
    lines = [(f"{short_name('_a <b> & c')}, area 1", np.eye(2))]
    return inline_svg(lambda axes: draw_lines(axes, lines, titles=("x", "y")), label=label)


def test_inline_svg_uses_the_colours_and_fonts_of_the_page() -> None:
    drawing = svg()
    assert drawing == svg()
    assert 'aria-label="said"' in drawing
    assert 'stroke="var(--s0)"' in drawing
    assert "style" not in drawing
    assert "font-family" not in drawing
    assert not [colour for colour in COLOURS.values() if colour in drawing]
    assert "_a &lt;b&gt; &amp; c, area 1</text>" in drawing


def test_ids_of_drawings_are_unique() -> None:
    ids = [set(re.findall(r' id="([^"]*)"', svg(label))) for label in ("one", "other")]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_styles_differ_in_shape_and_not_only_in_colour() -> None:
    assert len(set(MARKERS)) == len(set(GLYPHS)) == len(set(DASHES)) == STYLES


def test_colours_are_those_of_the_page_in_light() -> None:
    css = resources.files("pipeline.report").joinpath("report.css").read_text("utf-8")
    light = css[: css.index("@media")]
    for name, colour in COLOURS.items():
        assert f"--{name}: {colour};" in light


def test_the_figure_says_which_of_several_fits_it_is_of(
    tmp_path: Path, figures: list[Figure]
) -> None:
    outcome = synthetic_outcome()
    for folds, fits, text in (
        (0, 1, "images correct"),
        (5, 5, "images correct"),
        (5, 15, "(the first of 3 repeats)"),
        (0, 3, "(the first of 3 seeds)"),
    ):
        repeated = replace(outcome, folds=folds, result=replace(outcome.result, fits=fits))
        write_confusion(repeated, ["a", "b"], tmp_path / "confusion.png")
        assert figures[-1].get_suptitle().endswith(text)


def test_rare_mistakes_are_coloured(figures: list[Figure], tmp_path: Path) -> None:
    write_confusion(synthetic_outcome(), ["a", "b"], tmp_path / "confusion.png")
    image = figures[0].axes[0].images[0]
    nothing, rare, all_of_it = image.to_rgba(np.array([0.0, 0.1, 100.0]))[:, 3]
    assert nothing == 0 < rare < all_of_it


def test_an_accuracy_of_100_percent_is_not_cut(tmp_path: Path, figures: list[Figure]) -> None:
    outcome = synthetic_outcome(epochs=4)
    history = {**(outcome.history or {}), "accuracy": (1.0,) * 4, "val_accuracy": (1.0,) * 4}
    write_curves(
        replace(outcome, history=history),
        tmp_path / "curves.png",
        smoothing=0.8,
    )
    low, high = figures[0].axes[1].get_ylim()
    assert low < 1 < high
