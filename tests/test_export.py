"""``python -m pipeline.export``: an exported model predicts as in the comparison."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from command import modules_loaded_by
from synthetic_images import make_image_folder

from pipeline import durable, extract_features
from pipeline.errors import BadDataError, CannotCreateError, PipelineError, UnreachableError
from pipeline.evaluation.compare import compare_heads
from pipeline.export import main
from pipeline.images.decode import pixels_digest
from pipeline.models import export
from pipeline.models.bundle import load_bundle, save_bundle
from pipeline.models.export import export_bundle, predict_elsewhere
from pipeline.models.runs import find_bundle
from pipeline.report.run_folder import write_run


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a synthetic set, copies of its files made before training, and a run."""
    folder = tmp_path_factory.mktemp("lab")
    data = make_image_folder(folder / "synthetic", splits=("train", "validation", "test"))
    shutil.copytree(data, folder / "copies")
    cache_dir = folder / "cache"
    cache = extract_features(data, base="pixels", image_size=16, cache_dir=cache_dir).table.path
    comparison = compare_heads(cache, heads="logistic:flat,linear_svm:flat,ridge,knn", audit=False)
    write_run(comparison, folder / "results").rename(folder / "run")
    return folder


def expected_of(lab: Path, head: str) -> tuple[list[Path], np.ndarray]:
    """Return copies of the test images and the head's probabilities of their cached features."""
    bundle = load_bundle(find_bundle(lab / "run", head))
    images = export.reference_images(bundle)
    copies = [lab / "copies" / path.relative_to(lab / "synthetic") for path in images.paths]
    return copies, images.predictions(bundle)


def test_onnx_predicts_copied_files_as_in_the_comparison_without_this_project(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(lab / "run"), "--format", "onnx", "--head", "logistic"])
    agreement, _, written = capsys.readouterr().out.splitlines()
    assert agreement.startswith("predicts as in the comparison: largest difference ")
    assert agreement.endswith("no decision of 24 changed")
    folder = lab / "run" / "exports" / "logistic-onnx"
    assert written == f"written to {folder}"
    names = [path.name for path in sorted(folder.iterdir())]
    assert names == ["README.md", "model.onnx", "predict.py"]
    copies, expected = expected_of(lab, "logistic")
    found = predict_elsewhere(folder / "predict.py", copies)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(CannotCreateError, match="exists: choose"):
        main([str(lab / "run"), "--format", "onnx", "--head", "logistic"])


def test_predict_py_prints_each_file_and_skips_other_files(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(lab / "run"), "--format", "onnx", "--head", "ridge", "--json", "--out", "made"])
    document = json.loads(capsys.readouterr().out)
    assert document.pop("max_difference") < 1e-5
    assert document == {"folder": "made", "images": 24, "changed": 0}
    copies, expected = expected_of(lab, "ridge")
    Path("broken.jpg").write_bytes(b"text")
    shown = subprocess.run(
        [sys.executable, "-I", "made/predict.py", copies[0], "broken.jpg", copies[-1]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.splitlines() == [
        f"{copies[0]}\tplain\t{expected[0, 0]:.4f}",
        f"{copies[-1]}\tstriped\t{expected[-1, 1]:.4f}",
    ]
    assert shown.stderr.startswith("broken.jpg\tskipped\tcannot identify image file")


@pytest.mark.slow
def test_keras_predicts_copied_files_as_in_the_comparison_without_this_project(lab: Path) -> None:
    done = export_bundle(
        find_bundle(lab / "run", "ridge"), format="keras", out=Path("new/ridge"), check_images=5
    )
    assert done.parity.count == 5
    assert "of 5 changed" in (done.folder / "README.md").read_text("utf-8")
    copies, expected = expected_of(lab, "ridge")
    found = predict_elsewhere(done.folder / "predict.py", copies)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_predict_elsewhere_cannot_import_this_project(tmp_path: Path) -> None:
    script = tmp_path / "predict.py"
    script.write_text("def predict(paths):\n    import pipeline.images\n")
    with pytest.raises(BadDataError, match=r"predict\.py failed: ModuleNotFoundError"):
        predict_elsewhere(script, [tmp_path])


PLANTED = {
    "order of colours": (
        'return np.asarray(rgb.convert("RGB"))',
        'return np.asarray(rgb.convert("RGB"))[..., ::-1]',
    ),
    "resize policy": ('resize == "crop"', 'resize == "squash"'),
    "filter": ("Resampling.BILINEAR)\n    return", "Resampling.NEAREST)\n    return"),
    "order of classes": ("return np.concatenate", "return 1 - np.concatenate"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_error_planted_in_predict_py_is_found_and_leaves_nothing(
    lab: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = export._template

    def planted(file: str) -> str:
        right, wrong = PLANTED[name]
        return template(file).replace(right, wrong)

    assert planted("predict.py") != template("predict.py")
    monkeypatch.setattr(export, "_template", planted)
    with pytest.raises(BadDataError, match="the exported model does not predict"):
        export_bundle(find_bundle(lab / "run", "linear_svm"), format="onnx", out=Path("new/onnx"))
    assert list(Path.cwd().iterdir()) == []


def test_error_planted_in_the_model_is_found_and_leaves_nothing(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.models import composition

    monkeypatch.setattr(composition, "_pool", lambda maps, pooling: maps[..., ::-1])
    with pytest.raises(BadDataError, match="the exported model does not predict"):
        export_bundle(find_bundle(lab / "run", "linear_svm"), format="onnx", out=Path("new/onnx"))
    assert list(Path.cwd().iterdir()) == []


def test_link_in_a_received_run_writes_nothing_outside_it(lab: Path) -> None:
    shutil.copytree(lab / "run", "run", ignore=shutil.ignore_patterns("exports"))
    Path("victim").mkdir()
    for target in ("../victim", "models", "../not there", "exports"):
        Path("run/exports").symlink_to(target)
        before = sorted(Path.cwd().rglob("*"))
        with pytest.raises(BadDataError, match="exports is a link out of the run: choose --out"):
            export_bundle(find_bundle(Path("run"), "ridge"), format="onnx")
        assert sorted(Path.cwd().rglob("*")) == before
        Path("run/exports").unlink()
    Path("run/exports").mkdir()
    Path("run/exports/ridge-onnx").symlink_to("../../victim/new")
    with pytest.raises(CannotCreateError, match="exists: choose"):
        export_bundle(find_bundle(Path("run"), "ridge"), format="onnx")


def test_next_export_removes_the_folders_of_a_killed_one(lab: Path) -> None:
    Path("elsewhere").mkdir()
    Path(".export-linkedto").symlink_to("elsewhere")
    two_days_ago = time.time() - 2 * durable.STALE_AFTER
    for name in (".export-abc12_78", "new/.export-abc12_78", ".export-running0", ".export-theirs"):
        Path(name, "onnx").mkdir(parents=True)
        Path(name, "onnx", "model.onnx").write_bytes(b"half")
        if "running" not in name:
            os.utime(name, (two_days_ago, two_days_ago))
    os.utime("elsewhere", (two_days_ago, two_days_ago))
    export_bundle(find_bundle(lab / "run", "ridge"), format="onnx", out=Path("new/onnx"))
    assert {path.name for path in Path.cwd().iterdir()} == {
        ".export-linkedto", ".export-running0", ".export-theirs", "elsewhere", "new",
    }  # fmt: skip
    assert [path.name for path in Path("new").iterdir()] == ["onnx"]


def test_predict_py_without_an_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "CHECK_TIMEOUT", 0.2)
    script = tmp_path / "predict.py"
    script.write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(BadDataError, match=r"did not classify 1 image within 0\.2 s") as caught:
        predict_elsewhere(script, [tmp_path])
    assert "\n" not in str(caught.value)


def test_missing_extra_says_how_to_install_it(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ONNX_PACKAGES", ("onnxruntime", "no_such_package"))
    with pytest.raises(UnreachableError, match=r"no_such_package is missing: pip .*\[onnx\]"):
        export_bundle(find_bundle(lab / "run", "logistic"), format="onnx")


def test_expected_failures_are_one_line_and_an_exit_code(lab: Path) -> None:
    Path("run").symlink_to(lab / "run")
    with h5py.File("other.h5", "w") as file:
        file["kernel"] = np.ones(3, "f4")
    bundle = load_bundle(find_bundle(lab / "run", "ridge"))
    moved = replace(bundle, document={**bundle.document, "cache": "gone.h5"})
    save_bundle(moved, Path("moved.skops"))
    spec = replace(
        bundle.spec,
        base="mobilenet",
        weights="ab" * 32,
        image_size=32,
        pixels=pixels_digest(32, "squash"),
    )
    save_bundle(replace(bundle, spec=spec), Path("network.skops"))
    before = sorted(Path.cwd().rglob("*"))
    for command, code, message in (
        ("run --head knn", 2, "knn cannot be exported"),
        ("run --head logistic --check-images 0", 2, "at least 1; received 0"),
        ("run --head logistic --out run", 73, "choose another --out"),
        ("network.skops --weights other.h5", 65, "with weights abababababab…; received"),
        ("nowhere", 66, "nowhere"),
        ("moved.skops", 66, "gone.h5 does not exist"),
    ):
        with pytest.raises(PipelineError) as caught:
            main([*command.split(), "--format", "onnx"])
        assert caught.value.exit_code == code, command
        assert message in str(caught.value)
        assert str(caught.value).isprintable()
        assert sorted(Path.cwd().rglob("*")) == before


def test_help_loads_no_library() -> None:
    loaded = modules_loaded_by("export", "--help")
    assert not {"numpy", "h5py", "sklearn", "tensorflow", "keras", "onnx"} & loaded
