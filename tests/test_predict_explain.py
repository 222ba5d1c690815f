"""``python -m pipeline.predict --explain``: heat maps on stdout and as PNG files."""

import csv
import io
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from bundle_sets import bundle_of, linear_head
from command import assert_one_line, run_command
from PIL import Image
from synthetic_images import draw, make_image_folder

from pipeline.api import extract_features, predict_images
from pipeline.errors import UsageError
from pipeline.evaluation.compare import compare_heads
from pipeline.models.bundle import save_bundle
from pipeline.models.image_predictions import Prediction
from pipeline.report.run_folder import write_run

SIDE = 8


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs on maps and on their means, and uncached images."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_image_folder(Path("synthetic"), splits=("train", "validation", "test"))
        make_image_folder(Path("unknown"), per_class=2)
        for pooling in ("none", "avg"):
            done = extract_features("synthetic", base="pixels", image_size=SIDE, pooling=pooling)
            compared = compare_heads(
                done.table.path, heads="logistic,knn", layers=[*done.table.layers][-1:], audit=False
            )
            run = write_run(compared, Path(f"runs-{pooling}"))
            shutil.copytree(run, Path("results", run.name), dirs_exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def _at_the_workplace(
    workplace: Path, tmp_path: Path, _empty_folder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(workplace, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def run_of(pooling: str) -> Path:
    (run,) = Path(f"runs-{pooling}").iterdir()
    return run


@pytest.mark.parametrize(
    ("pooling", "is_cached"),
    [
        ("none", True),
        ("avg", False),
        pytest.param("avg", True, marks=pytest.mark.slow),
        pytest.param("none", False, marks=pytest.mark.slow),
    ],
)
def test_json_has_values_that_add_up_to_the_log_odds(pooling: str, is_cached: bool) -> None:
    images = "synthetic/test/plain" if is_cached else "unknown"
    model = ("--model", str(run_of(pooling)), "--head", "logistic")
    plain, explained = (
        json.loads(run_command("predict", images, *model, "--json", *options).stdout)["images"]
        for options in ((), ("--explain", "--explain-dir", "maps"))
    )
    for record, expected in zip(explained, plain, strict=True):
        found = record.pop("heatmap")
        assert record | {"cached": None} == expected | {"cached": None}
        assert (found["label"], found["method"]) == (record["label"], "cam")
        assert np.shape(found["values"]) == (SIDE, SIDE)
        odds = math.log(record["probability"] / (1 - record["probability"]))
        assert np.sum(found["values"]) == pytest.approx(odds, abs=1e-5 * max(1, abs(odds)))
        with Image.open(found["file"]) as picture:
            assert picture.format == "PNG"
            assert max(picture.size) >= 448
    files = [record["path"] for record in explained]
    assert len(list(Path("maps").iterdir())) == len(files)


def test_csv_names_the_file_of_each_heat_map() -> None:
    finished = run_command("predict", "unknown", "--explain", "--csv", "--head", "knn")
    rows = list(csv.DictReader(io.StringIO(finished.stdout)))
    assert list(rows[0])[-1] == "heatmap"
    (folder,) = Path("results").glob("*-heatmaps")
    files = [os.fspath(path) for path in sorted(folder.iterdir())]
    assert [row["heatmap"] for row in rows] == files
    assert f"heat maps: 4 images in {folder}" in finished.stderr


def test_files_with_equal_or_odd_names_have_their_own_heat_maps() -> None:
    korean = f"b/{'강' * 60}.png"
    names = ["a/1.png", "b/1.png", "b/x\x1b[31m\n.png", "b/-.png", korean]
    for seed, name in enumerate(names):
        Path(name).parent.mkdir(exist_ok=True)
        draw(seed, stripes=seed % 2 == 1).save(name, "PNG")
    run_command("predict", "a", "b", "--explain", "--explain-dir", "new/maps")
    found = sorted(path.name for path in Path("new/maps").iterdir())
    assert len(found) == len(names)
    assert all(name.isprintable() and not name.startswith(".") for name in found)
    assert {"00001-1.png", "00002-1.png"} <= {f"{name[:6]}1.png" for name in found}


def test_folder_with_files_is_not_written_to() -> None:
    for name in ("unknown", "unknown/plain/000.png"):
        finished = run_command("predict", "unknown", "--explain", "--explain-dir", name, check=73)
        assert "exists: name a new folder with --explain-dir" in assert_one_line(finished)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--explain-dir", "maps"), "--explain-dir is for heat maps: add --explain"),
        (("--explain-method", "cam"), "--explain-method cam is for heat maps: add --explain"),
        (("--imagenet", "vgg16", "--explain"), "--imagenet uses a ready-made network: leave out"),
        (("--explain", "--explain-method", "cam", "--head", "knn"), "knn, which is not linear"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: tuple[str, ...], message: str) -> None:
    assert message in assert_one_line(run_command("predict", "unknown", *options, check=2))
    assert not list(Path("results").glob("*-heatmaps"))


def test_head_on_vectors_is_refused_before_an_image_is_read() -> None:
    head = linear_head(np.ones((1, 12)), np.zeros(1))
    save_bundle(bundle_of(head, layer="embedding"), Path("v.skops"))
    finished = run_command("predict", "unknown", "--model", "v.skops", "--explain", check=2)
    assert "heat maps need feature maps (H, W, C)" in assert_one_line(finished)


def test_means_over_views_have_the_heat_map_of_the_unaugmented_image() -> None:
    table = extract_features("synthetic", base="pixels", image_size=SIDE, views=1, tta=True).table
    compared = compare_heads(table.path, heads="logistic", layers=["pixels"], tta=True, audit=False)
    (outcome,) = compared.outcomes
    assert outcome.bundle is not None
    save_bundle(outcome.bundle, Path("tta.skops"))
    for use_cache, images in ((True, "synthetic/test"), (False, "unknown")):
        for each in predict_images(images, model="tta.skops", use_cache=use_cache, explain=True):
            assert isinstance(each, Prediction)
            assert each.heatmap is not None
            image = Image.open(os.fsdecode(each.path)).convert("RGB").resize((SIDE, SIDE), 2)
            row = np.asarray(image).reshape(1, -1) / np.float32(255)
            decision = outcome.bundle.estimator.decision_function(row)
            sign = 1 if each.label == outcome.bundle.classes[1] else -1
            assert each.heatmap.values.sum() == pytest.approx(sign * decision[0], abs=1e-4)


def test_open_models_without_a_head_are_refused_in_the_api() -> None:
    class Network:
        name = "network"

    with pytest.raises(UsageError, match="are of saved heads; network is a network"):
        predict_images("unknown", model=Network(), explain=True)  # type: ignore[arg-type]
