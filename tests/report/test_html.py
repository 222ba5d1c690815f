"""report.html is complete and correct, and names are always text."""

import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bundle_sets import bundle_of, linear_head
from report.comparisons import (
    ARABIC,
    COMPOSED,
    DECOMPOSED,
    MARKUP,
    synthetic_comparison,
    synthetic_result,
    synthetic_table,
)
from synthetic_images import draw

from pipeline.evaluation.duplicates import DuplicatePair
from pipeline.evaluation.recommendation import rank_and_recommend
from pipeline.evaluation.result import Comparison, HeadPredictions
from pipeline.report import figures, galleries, tables
from pipeline.report.html import report_html
from pipeline.report.markup import name_text, render
from pipeline.report.thumbnails import read_thumbnails

VOID = {"meta", "img"}


class Page(HTMLParser):
    """A parsed page: its elements, its text, and whether every element is closed in its place."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def anchors(self) -> list[str]:
        return [each["href"].removeprefix("#") for each in self.all("a")]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return synthetic_comparison(tmp_path_factory.mktemp("report") / "set")


@pytest.fixture(scope="module")
def source(comparison: Comparison) -> str:
    """The report of the comparison, HTML."""
    return report_html(comparison, command="python -m pipeline.classify x.h5")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def read(comparison: Comparison, **settings: object) -> Page:
    return Page(report_html(comparison, command="python -m pipeline.classify x.h5", **settings))


def test_every_section_is_there_in_order(comparison: Comparison, page: Page) -> None:
    sections = [each["id"] for each in page.all("section")]
    assert sections == [
        "heads", "curves", "confusion", "roc", "reliability", "learning", "map", "mistakes",
        "suspects", "duplicates", "run",
    ]  # fmt: skip
    assert page.anchors()[1:] == sections
    assert page.text.index(comparison.recommendation) < page.text.index(comparison.notices[0])
    assert page.text.index(comparison.notices[0]) < page.text.index("All heads")
    assert "pets & <co>" in page.text


def test_the_same_comparison_gives_the_same_bytes(comparison: Comparison, source: str) -> None:
    assert report_html(comparison, command="python -m pipeline.classify x.h5") == source
    assert len(source) < 5_000_000


def test_page_is_readable_by_a_screen_reader(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    ids = [each["id"] for _, each in page.elements if "id" in each]
    assert len(ids) == len(set(ids))
    assert set(page.anchors()) <= set(ids)
    assert all(each["aria-labelledby"] in ids for each in page.all("section"))
    assert all(each["scope"] in ("col", "row") for each in page.all("th"))
    assert page.all("img")
    assert all(each["alt"] for each in page.all("img"))
    for drawing in page.all("svg"):
        assert drawing.get("aria-hidden") == "true" or drawing["aria-label"]
    regions = [each for each in page.all("div") if each.get("role") == "region"]
    assert regions
    assert all(each["aria-label"] and each["tabindex"] == "0" for each in regions)


def test_report_loads_nothing_and_runs_nothing(source: str, page: Page) -> None:
    assert page.all("script") == page.all("link") == []
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
    ]
    allowed = ("data:image/jpeg;base64,", "data:image/png;base64,", "#")
    assert all(each.startswith(allowed) for each in addresses)
    attributes = {name for _, each in page.elements for name in each}
    assert not [name for name in attributes if name.startswith("on") or name == "style"]
    style = re.search(r"<style>(.*)</style>", source, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    policy = next(
        each["content"]
        for each in page.all("meta")
        if each.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "script" not in policy


NAMES = {
    MARKUP: MARKUP,
    "</title></style><script>alert(1)</script>": "</title></style><script>alert(1)</script>",
    "a&amp;b": "a&amp;b",
    DECOMPOSED: COMPOSED,
    ARABIC: ARABIC,
    "evil\u202egnp": "evil\\u202egnp",
    "red\x1b[31m": "red\\x1b[31m",
}


def test_class_names_are_shown_as_text(tmp_path: Path, page: Page) -> None:
    injected = read(synthetic_comparison(tmp_path / "set", classes=tuple(NAMES)))
    for shown in NAMES.values():
        assert injected.text.count(shown) >= 3
    assert injected.all("script") == []
    assert all(each["src"].startswith("data:") for each in injected.all("img"))
    assert {tag for tag, _ in injected.elements} <= {tag for tag, _ in page.elements}


def test_file_names_are_shown_as_text(tmp_path: Path) -> None:
    name = '"><b onload=x> 한글 ' + ARABIC + "a" * 150
    page = read(synthetic_comparison(tmp_path / "set", file_name=name))
    assert f"{name} 2.png" in page.text
    assert page.all("b") == 4 * [{}]  # the key figures
    pictures = [each["alt"].strip("\u2068\u2069") for each in page.all("img")]
    assert f"{name} 2.png" in pictures


def test_text_from_outside_is_escaped_wherever_it_comes_from(comparison: Comparison) -> None:
    injected = {"created": MARKUP, MARKUP: MARKUP, "caches": [{"set": MARKUP, "path": MARKUP}]}
    page = Page(
        report_html(
            replace(comparison, run=injected, recommendation=MARKUP, table_notices=(MARKUP,)),
            command=MARKUP,
        )
    )
    assert page.text.count(MARKUP) >= 8
    assert not [each for each in page.all("img") if each["src"] == "x"]


def test_table_contains_every_head_and_the_status_of_failed_ones(page: Page) -> None:
    text = page.text
    table = text[text.index("Duplicates") : text.index("Settings are chosen")]
    for expected in ("dense best", "logistic recommended", "96.0 (94.0–98.0)", "0.400", "<0.001",
                     "svm_rbf", "stopped after 10 s"):  # fmt: skip
        assert expected in table, expected


def test_sections_without_content_are_left_out(tmp_path: Path) -> None:
    comparison = synthetic_comparison(tmp_path / "set", audit=False, table_notices=(), run={})
    outcomes = tuple(replace(each, history=None) for each in comparison.outcomes)
    page = read(replace(comparison, outcomes=outcomes))
    sections = [each["id"] for each in page.all("section")]
    assert sections == ["heads", "confusion", "roc", "reliability", "run"]
    assert "Note:" not in page.text
    assert page.all("img") == []


@pytest.mark.parametrize("failing", ["tables.heads", "figures.roc", "galleries.feature_map"])
def test_a_section_that_fails_is_a_line_in_its_place(
    comparison: Comparison, page: Page, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: object) -> None:
        raise ValueError(MARKUP)

    monkeypatch.setattr(f"pipeline.report.{failing}", fail)
    failed = read(comparison)
    assert f"of the report failed (ValueError: {MARKUP}); the table is complete" in failed.text
    assert failed.anchors() == page.anchors()  # with the others
    assert len(failed.all("section")) == len(page.all("section"))
    assert not [each for each in failed.all("img") if each["src"] == "x"]


def test_layers_are_compared_where_there_are_several(comparison: Comparison) -> None:
    first = comparison.outcomes[0]
    deeper = [
        replace(first, result=synthetic_result(layer=layer, validation_accuracy=accuracy))
        for layer, accuracy in (("block13_pool", 0.91), ("block3_pool", 0.99))
    ]
    text = section(
        "layers", tables.layers(replace(comparison, outcomes=(*comparison.outcomes, *deeper)))
    )
    assert "logistic on block3_pool has the highest validation accuracy, 99.0 %" in text
    assert text.index("block3_pool") < text.index("block5_pool") < text.index("block13_pool")


def test_mistakes_have_heat_maps_where_maps_are_cached(tmp_path: Path) -> None:
    comparison = synthetic_comparison(tmp_path / "set")
    head = linear_head(np.arange(8.0)[None] - 3, np.ones(1))
    bundle = bundle_of(head, layer="block5_pool", shape=(2, 2, 8), classes=comparison.classes)

    def heat_maps(**changed: Any) -> list[str]:
        outcomes = [replace(each, bundle=bundle, **changed) for each in comparison.outcomes]
        page = read(replace(comparison, outcomes=tuple(outcomes)))
        assert ("evidence for the predicted class (cam)" in page.text) == (not changed)
        pictures = [each for each in page.all("img") if each["alt"].startswith("heat map of")]
        assert all(each["src"].startswith("data:image/jpeg;base64,") for each in pictures)
        return [each["alt"] for each in pictures]

    mistakes = int((~comparison.shown.test.correct).sum())
    assert len(heat_maps()) == mistakes > 0
    assert heat_maps(folds=5) == []  # other classifiers made the mistakes


def test_many_classes_are_summarised(tmp_path: Path) -> None:
    classes = [f"class {number:02d} of a long name" for number in range(45)]
    page = read(synthetic_comparison(tmp_path / "set", classes=classes))
    assert "the 3 classes with the lowest ROC area" in page.text
    assert "The lowest F1 comes first" in page.text
    assert [each for each in page.all("svg") if "of 45 classes" in each.get("aria-label", "")]
    assert classes[37] in page.text


def test_missing_and_changed_pictures_are_reported(tmp_path: Path) -> None:
    comparison = synthetic_comparison(tmp_path / "set")
    images = tmp_path / "set" / "images"
    (images / "picture 2.png").unlink()  # the suspect
    draw(99, stripes=True).save(images / "picture 1.png")  # half of a pair
    text = read(comparison).text
    assert "the file is gone" in text
    assert "the file has changed" in text
    for path in images.iterdir():
        path.unlink()
    images.rmdir()
    page = read(comparison)
    assert page.all("img") == []
    assert "the image folder is gone" in page.text


@pytest.mark.parametrize("path", [b"../secret.png", b"/secret.png", b"link.png", b"a/../../x.png"])
def test_no_picture_from_outside_the_image_folder_is_shown(tmp_path: Path, path: bytes) -> None:
    table = synthetic_table(tmp_path)
    secret = tmp_path / "secret.png"
    draw(7, stripes=True).save(secret)
    (tmp_path / "x.png").write_bytes(secret.read_bytes())
    (tmp_path / "images" / "link.png").symlink_to(secret)
    (tmp_path / "images" / "a").mkdir()
    paths, digests = table.columns.paths.astype("S99"), table.columns.digests.copy()
    paths[0] = path if path != b"/secret.png" else bytes(secret)
    digests[0] = np.void(hashlib.sha256(secret.read_bytes()).digest())
    table = replace(table, columns=replace(table.columns, paths=paths, digests=digests))
    thumbnails = read_thumbnails(table, [0, 1])
    assert (thumbnails[0].address, thumbnails[0].reason) == ("", "the file is gone")
    assert thumbnails[1].address.startswith("data:image/jpeg;base64,")


def test_thumbnails_keep_the_shape_of_the_picture(tmp_path: Path) -> None:
    import io

    from PIL import Image

    table = synthetic_table(tmp_path)  # pictures of 40 × 32
    address = read_thumbnails(table, [0])[0].address
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        assert image.width == 128
        assert image.height == pytest.approx(128 * 32 / 40, abs=2)


def section(name: str, data: dict[str, Any] | None) -> str:
    """The text of one section of the report."""
    return Page(render(f"{name}.html", data=data)).text


def test_predictions_of_one_of_several_fits_are_labelled(comparison: Comparison) -> None:
    repeated = with_results(comparison, fits=3)
    assert "are classified correctly (the first of 3 seeds)." in read(repeated).text
    assert "AUC in the table is the mean over 3 fits." in read(repeated).text


def test_the_learning_curve_says_why_its_accuracy_differs(comparison: Comparison) -> None:
    text = read(with_outcomes(comparison, folds=5)).text
    assert "tested on the images of the first fold. It is no head of the table" in text


def with_results(comparison: Comparison, **changes: Any) -> Comparison:
    """The same with other figures in every row."""
    outcomes = tuple(
        replace(each, result=replace(each.result, **changes)) for each in comparison.outcomes
    )
    return replace(comparison, outcomes=outcomes)


def with_outcomes(comparison: Comparison, **changes: Any) -> Comparison:
    """The same with other predictions in every row that has some."""
    outcomes = tuple(
        replace(each, **changes) if each.test else each for each in comparison.outcomes
    )
    return replace(comparison, outcomes=outcomes)


def reliability_text(comparison: Comparison) -> str:
    data = figures.reliability(comparison.shown)
    assert data is not None
    return section("reliability", data)


def with_validation(comparison: Comparison, *, wrong: int, confidence: float) -> Comparison:
    """The same with this many of 6 validation images wrong, all with this confidence."""
    validation = comparison.shown.validation
    predicted = validation.labels.copy()
    predicted[:wrong] ^= 1
    scores = np.full_like(validation.scores, 1 - confidence)
    scores[np.arange(len(scores)), predicted] = confidence
    return with_outcomes(comparison, validation=replace(validation, scores=scores))


def test_calibration_with_the_temperature_is_compared_on_test(comparison: Comparison) -> None:
    overconfident = with_validation(comparison, wrong=3, confidence=0.9)

    def text(**changes: Any) -> str:
        return reliability_text(with_results(overconfident, **changes))

    assert "with temperature 1.30" in text()
    assert "falls from 0.120 to 0.100" in text()
    assert "with temperature" not in text(calibrated_ece=math.nan)
    assert "are fitted on validation." not in text()
    fitted = with_outcomes(overconfident, native_probabilities=False)
    assert "are fitted on validation." in reliability_text(fitted)


@pytest.mark.parametrize("fits", [1, 5])
@pytest.mark.parametrize(
    "worse", [{"calibrated_log_loss": 0.2}, {"calibrated_log_loss": 0.12}, {"calibrated_ece": 0.03}]
)
def test_a_temperature_that_does_not_improve_calibration_is_not_offered(
    comparison: Comparison, fits: int, worse: dict[str, float]
) -> None:
    overconfident = with_validation(comparison, wrong=3, confidence=0.9)
    text = reliability_text(with_results(overconfident, fits=fits, **worse))
    assert "temperature, fitted on validation, is not offered" in text
    assert text.count("0.120") == 1  # there is nothing to compare


def test_the_mean_temperature_of_several_fits_is_not_interpreted(comparison: Comparison) -> None:
    text = reliability_text(with_results(comparison, fits=5))
    assert "Each of the 5 fits has its own temperature" in text
    assert "falls from 0.120 to 0.100" in text
    assert "On validation the head is" not in text
    assert "1.30" not in text


def test_temperature_is_not_interpreted_without_validation_errors(comparison: Comparison) -> None:
    validation = comparison.shown.validation
    scores = np.full_like(validation.scores, 0.4)
    scores[np.arange(len(scores)), validation.labels] = 0.6
    all_right = with_outcomes(comparison, validation=replace(validation, scores=scores))
    text = reliability_text(with_results(all_right, temperature=8.77))
    assert "cannot show whether the head is overconfident" in text
    assert "8.77" not in text


@pytest.mark.parametrize(
    ("wrong", "confidence", "temperature", "verdict"),
    [
        (3, 0.9, 2.0, "On validation the head is overconfident"),
        (1, 0.6, 0.5, "On validation the head is underconfident"),
        (2, 2 / 3, 2.0, "is not offered"),  # 4 of 6 are right: no temperature is better than 1
    ],
)
def test_a_head_is_overconfident_only_where_the_temperature_helps_on_validation(
    comparison: Comparison, wrong: int, confidence: float, temperature: float, verdict: str
) -> None:
    changed = with_validation(comparison, wrong=wrong, confidence=confidence)
    text = reliability_text(with_results(changed, temperature=temperature))
    assert verdict in text


def test_the_selection_metric_is_named(comparison: Comparison, page: Page) -> None:
    balanced = replace(
        with_results(comparison, validation_balanced_accuracy=0.913),
        run={**comparison.run, "balance": True},
    )
    assert "balanced validation accuracy91.3 %used to select the head" in read(balanced).text
    assert "validation accuracy97.0 %used to select the head" in page.text


def test_layers_are_compared_by_the_selection_metric(comparison: Comparison) -> None:
    first = comparison.outcomes[0]
    outcomes = [
        replace(
            first,
            result=synthetic_result(
                layer=layer,
                recommended=True,
                validation_accuracy=plain,
                validation_balanced_accuracy=balanced,
            ),
        )
        for layer, plain, balanced in (("block3_pool", 0.99, 0.5), ("block4_pool", 0.5, 0.9))
    ]
    run = {**comparison.run, "balance": True}
    text = section("layers", tables.layers(replace(comparison, outcomes=tuple(outcomes), run=run)))
    assert "logistic on block4_pool has the highest balanced validation accuracy, 90.0 %" in text


def test_no_row_is_recommended_without_a_recommendation(comparison: Comparison) -> None:
    def guessing(predictions: HeadPredictions) -> HeadPredictions:
        return predictions and replace(predictions, scores=np.tile([0.6, 0.4], (6, 1)))

    guesses = [
        replace(each, test=guessing(each.test), validation=guessing(each.validation))
        for each in comparison.outcomes
    ]
    outcomes, sentence = rank_and_recommend(guesses)
    page = read(replace(comparison, outcomes=tuple(outcomes), recommendation=sentence))
    assert page.text.count("recommended") == page.text.count("No head can be recommended") == 1
    assert page.text.count("choice on validation") == 2  # in the sentence and in the table


def test_joiners_of_persian_and_emoji_are_preserved() -> None:
    persian = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert name_text(persian) == persian
    family = "\U0001f468\u200d\U0001f467"
    assert name_text(f"{family} cat\u200ds") == f"{family} cat\\u200ds"  # not to look like "cats"


def test_important_columns_come_first(source: str) -> None:
    titles = re.findall(r"<th scope=\"col\"[^>]*>([^<]*)</th>", source[: source.index("<tbody>")])
    assert titles[:2] == ["head", "test\u00a0% (95\u00a0%)"]
    assert titles.index("log loss") < titles.index("parameters") < titles.index("F1\u00a0%")


def duplicates_text(comparison: Comparison) -> str:
    assert comparison.findings is not None
    data = galleries.duplicates(comparison, comparison.findings)
    assert data is not None
    return section("duplicates", data)


def test_duplicates_are_across_folds_where_there_are_folds(comparison: Comparison) -> None:
    text = duplicates_text(with_outcomes(comparison, folds=5))
    assert "identical files, in different folds" in text
    assert "splits" not in text
    assert "(train)" not in text


def test_sixty_identical_files_are_one_group(tmp_path: Path) -> None:
    classes = [f"class {number}" for number in range(8)]  # 72 images
    comparison = synthetic_comparison(tmp_path / "set", classes=classes)
    assert comparison.findings is not None
    frames = tuple(
        DuplicatePair(first=one, second=other, similarity=1.0, exact=True, across=False)
        for one, other in combinations(range(60), 2)
    )
    leak = DuplicatePair(first=62, second=70, similarity=0.98, exact=False, across=True)
    findings = replace(comparison.findings, duplicates=(*frames, leak))
    text = duplicates_text(replace(comparison, audit=SimpleNamespace(findings=findings)))
    assert "62 images in 2 groups" in text
    assert "1 group has images in different splits" in text
    near = text.index("near-duplicates, similarity 0.980, in different splits")
    assert near < text.index("60 images: identical files; 56 more not shown")
    assert text.count(".png") == 2 + 4
