"""Open an image set from what the user named, and its images from what a cache recorded."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import BadDataError, UsageError
from pipeline.images.config import LabelConfig
from pipeline.images.image_stores import (
    as_pattern,
    exists,
    is_store,
    list_store,
    open_store,
    reopen_store,
)
from pipeline.images.manifest import is_frame, is_manifest, read_manifest
from pipeline.images.scan import (
    NO_SPLIT,
    ImageSet,
    Skipped,
    is_url,
    scan_folder,
    scan_unlabelled,
)
from pipeline.images.shards import SUFFIXES
from pipeline.images.source import FolderSource, ImageSource, MergedSource
from pipeline.text import printable

Name = str | os.PathLike[str]  # of an image folder or manifest
Data = Name | Sequence[Name] | Any  # several folders are one set; Any: a pandas data frame


def open_set(data: Data, options: LabelConfig | None = None) -> ImageSet:
    """Find the images, classes and splits of a set.

    Raises as `scan_folder` and `pipeline.images.manifest.read_manifest`; UsageError for options
    that a folder does not have.
    """
    options = options or LabelConfig()
    if is_frame(data):
        return read_manifest(data, options)
    names = [data] if isinstance(data, str | os.PathLike) else list(data)
    if not names or not all(map(os.fspath, names)):
        raise UsageError("the image folder is an empty name: is a variable unset?")
    paths = [Path(name) for name in names]
    flag = options.first_of("task", "root", "path_column", "label_columns")
    stored = names[0] if len(names) == 1 else as_pattern([os.fspath(name) for name in names])
    if stored and not flag:
        images = list_store(stored) if options.unlabeled else open_store(stored, options)
        if images is not None:
            return images
    flag = flag or options.first_of("label_column", "split_column", "group_column")
    if len(paths) == 1 and is_manifest(paths[0]):
        try:
            return read_manifest(paths[0], options)
        except BadDataError as error:
            if flag and stored and is_store(stored):
                raise UsageError(
                    f"{flag} needs a manifest of paths; {printable(paths[0])} contains the images"
                ) from error
            raise
    if flag:
        raise UsageError(f"{flag} needs a manifest such as labels.csv; received {_listed(paths)}")
    if len(paths) > 1:
        for name in [os.fspath(each) for each in names]:
            if is_url(name) or name.lower().endswith(SUFFIXES):
                raise UsageError(
                    f"{printable(name)} is not a folder: only folders, or files of one kind, are "
                    f"one set"
                )
        return _merge_folders(paths, options)
    if options.unlabeled:
        return scan_unlabelled(paths[0])
    try:
        return scan_folder(paths[0])
    except BadDataError as error:
        if manifests := sorted(filter(is_manifest, paths[0].iterdir())):
            raise BadDataError(f"{error}; did you mean {printable(manifests[0])}?") from error
        raise


def _merge_folders(paths: Sequence[Path], options: LabelConfig) -> ImageSet:
    """Return the images of several folders as one set; classes of the same name are one."""
    for path in paths:
        if is_manifest(path):
            raise UsageError(f"{printable(path)} is a manifest: extract it alone, not with others")
    roots = sorted({path.resolve() for path in paths})
    if len(roots) < len(paths):
        raise UsageError(f"a folder is named twice: {_listed(paths)}")
    for outer in roots:
        for inner in roots:
            if inner != outer and inner.is_relative_to(outer):
                raise UsageError(
                    f"{printable(inner)} is inside {printable(outer)}: its images would be in the "
                    f"set twice"
                )
    sets = [
        scan_unlabelled(root) if options.unlabeled else scan_folder(root, min_classes=1)
        for root in roots
    ]
    with_splits = [any(file.split != NO_SPLIT for file in each.files) for each in sets]
    if len(set(with_splits)) > 1:
        one, other = (sets[with_splits.index(value)].root for value in (True, False))
        raise BadDataError(
            f"{printable(one)} has split folders, {printable(other)} has none: expected all or none"
        )
    classes = sorted({name for each in sets for name in each.classes})
    names = _unique_names(roots)
    files = []
    skipped: list[Skipped] = []
    ignored: list[str] = []
    for name, each in zip(names, sets, strict=True):
        prefix = os.fsencode(name) + b"/"
        numbers = [classes.index(class_name) for class_name in each.classes] or [0]
        files += [
            replace(file, path=prefix + file.path, label=numbers[file.label]) for file in each.files
        ]
        skipped += [replace(item, path=prefix + item.path) for item in each.skipped]
        ignored += [f"{name}/{item}" for item in each.ignored]
    shown = "+".join(names) if len(names) < 4 else f"{names[0]}+{len(names) - 1}"
    return ImageSet(
        source=MergedSource(dict(zip(names, map(FolderSource, roots), strict=True))),
        name=shown + f"-{sets[0].task}" * options.unlabeled,
        classes=tuple(classes),
        files=tuple(sorted(files, key=lambda file: (file.split, file.path))),
        skipped=tuple(skipped),
        ignored=tuple(ignored),
        task=sets[0].task,
        folders=dict(zip(names, map(os.fspath, roots), strict=True)),
    )


def _unique_names(roots: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that differ: a/x, b/x -> a-x, b-x."""
    for length in range(1, max(len(root.parts) for root in roots) + 1):
        names = ["-".join(root.parts[-length:]).replace("/", "") for root in roots]
        if len(set(names)) == len(names):
            break
    return names


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(map(printable, paths[:4])) + ", …" * (len(paths) > 4)


def reopen_source(document: Mapping[str, Any]) -> ImageSource | None:
    """Return the source of a cache's images, to read them again; None if it is gone.

    ``document`` is the cache's ``spec``. Raises a PipelineError if it is an archive or address that
    cannot be read.
    """
    folders = _folders_of(document)
    if is_gone(document):
        return None
    if "folders" not in document and (source := reopen_store(str(document["root"]))) is not None:
        return source
    if not all(map(Path.is_absolute, folders.values())):
        return None
    if "folders" not in document:
        return FolderSource(folders[""], confined=True)
    if "" in folders:
        return FolderSource(folders[""], manifest=str(document["root"]))
    return MergedSource({name: FolderSource(folder) for name, folder in folders.items()})


def open_source(name: Name) -> ImageSource | None:
    """Return the images of a folder, archive or address without labels; None if it is no such."""
    folder = Path(name)
    return reopen_store(os.fspath(name)) or (FolderSource(folder) if folder.is_dir() else None)


def is_gone(document: Mapping[str, Any]) -> bool:
    """Return whether a folder of a cache's images does not exist any more."""
    return missing_folder(document) is not None


def missing_folder(document: Mapping[str, Any]) -> Path | None:
    """Return the first folder of a cache's images that does not exist any more."""
    folders = _folders_of(document).values()
    return next((folder for folder in folders if not exists(os.fspath(folder))), None)


def _folders_of(document: Mapping[str, Any]) -> dict[str, Path]:
    """Return the folders of a cache's images by the beginning of their paths."""
    folders = document.get("folders")
    if not isinstance(folders, dict) or not folders:
        folders = {"": document["root"]}
    return {name: Path(str(folder)) for name, folder in folders.items()}
