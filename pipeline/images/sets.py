"""Open an image set from what the user named, and again from what a cache recorded of it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.images.scan import ImageSet, scan_folder
from pipeline.images.source import FolderSource, ImageSource

Data = str | os.PathLike[str]  # a folder of images


def open_set(data: Data) -> ImageSet:
    """Find the images, classes and splits of a set; raises as `scan_folder`."""
    if not os.fspath(data):
        raise UsageError("the image folder is an empty name: is a variable unset?")
    return scan_folder(Path(data))


def reopen_set(document: Mapping[str, Any]) -> ImageSet:
    """Find the images of a cache's set as they are now; ``document`` is the cache's ``spec``."""
    return scan_folder(Path(document["root"]))


def reopen_source(document: Mapping[str, Any]) -> ImageSource | None:
    """Return the source of a cache's images, to read them again; None if it is gone."""
    folder = Path(str(document["root"]))
    return FolderSource(folder, confined=True) if folder.is_absolute() and folder.is_dir() else None


def is_gone(document: Mapping[str, Any]) -> bool:
    """Return whether the place of a cache's images does not exist any more."""
    return not Path(document["root"]).is_dir()
