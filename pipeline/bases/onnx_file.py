"""The network in a .onnx file from anywhere: it is checked and measured in another process.

The process has limited memory and time: protobuf or ONNX Runtime may crash, or allocate what a
file declares. `pipeline.bases.onnx_checks` runs in it. Shapes are measured: static inference stops
where a network computes them while it runs.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import errors
from pipeline.bases.file_base import FileDescription
from pipeline.errors import BadDataError
from pipeline.text import printable

SECONDS = 300
MAX_EXTRA_TOKENS = 16  # class and register tokens; DINOv2 has up to 5


class FileLayer(NamedTuple):
    """A tensor of a file that can be cached.

    ``name`` : of the layer, safe in file names. ``tensor`` : its name in the file. ``kind`` : the
    operator. ``form`` : ``nchw`` or ``nhwc`` maps, ``tokens`` (N, C) or a ``vector`` (C,).
    ``shape`` : of one image, maps as (H, W, C).
    """

    name: str
    tensor: str
    kind: str
    form: str
    shape: tuple[int, ...]
    parameters: int


class Measurement(NamedTuple):
    """The layers of a file in order, the default one, and the images per run, 0 for any."""

    layers: tuple[FileLayer, ...]
    default: str
    batch: int

    def find(self, name: str) -> FileLayer | None:
        """Return the layer of a name, or of a tensor's name."""
        return next((each for each in self.layers if name in (each.name, each.tensor)), None)


def describe(path: Path, version: tuple[int, ...]) -> FileDescription:
    """Check a file and describe its input; raises BadDataError, one line, if it is refused.

    ``version`` : of the file, `pipeline.bases.file_base.version_of`.
    """
    return FileDescription(**_in_other_process(path, "describe", version=version))


def measure(path: Path, image_size: int, layout: str, version: tuple[int, ...]) -> Measurement:
    """Run a file once and return the shapes of its layers; raises BadDataError if it fails."""
    details = {"image_size": image_size, "layout": layout, "version": version}
    answer = _in_other_process(path, "measure", **details)
    layers = (FileLayer(**{**layer, "shape": tuple(layer["shape"])}) for layer in answer["layers"])
    return Measurement(tuple(layers), answer["default"], answer["batch"])


KNOWN: dict[str, dict[str, Any]] = {}  # request -> answer, also for processes that this one starts


def _in_other_process(path: Path, job: str, **details: Any) -> dict[str, Any]:
    request = json.dumps({"job": job, "path": os.fspath(path.absolute()), **details})
    if request in KNOWN:
        return KNOWN[request]
    package_parent = str(Path(errors.__file__).parents[1])
    paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    name = f"--base {printable(path)}"
    try:
        finished = subprocess.run(
            [sys.executable, "-m", "pipeline.bases.onnx_checks"],
            input=request.encode(),
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "ORT_DISABLE_TELEMETRY": "1"},
            check=False,
            timeout=SECONDS,
        )
        answer: dict[str, Any] = json.loads(finished.stdout)
    except subprocess.TimeoutExpired:
        raise BadDataError(f"{name} is refused: one image takes over {SECONDS} s") from None
    except ValueError:
        raise BadDataError(f"{name} is refused: ONNX Runtime crashes on it") from None
    if "refused" in answer:
        raise BadDataError(f"{name} is refused: {printable(answer['refused'])}")
    KNOWN[request] = answer
    return answer


def patch_grid(tokens: int, image_size: int) -> int:
    """Return the side of the square of patches among the tokens of an image; 0 if there is none.

    >>> patch_grid(197, 224), patch_grid(261, 224), patch_grid(49, 224), patch_grid(768, 224)
    (14, 16, 7, 0)
    """
    side = math.isqrt(tokens)
    is_grid = side > 1 and tokens - side**2 <= MAX_EXTRA_TOKENS and image_size % side == 0
    return side if is_grid else 0
