"""A bundle as a model that leaves this project: a folder with the model and its predict.py.

The folder appears only after that predict.py, in a process that cannot import this project, gave
image files the probabilities that the head gives their cached features.
"""

import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.durable import publish_folder, scratch_folder
from pipeline.errors import BadDataError, CannotCreateError, UnreachableError, UsageError
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.models.head_layers import head_layers
from pipeline.models.parity import (
    MOST_IMAGES,
    TOLERANCES,
    Parity,
    compare_predictions,
    reference_images,
)
from pipeline.models.predictor import Predictor
from pipeline.text import counted, duration, printable

log = logging.getLogger("pipeline")

FORMATS = ("keras", "onnx")
ONNX_PACKAGES = ("onnxruntime", "tf2onnx")  # the extra [onnx]

SCRATCH = ".export-"  # what a folder is named while it is made
LONGEST_CHECK = 1_800  # seconds; 200 images through VGG16 on 2 cores take 25

# Runs a predict.py on paths from stdin as if this project were not installed.
ELSEWHERE = """
import os, runpy, sys
import numpy as np
sys.modules["pipeline"] = None  # now `import pipeline` fails
script, answer = sys.argv[1:]
paths = [os.fsdecode(path) for path in sys.stdin.buffer.read().split(b"\\0")]
np.save(answer, runpy.run_path(script)["predict"](paths), allow_pickle=False)
"""


@dataclass(frozen=True)
class Export:
    """What was written, and how well it agrees with what was measured."""

    folder: Path
    parity: Parity


def export_bundle(
    path: Path,
    *,
    format: str,
    weights: str | None = None,
    out: Path | None = None,
    cache_dir: Path = Path("cache"),
    check_images: int = MOST_IMAGES,
) -> Export:
    """Write one model from uint8 image to class probabilities, once it proved to be the same.

    Parameters
    ----------
    weights : the base's, ``imagenet`` or a file; None for those that the bundle names.
    out : the folder to make; by default ``exports/<head>-<format>`` in the bundle's run.
    cache_dir : where ImageNet weights were fetched to.
    check_images : so many test images are tried, as in `reference_images` with ``closest``.

    Raises UsageError for a head that cannot be exported, BadDataError if the model differs by more
    than `TOLERANCES` or in any decision or if the run's ``exports`` leads out of it,
    UnreachableError if a package is missing, CannotCreateError if ``out`` is there already.
    Whatever is raised, nothing is left.
    """
    if format not in FORMATS:
        raise UsageError(f"--format is one of {', '.join(FORMATS)}; received {format!r}")
    if check_images < 1:
        raise UsageError(f"--check-images needs at least 1; received {check_images}")
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if format == "onnx" and missing:
        raise UnreachableError(f"{missing[0]} is missing: pip install -e '.[onnx]'")
    bundle = load_bundle(path)
    head_layers(bundle)  # refuses what is no network before anything is loaded
    folder = _exports_of(path) / f"{path.stem}-{format}" if out is None else out
    if os.path.lexists(folder):
        raise CannotCreateError(f"{printable(folder)} is there already: choose another --out")
    config = Predictor(bundle, weights=weights, cache_dir=cache_dir).base_config()
    images = reference_images(bundle, most=check_images, closest=True)
    from pipeline.models import composition  # only now: it loads TensorFlow

    model = composition.compose(bundle, config)
    with scratch_folder(folder, prefix=SCRATCH) as made:
        save = composition.save_onnx if format == "onnx" else composition.save_keras
        log.info("writing model.%s", format)
        about = {
            "classes": list(bundle.classes),
            "fingerprint": bundle.spec.fingerprint,
            "spec": asdict(bundle.spec),
            **{name: getattr(bundle, name) for name in ("head", "params", "layer", "input")},
        }
        save(model, about, made / f"model.{format}")
        (made / "predict.py").write_text(_template("predict.py"), "utf-8")
        for _ in images.pixels():
            pass  # it raises for a file that is not what was cached any more
        log.info("checking %s through predict.py", counted(len(images.paths), "image"))
        found = predict_elsewhere(made / "predict.py", images.paths)
        tolerance = TOLERANCES[bundle.spec.dtype]
        parity = compare_predictions(images.predictions(bundle), found, tolerance=tolerance)
        parity.demand("the exported model")
        (made / "README.md").write_text(_readme(bundle, format, parity), "utf-8")
        publish_folder(made, folder)
    return Export(folder, parity)


def _exports_of(bundle: Path) -> Path:
    """``exports`` beside a bundle; raises BadDataError if it leads out of a stranger's run."""
    run = bundle.parent.parent if bundle.parent.name == "models" else bundle.parent
    exports = run / "exports"
    if exports.is_symlink() or not exports.resolve().is_relative_to(run.resolve()):
        raise BadDataError(f"{printable(exports)} is a link, which may lead anywhere: choose --out")
    return exports


def _template(name: str) -> str:
    return resources.files("pipeline.models").joinpath("templates", name).read_text("utf-8")


def predict_elsewhere(script: Path, paths: list[Path]) -> npt.NDArray[np.float32]:
    """What an exported predict.py says: (n, K); raises BadDataError if it fails or takes 30 min."""
    with tempfile.TemporaryDirectory() as elsewhere:
        answer = Path(elsewhere) / "answer.npy"
        try:
            finished = subprocess.run(
                [sys.executable, "-I", "-c", ELSEWHERE, script.resolve(), answer],
                input=b"\0".join(os.fsencode(path.resolve()) for path in paths),
                capture_output=True,
                cwd=elsewhere,
                check=False,
                timeout=LONGEST_CHECK,
            )
        except subprocess.TimeoutExpired as error:
            raise BadDataError(
                f"the exported predict.py did not answer for {counted(len(paths), 'image')} "
                f"within {duration(LONGEST_CHECK)}: try fewer --check-images"
            ) from error
        if finished.returncode:
            *_, last = finished.stderr.decode(errors="replace").splitlines() or ["no reason given"]
            raise BadDataError(f"the exported predict.py failed: {printable(last)}")
        found: npt.NDArray[np.float32] = np.load(answer, allow_pickle=False)
    return found


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
