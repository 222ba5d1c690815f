"""Export a bundle as a folder with one model and its predict.py, independent of this project.

The folder is published only if predict.py, in a process that cannot import this project, gives
image files the probabilities that the head gives their cached features.
"""

import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.durable import publish_folder, scratch_folder
from pipeline.errors import (
    BadDataError,
    PipelineError,
    UnreachableError,
    UsageError,
)
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.models.head_layers import NotExportableError, head_layers, why_not_exportable
from pipeline.models.parity import (
    MAX_IMAGES,
    TOLERANCES,
    Parity,
    ParityError,
    compare_predictions,
    reference_images,
)
from pipeline.models.predictor import Predictor
from pipeline.models.runs import NotSavedError, find_bundle, new_export_folder, saved_bundles
from pipeline.spec import CLASSES
from pipeline.text import counted, duration, printable

log = logging.getLogger("pipeline")

FORMATS = ("keras", "onnx")
ONNX_PACKAGES = ("onnxruntime", "tf2onnx", "skl2onnx")  # the extra [onnx]

SCRATCH = ".export-"  # prefix of an unfinished folder
CURE = "choose another --head, or extract into a new cache and classify again"
# as those of naive_bayes, which multiply rounding errors; a new cache has them too
SENSITIVE = (
    "its probabilities are too sensitive to the last bits of features; choose another --head"
)
CHECK_TIMEOUT = 1_800  # seconds; 200 images through VGG16 on 2 cores take 25

# Runs a predict.py on paths from stdin without this project.
RUN_PREDICT_PY = """
import os, runpy, sys
import numpy as np
sys.modules["pipeline"] = None  # now `import pipeline` fails
script, output = sys.argv[1:]
paths = [os.fsdecode(path) for path in sys.stdin.buffer.read().split(b"\\0")]
np.save(output, runpy.run_path(script)["predict"](paths), allow_pickle=False)
"""


@dataclass(frozen=True)
class Export:
    """An exported folder, and the comparison of its predictions with those of the cache."""

    head: str
    folder: Path
    parity: Parity


def export_run(run: Path, head: str | None = None, **options: Any) -> Export:
    """Export a head of a run, by default the recommended one.

    If the recommended head cannot be exported, or not within the tolerance, a warning says so and
    the best of the others that can is exported. ``run`` and ``head`` are those of `find_bundle`,
    ``options`` and errors those of `export_bundle`.
    """
    if head is not None or run.is_file():
        return export_bundle(find_bundle(run, head), **options)
    paths = saved_bundles(run)
    failure: PipelineError | None = None
    try:
        recommended = find_bundle(run)
        paths = [recommended, *(path for path in paths if path != recommended)]
    except NotSavedError as error:
        failure = error
    for path in paths:
        if failure:
            log.warning("%s", failure)
            log.warning("trying %s instead, the next best", printable(path.stem))
        try:
            return export_bundle(path, **options)
        except (NotExportableError, ParityError) as error:
            failure = error
    raise failure or NotSavedError(f"{printable(run)} has no saved head: classify again")


def export_bundle(
    path: Path,
    *,
    format: str,
    weights: str | None = None,
    out: Path | None = None,
    cache_dir: Path = Path("cache"),
    images: Path | None = None,
    check_images: int = MAX_IMAGES,
) -> Export:
    """Export one model, uint8 images to class probabilities; compare it with the cache first.

    Parameters
    ----------
    weights : of the base, ``imagenet`` or a file; None for those that the bundle names.
    out : the new folder; by default ``exports/<head>-<format>`` in the bundle's run.
    cache_dir : contains fetched ImageNet weights, and the cache of the training if it was moved.
    images : contains the images of the training, if they were moved; they are found by content.
    check_images : number of test images to compare, chosen by `reference_images` with ``closest``.

    Raises NotExportableError for a head that the format cannot hold, ParityError if the model
    differs by more than `TOLERANCES` or in a decision, BadDataError if the run's ``exports`` is a
    link out of it, UnreachableError for a missing package, CannotCreateError for an existing
    ``out``. Nothing is written if an error is raised.
    """
    if format not in FORMATS:
        raise UsageError(f"--format is one of {', '.join(FORMATS)}; received {format!r}")
    if check_images < 1:
        raise UsageError(f"--check-images needs at least 1; received {check_images}")
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if format == "onnx" and missing:
        raise UnreachableError(f"{missing[0]} is missing: pip install -e '.[onnx]'")
    bundle = load_bundle(path)
    if reason := why_not_exportable(bundle):
        error = NotExportableError if bundle.task == CLASSES else UsageError  # no other head can
        raise error(f"{printable(bundle.head)} cannot be exported: {reason}")
    if format == "keras":
        head_layers(bundle)  # refuses other heads before TensorFlow loads
    folder = new_export_folder(path, format, out)
    config = Predictor(bundle, weights=weights, cache_dir=cache_dir).base_config()
    reference = reference_images(
        bundle, cache_dir=cache_dir, images=images, max_images=check_images, closest=True
    )
    from pipeline.models import composition  # loads TensorFlow

    is_onnx = format == "onnx"
    model = (composition.compose_onnx if is_onnx else composition.compose)(bundle, config)
    with scratch_folder(folder, prefix=SCRATCH) as unfinished:
        save = composition.save_onnx if is_onnx else composition.save_keras
        log.info("writing model.%s", format)
        about = {
            "classes": list(bundle.classes),
            "fingerprint": bundle.spec.fingerprint,
            "spec": bundle.spec.to_dict(),
            **{name: getattr(bundle, name) for name in ("head", "params", "layer", "input")},
        }
        save(model, about, unfinished / f"model.{format}")
        (unfinished / "predict.py").write_text(_template("predict.py"), "utf-8")
        for _ in reference.pixels():
            pass  # raises for a changed image
        log.info("checking %s through predict.py", counted(len(reference.rows), "image"))
        with tempfile.TemporaryDirectory() as copies:
            files = reference.files(Path(copies))
            exported = predict_elsewhere(unfinished / "predict.py", files)
        tolerance = TOLERANCES[bundle.spec.dtype]
        parity = compare_predictions(reference.predictions(bundle), exported, tolerance=tolerance)
        others = [each.stem for each in path.parent.glob(f"*{path.suffix}") if each != path]
        names = f": {printable(', '.join(sorted(others)))}" if others else ""
        is_close = not parity.changed and parity.max_difference < 10 * tolerance
        cure = SENSITIVE + names if is_close else CURE
        parity.raise_for_difference(f"the exported {printable(bundle.head)}", cure)
        (unfinished / "README.md").write_text(_readme(bundle, format, parity), "utf-8")
        publish_folder(unfinished, folder)
    return Export(bundle.head, folder, parity)


def _template(name: str) -> str:
    return resources.files("pipeline.models").joinpath("templates", name).read_text("utf-8")


def predict_elsewhere(script: Path, paths: list[Path]) -> npt.NDArray[np.float32]:
    """Run an exported predict.py without this project: paths (n,) -> (n, K) float32.

    Raises BadDataError if it fails or takes 30 minutes.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "probabilities.npy"
        try:
            finished = subprocess.run(
                [sys.executable, "-I", "-c", RUN_PREDICT_PY, script.resolve(), output],
                input=b"\0".join(os.fsencode(path.resolve()) for path in paths),
                capture_output=True,
                cwd=folder,
                check=False,
                timeout=CHECK_TIMEOUT,
            )
        except subprocess.TimeoutExpired as error:
            raise BadDataError(
                f"the exported predict.py did not classify {counted(len(paths), 'image')} within "
                f"{duration(CHECK_TIMEOUT)}: choose fewer --check-images"
            ) from error
        if finished.returncode:
            *_, last = finished.stderr.decode(errors="replace").splitlines() or ["no reason given"]
            raise BadDataError(f"the exported predict.py failed: {printable(last)}")
        probabilities: npt.NDArray[np.float32] = np.load(output, allow_pickle=False)
    return probabilities


def _readme(bundle: Bundle, format: str, parity: Parity) -> str:
    text = _template(f"README-{format}.md")
    for name, value in {
        "HEAD": bundle.head,
        "BASE": bundle.spec.base,
        "CLASSES": ", ".join(bundle.classes),
        "SIZE": str(bundle.spec.image_size),
        "RESIZE": bundle.spec.resize,
        "FINGERPRINT": bundle.spec.fingerprint,
        "PARITY": str(parity),
    }.items():
        text = text.replace(f"{{{name}}}", printable(value))
    return text
