"""Bases converted for an engine, kept on the disk: made once, whole or not at all.

They stand in ``<cache>/engines/<base>-<size>-<key>/``, where the key is a digest of the weights,
the preprocessing and the layers; below it a folder per engine and version, and what
`pipeline.engines.trials` found out about them.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from pipeline.bases.config import BaseConfig
from pipeline.durable import make_folder, publish_folder
from pipeline.spec import split_layer_key

CONVERTER = 2  # raised when the same base is converted otherwise
MANIFEST = "files.json"  # file -> SHA-256
SCRATCH = ".converting-"
STALE_AFTER = 86_400  # seconds: what is older was left by a process that was killed


def runtime_version(package: str) -> str:
    """Of an engine's package and of the conversion that it computes: both decide on the last bits.

    Raises PackageNotFoundError.
    """
    return f"{version(package)}-{CONVERTER}"


def conversions_folder(config: BaseConfig, layers: Sequence[str], weights: str) -> Path:
    """Where the conversions of a base stand; pooling is done outside of them."""
    what = [weights, config.preprocessing, *maps_of(layers)]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    name = f"{config.network.name}-{config.size}-{key}"
    return config.cache_dir / "engines" / name


def maps_of(layers: Sequence[str]) -> list[str]:
    """The layers of layer keys, without their pooling."""
    return sorted({split_layer_key(key)[0] for key in layers})


def is_whole(folder: Path) -> bool:
    """Whether a conversion is there, every byte as it was written."""
    try:
        digests = json.loads((folder / MANIFEST).read_text())
        return bool(digests) and all(
            _digest(folder / name) == digest for name, digest in digests.items()
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def write_conversion(folder: Path, convert: Callable[[Path], None]) -> None:
    """Let ``convert`` fill a folder, and give that its name once all in it is on the disk."""
    make_folder(folder.parent)
    _remove_stale(folder.parent)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        convert(made)
        digests = {path.name: _digest(path) for path in made.iterdir()}
        (made / MANIFEST).write_text(json.dumps(digests, indent=2))
        with FileLock(f"{folder}.lock"):
            if is_whole(folder):  # another process was faster, and may have it open
                return
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one
            publish_folder(made, folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:  # of a network of 350 million weights not all at once
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_stale(parent: Path) -> None:
    for path in parent.glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):  # its owner may remove it at this moment
            if path.stat().st_mtime < time.time() - STALE_AFTER:
                shutil.rmtree(path, ignore_errors=True)
